//! Where the authorities are that the system trusts.
//!
//! Owns: the places that are looked at. Does not own: reading what is there ([`super::files`]).
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;

/// The variable that names another place, as it does for OpenSSL.
const VARIABLE: &str = "SSL_CERT_FILE";

/// Where systems keep all authorities in one file of PEM, the first that is there is taken.
const PLACES: &[&str] = &[
    // Debian, Ubuntu, Alpine, Arch, Gentoo.
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora, RHEL.
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    // SUSE.
    "/etc/ssl/ca-bundle.pem",
    // The BSDs, and containers that follow them.
    "/etc/ssl/cert.pem",
];

/// The file of the system's authorities.
///
/// # Errors
/// There is none; the words name the places and the remedy.
pub(super) fn path() -> Result<PathBuf, String> {
    find(std::env::var_os(VARIABLE), PLACES)
}

fn find(named: Option<OsString>, places: &[&str]) -> Result<PathBuf, String> {
    let remedy = "install one (often the package ca-certificates), name a file here, or set verify = false";
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        let path = PathBuf::from(named);
        if path.is_file() {
            return Ok(path);
        }
        return Err(format!(
            "absent, and {VARIABLE} names {}, where no file of authorities is; {remedy}",
            path.display()
        ));
    }
    places.iter().map(PathBuf::from).find(|path| path.is_file()).ok_or_else(|| {
        format!(
            "absent, and the system has no store of authorities (looked for {}); {remedy}",
            places.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_there_is_taken_and_the_variable_goes_before() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (a, b) = (path("a.pem"), path("b.pem"));
        let places = [a.as_str(), b.as_str()];
        let error = find(None, &places).expect_err("no store");
        assert!(error.contains(&a) && error.contains(&b) && error.contains("verify = false"), "{error}");
        std::fs::write(&b, "x").expect("a file");
        assert_eq!(find(Some(OsString::new()), &places), Ok(PathBuf::from(&b)));
        std::fs::write(&a, "x").expect("a file");
        assert_eq!(find(None, &places), Ok(PathBuf::from(&a)));
        assert_eq!(find(Some(OsString::from(&b)), &places), Ok(PathBuf::from(&b)));
        let error = find(Some(OsString::from(path("c.pem"))), &places).expect_err("no file");
        assert!(error.contains("SSL_CERT_FILE names") && error.contains("c.pem"), "{error}");
    }
}
