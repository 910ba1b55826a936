//! What goes over a cable, as a packet socket of one end's sees it.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};
use shunt_bench::namespace::Namespace;

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

/// An interface of the calling thread's namespace, as packet sockets know it.
pub fn link_of(name: &str) -> Result<LinkAddr> {
    let all = getifaddrs()?.filter(|one| one.interface_name == name);
    let link = all.filter_map(|one| one.address.and_then(|address| address.as_link_addr().copied())).next();
    link.with_context(|| format!("there is no interface {name}"))
}
