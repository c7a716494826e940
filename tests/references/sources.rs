//! Where sets come from: packages, trees, Secure Boot's variables, CoRIMs, keys.

use std::path::Path;
use std::process::Command;

use leasehold::control_plane::reference::files::Files;
use leasehold::control_plane::reference::{corim, deb, files, key, variables};
use leasehold::measurements::LogHash;
use leasehold::verify::references::{BootState, Document, PolicyKey, ReferenceSet};
use leasehold::verify::runtime::RuntimeRules;
use proptest::prelude::*;
use sha2::Digest;

use crate::made::{any_set, set};

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

/// A tree with what trees have: a link, a directory, an odd name.
fn tree(root: &Path) {
    std::fs::create_dir_all(root.join("usr/bin")).unwrap();
    std::fs::write(root.join("usr/bin/tool"), b"tool").unwrap();
    std::fs::write(root.join("usr/bin/with blank"), b"blank").unwrap();
    std::os::unix::fs::symlink("tool", root.join("usr/bin/link")).unwrap();
    std::fs::write(root.join("empty"), b"").unwrap();
}

fn expected() -> Files {
    [("/usr/bin/tool", sha256(b"tool")), ("/usr/bin/with blank", sha256(b"blank")), ("/empty", sha256(b""))]
        .into_iter()
        .map(|(path, digest)| (path.to_owned(), vec![digest]))
        .collect()
}

#[test]
fn a_tree_is_its_regular_files() {
    let directory = tempfile::tempdir().unwrap();
    tree(directory.path());
    let mut told = 0;
    assert_eq!(files::tree(directory.path(), |_| told += 1).unwrap(), expected());
    assert_eq!(told, 3);
    assert!(files::tree(&directory.path().join("nowhere"), |_| ()).is_err());
}

#[test]
fn a_list_is_what_sha256sum_writes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("list");
    let digest = "AB".repeat(32);
    std::fs::write(&file, format!("{digest}  /a b\n{digest} *./usr/x\n\n")).unwrap();
    let lower = format!("sha256:{}", digest.to_lowercase());
    let wanted: Files = ["/a b", "/usr/x"].map(|path| (path.to_owned(), vec![lower.clone()])).into();
    assert_eq!(files::list(&file).unwrap(), wanted);
    for wrong in [format!("{digest} /one-blank\n"), "abc  /x\n".to_owned(), format!("{digest}  relative\n")] {
        std::fs::write(&file, &wrong).unwrap();
        assert!(files::list(&file).unwrap_err().at.ends_with("line 1"), "{wrong}");
    }
}

#[test]
fn a_package_is_its_regular_files() {
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        eprintln!("SKIPPED: dpkg-deb is not installed: no package was read");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("tool");
    tree(&root);
    std::fs::create_dir(root.join("DEBIAN")).unwrap();
    let control =
        "Package: tool\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: tool\n";
    std::fs::write(root.join("DEBIAN/control"), control).unwrap();
    for compression in ["none", "gzip", "xz", "zstd"] {
        let package = directory.path().join(format!("{compression}.deb"));
        let built = Command::new("dpkg-deb")
            .args(["--root-owner-group", &format!("-Z{compression}"), "--build"])
            .args([&root, &package])
            .output()
            .unwrap();
        if !built.status.success() {
            eprintln!("SKIPPED: this dpkg-deb doesn't know {compression}");
            continue;
        }
        let mut found = Files::new();
        deb::read(&package, &mut found).unwrap();
        assert_eq!(found, expected(), "{compression}");
        // Cut short, it is refused or says less, and never panics.
        let bytes = std::fs::read(&package).unwrap();
        for end in (0..bytes.len()).step_by(97) {
            std::fs::write(&package, &bytes[..end]).unwrap();
            let mut found = Files::new();
            if deb::read(&package, &mut found).is_ok() {
                assert!(found.iter().all(|(path, digests)| expected().get(path) == Some(digests)));
            }
        }
    }
}

