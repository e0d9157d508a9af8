//! Sets up the connections to an engine when they are opened, whoever opens them: their observation, and functions.
//!
//! SQLite calls an "automatic extension" at the end of each opening, on the thread that opens.

use std::ffi::{c_char, c_int, c_void};
use std::panic::catch_unwind;
use std::sync::Arc;

use rusqlite::ffi::{self, sqlite3};

use super::connection::{find_file_of, handle};
use super::mount::Mount;
use super::observation::{Observation, Observed};
use super::random;

/// Observes the connections to this engine that are opened from now on.
pub(crate) fn observe(mount: &Mount) -> &Observation {
    register();
    mount.observe()
}

/// Has SQLite call `on_open` for each connection from now on.
pub(super) fn register() {
    // SAFETY: the function has the signature that "Automatically Load Statically Linked Extensions" asks for. "Repeated
    // calls with the same entry point are harmless", and necessary if the program has reset the list.
    unsafe { sqlite3_auto_extension(Some(std::mem::transmute::<EntryPoint, unsafe extern "C" fn()>(on_open))) };
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
    let Some(file) = (unsafe { find_file_of(db) }) else { return ffi::SQLITE_OK };
    // SAFETY: the file is the connection's, which is not in use.
    let handle = unsafe { handle(file) };
    if let Some(observed) = handle.observed() {
        // SAFETY: as the caller promises.
        unsafe { observe_connection(db, observed) };
    }
    match handle.random() {
        // SAFETY: as the caller promises.
        Some(random) => unsafe { random::define(db, random) },
        None => ffi::SQLITE_OK,
    }
}

/// # Safety
/// As for `set_up`.
unsafe fn observe_connection(db: *mut sqlite3, observed: &Arc<Observed>) {
    let Some(watch) = observed.open(db) else { return };
    let data = Arc::into_raw(observed.clone()).cast_mut().cast::<c_void>();
    // SAFETY: SQLite gives the data back once: when it closes the connection, or now if memory runs out.
    let code = unsafe { sqlite3_set_clientdata(db, c"rusqlite-fixtures".as_ptr(), data, Some(on_close)) };
    if code != ffi::SQLITE_OK {
        watch.take_off();
    }
}

/// Called when SQLite begins to close a connection.
///
/// The authorizer remains set, because taking it off would make statements fail that are still used after
/// sqlite3_close_v2. Nothing can be compiled any more that calls it.
unsafe extern "C" fn on_close(observed: *mut c_void) {
    // SAFETY: it comes from `on_open`, and SQLite gives it back once.
    unsafe { Arc::from_raw(observed.cast_const().cast::<Observed>()) }.close();
}

unsafe extern "C" {
    // Declared here, because the bindings declare its argument differently from version to version.
    fn sqlite3_auto_extension(entry_point: Option<unsafe extern "C" fn()>) -> c_int;
    // Since 3.44.
    fn sqlite3_set_clientdata(
        db: *mut sqlite3,
        name: *const c_char,
        data: *mut c_void,
        destructor: Option<unsafe extern "C" fn(*mut c_void)>,
    ) -> c_int;
}
