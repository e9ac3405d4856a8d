//! What a listener's TLS is made of, ready to be used.
//!
//! Owns: certificates, keys, client authentication and versions, from the configuration and its files. Does not own:
//! reading the files ([`super::files`]), or a connection ([`super::stream`]).
#![forbid(unsafe_code)]

use std::sync::Arc;

use aws_lc_rs::digest;
use blitz_config::model::{ClientAuth, Config, Listener, Plain, Protocol, Tls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{InconsistentKeys, KeyLog, RootCertStore, ServerConfig};

use super::certificates::{Certificates, Named};
use super::quic::QuicMaterial;
use super::tickets::{TicketContext, TicketRoot};
use super::{Files, provider, validity};

/// Tickets that a client gets after a full handshake (count): browsers open several connections at once.
const TICKETS_SENT: usize = 2;

/// A listener's TLS: made beside the loop, used by it.
#[derive(Clone, Debug)]
pub struct TlsMaterial {
    /// Certificates with their names, in the order of the configuration.
    pub certificates: Arc<[Named]>,
    /// Names of the protocols inside (ALPN, RFC 7301), the preferred first.
    pub alpn: Vec<Vec<u8>>,
    /// Whether TLS 1.2 is spoken besides 1.3.
    pub allows_tls12: bool,
    /// What becomes of clients that speak without TLS.
    pub plain: Plain,
    /// Handshakes under way per worker (count).
    pub handshakes_max: u32,
    /// The same for QUIC, where that is spoken.
    pub quic: Option<Arc<QuicMaterial>>,
    table: Arc<Certificates>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    pub(super) tickets: TicketContext,
}

impl TlsMaterial {
    /// The TLS of every listener, in the order of the configuration; `None` where there is none.
    ///
    /// # Errors
    /// A line for each file that is not what it has to be, with its key path and path.
    pub fn compile(config: &Config, files: &Files) -> Result<Vec<Option<Arc<Self>>>, String> {
        let mut issues = Vec::new();
        let listeners = config.listeners.iter().enumerate();
        let material = listeners.map(|(index, listener)| {
            let tls = listener.tls.as_ref()?;
            match Self::of_listener(listener, tls, files) {
                Ok(material) => Some(Arc::new(material)),
                Err(why) => {
                    issues.extend(why.into_iter().map(|why| format!("listeners[{index}].tls.{why}")));
                    None
                }
            }
        });
        let material = material.collect();
        if issues.is_empty() { Ok(material) } else { Err(issues.join("\n")) }
    }

    fn of_listener(listener: &Listener, tls: &Tls, files: &Files) -> Result<Self, Vec<String>> {
        let mut issues = Vec::new();
        let mut certificates = Vec::with_capacity(tls.certificates.len());
        for (index, it) in tls.certificates.iter().enumerate() {
            match certificate(it, files) {
                Ok(certificate) => certificates.push(certificate),
                Err(why) => issues.push(format!("certificates[{index}].{why}")),
            }
        }
        let clients = match tls.client_auth.as_ref().map(|auth| clients(auth, files)).transpose() {
            Ok(clients) => clients,
            Err(why) => {
                issues.push(format!("client_auth.{why}"));
                None
            }
        };
        if !issues.is_empty() {
            return Err(issues);
        }
        let quic = match listener.speaks(Protocol::H3) {
            true => Some(Arc::new(QuicMaterial::of_listener(tls, &certificates, files)?)),
            false => None,
        };
        // HTTP/2 first, whatever the order in the file: who offers both is served better by it.
        let of = |wanted, name: &[u8]| listener.protocols.contains(&wanted).then(|| name.to_vec());
        let alpn = [of(Protocol::H2, b"h2"), of(Protocol::H1, b"http/1.1")].into_iter().flatten();
        Ok(Self {
            table: Arc::new(Certificates::of(&certificates)),
            certificates: certificates.into(),
            alpn: alpn.collect(),
            allows_tls12: tls.allows_tls12,
            plain: tls.plain,
            handshakes_max: tls.handshakes_max,
            quic,
            clients,
            tickets: tls.client_auth.as_ref().map_or_else(Default::default, |auth| context(auth, files)),
        })
    }

    /// What rustls needs for a connection. 0-RTT is off, and so is a store of sessions: tickets hold them.
    ///
    /// # Errors
    /// rustls refuses the combination; the words are its own.
    pub fn server(
        &self,
        root: &TicketRoot,
        key_log: Option<Arc<dyn KeyLog>>,
    ) -> Result<Arc<ServerConfig>, String> {
        let versions: &[_] = if self.allows_tls12 { &[&TLS13, &TLS12] } else { &[&TLS13] };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?;
        let builder = match &self.clients {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            None => builder.with_no_client_auth(),
        };
        let table: Arc<Certificates> = Arc::clone(&self.table);
        let mut config = builder.with_cert_resolver(table);
        config.alpn_protocols.clone_from(&self.alpn);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::new(root.tickets(self.tickets));
        config.send_tls13_tickets = TICKETS_SENT;
        config.max_early_data_size = 0;
        if let Some(key_log) = key_log {
            config.key_log = key_log;
        }
        Ok(Arc::new(config))
    }
}

impl TlsMaterial {
    /// Who judges the certificates of clients, where they are asked for.
    pub fn client_verifier(&self) -> Option<Arc<dyn ClientCertVerifier>> {
        self.clients.clone()
    }

    /// Whether the certificate that a resumed session began with is good now. The handshake has not shown it, and a
    /// session can be resumed again and again.
    pub(super) fn still_admits(&self, chain: Option<&[CertificateDer<'_>]>) -> bool {
        let Some(verifier) = &self.clients else { return true };
        match chain.and_then(<[_]>::split_first) {
            Some((first, others)) => verifier.verify_client_cert(first, others, UnixTime::now()).is_ok(),
            None => !verifier.client_auth_mandatory(),
        }
    }
}

/// A sentence for each certificate of `config` that is not valid at `now` (seconds since 1970).
pub fn expired(config: &Config, files: &Files, now: i64) -> Vec<String> {
    let mut sentences = Vec::new();
    let listeners = config.listeners.iter().enumerate().flat_map(|(index, listener)| {
        let certificates = listener.tls.iter().flat_map(|tls| tls.certificates.iter().enumerate());
        certificates
            .map(move |(position, it)| (format!("listeners[{index}].tls.certificates[{position}]"), it))
    });
    let upstreams = config.upstreams.iter().filter_map(|upstream| {
        let identity = upstream.link.tls.as_ref()?.identity.as_ref()?;
        Some((format!("{}.tls", upstream.key_path()), identity))
    });
    for (place, it) in listeners.chain(upstreams) {
        let first = files.get(&it.cert_path).and_then(|pem| CertificateDer::pem_slice_iter(pem).next());
        let Some((begin, end)) = first.and_then(Result::ok).and_then(|der| validity::validity(&der)) else {
            continue;
        };
        let what = if now > end {
            format!("has expired {} days ago", (now - end) / 86_400)
        } else if now < begin {
            format!("is not valid yet for {} days", (begin - now) / 86_400)
        } else {
            continue;
        };
        sentences.push(format!("{place}.cert_path: the certificate in {} {what}", it.cert_path));
    }
    sentences
}

fn bytes<'a>(files: &'a Files, key: &str, path: &str) -> Result<&'a [u8], String> {
    files.get(path).ok_or_else(|| format!("{key}: {path} was not read"))
}

