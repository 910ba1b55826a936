//! The Unix socket between the daemon and its clients.
//!
//! A message is a 4-byte big-endian length and that many bytes of JSON, in both directions ([`api`](crate::api) has the
//! types). A connection carries any number of requests, one after the other; the answer to one is complete before the
//! next is read. Who may connect is the socket file's mode, 0660, and once more the daemon's own look at the peer.
//!
//! Nothing a client does may harm the daemon or other clients: a length above [`MAX_MESSAGE`] is refused before a byte
//! of it is read, a message must be complete within [`MESSAGE_TIME`], an idle connection is closed after
//! [`IDLE_TIME`], one whose client does not read its answer after [`REPLY_TIME`], and no more than [`CLIENTS`] are
//! served at once: for one more, the one that was waited for longest gives way. `docs/protocol.md` tells all this to those
//! who write clients.

mod client;
mod page;
mod server;

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};

pub use client::Client;
pub use page::{LINES, connections, locals, service_pages, services};
pub use server::{BindError, Gone, Handler, Reply, bind, serve};

use crate::api::{MAX_MESSAGE, Message, Request, VERSION};

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_PATH: &str = "/run/shunt.sock";
/// The variable that tells otherwise.
pub const PATH_VARIABLE: &str = "SHUNT_SOCKET";

/// How long a message may take from its first byte to its last. Local clients write in one go; longer only helps those
/// that stall.
pub const MESSAGE_TIME: Duration = Duration::from_secs(5);
/// How long a connection may lie idle between requests. A client that pauses longer connects again.
pub const IDLE_TIME: Duration = Duration::from_secs(30);
/// How long one message of an answer may wait for its reader: someone paging through a listing. Longer would let
/// sleepers take all places.
pub const REPLY_TIME: Duration = Duration::from_secs(60);
/// Connections served at once. Each holds at most one request and one message of an answer, 2 MiB.
pub const CLIENTS: usize = 64;

/// The socket's path: from the environment, or the default.
pub fn path() -> std::path::PathBuf {
    std::env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty()).unwrap_or(DEFAULT_PATH.into()).into()
}

/// What is wrong with a message that arrived.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Its length is above what is accepted. It was not read.
    #[error("a message of {0} bytes is longer than {MAX_MESSAGE}")]
    TooLong(usize),
    /// It is no JSON, or not of a known form.
    #[error("a message is not understood: {0}")]
    NotUnderstood(#[from] serde_json::Error),
    /// It is of another version of the protocol.
    #[error("the client speaks version {0} of the protocol, the daemon {VERSION}")]
    Version(u32),
}

/// A message with its length before it.
fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Malformed> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MAX_MESSAGE {
        return Err(Malformed::TooLong(length));
    }
    // MAX_MESSAGE is far below what 32 bits hold.
    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(bytes)
}

/// The length a header announces, if it is acceptable.
fn length(header: [u8; 4]) -> Result<usize, Malformed> {
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_MESSAGE { Err(Malformed::TooLong(length)) } else { Ok(length) }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    Ok(serde_json::from_slice(bytes)?)
}

/// A request, judged by its version before its words: another version's words may be unknown here.
fn decode_request(bytes: &[u8]) -> Result<Request, Malformed> {
    #[derive(serde::Deserialize)]
    struct Envelope {
        version: u32,
    }
    let Envelope { version } = decode(bytes)?;
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    Ok(decode::<Message>(bytes)?.request)
}

#[cfg(test)]
mod tests;
