//! Records in a persistent ordered map: a view is a clone in O(1) that shares what has not changed.
//!
//! Dropping the last clone of a large map takes up to a second, so that is done on a thread of its
//! own. There are few: one for each view that ends, and for each restore.

use std::ops::Bound;

use bytes::Bytes;
use imbl::OrdMap;
use raft_core::state_machine::{MachineError, MachineResult};

use super::{AppliedMeta, Engine, ScanLimits, Versions, View, fill_page, owned, page_bytes};
use crate::protocol::operation::{Record, ScanPage};
use crate::state::sessions::Sessions;

/// Maps smaller than this are dropped on the spot.
const DROP_ASIDE_RECORDS: usize = 10_000;

type Map = OrdMap<Bytes, Record>;

#[derive(Default)]
pub(in crate::state) struct MemoryEngine {
    map: Map,
    restoring: Option<Map>,
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> MachineResult<Option<Record>> {
        Ok(self.map.get(key).cloned())
    }

    fn versions(&self, key: &[u8]) -> MachineResult<Option<Versions>> {
        Ok(self.map.get(key).map(Versions::of))
    }

    fn put(&mut self, key: Bytes, record: Record) {
        let record = owned(&record);
        match self.map.get_mut(&key) {
            Some(place) => *place = record,
            None => {
                self.map.insert(Bytes::copy_from_slice(&key), record);
            }
        }
    }

    fn delete(&mut self, key: Bytes) {
        self.map.remove(&key);
    }

    fn commit(&mut self, _: AppliedMeta, _: &Sessions) -> MachineResult<()> {
        Ok(())
    }

    fn scan(&self, start: &[u8], end: &[u8], limits: &ScanLimits) -> MachineResult<ScanPage> {
        let run = self
            .map
            .range::<_, [u8]>((Bound::Included(start), Bound::Unbounded))
            .take_while(|(key, _)| end.is_empty() || key.as_ref() < end)
            .map(|(key, record)| Ok((key.clone(), Some(record.clone()))));
        fill_page(run, limits)
    }

    fn view(&self) -> MachineResult<Box<dyn View>> {
        Ok(Box::new(MemoryView { map: self.map.clone(), after: None }))
    }

    fn begin_restore(&mut self) -> MachineResult<()> {
        self.restoring = Some(Map::new());
        Ok(())
    }

    fn restore_record(&mut self, key: Bytes, record: Record) -> MachineResult<()> {
        let map = self.restoring.as_mut().ok_or_else(no_restore)?;
        map.insert(Bytes::copy_from_slice(&key), owned(&record));
        Ok(())
    }

    fn finish_restore(&mut self, _: AppliedMeta, _: &Sessions) -> MachineResult<()> {
        let map = self.restoring.take().ok_or_else(no_restore)?;
        drop_aside(std::mem::replace(&mut self.map, map));
        Ok(())
    }

    fn can_write_inline(&self, _: &[u8]) -> bool {
        true
    }
}

fn no_restore() -> MachineError {
    MachineError("no restore is under way".into())
}

struct MemoryView {
    map: Map,
    /// The last key that was handed out.
    after: Option<Bytes>,
}

impl View for MemoryView {
    fn next_page(&mut self, bytes_max: usize) -> MachineResult<Vec<(Bytes, Record)>> {
        let start = match &self.after {
            Some(key) => Bound::Excluded(&key[..]),
            None => Bound::Unbounded,
        };
        let mut page = Vec::new();
        let mut size_bytes = 0;
        for (key, record) in self.map.range::<_, [u8]>((start, Bound::Unbounded)) {
            if size_bytes >= bytes_max && !page.is_empty() {
                break;
            }
            size_bytes += page_bytes(key, record);
            page.push((key.clone(), record.clone()));
        }
        if let Some((key, _)) = page.last() {
            self.after = Some(key.clone());
        }
        Ok(page)
    }
}

impl Drop for MemoryView {
    fn drop(&mut self) {
        drop_aside(std::mem::take(&mut self.map));
    }
}

fn drop_aside(map: Map) {
    if map.len() >= DROP_ASIDE_RECORDS {
        let thread = std::thread::Builder::new().name("kv-drop".into());
        // Without a thread the map is dropped here, which is slow and correct.
        let _ = thread.spawn(move || drop(map));
    }
}
