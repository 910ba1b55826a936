//! The floor under every figure of the director: what any program must do that looks a packet up in a table of this size.
//!
//! Per frame it reads the header's line, reads one random line of the table, fetched a burst ahead as the director does, and writes the header's line.

use std::time::{Duration, Instant};

use shunt_dataplane::conn::memory::{Mapped, prefetch};
use shunt_dataplane::packet::{be16, be32};
use shunt_dataplane::port::BURST;
use shunt_dataplane::port::frame::{CHUNK, HEADROOM};
use zerocopy::FromZeros;

use crate::stand::BURSTS;
use crate::stand::frames::FRAME;

#[derive(FromZeros)]
#[repr(C, align(64))]
struct Line([u64; 8]);

/// A table without any meaning.
pub struct Floor {
    lines: Mapped<Line>,
    chunks: Vec<[u8; CHUNK]>,
}

impl Floor {
    /// A table of so many bytes, each page of it touched.
    ///
    /// # Panics
    /// When there is no memory for it.
    pub fn new(bytes: usize) -> Self {
        let mut lines: Mapped<Line> = Mapped::zeroed(bytes.div_ceil(64)).expect("memory for the floor");
        for (n, line) in lines.iter_mut().enumerate() {
            line.0[0] = n as u64;
        }
        Self { lines, chunks: vec![[0; CHUNK]; BURST * BURSTS] }
    }

    /// A burst of frames. Gives the time that it took.
    pub fn burst(&mut self, turn: usize, bytes: &[[u8; FRAME]]) -> Duration {
        let chunks = &mut self.chunks[turn % BURSTS * BURST..][..bytes.len()];
        for (chunk, bytes) in chunks.iter_mut().zip(bytes) {
            chunk[HEADROOM..HEADROOM + FRAME].copy_from_slice(bytes);
        }
        let mut places = [0; BURST];
        let start = Instant::now();
        for (chunk, place) in chunks.iter().zip(&mut places) {
            let header = &chunk[HEADROOM..HEADROOM + FRAME];
            let tuple = u64::from(be32(header, 26)) << 16 | u64::from(be16(header, 34));
            let spread = tuple.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *place = ((u128::from(spread) * self.lines.len() as u128) >> 64) as usize;
            prefetch(&self.lines[*place]);
        }
        for (chunk, place) in chunks.iter_mut().zip(places) {
            let line = &self.lines[place];
            chunk[HEADROOM..HEADROOM + 8].copy_from_slice(&line.0[0].to_ne_bytes());
        }
        start.elapsed()
    }
}
