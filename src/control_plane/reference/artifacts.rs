//! `from-artifacts`: the expected events of what is installed, without having booted it.

use std::collections::BTreeMap;

use super::files::Files;
use super::pe::Image;
use super::stub::{self, Contents};
use super::unusable;
use super::variables::{self, Variables};
use crate::codes::Refusal;
use crate::measurements::LogHash;
use crate::tpm::Bank;
use crate::verify::profile::Profile;
use crate::verify::references::{BootState, ReferenceSet, SecureBootReference};
use crate::verify::runtime::RuntimeRules;

/// PCRs that a unified kernel image decides.
pub const UKI_PCRS: [u8; 5] = [4, 9, 11, 12, 13];
/// The stub from which on the initrd that the kernel gets has parts that the stub makes at boot.
const INITRD_WITH_EXTRAS: u32 = 256;
/// The stub from which on it isn't known whether the firmware is asked to start the inner kernel.
const KERNEL_BY_ITSELF: u32 = 257;

/// What reference values are computed from. Nothing but the bank must be there.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// A unified kernel image and its name.
    pub uki: Option<(String, Vec<u8>)>,
    /// Sections of an image that isn't there itself: name and contents.
    pub sections: BTreeMap<String, Contents>,
    /// The command line in `.cmdline`, if it is known as text.
    pub cmdline: Option<String>,
    /// Secure Boot's variables.
    pub variables: Option<Variables>,
    /// The certificate (DER) in `db` that signs the images.
    pub signer: Option<Vec<u8>>,
    /// Whatever the firmware verified under its own db is accepted.
    pub trust_measured_db: bool,
    /// Secure Boot is on, so that a stub's inner kernel leaves no event of its own.
    pub secure_boot: bool,
    /// Files that may run.
    pub files: Files,
}

/// A predicted state, and what could not be said.
#[derive(Clone, Debug, Default)]
pub struct Prediction {
    /// The state: events and Secure Boot.
    pub state: BootState,
    /// In words: what isn't proven by it, and what was presumed.
    pub notes: Vec<String>,
}

/// A set of one state, version 1.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`] for artefacts that can't be read, or none;
/// [`crate::codes::VERIFY_REFERENCE_MALFORMED`] for names that can't be.
pub fn set(
    inputs: &Inputs,
    name: &str,
    profile: &str,
    bank: Bank,
    state: &str,
) -> Result<(ReferenceSet, Vec<String>), Refusal> {
    let Prediction { state: mut predicted, mut notes } = predict(inputs, bank)?;
    if let Some(profile) = Profile::shipped(profile) {
        let judged = |pcr: &u8| profile.pcrs.contains_key(pcr);
        let (events, beyond): (BTreeMap<_, _>, BTreeMap<_, _>) =
            predicted.events.into_iter().partition(|(pcr, _)| judged(pcr));
        predicted.events = events;
        notes.extend(beyond.into_keys().map(|pcr| {
            format!("PCR {pcr}: the profile `{}` doesn't judge it, so it is left out: not proven", profile.name)
        }));
    }
    let empty = predicted == BootState::default();
    if empty && inputs.files.is_empty() {
        return Err(unusable("from-artifacts", "nothing to compute reference values from")
            .expected("--uki, --digests, --secure-boot-vars, --ima-digests, --tree or --deb"));
    }
    let runtime =
        (!inputs.files.is_empty()).then(|| RuntimeRules { files: inputs.files.clone(), ..RuntimeRules::default() });
    if runtime.is_none() {
        notes.push("runtime: no files were given, so what runs is not proven".to_owned());
    }
    let state = BootState { name: state.to_owned(), ..predicted };
    let states = if empty { Vec::new() } else { vec![state] };
    let set = ReferenceSet { name: name.to_owned(), version: 1, profile: profile.to_owned(), bank, states, runtime };
    Ok((set.checked()?, notes))
}

/// Predicts the state that these artefacts boot into.
///
/// # Errors
/// As [`set`].
pub fn predict(inputs: &Inputs, bank: Bank) -> Result<Prediction, Refusal> {
    let mut prediction = Prediction {
        notes: vec!["PCRs 0 to 3 and 6: the firmware isn't among the artefacts: not proven".to_owned()],
        ..Prediction::default()
    };
    prediction.secure_boot(inputs)?;
    if let Some((name, bytes)) = &inputs.uki {
        prediction.image(inputs, &Image::parse(bytes, name)?, name, bank)?;
    } else if !inputs.sections.is_empty() {
        prediction.sections(inputs, bank)?;
    } else {
        prediction.notes.push("PCRs 4, 9 and 11: no image is among the artefacts: not proven".to_owned());
    }
    Ok(prediction)
}

impl Prediction {
    fn secure_boot(&mut self, inputs: &Inputs) -> Result<(), Refusal> {
        self.state.secure_boot = match (&inputs.variables, &inputs.signer) {
            (Some(variables), signer) => {
                if !variables.contains_key("db") {
                    self.notes.push("PCR 7: db isn't among the variables: whoever it names may vouch".to_owned());
                }
                Some(variables::reference(variables, signer.as_deref())?)
            }
            (None, Some(_)) => {
                return Err(unusable("--signer", "a certificate, but no db to find it in")
                    .expected("--secure-boot-vars as well: the owner's GUID beside it is measured, too"));
            }
            (None, None) if inputs.trust_measured_db => {
                self.notes.push(
                    "PCR 7: Secure Boot must be on, and whatever the node's own db allows is accepted: whoever can \
                     enrol a key there can start what they like. Give --secure-boot-vars to name the keys"
                        .to_owned(),
                );
                Some(SecureBootReference::default())
            }
            (None, None) => None,
        };
        if self.state.secure_boot.is_none() {
            self.notes.push("PCR 7: Secure Boot's variables aren't among the artefacts: not proven".to_owned());
        }
        Ok(())
    }

