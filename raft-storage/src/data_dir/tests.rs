//! Directories that belong to another owner or are copies, and an opening that is interrupted at
//! each step.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::identity::TAG_IDENTITY;
use super::*;
use crate::record::seal;

/// Opens `path` as node 3 of the cluster "ours".
fn open(path: &Path) -> StorageResult<DataDir> {
    DataDir::open(path, "ours", 3)
}

#[track_caller]
fn expect_refused(result: StorageResult<DataDir>, path: &Path, says: &str) {
    let Err(StorageError::Refused(text)) = result else {
        panic!("{says:?} was expected, not {result:?}");
    };
    assert!(text.contains(says), "{text:?} does not say {says:?}");
    assert!(text.contains(&path.display().to_string()), "{text:?} does not name the directory");
}

#[track_caller]
fn expect_corrupt(result: StorageResult<DataDir>, says: &str) {
    let Err(StorageError::Corrupt(text)) = result else {
        panic!("{says:?} was expected, not {result:?}");
    };
    assert!(text.contains(says), "{text:?} does not say {says:?}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn an_identity_is_kept() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("below").join("node");
    let first = open(&path).unwrap();
    let (incarnation, reset_key) = (first.incarnation(), *first.reset_key());
    assert_eq!((first.cluster_id(), first.node_id()), ("ours", 3));
    assert!(
        first.log_dir().is_dir() && first.state_dir().is_dir() && first.snapshot_dir().is_dir()
    );
    let mode = fs::metadata(path.join(RESET_KEY)).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "the reset key is for the owner alone");
    drop(first);
    let again = open(&path).unwrap();
    assert_eq!((again.incarnation(), *again.reset_key()), (incarnation, reset_key));
}

/// The identity is the only file of the directory that is written again, and nothing else in it
/// changes.
#[test]
fn a_cluster_has_one_uid() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("node");
    let dir = open(&path).unwrap();
    let (incarnation, reset_key) = (dir.incarnation(), *dir.reset_key());
    dir.expect_cluster_uid(8).unwrap();
    assert_eq!(dir.cluster_uid(), 0, "to ask for one does not note it");
    dir.set_cluster_uid(7).unwrap();
    assert_eq!(dir.cluster_uid(), 7);
    drop(dir);
    let dir = open(&path).unwrap();
    assert_eq!((dir.cluster_uid(), dir.incarnation()), (7, incarnation));
    assert_eq!(dir.reset_key(), &reset_key);
    dir.set_cluster_uid(7).unwrap();
    dir.expect_cluster_uid(7).unwrap();
    assert!(dir.expect_cluster_uid(8).is_err());
    let Err(StorageError::Refused(text)) = dir.set_cluster_uid(8) else {
        panic!("the uid of another cluster is refused")
    };
    assert!(text.contains("uid 00000000000000000000000000000007, not to"), "{text}");
    assert_eq!(dir.cluster_uid(), 7);
}

#[test]
fn a_wiped_directory_has_another_incarnation() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("node");
    let first = open(&path).unwrap().incarnation();
    fs::remove_dir_all(&path).unwrap();
    assert_ne!(open(&path).unwrap().incarnation(), first);
}

#[test]
fn a_directory_in_use_is_refused() {
    let path = TempDir::new().unwrap();
    let held = open(path.path()).unwrap();
    expect_refused(open(path.path()), path.path(), "in use");
    drop(held);
    open(path.path()).unwrap();
}

#[test]
fn another_nodes_directory_is_refused() {
    let path = TempDir::new().unwrap();
    drop(open(path.path()).unwrap());
    let path = path.path();
    expect_refused(DataDir::open(path, "ours", 4), path, "belongs to node 3");
    expect_refused(DataDir::open(path, "theirs", 3), path, "of cluster \"ours\"");
    open(path).unwrap();
}

#[test]
fn a_copy_is_refused_until_its_place_is_removed() {
    let parent = TempDir::new().unwrap();
    let (original, copied) = (parent.path().join("original"), parent.path().join("copied"));
    let incarnation = open(&original).unwrap().incarnation();
    copy(&original, &copied);
    expect_refused(open(&copied), &copied, "is a copy");
    expect_refused(open(&copied), &copied, "is a copy");
    open(&original).unwrap();
    fs::remove_file(copied.join(PLACE)).unwrap();
    assert_eq!(open(&copied).unwrap().incarnation(), incarnation);
    open(&copied).unwrap();
}

#[test]
fn a_move_within_the_file_system_is_not_a_copy() {
    let parent = TempDir::new().unwrap();
    let (here, there) = (parent.path().join("here"), parent.path().join("there"));
    let incarnation = open(&here).unwrap().incarnation();
    fs::rename(&here, &there).unwrap();
    assert_eq!(open(&there).unwrap().incarnation(), incarnation);
}

