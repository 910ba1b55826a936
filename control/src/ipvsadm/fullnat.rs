//! What FullNAT adds to the tool: its words on the command line, on saved lines and in listings, and `-G`.
//!
//! The letters and the table are those of the ipvsadm that comes with DPVS, but for `-b`, which is `--sched-flags` here as
//! it is upstream. Where nothing of this is used nothing of it is printed, so that whoever reads the tool's output reads what
//! he always read.

use std::io::{self, Write};

use super::{address::Printed, failure::Failure};
use crate::api::{ClientAddress, LocalEntry, ServerKey, ServiceConfig, ServiceKey};

/// What goes beyond the tool's own help, which scripts compare.
pub const HELP: &str = "\
Beyond ipvsadm's own -h:
  ipvsadm -a|e virtual-service -r server-address --fullnat [options]
  ipvsadm -A|E virtual-service [--toa enable|disable] [--proxy-protocol v1|v2|disable] [--mss bytes] [options]
  ipvsadm -P|Q virtual-service -z local-address
  ipvsadm -G [virtual-service] [-n] [--json]
  ipvsadm -L [--json] [--show-fullnat] [options]

  --fullnat                           translate both ends: servers see a local address (no letter: -b is --sched-flags)
  --add-laddr    -P                   add a local address to a service; its FullNAT servers answer to it
  --del-laddr    -Q                   delete it
  --get-laddr    -G                   list local addresses, how often one had no port left, and their connections
  --laddr        -z address           the local address
  --ifname       -F interface         accepted for DPVS's sake; an address is wherever the kernel has it
  --toa enable|disable                tell FullNAT servers of clients by a TCP option (default)
  --proxy-protocol v1|v2|disable      tell them by the PROXY protocol instead
  --mss bytes                         the largest segment that either end may announce in its SYN
  --scheduler    -s conhash           hashing by the client's address that moves few clients when servers come and go

In all listings:
  --show-fullnat                      -L calls FullNAT servers FullNat, not Masq, the name that every tool knows
  --json                              -L, -G: one JSON document with everything there is, see docs/json.md";

/// How servers are to learn of clients, from the values of `--toa` and `--proxy-protocol`, if they were given.
pub fn client_address(toa: Option<&str>, proxy: Option<&str>) -> Result<ClientAddress, Failure> {
    let toa = toa.map(|word| match word {
        "enable" => Ok(true),
        "disable" => Ok(false),
        _ => Err(Failure::usage("illegal toa specified")),
    });
    let proxy = proxy.map(|word| match word {
        "v1" => Ok(Some(ClientAddress::ProxyV1)),
        "v2" => Ok(Some(ClientAddress::ProxyV2)),
        "disable" => Ok(None),
        _ => Err(Failure::usage("illegal proxy-protocol specified")),
    });
    match (toa.transpose()?, proxy.transpose()?.flatten()) {
        (Some(true), Some(_)) => {
            Err(Failure::usage("The option 'toa' conflicts with the 'proxy-protocol' option"))
        }
        (_, Some(proxy)) => Ok(proxy),
        (Some(false), None) => Ok(ClientAddress::None),
        (_, None) => Ok(ClientAddress::Toa),
    }
}

/// A service's settings as they are typed, each with a blank before it; of defaults nothing.
pub fn typed(config: &ServiceConfig) -> String {
    let told = match config.client_address {
        ClientAddress::Toa => "",
        ClientAddress::ProxyV1 => " --proxy-protocol v1",
        ClientAddress::ProxyV2 => " --proxy-protocol v2",
        ClientAddress::None => " --toa disable",
    };
    config.mss.map_or_else(|| told.to_owned(), |bytes| format!("{told} --mss {bytes}"))
}

/// The same as a listing shows them.
pub fn listed(config: &ServiceConfig) -> String {
    typed(config).replace(" --", " ")
}

/// The title of `-G`.
pub fn title(out: &mut dyn Write) -> io::Result<()> {
    row(out, ["VIP:VPORT", "TOTAL", "SNAT_IP", "CONFLICTS", "CONNS"])
}

/// A service with its local addresses.
pub fn locals(out: &mut dyn Write, entry: &LocalEntry, names: &mut Printed<'_>) -> io::Result<()> {
    let service = match entry.service {
        ServiceKey::Address { protocol, address, port } => {
            names.endpoint(ServerKey { address, port }, Some(protocol))
        }
        ServiceKey::Mark { mark, .. } => format!("FWM {mark}"),
    };
    writeln!(out, "{service:<20} {:<8} ", entry.addresses.len())?;
    for local in &entry.addresses {
        let [exhausted, conns] = [local.exhausted, local.conns].map(|n| n.to_string());
        row(out, ["", "", &names.host(local.address), &exhausted, &conns])?;
    }
    Ok(())
}

fn row(out: &mut dyn Write, [service, total, address, conflicts, conns]: [&str; 5]) -> io::Result<()> {
    writeln!(out, "{service:<20} {total:<8} {address:<20} {conflicts:<10} {conns:<10}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{LocalAddress, Protocol};

    #[test]
    fn the_table_is_that_of_dpvs_to_the_byte() {
        let local = |last, conns| LocalAddress { address: [192, 168, 100, last].into(), exhausted: 0, conns };
        let service =
            ServiceKey::Address { protocol: Protocol::Tcp, address: [10, 0, 0, 100].into(), port: 80 };
        let entry = LocalEntry { service, addresses: vec![local(200, 15), local(201, 17)] };
        let mut out = Vec::new();
        title(&mut out).expect("memory takes it");
        locals(&mut out, &entry, &mut Printed::numeric()).expect("memory takes it");
        let expected = "\
VIP:VPORT            TOTAL    SNAT_IP              CONFLICTS  CONNS·····
10.0.0.100:80        2········
                              192.168.100.200      0          15········
                              192.168.100.201      0          17········
";
        assert_eq!(String::from_utf8(out).expect("text"), expected.replace('·', " "));
    }

    #[test]
    fn toa_and_the_proxy_protocol_exclude_each_other() {
        let told = |toa, proxy| client_address(toa, proxy).map_err(|failure| failure.code);
        assert_eq!(told(None, None), Ok(ClientAddress::Toa));
        assert_eq!(told(Some("enable"), Some("disable")), Ok(ClientAddress::Toa));
        assert_eq!(told(Some("disable"), None), Ok(ClientAddress::None));
        assert_eq!(told(None, Some("v1")), Ok(ClientAddress::ProxyV1));
        assert_eq!(told(Some("disable"), Some("v2")), Ok(ClientAddress::ProxyV2));
        for wrong in [(Some("enable"), Some("v2")), (Some("on"), None), (None, Some("v3"))] {
            assert_eq!(told(wrong.0, wrong.1), Err(2), "{wrong:?}");
        }
    }
}
