#![no_main]
// The lines of `kv batch` are decoded inside the binary crate. Its files are compiled here, with
// stubs for the few things that they need of their neighbours.
#![allow(dead_code, reason = "answers are not written here")]

#[path = "../../../kv-service/src/bin/kv/batch/codec.rs"]
mod codec;
#[path = "../../../kv-service/src/bin/kv/batch/fuzzing.rs"]
mod fuzzing;
#[path = "../../../kv-service/src/bin/kv/batch/lines.rs"]
mod lines;
#[path = "../../../kv-service/src/bin/kv/output.rs"]
mod output;

mod args {
    pub(crate) const DURATION_MAX: std::time::Duration =
        std::time::Duration::from_secs(365 * 24 * 3600);
}

mod commands {
    pub(crate) fn outcome_text(_: kv_service::Outcome) -> &'static str {
        "of an answer, and none is given here"
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::run(bytes, fuzzing::batch));
