//! The admin API says what is the case.

use std::collections::HashSet;

use blitz_tests::{PATIENCE, Setup, Upstream, closed_port, matrix, wait_until};

matrix! {
    fn health_and_readiness(cell) {
        let gateway = Setup::new(cell).backend(closed_port()).start();
        assert_eq!(gateway.admin("/healthz").status, 200);
        assert_eq!(gateway.admin("/readyz").status, 200);
        assert_eq!(gateway.admin("/nowhere").status, 404);
    }

    /// The text format: each sample belongs to a family with a type, each family is announced once, and
    /// no sample is given twice.
    fn metrics_are_well_formed_and_count(cell) {
        let upstream = Upstream::answering("ok");
        let gateway = Setup::new(cell).workers(2).backend(upstream.address).start();
        for _ in 0..40 {
            assert_eq!(gateway.get("/").status, 200);
        }
        let counted = |text: &str| {
            let samples = text.lines().filter(|line| line.starts_with("blitz_") && line.contains("requests_total"));
            samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
        };
        wait_until("40 requests are counted", PATIENCE, || counted(&gateway.admin("/metrics").text()) >= 40.0);
        let answer = gateway.admin("/metrics");
        assert!(answer.field("content-type").is_some_and(|value| value.starts_with("text/plain")), "{}", answer.head);
        let text = answer.text();
        let (mut types, mut samples) = (HashSet::new(), HashSet::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().unwrap_or_default().to_owned();
                assert!(types.insert(name), "announced twice: {line}");
            } else if !line.starts_with('#') && !line.is_empty() {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
                assert!(value.parse::<f64>().is_ok(), "no number: {line}");
                assert!(samples.insert(series.to_owned()), "given twice: {line}");
                let name = series.split('{').next().unwrap_or_default();
                let family = ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending));
                let is_typed = types.contains(name) || family.is_some_and(|family| types.contains(family));
                assert!(is_typed, "no TYPE before {line}");
            }
        }
    }

    /// Endpoints are listed with what is in flight to each, while it is.
    fn upstreams_show_what_is_in_flight(cell) {
        let upstream = Upstream::never_answering();
        let gateway = Setup::new(cell).workers(2).backend(upstream.address).start();
        assert!(gateway.admin("/upstreams").text().contains(&upstream.address.to_string()));
        assert_eq!(gateway.in_flight(), Some(0));
        let mut clients: Vec<_> = (0..3).map(|_| gateway.connect()).collect();
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        wait_until("3 are in flight", PATIENCE, || gateway.in_flight() == Some(3));
        drop(clients);
        wait_until("none is in flight", PATIENCE, || gateway.in_flight() == Some(0));
    }

    /// It is JSON, whoever is connected.
    fn connections_are_listed(cell) {
        let upstream = Upstream::answering("ok");
        let gateway = Setup::new(cell).backend(upstream.address).start();
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status, 200);
        let answer = gateway.admin("/connections");
        assert_eq!(answer.status, 200);
        serde_json::from_slice::<serde_json::Value>(&answer.body).expect("/connections is JSON");
    }
}
