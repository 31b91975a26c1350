//! The roles of a node, by name (3.3).

/// A role by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoleKind {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for pre-votes (9.6).
    PreCandidate,
    /// Asks for votes in its term (3.4).
    Candidate,
    /// Leads its term.
    Leader,
}

impl RoleKind {
    /// Returns the name, for texts and labels.
    pub fn name(self) -> &'static str {
        match self {
            RoleKind::Follower => "follower",
            RoleKind::PreCandidate => "pre-candidate",
            RoleKind::Candidate => "candidate",
            RoleKind::Leader => "leader",
        }
    }
}
