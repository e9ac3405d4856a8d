//! First packets of QUIC (RFC 9000 section 17.2.2), by the hundred thousand.
//!
//! A client of quiche makes one. Its protection, whose keys come from the connection ID that anybody can read (RFC 9001
//! section 5.2), is taken off, and what was under it is sealed again for other connection IDs: so each is as good as
//! the first, and costs a hundredth of a handshake.
//!
//! Owns: both directions of that protection. Does not own: sending ([`crate::flood`]).

use std::net::{Ipv4Addr, SocketAddr};

use aws_lc_rs::aead::quic::{AES_128, HeaderProtectionKey};
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

/// The least bytes of a datagram with a first packet (RFC 9000 section 14.1).
pub const DATAGRAM_BYTES_MIN: usize = 1200;

/// RFC 9001 section 5.2.
const SALT: [u8; 20] = [
    0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc,
    0xbb, 0x7f, 0x0a,
];
const TAG_BYTES: usize = 16;
const SAMPLE_BYTES: usize = 16;
/// Bytes of a packet number, as it is sealed here; also how far behind its begin the sample starts.
const NUMBER_BYTES: usize = 4;
const HEADER_FORM_AND_TYPE: u8 = 0xc0;

/// What a client's first packet says, without its protection.
#[derive(Clone, Debug)]
pub struct Initial {
    /// The client's connection ID, which its ClientHello repeats.
    scid: Vec<u8>,
    /// A CRYPTO frame with the ClientHello.
    frames: Vec<u8>,
}

impl Initial {
    /// What a client says that asks for `name`.
    ///
    /// # Panics
    /// When quiche makes another packet than a client does.
    pub fn new(name: &str) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        // A key of X25519MLKEM768 would not fit into one datagram.
        let mut config = crate::h3::config_with(|tls| tls.set_curves_list("X25519").expect("a curve"));
        let scid = quiche::ConnectionId::from_ref(b"a spoofed client");
        let mut quic =
            quiche::connect(Some(name), &scid, address, address, &mut config).expect("a connection");
        let mut packet = [0; DATAGRAM_BYTES_MIN];
        let (length, _) = quic.send(&mut packet).expect("a first packet");
        Self::open(&packet[..length])
    }

    #[track_caller]
    fn open(packet: &[u8]) -> Self {
        let (dcid, rest) = connection_id(&packet[5..]);
        let (scid, rest) = connection_id(rest);
        let [0, high, low, ..] = *rest else { panic!("a token, or nothing") };
        assert_eq!(high & 0xc0, 0x40, "a length of two bytes");
        let (length, rest) = (usize::from(u16::from_be_bytes([high & 0x3f, low])), &rest[3..]);
        let keys = Keys::of_client(dcid);
        let mask = keys.mask(&rest[NUMBER_BYTES..NUMBER_BYTES + SAMPLE_BYTES]);
        let first = packet[0] ^ mask[0] & 0x0f;
        let number_bytes = usize::from(first & 0x03) + 1;
        let at = packet.len() - rest.len();
        let mut header = packet[..at + number_bytes].to_vec();
        header[0] = first;
        header[at..].iter_mut().zip(&mask[1..]).for_each(|(byte, mask)| *byte ^= mask);
        assert!(header[at..].iter().all(|byte| *byte == 0), "the first packet has number 0");
        let mut sealed = rest[number_bytes..length].to_vec();
        let opened = keys.aead.open_in_place(keys.nonce(), Aad::from(header), &mut sealed);
        let frames = opened.expect("the keys are right");
        // CRYPTO (RFC 9000 section 19.6) at offset 0, with a length of two bytes; PADDING follows.
        let [6, 0, high, low, ..] = *frames else { panic!("another frame: {:?}", &frames[..4]) };
        assert_eq!(high & 0xc0, 0x40, "a length of two bytes");
        let end = 4 + usize::from(u16::from_be_bytes([high & 0x3f, low]));
        Self { scid: scid.to_vec(), frames: frames[..end].to_vec() }
    }

    /// A datagram of `bytes` that says it to `dcid`.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn sealed(&self, dcid: &[u8], bytes: usize) -> Vec<u8> {
        let keys = Keys::of_client(dcid);
        let mut packet = vec![HEADER_FORM_AND_TYPE | (NUMBER_BYTES as u8 - 1), 0, 0, 0, 1, dcid.len() as u8];
        packet.extend(dcid);
        packet.push(self.scid.len() as u8);
        packet.extend(&self.scid);
        // No token, and as much as there is.
        packet.push(0);
        let length = bytes.checked_sub(packet.len() + 2).expect("room for the header");
        packet.extend((0x4000 | length as u16).to_be_bytes());
        let at = packet.len();
        packet.extend([0; NUMBER_BYTES]);
        let mut sealed = self.frames.clone();
        assert!(sealed.len() <= length - NUMBER_BYTES - TAG_BYTES, "{bytes} bytes are too few");
        sealed.resize(length - NUMBER_BYTES - TAG_BYTES, 0);
        let key = &keys.aead;
        key.seal_in_place_append_tag(keys.nonce(), Aad::from(&packet), &mut sealed).expect("a short packet");
        let mask = keys.mask(&sealed[..SAMPLE_BYTES]);
        packet[0] ^= mask[0] & 0x0f;
        packet[at..].iter_mut().zip(&mask[1..]).for_each(|(byte, mask)| *byte ^= mask);
        packet.extend(sealed);
        packet
    }
}

