//! The list of scenarios that the core is tested against, so that none is forgotten.
//!
//! The scenarios were gathered from the papers and from the test suites of other implementations,
//! and are numbered by subject: E elections, Q pre-vote and check quorum, A replication and commit,
//! F flow control, S snapshots, I reads, X transfers, D durability and the contract of `Ready`. C
//! are the findings of a review of the core. Membership has a list of its own
//! ([`super::membership_catalogue`]). A scenario has a test whose name begins with its number
//! (`e5_one_round_of_votes`), or a line here that names the test elsewhere or the reason why the
//! scenario cannot occur.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const SUBJECTS: [(&str, u32); 9] = [
    ("e", 23),
    ("q", 16),
    ("a", 25),
    ("f", 12),
    ("s", 19),
    ("i", 11),
    ("x", 9),
    ("d", 8),
    ("c", 31),
];

/// A line for a scenario that has no test of its own in this crate.
pub(crate) enum Instead {
    /// A test of this name in this file of the workspace.
    Test(&'static str, &'static str),
    /// The reason why the scenario cannot occur here.
    CannotOccur(&'static str),
    /// The part that is missing. Such a line may stand beside a test of the rest.
    NotBuilt(&'static str),
}
use Instead::{CannotOccur, NotBuilt, Test};

const LINES: &[(&str, Instead)] = &[
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
/// finding S5 of the review of the other crates. The scenarios of membership begin with `m_`.
fn scenario_of(name: &str) -> Option<&str> {
    let numbered = name.strip_prefix("m_").unwrap_or(name);
    let (number, rest) = numbered.split_once('_')?;
    let digits = number.strip_prefix(|subject: char| subject.is_ascii_lowercase())?;
    let is_number = !digits.is_empty()
        && !digits.starts_with('0')
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_scenario = is_number && rest.starts_with(|next: char| next.is_ascii_lowercase());
    is_scenario.then(|| &name[..name.len() - rest.len() - 1])
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

/// The complaint about a scenario with these lines, if there is one.
fn complaint(has_test: bool, lines: &[&Instead]) -> Option<&'static str> {
    let missing = lines.iter().filter(|line| matches!(line, NotBuilt(_))).count();
    match (has_test, lines.len() - missing, missing) {
        (true, 0, 0 | 1) | (false, 1, 0 | 1) | (false, 0, 1) => None,
        (false, 0, 0) => Some("has neither a test nor a reason"),
        (true, 1.., _) => Some("has a test; strike the line"),
        _ => Some("has more than one line of a kind"),
    }
}

/// Checks the scenarios of these subjects, each numbered from 1. `tests` are those of the list.
pub(crate) fn check(
    subjects: &[(&str, u32)],
    lines: &[(&str, Instead)],
    tests: &BTreeMap<String, Vec<String>>,
) {
    let scenarios: BTreeSet<String> = subjects
        .iter()
        .flat_map(|(subject, count)| (1..=*count).map(move |number| format!("{subject}{number}")))
        .collect();
    let mut wrong = Vec::new();
    for scenario in &scenarios {
        let of_it = lines.iter().filter(|(named, _)| named == scenario);
        let of_it: Vec<&Instead> = of_it.map(|(_, line)| line).collect();
        if let Some(complaint) = complaint(tests.contains_key(scenario), &of_it) {
            wrong.push(format!("{scenario} {complaint}"));
        }
    }
    let named = tests.keys().map(String::as_str).chain(lines.iter().map(|(named, _)| *named));
    for unknown in named.filter(|name| !scenarios.contains(*name)) {
        wrong.push(format!("{unknown} is not on the list"));
    }
    for (scenario, line) in lines {
        match line {
            CannotOccur(why) | NotBuilt(why) => assert!(!why.is_empty()),
            Test(file, name) => {
                if !tests_in(&read(&workspace().join(file))).iter().any(|test| test == name) {
                    wrong.push(format!("{scenario}: there is no test {name} in {file}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The tests of scenarios of membership, or of the other ones.
pub(crate) fn tests_of(membership: bool) -> BTreeMap<String, Vec<String>> {
    let mut tests = tests_by_scenario();
    tests.retain(|scenario, _| scenario.starts_with("m_") == membership);
    tests
}

#[test]
fn every_scenario_has_a_test_or_a_reason() {
    check(&SUBJECTS, LINES, &tests_of(false));
}

#[test]
fn lines_that_do_not_fit_are_named() {
    let (test, reason, missing) = (&Test("file", "name"), &CannotOccur("why"), &NotBuilt("it"));
    for lines in [&[][..], &[missing]] {
        assert_eq!(complaint(true, lines), None);
    }
    for lines in [&[test][..], &[reason], &[missing], &[test, missing]] {
        assert_eq!(complaint(false, lines), None);
    }
    for (has_test, lines) in [(false, &[][..]), (true, &[test]), (false, &[test, reason])] {
        assert!(complaint(has_test, lines).is_some());
    }
}

#[test]
fn names_are_understood() {
    assert_eq!(scenario_of("e5_one_round"), Some("e5"));
    assert_eq!(scenario_of("s3_a_snapshot_succeeds"), Some("s3"));
    assert_eq!(scenario_of("s3_8_everybody_crashes"), None);
    assert_eq!(scenario_of("s05_the_largest_entry"), None);
    assert_eq!(scenario_of("a_follower_answers"), None);
    assert_eq!(scenario_of("m_j12_a_removed_leader"), Some("m_j12"));
    assert_eq!(scenario_of("m_j12"), None);
    let source = "#[test]\n#[ignore]\nfn one() {}\nfn two() {}\n    #[tokio::test(x)]\n    async \
                  fn three() {}\n#[test]\n#[should_panic]\nfn four() {}";
    assert_eq!(tests_in(source), ["three", "four"]);
}
