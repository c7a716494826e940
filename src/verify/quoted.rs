//! Quotes of other tools: any restricted AK, several banks, and PCR values that only the logs tell.
//!
//! A node of ours attests with one key template and over one bank ([`super::authenticate`]); here what a
//! quote covers is found out.

use std::collections::BTreeMap;

use p256::ecdsa::signature::Verifier;

use super::appraisal::Logs;
use super::keys::attributes_fault;
use super::profile::Profile;
use super::runtime::Checkpoint;
use crate::codes::{self, Refusal};
use crate::measurements::LogHash;
use crate::measurements::boot::{BootLog, PcrBank};
use crate::measurements::ima::{Entries, Fold};
use crate::measurements::userspace::{Target, UserspaceLog};
use crate::tpm::structures::{Public, Quote, Signature};
use crate::tpm::{Bank, IMA_PCR, PcrSelection, PcrValues};

/// The most combinations of log prefixes that are tried before giving up.
const TRIES: usize = 4_000_000;

/// PCR values by bank.
pub type Banks = BTreeMap<LogHash, BTreeMap<u8, Vec<u8>>>;

/// Checks who made a quote: `ak` is a TPM2B_PUBLIC or TPMT_PUBLIC of any key that signs only what
/// its TPM made; `nonce` is what the quote must be over.
///
/// Which TPM the key is in is not in a quote: only credential activation proves that.
///
/// # Errors
/// For the key [`codes::TPM_STRUCTURE`] and the `verify.ak_*` codes; [`codes::VERIFY_QUOTE_HASH`],
/// [`codes::VERIFY_QUOTE_SIGNATURE`], those of [`Quote::parse`], [`codes::VERIFY_NONCE`].
pub fn authentic(attest: &[u8], signature: &[u8], ak: &[u8], nonce: Option<&[u8]>) -> Result<Quote, Refusal> {
    let public = Public::parse_sized(ak).or_else(|_| Public::parse(ak))?;
    if let Some(code) = attributes_fault(public.attributes) {
        return Err(Refusal::new(code, format!("attributes {:#010x}", public.attributes)).at("attestation key"));
    }
    let signature = Signature::parse(signature)?.ecdsa_p256_sha256()?;
    // Over the bytes as received; only then are they parsed.
    public
        .p256_key()?
        .verify(attest, &signature)
        .map_err(|_| Refusal::new(codes::VERIFY_QUOTE_SIGNATURE, "a signature by another key"))?;
    let quote = Quote::parse(attest)?;
    if let Some(nonce) = nonce.filter(|nonce| *nonce != quote.extra_data) {
        return Err(Refusal::new(codes::VERIFY_NONCE, hex::encode(&quote.extra_data)).expected(hex::encode(nonce)));
    }
    Ok(quote)
}

/// The values of `bank` that the quote covers, out of `values`: all the quoted ones of all banks must
/// hash to its digest together.
///
/// # Errors
/// [`codes::VERIFY_SELECTION`] when the bank isn't quoted or a quoted PCR has no value,
/// [`codes::VERIFY_PCR_DIGEST`].
pub fn covered(quote: &Quote, values: &Banks, bank: Bank) -> Result<PcrValues, Refusal> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for (hash, pcrs) in selected(quote)? {
        for pcr in pcrs {
            let value = values.get(&hash).and_then(|values| values.get(&pcr)).ok_or_else(|| {
                Refusal::new(codes::VERIFY_SELECTION, "no value for a quoted PCR").at(format!("PCR {pcr} ({hash})"))
            })?;
            parts.push(value);
        }
    }
    // The signature is ECDSA with SHA-256, and its hash is the digest's.
    let found = LogHash::Sha256.digest(&parts);
    if found != quote.pcr_digest {
        return Err(Refusal::new(codes::VERIFY_PCR_DIGEST, hex::encode(found))
            .at("PCR values")
            .expected(hex::encode(&quote.pcr_digest)));
    }
    of_bank(quote, values, bank)
}

