//! What connections cost in memory, index included, of a process that holds a million of them.

use shunt_bench::machine::resident;
use shunt_dataplane::conn::table::Secret;
use shunt_dataplane::conn::{Conn, Table};
use shunt_dataplane::packet::{Address, V4, V6};
use shunt_dataplane::service::{Forwarding, Tick};

const MILLION: u32 = 1_000_000;

/// Bytes each of a million connections by NAT costs, which are found by two tuples.
fn bytes_per_connection<A: Address>(address: impl Fn(u32) -> A) -> f64 {
    let secret = Secret::new([0x9e37_79b9_7f4a_7c15, 0x6a09_e667_f3bc_c908, 0xbb67_ae85_84ca_a73b]);
    let before = resident().expect("proc is mounted");
    let mut table = Table::with_capacity(1 << 20, secret, Tick(0)).expect("memory");
    for n in 0..MILLION {
        let mut conn = Conn::default();
        conn.client = address(0x0a00_0000 + n / 50_000);
        conn.virtual_address = address(0x0a09_0001);
        conn.server = address(0x0a01_000b);
        conn.client_port = (n % 50_000) as u16 + 1024;
        (conn.virtual_port, conn.server_port, conn.protocol) = (80, 8080, 6);
        (conn.forwarding, conn.timeout) = (Forwarding::Masq, 900_000);
        table.insert(conn).expect("room");
    }
    assert_eq!(table.len(), MILLION as usize);
    (resident().expect("proc is mounted") - before) as f64 / f64::from(MILLION)
}

#[test]
fn a_million_connections() {
    let v4 = bytes_per_connection(V4);
    let v6 = bytes_per_connection(|n| V6(0x2001_0db8 << 96 | u128::from(n)));
    println!("{v4:.1} bytes for IPv4, {v6:.1} for IPv6");
    assert!(v4 <= 128.0, "{v4:.1} bytes a connection of IPv4");
    assert!(v6 <= 192.0, "{v6:.1} bytes a connection of IPv6");
}
