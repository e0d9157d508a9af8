//! Notes what other libraries do to their connections to an engine, to find out whether the connections are as they
//! were when they were opened. The connection's authorizer and the methods of its file note it, on its own thread.

use std::collections::BTreeSet;
use std::fmt;
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
    has_lost_a_connection: AtomicBool,
}

struct Initial {
    content: Snapshot,
    /// How the connections were set up: the hashes of their pragmas.
    setups: BTreeSet<u64>,
}

/// What is known of a connection. Its own thread records in it. `approve`, on any thread, clears the record.
#[derive(Default)]
pub(super) struct Observed {
    connection: Mutex<State>,
    /// Its authorizer, from the end of its opening on.
    watch: OnceLock<Arc<Watch>>,
    /// Whether it is a session, which its engine cleans.
    is_session: AtomicBool,
    /// Whether it is in a transaction that has read.
    reads: AtomicBool,
    /// What may have changed it, beside statements.
    altered_by: Mutex<Option<&'static str>>,
    /// Whether it has compiled a pragma that changes it again at each run, unseen by the authorizer.
    has_outside_effects: AtomicBool,
    /// A hash of the pragmas that may have changed it, in their order.
    pragmas: AtomicU64,
    /// That hash when the state of all connections was approved, if the connection was open then.
    approved_pragmas: Mutex<Option<u64>>,
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

// SAFETY: the pointer is used in `is_in_transaction` only, which says why another thread may do that.
unsafe impl Send for Pointer {}

/// Why the connections are not at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Obstacle {
    reason: &'static str,
    /// Whether it may end soon: a pool ends transactions, opens and closes connections on threads of its own.
    pub(crate) is_transient: bool,
    /// Whether it was there when the value was made.
    is_of_making: bool,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_of_making { "when the value was made, " } else { "" })?;
        f.write_str(self.reason)
    }
}

impl Obstacle {
    pub(crate) const fn permanent(reason: &'static str) -> Obstacle {
        Obstacle { reason, is_transient: false, is_of_making: false }
    }

    pub(crate) const fn transient(reason: &'static str) -> Obstacle {
        Obstacle { reason, is_transient: true, is_of_making: false }
    }
}

impl Obstacle {
    /// Returns the same obstacle as one that was there when the value was made, and remains.
    pub(crate) fn of_making(self) -> Obstacle {
        Obstacle { is_transient: false, is_of_making: true, ..self }
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
        // sqlite3_deserialize closes the file of a connection that stays open, with another main database.
        if matches!(*observed.state(), State::Open(_) | State::Shared) && !observed.is_session() {
            self.has_lost_a_connection.store(true, Ordering::Release);
        }
        self.connections().retain(|other| !Arc::ptr_eq(other, observed));
    }

    /// Notes that a connection begins to read this content. It keeps the default cache size of the first content that it
    /// reads. It may keep the schema too, until it runs a statement: SQLite compiles statements by the schema that it
    /// has, and not each error of the compiler makes it compare the cookies.
    pub(super) fn begin_read(&self, observed: &Observed, content: &Snapshot) {
        observed.reads.store(true, Ordering::Release);
        if self.initial().as_ref().is_some_and(|initial| !content.has_schema_of(&initial.content)) {
            observed.alter("a connection has read another schema");
        }
    }

    /// Makes the current state of all connections their initial state, with this content.
    pub(crate) fn approve(&self, content: &Snapshot) {
        let connections = self.connections();
        let setups = connections.iter().map(|connection| connection.approve()).collect();
        *self.initial() = Some(Initial { content: content.clone(), setups });
    }

    /// Checks that each connection is as it was set up, and in no transaction. Sessions are left to the engine.
    pub(crate) fn check(&self) -> Result<(), Obstacle> {
        let connections = self.connections();
        if self.has_lost_a_connection.load(Ordering::Acquire) {
            let reason = "a connection's main database was replaced (sqlite3_deserialize)";
            return Err(Obstacle::permanent(reason));
        }
        let initial = self.initial();
        let mut others = connections.iter().filter(|connection| !connection.is_session());
        others.try_for_each(|connection| connection.check(initial.as_ref()))
    }

