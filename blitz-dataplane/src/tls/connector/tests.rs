//! Handshakes with our own server over simulated networks, kind and unkind.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::runtime::sim::{Profile, Rng, World};
use crate::runtime::{Handle, Runtime, TcpListener};
use crate::tls::testing::{Certificates, acceptor, config, connector, material};
use crate::tls::{Acceptor, Files};

const LIMIT: Duration = Duration::from_secs(60);
const OFFERED: &[&[u8]] = &[b"h2", b"http/1.1"];

fn address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], 443))
}

/// Answers each connection's first message with itself, over TLS.
fn serve(handle: &Handle, acceptor: Acceptor) {
    let listener = TcpListener::simulated(handle, address()).expect("a listener");
    let (spawner, acceptor) = (handle.clone(), Rc::new(acceptor));
    handle.spawn(async move {
        while let Ok(tcp) = listener.accept().await {
            let (handle, acceptor) = (spawner.clone(), Rc::clone(&acceptor));
            spawner.spawn(async move {
                let mut deadline = Deadline::new(&handle);
                deadline.set_after(LIMIT);
                let Ok(Some(received)) = tcp.receive().await else { return };
                let Ok(shaken) = acceptor.accept(tcp, received, None, &mut deadline).await else { return };
                let stream = shaken.stream;
                while let Ok(Some(chunk)) = poll_fn(|cx| stream.poll_receive(cx)).await {
                    if stream.write_chunk(chunk).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

async fn connect(
    handle: &Handle,
    connector: &Connector,
    name: &str,
    offered: &[&[u8]],
) -> Result<(TlsClientStream, Metric), ConnectFailure> {
    let mut deadline = Deadline::new(handle);
    deadline.set_after(LIMIT);
    let tcp = TcpStream::connect(handle, address()).await.expect("a connection");
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    connector.connect(tcp, &name, offered, address(), &mut deadline).await
}

/// Sends a message and waits for its echo.
async fn echo(stream: &TlsClientStream, message: &[u8]) {
    stream.write_with(|out| out.extend_from_slice(message)).expect("written");
    let mut received = Vec::new();
    while received.len() < message.len() {
        let chunk = poll_fn(|cx| stream.poll_receive(cx)).await.expect("received");
        received.extend_from_slice(&chunk.expect("no end"));
    }
    assert_eq!(received, message);
}

/// Runs `test` on networks of several seeds; none of them resets connections.
fn on_networks<F: Future<Output = ()>>(test: impl Fn(Handle) -> F) {
    for seed in 0..24 {
        let profile = Profile { reset_per_mille: 0, ..Profile::random(&Rng::new(seed)) };
        let mut runtime = Runtime::simulated(&World::with_profile(seed, profile));
        let handle = runtime.handle().clone();
        runtime.block_on(test(handle));
    }
}

fn detail(outcome: Result<(TlsClientStream, Metric), ConnectFailure>) -> (ErrorKind, &'static str) {
    let failure = outcome.err().expect("it fails");
    (failure.error.kind, failure.error.detail)
}

#[test]
fn sessions_are_resumed_and_tickets_are_no_news() {
    let certificates = Certificates::new();
    let files = certificates.files();
    let config = config("[\"h1\", \"h2\"]", "ca_path = \"ca.pem\"");
    on_networks(|handle| {
        let (acceptor, connector) = (acceptor(&config, &files), connector(&config, &files));
        async move {
            serve(&handle, acceptor);
            for metric in
                [Metric::UpstreamTls13Full, Metric::UpstreamTls13Resumed, Metric::UpstreamTls13Resumed]
            {
                let outcome = connect(&handle, &connector, "edge.test", OFFERED).await;
                let (stream, counted) = outcome.expect("a handshake");
                assert_eq!(counted, metric);
                stream.with_alpn(|alpn| assert_eq!(alpn, Some(&b"h2"[..])));
                // The tickets come before the echo, so that they have been taken in; or with it.
                echo(&stream, &[7; 40_000]).await;
                handle.sleep(Duration::from_secs(1)).await;
                assert!(!stream.has_news());
                echo(&stream, b"again").await;
            }
        }
    });
}

#[test]
fn the_protocol_is_the_best_that_both_speak() {
    let certificates = Certificates::new();
    let files = certificates.files();
    let config = config("[\"h1\"]", "ca_path = \"ca.pem\"");
    on_networks(|handle| {
        let (acceptor, connector) = (acceptor(&config, &files), connector(&config, &files));
        async move {
            serve(&handle, acceptor);
            let (stream, _) = connect(&handle, &connector, "edge.test", OFFERED).await.expect("a handshake");
            stream.with_alpn(|alpn| assert_eq!(alpn, Some(&b"http/1.1"[..])));
            let refused = detail(connect(&handle, &connector, "edge.test", &[b"h2"]).await);
            assert_eq!(refused, (ErrorKind::UpstreamTlsAlert, "upstream_alert_no_application_protocol"));
        }
    });
}

#[test]
fn an_endpoint_has_to_be_who_it_is_said_to_be() {
    let certificates = Certificates::new();
    let files = certificates.files();
    on_networks(|handle| {
        let of = |tls: &str| {
            let config = config("[\"h1\"]", tls);
            (acceptor(&config, &files), connector(&config, &files))
        };
        let (acceptor, good) = of("ca_path = \"ca.pem\"");
        let (_, stranger) = of("ca_path = \"stranger.pem\"");
        let (_, careless) = of("verify = false");
        async move {
            serve(&handle, acceptor);
            let wrong = detail(connect(&handle, &good, "other.test", OFFERED).await);
            assert_eq!(wrong, (ErrorKind::UpstreamCertificate, "upstream_certificate_for_other_name"));
            let unknown = detail(connect(&handle, &stranger, "edge.test", OFFERED).await);
            assert_eq!(
                unknown,
                (ErrorKind::UpstreamCertificate, "upstream_certificate_of_unknown_authority")
            );
            connect(&handle, &careless, "other.test", OFFERED).await.expect("anybody will do");
        }
    });
}

#[test]
fn an_endpoint_that_says_nothing_or_nonsense_is_given_up() {
    let certificates = Certificates::new();
    let config = config("[\"h1\"]", "ca_path = \"ca.pem\"");
    for (answer, expected) in [
        (&b""[..], (ErrorKind::UpstreamConnectTimeout, "upstream_tls_timeout")),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", (ErrorKind::UpstreamTlsHandshake, "upstream_speaks_no_tls")),
        (&[22, 3, 3, 0, 4, 99, 0, 0, 0], (ErrorKind::UpstreamTlsHandshake, "upstream_tls_malformed")),
    ] {
        let connector = &connector(&config, &certificates.files());
        on_networks(|handle| async move {
            let listener = TcpListener::simulated(&handle, address()).expect("a listener");
            handle.spawn(async move {
                let tcp = listener.accept().await.expect("a connection");
                tcp.write_with(|out| out.extend_from_slice(answer)).expect("written");
                while let Ok(Some(_)) = tcp.receive().await {}
            });
            assert_eq!(detail(connect(&handle, connector, "edge.test", OFFERED).await), expected);
        });
    }
}

#[test]
fn connections_are_shared_only_where_all_that_was_checked_is_the_same() {
    let certificates = Certificates::new();
    let files = certificates.files();
    let of = |tls: &str, files: &Files| material(&config("[\"h1\"]", tls), files);
    let base = of("ca_path = \"ca.pem\"", &files);
    assert!(base == of("ca_path = \"ca.pem\"", &certificates.files()));
    // The name is the endpoint's, and compared there.
    assert!(base == of("ca_path = \"ca.pem\"\nserver_name = \"other.test\"", &files));
    for other in [
        "ca_path = \"stranger.pem\"",
        "verify = false",
        "ca_path = \"ca.pem\"\nmin_version = \"1.3\"",
        "ca_path = \"ca.pem\"\ncert_path = \"edge.crt\"\nkey_path = \"edge.key\"",
    ] {
        assert!(base != of(other, &files), "{other}");
    }
    let renewed = Files::of(&[("ca.pem", certificates.stranger.as_bytes())]);
    assert!(base != of("ca_path = \"ca.pem\"", &renewed), "the file has changed");
}

#[test]
fn what_files_hold_is_checked_and_named() {
    let certificates = Certificates::new();
    let stranger = Certificates::new();
    let files = Files::of(&[
        ("ca.pem", certificates.authority.as_bytes()),
        ("edge.crt", certificates.certificate.as_bytes()),
        ("edge.key", certificates.key.as_bytes()),
        ("other.key", stranger.key.as_bytes()),
        ("", b"nothing of use"),
    ]);
    for (tls, said) in [
        ("ca_path = \"edge.key\"", "upstreams.u.tls.ca_path: edge.key holds no certificate in PEM"),
        ("", "upstreams.u.tls.ca_path: absent, and the system's store holds no authority in PEM"),
        (
            "ca_path = \"ca.pem\"\ncert_path = \"edge.crt\"\nkey_path = \"other.key\"",
            "upstreams.u.tls.key_path: the key in other.key is not that of the certificate in edge.crt",
        ),
    ] {
        let error = UpstreamTls::compile(&config("[\"h1\"]", tls), &files).expect_err(tls);
        assert!(error.starts_with(said), "{error}");
    }
}
