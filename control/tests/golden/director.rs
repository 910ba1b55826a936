//! A director without a data plane: the rules, and the connections and counters that the recorded traffic must have
//! left by the documented rules. Counters are gathered every two seconds, as the recorded kernel does; expiry is shown
//! a moment after the second begins.

use std::{collections::HashMap, io, net::IpAddr};

use shunt::{
    api::{
        ConnectionEntry, Family, Protocol, Request, Response, ServerKey, ServiceConfig, ServiceKey, Stats,
        SyncDaemon, SyncRole,
    },
    daemon,
    ipvsadm::Backend,
    rules::{Change, Rules},
};

/// The interfaces the recorded director had.
const INTERFACES: [&str; 3] = ["lo", "c0", "s0"];
/// The broadcast address of its client side.
const BROADCAST: [u8; 4] = [10, 0, 255, 255];

pub struct Director {
    rules: Rules,
    now: u32,
    connections: Vec<Connection>,
    counters: HashMap<(ServiceKey, Option<ServerKey>), Counter>,
    daemons: Vec<SyncDaemon>,
}

struct Connection {
    service: ServiceKey,
    server: ServerKey,
    client: (IpAddr, u16),
    state: &'static str,
    since: u32,
    timeout: u32,
    template: bool,
}

/// Connections, packets in and out, bytes in and out; the rates scaled as the estimator keeps them.
#[derive(Clone, Default)]
struct Counter {
    counted: [i64; 5],
    gathered: [i64; 5],
    base: [i64; 5],
    rates: [i64; 5],
}

impl Director {
    pub fn new() -> Director {
        Director {
            rules: Rules::new(daemon::capabilities()),
            now: 0,
            connections: Vec::new(),
            counters: HashMap::new(),
            daemons: Vec::new(),
        }
    }

    /// Something that happened: `syn|est|udp SOURCE PORT VIP PORT … # -> rsN`, `sleep SECONDS` or `boot`.
    pub fn happen(&mut self, what: &str) {
        let (what, note) = what.split_once('#').unwrap_or((what, ""));
        let words: Vec<&str> = what.split_whitespace().collect();
        match words[..] {
            ["boot"] => *self = Director::new(),
            ["sleep", seconds] => self.sleep(seconds.parse().expect("seconds are a number")),
            [kind, source, source_port, vip, vip_port, ..] => {
                let number = |text: &str| text.parse::<u16>().expect("a port is a number");
                let address = |text: &str| text.parse::<IpAddr>().expect("traffic has addresses");
                let protocol = if kind == "udp" { Protocol::Udp } else { Protocol::Tcp };
                let service = ServiceKey::Address { protocol, address: address(vip), port: number(vip_port) };
                let server = self.chosen(&service, note.trim().strip_prefix("-> rs"));
                self.connect(kind, (address(source), number(source_port)), service, server);
            }
            _ => panic!("unknown happening {what:?}"),
        }
    }

