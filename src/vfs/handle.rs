//! What one connection sees of an engine: the meaning of SQLite's file operations, in safe code.

use std::cell::RefCell;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::ffi;

use super::mount::Mount;
use crate::error::Error;
use crate::origin::{Purpose, Refusal};
use crate::pages::Pages;
use crate::snapshot::Snapshot;
use crate::store::Token;

/// A SQLite result code other than `SQLITE_OK`.
pub(super) type Code = i32;

/// SQLite's lock levels, in its numbers (`sqlite3_io_methods`, xLock).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lock {
    None,
    Shared,
    Reserved,
    Exclusive,
}

impl Lock {
    pub(super) fn from_raw(level: i32) -> Lock {
        match level {
            ffi::SQLITE_LOCK_NONE => Lock::None,
            ffi::SQLITE_LOCK_SHARED => Lock::Shared,
            ffi::SQLITE_LOCK_RESERVED => Lock::Reserved,
            _ => Lock::Exclusive, // PENDING is on the way to it, and here nobody has to get out of the way
        }
    }

    pub(super) fn to_raw(self) -> i32 {
        match self {
            Lock::None => ffi::SQLITE_LOCK_NONE,
            Lock::Shared => ffi::SQLITE_LOCK_SHARED,
            Lock::Reserved => ffi::SQLITE_LOCK_RESERVED,
            Lock::Exclusive => ffi::SQLITE_LOCK_EXCLUSIVE,
        }
    }
}

/// One connection's open file on an engine.
pub(super) struct Handle {
    mount: Arc<Mount>,
    token: Token,
    purpose: Purpose,
    lock: Lock,
    /// What the connection reads, from SHARED on.
    read: Option<Snapshot>,
    /// What it has written and not committed, from its first write on.
    written: Option<Pages>,
    /// Whether a refusal has been the latest answer to a request for the writer slot: then the slot may have been handed
    /// over meanwhile, without a lock that tells SQLite to give it back.
    was_refused: bool,
    journal: JournalMode,
    /// Whether a pragma has changed what a later user of the connection would not expect.
    pragma_changed: bool,
}

/// What SQLite's pager does for a rollback within the transaction; its own answer for a database in memory.
#[derive(Clone, Copy)]
enum JournalMode {
    Memory,
    Off,
}

/// How long a connection that polls (its busy handler is not ours) queues with the others each time it comes back, and
/// how soon it must come back to be seen as polling: SQLite's own busy handler sleeps up to 100 ms.
const POLL_PATIENCE: Duration = Duration::from_millis(10);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

impl Handle {
    pub(super) fn new(mount: Arc<Mount>) -> Handle {
        Handle {
            mount,
            token: Token::new(),
            purpose: Purpose::Uri,
            lock: Lock::None,
            read: None,
            written: None,
            was_refused: false,
            journal: JournalMode::Memory,
            pragma_changed: false,
        }
    }

    pub(super) fn set_purpose(&mut self, purpose: Purpose) {
        self.purpose = purpose;
    }

    pub(super) fn level(&self) -> Lock {
        self.lock
    }

    pub(super) fn pragma_changed(&self) -> bool {
        self.pragma_changed
    }

    /// Fills `buffer` from `offset` on, with zeros beyond the end; says whether there was enough.
    pub(super) fn read(&self, offset: usize, buffer: &mut [u8]) -> bool {
        self.with_pages(|pages| pages.read(offset, buffer) == buffer.len())
    }

    pub(super) fn size(&self) -> usize {
        self.with_pages(Pages::len)
    }

    /// The pages of the connection's transaction; without one, what is committed now.
    fn with_pages<T>(&self, look: impl FnOnce(&Pages) -> T) -> T {
        match (&self.written, &self.read) {
            (Some(written), _) => look(written),
            (None, Some(read)) => look(read.pages()),
            (None, None) => look(self.mount.store.current().pages()),
        }
    }

