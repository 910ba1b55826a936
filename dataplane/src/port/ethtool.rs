//! What the kernel knows of a NIC: its driver, its offloads, its channels, its receive hash.
//!
//! The old ioctl interface (SIOCETHTOOL) rather than ethtool netlink: it has been in every kernel for twenty years
//! and needs no message building. The daemon follows how frames are dealt out to queues, and warns about offloads that hand over frames larger than a chunk (GRO,
//! LRO); the lab switches off what makes local senders leave work undone (transmit checksums, TSO, GSO).

#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::ifreq;

/// Commands and flags of linux/ethtool.h, which libc does not have.
const GDRVINFO: u32 = 0x3;
const GRXCSUM: u32 = 0x14;
const SRXCSUM: u32 = 0x15;
const GTXCSUM: u32 = 0x16;
const STXCSUM: u32 = 0x17;
const GTSO: u32 = 0x1e;
const STSO: u32 = 0x1f;
const GGSO: u32 = 0x23;
const SGSO: u32 = 0x24;
const GFLAGS: u32 = 0x25;
const SFLAGS: u32 = 0x26;
const GGRO: u32 = 0x2b;
const SGRO: u32 = 0x2c;
const GRXFH: u32 = 0x29;
const GCHANNELS: u32 = 0x3c;
const GRSSH: u32 = 0x46;
const FLAG_TXVLAN: u32 = 1 << 7;
const FLAG_LRO: u32 = 1 << 15;

/// One NIC, asked by name.
#[derive(Debug)]
pub struct Ethtool {
    fd: OwnedFd,
    name: ifreq::Name,
}

/// Work that a NIC, or the kernel in its stead, does on frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offload {
    /// Received segments are joined, by the kernel.
    Gro,
    /// Segments are cut as late as possible, by the kernel.
    Gso,
    /// Received segments are joined, by the NIC.
    Lro,
    /// Received checksums are verified.
    RxChecksum,
    /// Segments are cut by the NIC.
    Tso,
    /// Checksums of frames to be sent are finished. Switching it off switches TSO off as well.
    TxChecksum,
    /// VLAN tags of frames to be sent are put on by the NIC.
    TxVlan,
}

/// How many queues a NIC has in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Queues that only receive.
    pub rx: u32,
    /// Queues that only send.
    pub tx: u32,
    /// Pairs that do both.
    pub combined: u32,
}

impl Offload {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Gro, Self::Gso, Self::Lro, Self::RxChecksum, Self::Tso, Self::TxChecksum, Self::TxVlan];

    /// The commands that read and set it, and its bit in what they read and set: some are flags among others.
    fn commands(self) -> (u32, u32, u32) {
        match self {
            Self::Gro => (GGRO, SGRO, 1),
            Self::Gso => (GGSO, SGSO, 1),
            Self::Lro => (GFLAGS, SFLAGS, FLAG_LRO),
            Self::RxChecksum => (GRXCSUM, SRXCSUM, 1),
            Self::Tso => (GTSO, STSO, 1),
            Self::TxChecksum => (GTXCSUM, STXCSUM, 1),
            Self::TxVlan => (GFLAGS, SFLAGS, FLAG_TXVLAN),
        }
    }
}

impl fmt::Display for Offload {
    /// The name that `ethtool -K` uses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gro => "gro",
            Self::Gso => "gso",
            Self::Lro => "lro",
            Self::RxChecksum => "rx",
            Self::Tso => "tso",
            Self::TxChecksum => "tx",
            Self::TxVlan => "txvlan",
        })
    }
}

impl Channels {
    /// Queues that receive: AF_XDP sockets can be bound to 0 up to this.
    pub fn receiving(&self) -> u32 {
        self.rx + self.combined
    }
}

