//! Fault injection: tests what code does when the disk, the memory or a lock fails SQLite.
//!
//! A [`Plan`] fails SQLite's n-th call to read, write or lock an engine. SQLite then fails with the same result code as
//! on a real disk, and your code gets the error. [`everywhere`](Fault::everywhere) fails each call in turn, for n = 1,
//! 2, 3, …:
//!
//! ```
//! # use rusqlite_fixtures::Template;
//! # use rusqlite_fixtures::faults::Fault;
//! # use rusqlite_fixtures::rusqlite::{Connection, Result};
//! static BANK: Template =
//!     Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INT NOT NULL)")
//!         .seed("INSERT INTO account VALUES (1, 100), (2, 0)");
//!
//! fn transfer(connection: &mut Connection, amount: i64) -> Result<()> {
//!     let add = "UPDATE account SET balance = balance + ?2 WHERE id = ?1";
//!     let transaction = connection.transaction()?;
//!     transaction.execute(add, [1, -amount])?;
//!     transaction.execute(add, [2, amount])?;
//!     transaction.commit()
//! }
//!
//! Fault::Full.everywhere(|plan| {
//!     let bank = BANK.new_engine().unwrap();
//!     let mut connection = bank.pooled_connection().unwrap();
//!     let result = plan.during(|| transfer(&mut connection, 30));
//!     let sql = "SELECT balance FROM account WHERE id = 2";
//!     let arrived: i64 = connection.query_row(sql, [], |row| row.get(0)).unwrap();
//!     assert_eq!(arrived, if result.is_ok() { 30 } else { 0 });
//! });
//! ```
//!
//! # What fails, and how
//!
//! | fault | calls that it fails | SQLite's message |
//! | --- | --- | --- |
//! | [`Fault::Io`] | all | `disk I/O error`, or `unable to open database file` |
//! | [`Fault::Full`] | writes, to the database and to its journal | `database or disk is full` |
//! | [`Fault::NoMemory`] | all | `out of memory` |
//! | [`Fault::Busy`] | the locks with which a transaction begins to read and to write | `database is locked` |
//!
//! The calls are SQLite's calls to its VFS for an engine's database and journals: to open, read, write, truncate and
//! synchronize them, to get their size, to lock the database, and to delete the journal, which commits a transaction.
//! SQLite makes no call for pages in its cache: a connection that has just written a row may read it without any call.
//!
//! # What a plan does not affect
//!
//! * Other threads. A plan affects only the current thread, and no parallel test. If code runs its SQL on other
//!   threads, as sqlx does, use the plan there.
//! * Temporary files, and attached databases that are not engines.
//! * The build of a [`Template`](crate::Template), because all tests share it, and its `on_connect`.
//! * Engines in files ([`Engine::file`](crate::Engine::file)). With `RUSQLITE_FIXTURES_BACKEND=file`, each plan prints that.
//! * The end of a commit to several engines (`ATTACH`), from when the commit can't be undone any more. SQLite ignores
//!   errors there.

use std::cell::Cell;
use std::fmt;
use std::panic::{Location, RefUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rusqlite::ffi;

use crate::environment::Backend;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The disk fails: `SQLITE_IOERR`, with the extended code of the call.
    Io,
    /// The disk is full: `SQLITE_FULL`.
    Full,
    /// There is no memory left: `SQLITE_NOMEM`.
    NoMemory,
    /// Another connection has the lock: `SQLITE_BUSY`.
    ///
    /// SQLite then calls the busy handler, except for a transaction that has read and now begins to write. The busy
    /// handler of units of work, pooled connections and [`connect`](crate::Engine::connect) does not wait, because the
    /// lock would never become free. Under [`at`](Fault::at), it makes SQLite retry at once. Under
    /// [`starting_at`](Fault::starting_at), or with a [lock timeout](crate::Engine::set_lock_timeout) of zero, it gives
    /// up at once. A handler set by `busy_timeout` waits for the whole timeout.
    Busy,
}

