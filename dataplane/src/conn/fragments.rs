//! What became of the first fragment of a datagram, for the others: they have no ports to find a connection by.
//!
//! A datagram's fragments share addresses, protocol and an id. When the first one is forwarded its flow is remembered under these, and the later ones
//! go the same way, each as it comes: nothing is put together. The table is small, fixed and forgetful: a datagram's fragments follow each
//! other within milliseconds, and an entry that is displaced costs one datagram.

use crate::packet::{Address, Meta, Tuple};
use crate::service::Tick;

/// Milliseconds an entry counts: the kernel's own patience (`net.ipv4.ipfrag_time`, RFC 8200 §4.5 has 60 s). Longer, and an id may
/// come round again.
pub const PATIENCE: u32 = 30_000;

/// Entries: 8192 datagrams under way at once, at 30 s each some 270 fragmented datagrams a second before one displaces another that may
/// still be needed; in practice fragments come together and tens of thousands a second are no trouble.
const SETS: usize = 2048;
const WAYS: usize = 4;

#[derive(Clone, Copy, Default)]
struct Entry<A> {
    /// Addresses, protocol and id, as a tuple whose ports are the id.
    key: Tuple<A>,
    /// The flow that the first fragment belongs to, as on the wire.
    flow: Tuple<A>,
    since: Tick,
    used: bool,
}

/// The table.
pub struct Fragments<A> {
    sets: Box<[[Entry<A>; WAYS]]>,
}

impl<A: Address> Default for Fragments<A> {
    fn default() -> Self {
        Self { sets: vec![[Entry::default(); WAYS]; SETS].into() }
    }
}

impl<A: Address> Fragments<A> {
    /// The key of a fragment's datagram, for [`remember`](Self::remember), [`flow`](Self::flow) and the directory of owners. It is no flow's tuple: no
    /// protocol of a flow has the highest bit set.
    pub fn key(meta: &Meta<A>) -> Option<Tuple<A>> {
        let fragment = meta.fragment?;
        Some(Tuple {
            source: meta.tuple.source,
            destination: meta.tuple.destination,
            source_port: (fragment.id >> 16) as u16,
            destination_port: fragment.id as u16,
            protocol: meta.tuple.protocol | 0x80,
        })
    }

    /// Remembers where a datagram goes. Gives the key that was displaced, if one that still counts was.
    pub fn remember(&mut self, key: Tuple<A>, hash: u64, flow: Tuple<A>, now: Tick) -> Option<Tuple<A>> {
        let set = &mut self.sets[hash as usize % SETS];
        let is_free = |e: &Entry<A>| !e.used || e.key == key || now.since(e.since) >= PATIENCE;
        let oldest =
            || set.iter().enumerate().max_by_key(|(_, e)| now.since(e.since)).map_or(0, |(at, _)| at);
        let at = set.iter().position(is_free).unwrap_or_else(oldest);
        let old = std::mem::replace(&mut set[at], Entry { key, flow, since: now, used: true });
        (old.used && old.key != key).then_some(old.key)
    }

    /// The flow of a later fragment's datagram, if its first one has been seen.
    pub fn flow(&self, key: &Tuple<A>, hash: u64, now: Tick) -> Option<Tuple<A>> {
        let set = &self.sets[hash as usize % SETS];
        set.iter().find(|e| e.used && e.key == *key && now.since(e.since) < PATIENCE).map(|e| e.flow)
    }
}
