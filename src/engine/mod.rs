//! Engines, and the connections that they lend out.
//!
//! * `Engine` (here): a handle to one database. It lends out a connection by `unit_of_work` or `pooled_connection`.
//!   Both use `lease`, which returns the connection.
//! * `idle`: the connections that an engine keeps for the next unit of work, and their limits.
//! * `warm_pool`: the stores that a template keeps for the next engine, with their connections.
//! * `initial_state`: the state to which an engine returns while other code keeps connections to it.
//! * `clock`: the time that SQL gets.
//! * `stand_in`: engines in the place of files. `on_file`: engines in real files.
//! * `keep`: what becomes of an engine whose test fails.
//! * `strict`: what a test has left open or undecided.
//! * `registry`: the engines that the process shares, one for each `url`.
//!
//! This layer uses `vfs`, `content` and the layers below them.
//!
//! Invariants:
//! * A connection that is lent out again behaves like a new one; otherwise it is closed (`Session::make_clean`).
//! * A store returns to its warm pool only if no connection to it is left elsewhere.
//! * No user code runs while a lock of these modules is held: sessions are closed, and engines created, outside the
//!   lock.

mod clock;
mod idle;
mod initial_state;
mod keep;
mod lease;
mod on_file;
mod pooled_connection;
mod registry;
mod stand_in;
mod strict;
mod unit_of_work;
mod url;
mod warm_pool;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, Location, RefUnwindSafe, UnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

pub use self::clock::Clock;
use self::idle::{Budget, Idle};
pub(crate) use self::initial_state::InitialState;
use self::keep::Creation;
use self::lease::{Lease, Lent};
use self::on_file::OnFile;
pub use self::pooled_connection::PooledConnection;
pub use self::registry::{MEMORY_ENGINES, MemoryEngines};
pub use self::stand_in::StandIn;
use self::strict::StrictMode;
pub use self::unit_of_work::UnitOfWork;
pub use self::url::DatabaseUrl;
use self::warm_pool::Warm;
pub(crate) use self::warm_pool::WarmPool;
use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::content::store::{Claim, Store, Token};
use crate::difference::{Changes, compare};
use crate::environment::Backend;
use crate::error::{Error, NoConnection, Result};
use crate::failure;
use crate::statements::{Log, Recorded, Recorder};
use crate::vfs::{self, Mount, Name, Session, Setup};

/// A SQLite database in memory, which any number of threads and connections share.
///
/// An `Engine` is a handle. A clone is another handle to the same database; two handles are equal if they are to the
/// same database. The database is freed with its last handle and last connection. ([`MEMORY_ENGINES`] holds a handle to
/// each shared engine.)
///
/// Readers never wait and never see half of a commit: each transaction reads the content that was committed when it
/// began to read. Writers take turns, roughly in order of arrival: none is passed over for more than 20 ms
/// ([details](crate::guide::isolation#busy-handlers)). Transactions are SERIALIZABLE: a transaction that has read, and
/// then wants to write after another one has committed, fails with
/// [`SerializationFailure`](crate::ErrorKind::SerializationFailure). A transaction that begins IMMEDIATE never does.
///
/// An engine can be in a file instead ([`file`](Engine::file)), where SQLite's own locks apply. The chapter
/// [any code](crate::guide::any_code#the-same-tests-on-real-files) lists the differences.
///
/// ```
/// # use rusqlite_fixtures::{Engine, Result};
/// # fn main() -> Result<()> {
/// let engine = Engine::new();
/// let schema = "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)";
/// engine.try_transaction(|work| work.execute_batch(schema))?;
/// let work = engine.unit_of_work()?;
/// work.execute("INSERT INTO account VALUES (1, 100)", [])?;
/// work.commit()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    /// Connections that can be reused. They are closed before `mount` is dropped, though either order is correct,
    /// because each of them holds the mount too. Retiring the engine closes this list permanently (`Idle::close`).
    idle: Arc<Idle<Session>>,
    /// `None` only within `drop`.
    database: Option<Database>,
    uri: OnceLock<String>,
    sqlite_url: OnceLock<String>,
    /// The template that created the engine.
    template: Option<Arc<WarmPool>>,
    /// The recording of everything, which is checked at the end.
    watch: OnceLock<Watch>,
    creation: Creation,
    strict_mode: OnceLock<StrictMode>,
    /// Whether the store returns to the template when the last handle is dropped. The store of a shared engine or a
    /// fork does not.
    returns_store: bool,
}

enum Database {
    InMemory(Arc<Mount>),
    OnFile(OnFile),
}

