//! Opening connections to engines.

use std::ffi::{CStr, c_int, c_void};
use std::panic::{Location, catch_unwind};
use std::ptr;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::ffi::{self, sqlite3_file};
use rusqlite::{Connection, OpenFlags};

use super::database;
use super::handle::Handle;
use super::mount::{Mount, Surroundings};
use super::serialize::{NotSerialized, serialize};
use super::trace;
use super::waiting::wait_in_turn;
use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::error::{BoxError, NoConnection};
use crate::faults;

/// The setup of each connection before it is handed out.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) foreign_keys: bool,
    pub(crate) on_connect: Vec<OnConnect>,
    /// How long a writer waits for the writer slot. `None`: the default time.
    pub(crate) lock_timeout: Option<Duration>,
    pub(crate) surroundings: Surroundings,
}

/// A template's function for each connection, and the place in the source where it was given.
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
    /// The setup of engines without a template, and of a template that sets nothing.
    pub(crate) const DEFAULT: Setup = Setup {
        foreign_keys: true,
        on_connect: Vec::new(),
        lock_timeout: None,
        surroundings: Surroundings { clock: None, random_seed: None },
    };

    pub(crate) fn carry_out(&self, connection: &Connection) -> Result<(), NoConnection> {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, self.foreign_keys)?;
        // Fault plans and recordings are for the code under test, not for the test's own setup.
        let carry_out = || self.on_connect.iter().try_for_each(|on_connect| on_connect.carry_out(connection));
        faults::exempt(|| trace::exempt(carry_out))
    }
}

/// Opens a connection that waits in the engine's queue for the writer slot.
pub(crate) fn connect(uri: &str, setup: &Setup, purpose: Purpose) -> Result<Connection, NoConnection> {
    let connection = open(uri, purpose)?;
    setup.carry_out(&connection)?;
    Ok(connection)
}

pub(super) fn open(uri: &str, purpose: Purpose) -> rusqlite::Result<Connection> {
    // SQLITE_OPEN_CREATE, one of the default flags, is for files that are attached. With a private cache the
    // connection has a file that no other connection uses, and that file knows its purpose.
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_PRIVATE_CACHE;
    let connection = trace::open_for(purpose, || Connection::open_with_flags(uri, flags))?;
    // SAFETY: the file is ours (`file_of` has checked it) and open as long as the connection is, which is not in use.
    unsafe { handle(file_of(&connection)) }.set_purpose(purpose);
    set_busy_handler(&connection);
    Ok(connection)
}

/// Returns whether the connection's main database is this one.
pub(crate) fn is_connected(connection: &Connection, mount: &Mount) -> bool {
    // SAFETY: the file is ours and open as long as the connection is, which is not in use.
    find_file(connection).is_some_and(|file| unsafe { handle(file) }.is_on(mount))
}

/// Returns the file of the connection's main database.
pub(super) fn file_of(connection: &Connection) -> *mut sqlite3_file {
    find_file(connection).expect("an engine's URI opens that engine")
}

/// Returns the handle of a file.
///
/// # Safety
/// The file is one that `find_file` gave, and open; no other reference to its handle is in use.
pub(super) unsafe fn handle<'a>(file: *mut sqlite3_file) -> &'a mut Handle {
    // SAFETY: as the caller promises.
    &mut unsafe { database::of(file) }.expect("`find_file` gives files of ours").handle
}

/// Returns the file of the connection's main database, if the file belongs to this VFS.
pub(super) fn find_file(connection: &Connection) -> Option<*mut sqlite3_file> {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    let out: *mut *mut ffi::sqlite3_file = &mut file;
    // SAFETY: the connection is open; with this opcode the argument is a sqlite3_file* to write to.
    let code = unsafe {
        ffi::sqlite3_file_control(connection.handle(), ptr::null(), ffi::SQLITE_FCNTL_FILE_POINTER, out.cast())
    };
    // SAFETY: where SQLite answered, the file is its main database's, which is open.
    let is_ours = code == ffi::SQLITE_OK && !file.is_null() && unsafe { database::of(file) }.is_some();
    is_ours.then_some(file)
}

/// Returns the content that the connection sees in its main database.
pub(crate) fn serialized(connection: &Connection) -> rusqlite::Result<Snapshot> {
    // SAFETY: the connection is open, and in use by this thread only.
    match unsafe { serialize(connection.handle(), usize::MAX) } {
        Ok(bytes) if bytes.is_empty() => Ok(Snapshot::empty()),
        Ok(bytes) => Snapshot::from_bytes(bytes).map_err(Into::into),
        Err(NotSerialized::Failed(code)) => check(connection, code).map(|()| Snapshot::empty()),
        Err(NotSerialized::TooLarge(_)) => unreachable!("any size is asked for"),
    }
}

/// Sets the crate's busy handler, which waits in the engine's queue for the writer slot.
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

/// Returns the error of the connection's latest call, if `code` is one.
pub(super) fn check(connection: &Connection, code: c_int) -> rusqlite::Result<()> {
    if code == ffi::SQLITE_OK {
        return Ok(());
    }
    // SAFETY: the connection is open, and the message a C string that lives until its next call.
    let message = unsafe { CStr::from_ptr(ffi::sqlite3_errmsg(connection.handle())) };
    let message = message.to_string_lossy().into_owned();
    Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(message)))
}
