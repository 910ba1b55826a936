//! What a worker does when there are more connections than room for them (`drop_entry`, `drop_packet`, `secure_tcp`).
//!
//! In the kernel the memory of the machine runs short; here it is that of the connection tables, which is set aside at the start. The settings are the
//! kernel's: 0 never, 1 while memory is short, 3 always. Memory is short when less than `amemthresh` pages are free, or less than an eighth of a
//! small table. Whatever they say, a table that is full lets connections give way that nobody has established, and then ones that are over, and
//! templates of clients whom nobody has answered, before it refuses a new one.

use super::beyond::Near;
use super::family::Family;
use super::{Director, Shared};
use crate::conn::{Conn, ConnId, State};
use crate::packet::Address;
use crate::packet::protocol::TCP;
use crate::service::{Sysctls, Tick};
use crate::stats::Event;

/// Milliseconds between two looks at how much room there is (`DEFENSE_TIMER_PERIOD`).
const PERIOD: u32 = 1000;

/// Of all places of a table so many are gone through in a period.
const SHARE: u32 = 32;

/// Milliseconds a connection must have been silent for before one that might be in use is dropped.
const SILENT: u32 = 60_000;

/// Places that are looked at for a connection to give way: each may cost a cache miss.
const LOOKED_AT: usize = 16;

/// Entries that a new connection needs at most: itself and a template.
const NEW: usize = 2;

/// Bytes of a page of the kernel's.
const PAGE: usize = 4096;

/// How a worker defends itself at the moment.
#[derive(Debug, Default)]
pub struct Defence {
    looked: Tick,
    /// Whether connections that look unused are dropped.
    drops_entries: bool,
    /// Of so many new connections one is refused; 0 for none.
    drop_rate: u32,
    /// New connections until the next one that is refused.
    countdown: u32,
    /// Whether TCP states go by the table that does not trust a client's word.
    pub is_secure: bool,
    /// By the number of packets from the client: how many such connections are spared until one is dropped.
    spared: [u8; 9],
}

impl Defence {
    /// Whether a new connection is refused to shed load (`ip_vs_todrop`).
    pub fn refuses(&mut self) -> bool {
        if self.drop_rate == 0 {
            return false;
        }
        self.countdown = self.countdown.saturating_sub(1);
        let is_due = self.countdown == 0;
        if is_due {
            self.countdown = self.drop_rate;
        }
        is_due
    }

    /// Looks at how much room there is: free entries of so many, each of so many bytes (`update_defense_level`).
    fn update(&mut self, sysctls: &Sysctls, free: usize, capacity: usize, bytes: usize) {
        let pages = |entries: usize| entries * bytes / PAGE;
        let threshold = (sysctls.amemthresh.max(0) as usize).min(pages(capacity) / 8);
        let short = threshold.saturating_sub(pages(free));
        let is_on = |mode: i32| mode >= 3 || matches!(mode, 1 | 2) && short > 0;
        self.drops_entries = is_on(sysctls.drop_entry);
        self.is_secure = is_on(sysctls.secure_tcp);
        self.drop_rate = match sysctls.drop_packet {
            3.. => sysctls.am_droprate.max(0) as u32,
            1 | 2 if short > 0 => (threshold / short) as u32,
            _ => 0,
        };
        self.countdown = self.countdown.min(self.drop_rate);
    }

    /// Whether a connection that may be in use is dropped (`todrop_entry`).
    fn gives_up<A: Address>(&mut self, conn: &Conn<A>, now: Tick) -> bool {
        let packets = usize::from(conn.in_packets);
        if !is_silent(conn, now) || packets == 0 || packets > 8 {
            return false;
        }
        self.spared[packets] = self.spared[packets].saturating_sub(1);
        let is_due = self.spared[packets] == 0;
        if is_due {
            self.spared[packets] = packets as u8;
        }
        is_due
    }

    /// Whether a connection is dropped when it is come by (`ip_vs_random_dropentry`).
    fn drops<A: Address>(&mut self, conn: &Conn<A>, now: Tick) -> bool {
        match conn.state {
            _ if conn.controls() > 0 => false,
            // That of a one-packet service has no connections while it is in use, too.
            State::None if conn.is_template() => is_silent(conn, now),
            State::SynRecv | State::SynAck | State::Init1 | State::Init => true,
            State::Established | State::Associated | State::Udp => self.gives_up(conn, now),
            _ => false,
        }
    }
}

/// Whether nothing has been heard of a connection, or has come of a template, for so long that it may be out of use.
fn is_silent<A>(conn: &Conn<A>, now: Tick) -> bool {
    now.since(conn.last_seen) >= SILENT
}

