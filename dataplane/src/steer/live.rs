//! Frames that the kernel makes by itself, for measurements: more than any sender of a process can send.
//!
//! `BPF_PROG_TEST_RUN` with live frames (Linux 5.18) runs an XDP program over pages of its own and does what the program says. Ours
//! writes the next flow into the frame and redirects it into an interface; over veth it is in the far end's receive queue with no socket
//! buffer made. The far end must take such frames: it has an XDP program, or GRO is on.
//!
//! A flow is an address of sixteen and a port of 4096. What they add to the checksums other bytes of the frame take away again, so
//! that both are right in every frame and the program need not compute them.

use std::io;
use std::os::fd::AsFd;

use super::assembler::{Alu, Assembler, Instruction, Register::*, Size, When};
use super::bpf::{Kind, Link, Map, Program, refused};
use super::{Error, Interface, Mode};
use crate::packet::checksum::Sum;

/// Bytes of a frame: the shortest on Ethernet, without its checksum.
pub const FRAME: usize = 60;

/// The most flows: addresses that differ in four bits, ports in twelve.
pub const FLOWS: u32 = 1 << 16;

/// The first source port.
const FIRST_PORT: u16 = 0x4000;

/// What the frames have in common.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// Ethernet addresses, the receiver's first.
    pub macs: [[u8; 6]; 2],
    /// The first of sixteen source addresses; its last byte is at most 240.
    pub source: [u8; 4],
    /// Where they go.
    pub destination: [u8; 4],
    /// The UDP port they go to.
    pub port: u16,
    /// How many flows, a power of two up to [`FLOWS`].
    pub flows: u32,
}

/// A source of frames into one interface of the calling thread's network namespace.
#[derive(Debug)]
pub struct LiveFrames {
    program: Program,
    frame: Vec<u8>,
    /// The number of the next frame; the program holds it.
    _next: Map<4, 8>,
}

impl LiveFrames {
    /// Prepares frames like `template` for the interface with this index.
    ///
    /// # Errors
    /// When the process may not use BPF.
    ///
    /// # Panics
    /// When the template breaks its own rules.
    pub fn new(template: &Template, interface: u32) -> Result<Self, Error> {
        assert!(template.flows.is_power_of_two() && template.flows <= FLOWS, "{} flows", template.flows);
        assert!(template.source[3] <= 240, "sixteen addresses");
        let next = Map::create(Kind::Array, 1)?;
        let program = Program::load(&program(template, interface, &next))?;
        Ok(Self { program, frame: frame(template), _next: next })
    }

    /// Sends `count` frames, one flow after the other, and returns when the last has left. A signal cuts it short.
    ///
    /// # Errors
    /// When the kernel has no live frames.
    pub fn send(&self, count: u32) -> io::Result<()> {
        match self.program.run_live(&self.frame, count) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => Ok(()),
            outcome => outcome,
        }
    }
}

/// Takes all frames from an interface and drops them, until it is dropped itself.
#[derive(Debug)]
pub struct Discard {
    _link: Link,
}

impl Discard {
    /// Puts it to work in the driver of an interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(interface: &Interface) -> Result<Self, Error> {
        let mut text = Assembler::default();
        text.set(R0, DROP);
        text.exit();
        let program = Program::load(&text.finish().unwrap_or_default())?;
        let what = || format!("dropping the frames of {}", interface.name);
        let link = program.attach(interface, Mode::Native).map_err(|error| refused(what(), error))?;
        Ok(Self { _link: link })
    }
}

/// XDP verdicts and helpers, from linux/bpf.h.
const ABORTED: i32 = 0;
const DROP: i32 = 1;
const MAP_LOOKUP: i32 = 1;
const REDIRECT: i32 = 23;

// Places in the frame.
const IP: usize = 14;
const ID: usize = IP + 4;
const SOURCE_END: usize = IP + 15;
const UDP: usize = IP + 20;
const DATA: usize = UDP + 8;

fn program(template: &Template, interface: u32, next: &Map<4, 8>) -> Vec<Instruction> {
    let mut text = Assembler::default();
    let a = &mut text;
    a.load(Size::Word, R6, R1, 0); // xdp_md.data
    a.load(Size::Word, R7, R1, 4); // xdp_md.data_end
    a.set(R2, R6);
    a.alu(Alu::Add, R2, FRAME as i32);
    a.branch(When::Greater, R2, R7, "out");

    a.store(Size::Word, R10, -4, 0);
    a.map(R1, next.as_fd());
    a.set(R2, R10);
    a.alu(Alu::Add, R2, -4);
    a.call(MAP_LOOKUP);
    a.branch(When::Equal, R0, 0, "out");
    a.load(Size::Double, R8, R0, 0);
    a.set(R2, R8);
    a.alu(Alu::Add, R2, 1);
    a.store(Size::Double, R0, 0, R2);
    a.alu(Alu::And, R8, (template.flows - 1) as i32);

    // The last byte of the address, and what makes up for it.
    a.set(R2, R8);
    a.alu(Alu::And, R2, 15);
    a.alu(Alu::Add, R2, i32::from(template.source[3]));
    a.store(Size::Byte, R6, SOURCE_END as i16, R2);
    complement(a, ID);
    complement(a, DATA);
    // The port.
    a.set(R2, R8);
    a.alu(Alu::ShiftRight, R2, 4);
    a.alu(Alu::Add, R2, i32::from(FIRST_PORT));
    a.set(R3, R2);
    a.host_order(R3);
    a.store(Size::Half, R6, UDP as i16, R3);
    complement(a, DATA + 2);

    a.set(R1, interface as i32);
    a.set(R2, 0);
    a.call(REDIRECT);
    a.exit();
    a.label("out");
    a.set(R0, ABORTED);
    a.exit();
    // Its only label is set once.
    text.finish().unwrap_or_default()
}

/// Writes what R2 lacks to all ones, with which its ones' complement sum is nothing.
fn complement(a: &mut Assembler, at: usize) {
    a.set(R3, R2);
    a.alu(Alu::ExclusiveOr, R3, 0xffff);
    a.host_order(R3);
    a.store(Size::Half, R6, at as i16, R3);
}

/// The frame of flow 0.
fn frame(template: &Template) -> Vec<u8> {
    let mut frame = vec![0; FRAME];
    frame[..6].copy_from_slice(&template.macs[0]);
    frame[6..12].copy_from_slice(&template.macs[1]);
    frame[12] = 8;
    frame[IP] = 0x45;
    put(&mut frame, IP + 2, (FRAME - IP) as u16);
    frame[IP + 8] = 64;
    frame[IP + 9] = 17;
    frame[IP + 12..IP + 16].copy_from_slice(&template.source);
    frame[IP + 16..IP + 20].copy_from_slice(&template.destination);
    put(&mut frame, UDP, FIRST_PORT);
    put(&mut frame, UDP + 2, template.port);
    put(&mut frame, UDP + 4, (FRAME - UDP) as u16);
    let last = u16::from(template.source[3]);
    put(&mut frame, ID, !last);
    put(&mut frame, DATA, !last);
    put(&mut frame, DATA + 2, !FIRST_PORT);
    let header = Sum::default().bytes(&frame[IP..UDP]).field();
    put(&mut frame, IP + 10, header);
    // The pseudo header: addresses, protocol, length.
    let whole = Sum::default().bytes(&frame[IP + 12..]).word(17).word((FRAME - UDP) as u16).field();
    put(&mut frame, UDP + 6, whole);
    frame
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
