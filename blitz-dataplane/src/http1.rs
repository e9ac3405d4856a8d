//! HTTP/1.1 (RFC 9112): the wire format without IO, and the two ends of a connection on the runtime.
//!
//! Owns: finding the end of a head, parsing heads into the exchange's types, body framing in both directions, writing
//! heads and chunks; and, in `io.rs`, `server.rs` and `client.rs`, the order of messages on a connection. Does not own:
//! sockets and buffers (`runtime`), what a message means (`proxy`).
//!
//! Every part gives the same answer however its input is split, reports how much it consumed and leaves the rest to the
//! caller. What is ambiguous is an error, never repaired: see each module for the rules and `corpus/http1/` for cases.
//!
//! How a connection uses it: [`read_request`] or [`read_response`] with its [`HeadScanner`] until there is a head, then
//! [`BodyFraming::decoder`] for the body.

#![forbid(unsafe_code)]

mod body;
mod chunked;
pub mod client;
#[cfg(test)]
mod corpus;
mod encode;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod head;
mod io;
mod replay;
mod request;
mod response;
mod scan;
pub mod server;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod tests;

pub use body::{BodyDecoder, BodyFraming};
pub use chunked::{
    CHUNK_LINE_BYTES_MAX, ChunkedDecoder, EXTENSION_BYTES_PER_BODY_MAX, Step, TRAILER_BYTES_MAX,
    TRAILER_FIELDS_MAX,
};
pub use encode::{
    ConnectionField, ResponseBody, reason_phrase, write_chunk_end, write_chunk_head, write_interim_head,
    write_last_chunk, write_request_head, write_response_head,
};
pub use error::H1Error;
pub use head::{FIELDS_MAX, HeadLimits, Version};
pub use io::Unread;
pub use request::{RequestFraming, parse_request, read_request, refuse_method};
pub use response::{ResponseFraming, parse_response, read_response};
pub use scan::{EMPTY_LINES_MAX, HeadKind, HeadScanner, Scan};
