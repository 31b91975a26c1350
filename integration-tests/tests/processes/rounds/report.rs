//! The report: a line for each round, and a table of all rounds.

use std::collections::BTreeMap;
use std::time::Duration;

use integration_tests::processes::machine::Took;
use integration_tests::processes::workload::Summary;
use tokio::time::Instant;

use super::Fault;

pub(super) struct Round {
    pub(super) number: u64,
    pub(super) fault: Fault,
    /// Duration of the fault.
    pub(super) lasted: Duration,
    /// From the end of the fault to the first write that succeeded.
    pub(super) recovery: Took,
    /// Duration of the whole round.
    pub(super) took: Duration,
    pub(super) seen: Summary,
}

pub(super) struct Report {
    began: Instant,
    kinds: BTreeMap<Fault, Kind>,
    total: Summary,
}

#[derive(Default)]
struct Kind {
    count: u64,
    slowest_recovery: Took,
    slowest_round: Duration,
}

impl Default for Report {
    fn default() -> Self {
        Self { began: Instant::now(), kinds: BTreeMap::new(), total: Summary::default() }
    }
}

impl Report {
    pub(super) fn add(&mut self, round: Round) {
        let Round { number, fault, lasted, recovery, took, seen } = round;
        let kind = self.kinds.entry(fault).or_default();
        kind.count += 1;
        kind.slowest_recovery = kind.slowest_recovery.max(recovery);
        kind.slowest_round = kind.slowest_round.max(took);
        self.total.add(seen);
        eprintln!(
            "round {number}: {fault:?} for {} ms, recovered in {recovery}, {} ms in all, {seen:?}",
            lasted.as_millis(),
            took.as_millis()
        );
    }

    /// Prints the table. By then every round was checked, and at the end all of them together.
    pub(super) fn tell(&self, seed: u64) {
        eprintln!("rounds  slowest recovery  slowest round  fault");
        for (fault, kind) in &self.kinds {
            eprintln!(
                "{:6}  {:13} ms  {:10} ms  {fault:?}",
                kind.count,
                kind.slowest_recovery.net.as_millis(),
                kind.slowest_round.as_millis()
            );
        }
        let count: u64 = self.kinds.values().map(|kind| kind.count).sum();
        let slowest = self.kinds.values().map(|kind| kind.slowest_recovery).max();
        let Summary { acknowledged, unknown, not_executed, reads } = self.total;
        eprintln!(
            "{count} rounds of {} kinds, seed {seed}, in {} s: {acknowledged} writes acknowledged, 0 lost, \
             0 doubled, all histories linearizable; {unknown} unknown, {not_executed} not executed, \
             {reads} reads; slowest recovery {} ms ({})",
            self.kinds.len(),
            self.began.elapsed().as_secs(),
            slowest.unwrap_or_default().net.as_millis(),
            slowest.unwrap_or_default()
        );
    }
}
