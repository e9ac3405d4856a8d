//! Files that must be refused, each with the exact words of the refusal.

use blitz_config::file::Format;
use blitz_config::{Overrides, load};

/// What a case puts before its own lines: a configuration that is good without them.
const GOOD_TOML: &str = r#"
[[listeners]]
name = "edge"
address = "127.0.0.1:8080"
[upstreams.api]
endpoints = [{ address = "127.0.0.1:9001" }]
"#;

/// TOML cases, each on its own.
const TOML: &[(&str, &str)] = &[
    // Syntax.
    ("listeners = [", "f.toml:1:14: unclosed array, expected `]`"),
    ("a = 1\na = 2", "f.toml:2:1: duplicate key"),
    // Nothing to do.
    ("", "f.toml: listeners: none; add [[listeners]] with a name and an address, or give -p PORT"),
    (
        "[[listeners]]\nname = \"a\"\naddress = \"[::]:80\"",
        "f.toml: routes: none, so nothing would be served; add [[routes]] or backends, give -b HOST:PORT, or set builtin_answers = true on a listener",
    ),
];

/// TOML cases behind [`GOOD_TOML`] with a route to `api`.
const TOML_MORE: &[(&str, &str)] = &[
    // Unknown keys.
    ("[timeout]", "f.toml: timeout: unknown key; did you mean \"timeouts\"?"),
    (
        "[banana]",
        "f.toml: banana: unknown key; accepted: admin, backends, http, http2, http3, limits, listeners, routes, timeouts, trusted_proxies, upstreams, xdp",
    ),
    (
        "[timeouts]\nkeep_alive = 5",
        "f.toml: timeouts.keep_alive: unknown key; did you mean \"keep_alive_ms\"?",
    ),
    (
        "[http]\nmax_body = 5",
        "f.toml: http.max_body: unknown key; accepted: connections_per_worker_max, request_body_bytes_max, request_fields_max, request_head_bytes_max, response_head_bytes_max, target_bytes_max",
    ),
    (
        "[[listeners]]\nname = \"b\"\nadress = \"127.0.0.1:1\"",
        "f.toml: listeners[1].adress: unknown key; did you mean \"address\"?\nf.toml: listeners[1].address: missing; this key is required",
    ),
    (
        "[[routes]]\nupstream = \"api\"\n\"odd key\\n\" = 1",
        "f.toml: routes[1].\"odd key\\n\": unknown key; accepted: host, methods, path, upstream",
    ),
    // Types and ranges.
    (
        "[timeouts]\nkeep_alive_ms = 0",
        "f.toml: timeouts.keep_alive_ms: 0 is out of range; accepted: 1 to 86400000",
    ),
    (
        "[timeouts]\nkeep_alive_ms = -1",
        "f.toml: timeouts.keep_alive_ms: -1 is out of range; accepted: 1 to 86400000",
    ),
    (
        "[timeouts]\nkeep_alive_ms = \"5s\"",
        "f.toml: timeouts.keep_alive_ms: \"5s\" is not accepted; accepted: a whole number, 1 to 86400000",
    ),
    (
        "[timeouts]\nkeep_alive_ms = 1.5",
        "f.toml: timeouts.keep_alive_ms: 1.5 is not a whole number; accepted: 1 to 86400000",
    ),
    (
        "[timeouts]\nkeep_alive_ms = inf",
        "f.toml: timeouts.keep_alive_ms: a null, date, inf or nan is not accepted; accepted: a whole number, 1 to 86400000",
    ),
    (
        "[timeouts]\nkeep_alive_ms = 2020-01-01",
        "f.toml: timeouts.keep_alive_ms: a null, date, inf or nan is not accepted; accepted: a whole number, 1 to 86400000",
    ),
    (
        "[http]\nrequest_body_bytes_max = 0",
        "f.toml: http.request_body_bytes_max: 0 is out of range; accepted: 1 to 1125899906842624",
    ),
    ("[[timeouts]]", "f.toml: timeouts: a list is not accepted; accepted: a table"),
    ("[upstreams.b]", "f.toml: upstreams.b.endpoints: missing; this key is required"),
    ("[upstreams.b]\nendpoints = []", "f.toml: upstreams.b.endpoints: 0 entries; accepted: 1 to 1024"),
    (
        "[upstreams.b]\nendpoints = [{ address = \"a:1\", weight = 1001 }]",
        "f.toml: upstreams.b.endpoints[0].weight: 1001 is out of range; accepted: 1 to 1000",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"127.0.0.1:1\"\nproxy_protocol = \"optional\"",
        "f.toml: listeners[1].proxy_protocol: \"optional\" is not accepted; accepted: \"off\", \"required\"",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"127.0.0.1:1\"\nproxy_protocol = \"required\"",
        "f.toml: listeners[1].proxy_protocol_from: none, so nobody could connect; accepted: at least one prefix",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"127.0.0.1:1\"\nproxy_protocol_from = [\"10.0.0.0/8\"]",
        "f.toml: listeners[1].proxy_protocol_from: has no effect; accepted: only beside proxy_protocol = \"required\"",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"127.0.0.1:1\"\nproxy_protocol = \"required\"\nproxy_protocol_from = [\"10.0.0.1/8\"]",
        "f.toml: listeners[1].proxy_protocol_from[0]: \"10.0.0.1/8\" has bits set beyond its prefix; accepted: 10.0.0.0/8",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"127.0.0.1:1\"\nbuiltin_answers = \"yes\"",
        "f.toml: listeners[1].builtin_answers: \"yes\" is not accepted; accepted: true or false",
    ),
    (
        "[[listeners]]\nname = 7\naddress = \"127.0.0.1:1\"",
        "f.toml: listeners[1].name: 7 is not accepted; accepted: a string",
    ),
    // Known, but later.
    (
        "[upstreams.api.health.active]\npath = \"/health\"",
        "f.toml: upstreams.api.health.active: known, but not in this release: active health checks; remove the key",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"a:1\" }]\nbalance = \"maglev\"",
        "f.toml: upstreams.b.balance: \"maglev\" is known, but not in this release: consistent hashing; accepted: \"round_robin\", \"weighted\"",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"a:1\" }]\nbalance = \"round-robin\"",
        "f.toml: upstreams.b.balance: \"round-robin\" is not accepted; did you mean \"round_robin\"? accepted: \"round_robin\", \"weighted\"",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"a:1\" }]\nprotocol = \"h4\"",
        "f.toml: upstreams.b.protocol: \"h4\" is not accepted; did you mean \"h1\"? accepted: \"auto\", \"h1\", \"h2\"",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"a:1\" }]\nproxy_protocol = \"v1\"",
        "f.toml: upstreams.b.proxy_protocol: \"v1\" is not accepted; did you mean \"v2\"? accepted: \"off\", \"v2\"",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"a:1\" }]\nprotocol = \"h2\"\nproxy_protocol = \"v2\"",
        "f.toml: upstreams.b.proxy_protocol: \"v2\" beside protocol = \"h2\": a connection of HTTP/2 carries the requests of many clients, and the header names one; accepted: \"off\", or another protocol",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"127.0.0.1:1\"\nprotocols = [\"h1\", \"h3\"]",
        "f.toml: listeners[1].protocols: \"h3\" needs TLS, which QUIC carries in itself; add [listeners.tls] with a certificate, or leave h3 out",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"127.0.0.1:1\"\nprotocols = [\"h2\", \"h3\"]\nproxy_protocol = \"required\"\nproxy_protocol_from = [\"10.0.0.0/8\"]\n[listeners.tls]\ncertificates = [{ cert_path = \"a\", key_path = \"b\" }]",
        "f.toml: listeners[1].proxy_protocol: \"required\" cannot hold for \"h3\": datagrams carry no such header; leave one of them out",
    ),
    (
        "[http3]\ncongestion_control = \"vegas\"",
        "f.toml: http3.congestion_control: \"vegas\" is not accepted; accepted: \"cubic\", \"reno\", \"bbr2\"",
    ),
    (
        "[http3]\nconnection_id_epoch_s = 60",
        "f.toml: http3.connection_id_epoch_s: 60 is less than twice http3.idle_timeout_ms, so that a client which is silent for that long could lose its connection; accepted: at least 180",
    ),
    (
        "[http3]\nretry = \"sometimes\"",
        "f.toml: http3.retry: \"sometimes\" is not accepted; accepted: \"always\", \"never\", \"under_pressure\"",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"127.0.0.1:1\"\nprotocols = []",
        "f.toml: listeners[1].protocols: 0 entries; accepted: 1 to 3",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"127.0.0.1:1\"\nprotocols = [\"h1\", \"h1\"]",
        "f.toml: listeners[1].protocols[1]: is there twice; accepted: each once",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"127.0.0.1:1\"\ntls = {}",
        "f.toml: listeners[1].tls.certificates: missing; this key is required",
    ),
    (
        "[listeners.tls]\ncertificates = []",
        "f.toml: listeners[0].tls.certificates: 0 entries; accepted: 1 to 16384",
    ),
    (
        "[listeners.tls]\ncertificates = [{ cert_path = \"a.crt\" }]",
        "f.toml: listeners[0].tls.certificates[0].key_path: missing; this key is required",
    ),
    (
        "[listeners.tls]\ncertificates = [{ cert_path = \"\", key_path = \"a.key\" }]",
        "f.toml: listeners[0].tls.certificates[0].cert_path: empty; accepted: the path of a file",
    ),
    (
        "[listeners.tls]\nmin_version = \"1.1\"\ncertificates = [{ cert_path = \"a\", key_path = \"b\" }]",
        "f.toml: listeners[0].tls.min_version: \"1.1\" is not accepted; did you mean \"1.2\"? accepted: \"1.2\", \"1.3\"",
    ),
    (
        "[listeners.tls]\ncertificates = [{ cert_path = \"a\", key_path = \"b\" }]\n[listeners.tls.client_auth]\nmode = \"required\"",
        "f.toml: listeners[0].tls.client_auth.ca_path: missing; this key is required",
    ),
    (
        "[[routes]]\nupstream = \"api\"\nfilters = []",
        "f.toml: routes[1].filters: known, but not in this release: filters on a route; remove the key",
    ),
    // Listeners.
    (
        "[[listeners]]\nname = \"edge\"\naddress = \"127.0.0.1:1\"",
        "f.toml: listeners[1].name: \"edge\" is the name of listeners[0] too; accepted: unique names",
    ),
    (
        "[[listeners]]\nname = \"a b\"\naddress = \"127.0.0.1:1\"",
        "f.toml: listeners[1].name: \"a b\" is not a name; accepted: 1 to 64 letters, digits, ., _ and -",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"localhost:1\"",
        "f.toml: listeners[1].address: \"localhost:1\" is not an address with a port; accepted: such as 0.0.0.0:8080, 127.0.0.1:8080 or [::]:8080",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"127.0.0.1:65536\"",
        "f.toml: listeners[1].address: \"127.0.0.1:65536\" is not an address with a port; accepted: such as 0.0.0.0:8080, 127.0.0.1:8080 or [::]:8080",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"127.0.0.1:8080\"",
        "f.toml: listeners[1].address: 127.0.0.1:8080 is in the way of listeners[0] on 127.0.0.1:8080; accepted: another port",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"0.0.0.0:8080\"",
        "f.toml: listeners[1].address: 0.0.0.0:8080 is in the way of listeners[0] on 127.0.0.1:8080; accepted: another port",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"[::ffff:127.0.0.1]:8081\"",
        "f.toml: listeners[1].address: \"[::ffff:127.0.0.1]:8081\" is an IPv4 address in IPv6 form; accepted: 127.0.0.1:8081",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"224.0.0.1:1\"",
        "f.toml: listeners[1].address: \"224.0.0.1:1\" is a multicast or broadcast address; accepted: one of this machine",
    ),
    (
        "[[listeners]]\nname = \"b\"\naddress = \"0.0.0.0:9900\"",
        "f.toml: listeners[1].address: 0.0.0.0:9900 is in the way of the admin API on 127.0.0.1:9900",
    ),
    (
        "[admin]\naddress = \"9900\"",
        "f.toml: admin.address: \"9900\" is not an address with a port; accepted: such as 0.0.0.0:8080, 127.0.0.1:8080 or [::]:8080",
    ),
    // Endpoints.
    (
        "[upstreams.\"a b\"]\nendpoints = [{ address = \"a:1\" }]",
        "f.toml: upstreams.\"a b\": \"a b\" is not a name; accepted: 1 to 64 letters, digits, ., _ and -",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"a:1\" }, { address = \"localhost\" }]",
        "f.toml: upstreams.b.endpoints[1].address: \"localhost\" has no port; accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"http://a:1\" }]",
        "f.toml: upstreams.b.endpoints[0].address: \"http://a:1\" has a scheme; accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"a:1/x\" }]",
        "f.toml: upstreams.b.endpoints[0].address: \"a:1/x\" has more than a host and a port; accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"a:0\" }]",
        "f.toml: upstreams.b.endpoints[0].address: \"a:0\" has the port \"0\"; accepted: 1 to 65535",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"a:+1\" }]",
        "f.toml: upstreams.b.endpoints[0].address: \"a:+1\" has the port \"+1\"; accepted: 1 to 65535",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"::1:80\" }]",
        "f.toml: upstreams.b.endpoints[0].address: \"::1:80\" has an IPv6 address without brackets, or two ports; accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"[::g]:80\" }]",
        "f.toml: upstreams.b.endpoints[0].address: \"[::g]:80\" has brackets around what is not an IPv6 address; accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"[::1]\" }]",
        "f.toml: upstreams.b.endpoints[0].address: \"[::1]\" has no port; accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \":80\" }]",
        "f.toml: upstreams.b.endpoints[0].address: \":80\" has an empty host; accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"127.0.0.256:80\" }]",
        "f.toml: upstreams.b.endpoints[0].address: \"127.0.0.256:80\" has a host that is neither an IPv4 address nor a name; accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"a+b:80\" }]",
        "f.toml: upstreams.b.endpoints[0].address: \"a+b:80\" has \"+\" in its host, where letters, digits, -, _ and . may stand; accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"-a:80\" }]",
        "f.toml: upstreams.b.endpoints[0].address: \"-a:80\" has a label that starts or ends with -; accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"a..b:80\" }]",
        "f.toml: upstreams.b.endpoints[0].address: \"a..b:80\" has an empty label between its dots; accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"münchen.example:80\" }]",
        "f.toml: upstreams.b.endpoints[0].address: \"münchen.example:80\" is not ASCII: write an internationalised name in its xn-- form; accepted: host:port such as localhost:9001, 192.0.2.1:80 or [::1]:80",
    ),
    // TLS to upstreams.
    (
        "[upstreams.api.tls]\nverify = \"no\"",
        "f.toml: upstreams.api.tls.verify: \"no\" is not accepted; accepted: true or false",
    ),
    (
        "[upstreams.api.tls]\ncert_path = \"a.crt\"",
        "f.toml: upstreams.api.tls.key_path: missing; a certificate needs its key",
    ),
    (
        "[upstreams.api.tls]\nkey_path = \"a.key\"",
        "f.toml: upstreams.api.tls.cert_path: missing; a key needs its certificate",
    ),
    (
        "[upstreams.api.tls]\nca_path = \"\"",
        "f.toml: upstreams.api.tls.ca_path: empty; accepted: the path of a file",
    ),
    (
        "[upstreams.api.tls]\nserver_name = \"a:443\"",
        "f.toml: upstreams.api.tls.server_name: \"a:443\" has \":\" in its host, where letters, digits, -, _ and . may stand; accepted: a name such as example.com, or an address",
    ),
    (
        "[upstreams.api.tls]\nmin_version = \"1.1\"",
        "f.toml: upstreams.api.tls.min_version: \"1.1\" is not accepted; did you mean \"1.2\"? accepted: \"1.2\", \"1.3\"",
    ),
    (
        "[upstreams.b]\nendpoints = [{ address = \"a:1\" }, { address = \"A:1\" }]",
        "f.toml: upstreams.b.endpoints[1].address: a:1 is there twice, at 0 and 1; give one of them more weight",
    ),
    // Trusted proxies.
    (
        "trusted_proxies_ = []",
        "f.toml: upstreams.api.trusted_proxies_: unknown key; accepted: balance, endpoints, health, pool, protocol, proxy_protocol, tls",
    ),
    // Routes.
    (
        "[[routes]]\npath = \"/a\"\nupstream = \"apo\"",
        "f.toml: routes[1].upstream: \"apo\" is not an upstream; did you mean \"api\"?",
    ),
    (
        "[[routes]]\npath = \"/a\"\nupstream = \"backend\"",
        "f.toml: routes[1].upstream: \"backend\" is not an upstream; accepted: \"api\"",
    ),
    ("[[routes]]\npath = \"/a\"", "f.toml: routes[1].upstream: missing; this key is required"),
    (
        "[[routes]]\nupstream = \"api\"\nhost = \"a.*.com\"",
        "f.toml: routes[1].host: \"a.*.com\" has a * that is not the whole first label; accepted: a host such as example.com, *.example.com, or * for all",
    ),
    (
        "[[routes]]\nupstream = \"api\"\nhost = \"example.com:80\"",
        "f.toml: routes[1].host: \"example.com:80\" has a port or a scheme, which are no part of a host; accepted: a host such as example.com, *.example.com, or * for all",
    ),
    (
        "[[routes]]\nupstream = \"api\"\nhost = \"bücher.example\"",
        "f.toml: routes[1].host: \"bücher.example\" is not ASCII: write an internationalised name in its xn-- form; accepted: a host such as example.com, *.example.com, or * for all",
    ),
    (
        "[[routes]]\nupstream = \"api\"\nhost = \"\"",
        "f.toml: routes[1].host: \"\" has an empty host; accepted: a host such as example.com, *.example.com, or * for all",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"a\"",
        "f.toml: routes[1].path: \"a\" does not start with /; accepted: a path such as /users/{id}/*rest",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/*\"",
        "f.toml: routes[1].path: \"/*\" has the parameter name \"\"; accepted: 1 to 64 letters, digits and _, no digit first",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/*rest/a\"",
        "f.toml: routes[1].path: \"/*rest/a\" has \"*rest\" before its end; accepted: *name as the last segment",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/{a}/{a}\"",
        "f.toml: routes[1].path: \"/{a}/{a}\" names the parameter \"a\" twice; accepted: unique names",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/{1}\"",
        "f.toml: routes[1].path: \"/{1}\" has the parameter name \"1\"; accepted: 1 to 64 letters, digits and _, no digit first",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/{a}.json\"",
        "f.toml: routes[1].path: \"/{a}.json\" has \"{a}.json\" with a wildcard in it; accepted: {name} or *name as a whole segment",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/a//b\"",
        "f.toml: routes[1].path: \"/a//b\" has an empty segment; accepted: // nowhere, / once at the end",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/a/../b\"",
        "f.toml: routes[1].path: \"/a/../b\" has the segment \"..\", which no normalised path has",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/a?b\"",
        "f.toml: routes[1].path: \"/a?b\" has \"?\" in a segment; accepted: letters, digits, -._~!$&'()+,;=:@ and the rest percent-encoded",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/ü\"",
        "f.toml: routes[1].path: \"/ü\" has \"ü\" in a segment; accepted: letters, digits, -._~!$&'()+,;=:@ and the rest percent-encoded",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/%4\"",
        "f.toml: routes[1].path: \"/%4\" has \"%4\" with a % that no two hexadecimal digits follow",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/%41\"",
        "f.toml: routes[1].path: \"/%41\" has %41, which is written \"A\" in a normalised path",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/%c3%bc\"",
        "f.toml: routes[1].path: \"/%c3%bc\" has %c3, which is written %C3 in a normalised path",
    ),
    (
        "[[routes]]\nupstream = \"api\"\nmethods = [\"get\"]",
        "f.toml: routes[1].methods[0]: \"get\" is not upper case, and methods are compared with case; did you mean \"GET\"?\nf.toml: routes[1]: takes requests that routes[0] takes: the same host, path \"/*rest\" and a method; accepted: one route for each of them",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/a\"\nmethods = [\"G T\"]",
        "f.toml: routes[1].methods[0]: \"G T\" is not a method; accepted: a name such as GET, at most 32 bytes",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/a\"\nmethods = [\"CONNECT\"]",
        "f.toml: routes[1].methods[0]: \"CONNECT\" asks for a tunnel and has no path to match; accepted: any other method",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/a\"\nmethods = [\"GET\", \"GET\"]",
        "f.toml: routes[1].methods[1]: \"GET\" is there twice; accepted: each once",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/*all\"\nmethods = [\"GET\"]",
        "f.toml: routes[1]: takes requests that routes[0] takes: the same host, path \"/*all\" and a method; accepted: one route for each of them",
    ),
    (
        "[[routes]]\nupstream = \"api\"\npath = \"/{a}\"\nmethods = [\"GET\", \"PUT\"]\n[[routes]]\nupstream = \"api\"\npath = \"/{b}\"\nmethods = [\"POST\", \"PUT\"]",
        "f.toml: routes[2]: takes requests that routes[1] takes: the same host, path \"/{b}\" and a method; accepted: one route for each of them",
    ),
    // Both forms at once.
    (
        "[[backends]]\nhost = \"a\"\nport = 1",
        "f.toml: backends: the short form excludes upstreams and routes; accepted: one form or the other",
    ),
];

/// JSON cases, each on its own, with a port from the command line.
const JSON: &[(&str, &str)] = &[
    ("", "f.json:1:1: EOF while parsing a value"),
    ("{\n  \"backends\": [}\n}", "f.json:2:16: expected value"),
    ("{} {}", "f.json:1:4: trailing characters"),
    ("[]", "f.json: a list is not accepted; accepted: a table"),
    ("{\"http\": {},\n \"http\": {}}", "f.json:2:7: the key \"http\" is there twice"),
    ("{\"http\": null}", "f.json: http: a null, date, inf or nan is not accepted; accepted: a table"),
    ("{\"backends\": []}", "f.json: backends: 0 entries; accepted: 1 to 1024"),
    ("{\"backends\": [{\"host\": \"a\"}]}", "f.json: backends[0].port: missing; this key is required"),
    (
        "{\"backends\": [{\"host\": \"a\", \"port\": 0}]}",
        "f.json: backends[0].port: 0 is out of range; accepted: 1 to 65535",
    ),
    (
        "{\"backends\": [{\"host\": \"a\", \"port\": 99999}]}",
        "f.json: backends[0].port: 99999 is out of range; accepted: 1 to 65535",
    ),
    (
        "{\"backends\": [{\"host\": \"a\", \"port\": \"80\"}]}",
        "f.json: backends[0].port: \"80\" is not accepted; accepted: a whole number, 1 to 65535",
    ),
    (
        "{\"backends\": [{\"host\": \"a:80\", \"port\": 80}]}",
        "f.json: backends[0]: \"a:80\" has \":\" in its host, where letters, digits, -, _ and . may stand; accepted: a host such as localhost, 192.0.2.1 or ::1",
    ),
    (
        "{\"backends\": [{\"host\": \"a\", \"port\": 80}, {\"host\": \"a.\", \"port\": 80}]}",
        "f.json: backends[1]: a:80 is there twice, at 0 and 1; give one of them more weight",
    ),
    (
        "{\"trusted_proxies\": [\"10.0.0.1/8\"]}",
        "f.json: trusted_proxies[0]: \"10.0.0.1/8\" has bits set beyond its prefix; accepted: 10.0.0.0/8",
    ),
    (
        "{\"trusted_proxies\": [\"10.0.0.0/33\"]}",
        "f.json: trusted_proxies[0]: \"10.0.0.0/33\" has the prefix length \"33\"; accepted: 0 to 32",
    ),
    (
        "{\"trusted_proxies\": [\"10.0.0.0/+8\"]}",
        "f.json: trusted_proxies[0]: \"10.0.0.0/+8\" has the prefix length \"+8\"; accepted: 0 to 32",
    ),
    (
        "{\"trusted_proxies\": [\"2001:db8::1/32\"]}",
        "f.json: trusted_proxies[0]: \"2001:db8::1/32\" has bits set beyond its prefix; accepted: 2001:db8::/32",
    ),
    (
        "{\"trusted_proxies\": [\"::ffff:10.0.0.0/104\"]}",
        "f.json: trusted_proxies[0]: \"::ffff:10.0.0.0/104\" is an IPv4 prefix in IPv6 form; accepted: as IPv4, such as 10.0.0.0",
    ),
    (
        "{\"trusted_proxies\": [\"proxy.example\"]}",
        "f.json: trusted_proxies[0]: \"proxy.example\" is not a prefix; accepted: such as 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7",
    ),
    (
        "{\"trusted_proxies\": \"10.0.0.0/8\"}",
        "f.json: trusted_proxies: \"10.0.0.0/8\" is not accepted; accepted: a list",
    ),
    (
        "{\"admin\": {\"address\": \"127.0.0.1:8080\"}}",
        "command line: -p: 0.0.0.0:8080 is in the way of the admin API on 127.0.0.1:8080",
    ),
];

#[test]
fn each_bad_file_is_refused_in_these_words() {
    let no_overrides = Overrides::default();
    let with_port = Overrides { port: Some(8080), ..Overrides::default() };
    let catch_all = "[[routes]]\nupstream = \"api\"\n";
    let mut failures = Vec::new();
    let mut check = |text: &str, format, name, overrides: &Overrides, expected: &str| {
        let actual = match load(text, format, name, overrides) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        };
        if actual != expected {
            failures.push(format!("{text}\n  expected: {expected}\n  actual:   {actual}"));
        }
    };
    for (text, expected) in TOML {
        check(text, Format::Toml, "f.toml", &no_overrides, expected);
    }
    for (text, expected) in TOML_MORE {
        // A bare key goes into the last table of the good part, which is the upstream.
        let (before, after) = if text.starts_with('[') { ("", *text) } else { (*text, "") };
        let text = format!("{GOOD_TOML}{before}\n{catch_all}{after}\n");
        check(&text, Format::Toml, "f.toml", &no_overrides, expected);
    }
    for (text, expected) in JSON {
        check(text, Format::Json, "f.json", &with_port, expected);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn the_good_part_of_the_cases_is_good() {
    let text = format!("{GOOD_TOML}[[routes]]\nupstream = \"api\"\n");
    load(&text, Format::Toml, "f.toml", &Overrides::default()).unwrap();
}

#[test]
fn what_a_later_release_has_is_refused_by_name() {
    // A file of the whole design.
    let text = r#"
[[listeners]]
name = "edge"
address = "0.0.0.0:8443"
protocols = ["h1", "h2", "h3"]
  [listeners.tls]
  certificates = [{ cert_path = "edge.crt", key_path = "edge.key" }]
[upstreams.api]
balance = "least_request"
endpoints = [{ address = "127.0.0.1:9001" }]
  [upstreams.api.health.active]
  path = "/health"
[[routes]]
upstream = "api"
filters = ["jwt:staff"]
"#;
    let error = load(text, Format::Toml, "f.toml", &Overrides::default()).unwrap_err();
    let expected = r#"f.toml: routes[0].filters: known, but not in this release: filters on a route; remove the key
f.toml: upstreams.api.balance: "least_request" is known, but not in this release: balancing by requests in flight; accepted: "round_robin", "weighted"
f.toml: upstreams.api.health.active: known, but not in this release: active health checks; remove the key"#;
    assert_eq!(error.to_string(), expected);
}

#[test]
fn at_most_twenty_issues_are_kept() {
    let text = format!("{{\"trusted_proxies\": [{}]}}", ["\"x\""; 33].join(","));
    let with_port = Overrides { port: Some(8080), ..Overrides::default() };
    let error = load(&text, Format::Json, "f.json", &with_port).unwrap_err();
    assert_eq!((error.issues().len(), error.omitted()), (20, 13));
    assert_eq!(error.to_string().lines().count(), 21);
    assert!(error.to_string().ends_with("\nf.json: 13 more not shown"));
}

#[test]
fn nesting_and_size_are_bounded() {
    let with_port = Overrides { port: Some(8080), ..Overrides::default() };
    let json = format!("{{\"a\":{}", "[".repeat(100_000));
    assert!(load(&json, Format::Json, "f", &with_port).unwrap_err().to_string().contains("recursion limit"));
    let toml = format!("a = {}", "[".repeat(100_000));
    assert!(load(&toml, Format::Toml, "f", &with_port).unwrap_err().to_string().contains("recursion"));
    let tables = format!("[{}]", vec!["a"; 100_000].join("."));
    assert!(load(&tables, Format::Toml, "f", &with_port).unwrap_err().to_string().contains("recursion"));
    let tables = format!("{} = 1", vec!["a"; 100_000].join("."));
    assert!(load(&tables, Format::Toml, "f", &with_port).unwrap_err().to_string().contains("recursion"));
    let tables = format!("a = {}", "{a=".repeat(100_000));
    assert!(load(&tables, Format::Toml, "f", &with_port).unwrap_err().to_string().contains("recursion"));
    let long = " ".repeat(blitz_config::file::TEXT_BYTES_MAX + 1);
    let error = load(&long, Format::Toml, "f", &with_port).unwrap_err();
    assert_eq!(error.to_string(), "f: 67108865 bytes of text; accepted: at most 67108864");
}

#[test]
fn the_ending_names_the_syntax() {
    use std::path::Path;
    assert_eq!(Format::from_path(Path::new("/etc/blitz/edge.TOML")), Ok(Format::Toml));
    assert_eq!(Format::from_path(Path::new("edge.json")), Ok(Format::Json));
    let refused = |path: &str| Format::from_path(Path::new(path)).unwrap_err().to_string();
    assert_eq!(
        refused("edge.yaml"),
        "edge.yaml: the file ending \"yaml\" is not accepted; accepted: .json, .toml"
    );
    assert_eq!(refused("edge"), "edge: the file has no ending to tell its syntax; accepted: .json, .toml");
}
