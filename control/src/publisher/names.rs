//! Real servers' addresses, for listings of connections.

use std::collections::HashMap;
use std::net::IpAddr;

use shunt_dataplane::director::Listed;
use shunt_dataplane::service::DestId;

use super::Publisher;

impl Publisher {
    /// Fills in the addresses that workers do not know: those of real servers of the other family that were removed and have connections.
    pub fn name_servers(&self, listed: &mut [Listed]) {
        let is_unnamed =
            |listed: &&mut Listed| listed.server.0.is_unspecified() && listed.dest != DestId::NOBODY;
        let mut unnamed = listed.iter_mut().filter(is_unnamed).peekable();
        if unnamed.peek().is_none() {
            return;
        }
        let all = self.servers.values().flatten();
        let known: HashMap<DestId, IpAddr> = all.map(|(key, server)| (server.id, key.address)).collect();
        for listed in unnamed {
            if let Some(address) = known.get(&listed.dest) {
                listed.server.0 = *address;
            }
        }
    }
}
