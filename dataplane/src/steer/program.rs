//! The XDP program: generated at run time, one for each interface, whose MAC is written into its instructions.
//!
//! ```text
//!   Ethernet ─▶ VLAN tags (0–2) ─▶ IPv4 ─┬─ TCP, UDP, SCTP: ports ─────────┐
//!   not to our MAC ─▶ pass  │            ├─ later fragment: no ports ──────┼─▶ near is a service, or marked? ▶ take
//!                           └────▶ IPv6 ─┤  ICMP error: embedded packet ───┤   far is a real server, and
//!      extension headers (0–8) ◀──┘      └─ all else ─▶ pass               │   the frame is not to us? ──────▶ take
//!                                                                          │   else ─▶ pass
//!                                                                          └─▶ far is a tunnel's end, and
//!                                                                              the frame is to us? ──────────▶ take
//!                                                                              else it is as above, if it has ports
//! ```
//!
//! Parsing fills three [keys](Key) on the stack, and one piece of code then decides over all kinds of frames:
//!
//! | key     | of a packet             | of an ICMP error          |
//! |---------|-------------------------|---------------------------|
//! | `near`  | destination, its port   | embedded source, its port: the error is about a reply |
//! | `far`   | source, its port        | embedded destination, its port: it is about a request |
//! | `local` | destination             | destination               |
//!
//! All keys are in one hash map, whose value says what the key is ([`roles`]). The key with port 0 is asked first and
//! says whether asking for the port is worth it, so a frame that is not the director's costs two lookups, and one that
//! is costs two to four. A later fragment has no port: it is taken by the key with port 0 alone, when its address has
//! any target at all, and so is a first one of a real server's, lest the kernel keep one part of a datagram and the
//! director the rest. An ICMP error asks for the far key first, with the port if it is UDP's, whether that is a tunnel's.
//! The rules that mark frames are no map: they are [instructions](marked), and when they change the program is replaced.
//! An address is 16 bytes, IPv4 is mapped (`::ffff:a.b.c.d`); the key's last byte tells it from that
//! very address in an IPv6 header.
//!
//! IPv6 is fast where it is common: TCP or UDP right after the fixed header. Extension headers are walked, up to
//! [eight](EXTENSIONS), with the same numbers and lengths as `ipv6_find_hdr` of the kernel; a frame with more is
//! passed. A fragment with offset 0 has ports and is decided by them, whether others follow or not (RFC 6946). Of a
//! later one only the header that it says comes next is known: where that is an extension header, it is passed.
//!
//! Numbers of the packet stay in network order in registers and are compared with constants in network order.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

mod marked;

use super::Marked;
use super::assembler::Register::{R0, R1, R2, R3, R4, R6, R7, R8, R9, R10};
use super::assembler::{Alu, Assembler, Instruction, Register, Size, When};

/// A key of the map: address, port in network order, protocol, and 6 for IPv6 or 0 for IPv4.
pub(super) type Key = [u8; KEY];

/// Bytes of a [`Key`].
pub(super) const KEY: usize = 20;

/// The key of an address; with port 0 and protocol 0, where the question has none.
pub(super) fn key(address: IpAddr, port: u16, protocol: u8) -> Key {
    let (address, family) = match address {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), 0),
        IpAddr::V6(v6) => (v6, V6),
    };
    let mut key = [0; KEY];
    key[..16].copy_from_slice(&address.octets());
    key[16..18].copy_from_slice(&port.to_be_bytes());
    key[18] = protocol;
    key[19] = family;
    key
}

