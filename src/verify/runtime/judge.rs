//! The judge: folds PCR 10 and judges each entry on the way.

use super::{Checkpoint, CompiledRules, FINDINGS_LIMIT, Finding, Mode};
use crate::codes::{self, Code, Refusal};
use crate::measurements::LogHash;
use crate::measurements::ima::{BOOT_AGGREGATE, Entries, Fold, ImaEntry, escaped};
use crate::tpm::{Bank, IMA_PCR};

/// The most characters of a path that a finding shows.
const SHOWN_PATH: usize = 1024;

/// Takes a list in, entry by entry, under rules.
#[derive(Clone, Debug)]
pub struct Judge<'a> {
    /// `None`: nothing is allowed or refused; violations are counted all the same.
    pub rules: Option<&'a CompiledRules>,
    /// Where it stands.
    pub at: Checkpoint,
}

/// Proof that PCR 10 went from one value to another by entries that the rules allow, and no other.
/// Only [`Judge::advance`] makes it; the gate takes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Advanced {
    bank: Bank,
    from: Vec<u8>,
    to: Vec<u8>,
    entries: u64,
}

impl Advanced {
    /// The bank.
    pub const fn bank(&self) -> Bank {
        self.bank
    }

    /// The value it began at.
    pub fn from(&self) -> &[u8] {
        &self.from
    }

    /// The value it leads to.
    pub fn to(&self) -> &[u8] {
        &self.to
    }

    /// How many entries lie between.
    pub const fn entries(&self) -> u64 {
        self.entries
    }
}

impl<'a> Judge<'a> {
    /// A judge that goes on from `at`.
    pub const fn new(rules: Option<&'a CompiledRules>, at: Checkpoint) -> Self {
        Self { rules, at }
    }

    /// Takes in `rest`, the list from the checkpoint on, until PCR 10 has `target`; all whole entries
    /// if there is no target. `Ok(false)`: the entries that are there don't lead to it (yet); the
    /// checkpoint then stands behind the last whole one. Entries behind the target are left: a
    /// quote may be older than the list.
    ///
    /// A PCR of zeros was not extended: no list leads to it, not even an empty one.
    ///
    /// Whether the kernel extends padded SHA-1 digests is found only by a call with a target and
    /// the list from its start; the checkpoint then remembers it.
    ///
    /// # Errors
    /// [`codes::MEASUREMENTS_IMA_LIST`]: the list can't be read on. [`codes::VERIFY_IMA_PCR`]: an entry
    /// is for another PCR. [`codes::VERIFY_BANK`]: checkpoint or target are of another bank. The checkpoint
    /// stands before the entry.
    pub fn take(&mut self, rest: &[u8], target: Option<&[u8]>) -> Result<bool, Refusal> {
        let before = (self.at.entries == 0 && !self.at.padded).then(|| self.at.clone());
        let reached = self.run(rest, target, false)?;
        let (Some(target), Some(before), false) = (target, before, reached) else { return Ok(reached) };
        let padded = Checkpoint { padded: true, ..before };
        // Only the replay first: what its entries are matters if it leads to the target.
        if !Judge::new(None, padded.clone()).run(rest, Some(target), false)? {
            return Ok(false);
        }
        self.at = padded;
        self.run(rest, Some(target), false)
    }

    /// The same on a node, under a lease: every entry from `self.at` to `target` must be allowed
    /// (in mode `warn`: may be anything). `Ok(None)`: the list hasn't got so far yet. The checkpoint
    /// moves only with the proof, so the same call may be repeated with more of the list, and proofs
    /// follow each other without a gap.
    ///
    /// # Errors
    /// [`codes::VERIFY_IMA_UNLISTED`], [`codes::VERIFY_IMA_VIOLATION`] or, since a kexec under a lease is another
    /// boot, [`codes::VERIFY_BOOT_AGGREGATE`], naming the first entry that no rule allows, with the nearest
    /// that one does. Also those of [`Self::take`].
    pub fn advance(&mut self, rest: &[u8], target: &[u8]) -> Result<Option<Advanced>, Refusal> {
        let bank = self.bank()?;
        let mut ahead = self.clone();
        if !ahead.run(rest, Some(target), true)? {
            return Ok(None);
        }
        let entries = ahead.at.entries.saturating_sub(self.at.entries);
        let before = std::mem::replace(&mut self.at, ahead.at);
        Ok(Some(Advanced { bank, from: before.value, to: self.at.value.clone(), entries }))
    }

    fn bank(&self) -> Result<Bank, Refusal> {
        self.at.bank.parse().map_err(|what: String| Refusal::new(codes::VERIFY_BANK, what).at("IMA checkpoint"))
    }

    fn run(&mut self, rest: &[u8], target: Option<&[u8]>, enforce: bool) -> Result<bool, Refusal> {
        let bank = self.bank()?;
        let wrong_size = |what: &str, found: usize| {
            Refusal::new(codes::VERIFY_BANK, format!("{what} of {found} bytes"))
                .at("PCR 10")
                .expected(format!("{} bytes, as the bank {bank} has them", bank.size()))
        };
        let mut fold = Fold::from(LogHash::from(bank), self.at.padded, &self.at.value)
            .ok_or_else(|| wrong_size("a checkpoint's value", self.at.value.len()))?;
        if let Some(target) = target.filter(|target| target.len() != bank.size()) {
            return Err(wrong_size("a value", target.len()));
        }
        // Zeros are "not measured", never a match.
        let target = target.filter(|target| target.iter().any(|byte| *byte != 0));
        if target == Some(fold.value()) {
            return Ok(true);
        }
        let outcome = self.entries(rest, target, enforce, &mut fold);
        self.at.value = fold.value().to_vec();
        outcome
    }

