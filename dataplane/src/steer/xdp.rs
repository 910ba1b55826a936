//! Taking frames with XDP: the maps, a program for each interface, and the links that hold them there.
//!
//! ```text
//!   load ──▶ maps and programs exist ──▶ take, release, set_local_addresses, register: at any time from here on
//!                    └──────────────────▶ attach: programs at work ──▶ drop: gone, also when the process is killed
//! ```
//!
//! A frame is redirected only where a socket is [registered](Xdp::register) for its queue. Everywhere else, and in the
//! moment between, the kernel gets it. So nothing need be done in any order; sockets first loses the fewest frames.
//!
//! What XDP does not see: a VLAN tag that the NIC has already stripped into its descriptor (`ethtool -K … rxvlan off`
//! keeps it in the frame), and a frame that another XDP program or a bond above has taken.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::bpf::{Kind, Link, Map, Program, refused};
use super::claims::{Claims, Place, Role};
use super::program::{self, KEY, Taken, roles};
use super::{Error, Interface, Marked, Mode, Preference, Steering, Target};
use crate::service::{PortId, Protocol};

/// Queues of an interface that can have a socket: the most that any port opens. A frame of a queue beyond is left to
/// the kernel.
pub const QUEUES: u32 = 64;

/// Entries of the map of targets: one for each target, one for each protocol at an address that has any, one for each
/// local address. So at least 32 000 targets fit. Entries are allocated as they come (80 bytes each); the bound itself
/// costs hash buckets, 16 bytes each, 1 MiB in all. When it is reached, taking more is [`Error::Full`].
pub const ENTRIES: u32 = 65_536;

/// Frames taken by XDP, from all the director's interfaces.
#[derive(Debug)]
pub struct Xdp {
    entries: Map<KEY, 4>,
    claims: Claims,
    local: HashSet<IpAddr>,
    marked: Vec<Marked>,
    /// In the order of the director's list: the index is the [`PortId`].
    interfaces: Vec<Steered>,
}

/// An interface and what the kernel has for it.
#[derive(Debug)]
struct Steered {
    interface: Interface,
    sockets: Map<4, 4>,
    program: Program,
    attached: Option<Attached>,
}

/// A program at work.
#[derive(Debug)]
struct Attached {
    mode: Mode,
    link: Link,
    /// Why it is not in a faster mode, if one was tried.
    refusal: Option<Error>,
}

impl Xdp {
    /// Creates the maps and loads a program for each interface. No frame is touched before [`Xdp::attach`].
    ///
    /// # Errors
    /// When the process may not use BPF, or the verifier refuses the program.
    pub fn load(interfaces: &[Interface]) -> Result<Xdp, Error> {
        let entries = Map::create(Kind::Hash, ENTRIES)?;
        let interfaces = interfaces
            .iter()
            .map(|interface| {
                let sockets = Map::create(Kind::Sockets, QUEUES)?;
                let taken = Taken::Redirect(sockets.as_fd());
                let program = Program::load(&program::assemble(interface.mac, entries.as_fd(), &[], taken))?;
                Ok(Steered { interface: interface.clone(), sockets, program, attached: None })
            })
            .collect::<Result<_, Error>>()?;
        let (claims, local, marked) = Default::default();
        Ok(Xdp { entries, claims, local, marked, interfaces })
    }

    /// Puts the programs to work on all interfaces, or on none.
    ///
    /// # Errors
    /// [`Error::Occupied`] if an interface has another XDP program; otherwise when the kernel refuses.
    pub fn attach(&mut self, preference: Preference) -> Result<(), Error> {
        let attached = self
            .interfaces
            .iter()
            .map(|steered| steered.attach(preference))
            .collect::<Result<Vec<_>, Error>>()?;
        for (steered, attached) in self.interfaces.iter_mut().zip(attached) {
            if attached.is_some() {
                steered.attached = attached;
            }
        }
        Ok(())
    }

    /// Gives the frames taken from a queue to an AF_XDP socket. It may be bound before or after.
    ///
    /// The kernel forgets the socket when it is closed.
    ///
    /// # Errors
    /// When there is no such interface or queue, or `socket` is no AF_XDP socket.
    pub fn register(&mut self, port: PortId, queue: u32, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let Some(steered) = self.interfaces.get(usize::from(port.0)) else {
            let missing = io::Error::from_raw_os_error(libc::ENODEV);
            return Err(refused(format!("registering a socket for port {}", port.0), missing));
        };
        steered
            .sockets
            .update(&queue.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes())
            .map_err(|source| socket_refused(&steered.interface, queue, source))
    }

    /// How an interface's program is attached; `None` while it is not.
    #[must_use]
    pub fn mode(&self, port: PortId) -> Option<Mode> {
        let steered = self.interfaces.get(usize::from(port.0))?;
        steered.attached.as_ref().map(|attached| attached.mode)
    }

