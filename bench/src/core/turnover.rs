//! Connections that begin and end: UDP ones of one packet, TCP ones from SYN to the end of TIME_WAIT; and what one takes in memory.

use std::time::Duration;

use anyhow::Result;
use shunt_dataplane::conn::{Conn, Table};
use shunt_dataplane::packet::V4;
use shunt_dataplane::packet::parse::tcp_flags::{ACK, FIN, SYN};
use shunt_dataplane::port::BURST;
use shunt_dataplane::service::{Forwarding, Tick};

use super::{BYTES, INSERTS, INSERTS_SPEEDUP, LIVES, Plan, Row, Run, median, per_packet, two_cores, way};
use crate::interrupt;
use crate::machine;
use crate::stand::frames::FRAME;
use crate::stand::{CLIENTS, SECRET, SERVERS, Stand, client};

/// Connections looked at for expiry at a time, as a worker does in a turn.
const VISITS: usize = 128;

/// Longer than a UDP connection lives, and than TIME_WAIT is, in milliseconds; slots of the wheel included.
const UDP_OVER: u32 = 301_000;
const TCP_OVER: u32 = 121_000;

/// Modes whose new connections are measured: with an entry in the index for each direction, and with one.
const NEW: [(&str, Forwarding); 2] = [("nat", Forwarding::Masq), ("dr", Forwarding::Route)];

/// The second worker's clients are others than the first one's.
const OTHERS: u32 = 1 << 27;

/// Packets of a TCP connection, by side and flags: handshake, a request of two segments and its answer, and both ends' farewell.
const LIFE: [(bool, u8); 10] = [
    (true, SYN),
    (false, SYN | ACK),
    (true, ACK),
    (true, ACK),
    (true, ACK),
    (false, ACK),
    (true, ACK),
    (true, FIN | ACK),
    (false, FIN | ACK),
    (true, ACK),
];

pub(super) fn measure(run: &mut Run) -> Result<()> {
    for (name, forwarding) in NEW {
        (run.step)(&format!("{name}, new UDP connections"));
        let rates = repeat(run.plan, forwarding, udp)?;
        run.report.add(way(name), INSERTS, &rates);
        run.rows.push(rate(format!("{name}, new UDP connections, millions/s"), &rates, "≥ 4", 4e6));
    }
    by_two(run)?;
    (run.step)("nat, lives of TCP connections");
    let rates = repeat(run.plan, Forwarding::Masq, tcp)?;
    run.report.add(way("nat"), LIVES, &rates);
    run.rows.push(rate("nat, TCP lives of 10 packets, millions/s".to_owned(), &rates, "≥ 0.6", 6e5));

    (run.step)("memory of connections");
    let bytes = bytes_per_connection(run.plan.turnover)?;
    run.report.add_for(run.plan.turnover.into(), way("nat"), BYTES, &[bytes]);
    run.rows.push(Row {
        what: "nat, bytes a connection".to_owned(),
        values: vec![bytes],
        digits: 1,
        beside: String::new(),
        target: "≤ 128",
        is_met: bytes <= 128.0,
    });
    Ok(())
}

/// What a second worker adds where connections begin and end: two tell each other of each, one alone tells nobody.
fn by_two(run: &mut Run) -> Result<()> {
    for (name, forwarding) in NEW {
        (run.step)(&format!("{name}, new UDP connections by two workers"));
        let Some([one, other]) = two_cores(&mut run.report, name, &[INSERTS_SPEEDUP])? else { continue };
        let mut alone = [Stand::new(forwarding, 0)?, Stand::new(forwarding, 0)?];
        let mut pair = Stand::pair(forwarding);
        let mut values = Vec::new();
        for repetition in 0..=run.plan.repetitions as u32 {
            let (first, count) = (1 + repetition * run.plan.turnover, run.plan.turnover);
            let work = |who: Vec<(usize, (&mut Stand, u32))>| -> Result<f64> {
                let job = |(stand, first): (&mut Stand, u32), _: &_| Ok(1e9 / udp(stand, first, count)?);
                machine::side_by_side(who, job, || ()).into_iter().sum()
            };
            // Cores need not be as fast as each other.
            let mut each_in_turn = 0.0;
            for (core, stand) in [one, other].into_iter().zip(&mut alone) {
                each_in_turn += work(vec![(core, (stand, first))])?;
            }
            let [here, there] = &mut pair;
            let by_both = work(vec![(one, (here, first)), (other, (there, first + OTHERS))])?;
            if repetition > 0 {
                values.push(2.0 * by_both / each_in_turn);
            }
        }
        run.report.add(way(name), INSERTS_SPEEDUP, &values);
        run.rows.push(Row {
            what: format!("{name}, new UDP connections, two workers ÷ one"),
            values,
            digits: 2,
            beside: "two tell each other of each".to_owned(),
            target: "",
            is_met: true,
        });
    }
    Ok(())
}

