//! The slots of AF_PACKET's memory-mapped rings, TPACKET_V2.
//!
//! A ring is an array of slots of [`SLOT`] bytes; there are no shared counters: each slot has a status word that says
//! whose it is. Version 2 and not 3, because version 3 hands over
//! blocks of frames when a block is full or timed out: milliseconds of delay at low rates.
//!
//! ```text
//!   receive:  KERNEL ─ frame arrives ─▶ USER ─ copied out ─▶ KERNEL
//!   transmit: AVAILABLE ─ copied in ─▶ SEND_REQUEST ─ send(2) ─▶ SENDING ─ sent ─▶ AVAILABLE
//!                                                       ├─ refused ─▶ WRONG_FORMAT
//!                                                       └─ dropped by the device ─▶ SEND_REQUEST
//!
//!   slot:  | tpacket2_hdr | sockaddr_ll | gap | frame ...... |     received: frame at tp_mac
//!          | tpacket2_hdr | virtio_net_hdr | frame ......... |     to send
//! ```

#![allow(unsafe_code)]

use std::mem::size_of;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::tpacket2_hdr;
use memmap2::MmapRaw;

/// Bytes in a slot. A power of two, so that slots fill blocks without a gap; 2048 holds the longest frame that a
/// chunk of frame memory does, behind its headers.
pub(super) const SLOT: usize = 2048;

/// Bytes in a block, which the kernel allocates in one piece: 32 slots. Larger blocks are harder to find in
/// fragmented memory and gain nothing, as the mapping joins them without a gap.
pub(super) const BLOCK: usize = 64 << 10;

/// Where a received frame's `sockaddr_ll` lies in its slot, and where a frame to be sent begins.
const AFTER_HEADER: usize = size_of::<tpacket2_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);

/// Bytes of `virtio_net_hdr` before a frame to be sent: what the kernel is told of it.
const TOLD: usize = 10;

/// Offset of `hdr_len` in it, the bytes that the kernel copies into its buffer; it takes the others as pages, each allocated anew if the way leads
/// through a veth. So small frames are copied whole, and of others the headers.
const COPIED_AT: usize = 2;
const MOST_COPIED: usize = 256;

/// The longest frame that fits a transmit slot.
pub(super) const MAX_SEND: usize = SLOT - AFTER_HEADER - TOLD;

/// Offset of `sll_pkttype` in `sockaddr_ll`.
const PACKET_TYPE: usize = std::mem::offset_of!(libc::sockaddr_ll, sll_pkttype);

/// A mapping of slots, and our place among them.
struct Ring {
    map: MmapRaw,
    count: usize,
    /// The slot we look at next.
    next: usize,
}

/// The ring of received frames.
pub(super) struct Rx(Ring);

/// The ring of frames to be sent.
pub(super) struct Tx(Ring);

/// A frame to be sent that those behind it wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Its slot, which stays the same for as long as the kernel has sent nothing.
    pub slot: usize,
    /// How many wait.
    behind: usize,
    /// Bytes of the frame.
    pub len: usize,
    /// Whether the kernel will never send it.
    pub is_refused: bool,
}

/// A slot that is ours at the moment.
pub(super) struct Slot<'a> {
    map: &'a MmapRaw,
    at: usize,
}

impl Ring {
    fn new(map: MmapRaw) -> Self {
        let count = map.len() / SLOT;
        assert!(count > 0, "no slot in {} bytes", map.len());
        Self { map, count, next: 0 }
    }

    fn slot(&self, index: usize) -> Slot<'_> {
        assert!(index < self.count, "slot {index} of {}", self.count);
        Slot { map: &self.map, at: index * SLOT }
    }

    fn step(&mut self) {
        self.next += 1;
        if self.next == self.count {
            self.next = 0;
        }
    }
}

impl Rx {
    /// # Panics
    /// When the mapping has no slot.
    pub fn new(map: MmapRaw) -> Self {
        Self(Ring::new(map))
    }

    /// The next received frame.
    pub fn received(&self) -> Option<Slot<'_>> {
        let slot = self.0.slot(self.0.next);
        (slot.status() & libc::TP_STATUS_USER != 0).then_some(slot)
    }

    /// Gives the slot of [`received`](Self::received) back to the kernel.
    pub fn release(&mut self) {
        self.0.slot(self.0.next).set_status(libc::TP_STATUS_KERNEL);
        self.0.step();
    }
}

impl Tx {
    /// # Panics
    /// When the mapping has no slot.
    pub fn new(map: MmapRaw) -> Self {
        Self(Ring::new(map))
    }

