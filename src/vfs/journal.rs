//! Journals of engines: files in memory that only the connection sees which writes them.
//!
//! SQLite rolls back with the journal that it has open. It looks for others' only to recover from a crash, and no engine
//! survives one. So a journal needs no name, and is gone when it is closed.

use std::ffi::{c_int, c_void};
use std::{ptr, slice};

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods};

use super::{device_characteristics, guard, sync, unsigned};
use crate::faults::{self, Call};

/// A journal as SQLite holds it.
#[repr(C)]
struct Journal {
    base: sqlite3_file,
    /// From `Box::into_raw`, until xClose.
    bytes: *mut Vec<u8>,
}

/// Bytes that most units of work's journals need at most: a header and a few pages.
const CAPACITY: usize = 20_000;

pub(super) const SIZE: usize = size_of::<Journal>();

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(no_lock),
    xUnlock: Some(no_lock),
    xCheckReservedLock: Some(super::check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: None,
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// Opens a journal.
///
/// # Safety
/// `file` is what xOpen was given: at least `SIZE` bytes to initialise. `out_flags` is NULL or an int to write to.
pub(super) unsafe fn open(file: *mut sqlite3_file, flags: c_int, out_flags: *mut c_int) -> c_int {
    guard(ffi::SQLITE_CANTOPEN, || {
        faults::check(Call::Open)?;
        let bytes = Box::into_raw(Box::new(Vec::with_capacity(CAPACITY)));
        // SAFETY: as the caller promises; SQLite aligns files to 8 bytes.
        unsafe { file.cast::<Journal>().write(Journal { base: sqlite3_file { pMethods: &METHODS }, bytes }) };
        if !out_flags.is_null() {
            // SAFETY: as the caller promises.
            unsafe { *out_flags = flags };
        }
        Ok(())
    })
}

/// # Safety
/// `file` is one that `open` has made, not closed yet, and the result is not kept beyond the method that SQLite called.
unsafe fn bytes<'a>(file: *mut sqlite3_file) -> &'a mut Vec<u8> {
    // SAFETY: `Journal` is repr(C) and starts with the sqlite3_file; `bytes` is valid until xClose.
    unsafe { &mut *(*file.cast::<Journal>()).bytes }
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    guard(ffi::SQLITE_IOERR_CLOSE, || {
        // SAFETY: `open` put it there, and SQLite closes a file once.
        drop(unsafe { Box::from_raw((*file.cast::<Journal>()).bytes) });
        Ok(())
    })
}

unsafe extern "C" fn read(file: *mut sqlite3_file, out: *mut c_void, amount: c_int, offset: sqlite3_int64) -> c_int {
    guard(ffi::SQLITE_IOERR_READ, || {
        faults::check(Call::Read)?;
        let (amount, offset) = (unsigned(amount)?, unsigned(offset)?);
        // SAFETY: SQLite gives its methods files that `open` opened and `close` has not closed.
        let bytes = unsafe { bytes(file) };
        let there = bytes.get(offset..).unwrap_or(&[]);
        let count = there.len().min(amount);
        // SAFETY: xRead has a buffer of `amount` bytes, none of them in the journal.
        unsafe { ptr::copy_nonoverlapping(there.as_ptr(), out.cast(), count) };
        // SAFETY: as above; `count` is at most `amount`. A short read has to leave zeros.
        unsafe { ptr::write_bytes(out.cast::<u8>().add(count), 0, amount - count) };
        if count == amount { Ok(()) } else { Err(ffi::SQLITE_IOERR_SHORT_READ) }
    })
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    data: *const c_void,
    amount: c_int,
    offset: sqlite3_int64,
) -> c_int {
    guard(ffi::SQLITE_IOERR_WRITE, || {
        faults::check(Call::Write)?;
        let (amount, offset) = (unsigned(amount)?, unsigned(offset)?);
        // SAFETY: xWrite has `amount` bytes to write.
        let data = unsafe { slice::from_raw_parts(data.cast::<u8>(), amount) };
        // SAFETY: as in `read`.
        let bytes = unsafe { bytes(file) };
        if bytes.len() < offset {
            bytes.resize(offset, 0);
        }
        let overwritten = (bytes.len() - offset).min(amount);
        bytes[offset..offset + overwritten].copy_from_slice(&data[..overwritten]);
        bytes.extend_from_slice(&data[overwritten..]);
        Ok(())
    })
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    guard(ffi::SQLITE_IOERR_TRUNCATE, || {
        faults::check(Call::Truncate)?;
        // SAFETY: as in `read`.
        unsafe { bytes(file) }.truncate(unsigned(size)?);
        Ok(())
    })
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, size: *mut sqlite3_int64) -> c_int {
    guard(ffi::SQLITE_IOERR_FSTAT, || {
        faults::check(Call::Size)?;
        // SAFETY: as in `read`.
        let len = unsafe { bytes(file) }.len();
        // SAFETY: xFileSize has an integer to write its answer to.
        unsafe { *size = len as sqlite3_int64 };
        Ok(())
    })
}

unsafe extern "C" fn no_lock(_: *mut sqlite3_file, _: c_int) -> c_int {
    ffi::SQLITE_OK // SQLite locks databases only
}

unsafe extern "C" fn file_control(_: *mut sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}
