//! Every metric name of the data plane, a table per family.
//!
//! Owns: names, labels, help texts, kinds, bucket bounds, and the slot of each in a worker's row of the
//! shared segment. Does not own: the values (see `crate::segment`) or the text format (see
//! [`super::exposition`]).
//!
//! To add a metric: add a line to its family below (or a family, and name it in `FAMILIES`). Slots are
//! numbered by position; the layout check of the segment covers their count, and workers and supervisor
//! are always the same binary.

use std::fmt;

use blitz_ctl_protocol::message::{Outcome, Reason};

use crate::exchange::Protocol;
use crate::http2::Abuse;

/// What kind of value a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows. Kept when a worker is replaced.
    Counter,
    /// Goes up and down. Zeroed when its worker is replaced.
    Gauge,
}

/// One metric: a row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Full Prometheus name.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// One sentence for `# HELP`; equal for all rows of one name.
    pub help: &'static str,
    /// Label names and values, at most two.
    pub labels: &'static [(&'static str, &'static str)],
}

macro_rules! metrics {
    ($( $(#[$family:meta])* family $name:literal $kind:ident $help:literal {
        $( $variant:ident $( { $($label:ident = $value:literal),+ } )? ; )+
    } )+) => {
        /// One slot of a worker's row: a metric with fixed label values.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Metric {
            $( $(
                #[doc = concat!("`", $name, "`", $( $(" ", stringify!($label), "=\"", $value, "\"",)+ )? ": ", $help)]
                $variant,
            )+ )+
        }

        impl Metric {
            /// Every metric, in slot order.
            pub const ALL: &'static [Metric] = &[ $( $( Metric::$variant, )+ )+ ];
            /// Number of single slots.
            pub const COUNT: usize = Self::ALL.len();

            /// The row of the table for this metric.
            pub const fn description(self) -> Description {
                match self {
                    $( $( Metric::$variant => Description {
                        name: $name,
                        kind: Kind::$kind,
                        help: $help,
                        labels: &[ $( $( (stringify!($label), $value) ),+ )? ],
                    }, )+ )+
                }
            }

            const fn variant_name(self) -> &'static str {
                match self { $( $( Metric::$variant => stringify!($variant), )+ )+ }
            }
        }
    };
}

