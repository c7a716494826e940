//! `svid`: what this very process would get, by the Workload API.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use der::asn1::AnyRef;
use der::{Decode, Encode, Reader, SliceReader};
use serde_json::{Value, json};
use x509_cert::Certificate;

use crate::clock::WallTime;
use crate::codes::{self, Refusal, exit};
use crate::config::{self, AgentConfig, AgentSockets};
use crate::delivery::workload_api::client::{Client, Failure, FetchedX509};
use crate::output::{part, say};
use crate::secret::{self, Zeroizing};

/// The largest token that is read from a file or from standard input.
const LARGEST: u64 = 64 << 10;

#[derive(Debug, Subcommand)]
pub enum SvidCommand {
    /// Fetch the X.509-SVIDs of this process and show whose they are and how long they hold.
    ///
    /// With --out it also writes svid.pem (the chain), svid_key.pem (PKCS#8) and bundle.pem (the CAs) into DIR,
    /// each with mode 0600. They are as they are now: nothing renews or removes them.
    X509 {
        #[command(flatten)]
        place: Place,
        /// Only this identity.
        #[arg(long, value_name = "SPIFFE-ID")]
        id: Option<String>,
        /// Write PEM files into this directory; it is made (0700) if it is missing.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Fetch a JWT-SVID of this process for an audience and print it.
    ///
    /// Whoever has the text can use it until it ends: mind where it goes.
    Jwt {
        #[command(flatten)]
        place: Place,
        /// Whom the token is for; may be given several times, one is best.
        #[arg(long, value_name = "AUDIENCE", required = true)]
        audience: Vec<String>,
        /// Only this identity; without it the default one is printed, and all of them with --json.
        #[arg(long, value_name = "SPIFFE-ID")]
        id: Option<String>,
    },
    /// Have the agent judge a JWT-SVID that somebody showed, and print what it says.
    ///
    /// The token is read from a file or from standard input, never from the command line, which others can see.
    Validate {
        #[command(flatten)]
        place: Place,
        /// Whom the token must be for: the name of the service that it was shown to.
        #[arg(long, value_name = "AUDIENCE")]
        audience: String,
        /// The file with the token; `-` is standard input.
        #[arg(value_name = "FILE", default_value = "-")]
        token: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct Place {
    /// The Workload API's socket; without it SPIFFE_ENDPOINT_SOCKET, then the configuration, then the default.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON (schema 1).
    #[arg(long)]
    json: bool,
}

/// Carries one out.
///
/// # Errors
/// What is wrong with files; what the agent refuses is an exit code: 1 invalid, 4 refused, 5 unavailable.
pub async fn carry_out(command: SvidCommand, configuration: &Path) -> anyhow::Result<u8> {
    let done = match command {
        SvidCommand::X509 { place, id, out } => {
            let mut client = connect(&place, configuration).await?;
            match client.x509().await {
                Ok(svids) => Ok(x509(svids, id.as_deref(), out.as_deref(), place.json)?),
                Err(failure) => Err(failure),
            }
        }
        SvidCommand::Jwt { place, audience, id } => {
            jwt(connect(&place, configuration).await?, &place, audience, id).await
        }
        SvidCommand::Validate { place, audience, token } => {
            let token = read(&token)?;
            validate(connect(&place, configuration).await?, &place, &audience, token.trim()).await
        }
    };
    Ok(done.unwrap_or_else(|Failure { refusal, exit }| {
        eprintln!("leasehold-agent: {refusal}");
        exit
    }))
}

async fn connect(place: &Place, configuration: &Path) -> anyhow::Result<Client> {
    Ok(Client::connect(&socket(place, configuration)?).await.map_err(|failure| failure.refusal)?)
}

fn socket(place: &Place, configuration: &Path) -> Result<PathBuf, Refusal> {
    const VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
    if let Some(path) = &place.socket {
        return Ok(path.clone());
    }
    if let Ok(address) = std::env::var(VARIABLE) {
        // Workload Endpoint, 4: a URI of the scheme `unix` with an absolute path and nothing else.
        let path = address.strip_prefix("unix:").map(|rest| rest.strip_prefix("//").unwrap_or(rest));
        return path
            .filter(|path| path.starts_with('/'))
            .map(PathBuf::from)
            .ok_or_else(|| Refusal::new(codes::CONFIG_INVALID, address).at(VARIABLE).expected("unix:///PATH"));
    }
    // A workload need not be able to read the agent's configuration.
    Ok(config::load::<AgentConfig>(configuration)
        .map_or_else(|_| AgentSockets::default(), |config| config.sockets)
        .workload)
}

fn x509(svids: Vec<FetchedX509>, id: Option<&str>, out: Option<&Path>, json: bool) -> anyhow::Result<u8> {
    let svids: Vec<_> = svids.into_iter().filter(|svid| id.is_none_or(|id| svid.id == id)).collect();
    let Some(first) = svids.first() else {
        anyhow::bail!("none of this process's identities is {}", id.unwrap_or_default());
    };
    let written = out.map(|directory| write(first, directory)).transpose()?;
    let facts = svids.iter().map(facts).collect::<anyhow::Result<Vec<_>>>()?;
    if json {
        let shown = json!({ "schema": 1, "svids": facts, "files": written });
        say!("{}", serde_json::to_string_pretty(&shown)?);
        return Ok(exit::DONE);
    }
    for svid in facts {
        let text = |name: &str| svid.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        say!("{}\n  serial     {}\n  not after  {}", text("id"), text("serial"), text("not_after"));
    }
    for file in written.into_iter().flatten() {
        say!("wrote {file}");
    }
    Ok(exit::DONE)
}

fn facts(svid: &FetchedX509) -> anyhow::Result<Value> {
    let leaf = ders(&svid.chain)?.into_iter().next().context("the SVID has no certificate")?;
    let leaf = Certificate::from_der(&leaf).context("the SVID can't be read")?;
    let tbs = leaf.tbs_certificate();
    Ok(json!({
        "id": svid.id,
        "serial": hex::encode(tbs.serial_number().as_bytes()),
        "not_before": WallTime(tbs.validity().not_before.to_unix_duration().as_secs()).to_string(),
        "not_after": WallTime(tbs.validity().not_after.to_unix_duration().as_secs()).to_string(),
        "hint": svid.hint,
    }))
}

/// Writes the three files, the key first: a certificate is never there without its key.
fn write(svid: &FetchedX509, directory: &Path) -> anyhow::Result<Vec<String>> {
    secret::private_directory(directory)?;
    let certificates = |der: &[u8]| -> anyhow::Result<String> {
        let all = ders(der)?.iter().map(|der| pem("CERTIFICATE", der)).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(all.concat())
    };
    let key = Zeroizing::new(pem("PRIVATE KEY", &svid.key)?);
    let (chain, bundle) = (certificates(&svid.chain)?, certificates(&svid.bundle)?);
    let mut written = Vec::new();
    for (name, text) in [("svid_key.pem", key.as_str()), ("svid.pem", &chain), ("bundle.pem", &bundle)] {
        let path = directory.join(name);
        secret::write_atomically(&path, text.as_bytes())?;
        written.push(path.display().to_string());
    }
    Ok(written)
}

fn pem(label: &str, der: &[u8]) -> anyhow::Result<String> {
    der::pem::encode_string(label, der::pem::LineEnding::LF, der).map_err(|e| anyhow::anyhow!("{label}: {e}"))
}

/// The structures that stand one after the other.
fn ders(joined: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut reader = SliceReader::new(joined)?;
    let mut all = Vec::new();
    while !reader.is_finished() {
        all.push(reader.decode::<AnyRef<'_>>()?.to_der()?);
    }
    Ok(all)
}

async fn jwt(mut client: Client, place: &Place, audience: Vec<String>, id: Option<String>) -> Result<u8, Failure> {
    let svids = client.jwt(audience.clone(), id).await?;
    if place.json {
        let all: Vec<Value> = svids
            .iter()
            .map(|svid| json!({ "id": svid.id, "token": svid.token.as_str(), "hint": svid.hint }))
            .collect();
        say!("{:#}", json!({ "schema": 1, "audience": audience, "svids": all }));
    } else if let Some(first) = svids.first() {
        say!("{}", first.token.as_str());
    }
    Ok(exit::DONE)
}

async fn validate(mut client: Client, place: &Place, audience: &str, token: &str) -> Result<u8, Failure> {
    let (id, claims) = client.validate(audience, token).await?;
    if place.json {
        say!("{:#}", json!({ "schema": 1, "valid": true, "id": id, "claims": claims }));
    } else {
        part(format_args!("{id}\n"));
        for (name, value) in &claims {
            say!("  {name}  {value}");
        }
    }
    Ok(exit::DONE)
}

fn read(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    if path == Path::new("-") {
        std::io::stdin().take(LARGEST).read_to_string(&mut text).context("standard input")?;
    } else {
        let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
        file.take(LARGEST).read_to_string(&mut text).with_context(|| path.display().to_string())?;
    }
    Ok(text)
}
