//! Values that were made from engines, and that later tests use again.

use std::fmt;
use std::ops::Deref;
use std::sync::{Mutex, MutexGuard};
use std::thread;

use super::Template;
use crate::engine::{Engine, InitialState};
use crate::error::{BoxError, Error, Result};
use crate::sync::Recovered;

/// Values that are made from engines of a template, such as connection pools or a whole application, and that later
/// tests reuse.
///
/// Opening a pool takes longer than anything else in a short test. So when a test ends, the engine's content is restored,
/// and the value waits with its engine. The next test gets both.
///
/// ```
/// # use rusqlite_fixtures::{Kept, KeptValues, Template, rusqlite::Connection};
/// static BANK: Template = Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY)");
/// static BANKS: KeptValues<Bank> = KeptValues::new(&BANK);
///
/// struct Bank(Connection); // the application
///
/// fn bank() -> Kept<Bank> {
///     BANKS.get_or_make(|engine| Ok(Bank(Connection::open(engine.uri())?))).unwrap()
/// }
///
/// # for _ in 0..2 {
/// let bank = bank(); // in each test
/// assert_eq!(bank.0.execute("INSERT INTO account VALUES (1)", []), Ok(1));
/// # }
/// ```
///
/// A value is kept within a process. So this has no effect under cargo-nextest, which runs each test in a process.
///
/// # Isolation
///
/// The next test gets the value and its engine if the connections to the engine are as they were when the value was
/// made. Otherwise both are dropped, and a new value is made. They are dropped if
///
/// * the test panics, or calls [`Engine::retire`],
/// * 1 ms after the next test has asked, a connection is still in a transaction, or the test still has a unit of work, a
///   pooled connection or a clone of the engine,
/// * something was written after the test,
/// * a connection has compiled a change of the schema (`CREATE TABLE IF NOT EXISTS` too), of the planner's statistics or of
///   settings of FTS5, or has read a schema that another connection has changed,
/// * a connection has used a temporary table or an attached database, in the test or when the value was made,
/// * since the value was made, a connection has run a pragma that sets something. (A connection that is opened later must run
///   the same pragmas as one that was open then, so a pool that opens its first connection during a test is not reused.)
///
/// There are rarer reasons: for example, a fault plan has failed a call, or connections share a cache.
/// [`why_dropped`](KeptValues::why_dropped) returns the reason.
///
/// These stay in a connection and can't be detected:
///
/// * `changes()`, `total_changes()`, `last_insert_rowid()`, `PRAGMA data_version`,
/// * a statement that reads no table and was neither finished nor reset,
/// * what is set by SQLite's C functions instead of SQL. In rusqlite: functions, collations, hooks, limits, an authorizer,
///   the busy handler, a backup into `temp`,
/// * which tables `PRAGMA optimize` would analyze.
///
/// Pragmas that set a limit for the process (`soft_heap_limit`) reach all tests. The value's own state is not reset: a test
/// that shuts down a pool calls [`Engine::retire`]. A thread or a task of a test that continues to use the value disturbs
/// the next test. If the last owner of an `Arc<Kept>` is a thread that does not panic, the panic of the test is not noticed.
pub struct KeptValues<T: 'static> {
    template: &'static Template,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// The values that no test uses.
    waiting: Vec<Value<T>>,
    /// Why the latest value that was dropped was not reused.
    why_dropped: Option<String>,
}

struct Value<T> {
    value: T,
    /// Dropped after the value, which has connections to it.
    engine: Engine,
    /// `None` if the engine is in a file: the value is not reused.
    initial_state: Option<InitialState>,
}

/// The maximum number of values that wait. A test thread uses one or two, so more would stay unused.
const MAX_WAITING: usize = 32;

impl<T: Send> KeptValues<T> {
    /// Creates an empty set of values, for a `static`.
    pub const fn new(template: &'static Template) -> KeptValues<T> {
        KeptValues { template, state: Mutex::new(State { waiting: Vec::new(), why_dropped: None }) }
    }

