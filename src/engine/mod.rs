//! Engines: what users hold, and the connections that they lend out.
//!
//! * `Engine` (here): a handle on one database. `unit_of_work` and `pooled_connection` are the two forms in which it
//!   lends out a connection, by way of one `lease`, which gives the connection back.
//! * `idle`: the connections of an engine that wait for the next unit of work, and how many may.
//! * `warm_pool`: the stores of a template, with their connections, that wait for the next engine.
//! * `registry`: the engines that the process shares, one for each `url`.
//!
//! It uses `vfs`, `content` and the ground.
//!
//! Invariants:
//! * A connection that is lent out again is as a new one, or it is closed (`Session::make_clean`).
//! * A store goes back to its warm pool only when no connection to it is left elsewhere.
//! * No user code runs while a lock of these modules is held: sessions are closed, and engines created, outside of it.

mod idle;
mod lease;
mod pooled_connection;
mod registry;
mod unit_of_work;
mod url;
mod warm_pool;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::Location;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use self::idle::{Budget, Idle};
use self::lease::Lease;
pub use self::pooled_connection::PooledConnection;
pub use self::registry::{MEMORY_ENGINES, MemoryEngines};
pub use self::unit_of_work::UnitOfWork;
pub use self::url::DatabaseUrl;
use self::warm_pool::Warm;
pub(crate) use self::warm_pool::WarmPool;
use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::content::store::{Claim, Token};
use crate::error::{Error, Result};
use crate::vfs::{self, Mount, Name, Session, Setup};

/// One SQLite database in memory, which any number of threads and connections share.
///
/// An `Engine` is a handle: a clone is another one on the same database, and two are equal when they are. The database
/// is freed when the last handle and the last connection are gone. ([`MEMORY_ENGINES`](crate::MEMORY_ENGINES) holds a
/// handle on each shared engine.)
///
/// Readers never wait and never see half of a commit: each transaction reads what was committed when it began to read.
/// Writers take turns, in order of arrival. A transaction that has read and then wants to write what another has
/// replaced meanwhile fails with [`SerializationFailure`](crate::ErrorKind::SerializationFailure), so that transactions
/// are SERIALIZABLE; one that begins IMMEDIATE never does.
///
/// ```
/// # use rusqlite_fixtures::{Engine, Result};
/// # fn main() -> Result<()> {
/// let engine = Engine::new();
/// let schema = "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)";
/// engine.transaction(|work| work.execute_batch(schema))?;
/// let work = engine.unit_of_work()?;
/// work.execute("INSERT INTO account VALUES (1, 100)", [])?;
/// work.commit()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    /// Connections that can be used again. Closed before `mount` is dropped, though either order would do: each of them
    /// holds the mount too. Closed for good (`Idle::close`) when the engine is retired.
    idle: Arc<Idle<Session>>,
    /// `None` only within `drop`.
    mount: Option<Arc<Mount>>,
    uri: OnceLock<String>,
    /// The template that it comes from.
    template: Option<Arc<WarmPool>>,
    /// Whether the store goes back to the template with the last handle. That of a shared engine or a fork does not.
    goes_back: bool,
}

/// How many connections wait for the next unit of work: in one engine, and in all engines that somebody has. Each takes some
/// 100 KB, and a suite may have thousands of engines.
static IDLE: Budget<Session> = Budget::new(32, 256);

impl Engine {
    /// A new engine of your own, empty.
    ///
    /// # Panics
    /// When SQLite can't be initialised.
    pub fn new() -> Engine {
        Engine::cold(Snapshot::empty(), Name::Numbered, None)
    }

    /// An empty engine of this name.
    pub(crate) fn named(name: String) -> Engine {
        Engine::cold(Snapshot::empty(), Name::Given(name), None)
    }

    /// An engine of a template, with connections that are open already, if one is waiting.
    pub(crate) fn of(template: &Arc<WarmPool>) -> Engine {
        vfs::register();
        Engine::assemble(template.take(), Some(template.clone()), true)
    }

    /// An engine of a template that has this name, and does not go back to it.
    pub(crate) fn named_of(name: String, template: &Arc<WarmPool>) -> Engine {
        Engine::cold(template.content().clone(), Name::Given(name), Some(template.clone()))
    }

    fn cold(content: Snapshot, name: Name, template: Option<Arc<WarmPool>>) -> Engine {
        vfs::register();
        Engine::assemble(Warm { sessions: Vec::new(), mount: Mount::new(content, name) }, template, false)
    }

    fn assemble(Warm { sessions, mount }: Warm, template: Option<Arc<WarmPool>>, goes_back: bool) -> Engine {
        Engine(Arc::new(Inner {
            idle: Idle::new(&IDLE, sessions),
            mount: Some(mount),
            uri: OnceLock::new(),
            template,
            goes_back,
        }))
    }

