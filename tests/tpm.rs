//! The TPM room against a private software TPM for each test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![cfg(feature = "agent")]

mod tpm {
    pub mod bus;
    pub mod swtpm;
}

use std::str::FromStr;
use std::time::{Duration, Instant};

use leasehold::identity::TrustDomain;
use leasehold::tpm::{PcrReading, PcrSelection, Tpm, TpmAddress, TpmError, TpmIdentity, TpmThread};
use p256::ecdsa::VerifyingKey;
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use sha2::{Digest as _, Sha256};
use tpm::bus::{self, Bus};
use tpm::swtpm::Swtpm;
use tss_esapi::abstraction::AsymmetricAlgorithmSelection;
use tss_esapi::abstraction::ek::create_ek_public_from_default_template_2;
use tss_esapi::attributes::NvIndexAttributesBuilder;
use tss_esapi::constants::{CapabilityType, PropertyTag};
use tss_esapi::handles::{NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{CapabilityData, Digest, MaxNvBuffer, Name, NvPublic, Public};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::{Context, TctiNameConf};

const PCRS: &str = "sha256:0-7,9,11-15";

fn spawn_at(address: &str, deadline: Duration) -> (Tpm, TpmThread) {
    let address = TpmAddress::parse(address).unwrap();
    Tpm::spawn(address, deadline, &TrustDomain::new("example.org").unwrap()).unwrap()
}

fn spawn(swtpm: &Swtpm) -> (Tpm, TpmThread) {
    spawn_at(&swtpm.address(), Duration::from_secs(20))
}

fn stop(thread: TpmThread) {
    thread.stop(Duration::from_secs(20)).unwrap();
}

/// A context of the test's own. The software TPM takes one connection at a time: none of ours may be open.
fn raw<T>(swtpm: &Swtpm, work: impl FnOnce(&mut Context) -> T) -> T {
    let mut context = Context::new(TctiNameConf::from_str(&swtpm.address()).unwrap()).unwrap();
    context.set_sessions((Some(AuthSession::Password), None, None));
    work(&mut context)
}

fn handles(context: &mut Context, first: u32) -> Vec<u32> {
    let (data, _) =
        context.execute_without_session(|context| context.get_capability(CapabilityType::Handles, first, 100)).unwrap();
    let CapabilityData::Handles(list) = data else { panic!("other data") };
    list.into_inner().into_iter().map(u32::from).collect()
}

/// The P-256 key at the end of a TPMT_PUBLIC: two sized coordinates.
fn ecc_key(public: &[u8]) -> VerifyingKey {
    let point = &public[public.len() - 68..];
    assert_eq!((&point[..2], &point[34..36]), (&[0, 32][..], &[0, 32][..]));
    VerifyingKey::from_sec1_bytes(&[&[4], &point[2..34], &point[36..]].concat()).unwrap()
}

/// ECDSA with SHA-256 from a TPMT_SIGNATURE.
fn ecdsa(signature: &[u8]) -> p256::ecdsa::Signature {
    assert_eq!(signature[..4], [0x00, 0x18, 0x00, 0x0B]);
    assert_eq!((&signature[4..6], &signature[38..40], signature.len()), (&[0, 32][..], &[0, 32][..], 72));
    p256::ecdsa::Signature::from_slice(&[&signature[6..38], &signature[40..]].concat()).unwrap()
}

/// A TPM name with SHA-256.
fn name(public: &[u8]) -> Vec<u8> {
    [&[0x00, 0x0B][..], &Sha256::digest(public)].concat()
}

fn selection(text: &str) -> PcrSelection {
    text.parse().unwrap()
}

async fn read(tpm: &Tpm) -> PcrReading {
    tpm.read_pcrs(selection(PCRS)).await.unwrap()
}

/// Asks until the TPM answers, at most for the ten seconds that the design promises.
async fn recovered(tpm: &Tpm) -> PcrReading {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match tpm.read_pcrs(selection(PCRS)).await {
            Ok(reading) => return reading,
            Err(error) => assert!(Instant::now() < until, "not back within 10 s: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// TPM2_MakeCredential by the TPM itself, for the EK and name of an identity.
fn credential(swtpm: &Swtpm, ek: &[u8], name: &[u8], secret: &[u8]) -> (Vec<u8>, Vec<u8>) {
    raw(swtpm, |context| {
        context.clear_sessions();
        let ek = context.load_external_public(Public::unmarshall(ek).unwrap(), Hierarchy::Null).unwrap();
        let (object, secret) = context
            .make_credential(ek, Digest::try_from(secret).unwrap(), Name::try_from(name.to_vec()).unwrap())
            .unwrap();
        (object.value().to_vec(), secret.value().to_vec())
    })
}

#[tokio::test]
async fn quotes_readings_certifications_and_signatures_are_the_tpms() {
    let swtpm = Swtpm::start();
    let (tpm, thread) = spawn(&swtpm);
    let identity = tpm.identity().await.unwrap();
    let ak = ecc_key(&identity.ak_public);
    let node_key = ecc_key(&identity.node_key_public);
    assert_eq!(identity.manufacturer, "IBM");
    assert_eq!(identity.ak_public[4..8], [0x00, 0x05, 0x04, 0x72]);
    assert_eq!(identity.node_key_public[4..8], [0x00, 0x04, 0x04, 0x72]);
    assert_eq!(identity.ek.certificate, None);

    let pcrs = selection(PCRS);
    let reading = read(&tpm).await;
    assert!(reading.started_at <= reading.finished_at);
    let quote = tpm.quote(pcrs, [7; 32]).await.unwrap();
    ak.verify(&quote.attest, &ecdsa(&quote.signature)).unwrap();
    // Magic, type, a name of 34 bytes, then the qualifying data; the digest ends the structure.
    assert_eq!(quote.attest[..6], [0xFF, b'T', b'C', b'G', 0x80, 0x18]);
    assert_eq!(quote.attest[42..44 + 32], [&[0, 32][..], &[7; 32]].concat());
    assert!(quote.attest.ends_with(&reading.values.digest()));
    assert_eq!(quote.attest[84..88], reading.counts.reset.to_be_bytes());

    let certification = tpm.certify_node_key([8; 32]).await.unwrap();
    ak.verify(&certification.attest, &ecdsa(&certification.signature)).unwrap();
    assert_eq!(certification.attest[..6], [0xFF, b'T', b'C', b'G', 0x80, 0x17]);
    // Past the same header: the certified name.
    assert_eq!(certification.attest[103..137], name(&identity.node_key_public));

    node_key.verify_prehash(&[9; 32], &tpm.sign([9; 32]).await.unwrap()).unwrap();
    // As rustls does it: on a thread of the runtime.
    node_key.verify_prehash(&[9; 32], &tpm.sign_blocking([9; 32]).unwrap()).unwrap();
    stop(thread);
}

#[tokio::test]
async fn keys_are_the_same_after_every_start() {
    let mut swtpm = Swtpm::start();
    let (tpm, thread) = spawn(&swtpm);
    let first = tpm.identity().await.unwrap();
    stop(thread);
    swtpm.kill();
    swtpm.restart();
    let (tpm, thread) = spawn(&swtpm);
    assert_eq!(tpm.identity().await.unwrap(), first);
    stop(thread);
    let other = TrustDomain::new("other.example").unwrap();
    let address = TpmAddress::parse(&swtpm.address()).unwrap();
    let (tpm, thread) = Tpm::spawn(address, Duration::from_secs(20), &other).unwrap();
    let other = tpm.identity().await.unwrap();
    assert_eq!(other.ak_public, first.ak_public);
    assert_ne!(other.node_key_public, first.node_key_public);
    stop(thread);
}

/// Activates a good credential and refuses one for another key, with the EK that is in use.
async fn activates(swtpm: &Swtpm, identity: &TpmIdentity) {
    let secret = [0x5A; 32];
    let good = credential(swtpm, &identity.ek.public, &name(&identity.ak_public), &secret);
    let bad = credential(swtpm, &identity.ek.public, &name(&identity.node_key_public), &secret);
    let (tpm, thread) = spawn(swtpm);
    assert_eq!(tpm.identity().await.unwrap(), *identity);
    assert_eq!(*tpm.activate(good.0.clone(), good.1.clone()).await.unwrap(), secret);
    let refused = tpm.activate(bad.0, bad.1).await.unwrap_err();
    assert!(
        matches!(&refused, TpmError::Refused { command, reason } if command == "TPM2_ActivateCredential" && reason.contains("integrity")),
        "{refused}"
    );
    assert!(matches!(tpm.activate(vec![0; 5000], vec![0; 5000]).await, Err(TpmError::Refused { .. })));
    assert_eq!(*tpm.activate(good.0, good.1).await.unwrap(), secret);
    stop(thread);
}

#[tokio::test]
async fn a_tpm_without_certificates_uses_its_p256_key() {
    let swtpm = Swtpm::start();
    let (tpm, thread) = spawn(&swtpm);
    let identity = tpm.identity().await.unwrap();
    stop(thread);
    // TPM_ALG_ECC, SHA-256, the attributes of template L-2.
    assert_eq!(identity.ek.public[..8], [0x00, 0x23, 0x00, 0x0B, 0x00, 0x03, 0x00, 0xB2]);
    assert!(identity.aliases.is_empty() && identity.chain.is_empty());
    activates(&swtpm, &identity).await;
}

#[tokio::test]
async fn each_certified_ek_is_found_and_works_persistent_or_not() {
    let swtpm = Swtpm::start_manufactured();
    let (tpm, thread) = spawn(&swtpm);
    let p384 = tpm.identity().await.unwrap();
    stop(thread);
    // SHA-384, the attributes of template H-3; the RSA key is an alias.
    assert_eq!(p384.ek.public[..8], [0x00, 0x23, 0x00, 0x0C, 0x00, 0x03, 0x00, 0xF2]);
    let certificate = p384.ek.certificate.clone().unwrap();
    assert!(certificate.windows(48).any(|part| part == &p384.ek.public[p384.ek.public.len() - 48..]));
    let [rsa] = &p384.aliases[..] else { panic!("{:?}", p384.aliases) };
    assert_eq!(rsa.public[..8], [0x00, 0x01, 0x00, 0x0B, 0x00, 0x03, 0x00, 0xB2]);
    activates(&swtpm, &p384).await;

    // Without the keys that lie ready the templates make the same ones.
    for handle in [0x8101_0001, 0x8101_0016] {
        raw(&swtpm, |context| {
            let persistent = Persistent::Persistent(handle.try_into().unwrap());
            let key = TpmHandle::try_from(handle).unwrap();
            let key = context.execute_without_session(|context| context.tr_from_tpm_public(key)).unwrap();
            context.evict_control(Provision::Owner, key, persistent).unwrap();
        });
    }
    activates(&swtpm, &p384).await;

    // Without its certificate the P-384 key is not used any more.
    undefine(&swtpm, 0x01C0_0016);
    let (tpm, thread) = spawn(&swtpm);
    let rsa_only = tpm.identity().await.unwrap();
    stop(thread);
    assert_eq!((&rsa_only.ek, &rsa_only.aliases[..]), (rsa, &[][..]));
    activates(&swtpm, &rsa_only).await;
}

#[tokio::test]
async fn an_ek_evicted_under_a_running_agent_is_made_again() {
    let swtpm = Swtpm::start_manufactured();
    let bus = Bus::to(&swtpm);
    let (tpm, thread) = spawn_at(&bus.address(), Duration::from_secs(20));
    let identity = tpm.identity().await.unwrap();
    // TPM2_EvictControl of the P-384 key, by the owner with an empty password.
    let mut evict = vec![0x80, 0x02, 0, 0, 0, 35, 0, 0, 0x01, 0x20, 0x40, 0, 0, 0x01, 0x81, 0x01, 0, 0x16];
    evict.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0x81, 0x01, 0, 0x16]);
    assert_eq!(bus::code(&bus.send(&evict)), 0);
    swtpm.init();
    assert_eq!(tpm.read_pcrs(selection(PCRS)).await, Err(TpmError::Reset));
    recovered(&tpm).await;
    assert_eq!(tpm.identity().await.unwrap(), identity);
    stop(thread);
}

#[tokio::test]
async fn a_certified_p256_key_comes_first_and_the_chain_is_read() {
    let swtpm = Swtpm::start_manufactured();
    let (tpm, thread) = spawn(&swtpm);
    let factory = tpm.identity().await.unwrap();
    stop(thread);
    let point = raw(&swtpm, |context| {
        let template =
            create_ek_public_from_default_template_2(AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256), None)
                .unwrap();
        let made = context.create_primary(Hierarchy::Endorsement, template, None, None, None, None).unwrap();
        context.clear_sessions();
        context.flush_context(made.key_handle.into()).unwrap();
        made.out_public.marshall().unwrap()
    });
    let certificate = swtpm.certify_p256(&point[point.len() - 66..][..32], &point[point.len() - 32..]);
    // As on real parts, padding follows.
    define(&swtpm, 0x01C0_000A, &[&certificate[..], &[0xFF; 40]].concat());
    // Two certificates of a chain, the second cut in two.
    let other = factory.ek.certificate.clone().unwrap();
    let chain = [&certificate[..], &other].concat();
    define(&swtpm, 0x01C0_0100, &chain[..certificate.len() + 10]);
    define(&swtpm, 0x01C0_0101, &[&chain[certificate.len() + 10..], &[0xFF; 7]].concat());
    let (tpm, thread) = spawn(&swtpm);
    let identity = tpm.identity().await.unwrap();
    stop(thread);
    assert_eq!(identity.ek.public, point);
    assert_eq!(identity.ek.certificate.as_deref(), Some(&certificate[..]));
    assert_eq!(identity.aliases, [factory.ek.clone(), factory.aliases[0].clone()]);
    assert_eq!(identity.chain, [certificate, other]);
    activates(&swtpm, &identity).await;

    // A certificate for another key is none.
    let (certified, other) = (Swtpm::start(), swtpm);
    let foreign = other.certify_p256(&[1; 32], &[2; 32]);
    define(&certified, 0x01C0_000A, &foreign);
    let (tpm, thread) = spawn(&certified);
    assert_eq!(tpm.identity().await.unwrap().ek.certificate, None);
    stop(thread);
}

fn undefine(swtpm: &Swtpm, index: u32) {
    raw(swtpm, |context| {
        let handle = TpmHandle::NvIndex(NvIndexTpmHandle::new(index).unwrap());
        let resource = context.execute_without_session(|context| context.tr_from_tpm_public(handle)).unwrap();
        context.nv_undefine_space(Provision::Platform, resource.into()).unwrap();
    });
}

/// Defines an index that anybody may read and fills it.
fn define(swtpm: &Swtpm, index: u32, contents: &[u8]) {
    raw(swtpm, |context| {
        let attributes = NvIndexAttributesBuilder::new()
            .with_owner_write(true)
            .with_auth_read(true)
            .with_owner_read(true)
            .with_no_da(true)
            .build()
            .unwrap();
        let public = NvPublic::builder()
            .with_nv_index(NvIndexTpmHandle::new(index).unwrap())
            .with_index_name_algorithm(HashingAlgorithm::Sha256)
            .with_index_attributes(attributes)
            .with_data_area_size(contents.len())
            .build()
            .unwrap();
        let handle = context.nv_define_space(Provision::Owner, None, public).unwrap();
        for (number, part) in contents.chunks(512).enumerate() {
            let part = MaxNvBuffer::try_from(part.to_vec()).unwrap();
            context.nv_write(NvAuth::Owner, handle, part, u16::try_from(number * 512).unwrap()).unwrap();
        }
    });
}

fn lockout_counter(swtpm: &Swtpm) -> u32 {
    raw(swtpm, |context| context.execute_without_session(|c| c.get_tpm_property(PropertyTag::LockoutCounter)))
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn an_extension_shows_in_the_next_reading() {
    let swtpm = Swtpm::start();
    let bus = Bus::to(&swtpm);
    let (tpm, thread) = spawn_at(&bus.address(), Duration::from_secs(20));
    let before = read(&tpm).await;
    for pcr in [0, 15] {
        assert_eq!(bus::code(&bus.send(&bus::extend(pcr, 1))), 0);
        let expected = Sha256::digest([[0; 32], [1; 32]].concat());
        let after = read(&tpm).await;
        assert_eq!(after.values.get(pcr), Some(expected.as_slice()));
        assert!(after.update_counter > before.update_counter);
        assert_eq!(after.counts, before.counts);
    }
    // PCR 23 doesn't move the counter: it is read each time.
    let resettable = selection("sha256:0-7,23");
    tpm.read_pcrs(resettable).await.unwrap();
    bus.send(&bus::extend(23, 1));
    let expected = Sha256::digest([[0; 32], [1; 32]].concat());
    assert_eq!(tpm.read_pcrs(resettable).await.unwrap().values.get(23), Some(expected.as_slice()));
    stop(thread);
}

#[tokio::test]
async fn a_reading_amid_extensions_is_of_one_moment() {
    let swtpm = Swtpm::start();
    let bus = Bus::to(&swtpm);
    let (tpm, thread) = spawn_at(&bus.address(), Duration::from_secs(20));
    read(&tpm).await;
    // PCR 10 is not selected: however often it moves, it must not keep a reading from ending.
    let storm = |pcrs: &'static [u8], times: usize, pause: u64| {
        let bus = bus.clone();
        std::thread::spawn(move || {
            for _ in 0..times {
                for pcr in pcrs {
                    bus.send(&bus::extend(*pcr, 1));
                }
                std::thread::sleep(Duration::from_millis(pause));
            }
        })
    };
    let extender = storm(&[10], 500, 1);
    while !extender.is_finished() {
        read(&tpm).await;
    }
    // PCR 0 is read in the first command, PCR 15 in the second; PCR 0 is always extended first.
    const EXTENSIONS: usize = 60;
    let extender = storm(&[0, 15], EXTENSIONS, 30);
    let mut history = vec![vec![0; 32]];
    for number in 0..EXTENSIONS {
        history.push(Sha256::digest([&history[number][..], &[1; 32]].concat()).to_vec());
    }
    let times = |reading: &PcrReading, pcr| {
        let value = reading.values.get(pcr).unwrap();
        history.iter().position(|then| then == value).unwrap()
    };
    while !extender.is_finished() {
        // It may give up, but not mix two moments.
        let Ok(reading) = tpm.read_pcrs(selection(PCRS)).await else { continue };
        let (first, last) = (times(&reading, 0), times(&reading, 15));
        assert!(first == last || first == last + 1, "{first} {last}");
    }
    assert_eq!(times(&read(&tpm).await, 15), EXTENSIONS);
    stop(thread);
}

#[tokio::test]
async fn lockout_by_others_stops_none_of_our_keys() {
    let swtpm = Swtpm::start();
    let (tpm, thread) = spawn(&swtpm);
    let identity = tpm.identity().await.unwrap();
    stop(thread);
    // Anybody can guess at a protected NV index until the TPM locks.
    raw(&swtpm, |context| {
        let attributes = NvIndexAttributesBuilder::new()
            .with_owner_write(true)
            .with_owner_read(true)
            .with_auth_read(true)
            .build()
            .unwrap();
        let public = NvPublic::builder()
            .with_nv_index(NvIndexTpmHandle::new(0x0180_0001).unwrap())
            .with_index_name_algorithm(HashingAlgorithm::Sha256)
            .with_index_attributes(attributes)
            .with_data_area_size(1)
            .build()
            .unwrap();
        let auth = tss_esapi::structures::Auth::try_from(b"secret".as_slice()).unwrap();
        let index = context.nv_define_space(Provision::Owner, Some(auth), public).unwrap();
        context.nv_write(NvAuth::Owner, index, MaxNvBuffer::try_from(vec![1]).unwrap(), 0).unwrap();
        context.tr_set_auth(index.into(), tss_esapi::structures::Auth::default()).unwrap();
        for _ in 0..100 {
            if context.nv_read(NvAuth::NvIndex(index), index, 1, 0).unwrap_err().to_string().contains("lockout") {
                return;
            }
        }
        panic!("the TPM doesn't lock");
    });
    assert!(lockout_counter(&swtpm) > 0);
    let (tpm, thread) = spawn(&swtpm);
    read(&tpm).await;
    tpm.quote(selection(PCRS), [1; 32]).await.unwrap();
    tpm.sign([1; 32]).await.unwrap();
    stop(thread);
    activates(&swtpm, &identity).await;
}

#[tokio::test]
async fn steady_requests_are_one_command_each() {
    const PCR_READ: u32 = 0x17E;
    const QUOTE: u32 = 0x158;
    const SIGN: u32 = 0x15D;
    const CERTIFY: u32 = 0x148;
    let swtpm = Swtpm::start();
    let bus = Bus::to(&swtpm);
    let (tpm, thread) = spawn_at(&bus.address(), Duration::from_secs(20));
    read(&tpm).await;
    bus.take();
    for _ in 0..3 {
        read(&tpm).await;
        assert_eq!(bus.codes(), [PCR_READ]);
    }
    tpm.quote(selection(PCRS), [1; 32]).await.unwrap();
    assert_eq!(bus.codes(), [QUOTE]);
    tpm.sign([1; 32]).await.unwrap();
    assert_eq!(bus.codes(), [SIGN]);
    tpm.certify_node_key([1; 32]).await.unwrap();
    assert_eq!(bus.codes(), [CERTIFY]);
    // After an extension both parts are read and the reset counts asked for again.
    bus.send(&bus::extend(3, 1));
    read(&tpm).await;
    assert_eq!(bus.codes(), [PCR_READ, PCR_READ, QUOTE]);
    read(&tpm).await;
    assert_eq!(bus.codes(), [PCR_READ]);
    stop(thread);
}

#[tokio::test]
async fn a_reset_under_a_running_agent_is_found_though_every_pcr_is_the_same() {
    let swtpm = Swtpm::start();
    let bus = Bus::to(&swtpm);
    bus.send(&bus::extend(7, 1));
    let (tpm, thread) = spawn_at(&bus.address(), Duration::from_secs(20));
    let before = read(&tpm).await;
    swtpm.init();
    assert_eq!(bus::code(&bus.send(&bus::STARTUP)), 0);
    bus.send(&bus::extend(7, 1));
    assert_eq!(tpm.read_pcrs(selection(PCRS)).await, Err(TpmError::Reset));
    let after = recovered(&tpm).await;
    assert_eq!(after.values, before.values);
    assert_eq!(after.counts.reset, before.counts.reset + 1);
    // Nobody started it this time: on a bare software TPM the agent does.
    swtpm.init();
    assert_eq!(tpm.sign([1; 32]).await, Err(TpmError::Reset));
    assert_eq!(recovered(&tpm).await.counts.reset, before.counts.reset + 2);
    stop(thread);
}

#[tokio::test]
async fn a_restart_that_the_session_survives_is_found() {
    // A resource manager saves sessions and keys between commands, and what is saved outlives a
    // TPM Restart, which clears PCRs all the same. Here the wires play the resource manager.
    let swtpm = Swtpm::start();
    let bus = Bus::to(&swtpm);
    bus.send(&bus::extend(7, 1));
    let (tpm, thread) = spawn_at(&bus.address(), Duration::from_secs(20));
    let before = read(&tpm).await;
    let session = u32::from_be_bytes(bus.take().last().unwrap().command[14..18].try_into().unwrap());
    let saved = [session, 0x8000_0000, 0x8000_0001].map(|handle| (handle, bus.save(handle)));
    assert_eq!(bus::code(&bus.send(&bus::SHUTDOWN_STATE)), 0);
    swtpm.init();
    assert_eq!(bus::code(&bus.send(&bus::STARTUP)), 0);
    bus.send(&bus::extend(7, 1));
    for (handle, context) in saved {
        assert_eq!(bus.load(&context), handle);
    }
    assert_eq!(tpm.read_pcrs(selection(PCRS)).await, Err(TpmError::Reset));
    let after = recovered(&tpm).await;
    assert_eq!((after.counts.reset, after.counts.restart), (before.counts.reset, before.counts.restart + 1));
    assert_eq!(after.values, before.values);
    stop(thread);
}

#[tokio::test]
async fn response_codes_become_words() {
    let swtpm = Swtpm::start();
    let bus = Bus::to(&swtpm);
    let (tpm, thread) = spawn_at(&bus.address(), Duration::from_secs(20));
    recovered(&tpm).await;
    const SIGN: [u8; 4] = [0, 0, 0x01, 0x5D];
    for (code, unavailable, words) in [
        (0x922u16, true, "busy"),
        (0x920, true, "NV access"),
        (0x923, true, "NV memory"),
        (0x902, true, "room for another key"),
        (0x903, true, "room for another session"),
        (0x101, true, "failure mode"),
        (0x18B, true, "no longer in the TPM"),
        (0x921, true, "lockout for another"),
        (0x9A2, false, "TPM2_Sign was refused: the authorisation is wrong"),
        (0x1C4, false, "parameter 1"),
        (0x143, false, "0x143"),
        (0x910, false, "the TPM was reset"),
    ] {
        bus.alter(move |command, answer| {
            if command[6..10] == SIGN {
                *answer = [&[0x80, 0x01, 0, 0, 0, 10, 0, 0][..], &code.to_be_bytes()].concat();
            }
        });
        let error = tpm.sign([1; 32]).await.unwrap_err();
        assert_eq!(
            (error.is_unavailable(), error.to_string().contains(words)),
            (unavailable, true),
            "{code:#x}: {error}"
        );
        bus.straight();
        // Whether the TPM was opened again or not: it works as before.
        recovered(&tpm).await;
        tpm.sign([1; 32]).await.unwrap();
    }
    // A busy TPM that is ready in a moment is waited for.
    let mut busy = 12;
    bus.alter(move |command, answer| {
        if command[6..10] == SIGN && busy > 0 {
            busy -= 1;
            *answer = vec![0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x09, 0x22];
        }
    });
    tpm.sign([1; 32]).await.unwrap();
    stop(thread);
}

#[tokio::test]
async fn a_session_out_of_step_is_replaced() {
    let swtpm = Swtpm::start();
    let bus = Bus::to(&swtpm);
    let (tpm, thread) = spawn_at(&bus.address(), Duration::from_secs(20));
    let before = read(&tpm).await;
    // The TPM has answered, but the agent hears of trouble: their nonces differ from now on.
    let mut once = true;
    bus.alter(move |command, answer| {
        if std::mem::take(&mut once) && command[6..10] == [0, 0, 0x01, 0x7E] {
            *answer = vec![0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x09, 0x20];
        }
    });
    for _ in 0..2 {
        let error = tpm.read_pcrs(selection(PCRS)).await.unwrap_err();
        assert!(matches!(error, TpmError::Unavailable(_)), "{error}");
    }
    assert_eq!(recovered(&tpm).await.counts, before.counts);
    stop(thread);
}

#[tokio::test]
async fn an_altered_reading_is_never_believed() {
    let swtpm = Swtpm::start();
    let bus = Bus::to(&swtpm);
    let (tpm, thread) = spawn_at(&bus.address(), Duration::from_secs(20));
    let pcrs = selection("sha256:7");
    let honest = tpm.read_pcrs(pcrs).await.unwrap();
    let size = bus.take().last().unwrap().answer.len();
    for offset in 0..size {
        let mut done = false;
        bus.alter(move |command, answer| {
            // The size field is left alone: a wrong one only makes the reader wait for more.
            if command[6..10] == [0, 0, 0x01, 0x7E] && command.len() > 40 && !(2..6).contains(&offset) && !done {
                answer[offset] ^= 0x01;
                done = true;
            }
        });
        match tpm.read_pcrs(pcrs).await {
            Ok(reading) => assert_eq!(reading.values, honest.values, "offset {offset}"),
            Err(error) => assert!(
                matches!(error, TpmError::Unavailable(_) | TpmError::Reset | TpmError::Refused { .. }),
                "offset {offset}: {error}"
            ),
        }
        bus.straight();
        recovered(&tpm).await;
    }
    stop(thread);
}

#[tokio::test]
async fn an_activated_secret_never_crosses_the_wires_in_clear() {
    let swtpm = Swtpm::start();
    let (tpm, thread) = spawn(&swtpm);
    let identity = tpm.identity().await.unwrap();
    stop(thread);
    let secret = *b"canary-canary-canary-canary-1234";
    let (object, encrypted) = credential(&swtpm, &identity.ek.public, &name(&identity.ak_public), &secret);
    let bus = Bus::to(&swtpm);
    let (tpm, thread) = spawn_at(&bus.address(), Duration::from_secs(20));
    assert_eq!(*tpm.activate(object, encrypted).await.unwrap(), secret);
    let wires = bus.take();
    assert!(wires.iter().any(|exchange| exchange.code() == 0x147));
    for exchange in wires {
        for bytes in [exchange.command, exchange.answer] {
            assert!(!bytes.windows(8).any(|part| secret.windows(8).any(|canary| canary == part)));
        }
    }
    stop(thread);
}

#[tokio::test]
async fn nothing_is_left_in_the_tpm() {
    let swtpm = Swtpm::start();
    let (tpm, thread) = spawn(&swtpm);
    let identity = tpm.identity().await.unwrap();
    stop(thread);
    let good = credential(&swtpm, &identity.ek.public, &name(&identity.ak_public), &[1; 32]);
    let (tpm, thread) = spawn(&swtpm);
    for cycle in 0..200u8 {
        read(&tpm).await;
        tpm.quote(selection(PCRS), [cycle; 32]).await.unwrap();
        tpm.sign([cycle; 32]).await.unwrap();
        tpm.certify_node_key([cycle; 32]).await.unwrap();
        if cycle % 10 == 0 {
            tpm.activate(good.0.clone(), good.1.clone()).await.unwrap();
            assert!(tpm.activate(good.0.clone(), good.1[1..].to_vec()).await.is_err());
        }
    }
    stop(thread);
    raw(&swtpm, |context| {
        assert_eq!(handles(context, 0x8000_0000), Vec::<u32>::new());
        assert_eq!(handles(context, 0x0200_0000), Vec::<u32>::new());
        assert_eq!(handles(context, 0x0300_0000), Vec::<u32>::new());
    });
}

#[tokio::test]
async fn what_a_killed_process_left_in_a_bare_tpm_is_flushed() {
    let swtpm = Swtpm::start();
    let bus = Bus::to(&swtpm);
    let (tpm, thread) = spawn_at(&bus.address(), Duration::from_secs(20));
    read(&tpm).await;
    // The second agent finds two keys and a session of one that never flushed them.
    let (second, second_thread) = spawn_at(&bus.address(), Duration::from_secs(20));
    read(&second).await;
    stop(second_thread);
    assert!(tpm.read_pcrs(selection(PCRS)).await.is_err());
    stop(thread);
}

#[tokio::test]
async fn a_tpm_that_goes_and_comes_back_is_unavailable_and_then_itself_again() {
    let mut swtpm = Swtpm::start();
    let (tpm, thread) = spawn(&swtpm);
    let before = read(&tpm).await;
    let identity = tpm.identity().await.unwrap();
    swtpm.kill();
    for _ in 0..3 {
        let error = tpm.read_pcrs(selection(PCRS)).await.unwrap_err();
        assert!(matches!(error, TpmError::Unavailable(_)), "{error}");
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let error = tpm.read_pcrs(selection(PCRS)).await.unwrap_err();
    assert!(error.to_string().contains("no swtpm answers on 127.0.0.1"), "{error}");
    swtpm.restart();
    let after = recovered(&tpm).await;
    assert_eq!(after.counts.reset, before.counts.reset + 1);
    assert_eq!(tpm.identity().await.unwrap(), identity);
    stop(thread);
}

#[tokio::test]
async fn another_tpm_at_the_same_address_is_not_accepted() {
    let mut swtpm = Swtpm::start();
    let (tpm, thread) = spawn(&swtpm);
    read(&tpm).await;
    swtpm.kill();
    std::fs::remove_file(swtpm.state().join("tpm2-00.permall")).unwrap();
    swtpm.restart();
    // At first only the session's loss is seen.
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match tpm.read_pcrs(selection(PCRS)).await.unwrap_err() {
            TpmError::Swapped { .. } => break,
            error => assert!(Instant::now() < until, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(matches!(tpm.sign([1; 32]).await, Err(TpmError::Swapped { .. })));
    stop(thread);
}

#[tokio::test]
async fn another_ek_slipped_in_on_the_wires_is_not_salted_to() {
    const CREATE_PRIMARY: u32 = 0x131;
    // Someone on the wires has an EK of his own: here another TPM's answer to the same command.
    let foreign = Swtpm::start();
    let wires = Bus::to(&foreign);
    let (tpm, thread) = spawn_at(&wires.address(), Duration::from_secs(20));
    read(&tpm).await;
    let slip = wires.take().into_iter().find(|exchange| exchange.code() == CREATE_PRIMARY).unwrap();
    stop(thread);

    let swtpm = Swtpm::start();
    let bus = Bus::to(&swtpm);
    let (tpm, thread) = spawn_at(&bus.address(), Duration::from_secs(20));
    let before = read(&tpm).await;
    bus.alter(move |command, answer| {
        if command == slip.command {
            answer.clone_from(&slip.answer);
        }
    });
    swtpm.init();
    assert_eq!(tpm.read_pcrs(selection(PCRS)).await, Err(TpmError::Reset));
    let error = tpm.read_pcrs(selection(PCRS)).await.unwrap_err();
    assert!(matches!(error, TpmError::Swapped { .. }), "{error}");
    bus.straight();
    assert_eq!(recovered(&tpm).await.counts.reset, before.counts.reset + 1);
    stop(thread);
}

#[tokio::test]
async fn a_hanging_tpm_costs_no_more_than_the_deadline() {
    let swtpm = Swtpm::start();
    let (tpm, thread) = spawn_at(&swtpm.address(), Duration::from_millis(500));
    // The first request loads the keys; a slow machine may need several.
    let until = Instant::now() + Duration::from_secs(20);
    while tpm.read_pcrs(selection(PCRS)).await.is_err() {
        assert!(Instant::now() < until);
    }
    swtpm.hang(true);
    let asked = Instant::now();
    let error = tpm.read_pcrs(selection(PCRS)).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert!(error.to_string().contains("TPM2_PCR_Read"), "{error}");
    assert!(matches!(tpm.sign_blocking([1; 32]), Err(TpmError::Unavailable(_))));
    swtpm.hang(false);
    recovered(&tpm).await;
    stop(thread);
}

#[tokio::test]
async fn power_cuts_never_lead_to_lockout() {
    let mut swtpm = Swtpm::start_manufactured();
    for _ in 0..6 {
        let (tpm, thread) = spawn(&swtpm);
        read(&tpm).await;
        tpm.quote(selection(PCRS), [1; 32]).await.unwrap();
        tpm.sign([1; 32]).await.unwrap();
        swtpm.kill();
        stop(thread);
        swtpm.restart();
        assert_eq!(lockout_counter(&swtpm), 0);
    }
}

#[tokio::test]
async fn a_missing_device_is_said_in_words() {
    let (tpm, thread) = spawn_at("device:/dev/no-such-tpm", Duration::from_secs(5));
    let error = tpm.read_pcrs(selection(PCRS)).await.unwrap_err();
    assert!(error.to_string().contains("the TPM device /dev/no-such-tpm does not exist"), "{error}");
    stop(thread);
    assert!(matches!(tpm.sign([1; 32]).await, Err(TpmError::Unavailable(words)) if words.contains("stopping")));
}

#[tokio::test]
async fn an_inactive_bank_is_refused_in_words() {
    // The factory activates SHA-256 only.
    let swtpm = Swtpm::start_manufactured();
    let (tpm, thread) = spawn(&swtpm);
    let error = tpm.read_pcrs(selection("sha384:0")).await.unwrap_err();
    assert!(matches!(&error, TpmError::Refused { reason, .. } if reason.contains("sha384")), "{error}");
    stop(thread);
}
