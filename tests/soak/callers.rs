//! Processes that have tasks in a soak, and what becomes of them.

use std::time::Duration;

use leasehold::clock::BootInstant;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::bench::world::{Node, PATIENCE, TRUST_DOMAIN};
use super::client::Client;
use super::{Chance, Tally, WORKLOADS};

/// So many processes have tasks at a time.
const MOST: usize = 6;

/// So many ids are taken in turn: each comes again and again, once the task before is over.
const IDS: u64 = 24;

/// A process and the tasks that it was given.
struct Caller {
    client: Client,
    tasks: Vec<String>,
}

impl Caller {
    fn has(&self, task: &Value) -> bool {
        self.tasks.iter().any(|has| task["task_id"] == has.as_str())
    }
}

#[derive(Default)]
pub struct Callers(Vec<Caller>);

impl Callers {
    /// Takes note of which tasks are over, and of renewals.
    pub fn listen(&mut self, tally: &mut Tally) {
        for caller in &mut self.0 {
            for said in caller.client.heard() {
                match said["over"].as_str() {
                    Some(over) => caller.tasks.retain(|task| task != over),
                    None => tally.note("renewals of a task's credential", said["update"].is_string()),
                }
            }
        }
    }

    /// The place of one that may begin another task: a new one, or one of those that are there.
    fn one(&mut self, node: &Node, chance: &mut Chance) -> usize {
        let place = usize::try_from(chance.below(MOST as u64)).unwrap();
        if place >= self.0.len() {
            self.0.push(Caller { client: Client::start(node), tasks: Vec::new() });
        }
        place.min(self.0.len() - 1)
    }

    pub async fn begin(&mut self, node: &Node, chance: &mut Chance, tally: &mut Tally) {
        let task = task(chance);
        let place = self.one(node, chance);
        let caller = &mut self.0[place];
        // One process asks for an id once at a time; several processes may ask for the same.
        if caller.has(&task) {
            return;
        }
        let answer = caller.client.try_begin(&task).await;
        let began = answer["update"].is_string();
        if began {
            caller.tasks.push(task["task_id"].as_str().unwrap().to_owned());
        }
        tally.note("tasks begun", began);
    }

    /// Whoever asked gives up while it is decided: by itself, or because it is killed.
    pub async fn cancel(&mut self, node: &Node, chance: &mut Chance, tally: &mut Tally) {
        let task = task(chance);
        let place = self.one(node, chance);
        if self.0[place].has(&task) {
            return;
        }
        self.0[place].client.order(&json!({ "begin": task }));
        tokio::time::sleep(Duration::from_millis(chance.below(40))).await;
        match chance.below(2) {
            0 => self.0[place].client.give_up(task["task_id"].as_str().unwrap()).await,
            _ => drop(self.0.swap_remove(place)),
        }
        tally.note("begins given up", true);
    }

    /// A heartbeat, or the word that a task is done or has failed.
    pub async fn word(&mut self, chance: &mut Chance, tally: &mut Tally) {
        let Some((caller, task)) = self.any(chance) else { return };
        let (what, order) = match chance.below(5) {
            0..=2 => ("heartbeats", "heartbeat"),
            3 => ("tasks ended", "end"),
            _ => ("tasks failed", "fail"),
        };
        let answer = caller.client.answer(json!({ order: task })).await;
        tally.note(what, answer["refused"].is_null());
    }

    /// A process ends, fails, becomes another program or is killed, with whatever it has.
    pub fn leave(&mut self, chance: &mut Chance, tally: &mut Tally) {
        if self.0.is_empty() {
            return;
        }
        let place = usize::try_from(chance.below(self.0.len() as u64)).unwrap();
        let mut caller = self.0.swap_remove(place);
        let what = match chance.below(4) {
            0 => ("processes that end", Some(json!({ "exit": 0 }))),
            1 => ("processes that fail", Some(json!({ "exit": 3 }))),
            2 => ("processes that run another program", Some(json!({ "exec": "sleep" }))),
            _ => ("processes that are killed", None),
        };
        match &what.1 {
            Some(order) => {
                caller.client.order(order);
                // Until it has done so, or a second: then it is killed in the middle of it.
                std::thread::sleep(Duration::from_millis(chance.below(1_000)));
            }
            None => caller.client.signal(Signal::KILL),
        }
        tally.note(what.0, true);
    }

    /// A live task's id.
    pub fn task(&mut self, chance: &mut Chance) -> Option<String> {
        self.any(chance).map(|(_, task)| task)
    }

    fn any(&mut self, chance: &mut Chance) -> Option<(&mut Caller, String)> {
        let all: Vec<(usize, String)> = self
            .0
            .iter()
            .enumerate()
            .flat_map(|(place, caller)| caller.tasks.iter().map(move |task| (place, task.clone())))
            .collect();
        let chosen = usize::try_from(chance.below(all.len().max(1) as u64)).unwrap();
        let (place, task) = all.get(chosen)?;
        Some((&mut self.0[*place], task.clone()))
    }

    /// Kills them all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Once all is well: a task is begun and renewed, and an id whose begin was given up is free again. Gives back the process, whose
/// task lives.
pub async fn all_well(node: &Node) -> Client {
    let mut client = Client::start(node);
    let since = BootInstant::now();
    let task = json!({ "task_id": "last", "spiffe_id": format!("spiffe://{TRUST_DOMAIN}/{}", WORKLOADS[0]) });
    client.order(&json!({ "begin": task }));
    client.give_up("last").await;
    loop {
        let answer = client.try_begin(&task).await;
        if answer["update"].is_string() {
            break;
        }
        assert!(BootInstant::now().since(since) < PATIENCE, "{answer}\n{}", node.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let renewed = client.next().await;
    assert_eq!(renewed["update"], "last", "{renewed}");
    client
}

/// How the task of a process that waits ended, past its renewals.
pub async fn over(client: &mut Client) -> String {
    client.over().await.1
}

fn task(chance: &mut Chance) -> Value {
    let id = format!("soak-{}", chance.below(IDS));
    let workload = usize::try_from(chance.below(WORKLOADS.len() as u64)).unwrap();
    // Some miss it: nobody sees to it that heartbeats come in time.
    let heartbeat = if chance.below(3) == 0 { 2 } else { 0 };
    // A certificate, a token, or both: each is by a decision of its own.
    let (x509, audience) = match chance.below(3) {
        0 => (true, json!([])),
        1 => (false, json!(["api"])),
        _ => (true, json!(["api"])),
    };
    let workload = format!("spiffe://{TRUST_DOMAIN}/{}", WORKLOADS[workload]);
    json!({ "task_id": id, "spiffe_id": workload, "intent": "soak", "x509": x509, "audience": audience,
        "heartbeat_seconds": heartbeat })
}
