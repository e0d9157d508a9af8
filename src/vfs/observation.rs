//! Notes what other libraries do to their connections to an engine, to find out whether the connections are as they
//! were when they were opened. The connection's authorizer and the methods of its file note it, on its own thread.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use rusqlite::ffi::{self, sqlite3};

use super::watch::Watch;
use crate::content::Snapshot;
use crate::sync::Recovered;

/// The connections to an engine.
#[derive(Default)]
pub(crate) struct Observation {
    connections: Mutex<Vec<Arc<Observed>>>,
    /// The state that the connections should be in, once it was approved.
    initial: Mutex<Option<Initial>>,
    /// Whether a connection continues without being observed.
    has_lost_one: AtomicBool,
}

struct Initial {
    content: Snapshot,
    /// How the connections were set up: the hashes of their pragmas.
    setups: BTreeSet<u64>,
}

/// What is known of a connection. Its own thread writes it, any thread reads it.
#[derive(Default)]
pub(super) struct Observed {
    connection: Mutex<State>,
    /// Its authorizer, from the end of its opening on.
    watch: OnceLock<Arc<Watch>>,
    /// Whether it is a session, which its engine cleans.
    is_session: AtomicBool,
    /// Whether it is in a transaction that has read.
    reads: AtomicBool,
    /// Whether a file control, a fault or another schema may have changed it.
    is_altered: AtomicBool,
    /// Whether it has a statement that may change it when it runs, though the statement was compiled before.
    is_unpredictable: AtomicBool,
    /// A hash of the pragmas that may have changed it, in their order.
    pragmas: AtomicU64,
    /// That hash when the state of all connections was approved, if the connection was open then.
    approved_pragmas: OnceLock<u64>,
}

#[derive(Default)]
enum State {
    /// It is being opened. (Also if the engine is not its main database, but attached.)
    #[default]
    Opening,
    /// SQLite does not free it while the mutex is locked.
    Open(Pointer),
    /// SQLite is closing it. Statements may keep its file open for long (sqlite3_close_v2).
    Closing,
    /// It is one of several connections that share a cache and a file.
    Shared,
}

struct Pointer(*mut sqlite3);

// SAFETY: the pointer is passed to sqlite3_get_autocommit only, which any thread may call.
unsafe impl Send for Pointer {}

/// Why the connections are not at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Obstacle {
    pub(crate) reason: &'static str,
    /// Whether it may pass by itself, because a pool ends transactions and closes connections on threads of its own.
    pub(crate) may_pass: bool,
}

impl Obstacle {
    pub(crate) const fn lasting(reason: &'static str) -> Obstacle {
        Obstacle { reason, may_pass: false }
    }

    pub(crate) const fn passing(reason: &'static str) -> Obstacle {
        Obstacle { reason, may_pass: true }
    }
}

impl Observation {
    pub(super) fn add(&self) -> Arc<Observed> {
        let observed = Arc::new(Observed::default());
        self.connections().push(observed.clone());
        observed
    }

    /// Called when the connection's file is closed.
    pub(super) fn remove(&self, observed: &Arc<Observed>) {
        self.connections().retain(|other| !Arc::ptr_eq(other, observed));
        // sqlite3_deserialize closes the file of a connection that stays open, with another main database.
        if matches!(*observed.state(), State::Open(_) | State::Shared) && !observed.is_session() {
            self.has_lost_one.store(true, Ordering::Release);
        }
    }

    /// Notes that a connection begins to read this content. It keeps the default cache size of the first content that it
    /// reads. It may keep the schema too, until it runs a statement: SQLite compiles statements by the schema that it
    /// has, and not each error of the compiler makes it compare the cookies.
    pub(super) fn begin_read(&self, observed: &Observed, content: &Snapshot) {
        observed.reads.store(true, Ordering::Release);
        if self.initial().as_ref().is_some_and(|initial| !content.has_schema_of(&initial.content)) {
            observed.alter();
        }
    }

    /// Makes the current state of all connections their initial state, with this content.
    pub(crate) fn approve(&self, content: &Snapshot) {
        let connections = self.connections();
        let setups = connections.iter().map(|connection| connection.approve()).collect();
        *self.initial() = Some(Initial { content: content.clone(), setups });
    }

    /// Returns the number of sessions, if each other connection is as it was set up, and in no transaction.
    pub(crate) fn sessions_at_rest(&self) -> Result<usize, Obstacle> {
        if self.has_lost_one.load(Ordering::Acquire) {
            return Err(Obstacle::lasting("a connection has another main database now"));
        }
        let connections = self.connections();
        let (sessions, others): (Vec<_>, Vec<_>) = connections.iter().partition(|connection| connection.is_session());
        let initial = self.initial();
        others.iter().try_for_each(|connection| connection.check(initial.as_ref()))?;
        Ok(sessions.len())
    }

    fn initial(&self) -> MutexGuard<'_, Option<Initial>> {
        self.initial.lock().recovered()
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Arc<Observed>>> {
        self.connections.lock().recovered()
    }
}