    /// Returns the value of an earlier test, or makes one with `make`, which gets a new engine of the template. The
    /// content when `make` returns is the content that each test begins with.
    ///
    /// # Errors
    /// As [`Template::new_engine`]; [`MakeFailed`](crate::ErrorKind::MakeFailed) if `make` fails. The next call tries
    /// again.
    pub fn get_or_make(&'static self, make: impl FnOnce(&Engine) -> Result<T, BoxError>) -> Result<Kept<T>> {
        if let Some(kept) = self.take() {
            return Ok(kept);
        }
        let engine = self.template.observed_engine()?;
        let made = make(&engine);
        self.keep(engine, made)
    }

    /// Like [`get_or_make`](KeptValues::get_or_make), with an async function.
    ///
    /// With `#[tokio::test]`, each test has a runtime of its own. So the value must work in another runtime than the one
    /// that it was made in. Pools of sqlx and sea-orm do.
    ///
    /// # Errors
    /// As [`get_or_make`](KeptValues::get_or_make).
    pub async fn get_or_make_async(
        &'static self,
        make: impl AsyncFnOnce(&Engine) -> Result<T, BoxError>,
    ) -> Result<Kept<T>> {
        if let Some(kept) = self.take() {
            return Ok(kept);
        }
        let engine = self.template.observed_engine()?;
        let made = make(&engine).await;
        self.keep(engine, made)
    }

    /// Takes a waiting value, whose engine returns to its first state. Drops those that can't.
    fn take(&'static self) -> Option<Kept<T>> {
        loop {
            let mut value = self.lock().waiting.pop()?;
            let restored = value.initial_state.as_mut().map_or(Ok(()), |state| state.restore(&value.engine));
            match restored {
                Ok(()) => return Some(Kept { of: self, value: Some(value) }),
                Err(obstacle) => self.lock().why_dropped = Some(obstacle.to_string()),
            }
        }
    }

    fn keep(&'static self, engine: Engine, made: Result<T, BoxError>) -> Result<Kept<T>> {
        let value = made.map_err(|cause| Error::not_made(&engine.name(), cause))?;
        let initial_state = InitialState::of(&engine);
        Ok(Kept { of: self, value: Some(Value { value, engine, initial_state }) })
    }
}

impl<T> KeptValues<T> {
    /// Returns why the latest value that was dropped was not reused. `None` if none was dropped. A reason that may pass by
    /// itself, such as an open transaction, is found when the next test asks for a value.
    pub fn why_dropped(&self) -> Option<String> {
        self.lock().why_dropped.clone()
    }

    /// Keeps the value for the next test, or drops it.
    fn put_back(&self, mut value: Value<T>) {
        let reason = match &mut value.initial_state {
            _ if thread::panicking() => Some("the test panicked".to_owned()),
            Some(state) => state.end_test(&value.engine).err().map(|obstacle| obstacle.to_string()),
            None => Some("the engine is in a file, where nothing observes what is done to connections".to_owned()),
        };
        let mut state = self.lock(); // unlocked before a value is dropped
        if reason.is_some() {
            state.why_dropped = reason;
        } else if state.waiting.len() == MAX_WAITING {
            state.why_dropped = Some("32 values wait already".to_owned());
        } else {
            state.waiting.push(value);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().recovered()
    }
}

/// A value of [`KeptValues`], to which it returns when it is dropped.
#[must_use = "the value is put back when this is dropped"]
pub struct Kept<T: 'static> {
    of: &'static KeptValues<T>,
    /// `None` only within `drop`.
    value: Option<Value<T>>,
}

impl<T> Kept<T> {
    /// Returns the engine that the value was made from. Its [`reset`](Engine::reset) restores the content of the template,
    /// without what was written when the value was made.
    pub fn engine(&self) -> &Engine {
        &self.value().engine
    }

    fn value(&self) -> &Value<T> {
        self.value.as_ref().expect("it has its value until it is dropped")
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value().value
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        self.value.take().into_iter().for_each(|value| self.of.put_back(value));
    }
}

impl<T> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("engine", &self.engine().name()).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for KeptValues<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptValues({})", self.template)
    }
}
