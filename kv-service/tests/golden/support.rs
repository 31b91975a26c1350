//! Imports of the crate under test, and what the runners share.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

pub(crate) use kv_service::members::ClusterReport;
pub(crate) use kv_service::protocol::operation::{
    Answer, Consistency, Expect, Nonce, Operation, Query, Record, Refusal, ScanPage, SessionId,
    WriteResponse,
};
pub(crate) use kv_service::protocol::version::VERSION_MAX;
pub(crate) use kv_service::protocol::{
    FRAME_BYTES_MAX, FrameBuffer, Greeting, Hello, NodeStatus, Rejection, Reply, Request,
    RequestKind, Response, UpgradeOrder, Welcome, push_frame,
};
#[cfg(feature = "rocksdb")]
pub(crate) use kv_service::state::RocksStateOptions;
pub(crate) use kv_service::state::{
    Action, Command, KvMachine, MachineQuery, Opening, Output, QueryOutput, WriteLimits,
};
pub(crate) use kv_service::{Client, ClientError};
pub(crate) use kv_service::{ConnectError, Connector, Stream};

use goldenscript::ArgumentConsumer;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// Runs every script of a folder, each with a new runner.
pub(crate) fn run_folder<R: goldenscript::Runner>(name: &str, mut runner: impl FnMut() -> R) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let entries = std::fs::read_dir(&folder).expect("a folder of scripts");
    let mut scripts: Vec<_> = entries.map(|entry| entry.expect("a script").path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty(), "no scripts in {}", folder.display());
    let mut failed = Vec::new();
    for script in scripts {
        eprintln!("{}", script.display());
        // A difference is a panic: the other scripts run all the same.
        let run = AssertUnwindSafe(|| goldenscript::run(&mut runner(), &script));
        match catch_unwind(run) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failed.push(format!("{}: {error}", script.display())),
            Err(_) => failed.push(format!("{}: see above", script.display())),
        }
    }
    assert!(failed.is_empty(), "{} scripts failed:\n{}", failed.len(), failed.join("\n"));
}

/// The number behind a key such as `seq=3`.
pub(crate) fn number(args: &mut ArgumentConsumer<'_>, key: &str) -> Outcome<Option<u64>> {
    args.take_key(key)
        .map(|text| match text {
            "max" => Ok(u64::MAX),
            text => text.parse().map_err(|_| format!("{key}={text}: not a number").into()),
        })
        .transpose()
}

/// The next positional argument.
pub(crate) fn word<'a>(args: &mut ArgumentConsumer<'a>, what: &str) -> Outcome<&'a str> {
    args.next_pos().ok_or_else(|| format!("{what} is missing").into())
}

/// Formats what a write returned.
pub(crate) fn written(response: &WriteResponse) -> String {
    let WriteResponse { revision, changed, version } = response;
    let what = if *changed { "changed" } else { "unchanged" };
    format!("{what}, revision {revision}, version {version}")
}

/// Formats a record, a long value by its length.
pub(crate) fn record(record: &Record) -> String {
    let Record { value, version, create_revision, modify_revision } = record;
    let value = match value.len() {
        0..=40 => format!("{:?}", String::from_utf8_lossy(value)),
        length => format!("{length} bytes"),
    };
    format!(
        "{value}, version {version}, created at {create_revision}, changed at {modify_revision}"
    )
}
