//! Scripts for the client: nodes that follow the script, in virtual time.
//!
//! ```text
//! nodes [count=3] [seed=2] [window=5] [deadline=MS] [round_trip=MS]   first: nodes and a client;
//!                 with seed 2 it asks node 1 first
//! say ACT..       the reactions to the next requests, whichever node gets them
//! opening ACT..   the same for requests for a session       always ACT    once there are no others
//!     ok  lost (taken, then the connection breaks)  silence  garbage  misplaced  unknown  busy
//!     not-leader  leader-2  stopping  invalid  unchanged  unknown-session  forgotten
//!     window-exceeded  other-operation  too-large  bad-key
//! down N [how=refused]   how=silent, how=refuses (the greeting)      up N      leader N
//! put K V   append K V   delete K   cas K V revision=N    [deadline=MS]
//! get K [stale=yes]   scan   status N   hold N   close
//! start NAME put ..      an operation that goes on beside others     finish NAME    pass MS
//! ```
//!
//! An indented line is an event at a node: the request, and how the node reacts. The last line of a
//! command is the outcome that the caller gets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use goldenscript::{ArgumentConsumer, Context};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::nodes::Nodes;
use crate::support::{
    Client, ClientError, Consistency, Outcome, UpgradeOrder, number, record, word, written,
};

pub(crate) struct ClientRunner {
    runtime: Runtime,
    nodes: Nodes,
    client: Option<Client>,
    running: BTreeMap<String, JoinHandle<String>>,
}

impl Default for ClientRunner {
    fn default() -> Self {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
        let (nodes, running) = (Nodes::default(), BTreeMap::new());
        Self { runtime, nodes, client: None, running }
    }
}

/// An operation of the script, with owned arguments so that it can go on beside others.
struct Call {
    name: String,
    words: Vec<String>,
    revision: Option<u64>,
    consistency: Consistency,
}

impl Call {
    fn parse(name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome<Self> {
        let revision = number(args, "revision")?;
        let consistency = match args.take_key("stale") {
            Some(_) => Consistency::Stale,
            None => Consistency::Linearizable,
        };
        let words = std::iter::from_fn(|| args.next_pos()).map(str::to_owned).collect();
        Ok(Self { name: name.to_owned(), words, revision, consistency })
    }

    async fn run(self, client: Client) -> String {
        let told = match self.make(&client).await {
            Ok(told) => told,
            Err(error) => error.to_string(),
        };
        format!("{}: {told}", self.name)
    }

    async fn make(&self, client: &Client) -> Result<String, ClientError> {
        let word = |place: usize| self.words.get(place).cloned().unwrap_or_default();
        let node = || word(0).parse().expect("a node");
        let response = match self.name.as_str() {
            "put" => client.put(word(0), word(1)).await?,
            "append" => client.append(word(0), word(1)).await?,
            "delete" => client.delete(word(0)).await?,
            "cas" => client.cas_revision(word(0), self.revision.unwrap_or(0), word(1)).await?,
            "get" => {
                let found = client.get_with(word(0), self.consistency).await?;
                return Ok(found.map_or("absent".to_owned(), |found| record(&found)));
            }
            "scan" => {
                let page = client.scan_with("", "", 10, self.consistency).await?;
                return Ok(format!("{} records", page.records.len()));
            }
            "status" => return Ok(client.status(node()).await?.role),
            "hold" => return client.upgrade(node(), UpgradeOrder::Hold).await,
            "close" => {
                client.close().await;
                return Ok("closed".to_owned());
            }
            other => panic!("no command {other}"),
        };
        Ok(written(&response))
    }
}

impl ClientRunner {
    fn setup(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome<()> {
        let millis = |value: Option<u64>, default| Duration::from_millis(value.unwrap_or(default));
        {
            let mut nodes = self.nodes.lock();
            nodes.count = number(args, "count")?.unwrap_or(3);
            nodes.window = number(args, "window")?.unwrap_or(5) as u32;
            nodes.round_trip = millis(number(args, "round_trip")?, 0);
        }
        let deadline = millis(number(args, "deadline")?, 5000);
        let seed = number(args, "seed")?.unwrap_or(2);
        let _guard = self.runtime.enter();
        self.client = Some(Client::with_seed(Arc::new(self.nodes.clone()), deadline, seed));
        Ok(())
    }

    /// Changes what the nodes will do; returns false if the command does not.
    fn instruct(&self, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome<bool> {
        let mut nodes = self.nodes.lock();
        match name {
            "say" => nodes.acts.extend(std::iter::from_fn(|| args.next_pos()).map(str::to_owned)),
            "opening" => {
                let acts = std::iter::from_fn(|| args.next_pos()).map(str::to_owned);
                nodes.opening_acts.extend(acts);
            }
            "always" => nodes.always = args.next_pos().map(str::to_owned),
            "down" => {
                let how = args.take_key("how").unwrap_or("refused").to_owned();
                nodes.down.insert(word(args, "a node")?.parse()?, how);
            }
            "up" => drop(nodes.down.remove(&word(args, "a node")?.parse()?)),
            "leader" => nodes.leader = Some(word(args, "a node")?.parse()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn client(&self, args: &mut ArgumentConsumer<'_>) -> Outcome<Client> {
        let client = self.client.as_ref().ok_or("no nodes yet")?;
        Ok(match number(args, "deadline")? {
            Some(deadline) => client.with_deadline(Duration::from_millis(deadline)),
            None => client.clone(),
        })
    }

    fn call(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome<Option<String>> {
        match name {
            "start" => {
                let client = self.client(args)?;
                let started = word(args, "a name")?.to_owned();
                let call = Call::parse(word(args, "an operation")?, args)?;
                self.running.insert(started, self.runtime.spawn(call.run(client)));
                Ok(None)
            }
            "finish" => {
                let name = word(args, "a name")?;
                let running = self.running.remove(name).ok_or("not started")?;
                Ok(Some(self.runtime.block_on(running)?))
            }
            "pass" => {
                let millis = word(args, "milliseconds")?.parse()?;
                let pass = async { tokio::time::sleep(Duration::from_millis(millis)).await };
                self.runtime.block_on(pass);
                Ok(None)
            }
            _ => {
                let client = self.client(args)?;
                let call = Call::parse(name, args)?;
                Ok(Some(self.runtime.block_on(call.run(client))))
            }
        }
    }
}

impl goldenscript::Runner for ClientRunner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &Context) -> Outcome<String> {
        let mut args = command.consume_args();
        if command.name == "nodes" {
            self.setup(&mut args)?;
            args.reject_next()?;
            return Ok(String::new());
        }
        let mut told = None;
        if !self.instruct(&command.name, &mut args)? {
            told = self.call(&command.name, &mut args)?;
        }
        args.reject_next()?;
        // Lets the tasks notice what happened.
        self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
        let mut lines = fold(std::mem::take(&mut self.nodes.lock().events));
        lines.extend(told);
        Ok(lines.join("\n"))
    }
}

/// Says a line that repeats once, with a count.
fn fold(events: Vec<String>) -> Vec<String> {
    let mut lines: Vec<(String, u64)> = Vec::new();
    for event in events {
        match lines.last_mut() {
            Some((last, count)) if *last == event => *count += 1,
            _ => lines.push((event, 1)),
        }
    }
    let line = |(event, count): (String, u64)| match count {
        1 => event,
        count => format!("{event} ({count} times)"),
    };
    lines.into_iter().map(line).collect()
}
