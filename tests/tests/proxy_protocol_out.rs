//! Connections to endpoints that begin with a PROXY protocol header: whom they name, and that nobody else uses them.

use std::net::SocketAddr;

use blitz_tests::gateway::one_upstream;
use blitz_tests::{Client, Gateway, Nginx, PATIENCE, Setup, free_port, matrix, require, wait_until};

/// An upstream that is told the clients.
fn naming(endpoint: SocketAddr, more: &str) -> String {
    one_upstream(&[endpoint], more).replace("[upstreams.pool]", "[upstreams.pool]\nproxy_protocol = \"v2\"")
}

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

/// The connections to endpoints that are open.
fn open(gateway: &Gateway) -> Option<String> {
    let text = gateway.admin("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix("blitz_upstream_connections_active "));
    line.map(str::to_owned)
}

matrix! {
    fn nginx_is_told_the_client(cell) {
        require!("nginx");
        let nginx = Nginx::start();
        let v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, free_port()));
        let listener = format!("[[listeners]]\nname = \"six\"\naddress = \"{v6}\"\n");
        let gateway = Setup::new(cell).config(&naming(nginx.proxied, &listener)).start();
        for address in [gateway.address, v6] {
            let stream = std::net::TcpStream::connect(address).expect("the gateway listens");
            let ours = stream.local_addr().expect("a connected socket has an address");
            let mut client = Client::from(stream);
            let expected =
                format!("{} {} {} {}", ours.ip(), ours.port(), address.ip(), address.port());
            // Each request has a connection of its own, and each says the same.
            for _ in 0..3 {
                client.send(GET);
                assert_eq!(client.response().text(), expected);
            }
        }
        wait_until("nothing is kept", PATIENCE, || open(&gateway).as_deref() == Some("0"));
        assert!(gateway.admin("/metrics").text().contains("blitz_upstream_reuses_total 0\n"));
        gateway.stop();
    }

    /// Behind a load balancer it is the client that the load balancer names.
    fn a_client_that_was_named_to_us(cell) {
        require!("nginx");
        let nginx = Nginx::start();
        let keys = "builtin_answers = true\nproxy_protocol = \"required\"\nproxy_protocol_from = [\"127.0.0.1\"]";
        let config = naming(nginx.proxied, "").replacen("builtin_answers = true", keys, 1);
        let gateway = Setup::new(cell).config(&config).start();
        let port = gateway.address.port();
        for (header, expected) in [
            ("PROXY TCP4 192.0.2.7 10.0.0.1 40000 80\r\n", format!("192.0.2.7 40000 127.0.0.1 {port}")),
            (
                "PROXY TCP6 2001:db8::7 2001:db8::1 40001 80\r\n",
                format!("2001:db8::7 40001 ::ffff:127.0.0.1 {port}"),
            ),
        ] {
            let mut client = gateway.connect();
            client.send([header, GET].concat());
            assert_eq!(client.response().text(), expected);
        }
        gateway.stop();
    }

    /// A gateway in front of a gateway: two that use the same connection to the second are told apart there.
    fn through_two_gateways(cell) {
        require!("nginx");
        let nginx = Nginx::start();
        let keys = "builtin_answers = true\nproxy_protocol = \"required\"\nproxy_protocol_from = [\"127.0.0.1\"]";
        let config = naming(nginx.proxied, "").replacen("builtin_answers = true", keys, 1);
        let inner = Setup::new(cell).config(&config).start();
        let outer = Setup::new(cell).config(&naming(inner.address, "").replace("[\"h1\"]", "[\"h1\", \"h2\"]")).start();
        for _ in 0..2 {
            let stream = std::net::TcpStream::connect(outer.address).expect("the gateway listens");
            let ours = stream.local_addr().expect("a connected socket has an address");
            let mut client = Client::from(stream);
            client.send(GET);
            let said = client.response().text();
            assert!(said.starts_with(&format!("{} {} ", ours.ip(), ours.port())), "{ours}: {said}");
        }
        outer.stop();
        inner.stop();
    }
}
