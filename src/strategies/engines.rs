//! Carries operations out on real engines.

use std::fmt;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::dispatch::{self, Executor};
use super::execute::{create_table, drop_in_panic, execute, outcome_of, read, read_schema, refusal};
use super::model::Model;
use super::operation::{CLIENTS, FOREIGN_TABLE, Kind, Operation, RowStatement};
use super::outcome::{Content, Effect, Outcome};
use super::rows::Rows;
use super::subject::{Difference, Subject};
use crate::content::Snapshot;
use crate::engine::{Engine, PooledConnection, UnitOfWork, Version};
use crate::error::{Error, Result};

/// Carries the operations out on this engine and forks of it, and compares each effect, and at the end the content of
/// each engine, with the model. It sets the engine's lock timeout to zero.
///
/// It closes all connections before it returns, so that an engine of a template is reused.
///
/// # Errors
/// The first difference, or that the rows can't be read.
pub fn check<R: Rows>(rows: &R, engine: Engine, operations: &[Operation<R::Key, R::Value>]) -> Result<(), Difference> {
    let opened = Engines::new(rows, engine);
    let mut engines = opened.map_err(|error| Difference::new("at the start", &"engines", &error))?;
    let mut model = engines.model()?;
    model.compare(&mut engines, operations)?;
    engines.check(&model)
}

/// Engines and their clients, which carry out operations.
pub struct Engines<'a, R: Rows> {
    rows: &'a R,
    /// Dropped before the engines, because an engine does not return to its template while a connection is open.
    clients: [Option<Client>; CLIENTS],
    engines: Vec<Engine>,
    snapshots: Vec<Snapshot>,
}

struct Client {
    held: Held,
    engine: usize,
    /// The number of savepoints that the client has set.
    depth: usize,
}

enum Held {
    UnitOfWork(UnitOfWork),
    Pooled(PooledConnection),
    Connection(Connection),
}

impl Client {
    fn connection(&self) -> &Connection {
        match &self.held {
            Held::UnitOfWork(work) => work,
            Held::Pooled(connection) => connection,
            Held::Connection(connection) => connection,
        }
    }

    fn execute<K, V>(&self, sql: &str) -> Outcome<K, V> {
        outcome_of(self.connection().execute_batch(sql))
    }
}

impl<'a, R: Rows> Engines<'a, R> {
    /// Returns this engine, with clients that have no connection yet. It sets the engine's lock timeout to zero.
    ///
    /// # Errors
    /// When SQLite can't open a connection.
    ///
    /// # Panics
    /// When the engine has no table.
    pub fn new(rows: &'a R, engine: Engine) -> Result<Engines<'a, R>> {
        engine.set_lock_timeout(Duration::ZERO);
        let snapshots = vec![foreign_snapshot(&engine)?];
        Ok(Engines { rows, clients: [const { None }; CLIENTS], engines: vec![engine], snapshots })
    }

    /// Returns a model that starts with the engine's current content.
    ///
    /// # Errors
    /// When the rows can't be read.
    pub fn model(&self) -> Result<Model<R::Key, R::Value>, Difference> {
        let content = self.content(&self.engines[0])?;
        let model = Model::new(content.rows).unchanged_is_unwritten(R::UNCHANGED_IS_UNWRITTEN);
        Ok(model.of_files(self.engines[0].is_on_file()))
    }

    /// Closes all clients, compares the content of each engine with the model, and runs SQLite's integrity check.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(mut self, model: &Model<R::Key, R::Value>) -> Result<(), Difference> {
        self.clients = [const { None }; CLIENTS];
        let expected = model.committed().count();
        if self.engines.len() != expected {
            return Err(Difference::new("the number of engines at the end", &expected, &self.engines.len()));
        }
        for (number, (engine, expected)) in self.engines.iter().zip(model.committed()).enumerate() {
            let at = format!("engine {number} at the end");
            let got = self.content(engine)?;
            if got != *expected {
                return Err(Difference::new(at, expected, &got));
            }
            let found = integrity_of(engine);
            if !matches!(&found, Ok(found) if found == "ok") {
                return Err(Difference::new(at, &"ok", &found));
            }
        }
        Ok(())
    }

    fn content(&self, engine: &Engine) -> Result<Content<R::Key, R::Value>, Difference> {
        let read = || Ok(read(self.rows, &*engine.unit_of_work()?)?);
        read().map_err(|error: Error| Difference::new("reading all rows", &"rows", &error))
    }

