//! The floor under every figure of the director: what any program must do that looks a packet up in a table of this size.
//!
//! Per frame it reads the header's line, reads one random line of the table, fetched as the director fetches (those of a whole burst at once, and once more soon before), and writes the header's line.
//!
//! Beside it, what a table of connections asks of memory: a line of an index, the entry's line that stands there, and both entry and header written. And the same by a loop that
//! computes besides for as long as the director takes where all is in the cache: what this machine makes of so much work and so much memory, whatever the work is.

use std::time::{Duration, Instant};

use shunt_dataplane::conn::memory::{Mapped, SOON};
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
    frames: Frames,
}

/// An index and entries without any meaning.
pub struct TableFloor {
    index: Mapped<Line>,
    entries: Mapped<Line>,
    frames: Frames,
    toil: Toil,
}

/// Computing without any meaning.
#[derive(Default)]
struct Toil {
    /// Rounds of it for each burst, half of them while lines are asked for, half while entries are read.
    rounds: usize,
    chains: [u64; 8],
}

impl Toil {
    /// The packet's share.
    #[inline(always)]
    fn share(&mut self, packet: usize) {
        // In registers, and more chains than wait for each other: as many instructions to a nanosecond as a core does, nearly so many as the director. The fewer there are to a nanosecond, the further ahead a core sees what
        // it waits for.
        let mut chains = self.chains;
        for _ in (packet * self.rounds / (2 * BURST))..((packet + 1) * self.rounds / (2 * BURST)) {
            chains = chains.map(|n| (n >> 3).wrapping_add(n) ^ n << 1);
        }
        self.chains = chains;
    }
}

/// Frames as a port would have received them.
struct Frames(Vec<[u8; CHUNK]>);

impl Frames {
    fn new() -> Self {
        Self(vec![[0; CHUNK]; BURST * BURSTS])
    }

    /// Those of a burst.
    fn receive(&mut self, turn: usize, bytes: &[[u8; FRAME]]) -> &mut [[u8; CHUNK]] {
        let chunks = &mut self.0[turn % BURSTS * BURST..][..bytes.len()];
        for (chunk, bytes) in chunks.iter_mut().zip(bytes) {
            chunk[HEADROOM..HEADROOM + FRAME].copy_from_slice(bytes);
        }
        chunks
    }
}

impl Floor {
    /// A table of so many bytes, each page of it touched.
    ///
    /// # Panics
    /// When there is no memory for it.
    pub fn new(bytes: usize) -> Self {
        Self { lines: lines(bytes), frames: Frames::new() }
    }

    /// A burst of frames. Gives the time that it took.
    pub fn burst(&mut self, turn: usize, bytes: &[[u8; FRAME]]) -> Duration {
        let chunks = self.frames.receive(turn, bytes);
        let mut places = [0; BURST];
        let start = Instant::now();
        for (chunk, place) in chunks.iter().zip(&mut places) {
            *place = place_of(spread(chunk), self.lines.len());
            self.lines.prefetch_many(*place);
        }
        for (n, chunk) in chunks.iter_mut().enumerate() {
            places.get(n + SOON).into_iter().for_each(|soon| self.lines.prefetch(*soon));
            let line = &self.lines[places[n]];
            chunk[HEADROOM..HEADROOM + 8].copy_from_slice(&line.0[0].to_ne_bytes());
        }
        start.elapsed()
    }
}

impl TableFloor {
    /// As many entries as connections, a line each, and an index of so many bytes.
    ///
    /// # Panics
    /// When there is no memory for it.
    pub fn new(connections: usize, index: usize) -> Self {
        let (index, entries) = (lines(index), lines(connections * 64));
        Self { index, entries, frames: Frames::new(), toil: Toil::default() }
    }

    /// So many rounds of computing besides, for each burst.
    pub fn toil(&mut self, rounds: usize) {
        self.toil.rounds = rounds;
    }

    /// A burst of frames. Gives the time that it took.
    pub fn burst(&mut self, turn: usize, bytes: &[[u8; FRAME]]) -> Duration {
        let chunks = self.frames.receive(turn, bytes);
        let mut places = [0; BURST];
        let start = Instant::now();
        for (n, (chunk, place)) in chunks.iter().zip(&mut places).enumerate() {
            *place = place_of(spread(chunk), self.index.len());
            self.index.prefetch_many(*place);
            self.toil.share(n);
        }
        for (chunk, place) in chunks.iter().zip(&mut places) {
            // What the index says is part of where, so that its line must have come.
            let found = spread(chunk).rotate_left(32) ^ self.index[*place].0[0];
            *place = place_of(found.wrapping_mul(SPREAD), self.entries.len());
            self.entries.prefetch_many(*place);
        }
        for (n, chunk) in chunks.iter_mut().enumerate() {
            places.get(n + SOON).into_iter().for_each(|soon| self.entries.prefetch(*soon));
            self.toil.share(n);
            let entry = &mut self.entries[places[n]];
            entry.0[1] = entry.0[1].wrapping_add(1);
            chunk[HEADROOM..HEADROOM + 8].copy_from_slice(&entry.0[0].to_ne_bytes());
        }
        start.elapsed()
    }
}

/// An odd number whose multiples look random (2^64 divided by the golden ratio).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Memory of so many bytes, each page of it touched.
fn lines(bytes: usize) -> Mapped<Line> {
    let mut lines: Mapped<Line> = Mapped::zeroed(bytes.div_ceil(64)).expect("memory for the floor");
    for (n, line) in lines.iter_mut().enumerate() {
        line.0[0] = n as u64;
    }
    lines
}

/// A frame's tuple, spread over all numbers.
fn spread(chunk: &[u8; CHUNK]) -> u64 {
    let header = &chunk[HEADROOM..HEADROOM + FRAME];
    let tuple = u64::from(be32(header, 26)) << 16 | u64::from(be16(header, 34));
    tuple.wrapping_mul(SPREAD)
}

/// One of `places`.
fn place_of(spread: u64, places: usize) -> usize {
    ((u128::from(spread) * places as u128) >> 64) as usize
}
