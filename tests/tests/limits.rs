//! Limits on requests hold over all workers, for each source alone, and survive reloads and dead workers.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blitz_tests::gateway::LISTENER;
use blitz_tests::process;
use blitz_tests::{Client, Gateway, PATIENCE, Setup, Signal, matrix, wait_until};

const WORKERS: usize = 2;
const REQUEST: &str = "GET /hello HTTP/1.1\r\nHost: test\r\n\r\n";
/// The other client.
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn config(limits: &str) -> String {
    format!("{LISTENER}{limits}")
}

/// Asks for `/hello`; the status.
fn ask(client: &mut Client) -> u16 {
    client.send(REQUEST);
    client.response().status
}

/// How many of `count` requests are granted, each over a connection of its own, so that all workers serve some.
fn granted(gateway: &Gateway, count: usize) -> usize {
    let statuses = (0..count).map(|_| gateway.get("/hello").status);
    let known = statuses.inspect(|status| assert!(matches!(status, 200 | 429), "{status}"));
    known.filter(|status| *status == 200).count()
}

/// The value of a counter of the limit `name`.
fn counted(gateway: &Gateway, name: &str, outcome: &str) -> u64 {
    let row = format!("blitz_limit_requests_total{{limit=\"{name}\",outcome=\"{outcome}\"}} ");
    let text = gateway.admin("/metrics").text();
    let value = text.lines().find_map(|line| line.strip_prefix(&row));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{row} in\n{text}"))
}

