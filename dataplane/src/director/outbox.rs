//! Frames that leave in addition to the one that caused them: pieces of a packet that had to be cut up, a header put before a client's data.
//!
//! The director turns frames in place and holds none of its own. What more must leave is written here, and whoever drives the director copies it
//! into frames after each burst. It is rare and short, so a copy does not matter; the memory is there from the start.

use crate::port::frame::{CHUNK, HEADROOM};
use crate::service::PortId;

/// Frames that one burst may cause. A burst of 64 long packets, each cut into four, leaves room; what does not fit is dropped under a
/// counter.
const MOST: usize = 256;

/// Bytes of a frame at most: what fits behind a frame's headroom.
const LONGEST: usize = CHUNK - HEADROOM;

/// The frames of one burst.
pub struct Outbox {
    bytes: Box<[u8]>,
    frames: Vec<(PortId, usize)>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { bytes: vec![0; MOST * LONGEST].into(), frames: Vec::with_capacity(MOST) }
    }
}

impl Outbox {
    /// Forgets what it holds.
    pub fn clear(&mut self) {
        self.frames.clear();
    }

    /// Frames there is room for.
    pub fn room(&self) -> usize {
        MOST - self.frames.len()
    }

    /// Adds a frame of `length` bytes, to be sent by `port`; the caller writes it. `None` when there is no room.
    pub fn add(&mut self, port: PortId, length: usize) -> Option<&mut [u8]> {
        if self.room() == 0 || length > LONGEST {
            return None;
        }
        let at = self.frames.len() * LONGEST;
        self.frames.push((port, length));
        Some(&mut self.bytes[at..at + length])
    }

    /// The frames, in the order they were added. They belong before the frame that caused them.
    pub fn frames(&self) -> impl Iterator<Item = (PortId, &[u8])> {
        self.frames
            .iter()
            .zip(self.bytes.chunks(LONGEST))
            .map(|((port, length), bytes)| (*port, &bytes[..*length]))
    }
}
