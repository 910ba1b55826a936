//! Frames nobody should send: each kind under its counter, and the director goes on.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use shunt_bench::netlink::Netlink;
use shunt_bench::topology::{
    DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE, FRONT, Options, Topology, VIP, client,
};
use shunt_bench::traffic::HTTP_PORT;
use shunt_tests::frames;

use crate::ground::{Backend, counter, get_each, permitted, serve, start, status, wait_for_counter};
use crate::wire::Wire;

const HTTP: SocketAddrV4 = SocketAddrV4::new(VIP, HTTP_PORT);
const FROM: (Ipv4Addr, u16) = (client(0), 4000);
const TO: (Ipv4Addr, u16) = (VIP, HTTP_PORT);

#[test]
fn broken_frames_are_counted_by_name_over_af_xdp() -> Result<()> {
    broken_frames(broken_frames_are_counted_by_name_over_af_xdp, Backend::AfXdp)
}

#[test]
fn broken_frames_are_counted_by_name_over_af_packet() -> Result<()> {
    broken_frames(broken_frames_are_counted_by_name_over_af_packet, Backend::AfPacket)
}

fn broken_frames(test: impl Fn() -> Result<()>, backend: Backend) -> Result<()> {
    if !permitted(test)? || !backend.works()? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let director = start(&topology, backend, &[])?;
    serve(&director, "-t", HTTP, "-m", HTTP_PORT)?;
    get_each(&topology, HTTP.into(), 2)?;

    let wire = Wire::open(&topology)?;
    let macs = (wire.client, wire.director);
    let syn = frames::tcp(macs, FROM, TO, frames::flags("S"));
    let spoilt = |at: usize, to: u8| {
        let mut frame = syn.clone();
        frame[at] = to;
        frame
    };
    let refitted = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = syn.clone();
        change(&mut frame);
        frame[24..26].fill(0);
        let sum = frames::checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    let fragment = refitted(&|frame| frame[20..22].copy_from_slice(&[0, 1]));
    let stub = refitted(&|frame| {
        frame[16..18].copy_from_slice(&28u16.to_be_bytes());
        frame.truncate(14 + 28);
    });
    let long = refitted(&|frame| frame[16..18].copy_from_slice(&1000u16.to_be_bytes()));
    let mut ack = frames::tcp(macs, FROM, TO, frames::flags("A"));
    ack[50] ^= 0xff;
    let reset = frames::tcp(macs, FROM, TO, frames::flags("R"));
    // What XDP does not recognise it leaves to the kernel, which drops it too; AF_PACKET sees every frame.
    let seen = |by_packet: &'static str| (backend == Backend::AfPacket).then_some(by_packet);
    let cases = [
        ("an IPv4 checksum that is wrong", spoilt(24, syn[24] ^ 0xff), Some("drop.bad_ip_checksum")),
        ("a packet that claims to be longer than its frame", long, Some("drop.bad_ip_header")),
        ("a header of four words", spoilt(14, 0x44), seen("drop.bad_ip_header")),
        ("IPv6 behind an ethertype of IPv4", spoilt(14, 0x65), seen("drop.bad_ip_header")),
        ("a packet that ends inside its TCP header", stub, Some("drop.truncated_transport")),
        ("a frame that ends inside its IPv4 header", syn[..24].to_vec(), seen("drop.bad_ip_header")),
        ("a part that begins inside the header", fragment, Some("drop.tiny_fragment")),
        ("an ACK of no connection, damaged", ack, Some("drop.bad_checksum")),
        ("a RST of no connection", reset, Some("drop.stray_reset")),
    ];
    for (what, frame, name) in cases {
        let before = name.map(|name| counter(&topology, name)).transpose()?;
        for _ in 0..3 {
            wire.send(&frame)?;
        }
        if let Some((name, before)) = name.zip(before) {
            wait_for_counter(&topology, name, before + 3).with_context(|| what.to_owned())?;
        }
        get_each(&topology, HTTP.into(), 1).with_context(|| format!("after {what}"))?;
    }
    for length in 14..syn.len() {
        wire.send(&syn[..length])?;
    }
    for at in 12..syn.len() {
        wire.send(&spoilt(at, 0xff))?;
        wire.send(&spoilt(at, 0x00))?;
    }
    ensure!(get_each(&topology, HTTP.into(), 4)?.len() == 4);
    director.stop()
}

#[test]
fn jumbo_frames_are_counted_and_dropped_over_af_xdp() -> Result<()> {
    jumbo_frames(jumbo_frames_are_counted_and_dropped_over_af_xdp, Backend::AfXdp)
}

#[test]
fn jumbo_frames_are_counted_and_dropped_over_af_packet() -> Result<()> {
    jumbo_frames(jumbo_frames_are_counted_and_dropped_over_af_packet, Backend::AfPacket)
}

/// Frames of 9,000 bytes are more than the director holds.
fn jumbo_frames(test: impl Fn() -> Result<()>, backend: Backend) -> Result<()> {
    const JUMBO: u32 = 9000;
    if !permitted(test)? || !backend.works()? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    topology.client().run_in(|| Netlink::open()?.mtu(FRONT, JUMBO))??;
    topology.director().run_in(|| -> Result<()> {
        Netlink::open()?.mtu(DIRECTOR_CLIENT_SIDE, JUMBO)?;
        Netlink::open()?.mtu(DIRECTOR_SERVER_SIDE, JUMBO)
    })??;
    let director = start(&topology, backend, &[])?;
    serve(&director, "-t", HTTP, "-m", HTTP_PORT)?;

    let wire = Wire::open(&topology)?;
    let macs = (wire.client, wire.director);
    let mut segment = frames::tcp(macs, FROM, TO, frames::flags("S"))[34..].to_vec();
    segment.resize(JUMBO as usize - 20, 0x55);
    let jumbo = frames::frame(macs, FROM.0, TO.0, 6, segment, 16);
    for _ in 0..5 {
        wire.send(&jumbo)?;
    }
    // Everything still works; the kernel's own segments are as small as the servers asked for.
    get_each(&topology, HTTP.into(), 10)?;
    wait_for_counter(&topology, "port.rx_oversized", 5)
        .with_context(|| format!("{:?}", status(&topology).map(|s| s.interfaces)))?;
    let said = director.end()?;
    let why = said.iter().any(|line| line.contains("native XDP") && line.contains("MTU"));
    ensure!(why == (backend == Backend::AfXdp), "why XDP is not native: {said:#?}");
    Ok(())
}
