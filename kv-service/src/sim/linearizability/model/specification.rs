//! The specification that a history is checked against.

use std::fmt;
use std::hash::Hash;

/// The specification of a state machine: which outputs its operations may have, one after another.
///
/// ```
/// use kv_service::sim::linearizability::model::Model;
///
/// /// Locks by number. Taking a lock that is held fails; locks do not affect each other.
/// struct Locks;
///
/// impl Model for Locks {
///     type State = bool;
///     /// The number of a lock, and true to take it.
///     type Operation = (u64, bool);
///     type Output = bool;
///
///     fn initial(&self) -> bool {
///         false
///     }
///
///     fn step(&self, held: &bool, (_, take): &(u64, bool), done: Option<&bool>) -> Option<bool> {
///         let changes = held != take;
///         done.is_none_or(|done| *done == changes).then_some(*take)
///     }
///
///     fn partition(&self, (lock, _): &(u64, bool)) -> u64 {
///         *lock
///     }
/// }
///
/// assert_eq!(Locks.step(&true, &(1, true), Some(&true)), None, "nothing takes a held lock");
/// ```
pub trait Model {
    /// The state of the one copy.
    type State: Clone + Eq + Hash + fmt::Debug;
    /// A request of a client.
    type Operation: Clone + PartialEq + fmt::Debug;
    /// A response.
    type Output: Clone + PartialEq + fmt::Debug;

    /// The state before the first operation.
    fn initial(&self) -> Self::State;

    /// Executes the operation on the state. Returns the state afterwards, or `None` if the
    /// operation would have had another output. With `output` `None` the output is not known, and
    /// any is right. It is a function of its arguments: it reads no clock and draws nothing.
    fn step(
        &self,
        state: &Self::State,
        operation: &Self::Operation,
        output: Option<&Self::Output>,
    ) -> Option<Self::State>;

    /// The part of the state that the operation uses, such as the number of its key. Operations of
    /// different parts must not affect each other; each part starts in the initial state, and is
    /// checked by itself, which is much faster. Two keys may have one number only if the state
    /// holds both; a hash that is seeded anew at each start is no number.
    fn partition(&self, operation: &Self::Operation) -> u64 {
        let _ = operation;
        0
    }
}
