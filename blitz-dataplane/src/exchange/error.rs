//! What went wrong in an exchange, whose side it was, and what follows from it.
//!
//! Owns: the kinds and the one table from kind to label, status, Proxy-Status error, retry and close. Does not own: the
//! detection (codecs, runtime, proxy) or the writing of answers.

use std::fmt;
use std::num::NonZeroI32;

/// Whose fault it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client or the network towards it.
    Downstream,
    /// The endpoint or the network towards it.
    Upstream,
    /// The gateway: its configuration, its limits or a mistake in it.
    Internal,
}

/// Whether the request may be sent again to this or another endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// No byte of the request can have been acted on.
    Yes,
    /// Never.
    No,
    /// Only when the connection had served an exchange before: the endpoint may have closed it while idle.
    IfReused,
}

/// One row of the error table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorRow {
    /// Name in metrics and logs.
    pub label: &'static str,
    /// Whose fault.
    pub side: Side,
    /// Status of the answer when none has begun; 0 when no answer can be given (the peer is gone).
    pub status: u16,
    /// The `error` parameter of Proxy-Status (RFC 9209 section 2.3); none where no token fits.
    pub proxy_status: Option<&'static str>,
    /// Whether the request may be sent again.
    pub retry: Retry,
    /// Whether the downstream connection is closed after the answer, because its framing can no longer be trusted or
    /// the rest of a body would have to be read.
    pub closes_downstream: bool,
}

