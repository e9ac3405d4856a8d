//! A small single-threaded executor over a completion driver: the engine of one worker.
//!
//! Owns: tasks ([`task`]), the timer wheel ([`timer`]), receive buffers ([`buf`]), sockets and their
//! in-flight operations ([`reactor`]), and the drivers that carry them out ([`driver`]).
//! Does not own: protocols (`http1/`), policy (`proxy/`), processes (`process/`).
//!
//! One turn of the loop: run every task that is ready, hand the collected operations to the driver,
//! wait for completions or the next deadline, note what they change, wake the tasks concerned.
//! Nothing here locks, and nothing is shared between threads: a worker has one runtime, and a
//! message from elsewhere arrives through a descriptor that the runtime polls.

mod aggregate;
pub mod buf;
mod driver;
mod pooled;
mod queue;
mod reactor;
pub mod sim;
mod slab;
mod task;
mod tcp;
pub mod timer;
mod transport;
mod udp;
mod waiting;

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::os::fd::RawFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

pub use buf::Chunk;
pub use driver::IoMode;
pub use pooled::Pooled;
pub(crate) use queue::Queue;
pub use reactor::{AcceptErrors, Readiness, Stats};
pub use task::{Lull, yield_now};
pub use tcp::{TcpListener, TcpStream};
pub use timer::{Deadline, Expired};
pub use transport::Transport;
pub use udp::{ReceiveBuffer, Received, SEGMENTS_MAX, SEND_BYTES_MAX, Transmit, UdpSocket};
pub use waiting::{Ticket, Waiting};

use driver::Driver;
use reactor::Reactor;

/// Sizes of one runtime. Every term is per worker.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Submission queue entries. The queue is flushed whenever it is full, so this bounds a batch,
    /// not the number of operations.
    pub submission_entries: u32,
    /// Completion queue entries. When it is full the kernel keeps the rest in its own list and ends
    /// multishot operations; both are handled, and counted as `cq_overflow`.
    pub completion_entries: u32,
    /// Slots of the shared receive pool (count, a power of two up to 32,768). When all are taken,
    /// unread data is moved to the heap and the receives that failed are started again.
    pub pool_slots: u16,
    /// Bytes per slot.
    pub pool_slot_bytes: u32,
}

impl Sizes {
    /// 1,024 slots of 4 KiB: 4 MiB. A slot holds a request or a small answer whole; larger bodies
    /// leave the pool for buffers of their own after four slots (see `reactor`).
    pub const RECOMMENDED: Self =
        Self { submission_entries: 1024, completion_entries: 4096, pool_slots: 1024, pool_slot_bytes: 4096 };
}

/// One worker's executor and driver. Lives on the thread that made it.
pub struct Runtime {
    handle: Handle,
    tasks: task::Tasks,
}

/// What tasks use to reach their runtime: sockets, time, spawning. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    reactor: Rc<RefCell<Reactor>>,
}

/// Tasks polled between two looks at the driver, so that a busy task set cannot starve IO.
const TASKS_PER_TURN: usize = 256;

impl Runtime {
    /// Starts a runtime on the calling thread.
    ///
    /// # Errors
    /// When the chosen driver cannot start; [`IoMode::Auto`] falls back from io_uring to epoll, and
    /// [`Runtime::io_name`] and [`Runtime::fallback_reason`] tell what happened.
    pub fn new(mode: IoMode, sizes: Sizes) -> io::Result<Self> {
        Ok(Self::with_driver(Driver::start(mode, sizes)?))
    }

    /// Starts a runtime over the simulated network of `world`.
    pub fn simulated(world: &sim::World) -> Self {
        Self::with_driver(Driver::simulated(world))
    }

    fn with_driver(driver: Driver) -> Self {
        let tasks = task::Tasks::install(driver.shuffle_seed());
        Self { handle: Handle { reactor: Rc::new(RefCell::new(Reactor::new(driver))) }, tasks }
    }

