//! Pragmas fail when memory runs out. A process of its own, for SQLite's allocator is the process's.
#![allow(unsafe_code, reason = "calls SQLite past rusqlite, to do what only such code can")]

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rusqlite::ffi;
use rusqlite_fixtures::Engine;
use rusqlite_fixtures::rusqlite::{self, Connection};

/// SQLite's own xMalloc and xRealloc.
static BELOW: OnceLock<(Malloc, Realloc)> = OnceLock::new();
type Malloc = unsafe extern "C" fn(c_int) -> *mut c_void;
type Realloc = unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_void;

/// How many allocations there are until one fails, with that one; zero when none is to.
static UNTIL_FAILURE: AtomicUsize = AtomicUsize::new(0);

fn is_to_fail() -> bool {
    let before = UNTIL_FAILURE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    before == Ok(1)
}

unsafe extern "C" fn malloc(size: c_int) -> *mut c_void {
    let (malloc, _) = BELOW.get().unwrap();
    // SAFETY: as SQLite called this.
    if is_to_fail() { ptr::null_mut() } else { unsafe { malloc(size) } }
}

unsafe extern "C" fn realloc(memory: *mut c_void, size: c_int) -> *mut c_void {
    let (_, realloc) = BELOW.get().unwrap();
    // SAFETY: as SQLite called this.
    if is_to_fail() { ptr::null_mut() } else { unsafe { realloc(memory, size) } }
}

/// Has SQLite allocate by the functions above. Nothing has used SQLite yet.
fn replace_allocator() {
    // SAFETY: the argument is a struct to write to; each of its fields may be zero.
    let mut methods = unsafe {
        let mut methods: ffi::sqlite3_mem_methods = std::mem::zeroed();
        assert_eq!(ffi::sqlite3_config(ffi::SQLITE_CONFIG_GETMALLOC, &raw mut methods), ffi::SQLITE_OK);
        methods
    };
    assert!(BELOW.set((methods.xMalloc.unwrap(), methods.xRealloc.unwrap())).is_ok());
    methods.xMalloc = Some(malloc);
    methods.xRealloc = Some(realloc);
    // SAFETY: SQLite copies the methods, which allocate as its own do, or fail.
    assert_eq!(unsafe { ffi::sqlite3_config(ffi::SQLITE_CONFIG_MALLOC, &raw mut methods) }, ffi::SQLITE_OK);
}

/// Has SQLite take memory for each allocation from the allocator.
fn without_lookaside(connection: &Connection) {
    let none: *mut c_void = ptr::null_mut();
    // SAFETY: the connection is open, and these are the arguments that the verb takes.
    let code = unsafe { ffi::sqlite3_db_config(connection.handle(), ffi::SQLITE_DBCONFIG_LOOKASIDE, none, 0, 0) };
    assert_eq!(code, ffi::SQLITE_OK);
}

fn ask(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(sql)?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// What comes of the pragma when its n-th allocation fails; `None` if it has no n-th.
fn with_failure(connection: &Connection, n: usize, sql: &str) -> Option<rusqlite::Result<Vec<String>>> {
    UNTIL_FAILURE.store(n, Ordering::Relaxed);
    let answer = ask(connection, sql);
    (UNTIL_FAILURE.swap(0, Ordering::Relaxed) == 0).then_some(answer)
}

#[test]
fn a_pragma_never_succeeds_without_its_row() {
    replace_allocator();
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
        let answers: Vec<_> = (1..).map_while(|n| with_failure(&connection, n, sql)).collect();
        let is_out_of_memory =
            |error: &rusqlite::Error| error.sqlite_error_code() == Some(rusqlite::ErrorCode::OutOfMemory);
        for (n, result) in answers.iter().enumerate() {
            match result {
                Ok(rows) => assert_eq!(rows[..], [answer], "{sql} without allocation {}", n + 1),
                Err(error) => assert!(is_out_of_memory(error), "{sql} without allocation {}: {error}", n + 1),
            }
        }
        assert!(answers.iter().filter(|result| result.is_err()).count() > 3, "{sql}: {answers:?}");
        assert_eq!(ask(&connection, sql).unwrap(), [answer]);
    }
}
