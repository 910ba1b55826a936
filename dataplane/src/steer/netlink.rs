//! A netlink socket to netfilter, and the messages it sends: batches of requests that happen all or not at all.
//!
//! A request is a header, a netfilter header and attributes; an attribute is a length, a type and a value that is
//! padded to four bytes, or more attributes. [`Batch`] writes them, [`Socket::commit`] sends them as one transaction.
//!
//! The kernel handles a batch within the `sendmsg` call, so all answers are there when it returns and nothing here
//! waits: no answer at all is an error, not a reason for patience. Only the last request asks for an answer; a refused
//! one gets one unasked. Numbers in attributes are in network order, except where nf_tables says otherwise.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::Error;

/// A socket to netfilter in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    address: u32,
}

impl Socket {
    /// Opens a socket.
    pub(super) fn open() -> Result<Socket, Error> {
        Self::try_open().map_err(|source| refused("opening a netlink socket to netfilter", source))
    }

    fn try_open() -> io::Result<Socket> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER) })?;
        // SAFETY: the kernel has just made this descriptor and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };

        // A large batch must fit the send buffer, and only root may exceed the system's limit, so both are tried;
        // with neither, a batch that is too large is refused as such.
        for option in [libc::SO_SNDBUFFORCE, libc::SO_SNDBUF] {
            if set_option(&fd, libc::SOL_SOCKET, option, SEND_BUFFER).is_ok() {
                break;
            }
        }
        // An answer need not carry the request it answers.
        set_option(&fd, libc::SOL_NETLINK, NETLINK_CAP_ACK, 1)?;

        // The kernel chooses our address; it is unique in the namespace while the socket lives.
        // SAFETY: all zeros is a valid `sockaddr_nl`.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        let mut length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        let pointer = (&raw mut address).cast::<libc::sockaddr>();
        // SAFETY: the pointer is to a `sockaddr_nl` of `length` bytes.
        check(unsafe { libc::bind(fd.as_raw_fd(), pointer, length) })?;
        // SAFETY: the kernel writes at most `length` bytes to the address, and to `length` itself.
        check(unsafe { libc::getsockname(fd.as_raw_fd(), pointer, &raw mut length) })?;
        Ok(Socket { fd, address: address.nl_pid })
    }

    /// The socket's own address ("port id"), by which the kernel knows the owner of a table.
    pub(super) fn address(&self) -> u32 {
        self.address
    }

    /// Sends a batch; it has happened, or nothing of it has.
    pub(super) fn commit(&mut self, batch: Batch) -> Result<(), Error> {
        if batch.whats.is_empty() {
            return Ok(()); // nobody would answer
        }
        let Batch { bytes, whats } = batch.close();
        self.send(&bytes).map_err(|source| refused("sending to netfilter", source))?;

        let last = whats.len(); // the batch's opening is number 0, so the requests are 1..=last
        let mut done = false;
        let mut refusal = None;
        let mut answers = vec![0; RECEIVE_BUFFER];
        while let Some(length) =
            self.receive(&mut answers).map_err(|source| refused("hearing from netfilter", source))?
        {
            for answer in Messages(&answers[..length]) {
                let Some(code) = answer.error() else { continue };
                let number = answer.sequence as usize;
                match code {
                    0 => done |= number == last,
                    // The first refusal is the cause; others may follow from it.
                    code => {
                        let what = number.checked_sub(1).and_then(|n| whats.get(n)).copied();
                        refusal.get_or_insert((what.unwrap_or("beginning a transaction"), code));
                    }
                }
            }
        }
        match refusal {
            Some((what, code)) => Err(refused(what, io::Error::from_raw_os_error(code))),
            None if done => Ok(()),
            None => {
                let silence = io::Error::new(io::ErrorKind::UnexpectedEof, "no answer");
                Err(refused("committing a transaction to netfilter", silence))
            }
        }
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let pointer = bytes.as_ptr().cast();
        // SAFETY: the kernel reads `bytes.len()` bytes from a slice of that length. An unconnected netlink socket sends
        // to the kernel.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), pointer, bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next datagram, if there is one.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let pointer = buffer.as_mut_ptr().cast();
        // SAFETY: the kernel writes at most `buffer.len()` bytes to a slice of that length.
        let length = unsafe { libc::recv(self.fd.as_raw_fd(), pointer, buffer.len(), libc::MSG_DONTWAIT) };
        match usize::try_from(length) {
            Ok(length) => Ok(Some(length)),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error),
            },
        }
    }
}

