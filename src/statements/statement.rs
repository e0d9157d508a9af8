use std::backtrace::Backtrace;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::callers::{self, Opening};
use super::sql;
use crate::content::origin::Purpose;

/// A statement that ran on an engine while it was recorded.
///
/// A statement of a trigger, and one that a virtual table runs, belongs to the statement that caused it. A statement that
/// SQLite could not compile has not run.
#[derive(Clone, Debug)]
pub struct Statement {
    pub(super) begun: Arc<Begun>,
    pub(super) ended: Option<Ended>,
    /// The number of its connection within the recording, from 1.
    pub(super) connection: usize,
    /// When the recording began.
    pub(super) recording: Instant,
}

/// What is known when a statement begins.
#[derive(Debug)]
pub(crate) struct Begun {
    sql: Box<str>,
    expanded: Option<Box<str>>,
    kind: StatementKind,
    purpose: Purpose,
    opening: Option<Arc<Opening>>,
    thread: Thread,
    at: Instant,
    transaction: Option<u64>,
    /// Whether a SQL function ran it, within another statement.
    is_nested: bool,
    /// Where it was run, of some of the statements that are repeated, and the time that it took to find that out.
    backtrace: OnceLock<(Backtrace, Duration)>,
}

/// What is known when it ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ended {
    pub(crate) duration: Duration,
    /// The part of it in which it waited for writer slots.
    pub(crate) waited: Duration,
    /// Whether it did not wait longer.
    pub(crate) wait_is_exact: bool,
    pub(crate) rows: u64,
    /// What SQLite says, whatever the statement is.
    pub(crate) changes: u64,
    /// The extended result code and the message.
    pub(crate) error: Option<(i32, Box<str>)>,
    pub(crate) counters: Counters,
    /// The number of the transaction that is open now.
    pub(crate) transaction: Option<u64>,
    /// Whether the connection has the writer slot now.
    pub(crate) holds_slot: bool,
}

/// The kind of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StatementKind {
    /// It reads tables, or computes something.
    Read,
    /// It changes rows or the schema.
    Write,
    /// It begins or ends a transaction or a savepoint.
    Transaction,
    /// Anything else: PRAGMA, ATTACH, DETACH, VACUUM, ANALYZE, REINDEX.
    Other,
}

impl StatementKind {
    pub(crate) fn reads_or_writes(self) -> bool {
        matches!(self, StatementKind::Read | StatementKind::Write)
    }
}

/// What SQLite has counted while a statement ran (SQLite, "Status Parameters for prepared statements").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// The steps forward in a table as part of a full scan (`SQLITE_STMTSTATUS_FULLSCAN_STEP`).
    pub full_scan_steps: u64,
    /// The sorts (`SQLITE_STMTSTATUS_SORT`).
    pub sorts: u64,
    /// The rows that were inserted into indexes that SQLite made for this run (`SQLITE_STMTSTATUS_AUTOINDEX`). SQLite counts
    /// the steps from one row to the next, so this is one less for each index.
    pub automatic_index_rows: u64,
    /// The operations of SQLite's virtual machine (`SQLITE_STMTSTATUS_VM_STEP`).
    pub vm_steps: u64,
}

impl Counters {
    /// Returns what was counted since the counters had these values.
    pub(crate) fn since(self, before: Counters) -> Counters {
        Counters {
            full_scan_steps: self.full_scan_steps.saturating_sub(before.full_scan_steps),
            sorts: self.sorts.saturating_sub(before.sorts),
            automatic_index_rows: self.automatic_index_rows.saturating_sub(before.automatic_index_rows),
            vm_steps: self.vm_steps.saturating_sub(before.vm_steps),
        }
    }
}

/// Returns what a connection is for, and the line that opened it, if that is known.
pub(super) fn opened_by(purpose: Purpose, opening: Option<&Opening>) -> String {
    match opening.filter(|_| purpose == Purpose::Uri).and_then(Opening::line) {
        Some(line) => format!("{purpose} at {line}"),
        None => purpose.to_string(),
    }
}

/// The bytes of SQL that are kept of a literal if nothing else is set.
pub(super) const DEFAULT_VALUE_LIMIT: usize = 1024;

