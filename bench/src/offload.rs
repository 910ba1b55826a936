//! Segmentation and checksum offloads, switched off.
//!
//! A veth hands a frame over as its sender left it: with offloads on, that is a TCP segment of up to 64 KiB
//! whose checksum covers only the pseudo header, to be finished by hardware that is not there. A director
//! behind AF_XDP or AF_PACKET would see such frames as they are, so in the lab every *sending* end has its
//! offloads off and only true frames travel.
//!
//! The request is the netlink form of `ethtool -K` (Documentation/networking/ethtool-netlink.rst, kernel 5.7
//! and later), spoken over a plain socket: two requests, a few nested attributes, and no ioctl structure to
//! get wrong.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, socket,
};

/// Kernel names of what is switched off. Checksums first: a device without them cannot segment, so the kernel
/// switches the rest off by itself, but one request that says everything does not depend on that.
const OFFLOADS: [&str; 7] = [
    "tx-checksum-ip-generic",
    "tx-checksum-sctp",
    "tx-generic-segmentation",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "rx-gro",
];

// linux/netlink.h, linux/genetlink.h
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 0x8000;
/// nlmsghdr (16 bytes) and genlmsghdr (4 bytes): where attributes begin.
const HEADERS: usize = 20;

// linux/ethtool_netlink.h
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_HEADER_FLAGS: u16 = 3;
const ETHTOOL_FLAG_OMIT_REPLY: u32 = 2;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;

/// Switches all offloads of an interface in the calling thread's namespace off, as `ethtool -K IF tx off gso
/// off tso off gro off` does.
pub fn switch_off(interface: &str) -> Result<()> {
    let attempt = || -> Result<()> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )
        .context("opening a generic netlink socket")?;
        let family = ethtool_family(&socket)?;
        ask(&socket, family, ETHTOOL_MSG_FEATURES_SET, &features_off(interface))?;
        Ok(())
    };
    attempt().with_context(|| format!("switching the offloads of {interface} off"))
}

/// The attributes of the request: the device, and each feature named *without* the "on" flag. Features not
/// named stay as they are.
fn features_off(interface: &str) -> Vec<u8> {
    let device = [
        attribute(ETHTOOL_A_HEADER_DEV_NAME, &c_string(interface)),
        attribute(ETHTOOL_A_HEADER_FLAGS, &ETHTOOL_FLAG_OMIT_REPLY.to_ne_bytes()),
    ];
    let bits: Vec<u8> = OFFLOADS
        .iter()
        .flat_map(|name| {
            nest(ETHTOOL_A_BITSET_BITS_BIT, &attribute(ETHTOOL_A_BITSET_BIT_NAME, &c_string(name)))
        })
        .collect();
    let wanted = nest(ETHTOOL_A_FEATURES_WANTED, &nest(ETHTOOL_A_BITSET_BITS, &bits));
    [nest(ETHTOOL_A_FEATURES_HEADER, &device.concat()), wanted].concat()
}

/// Generic netlink numbers its families at boot; ask for ethtool's.
fn ethtool_family(socket: &OwnedFd) -> Result<u16> {
    let name = attribute(CTRL_ATTR_FAMILY_NAME, &c_string("ethtool"));
    let answer = ask(socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name)
        .context("asking for the ethtool family (CONFIG_ETHTOOL_NETLINK)")?;
    find_u16(&answer, CTRL_ATTR_FAMILY_ID).context("the kernel named no number for the ethtool family")
}

/// Sends one request and returns the attributes of its answer, or none if the kernel only acknowledged.
fn ask(socket: &OwnedFd, family: u16, command: u8, attributes: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(HEADERS + attributes.len()).context("the request is too long")?;
    let mut request = Vec::with_capacity(HEADERS + attributes.len());
    request.extend(length.to_ne_bytes());
    request.extend(family.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    request.extend([0; 8]); // sequence and port: one request at a time, the kernel fills in the port
    request.extend([command, 1, 0, 0]);
    request.extend(attributes);
    let kernel = NetlinkAddr::new(0, 0);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(&request)], &[], MsgFlags::empty(), Some(&kernel))
        .context("sending")?;

    // An answer, if there is one, comes before the acknowledgement; both can share a datagram.
    let mut answer = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let received = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("receiving")?;
        let mut rest = &buffer[..received];
        while let Some(length) = message_length(rest) {
            let (message, next) = rest.split_at(length);
            if u16::from_ne_bytes([message[4], message[5]]) == NLMSG_ERROR {
                return acknowledged(message).map(|()| answer);
            }
            answer = message[HEADERS..].to_vec();
            rest = next;
        }
    }
}

/// The length of the message that `bytes` begins with, if a whole one is there.
fn message_length(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    (HEADERS..=bytes.len()).contains(&length).then_some(length)
}

/// An error message with number 0 is how netlink says yes.
fn acknowledged(message: &[u8]) -> Result<()> {
    let number = i32::from_ne_bytes([message[16], message[17], message[18], message[19]]);
    match number {
        0 => Ok(()),
        number => bail!(Errno::from_raw(-number)),
    }
}

fn find_u16(mut attributes: &[u8], wanted: u16) -> Option<u16> {
    while let [l0, l1, k0, k1, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([k0, k1]) == wanted {
            return Some(u16::from_ne_bytes(value.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn nest(kind: u16, inner: &[u8]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, inner)
}

/// An attribute: length without padding, kind, value, padding to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // Requests here are a few hundred bytes; only an absurd interface name could exceed 16 bits, and then the
    // kernel refuses it.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn c_string(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let bytes =
            [attribute(2, b"abc\0"), attribute(7, b"x"), attribute(1, &513u16.to_ne_bytes())].concat();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(find_u16(&bytes, 1), Some(513));
        assert_eq!(find_u16(&bytes, 9), None);
        assert_eq!(find_u16(&bytes[..3], 1), None);
    }
}
