//! The audit record, the chain over records and the signed head of a chain: one form for both binaries.
//!
//! | route | client certificate | request → answer |
//! |---|---|---|
//! | `POST /v1/records` | node | [`RecordsRequest`] → [`RecordsAnswer`] |
//!
//! A record is one line of JSON in printable ASCII: whatever a name, a path or a peer's words contain, it can
//! neither end the line nor move the cursor of whoever reads it. Each writer numbers its records from 1 and
//! chains them, so that a changed, missing or inserted one shows; the signed head says how many there are.

use std::fmt;
use std::io;

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::DecodePublicKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::codes::{self, Refusal};

/// The longest record as a line, in bytes: every field of a node's record at its limit and wholly escaped.
pub const LINE_LIMIT: usize = 32 << 10;

/// The most records of one request, and the most bytes of their lines.
pub const RECORDS_LIMIT: usize = 2048;
/// See [`RECORDS_LIMIT`].
pub const LINES_LIMIT: usize = 512 << 10;
/// The largest such request in bytes: the lines, one more, and the frame.
pub const BODY_LIMIT: usize = LINES_LIMIT + LINE_LIMIT + (64 << 10);

/// What happened, to whom, and by which decision. No value of a secret is ever in one.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its number in its writer's chain, from 1 without gaps.
    pub number: u64,
    /// Seconds since 1970 by the writer's wall clock, which orders nothing: the numbers do.
    pub time: u64,
    /// What was done, e.g. `credential.released`, or a refusal's code.
    pub what: String,
    /// The node it is about: 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The workload's SPIFFE ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// The lease's sequence number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    /// The decision's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// The credential's id: serial number in hexadecimal, or `jti`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// The task's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The process, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// How often it happened; once where it isn't said.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub count: u64,
    /// The code of a denial or an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Further facts.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

const fn once() -> u64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
const fn is_once(count: &u64) -> bool {
    *count == 1
}

impl Record {
    /// The line: what is hashed, kept, sent and printed. Printable ASCII without a line end.
    pub fn line(&self) -> String {
        printable(self)
    }

    /// Reads a line.
    ///
    /// # Errors
    /// [`codes::PROTOCOL_MALFORMED`], [`codes::PROTOCOL_TOO_LARGE`].
    pub fn parse(line: &str) -> Result<Self, Refusal> {
        if line.len() > LINE_LIMIT {
            return Err(Refusal::new(codes::PROTOCOL_TOO_LARGE, format!("a record of {} bytes", line.len()))
                .expected(format!("at most {LINE_LIMIT}")));
        }
        if let Some(at) = line.bytes().position(|byte| !is_printable(byte)) {
            return Err(Refusal::new(codes::PROTOCOL_MALFORMED, "a byte that isn't printable ASCII")
                .at(format!("byte {at} of a record")));
        }
        let record: Self = serde_json::from_str(line)
            .map_err(|e| Refusal::new(codes::PROTOCOL_MALFORMED, e.to_string()).at("a record"))?;
        if record.count == 0 {
            return Err(Refusal::new(codes::PROTOCOL_MALFORMED, "it happened 0 times").at("a record's count"));
        }
        Ok(record)
    }
}

/// `value` as JSON in printable ASCII: everything else (controls, ANSI sequences, what changes the
/// direction of text, look-alikes) is escaped.
pub fn printable(value: &impl Serialize) -> String {
    let mut line = Vec::new();
    let mut writer = serde_json::Serializer::with_formatter(&mut line, Printable);
    match value.serialize(&mut writer).map(|()| String::from_utf8(line)) {
        Ok(Ok(line)) => line,
        // Strings, numbers and maps with text keys into a Vec have no way to fail.
        _ => unreachable!("BUG: a record can't be encoded"),
    }
}

const fn is_printable(byte: u8) -> bool {
    byte >= 0x20 && byte < 0x7f
}

/// Escapes what isn't printable ASCII; serde_json itself escapes `"`, `\` and what is below a space.
struct Printable;

