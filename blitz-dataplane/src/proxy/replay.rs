//! What was taken of a request's body, kept so that it can be sent again.
//!
//! An endpoint that goes away (GOAWAY) or has no room (REFUSED_STREAM) says that it did not act on a request whose body
//! is on its way already. Short bodies, which most are, are kept until then; the request of a longer one is lost.
//!
//! Owns: the pieces, and playing them back. Does not own: whether a request is sent again (`forward.rs`).
#![forbid(unsafe_code)]

use std::task::Context;

use crate::exchange::stream::BodySource;
use crate::exchange::{BodyLength, ProxyError};
use crate::fields::Fields;
use crate::runtime::Chunk;

/// Bytes that are kept of one body. Beyond it nothing of it is kept, and the request is not sent again.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// A body that remembers.
pub(super) struct Replay<'a, B> {
    body: &'a mut B,
    /// From now on pieces are kept.
    keeps: bool,
    kept: Vec<Chunk>,
    kept_bytes: usize,
    /// Pieces of `kept` that the attempt under way has taken.
    at: usize,
    /// More was taken than is kept.
    is_lost: bool,
}

impl<'a, B: BodySource> Replay<'a, B> {
    pub(super) fn new(body: &'a mut B) -> Self {
        Self { body, keeps: false, kept: Vec::new(), kept_bytes: 0, at: 0, is_lost: false }
    }

    /// Begins an attempt. `keeps`: what it takes may have to be sent again.
    pub(super) fn begin(&mut self, keeps: bool) {
        self.keeps = keeps;
        self.at = 0;
    }

    /// Whether another attempt would send the same body.
    pub(super) fn is_whole(&self) -> bool {
        !self.is_lost
    }

    fn keep(&mut self, chunk: &mut Chunk) {
        self.kept_bytes += chunk.len();
        if !self.keeps || self.is_lost || self.kept_bytes > KEPT_BYTES_MAX {
            self.is_lost = true;
            self.kept = Vec::new();
            self.at = 0;
            return;
        }
        // It stays for as long as the endpoint wants: others need the pool's slot.
        chunk.spill();
        chunk.compact();
        self.kept.push(chunk.share());
        self.at = self.kept.len();
    }
}

impl<B: BodySource> BodySource for Replay<'_, B> {
    fn length(&self) -> BodyLength {
        self.body.length()
    }

    fn is_complete(&self) -> bool {
        self.at == self.kept.len() && self.body.is_complete()
    }

    async fn next(&mut self) -> Result<Option<Chunk>, ProxyError> {
        if let Some(chunk) = self.kept.get(self.at) {
            self.at += 1;
            return Ok(Some(chunk.share()));
        }
        let mut next = self.body.next().await?;
        if let Some(chunk) = &mut next {
            self.keep(chunk);
        }
        Ok(next)
    }

    fn trailers(&self) -> Option<&Fields> {
        self.body.trailers()
    }

    fn absorb(&mut self, cx: &mut Context<'_>) {
        self.body.absorb(cx);
    }
}

#[cfg(test)]
mod tests;
