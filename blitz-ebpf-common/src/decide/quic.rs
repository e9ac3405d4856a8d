//! QUIC in the stage: what a datagram is, and whether a socket of its own receive queue gets it.
//!
//! Owns: the sanity of a datagram to a service of the gateway that speaks QUIC, and the steering of it. Does not own:
//! where connection IDs lie ([`crate::quic`]) and what they say ([`crate::cid`]), which worker gets what the kernel
//! gets ([`crate::steer`]), the maps' contents (`blitz-ctl`).
//!
//! An AF_XDP socket receives from one queue only, so there is one question: does the worker that this datagram is for
//! own the queue on which it came? Everything else goes to the kernel, where the bank of sockets steers. A client's
//! first datagrams belong to whoever owns the queue on which they come: the same client's come on the same queue.

use super::Tables;
use crate::cid::{CID_BYTES, Routing};
use crate::gcra::{self, Take};
use crate::layout::{Fault, SETTING_DROP_BAD, STEER_VERSION, Seat, Steer, Steered};
use crate::packet::{Bytes, Packet};
use crate::quic::{self, Header, VERSION_NEGOTIATION, v1};

/// Octets of a UDP header.
const UDP_HEADER: usize = 8;

/// What was found out about a datagram, and what follows.
///
/// One word with a bit for each course, so that the kernel's verifier goes on with one state and not with one for each
/// thing that can be found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    packed: u32,
}

impl Found {
    const REASON: u32 = 0xff;
    const SOCKET: u32 = 1 << 8;
    const DROP: u32 = 1 << 9;

    /// The [`Steered`] by its number, for the counters.
    #[inline(always)]
    pub const fn reason(self) -> u32 {
        self.packed & Self::REASON
    }

    /// Whether the socket of the packet's receive queue gets it.
    #[inline(always)]
    pub const fn is_for_socket(self) -> bool {
        self.packed & Self::SOCKET != 0
    }

    /// Whether it ends here.
    #[inline(always)]
    pub const fn drops(self) -> bool {
        self.packed & Self::DROP != 0
    }

    /// As a word that [`Self::from_word`] takes, to be returned from a function of its own.
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        self.packed
    }

    /// What [`Self::to_word`] gave.
    #[inline(always)]
    pub const fn from_word(packed: u32) -> Self {
        Self { packed }
    }

    #[inline(always)]
    fn new<T: Tables>(steered: Steered, tables: &T) -> Self {
        let is_dropped = match steered {
            Steered::SmallInitial | Steered::VersionOver => true,
            Steered::Cut | Steered::VersionNegotiation => drops_bad(tables),
            // That it is bad can only be said while somebody stands by the keys.
            Steered::BadCid => {
                drops_bad(tables) && keys(tables).is_some_and(|steer| tables.now() < steer.drop_until)
            }
            _ => false,
        };
        let is_for_socket = matches!(steered, Steered::Owner | Steered::Fresh);
        let bit = |is_set, bit| if is_set { bit } else { 0 };
        Self { packed: steered as u32 | bit(is_for_socket, Self::SOCKET) | bit(is_dropped, Self::DROP) }
    }
}

/// Looks at the datagram of a frame of `frame_length` octets whose UDP header lies at `udp_at`; 0 when it is not whole
/// or out of sight.
#[inline(always)]
pub fn examine<B: Bytes + ?Sized, T: Tables>(
    frame: &B,
    udp_at: usize,
    frame_length: usize,
    tables: &T,
) -> Found {
    let steered = if udp_at == 0 { Steered::Fragment } else { read(frame, udp_at, frame_length, tables) };
    Found::new(steered, tables)
}

/// Where the UDP header lies if all of the datagram is behind it; else 0.
#[inline(always)]
pub(super) const fn udp_at(packet: &Packet) -> usize {
    if packet.fragment || packet.hidden { 0 } else { packet.transport_at }
}

#[inline(always)]
fn read<B: Bytes + ?Sized, T: Tables>(frame: &B, udp_at: usize, frame_length: usize, tables: &T) -> Steered {
    let Some(udp_length) = frame.array(udp_at + 4).map(u16::from_be_bytes) else { return Steered::Cut };
    // What UDP says counts, since a frame may be padded; and what is there, since that may lie.
    let udp_length = usize::from(udp_length);
    if udp_length < UDP_HEADER || udp_at + udp_length > frame_length {
        return Steered::Cut;
    }
    let (at, length) = (udp_at + UDP_HEADER, udp_length - UDP_HEADER);
    match quic::parse(frame, at, length) {
        Err(_) => Steered::Cut,
        Ok(Header::Short { dcid_at }) => match (frame.array(dcid_at), keys(tables)) {
            (None, _) => Steered::Cut,
            (_, None) => Steered::Unset,
            (Some(cid), Some(steer)) => match steer.codec.decode(&cid) {
                Ok(routing) => owned(routing, tables),
                Err(_) => Steered::BadCid,
            },
        },
        Ok(Header::Long { version: VERSION_NEGOTIATION, .. }) => Steered::VersionNegotiation,
        Ok(Header::Long { first, version, dcid, .. }) if version == v1::VERSION => {
            if v1::is_initial(first) && length < v1::INITIAL_DATAGRAM_MIN {
                return Steered::SmallInitial;
            }
            if dcid.length > v1::CID_MAX {
                return Steered::BadCid;
            }
            let Some(steer) = keys(tables) else { return Steered::Unset };
            if usize::from(dcid.length) == CID_BYTES
                && let Some(cid) = frame.array(dcid.at)
                && let Ok(routing) = steer.codec.decode(&cid)
            {
                return owned(routing, tables);
            }
            fresh(steer, tables)
        }
        Ok(Header::Long { .. }) => unknown_version(tables),
    }
}

#[inline(always)]
fn drops_bad<T: Tables>(tables: &T) -> bool {
    tables.settings().flags & SETTING_DROP_BAD != 0
}

#[inline(always)]
fn keys<T: Tables>(tables: &T) -> Option<&Steer> {
    tables.steer().filter(|steer| steer.version == STEER_VERSION)
}

/// A connection ID of ours.
#[inline(always)]
fn owned<T: Tables>(routing: Routing, tables: &T) -> Steered {
    let seat = Seat::of(routing);
    if tables.queue() == seat {
        Steered::Owner
    } else if tables.worker(seat.index()) == seat {
        Steered::Elsewhere
    } else {
        Steered::UnknownWorker
    }
}

/// A connection ID that a client chose.
#[inline(always)]
fn fresh<T: Tables>(steer: &Steer, tables: &T) -> Steered {
    let owner = tables.queue();
    if owner.is_taken() && owner.generation() == steer.generation {
        Steered::Fresh
    } else {
        Steered::FreshElsewhere
    }
}

/// A version that we do not speak: its sender is told so, a bounded number of times a second.
#[inline(always)]
fn unknown_version<T: Tables>(tables: &T) -> Steered {
    let rate = tables.settings().versions;
    if !rate.limits() {
        return Steered::Version;
    }
    let Some(word) = tables.versions() else {
        tables.fault(Fault::NoEntry);
        return Steered::Version;
    };
    match gcra::take(word, gcra::units(tables.now()), rate.cost(1), rate.depth) {
        Take::Granted => Steered::Version,
        Take::Refused { .. } => Steered::VersionOver,
        Take::Contended => {
            tables.fault(Fault::Contended);
            Steered::VersionOver
        }
    }
}
