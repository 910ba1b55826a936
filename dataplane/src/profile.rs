//! The stage profile: what each stage of a burst's life takes, in cycles of the processor's time-stamp counter.
//!
//! ```text
//!   turn:   orders ─▶ for each burst: receive ─▶ parse · look up · decide · begin ─▶ sort ─▶ timers ─▶ send
//! ```
//!
//! A worker times one in [`EVERY`] of the turns in which it has something to do, by a [`Stopwatch`] that lies with its director; the others pay a test of a flag
//! for each lap. A lap gives what has passed since the last one to a stage. What a stage took of a burst, or of a turn, goes into the worker's
//! [`Profile`]: a histogram each, which nobody else writes and which control may read at any time, as it does with counters.
//!
//! The counter is read without waiting for the instructions before it, so a stage's edge is blurred by what the processor has under way, some tens of nanoseconds; over many
//! bursts that evens out. On a machine whose counter cannot be trusted, its cycles are the kernel's nanoseconds.

use std::sync::atomic::{AtomicU64, Ordering};

use quanta::Clock;

use crate::stats::add;

/// Turns of which one is timed. A timed one takes 0.15 µs longer if it has one packet and 0.45 if it has 128, which is at most half a percent of this many (`shunt-lab core` measures
/// it). Every turn would cost a quarter; one in a thousand would leave a director that is hardly used without samples for seconds.
pub const EVERY: u32 = 64;

macro_rules! stages {
    ($($(#[$doc:meta])+ $name:ident = $text:literal, $per:ident;)+) => {
        /// What a worker does with a burst, or in a turn.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Stage { $($(#[$doc])+ $name,)+ }

        impl Stage {
            /// Every stage, in the order of a turn.
            pub const ALL: [Stage; [$(Stage::$name),+].len()] = [$(Stage::$name,)+];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Stage::$name => $text,)+ }
            }

            /// What it has a sample of for each.
            pub fn per(self) -> Per {
                match self { $(Stage::$name => Per::$per,)+ }
            }
        }
    };
}

stages! {
    /// What control asks for: another snapshot, a page of a listing.
    Orders = "orders", Turn;
    /// Taking frames from a queue or from another worker, looks at empty ones before it included.
    Receive = "receive", Burst;
    /// Reading headers and hashing them, asking for lines of the index.
    Parse = "parse", Burst;
    /// Reading those lines, asking for connections.
    LookUp = "look_up", Burst;
    /// Finding the connection, following its state, rewriting the packet.
    Decide = "decide", Burst;
    /// Choosing a real server for a new connection and putting it into the table.
    Begin = "begin", Burst;
    /// Putting each frame where its verdict says: to a queue, to another worker, back among the free ones.
    Sort = "sort", Burst;
    /// Packets that have waited, connections whose time is over, bells of other workers.
    Timers = "timers", Turn;
    /// Giving frames to the queues, and having the kernel send them.
    Send = "send", Turn;
}

/// What a sample is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// A burst of frames.
    Burst,
    /// A turn of the worker.
    Turn,
}

const STAGES: usize = Stage::ALL.len();

/// What a timed turn has taken so far, by stage.
pub struct Stopwatch {
    clock: Option<Clock>,
    is_running: bool,
    /// Turns that had work.
    turns: u32,
    /// When the last lap ended.
    last: u64,
    cycles: [u64; STAGES],
}

impl Stopwatch {
    /// One that goes by this clock.
    pub fn by(clock: Clock) -> Self {
        Self { clock: Some(clock), ..Self::stopped() }
    }

    /// One that never runs.
    pub fn stopped() -> Self {
        Self { clock: None, is_running: false, turns: 0, last: 0, cycles: [0; STAGES] }
    }

    /// Begins a turn, and runs if it is one to be timed.
    #[inline]
    pub fn begin_turn(&mut self) {
        if self.turns.is_multiple_of(EVERY)
            && let Some(clock) = &self.clock
        {
            self.is_running = true;
            self.cycles = [0; STAGES];
            self.last = clock.raw();
        }
    }

    /// Gives what has passed since the last lap to a stage.
    #[inline(always)]
    pub fn lap(&mut self, stage: Stage) {
        if self.is_running {
            self.count(stage);
        }
    }