    /// The image to write to. A connection that does not hold the writer slot has none.
    pub(super) fn writable(&mut self) -> Result<&mut Pages, Code> {
        match &self.read {
            Some(read) if self.lock >= Lock::Reserved => Ok(self.written.get_or_insert_with(|| read.pages().clone())),
            _ => Err(ffi::SQLITE_IOERR_WRITE),
        }
    }

    /// Raises the lock to `level`. `mid_transaction` tells whether the transaction has read before.
    pub(super) fn lock(&mut self, level: Lock, mid_transaction: impl FnOnce() -> bool) -> Result<(), Code> {
        if self.lock < Lock::Shared {
            self.queue_if_polling();
            self.read = Some(self.mount.store.current());
            self.lock = Lock::Shared;
        }
        if self.lock < Lock::Reserved && level >= Lock::Reserved {
            self.acquire(mid_transaction).map_err(|refusal| self.refuse(refusal))?;
            self.was_refused = false;
        }
        self.lock = self.lock.max(level);
        Ok(())
    }

    /// Takes the writer slot, or says why not.
    ///
    /// A transaction that has read before can't be given newer content, and SQLite won't call the busy handler for it:
    /// it waits here, and goes on only if nothing was committed meanwhile. Any other is refused at once, waits in the
    /// busy handler, and then starts with what is committed by then.
    fn acquire(&self, mid_transaction: impl FnOnce() -> bool) -> Result<(), Refusal> {
        let (store, read) = (&self.mount.store, self.read.as_ref().expect("SHARED comes before RESERVED"));
        match store.try_acquire(self.token, self.purpose, read) {
            Err(Refusal::Held { .. }) if self.is_ours() && mid_transaction() => store
                .acquire(self.token, self.purpose, Some(read), store.lock_timeout())
                .inspect_err(|refusal| report(&self.mount, refusal)),
            done => done,
        }
    }

    fn is_ours(&self) -> bool {
        !matches!(self.purpose, Purpose::Uri)
    }

    fn refuse(&mut self, refusal: Refusal) -> Code {
        self.was_refused = true;
        let code = refusal.extended_code();
        let (mount, token, purpose) = (Arc::downgrade(&self.mount), self.token, self.purpose);
        Pending::set(Pending { mount, token, purpose, since: Instant::now() });
        refusal.remember(&self.mount.name);
        code
    }

    /// A connection that was refused and comes back so soon polls for the writer slot. It queues for a moment, before
    /// it takes what it reads, or it would find the slot taken every time others queue.
    fn queue_if_polling(&mut self) {
        let mine = |pending: Pending| pending.token == self.token && pending.since.elapsed() < POLL_INTERVAL;
        if Pending::take().is_some_and(mine) {
            // Refused again or not: what follows asks for the slot itself, if SQLite still wants it.
            let _ = self.mount.store.acquire(self.token, self.purpose, None, POLL_PATIENCE);
        }
    }

    /// Lowers the lock to `level`. What was written and not committed is gone.
    pub(super) fn unlock(&mut self, level: Lock) {
        if self.lock >= Lock::Reserved && level < Lock::Reserved {
            self.written = None;
            self.mount.store.release(self.token);
        }
        if level == Lock::None {
            if self.was_refused {
                self.mount.store.release(self.token);
            }
            self.read = None;
        }
        self.lock = self.lock.min(level);
    }

    /// SQLite's transaction is committed (`SQLITE_FCNTL_COMMIT_PHASETWO`).
    pub(super) fn commit(&mut self) {
        if let Some(pages) = self.written.take() {
            self.read = Some(self.mount.store.publish(pages));
        }
    }

