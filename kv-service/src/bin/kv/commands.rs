//! The commands that send one request: get, put, append, delete, cas, scan.
//!
//! Each sends its request (a scan: one per page), prints the result as text or JSON, and ends with
//! an exit code. The outcome of a write decides the exit code, even if it cannot be printed. A read
//! whose result cannot be printed has failed (see `output.rs`). A failure is reported on standard
//! error in any case, and with `--json` on standard output as well.

use std::path::Path;

use anyhow::ensure;
use bytes::Bytes;
use kv_service::batch::codec::outcome_text;
use kv_service::batch::text::{self, json_text};
use kv_service::protocol::operation::{
    Consistency, Expect, Operation, Record, ScanPage, WriteResponse,
};
use kv_service::{Client, ClientError};
use serde::Serialize;

use crate::args::{CasArgs, ClientArgs, DeleteArgs, GetArgs, PutArgs, ScanArgs};
use crate::exit::Exit;
use crate::{connect, output};

/// Keys per page; the node ends a page earlier if it grows large.
const SCAN_PAGE_KEYS_MAX: u64 = 1000;

/// A key and its record, as JSON.
#[derive(Serialize)]
struct Entry {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_hex: Option<String>,
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
    version: Option<u64>,
    create_revision: Option<u64>,
    modify_revision: Option<u64>,
}

impl Entry {
    fn new(key: &[u8], record: Option<&Record>) -> Self {
        let value = record.map(|record| &record.value);
        Self {
            key: text::text(key),
            key_hex: text::hex_unless_text(key),
            value: value.map(|value| text::text(value)),
            value_hex: value.and_then(|value| text::hex_unless_text(value)),
            version: record.map(|record| record.version),
            create_revision: record.map(|record| record.create_revision),
            modify_revision: record.map(|record| record.modify_revision),
        }
    }
}

/// The outcome of a write, as JSON.
#[derive(Serialize)]
struct Written<'a> {
    op: &'a str,
    key: String,
    outcome: &'static str,
    changed: bool,
    revision: u64,
    version: u64,
}

/// The outcome of a request that failed, as JSON.
#[derive(Serialize)]
struct Failed<'a> {
    op: &'a str,
    outcome: &'static str,
    error: String,
}

pub(crate) async fn get(config: Option<&Path>, args: GetArgs) -> anyhow::Result<Exit> {
    let client = connect::client(config, args.client.deadline)?;
    let found = client.get_with(args.key.clone(), consistency(args.stale)).await;
    connect::close(&client, connect::AFTER_QUESTIONS).await;
    let record = told(found, "get", &args.client)?;
    if record.is_none() {
        output::complain(&format!("not found: {}", text::escaped(&args.key, |_| false)));
    }
    let read = if args.client.json {
        output::show(json_text(&Entry::new(&args.key, record.as_ref())).as_bytes())?
    } else if let Some(record) = &record {
        output::show_value(&record.value)?
    } else {
        true
    };
    // A value that was read in part is of no use, unlike a part of a scan.
    ensure!(read, "the value cannot be written: standard output is closed");
    Ok(if record.is_some() { Exit::Done } else { Exit::ConditionFailed })
}

pub(crate) async fn put(config: Option<&Path>, args: PutArgs) -> anyhow::Result<Exit> {
    let PutArgs { key, value, client } = args;
    write(config, "put", key.clone(), Operation::Put { key, value }, &client).await
}

pub(crate) async fn append(config: Option<&Path>, args: PutArgs) -> anyhow::Result<Exit> {
    let PutArgs { key, value, client } = args;
    write(config, "append", key.clone(), Operation::Append { key, value }, &client).await
}

pub(crate) async fn delete(config: Option<&Path>, args: DeleteArgs) -> anyhow::Result<Exit> {
    let DeleteArgs { key, client } = args;
    write(config, "delete", key.clone(), Operation::Delete { key }, &client).await
}

