//! What the bindings of BoringSSL leave out, or to their caller to get right: session tickets under keys of ours, and
//! for which sessions early data is taken.
//!
//! A ticket is `name (16) | IV (16) | session, AES-256-CBC | HMAC-SHA256 over all before it`, which is the form of
//! RFC 5077 section 4 and BoringSSL's to write and to check. Owns: giving it keys. Does not own: which, and which
//! connections (`crate::tls`).

use boring::error::ErrorStack;
use boring::hash::MessageDigest;
use boring::hmac::HmacCtxRef;
use boring::ssl::{SslContextBuilder, SslRef, TicketKeyCallbackResult};
use boring::symm::{Cipher, CipherCtxRef};
use foreign_types_shared::ForeignTypeRef;

use super::wipe;

/// Bytes of a key's name, which a ticket begins with.
pub const NAME_BYTES: usize = 16;

/// Bytes of the initial vector: one block of AES.
const IV_BYTES: usize = 16;

/// What seals one ticket.
pub struct TicketKey {
    /// For AES-256-CBC.
    pub cipher: [u8; 32],
    /// For HMAC-SHA256.
    pub mac: [u8; 32],
}

impl Drop for TicketKey {
    fn drop(&mut self) {
        wipe::wipe(&mut self.cipher);
        wipe::wipe(&mut self.mac);
    }
}

/// Where keys come from.
pub trait TicketKeys: Send + Sync + 'static {
    /// The key that new tickets are sealed with, and its name; `None`: no ticket is given out.
    fn current(&self) -> Option<([u8; NAME_BYTES], TicketKey)>;

    /// The key of this name; `None`: the handshake is a full one.
    fn named(&self, name: &[u8; NAME_BYTES]) -> Option<TicketKey>;

    /// Seconds for which a client may keep a ticket.
    fn lifetime_seconds(&self) -> u32;
}

/// Has the connections of a context give out and take tickets under `keys`.
pub fn set_ticket_keys(builder: &mut SslContextBuilder, keys: impl TicketKeys) {
    // SAFETY: the pointer is that of the builder's live context, which nobody else has yet.
    unsafe { boring_sys::SSL_CTX_set_session_psk_dhe_timeout(builder.as_ptr(), keys.lifetime_seconds()) };
    let callback = move |_: &SslRef,
                         name: &mut [u8; NAME_BYTES],
                         iv: &mut [u8; IV_BYTES],
                         cipher: &mut CipherCtxRef,
                         mac: &mut HmacCtxRef,
                         is_new: bool| {
        let set =
            if is_new { seal(&keys, name, iv, cipher, mac) } else { open(&keys, name, iv, cipher, mac) };
        // Without a key: no ticket, or a full handshake. A failure in here is no reason to refuse a client either.
        if set.is_some() { TicketKeyCallbackResult::Success } else { TicketKeyCallbackResult::Noop }
    };
    // SAFETY: whenever the callback says that it succeeded it has set up both contexts with a cipher, a digest and
    // their keys, and for a new ticket written name and IV; when it does not, BoringSSL uses none of them.
    unsafe { builder.set_ticket_key_callback(callback) };
}

/// Says for which sessions this connection may take early data: those that were begun under the same `context`. Has
/// to be called before the handshake; quiche's own choice is the same for all.
///
/// # Errors
/// No memory is left.
pub fn set_early_data_context(ssl: &mut SslRef, context: &[u8]) -> Result<(), ErrorStack> {
    // SAFETY: the pointer is that of a live connection that nobody else uses now, and `context` is a slice of the
    // length given, which is copied.
    let set =
        unsafe { boring_sys::SSL_set_quic_early_data_context(ssl.as_ptr(), context.as_ptr(), context.len()) };
    if set == 1 { Ok(()) } else { Err(ErrorStack::get()) }
}

fn seal(
    keys: &impl TicketKeys,
    name: &mut [u8; NAME_BYTES],
    iv: &mut [u8; IV_BYTES],
    cipher: &mut CipherCtxRef,
    mac: &mut HmacCtxRef,
) -> Option<()> {
    let (current, key) = keys.current()?;
    *name = current;
    wipe::random(iv).ok()?;
    done(cipher.init_encrypt(&Cipher::aes_256_cbc(), &key.cipher, iv))?;
    done(mac.init(&key.mac, &MessageDigest::sha256()))
}

fn open(
    keys: &impl TicketKeys,
    name: &[u8; NAME_BYTES],
    iv: &[u8; IV_BYTES],
    cipher: &mut CipherCtxRef,
    mac: &mut HmacCtxRef,
) -> Option<()> {
    let key = keys.named(name)?;
    done(cipher.init_decrypt(&Cipher::aes_256_cbc(), &key.cipher, iv))?;
    done(mac.init(&key.mac, &MessageDigest::sha256()))
}

fn done(result: Result<(), ErrorStack>) -> Option<()> {
    result.map_err(|error| log::error!("BoringSSL refuses a ticket key: {error}")).ok()
}
