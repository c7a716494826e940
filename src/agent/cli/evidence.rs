//! `evidence`: writes what this node would send, to be looked at or kept.

use std::path::Path;
use std::time::Duration;

use crate::agent::attester::{Attester, Certification};
use crate::codes::{self, Refusal, exit};
use crate::config::AgentConfig;
use crate::evidence::certification_binding;
use crate::output::say;
use crate::secret::{random, write_atomically};
use crate::tpm::{PcrSelection, Tpm, TpmAddress};

/// `leasehold-agent evidence`.
pub async fn write(config: AgentConfig, nonce: Option<&str>, pcrs: &str, out: &Path) -> anyhow::Result<u8> {
    let usage = |found: String| Refusal::new(codes::CONFIG_INVALID, found);
    let selection: PcrSelection = pcrs.parse().map_err(|e: String| usage(e).at("--pcrs"))?;
    let nonce = match nonce {
        None => random::<32>()?,
        Some(digits) => {
            let mut bytes = [0; 32];
            hex::decode_to_slice(digits, &mut bytes)
                .map_err(|_| usage(format!("`{digits}`")).at("--nonce").expected("64 hexadecimal digits"))?;
            bytes
        }
    };
    let (tpm, thread) =
        Tpm::spawn(TpmAddress::parse(&config.tpm.address)?, Duration::from_secs(120), &config.trust_domain)?;
    let gathered = gather(tpm, nonce, selection).await;
    thread.stop(Duration::from_secs(5))?;
    let evidence = gathered?;
    if out == Path::new("-") {
        use std::io::Write;
        std::io::stdout().write_all(&evidence)?;
    } else {
        write_atomically(out, &evidence)?;
        say!("{} bytes of evidence over nonce {} in {}", evidence.len(), hex::encode(nonce), out.display());
    }
    Ok(exit::DONE)
}

async fn gather(tpm: Tpm, nonce: [u8; 32], selection: PcrSelection) -> Result<Vec<u8>, Refusal> {
    let attester = Attester::new(tpm.clone()).await?;
    let binding = certification_binding(&nonce, &attester.node_key.name());
    let certified = tpm.certify_node_key(binding).await?;
    let certification = Certification { nonce, attest: certified.attest, signature: certified.signature };
    Ok(attester.gather(nonce, None, selection, &certification, Vec::new(), None).await?.evidence)
}