    /// The handle that tasks use.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// `io_uring`, `epoll` or `sim`.
    pub fn io_name(&self) -> &'static str {
        self.handle.reactor.borrow().io_name()
    }

    /// Why [`IoMode::Auto`] did not take io_uring, when it did not.
    pub fn fallback_reason(&self) -> Option<String> {
        self.handle.reactor.borrow().fallback_reason()
    }

    /// Runs `main`, and every task spawned meanwhile, until `main` is done.
    ///
    /// A task that panics ends alone; the panic is counted. A panic of `main` is the caller's.
    pub fn block_on<F: Future>(&mut self, main: F) -> F::Output {
        self.block_on_stepped(main, |_| {})
    }

    /// Like [`Runtime::block_on`], calling `after_turn` after each turn of the loop: the place where
    /// simulation checks invariants.
    pub fn block_on_stepped<F: Future>(&mut self, main: F, mut after_turn: impl FnMut(&Handle)) -> F::Output {
        let mut main = pin!(main);
        let waker = self.tasks.main_waker();
        let mut cx = Context::from_waker(&waker);
        self.tasks.wake_main();
        loop {
            if self.tasks.take_main_wake()
                && let Poll::Ready(output) = main.as_mut().poll(&mut cx)
            {
                return output;
            }
            self.tasks.run_ready(TASKS_PER_TURN);
            let idle = !self.tasks.has_work() && !self.tasks.has_later();
            self.handle.reactor.borrow_mut().turn(idle);
            self.tasks.wake_later();
            after_turn(&self.handle);
        }
    }

    /// Tasks that ended by a panic since the start.
    pub fn panics(&self) -> u64 {
        task::panics()
    }
}

impl Drop for Runtime {
    /// Drops every task, cancels what is in flight and waits (bounded) until the kernel is done with
    /// our memory; what it still holds after that is leaked rather than freed under it.
    fn drop(&mut self) {
        self.tasks.clear();
        self.handle.reactor.borrow_mut().shut_down();
    }
}

impl Handle {
    /// Adds a task to the runtime of this thread. It starts at the next turn.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        task::spawn(Box::pin(future));
    }

    /// Gives back the memory of receive slots that were not used since the last call. The next use of one costs a page
    /// fault.
    pub fn cool(&self) {
        self.reactor.borrow().cool();
    }

    /// Wakes the task of `cx` once the loop has nothing else to do, or after `turns` turns, whichever comes first:
    /// for work that is cheaper when more of it has come together.
    pub fn wake_later(&self, cx: &Context<'_>, turns: u8) {
        task::wake_later(cx.waker(), turns);
    }

    /// Nanoseconds on the runtime's monotonic clock, read once a turn.
    pub fn now_ns(&self) -> u64 {
        self.reactor.borrow().now_ns()
    }

    /// Milliseconds on the runtime's monotonic clock, read once a turn.
    pub fn now_ms(&self) -> u64 {
        self.now_ns() / 1_000_000
    }

    /// Seconds since the Unix epoch, for `Date`. In simulation it follows virtual time.
    pub fn unix_seconds(&self) -> u64 {
        self.reactor.borrow().unix_seconds()
    }

    /// Waits for `duration`.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the timer.
    pub async fn sleep(&self, duration: Duration) {
        let mut deadline = Deadline::new(self);
        deadline.set_after(duration);
        deadline.expired().await;
    }

    /// Waits until `fd` is readable (a readiness wait, for event descriptors).
    ///
    /// The caller keeps `fd` open while the returned value lives.
    pub fn readiness(&self, fd: RawFd) -> Readiness {
        Readiness::new(self.clone(), fd)
    }

    /// Counters of the runtime.
    pub fn stats(&self) -> Stats {
        self.reactor.borrow().stats()
    }

    /// Checks what must hold between two turns; the sentence names what does not.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.reactor.borrow().check_invariants()
    }

    /// Deadlines that somebody holds, set or not (count).
    #[cfg(test)]
    pub(crate) fn deadlines(&self) -> usize {
        self.reactor.borrow().wheel.held()
    }

    /// The most unread bytes that a stream holds now, the most unsent ones, and how many slots of the
    /// pool are held by tasks instead of streams.
    #[cfg(test)]
    pub(crate) fn largest_queues(&self) -> (usize, usize, usize) {
        self.reactor.borrow().largest_queues()
    }
}

#[cfg(test)]
mod tests;
