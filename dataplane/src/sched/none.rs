//! No scheduler: a service that turns every new connection away, whatever real servers it has, as `ip_vs_schedule` does without one. Those that it
//! had before it was given this name go on.

use super::{Choice, Request, Scheduler};
use crate::service::Service;
use crate::stats::Counters;

/// The scheduler `none`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

impl Scheduler for Nobody {
    fn choose<'a>(&mut self, _service: &'a Service, _request: &Request, _counters: &Counters) -> Choice<'a> {
        None
    }

    fn boxed(&self) -> Box<dyn Scheduler> {
        Box::new(*self)
    }

    fn has_history(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use crate::sched::bench::Bench;

    #[test]
    fn nobody_is_chosen() {
        let mut bench = Bench::new("none");
        bench.weight('A', 10);
        assert_eq!(bench.choices(2), "--");
    }
}
