//! Each phase in which a client may dawdle has a deadline.

use std::time::{Duration, Instant};

use blitz_tests::{PATIENCE, Setup, Upstream, matrix, wait_until};

/// Every deadline of a client, short.
const SHORT: &str =
    "[timeouts]\nrequest_head_ms = 300\nrequest_body_progress_ms = 300\nkeep_alive_ms = 300\n";
/// None may strike before it is due.
const NOT_BEFORE: Duration = Duration::from_millis(250);

matrix! {
    /// Half a head, then silence: 408, or a plain close.
    fn an_unfinished_head(cell) {
        let upstream = Upstream::echoing_targets();
        let gateway = Setup::new(cell).config_for(&[upstream.address], SHORT).start();
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost:");
        let begun = Instant::now();
        assert_eq!(client.response().status, 408);
        assert!(begun.elapsed() >= NOT_BEFORE, "after {:?}", begun.elapsed());
        assert!(client.is_closed_without_bytes());
    }

    /// A head that grows by a byte now and then has the same deadline: it is for the whole head.
    fn a_head_that_trickles(cell) {
        let upstream = Upstream::echoing_targets();
        let gateway = Setup::new(cell).config_for(&[upstream.address], SHORT).start();
        let mut client = gateway.connect();
        let begun = Instant::now();
        wait_until("the client is cut", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(20));
            !client.try_send("a") || !client.is_open_and_silent()
        });
        assert!(begun.elapsed() >= NOT_BEFORE, "after {:?}", begun.elapsed());
        assert_eq!(upstream.requests(), []);
    }

    /// Connected and silent: closed.
    fn no_request_at_all(cell) {
        let upstream = Upstream::echoing_targets();
        let gateway = Setup::new(cell).config_for(&[upstream.address], SHORT).start();
        let mut client = gateway.connect();
        let begun = Instant::now();
        let said = client.rest();
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{:?}", String::from_utf8_lossy(&said));
        assert!(begun.elapsed() >= NOT_BEFORE, "after {:?}", begun.elapsed());
    }

    /// Idle between two requests: closed without a word, since a request may be on its way.
    fn idle_between_requests(cell) {
        let upstream = Upstream::echoing_targets();
        let gateway = Setup::new(cell).config_for(&[upstream.address], SHORT).start();
        let mut client = gateway.connect();
        client.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().text(), "/1");
        let begun = Instant::now();
        assert!(client.is_closed_without_bytes());
        assert!(begun.elapsed() >= NOT_BEFORE, "after {:?}", begun.elapsed());
    }

    /// A body that stops coming: 408 when nothing was answered yet, and the upstream is let go.
    fn a_body_that_stalls(cell) {
        let upstream = Upstream::start(|conn| {
            let mut request = conn.head()?;
            conn.record(request.clone());
            let whole = conn.body(&mut request);
            assert_eq!(whole, None, "the body never came, so it must not look whole");
            conn.record(request);
            Some(())
        });
        let gateway = Setup::new(cell).config_for(&[upstream.address], SHORT).start();
        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nsome");
        let begun = Instant::now();
        let said = client.rest();
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{:?}", String::from_utf8_lossy(&said));
        assert!(begun.elapsed() >= NOT_BEFORE, "after {:?}", begun.elapsed());
        wait_until("the upstream is let go", PATIENCE, || upstream.requests().len() == 2);
        wait_until("nothing is in flight", PATIENCE, || gateway.in_flight() == Some(0));
    }
}
