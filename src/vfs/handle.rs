//! One connection's view of an engine: the meaning of SQLite's file operations, in safe code.

use std::ffi::CStr;
use std::sync::{Arc, Weak};

use rusqlite::ffi;

use super::io_methods::Code;
use super::mount::Mount;
use super::observation::{Observation, Observed};
use super::random::Random;
use super::trace::{self, Listed, Traced};
use super::waiting::{self, Caller, Claimant, Wait};
use crate::content::origin::Purpose;
use crate::content::pages::Pages;
use crate::content::refusal::Refusal;
use crate::content::snapshot::{self, JournalMode, Snapshot, Stamp};
use crate::faults::{self, Call};
use crate::statements::Recorder;

/// SQLite's lock levels, with its numbers (`sqlite3_io_methods`, xLock).
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
            _ => Lock::Exclusive, // PENDING is on the way to it, and no reader has to be kept out
        }
    }

    fn to_raw(self) -> i32 {
        match self {
            Lock::None => ffi::SQLITE_LOCK_NONE,
            Lock::Shared => ffi::SQLITE_LOCK_SHARED,
            Lock::Reserved => ffi::SQLITE_LOCK_RESERVED,
            Lock::Exclusive => ffi::SQLITE_LOCK_EXCLUSIVE,
        }
    }
}

/// Settings that file controls set and read. They affect a file on disk; here they are only stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// `SQLITE_FCNTL_PERSIST_WAL`
    pub(super) persist_wal: bool,
    /// `SQLITE_FCNTL_POWERSAFE_OVERWRITE`
    pub(super) powersafe_overwrite: bool,
    /// `SQLITE_FCNTL_MMAP_SIZE`
    pub(super) mmap_size: i64,
}

impl Settings {
    const DEFAULT: Settings = Settings { persist_wal: false, powersafe_overwrite: true, mmap_size: 0 };
}

/// What a new connection gets, beside the file.
pub(super) struct Extras {
    pub(super) observed: Option<Arc<Observed>>,
    pub(super) random: Option<Arc<Random>>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) mount: Weak<Mount>,
}

/// What a connection has written in its transaction.
struct Written {
    pages: Pages,
    /// Whether they are a database in WAL mode.
    becomes_wal: bool,
}

/// One connection's open file on an engine.
pub(super) struct Handle {
    claimant: Claimant,
    lock: Lock,
    /// The content that the connection reads, from when it takes SHARED.
    read: Option<Snapshot>,
    /// What it has written and not committed, from its first write on.
    written: Option<Written>,
    /// Whether SQLite has committed since the connection took RESERVED.
    has_committed: bool,
    /// The schema cookie that the connection wrote in its latest commit, until its next transaction. `read` may have
    /// another one.
    own_cookie: Option<u32>,
    wait: Wait,
    /// Whether the slot may have been reserved while the connection waited. Then SQLite has no lock to release.
    may_hold_slot: bool,
    is_read_only: bool,
    /// Set by file controls.
    settings: Settings,
    /// Whether a pragma or a file control has changed something that a later user of the connection would not expect.
    pragma_changed: bool,
    /// Whether `PRAGMA synchronous` was set. The session restores it.
    synchronous_was_set: bool,
    /// Whether a fault plan has failed a call to this file on any thread, or to any file on this thread while the
    /// connection read. SQLite does not report each error: if it can't read the planner's statistics, it continues
    /// without them.
    has_met_fault: bool,
    /// The number of calls on this thread that a fault plan had failed when the connection began to read.
    faults_before: usize,
    /// The record of what is done to the connection, if the engine is observed.
    observed: Option<Arc<Observed>>,
    /// The connections that have this file as their main database: several if they share a cache.
    traced: Vec<Listed>,
}

impl Handle {
    pub(super) fn new(mount: Arc<Mount>, is_read_only: bool) -> Handle {
        let observed = mount.observation().map(Observation::add);
        Handle {
            observed,
            traced: Vec::new(),
            claimant: Claimant::new(mount),
            lock: Lock::None,
            read: None,
            written: None,
            has_committed: false,
            own_cookie: None,
            wait: Wait::Idle,
            may_hold_slot: false,
            is_read_only,
            settings: Settings::DEFAULT,
            pragma_changed: false,
            synchronous_was_set: false,
            has_met_fault: false,
            faults_before: faults::count(),
        }
    }

