//! Connections: opening them, and telling whether one is as good as new after somebody has used it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::catch_unwind;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::config::DbConfig;
use rusqlite::ffi::{self, sqlite3, sqlite3_stmt};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::handle::PUT_BACK_PRAGMAS;
use super::waiting::wait_in_turn;
use super::{File, METHODS, Mount, handle};
use crate::faults;
use crate::origin::{Purpose, Refusal};

/// What every connection is given before anybody has it.
pub(crate) struct Setup {
    pub(crate) foreign_keys: bool,
    pub(crate) on_connect: Vec<fn(&Connection)>,
}

impl Setup {
    /// The setup of engines that are no template's, and of a template that says nothing.
    pub(crate) const DEFAULT: Setup = Setup { foreign_keys: true, on_connect: Vec::new() };

    pub(crate) fn carry_out(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, self.foreign_keys)?;
        // Which can't fail, so it is spared what is meant for the code under test.
        faults::spare(|| self.on_connect.iter().for_each(|on_connect| on_connect(connection)));
        Ok(())
    }
}

/// Opens a connection that waits in the engine's queue for its turn to write.
pub(crate) fn connect(uri: &str, setup: &Setup, purpose: Purpose) -> rusqlite::Result<Connection> {
    connect_watched(uri, setup, purpose, None)
}

/// `connect`; the flag, which has to outlive the connection, is set when a statement is compiled that changes the schema.
fn connect_watched(
    uri: &str,
    setup: &Setup,
    purpose: Purpose,
    has_changed_schema: Option<&Arc<AtomicBool>>,
) -> rusqlite::Result<Connection> {
    // SQLITE_OPEN_CREATE, which is among the default flags, is for files that are attached. With a cache of its own the
    // connection has a file of its own, whose purpose is its own.
    let connection = Connection::open_with_flags(uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_PRIVATE_CACHE)?;
    // SAFETY: the file is ours (`file_of` has checked it) and open as long as the connection is, which is not in use.
    unsafe { handle(file_of(&connection).cast()) }.set_purpose(purpose);
    set_busy_handler(&connection);
    if let Some(flag) = has_changed_schema {
        // SAFETY: the connection is open, and the caller keeps the flag as long as the connection.
        unsafe {
            ffi::sqlite3_set_authorizer(connection.handle(), Some(on_authorize), Arc::as_ptr(flag) as *mut c_void)
        };
    }
    setup.carry_out(&connection)?;
    if connection.is_autocommit() {
        return Ok(connection);
    }
    let misuse = ffi::Error::new(ffi::SQLITE_MISUSE);
    Err(rusqlite::Error::SqliteFailure(misuse, Some("on_connect has left a transaction open".to_owned())))
}

/// Whether the connection's main database is this one.
pub(crate) fn is_connected(connection: &Connection, mount: &Mount) -> bool {
    // SAFETY: the file is ours and open as long as the connection is, which is not in use.
    find_file(connection).is_some_and(|file| unsafe { handle(file.cast()) }.is_on(mount))
}

/// The file that the connection's main database is.
fn file_of(connection: &Connection) -> *mut File {
    find_file(connection).expect("an engine's URI opens that engine")
}

/// The file that the connection's main database is, if it is ours.
fn find_file(connection: &Connection) -> Option<*mut File> {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    let out: *mut *mut ffi::sqlite3_file = &mut file;
    // SAFETY: the connection is open; with this opcode the argument is a sqlite3_file* to write to.
    let code = unsafe {
        ffi::sqlite3_file_control(connection.handle(), ptr::null(), ffi::SQLITE_FCNTL_FILE_POINTER, out.cast())
    };
    // SAFETY: where SQLite answered, the file is its main database's, which is open.
    let is_ours = code == ffi::SQLITE_OK && !file.is_null() && ptr::eq(unsafe { (*file).pMethods }, &METHODS);
    is_ours.then(|| file.cast())
}

fn set_busy_handler(connection: &Connection) {
    // SAFETY: the connection is open. The handler is a function, so it outlives the connection; its argument is the
    // connection itself, of which it uses nothing but the address.
    unsafe {
        let db = connection.handle();
        ffi::sqlite3_busy_handler(db, Some(on_busy), db.cast());
    }
}

