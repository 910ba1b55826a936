//! Local ports of FullNAT: which address and port of the director's own a connection goes to its real server from.
//!
//! What must be unique is the tuple that replies are found by: real server and port, local address and port, protocol. So each local address has a
//! queue of ports for each real server, and as many connections fit as there are ports times addresses times servers. A port comes
//! from the front of its queue and goes back to the end when its connection's time is over: that is after TIME_WAIT or whatever wait its state
//! asks for, and then after all other free ports. A connection that ends earlier, because a SYN of its client's takes its place, has the rest of its wait
//! kept by its port. Nothing is searched for, and a used-up queue says so at once.
//!
//! The workers share the ports out, so none has to ask another. Where it is known how the NICs deal frames out ([`Spread`](crate::service::Spread)), a worker has the ports
//! whose replies come to it; elsewhere by their numbers, and replies are handed over. Queues are made when rules change, never for a packet.
//!
//! When the NICs are told to deal otherwise, every worker begins anew with what it has by the new deal, at a moment of its own. Until then, and for as long as older
//! connections live, a port may be in the queue of one worker and a connection's of another. What keeps them apart is the directory of owners: a port is taken when the tuple of its
//! replies has been announced there, which succeeds for one worker alone, and fails for as long as a connection has it.

use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use siphasher::sip::SipHasher13;

use crate::conn::directory::Directory;
use crate::conn::table::Secret;
use crate::packet::{Tuple, V4, V6};
use crate::service::spread::Ends;
use crate::service::{Dest, DestId, Forwarding, Local, Services, Sorted, Tick, WorkerId};

const FIRST: u16 = Local::FIRST_PORT;

/// Local ports there are.
const PORTS: u16 = u16::MAX - FIRST + 1;

/// Ports that are tried for a connection, each some 50 ns, after a change of the deal: older connections may have them. A longer row of such ports costs a connection, and the next
/// one goes on behind it.
const TRIES: usize = 1024;

/// Milliseconds that a port waits at most: far longer than any state of TCP lasts.
const LONGEST_WAIT: u32 = 86_400_000;

/// The local ports of one worker.
pub struct Pools {
    worker: WorkerId,
    workers: u16,
    secret: Secret,
    directory: Option<Arc<Directory>>,
    queues: HashMap<Way, Queue>,
    turns: HashMap<DestId, Turn>,
    sorted: Option<Arc<Sorted>>,
}

/// The ports of a way that a worker has, by the order of its places.
enum Deal {
    /// Every so many-th.
    ByNumber,
    /// Those that add certain values, each value with its first place.
    ByHash(Box<[(u16, u16)]>),
}

/// From where to where: what has a queue of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    /// IP protocol number.
    pub protocol: u8,
    /// The local address.
    pub local: IpAddr,
    /// The real server. Port 0 stands for all its ports that have no queue of their own: a service of all ports leads there.
    pub server: (IpAddr, u16),
}

/// The local addresses that a real server is reached from, and whose turn it is. Each real server has its own turns, or a scheduler that takes turns as well
/// would always lead one server's connections to the same address.
#[derive(Default)]
struct Turn {
    locals: Vec<Arc<Local>>,
    next: usize,
    /// Addresses that were taken away while connections remain, to be counted down.
    leaving: Vec<Arc<Local>>,
}

/// Free ports of a way.
struct Queue {
    deal: Deal,
    /// Ports that connections have from here, a bit each. One that is older than the queue has a port of another's.
    out: Box<[u64]>,
    /// Ports from this place on were never used.
    fresh: u16,
    /// Where in the worker's ports the first one stands: two servers' connections do not begin at the same port.
    start: u16,
    /// Ports that came back.
    back: Ring<u16>,
    /// Ports that must not be used before a moment, with that moment, in the order they came. One behind another that has longer to wait waits with it.
    waiting: Ring<[u32; 2]>,
}

/// A queue with room for all of the worker's ports. Its memory, of numbers that are zero at first, is touched as it is used.
struct Ring<T> {
    places: Box<[T]>,
    head: u16,
    len: u16,
}

impl Pools {
    /// No ports yet, for one of some workers, who share the secret and the directory.
    pub fn new(worker: WorkerId, workers: usize, secret: Secret, directory: Option<Arc<Directory>>) -> Self {
        let workers = workers.clamp(1, 256) as u16;
        let (queues, turns) = (HashMap::new(), HashMap::new());
        Self { worker, workers, secret, directory, queues, turns, sorted: None }
    }

