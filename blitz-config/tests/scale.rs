//! Large files: what is usual in a large installation, and the bounds.

use blitz_config::file::{ENDPOINTS_MAX, ROUTES_MAX};
use blitz_config::{Format, Overrides, load};
use std::fmt::Write;

fn with_port() -> Overrides {
    Overrides { port: Some(8080), ..Overrides::default() }
}

fn json_routes(count: usize, upstream: &str) -> String {
    let routes: Vec<String> = (0..count)
        .map(|n| {
            format!(
                r#"{{"host": "h{}.example.com", "path": "/p{n}/{{id}}/*rest", "methods": ["GET", "POST"], "upstream": "{upstream}"}}"#,
                n % 100
            )
        })
        .collect();
    format!(
        r#"{{"upstreams": {{"a": {{"endpoints": [{{"address": "a:1"}}]}}}}, "routes": [{}]}}"#,
        routes.join(",")
    )
}

#[test]
fn ten_thousand_routes_are_read_from_json() {
    let config = load(&json_routes(10_000, "a"), Format::Json, "f", &with_port()).unwrap();
    assert_eq!(config.routes.len(), 10_000);
    assert_eq!(config.routes[9_999].path.text, "/p9999/{id}/*rest");
}

#[test]
fn ten_thousand_routes_are_read_from_toml() {
    let mut text = "[upstreams.a]\nendpoints = [{ address = \"a:1\" }]\n".to_owned();
    for n in 0..10_000 {
        writeln!(
            text,
            "[[routes]]\nhost = \"h{}.example.com\"\npath = \"/p{n}/{{id}}/*rest\"\nmethods = [\"GET\", \"POST\"]\nupstream = \"a\"",
            n % 100
        )
        .unwrap();
    }
    let toml = load(&text, Format::Toml, "f", &with_port()).unwrap();
    let json = load(&json_routes(10_000, "a"), Format::Json, "f", &with_port()).unwrap();
    assert_eq!(toml, json);
}

#[test]
fn one_repetition_among_ten_thousand_is_found() {
    let text = json_routes(10_000, "a").replace("/p9999/{id}/*rest", "/p7299/{other}/*tail");
    let error = load(&text, Format::Json, "f", &with_port()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "f: routes[9999]: takes requests that routes[7299] takes: the same host, path \"/p7299/{other}/*tail\" and a \
         method; accepted: one route for each of them"
    );
}

#[test]
fn too_many_routes_are_refused() {
    let error = load(&json_routes(ROUTES_MAX + 1, "a"), Format::Json, "f", &with_port()).unwrap_err();
    assert_eq!(error.to_string(), "f: routes: 100001 entries; accepted: 0 to 100000");
}

#[test]
fn too_many_endpoints_in_all_are_refused() {
    let mut upstreams = Vec::new();
    for upstream in 0..=ENDPOINTS_MAX / 1_024 {
        let endpoints: Vec<String> =
            (1..=1_024).map(|port| format!(r#"{{"address": "a:{port}"}}"#)).collect();
        upstreams.push(format!(r#""u{upstream}": {{"endpoints": [{}]}}"#, endpoints.join(",")));
    }
    let text = format!(r#"{{"upstreams": {{{}}}}}"#, upstreams.join(","));
    let error = load(&text, Format::Json, "f", &with_port()).unwrap_err();
    assert_eq!(error.to_string(), "f: upstreams: 17408 endpoints in all; accepted: at most 16384");
}

/// Each wrong reference would look for a near name among all upstreams; only the issues that are
/// kept may.
#[test]
fn many_wrong_references_among_many_names_end_soon() {
    let upstreams: Vec<String> = (0..4_000)
        .map(|n| format!(r#""a-rather-long-upstream-name-{n}": {{"endpoints": [{{"address": "a:1"}}]}}"#))
        .collect();
    let text = json_routes(20_000, "another-rather-long-name-of-an-upstream")
        .replace(r#""a": {"endpoints": [{"address": "a:1"}]}"#, &upstreams.join(","));
    let error = load(&text, Format::Json, "f", &with_port()).unwrap_err();
    assert_eq!((error.issues().len(), error.omitted()), (20, 19_980));
}
