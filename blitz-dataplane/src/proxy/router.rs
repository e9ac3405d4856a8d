//! Which route takes a request.
//!
//! Hosts: an exact match, then the longest wildcard suffix, then the routes for any host. Within a
//! host, paths are matched segment by segment in a tree: a literal goes before a parameter, and a
//! longer prefix before a shorter one. A host whose routes do not take the path falls through to the
//! next. The cost is that of the path's segments, not of the number of routes.
//!
//! Owns: the tree. Does not own: the patterns' syntax (`blitz_config::pattern`), or what a route does.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use blitz_config::model::{HostPattern, PathSegment, Route};

use crate::exchange::{Method, authority};

/// What the table says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// This route (index into the configuration's routes) takes it.
    Route(usize),
    /// Routes take the path, but none the method. [`Router::allowed`] lists theirs.
    MethodNotAllowed,
    /// No route takes it.
    None,
}

/// The compiled routes.
#[derive(Debug, Default)]
pub struct Router {
    exact: HashMap<Box<[u8]>, Node>,
    /// By suffix with its leading dot.
    suffix: HashMap<Box<[u8]>, Node>,
    any: Option<Node>,
    /// One route takes everything: the answer without a look at the request.
    catch_all: Option<usize>,
}

#[derive(Debug, Default)]
struct Node {
    literals: HashMap<Box<[u8]>, Node>,
    param: Option<Box<Node>>,
    /// Routes that end here.
    ends: Vec<Target>,
    /// Routes that take all that is left.
    rest: Vec<Target>,
}

#[derive(Debug)]
struct Target {
    route: usize,
    /// Empty: every method.
    methods: Vec<Method>,
}

impl Router {
    /// Compiles the routes of a validated configuration.
    pub fn new(routes: &[Route]) -> Self {
        let mut router = Self::default();
        for (index, route) in routes.iter().enumerate() {
            let root = match &route.host {
                HostPattern::Any => router.any.get_or_insert_default(),
                HostPattern::Exact(host) => router.exact.entry(host.as_bytes().into()).or_default(),
                HostPattern::Suffix(suffix) => router.suffix.entry(suffix.as_bytes().into()).or_default(),
            };
            let mut node = root;
            let mut takes_rest = false;
            for segment in &route.path.segments {
                match segment {
                    PathSegment::Literal(text) => {
                        node = node.literals.entry(text.as_bytes().into()).or_default()
                    }
                    PathSegment::Param(_) => node = node.param.get_or_insert_default(),
                    PathSegment::Rest(_) => takes_rest = true,
                }
            }
            let methods =
                route.methods.iter().filter_map(|name| Method::from_bytes(name.as_bytes())).collect();
            let target = Target { route: index, methods };
            if takes_rest { node.rest.push(target) } else { node.ends.push(target) }
        }
        if let ([_], Some(Node { rest, .. })) = (routes, &router.any)
            && let [Target { route, methods }] = rest.as_slice()
            && methods.is_empty()
        {
            router.catch_all = Some(*route);
        }
        router
    }

    /// Looks a request up. `host` may carry a port and be in any case; `path` is without its query.
    pub fn find(&self, host: &[u8], path: &[u8], method: Method) -> Match {
        if let Some(route) = self.catch_all
            && path.first() == Some(&b'/')
        {
            return Match::Route(route);
        }
        let mut refused = false;
        let mut found = None;
        self.each_root(host, |root| {
            let visit = |target: &Target| {
                let takes = target.methods.is_empty() || target.methods.contains(&method);
                refused |= !takes;
                if takes {
                    found = Some(target.route);
                }
                takes
            };
            root.walk(path, visit)
        });
        match found {
            Some(route) => Match::Route(route),
            None if refused => Match::MethodNotAllowed,
            None => Match::None,
        }
    }

    /// The methods that routes for this path take, for `Allow` (RFC 9110 section 10.2.1).
    pub fn allowed(&self, host: &[u8], path: &[u8]) -> Vec<Method> {
        let mut allowed: Vec<Method> = Vec::new();
        self.each_root(host, |root| {
            root.walk(path, |target| {
                for method in &target.methods {
                    if !allowed.contains(method) {
                        allowed.push(*method);
                    }
                }
                false
            })
        });
        allowed
    }

    /// Visits the trees that stand for `host`, most specific first, until `visit` is satisfied.
    fn each_root(&self, host: &[u8], mut visit: impl FnMut(&Node) -> bool) {
        if !self.exact.is_empty() || !self.suffix.is_empty() {
            // A valid authority is at most 259 bytes.
            let mut lower = [0u8; authority::BYTES_MAX];
            let (name, _) = authority::split(host);
            let name = name.strip_suffix(b".").unwrap_or(name);
            if let Some(lower) = lower.get_mut(..name.len()) {
                lower.copy_from_slice(name);
                lower.make_ascii_lowercase();
                if self.exact.get(&*lower).is_some_and(&mut visit) {
                    return;
                }
                if !self.suffix.is_empty() {
                    let dots = lower.iter().enumerate().filter(|(at, byte)| *at > 0 && **byte == b'.');
                    for (at, _) in dots {
                        if self.suffix.get(&lower[at..]).is_some_and(&mut visit) {
                            return;
                        }
                    }
                }
            }
        }
        if let Some(any) = &self.any {
            visit(any);
        }
    }
}

