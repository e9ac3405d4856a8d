//! What a driver says about its interface: `SIOCETHTOOL` of ethtool (linux/ethtool.h).
//!
//! Owns: the calls and their structures. Does not own: what the answers mean (see [`crate::link_facts`]).
//!
//! Every question may be answered with EOPNOTSUPP: drivers choose what they implement.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GRXFH: u32 = 0x29;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// `ETH_FLAG_RXVLAN`: the device takes VLAN tags out of frames.
pub const FLAG_RXVLAN: u32 = 1 << 8;
/// `ETH_FLAG_LRO`: the device merges received segments.
pub const FLAG_LRO: u32 = 1 << 15;
/// `UDP_V4_FLOW` of linux/ethtool.h.
pub const UDP_V4_FLOW: u32 = 2;
/// `UDP_V6_FLOW` of linux/ethtool.h.
pub const UDP_V6_FLOW: u32 = 6;
/// `RXH_L4_B_0_1 | RXH_L4_B_2_3`: both ports go into the receive hash.
pub const HASH_PORTS: u64 = 1 << 6 | 1 << 7;

/// Queues of an interface (`ETHTOOL_GCHANNELS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Receive-only channels in use.
    pub rx: u32,
    /// Channels that receive and send, in use.
    pub combined: u32,
}

/// A socket on which interfaces can be asked.
#[derive(Debug)]
pub struct Asker(UdpSocket);

impl Asker {
    /// Opens it, in the calling thread's network namespace.
    ///
    /// # Errors
    /// What socket(2) and bind(2) report.
    pub fn new() -> io::Result<Self> {
        // Never sends: a socket is only what the call needs to find the network namespace. In a namespace whose
        // loopback is down, binding to the unspecified address still works.
        UdpSocket::bind("0.0.0.0:0").map(Self)
    }

    /// The driver's name.
    ///
    /// # Errors
    /// EOPNOTSUPP, ENODEV.
    pub fn driver(&self, interface: &str) -> io::Result<String> {
        #[repr(C)]
        struct DriverInfo {
            command: u32,
            driver: [u8; 32],
            rest: [u8; 160],
        }
        let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
        // SAFETY: struct ethtool_drvinfo is 196 octets with the driver's name after the command.
        unsafe { self.ask(interface, &mut info) }?;
        let name = info.driver.split(|octet| *octet == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// The `FLAG_*` that are on.
    ///
    /// # Errors
    /// EOPNOTSUPP, ENODEV.
    pub fn flags(&self, interface: &str) -> io::Result<u32> {
        #[repr(C)]
        struct Value {
            command: u32,
            data: u32,
        }
        let mut value = Value { command: ETHTOOL_GFLAGS, data: 0 };
        // SAFETY: struct ethtool_value is these two words.
        unsafe { self.ask(interface, &mut value) }?;
        Ok(value.data)
    }

    /// What goes into the receive hash of `flow`, such as [`UDP_V4_FLOW`], as `RXH_*` bits.
    ///
    /// # Errors
    /// EOPNOTSUPP, ENODEV.
    pub fn receive_hash(&self, interface: &str, flow: u32) -> io::Result<u64> {
        #[repr(C)]
        struct ReceiveFlow {
            command: u32,
            flow: u32,
            data: u64,
            rest: [u64; 22],
        }
        let mut ask = ReceiveFlow { command: ETHTOOL_GRXFH, flow, data: 0, rest: [0; 22] };
        // SAFETY: struct ethtool_rxnfc is 192 octets and starts with these three fields.
        unsafe { self.ask(interface, &mut ask) }?;
        Ok(ask.data)
    }

    /// Queues in use.
    ///
    /// # Errors
    /// EOPNOTSUPP, ENODEV.
    pub fn channels(&self, interface: &str) -> io::Result<Channels> {
        #[repr(C)]
        #[derive(Default)]
        struct Counts {
            command: u32,
            most: [u32; 4],
            rx: u32,
            tx: u32,
            other: u32,
            combined: u32,
        }
        let mut counts = Counts { command: ETHTOOL_GCHANNELS, ..Counts::default() };
        // SAFETY: struct ethtool_channels is these nine words.
        unsafe { self.ask(interface, &mut counts) }?;
        Ok(Channels { rx: counts.rx, combined: counts.combined })
    }

    /// One `SIOCETHTOOL`.
    ///
    /// # Safety
    /// `T` is `repr(C)`, starts with the command's number, and is at least as large as what the kernel reads
    /// and writes for it.
    unsafe fn ask<T>(&self, interface: &str, question: &mut T) -> io::Result<()> {
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: std::ptr::from_mut(question).cast() },
        };
        // One octet stays zero at the end.
        if interface.len() >= libc::IFNAMSIZ {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (slot, octet) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *slot = octet.cast_signed() as libc::c_char;
        }
        // SAFETY: the request is live, and its pointer leads to a structure of the size that the caller promised.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
