#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::run(bytes, kv_service::fuzzing::batch_lines));
