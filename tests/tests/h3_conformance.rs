//! RFC 9114, each rule by its section: what ends a connection, what ends a stream, what is passed over.

use blitz_tests::h3::{self, H3, code, request};
use blitz_tests::h3raw::{frame, headers, integer, integers, kind, stream};
use blitz_tests::{PATIENCE, Pki, Setup, Upstream, matrix, wait_until};

/// Client-initiated streams that the usual client has not used: a request, and one in one direction.
const REQUEST: u64 = 0;
const ONE_WAY: u64 = 30;
/// Its control stream and QPACK's encoder stream.
const CONTROL: u64 = 2;
const ENCODER: u64 = 6;

fn get() -> Vec<u8> {
    headers(&request("GET", "/hello"))
}

matrix! {
    /// What quiche does not look at is not here: `docs/http3.md`.
    fn what_ends_a_connection(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).h3(&pki, &[], "").start();
        let settings = |values: &[u64]| integers(kind::SETTINGS, values);
        let one_way = |kind: u64, bytes: Vec<u8>| [integer(kind), bytes].concat();
        // RFC, section and rule; stream, bytes, whether it ends there; what is said.
        let cases: &[(&str, u64, Vec<u8>, bool, u64)] = &[
            ("9114 4.1: DATA first", REQUEST, frame(kind::DATA, b"x"), false, code::FRAME_UNEXPECTED),
            ("9114 4.1: DATA behind trailers", REQUEST,
                [headers(&request("POST", "/echo/x")), headers(&[("x", "y")]), frame(kind::DATA, b"x")].concat(), false,
                code::FRAME_UNEXPECTED),
            ("9114 4.1: HEADERS behind trailers", REQUEST,
                [headers(&request("POST", "/echo/x")), headers(&[("x", "y")]), headers(&[("x", "y")])].concat(), false,
                code::FRAME_UNEXPECTED),
            ("9114 6.2.1: the control stream ends", CONTROL, Vec::new(), true, code::CLOSED_CRITICAL_STREAM),
            ("9114 6.2.1: two control streams", ONE_WAY, one_way(stream::CONTROL, settings(&[])), false,
                code::STREAM_CREATION_ERROR),
            ("9114 6.2.2: a client pushes", ONE_WAY, one_way(stream::PUSH, integer(0)), false,
                code::STREAM_CREATION_ERROR),
            ("9114 7.2.1: DATA on the control stream", CONTROL, frame(kind::DATA, b"x"), false,
                code::FRAME_UNEXPECTED),
            ("9114 7.2.2: HEADERS on the control stream", CONTROL, get(), false, code::FRAME_UNEXPECTED),
            ("9114 7.2.3: CANCEL_PUSH on a request stream", REQUEST,
                [get(), integers(kind::CANCEL_PUSH, &[0])].concat(), false, code::FRAME_UNEXPECTED),
            ("9114 7.2.4: SETTINGS twice", CONTROL, settings(&[]), false, code::FRAME_UNEXPECTED),
            ("9114 7.2.4: SETTINGS on a request stream", REQUEST, settings(&[]), false, code::FRAME_UNEXPECTED),
            ("9114 7.2.5: PUSH_PROMISE of a client", REQUEST,
                [get(), frame(kind::PUSH_PROMISE, &[0, 0, 0])].concat(), false, code::FRAME_UNEXPECTED),
            ("9114 7.2.6: GOAWAY on a request stream", REQUEST, [get(), integers(kind::GOAWAY, &[0])].concat(), false,
                code::FRAME_UNEXPECTED),
            ("9114 7.2.7: MAX_PUSH_ID that shrinks", CONTROL,
                [integers(kind::MAX_PUSH_ID, &[9]), integers(kind::MAX_PUSH_ID, &[8])].concat(), false, code::ID_ERROR),
            ("9204 2.2: a dynamic table that nobody has", REQUEST, frame(kind::HEADERS, &[2, 0, 0x80]), false,
                code::DECOMPRESSION_FAILED),
            ("9204 2.2: an entry that the static table lacks", REQUEST, frame(kind::HEADERS, &[0, 0, 0xff, 0x40]), false,
                code::DECOMPRESSION_FAILED),
            ("9204 4.2: two encoder streams", ONE_WAY, one_way(stream::ENCODER, Vec::new()), false,
                code::STREAM_CREATION_ERROR),
            ("9204 4.2: the encoder stream ends", ENCODER, Vec::new(), true, code::CLOSED_CRITICAL_STREAM),
        ];
        let mut wrong = Vec::new();
        for (rule, id, bytes, is_end, expected) in cases {
            let mut client = H3::connect(gateway.address, "edge.test");
            assert_eq!(client.get("/hello").status(), 200);
            // A request of its own comes behind that one.
            let id = if *id == REQUEST { 4 } else { *id };
            client.send_raw(id, bytes, *is_end);
            let closed = client.closes();
            if closed != Some((true, *expected)) {
                wrong.push(format!("{rule}: {closed:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        // The control stream as its first words are.
        let cases: &[(&str, Vec<u8>, u64)] = &[
            ("9114 6.2.1: something before SETTINGS", integers(kind::MAX_PUSH_ID, &[1]), code::MISSING_SETTINGS),
            ("9114 7.2.4.1: a setting of HTTP/2", settings(&[3, 100]), code::SETTINGS_ERROR),
        ];
        for (rule, bytes, expected) in cases {
            let mut client = H3::start(gateway.address, "edge.test", &mut h3::config(), None);
            client.handshake().expect("a handshake");
            client.send_raw(CONTROL, &one_way(stream::CONTROL, bytes.clone()), false);
            let closed = client.closes();
            if closed != Some((true, *expected)) {
                wrong.push(format!("{rule}: {closed:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        gateway.stop();
    }
    fn what_ends_a_stream_and_nothing_else(cell) {
        let upstream = Upstream::echoing_targets();
        let pki = Pki::edge();
        let gateway = Setup::new(cell).h3(&pki, &[upstream.address], "").start();
        let mut client = H3::connect(gateway.address, "edge.test");
        // RFC 9114, section and rule; bytes of a request's stream, which ends there; what is said.
        let cases: &[(&str, Vec<u8>, u64)] = &[
            ("4.1: nothing at all", Vec::new(), code::REQUEST_INCOMPLETE),
            ("4.1: no head", frame(0x21, b"grease"), code::REQUEST_INCOMPLETE),
            ("7.1: a head that is cut", get()[..9].to_vec(), code::REQUEST_INCOMPLETE),
            ("4.1.2: a head of nothing", frame(kind::HEADERS, &[0, 0]), code::MESSAGE_ERROR),
            ("4.3: pseudo-header fields in trailers", [headers(&request("POST", "/")), headers(&[(":path", "/")])].concat(),
                code::MESSAGE_ERROR),
        ];
        let mut id = 0;
        for (rule, bytes, expected) in cases {
            client.send_raw(id, bytes, true);
            let got = client.outcome(id);
            assert_eq!((got.statuses.len(), got.reset), (0, Some(*expected)), "{rule}");
            id += 4;
        }
        // What nobody knows is passed over (sections 6.2.3, 7.2.8 and 9).
        client.send_raw(ONE_WAY, &[integer(0x21), b"anything".to_vec()].concat(), true);
        client.send_raw(CONTROL, &frame(0x21 + 0x1f, b"grease"), false);
        client.send_raw(id, &[frame(0x21, b"grease"), get(), frame(0xf00, b"unknown")].concat(), true);
        let got = client.outcome(id);
        assert_eq!((got.status(), got.body.as_slice()), (200, &b"/hello"[..]));
        wait_until("nothing is under way", PATIENCE, || gateway.in_flight() == Some(0));
        gateway.stop();
    }

    /// What two readers could read in two ways reaches no endpoint.
    fn nothing_ambiguous_passes(cell) {
        let upstream = Upstream::echoing_targets();
        let pki = Pki::edge();
        let gateway = Setup::new(cell).h3(&pki, &[upstream.address], "").start();
        let mut client = H3::connect(gateway.address, "edge.test");
        let post = request("POST", "/bad");
        let of_path = |path: &'static str| vec![post[0], post[1], post[2], (":path", path)];
        let with = |more: &[(&'static str, &'static str)]| [&post[..], more].concat();
        let cases: &[Vec<(&str, &str)>] = &[
            with(&[("transfer-encoding", "chunked")]),
            with(&[("content-length", "1"), ("transfer-encoding", "chunked")]),
            with(&[("content-length", "1"), ("content-length", "2")]),
            with(&[("content-length", "1, 2")]),
            with(&[("content-length", "+1")]),
            with(&[("content-length", "0x1")]),
            with(&[("content-length", "")]),
            with(&[("content-length", "99999999999999999999")]),
            with(&[("Content-Length", "1")]),
            with(&[("content-length ", "1")]),
            with(&[("content-length:", "1")]),
            with(&[("x", "a\r\n\r\nGET /smuggled HTTP/1.1")]),
            with(&[("x", "a\rb")]),
            with(&[("x", "a\0b")]),
            with(&[("x\r\ny", "a")]),
            with(&[("host", "other.test")]),
            with(&[("host", "edge.test"), ("host", "edge.test")]),
            with(&[(":authority", "other.test")]),
            with(&[("connection", "x-forwarded-for")]),
            with(&[("upgrade", "h2c")]),
            with(&[("te", "chunked")]),
            of_path("/bad HTTP/1.1\r\nx: y"),
            of_path("/bad\0"),
            of_path("/bad#fragment"),
            of_path("bad"),
            of_path("http://other.test/bad"),
            vec![("POST / HTTP/1.1", "x"), post[0], post[1], post[2], post[3]],
            vec![(":method", "POST /bad"), post[1], post[2], post[3]],
            vec![post[0], (":scheme", "https://other.test/"), post[2], post[3]],
            vec![post[0], post[1], (":authority", "edge.test/bad?"), post[3]],
            vec![post[0], post[1], (":authority", "user@edge.test"), post[3]],
        ];
        for (number, fields) in cases.iter().enumerate() {
            let id = number as u64 * 4;
            client.send_raw(id, &[headers(fields), frame(kind::DATA, b"x")].concat(), true);
            let got = client.outcome(id);
            let is_refused = got.reset == Some(code::MESSAGE_ERROR)
                || got.statuses.first().is_some_and(|status| matches!(status, 400 | 421));
            assert!(is_refused, "{number}: {fields:?}: {got:?}");
        }
        let id = cases.len() as u64 * 4;
        client.send_raw(id, &headers(&request("GET", "/good")), true);
        assert_eq!(client.outcome(id).body, b"/good", "the connection goes on");
        let seen: Vec<_> = upstream.requests().iter().map(|request| request.target().to_owned()).collect();
        assert_eq!(seen, ["/good"]);
        gateway.stop();
    }
}
