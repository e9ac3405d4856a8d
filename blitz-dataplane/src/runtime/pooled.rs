//! Boxed futures whose memory is kept for the next one.
//!
//! An exchange is a future of some kilobytes that lives for one request. Inside its connection's
//! future it would make every idle connection as large; from the general allocator it costs more
//! than parsing the request. So blocks of the sizes in use are kept per thread.
//!
//! Owns: the blocks. Does not own: what runs in them.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

/// Blocks of one size kept per thread (count): as many exchanges as are usually under way at once.
/// Beyond it they are freed.
const KEPT_PER_SIZE: usize = 256;

/// Sizes kept (count); futures of further types come from the allocator. One per codec and path of
/// an exchange is enough.
const SIZES_KEPT: usize = 8;

struct Shelf {
    layout: Layout,
    blocks: Vec<NonNull<u8>>,
}

struct Shelves(Vec<Shelf>);

impl Drop for Shelves {
    fn drop(&mut self) {
        for shelf in &mut self.0 {
            for block in shelf.blocks.drain(..) {
                // SAFETY: the block was allocated with this layout and is owned by the shelf alone.
                unsafe { dealloc(block.as_ptr(), shelf.layout) };
            }
        }
    }
}

thread_local! {
    static SHELVES: RefCell<Shelves> = const { RefCell::new(Shelves(Vec::new())) };
}

fn take(layout: Layout) -> NonNull<u8> {
    let kept = SHELVES.try_with(|shelves| {
        let mut shelves = shelves.borrow_mut();
        shelves.0.iter_mut().find(|shelf| shelf.layout == layout)?.blocks.pop()
    });
    if let Ok(Some(block)) = kept {
        return block;
    }
    // SAFETY: the layout has a size above zero: `Pooled::new` asserts it when compiled.
    let block = unsafe { alloc(layout) };
    NonNull::new(block).unwrap_or_else(|| handle_alloc_error(layout))
}

fn put(block: NonNull<u8>, layout: Layout) {
    let kept = SHELVES.try_with(|shelves| {
        let mut shelves = shelves.borrow_mut();
        let shelves = &mut shelves.0;
        if let Some(shelf) = shelves.iter_mut().find(|shelf| shelf.layout == layout) {
            let has_room = shelf.blocks.len() < KEPT_PER_SIZE;
            if has_room {
                shelf.blocks.push(block);
            }
            return has_room;
        }
        let has_room = shelves.len() < SIZES_KEPT;
        if has_room {
            shelves.push(Shelf { layout, blocks: vec![block] });
        }
        has_room
    });
    if kept != Ok(true) {
        // SAFETY: the block was allocated with this layout, and no shelf has taken it.
        unsafe { dealloc(block.as_ptr(), layout) };
    }
}

/// A future in a block of its own, like `Pin<Box<F>>`.
pub struct Pooled<F> {
    future: NonNull<F>,
    /// Owns an `F`; moves between threads exactly when it does.
    _owned: PhantomData<F>,
}

impl<F: Future> Pooled<F> {
    /// Moves `future` into a block.
    #[inline]
    pub fn new(future: F) -> Self {
        const { assert!(size_of::<F>() > 0, "a future without state needs no block") };
        let block = take(Layout::new::<F>()).cast::<F>();
        // SAFETY: the block has the size and alignment of an F, and nobody else refers to it.
        unsafe { block.write(future) };
        Self { future: block, _owned: PhantomData }
    }
}

/// Moving the handle moves a pointer, never the future.
impl<F> Unpin for Pooled<F> {}

impl<F: Future> Future for Pooled<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        // SAFETY: the pointer leads to a live F that only this `Pooled` refers to, borrowed mutably.
        let future = unsafe { this.future.as_mut() };
        // SAFETY: the future stays in its block until it is dropped there.
        unsafe { Pin::new_unchecked(future) }.poll(cx)
    }
}

impl<F> Drop for Pooled<F> {
    fn drop(&mut self) {
        /// Returns the block even when the future's destructor panics.
        struct Return(NonNull<u8>, Layout);
        impl Drop for Return {
            fn drop(&mut self) {
                put(self.0, self.1);
            }
        }
        let _return = Return(self.future.cast(), Layout::new::<F>());
        // SAFETY: the future is live, and this is the only place where it is dropped.
        unsafe { self.future.drop_in_place() };
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Waker;

    use super::*;

    async fn hold(value: Rc<[u64; 40]>) -> u64 {
        let mut polls = 0;
        poll_fn(|_| {
            polls += 1;
            if polls == 2 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        value[7]
    }

    #[test]
    fn a_block_is_reused_and_a_future_is_dropped_where_it_stands() {
        let value = Rc::new([3; 40]);
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = Pooled::new(hold(Rc::clone(&value)));
        let address = first.future;
        assert!(Pin::new(&mut first).poll(&mut cx).is_pending());
        // Moving the handle does not move the future.
        let mut moved = first;
        assert_eq!(Pin::new(&mut moved).poll(&mut cx), Poll::Ready(3));
        drop(moved);
        assert_eq!(Rc::strong_count(&value), 1);
        let second = Pooled::new(hold(Rc::clone(&value)));
        assert_eq!(second.future, address);
        drop(second);
        assert_eq!(Rc::strong_count(&value), 1);
    }
}
