//! The lines of `kv batch`: reads requests, and writes responses.
//!
//! A line is checked here completely. A line with an error gets a response that names the error,
//! with the operation and the key if they could be made out. An unknown field is refused: a
//! mistyped `deadline_ms` would otherwise go unnoticed.

use std::time::Duration;

use bytes::Bytes;
use kv_service::{ClientError, Expect, Operation, Record, WriteResponse};
use serde::{Deserialize, Deserializer, Serialize};

use crate::args::DURATION_MAX;
use crate::commands::outcome_text;
use crate::output;

/// A valid request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) op: String,
    pub(crate) key: String,
    pub(crate) deadline: Option<Duration>,
    pub(crate) task: Task,
}

/// The operation that a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Get(Bytes),
    Write(Operation),
}

/// The output of an executed request.
#[derive(Debug)]
pub(crate) enum Done {
    Got(Option<Record>),
    Written(WriteResponse),
}

/// A line that is not a request, and the reason.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Refused {
    op: Option<String>,
    key: Option<String>,
    error: String,
}

/// A request as it stands in the line. A field that is null counts as absent, except `expect`,
/// where null means that there must be no value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine {
    op: String,
    key: Option<String>,
    value: Option<String>,
    #[serde(default, deserialize_with = "null_counts")]
    expect: Option<Option<String>>,
    version: Option<u64>,
    revision: Option<u64>,
    deadline_ms: Option<u64>,
}

fn null_counts<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// One response line; fields that do not belong to the operation are null.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    op: Option<String>,
    key: Option<String>,
    outcome: &'static str,
    value: Option<String>,
    /// The exact bytes, if the value is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
    swapped: Option<bool>,
    revision: Option<u64>,
    start_ns: u64,
    end_ns: u64,
    error: Option<String>,
}

/// Parses one line.
pub(crate) fn parse(line: &[u8]) -> Result<Request, Refused> {
    let line: RequestLine = serde_json::from_slice(line).map_err(|error| {
        let error = format!(
            "not a request: {error}; write {{\"op\":\"put|append|get|delete|cas\",\"key\":\"..\", ..}}"
        );
        Refused { error, ..made_out(line) }
    })?;
    let refuse =
        |error: String| Refused { op: Some(line.op.clone()), key: line.key.clone(), error };
    let text = line.key.clone().ok_or_else(|| refuse("`key` is missing".to_owned()))?;
    let key = Bytes::from(text.clone());
    let value = || match &line.value {
        Some(value) => Ok(Bytes::from(value.clone())),
        None => Err(refuse(format!("{} needs `value`", line.op))),
    };
    let has_condition =
        matches!(line.expect, Some(Some(_))) || line.version.is_some() || line.revision.is_some();
    if line.op != "cas" && has_condition {
        return Err(refuse(format!(
            "{} takes no `expect`, `version` or `revision`: only cas does",
            line.op
        )));
    }
    let task = match line.op.as_str() {
        "get" => Task::Get(key),
        "put" => Task::Write(Operation::Put { key, value: value()? }),
        "append" => Task::Write(Operation::Append { key, value: value()? }),
        "delete" => Task::Write(Operation::Delete { key }),
        "cas" => {
            let expect = expectation(&line).map_err(refuse)?;
            Task::Write(Operation::CompareAndSwap { key, expect, value: value()? })
        }
        other => {
            let error = format!("no operation {other:?}: put, append, get, delete or cas");
            return Err(refuse(error));
        }
    };
    let deadline = line.deadline_ms.map(Duration::from_millis);
    if deadline.is_some_and(|deadline| deadline.is_zero()) {
        return Err(refuse("deadline_ms is 0: nothing can be done in no time".to_owned()));
    }
    if deadline.is_some_and(|deadline| deadline > DURATION_MAX) {
        return Err(refuse("deadline_ms is more than 365 days".to_owned()));
    }
    Ok(Request { op: line.op, key: text, deadline, task })
}

fn expectation(line: &RequestLine) -> Result<Expect, String> {
    match (&line.expect, line.version, line.revision) {
        (Some(Some(value)), None, None) => Ok(Expect::Value(Bytes::from(value.clone()))),
        (Some(None) | None, Some(version), None) => Ok(Expect::Version(version)),
        (Some(None) | None, None, Some(revision)) => Ok(Expect::Revision(revision)),
        (Some(None), None, None) => Ok(Expect::Version(0)),
        (None, None, None) => {
            Err("cas needs `expect` (a value, or null for none), `version` or `revision`"
                .to_owned())
        }
        (_, _, _) => Err("cas takes one of `expect`, `version` and `revision`".to_owned()),
    }
}

