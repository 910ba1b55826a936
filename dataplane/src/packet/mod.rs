//! Frames as bytes: one pass that finds out what a frame is ([`parse`]), and checksums ([`checksum`]); the words of [`ftp`].
//!
//! Nothing in this room trusts its input. [`parse`] is the only place where lengths that came from the wire are checked; the offsets in a
//! [`Meta`] hold for the frame they were made from, until its length is changed.

pub mod address;
pub mod checksum;
pub mod ftp;
pub mod parse;
pub mod plain;
pub mod protocol;
pub mod sip;
pub mod tags;

pub use address::{Address, V4, V6};
pub use parse::{Meta, Parsed, parse};
pub use plain::Plain;
pub use tags::Tags;

use crate::service::PortId;

/// Bytes in a chunk. AF_XDP wants a power of two of at least 2048 that divides a page; 2048 holds a full Ethernet
/// frame with VLAN tags (1522) behind its headroom, and 4096 would halve the frames a cache can hold.
pub const CHUNK: usize = 2048;

/// Where a frame lies in its chunk of memory, and the port it came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Extent {
    start: u16,
    len: u16,
    /// The port it came in by.
    pub port: PortId,
}

impl Extent {
    /// A frame of `len` bytes that begins at `start`.
    ///
    /// # Panics
    /// When that does not lie inside a chunk.
    pub const fn new(start: usize, len: usize, port: PortId) -> Self {
        assert!(start + len <= CHUNK, "data outside its chunk");
        Self { start: start as u16, len: len as u16, port }
    }

    /// Made again of its parts.
    #[inline]
    pub(crate) fn from_parts(start: u16, len: u16, port: PortId) -> Self {
        Self { start, len, port }
    }

    /// Where the frame begins.
    #[inline]
    pub fn start(self) -> usize {
        self.start.into()
    }

    /// The frame's bytes.
    #[allow(clippy::len_without_is_empty, reason = "an empty frame is a free frame; nobody asks")]
    #[inline]
    pub fn len(self) -> usize {
        self.len.into()
    }
}

/// A frame in its chunk of memory. What lies around it is free for outer headers and replies.
#[derive(Debug)]
pub struct Packet<'a> {
    /// The whole chunk.
    pub chunk: &'a mut [u8; CHUNK],
    // Read from here, for that its owner's words are read by two bytes costs each packet a nanosecond.
    start: usize,
    len: usize,
    /// Where the frame lies, as its owner has it, who so need not be told when that has changed.
    owners: &'a mut Extent,
}

impl<'a> Packet<'a> {
    /// The frame of a chunk that lies there.
    #[inline]
    pub fn new(chunk: &'a mut [u8; CHUNK], owners: &'a mut Extent) -> Self {
        Self { chunk, start: owners.start(), len: owners.len(), owners }
    }

    /// Where the frame lies.
    pub fn extent(&self) -> Extent {
        *self.owners
    }

    /// Where the frame begins.
    #[inline]
    pub fn start(&self) -> usize {
        self.start
    }

    /// The frame's bytes.
    #[allow(clippy::len_without_is_empty, reason = "an empty frame is a free frame; nobody asks")]
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The port it came in by.
    #[inline]
    pub fn port(&self) -> PortId {
        self.owners.port
    }

    /// Says where the frame lies now. It must lie inside its chunk.
    #[inline]
    pub fn set_extent(&mut self, start: usize, len: usize) {
        debug_assert!(start + len <= CHUNK, "data outside its chunk");
        (self.start, self.len) = (start, len);
        (self.owners.start, self.owners.len) = (start as u16, len as u16);
    }

    /// The frame is as long as this now.
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        debug_assert!(self.start() + len <= CHUNK, "data outside its chunk");
        self.len = len;
        self.owners.len = len as u16;
    }

    /// The frame.
    pub fn data(&mut self) -> &mut [u8] {
        let (start, len) = (self.start(), self.len());
        &mut self.chunk[start..start + len]
    }

    /// The line that the frame begins on, to be fetched: it was written by another core, or by the NIC.
    #[inline]
    pub fn first_line(&self) -> *const u8 {
        self.chunk.as_ptr().wrapping_add(self.start())
    }
}

/// What a packet carries on the wire: the key by which its connection is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuple<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// A tuple as the words that are hashed.
#[derive(Clone, Copy)]
pub struct Words<A: Address> {
    /// Both addresses.
    pub ends: A::Pair,
    /// The protocol and both ports.
    pub ports: u64,
}

impl<A: Address> Words<A> {
    #[inline]
    fn new(ends: A::Pair, protocol: u8, ports: u32) -> Self {
        Self { ends, ports: u64::from(protocol) << 32 | u64::from(ports) }
    }
}

impl<A: Address> Tuple<A> {
    /// As words.
    #[inline]
    pub fn words(&self) -> Words<A> {
        Words::new(self.ends(), self.protocol, self.ports())
    }

    /// Both addresses, which lie together wherever they are kept, as one word if they fit.
    #[inline]
    pub fn ends(&self) -> A::Pair {
        A::pair(self.source, self.destination)
    }

    /// Both ports as one word.
    #[inline]
    pub fn ports(&self) -> u32 {
        u32::from(self.source_port) << 16 | u32::from(self.destination_port)
    }

    /// Whether it equals another: the same as `==`, but by as few words as it takes.
    #[inline]
    pub fn is(&self, other: &Self) -> bool {
        self.ends() == other.ends() && self.ports() == other.ports() && self.protocol == other.protocol
    }

    /// The tuple of a packet that goes the other way.
    pub fn turned(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

/// Reads a big-endian 16-bit word.
#[inline]
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// Reads a big-endian 32-bit word.
#[inline]
pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// Reads some bytes: one check and one load, where byte by byte it would be one for each.
#[inline]
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// Writes a big-endian 16-bit word.
#[inline]
pub fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes a big-endian 32-bit word.
#[inline]
pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
