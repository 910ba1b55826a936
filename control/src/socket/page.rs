//! Cuts long lists into messages that fit.

use crate::api::{ConnectionEntry, Response, ServiceEntry};

/// Services, servers and connections in one message. The longest of them take some 1,000 bytes of JSON (all counters at
/// 20 digits; an engine's data at 255 characters that JSON must escape is 1,600), so that this many stay below
/// [`MAX_MESSAGE`](crate::api::MAX_MESSAGE).
const LINES: usize = 512;

/// Services as messages. A service with many servers goes on in the next message under the same key.
pub fn services(entries: Vec<ServiceEntry>) -> impl Iterator<Item = Response> {
    let mut pieces = entries.into_iter().flat_map(pieces).peekable();
    std::iter::from_fn(move || {
        let first = pieces.next()?;
        let mut lines = 1 + first.servers.len();
        let mut page = vec![first];
        while let Some(next) = pieces.next_if(|next| lines + 1 + next.servers.len() <= LINES) {
            lines += 1 + next.servers.len();
            page.push(next);
        }
        Some(Response::Services(page))
    })
}

/// A service in parts that fit a message each.
fn pieces(mut entry: ServiceEntry) -> impl Iterator<Item = ServiceEntry> {
    let mut servers = std::mem::take(&mut entry.servers).into_iter();
    let mut first = true;
    std::iter::from_fn(move || {
        let part: Vec<_> = servers.by_ref().take(LINES - 1).collect();
        if part.is_empty() && !first {
            return None;
        }
        first = false;
        Some(ServiceEntry { servers: part, ..entry.clone() })
    })
}

/// Connections as messages.
pub fn connections(entries: impl Iterator<Item = ConnectionEntry>) -> impl Iterator<Item = Response> {
    let mut entries = entries.peekable();
    std::iter::from_fn(move || {
        entries.peek()?;
        Some(Response::Connections(entries.by_ref().take(LINES).collect()))
    })
}