/// An EFI_SIGNATURE_LIST of one X.509 certificate.
fn list(owner: u8, certificate: &[u8]) -> Vec<u8> {
    let x509 = hex::decode("a159c0a5e494a74a87b5ab155c2bf072").unwrap();
    let entry = [&[owner; 16][..], certificate].concat();
    let sizes = [28 + entry.len() as u32, 0, entry.len() as u32].map(u32::to_le_bytes).concat();
    [x509, sizes, entry].concat()
}

#[test]
fn secure_boot_s_variables_are_read_in_three_forms() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
    let db = [list(1, b"vendor"), list(2, b"ours")].concat();
    write("db-d719b2cb-3d3a-4596-a3bc-dad00e67656f", &[&[0x27, 0, 0, 0][..], &db].concat());
    write("KEK.esl", &list(3, b"kek"));
    let pkcs7 = hex::decode("9dd2af4adf68ee498aa9347d375665a7").unwrap();
    let certificate = [&40u32.to_le_bytes()[..], &[0, 2, 0xF1, 0x0E], &pkcs7, &[0; 16]].concat();
    write("PK.auth", &[&[0; 16][..], &certificate, &list(4, b"pk")].concat());
    write("Boot0000-8be4df61-93ca-11d2-aa0d-00e098032b8c", b"no matter");

    let found = variables::read(directory.path()).unwrap();
    assert_eq!(found["db"], db);
    assert_eq!(found["PK"], list(4, b"pk"));
    let digest = |bytes: &[u8]| LogHash::Sha256.digest(&[bytes]);
    let both = variables::reference(&found, None).unwrap();
    assert_eq!(both.variables["KEK"], [digest(&list(3, b"kek"))]);
    assert_eq!(both.authorities.len(), 2);
    let ours = variables::reference(&found, Some(b"ours")).unwrap();
    assert_eq!(ours.authorities, [digest(&[&[2; 16][..], b"ours"].concat())]);
    assert!(variables::reference(&found, Some(b"kek")).is_err());

    write("db.esl", &db);
    assert!(variables::read(directory.path()).unwrap_err().found.contains("two files"));
    std::fs::remove_file(directory.path().join("db.esl")).unwrap();
    write("KEK.esl", b"no list");
    assert!(variables::read(directory.path()).unwrap_err().at.ends_with("KEK.esl"));
}

/// What a CoRIM can say of a set.
fn sayable(set: ReferenceSet) -> Option<ReferenceSet> {
    let states: Vec<BootState> = set.states.into_iter().filter(|state| state.until.is_none()).collect();
    let says = |state: &BootState| *state != BootState { name: state.name.clone(), ..BootState::default() };
    let states: Vec<BootState> = states.into_iter().filter(says).collect();
    // Rules without a file, or states that all end, would be no rules and no states: refused.
    if set.runtime.as_ref().is_some_and(|rules| rules.files.is_empty()) || states.is_empty() {
        return None;
    }
    let files = set.runtime.map(|rules| rules.files);
    let runtime = files.map(|files| RuntimeRules { files, ..RuntimeRules::default() });
    let set = ReferenceSet { states, runtime, ..set };
    let has_bank = set.states.iter().any(|state| !state.events.is_empty() || !state.values.is_empty());
    (has_bank && set.states.iter().all(|state| state.name != "runtime")).then_some(set)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_corim_says_what_it_can_of_a_set(set in any_set()) {
        if let Some(said) = sayable(set.clone()) {
            let (bytes, _) = corim::export(&set).unwrap();
            prop_assert!(corim::is_corim(&bytes));
            prop_assert_eq!(corim::import(&bytes).unwrap(), said);
        }
    }
}

