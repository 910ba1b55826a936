//! How the NICs deal frames out to the queues that workers have, and what becomes of it when an operator changes that while the director runs: key, indirection table and hashed
//! fields (`ethtool -X`, `ethtool -N … rx-flow-hash`), the number of queues (`ethtool -L`).
//!
//! It is read again every few seconds, which is a dozen ioctls for each interface on a thread that has time. Before Linux 6.17 the kernel tells nobody of the first kind of change
//! (`ETHTOOL_MSG_RSS_NTF`), and until the change is seen replies are handed over to their connections' owners, which costs speed and nothing else.

use std::io;
use std::sync::Arc;

use shunt_dataplane::port::ethtool::Ethtool;
use shunt_dataplane::service::{Protocol, Sorted, Spread, WorkerId};

/// The interfaces' queues, all of which workers have.
pub struct Queues {
    workers: usize,
    interfaces: Vec<Interface>,
    ask: Ask,
    spread: Option<Arc<Sorted>>,
}

/// Asks an interface, by its name; nothing when it does not answer now.
type Ask = Box<dyn Fn(&str) -> Option<Dealing>>;

struct Interface {
    name: String,
    /// Queues that sockets were bound to.
    opened: u32,
    /// What was said last of how many there are.
    said: u32,
}

/// What an interface says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dealing {
    /// Queues that frames may come in by.
    pub queues: u32,
    /// How they are dealt out to them, where the driver tells.
    pub hash: Option<Hash>,
}

/// A receive hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hash {
    key: Vec<u8>,
    /// The queues of the indirection table.
    table: Vec<u32>,
    /// Whether it is of addresses and ports, for TCP and for UDP.
    of_ports: [bool; 2],
}

impl Queues {
    /// The queues of interfaces, so many of each, that `workers` workers have in turn: queue 0 the first one, and so on.
    pub fn new(
        opened: impl IntoIterator<Item = (String, u32)>,
        workers: usize,
        ask: impl Fn(&str) -> Option<Dealing> + 'static,
    ) -> Self {
        let interfaces = opened.into_iter().map(|(name, opened)| Interface { name, opened, said: opened });
        let mut queues = Self { workers, interfaces: interfaces.collect(), ask: Box::new(ask), spread: None };
        queues.look();
        queues
    }

    /// Looks at them again. Says whether they deal out otherwise than before.
    pub fn look(&mut self) -> bool {
        let asked: Option<Vec<Dealing>> =
            self.interfaces.iter().map(|interface| (self.ask)(&interface.name)).collect();
        // One that is being reset, or is gone, says nothing of what will be.
        let Some(dealings) = asked else { return false };
        for (interface, dealing) in self.interfaces.iter_mut().zip(&dealings) {
            interface.watch(dealing.queues);
        }
        let mut all = dealings.iter().zip(&self.interfaces).map(|(dealing, interface)| {
            dealing.hash.as_ref().and_then(|hash| hash.spread(interface.opened, self.workers))
        });
        let first = all.next().flatten();
        let spread = first.filter(|first| all.all(|other| other.as_ref() == Some(first)));
        if self.spread.as_ref().map(|sorted| sorted.spread()) == spread.as_ref() {
            return false;
        }
        let has_changed = if self.spread.is_some() { "has changed" } else { "is known" };
        match &spread {
            Some(spread) => tracing::info!(
                "the receive hash {has_changed}: FullNAT takes ports whose replies come to the right worker{}",
                match spread.hashes_ports_of(Protocol::Udp as u8) {
                    true => "",
                    false => ", but for UDP, whose ports are not hashed",
                }
            ),
            None => tracing::warn!(
                "the receive hash has changed, and does not lead replies of FullNAT to the right worker any more: they are handed over, which costs speed. \
                 It must be toeplitz, of TCP's addresses and ports, the same on all interfaces, and lead to several workers (ethtool -x IF, ethtool -n IF rx-flow-hash tcp4)"
            ),
        }
        self.spread = spread.map(|spread| Arc::new(Sorted::new(spread)));
        true
    }

    /// How frames come to workers, where the interfaces say, and all do it alike.
    pub fn spread(&self) -> Option<&Arc<Sorted>> {
        self.spread.as_ref()
    }
}

impl Interface {
    /// Says once what it means that there are other queues than the sockets'.
    fn watch(&mut self, queues: u32) {
        if queues == self.said {
            return;
        }
        self.said = queues;
        let Self { name, opened, .. } = self;
        match queues.cmp(opened) {
            std::cmp::Ordering::Equal => tracing::info!("{name} has its {opened} receive queue(s) again"),
            std::cmp::Ordering::Greater => tracing::warn!(
                "{name} has {queues} receive queues, {opened} when the director began: it does not get what comes in by the others. Restart the director, or \
                 go back (ethtool -L {name})"
            ),
            std::cmp::Ordering::Less => tracing::warn!(
                "{name} has {queues} receive queue(s), {opened} when the director began: workers of the others get nothing from it. Restart the director, or \
                 go back (ethtool -L {name})"
            ),
        }
    }
}

