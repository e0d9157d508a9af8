//! The worker threads of a run: they start a round together, work, and report what each has done.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::ErrorCode;

use super::finished::{Event, Failure, Finished};
use super::pause::{Kind, Pause, Rendezvous};
use super::worker::{Random, Worker};
use crate::error::{BoxError, Error, words_of_panic};
use crate::marks;
use crate::sync::Recovered;
use crate::test_thread;

/// The worker threads of a run, which stay for all rounds. `S` is the state that the workers share in a round.
pub(super) struct Threads<S, T> {
    run: Arc<Run>,
    starts: Vec<Sender<Start<S>>>,
    threads: Vec<JoinHandle<()>>,
    finished: Receiver<Finished<T>>,
}

/// Makes a worker thread start a round.
struct Start<S> {
    round: usize,
    state: Arc<S>,
}

impl<S: Send + Sync + 'static, T: Send + 'static> Threads<S, T> {
    pub(super) fn start<F>(run: Run, work: F) -> Threads<S, T>
    where
        F: Fn(&mut Worker, &S) -> Result<T, BoxError> + Send + Sync + 'static,
    {
        let (run, work) = (Arc::new(run), Arc::new(work));
        let (done, finished) = mpsc::channel();
        let test = test_thread::id();
        let start = |number| {
            let (start, starts) = mpsc::channel();
            let (run, done, work) = (run.clone(), done.clone(), work.clone());
            let name = format!("hammer {number}"); // errors of the writer slot name the thread
            let work = move || {
                test_thread::act_for(test);
                run.work(number, &starts, &done, &*work);
            };
            let thread = thread::Builder::new().name(name).spawn(work);
            (start, thread.expect("the system starts a thread"))
        };
        let (starts, threads) = (0..run.threads).map(start).unzip();
        Threads { run, starts, threads, finished }
    }

    /// Runs a round, and waits until all workers have ended it or the deadline has passed. Returns what the workers
    /// have done, in order of their numbers. The state is dropped before it returns, unless a worker hangs.
    pub(super) fn run_round(&self, round: usize, state: S, deadline: Duration) -> Vec<Finished<T>> {
        let state = Arc::new(state);
        let start = Instant::now();
        self.run.rendezvous.begin_round();
        for worker in &self.starts {
            worker.send(Start { round, state: state.clone() }).expect("workers stay until they are joined");
        }
        let mut finished: Vec<Option<Finished<T>>> = self.starts.iter().map(|_| None).collect();
        while finished.iter().any(Option::is_none) {
            let Ok(worker) = self.finished.recv_timeout(deadline.saturating_sub(start.elapsed())) else { break };
            let number = worker.number;
            finished[number] = Some(worker);
        }
        let or_hung = |(number, worker): (usize, Option<_>)| worker.unwrap_or_else(|| self.run.hung(number, start));
        finished.into_iter().enumerate().map(or_hung).collect()
    }

    /// Waits until the threads have ended and what the work has captured is dropped. Returns the pauses that timed out.
    pub(super) fn join(self) -> Vec<(&'static str, usize)> {
        drop(self.starts);
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
        self.run.rendezvous.timed_out()
    }

    /// Detaches the threads. A thread that does not hang ends after this round. Returns the pauses that timed out.
    pub(super) fn detach(self) -> Vec<(&'static str, usize)> {
        self.run.rendezvous.timed_out()
    }
}

