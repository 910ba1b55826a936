//! The bpf(2) system call, as far as steering needs it: maps, a program, its link to an interface.
//!
//! Everything the kernel makes is an owned file descriptor. The one that matters is the [`Link`]: it ties the program
//! to the interface, and the program is gone from the interface when the last descriptor of the link is closed, which
//! the kernel does also for a process that was killed. Nothing is pinned in the BPF file system.
//!
//! `bpf_attr` is a union of one struct per command. The kernel takes any prefix of it and reads the rest as zeros, so
//! each command here has a struct of its own with the fields it uses (uapi/linux/bpf.h; every field is at its natural
//! alignment).

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use super::assembler::Instruction;
use super::{Error, Interface, Mode};

/// A BPF map with keys of `K` and values of `V` bytes.
#[derive(Debug)]
pub(super) struct Map<const K: usize, const V: usize> {
    fd: OwnedFd,
}

/// What a map is.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Kind {
    Hash = 1,
    Array = 2,
    /// An array of AF_XDP sockets.
    Sockets = 17,
}

impl<const K: usize, const V: usize> Map<K, V> {
    /// Creates a map with room for `entries`.
    pub(super) fn create(kind: Kind, entries: u32) -> Result<Self, Error> {
        #[repr(C)]
        struct Attributes {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            map_flags: u32,
        }
        // Entries are allocated as they come: control writes seldom, and a full map at once would cost megabytes.
        const NO_PREALLOC: u32 = 1;
        let mut attributes = Attributes {
            map_type: kind as u32,
            key_size: K as u32,
            value_size: V as u32,
            max_entries: entries,
            map_flags: match kind {
                Kind::Hash => NO_PREALLOC,
                Kind::Array | Kind::Sockets => 0,
            },
        };
        // SAFETY: the attributes of BPF_MAP_CREATE hold no pointer.
        let fd = unsafe { create(MAP_CREATE, &mut attributes) };
        let fd = fd.map_err(|source| refused("creating a BPF map", source))?;
        Ok(Map { fd })
    }

    /// Sets the value of a key, new or not.
    ///
    /// Since Linux 6.1 new entries come from a small store, which is filled again behind the caller's back: at once where a processor can
    /// interrupt itself, else by the next tick. A burst of updates may find it empty, and waits for it.
    pub(super) fn update(&self, key: &[u8; K], value: &[u8; V]) -> io::Result<()> {
        again_after(libc::ENOMEM, REFILL_LIMIT, || self.update_once(key, value))
    }

    fn update_once(&self, key: &[u8; K], value: &[u8; V]) -> io::Result<()> {
        let mut attributes = Element {
            map_fd: self.fd.as_raw_fd(),
            key: key.as_ptr() as u64,
            value: value.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the kernel reads the map's key and value size, which are K and V since `create`, from two arrays of
        // just that length that live until the call returns.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
    }

    /// Removes a key. That it was not there is no error.
    pub(super) fn delete(&self, key: &[u8; K]) -> io::Result<()> {
        let mut attributes =
            Element { map_fd: self.fd.as_raw_fd(), key: key.as_ptr() as u64, value: 0, flags: 0 };
        // SAFETY: the kernel reads the map's key size, K since `create`, from an array of that length.
        match unsafe { bpf(MAP_DELETE_ELEM, &mut attributes) } {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result.map(drop),
        }
    }
}

impl<const K: usize, const V: usize> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A loaded program.
#[derive(Debug)]
pub(super) struct Program {
    fd: OwnedFd,
}

/// What a program is attached to.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Hook {
    /// BPF_PROG_TYPE_SOCKET_FILTER
    Socket = 1,
    /// BPF_PROG_TYPE_XDP
    Xdp = 6,
}

