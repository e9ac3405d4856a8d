//! TLS inside QUIC: what is said to BoringSSL is said here.
//!
//! The certificates, their choice by name and the judgement of clients' certificates are those of [`super::material`]
//! and [`super::certificates`]; only the signatures are made by another library. Tickets have keys of their own
//! ([`super::tickets`]), so that they resume over QUIC only.
//!
//! Owns: certificates and keys in BoringSSL's form, the callbacks. Does not own: the transport (`http3/`), early data
//! ([`super::early`]).
#![forbid(unsafe_code)]

use std::sync::Arc;

use blitz_config::model::Tls;
use boring::nid::Nid;
use boring::pkey::{Id, PKey, Private};
use boring::ssl::{
    ClientHello, ExtensionType, NameType, SelectCertError, SslAlert, SslContextBuilder, SslMethod, SslRef,
    SslVerifyError, SslVerifyMode,
};
use boring::x509::X509;
use rustls::KeyLog;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;

use super::certificates::{Named, Table};
use super::{Context, Files, TlsMaterial, early};
use crate::sys::boring::{set_early_data_context, set_ticket_keys};

/// Key agreements, the preferred first: those of `super::provider`.
const GROUPS: &str = "X25519MLKEM768:X25519:P-256:P-384";

/// A certificate with its key.
struct Identity {
    chain: Vec<X509>,
    key: PKey<Private>,
    ocsp: Option<Vec<u8>>,
    /// Signatures that it can make, as TLS numbers them (RFC 8446 section 4.2.3).
    schemes: &'static [u16],
    cost: u8,
}

/// The certificates of one listener.
pub struct QuicMaterial(Table<Identity>);

impl std::fmt::Debug for QuicMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QuicMaterial")
    }
}

impl QuicMaterial {
    /// The certificates of `tls`, whose names are known from `named`.
    ///
    /// # Errors
    /// A sentence for each that BoringSSL does not take, with its key path.
    pub(super) fn of_listener(tls: &Tls, named: &[Named], files: &Files) -> Result<Self, Vec<String>> {
        let mut issues = Vec::new();
        let mut identities = Vec::with_capacity(named.len());
        for (index, (it, named)) in tls.certificates.iter().zip(named).enumerate() {
            match identity(it, files, named.key.ocsp.clone()) {
                Ok(identity) => identities.push((Arc::new(identity), named.names.as_slice())),
                Err(why) => issues.push(format!("certificates[{index}].{why}")),
            }
        }
        if !issues.is_empty() {
            return Err(issues);
        }
        Ok(Self(Table::new(identities, |identity| identity.cost)))
    }
}

fn identity(
    it: &blitz_config::model::Certificate,
    files: &Files,
    ocsp: Option<Vec<u8>>,
) -> Result<Identity, String> {
    let read = |path: &str| files.get(path).unwrap_or_default();
    let chain = X509::stack_from_pem(read(&it.cert_path))
        .map_err(|error| format!("cert_path: {} cannot be used for HTTP/3: {error}", it.cert_path))?;
    let key = PKey::private_key_from_pem(read(&it.key_path))
        .map_err(|error| format!("key_path: {} cannot be used for HTTP/3: {error}", it.key_path))?;
    let curve = || key.ec_key().ok().and_then(|key| key.group().curve_name());
    let (schemes, cost): (&[u16], u8) = match key.id() {
        Id::EC => match curve() {
            Some(Nid::X9_62_PRIME256V1) => (&[0x0403], 0),
            Some(Nid::SECP384R1) => (&[0x0503], 0),
            _ => (&[0x0603], 0),
        },
        Id::ED25519 => (&[0x0807], 1),
        _ => (&[0x0804, 0x0805, 0x0806], 2),
    };
    Ok(Identity { chain, key, ocsp, schemes, cost })
}

/// A context for the handshakes of one listener. `table` names the table of flights that early data is held against;
/// `promises` is what clients that send some rely on, and `None` where none is taken.
///
/// # Errors
/// What BoringSSL says.
pub(crate) fn context(
    material: &TlsMaterial,
    quic: &Arc<QuicMaterial>,
    tls: &Context,
    table: u64,
    promises: Option<&str>,
) -> Result<SslContextBuilder, String> {
    let mut builder = SslContextBuilder::new(SslMethod::tls()).map_err(|error| error.to_string())?;
    builder.set_curves_list(GROUPS).map_err(|error| error.to_string())?;
    let early = promises.map(|promises| early::context(table, promises));
    // A session is good where its keys are, which are those of what it was authenticated under; BoringSSL asks for a
    // word of it nevertheless, and compares it.
    builder.set_session_id_context(&material.tickets).map_err(|error| error.to_string())?;
    set_ticket_keys(&mut builder, tls.tickets.quic_tickets(material.tickets));
    let quic = Arc::clone(quic);
    builder.set_select_certificate_callback(move |mut hello| {
        if let Some(early) = &early {
            set_early_data_context(hello.ssl_mut(), early).map_err(|_| SelectCertError::ERROR)?;
        }
        choose(&quic, hello)
    });
    if let Some(verifier) = material.client_verifier() {
        let mut mode = SslVerifyMode::PEER;
        mode.set(SslVerifyMode::FAIL_IF_NO_PEER_CERT, verifier.client_auth_mandatory());
        builder.set_custom_verify_callback(mode, move |ssl| verify(&*verifier, ssl));
    }
    if let Some(log) = tls.diagnosis.key_log.clone() {
        builder.set_keylog_callback(move |_, line| relay(&*log, line));
    }
    Ok(builder)
}