metrics! {
    // Downstream connections.
    family "blitz_downstream_connections_total" Counter "Client connections accepted." {
        DownstreamAccepted;
    }
    family "blitz_downstream_connections_active" Gauge "Client connections open now." {
        DownstreamActive;
    }
    family "blitz_downstream_connections_closed_total" Counter "Client connections closed, by what ended them." {
        DownstreamClosedByClient { reason = "client" };
        DownstreamClosedAfterAnswer { reason = "answered" };
        DownstreamClosedIdle { reason = "idle" };
        DownstreamClosedDeadline { reason = "deadline" };
        DownstreamClosedError { reason = "error" };
        DownstreamClosedOverload { reason = "overload" };
        DownstreamClosedDrain { reason = "drain" };
        DownstreamClosedPanic { reason = "panic" };
    }
    family "blitz_accept_errors_total" Counter "Failed accept calls, by cause." {
        AcceptErrorDescriptors { cause = "descriptors" };
        AcceptErrorMemory { cause = "memory" };
        AcceptErrorOther { cause = "other" };
    }

    // PROXY protocol.
    family "blitz_proxy_protocol_headers_total" Counter "PROXY protocol headers, by version and whose address." {
        ProxyProtocolV1Client { version = "1", address = "client" };
        ProxyProtocolV1Sender { version = "1", address = "sender" };
        ProxyProtocolV2Client { version = "2", address = "client" };
        ProxyProtocolV2Sender { version = "2", address = "sender" };
    }
    family "blitz_proxy_protocol_refusals_total" Counter "Connections closed for the PROXY protocol, by reason." {
        ProxyProtocolUntrusted { reason = "untrusted" };
        ProxyProtocolNoHeader { reason = "no_header" };
        ProxyProtocolMalformed { reason = "malformed" };
        ProxyProtocolTimeout { reason = "timeout" };
        ProxyProtocolClosed { reason = "closed" };
    }

    // TLS.
    family "blitz_tls_handshakes_total" Counter "TLS handshakes that ended well, by version and kind." {
        Tls13Full { version = "1.3", kind = "full" };
        Tls13Resumed { version = "1.3", kind = "resumed" };
        Tls12Full { version = "1.2", kind = "full" };
        Tls12Resumed { version = "1.2", kind = "resumed" };
    }
    family "blitz_tls_handshake_failures_total" Counter "TLS handshakes that did not end well, by reason." {
        TlsFailedTimeout { reason = "timeout" };
        TlsFailedClosed { reason = "closed" };
        TlsFailedMalformed { reason = "malformed" };
        TlsFailedNothingInCommon { reason = "nothing_in_common" };
        TlsFailedClientCertificate { reason = "client_certificate" };
        TlsFailedAlert { reason = "alert" };
        TlsFailedLimit { reason = "limit" };
        TlsFailedOther { reason = "other" };
    }
    family "blitz_early_data_accepted_total" Counter "Connections whose early data (0-RTT) was taken." {
        EarlyDataAccepted;
    }
    family "blitz_early_data_refused_total" Counter "Connections whose early data waited or was refused, by reason." {
        EarlyDataReplayed { reason = "replayed" };
        EarlyDataFull { reason = "table_full" };
        EarlyDataElsewhere { reason = "begun_elsewhere" };
        EarlyDataTicketAge { reason = "ticket_age" };
        EarlyDataOther { reason = "other" };
    }
    family "blitz_tls_handshakes_active" Gauge "TLS handshakes under way." {
        TlsHandshakesActive;
    }
    family "blitz_tls_plain_connections_total" Counter "Connections in clear where TLS is spoken, by what was done." {
        TlsPlainRefused { action = "refuse" };
        TlsPlainRedirected { action = "redirect" };
        TlsPlainServed { action = "serve" };
    }

    // Requests.
    family "blitz_requests_total" Counter "Final answers begun, by protocol and class of status." {
        RequestsH1Status1xx { protocol = "h1", status = "1xx" };
        RequestsH1Status2xx { protocol = "h1", status = "2xx" };
        RequestsH1Status3xx { protocol = "h1", status = "3xx" };
        RequestsH1Status4xx { protocol = "h1", status = "4xx" };
        RequestsH1Status5xx { protocol = "h1", status = "5xx" };
        RequestsH2Status2xx { protocol = "h2", status = "2xx" };
        RequestsH2Status3xx { protocol = "h2", status = "3xx" };
        RequestsH2Status4xx { protocol = "h2", status = "4xx" };
        RequestsH2Status5xx { protocol = "h2", status = "5xx" };
        RequestsH3Status2xx { protocol = "h3", status = "2xx" };
        RequestsH3Status3xx { protocol = "h3", status = "3xx" };
        RequestsH3Status4xx { protocol = "h3", status = "4xx" };
        RequestsH3Status5xx { protocol = "h3", status = "5xx" };
    }
    family "blitz_requests_active" Gauge "Requests between the end of their head and the end of their answer." {
        RequestsActive;
    }
    family "blitz_downstream_received_bytes_total" Counter "Bytes received from clients, heads and bodies." {
        DownstreamReceivedBytes;
    }
    family "blitz_downstream_sent_bytes_total" Counter "Bytes sent to clients, heads and bodies." {
        DownstreamSentBytes;
    }
    family "blitz_request_body_bytes_total" Counter "Bytes of request bodies, without their framing." {
        RequestBodyBytes;
    }
    family "blitz_response_body_bytes_total" Counter "Bytes of answer bodies, without their framing." {
        ResponseBodyBytes;
    }
    family "blitz_tunnels_total" Counter "Tunnels (WebSockets) begun, by the client's protocol." {
        TunnelsH1 { protocol = "h1" };
        TunnelsH2 { protocol = "h2" };
        TunnelsH3 { protocol = "h3" };
    }
    family "blitz_tunnels_active" Gauge "Tunnels (WebSockets) open now; each is an active request as well." {
        TunnelsActive;
    }
    family "blitz_tunnel_bytes_total" Counter "Bytes that passed through tunnels, by direction." {
        TunnelBytesUp { direction = "to_endpoint" };
        TunnelBytesDown { direction = "to_client" };
    }
    family "blitz_deadline_expiries_total" Counter "Deadlines that passed, by phase." {
        DeadlineTlsHandshake { phase = "tls_handshake" };
        DeadlineRequestHead { phase = "request_head" };
        DeadlineRequestBody { phase = "request_body_progress" };
        DeadlineKeepAlive { phase = "keep_alive" };
        DeadlineSend { phase = "send_progress" };
        DeadlineUpstreamConnect { phase = "upstream_connect" };
        DeadlineUpstreamFirstByte { phase = "upstream_first_byte" };
        DeadlineUpstreamBody { phase = "upstream_body_progress" };
        DeadlineUpstreamIdle { phase = "upstream_idle" };
        DeadlineTunnelIdle { phase = "tunnel_idle" };
        DeadlineTunnelLifetime { phase = "tunnel_lifetime" };
        DeadlineDrain { phase = "drain" };
        DeadlineGrpc { phase = "grpc" };
    }

    // HTTP/2.
    family "blitz_h2_connections_total" Counter "Client connections that spoke HTTP/2." {
        H2Connections;
    }
    family "blitz_h2_abuse_total" Counter "HTTP/2 connections ended because they burden the gateway, by how." {
        H2AbuseRapidReset { abuse = "rapid_reset" };
        H2AbuseMadeYouReset { abuse = "made_you_reset" };
        H2AbuseContinuationFlood { abuse = "continuation_flood" };
        H2AbuseHpackBomb { abuse = "hpack_bomb" };
        H2AbusePingFlood { abuse = "ping_flood" };
        H2AbuseSettingsFlood { abuse = "settings_flood" };
        H2AbusePriorityFlood { abuse = "priority_flood" };
        H2AbuseWindowUpdateFlood { abuse = "window_update_flood" };
        H2AbuseEmptyDataFlood { abuse = "empty_data_flood" };
        H2AbuseUnknownFrameFlood { abuse = "unknown_frame_flood" };
        H2AbuseStalledWindow { abuse = "stalled_window" };
        H2AbuseSlowReader { abuse = "slow_reader" };
    }

    // HTTP/3 and QUIC.
    family "blitz_h3_connections_total" Counter "Client connections that spoke HTTP/3." {
        H3Connections;
    }
    family "blitz_quic_datagrams_received_total" Counter "Datagrams received where QUIC is spoken, by their fate." {
        QuicDelivered { fate = "delivered" };
        QuicNew { fate = "new" };
        QuicVersion { fate = "version" };
        QuicRetry { fate = "retry" };
        QuicReset { fate = "reset" };
        QuicForwarded { fate = "forwarded" };
        QuicForwardFull { fate = "forward_full" };
        QuicStranger { fate = "other_worker" };
        QuicUnknown { fate = "unknown" };
        QuicMalformed { fate = "malformed" };
        QuicRefused { fate = "refused" };
    }
    family "blitz_qlog_records_total" Counter "Records of HTTP/3 connections that were asked for, by their fate." {
        QlogRecorded { fate = "sent" };
        QlogDropped { fate = "dropped" };
    }
    family "blitz_quic_connection_ids_total" Counter "Connection IDs made under keys of an epoch." {
        QuicConnectionIds;
    }
    family "blitz_quic_datagrams_relayed_total" Counter "Datagrams passed on by another worker, by fate." {
        QuicRelayedDelivered { fate = "delivered" };
        QuicRelayedNew { fate = "new" };
        QuicRelayedAnswered { fate = "answered" };
        QuicRelayedDropped { fate = "dropped" };
    }
    family "blitz_quic_datagrams_sent_total" Counter "Datagrams handed to the kernel." {
        QuicDatagramsSent;
    }
    family "blitz_quic_migrations_total" Counter "Times that a connection's client went on from another address." {
        QuicMigrations;
    }
    family "blitz_quic_paths_used_up_total" Counter "Connections closed because no more paths may be kept, by whose." {
        QuicPathsConnection { of = "connection" };
        QuicPathsWorker { of = "worker" };
    }
    family "blitz_quic_send_errors_total" Counter "Sends of datagrams that the kernel refused." {
        QuicSendErrors;
    }

    // AF_XDP.
    family "blitz_afxdp_queues" Gauge "Receive queues whose frames this worker gets." {
        AfxdpQueues;
    }
    family "blitz_afxdp_frames" Gauge "Frames of AF_XDP sockets, by who has them." {
        AfxdpFramesFree { holder = "free" };
        AfxdpFramesReceiving { holder = "receiving" };
        AfxdpFramesSending { holder = "sending" };
    }
    family "blitz_afxdp_frames_received_total" Counter "Frames that came by AF_XDP." {
        AfxdpFramesReceived;
    }
    family "blitz_afxdp_frames_sent_total" Counter "Frames put into a transmit ring." {
        AfxdpFramesSent;
    }
    family "blitz_afxdp_drops_total" Counter "Datagrams lost on the way between a queue and QUIC, by reason." {
        AfxdpDropMalformed { reason = "malformed" };
        AfxdpDropNoListener { reason = "no_listener" };
        AfxdpDropKernel { reason = "kernel" };
        AfxdpDropRingFull { reason = "ring_full" };
        AfxdpDropInvalid { reason = "invalid" };
        AfxdpDropNoFrame { reason = "no_frame" };
        AfxdpDropTooLarge { reason = "too_large" };
    }
    family "blitz_afxdp_fill_ring_empty_total" Counter "Times that no frame was lent to the kernel when one came." {
        AfxdpFillRingEmpty;
    }
    family "blitz_afxdp_kicks_total" Counter "System calls that told the kernel to send." {
        AfxdpKicks;
    }
    family "blitz_afxdp_fallbacks_total" Counter "Queues given up for the kernel's UDP, by reason." {
        AfxdpFallbackStalled { reason = "stalled" };
        AfxdpFallbackFailed { reason = "failed" };
    }

    // Limits.
    family "blitz_limit_buckets_displaced_total" Counter "Token buckets in use that made room for another source's." {
        LimitBucketsDisplaced;
    }

    // Reports for the kernel's blocklist; written by the supervisor, and by workers where a report is dropped.
    family "blitz_block_reports_total" Counter "Sources reported for the kernel's blocklist, by what became of it." {
        BlockReportFramingBlocked { reason = "framing", outcome = "blocked" };
        BlockReportFramingAlready { reason = "framing", outcome = "already" };
        BlockReportFramingCapped { reason = "framing", outcome = "capped" };
        BlockReportFramingOff { reason = "framing", outcome = "off" };
        BlockReportFramingExempt { reason = "framing", outcome = "exempt" };
        BlockReportFramingRefused { reason = "framing", outcome = "refused" };
        BlockReportFramingUnreachable { reason = "framing", outcome = "unreachable" };
        BlockReportFramingDropped { reason = "framing", outcome = "dropped" };
        BlockReportLimitBlocked { reason = "limit", outcome = "blocked" };
        BlockReportLimitAlready { reason = "limit", outcome = "already" };
        BlockReportLimitCapped { reason = "limit", outcome = "capped" };
        BlockReportLimitOff { reason = "limit", outcome = "off" };
        BlockReportLimitExempt { reason = "limit", outcome = "exempt" };
        BlockReportLimitRefused { reason = "limit", outcome = "refused" };
        BlockReportLimitUnreachable { reason = "limit", outcome = "unreachable" };
        BlockReportLimitDropped { reason = "limit", outcome = "dropped" };
    }

    // Upstreams.
    family "blitz_upstream_requests_total" Counter "Requests sent to endpoints, retries included." {
        UpstreamRequests;
    }
    family "blitz_upstream_connects_total" Counter "Connections opened to endpoints, by result." {
        UpstreamConnectsOk { result = "ok" };
        UpstreamConnectsFailed { result = "failed" };
    }
    family "blitz_upstream_reuses_total" Counter "Requests that went over a pooled connection." {
        UpstreamReuses;
    }
    family "blitz_upstream_retries_total" Counter "Requests sent a second time." {
        UpstreamRetries;
    }
    family "blitz_upstream_connections_active" Gauge "Connections to endpoints open now, pooled ones included." {
        UpstreamActive;
    }
    family "blitz_upstream_connections_idle" Gauge "Pooled connections to endpoints that carry no request." {
        UpstreamIdle;
    }
    family "blitz_upstream_pool_closes_total" Counter "Idle pooled connections closed, by reason." {
        PoolClosedStale { reason = "stale" };
        PoolClosedIdle { reason = "idle" };
        PoolClosedFull { reason = "full" };
        PoolClosedRemoved { reason = "removed" };
    }
    family "blitz_upstream_tls_handshakes_total" Counter "Handshakes with endpoints, by version and kind." {
        UpstreamTls13Full { version = "1.3", kind = "full" };
        UpstreamTls13Resumed { version = "1.3", kind = "resumed" };
        UpstreamTls12Full { version = "1.2", kind = "full" };
        UpstreamTls12Resumed { version = "1.2", kind = "resumed" };
    }
    family "blitz_upstream_tls_handshake_failures_total" Counter "Failed handshakes with endpoints, by reason." {
        UpstreamTlsFailedTimeout { reason = "timeout" };
        UpstreamTlsFailedClosed { reason = "closed" };
        UpstreamTlsFailedMalformed { reason = "malformed" };
        UpstreamTlsFailedNothingInCommon { reason = "nothing_in_common" };
        UpstreamTlsFailedCertificate { reason = "certificate" };
        UpstreamTlsFailedAlert { reason = "alert" };
        UpstreamTlsFailedOther { reason = "other" };
    }
    family "blitz_upstream_ejections_total" Counter "Times an endpoint was taken out by passive health." {
        UpstreamEjections;
    }
    family "blitz_upstream_unavailable_total" Counter "Requests for which no endpoint had an address or was healthy." {
        UpstreamUnavailable;
    }

    // Runtime.
    family "blitz_buffer_pool_exhausted_total" Counter "Times an operation had to wait for a buffer." {
        BufferPoolExhausted;
    }
    family "blitz_completion_queue_overflows_total" Counter "Times the kernel's completion queue overflowed." {
        CompletionQueueOverflows;
    }
    family "blitz_panics_total" Counter "Panics caught; each ended one connection." {
        Panics;
    }

    // Control side; written by the supervisor only.
    family "blitz_config_reloads_total" Counter "Configuration reloads that took effect." {
        ConfigReloads;
    }
    family "blitz_config_reload_failures_total" Counter "Configuration reloads that were refused and changed nothing." {
        ConfigReloadFailures;
    }
    family "blitz_config_generation" Gauge "Generation of the configuration in effect; grows with every change." {
        ConfigGeneration;
    }
    family "blitz_worker_restarts_total" Counter "Workers replaced after their death." {
        WorkerRestarts;
    }
    family "blitz_dns_lookups_total" Counter "Names of endpoints looked up, by result." {
        DnsLookupsOk { result = "ok" };
        DnsLookupsFailed { result = "failed" };
    }
    family "blitz_dns_changes_total" Counter "Lookups that changed the addresses of a name." {
        DnsChanges;
    }
    family "blitz_admin_requests_total" Counter "Requests to the admin API." {
        AdminRequests;
    }
    family "blitz_admin_connections_refused_total" Counter "Admin connections closed because too many were open." {
        AdminConnectionsRefused;
    }
}