impl Program {
    /// Hands an XDP program to the verifier.
    ///
    /// The log is asked for only after a refusal, in a second attempt: writing it makes loading several times slower.
    pub(super) fn load(code: &[Instruction]) -> Result<Program, Error> {
        let refusal = match Self::verify(Hook::Xdp, code, &mut []) {
            Ok(fd) => return Ok(Program { fd }),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => error,
            Err(_) => {
                let mut log = vec![0; VERIFIER_LOG];
                match Self::verify(Hook::Xdp, code, &mut log) {
                    Ok(fd) => return Ok(Program { fd }),
                    Err(_) if log[0] != 0 => return Err(Error::Verifier { log: tail(&log) }),
                    Err(error) => error,
                }
            }
        };
        Err(refused("loading the XDP program", refusal))
    }

    /// Hands a socket's filter to the verifier.
    pub(super) fn load_filter(code: &[Instruction]) -> io::Result<Program> {
        Self::verify(Hook::Socket, code, &mut []).map(|fd| Program { fd })
    }

    /// The verifier gives up at a signal, whose handler then runs, and is to be asked again.
    fn verify(hook: Hook, code: &[Instruction], log: &mut [u8]) -> io::Result<OwnedFd> {
        again_after(libc::EAGAIN, SIGNALS_LIMIT, || Self::verify_once(hook, code, log))
    }

    fn verify_once(hook: Hook, code: &[Instruction], log: &mut [u8]) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct Attributes {
            prog_type: u32,
            insn_cnt: u32,
            insns: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log_buf: u64,
            kern_version: u32,
            // No BPF_F_XDP_HAS_FRAGS: without it drivers keep their frames in one piece (veth also switches its
            // peer's GSO off), and one piece is what a chunk of frame memory holds.
            prog_flags: u32,
            prog_name: [u8; 16],
            prog_ifindex: u32,
            expected_attach_type: u32,
        }
        let mut attributes = Attributes {
            prog_type: hook as u32,
            insn_cnt: code.len() as u32,
            insns: code.as_ptr() as u64,
            license: c"MIT OR Apache-2.0".as_ptr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_size: log.len() as u32,
            log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            kern_version: 0,
            // Processors that shunt runs on read across words; a kernel that is not sure of its own, such as user-mode Linux, takes
            // our word for it. Elsewhere it changes nothing.
            prog_flags: 1 << 1, // BPF_F_ANY_ALIGNMENT
            prog_name: *b"shunt_steer\0\0\0\0\0",
            prog_ifindex: 0,
            expected_attach_type: match hook {
                Hook::Socket => 0,
                Hook::Xdp => ATTACH_XDP,
            },
        };
        // SAFETY: the kernel reads `insn_cnt` instructions of eight bytes and a string that ends in NUL, and writes at
        // most `log_size` bytes to the log; all three live until the call returns.
        unsafe { create(PROG_LOAD, &mut attributes) }
    }

    /// Runs the program over `times` copies of a frame, and does with each what the program says.
    pub(super) fn run_live(&self, frame: &[u8], times: u32) -> io::Result<()> {
        const LIVE_FRAMES: u32 = 1 << 1; // BPF_F_TEST_XDP_LIVE_FRAMES
        let mut attributes = TestRun { flags: LIVE_FRAMES, ..TestRun::of(self, frame, times) };
        // SAFETY: the kernel reads `data_size_in` bytes from the frame and writes to no memory of ours but the attributes.
        unsafe { bpf(PROG_TEST_RUN, &mut attributes) }.map(drop)
    }

    /// Has a socket get only what the program says of each packet. The kernel keeps the program for as long.
    pub(super) fn filter(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let program = self.fd.as_raw_fd();
        // SAFETY: the option is a descriptor, which the kernel reads from an integer that lives until the call returns.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_BPF,
                std::ptr::from_ref(&program).cast(),
                size_of::<RawFd>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Ties the program to an interface for as long as the link lives.
    pub(super) fn attach(&self, interface: &Interface, mode: Mode) -> io::Result<Link> {
        #[repr(C)]
        struct Attributes {
            prog_fd: RawFd,
            target_ifindex: u32,
            attach_type: u32,
            flags: u32,
        }
        let mut attributes = Attributes {
            prog_fd: self.fd.as_raw_fd(),
            target_ifindex: interface.index,
            attach_type: ATTACH_XDP,
            flags: match mode {
                Mode::Generic => 1 << 1, // XDP_FLAGS_SKB_MODE
                Mode::Native => 1 << 2,  // XDP_FLAGS_DRV_MODE
            },
        };
        // SAFETY: the attributes of BPF_LINK_CREATE for XDP hold no pointer.
        unsafe { create(LINK_CREATE, &mut attributes) }.map(|fd| Link { fd })
    }
}

