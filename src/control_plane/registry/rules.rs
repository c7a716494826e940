//! What this control plane asks of registrations beyond their form: environments, purposes, and how
//! short somebody else's program is kept.

use std::collections::BTreeSet;

use super::names;
use crate::codes::{self, Refusal};
use crate::config::RegistryConfig;
use crate::identity::{SpiffeId, TrustDomain};

/// The most environments or purposes of a configuration.
const LIMIT: usize = 256;

/// The rules, checked.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The trust domain that every id is of.
    pub trust_domain: TrustDomain,
    /// The environments; with none, nothing has one.
    pub environments: BTreeSet<String>,
    /// The purposes there are; with none, any text is one.
    pub purposes: BTreeSet<String>,
    /// The longest lifetime, in seconds, of credentials of somebody else's program.
    pub third_party_ttl: u64,
}

impl Rules {
    /// Checks a configuration.
    ///
    /// # Errors
    /// [`codes::CONFIG_INVALID`], naming the key.
    pub fn check(trust_domain: &TrustDomain, config: &RegistryConfig) -> Result<Self, Refusal> {
        let each = |key: &str, values: &[String], check: fn(&str, &str) -> Result<(), Refusal>| {
            let mut found = BTreeSet::new();
            for value in values {
                check(key, value).map_err(|refusal| Refusal { code: codes::CONFIG_INVALID, ..refusal })?;
                if !found.insert(value.clone()) || found.len() > LIMIT {
                    return Err(Refusal::new(
                        codes::CONFIG_INVALID,
                        format!("`{value}` stands twice, or there are too many"),
                    )
                    .at(key)
                    .expected(format!("each once, at most {LIMIT}")));
                }
            }
            Ok(found)
        };
        let ttl = config.third_party_ttl_seconds;
        if !(1..=3600).contains(&ttl) {
            return Err(Refusal::new(codes::CONFIG_INVALID, ttl.to_string())
                .at("registry.third_party_ttl_seconds")
                .expected("1 to 3600"));
        }
        Ok(Self {
            trust_domain: trust_domain.clone(),
            environments: each("registry.environments", &config.environments, names::segment)?,
            purposes: each("registry.purposes", &config.purposes, names::text)?,
            third_party_ttl: ttl,
        })
    }

    /// The environment that an id names: the first segment of its path. Empty where none are used.
    ///
    /// # Errors
    /// [`codes::ADMIN_INVALID`] when the first segment is none of them.
    pub fn environment_of(&self, id: &SpiffeId) -> Result<String, Refusal> {
        if self.environments.is_empty() {
            return Ok(String::new());
        }
        let first = id.path().split('/').find(|segment| !segment.is_empty()).unwrap_or_default();
        match self.environments.contains(first) {
            true => Ok(first.to_owned()),
            false => Err(Refusal::new(codes::ADMIN_INVALID, format!("`{id}` names no environment"))
                .at("--id")
                .expected(format!("spiffe://{}/ENVIRONMENT/…, with one of {}", self.trust_domain, self.listed()))),
        }
    }

    /// Whether there is such an environment; an empty text says "none".
    ///
    /// # Errors
    /// [`codes::ADMIN_INVALID`] at `option`.
    pub fn environment(&self, option: &str, name: &str) -> Result<(), Refusal> {
        if name.is_empty() || self.environments.contains(name) {
            return Ok(());
        }
        let expected = match self.environments.is_empty() {
            true => "`registry.environments` in the server's configuration first".to_owned(),
            false => format!("one of {}", self.listed()),
        };
        let found = format!("there is no environment `{}`", name.escape_debug());
        Err(Refusal::new(codes::ADMIN_INVALID, found).at(option).expected(expected))
    }

    /// Whether this is a purpose here.
    ///
    /// # Errors
    /// [`codes::ADMIN_INVALID`].
    pub fn purpose(&self, purpose: &str) -> Result<(), Refusal> {
        names::text("--purpose", purpose)?;
        if self.purposes.is_empty() || self.purposes.contains(purpose) {
            return Ok(());
        }
        let known: Vec<&str> = self.purposes.iter().map(String::as_str).collect();
        Err(Refusal::new(codes::ADMIN_INVALID, format!("`{purpose}` is none of the purposes there are"))
            .at("--purpose")
            .expected(format!("one of {}; what else there is to say goes into --description", known.join(", "))))
    }

    fn listed(&self) -> String {
        self.environments.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}
