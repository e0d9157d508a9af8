use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use crate::error::{Error, Result};
use crate::origin::Purpose;
use crate::pool::{Pool, Warm};
use crate::pooled_connection::PooledConnection;
use crate::registry::MEMORY_ENGINES;
use crate::snapshot::Snapshot;
use crate::store::{Claim, Token};
use crate::template::Template;
use crate::unit_of_work::UnitOfWork;
use crate::vfs::{self, Mount, Name, Session, Setup};

/// One SQLite database in memory, which any number of threads and connections share.
///
/// An `Engine` is a handle: a clone is another one on the same database, and two are equal when they are. The database
/// is freed when the last handle and the last connection are gone. ([`MEMORY_ENGINES`] holds a handle on each shared
/// engine.)
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
/// engine.transaction(|work| work.execute_batch("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)"))?;
/// let work = engine.unit_of_work()?;
/// work.execute("INSERT INTO account VALUES (1, 100)", [])?;
/// work.commit()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    /// Connections whose last unit of work has left nothing behind. Closed before `mount` is let go of, though either
    /// order would do: each of them holds the mount too.
    idle: Mutex<Vec<Session>>,
    /// `None` only within `drop`.
    mount: Option<Arc<Mount>>,
    uri: OnceLock<String>,
    /// Of the template that it comes from.
    pool: Option<Arc<Pool>>,
    /// Whether the store goes back to the pool with the last handle. That of a shared engine or a fork does not.
    is_pooled: bool,
    /// Whether its connections are closed rather than used again.
    is_retired: AtomicBool,
}

/// How many connections an engine keeps for its next units of work.
const MAX_IDLE: usize = 32;

/// How many connections the engines that somebody has keep together. Beyond, they are closed, since each takes some 100 KB,
/// and a suite may have thousands of engines.
const MAX_IDLE_IN_ALL: usize = 128;

static IDLE_IN_ALL: AtomicUsize = AtomicUsize::new(0);

impl Engine {
    /// A new engine of your own, empty.
    ///
    /// # Panics
    /// When SQLite can't be initialised.
    pub fn new() -> Engine {
        Engine::cold(Snapshot::empty(), Name::Numbered, None)
    }

    /// The engine that the whole process shares under this database URL: the first call makes it, empty, and however
    /// many threads ask at once, they get the same one. [`DatabaseUrl`](crate::DatabaseUrl) lists what a URL can be.
    ///
    /// Under a runner that starts a process per test, as cargo-nextest does, tests don't share engines.
    ///
    /// # Errors
    /// [`NotInMemory`](crate::ErrorKind::NotInMemory) and [`InvalidUrl`](crate::ErrorKind::InvalidUrl), as parsing a
    /// `DatabaseUrl`; [`RecursiveCreation`](crate::ErrorKind::RecursiveCreation) inside of the creation of the same one.
    pub fn shared(url: impl AsRef<str>) -> Result<Engine> {
        MEMORY_ENGINES.get_or_create_spelled(url.as_ref())
    }

    /// The engine that the whole process shares under this database URL, made of a template by the first who asks.
    /// [`Template::empty`] asks for nothing.
    ///
    /// # Errors
    /// As [`shared`](Engine::shared) and [`Template::engine`]; [`OtherTemplate`](crate::ErrorKind::OtherTemplate) when the
    /// engine of this URL is there, and was made of another template or of none.
    pub fn shared_with(url: impl AsRef<str>, template: &Template) -> Result<Engine> {
        if template.is_empty() {
            return Engine::shared(url);
        }
        MEMORY_ENGINES.get_or_create_of(&url.as_ref().parse()?, template.pool()?)
    }

    /// An empty engine of this name.
    pub(crate) fn named(name: String) -> Engine {
        Engine::cold(Snapshot::empty(), Name::Given(name), None)
    }

