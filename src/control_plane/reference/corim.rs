//! Reference sets as CoRIM (draft-ietf-rats-corim), unsigned: a CoMID for each state, and one for
//! the files that may run.
//!
//! ```text
//! #6.501 { id: set's name, profile: PROFILE,
//!   tags: #6.506 { tag-identity: [state's name, set's version],
//!     reference triple: [{class: {vendor: "leasehold", model: firmware profile}}, [
//!       mkey "pcr/11/0/EV_IPL":  {name: words, digests: [[alg, digest]]}     an event, by its place
//!       mkey "pcr/0":            {integrity-registers: {0: [[alg, value]]}}  a whole value
//!       mkey "secure-boot":      {flags: {is-secure: true}}
//!       mkey "secure-boot/authorities", "secure-boot/db": {digests: …}       any one of them
//!       mkey "file:/bin/x":      {digests: …}                                in the CoMID "runtime" ]] } }
//! ```
//!
//! A CoRIM of others is taken for its integrity registers, which are PCR values. What neither form
//! has a place for is refused, not dropped.

use std::collections::BTreeMap;

use corim::builder::{ComidBuilder, CorimBuilder};
use corim::cbor::value::Tagged;
use corim::types::comid::ComidTag;
use corim::types::common::{MeasuredElement, TagIdChoice};
use corim::types::corim::{ConciseTagChoice, CorimId, CorimMap, ProfileChoice};
use corim::types::environment::EnvironmentMap;
use corim::types::measurement::{
    Digest, DigestAlg, FlagsMap, IntegrityRegisterId, IntegrityRegisters, MeasurementMap, MeasurementValuesMap,
};
use corim::types::triples::ReferenceTriple;

use super::unusable;
use crate::codes::Refusal;
use crate::measurements::LogHash;
use crate::tpm::Bank;
use crate::verify::references::{BootState, EventReference, ReferenceSet, SecureBootReference};
use crate::verify::runtime::{Mode, RuntimeRules};

/// The CoRIM profile: what the keys above mean.
pub const PROFILE: &str = "urn:uuid:3c1f9d42-6f0b-4b55-9f35-0a1d0c5e7e21";
/// How a CoRIM begins: tag 501.
const TAG: [u8; 3] = [0xD9, 0x01, 0xF5];
/// The tag's number.
const CORIM: u64 = 501;
/// Who makes the environments of our own CoRIMs.
const VENDOR: &str = "leasehold";
/// The CoMID of the files.
const RUNTIME: &str = "runtime";

/// Secure Boot must be on.
const SECURE: FlagsMap = FlagsMap {
    is_secure: Some(true),
    is_configured: None,
    is_recovery: None,
    is_debug: None,
    is_replay_protected: None,
    is_integrity_protected: None,
    is_runtime_meas: None,
    is_immutable: None,
    is_tcb: None,
    is_confidentiality_protected: None,
    is_runtime_updatable: None,
};

/// Whether these bytes are an unsigned CoRIM.
pub fn is_corim(bytes: &[u8]) -> bool {
    bytes.starts_with(&TAG)
}

/// The set as a CoRIM, and in words what was left out. Whoever reads it accepts less, never more.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`] when no state is left, for rules without files, or more than a CoRIM may have.
pub fn export(set: &ReferenceSet) -> Result<(Vec<u8>, Vec<String>), Refusal> {
    let mut notes = Vec::new();
    let algorithm = named(set.bank.into());
    let mut corim =
        CorimBuilder::new(CorimId::Text(set.name.clone())).set_profile(ProfileChoice::Uri(PROFILE.to_owned()));
    let mut said = 0usize;
    for state in &set.states {
        if let Some(until) = state.until {
            notes.push(format!("state `{}` ends at {until}, which a CoRIM's tag can't say: left out", state.name));
            continue;
        }
        let measurements = state_measurements(state, algorithm);
        if measurements.is_empty() {
            notes.push(format!("state `{}` says nothing, which a CoRIM's tag can't: left out", state.name));
            continue;
        }
        corim = corim.add_comid_tag(comid(set, &state.name, measurements)?).map_err(failed)?;
        said = said.saturating_add(1);
    }
    // Without any state no boot would be judged at all: that would accept more.
    if said == 0 && !set.states.is_empty() {
        return Err(refuse("no state that a CoRIM can say").expected("one without an end, that says something"));
    }
    if let Some(rules) = &set.runtime {
        notes.extend(unsaid(rules));
        let files: Vec<MeasurementMap> = rules
            .files
            .iter()
            .map(|(path, digests)| {
                let digests = digests.iter().filter_map(|digest| {
                    let (name, digits) = digest.split_once(':')?;
                    Some(Digest::new(named(LogHash::from_name(name)?), hex::decode(digits).ok()?))
                });
                measurement(format!("file:{path}"), digests.collect(), None)
            })
            .collect();
        // Without any rules the runtime layer wouldn't be judged at all: that would accept more.
        if files.is_empty() {
            return Err(refuse("rules for the runtime without a file").expected("files: a CoRIM has no other rules"));
        }
        corim = corim.add_comid_tag(comid(set, RUNTIME, files)?).map_err(failed)?;
    }
    Ok((corim.build_bytes().map_err(failed)?, notes))
}

