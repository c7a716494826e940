//! Texts that are no valid JWT-SVID, each in a way that some library has taken for one (T42).

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::hmac;
use leasehold::codes;
use leasehold::credentials::token::LARGEST;
use p256::ecdsa::Signature;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::pkcs8::{EncodePublicKey, LineEnding};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha384};

use crate::signer::{AUDIENCE, ID, NOW, Signer, claims, encoded, read, with};

/// Names and texts.
#[derive(Default)]
struct Corpus(Vec<(String, String)>);

impl Corpus {
    fn add(&mut self, name: impl Into<String>, token: String) {
        self.0.push((name.into(), token));
    }

    /// A token signed as it should be, over a header and claims that may be anything.
    fn signed(&mut self, by: &Signer, name: impl Into<String>, header: &str, claims: &str) {
        self.add(name, by.sign(header, claims));
    }
}

#[test]
fn no_vector_of_the_corpus_is_accepted() {
    let ours = Signer::new(7);
    let keys = ours.keys();
    controls(&ours);
    let mut corpus = Corpus::default();
    algorithms(&mut corpus, &ours);
    headers(&mut corpus, &ours);
    key_names(&mut corpus, &ours);
    claims_of_each_kind(&mut corpus, &ours);
    twice(&mut corpus, &ours);
    json_texts(&mut corpus, &ours);
    frames(&mut corpus, &ours);
    signatures(&mut corpus, &ours);
    let texts: BTreeSet<&String> = corpus.0.iter().map(|(_, token)| token).collect();
    assert!(texts.len() >= 300, "{} vectors", texts.len());
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, token) in &corpus.0 {
        match read(token, &keys) {
            Ok(_) => panic!("accepted: {name}: {token}"),
            Err(refusal) => {
                let code = refusal.code;
                assert!(code.as_str().starts_with("token."), "{name}: {refusal}");
                assert!(refusal.to_string().len() < 1000, "{name}");
                *refused.entry(code.as_str()).or_default() += 1;
            }
        }
    }
    println!("{} vectors, 0 accepted: {refused:?}", texts.len());
    for code in [codes::TOKEN_MALFORMED, codes::TOKEN_SIGNATURE, codes::TOKEN_EXPIRED, codes::TOKEN_AUDIENCE] {
        assert!(refused.contains_key(code.as_str()), "{code} was never the reason");
    }
}

/// What must be accepted, or the corpus would prove nothing.
fn controls(ours: &Signer) {
    let keys = ours.keys();
    let good = |name: &str, token: String| drop(read(&token, &keys).unwrap_or_else(|e| panic!("{name}: {e}")));
    good("as issued", ours.token(&claims()));
    good("without typ", ours.sign(&json!({ "alg": "ES256", "kid": ours.kid }).to_string(), &claims().to_string()));
    let jose = json!({ "alg": "ES256", "kid": ours.kid, "typ": "JOSE" });
    good("typ JOSE", ours.sign(&jose.to_string(), &claims().to_string()));
    good("one audience as a text", ours.token(&with("aud", Some(json!(AUDIENCE)))));
    good("several audiences", ours.token(&with("aud", Some(json!(["other", AUDIENCE])))));
    good("a claim that nobody knows", ours.token(&with("other", Some(json!({ "a": [1, 2.5, null] })))));
    good("the last second", ours.token(&with("exp", Some(json!(NOW.0 + 1)))));
    good("a clock a minute behind", ours.token(&with("iat", Some(json!(NOW.0 + 60)))));
    good("not before now", ours.token(&with("nbf", Some(json!(NOW.0)))));
    good("spaces in JSON", ours.sign(&format!(" {} ", ours.header()), &format!("\n{}\t", claims())));
}

