//! A connection that is reused by one unit of work after another, with the statements that begin and end them.

use std::ffi::{CStr, CString, c_int};
use std::ptr;
use std::sync::Arc;
use std::thread;

use rusqlite::ffi::{self, sqlite3, sqlite3_file, sqlite3_stmt};
use rusqlite::{Connection, TransactionBehavior};

use super::cleanliness::{self, Settings, auto_checkpoint_of, synchronous_of};
use super::connection::{Setup, check, file_of, find_file, handle, open, serialized};
use super::trace::{self, Traced};
use super::watch::Watch;
use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::content::refusal::Refusal;
use crate::error::NoConnection;

/// A statement that begins or ends a transaction.
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
    /// The connection that was opened. A user with a mutable reference may have replaced it.
    opened: *mut sqlite3,
    file: *mut sqlite3_file,
    statements: [*mut sqlite3_stmt; COMMANDS.len()],
    /// Sets `changes()` to zero. It is prepared at its first use.
    forget_changes: *mut sqlite3_stmt,
    /// Declared after the connection, whose authorizer uses it.
    watch: Arc<Watch>,
    /// `None` if the program has reset SQLite's list of automatic extensions.
    traced: Option<Arc<Traced>>,
    /// Whether `watch` still is the connection's authorizer. The setup may have set another.
    is_watched: bool,
    /// Settings that no statement changes, as they were when the connection was opened.
    settings: Settings,
    /// The result of `PRAGMA wal_autocheckpoint` when the connection was opened.
    auto_checkpoint: c_int,
    /// The result of `PRAGMA synchronous` when the connection was opened.
    synchronous: c_int,
    /// [`Handle::format_changes`](super::handle::Handle::format_changes) before it read anything.
    format_changes: usize,
    /// Whether it has read the schema of the content that its engine was created with.
    has_seen_baseline: bool,
    /// Whether rusqlite may have been given a closure since the connection was clean. From version 0.41 on, it keeps
    /// closures in the connection and takes `&mut Connection` for them.
    was_lent_mutably: bool,
    /// Whether SQLite had to prepare one of the statements again. It does so after a change to the whole connection:
    /// a flag, a redefined function or collation, an authorizer.
    was_changed: bool,
}

// SAFETY: a rusqlite::Connection is Send, and the pointers are to parts of that same connection, used nowhere else.
unsafe impl Send for Session {}

impl Session {
    pub(crate) fn open(uri: &str, setup: &Setup, purpose: Purpose) -> Result<Session, NoConnection> {
        Refusal::forget(); // of what came before
        trace::exempt(|| Session::prepared(uri, setup, purpose))
    }