impl Dealing {
    /// What an interface says; nothing when it does not exist, or is busy with itself.
    pub fn of(interface: &str) -> Option<Self> {
        let ethtool = Ethtool::open(interface).ok()?;
        let queues = receiving(&ethtool)?;
        let [of_tcp, of_udp] = [false, true].map(|udp| told(ethtool.hashes_ports(udp)));
        let of_ports = [of_tcp?, of_udp?].map(|of_ports| of_ports.unwrap_or(false));
        let hash = told(ethtool.receive_hash())?.map(|(key, table)| Hash { key, table, of_ports });
        Some(Self { queues, hash })
    }
}

impl Hash {
    /// How it deals frames out to workers that have queues in turn.
    fn spread(&self, queues: u32, workers: usize) -> Option<Spread> {
        let [of_tcp, of_udp] = self.of_ports;
        // What goes to a queue that nobody has comes to no worker.
        if !of_tcp || self.table.iter().any(|queue| *queue >= queues) {
            return None;
        }
        let table = self.table.iter().map(|queue| WorkerId((*queue as usize % workers) as u8));
        Spread::new(self.key.clone(), table.collect(), of_udp)
    }
}

/// Queues that frames of an interface may come in by; nothing when it does not say now.
pub fn count(interface: &str) -> Option<u32> {
    receiving(&Ethtool::open(interface).ok()?)
}

fn receiving(ethtool: &Ethtool) -> Option<u32> {
    // A driver that never says has one.
    Some(told(ethtool.channels())?.map_or(1, |channels| channels.receiving().max(1)))
}

/// Tells a driver that does not say from one that cannot say now.
fn told<T>(answer: io::Result<T>) -> Option<Option<T>> {
    match answer {
        Ok(answer) => Some(Some(answer)),
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => Some(None),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// Two NICs of four queues, for two workers; what they say may be changed.
    fn two() -> (Queues, Rc<RefCell<[Option<Dealing>; 2]>>) {
        let hash = Hash { key: (0..40).collect(), table: vec![0, 1, 2, 3], of_ports: [true, false] };
        let said =
            Rc::new(RefCell::new([(); 2].map(|()| Some(Dealing { queues: 4, hash: Some(hash.clone()) }))));
        let nics = Rc::clone(&said);
        let ask = move |name: &str| nics.borrow()[usize::from(name == "eth1")].clone();
        (Queues::new([("eth0".to_owned(), 4), ("eth1".to_owned(), 4)], 2, ask), said)
    }

    /// Changes both NICs' hash.
    fn change(said: &RefCell<[Option<Dealing>; 2]>, how: impl Fn(&mut Hash)) {
        said.borrow_mut().iter_mut().flatten().filter_map(|dealing| dealing.hash.as_mut()).for_each(how);
    }

    fn workers(queues: &Queues) -> Option<Vec<u8>> {
        let spread = queues.spread()?.spread();
        Some((0..spread.places()).map(|place| spread.worker_at(place).0).collect())
    }

    #[test]
    fn a_change_is_seen_once_and_nothing_else_is_one() {
        let (mut queues, said) = two();
        assert_eq!(workers(&queues), Some(vec![0, 1, 0, 1]));
        let first = Arc::clone(queues.spread().unwrap());
        assert!(!queues.look() && Arc::ptr_eq(queues.spread().unwrap(), &first));
        change(&said, |hash| hash.table = vec![0, 0, 0, 1]);
        assert!(queues.look() && !queues.look());
        assert_eq!(workers(&queues), Some(vec![0, 0, 0, 1]));
        change(&said, |hash| hash.key.reverse());
        assert!(queues.look() && !queues.look());
        change(&said, |hash| hash.of_ports = [true, true]);
        assert!(queues.look() && !queues.look());
        // Other queues of the same workers.
        change(&said, |hash| hash.table = vec![2, 0, 2, 3]);
        assert!(!queues.look());
    }

    #[test]
    fn what_cannot_be_followed_is_no_spread_and_comes_back() {
        for spoil in [
            |hash: &mut Hash| hash.of_ports = [false, true],
            |hash: &mut Hash| hash.table = vec![0, 1, 2, 4],
            |hash: &mut Hash| hash.table = vec![2, 2, 2, 2],
        ] {
            let (mut queues, said) = two();
            let before = said.borrow().clone();
            change(&said, spoil);
            assert!(queues.look() && queues.spread().is_none() && !queues.look());
            *said.borrow_mut() = before;
            assert!(queues.look());
            assert_eq!(workers(&queues), Some(vec![0, 1, 0, 1]));
        }
        // One NIC alone.
        let (mut queues, said) = two();
        said.borrow_mut()[1].as_mut().unwrap().hash = None;
        assert!(queues.look() && queues.spread().is_none());
    }

    #[test]
    fn a_nic_that_does_not_answer_has_changed_nothing() {
        let (mut queues, said) = two();
        said.borrow_mut()[0] = None;
        change(&said, |hash| hash.table = vec![0, 0, 0, 1]);
        assert!(!queues.look());
        assert_eq!(workers(&queues), Some(vec![0, 1, 0, 1]));
        assert_eq!(Dealing::of("no-such-nic"), None);
    }

    #[test]
    fn that_there_are_other_queues_is_said_once() {
        let (mut queues, said) = two();
        for (now, told) in [(4, 4), (8, 8), (8, 8), (2, 2), (4, 4)] {
            said.borrow_mut()[0].as_mut().unwrap().queues = now;
            queues.look();
            assert_eq!(queues.interfaces[0].said, told);
            assert_eq!(queues.interfaces[1].said, 4);
        }
    }
}
