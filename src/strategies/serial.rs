//! Transactions on many threads: their results must match some serial order.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::sync::{Arc, Mutex};

use proptest::collection::{SizeRange, vec};
use proptest::prelude::*;
use rusqlite::{Connection, TransactionBehavior};

use super::execute::{drop_in_panic, execute};
use super::operation::{RowStatement, on_rows};
use super::outcome::{Content, Outcome};
use super::rows::Rows;
use super::subject::Difference;
use super::view::View;
use crate::engine::Engine;
use crate::error::Result;
use crate::hammer::Hammer;
use crate::sync::Recovered;

/// A transaction that a property generates: its statements, and how it ends.
#[derive(Clone, Debug, PartialEq)]
pub struct RowTransaction<K, V> {
    /// Whether it takes the writer slot at once, by `BEGIN IMMEDIATE`.
    pub immediate: bool,
    /// The statements.
    pub statements: Vec<RowStatement<K, V>>,
    /// The end.
    pub end: End,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// It is committed.
    Commit,
    /// It is rolled back.
    Rollback,
    /// It is dropped.
    Drop,
    /// It is dropped during a panic.
    Panic,
}

/// The record of a transaction: its place in the serial order, and what it saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Record<K, V> {
    /// Whether it has written and was committed.
    pub committed: bool,
    /// For a transaction that was committed, its number in the order of commits, counted from 1. For any other, the
    /// number of the last commit before it.
    pub position: usize,
    /// Its statements and their outcomes, up to the first statement that was refused the writer slot. That statement is
    /// excluded.
    pub seen: Vec<(RowStatement<K, V>, Outcome<K, V>)>,
}

/// Generates a list of transactions for each of `threads` threads, with keys and values from these strategies.
pub fn transactions<K, V>(
    keys: impl Strategy<Value = K> + 'static,
    values: impl Strategy<Value = V> + 'static,
    threads: usize,
    size: impl Into<SizeRange>,
) -> impl Strategy<Value = Vec<Vec<RowTransaction<K, V>>>>
where
    K: Clone + Debug + 'static,
    V: Clone + Debug + 'static,
{
    let end =
        prop_oneof![6 => Just(End::Commit), 1 => Just(End::Rollback), 1 => Just(End::Drop), 1 => Just(End::Panic)];
    let transaction = (any::<bool>(), vec(on_rows(keys.boxed(), values.boxed()), 1..6), end)
        .prop_map(|(immediate, statements, end)| RowTransaction { immediate, statements, end });
    vec(vec(transaction, size), threads)
}

/// A table of the harness counts the transactions that write.
const CREATE: &str = "DROP TABLE IF EXISTS rusqlite_fixtures_commits;
    CREATE TABLE rusqlite_fixtures_commits AS SELECT 0 AS count";
const COUNT: &str = "UPDATE rusqlite_fixtures_commits SET count = count + 1 RETURNING count";
const COUNTED: &str = "SELECT count FROM rusqlite_fixtures_commits";

/// Prepares an engine for transactions that are recorded: creates the harness's table that counts them.
///
/// # Errors
/// When SQLite fails.
pub fn prepare(engine: &Engine) -> Result<()> {
    let work = engine.begin_in_turn(TransactionBehavior::Immediate)?;
    work.execute_batch(CREATE)?;
    work.commit()
}

impl<K: Clone + Debug + Ord, V: Clone + Debug + PartialEq> RowTransaction<K, V> {
    /// Runs the transaction as a unit of work on an engine that is [prepared](prepare), and records what it saw.
    ///
    /// # Errors
    /// The errors of [`begin`](Engine::begin) and [`commit`](crate::UnitOfWork::commit); when SQLite fails.
    #[track_caller]
    pub fn run<R: Rows<Key = K, Value = V>>(&self, rows: &R, engine: &Engine) -> Result<Record<K, V>> {
        let behavior = if self.immediate { TransactionBehavior::Immediate } else { TransactionBehavior::Deferred };
        let work = engine.begin_in_turn(behavior)?;
        let record = self.record(rows, &work)?;
        match self.end {
            End::Commit if record.was_refused(self) => work.rollback()?,
            End::Commit => work.commit()?,
            End::Rollback => work.rollback()?,
            End::Drop => drop(work),
            End::Panic => drop_in_panic(work),
        }
        Ok(record)
    }

    /// Executes the statements on a connection that is in a transaction, and records what they saw. The caller ends the
    /// transaction, and commits it if the record says so.
    ///
    /// # Errors
    /// When SQLite fails to count the transaction.
    pub fn record<R: Rows<Key = K, Value = V>>(&self, rows: &R, connection: &Connection) -> Result<Record<K, V>> {
        let (mut seen, mut depth) = (Vec::new(), 0);
        for statement in &self.statements {
            let outcome = execute(rows, connection, &mut depth, statement);
            if matches!(outcome, Outcome::Locked | Outcome::Stale) {
                break;
            }
            seen.push((statement.clone(), outcome));
        }
        let mut record = Record { committed: false, position: 0, seen };
        record.committed = self.end == End::Commit && !record.was_refused(self) && record.has_written();
        let sql = if record.committed { COUNT } else { COUNTED };
        let position: i64 = connection.query_row(sql, [], |row| row.get(0))?;
        record.position = position as usize;
        Ok(record)
    }
}

