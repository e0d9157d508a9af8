//! Journals of engines: files in memory, each visible only to the connection that writes it.
//!
//! SQLite rolls back with the journal that it has open. It looks for other journals only to recover from a crash, and
//! no engine survives a crash. So a journal needs no name, and disappears when it is closed. Only a super-journal is
//! read again by its name, when attached files are rolled back. It lists the files that may still need it.

use std::ffi::{CStr, CString, c_int};

use rusqlite::ffi::{self, sqlite3_file, sqlite3_io_methods};

use super::io_methods::{Code, Content, File, guard, methods, place};
use super::mount;
use crate::faults::{self, Call};

struct Journal {
    bytes: Vec<u8>,
    /// The name of the super-journal, if it is one.
    name: Option<CString>,
}

/// The capacity in bytes that the journals of most units of work need: a header and a few pages.
const CAPACITY: usize = 20_000;

/// The size of an open file, in bytes.
pub(super) const SIZE: usize = size_of::<File<Journal>>();

static METHODS: sqlite3_io_methods = methods::<Journal>();

/// Opens a journal.
///
/// # Safety
/// As for `place`.
pub(super) unsafe fn open(file: *mut sqlite3_file, flags: c_int, out_flags: *mut c_int) -> c_int {
    guard(ffi::SQLITE_CANTOPEN, || {
        faults::check(Call::Open)?;
        // SAFETY: as the caller promises.
        unsafe { place(Journal { bytes: Vec::with_capacity(CAPACITY), name: None }, &METHODS, file, flags, out_flags) };
        Ok(())
    })
}

/// Opens a super-journal: a new one for writing, or an existing one for reading.
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
        let journal = Journal { bytes: bytes.ok_or(ffi::SQLITE_CANTOPEN)?, name: creates.then(|| name.to_owned()) };
        // SAFETY: as the caller promises.
        unsafe { place(journal, &METHODS, file, flags, out_flags) };
        Ok(())
    })
}

impl Content for Journal {
    fn check_faults(&mut self, call: Call) -> Result<(), Code> {
        faults::check(call)
    }

    fn read(&self, offset: usize, len: usize, mut take: impl FnMut(&[u8])) -> bool {
        let there = self.bytes.get(offset..).unwrap_or(&[]);
        let there = &there[..there.len().min(len)];
        take(there);
        let missing = len - there.len();
        take(&vec![0; missing]);
        missing == 0
    }

    fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), Code> {
        self.bytes.resize(self.bytes.len().max(offset), 0);
        let overwritten = (self.bytes.len() - offset).min(data.len());
        self.bytes[offset..offset + overwritten].copy_from_slice(&data[..overwritten]);
        self.bytes.extend_from_slice(&data[overwritten..]);
        Ok(())
    }

    fn truncate(&mut self, size: usize) -> Result<(), Code> {
        self.bytes.truncate(size);
        Ok(())
    }

    fn size(&self) -> usize {
        self.bytes.len()
    }

    fn close(self) {
        if let Some(name) = self.name {
            mount::keep_super_journal(&name, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(journal: &Journal, offset: usize, len: usize) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        let is_complete = journal.read(offset, len, |part| bytes.extend_from_slice(part));
        (bytes, is_complete)
    }

    #[test]
    fn a_write_changes_only_its_own_bytes() {
        let mut journal = Journal { bytes: Vec::new(), name: None };
        journal.write(2, &[1, 2, 3, 4]).unwrap();
        journal.write(3, &[9]).unwrap();
        assert_eq!(read(&journal, 0, 6), (vec![0, 0, 1, 9, 3, 4], true), "with zeros before it");
        journal.write(5, &[7, 8]).unwrap();
        assert_eq!(read(&journal, 4, 3), (vec![3, 7, 8], true));
    }

    #[test]
    fn a_read_beyond_the_end_gives_zeros() {
        let journal = Journal { bytes: vec![1, 2], name: None };
        assert_eq!(read(&journal, 1, 3), (vec![2, 0, 0], false));
        assert_eq!(read(&journal, 9, 2), (vec![0, 0], false));
    }

    #[test]
    fn a_journal_is_cut_to_its_new_size() {
        let mut journal = Journal { bytes: vec![1, 2, 3], name: None };
        journal.truncate(1).unwrap();
        assert_eq!(journal.size(), 1);
        assert_eq!(read(&journal, 0, 2), (vec![1, 0], false));
    }
}
