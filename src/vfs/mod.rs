//! SQLite's interface to the content of engines: a VFS, and the connections that use it.
//!
//! * `vfs_methods`, `default_vfs`, `io_methods`, `database`, `journal`: the C functions that SQLite calls, with all their logic except
//!   `handle`'s.
//! * `handle`: one connection's view of an engine, which implements SQLite's file operations in safe code.
//! * `waiting`: the state machine of a connection that waits for the writer slot; `report`: the messages about waits.
//! * `mount`: the file names under which SQLite finds engines. `stand_in`: files in whose place it finds them.
//! * `database_file`: the files of engines that are not in memory.
//! * `clock`, `random`: the time and the random numbers that SQL gets.
//! * `connection`: opens connections. `serialize`: what one of them sees. `session`: a connection that is reused. `cleanliness`: detects what was left in
//!   it. `watch`: its authorizer, which notes the statements that it compiles.
//! * `observation`: notes what other libraries do to their connections. `auto_extension`: sets up connections when they
//!   are opened.
//! * `trace`: reports the statements of connections. `analysis`: what SQLite says of a statement that it compiles.
//! * `script`: runs a script so that an error can name the statement.
//! * `external`: notes whether SQL depended on the time or on another file.
//!
//! The folder uses `content` and the layers below it. Only this folder and `template/image/os.rs` have `unsafe` code.
//!
//! SQLite's guarantees and requirements are in its documentation: "The SQLite OS Interface or VFS" and the interface
//! pages of `sqlite3_vfs`, `sqlite3_io_methods` and `sqlite3_file_control`. The SAFETY comments refer to them by those
//! names.
//!
//! Invariants:
//! * No panic crosses the C interface (`io_methods::guard`).
//! * SQLite uses an open file from one thread at a time, so its content has one `&mut` at a time.
//! * No `Mount` is kept alive by its name: opening an engine that was dropped is an error.
#![allow(unsafe_code, reason = "SQLite is a C library; this module and those in it are where that is crossed")]

pub(crate) mod analysis;
mod auto_extension;
mod cleanliness;
mod clock;
mod connection;
mod database;
mod database_file;
mod default_vfs;
pub(crate) mod external;
mod handle;
mod io_methods;
mod journal;
mod mount;
mod observation;
mod random;
mod report;
pub(crate) mod script;
mod serialize;
mod session;
mod stand_in;
pub(crate) mod trace;
mod vfs_methods;
mod waiting;
mod watch;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};

use rusqlite::ffi::{self, sqlite3_vfs};

use crate::environment;

pub(crate) use self::auto_extension::begin_observation;
pub(crate) use self::clock::{Clock, Time};
#[cfg(feature = "proptest")]
pub(crate) use self::connection::set_busy_handler;
pub(crate) use self::connection::{OnConnect, Setup, connect, is_connected, serialized};
pub(crate) use self::database_file::{DatabaseFile, new_temporary_path};
pub(crate) use self::mount::{Mount, Name, Surroundings};
pub(crate) use self::observation::{Observation, Obstacle};
pub(crate) use self::session::Session;
pub(crate) use self::stand_in::{Refused, Scope, StandIn, full_name};

/// The name contains the version, so that two versions of this crate in one program don't replace each other.
const NAME: &CStr = c_str(concat!("rusqlite-fixtures-", env!("CARGO_PKG_VERSION"), "\0"));

const NAME_OF_FILES: &CStr = c_str(concat!("rusqlite-fixtures-", env!("CARGO_PKG_VERSION"), "-files\0"));

const fn c_str(name: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => unreachable!(),
    }
}

/// The VFS that is SQLite's default one while engines stand in for files, and the one to which this crate's VFSs pass
/// the files that are no engine's: SQLite's default one before.
struct Registered {
    of_files: AtomicPtr<sqlite3_vfs>,
    default: AtomicPtr<sqlite3_vfs>,
}

/// Registers the VFS with SQLite, and the function that sets up its connections, once in a process.
///
/// # Panics
/// When SQLite refuses. It does so only if it is out of memory, or if it was built without automatic initialization.
pub(crate) fn register() {
    registered();
}

fn registered() -> &'static Registered {
    static REGISTERED: OnceLock<Registered> = OnceLock::new();
    REGISTERED.get_or_init(|| {
        let default = current_default();
        assert!(!default.is_null(), "SQLite has no default VFS");
        auto_extension::register();
        if environment::echo() {
            trace::hear_errors();
        }
        add(vfs_methods::new_vfs(default));
        let of_files = add(sqlite3_vfs {
            zName: NAME_OF_FILES.as_ptr(),
            xCurrentTimeInt64: Some(stand_in::current_time_int64),
            ..vfs_methods::new_vfs(default)
        });
        Registered { of_files: AtomicPtr::new(of_files), default: AtomicPtr::new(default) }
    })
}