#[test]
fn what_a_corim_can_t_say_is_told() {
    let mut set = set();
    set.states[0].until = None;
    let (bytes, notes) = corim::export(&set).unwrap();
    assert_eq!(notes.len(), 4, "{notes:#?}");
    let again = corim::import(&bytes).unwrap();
    assert_eq!(again.states, set.states);
    assert!(again.runtime.unwrap().exclusions.is_empty());
    // Left out altogether they would accept more than they say: rules, or every state.
    let mut bare = set.clone();
    bare.runtime = Some(RuntimeRules { files: Files::new(), ..bare.runtime.unwrap() });
    assert!(corim::export(&bare).unwrap_err().to_string().contains("runtime"));
    let mut ending = set.clone();
    ending.states.iter_mut().for_each(|state| state.until = Some(leasehold::clock::WallTime(5)));
    assert!(corim::export(&ending).unwrap_err().to_string().contains("no state"));
    set.states[0].until = Some(leasehold::clock::WallTime(5));
    assert!(corim::export(&set).unwrap().1[0].contains("6.1.0-56"));
    for end in 0..bytes.len() {
        assert!(corim::import(&bytes[..end]).is_err());
    }
}

#[test]
fn a_corim_of_others_is_taken_for_its_registers_alone() {
    use ::corim::builder::{ComidBuilder, CorimBuilder};
    use ::corim::types::common::{MeasuredElement, TagIdChoice};
    use ::corim::types::corim::{CorimId, ProfileChoice};
    use ::corim::types::environment::EnvironmentMap;
    use ::corim::types::measurement::{
        Digest, IntegrityRegisterId, IntegrityRegisters, MeasurementMap, MeasurementValuesMap,
    };
    use ::corim::types::triples::ReferenceTriple;
    let build = |change: &dyn Fn(&mut MeasurementValuesMap), profile: Option<&str>| {
        let mut mval = MeasurementValuesMap::new();
        let registers = [(IntegrityRegisterId::Uint(0), vec![Digest::new(1, vec![7; 32])])];
        mval.integrity_registers = Some(IntegrityRegisters(registers.into()));
        change(&mut mval);
        let measurement =
            MeasurementMap { mkey: Some(MeasuredElement::Text("pcrs".to_owned())), mval, authorized_by: None };
        let comid = ComidBuilder::new(TagIdChoice::Text("board".to_owned()))
            .add_reference_triple(ReferenceTriple::new(
                EnvironmentMap::for_class("ACME", "uefi-uki"),
                vec![measurement],
            ))
            .build()
            .unwrap();
        let mut builder = CorimBuilder::new(CorimId::Text("acme".to_owned())).add_comid_tag(comid).unwrap();
        if let Some(profile) = profile {
            builder = builder.set_profile(ProfileChoice::Uri(profile.to_owned()));
        }
        corim::import(&builder.build_bytes().unwrap())
    };
    let set = build(&|_| (), None).unwrap();
    assert_eq!((set.name.as_str(), set.profile.as_str()), ("acme", "uefi-uki"));
    assert_eq!(set.states[0].values[&0], [7; 32]);
    assert!(build(&|_| (), Some("https://example.org/other")).unwrap_err().found.contains("profile"));
    assert!(
        build(&|mval| mval.serial_number = Some("5".to_owned()), None).unwrap_err().found.contains("other contents")
    );
    let sha1 = |mval: &mut MeasurementValuesMap| {
        let registers = [(IntegrityRegisterId::Uint(0), vec![Digest::new(1, vec![7; 20])])];
        mval.integrity_registers = Some(IntegrityRegisters(registers.into()));
    };
    assert!(build(&sha1, None).is_err());
    let digests = |mval: &mut MeasurementValuesMap| {
        mval.integrity_registers = None;
        mval.digests = Some(vec![Digest::new(1, vec![7; 32])]);
    };
    assert!(build(&digests, None).is_err());
}

#[test]
fn a_policy_key_is_made_once_and_kept_to_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.key");
    let public = key::generate(&file).unwrap();
    assert!(public.starts_with("-----BEGIN PUBLIC KEY-----"));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(key::generate(&file).is_err(), "a key is never overwritten");
    let signing = key::load(&file).unwrap();
    let signed = Document::unsigned(set()).unwrap().signed_by(&signing).unwrap();
    let keys = [PolicyKey::of(&signing).unwrap()];
    assert_eq!(hex::encode(Document::read(&signed.bytes, &keys, 1).unwrap().signers[0]), key::id(&signing).unwrap());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(key::load(&file).unwrap_err().code, leasehold::codes::CONFIG_MODE);
}
