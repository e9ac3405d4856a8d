//! A request reaches the upstream as it was meant, and the answer comes back whole.

use blitz_tests::{Setup, Upstream, matrix};

matrix! {
    /// Target, host and own fields pass unchanged; the answer's status, fields and body come back.
    fn a_get_and_its_answer_pass(cell) {
        let upstream = Upstream::sending(
            b"HTTP/1.1 201 Created\r\nX-Own: kept\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        );
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send("GET /a/b?c=d&e HTTP/1.1\r\nHost: example.test\r\nX-Mine: 1\r\nX-Mine: 2\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (201, "hello"));
        assert_eq!(response.field("x-own"), Some("kept"));
        assert!(response.field("date").is_some(), "RFC 9110 section 6.6.1: a Date is added: {}", response.head);
        let request = upstream.last_request();
        assert!(request.head.starts_with("GET /a/b?c=d&e HTTP/1.1\r\n"), "{}", request.head);
        assert_eq!(request.field("host"), Some("example.test"));
        assert_eq!(request.fields("x-mine"), "1, 2");
        gateway.stop();
    }

    /// RFC 9110 section 7.6.1: what belongs to one hop ends there, and what `Connection` names as well.
    fn hop_by_hop_fields_end_here(cell) {
        let upstream = Upstream::sending(
            b"HTTP/1.1 200 OK\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
              Content-Length: 0\r\n\r\n",
        );
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: 300\r\n\
             Proxy-Connection: keep-alive\r\nTE: trailers\r\nX-Public: 1\r\n\r\n",
        );
        let response = client.response();
        assert_eq!(response.status, 200);
        for field in ["x-hop", "keep-alive"] {
            assert_eq!(response.field(field), None, "{}", response.head);
        }
        let request = upstream.last_request();
        for field in ["x-secret", "keep-alive", "proxy-connection"] {
            assert_eq!(request.field(field), None, "{}", request.head);
        }
        assert_eq!(request.field("x-public"), Some("1"));
    }

    /// The upstream learns who asked, and a stranger cannot pretend to be somebody else.
    fn forwarding_fields_come_from_the_peer(cell) {
        let upstream = Upstream::answering("ok");
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send(
            "GET / HTTP/1.1\r\nHost: example.test\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\
             X-Forwarded-Host: evil.test\r\nForwarded: for=6.6.6.6\r\n\r\n",
        );
        assert_eq!(client.response().status, 200);
        let request = upstream.last_request();
        assert_eq!(request.fields("x-forwarded-for"), "127.0.0.1");
        assert_eq!(request.fields("x-forwarded-proto"), "http");
        assert_eq!(request.fields("x-forwarded-host"), "example.test");
        assert!(request.fields("forwarded").contains("for=127.0.0.1"), "{}", request.head);
        assert!(!request.head.contains("6.6.6.6"), "{}", request.head);
        assert!(request.fields("via").starts_with("1.1 "), "{}", request.head);
    }

    /// From a trusted proxy the chain is kept and grows by one.
    fn forwarding_fields_of_a_trusted_proxy_are_kept(cell) {
        let upstream = Upstream::answering("ok");
        let toml = format!(
            "trusted_proxies = [\"127.0.0.0/8\"]\n{}",
            blitz_tests::gateway::one_upstream(&[upstream.address], "")
        );
        let gateway = Setup::new(cell).config(&toml).start();
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\r\n");
        assert_eq!(client.response().status, 200);
        let request = upstream.last_request();
        assert_eq!(request.fields("x-forwarded-for"), "192.0.2.7, 127.0.0.1");
        assert_eq!(request.fields("x-forwarded-proto"), "https");
    }

    /// Bodies with a length and bodies in chunks, with their trailers, arrive byte for byte.
    fn request_bodies_arrive_whole(cell) {
        let upstream = Upstream::answering("ok");
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        let body: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        client.send(format!("POST /l HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
        client.send(&body);
        assert_eq!(client.response().status, 200);
        assert!(upstream.last_request().body == body, "the body with a length arrived otherwise");

        client.send("POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n");
        for part in body.chunks(70_001) {
            client.send(format!("{:x}\r\n", part.len()));
            client.send(part);
            client.send("\r\n");
        }
        client.send("0\r\nX-Sum: 7\r\n\r\n");
        assert_eq!(client.response().status, 200);
        let request = upstream.last_request();
        assert!(request.body == body, "the chunked body arrived otherwise");
        assert!(request.trailers.to_ascii_lowercase().contains("x-sum: 7"), "{:?}", request.trailers);
    }

    /// A chunked answer arrives whole, with its trailers; one that ends with the connection as well.
    fn answers_in_chunks_and_until_close_arrive_whole(cell) {
        let chunked = Upstream::sending(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n\
              5\r\nhello\r\n7\r\n, world\r\n0\r\nX-End: yes\r\n\r\n",
        );
        let gateway = Setup::new(cell).backend(chunked.address).start();
        let response = gateway.get("/");
        assert_eq!(response.text(), "hello, world");
        assert!(response.is_complete);
        assert!(response.trailers.to_ascii_lowercase().contains("x-end: yes"), "{response:?}");

        let until_close = Upstream::sending(b"HTTP/1.1 200 OK\r\n\r\nall until the end");
        let gateway = Setup::new(cell).backend(until_close.address).start();
        let response = gateway.get("/");
        assert_eq!(response.text(), "all until the end");
        assert!(response.is_complete);
    }

    /// Two endpoints share the requests of one connection evenly.
    fn requests_alternate_between_endpoints(cell) {
        let (red, blue) = (Upstream::answering("red"), Upstream::answering("blue"));
        let gateway = Setup::new(cell).backend(red.address).backend(blue.address).start();
        let mut client = gateway.connect();
        for _ in 0..20 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().status, 200);
        }
        assert_eq!((red.requests().len(), blue.requests().len()), (10, 10));
    }

    /// With no route for a path the gateway answers by itself: built-in answers, else 404.
    fn built_in_answers_where_no_route_takes_them(cell) {
        let gateway = Setup::new(cell).config(blitz_tests::gateway::LISTENER).start();
        assert_eq!(gateway.get("/hello").status, 200);
        assert_eq!(gateway.get("/health").status, 200);
        assert_eq!(gateway.get("/nowhere").status, 404);
        let mut client = gateway.connect();
        client.send("POST /echo/x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nping");
        let response = client.response();
        assert_eq!(response.status, 200);
        assert!(response.text().contains("ping"), "{response:?}");
    }

    /// The most specific route wins, by host and then by path.
    fn routes_by_host_and_path(cell) {
        let (one, two, three) = (Upstream::answering("one"), Upstream::answering("two"), Upstream::answering("three"));
        let toml = format!(
            "{}\n[upstreams.one]\nendpoints = [{{ address = \"{}\" }}]\n[upstreams.two]\nendpoints = [{{ address = \
             \"{}\" }}]\n[upstreams.three]\nendpoints = [{{ address = \"{}\" }}]\n[[routes]]\nupstream = \"one\"\n\
             [[routes]]\npath = \"/api/*rest\"\nupstream = \"two\"\n[[routes]]\nhost = \"*.example.test\"\n\
             upstream = \"three\"\n",
            blitz_tests::gateway::LISTENER, one.address, two.address, three.address
        );
        let gateway = Setup::new(cell).config(&toml).start();
        let mut client = gateway.connect();
        let cases = [
            ("a.test", "/", "one"),
            ("a.test", "/api/x", "two"),
            ("a.test", "/apix", "one"),
            ("www.example.test", "/", "three"),
            ("WWW.Example.Test:8080", "/", "three"),
        ];
        for (host, path, expected) in cases {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(client.response().text(), expected, "{host}{path}");
        }
    }
}
