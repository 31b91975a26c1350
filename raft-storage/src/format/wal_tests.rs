//! The scan against write-ahead files made here, record by record.

use proptest::prelude::*;

use super::writer::Wal;
use super::*;

fn scan_of(files: &[&Wal]) -> Scan {
    let (mut scan, mut gap) = (Scan::default(), false);
    for file in files {
        scan_file(&file.bytes, u64::from(file.number), &mut scan, &mut gap);
    }
    scan
}

/// Something that was durable may be out of replay's reach.
fn is_suspicious(scan: Scan) -> bool {
    scan.claimed > scan.reached
}

/// Five batches over several blocks; each knows the one before it durable.
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
        let cut = Wal { number: 7, bytes: whole.bytes[..len].to_vec() };
        assert!(!is_suspicious(scan_of(&[&cut])), "cut to {len}");
        // The rest of a reused file, or of one whose blocks reached the disk out of order.
        let mut overwritten = whole.bytes.clone();
        overwritten[len..].fill(0x5a);
        let overwritten = Wal { number: 7, bytes: overwritten };
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
        let scan = scan_of(&[&Wal { number: 7, bytes }]);
        // Padding at the end of a block is never read.
        let is_padding = scan == Scan { reached: 5, claimed: 4 };
        assert!(is_suspicious(scan) || is_padding, "flip at {at}: {scan:?}");
        assert!(!is_padding || BLOCK_BYTES - at % BLOCK_BYTES < REUSABLE_HEADER_BYTES, "{at}");
    }
}

#[test]
fn a_missing_file_in_the_middle_is_seen() {
    let first = Wal::new(3).batch(1, 0, 10).batch(2, 1, 10);
    let third = Wal::new(5).batch(4, 3, 10).batch(5, 4, 10);
    assert!(is_suspicious(scan_of(&[&first, &third])));
    let cut = Wal { number: 3, bytes: first.bytes[..first.bytes.len() - 1].to_vec() };
    let next = Wal::new(5).batch(3, 2, 10);
    assert!(is_suspicious(scan_of(&[&cut, &next])), "one that was cut");
    // Those in front may have left for a table.
    assert!(!is_suspicious(scan_of(&[&third])));
}

/// Its batches are not replayed, and a file after it would go unnoticed as the first one of the log.
#[test]
fn a_file_that_is_damaged_at_its_front_is_seen() {
    let mut first = (1..=3).fold(Wal::new(3), |wal, number| wal.batch(number, number - 1, 10));
    let next = Wal::new(5).batch(4, 3, 10).batch(5, 4, 10);
    first.bytes[20] ^= 0x01;
    assert!(is_suspicious(scan_of(&[&first, &next])), "batches 2 and 3 can be read out of order");
    first.bytes.fill(0);
    assert!(is_suspicious(scan_of(&[&first, &next])), "nothing can be read");
}

#[test]
fn an_earlier_life_of_a_reused_file_says_nothing() {
    let mut file = Wal::new(8).batch(20, 19, 100);
    let earlier = (1..=9).fold(Wal::new(4), |wal, n| wal.batch(n + 90, n + 89, 5_000));
    file.bytes.extend(&earlier.bytes[file.bytes.len()..]);
    assert_eq!(scan_of(&[&file]), Scan { reached: 20, claimed: 19 });
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
    assert_eq!(scan_of(&[&Wal { number: 7, bytes: noise }]), Scan::default());
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