    /// An engine of a template, with connections that are open already, if there is one.
    pub(crate) fn pooled(pool: &Arc<Pool>) -> Engine {
        vfs::register();
        Engine::assemble(pool.take(), Some(pool.clone()), true)
    }

    /// An engine with a template's content and setup that does not go back to the pool.
    pub(crate) fn named_of_pool(name: String, pool: &Arc<Pool>) -> Engine {
        Engine::cold(pool.content().snapshot.clone(), Name::Given(name), Some(pool.clone()))
    }

    fn cold(content: Snapshot, name: Name, pool: Option<Arc<Pool>>) -> Engine {
        vfs::register();
        Engine::assemble(Warm { sessions: Vec::new(), mount: Mount::new(content, name) }, pool, false)
    }

    fn assemble(Warm { sessions, mount }: Warm, pool: Option<Arc<Pool>>, is_pooled: bool) -> Engine {
        IDLE_IN_ALL.fetch_add(sessions.len(), Ordering::Relaxed);
        Engine(Arc::new(Inner {
            idle: Mutex::new(sessions),
            mount: Some(mount),
            uri: OnceLock::new(),
            pool,
            is_pooled,
            is_retired: AtomicBool::new(false),
        }))
    }

    /// A URI that opens this database from anything in the process that uses the same SQLite library: rusqlite, sqlx,
    /// diesel, r2d2. Once the engine is gone, opening it is an error.
    ///
    /// A connection that is opened so takes turns with all others, and waits as its own `busy_timeout` says.
    pub fn uri(&self) -> &str {
        self.0.uri.get_or_init(|| vfs::uri(self.mount()))
    }

    /// A connection of its own, for code under test that wants one. It waits for its turn to write as units of work do,
    /// until its `busy_timeout` is set.
    ///
    /// # Errors
    /// [`Sqlite`](crate::ErrorKind::Sqlite) when SQLite can't open a connection, as for want of memory.
    #[track_caller]
    pub fn connect(&self) -> Result<Connection> {
        let purpose = Purpose::Connection(Location::caller());
        vfs::connect(self.uri(), self.setup(), purpose).map_err(|cause| Error::open_connection(&self.name(), cause))
    }

    /// A unit of work: `BEGIN DEFERRED`, which takes no lock until it is used, and holds none up while it only reads.
    ///
    /// # Errors
    /// [`Sqlite`](crate::ErrorKind::Sqlite) when SQLite can't open a connection, as for want of memory.
    #[track_caller]
    pub fn unit_of_work(&self) -> Result<UnitOfWork> {
        self.begin(TransactionBehavior::Deferred)
    }

    /// A unit of work that begins as `behavior` says. `Immediate` waits for its turn to write right away; `Exclusive` is
    /// no more than that here, for readers are never kept out.
    ///
    /// # Errors
    /// [`LockTimeout`](crate::ErrorKind::LockTimeout) when the turn to write did not come in time (see
    /// [`set_lock_timeout`](Engine::set_lock_timeout)); [`Sqlite`](crate::ErrorKind::Sqlite) when SQLite can't open a
    /// connection.
    #[track_caller]
    pub fn begin(&self, behavior: TransactionBehavior) -> Result<UnitOfWork> {
        let purpose = Purpose::UnitOfWork(Location::caller());
        let (session, begun) = self.session(purpose, |session| session.begin(behavior))?;
        let unit_of_work = UnitOfWork::begun(self.clone(), session); // which gives the session back, if it has not begun
        begun?;
        Ok(unit_of_work)
    }

    /// One of the connections that units of work use, in no transaction: for code under test that begins and commits its
    /// own.
    ///
    /// # Errors
    /// [`Sqlite`](crate::ErrorKind::Sqlite) when SQLite can't open a connection, as for want of memory.
    #[track_caller]
    pub fn pooled_connection(&self) -> Result<PooledConnection> {
        let (session, probed) = self.session(Purpose::Connection(Location::caller()), Session::probe)?;
        let connection = PooledConnection::new(self.clone(), session);
        probed?;
        Ok(connection)
    }

