//! File controls and other calls below SQL return the same on an engine as on an ordinary file.
#![allow(unsafe_code, reason = "calls SQLite's C interface, which rusqlite does not expose here")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use rusqlite::TransactionBehavior;
use rusqlite::ffi;
use rusqlite_fixtures::Engine;
use rusqlite_fixtures::rusqlite::{self, Connection};

use crate::support::{assert_integrity, engine_with_entries, entries, number, text};

/// Runs a file control; returns its result code, and its argument afterwards.
fn control<T>(connection: &Connection, op: c_int, mut argument: T) -> (c_int, T) {
    // SAFETY: the connection is open, and each caller passes the type of argument that the opcode takes.
    let code =
        unsafe { ffi::sqlite3_file_control(connection.handle(), c"main".as_ptr(), op, (&raw mut argument).cast()) };
    (code, argument)
}

/// Since SQLite 3.38; the bindings of the oldest libsqlite3-sys don't have it.
const SQLITE_FCNTL_EXTERNAL_READER: c_int = 40;

fn file_and_engine() -> (tempfile::TempDir, Connection, Engine, Connection) {
    let folder = tempfile::tempdir().unwrap();
    let file = Connection::open(folder.path().join("file.sqlite3")).unwrap();
    file.execute_batch("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER NOT NULL)").unwrap();
    let engine = engine_with_entries(&[]);
    let connection = engine.connect().unwrap();
    (folder, file, engine, connection)
}

#[test]
fn file_controls_return_the_same_as_on_a_file() {
    let (_folder, file, _engine, connection) = file_and_engine();
    for (op, arguments) in [
        (ffi::SQLITE_FCNTL_LOCKSTATE, vec![-7]),
        (ffi::SQLITE_FCNTL_LAST_ERRNO, vec![-7]),
        (ffi::SQLITE_FCNTL_HAS_MOVED, vec![-7]),
        (SQLITE_FCNTL_EXTERNAL_READER, vec![-7]),
        (ffi::SQLITE_FCNTL_CHUNK_SIZE, vec![4096, 0]),
        (ffi::SQLITE_FCNTL_PERSIST_WAL, vec![-1, 1, -1, 5, -1, 0, -1]),
        (ffi::SQLITE_FCNTL_POWERSAFE_OVERWRITE, vec![-1, 0, -1, 1, -1]),
        (77_777, vec![-7]),
    ] {
        for argument in arguments {
            let expected = control(&file, op, argument);
            assert_eq!(control(&connection, op, argument), expected, "{op} with {argument}");
        }
    }
    for (op, arguments) in [
        (ffi::SQLITE_FCNTL_SIZE_HINT, vec![8192i64]),
        (ffi::SQLITE_FCNTL_MMAP_SIZE, vec![-1, 4096, -1, 0, -1, i64::MAX, -1]),
    ] {
        for argument in arguments {
            let expected = control(&file, op, argument);
            assert_eq!(control(&connection, op, argument), expected, "{op} with {argument}");
        }
    }
}

#[test]
fn the_lock_state_is_the_same_as_on_a_file() {
    let (_folder, file, _engine, connection) = file_and_engine();
    for sql in ["BEGIN", "SELECT * FROM entry", "DELETE FROM entry", "COMMIT", "BEGIN EXCLUSIVE", "ROLLBACK"] {
        file.execute_batch(sql).unwrap();
        connection.execute_batch(sql).unwrap();
        let state = |connection| control(connection, ffi::SQLITE_FCNTL_LOCKSTATE, -1);
        assert_eq!(state(&connection), state(&file), "after {sql}");
    }
}

#[test]
fn units_of_work_begin_with_the_lock_of_their_behavior() {
    let engine = Engine::new();
    for (behavior, level) in [
        (TransactionBehavior::Deferred, ffi::SQLITE_LOCK_NONE),
        (TransactionBehavior::Immediate, ffi::SQLITE_LOCK_RESERVED),
        (TransactionBehavior::Exclusive, ffi::SQLITE_LOCK_EXCLUSIVE),
    ] {
        let work = engine.begin(behavior).unwrap();
        assert_eq!(control(&work, ffi::SQLITE_FCNTL_LOCKSTATE, -1), (ffi::SQLITE_OK, level));
    }
}

#[test]
fn a_temporary_name_belongs_to_no_file() {
    let (_folder, _file, _engine, connection) = file_and_engine();
    let name = || {
        let (code, name) = control::<*mut c_char>(&connection, ffi::SQLITE_FCNTL_TEMPFILENAME, ptr::null_mut());
        assert_eq!(code, ffi::SQLITE_OK);
        // SAFETY: the result is a C string from sqlite3_malloc, and it is freed once.
        unsafe {
            let copy = CStr::from_ptr(name).to_str().unwrap().to_owned();
            ffi::sqlite3_free(name.cast());
            copy
        }
    };
    let (one, other) = (name(), name());
    assert_ne!(one, other);
    let path = std::path::Path::new(&one);
    assert!(!path.exists() && path.parent().unwrap().is_dir(), "{one}");
}

