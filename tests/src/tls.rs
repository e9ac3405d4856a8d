//! Certificates made at run time, and a TLS client that tells what was agreed on.
//!
//! Owns: authorities, what they issue and revoke, files of it; a client on rustls. Does not own: other clients
//! (curl and openssl are run by the tests that need them).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned,
};
use tempfile::TempDir;

use crate::PATIENCE;

/// The signature of a certificate's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA on P-256.
    Ecdsa,
    /// RSA of 2048 bits.
    Rsa,
}

/// A certificate with its key, in PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// Who issues certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, in PEM.
    pub certificate: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Panics
    /// Never, with a good random generator.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// A certificate for these names.
    #[track_caller]
    pub fn issue(&self, names: &[&str], algorithm: Algorithm) -> Pair {
        self.issue_with(names, algorithm, |_| {})
    }

    /// A certificate with a serial number, to be revoked by it.
    #[track_caller]
    pub fn issue_numbered(&self, name: &str, serial: u64) -> Pair {
        self.issue_with(&[name], Algorithm::Ecdsa, |params| {
            params.serial_number = Some(SerialNumber::from(serial))
        })
    }

    /// A certificate that is good for so many seconds from now.
    #[track_caller]
    pub fn issue_for_seconds(&self, name: &str, seconds: u64) -> Pair {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let until = since + std::time::Duration::from_secs(seconds);
        self.issue_with(&[name], Algorithm::Ecdsa, |params| {
            params.not_after = rcgen::date_time_ymd(1970, 1, 1) + until;
        })
    }

    /// A certificate that was good in the year 2001.
    #[track_caller]
    pub fn issue_expired(&self, name: &str) -> Pair {
        self.issue_with(&[name], Algorithm::Ecdsa, |params| {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2001, 12, 31);
        })
    }

    fn issue_with(
        &self,
        names: &[&str],
        algorithm: Algorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let key = match algorithm {
            Algorithm::Ecdsa => KeyPair::generate(),
            Algorithm::Rsa => KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256),
        };
        let key = key.expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// A revocation list in PEM, good until the year `until`.
    #[track_caller]
    pub fn revoke(&self, serials: &[u64], until: i32) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2000, 1, 1),
            next_update: rcgen::date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).and_then(|list| list.pem()).expect("a revocation list")
    }
}

/// An authority and a folder of files for a gateway.
#[derive(Debug)]
pub struct Pki {
    /// Issues the gateway's certificates.
    pub authority: Authority,
    folder: TempDir,
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}

impl Pki {
    /// A new authority, and an empty folder.
    ///
    /// # Panics
    /// When no folder can be made.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a scratch folder can be made");
        let pki = Self { authority: Authority::new("Blitz test authority"), folder };
        pki.write("ca.pem", &pki.authority.certificate);
        pki
    }

    /// A new authority, and a certificate for `edge.test`.
    ///
    /// # Panics
    /// When no folder can be made.
    pub fn edge() -> Self {
        let pki = Self::new();
        pki.certificate("edge", &["edge.test"], Algorithm::Ecdsa);
        pki
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file aside and renames it, as deployment tools do.
    #[track_caller]
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, aside) = (self.path(name), self.path(&format!("{name}.new")));
        std::fs::write(&aside, text)
            .and_then(|()| std::fs::rename(&aside, &path))
            .expect("a file can be written");
        path
    }

    /// Writes a pair as `NAME.crt` and `NAME.key`.
    #[track_caller]
    pub fn write_pair(&self, name: &str, pair: &Pair) {
        self.write(&format!("{name}.crt"), &pair.certificate);
        self.write(&format!("{name}.key"), &pair.key);
    }

    /// Issues a pair and writes it.
    #[track_caller]
    pub fn certificate(&self, name: &str, names: &[&str], algorithm: Algorithm) {
        self.write_pair(name, &self.authority.issue(names, algorithm));
    }

    /// The configuration of a listener with these pairs; `more` goes into its table of TLS.
    pub fn listener(&self, pairs: &[&str], more: &str) -> String {
        let show = |path: PathBuf| path.display().to_string();
        let pair = |name: &&str| {
            let (certificate, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
            format!("{{ cert_path = \"{}\", key_path = \"{}\" }}", show(certificate), show(key))
        };
        let pairs = pairs.iter().map(pair).collect::<Vec<_>>().join(", ");
        format!("{}[listeners.tls]\ncertificates = [{pairs}]\n{more}\n", crate::gateway::LISTENER)
    }

    /// The configuration of a listener that speaks all protocols with the certificate of [`Self::edge`]; `more` goes
    /// into its table of TLS.
    pub fn h3_listener(&self, more: &str) -> String {
        self.listener(&["edge"], more).replace("[\"h1\"]", "[\"h1\", \"h2\", \"h3\"]")
    }

    /// A client that trusts the authority.
    pub fn client(&self) -> TlsSetup {
        TlsSetup { roots: self.authority.certificate.clone(), ..TlsSetup::default() }
    }
}

/// How a client shakes hands.
#[derive(Clone, Debug, Default)]
pub struct TlsSetup {
    roots: String,
    identity: Option<Pair>,
    alpn: Vec<Vec<u8>>,
    is_tls12: bool,
    schemes: Vec<SignatureScheme>,
    groups: Vec<rustls::NamedGroup>,
}

