//! Headers of both versions: what is taken, what is refused, in every split.

use super::*;
use proptest::prelude::*;

fn header(version: Version, client: &str, bytes: usize) -> Result<Option<Header>, Refusal> {
    let client = (!client.is_empty()).then(|| client.parse().unwrap());
    Ok(Some(Header { version, client, bytes }))
}

/// A header of version 2.
fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend_from_slice(&[command, family]);
    bytes.extend_from_slice(&u16::try_from(block.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(block);
    bytes
}

fn v4_block(records: &[u8]) -> Vec<u8> {
    [&[192, 0, 2, 7, 10, 0, 0, 1, 0x9c, 0x40, 0x01, 0xbb], records].concat()
}

/// A header over IPv4 with the right checksum between two other records.
fn summed() -> Vec<u8> {
    let records = [&[0x04, 0, 2, 0, 0][..], &[TLV_CRC32C, 0, 4, 0, 0, 0, 0], &[0x02, 0, 1, b'a']].concat();
    let mut bytes = v2(0x21, 0x11, &v4_block(&records));
    let crc = !crc32c(!0, &bytes);
    let place = FIXED_BYTES + 12 + 5 + 3;
    bytes[place..place + 4].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// What a reader makes of `bytes` that arrive in pieces which end at `cuts`, and at the end of all.
fn in_pieces(bytes: &[u8], cuts: &[usize]) -> Result<Option<Header>, Refusal> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.push(bytes.len());
    cuts.sort_unstable();
    for cut in cuts {
        match parse(&bytes[..cut]) {
            Ok(None) => {}
            known => return known,
        }
    }
    Ok(None)
}

#[test]
fn lines_of_version_1() {
    for (line, client) in [
        ("PROXY TCP4 192.0.2.7 10.0.0.1 40000 443\r\n", "192.0.2.7:40000"),
        ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255:65535"),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 0 0\r\n", "192.0.2.7:0"),
        ("PROXY TCP6 2001:DB8::1 ::1 40000 443\r\n", "[2001:db8::1]:40000"),
        ("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n", "192.0.2.7:1"),
        ("PROXY UNKNOWN\r\n", ""),
        (
            "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535 and whatever \u{e9} \n \r comes in here\r\n",
            "",
        ),
    ] {
        let expected = header(Version::V1, client, line.len());
        assert_eq!(parse(line.as_bytes()), expected, "{line:?}");
        assert_eq!(parse(format!("{line}GET / HTTP/1.1\r\n\r\n").as_bytes()), expected, "{line:?}");
        (0..line.len())
            .for_each(|cut| assert_eq!(parse(&line.as_bytes()[..cut]), Ok(None), "{line:?} {cut}"));
    }
}

#[test]
fn lines_that_are_refused() {
    use Refusal::{Address, Line, LineTooLong, NoHeader, Port};
    for (line, why) in [
        ("GET / HTTP/1.1\r\n", NoHeader),
        ("proxy TCP4", NoHeader),
        ("PROXY\tTCP4", NoHeader),
        ("\r\nPROXY TCP4", NoHeader),
        ("\x16\x03\x01", NoHeader),
        ("PROXY \r\n", Line),
        ("PROXY UNKNOWNX\r\n", Line),
        ("PROXY UDP4 192.0.2.7 10.0.0.1 1 2\r\n", Line),
        ("PROXY tcp4 192.0.2.7 10.0.0.1 1 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 1\r\n", Line),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 1 2 3\r\n", Line),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 1 2 \r\n", Line),
        ("PROXY TCP4  192.0.2.7 10.0.0.1 1 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7\t10.0.0.1 1 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 1 2\n\r\n", Port),
        ("PROXY TCP4 192.0.2.07 10.0.0.1 1 2\r\n", Address),
        ("PROXY TCP4 192.0.2 10.0.0.1 1 2\r\n", Address),
        ("PROXY TCP4 192.0.2.256 10.0.0.1 1 2\r\n", Address),
        ("PROXY TCP4 ::1 ::1 1 2\r\n", Address),
        ("PROXY TCP4 192.0.2.7 name 1 2\r\n", Address),
        ("PROXY TCP6 192.0.2.7 10.0.0.1 1 2\r\n", Address),
        ("PROXY TCP6 [::1] ::1 1 2\r\n", Address),
        ("PROXY TCP6 fe80::1%1 ::1 1 2\r\n", Address),
        ("PROXY TCP6 1::2::3 ::1 1 2\r\n", Address),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 01 2\r\n", Port),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 00 2\r\n", Port),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 +1 2\r\n", Port),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 -1 2\r\n", Port),
        ("PROXY TCP4 192.0.2.7 10.0.0.1  2\r\n", Port),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 65536 2\r\n", Port),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 1 65536\r\n", Port),
        (&format!("PROXY UNKNOWN {}\r\n", "x".repeat(107 - 15)), LineTooLong),
        (&"PROXY ".repeat(20), LineTooLong),
    ] {
        assert_eq!(parse(line.as_bytes()), Err(why), "{line:?}");
    }
    let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(107 - 16));
    assert_eq!(parse(longest.as_bytes()), header(Version::V1, "", 107));
    assert_eq!(parse(b"PROXY TCP4 \xff\r\n"), Err(Line));
}