    pub(super) fn set_purpose(&mut self, purpose: Purpose) {
        self.claimant.purpose = purpose;
        self.traced.iter().for_each(|traced| traced.set_purpose(purpose));
        self.wait.end(); // that of the last user
    }

    pub(super) fn observed(&self) -> Option<&Arc<Observed>> {
        self.observed.as_ref()
    }

    pub(super) fn extras(&self) -> Extras {
        let Mount { random, recorder, .. } = &*self.claimant.mount;
        Extras {
            observed: self.observed.clone(),
            random: random.clone(),
            recorder: recorder.clone(),
            mount: Arc::downgrade(&self.claimant.mount),
        }
    }

    pub(super) fn add_traced(&mut self, traced: Listed) {
        self.traced.push(traced);
    }

    pub(super) fn traced(&self) -> Option<&Arc<Traced>> {
        self.traced.first().map(|listed| &**listed)
    }

    pub(super) fn all_traced(&self) -> &[Listed] {
        &self.traced
    }

    pub(super) fn recorder(&self) -> &Recorder {
        &self.claimant.mount.recorder
    }

    /// Returns whether the connection is about to begin to read or to write.
    pub(super) fn begins(&self, level: Lock) -> bool {
        self.lock == Lock::None || self.lock < Lock::Reserved && level >= Lock::Reserved
    }

    pub(super) fn is_on(&self, mount: &Mount) -> bool {
        std::ptr::eq(&*self.claimant.mount, mount)
    }

    pub(super) fn format_changes(&self) -> usize {
        self.claimant.mount.store.format_changes()
    }

    /// Returns whether SQLite may keep something that a later user of the connection would not expect.
    pub(super) fn is_altered(&self) -> bool {
        self.pragma_changed || self.has_met_fault
    }

    /// Returns the lock level as SQLite's number.
    pub(super) fn lock_level(&self) -> i32 {
        self.lock.to_raw()
    }

    pub(super) fn settings(&self) -> Settings {
        self.settings
    }

    /// Applies what a file control sets.
    pub(super) fn set_settings(&mut self, settings: Settings) {
        let is_change = settings != self.settings;
        self.pragma_changed |= is_change;
        self.settings = settings;
        if let (true, Some(observed)) = (is_change, &self.observed) {
            observed.alter("a file control has changed a connection");
        }
    }

    /// Passes `len` bytes from `offset` on to `take`, in parts, with zeros beyond the end. Returns whether there were
    /// as many.
    pub(super) fn read(&self, offset: usize, len: usize, take: impl FnMut(&[u8])) -> bool {
        self.with_pages(|pages| pages.read_by_parts(offset, len, take) == len)
    }

    pub(super) fn size(&self) -> usize {
        self.with_pages(Pages::len)
    }

    /// Calls the function with the pages of the connection's transaction. Without a transaction, uses the committed
    /// pages.
    fn with_pages<T>(&self, look: impl FnOnce(&Pages) -> T) -> T {
        match (&self.written, &self.read) {
            (Some(written), _) => look(&written.pages),
            (None, Some(read)) => look(read.pages()),
            (None, None) => look(self.claimant.mount.store.current().pages()),
        }
    }

    /// Returns the content that the connection reads, or would read.
    pub(super) fn content(&self) -> Snapshot {
        self.read.clone().unwrap_or_else(|| self.claimant.mount.store.current())
    }

