//! Control's line to a worker: a queue of commands one way, a queue of answers the other, and a bell for each end.
//!
//! Both queues are lock-free and bounded. A bell is a socket pair: ringing writes a byte, which wakes whoever polls the other end. It is only rung for
//! a sleeper, so a busy worker is never interrupted and costs its callers no system call.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam::queue::ArrayQueue;

use crate::director::{Listed, Place, Wish};
use crate::service::{Epoch, LinkId, Snapshot};
use crate::steer::Target;

/// Commands or answers that can be under way. Control sends few at a time and waits for answers; workers' answers beyond this are dropped only
/// if they are requests for neighbours, which are repeated.
const QUEUE: usize = 256;

/// What control tells a worker.
pub enum Command {
    /// Work by this snapshot from now on.
    Adopt(Arc<Snapshot>),
    /// Fill `connections`, up to its capacity, with the connections from place `from` on.
    List {
        /// The default to begin with, then what the last answer said.
        from: Place,
        /// Control's memory, so that a worker allocates nothing but the names of calls.
        connections: Vec<Listed>,
    },
    /// The frames of this target come by now, as was wished.
    Opened(Target),
    /// Stop, and drop everything.
    Stop,
}

/// What a worker tells control.
pub enum Answer {
    /// A snapshot nobody here uses any more, for control to drop: freeing a large one takes time.
    Retired(Arc<Snapshot>),
    /// A part of a listing; `next` is the place to go on from, `None` at the end.
    Listed {
        /// Where to go on.
        next: Option<Place>,
        /// The connections.
        connections: Vec<Listed>,
    },
    /// A packet waits for this neighbour's Ethernet address.
    Resolve(LinkId, IpAddr),
    /// The director needs other frames.
    Steer(Wish),
}

struct Shared {
    commands: ArrayQueue<Command>,
    answers: ArrayQueue<Answer>,
    reached: AtomicU64,
    asleep: AtomicBool,
}

/// Wakes a worker. Cheap to clone.
#[derive(Clone)]
pub struct Bell {
    shared: Arc<Shared>,
    line: Arc<UnixStream>,
}

/// The worker's end.
pub struct Link {
    shared: Arc<Shared>,
    bell: UnixStream,
    control: UnixStream,
}

/// Control's end.
pub struct Handle {
    bell: Bell,
}

/// A line between control and one worker. The last part is readable whenever the worker has answered something; several lines may share one (see
/// [`UnixStream::pair`]), so it is passed in: `control` is the worker's writing end of it.
///
/// # Errors
/// When no socket pair can be made (out of descriptors).
pub fn channel(start: Epoch, control: UnixStream) -> std::io::Result<(Link, Handle)> {
    let (bell, line) = UnixStream::pair()?;
    bell.set_nonblocking(true)?;
    line.set_nonblocking(true)?;
    control.set_nonblocking(true)?;
    let shared = Arc::new(Shared {
        commands: ArrayQueue::new(QUEUE),
        answers: ArrayQueue::new(QUEUE),
        reached: AtomicU64::new(start.0),
        asleep: AtomicBool::new(false),
    });
    let handle = Handle { bell: Bell { shared: Arc::clone(&shared), line: Arc::new(line) } };
    Ok((Link { shared, bell, control }, handle))
}

impl Bell {
    /// Wakes the worker if it sleeps. Call it after giving it something.
    pub fn ring_if_asleep(&self) {
        // The gift must be visible before we look whether the worker sleeps; it looks for gifts after it has said that it will.
        fence(Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::Relaxed) {
            // A full line means that it has been rung enough.
            let _ = (&*self.line).write(&[1]);
        }
    }
}

impl Handle {
    /// The worker's bell.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Sends a command.
    ///
    /// # Errors
    /// Gives it back when the queue is full: the worker has been stuck for 256 commands.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        self.bell.shared.commands.push(command)?;
        self.bell.ring_if_asleep();
        Ok(())
    }

    /// The next answer.
    pub fn answer(&self) -> Option<Answer> {
        self.bell.shared.answers.pop()
    }

    /// The snapshot that the worker works by.
    pub fn reached(&self) -> Epoch {
        Epoch(self.bell.shared.reached.load(Ordering::Acquire))
    }
}

impl Link {
    /// The next command.
    pub fn command(&self) -> Option<Command> {
        // One relaxed look at an empty queue is all that a busy worker pays.
        if self.shared.commands.is_empty() { None } else { self.shared.commands.pop() }
    }

    /// Whether there is room for an answer that must not be lost.
    pub fn has_room(&self) -> bool {
        !self.shared.answers.is_full()
    }

    /// Tells control something.
    pub fn answer(&self, answer: Answer) {
        // A full queue: control is stuck. A request for a neighbour comes again with the next packet, a listing times out, and a retired
        // snapshot is freed here, late but surely.
        let _ = self.shared.answers.push(answer);
        let _ = (&self.control).write(&[1]);
    }

    /// Says which snapshot is worked by from now on.
    pub fn reach(&self, epoch: Epoch) {
        self.shared.reached.store(epoch.0, Ordering::Release);
    }

    /// Says that this worker is going to sleep; `false` when something has come meanwhile.
    pub fn prepare_to_sleep(&self) -> bool {
        self.shared.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `ring_if_asleep`.
        fence(Ordering::SeqCst);
        self.shared.commands.is_empty()
    }

    /// Says that this worker is awake, and hushes the bell if it was rung. One that is rung too late for that ends the next sleep at once.
    pub fn wake(&mut self, is_rung: bool) {
        self.shared.asleep.store(false, Ordering::Relaxed);
        let mut strokes = [0; 64];
        while is_rung && matches!(self.bell.read(&mut strokes), Ok(n) if n == strokes.len()) {}
    }

    /// What to poll for the bell.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
