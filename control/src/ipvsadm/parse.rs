//! From words to what is to be done.
//!
//! Options are taken one by one into a [`Draft`] (some look at what stands before them, see below), then the draft is
//! held against the tables of [`options`](super::options), then against the rules that no table can say, and only then
//! becomes a [`Command`]. Nothing is asked of the daemon on the way, so a wrong line changes nothing.
//!
//! Order matters in four places, as it does in the original: `-6` must follow `-f`; `-r` without a port copies the
//! service's, if that was typed before; `-M` is read as a mask or a prefix by the family known so far; an IPv6 service
//! puts the prefix back to 128.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    address::{Endpoint, Names, ipv4, number},
    failure::Failure,
    fullnat,
    options::{COMMANDS, Means, Method, OPTIONS, Opt, Seen, TUNNEL_OPTIONS, TUNNELS, Verb},
    words::{Found, Words},
};
use crate::{
    api::{
        Family, Forwarding, Persistence, Protocol, Request, ServerConfig, ServerKey, ServiceConfig,
        ServiceKey, SyncDaemon, SyncRole, Timeouts, Tunnel, TunnelChecksum,
    },
    rules::MIN_MSS,
};

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print how to use the tool.
    Help,
    /// Print the version.
    Version,
    /// Print tables.
    List(Listing),
    /// Print the rules as commands.
    Save {
        /// Without names.
        numeric: bool,
    },
    /// Print the local addresses of one service, or of all.
    Locals {
        /// Which service.
        service: Option<ServiceKey>,
        /// Without names.
        numeric: bool,
        /// As a JSON document.
        json: bool,
    },
    /// Read commands.
    Restore,
    /// Ask the daemon.
    Ask(Request),
}

/// What `-L` prints, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Which table.
    pub what: Table,
    /// The columns.
    pub layout: Layout,
    /// Without names.
    pub numeric: bool,
    /// Numbers in full.
    pub exact: bool,
    /// Sorted, or in the daemon's order.
    pub sorted: bool,
    /// FullNAT under its own name, not under the one that every tool knows.
    pub shows_full_nat: bool,
    /// As a JSON document. It has all columns of all layouts.
    pub json: bool,
}

/// The tables `-L` can print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// One service, or all.
    Services(Option<ServiceKey>),
    /// The connections; with the persistence engines' data if so.
    Connections {
        /// With the persistence engines' columns.
        engines: bool,
    },
    /// The timeouts.
    Timeouts,
    /// The synchronisation daemons.
    Daemons,
}

/// The columns of a listing of services. When several are asked for the first here wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the option names of ipvsadm")]
pub enum Layout {
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    TunInfo,
    Plain,
}

/// The scheduler of a service that names none.
const DEFAULT_SCHEDULER: &str = "wlc";
/// Seconds a persistent service remembers its clients when none are given.
const DEFAULT_PERSISTENCE: u32 = 360;
/// The longest timeout in seconds: 31 days.
const MAX_TIMEOUT: i64 = 31 * 24 * 60 * 60;
/// The longest name of a scheduler or an engine; what is longer is cut, as the kernel's field is.
const MAX_NAME: usize = 15;
/// The interface of a master or backup that names none.
const DEFAULT_INTERFACE: &str = "eth0";
/// UDP's largest payload bounds a synchronisation message.
const MAX_SYNC_LENGTH: i64 = 65507;

