//! The statements that run on engines: what connections report, and what a recording keeps of it.
//!
//! * `statement`: one of them. `sql`: what its text tells. `waits`: how long it waited.
//! * `recorder`: what an engine's connections report to. `log`: what one recording keeps, in bounded memory. `callers`: which
//!   code repeats a statement. `recent`: what is known without a recording.
//! * `findings`: what strict mode finds in a recording.
//!
//! This layer uses `content`, `environment`, `panics` and `sync`. `vfs/trace` reports to it, so it does not know SQLite's interface.
//! `recording` is what users hold.
//!
//! Invariants:
//! * The counts of a log are exact, also of statements that it no longer keeps. If statements may be missing, the log says
//!   why.
//! * No user code runs while a lock of these modules is held.

mod callers;
mod findings;
mod log;
pub(crate) mod recent;
mod recorder;
mod sql;
mod statement;
pub(crate) mod waits;

pub(crate) use self::findings::{Findings, Tables};
pub(crate) use self::log::{Counts, Log, Missed, Recorded};
pub(crate) use self::recorder::{Connection, Dropped, Lost, Recorder, Unwound};
pub(crate) use self::sql::{
    begins_with, in_one_line_with_comments, is_of_virtual_table, may_be_of_virtual_table, table_of_alias,
};
pub(crate) use self::statement::{Begun, by_shape, counted};
pub use self::statement::{Counters, Statement, StatementKind};
