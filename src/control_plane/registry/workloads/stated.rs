//! A workload as an operator states it, and what is checked of it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Target, Workload};
use crate::codes::{self, Refusal};
use crate::control_plane::registry::rules::Rules;
use crate::control_plane::registry::{destinations, names, nodes, owners};
use crate::control_plane::store::Transaction;
use crate::identity::{RESERVED_PATH, SpiffeId, TrustDomain};
use crate::workload::Selector;

/// The most selectors, audiences, destinations or roles of an entry.
const LIST_LIMIT: usize = 32;
/// The least important tier.
const LAST_TIER: u8 = 4;

/// A workload as stated by an operator, not yet checked.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stated {
    /// Its SPIFFE ID.
    pub id: String,
    /// Who answers for it.
    pub owner: String,
    /// What it is for.
    pub purpose: String,
    /// For clients with several identities.
    #[serde(default)]
    pub hint: String,
    /// The longest lifetime of its SVIDs in seconds.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
    /// The node it is for (id, or the start of one) …
    #[serde(default)]
    pub node: Option<String>,
    /// … or the group of nodes.
    #[serde(default)]
    pub node_group: Option<String>,
    /// What a caller must match.
    pub selectors: Vec<String>,
    /// Further words on it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// 1 (what matters most) to 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<u8>,
    /// The audiences its tokens may name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// The destinations it may be issued credentials for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<String>,
    /// Groups it is in, for policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Whether somebody else's program runs as it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub third_party: bool,
    /// Whether processes of login sessions may have it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interactive: bool,
}

/// What is to be changed of a workload; what isn't stated stays.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    /// Its SPIFFE ID, which can't change.
    pub id: String,
    /// Who answers for it from now on.
    pub owner: Option<String>,
    /// What it is for.
    pub purpose: Option<String>,
    /// A hint; empty takes it away.
    pub hint: Option<String>,
    /// The longest lifetime in seconds; 0 takes the limit away.
    pub ttl_seconds: Option<u64>,
    /// The node it is for …
    pub node: Option<String>,
    /// … or the group of nodes.
    pub node_group: Option<String>,
    /// All its selectors; none leaves them.
    pub selectors: Vec<String>,
    /// Further words; empty takes them away.
    pub description: Option<String>,
    /// Its tier.
    pub tier: Option<u8>,
    /// All its audiences; one empty text takes them away.
    pub audiences: Vec<String>,
    /// All its destinations; one empty text takes them away.
    pub destinations: Vec<String>,
    /// All its roles; one empty text takes them away.
    pub roles: Vec<String>,
    /// Whether somebody else's program runs as it.
    pub third_party: Option<bool>,
    /// Whether processes of login sessions may have it.
    pub interactive: Option<bool>,
}

impl Changes {
    /// `before`, changed.
    pub fn of(self, before: Stated) -> Stated {
        let list = |changed: Vec<String>, before: Vec<String>| match changed.as_slice() {
            [] => before,
            [one] if one.is_empty() => Vec::new(),
            _ => changed,
        };
        let moved = self.node.is_some() || self.node_group.is_some();
        Stated {
            id: before.id,
            owner: self.owner.unwrap_or(before.owner),
            purpose: self.purpose.unwrap_or(before.purpose),
            hint: self.hint.unwrap_or(before.hint),
            ttl_seconds: match self.ttl_seconds {
                None => before.ttl_seconds,
                Some(seconds) => (seconds > 0).then_some(seconds),
            },
            node: if moved { self.node } else { before.node },
            node_group: if moved { self.node_group } else { before.node_group },
            selectors: list(self.selectors, before.selectors),
            description: self.description.unwrap_or(before.description),
            tier: self.tier.or(before.tier),
            audiences: list(self.audiences, before.audiences),
            destinations: list(self.destinations, before.destinations),
            roles: list(self.roles, before.roles),
            third_party: self.third_party.unwrap_or(before.third_party),
            interactive: self.interactive.unwrap_or(before.interactive),
        }
    }
}

impl Workload {
    /// Checks what an operator stated.
    ///
    /// # Errors
    /// [`codes::ADMIN_INVALID`] naming the option, [`codes::ADMIN_UNKNOWN`] for an owner, node or
    /// destination that isn't known.
    pub fn check(tx: &Transaction<'_>, stated: Stated, rules: &Rules) -> Result<Self, Refusal> {
        let id = check_id(&stated.id, &rules.trust_domain)?;
        let environment = rules.environment_of(&id)?;
        names::text("--owner", &stated.owner)?;
        rules.purpose(&stated.purpose)?;
        names::optional_text("--hint", &stated.hint)?;
        names::optional_text("--description", &stated.description)?;
        if stated.ttl_seconds == Some(0) {
            return Err(invalid("--ttl", "0").expected("at least one second"));
        }
        if let Some(tier) = stated.tier.filter(|tier| !(1..=LAST_TIER).contains(tier)) {
            return Err(invalid("--tier", &tier.to_string())
                .expected(format!("1 (internet-facing, build systems, write access) to {LAST_TIER}")));
        }
        owners::serving(tx, &stated.owner)?;
        let workload = Self {
            target: target(tx, &stated, &environment)?,
            selectors: check_selectors(stated.selectors)?,
            audiences: check_list("--audience", stated.audiences, names::text)?,
            destinations: check_list("--destination", stated.destinations, names::plain)?,
            roles: check_list("--role", stated.roles, names::plain)?,
            id,
            environment,
            owner: stated.owner,
            purpose: stated.purpose,
            hint: stated.hint,
            ttl_seconds: stated.ttl_seconds,
            description: stated.description,
            tier: stated.tier,
            third_party: stated.third_party,
            interactive: stated.interactive,
            suspended: None,
        };
        workload.reaches(tx)?;
        if workload.third_party {
            workload.is_kept_short(rules.third_party_ttl)?;
        }
        Ok(workload)
    }

