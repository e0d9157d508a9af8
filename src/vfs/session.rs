//! Connections: opening them, and telling whether one is as good as new after somebody has used it.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{Location, catch_unwind};
use std::ptr;
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::ffi::{self, sqlite3, sqlite3_stmt};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::waiting::wait_in_turn;
use super::watch::Watch;
use super::{File, METHODS, Mount, handle};
use crate::content::origin::Purpose;
use crate::content::refusal::Refusal;
use crate::error::{BoxError, NoConnection};
use crate::faults;

/// What every connection is given before anybody has it.
pub(crate) struct Setup {
    pub(crate) foreign_keys: bool,
    pub(crate) on_connect: Vec<OnConnect>,
}

/// What a template does to each connection, and where that is written.
#[derive(Clone, Copy)]
pub(crate) struct OnConnect {
    pub(crate) function: fn(&Connection) -> Result<(), BoxError>,
    pub(crate) at: &'static Location<'static>,
}

impl OnConnect {
    fn carry_out(self, connection: &Connection) -> Result<(), NoConnection> {
        let done = (self.function)(connection).and_then(|()| match connection.is_autocommit() {
            true => Ok(()),
            false => Err("it has left a transaction open".into()),
        });
        done.map_err(|cause| NoConnection::NotSetUp { at: self.at, cause })
    }
}

impl Setup {
    /// The setup of engines that are no template's, and of a template that says nothing.
    pub(crate) const DEFAULT: Setup = Setup { foreign_keys: true, on_connect: Vec::new() };

    pub(crate) fn carry_out(&self, connection: &Connection) -> Result<(), NoConnection> {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, self.foreign_keys)?;
        // It is the test's own set-up, so it is spared what is meant for the code under test.
        faults::exempt(|| self.on_connect.iter().try_for_each(|on_connect| on_connect.carry_out(connection)))
    }
}

/// Opens a connection that waits in the engine's queue for its turn to write.
pub(crate) fn connect(uri: &str, setup: &Setup, purpose: Purpose) -> Result<Connection, NoConnection> {
    let connection = open(uri, purpose)?;
    setup.carry_out(&connection)?;
    Ok(connection)
}

