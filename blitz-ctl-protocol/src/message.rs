//! Messages: what frames say.
//!
//! Owns: kinds and payloads of version 0, and which of them carry descriptors. Does not own: octets (see
//! [`crate::frame`]), or what is done about a message (`blitz-ctl`).
//!
//! Requests refuse unknown keys: a client that means something this version does not know must hear of it.
//! Answers ignore them.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Octets of a name, note or reason. What is longer is refused.
pub const TEXT_BYTES_MAX: usize = 120;
/// Versions that a hello may list (count).
pub const HELLO_VERSIONS_MAX: usize = 32;
/// Rows in one [`BlockedPage`] (count): it fits a frame with room to spare.
pub const PAGE_ROWS_MAX: usize = 256;

/// The kinds of version 0. Each is a frame of its own layout; [`Request`] and [`Answer`] tie them to payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// Client, first: [`Hello`].
    Hello = 1,
    /// Daemon, first: [`Welcome`].
    Welcome = 2,
    /// Daemon, instead of any answer: [`Sentence`].
    Error = 3,
    /// [`Report`], answered by [`Kind::ReportDone`].
    Report = 16,
    /// [`ReportDone`].
    ReportDone = 17,
    /// [`Unblock`], answered by [`Kind::UnblockDone`].
    Unblock = 18,
    /// [`UnblockDone`].
    UnblockDone = 19,
    /// [`ListBlocked`], answered by [`Kind::Blocked`].
    ListBlocked = 20,
    /// [`BlockedPage`].
    Blocked = 21,
    /// [`StatusQuery`], answered by [`Kind::StatusDone`].
    Status = 22,
    /// [`Status`].
    StatusDone = 23,
    /// [`OpenSocket`], answered by [`Kind::Socket`].
    OpenSocket = 24,
    /// [`Socket`] with one descriptor.
    Socket = 25,
    /// [`GiveDescriptor`] with one descriptor, answered by [`Kind::DescriptorFacts`].
    GiveDescriptor = 26,
    /// [`DescriptorFacts`].
    DescriptorFacts = 27,
    /// [`Steer`] with one descriptor, answered by [`Kind::SteerDone`].
    Steer = 32,
    /// [`SteerDone`].
    SteerDone = 33,
    /// [`OpenBank`] with one descriptor, answered by [`Kind::Bank`].
    OpenBank = 34,
    /// [`Bank`] with two descriptors.
    Bank = 35,
    /// [`PlaceSocket`] with one descriptor, answered by [`Kind::SocketPlaced`].
    PlaceSocket = 36,
    /// [`SocketPlaced`].
    SocketPlaced = 37,
    /// [`SteerBank`] with two descriptors, answered by [`Kind::BankSteered`].
    SteerBank = 38,
    /// [`BankSteered`].
    BankSteered = 39,
    /// [`QueuesQuery`], answered by [`Kind::Queues`].
    QueuesQuery = 40,
    /// [`Queues`].
    Queues = 41,
    /// [`OpenXdp`], answered by [`Kind::XdpSocket`].
    OpenXdp = 42,
    /// [`XdpSocket`] with one descriptor.
    XdpSocket = 43,
    /// [`SeatXdp`] with one descriptor, answered by [`Kind::SeatDone`].
    SeatXdp = 44,
    /// [`SeatDone`].
    SeatDone = 45,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 29] = [
        Self::Hello,
        Self::Welcome,
        Self::Error,
        Self::Report,
        Self::ReportDone,
        Self::Unblock,
        Self::UnblockDone,
        Self::ListBlocked,
        Self::Blocked,
        Self::Status,
        Self::StatusDone,
        Self::OpenSocket,
        Self::Socket,
        Self::GiveDescriptor,
        Self::DescriptorFacts,
        Self::Steer,
        Self::SteerDone,
        Self::OpenBank,
        Self::Bank,
        Self::PlaceSocket,
        Self::SocketPlaced,
        Self::SteerBank,
        Self::BankSteered,
        Self::QueuesQuery,
        Self::Queues,
        Self::OpenXdp,
        Self::XdpSocket,
        Self::SeatXdp,
        Self::SeatDone,
    ];

    /// The kind of a number; `None` when this version does not know it.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == number)
    }

    /// How many descriptors come with a frame of this kind.
    pub const fn descriptors(self) -> usize {
        match self {
            Self::Socket
            | Self::GiveDescriptor
            | Self::Steer
            | Self::OpenBank
            | Self::PlaceSocket
            | Self::XdpSocket
            | Self::SeatXdp => 1,
            Self::Bank | Self::SteerBank => 2,
            _ => 0,
        }
    }
}

/// A payload and its kind.
pub trait Message: Serialize + DeserializeOwned {
    /// The kind of its frame.
    const KIND: Kind;
}

/// A payload that a client sends, and the one that answers it.
pub trait Request: Message {
    /// What answers it.
    type Answer: Message;
}

