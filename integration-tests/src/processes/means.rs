//! The tools that this machine offers to make faults with, and the reports about missing ones.
//!
//! A scenario whose tool is missing has not passed: it writes `NOT RUN` to the real standard error,
//! with the reason and the count so far. With `REQUIRE_ALL_FAULTS=1` that is a failure.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

static NOT_RUN_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Reports that something was not tested here.
///
/// # Panics
/// If `REQUIRE_ALL_FAULTS=1` asks for all tests.
pub fn not_run(what: &str, why: &str) {
    let count = NOT_RUN_COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    // Not captured by the test harness, so that it is visible.
    let note = format!("NOT RUN: {what} ({why}); {count} not run so far\n");
    std::io::stderr().write_all(note.as_bytes()).expect("standard error is open");
    let required = std::env::var("REQUIRE_ALL_FAULTS").is_ok_and(|wish| wish == "1");
    assert!(!required, "REQUIRE_ALL_FAULTS=1, and this was not run: {what} ({why})");
}

/// Runs a helper program of the system. An error holds the program's standard error.
pub fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("`{program}`: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("`{program} {}` ended with {}: {said}", arguments.join(" "), output.status))
}
