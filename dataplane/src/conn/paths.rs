//! What errors have said about the paths to real servers: path MTUs, for all workers.
//!
//! A tunnel's packet that does not fit somewhere on its way comes back as an ICMP error to the director, to whichever worker. All must
//! obey it, so it is noted here, by the real server's address as in the kernel (`fib_nh_exception`), and forgotten as soon.
//!
//! The table is fixed and forgetful. A bucket is a cache line of eight words, and a word is all there is about an address, so it is read and
//! replaced as one: nobody waits, and nobody reads half of one. Two addresses with the same 35 bits of hash share what is known
//! of either: with a thousand real servers that happens to one pair in 70,000 directors.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::packet::address::SPREAD;
use crate::packet::{Address, V4, V6};
use crate::service::Tick;

const WAYS: usize = 8;

/// 512 buckets of eight, 32 KiB. A ninth real server in a bucket displaces the one that was told of first, whose next packet that is too long
/// brings an error again.
const BUCKET_BITS: u32 = 9;

/// A word has, from the top: as many bits of the address's hash as are left, the moment in units of 1024 ms, the MTU.
const STAMP_BITS: u32 = 22;
const MTU_BITS: u32 = 16;
const TAG_BITS: u32 = 64 - STAMP_BITS - MTU_BITS;

/// Units of 1024 ms that an error counts: ten minutes (`net.ipv4.route.mtu_expires`, `net.ipv6.route.mtu_expires`).
const LIFE: u64 = 586;

/// Paths are taken to carry this much, whatever an error says (`net.ipv4.route.min_pmtu`, RFC 8200 §5). An error that says 0, as routers did before
/// RFC 1191, comes to the same.
const LEAST_V4: u32 = 552;
const LEAST_V6: u32 = 1280;

#[repr(C, align(64))]
struct Bucket([AtomicU64; WAYS]);

/// The table.
pub struct Paths {
    buckets: Box<[Bucket]>,
    /// Whether anything was ever learned. On most machines nothing is, and that is all a packet asks.
    is_used: AtomicBool,
}

impl Default for Paths {
    fn default() -> Self {
        let bucket = |_| Bucket(std::array::from_fn(|_| AtomicU64::new(0)));
        Self { buckets: (0..1 << BUCKET_BITS).map(bucket).collect(), is_used: AtomicBool::new(false) }
    }
}

