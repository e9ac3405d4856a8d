//! AF_XDP as a second way for the datagrams of QUIC, beside the kernel's UDP.
//!
//! A worker has every receive queue whose number, modulo the number of workers, is its own. The XDP program gives it
//! what comes there and is for it ([`blitz_ebpf_common::steer`]); all else comes by UDP. A connection answers by the
//! way that its path's last packet came, so queues may come and go under it.
//!
//! Owns: frames ([`frame`]), the loop's side of a queue ([`port`]), how a worker gets its queues (`binder.rs`). Does
//! not own: memory and rings of sockets (`sys::xdp`), connections (`http3`), the stage (`blitz-ctl`).
#![forbid(unsafe_code)]

mod binder;
pub mod frame;
pub mod port;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::rc::Rc;

use blitz_config::Config;

use binder::{Binder, Bound, Wanted, Whose};
use port::{End, Hop, Port};

use crate::metrics::names::Metric;
use crate::runtime::Handle;
use crate::segment::WorkerRows;

/// Gets each datagram, who sent it, to which of our addresses, and the way back.
pub type Take = Rc<dyn Fn(&mut [u8], SocketAddr, SocketAddr, &Hop)>;

/// The queues of a worker.
pub struct Queues {
    handle: Handle,
    rows: WorkerRows,
    whose: Whose,
    /// Once something is wanted.
    binder: RefCell<Option<Rc<Binder>>>,
    wanted: RefCell<Option<Wanted>>,
    /// Counts changes of it.
    order: Cell<u64>,
    open: RefCell<Vec<Rc<Port>>>,
}

impl Queues {
    /// Those of `worker` of `workers`; none yet. `ctl_socket` is where `blitz-ctl` listens.
    pub fn new(
        handle: &Handle,
        rows: &WorkerRows,
        worker: u32,
        workers: u32,
        ctl_socket: PathBuf,
    ) -> Rc<Self> {
        Rc::new(Self {
            handle: handle.clone(),
            rows: rows.clone(),
            whose: Whose { worker, workers, ctl_socket },
            binder: RefCell::default(),
            wanted: RefCell::default(),
            order: Cell::default(),
            open: RefCell::default(),
        })
    }

    /// Binds the queues that a configuration asks for. `take` gets what comes.
    pub fn follow(self: &Rc<Self>, config: &Config, take: &Take) {
        let interfaces = config.xdp.interfaces.clone();
        let wanted = config.xdp.afxdp.map(|settings| Wanted { interfaces, settings });
        if *self.wanted.borrow() == wanted {
            return;
        }
        if self.binder.borrow().is_none() {
            match Binder::start(self.whose.clone()) {
                Ok(binder) => {
                    let binder = Rc::new(binder);
                    *self.binder.borrow_mut() = Some(Rc::clone(&binder));
                    self.handle.spawn(Rc::clone(self).receive(binder, Rc::clone(take)));
                }
                Err(error) => {
                    log::error!("AF_XDP: no thread to bind queues: {error}");
                    return;
                }
            }
        }
        self.open.borrow().iter().for_each(|port| port.stop());
        if let Some(binder) = &*self.binder.borrow() {
            self.order.set(self.order.get() + 1);
            binder.follow(self.order.get(), wanted.clone());
        }
        *self.wanted.borrow_mut() = wanted;
    }

    /// Puts queues to work as they are bound.
    async fn receive(self: Rc<Self>, binder: Rc<Binder>, take: Take) {
        let mut mail = self.handle.readiness(binder.as_fd().as_raw_fd());
        while mail.ready().await.is_ok() {
            for Bound { order, queue, facts, socket } in binder.take() {
                if order != self.order.get() {
                    // The binder has given it up.
                    continue;
                }
                let (port, task) = Port::open(queue, facts, socket, &self.handle, &self.rows, &take);
                self.open.borrow_mut().push(Rc::clone(&port));
                let ended = Ended { queues: Rc::clone(&self), port, end: None };
                self.handle.spawn(async move {
                    let mut ended = ended;
                    ended.end = Some(task.await);
                });
            }
        }
    }

    fn ended(&self, port: &Rc<Port>, end: Option<&End>) {
        self.open.borrow_mut().retain(|open| !Rc::ptr_eq(open, port));
        let queue = port.queue();
        let (reason, text) = match end {
            Some(End::Closed) => return,
            Some(End::Stalled(what)) => (Metric::AfxdpFallbackStalled, (*what).to_owned()),
            Some(End::Failed(error)) => (Metric::AfxdpFallbackFailed, error.to_string()),
            None if std::thread::panicking() => (Metric::AfxdpFallbackFailed, "it panicked".to_owned()),
            // The worker ends.
            None => return,
        };
        self.rows.add(reason, 1);
        log::warn!(
            "AF_XDP: {queue}: {text}; its connections go on by the kernel's UDP, and it is bound again"
        );
        if let Some(binder) = &*self.binder.borrow() {
            binder.lost(queue.clone());
        }
    }
}

/// Tells of a port's end, however it came.
struct Ended {
    queues: Rc<Queues>,
    port: Rc<Port>,
    end: Option<End>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.queues.ended(&self.port, self.end.as_ref());
    }
}