/// With memory mapping, SQLite reads pages by another method of the VFS.
#[test]
fn memory_mapping_changes_no_result() {
    let (_folder, _file, engine, connection) = file_and_engine();
    assert_eq!(number(&connection, "PRAGMA mmap_size = 1000000"), 1_000_000);
    assert_eq!(number(&connection, "PRAGMA mmap_size"), 1_000_000);
    connection.execute_batch("CREATE TABLE filler (content)").unwrap();
    for _ in 0..200 {
        connection.execute("INSERT INTO filler VALUES (randomblob(900))", []).unwrap();
    }
    let other = engine.connect().unwrap();
    other.execute_batch("UPDATE filler SET content = 'x'; VACUUM").unwrap();
    assert_eq!(number(&connection, "SELECT count(*) FROM filler WHERE content = 'x'"), 200);
    assert_integrity(&connection);
}

#[test]
fn a_setting_by_file_control_reaches_no_other_unit_of_work() {
    let engine = engine_with_entries(&[(1, 1)]);
    for (op, set) in [(ffi::SQLITE_FCNTL_PERSIST_WAL, 1), (ffi::SQLITE_FCNTL_POWERSAFE_OVERWRITE, 0)] {
        let fresh = control(&engine.unit_of_work().unwrap(), op, -1);
        let work = engine.unit_of_work().unwrap();
        assert_eq!(control(&work, op, set).0, ffi::SQLITE_OK);
        assert_eq!(control(&work, op, -1).1, set);
        drop(work);
        assert_eq!(control(&engine.unit_of_work().unwrap(), op, -1), fresh);
    }
    let connection = engine.pooled_connection().unwrap();
    connection.execute_batch("PRAGMA mmap_size = 4096").unwrap();
    drop(connection);
    assert_eq!(number(&engine.pooled_connection().unwrap(), "PRAGMA mmap_size"), 0);
}

#[test]
fn a_checkpoint_finds_no_frames() {
    let engine = engine_with_entries(&[(1, 1)]);
    let connection = engine.connect().unwrap();
    let checkpoint = |mode| {
        let (mut log, mut done) = (-7, -7);
        // SAFETY: the connection is open, and file_and_engine numbers are valid to write to.
        let code = unsafe {
            ffi::sqlite3_wal_checkpoint_v2(connection.handle(), ptr::null(), mode, &raw mut log, &raw mut done)
        };
        (code, log, done)
    };
    for journal_mode in ["DELETE", "WAL"] {
        connection.execute_batch(&format!("PRAGMA journal_mode = {journal_mode}")).unwrap();
        for mode in ffi::SQLITE_CHECKPOINT_PASSIVE..=ffi::SQLITE_CHECKPOINT_TRUNCATE {
            assert_eq!(checkpoint(mode), (ffi::SQLITE_OK, -1, -1), "{journal_mode}");
        }
    }
    assert_eq!(number(&connection, "PRAGMA wal_checkpoint(TRUNCATE)"), 0, "no connection was busy");
}

/// Names that start with an engine's name are for SQLite's journals. None of them opens as a database.
#[test]
fn no_name_that_starts_with_an_engines_name_opens_as_a_database() {
    let engine = engine_with_entries(&[(1, 1)]);
    let (path, parameters) = engine.uri().split_once('?').unwrap();
    for suffix in ["-mj0A1B2C9DE", "-mj", "-journal", "-wal", "-shm", "-mj0A1B2C9DE-journal", "0", "x", "-"] {
        let name = format!("{path}{suffix}");
        let uri = format!("{name}?{parameters}");
        assert!(Connection::open(&uri).is_err(), "{uri}");
        let connection = engine.connect().unwrap();
        assert!(connection.execute("ATTACH ?1 AS other", [&uri]).is_err(), "{uri}");
        assert!(connection.execute("ATTACH ?1 AS other", [&name]).is_err(), "{name}");
        assert!(connection.execute("VACUUM INTO ?1", [&uri]).is_err(), "{uri}");
        assert_eq!(entries(&connection), [(1, 1)]);
    }
}

/// A VFS shim above the crate's VFS, like one that adds checksums: each method calls the file below.
mod shim {
    use super::*;

    pub(super) const NAME: &CStr = c"shim-above-engines";

    #[repr(C)]
    struct File {
        base: ffi::sqlite3_file,
        below: *mut ffi::sqlite3_file,
    }

