//! The settings that IPVS has under `net.ipv4.vs`, as far as the data plane obeys them.
//!
//! One table has the names, defaults and bounds of all; who sets, lists or reads them goes by it. A new setting is one entry
//! below and the place that obeys it. What the kernel has besides, and why it is not here, is told by [`absent`].

use std::ops::RangeInclusive;

/// What the kernel takes for settings it does not bound: any number of its type. Most are switches, on when not 0.
const ANY: RangeInclusive<i32> = i32::MIN..=i32::MAX;

/// Seconds in a day.
const DAY: i32 = 86_400;

/// Seconds that moments may be apart, to be told which is the later one.
const SPAN: RangeInclusive<i32> = 0..=31 * DAY;

macro_rules! sysctls {
    ($($(#[$doc:meta])+ $name:ident = $default:tt in $bounds:expr;)+) => {
        /// The settings in force, each under its own name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Sysctls { $($(#[$doc])+ pub $name: i32,)+ }

        /// The kernel's defaults.
        impl Default for Sysctls {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        /// Every setting, in the order of `sysctl -a`.
        const TABLE: &[Sysctl] = &[
            $(Sysctl {
                name: stringify!($name),
                bounds: $bounds,
                get: |all| all.$name,
                place: |all| &mut all.$name,
            },)+
        ];
    };
}

sysctls! {
    /// Of so many new connections one is refused, with `drop_packet` at 3.
    am_droprate = 10 in ANY;
    /// Pages of 4 KiB: memory is short when fewer are free.
    amemthresh = 1024 in ANY;
    /// Whether packets of a mark's service go to where they are addressed, unchanged, when no real server takes them.
    cache_bypass = 0 in ANY;
    /// Whether a packet that asks for a new connection may replace the one that has its addresses and ports: 0 never; otherwise when that one is
    /// over; with bit 1 also when its client has sent a FIN and its replies are not seen here.
    conn_reuse_mode = 1 in ANY;
    /// Whether connections that look unused are dropped: 0 never, 1 while memory is short, 3 always.
    drop_entry = 0 in 0..=3;
    /// Whether some new connections are refused, the same way.
    drop_packet = 0 in 0..=3;
    /// Whether the connections of a real server that was removed end. Otherwise their packets vanish until they expire or the server is back.
    /// A real server of weight 0 loses a connection to a packet that asks for a new one.
    expire_nodest_conn = 0 in ANY;
    /// Whether a template whose real server has weight 0 makes no more connections, so that its client goes to another one.
    expire_quiescent_template = 0 in ANY;
    /// Seconds after which `lblc` forgets a destination that was not used.
    lblc_expiration = 86_400 in SPAN;
    /// The same of `lblcr`, which also takes a real server from a destination that has had the same ones for so long.
    lblcr_expiration = 86_400 in SPAN;
    /// Whether a NAT real server is told, by ICMP port unreachable, that what it sent belongs to no connection.
    nat_icmp_send = 0 in ANY;
    /// Whether a tunnel's outer packet must not be cut up when the inner one must not.
    pmtu_disc = 1 in ANY;
    /// Whether rates are estimated. Otherwise those that are shown stay as they are; counters go on.
    run_estimation = 1 in ANY;
    /// Whether an ICMP error about a connection that nobody knows begins it. Its real server may know it, as after a restart of the director.
    schedule_icmp = 0 in ANY;
    /// Whether TCP's states go by a table that takes no client's word for a connection being established, the same way.
    secure_tcp = 0 in 0..=3;
    /// Whether any SCTP packet but an ABORT may begin a connection, not only an INIT.
    sloppy_sctp = 0 in ANY;
    /// Whether any TCP segment but a RST may begin a connection, not only a SYN.
    sloppy_tcp = 0 in ANY;
}

/// The kernel's other settings, each with the reason why it has no meaning here.
const ABSENT: &[(&str, &str)] = &[
    ("backup_only", NOT_SYNCHRONISED),
    ("conn_lfactor", "room for connections is set when the director starts, by --connections"),
    ("conntrack", "netfilter never sees the director's frames, and tracks none of its connections"),
    ("debug_level", "what is logged is set when the director starts, by RUST_LOG"),
    ("est_cpulist", "no thread of the kernel's estimates rates here"),
    ("est_nice", "no thread of the kernel's estimates rates here"),
    (
        "ignore_tunneled",
        "what comes out of a tunnel of the machine's own is always the kernel's, as if it were 1",
    ),
    ("snat_reroute", "replies are always routed by the main table, as if it were 1"),
    ("svc_lfactor", "the table of services grows with them"),
    ("sync_persist_mode", NOT_SYNCHRONISED),
    ("sync_ports", NOT_SYNCHRONISED),
    ("sync_qlen_max", NOT_SYNCHRONISED),
    ("sync_refresh_period", NOT_SYNCHRONISED),
    ("sync_retries", NOT_SYNCHRONISED),
    ("sync_sock_size", NOT_SYNCHRONISED),
    ("sync_threshold", NOT_SYNCHRONISED),
    ("sync_version", NOT_SYNCHRONISED),
];

const NOT_SYNCHRONISED: &str = "connections are not synchronised with another director yet";

/// Why a setting of the kernel's is none here; `None` if it is one, or the kernel has none of this name either.
pub fn absent(name: &str) -> Option<&'static str> {
    ABSENT.iter().find(|(known, _)| *known == name).map(|(_, why)| *why)
}

/// What one setting is called, and what it takes.
struct Sysctl {
    name: &'static str,
    bounds: RangeInclusive<i32>,
    get: fn(&Sysctls) -> i32,
    place: fn(&mut Sysctls) -> &mut i32,
}

/// Why a setting was not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SysctlError {
    /// There is none of this name.
    Unknown,
    /// The value is outside its bounds.
    OutOfBounds(RangeInclusive<i32>),
}

impl Sysctls {
    /// Changes a setting.
    ///
    /// # Errors
    /// When there is none of this name, or it does not take this value. Nothing has changed then.
    pub fn set(&mut self, name: &str, value: i32) -> Result<(), SysctlError> {
        let known = TABLE.iter().find(|known| known.name == name).ok_or(SysctlError::Unknown)?;
        if !known.bounds.contains(&value) {
            return Err(SysctlError::OutOfBounds(known.bounds.clone()));
        }
        *(known.place)(self) = value;
        Ok(())
    }

    /// Every setting by name, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, i32)> {
        TABLE.iter().map(|known| (known.name, (known.get)(self)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_and_each_has_a_place_of_its_own() {
        assert!(TABLE.is_sorted_by(|a, b| a.name < b.name));
        assert!(TABLE.iter().all(|known| absent(known.name).is_none()));
        let mut all = Sysctls::default();
        for known in TABLE {
            let (before, value) = (all, i32::from((known.get)(&all) == 0));
            all.set(known.name, value).unwrap();
            let changed = before.iter().zip(all.iter()).filter(|(before, after)| before != after);
            assert!(changed.map(|(_, after)| after).eq([(known.name, value)]));
        }
        assert_eq!(all.set("drop_entry", 4), Err(SysctlError::OutOfBounds(0..=3)));
        assert_eq!(all.set("no_such", 1), Err(SysctlError::Unknown));
    }
}
