//! Early data (0-RTT): which requests go on before the handshake is done (RFC 8470).
//!
//! Whoever has seen a first flight can send it again, and what is in it would be done again. So only a request that
//! changes nothing is passed on before the handshake is done, and says so (`Early-Data: 1`); only when its flight
//! comes for the first time; everything else waits until the client has answered, which nobody can who only repeats.
//!
//! Owns: that choice. Does not own: for which sessions early data is taken (`crate::tls::early`), the memory of
//! flights (`crate::segment::seen`).

use crate::exchange::{Method, RequestHead};
use crate::metrics::names::Metric;
use crate::segment::{Sight, WorkerRows};
use crate::tls::early::{EarlyData, Refusal, early_data};

/// What is known of a connection's early data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Early {
    /// Nothing yet.
    Unknown,
    /// There is none, or its requests wait for the handshake.
    Waits,
    /// Its flight is a new one.
    Goes,
}

/// Judges a connection whose client's first datagrams are being taken, at `now` (Unix seconds). Has to be asked after
/// each of them: a flight whose handshake was quick has to be remembered as well.
pub(super) fn judge(quic: &mut quiche::Connection, rows: &WorkerRows, now: u64) -> Early {
    let (metric, early) = match early_data(quic) {
        EarlyData::Undecided => return Early::Unknown,
        EarlyData::None => return Early::Waits,
        EarlyData::Taken(flight) => match rows.segment().seen().map(|seen| seen.enter(&flight, now)) {
            Some(Sight::First) => (Metric::EarlyDataAccepted, Early::Goes),
            Some(Sight::Again) => (Metric::EarlyDataReplayed, Early::Waits),
            Some(Sight::Full) | None => (Metric::EarlyDataFull, Early::Waits),
        },
        EarlyData::Refused(Refusal::Elsewhere) => (Metric::EarlyDataElsewhere, Early::Waits),
        EarlyData::Refused(Refusal::TicketAge) => (Metric::EarlyDataTicketAge, Early::Waits),
        EarlyData::Refused(Refusal::Other) => (Metric::EarlyDataOther, Early::Waits),
    };
    rows.add(metric, 1);
    early
}

/// Whether a request may be done twice: it asks for nothing to be changed (RFC 9110 section 9.2.1) and has no body.
pub(super) fn is_safe(head: &RequestHead, has_body: bool) -> bool {
    matches!(head.method, Method::Get | Method::Head | Method::Options) && !has_body && head.upgrade.is_none()
}