impl Paths {
    /// Whether anything was ever learned.
    #[inline]
    pub fn is_any_known(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    /// Bytes of IP that the path to an address carries, as far as is known; the most there can be if nothing is.
    #[inline]
    pub fn mtu(&self, to: &IpAddr, now: Tick) -> u16 {
        if self.is_any_known() { self.known(to, now) } else { u16::MAX }
    }

    fn known(&self, to: &IpAddr, now: Tick) -> u16 {
        let (bucket, tag) = self.place(*to);
        // Acquire is not needed: the word is all the information there is.
        let words = bucket.0.iter().map(|word| word.load(Ordering::Relaxed));
        words.filter(|word| is(*word, tag) && is_fresh(*word, now)).map(mtu_of).min().unwrap_or(u16::MAX)
    }

    /// Notes that an error told of this MTU on the path to an address. Gives what the path carries now: an error never makes that
    /// more, only time does.
    pub fn learn(&self, to: IpAddr, mtu: u32, now: Tick) -> u16 {
        let least = if to.is_ipv4() { LEAST_V4 } else { LEAST_V6 };
        let mtu = mtu.clamp(least, u16::MAX.into()) as u16;
        self.is_used.store(true, Ordering::Relaxed);
        let known = self.known(&to, now);
        if known < mtu {
            return known;
        }
        let (bucket, tag) = self.place(to);
        let words = || bucket.0.iter();
        let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let own = words().find(|word| is(read(word), tag));
        let free = || words().find(|word| !is_fresh(read(word), now));
        let oldest = || words().max_by_key(|word| age(read(word), now));
        if let Some(word) = own.or_else(free).or_else(oldest) {
            // Another worker that does the same at once may win; then the next error tells.
            word.store(tag | stamp(now) << MTU_BITS | u64::from(mtu), Ordering::Relaxed);
        }
        mtu
    }

    /// The bucket of an address, and the part of its words that says that they are its own.
    #[inline]
    fn place(&self, to: IpAddr) -> (&Bucket, u64) {
        let word = match to {
            IpAddr::V4(to) => V4::from(to).word(),
            IpAddr::V6(to) => !V6::from(to).word(),
        };
        // The upper bits of the product depend on all of the address.
        let hash = word.wrapping_mul(SPREAD);
        let bucket = &self.buckets[(hash >> (64 - BUCKET_BITS)) as usize];
        (bucket, hash << BUCKET_BITS >> (64 - TAG_BITS) << (64 - TAG_BITS))
    }
}

fn is(word: u64, tag: u64) -> bool {
    mtu_of(word) != 0 && word >> (64 - TAG_BITS) == tag >> (64 - TAG_BITS)
}

fn is_fresh(word: u64, now: Tick) -> bool {
    mtu_of(word) != 0 && age(word, now) < LIFE
}

fn mtu_of(word: u64) -> u16 {
    word as u16
}

/// Units since the word was written. The stamp wraps when the clock does.
fn age(word: u64, now: Tick) -> u64 {
    stamp(now).wrapping_sub(word >> MTU_BITS) & ((1 << STAMP_BITS) - 1)
}

fn stamp(now: Tick) -> u64 {
    u64::from(now.0 >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(n: u16) -> IpAddr {
        IpAddr::from([10, 1, (n >> 8) as u8, n as u8])
    }

    #[test]
    fn a_path_shrinks_by_errors_and_grows_with_time() {
        let paths = Paths::default();
        // The clock wraps meanwhile.
        let now = Tick(u32::MAX - 300_000);
        assert_eq!(paths.mtu(&server(11), now), u16::MAX);
        assert_eq!(paths.learn(server(11), 1400, now), 1400);
        assert_eq!(paths.learn(server(11), 1450, now.plus(60_000)), 1400, "and no longer for that");
        assert_eq!(paths.mtu(&server(11), now.plus(599_000)), 1400);
        assert_eq!(paths.mtu(&server(12), now), u16::MAX);
        assert_eq!(paths.mtu(&server(11), now.plus(602_000)), u16::MAX);
        assert_eq!(paths.learn(server(11), 1450, now.plus(602_000)), 1450);
        assert_eq!(paths.learn(server(11), 1300, now.plus(603_000)), 1300);
        assert_eq!(paths.mtu(&server(11), now.plus(1_202_000)), 1300);
    }

    #[test]
    fn no_path_is_taken_to_be_narrower_than_its_family_allows() {
        let paths = Paths::default();
        for (told, v4, v6) in
            [(0, 552, 1280), (551, 552, 1280), (1279, 1279, 1280), (1 << 20, u16::MAX, u16::MAX)]
        {
            let paths = Paths::default();
            assert_eq!(paths.learn(server(1), told, Tick(7)), v4);
            assert_eq!(paths.learn("2001:db8::1".parse().unwrap(), told, Tick(7)), v6);
        }
        assert_eq!(paths.mtu(&server(1), Tick(7)), u16::MAX);
    }

    #[test]
    fn a_full_bucket_forgets_the_oldest() {
        let paths = Paths::default();
        let same: Vec<IpAddr> = (0..u16::MAX)
            .map(server)
            .filter(|n| std::ptr::eq(paths.place(*n).0, paths.place(server(0)).0))
            .take(WAYS + 1)
            .collect();
        for (n, to) in (0..).zip(&same) {
            paths.learn(*to, 1400 + n, Tick(5000 * n));
        }
        let now = Tick(60_000);
        assert_eq!(paths.mtu(&same[0], now), u16::MAX);
        for (n, to) in (0..).zip(&same).skip(1) {
            assert_eq!(paths.mtu(to, now), 1400 + n);
        }
    }
}
