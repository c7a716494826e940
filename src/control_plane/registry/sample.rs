//! Random registries for tests.

use proptest::prelude::*;

use super::destinations::{self, Destination};
use super::eks::{self, Kind, Words};
use super::nodes::{self, Node, State};
use super::owners;
use super::rules::Rules;
use super::workloads::{self, Stated, Workload};
use crate::clock::WallTime;
use crate::config::RegistryConfig;
use crate::control_plane::store::{Store, Transaction};
use crate::identity::{NodeId, TrustDomain};

/// When everything in them happened.
pub const NOW: WallTime = WallTime(1_800_000_000);

/// What a registry is made from.
#[derive(Clone, Debug)]
pub struct Sample {
    pub owners: Vec<(String, bool, bool)>,
    pub destinations: Vec<(String, bool)>,
    pub nodes: Vec<(Option<bool>, bool)>,
    pub eks: Vec<(String, Option<bool>, bool)>,
    pub workloads: Vec<SampleWorkload>,
}

/// A workload; numbers pick among what there is.
#[derive(Clone, Debug)]
pub struct SampleWorkload {
    pub prod: bool,
    pub owner: usize,
    pub node: Option<usize>,
    pub texts: [String; 3],
    pub numbers: (Option<u64>, Option<u8>),
    pub lists: [Vec<String>; 2],
    pub destination: Option<usize>,
    pub flags: [bool; 3],
}

/// Texts as people write them, with what is special in TOML, SQL, JSON and on terminals.
pub fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z][a-z ]{0,12}[a-z]",
        "[\\PC]{1,24}".prop_filter("says something", |text| super::names::text("x", text).is_ok()),
        prop::sample::select(vec![
            "\"",
            "'",
            "\\",
            "a\"\"\"b",
            "'''",
            "# no comment",
            "[[owner]]",
            "x = 1",
            "'; DROP TABLE owners; --",
            "\\u0041",
            "ü€😀",
            "{}",
            "%s",
            "=1+1",
            "true",
        ])
        .prop_map(str::to_owned),
    ]
}

/// Random registries.
pub fn samples() -> impl Strategy<Value = Sample> {
    let name = "[a-zA-Z0-9._-]{1,8}";
    let workload = (
        (any::<bool>(), any::<usize>(), any::<Option<usize>>()),
        [text(), text(), text()],
        (prop::option::of(1_u64..900), prop::option::of(1_u8..=4)),
        [prop::collection::vec(text().boxed(), 0..3), prop::collection::vec(name.prop_map(|name| name).boxed(), 0..3)],
        prop::option::of(any::<usize>()),
        any::<[bool; 3]>(),
    );
    let workload = workload.prop_map(|((prod, owner, node), texts, numbers, lists, destination, flags)| {
        SampleWorkload { prod, owner, node, texts, numbers, lists, destination, flags }
    });
    (
        prop::collection::vec((text(), any::<bool>(), any::<bool>()), 1..5),
        prop::collection::vec((name, any::<bool>()), 0..4),
        prop::collection::vec((any::<Option<bool>>(), any::<bool>()), 0..5),
        prop::collection::vec((text(), any::<Option<bool>>(), any::<bool>()), 0..3),
        prop::collection::vec(workload, 0..8),
    )
        .prop_map(|(owners, destinations, nodes, eks, workloads)| Sample {
            owners,
            destinations,
            nodes,
            eks,
            workloads,
        })
}

/// Rules with two environments.
pub fn rules() -> Rules {
    let environments = vec!["prod".to_owned(), "dev".to_owned()];
    let config = RegistryConfig { environments, ..RegistryConfig::default() };
    Rules::check(&TrustDomain::new("example.org").unwrap(), &config).unwrap()
}

/// A new store.
pub fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store.db")).unwrap();
    (dir, store)
}

fn environment(prod: bool) -> String {
    if prod { "prod" } else { "dev" }.to_owned()
}