    /// Its destinations are there, and none is of another environment: that could never be permitted.
    fn reaches(&self, tx: &Transaction<'_>) -> Result<(), Refusal> {
        for name in &self.destinations {
            let destination = destinations::find(tx, name)?.ok_or_else(|| destinations::unknown(name))?;
            if destination.environment != self.environment {
                let found = format!("`{name}` is of the environment `{}`", destination.environment);
                return Err(invalid("--destination", &found).expected(format!("one of `{}`", self.environment)));
            }
        }
        Ok(())
    }

    /// Somebody else's program: exactly that program, towards somebody in particular, and never for long.
    fn is_kept_short(&self, longest: u64) -> Result<(), Refusal> {
        let refuse = |found: &str, expected: String| Err(invalid("--third-party", found).expected(expected));
        let pinned =
            |selector: &String| ["unix:sha256:", "unix:fsverity:"].iter().any(|kind| selector.starts_with(kind));
        if !self.selectors.iter().any(pinned) {
            let expected = "--selector unix:sha256:HEX or unix:fsverity:…, so that an update of it is looked at";
            return refuse("nothing says which program it is", expected.to_owned());
        }
        if self.audiences.is_empty() && self.destinations.is_empty() {
            return refuse("nothing says what it may reach", "--audience or --destination".to_owned());
        }
        match self.ttl_seconds {
            Some(seconds) if seconds <= longest => Ok(()),
            Some(seconds) => refuse(
                &format!("{seconds} s is too long for somebody else's program"),
                format!("--ttl {longest} or less (`registry.third_party_ttl_seconds`)"),
            ),
            None => refuse("nothing says how long its credentials last", format!("--ttl {longest} or less")),
        }
    }
}

/// Where it may run. A node of another environment could never be permitted.
fn target(tx: &Transaction<'_>, stated: &Stated, environment: &str) -> Result<Target, Refusal> {
    match (&stated.node, &stated.node_group) {
        (Some(node), None) => {
            let node = nodes::resolve(tx, node).map_err(|refusal| match refusal.code {
                codes::STORE_FAILED => refusal,
                _ => Refusal { found: format!("`{}`: {}", node.escape_debug(), refusal.found), ..refusal }.at("--node"),
            })?;
            if !node.environment.is_empty() && node.environment != environment {
                let found = format!("node {} is of the environment `{}`", node.id, node.environment);
                return Err(invalid("--node", &found).expected(format!("a node of `{environment}`")));
            }
            Ok(Target::Node(node.id))
        }
        (None, Some(group)) => {
            names::plain("--node-group", group)?;
            Ok(Target::Group(group.clone()))
        }
        _ => Err(invalid("--node", "no node and no group, or both").expected("one of --node, --node-group")),
    }
}

