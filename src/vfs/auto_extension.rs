//! Has the connections to an engine observed from the time of their opening, whoever opens them.
//!
//! SQLite calls an "automatic extension" at the end of each opening, on the thread that opens.

use std::ffi::{c_char, c_int, c_void};
use std::panic::catch_unwind;
use std::sync::{Arc, Once};

use rusqlite::ffi::{self, sqlite3};

use super::connection::{find_file_of, handle};
use super::mount::Mount;
use super::observation::{Observation, Observed};

/// Observes the connections to this engine that are opened from now on.
pub(crate) fn observe(mount: &Mount) -> &Observation {
    static REGISTERED: Once = Once::new();
    // SAFETY: the function has the signature that "Automatically Load Statically Linked Extensions" asks for.
    REGISTERED.call_once(|| unsafe {
        sqlite3_auto_extension(Some(std::mem::transmute::<EntryPoint, unsafe extern "C" fn()>(on_open)));
    });
    mount.observe()
}

type EntryPoint = unsafe extern "C" fn(*mut sqlite3, *mut *mut c_char, *const c_void) -> c_int;

/// Called at the end of the opening of any connection in the process.
unsafe extern "C" fn on_open(db: *mut sqlite3, _: *mut *mut c_char, _: *const c_void) -> c_int {
    let _ = catch_unwind(|| {
        // SAFETY: SQLite gives the connection that is being opened, on its thread.
        let Some(file) = (unsafe { find_file_of(db) }) else { return };
        // SAFETY: the file is the connection's, which is not in use.
        let Some(observed) = (unsafe { handle(file) }).observed() else { return };
        let Some(watch) = observed.open(db) else { return };
        let data = Arc::into_raw(observed.clone()).cast_mut().cast::<c_void>();
        // SAFETY: SQLite gives the data back once: when it closes the connection, or now if memory runs out.
        let code = unsafe { sqlite3_set_clientdata(db, c"rusqlite-fixtures".as_ptr(), data, Some(on_close)) };
        if code != ffi::SQLITE_OK {
            watch.take_off();
        }
    });
    ffi::SQLITE_OK
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