/// Reads a command line. `program` is what messages call the tool.
pub fn parse(program: &str, line: &[String], names: &dyn Names) -> Result<Command, Failure> {
    let mut words = Words::new(line);
    let try_help = || Failure::try_help(program);

    // The command comes first.
    let first = words.next_option().and_then(Result::ok).ok_or_else(try_help)?;
    let Means::Command(verb) = first.word.means else { return Err(try_help()) };
    let mut draft = Draft::new(names);
    match verb {
        Verb::Help => return Ok(Command::Help),
        Verb::Version => return Ok(Command::Version),
        Verb::StartDaemon => {
            draft.role = Some(role(first.value, "illegal start-daemon parameter specified")?)
        }
        Verb::StopDaemon => draft.role = Some(role(first.value, "illegal start_daemon specified")?),
        _ => {}
    }

    // Then its options, in any order but for the four cases above.
    while let Some(found) = words.next_option() {
        let found = found.map_err(Failure::word)?;
        if matches!(found.word.means, Means::Command(_)) {
            return Err(Failure::usage(format!("invalid option `{}'", words.last_word())));
        }
        draft.take(&found)?;
    }
    let mut left_over = words.left_over().iter();
    let timeouts = match verb {
        Verb::Set => Some(timeouts(&mut left_over)?),
        _ => None,
    };
    if let Some(word) = left_over.next() {
        return Err(Failure::usage(format!("unexpected argument {word}")));
    }

    draft.take_flags()?;
    let (_, grammar) = COMMANDS.iter().find(|(v, _)| *v == verb).ok_or_else(try_help)?;
    draft.seen.check(grammar, OPTIONS, "command")?;
    Ok(match verb {
        Verb::AddService => Command::Ask(Request::AddService(draft.service_config()?)),
        Verb::EditService => Command::Ask(Request::EditService(draft.service_config()?)),
        Verb::DeleteService => Command::Ask(Request::DeleteService(draft.service()?)),
        Verb::AddServer => Command::Ask(Request::AddServer(draft.service()?, draft.server_config()?)),
        Verb::EditServer => Command::Ask(Request::EditServer(draft.service()?, draft.server_config()?)),
        Verb::DeleteServer => Command::Ask(Request::DeleteServer(draft.service()?, draft.server()?)),
        Verb::AddLocal => Command::Ask(Request::AddLocal(draft.service()?, draft.local()?)),
        Verb::DeleteLocal => Command::Ask(Request::DeleteLocal(draft.service()?, draft.local()?)),
        Verb::ListLocals => Command::Locals {
            service: draft.service,
            numeric: draft.seen.has(Opt::Numeric),
            json: draft.seen.has(Opt::Json),
        },
        Verb::Flush => Command::Ask(Request::Flush),
        Verb::Zero => Command::Ask(Request::Zero(draft.service)),
        Verb::Set => Command::Ask(Request::SetTimeouts(timeouts.ok_or_else(try_help)?)),
        Verb::StartDaemon => Command::Ask(Request::StartDaemon(draft.daemon().ok_or_else(try_help)?)),
        Verb::StopDaemon => Command::Ask(Request::StopDaemon(draft.role.ok_or_else(try_help)?)),
        Verb::List => Command::List(draft.listing()?),
        Verb::Save => Command::Save { numeric: draft.seen.has(Opt::Numeric) },
        Verb::Restore => Command::Restore,
        Verb::Help => Command::Help,
        Verb::Version => Command::Version,
    })
}

fn role(word: Option<&str>, complaint: &str) -> Result<SyncRole, Failure> {
    match word {
        Some("master") => Ok(SyncRole::Master),
        Some("backup") => Ok(SyncRole::Backup),
        _ => Err(Failure::usage(complaint)),
    }
}

/// The three words of `--set`. That there are three matters more than what they say.
fn timeouts<'a>(words: &mut impl Iterator<Item = &'a &'a str>) -> Result<Timeouts, Failure> {
    let mut next = || words.next().ok_or_else(|| Failure::usage("--set option requires 3 timeout values"));
    let [tcp, tcp_fin, udp] = [next()?, next()?, next()?];
    Ok(Timeouts { tcp: timeout(tcp, 0)?, tcp_fin: timeout(tcp_fin, 0)?, udp: timeout(udp, 0)? })
}

fn timeout(word: &str, least: i64) -> Result<u32, Failure> {
    number(word, least..=MAX_TIMEOUT)
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| Failure::usage(format!("invalid timeout value `{word}' specified")))
}

