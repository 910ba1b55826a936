//! A director, and beside it one that sends nothing the short way: whatever comes, both must do the same, to the byte and to the counter.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arrayvec::ArrayVec;
use shunt::publisher::Publisher;
use shunt::rules::Rules;
use shunt_dataplane::conn::Conn;
use shunt_dataplane::conn::directory::Directory;
use shunt_dataplane::conn::paths::Paths;
use shunt_dataplane::director::{Director, Known, Listed, Parts, Place, Verdict, Wish};
use shunt_dataplane::packet::{Packet, V4};
use shunt_dataplane::port::BURST;
use shunt_dataplane::service::{DestId, PortId, Services, Snapshot, Tick};
use shunt_dataplane::stats::{Counters, DestCounters};
use shunt_dataplane::steer::Target;

/// Real servers whose counters are compared: more than any test has.
const DESTS: u32 = 1024;

/// What the second directors of several workers have in common, as the first ones have theirs.
pub struct Aside {
    publisher: Publisher,
    counters: Arc<Counters>,
    directory: Option<Arc<Directory>>,
    paths: Arc<Paths>,
    /// What they work by.
    pub services: Arc<Services>,
}

/// Two directors that are told the same.
pub struct Both {
    director: Director,
    long: Director,
    counters: [Arc<Counters>; 2],
    now: Tick,
    /// Whether there was a frame since connections were compared.
    is_changed: bool,
}

impl Aside {
    /// For so many workers, with a directory of so many entries if they have one.
    pub fn new(publisher: Publisher, workers: usize, entries: Option<usize>) -> Self {
        Self {
            publisher,
            counters: Arc::new(Counters::new(workers).expect("memory for counters")),
            directory: entries
                .map(|entries| Arc::new(Directory::with_capacity(entries).expect("memory for a directory"))),
            paths: Arc::default(),
            services: Arc::default(),
        }
    }

    /// Publishes rules for them.
    pub fn publish(&mut self, rules: &Rules, moment: Instant) {
        let services = self.publisher.publish(rules, &self.counters, moment).expect("few servers");
        self.services = Arc::new(services);
    }

    /// Lets go of what was removed long ago.
    pub fn forget(&mut self, moment: Instant) {
        self.publisher.forget(&self.counters, moment);
    }
}

impl Both {
    /// Two directors without connections.
    pub fn new(parts: Parts, aside: &Aside, now: Tick) -> Self {
        let beside = Parts {
            snapshot: Arc::clone(&parts.snapshot),
            directory: aside.directory.clone(),
            paths: Arc::clone(&aside.paths),
            counters: Arc::clone(&aside.counters),
            ..parts
        };
        let counters = [&parts.counters, &aside.counters].map(Arc::clone);
        let [director, mut long] =
            [parts, beside].map(|parts| Director::new(parts, now).expect("memory for connections"));
        long.go_the_long_way();
        Self { director, long, counters, now, is_changed: false }
    }

    /// See [`Director::burst`].
    pub fn burst(
        &mut self,
        packets: &mut [Packet],
        handed: Option<&[Known]>,
        now: Tick,
        verdicts: &mut ArrayVec<Verdict, BURST>,
    ) {
        (self.now, self.is_changed) = (now, true);
        let mut chunks: Vec<_> = packets.iter().map(|packet| *packet.chunk).collect();
        let mut extents: Vec<_> = packets.iter().map(Packet::extent).collect();
        let copies = chunks.iter_mut().zip(&mut extents);
        let mut copies: Vec<_> = copies.map(|(chunk, extent)| Packet::new(chunk, extent)).collect();
        let mut others = ArrayVec::new();
        self.director.burst(packets, handed, now, verdicts);
        // And it is told nothing of what others know.
        self.long.burst(&mut copies, handed.map(|_| &[][..]), now, &mut others);
        assert_eq!(*verdicts, others, "the long way");
        for (packet, copy) in packets.iter_mut().zip(&mut copies) {
            assert_eq!(packet.data(), copy.data(), "what the long way makes of it");
        }
        assert!(self.director.extras().eq(self.long.extras()), "what the long way sends besides");
    }

    /// See [`Director::extras`].
    pub fn extras(&self) -> impl Iterator<Item = (PortId, &[u8])> {
        self.director.extras()
    }

    /// See [`Director::adopt`]. The second one's services are its own: they have what is counted by local address.
    pub fn adopt(&mut self, snapshot: &Snapshot, beside: &Arc<Services>) {
        self.director.adopt(Arc::new(snapshot.clone()));
        self.long.adopt(Arc::new(Snapshot { services: Arc::clone(beside), ..snapshot.clone() }));
    }

    /// Their connections and counters must be the same, too.
    fn compare(&self) {
        let [listed, others] = [&self.director, &self.long].map(|director| {
            let (mut all, mut from) = (Vec::new(), Some(Place::default()));
            while let Some(place) = from {
                // Their publishers may number real servers otherwise.
                from = director.connections(place, usize::MAX, self.now, |mut listed| {
                    listed.dest = DestId::NOBODY;
                    all.push(format!("{listed:?}"));
                });
            }
            director.each_v4(|conn| {
                let Conn { state, marks, in_packets, detail, timeout, hops, .. } = conn;
                all.push(format!("{state:?} {marks:?} {in_packets} {detail:?} {timeout} {hops:?}"));
            });
            all
        });
        assert_eq!(listed, others, "connections of the long way");
        let [counted, others] =
            self.counters.each_ref().map(|counters| counters.totals().collect::<Vec<_>>());
        assert_eq!(counted, others, "counters of the long way");
        // Taken together: their publishers may number them otherwise, and a number is used again.
        let [counted, others] = self.counters.each_ref().map(|counters| {
            let dests = (0..DESTS).flat_map(|dest| counters.dest(DestId(dest)));
            dests.fold([0; 8], |sum, dest| {
                let DestCounters {
                    conns,
                    in_packets,
                    out_packets,
                    in_bytes,
                    out_bytes,
                    active,
                    inactive,
                    templates,
                } = dest;
                let all = [conns, in_packets, out_packets, in_bytes, out_bytes, active, inactive, templates];
                std::array::from_fn(|n| sum[n] + all[n].load(Ordering::Relaxed))
            })
        });
        assert_eq!(counted, others, "real servers' counters of the long way");
    }

    /// See [`Director::expire`].
    pub fn expire(&mut self, now: Tick, budget: usize) {
        if std::mem::take(&mut self.is_changed) {
            self.compare();
        }
        self.now = now;
        self.director.expire(now, budget);
        self.long.expire(now, budget);
    }

    /// See [`Director::wish`].
    pub fn wish(&mut self) -> Option<Wish> {
        let wish = self.director.wish();
        assert_eq!(self.long.wish(), wish, "what the long way wishes for");
        wish
    }

    /// See [`Director::opened`].
    pub fn opened(&mut self, target: Target) {
        self.director.opened(target);
        self.long.opened(target);
    }

    /// See [`Director::connections`].
    pub fn connections(
        &self,
        from: Place,
        places: usize,
        now: Tick,
        each: impl FnMut(Listed),
    ) -> Option<Place> {
        self.director.connections(from, places, now, each)
    }

    /// See [`Director::each_v4`].
    pub fn each_v4(&self, each: impl FnMut(&Conn<V4>)) {
        self.director.each_v4(each);
    }

    /// See [`Director::snapshot`].
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        self.director.snapshot()
    }
}

impl Drop for Both {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.compare();
        }
    }
}
