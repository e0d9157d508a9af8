//! The methods of the VFS that was SQLite's default one when this crate registered its own, to which `pAppData` points.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_vfs};

use super::external;

/// # Safety
/// `vfs` is one of this crate's.
unsafe fn default_vfs(vfs: *mut sqlite3_vfs) -> *mut sqlite3_vfs {
    // SAFETY: `new_vfs` put the default VFS there, and it is never changed.
    unsafe { (*vfs).pAppData.cast() }
}

/// Defines methods that call the same method of the default VFS.
macro_rules! delegate {
    ($($name:ident is $method:ident($($arg:ident: $type:ty),*) -> $result:ty, or $otherwise:expr;)*) => {$(
        pub(super) unsafe extern "C" fn $name(vfs: *mut sqlite3_vfs $(, $arg: $type)*) -> $result {
            // SAFETY: SQLite calls a VFS's methods with that VFS.
            let default = unsafe { default_vfs(vfs) };
            // SAFETY: the default VFS is registered, so it is valid.
            match unsafe { (*default).$method } {
                // SAFETY: the arguments are those that SQLite gave for the same method.
                Some(method) => unsafe { method(default $(, $arg)*) },
                None => $otherwise,
            }
        }
    )*};
}

type Symbol = Option<unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_void, *const c_char)>;

delegate! {
    default_open is xOpen(name: *const c_char, file: *mut sqlite3_file, flags: c_int, out_flags: *mut c_int) -> c_int,
        or ffi::SQLITE_CANTOPEN;
    default_delete is xDelete(name: *const c_char, sync: c_int) -> c_int, or ffi::SQLITE_IOERR_DELETE;
    default_access is xAccess(name: *const c_char, flags: c_int, result: *mut c_int) -> c_int, or ffi::SQLITE_IOERR;
    default_full_pathname is xFullPathname(name: *const c_char, size: c_int, out: *mut c_char) -> c_int,
        or ffi::SQLITE_CANTOPEN;
    dl_open is xDlOpen(name: *const c_char) -> *mut c_void, or ptr::null_mut();
    dl_error is xDlError(size: c_int, message: *mut c_char) -> (), or ();
    dl_sym is xDlSym(library: *mut c_void, name: *const c_char) -> Symbol, or None;
    dl_close is xDlClose(library: *mut c_void) -> (), or ();
    randomness is xRandomness(size: c_int, out: *mut c_char) -> c_int, or 0;
    default_sleep is xSleep(microseconds: c_int) -> c_int, or 0;
    default_current_time is xCurrentTime(out: *mut f64) -> c_int, or ffi::SQLITE_ERROR;
    get_last_error is xGetLastError(size: c_int, out: *mut c_char) -> c_int, or 0;
    default_current_time_int64 is xCurrentTimeInt64(out: *mut sqlite3_int64) -> c_int, or ffi::SQLITE_ERROR;
}

pub(super) unsafe extern "C" fn current_time(vfs: *mut sqlite3_vfs, out: *mut f64) -> c_int {
    external::note();
    // SAFETY: SQLite's own arguments.
    unsafe { default_current_time(vfs, out) }
}

pub(super) unsafe extern "C" fn current_time_int64(vfs: *mut sqlite3_vfs, out: *mut sqlite3_int64) -> c_int {
    external::note();
    // SAFETY: SQLite's own arguments.
    unsafe { default_current_time_int64(vfs, out) }
}
