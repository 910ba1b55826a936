//! Next hops, cached twice: by address in the worker, by number in each connection.
//!
//! A connection [remembers](crate::conn::hops) the numbers of its two hops. When the network changes the worker begins a new generation, every remembered number is
//! void, and each connection asks again with its next packet. So a change of a route costs one increment,
//! not a walk over all connections.

use std::net::IpAddr;

use hashbrown::HashMap;

use crate::conn::{Direction, Generation, Hops};
use crate::service::{Hop, Network, Unreachable};

/// No hop is remembered.
const UNKNOWN: u16 = u16::MAX;

/// Addresses remembered at most. Clients behind a router share its hop but not its address, so a flood of forged sources fills
/// this; it is then emptied and filled again by those that matter.
const MOST: usize = UNKNOWN as usize;

/// Which end of a connection a packet goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toward {
    /// The real server.
    Server,
    /// The client.
    Client,
}

impl Toward {
    /// The end that packets of a direction go to.
    #[inline]
    pub fn of(direction: Direction) -> Self {
        match direction {
            Direction::Request => Toward::Server,
            Direction::Reply => Toward::Client,
        }
    }
}

/// The worker's hops of the current generation.
pub struct HopCache {
    generation: Generation,
    hops: Vec<Hop>,
    by_address: HashMap<IpAddr, u16>,
}

impl Default for HopCache {
    fn default() -> Self {
        Self {
            generation: Generation::FIRST,
            hops: Vec::with_capacity(1024),
            by_address: HashMap::with_capacity(1024),
        }
    }
}

impl HopCache {
    /// The hop of a connection's packets towards one end. `address` is that end's; it is looked up only when the hop is not remembered.
    #[inline(always)]
    pub fn of_conn(
        &mut self,
        network: &Network,
        hops: &mut Hops,
        toward: Toward,
        address: impl FnOnce() -> IpAddr,
    ) -> Result<Hop, Unreachable> {
        if let Some(hop) = self.known(hops, toward) {
            return Ok(*hop);
        }
        let number = self.remember(network, hops, toward, address())?;
        Ok(self.hops[usize::from(number)])
    }

    /// The hop of a connection's packets towards one end, if it is remembered.
    #[inline(always)]
    pub fn known(&self, hops: &Hops, toward: Toward) -> Option<&Hop> {
        if hops.are_of(self.generation) { self.numbered(hops, toward) } else { None }
    }

    /// The same, if its connection is steady besides.
    #[inline(always)]
    pub fn of_steady(&self, hops: &Hops, toward: Toward) -> Option<&Hop> {
        if hops.are_steady(self.generation) { self.numbered(hops, toward) } else { None }
    }

    #[inline(always)]
    fn numbered(&self, hops: &Hops, toward: Toward) -> Option<&Hop> {
        let number = match toward {
            Toward::Server => hops.to_server,
            Toward::Client => hops.to_client,
        };
        // `UNKNOWN` is no hop's number: there are never so many.
        self.hops.get(usize::from(number))
    }

    #[cold]
    fn remember(
        &mut self,
        network: &Network,
        hops: &mut Hops,
        toward: Toward,
        address: IpAddr,
    ) -> Result<u16, Unreachable> {
        let number = self.number(network, address)?;
        // `number` may have begun a new generation, in which case the other direction's number is void as well.
        if !hops.are_of(self.generation) {
            *hops = Hops::new(self.generation, UNKNOWN, UNKNOWN);
        }
        match toward {
            Toward::Server => hops.to_server = number,
            Toward::Client => hops.to_client = number,
        }
        Ok(number)
    }

    /// The hop to an address.
    pub fn hop(&mut self, network: &Network, address: IpAddr) -> Result<Hop, Unreachable> {
        let number = self.number(network, address)?;
        Ok(self.hops[number as usize])
    }

    /// Begins a new generation: of each connection everything is asked again.
    pub fn doubt(&mut self) {
        self.generation = self.generation.next();
    }

    /// The same, and forgets all hops.
    pub fn forget(&mut self) {
        self.doubt();
        self.hops.clear();
        self.by_address.clear();
    }

    fn number(&mut self, network: &Network, address: IpAddr) -> Result<u16, Unreachable> {
        if let Some(number) = self.by_address.get(&address) {
            return Ok(*number);
        }
        let hop = network.hop(address)?;
        if self.by_address.len() >= MOST {
            self.forget();
        }
        // Few hops serve many addresses: a router, a rack of real servers.
        let number = self.hops.iter().rposition(|known| *known == hop).unwrap_or_else(|| {
            self.hops.push(hop);
            self.hops.len() - 1
        }) as u16;
        self.by_address.insert(address, number);
        Ok(number)
    }
}
