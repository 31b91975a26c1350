//! Floods a node with first packets of handshakes:
//! `flood HOST:PORT [PACKETS_PER_SECOND] [SECONDS]`. A tool for measurements beside a running
//! cluster.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for developers")]

#[path = "../tests/common/flood.rs"]
mod flood;

use std::sync::atomic::Ordering;
use std::time::Duration;

use flood::{Flood, first_packets};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let to = arguments.next().expect("usage: flood HOST:PORT [PACKETS_PER_SECOND] [SECONDS]");
    let mut number = |default: u64| arguments.next().map_or(default, |text| text.parse().unwrap());
    let (per_second, seconds) = (number(10_000), number(10));
    let flood = Flood::start(first_packets().await, to, per_second);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    println!("{} packets in {seconds} s", flood.sent.load(Ordering::Relaxed));
}
