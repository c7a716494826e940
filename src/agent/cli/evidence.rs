//! `evidence`: writes what this node would send, and the keys to check it with, for `leasehold-server appraise`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent::attester::{Attester, Certification, Stated};
use crate::codes::{self, Refusal, exit};
use crate::config::AgentConfig;
use crate::evidence::certification_binding;
use crate::output::say;
use crate::secret::{random, write_atomically};
use crate::tpm::{PcrSelection, Tpm, TpmAddress};
use crate::verify::profile::Profile;

/// What is quoted where nothing else is asked for.
const PCRS: &str = "sha256:0-7";

/// What the evidence is to be over.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// 64 hexadecimal digits; a random one if absent.
    pub nonce: Option<&'a str>,
    /// `BANK:LIST`.
    pub pcrs: Option<&'a str>,
    /// The firmware profile whose PCRs are quoted instead.
    pub profile: Option<&'a str>,
}

/// Evidence, and the public areas (TPMT_PUBLIC) of the keys that made it.
struct Made {
    evidence: Vec<u8>,
    ak: Vec<u8>,
    node_key: Vec<u8>,
}

/// `leasehold-agent evidence`.
pub async fn write(config: AgentConfig, wanted: Wanted<'_>, out: &Path) -> anyhow::Result<u8> {
    let selection = wanted.selection()?;
    let nonce = wanted.nonce()?;
    let (tpm, thread) =
        Tpm::spawn(TpmAddress::parse(&config.tpm.address)?, Duration::from_secs(120), &config.trust_domain)?;
    let made = gather(tpm, nonce, selection).await;
    thread.stop(Duration::from_secs(5))?;
    let Made { evidence, ak, node_key } = made?;
    if out == Path::new("-") {
        use std::io::Write;
        std::io::stdout().write_all(&evidence)?;
        return Ok(exit::DONE);
    }
    let (ak_file, node_key_file) = (beside(out, ".ak"), beside(out, ".node-key"));
    write_atomically(out, &evidence)?;
    write_atomically(&ak_file, &ak)?;
    write_atomically(&node_key_file, &node_key)?;
    let (nonce, out) = (hex::encode(nonce), out.display());
    say!("{} bytes of evidence over nonce {nonce} in {out}", evidence.len());
    say!(
        "leasehold-server appraise --evidence {out} --ak {} --node-key {} --nonce {nonce} --profile {}",
        ak_file.display(),
        node_key_file.display(),
        wanted.profile.unwrap_or("PROFILE")
    );
    Ok(exit::DONE)
}

impl Wanted<'_> {
    fn selection(&self) -> Result<PcrSelection, Refusal> {
        let Some(name) = self.profile else {
            return self.pcrs.unwrap_or(PCRS).parse().map_err(|e: String| usage(e).at("--pcrs"));
        };
        let names = || Profile::shipped_names().collect::<Vec<_>>().join(", ");
        let unknown = || usage(format!("`{}`", name.escape_debug())).at("--profile");
        let profile = Profile::shipped(name).ok_or_else(|| unknown().expected(format!("one of {}", names())))?;
        let bank = profile.banks.first().ok_or_else(|| unknown().expected("a profile with a bank"))?;
        PcrSelection::new(*bank, profile.pcrs()).map_err(|e| usage(e).at("--profile"))
    }

    fn nonce(&self) -> anyhow::Result<[u8; 32]> {
        let Some(digits) = self.nonce else { return Ok(random::<32>()?) };
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes)
            .map_err(|_| usage(format!("`{digits}`")).at("--nonce").expected("64 hexadecimal digits"))?;
        Ok(bytes)
    }
}

async fn gather(tpm: Tpm, nonce: [u8; 32], selection: PcrSelection) -> Result<Made, Refusal> {
    let attester = Attester::new(tpm.clone()).await?;
    let binding = certification_binding(&nonce, &attester.node_key.name());
    let certified = tpm.certify_node_key(binding).await?;
    let certification = Certification { nonce, attest: certified.attest, signature: certified.signature };
    let evidence = attester.gather(nonce, None, selection, &certification, Stated::default(), None).await?.evidence;
    let identity = attester.identity();
    Ok(Made { evidence, ak: identity.ak_public.clone(), node_key: identity.node_key_public.clone() })
}

/// The file's name with something behind it.
fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn usage(found: impl Into<String>) -> Refusal {
    Refusal::new(codes::CONFIG_INVALID, found)
}