/// The set that a CoRIM says.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`] naming what can't be taken.
pub fn import(bytes: &[u8]) -> Result<ReferenceSet, Refusal> {
    let tagged: Tagged<CorimMap> = corim::cbor::decode_exact(bytes).map_err(failed)?;
    let corim = tagged.value;
    if tagged.tag != CORIM {
        return Err(refuse(format!("tag {}", tagged.tag)).expected("501, an unsigned CoRIM"));
    }
    let CorimMap { id: CorimId::Text(name), profile, dependent_rims: None, rim_validity: None, .. } = &corim else {
        return Err(
            refuse("an id that isn't text, other manifests it rests on, or a validity").expected("none of these")
        );
    };
    let ours = *profile == Some(ProfileChoice::Uri(PROFILE.to_owned()));
    if !ours && profile.is_some() {
        return Err(refuse(format!("profile {profile:?}")).expected(format!("{PROFILE}, or none")));
    }
    let mut reading = Reading { ours, ..Reading::default() };
    for tag in &corim.tags {
        let ConciseTagChoice::Comid(_) = tag else {
            return Err(refuse("a tag that is no CoMID").expected("CoMIDs only (tag 506)"));
        };
        reading.comid(&tag.as_comid().map_err(failed)?)?;
    }
    reading.finish(name)
}

fn comid(set: &ReferenceSet, name: &str, measurements: Vec<MeasurementMap>) -> Result<ComidTag, Refusal> {
    ComidBuilder::new(TagIdChoice::Text(name.to_owned()))
        .set_tag_version(set.version)
        .add_reference_triple(ReferenceTriple::new(EnvironmentMap::for_class(VENDOR, &set.profile), measurements))
        .build()
        .map_err(failed)
}

fn state_measurements(state: &BootState, algorithm: i64) -> Vec<MeasurementMap> {
    let mut measurements = Vec::new();
    for (pcr, events) in &state.events {
        measurements.extend(events.iter().enumerate().map(|(number, event)| {
            let digests = vec![Digest::new(algorithm, event.digest.clone())];
            measurement(format!("pcr/{pcr}/{number}/{}", event.kind), digests, Some(event.what.clone()))
        }));
    }
    for (pcr, value) in &state.values {
        let mut values = MeasurementValuesMap::new();
        let digests = vec![Digest::new(algorithm, value.clone())];
        values.integrity_registers =
            Some(IntegrityRegisters(BTreeMap::from([(IntegrityRegisterId::Uint((*pcr).into()), digests)])));
        measurements.push(keyed(format!("pcr/{pcr}"), values));
    }
    if let Some(SecureBootReference { authorities, variables }) = &state.secure_boot {
        let mut values = MeasurementValuesMap::new();
        values.flags = Some(SECURE);
        measurements.push(keyed("secure-boot".to_owned(), values));
        let sha256 =
            |list: &[Vec<u8>]| list.iter().map(|digest| Digest::new(named(LogHash::Sha256), digest.clone())).collect();
        if !authorities.is_empty() {
            measurements.push(measurement("secure-boot/authorities".to_owned(), sha256(authorities), None));
        }
        measurements.extend(
            variables.iter().map(|(name, list)| measurement(format!("secure-boot/{name}"), sha256(list), None)),
        );
    }
    measurements
}

