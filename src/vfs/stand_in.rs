//! Files for which engines stand in.
//!
//! While there are any, a VFS for files is SQLite's default one. It gives the engine's file name as the full name of such
//! a file (`sqlite3_vfs`, xFullPathname). So SQLite opens the engine in its place, under the engine's name, and
//! everything that follows is as with the engine's URI. Only the time is another matter: the VFS does not know for which
//! connection it is asked, so it takes the clock of the engine that stands in on the thread that asks.

use std::ffi::{CStr, CString, c_int};
use std::panic::{Location, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::{self, Thread, ThreadId};

use rusqlite::ffi::{sqlite3_int64, sqlite3_vfs};

use super::clock::{self, Clock, Time};
use super::database_file::DatabaseFile;
use super::mount::{FileName, Mount};
use crate::sync::Recovered;
use crate::test_thread;

/// The full name of a file, and the thread for which an engine stands in for it. Without a thread it is the process.
type Key = (CString, Option<ThreadId>);

/// Which opens of the file an engine takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Thread,
    Process,
}

/// An engine stands in for a file as long as this exists.
#[derive(Debug)]
pub(crate) struct StandIn {
    key: Key,
}

/// An engine that is to stand in for a file.
pub(crate) struct Target<'a> {
    file_name: CString,
    name: String,
    clock: Option<&'a Arc<Clock>>,
}

impl<'a> From<&'a Mount> for Target<'a> {
    fn from(mount: &'a Mount) -> Target<'a> {
        let file_name = CString::new(mount.file_name()).expect("the name of an engine has no NUL");
        Target { file_name, name: mount.name(), clock: mount.clock.as_ref() }
    }
}

impl<'a> From<&'a DatabaseFile> for Target<'a> {
    fn from(file: &'a DatabaseFile) -> Target<'a> {
        Target { file_name: file.full_name().to_owned(), name: file.name().to_owned(), clock: file.clock.as_ref() }
    }
}

/// Who stands in for a file.
#[derive(Clone)]
pub(crate) struct By {
    /// The engine's file name.
    file_name: CString,
    /// The engine's clock. (The stand-in's owner keeps the engine.)
    clock: Option<Weak<Clock>>,
    /// The engine's name in messages.
    pub(crate) engine: String,
    pub(crate) at: &'static Location<'static>,
    pub(crate) thread: Thread,
}

/// Why no engine can stand in for a file.
pub(crate) enum Refused {
    /// The path can't be the name of a file, for this reason.
    NoFile(&'static str),
    /// An engine stands in for the file already.
    Taken(By),
    /// SQLite's default VFS is not the one to which this VFS passes other files.
    OtherDefault(String),
}

static STAND_INS: Mutex<Vec<(Key, By)>> = Mutex::new(Vec::new());

/// The number of `STAND_INS`, so that opening a file takes no lock if there is none.
static COUNT: AtomicUsize = AtomicUsize::new(0);

impl StandIn {
    pub(crate) fn new(
        engine: Target<'_>,
        path: &Path,
        scope: Scope,
        at: &'static Location<'static>,
    ) -> Result<StandIn, Refused> {
        let full_name = full_name(path).map_err(Refused::NoFile)?;
        let key = (full_name, (scope == Scope::Thread).then(test_thread::id));
        let mut stand_ins = lock();
        if let Some((_, by)) = stand_ins.iter().find(|(other, _)| *other == key) {
            return Err(Refused::Taken(by.clone()));
        }
        if stand_ins.is_empty() {
            super::become_default().map_err(Refused::OtherDefault)?;
        }
        let by = By {
            file_name: engine.file_name,
            clock: engine.clock.map(Arc::downgrade),
            engine: engine.name,
            at,
            thread: thread::current(),
        };
        stand_ins.push((key.clone(), by));
        COUNT.store(stand_ins.len(), Ordering::Release);
        Ok(StandIn { key })
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let mut stand_ins = lock();
        stand_ins.retain(|(key, _)| *key != self.key);
        COUNT.store(stand_ins.len(), Ordering::Release);
        if stand_ins.is_empty() {
            super::restore_default();
        }
    }
}

/// Returns the name of the engine that stands in for the file with this full name, on this thread.
pub(super) fn find(full_name: &CStr) -> Option<CString> {
    if COUNT.load(Ordering::Acquire) == 0 {
        return None;
    }
    let stand_ins = lock();
    let find = |thread| stand_ins.iter().find(|((name, of), _)| **name == *full_name && *of == thread);
    find(Some(test_thread::id())).or_else(|| find(None)).map(|(_, by)| by.file_name.clone())
}

/// Returns the time of the engine that stands in for a file on this thread, or else in the process. `None` is the
/// system's.
fn time() -> Option<Time> {
    let stand_ins = lock();
    let time = |thread| {
        let of_thread = stand_ins.iter().rev().filter(|((_, of), _)| *of == thread);
        of_thread.filter_map(|(_, by)| by.clock.as_ref()?.upgrade()).find_map(|clock| clock.time())
    };
    time(Some(test_thread::id())).or_else(|| time(None))
}

pub(super) unsafe extern "C" fn current_time_int64(vfs: *mut sqlite3_vfs, out: *mut sqlite3_int64) -> c_int {
    let time = catch_unwind(time).unwrap_or_default();
    // SAFETY: SQLite's own arguments.
    unsafe { clock::answer(time, vfs, out) }
}

/// Returns the full name that SQLite gives a file, relative to the current folder.
pub(crate) fn full_name(path: &Path) -> Result<CString, &'static str> {
    let bytes = path.as_os_str().as_encoded_bytes();
    match bytes {
        b"" | b":memory:" => return Err("SQLite opens a private database by this name, not a file"),
        _ if bytes.starts_with(b"file:") => {
            return Err("it is a URI; give the path alone, and URIs of that path are included");
        }
        _ => {}
    }
    let name = CString::new(bytes).map_err(|_| "it contains a NUL byte")?;
    let full_name = super::full_name_of_file(&name)
        .ok_or("SQLite can't make a full path of it, for example because it is too long")?;
    match FileName::parse(full_name.to_bytes()) {
        FileName::Other => Ok(full_name),
        _ => Err("it is the name of an engine"),
    }
}

fn lock() -> MutexGuard<'static, Vec<(Key, By)>> {
    STAND_INS.lock().recovered()
}