    fn end(&mut self, client: usize, sql: &str, end: fn(UnitOfWork) -> Result<()>) -> Outcome<R::Key, R::Value> {
        match self.clients[client].take() {
            None => Outcome::Closed,
            Some(Client { held: Held::UnitOfWork(work), .. }) => outcome_of(end(work).map_err(rusqlite::Error::from)),
            Some(client_of_connection) => {
                let outcome = client_of_connection.execute(sql);
                self.clients[client] = Some(Client { depth: 0, ..client_of_connection });
                outcome
            }
        }
    }

    fn with_client(
        &mut self,
        client: usize,
        work: impl FnOnce(&R, &mut Client) -> Outcome<R::Key, R::Value>,
    ) -> Outcome<R::Key, R::Value> {
        self.clients[client].as_mut().map_or(Outcome::Closed, |client| work(self.rows, client))
    }

    fn drop_client(&mut self, client: usize, drop: fn(Client)) -> Outcome<R::Key, R::Value> {
        self.clients[client].take().map(drop).map_or(Outcome::Closed, |()| Outcome::Done)
    }
}

impl<R: Rows> Executor<R::Key, R::Value> for Engines<'_, R> {
    type Version = Version;

    fn version(&self, engine: usize) -> Version {
        self.engines[engine].version()
    }

    fn is_current(&self, engine: usize, version: &Version) -> bool {
        *version == self.engines[engine].version()
    }

    fn engines(&self) -> usize {
        self.engines.len()
    }

    fn snapshots(&self) -> usize {
        self.snapshots.len()
    }

    fn engine_of(&self, client: usize) -> Option<usize> {
        self.clients[client].as_ref().map(|client| client.engine)
    }

    fn open(&mut self, client: usize, engine: usize, kind: Kind) -> Outcome<R::Key, R::Value> {
        self.clients[client] = None; // first, for the new one may need the slot
        match take(&self.engines[engine], kind) {
            Ok(held) => {
                self.clients[client] = Some(Client { held, engine, depth: 0 });
                Outcome::Done
            }
            Err(error) => refusal(&error.into()),
        }
    }

    fn execute(&mut self, client: usize, statement: &RowStatement<R::Key, R::Value>) -> Outcome<R::Key, R::Value> {
        self.with_client(client, |rows, client| {
            let mut depth = client.depth;
            let outcome = execute(rows, client.connection(), &mut depth, statement);
            client.depth = depth;
            outcome
        })
    }

    fn begin(&mut self, client: usize, immediate: bool) -> Outcome<R::Key, R::Value> {
        let sql = if immediate { "BEGIN IMMEDIATE" } else { "BEGIN" };
        self.with_client(client, |_, client| {
            // In a savepoint, BEGIN IMMEDIATE takes the slot before it fails. If SQLite rolls back to that savepoint
            // before it has read the schema, it finds no table. It does the same with a file.
            read_schema(client.connection());
            client.execute(sql)
        })
    }

    fn commit(&mut self, client: usize) -> Outcome<R::Key, R::Value> {
        self.end(client, "COMMIT", UnitOfWork::commit)
    }

    fn rollback(&mut self, client: usize) -> Outcome<R::Key, R::Value> {
        self.end(client, "ROLLBACK", UnitOfWork::rollback)
    }

    fn close(&mut self, client: usize) -> Outcome<R::Key, R::Value> {
        self.drop_client(client, drop)
    }

    fn close_in_panic(&mut self, client: usize) -> Outcome<R::Key, R::Value> {
        self.drop_client(client, drop_in_panic)
    }

    fn vacuum(&mut self, client: usize) -> Outcome<R::Key, R::Value> {
        self.with_client(client, |_, client| client.execute("VACUUM"))
    }

    fn take_snapshot(&mut self, engine: usize) {
        self.snapshots.push(self.engines[engine].snapshot());
    }

    fn restore(&mut self, engine: usize, snapshot: usize) -> Outcome<R::Key, R::Value> {
        let restored = self.engines[engine].restore(&self.snapshots[snapshot]);
        outcome_of(restored.map_err(rusqlite::Error::from))
    }

    fn reset(&mut self, engine: usize) -> Outcome<R::Key, R::Value> {
        outcome_of(self.engines[engine].reset().map_err(rusqlite::Error::from))
    }

    fn fork(&mut self, engine: usize) {
        let fork = self.engines[engine].fork();
        fork.set_lock_timeout(Duration::ZERO);
        self.engines.push(fork);
    }
}

