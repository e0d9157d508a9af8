//! The authorizers of sessions and of observed connections. They note each statement that SQLite compiles
//! ("Compile-Time Authorization Callbacks").

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use rusqlite::Connection;
use rusqlite::ffi::{self, sqlite3};

/// The compiled statements of a connection that affect its reuse.
pub(super) struct Watch {
    /// The connection. Never changed; it is atomic so that the watch is Send.
    db: AtomicPtr<sqlite3>,
    of: Of,
    /// The kinds of statements since the last restart: bits.
    seen: AtomicU8,
    /// The kinds of statements since the authorizer was set. SQLite may run them again without compiling them again.
    ever: AtomicU8,
}

/// Whose connection it watches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// The engine's, for its sessions.
    Session,
    /// Another library's. The watch only records.
    Library,
}

/// A statement that changes a schema.
const SCHEMA: u8 = 1;
/// A statement that may leave the connection with other planner statistics than a new connection. For example, SQLite
/// drops the statistics when it fails to create an index.
const STATISTICS: u8 = 2;
/// A pragma that changes the connection and that SQLite does not pass to the VFS, or an extension.
const SETTINGS: u8 = 4;
/// A setting of FTS5, if the database has such a table.
const FTS5: u8 = 8;
/// A statement that changes the connection outside of the engine's content.
const OUTSIDE: u8 = 16;

impl Watch {
    /// Sets the authorizer of a session. SQLite calls it with the returned value, which must live as long as the
    /// connection.
    pub(super) fn set(connection: &Connection) -> Arc<Watch> {
        // SAFETY: the handle is kept for calls on this same connection, by its own authorizer. The connection is open, and
        // the caller keeps the watch as long as the connection.
        unsafe { Watch::authorizer(connection.handle(), Of::Session) }
    }

    /// Sets an authorizer that only records.
    ///
    /// # Safety
    /// The connection is open, and this thread may use it. The caller keeps the result until SQLite begins to close the
    /// connection.
    pub(super) unsafe fn observe(db: *mut sqlite3) -> Arc<Watch> {
        // SAFETY: as the caller promises.
        unsafe { Watch::authorizer(db, Of::Library) }
    }

    /// # Safety
    /// As for `observe`.
    unsafe fn authorizer(db: *mut sqlite3, of: Of) -> Arc<Watch> {
        let (seen, ever) = (AtomicU8::new(0), AtomicU8::new(0));
        let watch = Arc::new(Watch { db: AtomicPtr::new(db), of, seen, ever });
        // SAFETY: as the caller promises.
        unsafe { ffi::sqlite3_set_authorizer(db, Some(on_authorize), Arc::as_ptr(&watch) as *mut c_void) };
        watch
    }

    /// Returns whether this still is the connection's authorizer after a setup that may have set another. After such a
    /// change, SQLite compiles all statements again. This detects a change by the test.
    pub(super) fn is_set(&self, connection: &Connection) -> bool {
        self.seen.fetch_and(!SCHEMA, Ordering::Relaxed);
        drop(connection.prepare("CREATE VIEW rusqlite_fixtures_probe AS SELECT 1")); // compiled, not run
        self.saw_schema_change()
    }

    /// Clears the record of compiled statements.
    pub(super) fn restart(&self) {
        self.seen.store(0, Ordering::Relaxed);
    }

    pub(super) fn saw_schema_change(&self) -> bool {
        self.seen.load(Ordering::Relaxed) & SCHEMA != 0
    }

    /// Returns whether something was compiled after which the connection must not be used for another unit of work on
    /// the same engine.
    pub(super) fn saw_leftovers(&self) -> bool {
        self.seen.load(Ordering::Relaxed) & (STATISTICS | SETTINGS | FTS5) != 0
    }

    pub(super) fn saw_statistics_change(&self) -> bool {
        self.seen.load(Ordering::Relaxed) & STATISTICS != 0
    }

