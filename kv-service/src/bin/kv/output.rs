//! What goes to standard output: whole lines, each flushed, and bytes as JSON can carry them.
//!
//! Standard output may be full or closed. That never hides what a request did: a write is as done as
//! it is, so [`tell`] complains and changes nothing; a question that cannot be answered here was for
//! nothing, so [`show`] fails, except for a reader that left (`| head`), who has what it wanted.

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

/// Writes the bytes and a line end, at once. Unlike `println!` it does not panic when the reader has
/// gone away.
pub(crate) fn line(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Tells what was done. How the command ends was decided by what was done, so a failure to write is
/// only complained about.
pub(crate) fn tell(bytes: &[u8]) {
    if let Err(error) = line(bytes) {
        complain(&format!("the answer cannot be written to standard output: {error}"));
    }
}

/// Shows what was asked for. Whether somebody still reads.
///
/// # Errors
/// If it cannot be written although somebody might read.
pub(crate) fn show(bytes: &[u8]) -> anyhow::Result<bool> {
    match line(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}

/// One line for people, on standard error. Unlike `eprintln!` it does not panic if that is full or closed.
pub(crate) fn complain(text: &str) {
    // There is nowhere left to say that it failed.
    let _ = writeln!(io::stderr().lock(), "kv: {text}");
}

pub(crate) fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("our answers have text keys only")
}

/// Bytes as JSON text. What is not UTF-8 gets replacement characters; [`hex_unless_text`] goes with it.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The exact bytes in hexadecimal, if [`text`] would lose some.
pub(crate) fn hex_unless_text(bytes: &[u8]) -> Option<String> {
    use std::fmt::Write;
    if std::str::from_utf8(bytes).is_ok() {
        return None;
    }
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(hex, "{byte:02x}");
    }
    Some(hex)
}

/// Columns that are as wide as they have to be. The first row is the head.
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

    #[test]
    fn bytes_that_are_no_text_are_not_lost() {
        assert_eq!(hex_unless_text("grün".as_bytes()), None);
        assert_eq!(text("grün".as_bytes()), "grün");
        assert_eq!(hex_unless_text(&[0xff, 0x00, b'a']), Some("ff0061".to_owned()));
    }

    #[test]
    fn columns_line_up() {
        let rows = [["node", "role"], ["1", "leader"], ["12", ""]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect();
        assert_eq!(table(&rows), "node  role\n1     leader\n12");
    }
}
