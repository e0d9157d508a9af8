//! Database files for engines that are not in memory.
//!
//! Such an engine has a name like one in memory. When SQLite asks for the full name of that (`sqlite3_vfs`, xFullPathname), it
//! gets the file's. Everything that follows is SQLite's own VFS. So a connection by the engine's URI finds stand-ins and
//! the engine's clock, and can't be opened when the engine is gone.
//!
//! A file in a temporary folder lives as long as an engine's handle or a connection, as a `Mount` does. So each connection
//! that any library opens to it holds a reference: the argument of a function, which SQLite gives back after it has closed
//! the file (`sqlite3LeaveMutexAndCloseZombie`).

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use rusqlite::ffi::{self, sqlite3, sqlite3_context, sqlite3_value};
use tempfile::TempDir;

use super::clock::{self, Clock};
use super::full_name_of_file;
use super::mount::{self, Name, Surroundings, next_number};
use super::random::{self, Random};
use super::trace::{Listed, Traced};
use crate::statements::Recorder;
use crate::sync::Recovered;

/// A database file of an engine.
pub(crate) struct DatabaseFile {
    /// The engine's number.
    id: u64,
    path: PathBuf,
    /// The name by which SQLite knows the file.
    full_name: CString,
    /// The engine's name in messages.
    name: String,
    /// The time that SQL gets, if it is not the system's.
    pub(crate) clock: Option<Arc<Clock>>,
    /// The random numbers that SQL gets, if they are not SQLite's.
    random: Option<Arc<Random>>,
    pub(crate) recorder: Arc<Recorder>,
    /// The folder that is removed with the last reference.
    folder: Option<PathBuf>,
}

/// The files of engines. Keeps none of them alive.
struct Files {
    by_number: BTreeMap<u64, Weak<DatabaseFile>>,
    by_full_name: BTreeMap<CString, Weak<DatabaseFile>>,
}

static FILES: Mutex<Files> = Mutex::new(Files { by_number: BTreeMap::new(), by_full_name: BTreeMap::new() });

/// The folder of all temporary files, which the process removes when it ends.
static ROOT: Mutex<Option<TempDir>> = Mutex::new(None);

impl DatabaseFile {
    /// Returns whether it is in a temporary folder of its own.
    pub(crate) fn is_temporary(&self) -> bool {
        self.folder.is_some()
    }

    /// Returns a file that does not exist yet, in a temporary folder of its own.
    pub(super) fn temporary(name: &Name, surroundings: Surroundings) -> io::Result<Arc<DatabaseFile>> {
        let id = next_number();
        let folder = temporary_path("engine", id)?;
        fs::create_dir(&folder)?;
        let path = folder.join("database.sqlite3");
        let name_of_path = CString::new(path.as_os_str().as_encoded_bytes())?;
        let full_name = full_name_of_file(&name_of_path).ok_or(io::ErrorKind::InvalidFilename)?;
        Ok(DatabaseFile::registered(DatabaseFile {
            id,
            path,
            full_name,
            name: name.of(id),
            clock: surroundings.new_clock(),
            random: surroundings.new_random(),
            recorder: Recorder::new(),
            folder: Some(folder),
        }))
    }

    /// Returns the file at this path, which SQLite knows by this name. All engines of a file have the same.
    pub(super) fn at(path: &Path, full_name: CString, surroundings: Surroundings) -> Arc<DatabaseFile> {
        DatabaseFile::registered(DatabaseFile {
            id: next_number(),
            path: path.to_owned(),
            full_name,
            name: format!("the file `{}`", path.display()),
            clock: surroundings.new_clock(),
            random: surroundings.new_random(),
            recorder: Recorder::new(),
            folder: None,
        })
    }

