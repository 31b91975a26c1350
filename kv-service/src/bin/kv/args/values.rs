//! Parsers of flags' values.

use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use bytes::Bytes;
use clap::builder::{OsStringValueParser, TypedValueParser};
use kv_service::batch::codec::DURATION_MAX;
use kv_service::config::ByteSize;
use kv_service::config::NodeAddress;

/// The largest value that the benchmark writes.
const VALUE_SIZE_MAX: ByteSize = ByteSize(16 << 20);

const LIFETIME_MIN: Duration = Duration::from_secs(60);
const LIFETIME_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// Keys and values are bytes, taken from the shell as they are.
pub(super) fn bytes_parser() -> impl TypedValueParser<Value = Bytes> {
    OsStringValueParser::new().map(|text| Bytes::from(text.into_vec()))
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("must be more than 0".to_owned()),
        Ok(duration) if duration > DURATION_MAX => Err("must be at most 365 days".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}: write 250ms, 10s or 2min")),
    }
}

/// A time that may be never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DurationOrNever(pub(crate) Option<Duration>);

pub(super) fn duration_or_never(text: &str) -> Result<DurationOrNever, String> {
    match text {
        "never" => Ok(DurationOrNever(None)),
        _ => duration(text)
            .map(|time| DurationOrNever(Some(time)))
            .map_err(|why| format!("{why}, or never")),
    }
}

/// The validity of a certificate.
pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(lifetime) if lifetime < LIFETIME_MIN => Err("must be at least 1min".to_owned()),
        Ok(lifetime) if lifetime > LIFETIME_MAX => Err("must be at most 10years".to_owned()),
        Ok(lifetime) => Ok(lifetime),
        Err(error) => Err(format!("{error}: write 90days or 1year")),
    }
}

pub(super) fn value_size(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(size) if size > VALUE_SIZE_MAX => Err(format!("must be at most {VALUE_SIZE_MAX}")),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn node_address(text: &str) -> Result<NodeAddress, String> {
    let parsed = text.split_once('=').and_then(|(id, address)| Some((id.parse().ok()?, address)));
    let (id, address) = parsed.ok_or("write ID=HOST:PORT, such as 1=127.0.0.1:7401")?;
    Ok(NodeAddress { id, address: address.to_owned() })
}
