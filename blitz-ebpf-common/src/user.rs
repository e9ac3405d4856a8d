//! `aya::Pod` for what crosses between user space and the maps.
//!
//! Owns: the promise that every octet pattern is a valid value, for the types of [`crate::layout`] and for what
//! steering reads.

use crate::layout::{
    Block, BlockKey, Buckets, Count, Deny, Everywhere, Layout, Lengths, Limit, Note, Ports, Prefix4, Prefix6,
    RuleCount, RuleName, Seat, Service, ServiceKey, Settings, Steer,
};
use crate::sources::Set;
use crate::steer::Entry;

macro_rules! pod {
    ($($type:ty = $size:literal),+ $(,)?) => {$(
        // The size is the sum of the fields': no padding, so no octet is left uninitialised.
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        // SAFETY: `repr(C)` of integers and arrays of integers, `Copy + 'static`, without padding (the
        // size above); any octets are a valid value.
        unsafe impl aya::Pod for $type {}
    )+};
}

pod! {
    Block = 24,
    BlockKey = 8,
    Buckets = 24,
    Count = 16,
    Deny = 16,
    Entry = 112,
    Everywhere = 80,
    Layout = 16,
    Lengths = 8,
    Limit = 80,
    Note = 128,
    Ports = 8,
    Prefix4 = 8,
    Prefix6 = 20,
    RuleCount = 32,
    RuleName = 64,
    Seat = 4,
    Service = 16,
    ServiceKey = 20,
    Set<u64> = 128,
    Settings = 40,
    Steer = 88,
}
