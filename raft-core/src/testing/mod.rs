//! Contract suites for the ports, so that anyone can prove a backend.

pub mod transport;
