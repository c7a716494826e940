//! Machines that booted: their quoted PCRs, all their logs, and reference values of their artefacts.

use std::collections::BTreeMap;

use leasehold::clock::WallTime;
use leasehold::codes;
use leasehold::control_plane::reference::learn;
use leasehold::measurements::LogHash;
use leasehold::tpm::{Bank, PcrValues};
use leasehold::verify::appraisal::{Appraisal, Finding, ImaLog, LayerStanding, Logs, Measured, measured};
use leasehold::verify::profile::{Layer, Profile};
use leasehold::verify::references::{BootState, EventReference, ReferenceSet, SecureBootReference};
use leasehold::verify::runtime::{HexBytes, Mode, RuntimeRules};

use crate::samples::{pcrs_of_yaml, read, testdata};

const NOW: WallTime = WallTime(1_770_000_000);
pub const SECURE_BOOT: &str = "measured-boot/x86_64/uki-secureboot-3banks-rich";
const BYPASS: &str = "measured-boot/aarch64/direct-debian-tpm-bypass";

/// What a machine left behind.
pub struct Machine {
    pub pcrs: PcrValues,
    pub profile: Profile,
    pub boot: Vec<u8>,
    pub ima: Vec<u8>,
}

impl Machine {
    /// The PCRs its quote covers, as they were read beside it.
    pub fn new(folder: &str, profile: &str) -> Self {
        let yaml = String::from_utf8(read(&format!("{folder}/pcrs.yaml")).unwrap()).unwrap();
        Self {
            pcrs: pcrs_of_yaml(&yaml, "sha256:0-14"),
            profile: Profile::shipped(profile).unwrap(),
            boot: read(&format!("{folder}/binary_bios_measurements")).unwrap(),
            ima: read(&format!("{folder}/binary_runtime_measurements")).unwrap(),
        }
    }

    fn logs(&self) -> Logs<'_> {
        Logs { boot: Some(&self.boot), userspace: None, ima: Some(ImaLog { from: None, rest: &self.ima }) }
    }

    /// The state that the machine teaches.
    pub fn learnt(&self) -> BootState {
        learnt(&self.profile, &self.pcrs, &self.logs())
    }

    fn measured(&self, references: Option<&ReferenceSet>) -> Measured {
        measured(&self.pcrs, &self.profile, &self.logs(), references).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    fn appraise(&self, references: &ReferenceSet) -> Appraisal {
        let appraisal = self.measured(Some(references)).appraise(&self.profile, Some(references), NOW);
        for layer in &appraisal.layers {
            println!("{:?} {}: {}", layer.standing, layer.layer, layer.why);
        }
        for finding in &appraisal.findings {
            println!("  {:?} {}", finding.standing, finding.refusal);
        }
        appraisal
    }
}

/// The state that `reference learn` makes of logs.
pub fn learnt(profile: &Profile, pcrs: &PcrValues, logs: &Logs<'_>) -> BootState {
    BootState { name: "learnt".to_owned(), ..learn::learn(profile, pcrs, logs).unwrap().state }
}

/// `sha256 size role name` lines, by role.
fn artefacts(folder: &str) -> BTreeMap<String, Vec<u8>> {
    let text = String::from_utf8(read(&format!("{folder}/artefacts.sha256")).unwrap()).unwrap();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let digest = hex::decode(words.next()?).ok()?;
        Some((words.nth(1)?.to_owned(), digest))
    };
    text.lines().filter_map(line).collect()
}

/// Digests of the root file system's files are allowed wherever they are.
pub fn rules(folder: &str) -> RuntimeRules {
    let text = String::from_utf8(read(&format!("{folder}/rootfs.sha256")).unwrap()).unwrap();
    let digests = text.lines().filter_map(|line| Some(HexBytes(hex::decode(line.split_whitespace().next()?).ok()?)));
    RuntimeRules { digests: BTreeMap::from([("sha256".to_owned(), digests.collect())]), ..RuntimeRules::default() }
}

