//! A queue that holds its first element inline.
//!
//! Inboxes and outboxes hold one element nearly always: then nothing is allocated, and an idle
//! socket owns no queue memory.

use std::collections::VecDeque;

/// First in, first out. Invariant: `rest` is empty when `first` is.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    first: Option<T>,
    rest: VecDeque<T>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { first: None, rest: VecDeque::new() }
    }
}

impl<T> Queue<T> {
    pub(crate) fn push(&mut self, value: T) {
        if self.first.is_none() {
            self.first = Some(value);
        } else {
            self.rest.push_back(value);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let popped = self.first.take();
        if !self.rest.is_empty() {
            self.first = self.rest.pop_front();
            if self.rest.is_empty() {
                // A burst is over: its memory goes back.
                self.rest = VecDeque::new();
            }
        }
        popped
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.first.as_ref()
    }

    pub(crate) fn first_mut(&mut self) -> Option<&mut T> {
        self.first.as_mut()
    }

    pub(super) fn last(&self) -> Option<&T> {
        self.rest.back().or(self.first.as_ref())
    }

    pub(super) fn last_mut(&mut self) -> Option<&mut T> {
        self.rest.back_mut().or(self.first.as_mut())
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(self.rest.iter())
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.first.iter_mut().chain(self.rest.iter_mut())
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_holds_through_the_change_from_one_to_many_and_back() {
        let mut queue = Queue::default();
        for round in 0..3 {
            (0..5).for_each(|n| queue.push(round * 10 + n));
            assert_eq!(
                (queue.len(), queue.first(), queue.last()),
                (5, Some(&(round * 10)), Some(&(round * 10 + 4)))
            );
            assert!(queue.iter().copied().eq(round * 10..round * 10 + 5));
            assert!((0..5).all(|n| queue.pop() == Some(round * 10 + n)));
            assert!(queue.is_empty() && queue.rest.capacity() == 0);
        }
    }
}