    /// SQLite is compiling a pragma for this database. `Some` is the answer to give in SQLite's place.
    pub(super) fn pragma(&mut self, name: &str, argument: Option<&str>) -> Option<&'static str> {
        let argument = argument?;
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("journal_mode") {
            return self.set_journal_mode(argument);
        }
        self.pragma_changed |= !HARMLESS_PRAGMAS.iter().any(|harmless| is(harmless));
        None
    }

    /// "The journal_mode for an in-memory database is either MEMORY or OFF and can not be changed to a different value.
    /// An attempt to change the journal_mode of an in-memory database to any setting other than MEMORY or OFF is
    /// ignored" (SQLite, "PRAGMA journal_mode").
    fn set_journal_mode(&mut self, wanted: &str) -> Option<&'static str> {
        let is = |mode: &str| wanted.eq_ignore_ascii_case(mode);
        if is("off") {
            (self.journal, self.pragma_changed) = (JournalMode::Off, true);
            return None;
        }
        if is("memory") {
            self.journal = JournalMode::Memory;
            return None;
        }
        Some(match self.journal {
            JournalMode::Memory => "memory",
            JournalMode::Off => "off",
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.mount.store.release(self.token);
    }
}

/// Pragmas that take an argument and leave nothing behind in the connection: they ask, or they change what is in the
/// database, which is the transaction's business.
const HARMLESS_PRAGMAS: [&str; 16] = [
    "application_id",
    "data_version",
    "foreign_key_check",
    "foreign_key_list",
    "incremental_vacuum",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "optimize",
    "quick_check",
    "schema_version",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
];

/// A refusal that SQLite's busy handler is about to be asked about, on this thread.
struct Pending {
    mount: Weak<Mount>,
    token: Token,
    purpose: Purpose,
    since: Instant,
}

thread_local! {
    static PENDING: RefCell<Option<Pending>> = const { RefCell::new(None) };
    /// When the wait began that the busy handler is called for.
    static WAITING_SINCE: RefCell<Option<Instant>> = const { RefCell::new(None) };
}

impl Pending {
    fn set(pending: Pending) {
        let _ = PENDING.try_with(|cell| cell.replace(Some(pending)));
    }

    fn take() -> Option<Pending> {
        PENDING.try_with(RefCell::take).ok().flatten()
    }
}

/// The busy handler of our own connections: waits in the engine's queue for the writer slot. Returns whether SQLite
/// should try again. `tries` counts its calls for one lock.
pub(super) fn wait_in_turn(tries: i32) -> bool {
    let start = waiting_since(tries);
    let Some(pending) = Pending::take() else {
        Refusal::forget();
        return poll(start, tries); // another database that this connection has attached is busy
    };
    let Some(mount) = pending.mount.upgrade() else { return false };
    let patience = mount.store.lock_timeout().saturating_sub(start.elapsed());
    match mount.store.acquire(pending.token, pending.purpose, None, patience) {
        Ok(()) => true,
        Err(refusal) => {
            let refusal = refusal.since(start);
            report(&mount, &refusal);
            refusal.remember(&mount.name);
            false
        }
    }
}

/// Says why a wait was in vain where a failing test shows it. The caller may only ever see SQLite's "database is locked":
/// of a statement that fails, rusqlite hands on SQLite's own words.
fn report(mount: &Mount, refusal: &Refusal) {
    if let Refusal::Held { .. } = refusal {
        eprintln!("rusqlite-fixtures: {}", Error::refused(&mount.name, refusal));
    }
}

fn waiting_since(tries: i32) -> Instant {
    let now = Instant::now();
    let start = WAITING_SINCE.try_with(|since| *since.borrow_mut().get_or_insert(now)).unwrap_or(now);
    if tries > 0 {
        return start;
    }
    let _ = WAITING_SINCE.try_with(|since| since.replace(Some(now)));
    now
}

/// What rusqlite's default busy handler does: 5 s in small steps.
fn poll(start: Instant, tries: i32) -> bool {
    let patient = start.elapsed() < Duration::from_secs(5);
    if patient {
        thread::sleep(Duration::from_millis(u64::from(tries.unsigned_abs()).clamp(1, 50)));
    }
    patient
}