fn algorithms(corpus: &mut Corpus, ours: &Signer) {
    let names = [
        "none",
        "None",
        "NONE",
        "nOnE",
        "",
        "HS256",
        "HS384",
        "HS512",
        "RS256",
        "RS384",
        "RS512",
        "PS256",
        "PS384",
        "PS512",
        "ES384",
        "ES512",
        "ES256K",
        "EdDSA",
        "Ed25519",
        "ML-DSA-44",
        "es256",
        "Es256",
        "ES256 ",
        " ES256",
        "ES256\u{0}",
        "ES-256",
        "A128KW",
        "dir",
        "RSA-OAEP",
    ];
    let mut headers: Vec<(String, Value)> =
        names.iter().map(|name| ((*name).to_owned(), json!({ "alg": name, "kid": ours.kid, "typ": "JWT" }))).collect();
    for value in [json!(null), json!(0), json!(true), json!(["ES256"]), json!({ "ES256": 1 })] {
        headers.push((value.to_string(), json!({ "alg": value, "kid": ours.kid, "typ": "JWT" })));
    }
    headers.push(("absent".to_owned(), json!({ "kid": ours.kid, "typ": "JWT" })));
    let good = ours.token(&claims());
    let original = good.rsplit('.').next().unwrap();
    for (name, header) in &headers {
        corpus.signed(ours, format!("alg {name}, well signed"), &header.to_string(), &claims().to_string());
        let signed = format!("{}.{}", encoded(header.to_string().as_bytes()), encoded(claims().to_string().as_bytes()));
        corpus.add(format!("alg {name}, no signature"), format!("{signed}."));
        corpus.add(format!("alg {name}, another's signature"), format!("{signed}.{original}"));
    }
    // The public key as the secret of a MAC, in each form in which somebody has it.
    let public = ours.key.verifying_key();
    let secrets = [
        ("point", ours.public.clone()),
        ("x", ours.public[1..33].to_vec()),
        ("PEM", public.to_public_key_pem(LineEnding::LF).unwrap().into_bytes()),
        ("DER", public.to_public_key_der().unwrap().as_bytes().to_vec()),
        ("kid", ours.kid.clone().into_bytes()),
        ("JWK", leasehold::credentials::token::jwk(&ours.jwt_key()).to_string().into_bytes()),
        ("nothing", Vec::new()),
    ];
    let macs = [
        ("HS256", hmac::HMAC_SHA256),
        ("HS384", hmac::HMAC_SHA384),
        ("HS512", hmac::HMAC_SHA512),
        ("ES256", hmac::HMAC_SHA512),
    ];
    for (algorithm, mac) in macs {
        for (name, secret) in &secrets {
            let header = json!({ "alg": algorithm, "kid": ours.kid, "typ": "JWT" }).to_string();
            let signed = format!("{}.{}", encoded(header.as_bytes()), encoded(claims().to_string().as_bytes()));
            let tag = hmac::sign(&hmac::Key::new(mac, secret), signed.as_bytes());
            corpus.add(format!("{algorithm} MAC by the {name}"), format!("{signed}.{}", encoded(tag.as_ref())));
        }
    }
}

fn headers(corpus: &mut Corpus, ours: &Signer) {
    let theirs = Signer::new(9);
    let kinds = [
        "at+jwt",
        "wit+jwt",
        "wpt+jwt",
        "dpop+jwt",
        "secevent+jwt",
        "logout+jwt",
        "jwt",
        "jose",
        "JWT ",
        " JWT",
        "",
        "application/jwt",
        "JWE",
        "JOSE+JSON",
        "JWT,JOSE",
    ];
    for kind in kinds.map(Value::from).into_iter().chain([json!(null), json!(1), json!(["JWT"]), json!({})]) {
        let header = json!({ "alg": "ES256", "kid": ours.kid, "typ": kind });
        corpus.signed(ours, format!("typ {kind}"), &header.to_string(), &claims().to_string());
    }
    let jwk = leasehold::credentials::token::jwk(&theirs.jwt_key());
    let more = [
        ("jwk", jwk.clone()),
        ("jku", json!("https://example.org/keys")),
        ("x5u", json!("https://example.org/chain")),
        ("x5c", json!(["MIIB"])),
        ("x5t", json!("AAAA")),
        ("x5t#S256", json!("AAAA")),
        ("crit", json!([])),
        ("crit", json!(["exp"])),
        ("crit", json!(["alg"])),
        ("b64", json!(false)),
        ("b64", json!(true)),
        ("cty", json!("JWT")),
        ("zip", json!("DEF")),
        ("enc", json!("A256GCM")),
        ("epk", jwk.clone()),
        ("apu", json!("a")),
        ("p2c", json!(4_000_000_000_u64)),
        ("iss", json!("https://example.org")),
        ("nonce", json!("n")),
        ("Alg", json!("none")),
        ("ALG", json!("none")),
        ("", json!("")),
    ];
    for (name, value) in more {
        for (whose, by) in [("ours", ours), ("theirs", &theirs)] {
            let mut header = json!({ "alg": "ES256", "kid": ours.kid, "typ": "JWT" });
            header.as_object_mut().unwrap().insert(name.to_owned(), value.clone());
            corpus.signed(by, format!("header {name} by {whose}"), &header.to_string(), &claims().to_string());
        }
    }
    // The key beside its own name.
    let own = json!({ "alg": "ES256", "kid": theirs.kid, "typ": "JWT", "jwk": jwk });
    corpus.signed(&theirs, "a key that brings itself", &own.to_string(), &claims().to_string());
}