/// Operation and key of a line that is not a request, so that the caller recognises the response.
fn made_out(line: &[u8]) -> Refused {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_slice(line) else {
        return Refused::default();
    };
    let text = |name| fields.get(name).and_then(|field| field.as_str()).map(str::to_owned);
    Refused { op: text("op"), key: text("key"), error: String::new() }
}

pub(crate) fn refuse_long_line(bytes_max: usize) -> Refused {
    let error = format!("the line is longer than {bytes_max} bytes");
    Refused { error, ..Refused::default() }
}

impl Refused {
    pub(crate) fn answer(self, start_ns: u64, end_ns: u64) -> Answer {
        let Refused { op, key, error } = self;
        Answer { error: Some(error), ..Answer::blank(op, key, "not_executed", start_ns, end_ns) }
    }
}

impl Answer {
    /// The response to a request that was sent.
    pub(crate) fn new(
        op: String,
        key: String,
        done: Result<Done, ClientError>,
        start_ns: u64,
        end_ns: u64,
    ) -> Self {
        let swapping = op == "cas";
        let blank =
            |outcome| Answer::blank(Some(op.clone()), Some(key.clone()), outcome, start_ns, end_ns);
        match done {
            Ok(Done::Got(record)) => Answer {
                value: record.as_ref().map(|record| output::text(&record.value)),
                value_hex: record
                    .as_ref()
                    .and_then(|record| output::hex_unless_text(&record.value)),
                revision: record.as_ref().map(|record| record.modify_revision),
                ..blank("ok")
            },
            Ok(Done::Written(written)) => Answer {
                swapped: swapping.then_some(written.changed),
                revision: Some(written.revision),
                ..blank("ok")
            },
            Err(error) => Answer {
                error: Some(error.reason.to_string()),
                ..blank(outcome_text(error.outcome))
            },
        }
    }

    fn blank(
        op: Option<String>,
        key: Option<String>,
        outcome: &'static str,
        start_ns: u64,
        end_ns: u64,
    ) -> Self {
        Self {
            op,
            key,
            outcome,
            value: None,
            value_hex: None,
            swapped: None,
            revision: None,
            start_ns,
            end_ns,
            error: None,
        }
    }