/// A plan that determines which of SQLite's calls fail while some work runs.
///
/// It counts only the calls that its fault can fail. If more work runs under the same plan, the count continues.
#[must_use = "a plan has an effect only on work in `during`"]
pub struct Plan {
    order: Order,
    progress: Cell<Progress>,
}

/// What a plan does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    fault: Fault,
    /// The number of the first call that fails.
    first: usize,
    /// Whether all later calls fail too.
    goes_on: bool,
    /// Where the plan was created.
    at: &'static Location<'static>,
}

/// The progress of a plan.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// The number of calls so far that the fault can fail.
    calls: usize,
    /// The first call that failed.
    hit: Option<Call>,
}

/// The plan that is in effect on a thread.
#[derive(Clone, Copy)]
struct Active {
    order: Order,
    progress: Progress,
    /// Whether a commit to several databases can't be undone any more.
    is_past_undoing: bool,
}

/// A call of SQLite to the VFS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Open,
    Read,
    Write,
    Truncate,
    Sync,
    Size,
    Delete,
    /// SHARED or RESERVED.
    Lock,
    /// EXCLUSIVE, which only a connection with RESERVED takes.
    LockExclusive,
}

/// A SQLite result code.
type Code = i32;

/// Whether this process has ever used a plan. Until then, a call costs only one load of this.
static ANY: AtomicBool = AtomicBool::new(false);

thread_local! {
    static ACTIVE: Cell<Option<Active>> = const { Cell::new(None) };
    /// The number of calls that have failed, by all plans.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

impl Fault {
    /// All kinds of faults.
    pub const ALL: &'static [Fault] = &[Fault::Io, Fault::Full, Fault::NoMemory, Fault::Busy];

    /// Returns a plan that fails only the `n`-th call, counted from 1.
    ///
    /// # Panics
    /// When `n` is 0.
    #[track_caller]
    pub fn at(self, n: usize) -> Plan {
        self.is_skipped();
        self.plan(n, false)
    }

    /// Returns a plan that fails the `n`-th call, counted from 1, and all later calls.
    ///
    /// # Panics
    /// When `n` is 0.
    #[track_caller]
    pub fn starting_at(self, n: usize) -> Plan {
        self.is_skipped();
        self.plan(n, true)
    }

    /// Returns whether engines are in files, where no call fails, and prints that.
    #[track_caller]
    fn is_skipped(self) -> bool {
        Backend::skips(format_args!("Fault::{self:?} at {} fails no call", Location::caller()))
    }

    #[track_caller]
    fn plan(self, first: usize, goes_on: bool) -> Plan {
        assert!(first > 0, "calls are counted from 1");
        let order = Order { fault: self, first, goes_on, at: Location::caller() };
        Plan { order, progress: Cell::default() }
    }

    /// Runs the test under one plan after another: [`at`](Fault::at) 1, 2, 3, … until there is no such call, then
    /// [`starting_at`](Fault::starting_at) 1, 2, 3, …
    ///
    /// The test calls the code under test in [`during`](Plan::during), and prepares and checks outside of it. It has to
    /// start with the same database each time. If the test panics, the plan is printed to stderr. Code that retries
    /// until it succeeds never ends under [`starting_at`](Fault::starting_at).
    ///
    /// With `RUSQLITE_FIXTURES_BACKEND=file`, no call can be made to fail. The test then runs once, and a line on stderr says
    /// that.
    ///
    /// # Panics
    /// When the test panics, or when its work makes no call that the fault can fail.
    #[track_caller]
    pub fn everywhere(self, mut test: impl FnMut(&Plan)) {
        if self.is_skipped() {
            return test(&self.plan(1, false));
        }
        for goes_on in [false, true] {
            for first in 1.. {
                let plan = self.plan(first, goes_on);
                let report = ReportInPanic(&plan);
                test(&plan);
                drop(report);
                if !plan.was_hit() {
                    assert!(
                        first > 1,
                        "Fault::{self:?} fails no call: SQLite made no such call to an engine in Plan::during"
                    );
                    break;
                }
            }
        }
    }

    /// Returns the code that the call fails with, if the fault can fail it.
    fn code(self, call: Call) -> Option<Code> {
        match (self, call) {
            (Fault::Io, call) => Some(io_error(call)),
            (Fault::Full, Call::Write) => Some(ffi::SQLITE_FULL),
            (Fault::NoMemory, Call::Open) => Some(ffi::SQLITE_NOMEM),
            (Fault::NoMemory, _) => Some(ffi::SQLITE_IOERR_NOMEM),
            (Fault::Busy, Call::Lock) => Some(ffi::SQLITE_BUSY),
            (Fault::Full | Fault::Busy, _) => None,
        }
    }
}

fn io_error(call: Call) -> Code {
    match call {
        Call::Open => ffi::SQLITE_CANTOPEN,
        Call::Read => ffi::SQLITE_IOERR_READ,
        Call::Write => ffi::SQLITE_IOERR_WRITE,
        Call::Truncate => ffi::SQLITE_IOERR_TRUNCATE,
        Call::Sync => ffi::SQLITE_IOERR_FSYNC,
        Call::Size => ffi::SQLITE_IOERR_FSTAT,
        Call::Delete => ffi::SQLITE_IOERR_DELETE,
        Call::Lock | Call::LockExclusive => ffi::SQLITE_IOERR_LOCK,
    }
}

impl Plan {
    /// Runs the work, and fails SQLite's calls on this thread as planned. The plan ends with the work, even if it
    /// panics.
    ///
    /// # Panics
    /// When the work panics, or when the work of another plan calls this. Plans don't nest.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        if let Some(outer) = ACTIVE.get() {
            panic!("can't start {} during {}: plans don't nest", self.order, outer.order);
        }
        let _ended = Ended::begin(self);
        work()
    }

    /// Returns whether a call has failed.
    pub fn was_hit(&self) -> bool {
        self.progress.get().hit.is_some()
    }

    /// Returns the number of calls so far that the fault can fail, whether they failed or not.
    pub fn calls(&self) -> usize {
        self.progress.get().calls
    }
}

