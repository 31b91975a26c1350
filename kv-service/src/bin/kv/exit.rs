//! How a command ends: an exit code for scripts, and one line for people.
//!
//! The code answers the one question that matters after a failure: may the request have been
//! executed? A command that fails before it sends a request (a bad flag, a missing file) surely had
//! no effect, so usage and configuration errors have code 2 as well.

use std::process::ExitCode;

use kv_service::{ClientError, Outcome};

/// The exit codes of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done.
    Done,
    /// 1: executed, and the key was not there or the condition did not hold.
    ConditionFailed,
    /// 2: surely not executed.
    NotExecuted,
    /// 3: may have been executed.
    Unknown,
    /// 5: the node was removed from its cluster; a service manager must not start it again.
    Removed,
    /// 6: the data directory is an old one of this node; a service manager must not start it again.
    Replaced,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

impl From<Outcome> for Exit {
    fn from(outcome: Outcome) -> Exit {
        match outcome {
            Outcome::NotExecuted => Exit::NotExecuted,
            Outcome::Unknown => Exit::Unknown,
        }
    }
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::ConditionFailed => 1,
            Exit::NotExecuted => 2,
            Exit::Unknown => 3,
            Exit::Removed => 5,
            Exit::Replaced => 6,
        }
    }

    /// The exit code for an error that ended a command. Commands that have changed something decide
    /// by themselves, before they print.
    pub(crate) fn of(error: &anyhow::Error) -> Exit {
        error.downcast_ref::<ClientError>().map_or(Exit::NotExecuted, |error| error.outcome.into())
    }
}

#[cfg(test)]
mod tests {
    use kv_service::Reason;

    use super::*;

    #[test]
    fn the_code_tells_whether_it_may_have_happened() {
        let failed = |outcome| anyhow::Error::new(ClientError::new(outcome, Reason::Closed));
        assert_eq!(Exit::of(&failed(Outcome::NotExecuted)).code(), 2);
        assert_eq!(Exit::of(&failed(Outcome::Unknown)).code(), 3);
        assert_eq!(Exit::of(&failed(Outcome::Unknown).context("put")).code(), 3);
        assert_eq!(Exit::of(&anyhow::anyhow!("no such file")).code(), 2);
        // The error does not tell which pipe broke, so it is an error like any other.
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(Exit::of(&anyhow::Error::new(broken)).code(), 2);
    }
}
