use std::fmt;
use std::sync::Arc;

use super::Engine;
use super::url::{self, DatabaseUrl};
use super::warm_pool::WarmPool;
use crate::error::{Error, Result};
use crate::marks;
use crate::once_map::OnceMap;

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
/// let same = "sqlite:///file:orders?mode=memory&cache=shared&uri=true";
/// assert_eq!(engine, Engine::shared(same)?);
/// # Ok(())
/// # }
/// ```
pub struct MemoryEngines(OnceMap<DatabaseUrl, Engine>);

impl MemoryEngines {
    /// A map of its own, empty.
    pub const fn new() -> MemoryEngines {
        MemoryEngines(OnceMap::new())
    }

    /// `get_or_create` for a URL as it is spelled. An engine that is there is found without any allocation.
    pub(crate) fn get_or_create_spelled(&self, url: &str) -> Result<Engine> {
        let name = url::parse(url)?;
        marks::reached(marks::REGISTRY_ASKED);
        match self.0.get(&*name) {
            Some(engine) => Ok(engine),
            None => self.get_or_create(&url.parse()?),
        }
    }

    /// The engine of this URL; the first call makes it, empty.
    ///
    /// # Errors
    /// [`RecursiveCreation`](crate::ErrorKind::RecursiveCreation) inside of the creation of the same one.
    pub fn get_or_create(&self, url: &DatabaseUrl) -> Result<Engine> {
        self.get_or_create_with(url, || Ok(Engine::named(shared_name(url))))
    }

    /// The engine of this URL; the first call makes it with `create`, and while that runs, others wait for it.
    ///
    /// # Errors
    /// What `create` returns, to the caller whose `create` it was;
    /// [`RecursiveCreation`](crate::ErrorKind::RecursiveCreation) inside of the creation of the same one, and inside of
    /// one that it waits for.
    ///
    /// # Panics
    /// When `create` does.
    pub fn get_or_create_with(&self, url: &DatabaseUrl, create: impl FnOnce() -> Result<Engine>) -> Result<Engine> {
        marks::reached(marks::REGISTRY_ASKED);
        let create = || {
            marks::reached(marks::REGISTRY_CREATING);
            let engine = create()?;
            marks::reached(marks::REGISTRY_CREATED);
            Ok(engine)
        };
        self.0.get_or_create(url, create, || Error::recursive_creation(url))
    }

    /// The engine of this URL, which is the template's; the first call makes it.
    pub(crate) fn get_or_create_of(&self, url: &DatabaseUrl, template: &Arc<WarmPool>) -> Result<Engine> {
        let engine = self.get_or_create_with(url, || Ok(Engine::named_of(shared_name(url), template)))?;
        match engine.template() {
            Some(its) if Arc::ptr_eq(its, template) => Ok(engine),
            its => Err(Error::other_template(&shared_name(url), its.map(|its| its.name()), template.name())),
        }
    }

    /// The engine of this URL, if there is one. One that is just being made is none yet.
    pub fn get(&self, url: &DatabaseUrl) -> Option<Engine> {
        self.0.get(url)
    }

    /// Takes the engine of this URL out, so that the next who asks makes a new one. Those who have it keep it. One that
    /// is just being made stays.
    pub fn remove(&self, url: &DatabaseUrl) -> Option<Engine> {
        self.0.remove(url)
    }

    /// How many engines there are.
    pub fn len(&self) -> usize {
        self.urls().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The URLs that have an engine, in order.
    pub fn urls(&self) -> Vec<DatabaseUrl> {
        self.0.keys()
    }
}

impl Engine {
    /// The engine that the whole process shares under this database URL: the first call makes it, empty, and however
    /// many threads ask at once, they get the same one. [`DatabaseUrl`] lists what a URL can be.
    ///
    /// Under a runner that starts a process per test, as cargo-nextest does, tests don't share engines.
    ///
    /// # Errors
    /// [`NotInMemory`](crate::ErrorKind::NotInMemory) and [`InvalidUrl`](crate::ErrorKind::InvalidUrl), as parsing a
    /// `DatabaseUrl`; [`RecursiveCreation`](crate::ErrorKind::RecursiveCreation) inside of the creation of the same one.
    pub fn shared(url: impl AsRef<str>) -> Result<Engine> {
        MEMORY_ENGINES.get_or_create_spelled(url.as_ref())
    }
}

/// What a shared engine is called in messages.
fn shared_name(url: &DatabaseUrl) -> String {
    format!("the shared engine `{url}`")
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
