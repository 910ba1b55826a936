//! Socket options with a type.

#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, OwnedFd};

/// What may be read from or written to a socket option as bytes.
///
/// # Safety
/// All bit patterns, zeros among them, are values, and there is no padding whose bytes would go to the kernel
/// uninitialized.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: an integer.
unsafe impl Plain for i32 {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: two u64, four u32.
unsafe impl Plain for libc::xdp_umem_reg {}
// SAFETY: u64s only.
unsafe impl Plain for libc::xdp_mmap_offsets {}
// SAFETY: u64s only.
unsafe impl Plain for libc::xdp_statistics {}
// SAFETY: u32s only.
unsafe impl Plain for libc::tpacket_req {}
// SAFETY: u32s only.
unsafe impl Plain for libc::tpacket_stats {}

/// Sets a socket option.
pub(super) fn set_option<T: Plain>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: `value` is readable for the length given, and the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Bytes that a socket may have in flight. The default (208 KiB) is some 90 frames, fewer than two bursts: sending would
/// stall before the ring is full.
const SEND_BUFFER: i32 = 8 << 20;

/// Lets a socket have a ring's frames in flight, wherever the kernel makes a buffer of each.
pub(super) fn enlarge_send_buffer(fd: &OwnedFd) -> io::Result<()> {
    // Beyond net.core.wmem_max only with CAP_NET_ADMIN; without it, as far as allowed.
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER)
        .or_else(|_| set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &SEND_BUFFER))
}

/// Reads a socket option. What an older kernel does not know is zero.
pub(super) fn option<T: Plain>(fd: &OwnedFd, level: i32, name: i32) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is writable for `len` bytes, and the kernel writes no more than that.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) };
    if result == 0 {
        // SAFETY: zeros are a value of T, and so is anything the kernel wrote over them (`Plain`).
        Ok(unsafe { value.assume_init() })
    } else {
        Err(io::Error::last_os_error())
    }
}