    /// Why an interface's program is not attached in a faster mode, if it was to be.
    #[must_use]
    pub fn refusal(&self, port: PortId) -> Option<&Error> {
        self.interfaces.get(usize::from(port.0))?.attached.as_ref()?.refusal.as_ref()
    }

    /// Loads programs that know these addresses and rules, and puts them in the place of those at work: all of them, or none.
    fn replace_programs(&mut self, macs: &[[u8; 6]], marked: &[Marked]) -> Result<(), Error> {
        let load = |(number, (steered, mac)): (u8, (&Steered, &[u8; 6]))| {
            let concern = |rule: &&Marked| rule.pattern.port.is_none_or(|port| port == PortId(number));
            let marked: Vec<Marked> = marked.iter().filter(concern).cloned().collect();
            let taken = Taken::Redirect(steered.sockets.as_fd());
            let code = program::assemble(*mac, self.entries.as_fd(), &marked, taken);
            Program::load(&code)
        };
        let steered = self.interfaces.iter().zip(macs);
        let programs = (0..).zip(steered).map(load).collect::<Result<Vec<_>, Error>>()?;
        for (number, (steered, program)) in self.interfaces.iter().zip(&programs).enumerate() {
            if let Err(source) = steered.put_to_work(program) {
                for steered in &self.interfaces[..number] {
                    // It was at work a moment ago.
                    let _ = steered.put_to_work(&steered.program);
                }
                let what = format!("replacing the XDP program of {}", steered.interface.name);
                return Err(refused(what, source));
            }
        }
        for (steered, program) in self.interfaces.iter_mut().zip(programs) {
            steered.program = program;
        }
        Ok(())
    }

    /// Writes the entries that a change of `target` in the claims has changed.
    fn write(&self, target: Target) -> io::Result<()> {
        let place = Place::of(target);
        if target.port() != 0 {
            self.write_entry(place, target.port(), self.roles_at_port(place, target.port()))?;
        }
        self.write_entry(place, 0, self.roles_at_place(place))
    }

    fn write_entry(&self, place: Place, port: u16, roles: u32) -> io::Result<()> {
        let key = program::key(place.address, port, place.protocol);
        match roles {
            0 => self.entries.delete(&key),
            _ => self.entries.update(&key, &roles.to_ne_bytes()),
        }
    }

    /// What a key with a port is.
    fn roles_at_port(&self, place: Place, port: u16) -> u32 {
        let bit = |role, bit| if self.claims.has(Place { role, ..place }, port) { bit } else { 0 };
        bit(Role::Service, roles::SERVICE)
            | bit(Role::RealServer, roles::REAL_SERVER)
            | bit(Role::Tunnel, roles::TUNNEL)
    }

    /// What the key with port 0 is.
    fn roles_at_place(&self, place: Place) -> u32 {
        let bits = |role, any, here| {
            let place = Place { role, ..place };
            let any = if self.claims.has(place, 0) { any } else { 0 };
            let here = if self.claims.count(place) > 0 { here } else { 0 };
            any | here
        };
        bits(Role::Service, roles::SERVICE_ANY, roles::SERVICE_HERE)
            | bits(Role::RealServer, roles::REAL_SERVER_ANY, roles::REAL_SERVER_HERE)
            | bits(Role::Tunnel, roles::TUNNEL, 0)
    }

    fn write_local(&self, address: IpAddr, is_local: bool) -> io::Result<()> {
        let key = program::key(address, 0, NO_PROTOCOL);
        if is_local {
            self.entries.update(&key, &roles::LOCAL.to_ne_bytes())
        } else {
            self.entries.delete(&key)
        }
    }
}

impl Steering for Xdp {
    fn take(&mut self, target: Target) -> Result<(), Error> {
        if !self.claims.insert(target) {
            return Ok(());
        }
        self.write(target).map_err(|source| {
            self.claims.remove(target);
            // Of two entries the first may have been written. Deleting needs no memory, so this succeeds.
            let _ = self.write(target);
            entry_refused(format!("taking {target:?}"), source)
        })
    }

    fn release(&mut self, target: Target) -> Result<(), Error> {
        if !self.claims.remove(target) {
            return Ok(());
        }
        self.write(target).map_err(|source| {
            self.claims.insert(target);
            entry_refused(format!("releasing {target:?}"), source)
        })
    }

