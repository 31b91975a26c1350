//! The list of scenarios that the core is tested against, so that none is forgotten.
//!
//! The scenarios were gathered from the papers and from the test suites of other implementations,
//! and are numbered by subject: E elections, Q pre-vote and check quorum, A replication and commit,
//! F flow control, S snapshots, I reads, X transfers, D durability and the contract of `Ready`. C
//! are the findings of a review of the core. Membership has a list of its own: its tests begin with
//! `m_j1` and so on. A scenario has a test whose name begins with its number
//! (`e5_one_round_of_votes`), or a line here that names the test elsewhere or the reason why the
//! scenario cannot occur.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const SUBJECTS: [(char, u32); 9] = [
    ('e', 23),
    ('q', 16),
    ('a', 25),
    ('f', 12),
    ('s', 19),
    ('i', 11),
    ('x', 9),
    ('d', 8),
    ('c', 31),
];

enum Instead {
    /// A test of this name in this file of the workspace.
    Test(&'static str, &'static str),
    /// The reason why the scenario cannot occur here.
    CannotOccur(&'static str),
}
use Instead::{CannotOccur, Test};

const EXCEPTIONS: &[(&str, Instead)] = &[
    ("q12", Test("raft-core/tests/paper/membership.rs", "m_j17_promotion_keeps_progress")),
    ("q13", CannotOccur("nothing tells a follower to forget a leader that it still hears")),
    ("q16", CannotOccur("check quorum is settled when a node starts")),
    (
        "a25",
        Test(
            "integration-tests/tests/node_smoke.rs",
            "a_leader_that_is_cut_off_loses_nothing_that_was_acknowledged",
        ),
    ),
    ("f11", CannotOccur("entries are sent from memory: the core reads no storage")),
    ("f12", CannotOccur("how appends gather and when commits travel cannot be configured")),
    ("s17", CannotOccur("followers do not ask for snapshots: the leader finds what they lack")),
    ("i7", CannotOccur("there are no lease reads: every read is confirmed by a round")),
    ("i8", CannotOccur("there are no leases to lose")),
    ("d8", Test("raft-storage/tests/crash.rs", "rocksdb_recovers_from_a_kill_at_every_step")),
    (
        "c17",
        Test(
            "raft-core/tests/paper/membership.rs",
            "m_r5_a_committed_removal_releases_a_wiped_voter",
        ),
    ),
    ("c18", Test("raft-core/tests/paper/membership.rs", "m_j7_a_node_that_leaves_leads_once_more")),
    (
        "c21",
        Test(
            "raft-core/tests/driver/callbacks.rs",
            "a_reply_that_blocks_delays_the_node_and_no_more",
        ),
    ),
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member has a workspace").to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of the tests in a source that are not ignored.
fn tests_in(source: &str) -> Vec<String> {
    let mut marked = false;
    let mut names = Vec::new();
    for line in source.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if line.starts_with("#[ignore") {
            marked = false;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            let declared = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            if let Some((name, _)) = declared.and_then(|rest| rest.split_once('('))
                && marked
            {
                names.push(name.to_owned());
            }
            marked = false;
        }
    }
    names
}

/// The scenario that a name begins with. `s3_8_..` is section 3.8 and no scenario; `s05_..` is
/// finding S5 of the review of the other crates.
fn scenario_of(name: &str) -> Option<&str> {
    let (number, rest) = name.split_once('_')?;
    let digits = number.strip_prefix(|subject: char| subject.is_ascii_lowercase())?;
    let is_number = !digits.is_empty()
        && !digits.starts_with('0')
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && rest.starts_with(|next: char| next.is_ascii_lowercase())).then_some(number)
}

/// The tests of this crate, by scenario.
fn tests_by_scenario() -> BTreeMap<String, Vec<String>> {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = ["src", "tests/paper", "tests/driver"].map(|it| crate_root.join(it)).to_vec();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a source folder can be listed") {
            let path = entry.expect("a source folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                for name in tests_in(&read(&path)) {
                    if let Some(scenario) = scenario_of(&name) {
                        found.entry(scenario.to_owned()).or_default().push(name);
                    }
                }
            }
        }
    }
    found
}

#[test]
fn every_scenario_has_a_test_or_a_reason() {
    let scenarios: BTreeSet<String> = SUBJECTS
        .iter()
        .flat_map(|(subject, count)| (1..=*count).map(move |number| format!("{subject}{number}")))
        .collect();
    let tests = tests_by_scenario();
    let exceptions: BTreeMap<&str, &Instead> =
        EXCEPTIONS.iter().map(|(scenario, instead)| (*scenario, instead)).collect();
    assert_eq!(exceptions.len(), EXCEPTIONS.len(), "an exception is made once");
    let mut wrong = Vec::new();
    for scenario in &scenarios {
        match (tests.contains_key(scenario), exceptions.get(scenario.as_str())) {
            (true, None) | (false, Some(_)) => {}
            (false, None) => wrong.push(format!("{scenario} has neither a test nor a reason")),
            (true, Some(_)) => wrong.push(format!("{scenario} has a test; strike the exception")),
        }
    }
    let named = tests.keys().map(String::as_str).chain(exceptions.keys().copied());
    for unknown in named.filter(|name| !scenarios.contains(*name)) {
        wrong.push(format!("{unknown} is not on the list"));
    }
    for (scenario, instead) in exceptions {
        match instead {
            CannotOccur(why) => assert!(!why.is_empty()),
            Test(file, name) => {
                if !tests_in(&read(&workspace().join(file))).iter().any(|test| test == name) {
                    wrong.push(format!("{scenario}: there is no test {name} in {file}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn names_are_understood() {
    assert_eq!(scenario_of("e5_one_round"), Some("e5"));
    assert_eq!(scenario_of("s3_a_snapshot_succeeds"), Some("s3"));
    assert_eq!(scenario_of("s3_8_everybody_crashes"), None);
    assert_eq!(scenario_of("s05_the_largest_entry"), None);
    assert_eq!(scenario_of("a_follower_answers"), None);
    let source = "#[test]\n#[ignore]\nfn one() {}\nfn two() {}\n    #[tokio::test(x)]\n    async \
                  fn three() {}\n#[test]\n#[should_panic]\nfn four() {}";
    assert_eq!(tests_in(source), ["three", "four"]);
}
