//! Interfaces that are no device of their own, above others whose senders left checksums undone: bridges.

use std::net::SocketAddrV4;
use std::process::Command;

use anyhow::{Result, ensure};
use shunt_bench::netlink::Netlink;
use shunt_bench::topology::{
    DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE, DIRECTOR_TO_CLIENTS, DIRECTOR_TO_SERVERS, FRONT, Options,
    Topology, VIP,
};
use shunt_bench::traffic::HTTP_PORT;
use shunt_dataplane::port::ethtool::{Ethtool, Offload};

use crate::ground::{Backend, get_each, permitted, run_to_end, serve, start};

#[test]
fn connections_of_local_senders_come_through_a_bridge() -> Result<()> {
    if !permitted(connections_of_local_senders_come_through_a_bridge)? || !Backend::AfXdp.works()? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    put_bridges_before_all(&topology)?;
    topology.client().run_in(|| Ethtool::open(FRONT)?.set_offload(Offload::TxChecksum, true))??;
    let director = start(&topology, Backend::AfXdp, &[])?;
    let http = SocketAddrV4::new(VIP, HTTP_PORT);
    serve(&director, "-t", http, "-m", HTTP_PORT)?;
    ensure!(get_each(&topology, http.into(), 4)?.len() == 4);
    director.stop()
}

/// The director's interfaces are bridges from now on, with the same names and addresses.
fn put_bridges_before_all(topology: &Topology) -> Result<()> {
    let ip = |words: &str| -> Result<()> {
        let mut command = Command::new("ip");
        command.args(words.split_whitespace());
        let output = run_to_end(topology.director(), command)?;
        ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let sides = [(DIRECTOR_CLIENT_SIDE, DIRECTOR_TO_CLIENTS), (DIRECTOR_SERVER_SIDE, DIRECTOR_TO_SERVERS)];
    for (bridge, address) in sides {
        let port = format!("{bridge}-port");
        ip(&format!("link set {bridge} down"))?;
        ip(&format!("address flush dev {bridge}"))?;
        ip(&format!("link set {bridge} name {port}"))?;
        topology.director().run_in(|| -> Result<()> {
            let netlink = Netlink::open()?;
            netlink.bridge(bridge)?;
            netlink.plug(&port, bridge)?;
            netlink.up(bridge)?;
            netlink.address(bridge, address.into(), 24)?;
            netlink.wait_until_all_pass_packets()
        })??;
    }
    Ok(())
}