impl serde_json::ser::Formatter for Printable {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut units = [0; 2];
        for character in fragment.chars() {
            match u8::try_from(character) {
                Ok(byte) if is_printable(byte) => writer.write_all(&[byte])?,
                _ => character.encode_utf16(&mut units).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?,
            }
        }
        Ok(())
    }
}

/// Who writes a chain: random for each journal and each control plane's log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Writer(#[serde(with = "serde_bytes")] [u8; 16]);

impl Writer {
    /// A new one.
    ///
    /// # Errors
    /// When the kernel has no randomness.
    pub fn random() -> io::Result<Self> {
        crate::secret::random().map(Self)
    }

    /// Of these 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// From 32 hexadecimal digits in lower case, as it is printed.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        (hex::encode(bytes) == text).then_some(Self(bytes))
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The chain's value after a record: it stands for that record and all before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Chain(#[serde(with = "serde_bytes")] [u8; 32]);

impl Chain {
    /// Before the first record: SHA-256(`leasehold-audit-begin-v1\0` ‖ writer).
    pub fn begin(writer: &Writer) -> Self {
        Self(Sha256::new().chain_update(b"leasehold-audit-begin-v1\0").chain_update(writer.0).finalize().into())
    }

    /// After another record: SHA-256(`leasehold-audit-record-v1\0` ‖ the value before ‖ the line).
    #[must_use]
    pub fn then(self, line: &str) -> Self {
        let hash = Sha256::new().chain_update(b"leasehold-audit-record-v1\0").chain_update(self.0);
        Self(hash.chain_update(line.as_bytes()).finalize().into())
    }

    /// Of these 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From 64 hexadecimal digits in lower case, as it is printed.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        (hex::encode(bytes) == text).then_some(Self(bytes))
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How far a writer's chain has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Whose chain.
    pub writer: Writer,
    /// The number of the last record; 0 before the first.
    pub number: u64,
    /// The chain's value after it.
    pub chain: Chain,
}

impl Head {
    /// Of a chain without records.
    pub fn begin(writer: Writer) -> Self {
        Self { writer, number: 0, chain: Chain::begin(&writer) }
    }

    /// What is signed: SHA-256(`leasehold-audit-head-v1\0` ‖ writer ‖ number as u64, big-endian ‖ chain). The
    /// node key that signs it signs TLS and COSE otherwise, neither of which begins so.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::new()
            .chain_update(b"leasehold-audit-head-v1\0")
            .chain_update(self.writer.0)
            .chain_update(self.number.to_be_bytes())
            .chain_update(self.chain.0)
            .finalize()
            .into()
    }
}

/// A head that its writer's key signed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedHead {
    /// The head.
    pub head: Head,
    /// ECDSA P-256 over [`Head::digest`]: r ‖ s, 64 bytes.
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

impl SignedHead {
    /// A head with its signature.
    pub fn new(head: Head, signature: &Signature) -> Self {
        Self { head, signature: signature.to_bytes().to_vec() }
    }

    /// Whether the key of this SubjectPublicKeyInfo (DER) signed it.
    #[must_use]
    pub fn signed_by(&self, spki: &[u8]) -> bool {
        let (Ok(key), Ok(signature)) =
            (VerifyingKey::from_public_key_der(spki), Signature::from_slice(&self.signature))
        else {
            return false;
        };
        key.verify_prehash(&self.head.digest(), &signature).is_ok()
    }
}

/// Delivers records of a node's journal, or asks, with none, how far they arrived.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordsRequest {
    /// The journal's writer.
    pub writer: Writer,
    /// The number of the first record here.
    pub first: u64,
    /// The chain's value before it.
    pub before: Chain,
    /// Lines, at most [`RECORDS_LIMIT`] and [`LINES_LIMIT`] bytes.
    pub records: Vec<String>,
    /// The head at the last of them, signed by the node key. Needed where there are records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<SignedHead>,
    /// The records between those that the control plane has and `first` are no longer in the journal: they
    /// were acknowledged before the control plane was restored from a backup.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missing: bool,
    /// The last head of the control plane's own log that this node was given: a log that was cut
    /// since shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witnessed: Option<SignedHead>,
}