fn check_id(text: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, Refusal> {
    let shown = text.escape_debug();
    let id = SpiffeId::new(text).map_err(|e| invalid("--id", &format!("`{shown}`: {e}")))?;
    // The parser is lenient about nothing that matters, but what is stored is what was typed.
    if id.to_string() != text {
        return Err(invalid("--id", &format!("`{shown}`")).expected(format!("its one form, {id}")));
    }
    if !id.is_member_of(trust_domain) {
        return Err(invalid("--id", &format!("`{shown}` is of another trust domain"))
            .expected(format!("spiffe://{trust_domain}/…")));
    }
    if id.path().is_empty() {
        return Err(invalid("--id", &format!("`{shown}` has no path")).expected(format!("spiffe://{trust_domain}/…")));
    }
    if format!("{}/", id.path()).starts_with(RESERVED_PATH) {
        return Err(invalid("--id", &format!("`{shown}` is reserved for Leasehold's own parts"))
            .expected(format!("a path that doesn't start with {RESERVED_PATH}")));
    }
    Ok(id)
}

/// The selectors an agent knows. An unknown one could never match, and would look as if it did something.
fn check_selectors(stated: Vec<String>) -> Result<BTreeSet<String>, Refusal> {
    if stated.is_empty() {
        return Err(invalid("--selector", "none").expected("at least one, e.g. unix:uid:1000"));
    }
    check_list("--selector", stated, |option, selector| {
        Selector::parse(selector)
            .map(drop)
            .map_err(|refusal| Refusal { code: codes::ADMIN_INVALID, ..refusal }.at(option.to_owned()))
    })
}

fn check_list(
    option: &str,
    stated: Vec<String>,
    check: fn(&str, &str) -> Result<(), Refusal>,
) -> Result<BTreeSet<String>, Refusal> {
    if stated.len() > LIST_LIMIT {
        return Err(invalid(option, "too many").expected(format!("at most {LIST_LIMIT}")));
    }
    let mut checked = BTreeSet::new();
    for one in stated {
        check(option, &one)?;
        if let Some(twice) = checked.replace(one) {
            return Err(invalid(option, &format!("`{twice}` stands twice")));
        }
    }
    Ok(checked)
}

fn invalid(at: &str, found: &str) -> Refusal {
    Refusal::new(codes::ADMIN_INVALID, found).at(at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn domain() -> TrustDomain {
        TrustDomain::new("example.org").unwrap()
    }

    #[test]
    fn ids_are_of_this_trust_domain_and_not_reserved() {
        for good in
            ["spiffe://example.org/a", "spiffe://example.org/leaseholder/x", "spiffe://example.org/a/leasehold/x"]
        {
            check_id(good, &domain()).unwrap();
        }
        for bad in [
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe://other.org/a",
            "spiffe://example.org/leasehold",
            "spiffe://example.org/leasehold/node/x",
            "spiffe://example.org/a/../leasehold/server",
            "spiffe://example.org//a",
            "spiffe://example.org/%2e%2e/a",
            "spiffe://example.org/a/",
            "spiffe://example.org/ü",
            "spiffe://example.org/a\0",
            "spiffe://EXAMPLE.org/a",
            "SPIFFE://example.org/a",
            "https://example.org/a",
            "",
        ] {
            assert_eq!(check_id(bad, &domain()).unwrap_err().code, codes::ADMIN_INVALID, "{bad}");
        }
    }

    /// Whether the path is what SPIFFE-ID 2.2 allows, read by the letter and by nothing of the parser's.
    fn is_plain_path(path: &str) -> bool {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain))
        })
    }

    /// One of the pieces that normalisations of paths trip over (CVE-2021-27099), from a counter's bits.
    fn hostile(mut bits: u64) -> String {
        const PIECES: [&str; 32] = [
            "a",
            "b",
            "/",
            "/",
            "..",
            ".",
            "%2e",
            "%2E%2e",
            "%2f",
            "//",
            "\0",
            "ü",
            "\u{FF0E}",
            "\u{2215}",
            "\u{202E}",
            "\\",
            "?",
            "#",
            ":",
            "@",
            " ",
            "\n",
            "leasehold",
            "server",
            "A",
            "-",
            "_",
            "~",
            "%",
            "%00",
            ";",
            "\u{301}",
        ];
        let mut text = "spiffe://example.org".to_owned();
        let pieces = 2 + bits % 7;
        for _ in 0..pieces {
            bits /= 32;
            text.push_str(PIECES[(bits % 32) as usize]);
        }
        text
    }

    /// A generator whose steps are all different (SplitMix64).
    fn spread(number: u64) -> u64 {
        let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    #[test]
    fn of_a_million_hostile_ids_only_those_in_their_one_plain_form_are_taken() {
        let domain = domain();
        let mut taken = 0_u32;
        for number in 0..1_000_000 {
            let text = hostile(spread(number));
            let path = &text["spiffe://example.org".len()..];
            let plain = is_plain_path(path) && path != "/leasehold" && !path.starts_with(RESERVED_PATH);
            match check_id(&text, &domain) {
                Ok(id) => {
                    taken += 1;
                    assert!(plain && id.to_string() == text && id.path() == path, "{text:?}");
                }
                Err(refusal) => assert!(!plain && refusal.code == codes::ADMIN_INVALID, "{text:?}: {refusal}"),
            }
        }
        // Both sides of it were tried.
        assert!(taken > 50, "{taken}");
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_its_own_form(text in "\\PC{0,60}|spiffe://example.org/[ -~]{0,40}") {
            if let Ok(id) = check_id(&text, &domain()) {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn selectors_are_the_ones_an_agent_can_match() {
        let check = |selector: &str| check_selectors(vec![selector.to_owned()]);
        let digest = format!("unix:sha256:{}", "ab".repeat(32));
        for good in ["unix:uid:0", "unix:path:/usr/bin/a b", digest.as_str()] {
            check(good).unwrap();
        }
        for bad in ["uid:0", "unix:uid:", "unix:uid:01", "unix:user:root", "unix:path:bin", "k8s:ns:x", ""] {
            assert_eq!(check(bad).unwrap_err().code, codes::ADMIN_INVALID, "{bad}");
        }
        assert!(check_selectors(vec!["unix:uid:1".to_owned(); 2]).is_err());
        assert!(check_selectors(Vec::new()).is_err());
    }
}
