//! What a connection sees in its main database, with what it has not committed ("Serialize a database").

use std::ffi::{c_int, c_uint};

use rusqlite::ffi::{self, sqlite3};

/// Why content was not serialized.
pub(super) enum NotSerialized {
    /// It has this many bytes, which are too many.
    TooLarge(usize),
    /// SQLite's result code.
    Failed(c_int),
}

/// Returns the bytes of the content that the connection sees in its main database, if it has at most this many.
///
/// # Safety
/// The connection is open, and this thread uses it.
pub(super) unsafe fn serialize(db: *mut sqlite3, at_most: usize) -> Result<Vec<u8>, NotSerialized> {
    const NO_COPY: c_uint = ffi::SQLITE_SERIALIZE_NOCOPY as c_uint;
    let mut len = 0;
    // SAFETY: as the caller promises. With this flag, SQLite copies nothing, and says how long a copy would be.
    unsafe { ffi::sqlite3_serialize(db, c"main".as_ptr(), &raw mut len, NO_COPY) };
    if let Some(len) = usize::try_from(len).ok().filter(|len| *len > at_most) {
        return Err(NotSerialized::TooLarge(len));
    }
    // SAFETY: as above. SQLite returns NULL, or as many bytes as it says, which are the caller's to free.
    unsafe {
        let bytes = ffi::sqlite3_serialize(db, c"main".as_ptr(), &raw mut len, 0);
        if bytes.is_null() {
            let code = ffi::sqlite3_errcode(db);
            return Err(NotSerialized::Failed(if code == ffi::SQLITE_OK { ffi::SQLITE_NOMEM } else { code }));
        }
        let copy = std::slice::from_raw_parts(bytes, usize::try_from(len).unwrap_or_default()).to_vec();
        ffi::sqlite3_free(bytes.cast());
        Ok(copy)
    }
}