fn open(uri: &str, purpose: Purpose) -> rusqlite::Result<Connection> {
    // SQLITE_OPEN_CREATE, which is among the default flags, is for files that are attached. With a private cache the
    // connection has a file that no other connection uses, and that file knows its purpose.
    let connection = Connection::open_with_flags(uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_PRIVATE_CACHE)?;
    // SAFETY: the file is ours (`file_of` has checked it) and open as long as the connection is, which is not in use.
    unsafe { handle(file_of(&connection).cast()) }.set_purpose(purpose);
    set_busy_handler(&connection);
    Ok(connection)
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

/// Has the connection wait in the engine's queue for its turn to write.
pub(crate) fn set_busy_handler(connection: &Connection) {
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
    /// The connection as it was opened. A user that had it mutably may have put another in its place.
    opened: *mut sqlite3,
    file: *mut File,
    statements: [*mut sqlite3_stmt; COMMANDS.len()],
    /// Compiled when it is needed first: what makes `changes()` zero.
    forget_changes: *mut sqlite3_stmt,
    /// After the connection, whose authorizer uses it.
    watch: Arc<Watch>,
    /// Whether that still is the connection's authorizer. The setup may have put another in its place.
    is_watched: bool,
    /// What SQLite can be asked for and no statement changes, as it was when the connection was opened.
    settings: Settings,
    /// How many pages `PRAGMA wal_autocheckpoint` gave when the connection was opened.
    auto_checkpoint: c_int,
    /// What `PRAGMA synchronous` gave when the connection was opened.
    synchronous: c_int,
    /// [`Handle::encoding_changes`](super::handle::Handle::encoding_changes) before it read anything.
    encoding_changes: usize,
    /// Whether what it has read of the schema is that of the content that its engine was made with.
    has_seen_baseline: bool,
    /// Whether somebody may have given a closure to rusqlite since the connection was clean. From version 0.41 on, which keeps
    /// them in the connection, that takes a mutable reference.
    was_lent_mutably: bool,
    /// Whether SQLite had to compile one of the statements again, which it does after something about the whole
    /// connection has changed: a flag, a function or a collation redefined, an authorizer set.
    was_changed: bool,
}

// SAFETY: a rusqlite::Connection is Send, and the pointers are to parts of that same connection, used by nobody else.
unsafe impl Send for Session {}

impl Session {
    pub(crate) fn open(uri: &str, setup: &Setup, purpose: Purpose) -> Result<Session, NoConnection> {
        Refusal::forget(); // of what came before
        let connection = open(uri, purpose)?;
        let file = file_of(&connection);
        // SAFETY: the file is open as long as the connection is, and not in use. (Before anything reads the schema.)
        let encoding_changes = unsafe { handle(file.cast()) }.encoding_changes();
        let watch = Watch::set(&connection);
        setup.carry_out(&connection)?;
        let is_watched = setup.on_connect.is_empty() || watch.is_set(&connection);
        // Reads the schema now: the first time, SQLite settles the text encoding and compiles all statements again, which
        // would look like a change of the connection later.
        drop(connection.prepare("SELECT 1 FROM sqlite_schema")?);
        // From here on, `drop` finalizes what has been prepared.
        let mut session = Session {
            // SAFETY: the handle is only compared.
            opened: unsafe { connection.handle() },
            settings: Settings::of(&connection),
            auto_checkpoint: auto_checkpoint_of(&connection),
            synchronous: synchronous_of(&connection)?,
            encoding_changes,
            connection,
            file,
            statements: [ptr::null_mut(); COMMANDS.len()],
            forget_changes: ptr::null_mut(),
            watch,
            is_watched,
            has_seen_baseline: false,
            was_lent_mutably: true,
            was_changed: false,
        };
        for (statement, sql) in session.statements.iter_mut().zip(COMMANDS) {
            prepare(&session.connection, sql, statement)?;
        }
        session.take_hooks(); // as they will be taken after each unit of work
        // SAFETY: the file is open as long as the connection is, and not in use.
        unsafe { handle(session.file.cast()) }.approve_pragmas();
        session.watch.restart();
        Ok(session)
    }

    /// The engine's content was what it was made with while this was opened.
    pub(crate) fn saw_baseline(&mut self) {
        self.has_seen_baseline = true;
    }

    /// Whether what it knows of the schema is what a new connection to that content would know.
    ///
    /// A connection that was opened later may have kept something of another header, as its default cache size. One that
    /// has compiled a change of the schema may know less than a new one.
    pub(crate) fn knows_baseline(&self) -> bool {
        self.has_seen_baseline && !self.watch.saw_schema_change()
    }

    /// Whether its text encoding still is that of a new connection. SQLite settles it for good when it reads the schema.
    pub(crate) fn has_current_encoding(&self) -> bool {
        // SAFETY: the file is open as long as the connection is, and not in use: the connection is only in our hands.
        unsafe { handle(self.file.cast()) }.encoding_changes() == self.encoding_changes
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) fn connection_mut(&mut self) -> &mut Connection {
        self.was_lent_mutably = true;
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
    /// These can't be detected, and stay: SQL functions, collations and virtual-table modules that replace none, a
    /// pre-update hook of rusqlite before 0.41, `total_changes()`, and a backup that was neither finished nor dropped.
    pub(crate) fn make_clean(&mut self) -> bool {
        if !self.is_whole() {
            return false;
        }
        if self.is_in_transaction() && self.rollback().is_err() {
            return false;
        }
        self.connection.set_transaction_behavior(TransactionBehavior::Deferred);
        self.take_hooks() && !self.has_leftovers() && self.put_back_synchronous() && self.forget_changes()
    }

    /// Sets `PRAGMA synchronous`, which applications usually set, to what it was. Returns whether it could.
    fn put_back_synchronous(&mut self) -> bool {
        // SAFETY: the file is open as long as the connection is, and not in use.
        if !unsafe { handle(self.file.cast()) }.take_synchronous_was_set() {
            return true;
        }
        let is_done = self.connection.execute_batch(&format!("PRAGMA main.synchronous = {}", self.synchronous)).is_ok();
        // SAFETY: as above. That has set it again.
        unsafe { handle(self.file.cast()) }.take_synchronous_was_set();
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

    /// Forces statements to be compiled again where that is due, so that `was_changed` tells.
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
            || !self.is_watched
            || self.watch.saw_leftovers()
            || !self.settings.are_those_of(&self.connection)
            || self.has_pre_update_hook()
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

    /// Whether rusqlite, from version 0.41 on, keeps the closure of a pre-update hook. Only some builds of SQLite have a call
    /// that takes it off.
    fn has_pre_update_hook(&self) -> bool {
        // SAFETY: the connection is open.
        unsafe { !sqlite3_get_clientdata(self.db(), c"sqlite3_preupdate_hook".as_ptr()).is_null() }
    }

    /// Takes off every callback, drops the closures that they were, and sets our busy handler again. Returns whether none
    /// of the hooks may be one that an older rusqlite keeps in the connection until it is closed.
    fn take_hooks(&mut self) -> bool {
        set_busy_handler(&self.connection);
        let _ = self.connection.progress_handler(0, None::<fn() -> bool>); // by rusqlite, which drops the closure
        let db = self.db();
        // SAFETY: the connection is open, NULL takes a callback off, and no statement is running.
        let is_without_hooks = unsafe {
            ffi::sqlite3_collation_needed(db, ptr::null_mut(), None);
            ffi::sqlite3_trace_v2(db, 0, None, ptr::null_mut());
            ffi::sqlite3_wal_autocheckpoint(db, self.auto_checkpoint); // in the place of a hook for WAL
            ffi::sqlite3_set_last_insert_rowid(db, 0);
            ffi::sqlite3_commit_hook(db, None, ptr::null_mut()).is_null()
                & ffi::sqlite3_rollback_hook(db, None, ptr::null_mut()).is_null()
                & ffi::sqlite3_update_hook(db, None, ptr::null_mut()).is_null()
        };
        if std::mem::take(&mut self.was_lent_mutably) {
            drop_closures(db);
        }
        is_without_hooks
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
        // An error may keep SQLite from compiling it again: an authorizer may forbid it. A time-out is no such error.
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
            std::mem::forget(self.watch.clone()); // which the authorizer of that connection uses
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
    pub(super) fn sqlite3_db_name(db: *mut sqlite3, number: c_int) -> *const c_char;
    // Since 3.44.
    fn sqlite3_get_clientdata(db: *mut sqlite3, name: *const c_char) -> *mut c_void;
    fn sqlite3_set_clientdata(
        db: *mut sqlite3,
        name: *const c_char,
        data: *mut c_void,
        destructor: Option<unsafe extern "C" fn(*mut c_void)>,
    ) -> c_int;
}

fn prepare(connection: &Connection, sql: &CStr, statement: &mut *mut sqlite3_stmt) -> rusqlite::Result<()> {
    // SAFETY: the connection is open, the SQL a C string, and the statement the caller's to finalize.
    let code = unsafe {
        ffi::sqlite3_prepare_v3(connection.handle(), sql.as_ptr(), -1, PERSISTENT, statement, ptr::null_mut())
    };
    check(connection, code)
}

fn synchronous_of(connection: &Connection) -> rusqlite::Result<c_int> {
    connection.query_row("PRAGMA main.synchronous", [], |row| row.get(0))
}

/// What is set by calls of SQLite's, not by statements, and can be asked for.
struct Settings {
    /// Of each category of sqlite3_limit, which are numbered from 0.
    limits: Vec<c_int>,
    /// Bytes at the end of each page that SQLite is to leave alone in a new database.
    reserved_bytes: c_int,
    /// Whether SQL may load extensions.
    load_extension: c_int,
}

impl Settings {
    fn of(connection: &Connection) -> Settings {
        // SQLite answers -1 for a number that it does not know. Newer versions know more.
        let limits = (0..).map(|id| limit(connection, id)).take_while(|limit| *limit >= 0).collect();
        let (reserved_bytes, load_extension) = (reserved_bytes(connection), load_extension(connection));
        Settings { limits, reserved_bytes, load_extension }
    }

    fn are_those_of(&self, connection: &Connection) -> bool {
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
    // SAFETY: the connection is open. With this opcode the argument is an int, of which a negative one only asks; the answer
    // is written to it.
    unsafe {
        let argument = (&raw mut bytes).cast();
        ffi::sqlite3_file_control(connection.handle(), ptr::null(), ffi::SQLITE_FCNTL_RESERVE_BYTES, argument);
    }
    bytes
}

fn load_extension(connection: &Connection) -> c_int {
    let mut is_allowed: c_int = -1;
    // SAFETY: the connection is open. With this verb, -1 changes nothing, and the last argument is an int to write to.
    unsafe {
        let verb = ffi::SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION;
        ffi::sqlite3_db_config(connection.handle(), verb, -1, &raw mut is_allowed);
    }
    is_allowed
}

/// The number of pages that `PRAGMA wal_autocheckpoint` gives, which SQLite keeps as the argument of a hook.
fn auto_checkpoint_of(connection: &Connection) -> c_int {
    // SAFETY: the connection is open, and NULL takes the hook off; `take_hooks` puts it back.
    let argument = unsafe { ffi::sqlite3_wal_hook(connection.handle(), None, ptr::null_mut()) };
    c_int::try_from(argument.addr()).unwrap_or(0)
}

/// Under which names rusqlite, from version 0.41 on, keeps the closures of the callbacks that `take_hooks` takes off.
const CLOSURES: [&CStr; 7] = [
    c"sqlite3_busy_handler",
    c"sqlite3_trace_v2",
    c"sqlite3_wal_hook",
    c"sqlite3_commit_hook",
    c"sqlite3_rollback_hook",
    c"sqlite3_update_hook",
    c"sqlite3_progress_handler",
];

/// Drops the closures of callbacks that have been taken off. One that captures an engine would keep it alive for ever.
fn drop_closures(db: *mut sqlite3) {
    for name in CLOSURES {
        // SAFETY: the connection is open. SQLite calls the destructor that came with the data; no callback has it any more.
        unsafe { sqlite3_set_clientdata(db, name.as_ptr(), ptr::null_mut(), None) };
    }
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
