//! RFC 9113 and RFC 7541: what a client may do wrong, byte by byte, and what a server must answer; what it may do
//! right and a server must take. Each case is named by the section that it is about.
//!
//! After each case that leaves the connection open, a request on it is answered: nothing else was disturbed.

use std::net::SocketAddr;

use blitz_tests::h2raw::{
    H2, Outcome, PREFACE, code, data, field, field_indexed, flag, frame, get, headers, integer, kind, ping,
    request, reset, settings, string, window_update,
};
use blitz_tests::{Setup, matrix};

use Expect::{Alive, Answer, ConnectionError, StreamError};

/// What must follow.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// GOAWAY with this code, then the end.
    ConnectionError(u32),
    /// RST_STREAM with this code, and the connection lives.
    StreamError(u32, u32),
    /// An answer with this status on the stream, and the connection lives.
    Answer(u32, u16),
    /// Nothing happens, and the connection lives.
    Alive,
}

struct Case {
    section: &'static str,
    name: &'static str,
    sent: Vec<u8>,
    expect: Expect,
}

/// A list of cases: section, name, the pieces sent, what must follow.
macro_rules! cases {
    ($($section:literal $name:literal [$($piece:expr),* $(,)?] => $expect:expr;)*) => {
        vec![$(Case {
            section: $section,
            name: $name,
            sent: [$(Vec::<u8>::from($piece)),*].concat(),
            expect: $expect,
        }),*]
    };
}

/// The stream on which the connection is probed afterwards.
const PROBE: u32 = 0x7fff_fff1;

fn run(address: SocketAddr, case: &Case) -> Result<(), String> {
    let mut h2 = H2::connect(address);
    if !h2.try_send(&case.sent) && !matches!(case.expect, ConnectionError(_)) {
        return Err("the connection took not all of it".to_owned());
    }
    let got = |outcome: Outcome| Err(format!("{outcome:?}"));
    match case.expect {
        ConnectionError(code) => match h2.outcome(u32::MAX) {
            Outcome::GoAway(sent) if sent == code => {
                if h2.ends() {
                    return Ok(());
                }
            }
            outcome => return got(outcome),
        },
        StreamError(stream, code) => match h2.outcome(stream) {
            Outcome::Reset(sent) if sent == code => {}
            outcome => return got(outcome),
        },
        Answer(stream, status) => match h2.outcome(stream) {
            Outcome::Answer(sent) if sent == status => {}
            outcome => return got(outcome),
        },
        Alive => {}
    }
    h2.send(get(PROBE, "/hello"));
    match h2.outcome(PROBE) {
        Outcome::Answer(200) => Ok(()),
        outcome => Err(format!("the request after it: {outcome:?}")),
    }
}

