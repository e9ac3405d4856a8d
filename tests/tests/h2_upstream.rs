//! Requests to endpoints over HTTP/2: one connection carries many, and none is lost when an endpoint goes away.

use std::sync::Barrier;

use blitz_tests::h2endpoint::{Event, H2Conn};
use blitz_tests::h2raw::{code, data, flag, goaway, reset};
use blitz_tests::{
    Client, Gateway, H2Endpoint, PATIENCE, Response, Setup, Signal, Upstream, matrix, wait_until,
};

/// What an endpoint owes is waited for no longer.
const SHORT: &str = "[timeouts]\nupstream_connect_ms = 500\nupstream_first_byte_ms = 500\n";

fn get(client: &mut Client, path: &str) -> Response {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    client.response()
}

fn post(client: &mut Client, body: &[u8]) -> Response {
    client.send(format!("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.send(body);
    client.response()
}

/// Makes `count` requests at the same time, each on a connection of its own; the statuses.
fn at_once(gateway: &Gateway, count: usize) -> Vec<u16> {
    let barrier = Barrier::new(count);
    std::thread::scope(|scope| {
        let ask = || {
            let mut client = gateway.connect();
            barrier.wait();
            get(&mut client, "/x").status
        };
        let asking: Vec<_> = (0..count).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|asking| asking.join().expect("a client ends")).collect()
    })
}

fn metric(gateway: &Gateway, name: &str) -> f64 {
    let text = gateway.admin("/metrics").text();
    let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
}

/// Answers requests once `count` of them wait.
fn answering_in_bulk(count: usize) -> impl Fn(&mut H2Conn) -> Option<()> {
    move |conn| {
        let mut waiting = Vec::new();
        loop {
            waiting.push(conn.request()?.stream);
            if waiting.len() == count {
                for stream in waiting.drain(..) {
                    conn.answer(stream, 200, "bulk")?;
                }
            }
        }
    }
}

/// The first connection does this to its first request; those after it answer everything.
fn first_then_answering(
    first: impl Fn(&mut H2Conn, u32) -> Option<()> + Send + Sync + 'static,
) -> H2Endpoint {
    H2Endpoint::start(move |conn| {
        loop {
            let request = conn.request()?;
            if conn.number == 0 {
                first(conn, request.stream)?;
            } else {
                let text = format!("{} bytes", request.body.len());
                conn.answer(request.stream, 200, text)?;
            }
        }
    })
}

matrix! {
    fn many_requests_share_a_connection(cell) {
        let endpoint = H2Endpoint::start(answering_in_bulk(20));
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], "").start();
        assert_eq!(at_once(&gateway, 20), [200; 20]);
        assert_eq!(endpoint.accepted(), 1, "those who came meanwhile have waited for the connection");
        assert_eq!(metric(&gateway, "blitz_upstream_connections_active"), 1.0);
        assert_eq!(metric(&gateway, "blitz_upstream_connections_idle"), 1.0);
        assert_eq!(gateway.in_flight(), Some(0));
    }

    /// An endpoint that takes two streams at a time gets the connections that it takes for more.
    fn more_streams_than_one_connection_takes_use_another(cell) {
        // None of three connections answers before each has two requests.
        let full = Barrier::new(3);
        let endpoint = H2Endpoint::start_with(&[(3, 2)], move |conn| {
            let (first, second) = (conn.request()?.stream, conn.request()?.stream);
            full.wait();
            conn.answer(first, 200, "x")?;
            conn.answer(second, 200, "x")?;
            conn.until_closed();
            None
        });
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], SHORT).start();
        assert_eq!(at_once(&gateway, 6), [200; 6]);
        assert_eq!(endpoint.accepted(), 3);
    }

    /// GOAWAY with a last stream below the request's: it was not acted on, so any method goes again, with its body.
    fn a_request_above_the_last_stream_goes_again(cell) {
        let endpoint = first_then_answering(|conn, stream| {
            conn.send(goaway(stream - 1, code::NO_ERROR))?;
            conn.until_closed();
            None
        });
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], "").start();
        let answer = post(&mut gateway.connect(), &[b'x'; 60_000]);
        assert_eq!((answer.status, answer.text().as_str()), (200, "60000 bytes"));
        assert_eq!(metric(&gateway, "blitz_upstream_retries_total"), 1.0);
        assert_eq!(metric(&gateway, "blitz_upstream_ejections_total"), 0.0);
    }

    /// GOAWAY that counts the request: it is answered, and the next one goes elsewhere.
    fn a_request_below_the_last_stream_is_answered(cell) {
        let endpoint = first_then_answering(|conn, stream| {
            conn.send(goaway(stream, code::NO_ERROR))?;
            conn.answer(stream, 200, "last")?;
            conn.until_closed();
            None
        });
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], "").start();
        let mut client = gateway.connect();
        assert_eq!(get(&mut client, "/x").text(), "last");
        assert_eq!(get(&mut client, "/x").text(), "0 bytes");
        assert_eq!(endpoint.accepted(), 2);
        assert_eq!(metric(&gateway, "blitz_upstream_retries_total"), 0.0);
        wait_until("the first connection has ended", PATIENCE, || {
            metric(&gateway, "blitz_upstream_connections_active") == 1.0
        });
    }

    fn a_refused_stream_goes_again(cell) {
        let endpoint = H2Endpoint::start(|conn| {
            let refused = conn.request()?.stream;
            conn.send(reset(refused, code::REFUSED_STREAM))?;
            loop {
                let request = conn.request()?;
                conn.answer(request.stream, 200, format!("{} bytes", request.body.len()))?;
            }
        });
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], "").start();
        assert_eq!(post(&mut gateway.connect(), b"body").text(), "4 bytes");
        assert_eq!(endpoint.accepted(), 1, "the connection is as good as before");
        assert_eq!(metric(&gateway, "blitz_upstream_retries_total"), 1.0);
    }

    /// An endpoint that refuses for ever is asked three times, and never ejected for it.
    fn who_refuses_for_ever_is_not_asked_for_ever(cell) {
        let endpoint = H2Endpoint::start(|conn| {
            loop {
                let stream = conn.request()?.stream;
                conn.send(reset(stream, code::REFUSED_STREAM))?;
            }
        });
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], "").start();
        let answer = get(&mut gateway.connect(), "/x");
        assert_eq!(answer.status, 502);
        assert!(answer.text().contains("h2_refused_stream"), "{answer:?}");
        assert_eq!(endpoint.begun(), 3);
        assert_eq!(metric(&gateway, "blitz_upstream_ejections_total"), 0.0);
    }

    /// A body beyond what is kept cannot be sent again.
    fn a_long_body_is_not_sent_again(cell) {
        let endpoint = first_then_answering(|conn, stream| {
            conn.send(reset(stream, code::REFUSED_STREAM))?;
            conn.until_closed();
            None
        });
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], "").start();
        assert_eq!(post(&mut gateway.connect(), &vec![b'x'; 200_000]).status, 502);
        assert_eq!(endpoint.begun(), 1);
    }

    /// Any other reset may follow an act: once is all.
    fn a_reset_stream_is_502_and_its_neighbours_go_on(cell) {
        let endpoint = H2Endpoint::start(|conn| {
            let (first, second) = (conn.request()?.stream, conn.request()?.stream);
            conn.send(reset(first.min(second), code::INTERNAL_ERROR))?;
            conn.answer(first.max(second), 200, "other")
        });
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], "").start();
        let mut statuses = at_once(&gateway, 2);
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 502]);
        assert_eq!(endpoint.begun(), 2);
    }

    fn an_answer_that_is_cut_looks_cut(cell) {
        let endpoint = H2Endpoint::start(|conn| {
            let stream = conn.request()?.stream;
            conn.answer_head(stream, 0, 200, &[])?;
            conn.answer_data(stream, 0, b"half")?;
            conn.send(reset(stream, code::INTERNAL_ERROR))?;
            conn.until_closed();
            None
        });
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], "").start();
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let rest = client.rest();
        let text = String::from_utf8_lossy(&rest);
        assert!(text.contains("half"), "{text}");
        assert!(!text.ends_with("0\r\n\r\n"), "no last chunk: {text}");
    }

    /// The body was not wanted: an endpoint may answer and then ask to stop (RFC 9113 section 8.1).
    fn an_early_answer_ends_the_upload(cell) {
        let endpoint = H2Endpoint::start(|conn| {
            let stream = conn.head()?.stream;
            conn.answer(stream, 413, "enough")?;
            conn.send(reset(stream, code::NO_ERROR))?;
            conn.until_closed();
            None
        });
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], "").start();
        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin");
        let answer = client.response();
        assert_eq!((answer.status, answer.text().as_str()), (413, "enough"));
    }

    fn a_client_that_leaves_cancels_its_stream_only(cell) {
        let endpoint = H2Endpoint::start(|conn| {
            loop {
                if let Event::Head(stream) = conn.event()?
                    && conn.stream(stream).path() == "/y"
                {
                    conn.answer(stream, 200, "still here")?;
                }
            }
        });
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], "").start();
        let mut client = gateway.connect();
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_until("the request is there", PATIENCE, || endpoint.begun() == 1);
        client.reset();
        wait_until("the stream is reset", PATIENCE, || endpoint.resets() == [(0, 1, code::CANCEL)]);
        assert_eq!(get(&mut gateway.connect(), "/y").text(), "still here");
        assert_eq!(endpoint.accepted(), 1);
    }

    /// Nobody is there any more, and the kernel has not noticed: others shall not wait for that.
    fn a_silent_connection_gets_no_more_requests(cell) {
        let endpoint = H2Endpoint::start(|conn| {
            loop {
                let stream = conn.request()?.stream;
                if conn.number > 0 || stream == 1 {
                    conn.answer(stream, 200, format!("from {}", conn.number))?;
                }
            }
        });
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], SHORT).start();
        let mut client = gateway.connect();
        assert_eq!(get(&mut client, "/x").text(), "from 0");
        assert_eq!(get(&mut client, "/x").status, 504);
        assert_eq!(get(&mut client, "/x").text(), "from 1");
        wait_until("the silent one was closed", PATIENCE, || {
            metric(&gateway, "blitz_upstream_connections_active") == 1.0
        });
    }

    fn what_does_not_speak_it_is_502_at_once(cell) {
        let upstream = Upstream::sending(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        let gateway = Setup::new(cell).h2_to_h2(&[upstream.address], "").start();
        let statuses = at_once(&gateway, 3);
        assert_eq!(statuses, [502; 3]);
    }

    /// It accepts and says nothing: who waits for the connection waits as long as for any.
    fn an_endpoint_without_a_preface_is_504_in_time(cell) {
        let upstream = Upstream::never_answering();
        let gateway = Setup::new(cell).h2_to_h2(&[upstream.address], SHORT).start();
        assert_eq!(at_once(&gateway, 3), [504; 3]);
        assert_eq!(gateway.in_flight(), Some(0));
    }

    fn idle_connections_end(cell) {
        let endpoint = H2Endpoint::answering("x");
        let more = "[timeouts]\nupstream_idle_ms = 300\n";
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], more).start();
        assert_eq!(get(&mut gateway.connect(), "/x").status, 200);
        wait_until("it is closed", PATIENCE, || metric(&gateway, "blitz_upstream_connections_active") == 0.0);
        assert_eq!(metric(&gateway, "blitz_upstream_connections_idle"), 0.0);
        assert_eq!(metric(&gateway, "blitz_upstream_pool_closes_total{reason=\"idle\"}"), 1.0);
        assert_eq!(get(&mut gateway.connect(), "/x").status, 200);
    }

    /// What is spoken is a matter of the configuration: nothing that spoke otherwise is used again.
    fn a_reload_changes_what_is_spoken(cell) {
        let endpoint = H2Endpoint::answering("h2");
        let gateway = Setup::new(cell).config_for(&[endpoint.address], SHORT).start();
        // The endpoint takes the request for a broken preface.
        assert_ne!(get(&mut gateway.connect(), "/x").status, 200);
        let toml = blitz_tests::gateway::one_upstream(&[endpoint.address], SHORT);
        gateway.write_config(&toml.replace("[upstreams.pool]", "[upstreams.pool]\nprotocol = \"h2\""));
        gateway.signal(Signal::Hup);
        wait_until("it speaks HTTP/2", PATIENCE, || get(&mut gateway.connect(), "/x").status == 200);
    }

    /// A slow client on a stream does not stop the others on its connection.
    fn a_slow_reader_stops_nobody_else(cell) {
        let endpoint = H2Endpoint::start(|conn| {
            let mut slow = 0;
            loop {
                let request = conn.request()?;
                if request.path() == "/slow" {
                    slow = request.stream;
                    conn.answer_head(slow, 0, 200, &[])?;
                    // As much as its window has: the gateway takes no more than its client.
                    for _ in 0..8 {
                        conn.send(data(slow, 0, &[b'x'; 16_000]))?;
                    }
                } else {
                    conn.answer(request.stream, 200, "quick")?;
                    conn.send(data(slow, flag::END_STREAM, b""))?;
                }
            }
        });
        let gateway = Setup::new(cell).h2_to_h2(&[endpoint.address], "").start();
        let mut slow = gateway.connect();
        slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_until("it has begun", PATIENCE, || endpoint.begun() == 1);
        assert_eq!(get(&mut gateway.connect(), "/quick").text(), "quick");
        assert_eq!(slow.response().body.len(), 8 * 16_000);
    }
}
