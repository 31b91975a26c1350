//! Contract suites for the ports, so that anyone can prove a backend.

pub mod storage;
pub mod transport;