    /// Makes the file known, unless it is known already: then it returns that one.
    fn registered(file: DatabaseFile) -> Arc<DatabaseFile> {
        let file = Arc::new(file); // dropped after the lock is released, if it is not used
        let mut files = files();
        if let Some(known) = files.by_full_name.get(&file.full_name).and_then(Weak::upgrade) {
            return known;
        }
        files.by_number.insert(file.id, Arc::downgrade(&file));
        files.by_full_name.insert(file.full_name.clone(), Arc::downgrade(&file));
        file.clone()
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn full_name(&self) -> &CStr {
        &self.full_name
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the URI by which SQLite opens the file.
    pub(crate) fn uri(&self) -> String {
        format!("file:{}", self.name_and_vfs())
    }

    /// Returns the URL by which libraries that take a `DATABASE_URL` open the file.
    pub(crate) fn sqlite_url(&self) -> String {
        format!("sqlite://{}", self.name_and_vfs())
    }

    fn name_and_vfs(&self) -> String {
        let vfs = self.clock.as_ref().map_or(super::vfs_name(), |clock| clock.vfs_name());
        format!("{}?vfs={vfs}", mount::file_name(self.id))
    }
}

impl Drop for DatabaseFile {
    fn drop(&mut self) {
        {
            let mut files = files();
            files.by_number.remove(&self.id);
            // Another one has the name if this one was given up, or if the engine was opened again meanwhile.
            if files.by_full_name.get(&self.full_name).is_some_and(|file| file.as_ptr() == std::ptr::from_ref(self)) {
                files.by_full_name.remove(&self.full_name);
            }
        }
        if let Some(folder) = &self.folder {
            let _ = fs::remove_dir_all(folder); // what is left is removed when the process ends
        }
    }
}

/// Returns the full name of the file of the engine with this number, if it is in a file.
pub(super) fn full_name_of(id: u64) -> Option<CString> {
    files().by_number.get(&id)?.upgrade().map(|file| file.full_name.clone())
}

/// Returns whether the URI itself names a VFS of this crate, so that the name was meant to be an engine's. (An ATTACH
/// without `vfs=` has the VFS of the main database.)
///
/// # Safety
/// `name` is NULL, or what xOpen was given for a database file, or sqlite3_db_filename has returned.
pub(super) unsafe fn asks_for_an_engine(name: *const c_char) -> bool {
    if name.is_null() {
        return false;
    }
    // SAFETY: sqlite3_uri_parameter takes such a name.
    let vfs = unsafe { ffi::sqlite3_uri_parameter(name, c"vfs".as_ptr()) };
    // SAFETY: not NULL, so it is a C string that lives as long as the name.
    !vfs.is_null() && clock::is_vfs_name(unsafe { CStr::from_ptr(vfs) })
}

/// Returns whether the name was meant to be an engine's, and no engine in a file has it.
///
/// # Safety
/// As for `asks_for_an_engine`.
pub(super) unsafe fn asks_in_vain_for_an_engine(name: *const c_char) -> bool {
    // SAFETY: as the caller promises; one that asks is not NULL, and a C string.
    unsafe { asks_for_an_engine(name) && find(CStr::from_ptr(name)).is_none() }
}

fn find(full_name: &CStr) -> Option<Arc<DatabaseFile>> {
    files().by_full_name.get(full_name).and_then(Weak::upgrade)
}

fn files() -> MutexGuard<'static, Files> {
    FILES.lock().recovered()
}

/// Returns a new path in the folder of all temporary files.
pub(crate) fn new_temporary_path(name: &str) -> io::Result<PathBuf> {
    temporary_path(name, next_number())
}

/// Returns the path of this name and number in the folder of all temporary files, which the first call creates.
fn temporary_path(name: &str, number: u64) -> io::Result<PathBuf> {
    let name = format!("{name}-{number}");
    let mut root = ROOT.lock().recovered();
    if let Some(root) = &*root {
        return Ok(root.path().join(name));
    }
    let prefix = format!("rusqlite-fixtures-{}-", process::id());
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700)); // of this user alone
    let created = builder.prefix(&prefix).tempdir()?;
    let path = created.path().join(name);
    *root = Some(created);
    // SAFETY: the function may be called when the process ends. If it can't be registered, the folder is left.
    unsafe { atexit(remove_root) };
    Ok(path)
}

/// Removes the folder of all temporary files. No static is dropped at the end of a process, and engines may be in statics.
extern "C" fn remove_root() {
    let remove = || {
        let Ok(mut root) = ROOT.try_lock() else { return };
        let Some(root) = root.take() else { return };
        let is_of_this_process =
            root.path().to_string_lossy().contains(&format!("rusqlite-fixtures-{}-", process::id()));
        match is_of_this_process {
            true => drop(root),
            false => drop(root.keep()), // this process was forked off the one that has created it
        }
    };
    let _ = catch_unwind(remove);
}

