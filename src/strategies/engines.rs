//! Operations on real engines.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior, ffi};

use super::model::{Content, Effect, Model, Outcome};
use super::operation::{AT_FIRST, ELSEWHERE, HANDS, Kind, Operation, Place, Statement, TABLES};
use super::rows::Rows;
use super::subject::{Difference, Subject};
use crate::content::Snapshot;
use crate::engine::{Engine, PooledConnection, UnitOfWork};
use crate::error::{Error, Result};
use crate::vfs::set_busy_handler;

/// Carries the operations out on this engine and forks of it, and compares what comes of each, and in the end what each
/// engine holds, with the model. The engine's lock timeout is zero from then on.
///
/// Nothing of it is open when it returns, so an engine of a template is used again.
///
/// # Errors
/// The first difference, also when the rows can't be read.
pub fn check<R: Rows>(rows: &R, engine: Engine, operations: &[Operation<R::Key, R::Value>]) -> Result<(), Difference> {
    let opened = Engines::new(rows, engine);
    let mut engines = opened.map_err(|error| Difference::new("in the beginning", &"engines", &error))?;
    let mut model = engines.model()?;
    model.compare(&mut engines, operations)?;
    engines.check(&model)
}

/// Engines, and the hands on them.
pub struct Engines<'a, R: Rows> {
    rows: &'a R,
    /// Before the engines, which don't go back to their template while a connection is open.
    hands: [Option<Hand>; HANDS],
    engines: Vec<Engine>,
    snapshots: Vec<Snapshot>,
}

struct Hand {
    held: Held,
    engine: usize,
    /// How many savepoints it has set.
    depth: usize,
}

enum Held {
    UnitOfWork(UnitOfWork),
    Pooled(PooledConnection),
    Connection(Connection),
}

impl Hand {
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

impl<R: Rows> fmt::Debug for Engines<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engines").field("engines", &self.engines).finish_non_exhaustive()
    }
}

