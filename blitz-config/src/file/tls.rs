//! `[listeners.tls]` and `[upstreams.NAME.tls]` as they are written.
//!
//! Owns: the keys, their documentation, defaults and ranges. Does not own: what they mean together (see
//! `validate`), or what is in the files that they name (the data plane reads them).
#![forbid(unsafe_code)]

use super::Bounded;
use crate::model::{Tls, UpstreamTls};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Certificates of one listener (count).
pub const CERTIFICATES_MAX: usize = 16_384;

/// TLS on a listener. Paths are relative to the directory of this file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsFile {
    /// Certificates with their keys, chosen by the name that the client asks for (SNI): exact names
    /// first, then wildcards, else the first certificate. Several for one name are told apart by the
    /// signatures that the client knows; ECDSA goes before RSA. Required. 1 to 16384. Reloadable, for
    /// new connections; a reload reads the files again.
    #[schemars(length(min = 1, max = CERTIFICATES_MAX))]
    pub certificates: Vec<CertificateFile>,
    /// Lowest version of TLS. Default: `1.3`. Reloadable, for new connections.
    #[serde(default)]
    pub min_version: TlsVersionFile,
    /// Certificates of clients. Default: absent, which asks for none. Reloadable, for new connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ClientAuthFile")]
    pub client_auth: Option<ClientAuthFile>,
    /// What becomes of a client that speaks HTTP without TLS here. Default: `refuse`. Reloadable, for
    /// new connections.
    #[serde(default)]
    pub plain: PlainFile,
    /// Handshakes under way per worker (count). Beyond: the new connection is reset and counted.
    /// Default: 1000. Range: 1 to 1000000. Reloadable.
    #[serde(default = "default_handshakes")]
    pub handshakes_max: Bounded<1, 1_000_000>,
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFile {
    /// PEM file of the certificate and its chain, the certificate first. Required. Reloadable.
    #[schemars(length(min = 1))]
    pub cert_path: String,
    /// PEM file of the private key (PKCS#8, PKCS#1 or SEC1, not encrypted). Required. Reloadable.
    #[schemars(length(min = 1))]
    pub key_path: String,
    /// DER file of an OCSP response, sent along. Default: absent. Reloadable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub ocsp_path: Option<String>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsVersionFile {
    /// TLS 1.2 and 1.3.
    #[serde(rename = "1.2")]
    V12,
    /// TLS 1.3 only.
    #[default]
    #[serde(rename = "1.3")]
    V13,
}

/// Certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientAuthFile {
    /// Whether a client must have a certificate. Required. Reloadable.
    pub mode: ClientAuthModeFile,
    /// PEM file of the authorities that clients' certificates come from. Required. Reloadable.
    #[schemars(length(min = 1))]
    pub ca_path: String,
    /// PEM file of revocation lists, one for each authority that issues clients' certificates; an
    /// expired one refuses all of its authority. Default: absent, so that nothing is revoked. Reloadable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub crl_path: Option<String>,
}

/// Whether a client must have a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuthModeFile {
    /// It may have none; one that it has must be good.
    Optional,
    /// It must have one.
    Required,
}

/// What becomes of a client that speaks HTTP without TLS on a listener with TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlainFile {
    /// 400, and the connection is closed.
    #[default]
    Refuse,
    /// 308 to the same target under `https`.
    Redirect,
    /// It is served like any other.
    Serve,
}

/// TLS to the endpoints of an upstream. Paths are relative to the directory of this file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamTlsFile {
    /// Whether an endpoint has to show a valid certificate for its name. Off, anybody on the way can
    /// be the endpoint: for development. Default: true. Reloadable, for new connections.
    pub verify: bool,
    /// PEM file of the authorities that endpoints' certificates come from. Default: absent, which
    /// takes those of the system. Reloadable, for new connections; a reload reads the file again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub ca_path: Option<String>,
    /// Name that endpoints are asked for (SNI) and that their certificates have to be for; an address
    /// is verified and not asked for. Default: absent, which takes the host of the endpoint.
    /// Reloadable, for new connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub server_name: Option<String>,
    /// PEM file of the certificate and its chain that an endpoint is shown when it asks for one.
    /// Default: absent, which shows none. Goes with `key_path`. Reloadable, for new connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub cert_path: Option<String>,
    /// PEM file of its private key (PKCS#8, PKCS#1 or SEC1, not encrypted). Default: absent. Goes
    /// with `cert_path`. Reloadable, for new connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub key_path: Option<String>,
    /// Lowest version of TLS; endpoints that speak 1.3 are spoken to in 1.3 whatever it is. Default: `1.2`,
    /// since many servers inside a network know no other. Reloadable, for new connections.
    pub min_version: TlsVersionFile,
}

impl Default for UpstreamTlsFile {
    fn default() -> Self {
        Self {
            verify: UpstreamTls::default().verify,
            ca_path: None,
            server_name: None,
            cert_path: None,
            key_path: None,
            min_version: TlsVersionFile::V12,
        }
    }
}

fn default_handshakes() -> Bounded<1, 1_000_000> {
    Bounded::clamped(Tls::HANDSHAKES_RECOMMENDED.into())
}