impl Metric {
    /// The slot of `blitz_requests_total` for an answer. Final answers only, 101 over HTTP/1 among them; any other
    /// status outside 200..=599 counts as 5xx.
    pub const fn requests(protocol: Protocol, status: u16) -> Self {
        match (protocol, status / 100) {
            (Protocol::H1, 1) => Self::RequestsH1Status1xx,
            (Protocol::H1, 2) => Self::RequestsH1Status2xx,
            (Protocol::H1, 3) => Self::RequestsH1Status3xx,
            (Protocol::H1, 4) => Self::RequestsH1Status4xx,
            (Protocol::H1, _) => Self::RequestsH1Status5xx,
            (Protocol::H2, 2) => Self::RequestsH2Status2xx,
            (Protocol::H2, 3) => Self::RequestsH2Status3xx,
            (Protocol::H2, 4) => Self::RequestsH2Status4xx,
            (Protocol::H2, _) => Self::RequestsH2Status5xx,
            (Protocol::H3, 2) => Self::RequestsH3Status2xx,
            (Protocol::H3, 3) => Self::RequestsH3Status3xx,
            (Protocol::H3, 4) => Self::RequestsH3Status4xx,
            (Protocol::H3, _) => Self::RequestsH3Status5xx,
        }
    }

    /// The slot of `blitz_h2_abuse_total`.
    pub const fn h2_abuse(abuse: Abuse) -> Self {
        match abuse {
            Abuse::RapidReset => Self::H2AbuseRapidReset,
            Abuse::MadeYouReset => Self::H2AbuseMadeYouReset,
            Abuse::ContinuationFlood => Self::H2AbuseContinuationFlood,
            Abuse::HpackBomb => Self::H2AbuseHpackBomb,
            Abuse::PingFlood => Self::H2AbusePingFlood,
            Abuse::SettingsFlood => Self::H2AbuseSettingsFlood,
            Abuse::PriorityFlood => Self::H2AbusePriorityFlood,
            Abuse::WindowUpdateFlood => Self::H2AbuseWindowUpdateFlood,
            Abuse::EmptyDataFlood => Self::H2AbuseEmptyDataFlood,
            Abuse::UnknownFrameFlood => Self::H2AbuseUnknownFrameFlood,
            Abuse::StalledWindow => Self::H2AbuseStalledWindow,
            Abuse::SlowReader => Self::H2AbuseSlowReader,
        }
    }

