//! Runs a script of SQL statements one by one, so that an error can name the statement.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ops::Range;
use std::ptr;

use rusqlite::Connection;
use rusqlite::ffi::{self, sqlite3, sqlite3_stmt};

use super::connection::check;

/// The failure of one statement of a script.
pub(crate) struct Failure {
    pub(crate) cause: rusqlite::Error,
    /// The statement's place in the script, in bytes, without the comments before it.
    pub(crate) statement: Range<usize>,
    /// Where in the script SQLite found the error, or the statement's start if SQLite does not report the place.
    pub(crate) at: usize,
}

unsafe extern "C" {
    // The bindings of the oldest SQLite that libsqlite3-sys supports don't have it; SQLite has it since 3.38.
    fn sqlite3_error_offset(db: *mut sqlite3) -> c_int;
}

/// Runs the statements of the script, each to its end. Ignores rows.
pub(crate) fn run(connection: &Connection, script: &str) -> Result<(), Failure> {
    // With a NUL at its end, SQLite reads the script in place, without a copy of the rest for each statement.
    let sql = CString::new(script).map_err(|error| {
        let at = error.nul_position();
        let code = ffi::Error::new(ffi::SQLITE_ERROR);
        let cause = rusqlite::Error::SqliteFailure(code, Some("the script contains a NUL character".to_owned()));
        Failure { cause, statement: at..at, at }
    })?;
    let mut start = skip_blanks(script);
    while start < script.len() {
        let len = run_one(connection, &sql, start).map_err(|failed| Failure {
            cause: failed.cause,
            statement: start..start + failed.len,
            at: start + failed.offset,
        })?;
        start += len;
        start += skip_blanks(&script[start..]);
    }
    Ok(())
}

struct Failed {
    cause: rusqlite::Error,
    len: usize,
    offset: usize,
}

/// Runs the first statement from `start` on. Returns its length.
fn run_one(connection: &Connection, script: &CStr, start: usize) -> Result<usize, Failed> {
    let mut statement = Statement(ptr::null_mut());
    let mut tail: *const c_char = ptr::null();
    // SAFETY: the connection is open, `start` is within the script, and the rest is ours to write to.
    let (code, len, offset) = unsafe {
        let (db, sql) = (connection.handle(), script.as_ptr().add(start));
        let code = ffi::sqlite3_prepare_v2(db, sql, -1, &raw mut statement.0, &raw mut tail);
        (code, if tail.is_null() { 0 } else { tail.addr() - sql.addr() }, sqlite3_error_offset(db))
    };
    let failed = |cause, offset| Failed { cause, len, offset };
    check(connection, code).map_err(|cause| failed(cause, usize::try_from(offset).unwrap_or(0)))?;
    while !statement.0.is_null() {
        // SAFETY: prepared above, and not finalized yet.
        match unsafe { ffi::sqlite3_step(statement.0) } {
            ffi::SQLITE_ROW => {}
            ffi::SQLITE_DONE => break,
            code => check(connection, code).map_err(|cause| failed(cause, 0))?,
        }
    }
    Ok(len)
}

/// A statement that is finalized when it is dropped.
struct Statement(*mut sqlite3_stmt);

impl Drop for Statement {
    fn drop(&mut self) {
        // SAFETY: prepared by `run_one` or NULL, which sqlite3_finalize takes too.
        unsafe { ffi::sqlite3_finalize(self.0) };
    }
}

/// Returns the number of bytes of white space, comments and empty statements at the start.
fn skip_blanks(sql: &str) -> usize {
    let mut rest = sql;
    loop {
        let next =
            rest.trim_start_matches(|first: char| first.is_ascii_whitespace() || matches!(first, ';' | '\u{feff}'));
        let comment_end = match next.as_bytes() {
            [b'-', b'-', ..] => next.find('\n').unwrap_or(next.len()),
            [b'/', b'*', inside @ ..] => {
                inside.windows(2).position(|pair| pair == b"*/").map_or(next.len(), |end| 2 + end + 2)
            }
            _ => return sql.len() - next.len(),
        };
        rest = &next[comment_end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It also checks that no statement is left: SQLite does not close a connection that has one.
    #[test]
    fn a_failure_says_where_its_statement_is_without_the_comments_before_it() {
        let connection = Connection::open_in_memory().unwrap();
        let script = "SELECT 1; -- one\n;/* two */ -- three\nSELEC 2; SELECT 3 -- four";
        let failure = run(&connection, script).err().unwrap();
        assert_eq!(&script[failure.statement], "SELEC", "as far as SQLite has read it");
        assert_eq!(Some(failure.at), script.find("SELEC "));
        assert!(run(&connection, &script.replace("SELEC ", "SELECT ")).is_ok());
        connection.close().map_err(|(_, error)| error).unwrap();
    }

    #[test]
    fn a_statement_runs_beyond_its_first_row() {
        let connection = Connection::open_in_memory().unwrap();
        let script = "PRAGMA auto_vacuum = INCREMENTAL; CREATE TABLE t (a); INSERT INTO t VALUES (zeroblob(99999));
            DELETE FROM t; PRAGMA incremental_vacuum";
        assert!(run(&connection, script).is_ok());
        let free: i64 = connection.query_row("PRAGMA freelist_count", [], |row| row.get(0)).unwrap();
        assert_eq!(free, 0, "the pragma frees a page for each row that it returns");
    }
}
