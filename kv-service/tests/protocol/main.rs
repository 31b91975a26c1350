//! The client protocol in bytes: written messages are read back, and no other bytes are accepted.

#![allow(clippy::unwrap_used, reason = "tests")]

mod members;

use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use kv_service::members::{MemberAddress, MemberInfo, MemberList, MembersChange, MembersOrder};
use kv_service::protocol::operation::{Nonce, Refusal, SessionId};
use kv_service::protocol::{
    FRAME_BYTES_MAX, FrameBuffer, FrameError, Greeting, Hello, PROTOCOL_VERSIONS, Rejection, Reply,
    Request, RequestKind, Response, Traceparent, Welcome, Write, no_greeting, push_frame,
};
use kv_service::{
    Answer, Consistency, Expect, NodeStatus, Operation, PeerReachability, Query, Record, ScanPage,
    UpgradeOrder, Versions, WriteResponse,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::members::{cluster_report, member_list, members_order};

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
    let expect = prop_oneof![
        bytes().prop_map(Expect::Value),
        any::<u64>().prop_map(Expect::Version),
        any::<u64>().prop_map(Expect::Revision),
    ];
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
        session().prop_map(|session| RequestKind::CloseSession { session }),
        (session(), any::<[u64; 2]>(), operation()).prop_map(
            |(session, [sequence, lowest_unanswered], operation)| {
                let write = Write { session, sequence, lowest_unanswered, operation };
                RequestKind::Write(Box::new(write))
            }
        ),
        (query, consistency)
            .prop_map(|(query, consistency)| RequestKind::Read { query, consistency }),
        Just(RequestKind::Status),
        any::<u32>().prop_map(|above| RequestKind::Upgrade(UpgradeOrder::Finalize { above })),
        Just(RequestKind::Upgrade(UpgradeOrder::Hold)),
        Just(RequestKind::Upgrade(UpgradeOrder::Release)),
        Just(RequestKind::Cluster),
        members_order().prop_map(|order| RequestKind::ChangeMembers(Box::new(order))),
        any::<Option<u64>>().prop_map(|to| RequestKind::TransferLeadership { to }),
    ];
    let traceparent = any::<Option<(u128, u64, u8)>>().prop_map(|fields| {
        fields.map(|(trace_id, parent_id, flags)| {
            Box::new(Traceparent { trace_id, parent_id, flags })
        })
    });
    let extensions = prop::collection::vec((any::<u32>(), bytes()), 0..3);
    (any::<u64>(), any::<String>(), traceparent, extensions, kind).prop_map(
        |(id, namespace, traceparent, extensions, kind)| Request {
            id,
            namespace: namespace.into(),
            traceparent,
            extensions: extensions.into(),
            kind,
        },
    )
}

fn session() -> impl Strategy<Value = SessionId> {
    any::<(u64, u128)>().prop_map(|(index, nonce)| SessionId { index, nonce: Nonce(nonce) })
}

fn record() -> impl Strategy<Value = Record> {
    (bytes(), any::<[u64; 3]>()).prop_map(|(value, [version, create_revision, modify_revision])| {
        Record { value, version, create_revision, modify_revision }
    })
}

