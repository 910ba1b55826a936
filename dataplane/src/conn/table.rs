//! The connection table of one worker: a slab of entries, an index over it, a wheel through it.
//!
//! All memory is mapped when the table is made and pages are touched as they are used, brought before that by whoever has the table's
//! [`Supply`]; nothing is allocated, rehashed or moved afterwards. A full table refuses.

use std::sync::Arc;

use arrayvec::ArrayVec;
use siphasher::sip::SipHasher13;

use super::index::{Candidate, Direction, Index, Packed};
use super::memory::Mapped;
use super::supply::{Demand, Supply};
use super::wheel::{Linked, Links, Wheel};
use super::{Conn, Marks};
use crate::packet::address::mix;
use crate::packet::{Address, Tuple, Words};
use crate::service::Tick;

/// A connection's place in the table, until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnId(u32);

impl ConnId {
    /// The place as a number.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The place of a [`number`](Self::number).
    pub fn numbered(number: u32) -> Self {
        Self(number)
    }
}

/// Milliseconds that an entry lives on whose time is over, but which controls others (`ip_vs_conn_expire`). From then on that is its timeout.
pub const REPRIEVE: u32 = 60_000;

/// Random words that key the hash: a client can choose its ports, and must not be able to choose its bucket.
#[derive(Clone, Copy, Debug)]
pub struct Secret(pub(crate) [u64; 3]);

/// The table.
pub struct Table<A> {
    slab: Slab<A>,
    index: Index,
    wheel: Wheel,
    secret: Secret,
    /// By connection, the template that made it. Touched only for connections that one did make.
    controllers: Mapped<u32>,
    /// Whether a connection has begun since the last burst was over.
    has_begun_any: bool,
    /// Hashes of replies that are not in the index yet, with their connections: their lines are on their way.
    fresh: ArrayVec<(u64, u32), BATCH>,
    /// Connections that are about to expire, taken out of the wheel: their index lines are on their way.
    due: ArrayVec<u32, BATCH>,
}

/// Lines that are asked for together, for connections that begin or end.
const BATCH: usize = 8;

struct Slab<A> {
    /// The first is never used: in the index its number says that there is none.
    entries: Mapped<Conn<A>>,
    /// Entries below this were used at least once, but for the first.
    touched: u32,
    /// Who brings memory hears of that.
    demand: Arc<Demand>,
    /// A stack of freed entries.
    free: Mapped<u32>,
    freed: usize,
}

/// Where a packet's connection most likely is, of all that there were when its burst began.
#[derive(Clone, Copy)]
pub struct Likely(Packed);

impl Likely {
    /// Nowhere.
    pub const NONE: Self = Self(Packed::NONE);

    /// The connection that it could be of, and which way it goes then.
    #[inline]
    pub fn candidate(&self) -> Option<(ConnId, Direction)> {
        self.0.candidate().map(|(slot, direction)| (ConnId(slot), direction))
    }
}

/// The table has no room for one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Secret {
    /// A key of random words.
    pub const fn new([a, b, c]: [u64; 3]) -> Self {
        // The last one is a multiplier; an even one would lose the hash's lowest bits.
        Self([a, b, c | 1])
    }

    /// A keyed hash: two multiplications, and two more for IPv6, so that every output bit depends on every input bit and on the key.
    #[inline]
    pub fn hash<A: Address>(&self, Words { ends, ports }: Words<A>) -> u64 {
        let [a, b, c] = self.0;
        mix(mix(A::word_of(ends, self.0) ^ a, ports ^ b) ^ b, c)
    }
}

