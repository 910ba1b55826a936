//! Network namespaces for the tests: made here, gone when the test ends.
//!
//! A namespace belongs to a thread. [`Namespace::run`] makes a thread, moves it there and waits for it, so a test can
//! act in several at once. Whatever is missing (permission, `ip`) is said, and the test skipped.
//!
//! ```text
//!   lan side ── veth ──▶ director: lan ─ forwards ─ wan ── veth ──▶ wan side
//!   sends fixtures                                                  sees what was forwarded
//! ```

#![allow(unsafe_code)]

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{self, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::Interface;
use super::fixtures::{self, Case, OUR_MAC, THEIR_MAC, cases, indifferent, mark, marked};

/// A network namespace, kept by a descriptor.
#[derive(Debug)]
pub(super) struct Namespace(File);

impl Namespace {
    /// Makes one, with its loopback up; `None`, said, if that is not allowed.
    pub(super) fn new() -> Option<Namespace> {
        let made = thread::spawn(|| {
            // SAFETY: only this thread moves; it shares no network state with others afterwards, which nobody needs.
            check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
            File::open("/proc/thread-self/ns/net")
        });
        match made.join().expect("it does not panic") {
            Ok(file) => {
                let namespace = Namespace(file);
                namespace.run(|| ip("link set lo up")).then_some(namespace)
            }
            Err(error) => {
                eprintln!("skip: making a network namespace: {error}");
                None
            }
        }
    }

    /// Runs something in the namespace, in a thread of its own.
    pub(super) fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: no pointers; the descriptor is a network namespace.
                check(unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) })
                    .expect("who made a namespace may enter it");
                what()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A path to it, for other processes, while this one lives.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd())
    }
}

/// Runs `ip` in the namespace of the calling thread; false, said, if it fails.
pub(super) fn ip(arguments: &str) -> bool {
    match Command::new("ip").args(arguments.split_whitespace()).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("skip: ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
            false
        }
        Err(error) => {
            eprintln!("skip: ip: {error}");
            false
        }
    }
}

/// A router between two networks, to be steered.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) lan: Namespace,
    pub(super) director: Namespace,
    pub(super) wan: Namespace,
}

impl Router {
    /// Both of the director's interfaces have [`OUR_MAC`]; behind `lan` are real servers, behind `wan` all others.
    pub(super) fn new() -> Option<Router> {
        let router = Router { lan: Namespace::new()?, director: Namespace::new()?, wan: Namespace::new()? };
        let ours = mac(OUR_MAC);
        let theirs = mac(THEIR_MAC);
        let built = router.director.run(|| {
            let mut commands = Vec::new();
            for (name, side) in [("wan", &router.wan), ("lan", &router.lan)] {
                let path = side.path();
                commands.push(format!(
                    "link add {name} address {ours} type veth peer name side address {theirs} netns {path}"
                ));
                commands.push(format!("link set {name} up"));
            }
            let [ours_v4, ours_v6] = fixtures::ours();
            commands.push(format!("addr add {ours_v4}/24 dev lan"));
            commands.push(format!("addr add {ours_v6}/64 dev lan nodad"));
            commands.push("addr add 10.0.0.1/24 dev wan".into());
            commands.push("addr add fd00::1/64 dev wan nodad".into());
            commands.extend(fixtures::held().map(|address| format!("addr add {address} dev lo")));
            for next_hop in ["10.0.0.2", "fd00::2"] {
                commands.push(format!("neigh add {next_hop} lladdr {theirs} nud permanent dev wan"));
            }
            commands.push("route add default via 10.0.0.2".into());
            commands.push("-6 route add default via fd00::2".into());
            commands.iter().all(|command| ip(command))
        }) && router.wan.run(|| {
            ip("addr add 10.0.0.2/24 dev side")
                && ip("link set side up")
                && ip("addr add 198.51.100.7/32 dev lo")
                && ip("route add default via 10.0.0.1")
                && ip("addr add fd00::2/64 dev side nodad")
                && ip("-6 route add default via fd00::1")
        }) && router.lan.run(|| {
            let [ours_v4, ours_v6] = fixtures::ours();
            let [real_v4, real_v6] = fixtures::real_servers();
            ip(&format!("addr add {real_v4}/24 dev side"))
                && ip("link set side up")
                && ip(&format!("route add default via {ours_v4}"))
                && ip(&format!("addr add {real_v6}/64 dev side nodad"))
                && ip(&format!("-6 route add default via {ours_v6}"))
        });
        router
            .director
            .run(|| {
                for (setting, value) in [
                    ("ipv4/ip_forward", "1"),
                    ("ipv4/conf/all/rp_filter", "0"),
                    ("ipv4/conf/lan/rp_filter", "0"),
                    ("ipv6/conf/all/forwarding", "1"),
                ] {
                    if let Err(error) = fs::write(format!("/proc/sys/net/{setting}"), value) {
                        eprintln!("skip: {setting}: {error}");
                        return false;
                    }
                }
                built
            })
            .then_some(router)
    }

