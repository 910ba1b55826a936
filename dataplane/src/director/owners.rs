//! Whose a connection is: what a worker tells the others, and asks about those it does not know, where there are several ([`Directory`]).

use arrayvec::ArrayVec;

use super::ahead::Glance;
use super::{Known, Shared, Verdict};
use crate::conn::directory::{Announced, Directory};
use crate::conn::index::Packed;
use crate::service::WorkerId;
use crate::stats::Event;

/// Tuples to be told of together, while their lines come.
const TOGETHER: usize = 8;

/// What the others are to be told before the burst is over: until then no reply can have come.
pub(super) type Notices = ArrayVec<Notice, TOGETHER>;

/// What they are told of a tuple.
pub(super) struct Notice {
    /// Its hash.
    pub hash: u64,
    /// Whether they have been told of it before.
    pub is_known: bool,
    /// Where its connection is, if that is of use.
    pub candidate: Option<Packed>,
}

impl Shared {
    /// Where owners are to be looked up, if they are: what was handed over is not handed on.
    pub(super) fn owners(&self) -> Option<&Directory> {
        self.directory.as_deref().filter(|_| !self.handed)
    }

    /// The worker that a tuple's connection belongs to, if that is not this one.
    #[inline(always)]
    pub(super) fn owner_elsewhere(&self, hash: u64) -> Option<WorkerId> {
        self.found_elsewhere(hash).map(|(owner, _)| owner)
    }

    /// The same, and where that worker most likely has it.
    #[inline(always)]
    pub(super) fn found_elsewhere(&self, hash: u64) -> Option<(WorkerId, Packed)> {
        self.owners()?.find(hash).filter(|(owner, _)| *owner != self.worker)
    }

    /// The verdict about a packet whose connection belongs to another worker.
    #[inline(always)]
    pub(super) fn elsewhere(&self, glance: &Glance) -> Option<Verdict> {
        let (owner, candidate) = self.found_elsewhere(glance.hash)?;
        Some(Verdict::HandOff(owner, Known::of(glance, candidate)))
    }

    /// Claims a tuple for this worker. Says who has it if somebody was quicker.
    pub(super) fn announce(&self, hash: u64) -> Option<WorkerId> {
        match self.directory.as_ref()?.announce(hash, self.worker) {
            Announced::Ours => None,
            Announced::Theirs(owner) => Some(owner),
            Announced::Full => {
                self.mine().count(Event::DirectoryFull, 1);
                None
            }
        }
    }

    /// Takes a tuple for this worker, whoever had it.
    pub(super) fn claim(&self, hash: u64) {
        if let Some(directory) = &self.directory
            && directory.claim(hash, self.worker) == Announced::Full
        {
            self.mine().count(Event::DirectoryFull, 1);
        }
    }

    pub(super) fn withdraw(&self, hash: u64) {
        if let Some(directory) = &self.directory {
            directory.withdraw(hash, self.worker);
        }
    }

    /// Says where a connection is whose tuple the others have been told.
    pub(super) fn note(&self, hash: u64, candidate: Packed) {
        if let Some(directory) = &self.directory {
            directory.note(hash, self.worker, candidate);
        }
    }

    /// Tells the others something before the burst is over.
    pub(super) fn tell_soon(&mut self, notice: Notice) {
        self.prefetch_owner(notice.hash);
        if self.notices.is_full() {
            self.tell();
        }
        self.notices.push(notice);
    }

    /// Tells the others what they were to be told soon.
    pub(super) fn tell(&mut self) {
        if self.notices.is_empty() {
            return;
        }
        for Notice { hash, is_known, candidate } in self.notices.take() {
            if !is_known {
                // Whoever else claims a reply's tuple has the same real server and port: the kernel, too, finds the first one.
                self.announce(hash);
            }
            candidate.into_iter().for_each(|candidate| self.note(hash, candidate));
        }
    }

    /// Starts fetching the line that says whose a tuple is.
    pub(super) fn prefetch_owner(&self, hash: u64) {
        self.directory.iter().for_each(|directory| directory.prefetch(hash));
    }
}
