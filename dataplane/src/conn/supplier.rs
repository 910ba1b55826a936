//! The thread that brings the memory of all tables.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::supply::Supply;
use crate::service::Services;

/// A supply, and which services it is for: a machine that serves IPv4 alone should not pay for IPv6.
pub struct Part {
    /// What is brought.
    pub supply: Supply,
    /// Whether these services have connections there.
    pub is_needed: fn(&Services) -> bool,
}

struct Shared {
    parts: Mutex<Vec<Part>>,
    is_over: AtomicBool,
}

/// Brings memory as tables fill up, until it is dropped.
pub struct Supplier {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Supplier {
    /// Begins; nothing is brought yet.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(parts: Vec<Part>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { parts: Mutex::new(parts), is_over: AtomicBool::new(false) });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("supplier".to_owned()).spawn(move || {
            while !theirs.is_over.load(Ordering::Relaxed) {
                // Where the kernel cannot, tables wait for their pages as they did before.
                let _ = theirs.bring(|part| part.supply.has_begun());
                // Who had demand meanwhile has made this return at once.
                std::thread::park();
            }
        })?;
        for part in shared.lock().iter() {
            part.supply.wake(thread.thread().clone());
        }
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Brings what the first connections of these services need, before they come. From then on it follows by itself.
    ///
    /// # Errors
    /// When the kernel cannot: before Linux 5.14, or without memory.
    pub fn prepare(&self, services: &Services) -> std::io::Result<()> {
        self.shared.bring(|part| !part.supply.has_begun() && (part.is_needed)(services))
    }
}

impl Drop for Supplier {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It does not panic, and if it did there would be nothing to do here.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> impl std::ops::DerefMut<Target = Vec<Part>> {
        // Supplies are sound at any moment.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bring(&self, which: impl Fn(&Part) -> bool) -> std::io::Result<()> {
        self.lock().iter_mut().filter(|part| which(part)).try_for_each(|part| part.supply.bring())
    }
}
