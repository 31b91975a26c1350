//! Contract suites for the ports, with which any backend can be proven, and helpers for their
//! tests.

#[doc(hidden)]
pub mod example;
pub mod storage;
pub mod transport;

use std::net::{Ipv4Addr, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

/// Returns UDP ports in a row that are free on loopback, for nodes that are started later, and
/// perhaps several times.
///
/// The ports lie below those that operating systems assign to sockets that ask for any port, and
/// this process gets each row once. So no other socket takes the port of a node that does not run
/// yet or is down for a moment.
///
/// # Panics
/// If there is no such row.
#[must_use]
pub fn free_ports(count: u16) -> Range<u16> {
    const FIRST: u16 = 10_000;
    const SPAN: u16 = 22_000;
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    // Processes that run side by side begin far from each other.
    let own = (std::process::id() * 200 % u32::from(SPAN)) as u16;
    let rows = (0..SPAN / count.max(1)).map(|_| {
        let start = FIRST + (own + GIVEN.fetch_add(count, Ordering::Relaxed) % SPAN) % SPAN;
        start..start + count
    });
    let is_free = |port| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let mut free = rows.filter(|row| row.clone().all(is_free));
    free.next().unwrap_or_else(|| panic!("no {count} ports in a row are free"))
}
