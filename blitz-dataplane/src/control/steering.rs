//! What the kernel is told about steering QUIC, over the control socket of `blitz-ctl`.
//!
//! Owns: the thread that talks to the daemon, saying everything again and again, and better programs for the banks of
//! sockets. Does not own: the protocol ([`blitz_ctl_protocol`]), the rule (`blitz_ebpf_common::steer`), the sockets
//! ([`crate::process::listeners`]), the maps (`blitz-ctl`).
//!
//! None of it is needed: a bank has its classic BPF program from the moment it is bound, and without the daemon all
//! datagrams come through the bank. So nobody waits for this thread, and it tries for ever.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blitz_ctl_protocol::{Client, Error};
use blitz_ebpf_common::steer::Steering;

use crate::process::messages::{BankPlace, ListenerAddress};
use crate::sys::{memfd, reuseport, wipe};

/// From one time that everything is said to the next. The daemon lets nothing be dropped a minute after the last.
const RENEW: Duration = Duration::from_secs(5);
/// How long the daemon may take for one step. Loading a program takes it some milliseconds.
const STEP: Duration = Duration::from_secs(2);
/// How often an offer may be refused. A bank that had such a program before keeps its sockets for a moment after that
/// program is gone, and a socket lies in one bank only.
const REFUSALS_MAX: u32 = 3;
/// What the daemon's log calls us.
const NAME: &str = "blitz steering";

/// The supervisor's end. Nothing here blocks.
#[derive(Debug)]
pub(super) struct Steerer {
    shared: Arc<Shared>,
    /// Banks that were offered, so that each is once.
    offered: BTreeSet<BankPlace>,
}

#[derive(Debug, Default)]
struct Shared {
    wish: Mutex<Wish>,
    changed: Condvar,
}

/// What the kernel is to be told.
#[derive(Debug, Default)]
struct Wish {
    keys: Option<Steering>,
    /// Counts changes of the keys.
    keys_number: u64,
    alive: Vec<(u32, u32)>,
    /// Banks that may have a better program.
    offers: Vec<Offer>,
    /// Banks that are closed.
    withdrawn: Vec<BankPlace>,
    /// Something has changed since it was last looked at.
    is_changed: bool,
    has_ended: bool,
}

/// A bank that may have a better program.
#[derive(Debug)]
struct Offer {
    address: ListenerAddress,
    /// Copies of its sockets, in order.
    sockets: Vec<OwnedFd>,
    /// How often it was refused.
    refusals: u32,
}

impl Steerer {
    /// Starts the thread that talks to the daemon at `socket`. It ends when this is dropped.
    ///
    /// # Errors
    /// No thread or memory left.
    pub(super) fn start(socket: PathBuf) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let talk = move || Conversation::new(socket).carry(&theirs);
        std::thread::Builder::new().name("steering".to_owned()).spawn(talk)?;
        Ok(Self { shared, offered: BTreeSet::new() })
    }

    /// The keys by which connection IDs are read from now on, and the shape of the banks.
    pub(super) fn keys(&self, keys: Steering) {
        self.shared.change(|wish| {
            wish.keys = Some(keys);
            wish.keys_number += 1;
        });
    }

    /// The workers that live, by generation and number.
    pub(super) fn alive(&self, alive: Vec<(u32, u32)>) {
        self.shared.change(|wish| wish.alive = alive);
    }

    /// Whether a bank was offered.
    pub(super) fn knows(&self, place: &BankPlace) -> bool {
        self.offered.contains(place)
    }

    /// Offers a bank, with copies of its sockets, for a better program.
    pub(super) fn offer(&mut self, address: ListenerAddress, sockets: Vec<OwnedFd>) {
        self.offered.insert(address.place());
        self.shared.change(|wish| wish.offers.push(Offer { address, sockets, refusals: 0 }));
    }

    /// Forgets banks that are closed.
    pub(super) fn withdraw(&mut self, places: &[BankPlace]) {
        self.offered.retain(|place| !places.contains(place));
        self.shared.change(|wish| {
            wish.offers.retain(|offer| !places.contains(&offer.address.place()));
            wish.withdrawn.extend(places);
        });
    }
}

