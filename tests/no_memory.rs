//! Pragmas report that memory has run out. The test has its own process, because SQLite's allocator is process-wide.
#![allow(unsafe_code, reason = "calls SQLite's C interface, which rusqlite does not expose here")]

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rusqlite::ffi;
use rusqlite_fixtures::Engine;
use rusqlite_fixtures::rusqlite::{self, Connection};

/// SQLite's default xMalloc and xRealloc.
static DEFAULT: OnceLock<(Malloc, Realloc)> = OnceLock::new();
type Malloc = unsafe extern "C" fn(c_int) -> *mut c_void;
type Realloc = unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_void;

/// The number of allocations up to and including the one that fails; zero if none fails.
static UNTIL_FAILURE: AtomicUsize = AtomicUsize::new(0);

/// Counts an allocation, and returns whether it must fail.
fn must_fail() -> bool {
    let before = UNTIL_FAILURE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    before == Ok(1)
}

unsafe extern "C" fn malloc(size: c_int) -> *mut c_void {
    let (malloc, _) = DEFAULT.get().unwrap();
    // SAFETY: SQLite called this function with the same arguments, under the same contract.
    if must_fail() { ptr::null_mut() } else { unsafe { malloc(size) } }
}

unsafe extern "C" fn realloc(memory: *mut c_void, size: c_int) -> *mut c_void {
    let (_, realloc) = DEFAULT.get().unwrap();
    // SAFETY: SQLite called this function with the same arguments, under the same contract.
    if must_fail() { ptr::null_mut() } else { unsafe { realloc(memory, size) } }
}

/// Makes SQLite allocate by the functions above. Nothing may have used SQLite yet.
fn replace_allocator() {
    // SAFETY: SQLite writes to the struct, and each of its fields may be zero.
    let mut methods = unsafe {
        let mut methods: ffi::sqlite3_mem_methods = std::mem::zeroed();
        assert_eq!(ffi::sqlite3_config(ffi::SQLITE_CONFIG_GETMALLOC, &raw mut methods), ffi::SQLITE_OK);
        methods
    };
    assert!(DEFAULT.set((methods.xMalloc.unwrap(), methods.xRealloc.unwrap())).is_ok());
    methods.xMalloc = Some(malloc);
    methods.xRealloc = Some(realloc);
    // SAFETY: SQLite copies the methods, which call the default ones or fail.
    assert_eq!(unsafe { ffi::sqlite3_config(ffi::SQLITE_CONFIG_MALLOC, &raw mut methods) }, ffi::SQLITE_OK);
}

/// Turns off the lookaside buffer, so that each allocation reaches the allocator.
fn disable_lookaside(connection: &Connection) {
    let none: *mut c_void = ptr::null_mut();
    // SAFETY: the connection is open, and the verb takes these arguments.
    let code = unsafe { ffi::sqlite3_db_config(connection.handle(), ffi::SQLITE_DBCONFIG_LOOKASIDE, none, 0, 0) };
    assert_eq!(code, ffi::SQLITE_OK);
}

fn ask(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(sql)?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// Runs a pragma whose n-th allocation fails; returns `None` if it makes fewer allocations.
fn ask_with_failure(connection: &Connection, n: usize, sql: &str) -> Option<rusqlite::Result<Vec<String>>> {
    UNTIL_FAILURE.store(n, Ordering::Relaxed);
    let answer = ask(connection, sql);
    (UNTIL_FAILURE.swap(0, Ordering::Relaxed) == 0).then_some(answer)
}

#[test]
fn a_pragma_never_succeeds_without_its_row() {
    replace_allocator();
    let engine = Engine::new();
    let connection = Connection::open(engine.uri()).unwrap();
    disable_lookaside(&connection);
    connection.execute_batch("CREATE TABLE entry (a)").unwrap();
    for (sql, answer) in [
        ("PRAGMA locking_mode = EXCLUSIVE", "normal"),
        ("PRAGMA locking_mode = NORMAL", "normal"),
        ("PRAGMA journal_mode = WAL", "wal"),
        ("PRAGMA journal_mode", "wal"),
    ] {
        let answers: Vec<_> = (1..).map_while(|n| ask_with_failure(&connection, n, sql)).collect();
        let is_out_of_memory =
            |error: &rusqlite::Error| error.sqlite_error_code() == Some(rusqlite::ErrorCode::OutOfMemory);
        for (n, result) in answers.iter().enumerate() {
            match result {
                Ok(rows) => assert_eq!(rows[..], [answer], "{sql}, allocation {} fails", n + 1),
                Err(error) => assert!(is_out_of_memory(error), "{sql}, allocation {} fails: {error}", n + 1),
            }
        }
        assert!(answers.iter().filter(|result| result.is_err()).count() > 3, "{sql}: {answers:?}");
        assert_eq!(ask(&connection, sql).unwrap(), [answer]);
    }
}
