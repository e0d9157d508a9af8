//! Property tests of your tables against a model, by [proptest](https://docs.rs/proptest) (with the feature
//! `proptest`).
//!
//! The model is a plain map with a stack for savepoints. Your code is compared with it in random sequences of
//! operations over several connections and units of work, or in random transactions on many threads.
//!
//! [`Rows`] describes your code: how it inserts, updates and deletes a row, and reads all rows. [`Table`] implements it
//! for tables of integers. Then [`check`] is a whole property test:
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use proptest::prelude::*;
//! use rusqlite::{Connection, Result};
//! use rusqlite_fixtures::Template;
//! use rusqlite_fixtures::strategies::{Rows, check, operations};
//!
//! static BANK: Template = Template::sql(
//!     "CREATE TABLE account (
//!         id INTEGER PRIMARY KEY, owner TEXT NOT NULL UNIQUE, balance INTEGER NOT NULL
//!     )",
//! );
//!
//! /// The code under test.
//! struct Accounts;
//!
//! impl Rows for Accounts {
//!     type Key = String;
//!     type Value = i64;
//!
//!     fn insert(&self, db: &Connection, owner: &String, balance: &i64) -> Result<()> {
//!         let sql = "INSERT INTO account (owner, balance) VALUES (?1, ?2)";
//!         db.execute(sql, (owner, balance)).map(drop)
//!     }
//!
//!     fn update(&self, db: &Connection, owner: &String, balance: &i64) -> Result<bool> {
//!         let sql = "UPDATE account SET balance = ?2 WHERE owner = ?1";
//!         Ok(db.execute(sql, (owner, balance))? == 1)
//!     }
//!
//!     fn delete(&self, db: &Connection, owner: &String) -> Result<bool> {
//!         Ok(db.execute("DELETE FROM account WHERE owner = ?1", [owner])? == 1)
//!     }
//!
//!     fn read(&self, db: &Connection) -> Result<BTreeMap<String, i64>> {
//!         let mut accounts = db.prepare("SELECT owner, balance FROM account")?;
//!         accounts.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
//!     }
//! }
//!
//! # fn main() {
//! // In a #[test], or in the other form of `proptest!`.
//! proptest!(|(operations in operations("[A-C]", 0..3i64, 1..40))| {
//!     check(&Accounts, BANK.new_engine().unwrap(), &operations)?;
//! });
//! # }
//! ```
//!
//! A sequence runs on one thread without waiting: a connection that would have to wait is refused. So the [`Model`]
//! predicts the exact outcome of each operation, and failures are reproducible. Every operation is defined in each
//! state, so any part of a sequence is a valid sequence. For this reason the module does not use
//! proptest-state-machine: its preconditions would have to hold while a failure shrinks.
//!
//! For threads, [`transactions`] generates a list of [`RowTransaction`]s for each thread, and [`hammers`] generates
//! pauses. [`check_on_threads`] checks that the results of the transactions match some serial order:
//!
//! ```
//! # use proptest::prelude::*;
//! # use rusqlite_fixtures::Template;
//! use rusqlite_fixtures::hammer::{Hammer, SLOT_ASKED};
//! use rusqlite_fixtures::strategies::{Table, check_on_threads, hammers, transactions};
//!
//! static COUNTERS: Template =
//!     Template::sql("CREATE TABLE counter (id INTEGER PRIMARY KEY, value INT NOT NULL)");
//! const COUNTER: Table = Table::new("counter", "id", "value");
//!
//! # fn main() {
//! proptest!(ProptestConfig::with_cases(20), |(
//!     threads in transactions(0..3i64, 0..9i64, 4, 1..8),
//!     hammer in hammers(Hammer::new(), 4, &[SLOT_ASKED]),
//! )| {
//!     check_on_threads(COUNTER, &COUNTERS.new_engine().unwrap(), threads, hammer)?;
//! });
//! # }
//! ```
//!
//! This finds writes that commit early or survive a rollback, and forgotten columns. It also finds caches outside of
//! the database that are stale after a rollback or a restore. The harness begins and ends the transactions. If your
//! code begins and ends them itself, use the [`hammer`](crate::hammer), which finds lost updates, and
//! [`faults`](crate::faults), which find changes that are half done.
//!
//! The harness creates tables and savepoints whose names begin with `rusqlite_fixtures_`. The database needs at least
//! one table from the start.

// Files, each of which uses only files above it:
// * `operation`: operations and statements, and the strategies that generate them; `rows`: the code under test.
// * `outcome`: the outcome and effect of an operation.
// * `dispatch`: the only place that maps an operation to a method of an `Executor`.
// * `view`: the map and the savepoints of one transaction; `model`: the executor that predicts.
// * `subject`: compares an executor with the model.
// * `execute`: statements by SQL; `engines`: the executor on real engines.
// * `on_store`: the executor on the store alone, a test of `content`.
// * `serial`: transactions on threads, which must match a serial order; `pauses`: hammers for them.
//
// The folder uses `hammer`, `engine`, `vfs`, `content` and `error`.
//
// Invariants:
// * Every operation is defined in each state. Numbers are taken modulo the number of things.
// * On one thread nothing waits, so the model predicts each outcome. Only whether a commit of unchanged rows replaces
//   the content is taken from the subject.
// * Each check has counterparts with a planted bug, which must be found and shrink to at most eight steps.

mod dispatch;
mod engines;
mod execute;
mod model;
#[cfg(all(test, not(shuttle)))]
mod on_store;
mod operation;
mod outcome;
mod pauses;
mod rows;
mod serial;
mod subject;
mod view;

pub use self::engines::{Engines, check};
pub use self::model::Model;
pub use self::operation::{CLIENTS, Kind, Operation, RowStatement, operations};
pub use self::outcome::{Content, Effect, Outcome};
pub use self::pauses::hammers;
pub use self::rows::{Rows, Table};
pub use self::serial::{End, Record, RowTransaction, check_on_threads, check_serial, prepare, transactions};
pub use self::subject::{Difference, Subject};
