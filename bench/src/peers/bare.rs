//! What the director's ports cost by themselves: loops that decide nothing. One only sends, and no director on this kernel forwards faster; one hands on what it received as it is, as testpmd does, and
//! no director of these ports does.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use shunt::daemon::backend::{self, Choice};
use shunt_dataplane::port::{BURST, Burst, Pool, Port};
use shunt_dataplane::service::{Interface, PortId, Protocol};
use shunt_dataplane::steer::Target;

use super::ground::{FAR, Ground, mac};
use super::idle::datagram;
use crate::lab::Backend;
use crate::machine;
use crate::topology::{DIRECTOR_SERVER_SIDE, VIP};
use crate::traffic::DISCARD_PORT;
use crate::traffic::background::Background;

/// The name of the thread.
pub const NAME: &str = "bare";

/// The longest packet of the lab's interfaces.
const MTU: u16 = 1500;

/// What a loop does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Sends, and nothing else.
    Sending,
    /// Receives, and sends that.
    HandingOn,
}

/// The loop's thread. Dropping it ends it.
pub struct Bare(Background);

impl Task {
    /// Its name in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sending => "sending-alone",
            Self::HandingOn => "handing-on",
        }
    }
}

impl Bare {
    /// Starts it where the director's worker runs, by ports opened as the director opens them.
    pub fn start(ground: &Ground, task: Task, driver: Backend) -> Result<Self> {
        let core = ground.core;
        let interfaces: Vec<_> = ground.interfaces()?.into_iter().map(described).collect();
        let thread = Background::start(ground.topology.director(), NAME, move |stop| {
            machine::pin(core);
            let choice = match driver {
                Backend::AfXdp => Choice::AfXdp,
                Backend::AfPacket => Choice::AfPacket,
            };
            // The director polls busily as well.
            let mut opened = backend::open(choice, &interfaces, 1, true)?;
            let service =
                Target::Service { protocol: Protocol::Udp, address: VIP.into(), port: DISCARD_PORT };
            opened.steering.take(service).context("steering")?;
            let mut pool = opened.pools.pop().context("one worker has one pool")?;
            let mut ports = opened.ports.pop().context("one worker has its ports")?;
            let mut port = |number| {
                let at = ports.iter().position(|(id, _)| *id == PortId(number));
                at.map(|at| ports.swap_remove(at).1).context("an interface has a port")
            };
            let (mut from, mut to) = (port(0)?, port(1)?);
            match task {
                Task::Sending => {
                    send(&mut *to, &mut pool, &datagram([FAR, mac(DIRECTOR_SERVER_SIDE)?]), stop);
                }
                Task::HandingOn => hand_on(&mut *from, &mut *to, &mut pool, stop),
            }
            Ok(())
        })?;
        Ok(Self(thread))
    }

    /// Ends it; the error is what made it end before.
    pub fn stop(self) -> Result<()> {
        self.0.stop()
    }
}

fn described(interface: shunt_dataplane::steer::Interface) -> Interface {
    let shunt_dataplane::steer::Interface { name, index, mac } = interface;
    Interface { name, index, mac, mtu: MTU, addresses: [None; 2] }
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

fn hand_on(from: &mut dyn Port, to: &mut dyn Port, pool: &mut Pool, stop: &AtomicBool) {
    let mut burst = Burst::new();
    while !stop.load(Ordering::Relaxed) {
        // What the ring had no room for is sent first.
        if burst.is_empty() {
            from.receive(pool, &mut burst);
        }
        to.transmit(pool, &mut burst);
        to.flush(pool);
        // Gives the kernel room for what comes next, where it needs telling.
        from.flush(pool);
    }
}
