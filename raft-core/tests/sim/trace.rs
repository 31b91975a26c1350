//! The trace of a run: always as a hash, to compare two runs, and on request as lines to read.

use std::collections::VecDeque;

use crate::chain::mix;

const LINES_MAX: usize = 100_000;

#[derive(Debug, Default)]
pub struct Trace {
    pub hash: u64,
    recording: bool,
    lines: VecDeque<String>,
}

impl Trace {
    pub fn new(recording: bool) -> Self {
        Self { recording, ..Self::default() }
    }

    pub fn note(&mut self, word: u64) {
        self.hash = mix(self.hash, word);
    }

    pub fn tell(&mut self, now: u64, line: impl FnOnce() -> String) {
        if !self.recording {
            return;
        }
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        // Commands are padded with dots; a run of dots is shown as one.
        let mut line = line();
        while line.contains("...") {
            line = line.replace("...", "..").replace("..", ".");
        }
        self.lines.push_back(format!("{:>6}.{:03}  {line}", now / 1000, now % 1000));
    }

    pub fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}