    /// Takes in entries until `fold` is at the target.
    fn entries(&mut self, rest: &[u8], target: Option<&[u8]>, enforce: bool, fold: &mut Fold) -> Result<bool, Refusal> {
        let mut entries = Entries::new(rest, self.at.entries, self.at.offset);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if entry.pcr != IMA_PCR {
                // Passed over, what it measured would be judged by nobody; folded in, vouched for by nothing.
                return Err(Refusal::new(codes::VERIFY_IMA_PCR, format!("PCR {}", entry.pcr))
                    .at(format!("IMA entry {}, byte {} of the list", entry.number, self.at.offset))
                    .expected(format!("PCR {IMA_PCR}; an IMA policy without `pcr=`")));
            }
            if let Some(what) = relabelled(&entry) {
                return Err(Refusal::new(codes::MEASUREMENTS_IMA_LIST, what)
                    .at(format!("IMA entry {}, PCR {IMA_PCR}, byte {} of the list", entry.number, self.at.offset))
                    .expected("the template that the kernel wrote"));
            }
            fold.take(&entry);
            let refused = self.judge(&entry, enforce);
            self.at.entries = entries.number();
            self.at.offset = entries.offset();
            if let Some(refusal) = refused {
                return Err(refusal);
            }
            if target == Some(fold.value()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Judges one entry: counts what is not allowed, and with `enforce` says so.
    fn judge(&mut self, entry: &ImaEntry<'_>, enforce: bool) -> Option<Refusal> {
        let fields = &entry.fields;
        let enforce = enforce && self.rules.is_none_or(|rules| rules.mode() == Mode::Enforce);
        let (code, why) = if entry.violation {
            if self.rules.is_some_and(|rules| rules.waives(fields.path)) {
                self.at.waived_count = self.at.waived_count.saturating_add(1);
                return None;
            }
            (codes::VERIFY_IMA_VIOLATION, "it changed while it was measured: what ran is not known".into())
        } else if is_boot_aggregate(entry) {
            match self.at.boot_aggregates.len() < FINDINGS_LIMIT {
                true => {
                    (codes::VERIFY_BOOT_AGGREGATE, "it binds the list to a boot: under a lease, to another one".into())
                }
                // Held against the boot's PCRs are those that are kept.
                false => (codes::VERIFY_IMA_UNLISTED, format!("more than {FINDINGS_LIMIT} of them").into()),
            }
        } else {
            let allowed = match self.rules {
                Some(rules) => rules.allow(entry),
                // Without rules nothing is said of a list, but nothing may run under a lease either.
                None if enforce => Err("there are no rules".into()),
                None => Ok(()),
            };
            match allowed {
                Ok(()) => return None,
                Err(why) => (codes::VERIFY_IMA_UNLISTED, why),
            }
        };
        let offset = self.at.offset;
        let (list, count) = self.place(code);
        if let Some(count) = count {
            *count = count.saturating_add(1);
        }
        // The words cost more than the judgement: only for what is shown.
        if !enforce && list.len() >= FINDINGS_LIMIT {
            return None;
        }
        let nearest = match (code, self.rules) {
            (codes::VERIFY_IMA_UNLISTED, Some(rules)) => rules.nearest(entry),
            _ => String::new(),
        };
        let finding = Finding {
            entry: entry.number,
            offset,
            path: shown(fields.path),
            digest: format!("{}:{}", fields.algorithm, hex::encode(fields.digest)),
            why: why.into_owned(),
            nearest,
        };
        let refusal = enforce.then(|| finding.refusal(code));
        let (list, _) = self.place(code);
        if list.len() < FINDINGS_LIMIT {
            list.push(finding);
        }
        refusal
    }

    /// Where findings of a code go, and their count.
    fn place(&mut self, code: Code) -> (&mut Vec<Finding>, Option<&mut u64>) {
        match code {
            codes::VERIFY_IMA_VIOLATION => (&mut self.at.violations, Some(&mut self.at.violations_count)),
            codes::VERIFY_BOOT_AGGREGATE => (&mut self.at.boot_aggregates, None),
            _ => (&mut self.at.unlisted, Some(&mut self.at.unlisted_count)),
        }
    }
}

/// Whether it is named as the entry that binds a list to a boot. Any file whose path the kernel can't tell
/// could bear that name: so each is held against the boot's PCRs, and none counts as judged.
fn is_boot_aggregate(entry: &ImaEntry<'_>) -> bool {
    entry.fields.path == BOOT_AGGREGATE && entry.template != "ima-buf"
}

/// What shows that an entry bears another template's name than the kernel gave it: nothing vouches for
/// the name. `ima-sig` and `ima-buf` are laid out alike, and a buffer would pass for a file with its content,
/// a signature for a buffer. But the digest of a buffer is the buffer's, and a file's is not that of its
/// signature; and names of buffers are no absolute paths.
pub(super) fn relabelled(entry: &ImaEntry<'_>) -> Option<&'static str> {
    let fields = &entry.fields;
    let is_of = |bytes: &[u8]| LogHash::from_name(fields.algorithm).map(|hash| hash.digest(&[bytes]) == fields.digest);
    match entry.template {
        _ if entry.violation => None,
        "ima-buf" if fields.path.starts_with(b"/") || is_of(fields.buffer) == Some(false) => {
            Some("a file under the name of `ima-buf`")
        }
        "ima-sig" if !fields.path.starts_with(b"/") && is_of(fields.signature) == Some(true) => {
            Some("a buffer under the name of `ima-sig`")
        }
        _ => None,
    }
}

fn shown(path: &[u8]) -> String {
    let path = escaped(path);
    match path.char_indices().nth(SHOWN_PATH) {
        Some((end, _)) => format!("{}…", path.get(..end).unwrap_or_default()),
        None => path,
    }
}
