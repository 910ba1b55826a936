//! Every word ipvsadm knows, and which command takes which of them.
//!
//! Two tables. [`WORDS`] gives each option its long and short spelling, says whether a value follows and what it is for; [`COMMANDS`]
//! gives each command the options it needs, may have, and may have only one of. [`TUNNELS`] is the second table again
//! for the types of tunnel. A reader can lay them beside the manual page.
//!
//! The trap: ipvsadm looks through the options in one fixed order, not in the order typed, and reports the first that
//! is wrong. That order is the order of [`Opt`]; it decides which of two errors a user sees.

use super::failure::Failure;

/// What a word of the command line stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// A command. It must come first, and alone.
    Command(Verb),
    /// An option that [`COMMANDS`] knows about.
    Option(Opt),
    /// One of the three protocols' service addresses, all of them [`Opt::Service`].
    Service(crate::api::Protocol),
    /// A firewall mark, also [`Opt::Service`].
    Mark,
    /// A way of forwarding, all of them [`Opt::Forwarding`].
    Forward(Method),
    /// `-6`: accepted after any `-f`, counted nowhere.
    Ipv6,
    /// `--sort`: accepted anywhere, does nothing.
    Sort,
}

/// The commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Verb {
    AddService,
    EditService,
    DeleteService,
    Flush,
    List,
    AddServer,
    DeleteServer,
    EditServer,
    Set,
    StartDaemon,
    StopDaemon,
    Restore,
    Save,
    Zero,
    AddLocal,
    DeleteLocal,
    ListLocals,
    Help,
    Version,
}

/// The ways of forwarding that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Method {
    Masq,
    Route,
    Tunnel,
    FullNat,
}

/// The options, in the order in which they are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Opt {
    Numeric,
    Connection,
    Service,
    Scheduler,
    Persistent,
    Netmask,
    Server,
    Forwarding,
    Weight,
    UpperThreshold,
    LowerThreshold,
    McastInterface,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    NoSort,
    SyncId,
    Exact,
    OnePacket,
    Engine,
    SchedFlags,
    McastGroup,
    McastPort,
    McastTtl,
    SyncMaxLen,
    Local,
    LocalInterface,
    Toa,
    ProxyProtocol,
    Mss,
    Json,
    ShowFullNat,
    TunInfo,
    TunType,
    TunPort,
    TunNoCsum,
    TunCsum,
    TunRemCsum,
}

/// Each [`Opt`] in its order, with the name that error messages use.
pub const OPTIONS: &[(Opt, &str)] = &[
    (Opt::Numeric, "numeric"),
    (Opt::Connection, "connection"),
    (Opt::Service, "service-address"),
    (Opt::Scheduler, "scheduler"),
    (Opt::Persistent, "persistent"),
    (Opt::Netmask, "netmask"),
    (Opt::Server, "real-server"),
    (Opt::Forwarding, "forwarding-method"),
    (Opt::Weight, "weight"),
    (Opt::UpperThreshold, "u-threshold"),
    (Opt::LowerThreshold, "l-threshold"),
    (Opt::McastInterface, "mcast-interface"),
    (Opt::Timeout, "timeout"),
    (Opt::Daemon, "daemon"),
    (Opt::Stats, "stats"),
    (Opt::Rate, "rate"),
    (Opt::Thresholds, "thresholds"),
    (Opt::PersistentConn, "persistent-conn"),
    (Opt::NoSort, "nosort"),
    (Opt::SyncId, "syncid"),
    (Opt::Exact, "exact"),
    (Opt::OnePacket, "ops"),
    (Opt::Engine, "pe"),
    (Opt::SchedFlags, "sched-flags"),
    (Opt::McastGroup, "mcast-group"),
    (Opt::McastPort, "mcast-port"),
    (Opt::McastTtl, "mcast-ttl"),
    (Opt::SyncMaxLen, "sync-maxlen"),
    (Opt::Local, "laddr"),
    (Opt::LocalInterface, "ifname"),
    (Opt::Toa, "toa"),
    (Opt::ProxyProtocol, "proxy-protocol"),
    (Opt::Mss, "mss"),
    (Opt::Json, "json"),
    (Opt::ShowFullNat, "show-fullnat"),
    (Opt::TunInfo, "tun-info"),
    (Opt::TunType, "tun-type"),
    (Opt::TunPort, "tun-port"),
    (Opt::TunNoCsum, "tun-nocsum"),
    (Opt::TunCsum, "tun-csum"),
    (Opt::TunRemCsum, "tun-remcsum"),
];

