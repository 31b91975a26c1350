//! The scan of write-ahead files that the tests make record by record.

use proptest::prelude::*;

use super::writer::{Header, Wal, key_of};
use super::*;
use crate::format::draft::Draft;
use crate::format::records::{put_hard_state, put_run};
use raft_core::types::{Entry, HardState, Payload};

/// Scans files of the log with the first secret; asserts that no intruder is in them.
#[track_caller]
fn scan_of(files: &[&Wal]) -> Scan {
    let (mut scan, mut before) = (Scan::default(), Before::default());
    for file in files {
        let number = u64::from(file.number);
        let found = scan_file(&file.bytes, number, &key_of(1), &mut scan, &mut before);
        assert_eq!(found.intruder, None, "in file {}", file.number);
    }
    scan
}

/// Scans one file. Returns the scan, and where RocksDB would replay a record that is not the log's.
fn scan_one(file: &Wal) -> (Scan, Option<(usize, bool)>) {
    let (mut scan, mut before) = (Scan::default(), Before::default());
    let found = scan_file(&file.bytes, u64::from(file.number), &key_of(1), &mut scan, &mut before);
    (scan, found.intruder)
}

/// Returns true if a durable batch may be out of replay's reach.
fn is_suspicious(scan: Scan) -> bool {
    scan.claimed > scan.reached
}

/// Five batches over several blocks; each mark says that the batch before it was durable.
fn five() -> Wal {
    (1..=5).fold(Wal::new(7), |wal, number| wal.batch(number, number - 1, 20_000))
}

#[test]
fn a_whole_log_is_reached_to_its_end() {
    let scan = scan_of(&[&five()]);
    assert_eq!(scan, Scan { reached: 5, claimed: 4 });
    assert!(!is_suspicious(scan));
    let next = Wal::new(9).batch(6, 5, 10);
    assert_eq!(scan_of(&[&five(), &next]), Scan { reached: 6, claimed: 5 });
    assert_eq!(scan_of(&[]), Scan::default());
    assert_eq!(scan_of(&[&Wal::new(3)]), Scan::default());
}

#[test]
fn every_torn_tail_is_a_tail() {
    let whole = five();
    let before = (1..=4).fold(Wal::new(7), |wal, number| wal.batch(number, number - 1, 20_000));
    for len in (before.bytes.len()..whole.bytes.len()).step_by(97) {
        let cut = Wal::with_bytes(7, whole.bytes[..len].to_vec());
        assert!(!is_suspicious(scan_of(&[&cut])), "cut to {len}");
        // The rest of a reused file, or of one whose blocks reached the disk out of order.
        let mut overwritten = whole.bytes.clone();
        overwritten[len..].fill(0x5a);
        let overwritten = Wal::with_bytes(7, overwritten);
        assert!(!is_suspicious(scan_of(&[&overwritten])), "overwritten from {len}");
    }
}

#[test]
fn damage_before_an_acknowledged_batch_is_seen() {
    let whole = five();
    let through_three =
        (1..=3).fold(Wal::new(7), |wal, number| wal.batch(number, number - 1, 20_000));
    // The fifth batch says that the fourth was durable.
    for at in (0..through_three.bytes.len()).step_by(61) {
        let mut bytes = whole.bytes.clone();
        bytes[at] ^= 0x20;
        let scan = scan_of(&[&Wal::with_bytes(7, bytes)]);
        // Padding at the end of a block is never read.
        let is_padding = scan == Scan { reached: 5, claimed: 4 };
        assert!(is_suspicious(scan) || is_padding, "flip at {at}: {scan:?}");
        assert!(!is_padding || BLOCK_BYTES - at % BLOCK_BYTES < NUMBERED_HEADER_BYTES, "{at}");
    }
}

#[test]
fn a_missing_file_in_the_middle_is_seen() {
    let first = Wal::new(3).batch(1, 0, 10).batch(2, 1, 10);
    let third = Wal::new(5).batch(4, 3, 10).batch(5, 4, 10);
    assert!(is_suspicious(scan_of(&[&first, &third])));
    let cut = Wal::with_bytes(3, first.bytes[..first.bytes.len() - 1].to_vec());
    let next = Wal::new(5).batch(3, 2, 10);
    assert!(is_suspicious(scan_of(&[&cut, &next])), "one that was cut");
    // Batches before it may have been moved to a table.
    assert!(!is_suspicious(scan_of(&[&third])));
}

