//! What ioctl(2) is asked of an interface by its name (netdevice(7)).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::__c_anonymous_ifr_ifru as Value;

/// An interface's name, as the kernel takes it. What is too long is cut off.
pub(super) type Name = [libc::c_char; libc::IFNAMSIZ];

/// The name as bytes that end in a zero.
pub(super) fn name(interface: &str) -> Name {
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name[..libc::IFNAMSIZ - 1].iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    name
}

/// Asks for an interface's MTU.
pub(super) fn mtu(fd: &OwnedFd, name: &Name) -> io::Result<usize> {
    // SAFETY: SIOCGIFMTU reads the name of an ifreq and writes its MTU.
    let value = unsafe { ask(fd, name, libc::SIOCGIFMTU, Value { ifru_mtu: 0 }) }?;
    // SAFETY: the kernel has just written this member.
    Ok(unsafe { value.ifru_mtu }.max(0) as usize)
}

/// Asks for an interface's flags.
pub(super) fn flags(fd: &OwnedFd, name: &Name) -> io::Result<i32> {
    // SAFETY: SIOCGIFFLAGS reads the name of an ifreq and writes its flags.
    let value = unsafe { ask(fd, name, libc::SIOCGIFFLAGS, Value { ifru_flags: 0 }) }?;
    // SAFETY: the kernel has just written this member.
    Ok(unsafe { value.ifru_flags }.into())
}

/// Asks, or has something set.
///
/// # Safety
/// The request must be one that reads and writes nothing but an ifreq's name and this member.
pub(super) unsafe fn ask(
    fd: &impl AsRawFd,
    name: &Name,
    what: libc::c_ulong,
    value: Value,
) -> io::Result<Value> {
    let mut request = libc::ifreq { ifr_name: *name, ifr_ifru: value };
    // SAFETY: the caller's promise; the name ends in a zero.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), what as _, &raw mut request) };
    if result == 0 { Ok(request.ifr_ifru) } else { Err(io::Error::last_os_error()) }
}
