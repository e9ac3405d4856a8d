//! Early data (0-RTT, RFC 8446 section 2.3) as BoringSSL sees it: for which tickets it is taken, and what became of it.
//!
//! A ticket is good for early data only where it was given out: by this start of this gateway, whose workers remember the
//! flights that came (`crate::segment::seen`), and while the limits are the same that the client remembers (RFC 9000
//! section 7.4.1). Elsewhere it still resumes. Owns: that, and reading it off a connection. Does not own: flights that come
//! again, and what becomes of requests (`crate::http3::early`).
#![forbid(unsafe_code)]

use std::sync::LazyLock;

use aws_lc_rs::digest;
use boring::ex_data::Index;
use boring::ssl::{ClientHello, ExtensionType, Ssl};

use super::tickets;
use crate::sys::boring::allow_early_data;

/// What names a first flight: the client's random number, which its ticket's binder vouches for.
pub(crate) type Flight = [u8; 32];

/// What TLS has made of a client's early data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EarlyData {
    /// The ClientHello is not there yet.
    Undecided,
    /// None was announced.
    None,
    /// It is being read.
    Taken(Flight),
    /// It is thrown away; the client sends it again after the handshake.
    Refused(Refusal),
}

/// Why early data is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The ticket was given out by another start or host, or under other limits.
    Issuer,
    /// The ticket cannot be opened.
    Ticket,
    /// The client and we do not agree on the ticket's age.
    TicketAge,
    /// Another protocol or key agreement than the session had.
    Other,
}

/// The name that tickets carry: of a table of flights, and of what is promised to those who send early data.
pub(super) fn issuer(table: u64, promises: &str) -> u64 {
    let mut digest = digest::Context::new(&digest::SHA256);
    digest.update(&table.to_be_bytes());
    digest.update(promises.as_bytes());
    digest.finish().as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// Kept with a connection whose client has announced early data: whether its ticket is good for it.
static OFFER: LazyLock<Option<Index<Ssl, bool>>> = LazyLock::new(|| Ssl::new_ex_index().ok());

/// Looks at what a client announces, before BoringSSL decides.
pub(super) fn consider(hello: &mut ClientHello<'_>, issuer: u64) {
    if hello.get_extension(ExtensionType::EARLY_DATA).is_none() {
        return;
    }
    let ticket = hello.get_extension(ExtensionType::PRE_SHARED_KEY).and_then(first_ticket);
    let is_good = ticket.and_then(tickets::issuer) == Some(issuer);
    if !is_good {
        allow_early_data(hello.ssl_mut(), false);
    }
    if let Some(index) = *OFFER {
        hello.ssl_mut().set_ex_data(index, is_good);
    }
}

/// The first ticket of a `pre_shared_key` extension (RFC 8446 section 4.2.11), the only one that BoringSSL looks at.
fn first_ticket(extension: &[u8]) -> Option<&[u8]> {
    let (length, rest) = extension.get(2..)?.split_first_chunk()?;
    rest.get(..usize::from(u16::from_be_bytes(*length)))
}

/// What became of it. Once it is known, new tickets are good for early data again.
pub(crate) fn early_data(quic: &mut quiche::Connection) -> EarlyData {
    // As BoringSSL numbers its reasons (`ssl_early_data_reason_t`).
    const UNKNOWN: u32 = 0;
    const ACCEPTED: u32 = 2;
    const SESSION_NOT_RESUMED: u32 = 6;
    const TICKET_AGE_SKEW: u32 = 12;
    let reason = quic.early_data_reason();
    let ssl: &mut boring::ssl::SslRef = quic.as_mut();
    let offer = OFFER.and_then(|index| ssl.ex_data(index).copied());
    match (reason, offer) {
        (UNKNOWN, _) => return EarlyData::Undecided,
        (_, None) => return EarlyData::None,
        (ACCEPTED, _) => {
            let mut flight = Flight::default();
            ssl.client_random(&mut flight);
            return EarlyData::Taken(flight);
        }
        (_, Some(_)) => allow_early_data(ssl, true),
    }
    EarlyData::Refused(match (reason, offer) {
        (SESSION_NOT_RESUMED, _) => Refusal::Ticket,
        (_, Some(false)) => Refusal::Issuer,
        (TICKET_AGE_SKEW, _) => Refusal::TicketAge,
        _ => Refusal::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ticket_is_found_within_any_number_of_bytes() {
        let extension = [0, 9, 0, 3, 7, 8, 9, 0, 0, 0, 0, 0, 33];
        assert_eq!(first_ticket(&extension), Some(&[7, 8, 9][..]));
        for at in 0..7 {
            assert_eq!(first_ticket(&extension[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn tickets_name_the_table_and_what_was_promised() {
        assert_eq!(issuer(1, "a"), issuer(1, "a"));
        assert_ne!(issuer(1, "a"), issuer(2, "a"));
        assert_ne!(issuer(1, "a"), issuer(1, "b"));
    }
}
