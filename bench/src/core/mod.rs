//! `shunt-lab core`: what the director itself costs, without NIC, kernel or generator, beside the floor of any program like it.

mod floor;

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use shunt_dataplane::port::BURST;

use crate::stand::frames::FRAME;
use crate::stand::{CLIENTS, MODES, Stand};
use floor::Floor;

/// Bursts of a repetition that are drawn, and run, at a time: director and floor take turns, so that what disturbs one disturbs the other.
const SLICE: usize = 1024;

/// Prints.
pub fn run() {
    for connections in [1, 1000, 1_000_000, 10_000_000] {
        for (name, forwarding) in MODES {
            let mut stand = Stand::new(forwarding, connections);
            let mut floor = Floor::new(connections as usize * 98);
            let mut random = SmallRng::seed_from_u64(1);
            let mut results = Vec::new();
            for _ in 0..5 {
                let (mut director, mut ground) = (Duration::ZERO, Duration::ZERO);
                for _ in 0..4 {
                    for turn in 0..SLICE {
                        let bytes: [[u8; FRAME]; BURST] =
                            std::array::from_fn(|_| stand.request(random.random_range(0..connections)));
                        director += stand.burst(CLIENTS, turn, &bytes);
                    }
                    for turn in 0..SLICE {
                        let bytes: [[u8; FRAME]; BURST] =
                            std::array::from_fn(|_| stand.request(random.random_range(0..connections)));
                        ground += floor.burst(turn, &bytes);
                    }
                }
                let per = |d: Duration| d.as_nanos() as f64 / (4 * SLICE * BURST) as f64;
                results.push((per(director), per(ground)));
            }
            results.sort_by(|a, b| a.0.total_cmp(&b.0));
            println!("{name} {connections} {:.1?}", results);
        }
    }
}