    /// The slot of `blitz_block_reports_total`. Reports are for framing or for limits.
    pub const fn block_report(reason: Reason, outcome: ReportOutcome) -> Self {
        match (matches!(reason, Reason::Limit), outcome) {
            (false, ReportOutcome::Blocked) => Self::BlockReportFramingBlocked,
            (false, ReportOutcome::Already) => Self::BlockReportFramingAlready,
            (false, ReportOutcome::Capped) => Self::BlockReportFramingCapped,
            (false, ReportOutcome::Off) => Self::BlockReportFramingOff,
            (false, ReportOutcome::Exempt) => Self::BlockReportFramingExempt,
            (false, ReportOutcome::Refused) => Self::BlockReportFramingRefused,
            (false, ReportOutcome::Unreachable) => Self::BlockReportFramingUnreachable,
            (false, ReportOutcome::Dropped) => Self::BlockReportFramingDropped,
            (true, ReportOutcome::Blocked) => Self::BlockReportLimitBlocked,
            (true, ReportOutcome::Already) => Self::BlockReportLimitAlready,
            (true, ReportOutcome::Capped) => Self::BlockReportLimitCapped,
            (true, ReportOutcome::Off) => Self::BlockReportLimitOff,
            (true, ReportOutcome::Exempt) => Self::BlockReportLimitExempt,
            (true, ReportOutcome::Refused) => Self::BlockReportLimitRefused,
            (true, ReportOutcome::Unreachable) => Self::BlockReportLimitUnreachable,
            (true, ReportOutcome::Dropped) => Self::BlockReportLimitDropped,
        }
    }

