//! What comes back to addresses that were spoofed.
//!
//! Owns: the addresses, counting at the peer end of a wire what each gets, the first time that one gets more than it
//! may. Does not own: spoofing ([`crate::flood`]).

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::sys;
use crate::wire::Wire;

/// The first address; behind it there are 2^22.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
/// Room for a second of a flood's answers.
const BUFFER_BYTES: i32 = 128 << 20;
/// Bytes of an Ethernet header, and of one of UDP.
const ETHERNET_BYTES: usize = 14;
const UDP_BYTES: usize = 8;

/// So many addresses that nobody has.
pub fn sources(count: u32) -> Vec<IpAddr> {
    (0..count).map(|nth| Ipv4Addr::from(u32::from(FIRST) + nth).into()).collect()
}

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Packets; several that were sent as one count as one.
    pub packets: u64,
    /// Bytes of their UDP payloads.
    pub bytes: u64,
    /// Addresses that got something.
    pub addresses: u64,
    /// The most that one got, in bytes.
    pub most_bytes: u64,
    /// Who got more than it may, first.
    pub excess: Option<String>,
}

/// Counts as long as it is there.
#[derive(Debug)]
pub struct Backscatter {
    tap: UdpSocket,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Backscatter {
    /// Watches the first `count` of the [`sources`], each of which may get so many bytes of UDP payload.
    ///
    /// # Panics
    /// When there is no socket for it.
    #[track_caller]
    pub fn watch(wire: &Wire, count: u32, allowed: u64) -> Self {
        let interface = wire.peer.interface.clone();
        let tap = wire.peer.run(move || {
            let number = sys::interface_number(&interface).expect("the peer's interface is there");
            sys::tap_ipv4(number).expect("a socket for frames can be opened")
        });
        sys::force_receive_buffer(&tap, BUFFER_BYTES).expect("root may set any buffer");
        tap.set_read_timeout(Some(Duration::from_millis(20))).expect("a read timeout can be set");
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (noted, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let reader = tap.try_clone().expect("a descriptor is free");
        let thread = std::thread::spawn(move || {
            let mut got = vec![0_u64; count as usize];
            let mut frame = [0; 1 << 16];
            while !stopped.load(Ordering::Relaxed) {
                let length = match reader.recv(&mut frame) {
                    Ok(length) => length,
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                        continue;
                    }
                    Err(error) => panic!("frames cannot be read: {error}"),
                };
                let Some((to, bytes)) = payload(&frame[..length]) else { continue };
                let place = u32::from(to).wrapping_sub(u32::from(FIRST));
                let Some(of_address) = got.get_mut(place as usize) else { continue };
                let mut seen = noted.lock().unwrap_or_else(PoisonError::into_inner);
                seen.addresses += u64::from(*of_address == 0);
                *of_address += bytes as u64;
                (seen.packets, seen.bytes) = (seen.packets + 1, seen.bytes + bytes as u64);
                seen.most_bytes = seen.most_bytes.max(*of_address);
                if *of_address > allowed && seen.excess.is_none() {
                    seen.excess = Some(format!("{to} has got {of_address} bytes and may get {allowed}"));
                }
            }
        });
        Self { tap, seen, stop, thread: Some(thread) }
    }

    /// What was seen so far.
    ///
    /// # Panics
    /// When something went past it unseen.
    #[track_caller]
    pub fn seen(&self) -> Seen {
        assert_eq!(sys::socket_drops(&self.tap).expect("the socket tells its drops"), 0, "frames not seen");
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Backscatter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where a frame with IPv4 goes, and the bytes behind its IP and UDP headers, or behind as many of another protocol.
fn payload(frame: &[u8]) -> Option<(Ipv4Addr, usize)> {
    let packet = frame.get(ETHERNET_BYTES..)?;
    let header_bytes = usize::from(packet.first()? & 0x0f) * 4;
    // A frame may be longer than its packet.
    let packet_bytes = usize::from(u16::from_be_bytes(*packet.get(2..)?.first_chunk()?));
    let to: [u8; 4] = *packet.get(16..)?.first_chunk()?;
    Some((to.into(), packet_bytes.saturating_sub(header_bytes + UDP_BYTES)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_payload() {
        let to = sources(3)[2];
        let udp = crate::frame::udp([[2; 6], [4; 6]], ([198, 18, 0, 1], 1).into(), (to, 2).into(), &[7; 100]);
        let padded = [&udp[..], &[0; 9]].concat();
        assert_eq!(payload(&padded), Some(("10.64.0.2".parse().unwrap(), 100)));
        assert_eq!(payload(&udp[..33]), None);
    }
}