/// What the options have said so far.
struct Draft<'a> {
    names: &'a dyn Names,
    seen: Seen,
    service: Option<ServiceKey>,
    family: Family,
    scheduler: String,
    persistence: Option<u32>,
    netmask: u32,
    prefix: u8,
    engine: Option<String>,
    sched_flags: Option<&'a str>,
    flags: u8,
    toa: Option<&'a str>,
    proxy_protocol: Option<&'a str>,
    mss: Option<u16>,
    local: Option<IpAddr>,
    server: Option<ServerKey>,
    method: Method,
    weight: u32,
    upper_threshold: u32,
    lower_threshold: u32,
    tun_type: &'static str,
    tun_port: u16,
    role: Option<SyncRole>,
    interface: String,
    syncid: u8,
    sync_max_length: u16,
    mcast_group: Option<IpAddr>,
    mcast_port: u16,
    mcast_ttl: u8,
}

impl<'a> Draft<'a> {
    fn new(names: &'a dyn Names) -> Draft<'a> {
        Draft {
            names,
            seen: Seen::default(),
            service: None,
            family: Family::Ipv4,
            scheduler: String::new(),
            persistence: None,
            netmask: u32::MAX,
            prefix: 128,
            engine: None,
            sched_flags: None,
            flags: 0,
            toa: None,
            proxy_protocol: None,
            mss: None,
            local: None,
            server: None,
            method: Method::Route,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
            tun_type: "ipip",
            tun_port: 0,
            role: None,
            interface: DEFAULT_INTERFACE.to_string(),
            syncid: 0,
            sync_max_length: 0,
            mcast_group: None,
            mcast_port: 0,
            mcast_ttl: 0,
        }
    }

    /// Takes one option.
    fn take(&mut self, found: &Found<'a>) -> Result<(), Failure> {
        let value = found.value.unwrap_or_default();
        match found.word.means {
            Means::Service(protocol) => {
                self.seen.add(Opt::Service)?;
                self.take_service(protocol, value)
            }
            Means::Mark => {
                self.seen.add(Opt::Service)?;
                self.take_mark(value)
            }
            Means::Ipv6 => self.take_ipv6(),
            Means::Forward(method) => {
                self.seen.add(Opt::Forwarding)?;
                self.method = method;
                Ok(())
            }
            Means::Option(option) => {
                self.seen.add(option)?;
                self.take_value(option, found.value)
            }
            Means::Sort | Means::Command(_) => Ok(()),
        }
    }

    fn take_service(&mut self, protocol: Protocol, value: &str) -> Result<(), Failure> {
        let Endpoint { address, port } = Endpoint::parse(value, Some(protocol), self.names)
            .ok_or_else(|| Failure::usage("illegal virtual server address[:port] specified"))?;
        self.service = Some(ServiceKey::Address { protocol, address, port: port.unwrap_or(0) });
        self.family = Family::of(address);
        if self.family == Family::Ipv6 {
            self.prefix = 128;
        }
        Ok(())
    }

    fn take_mark(&mut self, value: &str) -> Result<(), Failure> {
        let mark = number(value, 1..=i64::from(u32::MAX)).and_then(|n| u32::try_from(n).ok());
        let mark = mark.ok_or_else(|| Failure::usage(format!("invalid fwmark value `{value}' specified")))?;
        self.service = Some(ServiceKey::Mark { mark, family: Family::Ipv4 });
        Ok(())
    }

    fn take_ipv6(&mut self) -> Result<(), Failure> {
        match &mut self.service {
            Some(ServiceKey::Mark { family, .. }) => *family = Family::Ipv6,
            // The original ends this one message with two line ends.
            _ => return Err(Failure::usage("-6 used before -f\n")),
        }
        self.family = Family::Ipv6;
        self.prefix = 128;
        Ok(())
    }

    /// Takes an option that means what its value says.
    fn take_value(&mut self, option: Opt, typed: Option<&'a str>) -> Result<(), Failure> {
        let value = typed.unwrap_or_default();
        match option {
            Opt::Scheduler => self.scheduler = value.chars().take(MAX_NAME).collect(),
            Opt::Persistent => {
                self.persistence = Some(typed.map_or(Ok(DEFAULT_PERSISTENCE), |word| timeout(word, 1))?);
            }
            Opt::Netmask => self.take_netmask(value)?,
            Opt::Engine => self.engine = Some(value.chars().take(MAX_NAME).collect()),
            Opt::SchedFlags => self.sched_flags = Some(value),
            Opt::Toa => self.toa = Some(value),
            Opt::ProxyProtocol => self.proxy_protocol = Some(value),
            Opt::Mss => self.mss = Some(bounded(value, i64::from(MIN_MSS), 65535, "mss")?),
            Opt::Local => self.local = Some(self.local_address(value)?),
            Opt::Server => self.take_server(value)?,
            Opt::Weight => self.weight = bounded(value, 0, i64::from(i32::MAX), "weight")?,
            Opt::UpperThreshold => {
                self.upper_threshold = bounded(value, 0, i64::from(i32::MAX), "u_threshold")?;
            }
            Opt::LowerThreshold => {
                self.lower_threshold = bounded(value, 0, i64::from(i32::MAX), "l_threshold")?;
            }
            Opt::TunType => {
                let known = TUNNELS.iter().find(|t| t.name == value);
                self.tun_type = known.ok_or_else(|| Failure::usage("illegal tunnel type specified"))?.name;
            }
            Opt::TunPort => self.tun_port = bounded(value, 1, 65535, "tunnel port")?,
            Opt::McastInterface => self.interface = value.chars().take(MAX_NAME).collect(),
            Opt::SyncId => self.syncid = bounded(value, 0, 255, "syncid")?,
            Opt::SyncMaxLen => self.sync_max_length = bounded(value, 1, MAX_SYNC_LENGTH, "sync-maxlen")?,
            Opt::McastGroup => self.mcast_group = Some(multicast(value)?),
            Opt::McastPort => self.mcast_port = bounded(value, 1, 65535, "mcast-port")?,
            Opt::McastTtl => self.mcast_ttl = bounded(value, 1, 255, "mcast-ttl")?,
            _ => {}
        }
        Ok(())
    }

    /// Makes the names of scheduler flags what they mean for the scheduler, which may have come behind them.
    fn take_flags(&mut self) -> Result<(), Failure> {
        self.flags = sched_flags(&self.scheduler, self.sched_flags.unwrap_or_default())?;
        Ok(())
    }

    fn take_netmask(&mut self, value: &str) -> Result<(), Failure> {
        match self.family {
            Family::Ipv4 => {
                let mask = ipv4(value, self.names)
                    .ok_or_else(|| Failure::usage("illegal virtual server persistent mask specified"))?;
                self.netmask = mask.to_bits();
            }
            Family::Ipv6 => {
                let prefix = number(value, 1..=128).and_then(|n| u8::try_from(n).ok());
                self.prefix = prefix.ok_or_else(|| Failure::usage("illegal ipv6 netmask specified"))?;
            }
        }
        Ok(())
    }

    fn take_server(&mut self, value: &str) -> Result<(), Failure> {
        let (protocol, service_port) = match self.service {
            Some(ServiceKey::Address { protocol, port, .. }) => (Some(protocol), port),
            Some(ServiceKey::Mark { .. }) => (Some(Protocol::Tcp), 0),
            // Without a service before it a server's port has no name.
            None => (None, 0),
        };
        let Endpoint { address, port } = Endpoint::parse(value, protocol, self.names)
            .ok_or_else(|| Failure::usage("illegal real server address[:port] specified"))?;
        self.server = Some(ServerKey { address, port: port.unwrap_or(service_port) });
        Ok(())
    }

    /// An address without a port.
    fn local_address(&self, value: &str) -> Result<IpAddr, Failure> {
        let typed = Endpoint::parse(value, None, self.names).filter(|at| at.port.is_none());
        Ok(typed.ok_or_else(|| Failure::usage("illegal local address specified"))?.address)
    }

    /// The service; the grammar has made sure that there is one.
    fn service(&self) -> Result<ServiceKey, Failure> {
        self.service.ok_or_else(|| Failure::usage("illegal virtual server address[:port] specified"))
    }

    /// The server; the grammar has made sure that there is one.
    fn server(&self) -> Result<ServerKey, Failure> {
        self.server.ok_or_else(|| Failure::usage("illegal real server address[:port] specified"))
    }

    /// The local address; the grammar has made sure that there is one.
    fn local(&self) -> Result<IpAddr, Failure> {
        self.local.ok_or_else(|| Failure::usage("illegal local address specified"))
    }

    fn service_config(self) -> Result<ServiceConfig, Failure> {
        let key = self.service()?;
        let one_packet = self.seen.has(Opt::OnePacket);
        if let ServiceKey::Address { protocol, port, .. } = key {
            if port == 0 && self.persistence.is_none() {
                return Err(Failure::usage("Zero port specified for non-persistent service"));
            }
            if one_packet && protocol != Protocol::Udp {
                return Err(Failure::usage("One-Packet Scheduling is only for UDP virtual services"));
            }
        }

        let (prefix, mask) = match key.family() {
            Family::Ipv4 => (self.netmask.leading_ones() as u8, self.netmask),
            Family::Ipv6 => (self.prefix, 0),
        };
        Ok(ServiceConfig {
            key,
            scheduler: if self.scheduler.is_empty() { DEFAULT_SCHEDULER.into() } else { self.scheduler },
            flags: self.flags,
            persistent: self.persistence.map(|timeout| Persistence { timeout, prefix, mask }),
            one_packet,
            engine: self.engine.filter(|name| !name.is_empty()),
            client_address: fullnat::client_address(self.toa, self.proxy_protocol)?,
            mss: self.mss,
        })
    }

    fn server_config(&self) -> Result<ServerConfig, Failure> {
        let service = self.service()?;
        let mut key = self.server()?;
        if Family::of(key.address) != service.family()
            && !matches!(self.method, Method::Tunnel | Method::FullNat)
        {
            return Err(Failure::usage("Different address family is allowed only for tunneling servers"));
        }
        let forwarding = match self.method {
            Method::Tunnel => Forwarding::Tunnel(self.tunnel()?),
            _ if self.seen.has_any(TUNNEL_OPTIONS) => {
                return Err(Failure::usage("Tunnel options conflict with forward method"));
            }
            Method::Masq => Forwarding::Masq,
            Method::FullNat => Forwarding::FullNat,
            Method::Route => Forwarding::Route,
        };

        // Only NAT, of one kind or the other, can change the port.
        if let ServiceKey::Address { port, .. } = service
            && !matches!(self.method, Method::Masq | Method::FullNat)
        {
            key.port = port;
        }
        Ok(ServerConfig {
            key,
            forwarding,
            weight: self.weight,
            upper_threshold: self.upper_threshold,
            lower_threshold: self.lower_threshold,
        })
    }

    fn tunnel(&self) -> Result<Tunnel, Failure> {
        let first = TUNNEL_OPTIONS[0] as usize;
        for grammar in TUNNELS.iter().filter(|t| t.name == self.tun_type) {
            self.seen.check(grammar, &OPTIONS[first..], "tunnel type")?;
        }
        let checksum = if self.seen.has(Opt::TunRemCsum) {
            TunnelChecksum::Remote
        } else if self.seen.has(Opt::TunCsum) {
            TunnelChecksum::Full
        } else {
            TunnelChecksum::None
        };
        Ok(match self.tun_type {
            "gue" => Tunnel::Gue { port: self.tun_port, checksum },
            "gre" => Tunnel::Gre { checksum },
            _ => Tunnel::Ipip,
        })
    }

    fn daemon(self) -> Option<SyncDaemon> {
        Some(SyncDaemon {
            role: self.role?,
            interface: if self.interface.is_empty() { DEFAULT_INTERFACE.into() } else { self.interface },
            syncid: self.syncid,
            max_length: self.sync_max_length,
            group: self.mcast_group,
            port: self.mcast_port,
            ttl: self.mcast_ttl,
        })
    }

    fn listing(&self) -> Result<Listing, Failure> {
        use Opt::*;
        let has = |options: &[Opt]| self.seen.has_any(options);
        if has(&[Connection, Timeout, Daemon]) && has(&[Stats, Rate, Thresholds])
            || has(&[Timeout, Daemon]) && has(&[PersistentConn])
        {
            return Err(Failure::usage("options conflicts in the list command"));
        }

        let layouts = [
            (Stats, Layout::Stats),
            (Rate, Layout::Rate),
            (Thresholds, Layout::Thresholds),
            (PersistentConn, Layout::PersistentConn),
            (TunInfo, Layout::TunInfo),
        ];
        let layout = layouts.iter().find(|(option, _)| self.seen.has(*option));
        Ok(Listing {
            what: if has(&[Connection]) {
                Table::Connections { engines: has(&[PersistentConn]) }
            } else if has(&[Timeout]) {
                Table::Timeouts
            } else if has(&[Daemon]) {
                Table::Daemons
            } else {
                Table::Services(self.service)
            },
            layout: layout.map_or(Layout::Plain, |(_, layout)| *layout),
            numeric: has(&[Numeric]),
            exact: has(&[Exact]),
            sorted: !has(&[NoSort]),
            shows_full_nat: has(&[ShowFullNat]),
            json: has(&[Json]),
        })
    }
}

/// A number within bounds, in the type it is kept in.
fn bounded<T: TryFrom<i64>>(value: &str, least: i64, most: i64, what: &str) -> Result<T, Failure> {
    number(value, least..=most)
        .and_then(|n| T::try_from(n).ok())
        .ok_or_else(|| Failure::usage(format!("illegal {what} specified")))
}

fn multicast(value: &str) -> Result<IpAddr, Failure> {
    if let Ok(group) = value.parse::<std::net::Ipv6Addr>() {
        return match group.is_multicast() {
            true => Ok(group.into()),
            false => Err(Failure::usage(format!("invalid IPv6 mcast-group `{value}'"))),
        };
    }
    let group = value.parse::<Ipv4Addr>().ok().filter(Ipv4Addr::is_multicast);
    group.map(IpAddr::from).ok_or_else(|| Failure::usage(format!("invalid IPv4 mcast-group `{value}'")))
}

/// Names of scheduler flags: the scheduler they belong to, or any, and their bit.
pub const SCHED_FLAGS: &[(&str, Option<&str>, u8)] = &[
    ("sh-fallback", Some("sh"), 1),
    ("sh-port", Some("sh"), 2),
    ("mh-fallback", Some("mh"), 1),
    ("mh-port", Some("mh"), 2),
    ("flag-1", None, 1),
    ("flag-2", None, 2),
    ("flag-3", None, 4),
];

fn sched_flags(scheduler: &str, list: &str) -> Result<u8, Failure> {
    let mut flags = 0;
    for name in list.split(',').filter(|name| !name.is_empty()) {
        let known = SCHED_FLAGS.iter().find(|(known, ..)| *known == name);
        let (_, owner, bit) =
            known.ok_or_else(|| Failure::usage(format!("invalid scheduler flag `{name}'")))?;
        if owner.is_some_and(|owner| owner != scheduler) {
            return Err(Failure::usage(format!("incompatible scheduler flag `{name}'")));
        }
        flags |= bit;
    }
    Ok(flags)
}