    /// Takes a port for a new connection to this port of a real server at `now`, and announces the tuple of its replies. Addresses take turns; one whose ports are used up is
    /// passed over, and counts that. `None` when all are.
    pub fn take(&mut self, dest: &Dest, protocol: u8, server_port: u16, now: Tick) -> Option<(Way, u16)> {
        let turn = self.turns.get_mut(&dest.id)?;
        for _ in 0..turn.locals.len() {
            let local = &turn.locals[turn.next % turn.locals.len()];
            turn.next = turn.next.wrapping_add(1);
            let mut way = Way { protocol, local: local.address, server: (dest.address, server_port) };
            if !self.queues.contains_key(&way) {
                way.server.1 = 0;
            }
            let (worker, workers, sorted) = (self.worker, self.workers, &self.sorted);
            let number = |deal: &Deal, place| match (deal, sorted) {
                (Deal::ByHash(shares), Some(sorted)) => sorted.port(&way, shares, place),
                _ => FIRST + u16::from(worker.0) + place * workers,
            };
            let hash = |port| reply(&self.secret, &way, server_port, port);
            let is_free = |port| match &self.directory {
                Some(directory) => directory.announce_new(hash(port), worker),
                None => true,
            };
            let taken = self.queues.get_mut(&way).and_then(|queue| {
                let port = queue.take(now, number, is_free)?;
                // When it is this way's turn again, what the others know of its port is at hand.
                if let (Some(directory), Some(place)) = (&self.directory, queue.then()) {
                    directory.prefetch(hash(number(&queue.deal, place)));
                }
                Some(port)
            });
            match taken {
                Some(port) => {
                    local.begin(worker);
                    return Some((way, port));
                }
                None => local.exhaust(worker),
            }
        }
        None
    }

    /// Gives a connection's port back, which may be used again from the moment `from` on. The way is the one it was taken for; its announcement has been withdrawn.
    pub fn give(&mut self, dest: DestId, way: &Way, port: u16, from: Tick, now: Tick) {
        if let Some(queue) = self.queues.get_mut(way) {
            let place = match (&queue.deal, &self.sorted) {
                (Deal::ByHash(shares), Some(sorted)) => sorted.place(way, shares, port),
                _ => Some(port - FIRST)
                    .filter(|n| n % self.workers == u16::from(self.worker.0))
                    .map(|n| n / self.workers),
            };
            if let Some(place) = place.filter(|place| queue.comes_back(*place)) {
                queue.give(place, from, now);
            }
        }
        let turn = self.turns.get(&dest);
        let mut locals = turn.into_iter().flat_map(|turn| turn.locals.iter().chain(&turn.leaving));
        if let Some(local) = locals.find(|local| local.address == way.local) {
            local.end(self.worker);
        }
    }

    /// Learns what local addresses and real servers there are now, and how the NICs deal frames out. What is gone stays for as long as connections have ports of it.
    pub fn adopt(&mut self, services: &Services, sorted: Option<&Arc<Sorted>>) {
        // Where nobody announces connections only the queues know of those that live.
        if self.sorted.as_ref() != sorted && (self.queues.is_empty() || self.directory.is_some()) {
            self.sorted = sorted.cloned();
            // Connections keep their ports. That those which rest are free again is the price: two minutes at most, of connections that ended before their time.
            self.queues.clear();
        }
        let mut wanted = HashSet::new();
        let mut turns = std::mem::take(&mut self.turns);
        for service in services.iter() {
            let full_nat = service.dests.iter().filter(|dest| dest.forwarding == Forwarding::FullNat);
            for dest in full_nat {
                let mut turn = turns.remove(&dest.id).unwrap_or_default();
                let of_its_family = |local: &&Arc<Local>| local.address.is_ipv4() == dest.address.is_ipv4();
                turn.change(service.locals.iter().filter(of_its_family), self.worker);
                for port in [dest.port].into_iter().chain(dest.every_port.then_some(0)) {
                    let server = (dest.address, port);
                    wanted.extend(turn.locals.iter().flat_map(|local| {
                        let local = local.address;
                        service.protocols().iter().map(move |p| Way { protocol: *p as u8, local, server })
                    }));
                }
                self.turns.insert(dest.id, turn);
            }
        }
        for (dest, mut turn) in turns {
            turn.change(std::iter::empty(), self.worker);
            if !turn.leaving.is_empty() {
                self.turns.insert(dest, turn);
            }
        }
        self.queues.retain(|way, queue| wanted.contains(way) || !queue.is_whole());
        wanted.into_iter().for_each(|way| self.open(way));
    }

