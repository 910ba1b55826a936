//! The part of the program that knows marked frames: the rules themselves, as instructions, in the order in which they are tried.
//!
//! A rule ends in a jump: to "take" if its mark has a service, to where the block ends if it has not, and to the next rule at the first thing that is not as
//! it says. Rules are few and change seldom, and without any this is nothing at all; a map could tell prefixes, but neither port ranges nor which rule
//! was first.
//!
//! Each comparison loads what it compares anew and works on it: so the verifier learns nothing about what the next rule will load, and goes through
//! the rules once, not once for each combination of their outcomes.

use std::net::IpAddr;

use super::super::Marked;
use super::super::assembler::Register::{R1, R10};
use super::super::assembler::{Alu, Assembler, Size, When};
use super::{ADDRESS_V4, FAMILY, FAR, NEAR, NEAR_PORT, PROTOCOL, SCTP, SUFFICES, TCP, UDP, V6, roles};
use crate::service::Prefix;

/// Takes what is marked for a service. A later fragment, which has no ports, is taken if some port would do.
pub(super) fn decide(a: &mut Assembler, marked: &[Marked]) {
    if marked.is_empty() {
        return;
    }
    a.load(Size::Byte, R1, R10, NEAR + PROTOCOL);
    a.branch(When::Equal, R1, TCP, "has ports");
    a.branch(When::Equal, R1, UDP, "has ports");
    a.branch(When::NotEqual, R1, SCTP, "unmarked");
    a.label("has ports");
    a.load(Size::Byte, R1, R10, NEAR + FAMILY);
    a.branch(When::Equal, R1, i32::from(V6), "marked IPv6");
    let of_family = |is_v4| marked.iter().filter(move |m| m.pattern.destination.address().is_ipv4() == is_v4);
    rules(a, of_family(true), "next rule");
    a.label("marked IPv6");
    rules(a, of_family(false), "next rule of IPv6");
    a.label("unmarked");
}

/// The rules of a family. What none is about goes on at "unmarked".
fn rules<'m>(a: &mut Assembler, marked: impl Iterator<Item = &'m Marked>, next: &'static str) {
    for (number, marked) in (0..).zip(marked) {
        rule(a, marked, (next, number));
        if marked.pattern.is_about_all() {
            // Nothing gets to the rules behind it, and the verifier wants no such instructions.
            return;
        }
        a.label((next, number));
    }
    a.jump("unmarked");
}

/// A rule; goes on at `next` if it does not apply.
fn rule(a: &mut Assembler, Marked { pattern, is_taken }: &Marked, next: (&'static str, u8)) {
    let there = if *is_taken { "take" } else { "unmarked" };
    prefix(a, NEAR, pattern.destination, next);
    prefix(a, FAR, pattern.source, next);
    if let Some(protocol) = pattern.protocol {
        a.load(Size::Byte, R1, R10, NEAR + PROTOCOL);
        a.alu(Alu::And, R1, 0xff);
        a.branch(When::NotEqual, R1, i32::from(protocol as u8), next);
    }
    if !pattern.has_every_port() {
        // That suffices of later ones alone.
        let fragments = roles::SERVICE_HERE as i32;
        match is_taken {
            true => a.branch(When::AnyBitOf, SUFFICES, fragments, there),
            false => a.branch(When::AnyBitOf, SUFFICES, fragments, next),
        }
        a.load(Size::Half, R1, R10, NEAR_PORT);
        a.host_order(R1);
        a.branch(When::Less, R1, i32::from(*pattern.ports.start()), next);
        a.branch(When::Greater, R1, i32::from(*pattern.ports.end()), next);
    }
    a.jump(there);
}

/// Goes on at `next` unless the address of a key has this prefix.
fn prefix(a: &mut Assembler, key: i16, prefix: Prefix, next: (&'static str, u8)) {
    let octets = |address| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let words = |address| -> Vec<i32> {
        let octets = octets(address);
        let words = octets.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
        words.map(i32::from_ne_bytes).collect()
    };
    let at = if prefix.address().is_ipv4() { key + ADDRESS_V4 } else { key };
    for ((number, bits), mask) in (0..).zip(words(prefix.address())).zip(words(prefix.mask())) {
        if mask != 0 {
            a.load(Size::Word, R1, R10, at + 4 * number);
            a.alu(Alu::And, R1, mask);
            a.branch_32(When::NotEqual, R1, bits, next);
        }
    }
}
