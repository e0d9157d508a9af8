use std::fmt;
use std::ops::{Deref, DerefMut};

use rusqlite::Connection;

use super::Engine;
use super::lease::Lease;

/// A connection of an [`Engine`], for code under test that begins and commits its own transactions. It derefs to
/// [`Connection`](https://docs.rs/rusqlite/latest/rusqlite/struct.Connection.html), mutably too.
///
/// It is one of the connections that units of work use. When it is dropped, an open transaction is rolled back, and the
/// connection is reused, unless a test left something on it (see [isolation](crate::guide::isolation)). So it is
/// available in microseconds. [`Engine::connect`] opens a new connection, for which SQLite has to read the schema.
///
/// ```
/// # use rusqlite_fixtures::rusqlite::{self, Connection};
/// # use rusqlite_fixtures::{Engine, Result};
/// fn open_account(connection: &mut Connection, id: i64) -> rusqlite::Result<()> {
///     let transaction = connection.transaction()?;
///     transaction.execute("INSERT INTO account VALUES (?1, 0)", [id])?;
///     transaction.commit()
/// }
///
/// # fn main() -> Result<()> {
/// let engine = Engine::new();
/// let mut connection = engine.pooled_connection()?;
/// connection.execute_batch("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INT)")?;
/// open_account(&mut connection, 1)?;
/// # Ok(())
/// # }
/// ```
pub struct PooledConnection(Lease);

impl PooledConnection {
    pub(crate) fn new(lease: Lease) -> PooledConnection {
        PooledConnection(lease)
    }

    /// Returns the engine of this connection.
    pub fn engine(&self) -> &Engine {
        self.0.engine()
    }
}

impl Deref for PooledConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0.connection()
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        self.0.connection_mut()
    }
}

impl fmt::Debug for PooledConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledConnection").field("engine", &self.engine().name()).finish()
    }
}