    pub(crate) fn sessions(&self) -> usize {
        self.connections().iter().filter(|connection| connection.is_session()).count()
    }

    fn initial(&self) -> MutexGuard<'_, Option<Initial>> {
        self.initial.lock().recovered()
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Arc<Observed>>> {
        self.connections.lock().recovered()
    }
}

impl Observed {
    /// Notes that the connection is open, and sets its authorizer. If the file has a connection already, both share a
    /// cache.
    ///
    /// # Safety
    /// The connection is open, this thread may use it, and it calls `close` before it is freed. The caller keeps `self`
    /// until then.
    pub(super) unsafe fn open(&self, db: *mut sqlite3) {
        let mut state = self.state();
        if !matches!(*state, State::Opening) {
            *state = State::Shared;
            return;
        }
        // SAFETY: as the caller promises; `self` keeps the watch.
        self.watch.get_or_init(|| unsafe { Watch::observe(db) });
        *state = State::Open(Pointer(db));
    }

    /// Called when SQLite begins to close the connection. When this returns, no other thread uses the pointer to it.
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

    pub(super) fn alter(&self, reason: &'static str) {
        *self.altered_by() = Some(reason);
    }

    /// Notes that it has compiled a pragma that changes it again at each run.
    pub(super) fn note_outside_effect(&self) {
        self.has_outside_effects.store(true, Ordering::Release);
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
        *self.altered_by() = None;
        if let Some(watch) = self.watch.get() {
            watch.restart();
        }
        let pragmas = self.pragmas.load(Ordering::Acquire);
        *self.approved_pragmas() = Some(pragmas);
        pragmas
    }

    /// Checks that nothing was done to it that may have left something behind, apart from the pragmas that are noted,
    /// and that it is in no transaction.
    fn check(&self, initial: Option<&Initial>) -> Result<(), Obstacle> {
        let saw = |question: fn(&Watch) -> bool| self.watch.get().is_some_and(|watch| question(watch));
        let has_virtual_tables = || initial.is_some_and(|initial| initial.content.has_virtual_tables());
        let left = if saw(Watch::ever_saw_fts5_settings) && has_virtual_tables() {
            Some("a connection may have changed settings of FTS5: it has written to a table `…_config`")
        } else if saw(Watch::ever_saw_outside_effects) || self.has_outside_effects.load(Ordering::Acquire) {
            Some(
                "a connection has compiled a statement with effects outside of the engine: on a temporary table or an \
                 attached database, ANALYZE, or a pragma such as journal_mode",
            )
        } else if saw(Watch::saw_schema_change) {
            Some("a connection has changed the schema")
        } else if saw(Watch::saw_statistics_change) {
            Some("a connection has changed the planner's statistics, or has read the temporary schema")
        } else {
            *self.altered_by()
        };
        match left {
            Some(reason) => Err(Obstacle::permanent(reason)),
            None => self.check_transaction().and_then(|()| initial.map_or(Ok(()), |initial| self.check_setup(initial))),
        }
    }

    fn check_transaction(&self) -> Result<(), Obstacle> {
        let is_in_transaction = match *self.state() {
            // SAFETY: the connection is open as long as its state is locked.
            State::Open(Pointer(db)) => unsafe { is_in_transaction(db) },
            State::Opening => {
                return Err(Obstacle::transient("a connection is being opened, or the engine is attached to one"));
            }
            State::Closing => {
                let reason = "a connection is being closed, or has statements that were not finalized";
                return Err(Obstacle::transient(reason));
            }
            State::Shared => return Err(Obstacle::permanent("several connections share a cache")),
        };
        if is_in_transaction.is_none() {
            return Err(Obstacle::transient("a connection is in use"));
        }
        if is_in_transaction == Some(true) || self.reads.load(Ordering::Acquire) {
            let reason = "a connection is in a transaction, or has a statement that was not reset";
            return Err(Obstacle::transient(reason));
        }
        Ok(())
    }