unsafe extern "C" fn on_busy(connection: *mut c_void, tries: c_int) -> c_int {
    c_int::from(catch_unwind(|| wait_in_turn(connection.addr(), tries)).unwrap_or(false))
}

/// Allows everything, and notes what changes the schema. Who sets an authorizer of their own makes SQLite compile all
/// statements anew, which is noticed; one that `Setup::on_connect` sets takes this one's place, and is part of the setup.
unsafe extern "C" fn on_authorize(
    has_changed_schema: *mut c_void,
    action: c_int,
    _: *const c_char,
    _: *const c_char,
    _: *const c_char,
    _: *const c_char,
) -> c_int {
    if SCHEMA_CHANGES.contains(&action) {
        // SAFETY: `connect_watched` was given it for as long as the connection lives.
        unsafe { &*has_changed_schema.cast::<AtomicBool>() }.store(true, Ordering::Relaxed);
    }
    ffi::SQLITE_OK
}

/// Whether the authorizer still is ours, after somebody has set up the connection.
fn is_watched(connection: &Connection, has_changed_schema: &AtomicBool) -> bool {
    has_changed_schema.store(false, Ordering::Relaxed);
    drop(connection.prepare("CREATE VIEW rusqlite_fixtures_probe AS SELECT 1")); // compiled, not run
    has_changed_schema.load(Ordering::Relaxed)
}

/// "Authorizer Action Codes" that stand for a change of the schema, or of the statistics beside it.
const SCHEMA_CHANGES: [c_int; 16] = [
    ffi::SQLITE_CREATE_INDEX,
    ffi::SQLITE_CREATE_TABLE,
    ffi::SQLITE_CREATE_TEMP_INDEX,
    ffi::SQLITE_CREATE_TRIGGER,
    ffi::SQLITE_CREATE_VIEW,
    ffi::SQLITE_CREATE_VTABLE,
    ffi::SQLITE_DROP_INDEX,
    ffi::SQLITE_DROP_TABLE,
    ffi::SQLITE_DROP_TEMP_INDEX,
    ffi::SQLITE_DROP_TRIGGER,
    ffi::SQLITE_DROP_VIEW,
    ffi::SQLITE_DROP_VTABLE,
    ffi::SQLITE_ALTER_TABLE,
    ffi::SQLITE_REINDEX,
    ffi::SQLITE_ANALYZE,
    ffi::SQLITE_ATTACH,
];

/// What a unit of work says to SQLite.
#[derive(Clone, Copy)]
enum Command {
    Begin,
    BeginImmediate,
    BeginExclusive,
    Commit,
    Rollback,
}

const COMMANDS: [&CStr; 5] = [c"BEGIN", c"BEGIN IMMEDIATE", c"BEGIN EXCLUSIVE", c"COMMIT", c"ROLLBACK"];

/// A connection for one unit of work after another, with the statements that begin and end them.
pub(crate) struct Session {
    connection: Connection,
    /// The connection as it was opened. Whoever had it mutably may have put another in its place.
    opened: *mut sqlite3,
    file: *mut File,
    statements: [*mut sqlite3_stmt; COMMANDS.len()],
    /// Compiled when it is needed first: what makes `changes()` zero.
    forget_changes: *mut sqlite3_stmt,
    /// Whether it has compiled a statement that changes the schema. After the connection, whose authorizer sets it.
    has_changed_schema: Arc<AtomicBool>,
    /// SQLite's run-time limits as they were when the connection was opened.
    limits: [c_int; LIMITS],
    /// Sets the pragmas that can be put back to what they were when the connection was opened.
    put_back: String,
    /// Whether what it has read of the schema is that of the content that its engine was made with.
    has_seen_baseline: bool,
    /// Whether SQLite had to compile one of the statements anew, which it does after something about the whole
    /// connection has changed: a flag, a function or a collation redefined, an authorizer set.
    was_changed: bool,
}

/// The categories of sqlite3_limit, numbered from 0, that every supported version has.
const LIMITS: usize = 12;

// SAFETY: a rusqlite::Connection is Send, and the pointers are to parts of that same connection, used by nobody else.
unsafe impl Send for Session {}

