//! A browser over HTTP/3: a page with a hundred objects, each of which has to have come that way.

use std::sync::mpsc;

use blitz_tests::chromium::Chromium;
use blitz_tests::gateway::{LISTENER, one_upstream};
use blitz_tests::tls::Algorithm;
use blitz_tests::{PATIENCE, Pki, Setup, Upstream, matrix, require, wait_until};

/// Objects of the page.
const OBJECTS: usize = 100;

/// The page: scripts that count themselves, and a report of how each came, when all are there.
fn page() -> String {
    let objects: String =
        (0..OBJECTS).map(|n| format!("<script async src=\"/object/{n}\"></script>\n")).collect();
    let report = r#"
seen = 0;
addEventListener("load", () => {
    const entries = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
    const came = entries.map((it) => it.nextHopProtocol + " " + new URL(it.name).pathname);
    fetch("/report", { method: "POST", body: [seen + " ran", ...came].join("\n") });
});
"#;
    format!("<!doctype html><link rel=\"icon\" href=\"data:,\"><script>{report}</script>\n{objects}")
}

/// What makes it: everything but the report is the upstream's to tell.
fn site(told: mpsc::Sender<String>) -> Upstream {
    let told = std::sync::Mutex::new(told);
    Upstream::start(move |conn| {
        loop {
            let request = conn.request()?;
            let (kind, body) = match request.target() {
                "/" => ("text/html", page()),
                "/report" => {
                    let report = String::from_utf8_lossy(&request.body).into_owned();
                    let _heard = told.lock().ok()?.send(report);
                    ("text/plain", String::new())
                }
                _ => ("text/javascript", "seen++;".to_owned()),
            };
            let length = body.len();
            conn.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
            ))?;
        }
    })
}

matrix! {
    mp only:
    fn a_page_of_a_hundred_objects(cell) {
        require!("chromium");
        let (told, is_told) = mpsc::channel();
        let (pki, upstream) = (Pki::new(), site(told));
        let pair = pki.authority.issue(&["127.0.0.1"], Algorithm::Ecdsa);
        pki.write_pair("edge", &pair);
        let toml = one_upstream(&[upstream.address], "").replace(LISTENER, &pki.h3_listener(""));
        let gateway = Setup::new(cell).workers(2).config(&toml).start();
        let browser = Chromium::open(gateway.address, "/", &pair);
        let report = is_told.recv_timeout(6 * PATIENCE).unwrap_or_else(|_| panic!("no report: {}", browser.log()));
        let mut lines: Vec<_> = report.lines().collect();
        assert_eq!(lines.remove(0), format!("{OBJECTS} ran"), "{report}");
        lines.sort_unstable();
        let mut expected: Vec<_> = (0..OBJECTS).map(|n| format!("h3 /object/{n}")).collect();
        expected.push("h3 /".to_owned());
        expected.sort_unstable();
        assert_eq!(lines, expected);
        wait_until("the gateway has seen page, objects and report, and nothing else", PATIENCE, || {
            gateway.metric("blitz_requests_total{protocol=\"h3\",status=\"2xx\"}") == OBJECTS as u64 + 2
        });
        drop(browser);
        gateway.stop();
    }
}