impl<R: Rows> Subject<R::Key, R::Value> for Engines<'_, R> {
    fn apply(&mut self, operation: &Operation<R::Key, R::Value>) -> Effect<R::Key, R::Value> {
        dispatch::apply(self, operation)
    }
}

impl<R: Rows> fmt::Debug for Engines<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engines").field("engines", &self.engines).finish_non_exhaustive()
    }
}

/// Returns a snapshot of another engine. Its change counter and schema cookie may occur in this engine too, with other
/// content.
fn foreign_snapshot(engine: &Engine) -> Result<Snapshot> {
    let copy = Snapshot::from_bytes(engine.snapshot().to_bytes()).expect("an engine with a table").new_engine();
    let (table, value) = FOREIGN_TABLE;
    copy.connect()?.execute_batch(&create_table(table, true, value))?;
    Ok(copy.snapshot())
}

fn integrity_of(engine: &Engine) -> Result<String> {
    Ok(engine.unit_of_work()?.query_row("PRAGMA integrity_check", [], |row| row.get(0))?)
}

/// Opens a connection that never waits for the writer slot. Replaces a timeout that `on_connect` has set.
fn take(engine: &Engine, kind: Kind) -> Result<Held> {
    Ok(match kind {
        Kind::UnitOfWork => Held::UnitOfWork(engine.begin_in_turn(TransactionBehavior::Deferred)?),
        Kind::Immediate => Held::UnitOfWork(engine.begin_in_turn(TransactionBehavior::Immediate)?),
        Kind::Pooled => {
            let connection = engine.pooled_connection()?;
            engine.set_busy_handler(&connection)?;
            Held::Pooled(connection)
        }
        Kind::Connection => {
            let connection = engine.connect()?;
            engine.set_busy_handler(&connection)?;
            Held::Connection(with_small_cache(connection)?)
        }
        Kind::Uri => {
            let connection = Connection::open(engine.uri())?;
            let set_up = engine.setup().carry_out(&connection); // like all other connections
            set_up.map_err(|cause| Error::open_connection(&engine.name(), cause))?;
            connection.busy_timeout(Duration::ZERO)?;
            Held::Connection(with_small_cache(connection)?)
        }
    })
}

/// Limits the page cache to one page, so that SQLite writes to the database before it commits.
fn with_small_cache(connection: Connection) -> rusqlite::Result<Connection> {
    connection.pragma_update(None, "cache_size", 1)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategies::Table;

    /// A sequence without `Open` should not use pooled connections only.
    #[test]
    fn clients_without_connections_get_several_kinds() {
        let engine = Engine::new();
        engine.connect().unwrap().execute_batch("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER)").unwrap();
        let table: Table = Table::new("entry", "key", "value");
        let mut engines = Engines::new(&table, engine).unwrap();
        for client in 0..CLIENTS {
            let outcome = engines.apply(&Operation::Do { client, statement: RowStatement::Read }).outcome;
            assert!(matches!(outcome, Outcome::Read(_)), "{outcome:?}");
        }
        let is_pooled = |client: &Option<Client>| matches!(client, Some(Client { held: Held::Pooled(_), .. }));
        assert_eq!(engines.clients.each_ref().map(is_pooled), [true, false, false]);
    }
    /// Nothing is reserved for it, because it does not wait.
    #[test]
    fn a_client_that_was_refused_does_not_keep_others_from_the_slot() {
        let engine = Engine::new();
        engine.connect().unwrap().execute_batch("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER)").unwrap();
        let table: Table = Table::new("entry", "key", "value");
        let mut engines = Engines::new(&table, engine).unwrap();
        assert!(format!("{engines:?}").starts_with("Engines { engines: [Engine {"), "{engines:?}");
        let mut apply = |operation| engines.apply(&operation).outcome;
        apply(Operation::Open { client: 1, engine: 0, kind: Kind::Uri });
        assert_eq!(apply(Operation::Begin { client: 0, immediate: true }), Outcome::Done);
        let insert = RowStatement::Insert { key: 1, value: 1 };
        assert_eq!(apply(Operation::Do { client: 1, statement: insert }), Outcome::Locked);
        assert_eq!(apply(Operation::Rollback { client: 0 }), Outcome::Done);
        assert_eq!(apply(Operation::Begin { client: 2, immediate: true }), Outcome::Done);
    }
}
