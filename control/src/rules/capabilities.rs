//! What a director can do; what it cannot is refused when a rule asks for it.

/// What the director behind the rules can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Names of schedulers. `none` is one of them where a service without a scheduler is possible.
    pub schedulers: &'static [&'static str],
    /// Names of persistence engines.
    pub engines: &'static [&'static str],
    /// IPv6 services and servers.
    pub ipv6: bool,
    /// Forwarding through tunnels.
    pub tunnel: bool,
    /// Persistent services.
    pub persistence: bool,
    /// One-packet scheduling.
    pub one_packet: bool,
    /// Services of firewall marks.
    pub marks: bool,
    /// SCTP services.
    pub sctp: bool,
    /// Connection thresholds of servers.
    pub thresholds: bool,
    /// FullNAT: servers, local addresses, what servers are told of clients.
    pub fullnat: bool,
    /// FullNAT servers and local addresses of the other family than the service.
    pub fullnat_across: bool,
}

impl Capabilities {
    /// All that there is: what kernel IPVS can do, and FullNAT.
    pub const fn everything() -> Capabilities {
        Capabilities {
            schedulers: &[
                "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh",
                "twos", "none",
            ],
            engines: &["sip"],
            ipv6: true,
            tunnel: true,
            persistence: true,
            one_packet: true,
            marks: true,
            sctp: true,
            thresholds: true,
            fullnat: true,
            fullnat_across: true,
        }
    }
}