/// Gives the connection the certificate for the name that is asked for.
fn choose(material: &QuicMaterial, mut hello: ClientHello<'_>) -> Result<(), SelectCertError> {
    let name = hello.servername(NameType::HOST_NAME).map(str::to_ascii_lowercase);
    let offered = hello.get_extension(ExtensionType::SIGNATURE_ALGORITHMS).unwrap_or_default();
    // A length of two bytes, then two for each.
    let offered: Vec<u16> = offered
        .get(2..)
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
        .collect();
    let fits = |identity: &&Arc<Identity>| identity.schemes.iter().any(|scheme| offered.contains(scheme));
    let identity = material.0.choose(name.as_deref(), fits).ok_or(SelectCertError::ERROR)?;
    equip(hello.ssl_mut(), identity).map_err(|_| SelectCertError::ERROR)
}

fn equip(ssl: &mut SslRef, identity: &Identity) -> Result<(), boring::error::ErrorStack> {
    let mut chain = identity.chain.iter();
    if let Some(certificate) = chain.next() {
        ssl.set_certificate(certificate)?;
    }
    for certificate in chain {
        ssl.add_chain_cert(certificate)?;
    }
    ssl.set_private_key(&identity.key)?;
    if let Some(ocsp) = &identity.ocsp {
        ssl.set_ocsp_status(ocsp)?;
    }
    Ok(())
}

/// Judges a client's certificate as over TCP.
fn verify(verifier: &dyn ClientCertVerifier, ssl: &mut SslRef) -> Result<(), SslVerifyError> {
    let bad = |alert| move |_| SslVerifyError::Invalid(alert);
    let Some(leaf) = ssl.peer_certificate() else {
        // Asked for only where there is one.
        return Err(SslVerifyError::Invalid(SslAlert::CERTIFICATE_REQUIRED));
    };
    let der = |certificate: &boring::x509::X509Ref| certificate.to_der().map(CertificateDer::from);
    let leaf = der(&leaf).map_err(|_| SslVerifyError::Invalid(SslAlert::BAD_CERTIFICATE))?;
    let chain: Result<Vec<_>, _> = ssl.peer_cert_chain().into_iter().flatten().map(der).collect();
    let chain = chain.map_err(|_| SslVerifyError::Invalid(SslAlert::BAD_CERTIFICATE))?;
    verifier
        .verify_client_cert(&leaf, &chain, UnixTime::now())
        .map(drop)
        .map_err(bad(SslAlert::BAD_CERTIFICATE))
}

/// Whether the certificate that a resumed session began with is good now; true for a full handshake, which has shown
/// it.
pub(crate) fn still_admits(material: &TlsMaterial, quic: &quiche::Connection) -> bool {
    let chain = quic.peer_cert_chain().unwrap_or_default();
    let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
    !quic.is_resumed()
        || material.still_admits(Some(&chain).filter(|chain| !chain.is_empty()).map(Vec::as_slice))
}

/// Passes a line of the key log on: `LABEL CLIENT_RANDOM SECRET`, the latter two in hex.
fn relay(log: &dyn KeyLog, line: &str) {
    let mut words = line.split(' ');
    let (Some(label), Some(random), Some(secret)) = (words.next(), words.next(), words.next()) else {
        return;
    };
    if let (Some(random), Some(secret)) = (bytes(random), bytes(secret)) {
        log.log(label, &random, &secret);
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    type Line = (String, Vec<u8>, Vec<u8>);

    #[derive(Debug, Default)]
    struct Lines(Mutex<Vec<Line>>);

    impl KeyLog for Lines {
        fn log(&self, label: &str, random: &[u8], secret: &[u8]) {
            self.0.lock().unwrap().push((label.to_owned(), random.to_vec(), secret.to_vec()));
        }
    }

    #[test]
    fn lines_of_the_key_log_are_passed_on_and_others_are_not() {
        let lines = Lines::default();
        for line in ["CLIENT_RANDOM 00ff 1234", "CLIENT_RANDOM 00ff", "X zz 00", ""] {
            relay(&lines, line);
        }
        let expected = ("CLIENT_RANDOM".to_owned(), vec![0, 0xff], vec![0x12, 0x34]);
        assert_eq!(*lines.0.lock().unwrap(), [expected]);
    }
}
