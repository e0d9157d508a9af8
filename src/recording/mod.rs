//! Recordings of the statements that run on an engine, and assertions on them.
//!
//! * `recording` (here): `Engine::record` and what it returns until the recording ends.
//! * `statements`: what a recording returns, with its assertions.
//! * `limits`: limits for each test of a template.
//!
//! This layer uses `engine` and the layers below it.

mod limits;
mod statements;

use std::fmt;
use std::sync::Arc;
#[cfg(feature = "report")]
use std::{fs, path::Path};

pub use self::limits::Limits;
pub use self::statements::{FullScan, Repeat, Statements, assert_constant_statements};
#[cfg(feature = "report")]
use crate::difference::{compare, schema};
use crate::engine::Engine;
#[cfg(feature = "report")]
use crate::error::{Error, Result};
#[cfg(feature = "report")]
use crate::report::{self, EngineReport, Report};
use crate::statements::Log;

/// A running recording of the statements on an [`Engine`]. It ends when it is stopped or dropped.
#[must_use = "dropping a recording discards its statements"]
pub struct Recording {
    log: Arc<Log>,
    engine: Engine,
}

impl Engine {
    /// Begins to record the statements that run on this engine, on any thread and by any library: units of work, pooled
    /// connections, connections of [`connect`](Engine::connect), and those that were opened by [`uri`](Engine::uri),
    /// before or after this call.
    ///
    /// Statements that the crate runs itself, for example to clean a connection, and those of
    /// [`Template::on_connect`](crate::Template::on_connect) are not recorded. BEGIN, COMMIT and ROLLBACK of units of work
    /// are. Several recordings of one engine can run at the same time.
    ///
    /// ```
    /// # use rusqlite_fixtures::{Engine, Result};
    /// # fn main() -> Result<()> {
    /// let engine = Engine::new();
    /// let recording = engine.record();
    /// engine.try_transaction(|work| work.execute_batch("CREATE TABLE note (text)"))?;
    /// let statements = recording.stop();
    /// statements.assert_count(1);
    /// let create = statements.writes();
    /// assert_eq!(create.iter().next().unwrap().sql(), "CREATE TABLE note (text)");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Every statement is counted. The list lacks the oldest if more than [`limit`](Recording::limit) ran. A statement is missing
    /// altogether if code sets a trace of its own on the connection (`sqlite3_trace_v2`), or attaches the engine to another
    /// database. The recording notes each reason, and its assertions fail with it. The chapter
    /// [statements](crate::guide::statements) lists the cases that are not detected. If code already holds a `&Connection` of a
    /// unit of work when the recording begins, the first statement on it is recorded without its time, rows and result. A trace
    /// that code has set on a unit of work or a pooled connection before is replaced when that is used next.
    ///
    /// SQLite reports how a statement ended to its error log, not to a trace. So the first recording, echo, limit, strict engine
    /// or `RUSQLITE_FIXTURES_KEEP=always` makes this crate the receiver of SQLite's log (`SQLITE_CONFIG_LOG`) until the process
    /// ends. A log function that the program has set is no longer called.
    pub fn record(&self) -> Recording {
        let log = Log::new();
        self.begin_recording(&log);
        Recording { log, engine: self.clone() }
    }

    /// Runs `work`, and records the statements meanwhile. See [`record`](Engine::record).
    ///
    /// # Panics
    /// If `work` panics; otherwise as [`Engine::snapshot`].
    pub fn recorded<T>(&self, work: impl FnOnce() -> T) -> (T, Statements) {
        let recording = self.record();
        let value = work();
        (value, recording.stop())
    }
}

impl Recording {
    /// Sets how many statements are kept: the newest, 10,000 by default. The others are counted only.
    pub fn limit(self, statements: usize) -> Recording {
        self.log.set_limit(statements);
        self
    }

    /// Sets how many bytes are kept of each text and blob in the SQL of a statement, as SQL: 1,024 by default. Recordings of
    /// an engine share its statements, so while several run, the largest of their limits applies to all.
    pub fn value_limit(self, bytes: usize) -> Recording {
        self.engine.recorder().set_value_limit(&self.log, bytes);
        self
    }

    /// Returns the statements recorded so far. The recording continues.
    ///
    /// # Panics
    /// As [`Engine::snapshot`]: if the engine is in a file, and SQLite can't read it.
    pub fn statements(&self) -> Statements {
        Statements::of(self.engine.name(), self.engine.copy_in_memory(), self.log.recorded())
    }

    /// Writes an HTML page with what has happened so far, and replaces a file at this path: the changes since the engine was
    /// created, a timeline of the connections, the statements and the schema. The page needs no network. Requires the feature
    /// `report`.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if the file can't be written.
    ///
    /// # Panics
    /// As [`Engine::snapshot`]; if the template's [`on_connect`](crate::Template::on_connect) panics.
    #[cfg(feature = "report")]
    pub fn report(&self, path: impl AsRef<Path>) -> Result<()> {
        let (path, engine) = (path.as_ref(), &self.engine);
        let statements = report::StatementList::Recorded(self.log.recorded());
        let (setup, now) = (engine.setup(), engine.snapshot());
        let committed = compare(&engine.baseline(), &now, setup).map_err(|cause| cause.to_string());
        let schema = schema(&now, setup).map_err(|cause| cause.to_string());
        let engine_report = EngineReport::new(engine.name(), Arc::new(committed), schema, statements);
        let title = format!("Recording of {}", self.engine.name());
        let page = Report { title, panic: None, engines: vec![engine_report] }.to_html();
        fs::write(path, page).map_err(|cause| Error::io("write the report", path, cause))
    }

    /// Ends the recording, and returns its statements.
    ///
    /// # Panics
    /// As [`Engine::snapshot`].
    pub fn stop(self) -> Statements {
        self.engine.end_recording(&self.log);
        self.statements()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.engine.end_recording(&self.log);
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording").field("engine", &self.engine.name()).finish_non_exhaustive()
    }
}
