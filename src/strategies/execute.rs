//! Carries statements out on a connection, by SQL and by the code under test.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use rusqlite::{Connection, ErrorCode, ffi};

use super::operation::{RowStatement, TABLES};
use super::outcome::{Content, Outcome};
use super::rows::Rows;

/// Drops the value during a panic, as in a test that fails, but without the panic hook.
pub(super) fn drop_in_panic<T>(value: T) {
    let unwind = || {
        let _value = value;
        resume_unwind(Box::new("a panic in which a value is dropped"));
    };
    let _panic: Result<(), _> = catch_unwind(AssertUnwindSafe(unwind));
}

/// Executes the statement on a connection that has set `depth` savepoints.
pub(super) fn execute<R: Rows>(
    rows: &R,
    connection: &Connection,
    depth: &mut usize,
    statement: &RowStatement<R::Key, R::Value>,
) -> Outcome<R::Key, R::Value> {
    if statement.writes_row() && !R::WRITES_FIRST {
        return with_slot(connection, || write(rows, connection, statement));
    }
    match statement {
        RowStatement::Read => read(rows, connection).map_or_else(|error| refusal(&error), Outcome::Read),
        RowStatement::CreateTable { table, reversed, value } => {
            change_schema(connection, &create_table(*table, *reversed, *value))
        }
        RowStatement::DropTable { table } => change_schema(connection, &format!("DROP TABLE {}", name_of(*table))),
        RowStatement::Savepoint | RowStatement::RollbackTo { .. } | RowStatement::Release { .. } => {
            outcome_of(execute_savepoint(connection, depth, statement))
        }
        _ => write(rows, connection, statement),
    }
}

fn write<R: Rows>(
    rows: &R,
    connection: &Connection,
    statement: &RowStatement<R::Key, R::Value>,
) -> Outcome<R::Key, R::Value> {
    let existed = match statement {
        RowStatement::Insert { key, value } => rows.insert(connection, key, value).map(|()| true),
        RowStatement::Update { key, value } => rows.update(connection, key, value),
        RowStatement::Delete { key } => rows.delete(connection, key),
        other => unreachable!("{other:?} writes no row"),
    };
    match existed {
        Ok(true) => Outcome::Done,
        Ok(false) => Outcome::Missing,
        Err(error) => refusal(&error),
    }
}

/// Takes the writer slot before the work. In a transaction, BEGIN IMMEDIATE takes the slot and then fails. Outside of one,
/// the work becomes a transaction, as a single statement would.
fn with_slot<K: Debug + PartialEq, V: Debug + PartialEq>(
    connection: &Connection,
    work: impl FnOnce() -> Outcome<K, V>,
) -> Outcome<K, V> {
    read_schema(connection);
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

/// Reads the schema first. Otherwise it would depend on the connection's state whether SQLite refuses when it prepares the
/// statement, or after it has taken the slot.
fn change_schema<K, V>(connection: &Connection, sql: &str) -> Outcome<K, V> {
    read_schema(connection);
    outcome_of(connection.execute_batch(sql))
}

fn execute_savepoint<K, V>(
    connection: &Connection,
    depth: &mut usize,
    statement: &RowStatement<K, V>,
) -> rusqlite::Result<()> {
    let (command, savepoint, left) = match statement {
        RowStatement::RollbackTo { savepoint } => ("ROLLBACK TO", savepoint % (*depth).max(1), 1),
        RowStatement::Release { savepoint } => ("RELEASE", savepoint % (*depth).max(1), 0),
        _ => ("SAVEPOINT", *depth, 1),
    };
    connection.execute_batch(&format!("{command} rusqlite_fixtures_{savepoint}"))?;
    *depth = savepoint + left;
    Ok(())
}

/// Makes the connection read the current schema, and leaves no lock: SQLite reads it before it reports that a table does
/// not exist.
pub(super) fn read_schema(connection: &Connection) {
    drop(connection.prepare("SELECT 1 FROM rusqlite_fixtures_none"));
}

fn name_of(table: usize) -> String {
    format!("rusqlite_fixtures_{}", table % TABLES)
}

pub(super) fn read<R: Rows>(rows: &R, connection: &Connection) -> rusqlite::Result<Content<R::Key, R::Value>> {
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

pub(super) fn outcome_of<K, V>(result: rusqlite::Result<()>) -> Outcome<K, V> {
    result.map_or_else(|error| refusal(&error), |()| Outcome::Done)
}

/// SQLite's errors for a key that already exists.
const DUPLICATE_KEY: [i32; 3] =
    [ffi::SQLITE_CONSTRAINT_PRIMARYKEY, ffi::SQLITE_CONSTRAINT_ROWID, ffi::SQLITE_CONSTRAINT_UNIQUE];

/// Returns what SQLite's error means.
pub(super) fn refusal<K, V>(error: &rusqlite::Error) -> Outcome<K, V> {
    let message = error.to_string();
    let code = error.sqlite_error();
    match code.map(|code| code.code) {
        Some(ErrorCode::DatabaseBusy) if code.is_some_and(|code| code.extended_code == ffi::SQLITE_BUSY_SNAPSHOT) => {
            Outcome::Stale
        }
        Some(ErrorCode::DatabaseBusy) => Outcome::Locked,
        _ if code.is_some_and(|code| DUPLICATE_KEY.contains(&code.extended_code)) => Outcome::Exists,
        _ if message.contains("already exists") => Outcome::Exists,
        _ if message.contains("no such table: rusqlite_fixtures_") => Outcome::Missing,
        _ if message.contains("no such savepoint") => Outcome::NoSavepoint,
        _ if message.contains("no transaction is active") => Outcome::NoTransaction,
        _ if message.contains("within a transaction") => Outcome::InTransaction,
        _ => Outcome::Failed(message),
    }
}

pub(super) fn create_table(table: usize, reversed: bool, value: u8) -> String {
    let (key, value) = ("-1 AS key", format!("{value} AS value"));
    let columns = if reversed { format!("{value}, {key}") } else { format!("{key}, {value}") };
    format!("CREATE TABLE {} AS SELECT {columns}", name_of(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_dropped_while_the_thread_panics() {
        struct SeesPanic<'a>(&'a mut bool);
        impl Drop for SeesPanic<'_> {
            fn drop(&mut self) {
                *self.0 = std::thread::panicking();
            }
        }
        let (mut in_panic, mut in_none) = (false, true);
        drop_in_panic(SeesPanic(&mut in_panic));
        drop(SeesPanic(&mut in_none));
        assert_eq!((in_panic, in_none), (true, false));
    }
}
