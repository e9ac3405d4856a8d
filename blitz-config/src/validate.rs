//! [`FileConfig`] and command line to [`Config`].
//!
//! Owns: what the values mean together (names resolve, nothing is there twice, something is
//! served), and the precedence of the command line over the file. Does not own: keys, types and
//! ranges (see [`crate::file`]), or the syntax of addresses and patterns.
#![forbid(unsafe_code)]

mod policy;
mod tls;

pub use policy::{FRAME_BYTES_MAX, RULE_BYTES_MAX};

use crate::address;
use crate::error::{ConfigError, Issues, quoted};
use crate::file::{
    ENDPOINTS_MAX, FileConfig, Format, HttpFile, ListenerFile, Milliseconds, ProtocolFile, ProxyProtocolFile,
    RouteFile, TimeoutsFile, UPSTREAM_ENDPOINTS_MAX, UpstreamFile, UpstreamProtocolFile,
    UpstreamProxyProtocolFile, key_text, parse,
};
use crate::model::{
    Admin, Balance, Cidr, Config, Endpoint, HostPattern, HttpLimits, Link, Listener, PassiveHealth,
    PathPattern, PathSegment, Protocol, Route, Timeouts, Upstream, UpstreamProtocol, UpstreamTls,
};
use crate::pattern;
use crate::suggest;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// What messages call the command line.
const COMMAND_LINE: &str = "command line";

/// The upstream of `-b` and of the short form.
const DEFAULT_UPSTREAM: &str = "default";

/// The listener of `-p`.
const MAIN_LISTENER: &str = "main";

/// Bytes of a listener's or upstream's name.
pub const NAME_BYTES_MAX: usize = 64;

/// Names that are offered or listed for an unknown upstream, out of possibly thousands (count).
const SUGGESTIONS_FROM_MAX: usize = 1_000;
const NAMES_LISTED_MAX: usize = 8;

/// What the command line says about the configuration. It takes precedence over the file, at start
/// and at each reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `-b HOST:PORT`, in order. Any: one upstream `default` of these endpoints, and a route that
    /// takes every request to it, replace all upstreams and routes of the file.
    pub backends: Vec<String>,
    /// `-p PORT`. A listener `main` on `0.0.0.0:PORT` with built-in answers replaces all listeners
    /// of the file. 0 lets the kernel choose.
    pub port: Option<u16>,
    /// `--admin ADDR`. Replaces `admin.address`.
    pub admin: Option<String>,
    /// `-k`. No endpoint's certificate is verified, whatever the file says.
    pub is_insecure: bool,
    /// The reader wants the kernel stage only, which may stand in front of another server: a file without
    /// listeners is complete.
    pub is_for_stage: bool,
}

/// The configuration of `blitz -b HOST:PORT [-b …] -p PORT [--admin ADDR]`, without a file: defaults
/// everywhere else. Without backends only the built-in answers are served.
///
/// # Errors
/// A backend or the admin address is malformed, a backend is there twice, or the admin address is in
/// the way of the port.
pub fn from_command_line(backends: &[String], port: u16, admin: Option<&str>) -> Result<Config, ConfigError> {
    without_file(&Overrides {
        backends: backends.to_vec(),
        port: Some(port),
        admin: admin.map(str::to_owned),
        ..Overrides::default()
    })
}

/// The configuration of a command line without `-c FILE`.
///
/// # Errors
/// As [`from_command_line`]; also when there is no port.
pub fn without_file(overrides: &Overrides) -> Result<Config, ConfigError> {
    let mut issues = Issues::new(COMMAND_LINE);
    if overrides.port.is_none() {
        issues.add("-p", "no listener; give -p PORT, or -c FILE with [[listeners]]");
    }
    assemble(&FileConfig::default(), issues, overrides)
}

