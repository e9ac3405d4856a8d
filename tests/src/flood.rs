//! A packet generator and its counterpart.
//!
//! Owns: sending numbered packets at a rate or as fast as the device takes them, with an exact count of
//! what was offered; receiving them and telling what is missing, double or late. Does not own: the
//! packets' octets (see [`crate::frame`]) or the link (see [`crate::wire`]).

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::frame::{self, Mark};
use crate::initial::{self, Initial};
use crate::wire::{End, Wire};
use crate::{PATIENCE, sys, wait_until};

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UDP datagrams that carry a [`Mark`].
    Udp,
    /// TCP SYNs. They carry no mark.
    Syn,
    /// First packets of QUIC, each with a connection ID of its own. They carry no mark.
    Initial,
}

/// Frames handed to the kernel in one call.
const BATCH: usize = 32;

/// A flow of packets from the peer end of a wire.
#[derive(Clone, Debug)]
pub struct Flood {
    kind: Kind,
    flow: u32,
    sources: Vec<IpAddr>,
    destination: SocketAddr,
    initial: Option<Arc<Initial>>,
    payload_bytes: usize,
    rate: Option<u64>,
    duration: Duration,
    packets: u64,
    cpu: Option<usize>,
    insists: bool,
}

/// What a flood handed to the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offered {
    /// Packets that the device took.
    pub sent: u64,
    /// Packets that it refused: it counts them as dropped itself.
    pub refused: u64,
    /// Until the last was handed over.
    pub elapsed: Duration,
}

impl Offered {
    /// All that was handed over.
    pub fn packets(&self) -> u64 {
        self.sent + self.refused
    }

    /// Packets a second.
    pub fn rate(&self) -> f64 {
        self.packets() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl Flood {
    /// UDP from one source to a service, for one second, as fast as the device takes it.
    pub fn new(source: impl Into<IpAddr>, destination: SocketAddr) -> Self {
        Self {
            kind: Kind::Udp,
            flow: 0,
            sources: vec![source.into()],
            destination,
            initial: None,
            payload_bytes: frame::MARK_BYTES,
            rate: None,
            duration: Duration::from_secs(1),
            packets: u64::MAX,
            cpu: None,
            insists: false,
        }
    }

    /// The number by which the receiver knows the flow.
    pub fn flow(mut self, flow: u32) -> Self {
        self.flow = flow;
        self
    }

    /// TCP SYNs.
    pub fn syns(mut self) -> Self {
        self.kind = Kind::Syn;
        self
    }

    /// First packets of QUIC that say this.
    pub fn initials(mut self, initial: Initial) -> Self {
        (self.kind, self.initial) = (Kind::Initial, Some(Arc::new(initial)));
        self.payload(initial::DATAGRAM_BYTES_MIN)
    }

    /// Sends from these addresses in turn.
    pub fn sources(mut self, sources: Vec<IpAddr>) -> Self {
        self.sources = sources;
        self
    }

    /// Octets of UDP payload; at least those of a mark.
    pub fn payload(mut self, bytes: usize) -> Self {
        self.payload_bytes = bytes.max(frame::MARK_BYTES);
        self
    }

    /// Packets a second, evenly.
    pub fn rate(mut self, packets_per_second: u64) -> Self {
        self.rate = Some(packets_per_second);
        self
    }

    /// Ends after this time.
    pub fn duration(mut self, duration: Duration) -> Self {
        self.duration = duration;
        self
    }

    /// Ends after this many packets, if the time is not over before.
    pub fn packets(mut self, packets: u64) -> Self {
        self.packets = packets;
        self
    }

    /// Sends from this CPU.
    pub fn on_cpu(mut self, cpu: usize) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Hands a packet over again until the device takes it, so that no number is lost before the wire.
    pub fn insisting(mut self) -> Self {
        self.insists = true;
        self
    }

    /// Sends and returns when all is sent.
    #[track_caller]
    pub fn run(self, wire: &Wire) -> Offered {
        self.start(wire).join()
    }

    /// Sends on a thread of its own.
    #[track_caller]
    pub fn start(self, wire: &Wire) -> Running {
        let macs = [wire.host.mac, wire.peer.mac];
        let (interface, cpu) = (wire.peer.interface.clone(), self.cpu);
        let socket = wire.peer.run(move || {
            let number = sys::interface_number(&interface).expect("the peer's interface is there");
            sys::FrameSocket::open(number).expect("a socket for frames can be opened")
        });
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            if let Some(cpu) = cpu {
                sys::pin(0, cpu).expect("a thread can be pinned");
            }
            self.send(&socket, macs, &stopped)
        });
        Running { stop, thread: Some(thread) }
    }

