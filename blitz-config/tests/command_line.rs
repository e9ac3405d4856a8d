//! The command line without a file, and over one.

use blitz_config::model::{
    Certificate, Config, Endpoint, EndpointHost, HostPattern, Listener, PathPattern, PathSegment, Protocol,
    Route, UpstreamTls,
};
use blitz_config::{Format, Overrides, from_command_line, load, without_file};

const FILE: &str = r#"
[[listeners]]
name = "edge"
address = "127.0.0.1:8080"
[upstreams.api]
endpoints = [{ address = "127.0.0.1:9001" }]
[[routes]]
host = "*.Example.com."
path = "/a/{id}/"
methods = ["GET"]
upstream = "api"
[timeouts]
keep_alive_ms = 5
[admin]
address = "127.0.0.1:9999"
"#;

fn named(host: &str, port: u16) -> Endpoint {
    Endpoint { host: EndpointHost::Name(host.to_owned()), port, weight: 1, is_tls: port == 443 }
}

fn literal(host: &str, port: u16) -> Endpoint {
    Endpoint { host: EndpointHost::Address(host.parse().unwrap()), port, weight: 1, is_tls: port == 443 }
}

fn catch_all() -> Route {
    Route {
        host: HostPattern::Any,
        path: PathPattern { text: "/*rest".to_owned(), segments: vec![PathSegment::Rest("rest".to_owned())] },
        methods: vec![],
        upstream: 0,
    }
}

fn main_listener(port: u16) -> Listener {
    Listener {
        name: "main".to_owned(),
        address: ([0, 0, 0, 0], port).into(),
        protocols: vec![Protocol::H1],
        builtin_answers: true,
        proxy_protocol_from: None,
        tls: None,
    }
}

