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

/// The table of one listener.
#[derive(Debug, Default)]
pub struct Certificates {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By what follows `*`, such as `.example.com`.
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
    default: Vec<Arc<CertifiedKey>>,
}

impl Certificates {
    /// The table of certificates in the order of the configuration.
    pub fn new(certificates: &[Named]) -> Self {
        let mut table = Self::default();
        for Named { key, names } in certificates {
            for name in names {
                let (map, name) = match name.strip_prefix('*') {
                    Some(suffix) => (&mut table.wildcard, suffix),
                    None => (&mut table.exact, name.as_str()),
                };
                map.entry(name.to_owned()).or_default().push(Arc::clone(key));
            }
        }
        if let Some(first) = certificates.first() {
            let shares = |other: &&Named| other.names.iter().any(|name| first.names.contains(name));
            table.default.push(Arc::clone(&first.key));
            table
                .default
                .extend(certificates.iter().skip(1).filter(shares).map(|other| Arc::clone(&other.key)));
        }
        let lists = table.exact.values_mut().chain(table.wildcard.values_mut());
        lists.chain([&mut table.default]).for_each(|list| list.sort_by_key(|key| cost(key)));
        table
    }

    /// The candidates for a name, cheapest first. `name` is lower case.
    fn candidates(&self, name: Option<&str>) -> &[Arc<CertifiedKey>] {
        let named = name.and_then(|name| {
            let below = name.find('.').and_then(|dot| name.get(dot..));
            self.exact.get(name).or_else(|| self.wildcard.get(below?))
        });
        named.unwrap_or(&self.default)
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
        let candidates = self.candidates(name.as_deref()).iter();
        let chosen = candidates.chain(&self.default).find(fits).cloned();
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
