//! Secure Boot's variables, from files: as Linux shows them (`db-d719b2cb-…`, four bytes of
//! attributes first), or as they are installed (`db.esl`, `db.auth`).

use std::collections::BTreeMap;
use std::path::Path;

use super::unusable;
use crate::codes::Refusal;
use crate::measurements::LogHash;
use crate::measurements::uefi::{Signature, SignatureKind, SignatureList};
use crate::verify::references::SecureBootReference;

/// The variables that are read, by the name their file begins with.
const NAMES: [&str; 4] = ["PK", "KEK", "db", "dbx"];
/// The largest variable, in bytes: dbx has some 24 KiB.
const LIMIT: u64 = 1 << 20;
/// EFI_CERT_TYPE_PKCS7_GUID, which a variable's signed update names.
const PKCS7: [u8; 16] =
    [0x9D, 0xD2, 0xAF, 0x4A, 0xDF, 0x68, 0xEE, 0x49, 0x8A, 0xA9, 0x34, 0x7D, 0x37, 0x56, 0x65, 0xA7];

/// The contents of the variables found, by name.
pub type Variables = BTreeMap<String, Vec<u8>>;

/// Reads the variables of a directory.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`] naming the file; also for two files of one variable.
pub fn read(directory: &Path) -> Result<Variables, Refusal> {
    let failed = |e: std::io::Error| unusable(directory.display().to_string(), e.to_string());
    let mut found = Variables::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some((name, form)) = form_of(&file) else { continue };
        let at = path.display().to_string();
        let bytes = super::files::read(&path, LIMIT)?;
        let contents = contents(&bytes, form).map_err(|what| unusable(&at, what))?;
        certificates(contents).map_err(|what| unusable(&at, what))?;
        if found.insert(name.to_owned(), contents.to_vec()).is_some() {
            return Err(unusable(at, format!("{name} stands in two files")));
        }
    }
    match found.is_empty() {
        true => Err(unusable(directory.display().to_string(), "none of PK, KEK, db and dbx is in it")
            .expected("files as in /sys/firmware/efi/efivars, or PK.esl, KEK.esl, db.esl, dbx.esl")),
        false => Ok(found),
    }
}

/// What these variables say of Secure Boot: their contents, and whom `db` lets vouch for images;
/// with `signer` (DER), only that certificate.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`] when the signer isn't in `db`.
pub fn reference(variables: &Variables, signer: Option<&[u8]>) -> Result<SecureBootReference, Refusal> {
    let empty = Vec::new();
    let db = certificates(variables.get("db").unwrap_or(&empty)).map_err(|what| unusable("db", what))?;
    let vouching: Vec<Vec<u8>> = db
        .iter()
        .filter(|entry| signer.is_none_or(|signer| entry.data == signer))
        .map(|entry| LogHash::Sha256.digest(&[&entry.owner.0, entry.data]))
        .collect();
    if let (Some(_), true) = (signer, vouching.is_empty()) {
        return Err(unusable("--signer", "a certificate that isn't in db")
            .expected("one that is: the firmware starts nothing by another"));
    }
    let digest = |contents: &Vec<u8>| vec![LogHash::Sha256.digest(&[contents])];
    Ok(SecureBootReference {
        authorities: vouching,
        variables: variables.iter().map(|(name, contents)| (name.clone(), digest(contents))).collect(),
    })
}

#[derive(Clone, Copy)]
enum Form {
    Efivars,
    List,
    Signed,
}

fn form_of(file: &str) -> Option<(&'static str, Form)> {
    let (name, form) = match file.split_once(['-', '.'])? {
        (name, "esl") => (name, Form::List),
        (name, "auth") => (name, Form::Signed),
        (name, rest) if rest.len() == 36 && file.as_bytes().get(name.len()) == Some(&b'-') => (name, Form::Efivars),
        _ => return None,
    };
    NAMES.into_iter().find(|known| *known == name).map(|known| (known, form))
}

/// The variable's data within the file.
fn contents(bytes: &[u8], form: Form) -> Result<&[u8], String> {
    match form {
        Form::List => Ok(bytes),
        Form::Efivars => bytes.get(4..).ok_or_else(|| format!("{} bytes: no attributes", bytes.len())),
        // EFI_VARIABLE_AUTHENTICATION_2: 16 bytes of time, then a WIN_CERTIFICATE that states its length.
        Form::Signed => {
            let length = u32_at(bytes, 16).ok_or("it ends within its time stamp")?;
            if bytes.get(24..40) != Some(&PKCS7) {
                return Err("no PKCS #7 signature follows its time stamp".to_owned());
            }
            bytes.get(16usize.saturating_add(length)..).ok_or_else(|| "it ends within its signature".to_owned())
        }
    }
}

/// The EFI_SIGNATURE_DATA (owner and certificate) of each X.509 entry.
fn certificates(contents: &[u8]) -> Result<Vec<Signature<'_>>, String> {
    let lists = SignatureList::parse_all(contents).ok_or("it is no signature list")?;
    let certificates = lists.into_iter().filter(|list| list.kind == SignatureKind::X509);
    Ok(certificates.flat_map(|list| list.signatures).collect())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}
