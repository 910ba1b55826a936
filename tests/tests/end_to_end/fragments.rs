//! Datagrams larger than the wire: every part must get to the same real server, and every part of the answer back.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_bench::namespace::Namespace;
use shunt_bench::netlink::Netlink;
use shunt_bench::topology::{FRONT, Options, Topology};
use shunt_bench::traffic::decapsulator::Tunnel;

use crate::ground::{Backend, permitted, serve_with, source_for, start_workers, status, udp_from};
use crate::tunnels::{DR, Family, IPIP, NAT, Way, drops};

const PORT: u16 = 7000;

/// Six frames of 1500 bytes, and forty-one of them.
const LENGTHS: [usize; 2] = [8000, 60_000];

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
    large_datagrams(large_datagrams_are_echoed_through_nat, &NAT)
}

#[test]
fn large_datagrams_are_echoed_through_dr() -> Result<()> {
    large_datagrams(large_datagrams_are_echoed_through_dr, &DR)
}

#[test]
fn large_datagrams_are_echoed_through_a_tunnel() -> Result<()> {
    large_datagrams(large_datagrams_are_echoed_through_a_tunnel, &IPIP)
}

fn large_datagrams(test: impl Fn() -> Result<()>, way: &Way) -> Result<()> {
    if !permitted(test)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        // Two queues, so that a first part and the later ones may come in by different ones.
        let topology = Topology::new(Options { queues: 2 })?;
        let _unwrapping = topology.start_decapsulators(&[Tunnel::Ipip])?;
        if way.how == IPIP.how {
            // The director cuts nothing up: parts must leave room for the outer header.
            topology.client().run_in(|| Netlink::open()?.mtu(FRONT, 1400))??;
        }
        let families = if topology.has_ipv6() { &[Family::V4, Family::V6][..] } else { &[Family::V4] };
        let Some(director) = start_workers(&topology, backend, 2)? else { return Ok(()) };
        for &family in families {
            let answers_at = |n| if way.how == NAT.how { family.server(n) } else { family.vip() };
            let servers = topology.servers().iter().enumerate();
            let _echoes =
                servers.map(|(n, ns)| Echo::start(ns, answers_at(n))).collect::<Result<Vec<_>>>()?;
            let at = SocketAddr::new(family.vip(), PORT);
            director.ipvsadm(&["-C"])?;
            serve_with(&director, "-u", at, |n| family.server(n), way.how, PORT)?;
            for n in 0..16u8 {
                let length = LENGTHS[usize::from(n) % LENGTHS.len()];
                let payload: Vec<u8> = (0..length).map(|at| (at / 7) as u8 ^ n).collect();
                let answer = topology.client().run_in(|| -> Result<_> {
                    let socket = udp_from(source_for(at), at)?;
                    let mut answer = vec![0; 1 << 16];
                    socket.send(&payload)?;
                    let length = socket.recv(&mut answer)?;
                    answer.truncate(length);
                    Ok(answer)
                })?;
                ensure!(
                    answer.as_ref().is_ok_and(|answer| *answer == payload),
                    "{family:?}, datagram {n} of {length} by {} over {}: {:?}; {:?}",
                    way.label(),
                    backend.name(),
                    answer.map(|answer| answer.len()),
                    status(&topology)?.counters
                );
            }
        }
        let lost = drops(&topology)?;
        ensure!(lost.is_empty(), "{} over {}: {lost:?}", way.label(), backend.name());
        director.stop()?;
    }
    Ok(())
}