    /// Checks that its pragmas are those that it had, or if it was opened later, those of one of the others.
    fn check_setup(&self, initial: &Initial) -> Result<(), Obstacle> {
        const REASON: &str = "a connection has other pragmas than when the value was made";
        if initial.setups.is_empty() {
            let reason = "no connection was open when the value was made, so that its pragmas are not known";
            return Err(Obstacle::permanent(reason));
        }
        let pragmas = self.pragmas.load(Ordering::Acquire);
        match *self.approved_pragmas() {
            Some(approved) if approved != pragmas => Err(Obstacle::permanent(REASON)),
            None if !initial.setups.contains(&pragmas) => Err(Obstacle::transient(REASON)), // it may be set up now
            _ => Ok(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.connection.lock().recovered()
    }

    fn approved_pragmas(&self) -> MutexGuard<'_, Option<u64>> {
        self.approved_pragmas.lock().recovered()
    }

    fn altered_by(&self) -> MutexGuard<'_, Option<&'static str>> {
        self.altered_by.lock().recovered()
    }
}

/// Returns whether the connection is in a transaction, or `None` if it is in use. Does not wait: the thread that uses the
/// connection may be waiting for a lock of this module.
///
/// In serialized mode, the documentation allows this on any thread. In multi-thread mode it does not: there, this only
/// reads one byte of the connection (SQLite 3.44 to 3.54). The answer may be wrong only while the connection's own thread
/// begins or ends a transaction.
///
/// # Safety
/// The connection is open until this returns.
unsafe fn is_in_transaction(db: *mut sqlite3) -> Option<bool> {
    // SAFETY: as the caller promises. In serialized mode, this is the mutex that sqlite3_get_autocommit may take. In
    // multi-thread mode it is NULL, for which the functions do nothing ("Mutexes").
    unsafe {
        let mutex = ffi::sqlite3_db_mutex(db);
        if ffi::sqlite3_mutex_try(mutex) != ffi::SQLITE_OK {
            return None;
        }
        let is_in_transaction = ffi::sqlite3_get_autocommit(db) == 0;
        ffi::sqlite3_mutex_leave(mutex);
        Some(is_in_transaction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(observation: &Observation, pragmas: &[&str]) -> Arc<Observed> {
        let observed = observation.add();
        pragmas.iter().for_each(|name| observed.note_pragma(name, "1"));
        observed
    }

    fn check_setup(observation: &Observation, observed: &Observed) -> Result<(), bool> {
        let initial = observation.initial();
        observed.check_setup(initial.as_ref().unwrap()).map_err(|obstacle| obstacle.is_transient)
    }

    /// A pool may be setting it up.
    #[test]
    fn a_later_connection_may_have_the_pragmas_of_any_earlier_one() {
        let observation = Observation::default();
        let [plain, read_only] = [&["a"][..], &["a", "b"]].map(|pragmas| observed(&observation, pragmas));
        observation.approve(&Snapshot::empty());
        assert_eq!(check_setup(&observation, &plain), Ok(()));
        let later = observed(&observation, &[]);
        for (pragma, result) in [(None, Err(true)), (Some("a"), Ok(())), (Some("b"), Ok(())), (Some("c"), Err(true))] {
            pragma.into_iter().for_each(|name| later.note_pragma(name, "1"));
            assert_eq!(check_setup(&observation, &later), result, "{pragma:?}");
        }
        plain.note_pragma("b", "1");
        assert_eq!(check_setup(&observation, &plain), Err(false), "an earlier one keeps its own");
        assert_eq!(check_setup(&observation, &read_only), Ok(()));
    }

    #[test]
    fn a_lost_connection_is_remembered() {
        let observation = Observation::default();
        let [opening, shared] = [(); 2].map(|()| observed(&observation, &[]));
        observation.remove(&opening);
        assert!(observation.check().unwrap_err().is_transient, "the other one is being opened");
        *shared.state() = State::Shared;
        assert!(!observation.check().unwrap_err().is_transient);
        shared.close();
        observation.remove(&shared);
        assert!(!observation.check().unwrap_err().is_transient, "one of the two may still be used");
    }
}
