//! Connections with a PROXY protocol header in front: whose they are then, and who may send one.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use blitz_tests::gateway::{LISTENER, one_upstream};
use blitz_tests::net::connect_from;
use blitz_tests::tls::TlsClient;
use blitz_tests::{
    Client, Gateway, Haproxy, PATIENCE, Pki, Setup, Signal, Upstream, matrix, require, wait_until,
};

const GET: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const GET_AND_CLOSE: &str = "GET /hello HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
const LINE: &str = "PROXY TCP4 192.0.2.7 10.0.0.1 40000 80\r\n";

/// A configuration whose listener wants headers, from `from` only.
fn required(config: &str, from: &str) -> String {
    let keys =
        format!("builtin_answers = true\nproxy_protocol = \"required\"\nproxy_protocol_from = [{from}]");
    config.replacen("builtin_answers = true", &keys, 1)
}

const LOOPBACK: &str = "\"127.0.0.1\"";

/// A header of version 2.
fn v2(command: u8, client: SocketAddr, records: &[u8]) -> Vec<u8> {
    let (family, mut block) = match client.ip() {
        IpAddr::V4(ip) => (0x11, [ip.octets(), [10, 0, 0, 1]].concat()),
        IpAddr::V6(ip) => (0x21, [ip.octets(), [0; 16]].concat()),
    };
    block.extend_from_slice(&client.port().to_be_bytes());
    block.extend_from_slice(&[0, 80]);
    block.extend_from_slice(records);
    let length = u16::try_from(block.len()).expect("a short block").to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, &block].concat()
}

#[track_caller]
fn counted(gateway: &Gateway, row: &str, count: u64) {
    let row = format!("blitz_proxy_protocol_{row} {count}");
    let mut text = String::new();
    wait_until(&row, PATIENCE, || {
        text = gateway.admin("/metrics").text();
        text.lines().any(|line| line == row)
    });
}