fn key_names(corpus: &mut Corpus, ours: &Signer) {
    let theirs = Signer::new(9);
    let kid = &ours.kid;
    let names = [
        json!(""),
        json!(null),
        json!(0),
        json!(true),
        json!([kid]),
        json!({ "kid": kid }),
        json!("unknown"),
        json!(theirs.kid),
        json!(kid.to_uppercase()),
        json!(kid[1..]),
        json!(format!("{kid}=")),
        json!(format!(" {kid}")),
        json!(format!("{kid}\n")),
        json!(format!("{kid}\u{0}")),
        json!(format!("{kid}{kid}")),
        json!("../../../../dev/null"),
        json!("/dev/null"),
        json!("' OR '1'='1"),
        json!("*"),
        json!("x".repeat(5000)),
    ];
    for name in names {
        for (whose, by) in [("ours", ours), ("theirs", &theirs)] {
            let header = json!({ "alg": "ES256", "kid": name, "typ": "JWT" });
            let shown: String = name.to_string().chars().take(20).collect();
            corpus.signed(by, format!("kid {shown} by {whose}"), &header.to_string(), &claims().to_string());
        }
    }
    corpus.signed(ours, "no kid", &json!({ "alg": "ES256", "typ": "JWT" }).to_string(), &claims().to_string());
    corpus.signed(&theirs, "another's key under our name", &ours.header().to_string(), &claims().to_string());
}

