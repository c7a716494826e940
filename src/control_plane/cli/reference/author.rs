//! Commands that make, sign and compare sets: without a server, unless they name a stored set.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::args::Shared;
use super::super::client::Client;
use super::super::print;
use super::sources::{find, inputs, read_document};
use super::{FromArtifacts, PlanUpdate};
use crate::clock::WallTime;
use crate::codes::exit::DONE;
use crate::codes::{self, Refusal};
use crate::control_plane::admin::Command;
use crate::control_plane::reference::update::{self, Transition};
use crate::control_plane::reference::{artifacts, corim, difference, key};
use crate::control_plane::references::documents::Facts;
use crate::output::{part, say};
use crate::secret::write_atomically;
use crate::verify::profile::Profile;
use crate::verify::references::{Document, ReferenceSet};

/// `from-artifacts`.
///
/// # Errors
/// Those of the sources and of [`artifacts::set`].
pub fn from_artifacts(cli: &Shared, arguments: &FromArtifacts) -> Result<u8, Refusal> {
    let FromArtifacts { sources, name, profile, bank, state, version, out } = arguments;
    let bank = bank.parse().map_err(|what: String| Refusal::new(codes::ADMIN_INVALID, what).at("--bank"))?;
    let inputs = inputs(sources, profile)?;
    let (set, mut notes) = artifacts::set(&inputs, name, profile, bank, state)?;
    if Profile::shipped(profile).is_none() {
        let names: Vec<&str> = Profile::shipped_names().collect();
        notes.push(format!(
            "profile `{profile}` is none of {}: a control plane must have it in `firmware_profiles`",
            names.join(", ")
        ));
    }
    let set = ReferenceSet { version: *version, ..set }.checked()?;
    made(cli, &set, &notes, &[], out.as_deref())
}

