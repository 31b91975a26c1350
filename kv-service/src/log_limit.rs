//! Log lines that a client causes: escaped, bounded in length, and bounded in number.
//!
//! A client chooses part of a line's text and how often it causes one. Unprintable text is escaped,
//! so that a client cannot forge a line. Long text is cut. Each subject is logged once for each
//! address within [`FORGOTTEN_AFTER`], and at most [`COMPLAINTS_MAX`] complaints in all, so that a
//! client that retries again and again cannot fill the disk.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Characters that are logged of a text that the other side chose.
const PRINTABLE_CHARS_MAX: usize = 200;

/// Complaints that are remembered; further ones are not logged until all are forgotten.
const COMPLAINTS_MAX: usize = 128;

/// All complaints are forgotten after this time, counted from the first of them. A complaint whose
/// cause persists is then logged again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

/// Reason of a complaint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// A connection over the limits was refused.
    #[cfg_attr(not(feature = "quic"), allow(dead_code, reason = "clients of QUIC only"))]
    Refused,
    /// Bytes that are not of the protocol.
    Protocol,
    /// The client stopped within a frame, or did not take its responses fast enough.
    TooSlow,
}

/// The complaints of one node about its clients.
#[derive(Debug, Default)]
pub(crate) struct Complaints(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    since: Option<Instant>,
    noted: BTreeSet<(Option<IpAddr>, Subject)>,
}

impl Complaints {
    /// Logs a complaint, unless the same one was logged lately.
    pub(crate) fn note(&self, from: Option<IpAddr>, subject: Subject, text: &str) {
        let place = {
            let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            noted.is_new(from, subject, Instant::now())
        };
        let text = printable(text);
        let from = from.map_or_else(|| "this process".to_owned(), |from| from.to_string());
        match place {
            Some(count) if count <= COMPLAINTS_MAX => {
                tracing::warn!("closed a client's connection from {from}: {text}");
            }
            Some(_) => tracing::warn!(
                "closed so many connections of clients that more are not logged for a while"
            ),
            None => tracing::debug!("closed a client's connection from {from}: {text}"),
        }
    }
}

impl Noted {
    /// Returns the complaint's place among the remembered ones; `None` if it was noted before, or
    /// if too many are remembered.
    fn is_new(&mut self, from: Option<IpAddr>, subject: Subject, now: Instant) -> Option<usize> {
        if self.since.is_none_or(|since| now.duration_since(since) > FORGOTTEN_AFTER) {
            *self = Self { since: Some(now), noted: BTreeSet::new() };
        }
        let new = self.noted.len() <= COMPLAINTS_MAX && self.noted.insert((from, subject));
        new.then_some(self.noted.len())
    }
}

/// Prepares a text that the other side chose for one log line: escapes characters that do not
/// print, and cuts text beyond [`PRINTABLE_CHARS_MAX`] characters.
pub(crate) fn printable(text: &str) -> String {
    let mut line = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == PRINTABLE_CHARS_MAX {
            line.push_str("...");
            break;
        }
        // `escape_debug` escapes what does not print, and quotes, which do.
        if matches!(c, '"' | '\'' | '\\') || c.escape_debug().count() == 1 {
            line.push(c);
        } else {
            line.extend(c.escape_default());
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::Arc;

    use tracing::field::{Field, Visit};
    use tracing::span;

    use super::*;

    /// S10. A client's text stays in its line, and its length is bounded.
    #[test]
    fn text_of_a_client_stays_in_its_line() {
        assert_eq!(printable("unknown variant `größe` \"9\""), "unknown variant `größe` \"9\"");
        assert_eq!(printable("a\n2026 ERROR\x1b[2J\u{202e}"), "a\\n2026 ERROR\\u{1b}[2J\\u{202e}");
        assert_eq!(printable(&"x".repeat(2 << 20)).len(), PRINTABLE_CHARS_MAX + 3);
    }

    /// S10. Connecting again and again does not fill the log.
    #[test]
    fn each_complaint_is_logged_once_per_address_and_time() {
        let mut noted = Noted::default();
        let start = Instant::now();
        let ip = |last: usize| Some(IpAddr::from([10, 0, 0, last as u8]));
        assert_eq!(noted.is_new(ip(1), Subject::Protocol, start), Some(1));
        assert_eq!(noted.is_new(ip(1), Subject::Protocol, start), None);
        assert_eq!(noted.is_new(ip(1), Subject::TooSlow, start), Some(2));
        for count in 3..=COMPLAINTS_MAX + 1 {
            assert_eq!(noted.is_new(ip(count), Subject::Protocol, start), Some(count));
        }
        assert_eq!(noted.is_new(ip(200), Subject::Protocol, start), None, "it is full");
        let later = start + FORGOTTEN_AFTER + Duration::from_secs(1);
        assert_eq!(noted.is_new(ip(1), Subject::Protocol, later), Some(1));
    }

    /// Collects the messages of events.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl Visit for Lines {
        fn record_debug(&mut self, _: &Field, value: &dyn fmt::Debug) {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }

    impl tracing::Subscriber for Lines {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() <= tracing::Level::WARN
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            event.record(&mut self.clone());
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    /// S10. A client that sends a log line as the kind of a request forges no line and fills no
    /// disk. It is logged once, although it sends the request again and again.
    #[test]
    fn a_client_forges_no_line_and_fills_no_log() {
        let lines = Lines::default();
        let complaints = Complaints::default();
        let kind = format!("x\n2026-01-01 ERROR the disk is on fire\x1b[2J{}", "y".repeat(1 << 20));
        tracing::subscriber::with_default(lines.clone(), || {
            for _ in 0..100 {
                complaints.note(Some(IpAddr::from([10, 0, 0, 1])), Subject::Protocol, &kind);
            }
        });
        let lines = lines.0.lock().unwrap();
        assert_eq!(lines.len(), 1, "{} lines", lines.len());
        assert!(lines[0].len() < 400 && lines[0].contains("10.0.0.1"), "{}", lines[0]);
        assert!(!lines[0].chars().any(char::is_control), "{:?}", lines[0]);
    }
}