    fn set_local_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let wanted: HashSet<IpAddr> = addresses.iter().copied().collect();
        // New ones first: an address that is renumbered is never missing.
        let mut added = Vec::new();
        for &address in wanted.difference(&self.local) {
            if let Err(source) = self.write_local(address, true) {
                for address in added {
                    let _ = self.write_local(address, false); // deleting needs no memory
                }
                return Err(entry_refused(format!("adding the local address {address}"), source));
            }
            added.push(address);
        }
        for &address in self.local.difference(&wanted) {
            self.write_local(address, false)
                .map_err(|source| entry_refused(format!("removing the local address {address}"), source))?;
        }
        self.local = wanted;
        Ok(())
    }

    fn set_marked(&mut self, marked: &[Marked]) -> Result<(), Error> {
        if marked == self.marked {
            return Ok(());
        }
        let macs: Vec<_> = self.interfaces.iter().map(|steered| steered.interface.mac).collect();
        self.replace_programs(&macs, marked)?;
        self.marked = marked.to_vec();
        Ok(())
    }

    /// Nothing to do: the programs see frames before the kernel takes the tags off and knows them for a VLAN's.
    fn set_vlans(&mut self, _: &[(PortId, u32)]) -> Result<(), Error> {
        Ok(())
    }

    /// A program has its interface's address in its text, so that no frame costs a look into a map for it.
    fn set_macs(&mut self, macs: &[[u8; 6]]) -> Result<(), Error> {
        let known =
            |steered: &Steered, mac: &[u8; 6]| if *mac == GONE { steered.interface.mac } else { *mac };
        let macs: Vec<_> =
            self.interfaces.iter().zip(macs).map(|(steered, mac)| known(steered, mac)).collect();
        if self.interfaces.iter().zip(&macs).all(|(steered, mac)| steered.interface.mac == *mac) {
            return Ok(());
        }
        self.replace_programs(&macs, &self.marked.clone())?;
        for (steered, mac) in self.interfaces.iter_mut().zip(macs) {
            steered.interface.mac = mac;
        }
        Ok(())
    }
}

impl Steered {
    /// Attaches the program; `None` if it is attached already.
    fn attach(&self, preference: Preference) -> Result<Option<Attached>, Error> {
        if self.attached.is_some() {
            return Ok(None);
        }
        let modes: &[Mode] = match preference {
            Preference::Fastest => &[Mode::Native, Mode::Generic],
            Preference::Only(Mode::Native) => &[Mode::Native],
            Preference::Only(Mode::Generic) => &[Mode::Generic],
        };
        let mut refusal = None;
        for &mode in modes {
            match self.program.attach(&self.interface, mode) {
                Ok(link) => return Ok(Some(Attached { mode, link, refusal })),
                Err(source) => match source.raw_os_error() {
                    Some(libc::EBUSY | libc::EEXIST) => {
                        return Err(Error::Occupied { interface: self.interface.name.clone() });
                    }
                    _ => refusal = Some(attach_refused(&self.interface, mode, source)),
                },
            }
        }
        Err(refusal.expect("at least one mode was tried and refused"))
    }

    /// Puts a program in the place of the one that is attached, if one is.
    fn put_to_work(&self, program: &Program) -> io::Result<()> {
        let updated = self.attached.as_ref().map_or(Ok(()), |attached| attached.link.update(program));
        match updated {
            // The interface is gone, and what was attached to it: the others are served all the same.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
            updated => updated,
        }
    }
}

fn entry_refused(what: String, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::E2BIG) => Error::Full { what, limit: ENTRIES },
        _ => refused(what, source),
    }
}

fn attach_refused(interface: &Interface, mode: Mode, source: io::Error) -> Error {
    let what = format!("attaching the XDP program to {} ({mode})", interface.name);
    let hint = match source.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "its driver has no native XDP",
        Some(libc::ERANGE | libc::EINVAL) => {
            "its MTU, its ring, or the MTU of a veth's peer may be too large for XDP, or the kernel is older than 5.9, which has no XDP links"
        }
        Some(libc::ENOSPC) => "a veth needs as many receive queues as its peer has transmit queues",
        Some(libc::ENODEV) => "there is no such interface in this network namespace",
        _ => return refused(what, source),
    };
    Error::Kernel { what, hint: Some(hint), source }
}

fn socket_refused(interface: &Interface, queue: u32, source: io::Error) -> Error {
    let what = format!("registering a socket for queue {queue} of {}", interface.name);
    let hint = match source.raw_os_error() {
        Some(libc::E2BIG) => "queues from 64 on have no place: reduce them with ethtool -L",
        Some(libc::EOPNOTSUPP) => "it is not an AF_XDP socket",
        _ => return refused(what, source),
    };
    Error::Kernel { what, hint: Some(hint), source }
}

/// The Ethernet address of an interface that is gone.
const GONE: [u8; 6] = [0; 6];

/// The protocol in the key of a local address: 0 is IPv6 hop-by-hop options, which no service has.
const NO_PROTOCOL: u8 = 0;

// The program compares protocols as one byte.
const _: () = assert!(Protocol::Sctp as usize == 132);

#[cfg(test)]
mod tests;
