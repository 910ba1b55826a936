//! How far two cores are from each other: what it takes a line that one has written to be seen by the other.
//!
//! Cores that share a cache are some 30 ns apart, halves of one core half of that, cores of different chips 160 to 180: so much does every first look at a frame take that another
//! worker hands over, as far as nothing else is to be done meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;

use crate::machine;

/// Times that the line goes there and back: some milliseconds.
const ROUNDS: u64 = 20_000;

/// Nanoseconds from one core to the other, when they write in turn.
pub fn between(cores: [usize; 2]) -> f64 {
    let line = CachePadded::new(AtomicU64::new(0));
    let play = |first, _: &_| {
        let mut start = Instant::now();
        for turn in (first..2 * ROUNDS).step_by(2) {
            while line.load(Ordering::Acquire) != turn {
                std::hint::spin_loop();
            }
            if turn == first {
                start = Instant::now();
            }
            line.store(turn + 1, Ordering::Release);
        }
        start.elapsed()
    };
    // Who waits for the other's first turn begins to count when both are there.
    let times = machine::side_by_side(cores.into_iter().zip([0, 1]), play, || {});
    let shortest = times.into_iter().min().unwrap_or(Duration::ZERO);
    shortest.as_nanos() as f64 / (2 * ROUNDS) as f64
}
