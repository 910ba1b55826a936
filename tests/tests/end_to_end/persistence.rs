//! Clients that come back: to the real server they had, on every port, whichever worker they come to; and a real server that is drained meanwhile.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shunt_bench::topology::{Options, Topology, VIP, client, server};
use shunt_bench::traffic::HTTP_PORT;

use crate::ground::{Backend, eventually, get_from, permitted, start_workers};

const HTTP: SocketAddrV4 = SocketAddrV4::new(VIP, HTTP_PORT);

#[test]
fn a_client_keeps_its_real_server_over_workers_and_ports() -> Result<()> {
    if !permitted(a_client_keeps_its_real_server_over_workers_and_ports)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options { queues: 2 })?;
        let _servers = topology.start_servers()?;
        let Some(director) = start_workers(&topology, backend, 2)? else { return Ok(()) };
        // All ports of the virtual address.
        director.ipvsadm(&["-A", "-t", &format!("{VIP}:0"), "-s", "rr", "-p", "60"])?;
        for n in 0..2 {
            director.ipvsadm(&["-a", "-t", &format!("{VIP}:0"), "-r", &format!("{}:0", server(n)), "-m"])?;
        }
        let gets = |who: u8, first_port: u16| -> Result<Vec<usize>> {
            let from = |n| SocketAddr::new(IpAddr::V4(client(who)), first_port + n);
            topology.client().run_in(|| (0..12).map(|n| get_from(from(n), HTTP.into())).collect())?
        };
        let (first, second) = (gets(1, 20_000)?, gets(2, 20_000)?);
        ensure!(first.windows(2).all(|pair| pair[0] == pair[1]), "one client went to {first:?}");
        ensure!(second.iter().all(|which| *which == second[0]), "another went to {second:?}");
        ensure!(first[0] != second[0], "both went to {}", first[0]);
        let connections = director.ipvsadm(&["-L", "-n", "-c"])?;
        let of_template =
            |line: &&str| line.contains(&format!("{}:0 ", client(1))) && line.contains("ASSURED");
        ensure!(connections.lines().filter(of_template).count() == 1, "{connections}");
        let listed = director.ipvsadm(&["-L", "-n", "--persistent-conn"])?;
        let counted =
            listed.lines().filter(|line| line.contains("-> ") && line.split_whitespace().nth(3) == Some("1"));
        ensure!(counted.count() == 2, "{listed}");

        // A quiesced one is still obeyed, as under IPVS, unless that is not wanted.
        let key = format!("{VIP}:0");
        let busy = format!("{}:0", server(first[0]));
        director.ipvsadm(&["-e", "-t", &key, "-r", &busy, "-m", "-w", "0"])?;
        ensure!(
            gets(1, 21_000)?.iter().all(|which| *which == first[0]),
            "a template with weight 0 is obeyed"
        );
        let set = director.shunt(&["sysctl", "expire_quiescent_template=1"], "")?;
        ensure!(set.status.success(), "{set:?}");
        ensure!(gets(1, 22_000)?.iter().all(|which| *which == second[0]), "not any more");
        let told = director.shunt(&["drain", &key, &busy, "--deadline", "2s"], "")?;
        ensure!(String::from_utf8_lossy(&told.stdout).contains("was removed"), "{told:?}");
        eventually(Duration::from_secs(5), || {
            let left = director.ipvsadm(&["-L", "-n"])?;
            ensure!(!left.contains(&busy), "{left}");
            Ok(())
        })?;
        ensure!(gets(2, 23_000)?.iter().all(|which| *which == second[0]), "the other one goes on");
        director.stop().with_context(|| backend.name())?;
    }
    Ok(())
}
