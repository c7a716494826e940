//! A reference set as machines read it: deterministic CBOR, as `references.cddl` says.

use std::collections::{BTreeMap, BTreeSet};

use serde_cbor::Value;

use super::check::{algorithm_size, refuse, split_digest};
use super::{BootState, EventReference, ReferenceSet, SecureBootReference};
use crate::clock::WallTime;
use crate::codes::Refusal;
use crate::evidence::cbor::{self, Claims, read};
use crate::tpm::Bank;
use crate::verify::runtime::{Exclusion, HexBytes, Mode, RuntimeRules};

/// How many CBOR items a document may have: a file has two, and a decoded one takes some 60 bytes.
const ITEMS_LIMIT: u32 = 1 << 20;

/// Keys, as in `references.cddl`.
mod key {
    pub const SCHEMA: i128 = 1;
    pub const NAME: i128 = 2;
    pub const VERSION: i128 = 3;
    pub const PROFILE: i128 = 4;
    pub const BANK: i128 = 5;
    pub const STATES: i128 = 6;
    pub const RUNTIME: i128 = 7;

    pub const STATE_NAME: i128 = 1;
    pub const UNTIL: i128 = 2;
    pub const EVENTS: i128 = 3;
    pub const VALUES: i128 = 4;
    pub const SECURE_BOOT: i128 = 5;

    pub const AUTHORITIES: i128 = 1;
    pub const VARIABLES: i128 = 2;

    pub const MODE: i128 = 1;
    pub const DIGESTS: i128 = 2;
    pub const FILES: i128 = 3;
    pub const SIGNERS: i128 = 4;
    pub const EXCLUSIONS: i128 = 5;
    pub const WAIVERS: i128 = 6;
    pub const BUFFERS: i128 = 7;
}

impl ReferenceSet {
    /// The set as deterministic CBOR. Only a [`ReferenceSet::checked`] one is read again.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut map = BTreeMap::new();
        put(&mut map, key::SCHEMA, Value::Integer(1));
        put(&mut map, key::NAME, Value::Text(self.name.clone()));
        put(&mut map, key::VERSION, Value::Integer(self.version.into()));
        put(&mut map, key::PROFILE, Value::Text(self.profile.clone()));
        put(&mut map, key::BANK, Value::Integer(self.bank.algorithm().into()));
        put(&mut map, key::STATES, Value::Array(self.states.iter().map(encode_state).collect()));
        if let Some(rules) = &self.runtime {
            put(&mut map, key::RUNTIME, encode_runtime(rules));
        }
        cbor::encode(&Value::Map(map))
    }

    /// Reads a set from deterministic CBOR.
    ///
    /// # Errors
    /// [`crate::codes::VERIFY_REFERENCE_MALFORMED`] naming the byte or the key.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, Refusal> {
        cbor::scan_items(bytes, None, ITEMS_LIMIT)
            .map_err(|fault| refuse(&format!("byte {}", fault.offset), fault.what))?;
        let wrong = |what: String| refuse("the set", what);
        let set = decode_set(cbor::decode(bytes).map_err(wrong)?).map_err(wrong)?.checked()?;
        // Whatever the scan lets pass (a list out of order, an empty map) isn't the one encoding.
        match set.to_cbor() == bytes {
            true => Ok(set),
            false => Err(wrong("a list out of order, with a double or without an entry".to_owned())),
        }
    }
}

fn encode_state(state: &BootState) -> Value {
    let mut map = BTreeMap::new();
    put(&mut map, key::STATE_NAME, Value::Text(state.name.clone()));
    if let Some(until) = state.until {
        put(&mut map, key::UNTIL, Value::Integer(until.0.into()));
    }
    let event = |event: &EventReference| {
        Value::Array(vec![
            Value::Text(event.kind.clone()),
            Value::Bytes(event.digest.clone()),
            Value::Text(event.what.clone()),
        ])
    };
    let events = state
        .events
        .iter()
        .map(|(pcr, events)| (Value::Integer((*pcr).into()), Value::Array(events.iter().map(event).collect())));
    put_map(&mut map, key::EVENTS, events.collect());
    let values = state.values.iter().map(|(pcr, value)| (Value::Integer((*pcr).into()), Value::Bytes(value.clone())));
    put_map(&mut map, key::VALUES, values.collect());
    if let Some(SecureBootReference { authorities, variables }) = &state.secure_boot {
        let mut secure_boot = BTreeMap::new();
        put_list(&mut secure_boot, key::AUTHORITIES, authorities.iter().cloned().map(Value::Bytes).collect());
        let variables = variables.iter().map(|(name, digests)| {
            (Value::Text(name.clone()), Value::Array(digests.iter().cloned().map(Value::Bytes).collect()))
        });
        put_map(&mut secure_boot, key::VARIABLES, variables.collect());
        put(&mut map, key::SECURE_BOOT, Value::Map(secure_boot));
    }
    Value::Map(map)
}

