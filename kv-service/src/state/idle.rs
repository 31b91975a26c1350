//! Finds the session that has been idle for the longest: of one principal, of all, and by time to
//! live.
//!
//! Nothing here is part of the state: it follows from the sessions, and is rebuilt when they are
//! restored. Each result is a function of the sessions alone, so it is the same on every node.
//!
//! Each session has one entry in the queue of its principal and time to live: its id, and its last
//! activity when it was queued or when the entry was last examined. Activity only grows, so an
//! entry is a lower bound, and the first entry whose bound is exact is the session that was active
//! the longest ago. Above those queues, each time to live has a queue of the same kind with the
//! first entry of each principal. Sessions that end leave stale entries, which are dropped when
//! they are met. So activity costs nothing here, and a session costs one entry of 16 bytes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use raft_core::types::Index;

use super::session::{Session, SessionMap};

/// A queue is rebuilt when it holds so many more stale entries than live ones.
const STALE_MAX: usize = 64;

/// Last activity and id of a session; the order in which sessions are evicted.
type Place = (u64, Index);

/// The first entries of principals' queues, and the principals.
type First = BinaryHeap<Reverse<(Place, Arc<[u8]>)>>;

#[derive(Default)]
pub(super) struct Idle {
    principals: BTreeMap<Arc<[u8]>, Principal>,
    /// The first entries of the principals' queues, by time to live. A time to live is a server's
    /// setting, so there are few different ones.
    first: BTreeMap<u64, First>,
}

#[derive(Default)]
struct Principal {
    session_count: usize,
    /// By time to live; no queue is without sessions.
    queues: BTreeMap<u64, Queue>,
}

#[derive(Default)]
struct Queue {
    session_count: usize,
    entries: BinaryHeap<Reverse<Place>>,
}

impl Queue {
    /// The session whose last activity is the longest ago; of several, the oldest one.
    fn first(&mut self, map: &SessionMap) -> Option<Place> {
        loop {
            let Reverse((bound_ms, id)) = *self.entries.peek()?;
            match map.get(&id) {
                Some(session) if session.last_active_ms == bound_ms => return Some((bound_ms, id)),
                Some(session) => {
                    assert!(session.last_active_ms > bound_ms, "activity only grows");
                    self.entries.pop();
                    self.entries.push(Reverse((session.last_active_ms, id)));
                }
                None => {
                    self.entries.pop();
                }
            }
        }
    }
}

impl Idle {
    /// Adds a session. It gets the copy of its principal's name that all sessions of the principal
    /// share.
    pub(super) fn insert(&mut self, id: Index, session: &mut Session) {
        if let Some((kept, _)) = self.principals.get_key_value(&session.principal) {
            session.principal = Arc::clone(kept);
        }
        let principal = self.principals.entry(Arc::clone(&session.principal)).or_default();
        principal.session_count += 1;
        let queue = principal.queues.entry(session.ttl_ms).or_default();
        queue.session_count += 1;
        let place = (session.last_active_ms, id);
        let is_first = queue.entries.peek().is_none_or(|Reverse(first)| place < *first);
        queue.entries.push(Reverse(place));
        if is_first {
            let first = self.first.entry(session.ttl_ms).or_default();
            first.push(Reverse((place, Arc::clone(&session.principal))));
        }
    }

    /// Removes a session that has left `map`.
    pub(super) fn remove(&mut self, session: &Session, map: &SessionMap) {
        let principal =
            self.principals.get_mut(&session.principal).expect("each session has its principal");
        assert!(!map.is_empty() || principal.session_count == 1, "the last one of all");
        principal.session_count -= 1;
        let queue = principal.queues.get_mut(&session.ttl_ms).expect("each session has its queue");
        assert!(queue.session_count > 0 && queue.session_count <= principal.session_count + 1);
        queue.session_count -= 1;
        if queue.session_count == 0 {
            principal.queues.remove(&session.ttl_ms);
        } else if queue.entries.len() > 2 * queue.session_count + STALE_MAX {
            queue.entries.retain(|Reverse((_, id))| map.contains_key(id));
        }
        if principal.session_count == 0 {
            self.principals.remove(&session.principal);
        }
        self.forget_stale_first(session.ttl_ms);
    }

    /// Rebuilds a queue of the principals' first entries that holds too many stale ones.
    fn forget_stale_first(&mut self, ttl_ms: u64) {
        let Some(first) = self.first.get_mut(&ttl_ms) else { return };
        if first.len() <= 2 * self.principals.len() + STALE_MAX {
            return;
        }
        let of_principal = |(name, principal): (&Arc<[u8]>, &Principal)| {
            let Reverse(place) = *principal.queues.get(&ttl_ms)?.entries.peek()?;
            Some(Reverse((place, Arc::clone(name))))
        };
        *first = self.principals.iter().filter_map(of_principal).collect();
    }

    /// Number of all sessions.
    pub(super) fn total(&self) -> usize {
        self.principals.values().map(|principal| principal.session_count).sum()
    }

    pub(super) fn session_count(&self, name: &[u8]) -> u64 {
        self.principals.get(name).map_or(0, |principal| principal.session_count as u64)
    }

    /// The principal's session that has been idle for the longest.
    pub(super) fn first_of_principal(&mut self, name: &[u8], map: &SessionMap) -> Option<Index> {
        let queues = self.principals.get_mut(name)?.queues.values_mut();
        queues.filter_map(|queue| queue.first(map)).min().map(|(_, id)| id)
    }

