//! TLS on a listener.

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
#[derive(Clone, Debug, PartialEq, Eq)]
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
