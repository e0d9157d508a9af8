use std::any::Any;
use std::fmt;
use std::io;
use std::panic::Location;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{ErrorCode, ffi};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error. The functions of a [`Template`](crate::Template) may return it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The error of this crate. Its message names the operation, the object, the cause, and the remedy if there is one.
///
/// Both `{}` and `{:?}` print the whole message, so an `unwrap()` in a test shows it.
#[derive(Clone)]
pub struct Error(Arc<Repr>);

struct Repr {
    kind: ErrorKind,
    message: String,
    source: Option<Source>,
}

enum Source {
    Sqlite(rusqlite::Error),
    Io(io::Error),
    Other(BoxError),
}

impl Source {
    fn of(cause: BoxError) -> Source {
        match cause.downcast::<rusqlite::Error>() {
            Ok(cause) => Source::Sqlite(*cause),
            Err(cause) => Source::Other(cause),
        }
    }
}

/// Why a connection could not be opened.
#[derive(Debug)]
pub(crate) enum NoConnection {
    Sqlite(rusqlite::Error),
    /// The function that was given to `Template::on_connect` at this place failed.
    NotSetUp {
        at: &'static Location<'static>,
        cause: BoxError,
    },
}

impl From<rusqlite::Error> for NoConnection {
    fn from(cause: rusqlite::Error) -> NoConnection {
        NoConnection::Sqlite(cause)
    }
}

/// The kind of an [`Error`], to branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A database URL that can't be parsed, or has options that no engine supports.
    InvalidUrl,
    /// A database URL that may name a file by mistake: without the scheme `sqlite:` or `mode=rwc`.
    NotInMemory,
    /// Bytes or a file that are not a complete SQLite database.
    NotADatabase,
    /// A snapshot that an engine can't restore, because their text encodings differ.
    OtherEncoding,
    /// A file that can't be read or written.
    Io,
    /// A file that can't be used as an engine ([`Engine::file`](crate::Engine::file)).
    FileNotUsed,
    /// The writer slot was not free within the lock timeout, or SQLite could not lock an engine's file within the
    /// connection's busy timeout.
    LockTimeout,
    /// The transaction tried to write after another transaction had replaced the content that it has read (SQLite's
    /// extended code 517, `SQLITE_BUSY_SNAPSHOT`). It can succeed when it is rolled back and run again.
    SerializationFailure,
    /// The unit of work was no longer open: the code under test has committed it or rolled it back, or SQLite has.
    AlreadyEnded,
    /// The creation of a shared engine needs the same engine, or the build of a template needs the same template.
    RecursiveCreation,
    /// A template that can't be built: its script, its function or its `on_connect` failed. Every later call returns the
    /// same error.
    BuildFailed,
    /// A connection that can't be set up: the function of [`Template::on_connect`](crate::Template::on_connect) failed.
    SetupFailed,
    /// A value of [`KeptValues`](crate::KeptValues) that can't be made: the function that makes it failed.
    MakeFailed,
    /// A shared engine that was created from another template than the given one, or without a template.
    OtherTemplate,
    /// A path for which an engine can't stand in ([`Engine::stand_in_for`](crate::Engine::stand_in_for)).
    NoStandIn,
    /// A time for an engine's [`Clock`](crate::Clock) that is no time, or an engine without a clock.
    NoTime,
    /// Any other error of SQLite; [`Error::sqlite`] returns it.
    Sqlite,
}

