//! TLS on a listener, and towards the endpoints of an upstream.

use super::{Config, EndpointHost, Upstream};
use crate::file::key_text;

/// TLS on a listener. Paths are as written: relative ones start at the directory of the configuration
/// file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// At least one; the first serves clients that ask for no name or an unknown one.
    pub certificates: Vec<Certificate>,
    /// Whether TLS 1.2 is spoken besides 1.3.
    pub allows_tls12: bool,
    /// Certificates of clients; `None`: not asked for.
    pub client_auth: Option<ClientAuth>,
    /// What becomes of clients that speak HTTP without TLS.
    pub plain: Plain,
    /// Handshakes under way per worker (count).
    pub handshakes_max: u32,
}

/// A certificate with its key, by path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Certificate {
    /// PEM: the certificate and its chain.
    pub cert_path: String,
    /// PEM: the private key.
    pub key_path: String,
    /// DER: an OCSP response to be sent along.
    pub ocsp_path: Option<String>,
}

/// Certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// Whether a client must have one.
    pub is_required: bool,
    /// PEM: the authorities.
    pub ca_path: String,
    /// PEM: their revocation lists.
    pub crl_path: Option<String>,
}

/// What becomes of a client that speaks HTTP without TLS on a listener with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// 400, then close.
    Refuse,
    /// 308 to the same target under `https`.
    Redirect,
    /// Served like any other.
    Serve,
}

/// TLS to the endpoints of an upstream. Paths are as written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// Whether an endpoint has to show a certificate for its name from an authority that is trusted.
    pub verify: bool,
    /// PEM: the authorities; `None`: those of the system.
    pub ca_path: Option<String>,
    /// What endpoints are asked for (SNI) and their certificates have to be for; `None`: the endpoint's host.
    pub server_name: Option<EndpointHost>,
    /// What is shown to an endpoint that asks for a client's certificate.
    pub identity: Option<Certificate>,
    /// Whether TLS 1.2 is spoken besides 1.3.
    pub allows_tls12: bool,
}

impl UpstreamTls {
    /// Whether endpoints are verified against the authorities of the system.
    pub fn uses_system_store(&self) -> bool {
        self.verify && self.ca_path.is_none()
    }

    /// Every file that is named, with the key below `tls` that names it.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let identity = self.identity.iter();
        let identity = identity.flat_map(|it| [("cert_path", &it.cert_path), ("key_path", &it.key_path)]);
        self.ca_path
            .iter()
            .map(|path| ("ca_path", path))
            .chain(identity)
            .map(|(key, path)| (key, path.as_str()))
    }
}

impl Default for UpstreamTls {
    /// The system's authorities, the endpoint's own name, no certificate of ours, TLS 1.2 or better.
    fn default() -> Self {
        Self { verify: true, ca_path: None, server_name: None, identity: None, allows_tls12: true }
    }
}

impl Config {
    /// Every file that is named, with the key path that names it.
    pub fn files(&self) -> impl Iterator<Item = (String, &str)> {
        let listeners = self.listeners.iter().enumerate().flat_map(|(index, listener)| {
            let paths = listener.tls.iter().flat_map(Tls::paths);
            paths.map(move |(key, path)| (format!("listeners[{index}].tls.{key}"), path))
        });
        let upstreams = self.upstreams.iter().flat_map(|upstream| {
            let paths = upstream.link.tls.iter().flat_map(UpstreamTls::paths);
            paths.map(|(key, path)| (format!("{}.tls.{key}", upstream.key_path()), path))
        });
        listeners.chain(upstreams)
    }
}

impl Upstream {
    /// Its place in a configuration file.
    pub fn key_path(&self) -> String {
        format!("upstreams.{}", key_text(&self.name))
    }
}

impl Tls {
    /// Every file that is named, with the key path below `tls` that names it.
    pub fn paths(&self) -> impl Iterator<Item = (String, &str)> {
        let certificates = self.certificates.iter().enumerate().flat_map(|(index, it)| {
            let key = move |key: &str| format!("certificates[{index}].{key}");
            [(key("cert_path"), it.cert_path.as_str()), (key("key_path"), it.key_path.as_str())]
                .into_iter()
                .chain(it.ocsp_path.as_deref().map(|path| (key("ocsp_path"), path)))
        });
        let client = self.client_auth.iter().flat_map(|it| {
            [("client_auth.ca_path".to_owned(), it.ca_path.as_str())]
                .into_iter()
                .chain(it.crl_path.as_deref().map(|path| ("client_auth.crl_path".to_owned(), path)))
        });
        certificates.chain(client)
    }
}
