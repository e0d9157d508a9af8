//! Detects what a user has left in a connection, as far as SQLite reports it, and removes it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;

use rusqlite::Connection;
use rusqlite::ffi::{self, sqlite3};

use super::connection::set_busy_handler;
use super::sqlite3_db_name;

/// Returns whether the connection has something that a new connection does not have.
pub(super) fn has_leftovers(connection: &Connection) -> bool {
    is_stepping(connection)
        || has_temporary_schema(connection)
        || has_attached_databases(connection)
        || has_pre_update_hook(connection)
}

/// Returns whether a statement was left before its last row.
fn is_stepping(connection: &Connection) -> bool {
    // SAFETY: the connection is open; after NULL comes the first of its statements.
    let next = |statement| unsafe { ffi::sqlite3_next_stmt(db_of(connection), statement) };
    let statements = std::iter::successors(Some(next(ptr::null_mut())), |last| Some(next(*last)));
    // SAFETY: a statement of this connection, which is not finalized meanwhile.
    let is_busy = |statement| unsafe { ffi::sqlite3_stmt_busy(statement) != 0 };
    statements.take_while(|statement| !statement.is_null()).any(is_busy)
}

/// Returns whether the connection's temporary database is open. SQLite opens it with the first temporary table,
/// trigger or view; until then sqlite3_file_control finds no file for it.
fn has_temporary_schema(connection: &Connection) -> bool {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    let out: *mut *mut ffi::sqlite3_file = &mut file;
    // SAFETY: the connection is open; with this opcode the argument is a sqlite3_file* to write to.
    let code = unsafe {
        ffi::sqlite3_file_control(db_of(connection), c"temp".as_ptr(), ffi::SQLITE_FCNTL_FILE_POINTER, out.cast())
    };
    code == ffi::SQLITE_OK
}

/// Returns whether there is a third database, after "main" and "temp".
fn has_attached_databases(connection: &Connection) -> bool {
    // SAFETY: the connection is open, and any number may be asked for.
    unsafe { !sqlite3_db_name(db_of(connection), 2).is_null() }
}

/// Returns whether rusqlite, from version 0.41 on, keeps the closure of a pre-update hook. Only some builds of SQLite
/// have a call that removes it.
fn has_pre_update_hook(connection: &Connection) -> bool {
    // SAFETY: the connection is open.
    unsafe { !sqlite3_get_clientdata(db_of(connection), c"sqlite3_preupdate_hook".as_ptr()).is_null() }
}

/// Removes every callback, and sets the crate's busy handler again. Returns `false` if a hook may be one that an older
/// rusqlite keeps in the connection until it is closed.
pub(super) fn take_hooks(connection: &mut Connection, auto_checkpoint: c_int) -> bool {
    set_busy_handler(connection);
    let _ = connection.progress_handler(0, None::<fn() -> bool>); // by rusqlite, which drops the closure
    let db = db_of(connection);
    // SAFETY: the connection is open, NULL takes a callback off, and no statement is running.
    unsafe {
        ffi::sqlite3_collation_needed(db, ptr::null_mut(), None);
        ffi::sqlite3_wal_autocheckpoint(db, auto_checkpoint); // in the place of a hook for WAL
        ffi::sqlite3_set_last_insert_rowid(db, 0);
        ffi::sqlite3_extended_result_codes(db, 1); // as rusqlite sets it
        sqlite3_autovacuum_pages(db, None, ptr::null_mut(), None);
        ffi::sqlite3_commit_hook(db, None, ptr::null_mut()).is_null()
            & ffi::sqlite3_rollback_hook(db, None, ptr::null_mut()).is_null()
            & ffi::sqlite3_update_hook(db, None, ptr::null_mut()).is_null()
    }
}

/// The names under which rusqlite, from version 0.41 on, keeps the closures of the callbacks that `take_hooks`
/// removes.
const CLOSURES: [&CStr; 7] = [
    c"sqlite3_busy_handler",
    c"sqlite3_trace_v2",
    c"sqlite3_wal_hook",
    c"sqlite3_commit_hook",
    c"sqlite3_rollback_hook",
    c"sqlite3_update_hook",
    c"sqlite3_progress_handler",
];

/// Drops the closures of callbacks that were removed. A closure that captures an engine would keep it alive.
pub(super) fn drop_closures(connection: &Connection) {
    for name in CLOSURES {
        // SAFETY: the connection is open. SQLite calls the destructor that came with the data; no callback has it any
        // more.
        unsafe { super::sqlite3_set_clientdata(db_of(connection), name.as_ptr(), ptr::null_mut(), None) };
    }
}

/// Settings that calls of SQLite's functions change, not statements, and that SQLite reports.
pub(super) struct Settings {
    /// The limit of each category of sqlite3_limit, by the category's number.
    limits: Vec<c_int>,
    /// The number of bytes that SQLite leaves unused at the end of each page of a new database.
    reserved_bytes: c_int,
    /// Whether SQL may load extensions.
    load_extension: c_int,
}

impl Settings {
    pub(super) fn of(connection: &Connection) -> Settings {
        // SQLite answers -1 for a number that it does not know. Newer versions have more.
        let limits = (0..).map(|id| limit(connection, id)).take_while(|limit| *limit >= 0).collect();
        let (reserved_bytes, load_extension) = (reserved_bytes(connection), load_extension(connection));
        Settings { limits, reserved_bytes, load_extension }
    }

    pub(super) fn are_those_of(&self, connection: &Connection) -> bool {
        (0..).zip(&self.limits).all(|(id, expected)| limit(connection, id) == *expected)
            && self.reserved_bytes == reserved_bytes(connection)
            && self.load_extension == load_extension(connection)
    }
}

