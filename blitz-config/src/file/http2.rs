//! `[http2]` as it is written.
//!
//! Owns: keys, ranges and their documentation. Does not own: the defaults and their reasons (see
//! [`crate::recommended`]), or what is done beyond a budget (the data plane).
#![forbid(unsafe_code)]

use super::Bounded;
use crate::model::Http2Limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bounds on an HTTP/2 connection. What is said per second may come four times at once, and is counted for
/// each connection by itself; a connection beyond it is closed with GOAWAY (ENHANCE_YOUR_CALM).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Http2File {
    /// Requests at a time on one connection (count), announced as SETTINGS_MAX_CONCURRENT_STREAMS. Beyond:
    /// the stream is refused (REFUSED_STREAM). Default: 128. Range: 1 to 1000. Reloadable, for new
    /// connections.
    pub concurrent_streams_max: Bounded<1, 1_000>,
    /// Bytes of one request body that a client may send before the upstream has taken them. Beyond: the
    /// client waits. Default: 262144. Range: 65535 to 16777216. Reloadable, for new connections.
    pub stream_window_bytes: Bounded<65_535, 16_777_216>,
    /// The same for all streams of a connection together: the most that a connection buffers of request
    /// bodies. Beyond: the client waits. Default: 1048576. Range: 65535 to 67108864. Reloadable, for new
    /// connections.
    pub connection_window_bytes: Bounded<65_535, 67_108_864>,
    /// CONTINUATION frames behind one HEADERS frame (count). Beyond: `continuation_flood`. Default: 4.
    /// Range: 1 to 5. Reloadable, for new connections.
    pub continuations_max: Bounded<1, 5>,
    /// Streams that the client resets. Beyond: `rapid_reset`. Default: 100. Range: 1 to 100000. Reloadable,
    /// for new connections.
    pub resets_per_second: Bounded<1, 100_000>,
    /// Streams that the client makes the gateway reset or refuse. Beyond: `made_you_reset`. Default: 50.
    /// Range: 1 to 100000. Reloadable, for new connections.
    pub faults_per_second: Bounded<1, 100_000>,
    /// Request heads larger than `http.request_head_bytes_max`. Beyond: `hpack_bomb`. Default: 10. Range: 1
    /// to 100000. Reloadable, for new connections.
    pub oversize_heads_per_second: Bounded<1, 100_000>,
    /// PING frames; each DATA frame sent allows one more. Beyond: `ping_flood`. Default: 100. Range: 1 to
    /// 100000. Reloadable, for new connections.
    pub pings_per_second: Bounded<1, 100_000>,
    /// SETTINGS frames. Beyond: `settings_flood`. Default: 20. Range: 1 to 100000. Reloadable, for new
    /// connections.
    pub settings_per_second: Bounded<1, 100_000>,
    /// PRIORITY and PRIORITY_UPDATE frames; each request allows two more. Beyond: `priority_flood`.
    /// Default: 100. Range: 1 to 100000. Reloadable, for new connections.
    pub priorities_per_second: Bounded<1, 100_000>,
    /// WINDOW_UPDATE frames; each DATA frame sent allows four more. Beyond: `window_update_flood`. Default:
    /// 1000. Range: 1 to 1000000. Reloadable, for new connections.
    pub window_updates_per_second: Bounded<1, 1_000_000>,
    /// DATA frames that carry nothing and end nothing. Beyond: `empty_data_flood`. Default: 100. Range: 1
    /// to 100000. Reloadable, for new connections.
    pub empty_data_per_second: Bounded<1, 100_000>,
    /// Frames of unknown types. Beyond: `unknown_frame_flood`. Default: 100. Range: 1 to 100000.
    /// Reloadable, for new connections.
    pub unknown_frames_per_second: Bounded<1, 100_000>,
    /// Streams of one connection that were ended because the client opened no window for
    /// `timeouts.send_progress_ms` (count). Beyond: `stalled_window`. Default: 16. Range: 1 to 100000.
    /// Reloadable, for new connections.
    pub stalled_streams_max: Bounded<1, 100_000>,
}

impl Default for Http2File {
    fn default() -> Self {
        let recommended = Http2Limits::RECOMMENDED;
        Self {
            concurrent_streams_max: Bounded::clamped(recommended.concurrent_streams_max.into()),
            stream_window_bytes: Bounded::clamped(recommended.stream_window_bytes.into()),
            connection_window_bytes: Bounded::clamped(recommended.connection_window_bytes.into()),
            continuations_max: Bounded::clamped(recommended.continuations_max.into()),
            resets_per_second: Bounded::clamped(recommended.resets_per_second.into()),
            faults_per_second: Bounded::clamped(recommended.faults_per_second.into()),
            oversize_heads_per_second: Bounded::clamped(recommended.oversize_heads_per_second.into()),
            pings_per_second: Bounded::clamped(recommended.pings_per_second.into()),
            settings_per_second: Bounded::clamped(recommended.settings_per_second.into()),
            priorities_per_second: Bounded::clamped(recommended.priorities_per_second.into()),
            window_updates_per_second: Bounded::clamped(recommended.window_updates_per_second.into()),
            empty_data_per_second: Bounded::clamped(recommended.empty_data_per_second.into()),
            unknown_frames_per_second: Bounded::clamped(recommended.unknown_frames_per_second.into()),
            stalled_streams_max: Bounded::clamped(recommended.stalled_streams_max.into()),
        }
    }
}

impl Http2File {
    /// The validated form; every value is in its range already.
    pub(crate) fn limits(&self) -> Http2Limits {
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Http2Limits {
            concurrent_streams_max: narrow(self.concurrent_streams_max.value()),
            stream_window_bytes: narrow(self.stream_window_bytes.value()),
            connection_window_bytes: narrow(self.connection_window_bytes.value()),
            continuations_max: narrow(self.continuations_max.value()),
            resets_per_second: narrow(self.resets_per_second.value()),
            faults_per_second: narrow(self.faults_per_second.value()),
            oversize_heads_per_second: narrow(self.oversize_heads_per_second.value()),
            pings_per_second: narrow(self.pings_per_second.value()),
            settings_per_second: narrow(self.settings_per_second.value()),
            priorities_per_second: narrow(self.priorities_per_second.value()),
            window_updates_per_second: narrow(self.window_updates_per_second.value()),
            empty_data_per_second: narrow(self.empty_data_per_second.value()),
            unknown_frames_per_second: narrow(self.unknown_frames_per_second.value()),
            stalled_streams_max: narrow(self.stalled_streams_max.value()),
        }
    }
}
