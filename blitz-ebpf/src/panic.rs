//! What a panic becomes in a program that cannot unwind.
//!
//! Owns: the panic handler. Does not own: anything that a packet meets, since no panic may be reachable.
//!
//! The handler is an endless loop, which the kernel's verifier refuses. So an object in which a packet
//! could reach a panic does not load at all; with undefined behaviour here it would.

use core::panic::PanicInfo;

/// Refused by the verifier wherever it can be reached.
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}