/// How far a journal arrived. What is before `next` is kept by the control plane.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordsAnswer {
    /// The number of the next record that is wanted.
    pub next: u64,
    /// The chain's value before it, as the control plane has it.
    pub before: Chain,
    /// The head of the control plane's own log, to be shown again with the next request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<SignedHead>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record { number: 1, time: 2, what: "credential.released".to_owned(), count: 1, ..Record::default() }
    }

    #[test]
    fn lines_are_printable_and_come_back_as_they_were() {
        let hostile = "a\"b\\c\n\r\t\0\u{7f}\u{1b}[31m\u{202e}\u{2028}\u{e9}\u{1f600}\u{feff}";
        let record = Record {
            workload: Some(hostile.to_owned()),
            process: Some(hostile.to_owned()),
            count: 7,
            detail: serde_json::json!({ hostile: [hostile, 1.5, null] }),
            ..record()
        };
        let line = record.line();
        assert!(line.bytes().all(is_printable), "{line}");
        assert_eq!(Record::parse(&line).unwrap(), record);
        assert!(line.contains("\\u202e") && line.contains("\\ud83d\\ude00"), "{line}");
    }

    #[test]
    fn what_isnt_a_record_is_refused() {
        let line = record().line();
        assert_eq!(line, r#"{"number":1,"time":2,"what":"credential.released"}"#);
        Record::parse(&line).unwrap();
        for (wrong, code) in [
            (line.replace('}', ",\"extra\":1}"), codes::PROTOCOL_MALFORMED),
            (line.replace('}', ",\"count\":0}"), codes::PROTOCOL_MALFORMED),
            (line.replace('}', ",\"number\":1}"), codes::PROTOCOL_MALFORMED),
            (format!("{line}{line}"), codes::PROTOCOL_MALFORMED),
            (format!("{line}\n"), codes::PROTOCOL_MALFORMED),
            (line.replace("released", "r\u{e9}leased"), codes::PROTOCOL_MALFORMED),
            (line[..line.len() - 1].to_owned(), codes::PROTOCOL_MALFORMED),
            (line.replace("released", &"x".repeat(LINE_LIMIT)), codes::PROTOCOL_TOO_LARGE),
        ] {
            assert_eq!(Record::parse(&wrong).unwrap_err().code, code, "{wrong}");
        }
    }

    #[test]
    fn a_chain_stands_for_its_writer_and_every_record() {
        let (one, other) = (Writer::from_bytes([1; 16]), Writer::from_bytes([2; 16]));
        assert_ne!(Chain::begin(&one), Chain::begin(&other));
        let begin = Chain::begin(&one);
        assert_ne!(begin.then("a").then("b"), begin.then("b").then("a"));
        assert_ne!(begin.then("ab"), begin.then("a").then("b"));
        assert_eq!(Chain::from_text(&begin.to_string()), Some(begin));
        assert_eq!(Chain::from_text(&begin.to_string().to_uppercase()), None);
        assert_eq!(Writer::from_text(&one.to_string()), Some(one));
    }

    #[test]
    fn a_head_is_believed_from_its_signer_only() {
        use p256::ecdsa::SigningKey;
        use p256::ecdsa::signature::hazmat::PrehashSigner;
        use p256::pkcs8::EncodePublicKey;
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let spki = key.verifying_key().to_public_key_der().unwrap().to_vec();
        let head = Head::begin(Writer::from_bytes([3; 16]));
        let signed = SignedHead::new(head, &key.sign_prehash(&head.digest()).unwrap());
        assert!(signed.signed_by(&spki));
        let other = SigningKey::from_slice(&[8; 32]).unwrap().verifying_key().to_public_key_der().unwrap().to_vec();
        assert!(!signed.signed_by(&other) && !signed.signed_by(&[]));
        let changed = [
            Head { number: 1, ..head },
            Head { writer: Writer::from_bytes([4; 16]), ..head },
            Head { chain: head.chain.then("x"), ..head },
        ];
        for head in changed {
            assert!(!SignedHead { head, ..signed.clone() }.signed_by(&spki));
        }
    }
}
