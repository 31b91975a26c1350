//! Output of a benchmark: a bar while it runs, figures when it is done.

use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::{BenchArgs, BenchOp};

/// Interval at which the bar moves. Long enough to cost nothing.
pub(super) const BAR_EVERY: Duration = Duration::from_millis(250);

/// The figures; latencies in microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    op: &'static str,
    clients: u32,
    ops: u64,
    ops_per_s: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    errors: u64,
}

impl Report {
    pub(super) fn new(args: &BenchArgs, latencies_ns: &Histogram<u64>, errors: u64) -> Self {
        let ops = latencies_ns.len();
        let at = |quantile| tenths(latencies_ns.value_at_quantile(quantile) as f64 / 1000.0);
        Self {
            op: name(args.op),
            clients: args.clients,
            ops,
            ops_per_s: tenths(ops as f64 / args.duration.as_secs_f64()),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: tenths(latencies_ns.max() as f64 / 1000.0),
            errors,
        }
    }

    pub(super) fn for_people(&self) -> String {
        let Self { op, clients, ops, ops_per_s, errors, .. } = self;
        format!(
            "{op}, {clients} clients: {ops_per_s:.0} ops/s ({ops} operations, {errors} errors)\n\
             latency: p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
            latency(self.p50_us),
            latency(self.p90_us),
            latency(self.p99_us),
            latency(self.p999_us),
            latency(self.max_us)
        )
    }
}

fn name(op: BenchOp) -> &'static str {
    match op {
        BenchOp::Put => "put",
        BenchOp::Get => "get",
        BenchOp::Append => "append",
        BenchOp::Mixed => "mixed",
    }
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

fn latency(us: f64) -> String {
    if us < 1000.0 { format!("{us:.0} us") } else { format!("{:.2} ms", us / 1000.0) }
}

/// A bar over the whole run; hidden if standard error is no terminal.
pub(super) fn bar(total: Duration) -> ProgressBar {
    let bar = ProgressBar::new(u64::try_from(total.as_millis()).unwrap_or(u64::MAX));
    bar.with_style(style("{wide_bar} {elapsed} of the run  {msg}"))
}

/// Moves the bar to the elapsed time.
pub(super) fn advance(bar: &ProgressBar, ops: u64, errors: u64) {
    bar.set_position(u64::try_from(bar.elapsed().as_millis()).unwrap_or(u64::MAX));
    bar.set_message(match errors {
        0 => format!("{ops} operations"),
        errors => format!("{ops} operations, {errors} errors"),
    });
}

/// A bar over the keys that are written beforehand.
pub(super) fn loading_bar(keys: u64) -> ProgressBar {
    ProgressBar::new(keys).with_style(style("loading {wide_bar} {pos}/{len} keys"))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is well-formed")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    #[test]
    fn figures_are_those_of_the_histogram() {
        let mut latencies = Histogram::new(3).unwrap();
        for us in 1..=1000 {
            latencies.record(us * 1000).unwrap();
        }
        let Command::Bench(args) =
            Args::parse_from(["kv", "bench", "put", "--duration", "2s"]).command
        else {
            panic!()
        };
        let report = Report::new(&args, &latencies, 3);
        assert_eq!((report.ops, report.ops_per_s, report.errors), (1000, 500.0, 3));
        assert!((report.p50_us - 500.0).abs() < 1.0 && (report.p999_us - 999.0).abs() < 1.0);
        let fields: serde_json::Value = serde_json::to_value(&report).unwrap();
        for field in [
            "op",
            "clients",
            "ops",
            "ops_per_s",
            "p50_us",
            "p90_us",
            "p99_us",
            "p999_us",
            "max_us",
            "errors",
        ] {
            assert!(!fields[field].is_null(), "{field}");
        }
        assert!(report.for_people().contains("500 ops/s"), "{}", report.for_people());
    }
}