    /// A session that was idle, or else a new one, and what came of the first thing that is done with it.
    fn session(
        &self,
        purpose: Purpose,
        first: impl Fn(&mut Session) -> rusqlite::Result<()>,
    ) -> Result<(Session, rusqlite::Result<()>)> {
        while let Some(mut session) = self.take_idle() {
            session.set_purpose(purpose);
            let done = first(&mut session);
            let is_busy = done.as_ref().is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy));
            if is_busy || !session.was_changed() {
                return Ok((session, done));
            }
            // It was changed after the last unit of work, such that even BEGIN may have been forbidden.
        }
        let opened = Session::open(self.uri(), self.setup(), purpose);
        let mut session = opened.map_err(|cause| Error::open_connection(&self.name(), cause))?;
        session.set_purpose(purpose);
        let done = first(&mut session);
        Ok((session, done))
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
        store.acquire(&claim, store.lock_timeout()).map_err(|refusal| Error::refused(&self.name(), &refusal))?;
        let restored = store.restore(snapshot);
        store.release(token);
        if restored { Ok(()) } else { Err(Error::other_encoding(&self.name())) }
    }

    /// A new engine that starts with what is committed in this one now. It shares the pages until either writes, so it
    /// takes the same time whatever the size. Its connections are set up as this one's are (by
    /// [`Template::on_connect`]).
    pub fn fork(&self) -> Engine {
        Engine::cold(self.snapshot(), Name::Numbered, self.0.pool.clone())
    }

    /// Has the connections of units of work closed when they end, from now on, rather than used again; and an engine of
    /// a [`Template`] not used again either. For a test that does to a connection what can't be told
    /// afterwards, as registering a new SQL function or collation.
    pub fn retire(&self) {
        self.0.is_retired.store(true, Ordering::Relaxed);
        let idle = std::mem::take(&mut *self.idle());
        IDLE_IN_ALL.fetch_sub(idle.len(), Ordering::Relaxed);
        drop(idle); // not under the lock, for to close connections takes time
    }

    /// The template that it comes from, by what that has become.
    pub(crate) fn pool(&self) -> Option<&Arc<Pool>> {
        self.0.pool.as_ref()
    }

    pub(crate) fn name(&self) -> String {
        self.mount().name()
    }

    fn mount(&self) -> &Arc<Mount> {
        self.0.mount.as_ref().expect("an engine has its store until it is dropped")
    }

    fn setup(&self) -> &Setup {
        /// Of an engine that is no template's.
        static DEFAULT: Setup = Setup::DEFAULT;
        self.pool().map_or(&DEFAULT, |pool| pool.setup())
    }

    /// Takes back the connection of a unit of work that has ended, unless something is left in it of that.
    pub(crate) fn take_back(&self, mut session: Session) {
        let is_wanted =
            !self.0.is_retired.load(Ordering::Relaxed) && IDLE_IN_ALL.load(Ordering::Relaxed) < MAX_IDLE_IN_ALL;
        if is_wanted && session.make_clean() {
            let mut idle = self.idle();
            if idle.len() < MAX_IDLE {
                IDLE_IN_ALL.fetch_add(1, Ordering::Relaxed);
                idle.push(session);
            }
        }
    }

    fn take_idle(&self) -> Option<Session> {
        let session = self.idle().pop()?;
        IDLE_IN_ALL.fetch_sub(1, Ordering::Relaxed);
        Some(session)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        // Only ever pushed to and popped from: nothing can be half done.
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
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
        let sessions = std::mem::take(self.idle.get_mut().unwrap_or_else(PoisonError::into_inner));
        IDLE_IN_ALL.fetch_sub(sessions.len(), Ordering::Relaxed);
        if let (Some(mount), Some(pool), true, false) =
            (self.mount.take(), &self.pool, self.is_pooled, *self.is_retired.get_mut())
        {
            pool.take_back(Warm { sessions, mount });
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
