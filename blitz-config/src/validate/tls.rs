//! `[listeners.tls]` and `[upstreams.NAME.tls]`: from the file's words to the model.
//!
//! Owns: that there is a certificate, that a certificate has its key, that paths are not empty. Does not own: what is
//! in the files (the data plane reads them).
#![forbid(unsafe_code)]

use super::narrow;
use crate::address;
use crate::error::Issues;
use crate::file::{
    CERTIFICATES_MAX, ClientAuthModeFile, PlainFile, TlsFile, TlsVersionFile, UpstreamTlsFile,
};
use crate::model::{Certificate, ClientAuth, Plain, Tls, UpstreamTls};

/// The TLS of one listener; `path` is its place in the file.
pub(super) fn tls(file: &TlsFile, path: &str, issues: &mut Issues) -> Tls {
    let count = file.certificates.len();
    if count == 0 {
        issues.add(format!("{path}.certificates"), "empty; accepted: at least one certificate with its key");
    } else if count > CERTIFICATES_MAX {
        issues.add(
            format!("{path}.certificates"),
            format!("{count} certificates; accepted: at most {CERTIFICATES_MAX}"),
        );
    }
    let certificates = file.certificates.iter().map(|it| Certificate {
        cert_path: it.cert_path.clone(),
        key_path: it.key_path.clone(),
        ocsp_path: it.ocsp_path.clone(),
    });
    let client_auth = file.client_auth.as_ref().map(|it| ClientAuth {
        is_required: it.mode == ClientAuthModeFile::Required,
        ca_path: it.ca_path.clone(),
        crl_path: it.crl_path.clone(),
    });
    let tls = Tls {
        certificates: certificates.collect(),
        allows_tls12: file.min_version == TlsVersionFile::V12,
        client_auth,
        plain: match file.plain {
            PlainFile::Refuse => Plain::Refuse,
            PlainFile::Redirect => Plain::Redirect,
            PlainFile::Serve => Plain::Serve,
        },
        handshakes_max: narrow(file.handshakes_max.value()),
    };
    for (key, _) in tls.paths().filter(|(_, file)| file.is_empty()) {
        issues.add(format!("{path}.{key}"), "empty; accepted: the path of a file");
    }
    tls
}

/// The TLS of one upstream; `path` is its place in the file.
pub(super) fn upstream(file: &UpstreamTlsFile, path: &str, issues: &mut Issues) -> UpstreamTls {
    let server_name = file.server_name.as_deref().and_then(|name| {
        address::server_name(name).map_err(|why| issues.add(format!("{path}.server_name"), why)).ok()
    });
    let identity = match (&file.cert_path, &file.key_path) {
        (Some(cert_path), Some(key_path)) => {
            Some(Certificate { cert_path: cert_path.clone(), key_path: key_path.clone(), ocsp_path: None })
        }
        (Some(_), None) => {
            issues.add(format!("{path}.key_path"), "missing; a certificate needs its key");
            None
        }
        (None, Some(_)) => {
            issues.add(format!("{path}.cert_path"), "missing; a key needs its certificate");
            None
        }
        (None, None) => None,
    };
    let tls = UpstreamTls {
        verify: file.verify,
        ca_path: file.ca_path.clone(),
        server_name,
        identity,
        allows_tls12: file.min_version == TlsVersionFile::V12,
    };
    for (key, _) in tls.paths().filter(|(_, file)| file.is_empty()) {
        issues.add(format!("{path}.{key}"), "empty; accepted: the path of a file");
    }
    tls
}