/// Registers a VFS with SQLite.
fn add(vfs: sqlite3_vfs) -> *mut sqlite3_vfs {
    let vfs = Box::leak(Box::new(vfs));
    // SAFETY: the structure is complete, and lives and stays in its place for ever, as sqlite3_vfs_register asks.
    let code = unsafe { ffi::sqlite3_vfs_register(vfs, 0) };
    assert_eq!(code, ffi::SQLITE_OK, "SQLite did not register the VFS {NAME:?}");
    vfs
}

/// Returns a VFS of this crate that is not registered yet.
fn new_vfs() -> sqlite3_vfs {
    vfs_methods::new_vfs(default_vfs())
}

/// Returns the VFS to which this crate's VFSs pass files.
fn default_vfs() -> *mut sqlite3_vfs {
    registered().default.load(Ordering::Relaxed)
}

fn current_default() -> *mut sqlite3_vfs {
    // SAFETY: sqlite3_vfs_find may be called at any time; NULL asks for the default VFS.
    unsafe { ffi::sqlite3_vfs_find(ptr::null()) }
}

/// Makes the VFS for files SQLite's default one, until `restore_default`. Fails with the name of the present one if that
/// is not the one to which it passes files.
fn become_default() -> Result<(), String> {
    let (of_files, now) = (registered().of_files.load(Ordering::Relaxed), current_default());
    if now != of_files && now != default_vfs() {
        // SAFETY: a registered VFS has a name.
        return Err(unsafe { CStr::from_ptr((*now).zName) }.to_string_lossy().into_owned());
    }
    // SAFETY: "the same VFS can be registered multiple times without injury" (sqlite3_vfs_register).
    unsafe { ffi::sqlite3_vfs_register(of_files, 1) };
    Ok(())
}

/// Makes the VFS that was SQLite's default one before `become_default` the default one again.
fn restore_default() {
    if current_default() == registered().of_files.load(Ordering::Relaxed) {
        // SAFETY: as above.
        unsafe { ffi::sqlite3_vfs_register(default_vfs(), 1) };
    }
}

/// Returns the full name of a file, by the VFS to which this VFS passes files.
fn full_name_of_file(name: &CStr) -> Option<CString> {
    let default = default_vfs();
    // SAFETY: the VFS is registered, so it is valid.
    let (method, max) = unsafe { ((*default).xFullPathname?, (*default).mxPathname) };
    let mut out = vec![0u8; max as usize + 1];
    // SAFETY: `name` is a C string, and `out` has one byte more than mxPathname, as SQLite's own buffer.
    let code = unsafe { method(default, name.as_ptr(), max + 1, out.as_mut_ptr().cast()) };
    let is_ok = code & 0xff == ffi::SQLITE_OK; // SQLITE_OK_SYMLINK too
    is_ok.then(|| CStr::from_bytes_until_nul(&out).ok().map(CStr::to_owned))?
}

/// Returns a file that does not exist yet, in a temporary folder that lives as long as the result and all connections.
///
/// # Panics
/// If SQLite has no memory.
pub(crate) fn temporary_file(name: &Name, surroundings: Surroundings) -> io::Result<Arc<DatabaseFile>> {
    auto_extension::register();
    DatabaseFile::temporary(name, surroundings)
}

/// Returns the file at this path, which SQLite knows by this name. All engines of a file have the same.
///
/// # Panics
/// If SQLite has no memory.
pub(crate) fn file_at(path: &Path, full_name: CString, surroundings: Surroundings) -> Arc<DatabaseFile> {
    auto_extension::register();
    DatabaseFile::at(path, full_name, surroundings)
}

/// Returns the URI by which SQLite opens the engine.
pub(crate) fn uri(mount: &Mount) -> String {
    format!("file:{}?vfs={}", mount.file_name(), mount.vfs_name())
}

/// Returns the URL by which libraries that take a `DATABASE_URL` open the engine.
pub(crate) fn sqlite_url(mount: &Mount) -> String {
    format!("sqlite://{}?vfs={}", mount.file_name(), mount.vfs_name())
}

/// Returns whether a URI with this VFS is that of an engine.
pub(crate) fn is_vfs_name(name: &str) -> bool {
    CString::new(name).is_ok_and(|name| clock::is_vfs_name(&name))
}

/// Returns the name of the VFS of engines without a clock, as their URIs have it.
fn vfs_name() -> &'static str {
    NAME.to_str().expect("the version of a package is ASCII")
}

unsafe extern "C" {
    // The bindings of the oldest SQLite that libsqlite3-sys supports don't have it; SQLite has it since 3.39.
    fn sqlite3_db_name(db: *mut ffi::sqlite3, number: c_int) -> *const c_char;
    // Since 3.44.
    fn sqlite3_set_clientdata(
        db: *mut ffi::sqlite3,
        name: *const c_char,
        data: *mut c_void,
        destructor: Option<unsafe extern "C" fn(*mut c_void)>,
    ) -> c_int;
}
