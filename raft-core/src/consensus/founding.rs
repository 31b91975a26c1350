//! Founding: how the members of a new cluster make sure that it is new.
//!
//! The operator declares each disk of a new cluster new ([`Memory::New`]). That alone is not enough
//! for safety: an operator, or a script, may declare the empty disk of a member new that had
//! promised something on an earlier disk, and the first majority would then lose acknowledged
//! writes. So a new node's votes and acknowledgements are counted only after it has *met* all other
//! voters: each of them told this node, after this node had started, that it is in term 0.
//!
//! 1. While in term 0, a new node sends each other voter a [`MessageBody::Founding`] once per
//!    heartbeat interval. It carries the sender's number, drawn at this start, and the number that
//!    the sender last received from that voter.
//! 2. A node whose present number every other voter has received writes [`Memory::Met`], and says
//!    so once that is on its disk.
//! 3. A node that knows that all voters have met may campaign. So the first term begins only when
//!    all voters count; from then on an ordinary majority elects, commits and confirms reads.
//! 4. With its first term a node that has met becomes [`Memory::Intact`]. A *new* node that learns
//!    of a term above 0 was left out by rule 3, so the cluster was founded before it lost its disk:
//!    it becomes [`Memory::Lost`] and recovers.
//!
//! Why a node X that has met may count. A promise of an earlier incarnation of X, a vote or an
//! acknowledgement, was given in a term above 0, to a node A whose disk was in that term before.
//! Terms never fall. A said after X's present start that it is in term 0, so A has lost that disk
//! as well, and with it the candidacy or the leadership that counted the promise. This holds for
//! each voter, so nothing is left of any earlier cluster that the promise could contradict.
//!
//! Why rule 4 finds every wiped node. The cluster's first term was begun by a node that knew that
//! all voters had met. A wiped node now says `met: false` under a new number. A node in term 0 that
//! responds to it has recorded that, so by rule 3 it does not campaign.
//!
//! So an empty cluster appears only where an operator declares *all* voters new and every one of
//! them is in term 0, and a cluster that lost a majority of its disks elects no leader at all.
//!
//! Messages of a node's earlier incarnation do not arrive after messages of its present one
//! ([`crate::transport`]). Lost, repeated and late messages do no harm: rules 1 to 3 only wait.
//!
//! [`Memory::New`]: crate::types::Memory::New
//! [`Memory::Met`]: crate::types::Memory::Met
//! [`Memory::Intact`]: crate::types::Memory::Intact
//! [`Memory::Lost`]: crate::types::Memory::Lost

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::{MessageBody, NodeId, Time};

/// The latest [`MessageBody::Founding`] of one other voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    number: u64,
    /// The voter has received this node's present number.
    has_met_us: bool,
    met: bool,
    version_max: u32,
}

/// A node in term 0 of a cluster that is being founded.
#[derive(Clone, Debug)]
pub(super) struct Founding {
    pub(super) number: u64,
    /// Every other voter; `None` before its first message.
    pub(super) peers: BTreeMap<NodeId, Option<Peer>>,
    pub(super) next_at: Time,
    /// The next round is due early, because of news.
    pub(super) is_extra_round: bool,
    /// The last round was early.
    pub(super) extra_round_used: bool,
}

impl Founding {
    pub(super) fn new(number: u64, others: Vec<NodeId>, now: Time) -> Self {
        let peers = others.into_iter().map(|id| (id, None)).collect();
        Self { number, peers, next_at: now, is_extra_round: false, extra_round_used: false }
    }

    /// Takes a message of another node in term 0. If it changes what is known of that node, the
    /// others must learn it, and the next round is sent at once.
    pub(super) fn on_message(&mut self, now: Time, from: NodeId, word: Word) {
        let Some(known) = self.peers.get_mut(&from) else { return };
        let Word { number, heard, met, version_max } = word;
        let has_met_us = heard == Some(self.number);
        let peer = Some(Peer { number, has_met_us, met, version_max });
        if *known != peer {
            *known = peer;
            // At most one round beside the regular ones, whatever a peer sends.
            if !self.extra_round_used {
                self.is_extra_round = true;
                self.hurry(now);
            }
        }
    }

    /// Returns true if every other voter has received this node's present number.
    pub(super) fn has_met_all(&self) -> bool {
        self.peers.values().all(|peer| peer.is_some_and(|peer| peer.has_met_us))
    }

    /// Returns true if every other voter has met all others, and has that on its disk.
    pub(super) fn all_have_met(&self) -> bool {
        self.peers.values().all(|peer| peer.is_some_and(|peer| peer.has_met_us && peer.met))
    }

    /// Returns the voters that have not yet received this node's present number.
    pub(super) fn missing(&self) -> Vec<NodeId> {
        let is_missing = |peer: &Option<Peer>| peer.is_none_or(|peer| !peer.has_met_us);
        self.peers.iter().filter(|(_, peer)| is_missing(peer)).map(|(id, _)| *id).collect()
    }

    /// Returns the newest cluster version that all voters support, as far as they said.
    pub(super) fn common_version(&self, own: u32) -> u32 {
        let others = self.peers.values().flatten().map(|peer| peer.version_max);
        others.fold(own, u32::min).max(1)
    }

    pub(super) fn deadline(&self) -> Time {
        self.next_at
    }

    /// Returns the messages of the next round, if it is due.
    pub(super) fn next_round(
        &mut self,
        now: Time,
        interval: Duration,
        met: bool,
        version_max: u32,
    ) -> Vec<(NodeId, MessageBody)> {
        if now < self.next_at {
            return Vec::new();
        }
        self.next_at = now + interval;
        self.extra_round_used = std::mem::take(&mut self.is_extra_round);
        let body = |peer: &Option<Peer>| MessageBody::Founding {
            number: self.number,
            heard: peer.map(|peer| peer.number),
            met,
            version_max,
        };
        self.peers.iter().map(|(id, peer)| (*id, body(peer))).collect()
    }

    /// Makes the next round due at once, because there is news for the others.
    pub(super) fn hurry(&mut self, now: Time) {
        self.next_at = self.next_at.min(now);
    }
}

/// The content of a [`MessageBody::Founding`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    pub(super) number: u64,
    pub(super) heard: Option<u64>,
    pub(super) met: bool,
    pub(super) version_max: u32,
}