impl Begun {
    /// Returns a statement that begins now, on this thread. `expanded` is its SQL with the values of its parameters. Of each
    /// literal, at most `value_limit` bytes are kept.
    pub(crate) fn now(
        sql: &str,
        expanded: Option<&str>,
        is_read_only: bool,
        purpose: Purpose,
        transaction: Option<u64>,
        value_limit: usize,
    ) -> Begun {
        let sql = sql::alone(sql);
        let expanded = expanded.map(sql::alone).filter(|expanded| *expanded != sql);
        Begun {
            sql: sql::with_short_literals(sql, value_limit).into(),
            expanded: expanded.map(|expanded| sql::with_short_literals(expanded, value_limit).into()),
            kind: sql::kind(sql, is_read_only),
            purpose,
            opening: None,
            thread: thread::current(),
            at: Instant::now(),
            transaction,
            is_nested: false,
            backtrace: OnceLock::new(),
        }
    }

    pub(crate) fn nested(self, is_nested: bool) -> Begun {
        Begun { is_nested, ..self }
    }

    /// Sets where its connection was opened.
    pub(super) fn opened(self, opening: Option<Arc<Opening>>) -> Begun {
        Begun { opening, ..self }
    }

    /// Returns a hash of its text without its values, if it reads or writes.
    pub(super) fn hash_of_shape(&self) -> Option<u64> {
        self.kind.reads_or_writes().then(|| sql::hash_without_values(&self.sql))
    }

    /// Notes where this thread runs the statement. Returns the time that that took.
    pub(super) fn capture_backtrace(&self) -> Duration {
        let start = Instant::now();
        self.backtrace.get_or_init(|| {
            let backtrace = Backtrace::force_capture();
            (backtrace, start.elapsed())
        });
        start.elapsed()
    }

    /// Returns the time since it began, without that for its backtrace.
    pub(super) fn elapsed(&self) -> Duration {
        let captured = self.backtrace.get().map_or(Duration::ZERO, |(_, time)| *time);
        self.at.elapsed().saturating_sub(captured)
    }

    pub(super) fn at(&self) -> Instant {
        self.at
    }

    pub(super) fn reads_or_changes_rows(&self) -> bool {
        self.kind == StatementKind::Read || self.changes_rows()
    }

    pub(crate) fn kind(&self) -> StatementKind {
        self.kind
    }

    /// Returns whether SQLite's number of changed rows is this statement's.
    pub(crate) fn changes_rows(&self) -> bool {
        sql::changes_rows(&self.sql, self.kind)
    }
}

impl Statement {
    /// Returns a statement that is in no recording.
    pub(super) fn alone(begun: Arc<Begun>, ended: Ended) -> Statement {
        Statement { recording: begun.at, begun, ended: Some(ended), connection: 1 }
    }

    /// Returns the SQL as the code has it, with its parameters. Of a literal of more than 1 KB, only the start is kept, unless
    /// [`Recording::value_limit`](crate::Recording::value_limit) was set.
    pub fn sql(&self) -> &str {
        &self.begun.sql
    }

    /// Returns the SQL with the values of its parameters (`sqlite3_expanded_sql`). Long values are cut as those of
    /// [`sql`](Statement::sql).
    pub fn expanded_sql(&self) -> &str {
        self.begun.expanded.as_deref().unwrap_or(&self.begun.sql)
    }

    /// Returns its kind, by its first word and by `sqlite3_stmt_readonly`.
    pub fn kind(&self) -> StatementKind {
        self.begun.kind
    }

    /// Returns the number of its connection. Within a recording, connections are numbered from 1, in the order in which they
    /// run their first statements.
    pub fn connection(&self) -> usize {
        self.connection
    }

    /// Returns what the connection is for, and the line that opened it, for example "the unit of work begun at
    /// tests/bank.rs:12:20". Of a connection that other code has opened by the engine's URI, the line is known if it was opened
    /// while statements were recorded, on a thread of the program's own code.
    pub fn opened_by(&self) -> String {
        opened_by(self.begun.purpose, self.begun.opening.as_deref())
    }

    /// Returns what the connection is for.
    pub(super) fn purpose(&self) -> Purpose {
        self.begun.purpose
    }

