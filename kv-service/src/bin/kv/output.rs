//! Standard output: whole lines, each flushed.
//!
//! Standard output may be full or closed. That never hides the outcome of a request. A write has
//! its outcome whether or not it can be printed, so [`tell`] complains and changes nothing. A read
//! that cannot be printed was for nothing, so [`show`] fails, unless the reader has left (`| head`)
//! because it has all that it wanted.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use kv_service::batch::text::escaped;

/// Writes the bytes and a line end, and flushes. Unlike `println!` it does not panic when the
/// reader has gone away.
pub(crate) fn line(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Prints the outcome of a write. The outcome decides how the command ends, so a failure to print
/// is only reported on standard error.
pub(crate) fn tell(bytes: &[u8]) {
    if let Err(error) = line(bytes) {
        complain(&format!("the answer cannot be written to standard output: {error}"));
    }
}

/// Prints the result of a read. Returns false if no reader is left.
///
/// # Errors
/// If it cannot be written although a reader may be left.
pub(crate) fn show(bytes: &[u8]) -> anyhow::Result<bool> {
    match line(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}

/// Shows a stored value. Returns false if no reader is left.
///
/// # Errors
/// The same as those of [`show`].
pub(crate) fn show_value(value: &[u8]) -> anyhow::Result<bool> {
    show(&value_for(value, io::stdout().is_terminal()))
}

/// Shows a key and its value in one line. Returns false if no reader is left.
///
/// # Errors
/// The same as those of [`show`].
pub(crate) fn show_record(key: &[u8], value: &[u8]) -> anyhow::Result<bool> {
    show(&record_for(key, value, io::stdout().is_terminal()))
}

/// Programs get the bytes as they are. A terminal would obey escape sequences that another client
/// has stored, so it gets them escaped; line ends and tabs of a text stay.
fn value_for(value: &[u8], is_terminal: bool) -> Cow<'_, [u8]> {
    if is_terminal {
        Cow::Owned(escaped(value, |c| matches!(c, '\n' | '\t' | '\\')).into_bytes())
    } else {
        Cow::Borrowed(value)
    }
}

/// On a terminal tabs, line ends and backslashes are escaped too, so that a line is one record.
fn record_for(key: &[u8], value: &[u8], is_terminal: bool) -> Vec<u8> {
    if is_terminal {
        format!("{}\t{}", escaped(key, |_| false), escaped(value, |_| false)).into_bytes()
    } else {
        [key, b"\t", value].concat()
    }
}

/// Prints one line for people on standard error. Unlike `eprintln!` it does not panic if standard
/// error is full or closed.
pub(crate) fn complain(text: &str) {
    // There is no place left to report a failure.
    let _ = writeln!(io::stderr().lock(), "kv: {text}");
}

/// Formats rows in columns that are as wide as they have to be. The first row is the head.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell: &String| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut lines = Vec::with_capacity(rows.len());
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        lines.push(cells.collect::<Vec<_>>().join("  ").trim_end().to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// S29. Stored bytes do nothing to a terminal, and programs get them as they are.
    #[test]
    fn a_terminal_gets_stored_bytes_escaped() {
        let value =
            b"\x1b[2J\x1b]0;title\x07 gr\xc3\xbcn\n\t\"it's\" \\ \xff\xc2\x9b\xe2\x80\xae\r";
        assert_eq!(value_for(value, false), &value[..]);
        let shown = String::from_utf8(value_for(value, true).into_owned()).unwrap();
        let expected =
            "\\u{1b}[2J\\u{1b}]0;title\\u{7} grün\n\t\"it's\" \\ \\xff\\u{9b}\\u{202e}\\r";
        assert_eq!(shown, expected);
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
    }

    /// S29. On a terminal each record is one line with one tab.
    #[test]
    fn a_record_is_one_line_on_a_terminal() {
        let (key, value) = (&b"a\tb\n"[..], &b"x\ny\\n\x00"[..]);
        assert_eq!(record_for(key, value, true), b"a\\tb\\n\tx\\ny\\\\n\\u{0}");
        assert_eq!(record_for(key, value, false), b"a\tb\n\tx\ny\\n\x00");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["node", "role"], ["1", "leader"], ["12", ""]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect();
        assert_eq!(table(&rows), "node  role\n1     leader\n12");
    }
}