fn encode_runtime(rules: &RuntimeRules) -> Value {
    let mut map = BTreeMap::new();
    put(&mut map, key::MODE, Value::Integer(i128::from(rules.mode == Mode::Warn)));
    let digests = rules.digests.iter().map(|(algorithm, digests)| {
        let packed = digests.iter().flat_map(|digest| digest.0.iter().copied()).collect();
        (Value::Text(algorithm.clone()), Value::Bytes(packed))
    });
    put_map(&mut map, key::DIGESTS, digests.collect());
    put_map(&mut map, key::FILES, encode_paths(&rules.files));
    put_list(&mut map, key::SIGNERS, rules.signers.iter().cloned().map(Value::Bytes).collect());
    let argued = |list: &[Exclusion]| -> Vec<Value> {
        list.iter().map(|e| Value::Array(vec![Value::Text(e.path.clone()), Value::Text(e.reason.clone())])).collect()
    };
    put_list(&mut map, key::EXCLUSIONS, argued(&rules.exclusions));
    put_list(&mut map, key::WAIVERS, argued(&rules.waivers));
    put_map(&mut map, key::BUFFERS, encode_paths(&rules.buffers));
    Value::Map(map)
}

/// By algorithm, then by path: the algorithm's name stands once.
fn encode_paths(entries: &BTreeMap<String, Vec<String>>) -> BTreeMap<Value, Value> {
    let mut algorithms: BTreeMap<&str, BTreeMap<&str, Vec<u8>>> = BTreeMap::new();
    for (path, digests) in entries {
        for digest in digests {
            // A checked set has no other digests.
            if let Ok((algorithm, digest)) = split_digest("", digest) {
                algorithms.entry(algorithm).or_default().entry(path).or_default().extend(digest);
            }
        }
    }
    let packed = |paths: BTreeMap<&str, Vec<u8>>| {
        Value::Map(paths.into_iter().map(|(p, digests)| (Value::Text(p.to_owned()), Value::Bytes(digests))).collect())
    };
    algorithms.into_iter().map(|(a, paths)| (Value::Text(a.to_owned()), packed(paths))).collect()
}

fn put(map: &mut BTreeMap<Value, Value>, key: i128, value: Value) {
    map.insert(Value::Integer(key), value);
}

fn put_map(map: &mut BTreeMap<Value, Value>, key: i128, value: BTreeMap<Value, Value>) {
    if !value.is_empty() {
        put(map, key, Value::Map(value));
    }
}

fn put_list(map: &mut BTreeMap<Value, Value>, key: i128, value: Vec<Value>) {
    if !value.is_empty() {
        put(map, key, Value::Array(value));
    }
}

fn decode_set(value: Value) -> Result<ReferenceSet, String> {
    let mut claims = Claims::of(value)?;
    claims.take(key::SCHEMA, |value| (read::integer::<u64>(value)? == 1).then_some(()))?;
    let set = ReferenceSet {
        name: claims.take(key::NAME, read::text)?,
        version: claims.take(key::VERSION, read::integer)?,
        profile: claims.take(key::PROFILE, read::text)?,
        bank: claims.take(key::BANK, |value| Bank::from_algorithm(read::integer(value)?))?,
        states: (claims.take(key::STATES, list)?.into_iter())
            .enumerate()
            .map(|(number, state)| decode_state(state).map_err(|what| format!("state {number}: {what}")))
            .collect::<Result<_, _>>()?,
        runtime: (claims.take_optional(key::RUNTIME, Some)?)
            .map(|rules| decode_runtime(rules).map_err(|what| format!("runtime: {what}")))
            .transpose()?,
    };
    claims.end()?;
    Ok(set)
}

fn decode_state(value: Value) -> Result<BootState, String> {
    let mut claims = Claims::of(value)?;
    let pcrs = |value: Value| -> Option<Vec<(u8, Value)>> {
        map(value)?.into_iter().map(|(pcr, value)| Some((read::integer(pcr)?, value))).collect()
    };
    let state = BootState {
        name: claims.take(key::STATE_NAME, read::text)?,
        until: claims.take_optional(key::UNTIL, read::integer)?.map(WallTime),
        events: claims
            .take_optional(key::EVENTS, |value| {
                pcrs(value)?.into_iter().map(|(pcr, events)| Some((pcr, decode_events(events)?))).collect()
            })?
            .unwrap_or_default(),
        values: claims
            .take_optional(key::VALUES, |value| {
                pcrs(value)?.into_iter().map(|(pcr, value)| Some((pcr, read::bytes(value)?))).collect()
            })?
            .unwrap_or_default(),
        secure_boot: claims.take_optional(key::SECURE_BOOT, Some)?.map(decode_secure_boot).transpose()?,
    };
    claims.end()?;
    Ok(state)
}