macro_rules! messages {
    ($($message:ident: $kind:ident $(-> $answer:ident)?;)+) => {$(
        impl Message for $message {
            const KIND: Kind = Kind::$kind;
        }
        $(impl Request for $message {
            type Answer = $answer;
        })?
    )+};
}

messages! {
    Hello: Hello -> Welcome;
    Welcome: Welcome;
    Sentence: Error;
    Report: Report -> ReportDone;
    ReportDone: ReportDone;
    Unblock: Unblock -> UnblockDone;
    UnblockDone: UnblockDone;
    ListBlocked: ListBlocked -> BlockedPage;
    BlockedPage: Blocked;
    StatusQuery: Status -> Status;
    Status: StatusDone;
    OpenSocket: OpenSocket -> Socket;
    Socket: Socket;
    GiveDescriptor: GiveDescriptor -> DescriptorFacts;
    DescriptorFacts: DescriptorFacts;
    Steer: Steer -> SteerDone;
    SteerDone: SteerDone;
    OpenBank: OpenBank -> Bank;
    Bank: Bank;
    PlaceSocket: PlaceSocket -> SocketPlaced;
    SocketPlaced: SocketPlaced;
    SteerBank: SteerBank -> BankSteered;
    BankSteered: BankSteered;
    QueuesQuery: QueuesQuery -> Queues;
    Queues: Queues;
    OpenXdp: OpenXdp -> XdpSocket;
    XdpSocket: XdpSocket;
    SeatXdp: SeatXdp -> SeatDone;
    SeatDone: SeatDone;
}

/// The first frame of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Versions that the client speaks, at most [`HELLO_VERSIONS_MAX`].
    pub versions: Vec<u32>,
    /// Who it is, for the daemon's log: `blitz`. At most [`TEXT_BYTES_MAX`] octets.
    pub name: String,
}

/// The first frame of the daemon: the highest version that both speak.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version of all that follows.
    pub version: u32,
}

/// Why the daemon declines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sentence {
    /// Cause and remedy.
    pub sentence: String,
}

/// A source that misbehaved on an established TCP connection: the data plane saw its handshake, so the
/// address is not forged. Never an address out of a header field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The connection's own peer. An IPv6 source is blocked with its /64.
    pub source: IpAddr,
    /// What it did.
    pub reason: Reason,
    /// How long it shall be blocked, milliseconds. The daemon cuts it to its own bound of one hour.
    pub ttl_ms: u64,
    /// The connection.
    pub connection: ConnectionFacts,
}

/// The connection on which a source misbehaved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionFacts {
    /// The peer's address; its IP address is the report's source.
    pub peer: SocketAddr,
    /// Our address.
    pub local: SocketAddr,
    /// For the operator: which rule, such as `content_length_and_transfer_encoding` or `limit:per_source`. At
    /// most [`TEXT_BYTES_MAX`] octets.
    #[serde(default)]
    pub note: String,
}

/// Why a source is blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Ambiguous or broken framing: attempts to smuggle requests.
    Framing,
    /// Requests far over a limit.
    Limit,
    /// An operator said so; accepted from root only.
    Operator,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Framing, Self::Limit, Self::Operator];

    /// The value of the metric label `reason`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Framing => "framing",
            Self::Limit => "limit",
            Self::Operator => "operator",
        }
    }

    /// The name of the rule that counts what is dropped for it.
    pub const fn rule_name(self) -> &'static str {
        match self {
            Self::Framing => "block:framing",
            Self::Limit => "block:limit",
            Self::Operator => "block:operator",
        }
    }
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The source is blocked from now on.
    Blocked,
    /// It was blocked already; the later of the two ends holds.
    Already,
    /// The blocklist is full; nothing was done.
    Capped,
    /// No interface has the stage, or blocking for this reason is switched off; nothing was done.
    Off,
    /// The source is one that is never blocked: our own, loopback, allowed or a management address.
    Exempt,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 5] = [Self::Blocked, Self::Already, Self::Capped, Self::Off, Self::Exempt];

    /// The value of the metric label `outcome`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Already => "already",
            Self::Capped => "capped",
            Self::Off => "off",
            Self::Exempt => "exempt",
        }
    }
}

/// The answer to a [`Report`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportDone {
    /// What became of it.
    pub outcome: Outcome,
    /// Milliseconds until the block ends; 0 when there is none.
    pub remaining_ms: u64,
}

/// Takes a source off the blocklist, whatever put it there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unblock {
    /// The source; of an IPv6 source its /64.
    pub source: IpAddr,
}

/// The answer to an [`Unblock`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnblockDone {
    /// Whether it was on the list.
    pub was_blocked: bool,
}

/// Asks for the blocklist, a page at a time, in an order that stays the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListBlocked {
    /// The last source of the page before; nothing for the first page.
    #[serde(default)]
    pub after: Option<IpAddr>,
}

/// A part of the blocklist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedPage {
    /// At most [`PAGE_ROWS_MAX`] rows.
    pub rows: Vec<Blocked>,
    /// Whether there are rows behind the last one.
    pub more: bool,
}

