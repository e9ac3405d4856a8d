//! What was received of a body and not handed out yet, in few pieces.
//!
//! A message may come as a thousand frames of a few bytes, each of which costs the crate, and later the endpoint's
//! connection, far more than its bytes: such are put together.
//!
//! Owns: the pieces in their order. Does not own: windows, which bound them (`stream.rs`).

use std::collections::VecDeque;

use bytes::Bytes;

/// Received pieces, oldest first; empty at first, and then without memory of its own.
#[derive(Default)]
pub(super) struct Absorbed {
    /// The oldest piece, as it came: mostly there is one.
    first: Option<Bytes>,
    whole: VecDeque<Bytes>,
    /// The youngest small ones.
    small: Vec<u8>,
}

impl Absorbed {
    /// Bytes of a piece that is passed on as it came.
    const WHOLE_BYTES_MIN: usize = 4 * 1024;

    /// Bytes up to which small pieces are put together.
    const JOINED_BYTES_MAX: usize = 16 * 1024;

    /// Adds the youngest piece.
    pub(super) fn put(&mut self, bytes: Bytes) {
        if self.first.is_none() && self.whole.is_empty() && self.small.is_empty() {
            self.first = Some(bytes);
            return;
        }
        let is_whole = bytes.len() >= Self::WHOLE_BYTES_MIN;
        if is_whole || self.small.len() + bytes.len() > Self::JOINED_BYTES_MAX {
            let joined = std::mem::take(&mut self.small);
            if !joined.is_empty() {
                self.whole.push_back(joined.into());
            }
        }
        if is_whole {
            self.whole.push_back(bytes);
        } else {
            self.small.extend_from_slice(&bytes);
        }
    }

    /// Takes the oldest.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        let oldest = self.first.take().or_else(|| self.whole.pop_front());
        oldest.or_else(|| (!self.small.is_empty()).then(|| std::mem::take(&mut self.small).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::Absorbed;

    #[test]
    fn small_pieces_are_put_together_and_none_is_lost_or_moved() {
        let mut absorbed = Absorbed::default();
        let mut sent = Vec::new();
        for turn in 0..3_000_u32 {
            let piece = vec![turn as u8; if turn % 700 == 699 { 9_000 } else { 1 + turn as usize % 20 }];
            sent.extend_from_slice(&piece);
            absorbed.put(piece.into());
        }
        let pieces: Vec<_> = std::iter::from_fn(|| absorbed.take()).collect();
        assert_eq!(pieces.concat(), sent);
        assert_eq!(pieces.first().map(bytes::Bytes::len), Some(1), "the first is passed on as it came");
        assert!(pieces.len() < 16, "{}", pieces.len());
        assert!(pieces.iter().all(|piece| piece.len() <= Absorbed::JOINED_BYTES_MAX));
    }
}
