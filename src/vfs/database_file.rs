//! Database files for engines that are not in memory. SQLite's own VFS opens them.
//!
//! A file in a temporary folder lives as long as an engine's handle or a connection, as a `Mount` does. So each connection
//! that any library opens to it holds a reference, as client data, which SQLite gives back when it closes the connection.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::fmt::Write;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use rusqlite::ffi::{self, sqlite3};
use tempfile::TempDir;

use super::clock::Clock;
use super::mount::{Name, Surroundings, next_number};
use super::random::{self, Random};
use super::{default_vfs_name, full_name_of_file, sqlite3_set_clientdata};
use crate::sync::Recovered;

/// A database file that SQLite's own VFS opens.
pub(crate) struct DatabaseFile {
    path: PathBuf,
    /// The name by which SQLite knows the file.
    full_name: CString,
    /// The engine's name in messages.
    name: String,
    /// The time that SQL gets, if it is not the system's.
    pub(crate) clock: Option<Arc<Clock>>,
    /// The random numbers that SQL gets, if they are not SQLite's.
    random: Option<Arc<Random>>,
    /// The folder that is removed with the last reference.
    folder: Option<PathBuf>,
}

/// The temporary files, by full name. Keeps none of them alive.
static TEMPORARY: Mutex<BTreeMap<CString, Weak<DatabaseFile>>> = Mutex::new(BTreeMap::new());

/// The folder of all temporary files, which the process removes when it ends.
static ROOT: Mutex<Option<TempDir>> = Mutex::new(None);

impl DatabaseFile {
    /// Returns a file that does not exist yet, in a temporary folder of its own.
    pub(super) fn temporary(name: &Name, surroundings: Surroundings) -> io::Result<Arc<DatabaseFile>> {
        let number = next_number();
        let folder = temporary_path("engine", number)?;
        fs::create_dir(&folder)?;
        let path = folder.join("database.sqlite3");
        let name_of_path = CString::new(path.as_os_str().as_encoded_bytes())?;
        let full_name = full_name_of_file(&name_of_path).ok_or(io::ErrorKind::InvalidFilename)?;
        let file = Arc::new(DatabaseFile {
            path,
            full_name: full_name.clone(),
            name: name.of(number),
            clock: surroundings.new_clock(),
            random: surroundings.new_random(),
            folder: Some(folder),
        });
        temporary().insert(full_name, Arc::downgrade(&file));
        Ok(file)
    }

    /// Returns the file at this path, which SQLite knows by this name.
    pub(crate) fn at(path: &Path, full_name: CString) -> Arc<DatabaseFile> {
        let name = format!("the file `{}`", path.display());
        Arc::new(DatabaseFile { path: path.to_owned(), full_name, name, clock: None, random: None, folder: None })
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

    /// Returns the URI by which SQLite opens the file, as the connection's flags say.
    pub(crate) fn uri(&self) -> String {
        format!("file:{}", self.path_and_vfs())
    }

    /// Returns the URI by which SQLite opens the file if it exists.
    pub(crate) fn uri_of_existing(&self) -> String {
        format!("{}&mode=rw", self.uri())
    }

    /// Returns the URL by which libraries that take a `DATABASE_URL` open the file.
    pub(crate) fn sqlite_url(&self) -> String {
        format!("sqlite://{}", self.path_and_vfs())
    }

    /// The VFS is named, because another one may be SQLite's default one later, while engines stand in for files.
    fn path_and_vfs(&self) -> String {
        let vfs = self.clock.as_ref().map_or_else(default_vfs_name, |clock| clock.vfs_name().to_owned());
        format!("{}?vfs={}", percent_encoded(self.full_name.to_bytes()), percent_encoded(vfs.as_bytes()))
    }
}

impl Drop for DatabaseFile {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            temporary().remove(&self.full_name);
            let _ = fs::remove_dir_all(folder); // what is left is removed when the process ends
        }
    }
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

/// Returns whether an engine's temporary file has this full name.
pub(crate) fn is_temporary(full_name: &CStr) -> bool {
    temporary().contains_key(full_name)
}

/// Returns whether the file with this full name is, or was, in the folder of all temporary files.
fn was_temporary(full_name: &CStr) -> bool {
    let root = ROOT.lock().recovered();
    let folder = root.as_ref().and_then(|root| root.path().file_name());
    folder.is_some_and(|folder| {
        let folder = folder.as_encoded_bytes();
        full_name.to_bytes().windows(folder.len()).any(|part| part == folder)
    })
}

/// Sets up a connection that is being opened, if its main database is a temporary file.
///
/// # Safety
/// The connection is open, and this thread may use it.
pub(super) unsafe fn set_up(db: *mut sqlite3) -> c_int {
    // SAFETY: as the caller promises; the name is NULL or a C string that lives as long as the connection.
    let full_name = unsafe { ffi::sqlite3_db_filename(db, c"main".as_ptr()) };
    if full_name.is_null() {
        return ffi::SQLITE_OK;
    }
    // SAFETY: as above.
    let full_name = unsafe { CStr::from_ptr(full_name) };
    let file = temporary().get(full_name).and_then(Weak::upgrade);
    let Some(file) = file else {
        // An engine that was dropped since the file was opened is gone, as in memory.
        return if was_temporary(full_name) { ffi::SQLITE_CANTOPEN } else { ffi::SQLITE_OK };
    };
    let random = file.random.clone();
    let data = Arc::into_raw(file).cast_mut().cast::<c_void>();
    // SAFETY: SQLite gives the data back once: when it begins to close the connection, or now if memory runs out.
    let code = unsafe { sqlite3_set_clientdata(db, c"rusqlite-fixtures-file".as_ptr(), data, Some(on_close)) };
    match random {
        // SAFETY: as the caller promises.
        Some(random) if code == ffi::SQLITE_OK => unsafe { random::define(db, &random) },
        _ => code,
    }
}

unsafe extern "C" fn on_close(file: *mut c_void) {
    // SAFETY: it comes from `set_up`, and SQLite gives it back once.
    let file = unsafe { Arc::from_raw(file.cast_const().cast::<DatabaseFile>()) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(file)));
}

/// Returns a path as a URI has it.
pub(crate) fn percent_encoded(path: &[u8]) -> String {
    path.iter().fold(String::with_capacity(path.len()), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(*byte))
            }
            _ => write!(encoded, "%{byte:02X}").expect("a String can be written to"),
        }
        encoded
    })
}

fn temporary() -> MutexGuard<'static, BTreeMap<CString, Weak<DatabaseFile>>> {
    TEMPORARY.lock().recovered()
}