unsafe extern "C" {
    /// Of the C standard library.
    fn atexit(function: extern "C" fn()) -> c_int;
}

/// Sets up a connection that is being opened, if its main database is the file of an engine. Fails if that engine was dropped
/// since the file was opened.
///
/// # Safety
/// The connection is open, and this thread may use it.
pub(super) unsafe fn set_up(db: *mut sqlite3) -> c_int {
    // SAFETY: as the caller promises; the name is NULL or a C string that lives as long as the connection.
    let full_name = unsafe { ffi::sqlite3_db_filename(db, c"main".as_ptr()) };
    // SAFETY: as above.
    let Some(file) = (!full_name.is_null()).then(|| find(unsafe { CStr::from_ptr(full_name) })).flatten() else {
        // SAFETY: as above.
        let is_gone = unsafe { asks_in_vain_for_an_engine(full_name) };
        return if is_gone { ffi::SQLITE_CANTOPEN } else { ffi::SQLITE_OK };
    };
    let random = file.random.clone();
    // SAFETY: as the caller promises.
    match (unsafe { keep(db, file) }, random) {
        // SAFETY: as the caller promises.
        (ffi::SQLITE_OK, Some(random)) => unsafe { random::define(db, &random) },
        (code, _) => code,
    }
}

/// What a connection to a file has as long as it has the file open.
struct Connected {
    _traced: Listed,
    _file: Arc<DatabaseFile>,
}

/// Keeps the file as long as the connection has it open, and traces the connection.
///
/// # Safety
/// As for `set_up`.
unsafe fn keep(db: *mut sqlite3, file: Arc<DatabaseFile>) -> c_int {
    // SAFETY: as the caller promises.
    let traced = unsafe { Traced::begin(db, file.recorder.clone(), Weak::new()) };
    let data = Box::into_raw(Box::new(Connected { _traced: traced, _file: file })).cast::<c_void>();
    // SAFETY: as the caller promises. SQLite gives the data back once: when the function is replaced, when the connection has
    // closed the file, or now if this fails (sqlite3_create_function_v2).
    unsafe {
        ffi::sqlite3_create_function_v2(
            db,
            c"rusqlite_fixtures_file".as_ptr(),
            0,
            ffi::SQLITE_UTF8 | ffi::SQLITE_DIRECTONLY,
            data,
            Some(return_null),
            None,
            None,
            Some(on_close),
        )
    }
}

/// The function has a meaning only by its argument.
unsafe extern "C" fn return_null(_: *mut sqlite3_context, _: c_int, _: *mut *mut sqlite3_value) {}

unsafe extern "C" fn on_close(connected: *mut c_void) {
    // SAFETY: it comes from `keep`, and SQLite gives it back once.
    let connected = unsafe { Box::from_raw(connected.cast::<Connected>()) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(connected)));
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    fn opened(folder: &TempDir) -> (Arc<DatabaseFile>, Connection) {
        crate::vfs::register();
        let path = folder.path().join("a.db");
        let full_name = full_name_of_file(&CString::new(path.to_str().unwrap()).unwrap()).unwrap();
        let file = DatabaseFile::at(&path, full_name, Surroundings::default());
        let connection = Connection::open(file.uri()).unwrap();
        (file, connection)
    }

    /// The engine may be dropped after SQLite has opened the file, and before the connection has its reference.
    #[test]
    fn a_connection_whose_file_is_gone_is_not_set_up() {
        let folder = tempfile::tempdir().unwrap();
        let (file, connection) = opened(&folder);
        // SAFETY: the connection is open.
        assert_eq!(unsafe { set_up(connection.handle()) }, ffi::SQLITE_OK);
        drop(file);
        connection.remove_function("rusqlite_fixtures_file", 0).unwrap(); // its reference
        // SAFETY: as above.
        assert_eq!(unsafe { set_up(connection.handle()) }, ffi::SQLITE_CANTOPEN);
    }

    #[test]
    fn a_connection_keeps_its_file_until_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, connection) = opened(&folder);
        let weak = Arc::downgrade(&file);
        drop(file);
        assert!(weak.upgrade().is_some());
        drop(connection);
        assert!(weak.upgrade().is_none());
    }
}
