//! Generated messages, damaged messages, and noise.

use super::*;

fn position() -> impl Strategy<Value = Position> {
    (0..=TERM_MAX, 0..=INDEX_MAX).prop_map(|(term, index)| Position::new(term, index))
}

fn configuration() -> impl Strategy<Value = Configuration> {
    let ids = || proptest::collection::btree_set(1u64.., 0..4);
    let bytes = proptest::collection::vec(any::<u8>(), 0..20);
    let record = (any::<u64>(), any::<bool>(), bytes);
    let records = proptest::collection::vec(record, 4);
    let numbers = any::<(u64, bool, u32, u32)>();
    let context = prop_oneof![Just(Vec::new()), proptest::collection::vec(any::<u8>(), 1..20)];
    (ids(), ids(), ids(), records, numbers, context).prop_map(
        |(voters, outgoing, learners, records, numbers, context)| {
            let (next_id, founded, generation, cluster_version) = numbers;
            let records = records.into_iter().map(|(incarnation, wants_vote, context)| Member {
                incarnation,
                wants_vote,
                context: context.into(),
            });
            let ids: Vec<u64> = voters.union(&learners).copied().collect();
            let members = ids.into_iter().step_by(2).zip(records).collect();
            Configuration {
                voters,
                outgoing,
                learners,
                members,
                next_id,
                founded,
                generation,
                cluster_version,
                context: context.into(),
            }
        },
    )
}

fn payload() -> impl Strategy<Value = Payload> {
    let size = prop_oneof![8 => 0usize..100, 1 => 4_000usize..9_000];
    prop_oneof![
        1 => Just(Payload::Noop),
        6 => (any::<u8>(), size)
            .prop_map(|(byte, size)| Payload::Command(vec![byte; size].into())),
        1 => configuration().prop_map(|it| Payload::Configuration(Box::new(it))),
    ]
}

fn any_append() -> impl Strategy<Value = Message> {
    let entries = proptest::collection::vec((0u64..3, payload()), 0..20);
    (1u64..1 << 40, 0u64..1 << 40, entries, 0..=INDEX_MAX, 0u64..3).prop_map(
        |(first_term, previous_index, steps, commit_index, ahead)| {
            let previous = Position::new(first_term, previous_index);
            let mut last = previous;
            let mut entries = Vec::new();
            for (step, payload) in steps {
                last = Position::new(last.term + step, last.index + 1);
                entries.push(entry(last.term, last.index, payload));
            }
            Message::new(
                last.term + ahead,
                MessageBody::AppendEntries { previous, entries, commit_index },
            )
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let n = any::<u64>;
    let index = || 0..=INDEX_MAX;
    let outcome = prop_oneof![
        index().prop_map(ReadOutcome::Confirmed),
        Just(ReadOutcome::NotLeader),
        Just(ReadOutcome::Busy),
    ];
    let body = prop_oneof![
        position().prop_map(|last| MessageBody::RequestPreVote { last }),
        any::<bool>().prop_map(|granted| MessageBody::PreVoteResponse { granted }),
        (position(), any::<bool>())
            .prop_map(|(last, transfer)| MessageBody::RequestVote { last, transfer }),
        any::<bool>().prop_map(|granted| MessageBody::VoteResponse { granted }),
        index().prop_map(|match_index| MessageBody::AppendAccepted { match_index }),
        (index(), position()).prop_map(|(previous_index, hint)| MessageBody::AppendRejected {
            previous_index,
            hint
        }),
        (n(), index())
            .prop_map(|(round, commit_index)| MessageBody::Heartbeat { round, commit_index }),
        (n(), any::<u32>())
            .prop_map(|(round, version_max)| MessageBody::HeartbeatResponse { round, version_max }),
        n().prop_map(|id| MessageBody::ReadIndex { id }),
        (n(), outcome).prop_map(|(id, outcome)| MessageBody::ReadIndexResponse { id, outcome }),
        position().prop_map(|last| MessageBody::TimeoutNow { last }),
        n().prop_map(|number| MessageBody::Recovered { number }),
    ];
    let founding =
        any::<(u64, Option<u64>, bool, u32)>().prop_map(|(number, heard, met, version_max)| {
            MessageBody::Founding { number, heard, met, version_max }
        });
    let message = prop_oneof![
        12 => (0..=TERM_MAX, body).prop_map(|(term, body)| Message::new(term, body)),
        1 => founding.prop_map(|body| Message::new(0, body)),
        12 => any_append(),
    ];
    (message, any::<Option<u64>>())
        .prop_map(|(message, recovering)| Message { recovering, ..message })
}

proptest! {
    #[test]
    fn what_is_written_is_read(message in message()) {
        prop_assert_eq!(decode_frame(&encode(&message)), Ok(message));
    }

    #[test]
    fn damage_is_survived(message in message(), cut in any::<prop::sample::Index>(),
                          place in any::<prop::sample::Index>(), value in any::<u8>()) {
        let frame = Bytes::from(encode(&message)).slice(LENGTH_BYTES..);
        prop_assert!(decode(frame.slice(..cut.index(frame.len()))).is_err());
        let mut damaged = frame.to_vec();
        let place = place.index(frame.len());
        damaged[place] = value;
        check_decoded(damaged.into());
    }

    #[test]
    fn noise_is_survived(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        check_decoded(frame(&noise, b"payload"));
        check_decoded(noise.into());
    }
}
