use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Thread, ThreadId};
use std::time::{Duration, Instant};

use super::callers::Opening;
use super::log::{Log, Recorded, Ticket};
use super::recent::Noted;
use super::statement::{Begun, Counters, DEFAULT_VALUE_LIMIT, Ended, Statement, opened_by};
use super::waits;
use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::environment;
use crate::panics;
use crate::sync::Recovered;

/// Receives the statements that the connections of an engine run. While it is off, they report nothing.
pub(crate) struct Recorder {
    logs: Mutex<Vec<Arc<Log>>>,
    /// Whether each statement is printed.
    echoes: AtomicBool,
    is_on: AtomicBool,
    /// The bytes that are kept of each value of a statement.
    value_limit: AtomicUsize,
    /// How often it was turned on. Changes while `logs` is locked.
    runs: AtomicU64,
    transactions: AtomicU64,
    left: Mutex<Leftovers>,
}

/// What is kept of connections, recordings and engines that have ended, for the output of a test that fails.
#[derive(Default)]
struct Leftovers {
    /// By connections that a panic has rolled back or closed: the latest panic of each thread, and the newest connections.
    unwound: VecDeque<Unwound>,
    /// By transactions that were dropped without a panic: the newest ones, and the number of all.
    dropped: VecDeque<Dropped>,
    dropped_so_far: usize,
    /// The numbers of the newest connections that are closed.
    closed: VecDeque<u64>,
    /// What the latest recording that a panic has ended had kept, and the number of that panic.
    ended: Option<(Option<u64>, Recorded)>,
    /// Keeps the database, if only connections to it are left.
    keeper: Option<Arc<Keeper>>,
}

type Keeper = dyn Fn() + Send + Sync;

/// What a connection left when a panic rolled it back or closed it.
#[derive(Clone)]
pub(crate) struct Unwound {
    /// The number of the panic.
    pub(crate) panic: u64,
    pub(crate) thread: ThreadId,
    pub(crate) connection: u64,
    pub(crate) purpose: Purpose,
    /// The content that was committed then. `None`: the engine is in a file.
    pub(crate) committed: Option<Snapshot>,
    /// The content that it saw, if it had written.
    pub(crate) uncommitted: Option<Snapshot>,
    /// Why that content is not kept, if it should be.
    pub(crate) lost: Option<Lost>,
    /// SQLite's result code and message of its latest call, if that failed.
    pub(crate) error: Option<(i32, String)>,
    /// Its newest statements. Those of its thread are gone when that ends.
    pub(crate) recent: Option<Noted>,
}

/// Why content is not kept.
#[derive(Clone, Copy)]
pub(crate) enum Lost {
    /// SQLite could not read it.
    Unreadable,
    /// It has this many bytes.
    TooLarge(usize),
}

impl Unwound {
    /// Returns whether there is more than the newest statements.
    pub(crate) fn has_details(&self) -> bool {
        self.uncommitted.is_some() || self.lost.is_some() || self.error.is_some()
    }
}

/// The number of connections of panics that are remembered. (With a panic hook of other code, entries of earlier panics are not
/// recognized as old.)
const MAX_UNWOUND: usize = 16;

/// A transaction that had written, and that was rolled back because code has dropped it.
#[derive(Clone, Debug)]
pub(crate) struct Dropped {
    pub(crate) purpose: Purpose,
    /// Its number, if it was recorded.
    pub(crate) transaction: Option<u64>,
    /// Whether it is known without a recording that it had changed something.
    pub(crate) has_changed: bool,
    /// Whether that is exact. It is not for an engine in a file.
    pub(crate) is_exact: bool,
    /// Whether the connection's latest call of SQLite had failed.
    pub(crate) has_failed: bool,
    pub(crate) at: Instant,
    pub(crate) thread: Thread,
}

impl Dropped {
    /// Returns whether this thread's test has dropped it. Other tests may use the engine, on threads with their names.
    fn is_of_test(&self) -> bool {
        self.thread.id() == thread::current().id() || self.thread.name().is_none()
    }
}