impl Session {
    pub(crate) fn open(uri: &str, setup: &Setup, purpose: Purpose) -> rusqlite::Result<Session> {
        Refusal::forget(); // of what came before
        let has_changed_schema = Arc::new(AtomicBool::new(false));
        let connection = connect_watched(uri, setup, purpose, Some(&has_changed_schema))?;
        has_changed_schema
            .store(!setup.on_connect.is_empty() && !is_watched(&connection, &has_changed_schema), Ordering::Relaxed);
        // Reads the schema now: the first time, SQLite settles the text encoding and compiles all statements anew, which
        // would look like a change of the connection later.
        drop(connection.prepare("SELECT 1 FROM sqlite_schema")?);
        let file = file_of(&connection);
        let (limits, put_back) = (limits_of(&connection), put_back_of(&connection)?);
        // From here on, `drop` finalizes what has been prepared.
        let mut session = Session {
            // SAFETY: the handle is only compared.
            opened: unsafe { connection.handle() },
            connection,
            file,
            statements: [ptr::null_mut(); COMMANDS.len()],
            forget_changes: ptr::null_mut(),
            has_changed_schema,
            limits,
            put_back,
            has_seen_baseline: false,
            was_changed: false,
        };
        for (statement, sql) in session.statements.iter_mut().zip(COMMANDS) {
            prepare(&session.connection, sql, statement)?;
        }
        session.take_hooks(); // as they will be taken after each unit of work
        // SAFETY: the file is open as long as the connection is, and not in use.
        unsafe { handle(session.file.cast()) }.approve_pragmas();
        Ok(session)
    }

    /// The engine's content was what it was made with while this was opened.
    pub(crate) fn saw_baseline(&mut self) {
        self.has_seen_baseline = true;
    }

