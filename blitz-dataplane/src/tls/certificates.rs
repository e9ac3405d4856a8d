//! Which certificate a client gets.
//!
//! Owns: the table from names to certificates and the choice among several for one name. Does not own: reading them
//! (see [`super::material`]).
//!
//! The name that the client asks for (SNI, RFC 6066 section 3) is looked up exactly, then as a wildcard of its first
//! label (RFC 9525 section 6.3: one label, the whole of it); else the first certificate of the configuration is the
//! default, together with all that share a name with it. Among several, the first that the client's signature
//! schemes can verify, the cheapest to sign with first.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureAlgorithm;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// A certificate with its key and the names that it is good for.
#[derive(Clone, Debug)]
pub struct Named {
    /// Chain, key, OCSP response.
    pub key: Arc<CertifiedKey>,
    /// DNS names of the certificate, lower case, some with `*.` in front.
    pub names: Vec<String>,
}

/// The table of one listener: `T` is a certificate with its key, as a library has it.
#[derive(Debug)]
pub struct Table<T> {
    exact: HashMap<String, Vec<Arc<T>>>,
    /// By what follows `*`, such as `.example.com`.
    wildcard: HashMap<String, Vec<Arc<T>>>,
    default: Vec<Arc<T>>,
}

/// The table for rustls.
pub type Certificates = Table<CertifiedKey>;

impl<T> Table<T> {
    /// The table of certificates and their names, in the order of the configuration. Among several for one name, those
    /// that `cost` less come first.
    pub fn new<'a>(
        certificates: impl IntoIterator<Item = (Arc<T>, &'a [String])>,
        cost: impl Fn(&T) -> u8,
    ) -> Self {
        let mut table = Self { exact: HashMap::new(), wildcard: HashMap::new(), default: Vec::new() };
        let mut first: Option<&[String]> = None;
        for (key, names) in certificates {
            for name in names {
                let (map, name) = match name.strip_prefix('*') {
                    Some(suffix) => (&mut table.wildcard, suffix),
                    None => (&mut table.exact, name.as_str()),
                };
                map.entry(name.to_owned()).or_default().push(Arc::clone(&key));
            }
            match first {
                None => {
                    first = Some(names);
                    table.default.push(key);
                }
                Some(first) if names.iter().any(|name| first.contains(name)) => table.default.push(key),
                Some(_) => {}
            }
        }
        let lists = table.exact.values_mut().chain(table.wildcard.values_mut());
        lists.chain([&mut table.default]).for_each(|list| list.sort_by_key(|key| cost(key)));
        table
    }

    /// The candidates for a name, cheapest first. `name` is lower case.
    fn candidates(&self, name: Option<&str>) -> &[Arc<T>] {
        let named = name.and_then(|name| {
            let below = name.find('.').and_then(|dot| name.get(dot..));
            self.exact.get(name).or_else(|| self.wildcard.get(below?))
        });
        named.unwrap_or(&self.default)
    }

    /// The first that is good for the name, or of the defaults, and `fits`. `name` is lower case.
    pub fn choose(&self, name: Option<&str>, fits: impl Fn(&&Arc<T>) -> bool) -> Option<&Arc<T>> {
        self.candidates(name).iter().chain(&self.default).find(fits)
    }
}

impl Certificates {
    /// The table of certificates in the order of the configuration.
    pub fn of(certificates: &[Named]) -> Self {
        let each = certificates.iter().map(|Named { key, names }| (Arc::clone(key), names.as_slice()));
        Self::new(each, cost)
    }
}

/// An ECDSA P-256 signature costs a fraction of an RSA one.
fn cost(key: &CertifiedKey) -> u8 {
    match key.key.algorithm() {
        SignatureAlgorithm::ECDSA => 0,
        SignatureAlgorithm::ED25519 => 1,
        _ => 2,
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let schemes = hello.signature_schemes();
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        let chosen = self.choose(name.as_deref(), fits).cloned();
        ASKED.with_borrow_mut(|asked| *asked = name);
        chosen
    }
}

thread_local! {
    /// The name that was asked for last: a connection without buffers does not tell it afterwards.
    static ASKED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Takes the name that the ClientHello which this thread has processed last asked for.
pub(super) fn take_asked_name() -> Option<String> {
    ASKED.with_borrow_mut(Option::take)
}