/// One blocked source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// The address; of an IPv6 source the first of its /64.
    pub source: IpAddr,
    /// Why; `None` when a rule of another name counts it.
    pub reason: Option<Reason>,
    /// Milliseconds since it began.
    pub age_ms: u64,
    /// Milliseconds until it ends; `None` when it does not.
    pub remaining_ms: Option<u64>,
    /// The note of the report, empty when it is not known (any more).
    pub note: String,
}

/// Asks how the daemon is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusQuery {}

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Milliseconds since its start.
    pub uptime_ms: u64,
    /// Interfaces whose stage it manages.
    pub interfaces: Vec<String>,
    /// Sources on the blocklist.
    pub blocked: u64,
    /// Most sources that may be there.
    pub blocked_max: u64,
}

/// Asks for a socket that the daemon binds. The daemon has no right to ports below 1024 beyond what
/// `net.ipv4.ip_unprivileged_port_start` gives to everybody, unless its unit grants CAP_NET_BIND_SERVICE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSocket {
    /// Which socket.
    pub protocol: SocketProtocol,
    /// Where it is bound.
    pub address: SocketAddr,
}

/// A protocol of [`OpenSocket`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketProtocol {
    /// A TCP socket, bound and listening.
    Tcp,
    /// A UDP socket, bound.
    Udp,
}

/// Hands a descriptor to the daemon, which says what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GiveDescriptor {}

/// The answer to an [`OpenSocket`]; the descriptor comes with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Socket(pub SocketFacts);

/// The answer to a [`GiveDescriptor`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DescriptorFacts(pub SocketFacts);

/// What a socket is, in the numbers of socket(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFacts {
    /// SO_DOMAIN: 2 is AF_INET, 10 is AF_INET6.
    pub domain: i32,
    /// SO_TYPE: 1 is SOCK_STREAM, 2 is SOCK_DGRAM.
    pub kind: i32,
    /// SO_PROTOCOL: 6 is TCP, 17 is UDP.
    pub protocol: i32,
}

/// Says how QUIC is steered in every stage, and is said again every few seconds: a bad connection ID may be dropped
/// only while somebody stands by the keys.
///
/// The descriptor is a file whose first octets are what `blitz_ebpf_common::steer::Steering::to_bytes` gives: keys, the
/// number of workers, the generation of new connections. So no key is ever in a message, which may be logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Steer {
    /// Generation and number of each worker that lives, as connection IDs have them.
    pub alive: Vec<(u32, u32)>,
}

/// The answer to a [`Steer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteerDone {
    /// Interfaces whose stage steers so now.
    pub interfaces: Vec<String>,
}

/// Asks for a program that steers among the sockets of one UDP address. The descriptor is that of a [`Steer`].
///
/// Then each socket of the address is put in its place with [`PlaceSocket`], on the same connection, and the client
/// attaches the program to any of them. It stays with the sockets, whatever becomes of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenBank {}

/// The answer to an [`OpenBank`]. The descriptors: the program, and the map that says how it steers, which is of use
/// in a [`SteerBank`] only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bank {}

/// Puts a socket in its place in the bank that this connection has opened last. The descriptor is the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceSocket {
    /// Its index in the bank.
    pub index: u32,
}

/// The answer to a [`PlaceSocket`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketPlaced {}

/// Says how a bank's program steers from now on. The descriptors: the map of its [`Bank`], and that of a [`Steer`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SteerBank {}

/// The answer to a [`SteerBank`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BankSteered {}

/// Asks about an interface, for whoever wants frames of its receive queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueuesQuery {
    /// Its name, at most [`TEXT_BYTES_MAX`] octets.
    pub interface: String,
}

/// The answer to a [`QueuesQuery`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queues {
    /// The interface's number.
    pub index: u32,
    /// Largest packet without the link's header, octets.
    pub mtu: u32,
    /// Receive queues in use.
    pub queues: u32,
    /// Who has which. `None`: the interface has no stage.
    pub seats: Option<Vec<QueueSeat>>,
}

/// A receive queue and the worker that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueSeat {
    /// Number of the queue.
    pub queue: u32,
    /// Generation of the worker, as connection IDs have it.
    pub generation: u32,
    /// Number of the worker, as connection IDs have it.
    pub worker: u32,
}

/// Asks for an AF_XDP socket, which takes a right that workers do not have. It is bound to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenXdp {}

/// The answer to an [`OpenXdp`]; the descriptor comes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpSocket {}

/// Hands over an AF_XDP socket that is bound to a receive queue, so that the stage sends it what is for its worker. The
/// daemon closes its copy: nobody can bind to the queue as long as one is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeatXdp {
    /// The interface's name, at most [`TEXT_BYTES_MAX`] octets.
    pub interface: String,
    /// The queue and its worker.
    pub seat: QueueSeat,
}

/// The answer to a [`SeatXdp`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatDone {}
