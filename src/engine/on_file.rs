//! Engines in real files, which SQLite's own VFS opens.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags};
use tempfile::NamedTempFile;

use super::Engine;
use super::warm_pool::WarmPool;
use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::content::snapshot::JournalMode;
use crate::content::store::default_lock_timeout;
use crate::error::{Error, ErrorKind, NoConnection, Result};
use crate::faults;
use crate::sync::Recovered;
use crate::vfs::{self, DatabaseFile, Mount, Name, Setup, Surroundings, trace};

/// An engine's database in a file.
pub(super) struct OnFile {
    pub(super) file: Arc<DatabaseFile>,
    /// The content that a reset restores.
    pub(super) baseline: Snapshot,
    lock_timeout: Mutex<Duration>,
    #[cfg(feature = "proptest")]
    watcher: Mutex<Watcher>,
}

/// A connection that sees when others commit.
#[cfg(feature = "proptest")]
#[derive(Default)]
struct Watcher {
    connection: Option<Connection>,
    /// How often the connection was closed. The next one counts from the beginning.
    closed: u64,
}

/// How long a reader waits at least, whatever the lock timeout is. In WAL mode, readers wait only for a connection that is the
/// last one to close, and writes the WAL back to the file (`sqlite3WalClose`).
const READ_TIMEOUT: Duration = Duration::from_secs(5);

impl OnFile {
    /// Creates a file with this content in a temporary folder.
    pub(super) fn with_content(content: &Snapshot, name: &Name, surroundings: Surroundings) -> Result<OnFile> {
        let engine = OnFile::in_new_folder(content, name, surroundings)?;
        if content.size() > 0 {
            content.in_journal_mode(JournalMode::Wal).save(engine.file.path())?;
        } else {
            engine.create().map_err(Error::from).and_then(|connection| engine.enter_wal_mode(&connection))?;
        }
        Ok(engine)
    }

    /// Creates a file with the template's content in a temporary folder: a copy of the template's file. Where the file
    /// system can, the copy shares its blocks.
    pub(super) fn of_template(template: &WarmPool, name: &Name) -> Result<OnFile> {
        let (content, surroundings) = (template.content(), template.setup().surroundings);
        if content.size() == 0 {
            return OnFile::with_content(content, name, surroundings);
        }
        let engine = OnFile::in_new_folder(content, name, surroundings)?;
        let (from, to) = (template.file()?, engine.file.path());
        fs::copy(&from, to)
            .map_err(|cause| Error::io(&format!("copy the template's file `{}` to", from.display()), to, cause))?;
        Ok(engine)
    }

    /// Creates a file in which the template is built, in a temporary folder. It is not yet in WAL mode, in which a database has
    /// its page size and its vacuum mode for good.
    pub(super) fn for_build(template: &WarmPool, name: &Name) -> Result<OnFile> {
        let engine = OnFile::in_new_folder(template.content(), name, template.setup().surroundings)?;
        template.content().in_journal_mode(JournalMode::Rollback).save(engine.file.path())?;
        Ok(engine)
    }

    /// Returns an engine in a temporary folder, whose file is to be written.
    fn in_new_folder(baseline: &Snapshot, name: &Name, surroundings: Surroundings) -> Result<OnFile> {
        let file = vfs::temporary_file(name, surroundings).map_err(Error::no_temporary_file)?;
        Ok(OnFile::new(file, baseline.clone()))
    }

    fn new(file: Arc<DatabaseFile>, baseline: Snapshot) -> OnFile {
        OnFile {
            file,
            baseline,
            lock_timeout: Mutex::new(default_lock_timeout()),
            #[cfg(feature = "proptest")]
            watcher: Mutex::default(),
        }
    }

    /// Opens or creates the file at this path.
    fn at(path: &Path, surroundings: Surroundings) -> Result<OnFile> {
        let flawed = |flaw: &str| Error::file_not_used(path, flaw);
        let full_name = vfs::full_name(path).map_err(flawed)?;
        if path.is_dir() {
            return Err(flawed("it is a folder"));
        }
        let engine = OnFile::new(vfs::file_at(path, full_name, surroundings), Snapshot::empty());
        let baseline = engine.enter_wal_mode_and_read().map_err(|cause| match cause.kind() {
            ErrorKind::FileNotUsed => cause,
            _ => Error::file_not_used(path, &reason(path, &cause)).because(cause),
        })?;
        Ok(OnFile { baseline, ..engine })
    }

    /// Creates the file at this full path with the template's content.
    fn at_with(path: &Path, template: &WarmPool) -> Result<OnFile> {
        let failed = |cause: io::Error| match cause.kind() {
            io::ErrorKind::AlreadyExists => Error::file_of_template(path, template.name()),
            _ => Error::file_not_used(path, &format!("it can't be created: {cause}")),
        };
        let mut aside = new_file_in(path.parent().unwrap_or(path)).map_err(failed)?;
        let content = template.content().in_journal_mode(JournalMode::Wal);
        content.write_to(|chunk| io::Write::write_all(&mut aside, chunk)).map_err(failed)?;
        aside.persist_noclobber(path).map_err(|error| failed(error.error))?; // at once, and it replaces nothing
        OnFile::at(path, template.setup().surroundings).inspect_err(|_| drop(fs::remove_file(path)))
    }

