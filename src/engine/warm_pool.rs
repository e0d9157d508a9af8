//! The warm pool of a template: stores with its content, and connections to them, that the next test reuses.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use crate::content::Snapshot;
use crate::content::snapshot::JournalMode;
use crate::error::{Error, Result};
use crate::sync::Recovered;
use crate::vfs::{self, Mount, Name, Session, Setup};

pub(crate) struct WarmPool {
    /// The template's name in messages.
    name: Arc<str>,
    content: Snapshot,
    setup: Setup,
    /// A file with the content, for engines in files.
    file: Mutex<Option<PathBuf>>,
    /// The stores that no engine uses, each with the thread that used it last.
    waiting: Mutex<Vec<(ThreadId, Warm)>>,
}

/// A store with the template's content, and clean connections to it.
pub(crate) struct Warm {
    /// They are closed before `mount` is dropped, though either order is correct, because each of them holds the mount
    /// too.
    pub(crate) sessions: Vec<Session>,
    pub(crate) mount: Arc<Mount>,
}

/// The maximum number of stores in the pool. A test thread uses one or two engines, so more stores would stay unused.
const MAX_WAITING: usize = 32;

/// The maximum number of connections that are kept with each store.
const MAX_SESSIONS: usize = 8;

impl WarmPool {
    pub(crate) fn new(name: &str, content: Snapshot, setup: Setup) -> WarmPool {
        WarmPool { name: name.into(), content, setup, file: Mutex::new(None), waiting: Mutex::new(Vec::new()) }
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

    /// Returns the path of a file with the content, which the first call writes. No connection uses it: engines in files
    /// begin as copies of it.
    pub(crate) fn file(&self) -> Result<PathBuf> {
        let mut file = self.file.lock().recovered();
        if let Some(path) = &*file {
            return Ok(path.clone());
        }
        let path = vfs::new_temporary_path("template").map_err(Error::no_temporary_file)?;
        self.content.in_journal_mode(JournalMode::Wal).save(&path)?;
        *file = Some(path.clone());
        Ok(path)
    }

    /// Takes a store from the pool, or creates a new one.
    pub(crate) fn take(&self) -> Warm {
        match self.take_waiting() {
            Some(warm) => {
                warm.mount.register_name();
                warm
            }
            None => {
                let name = Name::OfTemplate(self.name.clone());
                Warm {
                    sessions: Vec::new(),
                    mount: Mount::in_surroundings(self.content.clone(), name, self.setup.surroundings),
                }
            }
        }
    }

    /// Prefers the store that this thread returned last: its pages are most likely in this processor's caches.
    fn take_waiting(&self) -> Option<Warm> {
        let this = thread::current().id();
        let mut waiting = self.lock();
        let index = waiting.iter().rposition(|(thread, _)| *thread == this).or_else(|| waiting.len().checked_sub(1))?;
        Some(waiting.remove(index).1)
    }

    /// Takes back the store of an engine that was dropped, and restores its content, unless a connection still uses it.
    pub(crate) fn recycle(&self, mut warm: Warm) {
        warm.sessions.retain(Session::knows_baseline);
        warm.sessions.truncate(MAX_SESSIONS);
        let references = 1 + warm.sessions.len();
        if !warm.mount.unregister_name(references) || !warm.mount.store.renew() {
            return;
        }
        warm.mount.restart(self.setup.surroundings);
        let mut waiting = self.lock();
        if waiting.len() < MAX_WAITING {
            waiting.push((thread::current().id(), warm));
        }
        // Beyond the limit, the store is dropped after the lock is released: closing its connections takes time.
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
    fn a_thread_gets_the_store_that_it_returned() {
        let pool = pool();
        let (own, other) = (pool.take(), pool.take());
        let before = Arc::downgrade(&own.mount);
        pool.recycle(own);
        thread::scope(|scope| scope.spawn(|| pool.recycle(other)).join().unwrap());
        assert!(std::ptr::eq(before.as_ptr(), &*pool.take().mount), "not the store that was returned last");
    }

    #[test]
    fn the_pool_keeps_no_more_stores_than_its_limit() {
        let pool = pool();
        let engines: Vec<Warm> = (0..=MAX_WAITING).map(|_| pool.take()).collect();
        engines.into_iter().for_each(|warm| pool.recycle(warm));
        assert_eq!(pool.lock().len(), MAX_WAITING);
    }
}