/// A connection ID behind its length, and what follows.
fn connection_id(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = bytes.split_first().expect("a long header");
    rest.split_at(usize::from(*length))
}

/// The keys of a client's first packets.
struct Keys {
    aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
    header: HeaderProtectionKey,
}

impl Keys {
    fn of_client(dcid: &[u8]) -> Self {
        let common = Salt::new(HKDF_SHA256, &SALT).extract(dcid);
        let secret = Prk::new_less_safe(HKDF_SHA256, &expand::<32>(&common, "client in"));
        let key = UnboundKey::new(&AES_128_GCM, &expand::<16>(&secret, "quic key")).expect("16 bytes");
        let header = HeaderProtectionKey::new(&AES_128, &expand::<16>(&secret, "quic hp")).expect("16 bytes");
        Self { aead: LessSafeKey::new(key), iv: expand(&secret, "quic iv"), header }
    }

    /// That of packet number 0.
    fn nonce(&self) -> Nonce {
        Nonce::assume_unique_for_key(self.iv)
    }

    fn mask(&self, sample: &[u8]) -> [u8; 5] {
        self.header.new_mask(sample).expect("16 bytes")
    }
}

/// HKDF-Expand-Label (RFC 8446 section 7.1) without a context.
fn expand<const BYTES: usize>(secret: &Prk, label: &str) -> [u8; BYTES] {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let label = format!("tls13 {label}");
    let info: [&[u8]; 4] = [&(BYTES as u16).to_be_bytes(), &[label.len() as u8], label.as_bytes(), &[0]];
    let mut key = [0; BYTES];
    secret.expand(&info, Length(BYTES)).and_then(|okm| okm.fill(&mut key)).expect("a short key");
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9001 appendix A.1.
    #[test]
    fn keys_are_those_of_the_standard() {
        let common = Salt::new(HKDF_SHA256, &SALT).extract(&[0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08]);
        let secret = Prk::new_less_safe(HKDF_SHA256, &expand::<32>(&common, "client in"));
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(&expand::<16>(&secret, "quic key")), "1f369613dd76d5467730efcbe3b1a22d");
        assert_eq!(hex(&expand::<12>(&secret, "quic iv")), "fa044b2f42a3fd3b46fb255c");
        assert_eq!(hex(&expand::<16>(&secret, "quic hp")), "9f50449e04a0e810283a1e9933adedd2");
    }

    #[test]
    fn what_was_sealed_again_says_the_same() {
        let initial = Initial::new("edge.test");
        for (dcid, bytes) in [(&b"of eight"[..], 1200), (b"one of twenty bytes.", 1452)] {
            let datagram = initial.sealed(dcid, bytes);
            assert_eq!(datagram.len(), bytes);
            let again = Initial::open(&datagram);
            assert_eq!((again.scid, again.frames), (initial.scid.clone(), initial.frames.clone()));
        }
    }
}