/// The configuration of a file under a command line.
///
/// # Errors
/// Everything that is wrong, up to [`crate::error::ISSUES_MAX`]: see [`ConfigError`]. The file is
/// checked as a whole, also where the command line replaces it.
pub fn validate(file: &FileConfig, source_name: &str, overrides: &Overrides) -> Result<Config, ConfigError> {
    let mut issues = Issues::new(source_name);
    if file.listeners.is_empty() && overrides.port.is_none() && !overrides.is_for_stage {
        issues.add("listeners", "none; add [[listeners]] with a name and an address, or give -p PORT");
    }
    assemble(file, issues, overrides)
}

/// Reads and checks a configuration text: [`parse`], then [`validate`].
///
/// # Errors
/// As those two.
pub fn load(
    text: &str,
    format: Format,
    source_name: &str,
    overrides: &Overrides,
) -> Result<Config, ConfigError> {
    validate(&parse(text, format, source_name)?, source_name, overrides)
}

fn assemble(file: &FileConfig, mut issues: Issues, overrides: &Overrides) -> Result<Config, ConfigError> {
    let mut listeners = listeners(&file.listeners, &mut issues);
    let mut upstreams = upstreams(&file.upstreams, &mut issues);
    let mut routes = routes(&file.routes, &upstreams, &mut issues);
    if !file.backends.is_empty() {
        if !file.upstreams.is_empty() || !file.routes.is_empty() {
            issues.add(
                "backends",
                "the short form excludes upstreams and routes; accepted: one form or the other",
            );
        }
        let backends = file.backends.iter().map(|backend| {
            let port = u16::try_from(backend.port.value()).unwrap_or(0);
            address::backend(&backend.host, port, narrow(backend.weight.value()))
        });
        upstreams = vec![default_upstream(backends, |index| format!("backends[{index}]"), &mut issues)];
        routes = vec![catch_all()];
    }
    let trusted_proxies = prefixes("trusted_proxies", &file.trusted_proxies, &mut issues);
    let mut admin = match address::socket_address(&file.admin.address) {
        Ok(address) => Admin { address },
        Err(why) => {
            issues.add("admin.address", why);
            Admin::RECOMMENDED
        }
    };

    let names: Vec<String> = file.listeners.iter().map(|listener| listener.name.clone()).collect();
    let mut limits = policy::limits(&file.limits, &names, &mut issues);
    let xdp = policy::xdp(&file.xdp, &mut issues);

    let mut flags = Issues::new(COMMAND_LINE);
    if overrides.backends.len() > UPSTREAM_ENDPOINTS_MAX {
        let count = overrides.backends.len();
        flags.add("-b", format!("{count} backends; accepted: at most {UPSTREAM_ENDPOINTS_MAX}"));
    }
    if !overrides.backends.is_empty() {
        let backends = overrides.backends.iter().map(|backend| address::endpoint(backend, 1));
        upstreams = vec![default_upstream(backends, |_| "-b".to_owned(), &mut flags)];
        routes = vec![catch_all()];
    }
    if overrides.is_insecure {
        upstreams
            .iter_mut()
            .filter_map(|upstream| upstream.link.tls.as_mut())
            .for_each(|tls| tls.verify = false);
    }
    if let Some(port) = overrides.port {
        listeners = vec![main_listener(port)];
        // The one listener stands for those that it replaces, and so for their limits.
        for limit in limits.iter_mut().filter(|limit| !limit.listeners.is_empty()) {
            limit.listeners = vec![0];
        }
    }
    if let Some(address) = &overrides.admin {
        match address::socket_address(address) {
            Ok(address) => admin.address = address,
            Err(why) => flags.add("--admin", why),
        }
    }

    // What is left makes sense only of addresses that could all be read.
    let is_sound = issues.is_empty() && flags.is_empty();
    let in_the_way = listeners
        .iter()
        .map(|listener| listener.address)
        .enumerate()
        .find(|&(_, address)| address::collide(address, admin.address));
    if let Some((index, address)) = in_the_way.filter(|_| is_sound) {
        let message = format!("{address} is in the way of the admin API on {}", admin.address);
        match (overrides.port, &overrides.admin) {
            (Some(_), _) => flags.add("-p", message),
            (None, Some(_)) => flags.add("--admin", message),
            (None, None) => issues.add(format!("listeners[{index}].address"), message),
        }
    }
    if is_sound {
        policy::check_meetings(&limits, &listeners, &mut issues);
        policy::check_services(&xdp, &listeners, &mut issues);
        // One of the command line speaks HTTP/1 for a trial; the file is not at fault then.
        if overrides.port.is_none() {
            policy::check_afxdp(&xdp, &listeners, &mut issues);
        }
    }
    let serves = !listeners.is_empty() || !overrides.is_for_stage;
    if is_sound && serves && routes.is_empty() && !listeners.iter().any(|listener| listener.builtin_answers) {
        issues.add(
            "routes",
            "none, so nothing would be served; add [[routes]] or backends, give -b HOST:PORT, \
             or set builtin_answers = true on a listener",
        );
    }
    let (http3, epoch) = (file.http3.limits(), file.http3.connection_id_epoch_s.value());
    if Duration::from_secs(epoch) < http3.idle_timeout * 2 {
        let message = format!(
            "{epoch} is less than twice http3.idle_timeout_ms, so that a client which is silent for that long \
             could lose its connection; accepted: at least {}",
            (http3.idle_timeout * 2).as_millis().div_ceil(1000)
        );
        issues.add("http3.connection_id_epoch_s", message);
    }
    issues.append(flags);
    issues.into_result(Config {
        listeners,
        upstreams,
        routes,
        trusted_proxies,
        timeouts: timeouts(&file.timeouts),
        http: http_limits(&file.http),
        http2: file.http2.limits(),
        http3,
        admin,
        limits,
        xdp,
    })
}

