//! The warm pool of a template: stores with its content, and connections to them, that are reused by the next test.

use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use crate::content::Snapshot;
use crate::sync::Recovered;
use crate::vfs::{Mount, Name, Session, Setup};

pub(crate) struct WarmPool {
    /// What the template is called in messages.
    name: Arc<str>,
    content: Snapshot,
    setup: Setup,
    /// The stores that no engine uses, each with the thread that used it last.
    waiting: Mutex<Vec<(ThreadId, Warm)>>,
}

/// A store with the template's content, and connections to it that are as new ones.
pub(crate) struct Warm {
    /// Closed before `mount` is dropped, though either order would do: each of them holds the mount too.
    pub(crate) sessions: Vec<Session>,
    pub(crate) mount: Arc<Mount>,
}

/// The most stores that wait. More than the number of threads that run tests at once, each with an engine or two, would
/// not be used.
const MAX_WAITING: usize = 32;

/// The most connections that wait with each store.
const MAX_SESSIONS: usize = 8;

impl WarmPool {
    pub(crate) fn new(name: &str, content: Snapshot, setup: Setup) -> WarmPool {
        WarmPool { name: name.into(), content, setup, waiting: Mutex::new(Vec::new()) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn content(&self) -> &Snapshot {
        &self.content
    }

    pub(crate) fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Takes a store that waits, or makes a new one.
    pub(crate) fn take(&self) -> Warm {
        match self.take_waiting() {
            Some(warm) => {
                warm.mount.register_name();
                warm
            }
            None => {
                let name = Name::OfTemplate(self.name.clone());
                Warm { sessions: Vec::new(), mount: Mount::new(self.content.clone(), name) }
            }
        }
    }

    /// Prefers the store that this thread gave back last: its pages are most likely in this processor's caches.
    fn take_waiting(&self) -> Option<Warm> {
        let this = thread::current().id();
        let mut waiting = self.lock();
        let index = waiting.iter().rposition(|(thread, _)| *thread == this).or_else(|| waiting.len().checked_sub(1))?;
        Some(waiting.remove(index).1)
    }

    /// Takes back the store of an engine that was dropped, and restores its content, unless a connection still uses it.
    pub(crate) fn take_back(&self, mut warm: Warm) {
        warm.sessions.retain(Session::knows_baseline);
        warm.sessions.truncate(MAX_SESSIONS);
        let references = 1 + warm.sessions.len();
        if !warm.mount.unregister_name(references) || !warm.mount.store.renew() {
            return;
        }
        let mut waiting = self.lock();
        if waiting.len() < MAX_WAITING {
            waiting.push((thread::current().id(), warm));
        }
        // A store beyond that is dropped after the lock is released: to close its connections takes time.
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(ThreadId, Warm)>> {
        self.waiting.lock().recovered()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> WarmPool {
        WarmPool::new("a template", Snapshot::empty(), Setup::DEFAULT)
    }

    #[test]
    fn a_thread_gets_back_what_it_had() {
        let pool = pool();
        let (own, other) = (pool.take(), pool.take());
        let before = Arc::downgrade(&own.mount);
        pool.take_back(own);
        thread::scope(|scope| scope.spawn(|| pool.take_back(other)).join().unwrap());
        assert!(std::ptr::eq(before.as_ptr(), &*pool.take().mount), "and not what was given back last");
    }

    #[test]
    fn no_more_wait_than_threads_could_use() {
        let pool = pool();
        let engines: Vec<Warm> = (0..=MAX_WAITING).map(|_| pool.take()).collect();
        engines.into_iter().for_each(|warm| pool.take_back(warm));
        assert_eq!(pool.lock().len(), MAX_WAITING);
    }
}