impl Ethtool {
    /// Asks about an interface of this thread's network namespace. That it exists is seen by the first question.
    ///
    /// # Errors
    /// When the name is too long for an interface, or no socket is to be had.
    pub fn open(interface: &str) -> io::Result<Self> {
        if interface.is_empty() || interface.len() >= libc::IFNAMSIZ || interface.contains('\0') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of an interface"));
        }
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor, and nobody else has it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, name: ifreq::name(interface) })
    }

    /// The driver's name: "ixgbe", "veth", "virtio_net".
    ///
    /// # Errors
    /// ENODEV when there is no such interface, EOPNOTSUPP when its driver does not say.
    pub fn driver(&self) -> io::Result<String> {
        let mut info = DriverInfo { command: GDRVINFO, driver: [0; 32], rest: [0; 160] };
        self.ask(&mut info)?;
        let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// Whether an offload is on.
    ///
    /// # Errors
    /// ENODEV when there is no such interface, EOPNOTSUPP when its driver does not say.
    pub fn offload(&self, offload: Offload) -> io::Result<bool> {
        let (read, _, bit) = offload.commands();
        Ok(self.value(read)? & bit != 0)
    }

    /// Switches an offload on or off.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN, EOPNOTSUPP when the driver does not let itself be told.
    pub fn set_offload(&self, offload: Offload, on: bool) -> io::Result<()> {
        let (read, command, bit) = offload.commands();
        let others = self.value(read)? & !bit;
        self.ask(&mut Value { command, data: others | if on { bit } else { 0 } })
    }

    /// The channels in use now, which may be fewer than the NIC has.
    ///
    /// # Errors
    /// ENODEV when there is no such interface, EOPNOTSUPP when its driver does not say: then there is one queue.
    pub fn channels(&self) -> io::Result<Channels> {
        let mut counts = ChannelCounts { command: GCHANNELS, ..Default::default() };
        self.ask(&mut counts)?;
        Ok(Channels { rx: counts.rx, tx: counts.tx, combined: counts.combined })
    }

    /// The key and the indirection table (of queues) of the receive hash, if that is Toeplitz's and nothing is done to its input.
    ///
    /// # Errors
    /// EOPNOTSUPP when the driver has no such hash, does not say, or has another; ENODEV when there is no such interface.
    pub fn receive_hash(&self) -> io::Result<(Vec<u8>, Vec<u32>)> {
        let unsupported = || io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        let mut hash = Box::new(ReceiveHash::default());
        // The first question is about the sizes.
        self.ask(&mut *hash)?;
        let (places, key) = (hash.places as usize, hash.key as usize);
        if places + key.div_ceil(4) > hash.config.len() || places == 0 {
            return Err(unsupported());
        }
        (hash.command, hash.function) = (GRSSH, 0);
        self.ask(&mut *hash)?;
        if hash.function != TOEPLITZ || hash.change != 0 {
            return Err(unsupported());
        }
        let bytes = hash.config[places..].iter().flat_map(|word| word.to_ne_bytes());
        Ok((bytes.take(key).collect(), hash.config[..places].to_vec()))
    }

    /// Whether the receive hash of TCP (or UDP), over IPv4 and over IPv6, is of addresses and ports, and of nothing else.
    ///
    /// # Errors
    /// EOPNOTSUPP when the driver does not say; ENODEV when there is no such interface.
    pub fn hashes_ports(&self, of_udp: bool) -> io::Result<bool> {
        // TCP_V4_FLOW, UDP_V4_FLOW, TCP_V6_FLOW, UDP_V6_FLOW.
        let flows = if of_udp { [2, 6] } else { [1, 5] };
        for flow in flows {
            let mut fields = HashedFields { command: GRXFH, flow, fields: 0, rest: [0; 22] };
            self.ask(&mut fields)?;
            if fields.fields != ADDRESSES_AND_PORTS {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn value(&self, command: u32) -> io::Result<u32> {
        let mut value = Value { command, data: 0 };
        self.ask(&mut value)?;
        Ok(value.data)
    }

    /// Puts a question to the kernel, which answers in place.
    fn ask(&self, question: &mut impl Question) -> io::Result<()> {
        let mut request = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: std::ptr::from_mut(question).cast() },
        };
        // SAFETY: SIOCETHTOOL takes an ifreq whose data points to a struct that begins with its command. The kernel
        // writes as much as belongs to that command, and a `Question` is that struct, whole and writable.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// A struct of linux/ethtool.h.
///
/// # Safety
/// It is laid out as the kernel's struct for every value its `command` is given in this file.
unsafe trait Question {}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_drvinfo`: 196 bytes, of which only the first name is of interest.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct ChannelCounts {
    command: u32,
    most: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// Words of indirection table and key that we have room for; the largest table known has 4096.
const HASH_WORDS: usize = 4096 + 64;

/// `ETH_RSS_HASH_TOP`.
const TOEPLITZ: u8 = 1;

/// `RXH_IP_SRC | RXH_IP_DST | RXH_L4_B_0_1 | RXH_L4_B_2_3`.
const ADDRESSES_AND_PORTS: u64 = 0xf0;

/// `struct ethtool_rxfh`: the kernel writes as much of `config` as `places` and `key` say, which it fills in when they are zero.
#[repr(C)]
struct ReceiveHash {
    command: u32,
    context: u32,
    places: u32,
    key: u32,
    function: u8,
    change: u8,
    reserved: [u8; 2],
    reserved_too: u32,
    config: [u32; HASH_WORDS],
}

impl Default for ReceiveHash {
    fn default() -> Self {
        Self {
            command: GRSSH,
            context: 0,
            places: 0,
            key: 0,
            function: 0,
            change: 0,
            reserved: [0; 2],
            reserved_too: 0,
            config: [0; HASH_WORDS],
        }
    }
}

/// `struct ethtool_rxnfc`: 192 bytes, of which the command for fields uses the first 16.
#[repr(C)]
struct HashedFields {
    command: u32,
    flow: u32,
    fields: u64,
    rest: [u64; 22],
}

// SAFETY: the fixed fields are those of the header, 24 bytes; behind them is room for more than `receive_hash` lets the kernel write.
unsafe impl Question for ReceiveHash {}
// SAFETY: u32, u32, u64 and as many bytes as the header's struct has, 192 in all.
unsafe impl Question for HashedFields {}

// SAFETY: two u32, as in the header.
unsafe impl Question for Value {}
// SAFETY: 4 + 5 × 32 + 12 + 5 × 4 = 196 bytes, as in the header; `driver` follows the command.
unsafe impl Question for DriverInfo {}
// SAFETY: nine u32 in the header's order.
unsafe impl Question for ChannelCounts {}

const _: () = assert!(size_of::<HashedFields>() == 192 && size_of::<ReceiveHash>() == 24 + 4 * HASH_WORDS);
const _: () = assert!(size_of::<DriverInfo>() == 196 && size_of::<ChannelCounts>() == 36);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::testnet::Net;

    #[test]
    fn the_offloads_of_a_veth_can_be_read_and_set() {
        let Some(net) = Net::with_veth(2) else { return };
        let ethtool = Ethtool::open(net.a.name).unwrap();
        assert_eq!(ethtool.driver().unwrap(), "veth");
        assert_eq!(ethtool.channels().unwrap().receiving(), 2);
        for offload in [Offload::TxChecksum, Offload::Gro, Offload::Tso, Offload::Gso, Offload::TxVlan] {
            ethtool.set_offload(offload, false).unwrap();
            assert!(!ethtool.offload(offload).unwrap(), "{offload} off");
        }
        for offload in [Offload::TxChecksum, Offload::Gro, Offload::Gso, Offload::TxVlan] {
            ethtool.set_offload(offload, true).unwrap();
            assert!(ethtool.offload(offload).unwrap(), "{offload} on");
        }
        for offload in Offload::ALL {
            ethtool.offload(offload).unwrap();
        }
    }

    #[test]
    fn a_veth_has_no_receive_hash_to_be_read() {
        let Some(net) = Net::with_veth(2) else { return };
        let ethtool = Ethtool::open(net.a.name).unwrap();
        assert_eq!(ethtool.receive_hash().unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        assert_eq!(ethtool.hashes_ports(false).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        let error = Ethtool::open("no-such-nic").unwrap().driver().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        assert!(Ethtool::open("a-name-that-is-too-long").is_err());
    }
}