    /// All that can be said of an image that is there.
    fn image(&mut self, inputs: &Inputs, image: &Image<'_>, name: &str, bank: Bank) -> Result<(), Refusal> {
        let (hash, version) = (LogHash::from(bank), stub::version(image, name)?);
        let sections = stub::sections(image, version, name)?;
        let contents: Vec<(&str, Contents)> =
            sections.iter().map(|(name, bytes)| (*name, Contents::Bytes(bytes.clone()))).collect();
        let section = |wanted: &str| sections.iter().find(|(name, _)| *name == wanted).map(|(_, bytes)| bytes);

        let mut images = vec![(image.authenticode(hash), format!("UKI {name} (systemd-stub {version})"))];
        let kernel = section(".linux").ok_or_else(|| unusable(name, "it has no section .linux"))?;
        if inputs.secure_boot {
            self.put(4, stub::pcr4(images, hash), hash);
        } else if version >= KERNEL_BY_ITSELF {
            self.notes.push(format!(
                "PCR 4: how systemd-stub {version} starts the inner kernel without Secure Boot isn't known here: not proven"
            ));
        } else {
            let inner = Image::parse(kernel, &format!("{name} section .linux"))?;
            images.push((inner.authenticode(hash), "the kernel in the UKI".to_owned()));
            self.put(4, stub::pcr4(images, hash), hash);
        }
        self.state.events.insert(11, stub::pcr11(contents.iter().map(|(name, contents)| (*name, contents)), hash));

        let mixed = image.section(".pcrsig").is_some()
            || section(".pcrpkey").is_some()
            || section(".ucode").is_some()
            || version >= INITRD_WITH_EXTRAS;
        match (section(".cmdline").map(|bytes| std::str::from_utf8(bytes)), section(".initrd")) {
            _ if mixed => self.notes.push(
                "PCR 9: the stub adds files of its own to the initrd at boot, so what the kernel gets isn't known: \
                 not proven"
                    .to_owned(),
            ),
            (Some(Ok(cmdline)), Some(initrd)) => {
                let cmdline = stub::effective_cmdline(cmdline, Some(version));
                self.put(9, stub::pcr9(&cmdline, hash.digest(&[initrd]), hash), hash);
            }
            _ => self.notes.push("PCR 9: the image has no command line or no initrd of its own: not proven".to_owned()),
        }
        self.nothing_added(hash);
        Ok(())
    }

    /// What can be said of an image that isn't there, when its parts are known.
    fn sections(&mut self, inputs: &Inputs, bank: Bank) -> Result<(), Refusal> {
        let hash = LogHash::from(bank);
        for (name, contents) in &inputs.sections {
            let known = stub::SECTIONS.contains(&name.as_str());
            if !known || (contents.digest(hash).is_none() && name != ".osrel") {
                return Err(unusable(
                    format!("section {name}"),
                    if known { "no digest in this bank" } else { "unknown" },
                )
                .expected(format!("one of {}; for another bank than sha256 its file", stub::SECTIONS.join(", "))));
            }
        }
        let ordered = stub::SECTIONS.iter().filter_map(|name| inputs.sections.get_key_value(*name));
        self.state.events.insert(11, stub::pcr11(ordered.map(|(name, contents)| (name.as_str(), contents)), hash));
        if inputs.sections.get(".osrel") == Some(&Contents::Unknown) {
            self.notes.push(
                "PCR 11: a section .osrel is presumed, as ukify and systemd-stub(7) add it; its contents aren't judged"
                    .to_owned(),
            );
        }
        let initrd = inputs.sections.get(".initrd").and_then(|contents| contents.digest(hash));
        match (&inputs.cmdline, initrd) {
            (Some(cmdline), Some(initrd)) => {
                self.put(9, stub::pcr9(&stub::effective_cmdline(cmdline, Some(252)), initrd, hash), hash);
                self.notes.push("PCR 9: predicted as of a systemd-stub older than 254".to_owned());
            }
            _ => self
                .notes
                .push("PCR 9: the command line's text or the initrd isn't among the artefacts: not proven".to_owned()),
        }
        self.notes.push(match self.state.secure_boot {
            Some(_) => "PCR 4: the image isn't among the artefacts: Secure Boot vouches for it".to_owned(),
            None => "PCR 4: the image isn't among the artefacts: not proven".to_owned(),
        });
        self.nothing_added(hash);
        Ok(())
    }

    /// PCRs 12 and 13: no command line from elsewhere, no credentials, no extensions.
    fn nothing_added(&mut self, hash: LogHash) {
        self.put(12, Vec::new(), hash);
        self.put(13, Vec::new(), hash);
    }

    fn put(&mut self, pcr: u8, mut events: Vec<crate::verify::references::EventReference>, hash: LogHash) {
        events.push(stub::os_separator(hash));
        self.state.events.insert(pcr, events);
    }
}
