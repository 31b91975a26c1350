//! Reads the lines of a stream; no line takes more memory than allowed.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// A line without its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Whole(Vec<u8>),
    /// Longer than the limit; its bytes were dropped.
    TooLong,
}

impl Line {
    /// Bytes held in memory.
    pub fn held_bytes(&self) -> usize {
        match self {
            Line::Whole(bytes) => bytes.len(),
            Line::TooLong => 0,
        }
    }
}

/// Reads lines. The part of a line that was read stays here, so a wait for the next line can be
/// cancelled and resumed.
pub struct Lines<R> {
    stream: BufReader<R>,
    bytes_max: usize,
    begun: Vec<u8>,
    too_long: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub fn new(stream: R, bytes_max: usize) -> Self {
        let stream = BufReader::with_capacity(64 << 10, stream);
        Self { stream, bytes_max, begun: Vec::new(), too_long: false }
    }

    /// The next line, or `None` at the end. A last line without a line end counts.
    pub async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let available = self.stream.fill_buf().await?;
            if available.is_empty() {
                let something = self.too_long || !self.begun.is_empty();
                return Ok(something.then(|| self.take()));
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            if self.too_long || self.begun.len() + part.len() > self.bytes_max {
                self.too_long = true;
                self.begun = Vec::new();
            } else {
                self.begun.extend_from_slice(part);
            }
            let consumed = part.len() + usize::from(end.is_some());
            self.stream.consume(consumed);
            if end.is_some() {
                return Ok(Some(self.take()));
            }
        }
    }

    fn take(&mut self) -> Line {
        let begun = std::mem::take(&mut self.begun);
        if std::mem::take(&mut self.too_long) { Line::TooLong } else { Line::Whole(begun) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(bytes: &[u8], bytes_max: usize) -> Vec<Line> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut lines = Lines::new(bytes, bytes_max);
            let mut all = Vec::new();
            while let Some(line) = lines.next().await.unwrap() {
                all.push(line);
            }
            all
        })
    }

    #[test]
    fn a_long_line_is_dropped_and_the_next_one_is_read() {
        let whole = |text: &str| Line::Whole(text.as_bytes().to_vec());
        let lines = read_all(b"abc\nabcd\n\nab", 3);
        assert_eq!(lines, [whole("abc"), Line::TooLong, whole(""), whole("ab")]);
        assert_eq!(read_all(b"abcd", 3), [Line::TooLong]);
        assert_eq!(read_all(b"", 3), []);
    }

    proptest! {
        #[test]
        fn one_line_for_each_line_end(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400)) {
            let lines = read_all(&bytes, 8);
            let ends = bytes.iter().filter(|byte| **byte == b'\n').count();
            let open = bytes.last().is_some_and(|byte| *byte != b'\n');
            prop_assert_eq!(lines.len(), ends + usize::from(open));
            let short = |line: &Line| matches!(line, Line::Whole(bytes) if bytes.len() <= 8) || *line == Line::TooLong;
            prop_assert!(lines.iter().all(short));
        }
    }
}
