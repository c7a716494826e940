//! The tokens that were given to this node: what is taken back of them isn't accepted here either, also of
//! those that processes have and nobody holds any more.

use std::collections::{BTreeMap, VecDeque};

use crate::clock::BootInstant;
use crate::codes::Refusal;
use crate::protocol::Withdrawn;

/// Tokens that are remembered of one workload, the newest ones: its own haste pushes out no other's.
const OF_A_WORKLOAD: usize = 1024;

/// Workloads that tokens are remembered of.
const WORKLOADS: usize = 4096;

/// By workload, in the order of their issue.
#[derive(Debug, Default)]
pub(super) struct Issued {
    of: BTreeMap<String, VecDeque<Token>>,
}

#[derive(Debug)]
struct Token {
    jti: String,
    task: Option<String>,
    /// Nobody accepts it from then on.
    until: BootInstant,
    /// Why it isn't accepted any more.
    taken: Option<Refusal>,
}

impl Issued {
    /// Remembers a token until nobody accepts it anyway.
    pub(super) fn note(&mut self, workload: &str, jti: &str, task: Option<&str>, until: BootInstant, now: BootInstant) {
        if !self.of.contains_key(workload) && self.of.len() >= WORKLOADS {
            self.of.retain(|_, tokens| tokens.iter().any(|token| now < token.until));
            if self.of.len() >= WORKLOADS {
                self.of.pop_first();
            }
        }
        let tokens = self.of.entry(workload.to_owned()).or_default();
        tokens.retain(|token| now < token.until);
        if tokens.len() >= OF_A_WORKLOAD {
            tokens.pop_front();
        }
        tokens.push_back(Token { jti: jti.to_owned(), task: task.map(str::to_owned), until, taken: None });
    }

    /// From now on none of these is accepted.
    pub(super) fn take(&mut self, withdrawn: &Withdrawn, why: &Refusal) {
        match withdrawn {
            Withdrawn::Node => self.of.values_mut().for_each(|tokens| mark(tokens, why, |_| true)),
            Withdrawn::Workloads(ids) => {
                for id in ids {
                    self.of.get_mut(id).into_iter().for_each(|tokens| mark(tokens, why, |_| true));
                }
            }
            Withdrawn::Credential(id) => {
                self.of.values_mut().for_each(|tokens| mark(tokens, why, |token| token.jti == *id));
            }
            Withdrawn::Task(id) => {
                self.of.values_mut().for_each(|tokens| mark(tokens, why, |token| token.task.as_ref() == Some(id)));
            }
        }
    }

    /// A task of a workload ended, and what it was given with it.
    pub(super) fn end_task(&mut self, workload: &str, task: &str, why: &Refusal) {
        let tokens = self.of.get_mut(workload).into_iter();
        tokens.for_each(|tokens| mark(tokens, why, |token| token.task.as_deref() == Some(task)));
    }

    /// Why a token of this node isn't accepted, if it isn't.
    pub(super) fn taken(&self, workload: &str, jti: &str) -> Option<&Refusal> {
        let mut tokens = self.of.get(workload)?.iter();
        tokens.find(|token| token.jti == jti)?.taken.as_ref()
    }
}

fn mark(tokens: &mut VecDeque<Token>, why: &Refusal, which: impl Fn(&Token) -> bool) {
    for token in tokens.iter_mut().filter(|token| token.taken.is_none() && which(token)) {
        token.taken = Some(why.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes;

    const SOON: BootInstant = BootInstant::from_nanos(10);
    const LATER: BootInstant = BootInstant::from_nanos(20);
    const NOW: BootInstant = BootInstant::from_nanos(1);

    /// Of two workloads, with and without a task.
    fn some() -> Issued {
        let mut issued = Issued::default();
        for (workload, jti, task) in
            [("a", "1", None), ("a", "2", Some("t")), ("b", "3", Some("t")), ("b", "4", Some("u"))]
        {
            issued.note(workload, jti, task, LATER, NOW);
        }
        issued
    }

    #[test]
    fn what_is_taken_back_is_what_is_named_and_of_the_time_before() {
        let why = Refusal::new(codes::GATE_REVOKED, "a test");
        let all = [("a", "1"), ("a", "2"), ("b", "3"), ("b", "4")];
        let cases: [(Withdrawn, &[&str]); 5] = [
            (Withdrawn::Node, &["1", "2", "3", "4"]),
            (Withdrawn::Workloads(vec!["a".to_owned(), "c".to_owned()]), &["1", "2"]),
            (Withdrawn::Task("t".to_owned()), &["2", "3"]),
            (Withdrawn::Credential("4".to_owned()), &["4"]),
            (Withdrawn::Credential("a".to_owned()), &[]),
        ];
        for (withdrawn, expected) in cases {
            let mut issued = some();
            issued.take(&withdrawn, &why);
            let denied: Vec<_> = all.iter().filter(|(id, jti)| issued.taken(id, jti).is_some()).collect();
            assert_eq!(denied.iter().map(|(_, jti)| *jti).collect::<Vec<_>>(), expected, "{withdrawn:?}");
            // What is decided anew is another matter.
            issued.note("a", "5", Some("t"), LATER, NOW);
            assert!(issued.taken("a", "5").is_none());
        }
        let mut issued = some();
        issued.end_task("a", "t", &why);
        assert!(
            issued.taken("a", "2").is_some() && issued.taken("b", "3").is_none() && issued.taken("a", "1").is_none()
        );
    }

    #[test]
    fn it_stays_within_its_bounds_and_forgets_what_is_over() {
        let mut issued = some();
        for number in 0..2 * OF_A_WORKLOAD {
            issued.note("c", &number.to_string(), None, SOON, NOW);
        }
        assert_eq!((issued.of["a"].len(), issued.of["b"].len(), issued.of["c"].len()), (2, 2, OF_A_WORKLOAD));
        issued.note("c", "last", None, LATER, SOON);
        assert_eq!(issued.of["c"].len(), 1);
        for number in 0..WORKLOADS {
            issued.note(&format!("w{number}"), "1", None, LATER, NOW);
        }
        assert_eq!(issued.of.len(), WORKLOADS);
    }
}
