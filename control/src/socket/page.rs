//! Cuts long lists into messages that fit.

use crate::api::{ConnectionEntry, LocalAddress, LocalEntry, Response, ServerEntry, ServiceEntry};

/// Services, servers, local addresses and connections in one message. The longest of them take some 1,000 bytes of JSON (all counters at
/// 20 digits; an engine's data at 255 characters that JSON must escape is 1,600), so that this many stay below
/// [`MAX_MESSAGE`](crate::api::MAX_MESSAGE).
pub const LINES: usize = 512;

/// Something listed that has rows of its own.
trait Listed: Clone {
    type Row;

    fn rows(&mut self) -> &mut Vec<Self::Row>;
}

impl Listed for ServiceEntry {
    type Row = ServerEntry;

    fn rows(&mut self) -> &mut Vec<ServerEntry> {
        &mut self.servers
    }
}

impl Listed for LocalEntry {
    type Row = LocalAddress;

    fn rows(&mut self) -> &mut Vec<LocalAddress> {
        &mut self.addresses
    }
}

/// Services as messages. A service with many servers goes on in the next message under the same key.
pub fn services(entries: impl IntoIterator<Item = ServiceEntry>) -> impl Iterator<Item = Response> {
    service_pages(entries).map(Response::Services)
}

/// What [`services`] puts into messages.
pub fn service_pages(
    entries: impl IntoIterator<Item = ServiceEntry>,
) -> impl Iterator<Item = Vec<ServiceEntry>> {
    pages(entries)
}

/// Services with their local addresses as messages, continued as [`services`] are.
pub fn locals(entries: impl IntoIterator<Item = LocalEntry>) -> impl Iterator<Item = Response> {
    pages(entries).map(Response::Locals)
}

fn pages<E: Listed>(entries: impl IntoIterator<Item = E>) -> impl Iterator<Item = Vec<E>> {
    let mut pieces = entries.into_iter().flat_map(pieces).peekable();
    std::iter::from_fn(move || {
        let mut first = pieces.next()?;
        let mut lines = 1 + first.rows().len();
        let mut page = vec![first];
        while let Some(next) = pieces.peek_mut() {
            lines += 1 + next.rows().len();
            if lines > LINES {
                break;
            }
            page.extend(pieces.next());
        }
        Some(page)
    })
}

/// An entry in parts that fit a message each.
fn pieces<E: Listed>(mut entry: E) -> impl Iterator<Item = E> {
    let mut rows = std::mem::take(entry.rows()).into_iter();
    let mut first = true;
    std::iter::from_fn(move || {
        let part: Vec<_> = rows.by_ref().take(LINES - 1).collect();
        if part.is_empty() && !first {
            return None;
        }
        first = false;
        let mut piece = entry.clone();
        *piece.rows() = part;
        Some(piece)
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