/// The number of dropped transactions that are remembered.
const MAX_DROPPED: usize = 4096;

/// The number of closed connections that are remembered.
const MAX_CLOSED: usize = 64;

/// The number of recorders that are on. While there are none, a statement costs one load of this.
static ON: AtomicUsize = AtomicUsize::new(0);

impl Recorder {
    /// Returns a recorder that is off, unless the environment asks for an echo.
    pub(crate) fn new() -> Arc<Recorder> {
        let recorder = Recorder {
            logs: Mutex::default(),
            echoes: AtomicBool::new(false),
            is_on: AtomicBool::new(false),
            value_limit: AtomicUsize::new(DEFAULT_VALUE_LIMIT),
            runs: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            left: Mutex::default(),
        };
        recorder.reset_echo();
        Arc::new(recorder)
    }

    /// Returns whether any recorder of the process is on.
    #[inline]
    pub(crate) fn any_is_on() -> bool {
        ON.load(Ordering::Relaxed) > 0
    }

    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    pub(crate) fn add(&self, log: Arc<Log>) {
        let mut logs = self.logs();
        logs.push(log);
        self.update(&logs);
    }

    pub(crate) fn remove(&self, log: &Arc<Log>) {
        if thread::panicking() && log.is_whole() {
            self.left().ended = Some((latest_panic(), log.recorded()));
        }
        let mut logs = self.logs();
        logs.retain(|other| !Arc::ptr_eq(other, log));
        self.update(&logs);
    }

    /// Sets how many bytes the log gets of each value. The logs share statements, so it gets more if another one does.
    pub(crate) fn set_value_limit(&self, log: &Log, bytes: usize) {
        let logs = self.logs();
        log.set_value_limit(bytes);
        self.update(&logs);
    }

    /// Sets whether each statement is printed.
    pub(crate) fn set_echo(&self, echoes: bool) {
        let logs = self.logs();
        self.echoes.store(echoes, Ordering::Relaxed);
        self.update(&logs);
    }

    /// Resets the recorder, except for running recordings.
    pub(crate) fn reset(&self) {
        let left = std::mem::take(&mut *self.left());
        drop(left); // the lock is released
        self.reset_echo();
    }

    /// Returns what a recording has kept so far, if there is one without pauses that has statements: the one that began first,
    /// or one that this thread's panic has ended.
    pub(crate) fn recorded(&self) -> Option<Recorded> {
        let ended = || self.left().ended.clone().filter(|(panic, _)| *panic == latest_panic()).map(|(_, kept)| kept);
        let has_some = |kept: &Recorded| !kept.statements.is_empty();
        let first = self.logs().iter().find(|log| log.is_whole()).map(|log| log.recorded());
        first.filter(has_some).or_else(|| ended().filter(has_some))
    }

    /// Sets what keeps the database when a panic closes a connection to it.
    pub(crate) fn set_keeper(&self, keeper: Box<Keeper>) {
        self.left().keeper = Some(keeper.into());
    }

    /// Keeps the database, if no engine does.
    pub(crate) fn keep_database(&self) {
        let keeper = self.left().keeper.clone();
        if let Some(keep) = keeper {
            keep();
        }
    }

    /// Notes what a connection left, unless it has left something in the same panic already.
    pub(crate) fn add_unwound(&self, unwound: Unwound) {
        let all = &mut self.left().unwound;
        all.retain(|other| other.panic == unwound.panic || other.thread != unwound.thread);
        let is_known = all.iter().any(|other| (other.panic, other.connection) == (unwound.panic, unwound.connection));
        if !is_known {
            if all.len() == MAX_UNWOUND {
                all.pop_front();
            }
            all.push_back(unwound);
        }
    }

    /// Returns what connections left when a panic rolled them back or closed them.
    pub(crate) fn unwound(&self) -> Vec<Unwound> {
        self.left().unwound.iter().cloned().collect()
    }

