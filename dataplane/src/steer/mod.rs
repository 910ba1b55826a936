//! Which frames the director takes from the kernel.
//!
//! The director owns the frames of its services and nothing else: requests to a service's address and port, or with its mark; for NAT,
//! what a real server sends from its service port, or from any where a service is of all ports, or in fragments, to an
//! address that is not the machine's own; for tunnels, ICMP errors about the outer packets. Everything else stays with the
//! kernel, so ARP, neighbour discovery, SSH, BGP and ping to a VIP work as before.
//!
//! There are two ways to take a frame, one for each kind of port:
//! [`xdp`]: an XDP program redirects it to the worker's AF_XDP socket, and the kernel never sees it;
//! [`filter`]: AF_PACKET gets a copy of every frame, and a netfilter rule drops the kernel's own copy.
//!
//! Both are tied to the process by the kernel (a BPF link, an nftables table with an owner): however the process ends,
//! nothing stays behind.
//!
//! [`joined`] keeps from an AF_PACKET socket what no frame can stand for.
//!
//! [`live`] is no steering: it makes frames for measurements, by the same system call.

use std::fmt;
use std::net::IpAddr;

use crate::service::{Pattern, PortId, Protocol};

mod assembler;
mod bpf;
mod claims;
pub mod filter;
#[cfg(test)]
mod fixtures;
pub mod joined;
pub mod live;
mod netlink;
mod nftables;
mod program;
#[cfg(test)]
mod testbed;
pub mod xdp;

pub use filter::Filter;
pub use joined::Joined;
pub use xdp::Xdp;

/// An interface to take frames from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, for messages.
    pub name: String,
    /// The kernel's index.
    pub index: u32,
    /// Its Ethernet address, until [`Steering::set_macs`] says another. Frames to other addresses are not ours, even if the wire brings them.
    pub mac: [u8; 6],
}

/// Frames that belong to the director.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Requests: frames to this address and port.
    Service {
        /// The transport protocol.
        protocol: Protocol,
        /// The virtual address.
        address: IpAddr,
        /// The virtual port; 0 is every port.
        port: u16,
    },
    /// Replies: frames from this address and port to any address that is not the machine's own.
    RealServer {
        /// The transport protocol.
        protocol: Protocol,
        /// The real server's address.
        address: IpAddr,
        /// The real server's port; 0 is every port.
        port: u16,
    },
    /// Errors about tunnels: ICMP errors to an address of the machine's own, about packets to this address. An error
    /// about a tunnel of the machine's own to the same address, wrapped in the same way, cannot be told from them.
    Tunnel {
        /// The outer packet's IP protocol number.
        protocol: u8,
        /// The real server's address.
        address: IpAddr,
        /// The outer packet's destination port, if its protocol is UDP; otherwise 0.
        port: u16,
    },
}

/// What becomes of frames that a rule for marks is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The frames.
    pub pattern: Pattern,
    /// Whether they belong to the director, their mark having a service; if not, no later rule marks them either.
    pub is_taken: bool,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel has made a socket buffer of the frame.
    Native,
    /// In the kernel's receive path, for drivers that cannot.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Native => "native",
            Mode::Generic => "generic",
        })
    }
}

/// Which mode an XDP program is attached in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// Native where the driver can, generic elsewhere; each interface for itself.
    #[default]
    Fastest,
    /// This one, or an error.
    Only(Mode),
}

/// A way of taking frames.
pub trait Steering: Send {
    /// Takes the frames of `target` from now on. Taking what is already taken changes nothing.
    ///
    /// # Errors
    /// When the kernel refuses; the frames stay where they were.
    fn take(&mut self, target: Target) -> Result<(), Error>;

    /// Leaves the frames of `target` to the kernel from now on. Releasing what is not taken changes nothing.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn release(&mut self, target: Target) -> Result<(), Error>;

    /// Says which addresses are the machine's own: what real servers send there is not the director's.
    ///
    /// # Errors
    /// When the kernel refuses; the previous set stays.
    fn set_local_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Error>;

    /// Says which frames are marked, besides those of the targets: the first rule that applies decides. An ICMP error goes by the packet it is about. To a
    /// later fragment, which has no ports, a rule about some ports applies if it takes frames, and otherwise does not.
    ///
    /// # Errors
    /// When the kernel refuses; the previous rules stay.
    fn set_marked(&mut self, marked: &[Marked]) -> Result<(), Error>;

    /// Says which of the kernel's interfaces (by index) are VLANs on which of ours: what comes in by them has come in by ours, with a tag.
    ///
    /// # Errors
    /// When the kernel refuses; the previous set stays.
    fn set_vlans(&mut self, vlans: &[(PortId, u32)]) -> Result<(), Error>;

    /// Says which Ethernet addresses the interfaces have now, in the order of the director's list. One that is all zeros is that of an interface that is gone,
    /// and changes nothing.
    ///
    /// # Errors
    /// When the kernel refuses; the previous addresses stay.
    fn set_macs(&mut self, macs: &[[u8; 6]]) -> Result<(), Error>;
}

/// Why frames could not be steered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused an operation.
    #[error("{what}: {source}{}", hint.map(|h| format!(" ({h})")).unwrap_or_default())]
    Kernel {
        /// What was attempted, on what.
        what: String,
        /// The likely cause or cure, where one is known.
        hint: Option<&'static str>,
        /// The kernel's errno.
        source: std::io::Error,
    },
    /// The verifier refused the program: a bug in shunt, or a kernel that is too old.
    #[error("the kernel's verifier refused the XDP program: {log}")]
    Verifier {
        /// The end of the verifier's log.
        log: String,
    },
    /// Another XDP program is attached to the interface.
    #[error(
        "another XDP program is attached to {interface}; stop the program that holds it, or detach it (ip link set {interface} xdp off)"
    )]
    Occupied {
        /// The interface's name.
        interface: String,
    },
    /// There is no room for more targets.
    #[error("{what}: there is room for {limit} targets and addresses, and they are used up")]
    Full {
        /// What was attempted.
        what: String,
        /// The bound, fixed when shunt was built.
        limit: u32,
    },
}
