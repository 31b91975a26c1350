//! Runs every decoder on the inputs that the fuzzer found (`integration-tests/fuzz/corpus`), and on
//! damaged copies of them: no panic, no memory allocated because of a claimed length, and whatever
//! is accepted is encoded as it was decoded.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;

#[path = "../../fuzz/src/memory.rs"]
mod memory;

/// The fuzz target, and the function of its crate that it runs.
type Decoder = (&'static str, fn(&[u8]));

/// The targets of the fuzzer, except the one that the binary's own tests replay.
const DECODERS: &[Decoder] = &[
    ("raft_message", raft_core::fuzzing::message),
    ("raft_hello", raft_transport_quic::fuzzing::hello),
    ("raft_frames", raft_transport_quic::fuzzing::frames),
    ("raft_certificate", raft_transport_quic::fuzzing::certificate),
    ("raft_snapshot_frame", raft_core::fuzzing::snapshot_frame),
    ("disk_record", raft_storage::fuzzing::record),
    ("disk_small_file", raft_storage::fuzzing::small_file),
    ("disk_snapshot_file", raft_storage::fuzzing::snapshot_file),
    ("disk_snapshot_name", raft_storage::fuzzing::snapshot_name),
    ("disk_write_ahead_files", raft_storage::fuzzing::write_ahead_files),
    ("kv_protocol", kv_service::fuzzing::protocol),
    ("kv_protocol_frames", kv_service::fuzzing::protocol_frames),
    ("kv_command", kv_service::fuzzing::command),
    ("kv_snapshot_stream", kv_service::fuzzing::snapshot_stream),
    ("kv_stored_state", kv_service::fuzzing::stored_state),
    ("kv_config", kv_service::fuzzing::config),
    ("kv_batch_lines", kv_service::fuzzing::batch_lines),
];

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// Names and contents of the inputs in the corpus of a target, in order.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let path = fuzz().join("corpus").join(format!("{target}.tar"));
    let mut archive = tar::Archive::new(fs::File::open(&path).unwrap());
    let inputs: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (name, bytes)
        })
        .collect();
    assert!(!inputs.is_empty(), "{} holds no inputs", path.display());
    inputs
}

#[test]
fn each_target_has_a_corpus_and_is_replayed() {
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(fuzz().join(folder)).unwrap();
        entries
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect()
    };
    let replayed: BTreeSet<String> = DECODERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), replayed);
    assert_eq!(names("corpus"), replayed);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for name in &replayed {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in Cargo.toml");
    }
}

#[test]
fn what_was_found_is_survived() {
    for (name, decoder) in DECODERS {
        for (input, bytes) in corpus(name) {
            println!("{name}: {input}");
            memory::within_bounds(&bytes, *decoder);
        }
    }
}

/// One alteration of some bytes.
#[derive(Clone, Debug)]
enum Damage {
    Byte(Index, u8),
    /// Overwrites a place with a huge number, in case a length or a count is there.
    Millions(Index),
    Cut(Index),
    Left(Index),
    Insert(Index, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = any::<Index>;
    prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|(place, byte)| Damage::Byte(place, byte)),
        1 => place().prop_map(Damage::Millions),
        1 => place().prop_map(Damage::Cut),
        1 => place().prop_map(Damage::Left),
        1 => (place(), proptest::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(place, bytes)| Damage::Insert(place, bytes)),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        let at = |place: &Index| place.index(bytes.len() + 1).min(bytes.len().saturating_sub(1));
        match damage {
            Damage::Byte(place, byte) => {
                let at = at(place);
                bytes.iter_mut().skip(at).take(1).for_each(|place| *place = *byte);
            }
            Damage::Millions(place) => {
                let at = at(place);
                let millions = [0xdd, 0x7f, 0xff, 0xff, 0xff];
                bytes.iter_mut().skip(at).zip(millions).for_each(|(place, byte)| *place = byte);
            }
            Damage::Cut(place) => bytes.truncate(at(place)),
            Damage::Left(place) => drop(bytes.drain(..at(place))),
            Damage::Insert(place, more) => {
                let at = at(place);
                bytes.splice(at..at, more.iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn damage_and_noise_are_survived() {
    for (name, decoder) in DECODERS {
        let corpus: Vec<_> = corpus(name).into_iter().map(|(_, bytes)| bytes).collect();
        let damages = proptest::collection::vec(damage(), 1..4);
        let damaged = (proptest::sample::select(corpus), damages)
            .prop_map(|(bytes, damages)| damaged(bytes, &damages));
        let noise = proptest::collection::vec(any::<u8>(), 0..200);
        let mut runner = proptest::test_runner::TestRunner::default();
        let survived = runner.run(&prop_oneof![4 => damaged, 1 => noise], |bytes| {
            memory::within_bounds(&bytes, *decoder);
            Ok(())
        });
        if let Err(failure) = survived {
            panic!("{name}: {failure}");
        }
    }
}