fn with_file(overrides: &Overrides) -> Config {
    load(FILE, Format::Toml, "f.toml", overrides).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn backends_and_a_port_are_a_complete_start() {
    let backends =
        ["127.0.0.1:9001", "LocalHost.:9002", "[::1]:80", "[::ffff:127.0.0.1]:81"].map(str::to_owned);
    let config = from_command_line(&backends, 8080, None).unwrap();
    assert_eq!(config.listeners, [main_listener(8080)]);
    assert_eq!(config.routes, [catch_all()]);
    assert_eq!(config.upstreams.len(), 1);
    assert_eq!(config.upstreams[0].name, "default");
    assert_eq!(
        config.upstreams[0].endpoints,
        [literal("127.0.0.1", 9001), named("localhost", 9002), literal("::1", 80), literal("127.0.0.1", 81)]
    );
    let shown: Vec<String> = config.upstreams[0].endpoints.iter().map(Endpoint::to_string).collect();
    assert_eq!(shown, ["127.0.0.1:9001", "localhost:9002", "[::1]:80", "127.0.0.1:81"]);
}

#[test]
fn a_port_alone_serves_the_builtin_answers() {
    let config = from_command_line(&[], 8080, Some("127.0.0.1:0")).unwrap();
    assert_eq!(config.listeners, [main_listener(8080)]);
    assert!(config.routes.is_empty() && config.upstreams.is_empty());
    assert_eq!(config.admin.address, ([127, 0, 0, 1], 0).into());
}

#[test]
fn bad_command_lines_name_the_flag() {
    let backends = ["localhost", "a:80", "a:80"].map(str::to_owned);
    let error = from_command_line(&backends, 8080, Some("localhost")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "command line: -b: \"localhost\" has no port; accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80\n\
         command line: -b: a:80 is there twice, at 1 and 2; give one of them more weight\n\
         command line: --admin: \"localhost\" is not an address with a port; \
         accepted: such as 0.0.0.0:8080, 127.0.0.1:8080 or [::]:8080"
    );
    let error = without_file(&Overrides { backends: vec!["a:1".to_owned()], ..Overrides::default() });
    assert_eq!(
        error.unwrap_err().to_string(),
        "command line: -p: no listener; give -p PORT, or -c FILE with [[listeners]]"
    );
    let error = from_command_line(&[], 9900, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "command line: -p: 0.0.0.0:9900 is in the way of the admin API on 127.0.0.1:9900"
    );
}

#[test]
fn the_command_line_replaces_what_it_names_and_no_more() {
    let file = with_file(&Overrides::default());
    assert_eq!(file.listeners[0].name, "edge");
    assert!(!file.listeners[0].builtin_answers);
    assert_eq!(file.routes[0].host, HostPattern::Suffix(".example.com".to_owned()));
    let segments = [
        PathSegment::Literal("a".to_owned()),
        PathSegment::Param("id".to_owned()),
        PathSegment::Literal(String::new()),
    ];
    assert_eq!(file.routes[0].path.segments, segments);

    let port = with_file(&Overrides { port: Some(80), ..Overrides::default() });
    assert_eq!(port, Config { listeners: vec![main_listener(80)], ..file.clone() });

    let backends = with_file(&Overrides { backends: vec!["b:1".to_owned()], ..Overrides::default() });
    assert_eq!(backends.upstreams[0].endpoints, [named("b", 1)]);
    assert_eq!(
        backends,
        Config { upstreams: backends.upstreams.clone(), routes: vec![catch_all()], ..file.clone() }
    );

    let admin = with_file(&Overrides { admin: Some("[::1]:7".to_owned()), ..Overrides::default() });
    assert_eq!(admin.admin.address, "[::1]:7".parse().unwrap());
    assert_eq!(admin, Config { admin: admin.admin, ..file });
}

#[test]
fn port_443_means_tls_with_the_defaults() {
    let backends = ["a:443", "a:80"].map(str::to_owned);
    let config = from_command_line(&backends, 8080, None).unwrap();
    let upstream = &config.upstreams[0];
    assert_eq!(upstream.endpoints.iter().map(|it| it.is_tls).collect::<Vec<_>>(), [true, false]);
    assert_eq!(upstream.link.tls, Some(UpstreamTls::default()));
    assert!(UpstreamTls::default().uses_system_store());
    let text = r#"{"backends": [{"host": "::1", "port": 443}]}"#;
    let overrides = Overrides { port: Some(8080), ..Overrides::default() };
    let short = load(text, Format::Json, "f.json", &overrides).unwrap();
    assert_eq!(short.upstreams[0].link.tls, Some(UpstreamTls::default()));
    let clear = from_command_line(&["a:80".to_owned()], 8080, None).unwrap();
    assert_eq!(clear.upstreams[0].link.tls, None);
}

#[test]
fn a_table_of_tls_is_for_every_endpoint() {
    let tls = "[upstreams.api.tls]\nserver_name = \"API.example\"\nca_path = \"ca.pem\"\n\
               cert_path = \"c.pem\"\nkey_path = \"k.pem\"\nmin_version = \"1.2\"\n";
    let load =
        |overrides: &Overrides| load(&format!("{FILE}{tls}"), Format::Toml, "f.toml", overrides).unwrap();
    let config = load(&Overrides::default());
    let expected = UpstreamTls {
        verify: true,
        ca_path: Some("ca.pem".to_owned()),
        server_name: Some(EndpointHost::Name("api.example".to_owned())),
        identity: Some(Certificate {
            cert_path: "c.pem".to_owned(),
            key_path: "k.pem".to_owned(),
            ocsp_path: None,
        }),
        allows_tls12: true,
    };
    assert_eq!(config.upstreams[0].link.tls, Some(expected.clone()));
    assert!(config.upstreams[0].endpoints.iter().all(|it| it.is_tls));
    let files: Vec<_> = config.files().collect();
    let named = |key: &str, path| (format!("upstreams.api.tls.{key}"), path);
    assert_eq!(files, [named("ca_path", "ca.pem"), named("cert_path", "c.pem"), named("key_path", "k.pem")]);
    // `-k` has the last word.
    let insecure = load(&Overrides { is_insecure: true, ..Overrides::default() });
    assert_eq!(insecure.upstreams[0].link.tls, Some(UpstreamTls { verify: false, ..expected }));
}

#[test]
fn a_file_that_is_replaced_is_still_checked() {
    let overrides = Overrides { backends: vec!["b:1".to_owned()], port: Some(80), ..Overrides::default() };
    let text = FILE.replace("upstream = \"api\"", "upstream = \"other\"");
    let error = load(&text, Format::Toml, "f.toml", &overrides).unwrap_err();
    assert_eq!(
        error.to_string(),
        "f.toml: routes[0].upstream: \"other\" is not an upstream; accepted: \"api\""
    );
}

#[test]
fn the_short_form_is_the_command_line_in_a_file() {
    let text =
        r#"{"backends": [{"host": "127.0.0.1", "port": 9001, "weight": 2}, {"host": "::1", "port": 2}]}"#;
    let overrides = Overrides { port: Some(8080), ..Overrides::default() };
    let short = load(text, Format::Json, "f.json", &overrides).unwrap();
    let backends = ["127.0.0.1:9001", "[::1]:2"].map(str::to_owned);
    let mut flags = from_command_line(&backends, 8080, None).unwrap();
    flags.upstreams[0].endpoints[0].weight = 2;
    assert_eq!(short, flags);
}

#[test]
fn routes_that_differ_are_no_repetition() {
    let text = r#"{
        "upstreams": {"a": {"endpoints": [{"address": "a:1"}]}},
        "routes": [
            {"upstream": "a", "path": "/x", "methods": ["GET"]},
            {"upstream": "a", "path": "/x", "methods": ["PUT"]},
            {"upstream": "a", "path": "/x/"},
            {"upstream": "a", "path": "/X"},
            {"upstream": "a", "path": "/{x}"},
            {"upstream": "a", "path": "/*x"},
            {"upstream": "a", "path": "/x", "host": "a.example"},
            {"upstream": "a", "path": "/x", "host": "*.a.example"},
            {"upstream": "a", "path": "/x", "host": "127.0.0.1"},
            {"upstream": "a", "path": "/x", "host": "[::1]"},
            {"upstream": "a", "path": "/"}
        ]}"#;
    let overrides = Overrides { port: Some(8080), ..Overrides::default() };
    let config = load(text, Format::Json, "f.json", &overrides).unwrap();
    assert_eq!(config.routes.len(), 11);
    assert_eq!(config.routes[10].path.segments, [PathSegment::Literal(String::new())]);
}