fn claims_of_each_kind(corpus: &mut Corpus, ours: &Signer) {
    let odd = || [json!(null), json!(0), json!(1.5), json!(true), json!([]), json!({}), json!([[ID]])];
    let subjects = [
        "",
        " ",
        "app",
        "/app",
        "spiffe:/example.org/app",
        "spiffe:///app",
        "spiffe://example.org",
        "spiffe://example.org/",
        "http://example.org/app",
        "SPIFFE://example.org/app",
        "spiffe://Example.org/app",
        "spiffe://other.org/app",
        "spiffe://example.org.evil/app",
        "spiffe://evil.example.org/app",
        "spiffe://example.org:443/app",
        "spiffe://user@example.org/app",
        "spiffe://example.org/app?a=b",
        "spiffe://example.org/app#a",
        "spiffe://example.org//app",
        "spiffe://example.org/app/",
        "spiffe://example.org/./app",
        "spiffe://example.org/../app",
        "spiffe://example.org/%61pp",
        "spiffe://example.org/äpp",
        " spiffe://example.org/app",
        "spiffe://example.org/app\n",
        "spiffe://example.org/app\u{0}",
        "spiffe://example.org/app,spiffe://example.org/b",
    ];
    let audiences = [
        json!(""),
        json!([""]),
        json!("other"),
        json!(["other"]),
        json!("API"),
        json!(["api "]),
        json!([" api"]),
        json!("ap"),
        json!("apis"),
        json!(["api", 1]),
        json!(["api", null]),
        json!(["api", ""]),
        json!([["api"]]),
        json!(["api\u{0}"]),
        json!(["аpi"]),
        json!("*"),
        json!(["*"]),
        json!("api,other"),
        json!("api other"),
        json!({ "api": 1 }),
        json!(["other", "apis"]),
    ];
    let past_and_odd = |now: u64| {
        [
            json!(now),
            json!(now - 1),
            json!(0),
            json!(-1),
            json!(-0.0),
            json!(now as f64 + 60.5),
            json!(1e300),
            json!(u64::MAX),
            json!(253_402_300_800_u64),
            json!((now + 60).to_string()),
            json!("never"),
            json!(""),
        ]
    };
    let early = [json!(NOW.0 + 61), json!(NOW.0 + 3600), json!(u64::MAX), json!(-1), json!(1.5), json!("0"), json!("")];
    let mut values: Vec<(&str, Option<Value>)> = Vec::new();
    values.extend(subjects.map(|sub| ("sub", Some(json!(sub)))));
    values.extend(audiences.map(|aud| ("aud", Some(aud))));
    values.extend(past_and_odd(NOW.0).map(|exp| ("exp", Some(exp))));
    values.extend(early.iter().map(|early| ("nbf", Some(early.clone()))));
    values.extend(early.iter().map(|early| ("iat", Some(early.clone()))));
    for name in ["sub", "aud", "exp", "jti"] {
        values.push((name, None));
        // A zero is a number of the right kind for no claim but a time, and then it is long past.
        values.extend(odd().map(|odd| (name, Some(odd))));
    }
    values.extend(
        odd()
            .into_iter()
            .filter(|odd| *odd != json!(0))
            .flat_map(|odd| [("nbf", Some(odd.clone())), ("iat", Some(odd))]),
    );
    values.extend(odd().map(|odd| ("task_id", Some(odd))));
    for details in [
        json!("ledger"),
        json!(1),
        json!({}),
        json!(["ledger"]),
        json!([1]),
        json!([{}]),
        json!([{ "type": 1 }]),
        json!([{ "type": "a", "actions": "read" }]),
        json!([{ "type": "a", "actions": [1] }]),
        json!([{ "type": "a", "locations": {} }]),
        json!([{ "type": "a", "unknown": 1 }]),
        json!([null]),
        json!(true),
        json!(null),
    ] {
        values.push(("authorization_details", Some(details)));
    }
    for (name, value) in values {
        let shown = value.as_ref().map_or("absent".to_owned(), Value::to_string);
        corpus.add(format!("{name} {shown}"), ours.token(&with(name, value)));
    }
    corpus.add("no claims", ours.token(&json!({})));
}

fn twice(corpus: &mut Corpus, ours: &Signer) {
    let body = claims().to_string();
    let body = body.strip_suffix('}').unwrap();
    let header = ours.header().to_string();
    for (name, value) in [
        ("sub", json!("spiffe://example.org/other")),
        ("aud", json!(["other"])),
        ("exp", json!(NOW.0 + 600)),
        ("iat", json!(NOW.0)),
        ("jti", json!("3")),
        ("decision", json!("4")),
        ("purpose", json!("tests")),
    ] {
        corpus.signed(ours, format!("{name} twice"), &header, &format!("{body},\"{name}\":{value}}}"));
        corpus.signed(ours, format!("{name} first"), &header, &format!("{{\"{name}\":{value},{}}}", &body[1..]));
        let escaped = format!("\\u{:04x}{}", u32::from(name.as_bytes()[0]), &name[1..]);
        corpus.signed(ours, format!("{name} escaped"), &header, &format!("{body},\"{escaped}\":{value}}}"));
    }
    let inner = "[{\"type\":\"a\",\"type\":\"b\",\"actions\":[\"x\"]}]";
    corpus.signed(ours, "twice within", &header, &format!("{body},\"authorization_details\":{inner}}}"));
    for (name, value) in [("alg", "none"), ("alg", "ES256"), ("kid", &ours.kid), ("kid", "other"), ("typ", "JWT")] {
        let head = header.strip_suffix('}').unwrap();
        let text = format!("{head},\"{name}\":\"{value}\"}}");
        corpus.signed(ours, format!("header {name} twice: {value}"), &text, &claims().to_string());
        let text = format!("{{\"{name}\":\"{value}\",{}", &header[1..]);
        corpus.signed(ours, format!("header {name} first: {value}"), &text, &claims().to_string());
    }
}