/// Declares the kinds and their rows in one place.
macro_rules! error_table {
    ($(
        $(#[doc = $doc:literal])*
        $kind:ident: $label:literal, $side:ident, $status:literal, $token:expr, $retry:ident, $close:literal;
    )*) => {
        /// What went wrong. Each kind has one [`ErrorRow`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum ErrorKind {
            $($(#[doc = $doc])* $kind,)*
        }

        impl ErrorKind {
            /// Every kind, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// What follows from the kind.
            #[must_use]
            pub const fn row(self) -> &'static ErrorRow {
                match self {
                    $(Self::$kind => &ErrorRow {
                        label: $label,
                        side: Side::$side,
                        status: $status,
                        proxy_status: $token,
                        retry: Retry::$retry,
                        closes_downstream: $close,
                    },)*
                }
            }
        }
    };
}

error_table! {
    // kind: label, side, status, Proxy-Status error, retry, closes downstream
    /// The request head breaks the syntax of RFC 9110 or RFC 9112.
    BadRequestHead: "bad_request_head", Downstream, 400, Some("http_request_error"), No, true;
    /// The request's body framing is ambiguous or broken (RFC 9112 section 6 and 7).
    BadRequestFraming: "bad_request_framing", Downstream, 400, Some("http_request_error"), No, true;
    /// The request target is longer than the limit (RFC 9110 section 15.5.15).
    TargetTooLong: "target_too_long", Downstream, 414, Some("http_request_error"), No, true;
    /// The request head is larger than the limit (RFC 6585 section 5).
    RequestHeadTooLarge: "request_head_too_large", Downstream, 431, Some("http_request_error"), No, true;
    /// The request has more fields than the limit (RFC 6585 section 5).
    TooManyRequestFields: "too_many_request_fields", Downstream, 431, Some("http_request_error"), No, true;
    /// The request body is larger than the limit (RFC 9110 section 15.5.14).
    RequestBodyTooLarge: "request_body_too_large", Downstream, 413, Some("http_request_error"), No, true;
    /// An expectation other than 100-continue (RFC 9110 section 15.5.18).
    ExpectationFailed: "expectation_failed", Downstream, 417, Some("http_request_error"), No, true;
    /// The target names a scheme that this connection does not carry (RFC 9110 section 15.5.20).
    Misdirected: "misdirected", Downstream, 421, Some("http_request_error"), No, true;
    /// A method or transfer coding that the gateway does not implement (RFC 9110 section 15.6.2).
    NotImplemented: "not_implemented", Downstream, 501, Some("http_request_error"), No, true;
    /// A major version of HTTP that this port does not speak (RFC 9110 section 15.6.6).
    VersionNotSupported: "version_not_supported", Downstream, 505, Some("http_request_error"), No, true;
    /// The request head did not arrive in time (RFC 9110 section 15.5.9).
    RequestHeadTimeout: "request_head_timeout", Downstream, 408, Some("http_request_error"), No, true;
    /// The request body made no progress in time (RFC 9110 section 15.5.9).
    RequestBodyTimeout: "request_body_timeout", Downstream, 408, Some("http_request_error"), No, true;
    /// The client closed or reset before the exchange was over; nobody is left to answer.
    DownstreamClosed: "downstream_closed", Downstream, 0, None, No, true;
    /// The client took no byte of the answer in time.
    DownstreamSendTimeout: "downstream_send_timeout", Downstream, 0, None, No, true;
    /// HTTP without TLS where TLS is spoken.
    PlainOnTls: "plain_on_tls", Downstream, 400, Some("http_request_error"), No, true;
    /// The TLS handshake failed; an alert was all there was to say.
    TlsHandshake: "tls_handshake", Downstream, 0, None, No, true;
    /// The TLS handshake did not end in time.
    TlsHandshakeTimeout: "tls_handshake_timeout", Downstream, 0, None, No, true;
    /// The time that a gRPC client gave its request is over (`grpc-timeout`). Its own choice, whoever was slow: it says
    /// nothing about the endpoint.
    GrpcTimeout: "grpc_timeout", Downstream, 408, Some("http_response_timeout"), No, false;
    /// A request that policy denies.
    Denied: "denied", Downstream, 403, Some("http_request_denied"), No, false;
    /// The method is not allowed for this target (RFC 9110 section 15.5.6).
    MethodNotAllowed: "method_not_allowed", Downstream, 405, Some("http_request_denied"), No, false;
    /// The request is over a limit (RFC 6585 section 4).
    RateLimited: "rate_limited", Downstream, 429, Some("http_request_denied"), No, false;
    /// No route takes the request.
    NoRoute: "no_route", Downstream, 404, Some("destination_not_found"), No, false;
    /// The endpoint's name has no address.
    DnsFailure: "dns_failure", Upstream, 502, Some("dns_error"), Yes, false;
    /// The endpoint's name was not resolved in time.
    DnsTimeout: "dns_timeout", Upstream, 504, Some("dns_timeout"), Yes, false;
    /// The endpoint refused the connection.
    UpstreamConnectRefused: "upstream_connect_refused", Upstream, 502, Some("connection_refused"), Yes, false;
    /// The endpoint did not accept the connection in time.
    UpstreamConnectTimeout: "upstream_connect_timeout", Upstream, 504, Some("connection_timeout"), Yes, false;
    /// The endpoint's address cannot be reached.
    UpstreamUnreachable: "upstream_unreachable", Upstream, 502, Some("destination_ip_unroutable"), Yes, false;
    /// Connecting failed for another reason.
    UpstreamConnectFailed: "upstream_connect_failed", Upstream, 502, Some("destination_unavailable"), Yes, false;
    /// The TLS handshake with the endpoint failed, or led to another protocol than the configured one.
    UpstreamTlsHandshake: "upstream_tls_handshake", Upstream, 502, Some("tls_protocol_error"), Yes, false;
    /// The endpoint's certificate is not valid, not for its name, or not from an authority that is trusted.
    UpstreamCertificate: "upstream_certificate", Upstream, 502, Some("tls_certificate_error"), Yes, false;
    /// The endpoint refused the TLS handshake with an alert.
    UpstreamTlsAlert: "upstream_tls_alert", Upstream, 502, Some("tls_alert_received"), Yes, false;
    /// The endpoint closed or reset before the first byte of its answer.
    UpstreamClosedBeforeAnswer:
        "upstream_closed_before_answer", Upstream, 502, Some("connection_terminated"), IfReused, false;
    /// The endpoint closed or reset within its answer.
    UpstreamClosedMidAnswer: "upstream_closed_mid_answer", Upstream, 502, Some("http_response_incomplete"), No, true;
    /// The endpoint's answer head breaks the syntax.
    UpstreamBadHead: "upstream_bad_head", Upstream, 502, Some("http_protocol_error"), No, false;
    /// The endpoint's answer head is larger than the limit or has too many fields.
    UpstreamHeadTooLarge:
        "upstream_head_too_large", Upstream, 502, Some("http_response_header_section_size"), No, false;
    /// The answer's body framing is ambiguous or broken.
    UpstreamFraming: "upstream_framing", Upstream, 502, Some("http_protocol_error"), No, true;
    /// The answer uses a transfer coding that the gateway does not know.
    UpstreamTransferCoding: "upstream_transfer_coding", Upstream, 502, Some("http_response_transfer_coding"), No, false;
    /// The answer's trailers are larger than the limit.
    UpstreamTrailersTooLarge:
        "upstream_trailers_too_large", Upstream, 502, Some("http_response_trailer_section_size"), No, true;
    /// No first byte of an answer in time.
    UpstreamFirstByteTimeout: "upstream_first_byte_timeout", Upstream, 504, Some("http_response_timeout"), No, false;
    /// The answer's body made no progress in time.
    UpstreamBodyTimeout: "upstream_body_timeout", Upstream, 504, Some("connection_read_timeout"), No, true;
    /// The endpoint took no byte of the request in time.
    UpstreamSendTimeout: "upstream_send_timeout", Upstream, 504, Some("connection_write_timeout"), No, false;
    /// The endpoint switched protocols without being asked, or to another protocol.
    UpstreamUpgradeFailed: "upstream_upgrade_failed", Upstream, 502, Some("http_upgrade_failed"), No, true;
    /// The endpoint reset a tunnel, or ended it in no proper way.
    UpstreamTunnelReset: "upstream_tunnel_reset", Upstream, 502, Some("connection_terminated"), No, true;
    /// Neither side of a tunnel sent a byte in time.
    TunnelIdle: "tunnel_idle", Internal, 504, Some("connection_read_timeout"), No, true;
    /// A tunnel has lived as long as it may.
    TunnelLifetime: "tunnel_lifetime", Internal, 504, Some("connection_read_timeout"), No, true;
    /// No endpoint of the upstream is usable.
    NoHealthyEndpoint: "no_healthy_endpoint", Upstream, 503, Some("destination_unavailable"), No, false;
    /// The upstream's connection limit is reached.
    UpstreamConnectionLimit: "upstream_connection_limit", Internal, 503, Some("connection_limit_reached"), No, false;
    /// The gateway is at one of its limits.
    Overload: "overload", Internal, 503, Some("proxy_internal_response"), No, true;
    /// The gateway is going down and takes no new request.
    Draining: "draining", Internal, 503, Some("proxy_internal_response"), No, true;
    /// The request has passed through this gateway before (RFC 9110 section 7.6.3).
    Loop: "loop", Internal, 502, Some("proxy_loop_detected"), No, false;
    /// The configuration cannot serve this request.
    Configuration: "configuration", Internal, 500, Some("proxy_configuration_error"), No, false;
    /// A mistake in the gateway or a resource it could not get.
    Internal: "internal", Internal, 500, Some("proxy_internal_error"), No, true;
}

impl ErrorKind {
    /// The name in metrics and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        self.row().label
    }
}