fn check(address: SocketAddr, cases: &[Case]) {
    let mut wrong = Vec::new();
    for case in cases {
        if let Err(got) = run(address, case) {
            wrong.push(format!("{} {}: expected {:?}, got {got}", case.section, case.name, case.expect));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// A block with a request for `/hello`, and these bytes behind it.
fn hello(more: &[u8]) -> Vec<u8> {
    [request("GET", "/hello", &[]), more.to_vec()].concat()
}

/// A block of these pseudo-header fields and fields, in this order.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes())).collect()
}

/// The request of a POST to the echo, its body still to come.
fn post(stream: u32) -> Vec<u8> {
    headers(stream, flag::END_HEADERS, &request("POST", "/echo/x", &[]))
}

/// A whole request with these bytes as its block.
fn whole(block: &[u8]) -> Vec<u8> {
    headers(1, flag::WHOLE, block)
}

const METHOD: (&str, &str) = (":method", "GET");
const SCHEME: (&str, &str) = (":scheme", "http");
const AUTHORITY: (&str, &str) = (":authority", "test");
const PATH: (&str, &str) = (":path", "/hello");

fn frames() -> Vec<Case> {
    let large = vec![0; 16_385];
    cases! {
        "9113/4.1" "an unknown frame type is ignored" [frame(0xfa, 0, 0, b"anything")] => Alive;
        "9113/4.1" "an unknown frame type on a stream is ignored" [frame(0xfa, 0xff, 3, b"anything")] => Alive;
        "9113/4.1" "undefined flags are ignored"
            [headers(1, flag::WHOLE | 0x40 | 0x80, &hello(b""))]
            => Answer(1, 200);
        "9113/4.1" "undefined flags of a PING are ignored" [frame(kind::PING, 0xfe, 0, b"12345678")] => Alive;
        "9113/4.1" "the reserved bit of a stream is ignored"
            [headers(1 | 1 << 31, flag::WHOLE, &hello(b""))]
            => Answer(1, 200);
        "9113/4.1" "the reserved bit of an increment is ignored" [window_update(0, 1 | 1 << 31)] => Alive;
        "9113/4.2" "DATA larger than the limit"
            [post(1), data(1, 0, &large)]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/4.2" "HEADERS larger than the limit"
            [headers(1, flag::WHOLE, &large)]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/4.2" "SETTINGS larger than the limit"
            [frame(kind::SETTINGS, 0, 0, &vec![0; 16_386])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/4.2" "an unknown frame larger than the limit"
            [frame(0xfa, 0, 0, &large)]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/4.2" "DATA of the largest size" [post(1), data(1, flag::END_STREAM, &large[1..])] => Answer(1, 200);
        "9113/4.3" "a block that is interrupted by DATA"
            [headers(1, flag::END_STREAM, &hello(b"")), data(1, 0, b"")]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/4.3" "a block that is interrupted by PRIORITY"
            [headers(1, flag::END_STREAM, &hello(b"")), frame(kind::PRIORITY, 0, 1, &[0; 5])]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/4.3" "a block that is interrupted by PING"
            [headers(1, flag::END_STREAM, &hello(b"")), ping(b"12345678")]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/4.3" "a block that is interrupted by an unknown frame"
            [headers(1, flag::END_STREAM, &hello(b"")), frame(0xfa, 0, 1, b"")]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/4.3" "a block that is interrupted by another stream's HEADERS"
            [headers(1, flag::END_STREAM, &hello(b"")), get(3, "/hello")]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/4.3" "a block that cannot be decompressed"
            [whole(b"\xff\xff\xff\xff\xff\xff")]
            => ConnectionError(code::COMPRESSION_ERROR);
        "9113/4.3" "trailers that cannot be decompressed"
            [post(1), headers(1, flag::WHOLE, &[0x80])]
            => ConnectionError(code::COMPRESSION_ERROR);
        "9113/6.1" "DATA on stream 0" [data(0, 0, b"x")] => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.1" "an empty DATA on stream 0" [data(0, 0, b"")] => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.1" "padding as long as the payload"
            [post(1), data(1, flag::PADDED, &[4, 0, 0, 0])]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.1" "padding longer than the payload"
            [post(1), data(1, flag::PADDED, &[255, 1])]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.1" "DATA that is padded and empty"
            [post(1), data(1, flag::PADDED, &[])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.1" "DATA that is nothing but padding"
            [post(1), data(1, flag::PADDED | flag::END_STREAM, &[3, 0, 0, 0])]
            => Answer(1, 200);
        "9113/6.1" "DATA with padding"
            [post(1), data(1, flag::PADDED | flag::END_STREAM, &[3, b'x', 0, 0, 0])]
            => Answer(1, 200);
        "9113/6.2" "HEADERS on stream 0"
            [headers(0, flag::WHOLE, &hello(b""))]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.2" "padding longer than the block"
            [headers(1, flag::WHOLE | flag::PADDED, &[&[250][..], &hello(b"")].concat())]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.2" "HEADERS that are padded and empty"
            [headers(1, flag::WHOLE | flag::PADDED, &[])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.2" "HEADERS too short for their priority"
            [headers(1, flag::WHOLE | flag::PRIORITY, &[0; 4])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.2" "padding that leaves no room for the priority"
            [headers(1, flag::WHOLE | flag::PADDED | flag::PRIORITY, &[1, 0, 0, 0, 0, 0])]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.2" "HEADERS with padding and priority"
            [
                headers(
                    1,
                    flag::WHOLE | flag::PADDED | flag::PRIORITY,
                    &[&[2, 0, 0, 0, 0, 16][..], &hello(b"\0\0")[..hello(b"").len()], &[0, 0]].concat(),
                ),
            ]
            => Answer(1, 200);
        "9113/6.3" "PRIORITY on stream 0"
            [frame(kind::PRIORITY, 0, 0, &[0, 0, 0, 1, 1])]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.3" "PRIORITY that is too short"
            [frame(kind::PRIORITY, 0, 1, &[0; 4])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.3" "PRIORITY that is too long"
            [frame(kind::PRIORITY, 0, 1, &[0; 6])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.3" "PRIORITY of an idle stream" [frame(kind::PRIORITY, 0, 9, &[0, 0, 0, 1, 1])] => Alive;
        "9113/6.3" "PRIORITY of a closed stream"
            [get(1, "/hello"), frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 1])]
            => Answer(1, 200);
        "9113/6.4" "RST_STREAM on stream 0" [reset(0, 8)] => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.4" "RST_STREAM of an idle stream" [reset(1, 8)] => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.4" "RST_STREAM of a stream that only the server may open"
            [reset(2, 8)]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.4" "RST_STREAM that is too short"
            [post(1), frame(kind::RST_STREAM, 0, 1, &[0; 3])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.4" "RST_STREAM that is too long"
            [post(1), frame(kind::RST_STREAM, 0, 1, &[0; 5])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.4" "RST_STREAM with an unknown code" [post(1), reset(1, 0xdead)] => Alive;
        "9113/6.4" "a second RST_STREAM" [post(1), reset(1, 8), reset(1, 8)] => Alive;
        "9113/6.5" "SETTINGS on a stream"
            [post(1), frame(kind::SETTINGS, 0, 1, &[])]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.5" "an acknowledgement with a payload"
            [frame(kind::SETTINGS, flag::ACK, 0, &[0; 6])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.5" "SETTINGS of a broken length"
            [frame(kind::SETTINGS, 0, 0, &[0; 7])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.5" "SETTINGS of half an entry"
            [frame(kind::SETTINGS, 0, 0, &[0; 3])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.5" "empty SETTINGS" [settings(&[])] => Alive;
        "9113/6.5.2" "ENABLE_PUSH of 2" [settings(&[(2, 2)])] => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.5.2" "ENABLE_PUSH of 0" [settings(&[(2, 0)])] => Alive;
        "9113/6.5.2" "INITIAL_WINDOW_SIZE beyond 2^31-1"
            [settings(&[(4, 1 << 31)])]
            => ConnectionError(code::FLOW_CONTROL_ERROR);
        "9113/6.5.2" "INITIAL_WINDOW_SIZE of 2^31-1" [settings(&[(4, (1 << 31) - 1)])] => Alive;
        "9113/6.5.2" "MAX_FRAME_SIZE below 2^14" [settings(&[(5, 16_383)])] => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.5.2" "MAX_FRAME_SIZE beyond 2^24-1"
            [settings(&[(5, 1 << 24)])]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.5.2" "MAX_FRAME_SIZE of 2^24-1" [settings(&[(5, (1 << 24) - 1)])] => Alive;
        "9113/6.5.2" "a bad value behind good ones"
            [settings(&[(1, 100), (3, 7), (2, 2)])]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.5.2" "an unknown setting is ignored" [settings(&[(0xfafa, 77)])] => Alive;
        "9113/6.5.3" "the last of two values counts" [settings(&[(4, 0), (4, 65_535)])] => Alive;
        "8441/3" "ENABLE_CONNECT_PROTOCOL of 2" [settings(&[(8, 2)])] => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.6" "PUSH_PROMISE from a client"
            [post(1), frame(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &[&[0, 0, 0, 2][..], &hello(b"")].concat())]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.6" "PUSH_PROMISE on stream 0"
            [frame(kind::PUSH_PROMISE, flag::END_HEADERS, 0, &[0, 0, 0, 2])]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.7" "PING on a stream"
            [post(1), frame(kind::PING, 0, 1, b"12345678")]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.7" "PING that is too short"
            [frame(kind::PING, 0, 0, b"1234567")]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.7" "PING that is too long"
            [frame(kind::PING, 0, 0, b"123456789")]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.7" "an acknowledgement that nobody waits for" [frame(kind::PING, flag::ACK, 0, b"12345678")] => Alive;
        "9113/6.8" "GOAWAY on a stream"
            [post(1), frame(kind::GOAWAY, 0, 1, &[0; 8])]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.8" "GOAWAY that is too short"
            [frame(kind::GOAWAY, 0, 0, &[0; 7])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.9" "an increment of 0 on the connection"
            [window_update(0, 0)]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.9" "an increment of 0 on a stream"
            [post(1), window_update(1, 0)]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.9" "WINDOW_UPDATE that is too short"
            [frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 1])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.9" "WINDOW_UPDATE that is too long"
            [frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 0, 1])]
            => ConnectionError(code::FRAME_SIZE_ERROR);
        "9113/6.9" "WINDOW_UPDATE of an idle stream" [window_update(1, 1)] => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.9" "WINDOW_UPDATE of an even stream"
            [post(3), window_update(2, 1)]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.9" "WINDOW_UPDATE of a stream that is over" [get(1, "/hello"), window_update(1, 1)] => Answer(1, 200);
        "9113/6.9.1" "a connection window beyond 2^31-1"
            [window_update(0, (1 << 31) - 1)]
            => ConnectionError(code::FLOW_CONTROL_ERROR);
        "9113/6.9.1" "a stream window beyond 2^31-1"
            [post(1), window_update(1, (1 << 31) - 1)]
            => StreamError(1, code::FLOW_CONTROL_ERROR);
        "9113/6.9.2" "settings that carry a window beyond 2^31-1"
            [post(1), window_update(1, 1 << 30), settings(&[(4, (1 << 31) - 1)])]
            => ConnectionError(code::FLOW_CONTROL_ERROR);
        "9113/6.10" "CONTINUATION without HEADERS"
            [frame(kind::CONTINUATION, flag::END_HEADERS, 1, &hello(b""))]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.10" "CONTINUATION on stream 0"
            [frame(kind::CONTINUATION, flag::END_HEADERS, 0, b"")]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.10" "CONTINUATION behind a complete block"
            [post(1), frame(kind::CONTINUATION, flag::END_HEADERS, 1, b"")]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.10" "CONTINUATION of another stream"
            [headers(1, flag::END_STREAM, &hello(b"")), frame(kind::CONTINUATION, flag::END_HEADERS, 3, b"")]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.10" "CONTINUATION behind DATA"
            [post(1), data(1, 0, b"x"), frame(kind::CONTINUATION, flag::END_HEADERS, 1, b"")]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/6.10" "a block in two frames"
            [
                headers(1, flag::END_STREAM, &hello(b"")[..20]),
                frame(kind::CONTINUATION, flag::END_HEADERS, 1, &hello(b"")[20..]),
            ]
            => Answer(1, 200);
        "9113/6.10" "a block whose first frame is empty"
            [headers(1, flag::END_STREAM, b""), frame(kind::CONTINUATION, flag::END_HEADERS, 1, &hello(b""))]
            => Answer(1, 200);
        "9113/6.10" "a block whose last frame is empty"
            [headers(1, flag::END_STREAM, &hello(b"")), frame(kind::CONTINUATION, flag::END_HEADERS, 1, b"")]
            => Answer(1, 200);
        "9113/6.10" "CONTINUATION has no END_STREAM"
            [
                headers(1, 0, &request("POST", "/echo/x", &[])),
                frame(kind::CONTINUATION, flag::END_HEADERS | 1, 1, b""),
                data(1, flag::END_STREAM, b"x"),
            ]
            => Answer(1, 200);
    }
}

fn streams() -> Vec<Case> {
    let ended = || [get(1, "/hello"), get(3, "/hello")].concat();
    cases! {
        "9113/5.1" "DATA on an idle stream" [data(1, 0, b"x")] => ConnectionError(code::PROTOCOL_ERROR);
        "9113/5.1" "DATA behind END_STREAM"
            [post(1), data(1, flag::END_STREAM, b""), data(1, 0, b"x")]
            => ConnectionError(code::STREAM_CLOSED);
        "9113/5.1" "HEADERS behind END_STREAM"
            [post(1), data(1, flag::END_STREAM, b""), headers(1, flag::WHOLE, &hello(b""))]
            => ConnectionError(code::STREAM_CLOSED);
        "9113/5.1" "DATA behind RST_STREAM"
            [post(1), reset(1, 8), data(1, 0, b"x")]
            => StreamError(1, code::STREAM_CLOSED);
        "9113/5.1.1" "a stream of even number"
            [headers(2, flag::WHOLE, &hello(b""))]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/5.1.1" "a stream below one that was opened"
            [get(5, "/hello"), get(3, "/hello")]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/5.1.1" "streams may be left out" [get(1, "/hello"), get(1001, "/hello")] => Answer(1001, 200);
        "9113/5.1.1" "DATA on a stream that was left out"
            [get(5, "/hello"), data(3, 0, b"x")]
            => ConnectionError(code::STREAM_CLOSED);
        "9113/5.1.1" "two requests at once" [ended()] => Answer(3, 200);
        "9113/5.3.1" "a stream that depends on itself"
            [frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 1, 1])]
            => StreamError(1, code::PROTOCOL_ERROR);
        "9113/5.4.1" "what comes behind a connection error is not looked at"
            [data(0, 0, b"x"), get(1, "/hello"), settings(&[(4, 1 << 31)])]
            => ConnectionError(code::PROTOCOL_ERROR);
        "9113/5.5" "PRIORITY_UPDATE, an extension, is taken" [frame(0x10, 0, 0, b"\0\0\0\x01u=1")] => Alive;
        "9113/6.9.1" "DATA within the window"
            [post(1), data(1, 0, &[b'x'; 16_384]), data(1, flag::END_STREAM, b"x")]
            => Answer(1, 200);
        "9113/8.1" "trailers that do not end the stream"
            [post(1), data(1, 0, b"x"), headers(1, flag::END_HEADERS, &field(b"a", b"b"))]
            => StreamError(1, code::PROTOCOL_ERROR);
        "9113/8.1" "trailers"
            [post(1), data(1, 0, b"x"), headers(1, flag::WHOLE, &field(b"a", b"b"))]
            => Answer(1, 200);
        "9113/8.1" "trailers without a body" [post(1), headers(1, flag::WHOLE, &field(b"a", b"b"))] => Answer(1, 200);
        // Left out rather than refused: the one rule here that is not kept to the letter.
        "9113/8.1" "a pseudo-header field in trailers"
            [post(1), data(1, 0, b"x"), headers(1, flag::WHOLE, &field(b":method", b"GET"))]
            => Answer(1, 200);
        "9113/8.1" "DATA behind trailers"
            [post(1), headers(1, flag::WHOLE, &field(b"a", b"b")), data(1, 0, b"x")]
            => ConnectionError(code::STREAM_CLOSED);
    }
}

fn requests() -> Vec<Case> {
    let malformed = StreamError(1, code::PROTOCOL_ERROR);
    // The decoder stops at such a field, and the rest of the block with what it does to the table is lost: so it is
    // the connection that ends (section 5.4.1 allows it), and with the code of a decoder that has failed.
    let undecodable = ConnectionError(code::COMPRESSION_ERROR);
    let with = |more: &[(&str, &str)]| {
        let fields: Vec<_> = [METHOD, SCHEME, AUTHORITY, PATH].iter().chain(more).copied().collect();
        whole(&block(&fields))
    };
    let posted = |length: &str, body: &[u8]| {
        let block = request("POST", "/echo/x", &[("content-length", length)]);
        [headers(1, flag::END_HEADERS, &block), data(1, flag::END_STREAM, body)].concat()
    };
    cases! {
        "9113/8.2.1" "a name in upper case" [with(&[("X-Name", "a")])] => undecodable;
        "9113/8.2.1" "a name with a space" [with(&[("x name", "a")])] => undecodable;
        "9113/8.2.1" "an empty name" [with(&[("", "a")])] => undecodable;
        "9113/8.2.1" "a name with a colon within" [with(&[("x:name", "a")])] => undecodable;
        "9113/8.2.1" "a name with a control byte" [with(&[("x\u{1}", "a")])] => undecodable;
        "9113/8.2.1" "a name above ASCII" [with(&[("x\u{e9}", "a")])] => undecodable;
        "9113/8.2.1" "a value with NUL" [with(&[("x", "a\0b")])] => undecodable;
        "9113/8.2.1" "a value with LF" [with(&[("x", "a\nb")])] => undecodable;
        "9113/8.2.1" "a value with CR" [with(&[("x", "a\rb")])] => undecodable;
        "9113/8.2.2" "Connection" [with(&[("connection", "close")])] => malformed;
        "9113/8.2.2" "Keep-Alive" [with(&[("keep-alive", "5")])] => malformed;
        "9113/8.2.2" "Proxy-Connection" [with(&[("proxy-connection", "close")])] => malformed;
        "9113/8.2.2" "Transfer-Encoding" [with(&[("transfer-encoding", "chunked")])] => malformed;
        "9113/8.2.2" "Upgrade" [with(&[("upgrade", "websocket")])] => malformed;
        "9113/8.2.2" "TE other than trailers" [with(&[("te", "gzip")])] => malformed;
        "9113/8.2.2" "TE: trailers" [with(&[("te", "trailers")])] => Answer(1, 200);
        "9113/8.2.3" "a cookie in crumbs" [with(&[("cookie", "a=b"), ("cookie", "c=d")])] => Answer(1, 200);
        "9113/8.3" "an unknown pseudo-header field" [with(&[(":unknown", "a")])] => undecodable;
        "9113/8.3" "a pseudo-header field of an answer" [with(&[(":status", "200")])] => malformed;
        "9113/8.3" "a pseudo-header field behind a field"
            [whole(&block(&[METHOD, SCHEME, PATH, ("a", "b"), AUTHORITY]))]
            => malformed;
        "9113/8.3" ":method twice" [whole(&block(&[METHOD, METHOD, SCHEME, PATH, AUTHORITY]))] => malformed;
        "9113/8.3" ":scheme twice" [whole(&block(&[METHOD, SCHEME, SCHEME, PATH, AUTHORITY]))] => malformed;
        "9113/8.3" ":path twice" [whole(&block(&[METHOD, SCHEME, PATH, PATH, AUTHORITY]))] => malformed;
        "9113/8.3" ":authority twice" [whole(&block(&[METHOD, SCHEME, PATH, AUTHORITY, AUTHORITY]))] => malformed;
        "9113/8.3.1" "no :method" [whole(&block(&[SCHEME, PATH, AUTHORITY]))] => malformed;
        "9113/8.3.1" "no :scheme" [whole(&block(&[METHOD, PATH, AUTHORITY]))] => malformed;
        "9113/8.3.1" "no :path" [whole(&block(&[METHOD, SCHEME, AUTHORITY]))] => malformed;
        "9113/8.3.1" "an empty :path" [whole(&block(&[METHOD, SCHEME, AUTHORITY, (":path", "")]))] => malformed;
        "9113/8.3.1" "a :path that is no path"
            [whole(&block(&[METHOD, SCHEME, AUTHORITY, (":path", "hello")]))]
            => malformed;
        "9113/8.3.1" "a :path with a space"
            [whole(&block(&[METHOD, SCHEME, AUTHORITY, (":path", "/a b")]))]
            => malformed;
        "9113/8.3.1" "a :path of * for GET"
            [whole(&block(&[METHOD, SCHEME, AUTHORITY, (":path", "*")]))]
            => Answer(1, 400);
        "9113/8.3.1" "an :authority with user information"
            [whole(&block(&[METHOD, SCHEME, PATH, (":authority", "user@test")]))]
            => Answer(1, 400);
        "9113/8.3.1" "an empty :authority" [whole(&block(&[METHOD, SCHEME, PATH, (":authority", "")]))] => malformed;
        "9113/8.3.1" "neither :authority nor Host" [whole(&block(&[METHOD, SCHEME, PATH]))] => Answer(1, 400);
        "9113/8.3.1" "Host alone" [whole(&block(&[METHOD, SCHEME, PATH, ("host", "test")]))] => Answer(1, 200);
        "9113/8.3.1" "Host like :authority" [with(&[("host", "test")])] => Answer(1, 200);
        "9113/8.3.1" "Host unlike :authority" [with(&[("host", "other")])] => Answer(1, 400);
        "9113/8.3.1" "Host twice" [with(&[("host", "test"), ("host", "test")])] => Answer(1, 400);
        "9110/7.4" "a :scheme that this connection does not carry"
            [whole(&block(&[METHOD, (":scheme", "https"), AUTHORITY, PATH]))]
            => Answer(1, 421);
        "9113/8.5" "CONNECT with :path" [whole(&block(&[(":method", "CONNECT"), AUTHORITY, PATH]))] => malformed;
        "9113/8.5" "CONNECT with :scheme" [whole(&block(&[(":method", "CONNECT"), AUTHORITY, SCHEME]))] => malformed;
        "9113/8.5" "CONNECT, which a gateway does not serve"
            [whole(&block(&[(":method", "CONNECT"), (":authority", "test:443")]))]
            => Answer(1, 501);
        "8441/4" "extended CONNECT without :scheme"
            [whole(&block(&[(":method", "CONNECT"), (":protocol", "websocket"), AUTHORITY, PATH]))]
            => malformed;
        "8441/4" "extended CONNECT without :path"
            [whole(&block(&[(":method", "CONNECT"), (":protocol", "websocket"), SCHEME, AUTHORITY]))]
            => malformed;
        "8441/4" "extended CONNECT without :authority"
            [whole(&block(&[(":method", "CONNECT"), (":protocol", "websocket"), SCHEME, PATH]))]
            => Answer(1, 400);
        "9220/3" "a :protocol that nobody knows"
            [whole(&block(&[(":method", "CONNECT"), (":protocol", "connect-udp"), SCHEME, AUTHORITY, PATH]))]
            => Answer(1, 501);
        "8441/5" "a 2xx of somebody who has not switched must not be taken for the tunnel"
            [whole(&block(&[
                (":method", "CONNECT"), (":protocol", "websocket"), SCHEME, AUTHORITY, PATH,
                ("sec-websocket-version", "13"),
            ]))]
            => Answer(1, 502);
        "8441/4" ":protocol without CONNECT"
            [
                with(&[]).to_vec(),
                headers(3, flag::WHOLE, &block(&[METHOD, (":protocol", "websocket"), SCHEME, AUTHORITY, PATH])),
            ]
            => StreamError(3, code::PROTOCOL_ERROR);
        "9113/8.1.1" "less DATA than Content-Length" [posted("5", b"four")] => malformed;
        "9113/8.1.1" "more DATA than Content-Length" [posted("3", b"four")] => malformed;
        "9113/8.1.1" "no DATA and a Content-Length"
            [headers(1, flag::WHOLE, &request("POST", "/echo/x", &[("content-length", "1")]))]
            => malformed;
        "9113/8.1.1" "DATA as Content-Length says" [posted("4", b"four")] => Answer(1, 200);
        "9113/8.1.1" "a Content-Length that is no number" [posted("4x", b"four")] => malformed;
        "9113/8.1.1" "a Content-Length with a sign" [posted("+4", b"four")] => malformed;
        "9113/8.1.1" "two Content-Lengths that differ"
            [
                headers(
                    1,
                    flag::END_HEADERS,
                    &request("POST", "/echo/x", &[("content-length", "4"), ("content-length", "5")]),
                ),
            ]
            => malformed;
        "9110/8.6" "two Content-Lengths that agree"
            [
                headers(
                    1,
                    flag::END_HEADERS,
                    &request("POST", "/echo/x", &[("content-length", "4"), ("content-length", "4")]),
                ),
                data(1, flag::END_STREAM, b"four"),
            ]
            => Answer(1, 400);
        "9110/10.1.1" "an expectation that is none" [with(&[("expect", "200-ok")])] => Answer(1, 417);
        "9110/9.3.8" "TRACE" [whole(&block(&[(":method", "TRACE"), SCHEME, AUTHORITY, PATH]))] => Answer(1, 405);
        "9113/8.3.1" "OPTIONS *"
            [whole(&block(&[(":method", "OPTIONS"), SCHEME, AUTHORITY, (":path", "*")]))]
            => Answer(1, 404);
        "9110/15.5.15" "a :path beyond the limit"
            [whole(&request("GET", &format!("/{}", "a".repeat(8192)), &[]))]
            => Answer(1, 414);
        "6585/5" "a field that is too large"
            [
                headers(1, flag::END_STREAM, &hello(&field(b"x", &vec![b'a'; 16_200]))),
                frame(kind::CONTINUATION, flag::END_HEADERS, 1, &field(b"y", &[b'a'; 300])),
            ]
            => Answer(1, 431);
        "6585/5" "more fields than the limit"
            [whole(&[hello(b""), field(b"x", b"y").repeat(101)].concat())]
            => Answer(1, 431);
        "9113/6.5.2" "fields count 32 bytes each"
            [whole(&[hello(b""), field(b"x", &[b'y'; 131]).repeat(99)].concat())]
            => Answer(1, 431);
        "9113/6.5.2" "fields within the limit"
            [whole(&[hello(b""), field(b"x", &[b'y'; 129]).repeat(99)].concat())]
            => Answer(1, 200);
    }
}

fn compression() -> Vec<Case> {
    let bad = ConnectionError(code::COMPRESSION_ERROR);
    // `hello` with the path as a Huffman code: "/hello" (RFC 7541 appendix B).
    let huffman = |bytes: &[u8]| {
        let mut path = vec![0x04, 0x80 | bytes.len() as u8];
        path.extend(bytes);
        [vec![0x82, 0x86], path, field(b":authority", b"test")].concat()
    };
    let indexed = || [hello(b""), field_indexed(b"x-a", b"first"), field_indexed(b"x-b", b"second")].concat();
    cases! {
        "7541/2.3.1" "fields of the static table"
            [whole(&[&[0x82, 0x86, 0x84][..], &field(b":authority", b"test")].concat())]
            => Answer(1, 404);
        "7541/2.3.3" "index 0" [whole(&hello(&[0x80]))] => bad;
        "7541/2.3.3" "an index beyond both tables" [whole(&hello(&[0xbe]))] => bad;
        "7541/2.3.3" "an index far beyond both tables" [whole(&hello(&integer(100_000, 7, 0x80)))] => bad;
        "7541/2.3.3" "a name of index beyond both tables"
            [whole(&hello(&[&integer(62, 4, 0)[..], &string(b"v")].concat()))]
            => bad;
        "7541/2.3.2" "entries of the dynamic table"
            [headers(1, flag::WHOLE, &indexed()), headers(3, flag::WHOLE, &hello(&[0xbe, 0xbf]))]
            => Answer(3, 200);
        "7541/2.3.2" "an entry that is not there yet"
            [headers(1, flag::WHOLE, &indexed()), headers(3, flag::WHOLE, &hello(&[0xc0]))]
            => bad;
        "7541/2.2" "the table is the connection's, not the stream's"
            [headers(1, flag::WHOLE, &indexed()), reset(1, 8), headers(3, flag::WHOLE, &hello(&[0xbf]))]
            => Answer(3, 200);
        "7541/2.2" "a malformed request still fills the table"
            [
                headers(
                    1,
                    flag::WHOLE,
                    &[hello(b""), field(b"connection", b"close"), field_indexed(b"x-a", b"b")].concat(),
                ),
                headers(3, flag::WHOLE, &hello(&[0xbe])),
            ]
            => Answer(3, 200);
        "7541/2.2" "a request that is too large still fills the table"
            [
                headers(1, flag::END_STREAM, &hello(&field(b"x", &vec![b'a'; 16_200]))),
                frame(
                    kind::CONTINUATION,
                    flag::END_HEADERS,
                    1,
                    &[field(b"y", &[b'a'; 300]), field_indexed(b"x-a", b"b")].concat(),
                ),
                headers(3, flag::WHOLE, &hello(&[0xbe])),
            ]
            => Answer(3, 200);
        "7541/4.2" "a size update within the limit"
            [whole(&[integer(100, 5, 0x20), hello(b"")].concat())]
            => Answer(1, 200);
        "7541/4.2" "two size updates"
            [whole(&[integer(0, 5, 0x20), integer(4096, 5, 0x20), hello(b"")].concat())]
            => Answer(1, 200);
        "7541/4.2" "a size update of 0 empties the table"
            [headers(1, flag::WHOLE, &indexed()), headers(3, flag::WHOLE, &[vec![0x20], hello(&[0xbe])].concat())]
            => bad;
        "7541/4.2" "a size update behind a field" [whole(&hello(&[0x20]))] => bad;
        "7541/6.3" "a size update beyond the limit" [whole(&[integer(4097, 5, 0x20), hello(b"")].concat())] => bad;
        "7541/6.3" "a size update far beyond the limit"
            [whole(&[integer(1 << 30, 5, 0x20), hello(b"")].concat())]
            => bad;
        "7541/4.4" "an entry larger than the table empties it"
            [
                headers(1, flag::WHOLE, &indexed()),
                headers(3, flag::WHOLE, &hello(&field_indexed(b"x", &vec![b'a'; 4096]))),
                headers(5, flag::WHOLE, &hello(&[0xbe])),
            ]
            => bad;
        "7541/4.3" "old entries make room"
            [
                headers(
                    1,
                    flag::WHOLE,
                    &hello(&[field_indexed(b"x", &[b'a'; 3000]), field_indexed(b"y", &[b'b'; 3000])].concat()),
                ),
                headers(3, flag::WHOLE, &hello(&[0xbf])),
            ]
            => bad;
        "7541/4.3" "and the new one is there"
            [
                headers(
                    1,
                    flag::WHOLE,
                    &hello(&[field_indexed(b"x", &[b'a'; 3000]), field_indexed(b"y", &[b'b'; 3000])].concat()),
                ),
                headers(3, flag::WHOLE, &hello(&[0xbe])),
            ]
            => Answer(3, 200);
        "7541/5.1" "an integer without an end"
            [whole(&hello(&[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80]))]
            => bad;
        "7541/5.1" "an integer that is cut" [whole(&hello(&[0xff]))] => bad;
        "7541/5.1" "an integer written longer than needed"
            [
                whole(
                    &hello(
                        &[
                            0x00,
                            0x01,
                            b'x',
                            0x7f,
                            0x80,
                            0x80,
                            0x00,
                        ].iter().chain([b'v'; 127].iter()).copied().collect::<Vec<_>>(),
                    ),
                ),
            ]
            => Answer(1, 200);
        "7541/5.2" "a string that is cut" [whole(&hello(&[0x00, 0x05, b'x']))] => bad;
        "7541/5.2" "a value that is cut" [whole(&hello(&[0x00, 0x01, b'x', 0x05, b'v']))] => bad;
        "7541/5.2" "a value that is missing" [whole(&hello(&[0x00, 0x01, b'x']))] => bad;
        "7541/5.2" "a Huffman code"
            [whole(&huffman(&[0x62, 0x72, 0x8d, 0x07, 0xff][..0]))]
            => StreamError(1, code::PROTOCOL_ERROR);
        "7541/5.2" "Huffman padding longer than 7 bits" [whole(&huffman(&[0x63, 0xff]))] => bad;
        "7541/5.2" "Huffman padding of zeros" [whole(&huffman(&[0x60]))] => bad;
        "7541/5.2" "the Huffman code of the end" [whole(&huffman(&[0xff, 0xff, 0xff, 0xff]))] => bad;
        "7541/5.2" "a slash as a Huffman code" [whole(&huffman(&[0x63]))] => Answer(1, 404);
        "7541/6.2.2" "a literal that is not indexed does not fill the table"
            [headers(1, flag::WHOLE, &hello(&field(b"x", b"y"))), headers(3, flag::WHOLE, &hello(&[0xbe]))]
            => bad;
        "7541/6.2.3" "a literal that is never indexed"
            [whole(&hello(&[&[0x10][..], &string(b"x"), &string(b"y")].concat()))]
            => Answer(1, 200);
        "7541/6.2.3" "nor does it fill the table"
            [
                headers(1, flag::WHOLE, &hello(&[&[0x10][..], &string(b"x"), &string(b"y")].concat())),
                headers(3, flag::WHOLE, &hello(&[0xbe])),
            ]
            => bad;
        "7541/6.2.1" "a value with the name of a static entry"
            [whole(&hello(&[&integer(58, 6, 0x40)[..], &string(b"agent")].concat()))]
            => Answer(1, 200);
        "7541/6.2.1" "a value with the name of a dynamic entry"
            [
                headers(1, flag::WHOLE, &indexed()),
                headers(3, flag::WHOLE, &hello(&[&integer(62, 6, 0x40)[..], &string(b"third")].concat())),
            ]
            => Answer(3, 200);
        "9113/4.3" "an empty block" [whole(b"")] => StreamError(1, code::PROTOCOL_ERROR);
    }
}

#[test]
fn there_are_enough_of_them() {
    let count = frames().len() + streams().len() + requests().len() + compression().len();
    assert!(count >= 140, "{count}");
}

matrix! {
    /// Frames: sections 4 and 6.
    fn frame_rules(cell) {
        let gateway = Setup::new(cell).h2(&[], "").start();
        check(gateway.address, &frames());
        gateway.stop();
    }

    /// Streams: section 5, and the order of frames of section 8.1.
    fn stream_rules(cell) {
        let gateway = Setup::new(cell).h2(&[], "").start();
        check(gateway.address, &streams());
        gateway.stop();
    }

    /// Requests: section 8, and what RFC 9110 asks of them.
    fn request_rules(cell) {
        let gateway = Setup::new(cell).h2(&[], "").start();
        check(gateway.address, &requests());
        gateway.stop();
    }

    /// HPACK: RFC 7541.
    fn compression_rules(cell) {
        let gateway = Setup::new(cell).h2(&[], "").start();
        check(gateway.address, &compression());
        gateway.stop();
    }

    /// Section 3.4: the client preface.
    fn prefaces(cell) {
        let gateway = Setup::new(cell).h2(&[], "").start();
        // The preface in single bytes, and a request behind it in one.
        let mut h2 = H2::bare(gateway.address);
        for byte in PREFACE {
            h2.send([*byte]);
        }
        h2.send([settings(&[]), get(1, "/hello")].concat());
        assert_eq!(h2.outcome(1), Outcome::Answer(200));
        // Everything in one write, before the server's settings were seen.
        let mut h2 = H2::bare(gateway.address);
        h2.send([PREFACE, &settings(&[]), &get(1, "/hello")].concat());
        assert_eq!(h2.outcome(1), Outcome::Answer(200));
        // Something other than SETTINGS first.
        let acknowledgement = frame(kind::SETTINGS, flag::ACK, 0, b"");
        for first in [ping(b"12345678"), get(1, "/hello"), window_update(0, 1), acknowledgement] {
            let mut h2 = H2::bare(gateway.address);
            h2.send([PREFACE, &first].concat());
            assert_eq!(h2.goaway(), Some(code::PROTOCOL_ERROR), "{first:?}");
            assert!(h2.ends());
        }
        // The server's preface is a SETTINGS frame, sent first.
        let mut h2 = H2::bare(gateway.address);
        h2.send([PREFACE, &settings(&[])].concat());
        let first = h2.frame().expect("the preface of the server");
        assert_eq!((first.kind, first.flags, first.stream), (kind::SETTINGS, 0, 0));
        gateway.stop();
    }

    /// Section 3.4: a client that does not speak HTTP/2 where nothing else is spoken.
    fn a_preface_that_is_none(cell) {
        let toml = blitz_tests::gateway::LISTENER.replace("[\"h1\"]", "[\"h2\"]");
        let gateway = Setup::new(cell).config(&toml).start();
        let mut h2 = H2::bare(gateway.address);
        h2.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(h2.goaway(), Some(code::PROTOCOL_ERROR));
        assert!(h2.ends());
        let mut h2 = H2::connect(gateway.address);
        h2.send(get(1, "/hello"));
        assert_eq!(h2.outcome(1), Outcome::Answer(200));
        gateway.stop();
    }

    /// Section 6.7: a PING is answered with its payload.
    fn pings_are_answered(cell) {
        let gateway = Setup::new(cell).h2(&[], "").start();
        let mut h2 = H2::connect(gateway.address);
        h2.send(ping(b"a payloa"));
        let answer = h2.next_of(kind::PING).expect("an answer");
        assert_eq!((answer.flags, answer.payload.as_slice()), (flag::ACK, &b"a payloa"[..]));
        gateway.stop();
    }

    /// Section 6.9: not a byte more than the windows allow, and on as they open.
    fn windows_are_heeded(cell) {
        let gateway = Setup::new(cell).h2(&[], "").start();
        let mut h2 = H2::connect_with(gateway.address, &[(4, 10)]);
        h2.send(get(1, "/echo/0123456789abcdefghij"));
        assert_eq!(h2.outcome(1), Outcome::Answer(200));
        let mut body = h2.next_of(kind::DATA).expect("what the window allows").payload;
        assert_eq!(body, b"0123456789");
        h2.send(ping(b"12345678"));
        assert_eq!(h2.frame().map(|frame| frame.kind), Some(kind::PING), "nothing more without a window");
        h2.send(window_update(1, 3));
        body.extend(h2.next_of(kind::DATA).expect("three more").payload);
        assert_eq!(body, b"0123456789abc");
        h2.send(settings(&[(4, 11)]));
        body.extend(h2.next_of(kind::DATA).expect("one more").payload);
        assert_eq!(body, b"0123456789abcd");
        h2.send(window_update(1, 100));
        body.extend(h2.body(1));
        assert_eq!(body, b"0123456789abcdefghij");
        gateway.stop();
    }

    /// What is announced is what holds.
    fn announced_limits_are_the_effective_ones(cell) {
        let limits = "[http2]\nconcurrent_streams_max = 7\nstream_window_bytes = 70000\n";
        let gateway = Setup::new(cell).h2(&[], limits).start();
        let mut h2 = H2::connect(gateway.address);
        let announced = |id: u16| h2.settings.iter().find(|(found, _)| *found == id).map(|(_, value)| *value);
        assert_eq!(announced(3), Some(7), "MAX_CONCURRENT_STREAMS");
        assert_eq!(announced(4), Some(70_000), "INITIAL_WINDOW_SIZE");
        assert_eq!(announced(6), Some(16_384), "MAX_HEADER_LIST_SIZE");
        assert_eq!(announced(8), Some(1), "ENABLE_CONNECT_PROTOCOL (RFC 8441 section 3)");
        // Seven streams are taken, the eighth is refused.
        for stream in 0..8 {
            h2.send(post(2 * stream + 1));
        }
        assert_eq!(h2.outcome(15), Outcome::Reset(code::REFUSED_STREAM));
        h2.send(data(1, flag::END_STREAM, b"x"));
        assert_eq!(h2.outcome(1), Outcome::Answer(200));
        h2.send(get(17, "/hello"));
        assert_eq!(h2.outcome(17), Outcome::Answer(200), "one is free again");
        drop(h2);
        gateway.stop();
    }

    /// Section 3.1: the upgrade from HTTP/1.1 is gone, and ignored.
    fn upgrade_to_h2c_is_ignored(cell) {
        let gateway = Setup::new(cell).h2(&[], "").start();
        let mut client = gateway.connect();
        client.send("GET /hello HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n");
        let answer = client.response();
        assert_eq!((answer.status, answer.text().as_str()), (200, "Hello from Blitz\n"));
        gateway.stop();
    }
}