/// What the worker threads of a run share.
pub(super) struct Run {
    threads: usize,
    seed: u64,
    pauses: Vec<(&'static str, Pause)>,
    rendezvous: Rendezvous,
    /// How often a worker has come to the start of a round.
    awake: AtomicUsize,
    /// Until a round hangs, only the worker with this number uses its state.
    workers: Vec<Mutex<WorkerState>>,
}

/// What one worker has done in the current round.
struct WorkerState {
    events: Vec<Event>,
    /// The mark at which the worker is paused.
    paused_at: Option<&'static str>,
    /// For pauses of random length.
    random: Random,
}

impl WorkerState {
    fn has_reached(&self, mark: &str) -> bool {
        self.events.iter().any(|event| event.mark == mark)
    }
}

impl Run {
    pub(super) fn new(threads: usize, seed: u64, pauses: &[(&'static str, Pause)]) -> Run {
        let worker = |_| Mutex::new(WorkerState { events: Vec::new(), paused_at: None, random: Random::with_seed(0) });
        Run {
            threads,
            seed: Random::with_seed(seed).u64(..), // neighboring seeds become distant ones
            pauses: pauses.to_vec(),
            rendezvous: Rendezvous::new(threads, pauses),
            awake: AtomicUsize::new(0),
            workers: (0..threads).map(worker).collect(),
        }
    }

    /// What a worker thread does: calls `work` in each round, until there are no more.
    fn work<S, T>(
        self: Arc<Run>,
        number: usize,
        starts: &Receiver<Start<S>>,
        done: &Sender<Finished<T>>,
        work: &impl Fn(&mut Worker, &S) -> Result<T, BoxError>,
    ) {
        let run = self.clone();
        let _observed = marks::observe(move |mark, engine| run.reached(number, mark, engine));
        for Start { round, state } in starts {
            let mut worker = self.worker(number, round);
            self.wait_until_all_are_awake(round);
            let begun = Instant::now();
            let result = caught(|| work(&mut worker, &state));
            let ended = Instant::now();
            drop(state); // before the round ends, so that the last reference is dropped by the thread that runs the hammer
            self.rendezvous.end_round(number);
            let events = std::mem::take(&mut self.state_of(number).events);
            if done.send(Finished { number, begun, ended, result, events }).is_err() {
                return; // the deadline had passed, and the threads were detached
            }
        }
    }

    fn worker(&self, number: usize, round: usize) -> Worker {
        // Neighbouring workers and rounds get distant seeds.
        let spread = |number: usize| (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let seed = self.seed ^ spread(round * self.threads + number);
        self.state_of(number).random = Random::with_seed(!seed);
        Worker::new(number, round, self.threads, Random::with_seed(seed))
    }

    /// To wake a thread often takes longer than the code under test. So the threads that are awake yield until all
    /// threads are awake.
    fn wait_until_all_are_awake(&self, round: usize) {
        self.awake.fetch_add(1, Ordering::Relaxed);
        while self.awake.load(Ordering::Relaxed) < self.threads * (round + 1) {
            thread::yield_now();
        }
    }

    fn reached(&self, number: usize, mark: &'static str, engine: Option<u64>) {
        if self.pauses.iter().any(|(at, _)| *at == mark) && !self.state_of(number).has_reached(mark) {
            self.state_of(number).paused_at = Some(mark);
            self.rendezvous.arrive(mark, number);
            let here = |(at, pause): &&(&str, Pause)| *at == mark && pause.applies_to(number);
            self.pauses.iter().filter(here).for_each(|(_, pause)| self.pause(pause, mark, number));
            self.state_of(number).paused_at = None;
        }
        self.state_of(number).events.push(Event { mark, engine, at: Instant::now() });
        self.rendezvous.pass(mark, number); // after the event is recorded, or the next worker's could be recorded before
    }

    fn pause(&self, pause: &Pause, mark: &'static str, number: usize) {
        match &pause.kind {
            Kind::Time(time) => thread::sleep(*time),
            Kind::UpTo(longest) => {
                let part = self.state_of(number).random.f64();
                thread::sleep(longest.mul_f64(part));
            }
            Kind::ForAll => self.rendezvous.wait_for_all(pause, mark),
            Kind::InOrder(order) => self.rendezvous.wait_for_those_before(pause, order, mark, number),
        }
    }

    /// Describes a worker that has not ended its round.
    fn hung<T>(&self, number: usize, begun: Instant) -> Finished<T> {
        let (events, paused_at) = {
            let state = self.state_of(number);
            (state.events.clone(), state.paused_at)
        };
        let ended = Instant::now();
        let place = match (paused_at, events.last()) {
            (Some(mark), _) => format!("in a pause at the mark `{mark}`"),
            (None, Some(Event { mark, at, .. })) => {
                format!("after the mark `{mark}`, which it reached {:.1?} ago", ended - *at)
            }
            (None, None) => "before it reached any mark".to_owned(),
        };
        Finished { number, begun, ended, result: Err(Failure::Hung(place)), events }
    }

    fn state_of(&self, number: usize) -> MutexGuard<'_, WorkerState> {
        // Nothing panics while it is locked.
        self.workers[number].lock().recovered()
    }
}

/// Calls the work, and returns its error or panic as a failure.
fn caught<T>(work: impl FnOnce() -> Result<T, BoxError>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| Failure::Error(explained(error))),
        Err(panic) => {
            let words = words_of_panic(&*panic).to_owned();
            if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
                std::mem::forget(second); // to drop it might panic again, without end
            }
            Err(Failure::Panic(words))
        }
    }
}

/// Returns the error. Converts a SQLite error about a lock to the crate's error, which names the holder of the lock.
/// Only this thread knows the holder.
fn explained(error: BoxError) -> BoxError {
    let is_about_a_lock = |error: &rusqlite::Error| error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
    match error.downcast::<rusqlite::Error>() {
        Ok(error) if is_about_a_lock(&error) => Error::from(*error).into(),
        Ok(error) => error,
        Err(other) => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_round_begins_when_all_threads_are_awake() {
        let run = Run::new(2, 0, &[]);
        for round in 0..3 {
            let has_begun = AtomicBool::new(false);
            let was_early = thread::scope(|scope| {
                scope.spawn(|| {
                    run.wait_until_all_are_awake(round);
                    has_begun.store(true, Ordering::SeqCst);
                });
                thread::sleep(Duration::from_millis(20)); // a broken version would begin in this time
                let was_early = has_begun.load(Ordering::SeqCst);
                run.wait_until_all_are_awake(round);
                was_early
            });
            assert!(!was_early && has_begun.into_inner(), "round {round}");
        }
    }
}