/// What a key is: the bits of its value, a `u32` in the machine's order.
pub(super) mod roles {
    /// Of a key with a port: a service, a real server.
    pub(in crate::steer) const SERVICE: u32 = 1 << 0;
    pub(in crate::steer) const REAL_SERVER: u32 = 1 << 1;
    /// Of a key with port 0: a service, a real server with every port.
    pub(in crate::steer) const SERVICE_ANY: u32 = 1 << 2;
    pub(in crate::steer) const REAL_SERVER_ANY: u32 = 1 << 3;
    /// Of a key with port 0: some target is here, so a fragment is taken, and a port is worth asking for.
    pub(in crate::steer) const SERVICE_HERE: u32 = 1 << 4;
    pub(in crate::steer) const REAL_SERVER_HERE: u32 = 1 << 5;
    /// Of a key with port 0 and protocol 0: an address of the machine.
    pub(in crate::steer) const LOCAL: u32 = 1 << 6;
    /// Of a key with the protocol of a tunnel's outer packets, and with their port if that is UDP: a tunnel's far end.
    pub(in crate::steer) const TUNNEL: u32 = 1 << 7;
}

/// What the program does with a frame it takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Taken<'a> {
    /// Redirects it to the socket of its queue in this map; without a socket the kernel gets the frame.
    Redirect(BorrowedFd<'a>),
    /// Returns this code. For tests: a map without sockets would make taken and passed look the same.
    #[cfg(test)]
    Code(i32),
}

/// `XDP_PASS`: the kernel goes on with the frame.
pub(super) const PASS: i32 = 2;

/// The program for an interface with address `mac`, which looks keys up in `map`. `marked` is what of marked frames concerns this interface.
pub(super) fn assemble(
    mac: [u8; 6],
    map: BorrowedFd<'_>,
    marked: &[Marked],
    taken: Taken<'_>,
) -> Vec<Instruction> {
    let mut text = Assembler::default();
    let a = &mut text;
    ethernet(a, mac);
    ipv4(a);
    ipv6(a);
    icmpv6(a);
    icmp(a, map);
    decide(a, map, marked);
    finish(a, taken);
    // Labels are fixed text of this file; the tests below assemble both variants.
    text.finish().expect("every label is set once and near")
}

// Registers that keep their meaning through the program.
/// The context; what a call needs to know the queue.
const CONTEXT: Register = R9;
/// The header being parsed.
const HEADER: Register = R6;
/// The first byte after the frame.
const END: Register = R7;
/// Bits of the key with port 0 that suffice to take a frame.
const SUFFICES: Register = R8;

/// Of a packet with ports: what is there with every port.
const WHOLE: i32 = (roles::SERVICE_ANY | roles::REAL_SERVER_ANY) as i32;
/// Of a first fragment: the same, and any real server, for all parts of its datagrams must come the same way.
const FIRST_FRAGMENT: i32 = WHOLE | roles::REAL_SERVER_HERE as i32;
/// Of a later one, which shows no port: whatever is there.
const LATER_FRAGMENT: i32 = (roles::SERVICE_HERE | roles::REAL_SERVER_HERE) as i32;

// The stack: three keys, each at a multiple of eight, and the ports that go into two of them when their turn comes;
// and two bytes that keep nothing for long.
const NEAR: i16 = -24;
const FAR: i16 = -48;
const LOCAL: i16 = -72;
const NEAR_PORT: i16 = -74;
const FAR_PORT: i16 = -76;
const SCRATCH: i16 = -78;

// Parts of a key.
const ADDRESS_V4: i16 = 12;
const PORT: i16 = 16;
const PROTOCOL: i16 = 18;
const FAMILY: i16 = 19;