/// A state of the content of one engine. It differs from that before a commit, even if the commit changed nothing.
#[cfg(feature = "proptest")]
pub(crate) enum Version {
    InMemory(Snapshot),
    OnFile((u64, i64)),
}

#[cfg(feature = "proptest")]
impl PartialEq for Version {
    fn eq(&self, other: &Version) -> bool {
        match (self, other) {
            (Version::InMemory(one), Version::InMemory(other)) => one.ptr_eq(other),
            (Version::OnFile(one), Version::OnFile(other)) => one == other,
            _ => false,
        }
    }
}

/// A recording that is checked when the engine's last handle is dropped.
struct Watch {
    log: Arc<Log>,
    check: Check,
}

/// Checks what was recorded on an engine of this name. The engine that it gets is a copy. Returns a message if the test has to
/// fail.
type Check = Box<dyn FnOnce(String, Engine, Recorded) -> Option<String> + Send + Sync + UnwindSafe + RefUnwindSafe>;

/// The setup of engines without a template.
static DEFAULT: Setup = Setup::DEFAULT;

/// The maximum numbers of idle connections: in one engine, and in all engines together. A connection takes about 100
/// KB, and a suite may have thousands of engines.
static IDLE: Budget<Session> = Budget::new(32, 256);

impl Engine {
    /// Creates an empty, private engine.
    ///
    /// # Panics
    /// If SQLite can't be initialized; if one of the
    /// [environment variables](crate::guide::runners#environment-variables) has an unknown value; with
    /// `RUSQLITE_FIXTURES_BACKEND=file`, if the file can't be created.
    pub fn new() -> Engine {
        created(Engine::cold(Snapshot::empty(), Name::Numbered, None, Backend::of_engines()))
    }

    /// Creates an empty engine with this name, for more than one test.
    pub(crate) fn named(name: String) -> Result<Engine> {
        Engine::cold(Snapshot::empty(), Name::Given(name), None, Backend::of_engines())
    }

    /// Returns a warm engine of the template, with open connections, or creates one if none is waiting.
    pub(crate) fn of(template: &Arc<WarmPool>) -> Result<Engine> {
        vfs::register();
        match Backend::of_engines() {
            Backend::Memory => Ok(Engine::assemble(template.take(), Some(template.clone()), true)),
            Backend::File => {
                let name = Name::OfTemplate(template.name().into());
                Ok(Engine::on_file(OnFile::of_template(template, &name)?, Some(template.clone())))
            }
        }
    }

    /// Creates an engine with the template's content and this name, for more than one test. It is not returned to the warm
    /// pool.
    pub(crate) fn named_of(name: String, template: &Arc<WarmPool>) -> Result<Engine> {
        let (content, name) = (template.content().clone(), Name::Given(name));
        Engine::cold(content, name, Some(template.clone()), Backend::of_engines())
    }

    /// Creates an engine in which the template is built. If it is in a file, the file is not yet in WAL mode, in which a
    /// database has its page size for good.
    pub(crate) fn for_build(template: &Arc<WarmPool>) -> Result<Engine> {
        let name = Name::Given(template.name().to_owned());
        let database = match Backend::of_engines() {
            Backend::Memory => Database::InMemory(mount(template.content(), name, template.setup())),
            Backend::File => {
                vfs::register();
                Database::OnFile(OnFile::for_build(template, &name)?)
            }
        };
        Ok(Engine::with_database(database, Vec::new(), Some(template.clone()), Creation::of_build(), false))
    }

    fn cold(content: Snapshot, name: Name, template: Option<Arc<WarmPool>>, backend: Backend) -> Result<Engine> {
        let setup = template.as_ref().map_or(&DEFAULT, |template| template.setup());
        match backend {
            Backend::Memory => {
                let mount = mount(&content, name, setup);
                Ok(Engine::assemble(Warm { sessions: Vec::new(), mount }, template, false))
            }
            Backend::File => {
                vfs::register();
                Ok(Engine::on_file(OnFile::with_content(&content, &name, setup.surroundings)?, template))
            }
        }
    }

    fn on_file(file: OnFile, template: Option<Arc<WarmPool>>) -> Engine {
        Engine::with_database(Database::OnFile(file), Vec::new(), template, Creation::now(), false)
    }

    fn assemble(Warm { sessions, mount }: Warm, template: Option<Arc<WarmPool>>, returns_store: bool) -> Engine {
        Engine::with_database(Database::InMemory(mount), sessions, template, Creation::now(), returns_store)
    }

