use super::*;
use crate::types::Payload;

fn entry(index: Index, term: Term) -> Entry {
    Entry { index, term, payload: Payload::Noop }
}

/// A log of these terms from index 1, nothing committed, all durable.
fn log_of(terms: &[Term]) -> Log {
    let entries = terms.iter().zip(1..).map(|(term, index)| entry(index, *term)).collect();
    Log::new(Position::ZERO, Configuration::of_voters([1, 2, 3]), entries, 0, 0, 0)
}

fn terms_of(log: &Log) -> Vec<Term> {
    log.entries.iter().map(|entry| entry.term).collect()
}

/// A7: from the first conflict on, and only then, entries are replaced.
#[test]
fn merge_truncates_only_from_the_first_conflict() {
    type Case<'a> = (&'a [Term], Position, &'a [Term], &'a [Term]);
    let cases: &[Case<'_>] = &[
        (&[1, 2], Position::new(2, 2), &[3], &[1, 2, 3]),
        (&[1, 2], Position::new(1, 1), &[3, 4], &[1, 3, 4]),
        (&[1, 2, 2, 2], Position::new(1, 1), &[2], &[1, 2, 2, 2]),
        (&[1, 2, 2, 2], Position::ZERO, &[3], &[3]),
        (&[], Position::ZERO, &[1], &[1]),
    ];
    for (before, previous, sent, after) in cases {
        let mut log = log_of(before);
        let sent = sent.iter().zip(previous.index + 1..).map(|(term, index)| entry(index, *term));
        log.merge(*previous, sent.collect()).expect("the previous position matches");
        log.check();
        assert_eq!(terms_of(&log), *after, "{before:?} {previous}");
    }
}

/// A6, A11: the hint skips a whole term that cannot match.
#[test]
fn a_conflict_names_the_last_possible_match() {
    let cases: &[(&[Term], Position, Position)] = &[
        (&[1, 1, 1], Position::new(3, 8), Position::new(1, 3)),
        (&[1, 1, 2, 2, 2], Position::new(1, 4), Position::new(1, 2)),
        (&[3, 3, 3], Position::new(2, 3), Position::ZERO),
        (&[1, 4, 4], Position::new(5, 3), Position::new(4, 2)),
    ];
    for (terms, previous, hint) in cases {
        let mut log = log_of(terms);
        let refusal = log.merge(*previous, vec![]).expect_err("the previous position is missing");
        assert_eq!(refusal, AppendRefusal::Conflict(*hint), "{terms:?} {previous}");
        assert_eq!(terms_of(&log), *terms, "a refusal touches nothing");
    }
}

/// D2: the same indexes overwritten by terms 1, 2 and 1 again while the writes are under way.
#[test]
fn an_old_write_does_not_make_newer_entries_durable() {
    let mut log = log_of(&[1]);
    log.merge(Position::new(1, 1), vec![entry(2, 1), entry(3, 1)]).expect("matches");
    assert_eq!(log.take_unpersisted(), (None, vec![entry(2, 1), entry(3, 1)]));
    log.on_persist_started(1);
    log.merge(Position::new(1, 1), vec![entry(2, 2)]).expect("matches");
    assert_eq!(log.take_unpersisted(), (Some(2), vec![entry(2, 2)]));
    log.on_persist_started(2);
    // A leader of term 3 that holds the entries of term 1.
    log.merge(Position::new(1, 1), vec![entry(2, 1), entry(3, 1)]).expect("matches");
    assert_eq!(log.take_unpersisted(), (Some(2), vec![entry(2, 1), entry(3, 1)]));
    log.on_persist_started(3);
    log.on_persisted(1);
    assert_eq!(log.durable_index(), 1, "batch 2 will still overwrite what batch 1 wrote");
    log.on_persisted(2);
    assert_eq!(log.durable_index(), 1);
    log.on_persisted(3);
    assert_eq!(log.durable_index(), 3);
    log.check();
}

#[test]
fn what_was_never_given_to_storage_needs_no_truncation() {
    let mut log = log_of(&[1]);
    log.merge(Position::new(1, 1), vec![entry(2, 1)]).expect("matches");
    log.merge(Position::new(1, 1), vec![entry(2, 2)]).expect("matches");
    assert_eq!(log.take_unpersisted(), (None, vec![entry(2, 2)]));
}

