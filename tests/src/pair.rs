//! One exchange in the hands of a test, whatever protocol either side speaks.
//!
//! Owns: a client's and an endpoint's view of an exchange over HTTP/1.1, HTTP/2 and, at the client, HTTP/3, raw:
//! nothing is sent that no test asks for. Does not own: bytes and frames ([`crate::client`], [`crate::upstream`],
//! [`crate::h2raw`], [`crate::h2endpoint`], [`crate::h3`]), large bodies (windows of a client of HTTP/2 are not kept:
//! 65,535 bytes each way).

mod call;
mod served;

use std::net::SocketAddr;

pub use call::{Answer, Call, H3Call};
pub use served::{Endpoint, Served};

use crate::gateway::{LISTENER, one_upstream};
use crate::h2raw::{flag, headers, request};
use crate::{
    Bypass, Cell, Client, Gateway, H2, H2Endpoint, H3, Netns, Pki, Setup, Upstream, bypass, h3, require,
};

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1.
    H1,
    /// HTTP/2 with prior knowledge.
    H2,
    /// HTTP/3, at clients only.
    H3,
}

/// What both sides speak, on one engine and in one mode.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Engine and mode.
    pub cell: Cell,
    /// The clients.
    pub down: Http,
    /// The endpoints.
    pub up: Http,
    /// Between clients and the gateway, when datagrams do not go by the kernel's UDP.
    bypass: Option<&'a Bypass>,
}