/// A state of the machine's own PCR 11 in which kernel and initrd are those of the artefacts.
pub fn state(machine: &Machine, folder: &str) -> BootState {
    let mut events = machine.learnt().events;
    events.retain(|pcr, _| *pcr == 11);
    let artefacts = artefacts(folder);
    let name = |section: &str| LogHash::Sha256.digest(&[section.as_bytes(), &[0]]);
    for (section, role) in [(".linux", "kernel"), (".initrd", "initrd")] {
        let list = events.get_mut(&11).unwrap();
        let at = list.iter().position(|event| event.digest == name(section)).expect("the section's name") + 1;
        list[at] = reference("EV_IPL", &artefacts[role], section);
    }
    BootState { name: "as built".to_owned(), events, ..BootState::default() }
}

fn reference(kind: &str, digest: &[u8], what: &str) -> EventReference {
    EventReference { kind: kind.to_owned(), digest: digest.to_vec(), what: what.to_owned() }
}

pub fn set(profile: &str, state: BootState, runtime: Option<RuntimeRules>) -> ReferenceSet {
    ReferenceSet {
        name: "machines".to_owned(),
        version: 1,
        profile: profile.to_owned(),
        bank: Bank::Sha256,
        states: vec![state],
        runtime,
    }
}

fn standing(appraisal: &Appraisal, layer: Layer) -> LayerStanding {
    appraisal.layer(layer).unwrap().standing
}

fn secure_boot_machine() -> (Machine, ReferenceSet) {
    let machine = Machine::new(SECURE_BOOT, "uefi-uki");
    let state = BootState { secure_boot: Some(SecureBootReference::default()), ..state(&machine, SECURE_BOOT) };
    let set = set("uefi-uki", state, Some(rules(SECURE_BOOT)));
    (machine, set)
}

#[test]
fn the_secure_boot_machine_is_affirmed_and_its_two_violations_are_named() {
    if testdata().is_none() {
        return;
    }
    let (machine, set) = secure_boot_machine();
    let appraisal = machine.appraise(&set);
    assert_eq!(standing(&appraisal, Layer::Boot), LayerStanding::Affirmed);
    assert!(appraisal.layer(Layer::Boot).unwrap().why.contains("PCR 4 by authority"));
    assert_eq!(appraisal.state.as_deref(), Some("as built"));
    // Nobody said what the firmware should be.
    assert_eq!(standing(&appraisal, Layer::Firmware), LayerStanding::NotProven);
    assert_eq!(standing(&appraisal, Layer::Runtime), LayerStanding::Contraindicated);
    let violations: Vec<_> =
        appraisal.findings.iter().filter(|finding| finding.refusal.code == codes::VERIFY_IMA_VIOLATION).collect();
    assert_eq!(violations.len(), 2);
    for finding in violations {
        assert!(finding.refusal.at.contains("IMA entry "), "{}", finding.refusal);
        assert_eq!(finding.standing, LayerStanding::Contraindicated);
    }
    assert_eq!(appraisal.vector.executables, 96);
    assert_eq!(appraisal.vector.configuration, 2);
}

#[test]
fn a_bypassed_kernel_is_contraindicated_for_the_runtime_layer_alone() {
    if testdata().is_none() {
        return;
    }
    let machine = Machine::new(BYPASS, "qemu-ovmf");
    let state = machine.learnt();
    let appraisal = machine.appraise(&set("qemu-ovmf", state, Some(RuntimeRules::default())));
    assert_eq!(standing(&appraisal, Layer::Runtime), LayerStanding::Contraindicated);
    assert!(appraisal.layer(Layer::Runtime).unwrap().why.contains("TPM-bypass"));
    assert_eq!(appraisal.contraindication().unwrap().refusal.code, codes::VERIFY_IMA_BYPASS);
    assert_eq!(standing(&appraisal, Layer::Boot), LayerStanding::Affirmed);
    assert_eq!(standing(&appraisal, Layer::Firmware), LayerStanding::Affirmed);
}

/// One thing that isn't as it should be, and what must be said of it.
fn differing(change: impl FnOnce(&mut ReferenceSet)) -> Appraisal {
    let (machine, mut set) = secure_boot_machine();
    set.runtime = None;
    change(&mut set);
    machine.appraise(&set)
}