    /// Makes a way's queue, if there is none.
    fn open(&mut self, way: Way) {
        let is_open = |way| self.queues.get(way).is_some_and(|queue| !queue.is_whole());
        // That of all the real server's ports has given some for this one. Where nobody announces connections only it knows which.
        let is_open_for_all = self.directory.is_none() && is_open(&Way { server: (way.server.0, 0), ..way });
        if is_open_for_all || self.queues.contains_key(&way) {
            return;
        }
        let by_hash = self.sorted.as_ref().and_then(|s| s.deal(&way, self.worker, self.workers));
        let (deal, share) = by_hash.unwrap_or((Deal::ByNumber, PORTS / self.workers));
        let start = self.start(&way, share);
        self.queues.insert(way, Queue::new(deal, share, start));
    }

    fn start(&self, way: &Way, share: u16) -> u16 {
        let [a, b, c] = self.secret.0;
        let mut hash = SipHasher13::new_with_keys(a, b);
        hash.write_u64(c);
        std::hash::Hash::hash(way, &mut hash);
        (hash.finish() % u64::from(share)) as u16
    }
}

/// The hash of what the real server's port sends back to a local port.
fn reply(secret: &Secret, way: &Way, server_port: u16, port: u16) -> u64 {
    let protocol = way.protocol;
    let (source_port, destination_port) = (server_port, port);
    match (way.server.0, way.local) {
        (IpAddr::V4(server), IpAddr::V4(local)) => {
            let (source, destination) = (V4::from(server), V4::from(local));
            secret.hash(Tuple { source, destination, source_port, destination_port, protocol }.words())
        }
        (server, local) => {
            let [source, destination] = [server, local].map(|address| match address {
                IpAddr::V4(address) => V6::from(address.to_ipv6_mapped()),
                IpAddr::V6(address) => V6::from(address),
            });
            secret.hash(Tuple { source, destination, source_port, destination_port, protocol }.words())
        }
    }
}

impl Sorted {
    /// What a worker has of a way's ports, and how many. `None` where the hash does not see ports, or would leave somebody short of them: then
    /// for all workers.
    fn deal(&self, way: &Way, worker: WorkerId, workers: u16) -> Option<(Deal, u16)> {
        let spread = self.spread();
        if way.server.1 == 0 || !spread.hashes_ports_of(way.protocol) {
            return None;
        }
        let place = spread.place(&Ends { source: way.server, destination: (way.local, 0) });
        let (_, starts) = self.ports(way.local.is_ipv4());
        let (mut shares, mut counts) = (Vec::new(), [0u16; 256]);
        for (value, ends) in starts.windows(2).enumerate() {
            let owner = spread.worker_at(place ^ value);
            let count = &mut counts[usize::from(owner.0)];
            if owner == worker && ends[0] != ends[1] {
                shares.push((value as u16, *count));
            }
            *count += ends[1] - ends[0];
        }
        let least = counts[..usize::from(workers)].iter().min().copied().unwrap_or(0);
        let share = counts[usize::from(worker.0)];
        (least >= PORTS / workers / 2).then(|| (Deal::ByHash(shares.into()), share))
    }

    fn port(&self, way: &Way, shares: &[(u16, u16)], place: u16) -> u16 {
        let (ports, starts) = self.ports(way.local.is_ipv4());
        let (value, first) = shares[shares.partition_point(|(_, first)| *first <= place) - 1];
        ports[usize::from(starts[usize::from(value)] + (place - first))]
    }

    /// The place of a port that [`Sorted::port`] gives; none where it gives it to another worker.
    fn place(&self, way: &Way, shares: &[(u16, u16)], port: u16) -> Option<u16> {
        let (ports, starts) = self.ports(way.local.is_ipv4());
        let value = self.spread().of_port(way.local.is_ipv4(), port);
        let [start, end] = [starts[value], starts[value + 1]].map(usize::from);
        let within = ports[start..end].partition_point(|other| *other < port) as u16;
        let share = shares.partition_point(|(other, _)| usize::from(*other) < value);
        shares.get(share).filter(|(other, _)| usize::from(*other) == value).map(|(_, first)| first + within)
    }
}

