//! Control's view of the workers: what it sends them, and what they answer.

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use shunt_dataplane::director::{Listed, Place, Wish};
use shunt_dataplane::service::{Epoch, LinkId, Network, Services, Snapshot, Sysctls, Timeouts};
use shunt_dataplane::stats::Counters;
use shunt_dataplane::steer::Target;
use shunt_dataplane::worker::LISTING_STEP;
use shunt_dataplane::worker::link::{Answer, Command, Handle};

/// How long a worker may take to answer. It looks at its commands between bursts, some microseconds apart; one that is silent for
/// this long is stuck, and so is the director.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a listing of connections has got to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    worker: usize,
    place: Place,
}

/// The workers, and the snapshot they work by.
pub struct Engine {
    workers: Vec<(Handle, JoinHandle<()>)>,
    /// Readable when a worker has answered.
    bell: tokio::net::UnixStream,
    snapshot: Snapshot,
    counters: Arc<Counters>,
    /// Neighbours that packets wait for.
    wanted: Vec<(LinkId, IpAddr)>,
    /// What workers wish to have steered, and which of them.
    wishes: Vec<(usize, Wish)>,
    /// A page of a listing that has come in.
    listed: Vec<(Option<Place>, Vec<Listed>)>,
}

impl Engine {
    /// Takes charge of running workers. `bell` is the other end of their answering line.
    ///
    /// # Errors
    /// When the line cannot be polled.
    pub fn new(
        workers: Vec<(Handle, JoinHandle<()>)>,
        bell: UnixStream,
        snapshot: Snapshot,
        counters: Arc<Counters>,
    ) -> anyhow::Result<Self> {
        bell.set_nonblocking(true)?;
        let bell = tokio::net::UnixStream::from_std(bell).context("cannot poll the workers' answers")?;
        Ok(Self {
            workers,
            bell,
            snapshot,
            counters,
            wanted: Vec::new(),
            wishes: Vec::new(),
            listed: Vec::new(),
        })
    }

    /// The counters of all workers.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The snapshot that every worker has reached.
    pub fn epoch(&self) -> Epoch {
        self.snapshot.epoch
    }

    /// Gives the workers other services, timeouts and settings; returns when all of them work by these.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub async fn serve(
        &mut self,
        services: Services,
        timeouts: Timeouts,
        sysctls: Sysctls,
    ) -> anyhow::Result<()> {
        self.snapshot.services = Arc::new(services);
        self.snapshot.timeouts = timeouts;
        self.snapshot.sysctls = sysctls;
        self.publish().await
    }

    /// Gives the workers another network; returns when all of them work by it.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub async fn route(&mut self, network: Network) -> anyhow::Result<()> {
        self.snapshot.network = Arc::new(network);
        self.publish().await
    }

    /// A page of connections, and where the next one begins if there is one. Between two pages connections come and go; one that stays is on one of them.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub async fn connections(&mut self, from: Cursor) -> anyhow::Result<(Vec<Listed>, Option<Cursor>)> {
        let Cursor { worker, place } = from;
        self.send(worker, Command::List { from: place, connections: Vec::with_capacity(LISTING_STEP) })?;
        let (next, connections) = loop {
            self.listen().await?;
            if let Some(page) = self.listed.pop() {
                break page;
            }
        };
        let next = match next {
            Some(place) => Some(Cursor { worker, place }),
            None => Some(Cursor { worker: worker + 1, place: Place::default() }),
        };
        Ok((connections, next.filter(|next| next.worker < self.workers.len())))
    }

    /// Waits until a worker has answered something. Cancel safe: nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the line is broken.
    pub async fn heard(&mut self) -> anyhow::Result<()> {
        self.bell.readable().await?;
        self.collect();
        Ok(())
    }

    /// The neighbours that packets have begun to wait for since the last call.
    pub fn wanted(&mut self) -> Vec<(LinkId, IpAddr)> {
        std::mem::take(&mut self.wanted)
    }

    /// What workers wish to have steered since the last call, in order, and which of them.
    pub fn wishes(&mut self) -> Vec<(usize, Wish)> {
        std::mem::take(&mut self.wishes)
    }

    /// Tells a worker that the frames it wished for come to it by now. Says whether there was room to tell it.
    pub fn opened(&self, worker: usize, target: Target) -> bool {
        let (handle, _) = &self.workers[worker];
        handle.send(Command::Opened(target)).is_ok()
    }

    /// Stops all workers and waits for them to end.
    pub fn stop(self) {
        for (handle, _) in &self.workers {
            // A queue that is full belongs to a stuck worker; the process ends without it.
            let _ = handle.send(Command::Stop);
        }
        for (_, thread) in self.workers {
            if thread.join().is_err() {
                tracing::error!("a worker had panicked; this is a bug in shunt");
            }
        }
    }

    /// Whether every worker is still running.
    pub fn is_alive(&self) -> bool {
        self.workers.iter().all(|(_, thread)| !thread.is_finished())
    }

    async fn publish(&mut self) -> anyhow::Result<()> {
        self.snapshot.epoch = Epoch(self.snapshot.epoch.0 + 1);
        for worker in 0..self.workers.len() {
            // One each: a worker counts who uses it with each new connection, and two would take the count from one another.
            self.send(worker, Command::Adopt(Arc::new(self.snapshot.clone())))?;
        }
        while self.workers.iter().any(|(handle, _)| handle.reached() < self.snapshot.epoch) {
            self.listen().await?;
        }
        Ok(())
    }

    fn send(&self, worker: usize, command: Command) -> anyhow::Result<()> {
        let (handle, _) = &self.workers[worker];
        handle.send(command).map_err(|_| anyhow::anyhow!("worker {worker} does not take commands any more"))
    }

    async fn listen(&mut self) -> anyhow::Result<()> {
        match tokio::time::timeout(PATIENCE, self.heard()).await {
            Ok(heard) => heard,
            Err(_) => anyhow::bail!("a worker has not answered for {} seconds", PATIENCE.as_secs()),
        }
    }

    fn collect(&mut self) {
        // Hush the bell first: what is answered after this rings it again.
        let mut rung = [0; 256];
        while matches!(self.bell.try_read(&mut rung), Ok(n) if n > 0) {}
        for (worker, (handle, _)) in self.workers.iter().enumerate() {
            while let Some(answer) = handle.answer() {
                match answer {
                    Answer::Retired(snapshot) => drop(snapshot),
                    Answer::Resolve(link, neighbour) => self.wanted.push((link, neighbour)),
                    Answer::Steer(wish) => self.wishes.push((worker, wish)),
                    Answer::Listed { next, connections } => self.listed.push((next, connections)),
                }
            }
        }
    }
}
