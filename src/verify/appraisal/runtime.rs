//! The runtime layer: what the kernel measured, by the set's rules.

use super::compare::{LEARN, finding};
use super::judge::{not_proven, result};
use super::{Finding, Kernel, LayerResult, LayerStanding, Measured};
use crate::codes::{self, Refusal};
use crate::verify::profile::{Layer, Profile};
use crate::verify::references::ReferenceSet;
use crate::verify::runtime::{Checkpoint, Finding as Entry, Mode, RuntimeRules};

const LAYER: Layer = Layer::Runtime;

/// What is said of it, and why.
pub(super) fn appraise(
    measured: &Measured,
    profile: &Profile,
    references: Option<&ReferenceSet>,
) -> (LayerResult, Vec<Finding>) {
    let rules = references.and_then(|set| set.runtime.as_ref());
    let at = match &measured.kernel {
        Kernel::Unquoted => return (not_proven(LAYER, profile, "PCR 10 isn't quoted"), Vec::new()),
        Kernel::Off => {
            return (not_proven(LAYER, profile, "PCR 10 was never extended: the kernel measures nothing"), Vec::new());
        }
        Kernel::Bypass => {
            let refusal = Refusal::new(codes::VERIFY_IMA_BYPASS, "a list with entries beside a PCR of zeros")
                .at("PCR 10")
                .expected("the value that the list leads to; a kernel with its TPM driver built in");
            let why = "the kernel's list was not extended into the TPM (TPM-bypass): nothing vouches for it";
            return (result(LAYER, LayerStanding::Contraindicated, why), vec![finding(LAYER, refusal, "")]);
        }
        Kernel::Listed(at) => at,
    };
    if at.padded {
        let refusal = Refusal::new(codes::VERIFY_SHA1_ONLY, "SHA-1 digests with zeros behind them")
            .at(format!("PCR 10 ({})", at.bank))
            .expected("a bank whose hash the kernel has when IMA starts");
        let why = "the kernel vouches for its list with SHA-1 alone";
        return (result(LAYER, LayerStanding::Contraindicated, why), vec![finding(LAYER, refusal, "")]);
    }
    let mut findings = found(at);
    let Some(rules) = rules else {
        // Nobody said what may run. A violation is still worth a look.
        findings.retain(|finding| finding.refusal.code == codes::VERIFY_IMA_VIOLATION);
        findings.iter_mut().for_each(|finding| finding.standing = LayerStanding::Warned);
        let why = format!("no rules for what may run; {} entries lead to PCR 10", at.entries);
        return (not_proven(LAYER, profile, &why), findings);
    };
    if at.unlisted_count == 0 && at.violations_count == 0 {
        return match profile.not_proven.get(&LAYER) {
            Some(why) => (result(LAYER, LayerStanding::NotProven, why.clone()), findings),
            // A kernel that was started without a policy of IMA's runs what it likes and says no more than this.
            None if measured_nothing(at) => {
                (not_proven(LAYER, profile, "the kernel measured no file: it has no IMA policy"), findings)
            }
            None => (result(LAYER, LayerStanding::Affirmed, affirmed(at, rules)), findings),
        };
    }
    let standing = match rules.mode {
        Mode::Enforce => LayerStanding::Contraindicated,
        Mode::Warn => LayerStanding::Warned,
    };
    findings.iter_mut().for_each(|finding| finding.standing = standing);
    let why = format!(
        "{} of {} entries are allowed by no rule, {} are violations",
        at.unlisted_count, at.entries, at.violations_count
    );
    (result(LAYER, standing, why), findings)
}

/// Whether its list is nothing but what binds it to a boot.
fn measured_nothing(at: &Checkpoint) -> bool {
    usize::try_from(at.entries).is_ok_and(|entries| entries <= at.boot_aggregates.len())
}

fn affirmed(at: &Checkpoint, rules: &RuntimeRules) -> String {
    let waived = if at.waived_count > 0 { format!(", {} violations waived", at.waived_count) } else { String::new() };
    let excluded = if rules.exclusions.is_empty() {
        String::new()
    } else {
        format!(", {} paths not judged", rules.exclusions.len())
    };
    format!("{} entries lead to PCR 10, each allowed by a rule{waived}{excluded}", at.entries)
}

/// Violations first: of what changed while it was measured not even the digest is known.
fn found(at: &Checkpoint) -> Vec<Finding> {
    let violation = |one: &Entry| {
        one.refusal(codes::VERIFY_IMA_VIOLATION)
            .expected("no violation, or a waiver of the reference values that argues it")
    };
    let violations = at.violations.iter().map(|one| finding(LAYER, violation(one), ""));
    let unlisted = at.unlisted.iter().map(|one| finding(LAYER, one.refusal(codes::VERIFY_IMA_UNLISTED), LEARN));
    violations.chain(unlisted).collect()
}
