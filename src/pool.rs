//! The engines of one template that wait for the next test, with their connections open.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use crate::image::Content;
use crate::vfs::{Mount, Name, Session, Setup};

/// What a template has become: the content and the setup of its engines, and those of them that nobody has.
pub(crate) struct Pool {
    /// What the template is called in messages.
    template: Arc<str>,
    content: Content,
    setup: Setup,
    /// With the thread that had each last.
    warm: Mutex<Vec<(ThreadId, Warm)>>,
}

/// A store with the template's content, and connections to it that are as good as new.
pub(crate) struct Warm {
    /// Closed before `mount` is let go of, though either order would do: each of them holds the mount too.
    pub(crate) sessions: Vec<Session>,
    pub(crate) mount: Arc<Mount>,
}

/// How many engines wait at most. More than threads run tests at once, each with an engine or two, would wait in vain.
const MAX_WARM: usize = 32;

/// How many connections wait with each engine.
const MAX_SESSIONS: usize = 8;

impl Pool {
    pub(crate) fn new(template: &str, content: Content, setup: Setup) -> Pool {
        Pool { template: template.into(), content, setup, warm: Mutex::new(Vec::new()) }
    }

    pub(crate) fn template(&self) -> &str {
        &self.template
    }

    pub(crate) fn content(&self) -> &Content {
        &self.content
    }

    pub(crate) fn setup(&self) -> &Setup {
        &self.setup
    }

    /// An engine's store that has waited; otherwise a new one.
    pub(crate) fn take(&self) -> Warm {
        match self.take_warm() {
            Some(warm) => {
                warm.mount.expose();
                warm
            }
            None => {
                let name = Name::OfTemplate(self.template.clone());
                Warm { sessions: Vec::new(), mount: Mount::new(self.content.snapshot.clone(), name) }
            }
        }
    }

    /// The latest that this thread has given back, or else anybody: its pages are most likely in this processor's caches.
    fn take_warm(&self) -> Option<Warm> {
        let this = thread::current().id();
        let mut warm = self.warm();
        let index = warm.iter().rposition(|(thread, _)| *thread == this).or_else(|| warm.len().checked_sub(1))?;
        Some(warm.remove(index).1)
    }

    /// Takes back the store of an engine that is gone, if nobody else has it, and makes it as it was at first.
    pub(crate) fn take_back(&self, mut warm: Warm) {
        warm.sessions.truncate(MAX_SESSIONS);
        let references = 1 + warm.sessions.len();
        if !warm.mount.withdraw(references) || !warm.mount.store.renew() {
            return;
        }
        let mut all = self.warm();
        if all.len() < MAX_WARM {
            all.push((thread::current().id(), warm));
        }
        // One too many is dropped after the lock, for to close connections takes time.
    }

    fn warm(&self) -> MutexGuard<'_, Vec<(ThreadId, Warm)>> {
        // Only ever added to and taken from: nothing can be half done.
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