/// The batches of that file are not replayed, and the file after it would pass for the first one of
/// the log.
#[test]
fn a_file_that_is_damaged_at_its_front_is_seen() {
    let mut first = (1..=3).fold(Wal::new(3), |wal, number| wal.batch(number, number - 1, 10));
    let next = Wal::new(5).batch(4, 3, 10).batch(5, 4, 10);
    first.bytes[20] ^= 0x01;
    assert!(is_suspicious(scan_of(&[&first, &next])), "batches 2 and 3 can be read out of order");
    first.bytes.fill(0);
    assert!(is_suspicious(scan_of(&[&first, &next])), "nothing can be read");
}

/// RocksDB's own batch is accepted at the front of a file, with the sequence number that follows
/// the last batch before it.
#[test]
fn the_empty_batch_after_damage_is_no_intruder() {
    let mut torn = Wal::new(3).draft((1, 0), 40, &mut Draft::default(), 1);
    torn.bytes.extend([0x41; 100]);
    let after = |sequence| Wal::new(5).empty_batch(sequence).batch(2, 1, 10);
    // The mark is the one operation of the batch at 40.
    assert_eq!(scan_of(&[&torn, &after(41)]), Scan { reached: 2, claimed: 1 });
    assert_eq!(scan_of(&[&after(7)]), Scan { reached: 2, claimed: 1 }, "nothing is before it");
    // A crash that follows at once leaves the empty batch alone, and bytes of an earlier use.
    let mut alone = Wal::new(5).empty_batch(41);
    alone.bytes.extend([0x41; 100]);
    let last = Wal::new(7).empty_batch(41).batch(2, 1, 10);
    assert_eq!(scan_of(&[&torn, &alone, &last]), Scan { reached: 2, claimed: 1 });

    let intruder_of = |files: [&Wal; 2]| {
        let (mut scan, mut before) = (Scan::default(), Before::default());
        let scanned = files.map(|file| {
            scan_file(&file.bytes, u64::from(file.number), &key_of(1), &mut scan, &mut before)
        });
        scanned[1].intruder
    };
    assert_eq!(intruder_of([&torn, &after(42)]), Some((0, false)), "a sequence number is skipped");
    assert_eq!(intruder_of([&torn, &after(40)]), Some((0, false)), "one is used twice");
    let late = Wal::new(5).batch(2, 1, 10);
    let at = late.bytes.len();
    assert_eq!(intruder_of([&torn, &late.empty_batch(0)]), Some((at, false)), "not at the front");
    let mut legacy = Wal::new(5);
    legacy.header = Header::Legacy;
    assert_eq!(intruder_of([&torn, &legacy.empty_batch(41)]), Some((0, false)));
}

#[test]
fn an_earlier_life_of_a_reused_file_says_nothing() {
    let mut file = Wal::new(8).batch(20, 19, 100);
    let earlier = (1..=9).fold(Wal::new(4), |wal, n| wal.batch(n + 90, n + 89, 5_000));
    file.bytes.extend(&earlier.bytes[file.bytes.len()..]);
    assert_eq!(scan_of(&[&file]), Scan { reached: 20, claimed: 19 });
}

/// The forgery of a client: a hard state with a huge term, and an entry in place of a committed
/// one.
fn forged_draft() -> Draft {
    let mut draft = Draft::default();
    let hard_state = HardState { term: 1 << 40, ..HardState::INITIAL };
    put_hard_state(&mut draft, &hard_state);
    put_run(&mut draft, 1, &[Entry { index: 1, term: 1, payload: Payload::Noop }]);
    draft
}

/// A file of another log, made with the encoders of this crate: forged batches with forged marks
/// that claim a batch far ahead durable. `spill` is the size of the batch between them, in bytes.
fn forged(number: u32, header: Header, spill: usize) -> Wal {
    let mut wal = Wal::of(key_of(2), number);
    wal.header = header;
    let wal = wal.draft((21, 20), 1_000, &mut forged_draft(), 7).batch(900_000, 899_999, spill);
    wal.draft((22, 21), 1_003, &mut forged_draft(), 8)
}