    /// The server the recorded kernel chose: rs1 ends in 11, or in b; without a note there is only one.
    fn chosen(&self, service: &ServiceKey, number: Option<&str>) -> ServerKey {
        let servers = &self.rules.service(service).expect("traffic goes to services").servers;
        let Some(number) = number else { return servers[0].key };
        let last = 10 + number.parse::<u8>().expect("servers are numbered");
        let ends = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets()[3] == last,
            IpAddr::V6(v6) => v6.octets()[15] == last,
        };
        servers.iter().find(|s| ends(s.key.address)).expect("the chosen server is there").key
    }

    fn connect(&mut self, kind: &str, client: (IpAddr, u16), service: ServiceKey, server: ServerKey) {
        let v6 = i64::from(service.family() == Family::Ipv6) * 20;
        let (state, timeout, counted) = match kind {
            "syn" => ("SYN_RECV", 60, [1, 1, 0, 40 + v6, 0]),
            // SYN, its answer, ACK.
            "est" => ("ESTABLISHED", 900, [1, 2, 1, 80 + 2 * v6, 40 + v6]),
            "udp" => ("UDP", 300, [1, 1, 0, 33 + v6, 0]),
            _ => panic!("unknown traffic {kind}"),
        };
        for key in [(service, None), (service, Some(server))] {
            let counter = self.counters.entry(key).or_default();
            counter.counted = std::array::from_fn(|i| counter.counted[i] + counted[i]);
        }
        let since = self.now;
        let entry = Connection { service, server, client, state, since, timeout, template: false };
        self.connections.push(entry);
        let config = self.rules.service(&service).expect("traffic goes to services").config.clone();
        self.remember(&config, client.0, server);
    }

    /// Makes or renews the template of a persistent service.
    fn remember(&mut self, config: &ServiceConfig, client: IpAddr, server: ServerKey) {
        let Some(persistent) = config.persistent else { return };
        let IpAddr::V4(v4) = client else { panic!("no IPv6 client is recorded at a persistent service") };
        let client = (IpAddr::from(v4 & std::net::Ipv4Addr::from_bits(persistent.mask)), 0);
        self.connections.retain(|c| !(c.template && c.client == client && c.service == config.key));
        self.connections.push(Connection {
            service: config.key,
            server,
            client,
            state: "NONE",
            since: self.now,
            timeout: persistent.timeout,
            template: true,
        });
    }

    fn sleep(&mut self, seconds: u32) {
        self.now += seconds;
        self.connections.retain(|c| self.now < c.since + c.timeout);
        for _ in 0..seconds / 2 {
            self.counters.values_mut().for_each(Counter::gather);
        }
    }

    fn mixed_families(&self) -> bool {
        self.rules
            .services()
            .any(|s| s.servers.iter().any(|server| Family::of(server.key.address) != s.config.key.family()))
    }

    fn start_daemon(&mut self, daemon: &SyncDaemon) -> Response {
        use nix::libc::{EEXIST, EINVAL, ENODEV};
        if self.mixed_families() {
            return refused(EINVAL);
        }
        if !INTERFACES.contains(&daemon.interface.as_str()) {
            return refused(ENODEV);
        }
        if self.daemons.iter().any(|d| d.role == daemon.role) {
            return refused(EEXIST);
        }
        let or = |value: u16, default: u16| if value == 0 { default } else { value };
        let mut daemon = daemon.clone();
        // `start_sync_thread` of Linux 6.1: a backup must take what others send, as long as its interface can.
        let headers = if daemon.group.is_some_and(|group| group.is_ipv6()) { 48 } else { 28 };
        let is_backup = daemon.role == SyncRole::Backup;
        let mtu = if is_backup && daemon.interface == "lo" { 65535 } else { 1500 };
        let least = if is_backup { 1024 } else { 1 };
        daemon.max_length = or(daemon.max_length, mtu - headers).clamp(least, 65535 - headers);
        daemon.group = daemon.group.or(Some([224, 0, 0, 81].into()));
        daemon.port = or(daemon.port, 8848);
        daemon.ttl = daemon.ttl.max(1);
        self.daemons.push(daemon);
        self.daemons.sort_by_key(|d| d.role);
        Response::Done
    }

    fn stop_daemon(&mut self, role: SyncRole) -> Response {
        let before = self.daemons.len();
        self.daemons.retain(|d| d.role != role);
        if self.daemons.len() < before { Response::Done } else { refused(nix::libc::ESRCH) }
    }

    fn stats(&self, service: ServiceKey, server: Option<ServerKey>) -> Stats {
        self.counters.get(&(service, server)).map(Counter::stats).unwrap_or_default()
    }

    /// Fills in what the rules do not know.
    fn join(&self, entries: &mut [shunt::api::ServiceEntry]) {
        for entry in entries {
            let key = entry.config.key;
            entry.stats = self.stats(key, None);
            for server in &mut entry.servers {
                server.stats = self.stats(key, Some(server.config.key));
                let hers =
                    self.connections.iter().filter(|c| c.service == key && c.server == server.config.key);
                for connection in hers {
                    match connection.state {
                        "NONE" => server.persistent += 1,
                        "UDP" => server.inactive += 1,
                        _ => server.active += 1,
                    }
                }
            }
        }
    }

    fn answer(&mut self, request: &Request) -> Response {
        match request {
            Request::StartDaemon(daemon) => return self.start_daemon(daemon),
            Request::StopDaemon(role) => return self.stop_daemon(*role),
            Request::Daemons => return Response::Daemons(self.daemons.clone()),
            Request::AddServer(key, server) | Request::EditServer(key, server)
                if self.rules.service(key).is_some() =>
            {
                let is_mixed = Family::of(server.key.address) != key.family();
                if is_mixed && !self.daemons.is_empty() {
                    return refused(nix::libc::EINVAL);
                }
            }
            _ => {}
        }
        let before = self.rules.clone();
        match self.rules.apply(request) {
            Err(refusal) => refusal.into(),
            Ok(Change::ServerAdded(_, server)) if server.address == IpAddr::from(BROADCAST) => {
                self.rules = before;
                refused(nix::libc::EINVAL)
            }
            Ok(Change::Zeroed(key)) => {
                let counters = self.counters.iter_mut();
                counters
                    .filter(|((service, _), _)| key.is_none_or(|k| k == *service))
                    .for_each(|(_, c)| c.zero());
                Response::Done
            }
            Ok(_) => Response::Done,
        }
    }
}

