//! Recovery: what a node on an empty disk may do, and how it comes to be counted again.
//!
//! A voter whose disk was lost and that starts on an empty one has forgotten its votes and
//! acknowledgements. If it voted and acknowledged as before, a second candidate could win a term,
//! and entries that were committed with its help could be missing in a majority. So a node on an
//! empty disk *recovers* ([`Memory::Lost`](crate::types::Memory::Lost)), unless the operator has
//! declared the disk new ([`super::founding`]). It says so in each of its messages, under a number
//! drawn anew at each start, and takes its leader's entries like any other node. But
//!
//! * it never campaigns;
//! * its votes and acknowledgements are not counted: elections are won, entries committed and reads
//!   confirmed by a majority of all voters that does not include it (`role::leader::recovery`);
//! * like every node, it takes a commit index from a heartbeat only as far as appends of the same
//!   leader have shown, since the node started, that the logs agree: until the leader has received
//!   a message under the node's number, a heartbeat may name an index that only the lost disk had
//!   acknowledged.
//!
//! The node R is counted again once a leader L of term T has told it so
//! ([`MessageBody::Recovered`](crate::types::MessageBody::Recovered)) and R has that on its disk
//! (`Durability::next_memory`); until then R continues to say that it recovers. L tells R so when,
//! after it first received a message of R under this number,
//!
//! 1. all other voters have responded to a round of L, and so were in term T, and
//! 2. R has on its disk everything that L's log held when L first received such a message.
//!
//! Why that is enough. Say R forgot a promise of term t, given to a candidate or leader A. A was in
//! term t before R lost its disk, terms never fall, and by 1 A was in term T after that: t <= T. (A
//! heartbeat response is not durable, and a crash may take A back to an older term. But the term of
//! a candidacy is durable, and a candidacy ends with that response.) R is in term T and votes for
//! no other node in it, so no vote is given twice. If R forgot an acknowledgement that helped to
//! commit an entry, then the entry is of a term before T, and L holds it like every leader after
//! it; or it is of term T, and L had it before R could acknowledge it. By 2 R has it again. If
//! another peer loses its disk meanwhile, 1 starts anew, because that peer's earlier response
//! proves nothing about promises that it has forgotten since.
//!
//! A vote of R for itself is another matter. R may have campaigned beyond T while it was
//! partitioned, and may vote for other nodes in those terms now. But only R could count that vote,
//! in a candidacy that was lost with the disk. Votes that other nodes gave to the earlier
//! incarnation of R may still arrive, but they elect no leader: a voter that gave one in term t was
//! in t when it responded to the round of L, so t <= T, and R is never again a candidate of a term
//! up to T.
//!
//! While the members change, "all other voters" are those of every configuration that no
//! *committed* one supersedes. Learners gave no vote. And a voter D whose removal is committed is
//! not waited for: say that R forgot a promise of term t > T that it gave to D. D's configuration
//! is older than its removal, so D needs a majority of it. The removal was committed by a majority
//! of that same configuration, of nodes that remember, and the two majorities meet in a node that
//! does not vote for a log without the removal. If R itself was in the committing majority and lost
//! its disk since, then its vote after the loss is not counted, and a vote before the loss was
//! given before R held the removal (then t is at most the term of that entry) or was refused.
//!
//! A node that *joins* starts on an empty disk as well, but has nothing to forget: its id was never
//! given to another node, and it is no voter. A leader readmits it without condition 1 once the
//! leader's committed configuration records its disk
//! ([`Member::incarnation`](crate::types::Member::incarnation)), which is done at once for the
//! first disk of a learner. Another disk under the same id recovers.
//!
//! # One disk for each id
//!
//! The lost disk may come back: a machine is repaired, an old volume is mounted again. It holds
//! what it had promised, and nothing of what R has promised since. So L, once 1 and 2 hold, appends
//! a configuration with R's new disk. L tells R that it counts only after that is committed, by a
//! majority without R, and R has it on its disk. A later leader whose committed configuration
//! records R's disk need not wait for 1 again: nothing that R forgot is of a later term than that
//! of the record. R does not go by a record in its own log, which may be of a time before it has
//! counted on another disk. From then on,
//!
//! * a node whose latest configuration records another disk than the one from which a response of R
//!   comes takes that response for one of a node that recovers, and a leader does not readmit it,
//!   nor send it a record that is not committed yet;
//! * a node that finds another disk than its own recorded is not counted, never campaigns, and
//!   stops once that is committed.
//!
//! Why that is enough. A majority with R and one without R, like the one that committed the record,
//! meet in a node other than R. So a candidate whose log lacks the record is not elected once it is
//! committed, whatever the old disk votes. A leader that was elected before may count the old disk,
//! and rightly: everything that R had promised by then is on it, and what it acknowledges from then
//! on is acknowledged by a node other than R that takes part in the election of every later leader.
//! That holds for the disk that was lost, not for an older copy of it.
//!
//! Requests of the old disk need no such rule, since by the same argument it wins no election. And
//! requests of the new disk must reach a node whose log does not have the record yet.
//! Transports that do not tell disks apart (`Raft::on_connected` is not called) have no such
//! protection.
//!
//! The price is that *all* other voters must respond once: a voter that is down for good keeps a
//! node that lost its disk from being counted, until it is removed. And if a majority of the disks
//! is lost before the earlier ones were readmitted, no leader can be elected. The cluster then
//! stops and says so, since entries that only the lost disks held would be gone.
//!
//! The network must not deliver messages that were sent to or by a node's earlier disk after
//! messages of the later one ([`crate::transport`]). Recovery does not protect against a copy of a
//! disk in an older state, which looks like the disk itself.

use crate::types::Index;

/// A leader's knowledge of a peer that recovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Recovery {
    /// Drawn by the peer when it started.
    pub(super) number: u64,
    /// The peer must have the log through here on its disk.
    pub(super) through_index: Index,
    /// The peer has since sent a message without the number. Earlier messages may still arrive.
    pub(super) is_over: bool,
}
