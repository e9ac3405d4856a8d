//! Frames: the unit of the control socket.
//!
//! Owns: the octets of a frame and the rule which descriptors belong to it. Does not own: reading and
//! writing (see [`crate::connection`]), or what a payload says (see [`crate::message`]).
//!
//! ```text
//! 0..4   octets that follow, little endian, 4 to 65,536
//! 4..6   kind, little endian
//! 6..8   zero
//! 8..    payload: one JSON value (RFC 8259), or nothing
//! ```
//! Descriptors travel as SCM_RIGHTS with the octets of their frame, which the sender attaches to the first.
//! A reader never asks the socket for octets beyond the frame at hand ([`Decoder::wanted`]), so what arrives
//! with them belongs to this frame.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use crate::{DESCRIPTORS_MAX, Error, FRAME_BYTES_MAX};

/// Octets of the length word.
const LENGTH_BYTES: usize = 4;
/// Octets before the payload.
const HEADER_BYTES: usize = 8;

/// A frame as it was received.
#[derive(Debug)]
pub struct Frame {
    /// What the payload is: a value of [`crate::message::Kind`], or one that this build does not know.
    pub kind: u16,
    /// The payload.
    pub payload: Vec<u8>,
    /// What came with it, close-on-exec. Closed when the frame is dropped.
    pub descriptors: Vec<OwnedFd>,
}

/// The octets of a frame.
///
/// # Errors
/// [`Error::TooLarge`].
pub fn encode(kind: u16, payload: &[u8]) -> Result<Vec<u8>, Error> {
    let follows = payload.len() + (HEADER_BYTES - LENGTH_BYTES);
    let length = u32::try_from(follows).ok().filter(|_| follows <= FRAME_BYTES_MAX);
    let length = length.ok_or(Error::TooLarge(follows))?;
    let mut octets = Vec::with_capacity(LENGTH_BYTES + follows);
    octets.extend_from_slice(&length.to_le_bytes());
    octets.extend_from_slice(&kind.to_le_bytes());
    octets.extend_from_slice(&0u16.to_le_bytes());
    octets.extend_from_slice(payload);
    Ok(octets)
}

/// Takes frames apart, whatever the pieces in which they arrive.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The frame so far; at most [`FRAME_BYTES_MAX`] and the length word.
    octets: Vec<u8>,
    /// What came with it, at most [`DESCRIPTORS_MAX`].
    descriptors: Vec<OwnedFd>,
}

impl Decoder {
    /// Octets that may be read at once without reaching into the next frame; never zero.
    pub fn wanted(&self) -> usize {
        match self.length() {
            // The length is checked as soon as it is there, so the difference is at least the rest of the header.
            Some(length) => (LENGTH_BYTES + length as usize).saturating_sub(self.octets.len()).max(1),
            None => HEADER_BYTES - self.octets.len(),
        }
    }

    /// Whether a frame has begun.
    pub fn is_within(&self) -> bool {
        !self.octets.is_empty() || !self.descriptors.is_empty()
    }

    /// Takes at most [`Self::wanted`] octets and the descriptors that came with them; returns the frame when
    /// it is whole.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Reserved`], [`Error::Descriptors`]: the stream cannot be followed any
    /// further. What came is closed and the decoder is empty.
    pub fn feed(&mut self, octets: &[u8], descriptors: Vec<OwnedFd>) -> Result<Option<Frame>, Error> {
        let result = self.take(octets, descriptors);
        if result.is_err() {
            *self = Self::default();
        }
        result
    }

    fn take(&mut self, octets: &[u8], descriptors: Vec<OwnedFd>) -> Result<Option<Frame>, Error> {
        let found = self.descriptors.len() + descriptors.len();
        if found > DESCRIPTORS_MAX {
            return Err(Error::Descriptors { found, expected: DESCRIPTORS_MAX });
        }
        if octets.len() > self.wanted() {
            // A caller that read too far has lost the border between frames.
            return Err(Error::Length(u32::try_from(octets.len()).unwrap_or(u32::MAX)));
        }
        self.descriptors.extend(descriptors);
        self.octets.extend_from_slice(octets);
        if let Some(length) = self.length()
            && !(HEADER_BYTES - LENGTH_BYTES..=FRAME_BYTES_MAX).contains(&(length as usize))
        {
            return Err(Error::Length(length));
        }
        let Some((header, payload)) = self.octets.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [l0, l1, l2, l3, k0, k1, r0, r1] = *header;
        match u16::from_le_bytes([r0, r1]) {
            0 => {}
            reserved => return Err(Error::Reserved(reserved)),
        }
        let follows = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if payload.len() < follows - (HEADER_BYTES - LENGTH_BYTES) {
            return Ok(None);
        }
        let frame = Frame {
            kind: u16::from_le_bytes([k0, k1]),
            payload: payload.to_vec(),
            descriptors: std::mem::take(&mut self.descriptors),
        };
        self.octets.clear();
        Ok(Some(frame))
    }

    /// The length word, when it is there.
    fn length(&self) -> Option<u32> {
        self.octets.first_chunk().map(|word| u32::from_le_bytes(*word))
    }
}
