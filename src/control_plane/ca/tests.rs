use super::super::store::Store;
use super::*;

const DAY: u64 = 86_400;

struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
    authority: Authority,
}

const START: WallTime = WallTime(1_800_000_000);

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store.db")).unwrap();
    let wrapping = Arc::new(WrappingKey::open(&dir.path().join("wrapping.key"), true).unwrap());
    let domain = TrustDomain::new("example.org").unwrap();
    let terms = CaTerms { lifetime: Duration::from_secs(80 * DAY), published: Duration::from_secs(600) };
    let authority = store.transaction_blocking(|tx| Authority::open(tx, wrapping, domain, terms, None, START)).unwrap();
    Bench { _dir: dir, store, authority }
}

impl Bench {
    fn turn(&self, days: u64) -> bool {
        let now = START.after(Duration::from_secs(days * DAY));
        let changed = self.store.transaction_blocking(|tx| self.authority.turn(tx, now)).unwrap();
        self.store.transaction_blocking(|tx| self.authority.reload(tx)).unwrap();
        changed
    }

    fn issue(&self, days: u64, term_days: u64) {
        let now = START.after(Duration::from_secs(days * DAY));
        let spki = super::super::issuer::spki_of_key(&keys::generate().unwrap()).unwrap();
        let id = SpiffeId::new("spiffe://example.org/a").unwrap();
        let issuing = self.authority.current();
        self.store
            .transaction_blocking(|tx| issuing.issue(tx, &id, &spki, now, Duration::from_secs(term_days * DAY)))
            .unwrap();
    }

    fn states(&self) -> Vec<String> {
        let facts = self.store.transaction_blocking(facts).unwrap();
        facts.into_iter().map(|ca| ca.state).collect()
    }
}

#[test]
fn the_next_ca_is_published_before_use_and_the_old_one_stays_while_needed() {
    let bench = bench();
    assert_eq!(bench.states(), ["active"]);
    let first = bench.authority.current();
    assert!(!bench.turn(39));
    assert!(bench.turn(41));
    assert_eq!(bench.states(), ["prepared", "active"]);
    let published = bench.authority.current();
    assert_eq!(published.ca.certificate(), first.ca.certificate());
    assert_eq!(published.bundle.certificates.len(), 2);
    assert!(published.bundle.sequence > first.bundle.sequence);
    bench.issue(59, 7);
    assert!(!bench.turn(59));
    assert!(bench.turn(61));
    assert_eq!(bench.states(), ["active", "retired"]);
    let rotated = bench.authority.current();
    assert_ne!(rotated.ca.certificate(), first.ca.certificate());
    assert!(published.bundle.certificates.iter().any(|known| known.as_slice() == rotated.ca.certificate()));
    // Its key for tokens has signed none and goes first; the leaf of day 59 expires on day 66.
    assert!(bench.turn(62));
    assert_eq!(bench.authority.current().bundle.jwt_keys.len(), 1);
    assert!(!bench.turn(65));
    assert_eq!(bench.authority.current().bundle.certificates.len(), 2);
    assert!(bench.turn(67));
    let last = bench.authority.current();
    assert_eq!(last.bundle.certificates.len(), 1);
    assert!(last.bundle.sequence > published.bundle.sequence);
}

