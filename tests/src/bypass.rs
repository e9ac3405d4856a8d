//! A wire with a stage that gives a gateway's workers the datagrams of HTTP/3 past the kernel's UDP (AF_XDP).
//!
//! Owns: the wire, the stage, the daemon, the configuration that goes with them, and the proof that frames went that
//! way. Does not own: what is sent ([`crate::pair`], [`crate::h3`]).

use crate::ctl::Daemon;
use crate::gateway::LISTENER;
use crate::wire::{HOST4, HOST6, Wire, WireSetup};
use crate::{Cell, Gateway, H3, PATIENCE, Pki, Setup, Stage, wait_until};

/// The port of the listeners.
pub const PORT: u16 = 8443;
/// Workers, and receive queues of the wire.
pub const WORKERS: usize = 2;
/// Frames of each queue: two queues of them are within the 8 MiB of locked memory that machines have at least.
pub const FRAMES: u64 = 512;

/// Frames that came by AF_XDP.
pub const RECEIVED: &str = "blitz_afxdp_frames_received_total";
/// Frames that went.
pub const SENT: &str = "blitz_afxdp_frames_sent_total";
/// Datagrams, whichever way they came.
pub const DATAGRAMS: &str = "blitz_quic_datagrams_received_total";

/// What stands before a gateway.
#[derive(Debug)]
pub struct Bypass {
    pki: Pki,
    xdp: String,
    /// Gives the workers their sockets.
    pub daemon: Daemon,
    /// Gives the sockets their frames.
    pub stage: Stage,
    /// The last to go: the stage is on it.
    pub wire: Wire,
}

impl Bypass {
    /// With as many queues as workers, and the stage attached in this mode.
    #[track_caller]
    pub fn new(mode: &str) -> Self {
        Self::on(WireSetup::default().queues(WORKERS as u32), &format!("mode = \"{mode}\""), FRAMES)
    }

    /// On another wire, with `xdp` in the table of that name, and so many frames for each queue.
    #[track_caller]
    pub fn on(wire: WireSetup, xdp: &str, frames: u64) -> Self {
        let (wire, pki) = (wire.make(), Pki::edge());
        let (interface, afxdp) =
            (&wire.host.interface, format!("[xdp.afxdp]\nframes_per_queue = {frames}\n"));
        let xdp = format!("[xdp]\ninterfaces = [\"{interface}\"]\n{xdp}\n{afxdp}");
        // The daemon needs to know the listeners, and nothing behind them.
        let stage = Stage::prepare(&wire, &format!("{}\n{xdp}", listeners(&pki)));
        let daemon = Daemon::start(&wire, &stage);
        Self { pki, xdp, daemon, stage, wire }
    }

    /// What is configured (TOML) with [`LISTENER`] here instead, in front of the stage's own.
    pub fn config(&self, toml: &str) -> String {
        format!("{}\n{}", toml.replace(LISTENER, &listeners(&self.pki)), self.xdp)
    }

    /// A gateway behind the stage, of a [`Self::config`].
    pub fn setup(&self, cell: Cell, config: &str) -> Setup {
        let network = self.wire.host.space.as_ref().expect("a namespace").network();
        let setup = Setup::new(cell).config(config).workers(WORKERS).inside(network, (HOST4, PORT).into());
        setup.flag("--ctl-socket").flag(&self.daemon.socket.to_string_lossy())
    }

    /// Starts one, and waits until every queue is its own.
    #[track_caller]
    pub fn start(&self, setup: Setup) -> Gateway {
        let before = self.seated();
        let gateway = setup.start();
        self.is_bound(&gateway, before + WORKERS);
        gateway
    }

    /// How often the stage was given a worker's socket so far.
    pub fn seated(&self) -> usize {
        self.daemon.log().matches("belongs to worker").count()
    }

    /// Waits until every queue is bound, the stage has been given so many sockets in all, and knows how to steer.
    #[track_caller]
    pub fn is_bound(&self, gateway: &Gateway, seated: usize) {
        wait_until("the queues are bound", PATIENCE, || {
            gateway.sum("blitz_afxdp_queues") == WORKERS as u64
                && gateway.sum("blitz_afxdp_frames") == WORKERS as u64 * FRAMES
                && self.seated() >= seated
                && gateway.log().contains("XDP steers QUIC on ")
        });
    }

    /// A client at the other end of the wire.
    #[track_caller]
    pub fn connect(&self) -> H3 {
        self.wire.peer.run(|| H3::connect((HOST4, PORT).into(), "edge.test"))
    }
}

/// All that came was in frames, since no client has moved, and what went was too. A late acknowledgement may come
/// between two looks.
///
/// # Panics
/// When it is not so.
#[track_caller]
pub fn all_went_past_the_kernel(gateway: &Gateway) {
    wait_until("every datagram came in a frame", PATIENCE, || {
        gateway.sum(DATAGRAMS) == gateway.sum(RECEIVED)
    });
    assert!(gateway.sum(RECEIVED) > 0 && gateway.sum(SENT) > 0, "nothing came, or nothing went");
    no_frame_leaks(gateway);
}

/// Every frame is with somebody, none was dropped, and none is away for ever.
///
/// # Panics
/// When it is not so.
#[track_caller]
pub fn no_frame_leaks(gateway: &Gateway) {
    let drops = ["malformed", "no_listener", "invalid", "too_large"]
        .map(|reason| (reason, gateway.sum(&format!("blitz_afxdp_drops_total{{reason=\"{reason}\"}}"))));
    assert!(drops.iter().all(|(_, count)| *count == 0), "{drops:?}");
    wait_until("no frame has leaked", PATIENCE, || {
        gateway.sum("blitz_afxdp_frames") == WORKERS as u64 * FRAMES
            && gateway.sum("blitz_afxdp_frames{holder=\"sending\"}") == 0
    });
}

/// One for each version of IP.
fn listeners(pki: &Pki) -> String {
    let listener = pki.h3_listener("").replace("127.0.0.1:@PORT@", &format!("{HOST4}:{PORT}"));
    let second = listener
        .replace(&format!("{HOST4}:{PORT}"), &format!("[{HOST6}]:{PORT}"))
        .replace("\"edge\"\naddress", "\"edge6\"\naddress");
    format!("{listener}\n{second}")
}