    /// Whether what it knows of the schema is what a new connection to that content would know.
    ///
    /// One that was opened later may have read a schema that was edited, or statistics for the query planner, of which the
    /// schema cookie says nothing. And SQLite forgets the statistics that it has read when it fails to create an index.
    pub(crate) fn knows_baseline(&self) -> bool {
        self.has_seen_baseline && !self.has_changed_schema.load(Ordering::Relaxed)
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) fn connection_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }

    pub(crate) fn begin(&mut self, behavior: TransactionBehavior) -> rusqlite::Result<()> {
        self.run(match behavior {
            TransactionBehavior::Deferred => Command::Begin,
            TransactionBehavior::Immediate => Command::BeginImmediate,
            _ => Command::BeginExclusive,
        })
    }

    /// Says what the connection is going to be used for.
    pub(crate) fn set_purpose(&mut self, purpose: Purpose) {
        Refusal::forget(); // of what came before
        // SAFETY: the file is open as long as the connection is, and not in use: the connection is only in our hands.
        unsafe { handle(self.file.cast()).set_purpose(purpose) };
    }

    pub(crate) fn commit(&mut self) -> rusqlite::Result<()> {
        self.run(Command::Commit)
    }

    pub(crate) fn rollback(&mut self) -> rusqlite::Result<()> {
        self.run(Command::Rollback)
    }

    pub(crate) fn is_in_transaction(&self) -> bool {
        !self.connection.is_autocommit()
    }

    pub(crate) fn was_changed(&self) -> bool {
        self.was_changed
    }

    /// Makes the connection ready for the next unit of work, if that can be done. Otherwise it is to be closed.
    ///
    /// What can't be told, and is left: SQL functions, collations and virtual-table modules that replace none, the
    /// pre-update hook, the permission to load extensions, `total_changes()`.
    pub(crate) fn make_clean(&mut self) -> bool {
        if !self.is_whole() {
            return false;
        }
        if self.is_in_transaction() && self.rollback().is_err() {
            return false;
        }
        self.connection.set_transaction_behavior(TransactionBehavior::Deferred);
        self.take_hooks() && !self.has_leftovers() && self.put_back_pragmas() && self.forget_changes()
    }

    /// Sets to what they were the pragmas that applications usually set, if they were set; says whether it could.
    fn put_back_pragmas(&mut self) -> bool {
        // SAFETY: the file is open as long as the connection is, and not in use.
        let is_due = |session: &Session| unsafe { handle(session.file.cast()) }.take_has_to_be_put_back();
        if !is_due(self) {
            return true;
        }
        let is_done = self.connection.execute_batch(&self.put_back).is_ok();
        is_due(self); // which that has set again
        is_done
    }

    /// Makes `changes()` zero, as on a new connection, if that can be done.
    ///
    /// SQLite has no call for it. But a statement that changes rows sets it when it ends, and so does one that was only
    /// to be explained: to zero, and without a lock. It needs a table to be about; any will do.
    fn forget_changes(&mut self) -> bool {
        // SAFETY: the connection is open.
        let changes = |session: &Session| unsafe { ffi::sqlite3_changes(session.db()) };
        if changes(self) == 0 {
            return true;
        }
        if self.forget_changes.is_null() {
            let Some(sql) = self.explain_a_change() else { return false };
            if prepare(&self.connection, &sql, &mut self.forget_changes).is_err() {
                return false;
            }
        }
        // SAFETY: prepared above or before, finalized by `drop`, used by nobody else.
        unsafe {
            ffi::sqlite3_step(self.forget_changes);
            ffi::sqlite3_reset(self.forget_changes);
        }
        changes(self) == 0
    }

    fn explain_a_change(&self) -> Option<CString> {
        const SQL: &str = r#"SELECT format('EXPLAIN DELETE FROM main."%w"', name) FROM main.sqlite_schema
            WHERE type = 'table' AND rootpage > 0 AND name NOT LIKE 'sqlite\_%' ESCAPE '\' LIMIT 1"#;
        let sql: String = self.connection.query_row(SQL, [], |row| row.get(0)).ok()?;
        CString::new(sql).ok()
    }

    /// Has SQLite compile what has to be compiled anew, so that `was_changed` tells.
    pub(crate) fn probe(&mut self) -> rusqlite::Result<()> {
        self.run(Command::Begin)?;
        self.run(Command::Rollback)
    }

    /// Whether the connection is the one that was opened, and its main database still is the engine: sqlite3_deserialize
    /// puts another one in its place.
    fn is_whole(&self) -> bool {
        self.has_its_connection() && find_file(&self.connection) == Some(self.file)
    }

    fn has_its_connection(&self) -> bool {
        self.db() == self.opened
    }

    fn has_leftovers(&self) -> bool {
        // SAFETY: the file is open as long as the connection is, and not in use.
        let is_altered = unsafe { handle(self.file.cast()) }.is_altered();
        self.was_changed
            || is_altered
            || self.is_stepping()
            || self.has_temporary_schema()
            || self.has_attached_databases()
            || limits_of(&self.connection) != self.limits
    }

    /// Whether a statement has been left before its last row.
    fn is_stepping(&self) -> bool {
        // SAFETY: the connection is open; after NULL comes the first of its statements.
        let next = |statement| unsafe { ffi::sqlite3_next_stmt(self.db(), statement) };
        let statements = std::iter::successors(Some(next(ptr::null_mut())), |last| Some(next(*last)));
        // SAFETY: a statement of this connection, which nobody finalizes meanwhile.
        let is_busy = |statement| unsafe { ffi::sqlite3_stmt_busy(statement) != 0 };
        statements.take_while(|statement| !statement.is_null()).any(is_busy)
    }

    /// Whether the connection's temporary database has been opened, which SQLite does with the first temporary table,
    /// trigger or view. Until then sqlite3_file_control finds no file for it.
    fn has_temporary_schema(&self) -> bool {
        let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
        let out: *mut *mut ffi::sqlite3_file = &mut file;
        // SAFETY: the connection is open; with this opcode the argument is a sqlite3_file* to write to.
        let code = unsafe {
            ffi::sqlite3_file_control(self.db(), c"temp".as_ptr(), ffi::SQLITE_FCNTL_FILE_POINTER, out.cast())
        };
        code == ffi::SQLITE_OK
    }

    /// Whether there is a third database, after "main" and "temp".
    fn has_attached_databases(&self) -> bool {
        // SAFETY: the connection is open, and any number may be asked for.
        unsafe { !sqlite3_db_name(self.db(), 2).is_null() }
    }

    /// Takes off every callback and sets our busy handler again; says whether no closure was among the hooks, which
    /// rusqlite would keep until the connection is closed.
    fn take_hooks(&mut self) -> bool {
        set_busy_handler(&self.connection);
        let _ = self.connection.progress_handler(0, None::<fn() -> bool>); // by rusqlite, which drops the closure
        let db = self.db();
        // SAFETY: the connection is open, NULL takes a callback off, and no statement is running.
        unsafe {
            ffi::sqlite3_collation_needed(db, ptr::null_mut(), None);
            ffi::sqlite3_trace_v2(db, 0, None, ptr::null_mut());
            ffi::sqlite3_set_last_insert_rowid(db, 0);
            ffi::sqlite3_commit_hook(db, None, ptr::null_mut()).is_null()
                & ffi::sqlite3_rollback_hook(db, None, ptr::null_mut()).is_null()
                & ffi::sqlite3_update_hook(db, None, ptr::null_mut()).is_null()
        }
    }

    fn run(&mut self, command: Command) -> rusqlite::Result<()> {
        let statement = self.statements[command as usize];
        // SAFETY: prepared by `open`, finalized by `drop`, used by nobody else.
        let code = unsafe {
            let code = ffi::sqlite3_step(statement);
            self.was_changed |= ffi::sqlite3_stmt_status(statement, ffi::SQLITE_STMTSTATUS_REPREPARE, 0) > 0;
            code
        };
        let result = if code == ffi::SQLITE_DONE { Ok(()) } else { check(&self.connection, code) };
        // An error may keep SQLite from compiling it anew: an authorizer may forbid it. To wait in vain is none such.
        self.was_changed |= result.is_err() && code & 0xff != ffi::SQLITE_BUSY;
        // SAFETY: as above. The code is the one of the step, which has been looked at.
        unsafe { ffi::sqlite3_reset(statement) };
        result
    }

    fn db(&self) -> *mut sqlite3 {
        // SAFETY: the handle is used for single calls, while `self` keeps the connection open.
        unsafe { self.connection.handle() }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.has_its_connection() {
            std::mem::forget(self.has_changed_schema.clone());
            return; // the statements are of a connection that another thread may be using: they are given up
        }
        for statement in self.statements.into_iter().chain([self.forget_changes]) {
            // SAFETY: prepared or NULL, which sqlite3_finalize takes too; not used after this.
            unsafe { ffi::sqlite3_finalize(statement) };
        }
        // The fields follow: the connection can be closed, for no statement is left.
    }
}

