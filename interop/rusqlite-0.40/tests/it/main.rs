//! Code that uses diesel, or a library over rusqlite, tested on engines. Each file shows what a test suite of such
//! code can look like.

mod bank;
mod clock;
mod deadpool_sqlite;
mod diesel;
mod kept;
mod r2d2_sqlite;
mod refinery;
mod rusqlite_migration;
#[path = "../../../support.rs"]
mod support;
mod together;
mod tokio_rusqlite;
