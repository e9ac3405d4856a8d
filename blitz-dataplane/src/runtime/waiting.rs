//! Tasks that wait for one of a few things that they share, in the order in which they came.
//!
//! Owns: who waits, and that each is woken once for each time that it waits. Does not own: the things. One that a task
//! was woken for is not kept for it: another may have it first, and then it waits again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Waker};

/// What a task waits with. It waits no more when this is gone.
#[derive(Debug, Default)]
pub struct Ticket(Rc<Cell<bool>>);

impl Ticket {
    /// It has what it waited for.
    pub fn leave(&self) {
        self.0.set(false);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Who waits. A task stands here once, or a few times where it has left and come back: no more often than others were
/// called meanwhile.
#[derive(Debug, Default)]
pub struct Waiting(RefCell<VecDeque<(Waker, Rc<Cell<bool>>)>>);

impl Waiting {
    /// Has the task woken when it is its turn, if it does not wait already.
    pub fn wait(&self, cx: &Context<'_>, ticket: &Ticket) {
        if !ticket.0.replace(true) {
            self.0.borrow_mut().push_back((cx.waker().clone(), Rc::clone(&ticket.0)));
        }
    }

    /// Wakes the next so many. They wait no more.
    pub fn call(&self, mut count: usize) {
        while count > 0 {
            let Some((waker, is_waiting)) = self.0.borrow_mut().pop_front() else { return };
            if is_waiting.replace(false) {
                waker.wake();
                count -= 1;
            }
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Who waits (count).
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.borrow().iter().filter(|(_, is_waiting)| is_waiting.get()).count()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Task {
        woken: Arc<Woken>,
        ticket: Ticket,
    }

    impl Task {
        fn new() -> Self {
            Self { woken: Arc::default(), ticket: Ticket::default() }
        }

        fn wait(&self, waiting: &Waiting) {
            waiting.wait(&Context::from_waker(&Waker::from(Arc::clone(&self.woken))), &self.ticket);
        }

        fn woken(&self) -> usize {
            self.woken.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn who_was_called_in_vain_can_wait_again() {
        let (waiting, first, second) = (Waiting::default(), Task::new(), Task::new());
        for _ in 0..3 {
            first.wait(&waiting);
        }
        second.wait(&waiting);
        waiting.call(1);
        assert_eq!((first.woken(), second.woken()), (1, 0));
        // Somebody else was quicker.
        first.wait(&waiting);
        waiting.call(1);
        assert_eq!((first.woken(), second.woken()), (1, 1));
        waiting.call(1);
        assert_eq!((first.woken(), second.woken()), (2, 1));
        assert!(waiting.is_empty());
    }

    #[test]
    fn nobody_is_called_in_the_place_of_one_that_has_left() {
        let (waiting, gone, left, last) = (Waiting::default(), Task::new(), Task::new(), Task::new());
        for task in [&gone, &left, &last] {
            task.wait(&waiting);
        }
        drop(gone);
        left.ticket.leave();
        waiting.call(1);
        assert_eq!((left.woken(), last.woken()), (0, 1));
        assert_eq!(waiting.len(), 0);
    }
}