    pub(crate) fn to_line(&self) -> String {
        let mut line = output::json_text(self);
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use kv_service::{Outcome, Reason};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn task(line: &str) -> Task {
        parse(line.as_bytes()).unwrap().task
    }

    fn bytes(text: &str) -> Bytes {
        Bytes::from(text.to_owned())
    }

    #[test]
    fn requests_are_read() {
        let (key, value) = (bytes("k"), bytes("v"));
        assert_eq!(task(r#"{"op":"get","key":"k"}"#), Task::Get(key.clone()));
        assert_eq!(
            task(r#"{"op":"put","key":"k","value":"v","expect":null}"#),
            Task::Write(Operation::Put { key: key.clone(), value: value.clone() })
        );
        for (condition, expect) in [
            (r#""expect":"e""#, Expect::Value(bytes("e"))),
            (r#""expect":null"#, Expect::Version(0)),
            (r#""version":7"#, Expect::Version(7)),
            (r#""version":7,"expect":null"#, Expect::Version(7)),
            (r#""revision":7"#, Expect::Revision(7)),
        ] {
            let line = format!(r#"{{"op":"cas","key":"k","value":"v",{condition}}}"#);
            let (key, value) = (key.clone(), value.clone());
            let expected = Task::Write(Operation::CompareAndSwap { key, expect, value });
            assert_eq!(task(&line), expected, "{line}");
        }
        let request = parse(br#"{"op":"delete","key":"k","deadline_ms":2000}"#).unwrap();
        assert_eq!(request.deadline, Some(Duration::from_secs(2)));
    }

    #[test]
    fn what_is_wrong_is_said_and_the_request_recognised() {
        for (line, complaint) in [
            (r#"{"op":"put","key":"k"}"#, "put needs `value`"),
            (r#"{"op":"cas","key":"k","value":"v"}"#, "cas needs `expect`"),
            (r#"{"op":"cas","key":"k","value":"v","expect":"e","version":1}"#, "takes one of"),
            (r#"{"op":"cas","key":"k","value":"v","revision":1,"version":1}"#, "takes one of"),
            (r#"{"op":"put","key":"k","value":"v","expect":"e"}"#, "only cas does"),
            (r#"{"op":"delete","key":"k","version":3}"#, "only cas does"),
            (r#"{"op":"push","key":"k"}"#, "no operation \"push\""),
            (r#"{"op":"get","key":"k","deadline_ms":0}"#, "deadline_ms"),
            (r#"{"op":"get","key":"k","deadline_ms":18446744073709551615}"#, "365 days"),
            (r#"{"op":"get","key":"k","deadlinems":5}"#, "unknown field `deadlinems`"),
            (r#"{"op":"get","key":"k","deadline_ms":-5}"#, "not a request"),
        ] {
            let refused = parse(line.as_bytes()).unwrap_err();
            assert!(refused.error.contains(complaint), "{line}: {}", refused.error);
            assert_eq!(refused.key.as_deref(), Some("k"), "{line}");
            assert!(refused.op.is_some(), "{line}");
        }
        assert!(parse(br#"{"op":"get"}"#).unwrap_err().error.contains("`key` is missing"));
        assert!(parse(b"").unwrap_err().error.contains("not a request"));
    }

    #[test]
    fn answers_have_every_field() {
        let record =
            Record { value: bytes("v"), version: 1, create_revision: 4, modify_revision: 5 };
        let got = Answer::new("get".into(), "k".into(), Ok(Done::Got(Some(record))), 1, 2);
        assert_eq!(
            got.to_line(),
            concat!(
                r#"{"op":"get","key":"k","outcome":"ok","value":"v","swapped":null,"revision":5,"#,
                r#""start_ns":1,"end_ns":2,"error":null}"#,
                "\n"
            )
        );
        let written = WriteResponse { revision: 9, changed: false, version: 3 };
        let cas = Answer::new("cas".into(), "k".into(), Ok(Done::Written(written)), 1, 2);
        assert_eq!((cas.swapped, cas.revision), (Some(false), Some(9)));
        let error = ClientError::new(Outcome::Unknown, Reason::Closed);
        let lost = Answer::new("put".into(), "k".into(), Err(error), 1, 2);
        assert_eq!(
            (lost.outcome, lost.error.as_deref()),
            ("unknown", Some("the client is closed"))
        );
    }

    /// Lines from noise to nearly right.
    fn lines() -> impl Strategy<Value = Vec<u8>> {
        let nearly = (
            prop_oneof!["put|get|append|delete|cas", ".{0,5}"],
            prop_oneof![Just("null".to_owned()), "[0-9\"a-z{}]{0,6}"],
            prop_oneof!["value|expect|version|deadline_ms", "[a-z]{0,4}"],
        );
        let nearly = nearly.prop_map(|(op, value, field)| {
            format!(r#"{{"op":"{op}","key":"k","{field}":{value}}}"#).into_bytes()
        });
        prop_oneof![prop::collection::vec(any::<u8>(), 0..80), nearly]
    }

    proptest! {
        #[test]
        fn a_written_request_is_read(
            [key, value, old] in prop::array::uniform3(any::<String>()),
            version in any::<u64>(),
            deadline_ms in proptest::option::of(1..=DURATION_MAX.as_millis() as u64),
        ) {
            let [k, v, o] = [&key, &value, &old].map(|text| bytes(text));
            let cas = |expect| {
                Task::Write(Operation::CompareAndSwap { key: k.clone(), expect, value: v.clone() })
            };
            let put = Operation::Put { key: k.clone(), value: v.clone() };
            let append = Operation::Append { key: k.clone(), value: v.clone() };
            let by_version = json!({ "value": value, "version": version });
            for (op, fields, task) in [
                ("get", json!({}), Task::Get(k.clone())),
                ("put", json!({ "value": value }), Task::Write(put)),
                ("append", json!({ "value": value }), Task::Write(append)),
                ("delete", json!({}), Task::Write(Operation::Delete { key: k.clone() })),
                ("cas", json!({ "value": value, "expect": old }), cas(Expect::Value(o))),
                ("cas", json!({ "value": value, "expect": null }), cas(Expect::Version(0))),
                ("cas", by_version, cas(Expect::Version(version))),
            ] {
                let mut line = fields;
                line["op"] = op.into();
                line["key"] = key.as_str().into();
                line["deadline_ms"] = deadline_ms.into();
                let deadline = deadline_ms.map(Duration::from_millis);
                let request = Request { op: op.to_owned(), key: key.clone(), deadline, task };
                prop_assert_eq!(parse(line.to_string().as_bytes()), Ok(request));
            }
        }

        #[test]
        fn every_line_is_a_request_or_gets_an_answer_of_one_line(line in lines()) {
            if let Err(refused) = parse(&line) {
                let answer = refused.answer(1, 2).to_line();
                prop_assert_eq!(answer.matches('\n').count(), 1);
                let fields: serde_json::Value = serde_json::from_str(&answer).unwrap();
                prop_assert_eq!(&fields["outcome"], "not_executed");
                prop_assert!(fields["error"].as_str().is_some_and(|error| !error.is_empty()));
            }
        }
    }
}
