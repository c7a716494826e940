//! Bundles: what is refused, and what stays denied when one is missing, damaged or old.

use std::path::Path;

use p256::ecdsa::SigningKey;
use p256::pkcs8::{EncodePublicKey, LineEnding};
use rusqlite::params;
use sha2::{Digest, Sha256};

use super::super::bundle::Bundle;
use super::super::decisions::{self, Filter, Kept, Replayed};
use super::super::engine;
use super::super::floor::Floor;
use super::super::in_force::{self, Bundles};
use super::*;
use crate::clock::WallTime;
use crate::control_plane::settings::Settings;
use crate::control_plane::store::{Store, Transaction};
use crate::verify::references::Policy;

const ALL: &str = "@id(\"all\") permit (principal, action, resource);";

fn refused(text: &str, tests: &str) -> String {
    match Bundle::unsigned(content(text, tests)).and_then(|bundle| bundle.test()) {
        Ok(_) => panic!("it is taken: {text} {tests}"),
        Err(refusal) => {
            assert_eq!(refusal.code, codes::POLICY_BUNDLE, "{refusal}");
            refusal.to_string()
        }
    }
}

#[test]
fn what_is_wrong_with_a_bundle_is_named() {
    for (text, words) in [
        ("permit (principal, action, resource);", "without an id"),
        ("@id(\"a b\") permit (principal, action, resource);", "id `a b`"),
        ("@id(\"Guardrail.verdict\") permit (principal, action, resource);", "doesn't begin with `guardrail.`"),
        ("@id(\"a\") @tll(\"5s\") permit (principal, action, resource);", "@tll"),
        ("@id(\"a\") @code(\"policy.denied\") forbid (principal, action, resource);", "@code"),
        ("@id(\"a\") @ttl(\"300\") permit (principal, action, resource);", "@ttl(\"300\")"),
        ("@id(\"a\") @ttl(\"0s\") permit (principal, action, resource);", "@ttl(\"0s\")"),
        ("@id(\"a\") @ttl(\"25h\") permit (principal, action, resource);", "@ttl(\"25h\")"),
        ("@id(\"a\") @evidence_max_age(\"-5s\") permit (principal, action, resource);", "-5s"),
        ("@id(\"a\") @ttl(\"5s\") forbid (principal, action, resource);", "on a forbid"),
        ("@id(\"a\") permit (principal == ?principal, action, resource);", "template"),
        ("\n@id(\"a\") permit (principal, action, resource) whn { true };", "a.cedar:2"),
        ("@id(\"a\") permit (principal, action, resource) when { principal.purpos == \"x\" };", "purpos"),
        ("@id(\"a\") permit (principal, action, resource) when { principal.tier == \"1\" };", "a"),
        ("@id(\"a\") permit (principal, action, resource) when { context.task.intent == \"x\" };", "context.task"),
        ("@id(\"a\") permit (principal, action == Action::\"x510\", resource);", "x510"),
        ("@id(\"a\") permit (principal == User::\"x\", action, resource);", "User"),
        // A caller's own words widen nothing.
        (
            "@id(\"a\") permit (principal, action, resource) when { context has task && context.task.intent == \"x\" };",
            "widen nothing",
        ),
        (
            "@id(\"a\") permit (principal, action, resource) unless { context has caller && context.caller.uid == 0 };",
            "widen nothing",
        ),
        (
            "@id(\"a\") permit (principal is Workload, action == Action::\"authorize\", resource)
             when { context.detail.type == \"x\" };",
            "widen nothing",
        ),
        (
            "@id(\"a\") permit (principal, action, resource)
             when { Task::\"x\" has intent && Task::\"x\".intent == \"y\" };",
            "widen nothing",
        ),
        ("@id(\"a\") permit (principal, action, resource) when { context.ttl_seconds <= 60 };", "widen nothing"),
        ("", "no policies"),
    ] {
        let said = refused(text, "");
        assert!(said.contains(words), "{text}: {said}");
    }
    let twice = format!("{ALL}\n{ALL}");
    assert!(refused(&twice, "").contains("another policy has this id"));
    let many: String = (0..1025).map(|n| format!("@id(\"p{n}\") permit (principal, action, resource);\n")).collect();
    assert!(refused(&many, "").contains("1025 policies"));
    let large = format!("// {}\n{ALL}", "x".repeat(257 << 10));
    assert!(refused(&large, "").contains("at most 262144"));
}

#[test]
fn tests_that_come_with_a_bundle_must_hold() {
    for (tests, words) in [
        ("[[test]]\nname = \"a\"\nexpect = \"deny\"", "tests/a.toml test `a`: permitted by all"),
        ("[[test]]\nname = \"a\"\nexpect = \"permit\"\nset = { \"evidence.verdict\" = \"x\" }", "denied"),
        ("[[test]]\nname = \"a\"\nexpect = \"permit\"\nby = [\"b\"]", "follows from all"),
        ("[[test]]\nname = \"a\"\nexpect = \"permit\"\nttl_seconds = 1", "permitted for 600 s"),
        ("[[test]]\nname = \"a\"\nexpect = \"permit\"\nset = { \"workload.tire\" = 1 }", "tire"),
        ("[[test]]\nname = \"a\"\nexpects = \"permit\"", "tests/a.toml:3"),
        // Production is reachable from development's nodes, if it weren't for the guardrails.
        (
            "[[never]]\nname = \"prod from dev\"\nguardrails = false\n[never.each]\n\
             \"workload.environment\" = [\"prod\"]\n\"node.environment\" = [\"prod\", \"dev\"]\n\
             [never.when]\n\"node.environment\" = \"dev\"",
            "never `prod from dev`: permitted by all with node.environment = \"dev\"",
        ),
        (
            "[[never]]\nname = \"a\"\n[never.each]\n\"node.id\" = [\"x\"]\n[never.when]\n\"node.id\" = \"y\"",
            "no combination",
        ),
        (
            &format!("[[never]]\nname = \"a\"\n[never.each]\n\"workload.tier\" = [{}]", "1, ".repeat(20_001)),
            "at most 20000",
        ),
    ] {
        let said = refused(ALL, tests);
        assert!(said.contains(words), "{tests}: {said}");
    }
    let held = "[[never]]\nname = \"prod from dev\"\n[never.each]\n\"workload.environment\" = [\"prod\"]\n\
                \"node.environment\" = [\"dev\"]";
    assert_eq!(Bundle::unsigned(content(ALL, held)).unwrap().test().unwrap().decisions, 1);
}

#[test]
fn an_error_denies_whether_a_permit_or_a_forbid_has_it() {
    // An overflow passes validation and fails when it is asked.
    let fails = "(principal.tier + 1) * 9223372036854775807 > 0";
    for policy in [
        format!("{ALL} @id(\"f\") forbid (principal, action, resource) when {{ {fails} }};"),
        format!("{ALL} @id(\"f\") permit (principal, action, resource) when {{ {fails} }};"),
    ] {
        let bundle = bundle(&policy);
        let permits = (1..=600).filter(|ttl| decide(&bundle, &[("limit_seconds", json!(ttl + 1))]).permits()).count();
        assert_eq!(permits, 0);
        assert_eq!(decide(&bundle, &[]).refusal.unwrap().code, codes::POLICY_FAILED);
    }
}

#[test]
fn a_forbid_wins_over_a_permit() {
    let both = bundle(
        "@id(\"by-role\") permit (principal in Role::\"payments\", action, resource) when { principal.tier <= 2 };
         @id(\"segment\") @says(\"contractors stay out\")
         forbid (principal in Role::\"contractors\", action, resource);",
    );
    assert!(decide(&both, &[("workload.roles", json!(["payments"]))]).permits());
    assert!(!decide(&both, &[("workload.roles", json!(["payments"])), ("workload.tier", json!(3))]).permits());
    let denied = decide(&both, &[("workload.roles", json!(["payments", "contractors"]))]);
    let refusal = denied.refusal.unwrap();
    assert_eq!(refusal.code, codes::POLICY_DENIED);
    assert!(refusal.found.contains("segment: contractors stay out"), "{refusal}");
}

/// A store with what the server holds of bundles.
struct World {
    dir: tempfile::TempDir,
    store: Store,
    bundles: Bundles,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.db")).unwrap();
        let bundles = Self::bundles(dir.path());
        Self { dir, store, bundles }
    }

    fn bundles(dir: &Path) -> Bundles {
        let config = crate::config::parse("trust_domain = \"example.org\"", "server.toml").unwrap();
        Bundles::new(Floor::open(dir.join("floor")).unwrap(), &Settings::check(&config).unwrap()).unwrap()
    }

    fn with<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, crate::codes::Refusal>) -> T {
        self.store.transaction_blocking(work).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    fn apply(&self, version: u64, text: &str) -> Result<bool, crate::codes::Refusal> {
        let bundle = Bundle::unsigned(Content { version, ..content(text, "") })?;
        let changed = self
            .store
            .transaction_blocking(|tx| in_force::apply(tx, &self.bundles, &Policy::default(), &bundle, WallTime(1)))?;
        self.bundles.floor.raise(version)?;
        Ok(changed)
    }

    /// Permits among a thousand questions, and the code of the last refusal.
    fn permits(&self, policy: &Policy) -> (usize, Option<crate::codes::Code>) {
        self.with(|tx| {
            let bundle = self.bundles.in_force(tx, policy);
            let rules = bundle.as_deref().map(|bundle| &bundle.rules);
            let answers: Vec<_> =
                (0..1000).map(|n| engine::decide(&inputs(&[("caller.uid", json!(n))]), rules)).collect();
            let code = answers.iter().filter_map(|answer| answer.refusal.as_ref()).map(|it| it.code).next_back();
            Ok((answers.iter().filter(|answer| answer.permits()).count(), code))
        })
    }
}

#[test]
fn without_a_valid_bundle_nothing_is_permitted() {
    let failed = (0, Some(codes::POLICY_FAILED));
    let nobody = Policy::default();
    let world = World::new();
    assert_eq!(world.permits(&nobody), (1000, None));
    assert!(world.apply(2, ALL).unwrap());
    assert!(!world.apply(2, ALL).unwrap(), "twice is once");
    assert_eq!(world.permits(&nobody), (1000, None));
    for (version, text) in [(1, ALL), (2, "@id(\"b\") permit (principal, action, resource);")] {
        assert_eq!(world.apply(version, text).unwrap_err().code, codes::POLICY_BUNDLE_ORDER);
    }
    let old = world.with(|tx| in_force::document(tx, 2));
    assert!(world.apply(3, ALL).unwrap());

    // Rolled back by hand: the older one is in force again.
    let put = |version: i64, document: &[u8]| {
        world.with(|tx| {
            tx.execute("UPDATE policy_bundles SET retired_at = 1", [])?;
            let digest: [u8; 32] = Sha256::digest(document).into();
            tx.execute("DELETE FROM policy_bundles WHERE digest = ?1", [digest])?;
            tx.execute(
                "INSERT INTO policy_bundles(version, digest, document, facts, activated_at) VALUES (?1, ?2, ?3, '{}', 1)",
                params![version, digest, document],
            )?;
            Ok(())
        });
    };
    put(2, &old);
    assert_eq!(world.permits(&nobody), failed);
    // The same with what the store knows of versions rolled back too: the floor lies elsewhere.
    world.with(|tx| Ok(tx.execute("DELETE FROM meta WHERE name = 'policy_version'", [])?));
    assert_eq!(world.permits(&nobody), failed);
    // The old document under a new number.
    put(4, &old);
    assert_eq!(world.permits(&nobody), failed);
    // Gone.
    world.with(|tx| Ok(tx.execute("DELETE FROM policy_bundles", [])?));
    assert_eq!(world.permits(&nobody), failed);
    assert!(world.apply(3, ALL).unwrap(), "the floor's own version is taken again");
    assert_eq!(world.permits(&nobody), (1000, None));
    // Altered, after it was read and before.
    world.with(|tx| Ok(tx.execute("UPDATE policy_bundles SET document = CAST(document || x'00' AS BLOB)", [])?));
    assert_eq!(world.permits(&nobody), failed);
    let again = World { bundles: World::bundles(world.dir.path()), ..world };
    assert_eq!(again.permits(&nobody), failed);
    // Not of the keys that are configured now, whoever read it before for a decision of the past.
    assert!(again.apply(5, ALL).unwrap());
    assert_eq!(again.permits(&nobody), (1000, None));
    let again = World { bundles: World::bundles(again.dir.path()), ..again };
    let digest = again.with(|tx| Ok(again.bundles.in_force(tx, &nobody)?.digest));
    let looked = World { bundles: World::bundles(again.dir.path()), ..again };
    looked.with(|tx| looked.bundles.of_digest(tx, &digest).map(drop));
    assert_eq!(looked.permits(&keys(1, 1).1), failed);
    let again = World { bundles: World::bundles(looked.dir.path()), ..looked };
    assert_eq!(again.permits(&keys(1, 1).1), failed);
    std::fs::write(again.dir.path().join("floor"), "x").unwrap();
    assert_eq!(Floor::open(again.dir.path().join("floor")).unwrap_err().code, codes::CONFIG_INVALID);
}

/// Keys, and a policy that asks for so many of them.
fn keys(count: usize, threshold: usize) -> (Vec<SigningKey>, Policy) {
    let keys: Vec<SigningKey> =
        (0..count).map(|_| SigningKey::from_slice(&crate::secret::random::<32>().unwrap()).unwrap()).collect();
    let pem = |key: &SigningKey| key.verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
    let named: Vec<_> = keys.iter().map(|key| ("key".to_owned(), pem(key))).collect();
    let policy = Policy::new(&named, threshold, ["policy.keys", "policy.threshold"]).unwrap();
    (keys, policy)
}

#[test]
fn one_signer_is_not_two() {
    let (keys, policy) = keys(2, 2);
    let stranger = SigningKey::from_slice(&[7; 32]).unwrap();
    let unsigned = Bundle::unsigned(content(ALL, "")).unwrap();
    let one = unsigned.signed_by(&keys[0]).unwrap();
    let two = one.signed_by(&keys[1]).unwrap();
    let taken = |bundle: &Bundle| Bundle::read(&bundle.bytes, &policy).map(drop);
    for bundle in [&unsigned, &one, &one.signed_by(&stranger).unwrap(), &unsigned.signed_by(&stranger).unwrap()] {
        assert_eq!(taken(bundle).unwrap_err().code, codes::POLICY_BUNDLE_SIGNATURE);
    }
    assert_eq!(one.signed_by(&keys[0]).unwrap_err().code, codes::POLICY_BUNDLE_SIGNATURE);
    taken(&two).unwrap();
    // Any byte of it otherwise.
    let mut accepted = 0;
    for at in 0..two.bytes.len() {
        let mut bytes = two.bytes.clone();
        bytes[at] ^= 1;
        accepted += usize::from(Bundle::read(&bytes, &policy).is_ok());
    }
    assert_eq!(accepted, 0);
    // A signature over reference values is none over policies, even of the same bytes.
    let signed = |typ: &'static str| {
        let mut envelope = crate::verify::references::Envelope::unsigned(typ, unsigned.bytes.clone());
        for key in &keys {
            envelope.sign(key).unwrap();
        }
        Bundle::read(&envelope.encode(), &policy)
    };
    assert!(signed("application/x.leasehold-policies+cbor").is_ok());
    assert!(signed("application/x.leasehold-references+cbor").is_err());
}

#[test]
fn ten_thousand_decisions_are_made_again_identically() {
    let world = World::new();
    let texts = [
        "@id(\"a\") @ttl(\"60s\") permit (principal, action, resource) when { principal.tier >= 2 };",
        "@id(\"b\") permit (principal in Role::\"web\", action, resource);
         @id(\"c\") @evidence_max_age(\"300s\") permit (principal, action, resource) when { context.hour < 12 };",
        "@id(\"d\") forbid (principal, action, resource) when { context.evidence.age_seconds > 100 };
         @id(\"e\") permit (principal, action, resource);",
    ];
    let mut random = super::random::Random(7);
    let mut number = 0_u64;
    for (version, text) in (1..).zip(texts) {
        assert!(world.apply(version, text).unwrap());
        world.with(|tx| {
            let bundle = world.bundles.in_force(tx, &Policy::default())?;
            for _ in 0..3400 {
                number += 1;
                let inputs = super::random::question(&mut random);
                let answer = engine::decide(&inputs, Ok(&bundle.rules));
                let id = format!("{number:032x}");
                decisions::keep(tx, &Kept { id, at: WallTime(number), policy: bundle.digest, inputs, answer })?;
            }
            Ok(())
        });
    }
    // With nothing read before.
    let world = World { bundles: World::bundles(world.dir.path()), ..world };
    let replay = || {
        let mut replayed = Replayed::default();
        let mut after = Some(0);
        while let Some(from) = after {
            after = world.with(|tx| decisions::replay(tx, &world.bundles, from, 1000, &mut replayed));
        }
        replayed
    };
    let replayed = replay();
    assert_eq!((replayed.decisions, replayed.same), (10_200, 10_200), "{:?}", replayed.others);
    let denied = world.with(|tx| decisions::list(tx, &Filter { denied: true, ..Filter::default() }, 100_000));
    println!("10 200 decisions of 3 bundles made again, {} of them refusals: all the same", denied.len());
    assert!((1000..9000).contains(&denied.len()), "{}", denied.len());
    // One that was changed is found and named.
    world.with(|tx| {
        let id = format!("{:032x}", 77);
        let mut kept = decisions::find(tx, &id)?;
        kept.answer.ttl_seconds += 1;
        let answer = serde_json::to_string(&kept.answer).unwrap();
        Ok(tx.execute("UPDATE decisions SET answer = ?2 WHERE id = ?1", params![id, answer])?)
    });
    let replayed = replay();
    assert_eq!(replayed.same, 10_199);
    assert_eq!(replayed.others[0].0, format!("{:032x}", 77));
}
