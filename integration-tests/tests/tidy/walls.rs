//! Reads the sources and checks the boundaries that no compiler checks: which floor may use which.

use std::fs;

use crate::{sources, workspace};

/// Fails for each line of code below `folder` that contains one of the words.
fn forbid(folder: &str, words: &[&str], why: &str) {
    let mut offences = Vec::new();
    for (path, text) in sources(folder) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if let Some(word) = words.iter().find(|word| code.contains(**word)) {
                let place = path.strip_prefix(workspace()).unwrap_or(&path).display();
                offences.push(format!("{place}:{}: `{word}`", number + 1));
            }
        }
    }
    assert!(offences.is_empty(), "{why}:\n{}", offences.join("\n"));
}

#[test]
fn the_core_is_pure() {
    let impure = [
        "tokio",
        "async ",
        ".await",
        "std::time::Instant",
        "SystemTime",
        "std::fs",
        "std::net",
        "std::thread",
        "HashMap",
        "HashSet",
        "rand::",
        "crate::driver",
        "crate::storage",
        "crate::transport",
        "crate::codec",
    ];
    forbid("raft-core/src/consensus", &impure, "the core is a function of its inputs");
}

#[test]
fn plain_data_knows_nothing_above_it() {
    let above = [
        "crate::codec",
        "crate::consensus",
        "crate::driver",
        "crate::storage",
        "crate::transport",
        "tokio",
    ];
    forbid("raft-core/src/types", &above, "`types` is the lowest floor");
}

#[test]
fn the_codec_knows_plain_data_only() {
    let above = [
        "crate::consensus",
        "crate::driver",
        "crate::storage",
        "crate::state_machine",
        "crate::transport",
        "tokio",
        "async ",
        "std::net",
        "HashMap",
    ];
    forbid("raft-core/src/codec", &above, "any transport can use the codec");
}

#[test]
fn adapters_know_ports_and_types_only() {
    let above = ["raft_core::consensus", "raft_core::driver", "kv_service"];
    forbid("raft-storage/src", &above, "an adapter knows its port");
    forbid("raft-transport-quic/src", &above, "an adapter knows its port");
}

#[test]
fn features_are_chosen_in_one_place() {
    for folder in ["raft-core/src", "raft-storage/src", "raft-transport-quic/src", "kv-service/src"]
    {
        for (path, text) in sources(folder) {
            if path.ends_with("backends.rs") {
                continue;
            }
            let lines: Vec<&str> = text.lines().collect();
            for (number, line) in lines.iter().enumerate() {
                let is_comment = line.trim_start().starts_with("//");
                if is_comment || !line.contains("cfg(feature") && !line.contains("cfg(all(feature")
                {
                    continue;
                }
                let next = lines.get(number + 1).copied().unwrap_or_default().trim_start();
                let on_mod_line =
                    ["pub mod ", "mod ", "pub use ", "use ", "pub(crate) mod ", "pub(super) mod "]
                        .iter()
                        .any(|start| next.starts_with(start));
                let place = path.strip_prefix(workspace()).unwrap_or(&path).display();
                assert!(
                    on_mod_line,
                    "{place}:{}: cfg(feature) belongs on `mod` lines and into backends.rs",
                    number + 1
                );
            }
        }
    }
}

/// The tags of a file: those of cluster version 1, and later ones with their features.
struct Tags {
    path: &'static str,
    of_version_1: &'static str,
    later: &'static [(&'static str, &'static str)],
}

/// S3. Each encoder of a new tag names the feature that introduces it: every operation, kind of
/// command and section that is not of version 1 stands beside a `Feature`, and each feature is
/// named by an encoder, by a decoder and by the error of the gate. A new tag has to be added to one
/// of the lists.
#[test]
fn each_encoder_of_something_new_names_its_feature() {
    let files = [
        Tags {
            path: "kv-service/src/state/command.rs",
            of_version_1: "OPEN CLOSE WRITE PUT APPEND DELETE SWAP_BY_VALUE SWAP_BY_VERSION",
            later: &[("SWAP_BY_REVISION", "CompareRevision")],
        },
        Tags {
            path: "kv-service/src/state/answers.rs",
            of_version_1: "UNCHANGED CHANGED VALUE_TOO_LARGE KEY_OUT_OF_RANGE",
            later: &[],
        },
        Tags {
            path: "kv-service/src/state/snapshot.rs",
            of_version_1: "HEAD SESSIONS RECORDS END PLAIN",
            later: &[],
        },
        Tags {
            path: "kv-service/src/state/engine/format.rs",
            of_version_1: "RECORD DELETED",
            later: &[],
        },
    ];
    let read = |path: &str| fs::read_to_string(workspace().join(path)).expect("a source is UTF-8");
    let mut named = Vec::new();
    for Tags { path, of_version_1, later } in files {
        let text = read(path);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let mut tags: Vec<&str> = code
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("const "))
            .filter_map(|rest| rest.split_once(": u8 = ").map(|(name, _)| name))
            .filter(|name| *name != "FORMAT")
            .collect();
        let mut listed: Vec<&str> = of_version_1.split(' ').collect();
        listed.extend(later.iter().map(|(tag, _)| *tag));
        tags.sort_unstable();
        listed.sort_unstable();
        assert_eq!(tags, listed, "{path}: a tag that is new names the feature that brings it");
        for (tag, feature) in later {
            let gated = format!("{tag} if has(rules, Feature::{feature})");
            assert!(code.contains(&gated), "{path}: the decoder of {tag} asks for {feature}");
            let required = format!("Some(Feature::{feature})");
            assert!(code.contains(&required), "{path}: the encoder of {tag} requires {feature}");
            named.push(*feature);
        }
    }
    // The members' records are encoded by the core; the server takes orders about them.
    let orders = read("kv-service/src/server/members/orders.rs");
    assert!(orders.contains("has(in_force, Feature::Members)"), "orders ask for the feature");
    named.push("Members");
    let version = read("kv-service/src/protocol/version.rs");
    let features: Vec<&str> = version
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("Feature::"))
        .filter_map(|rest| rest.split_once(" => ").map(|(name, _)| name))
        .collect();
    assert!(!features.is_empty(), "version.rs says since when there is each feature");
    for feature in features {
        assert!(named.contains(&feature), "no encoder names Feature::{feature}");
    }
}
