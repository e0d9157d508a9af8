use std::fmt;
use std::ops::Deref;

use rusqlite::{Connection, Savepoint};

use super::Engine;
use super::lease::{Lease, Lent};
use crate::difference::{Changes, compare};
use crate::error::{Error, Result};

/// One transaction on an [`Engine`], with its own connection.
///
/// It derefs to that [`Connection`](https://docs.rs/rusqlite/latest/rusqlite/struct.Connection.html), so it can be
/// passed to code that takes `&Connection`. If it is dropped before it is committed, even by a panic, it is rolled
/// back.
///
/// Code under test may commit or roll back by itself. This ends the unit of work. What was committed stays, and each
/// later statement commits by itself. [`commit`](UnitOfWork::commit) and [`rollback`](UnitOfWork::rollback) then return
/// an error; a drop reports nothing.
///
/// ```
/// # use rusqlite_fixtures::{Engine, Result};
/// fn open_account(connection: &rusqlite::Connection, id: i64) -> rusqlite::Result<usize> {
///     connection.execute("INSERT INTO account VALUES (?1, 0)", [id])
/// }
///
/// # fn main() -> Result<()> {
/// let engine = Engine::new();
/// let work = engine.unit_of_work()?;
/// work.execute_batch("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)")?;
/// open_account(&work, 1)?;
/// work.commit()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a unit of work that is dropped is rolled back"]
pub struct UnitOfWork(Lease);

impl UnitOfWork {
    /// Begins a unit of work on the engine that the process shares under this database URL:
    /// `Engine::shared(url)?.unit_of_work()`.
    ///
    /// # Errors
    /// As [`Engine::shared`] and [`Engine::unit_of_work`].
    #[track_caller]
    pub fn new(url: impl AsRef<str>) -> Result<UnitOfWork> {
        Engine::shared(url)?.unit_of_work()
    }

    pub(crate) fn begun(lease: Lease) -> UnitOfWork {
        UnitOfWork(lease)
    }

    /// Returns the engine of this unit of work.
    pub fn engine(&self) -> &Engine {
        self.0.engine()
    }

    /// Begins a savepoint. If the savepoint is dropped before it is committed, it is rolled back. Savepoints nest.
    ///
    /// # Errors
    /// [`Sqlite`](crate::ErrorKind::Sqlite) if SQLite refuses.
    pub fn savepoint(&mut self) -> Result<Savepoint<'_>> {
        Ok(self.0.connection_mut().savepoint()?)
    }

    /// Commits the transaction.
    ///
    /// # Errors
    /// [`AlreadyEnded`](crate::ErrorKind::AlreadyEnded) if the code under test has ended the transaction itself;
    /// [`Sqlite`](crate::ErrorKind::Sqlite) if SQLite refuses, for example because a deferred foreign key is violated.
    /// After any error, uncommitted changes are rolled back.
    pub fn commit(self) -> Result<()> {
        self.end("commit", Lent::commit)
    }

    /// Rolls the transaction back. Dropping it does the same, and reports no error.
    ///
    /// # Errors
    /// [`AlreadyEnded`](crate::ErrorKind::AlreadyEnded) if the code under test has ended the transaction itself.
    pub fn rollback(self) -> Result<()> {
        self.end("roll back", Lent::rollback)
    }

    /// Returns what the unit of work sees as changed since the engine was created: what was committed when it began to
    /// read, and its own changes. Compares as [`Engine::changes`]; if the unit of work has written, that takes time in
    /// proportion to the size of the database. (It is not named `changes`, because a connection of rusqlite has a function of
    /// that name.)
    ///
    /// # Errors
    /// As [`Engine::changes`]; [`Sqlite`](crate::ErrorKind::Sqlite) if SQLite can't read what the unit of work sees.
    ///
    /// # Panics
    /// If the template's [`on_connect`](crate::Template::on_connect) panics.
    pub fn diff(&self) -> Result<Changes> {
        let engine = self.engine();
        let seen = self.0.content().map_err(|cause| Error::not_seen(&engine.name(), cause))?;
        compare(&engine.baseline(), &seen, engine.setup())
    }

    fn end(mut self, operation: &str, end: fn(&mut Lent) -> rusqlite::Result<()>) -> Result<()> {
        if !self.0.is_in_transaction() {
            return Err(Error::already_ended(operation, &self.engine().name()));
        }
        end(&mut self.0).map_err(|cause| {
            let error = self.engine().error_of(cause);
            if self.0.is_in_transaction() {
                let _ = self.0.rollback(); // so it is not reported as dropped without a commit
            }
            error
        })
    }
}

impl Deref for UnitOfWork {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0.connection()
    }
}

impl fmt::Debug for UnitOfWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.0.is_in_transaction();
        f.debug_struct("UnitOfWork").field("engine", &self.engine().name()).field("open", &open).finish()
    }
}
