use std::fmt;
use std::ops::Deref;
use std::sync::{Mutex, MutexGuard};
use std::thread;

use super::Template;
use crate::engine::{Engine, Standby};
use crate::error::{BoxError, Error, Result};
use crate::sync::Recovered;

/// Values that were made from engines of a template, such as connection pools or a whole application, and that later
/// tests use again.
///
/// To open a pool takes longer than all else in a short test. So a value stays with its engine when a test ends, and the
/// engine's content is restored. The next test gets both.
///
/// ```
/// # use rusqlite_fixtures::{Engine, Kept, KeptValues, Template, rusqlite};
/// static BANK: Template = Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY)");
/// static BANKS: KeptValues<Bank> = KeptValues::new(&BANK);
///
/// struct Bank(rusqlite::Connection); // the application
///
/// fn bank() -> Kept<Bank> {
///     let open = |engine: &Engine| rusqlite::Connection::open(engine.uri()).map(Bank);
///     BANKS.get_or_make(open).unwrap()
/// }
///
/// # for _ in 0..2 {
/// let bank = bank(); // in each test
/// assert_eq!(bank.0.execute("INSERT INTO account VALUES (1)", []), Ok(1));
/// # }
/// ```
///
/// # What is used again
/// When a [`Kept`] is dropped, value and engine are kept if nothing of the test is left in them. Otherwise both are
/// dropped, and the next test makes a new value. They are dropped if
///
/// * the test panics, or calls [`Engine::retire`],
/// * a connection to the engine is in a transaction, or a unit of work, a pooled connection or a clone of the engine is
///   still there,
/// * a connection has run SQL that leaves something in it: temporary tables, `ATTACH`, changes of the schema or of the
///   statistics, pragmas. The pragmas of a connection that is opened later must be those of a connection that was open
///   when the value was made.
///
/// These stay in the connections, and can't be detected: `changes()`, `total_changes()`, `last_insert_rowid()`, and what
/// was set by SQLite's C functions instead of SQL, as rusqlite's functions, hooks, collations, limits, authorizer and
/// busy handler are. So keep values whose connections are used by SQL: of sqlx, sea-orm, diesel. If the test leaves a
/// thread or a task that still uses the value, it disturbs the next test.
pub struct KeptValues<T: 'static> {
    template: &'static Template,
    waiting: Mutex<Vec<Value<T>>>,
}

struct Value<T> {
    value: T,
    /// Dropped after the value, which has connections to it.
    engine: Engine,
    /// `None` if the value can't be used again.
    standby: Option<Standby>,
}

/// The maximum number of values that wait. A test thread uses one or two, so more would stay unused.
const MAX_WAITING: usize = 32;

impl<T: Send> KeptValues<T> {
    /// Creates an empty set of values, for a `static`.
    pub const fn new(template: &'static Template) -> KeptValues<T> {
        KeptValues { template, waiting: Mutex::new(Vec::new()) }
    }

    /// Returns a value of an earlier test, or makes one with `make`, which gets a new engine. The content to which the
    /// engine returns is the content when `make` has returned.
    ///
    /// # Errors
    /// As [`Template::new_engine`]; [`MakeFailed`](crate::ErrorKind::MakeFailed) if `make` fails, which the next call
    /// tries again.
    pub fn get_or_make<E: Into<BoxError>>(
        &'static self,
        make: impl FnOnce(&Engine) -> Result<T, E>,
    ) -> Result<Kept<T>> {
        if let Some(kept) = self.take() {
            return Ok(kept);
        }
        let engine = self.template.observed_engine()?;
        let made = make(&engine);
        self.keep(engine, made)
    }

    /// Like [`get_or_make`](KeptValues::get_or_make), for an async function.
    ///
    /// # Errors
    /// As [`get_or_make`](KeptValues::get_or_make).
    pub async fn get_or_make_async<E: Into<BoxError>>(
        &'static self,
        make: impl AsyncFnOnce(&Engine) -> Result<T, E>,
    ) -> Result<Kept<T>> {
        if let Some(kept) = self.take() {
            return Ok(kept);
        }
        let engine = self.template.observed_engine()?;
        let made = make(&engine).await;
        self.keep(engine, made)
    }

    /// Returns a waiting value. Drops those whose engine is no longer as it was.
    fn take(&'static self) -> Option<Kept<T>> {
        loop {
            let value = self.lock().pop()?;
            if value.standby.as_ref().is_some_and(|standby| standby.holds(&value.engine)) {
                return Some(Kept { of: self, value: Some(value) });
            }
        }
    }

    fn keep<E: Into<BoxError>>(&'static self, engine: Engine, made: Result<T, E>) -> Result<Kept<T>> {
        let value = made.map_err(|cause| Error::not_made(&engine.name(), cause.into()))?;
        let standby = Standby::of(&engine);
        Ok(Kept { of: self, value: Some(Value { value, engine, standby }) })
    }
}

impl<T> KeptValues<T> {
    fn lock(&self) -> MutexGuard<'_, Vec<Value<T>>> {
        self.waiting.lock().recovered()
    }
}

/// A value of [`KeptValues`], to which it returns when it is dropped.
pub struct Kept<T: 'static> {
    of: &'static KeptValues<T>,
    /// `None` only within `drop`.
    value: Option<Value<T>>,
}

impl<T> Kept<T> {
    /// Returns the engine that the value was made from.
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
        let Some(mut value) = self.value.take() else { return };
        let Value { engine, standby: Some(standby), .. } = &mut value else { return };
        if thread::panicking() || !standby.restore(engine) {
            return;
        }
        let mut waiting = self.of.lock();
        if waiting.len() < MAX_WAITING {
            waiting.push(value);
        }
        // Beyond the limit, the value is dropped after the lock is released.
    }
}

impl<T: fmt::Debug> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("value", &**self).field("engine", &self.engine().name()).finish()
    }
}

impl<T> fmt::Debug for KeptValues<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptValues({})", self.template)
    }
}
