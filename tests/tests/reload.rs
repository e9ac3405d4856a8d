//! SIGHUP applies a new file without losing a request; a bad file changes nothing.

use blitz_tests::gateway::one_upstream;
use blitz_tests::load::Clients;
use blitz_tests::{PATIENCE, Setup, Signal, Upstream, matrix, wait_until};

matrix! {
    /// 20 reloads under load: no request fails, and each file takes effect.
    fn reloads_under_load_lose_nothing(cell) {
        let (red, blue) = (Upstream::answering("red"), Upstream::answering("blue"));
        let gateway = Setup::new(cell).workers(2).config_for(&[red.address], "").start();
        let kept = Clients::start(gateway.address, 2, "/", true);
        let fresh = Clients::start(gateway.address, 1, "/", false);
        for n in 0..20 {
            let (upstream, name) = if n % 2 == 0 { (&blue, "blue") } else { (&red, "red") };
            gateway.write_config(&one_upstream(&[upstream.address], ""));
            gateway.signal(Signal::Hup);
            // Both workers have it once several fresh connections in a row agree.
            wait_until("the new file takes effect", PATIENCE, || (0..8).all(|_| gateway.get("/").text() == name));
        }
        let (kept, fresh) = (kept.stop(), fresh.stop());
        assert!(kept.good > 0 && fresh.good > 0);
        assert!(kept.bad.is_empty() && fresh.bad.is_empty(), "kept: {kept:?}; fresh: {fresh:?}");
        gateway.stop();
    }

    /// A file with an unknown key or a wrong value is named in the log and changes nothing.
    fn a_bad_file_changes_nothing(cell) {
        let upstream = Upstream::answering("still here");
        let gateway = Setup::new(cell).config_for(&[upstream.address], "").start();
        for (bad, named) in [
            (one_upstream(&[upstream.address], "[nonsense]\nkey = 1\n"), "nonsense"),
            (one_upstream(&[upstream.address], "[timeouts]\nrequest_head_ms = -1\n"), "request_head_ms"),
            ("this is [not TOML".to_owned(), "blitz.toml"),
        ] {
            let before = gateway.log().len();
            gateway.write_config(&bad);
            gateway.signal(Signal::Hup);
            wait_until("the log names the mistake", PATIENCE, || gateway.log()[before..].contains(named));
            assert_eq!(gateway.get("/").text(), "still here");
            assert_eq!(gateway.admin("/readyz").status, 200);
        }
        // And a good file afterwards is taken.
        let other = Upstream::answering("new");
        gateway.write_config(&one_upstream(&[other.address], ""));
        gateway.signal(Signal::Hup);
        wait_until("the good file takes effect", PATIENCE, || gateway.get("/").text() == "new");
        gateway.stop();
    }

    /// A request that is under way keeps its upstream.
    fn a_request_under_way_is_finished(cell) {
        let slow = Upstream::start(|conn| {
            let mut request = conn.head()?;
            conn.record(request.clone());
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nold")?;
            // The second half comes when the body of the request does, which the test decides.
            conn.body(&mut request)?;
            conn.send("end")
        });
        let other = Upstream::answering("new");
        let gateway = Setup::new(cell).config_for(&[slow.address], "").start();
        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n");
        wait_until("the request is under way", PATIENCE, || slow.requests().len() == 1);
        gateway.write_config(&one_upstream(&[other.address], ""));
        gateway.signal(Signal::Hup);
        wait_until("the new file takes effect", PATIENCE, || gateway.get("/").text() == "new");
        client.send("xx");
        assert_eq!(client.response().text(), "oldend");
    }
}
