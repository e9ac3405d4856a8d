//! Blitz.