#[test]
fn headers_of_version_2() {
    let v6: Vec<u8> = "2001:db8::7".parse::<Ipv6Addr>().unwrap().octets().into();
    let v6 = [&v6[..], &[0; 16], &[0x9c, 0x40, 0, 80]].concat();
    let mapped = "::ffff:192.0.2.7".parse::<Ipv6Addr>().unwrap().octets();
    let mapped = [&mapped[..], &[0; 16], &[0, 9, 0, 80]].concat();
    let alpn = [0x01, 0, 2, b'h', b'2'];
    for (bytes, client) in [
        (v2(0x21, 0x11, &v4_block(&[])), "192.0.2.7:40000"),
        (v2(0x21, 0x11, &v4_block(&alpn)), "192.0.2.7:40000"),
        (v2(0x21, 0x11, &v4_block(&[0x04, 0, 0])), "192.0.2.7:40000"),
        (v2(0x21, 0x21, &v6), "[2001:db8::7]:40000"),
        (v2(0x21, 0x21, &mapped), "192.0.2.7:9"),
        (v2(0x21, 0x21, &[&v6[..], &alpn].concat()), "[2001:db8::7]:40000"),
        (summed(), "192.0.2.7:40000"),
        // Nobody that could be used.
        (v2(0x21, 0x00, &[]), ""),
        (v2(0x21, 0x00, b"whatever"), ""),
        (v2(0x21, 0x12, &v4_block(&[])), ""),
        (v2(0x21, 0x22, &v6), ""),
        (v2(0x21, 0x31, &[0; 216]), ""),
        (v2(0x21, 0x32, &[0; 216]), ""),
        // LOCAL: whatever the block says, it is the sender's own connection.
        (v2(0x20, 0x00, &[]), ""),
        (v2(0x20, 0x11, &v4_block(&[])), ""),
        (v2(0x20, 0xff, b"whatever"), ""),
    ] {
        let expected = header(Version::V2, client, bytes.len());
        assert_eq!(parse(&bytes), expected, "{bytes:?}");
        assert_eq!(parse(&[&bytes[..], b"GET"].concat()), expected, "{bytes:?}");
        (0..bytes.len()).for_each(|cut| assert_eq!(parse(&bytes[..cut]), Ok(None), "{bytes:?} {cut}"));
    }
}