    /// Returns the name of the thread that ran it, if it has one.
    pub fn thread(&self) -> Option<&str> {
        self.begun.thread.name()
    }

    /// Returns the time from the beginning of the recording to the beginning of the statement.
    pub fn began(&self) -> Duration {
        self.begun.at.saturating_duration_since(self.recording)
    }

    /// Returns how long it ran, including the time that the program spent between its rows. `None`: it had not ended
    /// when the recording did, or its end was not seen (see [`Engine::record`](crate::Engine::record)).
    pub fn duration(&self) -> Option<Duration> {
        self.ended.as_ref().map(|ended| ended.duration)
    }

    /// Returns the time from the beginning of the recording to the end of the statement; to its beginning, if its end is not
    /// known.
    pub(crate) fn ended_at(&self) -> Duration {
        self.began() + self.duration().unwrap_or_default()
    }

    /// Returns the time from the beginning of the recording to then.
    pub(super) fn time_of(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.recording)
    }

    /// Returns the part of its time in which it waited for a writer slot of an engine in memory, without the sleeps of a busy handler
    /// that code has set.
    pub fn waited(&self) -> Duration {
        self.ended.as_ref().map_or(Duration::ZERO, |ended| ended.waited)
    }

    /// Returns the number of rows that it returned.
    pub fn rows(&self) -> u64 {
        self.ended.as_ref().map_or(0, |ended| ended.rows)
    }

    /// Returns the number of rows that it inserted, updated or deleted, without those of triggers. If it has a RETURNING
    /// clause, and was reset before its last row, returns the number of rows that it has returned.
    pub fn changes(&self) -> u64 {
        match &self.ended {
            Some(ended) if ended.error.is_none() && self.begun.changes_rows() => ended.changes,
            _ => 0,
        }
    }

    /// Returns SQLite's message, if the statement failed. SQLite does not report all failures: see the chapter
    /// [statements](crate::guide::statements#recordings).
    pub fn error(&self) -> Option<&str> {
        self.failure().map(|(_, message)| &**message)
    }

    /// Returns SQLite's extended result code, if the statement failed and SQLite reported a code.
    pub fn error_code(&self) -> Option<i32> {
        self.failure().map(|(code, _)| *code).filter(|code| *code != 0)
    }

    fn failure(&self) -> Option<&(i32, Box<str>)> {
        self.ended.as_ref()?.error.as_ref()
    }

    /// Returns the number of its transaction. `None`: it ran in autocommit mode.
    pub fn transaction(&self) -> Option<u64> {
        let begins = || self.ended.as_ref().filter(|_| self.begun.kind == StatementKind::Transaction)?.transaction;
        self.begun.transaction.or_else(begins)
    }

    /// Returns what SQLite has counted while it ran.
    pub fn counters(&self) -> Counters {
        self.ended.as_ref().map_or(Counters::default(), |ended| ended.counters)
    }

    /// Returns the number of rows that it passed in full scans, or 0 if it made none. SQLite counts the steps from one row to the
    /// next, so a scan of one row is not seen.
    pub(crate) fn scanned_rows(&self) -> u64 {
        match self.counters().full_scan_steps {
            0 => 0,
            steps => steps + 1,
        }
    }

    /// Returns whether its end was recorded. Without it, its counters are not known.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Returns the SQL with `?` in the place of literals, in one line: equal for statements that differ only in their values.
    pub(crate) fn shape(&self) -> String {
        sql::without_values(&self.begun.sql)
    }

    /// Returns the innermost lines of the program's code that ran it, if they are known.
    pub(crate) fn called_from(&self) -> Option<Vec<String>> {
        let lines = self.begun.backtrace.get().map(|(backtrace, _)| callers::lines_of_code(backtrace));
        lines.filter(|lines| !lines.is_empty()) // it may have run on a thread of a library
    }

    pub(super) fn is_nested(&self) -> bool {
        self.begun.is_nested
    }

    /// Returns whether it has waited for exactly that time.
    pub(super) fn wait_is_exact(&self) -> bool {
        self.ended.as_ref().is_some_and(|ended| ended.wait_is_exact)
    }

    /// Returns whether the connection had the writer slot when it had ended.
    pub(super) fn holds_slot(&self) -> bool {
        self.ended.as_ref().is_some_and(|ended| ended.holds_slot)
    }

    /// Returns whether its first word is one of these. The case does not matter.
    pub(crate) fn begins_with(&self, words: &[&str]) -> bool {
        sql::begins_with(self.sql(), words)
    }

    /// Returns whether it is one that changes rows.
    pub(super) fn changes_rows(&self) -> bool {
        self.begun.changes_rows()
    }

    /// Returns the SQL with its values in one line.
    pub(super) fn in_one_line(&self) -> String {
        sql::in_one_line(self.expanded_sql())
    }

    /// Returns the thread's name, or its number.
    pub(crate) fn thread_label(&self) -> String {
        match self.begun.thread.name() {
            Some(name) => format!("`{name}`"),
            None => format!("{:?}", self.begun.thread.id()),
        }
    }
}

