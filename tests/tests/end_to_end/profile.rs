//! Where a worker's time goes, as `shunt status --profile` tells of it while packets pass.

use std::net::{SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shunt_bench::director::Director;
use shunt_bench::topology::{Options, Topology, VIP, server};

use crate::ground::{Backend, eventually, permitted, serve_at, start, udp};

const SERVICE: SocketAddrV4 = SocketAddrV4::new(VIP, 9);

/// Clients that come one after the other, and datagrams of each.
const CLIENTS: usize = 1000;
const DATAGRAMS: usize = 20;

/// The stages that packets go through.
const STAGES: [&str; 7] = ["receive", "parse", "look_up", "decide", "begin", "sort", "send"];

/// How long packets may have to pass until there is a sample of each.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn the_stages_of_a_burst_are_timed_while_packets_pass() -> Result<()> {
    if !permitted(the_stages_of_a_burst_are_timed_while_packets_pass)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options::default())?;
        let director = start(&topology, backend, &[])?;
        // Its kernel takes what comes and answers nothing.
        let _sink = topology.servers()[0].run_in(|| UdpSocket::bind((server(0), SERVICE.port())))??;
        serve_at(&director, "-u", SERVICE.into(), (server(0), SERVICE.port()).into(), &["-m"])?;
        eventually(PATIENCE, || {
            send(&topology, CLIENTS, || true)?;
            let told = text(&director, &["status", "--profile"])?;
            for stage in STAGES {
                ensure!(told.lines().any(|line| line.starts_with(stage)), "no {stage} in:\n{told}");
            }
            Ok(())
        })?;
        let whole = profile(&director, &[])?;
        check(&whole).with_context(|| format!("{backend:?}: {whole}"))?;

        // Of a time is told what happened in it, and nothing that was before; but the worker may have been behind.
        eventually(PATIENCE, || {
            let quiet = profile(&director, &["--over", "200ms"])?;
            ensure!(number(&quiet, "packets")? == 0, "{quiet}");
            Ok(())
        })?;
        let goes_on = AtomicBool::new(true);
        let part = thread::scope(|scope| {
            let sender = scope.spawn(|| send(&topology, usize::MAX, || goes_on.load(Ordering::Relaxed)));
            let part = profile(&director, &["--over", "1s"]);
            goes_on.store(false, Ordering::Relaxed);
            sender.join().expect("nobody panics there")?;
            part
        })?;
        check(&part).with_context(|| format!("{backend:?}, of a second: {part}"))?;
        let all = profile(&director, &[])?;
        ensure!(number(&all, "packets")? >= number(&whole, "packets")? + number(&part, "packets")?, "{all}");
    }
    Ok(())
}

/// Datagrams of clients, each from a socket of its own.
fn send(topology: &Topology, clients: usize, goes_on: impl Fn() -> bool + Sync) -> Result<()> {
    topology.client().run_in(|| {
        for _ in (0..clients).take_while(|_| goes_on()) {
            let socket = udp(SERVICE.into())?;
            for _ in 0..DATAGRAMS {
                socket.send(&[0x5a; 18])?;
            }
        }
        Ok(())
    })?
}

/// What must hold of any profile with packets in it.
fn check(worker: &Value) -> Result<()> {
    let [bursts, packets, turns] = ["bursts", "packets", "turns"].map(|name| number(worker, name));
    let (bursts, packets, turns) = (bursts?, packets?, turns?);
    ensure!(turns > 0 && bursts > 0 && packets >= bursts && packets <= 64 * bursts);
    for stage in worker["stages"].as_array().context("no stages")? {
        let [samples, cycles, most] = ["samples", "cycles", "max_cycles"]
            .map(|name| number(stage, name))
            .map(Result::unwrap_or_default);
        let limit = if stage["sample_of"] == "burst" { bursts } else { turns };
        // The worker goes on while it is asked.
        ensure!(samples <= limit + 1, "{samples} of {limit}: {stage}");
        ensure!(cycles <= samples * most, "{stage}");
        // But not received: a frame that has waited for its neighbour is a burst of its own.
        let is_of_each = ["parse", "decide"].iter().any(|name| stage["stage"] == **name);
        ensure!(!is_of_each || samples + 1 >= bursts, "{samples} of {bursts}: {stage}");
    }
    Ok(())
}

/// The first worker's profile.
fn profile(director: &Director, words: &[&str]) -> Result<Value> {
    let words = [&["status", "--profile", "--json"], words].concat();
    let mut document: Value = serde_json::from_str(&text(director, &words)?)?;
    Ok(document["profile"][0].take())
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name].as_u64().with_context(|| format!("no {name} in {value}"))
}

fn text(director: &Director, words: &[&str]) -> Result<String> {
    let output = director.shunt(words, "")?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}