impl Turn {
    fn change<'a>(&mut self, locals: impl Iterator<Item = &'a Arc<Local>>, worker: WorkerId) {
        let old = std::mem::replace(&mut self.locals, locals.cloned().collect());
        self.leaving.extend(old);
        let stays = |local: &Arc<Local>| !self.locals.iter().any(|l| Arc::ptr_eq(l, local));
        self.leaving.retain(|local| stays(local) && local.conns_of(worker) > 0);
    }
}

impl Queue {
    fn new(deal: Deal, share: u16, start: u16) -> Self {
        let out = vec![0; usize::from(share).div_ceil(64)].into();
        Self { deal, out, fresh: 0, start, back: Ring::new(share), waiting: Ring::new(share) }
    }

    /// Takes the first port that is free; those that are not go to the end.
    fn take(
        &mut self,
        now: Tick,
        number: impl Fn(&Deal, u16) -> u16,
        is_free: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        for _ in 0..TRIES.min(self.back.places.len()) {
            let place = self.next(now)?;
            let port = number(&self.deal, place);
            if is_free(port) {
                self.out[usize::from(place / 64)] |= 1 << (place % 64);
                return Some(port);
            }
            self.back.push(place);
        }
        None
    }

    fn next(&mut self, now: Tick) -> Option<u16> {
        if let Some(place) = self.unused() {
            self.fresh += 1;
            return Some(place);
        }
        // Two for each that leaves are enough for none to be forgotten, and few enough for any packet.
        for _ in 0..2 {
            let over = self.waiting.pop(|[_, from]| !has_to_wait(Tick(from), now));
            if let Some([place, _]) = over {
                self.back.push(place as u16);
            }
        }
        self.back.pop(|_| true)
    }

    /// The place that is taken next, as far as is known now.
    fn then(&self) -> Option<u16> {
        self.unused().or_else(|| self.back.first())
    }

    /// The first place that was never used.
    fn unused(&self) -> Option<u16> {
        let share = self.back.places.len() as u16;
        (self.fresh < share).then(|| wrap(self.start, self.fresh, share))
    }

    /// Whether a port was taken from here, and not from the queue of an earlier deal. It counts as given back now.
    fn comes_back(&mut self, place: u16) -> bool {
        let (word, bit) = (&mut self.out[usize::from(place / 64)], 1 << (place % 64));
        let is_out = *word & bit != 0;
        *word &= !bit;
        is_out
    }

    fn give(&mut self, place: u16, from: Tick, now: Tick) {
        let from = now.plus(from.since(now).min(LONGEST_WAIT));
        match has_to_wait(from, now) {
            true => self.waiting.push([place.into(), from.0]),
            false => self.back.push(place),
        }
    }

    /// Whether no connection has a port of it.
    fn is_whole(&self) -> bool {
        self.fresh == self.back.len + self.waiting.len
    }
}

/// Whether a port that is free from a moment on, not long after it was given back, still has to wait. It may be asked weeks later, while there are ports that were never
/// used: the clock may have wrapped by then.
fn has_to_wait(from: Tick, now: Tick) -> bool {
    (1..=LONGEST_WAIT).contains(&from.since(now))
}

impl<T: Copy + Default> Ring<T> {
    fn new(share: u16) -> Self {
        Self { places: vec![T::default(); usize::from(share)].into(), head: 0, len: 0 }
    }

    fn push(&mut self, item: T) {
        let tail = wrap(self.head, self.len, self.places.len() as u16);
        self.places[usize::from(tail)] = item;
        self.len += 1;
    }

    fn first(&self) -> Option<T> {
        self.places.get(usize::from(self.head)).copied().filter(|_| self.len > 0)
    }

    /// Takes the first one off if it will do.
    fn pop(&mut self, will_do: impl Fn(T) -> bool) -> Option<T> {
        let first = self.first().filter(|first| will_do(*first))?;
        self.head = wrap(self.head, 1, self.places.len() as u16);
        self.len -= 1;
        Some(first)
    }
}