impl TlsSetup {
    /// Shows a certificate when asked.
    pub fn identity(mut self, pair: &Pair) -> Self {
        self.identity = Some(pair.clone());
        self
    }

    /// Offers a protocol.
    pub fn alpn(mut self, protocol: &str) -> Self {
        self.alpn.push(protocol.as_bytes().to_vec());
        self
    }

    /// Speaks TLS 1.2 only.
    pub fn tls12(mut self) -> Self {
        self.is_tls12 = true;
        self
    }

    /// Knows only these signatures.
    pub fn schemes(mut self, schemes: &[SignatureScheme]) -> Self {
        self.schemes = schemes.to_vec();
        self
    }

    /// Knows only this group.
    pub fn group(mut self, group: rustls::NamedGroup) -> Self {
        self.groups.push(group);
        self
    }

    /// The client's configuration. What it remembers of sessions is kept in it.
    ///
    /// # Panics
    /// When what was set does not go together.
    pub fn build(self) -> Arc<ClientConfig> {
        let mut provider = aws_lc_rs::default_provider();
        if !self.groups.is_empty() {
            provider.kx_groups.retain(|group| self.groups.contains(&group.name()));
        }
        let provider = Arc::new(provider);
        let versions: &[_] =
            if self.is_tls12 { &[&rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.roots.as_bytes()) {
            roots.add(certificate.expect("PEM")).expect("an authority");
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .expect("a verifier");
        let verifier = Choosy { verifier, schemes: self.schemes };
        let builder = ClientConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
            .with_protocol_versions(versions)
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain =
                    CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).map(|it| it.expect("PEM"));
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("PEM");
                builder.with_client_auth_cert(chain.collect(), key).expect("a pair")
            }
        };
        config.alpn_protocols = self.alpn;
        config.resumption = Resumption::in_memory_sessions(64);
        Arc::new(config)
    }
}

/// The usual verifier for a client that knows few signatures.
#[derive(Debug)]
struct Choosy {
    verifier: Arc<WebPkiServerVerifier>,
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Choosy {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier.verify_server_cert(certificate, chain, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        if self.schemes.is_empty() { self.verifier.supported_verify_schemes() } else { self.schemes.clone() }
    }
}

/// One connection, after its handshake.
#[derive(Debug)]
pub struct TlsClient {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl TlsClient {
    /// Connects and shakes hands, asking for `name`.
    ///
    /// # Errors
    /// What either side says against it.
    pub fn connect(address: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> std::io::Result<Self> {
        let tcp = TcpStream::connect_timeout(&address, PATIENCE)?;
        Self::over(tcp, name, config)
    }

    /// Shakes hands over a connection.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn over(mut tcp: TcpStream, name: &str, config: &Arc<ClientConfig>) -> std::io::Result<Self> {
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
        let mut connection =
            ClientConnection::new(Arc::clone(config), name).map_err(std::io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        Ok(Self { stream: StreamOwned::new(connection, tcp) })
    }

    /// What was agreed on.
    pub fn agreed(&self) -> &ClientConnection {
        &self.stream.conn
    }

    /// Whether a session was resumed.
    pub fn is_resumed(&self) -> bool {
        self.stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// The server's certificate in DER.
    pub fn certificate(&self) -> Vec<u8> {
        let chain = self.stream.conn.peer_certificates().unwrap_or_default();
        chain.first().map(|certificate| certificate.to_vec()).unwrap_or_default()
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    /// All that comes until the end that the protocol prescribes.
    ///
    /// # Errors
    /// When it is cut, or the server says why not.
    pub fn rest(&mut self) -> std::io::Result<String> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A GET, and the whole answer; the connection is closed after it.
    ///
    /// # Errors
    /// As [`Self::rest`].
    pub fn get(&mut self, path: &str) -> std::io::Result<String> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"))?;
        self.rest()
    }

    /// The connection under it, past TLS.
    pub fn tcp(&mut self) -> &mut TcpStream {
        &mut self.stream.sock
    }

    /// Asks for fresh keys in both directions.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn update_keys(&mut self) -> std::io::Result<()> {
        self.stream.conn.refresh_traffic_keys().map_err(std::io::Error::other)
    }

    /// The answer to a GET on a connection that is kept: its last bytes are `end`.
    ///
    /// # Errors
    /// When the connection ends before.
    pub fn get_kept(&mut self, path: &str, end: &str) -> std::io::Result<String> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))?;
        self.until(end)
    }

    /// What comes, up to bytes that end with `end`.
    ///
    /// # Errors
    /// When the connection ends before.
    pub fn until(&mut self, end: &str) -> std::io::Result<String> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(end.as_bytes()) {
            let mut part = [0; 4096];
            match self.stream.read(&mut part)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => bytes.extend(part.iter().take(count)),
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn finish(&mut self) -> std::io::Result<()> {
        self.stream.conn.send_close_notify();
        self.stream.flush()
    }
}

/// A certificate of a PEM text, in DER.
///
/// # Panics
/// When it holds none.
pub fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM").to_vec()
}

/// Reads a file.
///
/// # Panics
/// When it cannot be read.
#[track_caller]
pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
