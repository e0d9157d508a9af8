//! Faults of the disk and of memory, for tests of what code does when SQLite fails.
//!
//! A [`Plan`] makes the n-th call fail that SQLite makes to read, write or lock an engine. SQLite fails then as it does on
//! a real disk, with the same result code, and so does all that is above it, your code included.
//! [`everywhere`](Fault::everywhere) does that at each call in turn:
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
//! | fault | calls that it hits | what SQLite says |
//! | --- | --- | --- |
//! | [`Fault::Io`] | all | `disk I/O error`, or `unable to open database file` |
//! | [`Fault::Full`] | writes, to the database and to its journal | `database or disk is full` |
//! | [`Fault::NoMemory`] | all | `out of memory` |
//! | [`Fault::Busy`] | the locks with which a transaction begins to read, and to write | `database is locked` |
//!
//! The calls are those that SQLite makes of its VFS for an engine's database and journals: to open them, to read, write,
//! truncate and synchronise them, to ask for their size, to lock the database, and to delete the journal, with which a
//! transaction is committed. SQLite makes none for what it has in its cache: a connection that has just written a row may
//! read it without any call.
//!
//! # What a plan does not hit
//!
//! * Other threads. A plan is its thread's, so that tests beside each other never meet it. Code that hands its SQL to
//!   threads of its own, as sqlx does, has to be hit there.
//! * Temporary files, and attached databases that are no engines.
//! * The build of a [`Template`](crate::Template), which is for all tests, and its `on_connect`.
//! * The end of a commit to several engines (`ATTACH`) that can't be undone any more. SQLite ignores errors there.

use std::cell::Cell;
use std::fmt;
use std::panic::{Location, RefUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rusqlite::ffi;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The disk fails: `SQLITE_IOERR`, with the extended code of the call.
    Io,
    /// The disk is full: `SQLITE_FULL`.
    Full,
    /// There is no memory left: `SQLITE_NOMEM`.
    NoMemory,
    /// Somebody else has the lock: `SQLITE_BUSY`.
    ///
    /// SQLite calls the busy handler then, but not for a transaction that has read and now begins to write. That of units of
    /// work, pooled connections and [`connect`](crate::Engine::connect) does not wait for what is not going to happen: under
    /// [`at`](Fault::at) it has SQLite try again at once, under [`from`](Fault::from) it gives up at once, and so it does
    /// where the engine is [not to wait](crate::Engine::set_lock_timeout). One that `busy_timeout` has set waits as long as
    /// it says.
    Busy,
}

/// Which calls of SQLite's are to fail while certain work runs.
///
/// Only calls that the fault can hit are counted. A plan under which more work runs counts on.
#[must_use = "a plan does nothing but while work runs under it, in `during`"]
pub struct Plan {
    order: Order,
    progress: Cell<Progress>,
}

/// What a plan asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    fault: Fault,
    /// The number of the first call that is hit.
    first: usize,
    /// Whether those after it are hit too.
    goes_on: bool,
    /// Where the plan was made.
    at: &'static Location<'static>,
}

/// How far a plan has come.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// How many calls there were that the fault can hit.
    calls: usize,
    /// The first that was hit.
    hit: Option<Call>,
}

/// A plan at work.
#[derive(Clone, Copy)]
struct Active {
    order: Order,
    progress: Progress,
    /// Whether a commit to several databases is past the point where SQLite would undo it.
    is_past_undoing: bool,
}

/// What SQLite asks for.
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
    /// EXCLUSIVE, which the holder of RESERVED gets.
    LockExclusive,
}

/// A SQLite result code.
type Code = i32;

/// Whether there has been a plan in this process. As long as there has not, to look here is all that a call costs.
static ANY: AtomicBool = AtomicBool::new(false);