    fn with_database(
        database: Database,
        sessions: Vec<Session>,
        template: Option<Arc<WarmPool>>,
        creation: Creation,
        returns_store: bool,
    ) -> Engine {
        let lock_timeout = template.as_ref().and_then(|template| template.setup().lock_timeout);
        let engine = Engine(Arc::new(Inner {
            idle: Idle::new(&IDLE, sessions),
            database: Some(database),
            uri: OnceLock::new(),
            sqlite_url: OnceLock::new(),
            template,
            watch: OnceLock::new(),
            creation,
            strict_mode: OnceLock::new(),
            returns_store,
        }));
        engine.0.begin_to_keep();
        lock_timeout.into_iter().for_each(|timeout| engine.set_lock_timeout(timeout));
        engine
    }

    /// Returns a URI that opens this database from any code in the process that uses the same SQLite library: rusqlite,
    /// diesel, r2d2, sqlx's `SqliteConnectOptions::filename`. Opening it is an error once the engine is gone. Other
    /// processes can't open it; for an engine in a file, they use the file's path.
    ///
    /// A connection that is opened by the URI takes turns with all others, and waits for its own `busy_timeout`. If its
    /// busy handler sleeps by itself, the connection keeps its place in the queue, and waits up to twice the handler's
    /// time.
    pub fn uri(&self) -> &str {
        self.0.uri.get_or_init(|| match self.database() {
            Database::InMemory(mount) => vfs::uri(mount),
            Database::OnFile(database) => database.file.uri(),
        })
    }

    /// Returns a URL that opens this database, like [`uri`](Engine::uri), for code that takes a `DATABASE_URL`: sqlx,
    /// sea-orm, diesel. It begins with `sqlite://`.
    pub fn sqlite_url(&self) -> &str {
        self.0.sqlite_url.get_or_init(|| match self.database() {
            Database::InMemory(mount) => vfs::sqlite_url(mount),
            Database::OnFile(database) => database.file.sqlite_url(),
        })
    }

    /// Opens a new connection, which is never reused. It waits for the writer slot for the engine's lock timeout, as units of
    /// work do, unless code sets its `busy_timeout`.
    ///
    /// # Errors
    /// [`Sqlite`](crate::ErrorKind::Sqlite) if SQLite can't open a connection, for example without memory;
    /// [`SetupFailed`](crate::ErrorKind::SetupFailed) if the template's
    /// [`on_connect`](crate::Template::on_connect) fails.
    #[track_caller]
    pub fn connect(&self) -> Result<Connection> {
        let connection = self.open_connection(Purpose::Connection(Location::caller()));
        connection.map_err(|cause| Error::open_connection(&self.name(), cause))
    }

