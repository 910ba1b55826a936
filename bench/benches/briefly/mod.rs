//! How long a bench of some nanoseconds is measured: long enough for its median, and all of them in a few minutes.

use std::time::Duration;

use criterion::Criterion;

/// A second each.
pub fn briefly() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}