/// S1. A client has chosen the previous content of a reused file: forged batches for the new number
/// of the file, at several distances after the newest record and exactly at its end, with either
/// header. The scan reaches none of them and believes no claim of theirs, and it reports where
/// RocksDB would replay one.
#[test]
fn forged_batches_behind_the_newest_record_say_nothing() {
    let ours = Wal::new(8).batch(20, 19, 100);
    let end = ours.bytes.len();
    for header in [Header::Numbered, Header::Legacy] {
        for distance in [0, 1, 6, 7, 11, 12, 500, 5_000] {
            // Within one block, wherever the forger gets them to.
            let mut file = Wal::with_bytes(8, ours.bytes.clone());
            file.bytes.resize(end + distance, 0x41);
            let forged = forged(8, header, 1_000);
            file.bytes.extend(&forged.bytes);
            let (scan, intruder) = scan_one(&file);
            assert_eq!(scan, Scan { reached: 20, claimed: 19 }, "{header:?} {distance}");
            let expected = (distance == 0).then_some((end, false));
            assert_eq!(intruder, expected, "{header:?} {distance}");
        }
    }
}

/// S1. Forged batches that cross blocks as RocksDB would write them there: they are made at their
/// place in the file.
#[test]
fn forged_batches_that_cross_blocks_say_nothing() {
    let ours = Wal::new(8).batch(20, 19, 100);
    let end = ours.bytes.len();
    for header in [Header::Numbered, Header::Legacy] {
        for distance in [0, 500, BLOCK_BYTES - end] {
            let mut forger = Wal::of(key_of(2), 8);
            forger.header = header;
            forger.bytes.clone_from(&ours.bytes);
            forger.bytes.resize(end + distance, 0x41);
            let file = forger.batch(900_000, 899_999, 40_000);
            let file = file.draft((22, 21), 1_003, &mut forged_draft(), 8);
            assert!(file.bytes.len() > end + distance + BLOCK_BYTES, "it crosses a block");
            let (scan, intruder) = scan_one(&file);
            assert_eq!(scan, Scan { reached: 20, claimed: 19 }, "{header:?} {distance}");
            // A record is judged once it is whole; a legacy header is none of the log's at once.
            let at = if header == Header::Numbered { BLOCK_BYTES } else { end };
            let expected = (distance == 0).then_some((at, false));
            assert_eq!(intruder, expected, "{header:?} {distance}");
        }
    }
}

/// S1. Each kind of forged fragment at the end of the newest record, as if the client had hit that
/// place.
#[test]
fn every_forged_fragment_is_an_intruder_where_replay_would_go_on() {
    let ours = Wal::new(8).batch(20, 19, 100);
    for header in [Header::Numbered, Header::Legacy] {
        for kind in 1..=4 {
            let mut forged = Wal::of(key_of(2), 8);
            forged.header = header;
            forged.fragment(kind, b"anything");
            let bytes = [&ours.bytes[..], &forged.bytes].concat();
            let (scan, intruder) = scan_one(&Wal::with_bytes(8, bytes));
            assert_eq!(scan, Scan { reached: 20, claimed: 19 });
            // RocksDB stops by itself at a record without its beginning or end.
            let stops = header == Header::Numbered && kind != 1;
            assert_eq!(intruder.is_none(), stops, "{header:?} {kind}");
        }
    }
    // A row of fillers: RocksDB skips records of kinds that it does not know, from 128 on.
    let mut sled = Wal::of(key_of(2), 8);
    sled.header = Header::Legacy;
    for _ in 0..10 {
        sled.fragment(200, b"");
    }
    let bytes = [&ours.bytes[..], &sled.bytes].concat();
    assert_eq!(scan_one(&Wal::with_bytes(8, bytes)).1, Some((ours.bytes.len(), false)));
}

