//! How long does a worker stall for one new connection while its table fills up? The memory is mapped when the table is made, and comes page by page; nothing is
//! ever moved. This prints the longest that one insertion took, in the thread's own time: what it waits for a core is no stall of the table's. With it, how
//! many pages the thread was the first to touch: none, if they are brought before.
//!
//! No criterion: it measures what is usual, and this is about the worst.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};
use shunt_dataplane::conn::supplier::{Part, Supplier};
use shunt_dataplane::conn::table::Secret;
use shunt_dataplane::conn::{Conn, Table};
use shunt_dataplane::packet::{Address, V4, V6};
use shunt_dataplane::service::{Forwarding, Services, Tick};

const SECRET: Secret = Secret::new([0x9e37_79b9_7f4a_7c15, 0x6a09_e667_f3bc_c908, 0xbb67_ae85_84ca_a73b]);

/// Insertions that are shown together.
const STEP: u32 = 1_000_000;

fn main() {
    // `cargo bench` says so; whoever only wants to see it run need not wait.
    let most = if std::env::args().any(|word| word == "--bench") { 10 * STEP } else { STEP };
    println!("longest insertion of each million by NAT in a new table, µs (pages touched first):");
    let idle: Vec<_> = (0..most / STEP).map(|_| idle().as_micros().to_string()).collect();
    println!("nothing inserted, this machine's own\n       {}", idle.join(", "));
    for is_supplied in [false, true] {
        println!("memory {}", if is_supplied { "brought before" } else { "as it is touched" });
        print("IPv4", longest(most, is_supplied, |n| V4(0x6440_0000 + n / 16)));
        print("IPv6", longest(most, is_supplied, |n| V6(u128::from(n / 16))));
    }
}

fn print(family: &str, steps: Vec<Step>) {
    let steps: Vec<_> =
        steps.iter().map(|step| format!("{} ({})", step.longest.as_micros(), step.faults)).collect();
    println!("  {family} {}", steps.join(", "));
}

/// A million insertions.
struct Step {
    longest: Duration,
    /// Pages that this thread touched first.
    faults: i64,
}

fn nat<A: Address>(client: A, n: u32) -> Conn<A> {
    let mut conn = Conn::default();
    (conn.client, conn.client_port) = (client, 1024 + (n % 16) as u16);
    (conn.virtual_port, conn.server_port, conn.protocol) = (80, 8080, 6);
    (conn.forwarding, conn.timeout) = (Forwarding::Masq, 300_000);
    conn
}

fn longest<A: Address>(most: u32, is_supplied: bool, client: impl Fn(u32) -> A) -> Vec<Step> {
    let mut table = Table::with_capacity(most as usize, SECRET, Tick(0)).expect("memory for the table");
    let supplier =
        Supplier::start(vec![Part { supply: table.supply(), is_needed: |_| true }]).expect("a thread");
    if is_supplied {
        supplier.prepare(&Services::default()).expect("memory");
    }
    let mut of_step = |step: u32| {
        let before = faults();
        let times = (step * STEP..(step + 1) * STEP).map(|n| {
            let before = own_time();
            table.insert(nat(client(n), n)).expect("room");
            own_time() - before
        });
        let longest = times.max().unwrap_or_default();
        Step { longest, faults: faults() - before }
    };
    (0..most / STEP).map(&mut of_step).collect()
}

/// The longest of a million times nothing: interrupts, and what a virtual machine's host takes without saying so.
fn idle() -> Duration {
    let nothing = || {
        let before = own_time();
        own_time() - before
    };
    (0..STEP).map(|_| nothing()).max().unwrap_or_default()
}

fn faults() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).expect("every kernel tells").minor_page_faults()
}

/// What the thread has spent on a core.
fn own_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every kernel has this clock").into()
}
