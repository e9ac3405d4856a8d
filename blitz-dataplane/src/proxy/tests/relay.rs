//! PROXY protocol headers: who is believed, how long it may take, who is never reported.

use super::*;

const LINE: &str = "PROXY TCP4 203.0.113.7 10.0.0.9 40000 80\r\n";
const SMUGGLE: &str =
    "POST /echo/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";

impl Bench {
    /// Wants headers from now on, from this prefix only.
    fn want_headers(&self, from: &str) {
        self.listener.set_proxy_protocol(Some(&[from.parse().unwrap()]));
    }
}

#[test]
fn a_sender_that_is_not_trusted_is_not_believed_and_not_served() {
    run(Profile::CALM, "", |bench| async move {
        bench.want_headers("203.0.113.0/24");
        let mut client = bench.connect().await;
        client.say(&format!("{LINE}GET /hello HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(client.hear("\r\n").await, "");
        assert_eq!(bench.value(Metric::ProxyProtocolUntrusted), 1);
        assert_eq!(bench.value(Metric::ProxyProtocolV1Client), 0);
        assert_eq!(bench.value(Metric::DownstreamClosedError), 1);
        assert!(bench.proxy.connections.is_empty());
    });
}

#[test]
fn a_header_that_trickles_ends_at_its_deadline() {
    run(Profile::CALM, "", |bench| async move {
        bench.want_headers("0.0.0.0/0");
        let mut client = bench.connect().await;
        let began = bench.handle.now_ms();
        for byte in LINE.chars() {
            client.say(&byte.to_string());
            bench.handle.sleep(ms(30)).await;
        }
        assert_eq!(client.hear("\r\n").await, "");
        assert_eq!(bench.value(Metric::ProxyProtocolTimeout), 1);
        assert_eq!(bench.value(Metric::DeadlineRequestHead), 1);
        assert_eq!(bench.value(Metric::DownstreamClosedDeadline), 1);
        assert!(bench.handle.now_ms() - began < HEAD + 40 * 50);
        // In time, the request behind it has a deadline of its own.
        let mut client = bench.connect().await;
        bench.handle.sleep(ms(HEAD - 50)).await;
        client.say(LINE);
        bench.handle.sleep(ms(HEAD - 50)).await;
        client.say("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(client.hear("\r\n").await, "HTTP/1.1 200 OK\r\n");
    });
}

#[test]
fn a_drain_does_not_wait_for_a_header() {
    run(Profile::CALM, "", |bench| async move {
        bench.want_headers("0.0.0.0/0");
        let mut client = bench.connect().await;
        client.say("PROXY ");
        bench.handle.sleep(ms(20)).await;
        bench.proxy.drain();
        assert_eq!(client.hear("\r\n").await, "");
        assert_eq!(bench.value(Metric::DownstreamClosedDrain), 1);
    });
}

/// Neither the sender, behind which others stand, nor whom it names, which is not the peer of packets.
#[test]
fn nobody_is_reported_for_what_comes_behind_a_header_and_never_a_sender() {
    let rules = "[xdp]\ninterfaces = [\"eth0\"]\n[xdp.blocklist]\nframing_violations_per_minute = 1\n";
    for header in [LINE, "PROXY UNKNOWN\r\n"] {
        run(Profile::CALM, rules, |bench| async move {
            bench.want_headers("0.0.0.0/0");
            for _ in 0..20 {
                let mut client = bench.connect().await;
                client.say(&format!("{header}{SMUGGLE}"));
                assert_eq!(client.hear("\r\n").await, "HTTP/1.1 400 Bad Request\r\n");
            }
            assert!(bench.outgoing.try_recv().is_err());
        });
    }
    // Also not for what it does where it sends no headers.
    let other = "[[listeners]]\nname = \"relayed\"\naddress = \"10.0.0.9:81\"\nproxy_protocol = \"required\"\n\
                 proxy_protocol_from = [\"0.0.0.0/0\"]\n";
    for (first, is_reported) in [(other, false), ("", true)] {
        run_with(Profile::CALM, first, rules, |bench| async move {
            for _ in 0..20 {
                let mut client = bench.connect().await;
                client.say(SMUGGLE);
                assert_eq!(client.hear("\r\n").await, "HTTP/1.1 400 Bad Request\r\n");
            }
            assert_eq!(bench.outgoing.try_recv().is_ok(), is_reported);
        });
    }
}