    /// The session that has been idle for the longest, of all sessions.
    pub(super) fn first(&mut self, map: &SessionMap) -> Option<Index> {
        let ttls: Vec<u64> = self.first.keys().copied().collect();
        ttls.into_iter().filter_map(|ttl_ms| self.first_of_ttl(ttl_ms, map)).min().map(|(_, id)| id)
    }

    /// A session that has been idle for longer than its time to live.
    pub(super) fn expired(&mut self, clock_ms: u64, map: &SessionMap) -> Option<Index> {
        let is_over = |ttl_ms: u64, (last_active_ms, _): Place| {
            last_active_ms.saturating_add(ttl_ms) < clock_ms
        };
        // Most often no session has expired, and the bounds show that without a search.
        let may_be_over = |(ttl_ms, first): (&u64, &First)| {
            let Reverse((bound, _)) = first.peek()?;
            is_over(*ttl_ms, *bound).then_some(*ttl_ms)
        };
        let ttls: Vec<u64> = self.first.iter().filter_map(may_be_over).collect();
        ttls.into_iter().find_map(|ttl_ms| {
            let place = self.first_of_ttl(ttl_ms, map)?;
            is_over(ttl_ms, place).then_some(place.1)
        })
    }

    fn first_of_ttl(&mut self, ttl_ms: u64, map: &SessionMap) -> Option<Place> {
        let first = self.first.get_mut(&ttl_ms)?;
        let found = loop {
            let Some(Reverse((bound, name))) = first.peek() else { break None };
            let principal = self.principals.get_mut(name);
            let queue = principal.and_then(|principal| principal.queues.get_mut(&ttl_ms));
            match queue.and_then(|queue| queue.first(map)) {
                Some(place) if place == *bound => break Some(place),
                Some(place) => {
                    let Some(Reverse((_, name))) = first.pop() else { break None };
                    first.push(Reverse((place, name)));
                }
                None => {
                    first.pop();
                }
            }
        };
        if found.is_none() {
            self.first.remove(&ttl_ms);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::answers::Answers;
    use super::*;

    fn session(principal: u8, ttl_ms: u64, last_active_ms: u64) -> Session {
        Session {
            nonce_bytes: [1; 16],
            principal: Arc::from([principal]),
            ttl_ms,
            window: 1,
            last_active_ms,
            lowest_unanswered: 0,
            answers: Answers::new(),
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open { principal: u8, ttl_ms: u64 },
        Touch(prop::sample::Index),
        End(prop::sample::Index),
        EndFirst,
        EndFirstOf(u8),
        Expire,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3u8, 1..4u64).prop_map(|(principal, ttl)| Step::Open { principal, ttl_ms: 10 * ttl }),
            4 => any::<prop::sample::Index>().prop_map(Step::Touch),
            1 => any::<prop::sample::Index>().prop_map(Step::End),
            1 => Just(Step::EndFirst),
            1 => (0..3u8).prop_map(Step::EndFirstOf),
            2 => Just(Step::Expire),
        ]
    }

    proptest! {
        /// The queues give the same results as a search through all sessions.
        #[test]
        fn the_queues_agree_with_a_look_at_all_sessions(
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let mut idle = Idle::default();
            let mut map = SessionMap::default();
            let end = |idle: &mut Idle, map: &mut SessionMap, id: Index| {
                let session = map.remove(&id).expect("it is there");
                idle.remove(&session, map);
            };
            for (clock_ms, step) in (1u64..).zip(steps) {
                let ids: Vec<Index> = map.keys().copied().collect();
                let first = |of: &dyn Fn(&Session) -> bool| {
                    let places = map.iter().filter(|(_, session)| of(session));
                    places.map(|(id, session)| (session.last_active_ms, *id)).min().map(|(_, id)| id)
                };
                match step {
                    Step::Open { principal, ttl_ms } => {
                        let mut opened = session(principal, ttl_ms, clock_ms);
                        idle.insert(clock_ms, &mut opened);
                        map.insert(clock_ms, Arc::new(opened));
                    }
                    Step::Touch(at) if !ids.is_empty() => {
                        let touched = map.get_mut(at.get(&ids)).expect("it is there");
                        Arc::make_mut(touched).last_active_ms = clock_ms;
                    }
                    Step::End(at) if !ids.is_empty() => end(&mut idle, &mut map, *at.get(&ids)),
                    Step::Touch(_) | Step::End(_) => {}
                    Step::EndFirst => {
                        let expected = first(&|_| true);
                        prop_assert_eq!(idle.first(&map), expected);
                        expected.into_iter().for_each(|id| end(&mut idle, &mut map, id));
                    }
                    Step::EndFirstOf(principal) => {
                        let expected = first(&|session| *session.principal == [principal]);
                        prop_assert_eq!(idle.first_of_principal(&[principal], &map), expected);
                        expected.into_iter().for_each(|id| end(&mut idle, &mut map, id));
                    }
                    Step::Expire => {
                        let is_over = |session: &Session| {
                            session.last_active_ms + session.ttl_ms < clock_ms
                        };
                        let count = map.values().filter(|session| is_over(session)).count();
                        for _ in 0..count {
                            let id = idle.expired(clock_ms, &map);
                            let id = id.expect("one is over");
                            prop_assert!(is_over(&map[&id]));
                            end(&mut idle, &mut map, id);
                        }
                        prop_assert_eq!(idle.expired(clock_ms, &map), None);
                    }
                }
                for principal in 0..3 {
                    let count = map.values().filter(|of| *of.principal == [principal]).count();
                    prop_assert_eq!(idle.session_count(&[principal]), count as u64);
                }
            }
        }
    }
}