fn unsaid(rules: &RuntimeRules) -> Vec<String> {
    [
        (rules.mode == Mode::Warn, "the mode `warn`"),
        (!rules.digests.is_empty(), "digests that are allowed anywhere"),
        (!rules.signers.is_empty(), "signers"),
        (!rules.exclusions.is_empty(), "exclusions"),
        (!rules.waivers.is_empty(), "waivers"),
        (!rules.buffers.is_empty(), "buffers"),
    ]
    .into_iter()
    .filter(|(there, _)| *there)
    .map(|(_, what)| format!("runtime: {what}: left out, a CoRIM has no place for it"))
    .collect()
}

fn measurement(key: String, digests: Vec<Digest>, name: Option<String>) -> MeasurementMap {
    let mut values = MeasurementValuesMap::new();
    values.digests = Some(digests);
    values.name = name;
    keyed(key, values)
}

const fn keyed(key: String, mval: MeasurementValuesMap) -> MeasurementMap {
    MeasurementMap { mkey: Some(MeasuredElement::Text(key)), mval, authorized_by: None }
}

/// What was read so far.
#[derive(Default)]
struct Reading {
    ours: bool,
    version: Option<u64>,
    profile: Option<String>,
    bank: Option<Bank>,
    states: Vec<BootState>,
    runtime: Option<RuntimeRules>,
}

impl Reading {
    fn comid(&mut self, comid: &ComidTag) -> Result<(), Refusal> {
        let identity = &comid.tag_identity;
        let TagIdChoice::Text(name) = &identity.tag_id else {
            return Err(refuse("a CoMID's id that isn't text"));
        };
        let triples = &comid.triples;
        let others = comid.linked_tags.is_some()
            || triples.endorsed_triples.is_some()
            || triples.identity_triples.is_some()
            || triples.attest_key_triples.is_some()
            || triples.dependency_triples.is_some()
            || triples.membership_triples.is_some()
            || triples.coswid_triples.is_some()
            || triples.conditional_endorsement_series.is_some()
            || triples.conditional_endorsement.is_some();
        if others {
            return Err(refuse("triples of another kind, or links to other tags")
                .at(name)
                .expected("reference triples only"));
        }
        same(&mut self.version, identity.tag_version_or_default().max(1), "tag-version")?;
        let mut state = BootState { name: name.clone(), ..BootState::default() };
        for triple in triples.reference_triples.iter().flatten() {
            let environment = triple.environment();
            let (Some(class), None, None) = (&environment.class, &environment.instance, &environment.group) else {
                return Err(refuse("an environment that isn't a class").at(name));
            };
            same(&mut self.profile, class.model.clone().unwrap_or_default(), "class.model")?;
            for measurement in triple.measurements() {
                self.measurement(&mut state, measurement).map_err(|refusal| refusal.at(format!("CoMID {name}")))?;
            }
        }
        if state != (BootState { name: name.clone(), ..BootState::default() }) {
            self.states.push(state);
        }
        Ok(())
    }

    fn measurement(&mut self, state: &mut BootState, found: &MeasurementMap) -> Result<(), Refusal> {
        let key = match &found.mkey {
            Some(MeasuredElement::Text(key)) => key.as_str(),
            _ => "",
        };
        let values = &found.mval;
        let unknown = || refuse(format!("a measurement `{key}` with other contents than are known here"));
        if found.authorized_by.is_some() || !only_known(values, key) {
            return Err(unknown());
        }
        if let Some(IntegrityRegisters(registers)) = &values.integrity_registers {
            return registers.iter().try_for_each(|(register, digests)| self.register(state, register, digests));
        }
        let digests = values.digests.as_deref().unwrap_or_default();
        match key.split('/').collect::<Vec<_>>().as_slice() {
            _ if !self.ours => Err(unknown().expected("integrity registers: its profile isn't ours")),
            _ if key.starts_with("file:") => {
                let rules = self.runtime.get_or_insert_default();
                let path = key.strip_prefix("file:").unwrap_or(key).to_owned();
                for digest in digests {
                    let (hash, value) = digest_of(digest)?;
                    rules.files.entry(path.clone()).or_default().push(format!("{hash}:{}", hex::encode(value)));
                }
                Ok(())
            }
            ["pcr", pcr, number, kind] => {
                let events = state.events.entry(pcr.parse().map_err(|_| unknown())?).or_default();
                let (Ok(number), [digest], Some(what)) = (number.parse::<usize>(), digests, &values.name) else {
                    return Err(unknown());
                };
                if number != events.len() {
                    return Err(refuse(format!("`{key}` stands at place {}", events.len())));
                }
                let digest = if digest.value().is_empty() { Vec::new() } else { self.in_bank(digest)? };
                events.push(EventReference { kind: (*kind).to_owned(), digest, what: what.clone() });
                Ok(())
            }
            ["secure-boot"] if values.flags == Some(SECURE) => {
                state.secure_boot.get_or_insert_default();
                Ok(())
            }
            ["secure-boot", variable] => {
                let list = digests.iter().map(|digest| match digest_of(digest)? {
                    (LogHash::Sha256, value) => Ok(value),
                    _ => Err(unknown()),
                });
                let list = list.collect::<Result<Vec<_>, _>>()?;
                let secure_boot = state.secure_boot.get_or_insert_default();
                match *variable {
                    "authorities" => secure_boot.authorities.extend(list),
                    name => secure_boot.variables.entry(name.to_owned()).or_default().extend(list),
                }
                Ok(())
            }
            _ => Err(unknown()),
        }
    }

