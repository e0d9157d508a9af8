//! What one connection sees of an engine: the meaning of SQLite's file operations, in safe code.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::ffi;

use super::mount::Mount;
use crate::error::Error;
use crate::origin::{Purpose, Refusal};
use crate::pages::Pages;
use crate::snapshot::{Snapshot, Stamp};
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
    /// The schema cookie of its latest commit, as it wrote it, until it reads anew: `read` may have another one by then.
    own_cookie: Option<u32>,
    /// When it was refused the writer slot last, if it may come back for it.
    refused: Option<Instant>,
    /// Whether the slot may have been handed over while it was waiting, without a lock that tells SQLite to give it back.
    may_hold_slot: bool,
    /// Whether a pragma has changed what a later user of the connection would not expect.
    pragma_changed: bool,
}

/// The connection that calls, as far as waiting for the writer slot depends on it.
pub(super) trait Caller {
    /// Which one it is: the address of its `sqlite3`.
    fn id(&self) -> usize;
    /// Whether its transaction has read before, so that it can't be given newer content.
    fn is_mid_transaction(&self) -> bool;
    /// Calls its busy handler; says whether to try again.
    fn is_patient(&self) -> bool;
}

/// How long a connection that polls (its busy handler is not ours) queues with the others each time it comes back.
const POLL_PATIENCE: Duration = Duration::from_millis(10);

/// When a connection that was refused has to come back to be seen as polling. SQLite's own busy handler sleeps between 1
/// and 100 ms; a connection that has given up may well do its next thing at once.
const POLL_INTERVAL: Range<Duration> = Duration::from_micros(900)..Duration::from_millis(200);

impl Handle {
    pub(super) fn new(mount: Arc<Mount>) -> Handle {
        Handle {
            mount,
            token: Token::new(),
            purpose: Purpose::Uri,
            lock: Lock::None,
            read: None,
            written: None,
            own_cookie: None,
            refused: None,
            may_hold_slot: false,
            pragma_changed: false,
        }
    }

    pub(super) fn set_purpose(&mut self, purpose: Purpose) {
        self.purpose = purpose;
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

    /// Writes within the connection's transaction. A connection that does not hold the writer slot can't.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), Code> {
        if marks_as_wal(offset, data) {
            return Err(ffi::SQLITE_IOERR_WRITE);
        }
        self.writable()?.write(offset, data);
        Ok(())
    }

    pub(super) fn resize(&mut self, size: usize) -> Result<(), Code> {
        self.writable()?.resize(size);
        Ok(())
    }

    fn writable(&mut self) -> Result<&mut Pages, Code> {
        match &self.read {
            Some(read) if self.lock >= Lock::Reserved => Ok(self.written.get_or_insert_with(|| read.pages().clone())),
            _ => Err(ffi::SQLITE_IOERR_WRITE),
        }
    }

    /// Raises the lock to `level`.
    pub(super) fn lock(&mut self, level: Lock, caller: &impl Caller) -> Result<(), Code> {
        if self.lock < Lock::Shared {
            self.come_back();
            self.read = Some(self.mount.store.current());
            self.lock = Lock::Shared;
        }
        if self.lock < Lock::Reserved && level >= Lock::Reserved {
            self.acquire(caller).map_err(|refusal| refusal.extended_code())?;
            self.may_hold_slot = false; // from here on, the lock says it
            Refusal::forget();
        }
        self.lock = self.lock.max(level);
        Ok(())
    }

    /// Takes the writer slot, or says why not.
    ///
    /// A transaction that has read before can't be given newer content, and SQLite won't call the busy handler for it: it
    /// waits here, by the busy handler all the same, and goes on only if nothing was committed meanwhile. Any other is
    /// refused at once, gives up SHARED, waits in the busy handler, and then starts with what is committed by then.
    fn acquire(&mut self, caller: &impl Caller) -> Result<(), Refusal> {
        let read = self.read.clone().expect("SHARED comes before RESERVED");
        loop {
            let refusal = match self.mount.store.try_acquire(self.token, self.purpose, &read) {
                Ok(()) => return Ok(()),
                Err(refusal) => refusal,
            };
            self.may_hold_slot = true;
            let is_held = matches!(refusal, Refusal::Held { .. });
            if !caller.is_mid_transaction() {
                self.refused = Some(Instant::now());
                Pending::set(self.pending(caller, None));
                refusal.clone().remember(&self.mount.name);
                return Err(refusal);
            }
            if is_held {
                Pending::set(self.pending(caller, Some(read.clone())));
                if caller.is_patient() {
                    continue;
                }
            }
            // Where our own busy handler was asked, it has taken what was pending, and remembered more than we know.
            if !is_held || Pending::take(|pending| pending.token == self.token).is_some() {
                refusal.clone().remember(&self.mount.name);
            }
            return Err(refusal);
        }
    }

    fn pending(&self, caller: &impl Caller, read: Option<Snapshot>) -> Pending {
        let (mount, token, purpose) = (Arc::downgrade(&self.mount), self.token, self.purpose);
        Pending { connection: caller.id(), mount, token, purpose, read }
    }

