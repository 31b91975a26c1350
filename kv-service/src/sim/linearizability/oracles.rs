//! Violations that need no search. Every finding is a proof; the absence of findings proves
//! nothing.

use super::chains::{Chains, WriterId};
use super::history::{Call, History, Request};
use super::verdict::{Rule, Violation};
use crate::protocol::operation::Operation;

/// A call, and what it implies about a number that only grows.
struct Point<'a> {
    call: &'a Call,
    /// The number was at least this when the call returned.
    reached: u64,
    claim: Claim,
}

/// The condition on numbers that other calls reached before this call began.
enum Claim {
    Nothing,
    AtMost(u64),
    Below(u64),
}

/// Finds a call that contradicts a number that was reached before it began.
fn check_growth(mut points: Vec<Point>, rule: Rule, story: &str) -> Result<(), Violation> {
    points.sort_by_key(|point| point.call.called_at);
    let mut by_return: Vec<usize> = (0..points.len()).collect();
    by_return.sort_by_key(|at| points[*at].call.returned_at);
    let mut returned = by_return.into_iter().peekable();
    let mut floor: Option<&Point> = None;
    for point in &points {
        while let Some(at) =
            returned.next_if(|at| points[*at].call.returned_at < point.call.called_at)
        {
            if floor.is_none_or(|floor| floor.reached < points[at].reached) {
                floor = Some(&points[at]);
            }
        }
        let Some(floor) = floor else { continue };
        let holds = match point.claim {
            Claim::Nothing => true,
            Claim::AtMost(number) => floor.reached <= number,
            Claim::Below(number) => floor.reached < number,
        };
        if !holds {
            return Err(Violation::new(rule, story, [floor.call, point.call]));
        }
    }
    Ok(())
}

/// Revisions of the whole store: each belongs to one write, and they grow with time.
pub(super) fn check_revisions(history: &History) -> Result<(), Violation> {
    let mut owners: Vec<(u64, &Call)> =
        history.calls().iter().filter_map(|call| Some((call.written()?.revision?, call))).collect();
    owners.sort_by_key(|(revision, _)| *revision);
    if let Some(pair) = owners.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let story = "two writes were told the same revision";
        return Err(Violation::new(Rule::Order, story, [pair[0].1, pair[1].1]));
    }
    let points = history.calls().iter().filter_map(|call| {
        if let Some(revision) = call.written().and_then(|written| written.revision) {
            return Some(Point { call, reached: revision, claim: Claim::Below(revision) });
        }
        let seen = call.seen()?;
        let reached = seen.served_at.max(seen.modify_revision)?;
        let claim = seen.served_at.map_or(Claim::Nothing, Claim::AtMost);
        Some(Point { call, reached, claim })
    });
    check_growth(points.collect(), Rule::Stale, "a revision is older than one that was known")
}

/// `calls` are those of one key.
pub(super) fn check_key(calls: &[&Call], chains: Option<&Chains>) -> Result<(), Violation> {
    check_changes(calls)?;
    check_versions(calls)?;
    if let Some(chains) = chains {
        check_progress(calls, chains)?;
        check_breaks(calls, chains)?;
        check_numbers(calls, chains)?;
    }
    Ok(())
}

/// A read observes the last change, never an earlier one.
fn check_changes(calls: &[&Call]) -> Result<(), Violation> {
    let points = calls.iter().filter_map(|call| {
        if let Some(modified) = call.seen().and_then(|seen| seen.modify_revision) {
            return Some(Point { call, reached: modified, claim: Claim::AtMost(modified) });
        }
        let revision = call.written()?.revision.filter(|_| call.surely_changed())?;
        Some(Point { call, reached: revision, claim: Claim::Nothing })
    });
    check_growth(points.collect(), Rule::Stale, "it did not see the last change")
}

/// Versions grow as long as the key is not deleted.
fn check_versions(calls: &[&Call]) -> Result<(), Violation> {
    let deletes = calls.iter().any(|call| {
        matches!(call.request, Request::Write(Operation::Delete { .. }))
            && (call.is_ok() || call.is_open_write())
    });
    if deletes {
        return Ok(());
    }
    let points = calls.iter().filter_map(|call| {
        if let Some(seen) = call.seen() {
            // A key that is missing has version 0, reported or not.
            let version = if seen.value.is_some() { seen.version? } else { 0 };
            return Some(Point { call, reached: version, claim: Claim::AtMost(version) });
        }
        let version = call.written()?.version?;
        let claim = match call.surely_changed() {
            true => Claim::Below(version),
            false => Claim::AtMost(version),
        };
        Some(Point { call, reached: version, claim })
    });
    check_growth(points.collect(), Rule::Stale, "a version is older than one that was known")
}

