//! HTTP without TLS on a port with TLS.

use blitz_tests::tls::TlsClient;
use blitz_tests::{Pki, Setup, matrix};

fn tls_works(gateway: &blitz_tests::Gateway, pki: &Pki) {
    let mut client = TlsClient::connect(gateway.address, "edge.test", &pki.client().build()).expect("TLS");
    assert!(client.get("/hello").expect("an answer").ends_with("Hello from Blitz\n"));
}

matrix! {
    fn it_is_refused(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).config(&pki.listener(&["edge"], "")).start();
        let answer = gateway.get("/hello");
        assert_eq!(answer.status, 400);
        assert_eq!(answer.field("connection"), Some("close"));
        tls_works(&gateway, &pki);
        assert!(gateway.admin("/metrics").text().contains("blitz_errors_total{kind=\"plain_on_tls\"} 1"));
        gateway.stop();
    }

    fn it_is_redirected(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).config(&pki.listener(&["edge"], "plain = \"redirect\"")).start();
        let mut client = gateway.connect();
        client.send("GET /a?b=c HTTP/1.1\r\nHost: edge.test:8443\r\n\r\n");
        let answer = client.response();
        assert_eq!((answer.status, answer.field("location")), (308, Some("https://edge.test:8443/a?b=c")));
        assert!(client.is_closed_without_bytes());
        // Without a name there is nowhere to send it.
        let mut client = gateway.connect();
        client.send("GET /a HTTP/1.0\r\n\r\n");
        assert_eq!(client.response().status, 400);
        tls_works(&gateway, &pki);
        gateway.stop();
    }

    fn it_is_served(cell) {
        let pki = Pki::edge();
        let gateway = Setup::new(cell).config(&pki.listener(&["edge"], "plain = \"serve\"")).start();
        assert_eq!(gateway.get("/hello").text(), "Hello from Blitz\n");
        tls_works(&gateway, &pki);
        gateway.stop();
    }
}
