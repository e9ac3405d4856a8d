//! What a handshake has agreed on, in the words of the log.
//!
//! Owns: the part of a line that both ends of a connection share. Does not own: when such a line is written.
#![forbid(unsafe_code)]

use rustls::{CommonState, HandshakeKind, ProtocolVersion};

/// Whether the handshake resumed a session.
pub(super) fn is_resumed(state: &CommonState) -> bool {
    state.handshake_kind() == Some(HandshakeKind::Resumed)
}

/// Whether TLS 1.2 is spoken.
pub(super) fn is_tls12(state: &CommonState) -> bool {
    state.protocol_version() == Some(ProtocolVersion::TLSv1_2)
}

/// Version, group, cipher, protocol inside, the name that was asked for, and whether a session was resumed.
pub(super) fn terms(state: &CommonState, name: &str) -> String {
    let version = match state.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "1.3",
        Some(ProtocolVersion::TLSv1_2) => "1.2",
        _ => "?",
    };
    let group = state.negotiated_key_exchange_group().map(|group| group.name());
    let group = group.map_or_else(|| "-".to_owned(), |group| format!("{group:?}"));
    let cipher = state.negotiated_cipher_suite().map(|suite| suite.suite());
    let cipher = cipher.map_or_else(|| "-".to_owned(), |cipher| format!("{cipher:?}"));
    let alpn = state.alpn_protocol().map_or_else(|| "-".into(), String::from_utf8_lossy);
    let resumed = if is_resumed(state) { "yes" } else { "no" };
    format!("version={version} group={group} cipher={cipher} alpn={alpn} sni={name} resumed={resumed}")
}
