//! The result of a benchmark: a table for people, and every measurement as JSON.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};

use crate::chart::{self, Pair};
use crate::figures::{Figures, Spread, ratio, spread};
use crate::machine::Machine;

/// Collects rows and measurements; [`Report::conclude`] prints and writes them.
#[derive(Debug)]
pub(crate) struct Report {
    name: &'static str,
    machine: Machine,
    settings: Value,
    notes: Vec<String>,
    tables: Vec<Table>,
    measurements: Vec<Value>,
    /// Cases of comparisons, by peer, for the chart.
    pairs: Vec<(String, Pair)>,
}

#[derive(Debug, Serialize)]
struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Report {
    pub(crate) fn new(name: &'static str, settings: impl Serialize) -> anyhow::Result<Self> {
        Ok(Self {
            name,
            machine: Machine::describe(),
            settings: serde_json::to_value(settings)?,
            notes: Vec::new(),
            tables: Vec::new(),
            measurements: Vec::new(),
            pairs: Vec::new(),
        })
    }

    /// Adds something that a reader of the figures must know.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Begins a table. Rows go into the table that was begun last.
    pub(crate) fn begin_table(&mut self, title: impl Into<String>, columns: &[&str]) {
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        self.tables.push(Table { title: title.into(), columns, rows: Vec::new() });
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        let table = self.tables.last_mut().expect("a table is begun before its rows");
        assert_eq!(cells.len(), table.columns.len(), "a cell for each column");
        eprintln!("  {}", cells.join("  "));
        table.rows.push(cells);
    }

    pub(crate) fn measured(&mut self, measurement: Value) {
        self.measurements.push(measurement);
    }

    /// Begins a table for [`Report::contest`].
    pub(crate) fn begin_contest(&mut self, title: &str, peer: &str) {
        let columns = [
            "case".to_owned(),
            "kv ops/s".to_owned(),
            format!("{peer} ops/s"),
            "ratio (min..max)".to_owned(),
            "p50 us".to_owned(),
            "p99 us".to_owned(),
            "p99.9 us".to_owned(),
            "CPU us/op".to_owned(),
            "CPU ratio".to_owned(),
            "MiB".to_owned(),
        ];
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        self.begin_table(format!("{title} (pairs are kv / {peer})"), &columns);
    }

    /// Adds one case of a comparison: a row, and all its rounds.
    pub(crate) fn contest(&mut self, case: &str, peer: &str, kv: &[Figures], theirs: &[Figures]) {
        let rate = |figures: &Figures| Some(figures.ops_per_s);
        let of_both = |of: fn(&Figures) -> Option<f64>| {
            format!("{} / {}", middle(spread(kv, of)), middle(spread(theirs, of)))
        };
        let rates = ratio(kv, theirs, rate);
        let cpu = ratio(kv, theirs, |figures| figures.cpu_us_per_op);
        self.row(vec![
            case.to_owned(),
            middle(spread(kv, rate)),
            middle(spread(theirs, rate)),
            with_range(rates),
            of_both(|figures| figures.p50_us),
            of_both(|figures| figures.p99_us),
            of_both(|figures| figures.p999_us),
            of_both(|figures| figures.cpu_us_per_op),
            with_range(cpu),
            of_both(|figures| figures.memory_mib),
        ]);
        self.measured(json!({
            "case": case, "throughput_ratio": rates, "cpu_ratio": cpu, "kv": kv, peer: theirs,
        }));
        // A bar of less than one operation per second cannot be drawn.
        if let (Some(ours), Some(of_peer)) = (spread(kv, rate), spread(theirs, rate))
            && ours.median.min(of_peer.median) >= 1.0
        {
            let pair = Pair { case: case.to_owned(), kv: ours.median, peer: of_peer.median };
            self.pairs.push((peer.to_owned(), pair));
        }
        let errors = |side: &[Figures]| side.iter().map(|figures| figures.errors).sum::<u64>();
        if errors(kv) + errors(theirs) > 0 {
            self.note(format!(
                "{case}: {} operations of kv and {} of {peer} failed",
                errors(kv),
                errors(theirs)
            ));
        }
    }

    /// Prints the tables, and writes `<name>.json` into the directory.
    pub(crate) fn conclude(self, out: &Path) -> anyhow::Result<()> {
        println!("{}", self.machine);
        for table in &self.tables {
            print!("\n{}", for_people(table));
        }
        for note in &self.notes {
            println!("\n{note}");
        }
        let path = out.join(format!("{}.json", self.name));
        let text = serde_json::to_string_pretty(&json!({
            "benchmark": self.name,
            "machine": self.machine,
            "settings": self.settings,
            "notes": self.notes,
            "tables": self.tables,
            "measurements": self.measurements,
        }))?;
        fs::create_dir_all(out)
            .and_then(|()| fs::write(&path, text + "\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("\nEvery measurement: {}", path.display());
        self.draw(out)
    }

    /// Writes `<name>-<peer>.svg` beside the JSON for each peer that kv was compared with.
    fn draw(&self, out: &Path) -> anyhow::Result<()> {
        let peers: BTreeSet<&String> = self.pairs.iter().map(|(peer, _)| peer).collect();
        for peer in peers {
            let of_peer = self.pairs.iter().filter(|(name, _)| name == peer);
            let pairs: Vec<Pair> = of_peer.map(|(_, pair)| pair.clone()).collect();
            let svg = chart::draw(&format!("kv beside {peer}"), peer, &pairs)?;
            let path = out.join(format!("{}-{peer}.svg", self.name));
            fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))?;
            println!("Chart: {}", path.display());
        }
        Ok(())
    }
}

/// Formats a table with columns of a common width. A column in which nothing was measured is left
/// out.
fn for_people(table: &Table) -> String {
    let nothing = |cell: &String| matches!(cell.as_str(), "-" | "- / -");
    let shown = |column: &usize| !table.rows.iter().all(|row| nothing(&row[*column]));
    let shown: Vec<usize> = (0..table.columns.len()).filter(shown).collect();
    let width = |column: usize| {
        let cells = table.rows.iter().map(|row| &row[column]);
        let cells = cells.chain([&table.columns[column]]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let line = |cells: &[String]| {
        let padded = shown.iter().map(|column| format!("{:<1$}", cells[*column], width(*column)));
        let line = padded.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    let mut text = format!("{}\n{}", table.title, line(&table.columns));
    for row in &table.rows {
        text += &line(row);
    }
    text
}

pub(crate) fn middle(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| number(spread.median))
}

/// Formats a median with the range of its rounds.
pub(crate) fn with_range(spread: Option<Spread>) -> String {
    let text = |Spread { median, min, max }| {
        format!("{} ({}..{})", number(median), number(min), number(max))
    };
    spread.map_or_else(|| "-".to_owned(), text)
}

/// Formats a number with three significant digits.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.2}M", value / 1e6),
        size if size >= 1e4 => format!("{:.1}k", value / 1e3),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_the_digits_that_count() {
        let texts = [2_345_678.0, 23_456.0, 234.5, 23.45, 2.345, 0.0123].map(number);
        assert_eq!(texts, ["2.35M", "23.5k", "234", "23.4", "2.35", "0.0123"]);
    }

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        let text = |text: &str| text.to_owned();
        let table = Table {
            title: text("t"),
            columns: vec![text("a"), text("nothing"), text("long")],
            rows: vec![vec![text("wide cell"), text("- / -"), text("1")]],
        };
        assert_eq!(for_people(&table), "t\na          long\nwide cell  1\n");
    }
}