impl Error {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the error of SQLite that is the cause, with its (extended) result code.
    pub fn sqlite(&self) -> Option<&rusqlite::Error> {
        match &self.0.source {
            Some(Source::Sqlite(cause)) => Some(cause),
            _ => None,
        }
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Arc::new(Repr { kind, message: message.into(), source: None }))
    }

    pub(crate) fn with_sqlite(self, cause: rusqlite::Error) -> Error {
        self.caused_by(Source::Sqlite(cause))
    }

    /// Returns this error with the source of another one, which is not used elsewhere.
    pub(crate) fn because(self, cause: Error) -> Error {
        let source = Arc::into_inner(cause.0).and_then(|repr| repr.source);
        source.into_iter().fold(self, Error::caused_by)
    }

    fn caused_by(mut self, source: Source) -> Error {
        let repr = Arc::get_mut(&mut self.0).expect("an error that is being made has no clone");
        repr.source = Some(source);
        self
    }

    pub(crate) fn invalid_url(url: &str, reason: &str) -> Error {
        Error::new(ErrorKind::InvalidUrl, format!("can't use the database URL {url:?}: {reason}"))
    }

    pub(crate) fn not_in_memory(url: &str, path: &str) -> Error {
        let message = format!(
            "can't use the database URL {url:?}: it may name a file by mistake; for the file itself, use Engine::file({path:?}) \
             or a URL like \"sqlite:///PATH\"; for an engine in memory with its content, \
             Snapshot::open({path:?})?.new_engine(); for the shared engine NAME, \"file:NAME?mode=memory\""
        );
        Error::new(ErrorKind::NotInMemory, message)
    }

    pub(crate) fn not_a_database(object: &str, flaw: impl Into<String>) -> Error {
        let message = format!("can't use {object} as a SQLite database: {}", flaw.into());
        Error::new(ErrorKind::NotADatabase, message)
    }

    pub(crate) fn other_encoding(engine: &str) -> Error {
        let message = format!(
            "can't restore the snapshot on {engine}: its text encoding (PRAGMA encoding) is not the engine's, and open \
             connections could not read it; Snapshot::new_engine() creates an engine with its content"
        );
        Error::new(ErrorKind::OtherEncoding, message)
    }

    pub(crate) fn io(operation: &str, path: &Path, cause: io::Error) -> Error {
        let message = format!("can't {operation} `{}`: {cause}", path.display());
        Error::new(ErrorKind::Io, message).caused_by(Source::Io(cause))
    }

    pub(crate) fn no_temporary_file(cause: io::Error) -> Error {
        Error::io("create a temporary folder for engines in files, in", &std::env::temp_dir(), cause)
    }

    pub(crate) fn file_not_used(path: &Path, flaw: &str) -> Error {
        Error::new(ErrorKind::FileNotUsed, format!("can't use the file `{}` as an engine: {flaw}", path.display()))
    }

    pub(crate) fn file_of_template(path: &Path, template: &str) -> Error {
        let flaw = format!(
            "it exists, and may have other content than {template}; remove it first, or use Engine::file for its own content"
        );
        Error::file_not_used(path, &flaw)
    }

    pub(crate) fn file_locked(engine: &str, cause: rusqlite::Error) -> Error {
        let message = format!(
            "can't write to {engine}: another connection or process is writing to the file, and its lock was not free in time \
             (SQLite does not say which one; engines in memory do); end its transaction sooner, or raise \
             Engine::set_lock_timeout"
        );
        Error::new(ErrorKind::LockTimeout, message).caused_by(Source::Sqlite(cause))
    }

    pub(crate) fn other_pages(engine: &str, cause: rusqlite::Error) -> Error {
        let message = format!(
            "can't restore a snapshot with another page size on {engine}: SQLite says: {cause}; close all other connections to \
             the file first, or create an engine of the snapshot by Snapshot::new_engine"
        );
        Error::new(ErrorKind::LockTimeout, message).caused_by(Source::Sqlite(cause))
    }

    pub(crate) fn not_restored(engine: &str, cause: rusqlite::Error) -> Error {
        let message = format!("can't restore a snapshot on {engine}: SQLite says: {cause}");
        Error::new(ErrorKind::Sqlite, message).caused_by(Source::Sqlite(cause))
    }

    pub(crate) fn not_seen(engine: &str, cause: rusqlite::Error) -> Error {
        let message = format!("can't read what a unit of work on {engine} sees: SQLite says: {cause}");
        Error::new(ErrorKind::Sqlite, message).caused_by(Source::Sqlite(cause))
    }

    pub(crate) fn not_compared(what: &str, cause: rusqlite::Error) -> Error {
        let message = format!(
            "can't compare {what} of two snapshots: SQLite says: {cause}; if a definition needs a function or a collation of the \
             application, define that by Template::on_connect, and use Engine::changes"
        );
        Error::new(ErrorKind::Sqlite, message).caused_by(Source::Sqlite(cause))
    }

    pub(crate) fn not_kept(engine: &str, cause: &str) -> Error {
        Error::new(ErrorKind::Io, format!("can't keep {engine}: {cause}"))
    }

    pub(crate) fn open_snapshot(path: &Path, cause: rusqlite::Error) -> Error {
        let message = format!("can't open a snapshot of `{}`: SQLite says: {cause}", path.display());
        Error::new(ErrorKind::Sqlite, message).caused_by(Source::Sqlite(cause))
    }

    pub(crate) fn connection_not_opened(engine: &str, cause: NoConnection) -> Error {
        let operation = format!("can't open a connection to {engine}");
        let cause = match cause {
            NoConnection::Sqlite(cause) => cause,
            NoConnection::NotSetUp { at, cause } => {
                return Error::not_set_up(ErrorKind::SetupFailed, &operation, at, cause);
            }
        };
        // Without memory there is no connection that has SQLite's message, and rusqlite puts the path in its place.
        let is_without_memory = cause.sqlite_error_code() == Some(ErrorCode::OutOfMemory);
        let words = if is_without_memory { "out of memory".to_owned() } else { cause.to_string() };
        Error::new(ErrorKind::Sqlite, format!("{operation}: SQLite says: {words}")).caused_by(Source::Sqlite(cause))
    }

    fn not_set_up(kind: ErrorKind, operation: &str, at: &Location<'_>, cause: BoxError) -> Error {
        let message = format!("{operation}: the on_connect function given at {at} failed: {}", words_of_any(&cause));
        Error::new(kind, message).caused_by(Source::of(cause))
    }

    pub(crate) fn already_ended(operation: &str, engine: &str) -> Error {
        let message = format!(
            "can't {operation} a unit of work on {engine}: it has already ended, because the code under test ran COMMIT or \
             ROLLBACK, or SQLite rolled it back after an error; for code that ends its own transactions, use \
             Engine::pooled_connection"
        );
        Error::new(ErrorKind::AlreadyEnded, message)
    }

    pub(crate) fn recursive_creation(url: &impl fmt::Display) -> Error {
        let message = format!(
            "can't create the shared engine `{url}`: its creation needs the same engine, on this thread or through the \
             creation of another engine, and would wait for itself; use the engine that is being created, or another URL"
        );
        Error::new(ErrorKind::RecursiveCreation, message)
    }

    pub(crate) fn recursive_build(template: &str) -> Error {
        let message = format!(
            "can't build {template}: its build needs the same template, on this thread or through the build of another \
             template, and would wait for itself; base one template on the other with Template::based_on"
        );
        Error::new(ErrorKind::RecursiveCreation, message)
    }

    pub(crate) fn script_failed(
        template: &str,
        script: &impl fmt::Display,
        line: usize,
        statement: &str,
        cause: rusqlite::Error,
    ) -> Error {
        let message = format!(
            "can't build {template}: line {line} of {script} failed: SQLite says: {}; the statement:\n{}",
            words_of(&cause),
            shortened(statement)
        );
        Error::new(ErrorKind::BuildFailed, message).caused_by(Source::Sqlite(cause))
    }

    pub(crate) fn function_failed(template: &str, at: &Location<'_>, cause: BoxError) -> Error {
        let message = format!("can't build {template}: the function given at {at} failed: {}", words_of_any(&cause));
        Error::new(ErrorKind::BuildFailed, message).caused_by(Source::of(cause))
    }

    pub(crate) fn connection_replaced(template: &str, at: &Location<'_>) -> Error {
        let message = format!(
            "can't build {template}: the function given at {at} has replaced its connection, or the connection's database by \
             deserialize; to copy a database into the connection, use rusqlite's backup API; to start with the bytes \
             of a database, use Template::database"
        );
        Error::new(ErrorKind::BuildFailed, message)
    }

    pub(crate) fn build_panicked(template: &str, payload: &(dyn Any + Send)) -> Error {
        let words = words_of_panic(payload);
        Error::new(ErrorKind::BuildFailed, format!("can't build {template}: it panicked: {words}"))
    }

    pub(crate) fn transaction_left_open(template: &str, step: &impl fmt::Display) -> Error {
        let message = format!(
            "can't build {template}: {step} has left a transaction open; commit it or roll it back in that step"
        );
        Error::new(ErrorKind::BuildFailed, message)
    }

    pub(crate) fn transaction_not_ended(template: &str, at: &Location<'_>, refusal: &Error) -> Error {
        let message = format!(
            "can't build {template}: the function given at {at} has left a transaction open; end all transactions before it \
             returns: {refusal}"
        );
        Error::new(ErrorKind::BuildFailed, message)
    }

    pub(crate) fn no_thread(template: &str, cause: io::Error) -> Error {
        let message = format!(
            "can't build {template}: its functions run on a new thread, and the system can't start one: {cause}; run fewer \
             threads at once, or raise the system's limit"
        );
        Error::new(ErrorKind::BuildFailed, message).caused_by(Source::Io(cause))
    }

    pub(crate) fn migration_not_in_transaction(
        template: &str,
        migration: &impl fmt::Display,
        cause: rusqlite::Error,
    ) -> Error {
        let message = format!(
            "can't build {template}: {migration} runs in a transaction, which it must not begin or end itself: SQLite says: \
             {}; to run it without a transaction, let it begin with the line `-- no-transaction`",
            words_of(&cause)
        );
        Error::new(ErrorKind::BuildFailed, message).caused_by(Source::Sqlite(cause))
    }

    pub(crate) fn no_migrations(template: &str, flaw: &str) -> Error {
        Error::new(ErrorKind::BuildFailed, format!("can't build {template}: {flaw}"))
    }

    pub(crate) fn connect_to_build(template: &str, cause: NoConnection) -> Error {
        let operation = format!("can't build {template}");
        match cause {
            NoConnection::Sqlite(cause) => {
                let message = format!("{operation}: can't open a connection: SQLite says: {cause}");
                Error::new(ErrorKind::BuildFailed, message).caused_by(Source::Sqlite(cause))
            }
            NoConnection::NotSetUp { at, cause } => Error::not_set_up(ErrorKind::BuildFailed, &operation, at, cause),
        }
    }

    pub(crate) fn not_made(engine: &str, cause: BoxError) -> Error {
        let message = format!(
            "can't make a value from {engine}: the function given to KeptValues failed: {}",
            words_of_any(&cause)
        );
        Error::new(ErrorKind::MakeFailed, message).caused_by(Source::of(cause))
    }

    pub(crate) fn no_stand_in(engine: &str, path: &Path, flaw: &str) -> Error {
        Error::new(ErrorKind::NoStandIn, format!("{engine} can't stand in for {path:?}: {flaw}"))
    }

    pub(crate) fn no_time(engine: &str, time: &dyn fmt::Display, flaw: &str) -> Error {
        Error::new(ErrorKind::NoTime, format!("can't set the clock of {engine} to {time}: {flaw}"))
    }

    pub(crate) fn no_clock(engine: &str) -> Error {
        let message = format!("{engine} has no clock; create it by a template with Template::clock");
        Error::new(ErrorKind::NoTime, message)
    }

    pub(crate) fn no_time_of_template(template: &str, time: &str, flaw: &str) -> Error {
        let message = format!("can't build {template}: its clock can't stand at {time:?}: {flaw}");
        Error::new(ErrorKind::BuildFailed, message)
    }

    pub(crate) fn other_template(engine: &str, has: Option<&str>, asked_for: &str) -> Error {
        let has = has.map_or("without a template".to_owned(), |has| format!("from {has}"));
        let message = format!(
            "can't use {engine} for {asked_for}: it was created {has}; use another URL, or Template::new_engine for a private \
             engine"
        );
        Error::new(ErrorKind::OtherTemplate, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.source {
            Some(Source::Sqlite(cause)) => Some(cause),
            Some(Source::Io(cause)) => Some(cause),
            Some(Source::Other(cause)) => Some(&**cause),
            None => None,
        }
    }
}