#[test]
fn each_difference_is_named_with_its_event_and_the_nearest_accepted() {
    if testdata().is_none() {
        return;
    }
    let first = |appraisal: &Appraisal| appraisal.contraindication().unwrap().clone();
    // Another kernel than the one that booted.
    let appraisal = differing(|set| {
        let list = set.states[0].events.get_mut(&11).unwrap();
        list[1] = reference("EV_IPL", &[0x11; 32], "UKI section .linux");
    });
    let finding = first(&appraisal);
    assert_eq!(finding.refusal.code, codes::VERIFY_EVENT_UNEXPECTED);
    assert!(finding.refusal.at.starts_with("boot log, event 26, PCR 11, EV_IPL"), "{}", finding.refusal);
    assert!(finding.refusal.expected.contains("UKI section .linux (state `as built`)"), "{}", finding.refusal);
    assert!(finding.accept.contains("reference plan-update --from machines"), "{}", finding.accept);
    assert_eq!((appraisal.vector.executables, appraisal.state), (96, None));
    // An event less, and an event more, than the state has.
    let appraisal = differing(|set| drop(set.states[0].events.get_mut(&11).unwrap().remove(2)));
    assert!(first(&appraisal).refusal.at.contains("event 27, PCR 11"));
    let appraisal = differing(|set| {
        set.states[0].events.get_mut(&11).unwrap().push(reference("EV_IPL", &[0x22; 32], "UKI section .dtb"));
    });
    assert!(first(&appraisal).refusal.expected.contains(".dtb"));
    // What systemd may yet extend need not have come.
    let appraisal = differing(|set| {
        set.states[0].events.get_mut(&11).unwrap().push(reference("systemd:phase", &[0x33; 32], "to come"));
    });
    assert_eq!(standing(&appraisal, Layer::Boot), LayerStanding::Affirmed);
    // A state that was planned away.
    let appraisal = differing(|set| set.states[0].until = Some(NOW));
    assert_eq!(first(&appraisal).refusal.code, codes::VERIFY_STATE_EXPIRED);
    // Of two states the one that is met decides, whatever the other says.
    let appraisal = differing(|set| {
        let other = BootState { name: "next".to_owned(), ..BootState::default() };
        let mut other = BootState { events: set.states[0].events.clone(), ..other };
        other.events.get_mut(&11).unwrap().truncate(1);
        set.states.insert(0, other);
    });
    assert_eq!(appraisal.state.as_deref(), Some("as built"));
    // Keys that aren't the ones in db.
    let appraisal = differing(|set| {
        set.states[0].secure_boot = Some(SecureBootReference {
            authorities: vec![vec![0x44; 32]],
            variables: BTreeMap::from([("db".to_owned(), vec![vec![0x55; 32]])]),
        });
    });
    assert_eq!(first(&appraisal).refusal.code, codes::VERIFY_SECURE_BOOT);
    let contraindicated = |finding: &&Finding| finding.standing == LayerStanding::Contraindicated;
    assert_eq!(appraisal.findings.iter().filter(contraindicated).count(), 2);
    assert_eq!(appraisal.vector.configuration, 96);
    // A whole value.
    let appraisal = differing(|set| drop(set.states[0].values.insert(0, vec![0x66; 32])));
    assert_eq!(first(&appraisal).refusal.code, codes::VERIFY_PCR_MISMATCH);
    // Of none of the parts is it known what it should be: it is no reference.
    let appraisal = differing(|set| {
        set.states[0].events.get_mut(&11).unwrap().iter_mut().for_each(|event| event.digest.clear());
    });
    assert_eq!(standing(&appraisal, Layer::Boot), LayerStanding::NotProven);
    assert!(appraisal.layer(Layer::Boot).unwrap().why.contains("PCR 11"));
    // The same measurements, but not by the firmware: it had ended its part when they were made.
    let (machine, _) = secure_boot_machine();
    let firmware = machine.learnt().events.remove(&0).unwrap();
    let appraisal = differing(|set| drop(set.states[0].events.insert(0, firmware.clone())));
    assert_eq!(standing(&appraisal, Layer::Firmware), LayerStanding::Affirmed);
    let appraisal = differing(|set| {
        let mut firmware = firmware;
        firmware.rotate_right(1);
        set.states[0].events.insert(0, firmware);
    });
    assert_eq!(first(&appraisal).refusal.code, codes::VERIFY_SEPARATOR);
    assert!(first(&appraisal).refusal.at.starts_with("boot log, event 15, PCR 0"), "{}", first(&appraisal).refusal);
    // A PCR that the profile doesn't judge isn't passed over.
    let appraisal = differing(|set| drop(set.states[0].values.insert(14, vec![0x77; 32])));
    assert_eq!(standing(&appraisal, Layer::Boot), LayerStanding::NotProven);
    assert!(appraisal.layer(Layer::Boot).unwrap().why.contains("PCR 14"));
    // Nothing is said of the images: neither that they are right nor that they are wrong.
    let appraisal = differing(|set| set.states[0].secure_boot = None);
    assert_eq!(standing(&appraisal, Layer::Boot), LayerStanding::NotProven);
    // References for another platform judge nothing.
    let appraisal = differing(|set| "uefi-shim-grub".clone_into(&mut set.profile));
    assert_eq!(first(&appraisal).refusal.code, codes::VERIFY_PROFILE);
}