/// An observed value never goes back to what it was before a known append.
fn check_progress(calls: &[&Call], chains: &Chains) -> Result<(), Violation> {
    let mut of_chain: Vec<Vec<Point>> = Vec::new();
    of_chain.resize_with(chains.writers.len(), Vec::new);
    for (at, link) in chains.links_of_calls().into_iter().enumerate() {
        let Some(link) = link.filter(|_| calls[at].is_ok()) else { continue };
        let depth = link.depth as u64;
        // A swap expected one value and made another; its link is that of the value it made.
        of_chain[link.root].push(Point {
            call: calls[at],
            reached: depth,
            claim: Claim::AtMost(depth),
        });
    }
    let story = "it saw the value as it was before an append that was known";
    of_chain.into_iter().try_for_each(|points| check_growth(points, Rule::Stale, story))
}

/// A broken chain cannot be observed again. It is broken by a put, a delete or a swap that began
/// after the chain did, and by an append that began then and is part of no observed value.
fn check_breaks(calls: &[&Call], chains: &Chains) -> Result<(), Violation> {
    let mut linked = vec![false; calls.len()];
    chains.linked.iter().for_each(|id| linked[chains.writers[*id].at] = true);
    let breakers: Vec<usize> = (0..calls.len())
        .filter(|at| match &calls[*at].request {
            Request::Write(Operation::Append { .. }) => calls[*at].is_ok() && !linked[*at],
            Request::Write(Operation::Delete { .. }) => calls[*at].is_ok(),
            _ => calls[*at].surely_changed(),
        })
        .collect();
    // For each breaker, the one that returns first among the breakers that begin no earlier. The
    // calls are sorted by the time at which they began.
    let mut first_of_rest: Vec<usize> = breakers.clone();
    for at in (1..breakers.len()).rev() {
        let (one, rest) = (first_of_rest[at - 1], first_of_rest[at]);
        if calls[rest].returned_at < calls[one].returned_at {
            first_of_rest[at - 1] = rest;
        }
    }
    let resets = calls.iter().any(|call| {
        matches!(&call.request, Request::Write(operation) if !matches!(operation, Operation::Append { .. }))
            && (call.is_ok() || call.is_open_write())
    });
    for (at, call) in calls.iter().enumerate().filter(|(_, call)| call.is_ok()) {
        let Some(id) = chains.seen[at] else { continue };
        let Some(began) = began_at(chains, id, resets) else { continue };
        let from = breakers.partition_point(|at| calls[*at].called_at <= began);
        let Some(breaker) = first_of_rest.get(from).map(|at| calls[*at]) else { continue };
        if breaker.returned_at < call.called_at {
            let root = chains.writers[chains.writers[id].link.expect("it was seen").root].call;
            let append = matches!(breaker.request, Request::Write(Operation::Append { .. }));
            let (rule, story) = match append {
                true => (Rule::Lost, "an acknowledged append is missing"),
                false => (Rule::Stale, "it saw a value that had been replaced"),
            };
            return Err(Violation::new(rule, story, [root, breaker, call]));
        }
    }
    Ok(())
}

/// A time at which the chain of this value surely existed already; `None` if none is known. A key
/// that receives only appends has one chain, which exists from the start.
fn began_at(chains: &Chains, id: WriterId, resets: bool) -> Option<u64> {
    if !resets {
        return Some(0);
    }
    let root = chains.writers[id].link.expect("it was seen").root;
    let root = chains.writers[root].call;
    root.is_ok().then_some(root.returned_at)
}

/// A number, and a call that reported it.
type Told<'a> = Option<(u64, &'a Call)>;

fn tell<'a>(told: &mut Told<'a>, number: Option<u64>, call: &'a Call) -> Result<(), Violation> {
    let Some(number) = number else { return Ok(()) };
    let (known, other) = *told.get_or_insert((number, call));
    if known == number {
        return Ok(());
    }
    let story = "one value has two versions or revisions";
    Err(Violation::new(Rule::Order, story, [other, call]))
}

/// One value has one version and one revision, and its successor has the next version.
fn check_numbers(calls: &[&Call], chains: &Chains) -> Result<(), Violation> {
    let mut versions: Vec<Told> = vec![None; chains.writers.len()];
    let mut revisions: Vec<Told> = vec![None; chains.writers.len()];
    for id in &chains.linked {
        let call = chains.writers[*id].call;
        let Some(written) = call.written() else { continue };
        tell(&mut versions[*id], written.version, call)?;
        tell(&mut revisions[*id], written.revision, call)?;
    }
    for (at, call) in calls.iter().enumerate() {
        let (Some(id), Some(seen)) = (chains.seen[at], call.seen()) else { continue };
        tell(&mut versions[id], seen.version, call)?;
        tell(&mut revisions[id], seen.modify_revision, call)?;
    }
    for id in &chains.linked {
        let Some(parent) = chains.writers[*id].link.and_then(|link| link.parent) else { continue };
        let (Some(before), Some(after)) = (versions[parent], versions[*id]) else { continue };
        if after.0 != before.0 + 1 {
            let story = "an append did not make the next version";
            return Err(Violation::new(Rule::Order, story, [before.1, after.1]));
        }
    }
    Ok(())
}