/// S1. The beginning of a batch of this log, torn off at the end of a block and followed by a
/// forged rest.
#[test]
fn a_forged_rest_of_a_torn_batch_is_an_intruder() {
    let before = Wal::new(8).batch(20, 19, 100);
    let whole = Wal::new(8).batch(20, 19, 100).batch(21, 20, 40_000);
    let torn = &whole.bytes[..BLOCK_BYTES];
    assert!(torn.len() > before.bytes.len() + 100);
    let mut file = Wal::of(key_of(1), 8);
    file.bytes = torn.to_vec();
    file.fragment(4, &forged(8, Header::Numbered, 10).bytes);
    assert_eq!(scan_one(&file), (Scan { reached: 20, claimed: 20 }, Some((BLOCK_BYTES, false))));
}

/// Zeros in place of a batch: RocksDB skips them and goes on with the next block.
#[test]
fn a_batch_behind_a_hole_is_not_the_next_one() {
    let ours = Wal::new(8).batch(20, 19, 100);
    let mut file = Wal::new(8).batch(20, 19, 100).batch(21, 20, 40_000).batch(22, 20, 10);
    let end = ours.bytes.len();
    let behind = Wal::new(8).batch(20, 19, 100).batch(21, 20, 40_000).bytes.len();
    file.bytes[end..behind].fill(0);
    // As a rule the next block does not begin with a record.
    assert_eq!(scan_one(&file), (Scan { reached: 20, claimed: 20 }, None));
    let mut file = Wal::with_bytes(8, ours.bytes.clone());
    file.bytes.resize(BLOCK_BYTES, 0);
    let file = file.batch(22, 20, 10);
    let (scan, intruder) = scan_one(&file);
    assert_eq!(scan, Scan { reached: 20, claimed: 20 });
    assert_eq!(intruder, Some((BLOCK_BYTES, true)));
}

/// S1. An operator may store the log's own files in it as values. The mask makes them arbitrary
/// bytes. Without it, only the earlier numbers of the files would keep these records out, and the
/// MAC would not.
#[test]
fn forged_claims_are_not_believed_in_any_place() {
    let forged = forged(8, Header::Numbered, 3_000);
    for len in (0..forged.bytes.len()).step_by(7) {
        let file = Wal::with_bytes(8, forged.bytes[len..].to_vec());
        assert_eq!(scan_one(&file).0, Scan::default(), "from {len}");
    }
    let genuine = Wal::new(8).batch(900_000, 899_999, 10);
    let mut file = Wal::with_bytes(8, vec![0x41; 100]);
    file.bytes.extend(&genuine.bytes);
    assert_eq!(scan_one(&file).0.claimed, 899_999, "one of ours is believed there");
}

/// A batch whose mark is right and whose operations are not those that the mark was made for.
#[test]
fn a_mark_vouches_for_the_operations_behind_it() {
    let mut draft = forged_draft();
    let sound = Wal::new(8).draft((1, 0), 1, &mut draft, 3);
    assert_eq!(scan_one(&sound), (Scan { reached: 1, claimed: 0 }, None));
    let mark = BatchMark { number: 1, durable_through: 0, content: 17 };
    let other = Wal::new(8).marked(mark, b"other operations");
    assert_eq!(scan_one(&other), (Scan::default(), Some((0, false))));
}

#[test]
fn warming_repeats_a_number_and_skips_none() {
    let log = Wal::new(2).batch(8, 7, 10).batch(8, 8, 200_000).batch(9, 8, 10);
    assert_eq!(scan_of(&[&log]), Scan { reached: 9, claimed: 8 });
}

#[test]
fn arbitrary_bytes_are_survived() {
    let mut state = 1u64;
    let noise: Vec<u8> = (0..100_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    assert_eq!(scan_of(&[&Wal::with_bytes(7, noise)]), Scan::default());
}

proptest! {
    #[test]
    fn what_is_written_is_reached(
        files in proptest::collection::vec(
            proptest::collection::vec((0u64..4, 0usize..50_000), 1..6), 1..4,
        ),
    ) {
        let (mut expected, mut written) = (Scan::default(), Vec::new());
        for (file, batches) in (7..).step_by(2).zip(files) {
            written.push(batches.into_iter().fold(Wal::new(file), |wal, (behind, filler)| {
                let durable_through = expected.reached.saturating_sub(behind);
                expected.reached += 1;
                expected.claimed = expected.claimed.max(durable_through);
                wal.batch(expected.reached, durable_through, filler)
            }));
        }
        prop_assert_eq!(scan_of(&written.iter().collect::<Vec<_>>()), expected);
    }
}