/// The attributes of BPF_PROG_TEST_RUN. Numbers that are 0 leave a choice to the kernel, or are its answer.
#[derive(Default)]
#[repr(C)]
struct TestRun {
    prog_fd: RawFd,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    // The kernel refuses bytes that it does not know and that are not zero.
    padding: u32,
}

impl TestRun {
    /// A program run so many times on a frame, which must live until the kernel has answered. None comes back.
    fn of(program: &Program, frame: &[u8], times: u32) -> Self {
        Self {
            prog_fd: program.fd.as_raw_fd(),
            data_size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat: times,
            ..Self::default()
        }
    }
}

/// A program at work on an interface. Dropping it takes the program off.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
}

impl Link {
    /// Puts another program in the place of the one at work. No frame meets neither.
    pub(super) fn update(&self, program: &Program) -> io::Result<()> {
        #[repr(C)]
        struct Attributes {
            link_fd: RawFd,
            new_prog_fd: RawFd,
            flags: u32,
            old_prog_fd: u32,
        }
        let mut attributes = Attributes {
            link_fd: self.fd.as_raw_fd(),
            new_prog_fd: program.fd.as_raw_fd(),
            flags: 0,
            old_prog_fd: 0, // not asked for without a flag
        };
        // SAFETY: the attributes of BPF_LINK_UPDATE hold no pointer.
        unsafe { bpf(LINK_UPDATE, &mut attributes) }.map(drop)
    }
}

impl Drop for Link {
    /// Takes the program off before the descriptor is closed: a child process that another thread is just starting has
    /// a copy of the descriptor until it executes its program, and would keep the link until then.
    fn drop(&mut self) {
        let mut link_fd = self.fd.as_raw_fd();
        // SAFETY: the attributes of BPF_LINK_DETACH are one descriptor, and hold no pointer.
        // A kernel before 5.9 has no such command; there, closing has to do.
        let _ = unsafe { bpf(LINK_DETACH, &mut link_fd) };
    }
}

/// The error for a refused operation, with the cure where the errno tells one.
pub(super) fn refused(what: impl Into<String>, source: io::Error) -> Error {
    let hint = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Some(
            "XDP needs root, or CAP_NET_ADMIN and CAP_BPF; in a user namespace BPF is not allowed: use --backend af-packet",
        ),
        Some(libc::ENOSYS) => Some("the kernel was built without BPF: use --backend af-packet"),
        _ => None,
    };
    Error::Kernel { what: what.into(), hint, source }
}

/// The attributes of commands on one element of a map.
#[repr(C)]
struct Element {
    map_fd: RawFd,
    // Four bytes of padding in both languages: the kernel's next field is an aligned u64.
    key: u64,
    value: u64,
    flags: u64,
}

