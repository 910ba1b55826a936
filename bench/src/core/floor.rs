//! The floor under every figure of the director: what any program must do that looks a packet up in a table of this size.
//!
//! Per frame it reads the header's line, reads one random line of the table, fetched as the director fetches (those of a whole burst at once, and once more soon before), and writes the header's line.
//! Which line it is was drawn for each client when its frame was built, and stands in the frame's own first line: as by a good hash, and without computing one.
//!
//! Beside it, what a table of connections asks of memory: a line of an index, drawn in the same way, the line of the connection's own entry, and both entry and header written. And the same by a loop that
//! computes besides for as long as the director takes where all is in the cache: what this machine makes of so much work and so much memory, whatever the work is.

use std::time::{Duration, Instant};

use shunt_dataplane::conn::memory::{Mapped, SOON};
use shunt_dataplane::packet::be32;
use shunt_dataplane::port::BURST;
use shunt_dataplane::port::frame::{CHUNK, HEADROOM};
use zerocopy::FromZeros;

use crate::stand::BURSTS;
use crate::stand::frames::{DRAWN, FRAME, NUMBER};

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
struct Frames(Vec<Chunk>);

/// Where a frame lies: as in a port's memory it begins with a line.
#[derive(Clone)]
#[repr(C, align(64))]
struct Chunk([u8; CHUNK]);

impl Frames {
    fn new() -> Self {
        Self(vec![Chunk([0; CHUNK]); BURST * BURSTS])
    }

    /// Those of a burst.
    fn receive(&mut self, turn: usize, bytes: &[[u8; FRAME]]) -> &mut [Chunk] {
        let chunks = &mut self.0[turn % BURSTS * BURST..][..bytes.len()];
        for (chunk, bytes) in chunks.iter_mut().zip(bytes) {
            chunk.0[HEADROOM..HEADROOM + FRAME].copy_from_slice(bytes);
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
            *place = drawn(chunk, self.lines.len());
            self.lines.prefetch_many(*place);
        }
        for (n, chunk) in chunks.iter_mut().enumerate() {
            places.get(n + SOON).into_iter().for_each(|soon| self.lines.prefetch(*soon));
            let line = &self.lines[places[n]];
            chunk.0[HEADROOM..HEADROOM + 8].copy_from_slice(&line.0[0].to_ne_bytes());
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
            *place = drawn(chunk, self.index.len());
            self.index.prefetch_many(*place);
            self.toil.share(n);
        }
        for (chunk, place) in chunks.iter().zip(&mut places) {
            *place = own(chunk, &self.index[*place]);
            self.entries.prefetch_many(*place);
        }
        for (n, chunk) in chunks.iter_mut().enumerate() {
            places.get(n + SOON).into_iter().for_each(|soon| self.entries.prefetch(*soon));
            self.toil.share(n);
            let entry = &mut self.entries[places[n]];
            entry.0[1] = entry.0[1].wrapping_add(1);
            chunk.0[HEADROOM..HEADROOM + 8].copy_from_slice(&entry.0[0].to_ne_bytes());
        }
        start.elapsed()
    }
}

/// Memory of so many bytes, each page of it touched.
fn lines(bytes: usize) -> Mapped<Line> {
    let mut lines: Mapped<Line> = Mapped::zeroed(bytes.div_ceil(64)).expect("memory for the floor");
    for (n, line) in lines.iter_mut().enumerate() {
        line.0[0] = n as u64;
    }
    lines
}

/// The line that was drawn for a frame's client, of `lines`.
fn drawn(Chunk(chunk): &Chunk, lines: usize) -> usize {
    let bytes = chunk[HEADROOM + DRAWN..].first_chunk().expect("a frame is shorter than its chunk");
    ((u128::from(u64::from_ne_bytes(*bytes)) * lines as u128) >> 64) as usize
}

/// The entry of a frame's client, which shares it with nobody. What the index says is part of where, so that its line must have come; it says 0.
fn own(Chunk(chunk): &Chunk, index: &Line) -> usize {
    be32(chunk, HEADROOM + NUMBER) as usize + index.0[1] as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stand::frames::numbered;
    use crate::stand::{VIP, client};

    #[test]
    fn lines_are_chosen_evenly_at_random_and_each_client_has_an_entry_of_its_own() {
        const CLIENTS: u32 = 1_000_000;
        let line = Line([0; 8]);
        // Of the floor among so many, of their index, and of few that many share.
        for lines in [1_546_875, 546_875, 1000] {
            let (mut shares, mut entries) = (vec![0u32; lines], vec![false; CLIENTS as usize]);
            let mut chunk = Chunk([0; CHUNK]);
            for n in 0..CLIENTS {
                chunk.0[HEADROOM..HEADROOM + FRAME].copy_from_slice(&numbered(n, client(n), VIP));
                shares[drawn(&chunk, lines)] += 1;
                assert!(!std::mem::replace(&mut entries[own(&chunk, &line)], true), "{n} shares an entry");
            }
            let read = shares.iter().filter(|share| **share > 0).count() as f64;
            let even = lines as f64 * (1.0 - (-f64::from(CLIENTS) / lines as f64).exp());
            assert!((read / even - 1.0).abs() < 0.01, "{read} lines of {lines}, not {even:.0}");
            let most = shares.iter().max().copied().unwrap_or(0);
            let mean = f64::from(CLIENTS) / lines as f64;
            assert!(f64::from(most) < mean + 8.0 * mean.sqrt().max(2.0), "{most} clients have one line");
        }
    }
}