    fn send(&self, socket: &sys::FrameSocket, macs: [[u8; 6]; 2], stop: &AtomicBool) -> Offered {
        let mut offered = Offered::default();
        let begun = Instant::now();
        let mut next = 0;
        let mut batch: Vec<Vec<u8>> = Vec::with_capacity(BATCH);
        while next < self.packets && begun.elapsed() < self.duration && !stop.load(Ordering::Relaxed) {
            let due = self.due(begun.elapsed()).min(self.packets).saturating_sub(next);
            if due == 0 {
                std::thread::sleep(Duration::from_micros(100));
                continue;
            }
            batch.clear();
            batch.extend((next..next + due.min(BATCH as u64)).map(|number| self.frame(macs, number)));
            next += batch.len() as u64;
            let mut left = &batch[..];
            while !left.is_empty() {
                let is_refused = match socket.send(left) {
                    Ok(count) => {
                        offered.sent += count as u64;
                        left = &left[count..];
                        // The kernel keeps the error to itself when something was sent before it.
                        !left.is_empty()
                    }
                    Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS)) => true,
                    Err(error) if error.kind() == ErrorKind::Interrupted => false,
                    Err(error) => panic!("a frame cannot be sent: {error}"),
                };
                offered.elapsed = begun.elapsed();
                if is_refused {
                    offered.refused += 1;
                    if self.insists {
                        std::thread::sleep(Duration::from_micros(50));
                    } else {
                        left = &left[1..];
                    }
                }
            }
        }
        offered
    }

    /// How many packets should have been sent by now.
    fn due(&self, elapsed: Duration) -> u64 {
        match self.rate {
            None => u64::MAX,
            Some(rate) => (elapsed.as_secs_f64() * rate as f64) as u64 + 1,
        }
    }

    fn frame(&self, macs: [[u8; 6]; 2], number: u64) -> Vec<u8> {
        // Ports turn so that receive hashing and connection tables see different flows.
        let port = 1024 + (number % 60_000) as u16;
        let source = self.sources[(number % self.sources.len() as u64) as usize];
        match self.kind {
            Kind::Udp => {
                let mut payload = vec![0; self.payload_bytes];
                payload[..frame::MARK_BYTES].copy_from_slice(&Mark { flow: self.flow, number }.encode());
                frame::udp(macs, (source, 4096).into(), self.destination, &payload)
            }
            Kind::Syn => frame::syn(macs, (source, port).into(), self.destination, number as u32),
            Kind::Initial => {
                let initial = self.initial.as_ref().expect("it came with the kind");
                // The first eight octets decide about the worker.
                let dcid = [&number.to_be_bytes()[..], &self.flow.to_be_bytes()].concat();
                let payload = initial.sealed(&dcid, self.payload_bytes);
                frame::udp(macs, (source, 4096).into(), self.destination, &payload)
            }
        }
    }
}

/// A flood in progress. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Offered>>,
}