matrix! {
    /// Several clients of one source on connections to all workers: together they get the rate, and another
    /// source loses nothing meanwhile.
    fn the_rate_holds_over_all_workers_and_for_each_source_alone(cell) {
        const RATE: u64 = 400;
        const SECONDS: u64 = 4;
        let limits = format!("[[limits]]\nname = \"per_source\"\nrequests_per_second = {RATE}\n");
        let gateway = Setup::new(cell).workers(WORKERS).config(&config(&limits)).start();
        let (good, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        let is_over = AtomicBool::new(false);
        let began = Instant::now();
        let took = std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    let mut client = gateway.connect();
                    while !is_over.load(Ordering::Relaxed) {
                        let count = match ask(&mut client) {
                            200 => &good,
                            429 => &refused,
                            status => panic!("{status}"),
                        };
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let mut other = Client::connect_from(OTHER, gateway.address);
            let deadline = Duration::from_secs(SECONDS);
            while began.elapsed() < deadline {
                assert_eq!(ask(&mut other), 200, "another source pays for the first");
                std::thread::sleep(Duration::from_millis(10));
            }
            is_over.store(true, Ordering::Relaxed);
            began.elapsed()
        });
        let (good, refused) = (good.into_inner(), refused.into_inner());
        // The burst is what one second gives.
        let expected = RATE as f64 * (1.0 + took.as_secs_f64());
        println!("{cell}: {good} granted, {expected:.0} expected, {refused} refused");
        assert!((good as f64 - expected).abs() <= expected * 0.02, "{good} granted, {expected:.0} expected");
        assert!(refused > good / 10, "only {refused} were refused: the limit was hardly reached");
        assert_eq!(counted(&gateway, "per_source", "refused"), refused);
        let text = gateway.admin("/metrics").text();
        for worker in 0..WORKERS {
            let idle = format!("blitz_worker_connections{{worker=\"{worker}\"}} 0\n");
            assert!(!text.contains(&idle), "worker {worker} served nobody, so nothing was shown");
        }
        gateway.stop();
    }

    /// A reload that leaves a limit as it is leaves its buckets, too.
    fn a_reload_keeps_the_buckets_of_unchanged_limits(cell) {
        let kept = "[[limits]]\nname = \"kept\"\nrequests_per_second = 1\nburst_seconds = 40\n";
        let gateway = Setup::new(cell).workers(WORKERS).config(&config(kept)).start();
        let began = Instant::now();
        assert!(granted(&gateway, 60) >= 40);
        let more = format!("[[limits]]\nname = \"new\"\nrequests_per_second = 1000\n{kept}");
        for n in 0..5 {
            gateway.write_config(&config(if n % 2 == 0 { &more } else { kept }));
            let before = gateway.log().matches("reloaded: generation").count();
            gateway.signal(Signal::Hup);
            let done = || gateway.log().matches("reloaded: generation").count() > before;
            wait_until("the new file takes effect", PATIENCE, done);
            // All that may come on top of the 40 is what time gives.
            granted(&gateway, 5);
        }
        let all = counted(&gateway, "kept", "granted");
        assert!(all <= 41 + began.elapsed().as_secs(), "{all} granted");
        // A limit of another name begins with a full bucket.
        let other = "[[limits]]\nname = \"other\"\nrequests_per_second = 1\nburst_seconds = 40\n";
        gateway.write_config(&config(other));
        gateway.signal(Signal::Hup);
        wait_until("the other limit holds", PATIENCE, || gateway.get("/hello").status == 200 && {
            gateway.admin("/metrics").text().contains("limit=\"other\"")
        });
        assert!(granted(&gateway, 30) >= 29);
        gateway.stop();
    }

    /// By path, by service, in shadow: what a client sees of each.
    fn paths_services_and_shadows(cell) {
        let limits = "[[limits]]\nname = \"path\"\nby = \"source_prefix_and_path\"\nrequests_per_second = 1\n\
                      burst_seconds = 3\n\
                      [[limits]]\nname = \"all\"\nby = \"service\"\nrequests_per_second = 1\nburst_seconds = 20\n\
                      [[limits]]\nname = \"seen\"\nrequests_per_second = 1\nshadow = true\n";
        let gateway = Setup::new(cell).workers(WORKERS).config(&config(limits)).start();
        let mut client = gateway.connect();
        let mut get = |path: &str| {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
            client.response()
        };
        for _ in 0..3 {
            assert_eq!(get("/echo/a").status, 200);
        }
        let answer = get("/echo/a?again");
        assert_eq!(answer.status, 429);
        assert_eq!(answer.field("retry-after"), Some("1"));
        assert_eq!(answer.field("ratelimit"), Some("\"path\";r=0;t=1"));
        assert_eq!(answer.field("ratelimit-policy"), Some("\"path\";q=3;w=3"));
        assert_eq!(get("/echo/b").status, 200, "the connection is kept, and another path has its own bucket");
        // The service has 16 left for everybody together.
        let mut other = Client::connect_from(OTHER, gateway.address);
        let mut good = 0;
        for n in 0..30 {
            other.send(format!("GET /echo/{n} HTTP/1.1\r\nHost: test\r\n\r\n"));
            let answer = other.response();
            good += usize::from(answer.status == 200);
            if answer.status == 429 {
                assert_eq!(answer.field("ratelimit-policy"), Some("\"all\";q=20;w=20"));
            }
        }
        assert!((16..=19).contains(&good), "{good}");
        assert!(counted(&gateway, "seen", "shadow") > 0);
        assert_eq!(counted(&gateway, "seen", "refused"), 0);
        gateway.stop();
    }
}

mod killed {
    use super::*;

    matrix! { mp only:
        /// A worker that is killed takes no bucket with it, and its successor goes on counting.
        fn a_dead_worker_leaves_its_buckets(cell) {
            let limits = "[[limits]]\nname = \"kept\"\nrequests_per_second = 1\nburst_seconds = 40\n";
            let gateway = Setup::new(cell).workers(WORKERS).config(&config(limits)).start();
            wait_until("all workers run", PATIENCE, || gateway.workers().len() == WORKERS);
            let began = Instant::now();
            granted(&gateway, 60);
            for n in 0..4 {
                let workers = gateway.workers();
                let victim = workers[n % workers.len()];
                assert!(process::send(victim, Signal::Kill));
                wait_until("the worker is replaced", PATIENCE, || {
                    let workers = gateway.workers();
                    workers.len() == WORKERS
                        && !workers.contains(&victim)
                        && gateway.admin("/readyz").status == 200
                });
                granted(&gateway, 5);
            }
            let all = counted(&gateway, "kept", "granted");
            assert!((40..=41 + began.elapsed().as_secs()).contains(&all), "{all} granted");
            gateway.stop();
        }
    }
}
