//! Tasks and wakers of one thread.
//!
//! A waker is a plain number (runtime, slot, generation), not a pointer: cloning costs nothing, a
//! late wake of a finished task is recognised by its generation, and a waker carried to another
//! thread can do no harm (it is counted as foreign and dropped; other threads talk to a worker
//! through a descriptor, see `process::orders`).
//!
//! Owns: the ready queue and the futures. Does not own: what wakes them (see `reactor`, `timer`).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

type TaskFuture = Pin<Box<dyn Future<Output = ()>>>;

struct Slot {
    generation: u32,
    queued: bool,
    /// Absent while the task is being polled, and when the slot is free.
    future: Option<TaskFuture>,
    occupied: bool,
}

struct Scheduler {
    runtime: Cell<u8>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    ready: RefCell<VecDeque<u32>>,
    /// Tasks that wait until nothing else is to be done, each with the turns that it waits at most.
    later: RefCell<Vec<Later>>,
    main_woken: Cell<bool>,
    panics: Cell<u64>,
    /// Zero: first in, first out. Otherwise the state of a generator that picks the next task, so
    /// that simulation also varies the order in which tasks run.
    shuffle: Cell<u64>,
}

/// A task that waits for a lull.
struct Later {
    turns: u8,
    waker: Waker,
    /// Told that it was this what the task was woken for.
    has_come: Option<Rc<Cell<bool>>>,
}

thread_local! {
    static SCHEDULER: Scheduler = const {
        Scheduler {
            runtime: Cell::new(0),
            slots: RefCell::new(Vec::new()),
            free: RefCell::new(Vec::new()),
            ready: RefCell::new(VecDeque::new()),
            later: RefCell::new(Vec::new()),
            main_woken: Cell::new(false),
            panics: Cell::new(0),
            shuffle: Cell::new(0),
        }
    };
}

/// Numbers runtimes so that a waker knows its own. Wraps; two live runtimes of one process share a
/// number only beyond 255 workers, and then a foreign wake is a spurious poll at worst.
static RUNTIMES: AtomicU8 = AtomicU8::new(1);

/// Wakes that arrived on a thread which does not own the task.
static FOREIGN_WAKES: AtomicU64 = AtomicU64::new(0);

/// Slot number of the future given to `block_on`.
const MAIN: u32 = (1 << 24) - 1;

/// The task set of the calling thread, emptied when dropped.
pub(super) struct Tasks {
    /// Not `Send`: the set lives in a thread local.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Tasks {
    /// Takes over this thread's task set, which must be empty.
    pub(super) fn install(shuffle_seed: u64) -> Self {
        SCHEDULER.with(|s| {
            s.runtime.set(RUNTIMES.fetch_add(1, Ordering::Relaxed));
            s.shuffle.set(shuffle_seed);
            s.panics.set(0);
        });
        Self { _thread: std::marker::PhantomData }
    }

    pub(super) fn main_waker(&self) -> Waker {
        waker(SCHEDULER.with(|s| s.runtime.get()), MAIN, 0)
    }

    pub(super) fn wake_main(&self) {
        SCHEDULER.with(|s| s.main_woken.set(true));
    }

    pub(super) fn take_main_wake(&self) -> bool {
        SCHEDULER.with(|s| s.main_woken.take())
    }

    pub(super) fn has_work(&self) -> bool {
        SCHEDULER.with(|s| s.main_woken.get() || !s.ready.borrow().is_empty())
    }

    /// Whether a task waits until nothing else is to be done.
    pub(super) fn has_later(&self) -> bool {
        SCHEDULER.with(|s| !s.later.borrow().is_empty())
    }

    /// A turn is over: wakes those who waited for this, all of them when it has brought no work.
    pub(super) fn wake_later(&self) {
        let is_quiet = !self.has_work();
        SCHEDULER.with(|s| {
            s.later.borrow_mut().retain_mut(|later| {
                later.turns = later.turns.saturating_sub(1);
                let waits_on = later.turns > 0 && !is_quiet;
                if !waits_on {
                    if let Some(has_come) = &later.has_come {
                        has_come.set(true);
                    }
                    later.waker.wake_by_ref();
                }
                waits_on
            });
        });
    }