    /// Writes within the connection's transaction. Fails if the connection does not hold the writer slot.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), Code> {
        self.writable()?.pages.write(offset, data);
        if offset == 0 {
            self.write_journal_mode()?;
        }
        Ok(())
    }

    /// Removes the mark of WAL mode from a page 1 that has it. With the mark, no connection could open the engine.
    fn write_journal_mode(&mut self) -> Result<(), Code> {
        let schema_before = self.read.as_ref().map(|read| read.stamp().schema_cookie);
        let Some(written) = &mut self.written else { return Ok(()) };
        written.becomes_wal = snapshot::take_wal_mark(&mut written.pages);
        // In exclusive locking mode, SQLite tries to change only the mode, without a call to the VFS. It would then use
        // a WAL. A copy of a database in WAL mode has another schema too.
        let is_switch = written.becomes_wal && schema_before == Some(Stamp::of(&written.pages).schema_cookie);
        if is_switch { Err(ffi::SQLITE_IOERR_WRITE) } else { Ok(()) }
    }

    pub(super) fn resize(&mut self, size: usize) -> Result<(), Code> {
        self.writable()?.pages.resize(size);
        Ok(())
    }

    fn writable(&mut self) -> Result<&mut Written, Code> {
        match &self.read {
            Some(read) if self.lock >= Lock::Reserved => {
                let start = || Written { pages: read.pages().clone(), becomes_wal: false };
                Ok(self.written.get_or_insert_with(start))
            }
            _ => Err(ffi::SQLITE_IOERR_WRITE),
        }
    }

    /// Raises the lock to `level`.
    pub(super) fn lock(&mut self, level: Lock, caller: &impl Caller) -> Result<(), Code> {
        self.meet_fault(level, caller)?;
        if self.lock < Lock::Shared {
            self.come_back(caller);
            let read = self.claimant.mount.store.current();
            if let Some((observation, observed)) = self.observation() {
                observation.begin_read(observed, &read);
            }
            self.read = Some(read);
            self.lock = Lock::Shared;
            Refusal::forget_holder();
        }
        if self.lock < Lock::Reserved && level >= Lock::Reserved {
            let acquired = self.wait.acquire(&self.claimant, self.read.as_ref(), caller);
            acquired.map_err(|refusal| refusal.extended_code())?;
            self.may_hold_slot = false; // from here on, the lock says it
            waiting::forget();
        }
        self.lock = self.lock.max(level);
        Ok(())
    }

    /// Refuses the lock if a fault plan asks for it.
    fn meet_fault(&mut self, level: Lock, caller: &impl Caller) -> Result<(), Code> {
        if self.lock == Lock::None {
            self.faults_before = faults::count();
        }
        let call = if level <= Lock::Reserved { Call::Lock } else { Call::LockExclusive };
        self.check_faults(call).inspect_err(|code| {
            if let (ffi::SQLITE_BUSY, Some(by)) = (*code, faults::order()) {
                self.claimant.refuse_by_fault(caller, by);
            }
        })
    }

    /// Fails if a fault plan fails this call.
    pub(super) fn check_faults(&mut self, call: Call) -> Result<(), Code> {
        faults::check(call).inspect_err(|_| self.set_met_fault())
    }

    fn set_met_fault(&mut self) {
        self.has_met_fault = true;
        if let Some(observed) = &self.observed {
            observed.alter("a fault plan has failed a call of a connection");
        }
    }

    fn observation(&self) -> Option<(&Observation, &Arc<Observed>)> {
        self.claimant.mount.observation().zip(self.observed.as_ref())
    }

    /// Called when the connection begins to read. It may have come back for the writer slot.
    fn come_back(&mut self, caller: &impl Caller) {
        self.own_cookie = None;
        self.may_hold_slot |= !self.wait.is_idle();
        self.wait.come_back(&self.claimant, caller);
    }

    /// Lowers the lock to `level`, which is SHARED or NONE (`sqlite3_io_methods`, xUnlock). Discards what was written
    /// and not committed.
    pub(super) fn unlock(&mut self, level: Lock) {
        if self.lock >= Lock::Reserved {
            if !std::mem::take(&mut self.has_committed) {
                trace::note_rolled_back(&self.traced);
            }
            self.written = None;
            self.claimant.mount.store.release(self.claimant.token);
        }
        if level == Lock::None {
            if self.wait.is_idle() {
                trace::forget_begun(); // a statement that waits comes back
            }
            if faults::count() != self.faults_before {
                self.set_met_fault();
            }
            if std::mem::take(&mut self.may_hold_slot) {
                self.claimant.mount.store.release(self.claimant.token);
            }
            self.read = None;
            if let Some(observed) = &self.observed {
                observed.end_read();
            }
        }
        self.lock = self.lock.min(level);
    }

    /// Publishes what SQLite has committed (`SQLITE_FCNTL_COMMIT_PHASETWO`).
    pub(super) fn commit(&mut self) {
        self.has_committed = true;
        if let (Some(Written { mut pages, becomes_wal }), Some(read)) = (self.written.take(), &self.read) {
            if becomes_wal {
                snapshot::count_on(&mut pages); // so that this connection does not keep the page 1 that it wrote
                self.claimant.mount.store.set_journal_mode(JournalMode::Wal);
            }
            let cookie_before = self.own_cookie.unwrap_or(read.stamp().schema_cookie);
            self.own_cookie = Some(Stamp::of(&pages).schema_cookie);
            self.read = Some(self.claimant.mount.store.publish(pages, cookie_before));
        }
    }

    /// Decides about a pragma that SQLite is compiling for this database.
    pub(super) fn pragma(&mut self, name: &str, argument: Option<&str>, caller: &impl Caller) -> Pragma {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if let (Some(observed), Some(argument)) = (&self.observed, argument)
            && !HARMLESS_PRAGMAS.iter().any(|harmless| is(harmless))
        {
            observed.note_pragma(name, argument);
            if is("max_page_count") {
                observed.note_outside_effect(); // as the mode below, it is set when the statement runs
            }
        }
        if is("journal_mode") {
            return self.journal_mode(argument, caller);
        }
        let Some(argument) = argument else { return Pragma::LeftToSqlite };
        if is("locking_mode") && argument.eq_ignore_ascii_case("exclusive") {
            return Pragma::MadeQuery;
        }
        self.synchronous_was_set |= is("synchronous");
        self.pragma_changed |= !HARMLESS_PRAGMAS.iter().chain(&RESTORED_PRAGMAS).any(|harmless| is(harmless));
        Pragma::LeftToSqlite
    }

    /// Answers in SQLite's place if the engine is in WAL mode, or will be. SQLite considers WAL impossible here.
    fn journal_mode(&mut self, argument: Option<&str>, caller: &impl Caller) -> Pragma {
        let store = &self.claimant.mount.store;
        let old = store.journal_mode();
        let new = argument.and_then(|argument| requested_journal_mode(argument, caller)).unwrap_or(old);
        if new != old {
            if let Some(refusal) = self.refuse_journal_mode(new, caller) {
                return refusal;
            }
            store.set_journal_mode(new);
        }
        let is_set_by_sqlite = new == JournalMode::Rollback && argument.is_some();
        self.pragma_changed |= is_set_by_sqlite;
        if let (true, Some(observed)) = (is_set_by_sqlite, &self.observed) {
            observed.note_outside_effect();
        }
        if new == JournalMode::Wal { Pragma::Answered(c"wal") } else { Pragma::LeftToSqlite }
    }

    /// Refuses to change into or out of WAL mode where SQLite would.
    fn refuse_journal_mode(&self, new: JournalMode, caller: &impl Caller) -> Option<Pragma> {
        if caller.is_in_transaction() {
            let message = match new {
                JournalMode::Wal => c"cannot change into wal mode from within a transaction",
                JournalMode::Rollback => c"cannot change out of wal mode from within a transaction",
            };
            return Some(Pragma::Refused(ffi::SQLITE_ERROR, Some(message)));
        }
        self.is_read_only.then_some(Pragma::Refused(ffi::SQLITE_READONLY, None))
    }

    /// Makes the current settings of pragmas and file controls the connection's initial state.
    pub(super) fn approve_pragmas(&mut self) {
        self.pragma_changed = false;
        self.synchronous_was_set = false;
    }

    /// Returns whether `PRAGMA synchronous` was set since the last call.
    pub(super) fn take_synchronous_was_set(&mut self) -> bool {
        std::mem::take(&mut self.synchronous_was_set)
    }
}

