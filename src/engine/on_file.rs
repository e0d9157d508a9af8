//! Engines in real files, which SQLite's own VFS opens.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::Engine;
use super::warm_pool::WarmPool;
use crate::content::Snapshot;
use crate::content::snapshot::JournalMode;
use crate::content::store::default_lock_timeout;
use crate::error::{Error, ErrorKind, NoConnection, Result};
use crate::sync::Recovered;
use crate::vfs::{self, DatabaseFile, Mount, Name, Setup, Surroundings};

/// An engine's database in a file.
pub(super) struct OnFile {
    pub(super) file: Arc<DatabaseFile>,
    /// The content that a reset restores.
    pub(super) baseline: Snapshot,
    lock_timeout: Mutex<Duration>,
    /// A connection that sees when others commit.
    #[cfg(feature = "proptest")]
    watcher: Mutex<Option<Connection>>,
}

impl OnFile {
    /// Creates a file with this content in a temporary folder.
    pub(super) fn with_content(content: &Snapshot, name: &Name, surroundings: Surroundings) -> Result<OnFile> {
        let engine = OnFile::empty(content, name, surroundings)?;
        let path = engine.file.path();
        if content.size() > 0 {
            content.in_journal_mode(JournalMode::Wal).save(path)?;
            return Ok(engine);
        }
        let set = engine.create().and_then(|connection| set_journal_mode(&connection, "WAL"));
        set.map_err(|cause| Error::file_not_used(path, &cause.to_string()).with_sqlite(cause))?;
        Ok(engine)
    }

    /// Creates a file with the template's content in a temporary folder: a copy of the template's file. Where the file
    /// system can, the copy shares its blocks.
    pub(super) fn of_template(template: &WarmPool, name: &Name) -> Result<OnFile> {
        let (content, surroundings) = (template.content(), template.setup().surroundings);
        if content.size() == 0 {
            return OnFile::with_content(content, name, surroundings);
        }
        let engine = OnFile::empty(content, name, surroundings)?;
        let path = engine.file.path();
        fs::copy(template.file()?, path).map_err(|cause| Error::io("copy the template's file to", path, cause))?;
        Ok(engine)
    }

    /// Creates a file in which the template is built, in a temporary folder.
    pub(super) fn to_build(template: &WarmPool, name: &Name) -> Result<OnFile> {
        let engine = OnFile::empty(template.content(), name, template.setup().surroundings)?;
        template.content().save(engine.file.path())?;
        Ok(engine)
    }

    /// Returns an engine in a temporary folder, whose file is to be written.
    fn empty(baseline: &Snapshot, name: &Name, surroundings: Surroundings) -> Result<OnFile> {
        let file = vfs::temporary_file(name, surroundings).map_err(Error::no_temporary_file)?;
        Ok(OnFile::new(file, baseline.clone()))
    }

    fn new(file: Arc<DatabaseFile>, baseline: Snapshot) -> OnFile {
        OnFile {
            file,
            baseline,
            lock_timeout: Mutex::new(default_lock_timeout()),
            #[cfg(feature = "proptest")]
            watcher: Mutex::new(None),
        }
    }

    /// Opens or creates the file at this path.
    fn at(path: &Path) -> Result<OnFile> {
        let flawed = |flaw: &str| Error::file_not_used(path, flaw);
        let full_name = vfs::full_name(path).map_err(flawed)?;
        if path.is_dir() {
            return Err(flawed("it is a folder"));
        }
        let engine = OnFile::new(DatabaseFile::at(path, full_name), Snapshot::empty());
        let baseline = engine.begin_to_use().map_err(|cause| match cause.kind() {
            ErrorKind::FileNotUsed => cause,
            _ => Error::file_not_used(path, &reason(path, &cause)).because(cause),
        })?;
        Ok(OnFile { baseline, ..engine })
    }

    /// Puts the file into WAL mode, and returns its content.
    fn begin_to_use(&self) -> Result<Snapshot> {
        let connection = &mut self.create()?;
        // Reads first, so that a file that is no database is not written to.
        connection.execute_batch("SELECT 1 FROM sqlite_schema")?;
        self.check_length(connection)?;
        set_journal_mode(connection, "WAL")?;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        Snapshot::of_transaction(connection)
    }