/// Ethernet: the frame must be addressed to us. Ends with HEADER at the network header.
fn ethernet(a: &mut Assembler, mac: [u8; 6]) {
    let [m0, m1, m2, m3, m4, m5] = mac;
    a.set(CONTEXT, R1); // R1 is the context at entry
    a.load(Size::Word, HEADER, R1, 0); // xdp_md.data
    a.load(Size::Word, END, R1, 4); // xdp_md.data_end
    a.set(R4, HEADER);
    a.alu(Alu::Add, HEADER, 14); // an Ethernet header
    a.branch(When::Greater, HEADER, END, "pass"); // not even that
    a.load(Size::Word, R2, R4, 0); // first four bytes of the destination
    a.branch_32(When::NotEqual, R2, i32::from_ne_bytes([m0, m1, m2, m3]), "pass"); // not to us
    a.load(Size::Half, R2, R4, 4); // last two bytes of the destination
    a.branch(When::NotEqual, R2, network_order([m4, m5]), "pass"); // not to us
    a.load(Size::Half, R2, R4, 12); // the EtherType

    // Up to two VLAN tags of four bytes, each ending in the EtherType of what follows.
    for tagged in ["tag", "inner tag"] {
        a.branch(When::Equal, R2, network_order([0x81, 0x00]), tagged); // 802.1Q
        a.branch(When::NotEqual, R2, network_order([0x88, 0xa8]), "network"); // not 802.1ad either
        a.label(tagged);
        a.alu(Alu::Add, HEADER, 4); // over the tag
        a.branch(When::Greater, HEADER, END, "pass"); // cut off within the tag
        a.load(Size::Half, R2, HEADER, -2); // the EtherType at its end
    }

    a.label("network");
    a.branch(When::NotEqual, R2, network_order([0x08, 0x00]), "not IPv4");
}

/// IPv4: fills the keys with the addresses, then the ports, and goes to "decide".
fn ipv4(a: &mut Assembler) {
    check_room(a, 20); // an IPv4 header without options
    header_length(a); // R2 = its length
    a.load(Size::Byte, R3, HEADER, 9); // the protocol

    blank_key(a, NEAR);
    blank_key(a, FAR);
    blank_key(a, LOCAL);
    a.load(Size::Word, R1, HEADER, 16); // the destination
    a.store(Size::Word, R10, NEAR + ADDRESS_V4, R1);
    a.store(Size::Word, R10, LOCAL + ADDRESS_V4, R1);
    a.load(Size::Word, R1, HEADER, 12); // the source
    a.store(Size::Word, R10, FAR + ADDRESS_V4, R1);
    set_protocol(a);

    // A later fragment: its address decides. ICMP has no targets, so a fragment of ICMP passes at the lookup.
    a.set(SUFFICES, LATER_FRAGMENT);
    a.store(Size::Word, R10, FAR_PORT, 0); // both ports: never asked for, but the verifier cannot know
    a.load(Size::Half, R1, HEADER, 6); // flags and fragment offset
    a.alu(Alu::And, R1, network_order([0x1f, 0xff])); // the offset
    a.branch(When::NotEqual, R1, 0, "decide");

    a.set(SUFFICES, WHOLE);
    a.branch(When::Equal, R3, ICMP, "icmp");
    a.load(Size::Half, R1, HEADER, 6);
    a.alu(Alu::And, R1, network_order([0x20, 0])); // more fragments
    a.branch(When::Equal, R1, 0, "whole");
    a.set(SUFFICES, FIRST_FRAGMENT);
    a.label("whole");
    pass_without_ports(a, "ports");

    a.label("ports");
    a.alu(Alu::Add, HEADER, R2); // over the IPv4 header, to the transport header
    a.label("transport"); // IPv6 comes in here
    check_room(a, 4); // both ports
    a.load(Size::Half, R1, HEADER, 0); // the source port
    a.store(Size::Half, R10, FAR_PORT, R1);
    a.load(Size::Half, R1, HEADER, 2); // the destination port
    a.store(Size::Half, R10, NEAR_PORT, R1);
    a.jump("decide");
}