#[test]
fn committed_entries_are_never_replaced() {
    let mut log = log_of(&[1, 1, 1]);
    log.commit_to(2);
    let refusal = log.merge(Position::new(1, 1), vec![entry(2, 2)]);
    assert_eq!(refusal, Err(AppendRefusal::ConflictsWithCommitted(2)));
    assert_eq!(terms_of(&log), [1, 1, 1]);
}

#[test]
fn apply_is_paged_by_credit_and_waits_for_the_disk() {
    let mut log = log_of(&[1, 1, 1, 1]);
    log.append([entry(5, 1)]);
    log.commit_to(5);
    let size_bytes = entry(1, 1).size_bytes();
    assert_eq!(log.take_committed(2 * size_bytes).len(), 2);
    assert!(log.take_committed(2 * size_bytes).is_empty(), "the credit is used up");
    log.on_applied(1);
    assert_eq!(log.take_committed(2 * size_bytes), [entry(3, 1)]);
    log.on_applied(3);
    assert_eq!(log.take_committed(u64::MAX), [entry(4, 1)], "5 is not durable");
    log.take_unpersisted();
    log.on_persist_started(1);
    log.on_persisted(1);
    assert_eq!(log.take_committed(u64::MAX), [entry(5, 1)]);
    log.check();
}

/// A22: compaction keeps the term at the start, and knows nothing before it.
#[test]
fn compaction_moves_the_start() {
    let mut log = log_of(&[1, 2, 2, 3]);
    log.commit_to(3);
    assert_eq!(log.take_committed(u64::MAX).len(), 3);
    log.on_applied(3);
    log.on_state_durable(3);
    assert_eq!(log.compact(2), Some(Position::new(2, 2)));
    assert_eq!(log.compact(2), None);
    assert_eq!((log.term_at(1), log.term_at(2), log.term_at(4)), (None, Some(2), Some(3)));
    assert_eq!(log.last_possible_match(1, 9), Position::new(2, 2));
    log.check();
    // The part of an append that lies before the start is skipped.
    let merged = log.merge(Position::new(1, 1), vec![entry(2, 2), entry(3, 2), entry(4, 3)]);
    assert_eq!(merged, Ok((4, None)));
}

#[test]
fn a_snapshot_replaces_a_log_that_does_not_contain_it() {
    let mut log = log_of(&[1, 1]);
    log.append([entry(3, 1)]);
    log.take_unpersisted();
    log.on_persist_started(1);
    log.replace_by_snapshot(Position::new(4, 9), Configuration::of_voters([1, 2, 3]));
    log.on_persist_started(2);
    log.check();
    log.on_persisted(1);
    assert_eq!(log.durable_index(), 0, "what batch 1 wrote is no longer in the log");
    log.on_persisted(2);
    assert_eq!(log.durable_index(), 9);
    assert!(log.take_committed(u64::MAX).is_empty());
    log.on_restored(9);
    log.check();
    assert_eq!(log.last_position(), Position::new(4, 9));
}

/// A23: where two logs could agree at or before an index, by the last term that the other one has.
#[test]
fn a23_the_last_possible_match() {
    let cases: &[(&[Term], Index, Term, Position)] = &[
        (&[2, 2, 5, 5, 5], 6, 5, Position::new(5, 5)),
        (&[2, 2, 5, 5, 5], 4, 5, Position::new(5, 4)),
        (&[2, 2, 5, 5, 5], 5, 4, Position::new(2, 2)),
        (&[2, 2, 5, 5, 5], 5, 3, Position::new(2, 2)),
        (&[2, 2, 5, 5, 5], 1, 9, Position::new(2, 1)),
        (&[2, 2, 5, 5, 5], 5, 1, Position::ZERO),
        (&[2, 2, 5, 5, 5], 0, 9, Position::ZERO),
        (&[], 7, 7, Position::ZERO),
    ];
    for (terms, index_max, term_max, expected) in cases {
        let found = log_of(terms).last_possible_match(*index_max, *term_max);
        assert_eq!(found, *expected, "{terms:?} {index_max} {term_max}");
    }
}