    /// Checks that the file has as many bytes as its header says. SQLite takes what is missing of a page for zeros. (In WAL
    /// mode, the file may be shorter than the database.)
    fn check_length(&self, connection: &Connection) -> Result<()> {
        let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        let declared = (number("page_count")? * number("page_size")?).cast_unsigned();
        let len = fs::metadata(self.file.path());
        match len.map(|file| file.len()) {
            Ok(len) if len < declared && mode != "wal" => Err(Error::file_not_used(
                self.file.path(),
                &format!("it is truncated: it has {len} bytes, and its header declares {declared}"),
            )),
            _ => Ok(()),
        }
    }

    /// Opens a connection that waits for the lock timeout.
    fn open(&self) -> rusqlite::Result<Connection> {
        self.open_by(&self.file.uri_of_existing())
    }

    /// Opens a connection, and creates the file if it is missing.
    fn create(&self) -> rusqlite::Result<Connection> {
        self.open_by(&self.file.uri())
    }

    fn open_by(&self, uri: &str) -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_PRIVATE_CACHE)?;
        connection.busy_timeout(self.lock_timeout())?;
        Ok(connection)
    }

    pub(super) fn connect(&self, setup: &Setup) -> Result<Connection, NoConnection> {
        let connection = self.open()?;
        setup.carry_out(&connection)?;
        Ok(connection)
    }

    /// Returns whether the connection's main database is this file.
    pub(super) fn is_open_on(&self, connection: &Connection) -> bool {
        connection.path().is_some_and(|path| path.as_bytes() == self.file.full_name().to_bytes())
    }

    pub(super) fn lock_timeout(&self) -> Duration {
        *self.lock_timeout.lock().recovered()
    }

    pub(super) fn set_lock_timeout(&self, timeout: Duration) {
        *self.lock_timeout.lock().recovered() = timeout;
    }

    /// Returns the committed content.
    ///
    /// # Panics
    /// If the file can't be read.
    pub(super) fn snapshot(&self) -> Snapshot {
        let read = || {
            let connection = &mut self.open()?;
            connection.execute_batch("BEGIN")?;
            // Each file is in WAL mode, so the mark of that says nothing.
            Ok(Snapshot::of_transaction(connection)?.in_journal_mode(JournalMode::Rollback))
        };
        read().unwrap_or_else(|cause: Error| panic!("can't take a snapshot of {}: {cause}", self.file.name()))
    }

    /// Returns a number that changes with each commit.
    ///
    /// # Panics
    /// If the file can't be read.
    #[cfg(feature = "proptest")]
    pub(super) fn version(&self) -> i64 {
        let mut watcher = self.watcher.lock().recovered();
        let mut read = || {
            let connection = match &mut *watcher {
                Some(connection) => connection,
                None => watcher.insert(self.open()?),
            };
            connection.pragma_query_value(None, "data_version", |row| row.get(0))
        };
        read().unwrap_or_else(|cause: rusqlite::Error| panic!("can't read {}: SQLite says: {cause}", self.file.name()))
    }

    /// Replaces the content by the snapshot's. Returns `false` if their text encodings differ.
    pub(super) fn restore(&self, snapshot: &Snapshot) -> Result<bool> {
        self.copy_from(snapshot).map_err(|cause| match cause.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy) => self.refused(cause),
            _ => Error::not_restored(self.file.name(), cause),
        })
    }

    fn copy_from(&self, snapshot: &Snapshot) -> rusqlite::Result<bool> {
        let mount = Mount::in_surroundings(snapshot.clone(), Name::Numbered, Surroundings::default());
        let source = Connection::open(vfs::uri(&mount))?;
        let mut connection = self.open()?;
        let differs = |pragma: &str| -> rusqlite::Result<bool> {
            let value =
                |connection: &Connection| connection.pragma_query_value(None, pragma, |row| row.get::<_, Value>(0));
            Ok(value(&source)? != value(&connection)?)
        };
        let is_empty: bool = connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))?;
        if !is_empty && snapshot.size() > 0 && differs("encoding")? {
            return Ok(false);
        }
        let has_other_pages = differs("page_size")?;
        if has_other_pages {
            set_journal_mode(&connection, "DELETE")?; // SQLite can't change the size in WAL mode
        }
        let copied = Backup::new(&source, &mut connection).and_then(|backup| backup.step(-1));
        if has_other_pages {
            set_journal_mode(&connection, "WAL")?;
        }
        if matches!(copied?, StepResult::Done) { Ok(true) } else { Err(busy()) }
    }

    /// Waits until no connection has a transaction that has written.
    pub(super) fn wait_for_writers(&self, timeout: Duration) -> Result<()> {
        let wait = || {
            let connection = self.open()?;
            connection.busy_timeout(timeout)?;
            connection.execute_batch("BEGIN IMMEDIATE; ROLLBACK")
        };
        wait().map_err(|cause| self.refused(cause))
    }

    /// Returns the error of a transaction that was refused a lock, or another error of SQLite.
    pub(super) fn refused(&self, cause: rusqlite::Error) -> Error {
        match cause.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy) => Error::file_locked(self.file.name(), self.lock_timeout(), cause),
            _ => cause.into(),
        }
    }
}

