//! Carries out what the leader decides about the members without an operator.
//!
//! It orders the changes as an operator would, so each passes the checks of the core, and an
//! operator's order that comes first wins.

use std::time::Duration;

use raft_core::consensus::RoleKind;
use raft_core::driver::Leadership;
use tokio::time::{Instant, sleep};

use crate::members::MembersOrder;
use crate::protocol::Reply;
use crate::protocol::version::{Feature, has};
use crate::server::autopilot::{Decision, Observer, Step};
use crate::server::shared::ServerShared;

/// Interval of the looks at the members.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Acts for the cluster while this node leads. Runs until it is dropped.
pub(in crate::server) async fn steer(shared: &ServerShared) {
    let mut leadership = shared.node.watch();
    loop {
        shared.autopilot.set_plans(Vec::new());
        let Ok(term) = leadership.wait_for(|now| now.is_leader).await.map(|now| now.term) else {
            return;
        };
        let mut observer = Observer::begin(Instant::now());
        let acting = async {
            loop {
                sleep(LOOK_AGAIN_AFTER).await;
                act(shared, &mut observer).await;
            }
        };
        let leaving = async {
            let left = |now: &Leadership| !now.is_leader || now.term != term;
            let _ = leadership.wait_for(left).await.map(drop);
        };
        tokio::select! {
            biased;
            () = leaving => {}
            () = acting => {}
        }
    }
}

async fn act(shared: &ServerShared, observer: &mut Observer) {
    if !has(shared.cluster_version(), Feature::Members) {
        return;
    }
    let report = shared.cluster_report();
    if shared.node.status().role != RoleKind::Leader || !report.is_committed {
        return;
    }
    // Nodes within one process belong to one network, and need no uid.
    if report.uid.is_none() && shared.membership.book.is_some() {
        shared.draw_uid().await;
    }
    let Decision { step, mut plans } = observer.look(&report, Instant::now());
    match step {
        None => {}
        Some(Step::HandOver(to)) => {
            tracing::info!("leadership goes to node {to}, which is to lead rather than this one");
            observer.hands_over(Instant::now());
            shared.node.transfer_leadership(Some(to));
        }
        Some(Step::Change(change)) => {
            let text = format!("{change:?}");
            let mut order = MembersOrder::new(change);
            order.expected = Some(report.digest);
            match shared.ordered(order).await {
                Ok(_) => tracing::info!("the members change without an operator: {text}"),
                Err(Reply::Rejected(why)) => plans.push(format!("refused for now: {why}")),
                Err(_) => plans.push("begun, and not known to be committed".to_owned()),
            }
        }
    }
    shared.autopilot.set_plans(plans);
}
