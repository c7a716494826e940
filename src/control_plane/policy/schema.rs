//! The schema that inputs and policies keep to, and the guardrails: both part of this program.

use std::sync::LazyLock;

use cedar_policy::Schema;
use sha2::{Digest, Sha256};

use super::rules::Rules;

/// The schema as people read it.
pub const TEXT: &str = include_str!("schema.cedarschema");
/// The guardrails as people read them.
pub const GUARDRAILS: &str = include_str!("guardrails.cedar");
/// What is in force where nobody applied a bundle.
pub const DEFAULT: &str = include_str!("default.cedar");

/// The start of a guardrail's id, which no policy of a bundle may have.
pub const RESERVED: &str = "guardrail.";

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| match Schema::from_cedarschema_str(TEXT) {
    Ok((schema, _)) => schema,
    // A test reads it.
    Err(error) => unreachable!("BUG: the schema can't be read: {error}"),
});

static BUILT_IN: LazyLock<Rules> = LazyLock::new(|| match Rules::guardrails(GUARDRAILS) {
    Ok(rules) => rules,
    Err(refusal) => unreachable!("BUG: the guardrails can't be read: {refusal}"),
});

/// The schema.
pub fn schema() -> &'static Schema {
    &SCHEMA
}

/// The guardrails.
pub fn guardrails() -> &'static Rules {
    &BUILT_IN
}

/// Names schema and guardrails, which another version of this program may have otherwise: 16
/// hexadecimal digits.
pub fn fingerprint() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        let mut digest = hex::encode(Sha256::digest([TEXT, GUARDRAILS].join("\0")));
        digest.truncate(16);
        digest
    });
    &NAME
}
