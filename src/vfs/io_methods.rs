//! The methods that SQLite calls on an open file (`sqlite3_io_methods`), once for databases and for their journals.
//!
//! What a file holds is a [`Content`], in safe code.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{ptr, slice};

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods};

use crate::faults::Call;

/// A SQLite result code other than `SQLITE_OK`.
pub(super) type Code = i32;

/// The content of an open file of this VFS.
pub(super) trait Content {
    /// Fails if a fault plan fails this call.
    fn check_faults(&mut self, call: Call) -> Result<(), Code>;
    /// Passes `len` bytes from `offset` on to `take`, in parts, with zeros beyond the end of the file. Returns whether
    /// the file has as many.
    fn read(&self, offset: usize, len: usize, take: impl FnMut(&[u8])) -> bool;
    fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), Code>;
    fn truncate(&mut self, size: usize) -> Result<(), Code>;
    fn size(&self) -> usize;
    /// Called once, when SQLite closes the file.
    fn close(self);
}

/// An open file in SQLite's memory: SQLite's part, followed by this crate's part.
#[repr(C)]
pub(super) struct File<C> {
    base: sqlite3_file,
    /// From `Box::into_raw`, until xClose.
    content: *mut C,
}

/// Opens a file in the memory that SQLite provides for it.
///
/// # Safety
/// `file` is what xOpen was given, of at least the size of a `File<C>`, and `out_flags` is NULL or an int to write to.
/// `methods` are `methods::<C>()`, possibly with more of them.
pub(super) unsafe fn place<C>(
    content: C,
    methods: &'static sqlite3_io_methods,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) {
    let content = Box::into_raw(Box::new(content));
    // SAFETY: as the caller promises; SQLite aligns files to 8 bytes.
    unsafe { file.cast::<File<C>>().write(File { base: sqlite3_file { pMethods: methods }, content }) };
    if !out_flags.is_null() {
        // SAFETY: as the caller promises.
        unsafe { *out_flags = flags };
    }
}

/// Returns the content of a file.
///
/// # Safety
/// `file` is one that `place::<C>` has opened, not closed yet. The caller does not keep the result beyond the method
/// that SQLite called. SQLite uses a file from one thread at a time, so no other reference to its content exists.
pub(super) unsafe fn content<'a, C>(file: *mut sqlite3_file) -> &'a mut C {
    // SAFETY: `File` is repr(C) and starts with the sqlite3_file; `content` is valid until xClose.
    unsafe { &mut *(*file.cast::<File<C>>()).content }
}

/// Returns the methods that all files have.
pub(super) const fn methods<C: Content>() -> sqlite3_io_methods {
    sqlite3_io_methods {
        iVersion: 1,
        xClose: Some(close::<C>),
        xRead: Some(read::<C>),
        xWrite: Some(write::<C>),
        xTruncate: Some(truncate::<C>),
        xSync: Some(sync::<C>),
        xFileSize: Some(file_size::<C>),
        xLock: Some(no_lock),
        xUnlock: Some(no_lock),
        xCheckReservedLock: Some(check_reserved_lock),
        xFileControl: Some(no_file_control),
        xSectorSize: None, // not asked for where neighboring bytes stay as they are
        xDeviceCharacteristics: Some(device_characteristics),
        // Without this method, SQLite considers WAL impossible.
        xShmMap: None,
        xShmLock: None,
        xShmBarrier: None,
        xShmUnmap: None,
        xFetch: None,
        xUnfetch: None,
    }
}

/// Runs the body of a method. Converts a panic to `code`, because a panic must not cross the C interface.
pub(super) fn guard(code: Code, work: impl FnOnce() -> Result<(), Code>) -> c_int {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => ffi::SQLITE_OK,
        Ok(Err(code)) => code,
        Err(_) => code,
    }
}

/// Converts an offset or a length. It is never negative (sqlite3_io_methods) nor beyond the address space.
fn unsigned(number: impl TryInto<usize>) -> Result<usize, Code> {
    number.try_into().map_err(|_| ffi::SQLITE_IOERR)
}

/// Returns the range that a method reads or writes. It never lies beyond the address space.
fn region(offset: impl TryInto<usize>, amount: c_int) -> Result<Range<usize>, Code> {
    let (start, len) = (unsigned(offset)?, unsigned(amount)?);
    Ok(start..start.checked_add(len).ok_or(ffi::SQLITE_IOERR)?)
}