impl<'a, R: Rows> Engines<'a, R> {
    /// Hands that have nothing, and this engine.
    ///
    /// # Errors
    /// SQLite's own, when it can't open a connection.
    ///
    /// # Panics
    /// When there is no table in the engine.
    pub fn new(rows: &'a R, engine: Engine) -> Result<Engines<'a, R>> {
        engine.set_lock_timeout(Duration::ZERO);
        let snapshots = vec![elsewhere(&engine)?];
        Ok(Engines { rows, hands: [const { None }; HANDS], engines: vec![engine], snapshots })
    }

    /// The model of them as they are.
    ///
    /// # Errors
    /// When the rows can't be read.
    pub fn model(&self) -> Result<Model<R::Key, R::Value>, Difference> {
        let content = self.content(&self.engines[0])?;
        Ok(Model::new(content.rows).unchanged_is_unwritten(R::UNCHANGED_IS_UNWRITTEN))
    }

    /// Closes what is open, compares what each engine holds with the model, and has SQLite check that it is whole.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(mut self, model: &Model<R::Key, R::Value>) -> Result<(), Difference> {
        self.hands = [const { None }; HANDS];
        let expected = model.committed().count();
        if self.engines.len() != expected {
            return Err(Difference::new("the engines in the end", &expected, &self.engines.len()));
        }
        for (number, (engine, expected)) in self.engines.iter().zip(model.committed()).enumerate() {
            let at = format!("engine {number} in the end");
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

    fn open(&mut self, hand: usize, engine: usize, kind: Kind) -> Outcome<R::Key, R::Value> {
        self.hands[hand] = None; // before the new one, which may want the slot
        match take(&self.engines[engine], kind) {
            Ok(held) => {
                self.hands[hand] = Some(Hand { held, engine, depth: 0 });
                Outcome::Done
            }
            Err(error) => refusal(&error.into()),
        }
    }

    fn end(&mut self, hand: usize, sql: &str, end: fn(UnitOfWork) -> Result<()>) -> Outcome<R::Key, R::Value> {
        match self.hands[hand].take() {
            None => Outcome::Closed,
            Some(Hand { held: Held::UnitOfWork(work), .. }) => outcome_of(end(work).map_err(rusqlite::Error::from)),
            Some(held) => {
                let outcome = held.execute(sql);
                self.hands[hand] = Some(Hand { depth: 0, ..held });
                outcome
            }
        }
    }

    fn with_hand(
        &mut self,
        hand: usize,
        work: impl FnOnce(&R, &mut Hand) -> Outcome<R::Key, R::Value>,
    ) -> Outcome<R::Key, R::Value> {
        let Some(hand) = &mut self.hands[hand % HANDS] else { return Outcome::Closed };
        let outcome = work(self.rows, hand);
        if outcome == Outcome::Locked {
            // A connection that polls comes back later, and then has the slot reserved for a while. This one comes now.
            look_at_schema(hand.connection());
        }
        outcome
    }

    fn drop_hand(&mut self, hand: usize, drop: fn(Hand)) -> Outcome<R::Key, R::Value> {
        self.hands[hand % HANDS].take().map(drop).map_or(Outcome::Closed, |()| Outcome::Done)
    }

    fn restore(&self, engine: usize, snapshot: usize) -> Outcome<R::Key, R::Value> {
        let restored = self.engines[engine].restore(&self.snapshots[snapshot % self.snapshots.len()]);
        outcome_of(restored.map_err(rusqlite::Error::from))
    }

    fn outcome(&mut self, operation: &Operation<R::Key, R::Value>) -> Outcome<R::Key, R::Value> {
        if let Some(hand) = operation.needs_connection().filter(|hand| self.hands[hand % HANDS].is_none()) {
            self.open(hand % HANDS, 0, AT_FIRST[hand % HANDS]);
        }
        let of = |engine: &usize| engine % self.engines.len();
        match operation {
            Operation::Open { hand, engine, kind } => self.open(hand % HANDS, of(engine), *kind),
            Operation::Do { hand, statement } => self.with_hand(*hand, |rows, hand| {
                let mut depth = hand.depth;
                let outcome = carry_out(rows, hand.connection(), &mut depth, statement);
                hand.depth = depth;
                outcome
            }),
            Operation::Begin { hand, immediate } => {
                let sql = if *immediate { "BEGIN IMMEDIATE" } else { "BEGIN" };
                self.with_hand(*hand, |_, hand| {
                    // Within a savepoint it takes the slot before it fails; and if SQLite goes back to that savepoint before
                    // it has read the schema, it finds no table at all, in a file as well.
                    look_at_schema(hand.connection());
                    hand.execute(sql)
                })
            }
            Operation::Commit { hand } => self.end(hand % HANDS, "COMMIT", UnitOfWork::commit),
            Operation::Rollback { hand } => self.end(hand % HANDS, "ROLLBACK", UnitOfWork::rollback),
            Operation::Drop { hand } => self.drop_hand(*hand, drop),
            Operation::Panic { hand } => self.drop_hand(*hand, drop_in_panic),
            Operation::Vacuum { hand } => self.with_hand(*hand, |_, hand| hand.execute("VACUUM")),
            Operation::Snapshot { engine } => {
                self.snapshots.push(self.engines[of(engine)].snapshot());
                Outcome::Done
            }
            Operation::Restore { engine, snapshot } => self.restore(of(engine), *snapshot),
            Operation::Reset { engine } => outcome_of(self.engines[of(engine)].reset().map_err(rusqlite::Error::from)),
            Operation::Fork { engine } => {
                let fork = self.engines[of(engine)].fork();
                fork.set_lock_timeout(Duration::ZERO);
                self.engines.push(fork);
                Outcome::Done
            }
        }
    }
}

impl<R: Rows> Subject<R::Key, R::Value> for Engines<'_, R> {
    fn apply(&mut self, operation: &Operation<R::Key, R::Value>) -> Effect<R::Key, R::Value> {
        let engine = match operation.place() {
            Place::Engine(engine) => engine % self.engines.len(),
            Place::Hand(hand) => self.hands[hand % HANDS].as_ref().map_or(0, |hand| hand.engine),
        };
        let before = self.engines[engine].snapshot();
        let outcome = self.outcome(operation);
        let replaced = !before.ptr_eq(&self.engines[engine].snapshot());
        Effect { outcome, replaced }
    }
}

/// A snapshot of another engine, whose change counter and schema cookie may come in this one too, with other content.
fn elsewhere(engine: &Engine) -> Result<Snapshot> {
    let copy = Snapshot::from_bytes(engine.snapshot().to_bytes()).expect("an engine with a table").new_engine();
    let (table, value) = ELSEWHERE;
    copy.connect()?.execute_batch(&create_table(table, true, value))?;
    Ok(copy.snapshot())
}

fn create_table(table: usize, reversed: bool, value: u8) -> String {
    let (key, value) = ("-1 AS key", format!("{value} AS value"));
    let columns = if reversed { format!("{value}, {key}") } else { format!("{key}, {value}") };
    format!("CREATE TABLE {} AS SELECT {columns}", name_of(table))
}

fn integrity_of(engine: &Engine) -> Result<String> {
    Ok(engine.unit_of_work()?.query_row("PRAGMA integrity_check", [], |row| row.get(0))?)
}

/// None of them waits: what `on_connect` sets comes first, and what that takes comes after it.
fn take(engine: &Engine, kind: Kind) -> Result<Held> {
    Ok(match kind {
        Kind::UnitOfWork => Held::UnitOfWork(engine.begin_in_turn(TransactionBehavior::Deferred)?),
        Kind::Immediate => Held::UnitOfWork(engine.begin_in_turn(TransactionBehavior::Immediate)?),
        Kind::Pooled => {
            let connection = engine.pooled_connection()?;
            set_busy_handler(&connection);
            Held::Pooled(connection)
        }
        Kind::Connection => {
            let connection = engine.connect()?;
            set_busy_handler(&connection);
            Held::Connection(with_small_cache(connection)?)
        }
        Kind::Uri => {
            let connection = Connection::open(engine.uri())?;
            let set_up = engine.setup().carry_out(&connection); // as all other connections are
            set_up.map_err(|cause| Error::open_connection(&engine.name(), cause))?;
            connection.busy_timeout(Duration::ZERO)?;
            Held::Connection(with_small_cache(connection)?)
        }
    })
}

/// With room for hardly any page, so that SQLite writes to the database before it commits.
fn with_small_cache(connection: Connection) -> rusqlite::Result<Connection> {
    connection.pragma_update(None, "cache_size", 1)?;
    Ok(connection)
}

/// As in a test that fails, but for the hook that prints it.
pub(super) fn drop_in_panic<T>(value: T) {
    let unwind = || {
        let _value = value;
        resume_unwind(Box::new("what is dropped here is to be dropped in a panic"));
    };
    let _panic: Result<(), _> = catch_unwind(AssertUnwindSafe(unwind));
}

/// Carries out the statement on a connection that has set as many savepoints as `depth` says.
pub(super) fn carry_out<R: Rows>(
    rows: &R,
    connection: &Connection,
    depth: &mut usize,
    statement: &Statement<R::Key, R::Value>,
) -> Outcome<R::Key, R::Value> {
    if matches!(statement, Statement::Insert { .. } | Statement::Update { .. } | Statement::Delete { .. })
        && !R::WRITES_FIRST
    {
        return with_slot(connection, || write(rows, connection, statement));
    }
    match statement {
        Statement::Read => read(rows, connection).map_or_else(|error| refusal(&error), Outcome::Read),
        Statement::CreateTable { table, reversed, value } => {
            change_schema(connection, &create_table(*table, *reversed, *value))
        }
        Statement::DropTable { table } => change_schema(connection, &format!("DROP TABLE {}", name_of(*table))),
        Statement::Savepoint | Statement::RollbackTo { .. } | Statement::Release { .. } => {
            outcome_of(go_by_savepoints(connection, depth, statement))
        }
        _ => write(rows, connection, statement),
    }
}

fn write<R: Rows>(
    rows: &R,
    connection: &Connection,
    statement: &Statement<R::Key, R::Value>,
) -> Outcome<R::Key, R::Value> {
    let was_there = match statement {
        Statement::Insert { key, value } => rows.insert(connection, key, value).map(|()| true),
        Statement::Update { key, value } => rows.update(connection, key, value),
        Statement::Delete { key } => rows.delete(connection, key),
        other => unreachable!("{other:?} writes no row"),
    };
    match was_there {
        Ok(true) => Outcome::Done,
        Ok(false) => Outcome::Missing,
        Err(error) => refusal(&error),
    }
}

/// Takes the writer slot before the work: within a transaction, BEGIN IMMEDIATE gets it and fails then. Without one, the
/// work is a transaction of its own, as a statement is.
fn with_slot<K: Debug + PartialEq, V: Debug + PartialEq>(
    connection: &Connection,
    work: impl FnOnce() -> Outcome<K, V>,
) -> Outcome<K, V> {
    look_at_schema(connection);
    match outcome_of(connection.execute_batch("BEGIN IMMEDIATE")) {
        Outcome::InTransaction => work(),
        Outcome::Done => {
            let outcome = work();
            let is_kept = matches!(outcome, Outcome::Done | Outcome::Missing);
            match outcome_of(connection.execute_batch(if is_kept { "COMMIT" } else { "ROLLBACK" })) {
                Outcome::Done => outcome,
                not_ended => not_ended,
            }
        }
        refused => refused,
    }
}

/// It would depend on what the connection knows of the schema whether SQLite refuses, when it compiles the statement, or
/// after it has taken the slot.
fn change_schema<K, V>(connection: &Connection, sql: &str) -> Outcome<K, V> {
    look_at_schema(connection);
    outcome_of(connection.execute_batch(sql))
}

fn go_by_savepoints<K, V>(
    connection: &Connection,
    depth: &mut usize,
    statement: &Statement<K, V>,
) -> rusqlite::Result<()> {
    let (command, savepoint, left) = match statement {
        Statement::RollbackTo { savepoint } => ("ROLLBACK TO", savepoint % (*depth).max(1), 1),
        Statement::Release { savepoint } => ("RELEASE", savepoint % (*depth).max(1), 0),
        _ => ("SAVEPOINT", *depth, 1),
    };
    connection.execute_batch(&format!("{command} rusqlite_fixtures_{savepoint}"))?;
    *depth = savepoint + left;
    Ok(())
}

/// Has the connection know the schema as it is, and leaves no lock: SQLite sees to it before it says that there is no such
/// table.
fn look_at_schema(connection: &Connection) {
    drop(connection.prepare("SELECT 1 FROM rusqlite_fixtures_none"));
}

fn name_of(table: usize) -> String {
    format!("rusqlite_fixtures_{}", table % TABLES)
}

fn read<R: Rows>(rows: &R, connection: &Connection) -> rusqlite::Result<Content<R::Key, R::Value>> {
    let rows = rows.read(connection)?;
    let mut tables = BTreeMap::new();
    for table in 0..TABLES {
        let exists = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
        let exists: i64 = connection.prepare_cached(exists)?.query_row([name_of(table)], |row| row.get(0))?;
        if exists == 1 {
            let mut select = connection.prepare_cached(&format!("SELECT value FROM {}", name_of(table)))?;
            tables.insert(table, select.query_row([], |row| row.get(0))?);
        }
    }
    Ok(Content { rows, tables })
}

fn outcome_of<K, V>(result: rusqlite::Result<()>) -> Outcome<K, V> {
    result.map_or_else(|error| refusal(&error), |()| Outcome::Done)
}

/// The errors for a key that is there already.
const OF_A_KEY: [i32; 3] =
    [ffi::SQLITE_CONSTRAINT_PRIMARYKEY, ffi::SQLITE_CONSTRAINT_ROWID, ffi::SQLITE_CONSTRAINT_UNIQUE];

/// What SQLite's errors mean.
fn refusal<K, V>(error: &rusqlite::Error) -> Outcome<K, V> {
    let words = error.to_string();
    let code = error.sqlite_error();
    match code.map(|code| code.code) {
        Some(ErrorCode::DatabaseBusy) if code.is_some_and(|code| code.extended_code == ffi::SQLITE_BUSY_SNAPSHOT) => {
            Outcome::Stale
        }
        Some(ErrorCode::DatabaseBusy) => Outcome::Locked,
        _ if code.is_some_and(|code| OF_A_KEY.contains(&code.extended_code)) => Outcome::Exists,
        _ if words.contains("already exists") => Outcome::Exists,
        _ if words.contains("no such table: rusqlite_fixtures_") => Outcome::Missing,
        _ if words.contains("no such savepoint") => Outcome::NoSavepoint,
        _ if words.contains("no transaction is active") => Outcome::NoTransaction,
        _ if words.contains("within a transaction") => Outcome::InTransaction,
        _ => Outcome::Failed(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategies::Table;

    /// Or a sequence in which no hand opens anything would be about pooled connections only.
    #[test]
    fn hands_that_open_nothing_have_connections_of_several_kinds() {
        let engine = Engine::new();
        engine.connect().unwrap().execute_batch("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER)").unwrap();
        let table: Table = Table::new("entry", "key", "value");
        let mut engines = Engines::new(&table, engine).unwrap();
        for hand in 0..HANDS {
            let outcome = engines.outcome(&Operation::Do { hand, statement: Statement::Read });
            assert!(matches!(outcome, Outcome::Read(_)), "{outcome:?}");
        }
        let is_pooled = |hand: &Option<Hand>| matches!(hand, Some(Hand { held: Held::Pooled(_), .. }));
        assert_eq!(engines.hands.each_ref().map(is_pooled), [true, false, false]);
    }

    #[test]
    fn what_is_dropped_in_a_panic_notices() {
        struct Notices<'a>(&'a mut bool);
        impl Drop for Notices<'_> {
            fn drop(&mut self) {
                *self.0 = std::thread::panicking();
            }
        }
        let (mut in_panic, mut in_none) = (false, true);
        drop_in_panic(Notices(&mut in_panic));
        drop(Notices(&mut in_none));
        assert_eq!((in_panic, in_none), (true, false));
    }
}
