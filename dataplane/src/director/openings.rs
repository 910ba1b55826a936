//! Frames that are steered to the director for a while, because connections are expected that no rule tells of: FTP's data.
//!
//! The director asks for them, its worker tells control, control has the kernel steer them and says so. Until then whatever would cause such frames must wait,
//! or the kernel gets the first ones and answers them itself.
//!
//! ```text
//!   director: enter ─▶ worker: Take ─▶ control: steer ─▶ worker: Taken ─▶ director: is open
//!   director: leave (the last one) ─▶ worker: Release ─▶ control
//! ```

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::steer::Target;

/// Targets that a worker may have open at once: two for each data connection in passive mode. An XDP map has room for twice as many, besides the rules.
const MOST: usize = 1 << 14;

/// A worker's openings.
pub struct Openings {
    by_target: HashMap<Target, Opening>,
    /// Those that control may have to be told about. Each stands here once at most.
    changed: VecDeque<Target>,
}

#[derive(Clone, Copy, Default)]
struct Opening {
    users: u32,
    /// Whether control was last told to take it.
    is_asked_for: bool,
    /// How often control was told so and has not answered yet. Only the last answer is about what it was last told.
    unanswered: u32,
    is_queued: bool,
}

impl Opening {
    fn is_open(&self) -> bool {
        self.is_asked_for && self.unanswered == 0
    }
}

/// What a worker asks control for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The frames of a target. They are open when control says so.
    Take(Target),
    /// No more of them.
    Release(Target),
}

/// There are as many as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Default for Openings {
    fn default() -> Self {
        Self { by_target: HashMap::with_capacity(MOST), changed: VecDeque::with_capacity(MOST) }
    }
}

impl Openings {
    /// One more connection needs the frames of a target.
    ///
    /// # Errors
    /// When there are too many; nothing has changed then.
    pub fn enter(&mut self, target: Target) -> Result<(), Full> {
        if self.by_target.len() >= MOST && !self.by_target.contains_key(&target) {
            return Err(Full);
        }
        let opening = self.by_target.entry(target).or_default();
        opening.users += 1;
        if opening.users == 1 {
            self.queue(target);
        }
        Ok(())
    }

    /// One connection less needs them. Says whether it was the last.
    pub fn leave(&mut self, target: Target) -> bool {
        let Some(opening) = self.by_target.get_mut(&target) else { return false };
        opening.users = opening.users.saturating_sub(1);
        let is_last = opening.users == 0;
        if is_last {
            self.queue(target);
        }
        is_last
    }

    /// Control has answered that it has the frames of a target steered.
    pub fn opened(&mut self, target: Target) {
        let Some(opening) = self.by_target.get_mut(&target) else { return };
        opening.unanswered = opening.unanswered.saturating_sub(1);
        self.tidy(target);
    }

    /// Forgets a target that nobody needs, and of which control is to say nothing more.
    fn tidy(&mut self, target: Target) {
        let is_over = |opening: &Opening| {
            opening.users == 0 && !opening.is_asked_for && opening.unanswered == 0 && !opening.is_queued
        };
        if self.by_target.get(&target).is_some_and(is_over) {
            self.by_target.remove(&target);
        }
    }

    /// Whether the frames of a target come to the director by now.
    pub fn is_open(&self, target: Target) -> bool {
        self.by_target.get(&target).is_some_and(Opening::is_open)
    }

    /// Whether any connection needs the frames of a target.
    pub fn has(&self, target: Target) -> bool {
        self.by_target.get(&target).is_some_and(|opening| opening.users > 0)
    }

    /// The next thing to ask control for.
    pub fn wish(&mut self) -> Option<Wish> {
        while let Some(target) = self.changed.pop_front() {
            let Some(opening) = self.by_target.get_mut(&target) else { continue };
            opening.is_queued = false;
            let is_needed = opening.users > 0;
            let was_asked_for = std::mem::replace(&mut opening.is_asked_for, is_needed);
            opening.unanswered += u32::from(is_needed && !was_asked_for);
            self.tidy(target);
            match (was_asked_for, is_needed) {
                (false, true) => return Some(Wish::Take(target)),
                (true, false) => return Some(Wish::Release(target)),
                // It came and went, or went and came, before control was told.
                _ => {}
            }
        }
        None
    }

    fn queue(&mut self, target: Target) {
        if let Some(opening) = self.by_target.get_mut(&target).filter(|opening| !opening.is_queued) {
            opening.is_queued = true;
            self.changed.push_back(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;
    use crate::service::Protocol;

    fn target(port: u16) -> Target {
        Target::Service { protocol: Protocol::Tcp, address: [10, 9, 0, 1].into(), port }
    }

    #[test]
    fn it_is_full_at_last_but_not_for_those_who_share() {
        let mut openings = Openings::default();
        for port in 0..MOST as u16 {
            openings.enter(target(port)).unwrap();
        }
        assert_eq!(openings.enter(target(MOST as u16)), Err(Full));
        assert_eq!(openings.enter(target(0)), Ok(()));
        assert!(!openings.leave(target(0)), "somebody else is there");
        assert!(openings.leave(target(0)));
        while let Some(wish) = openings.wish() {
            if let Wish::Take(target) = wish {
                openings.opened(target);
            }
        }
        assert_eq!(openings.enter(target(MOST as u16)), Ok(()));
    }

    proptest! {
        /// Control takes what is needed and nothing else, once it has heard all; and nothing is open before it has, however late it hears and answers.
        #[test]
        fn control_has_what_is_needed(ops in prop::collection::vec((0u8..6, 0u16..4), 0..100)) {
            let mut openings = Openings::default();
            let (mut needed, mut taken) = (HashMap::<Target, u32>::new(), HashSet::new());
            let (mut wishes, mut answers) = (VecDeque::new(), VecDeque::new());
            let hear = |wishes: &mut VecDeque<Wish>, answers: &mut VecDeque<Target>, taken: &mut HashSet<Target>| {
                match wishes.pop_front() {
                    Some(Wish::Take(target)) => {
                        assert!(taken.insert(target));
                        answers.push_back(target);
                    }
                    Some(Wish::Release(target)) => assert!(taken.remove(&target)),
                    None => {}
                }
            };
            for (op, port) in ops {
                let target = target(port);
                let users = needed.entry(target).or_default();
                match op {
                    0 | 1 => {
                        openings.enter(target).unwrap();
                        *users += 1;
                    }
                    2 if *users > 0 => {
                        *users -= 1;
                        prop_assert_eq!(openings.leave(target), *users == 0);
                    }
                    2 => {}
                    3 => wishes.extend(openings.wish()),
                    4 => hear(&mut wishes, &mut answers, &mut taken),
                    _ => answers.pop_front().into_iter().for_each(|target| openings.opened(target)),
                }
                for (target, users) in &needed {
                    prop_assert_eq!(openings.has(*target), *users > 0);
                    prop_assert!(!openings.is_open(*target) || taken.contains(target));
                }
            }
            wishes.extend(std::iter::from_fn(|| openings.wish()));
            while !wishes.is_empty() {
                hear(&mut wishes, &mut answers, &mut taken);
            }
            answers.into_iter().for_each(|target| openings.opened(target));
            prop_assert!(openings.by_target.iter().all(|(target, opening)| opening.is_open() && needed[target] > 0));
            let needed: HashSet<_> = needed.into_iter().filter(|(_, users)| *users > 0).map(|(target, _)| target).collect();
            prop_assert_eq!(taken, needed);
        }
    }
}
