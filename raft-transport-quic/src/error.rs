//! Errors, written for the operator or the author of a test who must act on them.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::PathBuf;

use quinn::{ConnectionError, TransportErrorCode, VarInt};

use crate::protocol::spoken_here;

/// Errors of the transport and of a client. Every message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuicError {
    /// A certificate or key file cannot be read.
    #[error(
        "cannot read the {what} {}: {source}; check the path and that this user may read it",
        path.display()
    )]
    Read {
        /// The kind of file, such as "certificate".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },

    /// Certificates or a key do not make a working TLS configuration.
    #[error("{0}")]
    Tls(String),

    /// The name of the cluster cannot be part of a certificate's DNS name.
    #[error(
        "`{0}` cannot name a cluster: use 1 to 63 of a-z, 0-9 and `-`, not beginning or ending with `-`"
    )]
    ClusterId(String),

    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),

    /// The UDP socket cannot be opened.
    #[error(
        "cannot listen on UDP {address}: {source}; check that no other process uses the port and that the address belongs to this machine"
    )]
    Bind {
        /// The address of the configuration.
        address: SocketAddr,
        /// The error of the operating system.
        source: std::io::Error,
    },

    /// No connection to the node was established, so the node has executed nothing.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// The node's address as it was configured.
        address: String,
        /// The reason, as the operator should read it.
        reason: String,
    },

    /// The connection was lost, or a stream could not be opened on it. Requests that were sent on
    /// it before may have been executed.
    #[error("the connection is gone: {0}; connect again")]
    Lost(String),
}

/// Application close codes. The reason text says more; the code tells a regular end from a refusal,
/// in the error text of the other side and in packet captures.
pub(crate) mod close {
    use super::VarInt;

    /// A regular end.
    pub(crate) const DONE: VarInt = VarInt::from_u32(0);
    /// The identity or the purpose of the other side does not fit.
    pub(crate) const REFUSED: VarInt = VarInt::from_u32(1);
    /// Bytes of the other side do not decode.
    pub(crate) const PROTOCOL: VarInt = VarInt::from_u32(2);
    /// A newer connection of the same peer has replaced this one.
    pub(crate) const REPLACED: VarInt = VarInt::from_u32(3);
    /// A limit is reached; come back later.
    pub(crate) const BUSY: VarInt = VarInt::from_u32(4);
    /// A stream was given up before its end.
    pub(crate) const ABORTED: VarInt = VarInt::from_u32(5);
    /// The other side was removed from the cluster.
    pub(crate) const REMOVED: VarInt = VarInt::from_u32(6);
}

/// Describes to an operator why a connection ended or was not established. The text has no ports or
/// numbers that change from one attempt to the next, so that equal causes give equal texts.
pub(crate) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TimedOut => {
            "timed out: no answer; is the node running, and does UDP reach it?".to_owned()
        }
        ConnectionError::Reset => "the other side has restarted".to_owned(),
        ConnectionError::LocallyClosed => "closed by this side".to_owned(),
        ConnectionError::ApplicationClosed(close) => {
            let reason = match printable(&String::from_utf8_lossy(&close.reason)) {
                empty if empty.is_empty() => format!("no reason given, code {}", close.error_code),
                reason => reason,
            };
            if close.error_code == close::DONE {
                format!("closed by the other side: {reason}")
            } else {
                format!("refused by the other side: {reason}")
            }
        }
        ConnectionError::ConnectionClosed(close)
            if close.error_code == TransportErrorCode::CONNECTION_REFUSED =>
        {
            "refused by the other side: it is stopping, or overwhelmed by handshakes".to_owned()
        }
        ConnectionError::ConnectionClosed(close)
            if close.error_code == TransportErrorCode::APPLICATION_ERROR =>
        {
            "the other side gave up during the handshake; is it, or this node, very busy?"
                .to_owned()
        }
        ConnectionError::ConnectionClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            let told = match printable(&reason) {
                empty if empty.is_empty() => format!("no reason given, {}", close.error_code),
                told => told,
            };
            format!("refused by the other side: {told}{}", tls_hint(&reason, true))
        }
        ConnectionError::TransportError(error) => {
            let hint = tls_hint(&error.reason, false);
            format!("refused by this side: {}{hint}", printable(&error.reason))
        }
        ConnectionError::VersionMismatch => {
            "the other side speaks another version of QUIC; is this really a node?".to_owned()
        }
        ConnectionError::CidsExhausted => "no connection id is left".to_owned(),
    }
}

/// Makes text from the other side fit for one log line: escapes characters that do not print, so
/// that no line can be forged, and cuts long text.
pub(crate) fn printable(text: &str) -> String {
    let mut line = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == PRINTABLE_CHARS_MAX {
            line.push_str("...");
            break;
        }
        // A character that `escape_debug` escapes does not print; quotes and `\` are exceptions.
        if matches!(c, '"' | '\'' | '\\') || c.escape_debug().count() == 1 {
            line.push(c);
        } else {
            line.extend(c.escape_default());
        }
    }
    line
}

/// Most characters of a text from the other side that are shown. Two lists of members fit.
const PRINTABLE_CHARS_MAX: usize = 500;

/// Advice about the set-up of the cluster for an error of rustls. `theirs` is true if the other
/// side has reported the error.
fn tls_hint(reason: &str, theirs: bool) -> Cow<'static, str> {
    let has = |text: &str| reason.contains(text);
    let hint = if has("UnknownIssuer")
        || has("UnknownCA")
        || has("BadSignature")
        || has("DecryptError")
    {
        if theirs {
            " (our certificate is not from the CA it trusts; use certificates of one CA on all nodes)"
        } else {
            " (its certificate is not from the CA we trust; use certificates of one CA on all nodes)"
        }
    } else if has("NotValidForName") || has("not valid for name") {
        " (another node, or a node of another cluster, answers at this address; check the addresses of the peers)"
    } else if has("Expired") || has("NotValidYet") {
        " (check the clocks, or issue a new certificate)"
    } else if has("any known protocol") || has("application protocol") || has("ApplicationProtocol")
    {
        let spoken = spoken_here();
        return format!(
            " (it speaks another version of the protocol; this program speaks {spoken}: run equal versions)"
        )
        .into();
    } else if has("CertificateRequired") {
        " (a certificate of the cluster's CA is needed)"
    } else {
        ""
    };
    hint.into()
}

#[cfg(test)]
mod tests {
    use quinn::ApplicationClose;

    use super::*;

    #[test]
    fn what_the_other_side_says_stays_in_its_line() {
        assert_eq!(printable("it's `größe` \\ \"9\""), "it's `größe` \\ \"9\"");
        assert_eq!(printable("a\n2026 ERROR\x1b[2J\u{202e}"), "a\\n2026 ERROR\\u{1b}[2J\\u{202e}");
        let cut = printable(&"x".repeat(5000));
        assert_eq!(cut.len(), PRINTABLE_CHARS_MAX + 3);
    }

    #[test]
    fn no_reason_is_said_to_be_none() {
        let close = |error_code| {
            let closed = ApplicationClose { error_code, reason: Default::default() };
            describe(&ConnectionError::ApplicationClosed(closed))
        };
        assert_eq!(close(close::REFUSED), "refused by the other side: no reason given, code 1");
        assert_eq!(close(close::DONE), "closed by the other side: no reason given, code 0");
    }
}