/// Makes 32 tests of each function that takes a [`Pair`]: three protocols of clients, two of endpoints, in each cell;
/// and HTTP/3 once more by AF_XDP.
#[macro_export]
macro_rules! pairs {
    (@test $name:ident $way:ident $down:ident $up:ident $test:ident $io:ident $mode:ident) => {
        #[test]
        fn $test() {
            let (down, up) = ($crate::pair::Http::$down, $crate::pair::Http::$up);
            if let Some(cell) = $crate::Cell::available($crate::Io::$io, $crate::Mode::$mode) {
                $crate::pair::Pair::new(cell, down, up).$way(super::super::$name);
            }
        }
    };
    (@cells $name:ident $pair:ident $way:ident $down:ident $up:ident) => {
        mod $pair {
            $crate::pairs!(@test $name $way $down $up uring_mp Uring Mp);
            $crate::pairs!(@test $name $way $down $up uring_sp Uring Sp);
            $crate::pairs!(@test $name $way $down $up epoll_mp Epoll Mp);
            $crate::pairs!(@test $name $way $down $up epoll_sp Epoll Sp);
        }
    };
    ($($(#[$meta:meta])* fn $name:ident($pair:ident) $body:block)+) => { $(
        $(#[$meta])*
        fn $name($pair: $crate::pair::Pair<'_>) $body
        mod $name {
            $crate::pairs!(@pair $name);
        }
    )+ };
    (@pair $name:ident) => {
        $crate::pairs!(@cells $name h1_h1 by_the_kernel H1 H1);
        $crate::pairs!(@cells $name h1_h2 by_the_kernel H1 H2);
        $crate::pairs!(@cells $name h2_h1 by_the_kernel H2 H1);
        $crate::pairs!(@cells $name h2_h2 by_the_kernel H2 H2);
        $crate::pairs!(@cells $name h3_h1 by_the_kernel H3 H1);
        $crate::pairs!(@cells $name h3_h2 by_the_kernel H3 H2);
        $crate::pairs!(@cells $name h3_h1_by_af_xdp by_af_xdp H3 H1);
        $crate::pairs!(@cells $name h3_h2_by_af_xdp by_af_xdp H3 H2);
    };
}

impl Pair<'_> {
    /// By the kernel's TCP and UDP, over loopback.
    pub fn new(cell: Cell, down: Http, up: Http) -> Self {
        Self { cell, down, up, bypass: None }
    }

    /// Runs a test as it is.
    pub fn by_the_kernel(self, test: impl FnOnce(Pair<'_>)) {
        test(self);
    }

    /// Runs a test where the gateway is behind a stage that gives it HTTP/3's datagrams, and clients are at the other
    /// end of its wire. [`Gateway::stop`] fails when one came otherwise.
    ///
    /// # Panics
    /// When the test does, or nothing went that way.
    #[track_caller]
    pub fn by_af_xdp(self, test: impl FnOnce(Pair<'_>) + Send) {
        if !Netns::available() {
            return;
        }
        // Locked memory is counted for all processes of a user together.
        let _alone = require::alone();
        let bypass = Bypass::new("native");
        // Endpoints on loopback are the gateway's neighbours.
        bypass.wire.host.run(|| test(Pair { bypass: Some(&bypass), ..self }));
        assert!(bypass.stage.counters(&bypass.wire).verdict("redirected") > 0, "nothing was redirected");
    }

    /// A gateway between the two, with `more` in its configuration.
    #[track_caller]
    pub fn gateway(self, endpoint: SocketAddr, more: &str) -> Gateway {
        let spoken = if self.up == Http::H2 { "h2" } else { "h1" };
        let toml = one_upstream(&[endpoint], more)
            .replace("[upstreams.pool]", &format!("[upstreams.pool]\nprotocol = \"{spoken}\""));
        if let Some(bypass) = self.bypass {
            let setup = bypass.setup(self.cell, &bypass.config(&toml));
            return bypass.start(setup.at_stop(bypass::all_went_past_the_kernel));
        }
        if self.down == Http::H3 {
            // Its files are needed until the gateway has started.
            let pki = Pki::edge();
            return Setup::new(self.cell).config(&toml.replace(LISTENER, &pki.h3_listener(""))).start();
        }
        Setup::new(self.cell).config(&toml.replace("[\"h1\"]", "[\"h1\", \"h2\"]")).start()
    }

    /// An endpoint that has a script for each request.
    pub fn endpoint(
        self,
        script: impl Fn(&mut Served<'_>) -> Option<()> + Send + Sync + 'static,
    ) -> Endpoint {
        match self.up {
            Http::H1 => Endpoint::H1(Upstream::start(move |conn| {
                loop {
                    let head = conn.head()?;
                    script(&mut Served::H1 { conn, head, is_chunked: false })?;
                }
            })),
            Http::H2 => Endpoint::H2(H2Endpoint::start(move |conn| {
                loop {
                    let stream = conn.head()?.stream;
                    script(&mut Served::H2 { conn, stream })?;
                }
            })),
            Http::H3 => panic!("endpoints do not speak HTTP/3"),
        }
    }

    /// A connection of HTTP/3.
    #[track_caller]
    pub fn connect_h3(self, gateway: &Gateway) -> H3 {
        match self.bypass {
            Some(bypass) => bypass.connect(),
            None => H3::connect(gateway.address, "edge.test"),
        }
    }

    /// Begins an exchange on a connection of its own.
    #[track_caller]
    pub fn call(self, gateway: &Gateway, method: &str, more: &[(&str, &str)], length: Length) -> Call {
        let mut more = more.to_vec();
        let digits;
        if let Length::Known(bytes) = length {
            digits = bytes.to_string();
            more.push(("content-length", &digits));
        }
        match self.down {
            Http::H1 => {
                let is_chunked = length == Length::Unknown;
                if is_chunked {
                    more.push(("transfer-encoding", "chunked"));
                }
                if more.iter().any(|(name, _)| *name == "te") {
                    more.push(("connection", "te"));
                }
                let lines: String = more.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let mut client = Client::connect(gateway.address);
                client.send(format!("{method} /x HTTP/1.1\r\nhost: test\r\n{lines}\r\n"));
                Call::H1 { client, method: method.to_owned(), is_chunked }
            }
            Http::H2 => {
                let flags = flag::END_HEADERS | if length == Length::None { flag::END_STREAM } else { 0 };
                let mut h2 = H2::connect(gateway.address);
                h2.send(headers(1, flags, &request(method, "/x", &more)));
                Call::H2 { h2 }
            }
            Http::H3 => {
                let fields = [&h3::request(method, "/x")[..], &more].concat();
                let client = Box::new(self.connect_h3(gateway));
                Call::H3(H3Call::begin(client, &fields, length == Length::None))
            }
        }
    }
}

/// What a head says of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// There is none.
    None,
    /// So many bytes.
    Known(usize),
    /// The end will tell.
    Unknown,
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn last_chunk(trailers: &[(&str, &str)]) -> String {
    let lines: String = trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("0\r\n{lines}\r\n")
}

fn lines(fields: &[(String, String)]) -> String {
    fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}
