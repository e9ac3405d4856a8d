//! The server's end of a TLS handshake.
//!
//! Owns: telling TLS from plain HTTP by the first byte, the handshake within its deadline, what is counted and said
//! of it. Does not own: the bound on handshakes (`proxy::accept`), or the protocol itself (rustls).
#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rustls::server::UnbufferedServerConnection;
use rustls::{CertificateError, KeyLog, ServerConfig};

use super::agreed::{is_resumed, is_tls12, terms};
use super::certificates::take_asked_name;
use super::stream::Broken;
use super::tickets::TicketRoot;
use super::{TlsMaterial, TlsStream};
use crate::metrics::names::Metric;
use crate::runtime::{Chunk, Deadline, TcpStream, Transport};

/// The type of a handshake record (RFC 8446 section 5.1). No HTTP method begins with it.
const HANDSHAKE_RECORD: u8 = 22;

/// How long a refused client may take to read why.
const ALERT_LINGER: Duration = Duration::from_millis(500);

/// What all listeners of a worker share.
#[derive(Clone, Debug)]
pub struct Context {
    /// The root of ticket keys.
    pub tickets: TicketRoot,
    /// What is told of connections.
    pub diagnosis: Diagnosis,
}

/// What is told of TLS connections to whoever looks for a fault.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    /// `--tls-trace`: a line for each handshake.
    pub is_tracing: bool,
    /// `--tls-key-log`.
    pub key_log: Option<Arc<dyn KeyLog>>,
}

/// A listener's TLS in use.
pub struct Acceptor {
    material: Arc<TlsMaterial>,
    server: Arc<ServerConfig>,
    is_tracing: bool,
}

/// A handshake that ended well.
pub struct Handshaken {
    /// The sealed stream.
    pub stream: TlsStream,
    /// What to count.
    pub metric: Metric,
}

/// A handshake that did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeError {
    /// What to count.
    pub metric: Metric,
    /// A word for it.
    pub label: &'static str,
    /// Whether the time was up.
    pub is_timeout: bool,
}

impl Acceptor {
    /// Puts material to use.
    ///
    /// # Errors
    /// rustls refuses it; the words are its own.
    pub fn new(material: &Arc<TlsMaterial>, context: &Context) -> Result<Self, String> {
        let server = material.server(&context.tickets, context.diagnosis.key_log.clone())?;
        Ok(Self { material: Arc::clone(material), server, is_tracing: context.diagnosis.is_tracing })
    }

    /// What it was made of.
    pub fn material(&self) -> &TlsMaterial {
        &self.material
    }

    /// Whether bytes that begin a connection are HTTP without TLS: a method begins with a letter.
    pub fn is_plain(first: &[u8]) -> bool {
        first.first().is_some_and(|byte| *byte != HANDSHAKE_RECORD && byte.is_ascii_alphabetic())
    }

