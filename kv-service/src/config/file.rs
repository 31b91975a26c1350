//! Configuration files: reading, parsing, and why a configuration cannot be used.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// The reason why a configuration cannot be used; the text says what to change. Nothing was started
/// or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file is not TOML, has unknown keys, or has values of the wrong type.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The defect, and its line.
        message: String,
    },
    /// A setting does not make sense, alone or together with others.
    #[error("configuration: {0}")]
    Invalid(String),
}

/// Reads a file; returns its content and its directory.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<(T, PathBuf), ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let config =
        parse(&text).map_err(|message| ConfigError::Parse { path: path.to_owned(), message })?;
    Ok((config, path.parent().unwrap_or(Path::new("")).to_owned()))
}

/// Parses TOML; an error text includes the line number.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let mut message = error.message().to_owned();
        if let Some(span) = error.span() {
            let line = 1 + text[..span.start.min(text.len())].matches('\n').count();
            // Writing to a String does not fail.
            let _ = write!(message, " (line {line})");
        }
        message
    })
}