    /// The director's interfaces: `wan`, `lan`. To be called in its namespace.
    pub(super) fn interfaces(&self) -> Vec<Interface> {
        ["wan", "lan"].map(|name| Interface { name: name.into(), index: index(name), mac: OUR_MAC }).into()
    }

    /// Sends all fixtures that a router forwards into `lan`, and says which come out of `wan`.
    pub(super) fn forwarded(&self) -> Vec<&'static str> {
        let cases = cases();
        let receiver = self.wan.run(|| tap("side"));
        let mut last = indifferent();
        mark(&mut last, END);
        let mut seen = Vec::new();
        let numbered: Vec<(u16, &Case)> = (0..).zip(&cases).filter(|(_, case)| case.routed).collect();
        for some in numbered.chunks(AT_ONCE) {
            self.lan.run(|| {
                let sender = tap("side");
                for (number, case) in some {
                    let mut frame = case.frame.clone();
                    mark(&mut frame, *number);
                    send(&sender, &frame);
                }
                send(&sender, &last);
            });
            // Frames keep their order, so the last one ends the waiting.
            loop {
                match receive(&receiver).as_deref().and_then(marked) {
                    Some(END) => break,
                    Some(number) => seen.extend(cases.get(usize::from(number)).map(|case| case.name)),
                    None => {}
                }
            }
        }
        seen
    }

    /// Sends fixtures into `lan` that are ICMP messages to the machine itself, and says which its kernel has heard.
    pub(super) fn heard(&self, cases: &[Case]) -> Vec<&'static str> {
        let receiver = self.wan.run(|| tap("side"));
        let mut last = indifferent();
        mark(&mut last, END);
        let is_heard = |case: &&Case| {
            let before = self.director.run(icmp_messages);
            self.lan.run(|| {
                let sender = tap("side");
                send(&sender, &case.frame);
                send(&sender, &last);
            });
            while receive(&receiver).as_deref().and_then(marked) != Some(END) {}
            self.director.run(icmp_messages) != before
        };
        cases.iter().filter(is_heard).map(|case| case.name).collect()
    }

    /// Connects from the clients' side to the VIPs that the director's kernel has itself, of IPv4 and of IPv6, and says
    /// how that fails.
    pub(super) fn connect(&self, port: u16) -> [io::ErrorKind; 2] {
        // A refusal comes back within a millisecond, on a busy machine after the SYN is sent again (one second).
        let patience = Duration::from_millis(1500);
        let connect = |address| match TcpStream::connect_timeout(&SocketAddr::new(address, port), patience) {
            Ok(_) => panic!("nobody listens"),
            Err(error) => error.kind(),
        };
        fixtures::held().map(|address| self.wan.run(|| connect(address)))
    }
}

/// ICMP messages that the kernel has received in the namespace of the calling thread; of IPv6 only errors and echo, for
/// neighbours talk of their own accord.
fn icmp_messages() -> u64 {
    let read =
        |name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).expect("every kernel has it");
    let v4 = read("snmp");
    let mut icmp = v4.lines().filter(|line| line.starts_with("Icmp:"));
    let v4 = icmp.nth(1).and_then(|values| values.split_whitespace().nth(1)).map(str::parse::<u64>);
    let names = ["Icmp6InDestUnreachs", "Icmp6InPktTooBigs", "Icmp6InTimeExcds", "Icmp6InEchos"];
    let v6 = read("snmp6");
    let v6 = v6.lines().filter_map(|line| line.split_once(char::is_whitespace));
    let v6 = v6.filter(|(name, _)| names.contains(name)).map(|(_, value)| value.trim().parse::<u64>());
    v4.into_iter().chain(v6).map(|value| value.expect("a number")).sum()
}

