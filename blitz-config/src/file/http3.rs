//! `[http3]` as it is written.
//!
//! Owns: keys, ranges and their documentation. Does not own: the defaults and their reasons (see
//! [`crate::recommended`]), or what is done beyond a bound (the data plane).
#![forbid(unsafe_code)]

use super::Bounded;
use crate::model::{CongestionControl, Http3Limits, Retry};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Bounds on an HTTP/3 connection, and on what goes before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Http3File {
    /// Requests at a time on one connection (count), announced as a limit of QUIC streams. Beyond: the
    /// client waits; one that opens more is closed. Default: 128. Range: 1 to 1000. Reloadable, for new
    /// connections.
    pub concurrent_streams_max: Bounded<1, 1_000>,
    /// Bytes of one request body that a client may send before the upstream has taken them. Beyond: the
    /// client waits. Default: 262144. Range: 65535 to 16777216. Reloadable, for new connections.
    pub stream_window_bytes: Bounded<65_535, 16_777_216>,
    /// The same for all streams of a connection together: the most that a connection buffers of request
    /// bodies. Beyond: the client waits. Default: 1048576. Range: 65535 to 67108864. Reloadable, for new
    /// connections.
    pub connection_window_bytes: Bounded<65_535, 67_108_864>,
    /// How long a connection may be without a packet of its client, in milliseconds; the lower of both
    /// sides' counts. While a request is under way the client is asked for one in time. Default: 90000.
    /// Range: 1000 to 600000. Reloadable, for new connections.
    pub idle_timeout_ms: Bounded<1_000, 600_000>,
    /// When a client has to show that it receives at its address before anything is kept for it (Retry, RFC
    /// 9000 section 8.1.2). Default: `under_pressure`. Reloadable, for new connections.
    pub retry: RetryFile,
    /// Whether clients that come again may send requests before the handshake is done (0-RTT, RFC 8470). Those that
    /// ask for nothing to be changed are passed on with `Early-Data: 1`, the others wait. The upstreams have to know
    /// that field. Listeners with `tls.client_auth` take none. Default: false. Reloadable, for new connections.
    pub early_data: bool,
    /// Seconds of an epoch of connection IDs, after which new keys make them. All hosts that share a master secret
    /// need the same. At least twice `idle_timeout_ms`. Default: 3600. Range: 2 to 86400. Not reloadable:
    /// a change needs a restart.
    pub connection_id_epoch_s: Bounded<2, 86_400>,
    /// Requests that the client resets. Four times as many may come at once; beyond, the connection is closed
    /// (H3_EXCESSIVE_LOAD). Default: 100. Range: 1 to 100000. Reloadable, for new connections.
    pub resets_per_second: Bounded<1, 100_000>,
    /// Addresses that the clients of one worker have moved to (count), over all its connections: each keeps memory
    /// until its connection ends. Beyond: a connection whose client moves is closed (H3_NO_ERROR), so that the client
    /// comes anew. Default: 4096. Range: 1 to 1000000. Reloadable, for new connections.
    pub moves_per_worker_max: Bounded<1, 1_000_000>,
    /// How much is sent before it is known what has arrived: by loss, or by bandwidth and delay. Default:
    /// `cubic`. Reloadable, for new connections.
    pub congestion_control: CongestionControlFile,
    /// Whether datagrams of up to 1452 bytes are tried, and used where they pass; else they have 1200. Default:
    /// true. Reloadable, for new connections.
    pub pmtu_discovery: bool,
}

/// When a client has to prove its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryFile {
    /// Always: one round trip more for each connection.
    Always,
    /// Never.
    Never,
    /// While more than a quarter of `tls.handshakes_max` handshakes are under way.
    #[default]
    UnderPressure,
}

/// How a connection reacts to loss and delay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CongestionControlFile {
    /// As TCP does on Linux (RFC 9438).
    #[default]
    Cubic,
    /// As RFC 9002 describes it.
    Reno,
    /// By bandwidth and delay: for paths that lose without being full.
    Bbr2,
}

impl Default for Http3File {
    fn default() -> Self {
        let recommended = Http3Limits::RECOMMENDED;
        let idle = u64::try_from(recommended.idle_timeout.as_millis()).unwrap_or(u64::MAX);
        Self {
            concurrent_streams_max: Bounded::clamped(recommended.concurrent_streams_max.into()),
            stream_window_bytes: Bounded::clamped(recommended.stream_window_bytes.into()),
            connection_window_bytes: Bounded::clamped(recommended.connection_window_bytes.into()),
            idle_timeout_ms: Bounded::clamped(idle),
            retry: RetryFile::default(),
            early_data: recommended.early_data,
            connection_id_epoch_s: Bounded::clamped(recommended.cid_epoch_seconds.into()),
            resets_per_second: Bounded::clamped(recommended.resets_per_second.into()),
            moves_per_worker_max: Bounded::clamped(recommended.moves_per_worker_max.into()),
            congestion_control: CongestionControlFile::default(),
            pmtu_discovery: recommended.pmtu_discovery,
        }
    }
}

impl Http3File {
    /// The validated form; every value is in its range already.
    pub(crate) fn limits(&self) -> Http3Limits {
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Http3Limits {
            concurrent_streams_max: narrow(self.concurrent_streams_max.value()),
            stream_window_bytes: narrow(self.stream_window_bytes.value()),
            connection_window_bytes: narrow(self.connection_window_bytes.value()),
            idle_timeout: Duration::from_millis(self.idle_timeout_ms.value()),
            retry: match self.retry {
                RetryFile::Always => Retry::Always,
                RetryFile::Never => Retry::Never,
                RetryFile::UnderPressure => Retry::UnderPressure,
            },
            early_data: self.early_data,
            cid_epoch_seconds: narrow(self.connection_id_epoch_s.value()),
            resets_per_second: narrow(self.resets_per_second.value()),
            moves_per_worker_max: narrow(self.moves_per_worker_max.value()),
            congestion_control: match self.congestion_control {
                CongestionControlFile::Cubic => CongestionControl::Cubic,
                CongestionControlFile::Reno => CongestionControl::Reno,
                CongestionControlFile::Bbr2 => CongestionControl::Bbr2,
            },
            pmtu_discovery: self.pmtu_discovery,
        }
    }
}
