//! The statements that run on engines: what connections report, and what a recording keeps of it.
//!
//! * `statement`: one of them. `sql`: what its text tells. `waits`: how long it waited.
//! * `conduct`: what statements say of the use of transactions.
//! * `recorder`: what an engine's connections report to. `log`: what one recording keeps, in bounded memory. `callers`: which
//!   code repeats a statement. `recent`: what is known without a recording.
//!
//! This layer uses `content`, `environment` and `sync`. `vfs/trace` reports to it, so it does not know SQLite's interface.
//! `recording` is what users hold.
//!
//! Invariants:
//! * The counts of a log are exact, also of statements that it no longer keeps. Why statements may be missing is noted beside
//!   them.
//! * No user code runs while a lock of these modules is held.

mod callers;
mod conduct;
mod log;
pub(crate) mod recent;
mod recorder;
mod sql;
mod statement;
pub(crate) mod waits;

pub(crate) use self::conduct::Findings;
pub(crate) use self::log::{Counts, Log, Missed, Recorded};
pub(crate) use self::recorder::{Connection, Dropped, Lost, Recorder, Unwound};
pub(crate) use self::sql::{begins_with, is_of_virtual_table, table_of_alias};
pub(crate) use self::statement::{Begun, by_shape, counted};
pub use self::statement::{Counters, Statement, StatementKind};
