//! A director that the documents' examples are asked of.

use std::io;
use std::net::IpAddr;

use shunt::api::{
    ConnectionEntry, Pages, Per, Profile, Request, Response, StageProfile, Stats, Status, SyncDaemon,
    SyncRole,
};
use shunt::ipvsadm::Backend;
use shunt::rules::{Capabilities, Rules};

/// Rules, with the traffic and the daemon that the document speaks of.
pub struct Director(pub Rules);

impl Director {
    pub fn new() -> Director {
        Director(Rules::new(Capabilities::everything()))
    }
}

impl Backend for Director {
    fn request(
        &mut self,
        request: &Request,
        part: &mut dyn FnMut(Response) -> io::Result<()>,
    ) -> io::Result<()> {
        match request {
            Request::Connections => {
                part(Response::Connections(connections()))?;
                part(Response::Done)
            }
            Request::Daemons => part(Response::Daemons(vec![SyncDaemon {
                role: SyncRole::Master,
                interface: "eth1".into(),
                syncid: 5,
                max_length: 1472,
                group: Some([224, 0, 0, 81].into()),
                port: 8848,
                ttl: 1,
            }])),
            Request::Status => part(Response::Status(status())),
            Request::Profile(_) => part(Response::Profile(profile())),
            Request::StartDaemon(_) | Request::StopDaemon(_) => part(Response::Done),
            _ => self.0.request(request, &mut |mut response| {
                count(&mut response);
                part(response)
            }),
        }
    }
}

/// The first server of the service on port 80 has had some traffic.
fn count(response: &mut Response) {
    let counted = Stats {
        conns: 12,
        in_packets: 340,
        out_packets: 280,
        in_bytes: 41_000,
        out_bytes: 3_900_000,
        rates: [1, 17, 14, 2050, 195_000],
    };
    match response {
        Response::Services(entries) => {
            for entry in entries {
                for server in &mut entry.servers {
                    if server.config.key.address == IpAddr::from([10, 1, 0, 11]) {
                        (server.stats, entry.stats) = (counted, counted);
                        (server.active, server.inactive, server.persistent) = (3, 9, 2);
                    }
                }
            }
        }
        Response::Locals(entries) => {
            entries.iter_mut().flat_map(|e| &mut e.addresses).for_each(|l| l.conns = 4)
        }
        _ => {}
    }
}

fn connections() -> Vec<ConnectionEntry> {
    let at = |text: &str, port| (text.parse().expect("an address"), port);
    let tcp = ConnectionEntry {
        protocol: "TCP".into(),
        expires: 899,
        state: "ESTABLISHED".into(),
        client: at("192.0.2.7", 50000),
        service: at("10.9.0.1", 80),
        server: at("10.1.0.11", 8080),
        engine: None,
        is_template: false,
    };
    let call = ConnectionEntry {
        protocol: "UDP".into(),
        expires: 300,
        state: "NONE".into(),
        client: at("192.0.2.0", 0),
        service: at("10.9.0.1", 5060),
        server: at("10.1.0.11", 5060),
        engine: Some(("sip".into(), "call@192.0.2.7".into())),
        is_template: true,
    };
    let mark = ConnectionEntry {
        protocol: "IP".into(),
        expires: 42,
        client: at("2001:db8:a::", 0),
        service: at("0:7::", 0),
        server: at("2001:db8:b::b", 0),
        engine: None,
        ..call.clone()
    };
    vec![tcp, call, mark]
}

/// What two stages of its first worker's have taken.
pub fn profile() -> Profile {
    let stage = |name: &str, per, cycles, buckets| StageProfile { stage: name.into(), per, cycles, buckets };
    Profile {
        core: 2,
        cycles_per_second: 2_600_000_000,
        every: 64,
        turns: 3,
        bursts: 3,
        packets: 150,
        stages: vec![
            stage("receive", Per::Burst, 3090, vec![(960, 975, 2), (1152, 1183, 1)]),
            stage("send", Per::Turn, 0, Vec::new()),
        ],
    }
}

/// What it says of itself.
pub fn status() -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        memory: "48 MiB of frames in reserved huge pages".to_owned(),
        frames: Pages { reserved: 48 << 20, ..Pages::default() },
        tables: vec![Pages { transparent: 316 << 20, ..Pages::default() }; 2],
        memory_in_use: 160 << 20,
        in_huge_pages: 128 << 20,
        reserved_pages: 24,
        table_size: 2 << 20,
        interfaces: vec![("eth0".into(), "af-xdp (native, copy)".into())],
        cores: vec![2, 3],
        epoch: 3,
        counters: vec![("conn.created".into(), 12), ("drop.no_route".into(), 0)],
    }
}
