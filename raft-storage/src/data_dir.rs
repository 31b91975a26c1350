//! The directory of one node: who it belongs to, and that only one process uses it.
//!
//! ```text
//! DIR/lock        held while the DataDir lives
//!    /identity    version, cluster, node, incarnation; written last, so it says "complete"
//!    /place       which `lock` the identity was made for (its inode): a copy has another one
//!    /reset-key   64 random bytes, readable by the owner alone
//!    /log         raft log, hard state, metadata      (raft_storage::rocksdb)
//!    /snapshots   snapshot files                      (raft_storage::rocksdb)
//!    /state       for the state machine
//! ```
//!
//! Two nodes with one identity could vote twice in a term, so a directory is refused when it is in
//! use, when it belongs to another node or cluster, and when it is a copy:
//!
//! * A copy made file by file (`cp`, `rsync`, an unpacked archive, a move to another file system) is
//!   noticed, because its `lock` is another inode than `place` says.
//! * A move within a file system is not a copy, and carries on.
//! * A copy made below the file system (a cloned disk, a virtual machine's snapshot) is **not**
//!   noticed, here or by peers: while both run, each replaces the other's connections. A directory
//!   rolled back to an older state by such a clone has forgotten votes and entries, and nothing in it
//!   can tell: do not restore a single node that way.
//! * A wiped directory is a new one with a new incarnation; peers refuse it while the node of the old
//!   one is connected. Its node has forgotten what it promised and knows it, because its log is empty; see
//!   [`HardState::memory`](raft_core::types::HardState::memory).

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use fs4::fs_std::FileExt;
use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::NodeId;

use crate::files::{io_error, read_if_there, remove_if_there, sync_directory, write_whole};
use crate::record::{Damage, seal, unseal};

const LOCK: &str = "lock";
const IDENTITY: &str = "identity";
const PLACE: &str = "place";
const RESET_KEY: &str = "reset-key";
const LOG: &str = "log";
const STATE: &str = "state";
const SNAPSHOTS: &str = "snapshots";

/// Version of the layout of the whole directory. All versions promise to end the identity in a
/// CRC32C over what precedes it and to begin it with tag and version.
const FORMAT_VERSION: u16 = 1;

const TAG_IDENTITY: u8 = b'I';
const TAG_PLACE: u8 = b'P';
const TAG_RESET_KEY: u8 = b'K';

/// Longest cluster id.
pub const CLUSTER_ID_BYTES_MAX: usize = 255;

/// No file of ours here is longer.
const SMALL_FILE_BYTES_MAX: u64 = 1024;

/// One node's directory, locked for this process until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Identity,
    reset_key: [u8; 64],
    /// Closing it releases the lock.
    _lock: File,
}