/// How readily a connection gives way when there is no room: the least first. `None` for one that is kept.
fn rank<A: Address>(conn: &Conn<A>, now: Tick) -> Option<u8> {
    match conn.state {
        // That of a one-packet service may be in use for all that.
        State::None if conn.is_template() && conn.controls() == 0 => {
            Some(if is_silent(conn, now) { 1 } else { 4 })
        }
        // It goes with the last connection that it made, or is kept for what it has proved.
        _ if conn.is_template() => None,
        State::None | State::SynRecv | State::SynAck | State::SynSent | State::Init1 | State::Init => Some(0),
        state if state.is_over() => Some(1),
        State::FinWait | State::CloseWait | State::LastAck if conn.protocol == TCP => Some(2),
        State::Udp if is_silent(conn, now) => Some(3),
        _ => None,
    }
}

impl Director {
    /// Looks after the room in the tables, once a second, and goes on dropping what may be dropped; `budget` as for [`expire`](Self::expire).
    pub(super) fn defend(&mut self, now: Tick, budget: &mut usize) {
        if now.since(self.shared.defence.looked) >= PERIOD {
            self.shared.defence.looked = now;
            self.weigh();
            if self.shared.defence.drops_entries {
                self.v4.begin_dropping();
                self.v6.begin_dropping();
            }
        }
        self.v4.drop_some(&mut self.shared, now, budget);
        self.v6.drop_some(&mut self.shared, now, budget);
    }

    /// Decides how to defend by the room there is and the settings.
    pub(super) fn weigh(&mut self) {
        // Whichever table has less of it.
        let (free, capacity, bytes) = [self.v4.room(), self.v6.room()]
            .into_iter()
            .min_by_key(|(free, _, bytes)| free * bytes)
            .unwrap_or_default();
        self.shared.defence.update(&self.shared.snapshot.sysctls, free, capacity, bytes);
    }
}

impl<A: Near> Family<A> {
    /// Free entries, entries at most, bytes of one.
    fn room(&self) -> (usize, usize, usize) {
        let capacity = self.conns.capacity();
        (capacity - self.conns.len(), capacity, size_of::<Conn<A>>())
    }

    fn begin_dropping(&mut self) {
        self.to_look_at = self.conns.places().div_ceil(SHARE);
    }

    /// Goes through the share of this period, as far as the budget lasts.
    fn drop_some(&mut self, shared: &mut Shared, now: Tick, budget: &mut usize) {
        while self.to_look_at > 0 && *budget > 0 {
            self.to_look_at -= 1;
            *budget -= 1;
            let Some(id) = self.next_place() else { continue };
            if shared.defence.drops(self.conns.conn(id), now) {
                self.give_way(shared, id, now);
            }
        }
    }

    /// Makes room for a new connection and its template, if there are any that may give way.
    #[inline]
    pub(super) fn make_room(&mut self, shared: &mut Shared, now: Tick) {
        for _ in self.room().0..NEW {
            let Some(id) = self.dispensable(now) else { return };
            self.give_way(shared, id, now);
        }
    }

    /// The connection that gives way most readily, of some.
    fn dispensable(&mut self, now: Tick) -> Option<ConnId> {
        let places: [Option<ConnId>; LOOKED_AT] = std::array::from_fn(|_| self.any_place());
        let ranked =
            places.into_iter().flatten().filter_map(|id| Some((rank(self.conns.conn(id), now)?, id)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, id)| id)
    }

    /// The next entry in the order of places, for whoever goes through all of them.
    fn next_place(&mut self) -> Option<ConnId> {
        self.place = if self.place + 1 < self.conns.places() { self.place + 1 } else { 0 };
        self.conns.at(self.place)
    }

    /// An entry far from the last one that was asked for: neighbours are of one age, and often all alike.
    fn any_place(&mut self) -> Option<ConnId> {
        // Multiples of the golden ratio come by everywhere equally soon.
        self.draw = self.draw.wrapping_add(0x9e37_79b9);
        let place = (u64::from(self.draw) * u64::from(self.conns.places())) >> 32;
        self.conns.at(place as u32)
    }

    fn give_way(&mut self, shared: &mut Shared, id: ConnId, now: Tick) {
        let template = self.conns.controller(id);
        let conn = self.conns.conn_mut(id);
        if !conn.state.is_over() {
            // Room is wanted now: its local port does not wait, as that of one in TIME_WAIT does.
            conn.timeout = 0;
        }
        self.cut(shared, id, now);
        shared.mine().count(Event::GaveWay, 1);
        // What made it is of no use any more unless it has proved its worth (`ip_vs_conn_expire`).
        if let Some(template) = template {
            let conn = self.conns.conn(template);
            if conn.controls() == 0 && conn.state != State::Assured {
                self.cut(shared, template, now);
            }
        }
    }
}