    /// Slot of this metric in a worker's row.
    pub const fn slot(self) -> usize {
        self as usize
    }
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.variant_name())
    }
}

/// What became of a report for the kernel's blocklist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportOutcome {
    /// The source is blocked from now on.
    Blocked,
    /// It was blocked already.
    Already,
    /// The blocklist is full.
    Capped,
    /// No interface has the kernel stage, or blocking is switched off.
    Off,
    /// The source is never blocked: our own, allowed, or a management address.
    Exempt,
    /// The daemon refused the report.
    Refused,
    /// Nobody answered on the control socket.
    Unreachable,
    /// Too many reports waited.
    Dropped,
}

impl From<Outcome> for ReportOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Blocked => Self::Blocked,
            Outcome::Already => Self::Already,
            Outcome::Capped => Self::Capped,
            Outcome::Off => Self::Off,
            Outcome::Exempt => Self::Exempt,
        }
    }
}

/// A metric that is read from other rows than the metric slots; its labels are known at run time only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Computed {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

const fn computed(kind: Kind, name: &'static str, help: &'static str) -> Computed {
    Computed { name, kind, help }
}

/// Labels: version.
pub(super) const BUILD_INFO: Computed = computed(Kind::Gauge, "blitz_build_info", "The version that runs.");

// Labels: worker.
pub(super) const WORKER_SERVING: Computed =
    computed(Kind::Gauge, "blitz_worker_serving", "1 while the worker serves, else 0.");