unsafe extern "C" fn close<C: Content>(file: *mut sqlite3_file) -> c_int {
    guard(ffi::SQLITE_IOERR_CLOSE, || {
        // SAFETY: `place` put it there, and SQLite closes a file once.
        let content = unsafe { Box::from_raw((*file.cast::<File<C>>()).content) };
        content.close();
        Ok(())
    })
}

unsafe extern "C" fn read<C: Content>(
    file: *mut sqlite3_file,
    out: *mut c_void,
    amount: c_int,
    offset: sqlite3_int64,
) -> c_int {
    guard(ffi::SQLITE_IOERR_READ, || {
        // SAFETY: SQLite gives its methods files that `place` opened and `close` has not closed.
        let content = unsafe { content::<C>(file) };
        content.check_faults(Call::Read)?;
        let region = region(offset, amount)?;
        let mut out = out.cast::<u8>();
        let complete = content.read(region.start, region.len(), |part| {
            // SAFETY: xRead has a buffer of `amount` bytes, which is what the parts have together; it is SQLite's own.
            unsafe {
                ptr::copy_nonoverlapping(part.as_ptr(), out, part.len());
                out = out.add(part.len());
            }
        });
        // "If xRead() returns SQLITE_IOERR_SHORT_READ it must also fill in the unread portions of the buffer with
        // zeros."
        if complete { Ok(()) } else { Err(ffi::SQLITE_IOERR_SHORT_READ) }
    })
}

unsafe extern "C" fn write<C: Content>(
    file: *mut sqlite3_file,
    data: *const c_void,
    amount: c_int,
    offset: sqlite3_int64,
) -> c_int {
    guard(ffi::SQLITE_IOERR_WRITE, || {
        // SAFETY: as in `read`.
        let content = unsafe { content::<C>(file) };
        content.check_faults(Call::Write)?;
        let region = region(offset, amount)?;
        // SAFETY: xWrite has `amount` bytes to write.
        let data = unsafe { slice::from_raw_parts(data.cast::<u8>(), region.len()) };
        content.write(region.start, data)
    })
}

unsafe extern "C" fn truncate<C: Content>(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    guard(ffi::SQLITE_IOERR_TRUNCATE, || {
        // SAFETY: as in `read`.
        let content = unsafe { content::<C>(file) };
        content.check_faults(Call::Truncate)?;
        content.truncate(unsigned(size)?)
    })
}

unsafe extern "C" fn sync<C: Content>(file: *mut sqlite3_file, _: c_int) -> c_int {
    // SAFETY: as in `read`. Memory needs no synchronization.
    guard(ffi::SQLITE_IOERR_FSYNC, || unsafe { content::<C>(file) }.check_faults(Call::Sync))
}

unsafe extern "C" fn file_size<C: Content>(file: *mut sqlite3_file, size: *mut sqlite3_int64) -> c_int {
    guard(ffi::SQLITE_IOERR_FSTAT, || {
        // SAFETY: as in `read`.
        let content = unsafe { content::<C>(file) };
        content.check_faults(Call::Size)?;
        let bytes = content.size() as sqlite3_int64;
        // SAFETY: xFileSize has an integer to write its answer to.
        unsafe { *size = bytes };
        Ok(())
    })
}

unsafe extern "C" fn no_lock(_: *mut sqlite3_file, _: c_int) -> c_int {
    ffi::SQLITE_OK // SQLite locks databases only
}

