use std::fmt;
use std::sync::Arc;

use super::Engine;
use super::url::{self, DatabaseUrl};
use super::warm_pool::WarmPool;
use crate::error::{Error, Result};
use crate::failure;
use crate::marks;
use crate::once_map::OnceMap;

/// The engines that this process shares, one for each database URL. [`Engine::shared`] gets them from here.
pub static MEMORY_ENGINES: MemoryEngines = MemoryEngines::new();

/// A map from database URLs to engines that creates each engine exactly once, even if several threads ask at once.
///
/// The first thread that asks for a URL creates its engine, without holding a lock. Meanwhile threads that ask for the
/// same URL wait; threads that ask for another URL don't. If the creation fails or panics, it leaves no entry, and one
/// of the waiting threads creates the engine.
///
/// ```
/// # use rusqlite_fixtures::{DatabaseUrl, Engine, MEMORY_ENGINES, Result};
/// # fn main() -> Result<()> {
/// let url: DatabaseUrl = "file:orders?mode=memory".parse()?;
/// let engine = MEMORY_ENGINES.get_or_create_with(&url, || {
///     let engine = Engine::new();
///     engine.connect()?.execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY)")?;
///     Ok(engine) // no other thread sees it without its schema
/// })?;
/// let same = "sqlite:///file:orders?mode=memory&cache=shared&uri=true";
/// assert_eq!(engine, Engine::shared(same)?);
/// # Ok(())
/// # }
/// ```
pub struct MemoryEngines(OnceMap<DatabaseUrl, Engine>);

impl MemoryEngines {
    /// Creates an empty map.
    pub const fn new() -> MemoryEngines {
        MemoryEngines(OnceMap::new())
    }

    /// Like `get_or_create`, for a URL that is not parsed yet. Finds an existing engine without an allocation.
    pub(crate) fn get_or_create_unparsed(&self, url: &str) -> Result<Engine> {
        let name = url::parse(url)?;
        failure::prepare();
        marks::reached(marks::REGISTRY_ASKED);
        match self.0.get(&*name) {
            Some(engine) => Ok(engine),
            None => self.get_or_create(&url.parse()?),
        }
    }

    /// Returns the engine of this URL; the first call creates it, empty, or opens its file.
    ///
    /// # Errors
    /// [`RecursiveCreation`](crate::ErrorKind::RecursiveCreation) within the creation of the same engine; for a file, as
    /// [`Engine::file`].
    pub fn get_or_create(&self, url: &DatabaseUrl) -> Result<Engine> {
        self.get_or_create_with(url, || match url.path() {
            Some(path) => Engine::shared_file(path),
            None => Engine::named(shared_name(url)),
        })
    }

    /// Returns the engine of this URL; the first call creates it with `create`, and other calls wait meanwhile.
    ///
    /// # Errors
    /// The error of `create`, for the caller that passed it; [`RecursiveCreation`](crate::ErrorKind::RecursiveCreation)
    /// within the creation of the same engine, or of one that this creation waits for.
    ///
    /// # Panics
    /// If `create` panics.
    pub fn get_or_create_with(&self, url: &DatabaseUrl, create: impl FnOnce() -> Result<Engine>) -> Result<Engine> {
        failure::prepare();
        marks::reached(marks::REGISTRY_ASKED);
        let create = || {
            marks::reached(marks::REGISTRY_CREATING);
            let engine = create()?;
            marks::reached(marks::REGISTRY_CREATED);
            Ok(engine)
        };
        self.0.get_or_create(url, create, || Error::recursive_creation(url))
    }

    /// Returns the engine of this URL and template; the first call creates it.
    pub(crate) fn get_or_create_of(&self, url: &DatabaseUrl, template: &Arc<WarmPool>) -> Result<Engine> {
        let engine = self.get_or_create_with(url, || match url.path() {
            Some(path) => Engine::shared_file_of(path, template),
            None => Engine::named_of(shared_name(url), template),
        })?;
        match engine.template() {
            Some(its) if Arc::ptr_eq(its, template) => Ok(engine),
            its => Err(Error::other_template(&shared_name(url), its.map(|its| its.name()), template.name())),
        }
    }

    /// Returns the engine of this URL, if it exists. Does not return an engine that is being created.
    pub fn get(&self, url: &DatabaseUrl) -> Option<Engine> {
        self.0.get(url)
    }

    /// Removes the engine of this URL from the map, so that the next call creates a new one. Existing handles stay
    /// valid. An engine that is being created is not removed.
    pub fn remove(&self, url: &DatabaseUrl) -> Option<Engine> {
        self.0.remove(url)
    }

    /// Returns the number of engines.
    pub fn len(&self) -> usize {
        self.urls().len()
    }

    /// Returns whether there is no engine.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the URLs that have an engine, in order.
    pub fn urls(&self) -> Vec<DatabaseUrl> {
        self.0.keys()
    }
}

impl Engine {
    /// Returns the engine that the whole process shares under this database URL. The first call creates it, empty;
    /// threads that ask at the same time get the same one. [`DatabaseUrl`] lists the URLs.
    ///
    /// Some runners, such as cargo-nextest, start a process for each test. There, tests don't share engines.
    ///
    /// # Errors
    /// [`NotInMemory`](crate::ErrorKind::NotInMemory) and [`InvalidUrl`](crate::ErrorKind::InvalidUrl), as parsing a
    /// `DatabaseUrl`; [`RecursiveCreation`](crate::ErrorKind::RecursiveCreation) within the creation of the same
    /// engine; for a file, as [`Engine::file`].
    pub fn shared(url: impl AsRef<str>) -> Result<Engine> {
        MEMORY_ENGINES.get_or_create_unparsed(url.as_ref())
    }
}

/// Returns the name of a shared engine in messages.
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
