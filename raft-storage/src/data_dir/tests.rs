//! Every way in which a directory may be somebody else's, and every moment of its making.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

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
        if entry.file_type().unwrap().is_file() {
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

/// The identity is written last; whatever an interrupted first opening left is made anew.
#[test]
fn an_interrupted_first_opening_is_repeated() {
    for left in [
        &[][..],
        &["lock"],
        &["lock", "reset-key.tmp"],
        &["lock", "reset-key"],
        &["lock", "reset-key", "place.tmp"],
        &["lock", "reset-key", "place"],
        &["lock", "reset-key", "place", "identity.tmp"],
        &["lock", "lost+found"],
    ] {
        let path = TempDir::new().unwrap();
        for name in left {
            fs::write(path.path().join(name), "torn").unwrap();
        }
        open(path.path()).unwrap_or_else(|error| panic!("{left:?}: {error}"));
        open(path.path()).unwrap_or_else(|error| panic!("{left:?}, again: {error}"));
    }
}

#[test]
fn every_damaged_byte_of_a_small_file_is_noticed() {
    let path = TempDir::new().unwrap();
    drop(open(path.path()).unwrap());
    for (name, says) in [(IDENTITY, "identity"), (PLACE, "place"), (RESET_KEY, "reset-key")] {
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
    fs::remove_file(path.path().join(RESET_KEY)).unwrap();
    expect_corrupt(open(path.path()), "missing");
}

#[test]
fn a_newer_version_is_refused() {
    let path = TempDir::new().unwrap();
    drop(open(path.path()).unwrap());
    let newer = seal(TAG_IDENTITY, |out| {
        out.extend_from_slice(&(FORMAT_VERSION + 1).to_be_bytes());
        out.extend_from_slice(b"whatever a newer version may write");
    });
    fs::write(path.path().join(IDENTITY), newer).unwrap();
    expect_refused(open(path.path()), path.path(), "format version 2");
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

/// The bytes and nothing less or more, however well they are sealed.
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
        let identity = Identity { cluster_id, node_id, incarnation };
        let read = |bytes: &[u8]| Identity::decode(bytes, Path::new("identity")).ok();
        check(&identity, &identity.encode(), read);
        check(&inode, &encode_place(inode), |bytes| decode_place(bytes).ok());
        let key: [u8; 64] = key.try_into().unwrap();
        let encoded = encode_reset_key(version, &key);
        check(&(version, key), &encoded, |bytes| decode_reset_key(bytes).ok());
    }
}
