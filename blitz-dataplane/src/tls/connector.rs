//! The client's end of a TLS handshake, with an endpoint.
//!
//! Owns: the handshake within its deadline, what is counted and said of it, the names of what can go wrong. Does not
//! own: what it is made with ([`super::upstream`]), the TCP connection before it (`proxy::connect`), or the protocol
//! itself (rustls).
#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, InvalidMessage};

use super::agreed::{is_resumed, is_tls12, terms};
use super::handshake::Diagnosis;
use super::stream::Broken;
use super::upstream::UpstreamTls;
use super::{TlsClientStream, TlsStream};
use crate::exchange::{ErrorKind, ProxyError};
use crate::metrics::names::Metric;
use crate::runtime::{Deadline, TcpStream, Transport};

/// The TLS of an upstream in use. Two that are equal make the same connections.
pub struct Connector {
    material: Arc<UpstreamTls>,
    client: Arc<ClientConfig>,
    is_tracing: bool,
}

impl PartialEq for Connector {
    fn eq(&self, other: &Self) -> bool {
        self.material == other.material
    }
}

impl Eq for Connector {}

/// A handshake that did not end well.
#[derive(Clone, Copy, Debug)]
pub struct ConnectFailure {
    /// What to count.
    pub metric: Metric,
    /// Why. Nothing was sent, so another try is allowed.
    pub error: ProxyError,
}

impl Connector {
    /// Puts material to use.
    pub fn new(material: &Arc<UpstreamTls>, diagnosis: &Diagnosis) -> Self {
        let mut client = material.client.clone();
        if let Some(key_log) = &diagnosis.key_log {
            client.key_log = Arc::clone(key_log);
        }
        Self { material: Arc::clone(material), client: Arc::new(client), is_tracing: diagnosis.is_tracing }
    }

    /// What the certificate of an endpoint of the upstream has to be for; `None`: it is spoken to in clear.
    pub fn name(&self, endpoint: usize) -> Option<&ServerName<'static>> {
        self.material.name(endpoint)
    }

    /// Shakes hands until `deadline` with whoever `name` names; `offered` are the protocols for the inside (ALPN, RFC
    /// 7301), the preferred first. `address` is whom the log names. Also returns what to count.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the connection.
    ///
    /// # Errors
    /// Why there is no connection; the endpoint has been sent an alert where there is one.
    pub async fn connect(
        &self,
        tcp: TcpStream,
        name: &ServerName<'static>,
        offered: &[&[u8]],
        address: SocketAddr,
        deadline: &mut Deadline,
    ) -> Result<(TlsClientStream, Metric), ConnectFailure> {
        let offered = offered.iter().map(|protocol| protocol.to_vec()).collect();
        let tls = UnbufferedClientConnection::new_with_alpn(Arc::clone(&self.client), name.clone(), offered);
        let tls = tls.map_err(|error| explain(&Broken::Tls(error)))?;
        let stream = TlsStream::new(tcp, tls);
        // What it could not write, the next look at the connection tells.
        let _gone = stream.take_in(&[]);
        let outcome = poll_fn(|cx| match stream.poll_handshaken(cx) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending => deadline.poll_expired(cx).map(|_| None),
        })
        .await;
        let broken = match outcome {
            Some(Ok(())) => {
                let metric = stream.with_state(|state| {
                    let level = if self.is_tracing { log::Level::Info } else { log::Level::Debug };
                    if log::log_enabled!(level) {
                        let name = name.to_str();
                        log::log!(level, "tls: side=upstream {address} {}", terms(state, &name));
                    }
                    match (is_tls12(state), is_resumed(state)) {
                        (true, false) => Metric::UpstreamTls12Full,
                        (true, true) => Metric::UpstreamTls12Resumed,
                        (false, false) => Metric::UpstreamTls13Full,
                        (false, true) => Metric::UpstreamTls13Resumed,
                    }
                });
                return Ok((stream, metric));
            }
            Some(Err(broken)) => Some(broken),
            None => None,
        };
        let failure = broken.as_ref().map_or(TIMEOUT, explain);
        let why = broken.as_ref().map_or_else(|| "no answer in time".to_owned(), ToString::to_string);
        log::debug!(
            "tls: side=upstream {address} sni={} failed={} ({why})",
            name.to_str(),
            failure.error.detail
        );
        if matches!(broken, Some(Broken::Tls(_))) {
            // Whoever looks after the endpoint shall find in its log what we have against it.
            poll_fn(|cx| match stream.poll_flushed(cx) {
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => deadline.poll_expired(cx).map(|_| ()),
            })
            .await;
        }
        Err(failure)
    }
}