#[test]
fn logs_that_prove_nothing_are_refused_before_any_verdict() {
    if testdata().is_none() {
        return;
    }
    let (machine, set) = secure_boot_machine();
    let refused = |logs: Logs<'_>, references: &ReferenceSet| {
        measured(&machine.pcrs, &machine.profile, &logs, Some(references)).unwrap_err().code
    };
    let good = machine.logs();
    assert_eq!(refused(Logs { boot: None, ..good }, &set), codes::VERIFY_LOG_MISSING);
    assert_eq!(refused(Logs { ima: None, ..good }, &set), codes::VERIFY_LOG_MISSING);
    assert_eq!(refused(Logs { boot: Some(&[]), ..good }, &set), codes::MEASUREMENTS_BOOT_LOG);
    let cut = ImaLog { from: None, rest: &machine.ima[..machine.ima.len() - 1] };
    assert_eq!(refused(Logs { ima: Some(cut), ..good }, &set), codes::VERIFY_LOG_REPLAY);
    assert_eq!(refused(good, &ReferenceSet { bank: Bank::Sha384, ..set.clone() }), codes::VERIFY_BANK);
    // Another boot's list can't lead to this PCR 10; one that did would begin with other PCRs.
    let other = read("measured-boot/x86_64/uki/binary_runtime_measurements").unwrap();
    assert_eq!(
        refused(Logs { ima: Some(ImaLog { from: None, rest: &other }), ..good }, &set),
        codes::VERIFY_LOG_REPLAY
    );
    let foreign = Machine::new("measured-boot/x86_64/uki", "qemu-ovmf");
    let mut values: BTreeMap<u8, Vec<u8>> = machine.pcrs.iter().map(|(pcr, value)| (pcr, value.to_vec())).collect();
    values.insert(10, foreign.pcrs.get(10).unwrap().to_vec());
    let pcrs = PcrValues::new(machine.pcrs.selection(), values).unwrap();
    let logs = Logs { ima: Some(ImaLog { from: None, rest: &other }), ..good };
    let refusal = measured(&pcrs, &machine.profile, &logs, None).unwrap_err();
    assert_eq!(refusal.code, codes::VERIFY_BOOT_AGGREGATE, "{refusal}");
    assert!(refusal.at.starts_with("IMA entry 0,"));
}

/// What vouched for an image can't be moved to systemd's log, where a record may call itself anything.
#[test]
fn an_authority_is_not_hidden_among_the_records_of_userspace() {
    if testdata().is_none() {
        return;
    }
    let (machine, mut set) = secure_boot_machine();
    set.runtime = None;
    let extended = |data: &[u8]| {
        let mut values: BTreeMap<u8, Vec<u8>> = machine.pcrs.iter().map(|(pcr, value)| (pcr, value.to_vec())).collect();
        // The kernel is the attacker's, and measures nothing.
        values.insert(10, vec![0; 32]);
        let digest = LogHash::Sha256.digest(&[data]);
        values.insert(7, LogHash::Sha256.extend(&values[&7], &digest));
        (PcrValues::new(machine.pcrs.selection(), values).unwrap(), hex::encode(digest))
    };
    let measured_with = |data: &[u8]| {
        let (pcrs, digest) = extended(data);
        let record = format!(
            "\x1e{{\"pcr\":7,\"digests\":[{{\"hashAlg\":\"sha256\",\"digest\":\"{digest}\"}}],\
             \"content_type\":\"systemd\",\"content\":{{\"string\":\"os-separator\",\"eventType\":\"os-separator\"}}}}\n"
        );
        let logs = Logs { boot: Some(&machine.boot), userspace: Some(record.as_bytes()), ima: None };
        measured(&pcrs, &machine.profile, &logs, Some(&set))
    };
    let good = measured_with(b"os-separator").unwrap().appraise(&machine.profile, Some(&set), NOW);
    assert_eq!(standing(&good, Layer::Boot), LayerStanding::Affirmed);
    let refusal = measured_with(b"MokList and a key of the attacker's").map(drop).unwrap_err();
    assert_eq!(refusal.code, codes::VERIFY_EVENT_DATA, "{refusal}");
    assert!(refusal.at.starts_with("userspace log, record 0, PCR 7"), "{refusal}");
}

