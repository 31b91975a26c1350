//! Formats, snapshots by chunks, damage, versions and limits, without a node.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::format::{CHECKSUM_BYTES, FORMAT, HEAD_BYTES};
use super::{EncodingError, Machine, ReplicatedState};
use crate::checksum::crc32c;
use crate::state_machine::{MachineResult, StateMachine};
use crate::types::{Configuration, Entry, Payload, Position, SnapshotMeta};

/// Registers with names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Registers(BTreeMap<String, u64>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Change {
    Set { name: String, value: u64 },
    Clear,
}

impl ReplicatedState for Registers {
    type Command = Change;
    type Output = Option<u64>;
    type Query = String;
    type Answer = Option<u64>;

    const STATE_BYTES_MAX: usize = 200_000;

    fn apply(&mut self, change: Change) -> Option<u64> {
        match change {
            Change::Set { name, value } => self.0.insert(name, value),
            Change::Clear => {
                self.0.clear();
                None
            }
        }
    }

    fn query(&self, name: String) -> Option<u64> {
        self.0.get(&name).copied()
    }
}

type Subject = Machine<Registers>;

/// The next program: a change more, and a field more of an old one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct NextRegisters(BTreeMap<String, u64>, #[serde(default)] u64);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum NextChange {
    Set {
        name: String,
        value: u64,
        #[serde(default)]
        expires: bool,
    },
    Clear,
    Double,
}

impl ReplicatedState for NextRegisters {
    type Command = NextChange;
    type Output = ();
    type Query = ();
    type Answer = ();

    const VERSION: u32 = 2;

    fn needed_version(change: &NextChange) -> u32 {
        match change {
            NextChange::Clear => 1,
            NextChange::Set { .. } | NextChange::Double => 2,
        }
    }

    fn apply(&mut self, _: NextChange) {
        self.1 += 1;
    }

    fn query(&self, (): ()) {}
}

fn set(name: &str, value: u64) -> Change {
    Change::Set { name: name.to_owned(), value }
}

fn entry(index: u64, command: Bytes) -> Entry {
    Entry { index, term: 3, payload: Payload::Command(command) }
}

fn filled(count: u64) -> Subject {
    let mut machine = Subject::default();
    for index in 1..=count {
        let command = Subject::encode(&set(&format!("name {index}"), index)).unwrap();
        machine.apply(&[entry(index, command)], &mut Vec::new()).unwrap();
    }
    machine
}

fn snapshot_of<S: ReplicatedState>(machine: &mut Machine<S>, bytes_max: usize) -> Vec<Bytes> {
    let mut view = machine.snapshot().unwrap();
    assert_eq!(view.position(), machine.last_applied());
    std::iter::from_fn(|| view.next_chunk(bytes_max).unwrap()).collect()
}

fn restore<S: ReplicatedState>(
    machine: &mut Machine<S>,
    at: Position,
    chunks: &[Bytes],
) -> MachineResult<()> {
    machine.begin_restore(&SnapshotMeta::new(at, Configuration::of_voters([1])))?;
    chunks.iter().try_for_each(|chunk| machine.restore_chunk(chunk.clone()))?;
    machine.finish_restore()
}

/// The bytes of format 1, which later versions must read.
#[test]
fn format_1_is_pinned() {
    let command = Subject::encode(&set("a", 300)).unwrap();
    assert_eq!(&command[..], b"\x01\x00\x00\x00\x01\x81\xa3Set\x92\xa1a\xcd\x01\x2c");
    assert_eq!(Subject::decode(&command), Ok(set("a", 300)));
    let command = Subject::encode(&Change::Clear).unwrap();
    assert_eq!(&command[..], b"\x01\x00\x00\x00\x01\xa5Clear");
    let snapshot = snapshot_of(&mut filled(1), usize::MAX).concat();
    assert_eq!(snapshot, b"\x01\x00\x00\x00\x01\x81\xa6name 1\x01\x82\x02\xa5\x75");
}

#[test]
fn a_command_that_is_not_one_is_refused_with_what_to_do() {
    let good = Subject::encode(&set("a", 1)).unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.to_vec();
        change(&mut bytes);
        Subject::decode(&bytes).expect_err("it is damaged")
    };
    assert_eq!(with(&|bytes| bytes.clear()), EncodingError::TooShort { size_bytes: 0 });
    assert_eq!(with(&|bytes| bytes.truncate(4)), EncodingError::TooShort { size_bytes: 4 });
    assert_eq!(with(&|bytes| bytes[0] = 2), EncodingError::UnknownFormat { found: 2 });
    let newer = with(&|bytes| bytes[HEAD_BYTES - 1] = 7);
    assert_eq!(newer, EncodingError::NewerVersion { needed: 7, version: 1 });
    assert!(newer.to_string().ends_with("install version 7"), "{newer}");
    type Damage = dyn Fn(&mut Vec<u8>);
    let malformed: [&Damage; 4] = [
        &|bytes| bytes.truncate(HEAD_BYTES),
        &|bytes| _ = bytes.pop(),
        &|bytes| bytes.push(0),
        // An array of 2^32 - 1 elements, which nothing allocates.
        &|bytes| bytes.splice(HEAD_BYTES.., *b"\xdd\xff\xff\xff\xff").for_each(drop),
    ];
    for change in malformed {
        let error = with(change);
        assert!(matches!(error, EncodingError::Malformed { needed: 1, version: 1, .. }), "{error}");
        assert!(error.to_string().contains("install a program of version 1"), "{error}");
    }
    for length in 0..good.len() {
        Subject::decode(&good[..length]).expect_err("a part is no command");
    }
}