impl<A: Address> Table<A> {
    /// A table for up to `capacity` connections.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn with_capacity(capacity: usize, secret: Secret, now: Tick) -> std::io::Result<Self> {
        let capacity = capacity.clamp(1, (1 << 31) - 2);
        Ok(Self {
            slab: Slab {
                entries: Mapped::zeroed(capacity + 1)?,
                touched: 1,
                demand: Arc::default(),
                free: Mapped::zeroed(capacity)?,
                freed: 0,
            },
            // A NAT connection has two index entries.
            index: Index::with_capacity(capacity * 2)?,
            wheel: Wheel::new(now),
            secret,
            controllers: Mapped::zeroed(capacity + 1)?,
            has_begun_any: false,
            fresh: ArrayVec::new(),
            due: ArrayVec::new(),
        })
    }

    /// Its memory, for the one who brings it.
    pub fn supply(&self) -> Supply {
        let Slab { entries, free, demand, .. } = &self.slab;
        let in_order = [
            (entries.pages(), size_of::<Conn<A>>()),
            (free.pages(), size_of::<u32>()),
            (self.controllers.pages(), size_of::<u32>()),
        ];
        Supply::whole(self.index.pages()).and_in_order(in_order, demand)
    }

    /// The hash of a tuple, for the other methods.
    #[inline]
    pub fn hash(&self, tuple: &Tuple<A>) -> u64 {
        self.secret.hash(tuple.words())
    }

    /// A keyed hash of any bytes.
    pub fn hash_bytes(&self, bytes: &[u8]) -> u64 {
        let [a, b, _] = self.secret.0;
        SipHasher13::new_with_keys(a, b).hash(bytes)
    }

    /// The hash of a tuple, whose index line is fetched.
    #[inline]
    pub fn ask(&self, words: Words<A>) -> u64 {
        let hash = self.secret.hash(words);
        self.prefetch_index(hash);
        hash
    }

    /// The same for one of [many](super::memory::prefetch_many).
    #[inline]
    pub fn ask_for_many(&self, words: Words<A>) -> u64 {
        let hash = self.secret.hash(words);
        self.index.prefetch_many(hash);
        hash
    }

    /// Starts fetching the index line of a hash.
    #[inline]
    pub fn prefetch_index(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Starts fetching the entry that a hash most likely leads to, and says where that is. Its index line should be there by now.
    #[inline]
    pub fn prefetch_entry(&self, hash: u64) -> Likely {
        let candidate = self.index.first(hash);
        if let Some((slot, _)) = candidate.candidate() {
            self.slab.entries.prefetch_many(slot as usize);
        }
        Likely(candidate)
    }

    /// Brings the entry closer that was fetched, because it is needed soon; if there is none, the one that is never used.
    #[inline]
    pub fn prefetch_near(&self, likely: &Likely) {
        self.slab.entries.prefetch(likely.0.slot());
    }

    /// Starts fetching the entry that somebody else took for the right one, which it need not be any more. `None` if there is no such entry.
    #[inline]
    pub fn prefetch_candidate(&self, candidate: Packed) -> Option<Likely> {
        let (slot, _) = candidate.candidate()?;
        self.slab.entries.get(slot as usize)?;
        self.slab.entries.prefetch_many(slot as usize);
        Some(Likely(candidate))
    }

    /// The same as [`find`](Self::find), which need not look into the index if the connection is where it was `likely`, or if there was none and has been none
    /// since.
    #[inline(always)]
    pub fn find_where(&self, likely: &Likely, tuple: &Tuple<A>, hash: u64) -> Option<(ConnId, Direction)> {
        match likely.candidate() {
            Some((id, direction)) if self.is_at(id, direction, tuple) => Some((id, direction)),
            None if self.has_none(likely) => None,
            _ => self.find(tuple, hash),
        }
    }

    /// Whether there was no connection that it could be of, and none has begun since.
    #[inline]
    pub fn has_none(&self, likely: &Likely) -> bool {
        likely.candidate().is_none() && !self.has_begun_any
    }

    /// The connection that a packet belongs to, and which way the packet goes.
    #[inline(never)]
    pub fn find(&self, tuple: &Tuple<A>, hash: u64) -> Option<(ConnId, Direction)> {
        let is_it = |(slot, direction): Candidate| self.is_at(ConnId(slot), direction, tuple);
        let (slot, direction) = self.index.find(hash, is_it).or_else(|| {
            let fresh = self.fresh.iter().filter(|(reply, _)| *reply == hash);
            fresh.map(|(_, slot)| (*slot, Direction::Reply)).find(|candidate| is_it(*candidate))
        })?;
        Some((ConnId(slot), direction))
    }

    /// Whether the packets that go this way on the connection at a place have this tuple.
    #[inline]
    pub fn is_at(&self, id: ConnId, direction: Direction, tuple: &Tuple<A>) -> bool {
        let conn = &self.slab.entries[id.0 as usize];
        match direction {
            Direction::Request => conn.request().is(tuple),
            Direction::Reply => conn.reply().is_some_and(|reply| reply.is(tuple)),
        }
    }

    /// A connection.
    #[inline]
    pub fn conn(&self, id: ConnId) -> &Conn<A> {
        &self.slab.entries[id.0 as usize]
    }

    /// A connection, to change. Its tuples must stay as they are. It is not [steady](super::hops) any more.
    #[inline]
    pub fn conn_mut(&mut self, id: ConnId) -> &mut Conn<A> {
        let conn = self.conn_as_is(id);
        conn.hops.set_steady(false);
        conn
    }

    /// A connection, to note what may change while it is steady: when its last packet came, how many there were.
    #[inline]
    pub fn conn_as_is(&mut self, id: ConnId) -> &mut Conn<A> {
        &mut self.slab.entries[id.0 as usize]
    }

    /// Notes whether a connection is [steady](super::hops).
    #[inline]
    pub fn set_steady(&mut self, id: ConnId, is_steady: bool) {
        self.conn_as_is(id).hops.set_steady(is_steady);
    }

    /// Adds a connection. The caller has made sure that its request is not found yet.
    ///
    /// # Errors
    /// When the table is full; nothing has changed.
    pub fn insert(&mut self, conn: Conn<A>) -> Result<ConnId, Full> {
        let request = self.hash(&conn.request());
        self.insert_hashed(conn, request)
    }

    /// The same, where the hash of its request is known already. A connection is read in wider pieces than it has just been written in: who reads it must wait for these writes, and for
    /// all before them.
    ///
    /// # Errors
    /// As above.
    pub fn insert_hashed(&mut self, conn: Conn<A>, request: u64) -> Result<ConnId, Full> {
        debug_assert_eq!(request, self.hash(&conn.request()));
        let slot = self.slab.take().ok_or(Full)?;
        self.has_begun_any = true;
        self.index.insert(request, slot, Direction::Request);
        if let Some(reply) = conn.reply() {
            if self.fresh.is_full() {
                self.settle();
            }
            let reply = self.hash(&reply);
            self.index.prefetch(reply);
            self.fresh.push((reply, slot));
        }
        self.slab.entries[slot as usize] = conn;
        self.wheel.insert(&mut self.slab, slot, conn.last_seen.plus(conn.timeout + conn.lingers()));
        Ok(ConnId(slot))
    }

    /// To be called after each burst, when nothing is [likely](Likely) any more.
    pub fn end_burst(&mut self) {
        self.settle();
        self.has_begun_any = false;
    }

    /// Puts the latest connections' replies into the index, whose lines have come by now. They are found before, too, only not as fast.
    fn settle(&mut self) {
        for (reply, slot) in self.fresh.take() {
            self.index.insert(reply, slot, Direction::Reply);
        }
    }

    /// Takes a connection out of the table.
    pub fn remove(&mut self, id: ConnId) -> Conn<A> {
        self.wheel.remove(&mut self.slab, id.0);
        self.forget(id)
    }

    /// Removes one connection whose time is over and that controls no others; one that does lives on for [`REPRIEVE`]. `None` when there is none, or when `budget` visits were not enough to find one;
    /// the rest waits for the next call. `ask` is told the hashes of those that are about to be removed, by which they may be known elsewhere.
    pub fn expire(&mut self, now: Tick, budget: &mut usize, ask: impl Fn(u64)) -> Option<Conn<A>> {
        loop {
            while let Some(slot) = self.due.pop() {
                // What was done about one that was due may have changed another.
                if self.slab.entries[slot as usize].protocol != 0 && self.is_over(slot, now) {
                    return Some(self.remove(ConnId(slot)));
                }
            }
            while *budget > 0
                && !self.due.is_full()
                && let Some(slot) = self.wheel.next_due(&mut self.slab, now)
            {
                if let Some(next) = self.wheel.then_due() {
                    self.slab.entries.prefetch(next as usize);
                }
                *budget -= 1;
                if self.is_over(slot, now) {
                    self.due.push(slot);
                }
            }
            if self.due.is_empty() {
                return None;
            }
            // The first is taken first: places are used again in the order in which they lie.
            self.due.reverse();
            for slot in &self.due {
                let conn = &self.slab.entries[*slot as usize];
                for tuple in [Some(conn.request()), conn.reply()].into_iter().flatten() {
                    let hash = self.hash(&tuple);
                    self.index.prefetch(hash);
                    ask(hash);
                }
            }
        }
    }

    /// Whether the time of a connection is over that was due. If not, it is due when it will be.
    fn is_over(&mut self, slot: u32, now: Tick) -> bool {
        let id = ConnId(slot);
        let conn = self.conn(id);
        if conn.remaining(now) == 0 {
            if conn.controls() == 0 {
                return true;
            }
            self.conn_mut(id).reprieve(now);
        }
        let conn = self.conn(id);
        let at = now.plus(conn.remaining(now) + conn.lingers());
        self.visit_at(slot, at);
        false
    }

    /// Has the wheel visit a connection at another moment.
    fn visit_at(&mut self, slot: u32, at: Tick) {
        self.wheel.remove(&mut self.slab, slot);
        self.wheel.insert(&mut self.slab, slot, at);
    }

    /// Brings a connection's visit forward after its timeout became shorter: the wheel would otherwise come by only
    /// when the old one is over.
    pub fn hasten(&mut self, id: ConnId) {
        let conn = self.conn(id);
        let at = conn.last_seen.plus(conn.timeout);
        self.visit_at(id.0, at);
    }

    /// The template that made a connection; it is there as long as the connection is.
    pub fn controller(&self, id: ConnId) -> Option<ConnId> {
        let is_controlled = self.conn(id).marks.has(Marks::CONTROLLED);
        is_controlled.then(|| ConnId(self.controllers[id.0 as usize]))
    }

    /// Notes that a template made a connection.
    pub fn control(&mut self, template: ConnId, id: ConnId) {
        self.controllers[id.0 as usize] = template.0;
        self.conn_mut(id).marks.set(Marks::CONTROLLED, true);
        self.conn_mut(template).detail.count(true);
    }

    /// Has a connection found by its replies only, so that another one may have its request. It lives as long as it would have.
    pub fn displace(&mut self, id: ConnId) {
        let request = self.hash(&self.conn(id).request());
        self.index.remove(request, id.0, Direction::Request);
        self.conn_mut(id).marks.set(Marks::RETIRED, true);
    }

    /// Has the request of a [displaced](Self::displace) connection found again, if that is still there. No other may have it. Says whether it is.
    pub fn restore(&mut self, id: ConnId, request: &Tuple<A>, hash: u64) -> bool {
        let conn = self.conn(id);
        let is_there = conn.marks.has(Marks::RETIRED) && conn.request().is(request);
        if is_there {
            self.index.insert(hash, id.0, Direction::Request);
            self.conn_mut(id).marks.set(Marks::RETIRED, false);
        }
        is_there
    }

    /// Has a template found no more. It is listed without a port, and lives as long as it would have.
    pub fn retire(&mut self, id: ConnId) {
        self.displace(id);
        let template = self.conn_mut(id);
        (template.virtual_port, template.server_port) = (u16::MAX, u16::MAX);
    }

    /// Connections it has room for.
    pub fn capacity(&self) -> usize {
        self.slab.entries.len() - 1
    }

    /// Places that were used at least once.
    pub fn places(&self) -> u32 {
        self.slab.touched - 1
    }

    /// The connection at a place, if there is one.
    pub fn at(&self, place: u32) -> Option<ConnId> {
        let entry = self.slab.used().get(place as usize)?;
        (entry.protocol != 0).then_some(ConnId(place + 1))
    }

    /// Connections in the table.
    pub fn len(&self) -> usize {
        self.slab.used().len() - self.slab.freed
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks at `places` places from `from` on, for a listing in steps of bounded length, and gives the connections there to `each`. Says
    /// where to go on; `None` at the end.
    pub fn walk(&self, from: u32, places: usize, mut each: impl FnMut(&Conn<A>)) -> Option<u32> {
        let used = self.slab.used();
        let from = (from as usize).min(used.len());
        let to = from.saturating_add(places).min(used.len());
        used[from..to].iter().filter(|conn| conn.protocol != 0).for_each(&mut each);
        (to < used.len()).then_some(to as u32)
    }

    /// The first connection at or behind place `from` that is wanted, and where to go on; looks at `budget` places at most and takes them off
    /// it. No place to go on from at the end.
    pub fn search(
        &self,
        from: u32,
        budget: &mut usize,
        is_wanted: impl Fn(&Conn<A>) -> bool,
    ) -> (Option<ConnId>, Option<u32>) {
        let used = self.slab.used();
        let rest = &used[(from as usize).min(used.len())..];
        for (conn, place) in rest.iter().zip(from..) {
            if *budget == 0 {
                return (None, Some(place));
            }
            *budget -= 1;
            if conn.protocol != 0 && is_wanted(conn) {
                return (Some(ConnId(place + 1)), Some(place + 1));
            }
        }
        (None, None)
    }

    fn forget(&mut self, id: ConnId) -> Conn<A> {
        self.settle();
        let conn = *self.conn(id);
        if !conn.marks.has(Marks::RETIRED) {
            let request = self.hash(&conn.request());
            self.index.remove(request, id.0, Direction::Request);
        }
        if let Some(template) = self.controller(id) {
            self.conn_mut(template).detail.count(false);
        }
        if let Some(reply) = conn.reply() {
            let reply = self.hash(&reply);
            self.index.remove(reply, id.0, Direction::Reply);
        }
        self.slab.give(id.0);
        conn
    }
}

impl<A: Address> Slab<A> {
    /// Entries that were used at least once, place by place.
    fn used(&self) -> &[Conn<A>] {
        &self.entries[1..self.touched as usize]
    }

    fn take(&mut self) -> Option<u32> {
        if let Some(last) = self.freed.checked_sub(1) {
            self.freed = last;
            return Some(self.free[last]);
        }
        let slot = self.touched;
        ((slot as usize) < self.entries.len()).then(|| {
            self.touched += 1;
            self.demand.tell(self.touched);
            slot
        })
    }

    fn give(&mut self, slot: u32) {
        self.entries[slot as usize] = Conn::default();
        self.free[self.freed] = slot;
        self.freed += 1;
    }
}

impl<A> Linked for Slab<A> {
    fn links(&mut self, slot: u32) -> &mut Links {
        &mut self.entries[slot as usize].links
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::conn::State;
    use crate::packet::{V4, V6};
    use crate::service::{DestId, Forwarding};

    const SECRET: Secret = Secret::new([0x9e37_79b9_7f4a_7c15, 0x6a09_e667_f3bc_c908, 0xbb67_ae85_84ca_a73b]);

    fn conn(n: u16, nat: bool, now: Tick, timeout: u32) -> Conn<V4> {
        Conn {
            client: V4(0x0a00_0002),
            virtual_address: V4(0x0a09_0001),
            server: V4(0x0a01_000b),
            client_port: n,
            virtual_port: 80,
            server_port: 8080,
            protocol: 6,
            state: State::Established,
            forwarding: if nat { Forwarding::Masq } else { Forwarding::Route },
            dest: DestId(1),
            last_seen: now,
            timeout,
            ..Conn::default()
        }
    }

    #[test]
    fn an_ipv4_connection_is_one_cache_line_and_an_ipv6_one_two() {
        assert_eq!((size_of::<Conn<V4>>(), align_of::<Conn<V4>>()), (64, 64));
        assert_eq!((size_of::<Conn<V6>>(), align_of::<Conn<V6>>()), (128, 64));
    }

    #[test]
    fn nobody_can_choose_addresses_of_one_hash() {
        // Of one network; whatever stands in the upper half can be made up for in the lower one, in sums that have no key.
        let source = |n: u64| u128::from(0x2001_0db8_0bad_0000 | n) << 64;
        let made_up_for = [|n: u64| !n, |n: u64| n.rotate_left(31), |n: u64| n.wrapping_neg()];
        for make_up_for in made_up_for {
            let hashes = (0..1000).map(|n| {
                let source = V6(source(n) | u128::from(make_up_for(0x2001_0db8_0bad_0000 | n)));
                let destination = V6(0x2001_0db8_000f << 80 | 1);
                SECRET.hash(
                    Tuple { source, destination, source_port: 1, destination_port: 2, protocol: 6 }.words(),
                )
            });
            assert_eq!(hashes.collect::<std::collections::HashSet<_>>().len(), 1000);
        }
    }

    #[test]
    fn a_full_table_refuses_and_recovers() {
        let mut table = Table::with_capacity(2, SECRET, Tick(0)).unwrap();
        let first = table.insert(conn(1, true, Tick(0), 1000)).unwrap();
        table.insert(conn(2, true, Tick(0), 1000)).unwrap();
        assert_eq!(table.insert(conn(3, true, Tick(0), 1000)), Err(Full));
        table.remove(first);
        table.insert(conn(3, true, Tick(0), 1000)).unwrap();
        assert_eq!(table.len(), 2);
    }

    proptest! {
        /// The table against a map, under random insertion, lookup, removal, refreshing and passing time.
        #[test]
        fn behaves_like_a_map_with_timeouts(
            ops in prop::collection::vec((0u8..4, 1u16..20, any::<bool>(), 1u32..100_000, 0u32..20_000), 1..300),
        ) {
            let mut now = Tick(u32::MAX - 500_000);
            let mut table = Table::with_capacity(64, SECRET, now).unwrap();
            let mut model: HashMap<u16, Conn<V4>> = HashMap::new();
            for (op, n, nat, timeout, step) in ops {
                let request = conn(n, nat, now, timeout).request();
                let found = table.find(&request, table.hash(&request));
                prop_assert_eq!(found.is_some(), model.contains_key(&n));
                match (op, found) {
                    (0, None) => {
                        let new = conn(n, nat, now, timeout);
                        table.insert(new).unwrap();
                        model.insert(n, new);
                    }
                    (1, Some((id, direction))) => {
                        prop_assert_eq!(direction, Direction::Request);
                        table.remove(id);
                        model.remove(&n);
                    }
                    (2, Some((id, _))) => {
                        table.conn_mut(id).last_seen = now;
                        model.get_mut(&n).unwrap().last_seen = now;
                    }
                    _ => {}
                }
                for (port, expected) in &model {
                    if let Some(reply) = expected.reply() {
                        let (id, direction) = table.find(&reply, table.hash(&reply)).unwrap();
                        prop_assert_eq!(direction, Direction::Reply);
                        prop_assert_eq!(table.conn(id).client_port, *port);
                    }
                }
                now = now.plus(step);
                let mut budget = usize::MAX;
                while let Some(expired) = table.expire(now, &mut budget, |_| {}) {
                    let known = model.remove(&expired.client_port).expect("expires once");
                    prop_assert_eq!(known.remaining(now), 0);
                }
                // What is over may stay for a slot or two, no longer.
                for known in model.values() {
                    prop_assert!(now.since(known.last_seen) < known.timeout + 2_000);
                }
                prop_assert_eq!(table.len(), model.len());
                let (mut walked, mut from) = (0, Some(0));
                while let Some(place) = from {
                    from = table.walk(place, 3, |_| walked += 1);
                }
                prop_assert_eq!(walked, model.len());
            }
        }
    }
}
