//! A node without a memory: what it may do, and how its word comes to count again.
//!
//! A voter whose disk was lost and that starts on an empty one has forgotten its votes and what it
//! acknowledged. If it voted and acknowledged as before, a second candidate could win a term, and
//! entries that were committed with its help could be missing in a majority. It cannot know that it is
//! such a node: an empty disk looks the same in a cluster that is just being founded. So whoever starts
//! on an empty disk *recovers* ([`Memory::Lost`](crate::types::Memory::Lost)): it says so in each
//! of its messages, under a number drawn anew at each start, and takes part like any other. Only its
//! word does not count:
//!
//! * Elections are won, entries committed and reads confirmed by a majority of the voters, *those that
//!   recover not counted among it*, or by **all** voters. (`quorum`, `role::leader::recovery`)
//! * A vote that was given is not repeated to a candidate that recovers: it may have been for that node's
//!   earlier life, which may have led the term with entries that the later one does not know.
//!
//! A quorum of the first kind meets each other quorum in a node that remembers. One of the second kind
//! holds everything that any disk still holds: nobody grants a candidate that lacks what it has. The
//! second kind is how a cluster is founded, which so takes all its members; two halves of one cluster
//! cannot be founded apart.
//!
//! The word of a recovering node R counts again once a leader L of term T has told it so
//! ([`Body::Recovered`](crate::types::Body::Recovered)), which L does when, after it first heard R
//! under this number,
//!
//! 1. all other members have answered a round of L, that is: were in term T, and
//! 2. R has on its disk all that L's log held when L first heard R,
//!
//! and R has that on its disk (`Common::recovered_by`): until then it goes on saying that it recovers.
//!
//! Why that is enough. Say R forgot a promise of term t, given to a candidate or leader A. A was in
//! term t before R lost its disk, terms never fall, and by 1 A was in term T after that: t <= T. R is
//! in term T and votes for nobody else in it, so no vote is given twice. (A vote for itself is another
//! matter: unheard, R may have campaigned beyond T, and may now vote for others in these terms. But what
//! it gave itself only R could count, in a candidacy that went with the disk.) If R forgot an
//! acknowledgement that helped to commit an entry, then the entry is of a term before T, and L holds
//! it like every leader after it; or it is of term T, and L had it before R could acknowledge it. By 2
//! R has it again. If a further member loses its disk meanwhile, 1 starts anew, because that member's
//! earlier answer speaks for what it has forgotten.
//!
//! Of the network this asks that a node's earlier and later disk are not mixed up
//! ([`crate::transport`]). It does not help against a majority that loses its disks at once, nor
//! against an old copy of a disk, which looks like one that is whole.

use crate::types::Index;

/// What a leader knows of a peer that recovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Recovery {
    /// Under which the peer started.
    pub(super) number: u64,
    /// What it must have on its disk.
    pub(super) through_index: Index,
    /// It has said something without the number since. What it said before may still arrive.
    pub(super) is_over: bool,
}