    /// Copies a frame into the next transmit slot. False when the kernel still has it.
    ///
    /// # Panics
    /// When the frame is longer than [`MAX_SEND`].
    pub fn enqueue(&mut self, frame: &[u8]) -> bool {
        let slot = self.0.slot(self.0.next);
        if slot.send_status() != libc::TP_STATUS_AVAILABLE {
            return false;
        }
        slot.write(frame);
        slot.set_status(libc::TP_STATUS_SEND_REQUEST);
        self.0.step();
        true
    }

    /// Whether the frame enqueued last is still to be sent.
    pub fn has_unsent(&self) -> bool {
        self.newest_but(0).1.send_status() == libc::TP_STATUS_SEND_REQUEST
    }

    /// The frame that the kernel goes on with, if there is any: it stays there until it has sent it. To be called only while no
    /// send is under way.
    pub fn held(&self) -> Option<Held> {
        let mut held = None;
        // Everything behind it still waits to be looked at, so the search goes back from the newest.
        for behind in 0..self.0.count {
            let (index, slot) = self.newest_but(behind);
            let is_refused = match slot.send_status() {
                libc::TP_STATUS_SEND_REQUEST => false,
                libc::TP_STATUS_WRONG_FORMAT => true,
                _ => break,
            };
            let len = (slot.header().tp_len as usize).saturating_sub(TOLD);
            held = Some(Held { slot: index, behind, len, is_refused });
            if is_refused {
                break;
            }
        }
        held
    }

    /// Takes that frame out of the transmit ring: what was enqueued behind moves up by one.
    pub fn take_out(&mut self, held: Held) {
        let (count, Held { slot: place, behind, .. }) = (self.0.count, held);
        for n in 0..behind {
            let to = self.0.slot((place + n) % count);
            to.copy_from(&self.0.slot((place + n + 1) % count));
            to.set_status(libc::TP_STATUS_SEND_REQUEST);
        }
        self.0.next = (place + behind) % count;
        self.0.slot(self.0.next).set_status(libc::TP_STATUS_AVAILABLE);
    }

    /// The transmit slot with so many newer ones.
    fn newest_but(&self, newer: usize) -> (usize, Slot<'_>) {
        let index = (self.0.next + self.0.count - 1 - newer) % self.0.count;
        (index, self.0.slot(index))
    }
}

impl Slot<'_> {
    /// The slot's header. Of a received frame: length, place, VLAN tag.
    pub fn header(&self) -> tpacket2_hdr {
        // SAFETY: slots lie inside the mapping (`Ring::new`, `Ring::slot`) and are aligned to 2048; the header is
        // plain integers. The slot is ours, so the kernel does not write to it meanwhile.
        unsafe { self.ptr().cast::<tpacket2_hdr>().read() }
    }

    /// Whom a received frame was sent to: PACKET_HOST and so on.
    pub fn packet_type(&self) -> u8 {
        // SAFETY: as in `header`; the offset is that of a byte of the sockaddr_ll behind it, inside the slot.
        unsafe { self.ptr().add(AFTER_HEADER + PACKET_TYPE).read() }
    }

    /// Copies bytes of the slot. False when they do not lie inside it, which a sound kernel never says.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        if offset.checked_add(into.len()).is_none_or(|end| end > SLOT) {
            return false;
        }
        // SAFETY: the range lies inside the slot (just checked), which lies inside the mapping; `into` is memory of
        // another mapping, so they do not overlap. The slot is ours, so the kernel does not write to it meanwhile.
        unsafe { self.ptr().add(offset).copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
        true
    }

    fn write(&self, frame: &[u8]) {
        assert!(frame.len() <= MAX_SEND, "{} bytes do not fit a slot", frame.len());
        // SAFETY: header and frame fit the slot (just checked), which lies inside the mapping and is ours: nobody
        // else reads or writes it until its status changes. The header's length field is aligned.
        unsafe {
            let header = self.ptr().cast::<tpacket2_hdr>();
            (&raw mut (*header).tp_len).write((TOLD + frame.len()) as u32);
            let told = self.ptr().add(AFTER_HEADER);
            told.write_bytes(0, TOLD);
            let copied = frame.len().min(MOST_COPIED) as u16;
            told.add(COPIED_AT).copy_from_nonoverlapping(copied.to_ne_bytes().as_ptr(), 2);
            told.add(TOLD).copy_from_nonoverlapping(frame.as_ptr(), frame.len());
        }
    }

    /// Copies a frame to be sent from another slot.
    fn copy_from(&self, other: &Self) {
        let len = (other.header().tp_len as usize).min(TOLD + MAX_SEND);
        // SAFETY: both slots lie inside the mapping and do not overlap, or are the same (`copy` allows both); the
        // length is bounded. Both are ours: the kernel looks at transmit slots during send only.
        unsafe {
            let header = self.ptr().cast::<tpacket2_hdr>();
            (&raw mut (*header).tp_len).write(len as u32);
            self.ptr().add(AFTER_HEADER).copy_from(other.ptr().add(AFTER_HEADER), len);
        }
    }

    fn status(&self) -> u32 {
        // Acquire: the frame is read after the status that says it is ours.
        self.status_word().load(Ordering::Acquire)
    }

    /// The status of a transmit slot, without the bits that say how it was time-stamped.
    fn send_status(&self) -> u32 {
        self.status()
            & (libc::TP_STATUS_SEND_REQUEST | libc::TP_STATUS_SENDING | libc::TP_STATUS_WRONG_FORMAT)
    }

    fn set_status(&self, status: u32) {
        // Release: the slot is read, or written, before the kernel sees whose it is now.
        self.status_word().store(status, Ordering::Release);
    }

    fn status_word(&self) -> &AtomicU32 {
        const { assert!(std::mem::offset_of!(tpacket2_hdr, tp_status) == 0) };
        // SAFETY: the word is the first of the slot, inside the mapping and aligned. Both sides access it
        // atomically while the slot's owner may change.
        unsafe { AtomicU32::from_ptr(self.ptr().cast()) }
    }

    fn ptr(&self) -> *mut u8 {
        // SAFETY: `at` is the start of a slot inside the mapping (`Ring::slot`).
        unsafe { self.map.as_mut_ptr().add(self.at) }
    }
}

