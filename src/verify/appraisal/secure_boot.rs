//! Secure Boot as PCR 7 tells it (PC Client Platform Firmware Profile 1.06, 3.3.4.8): whether it was on,
//! under which keys, and who vouched for what was started.
//!
//! A type is whatever the log says, so nothing here rests on one: the PCR has a fixed order, each
//! event in it is read only if its digest vouches for its data, and whatever doesn't fit is refused.

use std::collections::BTreeMap;

use super::events::{place, unvouched};
use crate::codes::{self, Refusal};
use crate::measurements::boot::BootEvent;
use crate::measurements::uefi::{Guid, PartRule, SignatureList, VariableData, Vouched};
use crate::measurements::{EventType, LogHash};

/// The variables before the separator, in the order they must have, and then those that firmware
/// may measure besides.
const FIXED: [&str; 5] = ["SecureBoot", "PK", "KEK", "db", "dbx"];
const OPTIONAL: [&str; 2] = ["dbt", "dbr"];
/// Variables of shim that come as authorities and vouch for no image: its settings.
const SETTINGS: [&str; 2] = ["SbatLevel", "MokListTrusted"];

/// What PCR 7 says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecureBoot {
    /// Whether it was on: the variable has the one byte 1. One that isn't there is measured without
    /// a byte, and means off.
    pub enabled: bool,
    /// SHA-256 of the data of each variable, by name.
    pub variables: BTreeMap<String, [u8; 32]>,
    /// Who vouched for what was started, in order.
    pub authorities: Vec<Authority>,
}

/// Something that allowed an image to start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Authority {
    /// The event's number.
    pub event: u32,
    /// What was extended, in the quoted bank.
    pub digest: Vec<u8>,
    /// What its data says, if the digest vouches for it: the old shim's doesn't.
    pub read: Option<AuthorityData>,
}

/// The data of an authority.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuthorityData {
    /// The variable it is in: `db`, `MokList`, `Shim`, …
    pub variable: String,
    /// SHA-256 of the EFI_SIGNATURE_DATA: owner, and certificate or hash.
    pub digest: [u8; 32],
}

impl Authority {
    /// Whether it vouches for images, as far as is known.
    pub fn vouches(&self) -> bool {
        self.read.as_ref().is_none_or(|data| !SETTINGS.contains(&data.variable.as_str()))
    }
}

/// The events after the separator.
fn authorities(after: &[&BootEvent], bank: LogHash) -> Result<Vec<Authority>, Refusal> {
    let mut authorities = Vec::new();
    for event in after.iter().filter(|event| event.kind != EventType::SEPARATOR) {
        if event.kind != EventType::EFI_VARIABLE_AUTHORITY {
            return Err(Refusal::new(codes::VERIFY_SECURE_BOOT, "it stands after the separator")
                .at(place(event))
                .expected("EV_EFI_VARIABLE_AUTHORITY only"));
        }
        let digest = event.digest(bank).unwrap_or_default().to_vec();
        let vouched = event.vouched(bank);
        let data = vouched.bytes(&event.data).and_then(VariableData::parse);
        let read = match (&vouched, data) {
            // Whoever appends a byte to what was measured changes nothing by it.
            (Vouched::Whole | Vouched::Part { rule: PartRule::AllButLastByte, .. }, Some(variable)) => {
                Some(AuthorityData { digest: self::digest(variable.data), variable: variable.name })
            }
            // Versions of shim before 15.5 hashed one byte less than they logged. What they measured is
            // genuine, but what the log says of it is not what was hashed: it isn't read.
            (Vouched::Part { rule: PartRule::AllButLastByte, .. }, None) => None,
            (Vouched::Whole, None) => {
                return Err(Refusal::new(codes::VERIFY_SECURE_BOOT, "data that is no UEFI_VARIABLE_DATA")
                    .at(place(event))
                    .expected("owner, lengths, name, contents"));
            }
            _ => return Err(unvouched(event, bank)),
        };
        authorities.push(Authority { event: event.number, digest, read });
    }
    Ok(authorities)
}

