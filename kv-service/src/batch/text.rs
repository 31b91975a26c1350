//! Bytes as text: in JSON, and on a terminal.

use std::fmt::Write as _;

use serde::Serialize;

/// The bytes as text that has no effect on a terminal, except for the characters that `is_kept`
/// lets through.
pub fn escaped(bytes: &[u8], is_kept: impl Fn(char) -> bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            // `escape_debug` escapes characters that do not print, and quotes, which do print.
            if is_kept(c) || matches!(c, '"' | '\'') || c.escape_debug().count() == 1 {
                text.push(c);
            } else {
                text.extend(c.escape_default());
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String does not fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Serializes a value that has text keys only.
pub fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("its keys are text")
}

/// Bytes as JSON text. Bytes that are not UTF-8 become replacement characters; [`hex_unless_text`]
/// then carries the exact bytes.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The exact bytes in hexadecimal, if [`text`] would lose some.
pub fn hex_unless_text(bytes: &[u8]) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_not_lost() {
        assert_eq!(hex_unless_text("grün".as_bytes()), None);
        assert_eq!(text("grün".as_bytes()), "grün");
        assert_eq!(hex_unless_text(&[0xff, 0x00, b'a']), Some("ff0061".to_owned()));
    }
}