unsafe extern "C" fn no_file_control(_: *mut sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn check_reserved_lock(_: *mut sqlite3_file, result: *mut c_int) -> c_int {
    // SQLite asks this to distinguish a journal in use from one that a crash has left. Neither exists here. SAFETY:
    // xCheckReservedLock has an int to write its answer to.
    unsafe { *result = 0 };
    ffi::SQLITE_OK
}

/// Since SQLite 3.48, so not all bindings have it. Older versions of SQLite ignore it.
const SQLITE_IOCAP_SUBPAGE_READ: c_int = 0x8000;

unsafe extern "C" fn device_characteristics(_: *mut sqlite3_file) -> c_int {
    // In memory, writes happen in order, neighboring bytes stay unchanged, and any part of a page can be read. Writes
    // are also atomic, but that flag is not set: with it, SQLite may change the default page size.
    ffi::SQLITE_IOCAP_SAFE_APPEND
        | ffi::SQLITE_IOCAP_SEQUENTIAL
        | ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
        | SQLITE_IOCAP_SUBPAGE_READ
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_result_code() {
        assert_eq!(guard(ffi::SQLITE_IOERR_READ, || panic!("in a method")), ffi::SQLITE_IOERR_READ);
        assert_eq!(guard(ffi::SQLITE_IOERR_READ, || Err(ffi::SQLITE_BUSY)), ffi::SQLITE_BUSY);
        assert_eq!(guard(ffi::SQLITE_IOERR_READ, || Ok(())), ffi::SQLITE_OK);
    }

    #[test]
    fn negative_offsets_are_errors() {
        assert_eq!(unsigned(-1), Err(ffi::SQLITE_IOERR));
        assert_eq!(unsigned(7), Ok(7));
    }

    #[test]
    fn no_region_wraps_around() {
        assert_eq!(region(usize::MAX - 7, 7), Ok(usize::MAX - 7..usize::MAX));
        assert_eq!(region(usize::MAX - 6, 7), Err(ffi::SQLITE_IOERR));
        assert_eq!(region(-1, 7), Err(ffi::SQLITE_IOERR));
        assert_eq!(region(0, -1), Err(ffi::SQLITE_IOERR));
    }

    struct Bytes(Vec<u8>);

    impl Content for Bytes {
        fn check_faults(&mut self, _: Call) -> Result<(), Code> {
            Ok(())
        }

        fn read(&self, offset: usize, len: usize, mut take: impl FnMut(&[u8])) -> bool {
            let there = &self.0[offset.min(self.0.len())..(offset + len).min(self.0.len())];
            take(there);
            take(&vec![0; len - there.len()]);
            there.len() == len
        }

        fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), Code> {
            self.0.resize(self.0.len().max(offset + data.len()), 0);
            self.0[offset..offset + data.len()].copy_from_slice(data);
            Ok(())
        }

        fn truncate(&mut self, size: usize) -> Result<(), Code> {
            self.0.truncate(size);
            Ok(())
        }

        fn size(&self) -> usize {
            self.0.len()
        }

        fn close(self) {}
    }

    /// SQLite itself takes a short read of a database for zeros. A VFS that is stacked above this one may not.
    #[test]
    fn a_read_beyond_the_end_is_short_and_fills_the_buffer_with_zeros() {
        static METHODS: sqlite3_io_methods = methods::<Bytes>();
        let mut file = std::mem::MaybeUninit::<File<Bytes>>::uninit();
        let file: *mut sqlite3_file = file.as_mut_ptr().cast();
        // SAFETY: there is room for a `File<Bytes>`; the flags may be NULL.
        unsafe { place(Bytes(Vec::new()), &METHODS, file, 0, ptr::null_mut()) };
        let read = |offset| {
            let mut buffer = [7u8; 4];
            // SAFETY: the file is open, and the buffer has as many bytes.
            (unsafe { read::<Bytes>(file, buffer.as_mut_ptr().cast(), 4, offset) }, buffer)
        };
        let mut size = 0;
        // SAFETY: the file is open, the data has as many bytes, and the size is an integer to write to.
        unsafe {
            assert_eq!(write::<Bytes>(file, [1u8, 2, 3, 4, 5].as_ptr().cast(), 5, 1), ffi::SQLITE_OK);
            assert_eq!(truncate::<Bytes>(file, 5), ffi::SQLITE_OK);
            assert_eq!((file_size::<Bytes>(file, &raw mut size), size), (ffi::SQLITE_OK, 5));
        }
        assert_eq!(read(1), (ffi::SQLITE_OK, [1, 2, 3, 4]));
        assert_eq!(read(3), (ffi::SQLITE_IOERR_SHORT_READ, [3, 4, 0, 0]));
        assert_eq!(read(9), (ffi::SQLITE_IOERR_SHORT_READ, [0; 4]));
        // SAFETY: it is open, and not used after this.
        assert_eq!(unsafe { close::<Bytes>(file) }, ffi::SQLITE_OK);
    }
}