    /// Puts the file into WAL mode, and returns its content.
    fn enter_wal_mode_and_read(&self) -> Result<Snapshot> {
        let connection = &mut self.create()?;
        // Reads first, so that a file that is no database is not written to.
        connection.execute_batch("BEGIN; SELECT 1 FROM sqlite_schema")?;
        self.check_length(connection)?;
        connection.execute_batch("ROLLBACK")?;
        self.enter_wal_mode(connection)?;
        if connection.is_readonly(MAIN_DB)? {
            let readonly = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_READONLY);
            return Err(rusqlite::Error::SqliteFailure(readonly, None).into());
        }
        connection.execute_batch("BEGIN IMMEDIATE")?;
        Snapshot::of_transaction(connection)
    }

    /// Puts the file into WAL mode. SQLite does not call the busy handler if another connection holds RESERVED
    /// (`sqlite3BtreeSetVersion` has begun to read before), so this tries again.
    fn enter_wal_mode(&self, connection: &Connection) -> Result<()> {
        let start = Instant::now();
        loop {
            match set_journal_mode(connection, "WAL") {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(Error::file_not_used(self.file.path(), WITHOUT_WAL)),
                Err(cause) if is_busy(&cause) && start.elapsed() < self.lock_timeout() => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(cause) => return Err(cause.into()),
            }
        }
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
        self.open_by(&format!("{}&mode=rw", self.file.uri()))
    }

    /// Opens a connection that waits for its turn to read.
    fn open_to_read(&self) -> rusqlite::Result<Connection> {
        let connection = self.open()?;
        connection.busy_timeout(self.lock_timeout().max(READ_TIMEOUT))?;
        Ok(connection)
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

    pub(super) fn connect(&self, setup: &Setup, purpose: Purpose) -> Result<Connection, NoConnection> {
        let connection = trace::open_for(purpose, || self.open())?;
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
    /// # Errors
    /// If the file can't be read.
    pub(super) fn snapshot(&self) -> Result<Snapshot> {
        trace::exempt(|| {
            let connection = &mut self.open_to_read()?;
            connection.execute_batch("PRAGMA writable_schema = ON; BEGIN")?; // it may have a schema that can't be parsed
            // Each file is in WAL mode, so the mark of that says nothing.
            Ok(Snapshot::of_transaction(connection)?.in_journal_mode(JournalMode::Rollback))
        })
    }

    /// Returns a value that changes with each commit.
    ///
    /// # Panics
    /// If the file can't be read.
    #[cfg(feature = "proptest")]
    pub(super) fn version(&self) -> (u64, i64) {
        let mut watcher = self.watcher.lock().recovered();
        let read = || {
            let connection = match &mut watcher.connection {
                Some(connection) => connection,
                none => none.insert(self.open_to_read()?),
            };
            connection.pragma_query_value(None, "data_version", |row| row.get(0))
        };
        let changes = trace::exempt(read)
            .unwrap_or_else(|cause: rusqlite::Error| panic!("can't read {}: SQLite says: {cause}", self.file.name()));
        (watcher.closed, changes)
    }

    /// Replaces the content by the snapshot's. Returns `false` if their text encodings differ.
    pub(super) fn restore(&self, snapshot: &Snapshot) -> Result<bool> {
        let mount = Mount::in_surroundings(snapshot.clone(), Name::Numbered, Surroundings::default());
        // The snapshot's connection is to an engine in memory, but the plan is for the code under test.
        let copy = || {
            let source =
                Connection::open(vfs::uri(&mount)).map_err(|cause| Error::not_restored(self.file.name(), cause))?;
            self.copy_from(&source, snapshot.text_encoding().is_some())
        };
        faults::exempt(|| trace::exempt(copy))
    }

    fn copy_from(&self, source: &Connection, has_encoding: bool) -> Result<bool> {
        let failed = |cause| self.error_of(cause, |cause| Error::not_restored(self.file.name(), cause));
        let mut connection = self.open().map_err(failed)?;
        connection.execute_batch("PRAGMA writable_schema = ON").map_err(failed)?; // the test may have damaged the schema
        if has_encoding && self.has_other_encoding(source, &connection).map_err(failed)? {
            return Ok(false);
        }
        if differs(source, &connection, "page_size").map_err(failed)? {
            self.copy_other_pages(source, connection)?;
        } else {
            copy(source, &mut connection).map_err(failed)?;
        }
        Ok(true)
    }

    /// Copies pages of another size, for which the file has to leave WAL mode.
    fn copy_other_pages(&self, source: &Connection, mut connection: Connection) -> Result<()> {
        #[cfg(feature = "proptest")]
        self.watcher.lock().recovered().close();
        leave_wal_mode(&connection).map_err(|cause| Error::other_pages(self.file.name(), cause))?;
        let copied = copy(source, &mut connection).map_err(|cause| Error::not_restored(self.file.name(), cause));
        self.enter_wal_mode(&connection)?; // no other connection can be in the way
        copied
    }

    /// Returns whether the database has content in another encoding.
    fn has_other_encoding(&self, source: &Connection, connection: &Connection) -> rusqlite::Result<bool> {
        let has_content = connection.query_row("SELECT count(*) > 0 FROM sqlite_schema", [], |row| row.get(0))?;
        Ok(has_content && differs(source, connection, "encoding")?)
    }

    /// Waits until no connection has a transaction that has written.
    pub(super) fn wait_for_writers(&self, timeout: Duration) -> Result<()> {
        let wait = || {
            let connection = self.open()?;
            connection.busy_timeout(timeout)?;
            connection.execute_batch("BEGIN IMMEDIATE; ROLLBACK")
        };
        trace::exempt(wait).map_err(|cause| self.lock_error(cause))
    }

    /// Returns the error of a transaction that was refused a lock, or another error of SQLite.
    pub(super) fn lock_error(&self, cause: rusqlite::Error) -> Error {
        self.error_of(cause, Error::from)
    }

    fn error_of(&self, cause: rusqlite::Error, other: impl FnOnce(rusqlite::Error) -> Error) -> Error {
        if is_busy(&cause) { Error::file_locked(self.file.name(), cause) } else { other(cause) }
    }
}

#[cfg(feature = "proptest")]
impl Watcher {
    fn close(&mut self) {
        self.connection = None;
        self.closed += 1;
    }
}

const WITHOUT_WAL: &str = "SQLite can't put it into WAL mode, for example because its VFS has no shared memory";

/// Sets the journal mode. Returns whether that is the mode now.
fn set_journal_mode(connection: &Connection, mode: &str) -> rusqlite::Result<bool> {
    connection.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| {
        Ok(row.get::<_, String>(0)?.eq_ignore_ascii_case(mode))
    })
}