#[test]
fn foreign_files_without_an_identity_are_refused_and_left_alone() {
    let path = TempDir::new().unwrap();
    fs::write(path.path().join("thesis.tex"), "text").unwrap();
    expect_refused(open(path.path()), path.path(), "thesis.tex");
    let left: Vec<_> = fs::read_dir(path.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing is written to a refused directory");

    // A node's directory that has lost its identity is not a new one.
    let path = TempDir::new().unwrap();
    drop(open(path.path()).unwrap());
    fs::remove_file(path.path().join(IDENTITY)).unwrap();
    expect_refused(open(path.path()), path.path(), "no identity");
}

/// The identity is written last; files that an interrupted first opening left are made anew.
#[test]
fn an_interrupted_first_opening_is_repeated() {
    for left in [
        &[][..],
        &["lock"],
        &["lock", "reset-key.tmp"],
        &["lock", "reset-key"],
        &["lock", "reset-key", "log/key.tmp"],
        &["lock", "reset-key", "log/key"],
        &["lock", "reset-key", "log/key", "place.tmp"],
        &["lock", "reset-key", "place"],
        &["lock", "reset-key", "place", "identity.tmp"],
        &["lock", "lost+found"],
    ] {
        let path = TempDir::new().unwrap();
        for name in left {
            let file = path.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "torn").unwrap();
        }
        open(path.path()).unwrap_or_else(|error| panic!("{left:?}: {error}"));
        open(path.path()).unwrap_or_else(|error| panic!("{left:?}, again: {error}"));
    }
}

#[test]
fn every_damaged_byte_of_a_small_file_is_noticed() {
    let path = TempDir::new().unwrap();
    drop(open(path.path()).unwrap());
    let files = [
        (IDENTITY, "identity"),
        (PLACE, "place"),
        (RESET_KEY, "reset-key"),
        ("log/key", "log/key"),
    ];
    for (name, says) in files {
        let file = path.path().join(name);
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x01;
            fs::write(&file, &damaged).unwrap();
            expect_corrupt(open(path.path()), says);
            fs::write(&file, &whole[..at]).unwrap();
            expect_corrupt(open(path.path()), says);
        }
        fs::write(&file, [&whole[..], b"x"].concat()).unwrap();
        expect_corrupt(open(path.path()), says);
        fs::write(&file, &whole).unwrap();
    }
    for name in [RESET_KEY, "log/key"] {
        let whole = fs::read(path.path().join(name)).unwrap();
        fs::remove_file(path.path().join(name)).unwrap();
        expect_corrupt(open(path.path()), "missing");
        fs::write(path.path().join(name), whole).unwrap();
    }
    open(path.path()).unwrap();
}

/// The key of another node, or a log that brought its own key, would make each batch look forged.
#[test]
fn the_key_of_another_log_is_refused() {
    let (path, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    drop(open(path.path()).unwrap());
    drop(DataDir::open(other.path(), "ours", 4).unwrap());
    let key = |of: &TempDir| of.path().join(LOG).join(LOG_KEY);
    let own = fs::read(key(&path)).unwrap();
    fs::copy(key(&other), key(&path)).unwrap();
    expect_refused(open(path.path()), path.path(), "backup of the same node");
    fs::write(key(&path), own).unwrap();
    open(path.path()).unwrap();
    for name in [key(&path), path.path().join(RESET_KEY)] {
        let mode = fs::metadata(name).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "a secret is for the owner alone");
    }
}

#[test]
fn an_initialised_directory_says_so_and_is_not_initialised_twice() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("node");
    assert!(DataDir::initialise(&path, "ours", 3).unwrap().was_initialised());
    assert!(open(&path).unwrap().was_initialised());
    let again = DataDir::initialise(&path, "ours", 3);
    expect_refused(again, &path, "already the directory of node 3");
    assert!(!open(&parent.path().join("other")).unwrap().was_initialised());
    let foreign = parent.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("notes"), "text").unwrap();
    expect_refused(DataDir::initialise(&foreign, "ours", 3), &foreign, "notes");
}