impl RefUnwindSafe for Plan {} // a panic can only leave the number of calls incomplete

/// Ends a plan when it is dropped, also in a panic.
struct Ended<'a>(&'a Plan);

impl Ended<'_> {
    fn begin(plan: &Plan) -> Ended<'_> {
        ANY.store(true, Ordering::Relaxed);
        ACTIVE.set(Some(Active { order: plan.order, progress: plan.progress.get(), is_past_undoing: false }));
        Ended(plan)
    }
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if let Some(active) = ACTIVE.take() {
            self.0.progress.set(active.progress);
        }
    }
}

/// Prints the plan if it is dropped in a panic.
struct ReportInPanic<'a>(&'a Plan);

impl Drop for ReportInPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("rusqlite-fixtures: the panic happened during {:?}", self.0);
        }
    }
}

/// Returns the code that the call fails with, if this thread has a plan that fails it.
#[inline]
pub(crate) fn check(call: Call) -> Result<(), Code> {
    if ANY.load(Ordering::Relaxed) { check_plan(call) } else { Ok(()) }
}

#[cold]
fn check_plan(call: Call) -> Result<(), Code> {
    let Some(code) = with_active(|active| active.meet(call)).flatten() else { return Ok(()) };
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
    Err(code)
}

/// Returns the number of calls that have failed on this thread so far.
#[inline]
pub(crate) fn count() -> usize {
    if ANY.load(Ordering::Relaxed) { COUNT.try_with(Cell::get).unwrap_or(0) } else { 0 }
}

/// Returns whether the plan of this thread would fail one more lock.
pub(crate) fn would_refuse_again() -> bool {
    with_active(|active| active.order.hits(active.progress.calls + 1)).unwrap_or(false)
}

/// Returns what the plan of this thread does.
pub(crate) fn order() -> Option<Order> {
    with_active(|active| active.order)
}