/// What an endpoint has said against a connection, when an alert is what broke it.
pub fn alert(error: &io::Error) -> Option<&'static str> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(alert) => Some(alert_label(*alert)),
        _ => None,
    }
}

const TIMEOUT: ConnectFailure = ConnectFailure {
    metric: Metric::UpstreamTlsFailedTimeout,
    error: ProxyError::new(ErrorKind::UpstreamConnectTimeout).with_detail("upstream_tls_timeout"),
};

fn explain(broken: &Broken) -> ConnectFailure {
    use rustls::Error;
    let (metric, kind, detail) = match broken {
        Broken::Ended | Broken::Io(_) => {
            (Metric::UpstreamTlsFailedClosed, ErrorKind::UpstreamTlsHandshake, "upstream_tls_closed")
        }
        Broken::Tls(error) => match error {
            Error::InvalidCertificate(why) => {
                (Metric::UpstreamTlsFailedCertificate, ErrorKind::UpstreamCertificate, certificate_label(why))
            }
            Error::AlertReceived(alert) => {
                (Metric::UpstreamTlsFailedAlert, ErrorKind::UpstreamTlsAlert, alert_label(*alert))
            }
            Error::PeerIncompatible(_) => (
                Metric::UpstreamTlsFailedNothingInCommon,
                ErrorKind::UpstreamTlsHandshake,
                "upstream_tls_nothing_in_common",
            ),
            // The first byte is that of no record: most likely the endpoint speaks HTTP in clear.
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => (
                Metric::UpstreamTlsFailedMalformed,
                ErrorKind::UpstreamTlsHandshake,
                "upstream_speaks_no_tls",
            ),
            Error::InvalidMessage(_)
            | Error::PeerMisbehaved(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::NoCertificatesPresented
            | Error::DecryptError => (
                Metric::UpstreamTlsFailedMalformed,
                ErrorKind::UpstreamTlsHandshake,
                "upstream_tls_malformed",
            ),
            _ => {
                let kind = ErrorKind::UpstreamTlsHandshake;
                (Metric::UpstreamTlsFailedOther, kind, kind.label())
            }
        },
    };
    let os_error = match broken {
        Broken::Io(error) => error.raw_os_error().unwrap_or(0),
        Broken::Ended | Broken::Tls(_) => 0,
    };
    ConnectFailure { metric, error: ProxyError::new(kind).with_detail(detail).with_os_error(os_error) }
}

fn certificate_label(error: &CertificateError) -> &'static str {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => "upstream_certificate_expired",
        E::NotValidYet | E::NotValidYetContext { .. } => "upstream_certificate_not_valid_yet",
        E::NotValidForName | E::NotValidForNameContext { .. } => "upstream_certificate_for_other_name",
        E::UnknownIssuer => "upstream_certificate_of_unknown_authority",
        // An authority of that name, but another key.
        E::BadSignature => "upstream_certificate_bad_signature",
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => "upstream_certificate_for_other_purpose",
        _ => ErrorKind::UpstreamCertificate.label(),
    }
}

fn alert_label(alert: AlertDescription) -> &'static str {
    use AlertDescription as A;
    match alert {
        A::HandshakeFailure => "upstream_alert_handshake_failure",
        A::ProtocolVersion => "upstream_alert_protocol_version",
        A::NoApplicationProtocol => "upstream_alert_no_application_protocol",
        A::UnrecognisedName => "upstream_alert_unrecognized_name",
        A::CertificateRequired => "upstream_alert_certificate_required",
        A::BadCertificate => "upstream_alert_bad_certificate",
        A::CertificateExpired => "upstream_alert_certificate_expired",
        A::CertificateRevoked => "upstream_alert_certificate_revoked",
        A::CertificateUnknown => "upstream_alert_certificate_unknown",
        A::UnknownCA => "upstream_alert_unknown_ca",
        A::AccessDenied => "upstream_alert_access_denied",
        A::InternalError => "upstream_alert_internal_error",
        _ => ErrorKind::UpstreamTlsAlert.label(),
    }
}

#[cfg(test)]
mod tests;
