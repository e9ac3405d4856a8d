//! Limits on requests: what a client sees, and what is counted.

use super::*;
use crate::exchange::ErrorKind;
use crate::proxy::limiter;

const HELLO: &str = "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n";

fn limit(name: &str, more: &str) -> String {
    format!("[[limits]]\nname = \"{name}\"\n{more}\n")
}

/// Sends a request and hears its answer, the head with the text.
async fn ask(client: &mut Peer, request: &str) -> String {
    client.say(request);
    let head = client.hear("\r\n\r\n").await;
    let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    let length: usize = length.and_then(|length| length.parse().ok()).expect("a length");
    while client.text.len() < length {
        match client.stream.receive().await {
            Ok(Some(chunk)) => client.text.push_str(std::str::from_utf8(&chunk).unwrap()),
            other => panic!("the body is cut: {other:?}"),
        }
    }
    head + &client.text.drain(..length).collect::<String>()
}

fn counts(bench: &Bench, name: &str) -> [u64; 3] {
    bench.segment.sum_limit(limiter::id(name))
}

#[test]
fn over_the_limit_a_request_is_told_when_to_come_again_and_the_connection_is_kept() {
    let limits = limit("per_source", "requests_per_second = 2\nburst_seconds = 2");
    run(Profile::CALM, &limits, |bench| async move {
        let mut client = bench.connect().await;
        for n in 0..4 {
            assert!(ask(&mut client, HELLO).await.starts_with("HTTP/1.1 200"), "request {n}");
        }
        let answer = ask(&mut client, HELLO).await;
        assert!(answer.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{answer}");
        for line in [
            "Retry-After: 1\r\n",
            "RateLimit: \"per_source\";r=0;t=1\r\n",
            "RateLimit-Policy: \"per_source\";q=4;w=2\r\n",
            "Proxy-Status: blitz; error=http_request_denied; details=\"rate_limited\"\r\n",
            "\r\n\r\n429 Too Many Requests: rate_limited\n",
        ] {
            assert!(answer.contains(line), "{line:?} in {answer}");
        }
        // A refused body that is small is read and thrown away, and the connection goes on.
        let post = "POST /echo/a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nabcde";
        assert!(ask(&mut client, post).await.starts_with("HTTP/1.1 429"));
        // The text that the length announces is left out for HEAD.
        client.say("HEAD /hello HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(client.hear("\r\n\r\n").await.starts_with("HTTP/1.1 429"));
        bench.handle.sleep(ms(500)).await;
        assert!(ask(&mut client, HELLO).await.starts_with("HTTP/1.1 200"));
        assert!(ask(&mut client, HELLO).await.starts_with("HTTP/1.1 429"));
        assert_eq!(counts(&bench, "per_source"), [5, 4, 0]);
        assert_eq!(bench.segment.sum_errors(ErrorKind::RateLimited as u8), 4);
    });
}

#[test]
fn a_refused_body_that_is_long_or_waits_for_100_ends_the_connection() {
    let limits = limit("l", "requests_per_second = 1");
    for request in [
        "POST /echo/a HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\n",
        "POST /echo/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /echo/a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    ] {
        run(Profile::CALM, &limits, |bench| async move {
            let mut client = bench.connect().await;
            ask(&mut client, HELLO).await;
            let answer = ask(&mut client, request).await;
            assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
            assert!(answer.contains("Connection: close\r\n"), "{answer}");
        });
    }
}

#[test]
fn each_path_has_its_own_bucket_where_the_limit_says_so() {
    let limits = limit("l", "by = \"source_prefix_and_path\"\nrequests_per_second = 1");
    run(Profile::CALM, &limits, |bench| async move {
        let mut client = bench.connect().await;
        let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(ask(&mut client, &get("/echo/a")).await.starts_with("HTTP/1.1 200"));
        // The same path, spelled otherwise or with a query.
        for target in ["/echo/a", "/echo/a?b=1", "/echo/%61"] {
            assert!(ask(&mut client, &get(target)).await.starts_with("HTTP/1.1 429"), "{target}");
        }
        assert!(ask(&mut client, &get("/echo/b")).await.starts_with("HTTP/1.1 200"));
        assert_eq!(counts(&bench, "l"), [2, 3, 0]);
    });
}

#[test]
fn a_shadow_refuses_nobody_and_the_first_real_limit_decides() {
    let limits = limit("seen", "requests_per_second = 1\nshadow = true")
        + &limit("elsewhere", "listeners = [\"other\"]\nrequests_per_second = 1")
        + &limit("all", "by = \"service\"\nrequests_per_second = 3")
        + "[[listeners]]\nname = \"other\"\naddress = \"10.0.0.9:81\"\n";
    run(Profile::CALM, &limits, |bench| async move {
        let (mut a, mut b) = (bench.connect().await, bench.connect().await);
        for is_first in [true, false, true] {
            let client = if is_first { &mut a } else { &mut b };
            assert!(ask(client, HELLO).await.starts_with("HTTP/1.1 200"));
        }
        let answer = ask(&mut b, HELLO).await;
        assert!(answer.contains("RateLimit: \"all\";r=0;t=1\r\n"), "{answer}");
        assert_eq!(counts(&bench, "seen"), [1, 0, 3]);
        assert_eq!(counts(&bench, "elsewhere"), [0, 0, 0]);
        assert_eq!(counts(&bench, "all"), [3, 1, 0]);
    });
}

#[test]
fn a_configuration_with_the_same_limit_keeps_its_buckets_and_counts() {
    let limits = limit("kept", "requests_per_second = 2");
    run(Profile::CALM, &limits, |bench| async move {
        let mut client = bench.connect().await;
        for expected in ["200", "200", "429"] {
            assert_eq!(ask(&mut client, HELLO).await.split(' ').nth(1), Some(expected));
        }
        let swap = |limits: &str, generation| {
            let text = format!(
                "[[listeners]]\nname = \"edge\"\naddress = \"{GATEWAY}\"\nbuiltin_answers = true\n{limits}"
            );
            let config = blitz_config::load(&text, Format::Toml, "test", &Overrides::default()).unwrap();
            bench.proxy.swap(
                Snapshot::compile(&config, &Default::default(), &Default::default(), generation).unwrap(),
            );
        };
        swap(&(limit("new", "requests_per_second = 9") + &limit("kept", "requests_per_second = 2")), 2);
        assert!(ask(&mut client, HELLO).await.starts_with("HTTP/1.1 429"));
        assert_eq!((counts(&bench, "kept"), counts(&bench, "new")), ([2, 2, 0], [1, 0, 0]));
        swap("", 3);
        assert!(ask(&mut client, HELLO).await.starts_with("HTTP/1.1 200"));
        assert_eq!(counts(&bench, "kept"), [0, 0, 0]);
    });
}