fn group(of: Option<bool>, prod: bool) -> Option<String> {
    of.map(|one| format!("{}-{}", environment(prod), if one { "edge" } else { "core" }))
}

impl Sample {
    /// The nodes of it: they prove themselves, nobody declares them.
    pub fn enrol(&self, tx: &Transaction<'_>, placed: bool) {
        for (number, (of, prod)) in self.nodes.iter().enumerate() {
            let mut id = [0; 32];
            id[0] = u8::try_from(number + 1).unwrap();
            let mut node = Node { id: NodeId::from_bytes(id), state: State::Admitted, ..nodes::tests::waiting(id[0]) };
            if placed {
                node = Node { group: group(*of, *prod), environment: environment(*prod), ..node };
            }
            nodes::put(tx, &node).unwrap();
        }
    }

    /// Writes it into a store, leaving out what the registry refuses.
    pub fn write(&self, tx: &Transaction<'_>) {
        let rules = rules();
        self.enrol(tx, true);
        for (name, person, _) in &self.owners {
            let kind = if *person { owners::Kind::Person } else { owners::Kind::Team };
            let stated = owners::Stated { name: name.clone(), contact: name.clone(), kind, again: false };
            owners::put(tx, &stated, NOW).unwrap();
        }
        for (name, prod) in &self.destinations {
            let destination =
                Destination { name: name.clone(), environment: environment(*prod), description: name.clone() };
            destinations::put(tx, &destination.checked(&rules).unwrap(), NOW).unwrap();
        }
        for (number, (label, of, prod)) in self.eks.iter().enumerate() {
            let value = [&[0, 0x0B][..], &[u8::try_from(number).unwrap(); 32]].concat();
            let words = Words { label: label.clone(), group: group(*of, *prod), environment: environment(*prod) };
            eks::put(tx, Kind::Name, &value, &words.checked(&rules).unwrap(), NOW).unwrap();
        }
        let known = nodes::all(tx).unwrap();
        for (number, sample) in self.workloads.iter().enumerate() {
            let mut of_environment: Vec<&str> = self
                .destinations
                .iter()
                .filter(|(_, prod)| *prod == sample.prod)
                .map(|(name, _)| name.as_str())
                .collect();
            // The later of two of one name stands.
            of_environment.retain(|name| {
                destinations::find(tx, name).unwrap().is_some_and(|found| found.environment == environment(sample.prod))
            });
            let node = sample.node.filter(|_| !known.is_empty()).map(|at| &known[at % known.len()]);
            let stated = Stated {
                id: format!("spiffe://example.org/{}/w{number}", environment(sample.prod)),
                owner: self.owners[sample.owner % self.owners.len()].0.clone(),
                purpose: sample.texts[0].clone(),
                hint: sample.texts[1].clone(),
                description: sample.texts[2].clone(),
                ttl_seconds: sample.numbers.0,
                tier: sample.numbers.1,
                node: node.map(|node| node.id.to_string()),
                node_group: node.is_none().then(|| group(Some(sample.flags[0]), sample.prod).unwrap()),
                selectors: vec![format!("unix:uid:{number}"), format!("unix:path:/bin/\"{number}\\")],
                audiences: sample.lists[0].clone(),
                roles: sample.lists[1].clone(),
                destinations: sample
                    .destination
                    .filter(|_| !of_environment.is_empty())
                    .map(|at| of_environment[at % of_environment.len()].to_owned())
                    .into_iter()
                    .collect(),
                third_party: false,
                interactive: sample.flags[1],
            };
            // A node of the other environment, a role twice: refused, and then it isn't there.
            let Ok(workload) = Workload::check(tx, stated, &rules) else { continue };
            let suspended = sample.flags[2].then(|| workloads::Suspension { at: NOW, reason: sample.texts[0].clone() });
            workloads::put(tx, &Workload { suspended, ..workload }, NOW).unwrap();
        }
        for (name, _, left) in &self.owners {
            if *left {
                owners::retire(tx, name, None, "left", NOW).unwrap();
            }
        }
    }
}
