//! Draws a violation: the calls of each client in time, and the place at which no call fits.

use std::fmt;

use super::Violation;
use super::history::{Call, Outcome};

/// Most calls of the order that are shown, and most characters of the state.
const ORDER_SHOWN_MAX: usize = 12;
const STATE_CHARS_MAX: usize = 240;
/// Columns of the drawing between two events.
const COLUMNS_PER_EVENT: usize = 4;
/// Most columns of the drawing. Events of a longer history share columns.
const COLUMNS_MAX: usize = 64;

/// A violation with the seed of the run and the command that replays it. Made by
/// [`Violation::report`].
pub struct Report<'a, O, R> {
    pub(super) violation: &'a Violation<O, R>,
    pub(super) seed: u64,
    pub(super) replay: &'a str,
}

impl<O: fmt::Debug, R: fmt::Debug> fmt::Display for Report<'_, O, R> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { violation, seed, replay } = self;
        write!(out, "seed {seed}: {violation}\n\nto replay it:\n    {replay}")
    }
}

impl<O: fmt::Debug, R: fmt::Debug> fmt::Display for Violation<O, R> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, call_count, .. } = self;
        let shown = calls.len();
        writeln!(out, "not linearizable, shown by {shown} of {call_count} calls:\n")?;
        draw(out, calls)?;
        self.explain(out)
    }
}

impl<O: fmt::Debug, R: fmt::Debug> Violation<O, R> {
    fn explain(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |at: &usize| format!("#{}", at + 1);
        if self.order.is_empty() {
            writeln!(out, "\nno call can be the first: the state at the start is")?;
        } else {
            let hidden = self.order.len().saturating_sub(ORDER_SHOWN_MAX);
            let shown: Vec<String> = self.order[hidden..].iter().map(name).collect();
            let dots = if hidden > 0 { "..., " } else { "" };
            let order = shown.join(", ");
            writeln!(out, "\nthe longest order from the start is {dots}{order}; it leaves")?;
        }
        writeln!(out, "    {}", shortened(&self.state))?;
        let stuck: Vec<String> = self.stuck.iter().map(name).collect();
        write!(
            out,
            "and by time only {} can be next, which that state contradicts",
            stuck.join(" or ")
        )
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(STATE_CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{} ...", &text[..end]),
    }
}

/// One line for each call, those of a client together. `|--|` is the time between call and return,
/// `|--?` a call of unknown outcome, `x--x` one that was not executed.
fn draw<O: fmt::Debug, R: fmt::Debug>(
    out: &mut fmt::Formatter<'_>,
    calls: &[Call<O, R>],
) -> fmt::Result {
    let mut events: Vec<u64> = Vec::new();
    for call in calls {
        events.push(call.called_at);
        if !matches!(call.outcome, Outcome::Unknown) {
            events.push(call.returned_at);
        }
    }
    events.sort_unstable();
    events.dedup();
    let width = (events.len() * COLUMNS_PER_EVENT).min(COLUMNS_MAX);
    let column = |time: u64| {
        let rank = events.partition_point(|event| *event < time);
        rank * (width - 1) / events.len().max(1)
    };
    let mut lines: Vec<usize> = (0..calls.len()).collect();
    lines.sort_by_key(|at| (calls[*at].client, calls[*at].called_at));
    let mut last_client = None;
    for at in lines {
        let call = &calls[at];
        let (open, close) = match call.outcome {
            Outcome::Returned(_) => ('|', '|'),
            Outcome::NotExecuted => ('x', 'x'),
            Outcome::Unknown => ('|', '?'),
        };
        let from = column(call.called_at);
        let to = match call.outcome {
            Outcome::Unknown => width - 1,
            _ => column(call.returned_at).max(from + 1),
        };
        let bar = format!("{:from$}{open}{:-<dashes$}{close}", "", "", dashes = to - from - 1);
        let client = match last_client.replace(call.client) == Some(call.client) {
            true => String::new(),
            false => format!("client {}", call.client),
        };
        let number = format!("#{}", at + 1);
        writeln!(out, "{client:>10} {number:>4}  {bar:<width$}  {}", Told(call))?;
    }
    Ok(())
}

/// Operation, outcome and times of a call.
struct Told<'a, O, R>(&'a Call<O, R>);

impl<O: fmt::Debug, R: fmt::Debug> fmt::Display for Told<'_, O, R> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Call { operation, called_at, returned_at, outcome, .. } = self.0;
        write!(out, "{operation:?} -> ")?;
        match outcome {
            Outcome::Returned(output) => {
                write!(out, "{output:?}  [{called_at}, {returned_at}]")
            }
            Outcome::NotExecuted => write!(out, "not executed  [{called_at}, {returned_at}]"),
            Outcome::Unknown => write!(out, "unknown  [{called_at}, -]"),
        }
    }
}
