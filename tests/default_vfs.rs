//! SQLite's default VFS while engines stand in for files. It is of the whole process, so this is a program with one test.
#![allow(unsafe_code, reason = "calls SQLite's C interface")]

use std::ffi::CStr;
use std::ptr;

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

#[test]
fn the_default_vfs_is_replaced_only_while_an_engine_stands_in_for_a_file() {
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
}
