//! TLS: everything that is said to rustls is said here, and what is said to BoringSSL ([`quic`]).
//!
//! Owns: certificates and who gets which ([`material`], [`certificates`]), whom endpoints have to be ([`upstream`]),
//! the files that all this comes from ([`files`]), session tickets ([`tickets`]), early data (`early`), the handshake
//! of either end ([`handshake`], [`connector`]) and the sealed stream ([`stream`]). Does not own: which listener or
//! endpoint has TLS (`blitz_config`), or what is spoken inside (`http1/`, `http2/`).
//!
//! A connection uses rustls without its buffers: bytes are opened from where they were received and sealed into
//! what will be sent, so that an idle connection holds keys and nothing else.
#![forbid(unsafe_code)]

mod agreed;
pub mod certificates;
pub mod connector;
pub(crate) mod early;
pub mod files;
pub mod handshake;
pub mod key_log;
pub mod material;
pub mod quic;
pub mod stream;
mod system_store;
pub mod tickets;
pub mod upstream;
mod validity;

#[cfg(test)]
mod testing;

pub use connector::Connector;
pub use files::Files;
pub use handshake::{Acceptor, Context, Diagnosis, HandshakeError, Handshaken};
pub use material::TlsMaterial;
pub use stream::{TlsClientStream, TlsStream};
pub use upstream::UpstreamTls;

use std::sync::Arc;

pub use rustls::KeyLog;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// The algorithms that are offered: those of rustls on aws-lc-rs, the post-quantum hybrid first.
fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
    Arc::new(CryptoProvider {
        kx_groups: vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1],
        ..aws_lc_rs::default_provider()
    })
}
