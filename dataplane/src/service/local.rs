//! Local addresses: the director's own, from which FullNAT talks to real servers.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use super::WorkerId;
use crate::stats::{add, sub};

/// A local address of a service, with its counters, which outlive edits.
#[derive(Debug)]
pub struct Local {
    /// The address.
    pub address: IpAddr,
    workers: Box<[CachePadded<Counts>]>,
}

/// What one worker did with it.
#[derive(Debug, Default)]
struct Counts {
    conns: AtomicU64,
    exhausted: AtomicU64,
}

impl Local {
    /// The first local port. Those below are for the machine's own services.
    pub const FIRST_PORT: u16 = 1024;

    /// An address that `workers` workers use.
    pub fn new(address: IpAddr, workers: usize) -> Self {
        Self { address, workers: (0..workers).map(|_| CachePadded::default()).collect() }
    }

    /// Counts a connection that begins. Only `worker` itself may say so, here and below.
    pub fn begin(&self, worker: WorkerId) {
        add(&self.of(worker).conns, 1);
    }

    /// Counts a connection that ends.
    pub fn end(&self, worker: WorkerId) {
        sub(&self.of(worker).conns, 1);
    }

    /// Counts a connection that found no free port here.
    pub fn exhaust(&self, worker: WorkerId) {
        add(&self.of(worker).exhausted, 1);
    }

    /// Connections that a worker has from here.
    pub fn conns_of(&self, worker: WorkerId) -> u64 {
        self.of(worker).conns.load(Ordering::Relaxed)
    }

    /// Connections from here now.
    pub fn conns(&self) -> u64 {
        self.workers.iter().map(|counts| counts.conns.load(Ordering::Relaxed)).sum()
    }

    /// How often a connection found no free port here.
    pub fn exhausted(&self) -> u64 {
        self.workers.iter().map(|counts| counts.exhausted.load(Ordering::Relaxed)).sum()
    }

    fn of(&self, worker: WorkerId) -> &Counts {
        &self.workers[usize::from(worker.0)]
    }
}
