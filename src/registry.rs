use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::snapshot::Snapshot;
use crate::url::{self, DatabaseUrl};

/// The engines that this process shares, one for each database URL. [`Engine::shared`] gets them from here.
pub static MEMORY_ENGINES: MemoryEngines = MemoryEngines::new();

/// A map from database URLs to engines that makes each engine exactly once, however many threads ask for it at once.
///
/// The first who asks for a URL makes its engine, while no lock is held; those who ask for the same one meanwhile wait,
/// those who ask for others don't. When the creation fails or panics, nothing is left of it, and one of those who waited
/// tries in turn.
///
/// ```
/// # use rusqlite_fixtures::{DatabaseUrl, Engine, MEMORY_ENGINES, Result};
/// # fn main() -> Result<()> {
/// let url: DatabaseUrl = "file:orders?mode=memory".parse()?;
/// let engine = MEMORY_ENGINES.get_or_create_with(&url, || {
///     let engine = Engine::new();
///     engine.connect()?.execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY)")?;
///     Ok(engine) // with its schema, before anybody else sees it
/// })?;
/// assert_eq!(engine, Engine::shared("sqlite:///file:orders?mode=memory&cache=shared&uri=true")?);
/// # Ok(())
/// # }
/// ```
pub struct MemoryEngines {
    entries: Mutex<BTreeMap<DatabaseUrl, Entry>>,
    /// Notified whenever a creation has ended, well or not.
    settled: Condvar,
}

enum Entry {
    Ready(Engine),
    BeingCreated { by: ThreadId },
}

impl MemoryEngines {
    /// A map of its own, empty.
    pub const fn new() -> MemoryEngines {
        MemoryEngines { entries: Mutex::new(BTreeMap::new()), settled: Condvar::new() }
    }

    /// `get_or_create` for a URL as it is spelled. An engine that is there is found without any allocation.
    pub(crate) fn get_or_create_spelled(&self, url: &str) -> Result<Engine> {
        let name = url::parse(url)?;
        let found = self.lock().get(&*name).and_then(Entry::engine).cloned();
        match found {
            Some(engine) => Ok(engine),
            None => self.get_or_create(&url.parse()?),
        }
    }

    /// The engine of this URL; the first call makes it, empty.
    ///
    /// # Errors
    /// [`RecursiveCreation`](crate::ErrorKind::RecursiveCreation) inside of the creation of the same one.
    pub fn get_or_create(&self, url: &DatabaseUrl) -> Result<Engine> {
        self.get_or_create_with(url, || Ok(Engine::of(Snapshot::empty(), |_| format!("the shared engine `{url}`"))))
    }

    /// The engine of this URL; the first call makes it with `create`, and while that runs, others wait for it.
    ///
    /// Two creations that ask for each other's URLs, on two threads, wait for ever.
    ///
    /// # Errors
    /// What `create` returns, to the caller whose `create` it was;
    /// [`RecursiveCreation`](crate::ErrorKind::RecursiveCreation) inside of the creation of the same one.
    ///
    /// # Panics
    /// When `create` does.
    pub fn get_or_create_with(&self, url: &DatabaseUrl, create: impl FnOnce() -> Result<Engine>) -> Result<Engine> {
        let mut entries = self.lock();
        loop {
            match entries.get(url) {
                Some(Entry::Ready(engine)) => return Ok(engine.clone()),
                Some(Entry::BeingCreated { by }) if *by == thread::current().id() => {
                    return Err(Error::recursive_creation(url));
                }
                Some(Entry::BeingCreated { .. }) => {
                    entries = self.settled.wait(entries).unwrap_or_else(PoisonError::into_inner);
                }
                None => break,
            }
        }
        entries.insert(url.clone(), Entry::BeingCreated { by: thread::current().id() });
        drop(entries);
        let creation = Creation { engines: self, url };
        let engine = create()?;
        creation.succeed(&engine);
        Ok(engine)
    }

    /// The engine of this URL, if there is one. One that is just being made is none yet.
    pub fn get(&self, url: &DatabaseUrl) -> Option<Engine> {
        self.lock().get(url).and_then(Entry::engine).cloned()
    }

    /// Takes the engine of this URL out, so that the next who asks makes a new one. Those who have it keep it. One that
    /// is just being made stays.
    pub fn remove(&self, url: &DatabaseUrl) -> Option<Engine> {
        let mut entries = self.lock();
        let engine = entries.get(url).and_then(Entry::engine).cloned();
        if engine.is_some() {
            entries.remove(url);
        }
        engine
    }

    /// How many engines there are.
    pub fn len(&self) -> usize {
        self.lock().values().filter_map(Entry::engine).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The URLs that have an engine, in order.
    pub fn urls(&self) -> Vec<DatabaseUrl> {
        let entries = self.lock();
        entries.iter().filter(|(_, entry)| entry.engine().is_some()).map(|(url, _)| url.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DatabaseUrl, Entry>> {
        // What is done under the lock is one change to the map: nothing can be half done when somebody panics.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn engine(&self) -> Option<&Engine> {
        match self {
            Entry::Ready(engine) => Some(engine),
            Entry::BeingCreated { .. } => None,
        }
    }
}

impl Default for MemoryEngines {
    fn default() -> MemoryEngines {
        MemoryEngines::new()
    }
}

impl fmt::Debug for MemoryEngines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.urls()).finish()
    }
}

/// The right to make the engine of a URL. Dropped before it succeeds, also by a panic, it leaves nothing behind.
struct Creation<'a> {
    engines: &'a MemoryEngines,
    url: &'a DatabaseUrl,
}

impl Creation<'_> {
    fn succeed(self, engine: &Engine) {
        self.engines.lock().insert(self.url.clone(), Entry::Ready(engine.clone()));
    }
}

impl Drop for Creation<'_> {
    fn drop(&mut self) {
        let mut entries = self.engines.lock();
        if let Some(Entry::BeingCreated { .. }) = entries.get(self.url) {
            entries.remove(self.url);
        }
        self.engines.settled.notify_all();
    }
}