    /// Polls at most `budget` ready tasks.
    pub(super) fn run_ready(&self, budget: usize) {
        SCHEDULER.with(|s| {
            for _ in 0..budget {
                let Some(index) = s.next_ready() else { return };
                s.poll_task(index);
            }
        });
    }

    /// Drops every task.
    pub(super) fn clear(&self) {
        SCHEDULER.with(|s| {
            s.ready.borrow_mut().clear();
            loop {
                // A destructor may spawn or wake: take one future at a time, with nothing borrowed.
                let next = s.slots.borrow_mut().iter_mut().find_map(|slot| {
                    let future = slot.future.take();
                    if future.is_some() {
                        slot.occupied = false;
                        slot.generation = slot.generation.wrapping_add(1);
                    }
                    future
                });
                let Some(future) = next else { break };
                drop(catch_unwind(AssertUnwindSafe(|| drop(future))));
            }
            s.ready.borrow_mut().clear();
            s.slots.borrow_mut().clear();
            s.later.borrow_mut().clear();
            s.free.borrow_mut().clear();
            s.main_woken.set(false);
        });
    }
}

impl Scheduler {
    fn next_ready(&self) -> Option<u32> {
        let mut ready = self.ready.borrow_mut();
        let state = self.shuffle.get();
        if state == 0 || ready.len() < 2 {
            return ready.pop_front();
        }
        // xorshift64: any full-period generator serves, and this one needs no crate.
        let mut x = state;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.shuffle.set(x);
        let pick = (x % ready.len() as u64) as usize;
        ready.swap_remove_front(pick)
    }

    fn poll_task(&self, index: u32) {
        let (mut future, generation) = {
            let mut slots = self.slots.borrow_mut();
            let Some(slot) = slots.get_mut(index as usize) else {
                return;
            };
            // Cleared before the poll: a wake during it must queue the task again.
            slot.queued = false;
            let Some(future) = slot.future.take() else {
                return;
            };
            (future, slot.generation)
        };
        let waker = waker(self.runtime.get(), index, generation);
        let mut cx = Context::from_waker(&waker);
        let outcome = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut cx)));
        match outcome {
            Ok(Poll::Pending) => {
                if let Some(slot) = self.slots.borrow_mut().get_mut(index as usize) {
                    slot.future = Some(future);
                }
                return;
            }
            Ok(Poll::Ready(())) => drop(future),
            Err(_) => {
                self.panics.set(self.panics.get() + 1);
                // A destructor that panics as well must not take the worker with it.
                drop(catch_unwind(AssertUnwindSafe(|| drop(future))));
            }
        }
        if let Some(slot) = self.slots.borrow_mut().get_mut(index as usize) {
            slot.generation = slot.generation.wrapping_add(1);
            slot.occupied = false;
            slot.queued = false;
        }
        self.free.borrow_mut().push(index);
    }

    fn wake(&self, index: u32, generation: u32) {
        if index == MAIN {
            self.main_woken.set(true);
            return;
        }
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(index as usize) else {
            return;
        };
        if slot.generation == generation && slot.occupied && !slot.queued {
            slot.queued = true;
            self.ready.borrow_mut().push_back(index);
        }
    }
}

/// Adds a task to this thread's set.
pub(super) fn spawn(future: TaskFuture) {
    SCHEDULER.with(|s| {
        let mut slots = s.slots.borrow_mut();
        let index = match s.free.borrow_mut().pop() {
            Some(index) => index,
            None => {
                slots.push(Slot { generation: 0, queued: false, future: None, occupied: false });
                (slots.len() - 1) as u32
            }
        };
        let slot = &mut slots[index as usize];
        slot.future = Some(future);
        slot.occupied = true;
        slot.queued = true;
        s.ready.borrow_mut().push_back(index);
    });
}

/// Wakes the task once a turn has brought no work, or after so many turns.
pub(super) fn wake_later(waker: &Waker, turns: u8) {
    wait_for_lull(Later { turns, waker: waker.clone(), has_come: None });
}

