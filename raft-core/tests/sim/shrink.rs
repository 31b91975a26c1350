//! Shrinks a failing run: removes faults from its schedule and chances from its mix as long as the
//! same invariant fails.

use crate::plan::{KNOBS, Plan, SHORT};
use crate::run::Failure;

/// The largest number of tries; each try is a run.
const TRIES_MAX: usize = 400;

/// The reduced plan: the numbers of its faults, and the parts that are switched off.
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

/// Returns the reduced plan and its failure. `run` returns the failure of a plan, if it fails.
pub fn shrink(
    plan: &Plan,
    failure: Failure,
    run: impl Fn(Plan) -> Option<Failure>,
) -> (Kept, Failure) {
    let mut shrinker = Shrinker { plan, run, kept: Kept::all(plan), failure, tries: 0 };
    shrinker.drop_faults();
    shrinker.turn_knobs();
    shrinker.drop_faults();
    (shrinker.kept, shrinker.failure)
}

struct Shrinker<'a, F> {
    plan: &'a Plan,
    run: F,
    kept: Kept,
    failure: Failure,
    tries: usize,
}

impl<F: Fn(Plan) -> Option<Failure>> Shrinker<'_, F> {
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

    /// Keeps the smaller plan if it fails in the same way.
    fn fails_alike(&mut self, fewer: Kept) -> bool {
        self.tries += 1;
        if self.tries > TRIES_MAX {
            return false;
        }
        match (self.run)(fewer.of(self.plan)) {
            Some(failure) if failure.label() == self.failure.label() => {
                (self.kept, self.failure) = (fewer, failure);
                true
            }
            Some(_) | None => false,
        }
    }
}

/// If a run fails because of two faults and one chance, only these are kept.
#[test]
fn what_does_not_matter_is_taken_away() {
    let plan = (0..).map(|seed| Plan::draw(seed, SHORT)).find(|plan| {
        plan.faults.len() > 20 && plan.mix.loss > 0 && plan.mix.copies > 0 && plan.mix.skew_ppm > 0
    });
    let plan = plan.expect("one of all seeds");
    let (one, other) = (plan.faults[7].dice, plan.faults[19].dice);
    let run = |plan: Plan| {
        let is_left = |dice| plan.faults.iter().any(|fault| fault.dice == dice);
        let message = match (is_left(one) && is_left(other), plan.mix.loss > 0) {
            (true, true) => "V1 both",
            (true, false) => "V2 something else",
            (false, _) => return None,
        };
        Some(Failure { message: message.into(), place: String::new() })
    };
    let failure = run(plan.clone()).expect("all faults are there");
    let (kept, failure) = shrink(&plan, failure, run);
    assert_eq!(kept.faults, [7, 19]);
    assert!(!kept.off.contains(&"loss") && kept.off.contains(&"copies"), "{:?}", kept.off);
    assert_eq!(failure.message, "V1 both");
}
