//! The lines of `kv batch`: what the binary, the fuzz targets and the replay of their corpora
//! share.
//!
//! Not a part of the public interface: the lines themselves are one (`kv batch --help`), these
//! types are not.

pub mod codec;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub mod lines;
pub mod text;
