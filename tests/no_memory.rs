//! Pragmas fail when memory runs out. A process of its own, for the limit is the process's.
#![allow(unsafe_code, reason = "calls SQLite past rusqlite, to do what only such code can")]

use rusqlite::ffi;
use rusqlite_fixtures::Engine;
use rusqlite_fixtures::rusqlite::{self, Connection};

/// Has SQLite take memory for each allocation from the system, where the limit counts.
fn without_lookaside(connection: &Connection) {
    let none: *mut std::ffi::c_void = std::ptr::null_mut();
    // SAFETY: the connection is open, and these are the arguments that the verb takes.
    let code = unsafe { ffi::sqlite3_db_config(connection.handle(), ffi::SQLITE_DBCONFIG_LOOKASIDE, none, 0, 0) };
    assert_eq!(code, ffi::SQLITE_OK);
}

/// What comes of the pragma when SQLite may take so many bytes more.
fn with_bytes(connection: &Connection, bytes: i64, sql: &str) -> rusqlite::Result<Vec<String>> {
    // SAFETY: these may be called at any time.
    let before = unsafe { ffi::sqlite3_hard_heap_limit64(ffi::sqlite3_memory_used() + bytes) };
    let answer = (|| {
        let mut statement = connection.prepare(sql)?;
        statement.query_map([], |row| row.get(0))?.collect()
    })();
    // SAFETY: as above.
    unsafe { ffi::sqlite3_hard_heap_limit64(before) };
    answer
}

#[test]
fn a_pragma_never_succeeds_without_its_row() {
    let engine = Engine::new();
    let connection = Connection::open(engine.uri()).unwrap();
    without_lookaside(&connection);
    connection.execute_batch("CREATE TABLE entry (a)").unwrap();
    for (sql, answer) in [
        ("PRAGMA locking_mode = EXCLUSIVE", "normal"),
        ("PRAGMA locking_mode = NORMAL", "normal"),
        ("PRAGMA journal_mode = WAL", "wal"),
        ("PRAGMA journal_mode", "wal"),
    ] {
        let mut failures = 0;
        for bytes in (0..6000).step_by(8) {
            match with_bytes(&connection, bytes, sql) {
                Ok(rows) => assert_eq!(rows, [answer], "{sql} with {bytes} bytes"),
                Err(error) => {
                    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::OutOfMemory), "{sql}: {error}");
                    failures += 1;
                }
            }
        }
        assert!((1..750).contains(&failures), "{sql}: {failures} of 750 fail");
    }
}
