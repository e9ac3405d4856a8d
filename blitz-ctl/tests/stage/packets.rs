//! Frames, octet by octet.

use std::net::IpAddr;

/// A frame under construction: what `ip` and the transport below it are told, and then [`Frame::build`].
#[derive(Clone)]
pub(crate) struct Frame {
    vlans: Vec<u16>,
    source: IpAddr,
    destination: IpAddr,
    options: usize,
    extensions: Vec<(u8, Vec<u8>)>,
    fragment: Option<(u16, bool)>,
    transport: Transport,
    content: Vec<u8>,
}

#[derive(Clone)]
enum Transport {
    Tcp { from: u16, to: u16, flags: u8 },
    Udp { from: u16, to: u16 },
    Other(u8),
}

/// Next header of IPv6 extension headers.
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const AUTHENTICATION: u8 = 51;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

impl Frame {
    fn new(source: &str, destination: &str, transport: Transport) -> Self {
        Self {
            vlans: Vec::new(),
            source: address(source),
            destination: address(destination),
            options: 0,
            extensions: Vec::new(),
            fragment: None,
            transport,
            content: Vec::new(),
        }
    }

    /// A TCP segment with ACK from port 40000.
    pub(crate) fn tcp(source: &str, destination: &str, to: u16) -> Self {
        Self::new(source, destination, Transport::Tcp { from: 40_000, to, flags: ACK })
    }

    /// A UDP datagram from port 40000.
    pub(crate) fn udp(source: &str, destination: &str, to: u16) -> Self {
        Self::new(source, destination, Transport::Udp { from: 40_000, to })
    }

    /// A packet of another protocol with eight octets of content.
    pub(crate) fn other(source: &str, destination: &str, protocol: u8) -> Self {
        Self::new(source, destination, Transport::Other(protocol))
    }

    /// The TCP flags.
    pub(crate) fn flags(mut self, new: u8) -> Self {
        if let Transport::Tcp { flags, .. } = &mut self.transport {
            *flags = new;
        }
        self
    }

    /// A VLAN tag, outermost first.
    pub(crate) fn vlan(mut self, ethertype: u16) -> Self {
        self.vlans.push(ethertype);
        self
    }

    /// IPv4 options, in 32-bit words.
    pub(crate) fn options(mut self, words: usize) -> Self {
        self.options = words;
        self
    }

    /// An IPv6 extension header with `octets` of content; the lengths are made to fit.
    pub(crate) fn extension(mut self, kind: u8, octets: usize) -> Self {
        self.extensions.push((kind, vec![0; octets]));
        self
    }

    /// A fragment: offset in octets, and whether more follow.
    pub(crate) fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some((offset, more));
        self
    }

    /// Octets after the transport's header.
    pub(crate) fn payload(self, octets: usize) -> Self {
        self.content(vec![0xaa; octets])
    }

    /// What follows the transport's header.
    pub(crate) fn content(mut self, content: Vec<u8>) -> Self {
        self.content = content;
        self
    }

    /// The frame.
    pub(crate) fn build(&self) -> Vec<u8> {
        let (mut protocol, mut body) = match self.transport {
            Transport::Tcp { from, to, flags } => {
                let mut header = [from.to_be_bytes(), to.to_be_bytes()].concat();
                header.extend([0; 8]);
                header.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                (6, header)
            }
            Transport::Udp { from, to } => {
                let length = (8 + self.content.len()) as u16;
                (17, [from.to_be_bytes(), to.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat())
            }
            Transport::Other(protocol) => (protocol, vec![8, 0, 0, 0, 0, 0, 0, 0]),
        };
        body.extend(&self.content);
        let ip = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let words = 5 + self.options;
                let total = (words * 4 + body.len()) as u16;
                let (offset, more) = self.fragment.unwrap_or_default();
                let fragment = (offset / 8) | if more { 0x2000 } else { 0 };
                let mut ip = vec![0x40 | words as u8, 0];
                ip.extend(total.to_be_bytes());
                ip.extend([0, 1]);
                ip.extend(fragment.to_be_bytes());
                ip.extend([64, protocol, 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip.extend(std::iter::repeat_n(1, self.options * 4));
                ip
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut chain = Vec::new();
                if let Some((offset, more)) = self.fragment {
                    let mut header = vec![protocol, 0];
                    header.extend(((offset & 0xfff8) | u16::from(more)).to_be_bytes());
                    header.extend([0, 0, 0, 7]);
                    chain.push(header);
                    protocol = FRAGMENT;
                }
                for (kind, content) in self.extensions.iter().rev() {
                    // Filled up to the unit of the header's length field.
                    let mut header = vec![protocol, 0];
                    header.extend(content);
                    let unit = if *kind == AUTHENTICATION { 4 } else { 8 };
                    header.resize(header.len().next_multiple_of(unit).max(8), 0);
                    header[1] = match *kind {
                        AUTHENTICATION => (header.len() / 4 - 2) as u8,
                        FRAGMENT => 0,
                        _ => (header.len() / 8 - 1) as u8,
                    };
                    chain.push(header);
                    protocol = *kind;
                }
                let chain: Vec<u8> = chain.into_iter().rev().flatten().collect();
                let mut ip = vec![0x60, 0, 0, 0];
                ip.extend(((chain.len() + body.len()) as u16).to_be_bytes());
                ip.extend([protocol, 64]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip.extend(chain);
                ip
            }
            _ => panic!("two families in one frame"),
        };
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in &self.vlans {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 5]);
        }
        frame.extend(if self.source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        frame.extend(ip);
        frame.extend(body);
        frame
    }

    /// The frame with one octet changed.
    pub(crate) fn with(&self, at: usize, octet: u8) -> Vec<u8> {
        let mut frame = self.build();
        frame[at] = octet;
        frame
    }

    /// The first octets of the frame.
    pub(crate) fn cut(&self, length: usize) -> Vec<u8> {
        let mut frame = self.build();
        assert!(length < frame.len(), "nothing is cut");
        frame.truncate(length);
        frame
    }
}