/// IPv6: fills the keys with the addresses, walks to the transport header, and goes to "transport", which is "decide"
/// after the ports.
fn ipv6(a: &mut Assembler) {
    a.label("not IPv4");
    a.branch(When::NotEqual, R2, network_order([0x86, 0xdd]), "pass"); // ARP, LLDP …
    check_room(a, 40); // the fixed header
    check_version(a, 0);
    a.load(Size::Byte, R3, HEADER, 6); // the kind of the header that comes next, from here on

    copy_address(a, 24, &[NEAR, LOCAL]); // the destination
    copy_address(a, 8, &[FAR]); // the source
    for key in [NEAR, FAR, LOCAL] {
        a.store(Size::Word, R10, key + PORT, i32::from_ne_bytes([0, 0, 0, V6])); // no port, no protocol, the family
    }

    a.set(SUFFICES, WHOLE);
    a.alu(Alu::Add, HEADER, 40); // over the fixed header
    a.branch(When::Equal, R3, TCP, "upper ports"); // what nearly all frames have there
    a.branch(When::Equal, R3, UDP, "upper ports");
    for round in 0..EXTENSIONS {
        extension(a, round);
    }

    // No extension header, or one too many, which passes like all that has no ports.
    a.label("upper");
    a.branch(When::Equal, R3, ICMPV6, "icmpv6");
    pass_without_ports(a, "upper ports");
    a.label("upper ports");
    set_protocol(a);
    a.jump("transport");

    // As with IPv4, its address decides.
    a.label("later fragment");
    a.set(SUFFICES, LATER_FRAGMENT);
    a.store(Size::Word, R10, FAR_PORT, 0); // both ports: never asked for, but the verifier cannot know
    set_protocol(a);
    a.jump("decide");
}

/// One extension header: goes to "upper" if the header of kind R3 at HEADER is none, otherwise over it, with the kind
/// of the next in R3. All are at least eight bytes, and begin with that kind and a length.
fn extension(a: &mut Assembler, round: u8) {
    for kind in [HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, AUTHENTICATION] {
        a.branch(When::Equal, R3, kind, ("extension", round));
    }
    a.branch(When::NotEqual, R3, FRAGMENT, "upper");

    a.label(("extension", round));
    check_room(a, 8);
    a.set(R4, R3); // the kind of this header
    a.load(Size::Byte, R3, HEADER, 0); // the kind of the next
    a.load(Size::Byte, R2, HEADER, 1); // the length
    a.branch(When::Equal, R4, FRAGMENT, ("fragment", round));
    a.branch(When::Equal, R4, AUTHENTICATION, ("authentication", round));
    a.alu(Alu::Add, R2, 1); // RFC 8200 4.3: in units of eight bytes, without the first
    a.alu(Alu::ShiftLeft, R2, 3);
    a.jump(("over", round));

    a.label(("authentication", round));
    a.alu(Alu::Add, R2, 2); // RFC 4302 2.2: in units of four bytes, without the first two
    a.alu(Alu::ShiftLeft, R2, 2);
    a.jump(("over", round));

    a.label(("fragment", round));
    a.load(Size::Half, R1, HEADER, 2); // fragment offset and flags
    a.alu(Alu::And, R1, network_order([0xff, 0xf8])); // the offset
    a.branch(When::NotEqual, R1, 0, "later fragment");
    a.set(R2, 8); // its length byte is reserved
    a.load(Size::Half, R1, HEADER, 2);
    a.alu(Alu::And, R1, network_order([0, 1])); // more fragments
    a.branch(When::Equal, R1, 0, ("over", round));
    a.set(SUFFICES, FIRST_FRAGMENT);

    // The verifier follows every range that R2 can have on its own, in every round: three kinds to the power of eight
    // rounds, half a second to load. Through a place on the stack that is not at a multiple of eight it comes back as
    // any 16 bits, so the three are one again (some 3,200 instructions followed, 3 ms). The longest header has 2048 bytes,
    // so the mask only tells the verifier that HEADER stays within the reach of packets.
    a.label(("over", round));
    a.store(Size::Half, R10, SCRATCH, R2);
    a.load(Size::Half, R2, R10, SCRATCH);
    a.alu(Alu::And, R2, 0xfff);
    a.alu(Alu::Add, HEADER, R2);
}

