//! Sources that are reported for the kernel's blocklist: when, and when not.

use super::*;
use blitz_ctl_protocol::message::Reason;

use crate::metrics::names::ReportOutcome;
use crate::process::reports::REPORTS_WAITING_MAX;

const SMUGGLE: &str =
    "POST /echo/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";

fn rules(more: &str) -> String {
    format!(
        "[xdp]\ninterfaces = [\"eth0\"]\n[xdp.blocklist]\nframing_violations_per_minute = 3\n\
         limit_refusals_per_minute = 5\nttl_ms = 60000\n{more}"
    )
}

/// One request on a connection of its own; the status line.
async fn ask(bench: &Bench, request: &str) -> String {
    let mut client = bench.connect().await;
    client.say(request);
    client.hear("\r\n").await
}

fn reports(bench: &Bench) -> Vec<(Reason, String)> {
    let report = |message| match message {
        FromWorker::Report { report, .. } => {
            assert_eq!(report.local, GATEWAY);
            (report.reason, report.note)
        }
        other => panic!("{other:?}"),
    };
    bench.outgoing.try_iter().map(report).collect()
}

#[test]
fn the_third_smuggling_attempt_is_reported_and_then_one_in_half_of_the_time_to_live() {
    run(Profile::CALM, &rules(""), |bench| async move {
        for _ in 0..2 {
            assert!(ask(&bench, SMUGGLE).await.starts_with("HTTP/1.1 400"));
        }
        // What is refused for its meaning is no broken framing.
        for path in ["/a/../b", "/%zz", "/nowhere"] {
            ask(&bench, &format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        }
        assert_eq!(reports(&bench), []);
        // A broken head, a broken body after a good head: all of them count.
        ask(&bench, "GET /hello HTTP/1.1\r\nHost : h\r\n\r\n").await;
        assert_eq!(reports(&bench), [(Reason::Framing, "space_before_colon".to_owned())]);
        for _ in 0..50 {
            ask(&bench, SMUGGLE).await;
        }
        assert_eq!(reports(&bench), [], "one report is enough");
        bench.handle.sleep(Duration::from_secs(31)).await;
        for _ in 0..3 {
            let broken = "POST /echo/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
            ask(&bench, broken).await;
        }
        assert_eq!(reports(&bench), [(Reason::Framing, "bad_chunk_size".to_owned())]);
    });
}

#[test]
fn who_goes_on_over_its_limit_is_reported_but_not_for_the_limit_of_all() {
    let limits = "[[limits]]\nname = \"own\"\nrequests_per_second = 1\nlisteners = [\"edge\"]\n\
                  [[limits]]\nname = \"seen\"\nrequests_per_second = 1\nshadow = true\n";
    run(Profile::CALM, &rules(limits), |bench| async move {
        for n in 0..6 {
            assert_eq!(reports(&bench), [], "after {n} requests");
            ask(&bench, "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n").await;
        }
        assert_eq!(reports(&bench), [(Reason::Limit, "limit:own".to_owned())]);
    });
    let limits = "[[limits]]\nname = \"all\"\nby = \"service\"\nrequests_per_second = 1\n";
    run(Profile::CALM, &rules(limits), |bench| async move {
        for _ in 0..30 {
            ask(&bench, "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n").await;
        }
        assert_eq!(reports(&bench), []);
    });
}

#[test]
fn nobody_is_reported_without_an_interface_and_never_a_trusted_proxy() {
    let off = "[xdp.blocklist]\nframing_violations_per_minute = 1\n";
    let never = "[xdp]\ninterfaces = [\"eth0\"]\n[xdp.blocklist]\nframing_violations_per_minute = 0\n";
    let trusted = "[xdp]\ninterfaces = [\"eth0\"]\n[xdp.blocklist]\nframing_violations_per_minute = 1\n";
    for (rules, trusted) in [(off, ""), (never, ""), (trusted, "trusted_proxies = [\"0.0.0.0/0\"]\n")] {
        run_with(Profile::CALM, trusted, rules, |bench| async move {
            for _ in 0..20 {
                ask(&bench, SMUGGLE).await;
            }
            assert_eq!(reports(&bench), []);
        });
    }
}

#[test]
fn what_finds_no_room_is_counted_and_tried_again() {
    let rules =
        "[xdp]\ninterfaces = [\"eth0\"]\n[xdp.blocklist]\nframing_violations_per_minute = 1\nttl_ms = 1000\n";
    run(Profile::CALM, rules, |bench| async move {
        for _ in 0..REPORTS_WAITING_MAX {
            ask(&bench, SMUGGLE).await;
            bench.handle.sleep(ms(600)).await;
        }
        ask(&bench, SMUGGLE).await;
        assert_eq!(bench.value(Metric::block_report(Reason::Framing, ReportOutcome::Dropped)), 1);
        assert_eq!(reports(&bench).len(), REPORTS_WAITING_MAX);
        ask(&bench, SMUGGLE).await;
        assert_eq!(reports(&bench).len(), 1, "no report was forgotten for the lack of room");
    });
}