/// An error of one exchange: the kind, and what this occurrence adds to its row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ProxyError {
    /// What went wrong.
    pub kind: ErrorKind,
    /// Whether the request may be sent again; the row's value unless the occurrence knows better.
    pub retry: Retry,
    /// A finer label from a bounded set, such as a codec's error; the kind's label when there is none.
    pub detail: &'static str,
    /// The system's error number, where a system call failed.
    pub os_error: Option<NonZeroI32>,
}

impl ProxyError {
    /// An error with the values of its row.
    #[must_use]
    pub const fn new(kind: ErrorKind) -> Self {
        let row = kind.row();
        Self { kind, retry: row.retry, detail: row.label, os_error: None }
    }

    /// The same with a finer label.
    #[must_use]
    pub const fn with_detail(mut self, detail: &'static str) -> Self {
        self.detail = detail;
        self
    }

    /// The same with the system's error number; 0 is none.
    #[must_use]
    pub const fn with_os_error(mut self, errno: i32) -> Self {
        self.os_error = NonZeroI32::new(errno);
        self
    }

    /// The same with another answer to "may it be sent again?".
    #[must_use]
    pub const fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Whether to send the request again, knowing whether the connection had served an exchange before.
    #[must_use]
    pub const fn may_retry(&self, connection_was_reused: bool) -> bool {
        match self.retry {
            Retry::Yes => true,
            Retry::No => false,
            Retry::IfReused => connection_was_reused,
        }
    }

    /// Whose fault.
    #[must_use]
    pub const fn side(&self) -> Side {
        self.kind.row().side
    }

    /// The name in metrics and logs.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        self.kind.row().label
    }

    /// Status of the answer when none has begun; 0 when no answer can be given.
    #[must_use]
    pub const fn status(&self) -> u16 {
        self.kind.row().status
    }

    /// The `error` parameter of Proxy-Status (RFC 9209 section 2.3).
    #[must_use]
    pub const fn proxy_status(&self) -> Option<&'static str> {
        self.kind.row().proxy_status
    }

    /// Whether the downstream connection is closed after the answer.
    #[must_use]
    pub const fn closes_downstream(&self) -> bool {
        self.kind.row().closes_downstream
    }
}

impl From<ErrorKind> for ProxyError {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())?;
        if self.detail != self.label() {
            write!(f, " ({})", self.detail)?;
        }
        match self.os_error {
            Some(errno) => write!(f, ": {}", std::io::Error::from_raw_os_error(errno.get())),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyError({self})")
    }
}

impl std::error::Error for ProxyError {}
