//! What a worker remembers of a connection for its next packets: the way to both ends, and whether it is steady.
//!
//! A connection is steady if nothing about it changes by a packet that is [midstream](crate::packet::Plain::is_midstream). Whoever changes a connection takes that
//! from it ([`Table::conn_mut`](super::Table::conn_mut)), and what may change many begins a new [`Generation`], in which nothing is known of any. So one comparison tells what would
//! otherwise be asked of each packet: the state and its timeout, the marks, the real server, whether the hops are of the network as it is.

use zerocopy::FromZeros;

/// The time in which what a worker remembers of its connections is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(u32);

impl Generation {
    /// The first one.
    pub const FIRST: Self = Self(2);

    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(2).max(2))
    }
}

/// Next hops of a connection, as numbers of the worker's own list, and whether it is steady.
#[derive(Clone, Copy, Debug, Default, FromZeros)]
pub struct Hops {
    /// To the real server.
    pub to_server: u16,
    /// To the client.
    pub to_client: u16,
    /// The generation that this is of, an even number and not 0; one more while the connection is not known to be steady.
    generation: u32,
}

impl Hops {
    /// Those of a connection that is not known to be steady.
    pub fn new(generation: Generation, to_server: u16, to_client: u16) -> Self {
        Self { to_server, to_client, generation: generation.0 | 1 }
    }

    /// Whether this is of a generation.
    #[inline]
    pub fn are_of(&self, generation: Generation) -> bool {
        self.generation & !1 == generation.0
    }

    /// Whether this is of a generation, and the connection is steady.
    #[inline]
    pub fn are_steady(&self, generation: Generation) -> bool {
        self.generation == generation.0
    }

    /// Notes whether the connection is steady, in the generation that this is of.
    #[inline]
    pub(super) fn set_steady(&mut self, is_steady: bool) {
        self.generation = self.generation & !1 | u32::from(!is_steady);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_steady_in_the_generation_in_which_that_was_noted() {
        let mut generation = Generation::FIRST;
        let mut hops = Hops::new(generation, 1, 2);
        assert!(hops.are_of(generation) && !hops.are_steady(generation));
        hops.set_steady(true);
        assert!(hops.are_of(generation) && hops.are_steady(generation));
        generation = generation.next();
        assert!(!hops.are_of(generation) && !hops.are_steady(generation));
        hops.set_steady(false);
        assert!(!hops.are_of(generation) && !hops.are_of(Generation::FIRST.next()));
    }

    #[test]
    fn a_free_entry_is_of_no_generation() {
        let mut hops = Hops::default();
        let last = Generation(u32::MAX - 1);
        for is_steady in [false, true] {
            hops.set_steady(is_steady);
            assert!(
                [Generation::FIRST, last, last.next()]
                    .iter()
                    .all(|of| !hops.are_of(*of) && !hops.are_steady(*of))
            );
        }
    }
}
