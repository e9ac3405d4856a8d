//! What the kernel says about an interface over rtnetlink(7): index, kind, MTU, queues, XDP.
//!
//! Owns: one RTM_GETLINK and the attributes of its answer. Does not own: the socket
//! (see [`crate::sys::rtnetlink`]), what the driver says (see [`crate::link_facts`]).
#![forbid(unsafe_code)]

use std::io;

use crate::error::{Error, Kind, Result};
use crate::sys::rtnetlink;

/// Longest interface name (IFNAMSIZ - 1).
pub const NAME_MAX: usize = 15;

/// An interface of the calling thread's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `ARPHRD_*` of linux/if_arp.h: 1 Ethernet, 772 loopback.
    pub hardware: u16,
    /// Whether it is set up (IFF_UP).
    pub is_up: bool,
    /// Largest packet without the link's header, octets.
    pub mtu: u32,
    /// Receive queues that it was made with.
    pub rx_queues: u32,
    /// What kind of virtual interface it is, such as `veth`.
    pub virtual_kind: Option<String>,
    /// The XDP program that runs on it.
    pub xdp: Option<AttachedXdp>,
}

/// An XDP program on an interface, whoever attached it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedXdp {
    /// The program's number.
    pub program_id: u32,
    /// Where it runs.
    pub mode: Mode,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel allocates a packet buffer.
    Native,
    /// In the kernel's stack, after the allocation.
    Generic,
    /// On the device itself.
    Offloaded,
    /// Several at once.
    Several,
}

impl Mode {
    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offloaded => "offloaded",
            Self::Several => "several",
        }
    }
}

impl Interface {
    /// Whether frames start with an Ethernet header, which the program parses.
    pub fn has_ethernet_header(&self) -> bool {
        self.hardware == libc::ARPHRD_ETHER || self.hardware == libc::ARPHRD_LOOPBACK
    }
}

/// Asks about the interface called `name`.
///
/// # Errors
/// [`Kind::Interface`] when there is none of that name in this network namespace.
pub fn interface(name: &str) -> Result<Interface> {
    check_name(name)?;
    let answer = rtnetlink::ask(&request(name)).map_err(|error| Error::io("rtnetlink", &error))?;
    match parse(&answer) {
        Ok(found) => Ok(found),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Err(Error::new(
            Kind::Interface,
            format!("{name}: there is no such interface in this network namespace"),
            "`ip -brief link` lists those that exist",
        )),
        Err(error) => Err(Error::io(format!("{name}: rtnetlink"), &error)),
    }
}

/// Refuses what no interface can be called, before it becomes part of a path.
///
/// # Errors
/// [`Kind::Interface`].
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err(Error::new(
            Kind::Interface,
            format!("{name:?} is no name of an interface"),
            "`ip -brief link` lists the interfaces of this machine",
        ));
    }
    Ok(())
}

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
/// The upper bits of an attribute's type are flags.
const TYPE_MASK: u16 = 0x3fff;

/// RTM_GETLINK for one name.
fn request(name: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + LINK_HEADER + 24);
    message.extend_from_slice(&[0; 4]); // The length, set below.
    message.extend_from_slice(&RTM_GETLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // Sequence and port: one question on a socket of its own.
    message.extend_from_slice(&[0; LINK_HEADER]);
    message.extend_from_slice(&(4 + name.len() as u16 + 1).to_ne_bytes());
    message.extend_from_slice(&IFLA_IFNAME.to_ne_bytes());
    message.extend_from_slice(name.as_bytes());
    message.push(0);
    message.resize(message.len().next_multiple_of(4), 0);
    let length = (message.len() as u32).to_ne_bytes();
    message[..4].copy_from_slice(&length);
    message
}