fn limit(connection: &Connection, id: c_int) -> c_int {
    // SAFETY: the connection is open; a negative value only asks, and any number may be asked for.
    unsafe { ffi::sqlite3_limit(connection.handle(), id, -1) }
}

fn reserved_bytes(connection: &Connection) -> c_int {
    let mut bytes: c_int = -1;
    // SAFETY: the connection is open. With this opcode the argument is an int, of which a negative one only asks; the
    // answer is written to it.
    unsafe {
        let argument = (&raw mut bytes).cast();
        ffi::sqlite3_file_control(connection.handle(), ptr::null(), ffi::SQLITE_FCNTL_RESERVE_BYTES, argument);
    }
    bytes
}

fn load_extension(connection: &Connection) -> c_int {
    let mut is_allowed: c_int = 0;
    // SAFETY: the connection is open. With this verb, -1 changes nothing, and the last argument is an int to write to.
    unsafe {
        let verb = ffi::SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION;
        ffi::sqlite3_db_config(connection.handle(), verb, -1, &raw mut is_allowed);
    }
    is_allowed
}

/// Returns the result of `PRAGMA synchronous`.
pub(super) fn synchronous_of(connection: &Connection) -> rusqlite::Result<c_int> {
    connection.query_row("PRAGMA main.synchronous", [], |row| row.get(0))
}

/// Returns the number of pages of `PRAGMA wal_autocheckpoint`, which SQLite keeps as the argument of a hook.
pub(super) fn auto_checkpoint_of(connection: &Connection) -> c_int {
    // SAFETY: the connection is open, and NULL takes the hook off; `take_hooks` puts it back.
    let argument = unsafe { ffi::sqlite3_wal_hook(connection.handle(), None, ptr::null_mut()) };
    c_int::try_from(argument.addr()).unwrap_or(0)
}

fn db_of(connection: &Connection) -> *mut sqlite3 {
    // SAFETY: the handle is used for single calls, while the connection is open.
    unsafe { connection.handle() }
}

/// The callback of `sqlite3_autovacuum_pages`: data, database, size, free pages and page size; it returns how many to
/// free.
type AutovacuumPages = unsafe extern "C" fn(*mut c_void, *const c_char, c_uint, c_uint, c_uint) -> c_uint;

unsafe extern "C" {
    // Since 3.37.
    fn sqlite3_autovacuum_pages(
        db: *mut sqlite3,
        callback: Option<AutovacuumPages>,
        data: *mut c_void,
        destructor: Option<unsafe extern "C" fn(*mut c_void)>,
    ) -> c_int;
    // Since 3.44.
    fn sqlite3_get_clientdata(db: *mut sqlite3, name: *const c_char) -> *mut c_void;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        Connection::open_in_memory().unwrap()
    }

    #[test]
    fn each_kind_of_leftover_is_detected_alone() {
        let leaves = |sql: &str| {
            let connection = connection();
            connection.execute_batch(sql).unwrap();
            has_leftovers(&connection)
        };
        assert!(!leaves("CREATE TABLE t (a); INSERT INTO t VALUES (1)"));
        assert!(leaves("CREATE TEMP TABLE t (a)"));
        assert!(leaves("ATTACH ':memory:' AS other"));
        let connection = connection();
        let mut statement = connection.prepare("SELECT 1 UNION ALL SELECT 2").unwrap();
        let mut rows = statement.query([]).unwrap();
        rows.next().unwrap();
        assert!(has_leftovers(&connection), "a statement is at its first row");
        drop(rows);
        assert!(!has_leftovers(&connection));
    }

    #[test]
    fn the_hook_for_automatic_vacuum_and_the_kind_of_result_codes_are_restored() {
        unsafe extern "C" fn free_nothing(_: *mut c_void, _: *const c_char, _: c_uint, _: c_uint, _: c_uint) -> c_uint {
            0
        }
        let mut connection = connection();
        connection.execute_batch("PRAGMA auto_vacuum = FULL; CREATE TABLE t (a PRIMARY KEY)").unwrap();
        // SAFETY: the connection is open, and the callback uses no data.
        unsafe {
            sqlite3_autovacuum_pages(db_of(&connection), Some(free_nothing), ptr::null_mut(), None);
            ffi::sqlite3_extended_result_codes(db_of(&connection), 0);
        }
        take_hooks(&mut connection, 0);
        connection
            .execute_batch("INSERT INTO t VALUES (zeroblob(99999)); DELETE FROM t; INSERT INTO t VALUES (1)")
            .unwrap();
        let free: i64 = connection.query_row("PRAGMA freelist_count", [], |row| row.get(0)).unwrap();
        assert_eq!(free, 0, "the hook frees none");
        connection.execute_batch("INSERT INTO t VALUES (1)").unwrap_err();
        // SAFETY: the connection is open.
        let code = unsafe { ffi::sqlite3_errcode(db_of(&connection)) };
        assert_eq!(code, ffi::SQLITE_CONSTRAINT_PRIMARYKEY);
    }

    #[test]
    fn permission_to_load_extensions_is_a_setting_that_asking_does_not_change() {
        let connection = connection();
        let allow = |is_allowed: c_int| {
            let (db, verb) = (db_of(&connection), ffi::SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION);
            // SAFETY: the connection is open. With this verb, the last argument may be NULL.
            unsafe { ffi::sqlite3_db_config(db, verb, is_allowed, ptr::null_mut::<c_int>()) };
        };
        allow(0);
        let settings = Settings::of(&connection);
        assert!(settings.are_those_of(&connection));
        assert_eq!(load_extension(&connection), 0);
        allow(1);
        assert!(!settings.are_those_of(&connection));
        assert_eq!(load_extension(&connection), 1);
    }
}