/// Exempts the rest of a commit to several databases, which can't be undone any more. SQLite ignores errors there, so a
/// fault would lose the commit.
pub(crate) fn past_undoing() {
    with_active(|active| active.is_past_undoing = true);
}

fn with_active<T>(look: impl FnOnce(&mut Active) -> T) -> Option<T> {
    // A destructor of another thread-local may run SQLite after this thread-local is destroyed. Then no plan is in
    // effect.
    let look = |cell: &Cell<Option<Active>>| {
        let mut active = cell.get()?;
        let seen = look(&mut active);
        cell.set(Some(active));
        Some(seen)
    };
    ACTIVE.try_with(look).ok().flatten()
}

/// Runs work that is not a part of the test, without faults.
pub(crate) fn exempt<T>(work: impl FnOnce() -> T) -> T {
    struct Resumed(Option<Active>);
    impl Drop for Resumed {
        fn drop(&mut self) {
            ACTIVE.set(self.0);
        }
    }
    let _resumed = Resumed(ACTIVE.take());
    work()
}

impl Active {
    /// Counts the call if the fault can fail it. Returns the code if the call fails.
    fn meet(&mut self, call: Call) -> Option<Code> {
        self.is_past_undoing &= call != Call::Lock; // the next transaction begins with it
        let code = self.order.fault.code(call).filter(|_| !self.is_past_undoing)?;
        self.progress.calls += 1;
        if !self.order.hits(self.progress.calls) {
            return None;
        }
        self.progress.hit.get_or_insert(call);
        Some(code)
    }
}

impl Order {
    fn hits(&self, number: usize) -> bool {
        number == self.first || self.goes_on && number > self.first
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = if self.goes_on { "starting_at" } else { "at" };
        write!(f, "Fault::{:?}.{range}({}) of {}", self.fault, self.first, self.at)
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Call::Open => "an opening of a file",
            Call::Read => "a read",
            Call::Write => "a write",
            Call::Truncate => "a truncation",
            Call::Sync => "a synchronization",
            Call::Size => "a query of the size",
            Call::Delete => "the deletion of a journal",
            Call::Lock => "a lock to read or write",
            Call::LockExclusive => "the lock to change the file",
        })
    }
}

impl fmt::Debug for Plan {
    /// Prints the plan and what it has failed: `Fault::Full.at(7) of tests/bank.rs:9:17, which failed a write`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.progress.get() {
            Progress { hit: Some(call), .. } => write!(f, "{}, which failed {call}", self.order),
            Progress { calls, .. } => write!(f, "{}, which has failed none of {calls} calls", self.order),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_prints_like_the_code_that_creates_it() {
        let order = Fault::Io.starting_at(2).order;
        assert!(format!("{order:?}").starts_with("Fault::Io.starting_at(2) of src/faults.rs:"), "{order:?}");
        assert_eq!(format!("{order:?}"), order.to_string());
    }

    #[test]
    fn a_plan_prints_the_first_call_that_it_has_failed() {
        let plan = Fault::Io.starting_at(2);
        let results = plan.during(|| [Call::Lock, Call::Read, Call::Write].map(check));
        assert_eq!(results, [Ok(()), Err(ffi::SQLITE_IOERR_READ), Err(ffi::SQLITE_IOERR_WRITE)]);
        assert!(format!("{plan:?}").ends_with(", which failed a read"), "{plan:?}");
    }

    #[test]
    fn an_exemption_ends_with_its_work_even_if_that_panics() {
        let plan = Fault::Io.starting_at(1);
        plan.during(|| {
            assert_eq!(exempt(|| check(Call::Read)), Ok(()));
            assert_eq!(check(Call::Read), Err(ffi::SQLITE_IOERR_READ));
            let panicking = || exempt(|| panic!("in a function of the test"));
            std::panic::catch_unwind(panicking).unwrap_err();
            assert_eq!(check(Call::Write), Err(ffi::SQLITE_IOERR_WRITE));
        });
        assert_eq!(plan.calls(), 2);
    }
}
