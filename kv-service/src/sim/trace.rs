//! Everything that happened in a run, in order, reduced to a number.
//!
//! Events are hashed as they come and not kept, so a trace costs the same memory for a long run as
//! for a short one. With `TRACE=1` in the environment events are printed as well. If two runs
//! should have been the same and are not, comparing their prints shows the first difference.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft_core::transport::channel::{ChannelNetwork, Traffic};
use tokio::time::Instant;

/// The trace of one run. Clones are the same trace.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<TraceState>>);

struct TraceState {
    started: Instant,
    digest: Digest,
    is_printed: bool,
}

/// The digest of a trace. Equal runs have equal digests, and different ones almost surely do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Number of events noted.
    pub event_count: u64,
    /// Hash of all events with their times.
    pub hash: u64,
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl Trace {
    /// Creates an empty trace, whose time starts now.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(TraceState {
            started: Instant::now(),
            digest: Digest { event_count: 0, hash: FNV_OFFSET },
            is_printed: std::env::var_os("TRACE").is_some_and(|value| value != "0"),
        })))
    }

    /// Notes every message that is sent or delivered from now on, and every frame of a bulk stream.
    pub fn listen_to(&self, network: &ChannelNetwork) {
        let trace = self.clone();
        network.listen(move |from, to, traffic| match traffic {
            Traffic::Sent(message) => trace.note(format_args!("{from} -> {to} sent {message:?}")),
            Traffic::Delivered(message) => trace.note(format_args!("{from} -> {to} {message:?}")),
            Traffic::Frame(frame) => trace.note(format_args!("{from} -> {to} frame {frame:?}")),
        });
    }

    /// Notes one more event, with the time at which it happened.
    pub fn note(&self, event: fmt::Arguments<'_>) {
        let mut state = self.state();
        let at_micros = state.started.elapsed().as_micros();
        state.digest.event_count += 1;
        // Writing to a hash cannot fail.
        let _ = writeln!(state.digest, "{at_micros} {event}");
        if state.is_printed {
            // `eprintln!` panics if standard error is closed, and the run would fail for its trace.
            let _ = writeln!(io::stderr(), "{at_micros:>12} us  {event}");
        }
    }

    /// The digest of the events so far.
    pub fn digest(&self) -> Digest {
        self.state().digest
    }

    fn state(&self) -> MutexGuard<'_, TraceState> {
        // An event whose formatting panics fails the run, so a half-hashed event does no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const FNV_OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01B3;

/// FNV-1a: short, and the same on every platform and in every release, unlike the standard hasher.
impl fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
        Ok(())
    }
}
