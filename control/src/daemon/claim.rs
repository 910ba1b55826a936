//! One director an interface.
//!
//! Two directors on one interface would both take its frames and both send them on. AF_XDP has only one place for a program; AF_PACKET gives every
//! socket a copy and would not notice. So each director holds an abstract socket by the interface's number: abstract names belong
//! to the network namespace, as interfaces do, and the kernel frees them with the process.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::{Context as _, bail};
use shunt_dataplane::service::Interface;

/// Interfaces that are this director's.
pub struct Claim(#[expect(dead_code, reason = "held, not used")] Vec<UnixListener>);

impl Claim {
    /// Claims interfaces.
    ///
    /// # Errors
    /// When another director has one of them.
    pub fn stake(interfaces: &[Interface]) -> anyhow::Result<Self> {
        let stake = |interface: &Interface| {
            let address = SocketAddr::from_abstract_name(format!("shunt/interface/{}", interface.index))?;
            match UnixListener::bind_addr(&address) {
                Ok(listener) => Ok(listener),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                    bail!("another shunt drives {}; stop it first, or name other interfaces", interface.name)
                }
                Err(error) => Err(error).with_context(|| format!("cannot claim {}", interface.name)),
            }
        };
        interfaces.iter().map(stake).collect::<anyhow::Result<_>>().map(Self)
    }
}