    #[cold]
    #[inline(never)]
    fn count(&mut self, stage: Stage) {
        if let Some(clock) = &self.clock {
            let now = clock.raw();
            // A counter may go back when a thread that is not pinned changes cores.
            self.cycles[stage as usize] += now.saturating_sub(self.last);
            self.last = now;
        }
    }

    /// Ends a burst of so many packets.
    #[inline]
    pub fn end_burst(&mut self, packets: usize, profile: &Profile) {
        if self.is_running {
            add(&profile.bursts, 1);
            add(&profile.packets, packets as u64);
            self.note(Per::Burst, profile);
        }
    }

    /// Ends a turn. One without work says nothing about a burst: it is forgotten, and the next one is timed.
    #[inline]
    pub fn end_turn(&mut self, had_work: bool, profile: &Profile) {
        if self.is_running {
            if had_work {
                add(&profile.turns, 1);
                self.note(Per::Turn, profile);
            }
            self.is_running = false;
        }
        self.turns = self.turns.wrapping_add(u32::from(had_work));
    }

    #[cold]
    #[inline(never)]
    fn note(&mut self, per: Per, profile: &Profile) {
        for stage in Stage::ALL.into_iter().filter(|stage| stage.per() == per) {
            let cycles = std::mem::take(&mut self.cycles[stage as usize]);
            if cycles > 0 {
                profile.stage(stage).record(cycles);
            }
        }
    }
}

/// What one worker's timed turns have taken.
pub struct Profile {
    stages: Box<[Histogram]>,
    turns: AtomicU64,
    bursts: AtomicU64,
    packets: AtomicU64,
}

impl Default for Profile {
    fn default() -> Self {
        let stages = Stage::ALL.iter().map(|_| Histogram::default()).collect();
        Self { stages, turns: AtomicU64::new(0), bursts: AtomicU64::new(0), packets: AtomicU64::new(0) }
    }
}

impl Profile {
    /// What a stage has taken.
    pub fn stage(&self, stage: Stage) -> &Histogram {
        &self.stages[stage as usize]
    }

    /// Turns that were timed.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Bursts in them.
    pub fn bursts(&self) -> u64 {
        self.bursts.load(Ordering::Relaxed)
    }

    /// Packets in these.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }
}

/// Buckets that an octave, from a power of two to the next, is divided into: a sample is known to within three hundredths, so that medians of two readings can be compared. All stages'
/// take 73 KiB a worker, of which samples that are alike touch little.
const PARTS: usize = 32;
const PARTS_LOG: u32 = PARTS.trailing_zeros();

/// Octaves that are told apart; the last goes on without end. 2³⁶ cycles are some 20 seconds.
const OCTAVES: usize = 36 - PARTS_LOG as usize;

/// Below [`PARTS`], a bucket each.
const BUCKETS: usize = PARTS + OCTAVES * PARTS;

/// How often a stage took how many cycles.
pub struct Histogram {
    cycles: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// Samples between two bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The fewest cycles of one.
    pub least: u64,
    /// The most.
    pub most: u64,
    /// How many there are.
    pub samples: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { cycles: AtomicU64::new(0), buckets: [const { AtomicU64::new(0) }; BUCKETS] }
    }
}

impl Histogram {
    /// Notes a sample.
    fn record(&self, cycles: u64) {
        add(&self.cycles, cycles);
        add(&self.buckets[place(cycles)], 1);
    }

    /// The sum of all samples.
    pub fn cycles(&self) -> u64 {
        self.cycles.load(Ordering::Relaxed)
    }

    /// The buckets that have any, from the least to the most.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> {
        let read = |(place, samples): (usize, &AtomicU64)| Bucket {
            least: least(place),
            most: if place + 1 < BUCKETS { least(place + 1) - 1 } else { u64::MAX },
            samples: samples.load(Ordering::Relaxed),
        };
        self.buckets.iter().enumerate().map(read).filter(|bucket| bucket.samples > 0)
    }
}