/// Whether a value follows a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// None.
    Nothing,
    /// One of this name, whatever it looks like.
    Value(&'static str),
    /// One of this name, unless the next word begins with `-`.
    Perhaps(&'static str),
}

/// One word of the command line.
#[derive(Debug)]
pub struct Word {
    /// Spelling after `--`.
    pub long: &'static str,
    /// Spelling after `-`.
    pub short: Option<char>,
    /// Whether a value follows.
    pub takes: Takes,
    /// What it stands for.
    pub means: Means,
    /// What it is for, in half a sentence.
    pub help: &'static str,
}

const fn word(
    long: &'static str,
    short: Option<char>,
    takes: Takes,
    means: Means,
    help: &'static str,
) -> Word {
    Word { long, short, takes, means, help }
}

/// All words.
#[rustfmt::skip]
pub const WORDS: &[Word] = {
    use crate::api::Protocol::{Sctp, Tcp, Udp};
    use Means::{Command, Forward, Option};
    use Takes::{Nothing, Perhaps, Value};
    &[
        word("add-service", Some('A'), Nothing, Command(Verb::AddService), "add a virtual service"),
        word("edit-service", Some('E'), Nothing, Command(Verb::EditService), "give a virtual service other options, all of them"),
        word("delete-service", Some('D'), Nothing, Command(Verb::DeleteService), "delete a virtual service"),
        word("clear", Some('C'), Nothing, Command(Verb::Flush), "delete all virtual services"),
        word("list", Some('L'), Nothing, Command(Verb::List), "list services, or what is asked for; also -l"),
        word("list", Some('l'), Nothing, Command(Verb::List), "the same"),
        word("add-server", Some('a'), Nothing, Command(Verb::AddServer), "add a real server"),
        word("delete-server", Some('d'), Nothing, Command(Verb::DeleteServer), "delete a real server"),
        word("edit-server", Some('e'), Nothing, Command(Verb::EditServer), "give a real server other options, all of them"),
        word("set", None, Nothing, Command(Verb::Set), "set the timeouts: three words follow, in seconds"),
        word("start-daemon", None, Value("role"), Command(Verb::StartDaemon), "start synchronising connections, which the director cannot yet and says so"),
        word("stop-daemon", None, Value("role"), Command(Verb::StopDaemon), "stop synchronising connections"),
        word("restore", Some('R'), Nothing, Command(Verb::Restore), "read commands from the standard input"),
        word("save", Some('S'), Nothing, Command(Verb::Save), "print the rules as commands that -R reads"),
        word("zero", Some('Z'), Nothing, Command(Verb::Zero), "set counters to zero, of one service or of all"),
        word("add-laddr", Some('P'), Nothing, Command(Verb::AddLocal), "add a local address for FullNAT servers to answer to"),
        word("del-laddr", Some('Q'), Nothing, Command(Verb::DeleteLocal), "delete a local address"),
        word("get-laddr", Some('G'), Nothing, Command(Verb::ListLocals), "list local addresses"),
        word("help", Some('h'), Nothing, Command(Verb::Help), "show the help"),
        word("version", Some('v'), Nothing, Command(Verb::Version), "show the version"),
        word("tcp-service", Some('t'), Value("address"), Means::Service(Tcp), "a TCP service: host[:port]"),
        word("udp-service", Some('u'), Value("address"), Means::Service(Udp), "a UDP service: host[:port]"),
        word("sctp-service", None, Value("address"), Means::Service(Sctp), "an SCTP service: host[:port]"),
        word("fwmark-service", Some('f'), Value("mark"), Means::Mark, "the service of a firewall mark above 0"),
        word("ipv6", Some('6'), Nothing, Means::Ipv6, "behind -f: for IPv6 packets"),
        word("scheduler", Some('s'), Value("scheduler"), Option(Opt::Scheduler), "who chooses the real server; wlc by default"),
        word("persistent", Some('p'), Perhaps("seconds"), Option(Opt::Persistent), "a client keeps its real server so long; 360 by default"),
        word("netmask", Some('M'), Value("mask"), Option(Opt::Netmask), "clients that are persistent as one: a mask, or a prefix's length"),
        word("pe", None, Value("engine"), Option(Opt::Engine), "persistence by what the packets say"),
        word("ops", Some('o'), Nothing, Option(Opt::OnePacket), "schedule each UDP packet alone"),
        word("sched-flags", Some('b'), Value("flags"), Option(Opt::SchedFlags), "flags of the scheduler, with commas between"),
        word("toa", None, Value("state"), Option(Opt::Toa), "tell FullNAT servers of clients by a TCP option (default)"),
        word("proxy-protocol", None, Value("version"), Option(Opt::ProxyProtocol), "tell them by the PROXY protocol instead"),
        word("mss", None, Value("bytes"), Option(Opt::Mss), "the largest segment that either end may announce"),
        word("laddr", Some('z'), Value("address"), Option(Opt::Local), "the local address"),
        word("ifname", Some('F'), Value("interface"), Option(Opt::LocalInterface), "accepted for DPVS's sake"),
        word("real-server", Some('r'), Value("address"), Option(Opt::Server), "the real server: host[:port]"),
        word("gatewaying", Some('g'), Nothing, Forward(Method::Route), "forward by direct routing (default)"),
        word("ipip", Some('i'), Nothing, Forward(Method::Tunnel), "forward by a tunnel"),
        word("masquerading", Some('m'), Nothing, Forward(Method::Masq), "forward by NAT"),
        word("fullnat", None, Nothing, Forward(Method::FullNat), "forward by NAT of both ends"),
        word("tun-type", None, Value("type"), Option(Opt::TunType), "the tunnel's kind; ipip by default"),
        word("tun-port", None, Value("port"), Option(Opt::TunPort), "the port that a gue tunnel leads to"),
        word("tun-nocsum", None, Nothing, Option(Opt::TunNoCsum), "a tunnel without checksums (default)"),
        word("tun-csum", None, Nothing, Option(Opt::TunCsum), "a tunnel with checksums"),
        word("tun-remcsum", None, Nothing, Option(Opt::TunRemCsum), "a tunnel with remote checksums"),
        word("weight", Some('w'), Value("weight"), Option(Opt::Weight), "share of the connections, 0 for none; 1 by default"),
        word("u-threshold", Some('x'), Value("connections"), Option(Opt::UpperThreshold), "get no more from so many on"),
        word("l-threshold", Some('y'), Value("connections"), Option(Opt::LowerThreshold), "get more again below so many"),
        word("connection", Some('c'), Nothing, Option(Opt::Connection), "list connections"),
        word("numeric", Some('n'), Nothing, Option(Opt::Numeric), "no names of hosts and ports"),
        word("timeout", None, Nothing, Option(Opt::Timeout), "list the timeouts"),
        word("daemon", None, Nothing, Option(Opt::Daemon), "list the synchronisation daemons"),
        word("stats", None, Nothing, Option(Opt::Stats), "list counters"),
        word("rate", None, Nothing, Option(Opt::Rate), "list rates"),
        word("thresholds", None, Nothing, Option(Opt::Thresholds), "list thresholds"),
        word("persistent-conn", None, Nothing, Option(Opt::PersistentConn), "list persistent connections"),
        word("tun-info", None, Nothing, Option(Opt::TunInfo), "list tunnels"),
        word("json", None, Nothing, Option(Opt::Json), "one JSON document with everything there is"),
        word("show-fullnat", None, Nothing, Option(Opt::ShowFullNat), "call FullNAT servers FullNat, not Masq"),
        word("exact", Some('X'), Nothing, Option(Opt::Exact), "do not shorten numbers"),
        word("nosort", None, Nothing, Option(Opt::NoSort), "in the director's order"),
        word("sort", None, Nothing, Means::Sort, "does nothing"),
        word("syncid", None, Value("id"), Option(Opt::SyncId), "0 to 255; a backup with 0 takes all"),
        word("sync-maxlen", None, Value("bytes"), Option(Opt::SyncMaxLen), "length of the longest message; 1472 by default"),
        word("mcast-interface", None, Value("interface"), Option(Opt::McastInterface), "interface to synchronise by; eth0 by default"),
        word("mcast-group", None, Value("address"), Option(Opt::McastGroup), "multicast group; 224.0.0.81 by default"),
        word("mcast-port", None, Value("port"), Option(Opt::McastPort), "UDP port; 8848 by default"),
        word("mcast-ttl", None, Value("ttl"), Option(Opt::McastTtl), "TTL of messages; 1 by default"),
    ]
};

/// What one command, or one type of tunnel, accepts.
#[derive(Debug)]
pub struct Grammar {
    /// Its name in error messages.
    pub name: &'static str,
    /// Options it cannot do without.
    pub needs: &'static [Opt],
    /// Options it may have.
    pub may: &'static [Opt],
    /// Options of which it may have one.
    pub one_of: &'static [Opt],
}

impl Grammar {
    /// Whether an option may be there.
    pub fn takes(&self, option: Opt) -> bool {
        [self.needs, self.may, self.one_of].iter().any(|options| options.contains(&option))
    }
}

/// The options that say which service; the rest of a service's options.
const SERVICE: &[Opt] = &[
    Opt::Scheduler,
    Opt::Persistent,
    Opt::Netmask,
    Opt::OnePacket,
    Opt::Engine,
    Opt::SchedFlags,
    Opt::Toa,
    Opt::ProxyProtocol,
    Opt::Mss,
];
const SERVER: &[Opt] = &[
    Opt::Forwarding,
    Opt::Weight,
    Opt::UpperThreshold,
    Opt::LowerThreshold,
    Opt::TunType,
    Opt::TunPort,
    Opt::TunNoCsum,
    Opt::TunCsum,
    Opt::TunRemCsum,
];

/// What each command accepts. Help and version look at nothing else on their line.
pub const COMMANDS: &[(Verb, Grammar)] = {
    use Opt::*;
    &[
        (Verb::AddService, Grammar { name: "add-service", needs: &[Service], may: SERVICE, one_of: &[] }),
        (Verb::EditService, Grammar { name: "edit-service", needs: &[Service], may: SERVICE, one_of: &[] }),
        (Verb::DeleteService, Grammar { name: "delete-service", needs: &[Service], may: &[], one_of: &[] }),
        (Verb::Flush, Grammar { name: "flush", needs: &[], may: &[], one_of: &[] }),
        (
            Verb::List,
            Grammar {
                name: "list",
                needs: &[],
                // That it takes `--syncid`, and makes nothing of it, is the original's.
                may: &[
                    Numeric,
                    Stats,
                    Rate,
                    Thresholds,
                    PersistentConn,
                    NoSort,
                    SyncId,
                    Exact,
                    Json,
                    ShowFullNat,
                    TunInfo,
                ],
                one_of: &[Connection, Service, Timeout, Daemon],
            },
        ),
        (
            Verb::AddServer,
            Grammar { name: "add-server", needs: &[Service, Server], may: SERVER, one_of: &[] },
        ),
        (
            Verb::DeleteServer,
            Grammar { name: "delete-server", needs: &[Service, Server], may: &[], one_of: &[] },
        ),
        (
            Verb::EditServer,
            Grammar { name: "edit-server", needs: &[Service, Server], may: SERVER, one_of: &[] },
        ),
        (Verb::Set, Grammar { name: "set", needs: &[], may: &[], one_of: &[] }),
        (
            Verb::StartDaemon,
            Grammar {
                name: "start-daemon",
                needs: &[],
                may: &[McastInterface, SyncId, McastGroup, McastPort, McastTtl, SyncMaxLen],
                one_of: &[],
            },
        ),
        (Verb::StopDaemon, Grammar { name: "stop-daemon", needs: &[], may: &[SyncId], one_of: &[] }),
        (Verb::Restore, Grammar { name: "restore", needs: &[], may: &[], one_of: &[] }),
        (Verb::Save, Grammar { name: "save", needs: &[], may: &[Numeric], one_of: &[] }),
        (Verb::Zero, Grammar { name: "zero", needs: &[], may: &[Service], one_of: &[] }),
        (
            Verb::AddLocal,
            Grammar { name: "add-laddr", needs: &[Service, Local], may: &[LocalInterface], one_of: &[] },
        ),
        (
            Verb::DeleteLocal,
            Grammar { name: "del-laddr", needs: &[Service, Local], may: &[LocalInterface], one_of: &[] },
        ),
        (
            Verb::ListLocals,
            Grammar { name: "get-laddr", needs: &[], may: &[Numeric, Service, Json], one_of: &[] },
        ),
    ]
};

/// What each type of tunnel accepts. The options of other rooms are not its business.
pub const TUNNELS: &[Grammar] = {
    use Opt::*;
    &[
        Grammar { name: "ipip", needs: &[], may: &[TunType], one_of: &[] },
        Grammar {
            name: "gue",
            needs: &[TunPort],
            may: &[TunType],
            one_of: &[TunNoCsum, TunCsum, TunRemCsum],
        },
        Grammar { name: "gre", needs: &[], may: &[TunType], one_of: &[TunNoCsum, TunCsum] },
    ]
};

/// The options that only tunnels have.
pub const TUNNEL_OPTIONS: &[Opt] =
    &[Opt::TunType, Opt::TunPort, Opt::TunNoCsum, Opt::TunCsum, Opt::TunRemCsum];

/// A set of options seen on a command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen(u64);

impl Seen {
    /// Adds one. Seeing an option twice is an error.
    pub fn add(&mut self, option: Opt) -> Result<(), Failure> {
        if self.has(option) {
            return Err(Failure::usage(format!("multiple '{}' options specified", option.name())));
        }
        self.0 |= 1 << option as u64;
        Ok(())
    }

    /// Whether this one was seen.
    pub fn has(&self, option: Opt) -> bool {
        self.0 & (1 << option as u64) != 0
    }

    /// Whether any of these was seen.
    pub fn has_any(&self, options: &[Opt]) -> bool {
        options.iter().any(|o| self.has(*o))
    }

    /// Holds the options in `scope` against a grammar, in the order of [`OPTIONS`].
    pub fn check(&self, grammar: &Grammar, scope: &[(Opt, &str)], kind: &str) -> Result<(), Failure> {
        let target = grammar.name;
        let mut chosen = None;
        for &(option, name) in scope {
            if !self.has(option) {
                if grammar.needs.contains(&option) {
                    return Err(Failure::usage(format!(
                        "You need to supply the '{name}' option for the '{target}' {kind}"
                    )));
                }
            } else if grammar.one_of.contains(&option) {
                if let Some(earlier) = chosen {
                    return Err(Failure::usage(format!(
                        "The option '{name}' conflicts with the '{earlier}' option in the '{target}' {kind}"
                    )));
                }
                chosen = Some(name);
            } else if !grammar.takes(option) {
                return Err(Failure::usage(format!("Illegal '{name}' option with the '{target}' {kind}")));
            }
        }
        Ok(())
    }
}

impl Opt {
    /// The name that error messages use.
    pub fn name(self) -> &'static str {
        OPTIONS[self as usize].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_stand_in_the_order_of_their_numbers() {
        for (place, (option, _)) in OPTIONS.iter().enumerate() {
            assert_eq!(*option as usize, place);
        }
    }

    #[test]
    fn no_spelling_means_two_things() {
        for (i, a) in WORDS.iter().enumerate() {
            for b in &WORDS[i + 1..] {
                assert!(a.short.is_none() || a.short != b.short, "{a:?} {b:?}");
                assert!(a.long != b.long || a.means == b.means, "{a:?} {b:?}");
            }
        }
    }
}