#[test]
fn a_route_of_all_methods_repeats_each_route_of_one() {
    for (first, second) in [("[]", "[\"GET\"]"), ("[\"GET\"]", "[]"), ("[]", "[]")] {
        let text = format!(
            r#"{{"upstreams": {{"a": {{"endpoints": [{{"address": "a:1"}}]}}}}, "routes": [
                {{"upstream": "a", "host": "A.example", "methods": {first}}},
                {{"upstream": "a", "host": "a.example.", "methods": {second}}}]}}"#
        );
        let overrides = Overrides { port: Some(8080), ..Overrides::default() };
        let error = load(&text, Format::Json, "f.json", &overrides).unwrap_err();
        assert_eq!(
            error.to_string(),
            "f.json: routes[1]: takes requests that routes[0] takes: the same host, path \"/*rest\" and a method; \
             accepted: one route for each of them"
        );
    }
}

#[test]
fn the_admin_address_is_told_where_it_was_given() {
    let admin = |text: &str| Overrides { admin: Some(text.to_owned()), ..Overrides::default() };
    let error = load(FILE, Format::Toml, "f.toml", &admin("127.0.0.1:8080")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "command line: --admin: 127.0.0.1:8080 is in the way of the admin API on 127.0.0.1:8080"
    );
    let error = load(FILE, Format::Toml, "f.toml", &admin("[::]")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "command line: --admin: \"[::]\" is not an address with a port; \
         accepted: such as 0.0.0.0:8080, 127.0.0.1:8080 or [::]:8080"
    );
}