fn json_texts(corpus: &mut Corpus, ours: &Signer) {
    for (what, good) in [("header", ours.header().to_string()), ("claims", claims().to_string())] {
        let open = good.strip_suffix('}').unwrap();
        let deep = format!("{open},\"deep\":{}{}}}", "[".repeat(200), "]".repeat(200));
        let mut odd: Vec<(&str, Vec<u8>)> = [
            ("nothing", String::new()),
            ("spaces", "  ".to_owned()),
            ("null", "null".to_owned()),
            ("a number", "1".to_owned()),
            ("a text", "\"a\"".to_owned()),
            ("a list", format!("[{good}]")),
            ("two", format!("{good}{good}")),
            ("a byte after", format!("{good}x")),
            ("a NUL after", format!("{good}\0")),
            ("a comma", format!("{open},}}")),
            ("a comment", format!("{open}/**/}}")),
            ("a line comment", format!("{good}//")),
            ("open", open.to_owned()),
            ("a mark of order", format!("\u{feff}{good}")),
            ("single quotes", good.replace('"', "'")),
            ("no quotes", good.replace('"', "")),
            ("NaN", format!("{open},\"n\":NaN}}")),
            ("Infinity", format!("{open},\"n\":Infinity}}")),
            ("an octal", format!("{open},\"n\":01}}")),
            ("hexadecimal", format!("{open},\"n\":0x1}}")),
            ("beyond a double", format!("{open},\"n\":1e400}}")),
            ("half a pair", format!("{open},\"n\":\"\\ud800\"}}")),
            ("a raw control character", format!("{open},\"n\":\"\u{1}\"}}")),
            ("too deep", deep),
        ]
        .map(|(name, text)| (name, text.into_bytes()))
        .into();
        odd.push(("no UTF-8", [open.as_bytes(), b",\"n\":\"\xff\"}"].concat()));
        odd.push(("overlong UTF-8", [open.as_bytes(), b",\"n\":\"\xc0\xaf\"}"].concat()));
        odd.push(("UTF-16", good.encode_utf16().flat_map(u16::to_le_bytes).collect()));
        for (name, bytes) in odd {
            let (header, body) = match what {
                "header" => (bytes, claims().to_string().into_bytes()),
                _ => (ours.header().to_string().into_bytes(), bytes),
            };
            let signed = format!("{}.{}", encoded(&header), encoded(&body));
            let signature = encoded(&ours.raw(signed.as_bytes()));
            corpus.add(format!("{what}: {name}"), format!("{signed}.{signature}"));
        }
    }
}

fn frames(corpus: &mut Corpus, ours: &Signer) {
    let good = ours.token(&claims());
    let parts: Vec<&str> = good.split('.').collect();
    let [header, body, signature] = parts[..] else { panic!("{good}") };
    for (name, text) in [
        ("nothing", String::new()),
        ("one segment", header.to_owned()),
        ("two segments", format!("{header}.{body}")),
        ("only dots", "..".to_owned()),
        ("four segments", format!("{good}.")),
        ("and one more", format!("{good}.{signature}")),
        ("five, as a JWE", format!("{header}..{body}.{signature}.{signature}")),
        ("a dot first", format!(".{good}")),
        ("no header", format!(".{body}.{signature}")),
        ("no claims", format!("{header}..{signature}")),
        ("no signature", format!("{header}.{body}.")),
        ("detached", format!("{header}..{signature}")),
        ("swapped", format!("{body}.{header}.{signature}")),
        ("twice", format!("{good}{good}")),
        ("twice with a dot", format!("{good}.{good}")),
        ("a space before", format!(" {good}")),
        ("a space after", format!("{good} ")),
        ("a line after", format!("{good}\n")),
        ("CR LF after", format!("{good}\r\n")),
        ("a tab within", format!("{header}\t.{body}.{signature}")),
        ("a line within", format!("{header}.{body}.\n{signature}")),
        ("a NUL after", format!("{good}\0")),
        ("a scheme", format!("Bearer {good}")),
        ("quoted", format!("\"{good}\"")),
        ("escaped", good.replace('.', "%2E")),
        ("a full-width dot", good.replace('.', "．")),
        ("a comma", format!("{good},{good}")),
        ("padded header", format!("{header}=.{body}.{signature}")),
        ("padded claims", format!("{header}.{body}==.{signature}")),
        ("padded signature", format!("{good}==")),
        ("one pad", format!("{good}=")),
        ("the other alphabet", format!("{header}.{body}.{}", signature.replace(['-', '_'], "+"))),
        ("a plus", format!("{header}.{body}.+{}", &signature[1..])),
        ("a slash", format!("{header}.{body}./{}", &signature[1..])),
        ("flattened JSON", json!({ "protected": header, "payload": body, "signature": signature }).to_string()),
        (
            "general JSON",
            json!({ "payload": body, "signatures": [{ "protected": header, "signature": signature }] }).to_string(),
        ),
        ("upper case", good.to_uppercase()),
        ("reversed", good.chars().rev().collect()),
        ("too large", ours.token(&with("more", Some(json!("x".repeat(LARGEST)))))),
        ("a mebibyte", "a".repeat(1 << 20)),
        ("dots", ".".repeat(100_000)),
    ] {
        corpus.add(format!("frame: {name}"), text);
    }
    // Cut off anywhere.
    for length in (1..good.len()).step_by(11).chain(good.len() - 6..good.len()) {
        corpus.add(format!("cut at {length}"), good[..length].to_owned());
    }
    // The same bytes by another text: the bits that are left over in a last character (RFC 4648, 3.5).
    for (at, segment) in [header, body, signature].into_iter().enumerate() {
        if let Some(other) = left_over(segment) {
            let mut parts = [header.to_owned(), body.to_owned(), signature.to_owned()];
            parts[at] = other;
            corpus.add(format!("left-over bits in segment {at}"), parts.join("."));
        }
    }
}

