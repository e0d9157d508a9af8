//! Reports the statements of connections to their engine's recorder ("Tracing", `sqlite3_trace_v2`).
//!
//! SQLite has one trace for each connection. This one is set when a connection is opened, and asks for as little as
//! possible while nothing is recorded. The end of a statement (`SQLITE_TRACE_PROFILE`) costs SQLite two questions for the
//! time. So sessions ask for it only when they are recorded; they are the engine's own, and fast.
//!
//! A connection is known to its trace by a number, which is looked up while something is recorded. So nothing has to live as
//! long as SQLite may call the trace: statements can run after `sqlite3_close_v2`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant};
use std::{iter, ptr, thread};

use rusqlite::ffi::{self, sqlite3, sqlite3_stmt};

use super::external;
use super::mount::Mount;
use super::serialize::{NotSerialized, serialize};
use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::content::refusal::Refusal;
use crate::environment::Keep;
use crate::statements::recent::{self, Noted};
use crate::statements::{
    Begun, Connection, Counters, Dropped, Lost, Recorder, Unwound, begins_with, is_of_virtual_table,
    may_be_of_virtual_table,
};
use crate::sync::{Recovered, with_local};
use crate::{faults, panics};

/// The connections that have a trace, by number.
static CONNECTIONS: RwLock<BTreeMap<u64, Arc<Traced>>> = RwLock::new(BTreeMap::new());

/// A connection with a trace. It is removed from the list when it is dropped by the connection's file.
pub(crate) struct Traced {
    connection: Connection,
    /// The engine, if it is in memory.
    mount: Weak<Mount>,
    /// What the trace asks for while nothing is recorded.
    at_rest: AtomicU32,
    /// What it asks for now, unless other code has replaced it.
    mask: AtomicU32,
    purpose: Mutex<Purpose>,
    /// Whether it is one that an engine lends out.
    is_session: AtomicBool,
    /// SQLite's number of changed rows when the connection got the writer slot last.
    changes_before: AtomicI32,
    /// The transaction that is dropped with the connection. (SQLite says that it closes a connection before it knows whether it
    /// can.)
    closing: Mutex<Option<Dropped>>,
}

/// Keeps a connection in the list.
pub(super) struct Listed(Arc<Traced>);

/// The result codes of calls that did not fail.
const SUCCESSES: [c_int; 3] = [ffi::SQLITE_OK, ffi::SQLITE_ROW, ffi::SQLITE_DONE];

const BEGINNINGS: c_uint = ffi::SQLITE_TRACE_STMT as c_uint;
const ENDS: c_uint = ffi::SQLITE_TRACE_PROFILE as c_uint;
const CLOSES: c_uint = ffi::SQLITE_TRACE_CLOSE as c_uint;
const ROWS: c_uint = ffi::SQLITE_TRACE_ROW as c_uint;

thread_local! {
    /// Whether the statements of this thread are the crate's own, which are not recorded.
    static IS_EXEMPT: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread drops a connection with the last handle to its engine.
    static ENDS_ENGINE: Cell<bool> = const { Cell::new(false) };
    /// The purpose of the connection that this thread opens.
    static OPENED_FOR: Cell<Option<Purpose>> = const { Cell::new(None) };
    /// The connection and the statement of the latest beginning on this thread, recorded or not. Forgotten when a connection
    /// gives up its locks.
    static BEGUN: Cell<(u64, usize)> = const { Cell::new((0, 0)) };
    /// When this thread first kept what was not committed, and how long that has taken in all.
    static KEEPING: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
    /// The latest line of SQLite's log about a statement that ends with an error.
    static LOGGED: RefCell<Option<Logged>> = const { RefCell::new(None) };
    /// The connection that most recently rolled back what it had written.
    static ROLLED_BACK: Cell<u64> = const { Cell::new(0) };
}

/// A code and the line.
type Logged = (c_int, String);

/// Does some work whose statements are not recorded.
pub(crate) fn exempt<T>(work: impl FnOnce() -> T) -> T {
    with_local(&IS_EXEMPT, true, work)
}

/// Drops a connection with the last handle to its engine.
pub(crate) fn at_the_end_of_an_engine(drop: impl FnOnce()) {
    with_local(&ENDS_ENGINE, true, drop);
}

/// Opens a connection for this purpose.
pub(crate) fn open_for<T>(purpose: Purpose, open: impl FnOnce() -> T) -> T {
    with_local(&OPENED_FOR, Some(purpose), open)
}

fn is_exempt() -> bool {
    IS_EXEMPT.try_with(Cell::get).unwrap_or(true)
}

/// Makes this crate the receiver of SQLite's log of errors, because a trace is not told how a statement ended. (SQLite allows
/// "The SQLITE_CONFIG_LOG option" after its initialization, too.)
pub(crate) fn hear_errors() {
    fn ignore(_: c_int, _: &str) {}
    // SAFETY: the arguments of this option are a function of this signature and its first argument. SQLite sets one after the
    // other without a lock. So another thread that logs an error just then may call the function that was set before with the new
    // argument: that of rusqlite (`config_log`) takes it for a function of the type of `ignore`.
    unsafe { ffi::sqlite3_config(ffi::SQLITE_CONFIG_LOG, on_log as *const c_void, ignore as *const c_void) };
}