fn set_journal_mode(connection: &Connection, mode: &str) -> rusqlite::Result<()> {
    connection.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(()))
}

fn busy() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    rusqlite::Error::SqliteFailure(code, Some("database is locked".to_owned()))
}

/// Returns why a file can't be used, in words.
fn reason(path: &Path, cause: &Error) -> String {
    match cause.sqlite().and_then(rusqlite::Error::sqlite_error_code) {
        Some(ErrorCode::NotADatabase) => "it is no SQLite database; give another path, or remove it".to_owned(),
        Some(ErrorCode::DatabaseBusy) => {
            "another connection or process is writing to it, or uses it in a mode other than WAL; end that first"
                .to_owned()
        }
        Some(ErrorCode::ReadOnly) => format!(
            "it can't be written to; Snapshot::open({path:?})?.new_engine() creates an engine in memory with its content"
        ),
        Some(ErrorCode::CannotOpen) => {
            format!("SQLite says: {cause}; its folder has to exist, and both must be writable")
        }
        _ => cause.to_string(),
    }
}

impl Engine {
    /// Opens the SQLite file at `path` as an engine, or creates it: a real file instead of memory, which SQLite's own VFS
    /// opens. What is committed stays in the file.
    ///
    /// The file is put into WAL mode. Its content is read into memory, because [`reset`](Engine::reset) restores it. The
    /// chapter [any code](crate::guide::any_code#the-same-tests-on-real-files) says what is different from an engine in
    /// memory. For an engine in memory with the content of a file, use
    /// [`Snapshot::open`](crate::Snapshot::open)`(path)?.`[`new_engine()`](crate::Snapshot::new_engine).
    ///
    /// ```
    /// # use rusqlite_fixtures::Engine;
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("notes.sqlite3");
    /// let notes = Engine::file(&path)?;
    /// notes.try_transaction(|work| work.execute_batch("CREATE TABLE note (text TEXT)"))?;
    /// assert!(path.exists());
    /// # Ok::<(), rusqlite_fixtures::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`FileNotUsed`](crate::ErrorKind::FileNotUsed) if the path can't be the name of a database file; if the file is no
    /// SQLite database or can't be written to; if its folder does not exist; or if another connection or process is
    /// writing to it for 5 s (the default of [`set_lock_timeout`](Engine::set_lock_timeout)). The file then is as it was
    /// before.
    pub fn file(path: impl AsRef<Path>) -> Result<Engine> {
        vfs::register();
        Ok(Engine::on_file(OnFile::at(path.as_ref())?, None))
    }

    /// Creates the file at this path with the template's content.
    pub(crate) fn file_of(path: &Path, template: &Arc<WarmPool>) -> Result<Engine> {
        vfs::register();
        if fs::exists(path).map_err(|cause| Error::io("create the file", path, cause))? {
            return Err(Error::file_of_template(path, template.name()));
        }
        template.content().save(path)?;
        Ok(Engine::on_file(OnFile::at(path)?, Some(template.clone())))
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    /// The super user can write to any file, so no integration test gets the third one.
    #[test]
    fn a_file_that_is_not_used_has_its_reason_and_the_remedy() {
        for (code, expected) in [
            (ffi::SQLITE_NOTADB, "it is no SQLite database; give another path, or remove it"),
            (
                ffi::SQLITE_BUSY,
                "another connection or process is writing to it, or uses it in a mode other than WAL; end that first",
            ),
            (
                ffi::SQLITE_READONLY,
                "it can't be written to; Snapshot::open(\"a.db\")?.new_engine() creates an engine in memory with its content",
            ),
            (ffi::SQLITE_CANTOPEN, "SQLite says: words; its folder has to exist, and both must be writable"),
            (ffi::SQLITE_FULL, "words"),
        ] {
            let cause = rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some("words".to_owned()));
            assert_eq!(reason(Path::new("a.db"), &cause.into()), expected);
        }
    }
}