    /// Shakes hands until `deadline`. `received` are the bytes that have come, `client` is whom the
    /// log names.
    ///
    /// # Errors
    /// The label says why not; the client has been sent an alert where there is one.
    pub async fn accept(
        &self,
        tcp: TcpStream,
        received: Chunk,
        client: Option<SocketAddr>,
        deadline: &mut Deadline,
    ) -> Result<Handshaken, HandshakeError> {
        let tls = UnbufferedServerConnection::new(Arc::clone(&self.server));
        let tls = tls.map_err(|error| failed(Metric::TlsFailedOther, "setup", &error))?;
        let stream = TlsStream::new(tcp, tls);
        take_asked_name();
        // What it could not write, the next look at the connection tells.
        let _gone = stream.take_in(&received);
        let mut asked_name = take_asked_name();
        drop(received);
        let outcome = poll_fn(|cx| {
            let outcome = stream.poll_handshaken(cx);
            if let Some(name) = take_asked_name() {
                asked_name = Some(name);
            }
            if let Poll::Ready(outcome) = outcome {
                return Poll::Ready(Some(outcome));
            }
            deadline.poll_expired(cx).map(|_| None)
        })
        .await;
        let peer = client.map_or_else(|| "?".to_owned(), |client| client.to_string());
        let name = asked_name.as_deref().unwrap_or("-");
        match outcome {
            Some(Ok(())) if !stream.with_state(|state| self.admits(state)) => {
                stream.reset_on_close();
                let label = "client_certificate_of_session";
                log::debug!("tls: {peer} sni={name} failed={label}");
                Err(HandshakeError { metric: Metric::TlsFailedClientCertificate, label, is_timeout: false })
            }
            Some(Ok(())) => {
                let metric = stream.with_state(|state| {
                    if self.is_tracing || log::log_enabled!(log::Level::Debug) {
                        self.trace(&peer, name, state);
                    }
                    count(state)
                });
                Ok(Handshaken { stream, metric })
            }
            Some(Err(broken)) => {
                let error = explain(&broken);
                log::debug!("tls: {peer} sni={name} failed={} ({broken})", error.label);
                if matches!(broken, Broken::Tls(_)) {
                    let handle = stream.handle().clone();
                    let mut time = Deadline::new(&handle);
                    time.set_after(ALERT_LINGER);
                    stream.tcp().shutdown_write();
                    poll_fn(|cx| {
                        // Until the client has ended or broken the connection.
                        while let Poll::Ready(received) = stream.tcp().poll_receive(cx) {
                            if !matches!(received, Ok(Some(_))) {
                                return Poll::Ready(());
                            }
                        }
                        time.poll_expired(cx).map(|_| ())
                    })
                    .await;
                }
                Err(error)
            }
            None => {
                stream.reset_on_close();
                log::debug!("tls: {peer} sni={name} failed=timeout");
                let metric = Metric::TlsFailedTimeout;
                Err(HandshakeError { metric, label: "timeout", is_timeout: true })
            }
        }
    }

    fn admits(&self, state: &rustls::CommonState) -> bool {
        !is_resumed(state) || self.material.still_admits(state.peer_certificates())
    }

    fn trace(&self, peer: &str, name: &str, state: &rustls::CommonState) {
        let client = state.peer_certificates().map_or("no", |_| "yes");
        let level = if self.is_tracing { log::Level::Info } else { log::Level::Debug };
        log::log!(level, "tls: {peer} {} client_certificate={client}", terms(state, name));
    }
}

fn count(state: &rustls::CommonState) -> Metric {
    match (is_tls12(state), is_resumed(state)) {
        (true, false) => Metric::Tls12Full,
        (true, true) => Metric::Tls12Resumed,
        (false, false) => Metric::Tls13Full,
        (false, true) => Metric::Tls13Resumed,
    }
}

fn failed(metric: Metric, label: &'static str, error: &rustls::Error) -> HandshakeError {
    log::debug!("tls: {label}: {error}");
    HandshakeError { metric, label, is_timeout: false }
}

fn explain(broken: &Broken) -> HandshakeError {
    use rustls::Error;
    let (metric, label) = match broken {
        Broken::Ended | Broken::Io(_) => (Metric::TlsFailedClosed, "closed"),
        Broken::Tls(error) => match error {
            Error::InvalidCertificate(CertificateError::Revoked) => {
                (Metric::TlsFailedClientCertificate, "client_certificate_revoked")
            }
            Error::InvalidCertificate(_)
            | Error::NoCertificatesPresented
            | Error::InvalidCertRevocationList(_) => {
                (Metric::TlsFailedClientCertificate, "client_certificate")
            }
            Error::PeerIncompatible(_) => (Metric::TlsFailedNothingInCommon, "nothing_in_common"),
            Error::NoApplicationProtocol => (Metric::TlsFailedNothingInCommon, "no_common_protocol"),
            Error::AlertReceived(_) => (Metric::TlsFailedAlert, "alert"),
            Error::InvalidMessage(_)
            | Error::PeerMisbehaved(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::DecryptError => (Metric::TlsFailedMalformed, "malformed"),
            Error::General(words) if words.contains("no server certificate chain resolved") => {
                (Metric::TlsFailedNothingInCommon, "no_certificate")
            }
            _ => (Metric::TlsFailedOther, "other"),
        },
    };
    HandshakeError { metric, label, is_timeout: false }
}
