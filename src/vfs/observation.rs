//! Observes the connections of other libraries to an engine, to find out whether they are as they were when they were
//! opened.
//!
//! SQLite calls an "automatic extension" at the end of each opening, on the thread that opens. There, a connection to an
//! observed engine gets an authorizer, which sees each statement that is compiled. The rest is noted by the methods of
//! the engine's file, on the connection's thread.

use std::collections::BTreeSet;
use std::ffi::{c_char, c_int, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock};

use rusqlite::ffi::{self, sqlite3};

use super::connection::{find_file_of, handle};
use super::watch::Watch;
use crate::sync::Recovered;

/// The connections of an engine.
#[derive(Default)]
pub(crate) struct Observation {
    connections: Mutex<Vec<Arc<Observed>>>,
}

/// What is known of a connection. Its own thread writes it, any thread reads it.
#[derive(Default)]
pub(super) struct Observed {
    /// The connection, from the end of its opening on. It is not freed before it is removed from the observation.
    db: AtomicPtr<sqlite3>,
    /// Its authorizer, from the end of its opening on.
    watch: OnceLock<Arc<Watch>>,
    /// Whether it is a session, which its engine cleans.
    is_session: AtomicBool,
    /// Whether it is in a transaction that has read.
    reads: AtomicBool,
    /// Whether a file control or a fault may have changed it.
    is_altered: AtomicBool,
    /// A hash of the pragmas that may have changed it, in their order.
    pragmas: AtomicU64,
}

/// The state of all connections to an engine, when none is in a transaction.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AtRest {
    /// The number of sessions.
    pub(crate) sessions: usize,
    /// How the other connections were set up: the hashes of their pragmas.
    pub(crate) setups: BTreeSet<u64>,
}

impl Observation {
    /// Prepares the observation of the connections that are opened from now on.
    pub(crate) fn new() -> Observation {
        static REGISTERED: Once = Once::new();
        // SAFETY: the function has the signature that "Automatically Load Statically Linked Extensions" asks for.
        REGISTERED.call_once(|| unsafe {
            sqlite3_auto_extension(Some(std::mem::transmute::<EntryPoint, unsafe extern "C" fn()>(on_open)));
        });
        Observation::default()
    }

    pub(super) fn add(&self) -> Arc<Observed> {
        let observed = Arc::new(Observed::default());
        self.connections().push(observed.clone());
        observed
    }

    pub(super) fn remove(&self, observed: &Arc<Observed>) {
        self.connections().retain(|other| !Arc::ptr_eq(other, observed));
    }

    /// Makes the current state of all connections their initial state.
    pub(crate) fn approve(&self) {
        self.connections().iter().for_each(|connection| connection.approve());
    }

    /// Returns the state of all connections, if each is as it was set up, and in no transaction.
    pub(crate) fn at_rest(&self) -> Option<AtRest> {
        let connections = self.connections();
        let (sessions, others): (Vec<_>, Vec<_>) =
            connections.iter().partition(|connection| connection.is_session.load(Ordering::Acquire));
        let is_at_rest = others.iter().all(|connection| connection.is_at_rest());
        is_at_rest.then(|| AtRest {
            sessions: sessions.len(),
            setups: others.iter().map(|connection| connection.pragmas.load(Ordering::Acquire)).collect(),
        })
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Arc<Observed>>> {
        self.connections.lock().recovered()
    }
}

impl Observed {
    pub(super) fn set_session(&self) {
        self.is_session.store(true, Ordering::Release);
    }

    pub(super) fn set_reads(&self, reads: bool) {
        self.reads.store(reads, Ordering::Release);
    }

    pub(super) fn alter(&self) {
        self.is_altered.store(true, Ordering::Release);
    }

    pub(super) fn note_pragma(&self, name: &str, argument: &str) {
        let mut hash = DefaultHasher::new();
        (self.pragmas.load(Ordering::Acquire), name.to_ascii_lowercase(), argument).hash(&mut hash);
        self.pragmas.store(hash.finish(), Ordering::Release);
    }

    fn approve(&self) {
        self.is_altered.store(false, Ordering::Release);
        if let Some(watch) = self.watch.get() {
            watch.restart();
        }
    }

    /// Returns whether it is in no transaction, and nothing was done to it that may have left something behind, apart
    /// from the pragmas that are noted.
    fn is_at_rest(&self) -> bool {
        let Some(watch) = self.watch.get() else { return self.is_session.load(Ordering::Acquire) };
        let is_changed = watch.saw_schema_change() || watch.saw_leftovers() || self.is_altered.load(Ordering::Acquire);
        !self.reads.load(Ordering::Acquire) && !is_changed && self.is_in_autocommit_mode()
    }

    fn is_in_autocommit_mode(&self) -> bool {
        // SAFETY: the connection is open: SQLite closes its file first, which removes it from the observation, whose
        // lock the caller has. "If another thread changes the autocommit status of the database connection while this
        // routine is running, then the return value is undefined" (sqlite3_get_autocommit), so the call is allowed.
        unsafe { ffi::sqlite3_get_autocommit(self.db.load(Ordering::Acquire)) != 0 }
    }
}

type EntryPoint = unsafe extern "C" fn(*mut sqlite3, *mut *mut c_char, *const c_void) -> c_int;

/// Called at the end of the opening of any connection in the process.
unsafe extern "C" fn on_open(db: *mut sqlite3, _: *mut *mut c_char, _: *const c_void) -> c_int {
    let _ = catch_unwind(|| {
        // SAFETY: SQLite gives the connection that is being opened, on its thread.
        let Some(file) = (unsafe { find_file_of(db) }) else { return };
        // SAFETY: the file is the connection's, which is not in use.
        let Some(observed) = (unsafe { handle(file) }).observed() else { return };
        observed.db.store(db, Ordering::Release);
        let watch = Watch::observe(db);
        let data = Arc::into_raw(watch.clone()).cast_mut().cast::<c_void>();
        // SAFETY: SQLite gives the data back once: when it closes the connection, or now if memory runs out.
        let code = unsafe { sqlite3_set_clientdata(db, c"rusqlite-fixtures".as_ptr(), data, Some(forget)) };
        if code == ffi::SQLITE_OK {
            let _ = observed.watch.set(watch); // it is the first
        }
    });
    ffi::SQLITE_OK
}

/// Takes the authorizer off a connection that is being closed, and frees it.
unsafe extern "C" fn forget(watch: *mut c_void) {
    // SAFETY: it comes from `on_open`, and SQLite gives it back once.
    let watch = unsafe { Arc::from_raw(watch.cast_const().cast::<Watch>()) };
    // Statements may outlive sqlite3_close_v2.
    watch.take_off();
}

unsafe extern "C" {
    // Declared here, because the bindings declare its argument differently from version to version.
    fn sqlite3_auto_extension(entry_point: Option<unsafe extern "C" fn()>) -> c_int;
    // Since 3.44.
    fn sqlite3_set_clientdata(
        db: *mut sqlite3,
        name: *const c_char,
        data: *mut c_void,
        destructor: Option<unsafe extern "C" fn(*mut c_void)>,
    ) -> c_int;
}
