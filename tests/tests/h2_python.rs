//! The h2 library of Python as the client, in front of endpoints of either protocol.

use blitz_tests::pair::{Endpoint, Http, Length, Pair, Served};
use blitz_tests::{Cell, PATIENCE, matrix, python, require_python, wait_until};

/// An endpoint that does what the path says.
fn endpoint(pair: Pair) -> Endpoint {
    pair.endpoint(|served| match served.path().as_str() {
        "/head" => match served {
            Served::H1 { .. } => served.head(200, &[], Length::Known(1234)),
            Served::H2 { conn, stream } => conn.answer_head(*stream, 1, 200, &[("content-length", "1234")]),
        },
        "/trailers" => {
            let (_, trailers) = served.body()?;
            served.head(200, &[], Length::Unknown)?;
            served.data(trailers.as_bytes())?;
            served.end(&[("x-back", "2")])
        }
        "/continue" => {
            served.interim(100, &[])?;
            let (body, _) = served.body()?;
            served.head(200, &[], Length::Known(body.len()))?;
            served.data(&body)?;
            served.end(&[])
        }
        "/hints" => {
            served.interim(103, &[("link", "</a.css>")])?;
            served.head(200, &[], Length::Known(2))?;
            served.data(b"ok")?;
            served.end(&[])
        }
        "/early" => {
            served.head(403, &[], Length::Known(2))?;
            served.data(b"no")?;
            served.end(&[])?;
            served.until_given_up();
            Some(())
        }
        "/never" => {
            served.until_given_up();
            Some(())
        }
        "/begins" => {
            served.head(200, &[], Length::Unknown)?;
            served.data(b"the beginning")?;
            served.until_given_up();
            Some(())
        }
        _ => {
            let (body, _) = served.body()?;
            let text = [served.method().as_bytes(), b" ", &body].concat();
            served.head(200, &[], Length::Known(text.len()))?;
            served.data(&text)?;
            served.end(&[])
        }
    })
}

fn cases(cell: Cell, names: &[&str]) {
    require_python!("h2");
    for up in [Http::H1, Http::H2] {
        let pair = Pair::new(cell, Http::H2, up);
        let endpoint = endpoint(pair);
        let gateway = pair.gateway(endpoint.address(), "");
        for name in names {
            python::run("h2_client.py", &["h2"], &[&gateway.address.port().to_string(), name]);
        }
        wait_until("nothing is under way", PATIENCE, || gateway.in_flight() == Some(0));
        gateway.stop();
    }
}

matrix! {
    fn requests_and_bodies(cell) {
        cases(cell, &["get_and_head", "posts", "trailers"]);
    }

    fn interim_and_early_answers(cell) {
        cases(cell, &["waits_for_100", "early_hints", "early_answer"]);
    }

    fn cancelling_at_each_stage(cell) {
        cases(cell, &["cancels"]);
    }
}
