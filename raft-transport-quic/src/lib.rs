//! draft
pub mod tls;
pub mod dev_ca;
pub mod error;
