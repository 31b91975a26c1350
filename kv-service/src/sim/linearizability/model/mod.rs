//! Checks that a state machine of your own behaved as one copy that executes one operation at a
//! time, each between its call and its return: linearizability (Herlihy and Wing), for anything
//! that can be written down as a [`Model`].
//!
//! The model is the specification: a state, and what an operation does to it. Clients note their
//! calls in a [`Recorder`] while a [`Cluster`](crate::sim::Cluster) runs under faults, and
//! [`check`] searches for an order of the calls that the model allows (Wing and Gong, with Lowe's
//! memory of visited states). A history without an order is made as short as it can be and drawn
//! ([`Violation`]).
//!
//! A search costs little if few calls overlap, and grows fast with the number of calls of unknown
//! outcome, which may take effect at any later time. [`Verdict::Unknown`] is not a pass. Whatever
//! keeps histories decidable helps: several short runs instead of a long one, outputs that tell
//! states apart, and [`Model::partition`].
//!
//! The store itself has a checker that is faster and knows its operations: the
//! [module above](super).
//!
//! ```
//! use kv_service::sim::linearizability::model::*;
//!
//! /// A register that holds a number.
//! struct Register;
//!
//! #[derive(Clone, Debug, PartialEq)]
//! enum Operation {
//!     Write(u32),
//!     Read,
//! }
//!
//! impl Model for Register {
//!     type State = u32;
//!     type Operation = Operation;
//!     type Output = u32;
//!
//!     fn initial(&self) -> u32 {
//!         0
//!     }
//!
//!     fn step(&self, state: &u32, operation: &Operation, output: Option<&u32>) -> Option<u32> {
//!         let after = match operation {
//!             Operation::Write(number) => *number,
//!             Operation::Read => *state,
//!         };
//!         output.is_none_or(|output| *output == after).then_some(after)
//!     }
//! }
//!
//! let mut history = History::new();
//! history.push(Call::new(1, Operation::Write(7), (0, 10), Outcome::Returned(7)));
//! history.push(Call::new(2, Operation::Read, (5, 15), Outcome::Returned(0)));
//! assert_eq!(check(&Register, &history, STEPS), Verdict::Linearizable, "the read came first");
//!
//! history.push(Call::new(2, Operation::Read, (20, 25), Outcome::Returned(0)));
//! let Verdict::Violation(violation) = check(&Register, &history, STEPS) else {
//!     panic!("the write had returned")
//! };
//! assert_eq!(violation.calls.len(), 2, "{violation}");
//! ```

mod history;
mod report;
mod search;
mod shrink;
mod specification;

use std::collections::BTreeMap;
use std::fmt;

pub use self::history::{Call, History, OpenCall, Outcome, Recorder};
pub use self::report::Report;
use self::search::{Found, Item, search};
pub use self::specification::Model;

/// Steps that suffice for most histories of some hundred calls: seconds, and hundreds of megabytes
/// if all of them are used and a state is small.
pub const STEPS: u64 = 1_000_000;

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<O, R> {
    /// There is an order that explains all responses.
    Linearizable,
    /// There is none.
    Violation(Violation<O, R>),
    /// Not decided within the steps. Not a pass.
    Unknown,
}

impl<O: fmt::Debug, R: fmt::Debug> Verdict<O, R> {
    /// Panics with a drawing of the violation. Within [`run`](crate::sim::run), the seed and the
    /// command that replays it are printed as well.
    ///
    /// # Panics
    /// If the history is not linearizable, or if that could not be decided.
    #[track_caller]
    pub fn assert_linearizable(&self) {
        match self {
            Self::Linearizable => {}
            Self::Violation(violation) => panic!("{violation}"),
            Self::Unknown => panic!("not known to be linearizable: the steps did not suffice"),
        }
    }
}

/// A proof that no order explains the responses, as short as it could be made.
///
/// No call of it can be left out, nor any two: the rest would have an order, or would prove
/// something else, such as a value that no call wrote. A violation that takes many steps to find
/// stays longer. Its [`Display`](fmt::Display) draws it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation<O, R> {
    /// The calls that contradict each other, in the order in which they began.
    pub calls: Vec<Call<O, R>>,
    /// Number of calls in the whole history.
    pub call_count: usize,
    /// The longest order from the start that the model allows: places in `calls`.
    pub order: Vec<usize>,
    /// The state after that order.
    pub state: String,
    /// The calls that can be next by time, none of which the model allows there.
    pub stuck: Vec<usize>,
}

impl<O: fmt::Debug, R: fmt::Debug> Violation<O, R> {
    /// The violation with the seed of the run and the command that replays it.
    ///
    /// ```
    /// # use kv_service::sim::linearizability::model::*;
    /// # struct Constant;
    /// # impl Model for Constant {
    /// #     type State = ();
    /// #     type Operation = &'static str;
    /// #     type Output = u32;
    /// #     fn initial(&self) {}
    /// #     fn step(&self, (): &(), _: &&'static str, output: Option<&u32>) -> Option<()> {
    /// #         output.is_none_or(|output| *output == 7).then_some(())
    /// #     }
    /// # }
    /// // `Constant` is a model whose only output is 7.
    /// let history = [Call::new(3, "read", (0, 1), Outcome::Returned(8))].into_iter().collect();
    /// let Verdict::Violation(violation) = check(&Constant, &history, STEPS) else { panic!() };
    /// let report = violation.report(17, "cargo run -- --seed 17").to_string();
    /// assert!(report.starts_with("seed 17: not linearizable, shown by 1 of 1 calls"));
    /// assert!(report.ends_with("to replay it:\n    cargo run -- --seed 17"));
    /// ```
    pub fn report<'a>(&'a self, seed: u64, replay: &'a str) -> Report<'a, O, R> {
        Report { violation: self, seed, replay }
    }
}

/// Decides the history. Each search of a partition takes at most so many steps of the model; the
/// same history has the same verdict on every machine.
pub fn check<M: Model>(
    model: &M,
    history: &History<M::Operation, M::Output>,
    steps: u64,
) -> Verdict<M::Operation, M::Output> {
    let mut partitions = BTreeMap::<u64, Vec<_>>::new();
    for call in history.calls() {
        partitions.entry(model.partition(&call.operation)).or_default().push(call.clone());
    }
    let mut verdict = Verdict::Linearizable;
    for calls in partitions.values_mut() {
        calls.sort_by_key(|call| call.called_at);
        match search_all(model, calls, steps) {
            Found::Order => {}
            Found::OutOfSteps => verdict = Verdict::Unknown,
            Found::NoOrder(_) => {
                let shortest = shrink::shortest(model, calls, steps);
                return Verdict::Violation(explained(
                    model,
                    shortest,
                    history.calls().len(),
                    steps,
                ));
            }
        }
    }
    verdict
}

fn search_all<M: Model>(
    model: &M,
    calls: &[Call<M::Operation, M::Output>],
    steps: u64,
) -> Found<M::State> {
    let items = calls.iter().enumerate().filter_map(|(at, call)| Item::known(at, call));
    search(model, items.collect(), steps)
}

fn explained<M: Model>(
    model: &M,
    calls: Vec<Call<M::Operation, M::Output>>,
    call_count: usize,
    steps: u64,
) -> Violation<M::Operation, M::Output> {
    let Found::NoOrder(furthest) = search_all(model, &calls, steps) else {
        panic!("the model's `step` is no function of state, operation and output")
    };
    let state = format!("{:?}", furthest.state);
    let (order, stuck) = (furthest.order, furthest.stuck);
    Violation { calls, call_count, order, state, stuck }
}