/// Does what failed with this errno again, a millisecond later, for so long.
fn again_after<T>(errno: i32, limit: Duration, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let patience = Instant::now() + limit;
    loop {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(errno) && Instant::now() < patience => {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// Runs a command that makes a file descriptor.
///
/// # Safety
/// As for [`bpf`]; the command must be one that returns a new descriptor.
unsafe fn create<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the kernel has just made this descriptor (with close-on-exec) and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs a command.
///
/// # Safety
/// `T` must be a prefix of the command's member of `bpf_attr`, and every address in it must be valid for what the
/// command reads and writes there.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads (and for some commands writes) at most `size_of::<T>()` bytes of the attributes; what
    // they point to is the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes).cast::<c_void>(), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

/// The end of a log, where the verifier says what it did not like.
fn tail(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log.split(|&b| b == 0).next().unwrap_or_default());
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

// Commands, from `enum bpf_cmd`.
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

/// `BPF_XDP` of `enum bpf_attach_type`.
const ATTACH_XDP: u32 = 37;

/// How long an update waits for memory: ten ticks of the slowest clock (HZ=100).
const REFILL_LIMIT: Duration = Duration::from_millis(100);

/// How long a program is offered anew while signals come: many times what the largest takes to verify.
const SIGNALS_LIMIT: Duration = Duration::from_secs(2);

/// Bytes for the verifier's log. Too small a buffer is refused with ENOSPC by kernels before 6.4, so it holds the whole
/// log of every path through the program several times over.
const VERIFIER_LOG: usize = 4 << 20;

/// Lines of the log that go into the error: the last instructions before the refusal, and its reason.
const LOG_LINES: usize = 30;

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::steer::assembler::{Assembler, Register};

    /// What a program answered to one frame.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::steer) struct Answer {
        pub(in crate::steer) verdict: u32,
        /// Mean over the runs.
        pub(in crate::steer) nanoseconds: u32,
    }

    impl Program {
        /// Runs the program in the kernel on a frame that no interface has seen. The frame must have 14 bytes at least.
        pub(in crate::steer) fn run(&self, frame: &[u8], times: u32) -> io::Result<Answer> {
            let mut attributes = TestRun::of(self, frame, times);
            // SAFETY: the kernel reads `data_size_in` bytes from the frame and writes no frame, as `data_out` is
            // null; its answer goes into the attributes themselves.
            unsafe { bpf(PROG_TEST_RUN, &mut attributes) }?;
            Ok(Answer { verdict: attributes.retval, nanoseconds: attributes.duration })
        }
    }

    /// Whether this process may use BPF; says so if not.
    pub(in crate::steer) fn allowed() -> bool {
        match Map::<4, 4>::create(Kind::Hash, 1) {
            Ok(_) => true,
            Err(error) => {
                eprintln!("skip: {error}");
                false
            }
        }
    }

    #[test]
    fn a_program_that_the_verifier_refuses_comes_back_with_its_log() {
        if !allowed() {
            return;
        }
        let mut text = Assembler::default();
        text.exit(); // R0 was never set
        let code = text.finish().expect("no labels");
        match Program::load(&code) {
            Err(Error::Verifier { log }) => assert!(log.contains("R0 !read_ok"), "{log}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn signals_that_come_while_a_program_is_verified_do_not_keep_it_from_being_loaded() {
        extern "C" fn heard(_: libc::c_int) {}
        if !allowed() {
            return;
        }
        // Long enough to verify that a signal comes meanwhile.
        let mut text = Assembler::default();
        for _ in 0..100_000 {
            text.set(Register::R0, 0);
        }
        text.exit();
        let code = text.finish().expect("no labels");
        // SAFETY: the handler does nothing, and no other test has one for this signal.
        unsafe { libc::signal(libc::SIGUSR2, heard as *const () as libc::sighandler_t) };
        // SAFETY: the calling thread's own identifier.
        let loader = unsafe { libc::pthread_self() } as usize;
        let is_loaded = AtomicBool::new(false);
        let loaded = thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20 {
                    thread::sleep(Duration::from_micros(200));
                    if is_loaded.load(Ordering::Relaxed) {
                        return;
                    }
                    // SAFETY: the thread lives: it leaves the scope only after this one has ended.
                    unsafe { libc::pthread_kill(loader as libc::pthread_t, libc::SIGUSR2) };
                }
            });
            let result = Program::load_filter(&code);
            is_loaded.store(true, Ordering::Relaxed);
            result
        });
        loaded.expect("loaded between two signals, or after the last");
    }

    #[test]
    fn a_full_map_says_so() {
        if !allowed() {
            return;
        }
        let map = Map::<4, 4>::create(Kind::Hash, 1).expect("allowed");
        map.update(&[0; 4], &[1; 4]).expect("there is room for one");
        map.update(&[0; 4], &[2; 4]).expect("an update needs no room");
        let error = map.update(&[1; 4], &[1; 4]).expect_err("there is no room for two");
        assert_eq!(error.raw_os_error(), Some(libc::E2BIG));
        map.delete(&[0; 4]).expect("it is there");
        map.delete(&[0; 4]).expect("that it is not there is no error");
    }
}