/// The same where no values were given: those that the logs lead to, as far as the quote had got in
/// the logs that grow. A PCR that no log tells of is taken to have its initial value: the digest decides.
///
/// # Errors
/// As [`covered`], those of the logs' readers, and [`codes::VERIFY_LOG_REPLAY`] when no prefix of the
/// logs leads to the quote.
pub fn by_replay(quote: &Quote, logs: &Logs<'_>, profile: &Profile, bank: Bank) -> Result<PcrValues, Refusal> {
    let boot = match logs.boot.filter(|_| profile.needs_boot_log()) {
        Some(bytes) => Some(BootLog::parse(bytes)?),
        None => None,
    };
    let userspace = match logs.userspace {
        Some(bytes) => UserspaceLog::parse(bytes)?,
        None => UserspaceLog::default(),
    };
    let selected = selected(quote)?;
    let mut start = BTreeMap::new();
    for (hash, _) in &selected {
        start.insert(*hash, firmware(boot.as_ref(), *hash)?);
    }
    let mut tries = 0_usize;
    // Mostly the whole userspace log is in the quote, so it is tried first.
    for taken in (0..=userspace.records.len()).rev() {
        let mut banks = start.clone();
        for record in userspace.records.iter().take(taken) {
            let Target::Pcr(pcr) = record.target else { continue };
            for bank in banks.values_mut() {
                if let Some(digest) = record.digest(bank.hash()) {
                    bank.extend(pcr, digest);
                }
            }
        }
        for padded in [false, true] {
            if let Some(values) = with_list(quote, &selected, &banks, logs, padded, &mut tries)? {
                return of_bank(quote, &values, bank);
            }
        }
    }
    Err(Refusal::new(codes::VERIFY_LOG_REPLAY, "no values that the logs lead to hash to the quote's digest")
        .at("logs")
        .expected("logs that lead to the quote; with the PCR values beside them the PCR that differs is named"))
}

/// Adds IMA's list, entry by entry, until the values hash to the quote's digest.
fn with_list(
    quote: &Quote,
    selected: &[(LogHash, Vec<u8>)],
    banks: &BTreeMap<LogHash, PcrBank>,
    logs: &Logs<'_>,
    padded: bool,
    tries: &mut usize,
) -> Result<Option<Banks>, Refusal> {
    let rest = logs.ima.as_ref().map_or(&[][..], |log| log.rest);
    let from = logs.ima.as_ref().and_then(|log| log.from);
    let (number, offset) = from.map_or((0, 0), |from: &Checkpoint| (from.entries, from.offset));
    // The kernel hashes for SHA-1 and SHA-256 always; for others it may have had to pad.
    let is_padded = |hash: LogHash| padded && !matches!(hash, LogHash::Sha1 | LogHash::Sha256);
    if padded && !selected.iter().any(|(hash, _)| is_padded(*hash)) {
        return Ok(None);
    }
    let mut values: Banks = selected
        .iter()
        .map(|(hash, pcrs)| {
            let value = |pcr: &u8| banks.get(hash).and_then(|bank| bank.value(*pcr)).unwrap_or_default().to_vec();
            (*hash, pcrs.iter().map(|pcr| (*pcr, value(pcr))).collect())
        })
        .collect();
    let digest = |values: &Banks| {
        let parts: Vec<&[u8]> = selected
            .iter()
            .flat_map(|(hash, pcrs)| pcrs.iter().filter_map(|pcr| Some(values.get(hash)?.get(pcr)?.as_slice())))
            .collect();
        LogHash::Sha256.digest(&parts)
    };
    if digest(&values) == quote.pcr_digest {
        return Ok(Some(values));
    }
    let mut folds: Vec<(LogHash, Fold)> = Vec::new();
    for (hash, _) in selected.iter().filter(|(_, pcrs)| pcrs.contains(&IMA_PCR)) {
        let value = match from {
            Some(from) if from.bank == hash.as_str() => Some(from.value.clone()),
            _ => None,
        };
        let fold = match value {
            Some(value) => Fold::from(*hash, is_padded(*hash), &value),
            None => Some(Fold::start(*hash, is_padded(*hash))),
        };
        folds.extend(fold.map(|fold| (*hash, fold)));
    }
    if folds.is_empty() {
        return Ok(None);
    }
    for entry in Entries::new(rest, number, offset) {
        let entry = entry?;
        for (hash, fold) in &mut folds {
            fold.take(&entry);
            if let Some(value) = values.get_mut(hash).and_then(|values| values.get_mut(&IMA_PCR)) {
                value.clear();
                value.extend_from_slice(fold.value());
            }
        }
        *tries = tries.saturating_add(1);
        if digest(&values) == quote.pcr_digest {
            return Ok(Some(values));
        }
        if *tries >= TRIES {
            return Err(Refusal::new(codes::MEASUREMENTS_TOO_LARGE, format!("more than {TRIES} places to try"))
                .at("logs")
                .expected("the PCR values beside the quote"));
        }
    }
    Ok(None)
}