/// Reads an RTM_NEWLINK, or the error that came instead.
fn parse(answer: &[u8]) -> io::Result<Interface> {
    let short = || io::Error::new(io::ErrorKind::UnexpectedEof, "an answer was cut short");
    let kind = u16_at(answer, 4).ok_or_else(short)?;
    if kind == NLMSG_ERROR {
        let code = u32_at(answer, HEADER).ok_or_else(short)?.cast_signed();
        return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
    }
    if kind != RTM_NEWLINK {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an answer of type {kind}")));
    }
    let mut interface = Interface {
        hardware: u16_at(answer, HEADER + 2).ok_or_else(short)?,
        index: u32_at(answer, HEADER + 4).ok_or_else(short)?,
        is_up: u32_at(answer, HEADER + 8).ok_or_else(short)? & 1 == 1,
        ..Interface::default()
    };
    let length = (u32_at(answer, 0).ok_or_else(short)? as usize).min(answer.len());
    let attributes = answer.get(HEADER + LINK_HEADER..length).ok_or_else(short)?;
    for (kind, value) in Attributes(attributes) {
        match kind {
            IFLA_IFNAME => interface.name = text(value),
            IFLA_MTU => interface.mtu = u32_at(value, 0).unwrap_or(0),
            IFLA_NUM_RX_QUEUES => interface.rx_queues = u32_at(value, 0).unwrap_or(0),
            IFLA_LINKINFO => {
                let kind = Attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                interface.virtual_kind = kind.map(|(_, value)| text(value));
            }
            IFLA_XDP => interface.xdp = xdp(value),
            _ => {}
        }
    }
    Ok(interface)
}

fn xdp(value: &[u8]) -> Option<AttachedXdp> {
    let number = |wanted: u16| {
        let found = Attributes(value).find(|(kind, _)| *kind == wanted);
        found.and_then(|(_, value)| u32_at(value, 0))
    };
    let attached = Attributes(value).find(|(kind, _)| *kind == IFLA_XDP_ATTACHED);
    // XDP_ATTACHED_* of linux/if_link.h.
    let mode = match attached.and_then(|(_, value)| value.first().copied())? {
        0 => return None,
        1 => Mode::Native,
        2 => Mode::Generic,
        3 => Mode::Offloaded,
        _ => Mode::Several,
    };
    let program_id = number(IFLA_XDP_PROG_ID)
        .or_else(|| number(IFLA_XDP_DRV_PROG_ID))
        .or_else(|| number(IFLA_XDP_SKB_PROG_ID))
        .or_else(|| number(IFLA_XDP_HW_PROG_ID))
        .unwrap_or(0);
    Some(AttachedXdp { program_id, mode })
}

/// The attributes in a buffer: type without flags, and value. Ends at the first that does not fit.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn text(value: &[u8]) -> String {
    let value = value.split(|octet| *octet == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut octets = (4 + value.len() as u16).to_ne_bytes().to_vec();
        octets.extend_from_slice(&kind.to_ne_bytes());
        octets.extend_from_slice(value);
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
    }

    fn answer(attributes: &[u8]) -> Vec<u8> {
        let mut octets = ((HEADER + LINK_HEADER + attributes.len()) as u32).to_ne_bytes().to_vec();
        octets.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
        octets.extend_from_slice(&[0; 10]);
        octets.extend_from_slice(&[0, 0]);
        octets.extend_from_slice(&1_u16.to_ne_bytes());
        octets.extend_from_slice(&7_u32.to_ne_bytes());
        octets.extend_from_slice(&1_u32.to_ne_bytes());
        octets.extend_from_slice(&[0; 4]);
        octets.extend_from_slice(attributes);
        octets
    }

    #[test]
    fn an_answer_is_read() {
        let xdp = [attribute(IFLA_XDP_ATTACHED, &[2]), attribute(IFLA_XDP_PROG_ID, &55_u32.to_ne_bytes())];
        let octets = [
            attribute(IFLA_IFNAME, b"edge0\0"),
            attribute(IFLA_MTU, &9000_u32.to_ne_bytes()),
            attribute(IFLA_XDP | 0x8000, &xdp.concat()),
        ];
        let found = parse(&answer(&octets.concat())).expect("a link");
        assert_eq!((found.name.as_str(), found.index, found.mtu, found.is_up), ("edge0", 7, 9000, true));
        assert_eq!(found.xdp, Some(AttachedXdp { program_id: 55, mode: Mode::Generic }));
    }

    #[test]
    fn every_cut_of_an_answer_is_survived() {
        let octets = answer(&[attribute(IFLA_IFNAME, b"edge0\0"), attribute(IFLA_XDP, &[8, 0, 2])].concat());
        for length in 0..octets.len() {
            let _may_fail = parse(&octets[..length]);
        }
    }

    #[test]
    fn the_loopback_interface_is_found_and_a_stranger_is_not() {
        let found = interface("lo").expect("every namespace has one");
        assert_eq!((found.index, found.name.as_str()), (1, "lo"));
        assert!(found.has_ethernet_header());
        let error = interface("ctl-no-such").expect_err("no such interface");
        assert_eq!(error.kind(), Kind::Interface);
        assert!(error.to_string().starts_with("ctl-no-such: there is no such interface"), "{error}");
    }
}