impl Observed {
    /// Notes that the connection is open, and returns its new authorizer. Returns `None` if the file has a connection:
    /// then both share a cache.
    pub(super) fn open(&self, db: *mut sqlite3) -> Option<&Watch> {
        let mut state = self.state();
        if !matches!(*state, State::Opening) {
            *state = State::Shared;
            return None;
        }
        let watch = self.watch.get_or_init(|| Watch::observe(db));
        *state = State::Open(Pointer(db));
        Some(watch)
    }

    /// Called when SQLite begins to close the connection. When this returns, no other thread uses it.
    pub(super) fn close(&self) {
        let mut state = self.state();
        if !matches!(*state, State::Shared) {
            *state = State::Closing;
        }
    }

    pub(super) fn set_session(&self) {
        self.is_session.store(true, Ordering::Release);
    }

    pub(super) fn end_read(&self) {
        self.reads.store(false, Ordering::Release);
    }

    pub(super) fn alter(&self) {
        self.is_altered.store(true, Ordering::Release);
    }

    /// Notes that it has compiled a statement that may change it each time that it runs.
    pub(super) fn make_unpredictable(&self) {
        self.is_unpredictable.store(true, Ordering::Release);
    }

    pub(super) fn note_pragma(&self, name: &str, argument: &str) {
        let mut hash = DefaultHasher::new();
        (self.pragmas.load(Ordering::Acquire), name.to_ascii_lowercase(), argument).hash(&mut hash);
        self.pragmas.store(hash.finish(), Ordering::Release);
    }

    fn is_session(&self) -> bool {
        self.is_session.load(Ordering::Acquire)
    }

    /// Forgets what was done to it until now, and returns the hash of its pragmas.
    fn approve(&self) -> u64 {
        self.is_altered.store(false, Ordering::Release);
        self.watch.get().into_iter().for_each(|watch| watch.restart());
        *self.approved_pragmas.get_or_init(|| self.pragmas.load(Ordering::Acquire))
    }

    /// Checks that nothing was done to it that may have left something behind, apart from the pragmas that are noted,
    /// and that it is in no transaction.
    fn check(&self, initial: Option<&Initial>) -> Result<(), Obstacle> {
        let has_virtual_tables = initial.is_some_and(|initial| initial.content.has_virtual_tables());
        if has_virtual_tables && self.watch.get().is_some_and(|watch| watch.has_seen_fts5_settings()) {
            let reason = "a connection may have changed settings of FTS5: it has written to a table `…_config`";
            return Err(Obstacle::lasting(reason));
        }
        let saw_unpredictable = self.watch.get().is_some_and(|watch| watch.has_seen_unpredictable());
        if saw_unpredictable || self.is_unpredictable.load(Ordering::Acquire) {
            let reason = "a connection has used a temporary table or an attached database, or a pragma or another \
                          statement that may change it when it runs again";
            return Err(Obstacle::lasting(reason));
        }
        if self.watch.get().is_some_and(|watch| watch.saw_schema_change()) {
            return Err(Obstacle::lasting("a connection has changed the schema"));
        }
        if self.is_altered.load(Ordering::Acquire)
            || self.watch.get().is_some_and(|watch| watch.saw_statistics_change())
        {
            let reason =
                "a connection has changed the planner's statistics, has read another schema, or a call to it failed";
            return Err(Obstacle::lasting(reason));
        }
        let is_in_transaction = match *self.state() {
            // SAFETY: the connection is open as long as its state is locked. "If another thread changes the autocommit
            // status of the database connection while this routine is running, then the return value is undefined"
            // (sqlite3_get_autocommit), so the call is allowed.
            State::Open(Pointer(db)) => unsafe { ffi::sqlite3_get_autocommit(db) == 0 },
            State::Opening => {
                return Err(Obstacle::passing("a connection is being opened, or the engine is attached to one"));
            }
            State::Closing => {
                let reason = "a connection is being closed, or has statements that were not finalized";
                return Err(Obstacle::passing(reason));
            }
            State::Shared => return Err(Obstacle::lasting("several connections share a cache")),
        };
        if is_in_transaction || self.reads.load(Ordering::Acquire) {
            let reason = "a connection is in a transaction, or has a statement that was not reset";
            return Err(Obstacle::passing(reason));
        }
        initial.map_or(Ok(()), |initial| self.check_setup(initial))
    }

    /// Checks that its pragmas are those that it had, or if it was opened later, those of one of the others.
    fn check_setup(&self, initial: &Initial) -> Result<(), Obstacle> {
        const REASON: &str = "a connection has other pragmas than when the value was made";
        let pragmas = self.pragmas.load(Ordering::Acquire);
        match self.approved_pragmas.get() {
            Some(approved) if *approved != pragmas => Err(Obstacle::lasting(REASON)),
            None if !initial.setups.contains(&pragmas) => Err(Obstacle::passing(REASON)), // it may be set up now
            _ => Ok(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.connection.lock().recovered()
    }
}
