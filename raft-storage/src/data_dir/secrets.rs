//! The secrets of a directory: files of mode 0600.

use std::path::Path;

use raft_core::storage::{StorageError, StorageResult};

use super::{SMALL_FILE_BYTES_MAX, check_version};
use crate::files::read_if_there;
use crate::format::log_key::LogKey;
use crate::record::{Damage, seal, unseal};

pub(super) const RESET_KEY: &str = "reset-key";
/// The key is in the log's directory, because it belongs to that log: a log that was moved here
/// from another node brings its own key, which does not fit the identity.
pub(crate) const LOG_KEY: &str = "key";

const TAG_RESET_KEY: u8 = b'K';

fn corrupt(path: &Path, damage: &Damage) -> StorageError {
    StorageError::Corrupt(format!(
        "{} is damaged ({damage}): restore this one file from a backup of the same node, or move \
         the data directory away and let the node be re-admitted with an empty one",
        path.display()
    ))
}

fn read(path: &Path) -> StorageResult<Vec<u8>> {
    read_if_there(path, SMALL_FILE_BYTES_MAX)?
        .ok_or_else(|| corrupt(path, &Damage("it is missing".to_owned())))
}

pub(super) fn read_reset_key(directory: &Path) -> StorageResult<[u8; 64]> {
    let path = directory.join(RESET_KEY);
    let (version, key) =
        decode_reset_key(&read(&path)?).map_err(|damage| corrupt(&path, &damage))?;
    check_version(version, &path)?;
    Ok(key)
}

/// Reads the key of the log in `directory`, whose fingerprint must be the one in the identity. With
/// another key, every batch of the log would look forged.
pub(super) fn read_log_key(directory: &Path, fingerprint: u64) -> StorageResult<LogKey> {
    let path = directory.join(LOG_KEY);
    let (version, secret) =
        LogKey::decode(&read(&path)?).map_err(|damage| corrupt(&path, &damage))?;
    check_version(version, &path)?;
    let key = LogKey::new(&secret);
    if key.fingerprint() == fingerprint {
        return Ok(key);
    }
    Err(StorageError::Refused(format!(
        "{} is not the key that this data directory was made with: put the log of this node, or its \
         key, back from where it was moved or from a backup of the same node; if there is none, move \
         the data directory away and let the node be re-admitted with an empty one",
        path.display()
    )))
}

pub(crate) fn encode_reset_key(version: u16, key: &[u8; 64]) -> Vec<u8> {
    seal(TAG_RESET_KEY, |out| {
        out.extend_from_slice(&version.to_be_bytes());
        out.extend_from_slice(key);
    })
}

pub(crate) fn decode_reset_key(bytes: &[u8]) -> Result<(u16, [u8; 64]), Damage> {
    let mut fields = unseal(TAG_RESET_KEY, bytes)?;
    let version = fields.u16()?;
    let key = fields.bytes(64)?.try_into().expect("64 were asked for");
    fields.done()?;
    Ok((version, key))
}