impl Running {
    /// Waits for the end.
    #[track_caller]
    pub fn join(mut self) -> Offered {
        let thread = self.thread.take().expect("joined once");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Ends it now.
    #[track_caller]
    pub fn stop(self) -> Offered {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What arrived of one flow.
#[derive(Clone, Debug, Default)]
pub struct Arrived {
    /// Packets, doubles included.
    pub packets: u64,
    /// Packets whose number had come before.
    pub duplicates: u64,
    /// Packets whose number is below one that came before.
    pub late: u64,
    /// The highest number plus one.
    pub end: u64,
    /// The longest time between two packets.
    pub longest_gap: Duration,
    last: Option<Instant>,
    seen: Vec<u64>,
}

impl Arrived {
    fn take(&mut self, number: u64, now: Instant) {
        self.packets += 1;
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        // A flow of a billion packets would need 125 MB here; no test comes near.
        assert!(number < 1 << 30, "number {number} is beyond what a test sends");
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        self.duplicates += u64::from(self.seen[word] & bit != 0);
        self.seen[word] |= bit;
        self.late += u64::from(number < self.end);
        self.end = self.end.max(number + 1);
        let gap = self.last.map_or(Duration::ZERO, |last| now - last);
        self.longest_gap = self.longest_gap.max(gap);
        self.last = Some(now);
    }

    /// The numbers below `count` that did not arrive; at most the first hundred.
    pub fn missing(&self, count: u64) -> Vec<u64> {
        let has = |number: u64| {
            self.seen.get((number / 64) as usize).is_some_and(|word| word & (1 << (number % 64)) != 0)
        };
        (0..count).filter(|&number| !has(number)).take(100).collect()
    }
}

/// A UDP socket at the host end that notes each packet.
#[derive(Debug)]
pub struct Receiver {
    /// Where it listens.
    pub address: SocketAddr,
    flows: Arc<Mutex<BTreeMap<u32, Arrived>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    socket: UdpSocket,
}

impl Receiver {
    /// Listens on an address of an end.
    #[track_caller]
    pub fn start(end: &End, address: impl Into<IpAddr>, port: u16) -> Self {
        let address = SocketAddr::new(address.into(), port);
        let socket = end.run(move || UdpSocket::bind(address).expect("the end has this address"));
        // A quarter of a second at 500,000 packets a second, each charged about 768 octets.
        sys::force_receive_buffer(&socket, 128 << 20).expect("root may set any buffer");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a read timeout can be set");
        let address = socket.local_addr().expect("the socket is bound");
        let flows = Arc::new(Mutex::new(BTreeMap::<u32, Arrived>::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (noted, stopped) = (Arc::clone(&flows), Arc::clone(&stop));
        let reader = socket.try_clone().expect("a descriptor is free");
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                match reader.recv(&mut bytes) {
                    Ok(count) => {
                        let Some(mark) = Mark::decode(&bytes[..count]) else { continue };
                        let mut flows = noted.lock().unwrap_or_else(PoisonError::into_inner);
                        flows.entry(mark.flow).or_default().take(mark.number, Instant::now());
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(error) => panic!("the receiver's socket failed: {error}"),
                }
            }
        });
        Self { address, flows, stop, thread: Some(thread), socket }
    }

    /// What has arrived of a flow so far.
    pub fn arrived(&self, flow: u32) -> Arrived {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner).get(&flow).cloned().unwrap_or_default()
    }

    /// Waits until nothing more comes for a fifth of a second, and returns what arrived of a flow.
    #[track_caller]
    pub fn settled(&self, flow: u32) -> Arrived {
        let total =
            || self.flows.lock().unwrap_or_else(PoisonError::into_inner).values().map(|f| f.packets).sum();
        let (mut last, mut since): (u64, _) = (total(), Instant::now());
        wait_until("no more packets arrive", PATIENCE, || {
            let now: u64 = total();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            since.elapsed() > Duration::from_millis(200)
        });
        self.arrived(flow)
    }

    /// Packets that the socket's buffer had no room for: loss that is the receiver's and not the stage's.
    #[track_caller]
    pub fn overflowed(&self) -> u64 {
        sys::socket_drops(&self.socket).expect("the socket tells its drops")
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