impl Backend for Director {
    fn request(
        &mut self,
        request: &Request,
        part: &mut dyn FnMut(Response) -> io::Result<()>,
    ) -> io::Result<()> {
        match request {
            Request::Services(_) => self.rules.clone().request(request, &mut |mut response| {
                if let Response::Services(entries) = &mut response {
                    self.join(entries);
                }
                part(response)
            }),
            Request::Connections => {
                part(Response::Connections(self.connections.iter().map(|c| c.entry(self.now)).collect()))?;
                part(Response::Done)
            }
            Request::Timeouts | Request::Status => self.rules.request(request, part),
            _ => part(self.answer(request)),
        }
    }
}

impl Connection {
    fn entry(&self, now: u32) -> ConnectionEntry {
        let ServiceKey::Address { protocol, address, port } = self.service else {
            panic!("no traffic is recorded at a mark")
        };
        ConnectionEntry {
            protocol: protocol.name().to_ascii_uppercase(),
            expires: self.since + self.timeout - now - 1,
            state: self.state.into(),
            client: self.client,
            service: (address, port),
            server: (self.server.address, self.server.port),
            engine: None,
            is_template: self.template,
        }
    }
}

impl Counter {
    /// Two seconds have passed. Packets are kept in 1/1024, bytes in 1/32; a quarter of the difference is taken over.
    fn gather(&mut self) {
        for i in 0..5 {
            let shift = if i < 3 { 9 } else { 4 };
            let delta = self.counted[i] - self.gathered[i];
            self.rates[i] += ((delta << shift) - self.rates[i]) >> 2;
        }
        self.gathered = self.counted;
    }

    fn zero(&mut self) {
        self.base = self.gathered;
        self.rates = [0; 5];
    }

    fn stats(&self) -> Stats {
        let shown: [u64; 5] = std::array::from_fn(|i| (self.gathered[i] - self.base[i]) as u64);
        let [conns, in_packets, out_packets, in_bytes, out_bytes] = shown;
        let rates = std::array::from_fn(|i| match i {
            0..3 => (self.rates[i] + 0x1ff) as u64 >> 10,
            _ => (self.rates[i] + 0xf) as u64 >> 5,
        });
        Stats { conns, in_packets, out_packets, in_bytes, out_bytes, rates }
    }
}

fn refused(errno: i32) -> Response {
    Response::Refused { errno, why: String::new() }
}
