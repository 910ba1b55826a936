//! Which frames are taken: those that the rules tell of, and those that workers wish for.
//!
//! There is room for so many targets. What is left is left first, so that a full table takes an edit that makes room; and what was taken is noted one by
//! one, so that nothing of an edit that fails half-way stays. A wish that finds no room is no reason to refuse an edit.

use std::collections::{HashMap, HashSet};

use shunt_dataplane::steer::{Error, Steering, Target};

/// What is taken.
pub struct Taking {
    steering: Box<dyn Steering>,
    taken: HashSet<Target>,
    /// Targets that no rule tells of, each with the number of workers that wish for it.
    wished: HashMap<Target, usize>,
}

impl Taking {
    /// Nothing so far.
    pub fn new(steering: Box<dyn Steering>) -> Self {
        Self { steering, taken: HashSet::new(), wished: HashMap::new() }
    }

    /// The way frames are taken, to tell it of the network.
    pub fn steering(&mut self) -> &mut dyn Steering {
        &mut *self.steering
    }

    /// Takes the frames that the rules want, and of others only what workers wish for, if that `is_granted` at all.
    ///
    /// # Errors
    /// When the kernel refuses; some may have been left or taken by then.
    pub fn follow(&mut self, wanted: &HashSet<Target>, is_granted: bool) -> Result<(), Error> {
        let wished: HashSet<Target> = self.wished.keys().copied().filter(|_| is_granted).collect();
        let stays = |target: &Target| wanted.contains(target) || wished.contains(target);
        // Each service and server has targets of its own, so none is without them meanwhile.
        let gone: Vec<Target> = self.taken.iter().copied().filter(|target| !stays(target)).collect();
        for target in gone {
            self.steering.release(target)?;
            self.taken.remove(&target);
        }
        for target in wanted {
            self.take(*target)?;
        }
        for target in wished {
            self.try_to_take(target);
        }
        Ok(())
    }

    /// Takes what a worker wishes for. One that the kernel refuses is as good as taken for the worker: its client learns sooner from the kernel that the
    /// port is closed than from silence.
    pub fn wish(&mut self, target: Target) {
        *self.wished.entry(target).or_default() += 1;
        self.try_to_take(target);
    }

    /// Leaves what a worker wishes for no more, if nobody else does and no rule tells of it.
    pub fn give_up(&mut self, target: Target, is_of_rules: impl FnOnce() -> bool) {
        let Some(workers) = self.wished.get_mut(&target) else { return };
        *workers -= 1;
        if *workers > 0 {
            return;
        }
        self.wished.remove(&target);
        if !self.taken.contains(&target) || is_of_rules() {
            return;
        }
        match self.steering.release(target) {
            Ok(()) => drop(self.taken.remove(&target)),
            Err(error) => tracing::warn!("frames of a data connection of FTP are not left yet: {error}"),
        }
    }

    fn take(&mut self, target: Target) -> Result<(), Error> {
        if !self.taken.contains(&target) {
            self.steering.take(target)?;
            self.taken.insert(target);
        }
        Ok(())
    }

    fn try_to_take(&mut self, target: Target) {
        if let Err(error) = self.take(target) {
            tracing::warn!("a data connection of FTP will fail: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::{Arc, Mutex};

    use shunt_dataplane::service::{PortId, Protocol};
    use shunt_dataplane::steer::Marked;

    use super::*;

    /// Has room for two targets.
    #[derive(Default)]
    struct Narrow(Arc<Mutex<HashSet<Target>>>);

    impl Steering for Narrow {
        fn take(&mut self, target: Target) -> Result<(), Error> {
            let mut held = self.0.lock().unwrap();
            if held.len() == 2 && !held.contains(&target) {
                let source = std::io::Error::from_raw_os_error(nix::libc::E2BIG);
                return Err(Error::Kernel { what: "taking".to_owned(), hint: None, source });
            }
            held.insert(target);
            Ok(())
        }

        fn release(&mut self, target: Target) -> Result<(), Error> {
            self.0.lock().unwrap().remove(&target);
            Ok(())
        }

        fn set_local_addresses(&mut self, _: &[IpAddr]) -> Result<(), Error> {
            Ok(())
        }

        fn set_marked(&mut self, _: &[Marked]) -> Result<(), Error> {
            Ok(())
        }

        fn set_vlans(&mut self, _: &[(PortId, u32)]) -> Result<(), Error> {
            Ok(())
        }

        fn set_macs(&mut self, _: &[[u8; 6]]) -> Result<(), Error> {
            Ok(())
        }
    }

    fn targets<const N: usize>(ports: [u16; N]) -> HashSet<Target> {
        let target = |port| Target::Service { protocol: Protocol::Tcp, address: [10, 9, 0, 1].into(), port };
        ports.into_iter().map(target).collect()
    }

    fn target(port: u16) -> Target {
        targets([port]).into_iter().next().unwrap()
    }

    #[test]
    fn a_full_table_takes_what_makes_room_and_keeps_nothing_of_what_fails() {
        let steering = Narrow::default();
        let held = Arc::clone(&steering.0);
        let held = || held.lock().unwrap().clone();
        let mut taking = Taking::new(Box::new(steering));
        taking.follow(&targets([1, 2]), true).unwrap();
        taking.follow(&targets([2, 3]), true).unwrap();
        assert_eq!(held(), targets([2, 3]));
        taking.follow(&targets([3, 4, 5]), true).unwrap_err();
        taking.follow(&targets([2, 3]), true).unwrap();
        assert_eq!(held(), targets([2, 3]));
        taking.follow(&targets([]), false).unwrap();
        assert_eq!(held(), targets([]));
    }

    #[test]
    fn a_wish_without_room_refuses_no_edit() {
        let steering = Narrow::default();
        let held = Arc::clone(&steering.0);
        let held = || held.lock().unwrap().clone();
        let mut taking = Taking::new(Box::new(steering));
        taking.follow(&targets([1, 2]), true).unwrap();
        taking.wish(target(20));
        taking.wish(target(20));
        taking.follow(&targets([1, 3]), true).unwrap();
        assert_eq!(held(), targets([1, 3]));
        taking.follow(&targets([1]), true).unwrap();
        assert_eq!(held(), targets([1, 20]));
        taking.give_up(target(20), || false);
        assert_eq!(held(), targets([1, 20]), "another worker wishes for it");
        taking.give_up(target(20), || false);
        assert_eq!(held(), targets([1]));
    }
}