/// S19. Tables and snapshots in an open directory could be read by each user of the machine.
#[test]
fn an_open_directory_is_made_private_below() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("node");
    drop(open(&path).unwrap());
    for name in [LOG, STATE, SNAPSHOTS] {
        fs::set_permissions(path.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    drop(open(&path).unwrap());
    for name in [LOG, STATE, SNAPSHOTS] {
        let mode = fs::metadata(path.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{name}");
    }
}

/// S20. A backup that is unpacked in place often gets the inode of the original; and inodes of some
/// file systems change with each mount.
#[test]
fn a_place_is_told_by_birth_then_mark_then_inode() {
    let place = |inode, born_at, mark| Place { inode, born_at, mark: [mark; 16] };
    let unstable_inode = (place(1, 7, 3), place(2, 7, 3));
    let unpacked_on_the_same_inode = (place(1, 7, 3), place(1, 8, 0));
    let copied_with_attributes = (place(1, 7, 3), place(2, 8, 3));
    assert!(unstable_inode.0.is_of(&unstable_inode.1));
    assert!(!unpacked_on_the_same_inode.0.is_of(&unpacked_on_the_same_inode.1));
    assert!(!copied_with_attributes.0.is_of(&copied_with_attributes.1));
    // Without birth times.
    assert!(place(1, 0, 3).is_of(&place(2, 0, 3)));
    assert!(!place(1, 0, 3).is_of(&place(1, 0, 0)));
    assert!(place(1, 0, 0).is_of(&place(1, 0, 0)));
    assert!(!place(1, 0, 0).is_of(&place(2, 0, 0)));
}

/// S20. The same on the real file system: a new `lock` may get the old inode, but not the old birth
/// time.
#[test]
fn a_lock_that_was_made_again_is_a_copy() {
    let path = TempDir::new().unwrap();
    drop(open(path.path()).unwrap());
    let before = Place::of(&lock(path.path()).unwrap()).unwrap();
    fs::remove_file(path.path().join(LOCK)).unwrap();
    let after = Place::of(&lock(path.path()).unwrap()).unwrap();
    if (before.born_at, before.mark) == (0, [0; 16]) {
        return; // This file system keeps neither.
    }
    assert!(!before.is_of(&after), "{before:?} {after:?}");
    expect_refused(open(path.path()), path.path(), "is a copy");
}

#[test]
fn another_version_is_refused() {
    for (version, says) in [(FORMAT_VERSION + 1, "format version 3"), (1, "no release")] {
        let path = TempDir::new().unwrap();
        drop(open(path.path()).unwrap());
        let other = seal(TAG_IDENTITY, |out| {
            out.extend_from_slice(&version.to_be_bytes());
            out.extend_from_slice(b"whatever another version may write");
        });
        fs::write(path.path().join(IDENTITY), other).unwrap();
        expect_refused(open(path.path()), path.path(), says);
    }
}

#[test]
fn impossible_names_are_refused() {
    let path = TempDir::new().unwrap();
    let longest = "x".repeat(CLUSTER_ID_BYTES_MAX);
    for (cluster, node) in [("", 1), ("ours", 0), (&format!("{longest}x"), 1)] {
        let result = DataDir::open(path.path(), cluster, node);
        assert!(matches!(result, Err(StorageError::Refused(_))), "{cluster:?} {node}");
    }
    DataDir::open(path.path(), &longest, u64::MAX).unwrap();
}

#[test]
fn a_directory_that_is_made_is_for_its_owner_alone() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("nodes").join("3");
    open(&path).unwrap();
    for made in [&path, path.parent().unwrap()] {
        let mode = fs::metadata(made).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", made.display());
    }
}

/// Asserts that `encoded` decodes to the value, and that no shorter or longer body decodes, even
/// with a right checksum.
fn check<T: PartialEq + std::fmt::Debug>(
    value: &T,
    encoded: &[u8],
    decode: impl Fn(&[u8]) -> Option<T>,
) {
    assert_eq!(decode(encoded).as_ref(), Some(value));
    let (tag, body) = (encoded[0], &encoded[1..encoded.len() - 4]);
    for end in 0..body.len() {
        let cut = seal(tag, |out| out.extend_from_slice(&body[..end]));
        assert_eq!(decode(&cut), None, "cut at {end}");
    }
    let longer = [body, &[0]].concat();
    assert_eq!(decode(&seal(tag, |out| out.extend_from_slice(&longer))), None);
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_nothing_less_or_more(
        cluster_id in "\\PC{1,15}",
        numbers in any::<[u64; 3]>(),
        version in any::<u16>(),
        key in proptest::collection::vec(any::<u8>(), 64),
    ) {
        let [node_id, incarnation, inode] = numbers;
        let mark: [u8; 16] = key[..16].try_into().unwrap();
        let identity = DirectoryIdentity {
            cluster_id,
            node_id,
            incarnation,
            was_initialised: inode % 2 == 0,
            cluster_uid: mark,
            log_key_fingerprint: !inode,
        };
        let read = |bytes: &[u8]| DirectoryIdentity::decode(bytes, Path::new("identity")).ok();
        check(&identity, &identity.encode(), read);
        let place = Place { inode, born_at: incarnation, mark };
        check(&place, &place.encode(), |bytes| Place::decode(bytes).ok());
        let key: [u8; 64] = key.try_into().unwrap();
        let encoded = encode_reset_key(version, &key);
        check(&(version, key), &encoded, |bytes| decode_reset_key(bytes).ok());
        let encoded = LogKey::encode(version, &key);
        check(&(version, key), &encoded, |bytes| LogKey::decode(bytes).ok());
    }
}
