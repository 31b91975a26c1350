//! The client protocol in bytes: what is written is read, and nothing else is taken for it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use kv_service::operation::{
    Answer, Consistency, Expect, Operation, Query, Record, Refusal, ScanPage, WriteAnswer,
};
use kv_service::protocol::{
    FRAME_BYTES_MAX, FrameBuffer, FrameError, Greeting, Hello, NodeStatus, PeerReachability,
    Rejection, Reply, Request, RequestKind, Response, push_frame,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn written(message: &impl Serialize) -> Vec<u8> {
    let mut out = BytesMut::new();
    push_frame(&mut out, message);
    out.to_vec()
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<T>, FrameError> {
    let mut frames = FrameBuffer::with_limit(FRAME_BYTES_MAX);
    frames.input().extend_from_slice(bytes);
    let message = frames.next_message()?;
    assert!(message.is_none() || frames.input().is_empty());
    Ok(message)
}

/// A frame around a body.
fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes(), body].concat()
}

fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T, more: u8) {
    let frame = written(message);
    assert_eq!(read::<T>(&frame).unwrap().as_ref(), Some(message));
    for end in 0..frame.len() {
        assert_eq!(read::<T>(&frame[..end]), Ok(None), "the rest of it is waited for");
    }
    let body = &frame[4..];
    assert!(read::<T>(&framed(&[body, &[more]].concat())).is_err(), "leftovers");
    for end in 0..body.len() {
        assert!(read::<T>(&framed(&body[..end])).is_err(), "cut at {end}");
    }
}

fn bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn operation() -> impl Strategy<Value = Operation> {
    let expect =
        prop_oneof![bytes().prop_map(Expect::Value), any::<u64>().prop_map(Expect::Version)];
    prop_oneof![
        (bytes(), bytes()).prop_map(|(key, value)| Operation::Put { key, value }),
        (bytes(), bytes()).prop_map(|(key, value)| Operation::Append { key, value }),
        bytes().prop_map(|key| Operation::Delete { key }),
        (bytes(), expect, bytes()).prop_map(|(key, expect, value)| Operation::CompareAndSwap {
            key,
            expect,
            value
        }),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let query = prop_oneof![
        bytes().prop_map(|key| Query::Get { key }),
        (bytes(), bytes(), any::<u32>()).prop_map(|(start, end, limit)| Query::Scan {
            start,
            end,
            limit
        }),
    ];
    let consistency = prop_oneof![Just(Consistency::Linearizable), Just(Consistency::Stale)];
    let kind = prop_oneof![
        Just(RequestKind::OpenSession),
        any::<u64>().prop_map(|session| RequestKind::CloseSession { session }),
        (any::<[u64; 3]>(), operation()).prop_map(
            |([session, sequence, lowest_unanswered], operation)| {
                RequestKind::Write { session, sequence, lowest_unanswered, operation }
            }
        ),
        (query, consistency)
            .prop_map(|(query, consistency)| RequestKind::Read { query, consistency }),
        Just(RequestKind::Status),
    ];
    (any::<u64>(), kind).prop_map(|(id, kind)| Request { id, kind })
}

fn record() -> impl Strategy<Value = Record> {
    (bytes(), any::<[u64; 3]>()).prop_map(|(value, [version, create_revision, modify_revision])| {
        Record { value, version, create_revision, modify_revision }
    })
}

fn status() -> impl Strategy<Value = NodeStatus> {
    let peer = (any::<u64>(), any::<Option<String>>())
        .prop_map(|(id, error)| PeerReachability { id, error });
    (
        any::<[u64; 7]>(),
        any::<u32>(),
        ".{0,9}",
        any::<Option<u64>>(),
        prop::collection::vec(peer, 0..3),
    )
        .prop_map(
            |(
                [id, term, commit_index, last_applied, last_index, log_bytes, snapshot_index],
                pid,
                role,
                leader_id,
                peers,
            )| {
                NodeStatus {
                    id,
                    pid,
                    role,
                    term,
                    leader_id,
                    commit_index,
                    last_applied,
                    last_index,
                    log_bytes,
                    snapshot_index,
                    peers,
                }
            },
        )
}

fn response() -> impl Strategy<Value = Response> {
    let n = any::<u64>;
    let refusal = prop_oneof![
        Just(Refusal::UnknownSession),
        Just(Refusal::Forgotten),
        Just(Refusal::WindowExceeded),
        (n(), n()).prop_map(|(size_bytes, limit_bytes)| Refusal::ValueTooLarge {
            size_bytes,
            limit_bytes
        }),
    ];
    let rejection = prop_oneof![
        any::<Option<u64>>().prop_map(|leader_id| Rejection::NotLeader { leader_id }),
        any::<String>().prop_map(Rejection::Busy),
        any::<String>().prop_map(Rejection::Invalid),
        Just(Rejection::ShuttingDown),
    ];
    let page = (prop::collection::vec((bytes(), record()), 0..3), proptest::option::of(bytes()))
        .prop_map(|(records, continue_at)| ScanPage { records, continue_at });
    let answer = prop_oneof![
        proptest::option::of(record()).prop_map(Answer::Get),
        page.prop_map(Answer::Scan),
    ];
    let written = (n(), any::<bool>(), n()).prop_map(|(revision, changed, version)| WriteAnswer {
        revision,
        changed,
        version,
    });
    let reply = prop_oneof![
        n().prop_map(|session| Reply::SessionOpened { session }),
        Just(Reply::SessionClosed),
        written.prop_map(Reply::Written),
        refusal.prop_map(Reply::Refused),
        answer.prop_map(Reply::Answered),
        status().prop_map(|status| Reply::Status(Box::new(status))),
        rejection.prop_map(Reply::Rejected),
        any::<String>().prop_map(Reply::Unknown),
    ];
    (n(), reply).prop_map(|(id, reply)| Response { id, reply })
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_nothing_less_or_more(
        request in request(),
        response in response(),
        name in any::<String>(),
        numbers in any::<[u64; 4]>(),
        leader_id in any::<Option<u64>>(),
        more in any::<u8>(),
    ) {
        check(&request, more);
        check(&response, more);
        check(&Greeting { client: name.clone() }, more);
        let [node_id, key_bytes_max, value_bytes_max, requests_max] = numbers;
        let cluster_id = name;
        check(
            &Hello { cluster_id, node_id, leader_id, key_bytes_max, value_bytes_max, requests_max },
            more,
        );
    }
}

proptest! {
    #[test]
    fn how_a_stream_is_cut_does_not_matter(
        requests in prop::collection::vec(request(), 0..6),
        cuts in prop::collection::vec(1usize..30, 1..10),
    ) {
        let stream: Vec<u8> = requests.iter().flat_map(written).collect();
        let mut frames = FrameBuffer::with_limit(FRAME_BYTES_MAX);
        let (mut rest, mut read) = (&stream[..], Vec::new());
        for cut in cuts.into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let piece;
            (piece, rest) = rest.split_at(cut.min(rest.len()));
            frames.reserve();
            frames.input().extend_from_slice(piece);
            while let Some(request) = frames.next_message::<Request>().unwrap() {
                read.push(request);
            }
        }
        prop_assert!(frames.input().is_empty());
        prop_assert_eq!(read, requests);
    }
}