/// A place so many further on among `share`, round the end.
fn wrap(place: u16, further: u16, share: u16) -> u16 {
    ((u32::from(place) + u32::from(further)) % u32::from(share)) as u16
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};

    use proptest::prelude::*;

    use super::*;
    use crate::sched;
    use crate::service::{Protocol, Service, ServiceId, Spread, Tunnel};

    const NOW: Tick = Tick(7);
    const SECRET: Secret = Secret::new([1, 2, 3]);
    const WAY: Way =
        Way { protocol: 6, local: IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 2)), server: (SERVER, 80) };
    const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 11));

    fn services(locals: &[&Arc<Local>]) -> (Services, Arc<Dest>) {
        services_to(80, locals)
    }

    #[test]
    fn a_port_that_had_to_wait_is_free_whenever_it_is_asked_for() {
        let (services, dest) = services(&[&local(2)]);
        for days in [1, 24, 26, 48] {
            let mut pools = pools(0, &services);
            let (way, port) = pools.take(&dest, 6, 80, NOW).unwrap();
            pools.give(dest.id, &way, port, NOW.plus(120_000), NOW);
            let later = NOW.plus(days * 86_400_000);
            let taken = std::iter::from_fn(|| pools.take(&dest, 6, 80, later));
            assert_eq!(taken.filter(|(_, other)| *other == port).count(), 1, "after {days} days");
        }
    }

    /// A service of this port, or of all.
    fn services_to(port: u16, locals: &[&Arc<Local>]) -> (Services, Arc<Dest>) {
        let dest = Arc::new(Dest {
            id: DestId(port.into()),
            address: SERVER,
            port,
            forwarding: Forwarding::FullNat,
            tunnel: Tunnel::default(),
            weight: 1,
            last_weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
            tell: Default::default(),
            mss: None,
            every_port: false,
        });
        let (scheduler_name, scheduler) = sched::by_name("rr").unwrap();
        let service = Service {
            id: ServiceId(port.into()),
            mark: None,
            protocol: Protocol::Tcp,
            address: [10, 9, 0, 1].into(),
            port,
            dests: vec![Arc::clone(&dest)],
            locals: locals.iter().map(|local| Arc::clone(local)).collect(),
            edits: 0,
            persistence: None,
            one_packet: false,
            flags: 0,
            scheduler_name,
            scheduler: Arc::from(scheduler),
        };
        (Services::new([Arc::new(service)]), dest)
    }

    fn local(n: u8) -> Arc<Local> {
        Arc::new(Local::new([10, 1, 0, n].into(), 4))
    }

    fn pools(worker: u8, services: &Services) -> Pools {
        let mut pools = Pools::new(WorkerId(worker), 4, SECRET, None);
        pools.adopt(services, None);
        pools
    }

    #[test]
    fn workers_never_have_the_same_port_and_together_have_them_all() {
        let (services, dest) = services(&[&local(2)]);
        let mut seen = HashSet::new();
        for worker in 0..4 {
            let mut pools = pools(worker, &services);
            while let Some((_, port)) = pools.take(&dest, 6, 80, NOW) {
                assert!(port >= FIRST && seen.insert(port), "{port} twice");
            }
        }
        assert_eq!(seen.len(), usize::from(PORTS / 4 * 4));
    }

    #[test]
    fn a_ports_reply_comes_to_the_worker_that_has_it() {
        let (services, dest) = services(&[&local(2)]);
        let key: Vec<u8> = (0..40).map(|n| (n * 37 + 11) as u8).collect();
        let table = (0..128).map(|place| WorkerId(place / 32)).collect();
        let sorted = Arc::new(Sorted::new(Spread::new(key, table, false).unwrap()));
        let mut seen = HashSet::new();
        for worker in (0..4).map(WorkerId) {
            let mut pools = Pools::new(worker, 4, SECRET, None);
            pools.adopt(&services, Some(&sorted));
            let mut own = Vec::new();
            while let Some((way, port)) = pools.take(&dest, 6, 80, NOW) {
                let reply = Ends { source: way.server, destination: (way.local, port) };
                assert_eq!(sorted.spread().worker(&reply), worker);
                assert!(port >= FIRST && seen.insert(port), "{port} twice");
                own.push(port);
            }
            // They come back to where they were.
            own.iter().for_each(|port| pools.give(dest.id, &WAY, *port, NOW, NOW));
            let again: Vec<_> =
                std::iter::from_fn(|| pools.take(&dest, 6, 80, NOW)).map(|(_, port)| port).collect();
            assert_eq!(again, own);
        }
        assert_eq!(seen.len(), usize::from(PORTS));
    }

    #[test]
    fn a_hash_that_leaves_a_worker_short_of_ports_is_not_followed() {
        let (services, dest) = services(&[&local(2)]);
        // Four workers, of which the table knows two.
        let table = (0..128).map(|place| WorkerId(place % 2)).collect();
        let sorted = Arc::new(Sorted::new(Spread::new((0..40).collect(), table, true).unwrap()));
        for worker in 0..4 {
            let mut pools = Pools::new(WorkerId(worker), 4, SECRET, None);
            pools.adopt(&services, Some(&sorted));
            let (_, port) = pools.take(&dest, 6, 80, NOW).unwrap();
            assert_eq!((port - FIRST) % 4, u16::from(worker));
        }
    }

    #[test]
    fn addresses_take_turns_and_one_that_is_used_up_is_passed_over() {
        let (one, two) = (local(2), local(3));
        let (services, dest) = services(&[&one, &two]);
        let mut pools = pools(0, &services);
        let both: Vec<_> = (0..4).map(|_| pools.take(&dest, 6, 80, NOW).unwrap().0.local).collect();
        assert_eq!(both, [one.address, two.address, one.address, two.address]);
        assert_eq!((one.conns(), two.conns()), (2, 2));
        while pools.take(&dest, 6, 80, NOW).is_some() {}
        assert_eq!((one.conns(), one.exhausted()), (u64::from(PORTS / 4), 1));
        pools.give(dest.id, &WAY, FIRST + 4, NOW, NOW);
        assert_eq!(pools.take(&dest, 6, 80, NOW), Some((WAY, FIRST + 4)));
        assert_eq!(pools.take(&dest, 17, 80, NOW), None, "another protocol has no queue here");
    }

    #[test]
    fn an_address_that_leaves_and_comes_back_has_its_ports_still_in_use() {
        let one = local(2);
        let (with, dest) = services(&[&one]);
        let (without, _) = services(&[]);
        let mut pools = pools(0, &with);
        let (_, first) = pools.take(&dest, 6, 80, NOW).unwrap();
        pools.adopt(&without, None);
        assert_eq!(pools.take(&dest, 6, 80, NOW), None);
        pools.adopt(&with, None);
        assert_ne!(pools.take(&dest, 6, 80, NOW).unwrap().1, first);
        pools.adopt(&without, None);
        pools.give(dest.id, &WAY, first, NOW, NOW);
        pools.give(dest.id, &WAY, first + 4, NOW, NOW);
        assert_eq!(one.conns(), 0);
        pools.adopt(&without, None);
        assert!(pools.queues.is_empty() && pools.turns[&dest.id].leaving.is_empty());
    }

    /// Four workers with a directory, each with the connections that it has: their ports.
    struct Workers {
        directory: Arc<Directory>,
        all: Vec<(Pools, VecDeque<u16>)>,
        dest: Arc<Dest>,
    }

    impl Workers {
        fn new(services: &Services, dest: Arc<Dest>, sorted: &Arc<Sorted>) -> Self {
            let directory = Arc::new(Directory::with_capacity(4 * usize::from(PORTS)).unwrap());
            let pools = (0..4).map(|n| Pools::new(WorkerId(n), 4, SECRET, Some(Arc::clone(&directory))));
            let mut all: Vec<_> = pools.map(|pools| (pools, VecDeque::new())).collect();
            all.iter_mut().for_each(|(pools, _)| pools.adopt(services, Some(sorted)));
            Self { directory, all, dest }
        }

        fn take(&mut self, worker: usize) -> Option<u16> {
            let (pools, conns) = &mut self.all[worker];
            let (_, port) = pools.take(&self.dest, 6, 80, NOW)?;
            conns.push_back(port);
            Some(port)
        }

        /// Ends the oldest connection.
        fn end(&mut self, worker: usize) {
            let (pools, conns) = &mut self.all[worker];
            let port = conns.pop_front().unwrap();
            self.directory.withdraw(reply(&SECRET, &WAY, 80, port), WorkerId(worker as u8));
            pools.give(self.dest.id, &WAY, port, NOW, NOW);
        }

        fn in_use(&self) -> HashSet<u16> {
            let ports = self.all.iter().flat_map(|(_, conns)| conns.iter().copied());
            let (ports, all): (HashSet<u16>, _) =
                (ports.collect(), self.all.iter().map(|(_, conns)| conns.len()).sum::<usize>());
            assert_eq!(ports.len(), all, "a port has two connections");
            ports
        }
    }

    /// A spread by a key made of this number, and by this table.
    fn sorted(seed: usize, table: impl Fn(u8) -> u8) -> Arc<Sorted> {
        let key = (0..40).map(|n| (n * 37 + seed) as u8).collect();
        let table = (0..128).map(|place| WorkerId(table(place))).collect();
        Arc::new(Sorted::new(Spread::new(key, table, false).unwrap()))
    }

    #[test]
    fn when_the_nics_deal_otherwise_connections_keep_their_ports_and_new_ones_have_the_new_deals() {
        let (services, dest) = services(&[&local(2)]);
        let (before, after) = (sorted(11, |place| place / 32), sorted(40, |place| (place % 16) / 4));
        let mut workers = Workers::new(&services, dest, &before);
        for worker in (0..4).cycle().take(40_000) {
            workers.take(worker).unwrap();
        }
        // They do not hear of it at once. Who has comes by ports that nobody has, whatever the others work by.
        for worker in 0..4 {
            workers.all[worker].0.adopt(&services, Some(&after));
            for n in 0..4 {
                let spread = if n <= worker { &after } else { &before };
                for _ in 0..500 {
                    let Some(port) = workers.take(n) else { continue };
                    let reply = Ends { source: WAY.server, destination: (WAY.local, port) };
                    assert_eq!(usize::from(spread.spread().worker(&reply).0), n);
                }
            }
            workers.in_use();
        }
        // The older connections end, and in the end all ports are there, each once.
        for worker in 0..4 {
            (0..workers.all[worker].1.len()).for_each(|_| workers.end(worker));
        }
        assert!(workers.in_use().is_empty());
        for worker in 0..4 {
            while workers.take(worker).is_some() {}
        }
        assert_eq!(workers.in_use().len(), usize::from(PORTS));
    }

    #[test]
    fn without_a_directory_a_deal_is_kept_for_as_long_as_connections_live() {
        let (with, dest) = services(&[&local(2)]);
        let (without, _) = services(&[]);
        let (before, after) = (sorted(11, |place| place / 32), sorted(40, |place| (place % 16) / 4));
        let mut pools = Pools::new(WorkerId(1), 4, SECRET, None);
        pools.adopt(&with, Some(&before));
        let (way, port) = pools.take(&dest, 6, 80, NOW).unwrap();
        for services in [&with, &without, &with] {
            pools.adopt(services, Some(&after));
            assert_eq!(pools.sorted.as_ref(), Some(&before));
        }
        pools.give(dest.id, &way, port, NOW, NOW);
        pools.adopt(&without, Some(&after));
        pools.adopt(&without, Some(&after));
        assert_eq!(pools.sorted.as_ref(), Some(&after));
    }

    #[test]
    fn a_service_of_all_ports_shares_those_towards_a_port_that_another_has() {
        let [(all, to_all), (one, to_one)] = [0, 80].map(|port| services_to(port, &[&local(2)]));
        let mut pools = pools(0, &Services::new(all.iter().chain(one.iter()).cloned()));
        let (mut seen, mut taken) = (HashSet::new(), Vec::new());
        for (dest, port) in [(&to_all, 80), (&to_one, 80), (&to_all, 443), (&to_all, 444)].repeat(50) {
            let (way, local_port) = pools.take(dest, 6, port, NOW).unwrap();
            assert!(seen.insert((port, local_port)), "{local_port} twice towards {port}");
            assert_eq!(way.server, (SERVER, if port == 80 { 80 } else { 0 }));
            taken.push((dest.id, way, local_port));
        }
        for (dest, way, port) in taken {
            pools.give(dest, &way, port, NOW, NOW);
        }
        assert!(pools.queues.len() == 2 && pools.queues.values().all(Queue::is_whole));
    }

    #[test]
    fn a_port_that_a_service_of_all_has_given_is_not_given_by_a_later_one() {
        let [(all, to_all), (one, to_one)] = [0, 80].map(|port| services_to(port, &[&local(2)]));
        let both = Services::new(all.iter().chain(one.iter()).cloned());
        let mut pools = pools(0, &all);
        let older: Vec<_> = (0..3000).map(|_| pools.take(&to_all, 6, 80, NOW).unwrap()).collect();
        pools.adopt(&both, None);
        let mut seen: HashSet<u16> = older.iter().map(|(_, port)| *port).collect();
        while let Some((way, port)) = pools.take(&to_one, 6, 80, NOW) {
            assert_eq!(way.server, (SERVER, 0));
            assert!(seen.insert(port), "{port} twice");
        }
        assert_eq!(seen.len(), usize::from(PORTS / 4));
        // With its own service that queue goes, once it is whole, and the later one gets its own.
        seen.iter().for_each(|port| pools.give(to_all.id, &older[0].0, *port, NOW, NOW));
        pools.adopt(&one, None);
        assert_eq!(pools.take(&to_one, 6, 80, NOW).unwrap().0.server, (SERVER, 80));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever comes when, no port has two connections, and in the end none is lost.
        #[test]
        fn no_port_is_given_out_twice_whoever_works_by_which_deal(
            steps in prop::collection::vec((0usize..4, prop_oneof![
                1 => (0usize..3).prop_map(Err), 6 => (1u16..3000).prop_map(|n| Ok((true, n))), 5 => (1u16..3000).prop_map(|n| Ok((false, n)))
            ]), 0..60),
        ) {
            let (services, dest) = services(&[&local(2)]);
            let deals = [sorted(11, |place| place / 32), sorted(40, |place| place % 4), sorted(11, |place| place % 64 / 16)];
            let mut workers = Workers::new(&services, dest, &deals[0]);
            for (worker, step) in steps {
                match step {
                    Err(deal) => workers.all[worker].0.adopt(&services, Some(&deals[deal])),
                    Ok((true, n)) => drop((0..n).map_while(|_| workers.take(worker)).count()),
                    Ok((false, n)) => {
                        let n = usize::from(n).min(workers.all[worker].1.len());
                        (0..n).for_each(|_| workers.end(worker));
                    }
                }
                workers.in_use();
            }
            for worker in 0..4 {
                workers.all[worker].0.adopt(&services, Some(&deals[1]));
                (0..workers.all[worker].1.len()).for_each(|_| workers.end(worker));
            }
            for worker in 0..4 {
                while workers.take(worker).is_some() {}
            }
            prop_assert_eq!(workers.in_use().len(), usize::from(PORTS));
        }
    }

    proptest! {
        /// The queue against a plain one: what waits, and then what is free, in order.
        #[test]
        fn ports_come_back_after_all_others_and_not_before_their_time(
            share in 1u16..20, start in 0u16..20,
            steps in prop::collection::vec(prop_oneof![Just(None), (0u32..9).prop_map(Some)], 0..200),
        ) {
            let mut queue = Queue::new(Deal::ByNumber, share, start % share);
            let mut free: VecDeque<u16> = (0..share).map(|n| (start % share + n) % share).collect();
            let (mut waiting, mut out) = (VecDeque::new(), VecDeque::new());
            let mut now = Tick(u32::MAX - 50);
            for step in steps {
                now = now.plus(1);
                let Some(wait) = step else {
                    let place = queue.take(now, |_, place| place, |_| true);
                    let ripe = |place| waiting.iter().any(|(p, from)| *p == place && !now.is_before(*from));
                    let may_be_used = place.is_none_or(|place| free.contains(&place) || ripe(place));
                    prop_assert!(may_be_used);
                    // Never none while one is free, and free ones in their order.
                    prop_assert!(place.is_some() || free.is_empty());
                    if let Some(place) = place {
                        if free.front() == Some(&place) {
                            free.pop_front();
                        } else {
                            prop_assert!(!free.contains(&place));
                            waiting.retain(|(p, _)| *p != place);
                        }
                        out.push_back(place);
                    }
                    continue;
                };
                if let Some(place) = out.pop_front() {
                    prop_assert!(queue.comes_back(place));
                    queue.give(place, now.plus(wait), now);
                    match wait {
                        0 => free.push_back(place),
                        _ => waiting.push_back((place, now.plus(wait))),
                    }
                }
                prop_assert_eq!(queue.is_whole(), out.is_empty());
            }
            // In the end all are there.
            now = now.plus(9);
            let rest: HashSet<u16> = std::iter::from_fn(|| queue.take(now, |_, place| place, |_| true)).collect();
            prop_assert_eq!(rest.len() + out.len(), usize::from(share));
        }
    }
}