thread_local! {
    static ACTIVE: Cell<Option<Active>> = const { Cell::new(None) };
    /// How many calls have been hit, by all plans.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

impl Fault {
    /// All of them.
    pub const ALL: &'static [Fault] = &[Fault::Io, Fault::Full, Fault::NoMemory, Fault::Busy];

    /// Hits the `n`-th call and no other; the first is 1.
    ///
    /// # Panics
    /// When `n` is 0.
    #[track_caller]
    pub fn at(self, n: usize) -> Plan {
        self.plan(n, false)
    }

    /// Hits the `n`-th call and all after it; the first is 1.
    ///
    /// # Panics
    /// When `n` is 0.
    #[track_caller]
    pub fn from(self, n: usize) -> Plan {
        self.plan(n, true)
    }

    #[track_caller]
    fn plan(self, first: usize, goes_on: bool) -> Plan {
        assert!(first > 0, "calls are counted from 1");
        let order = Order { fault: self, first, goes_on, at: Location::caller() };
        Plan { order, progress: Cell::default() }
    }

    /// Runs the test under one plan after another: [`at`](Fault::at) 1, 2, 3, … until there is no such call, then
    /// [`from`](Fault::from) 1, 2, 3, … The test does its work in [`during`](Plan::during), and what it has to prepare and
    /// to check outside of that. It has to start with the same database each time.
    ///
    /// Where the test panics, the plan is printed to stderr. Code that tries again until it succeeds never ends under
    /// [`from`](Fault::from).
    ///
    /// # Panics
    /// When the test does; and when its work makes no call that the fault can hit, for that tests nothing.
    #[track_caller]
    pub fn everywhere(self, mut test: impl FnMut(&Plan)) {
        for goes_on in [false, true] {
            for first in 1.. {
                let plan = self.plan(first, goes_on);
                let told = ToldInPanic(&plan);
                test(&plan);
                drop(told);
                if !plan.was_hit() {
                    assert!(
                        first > 1,
                        "Fault::{self:?} can hit nothing: no call of an engine was made in Plan::during"
                    );
                    break;
                }
            }
        }
    }

    /// What the call fails with, if the fault can hit it.
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
    /// Does the work, of which this thread's calls fail as planned. A panic in it ends the plan too.
    ///
    /// # Panics
    /// When the work does; and within the work of another plan, for plans don't nest.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        if let Some(outer) = ACTIVE.get() {
            panic!("{} is asked for during {}: plans don't nest", self.order, outer.order);
        }
        let _ended = Ended::begin(self);
        work()
    }

    /// Whether a call was hit.
    pub fn was_hit(&self) -> bool {
        self.progress.get().hit.is_some()
    }

    /// How many calls there were that the fault can hit, whether it did or not.
    pub fn calls(&self) -> usize {
        self.progress.get().calls
    }
}

impl RefUnwindSafe for Plan {} // what a panic may leave behind is a number of calls

/// Takes a plan off its thread, also when the work panics.
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

/// Prints the plan when a panic goes past.
struct ToldInPanic<'a>(&'a Plan);

impl Drop for ToldInPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("rusqlite-fixtures: this was under {:?}", self.0);
        }
    }
}

/// What SQLite is to be told about this call: an error, if a plan of this thread hits it.
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

/// How many calls of this thread have been hit so far.
#[inline]
pub(crate) fn count() -> usize {
    if ANY.load(Ordering::Relaxed) { COUNT.try_with(Cell::get).unwrap_or(0) } else { 0 }
}

/// Whether the plan of this thread would hit one more lock.
pub(crate) fn would_refuse_again() -> bool {
    with_active(|active| active.order.hits(active.progress.calls + 1)).unwrap_or(false)
}

/// What the plan of this thread asks for.
pub(crate) fn order() -> Option<Order> {
    with_active(|active| active.order)
}

/// A commit to several databases can't be undone any more, so that SQLite ignores errors until it is done. To fail there
/// would be to lose it.
pub(crate) fn past_undoing() {
    with_active(|active| active.is_past_undoing = true);
}

fn with_active<T>(look: impl FnOnce(&mut Active) -> T) -> Option<T> {
    // A destructor of another thread-local may run SQLite when this one is gone; the plan is, too.
    let look = |cell: &Cell<Option<Active>>| {
        let mut active = cell.get()?;
        let seen = look(&mut active);
        cell.set(Some(active));
        Some(seen)
    };
    ACTIVE.try_with(look).ok().flatten()
}

/// Does what is not the test's own, and meets no faults.
pub(crate) fn spare<T>(work: impl FnOnce() -> T) -> T {
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
    /// Counts the call, if the fault can hit it; returns what it fails with, if it is hit.
    fn meet(&mut self, call: Call) -> Option<Code> {
        self.is_past_undoing &= call != Call::Lock; // with which the next transaction begins
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
        let range = if self.goes_on { "from" } else { "at" };
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
            Call::Sync => "a synchronisation",
            Call::Size => "a question for the size",
            Call::Delete => "the deletion of a journal",
            Call::Lock => "a lock to read or write",
            Call::LockExclusive => "the lock to change the file",
        })
    }
}

impl fmt::Debug for Plan {
    /// With what it has hit: `Fault::Full.at(7) of tests/bank.rs:9:17, which hit a write`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.progress.get() {
            Progress { hit: Some(call), .. } => write!(f, "{}, which hit {call}", self.order),
            Progress { calls, .. } => write!(f, "{}, which has hit nothing in {calls} calls", self.order),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_reads_as_it_was_written() {
        let order = Fault::Io.from(2).order;
        assert!(format!("{order:?}").starts_with("Fault::Io.from(2) of src/faults.rs:"), "{order:?}");
        assert_eq!(format!("{order:?}"), order.to_string());
    }
}
