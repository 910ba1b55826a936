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

/// Hops and addresses remembered at most. Clients behind a router share its hop but not its address, so many of them, or a flood of forged sources, fill the addresses; those
/// are then forgotten and asked for again by who matters. What connections remember is of hops, and stays true.
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
    /// Each once.
    hops: Vec<Hop>,
    numbers: HashMap<Hop, u16>,
    by_address: HashMap<IpAddr, u16>,
}

impl Default for HopCache {
    /// With room for all that it may come to hold: it grows while packets wait. Most of that is address space only.
    fn default() -> Self {
        Self {
            generation: Generation::FIRST,
            hops: Vec::with_capacity(MOST),
            numbers: HashMap::with_capacity(MOST),
            by_address: HashMap::with_capacity(MOST),
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
        self.numbers.clear();
        self.by_address.clear();
    }

    fn number(&mut self, network: &Network, address: IpAddr) -> Result<u16, Unreachable> {
        if let Some(number) = self.by_address.get(&address) {
            return Ok(*number);
        }
        let hop = network.hop(address)?;
        if self.by_address.len() >= MOST {
            self.by_address.clear();
        }
        // Few hops serve many addresses: a router, a rack of real servers.
        let number = match self.numbers.get(&hop) {
            Some(number) => *number,
            None => self.add(hop),
        };
        self.by_address.insert(address, number);
        Ok(number)
    }

    fn add(&mut self, hop: Hop) -> u16 {
        if self.hops.len() >= MOST {
            self.forget();
        }
        let number = self.hops.len() as u16;
        self.hops.push(hop);
        self.numbers.insert(hop, number);
        number
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::service::{Interface, Neighbour, PortId, Route};

    const LINK: PortId = PortId(0);

    /// A network where all are behind a router, but for those of 10.0.0.0/8.
    fn network() -> Network {
        let interface = Interface {
            name: "e0".to_owned(),
            index: 1,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: [Some(Ipv4Addr::new(10, 0, 0, 1).into()), None],
        };
        let router = IpAddr::from([10, 0, 0, 254]);
        let route = |prefix: [u8; 4], length, gateway| Route {
            prefix: prefix.into(),
            length,
            gateway,
            link: Some(LINK.into()),
            mtu: None,
            source: None,
        };
        let near = (1..=MOST as u32 + 1).map(|n| {
            let [_, high, middle, low] = n.to_be_bytes();
            ((LINK.into(), on_link(n)), Neighbour::Reachable([2, 0, 1, high, middle, low]))
        });
        let router_itself = ((LINK.into(), router), Neighbour::Reachable([2, 0, 0, 0, 0, 254]));
        Network::new(
            vec![interface],
            [route([10, 0, 0, 0], 8, None), route([0, 0, 0, 0], 0, Some(router))],
            near.chain([router_itself]),
        )
    }

    fn on_link(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a01_0000 + n).into()
    }

    fn far(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x6400_0000 + n).into()
    }

    fn ask(cache: &mut HopCache, network: &Network, hops: &mut Hops, address: IpAddr) -> Hop {
        cache.of_conn(network, hops, Toward::Client, || address).unwrap()
    }

    #[test]
    fn more_clients_than_are_remembered_leave_what_connections_remember() {
        let (network, mut cache) = (network(), HopCache::default());
        let mut first = Hops::default();
        let hop = ask(&mut cache, &network, &mut first, far(0));
        for n in 1..2 * MOST as u32 {
            assert_eq!(ask(&mut cache, &network, &mut Hops::default(), far(n)), hop);
        }
        assert_eq!(cache.known(&first, Toward::Client), Some(&hop));
        assert!(cache.by_address.len() <= MOST && cache.hops.len() == 1);
    }

    #[test]
    fn more_hops_than_have_numbers_begin_a_new_generation() {
        let (network, mut cache) = (network(), HopCache::default());
        let mut first = Hops::default();
        let hop = ask(&mut cache, &network, &mut first, on_link(1));
        for n in 2..=MOST as u32 {
            ask(&mut cache, &network, &mut Hops::default(), on_link(n));
        }
        assert_eq!(cache.known(&first, Toward::Client), Some(&hop));
        let mut last = Hops::default();
        let other = ask(&mut cache, &network, &mut last, on_link(MOST as u32 + 1));
        assert_ne!(other, hop);
        assert_eq!(cache.known(&first, Toward::Client), None);
        assert_eq!(cache.known(&last, Toward::Client), Some(&other));
        assert_eq!(ask(&mut cache, &network, &mut first, on_link(1)), hop);
    }
}
