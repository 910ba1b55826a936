//! How long does a worker stall for one new connection while its table fills up? The memory is mapped when the table is made, and comes page by page; nothing is
//! ever moved. This prints the longest that one insertion took, in the thread's own time: what it waits for a core is no stall of the table's.
//!
//! No criterion: it measures what is usual, and this is about the worst.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use shunt_dataplane::conn::table::Secret;
use shunt_dataplane::conn::{Conn, Table};
use shunt_dataplane::packet::{Address, V4, V6};
use shunt_dataplane::service::{Forwarding, Tick};

const SECRET: Secret = Secret([0x9e37_79b9_7f4a_7c15, 0x6a09_e667_f3bc_c908, 0xbb67_ae85_84ca_a73b]);

/// Insertions that are shown together.
const STEP: u32 = 1_000_000;

fn main() {
    // `cargo bench` says so; whoever only wants to see it run need not wait.
    let most = if std::env::args().any(|word| word == "--bench") { 10 * STEP } else { STEP };
    println!("longest insertion of each million by NAT, in microseconds, in a new table and again:");
    println!("  IPv4 {:?}", longest(most, |n| V4(0x6440_0000 + n / 16)));
    println!("  IPv6 {:?}", longest(most, |n| V6(u128::from(n / 16))));
}

fn nat<A: Address>(client: A, n: u32) -> Conn<A> {
    let mut conn = Conn::default();
    (conn.client, conn.client_port) = (client, 1024 + (n % 16) as u16);
    (conn.virtual_port, conn.server_port, conn.protocol) = (80, 8080, 6);
    (conn.forwarding, conn.timeout) = (Forwarding::Masq, 300_000);
    conn
}

fn longest<A: Address>(most: u32, client: impl Fn(u32) -> A) -> [Vec<u128>; 2] {
    let mut table = Table::with_capacity(most as usize, SECRET, Tick(0)).expect("memory for the table");
    // The second time the memory is there: what is as long then is the machine's.
    [(); 2].map(|()| {
        let mut places = Vec::with_capacity(most as usize);
        let mut of_step = |step: u32| {
            let times = (step * STEP..(step + 1) * STEP).map(|n| {
                let before = own_time();
                places.push(table.insert(nat(client(n), n)).expect("room"));
                own_time() - before
            });
            times.max().map_or(0, |longest| longest.as_micros())
        };
        let longest = (0..most / STEP).map(&mut of_step).collect();
        for place in places {
            table.remove(place);
        }
        longest
    })
}

/// What the thread has spent on a core.
fn own_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every kernel has this clock").into()
}