unsafe extern "C" fn on_log(_: *mut c_void, code: c_int, message: *const c_char) {
    if !Recorder::any_is_on() {
        return;
    }
    let _ = catch_unwind(|| {
        // SAFETY: SQLite gives a C string.
        let line = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
        if of_abort(&line).is_some() {
            let _ = LOGGED.try_with(|logged| *logged.borrow_mut() = Some((code, line)));
        }
    });
}

impl Traced {
    /// Sets the trace of a connection that is being opened.
    ///
    /// # Safety
    /// The connection is open, and this thread may use it.
    pub(super) unsafe fn begin(db: *mut sqlite3, recorder: Arc<Recorder>, mount: Weak<Mount>) -> Listed {
        // SQLite's questions for the time would be taken for those of the SQL.
        let at_rest = if external::is_observed() { BEGINNINGS } else { BEGINNINGS | ENDS };
        let purpose = OPENED_FOR.try_with(Cell::get).ok().flatten();
        let traced = Arc::new(Traced {
            // Of others, the purpose says where.
            connection: Connection::new(recorder, mount.strong_count() > 0, purpose.is_none()),
            mount,
            at_rest: AtomicU32::new(at_rest),
            mask: AtomicU32::new(0),
            purpose: Mutex::new(purpose.unwrap_or(Purpose::Uri)),
            is_session: AtomicBool::new(false),
            changes_before: AtomicI32::new(0),
            closing: Mutex::default(),
        });
        connections().insert(traced.connection.id(), traced.clone());
        // SAFETY: as the caller promises.
        unsafe { traced.set_trace(db) };
        Listed(traced)
    }

    pub(super) fn set_purpose(&self, purpose: Purpose) {
        *self.purpose.lock().recovered() = purpose;
    }

    /// Notes that code drops the connection's transaction, if that has written.
    ///
    /// # Safety
    /// As for `begin`; it is the same connection.
    pub(super) unsafe fn note_dropped(&self, db: *mut sqlite3) {
        // SAFETY: as the caller promises.
        if let Some(dropped) = unsafe { self.dropped(db) } {
            self.connection.recorder().add_dropped(dropped);
        }
    }

    /// Returns the connection's open transaction, if it has written, and code drops it now. Does not return a unit of work that
    /// ends with its engine, such as a fixture's: the database goes with it.
    ///
    /// # Safety
    /// As for `begin`; it is the same connection.
    unsafe fn dropped(&self, db: *mut sqlite3) -> Option<Dropped> {
        // SAFETY: as the caller promises.
        if unsafe { ffi::sqlite3_txn_state(db, c"main".as_ptr()) } != ffi::SQLITE_TXN_WRITE {
            return None;
        }
        let is_recorded = self.connection.is_recorded();
        if !is_recorded && !recent::is_on() {
            return None; // nothing would print it
        }
        let purpose = *self.purpose.lock().recovered();
        let ends_engine = ENDS_ENGINE.try_with(Cell::get).unwrap_or_default();
        if ends_engine && matches!(purpose, Purpose::UnitOfWork(_)) {
            return None;
        }
        // SAFETY: as the caller promises.
        let code = unsafe { ffi::sqlite3_errcode(db) }; // before the next call
        let has_failed = !SUCCESSES.contains(&code);
        // SAFETY: as the caller promises.
        let has_changed = unsafe { self.has_changed(db) };
        let (is_exact, transaction) = (self.mount.strong_count() > 0, self.connection.open_transaction());
        let (at, thread) = (Instant::now(), thread::current());
        let dropped = Dropped { purpose, transaction, has_changed, is_exact, has_failed, at, thread };
        (has_changed || is_recorded).then_some(dropped)
    }

    /// Notes that the connection got the writer slot.
    ///
    /// # Safety
    /// As for `begin`; it is the same connection.
    pub(super) unsafe fn note_slot(&self, db: *mut sqlite3) {
        // SAFETY: as the caller promises.
        self.changes_before.store(unsafe { ffi::sqlite3_total_changes(db) }, Ordering::Relaxed);
    }

    /// Returns whether the open transaction, which has the writer slot, has changed rows or the schema. With BEGIN IMMEDIATE, it
    /// has the slot before it has changed anything.
    ///
    /// # Safety
    /// As for `begin`; it is the same connection.
    unsafe fn has_changed(&self, db: *mut sqlite3) -> bool {
        let Some(mount) = self.mount.upgrade() else {
            // SAFETY: as the caller promises. The locks of a file are not known here.
            return unsafe { ffi::sqlite3_changes(db) > 0 };
        };
        // SAFETY: as the caller promises.
        if unsafe { ffi::sqlite3_total_changes(db) } != self.changes_before.load(Ordering::Relaxed) {
            return true;
        }
        // SAFETY: as the caller promises.
        let cookie = faults::exempt(|| exempt(|| unsafe { schema_cookie(db) }));
        cookie.is_some_and(|cookie| cookie != mount.store.current().stamp().schema_cookie)
    }