    /// Notes that a transaction was dropped.
    pub(crate) fn add_dropped(&self, dropped: Dropped) {
        let left = &mut *self.left();
        if left.dropped.len() == MAX_DROPPED {
            left.dropped.pop_front();
        }
        left.dropped.push_back(dropped);
        left.dropped_so_far += 1;
    }

    /// Returns the number of transactions that were dropped.
    pub(crate) fn dropped_so_far(&self) -> usize {
        self.left().dropped_so_far
    }

    /// Returns the transactions that were dropped after the first `count`; the newest, if these are many.
    pub(crate) fn dropped_after(&self, count: usize) -> Vec<Dropped> {
        let left = self.left();
        let first = left.dropped_so_far - left.dropped.len();
        left.dropped.iter().skip(count.saturating_sub(first)).cloned().collect()
    }

    /// Calls the function with each transaction that this thread's test has dropped.
    pub(crate) fn each_dropped_by_test(&self, note: impl FnMut(Purpose)) {
        let left = self.left();
        left.dropped
            .iter()
            .filter(|dropped| dropped.has_changed && dropped.is_of_test())
            .map(|dropped| dropped.purpose)
            .for_each(note);
    }

    /// Notes that a connection is closed.
    pub(crate) fn add_closed(&self, connection: u64) {
        let closed = &mut self.left().closed;
        if closed.len() == MAX_CLOSED {
            closed.pop_front();
        }
        closed.push_back(connection);
    }

    /// Returns whether this connection was one of the engine's.
    pub(crate) fn had_connection(&self, connection: u64) -> bool {
        self.left().closed.contains(&connection)
    }

    /// Prints statements only if the environment asks for it.
    fn reset_echo(&self) {
        if self.echoes.load(Ordering::Relaxed) != environment::echo() {
            self.set_echo(environment::echo());
        }
    }

    fn update(&self, logs: &[Arc<Log>]) {
        let is_on = !logs.is_empty() || self.echoes.load(Ordering::Relaxed);
        let was_on = self.is_on.load(Ordering::Relaxed);
        if is_on && !was_on {
            self.runs.fetch_add(1, Ordering::Relaxed);
            self.transactions.store(0, Ordering::Relaxed);
            ON.fetch_add(1, Ordering::Relaxed);
        } else if was_on && !is_on {
            ON.fetch_sub(1, Ordering::Relaxed);
        }
        let value_limit = logs.iter().map(|log| log.value_limit()).max();
        self.value_limit.store(value_limit.unwrap_or(DEFAULT_VALUE_LIMIT), Ordering::Relaxed);
        self.is_on.store(is_on, Ordering::Release);
    }

    /// Notes why the recordings may have missed a statement of the connection.
    pub(crate) fn miss(&self, connection: u64, reason: &'static str) {
        self.logs().iter().for_each(|log| log.miss(connection, reason));
    }

    fn logs_and_run(&self) -> (Vec<Arc<Log>>, u64) {
        let logs = self.logs();
        (logs.clone(), self.runs.load(Ordering::Relaxed))
    }

    fn left(&self) -> MutexGuard<'_, Leftovers> {
        self.left.lock().recovered()
    }

    fn logs(&self) -> MutexGuard<'_, Vec<Arc<Log>>> {
        self.logs.lock().recovered()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.logs().clear();
        self.set_echo(false);
    }
}

/// Returns the number of this thread's latest panic.
fn latest_panic() -> Option<u64> {
    panics::latest().map(|panic| panic.number)
}

/// A connection of an engine. It is used by one thread at a time.
pub(crate) struct Connection {
    id: u64,
    recorder: Arc<Recorder>,
    /// Where it was opened, if statements were recorded then.
    opening: Option<Arc<Opening>>,
    /// Whether its waits for the writer slot are those of `waits`, unless a busy handler that code has set waits.
    is_in_queue: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The run of the recorder that the state is of.
    run: u64,
    running: Vec<Running>,
    /// The number of the open transaction, if a statement of it was recorded.
    transaction: Option<u64>,
}

