//! Checks that settings share.

use std::fmt;

use super::file::ConfigError;

pub(super) fn require(holds: bool, complaint: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Invalid(complaint())) }
}

pub(super) fn check_range<T: PartialOrd + fmt::Display>(
    name: &str,
    value: T,
    least: T,
    most: T,
) -> Result<(), ConfigError> {
    let is_within = least <= value && value <= most;
    require(is_within, || format!("{name} is {value}: {least} to {most}"))
}