pub(super) const WORKER_GENERATION: Computed = computed(
    Kind::Gauge,
    "blitz_worker_config_generation",
    "Generation of the configuration that the worker uses.",
);
pub(super) const WORKER_CONNECTIONS: Computed =
    computed(Kind::Gauge, "blitz_worker_connections", "Client connections open now, by worker.");

// Labels: upstream, address.
pub(super) const ENDPOINT_IN_FLIGHT: Computed =
    computed(Kind::Gauge, "blitz_endpoint_in_flight", "Requests whose answer is not complete, by endpoint.");
pub(super) const ENDPOINT_REQUESTS: Computed =
    computed(Kind::Counter, "blitz_endpoint_requests_total", "Requests sent, by endpoint.");
pub(super) const ENDPOINT_FAILURES: Computed =
    computed(Kind::Counter, "blitz_endpoint_failures_total", "Failed exchanges, by endpoint.");
pub(super) const ENDPOINT_CONNECTS: Computed =
    computed(Kind::Counter, "blitz_endpoint_connects_total", "Connections opened, by endpoint.");
pub(super) const ENDPOINT_REUSES: Computed =
    computed(Kind::Counter, "blitz_endpoint_reuses_total", "Requests over a pooled connection, by endpoint.");
pub(super) const ENDPOINT_EJECTED: Computed =
    computed(Kind::Gauge, "blitz_endpoint_ejected_workers", "Workers that have taken the endpoint out.");