/// What [`Router::forwarded`] should say while nothing is taken.
pub(super) fn routed() -> Vec<&'static str> {
    cases().iter().filter(|case| case.routed).map(|case| case.name).collect()
}

/// What [`Router::forwarded`] should say while the fixtures' targets are taken by a way that takes these.
pub(super) fn left_by(takes: fn(&Case) -> bool) -> Vec<&'static str> {
    cases().iter().filter(|case| case.routed && !takes(case)).map(|case| case.name).collect()
}

/// The number of the frame that ends a run.
const END: u16 = 9999;

/// Frames sent before one of them is waited for. The ring of a veth with native XDP has 256 places.
const AT_ONCE: usize = 100;

/// A test that runs once more, as a process of its own in the namespace of the calling thread, to be killed.
#[derive(Debug)]
pub(super) struct Child {
    process: process::Child,
    said: String,
}

impl Child {
    /// Starts the test with this full name, and waits until it [waits](wait_to_be_killed).
    pub(super) fn of(test: &str) -> Child {
        let mut process = Command::new(env::current_exe().expect("we run"))
            .args(["--exact", "--nocapture", test])
            .env(CHILD, test)
            .stdout(Stdio::piped())
            .spawn()
            .expect("we can run ourselves");
        let lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let said = lines.map_while(Result::ok).find_map(|line| Some(line.split_once(CHILD)?.1.to_owned()));
        Child { process, said: said.expect("the child comes to the point").trim().to_owned() }
    }

    /// What the child said when it was ready.
    pub(super) fn said(&self) -> &str {
        &self.said
    }

    /// Kills it and waits for its end.
    pub(super) fn kill(mut self) {
        self.process.kill().expect("it is our child");
        self.process.wait().expect("it is our child");
    }
}

/// Whether this process is such a child.
pub(super) fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

/// Tells the parent something, and waits for the end; not for ever, should the parent be gone.
pub(super) fn wait_to_be_killed(saying: &str) -> ! {
    println!("{CHILD} {saying}");
    thread::sleep(Duration::from_secs(60));
    process::exit(1)
}

/// Set for a child, and the beginning of what it says.
const CHILD: &str = "SHUNT_STEER_TEST_CHILD";

/// The index of an interface in the namespace of the calling thread.
pub(super) fn index(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).expect("names have no NUL");
    // SAFETY: the name is a string that ends in NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "{name:?} is there");
    index
}

/// An AF_XDP socket that is not bound; `None`, said, if the kernel has none.
pub(super) fn xdp_socket() -> Option<OwnedFd> {
    match socket(libc::AF_XDP, 0) {
        Ok(socket) => Some(socket),
        Err(error) => {
            eprintln!("skip: making an AF_XDP socket: {error}");
            None
        }
    }
}

/// An AF_PACKET socket on an interface.
fn tap(name: &str) -> OwnedFd {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let socket = socket(libc::AF_PACKET, i32::from(all)).expect("who made a namespace may tap it");
    // SAFETY: all zeros is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index(name) as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a `sockaddr_ll` of `length` bytes.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })
        .expect("the interface is there");
    let patience = libc::timeval { tv_sec: 5, tv_usec: 0 };
    // SAFETY: the kernel reads a `timeval` of the given length.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    })
    .expect("every socket has it");
    socket
}

fn socket(family: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send(socket: &OwnedFd, frame: &[u8]) {
    // SAFETY: the kernel reads `frame.len()` bytes from a slice of that length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
}

/// The next frame; panics if none comes for seconds. `None` for one that we sent ourselves.
fn receive(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut frame = vec![0; 2048];
    // SAFETY: the kernel writes at most `frame.len()` bytes to a slice of that length.
    let length = unsafe { libc::recv(socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
    let length =
        usize::try_from(length).unwrap_or_else(|_| panic!("no more frames: {}", io::Error::last_os_error()));
    frame.truncate(length);
    (frame.get(..6) == Some(&THEIR_MAC)).then_some(frame)
}

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