impl<K: Clone + Ord + Debug, V: Clone + Debug + PartialEq> Record<K, V> {
    fn was_refused(&self, transaction: &RowTransaction<K, V>) -> bool {
        self.seen.len() < transaction.statements.len()
    }

    /// Whether it has the writer slot, even if its statements changed nothing.
    fn has_written(&self) -> bool {
        self.seen.iter().any(|(statement, _)| statement.writes_row())
    }

    /// Executes the same statements on a plain map, and compares the outcomes.
    fn replay(&self, rows: &BTreeMap<K, V>) -> Result<BTreeMap<K, V>, Difference> {
        let mut view = View::of(Content { rows: rows.clone(), tables: BTreeMap::new() });
        for (statement, got) in &self.seen {
            let expected = view.apply(statement);
            if expected != *got {
                let place = if self.committed { "of commit" } else { "after commit" };
                let at = format!("the transaction {place} {}, {statement:?}", self.position);
                return Err(Difference::new(at, &expected, got));
            }
        }
        Ok(view.content.rows)
    }
}

/// Runs each list of transactions on a thread of the hammer, all in one round, and checks that their results match some
/// serial order.
///
/// # Errors
/// The first difference, the first failure of a thread, or an error if the rows can't be read.
///
/// # Panics
/// When a thread can't be started.
pub fn check_on_threads<R>(
    rows: R,
    engine: &Engine,
    threads: Vec<Vec<RowTransaction<R::Key, R::Value>>>,
    hammer: Hammer,
) -> Result<(), Difference>
where
    R: Rows<Key: Send + Sync, Value: Send + Sync> + Send + Sync + 'static,
{
    if threads.is_empty() {
        return Ok(());
    }
    let failed = |at: String, error: &dyn Display| Difference::new(at, &"no failure", &error.to_string());
    let read = |rows: &R| -> Result<_> { Ok(rows.read(&*engine.unit_of_work()?)?) };
    let before = read(&rows).and_then(|before| prepare(engine).map(|()| before));
    let before = before.map_err(|error| failed("the preparation".to_owned(), &error))?;
    let hammer = hammer.threads(threads.len()).rounds(1);
    let records = Arc::new(Mutex::new(vec![Vec::new(); threads.len()]));
    let (rows, kept, hammered) = (Arc::new(rows), records.clone(), engine.clone());
    let code = rows.clone();
    let report = hammer.run(move |worker| {
        let list = &threads[worker.number()];
        let seen = list.iter().map(|transaction| transaction.run(&*code, &hammered)).collect::<Result<Vec<_>>>()?;
        kept.lock().recovered()[worker.number()] = seen;
        Ok(())
    });
    if let Some((attempt, failure)) = report.failures().next() {
        return Err(failed(format!("thread {}", attempt.worker), failure));
    }
    let after = read(&rows).map_err(|error| failed("reading all rows at the end".to_owned(), &error))?;
    let records = records.lock().recovered();
    check_serial(&before, &records, &after)
}

/// Checks that recorded transactions are serializable. The committed transactions run one after another on a plain map.
/// They must give what the transactions saw, and the rows at the end. No thread may see an older state than before.
///
/// `before` and `after` are the rows before and after all transactions; `records` has a list for each thread.
///
/// # Errors
/// The first difference.
pub fn check_serial<K, V>(
    before: &BTreeMap<K, V>,
    records: &[Vec<Record<K, V>>],
    after: &BTreeMap<K, V>,
) -> Result<(), Difference>
where
    K: Clone + Debug + Ord,
    V: Clone + Debug + PartialEq,
{
    let mut committed: Vec<&Record<K, V>> = records.iter().flatten().filter(|record| record.committed).collect();
    committed.sort_by_key(|record| record.position);
    let mut states = vec![before.clone()];
    for record in committed {
        if record.position != states.len() {
            return Err(Difference::new("the order of commits", &states.len(), &record.position));
        }
        states.push(record.replay(&states[record.position - 1])?);
    }
    for record in records.iter().flatten().filter(|record| !record.committed) {
        let Some(state) = states.get(record.position) else {
            return Err(Difference::new(
                "the commit that a transaction comes after",
                &(states.len() - 1),
                &record.position,
            ));
        };
        record.replay(state)?;
    }
    check_time(records)?;
    let expected = &states[states.len() - 1];
    if expected == after { Ok(()) } else { Err(Difference::new("the rows at the end", expected, after)) }
}

/// Checks that each thread's transactions are in the order in which it ran them.
fn check_time<K, V>(records: &[Vec<Record<K, V>>]) -> Result<(), Difference> {
    for (thread, records) in records.iter().enumerate() {
        for pair in records.windows(2) {
            let earliest = pair[0].position + usize::from(pair[1].committed);
            if pair[1].position < earliest {
                let at = format!("the order of thread {thread}, the earliest position");
                return Err(Difference::new(at, &earliest, &pair[1].position));
            }
        }
    }
    Ok(())
}