    /// Opens a private connection, which is all that is left of the engine. The engine is not checked.
    #[cfg(feature = "fixtures")]
    #[track_caller]
    pub(crate) fn into_connection(mut self) -> Result<Connection> {
        let connection = self.connect();
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.end_without_check();
        }
        connection
    }

    pub(crate) fn open_connection(&self, purpose: Purpose) -> Result<Connection, NoConnection> {
        match self.database() {
            Database::InMemory(_) => vfs::connect(self.uri(), self.setup(), purpose),
            Database::OnFile(database) => database.connect(self.setup(), purpose),
        }
    }

    /// Begins a unit of work (`BEGIN DEFERRED`). It takes no lock before its first statement, and blocks no other
    /// transaction while it only reads.
    ///
    /// # Errors
    /// [`Sqlite`](crate::ErrorKind::Sqlite) if SQLite can't open a connection, for example without memory;
    /// [`SetupFailed`](crate::ErrorKind::SetupFailed) if the template's [`on_connect`](crate::Template::on_connect)
    /// fails; [`LockTimeout`](crate::ErrorKind::LockTimeout) if `Fault::Busy` (feature `faults`) refuses the lock that
    /// opening a connection needs.
    #[track_caller]
    pub fn unit_of_work(&self) -> Result<UnitOfWork> {
        self.begin(TransactionBehavior::Deferred)
    }

    /// Begins a unit of work with the given behavior. `Immediate` waits for the writer slot first. `Exclusive` does the
    /// same, since readers are never blocked.
    ///
    /// # Errors
    /// [`LockTimeout`](crate::ErrorKind::LockTimeout) if the writer slot was not free in time (see
    /// [`set_lock_timeout`](Engine::set_lock_timeout)); otherwise as [`unit_of_work`](Engine::unit_of_work).
    #[track_caller]
    pub fn begin(&self, behavior: TransactionBehavior) -> Result<UnitOfWork> {
        self.begin_as(Purpose::UnitOfWork(Location::caller()), |lent| lent.begin(behavior))
    }

    /// Like `begin`. The connection waits for the engine's lock timeout, even if `on_connect` has set another busy
    /// handler.
    #[cfg(feature = "proptest")]
    #[track_caller]
    pub(crate) fn begin_in_turn(&self, behavior: TransactionBehavior) -> Result<UnitOfWork> {
        self.begin_as(Purpose::UnitOfWork(Location::caller()), |lent| {
            self.set_busy_handler(lent.connection())?;
            lent.begin(behavior)
        })
    }

    /// Makes the connection wait for the engine's lock timeout.
    #[cfg(feature = "proptest")]
    pub(crate) fn set_busy_handler(&self, connection: &Connection) -> rusqlite::Result<()> {
        match self.database() {
            Database::InMemory(_) => vfs::set_busy_handler(connection),
            Database::OnFile(database) => connection.busy_timeout(database.lock_timeout())?,
        }
        Ok(())
    }

    fn begin_as(&self, purpose: Purpose, begin: impl Fn(&mut Lent) -> rusqlite::Result<()>) -> Result<UnitOfWork> {
        let (lease, begun) = self.lease(purpose, begin)?;
        begun.map_err(|cause| self.error_of(cause))?;
        Ok(UnitOfWork::begun(lease))
    }

    /// Returns one of the connections that units of work use, in no transaction, for code under test that begins and
    /// commits its own transactions.
    ///
    /// # Errors
    /// As [`unit_of_work`](Engine::unit_of_work).
    #[track_caller]
    pub fn pooled_connection(&self) -> Result<PooledConnection> {
        let (lease, probed) = self.lease(Purpose::Connection(Location::caller()), Lent::probe)?;
        probed?;
        Ok(PooledConnection::new(lease))
    }

    /// Returns a lease of an idle connection or a new one, with the result of `first`, the first operation on it.
    fn lease(
        &self,
        purpose: Purpose,
        first: impl Fn(&mut Lent) -> rusqlite::Result<()>,
    ) -> Result<(Lease, rusqlite::Result<()>)> {
        if let Some((session, done)) = self.idle_session(purpose, &first) {
            return Ok((Lease::new(self.clone(), session), done));
        }
        let mut lent = self.open_to_lend(purpose)?;
        let done = first(&mut lent);
        Ok((Lease::new(self.clone(), lent), done))
    }

    fn idle_session(
        &self,
        purpose: Purpose,
        first: impl Fn(&mut Lent) -> rusqlite::Result<()>,
    ) -> Option<(Lent, rusqlite::Result<()>)> {
        while let Some(mut session) = self.0.idle.pop() {
            if !session.has_current_format() {
                continue; // it is closed: the content has become empty, or has another encoding now
            }
            session.set_purpose(purpose);
            let mut lent = Lent::Session(session);
            let done = first(&mut lent);
            let is_busy = done.as_ref().is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy));
            if is_busy || !lent.was_changed() {
                return Some((lent, done));
            }
            // The session was changed after its last unit of work; its authorizer may even deny BEGIN.
        }
        None
    }

    fn open_to_lend(&self, purpose: Purpose) -> Result<Lent> {
        let opened = match self.database() {
            Database::InMemory(mount) => self.open_session(mount, purpose).map(Lent::Session),
            Database::OnFile(database) => database.connect(self.setup(), purpose).map(Lent::ToFile),
        };
        opened.map_err(|cause| Error::open_connection(&self.name(), cause))
    }

    fn open_session(&self, mount: &Mount, purpose: Purpose) -> Result<Session, NoConnection> {
        let before = mount.store.current();
        let mut session = Session::open(self.uri(), self.setup(), purpose)?;
        if before.ptr_eq(&mount.store.current()) && before.same_content(&mount.store.baseline()) {
            session.saw_baseline();
        }
        Ok(session)
    }

    /// Runs `work` in a unit of work that waits for the writer slot first (`BEGIN IMMEDIATE`). Commits if `work`
    /// returns `Ok`; rolls back if it returns `Err` or panics.
    ///
    /// ```
    /// # use rusqlite_fixtures::{Engine, Result};
    /// # fn main() -> Result<()> {
    /// let engine = Engine::new();
    /// engine.transaction(|work| {
    ///     work.execute_batch("CREATE TABLE account (id INTEGER PRIMARY KEY)")?;
    ///     work.execute("INSERT INTO account VALUES (1)", [])?;
    ///     Ok(())
    /// })
    /// # }
    /// ```
    ///
    /// [`try_transaction`](Engine::try_transaction) is for work that returns another error, `rusqlite::Error` included.
    ///
    /// # Errors
    /// The error of `work`, of [`begin`](Engine::begin) or of [`UnitOfWork::commit`].
    ///
    /// # Panics
    /// If `work` panics.
    #[track_caller]
    pub fn transaction<T>(&self, work: impl FnOnce(&mut UnitOfWork) -> Result<T>) -> Result<T> {
        self.transact(work, |error| error)
    }

    /// Like [`transaction`](Engine::transaction), for any error that implements `From<rusqlite::Error>`: the
    /// application's error, or `rusqlite::Error` itself.
    ///
    /// ```
    /// # use rusqlite_fixtures::{Engine, rusqlite};
    /// #[derive(Debug)]
    /// enum BankError {
    ///     Database(rusqlite::Error),
    ///     NoSuchAccount(i64),
    /// }
    ///
    /// impl From<rusqlite::Error> for BankError {
    ///     fn from(error: rusqlite::Error) -> BankError {
    ///         BankError::Database(error)
    ///     }
    /// }
    ///
    /// let engine = Engine::new();
    /// let schema = "CREATE TABLE account (id, balance)";
    /// engine.try_transaction(|work| work.execute_batch(schema))?;
    /// let result = engine.try_transaction(|work| {
    ///     match work.execute("UPDATE account SET balance = 0 WHERE id = ?1", [7])? {
    ///         0 => Err(BankError::NoSuchAccount(7)),
    ///         _ => Ok(()),
    ///     }
    /// });
    /// assert!(matches!(result, Err(BankError::NoSuchAccount(7))));
    /// # Ok::<(), rusqlite::Error>(())
    /// ```
    ///
    /// # Errors
    /// The error of `work`. An error of [`begin`](Engine::begin) or [`UnitOfWork::commit`] becomes a `rusqlite::Error`
    /// with the same result code and message; its [`ErrorKind`](crate::ErrorKind) is lost.
    ///
    /// # Panics
    /// If `work` panics.
    #[track_caller]
    pub fn try_transaction<T, E: From<rusqlite::Error>>(
        &self,
        work: impl FnOnce(&mut UnitOfWork) -> Result<T, E>,
    ) -> Result<T, E> {
        self.transact(work, |error| rusqlite::Error::from(error).into())
    }

    #[track_caller]
    fn transact<T, E>(
        &self,
        work: impl FnOnce(&mut UnitOfWork) -> Result<T, E>,
        convert: fn(Error) -> E,
    ) -> Result<T, E> {
        let mut unit_of_work = self.begin(TransactionBehavior::Immediate).map_err(convert)?;
        match work(&mut unit_of_work) {
            Ok(value) => unit_of_work.commit().map_err(convert).map(|()| value),
            Err(error) => {
                let _ = unit_of_work.rollback(); // the error is the one to report
                Err(error)
            }
        }
    }

    /// Sets how long a writer waits for the writer slot. The default is 5 s, or the number of seconds in the environment
    /// variable `RUSQLITE_FIXTURES_LOCK_TIMEOUT`, for example while a test runs in a debugger. The variable does not change
    /// a timeout that is set here or by [`Template::lock_timeout`](crate::Template::lock_timeout). Units of work,
    /// connections of [`connect`](Engine::connect) and [`restore`](Engine::restore) use the timeout from their next wait
    /// on. For an engine in a file, connections that are opened later use it.
    pub fn set_lock_timeout(&self, timeout: Duration) {
        match self.database() {
            Database::InMemory(mount) => mount.store.set_lock_timeout(timeout),
            Database::OnFile(database) => database.set_lock_timeout(timeout),
        }
    }

    /// Returns the committed content. Never waits, and takes the same time for any size, unless the engine is in a file,
    /// which has to be read.
    ///
    /// # Panics
    /// If the engine is in a file, and SQLite can't read it.
    pub fn snapshot(&self) -> Snapshot {
        self.database().snapshot()
    }

    #[cfg(feature = "proptest")]
    pub(crate) fn is_on_file(&self) -> bool {
        matches!(self.database(), Database::OnFile(_))
    }

    /// Returns a value that changes with each commit.
    #[cfg(feature = "proptest")]
    pub(crate) fn version(&self) -> Version {
        match self.database() {
            Database::InMemory(mount) => Version::InMemory(mount.store.current()),
            Database::OnFile(database) => Version::OnFile(database.version()),
        }
    }

    /// Replaces the content by the snapshot's, in the same time for any size. Waits for the writer slot as a writer
    /// does. Open connections stay open, and transactions that are reading continue to read the old content. For an engine
    /// in a file, the content is written, which takes time in proportion to its size.
    ///
    /// # Errors
    /// [`LockTimeout`](crate::ErrorKind::LockTimeout) if the writer slot was not free in time, or if the snapshot has pages
    /// of another size than an engine's file, and a connection has that file open; [`Sqlite`](crate::ErrorKind::Sqlite) if
    /// the file can't be written;
    /// [`OtherEncoding`](crate::ErrorKind::OtherEncoding) if the snapshot is UTF-16 and the engine is UTF-8, or the
    /// other way round: an open SQLite connection can't change its encoding.
    #[track_caller]
    pub fn restore(&self, snapshot: &Snapshot) -> Result<()> {
        self.restore_at(snapshot, Location::caller())
    }

    /// Restores the content that the engine was created with: none, or the content of its snapshot or template, or that of
    /// its file when it was opened.
    ///
    /// # Errors
    /// As [`restore`](Engine::restore).
    #[track_caller]
    pub fn reset(&self) -> Result<()> {
        self.restore_at(&self.baseline(), Location::caller())
    }

    /// Returns the content that a reset restores.
    pub(crate) fn baseline(&self) -> Snapshot {
        match self.database() {
            Database::InMemory(mount) => mount.store.baseline(),
            Database::OnFile(database) => database.baseline.clone(),
        }
    }

    /// Returns what was committed since the engine was created: the difference from the content that
    /// [`reset`](Engine::reset) restores. Compares as [`Snapshot::diff`], by connections with the template's
    /// [`on_connect`](crate::Template::on_connect).
    ///
    /// # Errors
    /// As [`Snapshot::diff`]; [`SetupFailed`](crate::ErrorKind::SetupFailed) if `on_connect` fails.
    ///
    /// # Panics
    /// As [`Engine::snapshot`]; if `on_connect` panics.
    pub fn changes(&self) -> Result<Changes> {
        compare(&self.baseline(), &self.snapshot(), self.setup())
    }

    fn restore_at(&self, snapshot: &Snapshot, caller: &'static Location<'static>) -> Result<()> {
        let restored = match self.database() {
            Database::InMemory(mount) => {
                let timeout = mount.store.lock_timeout();
                self.with_writer_slot(mount, Purpose::Restore(caller), timeout, |store| store.restore(snapshot))?
            }
            Database::OnFile(database) => database.restore(snapshot)?,
        };
        if restored { Ok(()) } else { Err(Error::other_encoding(&self.name())) }
    }

    /// Waits until no connection has a transaction that has written.
    pub(crate) fn wait_for_writers(&self, purpose: Purpose, timeout: Duration) -> Result<()> {
        match self.database() {
            Database::InMemory(mount) => self.with_writer_slot(mount, purpose, timeout, |_| ()),
            Database::OnFile(database) => database.wait_for_writers(timeout),
        }
    }

    fn with_writer_slot<T>(
        &self,
        mount: &Mount,
        purpose: Purpose,
        timeout: Duration,
        work: impl FnOnce(&Store) -> T,
    ) -> Result<T> {
        let (store, token) = (&mount.store, Token::new());
        let claim = Claim { token, purpose, read: None, reserve: None };
        mount.acquire(&claim, timeout).map_err(|refusal| Error::refused(&self.name(), &refusal))?;
        let result = work(store);
        store.release(token);
        Ok(result)
    }

    /// Creates an engine with the committed content of this one. The two engines share pages until one of them writes,
    /// so a fork takes the same time for any size. Its connections have the same setup as this engine's (by
    /// [`Template::on_connect`](crate::Template::on_connect)), and its clock shows the same time.
    ///
    /// The fork of an engine in a file is a copy in a temporary folder.
    ///
    /// # Panics
    /// If the engine is in a file that can't be read, or the copy can't be created.
    pub fn fork(&self) -> Engine {
        let backend = match self.database() {
            Database::InMemory(_) => Backend::Memory,
            Database::OnFile(_) => Backend::File,
        };
        let fork = created(Engine::cold(self.snapshot(), Name::Numbered, self.0.template.clone(), backend));
        if let (Some(clock), Some(clock_of_fork)) = (self.vfs_clock(), fork.vfs_clock()) {
            clock_of_fork.set(clock.time());
        }
        fork
    }

    /// Prints each statement that runs on this engine, on the thread that runs it, when it has ended: one line on stderr with
    /// its values, its rows and its time. The output of a test that fails shows them. With `RUSQLITE_FIXTURES_ECHO=1` in the
    /// environment, all engines do.
    ///
    /// This ends when the engine's last handle is dropped. For an engine in a file, statements of connections that are
    /// still open then are printed, too. SQLite's log goes to this crate from now on, as [`record`](Engine::record) says.
    pub fn echo(&self) {
        vfs::trace::hear_errors();
        self.recorder().set_echo(true);
    }

    pub(crate) fn begin_recording(&self, log: &Arc<Log>) {
        self.0.begin_recording(log);
    }

    pub(crate) fn end_recording(&self, log: &Arc<Log>) {
        self.recorder().remove(log);
    }

    /// Records all statements from now on, and has them checked when the last handle is dropped.
    pub(crate) fn watch(
        &self,
        check: impl FnOnce(String, Engine, Recorded) -> Option<String> + Send + Sync + UnwindSafe + RefUnwindSafe + 'static,
    ) {
        let log = Log::new();
        self.begin_recording(&log);
        let _ = self.0.watch.set(Watch { log, check: Box::new(check) });
    }

    /// Runs `work`, and exempts the statements that run on this engine meanwhile from the limits of
    /// [`Template::watch`](crate::Template::watch) and from [strict mode](Engine::strict), on all threads.
    ///
    /// # Panics
    /// If `work` panics.
    pub fn unwatched<T>(&self, work: impl FnOnce() -> T) -> T {
        let _paused = self.0.watch.get().map(|watch| watch.log.pause());
        let _lenient = self.0.strict_mode.get().map(|strict_mode| strict_mode.log.pause());
        work()
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        self.database().recorder()
    }

    /// Returns an engine in memory with this content, and with the template's connections.
    pub(crate) fn for_reading(content: &Snapshot, template: Option<&Arc<WarmPool>>) -> Engine {
        let mount = mount(content, Name::Numbered, template.map_or(&DEFAULT, |template| template.setup()));
        Engine::with_database(Database::InMemory(mount), Vec::new(), template.cloned(), Creation::of_copy(), false)
    }

    /// Returns an engine in memory with the committed content of this one, and with its template's connections.
    pub(crate) fn copy_in_memory(&self) -> Engine {
        self.0.copy_in_memory()
    }

    /// Closes this engine's idle connections now, and those in use when they are returned. The engine of a
    /// [`Template`](crate::Template) is not reused either. Use this if a test changes a connection in a way that can't
    /// be detected, for example by registering a new SQL function or collation.
    pub fn retire(&self) {
        drop(self.0.idle.close());
    }

    pub(crate) fn template(&self) -> Option<&Arc<WarmPool>> {
        self.0.template.as_ref()
    }

    pub(crate) fn name(&self) -> String {
        self.database().name()
    }

    /// Returns the clock by which SQL gets the time, if it does not get the system's.
    fn vfs_clock(&self) -> Option<&vfs::Clock> {
        match self.database() {
            Database::InMemory(mount) => mount.clock.as_deref(),
            Database::OnFile(database) => database.file.clock.as_deref(),
        }
    }

    /// Returns the error of a call that begins or ends a transaction.
    fn error_of(&self, cause: rusqlite::Error) -> Error {
        match self.database() {
            Database::InMemory(_) => cause.into(),
            Database::OnFile(database) => database.lock_error(cause),
        }
    }

    /// Returns whether the connection's main database is this engine.
    pub(crate) fn is_open_on(&self, connection: &Connection) -> bool {
        match self.database() {
            Database::InMemory(mount) => vfs::is_connected(connection, mount),
            Database::OnFile(database) => database.is_open_on(connection),
        }
    }

    fn database(&self) -> &Database {
        self.0.database()
    }

    pub(crate) fn setup(&self) -> &Setup {
        self.0.setup()
    }

    /// Returns whether the database goes with this handle. (A file at a path of the user's stays.)
    fn ends_with_this_handle(&self) -> bool {
        let is_private = match self.database() {
            Database::InMemory(_) => true,
            Database::OnFile(file) => file.file.is_temporary(),
        };
        is_private && Arc::strong_count(&self.0) == 1
    }

    /// Takes back a connection that was lent out, and keeps it for reuse if it can be made clean.
    pub(crate) fn recycle(&self, mut session: Session) {
        if session.make_clean() {
            self.0.idle.push(session);
        }
    }
}