/// A committed command cannot be left out: the other nodes may have applied it.
#[test]
fn a_committed_command_that_does_not_decode_stops_the_node() {
    let newer = Machine::<NextRegisters>::encode(&NextChange::Double).unwrap();
    let mut machine = filled(4);
    let error = machine.apply(&[entry(5, newer)], &mut Vec::new()).expect_err("of version 2");
    assert_eq!(
        error.to_string(),
        "the command at 5@3 needs version 2, and this program is version 1: install version 2"
    );
    assert_eq!(machine.last_applied(), Position::new(3, 4));
}

/// Text of an attacker's making ends up in no log as it is.
#[test]
fn a_reason_is_escaped_and_bounded() {
    #[derive(Serialize)]
    struct Unknown<'a>(BTreeMap<&'a str, u8>);
    let name = "\u{1b}[2J".repeat(1_000);
    let body = rmp_serde::to_vec(&Unknown(BTreeMap::from([(&*name, 1)]))).unwrap();
    let bytes = [&[FORMAT, 0, 0, 0, 1], &body[..]].concat();
    let text = Subject::decode(&bytes).unwrap_err().to_string();
    assert!(!text.contains('\u{1b}') && text.len() < 600, "{text}");
}

/// Structs are arrays: an older program that does not know a field refuses it, instead of leaving
/// it out and going another way than newer nodes.
#[test]
fn a_new_field_is_refused_by_the_old_program_and_filled_by_the_new_one() {
    let expiring = NextChange::Set { name: "a".into(), value: 1, expires: true };
    let mut bytes = Machine::<NextRegisters>::encode(&expiring).unwrap().to_vec();
    // As if its author had forgotten to raise the version.
    bytes[HEAD_BYTES - 1] = 1;
    let error = Subject::decode(&bytes).expect_err("a field too many");
    assert!(matches!(error, EncodingError::Malformed { .. }), "{error}");
    let old = Subject::encode(&set("a", 1)).unwrap();
    let read = Machine::<NextRegisters>::decode(&old).unwrap();
    assert_eq!(read, NextChange::Set { name: "a".into(), value: 1, expires: false });
}

/// Serde can write what it does not read. The command would stop every node, at every start.
#[test]
fn a_command_that_could_not_be_read_is_refused_before_it_is_proposed() {
    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Sparse {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        left: Option<u8>,
        right: String,
    }
    impl ReplicatedState for Sparse {
        type Command = Sparse;
        type Output = ();
        type Query = ();
        type Answer = ();
        fn apply(&mut self, command: Sparse) {
            *self = command;
        }
        fn query(&self, (): ()) {}
    }
    let readable = Sparse { left: Some(1), right: "r".into() };
    let one_way = Sparse { left: None, right: "r".into() };
    assert!(Machine::<Sparse>::encode(&readable).is_ok());
    let error = Machine::<Sparse>::encode(&one_way).unwrap_err();
    assert!(matches!(error, EncodingError::OneWay { .. }), "{error}");
    // Nor does such a state replace the log.
    let mut machine = Machine::<Sparse>::default();
    let error = machine.snapshot().unwrap().next_chunk(100).unwrap_err();
    assert!(error.to_string().contains("skip_serializing_if"), "{error}");
}

/// Its reader drops what its writer wrote, and reports no error.
#[test]
fn a_command_that_would_be_read_as_another_is_refused() {
    #[derive(Serialize, Deserialize)]
    enum Order {
        #[serde(deserialize_with = "nothing")]
        Note(String),
    }
    fn nothing<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer).map(|_| String::new())
    }
    let kept = super::format::encode_command(1, &Order::Note(String::new()));
    assert!(kept.is_ok());
    let error = super::format::encode_command(1, &Order::Note("lost".into())).unwrap_err();
    assert!(matches!(error, EncodingError::OneWay { .. }), "{error}");
}

#[test]
fn a_snapshot_survives_chunks_of_any_size() {
    let mut machine = filled(10_000);
    for (bytes_max, at_least) in [(1, 100_000), (7, 10_000), (64 << 10, 2), (usize::MAX, 1)] {
        let chunks = snapshot_of(&mut machine, bytes_max);
        assert!(chunks.len() >= at_least, "{} chunks of {bytes_max}", chunks.len());
        assert!(chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= bytes_max));
        let mut other = Subject::default();
        restore(&mut other, machine.last_applied(), &chunks).unwrap();
        assert_eq!(other.state(), machine.state());
        assert_eq!(other.last_applied(), Position::new(3, 10_000));
        assert_eq!(other.query("name 17".into()), Some(17));
    }
}

