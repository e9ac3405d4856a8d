//! The one panic that is known: quiche adds up the windows of paths, one of which may stand for "no limit". In a
//! release the sum wraps, and nothing comes of it; in a debug build it panics, and the connection ends.
//!
//! Owns: telling it from other panics. Does not own: counting those (`runtime`).
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::panic::{self, PanicHookInfo};
use std::sync::Once;

thread_local! {
    static SEEN: Cell<u64> = const { Cell::new(0) };
}

/// Watches panics from now on, and forgets those of this thread so far.
pub(super) fn watch() {
    static WATCHES: Once = Once::new();
    WATCHES.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if is_known(info) {
                SEEN.set(SEEN.get() + 1);
            } else {
                before(info);
            }
        }));
    });
    SEEN.set(0);
}

/// How many this thread has seen since.
pub(super) fn seen() -> u64 {
    SEEN.get()
}

/// A sum of an iterator overflows; this project has none that could.
fn is_known(info: &PanicHookInfo<'_>) -> bool {
    let is_in_sum = info.location().is_some_and(|location| location.file().ends_with("traits/accum.rs"));
    is_in_sum && info.payload_as_str().is_some_and(|message| message == "attempt to add with overflow")
}
