//! `shunt drain`: takes a real server out of service without anybody noticing. Weight 0, wait for its connections to end, remove it.
//!
//! IPVS leaves the waiting and the removing to whoever types the commands. A server is removed at the deadline all the same; what is left of its
//! connections then gets nowhere, as after `ipvsadm -d`. Interrupted, it leaves the server there, at weight 0.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::api::{Family, Protocol, Request, Response, ServerEntry, ServerKey, ServiceEntry, ServiceKey};
use crate::ipvsadm::Backend;

/// Time between two looks at a server's connections.
const LOOK: Duration = Duration::from_secs(1);

/// What to drain, as it is typed.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// The service: ADDRESS:PORT, with tcp:, udp: or sctp: before it where there are several; or fwm:MARK, fwm6:MARK.
    pub service: String,
    /// The real server: ADDRESS:PORT, or ADDRESS if it has the service's port.
    pub server: String,
    /// Remove it after this time even if connections are left, such as 90s, 5m or 2h. Otherwise it is waited for the last one.
    #[arg(long, value_parser = crate::time::parse, value_name = "TIME")]
    pub deadline: Option<Duration>,
}

/// How addresses and ports are typed.
const NUMBERS: &str = "in numbers, such as 192.0.2.1:80 or [2001:db8::1]:80";

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All connections ended, and the server was removed.
    Drained,
    /// It was removed with so many connections left.
    Overdue(u32),
    /// Somebody else removed it.
    Gone,
}

/// Drains a server and tells of the progress on `out`. `wait` lets time pass.
///
/// # Errors
/// When there is no such server, the director cannot be asked, or somebody gives the server weight again.
pub fn drain<B: Backend>(
    director: &mut B,
    options: &Options,
    out: &mut dyn Write,
    wait: &mut dyn FnMut(&mut B, Duration),
) -> anyhow::Result<Outcome> {
    let all = services(director, &Request::Services(None))?;
    let service = find(&all, &options.service)?;
    let key = service.config.key;
    let server = server(service, &options.server)?;
    let name = SocketAddr::new(server.address, server.port);
    let Some(found) = entry(director, key, server)? else {
        bail!("{} has no real server {name}; ipvsadm -Ln lists them", options.service);
    };
    let mut quiesced = found.config;
    quiesced.weight = 0;
    ask(director, &Request::EditServer(key, quiesced), &mut |_| {})?;
    if service.config.persistent.is_some() {
        writeln!(
            out,
            "{} is persistent: clients that know {name} keep coming back to it, unless shunt sysctl expire_quiescent_template=1",
            options.service
        )?;
    }

    let (mut passed, mut said) = (Duration::ZERO, None);
    loop {
        let Some(now) = entry(director, key, server)? else { return Ok(Outcome::Gone) };
        ensure!(now.config.weight == 0, "somebody gave {name} the weight {} again", now.config.weight);
        let left = now.active + now.inactive;
        let is_overdue = options.deadline.is_some_and(|deadline| passed >= deadline);
        if said != Some((now.active, now.inactive)) {
            said = Some((now.active, now.inactive));
            let until = options.deadline.map(|deadline| deadline.saturating_sub(passed));
            let until =
                until.map_or_else(String::new, |left| format!(", {} left", humantime::format_duration(left)));
            writeln!(out, "{name}: {} active and {} inactive connections{until}", now.active, now.inactive)?;
        }
        if left == 0 || is_overdue {
            ask(director, &Request::DeleteServer(key, server), &mut |_| {})?;
            return Ok(if left == 0 { Outcome::Drained } else { Outcome::Overdue(left) });
        }
        wait(director, LOOK);
        passed += LOOK;
    }
}

/// What is said of an outcome.
pub fn told(options: &Options, outcome: Outcome) -> String {
    let server = &options.server;
    match outcome {
        Outcome::Drained => format!("{server} has no connections any more and was removed"),
        Outcome::Overdue(left) => {
            format!("{server} was removed at the deadline; connections that get nowhere now: {left}")
        }
        Outcome::Gone => format!("{server} was removed by somebody else"),
    }
}

/// The service that is meant.
fn find<'s>(all: &'s [ServiceEntry], typed: &str) -> anyhow::Result<&'s ServiceEntry> {
    let what = "a service is ADDRESS:PORT, tcp:ADDRESS:PORT, udp:…, sctp:…, fwm:MARK or fwm6:MARK";
    let (kind, rest) = match typed.split_once(':') {
        Some((kind @ ("tcp" | "udp" | "sctp" | "fwm" | "fwm6"), rest)) => (Some(kind), rest),
        _ => (None, typed),
    };
    let is_meant: Box<dyn Fn(&ServiceKey) -> bool> = match kind {
        Some("fwm" | "fwm6") => {
            let family = if kind == Some("fwm") { Family::Ipv4 } else { Family::Ipv6 };
            let mark = rest.parse().ok().with_context(|| format!("{rest} is no firewall mark; {what}"))?;
            Box::new(move |key| *key == ServiceKey::Mark { mark, family })
        }
        _ => {
            let at: SocketAddr =
                rest.parse().ok().with_context(|| format!("{typed} names no service: {what}; {NUMBERS}"))?;
            let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
            let protocol = protocol.into_iter().find(|protocol| kind == Some(protocol.name()));
            Box::new(move |key| match key {
                ServiceKey::Address { protocol: of, address, port } => {
                    (*address, *port) == (at.ip(), at.port())
                        && protocol.is_none_or(|protocol| protocol == *of)
                }
                ServiceKey::Mark { .. } => false,
            })
        }
    };
    let mut found = all.iter().filter(|entry| is_meant(&entry.config.key));
    match (found.next(), found.next()) {
        (Some(service), None) => Ok(service),
        (None, _) => bail!("there is no service {typed}; ipvsadm -Ln lists them"),
        _ => bail!("there are several services {typed}; say tcp:, udp: or sctp: before it"),
    }
}

/// The server that is meant.
fn server(service: &ServiceEntry, typed: &str) -> anyhow::Result<ServerKey> {
    if let Ok(at) = typed.parse::<SocketAddr>() {
        return Ok(ServerKey { address: at.ip(), port: at.port() });
    }
    let address: IpAddr = typed.parse().ok().with_context(|| {
        format!("{typed} names no real server: a real server is ADDRESS:PORT or ADDRESS; {NUMBERS}")
    })?;
    let port = match service.config.key {
        ServiceKey::Address { port, .. } => port,
        ServiceKey::Mark { .. } => 0,
    };
    Ok(ServerKey { address, port })
}

fn entry(
    director: &mut impl Backend,
    service: ServiceKey,
    server: ServerKey,
) -> anyhow::Result<Option<ServerEntry>> {
    let listed = services(director, &Request::Services(Some(service)))?;
    let mut servers = listed.into_iter().flat_map(|entry| entry.servers);
    Ok(servers.find(|entry| entry.config.key == server))
}

fn services(director: &mut impl Backend, request: &Request) -> anyhow::Result<Vec<ServiceEntry>> {
    let mut all: Vec<ServiceEntry> = Vec::new();
    ask(director, request, &mut |response| {
        if let Response::Services(part) = response {
            ServiceEntry::gather(&mut all, part);
        }
    })?;
    Ok(all)
}

fn ask(director: &mut impl Backend, request: &Request, take: &mut dyn FnMut(Response)) -> anyhow::Result<()> {
    let mut refused = None;
    director.request(request, &mut |response| {
        match response {
            Response::Refused { why, .. } => refused = Some(why),
            other => take(other),
        }
        Ok(())
    })?;
    refused.map_or(Ok(()), |why| bail!("{why}"))
}
