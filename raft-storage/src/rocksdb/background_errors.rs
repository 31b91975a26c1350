//! Errors of the work that RocksDB does in the background.

use rocksdb::{InfoLogger, LogLevel, Options};

/// Passes every error that an instance logs to `failed`, on a thread of RocksDB.
///
/// RocksDB writes and merges tables in the background. It repeats work that failed where it
/// believes that it may, and then no call fails; but a disk that failed once must not be trusted.
/// RocksDB logs an error when it could not write, read or remove a file. Only the log has the
/// reason.
pub fn listen(options: &mut Options, failed: impl Fn(&str) + Send + Sync + 'static) {
    let heard = move |level, text: &str| {
        let text = text.trim_end();
        match level {
            // This warning comes first and has the reason; the errors after it may be mere
            // consequences.
            LogLevel::Warn if text.contains("Background IO error") => failed(text),
            // Among others one for each table: nothing on which an operator has to act.
            LogLevel::Warn => tracing::debug!("RocksDB: {text}"),
            LogLevel::Error | LogLevel::Fatal => {
                tracing::error!("RocksDB: {text}");
                failed(text);
            }
            // Mostly RocksDB's settings, which it logs at every level.
            LogLevel::Debug | LogLevel::Info | LogLevel::Header => {}
        }
    };
    options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, heard));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use raft_core::storage::{Storage, StorageError};
    use raft_core::types::{Batch, Entry, Payload};
    use tempfile::TempDir;
    use tokio::time::Instant;

    use crate::DataDir;
    use crate::rocksdb::{RocksOptions, RocksStorage};

    fn open(path: &Path) -> RocksStorage {
        let data_dir = DataDir::open(path, "tests", 1).unwrap();
        // `/dev/full` supports no direct writes.
        let options = RocksOptions { direct_tables: false, ..RocksOptions::small() };
        RocksStorage::open(Arc::new(data_dir), options).unwrap()
    }

    fn entry(index: u64) -> Entry {
        let payload = Payload::Command(Bytes::from(vec![index as u8; 100_000]));
        Entry { index, term: 1, payload }
    }

    fn batch(index: u64) -> Batch {
        Batch { entries: vec![entry(index)], ..Batch::default() }
    }

    #[tokio::test]
    async fn a_log_one_of_whose_tables_found_no_room_writes_nothing_more() {
        let directory = TempDir::new().unwrap();
        let storage = open(directory.path());
        storage.load().await.unwrap();
        // The first table, and every second one after it, has no room: it is a link to `/dev/full`.
        let tables = directory.path().join("log");
        let links: Vec<_> = (0..50).map(|n| tables.join(format!("{:06}.sst", 2 * n + 1))).collect();
        for link in &links {
            std::os::unix::fs::symlink("/dev/full", link).unwrap();
        }
        // The last of these batches fills the buffer, and a table is begun.
        let entries = 1..=11;
        for index in entries.clone() {
            storage.persist(batch(index)).await.unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while !links.iter().any(|link| !link.is_symlink()) {
            assert!(Instant::now() < deadline, "no table was tried");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // RocksDB has tried again, and has recovered.
        while storage.log.run(|log| log.write_filler(&[])).await.is_err() {
            assert!(Instant::now() < deadline, "RocksDB did not recover");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let error = storage.persist(batch(12)).await.unwrap_err();
        let StorageError::Poisoned(reason) = error else { panic!("{error:?}") };
        assert!(reason.contains("No space left"), "{reason}");
        drop(storage);

        for link in links.iter().filter(|link| link.is_symlink()) {
            std::fs::remove_file(link).unwrap();
        }
        let storage = open(directory.path());
        let expected: Vec<Entry> = entries.map(entry).collect();
        assert!(storage.load().await.unwrap().entries == expected, "all that was acknowledged");
    }
}
