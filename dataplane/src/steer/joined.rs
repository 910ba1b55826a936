//! Several packets in one, over AF_PACKET.
//!
//! A local sender may hand over many packets as one, for hardware to cut up, and the kernel joins what comes in (GRO). Most are too long for a
//! frame of ours, and are counted as that. Of TCP a joined one that fits is a segment like any other. Several UDP datagrams in one
//! (`UDP_SEGMENT`, as QUIC senders use it) would leave as one datagram, which nobody sent; and nothing in the frame tells of it. Only the kernel knows, and tells
//! a program: a filter on the receiving socket, which cuts all that is joined and not TCP short. A frame that is not whole is
//! counted as too long (`rx_oversized`).

use std::io;
use std::os::fd::BorrowedFd;

use super::Error;
use super::assembler::{Alu, Assembler, Instruction, Register::*, Size, When};
use super::bpf::Program;

/// A filter that lets no joined datagrams through.
#[derive(Debug)]
pub struct Joined {
    filter: Program,
}

impl Joined {
    /// Loads the filter.
    ///
    /// # Errors
    /// When the process may not use BPF, as in a user namespace.
    pub fn load() -> Result<Self, Error> {
        let filter = Program::load_filter(&assemble());
        Ok(Self {
            filter: filter.map_err(|source| refused("loading a filter for joined datagrams", source))?,
        })
    }

    /// Puts it on a packet socket.
    ///
    /// # Errors
    /// When this is no socket.
    pub fn cut_short(&self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        self.filter
            .filter(socket)
            .map_err(|source| refused("filtering a packet socket for joined datagrams", source))
    }
}

fn refused(what: &str, source: io::Error) -> Error {
    Error::Kernel { what: what.to_owned(), hint: None, source }
}

/// The filter: how many bytes of a packet the socket gets.
fn assemble() -> Vec<Instruction> {
    let mut a = Assembler::default();
    a.set(R6, R1);
    a.load(Size::Word, R1, R6, GSO_SIZE);
    a.branch(When::Equal, R1, 0, "whole");
    // A first tag is not in the packet any more. What has another is not looked into.
    a.load(Size::Word, R1, R6, PROTOCOL);
    for (ethertype, protocol_at, there) in [(0x0800u16, 14 + 9, "IPv4"), (0x86dd, 14 + 6, "IPv6")] {
        a.branch(When::NotEqual, R1, i32::from(ethertype.to_be()), there);
        a.set(R2, protocol_at);
        a.jump("read");
        a.label(there);
    }
    a.label("short");
    a.set(R0, 1);
    a.exit();

    a.label("read");
    a.set(R1, R6);
    a.set(R3, R10);
    a.alu(Alu::Add, R3, -8);
    a.set(R4, 1);
    a.call(LOAD_BYTES);
    a.branch(When::NotEqual, R0, 0, "short");
    a.load(Size::Byte, R1, R10, -8);
    a.branch(When::NotEqual, R1, libc::IPPROTO_TCP, "short");
    a.label("whole");
    a.set(R0, i32::MAX);
    a.exit();
    a.finish().expect("the text has no mistake")
}

// Offsets in `struct __sk_buff`.
const PROTOCOL: i16 = 16;
const GSO_SIZE: i16 = 176;

/// `bpf_skb_load_bytes`: from the packet in R1 at R2 to R3, R4 bytes.
const LOAD_BYTES: i32 = 26;