/// What to do about a pragma.
pub(super) enum Pragma {
    LeftToSqlite,
    /// SQLite runs the pragma without its argument, so that it sets nothing and returns the value.
    MadeQuery,
    /// The only row of the result. SQLite gives its column the same name.
    Answered(&'static CStr),
    Refused(Code, Option<&'static CStr>),
}

/// Returns the mode that the argument of `PRAGMA journal_mode` selects. SQLite takes the first mode whose name starts
/// with the argument. If there is none, the pragma only returns the mode.
fn requested_journal_mode(argument: &str, caller: &impl Caller) -> Option<JournalMode> {
    let starts_so = |mode: &&str| mode.get(..argument.len()).is_some_and(|start| start.eq_ignore_ascii_case(argument));
    match ["delete", "persist", "off", "truncate", "memory", "wal"].into_iter().find(starts_so)? {
        "wal" => Some(JournalMode::Wal),
        "off" if caller.is_defensive() => None,
        _ => Some(JournalMode::Rollback),
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some((observation, observed)) = self.observation() {
            observation.remove(observed);
        }
        self.claimant.mount.store.release(self.claimant.token);
    }
}

/// Pragmas with an argument that leave nothing behind in the connection. They only read, or they change the database,
/// which belongs to the transaction.
const HARMLESS_PRAGMAS: [&str; 18] = [
    "application_id",
    "data_version",
    "foreign_key_check",
    "foreign_key_list",
    "incremental_vacuum",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "locking_mode",
    "optimize",
    "quick_check",
    "schema_version",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
    "wal_checkpoint",
];

/// Pragmas whose setting a session restores.
const RESTORED_PRAGMAS: [&str; 3] = ["busy_timeout", "synchronous", "wal_autocheckpoint"];

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::content::queue::Place;
    use crate::faults::Fault;
    use crate::vfs::Name;

    /// A connection with a busy handler that is not the crate's.
    struct Foreign {
        writes: bool,
        has_read: bool,
        /// How often its busy handler waits, and how. SQLite would call the handler as well.
        patience: Cell<u32>,
        sleep: fn(Duration),
    }

    impl Caller for Foreign {
        fn id(&self) -> usize {
            1
        }

        fn is_mid_transaction(&self) -> bool {
            self.has_read
        }

        fn may_write(&self) -> bool {
            self.writes
        }

        fn is_in_transaction(&self) -> bool {
            false
        }

        fn is_defensive(&self) -> bool {
            false
        }

        fn call_busy_handler(&self) -> bool {
            let left = self.patience.get();
            if left > 0 {
                self.patience.set(left - 1);
                (self.sleep)(Duration::from_millis(20));
            }
            left > 0
        }
    }

    /// Sleeps as `sqlite3_busy_timeout` does.
    fn by_the_vfs(time: Duration) {
        assert!(waiting::sleep(time));
    }

    fn writing(patience: u32, sleep: fn(Duration)) -> Foreign {
        Foreign { writes: true, has_read: false, patience: Cell::new(patience), sleep }
    }

    fn impatient() -> Foreign {
        writing(0, thread::sleep)
    }

    fn handles() -> [Handle; 2] {
        let mount = Mount::new(Snapshot::empty(), Name::Numbered);
        [Handle::new(mount.clone(), false), Handle::new(mount, false)]
    }

    /// Returns a writer, and a connection that was refused and has released what it read.
    fn refused() -> [Handle; 2] {
        let [mut writer, mut polling] = handles();
        writer.lock(Lock::Reserved, &impatient()).unwrap();
        assert_eq!(polling.lock(Lock::Reserved, &impatient()), Err(ffi::SQLITE_BUSY));
        polling.unlock(Lock::None);
        [writer, polling]
    }

    fn place(handle: &Handle) -> Place {
        handle.wait.place().expect("it waits")
    }

    #[test]
    fn a_connection_that_comes_back_waits_until_its_busy_handler_gives_up() {
        for sleep in [by_the_vfs, thread::sleep] {
            let [_writer, mut polling] = refused();
            let caller = writing(3, sleep);
            polling.lock(Lock::Shared, &caller).unwrap();
            assert_eq!(caller.patience.get(), 0);
            assert!(polling.wait.gave_up_after_waiting());
            assert_eq!(polling.lock(Lock::Reserved, &caller), Err(ffi::SQLITE_BUSY));
            assert!(polling.wait.is_idle(), "it keeps no place after that");
        }
    }

    #[test]
    fn a_connection_that_waits_is_given_the_slot_before_it_reads() {
        for sleep in [by_the_vfs, thread::sleep] {
            let [mut writer, mut polling] = refused();
            thread::scope(|scope| {
                scope.spawn(move || {
                    writer.write(0, &[1; 512]).unwrap();
                    writer.commit();
                    writer.unlock(Lock::None);
                });
                polling.lock(Lock::Reserved, &writing(u32::MAX, sleep)).unwrap();
            });
            assert_eq!(polling.size(), 512);
        }
    }

    #[test]
    fn a_connection_that_is_refused_again_keeps_its_place() {
        let [_writer, mut polling] = refused();
        let first = place(&polling);
        assert_eq!(polling.lock(Lock::Reserved, &impatient()), Err(ffi::SQLITE_BUSY));
        assert!(!first.is_before(&place(&polling)));
        polling.set_purpose(Purpose::Uri); // for the next to have the connection
        assert!(polling.wait.is_idle());
    }

    #[test]
    fn the_place_of_a_transaction_that_has_read_expires_too() {
        let [mut writer, mut other] = handles();
        let has_read = Foreign { has_read: true, ..impatient() };
        writer.lock(Lock::Reserved, &impatient()).unwrap();
        let refused = |other: &mut Handle| {
            assert_eq!(other.lock(Lock::Reserved, &has_read), Err(ffi::SQLITE_BUSY));
            place(other)
        };
        let first = refused(&mut other);
        assert!(!first.is_before(&refused(&mut other)), "it is kept");
        other.wait.expire();
        assert!(first.is_before(&refused(&mut other)));
    }

    #[test]
    fn a_connection_that_was_refused_and_only_reads_does_not_wait() {
        let [mut writer, mut polling] = refused();
        let caller =
            Foreign { writes: false, has_read: false, patience: Cell::new(u32::MAX), sleep: |_| panic!("it waits") };
        polling.lock(Lock::Shared, &caller).unwrap();
        writer.unlock(Lock::None);
        writer.lock(Lock::Reserved, &impatient()).expect("nothing is reserved for it");
    }

    #[test]
    fn a_connection_that_does_not_take_the_slot_after_all_gives_it_back() {
        let [mut writer, mut polling] = refused();
        writer.unlock(Lock::None);
        polling.lock(Lock::Shared, &impatient()).unwrap(); // with a reservation
        writer.lock(Lock::Reserved, &impatient()).expect_err("it is reserved");
        writer.unlock(Lock::None);
        polling.unlock(Lock::None);
        writer.lock(Lock::Reserved, &impatient()).expect("at once, not when the reservation has expired");
    }

    #[test]
    fn a_handle_remembers_a_fault_on_any_thread_and_no_fault_of_another_handle() {
        let [mut handle, mut other] = handles();
        handle.lock(Lock::Shared, &impatient()).unwrap();
        other.lock(Lock::Shared, &impatient()).unwrap();
        let failed = thread::scope(|scope| {
            let reads = || Fault::Io.at(1).during(|| handle.check_faults(Call::Read));
            scope.spawn(reads).join().unwrap()
        });
        assert_eq!(failed, Err(ffi::SQLITE_IOERR_READ));
        [&mut handle, &mut other].into_iter().for_each(|handle| handle.unlock(Lock::None));
        assert!(handle.is_altered() && !other.is_altered());
    }

    #[test]
    fn a_handle_remembers_a_fault_of_its_journal_but_none_from_before_it_began_to_read() {
        let [mut handle, _] = handles();
        let fail = || Fault::Io.at(1).during(|| faults::check(Call::Write)).unwrap_err();
        for (is_reading, is_altered) in [(false, false), (true, true)] {
            if !is_reading {
                fail();
            }
            handle.lock(Lock::Shared, &impatient()).unwrap();
            if is_reading {
                fail();
            }
            handle.unlock(Lock::None);
            assert_eq!(handle.is_altered(), is_altered);
        }
    }

    #[test]
    fn nothing_is_written_without_the_writer_slot() {
        let [mut handle, _] = handles();
        assert_eq!(handle.write(0, &[0; 512]), Err(ffi::SQLITE_IOERR_WRITE));
        handle.lock(Lock::Shared, &impatient()).unwrap();
        assert_eq!(handle.resize(512), Err(ffi::SQLITE_IOERR_WRITE));
        handle.lock(Lock::Reserved, &impatient()).unwrap();
        assert_eq!(handle.write(0, &[0; 512]), Ok(()));
    }

    #[test]
    fn a_closed_connection_releases_the_slot() {
        let [mut writer, mut other] = handles();
        writer.lock(Lock::Reserved, &impatient()).unwrap();
        drop(writer);
        other.lock(Lock::Reserved, &impatient()).expect("the slot is free");
    }

    #[test]
    fn a_handle_knows_its_engine() {
        let [handle, _] = handles();
        assert!(handle.is_on(&handle.claimant.mount));
        assert!(!handle.is_on(&Mount::new(Snapshot::empty(), Name::Numbered)));
    }

    #[test]
    fn pragmas_count_as_changes_until_they_are_approved() {
        let [mut handle, _] = handles();
        assert!(!handle.take_synchronous_was_set());
        for (pragma, argument) in [("cache_size", "7"), ("synchronous", "OFF")] {
            handle.pragma(pragma, Some(argument), &impatient());
        }
        assert!(handle.is_altered());
        handle.approve_pragmas();
        assert!(!handle.is_altered() && !handle.take_synchronous_was_set());
        handle.pragma("synchronous", Some("OFF"), &impatient());
        assert!(handle.take_synchronous_was_set() && !handle.take_synchronous_was_set());
    }
}