/// A23, 3.6.1: which log is more up to date: the later last term, then the longer log.
#[test]
fn a23_what_is_up_to_date() {
    let cases: &[(&[Term], Position, bool)] = &[
        (&[1, 2, 3], Position::new(4, 2), true),
        (&[1, 2, 3], Position::new(4, 9), true),
        (&[1, 2, 3], Position::new(3, 4), true),
        (&[1, 2, 3], Position::new(3, 3), true),
        (&[1, 2, 3], Position::new(3, 2), false),
        (&[1, 2, 3], Position::new(2, 9), false),
        (&[], Position::ZERO, true),
    ];
    for (terms, last, expected) in cases {
        assert_eq!(*last >= log_of(terms).last_position(), *expected, "{terms:?} {last}");
    }
}

/// D7: a tail is replaced before, while and after it is handed to the disk. Checks what the next
/// batch must truncate and write, and what is durable once all batches are written.
#[test]
fn d7_a_tail_is_replaced() {
    #[derive(Debug, PartialEq)]
    enum Handed {
        Nothing,
        Writing,
        Written,
    }
    use Handed::{Nothing, Writing, Written};
    type Case<'a> = (Handed, Index, &'a [Term], Option<Index>, &'a [Term], Index);
    // A log of `[1, 1 | 1, 1]`, of which the second half is new; an append of these terms after an
    // index.
    let cases: &[Case<'_>] = &[
        (Nothing, 4, &[2], None, &[1, 1, 2], 2),
        (Nothing, 3, &[2], None, &[1, 2], 2),
        (Nothing, 2, &[2], None, &[2], 2),
        (Nothing, 1, &[2, 2], Some(2), &[2, 2], 1),
        (Writing, 4, &[2], None, &[2], 4),
        (Writing, 3, &[2], Some(4), &[2], 3),
        (Writing, 2, &[2, 2, 2], Some(3), &[2, 2, 2], 2),
        (Writing, 1, &[2], Some(2), &[2], 1),
        (Writing, 2, &[1], None, &[], 4),
        (Written, 4, &[2], None, &[2], 4),
        (Written, 3, &[2], Some(4), &[2], 3),
        (Written, 0, &[2], Some(1), &[2], 0),
    ];
    for (handed, after, sent, truncate_from, written, durable_index) in cases {
        let what = format!("{handed:?} {after} {sent:?}");
        let mut log = log_of(&[1, 1]);
        log.append([entry(3, 1), entry(4, 1)]);
        if *handed != Nothing {
            log.take_unpersisted();
            log.on_persist_started(1);
        }
        if *handed == Written {
            log.on_persisted(1);
        }
        let previous = Position::new(log.term_at(*after).expect("within the log"), *after);
        let sent: Vec<Entry> =
            sent.iter().zip(after + 1..).map(|(term, index)| entry(index, *term)).collect();
        log.merge(previous, sent).expect("the previous position matches");
        let (truncates, entries) = log.take_unpersisted();
        let terms: Vec<Term> = entries.iter().map(|entry| entry.term).collect();
        assert_eq!((truncates, &terms[..]), (*truncate_from, *written), "{what}");
        if *handed == Writing {
            log.on_persisted(1);
        }
        assert_eq!(log.durable_index(), *durable_index, "{what}");
        log.on_persist_started(2);
        log.on_persisted(2);
        assert_eq!(log.durable_index(), log.last_index(), "{what}");
        log.check();
    }
}

#[test]
fn what_is_left_behind_fits_the_budget() {
    let log = log_of(&[1; 5]);
    let each = entry(1, 1).size_bytes();
    for (bytes, index) in
        [(0, 5), (each - 1, 5), (each, 4), (2 * each, 3), (3 * each - 1, 3), (5 * each, 0)]
    {
        assert_eq!(log.index_leaving_bytes(bytes), index, "{bytes} bytes of {each} each");
    }
    assert_eq!(log.index_leaving_bytes(u64::MAX), 0);
}