/// Returns a store in memory with this content.
fn mount(content: &Snapshot, name: Name, setup: &Setup) -> Arc<Mount> {
    vfs::register();
    Mount::in_surroundings(content.clone(), name, setup.surroundings)
}

/// Returns an engine that was created.
///
/// # Panics
/// If it could not be.
fn created(engine: Result<Engine>) -> Engine {
    engine.unwrap_or_else(|error| panic!("{error}")).made_strict_if_asked()
}

impl Snapshot {
    /// Creates an engine with this content. Its [`reset`](Engine::reset) restores it.
    ///
    /// # Panics
    /// As [`Engine::new`].
    pub fn new_engine(&self) -> Engine {
        created(Engine::cold(self.clone(), Name::Numbered, None, Backend::of_engines()))
    }
}

impl Database {
    /// # Panics
    /// If the engine is in a file, and SQLite can't read it.
    fn snapshot(&self) -> Snapshot {
        self.try_snapshot().unwrap_or_else(|cause| panic!("can't take a snapshot of {}: {cause}", self.name()))
    }

    fn try_snapshot(&self) -> Result<Snapshot> {
        match self {
            Database::InMemory(mount) => Ok(mount.store.current()),
            Database::OnFile(database) => database.snapshot(),
        }
    }

    fn name(&self) -> String {
        match self {
            Database::InMemory(mount) => mount.name(),
            Database::OnFile(database) => database.file.name().to_owned(),
        }
    }