matrix! {
    /// What upstreams, limits and the list of connections are told is the client of the header, however it is
    /// cut; what is behind it is the connection's first request.
    fn the_header_names_the_client(cell) {
        let upstream = Upstream::answering("up");
        let config = required(&one_upstream(&[upstream.address], ""), LOOPBACK);
        let gateway = Setup::new(cell).config(&config).start();
        let v4: SocketAddr = "192.0.2.7:40000".parse().expect("an address");
        let v6: SocketAddr = "[2001:db8::7]:40000".parse().expect("an address");
        let checked = [0x04, 0, 2, 0, 0, 0x02, 0, 1, b'a'];
        for (header, client, forwarded) in [
            (LINE.as_bytes().to_vec(), "192.0.2.7:40000", "for=192.0.2.7;"),
            (b"PROXY TCP6 2001:db8::7 ::1 40000 80\r\n".to_vec(), "[2001:db8::7]:40000", "for=\"[2001:db8::7]\";"),
            (v2(0x21, v4, &[]), "192.0.2.7:40000", "for=192.0.2.7;"),
            (v2(0x21, v4, &checked), "192.0.2.7:40000", "for=192.0.2.7;"),
            (v2(0x21, v4, &vec![0; 3000]), "192.0.2.7:40000", "for=192.0.2.7;"),
            (v2(0x21, v6, &[]), "[2001:db8::7]:40000", "for=\"[2001:db8::7]\";"),
            // The sender speaks for itself.
            (b"PROXY UNKNOWN 192.0.2.7 whatever\r\n".to_vec(), "127.0.0.1:", "for=127.0.0.1;"),
            (v2(0x20, v4, &[]), "127.0.0.1:", "for=127.0.0.1;"),
        ] {
            let bytes = [&header[..], GET.as_bytes()].concat();
            let cuts = [bytes.len(), header.len(), header.len() - 1, 1, 14];
            for cut in cuts {
                let mut client_socket = gateway.connect();
                for piece in bytes.chunks(cut) {
                    client_socket.send(piece);
                    if cut > 1 {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                }
                assert_eq!(client_socket.response().text(), "up", "{client} in pieces of {cut}");
                let shown = gateway.admin("/connections").text();
                assert!(shown.contains(&format!("\"{client}")), "{client}: {shown}");
                // The second request on the connection is the same client's; a field does not change that.
                client_socket.send("GET /b HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 203.0.113.1\r\n\r\n");
                assert_eq!(client_socket.response().text(), "up");
                let address = client.rsplit_once(':').expect("a port").0.trim_matches(['[', ']']);
                let requests = upstream.requests();
                for request in &requests[requests.len() - 2..] {
                    assert_eq!(request.fields("x-forwarded-for"), address);
                    assert!(request.fields("forwarded").starts_with(forwarded), "{}", request.head);
                }
            }
        }
        counted(&gateway, "headers_total{version=\"1\",address=\"client\"}", 10);
        counted(&gateway, "headers_total{version=\"1\",address=\"sender\"}", 5);
        counted(&gateway, "headers_total{version=\"2\",address=\"client\"}", 20);
        counted(&gateway, "headers_total{version=\"2\",address=\"sender\"}", 5);
        gateway.stop();
    }

    /// A connection without a whole, sound header is closed without a byte of answer, and nothing of it is served.
    fn anything_else_is_closed(cell) {
        let upstream = Upstream::answering("up");
        let config = required(&one_upstream(&[upstream.address], "[timeouts]\nrequest_head_ms = 300"), LOOPBACK);
        let gateway = Setup::new(cell).config(&config).start();
        let peer = "192.0.2.7:1".parse().expect("an address");
        let malformed = [
            "PROXY TCP4 192.0.2.7 10.0.0.1 40000\r\n".into(),
            "PROXY TCP4 192.0.2.7 10.0.0.1 40000 080\r\n".into(),
            format!("PROXY UNKNOWN {}\r\n", "x".repeat(100)).into_bytes(),
            v2(0x2f, peer, &[]),
            v2(0x21, peer, &[3, 0, 4, 1, 2, 3, 4]),
            v2(0x21, peer, &vec![0; 5000]),
        ];
        for header in &malformed {
            let mut client = gateway.connect();
            client.try_send([&header[..], GET.as_bytes()].concat());
            assert!(client.is_closed_without_bytes(), "{header:?}");
        }
        for bytes in [GET.as_bytes(), b"\x16\x03\x01\x00\x05hello", b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"] {
            let mut client = gateway.connect();
            client.try_send(bytes);
            assert!(client.is_closed_without_bytes(), "{bytes:?}");
        }
        // Half of one, and an end; nothing at all, and an end, as of a load balancer that only looks.
        let mut client = gateway.connect();
        client.send(&LINE[..20]);
        client.finish();
        assert!(client.is_closed_without_bytes());
        let mut client = gateway.connect();
        client.finish();
        assert!(client.is_closed_without_bytes());
        // Half of one, and nothing for too long.
        let mut client = gateway.connect();
        client.send(&v2(0x21, peer, &[])[..20]);
        assert!(client.is_closed_without_bytes());
        counted(&gateway, "refusals_total{reason=\"malformed\"}", 6);
        counted(&gateway, "refusals_total{reason=\"no_header\"}", 3);
        counted(&gateway, "refusals_total{reason=\"closed\"}", 1);
        counted(&gateway, "refusals_total{reason=\"timeout\"}", 1);
        assert_eq!(upstream.accepted(), 0);
        let mut client = gateway.connect();
        client.send(format!("{LINE}{GET}"));
        assert_eq!(client.response().text(), "up");
        gateway.stop();
    }

    /// A header from elsewhere is not believed, and neither is its sender served.
    fn nobody_else_may_connect(cell) {
        let config = required(LISTENER, "\"127.0.0.8/29\"");
        let gateway = Setup::new(cell).config(&config).start();
        let SocketAddr::V4(address) = gateway.address else { panic!("it listens on IPv4") };
        let ask_for = |source: Ipv4Addr, bytes: &str| {
            // A reset may come before the connect is over.
            let Ok(stream) = connect_from(source, address, PATIENCE) else { return Vec::new() };
            let mut client = Client::from(stream);
            client.try_send(bytes);
            client.rest()
        };
        let ask = |source| ask_for(source, &format!("{LINE}{GET_AND_CLOSE}"));
        for host in [1, 7, 16, 200] {
            assert_eq!(ask(Ipv4Addr::new(127, 0, 0, host)), b"", "127.0.0.{host}");
        }
        // Before it says anything.
        assert_eq!(ask_for(Ipv4Addr::LOCALHOST, ""), b"");
        counted(&gateway, "refusals_total{reason=\"untrusted\"}", 5);
        for host in [8, 15] {
            assert!(ask(Ipv4Addr::new(127, 0, 0, host)).ends_with(b"Hello from Blitz\n"), "127.0.0.{host}");
        }
        counted(&gateway, "headers_total{version=\"1\",address=\"client\"}", 2);
        gateway.stop();
    }

    /// Each client that a sender names has a limit of its own.
    fn limits_count_the_named_client(cell) {
        let limits = "limits = [{ name = \"slow\", requests_per_second = 1, burst_seconds = 2 }]\n";
        let gateway = Setup::new(cell).config(&format!("{limits}{}", required(LISTENER, LOOPBACK))).start();
        for host in 1..=4 {
            let mut client = gateway.connect();
            client.send(format!("PROXY TCP4 192.0.2.{host} 10.0.0.1 40000 80\r\n"));
            let statuses: Vec<_> = (0..4)
                .map(|_| {
                    client.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
                    client.response().status
                })
                .collect();
            assert_eq!(statuses, [200, 200, 429, 429], "192.0.2.{host}");
        }
        gateway.stop();
    }

    /// The header stands before the handshake, in one piece with it or not.
    fn it_stands_before_tls(cell) {
        let pki = Pki::edge();
        let upstream = Upstream::answering("up");
        let routed = one_upstream(&[upstream.address], "").replacen(LISTENER, "", 1);
        let listener = required(&pki.listener(&["edge"], "plain = \"serve\""), LOOPBACK);
        let gateway = Setup::new(cell).config(&format!("{listener}{routed}")).flag("--tls-trace").start();
        let tls = pki.client().build();
        for header in [LINE.as_bytes().to_vec(), v2(0x21, "192.0.2.7:40000".parse().expect("an address"), &[])] {
            for pause_ms in [0, 20] {
                let mut tcp = TcpStream::connect(gateway.address).expect("it listens");
                // Without a pause header and handshake mostly arrive together.
                tcp.write_all(&header).expect("it takes the header");
                std::thread::sleep(std::time::Duration::from_millis(pause_ms));
                let mut client = TlsClient::over(tcp, "edge.test", &tls).expect("a handshake");
                assert!(client.get("/a").expect("an answer").ends_with("up"));
                assert_eq!(upstream.last_request().field("x-forwarded-for"), Some("192.0.2.7"));
                assert_eq!(upstream.last_request().field("x-forwarded-proto"), Some("https"));
            }
        }
        // In clear behind the header, as the listener allows it.
        let mut client = gateway.connect();
        client.send(format!("{LINE}{GET}"));
        assert_eq!(client.response().text(), "up");
        // A handshake without a header.
        assert!(TlsClient::connect(gateway.address, "edge.test", &tls).is_err());
        counted(&gateway, "refusals_total{reason=\"no_header\"}", 1);
        let log = gateway.log();
        assert_eq!(log.matches("tls: 192.0.2.7:40000 version=1.3").count(), 4, "{log}");
        gateway.stop();
    }

    /// A reload holds for connections that come after it.
    fn a_reload_turns_it_on_and_off(cell) {
        let gateway = Setup::new(cell).config(LISTENER).start();
        let mut before = gateway.connect();
        before.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(before.response().status, 200);
        let with_header = || {
            let mut client = gateway.connect();
            client.send(format!("{LINE}{GET_AND_CLOSE}"));
            client.response().status
        };
        assert_eq!(with_header(), 400, "off, a header is a broken request");
        gateway.write_config(&required(LISTENER, LOOPBACK));
        gateway.signal(Signal::Hup);
        wait_until("headers are read", PATIENCE, || {
            let mut client = gateway.connect();
            client.send(format!("{LINE}{GET_AND_CLOSE}"));
            client.rest().starts_with(b"HTTP/1.1 200")
        });
        before.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(before.response().status, 200, "a connection from before goes on");
        gateway.write_config(LISTENER);
        gateway.signal(Signal::Hup);
        wait_until("none is read", PATIENCE, || with_header() == 400);
        gateway.stop();
    }

    /// curl says version 1, before HTTP/1 and before the preface of HTTP/2.
    fn curl_as_sender(cell) {
        require!("curl");
        let both = LISTENER.replacen("[\"h1\"]", "[\"h1\", \"h2\"]", 1);
        let gateway = Setup::new(cell).config(&required(&both, LOOPBACK)).start();
        for (protocol, version) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
            let mut curl = Command::new("curl");
            curl.args(["-sS", "--fail", "--noproxy", "*", "-m", "10", "--haproxy-protocol", protocol]);
            curl.args(["-w", "%{http_version}"]).arg(format!("http://{}/hello", gateway.address));
            let output = curl.stdin(Stdio::null()).output().expect("curl can be executed");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(said, format!("Hello from Blitz\n{version}"), "{output:?}");
        }
        counted(&gateway, "headers_total{version=\"1\",address=\"client\"}", 2);
        // The preface in one piece with the header: the settings of the server answer it.
        let mut client = gateway.connect();
        client.send([LINE.as_bytes(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"].concat());
        client.finish();
        assert_eq!(client.rest().get(3), Some(&0x04));
        gateway.stop();
    }

    /// HAProxy says both versions, with a checksum and other records, and LOCAL when it checks our health.
    fn haproxy_as_sender(cell) {
        require!("haproxy");
        let upstream = Upstream::answering("up");
        // Its own address, so that the client's cannot be mistaken for it.
        let config = required(&one_upstream(&[upstream.address], ""), "\"127.0.0.50\"");
        let gateway = Setup::new(cell).config(&config).start();
        for options in [
            "source 127.0.0.50 send-proxy",
            "source 127.0.0.50 send-proxy-v2",
            "source 127.0.0.50 send-proxy-v2 proxy-v2-options crc32c,authority check inter 1000 fall 100 check-send-proxy",
        ] {
            let haproxy = Haproxy::start(gateway.address, options);
            for host in [77, 78] {
                let source = Ipv4Addr::new(127, 0, 0, host);
                let mut client = Client::connect_from(source, haproxy.address);
                client.send(GET);
                assert_eq!(client.response().text(), "up", "{options}");
                let expected = source.to_string();
                // Health checks have another target.
                let requests = upstream.requests();
                let request = requests.iter().rfind(|request| request.target() == "/a").expect("a request");
                assert_eq!(request.field("x-forwarded-for"), Some(expected.as_str()), "{options}");
            }
            if options.contains("check-send-proxy") {
                wait_until("a health check says LOCAL", PATIENCE, || {
                    let text = gateway.admin("/metrics").text();
                    let row = "blitz_proxy_protocol_headers_total{version=\"2\",address=\"sender\"} ";
                    text.lines().filter_map(|line| line.strip_prefix(row)).any(|count| count != "0")
                });
                wait_until("it is answered as the sender's own", PATIENCE, || {
                    let mut checks = upstream.requests().into_iter().filter(|request| request.target() == "/check");
                    checks.next_back().is_some_and(|check| check.field("x-forwarded-for") == Some("127.0.0.50"))
                });
            }
        }
        counted(&gateway, "refusals_total{reason=\"malformed\"}", 0);
        counted(&gateway, "refusals_total{reason=\"untrusted\"}", 0);
        gateway.stop();
    }
}
