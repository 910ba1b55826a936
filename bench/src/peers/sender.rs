//! What sending alone costs: a loop that does nothing else, by the director's own ports. No director on this kernel forwards faster.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use shunt_dataplane::port::af_packet::{self, AfPacket};
use shunt_dataplane::port::af_xdp::{self, AfXdp, Queue};
use shunt_dataplane::port::{BURST, Burst, FrameMemory, Pool, Port};

use super::ground::{FAR, Ground, mac};
use super::idle::datagram;
use crate::lab::Backend;
use crate::machine;
use crate::netlink::Netlink;
use crate::topology::DIRECTOR_SERVER_SIDE;
use crate::traffic::background::Background;

/// The name of its thread.
pub const NAME: &str = "sender";

/// Slots of AF_XDP for sending, as the director has them; AF_PACKET's are as many by default.
const SLOTS: u32 = 2048;

/// Frames enough for both rings and a burst under way.
const FRAMES: u32 = 4 * SLOTS;

/// The loop's thread. Dropping it ends it.
pub struct Sender(Background);

impl Sender {
    /// Starts it where the director's worker runs, by the interface that leads to the sink.
    pub fn start(ground: &Ground, backend: Backend) -> Result<Self> {
        let core = ground.core;
        let thread = Background::start(ground.topology.director(), NAME, move |stop| {
            machine::pin(core);
            let (_, mut pools) = FrameMemory::with_pools(1, FRAMES).context("mapping memory for frames")?;
            let mut port = open(backend, &mut pools)?;
            let mut pool = pools.pop().context("one worker has one pool")?;
            let frame = datagram([FAR, mac(DIRECTOR_SERVER_SIDE)?]);
            send(&mut *port, &mut pool, &frame, stop);
            Ok(())
        })?;
        Ok(Self(thread))
    }

    /// Ends it; the error is what made it end before.
    pub fn stop(self) -> Result<()> {
        self.0.stop()
    }
}

fn open(backend: Backend, pools: &mut [Pool]) -> Result<Box<dyn Port>> {
    let (interface, index) = (DIRECTOR_SERVER_SIDE, Netlink::open()?.index(DIRECTOR_SERVER_SIDE)?);
    Ok(match backend {
        Backend::AfXdp => {
            let queue = Queue { interface: interface.to_owned(), index, queue: 0, worker: 0 };
            let options = af_xdp::Options { tx_slots: SLOTS, ..Default::default() };
            Box::new(AfXdp::open(pools, &[queue], &options)?.pop().context("one queue has one socket")?)
        }
        Backend::AfPacket => Box::new(AfPacket::open(interface, index, &af_packet::Options::default())?),
    })
}

fn send(port: &mut dyn Port, pool: &mut Pool, bytes: &[u8], stop: &AtomicBool) {
    let mut burst = Burst::new();
    while !stop.load(Ordering::Relaxed) {
        // What the ring had no room for is still there.
        while burst.len() < BURST
            && let Some(mut frame) = pool.take()
        {
            frame.set_data(frame.start(), bytes.len());
            pool.memory().data(&mut frame).copy_from_slice(bytes);
            burst.push(frame);
        }
        port.transmit(pool, &mut burst);
        port.flush(pool);
    }
}
