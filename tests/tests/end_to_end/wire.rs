//! What goes over a cable, as a packet socket of one end's sees it.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use shunt_bench::namespace::Namespace;
use shunt_bench::topology::{DIRECTOR_CLIENT_SIDE, FRONT, Topology};

/// Bytes of a socket's memory: some thousand frames, which nobody takes until the traffic is over.
const ROOM: usize = 8 << 20;

/// One end of a cable, watched since it was opened.
pub struct Watch(OwnedFd);

impl Watch {
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        namespace.run_in(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            setsockopt(&socket, sockopt::RcvBuf, &ROOM)?;
            bind(socket.as_raw_fd(), &link_of(interface)?)?;
            Ok(Self(socket))
        })?
    }

    /// All frames since the last call, whichever way they went.
    pub fn frames(&self) -> Result<Vec<Vec<u8>>> {
        let (mut frames, mut buffer) = (Vec::new(), [0; 2048]);
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => frames.push(buffer[..length].to_vec()),
                Err(Errno::EAGAIN) => return Ok(frames),
                Err(error) => return Err(error).context("watching a cable"),
            }
        }
    }
}

/// The client's end of the cable to the director, to send frames by.
pub struct Wire {
    pub socket: OwnedFd,
    pub client: [u8; 6],
    pub director: [u8; 6],
}

impl Wire {
    pub fn open(topology: &Topology) -> Result<Self> {
        let director = topology.director().run_in(|| link_of(DIRECTOR_CLIENT_SIDE))??.addr();
        topology.client().run_in(|| {
            let link = link_of(FRONT)?;
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
            bind(socket.as_raw_fd(), &link)?;
            let known = "an Ethernet has addresses";
            Ok(Self { socket, client: link.addr().context(known)?, director: director.context(known)? })
        })?
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty())
            .with_context(|| format!("sending a frame of {} bytes", frame.len()))?;
        ensure!(sent == frame.len());
        Ok(())
    }
}

/// An interface of the calling thread's namespace, as packet sockets know it.
pub fn link_of(name: &str) -> Result<LinkAddr> {
    let all = getifaddrs()?.filter(|one| one.interface_name == name);
    let link = all.filter_map(|one| one.address.and_then(|address| address.as_link_addr().copied())).next();
    link.with_context(|| format!("there is no interface {name}"))
}
