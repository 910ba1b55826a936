//! What it costs that a frame goes to another core, whatever is done with it: two loops that hand frames over by the workers' own rings, and decide nothing.
//!
//! Each loop copies bursts into frames, as the workers' ports in memory do, and writes every frame's header. In the one kind each writes its own. In the other, every second
//! frame is read first and then handed over, so that the other loop writes it, as a reply is that came to the wrong worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use arrayvec::ArrayVec;
use shunt_dataplane::conn::memory::prefetch;
use shunt_dataplane::packet::be16;
use shunt_dataplane::port::frame::HEADROOM;
use shunt_dataplane::port::{BURST, Frame, FrameMemory, Pool};
use shunt_dataplane::worker::ring::{self, Receiver, Sender};

use crate::stand::frames::FRAME;
use crate::stand::team::FRAMES;
use crate::{interrupt, machine};

/// One of two loops.
struct End {
    core: usize,
    memory: Arc<FrameMemory>,
    /// Free frames; what was handed over stays where it came to, as with workers.
    frames: Vec<Frame>,
    to: Sender,
    from: Receiver,
}

/// Two loops, a core each.
pub struct Pair {
    ends: [End; 2],
    /// Whether every second frame is handed over. A pair does not change that: frames that were handed over lie among the other core's for ever.
    hands_over: bool,
}

impl Pair {
    /// A pair on these cores, in which every second frame is handed over or none is.
    ///
    /// # Errors
    /// When there is no memory for the frames.
    pub fn new(cores: [usize; 2], hands_over: bool) -> Result<Self> {
        let (memory, mut pools) = FrameMemory::with_pools(2, FRAMES).context("memory for frames")?;
        let mut pool = || pools.pop().context("a pool for each of two");
        let [(to_second, at_second), (to_first, at_first)] = [(); 2].map(|()| ring::channel(FRAMES as usize));
        let end = |core, mut pool: Pool, to, from| {
            let frames = std::iter::from_fn(|| pool.take()).collect();
            End { core, memory: Arc::clone(&memory), frames, to, from }
        };
        let [first, second] = cores;
        let ends = [end(first, pool()?, to_second, at_first), end(second, pool()?, to_first, at_second)];
        Ok(Self { ends, hands_over })
    }

    /// Nanoseconds a loop takes for a frame.
    pub fn run(&mut self, window: Duration) -> f64 {
        let ends = self.ends.iter_mut().map(|end| (end.core, end));
        let work = |end, stop: &_| work(end, self.hands_over, stop);
        let frames: u64 = machine::side_by_side(ends, work, || drop(interrupt::sleep(window))).iter().sum();
        // Of the last run's frames some may be under way still: the next one takes them.
        2.0 * window.as_nanos() as f64 / frames as f64
    }
}

/// Works until it is to stop. Gives the frames whose headers it has written.
fn work(end: &mut End, hands_over: bool, stop: &AtomicBool) -> u64 {
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut burst = ArrayVec::<Frame, { 2 * BURST }>::new();
        end.from.receive(BURST, |frame, _| burst.push(frame));
        let memory = &*end.memory;
        burst.iter_mut().for_each(|frame| prefetch(memory.data(frame).as_ptr()));
        for n in 0..BURST {
            let Some(mut frame) = end.frames.pop() else { break };
            frame.set_data(HEADROOM, FRAME);
            memory.data(&mut frame).copy_from_slice(&[n as u8; FRAME]);
            if !hands_over || n % 2 == 0 {
                burst.push(frame);
                continue;
            }
            let note = be16(memory.data(&mut frame), 34).into();
            if let Err(frame) = end.to.send(frame, note) {
                end.frames.push(frame);
            }
        }
        end.to.publish();
        for mut frame in burst {
            let header = memory.data(&mut frame);
            header[22] = header[22].wrapping_sub(1);
            header[..12].fill(2);
            written += 1;
            end.frames.push(frame);
        }
    }
    written
}
