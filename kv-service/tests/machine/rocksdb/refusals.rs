//! Directories that are not opened, and what the operator is told.

use std::path::Path;

use kv_service::state::{KvMachine, RocksStateOptions};
use tempfile::TempDir;

use super::{flusher, generations, open_at};
use crate::{open, put, write};

/// The error for a directory that cannot be opened; the directory is left as it is.
fn refusal(path: &Path) -> String {
    match KvMachine::rocksdb(path, RocksStateOptions::default()) {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_not_ours_is_refused() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("something"), "else").unwrap();
    assert!(refusal(directory.path()).contains("not empty"));

    for (mark, why) in [
        ("kv-state 3\ngeneration 1\n", "format version"),
        ("kv-state 1\ngeneration 1\n", "which no release has written"),
        ("kv-state 2\ngeneration x\n", "damaged"),
        ("kv-state 2\ngeneration 18446744073709551615\n", "damaged"),
        ("garbage", "not the mark"),
        ("", "not the mark"),
    ] {
        let directory = TempDir::new().unwrap();
        drop(open_at(directory.path()));
        std::fs::write(directory.path().join("current"), mark).unwrap();
        assert!(refusal(directory.path()).contains(why), "{mark:?}");
        assert_eq!(generations(directory.path()).len(), 1, "nothing was removed");
    }

    // A state that is named and missing is not taken for an empty one.
    let directory = TempDir::new().unwrap();
    drop(open_at(directory.path()));
    std::fs::write(directory.path().join("current"), "kv-state 2\ngeneration 5\n").unwrap();
    assert!(refusal(directory.path()).contains("is not there"));
    assert_eq!(generations(directory.path()).len(), 1, "nothing was removed");
}

#[test]
fn a_second_process_is_refused() {
    let directory = TempDir::new().unwrap();
    let machine = open_at(directory.path());
    assert!(refusal(directory.path()).contains("opening the state"));
    drop(machine);
    open_at(directory.path());
}

#[test]
fn a_damaged_table_is_refused_with_what_to_do() {
    let directory = TempDir::new().unwrap();
    let mut machine = open_at(directory.path());
    let session = open(&mut machine, 1, 1_000, 10);
    write(&mut machine, session, 1, put("key", "value"));
    flusher(&machine).flush().unwrap();
    drop(machine);
    for file in std::fs::read_dir(&generations(directory.path())[0]).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "sst") {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[10] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let refusal = refusal(directory.path());
    assert!(refusal.contains("Corruption") && refusal.contains("restore the whole"), "{refusal}");
}
