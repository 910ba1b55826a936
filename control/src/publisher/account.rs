//! What is shown of counters: totals since a zero point, and rates.
//!
//! The workers' counters only grow. An account remembers where they stood when they were last set to zero, and estimates rates by the arithmetic of
//! the kernel (`ip_vs_est.c` of Linux 6.1), scaled whole numbers, so that a listing shows the kernel's numbers. Recorded rates of a real kernel are
//! replayed in `tests/golden_rates.rs`.

use std::time::Duration;

use crate::api::Stats;

/// Time between two estimations. The kernel's; shifts below have it built in.
pub const PERIOD: Duration = Duration::from_secs(2);

/// Connections, packets in and out, bytes in and out.
pub type Totals = [u64; 5];

/// Binary digits behind the point of a rate: ten of connections and packets, five of bytes, which may be many more.
const FRACTION: [u32; 5] = [10, 10, 10, 5, 5];

/// The account of a real server or a service.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// The counters when they were last set to zero.
    zero: Totals,
    /// The counters when rates were last estimated.
    last: Totals,
    /// Rates per second, scaled.
    rates: [i64; 5],
}

impl Account {
    /// An account of counters that stand at `now`.
    pub fn open(now: Totals) -> Self {
        Self { zero: now, last: now, rates: [0; 5] }
    }

    /// Sets counters and rates to zero. What was counted since the last estimation still goes into the next, as in the kernel.
    pub fn zero(&mut self, now: Totals) {
        (self.zero, self.rates) = (now, [0; 5]);
    }

    /// Estimates rates: each moves a quarter of the way to what was counted in the last two seconds. When estimations were left out,
    /// the next one takes all that has come since for two seconds' worth.
    pub fn estimate(&mut self, now: Totals) {
        for (n, rate) in self.rates.iter_mut().enumerate() {
            // Half of it, for it took two seconds.
            let measured = (now[n].wrapping_sub(self.last[n]) << (FRACTION[n] - 1)) as i64;
            *rate += (measured - *rate) >> 2;
        }
        self.last = now;
    }

    /// What a listing shows when the counters stand at `now`.
    pub fn stats(&self, now: Totals) -> Stats {
        let [conns, in_packets, out_packets, in_bytes, out_bytes] = minus(now, self.zero);
        // Just below a half is added, so that what is halfway is rounded down.
        let rate = |n: usize| ((self.rates[n] + (1 << (FRACTION[n] - 1)) - 1) >> FRACTION[n]) as u64;
        let rates = std::array::from_fn(rate);
        Stats { conns, in_packets, out_packets, in_bytes, out_bytes, rates }
    }
}

/// A sum.
pub fn plus(a: Totals, b: Totals) -> Totals {
    std::array::from_fn(|n| a[n].wrapping_add(b[n]))
}

/// A difference, 0 at least.
pub fn minus(a: Totals, b: Totals) -> Totals {
    std::array::from_fn(|n| a[n].saturating_sub(b[n]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_and_its_end_are_estimated_as_by_the_kernel() {
        let mut account = Account::open([7; 5]);
        let mut now = [7; 5];
        let mut after = |conns| {
            now[0] += conns;
            account.estimate(now);
            account.stats(now).rates[0]
        };
        let rising: Vec<u64> = (0..12).map(|_| after(200)).collect();
        assert_eq!(rising, [25, 44, 58, 68, 76, 82, 87, 90, 92, 94, 96, 97]);
        let falling: Vec<u64> = (0..12).map(|_| after(0)).collect();
        assert_eq!(falling, [73, 54, 41, 31, 23, 17, 13, 10, 7, 5, 4, 3]);
    }

    #[test]
    fn a_terabit_a_second_is_no_trouble() {
        let (mut account, mut now) = (Account::default(), [0; 5]);
        for _ in 0..100 {
            now[3] += 250_000_000_000;
            account.estimate(now);
        }
        assert!(account.stats(now).rates[3].abs_diff(125_000_000_000) < 10);
    }
}
