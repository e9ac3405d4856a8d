//! A pooled connection that its upstream ends during a request: made again only where that is safe
//! (RFC 9110 section 9.2.2).

use blitz_tests::{Client, Response, Setup, Upstream, matrix};

/// A pooled connection's first request is answered; the next one is taken whole and the connection closed.
fn closing_after_the_second() -> Upstream {
    Upstream::start(|conn| {
        conn.request()?;
        conn.answer("200 OK", "first")?;
        conn.request()?;
        None
    })
}

/// Sends a first request that leaves a pooled connection, then `request`; the answer to the latter.
fn second_answer(client: &mut Client, request: &str) -> Response {
    client.send("GET /warm HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "first");
    client.send(request);
    client.response()
}

fn received(upstream: &Upstream, target: &str) -> usize {
    upstream.requests().iter().filter(|request| request.target() == target).count()
}

/// A repeated body would be waited for; not for long here.
const SHORT: &str = "[timeouts]\nupstream_first_byte_ms = 500\n";

matrix! {
    /// An idempotent request without a body is made again on a new connection, unnoticed.
    fn a_get_is_made_again(cell) {
        let upstream = closing_after_the_second();
        let gateway = Setup::new(cell).config_for(&[upstream.address], SHORT).start();
        let answer = second_answer(&mut gateway.connect(), "GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!((answer.status, answer.text().as_str()), (200, "first"));
        assert_eq!(received(&upstream, "/x"), 2);
    }

    /// The upstream may have acted on a POST before it closed: once is all.
    fn a_post_is_not_made_again(cell) {
        for length in ["", "Content-Length: 0\r\n"] {
            let upstream = closing_after_the_second();
            let gateway = Setup::new(cell).config_for(&[upstream.address], SHORT).start();
            let request = format!("POST /x HTTP/1.1\r\nHost: a\r\n{length}\r\n");
            let answer = second_answer(&mut gateway.connect(), &request);
            assert_eq!(answer.status, 502, "{length:?}: {answer:?}");
            assert_eq!(received(&upstream, "/x"), 1);
        }
    }

    /// A body that was passed on is gone: the request cannot be made again, whatever its method.
    fn a_body_that_was_passed_on_is_not_sent_again(cell) {
        let upstream = closing_after_the_second();
        let gateway = Setup::new(cell).config_for(&[upstream.address], SHORT).start();
        let answer = second_answer(
            &mut gateway.connect(),
            "PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody",
        );
        assert_eq!(answer.status, 502, "{answer:?}");
        assert_eq!((received(&upstream, "/x"), upstream.accepted()), (1, 1));
    }
}