    /// A URI that opens this database from anything in the process that uses the same SQLite library: rusqlite, sqlx,
    /// diesel, r2d2. Once the engine is gone, opening it is an error.
    ///
    /// A connection that is opened so takes turns with all others, and waits as its own `busy_timeout` says. A busy handler
    /// that sleeps by itself keeps its place in the queue, and may be waited for up to twice as long as it sleeps.
    pub fn uri(&self) -> &str {
        self.0.uri.get_or_init(|| vfs::uri(self.mount()))
    }

    /// A connection of its own, for code under test that wants one. It waits for its turn to write as units of work do,
    /// until its `busy_timeout` is set.
    ///
    /// # Errors
    /// [`Sqlite`](crate::ErrorKind::Sqlite) when SQLite can't open a connection, as for want of memory;
    /// [`SetupFailed`](crate::ErrorKind::SetupFailed) when the template's
    /// [`on_connect`](crate::Template::on_connect) fails.
    #[track_caller]
    pub fn connect(&self) -> Result<Connection> {
        let purpose = Purpose::Connection(Location::caller());
        vfs::connect(self.uri(), self.setup(), purpose).map_err(|cause| Error::open_connection(&self.name(), cause))
    }

    /// A unit of work: `BEGIN DEFERRED`, which takes no lock until it is used, and holds none up while it only reads.
    ///
    /// # Errors
    /// [`Sqlite`](crate::ErrorKind::Sqlite) when SQLite can't open a connection, as for want of memory;
    /// [`SetupFailed`](crate::ErrorKind::SetupFailed) when the template's [`on_connect`](crate::Template::on_connect) fails;
    /// [`LockTimeout`](crate::ErrorKind::LockTimeout) when [`Fault::Busy`](crate::faults::Fault::Busy) keeps it from that.
    #[track_caller]
    pub fn unit_of_work(&self) -> Result<UnitOfWork> {
        self.begin(TransactionBehavior::Deferred)
    }

    /// A unit of work that begins as `behavior` says. `Immediate` waits for its turn to write right away; `Exclusive` is
    /// no more than that here, for readers are never kept out.
    ///
    /// # Errors
    /// [`LockTimeout`](crate::ErrorKind::LockTimeout) when the turn to write did not come in time (see
    /// [`set_lock_timeout`](Engine::set_lock_timeout)); otherwise as [`unit_of_work`](Engine::unit_of_work).
    #[track_caller]
    pub fn begin(&self, behavior: TransactionBehavior) -> Result<UnitOfWork> {
        self.begin_as(Purpose::UnitOfWork(Location::caller()), |session| session.begin(behavior))
    }

    /// `begin`, by a connection that waits as [`set_lock_timeout`](Engine::set_lock_timeout) says whatever `on_connect` has set.
    #[cfg(feature = "proptest")]
    #[track_caller]
    pub(crate) fn begin_in_turn(&self, behavior: TransactionBehavior) -> Result<UnitOfWork> {
        self.begin_as(Purpose::UnitOfWork(Location::caller()), |session| {
            vfs::set_busy_handler(session.connection());
            session.begin(behavior)
        })
    }

    fn begin_as(&self, purpose: Purpose, begin: impl Fn(&mut Session) -> rusqlite::Result<()>) -> Result<UnitOfWork> {
        let (lease, begun) = self.lease(purpose, begin)?;
        begun?;
        Ok(UnitOfWork::begun(lease))
    }

    /// One of the connections that units of work use, in no transaction: for code under test that begins and commits its
    /// own.
    ///
    /// # Errors
    /// As [`unit_of_work`](Engine::unit_of_work).
    #[track_caller]
    pub fn pooled_connection(&self) -> Result<PooledConnection> {
        let (lease, probed) = self.lease(Purpose::Connection(Location::caller()), Session::probe)?;
        probed?;
        Ok(PooledConnection::new(lease))
    }

    /// Lends out an idle session or a new one, with the result of the first thing that is done with it.
    fn lease(
        &self,
        purpose: Purpose,
        first: impl Fn(&mut Session) -> rusqlite::Result<()>,
    ) -> Result<(Lease, rusqlite::Result<()>)> {
        if let Some((session, done)) = self.idle_session(purpose, &first) {
            return Ok((Lease::new(self.clone(), session), done));
        }
        let mut session = self.open_session(purpose)?;
        let done = first(&mut session);
        Ok((Lease::new(self.clone(), session), done))
    }