/// A client of another make may name the fields, and write numbers as it likes. What it says beyond
/// that is not dropped in silence.
#[test]
fn fields_may_be_named_and_none_is_dropped() {
    let status = Request { id: 4, kind: RequestKind::Status };
    assert_eq!(read(&framed(b"\x92\xcd\x00\x04\xa6Status")), Ok(Some(status.clone())));
    assert_eq!(read(&framed(b"\x82\xa2id\x04\xa4kind\xa6Status")), Ok(Some(status)));
    assert!(read::<Request>(&framed(b"\x83\xa2id\x04\xa4kind\xa6Status\xa4more\x01")).is_err());
    let named = b"\x82\xa2id\x04\xa4kind\x81\xa5Write\x82\xa7session\x01\xa4more\x01";
    assert!(read::<Request>(&framed(named)).is_err());
}

/// Threads have little stack, and a frame has room for many brackets.
#[test]
fn depth_costs_no_stack() {
    for brackets in [1_000, 1_000_000] {
        let mut body = b"\x83\xa2id\x04\xa4kind\xa6Status\xa4more".to_vec();
        body.resize(body.len() + brackets, 0x91);
        let deep = move || assert!(read::<Request>(&framed(&body)).is_err());
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(deep).unwrap();
        thread.join().unwrap();
    }
}

#[test]
fn claims_of_millions_cost_nothing() {
    let mut frames = FrameBuffer::with_limit(FRAME_BYTES_MAX);
    frames.reserve();
    frames.input().extend_from_slice(&(FRAME_BYTES_MAX as u32).to_be_bytes());
    assert_eq!(frames.next_message::<Request>(), Ok(None));
    frames.reserve();
    assert!(frames.input().capacity() < 1 << 20, "{}", frames.input().capacity());
    for claim in [
        &b"\x92\x05\x81\xa4Read\x92\x81\xa3Get\x91\xc6\xff\xff\xff\xffk"[..],
        b"\x92\x05\x81\xa4Read\x92\x81\xa3Get\x91\xdd\xff\xff\xff\xffk",
        b"\x92\x01\x81\xa8Answered\x81\xa4Scan\x92\xdd\xff\xff\xff\xff",
    ] {
        assert!(read::<Request>(&framed(claim)).is_err());
        assert!(read::<Response>(&framed(claim)).is_err());
    }
    assert!(matches!(read::<Request>(&u32::MAX.to_be_bytes()), Err(FrameError::TooLong { .. })));
}