/// Requests to nf_tables that happen together.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// What each request does, for messages.
    whats: Vec<&'static str>,
}

impl Batch {
    pub(super) fn new() -> Batch {
        let mut batch = Batch { bytes: Vec::new(), whats: Vec::new() };
        batch.write(BATCH_BEGIN, 0, 0, libc::AF_UNSPEC as u8, NFTABLES, |_| ());
        batch
    }

    /// Adds a request: its `kind` (`NFT_MSG_*`), flags beyond the usual, and attributes. `what` it does is said if it
    /// fails.
    pub(super) fn request(
        &mut self,
        what: &'static str,
        kind: i32,
        flags: i32,
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        self.whats.push(what);
        let number = self.whats.len() as u32;
        let kind = NFTABLES << 8 | kind as u16;
        self.write(kind, flags as u16, number, NFPROTO_INET, 0, attributes);
    }

    /// A request outside of any batch, to list all there is of a `kind`.
    #[cfg(test)]
    pub(super) fn question(kind: i32, attributes: impl FnOnce(&mut Attributes<'_>)) -> Vec<u8> {
        let mut batch = Batch { bytes: Vec::new(), whats: Vec::new() };
        let flags = libc::NLM_F_DUMP as u16;
        batch.write(NFTABLES << 8 | kind as u16, flags, 0, NFPROTO_INET, 0, attributes);
        batch.bytes
    }

    /// Ends the batch, its last request asking for an answer.
    fn close(mut self) -> Batch {
        let number = self.whats.len() as u32;
        if let Some(last) = self.last_message() {
            let flags = &mut self.bytes[last + 6..last + 8];
            let asking = u16::from_ne_bytes([flags[0], flags[1]]) | libc::NLM_F_ACK as u16;
            flags.copy_from_slice(&asking.to_ne_bytes());
        }
        self.write(BATCH_END, 0, number + 1, libc::AF_UNSPEC as u8, NFTABLES, |_| ());
        self
    }

    fn last_message(&self) -> Option<usize> {
        let mut offset = 0;
        let mut last = None;
        for message in Messages(&self.bytes) {
            last = Some(offset);
            offset += HEADER + message.payload.len().next_multiple_of(4);
        }
        last
    }

    fn write(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family: u8,
        resource: u16,
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]); // the length, known at the end
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]); // to the kernel
        self.bytes.extend_from_slice(&[family, 0]); // struct nfgenmsg: family, version, resource
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        attributes(&mut Attributes(&mut self.bytes));
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// The attributes of a message, or of an attribute, while they are written.
#[derive(Debug)]
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// An attribute with these bytes.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.write(kind, |bytes| bytes.extend_from_slice(value));
    }

    /// An attribute with a number.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// An attribute with a string.
    pub(super) fn string(&mut self, kind: u16, value: &str) {
        self.write(kind, |bytes| {
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        });
    }

    /// An attribute with attributes.
    pub(super) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Attributes<'_>)) {
        self.write(kind | libc::NLA_F_NESTED as u16, |bytes| inside(&mut Attributes(bytes)));
    }

    fn write(&mut self, kind: u16, value: impl FnOnce(&mut Vec<u8>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]); // the length, known at the end
        self.0.extend_from_slice(&kind.to_ne_bytes());
        value(self.0);
        // Whoever writes lists cuts them into requests of a fixed size, far below 64 KiB.
        let length = u16::try_from(self.0.len() - start).expect("an attribute is shorter than 64 KiB");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        let padded = (self.0.len() - start).next_multiple_of(4);
        self.0.resize(start + padded, 0);
    }
}

