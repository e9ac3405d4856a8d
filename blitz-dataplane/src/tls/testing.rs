//! A listener and an upstream with certificates made at run time, for the tests of both ends.

use std::sync::Arc;

use blitz_config::{Config, Format, Overrides};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::handshake::{Acceptor, Context, Diagnosis};
use super::tickets::TicketRoot;
use super::{Connector, Files, TlsMaterial, UpstreamTls, provider};
use crate::secret::Secret;

/// What files hold: an authority, a certificate from it for `edge.test` with its key, and another authority.
pub(super) struct Certificates {
    pub(super) authority: String,
    pub(super) certificate: String,
    pub(super) key: String,
    pub(super) stranger: String,
}

fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    (Issuer::new(params, key), certificate)
}

impl Certificates {
    pub(super) fn new() -> Self {
        let (issuer, authority_pem) = authority("authority");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["edge.test".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate").pem();
        Self {
            authority: authority_pem,
            certificate,
            key: key.serialize_pem(),
            stranger: authority("stranger").1,
        }
    }

    /// A server of one version on rustls alone, which shows the certificate.
    pub(super) fn server(&self, version: &'static SupportedProtocolVersion) -> Arc<ServerConfig> {
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes()).map(|it| it.expect("PEM"));
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM");
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_no_client_auth()
            .with_single_cert(chain.collect(), key);
        Arc::new(config.expect("a pair"))
    }

    pub(super) fn files(&self) -> Files {
        Files::of(&[
            ("ca.pem", self.authority.as_bytes()),
            ("edge.crt", self.certificate.as_bytes()),
            ("edge.key", self.key.as_bytes()),
            ("stranger.pem", self.stranger.as_bytes()),
        ])
    }
}

/// A listener that speaks TLS 1.2 and 1.3 and HTTP in these versions, and an upstream with this table.
pub(super) fn config(protocols: &str, tls: &str) -> Config {
    let text = format!(
        "[[listeners]]\nname = \"edge\"\naddress = \"127.0.0.1:1\"\nprotocols = {protocols}\n[listeners.tls]\n\
         certificates = [{{ cert_path = \"edge.crt\", key_path = \"edge.key\" }}]\nmin_version = \"1.2\"\n\
         [upstreams.u]\nendpoints = [{{ address = \"edge.test:1\" }}]\n[upstreams.u.tls]\n{tls}\n\
         [[routes]]\nupstream = \"u\"\n"
    );
    blitz_config::load(&text, Format::Toml, "test", &Overrides::default()).expect("a configuration")
}

pub(super) fn acceptor(config: &Config, files: &Files) -> Acceptor {
    let material = TlsMaterial::compile(config, files).expect("material");
    let tickets = TicketRoot::new(&Secret::generate().expect("a secret"));
    let context = Context { tickets, diagnosis: Diagnosis::default() };
    Acceptor::new(material[0].as_ref().expect("a listener with TLS"), &context).expect("an acceptor")
}

pub(super) fn material(config: &Config, files: &Files) -> Arc<UpstreamTls> {
    let material = UpstreamTls::compile(config, files).expect("material");
    Arc::clone(material[0].as_ref().expect("an upstream with TLS"))
}

pub(super) fn connector(config: &Config, files: &Files) -> Connector {
    Connector::new(&material(config, files), &Diagnosis::default())
}