/// The bucket of a sample: its octave, and the bits that follow the leading one.
fn place(cycles: u64) -> usize {
    let Some(octave) = cycles.max(1).ilog2().checked_sub(PARTS_LOG) else { return cycles as usize };
    // With the leading bit among them, which is the next octave's first part.
    let part = (cycles >> octave) as usize;
    (octave as usize * PARTS + part).min(BUCKETS - 1)
}

/// The fewest cycles of a bucket.
fn least(place: usize) -> u64 {
    match (place / PARTS).checked_sub(1) {
        None => place as u64,
        Some(octave) => ((place % PARTS + PARTS) as u64) << octave,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_lies_between_the_bounds_of_its_bucket() {
        let near = |bit: u32| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + 1, 3 << bit >> 1];
        for cycles in (0..1000).chain((10..63).flat_map(near)).chain([u64::MAX]) {
            let histogram = Histogram::default();
            histogram.record(cycles);
            let Bucket { least, most, samples } = histogram.buckets().next().unwrap();
            assert!(least <= cycles && cycles <= most && samples == 1, "{cycles}: {least} to {most}");
            let is_narrow = most - least <= least / PARTS as u64;
            assert!(is_narrow || least == least_of_the_last(), "{cycles}: {least} to {most}");
        }
        assert!((0..BUCKETS).map(least).is_sorted_by(|a, b| a < b));
    }

    fn least_of_the_last() -> u64 {
        least(BUCKETS - 1)
    }

    /// What a stage's samples are, for samples below [`PARTS`].
    fn samples(profile: &Profile, stage: Stage) -> Vec<(u64, u64)> {
        profile.stage(stage).buckets().map(|bucket| (bucket.least, bucket.samples)).collect()
    }

    #[test]
    fn each_stage_gets_what_passed_before_its_laps() {
        let (clock, time) = Clock::mock();
        let (mut watch, profile) = (Stopwatch::by(clock), Profile::default());
        watch.begin_turn();
        for (cycles, stage) in [(1, Stage::Orders), (2, Stage::Receive), (3, Stage::Decide)] {
            time.increment(cycles);
            watch.lap(stage);
        }
        watch.end_burst(64, &profile);
        for (cycles, stage) in
            [(4, Stage::Receive), (1, Stage::Decide), (2, Stage::Begin), (3, Stage::Decide)]
        {
            time.increment(cycles);
            watch.lap(stage);
        }
        watch.end_burst(1, &profile);
        time.increment(5);
        watch.lap(Stage::Send);
        watch.end_turn(true, &profile);
        assert_eq!((profile.turns(), profile.bursts(), profile.packets()), (1, 2, 65));
        assert_eq!(samples(&profile, Stage::Orders), [(1, 1)]);
        assert_eq!(samples(&profile, Stage::Receive), [(2, 1), (4, 1)]);
        assert_eq!(samples(&profile, Stage::Decide), [(3, 1), (4, 1)]);
        assert_eq!(samples(&profile, Stage::Begin), [(2, 1)], "a burst without new connections is no sample");
        assert_eq!(samples(&profile, Stage::Send), [(5, 1)]);
        assert_eq!(profile.stage(Stage::Decide).cycles(), 7);
    }

    #[test]
    fn one_turn_in_many_is_timed_and_none_without_work() {
        let (clock, time) = Clock::mock();
        let (mut watch, profile) = (Stopwatch::by(clock), Profile::default());
        let mut turn = |had_work| {
            watch.begin_turn();
            time.increment(1);
            watch.lap(Stage::Timers);
            watch.end_turn(had_work, &profile);
            profile.turns()
        };
        assert_eq!(turn(false), 0);
        for n in 0..3 * EVERY {
            assert_eq!(turn(true), u64::from(n / EVERY) + 1);
            turn(false);
        }
        assert_eq!(samples(&profile, Stage::Timers), [(1, 3)]);
    }

    #[test]
    fn a_stopwatch_without_a_clock_never_runs() {
        let (mut watch, profile) = (Stopwatch::stopped(), Profile::default());
        watch.begin_turn();
        watch.lap(Stage::Parse);
        watch.end_burst(64, &profile);
        watch.end_turn(true, &profile);
        assert_eq!((profile.turns(), profile.bursts()), (0, 0));
        assert!(Stage::ALL.iter().all(|stage| profile.stage(*stage).buckets().next().is_none()));
    }
}
