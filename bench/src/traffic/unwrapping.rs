//! What unwraps IP in IP at a real server: the kernel's own device where it has one, as on any real server, else the lab's
//! [`Decapsulator`].

use std::net::IpAddr;

use anyhow::{Context, Result, bail};

use super::decapsulator::{Decapsulator, Tunnel};
use crate::namespace::Namespace;
use crate::netlink::Netlink;

/// The far end of tunnels at one server.
pub enum Unwrapping {
    /// Devices of the kernel, which go with the namespace.
    Kernel,
    /// The lab's own program, because the kernel said this.
    Own(Decapsulator, String),
}

impl Unwrapping {
    /// Unwraps what is sent to these addresses.
    pub fn start(namespace: &Namespace, addresses: &[IpAddr]) -> Result<Self> {
        match namespace.run_in(|| devices(addresses))? {
            Ok(()) => Ok(Self::Kernel),
            Err(why) => {
                let own = Decapsulator::start(namespace, addresses, &[Tunnel::Ipip])?;
                Ok(Self::Own(own, format!("{why:#}")))
            }
        }
    }

    /// Which it is, and why.
    pub fn describe(&self) -> String {
        match self {
            Self::Kernel => "Servers unwrapped tunnels with the kernel's devices.".to_owned(),
            Self::Own(_, why) => format!("Servers unwrapped tunnels with the lab's own program: {why}."),
        }
    }

    /// Ends it. An error if packets came that were not in order, as far as it looks: a director that wraps badly is no director.
    pub fn stop(self) -> Result<()> {
        let Self::Own(own, _) = self else { return Ok(()) };
        let refused = own.counters().refused();
        if !refused.is_empty() {
            bail!("a server got tunnel packets that are not in order: {refused:?}");
        }
        own.stop()
    }
}

/// Makes the kernel's devices: all, or none.
///
/// They have no address, and the way back to a client is not theirs: by any `rp_filter` but 0, which is the topology's, the kernel drops what comes
/// out of them (`IPReversePathFilter` in /proc/net/netstat counts it). The loose 2 lets pass only what comes from a device with an address.
fn devices(addresses: &[IpAddr]) -> Result<()> {
    let netlink = Netlink::open()?;
    let mut made: Vec<&str> = Vec::new();
    for &address in addresses {
        let name = if address.is_ipv4() { "unwrap4" } else { "unwrap6" };
        if let Err(why) = netlink.tunnel_end(name, address) {
            made.iter().try_for_each(|name| netlink.remove(name)).context("taking back what was made")?;
            return Err(why);
        }
        made.push(name);
    }
    Ok(())
}
