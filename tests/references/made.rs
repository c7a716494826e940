//! Sets made for tests, and a strategy for any.

use std::collections::{BTreeMap, BTreeSet};

use leasehold::clock::WallTime;
use leasehold::tpm::Bank;
use leasehold::verify::references::{BootState, EventReference, ReferenceSet, SecureBootReference};
use leasehold::verify::runtime::{Exclusion, HexBytes, Mode, RuntimeRules};
use p256::ecdsa::SigningKey;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_slice(&[seed; 32]).unwrap()
}

/// A set as somebody would write it.
pub const TEXT: &str = r#"
schema = 1
name = "edge-fleet"
version = 3
profile = "uefi-uki"
bank = "sha256"

[[state]]
name = "6.1.0-56"
until = "2026-12-01T00:00:00Z"
[[state.event]]
pcr = 11
type = "EV_IPL"
digest = "0101010101010101010101010101010101010101010101010101010101010101"
what = "UKI section .cmdline"
[state.value]
0 = "0202020202020202020202020202020202020202020202020202020202020202"
[state.secure_boot]
authorities = ["0303030303030303030303030303030303030303030303030303030303030303"]
[state.secure_boot.variables]
db = ["0404040404040404040404040404040404040404040404040404040404040404"]

[[state]]
name = "6.1.0-57"
[state.secure_boot]

[runtime]
mode = "warn"
[runtime.digests]
sha256 = ["0505050505050505050505050505050505050505050505050505050505050505"]
[runtime.files]
"/bin/x" = ["sha256:0606060606060606060606060606060606060606060606060606060606060606"]
[[runtime.exclude]]
path = "/var/lib/containers/"
reason = "layers are judged by their own digests"
[[runtime.waive]]
path = "/var/log/wtmp"
reason = "login writes it while it is read"
"#;

pub fn set() -> ReferenceSet {
    ReferenceSet::from_toml(TEXT, "edge.toml").unwrap()
}

fn name() -> impl Strategy<Value = String> {
    "[!-~]{1,64}"
}

/// Text with what a writer of TOML must escape.
fn words() -> impl Strategy<Value = String> {
    "[ -~\"\\\\'#äß→]{1,40}"
}

/// A path of two names, odd ones.
fn path() -> impl Strategy<Value = String> {
    ("[ -.0-~äß→]{1,20}", "[!-.0-~]{1,10}").prop_map(|(directory, file)| format!("/x{directory}/y{file}"))
}

fn bytes(size: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), size)
}

fn file_digest() -> impl Strategy<Value = String> {
    prop_oneof![
        bytes(32).prop_map(|digest| format!("sha256:{}", hex::encode(digest))),
        bytes(64).prop_map(|digest| format!("sha512:{}", hex::encode(digest))),
    ]
}

fn files() -> impl Strategy<Value = BTreeMap<String, Vec<String>>> {
    let digests = btree_set(file_digest(), 1..4).prop_map(|set| set.into_iter().collect());
    btree_map(path(), digests, 0..5)
}

fn argued() -> impl Strategy<Value = Vec<Exclusion>> {
    btree_map(path(), words(), 0..4)
        .prop_map(|map| map.into_iter().map(|(path, reason)| Exclusion { path, reason }).collect())
}

fn runtime() -> impl Strategy<Value = RuntimeRules> {
    let digests = btree_set(bytes(48).prop_map(HexBytes), 1..5)
        .prop_map(|digests| BTreeMap::<String, BTreeSet<HexBytes>>::from([("sha384".to_owned(), digests)]));
    let digests = prop_oneof![Just(BTreeMap::new()), digests];
    (any::<bool>(), digests, files(), argued(), argued(), files()).prop_map(
        |(warn, digests, files, exclusions, waivers, buffers)| RuntimeRules {
            mode: if warn { Mode::Warn } else { Mode::Enforce },
            digests,
            files,
            signers: Vec::new(),
            exclusions,
            waivers,
            buffers,
        },
    )
}

fn state(size: usize) -> impl Strategy<Value = BootState> {
    let kind = prop_oneof![Just("EV_IPL"), Just("systemd:phase"), Just("0x80000099"), Just("EV_SEPARATOR")];
    let event = (kind, bytes(size), words()).prop_map(|(kind, digest, what)| EventReference {
        kind: kind.to_owned(),
        digest,
        what,
    });
    let secure_boot = (
        btree_set(bytes(32), 0..3),
        btree_map(prop_oneof![Just("db"), Just("PK")].prop_map(str::to_owned), btree_set(bytes(32), 1..3), 0..2),
    )
        .prop_map(|(authorities, variables)| SecureBootReference {
            authorities: authorities.into_iter().collect(),
            variables: variables.into_iter().map(|(name, set)| (name, set.into_iter().collect())).collect(),
        });
    (
        option::of(0u64..253_402_300_800),
        btree_map(0u8..12, vec(event, 1..5), 0..4),
        btree_map(12u8..24, bytes(size), 0..4),
        option::of(secure_boot),
    )
        .prop_map(|(until, events, values, secure_boot)| BootState {
            name: String::new(),
            until: until.map(WallTime),
            events,
            values,
            secure_boot,
        })
}

/// Any set that keeps to its bounds, in its one form.
pub fn any_set() -> impl Strategy<Value = ReferenceSet> {
    prop_oneof![Just(Bank::Sha256), Just(Bank::Sha384), Just(Bank::Sha512)].prop_flat_map(|bank| {
        let states = btree_map(name(), state(bank.size()), 1..4);
        (name(), 1u64..1 << 40, name(), states, option::of(runtime())).prop_map(
            move |(name, version, profile, states, runtime)| ReferenceSet {
                name,
                version,
                profile,
                bank,
                states: states.into_iter().map(|(name, state)| BootState { name, ..state }).collect(),
                runtime,
            },
        )
    })
}
