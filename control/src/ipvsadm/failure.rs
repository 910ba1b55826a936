//! How a command line ends badly, and what the original says then.
//!
//! Three kinds of end matter, because `-R` treats them differently: a usage error and a listing that cannot be had end a
//! whole restore, a malformed word or another refusal ends only its line. [`Failure`] carries the text, the exit code and which of the two it is.

use std::io;

use crate::api::{Request, ServiceKey};

/// Exit code for wrong usage.
pub const USAGE: i32 = 2;
/// Exit code for what the parser of words or the daemon refuses: -1, as the shell sees it.
pub const REFUSED: i32 = 255;
/// Exit code when a listing cannot be had.
pub const UNLISTED: i32 = 1;

/// Why a command line was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What goes to the standard error.
    pub text: String,
    /// The exit code.
    pub code: i32,
    /// Whether a restore stops here, too.
    pub ends_restore: bool,
}

impl Failure {
    /// Wrong usage: options that do not fit, values out of range.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure { text: text.into(), code: USAGE, ends_restore: true }
    }

    /// No command where one must be.
    pub fn try_help(program: &str) -> Failure {
        let text = format!("Try `{program} -h' or '{program} --help' for more information.");
        Failure { text, code: REFUSED, ends_restore: true }
    }

    /// A word after the command that is no option, or lacks its value.
    pub fn word(text: String) -> Failure {
        Failure { text, code: REFUSED, ends_restore: false }
    }

    /// The daemon refused a request. `errno` is the kernel's for the same case.
    pub fn refused(request: &Request, errno: i32, why: &str) -> Failure {
        // Scripts that start it have other work to do, too; that they go on without it is to be seen, not to be the end of them.
        if matches!(request, Request::StartDaemon(_)) && errno == EOPNOTSUPP {
            let text = format!("{why}; nothing was started");
            return Failure { text, code: 0, ends_restore: false };
        }
        // A listing that cannot be had is the end of everything, a restore too.
        let asks = matches!(request, Request::Services(_) | Request::Locals(_) | Request::Connections);
        let mut text = message(request, errno);
        if says_more(errno) && !why.is_empty() {
            text.push_str(&format!("\n({why})"));
        }
        Failure { text, code: if asks { UNLISTED } else { REFUSED }, ends_restore: asks }
    }
}

/// What to do about a director that cannot be asked.
pub fn cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "Become root, or a member of the director's group.",
        _ => "Start the director with `shunt run', or name its socket in SHUNT_SOCKET.",
    }
}

const EPERM: i32 = nix::libc::EPERM;
const ENOENT: i32 = nix::libc::ENOENT;
const ESRCH: i32 = nix::libc::ESRCH;
const ENOMEM: i32 = nix::libc::ENOMEM;
const EEXIST: i32 = nix::libc::EEXIST;
const EINVAL: i32 = nix::libc::EINVAL;
const EPROTO: i32 = nix::libc::EPROTO;
const EMSGSIZE: i32 = nix::libc::EMSGSIZE;
const ENOPROTOOPT: i32 = nix::libc::ENOPROTOOPT;
const EOPNOTSUPP: i32 = nix::libc::EOPNOTSUPP;
const EAFNOSUPPORT: i32 = nix::libc::EAFNOSUPPORT;

/// Cases that the kernel does not have, so that its words alone would mislead.
fn says_more(errno: i32) -> bool {
    matches!(errno, EOPNOTSUPP | EPROTO)
}

/// The words of ipvsadm for a refusal.
fn message(request: &Request, errno: i32) -> String {
    use Request::*;
    let text = match (request, errno) {
        (AddService(_), EEXIST) => "Service already exists",
        (AddService(_) | EditService(_), ENOENT) => "Scheduler or persistence engine not found",
        (EditService(_) | DeleteService(_) | Zero(_) | Services(_) | Locals(_), ESRCH) => "No such service",
        (AddServer(..) | EditServer(..) | DeleteServer(..) | AddLocal(..) | DeleteLocal(..), ESRCH) => {
            "Service not defined"
        }
        (AddServer(..), EEXIST) => "Destination already exists",
        (EditServer(..) | DeleteServer(..), ENOENT) => "No such destination",
        (AddLocal(..), EEXIST) => "Local address already exists",
        (DeleteLocal(..), ENOENT) => "No such local address",
        (StartDaemon(_), EEXIST) => "Daemon has already run",
        (StopDaemon(_), ESRCH) => "No daemon is running",
        (_, EPERM) => "Permission denied (you must be root)",
        (_, EINVAL) => "Invalid operation.  Possibly wrong module version, address not unicast, ...",
        (_, ENOPROTOOPT) => "Protocol not available",
        (_, ENOMEM) => "Memory allocation problem",
        // IPVS gives this errno for one reason only; shunt has others, and does not blame IPv6 for them.
        (_, EOPNOTSUPP) if concerns_ipv6(request) => "Operation not supported with IPv6",
        (_, EAFNOSUPPORT) => "Operation not supported with specified address family",
        (_, EMSGSIZE) => "Module is wrong version",
        // musl and glibc spell some of these differently; scripts know glibc's.
        (_, nix::libc::ERANGE) => "Numerical result out of range",
        (_, EOPNOTSUPP) => "Operation not supported",
        (_, nix::libc::ENODEV) => "No such device",
        _ => return nix::errno::Errno::from_raw(errno).desc().to_string(),
    };
    text.to_string()
}

fn concerns_ipv6(request: &Request) -> bool {
    let of = |key: &ServiceKey| key.family() == crate::api::Family::Ipv6;
    match request {
        Request::AddService(s) | Request::EditService(s) => of(&s.key),
        Request::AddServer(key, server) | Request::EditServer(key, server) => {
            of(key) || server.key.address.is_ipv6()
        }
        Request::AddLocal(key, address) => of(key) || address.is_ipv6(),
        _ => false,
    }
}