fn listeners(file: &[ListenerFile], issues: &mut Issues) -> Vec<Listener> {
    let mut names: HashMap<&str, usize> = HashMap::new();
    let mut listeners: Vec<Listener> = Vec::with_capacity(file.len());
    // Index in the file of each entry of `listeners`.
    let mut indices = Vec::with_capacity(file.len());
    for (index, listener) in file.iter().enumerate() {
        if let Err(why) = check_name(&listener.name, NAME_BYTES_MAX) {
            issues.add(format!("listeners[{index}].name"), why);
        } else if let Some(first) = names.insert(&listener.name, index) {
            let message = format!(
                "{} is the name of listeners[{first}] too; accepted: unique names",
                quoted(&listener.name)
            );
            issues.add(format!("listeners[{index}].name"), message);
        }
        let tls = listener.tls.as_ref().map(|it| tls::tls(it, &format!("listeners[{index}].tls"), issues));
        let proxy_protocol_from = proxy_protocol(index, listener, issues);
        let protocols = protocols(index, &listener.protocols, issues);
        if protocols.contains(&Protocol::H3) {
            check_h3(index, listener, issues);
        }
        let address = match address::socket_address(&listener.address) {
            Ok(address) => address,
            Err(why) => {
                issues.add(format!("listeners[{index}].address"), why);
                continue;
            }
        };
        let earlier = listeners
            .iter()
            .zip(&indices)
            .find(|(other, _)| other.address == address || address::collide(other.address, address));
        if let Some((other, first)) = earlier {
            let message = format!(
                "{address} is in the way of listeners[{first}] on {}; accepted: another port",
                other.address
            );
            issues.add(format!("listeners[{index}].address"), message);
        }
        indices.push(index);
        listeners.push(Listener {
            name: listener.name.clone(),
            address,
            protocols,
            builtin_answers: listener.builtin_answers,
            proxy_protocol_from,
            tls,
        });
    }
    listeners
}

/// What HTTP/3 needs of its listener.
fn check_h3(index: usize, listener: &ListenerFile, issues: &mut Issues) {
    if listener.tls.is_none() {
        let why = "\"h3\" needs TLS, which QUIC carries in itself; add [listeners.tls] with a certificate, \
                   or leave h3 out";
        issues.add(format!("listeners[{index}].protocols"), why);
    }
    if listener.proxy_protocol == ProxyProtocolFile::Required {
        let why =
            "\"required\" cannot hold for \"h3\": datagrams carry no such header; leave one of them out";
        issues.add(format!("listeners[{index}].proxy_protocol"), why);
    }
}

