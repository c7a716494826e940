//! The wrapping key sealed to this machine's TPM.

use std::path::Path;
use std::time::Duration;

use super::{fresh, invalid};
use crate::codes::{self, Refusal};
use crate::secret::{self, ExposeSecret, Zeroizing};
use crate::tpm::{Sealed, TpmAddress, TpmError, Vault};

/// How long the TPM may take at the start. Discrete parts need a second or two for what is done.
const DEADLINE: Duration = Duration::from_secs(30);

/// Opens the sealed key at `path`; makes it, or seals the one that lies there in the clear.
pub fn open(path: &Path, address: &str, may_create: bool) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let vault = Vault::new(TpmAddress::parse(address).map_err(|refusal| refusal.at("keys.tpm"))?, DEADLINE);
    let failed = |error: TpmError| explain(error, path, address);
    // A killed writer may have left a key in the clear there.
    secret::sweep_leftovers(path);
    if !path.exists() {
        let key = fresh(path, may_create)?;
        let sealed = vault.seal(key.as_slice()).map_err(failed)?;
        write(path, &sealed)?;
        tracing::warn!(
            file = %path.display(), tpm = address, srk = sealed.srk_name(),
            "made the wrapping key, sealed to the TPM: it can't be opened elsewhere, nor after the TPM was cleared"
        );
        return Ok(Zeroizing::new(key.to_vec()));
    }
    let bytes = secret::read_private(path)?;
    let bytes = bytes.expose_secret();
    if Sealed::looks_like(bytes) {
        let sealed = Sealed::decode(bytes).map_err(|refusal| refusal.at(path.display().to_string()))?;
        return vault.unseal(&sealed).map_err(failed);
    }
    if bytes.len() != 32 {
        return Err(invalid(path, format!("{} bytes", bytes.len()))
            .expected("exactly 32 bytes, or a wrapping key sealed to a TPM"));
    }
    let key = Zeroizing::new(bytes.to_vec());
    let sealed = vault.seal(&key).map_err(failed)?;
    write(path, &sealed)?;
    tracing::warn!(
        file = %path.display(), tpm = address, srk = sealed.srk_name(),
        "the wrapping key lay in the clear and is sealed to the TPM now: keep one copy offline against the \
         TPM's loss, and destroy all others, backups too"
    );
    Ok(key)
}

/// The old file stands until the new one is whole and known to open.
fn write(path: &Path, sealed: &Sealed) -> Result<(), Refusal> {
    secret::write_atomically(path, &sealed.encode()).map_err(|e| invalid(path, e.to_string()))
}

fn explain(error: TpmError, path: &Path, address: &str) -> Refusal {
    let elsewhere = matches!(error, TpmError::SealedElsewhere { .. });
    let refusal = Refusal::from(error).at(format!("the wrapping key {} and keys.tpm `{address}`", path.display()));
    match refusal.code {
        codes::TPM_UNAVAILABLE | codes::TPM_LOCKOUT => {
            refusal.expected("a TPM that answers: the server can't start without its key; try again later")
        }
        _ if elsewhere => refusal.expected(
            "the TPM that sealed it; or, in the file's place, the offline copy of the 32-byte key, which is sealed anew then",
        ),
        _ => refusal,
    }
}