#[cfg(test)]
mod tests {
    use memmap2::MmapOptions;

    use super::*;

    fn slots(count: usize) -> MmapRaw {
        MmapRaw::from(MmapOptions::new().len(count * SLOT).map_anon().unwrap())
    }

    fn sent(tx: &Tx, index: usize) -> Option<u8> {
        let slot = tx.0.slot(index);
        let mut byte = [0];
        (slot.send_status() == libc::TP_STATUS_SEND_REQUEST && slot.read(AFTER_HEADER + TOLD, &mut byte))
            .then_some(byte[0])
    }

    #[test]
    fn a_full_transmit_ring_refuses() {
        let mut tx = Tx::new(slots(4));
        assert!((0..4).all(|n| tx.enqueue(&[n; 60])));
        assert!(!tx.enqueue(&[4; 60]));
        assert_eq!([0, 1, 2, 3].map(|n| sent(&tx, n)), [Some(0), Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn frames_behind_a_refused_one_move_up_also_across_the_end() {
        let mut tx = Tx::new(slots(4));
        // The kernel has sent two, so that what follows wraps.
        for n in 0..2 {
            assert!(tx.enqueue(&[n; 60]));
            tx.0.slot(n as usize).set_status(libc::TP_STATUS_AVAILABLE);
        }
        assert!((2..6).all(|n| tx.enqueue(&[n; 60])));
        let oldest = Held { slot: 2, behind: 3, len: 60, is_refused: false };
        assert_eq!(tx.held(), Some(oldest), "none was refused");
        tx.0.slot(2).set_status(libc::TP_STATUS_SENDING);
        tx.0.slot(3).set_status(libc::TP_STATUS_WRONG_FORMAT);
        let refused = Held { slot: 3, behind: 2, is_refused: true, ..oldest };
        assert_eq!(tx.held(), Some(refused));
        tx.take_out(refused);
        assert_eq!([2, 3, 0, 1].map(|n| sent(&tx, n)), [None, Some(4), Some(5), None]);
        assert_eq!(tx.held(), Some(Held { behind: 1, is_refused: false, ..refused }));
        assert!(tx.enqueue(&[6; 60]));
        assert_eq!(sent(&tx, 1), Some(6));
    }

    #[test]
    fn the_oldest_of_those_that_wait_is_held_and_can_be_taken_out() {
        let mut tx = Tx::new(slots(4));
        assert_eq!((tx.held(), tx.has_unsent()), (None, false));
        assert!((0..4).all(|n| tx.enqueue(&[n; 60])));
        for left in [3, 2, 1, 0] {
            let held = tx.held().unwrap();
            assert_eq!((held.slot, held.behind, tx.has_unsent()), (0, left, true));
            tx.take_out(held);
            assert_eq!(sent(&tx, 0), (left > 0).then_some(4 - left as u8));
        }
        assert_eq!((tx.held(), tx.has_unsent()), (None, false));
    }

    #[test]
    fn a_received_slot_is_bounds_checked_and_given_back() {
        let mut rx = Rx::new(slots(2));
        assert!(rx.received().is_none());
        rx.0.slot(0).set_status(libc::TP_STATUS_USER | libc::TP_STATUS_LOSING);
        let slot = rx.received().unwrap();
        assert!(slot.read(0, &mut [0; SLOT]));
        assert!(!slot.read(1, &mut [0; SLOT]));
        assert!(!slot.read(usize::MAX, &mut [0; 2]));
        rx.release();
        assert!(rx.received().is_none());
        assert_eq!(rx.0.slot(0).status(), libc::TP_STATUS_KERNEL);
    }
}
