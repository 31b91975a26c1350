//! Proposals and their outcomes.
//!
//! The outcome *done* names the number of the command, so it is checked exactly. *Surely not done*
//! and *unknown* are checked by how often the command was applied in all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use raft_core::error::ProposeError;
use tokio::sync::watch;

pub(crate) type Answer = Result<u64, ProposeError>;

/// One proposal, whose outcome may be awaited.
#[derive(Clone)]
pub(crate) struct Started {
    answer: watch::Receiver<Option<Answer>>,
}

impl Started {
    /// The outcome, which every proposal gets.
    pub(crate) async fn answer(&self) -> Answer {
        let mut answer = self.answer.clone();
        let given = answer.wait_for(Option::is_some).await.expect("each proposal is answered");
        given.clone().expect("just waited for it")
    }

    /// The outcome, if it is known by now.
    pub(crate) fn answer_so_far(&self) -> Option<Answer> {
        self.answer.borrow().clone()
    }
}

/// All proposals of a run. Clones share one ledger.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Vec<(Bytes, Started)>>>);

/// Proposals of a run, counted by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcomes {
    pub(crate) done_count: usize,
    pub(crate) rejected_count: usize,
    pub(crate) unknown_count: usize,
}

impl Ledger {
    /// Enters a proposal; the returned function takes its outcome.
    pub(crate) fn enter(&self, command: Bytes) -> (Started, impl FnOnce(Answer) + Send + 'static) {
        let (sender, answer) = watch::channel(None);
        let started = Started { answer };
        self.entries().push((command, started.clone()));
        let answer = move |answer| {
            sender.send_replace(Some(answer));
        };
        (started, answer)
    }

    fn entries(&self) -> MutexGuard<'_, Vec<(Bytes, Started)>> {
        self.0.lock().unwrap()
    }

    /// Checks all outcomes against the commands that were applied, of which number 1 is the first.
    pub(crate) async fn check(&self, applied: &[Bytes]) -> Outcomes {
        let mut outcomes = Outcomes::default();
        let mut by_command: BTreeMap<Bytes, Counts> = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        let entries = self.entries().clone();
        for (command, started) in entries {
            let counts = by_command.entry(command.clone()).or_default();
            match started.answer().await {
                Ok(number) => {
                    let place = usize::try_from(number).unwrap() - 1;
                    assert_eq!(applied.get(place), Some(&command), "number {number} was done");
                    let before = numbers.insert(number, command);
                    assert_eq!(before, None, "number {number} was answered twice");
                    counts.done += 1;
                    outcomes.done_count += 1;
                }
                Err(ProposeError::Rejected(_)) => outcomes.rejected_count += 1,
                Err(ProposeError::Unknown(_)) => {
                    counts.unknown += 1;
                    outcomes.unknown_count += 1;
                }
            }
        }
        for command in applied {
            let counts = by_command.get_mut(command).expect("what was applied was proposed");
            counts.applied += 1;
        }
        for (command, Counts { done, unknown, applied }) in by_command {
            assert!(
                (done..=done + unknown).contains(&applied),
                "{command:?}: {done} times done, {unknown} times unknown, {applied} times applied"
            );
        }
        outcomes
    }
}

#[derive(Default)]
struct Counts {
    done: usize,
    unknown: usize,
    applied: usize,
}
