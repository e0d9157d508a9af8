//! Sets up each connection to an engine when any library opens it: begins its observation, defines functions, or keeps
//! the engine's file.
//!
//! SQLite calls an "automatic extension" at the end of each opening, on the thread that opens.

use std::ffi::{c_char, c_int, c_void};
use std::panic::catch_unwind;
use std::sync::Arc;

use rusqlite::ffi::{self, sqlite3};

use super::handle::Extras;
use super::mount::Mount;
use super::observation::Observed;
use super::random;
use super::trace::Traced;
use super::{database, database_file};

/// Begins the observation of the connections to this engine that are opened from now on.
///
/// # Panics
/// If SQLite has no memory.
pub(crate) fn begin_observation(mount: &Mount) {
    register();
    mount.begin_observation();
}

/// Registers `on_open`, which SQLite calls for each connection that is opened from now on.
///
/// # Panics
/// If SQLite has no memory.
pub(super) fn register() {
    // SAFETY: the function has the signature that "Automatically Load Statically Linked Extensions" asks for. "Calling
    // sqlite3_auto_extension(X) with an entry point X that is already on the list of automatic extensions is a harmless
    // no-op", and the program may have reset the list.
    let code =
        unsafe { sqlite3_auto_extension(Some(std::mem::transmute::<EntryPoint, unsafe extern "C" fn()>(on_open))) };
    assert_eq!(code, ffi::SQLITE_OK, "SQLite did not register an automatic extension");
}

type EntryPoint = unsafe extern "C" fn(*mut sqlite3, *mut *mut c_char, *const c_void) -> c_int;

/// Called at the end of the opening of any connection in the process. If it returns an error, the opening fails.
unsafe extern "C" fn on_open(db: *mut sqlite3, _: *mut *mut c_char, _: *const c_void) -> c_int {
    // SAFETY: SQLite gives the connection that is being opened, on its thread.
    catch_unwind(|| unsafe { set_up(db) }).unwrap_or(ffi::SQLITE_ERROR)
}

/// # Safety
/// The connection is open, and this thread may use it.
unsafe fn set_up(db: *mut sqlite3) -> c_int {
    // SAFETY: as the caller promises.
    let Some(Extras { observed, random, recorder, mount }) = (unsafe { database::extras_of(db) }) else {
        // SAFETY: as the caller promises.
        return unsafe { database_file::set_up(db) };
    };
    // SAFETY: as the caller promises.
    unsafe { database::add_traced(db, Traced::begin(db, recorder, mount)) };
    if let Some(observed) = observed {
        // SAFETY: as the caller promises.
        unsafe { observe(db, observed) };
    }
    match random {
        // SAFETY: as the caller promises.
        Some(random) => unsafe { random::define(db, &random) },
        None => ffi::SQLITE_OK,
    }
}

/// # Safety
/// As for `set_up`.
unsafe fn observe(db: *mut sqlite3, observed: Arc<Observed>) {
    let data = Arc::into_raw(observed.clone()).cast_mut().cast::<c_void>();
    // First, because after sqlite3_deserialize has closed the file, only this keeps the authorizer's argument.
    // SAFETY: SQLite gives the data back once: when it begins to close the connection, or now if memory runs out.
    let code = unsafe { super::sqlite3_set_clientdata(db, c"rusqlite-fixtures".as_ptr(), data, Some(on_close)) };
    if code == ffi::SQLITE_OK {
        // SAFETY: as the caller promises. The client data keeps it until SQLite begins to close the connection, and then
        // `on_close` calls `close`.
        unsafe { observed.open(db) };
    }
}

/// Called when SQLite begins to close a connection.
///
/// The authorizer stays set: removing it would expire the statements that can still run after sqlite3_close_v2. SQLite
/// does not call it again, because a closed connection compiles nothing: sqlite3_prepare and the recompilation of a
/// statement fail with SQLITE_MISUSE (`sqlite3LockAndPrepare`).
unsafe extern "C" fn on_close(observed: *mut c_void) {
    // SAFETY: it comes from `observe`, and SQLite gives it back once.
    unsafe { Arc::from_raw(observed.cast_const().cast::<Observed>()) }.close();
}

unsafe extern "C" {
    // Declared here, because the bindings declare its argument differently from version to version.
    fn sqlite3_auto_extension(entry_point: Option<unsafe extern "C" fn()>) -> c_int;
}