/// Who sends PROXY protocol headers, if anybody has to.
fn proxy_protocol(index: usize, listener: &ListenerFile, issues: &mut Issues) -> Option<Vec<Cidr>> {
    let path = format!("listeners[{index}].proxy_protocol_from");
    let from = prefixes(&path, &listener.proxy_protocol_from, issues);
    let is_empty = listener.proxy_protocol_from.is_empty();
    match listener.proxy_protocol {
        ProxyProtocolFile::Off if is_empty => None,
        ProxyProtocolFile::Off => {
            issues.add(path, "has no effect; accepted: only beside proxy_protocol = \"required\"");
            None
        }
        ProxyProtocolFile::Required => {
            if is_empty {
                issues.add(path, "none, so nobody could connect; accepted: at least one prefix");
            }
            Some(from)
        }
    }
}

fn protocols(index: usize, file: &[ProtocolFile], issues: &mut Issues) -> Vec<Protocol> {
    let mut protocols = Vec::with_capacity(file.len());
    if file.is_empty() {
        issues.add(format!("listeners[{index}].protocols"), "empty; accepted: \"h1\", \"h2\", \"h3\"");
    }
    for (position, protocol) in file.iter().enumerate() {
        let protocol = match protocol {
            ProtocolFile::H1 => Protocol::H1,
            ProtocolFile::H3 => Protocol::H3,
            ProtocolFile::H2 => Protocol::H2,
        };
        if protocols.contains(&protocol) {
            issues.add(
                format!("listeners[{index}].protocols[{position}]"),
                "is there twice; accepted: each once",
            );
        } else {
            protocols.push(protocol);
        }
    }
    protocols
}

fn main_listener(port: u16) -> Listener {
    Listener {
        name: MAIN_LISTENER.to_owned(),
        address: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        protocols: vec![Protocol::H1],
        builtin_answers: true,
        proxy_protocol_from: None,
        tls: None,
    }
}

fn upstreams(file: &BTreeMap<String, UpstreamFile>, issues: &mut Issues) -> Vec<Upstream> {
    let mut upstreams = Vec::with_capacity(file.len());
    let mut total = 0;
    for (name, upstream) in file {
        let path = format!("upstreams.{}", key_text(name));
        if let Err(why) = check_name(name, NAME_BYTES_MAX) {
            issues.add(path.clone(), why);
        }
        if upstream.endpoints.is_empty() {
            issues.add(format!("{path}.endpoints"), "empty; accepted: at least one endpoint");
        }
        total += upstream.endpoints.len();
        let parsed = upstream
            .endpoints
            .iter()
            .map(|endpoint| address::endpoint(&endpoint.address, narrow(endpoint.weight.value())));
        let mut endpoints = endpoints(parsed, |index| format!("{path}.endpoints[{index}].address"), issues);
        let tls = upstream.tls.as_ref().map(|it| tls::upstream(it, &format!("{path}.tls"), issues));
        if tls.is_some() {
            endpoints.iter_mut().for_each(|endpoint| endpoint.is_tls = true);
        }
        let passive = &upstream.health.passive;
        upstreams.push(Upstream {
            name: name.clone(),
            // Both words of the file mean the one way there is.
            balance: Balance::RoundRobin,
            link: link(upstream, tls, &endpoints, &path, issues),
            endpoints,
            passive: PassiveHealth {
                consecutive_failures: narrow(passive.consecutive_failures.value()),
                consecutive_successes: narrow(passive.consecutive_successes.value()),
                ejection: duration(passive.ejection_ms),
            },
            idle_connections_max: narrow(upstream.pool.idle_connections_max.value()),
        });
    }
    if total > ENDPOINTS_MAX {
        issues.add("upstreams", format!("{total} endpoints in all; accepted: at most {ENDPOINTS_MAX}"));
    }
    upstreams
}