/// `learn --profile`.
///
/// # Errors
/// The server's refusal.
pub fn draft(cli: &Shared, client: &Client, command: Command, out: Option<&Path>) -> Result<u8, Refusal> {
    let facts = client.call(&command)?;
    let list = |key: &str| -> Vec<String> {
        let items = facts.get(key).and_then(Value::as_array).into_iter().flatten();
        items.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let toml = facts.get("toml").and_then(Value::as_str).unwrap_or_default();
    let set = ReferenceSet::from_toml(toml, "the server's draft")?;
    // Whoever approves the draft says that the node was as it should be.
    let text = |key: &str| facts.get(key).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let mut notes =
        vec![format!("the node's TPM is of grade `{}`, its latest verdict `{}`", text("grade"), text("verdict"))];
    notes.extend(list("notes"));
    made(cli, &set, &notes, &list("differences"), out)
}

/// `plan-update`.
///
/// # Errors
/// Those of the sources and of [`update::plan`].
pub fn plan_update(cli: &Shared, client: &Client, arguments: &PlanUpdate) -> Result<u8, Refusal> {
    let before = find(client, &arguments.from, None)?;
    let until = WallTime::parse(&arguments.until).map_err(|what| {
        Refusal::new(codes::ADMIN_INVALID, what).at("--until").expected("RFC 3339, e.g. 2026-12-01T00:00:00Z")
    })?;
    let inputs = inputs(&arguments.sources, &before.set.profile)?;
    let image = inputs.uki.as_ref().map(|(name, _)| name.clone());
    let name = arguments.state.clone().or(image).ok_or_else(|| {
        Refusal::new(codes::ADMIN_INVALID, "the new state has no name").expected("--state, e.g. the kernel's version")
    })?;
    let plan = update::plan(&before.set, &inputs, &Transition { name: &name, until, now: WallTime::now() })?;
    made(cli, &plan.set, &plan.notes, &plan.differences, arguments.out.as_deref())
}

/// `keygen`.
///
/// # Errors
/// As [`key::generate`].
pub fn keygen(cli: &Shared, out: &Path, public: Option<&Path>) -> Result<u8, Refusal> {
    let pem = key::generate(out)?;
    if let Some(path) = public {
        write(path, pem.as_bytes())?;
        // For a server under another user.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
            .map_err(|e| Refusal::new(codes::ADMIN_INVALID, e.to_string()).at(path.display().to_string()))?;
    }
    let id = key::id(&key::load(out)?)?;
    let facts = json!({
        "schema": 1, "key": out, "id": id, "public": public,
        "public_pem": if public.is_none() { Some(&pem) } else { None },
    });
    print::facts(&facts, cli.json);
    Ok(DONE)
}

/// `sign`.
///
/// # Errors
/// As [`key::load`], [`read_document`] and [`Document::signed_by`].
pub fn sign(cli: &Shared, key: &Path, set: &Path, out: Option<PathBuf>) -> Result<u8, Refusal> {
    let key = key::load(key)?;
    let signed = read_document(set)?.signed_by(&key)?;
    let out = out.unwrap_or_else(|| set.with_extension("cose"));
    write(&out, &signed.bytes)?;
    print::facts(&json!({ "schema": 1, "set": of_file(&signed), "out": out, "signed_by": key::id(&key)? }), cli.json);
    Ok(DONE)
}

/// `diff`.
///
/// # Errors
/// As [`find`].
pub fn diff(cli: &Shared, client: &Client, before: &str, after: &str) -> Result<u8, Refusal> {
    let (before, after) = (find(client, before, None)?, find(client, after, None)?);
    let differences = difference::sets(&before.set, &after.set);
    if cli.json {
        say!("{:#}", json!({ "schema": 1, "differences": differences }));
    } else if differences.is_empty() {
        say!("They accept the same.");
    }
    if !cli.json {
        lines(&differences);
    }
    Ok(DONE)
}

/// `export`.
///
/// # Errors
/// As [`find`]; what a CoRIM can't say is named.
pub fn export(cli: &Shared, client: &Client, set: &str, corim: bool, toml: bool, out: &Path) -> Result<u8, Refusal> {
    let document = find(client, set, None)?;
    let (bytes, notes) = if corim {
        corim::export(&document.set)?
    } else if toml {
        (document.set.to_toml().into_bytes(), Vec::new())
    } else {
        (document.bytes.clone(), Vec::new())
    };
    write(out, &bytes)?;
    print::facts(&json!({ "schema": 1, "set": of_file(&document), "out": out, "notes": notes }), cli.json);
    Ok(DONE)
}

/// `show`.
///
/// # Errors
/// As [`find`].
pub fn show(cli: &Shared, client: &Client, set: &str, version: Option<u64>, toml: bool) -> Result<u8, Refusal> {
    let document = find(client, set, version)?;
    if toml {
        part(format_args!("{}", document.set.to_toml()));
    } else {
        print::facts(&json!({ "schema": 1, "set": of_file(&document) }), cli.json);
    }
    Ok(DONE)
}

/// Writes a made set, or prints it; what there is to say of it goes to people.
fn made(
    cli: &Shared,
    set: &ReferenceSet,
    notes: &[String],
    differences: &[String],
    out: Option<&Path>,
) -> Result<u8, Refusal> {
    let toml = set.to_toml();
    if let Some(path) = out {
        write(path, toml.as_bytes())?;
    }
    if cli.json {
        let document = Document::unsigned(set.clone())?;
        let facts = json!({
            "schema": 1, "set": of_file(&document), "out": out, "differences": differences, "notes": notes,
            "toml": if out.is_none() { Some(&toml) } else { None },
        });
        say!("{facts:#}");
        return Ok(DONE);
    }
    for note in notes {
        eprintln!("note: {}", print::plain(note));
    }
    lines(differences);
    match out {
        Some(path) => {
            let path = print::plain(&path.display().to_string());
            say!(
                "{path}: reference set `{}` version {}; `reference sign` it, then `reference import`",
                set.name,
                set.version
            );
        }
        // A plan's difference is what was asked for; the set goes where --out says.
        None if differences.is_empty() => part(format_args!("{toml}")),
        None => {}
    }
    Ok(DONE)
}

/// What a document says of itself: no import, no assignment.
fn of_file(document: &Document) -> Value {
    let mut facts = json!(Facts::of(document));
    if let Some(object) = facts.as_object_mut() {
        for key in ["assigned", "imported", "retired"] {
            object.remove(key);
        }
    }
    facts
}

fn lines(differences: &[String]) {
    for line in differences {
        say!("{}", print::plain(line));
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Refusal> {
    write_atomically(path, bytes)
        .map_err(|e| Refusal::new(codes::ADMIN_INVALID, e.to_string()).at(path.display().to_string()))
}
