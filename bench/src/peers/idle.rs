//! A worker without traffic: what it costs, and how soon it is awake; beside it, how soon any thread there would be.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shunt_dataplane::packet::checksum::Sum;
use shunt_dataplane::port::af_packet::{AfPacket, Options};
use shunt_dataplane::port::{Burst, FrameMemory, Pool, Port};

use super::contender::{Times, WORKER, start_sleepy};
use super::ground::{FAR, Ground};
use crate::lab::Backend;
use crate::netlink::Netlink;
use crate::topology::{FRONT, SINK, VIP, client};
use crate::traffic::DISCARD_PORT;
use crate::{interrupt, machine};

/// Without traffic before it is looked at.
const QUIET: Duration = Duration::from_secs(1);

/// A frame that has not come by then is lost.
const LOST: Duration = Duration::from_millis(200);

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Of a core, in the second after a second without traffic.
    pub cpu_percent: f64,
    /// From the sender's system call until the frame can be read behind the director.
    pub first_packet_us: f64,
    /// From a write to a socket pair until the thread that sleeps on its other end, on the director's core, knows.
    pub wake_us: f64,
}

/// Leaves a director alone, `rounds` times, and wakes it with a frame. `stays_awake` says that the processors are not to sleep.
pub fn measure(ground: &Ground, backend: Backend, stays_awake: bool, rounds: usize) -> Result<Vec<Idle>> {
    let director = start_sleepy(ground, backend, stays_awake)?;
    // Who is to hear a frame must have the address it is sent to.
    ground.sink().run_in(|| Netlink::open()?.mac(SINK, FAR))??;
    let mut wire = Wire::open(ground)?;
    let worker = director.id();
    let found = std::thread::scope(|scope| {
        let rounds = scope.spawn(move || -> Result<Vec<Idle>> {
            ground.join_generator();
            // Of a connection that is there already.
            wire.cross()?;
            let mut sleeper = Sleeper::start(ground)?;
            (0..rounds).map(|_| round(&mut wire, &mut sleeper, worker)).collect()
        });
        rounds.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    ground.sink().run_in(|| Netlink::open()?.mac(SINK, [2, 0, 0, 0, 0, 16]))??;
    director.stop()?;
    found
}

fn round(wire: &mut Wire, sleeper: &mut Sleeper, worker: u32) -> Result<Idle> {
    interrupt::sleep(QUIET)?;
    let (begin, used) = (Instant::now(), Times::of_thread(worker, WORKER)?.run);
    interrupt::sleep(QUIET)?;
    let used = Times::of_thread(worker, WORKER)?.run.saturating_sub(used);
    let cpu_percent = used.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0;
    let first_packet_us = wire.cross()?.as_secs_f64() * 1e6;
    interrupt::sleep(QUIET)?;
    let wake_us = sleeper.wake()?.as_secs_f64() * 1e6;
    Ok(Idle { cpu_percent, first_packet_us, wake_us })
}

/// A thread on the director's core that only sleeps, until its line is dropped.
struct Sleeper {
    line: UnixStream,
    awake: mpsc::Receiver<Instant>,
}

impl Sleeper {
    fn start(ground: &Ground) -> Result<Self> {
        let (line, mut theirs) = UnixStream::pair().context("a socket pair")?;
        let (tell, awake) = mpsc::channel();
        let core = ground.core;
        std::thread::spawn(move || {
            machine::pin(core);
            while let Ok(()) = theirs.read_exact(&mut [0])
                && tell.send(Instant::now()).is_ok()
            {}
        });
        Ok(Self { line, awake })
    }

    fn wake(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        self.line.write_all(&[1])?;
        Ok(self.awake.recv_timeout(LOST).context("a thread did not wake")? - begin)
    }
}

/// A packet socket at each end of the director.
struct Wire {
    near: AfPacket,
    far: AfPacket,
    pool: Pool,
    frame: Vec<u8>,
}

impl Wire {
    fn open(ground: &Ground) -> Result<Self> {
        let open = |name: &'static str| -> Result<AfPacket> {
            Ok(AfPacket::open(name, Netlink::open()?.index(name)?, &Options::default())?)
        };
        let (_, mut pools) = FrameMemory::with_pools(1, 1024).context("mapping memory for frames")?;
        Ok(Self {
            near: ground.topology.client().run_in(|| open(FRONT))??,
            far: ground.sink().run_in(|| open(SINK))??,
            pool: pools.pop().context("one worker has one pool")?,
            frame: datagram(ground.macs()?),
        })
    }

    /// Sends a frame and waits for it.
    fn cross(&mut self) -> Result<Duration> {
        let mut frame = self.pool.take().context("a frame is free")?;
        frame.set_data(frame.start(), self.frame.len());
        self.pool.memory().data(&mut frame).copy_from_slice(&self.frame);
        let mut burst = Burst::new();
        burst.push(frame);
        let begin = Instant::now();
        self.near.transmit(&mut self.pool, &mut burst);
        self.near.flush(&mut self.pool);
        loop {
            self.far.receive(&mut self.pool, &mut burst);
            let took = begin.elapsed();
            if !burst.is_empty() {
                burst.drain(..).for_each(|frame| self.pool.give(frame));
                return Ok(took);
            }
            ensure!(took < LOST, "a frame did not come through");
        }
    }
}

/// The shortest UDP datagram from a client to the service.
pub(super) fn datagram([to, from]: [[u8; 6]; 2]) -> Vec<u8> {
    let (source, destination) = (client(0), VIP);
    let mut udp =
        [&20_000u16.to_be_bytes()[..], &DISCARD_PORT.to_be_bytes(), &[0, 26, 0, 0], &[0; 18]].concat();
    let sum = Sum::default()
        .bytes(&source.octets())
        .bytes(&destination.octets())
        .word(17)
        .word(26)
        .bytes(&udp)
        .field();
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut ip = vec![0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0];
    ip.extend(source.octets().iter().chain(&destination.octets()));
    let sum = Sum::default().bytes(&ip).field();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&to[..], &from, &[8, 0], &ip, &udp].concat()
}