/// Leaves WAL mode, in which SQLite can't change the page size, and locks all other connections out until this one is closed.
fn leave_wal_mode(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
    set_journal_mode(connection, "DELETE").map(drop)
}

fn differs(one: &Connection, other: &Connection, pragma: &str) -> rusqlite::Result<bool> {
    let value = |connection: &Connection| connection.pragma_query_value(None, pragma, |row| row.get::<_, Value>(0));
    Ok(value(one)? != value(other)?)
}

fn copy(source: &Connection, connection: &mut Connection) -> rusqlite::Result<()> {
    match Backup::new(source, connection)?.step(-1)? {
        StepResult::Done => Ok(()),
        _ => Err(busy()),
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

fn busy() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    rusqlite::Error::SqliteFailure(code, Some("database is locked".to_owned()))
}

/// Creates a file with a name of its own, with the permissions of a new file.
fn new_file_in(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // less the process's mask
    builder.tempfile_in(folder)
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
    /// SQLite database, which is left as it is; if it can't be written to; if its folder does not exist; or if another
    /// connection or process is writing to it for 5 s (the default of [`set_lock_timeout`](Engine::set_lock_timeout)).
    pub fn file(path: impl AsRef<Path>) -> Result<Engine> {
        Ok(Engine::shared_file(path.as_ref())?.made_strict_if_asked())
    }

    /// Opens the file at this path for more than one test.
    pub(crate) fn shared_file(path: &Path) -> Result<Engine> {
        vfs::register();
        Ok(Engine::on_file(OnFile::at(path, Surroundings::default())?, None))
    }

    /// Creates the file at this path with the template's content, for more than one test.
    pub(crate) fn shared_file_of(path: &Path, template: &Arc<WarmPool>) -> Result<Engine> {
        vfs::register();
        Ok(Engine::on_file(OnFile::at_with(path, template)?, Some(template.clone())))
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn a_file_that_is_gone_can_not_be_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let engine = Engine::file(&path).unwrap();
        let kept = engine.keep("engine::on_file::a_file_that_is_gone").unwrap();
        std::fs::remove_file(&path).unwrap();
        let error = engine.keep("engine::on_file::a_file_that_is_gone").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("the content can't be read: unable to open database file"), "{error}");
        assert!(kept.join("database.sqlite3").exists(), "the earlier one");
        std::fs::remove_dir_all(kept).unwrap();
    }

    /// The connection that sees commits would keep the file in WAL mode otherwise, and the next one counts from the beginning.
    #[test]
    #[cfg(feature = "proptest")]
    fn a_restore_of_other_pages_is_a_new_version() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::file(folder.path().join("a.db")).unwrap();
        let other = Engine::new();
        other.connect().unwrap().execute_batch("PRAGMA page_size = 1024; CREATE TABLE t (a)").unwrap();
        let mut versions = vec![engine.version()];
        for content in [other.snapshot(), engine.snapshot(), other.snapshot()] {
            assert!(engine.version() == versions[versions.len() - 1], "nothing was committed");
            engine.restore(&content).unwrap();
            assert!(!versions.contains(&engine.version()), "{}", versions.len());
            versions.push(engine.version());
        }
    }

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
