//! Recovery: what a node on an empty disk may do, and how it comes to be counted again.
//!
//! A voter whose disk was lost and that starts on an empty one has forgotten its votes and what it
//! acknowledged. If it voted and acknowledged as before, a second candidate could win a term, and
//! entries that were committed with its help could be missing in a majority. So a node on an empty
//! disk *recovers* ([`Memory::Lost`](crate::types::Memory::Lost)), unless the operator has declared
//! the disk new ([`super::founding`]). It says so in each of its messages, under a number drawn anew
//! at each start, and takes its leader's entries like any other node. But
//!
//! * it never campaigns;
//! * its votes and acknowledgements are not counted: elections are won, entries committed and reads
//!   confirmed by a majority of all voters that does not include it (`role::leader::recovery`);
//! * it learns of commits by appends, which prove that the logs agree, and not by heartbeats: until
//!   the leader has received the node under its number, a heartbeat may name what the lost disk had
//!   acknowledged.
//!
//! The node R is counted again once a leader L of term T has told it so
//! ([`Body::Recovered`](crate::types::Body::Recovered)), which L does when, after it first received R
//! under this number,
//!
//! 1. all other members have answered a round of L, that is: were in term T, and
//! 2. R has on its disk all that L's log held when L first received R,
//!
//! and R has that on its disk (`Common::next_memory`): until then it goes on saying that it recovers.
//!
//! Why that is enough. Say R forgot a promise of term t, given to a candidate or leader A. A was in
//! term t before R lost its disk, terms never fall, and by 1 A was in term T after that: t <= T. (The
//! answer of a heartbeat is not durable, and a crash may take A back to an older term. But the term of
//! a candidacy is durable, and a candidacy ends with the answer.) R is in term T and votes for no other
//! node in it, so no vote is given twice. If R forgot an acknowledgement that helped to commit an
//! entry, then the entry is of a term before T, and L holds it like every leader after it; or it is of
//! term T, and L had it before R could acknowledge it. By 2 R has it again. If a further member loses
//! its disk meanwhile, 1 starts anew, because that member's earlier answer speaks for what it has
//! forgotten.
//!
//! A vote for itself is another matter: R, cut off, may have campaigned beyond T, and may vote for other
//! nodes in those terms now. But only R could count that vote, in a candidacy that went with the disk.
//! Votes that other nodes gave to the earlier life of R may still arrive, and elect no leader: a voter
//! that gave one in term t was in t when it answered the round of L, so t <= T, and R is never again a
//! candidate of a term up to T.
//!
//! The price is that *all* other members must be received once: a member that is dead for good keeps a
//! node that lost its disk from being counted. And if a majority of the disks is lost before the
//! earlier ones were readmitted, no leader can be elected: the cluster stands still and says so, since
//! entries that only the lost disks held would be gone.
//!
//! Of the network this asks that messages that were sent to or by a node's earlier disk do not arrive
//! after messages of the later one ([`crate::transport`]). It does not help against an old copy of a
//! disk, which looks like one that is whole.

use crate::types::Index;

/// A leader's knowledge of a peer that recovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Recovery {
    /// Drawn by the peer when it started.
    pub(super) number: u64,
    /// The peer must have the log through here on its disk.
    pub(super) through_index: Index,
    /// The peer has sent a message without the number since. Earlier ones may still arrive.
    pub(super) is_over: bool,
}
