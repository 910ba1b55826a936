//! Every word ipvsadm knows, and which command takes which of them.
//!
//! Two tables. [`WORDS`] gives each option its long and short spelling and says whether a value follows; [`COMMANDS`]
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
    /// One, whatever it looks like.
    Value,
    /// One, unless the next word begins with `-`.
    Perhaps,
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
}

const fn word(long: &'static str, short: Option<char>, takes: Takes, means: Means) -> Word {
    Word { long, short, takes, means }
}

/// All words.
pub const WORDS: &[Word] = {
    use crate::api::Protocol::{Sctp, Tcp, Udp};
    use Means::{Command, Forward, Option};
    use Takes::{Nothing, Perhaps, Value};
    &[
        word("add-service", Some('A'), Nothing, Command(Verb::AddService)),
        word("edit-service", Some('E'), Nothing, Command(Verb::EditService)),
        word("delete-service", Some('D'), Nothing, Command(Verb::DeleteService)),
        word("clear", Some('C'), Nothing, Command(Verb::Flush)),
        word("list", Some('L'), Nothing, Command(Verb::List)),
        word("list", Some('l'), Nothing, Command(Verb::List)),
        word("add-server", Some('a'), Nothing, Command(Verb::AddServer)),
        word("delete-server", Some('d'), Nothing, Command(Verb::DeleteServer)),
        word("edit-server", Some('e'), Nothing, Command(Verb::EditServer)),
        word("set", None, Nothing, Command(Verb::Set)),
        word("start-daemon", None, Value, Command(Verb::StartDaemon)),
        word("stop-daemon", None, Value, Command(Verb::StopDaemon)),
        word("restore", Some('R'), Nothing, Command(Verb::Restore)),
        word("save", Some('S'), Nothing, Command(Verb::Save)),
        word("zero", Some('Z'), Nothing, Command(Verb::Zero)),
        word("add-laddr", Some('P'), Nothing, Command(Verb::AddLocal)),
        word("del-laddr", Some('Q'), Nothing, Command(Verb::DeleteLocal)),
        word("get-laddr", Some('G'), Nothing, Command(Verb::ListLocals)),
        word("help", Some('h'), Nothing, Command(Verb::Help)),
        word("version", Some('v'), Nothing, Command(Verb::Version)),
        word("tcp-service", Some('t'), Value, Means::Service(Tcp)),
        word("udp-service", Some('u'), Value, Means::Service(Udp)),
        word("sctp-service", None, Value, Means::Service(Sctp)),
        word("fwmark-service", Some('f'), Value, Means::Mark),
        word("ipv6", Some('6'), Nothing, Means::Ipv6),
        word("scheduler", Some('s'), Value, Option(Opt::Scheduler)),
        word("persistent", Some('p'), Perhaps, Option(Opt::Persistent)),
        word("netmask", Some('M'), Value, Option(Opt::Netmask)),
        word("pe", None, Value, Option(Opt::Engine)),
        word("ops", Some('o'), Nothing, Option(Opt::OnePacket)),
        word("sched-flags", Some('b'), Value, Option(Opt::SchedFlags)),
        word("toa", None, Value, Option(Opt::Toa)),
        word("proxy-protocol", None, Value, Option(Opt::ProxyProtocol)),
        word("mss", None, Value, Option(Opt::Mss)),
        word("laddr", Some('z'), Value, Option(Opt::Local)),
        word("ifname", Some('F'), Value, Option(Opt::LocalInterface)),
        word("real-server", Some('r'), Value, Option(Opt::Server)),
        word("gatewaying", Some('g'), Nothing, Forward(Method::Route)),
        word("ipip", Some('i'), Nothing, Forward(Method::Tunnel)),
        word("masquerading", Some('m'), Nothing, Forward(Method::Masq)),
        word("fullnat", None, Nothing, Forward(Method::FullNat)),
        word("tun-type", None, Value, Option(Opt::TunType)),
        word("tun-port", None, Value, Option(Opt::TunPort)),
        word("tun-nocsum", None, Nothing, Option(Opt::TunNoCsum)),
        word("tun-csum", None, Nothing, Option(Opt::TunCsum)),
        word("tun-remcsum", None, Nothing, Option(Opt::TunRemCsum)),
        word("weight", Some('w'), Value, Option(Opt::Weight)),
        word("u-threshold", Some('x'), Value, Option(Opt::UpperThreshold)),
        word("l-threshold", Some('y'), Value, Option(Opt::LowerThreshold)),
        word("connection", Some('c'), Nothing, Option(Opt::Connection)),
        word("numeric", Some('n'), Nothing, Option(Opt::Numeric)),
        word("timeout", None, Nothing, Option(Opt::Timeout)),
        word("daemon", None, Nothing, Option(Opt::Daemon)),
        word("stats", None, Nothing, Option(Opt::Stats)),
        word("rate", None, Nothing, Option(Opt::Rate)),
        word("thresholds", None, Nothing, Option(Opt::Thresholds)),
        word("persistent-conn", None, Nothing, Option(Opt::PersistentConn)),
        word("tun-info", None, Nothing, Option(Opt::TunInfo)),
        word("json", None, Nothing, Option(Opt::Json)),
        word("show-fullnat", None, Nothing, Option(Opt::ShowFullNat)),
        word("exact", Some('X'), Nothing, Option(Opt::Exact)),
        word("nosort", None, Nothing, Option(Opt::NoSort)),
        word("sort", None, Nothing, Means::Sort),
        word("syncid", None, Value, Option(Opt::SyncId)),
        word("sync-maxlen", None, Value, Option(Opt::SyncMaxLen)),
        word("mcast-interface", None, Value, Option(Opt::McastInterface)),
        word("mcast-group", None, Value, Option(Opt::McastGroup)),
        word("mcast-port", None, Value, Option(Opt::McastPort)),
        word("mcast-ttl", None, Value, Option(Opt::McastTtl)),
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
            } else if !grammar.may.contains(&option) && !grammar.needs.contains(&option) {
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
