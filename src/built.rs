//! What a template has become: its content, and the engines with it that wait for the next test.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use crate::image::Content;
use crate::vfs::{Mount, Name, Session, Setup};

pub(crate) struct Built {
    /// What the template is called in messages.
    name: Arc<str>,
    content: Content,
    setup: Setup,
    /// The engines that nobody has, each with the thread that had it last.
    waiting: Mutex<Vec<(ThreadId, Warm)>>,
}

/// A store with the template's content, and connections to it that are as good as new.
pub(crate) struct Warm {
    /// Closed before `mount` is dropped, though either order would do: each of them holds the mount too.
    pub(crate) sessions: Vec<Session>,
    pub(crate) mount: Arc<Mount>,
}

/// How many engines wait at most. More than threads run tests at once, each with an engine or two, would not be used.
const MAX_WAITING: usize = 32;

/// How many connections wait with each engine.
const MAX_SESSIONS: usize = 8;

impl Built {
    pub(crate) fn new(name: &str, content: Content, setup: Setup) -> Built {
        Built { name: name.into(), content, setup, waiting: Mutex::new(Vec::new()) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn content(&self) -> &Content {
        &self.content
    }

    pub(crate) fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The store of an engine that has waited; otherwise a new one.
    pub(crate) fn take(&self) -> Warm {
        match self.take_waiting() {
            Some(warm) => {
                warm.mount.expose();
                warm
            }
            None => {
                let name = Name::OfTemplate(self.name.clone());
                Warm { sessions: Vec::new(), mount: Mount::new(self.content.snapshot.clone(), name) }
            }
        }
    }

    /// The latest that this thread has given back, or else anybody: its pages are most likely in this processor's caches.
    fn take_waiting(&self) -> Option<Warm> {
        let this = thread::current().id();
        let mut waiting = self.lock();
        let index = waiting.iter().rposition(|(thread, _)| *thread == this).or_else(|| waiting.len().checked_sub(1))?;
        Some(waiting.remove(index).1)
    }

    /// Takes back the store of an engine that is gone, if nobody else has it, and makes it as it was at first.
    pub(crate) fn take_back(&self, mut warm: Warm) {
        warm.sessions.retain(Session::knows_baseline);
        warm.sessions.truncate(MAX_SESSIONS);
        let references = 1 + warm.sessions.len();
        if !warm.mount.withdraw(references) || !warm.mount.store.renew() {
            return;
        }
        let mut waiting = self.lock();
        if waiting.len() < MAX_WAITING {
            waiting.push((thread::current().id(), warm));
        }
        // One too many is dropped after the lock, for to close connections takes time.
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(ThreadId, Warm)>> {
        // Only ever added to and taken from: nothing can be half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Snapshot;

    fn built() -> Built {
        Built::new("built", Content { snapshot: Snapshot::empty(), is_of_its_time: false }, Setup::DEFAULT)
    }

    #[test]
    fn a_thread_gets_back_what_it_had() {
        let built = built();
        let (own, other) = (built.take(), built.take());
        let before = Arc::downgrade(&own.mount);
        built.take_back(own);
        thread::scope(|scope| scope.spawn(|| built.take_back(other)).join().unwrap());
        assert!(std::ptr::eq(before.as_ptr(), &*built.take().mount), "and not what was given back last");
    }

    #[test]
    fn no_more_wait_than_threads_could_use() {
        let built = built();
        let engines: Vec<Warm> = (0..=MAX_WAITING).map(|_| built.take()).collect();
        engines.into_iter().for_each(|warm| built.take_back(warm));
        assert_eq!(built.lock().len(), MAX_WAITING);
    }
}
