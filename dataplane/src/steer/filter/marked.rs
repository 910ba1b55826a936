//! The part of the table that knows marked frames: a chain of rules for each kind of frame, in the order in which they are tried.
//!
//! A rule drops what its mark has a service for, and returns with what no later rule is to mark. When the rules change, so do the chains, all at once.

use std::net::IpAddr;

use super::super::Marked;
use super::super::nftables::{Base, Meta, Rule, Table, Verdict};
use super::{Batch, EMBEDDED, FAMILIES, Family, octets};
use crate::service::{PortId, Prefix};

/// A kind of frame: where it has what rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// With ports of its own.
    Whole,
    /// Without.
    LaterFragment,
    /// About a packet that went the other way.
    Error,
}

/// All of them, in the order of a family's chains.
pub(super) const KINDS: [Kind; 3] = [Kind::Whole, Kind::LaterFragment, Kind::Error];

/// Writes the chains anew. `indices` are the kernel's interfaces of a port, or of any.
pub(super) fn rewrite(
    table: &Table,
    batch: &mut Batch,
    marked: &[Marked],
    indices: impl Fn(PortId) -> Vec<u32>,
) {
    for family in FAMILIES {
        let of_family = marked.iter().filter(|m| family.has(m.pattern.destination.address()));
        let of_family: Vec<&Marked> = of_family.collect();
        for (chain, kind) in family.marked.into_iter().zip(KINDS) {
            table.clear(batch, chain);
            for marked in of_family.iter().filter(|marked| decides(marked, kind)) {
                let Some(port) = marked.pattern.port else {
                    table.rule(batch, chain, |r| family.mark(r, kind, marked));
                    continue;
                };
                for index in indices(port) {
                    table.rule(batch, chain, |r| {
                        r.meta(Meta::InputInterface).equals(&index.to_ne_bytes());
                        family.mark(r, kind, marked);
                    });
                }
            }
        }
    }
}

/// Whether a rule says anything of frames of this kind. One against some ports only says nothing of a fragment, which may be to others.
fn decides(marked: &Marked, kind: Kind) -> bool {
    kind != Kind::LaterFragment || marked.is_taken || marked.pattern.has_every_port()
}

impl Family {
    /// Goes to the chain of a kind of frame, with those that can be a service's.
    pub(super) fn jump_to_marked(&self, rule: &mut Rule<'_, '_>, kind: Kind) {
        let protocol = self.protocol(rule, kind);
        protocol.is_in(super::PROTOCOLS).verdict(Verdict::Jump(self.marked[kind as usize]));
    }

    /// A rule for frames of this kind.
    fn mark(&self, rule: &mut Rule<'_, '_>, kind: Kind, Marked { pattern, is_taken }: &Marked) {
        let (source, destination) = match kind {
            Kind::Error => (self.destination, self.source),
            _ => (self.source, self.destination),
        };
        self.prefix(rule, kind, destination, pattern.destination);
        self.prefix(rule, kind, source, pattern.source);
        if let Some(protocol) = pattern.protocol {
            self.protocol(rule, kind).equals(&[protocol as u8]);
        }
        if kind != Kind::LaterFragment && !pattern.has_every_port() {
            let (first, last) = (pattern.ports.start().to_be_bytes(), pattern.ports.end().to_be_bytes());
            let at = if kind == Kind::Error { EMBEDDED + self.header } else { 2 };
            rule.payload(Base::Transport, at, 2).is_at_least(&first).is_at_most(&last);
        }
        rule.verdict(if *is_taken { Verdict::Drop } else { Verdict::Return });
    }

    /// Goes on if the address at this offset of the header has a prefix.
    fn prefix(&self, rule: &mut Rule<'_, '_>, kind: Kind, offset: u32, prefix: Prefix) {
        if prefix.length() == 0 {
            return;
        }
        match kind {
            Kind::Error => rule.payload(Base::Transport, EMBEDDED + offset, self.address),
            _ => rule.payload(Base::Network, offset, self.address),
        };
        let [mask, bits]: [Vec<u8>; 2] = [prefix.mask(), prefix.address()].map(|a: IpAddr| octets(&a));
        rule.mask(&mask).equals(&bits);
    }

    /// Loads the protocol.
    fn protocol<'l, 'r, 'a>(&self, rule: &'l mut Rule<'r, 'a>, kind: Kind) -> &'l mut Rule<'r, 'a> {
        match kind {
            Kind::Error => rule.payload(Base::Transport, EMBEDDED + self.protocol, 1),
            _ => rule.meta(Meta::Protocol),
        }
    }
}