/// The messages of a datagram.
#[derive(Debug)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

/// One message, its header taken apart.
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

impl Message<'_> {
    /// The errno of an answer, 0 for success; `None` if this is no answer.
    pub(super) fn error(&self) -> Option<i32> {
        let code: [u8; 4] = self.payload.get(..4)?.try_into().ok()?;
        (i32::from(self.kind) == libc::NLMSG_ERROR).then(|| -i32::from_ne_bytes(code))
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let bytes = self.0;
        let header = bytes.get(..HEADER)?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let payload = bytes.get(HEADER..length)?;
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload,
        })
    }
}

/// The error for a refused operation, with the cure where the errno tells one.
fn refused(what: &str, source: io::Error) -> Error {
    let hint = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Some("nftables needs CAP_NET_ADMIN over the network namespace"),
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => Some(
            "the kernel lacks nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET), or is older than 5.12",
        ),
        Some(libc::EMSGSIZE | libc::ENOBUFS) => Some("raise net.core.wmem_max and net.core.rmem_max"),
        _ => None,
    };
    Error::Kernel { what: what.into(), hint, source }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set_option(fd: &OwnedFd, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
    let pointer = (&raw const value).cast();
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes from an int.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, pointer, length) }).map(drop)
}

/// Bytes of a netlink header.
const HEADER: usize = 16;

/// Bytes of send buffer. A batch is one datagram, and the largest one sets all local addresses at 28 bytes each. The
/// kernel takes the memory only while a batch is on its way; one that does not fit is refused as a whole (EMSGSIZE).
const SEND_BUFFER: libc::c_int = 1 << 20;

/// Bytes of the largest datagram that is received: what the kernel itself uses at most for a dump.
const RECEIVE_BUFFER: usize = 32 << 10;

/// `NETLINK_CAP_ACK`, of uapi/linux/netlink.h.
const NETLINK_CAP_ACK: libc::c_int = 10;

/// `NFPROTO_INET`: IPv4 and IPv6.
const NFPROTO_INET: u8 = 1;

/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_know_their_length() {
        let mut bytes = Vec::new();
        Attributes(&mut bytes).nest(2, |inside| {
            inside.string(1, "abcd");
            inside.number(3, 7);
        });
        let mut expected = Vec::new();
        for half in [24_u16, 0x8002, 9, 1] {
            expected.extend_from_slice(&half.to_ne_bytes());
        }
        expected.extend_from_slice(b"abcd\0\0\0\0");
        for half in [8_u16, 3] {
            expected.extend_from_slice(&half.to_ne_bytes());
        }
        expected.extend_from_slice(&[0, 0, 0, 7]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_batch_is_framed_numbered_and_answered_at_its_last_request() {
        let mut batch = Batch::new();
        batch.request("first", 0, 0, |a| a.string(1, "odd"));
        batch.request("second", 6, libc::NLM_F_CREATE, |_| ());
        let batch = batch.close();
        let seen: Vec<(u16, u32)> = Messages(&batch.bytes).map(|m| (m.kind, m.sequence)).collect();
        assert_eq!(seen, [(16, 0), (0x0a00, 1), (0x0a06, 2), (17, 3)]);
        let ack = |m: &[u8]| u16::from_ne_bytes([m[6], m[7]]) & libc::NLM_F_ACK as u16 != 0;
        assert!(!ack(&batch.bytes[20..]), "the first request is not answered");
        assert!(ack(&batch.bytes[20 + 28..]), "the second is");
    }

    #[test]
    fn a_datagram_that_is_cut_off_ends_the_iteration() {
        let mut batch = Batch::new();
        batch.request("only", 0, 0, |a| a.number(1, 1));
        for length in 0..batch.bytes.len() {
            assert!(Messages(&batch.bytes[..length]).count() < 2);
        }
        assert_eq!(Messages(&batch.bytes).count(), 2);
    }
}