/// The view is of its moment, whatever is applied while it is read.
#[test]
fn a_view_is_of_one_position() {
    let mut machine = filled(10);
    let mut view = machine.snapshot().unwrap();
    let clear = entry(11, Subject::encode(&Change::Clear).unwrap());
    machine.apply(&[clear], &mut Vec::new()).unwrap();
    let chunks: Vec<Bytes> = std::iter::from_fn(|| view.next_chunk(64).unwrap()).collect();
    let mut other = Subject::default();
    restore(&mut other, view.position(), &chunks).unwrap();
    assert_eq!(other.state(), filled(10).state());
}

#[test]
fn a_damaged_snapshot_is_refused_and_the_state_stays() {
    let whole = snapshot_of(&mut filled(20), usize::MAX).concat();
    let refuse = |bytes: Vec<u8>| {
        let mut machine = filled(3);
        restore(&mut machine, Position::new(3, 20), &[bytes.into()]).expect_err("damaged");
        assert_eq!(machine.state(), filled(3).state());
        assert_eq!(machine.last_applied(), Position::new(3, 3));
    };
    for place in 0..whole.len() {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[place] ^= 1 << bit;
            refuse(damaged);
        }
        refuse(whole[..place].to_vec());
    }
    refuse([&whole[..], b"\x00"].concat());
    refuse([&whole[..], &whole[..]].concat());
}

/// Also one whose checksum is right: it was written so.
#[test]
fn a_snapshot_of_a_newer_format_or_version_is_refused() {
    let mut machine = Subject::default();
    let snapshot = |head: [u8; HEAD_BYTES]| {
        let bytes = [&head[..], b"\x80"].concat();
        Bytes::from([&bytes[..], &crc32c(&bytes).to_be_bytes()].concat())
    };
    let at = Position::new(3, 9);
    restore(&mut machine, at, &[snapshot([1, 0, 0, 0, 1])]).expect("it is empty and well");
    let error = restore(&mut machine, at, &[snapshot([2, 0, 0, 0, 1])]).unwrap_err();
    assert!(error.to_string().contains("the snapshot at 9@3 has format 2"), "{error}");
    let error = restore(&mut machine, at, &[snapshot([1, 0, 0, 0, 2])]).unwrap_err();
    assert!(error.to_string().ends_with("install version 2"), "{error}");
    let error = restore(&mut machine, at, &[Bytes::from_static(b"KVSNAP\x02\x00\x01")]);
    assert!(error.unwrap_err().to_string().contains("has format 75"));
}

#[test]
fn a_newer_program_reads_the_snapshot_of_the_older_one() {
    let chunks = snapshot_of(&mut filled(2), 64);
    // `Registers` is a newtype, whose value stands alone; a struct of two fields is an array.
    let mut next = Machine::<NextRegisters>::default();
    restore(&mut next, Position::new(3, 2), &chunks).expect_err("a newtype cannot grow");

    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Grown {
        #[serde(default)]
        new: u8,
    }
    #[derive(Clone, Default, Serialize, Deserialize)]
    struct Small {}
    impl ReplicatedState for Small {
        type Command = ();
        type Output = ();
        type Query = ();
        type Answer = ();
        fn apply(&mut self, (): ()) {}
        fn query(&self, (): ()) {}
    }
    impl ReplicatedState for Grown {
        type Command = ();
        type Output = ();
        type Query = ();
        type Answer = ();
        const VERSION: u32 = 2;
        fn apply(&mut self, (): ()) {}
        fn query(&self, (): ()) {}
    }
    let small = snapshot_of(&mut Machine::<Small>::default(), 64);
    let mut grown = Machine::<Grown>::default();
    restore(&mut grown, Position::ZERO, &small).unwrap();
    assert_eq!(grown.state().new, 0);
}

#[test]
fn a_state_above_its_limit_is_neither_written_nor_restored() {
    let mut machine = filled(20_000);
    let error = machine.snapshot().unwrap().next_chunk(64).unwrap_err();
    assert!(error.to_string().contains("has more than 200000 bytes"), "{error}");
    let chunk = Bytes::from(vec![0; Registers::STATE_BYTES_MAX / 4]);
    let mut restoring = Subject::default();
    restoring.begin_restore(&SnapshotMeta::default()).unwrap();
    for _ in 0..4 {
        restoring.restore_chunk(chunk.clone()).unwrap();
    }
    restoring.restore_chunk(chunk.slice(..CHECKSUM_BYTES)).unwrap();
    let error = restoring.restore_chunk(chunk.slice(..1)).unwrap_err();
    assert!(error.to_string().contains("has more than 200000 bytes"), "{error}");
}
