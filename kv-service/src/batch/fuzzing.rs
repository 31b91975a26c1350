//! Fuzzing entry point of the lines of `kv batch`. See `crate::fuzzing`.

use super::codec::parse;
use super::lines::{Line, Lines};

/// Short, so that the fuzzer finds longer lines.
const LINE_BYTES_MAX: usize = 200;

/// Every line is a request or gets a response of one line, and no line takes more memory than
/// allowed.
pub fn batch_lines(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime without drivers needs nothing of the system");
    let mut lines = Lines::new(bytes, LINE_BYTES_MAX);
    let mut count = 0;
    while let Some(line) = runtime.block_on(lines.next()).expect("memory can be read") {
        count += 1;
        let Line::Whole(line) = line else { continue };
        assert!(line.len() <= LINE_BYTES_MAX && !line.contains(&b'\n'));
        match parse(&line) {
            Ok(request) => assert!(request.deadline.is_none_or(|deadline| !deadline.is_zero())),
            Err(refused) => {
                let answer = refused.answer(1, 2).to_line();
                assert_eq!(answer.matches('\n').count(), 1);
                let fields: serde_json::Value =
                    serde_json::from_str(&answer).expect("an answer is JSON");
                assert_eq!(fields["outcome"], "not_executed");
                assert!(fields["error"].as_str().is_some_and(|error| !error.is_empty()));
            }
        }
    }
    let is_open = bytes.last().is_some_and(|byte| *byte != b'\n');
    assert_eq!(count, bytes.iter().filter(|byte| **byte == b'\n').count() + usize::from(is_open));
}