/// An ICMPv6 error: as `icmp`, where what follows the embedded packet's fixed header is its transport header, or that of a fragment.
fn icmpv6(a: &mut Assembler) {
    a.label("icmpv6");
    a.set(SUFFICES, WHOLE);
    check_room(a, 8 + 40); // the ICMPv6 header, and the embedded fixed header
    a.load(Size::Byte, R1, HEADER, 0); // the type
    a.branch(When::Greater, R1, 127, "pass"); // RFC 4443 2.1: no error; echo, neighbour discovery, multicast listeners
    check_version(a, 8);
    a.load(Size::Byte, R3, HEADER, 8 + 6); // what the embedded packet's header says comes next
    copy_address(a, 8 + 8, &[NEAR]); // its source
    copy_address(a, 8 + 24, &[FAR]); // its destination
    a.alu(Alu::Add, HEADER, 8 + 40); // over both headers
    a.branch(When::NotEqual, R3, FRAGMENT, "embedded upper");
    check_room(a, 8); // the fragment header: what a server cut to its own MTU may be too long on the way
    a.load(Size::Byte, R3, HEADER, 0); // what comes next
    a.load(Size::Half, R1, HEADER, 2); // fragment offset and flags
    a.alu(Alu::And, R1, network_order([0xff, 0xf8])); // the offset
    a.branch(When::NotEqual, R1, 0, "pass"); // nothing tells whose it is
    a.alu(Alu::Add, HEADER, 8); // over it
    a.label("embedded upper");
    set_protocol(a);
    a.jump("embedded transport");
}

/// An ICMP error: fills the keys from the packet it is about, which went the other way, and goes to "decide" unless that
/// is a tunnel's.
fn icmp(a: &mut Assembler, map: BorrowedFd<'_>) {
    a.label("icmp");
    a.alu(Alu::Add, HEADER, R2); // over the IPv4 header, to the ICMP header
    check_room(a, 8 + 20); // it, and the embedded IPv4 header without options
    a.load(Size::Byte, R1, HEADER, 0); // the type
    a.branch(When::Equal, R1, 3, "error"); // destination unreachable, which includes "fragmentation needed"
    a.branch(When::Equal, R1, 11, "error"); // time exceeded
    a.branch(When::NotEqual, R1, 4, "pass"); // neither source quench: echo and the rest are the kernel's

    a.label("error");
    a.alu(Alu::Add, HEADER, 8); // over the ICMP header, to the embedded packet
    header_length(a); // R2 = its IPv4 header's length
    a.load(Size::Half, R1, HEADER, 6); // flags and fragment offset
    a.alu(Alu::And, R1, network_order([0x1f, 0xff])); // the offset
    a.branch(When::NotEqual, R1, 0, "pass"); // RFC 1122 3.2.2: no error is ever sent about a later fragment
    a.load(Size::Byte, R3, HEADER, 9); // its protocol
    set_protocol(a);
    a.load(Size::Word, R1, HEADER, 12); // its source
    a.store(Size::Word, R10, NEAR + ADDRESS_V4, R1);
    a.load(Size::Word, R1, HEADER, 16); // its destination
    a.store(Size::Word, R10, FAR + ADDRESS_V4, R1);
    a.alu(Alu::Add, HEADER, R2); // over the embedded IPv4 header
    a.label("embedded transport"); // IPv6 comes in here
    check_room(a, 4); // both ports; RFC 792 has eight bytes here, RFC 4443 more
    a.load(Size::Half, R1, HEADER, 0); // the source port
    a.store(Size::Half, R10, NEAR_PORT, R1);
    a.load(Size::Half, R1, HEADER, 2); // the destination port
    a.store(Size::Half, R10, FAR_PORT, R1);

    // About what the machine has sent into a tunnel? Of these only GUE has ports.
    a.branch(When::NotEqual, R3, UDP, "far without port");
    a.store(Size::Half, R10, FAR + PORT, R1);
    a.label("far without port");
    look_up(a, map, FAR);
    a.branch(When::Equal, R0, 0, "no tunnel");
    a.load(Size::Word, R1, R0, 0);
    a.alu(Alu::And, R1, roles::TUNNEL as i32);
    a.branch(When::Equal, R1, 0, "no tunnel");
    look_up(a, map, LOCAL);
    a.branch(When::Equal, R0, 0, "no tunnel"); // to somebody else
    a.load(Size::Word, R1, R0, 0);
    a.branch(When::AnyBitOf, R1, roles::LOCAL as i32, "take");

    a.label("no tunnel");
    a.store(Size::Half, R10, FAR + PORT, 0);
    a.load(Size::Byte, R3, R10, FAR + PROTOCOL);
    pass_without_ports(a, "decide");
}