const PERSISTENT: std::ffi::c_uint = ffi::SQLITE_PREPARE_PERSISTENT as std::ffi::c_uint;

unsafe extern "C" {
    // The bindings of the oldest SQLite that libsqlite3-sys supports don't have it; SQLite has since 3.39.
    fn sqlite3_db_name(db: *mut sqlite3, number: c_int) -> *const c_char;
}

fn prepare(connection: &Connection, sql: &CStr, statement: &mut *mut sqlite3_stmt) -> rusqlite::Result<()> {
    // SAFETY: the connection is open, the SQL a C string, and the statement the caller's to finalize.
    let code = unsafe {
        ffi::sqlite3_prepare_v3(connection.handle(), sql.as_ptr(), -1, PERSISTENT, statement, ptr::null_mut())
    };
    check(connection, code)
}

/// The statements that set what `PUT_BACK_PRAGMAS` says to what it is now.
fn put_back_of(connection: &Connection) -> rusqlite::Result<String> {
    PUT_BACK_PRAGMAS
        .iter()
        .map(|pragma| {
            let value: c_int = connection.query_row(&format!("PRAGMA main.{pragma}"), [], |row| row.get(0))?;
            Ok(format!("PRAGMA main.{pragma} = {value};"))
        })
        .collect()
}

fn limits_of(connection: &Connection) -> [c_int; LIMITS] {
    // SAFETY: the connection is open; a negative value only asks.
    std::array::from_fn(|id| unsafe { ffi::sqlite3_limit(connection.handle(), id as c_int, -1) })
}

/// The error of the connection's latest call, if it was one.
pub(super) fn check(connection: &Connection, code: c_int) -> rusqlite::Result<()> {
    if code == ffi::SQLITE_OK {
        return Ok(());
    }
    // SAFETY: the connection is open, and the message a C string that lives until its next call.
    let message = unsafe { CStr::from_ptr(ffi::sqlite3_errmsg(connection.handle())) };
    let message = message.to_string_lossy().into_owned();
    Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(message)))
}