impl Node {
    /// Visits the routes that take `path`, most specific first, until `visit` returns true.
    fn walk(&self, path: &[u8], mut visit: impl FnMut(&Target) -> bool) -> bool {
        match path.split_first() {
            Some((b'/', rest)) => self.descend(Some(rest), &mut visit),
            // `*` of OPTIONS, and nothing else without a slash, reaches no path route.
            _ => false,
        }
    }

    /// `rest` is what follows the slash of the last segment; absent when the path has ended.
    /// Recursion is bounded by the depth of the tree: 64 segments.
    fn descend(&self, rest: Option<&[u8]>, visit: &mut impl FnMut(&Target) -> bool) -> bool {
        if let Some(rest) = rest {
            let (segment, after) = match memchr::memchr(b'/', rest) {
                Some(slash) => (&rest[..slash], Some(&rest[slash + 1..])),
                None => (rest, None),
            };
            if let Some(node) = self.literals.get(segment)
                && node.descend(after, visit)
            {
                return true;
            }
            if !segment.is_empty()
                && let Some(node) = &self.param
                && node.descend(after, visit)
            {
                return true;
            }
            // A prefix ends at a slash: `/a/*rest` takes `/a/` and not `/a`.
            return self.rest.iter().any(visit);
        }
        self.ends.iter().any(visit)
    }
}

#[cfg(test)]
mod tests {
    use blitz_config::Config;
    use blitz_config::{Format, Overrides};

    use super::*;

    fn router(routes: &[(&str, &str, &[&str])]) -> Router {
        let mut text = String::from("[upstreams.u]\nendpoints = [{address = \"127.0.0.1:1\"}]\n");
        text += "[[listeners]]\nname = \"l\"\naddress = \"127.0.0.1:8080\"\nprotocols = [\"h1\"]\n";
        for (host, path, methods) in routes {
            text += &format!(
                "[[routes]]\nhost = \"{host}\"\npath = \"{path}\"\nmethods = {methods:?}\nupstream = \"u\"\n"
            );
        }
        let text = text.replace("methods = []\n", "");
        let config: Config = blitz_config::load(&text, Format::Toml, "test", &Overrides::default()).unwrap();
        Router::new(&config.routes)
    }

    #[test]
    fn the_most_specific_path_wins_whatever_the_order() {
        let router = router(&[
            ("*", "/*rest", &[]),
            ("*", "/users/*rest", &[]),
            ("*", "/users/{id}", &[]),
            ("*", "/users/me", &[]),
            ("*", "/users/{id}/posts", &[]),
            ("*", "/static/", &[]),
        ]);
        let find = |path: &str| router.find(b"h", path.as_bytes(), Method::Get);
        assert_eq!(find("/"), Match::Route(0));
        assert_eq!(find("/other"), Match::Route(0));
        assert_eq!(find("/users"), Match::Route(0), "a prefix ends at a slash");
        assert_eq!(find("/users/"), Match::Route(1), "a parameter is not empty");
        assert_eq!(find("/users/7"), Match::Route(2));
        assert_eq!(find("/users/me"), Match::Route(3));
        assert_eq!(find("/users/7/posts"), Match::Route(4));
        assert_eq!(
            find("/users/me/posts"),
            Match::Route(4),
            "the literal led nowhere: back to the parameter"
        );
        assert_eq!(find("/users/7/posts/1"), Match::Route(1));
        assert_eq!(find("/static/"), Match::Route(5));
        assert_eq!(find("/static/x"), Match::Route(0));
        assert_eq!(find("*"), Match::None);
    }

    #[test]
    fn hosts_go_exact_then_longest_suffix_then_any() {
        let router = router(&[
            ("a.example.com", "/*rest", &[]),
            ("*.example.com", "/*rest", &[]),
            ("*.b.example.com", "/*rest", &[]),
            ("*", "/*rest", &[]),
        ]);
        let find = |host: &str| router.find(host.as_bytes(), b"/x", Method::Get);
        assert_eq!(find("A.Example.com:8080"), Match::Route(0));
        assert_eq!(find("a.example.com."), Match::Route(0));
        assert_eq!(find("x.example.com"), Match::Route(1));
        assert_eq!(find("x.b.example.com"), Match::Route(2));
        assert_eq!(find("example.com"), Match::Route(3));
        assert_eq!(find(""), Match::Route(3));
        assert_eq!(find(&"x".repeat(5000)), Match::Route(3));
    }

    #[test]
    fn methods_split_a_path_and_a_wrong_one_is_told_apart() {
        let router =
            router(&[("*", "/a", &["GET", "HEAD"]), ("*", "/a", &["POST"]), ("*", "/b/*rest", &["PUT"])]);
        assert_eq!(router.find(b"h", b"/a", Method::Post), Match::Route(1));
        assert_eq!(router.find(b"h", b"/a", Method::Delete), Match::MethodNotAllowed);
        assert_eq!(router.allowed(b"h", b"/a"), [Method::Get, Method::Head, Method::Post]);
        assert_eq!(router.find(b"h", b"/c", Method::Delete), Match::None);
    }
}