    fn recorder(&self) -> &Recorder {
        match self {
            Database::InMemory(mount) => &mount.recorder,
            Database::OnFile(database) => &database.file.recorder,
        }
    }
}

impl Inner {
    fn begin_recording(&self, log: &Arc<Log>) {
        vfs::trace::hear_errors();
        self.database().recorder().add(log.clone());
    }

    fn setup(&self) -> &Setup {
        self.template.as_ref().map_or(&DEFAULT, |template| template.setup())
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("an engine has its database until it is dropped")
    }

    fn copy_in_memory(&self) -> Engine {
        Engine::for_reading(&self.database().snapshot(), self.template.as_ref())
    }

    /// Checks what was recorded: the limits of the template, and strict mode. Returns a message if the test has to fail,
    /// unless it does already. Adds the recordings to `logs`.
    fn check(&mut self, logs: &mut Vec<Arc<Log>>) -> Option<String> {
        // A check may panic.
        logs.extend(self.watch.get().map(|watch| watch.log.clone()));
        logs.extend(self.strict_mode.get().map(|strict_mode| strict_mode.log.clone()));
        let (exceeded, found) = (self.end_watch(), self.end_strict());
        match (exceeded, found) {
            (Some(exceeded), Some(found)) => Some(format!("{exceeded}\n{found}")),
            (exceeded, found) => exceeded.or(found),
        }
    }

