//! What is ambiguous gets 400 and a closed connection, and nothing of it reaches the upstream.

use blitz_tests::{Setup, Upstream, matrix};

/// What is wrong, and the bytes. Each is followed by a request that must not be answered.
const AMBIGUOUS: &[(&str, &str)] = &[
    (
        "length and coding",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "coding and length",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ),
    ("two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    (
        "the same length twice",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
    ),
    ("a list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\na"),
    ("a signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na"),
    ("a negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"),
    ("a length with a blank", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 1\r\n\r\na"),
    ("a hexadecimal length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\na"),
    ("an empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n"),
    (
        "a length beyond 64 bits",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\na",
    ),
    ("an unknown coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    (
        "chunked not last",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ),
    ("chunked twice", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    ("a coding of HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    (
        "a coding behind a vertical tab",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a blank before the colon",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    ),
    ("a folded line", "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n"),
    ("a blank before the first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    ("bare LF in the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n"),
    ("bare LF after a field", "GET / HTTP/1.1\r\nHost: a\nX-A: b\r\n\r\n"),
    ("bare CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\rc\r\n\r\n"),
    ("NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\0c\r\n\r\n"),
    ("a control byte in the target", "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("no host", "GET / HTTP/1.1\r\nX-A: b\r\n\r\n"),
    ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    ("a host that is none", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    ("a field without a name", "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n"),
    ("a field without a colon", "GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n"),
    ("a bracket in a name", "GET / HTTP/1.1\r\nHost: a\r\nX[]: b\r\n\r\n"),
    ("two blanks in the request line", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("no version", "GET /\r\nHost: a\r\n\r\n"),
];

/// Chunked bodies that are broken: the head is good, so what reached the upstream must end broken too.
const BROKEN_CHUNKS: &[(&str, &str)] = &[
    ("no hexadecimal size", "xyz\r\nabc\r\n0\r\n\r\n"),
    ("a signed size", "+3\r\nabc\r\n0\r\n\r\n"),
    ("a size with 0x", "0x3\r\nabc\r\n0\r\n\r\n"),
    ("a size beyond 64 bits", "10000000000000003\r\nabc\r\n0\r\n\r\n"),
    ("a blank before the size", " 3\r\nabc\r\n0\r\n\r\n"),
    ("bare LF after the size", "3\nabc\r\n0\r\n\r\n"),
    ("bare LF after the data", "3\r\nabc\n0\r\n\r\n"),
    ("more data than said", "3\r\nabcd\r\n0\r\n\r\n"),
    ("a bad trailer", "3\r\nabc\r\n0\r\nX : y\r\n\r\n"),
];

const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";

matrix! {
    fn ambiguous_requests_are_refused(cell) {
        let upstream = Upstream::echoing_targets();
        let gateway = Setup::new(cell).backend(upstream.address).start();
        for (what, bytes) in AMBIGUOUS {
            let mut client = gateway.connect();
            client.try_send(format!("{bytes}{HIDDEN}"));
            let response = client.response();
            assert_eq!(response.status, 400, "{what}: {response:?}");
            assert!(client.is_closed_without_bytes(), "{what}: the connection stayed open or said more");
        }
        assert_eq!(upstream.requests(), []);
        assert_eq!(gateway.get("/fine").text(), "/fine", "the next client is served");
    }

    fn broken_chunks_never_make_a_whole_request(cell) {
        let upstream = Upstream::echoing_targets();
        let gateway = Setup::new(cell).backend(upstream.address).start();
        for (what, bytes) in BROKEN_CHUNKS {
            let mut client = gateway.connect();
            let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
            client.try_send(format!("{head}{bytes}{HIDDEN}"));
            let answer = String::from_utf8_lossy(&client.rest()).into_owned();
            assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer:?}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: {answer:?}");
        }
        assert_eq!(upstream.requests(), [], "the upstream saw a whole request");
    }

    /// An upstream whose framing is ambiguous is not believed: 502, and its connection is not used again.
    fn ambiguous_answers_are_refused(cell) {
        let answers: [(&str, &'static [u8]); 5] = [
            ("length and coding",
             b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
            ("a signed length", b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc"),
            ("an unknown coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: other\r\n\r\nabc"),
            ("a folded line", b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 3\r\n\r\nabc"),
        ];
        for (what, bytes) in answers {
            let upstream = Upstream::sending(bytes);
            let gateway = Setup::new(cell).backend(upstream.address).start();
            let response = gateway.get("/");
            assert_eq!(response.status, 502, "{what}: {response:?}");
        }
    }

    /// Bytes that follow an answer are no answer to the next request.
    fn surplus_bytes_of_an_upstream_are_not_an_answer(cell) {
        let upstream = Upstream::start(|conn| {
            loop {
                conn.request()?;
                conn.send(
                    "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood\
                     HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
                )?;
            }
        });
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        for _ in 0..10 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().text(), "good");
        }
    }

    /// An upstream that answers before a body has come is owed the rest: no other request may take its place.
    fn an_unfinished_request_is_followed_by_no_other(cell) {
        let upstream = Upstream::start(|conn| {
            loop {
                let mut request = conn.head()?;
                let is_early = request.target() == "/early";
                if is_early {
                    conn.answer("200 OK", "early")?;
                }
                conn.body(&mut request)?;
                conn.record(request.clone());
                if !is_early {
                    conn.answer("200 OK", request.target())?;
                }
            }
        });
        let short = "[timeouts]\nupstream_first_byte_ms = 500\n";
        let gateway = Setup::new(cell).config_for(&[upstream.address], short).start();
        let mut unfinished = gateway.connect();
        unfinished.send("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nsome");
        assert_eq!(unfinished.response().text(), "early");
        assert_eq!(gateway.get("/next").text(), "/next");
        assert!(upstream.requests().iter().all(|request| request.body.is_empty()), "{:?}", upstream.requests());
    }

    /// Bounds on a request head: 431 for its size and the number of fields, 414 for its target.
    fn heads_beyond_their_bounds_are_refused(cell) {
        let upstream = Upstream::echoing_targets();
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let cases = [
            (431, format!("GET / HTTP/1.1\r\nHost: a\r\nX-A: {}\r\n\r\n", "b".repeat(20_000))),
            (431, format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X-A: b\r\n".repeat(150))),
            (414, format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(10_000))),
        ];
        for (status, bytes) in cases {
            let mut client = gateway.connect();
            client.try_send(bytes);
            assert_eq!(client.response().status, status);
            assert!(client.is_closed_without_bytes());
        }
        assert_eq!(upstream.requests(), []);
    }
}