/// The segment with other left-over bits, if it has any.
fn left_over(segment: &str) -> Option<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = *segment.as_bytes().last()?;
    let value = ALPHABET.iter().position(|letter| *letter == last)?;
    let other = match segment.len() % 4 {
        2 | 3 => ALPHABET[value ^ 1],
        _ => return None,
    };
    Some(format!("{}{}", &segment[..segment.len() - 1], other as char))
}

fn signatures(corpus: &mut Corpus, ours: &Signer) {
    let good = ours.token(&claims());
    let (signed, _) = good.rsplit_once('.').unwrap();
    let raw = ours.raw(signed.as_bytes());
    let signature = Signature::from_slice(&raw).unwrap();
    let (r, s) = raw.split_at(32);
    let order = hex::decode("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551").unwrap();
    let prime = hex::decode("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff").unwrap();
    let zero = vec![0; 32];
    let one = [vec![0; 31], vec![1]].concat();
    let (header, body) = signed.split_once('.').unwrap();
    let other = ours.token(&with("jti", Some(json!("9"))));
    let by_other_hash: Signature = ours.key.sign_prehash(&Sha384::digest(signed.as_bytes())).unwrap();
    let hashed_twice: Signature = ours.key.sign_prehash(&Sha256::digest(Sha256::digest(signed.as_bytes()))).unwrap();
    let twin = [r, &negated(s, &order)].concat();
    let mut odd: Vec<(String, Vec<u8>)> = [
        ("empty", Vec::new()),
        ("zeros", vec![0; 64]),
        ("all ones", vec![0xff; 64]),
        ("r is zero", [&zero, s].concat()),
        ("s is zero", [r, &zero].concat()),
        ("r and s are one", [one.clone(), one.clone()].concat()),
        ("r is the order", [order.as_slice(), s].concat()),
        ("s is the order", [r, &order].concat()),
        ("r is the prime", [prime.as_slice(), s].concat()),
        ("r is one", [&one, s].concat()),
        ("the twin with the higher s", twin),
        ("swapped", [s, r].concat()),
        ("DER", signature.to_der().as_bytes().to_vec()),
        ("63 bytes", raw[..63].to_vec()),
        ("65 bytes", [raw.as_slice(), &[0]].concat()),
        ("a zero first", [&[0], raw.as_slice()].concat()),
        ("a format byte first", [&[4], raw.as_slice()].concat()),
        ("half", r.to_vec()),
        ("96 bytes", [raw.as_slice(), &[0; 32]].concat()),
        ("48 bytes each", [&[0; 16], r, &[0; 16], s].concat()),
        ("132 bytes", vec![1; 132]),
        ("twice", [raw.clone(), raw.clone()].concat()),
        ("of another token", ours.raw(other.rsplit_once('.').unwrap().0.as_bytes())),
        ("of the header", ours.raw(header.as_bytes())),
        ("of the claims", ours.raw(body.as_bytes())),
        ("without the dot", ours.raw(signed.replace('.', "").as_bytes())),
        ("with a dot after", ours.raw(format!("{signed}.").as_bytes())),
        ("of the decoded bytes", ours.raw(claims().to_string().as_bytes())),
        ("of nothing", ours.raw(b"")),
        ("of SHA-384", by_other_hash.normalize_s().to_bytes().to_vec()),
        ("of a hash of the hash", hashed_twice.normalize_s().to_bytes().to_vec()),
        ("by another key", Signer::new(9).raw(signed.as_bytes())),
        ("hexadecimal", hex::encode(&raw).into_bytes()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into();
    for bit in (0..512).step_by(23) {
        let mut flipped = raw.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        odd.push((format!("bit {bit}"), flipped));
    }
    for (name, bytes) in odd {
        corpus.add(format!("signature: {name}"), format!("{signed}.{}", encoded(&bytes)));
    }
}

/// n − s, big-endian.
fn negated(s: &[u8], order: &[u8]) -> Vec<u8> {
    let mut borrow = 0_i16;
    let mut difference = vec![0; 32];
    for at in (0..32).rev() {
        let value = i16::from(order[at]) - i16::from(s[at]) - borrow;
        borrow = i16::from(value < 0);
        difference[at] = u8::try_from(value.rem_euclid(256)).unwrap();
    }
    difference
}

/// One character of a good token changed, inserted or taken out: none of them is another good token.
#[test]
fn no_token_lies_beside_a_good_one() {
    let ours = Signer::new(7);
    let keys = ours.keys();
    let good = ours.token(&claims());
    read(&good, &keys).unwrap();
    let mut tried = 0;
    for at in 0..good.len() {
        for other in ["A", "b", "9", "-", "_", ".", "=", "\u{0}", ""] {
            let replaced = format!("{}{other}{}", &good[..at], &good[at + 1..]);
            let inserted = format!("{}{other}{}", &good[..at], &good[at..]);
            for changed in [replaced, inserted] {
                if changed != good {
                    tried += 1;
                    assert!(read(&changed, &keys).is_err(), "{changed}");
                }
            }
        }
    }
    println!("{tried} neighbours of a good token, none accepted");
}

#[test]
fn keys_of_other_uses_types_and_names_are_not_taken() {
    use leasehold::credentials::token::{TokenKeys, jwk, jwks};
    let ours = Signer::new(7);
    let token = ours.token(&claims());
    read(&token, &TokenKeys::from_jwks(&jwks(&[ours.jwt_key()])).unwrap()).unwrap();
    for (name, value) in [
        ("use", json!("x509-svid")),
        ("use", json!("sig")),
        ("kty", json!("RSA")),
        ("kty", json!("oct")),
        ("crv", json!("P-384")),
        ("kid", json!("another")),
        ("kid", json!(7)),
    ] {
        let mut key = jwk(&ours.jwt_key());
        key.as_object_mut().unwrap().insert(name.to_owned(), value);
        let keys = TokenKeys::from_jwks(json!({ "keys": [key] }).to_string().as_bytes()).unwrap();
        assert_eq!(read(&token, &keys).unwrap_err().code, codes::TOKEN_SIGNATURE, "{name}");
    }
    let key = jwk(&ours.jwt_key());
    for document in [json!({ "keys": [key, key] }), json!({}), json!([]), json!({ "keys": {} })] {
        assert_eq!(TokenKeys::from_jwks(document.to_string().as_bytes()).unwrap_err().code, codes::TOKEN_MALFORMED);
    }
    let renamed = leasehold::protocol::JwtKey { kid: "chosen".to_owned(), ..ours.jwt_key() };
    assert_eq!(TokenKeys::new(&[renamed]).unwrap_err().code, codes::TOKEN_MALFORMED);
}