    /// A PCR's value: the one digest of the bank.
    fn register(&mut self, state: &mut BootState, id: &IntegrityRegisterId, digests: &[Digest]) -> Result<(), Refusal> {
        let IntegrityRegisterId::Uint(pcr) = id else {
            return Err(refuse("an integrity register that has no number").expected("a PCR, 0 to 23"));
        };
        let pcr = u8::try_from(*pcr).map_err(|_| refuse(format!("integrity register {pcr}")).expected("0 to 23"))?;
        let [digest] = digests else {
            return Err(
                refuse(format!("{} digests of PCR {pcr}", digests.len())).expected("one, of the bank to be quoted")
            );
        };
        let value = self.in_bank(digest)?;
        match state.values.insert(pcr, value) {
            None => Ok(()),
            Some(_) => Err(refuse(format!("PCR {pcr} stands twice"))),
        }
    }

    fn in_bank(&mut self, digest: &Digest) -> Result<Vec<u8>, Refusal> {
        let (hash, value) = digest_of(digest)?;
        let bank = hash.as_str().parse().map_err(refuse)?;
        same(&mut self.bank, bank, "bank")?;
        Ok(value)
    }

    fn finish(self, name: &str) -> Result<ReferenceSet, Refusal> {
        ReferenceSet {
            name: name.to_owned(),
            version: self.version.unwrap_or(1),
            profile: self.profile.unwrap_or_default(),
            bank: self.bank.unwrap_or(Bank::Sha256),
            states: self.states,
            runtime: self.runtime,
        }
        .checked()
    }
}

/// Registers; or the flags of Secure Boot; or digests, those of an event with its words. Nothing else.
fn only_known(values: &MeasurementValuesMap, key: &str) -> bool {
    let mut rest = values.clone();
    if rest.integrity_registers.take().is_none() {
        if key == "secure-boot" {
            rest.flags = None;
        } else {
            rest.digests = None;
        }
        if key.starts_with("pcr/") {
            rest.name = None;
        }
    }
    rest == MeasurementValuesMap::new()
}

fn same<T: PartialEq + std::fmt::Debug>(known: &mut Option<T>, found: T, what: &str) -> Result<(), Refusal> {
    match known {
        Some(known) if *known != found => {
            Err(refuse(format!("{what} {found:?}")).expected(format!("{known:?}, as before: a set has one")))
        }
        _ => {
            *known = Some(found);
            Ok(())
        }
    }
}

/// Algorithms are those of the registry of Named Information hashes.
const fn named(hash: LogHash) -> i64 {
    match hash {
        LogHash::Sha256 => 1,
        LogHash::Sha384 => 7,
        LogHash::Sha512 => 8,
        // Not in the registry: no set has it.
        LogHash::Sha1 => 0,
    }
}

fn digest_of(digest: &Digest) -> Result<(LogHash, Vec<u8>), Refusal> {
    let hash = match digest.alg() {
        DigestAlg::Int(1) => LogHash::Sha256,
        DigestAlg::Int(7) => LogHash::Sha384,
        DigestAlg::Int(8) => LogHash::Sha512,
        other => {
            return Err(refuse(format!("digest algorithm {other}")).expected("1, 7 or 8: SHA-256, SHA-384, SHA-512"));
        }
    };
    match digest.value().len() == hash.size() {
        true => Ok((hash, digest.value().to_vec())),
        false => Err(refuse(format!("a digest of {} bytes", digest.value().len())).expected(hash.size().to_string())),
    }
}

fn refuse(found: impl Into<String>) -> Refusal {
    unusable("CoRIM", found)
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    refuse(error.to_string())
}
