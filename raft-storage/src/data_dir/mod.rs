//! The data directory of one node: its identity, its secrets, and the lock that keeps other
//! processes out.
//!
//! ```text
//! DIR/lock        held while the DataDir lives
//!    /identity    version, cluster, node, incarnation; written last, so it says "complete"
//!    /place       which `lock` the identity was made for: a copy has another one
//!    /reset-key   64 random bytes, readable by the owner alone
//!    /ballast     room for a restart on a full disk
//!    /removed     there once the node was removed from its cluster
//!    /log         raft log, hard state, metadata      (raft_storage::rocksdb)
//!        /key     64 random bytes that mask and authenticate the log, for the owner alone
//!    /snapshots   snapshot files                      (raft_storage::rocksdb)
//!    /state       for the state machine
//! ```
//!
//! Two nodes with one identity could vote twice in a term, so a directory is refused when it is in
//! use, when it belongs to another node or cluster, and when it is a copy (`place.rs`):
//!
//! * A copy made file by file (`cp`, `rsync`, an unpacked archive, a move to another file system)
//!   is detected.
//! * A move within a file system is not a copy, and is accepted.
//! * A copy made below the file system (a cloned disk, a virtual machine's snapshot) is **not**
//!   detected, here or by peers: while both run, each replaces the other's connections. A directory
//!   that such a clone has rolled back to an older state has forgotten votes and entries, and
//!   nothing in it shows that: do not restore a single node that way.
//!
//! A directory is made in one of two ways. [`DataDir::initialise`] makes the directory of a new
//! member of a new cluster; its log begins as
//! [`HardState::FOUNDING`](raft_core::types::HardState::FOUNDING). [`DataDir::open`] on an empty
//! path makes the directory of a node that may have given promises before it lost an earlier disk;
//! its log begins as [`Memory::Lost`](raft_core::types::Memory::Lost), with a new incarnation.

mod identity;
mod place;
mod secrets;
mod space;

use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use fs4::fs_std::FileExt;
use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::NodeId;

pub(crate) use self::identity::DirectoryIdentity;
#[cfg_attr(not(feature = "rocksdb"), allow(unused_imports, reason = "of the durable backend"))]
pub(crate) use self::secrets::{LOG_KEY, encode_reset_key};
pub use self::space::Space;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::{place::Place, secrets::decode_reset_key};

use self::place::{PLACE, check_place};
use self::secrets::{RESET_KEY, read_log_key, read_reset_key};
use crate::files::{io_error, read_if_there, remove_if_there, sync_directory, write_whole};
use crate::format::log_key::{LOG_KEY_BYTES, LogKey};

const LOCK: &str = "lock";
const IDENTITY: &str = "identity";
const LOG: &str = "log";
const STATE: &str = "state";
const SNAPSHOTS: &str = "snapshots";
const REMOVED: &str = "removed";

/// Version of the layout of the whole directory. In every version the identity begins with tag and
/// version, and ends with a CRC32C of the bytes before.
const FORMAT_VERSION: u16 = 2;

/// Longest cluster id, in bytes.
pub const CLUSTER_ID_BYTES_MAX: usize = 255;

/// Longest small file of this directory (identity, place, keys), in bytes.
const SMALL_FILE_BYTES_MAX: u64 = 1024;

/// One node's directory, locked for this process until it is dropped.
///
/// ```
/// use raft_core::storage::StorageError;
/// use raft_storage::DataDir;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let directory = tempfile::tempdir()?;
/// let data_dir = DataDir::open(directory.path(), "example", 1)?;
/// let incarnation = data_dir.incarnation();
/// let second = DataDir::open(directory.path(), "example", 1);
/// assert!(matches!(second, Err(StorageError::Refused(_))), "it is in use");
///
/// drop(data_dir);
/// let other = DataDir::open(directory.path(), "example", 2);
/// assert!(matches!(other, Err(StorageError::Refused(_))), "it belongs to node 1");
/// assert_eq!(DataDir::open(directory.path(), "example", 1)?.incarnation(), incarnation);
/// # Ok(())
/// # }
/// ```
pub struct DataDir {
    path: PathBuf,
    identity: DirectoryIdentity,
    /// The one in the file, which is written once more when the cluster has a uid. Held while it is
    /// written.
    cluster_uid: Mutex<u128>,
    reset_key: [u8; 64],
    log_key: LogKey,
    /// Closing it releases the lock.
    _lock: File,
}