    /// Returns whether a statement was compiled that changes the connection outside of the engine's content, each time
    /// that it runs, even since before the last restart. Other changes make SQLite compile the statement again.
    pub(super) fn ever_saw_outside_effects(&self) -> bool {
        self.ever.load(Ordering::Relaxed) & (SETTINGS | OUTSIDE) != 0
    }

    /// Returns whether FTS5 may have changed its settings, even before the last restart. It keeps the statement.
    pub(super) fn ever_saw_fts5_settings(&self) -> bool {
        self.ever.load(Ordering::Relaxed) & FTS5 != 0
    }

    fn note(&self, kind: u8) {
        self.seen.fetch_or(kind, Ordering::Relaxed);
        self.ever.fetch_or(kind, Ordering::Relaxed);
    }

    fn authorize(&self, action: c_int, texts: [Option<&CStr>; 3]) -> c_int {
        self.record(action, texts);
        match (self.of, action, texts) {
            (Of::Session, ffi::SQLITE_PRAGMA, [Some(pragma), Some(argument), _]) => {
                self.authorize_pragma(pragma, argument)
            }
            (Of::Session, ..) => ffi::SQLITE_OK,
            (Of::Library, ..) => {
                self.record_outside(action, texts);
                ffi::SQLITE_OK
            }
        }
    }

    fn record(&self, action: c_int, [first, second, database]: [Option<&CStr>; 3]) {
        if SCHEMA_CHANGES.contains(&action) {
            self.note(SCHEMA);
        }
        let is_row_change = [ffi::SQLITE_INSERT, ffi::SQLITE_UPDATE, ffi::SQLITE_DELETE].contains(&action);
        if STATISTICS_CHANGES.contains(&action) || is_row_change && first.is_some_and(is_of_statistics) {
            self.note(STATISTICS);
        }
        if action == ffi::SQLITE_INSERT && first.is_some_and(is_of_fts5_settings) {
            self.note(FTS5);
        }
        if action == ffi::SQLITE_FUNCTION && second.is_some_and(|name| name.to_bytes() == b"load_extension") {
            self.note(SETTINGS);
        }
        // SQLite passes a pragma on `main`, or on no database, to the VFS (`Handle::pragma`).
        if action == ffi::SQLITE_PRAGMA && second.is_some() && !is_of_engine(database) {
            self.note(SETTINGS);
        }
    }

    /// Records what is done outside of the engine. (A session's temporary and attached databases are found otherwise.)
    fn record_outside(&self, action: c_int, [first, _, database]: [Option<&CStr>; 3]) {
        if OUTSIDE_ACTIONS.contains(&action) {
            self.note(OUTSIDE);
        }
        if !is_of_engine(database) {
            // ALTER TABLE looks for temporary views and triggers of the table, which does no more than open `temp`.
            self.note(if first.is_some_and(is_temporary_schema) { STATISTICS } else { OUTSIDE });
        }
    }

    /// Decides about a pragma with an argument.
    fn authorize_pragma(&self, pragma: &CStr, argument: &CStr) -> c_int {
        // Code under test often begins with this pragma. After it, SQLite would compile all statements again, as
        // after a change.
        let is_foreign_keys = pragma.to_bytes().eq_ignore_ascii_case(b"foreign_keys");
        if is_foreign_keys && boolean(argument).is_some_and(|on| !self.foreign_keys_would_become(on)) {
            return ffi::SQLITE_IGNORE; // it is compiled to nothing
        }
        ffi::SQLITE_OK
    }

    /// Returns whether `PRAGMA foreign_keys` would change anything. "This pragma is a no-op within a transaction"
    /// (SQLite, "PRAGMA foreign_keys").
    fn foreign_keys_would_become(&self, on: bool) -> bool {
        let (db, mut are_on) = (self.db.load(Ordering::Relaxed), 0);
        // SAFETY: the connection is the one that is calling. With this verb, -1 changes nothing, and the last argument
        // is an int to write to.
        let (is_in_transaction, code) = unsafe {
            let code = ffi::sqlite3_db_config(db, ffi::SQLITE_DBCONFIG_ENABLE_FKEY, -1, &raw mut are_on);
            (ffi::sqlite3_get_autocommit(db) == 0, code)
        };
        code != ffi::SQLITE_OK || !is_in_transaction && (are_on != 0) != on
    }
}