#[test]
fn the_listeners_chain_leads_to_every_ca_of_the_bundle() {
    let bench = bench();
    for days in [1, 2] {
        bench.issue(days, 60);
        let now = START.after(Duration::from_secs(days * DAY));
        bench.store.transaction_blocking(|tx| bench.authority.prepare(tx, now)).unwrap();
        bench.store.transaction_blocking(|tx| bench.authority.rotate(tx, now, true)).unwrap();
        bench.store.transaction_blocking(|tx| bench.authority.reload(tx)).unwrap();
    }
    let now = START.after(Duration::from_secs(3 * DAY));
    let issuing = bench.authority.current();
    let spki = super::super::issuer::spki_of_key(&keys::generate().unwrap()).unwrap();
    let id = SpiffeId::new("spiffe://example.org/server").unwrap();
    let term = Duration::from_secs(DAY);
    let leaf = bench.store.transaction_blocking(|tx| issuing.issue(tx, &id, &spki, now, term)).unwrap();
    let chain = issuing.server_chain(&leaf);
    assert_eq!(issuing.chain(&leaf).len(), 2, "nodes and workloads get no links");
    let leads_to = |anchor: &[u8], at: WallTime| {
        use rustls::pki_types::{CertificateDer, UnixTime};
        let anchor = CertificateDer::from(anchor.to_vec());
        let anchors = [webpki::anchor_from_trusted_cert(&anchor).unwrap()];
        let sent: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let end = webpki::EndEntityCert::try_from(&sent[0]).unwrap();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(at.0));
        let (all, usage) = (webpki::ALL_VERIFICATION_ALGS, webpki::KeyUsage::server_auth());
        end.verify_for_usage(all, &anchors, &sent[1..], at, usage, None, None).is_ok()
    };
    assert_eq!(issuing.bundle.certificates.len(), 3);
    assert!(issuing.bundle.certificates.iter().all(|ca| leads_to(ca, now)));
    let other = self::bench().authority.current();
    assert!(!leads_to(other.ca.certificate(), now));
}

#[test]
fn a_server_that_was_off_for_long_replaces_an_expired_ca() {
    let bench = bench();
    assert!(bench.turn(100));
    let current = bench.authority.current();
    assert!(current.ca.not_after() > START.after(Duration::from_secs(100 * DAY)));
}

#[test]
fn rotation_by_hand_waits_until_the_next_ca_is_known() {
    let bench = bench();
    let rotate = |now, early| bench.store.transaction_blocking(|tx| bench.authority.rotate(tx, now, early));
    assert_eq!(rotate(START, false).unwrap_err().code, codes::ADMIN_CONFLICT);
    assert!(bench.store.transaction_blocking(|tx| bench.authority.prepare(tx, START)).unwrap());
    assert!(!bench.store.transaction_blocking(|tx| bench.authority.prepare(tx, START)).unwrap());
    assert_eq!(rotate(START, false).unwrap_err().code, codes::ADMIN_CONFLICT);
    rotate(START.after(Duration::from_secs(600)), false).unwrap();
    assert_eq!(bench.states(), ["active", "retired"]);
}

#[test]
fn another_wrapping_key_opens_nothing() {
    let bench = bench();
    let dir = tempfile::tempdir().unwrap();
    let other = Arc::new(WrappingKey::open(&dir.path().join("wrapping.key"), true).unwrap());
    let domain = TrustDomain::new("example.org").unwrap();
    let terms = bench.authority.terms;
    let refused =
        bench.store.transaction_blocking(|tx| Authority::open(tx, other, domain, terms, None, START)).unwrap_err();
    assert_eq!(refused.code, codes::STORE_FAILED);
}

/// Between the commit and the moment when everybody has taken it over, or for as long as that fails.
#[test]
fn nothing_is_issued_under_a_ca_that_was_removed() {
    let bench = bench();
    let before = bench.authority.current();
    let hash = hash(before.ca.certificate());
    let removed = bench.store.transaction_blocking(|tx| bench.authority.remove(tx, &hash, "stolen", START)).unwrap();
    assert_eq!(removed.id, before.id);
    let spki = super::super::issuer::spki_of_key(&keys::generate().unwrap()).unwrap();
    let id = SpiffeId::new("spiffe://example.org/a").unwrap();
    let issue = |issuing: &Issuing| {
        let term = Duration::from_secs(DAY);
        bench.store.transaction_blocking(|tx| issuing.issue(tx, &id, &spki, START, term))
    };
    assert_eq!(issue(&before).unwrap_err().code, codes::STORE_FAILED);
    let behind = || bench.store.transaction_blocking(|tx| bench.authority.is_behind(tx)).unwrap();
    assert!(behind(), "to be noticed by the regular work");
    bench.store.transaction_blocking(|tx| bench.authority.reload(tx)).unwrap();
    assert!(!behind());
    issue(&bench.authority.current()).unwrap();
}
