//! Among how many connections packets are spread, and how: all equally busy, or a few much busier than the rest.

use rand::RngExt;
use rand::rngs::SmallRng;
use rand_distr::{Distribution, Zipf};

/// One; what fits the second-level cache; what fits no cache; ten times that.
pub const CONNECTIONS: [u32; 4] = [1, 1000, 1_000_000, 10_000_000];

/// Exponent of Zipf's law: a little more than what web sites' clients are found to follow.
const SKEW: f64 = 1.1;

/// Which connection comes next.
pub type Draw = Box<dyn Fn(&mut SmallRng) -> u32>;

/// Both ways to spread packets among so many connections, with their names.
pub fn laws(connections: u32) -> [(&'static str, Draw); 2] {
    let zipf = Zipf::new(f64::from(connections), SKEW).expect("it is a law");
    [
        ("uniform", Box::new(move |random| random.random_range(0..connections))),
        ("zipf", Box::new(move |random| zipf.sample(random) as u32 - 1)),
    ]
}