    fn idle_session(
        &self,
        purpose: Purpose,
        first: impl Fn(&mut Session) -> rusqlite::Result<()>,
    ) -> Option<(Session, rusqlite::Result<()>)> {
        while let Some(mut session) = self.0.idle.pop() {
            if !session.has_current_format() {
                continue; // it is closed: the content has become empty, or is in another encoding now
            }
            session.set_purpose(purpose);
            let done = first(&mut session);
            let is_busy = done.as_ref().is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy));
            if is_busy || !session.was_changed() {
                return Some((session, done));
            }
            // It was changed after the last unit of work, such that even BEGIN may have been forbidden.
        }
        None
    }

    fn open_session(&self, purpose: Purpose) -> Result<Session> {
        let before = self.snapshot();
        let opened = Session::open(self.uri(), self.setup(), purpose);
        let mut session = opened.map_err(|cause| Error::open_connection(&self.name(), cause))?;
        if before.is(&self.snapshot()) && before.same_content(&self.mount().store.baseline()) {
            session.saw_baseline();
        }
        Ok(session)
    }

    /// Runs `work` in a unit of work that waits for its turn to write first (`BEGIN IMMEDIATE`), and commits it when it
    /// returns `Ok`. When it returns `Err` or panics, all of it is rolled back.
    ///
    /// # Errors
    /// What `work` returns, and what [`begin`](Engine::begin) and [`UnitOfWork::commit`] do.
    ///
    /// # Panics
    /// When `work` does.
    #[track_caller]
    pub fn transaction<T, E: From<Error>>(&self, work: impl FnOnce(&mut UnitOfWork) -> Result<T, E>) -> Result<T, E> {
        let mut unit_of_work = self.begin(TransactionBehavior::Immediate)?;
        let value = work(&mut unit_of_work)?;
        unit_of_work.commit()?;
        Ok(value)
    }

    /// Sets how long a writer waits for its turn, 5 s unless set. It counts for units of work, for connections of
    /// [`connect`](Engine::connect) and for [`restore`](Engine::restore), from their next wait on.
    pub fn set_lock_timeout(&self, timeout: Duration) {
        self.mount().store.set_lock_timeout(timeout);
    }

    /// What is committed now. Never waits, and takes the same time whatever the size.
    pub fn snapshot(&self) -> Snapshot {
        self.mount().store.current()
    }

    /// Goes to what `snapshot` holds, in the same time whatever the size. It waits for its turn as a writer does.
    /// Transactions that are reading go on with what they read; connections may stay open.
    ///
    /// # Errors
    /// [`LockTimeout`](crate::ErrorKind::LockTimeout) when the turn to write did not come in time;
    /// [`OtherEncoding`](crate::ErrorKind::OtherEncoding) when the snapshot is UTF-16 and the engine is UTF-8, or the
    /// other way round, which SQLite does not allow a connection to see.
    #[track_caller]
    pub fn restore(&self, snapshot: &Snapshot) -> Result<()> {
        self.restore_at(snapshot, Location::caller())
    }

    /// Goes back to what the engine was created with: empty, or the snapshot that it was made of.
    ///
    /// # Errors
    /// As [`restore`](Engine::restore).
    #[track_caller]
    pub fn reset(&self) -> Result<()> {
        self.restore_at(&self.mount().store.baseline(), Location::caller())
    }

    fn restore_at(&self, snapshot: &Snapshot, caller: &'static Location<'static>) -> Result<()> {
        let (store, token) = (&self.mount().store, Token::new());
        let claim = Claim { token, purpose: Purpose::Restore(caller), read: None, reserve: None };
        self.mount().acquire(&claim, store.lock_timeout()).map_err(|refusal| Error::refused(&self.name(), &refusal))?;
        let restored = store.restore(snapshot);
        store.release(token);
        if restored { Ok(()) } else { Err(Error::other_encoding(&self.name())) }
    }

    /// A new engine that starts with what is committed in this one now. It shares the pages until either writes, so it
    /// takes the same time whatever the size. Its connections are set up as this one's are (by
    /// [`Template::on_connect`](crate::Template::on_connect)).
    pub fn fork(&self) -> Engine {
        Engine::cold(self.snapshot(), Name::Numbered, self.0.template.clone())
    }

    /// Has the connections of units of work closed when they end, from now on, rather than used again; and an engine of
    /// a [`Template`](crate::Template) not used again either. For a test that does to a connection what can't be told
    /// afterwards, as registering a new SQL function or collation.
    pub fn retire(&self) {
        drop(self.0.idle.close());
    }

    pub(crate) fn template(&self) -> Option<&Arc<WarmPool>> {
        self.0.template.as_ref()
    }

    pub(crate) fn name(&self) -> String {
        self.mount().name()
    }

    fn mount(&self) -> &Arc<Mount> {
        self.0.mount.as_ref().expect("an engine has its store until it is dropped")
    }

    pub(crate) fn setup(&self) -> &Setup {
        /// Of an engine that is no template's.
        static DEFAULT: Setup = Setup::DEFAULT;
        self.template().map_or(&DEFAULT, |template| template.setup())
    }

    /// Takes back the connection of a unit of work that has ended, unless something is left in it of that.
    pub(crate) fn take_back(&self, mut session: Session) {
        if session.make_clean() {
            self.0.idle.push(session);
        }
    }
}

impl Snapshot {
    /// A new engine with this content, to which its [`reset`](Engine::reset) goes back.
    ///
    /// # Panics
    /// When SQLite can't be initialised.
    pub fn engine(&self) -> Engine {
        Engine::cold(self.clone(), Name::Numbered, None)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let (sessions, is_retired) = (self.idle.take(), self.idle.is_closed());
        let Some(mount) = self.mount.take() else { return };
        if let Some(template) = self.template.as_ref().filter(|_| self.goes_back && !is_retired) {
            template.take_back(Warm { sessions, mount });
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
