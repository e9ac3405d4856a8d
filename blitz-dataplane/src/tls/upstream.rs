//! What TLS towards the endpoints of an upstream is made of, ready to be used.
//!
//! Owns: authorities, our certificate, versions and names, from the configuration and its files. Does not own: reading
//! the files ([`super::files`]), or a connection ([`super::connector`]).
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use aws_lc_rs::digest;
use blitz_config::Config;
use blitz_config::model::{self, EndpointHost, Upstream};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::files::SYSTEM_STORE;
use super::material::{certificate, chain};
use super::{Files, provider};

/// Names of an upstream whose sessions a worker remembers (count). Beyond: the name that came first is forgotten, and
/// its next handshake is a full one.
const SESSION_NAMES_MAX: usize = 256;

/// Sessions of one name that rustls remembers (count).
const SESSIONS_PER_NAME: usize = 8;

/// TLS to the endpoints of one upstream: made beside the loop, used by it.
#[derive(Debug)]
pub struct UpstreamTls {
    /// What rustls needs for a connection; its sessions are this worker's.
    pub(super) client: ClientConfig,
    /// What the certificate of each endpoint has to be for, in the order of the configuration; `None`: it is spoken to
    /// in clear.
    names: Vec<Option<ServerName<'static>>>,
    /// Stands for everything that decides whether a connection made with this is as good as one made with another.
    fingerprint: [u8; 32],
}

/// Two are equal when connections made with either can be used by both.
impl PartialEq for UpstreamTls {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for UpstreamTls {}

/// Makes verifiers, one for each set of authorities: the system's are many, and upstreams share them.
struct Verifiers<'a> {
    files: &'a Files,
    made: HashMap<Option<&'a str>, Result<Arc<dyn ServerCertVerifier>, String>>,
}

impl UpstreamTls {
    /// The TLS of every upstream, in the order of the configuration; `None` where there is none.
    ///
    /// # Errors
    /// A line for each file that is not what it has to be, and each name that none can be for, with its key path.
    pub fn compile(config: &Config, files: &Files) -> Result<Vec<Option<Arc<Self>>>, String> {
        let mut verifiers = Verifiers { files, made: HashMap::new() };
        let mut issues = Vec::new();
        let made = config.upstreams.iter().map(|upstream| {
            let tls = upstream.link.tls.as_ref()?;
            match Self::of_upstream(upstream, tls, files, &mut verifiers) {
                Ok(tls) => Some(Arc::new(tls)),
                Err(why) => {
                    issues.push(format!("{}.{why}", upstream.key_path()));
                    None
                }
            }
        });
        let made = made.collect();
        if issues.is_empty() { Ok(made) } else { Err(issues.join("\n")) }
    }

    /// What the certificate of an endpoint has to be for; `None`: it is spoken to in clear.
    pub(super) fn name(&self, endpoint: usize) -> Option<&ServerName<'static>> {
        self.names.get(endpoint).and_then(Option::as_ref)
    }

    fn of_upstream<'a>(
        upstream: &Upstream,
        tls: &'a model::UpstreamTls,
        files: &Files,
        verifiers: &mut Verifiers<'a>,
    ) -> Result<Self, String> {
        let verifier = if tls.verify {
            verifiers.of(tls.ca_path.as_deref()).map_err(|why| format!("tls.{why}"))?
        } else {
            Arc::new(Unverified(provider()))
        };
        let versions: &[_] = if tls.allows_tls12 { &[&TLS13, &TLS12] } else { &[&TLS13] };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(|error| format!("tls.min_version: {error}"))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut client = match &tls.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let named = certificate(identity, files).map_err(|why| format!("tls.{why}"))?;
                let resolver: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(named.key));
                builder.with_client_cert_resolver(resolver)
            }
        };
        let names = names(upstream, tls)?;
        let distinct: BTreeSet<_> = names.iter().flatten().map(ServerName::to_str).collect();
        let remembered = distinct.len().min(SESSION_NAMES_MAX);
        client.resumption = Resumption::in_memory_sessions(remembered * SESSIONS_PER_NAME);
        client.enable_early_data = false;
        Ok(Self { client, names, fingerprint: fingerprint(tls, files) })
    }
}

impl<'a> Verifiers<'a> {
    /// The verifier for the authorities at a path; `None`: the system's.
    fn of(&mut self, path: Option<&'a str>) -> Result<Arc<dyn ServerCertVerifier>, String> {
        self.made.entry(path).or_insert_with(|| make_verifier(path, self.files)).clone()
    }
}

fn make_verifier(path: Option<&str>, files: &Files) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    match path {
        Some(path) => {
            for certificate in chain(files, "ca_path", path)? {
                roots
                    .add(certificate)
                    .map_err(|error| format!("ca_path: {path} holds what is no authority: {error}"))?;
            }
        }
        None => {
            // Not ours to mend: what cannot be used is left out.
            let store = files.get(SYSTEM_STORE).unwrap_or_default();
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(store).filter_map(Result::ok));
            if roots.is_empty() {
                return Err(
                    "ca_path: absent, and the system's store holds no authority in PEM; name a file \
                            here, or set verify = false"
                        .to_owned(),
                );
            }
        }
    }
    match WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build() {
        Ok(verifier) => Ok(verifier),
        Err(error) => Err(format!("ca_path: the authorities cannot be used: {error}")),
    }
}

fn names(upstream: &Upstream, tls: &model::UpstreamTls) -> Result<Vec<Option<ServerName<'static>>>, String> {
    let name = |host: &EndpointHost| match host {
        EndpointHost::Address(address) => Ok(ServerName::from(*address)),
        EndpointHost::Name(name) => ServerName::try_from(name.clone()),
    };
    if let Some(host) = &tls.server_name {
        let name = name(host)
            .map_err(|_| format!("tls.server_name: {host} is no name that a certificate can be for"))?;
        return Ok(upstream.endpoints.iter().map(|it| it.is_tls.then(|| name.clone())).collect());
    }
    let endpoints = upstream.endpoints.iter().enumerate().map(|(index, endpoint)| {
        let name = endpoint.is_tls.then(|| name(&endpoint.host)).transpose();
        name.map_err(|_| {
            format!(
                "endpoints[{index}].address: {} is no name that a certificate can be for; set tls.server_name",
                endpoint.host
            )
        })
    });
    endpoints.collect()
}

/// What was verified, and against what; who we say we are; what may be agreed on. The names are the endpoints' own.
fn fingerprint(tls: &model::UpstreamTls, files: &Files) -> [u8; 32] {
    let authorities = tls.ca_path.as_deref().unwrap_or(SYSTEM_STORE);
    let identity = tls.identity.iter().flat_map(|it| [it.cert_path.as_str(), it.key_path.as_str()]);
    let mut digest = digest::Context::new(&digest::SHA256);
    digest.update(&[u8::from(tls.verify), u8::from(tls.allows_tls12)]);
    for path in tls.verify.then_some(authorities).into_iter().chain(identity) {
        let content = files.get(path).unwrap_or_default();
        digest.update(&(content.len() as u64).to_le_bytes());
        digest.update(content);
    }
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest.finish().as_ref());
    fingerprint
}

/// Takes whatever certificate an endpoint shows; that it has the key is still asked for.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
