//! Makes a failing run smaller: takes faults out of its schedule and chances out of its mix as long as
//! the same thing still goes wrong.

use crate::plan::{KNOBS, Plan};
use crate::run::{Failure, run_quietly};

/// Each try is a run.
const TRIES_MAX: usize = 400;

/// What is left of a plan.
#[derive(Clone, Debug)]
pub struct Kept {
    pub faults: Vec<usize>,
    pub off: Vec<&'static str>,
}

impl Kept {
    pub fn all(plan: &Plan) -> Self {
        Self { faults: (0..plan.faults.len()).collect(), off: Vec::new() }
    }

    pub fn of(&self, plan: &Plan) -> Plan {
        let mut plan = plan.clone();
        plan.faults = self.faults.iter().map(|number| plan.faults[*number]).collect();
        self.off.iter().for_each(|knob| plan.mix.switch_off(knob));
        plan
    }
}

/// Returns what is left, and how that fails.
pub fn shrink(plan: &Plan, failure: Failure) -> (Kept, Failure) {
    let mut shrinker = Shrinker { plan, kept: Kept::all(plan), failure, tries: 0 };
    shrinker.drop_faults();
    shrinker.turn_knobs();
    shrinker.drop_faults();
    (shrinker.kept, shrinker.failure)
}

struct Shrinker<'a> {
    plan: &'a Plan,
    kept: Kept,
    failure: Failure,
    tries: usize,
}

impl Shrinker<'_> {
    fn drop_faults(&mut self) {
        let mut piece = self.kept.faults.len();
        while piece > 0 {
            let mut from = 0;
            while from < self.kept.faults.len() {
                let mut fewer = self.kept.clone();
                let through = (from + piece).min(fewer.faults.len());
                fewer.faults.drain(from..through);
                if !self.fails_alike(fewer) {
                    from += piece;
                }
            }
            piece /= 2;
        }
    }

    fn turn_knobs(&mut self) {
        for knob in KNOBS {
            let mut fewer = self.kept.clone();
            if !fewer.off.contains(&knob) {
                fewer.off.push(knob);
                self.fails_alike(fewer);
            }
        }
    }

    /// Keeps what fails in the same way.
    fn fails_alike(&mut self, fewer: Kept) -> bool {
        self.tries += 1;
        if self.tries > TRIES_MAX {
            return false;
        }
        match run_quietly(fewer.of(self.plan)).failure {
            Some(failure) if failure.label() == self.failure.label() => {
                (self.kept, self.failure) = (fewer, failure);
                true
            }
            Some(_) | None => false,
        }
    }
}
