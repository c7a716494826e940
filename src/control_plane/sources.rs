//! Where strangers connect from: no address takes more than its share of places, and the addresses
//! that nodes connect from have some for themselves.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::shutdown::CancellationToken;

/// How many connections may be without, or before, a client certificate …
const STRANGERS: usize = 4096;
/// … and how many more from addresses that nodes connected from.
const RESERVE: usize = 1024;
/// How many of them from one address …
const PER_SOURCE: usize = 64;
/// … and from one that nodes connect from: a site of them may be behind one address.
const PER_NODES_SOURCE: usize = 1024;
/// Nodes' addresses that are remembered; beyond that it begins anew.
const REMEMBERED: usize = 16_384;

/// Who is connected without a certificate, by address.
#[derive(Debug, Default)]
pub struct Sources(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    visits: HashMap<IpAddr, VecDeque<(u64, CancellationToken)>>,
    total: usize,
    number: u64,
    nodes: HashSet<IpAddr>,
}

/// A connection's place, which is free again when this is dropped.
#[derive(Debug)]
pub struct Visit {
    sources: Arc<Sources>,
    source: IpAddr,
    number: u64,
    /// Cancelled when the place is needed for a later connection from the same address.
    pub over: CancellationToken,
}

impl Sources {
    /// A place for a connection from `address`, if there is one. An address that has had its share
    /// loses its oldest connection: an honest handshake takes milliseconds and is rarely that one.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Visit> {
        let source = of(address);
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_nodes = state.nodes.contains(&source);
        let (share, places) = match has_nodes {
            true => (PER_NODES_SOURCE, STRANGERS + RESERVE),
            false => (PER_SOURCE, STRANGERS),
        };
        let oldest = state.visits.get(&source).filter(|visits| visits.len() >= share).and_then(|v| v.front().cloned());
        if let Some((number, over)) = oldest {
            over.cancel();
            state.leave(source, number);
        }
        if state.total >= places {
            return None;
        }
        state.total += 1;
        state.number += 1;
        let (number, over) = (state.number, CancellationToken::new());
        state.visits.entry(source).or_default().push_back((number, over.clone()));
        Some(Visit { sources: self.clone(), source, number, over })
    }
}

impl Visit {
    /// It turned out to be a node: its address is one that nodes connect from.
    pub fn is_node(self) {
        let mut state = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.nodes.len() >= REMEMBERED {
            state.nodes.clear();
        }
        state.nodes.insert(self.source);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.sources.0.lock().unwrap_or_else(PoisonError::into_inner).leave(self.source, self.number);
    }
}

impl State {
    /// Frees a place, once: the visit may have lost it already.
    fn leave(&mut self, source: IpAddr, number: u64) {
        let Some(visits) = self.visits.get_mut(&source) else { return };
        let Some(at) = visits.iter().position(|(of, _)| *of == number) else { return };
        visits.remove(at);
        self.total = self.total.saturating_sub(1);
        if visits.is_empty() {
            self.visits.remove(&source);
        }
    }
}

/// What counts as one address: of IPv6 the first 64 bits, which is what a subscriber gets at least.
fn of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_has_its_share_and_loses_its_oldest_beyond_it() {
        let sources = Arc::new(Sources::default());
        let mut visits: Vec<Visit> =
            (0..PER_SOURCE).map(|n| sources.enter(address(&format!("2001:db8::{n:x}"))).unwrap()).collect();
        let other = sources.enter(address("2001:db8:0:1::1")).unwrap();
        assert!(!visits[0].over.is_cancelled());
        visits.push(sources.enter(address("2001:db8::ffff")).unwrap());
        let over: Vec<bool> = visits.iter().map(|visit| visit.over.is_cancelled()).collect();
        assert!(over[0] && !over[1..].contains(&true) && !other.over.is_cancelled());
        // Its places are counted once, whenever the visit itself ends.
        drop((visits, other));
        let state = sources.0.lock().unwrap();
        assert_eq!((state.total, state.visits.len()), (0, 0));
        assert_eq!(of(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }

    #[test]
    fn strangers_from_everywhere_leave_places_where_nodes_are() {
        let sources = Arc::new(Sources::default());
        sources.enter(address("192.0.2.1")).unwrap().is_node();
        let _strangers: Vec<Visit> =
            (0..STRANGERS).map(|n| sources.enter(IpAddr::V4((0x0A00_0000 + n as u32).into())).unwrap()).collect();
        assert!(sources.enter(address("198.51.100.1")).is_none());
        assert!(sources.enter(address("192.0.2.1")).is_some());
    }
}
