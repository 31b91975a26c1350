//! Tests of whole nodes on the channel transport, most of them in virtual time: replies and
//! callbacks, ends of all kinds, snapshots, and components that hang. Storage and state machine
//! come from `support`, so that no other crate is needed.

mod callbacks;
mod chaos;
mod ends;
mod founding;
mod members;
mod snapshots;
mod support;
mod versions;