fn wait_for_lull(later: Later) {
    SCHEDULER.with(|s| s.later.borrow_mut().push(later));
}

/// Waits until the loop has nothing else to do, and not shorter, whatever else wakes its task meanwhile: for work that
/// is cheaper when more of it has come together.
#[derive(Default)]
pub struct Lull {
    is_awaited: bool,
    has_come: Rc<Cell<bool>>,
}

impl Lull {
    /// Ready once a turn has brought no work, or `turns` turns after the first poll; then it begins anew.
    pub fn poll(&mut self, cx: &Context<'_>, turns: u8) -> Poll<()> {
        if self.has_come.take() {
            self.is_awaited = false;
            return Poll::Ready(());
        }
        if !std::mem::replace(&mut self.is_awaited, true) {
            let has_come = Some(Rc::clone(&self.has_come));
            wait_for_lull(Later { turns, waker: cx.waker().clone(), has_come });
        }
        Poll::Pending
    }
}

/// Tasks of this thread that ended by a panic.
pub(super) fn panics() -> u64 {
    SCHEDULER.with(|s| s.panics.get())
}

/// Lets every other ready task run before the caller goes on.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            Poll::Ready(())
        } else {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

// A waker is `runtime << 56 | slot << 32 | generation`, stored in the data pointer.
const _: () = assert!(size_of::<usize>() == 8, "wakers pack 64 bits into a pointer");

fn waker(runtime: u8, index: u32, generation: u32) -> Waker {
    let bits = (u64::from(runtime) << 56) | (u64::from(index) << 32) | u64::from(generation);
    let raw = RawWaker::new(std::ptr::without_provenance(bits as usize), &VTABLE);
    // SAFETY: the functions of VTABLE never dereference the data pointer; they read it as a number
    // and touch only thread-local state, so they are safe to call from any thread, any number of times.
    unsafe { Waker::from_raw(raw) }
}

static VTABLE: RawWakerVTable =
    RawWakerVTable::new(|data| RawWaker::new(data, &VTABLE), wake_bits, wake_bits, |_| {});

fn wake_bits(data: *const ()) {
    let bits = data.addr() as u64;
    let (runtime, index, generation) = ((bits >> 56) as u8, (bits >> 32) as u32 & MAIN, bits as u32);
    // `try_with`: a waker may be dropped or woken while the thread is being torn down.
    let _ = SCHEDULER.try_with(|s| {
        if s.runtime.get() == runtime {
            s.wake(index, generation);
        } else {
            FOREIGN_WAKES.fetch_add(1, Ordering::Relaxed);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_lull_is_not_cut_short_by_other_wakes() {
        let tasks = Tasks::install(0);
        let mut lull = Lull::default();
        let cx = Context::from_waker(Waker::noop());
        for _ in 0..2 {
            tasks.wake_main();
            for _ in 0..3 {
                assert_eq!(lull.poll(&cx, 4), Poll::Pending);
                tasks.wake_later();
            }
            assert!(tasks.take_main_wake());
            // A quiet turn.
            tasks.wake_later();
            assert_eq!(lull.poll(&cx, 4), Poll::Ready(()));
        }
        assert!(!tasks.has_later());
        tasks.clear();
    }

    #[test]
    fn who_waits_for_a_quiet_turn_waits_no_longer_than_asked() {
        let tasks = Tasks::install(0);
        let count = Arc::new(Count::default());
        let woken = || count.0.load(Ordering::Relaxed);
        // A turn without work.
        wake_later(&Arc::clone(&count).into(), 4);
        assert!(tasks.has_later());
        tasks.wake_later();
        assert_eq!((woken(), tasks.has_later()), (1, false));
        // Work all the time.
        wake_later(&Arc::clone(&count).into(), 3);
        tasks.wake_main();
        for expected in [1, 1, 2] {
            tasks.wake_later();
            assert_eq!(woken(), expected);
        }
        assert!(!tasks.has_later());
        tasks.clear();
    }
}