    /// Keeps what a test that fails shows of the connection, which a panic rolls back, closes or gives back now: its latest error
    /// and statements, and what it has not committed.
    ///
    /// # Safety
    /// As for `begin`; it is the same connection.
    #[cold]
    #[inline(never)] // in `on_trace`, it would cost each statement some 15 ns
    pub(super) unsafe fn keep_unwound(&self, db: *mut sqlite3) {
        if !recent::is_on() || is_exempt() {
            return;
        }
        // SAFETY: as the caller promises; SQLite's message is a C string until the next call.
        let (code, state, message) = unsafe {
            let message = CStr::from_ptr(ffi::sqlite3_errmsg(db)).to_string_lossy().into_owned();
            (ffi::sqlite3_errcode(db), ffi::sqlite3_txn_state(db, c"main".as_ptr()), message)
        };
        // SAFETY: as above.
        let read = || unsafe { serialize(db, at_most()) };
        let start = Instant::now();
        let content = (state == ffi::SQLITE_TXN_WRITE).then(|| faults::exempt(|| exempt(read)));
        note_time(start);
        let purpose = *self.purpose.lock().recovered();
        let unwound = Unwound {
            panic: panics::latest().map_or(0, |panic| panic.number),
            thread: thread::current().id(),
            connection: self.connection.id(),
            purpose,
            committed: self.mount.upgrade().map(|mount| mount.store.current()),
            lost: content
                .as_ref()
                .and_then(|content| content.as_ref().err())
                .and_then(|cause| lost(cause, Keep::of_tests().max_size())),
            uncommitted: content.and_then(Result::ok).and_then(|bytes| Snapshot::from_bytes(bytes).ok()),
            error: (!SUCCESSES.contains(&code)).then_some((code, message)),
            recent: recent::of_this_thread(self.connection.id()),
        };
        self.connection.recorder().add_unwound(unwound);
    }

