//! A thread in a namespace that works until it is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;

use crate::namespace::Namespace;

/// Dropping it ends the thread and waits for it.
pub(crate) struct Background {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Background {
    /// Starts the work, which looks at its flag now and then and returns once it is set.
    pub(crate) fn start(
        namespace: &Namespace,
        label: &str,
        work: impl FnOnce(&AtomicBool) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = namespace.thread(label, move || work(&flag))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it; the error is what made it end before.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its error would have been `stop`'s; a drop is for when something else went wrong already.
            let _ = thread.join();
        }
    }
}
