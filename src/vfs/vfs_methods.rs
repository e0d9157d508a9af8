//! The methods that SQLite calls on the VFS (`sqlite3_vfs`): they find engines and their journals by their names, and
//! pass every other file to the default VFS.

use std::ffi::{CStr, c_char, c_int};
use std::panic::catch_unwind;
use std::ptr;
use std::time::Duration;

use rusqlite::ffi::{self, sqlite3_file, sqlite3_vfs};

use super::default_vfs::{self, default_access, default_delete, default_full_pathname, default_open, default_sleep};
use super::handle::Handle;
use super::io_methods::guard;
use super::mount::{self, FileName, Mount};
use super::{NAME, database, database_file, external, journal, stand_in, waiting};
use crate::faults::{self, Call};

/// Returns the VFS. Engines are found by their names, and every other file by the default VFS, which `pAppData`
/// points to.
pub(super) fn new_vfs(default: *mut sqlite3_vfs) -> sqlite3_vfs {
    // SAFETY: `default` is registered, so it is valid, and what is read here is set before registration.
    let (version, os_file, max_pathname) = unsafe { ((*default).iVersion, (*default).szOsFile, (*default).mxPathname) };
    sqlite3_vfs {
        iVersion: version.min(2),
        szOsFile: os_file.max(database::SIZE.max(journal::SIZE) as c_int),
        mxPathname: max_pathname,
        pNext: ptr::null_mut(),
        zName: NAME.as_ptr(),
        pAppData: default.cast(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        xDlOpen: Some(default_vfs::dl_open),
        xDlError: Some(default_vfs::dl_error),
        xDlSym: Some(default_vfs::dl_sym),
        xDlClose: Some(default_vfs::dl_close),
        xRandomness: Some(default_vfs::randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(default_vfs::current_time),
        xGetLastError: Some(default_vfs::get_last_error),
        xCurrentTimeInt64: Some(default_vfs::current_time_int64),
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    }
}

/// SQLite's own busy handler (`sqlite3_busy_timeout`) calls this between two tries. If an engine's connection called
/// the handler, this waits in the engine's queue instead.
unsafe extern "C" fn sleep(vfs: *mut sqlite3_vfs, microseconds: c_int) -> c_int {
    let time = Duration::from_micros(u64::try_from(microseconds).unwrap_or_default());
    if catch_unwind(|| waiting::sleep(time)).unwrap_or_default() {
        return microseconds;
    }
    // SAFETY: SQLite's own arguments.
    unsafe { default_sleep(vfs, microseconds) }
}

/// Parses a file name.
///
/// # Safety
/// `name` is NULL or a C string.
unsafe fn parse(name: *const c_char) -> FileName {
    if name.is_null() {
        return FileName::Other; // a temporary file
    }
    // SAFETY: as the caller promises.
    FileName::parse(unsafe { CStr::from_ptr(name) }.to_bytes())
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: `file` is szOsFile bytes that are ours to initialize. Where opening fails, "xOpen should set pMethods to
    // NULL" so that SQLite does not call xClose.
    unsafe { (*file).pMethods = ptr::null() };
    // SAFETY: sqlite3_vfs says that the name is NULL or a C string.
    match unsafe { parse(name) } {
        // SAFETY: SQLite's own arguments, with the name of a database file if the flags say so.
        FileName::Database(id) => unsafe { open_engine(id, name, file, flags, out_flags) },
        FileName::SuperJournal if flags & ffi::SQLITE_OPEN_SUPER_JOURNAL != 0 => {
            // SAFETY: SQLite's own arguments; the name is a C string, as above.
            unsafe { journal::open_super(CStr::from_ptr(name), file, flags, out_flags) }
        }
        FileName::Beside if flags & ffi::SQLITE_OPEN_MAIN_JOURNAL != 0 => {
            // SAFETY: SQLite's own arguments.
            unsafe { journal::open(file, flags, out_flags) }
        }
        // A database or a WAL with such a name would belong only to this connection.
        FileName::SuperJournal | FileName::Beside => ffi::SQLITE_CANTOPEN,
        // SAFETY: only a database file's name has URI parameters, and `flags` says that it is one.
        FileName::Other if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 && unsafe { asks_in_vain(name) } => {
            // SAFETY: as above; not NULL, or it would not have asked.
            let _ = catch_unwind(|| mount::report_no_engine(unsafe { CStr::from_ptr(name) }));
            ffi::SQLITE_CANTOPEN
        }
        // SAFETY: as above.
        FileName::Other if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 && unsafe { is_engine_without_locks(name) } => {
            ffi::SQLITE_CANTOPEN
        }
        FileName::Other => {
            if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 {
                external::note(); // it is attached
            }
            // SAFETY: SQLite's own arguments; szOsFile is large enough for the default VFS's file.
            unsafe { default_open(vfs, name, file, flags, out_flags) }
        }
    }
}

/// # Safety
/// As for `asks_in_vain_for_an_engine`.
unsafe fn asks_in_vain(name: *const c_char) -> bool {
    // SAFETY: as the caller promises.
    catch_unwind(|| unsafe { database_file::asks_in_vain_for_an_engine(name) }).unwrap_or(true)
}

/// # Safety
/// As for `asks_in_vain_for_an_engine`.
unsafe fn is_engine_without_locks(name: *const c_char) -> bool {
    // SAFETY: as the caller promises; a name that asks for an engine is what xOpen was given for a database file.
    unsafe { database_file::asks_for_an_engine(name) && !takes_locks(name) }
}

/// # Safety
/// The arguments are xOpen's.
unsafe fn open_engine(
    id: u64,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    guard(ffi::SQLITE_CANTOPEN, || {
        // SAFETY: only for a database file does SQLite give a name with URI parameters, and only then are they read.
        let can_serve = flags & ffi::SQLITE_OPEN_MAIN_DB != 0 && unsafe { takes_locks(name) };
        if !can_serve {
            return Err(ffi::SQLITE_CANTOPEN);
        }
        let mount = Mount::find(id).ok_or(ffi::SQLITE_CANTOPEN).inspect_err(|_| mount::report_gone(id))?;
        faults::check(Call::Open)?;
        let handle = Handle::new(mount, flags & ffi::SQLITE_OPEN_READONLY != 0);
        // SAFETY: SQLite's own arguments; szOsFile is large enough.
        unsafe { database::open(handle, file, flags, out_flags) };
        Ok(())
    })
}

/// Returns whether the connection is going to lock the database. Without locks, its reads could mix several commits.
///
/// # Safety
/// `name` is what xOpen was given for a database file.
unsafe fn takes_locks(name: *const c_char) -> bool {
    // SAFETY: sqlite3_uri_boolean takes the name that xOpen was given.
    [c"nolock", c"immutable"].iter().all(|key| unsafe { ffi::sqlite3_uri_boolean(name, key.as_ptr(), 0) } == 0)
}

unsafe extern "C" fn delete(vfs: *mut sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: sqlite3_vfs says that the name is a C string.
    match unsafe { parse(name) } {
        // SAFETY: SQLite's own arguments.
        FileName::Other => unsafe { default_delete(vfs, name, sync) },
        FileName::SuperJournal => guard(ffi::SQLITE_IOERR_DELETE, || {
            faults::check(Call::Delete)?;
            // SAFETY: as above.
            mount::remove_super_journal(unsafe { CStr::from_ptr(name) });
            faults::past_undoing();
            Ok(())
        }),
        // A journal disappears when it is closed.
        FileName::Database(_) | FileName::Beside => guard(ffi::SQLITE_IOERR_DELETE, || faults::check(Call::Delete)),
    }
}

unsafe extern "C" fn access(vfs: *mut sqlite3_vfs, name: *const c_char, flags: c_int, result: *mut c_int) -> c_int {
    // SAFETY: sqlite3_vfs says that the name is a C string.
    let exists = match unsafe { parse(name) } {
        // SAFETY: SQLite's own arguments.
        FileName::Other => return unsafe { default_access(vfs, name, flags, result) },
        FileName::Database(id) => Mount::find(id).is_some(),
        // SAFETY: as above.
        FileName::SuperJournal => mount::is_super_journal(unsafe { CStr::from_ptr(name) }),
        FileName::Beside => false, // so that no journal is ever taken for one that a crash has left
    };
    // SAFETY: xAccess has an int to write its answer to.
    unsafe { *result = c_int::from(exists) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(vfs: *mut sqlite3_vfs, name: *const c_char, size: c_int, out: *mut c_char) -> c_int {
    // SAFETY: sqlite3_vfs says that the name is a C string.
    let file = match unsafe { parse(name) } {
        FileName::Other => None,
        FileName::Database(id) => Some(catch_unwind(|| database_file::full_name_of(id)).unwrap_or_default()),
        FileName::SuperJournal | FileName::Beside => Some(None),
    };
    if let Some(file_of_engine) = file {
        // SAFETY: not NULL, or it would have been `Other`; `out` is SQLite's own buffer of `size` bytes.
        return unsafe { copy(file_of_engine.as_deref().unwrap_or(CStr::from_ptr(name)), size, out) };
    }
    // SAFETY: SQLite's own arguments.
    let code = unsafe { default_full_pathname(vfs, name, size, out) };
    if code & 0xff != ffi::SQLITE_OK {
        return code; // SQLITE_OK_SYMLINK is OK
    }
    // SAFETY: the default VFS has written a C string to `out`.
    let engine = catch_unwind(|| stand_in::find(unsafe { CStr::from_ptr(out) })).unwrap_or_default();
    // SAFETY: as above.
    engine.map_or(code, |engine| unsafe { copy(&engine, size, out) })
}

/// Copies a name to the buffer of a full name.
///
/// # Safety
/// `out` has `size` bytes, and is not the name.
unsafe fn copy(name: &CStr, size: c_int, out: *mut c_char) -> c_int {
    let name = name.to_bytes_with_nul();
    if name.len() > size as usize {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: the name with its NUL fits.
    unsafe { ptr::copy_nonoverlapping(name.as_ptr().cast(), out, name.len()) };
    ffi::SQLITE_OK
}