    /// Asks for less while nothing is recorded, because `follow` is called before each use.
    ///
    /// # Safety
    /// As for `begin`; it is the same connection.
    pub(super) unsafe fn rest_as_session(&self, db: *mut sqlite3) {
        self.at_rest.store(BEGINNINGS, Ordering::Relaxed);
        self.is_session.store(true, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { self.set_trace(db) };
    }

    /// Sets the trace by whether statements are recorded now. Replaces a trace that code has set.
    ///
    /// # Safety
    /// As for `begin`; it is the same connection.
    pub(super) unsafe fn set_trace(&self, db: *mut sqlite3) {
        let at_rest = self.at_rest.load(Ordering::Relaxed);
        let mask = CLOSES | if self.connection.is_recorded() { BEGINNINGS | ENDS | ROWS } else { at_rest };
        self.mask.store(mask, Ordering::Relaxed);
        let number = ptr::without_provenance_mut(self.connection.id() as usize);
        // SAFETY: as the caller promises. The argument is a number.
        unsafe { ffi::sqlite3_trace_v2(db, mask, Some(on_trace), number) };
    }

    /// Sets the trace again if a recording has begun or ended since.
    ///
    /// # Safety
    /// As for `begin`; it is the same connection.
    #[inline]
    pub(super) unsafe fn follow(&self, db: *mut sqlite3) {
        if Recorder::any_is_on() {
            // SAFETY: as the caller promises.
            unsafe { self.follow_now(db) };
        }
    }

    #[cold]
    unsafe fn follow_now(&self, db: *mut sqlite3) {
        if self.connection.is_recorded() != (self.mask.load(Ordering::Relaxed) & ROWS != 0) {
            // SAFETY: as the caller of `follow` promises.
            unsafe { self.set_trace(db) };
        }
    }

    /// # Safety
    /// SQLite has called the trace with these arguments.
    unsafe fn event(&self, event: c_uint, statement: *mut sqlite3_stmt, argument: *mut c_void) {
        // SAFETY: the statement is running.
        let db = unsafe { ffi::sqlite3_db_handle(statement) };
        match event {
            BEGINNINGS => {
                // SAFETY: as above.
                let sql = unsafe { ffi::sqlite3_sql(statement) };
                if is_exempt() {
                    return;
                }
                // The text of a statement of a trigger, or within another statement, is a comment in a copy.
                let is_nested = !ptr::eq(sql, argument.cast());
                // SAFETY: both texts are C strings, which live as long as this call.
                if is_nested && !unsafe { self.is_of_function(statement, sql, argument.cast()) } {
                    return;
                }
                // SAFETY: this is the connection that runs the statement.
                unsafe { self.follow_now(db) };
                if self.connection.is_recorded() {
                    // SAFETY: as above.
                    unsafe { self.begin_statement(db, statement, is_nested) };
                }
            }
            ROWS => self.connection.row(statement.addr()),
            ENDS => {
                if let Some((began, rows)) = self.connection.running(statement.addr()) {
                    // SAFETY: as above.
                    unsafe { self.end_statement(db, statement, began, rows) };
                } else {
                    // SAFETY: as above; it has SQL.
                    let sql = unsafe { CStr::from_ptr(ffi::sqlite3_sql(statement)) };
                    take_logged(&sql.to_string_lossy()); // a recorded statement may have the same text
                }
            }
            _ => {}
        }
    }

    /// Returns whether a SQL function, most probably, runs the statement within a recorded one. SQLite and virtual tables do so, too.
    ///
    /// # Safety
    /// The statement's SQL, if it has some, and the text that the trace got for it are C strings.
    unsafe fn is_of_function(&self, statement: *mut sqlite3_stmt, sql: *const c_char, text: *const c_char) -> bool {
        if sql.is_null() || self.connection.running(statement.addr()).is_some() {
            return false; // it is a trigger of this statement that runs
        }
        // SAFETY: as the caller promises.
        let (sql, text) = unsafe { (CStr::from_ptr(sql), CStr::from_ptr(text)) };
        text.to_bytes().strip_prefix(b"-- ") == Some(sql.to_bytes())
            && self.connection.runs_functions()
            && !may_be_of_virtual_table(&sql.to_string_lossy())
    }

    /// # Safety
    /// This connection begins to run the statement.
    unsafe fn begin_statement(&self, db: *mut sqlite3, statement: *mut sqlite3_stmt, is_nested: bool) {
        // SAFETY: the connection and the statement are in use by this thread. A statement has its SQL; SQLite's copy with
        // the values is NULL without memory, and the caller's to free.
        unsafe {
            let sql = CStr::from_ptr(ffi::sqlite3_sql(statement)).to_string_lossy();
            if is_of_virtual_table(&sql) {
                return;
            }
            take_logged(&sql); // of an earlier statement with the same text
            let expanded = ffi::sqlite3_expanded_sql(statement);
            let text = (!expanded.is_null()).then(|| CStr::from_ptr(expanded).to_string_lossy());
            let is_read_only = ffi::sqlite3_stmt_readonly(statement) != 0;
            let purpose = *self.purpose.lock().recovered();
            self.connection.begin(
                statement.addr(),
                counters(statement),
                is_in_transaction(db),
                |transaction, value_limit| {
                    Begun::now(&sql, text.as_deref(), is_read_only, purpose, transaction, value_limit).nested(is_nested)
                },
            );
            ffi::sqlite3_free(expanded.cast());
        }
        self.take_rolled_back();
    }

    /// Returns whether this connection has rolled back what it had written since this was asked last.
    fn take_rolled_back(&self) -> bool {
        let is_this = |number: &Cell<u64>| number.get() == self.connection.id() && number.replace(0) != 0;
        ROLLED_BACK.try_with(is_this).unwrap_or_default()
    }

    /// # Safety
    /// This connection has run the statement.
    unsafe fn end_statement(&self, db: *mut sqlite3, statement: *mut sqlite3_stmt, began: Instant, rows: u64) {
        let was_rolled_back = self.take_rolled_back();
        // SAFETY: the connection and the statement are in use by this thread.
        unsafe {
            let sql = CStr::from_ptr(ffi::sqlite3_sql(statement)).to_string_lossy();
            let error = match take_logged(&sql) {
                // SQLite compiles the statement again, and goes on. If it can't, this is the end.
                Some((code @ ffi::SQLITE_SCHEMA, line)) => {
                    return self.connection.end_for_now(statement.addr(), (code, message(code, &line, &sql)));
                }
                Some((code, line)) => Some((code, message(code, &line, &sql))),
                // SQLite logs nothing if it has no lock, or if it can't commit because of a deferred foreign key, and keeps the
                // statement as it is. (With rows, the code has reset it before it has read all of them.)
                None if rows == 0 && ffi::sqlite3_stmt_busy(statement) != 0 => {
                    let code = if violates_foreign_keys(db) && begins_with(&sql, &["COMMIT", "END", "RELEASE"]) {
                        ffi::SQLITE_CONSTRAINT_FOREIGNKEY
                    } else {
                        Refusal::code_since(began).unwrap_or(ffi::SQLITE_BUSY)
                    };
                    Some((code, text_of(code)))
                }
                // Nor if the statement fails when it ends. Outside of a transaction, it is rolled back then.
                None if was_rolled_back && !gives_up_lock(&sql) => Some((0, ROLLED_BACK_AT_END.into())),
                None => None,
            };
            // A statement with RETURNING that was reset before its last row has not set the number.
            let was_reset = rows > 0 && ffi::sqlite3_stmt_busy(statement) != 0;
            let changes = if was_reset { rows } else { u64::try_from(sqlite3_changes64(db)).unwrap_or_default() };
            let holds_slot = ffi::sqlite3_txn_state(db, c"main".as_ptr()) == ffi::SQLITE_TXN_WRITE;
            self.connection.end(
                statement.addr(),
                counters(statement),
                is_in_transaction(db),
                holds_slot,
                changes,
                error,
            );
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        connections().remove(&self.0.connection.id());
        let recorder = self.0.connection.recorder();
        if let Some(dropped) = self.0.closing.lock().recovered().take() {
            recorder.add_dropped(dropped);
        }
        recorder.add_closed(self.0.connection.id());
    }
}

impl Deref for Listed {
    type Target = Arc<Traced>;

    fn deref(&self) -> &Arc<Traced> {
        &self.0
    }
}

/// Called by SQLite on the thread that runs the statement. The number is never another connection's, because numbers are not
/// used again.
unsafe extern "C" fn on_trace(
    event: c_uint,
    number: *mut c_void,
    statement: *mut c_void,
    argument: *mut c_void,
) -> c_int {
    let connection = number.addr() as u64;
    if event == BEGINNINGS {
        let _ = BEGUN.try_with(|begun| begun.set((connection, statement.addr())));
        if recent::is_on() {
            // SAFETY: SQLite's own arguments.
            let _ = catch_unwind(|| unsafe { note(connection, statement.cast(), argument) });
        }
    }
    if event == CLOSES {
        // SAFETY: the connection that is being closed, on this thread.
        let _ = catch_unwind(|| unsafe { close(connection, statement.cast()) });
    } else if Recorder::any_is_on() {
        // SAFETY: SQLite's own arguments.
        let _ = catch_unwind(AssertUnwindSafe(|| unsafe { report(event, connection, statement, argument) }));
    }
    0
}

/// Notes a statement that begins, for a test that fails. `argument` is its text, unless it is of a trigger.
///
/// # Safety
/// SQLite has called the trace with these arguments.
unsafe fn note(connection: u64, statement: *mut sqlite3_stmt, argument: *mut c_void) {
    // SAFETY: the statement is running.
    let sql = unsafe { ffi::sqlite3_sql(statement) };
    if !ptr::eq(sql, argument.cast()) || is_exempt() {
        return;
    }
    // SAFETY: a C string that lives as long as the statement.
    let sql = unsafe { CStr::from_ptr(sql) };
    if thread::panicking() && begins_with(&sql.to_string_lossy(), &["ROLLBACK"]) {
        if let Some(traced) = traced(connection) {
            // SAFETY: the connection runs the statement, on this thread.
            unsafe { traced.keep_unwound(ffi::sqlite3_db_handle(statement)) };
        }
    } else {
        recent::note(connection, sql.to_bytes());
    }
}

/// Returns why content is not kept. Returns `None` for content of at most `up_to` bytes, which was left out to save time.
fn lost(cause: &NotSerialized, up_to: usize) -> Option<Lost> {
    match *cause {
        NotSerialized::Failed(_) => Some(Lost::Unreadable),
        NotSerialized::TooLarge(size) => (size > up_to).then_some(Lost::TooLarge(size)),
    }
}

/// The size, in bytes, up to which content that is not committed is always kept.
const SMALL: usize = 256 << 10;

/// Returns the size, in bytes, up to which content that is not committed is kept now. A property test may fail hundreds of
/// times, so all that a thread keeps takes a tenth of its time, unless it is small.
fn at_most() -> usize {
    let has_time = match KEEPING.try_with(Cell::get).ok().flatten() {
        Some((since, spent)) => spent * 10 <= since.elapsed(),
        None => true,
    };
    if has_time { Keep::of_tests().max_size() } else { SMALL }
}

fn note_time(start: Instant) {
    let _ = KEEPING.try_with(|keeping| {
        let (since, spent) = keeping.get().unwrap_or((start, Duration::ZERO));
        keeping.set(Some((since, spent + start.elapsed())));
    });
}

/// Notes that a connection is closed: within a transaction, or by a panic.
///
/// # Safety
/// The connection is being closed, on this thread.
unsafe fn close(connection: u64, db: *mut sqlite3) {
    let Some(traced) = traced(connection) else { return };
    *traced.closing.lock().recovered() = None; // it may be of a close that has failed
    if is_exempt() {
        return;
    }
    if thread::panicking() {
        // SAFETY: as the caller promises.
        unsafe { traced.keep_unwound(db) };
        traced.connection.recorder().keep_database(); // if no engine is left
    } else {
        // SAFETY: as the caller promises.
        let dropped = unsafe { traced.dropped(db) };
        *traced.closing.lock().recovered() = dropped;
    }
}

/// Returns what the open connections of an engine are for, without those that it lends out, and what opened them.
pub(crate) fn open_connections(recorder: &Recorder) -> Vec<(Purpose, String)> {
    let connections = CONNECTIONS.read().recovered();
    let is_one = |traced: &&Arc<Traced>| {
        ptr::eq(&**traced.connection.recorder(), recorder) && !traced.is_session.load(Ordering::Relaxed)
    };
    let opened: Vec<Arc<Traced>> = connections.values().filter(is_one).cloned().collect();
    drop(connections); // a backtrace takes time
    let described = |traced: Arc<Traced>| {
        let purpose = *traced.purpose.lock().recovered();
        (purpose, traced.connection.opened_by(purpose))
    };
    opened.into_iter().map(described).collect()
}

/// Returns the newest statements on the connections of this engine, those after this number.
pub(crate) fn recent_of(recorder: &Recorder, since: u64) -> Vec<Noted> {
    recent::since(since, |connection| match traced(connection) {
        Some(traced) => ptr::eq(&**traced.connection.recorder(), recorder),
        None => recorder.had_connection(connection),
    })
}

fn traced(connection: u64) -> Option<Arc<Traced>> {
    CONNECTIONS.read().recovered().get(&connection).cloned()
}

/// # Safety
/// SQLite has called the trace with these arguments.
unsafe fn report(event: c_uint, number: u64, statement: *mut c_void, argument: *mut c_void) {
    if let Some(traced) = traced(number) {
        // SAFETY: as the caller promises; for the events that are asked for, the third argument is a statement.
        unsafe { traced.event(event, statement.cast(), argument) };
    }
}

/// Notes that a connection, one of these, has rolled back what it had written.
#[cold]
pub(super) fn note_rolled_back(traced: &[Listed]) {
    if let [traced] = traced
        && Recorder::any_is_on()
    {
        let _ = ROLLED_BACK.try_with(|rolled_back| rolled_back.set(traced.connection.id()));
    }
}

/// Forgets the latest beginning on this thread: a connection has given up its locks, so its statement ends.
pub(super) fn forget_begun() {
    let _ = BEGUN.try_with(|begun| begun.set((0, 0)));
}

/// Notes that statements are not recorded, if the connection that takes a lock runs one that no trace has reported: the code has
/// replaced the trace, or the engine is not the connection's main database. `traced` are the connections that have the file.
///
/// # Safety
/// The connection calls a method of the engine's file, and this thread uses it.
pub(super) unsafe fn check_is_reported(db: *mut sqlite3, traced: &[Listed], recorder: &Recorder) {
    if db.is_null() || is_exempt() {
        return;
    }
    // SAFETY: as the caller promises. After NULL comes the first of its statements, after the last one NULL.
    let next = |statement| unsafe { ffi::sqlite3_next_stmt(db, statement) };
    let statements = iter::successors(Some(next(ptr::null_mut())), |last| Some(next(*last)));
    let busy: Vec<*mut sqlite3_stmt> = statements
        .take_while(|statement| !statement.is_null())
        // SAFETY: a statement of this connection, which is not finalized meanwhile.
        .filter(|statement| unsafe { ffi::sqlite3_stmt_busy(*statement) } != 0)
        .collect();
    // SAFETY: as above. An open blob is a statement without SQL, which has no trace.
    let (blobs, others): (Vec<_>, Vec<_>) =
        busy.into_iter().partition(|statement| unsafe { ffi::sqlite3_sql(*statement) }.is_null());
    // SAFETY: as above.
    let running: Vec<_> = others.into_iter().filter(|statement| unsafe { is_of_program(*statement) }).collect();
    // SAFETY: as above.
    let reads = |statement: &*mut sqlite3_stmt| unsafe { ffi::sqlite3_stmt_readonly(*statement) } != 0;
    // SQLite reads the schema, to compile a statement; or a blob, beside an older statement.
    if running.is_empty() || !blobs.is_empty() && running.iter().all(reads) {
        return;
    }
    let begun = BEGUN.try_with(Cell::get).unwrap_or_default();
    let is_reported = |statement: *mut sqlite3_stmt, traced: &Listed| {
        // It may have begun just before the recording did.
        traced.connection.running(statement.addr()).is_some() || begun == (traced.connection.id(), statement.addr())
    };
    if running.into_iter().any(|statement| traced.iter().any(|traced| is_reported(statement, traced))) {
        return;
    }
    match traced {
        [] => recorder.miss(db.addr() as u64, ATTACHED),
        [traced, ..] => traced.connection.miss(OWN_TRACE),
    }
}

/// # Safety
/// The statement is in use by this thread, and has SQL.
unsafe fn is_of_program(statement: *mut sqlite3_stmt) -> bool {
    // SAFETY: as the caller promises.
    let sql = unsafe { CStr::from_ptr(ffi::sqlite3_sql(statement)) };
    !is_of_virtual_table(&sql.to_string_lossy())
}

const OWN_TRACE: &str =
    "has a trace of its own (sqlite3_trace_v2), which replaces the recording's, so its statements are not known";
const ATTACHED: &str =
    "has the engine attached, or was opened without SQLite's automatic extensions, so its statements are not known";

/// The message for a statement that has failed without an error from SQLite.
const ROLLED_BACK_AT_END: &str = "SQLite could not commit it, for example because of a foreign key, and rolled it back";

fn is_in_transaction(db: *mut sqlite3) -> bool {
    // SAFETY: only called with the connection whose statement is running.
    unsafe { ffi::sqlite3_get_autocommit(db) == 0 }
}

/// Returns the schema cookie that the connection sees, if SQLite can read it. (A `Connection::from_handle` of an older rusqlite
/// would remove the connection's hooks and its authorizer when it is dropped: rusqlite's issue 1784.)
///
/// # Safety
/// The connection is in use by this thread.
unsafe fn schema_cookie(db: *mut sqlite3) -> Option<u32> {
    let mut statement = ptr::null_mut();
    // SAFETY: as the caller promises. SQLite has prepared the statement, which is finalized.
    unsafe {
        let sql = c"PRAGMA main.schema_version";
        if ffi::sqlite3_prepare_v2(db, sql.as_ptr(), -1, &raw mut statement, ptr::null_mut()) != ffi::SQLITE_OK {
            return None;
        }
        let has_row = ffi::sqlite3_step(statement) == ffi::SQLITE_ROW;
        let cookie = has_row.then(|| ffi::sqlite3_column_int(statement, 0).cast_unsigned());
        ffi::sqlite3_finalize(statement);
        cookie
    }
}

/// Returns whether the open transaction violates foreign keys that are checked when it is committed.
///
/// # Safety
/// The connection is in use by this thread.
unsafe fn violates_foreign_keys(db: *mut sqlite3) -> bool {
    let (mut current, mut highest) = (0, 0);
    // SAFETY: as the caller promises; SQLite writes to the two numbers.
    unsafe { ffi::sqlite3_db_status(db, ffi::SQLITE_DBSTATUS_DEFERRED_FKS, &mut current, &mut highest, 0) };
    current != 0
}

/// Returns SQLite's counters of a statement.
///
/// # Safety
/// The statement is in use by this thread.
unsafe fn counters(statement: *mut sqlite3_stmt) -> Counters {
    // SAFETY: as the caller promises; zero leaves the counter as it is.
    let counter = |which| unsafe { ffi::sqlite3_stmt_status(statement, which, 0) }.cast_unsigned().into();
    Counters {
        full_scan_steps: counter(ffi::SQLITE_STMTSTATUS_FULLSCAN_STEP),
        sorts: counter(ffi::SQLITE_STMTSTATUS_SORT),
        automatic_index_rows: counter(ffi::SQLITE_STMTSTATUS_AUTOINDEX),
        vm_steps: counter(ffi::SQLITE_STMTSTATUS_VM_STEP),
    }
}

/// Returns SQLite's message about a statement that was ended by an error, from the line of its log.
fn message(code: c_int, line: &str, sql: &str) -> Box<str> {
    let message = message_in(line, sql).filter(|message| !message.is_empty());
    message.map_or_else(|| text_of(code), Into::into)
}

/// Returns whether a statement may succeed, and give up the writer slot without a commit. PRAGMA journal_mode takes it to delete
/// a journal.
fn gives_up_lock(sql: &str) -> bool {
    begins_with(sql, &["ROLLBACK", "PRAGMA"])
}

/// Takes what was logged on this thread, if that is about this statement. The code may have run other statements meanwhile,
/// on other connections, too; and a hook of a connection runs others before the statement ends.
fn take_logged(sql: &str) -> Option<Logged> {
    let take = |logged: &RefCell<Option<Logged>>| logged.borrow_mut().take_if(|(_, line)| is_about(line, sql));
    LOGGED.try_with(take).ok().flatten()
}

/// Returns what a line of SQLite's log says of a statement that ends with an error: its message and its SQL. The SQL is before
/// or after the message, by the version of SQLite, and the line is cut if it is long.
fn of_abort(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("statement aborts at ").or_else(|| line.strip_prefix("abort at "))?;
    Some(rest.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// Returns whether a line of the log has the SQL, or as much of it as there is room for.
fn is_about(line: &str, sql: &str) -> bool {
    let Some(rest) = of_abort(line) else { return false };
    if !rest.starts_with(" in [") && !rest.starts_with(": [") && !rest.contains("; [") {
        return true; // there was no room for it
    }
    // The message may have brackets, too.
    let mut texts = rest.match_indices('[').map(|(at, _)| &rest[at + 1..]);
    texts.any(|text| begins_as(text, sql) || is_of_trigger(text, sql))
}

/// Returns whether a text from a line of the log is the SQL, or its beginning, cut.
fn begins_as(text: &str, sql: &str) -> bool {
    let is_whole = text.strip_prefix(sql).is_some_and(|after| after.is_empty() || after.starts_with(']'));
    is_whole || sql.starts_with(text.trim_end_matches('\u{fffd}'))
}

/// Returns whether a text from a line of the log is the SQL of a statement whose trigger has failed: behind a comment, which is
/// the trigger's name. SQLite cuts that, too.
fn is_of_trigger(text: &str, sql: &str) -> bool {
    let Some(named) = text.strip_prefix("/* ") else { return false };
    let begins = match named.split_once(" */ ") {
        Some((_, text)) => begins_as(text, sql),
        None => !named.contains(']'),
    };
    begins || named.split_once(sql).is_some_and(|(_, after)| after.is_empty() || after.starts_with(']'))
}

fn message_in<'a>(line: &'a str, sql: &str) -> Option<&'a str> {
    let rest = of_abort(line)?;
    if let Some(text) = rest.strip_prefix(" in [").or_else(|| rest.strip_prefix(": ["))
        && (begins_as(text, sql) || is_of_trigger(text, sql))
    {
        // The message follows the SQL; without it, there was no room.
        let (_, message) = text.split_once(&format!("{sql}]"))?;
        return Some(message.trim_start_matches([':', ' '])).filter(|message| !message.is_empty());
    }
    let rest = rest.strip_prefix(": ")?;
    let end = [&format!("; [{sql}"), "; [/* ", "; ["].into_iter().find_map(|end| rest.rfind(end));
    Some(&rest[..end.unwrap_or(rest.len())])
}

/// Returns SQLite's words for a result code.
fn text_of(code: c_int) -> Box<str> {
    // SAFETY: for any number, SQLite returns a C string that it keeps.
    unsafe { CStr::from_ptr(ffi::sqlite3_errstr(code)) }.to_string_lossy().into()
}

fn connections() -> RwLockWriteGuard<'static, BTreeMap<u64, Arc<Traced>>> {
    CONNECTIONS.write().recovered()
}

unsafe extern "C" {
    // Since 3.37; the bindings of the oldest libsqlite3-sys don't have it.
    fn sqlite3_changes64(db: *mut sqlite3) -> ffi::sqlite3_int64;
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection as Opened;

    use super::*;

    #[test]
    fn large_content_is_kept_for_a_tenth_of_the_time() {
        assert_eq!(at_most(), Keep::of_tests().max_size());
        note_time(Instant::now().checked_sub(Duration::from_millis(50)).unwrap());
        assert_eq!(at_most(), SMALL);
        KEEPING.set(Some((Instant::now().checked_sub(Duration::from_secs(1)).unwrap(), Duration::from_millis(90))));
        assert_eq!(at_most(), Keep::of_tests().max_size());
    }

    #[test]
    fn content_that_is_left_out_in_a_property_test_is_not_named() {
        let size_of = |size| match lost(&NotSerialized::TooLarge(size), 1000) {
            Some(Lost::TooLarge(size)) => Some(size),
            _ => None,
        };
        assert_eq!([999, 1000, 1001].map(size_of), [None, None, Some(1001)]);
        assert!(matches!(lost(&NotSerialized::Failed(ffi::SQLITE_IOERR), 1000), Some(Lost::Unreadable)));
    }

    #[test]
    fn a_connection_is_in_the_list_as_long_as_its_file_is_open() {
        let connection = Opened::open_in_memory().unwrap();
        // SAFETY: the connection is open.
        let listed = unsafe { Traced::begin(connection.handle(), Recorder::new(), Weak::new()) };
        let number = listed.connection.id();
        assert!(connections().contains_key(&number));
        drop(listed);
        assert!(!connections().contains_key(&number));
    }

    #[test]
    fn the_message_of_each_version_of_the_log_is_found() {
        let sql = "INSERT INTO t VALUES ('[;]')";
        for line in [
            "abort at 9 in [INSERT INTO t VALUES ('[;]')]: UNIQUE constraint failed: t.a",
            "abort at 9: UNIQUE constraint failed: t.a; [INSERT INTO t VALUES ('[;]')]",
            "statement aborts at 9: [INSERT INTO t VALUES ('[;]')] UNIQUE constraint failed: t.a",
            "statement aborts at 9: UNIQUE constraint failed: t.a; [INSERT INTO t VALUES ('[;]')]",
        ] {
            assert_eq!(&*message(ffi::SQLITE_CONSTRAINT_UNIQUE, line, sql), "UNIQUE constraint failed: t.a", "{line}");
        }
        for line in [
            "abort at 9 in [INSERT INTO t VALUES ('[;]')]: UNIQUE constraint failed: t.a",
            "statement aborts at 9: [INSERT INTO t VALUES ('[;]')] UNIQUE constraint failed: t.a",
            "statement aborts at 9: UNIQUE constraint failed: t.a; [/* TRIGGER x */ INSERT INTO t VALUES ('[;]')]",
            "statement aborts at 9: UNIQUE constraint failed: t.a; [INSERT INTO t VALU",
            "statement aborts at 9: [INSERT INTO t VALU",
            "statement aborts at 9: a message that leaves no room",
            "statement aborts at 9: a message with [brackets] that leaves no room",
            "statement aborts at 9: [E1] not allowed; [/* g */ INSERT INTO t VALUES ('[;]')]",
            "statement aborts at 9: [E1] not allowed; [INSERT INTO t VALU",
            "statement aborts at 9: not [;] or; [so]; [INSERT INTO t VALUES ('[;]')]",
            "statement aborts at 9: not allowed; [/* a long na",
            "statement aborts at 9: not allowed; [/* a name that was cuINSERT INTO t VALUES ('[;]')]",
        ] {
            assert!(is_about(line, sql), "{line}");
        }
        assert!(is_about("abort at 9: failed; [SELECT 'stra\u{fffd}", "SELECT 'straße'"));
        for line in [
            "abort at 9: UNIQUE constraint failed: t.a; [INSERT INTO t VALUES ('[;]'), (1)]",
            "abort at 9: UNIQUE constraint failed: t.a; [INSERT INTO u VALUES ('[;]')]",
            "statement aborts at 9: [INSERT INTO u VALUES ('[;]')] UNIQUE constraint failed: t.a",
            "statement aborts at 9: [E1] not allowed; [/* g */ INSERT INTO u VALUES ('[;]')]",
            "statement aborts at 9: failed; [/* g */ INSERT INTO u VALUES (1), (2), (3), (4",
            "abort at 9 in [INSERT INTO u VALUES ('[;]')]: UNIQUE constraint failed: t.a",
            "automatic index on t(a)",
            "no such table: INSERT INTO t VALUES ('[;]')",
        ] {
            assert!(!is_about(line, sql), "{line}");
        }
        for (line, expected) in [
            ("statement aborts at 9: [E1] not allowed; [/* g */ INSERT INTO t VALUES ('[;]')]", "[E1] not allowed"),
            ("statement aborts at 9: not [;] or; [so]; [INSERT INTO t VALUES ('[;]')]", "not [;] or; [so]"),
            ("statement aborts at 9: [E1] not allowed; [INSERT INTO t VALU", "[E1] not allowed"),
            ("abort at 9 in [/* g */ INSERT INTO t VALUES ('[;]')]: [E1] not allowed", "[E1] not allowed"),
        ] {
            assert_eq!(&*message(ffi::SQLITE_CONSTRAINT, line, sql), expected, "{line}");
        }
        for cut in [
            "abort at 9 in [INSERT INTO t VAL",
            "statement aborts at 9: [INSERT INTO t VALU",
            "abort at 9",
            "something else: here",
            "",
        ] {
            assert_eq!(&*message(ffi::SQLITE_CONSTRAINT, cut, sql), "constraint failed", "{cut}");
        }
    }
}
