//! TLS: everything that is said to rustls is said here.
//!
//! Owns: certificates and who gets which ([`material`], [`certificates`]), the files that they come from
//! ([`files`]), session tickets ([`tickets`]), the server's handshake ([`handshake`]) and the sealed stream
//! ([`stream`]). Does not own: which listener has TLS (`blitz_config`), or what is spoken inside (`http1/`).
//!
//! A connection uses rustls without its buffers: bytes are opened from where they were received and sealed into
//! what will be sent, so that an idle connection holds keys and nothing else.
#![forbid(unsafe_code)]

pub mod certificates;
pub mod files;
pub mod handshake;
pub mod key_log;
pub mod material;
pub mod stream;
pub mod tickets;
mod validity;

pub use files::Files;
pub use handshake::{Acceptor, Context, HandshakeError, Handshaken};
pub use material::TlsMaterial;
pub use stream::TlsStream;

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
