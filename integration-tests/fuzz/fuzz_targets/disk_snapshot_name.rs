#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::run(bytes, raft_storage::fuzzing::snapshot_name));
