//! Who may use the admin API over a browser. Pure.
//!
//! Owns: the checks against other web pages in the operator's browser. Does not own: routes (see
//! [`super::admin`]).
//!
//! The API has no password; it listens on loopback. A page on the web can still make a browser on this
//! machine send requests to it: directly (then the browser adds `Origin`), or under a name of its own that
//! resolves to 127.0.0.1 (then `Host` is that name). The first is refused where it would change something,
//! the second on loopback always.
#![forbid(unsafe_code)]

use std::net::IpAddr;

/// Why a request is refused, or `None`. `local` is where the API listens.
pub(super) fn refusal(
    local: IpAddr,
    host: Option<&str>,
    origin: Option<&str>,
    changes: bool,
) -> Option<&'static str> {
    if changes && origin.is_some_and(|origin| !is_same_origin(origin, host)) {
        return Some("a web page of another origin may not change anything here");
    }
    if local.to_canonical().is_loopback() && !host.is_some_and(is_local_host) {
        return Some("on loopback the Host field must be an address or localhost");
    }
    None
}

fn is_same_origin(origin: &str, host: Option<&str>) -> bool {
    origin.strip_prefix("http://").is_some_and(|origin| Some(origin) == host)
}

/// Whether `host` (with or without a port) is a literal address or localhost.
fn is_local_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_the_web_are_kept_out_and_tools_are_not() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        for host in ["127.0.0.1:9900", "localhost:9900", "LOCALHOST", "[::1]:9900", "127.0.0.1"] {
            assert_eq!(refusal(loopback, Some(host), None, true), None, "{host}");
        }
        assert!(refusal(loopback, Some("evil.example:9900"), None, false).is_some());
        assert!(refusal(loopback, None, None, false).is_some());
        assert!(refusal(loopback, Some("[::1"), None, false).is_some());
        let wide = IpAddr::from([10, 0, 0, 1]);
        assert_eq!(refusal(wide, Some("gateway.internal:9900"), None, true), None);
        let own = Some("http://127.0.0.1:9900");
        assert_eq!(refusal(loopback, Some("127.0.0.1:9900"), own, true), None, "the live page itself");
        assert!(refusal(loopback, Some("127.0.0.1:9900"), Some("https://evil.example"), true).is_some());
        assert_eq!(refusal(loopback, Some("127.0.0.1:9900"), Some("https://evil.example"), false), None);
    }
}
