//! `kv batch`: a client session driven by lines of JSON.
//!
//! One loop owns everything: it reads a line when fewer than `--pipeline` requests are under way,
//! and writes the response to the oldest request as soon as that request is answered. So the
//! responses come in the order of the requests, and the pipeline bounds the waiting requests in
//! number and in bytes. Each line gets exactly one response, whatever it contains; only the end of
//! the input ends the session. If the responses cannot be written, the outcomes of the requests
//! cannot be told: code 3.
//!
//! With a pipeline of one, a request starts when the response to the one before it has been
//! written.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use kv_service::Client;
use kv_service::batch::codec::{self, Answer, Request, Task};
use kv_service::batch::lines::{Line, Lines};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncWriteExt, Stdout};
use tokio::task::JoinHandle;

use crate::args::BatchArgs;
use crate::exit::Exit;
use crate::{connect, output};

/// A longer line is refused. Leaves room for the largest value that a cluster can be configured to
/// accept.
const LINE_BYTES_MAX: usize = 32 << 20;
/// Limit on the bytes of all lines whose requests are under way.
const UNDER_WAY_BYTES_MAX: usize = 64 << 20;

/// A request whose response has not been written.
struct Pending {
    line_bytes: usize,
    answer: JoinHandle<Answer>,
}

pub(crate) async fn run(config: Option<&Path>, args: BatchArgs) -> anyhow::Result<Exit> {
    let client = connect::client(config, args.deadline)?;
    let mut lines = Lines::new(tokio::io::stdin(), LINE_BYTES_MAX);
    let mut out = tokio::io::stdout();
    let mut under_way: VecDeque<Pending> = VecDeque::new();
    let (mut ended, mut broken) = (false, None);
    while !(ended && under_way.is_empty()) {
        let bytes: usize = under_way.iter().map(|pending| pending.line_bytes).sum();
        let room = !ended
            && under_way.len() < usize::from(args.pipeline)
            && bytes < UNDER_WAY_BYTES_MAX - LINE_BYTES_MAX;
        tokio::select! {
            // Responses first: a caller that waits for one is served before more work is taken on.
            biased;
            answer = oldest(&mut under_way), if !under_way.is_empty() => {
                let written = match answer {
                    Ok(answer) => write_answers(&mut out, answer, &mut under_way).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = written {
                    output::complain(&format!("{error:#}: requests may have been executed"));
                    return Ok(Exit::Unknown);
                }
            }
            line = lines.next(), if room => match line {
                Ok(Some(line)) => {
                    let line_bytes = line.held_bytes();
                    let answer = tokio::spawn(answer(client.clone(), line));
                    under_way.push_back(Pending { line_bytes, answer });
                }
                Ok(None) => ended = true,
                // Requests that were read still get their responses.
                Err(error) => (ended, broken) = (true, Some(error)),
            }
        }
    }
    connect::close(&client, connect::AFTER_MUCH).await;
    match broken {
        Some(error) => Err(error).context("cannot read standard input"),
        None => Ok(Exit::Done),
    }
}

/// Waits for the oldest response. Cancelling the wait loses no response.
async fn oldest(under_way: &mut VecDeque<Pending>) -> anyhow::Result<Answer> {
    let oldest = under_way.front_mut().expect("asked only while something is under way");
    let answer = (&mut oldest.answer).await.context("a request was lost by an error of ours");
    under_way.pop_front();
    answer
}

/// Writes a response, and those behind it that are ready, with one flush.
async fn write_answers(
    out: &mut Stdout,
    first: Answer,
    under_way: &mut VecDeque<Pending>,
) -> anyhow::Result<()> {
    let mut text = first.to_line();
    while under_way.front().is_some_and(|pending| pending.answer.is_finished()) {
        text.push_str(&oldest(under_way).await?.to_line());
    }
    out.write_all(text.as_bytes()).await.context("cannot write to standard output")?;
    out.flush().await.context("cannot write to standard output")
}

/// Executes the request of a line.
async fn answer(client: Client, line: Line) -> Answer {
    let start_ns = monotonic_ns();
    let parsed = match &line {
        Line::Whole(bytes) => codec::parse(bytes),
        Line::TooLong => Err(codec::refuse_long_line(LINE_BYTES_MAX)),
    };
    let request = match parsed {
        Ok(request) => request,
        Err(refused) => return refused.answer(start_ns, monotonic_ns()),
    };
    let client = match request.deadline {
        Some(deadline) => client.with_deadline(deadline),
        None => client,
    };
    let Request { op, key, task, .. } = request;
    let start_ns = monotonic_ns();
    let done = match task {
        Task::Write(operation) => client.write(operation).await.map(codec::Done::Written),
        Task::Get(key) => client.get(key).await.map(codec::Done::Got),
    };
    Answer::new(op, key, done, start_ns, monotonic_ns())
}

/// Time of the system's monotonic clock, the same for all processes of this machine.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let since_boot = Duration::try_from(now).expect("the monotonic clock is not before the boot");
    u64::try_from(since_boot.as_nanos()).expect("584 years after the boot")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_does_not_go_back() {
        let before = monotonic_ns();
        assert!(before > 0 && monotonic_ns() >= before);
    }
}