impl SecureBoot {
    /// Reads PCR 7's events, which were replayed.
    ///
    /// # Errors
    /// [`codes::VERIFY_SECURE_BOOT`] for any other order, [`codes::VERIFY_EVENT_DATA`] for data that the digest
    /// doesn't vouch for.
    pub(super) fn read(events: &[&BootEvent], bank: LogHash) -> Result<Self, Refusal> {
        let separator = events.iter().position(|event| event.kind == EventType::SEPARATOR).unwrap_or(events.len());
        let (before, after) = events.split_at(separator);
        let mut variables = BTreeMap::new();
        let mut enabled = false;
        let mut db = Vec::new();
        let mut expected = FIXED.iter();
        for event in before {
            let refuse = |what: String, wanted: &str| {
                Err(Refusal::new(codes::VERIFY_SECURE_BOOT, what).at(place(event)).expected(wanted))
            };
            if event.kind != EventType::EFI_VARIABLE_DRIVER_CONFIG {
                return refuse("it stands before the separator".to_owned(), "variables only");
            }
            if event.vouched(bank) != Vouched::Whole {
                return Err(unvouched(event, bank));
            }
            let Some(variable) = VariableData::parse(&event.data) else {
                return refuse("data that is no UEFI_VARIABLE_DATA".to_owned(), "owner, lengths, name, contents");
            };
            let name = variable.name.as_str();
            let in_order = match expected.next() {
                Some(next) => *next == name,
                None => OPTIONAL.contains(&name) && !variables.contains_key(name),
            };
            if !in_order {
                return refuse(
                    format!("the variable `{}`", name.escape_debug()),
                    "SecureBoot, PK, KEK, db, dbx, each once",
                );
            }
            let owner =
                if FIXED.iter().take(3).any(|global| *global == name) { Guid::GLOBAL } else { Guid::SECURITY_DATABASE };
            if variable.guid != owner {
                return refuse(format!("`{name}` of the owner {}", variable.guid), &owner.to_string());
            }
            match (name, variable.data) {
                ("SecureBoot", [] | [0]) => {}
                ("SecureBoot", [1]) => enabled = true,
                ("SecureBoot", other) => {
                    return refuse(format!("SecureBoot of {} bytes", other.len()), "one byte, 0 or 1");
                }
                ("db", data) => data.clone_into(&mut db),
                _ => {}
            }
            variables.insert(name.to_owned(), digest(variable.data));
        }
        if let Some(missing) = expected.next() {
            return Err(Refusal::new(codes::VERIFY_SECURE_BOOT, format!("the variable `{missing}` was not measured"))
                .at("PCR 7, before the separator")
                .expected(FIXED.join(", ")));
        }
        let authorities = authorities(after, bank)?;
        let found = Self { enabled, variables, authorities };
        if enabled {
            found.check_enabled(after, &db, bank)?;
        }
        Ok(found)
    }

    /// If it is on, it was so under keys, and what started was allowed by db as it was measured.
    fn check_enabled(&self, after: &[&BootEvent], db: &[u8], bank: LogHash) -> Result<(), Refusal> {
        let empty = digest(&[]);
        let refuse = |what: &str, at: String, expected: &str| {
            Err(Refusal::new(codes::VERIFY_SECURE_BOOT, what).at(at).expected(expected))
        };
        for name in ["PK", "KEK", "db"] {
            if self.variables.get(name) == Some(&empty) {
                return refuse("Secure Boot is on, but the variable is empty", format!("PCR 7, {name}"), "keys");
            }
        }
        let lists = SignatureList::parse_all(db).unwrap_or_default();
        let mut allowed = 0_u32;
        for event in after.iter().filter(|event| event.kind == EventType::EFI_VARIABLE_AUTHORITY) {
            // The unread ones are shim's own; firmware hashes what it logs.
            let vouched = event.vouched(bank);
            let variable = vouched.bytes(&event.data).and_then(VariableData::parse);
            let Some(variable) = variable.filter(|variable| variable.name == "db") else { continue };
            let entry = SignatureList::entry(variable.data);
            let member = entry.is_some_and(|entry| lists.iter().any(|list| list.signatures.contains(&entry)));
            if variable.guid != Guid::SECURITY_DATABASE || !member {
                return refuse("an authority that isn't in db as it was measured", place(event), "an entry of db");
            }
            allowed = allowed.saturating_add(1);
        }
        if allowed == 0 {
            return refuse(
                "Secure Boot is on, but no entry of db vouched for anything",
                "PCR 7".to_owned(),
                "at least one",
            );
        }
        Ok(())
    }

    /// The same without the events' numbers.
    pub(super) fn unnumbered(mut self) -> Self {
        self.authorities.iter_mut().for_each(|authority| authority.event = 0);
        self
    }

    /// The first authority that db as it was measured doesn't allow: a machine owner's key, or one that can't be
    /// read. What shim brings along itself (`Shim`, `vendor_db`) was verified with it.
    pub fn beyond_db(&self) -> Option<&Authority> {
        let own = |data: &AuthorityData| ["db", "Shim", "vendor_db"].contains(&data.variable.as_str());
        self.authorities.iter().find(|authority| authority.vouches() && !authority.read.as_ref().is_some_and(own))
    }
}

fn digest(data: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(data).into()
}