fn status() -> impl Strategy<Value = NodeStatus> {
    let versions = any::<(String, [u32; 3], String)>().prop_map(
        |(program, [in_force, oldest, newest], upgrade)| Versions {
            program,
            in_force,
            oldest,
            newest,
            upgrade,
        },
    );
    let peer = (any::<u64>(), any::<Option<String>>())
        .prop_map(|(id, error)| PeerReachability { id, error });
    (
        any::<[u64; 7]>(),
        any::<u32>(),
        ".{0,9}",
        any::<Option<u64>>(),
        prop::collection::vec(peer, 0..3),
        versions,
        any::<(Vec<u64>, bool)>(),
    )
        .prop_map(
            |(
                [id, term, commit_index, last_applied, last_index, log_bytes, snapshot_index],
                pid,
                role,
                leader_id,
                peers,
                versions,
                (waits_for, is_majority_lost),
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
                    versions,
                    waits_for,
                    is_majority_lost,
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
        Just(Refusal::OtherOperation),
        (n(), n()).prop_map(|(size_bytes, limit_bytes)| Refusal::KeyOutOfRange {
            size_bytes,
            limit_bytes
        }),
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
    let written = (n(), any::<bool>(), n())
        .prop_map(|(revision, changed, version)| WriteResponse { revision, changed, version });
    let reply = prop_oneof![
        (session(), any::<u32>())
            .prop_map(|(session, window)| Reply::SessionOpened { session, window }),
        Just(Reply::SessionClosed),
        written.prop_map(Reply::Written),
        refusal.prop_map(Reply::Refused),
        answer.prop_map(Reply::Answered),
        status().prop_map(|status| Reply::Status(Box::new(status))),
        any::<String>().prop_map(Reply::Done),
        cluster_report().prop_map(|report| Reply::Cluster(Box::new(report))),
        member_list().prop_map(Reply::Members),
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
        version in any::<u32>(),
        leader_id in any::<Option<u64>>(),
        more in any::<u8>(),
    ) {
        check(&request, more);
        check(&response, more);
        check(&Greeting { versions: vec![1, 2, version], client: name.clone() }, more);
        check(&Welcome::Refused(name.clone()), more);
        let [node_id, key_bytes_max, value_bytes_max, requests_max] = numbers;
        let (cluster_id, cluster_version) = (name, version);
        let hello = Hello {
            version,
            cluster_version,
            cluster_id,
            node_id,
            leader_id,
            key_bytes_max,
            value_bytes_max,
            requests_max,
        };
        check(&Welcome::Hello(hello), more);
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

/// A client of another make may name the fields, and write numbers as it likes. Fields that it adds
/// are not dropped silently.
#[test]
fn fields_may_be_named_and_none_is_dropped() {
    let status = Request::new(4, RequestKind::Status);
    let in_order = b"\x95\xcd\x00\x04\xa0\xc0\x90\xa6Status";
    assert_eq!(read(&framed(in_order)), Ok(Some(status.clone())));
    let named = b"\xa2id\x04\xa9namespace\xa0\xabtraceparent\xc0\xaaextensions\x90\xa4kind";
    let by_name = [b"\x85", &named[..], b"\xa6Status"].concat();
    assert_eq!(read(&framed(&by_name)), Ok(Some(status)));
    let more = [b"\x86", &named[..], b"\xa6Status\xa4more\x01"].concat();
    assert!(read::<Request>(&framed(&more)).is_err());
    let within = [b"\x85", &named[..], b"\x81\xa5Write\x82\xa8sequence\x01\xa4more\x01"].concat();
    assert!(read::<Request>(&framed(&within)).is_err());
}

/// The bytes are a promise: other programs speak this protocol.
#[test]
fn bytes_stay_what_they_were() {
    let check = |written: Vec<u8>, body: &[u8]| {
        assert_eq!(written.escape_ascii().to_string(), framed(body).escape_ascii().to_string());
    };
    check(written(&Greeting::new("me")), b"\x92\x92\x03\x02\xa2me");
    check(written(&Welcome::Refused("no".to_owned())), b"\x81\xa7Refused\xa2no");
    let hello = Hello {
        version: 2,
        cluster_version: 1,
        cluster_id: "c".to_owned(),
        node_id: 3,
        leader_id: None,
        key_bytes_max: 4,
        value_bytes_max: 5,
        requests_max: 6,
    };
    let body = b"\x81\xa5Hello\x98\x02\x01\xa1c\x03\xc0\x04\x05\x06";
    check(written(&Welcome::Hello(hello)), body);
    let write = RequestKind::Write(Box::new(Write {
        session: SessionId { index: 9, nonce: Nonce(258) },
        sequence: 1,
        lowest_unanswered: 1,
        operation: Operation::CompareAndSwap {
            key: "k".into(),
            expect: Expect::Revision(4),
            value: "v".into(),
        },
    }));
    let traceparent = Some(Box::new(Traceparent { trace_id: 1, parent_id: 2, flags: 1 }));
    let write = Request { traceparent, ..Request::new(7, write) };
    let body = b"\x95\x07\xa0\x93\xc4\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x02\x01\x90\
        \x81\xa5Write\x94\x92\x09\xc4\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x02\x01\x01\
        \x81\xaeCompareAndSwap\x93\xc4\x01k\x81\xa8Revision\x04\xc4\x01v";
    check(written(&write), body);
    assert_eq!(read(&framed(body)), Ok(Some(write)));
}

/// The requests that version 3 brought.
#[test]
fn bytes_of_version_3_stay_what_they_were() {
    let check = |written: Vec<u8>, body: &[u8]| {
        assert_eq!(written.escape_ascii().to_string(), framed(body).escape_ascii().to_string());
    };
    let [name, address] = ["n", "h:1"].map(str::to_owned);
    let info = MemberInfo { name, address, ..MemberInfo::default() };
    let mut order = MembersOrder::new(MembersChange::Add { id: 4, info, wants_vote: true });
    order.expected = Some(7);
    let body = b"\x95\x01\xa0\xc0\x90\x81\xadChangeMembers\
        \x95\x81\xa3Add\x93\x04\x96\xa1n\xa3h:1\xa0\xc2\xc0\xc2\xc3\x07\xc2\xc2\xc2";
    check(written(&Request::new(1, RequestKind::ChangeMembers(Box::new(order)))), body);
    let body = b"\x95\x02\xa0\xc0\x90\x81\xb2TransferLeadership\x91\x05";
    check(written(&Request::new(2, RequestKind::TransferLeadership { to: Some(5) })), body);
    let done = Response { id: 3, reply: Reply::Done("ok".to_owned()) };
    check(written(&done), b"\x92\x03\x81\xa8Upgraded\xa2ok");
    let members = vec![MemberAddress { id: 4, address: "h:1".to_owned() }];
    let told = Response { id: 0, reply: Reply::Members(MemberList { index: 9, members }) };
    check(written(&told), b"\x92\0\x81\xa7Members\x92\x09\x91\x92\x04\xa3h:1");
}

/// Both sides use the highest version that both speak. The greeting of version 1 is not a greeting,
/// and without a common version the refusal names the versions that each side speaks.
#[test]
fn versions_are_negotiated() {
    let ours = PROTOCOL_VERSIONS[0];
    let greeting = |versions: &[u32]| {
        Greeting { versions: versions.to_vec(), client: String::new() }.common_version()
    };
    assert_eq!(greeting(&[1, 99, ours, 0]), Ok(ours));
    for foreign in [&[][..], &[1], &[99, 98]] {
        let why = greeting(foreign).unwrap_err();
        assert!(why.contains(&format!("{foreign:?}")) && why.contains("[3, 2]"), "{why}");
    }
    let many: Vec<u32> = (1000..1_000_000).collect();
    assert!(greeting(&many).unwrap_err().len() < 1000, "an answer is not as long as the question");
    let of_version_1 = b"\x91\xa6client";
    assert!(read::<Greeting>(&framed(of_version_1)).is_err());
    assert!(no_greeting().contains("version 1 was never released"));
}

/// Reserved fields are not dropped silently.
#[test]
fn reserved_fields_are_refused() {
    let request = Request::new(1, RequestKind::Status);
    assert_eq!(request.check(), Ok(()));
    let traceparent = Some(Box::new(Traceparent { trace_id: 1, parent_id: 2, flags: 1 }));
    assert_eq!(Request { traceparent, ..request.clone() }.check(), Ok(()));
    let namespace = Request { namespace: "orders".into(), ..request.clone() };
    assert!(matches!(namespace.check(), Err(Rejection::Invalid(_))));
    let extension = Request { extensions: Box::new([(1, Bytes::new())]), ..request };
    assert!(matches!(extension.check(), Err(Rejection::Invalid(_))));
}

/// Threads have little stack, and a frame has room for many nested brackets.
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
        &b"\x95\x05\xa0\xc0\x90\x81\xa4Read\x92\x81\xa3Get\x91\xc6\xff\xff\xff\xffk"[..],
        b"\x95\x05\xa0\xc0\x90\x81\xa4Read\x92\x81\xa3Get\x91\xdd\xff\xff\xff\xffk",
        b"\x92\x01\x81\xa8Answered\x81\xa4Scan\x92\xdd\xff\xff\xff\xff",
    ] {
        assert!(read::<Request>(&framed(claim)).is_err());
        assert!(read::<Response>(&framed(claim)).is_err());
    }
    assert!(matches!(read::<Request>(&u32::MAX.to_be_bytes()), Err(FrameError::TooLong { .. })));
}