/// One line: the SQL with its values, what it returned or changed, and its time.
impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_one_line())?;
        let Some(ended) = &self.ended else { return f.write_str(" -- its end was not recorded") };
        match (&ended.error, self.begun.kind) {
            (Some((_, message)), _) => write!(f, " -- failed: {message}")?,
            (None, StatementKind::Transaction) => f.write_str(" -- done")?,
            (None, _) if self.begun.changes_rows() => write!(f, " -- {} changed", counted(self.changes(), "row"))?,
            (None, _) => write!(f, " -- {}", counted(ended.rows, "row"))?,
        }
        write!(f, ", {:.1?}", ended.duration)?;
        if !ended.waited.is_zero() {
            write!(f, ", of which it waited {:.1?}", ended.waited)?;
        }
        write!(f, ", thread {}", self.thread_label())
    }
}

/// Groups statements that differ only in their values, with the text that they share. The groups are in the order of their first
/// statements.
pub(crate) fn by_shape<'a>(statements: impl IntoIterator<Item = &'a Statement>) -> Vec<(String, Vec<&'a Statement>)> {
    let mut groups: Vec<(String, Vec<&Statement>)> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for statement in statements {
        let shape = statement.shape();
        let place = *places.entry(shape.clone()).or_insert_with(|| {
            groups.push((shape, Vec::new()));
            groups.len() - 1
        });
        groups[place].1.push(statement);
    }
    groups
}

/// Returns the number with the noun, in the plural if that is right.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_shown_if_there_was_one() {
        let begun = Begun::now("SELECT 1;", None, true, Purpose::Uri, None, DEFAULT_VALUE_LIMIT);
        let mut ended = Ended { duration: Duration::from_millis(5), rows: 1, ..Ended::default() };
        let shown = |ended: &Ended, begun: &Arc<Begun>| Statement::alone(begun.clone(), ended.clone()).to_string();
        let (begun, thread) = (Arc::new(begun), thread::current());
        let thread = thread.name().unwrap();
        assert_eq!(shown(&ended, &begun), format!("SELECT 1 -- 1 row, 5.0ms, thread `{thread}`"));
        ended.waited = Duration::from_millis(3);
        let waited = format!("SELECT 1 -- 1 row, 5.0ms, of which it waited 3.0ms, thread `{thread}`");
        assert_eq!(shown(&ended, &begun), waited);
    }

    #[test]
    fn a_backtrace_without_lines_of_the_program_says_nothing() {
        let begun = Begun::now("SELECT 1", None, true, Purpose::Uri, None, DEFAULT_VALUE_LIMIT);
        begun.backtrace.set((Backtrace::disabled(), Duration::ZERO)).unwrap();
        assert_eq!(Statement::alone(Arc::new(begun), Ended::default()).called_from(), None);
    }

    #[test]
    fn the_time_of_a_statement_is_without_that_of_its_backtrace() {
        let begun = Begun::now("SELECT 1", None, true, Purpose::Uri, None, DEFAULT_VALUE_LIMIT);
        let captured = begun.capture_backtrace();
        let elapsed = begun.elapsed();
        let (_, kept) = begun.backtrace.get().unwrap();
        assert!(captured >= *kept && !kept.is_zero());
        assert!(elapsed + *kept <= begun.at.elapsed(), "{elapsed:?} {kept:?}");
    }
}