/// Leaves out the secrets.
impl fmt::Debug for DataDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataDir")
            .field("path", &self.path)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl DataDir {
    /// Opens the directory. At an empty path it makes the directory of a node of unknown past,
    /// which recovers before its votes are counted; [`DataDir::initialise`] makes the directory of
    /// a new member.
    ///
    /// # Errors
    ///
    /// [`StorageError::Refused`] if the directory is in use, belongs to another node or another
    /// cluster, is a copy, has another format, or holds files and no identity;
    /// [`StorageError::Corrupt`] if a file in it is damaged. Each error says what to do. Nothing in
    /// a refused directory is altered.
    pub fn open(path: impl AsRef<Path>, cluster_id: &str, node_id: NodeId) -> StorageResult<Self> {
        let path = path.as_ref();
        let lock = prepare(path, cluster_id, node_id)?;
        // Read under the lock: another process may have just made it.
        let identity = match read_if_there(&path.join(IDENTITY), SMALL_FILE_BYTES_MAX)? {
            Some(bytes) => {
                let identity = DirectoryIdentity::decode(&bytes, &path.join(IDENTITY))?;
                identity.expect(cluster_id, node_id, path)?;
                check_place(path, &lock)?;
                identity
            }
            None => create(path, cluster_id, node_id, false, &lock)?,
        };
        Self::of_identity(path, identity, lock)
    }

    /// Makes the directory of a new member of a new cluster: no disk of this node has existed
    /// before, so the node has given no promises. If the operator is mistaken about that, no harm
    /// is done as long as another voter remembers the cluster; see
    /// [`HardState::FOUNDING`](raft_core::types::HardState::FOUNDING).
    ///
    /// # Errors
    ///
    /// [`StorageError::Refused`] if there is a node's directory already, and the errors of
    /// [`DataDir::open`].
    pub fn initialise(
        path: impl AsRef<Path>,
        cluster_id: &str,
        node_id: NodeId,
    ) -> StorageResult<Self> {
        let path = path.as_ref();
        let lock = prepare(path, cluster_id, node_id)?;
        if let Some(bytes) = read_if_there(&path.join(IDENTITY), SMALL_FILE_BYTES_MAX)? {
            let found = DirectoryIdentity::decode(&bytes, &path.join(IDENTITY))?;
            return Err(StorageError::Refused(format!(
                "{} is already the directory of node {} of cluster {:?}, so nothing was initialised: \
                 start the node, or name a new directory",
                path.display(),
                found.node_id,
                found.cluster_id,
            )));
        }
        let identity = create(path, cluster_id, node_id, true, &lock)?;
        Self::of_identity(path, identity, lock)
    }

    fn of_identity(path: &Path, identity: DirectoryIdentity, lock: File) -> StorageResult<Self> {
        space::release_ballast_if_full(path)?;
        let reset_key = read_reset_key(path)?;
        let log_key = read_log_key(&path.join(LOG), identity.log_key_fingerprint)?;
        for name in [LOG, STATE, SNAPSHOTS] {
            make_private(&path.join(name))?;
        }
        sync_directory(path)?;
        let cluster_uid = Mutex::new(u128::from_be_bytes(identity.cluster_uid));
        Ok(Self { path: path.to_owned(), identity, cluster_uid, reset_key, log_key, _lock: lock })
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Id of the cluster that the directory belongs to.
    pub fn cluster_id(&self) -> &str {
        &self.identity.cluster_id
    }

    /// Id of the node that the directory belongs to.
    pub fn node_id(&self) -> NodeId {
        self.identity.node_id
    }

    /// A random number minted when the directory was made. A node with a wiped directory has
    /// another one, so peers can tell the two apart.
    pub fn incarnation(&self) -> u64 {
        self.identity.incarnation
    }

    /// Returns true if the directory was made by [`DataDir::initialise`].
    pub fn was_initialised(&self) -> bool {
        self.identity.was_initialised
    }

    /// Random id of the cluster; 0 until this directory knows it.
    pub fn cluster_uid(&self) -> u128 {
        *self.cluster_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that the directory belongs to the cluster with this random id, or knows none yet.
    ///
    /// # Errors
    /// [`StorageError::Refused`] if it belongs to a cluster with another id.
    pub fn expect_cluster_uid(&self, uid: u128) -> StorageResult<()> {
        self.expect_uid(self.cluster_uid(), uid)
    }

    fn expect_uid(&self, noted: u128, uid: u128) -> StorageResult<()> {
        if noted == 0 || noted == uid {
            return Ok(());
        }
        Err(StorageError::Refused(format!(
            "{} belongs to the cluster {:?} with the uid {noted:032x}, not to the one with the uid \
             {uid:032x}: start the node in its own cluster, or name another directory",
            self.path.display(),
            self.identity.cluster_id,
        )))
    }

    /// Notes the random id of the cluster; durable when this returns. It tells apart two clusters
    /// with the same name. Noting the same id again does nothing.
    ///
    /// # Errors
    /// [`StorageError::Refused`] if the directory belongs to a cluster with another id; another
    /// error if the note could not be written.
    pub fn set_cluster_uid(&self, uid: u128) -> StorageResult<()> {
        let mut noted = self.cluster_uid.lock().unwrap_or_else(PoisonError::into_inner);
        if *noted == uid {
            return Ok(());
        }
        self.expect_uid(*noted, uid)?;
        let cluster_uid = uid.to_be_bytes();
        let identity = DirectoryIdentity { cluster_uid, ..self.identity.clone() };
        write_whole(&self.path, IDENTITY, &identity.encode(), false)?;
        *noted = uid;
        Ok(())
    }

    /// Notes that the node was removed from its cluster; durable when this returns. Such a node
    /// must not start again: it could answer votes of other nodes that do not know of their
    /// removal.
    ///
    /// # Errors
    /// The note could not be written.
    pub fn mark_removed(&self) -> StorageResult<()> {
        write_whole(&self.path, REMOVED, b"removed from the cluster\n", false)
    }

    /// Returns true once [`DataDir::mark_removed`] was called on this directory.
    ///
    /// # Errors
    /// The file system does not tell.
    pub fn was_removed(&self) -> StorageResult<bool> {
        let path = self.path.join(REMOVED);
        path.try_exists().map_err(|source| io_error("look for", &path, source))
    }

    /// The key of QUIC stateless resets. It outlives the process, so that connections of an earlier
    /// process of this node are reset at once when the node is back.
    pub fn reset_key(&self) -> &[u8; 64] {
        &self.reset_key
    }

    #[cfg_attr(not(feature = "rocksdb"), allow(dead_code, reason = "of the durable backend"))]
    pub(crate) fn log_key(&self) -> &LogKey {
        &self.log_key
    }

    /// Directory of the Raft log, the hard state and metadata.
    pub fn log_dir(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// Directory for the files of the state machine.
    pub fn state_dir(&self) -> PathBuf {
        self.path.join(STATE)
    }

    /// Directory of the snapshot files.
    pub fn snapshot_dir(&self) -> PathBuf {
        self.path.join(SNAPSHOTS)
    }
}

/// Makes the directory if it is missing, and locks it. Refuses a directory with foreign files.
fn prepare(path: &Path, cluster_id: &str, node_id: NodeId) -> StorageResult<File> {
    check_names(cluster_id, node_id)?;
    create_private(path)?;
    if read_if_there(&path.join(IDENTITY), SMALL_FILE_BYTES_MAX)?.is_none() {
        refuse_foreign(path)?;
    }
    lock(path)
}

/// Makes the directory and its missing parents; durable when this returns. New directories are for
/// the owner alone, because they will hold keys and values of all clients.
fn create_private(path: &Path) -> StorageResult<()> {
    let mut missing = Vec::new();
    let mut above = Some(path);
    while let Some(directory) = above.filter(|path| !is_here(path) && !path.is_dir()) {
        missing.push(directory);
        above = directory.parent();
    }
    for directory in missing.into_iter().rev() {
        let mut builder = std::fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(directory) {
            // Another process has just made it.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            created => created.map_err(|e| io_error("create the directory", directory, e))?,
        }
        // The name of each level must survive as well.
        sync_directory(parent_of(directory))?;
    }
    Ok(())
}

/// The parent directory; `.` for a relative name, because `Path::parent` returns "" for it.
fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !is_here(parent)).unwrap_or(Path::new("."))
}

fn is_here(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

/// Makes a directory for the owner alone, and narrows the permissions of an existing one: tables
/// and snapshots in it hold keys and values of all clients.
fn make_private(path: &Path) -> StorageResult<()> {
    std::fs::create_dir_all(path).map_err(|e| io_error("create", path, e))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let permissions =
            std::fs::metadata(path).map_err(|e| io_error("inspect", path, e))?.permissions();
        if permissions.mode() & 0o077 != 0 {
            tracing::info!(directory = %path.display(), "the directory is made private (0700)");
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
                .map_err(|e| io_error("make private", path, e))?;
        }
    }
    Ok(())
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

fn check_version(version: u16, path: &Path) -> StorageResult<()> {
    if version == FORMAT_VERSION {
        return Ok(());
    }
    Err(StorageError::Refused(format!(
        "{} has format version {version}, this program knows {FORMAT_VERSION}: {}",
        path.display(),
        advice_on_version(version),
    )))
}

/// Advice about a directory or a log of another version.
pub(crate) fn advice_on_version(version: u16) -> &'static str {
    match version > FORMAT_VERSION {
        true => "start the program version that wrote it, or a newer one",
        // Version 1 was before the first release.
        false => {
            "no release has written that version; move the data directory away and let the node be \
             re-admitted with an empty one"
        }
    }
}

/// Without an identity the directory may hold only files that an interrupted first opening left.
fn refuse_foreign(path: &Path) -> StorageResult<()> {
    let is_ours = |name: &OsStr, known: &[&str]| {
        known.iter().any(|known| name == OsStr::new(known))
            || known.iter().any(|known| name == OsStr::new(&format!("{known}.tmp")))
    };
    let mut foreign = None;
    for name in names_in(path)? {
        if name == OsStr::new(LOG) {
            let names = names_in(&path.join(LOG))?;
            let other = names.into_iter().find(|name| !is_ours(name, &[LOG_KEY]));
            foreign = other.map(|other| Path::new(LOG).join(other));
        } else if !is_ours(&name, &[LOCK, IDENTITY, PLACE, RESET_KEY, "lost+found"]) {
            foreign = Some(PathBuf::from(name));
        }
        if let Some(foreign) = &foreign {
            return Err(StorageError::Refused(format!(
                "{} is not empty ({} is there) and has no identity of a node: name an empty or a \
                 new directory; if it was a node's, restore its file {IDENTITY:?} from a backup of \
                 that node, or let the node be re-admitted with an empty directory",
                path.display(),
                foreign.display(),
            )));
        }
    }
    Ok(())
}

fn names_in(path: &Path) -> StorageResult<Vec<std::ffi::OsString>> {
    let list = |e| io_error("list", path, e);
    let entries = std::fs::read_dir(path).map_err(list)?;
    entries.map(|entry| Ok(entry.map_err(list)?.file_name())).collect()
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

/// Makes all small files, the identity last.
fn create(
    path: &Path,
    cluster_id: &str,
    node_id: NodeId,
    was_initialised: bool,
    lock: &File,
) -> StorageResult<DirectoryIdentity> {
    let reset_key = random_bytes::<64>()?;
    write_whole(path, RESET_KEY, &encode_reset_key(FORMAT_VERSION, &reset_key), true)?;
    let secret = random_bytes::<LOG_KEY_BYTES>()?;
    let log = path.join(LOG);
    make_private(&log)?;
    write_whole(&log, LOG_KEY, &LogKey::encode(FORMAT_VERSION, &secret), true)?;
    remove_if_there(&path.join(PLACE))?;
    check_place(path, lock)?;
    let identity = DirectoryIdentity {
        cluster_id: cluster_id.to_owned(),
        node_id,
        incarnation: u64::from_be_bytes(random_bytes()?),
        was_initialised,
        cluster_uid: [0; 16],
        log_key_fingerprint: LogKey::new(&secret).fingerprint(),
    };
    write_whole(path, IDENTITY, &identity.encode(), false)?;
    sync_directory(parent_of(path))?;
    Ok(identity)
}

fn random_bytes<const N: usize>() -> StorageResult<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| StorageError::Engine {
        operation: "draw random bytes".to_owned(),
        message: e.to_string(),
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
