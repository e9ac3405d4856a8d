//! SIGTERM: no new connections, what is under way is finished, then the end. SIGINT: the end.

use std::net::TcpStream;

use blitz_tests::{PATIENCE, Setup, Signal, Upstream, matrix, process, wait_until};

/// Answers when the request's body is there, so that the test decides when.
fn answering_after_body() -> Upstream {
    Upstream::start(|conn| {
        loop {
            let mut request = conn.head()?;
            conn.record(request.clone());
            conn.body(&mut request)?;
            conn.answer("200 OK", "finished")?;
        }
    })
}

matrix! {
    /// A request under way is answered after SIGTERM; the idle connection beside it is closed.
    fn a_request_under_way_is_finished(cell) {
        let upstream = answering_after_body();
        let mut gateway = Setup::new(cell).workers(2).backend(upstream.address).start();
        let mut idle = gateway.connect();
        idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(idle.response().status, 200);
        let mut busy = gateway.connect();
        busy.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n");
        wait_until("the request is under way", PATIENCE, || upstream.requests().len() == 2);
        let workers = gateway.workers();
        gateway.signal(Signal::Term);
        assert!(idle.is_closed_without_bytes(), "an idle connection is closed");
        wait_until("new connections are refused", PATIENCE, || TcpStream::connect(gateway.address).is_err());
        assert!(gateway.ended().is_none(), "it ended before the request did:\n{}", gateway.log());
        busy.send("body");
        let response = busy.response();
        assert_eq!((response.status, response.text().as_str()), (200, "finished"));
        assert!(busy.is_closed_without_bytes(), "after its last answer the connection is closed");
        assert!(gateway.wait(PATIENCE).success(), "{}", gateway.log());
        for pid in workers {
            wait_until("no worker is left", PATIENCE, || !process::is_running(pid));
        }
    }

    /// What does not end by itself is cut at the deadline.
    fn the_drain_has_a_deadline(cell) {
        let upstream = Upstream::never_answering();
        let mut gateway = Setup::new(cell).config_for(&[upstream.address], "[timeouts]\ndrain_ms = 300\n").start();
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_until("the request is under way", PATIENCE, || upstream.requests().len() == 1);
        gateway.signal(Signal::Term);
        gateway.wait(PATIENCE);
        client.rest();
    }

    /// SIGINT ends it without waiting for anybody, and the port is free.
    fn an_interrupt_stops_at_once(cell) {
        let upstream = Upstream::never_answering();
        let mut gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_until("the request is under way", PATIENCE, || upstream.requests().len() == 1);
        gateway.signal(Signal::Int);
        gateway.wait(PATIENCE);
        assert!(TcpStream::connect(gateway.address).is_err());
    }
}
