//! Processor time that other programs took. A time limit is about the program under test: while
//! other programs have the processors, its clock stands still.

use std::time::Duration;

use tokio::time::Instant;

/// Unit of the times in `/proc`, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running measurement of time.
pub(super) struct Stopwatch {
    began: Instant,
    /// Processor seconds that other programs had, since the machine was started.
    of_others: Option<f64>,
}

/// How long something took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Took {
    /// Without the time in which other programs had the processors.
    pub net: Duration,
    /// By the wall clock.
    pub wall: Duration,
}

impl std::fmt::Display for Took {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let others = self.wall.saturating_sub(self.net).as_millis();
        write!(f, "{} ms, of which others had {others}", self.wall.as_millis())
    }
}

impl Stopwatch {
    /// `nodes` are the processes that belong to the test, besides this one and the children that it
    /// has waited for.
    pub(super) fn start(nodes: &[u32]) -> Self {
        Self { began: Instant::now(), of_others: of_others(nodes) }
    }

    pub(super) fn read(&self, nodes: &[u32]) -> Took {
        let wall = self.began.elapsed();
        let of_others = of_others(nodes).zip(self.of_others).map_or(0.0, |(now, then)| now - then);
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let taken = Duration::from_secs_f64((of_others / processors).max(0.0));
        Took { net: wall.saturating_sub(taken), wall }
    }
}

/// Processor seconds that went to programs other than the test and its nodes; `None` where that
/// cannot be read.
fn of_others(nodes: &[u32]) -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let fields = stat.lines().next()?.split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.map_while(|field| field.parse().ok()).collect();
    // user, nice, system, and past idle and waiting: irq, softirq, steal.
    let [user, nice, system, _, _, irq, softirq, steal, ..] = ticks[..] else { return None };
    // Including the children that were waited for.
    let own = process_ticks("self", 4)?;
    let nodes: f64 = nodes.iter().filter_map(|pid| process_ticks(&pid.to_string(), 2)).sum();
    Some((user + nice + system + irq + softirq + steal - own - nodes) / TICKS_PER_SECOND)
}

/// Ticks: the first `count` of the process's own user time and kernel time, and the same of its
/// children.
fn process_ticks(process: &str, count: usize) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The process name, in brackets, may have blanks. The times are the 12th field after it and
    // those that follow.
    let (_, fields) = stat.rsplit_once(')')?;
    let times = fields.split_whitespace().skip(11).take(count);
    Some(times.filter_map(|field| field.parse::<f64>().ok()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_do_ourselves_is_not_taken_off() {
        let watch = Stopwatch::start(&[]);
        let mut work = 0_u64;
        while watch.began.elapsed() < Duration::from_secs(1) {
            work = std::hint::black_box(work + 1);
        }
        let took = watch.read(&[]);
        assert!(took.wall >= Duration::from_secs(1) && took.net <= took.wall);
        if cfg!(target_os = "linux") {
            let own = process_ticks("self", 4).expect("it is there") / TICKS_PER_SECOND;
            assert!(own > 0.0, "a second of work has left no trace");
        }
    }
}