unsafe extern "C" fn on_authorize(
    watch: *mut c_void,
    action: c_int,
    first: *const c_char,
    second: *const c_char,
    database: *const c_char,
    _: *const c_char,
) -> c_int {
    // SAFETY: it lives until SQLite begins to close the connection (`Watch::set`, `Watch::observe`).
    let watch = unsafe { &*watch.cast::<Watch>() };
    // SAFETY: SQLite's own arguments.
    watch.authorize(action, unsafe { texts([first, second, database]) })
}

/// # Safety
/// Each is NULL or a C string that lives as long as the result.
unsafe fn texts<'a>(texts: [*const c_char; 3]) -> [Option<&'a CStr>; 3] {
    // SAFETY: as the caller promises.
    texts.map(|text| (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }))
}

/// The "Authorizer Action Codes" of changes to the schema, or to the statistics beside it.
const SCHEMA_CHANGES: [c_int; 22] = [
    ffi::SQLITE_CREATE_INDEX,
    ffi::SQLITE_CREATE_TABLE,
    ffi::SQLITE_CREATE_TEMP_INDEX,
    ffi::SQLITE_CREATE_TEMP_TABLE,
    ffi::SQLITE_CREATE_TEMP_TRIGGER,
    ffi::SQLITE_CREATE_TEMP_VIEW,
    ffi::SQLITE_CREATE_TRIGGER,
    ffi::SQLITE_CREATE_VIEW,
    ffi::SQLITE_CREATE_VTABLE,
    ffi::SQLITE_DROP_INDEX,
    ffi::SQLITE_DROP_TABLE,
    ffi::SQLITE_DROP_TEMP_INDEX,
    ffi::SQLITE_DROP_TEMP_TABLE,
    ffi::SQLITE_DROP_TEMP_TRIGGER,
    ffi::SQLITE_DROP_TEMP_VIEW,
    ffi::SQLITE_DROP_TRIGGER,
    ffi::SQLITE_DROP_VIEW,
    ffi::SQLITE_DROP_VTABLE,
    ffi::SQLITE_ALTER_TABLE,
    ffi::SQLITE_REINDEX,
    ffi::SQLITE_ANALYZE,
    ffi::SQLITE_ATTACH,
];

/// What changes more of a connection than the engine's content. (Other actions on temporary tables and attached databases
/// name that database.)
const OUTSIDE_ACTIONS: [c_int; 11] = [
    ffi::SQLITE_CREATE_TEMP_INDEX,
    ffi::SQLITE_CREATE_TEMP_TABLE,
    ffi::SQLITE_CREATE_TEMP_TRIGGER,
    ffi::SQLITE_CREATE_TEMP_VIEW,
    ffi::SQLITE_DROP_TEMP_INDEX,
    ffi::SQLITE_DROP_TEMP_TABLE,
    ffi::SQLITE_DROP_TEMP_TRIGGER,
    ffi::SQLITE_DROP_TEMP_VIEW,
    ffi::SQLITE_ANALYZE,
    ffi::SQLITE_ATTACH,
    ffi::SQLITE_DETACH,
];

const STATISTICS_CHANGES: [c_int; 3] = [ffi::SQLITE_CREATE_INDEX, ffi::SQLITE_REINDEX, ffi::SQLITE_ANALYZE];

fn is_of_engine(database: Option<&CStr>) -> bool {
    database.is_none_or(|database| database.to_bytes().eq_ignore_ascii_case(b"main"))
}

fn is_temporary_schema(table: &CStr) -> bool {
    [&b"sqlite_temp_master"[..], b"sqlite_temp_schema"].iter().any(|name| table.to_bytes().eq_ignore_ascii_case(name))
}