/// How the endpoints are spoken to; `tls` is what the file says of it, if anything.
fn link(
    file: &UpstreamFile,
    tls: Option<UpstreamTls>,
    endpoints: &[Endpoint],
    path: &str,
    issues: &mut Issues,
) -> Link {
    let names_client = file.proxy_protocol == UpstreamProxyProtocolFile::V2;
    if names_client && file.protocol == UpstreamProtocolFile::H2 {
        issues.add(
            format!("{path}.proxy_protocol"),
            "\"v2\" beside protocol = \"h2\": a connection of HTTP/2 carries the requests of many clients, and the \
             header names one; accepted: \"off\", or another protocol",
        );
    }
    Link {
        names_client,
        protocol: match file.protocol {
            UpstreamProtocolFile::Auto => UpstreamProtocol::Auto,
            UpstreamProtocolFile::H1 => UpstreamProtocol::H1,
            UpstreamProtocolFile::H2 => UpstreamProtocol::H2,
        },
        tls: tls.or_else(|| endpoints.iter().any(|endpoint| endpoint.is_tls).then(UpstreamTls::default)),
    }
}

/// The endpoints that could be read; reports the others and those that are there twice.
fn endpoints(
    parsed: impl Iterator<Item = Result<Endpoint, String>>,
    path: impl Fn(usize) -> String,
    issues: &mut Issues,
) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let mut seen = HashMap::new();
    for (index, endpoint) in parsed.enumerate() {
        match endpoint {
            Err(why) => issues.add_with(|| (path(index), why)),
            Ok(endpoint) => {
                if let Some(first) = seen.insert((endpoint.host.clone(), endpoint.port), index) {
                    let message = format!(
                        "{endpoint} is there twice, at {first} and {index}; give one of them more weight"
                    );
                    issues.add_with(|| (path(index), message));
                }
                endpoints.push(endpoint);
            }
        }
    }
    endpoints
}

fn default_upstream(
    parsed: impl Iterator<Item = Result<Endpoint, String>>,
    path: impl Fn(usize) -> String,
    issues: &mut Issues,
) -> Upstream {
    let endpoints = endpoints(parsed, path, issues);
    Upstream {
        name: DEFAULT_UPSTREAM.to_owned(),
        balance: Balance::RoundRobin,
        link: Link {
            tls: endpoints.iter().any(|endpoint| endpoint.is_tls).then(UpstreamTls::default),
            ..Link::default()
        },
        endpoints,
        passive: PassiveHealth::RECOMMENDED,
        idle_connections_max: Upstream::IDLE_CONNECTIONS_RECOMMENDED,
    }
}

/// Every request to the first upstream.
fn catch_all() -> Route {
    Route {
        host: HostPattern::Any,
        path: PathPattern { text: "/*rest".to_owned(), segments: vec![PathSegment::Rest("rest".to_owned())] },
        methods: Vec::new(),
        upstream: 0,
    }
}

fn routes(file: &[RouteFile], upstreams: &[Upstream], issues: &mut Issues) -> Vec<Route> {
    let by_name: HashMap<&str, usize> =
        upstreams.iter().enumerate().map(|(index, up)| (up.name.as_str(), index)).collect();
    let mut seen = pattern::Seen::default();
    let mut routes = Vec::with_capacity(file.len());
    for (index, route) in file.iter().enumerate() {
        let mut refuse = |key: &str, why: String| issues.add_with(|| (format!("routes[{index}].{key}"), why));
        let host = pattern::host_pattern(&route.host).map_err(|why| refuse("host", why));
        let path = pattern::path_pattern(&route.path).map_err(|why| refuse("path", why));
        for (position, method) in route.methods.iter().enumerate() {
            if let Err(why) = pattern::method(method) {
                refuse(&format!("methods[{position}]"), why);
            } else if route.methods.iter().take(position).any(|earlier| earlier == method) {
                refuse(
                    &format!("methods[{position}]"),
                    format!("{} is there twice; accepted: each once", quoted(method)),
                );
            }
        }
        let upstream = by_name.get(route.upstream.as_str()).copied();
        if upstream.is_none() {
            issues.add_with(|| {
                (format!("routes[{index}].upstream"), unknown_upstream(&route.upstream, upstreams))
            });
        }
        let (Ok(host), Ok(path)) = (host, path) else {
            continue;
        };
        // Index 0 never leaves here: without the upstream there is an issue, and so no configuration.
        let route = Route { host, path, methods: route.methods.clone(), upstream: upstream.unwrap_or(0) };
        if let Some(earlier) = seen.insert(index, &route) {
            issues.add_with(|| {
                let message = format!(
                    "takes requests that routes[{earlier}] takes: the same host, path {} and a method; \
                     accepted: one route for each of them",
                    quoted(&route.path.text)
                );
                (format!("routes[{index}]"), message)
            });
        }
        routes.push(route);
    }
    routes
}