    /// Registers the shim above the VFS that an engine's URI names.
    pub(super) fn register(below: &CStr) {
        // SAFETY: the VFS below is registered. The new one is complete, and lives forever.
        unsafe {
            let below = ffi::sqlite3_vfs_find(below.as_ptr());
            assert!(!below.is_null());
            let mut vfs = Box::new(*below);
            vfs.szOsFile += size_of::<File>() as c_int;
            vfs.zName = NAME.as_ptr();
            vfs.xOpen = Some(open);
            BELOW.store(below.addr(), std::sync::atomic::Ordering::Relaxed);
            assert_eq!(ffi::sqlite3_vfs_register(Box::leak(vfs), 0), ffi::SQLITE_OK);
        }
    }

    static BELOW: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

    // All methods but xOpen are copied from the VFS below, and so is pAppData, from which they take their state.
    unsafe extern "C" fn open(
        _: *mut ffi::sqlite3_vfs,
        name: *const c_char,
        file: *mut ffi::sqlite3_file,
        flags: c_int,
        out: *mut c_int,
    ) -> c_int {
        let vfs =
            ptr::with_exposed_provenance_mut::<ffi::sqlite3_vfs>(BELOW.load(std::sync::atomic::Ordering::Relaxed));
        // SAFETY: szOsFile makes room for file_and_engine files, and the arguments are SQLite's own.
        unsafe {
            let below = file.cast::<File>().add(1).cast::<ffi::sqlite3_file>();
            let code = (*vfs).xOpen.unwrap()(vfs, name, below, flags, out);
            let methods = if (*below).pMethods.is_null() { ptr::null() } else { &raw const METHODS };
            file.cast::<File>().write(File { base: ffi::sqlite3_file { pMethods: methods }, below });
            code
        }
    }

    macro_rules! forward {
        ($($name:ident is $method:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {$(
            unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $arg: $type)*) -> $result {
                // SAFETY: `open` initialized the file, and the arguments are SQLite's own.
                unsafe {
                    let below = (*file.cast::<File>()).below;
                    (*(*below).pMethods).$method.unwrap()(below $(, $arg)*)
                }
            }
        )*};
    }

    forward! {
        close is xClose() -> c_int;
        read is xRead(out: *mut c_void, amount: c_int, offset: i64) -> c_int;
        write is xWrite(data: *const c_void, amount: c_int, offset: i64) -> c_int;
        truncate is xTruncate(size: i64) -> c_int;
        sync is xSync(flags: c_int) -> c_int;
        file_size is xFileSize(size: *mut i64) -> c_int;
        lock is xLock(level: c_int) -> c_int;
        unlock is xUnlock(level: c_int) -> c_int;
        check_reserved_lock is xCheckReservedLock(result: *mut c_int) -> c_int;
        file_control is xFileControl(op: c_int, arg: *mut c_void) -> c_int;
        device_characteristics is xDeviceCharacteristics() -> c_int;
        shm_map is xShmMap(page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void) -> c_int;
        shm_lock is xShmLock(offset: c_int, count: c_int, flags: c_int) -> c_int;
        shm_barrier is xShmBarrier() -> ();
        shm_unmap is xShmUnmap(delete: c_int) -> c_int;
        fetch is xFetch(offset: i64, amount: c_int, page: *mut *mut c_void) -> c_int;
        unfetch is xUnfetch(offset: i64, page: *mut c_void) -> c_int;
    }

    static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
        iVersion: 3,
        xClose: Some(close),
        xRead: Some(read),
        xWrite: Some(write),
        xTruncate: Some(truncate),
        xSync: Some(sync),
        xFileSize: Some(file_size),
        xLock: Some(lock),
        xUnlock: Some(unlock),
        xCheckReservedLock: Some(check_reserved_lock),
        xFileControl: Some(file_control),
        xSectorSize: None,
        xDeviceCharacteristics: Some(device_characteristics),
        xShmMap: Some(shm_map),
        xShmLock: Some(shm_lock),
        xShmBarrier: Some(shm_barrier),
        xShmUnmap: Some(shm_unmap),
        xFetch: Some(fetch),
        xUnfetch: Some(unfetch),
    };
}

#[test]
fn wal_mode_works_through_a_vfs_shim() {
    let engine = engine_with_entries(&[(1, 1)]);
    let (path, vfs) = engine.uri().split_once("?vfs=").unwrap();
    shim::register(&std::ffi::CString::new(vfs).unwrap());
    let uri = format!("{path}?vfs={}", shim::NAME.to_str().unwrap());
    let connection = Connection::open(&uri).unwrap();
    assert_eq!(text(&connection, "PRAGMA journal_mode = WAL"), "wal");
    connection.execute_batch("BEGIN; UPDATE entry SET value = 2; COMMIT; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    for connection in [&connection, &Connection::open(&uri).unwrap(), &engine.connect().unwrap()] {
        assert_eq!(text(connection, "PRAGMA journal_mode"), "wal");
        assert_eq!(entries(connection), [(1, 2)]);
    }
    assert_eq!(text(&connection, "PRAGMA journal_mode = DELETE"), "delete");
    assert_eq!(text(&engine.connect().unwrap(), "PRAGMA journal_mode"), "delete");
}
