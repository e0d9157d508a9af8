//! Journals of engines: files in memory that only the connection sees which writes them.
//!
//! SQLite rolls back with the journal that it has open. It looks for others' only to recover from a crash, and no engine
//! survives one. So a journal needs no name, and is gone when it is closed. Only a super-journal is read again, by its name,
//! when files that are attached are rolled back: it says which of them may still need it.

use std::ffi::{CStr, CString, c_int, c_void};
use std::{ptr, slice};

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods};

use super::{device_characteristics, guard, mount, region, sync, unsigned};
use crate::faults::{self, Call};

/// A journal as SQLite holds it.
#[repr(C)]
struct Journal {
    base: sqlite3_file,
    /// From `Box::into_raw`, until xClose.
    content: *mut Content,
}

struct Content {
    bytes: Vec<u8>,
    /// The name of the super-journal that it is, if it is one.
    name: Option<CString>,
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
        // SAFETY: as the caller promises.
        unsafe { place(Content { bytes: Vec::with_capacity(CAPACITY), name: None }, file, flags, out_flags) };
        Ok(())
    })
}

/// Opens a super-journal: a new one to write to, or one that exists to read it.
///
/// # Safety
/// As for `open`.
pub(super) unsafe fn open_super(name: &CStr, file: *mut sqlite3_file, flags: c_int, out_flags: *mut c_int) -> c_int {
    guard(ffi::SQLITE_CANTOPEN, || {
        faults::check(Call::Open)?;
        let creates = flags & ffi::SQLITE_OPEN_CREATE != 0;
        let bytes = match creates {
            true => mount::create_super_journal(name).then(Vec::new),
            false => mount::super_journal(name),
        };
        let content = Content { bytes: bytes.ok_or(ffi::SQLITE_CANTOPEN)?, name: creates.then(|| name.to_owned()) };
        // SAFETY: as the caller promises.
        unsafe { place(content, file, flags, out_flags) };
        Ok(())
    })
}

/// # Safety
/// As for `open`.
unsafe fn place(content: Content, file: *mut sqlite3_file, flags: c_int, out_flags: *mut c_int) {
    let content = Box::into_raw(Box::new(content));
    // SAFETY: as the caller promises; SQLite aligns files to 8 bytes.
    unsafe { file.cast::<Journal>().write(Journal { base: sqlite3_file { pMethods: &METHODS }, content }) };
    if !out_flags.is_null() {
        // SAFETY: as the caller promises.
        unsafe { *out_flags = flags };
    }
}

/// # Safety
/// `file` is one that `open` has made, not closed yet, and the result is not kept beyond the method that SQLite called.
unsafe fn bytes<'a>(file: *mut sqlite3_file) -> &'a mut Vec<u8> {
    // SAFETY: `Journal` is repr(C) and starts with the sqlite3_file; `content` is valid until xClose.
    unsafe { &mut (*(*file.cast::<Journal>()).content).bytes }
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    guard(ffi::SQLITE_IOERR_CLOSE, || {
        // SAFETY: `place` put it there, and SQLite closes a file once.
        let content = unsafe { Box::from_raw((*file.cast::<Journal>()).content) };
        if let Content { bytes, name: Some(name) } = *content {
            mount::keep_super_journal(&name, bytes);
        }
        Ok(())
    })
}

unsafe extern "C" fn read(file: *mut sqlite3_file, out: *mut c_void, amount: c_int, offset: sqlite3_int64) -> c_int {
    guard(ffi::SQLITE_IOERR_READ, || {
        faults::check(Call::Read)?;
        let region = region(offset, amount)?;
        let amount = region.len();
        // SAFETY: SQLite gives its methods files that `open` opened and `close` has not closed.
        let bytes = unsafe { bytes(file) };
        let there = bytes.get(region.start..).unwrap_or(&[]);
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
        let region = region(offset, amount)?;
        // SAFETY: xWrite has `amount` bytes to write.
        let data = unsafe { slice::from_raw_parts(data.cast::<u8>(), region.len()) };
        // SAFETY: as in `read`.
        let bytes = unsafe { bytes(file) };
        if bytes.len() < region.start {
            bytes.resize(region.start, 0);
        }
        let overwritten = (bytes.len() - region.start).min(region.len());
        bytes[region.start..region.start + overwritten].copy_from_slice(&data[..overwritten]);
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
