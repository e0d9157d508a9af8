use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::callers::Runs;
use super::statement::{Begun, DEFAULT_VALUE_LIMIT, Ended, Statement, StatementKind};
use crate::sync::Recovered;

/// What a recording keeps: the newest statements, and the exact numbers of all.
pub(crate) struct Log {
    began: Instant,
    /// How many pauses there are now. Statements that begin in one are not recorded.
    pauses: AtomicUsize,
    was_paused: AtomicBool,
    state: Mutex<State>,
}

struct State {
    /// The maximum number of statements that are kept.
    limit: usize,
    /// The bytes that are kept of each value.
    value_limit: usize,
    entries: VecDeque<Entry>,
    /// How many older ones are no longer kept.
    discarded: u64,
    counts: Counts,
    /// The numbers of the connections within this recording, by their numbers in the process.
    connections: BTreeMap<u64, usize>,
    missed: Vec<Missed>,
    runs: Runs,
}

struct Entry {
    begun: Arc<Begun>,
    ended: Option<Ended>,
    connection: usize,
}

/// The numbers of statements of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    reads: u64,
    writes: u64,
    transactions: u64,
    others: u64,
}

impl Counts {
    pub(crate) fn of(&self, kind: StatementKind) -> u64 {
        match kind {
            StatementKind::Read => self.reads,
            StatementKind::Write => self.writes,
            StatementKind::Transaction => self.transactions,
            StatementKind::Other => self.others,
        }
    }

    pub(crate) fn of_mut(&mut self, kind: StatementKind) -> &mut u64 {
        match kind {
            StatementKind::Read => &mut self.reads,
            StatementKind::Write => &mut self.writes,
            StatementKind::Transaction => &mut self.transactions,
            StatementKind::Other => &mut self.others,
        }
    }
}

/// What a log has.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) statements: Vec<Statement>,
    pub(crate) counts: Counts,
    /// How many older statements were counted only.
    pub(crate) discarded: u64,
    pub(crate) missed: Vec<Missed>,
}

/// Why statements of a connection may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missed {
    connection: usize,
    reason: &'static str,
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {} {}", self.connection, self.reason)
    }
}

/// Where a statement is in a log: how many were before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// The number of statements that a recording keeps if nothing else is set.
const DEFAULT_LIMIT: usize = 10_000;

impl Log {
    pub(crate) fn new() -> Arc<Log> {
        let state = State {
            limit: DEFAULT_LIMIT,
            value_limit: DEFAULT_VALUE_LIMIT,
            entries: VecDeque::new(),
            discarded: 0,
            counts: Counts::default(),
            connections: BTreeMap::new(),
            missed: Vec::new(),
            runs: Runs::default(),
        };
        Arc::new(Log {
            began: Instant::now(),
            pauses: AtomicUsize::new(0),
            was_paused: AtomicBool::new(false),
            state: Mutex::new(state),
        })
    }

    pub(crate) fn set_limit(&self, limit: usize) {
        let mut state = self.state();
        state.limit = limit;
        state.discard_oldest();
    }

    pub(super) fn set_value_limit(&self, bytes: usize) {
        self.state().value_limit = bytes;
    }

    pub(super) fn value_limit(&self) -> usize {
        self.state().value_limit
    }

    /// Records nothing until the result is dropped.
    pub(crate) fn pause(&self) -> Pause<'_> {
        self.was_paused.store(true, Ordering::Relaxed);
        self.pauses.fetch_add(1, Ordering::Relaxed);
        Pause(self)
    }

    /// Returns whether all statements were recorded since it began.
    pub(super) fn is_whole(&self) -> bool {
        !self.was_paused.load(Ordering::Relaxed)
    }

    /// Adds a statement, unless the log is paused. Returns its place.
    pub(super) fn begin(&self, begun: &Arc<Begun>, connection: u64) -> Option<Ticket> {
        if self.pauses.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let shape = begun.hash_of_shape();
        let mut state = self.state();
        let is_repeated = shape.is_some_and(|shape| state.runs.add(shape, || self.began.elapsed()));
        let connection = state.number_of(connection);
        *state.counts.of_mut(begun.kind()) += 1;
        let ticket = Ticket(state.discarded + state.entries.len() as u64);
        state.entries.push_back(Entry { begun: begun.clone(), ended: None, connection });
        state.discard_oldest();
        drop(state);
        if is_repeated {
            let time = begun.capture_backtrace();
            self.state().runs.spend(time);
        }
        Some(ticket)
    }

    /// Adds the end of a statement, if it is still kept.
    pub(super) fn end(&self, Ticket(number): Ticket, ended: Ended) {
        let mut state = self.state();
        let index = number.checked_sub(state.discarded).and_then(|index| usize::try_from(index).ok());
        if let Some(entry) = index.and_then(|index| state.entries.get_mut(index)) {
            entry.ended = Some(ended);
        }
    }

    /// Notes why statements of a connection may be missing.
    pub(super) fn miss(&self, connection: u64, reason: &'static str) {
        let mut state = self.state();
        let connection = state.number_of(connection);
        let missed = Missed { connection, reason };
        if !state.missed.contains(&missed) {
            state.missed.push(missed);
        }
    }

    /// Returns what is kept so far.
    pub(crate) fn recorded(&self) -> Recorded {
        let state = self.state();
        let statement = |entry: &Entry| Statement {
            begun: entry.begun.clone(),
            ended: entry.ended.clone(),
            connection: entry.connection,
            recording: self.began,
        };
        Recorded {
            statements: state.entries.iter().map(statement).collect(),
            counts: state.counts,
            discarded: state.discarded,
            missed: state.missed.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().recovered()
    }
}

/// Pauses a log.
pub(crate) struct Pause<'a>(&'a Log);

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.pauses.fetch_sub(1, Ordering::Relaxed);
    }
}

impl State {
    fn discard_oldest(&mut self) {
        let excess = self.entries.len().saturating_sub(self.limit);
        self.entries.drain(..excess);
        self.discarded += excess as u64;
        self.runs.keep_at_most(self.limit);
    }

    fn number_of(&mut self, connection: u64) -> usize {
        let next = self.connections.len() + 1;
        *self.connections.entry(connection).or_insert(next)
    }
}