impl DataDir {
    /// Opens the directory, or makes it at the first time.
    ///
    /// # Errors
    ///
    /// [`StorageError::Refused`] if it is in use, is another node's or another cluster's, is a copy,
    /// has a newer format, or holds files and no identity; [`StorageError::Corrupt`] if a file in it
    /// is damaged. Each says what to do. Nothing in a refused directory is altered.
    pub fn open(path: impl AsRef<Path>, cluster_id: &str, node_id: NodeId) -> StorageResult<Self> {
        let path = path.as_ref();
        check_names(cluster_id, node_id)?;
        create_private(path).map_err(|e| io_error("create the directory", path, e))?;
        let found = read_if_there(&path.join(IDENTITY), SMALL_FILE_BYTES_MAX)?;
        if found.is_none() {
            refuse_foreign(path)?;
        }
        let lock = lock(path)?;
        // Read again under the lock: another process may have just made it.
        let identity = match read_if_there(&path.join(IDENTITY), SMALL_FILE_BYTES_MAX)? {
            Some(bytes) => {
                let identity = Identity::decode(&bytes, &path.join(IDENTITY))?;
                identity.expect(cluster_id, node_id, path)?;
                check_place(path, &lock)?;
                identity
            }
            None => create(path, cluster_id, node_id, &lock)?,
        };
        let reset_key = read_reset_key(path)?;
        for name in [LOG, STATE, SNAPSHOTS] {
            let sub = path.join(name);
            std::fs::create_dir_all(&sub).map_err(|e| io_error("create", &sub, e))?;
        }
        sync_directory(path)?;
        Ok(Self { path: path.to_owned(), identity, reset_key, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn cluster_id(&self) -> &str {
        &self.identity.cluster_id
    }

    pub fn node_id(&self) -> NodeId {
        self.identity.node_id
    }

    /// A random number minted when the directory was made. A node with a wiped directory has another
    /// one, so peers can tell the two apart.
    pub fn incarnation(&self) -> u64 {
        self.identity.incarnation
    }

    /// The key of QUIC stateless resets. It is kept, so that the connections of an earlier process
    /// of this node are reset at once when the node is back.
    pub fn reset_key(&self) -> &[u8; 64] {
        &self.reset_key
    }

    /// Raft log, hard state and metadata.
    pub fn log_dir(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// For the state machine.
    pub fn state_dir(&self) -> PathBuf {
        self.path.join(STATE)
    }

    pub fn snapshot_dir(&self) -> PathBuf {
        self.path.join(SNAPSHOTS)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    cluster_id: String,
    node_id: NodeId,
    incarnation: u64,
}

impl Identity {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let cluster_id_bytes = u8::try_from(self.cluster_id.len()).expect("checked at the door");
        seal(TAG_IDENTITY, |out| {
            out.extend_from_slice(&FORMAT_VERSION.to_be_bytes());
            out.extend_from_slice(&self.node_id.to_be_bytes());
            out.extend_from_slice(&self.incarnation.to_be_bytes());
            out.push(cluster_id_bytes);
            out.extend_from_slice(self.cluster_id.as_bytes());
        })
    }

    pub(crate) fn decode(bytes: &[u8], path: &Path) -> StorageResult<Self> {
        let corrupt = |damage: Damage| {
            StorageError::Corrupt(format!(
                "the identity {} is damaged ({damage}): restore this one file from a backup of the \
                 same node, or move the directory away and let the node be re-admitted as a new one",
                path.display()
            ))
        };
        let mut fields = unseal(TAG_IDENTITY, bytes).map_err(corrupt)?;
        let version = fields.u16().map_err(corrupt)?;
        refuse_newer(version, path)?;
        let mut read = || {
            let node_id = fields.u64()?;
            let incarnation = fields.u64()?;
            let len = fields.u8()?;
            let cluster_id = std::str::from_utf8(fields.bytes(usize::from(len))?)
                .map_err(|_| Damage("the cluster id is not UTF-8".to_owned()))?
                .to_owned();
            Ok(Identity { cluster_id, node_id, incarnation })
        };
        let identity = read().map_err(corrupt)?;
        fields.done().map_err(corrupt)?;
        Ok(identity)
    }

    fn expect(&self, cluster_id: &str, node_id: NodeId, path: &Path) -> StorageResult<()> {
        if self.cluster_id == cluster_id && self.node_id == node_id {
            return Ok(());
        }
        Err(StorageError::Refused(format!(
            "{} belongs to node {} of cluster {:?}, and this is node {node_id} of cluster \
             {cluster_id:?}: start the node that it belongs to, or name another directory",
            path.display(),
            self.node_id,
            self.cluster_id,
        )))
    }
}

/// Makes the directory, and those above it, if it is not there. What is made is for the owner alone:
/// keys and values of all clients will be in it.
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn check_names(cluster_id: &str, node_id: NodeId) -> StorageResult<()> {
    if node_id == 0 {
        return Err(StorageError::Refused("a node's id is at least 1".to_owned()));
    }
    if cluster_id.is_empty() || cluster_id.len() > CLUSTER_ID_BYTES_MAX {
        return Err(StorageError::Refused(format!(
            "a cluster id has 1 to {CLUSTER_ID_BYTES_MAX} bytes, this one has {}",
            cluster_id.len()
        )));
    }
    Ok(())
}

fn refuse_newer(version: u16, path: &Path) -> StorageResult<()> {
    if version == FORMAT_VERSION {
        return Ok(());
    }
    Err(StorageError::Refused(format!(
        "{} has format version {version}, this program knows {FORMAT_VERSION}: start the program \
         version that wrote it, or a newer one",
        path.display()
    )))
}

/// Without an identity there may be nothing but what an interrupted first opening left.
fn refuse_foreign(path: &Path) -> StorageResult<()> {
    let temporary = [IDENTITY, PLACE, RESET_KEY].map(|name| format!("{name}.tmp"));
    let entries = std::fs::read_dir(path).map_err(|e| io_error("list", path, e))?;
    for entry in entries {
        let name = entry.map_err(|e| io_error("list", path, e))?.file_name();
        let ours =
            [LOCK, PLACE, RESET_KEY, "lost+found"].map(OsStr::new).contains(&name.as_os_str())
                || temporary.iter().any(|known| name.as_os_str() == OsStr::new(known));
        if !ours {
            return Err(StorageError::Refused(format!(
                "{} is not empty ({} is there) and has no identity of a node: name an empty or a \
                 new directory; if it was a node's, restore its file {IDENTITY:?} from a backup of \
                 that node, or let the node be re-admitted with an empty directory",
                path.display(),
                name.display(),
            )));
        }
    }
    Ok(())
}

fn lock(path: &Path) -> StorageResult<File> {
    let lock_path = path.join(LOCK);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(|e| io_error("open", &lock_path, e))?;
    match FileExt::try_lock_exclusive(&file) {
        Ok(true) => Ok(file),
        Ok(false) => Err(StorageError::Refused(format!(
            "{} is in use by another process: stop that one first, or name another directory",
            path.display()
        ))),
        Err(source) => Err(io_error("lock", &lock_path, source)),
    }
}

fn create(path: &Path, cluster_id: &str, node_id: NodeId, lock: &File) -> StorageResult<Identity> {
    let mut random = [0u8; 72];
    getrandom::fill(&mut random).map_err(|e| StorageError::Engine {
        operation: "draw random bytes".to_owned(),
        message: e.to_string(),
    })?;
    let (key, incarnation) = random.split_first_chunk::<64>().expect("72 bytes");
    write_whole(path, RESET_KEY, &encode_reset_key(FORMAT_VERSION, key), true)?;
    remove_if_there(&path.join(PLACE))?;
    check_place(path, lock)?;
    let incarnation = u64::from_be_bytes(incarnation.try_into().expect("72 - 64 bytes"));
    let identity = Identity { cluster_id: cluster_id.to_owned(), node_id, incarnation };
    write_whole(path, IDENTITY, &identity.encode(), false)?;
    if let Some(parent) = path.parent() {
        // The parent of a relative name is said to be "".
        let here = Path::new(".");
        sync_directory(if parent.as_os_str().is_empty() { here } else { parent })?;
    }
    Ok(identity)
}

/// Is this the directory that the identity was made for, or a copy? Without a `place` the question
/// is answered anew: that is how an operator vouches for a moved directory.
fn check_place(path: &Path, lock: &File) -> StorageResult<()> {
    let place_path = path.join(PLACE);
    let here = inode(lock).map_err(|e| io_error("inspect", &path.join(LOCK), e))?;
    let Some(bytes) = read_if_there(&place_path, SMALL_FILE_BYTES_MAX)? else {
        return write_whole(path, PLACE, &encode_place(here), false);
    };
    let made_for = decode_place(&bytes).map_err(|damage| {
        StorageError::Corrupt(format!(
            "{} is damaged ({damage}): if this is the only copy of the directory, remove that file \
             and start again",
            place_path.display()
        ))
    })?;
    if made_for == here {
        return Ok(());
    }
    Err(StorageError::Refused(format!(
        "{} is a copy of a node's directory: two nodes of one identity would vote twice and lose \
         data. Start the original. If that is gone for good and it never ran after this copy was \
         made, remove the file {} and start again; if it did run, let the node be re-admitted with \
         an empty directory",
        path.display(),
        place_path.display()
    )))
}

pub(crate) fn encode_place(inode: u64) -> Vec<u8> {
    seal(TAG_PLACE, |out| out.extend_from_slice(&inode.to_be_bytes()))
}

pub(crate) fn decode_place(bytes: &[u8]) -> Result<u64, Damage> {
    let mut fields = unseal(TAG_PLACE, bytes)?;
    let inode = fields.u64()?;
    fields.done()?;
    Ok(inode)
}

#[cfg(unix)]
fn inode(lock: &File) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(lock.metadata()?.ino())
}

/// Elsewhere copies are not noticed.
#[cfg(not(unix))]
fn inode(_lock: &File) -> std::io::Result<u64> {
    Ok(0)
}

fn read_reset_key(path: &Path) -> StorageResult<[u8; 64]> {
    let key_path = path.join(RESET_KEY);
    let corrupt = |damage: Damage| {
        StorageError::Corrupt(format!(
            "{} is damaged ({damage}): restore this one file from a backup of the same node, or move \
             the directory away and let the node be re-admitted as a new one",
            key_path.display()
        ))
    };
    let bytes = read_if_there(&key_path, SMALL_FILE_BYTES_MAX)?
        .ok_or_else(|| corrupt(Damage("it is missing".to_owned())))?;
    let (version, key) = decode_reset_key(&bytes).map_err(corrupt)?;
    refuse_newer(version, &key_path)?;
    Ok(key)
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

#[cfg(test)]
mod tests;