    /// Ends the recordings that would be checked.
    #[cfg(feature = "fixtures")]
    fn end_without_check(&mut self) {
        let logs =
            [self.watch.take().map(|watch| watch.log), self.strict_mode.take().map(|strict_mode| strict_mode.log)];
        logs.iter().flatten().for_each(|log| self.database().recorder().remove(log));
    }

    fn end_watch(&mut self) -> Option<String> {
        let Watch { log, check } = self.watch.take()?;
        if thread::panicking() {
            return None;
        }
        check(self.database().name(), self.copy_in_memory(), log.recorded())
    }

    /// Gives the store back to the template.
    fn recycle(&mut self, sessions: Vec<Session>, is_retired: bool) {
        let Some(Database::InMemory(mount)) = self.database.take() else { return };
        self.end_to_keep(&mount, Arc::strong_count(&mount) > 1 + sessions.len());
        if let Some(template) = self.template.as_ref().filter(|_| self.returns_store && !is_retired) {
            template.recycle(Warm { sessions, mount });
        }
    }
}

impl Drop for Engine {
    #[inline]
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.keep_because_of_panic();
        } else if failure::any_is_kept() {
            self.0.note_continues();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.keep_or_continue();
        let (sessions, is_retired) = (self.idle.take(), self.idle.is_closed());
        // A function of the template may panic.
        let mut logs = Vec::new();
        let panic = match catch_unwind(AssertUnwindSafe(|| self.check(&mut logs))) {
            Ok(None) => {
                self.note_dropped();
                None
            }
            Ok(Some(message)) => Some(self.fail(&message)),
            Err(panic) => Some(panic),
        };
        logs.extend(self.creation.log.take());
        logs.iter().for_each(|log| self.database().recorder().remove(log));
        self.recycle(sessions, is_retired);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Default for Engine {
    fn default() -> Engine {
        Engine::new()
    }
}

impl PartialEq for Engine {
    fn eq(&self, other: &Engine) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Engine {}

impl Hash for Engine {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("name", &self.name()).field("uri", &self.uri()).finish()
    }
}