fn unknown_upstream(name: &str, upstreams: &[Upstream]) -> String {
    let name_text = quoted(name);
    let known = || upstreams.iter().map(|upstream| upstream.name.as_str());
    if upstreams.is_empty() {
        return format!("{name_text} is not an upstream; there are none, add [upstreams.NAME]");
    }
    if let Some(near) = suggest::nearest(name, known().take(SUGGESTIONS_FROM_MAX)) {
        return format!("{name_text} is not an upstream; did you mean {}?", quoted(near));
    }
    let listed = known().take(NAMES_LISTED_MAX).map(quoted).collect::<Vec<_>>().join(", ");
    let more = if upstreams.len() > NAMES_LISTED_MAX { ", …" } else { "" };
    format!("{name_text} is not an upstream; accepted: {listed}{more}")
}

/// The prefixes of a list; `path` is its place in the file.
fn prefixes(path: &str, file: &[String], issues: &mut Issues) -> Vec<Cidr> {
    let mut prefixes = Vec::with_capacity(file.len());
    for (index, text) in file.iter().enumerate() {
        match text.parse() {
            Ok(prefix) => prefixes.push(prefix),
            Err(why) => issues.add(format!("{path}[{index}]"), why),
        }
    }
    prefixes
}

fn timeouts(file: &TimeoutsFile) -> Timeouts {
    Timeouts {
        tls_handshake: duration(file.tls_handshake_ms),
        request_head: duration(file.request_head_ms),
        request_body_progress: duration(file.request_body_progress_ms),
        keep_alive: duration(file.keep_alive_ms),
        send_progress: duration(file.send_progress_ms),
        upstream_connect: duration(file.upstream_connect_ms),
        upstream_first_byte: duration(file.upstream_first_byte_ms),
        upstream_body_progress: duration(file.upstream_body_progress_ms),
        upstream_idle: duration(file.upstream_idle_ms),
        tunnel_idle: duration(file.tunnel_idle_ms),
        tunnel_lifetime: duration(file.tunnel_lifetime_ms),
        drain: duration(file.drain_ms),
    }
}

fn http_limits(file: &HttpFile) -> HttpLimits {
    let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    HttpLimits {
        request_head_bytes_max: size(file.request_head_bytes_max.value()),
        request_fields_max: size(file.request_fields_max.value()),
        target_bytes_max: size(file.target_bytes_max.value()),
        request_body_bytes_max: file.request_body_bytes_max.value(),
        response_head_bytes_max: size(file.response_head_bytes_max.value()),
        connections_per_worker_max: size(file.connections_per_worker_max.value()),
    }
}

/// Names end up in logs, metric labels and paths of the admin API.
fn check_name(name: &str, bytes_max: usize) -> Result<(), String> {
    let is_name = (1..=bytes_max).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if is_name {
        Ok(())
    } else {
        Err(format!("{} is not a name; accepted: 1 to {bytes_max} letters, digits, ., _ and -", quoted(name)))
    }
}

fn duration(milliseconds: Milliseconds) -> Duration {
    Duration::from_millis(milliseconds.value())
}

/// The ranges of the file fit into 32 bits.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