// Labels: limit, outcome.
pub(super) const LIMIT_REQUESTS: Computed =
    computed(Kind::Counter, "blitz_limit_requests_total", "Requests that a limit covered, by what it said.");

/// Most error kinds that can be told apart in `blitz_errors_total{kind}`.
pub const ERROR_KINDS_MAX: usize = 64;
/// Name of the error family; its label values come from the proxy's table of error kinds.
pub const ERRORS_NAME: &str = "blitz_errors_total";
/// Help text of the error family.
pub const ERRORS_HELP: &str = "Errors of connections and exchanges, by kind.";

/// A distribution of durations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Histogram {
    /// `blitz_request_duration_seconds`: end of the request head to the last byte of the answer handed to
    /// the kernel.
    RequestDuration,
    /// `blitz_upstream_first_byte_seconds`: last byte of the request head sent to the endpoint to the first
    /// byte of its final answer.
    UpstreamFirstByte,
}

impl Histogram {
    /// Every histogram, in slot order.
    pub const ALL: &'static [Histogram] = &[Self::RequestDuration, Self::UpstreamFirstByte];

    /// Full Prometheus name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestDuration => "blitz_request_duration_seconds",
            Self::UpstreamFirstByte => "blitz_upstream_first_byte_seconds",
        }
    }

    /// One sentence for `# HELP`.
    pub const fn help(self) -> &'static str {
        match self {
            Self::RequestDuration => "From the end of the request head to the last byte of its answer.",
            Self::UpstreamFirstByte => {
                "From the request sent to an endpoint to the first byte of its answer."
            }
        }
    }

    /// First slot of this histogram: its buckets, then the sum in microseconds.
    pub(crate) const fn first_slot(self) -> usize {
        HISTOGRAM_SLOTS_BASE + self as usize * HISTOGRAM_SLOTS
    }
}

/// Upper bounds of the buckets in microseconds, inclusive; one more bucket holds what is slower.
///
/// A cached or built-in answer takes below 100 us, a request to an upstream in the same rack about 1 ms,
/// across a continent 50 ms; from there on people notice, and at 60 s the default deadlines end it. Three
/// steps to a decade keep the error of an interpolated quantile below the factor 2.5.
pub const BUCKET_BOUNDS_US: [u64; 18] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 60_000_000,
];

/// Slots of one histogram: its bounded buckets, the unbounded one, the sum.
pub(crate) const HISTOGRAM_SLOTS: usize = BUCKET_BOUNDS_US.len() + 2;
pub(crate) const ERROR_SLOTS_BASE: usize = Metric::COUNT;
pub(crate) const HISTOGRAM_SLOTS_BASE: usize = ERROR_SLOTS_BASE + ERROR_KINDS_MAX;
/// Slots of a worker's row: single metrics, error kinds, histograms.
pub const SLOTS: usize = HISTOGRAM_SLOTS_BASE + HISTOGRAM_SLOTS * Histogram::ALL.len();