/// The decision, from the keys on the stack.
fn decide(a: &mut Assembler, map: BorrowedFd<'_>, marked: &[Marked]) {
    a.label("decide");

    // A service on the near side?
    look_up(a, map, NEAR);
    a.branch(When::Equal, R0, 0, "no service"); // nothing here
    a.load(Size::Word, R1, R0, 0); // what is here
    a.set(R2, R1);
    a.alu(Alu::And, R2, SUFFICES);
    a.branch(When::AnyBitOf, R2, (roles::SERVICE_ANY | roles::SERVICE_HERE) as i32, "take");
    a.alu(Alu::And, R1, roles::SERVICE_HERE as i32);
    a.branch(When::Equal, R1, 0, "no service"); // no service with any port
    a.load(Size::Half, R1, R10, NEAR_PORT);
    a.store(Size::Half, R10, NEAR + PORT, R1);
    look_up(a, map, NEAR);
    a.branch(When::Equal, R0, 0, "no service"); // not with this port
    a.load(Size::Word, R1, R0, 0);
    a.branch(When::AnyBitOf, R1, roles::SERVICE as i32, "take");

    // Marked for a service?
    a.label("no service");
    marked::decide(a, marked);

    // A real server on the far side?
    look_up(a, map, FAR);
    a.branch(When::Equal, R0, 0, "pass");
    a.load(Size::Word, R1, R0, 0);
    a.set(R2, R1);
    a.alu(Alu::And, R2, SUFFICES);
    a.branch(
        When::AnyBitOf,
        R2,
        (roles::REAL_SERVER_ANY | roles::REAL_SERVER_HERE) as i32,
        "from a real server",
    );
    a.alu(Alu::And, R1, roles::REAL_SERVER_HERE as i32);
    a.branch(When::Equal, R1, 0, "pass");
    a.load(Size::Half, R1, R10, FAR_PORT);
    a.store(Size::Half, R10, FAR + PORT, R1);
    look_up(a, map, FAR);
    a.branch(When::Equal, R0, 0, "pass");
    a.load(Size::Word, R1, R0, 0);
    a.alu(Alu::And, R1, roles::REAL_SERVER as i32);
    a.branch(When::Equal, R1, 0, "pass");

    // What a real server sends to the machine itself is the machine's: answers to health checks, an SSH session.
    a.label("from a real server");
    look_up(a, map, LOCAL);
    a.branch(When::Equal, R0, 0, "take");
    a.load(Size::Word, R1, R0, 0);
    a.branch(When::AnyBitOf, R1, roles::LOCAL as i32, "pass");
}

/// The two ways out. Falls in from the decision to take.
fn finish(a: &mut Assembler, taken: Taken<'_>) {
    a.label("take");
    match taken {
        Taken::Redirect(sockets) => {
            a.map(R1, sockets);
            a.load(Size::Word, R2, CONTEXT, 16); // xdp_md.rx_queue_index
            a.set(R3, PASS); // what to do where there is no socket
            a.call(REDIRECT_MAP);
        }
        #[cfg(test)]
        Taken::Code(code) => a.set(R0, code),
    }
    a.exit();

    a.label("pass");
    a.set(R0, PASS);
    a.exit();
}