/// Returns the message of a panic.
pub(crate) fn words_of_panic(payload: &(dyn Any + Send)) -> &str {
    let words = payload.downcast_ref::<String>().map(String::as_str);
    words.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("the panic's value is not a string")
}

/// Returns SQLite's message for an error, without what rusqlite adds.
fn words_of(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(words)) => words.clone(),
        other => other.to_string(),
    }
}

/// Returns the message of any error, and marks it if it is SQLite's.
fn words_of_any(cause: &BoxError) -> String {
    let by_sqlite = if cause.is::<rusqlite::Error>() { "SQLite says: " } else { "" };
    format!("{by_sqlite}{cause}")
}

/// Returns the statement, truncated if it is too long for a message.
fn shortened(statement: &str) -> String {
    const MOST: usize = 1000;
    match statement.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} …", &statement[..end]),
        None => statement.to_owned(),
    }
}

impl From<Error> for rusqlite::Error {
    /// Keeps the result code and the whole message, for code under test whose functions return `rusqlite::Error`.
    fn from(error: Error) -> rusqlite::Error {
        let code = match error.sqlite() {
            Some(rusqlite::Error::SqliteFailure(code, _)) => *code,
            _ => ffi::Error::new(ffi::SQLITE_ERROR),
        };
        match Arc::try_unwrap(error.0) {
            Ok(Repr { source: Some(Source::Sqlite(cause)), .. }) if cause.sqlite_error().is_none() => cause,
            Ok(Repr { message, .. }) => rusqlite::Error::SqliteFailure(code, Some(message)),
            Err(shared) => rusqlite::Error::SqliteFailure(code, Some(shared.message.clone())),
        }
    }
}