/// A statement that has begun and not ended.
struct Running {
    /// Its address.
    statement: usize,
    begun: Arc<Begun>,
    rows: u64,
    /// SQLite's counters when it began.
    before: Counters,
    /// How long this thread had waited for writer slots when it began, and how many such waits may have been longer.
    waits_before: (Duration, u64),
    tickets: Vec<(Arc<Log>, Ticket)>,
}

/// The number of the next connection in the process.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Connection {
    /// Returns a connection of this thread. Notes where it is opened, if that is asked for and statements are recorded.
    pub(crate) fn new(recorder: Arc<Recorder>, is_in_queue: bool, notes_opening: bool) -> Connection {
        let opening = (notes_opening && recorder.is_on()).then(Opening::here);
        Connection { id: NEXT.fetch_add(1, Ordering::Relaxed), recorder, opening, is_in_queue, state: Mutex::default() }
    }

    /// Returns what it is for, and the line that opened it, if that is known.
    pub(crate) fn opened_by(&self, purpose: Purpose) -> String {
        opened_by(purpose, self.opening.as_deref())
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Returns the number of the open transaction, if it is recorded.
    pub(crate) fn open_transaction(&self) -> Option<u64> {
        self.is_recorded().then(|| self.state().transaction).flatten()
    }

    pub(crate) fn is_recorded(&self) -> bool {
        self.recorder.is_on()
    }

    /// Records the beginning of a statement. `begun` gets the number of the transaction that is open, if
    /// `is_in_transaction`, and how many bytes are kept of each value.
    pub(crate) fn begin(
        &self,
        statement: usize,
        before: Counters,
        is_in_transaction: bool,
        begun: impl FnOnce(Option<u64>, usize) -> Begun,
    ) {
        // A recording may end and another one begin meanwhile: then this belongs to the first one.
        let (logs, run) = self.recorder.logs_and_run();
        let mut state = self.state_in(run);
        let transaction = self.transaction(&mut state, is_in_transaction);
        let begun = begun(transaction, self.recorder.value_limit.load(Ordering::Relaxed));
        let begun = Arc::new(begun.opened(self.opening.clone()));
        let tickets =
            logs.into_iter().filter_map(|log| log.begin(&begun, self.id).map(|ticket| (log, ticket))).collect();
        state.running.retain(|running| running.statement != statement); // its end was not seen
        state.running.push(Running { statement, begun, rows: 0, before, waits_before: waits::total(), tickets });
    }

    /// Returns whether the latest recorded statement that is running may call SQL functions of the program. (Other ones, such as
    /// VACUUM, run statements of SQLite's own.)
    pub(crate) fn runs_functions(&self) -> bool {
        let latest = |state: &State| state.running.last().map(|running| running.begun.clone());
        self.is_recorded() && latest(&self.state()).is_some_and(|begun| begun.reads_or_changes_rows())
    }

    /// Counts a row.
    pub(crate) fn row(&self, statement: usize) {
        if let Some(running) = self.state().running.iter_mut().find(|running| running.statement == statement) {
            running.rows += 1;
        }
    }

    /// Returns when a statement that is running began, and the number of its rows so far, if its beginning was recorded.
    pub(crate) fn running(&self, statement: usize) -> Option<(Instant, u64)> {
        let state = self.state();
        let running = state.running.iter().find(|running| running.statement == statement)?;
        Some((running.begun.at(), running.rows))
    }

    /// Records the end of a statement, if its beginning was recorded.
    pub(crate) fn end(
        &self,
        statement: usize,
        after: Counters,
        is_in_transaction: bool,
        holds_slot: bool,
        changes: u64,
        error: Option<(i32, Box<str>)>,
    ) {
        let mut state = self.state();
        let Some(at) = state.running.iter().position(|running| running.statement == statement) else { return };
        let Running { begun, rows, before, waits_before, tickets, .. } = state.running.remove(at); // in the order of their beginnings
        let transaction = self.transaction(&mut state, is_in_transaction);
        drop(state);
        let (duration, counters) = (begun.elapsed(), after.since(before));
        let (waits, unknown) = waits::total();
        let waited = waits.saturating_sub(waits_before.0);
        let wait_is_exact = self.is_in_queue && unknown == waits_before.1;
        let ended = Ended { duration, waited, wait_is_exact, rows, changes, error, counters, transaction, holds_slot };
        if self.recorder.echoes.load(Ordering::Relaxed) {
            eprintln!("rusqlite-fixtures: {}", Statement::alone(begun, ended.clone()));
        }
        for (log, ticket) in tickets {
            log.end(ticket, ended.clone());
        }
    }

    /// Records an error of a statement that may go on. If it does, its end replaces this.
    pub(crate) fn end_for_now(&self, statement: usize, error: (i32, Box<str>)) {
        let state = self.state();
        if let Some(running) = state.running.iter().find(|running| running.statement == statement) {
            let ended = Ended { duration: running.begun.elapsed(), error: Some(error), ..Ended::default() };
            running.tickets.iter().for_each(|(log, ticket)| log.end(*ticket, ended.clone()));
        }
    }

    /// Notes why statements of the connection may not be recorded.
    pub(crate) fn miss(&self, reason: &'static str) {
        self.recorder.miss(self.id, reason);
    }

    /// Returns the number of the open transaction.
    fn transaction(&self, state: &mut State, is_open: bool) -> Option<u64> {
        if !is_open {
            state.transaction = None;
            return None;
        }
        Some(*state.transaction.get_or_insert_with(|| self.recorder.transactions.fetch_add(1, Ordering::Relaxed) + 1))
    }

    /// Returns the state. What is of an earlier run of the recorder is forgotten.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state_in(self.recorder.runs.load(Ordering::Relaxed))
    }

    fn state_in(&self, run: u64) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().recovered();
        if state.run != run {
            *state = State { run, ..State::default() };
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No other test of the library records anything.
    #[test]
    fn a_recorder_is_on_while_it_has_a_log_or_an_echo() {
        let recorder = Recorder::new();
        let assert_is_on = |expected: bool| {
            assert_eq!((recorder.is_on(), Recorder::any_is_on()), (expected, expected));
        };
        assert_is_on(false);
        let logs = [Log::new(), Log::new()];
        for log in &logs {
            recorder.add(log.clone());
            assert_is_on(true);
        }
        recorder.set_echo(true);
        recorder.remove(&logs[0]);
        recorder.remove(&logs[1]);
        assert_is_on(true);
        recorder.reset();
        assert_is_on(false);
        recorder.set_echo(false);
        assert_is_on(false);
        let dropped = Recorder::new();
        dropped.add(logs[0].clone());
        assert!(Recorder::any_is_on() && !recorder.is_on());
        drop(dropped);
        assert_is_on(false);
        keeps_what_a_log_has(&recorder);
        assert_is_on(false);
    }

    fn keeps_what_a_log_has(recorder: &Recorder) {
        let log_of = |sql: &str| {
            let log = Log::new();
            recorder.add(log.clone());
            let begun = Begun::now(sql, None, true, Purpose::Uri, None, DEFAULT_VALUE_LIMIT);
            log.begin(&Arc::new(begun), 1);
            log
        };
        let kept = || recorder.recorded().map(|kept| kept.statements[0].sql().to_owned());
        let (one, other) = (log_of("SELECT 1"), log_of("SELECT 2"));
        assert_eq!(kept().as_deref(), Some("SELECT 1"), "the first one");
        drop(one.pause());
        assert_eq!(kept().as_deref(), Some("SELECT 2"), "the first one without a pause");
        recorder.remove(&other);
        assert_eq!(kept(), None, "no panic has ended it");
        recorder.remove(&one);
    }
}
