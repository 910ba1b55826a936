//! The machine's own kernel as a port: what is sent by it, the kernel receives, and what the kernel sends by it, is received.
//!
//! It is a TAP device, so real servers on the director itself are reached like any others. A system call a frame, each way. Each worker has a queue of its own;
//! the kernel sends a flow by the queue that the flow came in by. The device, its addresses and its routes end with the process, however that ends.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

use super::frame::{HEADROOM, MAX_FRAME};
use super::{Burst, Losses, Pool, Port, ifreq};

/// One queue of the device.
pub struct Tap {
    queue: File,
    refused: u64,
}

impl Tap {
    /// Makes a device with so many queues, down and without addresses.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN, EBUSY when there is one of this name, ENOENT where the kernel has no TUN.
    pub fn open(name: &str, queues: usize) -> io::Result<Vec<Self>> {
        (0..queues).map(|_| Self::queue(name, queues > 1)).collect()
    }

    fn queue(name: &str, is_one_of_several: bool) -> io::Result<Self> {
        let options = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).clone();
        let queue = options.open("/dev/net/tun")?;
        let several = if is_one_of_several { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI | several) as libc::c_short,
        };
        // SAFETY: TUNSETIFF reads the name and the flags of an ifreq, writes its name, and keeps nothing of it.
        unsafe { ifreq::ask(&queue, &ifreq::name(name), libc::TUNSETIFF, flags) }?;
        Ok(Self { queue, refused: 0 })
    }
}

impl Port for Tap {
    fn receive(&mut self, pool: &mut Pool, burst: &mut Burst) {
        while !burst.is_full()
            && let Some(mut frame) = pool.take()
        {
            frame.set_data(HEADROOM, MAX_FRAME);
            match self.queue.read(pool.memory().data(&mut frame)) {
                Ok(length) if length > 0 => {
                    frame.set_data(HEADROOM, length);
                    burst.push(frame);
                }
                _ => {
                    pool.give(frame);
                    return;
                }
            }
        }
    }

    fn transmit(&mut self, pool: &mut Pool, burst: &mut Burst) {
        let mut done = 0;
        for frame in burst.iter_mut() {
            match self.queue.write(pool.memory().data(frame)) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.refused += 1,
            }
            done += 1;
        }
        for frame in burst.drain(..done) {
            pool.give(frame);
        }
    }

    fn flush(&mut self, _: &mut Pool) -> bool {
        false
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queue.as_fd())
    }

    fn losses(&self) -> Losses {
        Losses { tx_refused: self.refused, ..Losses::default() }
    }
}