#[test]
fn headers_that_are_refused() {
    use Refusal::{Command, Family, Length, Record, TooLong, Version};
    for (bytes, why) in [
        (b"\r\n\r\n\0\r\nQUIT\r".to_vec(), Refusal::NoHeader),
        (b"\r\n\r\nGET / HTTP/1.1\r\n".to_vec(), Refusal::NoHeader),
        (v2(0x11, 0x11, &v4_block(&[])), Version),
        (v2(0x31, 0x11, &v4_block(&[])), Version),
        (v2(0x01, 0x11, &v4_block(&[])), Version),
        (v2(0x22, 0x11, &v4_block(&[])), Command),
        (v2(0x2f, 0x11, &v4_block(&[])), Command),
        (v2(0x21, 0x01, &v4_block(&[])), Family),
        (v2(0x21, 0x10, &v4_block(&[])), Family),
        (v2(0x21, 0x13, &v4_block(&[])), Family),
        (v2(0x21, 0x41, &[0; 300]), Family),
        (v2(0x21, 0x11, &[0; 11]), Length),
        (v2(0x21, 0x21, &[0; 35]), Length),
        (v2(0x21, 0x31, &[0; 215]), Length),
        (v2(0x21, 0x11, &v4_block(&[4])), Record),
        (v2(0x21, 0x11, &v4_block(&[4, 0])), Record),
        (v2(0x21, 0x11, &v4_block(&[4, 0, 2, 0])), Record),
        (v2(0x21, 0x11, &v4_block(&[3, 0, 3, 0, 0, 0])), Record),
        (v2(0x21, 0x11, &v4_block(&[3, 0, 4, 0, 0, 0, 0, 3, 0, 4, 0, 0, 0, 0])), Record),
        (v2(0x21, 0x11, &vec![0; HEADER_BYTES_MAX - FIXED_BYTES + 1]), TooLong),
        (v2(0x20, 0x00, &vec![0; 65_535]), TooLong),
    ] {
        assert_eq!(parse(&bytes), Err(why), "{bytes:?}");
    }
    let full = v2(0x20, 0x00, &vec![0; HEADER_BYTES_MAX - FIXED_BYTES]);
    assert_eq!(parse(&full), header(self::Version::V2, "", HEADER_BYTES_MAX));
}

#[test]
fn every_turned_bit_is_noticed_by_the_checksum() {
    // The check value of CRC-32/ISCSI.
    assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283);
    let good = summed();
    assert!(matches!(parse(&good), Ok(Some(_))));
    for bit in FIXED_BYTES * 8..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let outcome = parse(&bad);
        // A record that is no checksum any more checks nothing.
        let is_disguised = bit / 8 == FIXED_BYTES + 12 + 5;
        let is_longer = matches!(outcome, Err(Refusal::Record));
        assert!(is_disguised || is_longer || outcome == Err(Refusal::Checksum), "bit {bit}: {outcome:?}");
    }
}

/// Bytes near to headers of both versions, with something behind them.
fn near_headers() -> impl Strategy<Value = Vec<u8>> {
    let words = prop_oneof![
        "TCP4",
        "TCP6",
        "UNKNOWN",
        "192\\.0\\.2\\.[0-9]{1,3}",
        "[0-9a-f:]{2,8}",
        "[0-9]{1,6}",
        "[ -~]{0,9}"
    ];
    let line = proptest::collection::vec(words, 0..8)
        .prop_map(|words| format!("PROXY {}\r\n", words.join(" ")).into_bytes());
    let byte = || prop_oneof![Just(0_u8), Just(0x20), Just(0x21), Just(0x11), Just(0x31), any::<u8>()];
    let block = proptest::collection::vec(byte(), 0..300);
    let binary = (byte(), byte(), block).prop_map(|(command, family, block)| v2(command, family, &block));
    let raw = proptest::collection::vec(any::<u8>(), 0..64);
    let header = prop_oneof![4 => line, 4 => binary, 1 => raw, 1 => Just(summed())];
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..4_u8);
    (header, change, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(mut bytes, change, behind)| {
        let (place, byte, dice) = change;
        if dice == 0 && !bytes.is_empty() {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.extend_from_slice(&behind);
        bytes
    })
}

#[test]
fn a_header_for_nobody_is_local() {
    let mut bytes = Vec::new();
    write_v2(&mut bytes, None);
    assert_eq!(bytes, v2(0x20, 0x00, &[]));
    assert_eq!(parse(&bytes), header(Version::V2, "", bytes.len()));
}

