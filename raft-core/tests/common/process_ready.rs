//! Processes each `Ready` of a node. The oracle checks every part of it.

use raft_core::consensus::invariants::Marks;
use raft_core::consensus::{Persist, Ready, RoleKind, invariants};
use raft_core::types::{Entry, NodeId, Position, SnapshotMeta};

use super::cluster::Cluster;
use super::network::{Envelope, Parcel};
use super::oracle::{deciding_configuration, must};
use super::render;

impl Cluster {
    pub(super) fn process_ready(&mut self, id: NodeId) {
        loop {
            let now = self.now;
            let raft = self.node_mut(id).raft.as_mut().expect("the node is up");
            let ready = raft.ready(now);
            self.check_step(id);
            if ready.is_empty() {
                return;
            }
            self.carry_out_one(id, ready);
        }
    }

    /// Checks one node after a step, by itself and compared with its state before.
    fn check_step(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        let raft = node.raft.as_ref().expect("the node is up");
        invariants::check(raft);
        let now = Marks::from(&raft.status());
        if let Some(before) = node.marks.replace(now) {
            must(id, invariants::term_never_falls(&before, &now));
            must(id, invariants::commit_never_shrinks(&before, &now));
            must(id, invariants::applied_never_falls(&before, &now));
            must(id, invariants::leader_append_only(&before, &now));
        }
    }

    fn carry_out_one(&mut self, id: NodeId, ready: Ready) {
        let Ready {
            persist,
            messages,
            committed,
            restore,
            read_states,
            snapshot_requests,
            snapshot_published,
            role_change,
            alarms,
            notices,
        } = ready;
        if let Some(change) = role_change {
            let leader = change.leader.map_or(String::new(), |leader| format!(" of {leader}"));
            self.tell(|| format!("{id} is {}{leader} in t{}", change.role.name(), change.term));
            if change.role == RoleKind::Leader {
                let log = &self.nodes[&id].log;
                self.oracle.on_leader(id, change.term, log);
            }
        }
        for (to, message) in messages {
            self.oracle.on_send(id, to, &message, &self.nodes[&id].disk);
            self.flying.push_back(Envelope { from: id, to, parcel: Parcel::Message(message) });
        }
        if let Some(persist) = &persist {
            self.take_batch(id, persist);
        }
        self.see_commits(id);
        self.apply(id, committed);
        if let Some(meta) = restore {
            self.restore(id, &meta);
        }
        for state in &read_states {
            self.oracle.on_read_answered(id, state.id, state.outcome.index());
            let index =
                state.outcome.index().map_or("failed".to_owned(), |index| index.to_string());
            self.tell(|| format!("{id} read {}: {index}", state.id));
        }
        self.node_mut(id).reads.extend(read_states);
        for peer in snapshot_requests {
            self.send_snapshot(id, peer);
        }
        if let Some(meta) = snapshot_published {
            self.tell(|| format!("{id} published snapshot {}", meta.position));
        }
        for alarm in alarms {
            self.tell(|| format!("{id} ALARM {alarm}"));
            self.node_mut(id).alarms.push(alarm);
        }
        for notice in notices {
            self.tell(|| format!("{id} notes {notice}"));
            self.node_mut(id).notices.push(notice);
        }
        if persist.is_some() && !self.slow_disks.contains(&id) {
            while self.is_up(id) && self.write(id) {}
        }
    }

    fn take_batch(&mut self, id: NodeId, persist: &Persist) {
        self.tell(|| format!("{id} writes #{}: {}", persist.id, render::batch(&persist.batch)));
        let node = self.nodes.get_mut(&id).expect("a node of this cluster");
        node.writing.push_back(persist.clone());
        node.log.write(&persist.batch);
        if let Some(first) = persist.batch.entries.first() {
            let term = node.log.term_at(first.index - 1).expect("entries follow the log");
            let previous = Position::new(term, first.index - 1);
            self.oracle.on_entries(id, previous, &persist.batch.entries);
        }
    }

    /// Shows the oracle the entries that this node has newly learned to be committed. While the
    /// disk is slow, the last batch may be older than the log in memory; the rest is shown later.
    fn see_commits(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        let Some(raft) = &node.raft else { return };
        let (term, commit_index) = (raft.term(), raft.status().commit_index);
        let start_index = node.log.start().index;
        let mut seen = node.commit_seen.max(start_index);
        while seen < commit_index
            && let Some(entry) = node.log.entry(seen + 1)
            && let Some(meta) = raft.snapshot_meta(seen + 1)
            && meta.position == entry.position()
        {
            let disks = self.nodes.iter().map(|(id, node)| (*id, &node.disk));
            let voters = deciding_configuration(raft, entry.index);
            self.oracle.on_commit(id, term, entry, &voters, disks);
            seen += 1;
        }
        self.node_mut(id).commit_seen = seen;
    }

    fn apply(&mut self, id: NodeId, entries: Vec<Entry>) {
        let Some(last) = entries.last().map(|entry| entry.index) else { return };
        if self.hung_machines.contains(&id) {
            return;
        }
        self.tell(|| format!("{id} applies {}", render::entries(&entries)));
        for entry in entries {
            self.oracle.on_apply(id, &entry);
            let node = self.node_mut(id);
            assert_eq!(node.disk.entry(entry.index), Some(&entry), "applied before it is on disk");
            node.machine.apply(entry);
        }
        self.node_mut(id).raft.as_mut().expect("the node is up").on_applied(last);
    }

    fn restore(&mut self, id: NodeId, meta: &SnapshotMeta) {
        self.tell(|| format!("{id} restores {}", meta.position));
        let node = self.nodes.get_mut(&id).expect("a node of this cluster");
        assert_eq!(
            node.disk.loaded.snapshot.as_ref(),
            Some(meta),
            "restored before it is published"
        );
        node.machine = node.disk.state.clone();
        node.machine.applied.iter().for_each(|entry| self.oracle.on_restored(id, entry));
        node.raft.as_mut().expect("the node is up").on_applied(meta.index());
    }

    fn send_snapshot(&mut self, from: NodeId, to: NodeId) {
        let node = &self.nodes[&from];
        let incarnation = node.incarnation;
        let term = self.raft(from).term();
        match &node.disk.loaded.snapshot {
            Some(meta) => {
                let (meta, state) = (meta.clone(), node.disk.state.clone());
                let parcel = Parcel::Snapshot { term, meta, state, incarnation };
                self.flying.push_back(Envelope { from, to, parcel });
            }
            None => self.report_snapshot(from, to, None, incarnation),
        }
    }
}
