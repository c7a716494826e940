//! The other side of [`super::helper`], and what the control plane's store says of a task.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use leasehold::clock::BootInstant;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::bench::world::{Node, PATIENCE, Server};
use super::helper::SOCKET;

/// A process that has tasks.
pub struct Client {
    child: Child,
    orders: Option<ChildStdin>,
    said: mpsc::UnboundedReceiver<Value>,
    /// Said before what was waited for.
    waiting: VecDeque<Value>,
}

impl Client {
    /// Starts one.
    pub fn start(node: &Node) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["helper::child", "--exact", "--ignored", "--nocapture"])
            .env(SOCKET, node.path("workload.sock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (sender, said) = mpsc::unbounded_channel();
        let (out, orders) = (child.stdout.take().unwrap(), child.stdin.take());
        std::thread::spawn(move || {
            // The test harness has its own lines in between.
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let Some(said) = line.find('{').and_then(|at| serde_json::from_str(&line[at..]).ok()) {
                    let _ = sender.send(said);
                }
            }
        });
        Self { child, orders, said, waiting: VecDeque::new() }
    }

    /// Tells it to do something.
    pub fn order(&mut self, order: &Value) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
    }

    /// The next that it says.
    pub async fn next(&mut self) -> Value {
        if let Some(said) = self.waiting.pop_front() {
            return said;
        }
        let said = tokio::time::timeout(PATIENCE, self.said.recv()).await;
        said.expect("it says something within the test's patience").expect("it lives")
    }

    /// The next such thing that it says; what it says before waits.
    async fn next_that(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut before = VecDeque::new();
        loop {
            let said = self.next().await;
            if wanted(&said) {
                before.append(&mut self.waiting);
                self.waiting = before;
                return said;
            }
            before.push_back(said);
        }
    }

    /// Begins a task and gives back its first credentials.
    pub async fn begin(&mut self, task: &Value) -> Value {
        self.order(&json!({ "begin": task }));
        let id = &task["task_id"];
        let answer = self.next_that(|said| said["over"].is_string() || id.is_null() || said["update"] == *id).await;
        assert!(answer["update"].is_string(), "{answer}");
        answer
    }

    /// The code that a begin is refused with.
    pub async fn refused(&mut self, task: &Value) -> String {
        self.order(&json!({ "begin": task }));
        let over = self.next().await;
        assert!(over["over"].is_string(), "{over}");
        over["code"].as_str().unwrap().to_owned()
    }

    /// The answer to a heartbeat or an end.
    pub async fn answer(&mut self, order: Value) -> Value {
        self.order(&order);
        self.next_that(|said| ["heard", "ended", "refused"].iter().any(|key| !said[key].is_null())).await
    }

    /// How its stream ended: code and gRPC status.
    pub async fn over(&mut self) -> (String, String) {
        loop {
            let said = self.next().await;
            if said["over"].is_string() {
                let text = |key: &str| said[key].as_str().unwrap().to_owned();
                return (text("code"), text("status"));
            }
        }
    }

    /// Ends it by a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The control plane's store, read beside it.
pub struct Records(rusqlite::Connection);

/// What the store has of one task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// Its code once it ended.
    pub code: Option<String>,
    pub reason: String,
    pub decision: String,
}

impl Records {
    pub fn of(server: &Server) -> Self {
        let connection = rusqlite::Connection::open(server.path("state/store.db")).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        Self(connection)
    }

    /// The last task of this id.
    pub fn task(&self, id: &str) -> Recorded {
        let mut statement = self
            .0
            .prepare_cached(
                "SELECT ended_code, coalesce(ended_reason, ''), decision FROM tasks WHERE id = ?1
                 ORDER BY began_at DESC, number DESC LIMIT 1",
            )
            .unwrap();
        statement
            .query_row([id], |row| Ok(Recorded { code: row.get(0)?, reason: row.get(1)?, decision: row.get(2)? }))
            .unwrap()
    }

    /// Waits until the task is recorded as ended, and says how, and when that was seen.
    pub async fn ended(&self, id: &str) -> (Recorded, BootInstant) {
        let since = BootInstant::now();
        loop {
            let task = self.task(id);
            if task.code.is_some() {
                return (task, BootInstant::now());
            }
            assert!(BootInstant::now().since(since) < PATIENCE, "task {id} never ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A number from the store.
    pub fn count(&self, query: &str) -> i64 {
        self.0.query_row(query, [], |row| row.get(0)).unwrap()
    }

    /// Waits until the node has delivered a denial by this code.
    pub async fn denied(&self, code: &str) {
        let query = format!(
            "SELECT count(*) FROM node_records WHERE json_extract(record, '$.what') = 'credential.denied'
             AND json_extract(record, '$.code') = '{code}'"
        );
        let since = BootInstant::now();
        while self.count(&query) == 0 {
            assert!(BootInstant::now().since(since) < PATIENCE, "no denial by {code} was recorded");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The codes that ended a task's credentials, in the order of their issue.
    pub fn credential_ends(&self, task: &str) -> Vec<Option<String>> {
        let mut statement =
            self.0.prepare_cached("SELECT ended_code FROM credentials WHERE task = ?1 ORDER BY issued_at, id").unwrap();
        let rows = statement.query_map([task], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }
}

/// Prints how long something took each time, and holds the bound: a second, ten times as much on a
/// machine under load.
pub fn within_a_second(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let (median, most) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{what}: {} times, ended and recorded by the control plane after {median:?} (median), {most:?} (maximum)",
        took.len()
    );
    assert!(most < Duration::from_secs(10), "{what}: {most:?}");
}
