//! Datagrams larger than the wire: every part must get to the same real server, and every part of the answer back.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_bench::namespace::Namespace;
use shunt_bench::topology::{Options, Topology, VIP, server};

use crate::ground::{Backend, permitted, serve, start_workers, status, udp};

const PORT: u16 = 7000;

/// Six frames of 1500 bytes.
const LENGTH: usize = 8000;

/// Sends back what comes to an address, until it is dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Echo {
    fn start(namespace: &Namespace, address: IpAddr) -> Result<Self> {
        let socket = namespace.run_in(|| UdpSocket::bind((address, PORT)))??;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    // The client notices what is missing.
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn large_datagrams_are_echoed_through_nat() -> Result<()> {
    if !permitted(large_datagrams_are_echoed_through_nat)? {
        return Ok(());
    }
    large_datagrams("-m", |n| server(n).into())
}

#[test]
fn large_datagrams_are_echoed_through_dr() -> Result<()> {
    if !permitted(large_datagrams_are_echoed_through_dr)? {
        return Ok(());
    }
    large_datagrams("-g", |_| VIP.into())
}

fn large_datagrams(how: &str, answers_at: impl Fn(usize) -> IpAddr) -> Result<()> {
    for backend in Backend::that_work()? {
        // Two queues, so that a first part and the later ones may come in by different ones.
        let topology = Topology::new(Options { queues: 2 })?;
        let servers = topology.servers().iter().enumerate();
        let _echoes = servers.map(|(n, ns)| Echo::start(ns, answers_at(n))).collect::<Result<Vec<_>>>()?;
        let Some(director) = start_workers(&topology, backend, 2)? else { return Ok(()) };
        let at = SocketAddrV4::new(VIP, PORT);
        serve(&director, "-u", at, how, PORT)?;
        for n in 0..16u8 {
            let payload: Vec<u8> = (0..LENGTH).map(|at| (at / 7) as u8 ^ n).collect();
            let answer = topology.client().run_in(|| -> Result<_> {
                let socket = udp(SocketAddr::V4(at))?;
                let mut answer = vec![0; 1 << 16];
                socket.send(&payload)?;
                let length = socket.recv(&mut answer)?;
                answer.truncate(length);
                Ok(answer)
            })?;
            ensure!(
                answer.as_ref().is_ok_and(|answer| *answer == payload),
                "datagram {n} over {}: {:?}; {:?}",
                backend.name(),
                answer.map(|answer| answer.len()),
                status(&topology)?.counters
            );
        }
        director.stop()?;
    }
    Ok(())
}