    fn prepared(uri: &str, setup: &Setup, purpose: Purpose) -> Result<Session, NoConnection> {
        let connection = open(uri, purpose)?;
        let file = file_of(&connection);
        // SAFETY: the file is open as long as the connection is, and not in use.
        let handle_of_file = unsafe { handle(file) };
        if let Some(observed) = handle_of_file.observed() {
            observed.set_session();
        }
        let format_changes = handle_of_file.format_changes(); // before anything reads the schema
        let traced = handle_of_file.traced().cloned();
        if let Some(traced) = &traced {
            // SAFETY: the connection is open.
            unsafe { traced.rest_as_session(connection.handle()) };
        }
        let watch = Watch::set(&connection);
        setup.carry_out(&connection)?;
        let is_watched = setup.on_connect.is_empty() || watch.is_set(&connection);
        // Reads the schema now. The first time, SQLite fixes the text encoding and prepares all statements again,
        // which would look like a change of the connection later.
        drop(connection.prepare("SELECT 1 FROM sqlite_schema")?);
        // From here on, `drop` finalizes what was prepared.
        let mut session = Session {
            // SAFETY: the handle is only compared.
            opened: unsafe { connection.handle() },
            settings: Settings::of(&connection),
            auto_checkpoint: auto_checkpoint_of(&connection),
            synchronous: synchronous_of(&connection)?,
            format_changes,
            connection,
            file,
            statements: [ptr::null_mut(); COMMANDS.len()],
            forget_changes: ptr::null_mut(),
            watch,
            traced,
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
        unsafe { handle(session.file) }.approve_pragmas();
        session.watch.restart();
        Ok(session)
    }

    /// Notes that the engine had its initial content while the connection was opened.
    pub(crate) fn saw_baseline(&mut self) {
        self.has_seen_baseline = true;
    }

    /// Returns whether the session has the same state of the schema as a new connection to the initial content.
    ///
    /// A connection that was opened later may have kept values of another header, for example its default cache size. A
    /// connection that has compiled a change of the schema may have lost state that a new connection has.
    pub(crate) fn knows_baseline(&self) -> bool {
        self.has_seen_baseline && !self.watch.saw_schema_change()
    }

    /// Returns whether its text encoding, page size and vacuum mode are those of a new connection. SQLite fixes the
    /// encoding when it reads the schema. For an empty database, it fixes page size and vacuum mode when it has read
    /// another database.
    pub(crate) fn has_current_format(&self) -> bool {
        // SAFETY: the file is open as long as the connection is, and not in use: the connection is only in our hands.
        unsafe { handle(self.file) }.format_changes() == self.format_changes
    }

    pub(crate) fn connection(&self) -> &Connection {
        self.follow_recorder();
        &self.connection
    }

    /// Traces the connection if its engine is recorded now. The user may keep the reference longer.
    #[inline]
    fn follow_recorder(&self) {
        if let Some(traced) = &self.traced
            && self.has_its_connection()
        {
            // SAFETY: the connection is open.
            unsafe { traced.follow(self.db()) };
        }
    }

    pub(crate) fn connection_mut(&mut self) -> &mut Connection {
        self.follow_recorder();
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

    /// Sets the purpose that messages name.
    pub(crate) fn set_purpose(&mut self, purpose: Purpose) {
        Refusal::forget(); // of what came before
        self.follow_recorder();
        // SAFETY: the file is open as long as the connection is, and not in use: the connection is only in our hands.
        unsafe { handle(self.file).set_purpose(purpose) };
    }

    pub(crate) fn commit(&mut self) -> rusqlite::Result<()> {
        self.run(Command::Commit)
    }

    pub(crate) fn rollback(&mut self) -> rusqlite::Result<()> {
        self.run(Command::Rollback)
    }

    /// Returns the content that the connection sees, with what it has not committed. Only SQLite has that: its cache keeps pages
    /// that were not written to the VFS.
    pub(crate) fn content(&self) -> rusqlite::Result<Snapshot> {
        // SAFETY: the connection is open.
        let state = unsafe { ffi::sqlite3_txn_state(self.db(), c"main".as_ptr()) };
        if state != ffi::SQLITE_TXN_WRITE && self.is_whole() {
            // SAFETY: the file is open as long as the connection is, and not in use by a method.
            Ok(unsafe { handle(self.file) }.content())
        } else {
            serialized(&self.connection)
        }
    }

    pub(crate) fn is_in_transaction(&self) -> bool {
        !self.connection.is_autocommit()
    }

    pub(crate) fn was_changed(&self) -> bool {
        self.was_changed
    }

    /// Makes the connection ready for the next unit of work. Returns `false` if the connection must be closed instead.
    ///
    /// These can't be detected: SQL functions, collations and virtual-table modules that replace none, a pre-update
    /// hook of rusqlite before 0.41, `total_changes()`, and a backup that was neither finished nor dropped.
    pub(crate) fn make_clean(&mut self) -> bool {
        if !self.is_whole() {
            return false;
        }
        if self.is_in_transaction() {
            if let Some(traced) = self.traced.as_ref().filter(|_| !thread::panicking()) {
                // SAFETY: the connection is open.
                unsafe { traced.note_dropped(self.db()) };
            }
            if self.rollback().is_err() {
                return false;
            }
        } else if let Some(traced) = self.traced.as_ref().filter(|_| thread::panicking()) {
            // SAFETY: the connection is open.
            unsafe { traced.keep_unwound(self.db()) };
        }
        self.connection.set_transaction_behavior(TransactionBehavior::Deferred);
        self.take_hooks()
            && !self.has_leftovers()
            && trace::exempt(|| self.put_back_synchronous() && self.forget_changes())
    }

    /// Restores `PRAGMA synchronous`, which applications often set. Returns whether this succeeded.
    fn put_back_synchronous(&mut self) -> bool {
        // SAFETY: the file is open as long as the connection is, and not in use.
        if !unsafe { handle(self.file) }.take_synchronous_was_set() {
            return true;
        }
        let is_done = self.connection.execute_batch(&format!("PRAGMA main.synchronous = {}", self.synchronous)).is_ok();
        // SAFETY: as above. That has set it again.
        unsafe { handle(self.file) }.take_synchronous_was_set();
        is_done
    }

    /// Sets `changes()` to zero, as on a new connection. Returns whether this succeeded.
    ///
    /// SQLite has no call for it. But a statement that changes rows sets it when it ends. An EXPLAIN of such a
    /// statement sets it too: to zero, and without a lock. It needs a table, and any table is suitable.
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
        // SAFETY: prepared above or before, finalized by `drop`, used nowhere else.
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

    /// Returns whether the connection is the one that was opened, and its main database is still the engine:
    /// sqlite3_deserialize replaces it.
    fn is_whole(&self) -> bool {
        self.has_its_connection() && find_file(&self.connection) == Some(self.file)
    }

    fn has_its_connection(&self) -> bool {
        self.db() == self.opened
    }

    fn has_leftovers(&self) -> bool {
        // SAFETY: the file is open as long as the connection is, and not in use.
        let is_altered = unsafe { handle(self.file) }.is_altered();
        self.was_changed
            || is_altered
            || !self.is_watched
            || self.watch.saw_leftovers()
            || !self.settings.are_those_of(&self.connection)
            || cleanliness::has_leftovers(&self.connection)
    }

    /// Removes the callbacks. Returns whether all of them are gone.
    fn take_hooks(&mut self) -> bool {
        let is_without_hooks = cleanliness::take_hooks(&mut self.connection, self.auto_checkpoint);
        if let Some(traced) = &self.traced {
            // SAFETY: the connection is open, and the one that was opened: `make_clean` has checked that.
            unsafe { traced.set_trace(self.db()) };
        }
        if std::mem::take(&mut self.was_lent_mutably) {
            cleanliness::drop_closures(&self.connection);
        }
        is_without_hooks
    }

    /// Makes SQLite prepare the statements again if necessary, so that `was_changed` is up to date.
    pub(crate) fn probe(&mut self) -> rusqlite::Result<()> {
        trace::exempt(|| {
            self.run(Command::Begin)?;
            self.run(Command::Rollback)
        })
    }

    fn run(&mut self, command: Command) -> rusqlite::Result<()> {
        let statement = self.statements[command as usize];
        // SAFETY: prepared by `open`, finalized by `drop`, used nowhere else.
        let code = unsafe {
            let code = ffi::sqlite3_step(statement);
            self.was_changed |= ffi::sqlite3_stmt_status(statement, ffi::SQLITE_STMTSTATUS_REPREPARE, 0) > 0;
            code
        };
        let result = if code == ffi::SQLITE_DONE { Ok(()) } else { check(&self.connection, code) };
        // An error may keep SQLite from preparing it again, for example when an authorizer forbids it. A timeout does
        // not.
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
        // The fields are dropped next. The connection can be closed, because no statement is left.
    }
}

const PERSISTENT: std::ffi::c_uint = ffi::SQLITE_PREPARE_PERSISTENT as std::ffi::c_uint;

fn prepare(connection: &Connection, sql: &CStr, statement: &mut *mut sqlite3_stmt) -> rusqlite::Result<()> {
    // SAFETY: the connection is open, the SQL a C string, and the statement the caller's to finalize.
    let code = unsafe {
        ffi::sqlite3_prepare_v3(connection.handle(), sql.as_ptr(), -1, PERSISTENT, statement, ptr::null_mut())
    };
    check(connection, code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Snapshot;
    use crate::vfs::{Mount, Name, uri};

    fn session(mount: &Mount) -> Session {
        crate::vfs::register();
        Session::open(&uri(mount), &Setup::DEFAULT, Purpose::Uri).ok().unwrap()
    }

    #[test]
    fn a_session_whose_database_or_connection_was_exchanged_is_not_whole() {
        let mount = Mount::new(Snapshot::empty(), Name::Numbered);
        let [deserialized, mut exchanged] = [session(&mount), session(&mount)];
        assert!(deserialized.is_whole() && deserialized.has_its_connection());
        // SAFETY: the connection is open, and SQLite allocates the database, because there is no buffer.
        let code = unsafe { ffi::sqlite3_deserialize(deserialized.db(), c"main".as_ptr(), ptr::null_mut(), 0, 0, 0) };
        assert_eq!(code, ffi::SQLITE_OK);
        assert!(!deserialized.is_whole() && deserialized.has_its_connection());
        let other = Connection::open(uri(&mount)).unwrap();
        let own = std::mem::replace(exchanged.connection_mut(), other);
        assert!(!exchanged.is_whole() && !exchanged.has_its_connection());
        drop((exchanged, own));
    }

    #[test]
    fn a_time_out_does_not_count_as_a_change() {
        let mount = Mount::new(Snapshot::empty(), Name::Numbered);
        mount.store.set_lock_timeout(std::time::Duration::ZERO);
        let [mut writer, mut other] = [session(&mount), session(&mount)];
        writer.begin(TransactionBehavior::Immediate).unwrap();
        other.begin(TransactionBehavior::Immediate).unwrap_err();
        assert!(!other.was_changed());
        writer.rollback().unwrap();
        writer.rollback().expect_err("there is no transaction");
        assert!(writer.was_changed(), "any other error does");
    }
}
