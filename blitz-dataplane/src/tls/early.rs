//! Early data (0-RTT, RFC 8446 section 2.3) as BoringSSL sees it: for which sessions it is taken, and what became of
//! it.
//!
//! A session is good for early data only where it was begun: with this start of this gateway, whose workers remember
//! the flights that came (`crate::segment::seen`), and while the limits are the same that the client remembers (RFC
//! 9000 section 7.4.1). Elsewhere it still resumes. Owns: that, and reading it off a connection. Does not own:
//! flights that come again, and what becomes of requests (`crate::http3::early`).
#![forbid(unsafe_code)]

use aws_lc_rs::digest;

/// What names a first flight: the client's random number, which its ticket's binder vouches for.
pub(crate) type Flight = [u8; 32];

/// What a session has to have been begun under, kept within its ticket.
pub(super) type Context = [u8; digest::SHA256_OUTPUT_LEN];

/// What TLS has made of a client's early data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EarlyData {
    /// The ClientHello is not there yet.
    Undecided,
    /// None comes.
    None,
    /// It is being read.
    Taken(Flight),
    /// It is thrown away; the client sends it again after the handshake.
    Refused(Refusal),
}

/// Why early data is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The session was begun by another start or host, or under other limits.
    Elsewhere,
    /// The client and we do not agree on the ticket's age.
    TicketAge,
    /// Another protocol or key agreement than the session had.
    Other,
}

/// Of the table of flights with this name, and of what is promised to those who send early data.
pub(super) fn context(table: u64, promises: &str) -> Context {
    let mut digest = digest::Context::new(&digest::SHA256);
    digest.update(&table.to_be_bytes());
    digest.update(promises.as_bytes());
    let mut context = Context::default();
    context.copy_from_slice(digest.finish().as_ref());
    context
}

/// What became of it.
pub(crate) fn early_data(quic: &mut quiche::Connection) -> EarlyData {
    // As BoringSSL numbers its reasons (`ssl_early_data_reason_t`). Those from 3 to 7 say that the client sends none,
    // or that its ticket is not opened or was never good for any.
    match quic.early_data_reason() {
        0 => EarlyData::Undecided,
        1 | 3..=7 => EarlyData::None,
        2 => {
            let ssl: &mut boring::ssl::SslRef = quic.as_mut();
            let mut flight = Flight::default();
            ssl.client_random(&mut flight);
            EarlyData::Taken(flight)
        }
        12 => EarlyData::Refused(Refusal::TicketAge),
        13 => EarlyData::Refused(Refusal::Elsewhere),
        _ => EarlyData::Refused(Refusal::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_of_one_table_and_of_what_was_promised() {
        assert_eq!(context(1, "a"), context(1, "a"));
        assert_ne!(context(1, "a"), context(2, "a"));
        assert_ne!(context(1, "a"), context(1, "b"));
    }
}