fn rate(what: String, rates: &[f64], target: &'static str, least: f64) -> Row {
    let values: Vec<_> = rates.iter().map(|rate| rate / 1e6).collect();
    let is_met = median(rates) >= least;
    Row { what, values, digits: 2, beside: String::new(), target, is_met }
}

/// Connections a second of each repetition.
fn repeat(
    plan: &Plan,
    forwarding: Forwarding,
    once: impl Fn(&mut Stand, u32, u32) -> Result<f64>,
) -> Result<Vec<f64>> {
    let mut stand = Stand::new(forwarding, 0)?;
    let mut rates = Vec::new();
    for repetition in 0..=plan.repetitions as u32 {
        // Others each time, so that none is in a cache.
        let nanoseconds = once(&mut stand, 1 + repetition * plan.turnover, plan.turnover)?;
        if repetition > 0 {
            rates.push(1e9 / nanoseconds);
        }
    }
    Ok(rates)
}

/// Nanoseconds that a UDP connection takes to begin and to end, among so many: the sum of both medians, of bursts and of visits.
fn udp(stand: &mut Stand, first: u32, count: u32) -> Result<f64> {
    let mut begun = Vec::new();
    for turn in 0..count / BURST as u32 {
        interrupt::check()?;
        let bytes: [_; BURST] =
            std::array::from_fn(|n| stand.request(first + turn * BURST as u32 + n as u32));
        begun.push(stand.burst(CLIENTS, turn as usize, &bytes));
    }
    Ok(per_packet(&mut begun, BURST) + ended(stand, UDP_OVER)?)
}

/// Nanoseconds of the life of a TCP connection, among so many. A burst's connections go through all of it back to back, before the next burst's begin.
fn tcp(stand: &mut Stand, first: u32, count: u32) -> Result<f64> {
    let mut lived: [Vec<Duration>; LIFE.len()] = Default::default();
    for turn in 0..count / BURST as u32 {
        interrupt::check()?;
        let clients: [_; BURST] = std::array::from_fn(|n| first + turn * BURST as u32 + n as u32);
        let mut servers = [0; BURST];
        for ((from_client, flags), times) in LIFE.iter().zip(&mut lived) {
            let bytes: [[u8; FRAME]; BURST] = std::array::from_fn(|n| match from_client {
                true => stand.segment(clients[n], *flags),
                false => stand.answer(servers[n], clients[n], *flags),
            });
            let port = if *from_client { CLIENTS } else { SERVERS };
            times.push(stand.burst(port, turn as usize, &bytes));
            if *flags == SYN {
                servers = std::array::from_fn(|n| stand.server_in(turn as usize, n));
            }
        }
    }
    let packets: f64 = lived.iter_mut().map(|times| per_packet(times, BURST)).sum();
    assert_eq!(stand.connections(), u64::from(count / BURST as u32) * BURST as u64);
    Ok(packets + ended(stand, TCP_OVER)?)
}

/// Nanoseconds that a connection takes to expire, of all there are.
fn ended(stand: &mut Stand, after: u32) -> Result<f64> {
    stand.now = stand.now.plus(after);
    let mut ended = Vec::new();
    while stand.connections() > 0 {
        interrupt::check()?;
        let before = stand.connections();
        let took = stand.expire(VISITS);
        if before - stand.connections() == VISITS as u64 {
            ended.push(took);
        }
        if before == stand.connections() {
            stand.now = stand.now.plus(250);
        }
    }
    Ok(per_packet(&mut ended, VISITS))
}

fn bytes_per_connection(count: u32) -> Result<f64> {
    let before = machine::resident()?;
    let mut table = Table::with_capacity(count as usize, SECRET, Tick(0)).expect("memory for connections");
    for n in 0..count {
        interrupt::check()?;
        let ((address, port), mut conn) = (client(n), Conn::<V4>::default());
        (conn.client, conn.client_port) = (address.into(), port);
        (conn.virtual_address, conn.virtual_port) = (V4(0x0a09_0001), 80);
        (conn.server, conn.server_port) = (V4(0x0a01_000b), 8080);
        (conn.protocol, conn.timeout) = (17, 300_000);
        table.insert(conn).expect("room");
    }
    Ok(machine::resident()?.saturating_sub(before) as f64 / f64::from(count))
}