/// Any file whose path the kernel can't tell goes by its bare name (`ima_d_path`), and its digest is of the algorithm
/// that its `security.ima` names: one that the boot log has no bank for isn't waved through.
#[test]
fn a_file_is_not_passed_off_as_the_boot_aggregate_of_a_bank_nobody_has() {
    if testdata().is_none() {
        return;
    }
    let (machine, mut set) = secure_boot_machine();
    set.runtime = Some(RuntimeRules { mode: Mode::Warn, ..rules(SECURE_BOOT) });
    let with = |algorithm: &str, digest: &[u8]| {
        let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes(), bytes].concat();
        let name = field(&[algorithm.as_bytes(), b":\0", digest].concat());
        let data = [name, field(b"boot_aggregate\0"), field(&[])].concat();
        let printed = LogHash::Sha1.digest(&[&data]);
        let entry = [&10_u32.to_le_bytes(), &printed[..], &field(b"ima-sig"), &field(&data)].concat();
        let list = [&machine.ima[..], &entry].concat();
        let mut values: BTreeMap<u8, Vec<u8>> = machine.pcrs.iter().map(|(pcr, value)| (pcr, value.to_vec())).collect();
        values.insert(10, LogHash::Sha256.extend(&values[&10], &LogHash::Sha256.digest(&[&data])));
        let pcrs = PcrValues::new(machine.pcrs.selection(), values).unwrap();
        let logs = Logs { ima: Some(ImaLog { from: None, rest: &list }), ..machine.logs() };
        measured(&pcrs, &machine.profile, &logs, Some(&set)).map(drop)
    };
    for (algorithm, size) in [("sha256", 32), ("sha512", 64), ("md5", 16)] {
        let refusal = with(algorithm, &vec![0x66; size]).unwrap_err();
        assert_eq!(refusal.code, codes::VERIFY_BOOT_AGGREGATE, "{algorithm}: {refusal}");
    }
    // After a kexec that changed none of these PCRs the kernel says the same again.
    let first = machine.measured(Some(&set)).ima().unwrap().boot_aggregates[0].digest.clone();
    let (algorithm, digest) = first.split_once(':').unwrap();
    assert_eq!(with(algorithm, &hex::decode(digest).unwrap()), Ok(()));
}

#[test]
fn a_kernel_without_an_ima_policy_proves_nothing_of_what_runs() {
    if testdata().is_none() {
        return;
    }
    let (machine, set) = secure_boot_machine();
    // Its first entry alone, as a kernel without a policy leaves it.
    let (entry, length) = leasehold::measurements::ima::entry(&machine.ima, 0).unwrap().unwrap();
    let mut values: BTreeMap<u8, Vec<u8>> = machine.pcrs.iter().map(|(pcr, value)| (pcr, value.to_vec())).collect();
    values.insert(10, LogHash::Sha256.extend(&[0; 32], &LogHash::Sha256.digest(&[entry.data])));
    let pcrs = PcrValues::new(machine.pcrs.selection(), values).unwrap();
    let list = &machine.ima[..length];
    let logs = Logs { ima: Some(ImaLog { from: None, rest: list }), ..machine.logs() };
    let appraisal = measured(&pcrs, &machine.profile, &logs, Some(&set)).unwrap();
    let appraisal = appraisal.appraise(&machine.profile, Some(&set), NOW);
    assert_eq!(standing(&appraisal, Layer::Boot), LayerStanding::Affirmed);
    assert_eq!(standing(&appraisal, Layer::Runtime), LayerStanding::NotProven);
    assert_eq!(appraisal.vector.executables, 3);
}