pub(super) fn chain(files: &Files, key: &str, path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes(files, key, path)?).collect();
    let chain = chain.map_err(|error| format!("{key}: {path} is not PEM: {error}"))?;
    if chain.is_empty() { Err(format!("{key}: {path} holds no certificate in PEM")) } else { Ok(chain) }
}

pub(super) fn certificate(it: &blitz_config::model::Certificate, files: &Files) -> Result<Named, String> {
    let chain = chain(files, "cert_path", &it.cert_path)?;
    let key_path = &it.key_path;
    let key = PrivateKeyDer::from_pem_slice(bytes(files, "key_path", key_path)?)
        .map_err(|_| format!("key_path: {key_path} holds no private key in PEM that is not encrypted"))?;
    let key = provider().key_provider.load_private_key(key).map_err(|_| {
        format!("key_path: the key in {key_path} is none that can be used: RSA, ECDSA or Ed25519")
    })?;
    let names = {
        let first = chain.first().ok_or("cert_path: no certificate")?;
        let parsed = webpki::EndEntityCert::try_from(first).map_err(|error| {
            format!("cert_path: the first certificate in {} cannot be used: {error}", it.cert_path)
        })?;
        parsed.valid_dns_names().map(str::to_ascii_lowercase).collect()
    };
    let mut certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(_) => {
            return Err(format!(
                "key_path: the key in {key_path} is not that of the certificate in {}",
                it.cert_path
            ));
        }
    }
    if let Some(path) = &it.ocsp_path {
        let response = bytes(files, "ocsp_path", path)?;
        // OCSPResponse is a SEQUENCE (RFC 6960 section 4.2.1).
        if response.first() != Some(&0x30) {
            return Err(format!("ocsp_path: {path} is no OCSP response in DER"));
        }
        certified.ocsp = Some(response.to_vec());
    }
    Ok(Named { key: Arc::new(certified), names })
}

fn clients(auth: &ClientAuth, files: &Files) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(files, "ca_path", &auth.ca_path)? {
        roots
            .add(certificate)
            .map_err(|error| format!("ca_path: {} holds what is no authority: {error}", auth.ca_path))?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    if let Some(path) = &auth.crl_path {
        let lists: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(bytes(files, "crl_path", path)?).collect();
        let lists = lists.map_err(|error| format!("crl_path: {path} is not PEM: {error}"))?;
        if lists.is_empty() {
            return Err(format!("crl_path: {path} holds no revocation list in PEM"));
        }
        builder = builder.with_crls(lists).only_check_end_entity_revocation().enforce_revocation_expiration();
    }
    if !auth.is_required {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| format!("crl_path: the revocation lists cannot be used: {error}"))
}

/// What sessions with client certificates are authenticated under: the mode, the authorities and their revocation
/// lists.
fn context(auth: &ClientAuth, files: &Files) -> TicketContext {
    let mut digest = digest::Context::new(&digest::SHA256);
    digest.update(&[1, u8::from(auth.is_required)]);
    for path in [Some(&auth.ca_path), auth.crl_path.as_ref()] {
        let content = path.and_then(|path| files.get(path)).unwrap_or_default();
        digest.update(&(content.len() as u64).to_le_bytes());
        digest.update(content);
    }
    let mut context = TicketContext::default();
    context.copy_from_slice(digest.finish().as_ref());
    context
}