    /// The connection reads anew. If it was refused before, it may have come back for the writer slot.
    fn come_back(&mut self) {
        self.own_cookie = None;
        let Some(refused) = self.refused.take() else { return };
        self.may_hold_slot = true;
        // What our own busy handler has seen to is not pending any more. So this connection polls, or has given up, which
        // can't be told apart: it queues before it takes what it reads, or it would find the slot taken every time others
        // queue; but it gets no more than a reservation, since it may only want to read.
        let polls = Pending::take(|pending| pending.token == self.token).is_some();
        if polls && POLL_INTERVAL.contains(&refused.elapsed()) {
            self.mount.store.reserve(self.token, self.purpose, POLL_PATIENCE);
        }
    }

    /// Lowers the lock to `level`. What was written and not committed is gone.
    pub(super) fn unlock(&mut self, level: Lock) {
        if self.lock >= Lock::Reserved && level < Lock::Reserved {
            self.written = None;
            self.mount.store.release(self.token);
        }
        if level == Lock::None {
            if std::mem::take(&mut self.may_hold_slot) {
                self.mount.store.release(self.token);
            }
            self.read = None;
        }
        self.lock = self.lock.min(level);
    }

    /// SQLite's transaction is committed (`SQLITE_FCNTL_COMMIT_PHASETWO`).
    pub(super) fn commit(&mut self) {
        if let (Some(pages), Some(read)) = (self.written.take(), &self.read) {
            let cookie_before = self.own_cookie.unwrap_or(read.stamp().schema_cookie);
            self.own_cookie = Some(Stamp::of(&pages).schema_cookie);
            self.read = Some(self.mount.store.publish(pages, cookie_before));
        }
    }

    /// SQLite is compiling a pragma for this database. `Some` is the answer to give in SQLite's place.
    pub(super) fn pragma(&mut self, name: &str, argument: Option<&str>) -> Option<&'static str> {
        argument?;
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("locking_mode") {
            return Some(LOCKING_MODE);
        }
        self.pragma_changed |= !HARMLESS_PRAGMAS.iter().any(|harmless| is(harmless));
        None
    }
}

/// "The locking mode of temp and in-memory databases cannot be changed" (SQLite, "PRAGMA locking_mode"). Nor can it here,
/// where a connection that kept its lock would never see what others commit.
const LOCKING_MODE: &str = "normal";

/// Whether this is a page 1 that says the database is in WAL mode. An engine has no WAL, so nobody could open it again.
/// SQLite tries only in exclusive locking mode, which can be set past us, for a main database that is a file.
fn marks_as_wal(offset: usize, data: &[u8]) -> bool {
    offset == 0 && data.get(18..20).is_some_and(|versions| versions.contains(&2))
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
    connection: usize,
    mount: Weak<Mount>,
    token: Token,
    purpose: Purpose,
    /// What the transaction has read, if it has.
    read: Option<Snapshot>,
}

thread_local! {
    static PENDING: RefCell<Option<Pending>> = const { RefCell::new(None) };
    /// When the wait began that the busy handler is called for.
    static WAITING_SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

impl Pending {
    fn set(pending: Pending) {
        let _ = PENDING.try_with(|cell| cell.replace(Some(pending)));
    }

    fn take(is_it: impl FnOnce(&mut Pending) -> bool) -> Option<Pending> {
        PENDING.try_with(|cell| cell.borrow_mut().take_if(is_it)).ok().flatten()
    }
}

/// The busy handler of our own connections: waits in the engine's queue for the writer slot. Returns whether SQLite
/// should try again. `tries` counts its calls for one statement.
pub(super) fn wait_in_turn(connection: usize, tries: i32) -> bool {
    let start = waiting_since(tries);
    let Some(pending) = Pending::take(|pending| pending.connection == connection) else {
        Refusal::forget();
        return poll(start, tries); // another database that this connection has attached is busy
    };
    let Some(mount) = pending.mount.upgrade() else { return false };
    let timeout = mount.store.lock_timeout();
    let patience = timeout.saturating_sub(start.elapsed());
    let waited = mount.store.acquire(pending.token, pending.purpose, pending.read.as_ref(), patience);
    let refusal = match waited {
        Ok(()) => return true,
        Err(Refusal::Stale { .. }) => return true, // SQLite will be told when it tries again
        Err(refusal) => refusal.since(start),
    };
    report(&mount, &refusal);
    refusal.remember(&mount.name);
    false
}

/// Says why a wait was in vain where a failing test shows it. The caller may only ever see SQLite's "database is locked":
/// of a statement that fails, rusqlite hands on SQLite's own words.
fn report(mount: &Mount, refusal: &Refusal) {
    eprintln!("rusqlite-fixtures: {}", Error::refused(&mount.name, refusal));
}

fn waiting_since(tries: i32) -> Instant {
    let now = Instant::now();
    WAITING_SINCE
        .try_with(|since| {
            let start = since.get().filter(|_| tries > 0).unwrap_or(now);
            since.set(Some(start));
            start
        })
        .unwrap_or(now)
}

/// What rusqlite's default busy handler does: 5 s in small steps.
fn poll(start: Instant, tries: i32) -> bool {
    let patient = start.elapsed() < Duration::from_secs(5);
    if patient {
        thread::sleep(Duration::from_millis(u64::from(tries.unsigned_abs()).clamp(1, 50)));
    }
    patient
}