/// What the boot log leads to in a bank. Without a log, or the bank in it, the initial values.
fn firmware(boot: Option<&BootLog>, hash: LogHash) -> Result<PcrBank, Refusal> {
    let Some(log) = boot else { return Ok(PcrBank::new(hash, 0)) };
    if log.sha1_only && hash != LogHash::Sha1 {
        return Err(Refusal::new(codes::VERIFY_SHA1_ONLY, "a log in the format of TPM 1.2").at("boot log, event 0"));
    }
    log.replay(hash).ok_or_else(|| {
        Refusal::new(codes::VERIFY_BANK, format!("no digests of {hash}"))
            .at("boot log, event 0")
            .expected("digests of every quoted bank")
    })
}

/// The quoted banks and PCRs, in the order of the quote.
fn selected(quote: &Quote) -> Result<Vec<(LogHash, Vec<u8>)>, Refusal> {
    let chosen = quote.banks.iter().filter(|(_, bitmap)| bitmap.iter().any(|byte| *byte != 0));
    chosen
        .map(|(algorithm, bitmap)| {
            let hash = LogHash::from_algorithm(*algorithm).ok_or_else(|| {
                Refusal::new(codes::VERIFY_SELECTION, format!("bank {algorithm:#06x}"))
                    .at("quote")
                    .expected("sha1, sha256, sha384 or sha512")
            })?;
            let [a, b, c] = *bitmap;
            let mask = u32::from_le_bytes([a, b, c, 0]);
            Ok((hash, (0..24).filter(|pcr| mask & (1 << pcr) != 0).collect()))
        })
        .collect()
}

/// The banks of a quote that may be pinned.
pub fn banks(quote: &Quote) -> Vec<Bank> {
    let chosen = quote.banks.iter().filter(|(_, bitmap)| bitmap.iter().any(|byte| *byte != 0));
    chosen.filter_map(|(algorithm, _)| Bank::from_algorithm(*algorithm)).collect()
}

fn of_bank(quote: &Quote, values: &Banks, bank: Bank) -> Result<PcrValues, Refusal> {
    let refuse =
        |what: String| Refusal::new(codes::VERIFY_SELECTION, what).at("quote").expected(format!("PCRs of {bank}"));
    let hash = LogHash::from(bank);
    let pcrs = selected(quote)?.into_iter().find(|(quoted, _)| *quoted == hash).map(|(_, pcrs)| pcrs);
    let pcrs = pcrs.ok_or_else(|| refuse("the bank isn't quoted".to_owned()))?;
    let own = values.get(&hash).cloned().unwrap_or_default();
    let own: BTreeMap<u8, Vec<u8>> = own.into_iter().filter(|(pcr, _)| pcrs.contains(pcr)).collect();
    let selection = PcrSelection::new(bank, pcrs).map_err(refuse)?;
    PcrValues::new(selection, own).map_err(refuse)
}