fn decode_events(value: Value) -> Option<Vec<EventReference>> {
    let event = |value: Value| {
        let [kind, digest, what] = read::tuple(value)?;
        Some(EventReference { kind: read::text(kind)?, digest: read::bytes(digest)?, what: read::text(what)? })
    };
    list(value)?.into_iter().map(event).collect()
}

fn decode_secure_boot(value: Value) -> Result<SecureBootReference, String> {
    let mut claims = Claims::of(value)?;
    let secure_boot = SecureBootReference {
        authorities: claims.take_optional(key::AUTHORITIES, byte_strings)?.unwrap_or_default(),
        variables: claims
            .take_optional(key::VARIABLES, |value| {
                map(value)?.into_iter().map(|(name, list)| Some((read::text(name)?, byte_strings(list)?))).collect()
            })?
            .unwrap_or_default(),
    };
    claims.end().map_err(|what| format!("secure boot: {what}"))?;
    Ok(secure_boot)
}

fn decode_runtime(value: Value) -> Result<RuntimeRules, String> {
    let mut claims = Claims::of(value)?;
    let rules = RuntimeRules {
        mode: claims.take(key::MODE, |value| match read::integer::<u8>(value)? {
            0 => Some(Mode::Enforce),
            1 => Some(Mode::Warn),
            _ => None,
        })?,
        digests: claims.take_optional(key::DIGESTS, decode_digests)?.unwrap_or_default(),
        files: claims.take_optional(key::FILES, decode_paths)?.unwrap_or_default(),
        signers: claims.take_optional(key::SIGNERS, byte_strings)?.unwrap_or_default(),
        exclusions: claims.take_optional(key::EXCLUSIONS, decode_argued)?.unwrap_or_default(),
        waivers: claims.take_optional(key::WAIVERS, decode_argued)?.unwrap_or_default(),
        buffers: claims.take_optional(key::BUFFERS, decode_paths)?.unwrap_or_default(),
    };
    claims.end()?;
    Ok(rules)
}

fn decode_digests(value: Value) -> Option<BTreeMap<String, BTreeSet<HexBytes>>> {
    let digests = |(algorithm, packed): (Value, Value)| {
        let algorithm = read::text(algorithm)?;
        let digests = unpack(&algorithm, &read::bytes(packed)?)?.into_iter().map(HexBytes).collect();
        Some((algorithm, digests))
    };
    map(value)?.into_iter().map(digests).collect()
}

fn decode_paths(value: Value) -> Option<BTreeMap<String, Vec<String>>> {
    let mut entries: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (algorithm, paths) in map(value)? {
        let algorithm = read::text(algorithm)?;
        for (path, packed) in map(paths)? {
            let digests = unpack(&algorithm, &read::bytes(packed)?)?;
            let texts = digests.into_iter().map(|digest| format!("{algorithm}:{}", hex::encode(digest)));
            entries.entry(read::text(path)?).or_default().extend(texts);
        }
    }
    Some(entries)
}

/// The digests of one byte string; that they stand in order is seen when the set is encoded again.
fn unpack(algorithm: &str, packed: &[u8]) -> Option<Vec<Vec<u8>>> {
    let digests = packed.chunks_exact(algorithm_size("", algorithm).ok()?);
    digests.remainder().is_empty().then(|| digests.map(<[u8]>::to_vec).collect())
}

fn decode_argued(value: Value) -> Option<Vec<Exclusion>> {
    let argued = |value: Value| {
        let [path, reason] = read::tuple(value)?;
        Some(Exclusion { path: read::text(path)?, reason: read::text(reason)? })
    };
    list(value)?.into_iter().map(argued).collect()
}

fn byte_strings(value: Value) -> Option<Vec<Vec<u8>>> {
    list(value)?.into_iter().map(read::bytes).collect()
}

fn list(value: Value) -> Option<Vec<Value>> {
    if let Value::Array(items) = value { Some(items) } else { None }
}

fn map(value: Value) -> Option<BTreeMap<Value, Value>> {
    if let Value::Map(map) = value { Some(map) } else { None }
}
