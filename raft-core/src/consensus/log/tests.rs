use super::*;
use crate::types::Payload;

fn entry(index: Index, term: Term) -> Entry {
    Entry { index, term, payload: Payload::Noop }
}

/// A log of these terms from index 1, nothing committed, all durable.
fn log_of(terms: &[Term]) -> Log {
    let entries = terms.iter().zip(1..).map(|(term, index)| entry(index, *term)).collect();
    Log::new(Position::ZERO, entries, 0, 0, 0)
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
    // An append from before the start is taken from where this log begins.
    let merged = log.merge(Position::new(1, 1), vec![entry(2, 2), entry(3, 2), entry(4, 3)]);
    assert_eq!(merged, Ok((4, None)));
}

#[test]
fn a_snapshot_replaces_a_log_that_does_not_contain_it() {
    let mut log = log_of(&[1, 1]);
    log.append([entry(3, 1)]);
    log.take_unpersisted();
    log.on_persist_started(1);
    log.replace_by_snapshot(Position::new(4, 9));
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