/// Passes unless the frame has `bytes` from HEADER on. Uses R1.
fn check_room(a: &mut Assembler, bytes: i32) {
    a.set(R1, HEADER);
    a.alu(Alu::Add, R1, bytes);
    a.branch(When::Greater, R1, END, "pass");
}

/// `R2 =` length of the IPv4 header at HEADER; passes if it is none.
fn header_length(a: &mut Assembler) {
    a.load(Size::Byte, R2, HEADER, 0); // version and length
    a.branch(When::Less, R2, 0x45, "pass"); // no IPv4, or fewer than five words
    a.branch(When::Greater, R2, 0x4f, "pass"); // no IPv4
    a.alu(Alu::And, R2, 0x0f); // the length in words of four bytes
    a.alu(Alu::ShiftLeft, R2, 2); // in bytes
}

/// Passes unless an IPv6 header begins at `offset` from HEADER. Uses R1.
fn check_version(a: &mut Assembler, offset: i16) {
    a.load(Size::Byte, R1, HEADER, offset); // version and half of the traffic class
    a.alu(Alu::And, R1, 0xf0);
    a.branch(When::NotEqual, R1, 0x60, "pass");
}

/// Copies the IPv6 address at `offset` from HEADER into keys. Uses R1.
fn copy_address(a: &mut Assembler, offset: i16, keys: &[i16]) {
    for half in [0, 8] {
        a.load(Size::Double, R1, HEADER, offset + half);
        for key in keys {
            a.store(Size::Double, R10, key + half, R1);
        }
    }
}

/// Passes what has no ports: goes on at `label` if the protocol in R3 is one that has.
fn pass_without_ports(a: &mut Assembler, label: &'static str) {
    a.branch(When::Equal, R3, TCP, label);
    a.branch(When::Equal, R3, UDP, label);
    a.branch(When::NotEqual, R3, SCTP, "pass");
}

/// Makes a key all zeros but for the prefix of a mapped IPv4 address.
fn blank_key(a: &mut Assembler, key: i16) {
    a.store(Size::Double, R10, key, 0);
    a.store(Size::Double, R10, key + 8, 0);
    a.store(Size::Word, R10, key + PORT, 0);
    a.store(Size::Half, R10, key + 10, 0xffff);
}

/// Writes the protocol in R3 into the keys that have one.
fn set_protocol(a: &mut Assembler) {
    a.store(Size::Byte, R10, NEAR + PROTOCOL, R3);
    a.store(Size::Byte, R10, FAR + PROTOCOL, R3);
}

/// `R0 =` address of the value of the key on the stack, or 0. Destroys R1 to R5.
fn look_up(a: &mut Assembler, map: BorrowedFd<'_>, key: i16) {
    a.map(R1, map);
    a.set(R2, R10);
    a.alu(Alu::Add, R2, i32::from(key));
    a.call(MAP_LOOKUP_ELEM);
}

/// Two bytes of a packet as the number a load makes of them.
fn network_order(bytes: [u8; 2]) -> i32 {
    i32::from(u16::from_ne_bytes(bytes))
}

/// Extension headers that are walked. RFC 8200 4.1 has six of these kinds in a packet at most, two of them destination
/// options. Each round makes the program longer, but no slower; a frame with more headers is left to the kernel.
const EXTENSIONS: u8 = 8;

/// The last byte of a key with an IPv6 address.
const V6: u8 = 6;

// IP protocol numbers.
const ICMP: i32 = 1;
const TCP: i32 = 6;
const UDP: i32 = 17;
const ICMPV6: i32 = 58;
const SCTP: i32 = 132;

// Those of IPv6 extension headers.
const HOP_BY_HOP: i32 = 0;
const ROUTING: i32 = 43;
const FRAGMENT: i32 = 44;
const AUTHENTICATION: i32 = 51;
const DESTINATION_OPTIONS: i32 = 60;

// Helpers, from `enum bpf_func_id`.
const MAP_LOOKUP_ELEM: i32 = 1;
const REDIRECT_MAP: i32 = 51;
