//! SQLite's default VFS while engines stand in for files. It is of the whole process, so this is a program of its own.
#![allow(unsafe_code, reason = "calls SQLite's C interface")]

use std::ffi::CStr;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite_fixtures::rusqlite::Connection;
use rusqlite_fixtures::rusqlite::ffi::{self, sqlite3_vfs};
use rusqlite_fixtures::{Engine, ErrorKind};

fn default_vfs() -> *mut sqlite3_vfs {
    // SAFETY: sqlite3_vfs_find may be called at any time; NULL asks for the default VFS.
    unsafe { ffi::sqlite3_vfs_find(ptr::null()) }
}

fn name_of_default() -> String {
    // SAFETY: SQLite has a default VFS, and a VFS has a name.
    unsafe { CStr::from_ptr((*default_vfs()).zName) }.to_str().unwrap().to_owned()
}

fn make_default(vfs: *mut sqlite3_vfs) {
    // SAFETY: the VFS is complete, and stays in its place for ever.
    assert_eq!(unsafe { ffi::sqlite3_vfs_register(vfs, 1) }, ffi::SQLITE_OK);
}

/// Lets one test run at a time.
fn in_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// It has SQLite's own VFS.
#[test]
fn a_connection_that_was_opened_before_attaches_the_file() {
    let (_turn, folder) = (in_turn(), tempfile::tempdir().unwrap());
    let path = folder.path().join("notes.db").to_str().unwrap().to_owned();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE in_the_file (a)").unwrap();
    let open = || Connection::open(folder.path().join("other.db")).unwrap();
    let opened_before = open();
    let _stand_in = Engine::new().stand_in_for(&path).unwrap();
    let has_attached_the_file = |connection: Connection| {
        connection.execute("ATTACH ?1 AS notes", [&path]).unwrap();
        connection.prepare("SELECT * FROM notes.in_the_file").is_ok()
    };
    assert!(has_attached_the_file(opened_before));
    assert!(!has_attached_the_file(open()));
}

#[test]
fn the_default_vfs_is_replaced_only_while_an_engine_stands_in_for_a_file() {
    let _turn = in_turn();
    let (original, engine) = (name_of_default(), Engine::new());
    assert_eq!(name_of_default(), original, "an engine alone changes nothing");
    let (one, other) = (engine.stand_in_for("one.db").unwrap(), engine.stand_in_for_all("other.db").unwrap());
    assert!(name_of_default().starts_with("rusqlite-fixtures-"), "{}", name_of_default());
    drop(one);
    assert!(name_of_default().starts_with("rusqlite-fixtures-"), "the other one is left");
    drop(other);
    assert_eq!(name_of_default(), original);
    let again = engine.stand_in_for("one.db").unwrap();

    // A program may register a VFS of its own, such as one that encrypts.
    // SAFETY: a VFS is copied, before it is registered under another name.
    let own = Box::leak(Box::new(unsafe { *ffi::sqlite3_vfs_find(c"unix".as_ptr()) }));
    own.zName = c"encrypting".as_ptr();
    make_default(own);
    drop(again);
    assert_eq!(name_of_default(), "encrypting", "it stays the default one");
    let error = engine.stand_in_for("one.db").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoStandIn);
    assert!(error.to_string().contains("has made the VFS `encrypting` SQLite's default one"), "{error}");
    assert_eq!(name_of_default(), "encrypting");
    // SAFETY: it is registered.
    make_default(unsafe { ffi::sqlite3_vfs_find(c"unix".as_ptr()) });
}
