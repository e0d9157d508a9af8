//! Transactions on many threads: what they saw must be what some order of them, one after another, would have shown.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::sync::{Arc, Mutex};

use proptest::collection::{SizeRange, vec};
use proptest::prelude::*;
use rusqlite::{Connection, TransactionBehavior};

use super::engines::{carry_out, drop_in_panic};
use super::model::{Content, Outcome, View};
use super::operation::{Statement, on_rows};
use super::rows::Rows;
use super::subject::Difference;
use crate::engine::Engine;
use crate::error::Result;
use crate::hammer::Hammer;
use crate::sync::Recovered;

/// One transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Transaction<K, V> {
    /// Whether it takes the writer slot right away.
    pub immediate: bool,
    /// What it does.
    pub statements: Vec<Statement<K, V>>,
    /// How it ends.
    pub end: End,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is committed.
    Commit,
    /// It is rolled back.
    Rollback,
    /// It is dropped.
    Drop,
    /// It is dropped in a panic.
    Panic,
}

/// What a transaction did and saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Record<K, V> {
    /// Whether it has written, and was committed.
    pub committed: bool,
    /// Which of those that were committed it is, counted from 1. After which of them it stands, if it is none.
    pub position: usize,
    /// Its statements, and what came of them, up to one that was refused the writer slot.
    pub seen: Vec<(Statement<K, V>, Outcome<K, V>)>,
}

/// Lists of transactions, one for each of `threads`, with keys and values as these strategies give them.
pub fn transactions<K, V>(
    keys: impl Strategy<Value = K> + 'static,
    values: impl Strategy<Value = V> + 'static,
    threads: usize,
    size: impl Into<SizeRange>,
) -> impl Strategy<Value = Vec<Vec<Transaction<K, V>>>>
where
    K: Clone + Debug + 'static,
    V: Clone + Debug + 'static,
{
    let end =
        prop_oneof![6 => Just(End::Commit), 1 => Just(End::Rollback), 1 => Just(End::Drop), 1 => Just(End::Panic)];
    let transaction = (any::<bool>(), vec(on_rows(keys.boxed(), values.boxed()), 1..6), end)
        .prop_map(|(immediate, statements, end)| Transaction { immediate, statements, end });
    vec(vec(transaction, size), threads)
}

/// A table of the harness's own counts those that write.
const CREATE: &str = "DROP TABLE IF EXISTS rusqlite_fixtures_commits;
    CREATE TABLE rusqlite_fixtures_commits AS SELECT 0 AS count";
const COUNT: &str = "UPDATE rusqlite_fixtures_commits SET count = count + 1 RETURNING count";
const COUNTED: &str = "SELECT count FROM rusqlite_fixtures_commits";

/// Makes an engine ready for transactions that are recorded, by a table of the harness's own that counts them.
///
/// # Errors
/// SQLite's own.
pub fn prepare(engine: &Engine) -> Result<()> {
    let work = engine.begin_in_turn(TransactionBehavior::Immediate)?;
    work.execute_batch(CREATE)?;
    work.commit()
}

impl<K: Clone + Debug + Ord, V: Clone + Debug + PartialEq> Transaction<K, V> {
    /// Carries it out as a unit of work on an engine that is ready for it, and records what it saw.
    ///
    /// # Errors
    /// What [`begin`](Engine::begin) and [`commit`](crate::UnitOfWork::commit) return; SQLite's own.
    #[track_caller]
    pub fn carry_out<R: Rows<Key = K, Value = V>>(&self, rows: &R, engine: &Engine) -> Result<Record<K, V>> {
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

    /// Carries out the statements on a connection that is in a transaction, and records what they saw. How the transaction
    /// ends is the caller's business: as the record says.
    ///
    /// # Errors
    /// SQLite's own, for the count of those that write.
    pub fn record<R: Rows<Key = K, Value = V>>(&self, rows: &R, connection: &Connection) -> Result<Record<K, V>> {
        let (mut seen, mut depth) = (Vec::new(), 0);
        for statement in &self.statements {
            let outcome = carry_out(rows, connection, &mut depth, statement);
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
    fn was_refused(&self, transaction: &Transaction<K, V>) -> bool {
        self.seen.len() < transaction.statements.len()
    }

    /// Whether it has the writer slot, be it for a statement that changed nothing.
    fn has_written(&self) -> bool {
        let writes = |(statement, _): &(Statement<K, V>, Outcome<K, V>)| {
            matches!(statement, Statement::Insert { .. } | Statement::Update { .. } | Statement::Delete { .. })
        };
        self.seen.iter().any(writes)
    }

    /// Does the same with a plain map, and compares.
    fn replay(&self, rows: &BTreeMap<K, V>) -> Result<BTreeMap<K, V>, Difference> {
        let mut view = View::of(Content { rows: rows.clone(), tables: BTreeMap::new() });
        for (statement, got) in &self.seen {
            let expected = view.apply(statement);
            if expected != *got {
                let place = if self.committed { "that is commit" } else { "after commit" };
                let at = format!("the transaction {place} {}, {statement:?}", self.position);
                return Err(Difference::new(at, &expected, got));
            }
        }
        Ok(view.content.rows)
    }
}

/// Has each of the hammer's threads carry out one of these lists of transactions, in one round, and checks that what they
/// saw is what some order of them gives, one after another.
///
/// # Errors
/// The first difference; what failed in a thread; and that the rows can't be read.
///
/// # Panics
/// As [`Hammer::run`].
pub fn check_on_threads<R>(
    rows: R,
    engine: &Engine,
    threads: Vec<Vec<Transaction<R::Key, R::Value>>>,
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
        let seen =
            list.iter().map(|transaction| transaction.carry_out(&*code, &hammered)).collect::<Result<Vec<_>>>()?;
        kept.lock().recovered()[worker.number()] = seen;
        Ok(())
    });
    if let Some((outcome, failure)) = report.failures().next() {
        return Err(failed(format!("thread {}", outcome.worker), failure));
    }
    let after = read(&rows).map_err(|error| failed("reading all rows in the end".to_owned(), &error))?;
    let records = records.lock().recovered();
    check_serial(&before, &records, &after)
}

/// Checks that what transactions saw, and what is there in the end, is what the committed ones give when they are carried
/// out one after another on a plain map; and that no thread went back in time. `before` is what was there before, `records`
/// has a list for each thread.
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
            return Err(Difference::new("what a transaction stands after", &(states.len() - 1), &record.position));
        };
        record.replay(state)?;
    }
    check_time(records)?;
    let expected = &states[states.len() - 1];
    if expected == after { Ok(()) } else { Err(Difference::new("in the end", expected, after)) }
}

/// Each thread's transactions stand in the order in which it carried them out.
fn check_time<K, V>(records: &[Vec<Record<K, V>>]) -> Result<(), Difference> {
    for (thread, records) in records.iter().enumerate() {
        for pair in records.windows(2) {
            let earliest = pair[0].position + usize::from(pair[1].committed);
            if pair[1].position < earliest {
                let at = format!("the order of thread {thread}, at the earliest");
                return Err(Difference::new(at, &earliest, &pair[1].position));
            }
        }
    }
    Ok(())
}