#[test]
fn a_header_is_of_one_family() {
    for (client, local, family, bytes) in [
        ("192.0.2.7:40000", "10.0.0.1:443", 0x11, 28),
        ("[::ffff:192.0.2.7]:40000", "[::ffff:10.0.0.1]:443", 0x11, 28),
        ("[2001:db8::7]:40000", "[2001:db8::1]:443", 0x21, 52),
        ("[2001:db8::7]:40000", "10.0.0.1:443", 0x21, 52),
        ("192.0.2.7:40000", "[2001:db8::1]:443", 0x21, 52),
    ] {
        let mut written = Vec::new();
        write_v2(&mut written, Some((client.parse().unwrap(), local.parse().unwrap())));
        assert_eq!((written[13], written.len()), (family, bytes), "{client} {local}");
        assert_eq!(written[bytes - 4..], [0x9c, 0x40, 0x01, 0xbb], "{client} {local}");
    }
    let mut written = Vec::new();
    write_v2(&mut written, Some(("192.0.2.7:40000".parse().unwrap(), "10.0.0.1:443".parse().unwrap())));
    assert_eq!(written, v2(0x21, 0x11, &v4_block(&[])));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// However the bytes arrive, the answer is the same, and what is behind the header does not change it.
    #[test]
    fn any_split_gives_the_same_answer(
        bytes in near_headers(),
        cuts in proptest::collection::vec(any::<usize>(), 0..6),
        tail in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let whole = parse(&bytes);
        prop_assert_eq!(in_pieces(&bytes, &cuts), whole);
        let each: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(in_pieces(&bytes, &each), whole);
        if whole != Ok(None) {
            prop_assert_eq!(parse(&[bytes.as_slice(), tail.as_slice()].concat()), whole);
        }
        if let Ok(Some(header)) = whole {
            prop_assert!(header.bytes <= bytes.len() && header.bytes <= HEADER_BYTES_MAX);
            prop_assert_eq!(parse(&bytes[..header.bytes]), whole);
            prop_assert_eq!(parse(&bytes[..header.bytes - 1]), Ok(None));
        }
    }

    /// A reader that keeps no more than the bound always comes to an answer.
    #[test]
    fn the_bound_is_enough(bytes in near_headers(), filler in any::<u8>()) {
        let mut bytes = bytes;
        bytes.resize(HEADER_BYTES_MAX, filler);
        prop_assert_ne!(parse(&bytes), Ok(None));
    }

    /// What we write names the client to whoever reads it as we do, with anything behind it.
    #[test]
    fn what_is_sent_is_read(
        client: SocketAddr,
        local: SocketAddr,
        tail in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut bytes = Vec::new();
        write_v2(&mut bytes, Some((client, local)));
        let length = bytes.len();
        bytes.extend(tail);
        let named = SocketAddr::new(client.ip().to_canonical(), client.port());
        prop_assert_eq!(parse(&bytes), Ok(Some(Header { version: Version::V2, client: Some(named), bytes: length })));
    }

    /// What is written is what is read.
    #[test]
    fn clients_are_read_as_written(client: SocketAddr, port: u16, is_v2: bool) {
        let client = SocketAddr::new(client.ip(), client.port());
        let bytes = match (is_v2, client.ip()) {
            (false, ip) => {
                let family = if ip.is_ipv4() { "TCP4" } else { "TCP6" };
                format!("PROXY {family} {ip} {ip} {} {port}\r\n", client.port()).into_bytes()
            }
            (true, ip) => {
                let (family, ip) = match ip {
                    IpAddr::V4(ip) => (0x11, ip.octets().to_vec()),
                    IpAddr::V6(ip) => (0x21, ip.octets().to_vec()),
                };
                let ports = [client.port().to_be_bytes(), port.to_be_bytes()].concat();
                v2(0x21, family, &[&ip[..], &ip, &ports].concat())
            }
        };
        let expected = SocketAddr::new(client.ip().to_canonical(), client.port());
        prop_assert_eq!(parse(&bytes).unwrap().unwrap().client, Some(expected));
    }
}
