//! Measurements of one side in one round, and their summary over the rounds.
//!
//! A ratio is taken within a round, where both sides ran within seconds of each other, and only
//! then the median over rounds: other work of the machine during a round affects both sides of its
//! ratio alike.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Measurements of one side in one round. `None` where one does not apply.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) ops: u64,
    pub(crate) errors: u64,
    pub(crate) ops_per_s: f64,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
    pub(crate) max_us: Option<f64>,
    /// CPU time of all processes that serve; for a benchmark within one process, of that process.
    pub(crate) cpu_us_per_op: Option<f64>,
    /// The peak of resident memory in this round, summed over all processes that serve.
    pub(crate) memory_mib: Option<f64>,
    /// CPU time of the client process, where that is another one.
    pub(crate) client_cpu_us_per_op: Option<f64>,
    /// Bytes written to the device with the servers' data, for each byte that was put.
    pub(crate) written_per_put_byte: Option<f64>,
}

impl Figures {
    pub(crate) fn of(latencies_ns: &Histogram<u64>, errors: u64, time: Duration) -> Self {
        let ops = latencies_ns.len();
        let at = |quantile| Some(latencies_ns.value_at_quantile(quantile) as f64 / 1e3);
        Self {
            ops,
            errors,
            ops_per_s: ops as f64 / time.as_secs_f64(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: Some(latencies_ns.max() as f64 / 1e3),
            ..Self::default()
        }
    }

    /// CPU time shared out over the operations.
    pub(crate) fn per_op(&self, cpu: Duration) -> Option<f64> {
        (self.ops > 0).then(|| cpu.as_secs_f64() * 1e6 / self.ops as f64)
    }
}

/// A histogram of nanoseconds with three digits, up to ten minutes.
pub(crate) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("the bounds are in order")
}

/// The median of the rounds, and their range.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Returns `None` for no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[half - 1], values[half]),
            _ => values[half],
        };
        Some(Self { median, min, max })
    }
}

/// Summarizes the rounds of one side.
pub(crate) fn spread(rounds: &[Figures], of: impl Fn(&Figures) -> Option<f64>) -> Option<Spread> {
    Spread::of(rounds.iter().filter_map(of))
}

/// Summarizes the ratios of the first side to the second, each taken within one round.
pub(crate) fn ratio(
    first: &[Figures],
    second: &[Figures],
    of: impl Fn(&Figures) -> Option<f64>,
) -> Option<Spread> {
    let quotients = first.iter().zip(second).filter_map(|(first, second)| {
        let divisor = of(second).filter(|divisor| *divisor > 0.0)?;
        Some(of(first)? / divisor)
    });
    Spread::of(quotients)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(rates: &[f64]) -> Vec<Figures> {
        let figures = |rate: &f64| Figures { ops_per_s: *rate, ..Figures::default() };
        rates.iter().map(figures).collect()
    }

    #[test]
    fn a_median_of_an_even_number_lies_between() {
        let spread = Spread::of([4.0, 1.0, 2.0, 8.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 3.0, 8.0));
        assert!(Spread::of([]).is_none());
    }

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        // The machine was three times slower in the second round; the ratio is the same.
        let spread = ratio(&rounds(&[900.0, 300.0]), &rounds(&[300.0, 100.0]), |figures| {
            Some(figures.ops_per_s)
        });
        let spread = spread.unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (3.0, 3.0, 3.0));
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        let of = |figures: &Figures| Some(figures.ops_per_s);
        assert!(ratio(&rounds(&[1.0]), &rounds(&[0.0]), of).is_none());
        assert!(ratio(&rounds(&[1.0]), &rounds(&[1.0]), |figures| figures.p50_us).is_none());
    }
}
