//! Scripts of many SQL statements, run one by one so that an error can say which.

use std::ffi::{c_char, c_int};
use std::ops::Range;
use std::ptr;

use rusqlite::Connection;
use rusqlite::ffi::{self, sqlite3, sqlite3_stmt};

use super::session::check;

/// A statement of a script failed.
pub(crate) struct Failure {
    pub(crate) cause: rusqlite::Error,
    /// Where it is in the script, in bytes, without the comments before it.
    pub(crate) statement: Range<usize>,
    /// Where in the script SQLite saw the error; where it does not tell, the statement's start.
    pub(crate) at: usize,
}

unsafe extern "C" {
    // The bindings of the oldest SQLite that libsqlite3-sys supports don't have it; SQLite has since 3.38.
    fn sqlite3_error_offset(db: *mut sqlite3) -> c_int;
}

/// Runs the statements of the script, each to its end; rows are passed over.
pub(crate) fn run(connection: &Connection, script: &str) -> Result<(), Failure> {
    let mut start = 0;
    while start < script.len() {
        start += skip_blanks(&script[start..]);
        let end = run_one(connection, &script[start..]).map_err(|failed| Failure {
            cause: failed.cause,
            statement: start..start + failed.len,
            at: start + failed.offset,
        })?;
        start += end;
    }
    Ok(())
}

struct Failed {
    cause: rusqlite::Error,
    len: usize,
    offset: usize,
}

/// Runs the first statement; returns how long it is.
fn run_one(connection: &Connection, sql: &str) -> Result<usize, Failed> {
    let failed = |cause, len, offset| Failed { cause, len, offset };
    let mut statement = Statement(ptr::null_mut());
    let mut tail: *const c_char = ptr::null();
    let text = sql.as_ptr().cast::<c_char>();
    let bytes = c_int::try_from(sql.len()).unwrap_or(c_int::MAX);
    // SAFETY: the connection is open, the text is of at least so many bytes, and the rest ours to write to.
    let (code, offset) = unsafe {
        let db = connection.handle();
        let code = ffi::sqlite3_prepare_v2(db, text, bytes, &raw mut statement.0, &raw mut tail);
        (code, sqlite3_error_offset(db))
    };
    // What SQLite could not compile it has no end for.
    let len = if tail.is_null() { 0 } else { tail.addr() - text.addr() };
    let first_line = || sql.lines().next().map_or(0, str::len);
    check(connection, code)
        .map_err(|cause| failed(cause, len.max(first_line()), usize::try_from(offset).unwrap_or(0)))?;
    if statement.0.is_null() && len < sql.len() && sql.as_bytes()[len] == 0 {
        let nul = ffi::Error::new(ffi::SQLITE_ERROR);
        let cause = rusqlite::Error::SqliteFailure(nul, Some("the script holds a NUL character".to_owned()));
        return Err(failed(cause, len, len));
    }
    while !statement.0.is_null() {
        // SAFETY: prepared above, and not finalized yet.
        match unsafe { ffi::sqlite3_step(statement.0) } {
            ffi::SQLITE_ROW => {}
            ffi::SQLITE_DONE => break,
            code => check(connection, code).map_err(|cause| failed(cause, len, 0))?,
        }
    }
    Ok(len)
}

/// Finalized when dropped.
struct Statement(*mut sqlite3_stmt);

impl Drop for Statement {
    fn drop(&mut self) {
        // SAFETY: prepared by `run_one` or NULL, which sqlite3_finalize takes too.
        unsafe { ffi::sqlite3_finalize(self.0) };
    }
}

/// How many bytes of white space, comments and empty statements come first.
fn skip_blanks(sql: &str) -> usize {
    let mut rest = sql;
    loop {
        let next =
            rest.trim_start_matches(|first: char| first.is_ascii_whitespace() || matches!(first, ';' | '\u{feff}'));
        let comment_end = match next.as_bytes() {
            [b'-', b'-', ..] => next.find('\n').unwrap_or(next.len()),
            [b'/', b'*', ..] => next.find("*/").map_or(next.len(), |end| end + 2),
            _ => return sql.len() - next.len(),
        };
        rest = &next[comment_end..];
    }
}