impl Drop for Steerer {
    fn drop(&mut self) {
        self.shared.change(|wish| wish.has_ended = true);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Wish)) {
        let mut wish = self.lock();
        change(&mut wish);
        wish.is_changed = true;
        self.changed.notify_one();
    }
}

/// A bank that has the better program, and the map that says how this steers.
#[derive(Debug)]
struct Steered {
    place: BankPlace,
    map: OwnedFd,
    keys_number: u64,
}

/// The conversation with the daemon.
struct Conversation {
    socket: PathBuf,
    client: Option<Client>,
    banks: Vec<Steered>,
    /// What the log knows: the interfaces that steer, or that nobody answers.
    known: Option<Result<Vec<String>, ()>>,
}

impl Conversation {
    fn new(socket: PathBuf) -> Self {
        Self { socket, client: None, banks: Vec::new(), known: None }
    }

    fn carry(mut self, shared: &Shared) {
        loop {
            let started = Instant::now();
            let mut wish = shared.lock();
            if wish.has_ended {
                return;
            }
            wish.is_changed = false;
            let (keys, number, alive) = (wish.keys, wish.keys_number, wish.alive.clone());
            let offers = std::mem::take(&mut wish.offers);
            let withdrawn = std::mem::take(&mut wish.withdrawn);
            drop(wish);
            self.banks.retain(|bank| !withdrawn.contains(&bank.place));
            if let Some(keys) = keys {
                let left = self.say(&keys, number, alive, offers);
                if !left.is_empty() {
                    let mut wish = shared.lock();
                    let left = left.into_iter();
                    let left: Vec<Offer> =
                        left.filter(|offer| !wish.withdrawn.contains(&offer.address.place())).collect();
                    wish.offers.extend(left);
                }
            }
            let mut wish = shared.lock();
            while !wish.is_changed && !wish.has_ended {
                let left = RENEW.saturating_sub(started.elapsed());
                if left.is_zero() {
                    break;
                }
                let waited = shared.changed.wait_timeout(wish, left);
                wish = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Says everything; returns the offers that nobody has heard.
    fn say(
        &mut self,
        keys: &Steering,
        number: u64,
        alive: Vec<(u32, u32)>,
        offers: Vec<Offer>,
    ) -> Vec<Offer> {
        let mut bytes = keys.to_bytes();
        let file = memfd::create_read_only(c"blitz-steering", &bytes);
        wipe::wipe(&mut bytes);
        let file = match file {
            Ok(file) => file,
            Err(error) => {
                log::warn!("no descriptor for what the kernel is told about steering: {error}");
                return offers;
            }
        };
        // Twice: the daemon may have been restarted since the last time.
        let mut offers = offers;
        for _ in 0..2 {
            let is_old = self.client.is_some();
            match self.try_to_say(&file, number, &alive, &mut offers) {
                Ok(()) => break,
                Err(error) => {
                    self.client = None;
                    if !is_old {
                        self.nobody_answers(&error);
                        break;
                    }
                }
            }
        }
        offers
    }

    /// Takes from `offers` what is dealt with.
    fn try_to_say(
        &mut self,
        file: &OwnedFd,
        number: u64,
        alive: &[(u32, u32)],
        offers: &mut Vec<Offer>,
    ) -> Result<(), Error> {
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(Client::connect(&self.socket, NAME, STEP)?),
        };
        match client.steer(alive.to_vec(), file) {
            Ok(interfaces) => {
                if self.known.as_ref() != Some(&Ok(interfaces.clone())) {
                    match interfaces.as_slice() {
                        [] => log::info!(
                            "blitz-ctl answers, and no interface has its stage: XDP steers no QUIC"
                        ),
                        named => log::info!("XDP steers QUIC on {}", named.join(", ")),
                    }
                    self.known = Some(Ok(interfaces));
                }
            }
            Err(Error::Refused(sentence)) => log::warn!("blitz-ctl does not steer QUIC in XDP: {sentence}"),
            Err(error) => return Err(error),
        }
        for bank in self.banks.iter_mut().filter(|bank| bank.keys_number != number) {
            match client.steer_bank(&bank.map, file) {
                Ok(()) => bank.keys_number = number,
                Err(Error::Refused(sentence)) => log::warn!("a bank is steered by old keys: {sentence}"),
                Err(error) => return Err(error),
            }
        }
        let mut refused = Vec::new();
        while let Some(offer) = offers.last_mut() {
            match better_program(client, file, offer) {
                Ok(map) => {
                    log::info!("{} is steered by the sk_reuseport program of blitz-ctl", offer.address);
                    let place = offer.address.place();
                    self.banks.push(Steered { place, map, keys_number: number });
                    offers.pop();
                }
                Err(Error::Refused(sentence)) => {
                    offer.refusals += 1;
                    log::info!("{} is steered by classic BPF: {sentence}", offer.address);
                    refused.extend(offers.pop().filter(|offer| offer.refusals < REFUSALS_MAX));
                }
                Err(error) => {
                    offers.extend(refused);
                    return Err(error);
                }
            }
        }
        offers.extend(refused);
        Ok(())
    }

    fn nobody_answers(&mut self, error: &Error) {
        if self.known != Some(Err(())) {
            self.known = Some(Err(()));
            log::info!(
                "QUIC is steered by classic BPF until blitz-ctl answers on {}: {error}; start it with `blitz-ctl \
                 run`, or name its socket with --ctl-socket",
                self.socket.display()
            );
        }
    }
}

/// Has a bank steered by a program of the daemon's, and returns the map that says how.
fn better_program(client: &mut Client, file: &OwnedFd, offer: &Offer) -> Result<OwnedFd, Error> {
    let (program, map) = client.bank(file, offer.sockets.iter().map(AsFd::as_fd))?;
    if let Some(socket) = offer.sockets.first() {
        reuseport::choose_by(socket.as_fd(), program.as_fd())
            .map_err(|error| Error::Refused(format!("its sockets do not take sk_reuseport: {error}")))?;
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http3::QuicKeys;
    use crate::secret::Secret;
    use blitz_ctl_protocol::message::{Steer, SteerDone};
    use blitz_ctl_protocol::server::{Incoming, Session};
    use blitz_ebpf_common::steer::STEERING_BYTES;
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;
    use std::os::unix::net::UnixListener;

    /// What the next message on the socket says, and the keys with it.
    fn told(session: &mut Session) -> (Steer, [u8; STEERING_BYTES]) {
        let Ok(Incoming::Steer(said, keys)) = session.next(Some(Duration::from_secs(10))) else {
            panic!("nothing was said")
        };
        let mut bytes = [0; STEERING_BYTES];
        File::from(keys).read_exact_at(&mut bytes, 0).expect("the keys");
        session.answer(&SteerDone { interfaces: vec!["edge0".to_owned()] }, &[]).expect("answered");
        (said, bytes)
    }

    #[test]
    fn the_daemon_is_told_at_once_on_change_and_when_it_was_restarted() {
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("ctl.sock");
        let listener = UnixListener::bind(&socket).expect("bind");
        let accept = || {
            let (stream, _) = listener.accept().expect("a client");
            Session::accept(stream, Duration::from_secs(10), |_| Ok(())).expect("hello")
        };
        let keys =
            QuicKeys::new(&Secret::generate().expect("random bytes"), 3600).steering(2).expect("few workers");
        let steerer = Steerer::start(socket.clone()).expect("thread");
        steerer.keys(keys);
        let mut session = accept();
        // Nobody is said to live before somebody does.
        let (said, bytes) = told(&mut session);
        assert_eq!((said.alive.as_slice(), bytes), ([].as_slice(), keys.to_bytes()));
        steerer.alive(vec![(0, 0), (0, 1)]);
        assert_eq!(told(&mut session).0.alive, [(0, 0), (0, 1)]);
        // And again without a change.
        assert_eq!(told(&mut session).0.alive, [(0, 0), (0, 1)]);
        drop(session);
        let mut session = accept();
        assert_eq!(told(&mut session), (Steer { alive: vec![(0, 0), (0, 1)] }, keys.to_bytes()));
        // The thread ends with its owner, and the conversation with it.
        drop(steerer);
        assert!(session.next(Some(Duration::from_secs(10))).is_err());
    }
}
