//! Generated messages about members.

use std::time::Duration;

use kv_service::members::{
    ClusterReport, ClusterSettings, ClusterUid, MemberAddress, MemberInfo, MemberList,
    MemberProgress, MemberReport, MemberRole, MembersChange, MembersOrder,
};
use proptest::prelude::*;

fn info() -> impl Strategy<Value = MemberInfo> {
    any::<([String; 3], bool, Option<u8>, bool)>().prop_map(
        |([name, address, zone], draining, priority, spare)| MemberInfo {
            name,
            address,
            zone,
            draining,
            priority,
            spare,
        },
    )
}

fn settings() -> impl Strategy<Value = ClusterSettings> {
    any::<(u32, Option<Duration>, Option<Duration>, String)>().prop_map(
        |(voters, replace_dead_after, remove_dead_after, leader_zone)| ClusterSettings {
            voters,
            replace_dead_after,
            remove_dead_after,
            leader_zone,
        },
    )
}

pub(super) fn cluster_report() -> impl Strategy<Value = ClusterReport> {
    let role = prop_oneof![
        Just(MemberRole::Voter),
        Just(MemberRole::Joining),
        Just(MemberRole::Leaving),
        Just(MemberRole::Learner),
    ];
    let progress = any::<(u64, u64, bool)>().prop_map(|(match_index, behind, is_recovering)| {
        MemberProgress { match_index, behind, is_recovering }
    });
    let progress = proptest::option::of(progress);
    let member = (any::<(u64, u64, bool, Option<String>)>(), info(), role, progress).prop_map(
        |((id, incarnation, wants_vote, error), info, role, progress)| MemberReport {
            id,
            incarnation,
            info,
            role,
            wants_vote,
            progress,
            error,
        },
    );
    let members = prop::collection::vec(member, 0..3);
    let values = any::<(u64, Option<u64>, u64, u32, bool, bool, u64)>();
    let uid = any::<Option<u128>>().prop_map(|uid| {
        let text = uid.map(|number| format!("{:032x}", number.max(1)));
        text.map(|text| text.parse::<ClusterUid>().unwrap())
    });
    (values, uid, members, settings(), any::<[String; 2]>()).prop_map(
        |(values, uid, members, settings, plans)| {
            let (node_id, leader_id, index, digest, is_committed, is_joint, next_id) = values;
            let plans = plans.into();
            ClusterReport {
                node_id,
                leader_id,
                uid,
                index,
                digest,
                is_committed,
                is_joint,
                next_id,
                members,
                settings,
                plans,
            }
        },
    )
}

pub(super) fn member_list() -> impl Strategy<Value = MemberList> {
    let member = any::<(u64, String)>().prop_map(|(id, address)| MemberAddress { id, address });
    (any::<u64>(), prop::collection::vec(member, 0..3))
        .prop_map(|(index, members)| MemberList { index, members })
}

pub(super) fn members_order() -> impl Strategy<Value = MembersOrder> {
    let id = any::<u64>;
    let change = prop_oneof![
        (id(), info(), any::<bool>()).prop_map(|(id, info, wants_vote)| MembersChange::Add {
            id,
            info,
            wants_vote
        }),
        id().prop_map(|id| MembersChange::Promote { id }),
        id().prop_map(|id| MembersChange::Demote { id }),
        id().prop_map(|id| MembersChange::Remove { id }),
        (id(), id()).prop_map(|(old, new)| MembersChange::Replace { old, new }),
        (id(), id()).prop_map(|(id, incarnation)| MembersChange::Bind { id, incarnation }),
        (id(), info()).prop_map(|(id, info)| MembersChange::Describe { id, info }),
        settings().prop_map(|settings| MembersChange::Configure { settings }),
    ];
    (change, any::<(Option<u32>, bool, bool, bool)>()).prop_map(|(change, values)| {
        let (expected, less_redundancy, live, dry_run) = values;
        MembersOrder { change, expected, less_redundancy, live, dry_run }
    })
}
