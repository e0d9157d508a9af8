//! Property tests of tables with an oracle, by [proptest](https://docs.rs/proptest): any sequence of operations over several
//! connections and units of work, or any transactions on many threads, has to do what a plain map with a stack says. (The
//! feature `proptest`.)
//!
//! [`Rows`] is what your code does: how a row is inserted, updated, deleted, and all are read. [`Table`] is one for tables
//! of integers. Then [`check`] is a whole property test:
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
//! // In a #[test], or in the other form that `proptest!` has.
//! proptest!(|(operations in operations("[A-C]", 0..3i64, 1..40))| {
//!     check(&Accounts, BANK.new_engine().unwrap(), &operations)?;
//! });
//! # }
//! ```
//!
//! All of a sequence runs on one thread, and nothing waits: a connection that would have to wait is refused. So the [`Model`] says of each
//! operation exactly what comes of it, and a failure is the same each time. Every operation is defined in each state, so
//! that any part of a sequence is one too; that is why this does without proptest-state-machine, whose preconditions would
//! have to be kept while a failure shrinks.
//!
//! For threads, [`transactions`] generates a list of [`Transaction`]s for each, and [`hammers`] what holds them up;
//! [`check_on_threads`] compares what they saw with what the committed ones give one after another on a map:
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
//! What this finds in your code is a write that commits or stays by itself, something kept beside the database that a
//! rollback or a restore makes wrong, a column forgotten. Transactions are the harness's own; for code that begins and
//! commits by itself there are [`hammer`](crate::hammer) and [`faults`](crate::faults), which find a lost update, and half of
//! a change.
//!
//! The harness has tables and savepoints of its own, whose names begin with `rusqlite_fixtures_`. It needs at least one table
//! to be there from the start.

mod engines;
mod model;
#[cfg(all(test, not(shuttle)))]
mod on_store;
mod operation;
mod pauses;
mod rows;
mod serial;
mod subject;

pub use self::engines::{Engines, check};
pub use self::model::{Content, Effect, Model, Outcome};
pub use self::operation::{HANDS, Kind, Operation, Statement, operations};
pub use self::pauses::hammers;
pub use self::rows::{Rows, Table};
pub use self::serial::{End, Record, Transaction, check_on_threads, check_serial, prepare, transactions};
pub use self::subject::{Difference, Subject};
