//! The store against a disk that fails.

#![allow(clippy::unwrap_used)]

use std::fs::OpenOptions;

use raft_core::types::Position;
use tempfile::TempDir;

use super::*;

fn store(path: &std::path::Path) -> Store {
    let data_dir = Arc::new(DataDir::open(path, "tests", 1).unwrap());
    let mut store = Store::new(data_dir, Shelf::default(), Poison::default(), StepHook::default());
    store.recover(None).unwrap();
    store
}

fn meta() -> SnapshotMeta {
    SnapshotMeta { position: Position::new(3, 12), ..SnapshotMeta::default() }
}

/// S22. The pages of a part whose sync failed may count as clean: a later process would resume it
/// from the page cache, and its sync would write nothing. So it begins anew.
#[test]
fn a_part_whose_sync_failed_is_not_resumed() {
    for fails_at_end in [false, true] {
        let directory = TempDir::new().unwrap();
        let bytes = Bytes::from(vec![7; 3 * CHUNK_BYTES as usize]);
        let mut content = SnapshotContent::default();
        content.append(&bytes);
        let mut store = self::store(directory.path());
        let (serial, offset) = store.begin(meta(), Some(content)).unwrap();
        assert_eq!(offset, 0);
        let half = bytes.slice(..2 * CHUNK_BYTES as usize);
        store.write(serial, &half).unwrap();

        // A control: a part that was written without a failure is resumed.
        drop(store);
        let mut store = self::store(directory.path());
        let (serial, offset) = store.begin(meta(), Some(content)).unwrap();
        assert_eq!(offset, half.len() as u64);

        // A device that takes bytes and cannot sync them, or takes none.
        let device = if fails_at_end { "/dev/null" } else { "/dev/full" };
        let failing = OpenOptions::new().write(true).open(device).unwrap();
        store.part.as_mut().unwrap().file = failing;
        let written = store.write(serial, &bytes.slice(half.len()..));
        assert_eq!(written.is_ok(), fails_at_end, "{written:?}");
        if fails_at_end {
            let error = store.finish(serial).unwrap_err();
            assert!(matches!(error, StorageError::Io { .. }), "{error}");
        }
        let poisoned = store.begin(meta(), Some(content)).unwrap_err();
        assert!(matches!(poisoned, StorageError::Poisoned(_)), "{poisoned}");
        drop(store);

        let mut store = self::store(directory.path());
        let (_, offset) = store.begin(meta(), Some(content)).unwrap();
        assert_eq!(offset, 0, "nothing of it is believed");
    }
}