fn is_of_statistics(table: &CStr) -> bool {
    const PREFIX: &[u8] = b"sqlite_stat";
    table.to_bytes().get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// Returns whether FTS5 may write its settings to this table. FTS5 keeps them in memory too, where a rollback does not
/// undo them. (If another table has such a name, the only cost is a new connection.)
fn is_of_fts5_settings(table: &CStr) -> bool {
    table.to_bytes().to_ascii_lowercase().ends_with(b"_config")
}

/// Returns SQLite's meaning of the argument of a boolean pragma, if it is one of the usual words.
fn boolean(argument: &CStr) -> Option<bool> {
    let is_one_of =
        |words: [&str; 4]| words.iter().any(|word| argument.to_bytes().eq_ignore_ascii_case(word.as_bytes()));
    if is_one_of(["1", "on", "yes", "true"]) {
        return Some(true);
    }
    is_one_of(["0", "off", "no", "false"]).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(connection: &Connection, sql: &str) {
        drop(connection.prepare(sql).unwrap());
    }

    #[test]
    fn each_kind_of_statement_is_noted_by_itself() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE t (a); CREATE INDEX i ON t (a); CREATE TABLE t_config (k, v); ANALYZE")
            .unwrap();
        let watch = Watch::set(&connection);
        let seen = |sql: &str| {
            watch.restart();
            compile(&connection, sql);
            (watch.saw_schema_change(), watch.saw_leftovers())
        };
        assert_eq!(seen("SELECT * FROM t"), (false, false));
        assert_eq!(seen("INSERT INTO t VALUES (1)"), (false, false));
        assert_eq!(seen("CREATE TABLE other (a)"), (true, false));
        assert_eq!(seen("CREATE INDEX other ON t (a)"), (true, true));
        assert_eq!(seen("ANALYZE t"), (true, true));
        for change in ["INSERT INTO sqlite_stat1 VALUES ('t', 'i', '9 9')", "DELETE FROM SQLITE_STAT1"] {
            assert_eq!(seen(change), (false, true), "{change}");
        }
        assert_eq!(seen("INSERT INTO t_config VALUES ('rank', 1)"), (false, true));
        assert_eq!(seen("SELECT * FROM t_config"), (false, false));
        drop(connection); // before the watch
    }

    #[test]
    fn a_function_is_told_from_a_column_of_its_name() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t (load_extension)").unwrap();
        let watch = Watch::set(&connection);
        compile(&connection, "SELECT load_extension FROM t");
        assert!(!watch.saw_leftovers());
        compile(&connection, "SELECT load_extension('a')");
        assert!(watch.saw_leftovers());
        drop(connection); // before the watch
    }

    #[test]
    fn an_authorizer_that_was_replaced_is_noticed() {
        let connection = Connection::open_in_memory().unwrap();
        let watch = Watch::set(&connection);
        compile(&connection, "CREATE TABLE t (a)");
        assert!(watch.is_set(&connection));
        // SAFETY: the connection is open, and NULL takes the authorizer off.
        unsafe { ffi::sqlite3_set_authorizer(connection.handle(), None, std::ptr::null_mut()) };
        assert!(!watch.is_set(&connection));
    }

    #[test]
    fn what_is_done_to_another_database_is_outside_of_the_engine() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("ATTACH ':memory:' AS other; CREATE TABLE other.t (a); CREATE TABLE t (a)").unwrap();
        // SAFETY: the connection is open, and closed before the watch is dropped.
        let watch = unsafe { Watch::observe(connection.handle()) };
        compile(&connection, "INSERT INTO main.t VALUES (1)");
        assert!(!watch.ever_saw_outside_effects());
        compile(&connection, "SELECT * FROM other.t");
        assert!(watch.ever_saw_outside_effects());
        drop(connection); // before the watch
    }

    #[test]
    fn asking_whether_foreign_keys_are_on_does_not_turn_them_on() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        let _watch = Watch::set(&connection);
        connection.execute_batch("BEGIN; PRAGMA foreign_keys = OFF").unwrap();
        let are_on: bool = connection.query_row("PRAGMA foreign_keys", [], |row| row.get(0)).unwrap();
        assert!(!are_on);
        drop(connection); // before the watch
    }
}