pub(crate) async fn cas(config: Option<&Path>, args: CasArgs) -> anyhow::Result<Exit> {
    let CasArgs { key, new: value, expect, version, revision, client } = args;
    let expect = match (expect, version, revision) {
        (Some(value), ..) => Expect::Value(value),
        (None, Some(version), _) => Expect::Version(version),
        (None, None, Some(revision)) => Expect::Revision(revision),
        (None, None, None) => {
            anyhow::bail!("cas wants --expect VALUE, --version N or --revision N")
        }
    };
    let operation = Operation::CompareAndSwap { key: key.clone(), expect, value };
    write(config, "cas", key, operation, &client).await
}

async fn write(
    config: Option<&Path>,
    op: &str,
    key: Bytes,
    operation: Operation,
    args: &ClientArgs,
) -> anyhow::Result<Exit> {
    let client = connect::client(config, args.deadline)?;
    let written = client.write(operation).await;
    let WriteResponse { revision, changed, version } = told(written, op, args)?;
    if args.json {
        let key = text::text(&key);
        let written = Written { op, key, outcome: "ok", changed, revision, version };
        output::tell(json_text(&written).as_bytes());
    } else {
        let done = match (changed, op) {
            (true, _) => "ok",
            (false, "delete") => "not found",
            (false, _) => "not swapped",
        };
        output::tell(format!("{done} revision={revision} version={version}").as_bytes());
    }
    connect::close(&client, connect::AFTER_A_WRITE).await;
    Ok(if changed { Exit::Done } else { Exit::ConditionFailed })
}

pub(crate) async fn scan(config: Option<&Path>, args: ScanArgs) -> anyhow::Result<Exit> {
    let client = connect::client(config, args.client.deadline)?;
    let prefix = args.prefix.unwrap_or_default();
    let end = end_of_prefix(&prefix);
    let mut start = prefix;
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let limit = u32::try_from(left.min(SCAN_PAGE_KEYS_MAX)).expect("a page has a small limit");
        let page = page(&client, start, end.clone(), limit, consistency(args.stale)).await;
        let page = told(page, "scan", &args.client)?;
        if !show_page(&page, args.client.json)? {
            break;
        }
        left = left.saturating_sub(page.records.len() as u64);
        match page.continue_at {
            Some(next) => start = next,
            None => break,
        }
    }
    connect::close(&client, connect::AFTER_QUESTIONS).await;
    Ok(Exit::Done)
}

async fn page(
    client: &Client,
    start: Bytes,
    end: Bytes,
    limit: u32,
    consistency: Consistency,
) -> Result<ScanPage, ClientError> {
    client.scan_with(start, end, limit, consistency).await
}

/// Prints a page. Returns false if no reader is left.
fn show_page(page: &ScanPage, json: bool) -> anyhow::Result<bool> {
    for (key, record) in &page.records {
        let read = if json {
            output::show(json_text(&Entry::new(key, Some(record))).as_bytes())?
        } else {
            output::show_record(key, &record.value)?
        };
        if !read {
            return Ok(false);
        }
    }
    Ok(true)
}

fn consistency(stale: bool) -> Consistency {
    if stale { Consistency::Stale } else { Consistency::Linearizable }
}

/// Passes a result on. With `--json`, a failure is first reported to the script on standard output.
fn told<T>(result: Result<T, ClientError>, op: &str, args: &ClientArgs) -> anyhow::Result<T> {
    if let (Err(error), true) = (&result, args.json) {
        let outcome = outcome_text(error.outcome);
        let failed = Failed { op, outcome, error: error.reason.to_string() };
        output::tell(json_text(&failed).as_bytes());
    }
    Ok(result?)
}

/// The first key after all keys with this prefix; empty if there is no such key.
fn end_of_prefix(prefix: &[u8]) -> Bytes {
    let Some(last) = prefix.iter().rposition(|byte| *byte != 0xff) else { return Bytes::new() };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    end.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key() {
        assert_eq!(&end_of_prefix(b"user/")[..], b"user0");
        assert_eq!(&end_of_prefix(b"a\xff\xff")[..], b"b");
        assert_eq!(&end_of_prefix(b"\xff\xff")[..], b"");
        assert_eq!(&end_of_prefix(b"")[..], b"");
    }
}
