//! That something has changed in the kernel's network.
//!
//! What has changed is not read: all tables are, afterwards. So nothing is lost when events come faster than anybody can hear them and the kernel drops
//! some: those that it keeps come after them and have the tables read. For the same reason the socket is for events alone. On one that also asks
//! questions they push answers out, or are taken for them.

use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
};

/// How long events are gathered before the tables are read. ARP takes 0.1 ms on a wire; a table of a thousand neighbours
/// takes about 1 ms to read.
const GATHER: Duration = Duration::from_millis(1);

const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
];

/// The events to come.
pub struct Events(TokioSocket);

impl Events {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn listen() -> std::io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        // Having to be told of a loss, the kernel would drop whatever else comes until the socket is empty, and what comes last may be among it.
        socket.socket_mut().set_no_enobufs(true)?;
        let groups = GROUPS.iter().fold(0, |groups, group| groups | 1 << (*group as u32 - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self(socket))
    }

    /// Waits for an event. Cancel safe.
    pub async fn next(&mut self) {
        // The rest of it is thrown away. An error means that one could not be read, so there was one.
        let mut beginning = [0; 16];
        let _ = self.0.recv(&mut &mut beginning[..]).await;
    }

    /// Waits until events have stopped coming for a moment, or the moment is over.
    pub async fn settle(&mut self) {
        let moment = tokio::time::sleep(GATHER);
        tokio::pin!(moment);
        loop {
            tokio::select! {
                () = &mut moment => return,
                () = self.next() => {}
            }
        }
    }
}
