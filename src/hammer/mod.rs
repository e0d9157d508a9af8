//! Makes any code race, again and again, and tells what happened: which results, errors and panics there were, how long it
//! took, and in which orders the threads came to the places that matter.
//!
//! ```
//! use rusqlite_fixtures::UnitOfWork;
//! use rusqlite_fixtures::hammer::Hammer;
//!
//! let report = Hammer::new().threads(16).rounds(100).run(|_worker| {
//!     let work = UnitOfWork::new("file:hammered?mode=memory")?;
//!     Ok(work.engine().clone())
//! });
//! assert_eq!(report.distinct(), 1, "{report}");
//! ```
//!
//! # Did it really race?
//!
//! A test of a race that never happens passes. So the code under test, or the test, marks the places where the order
//! matters, by [`Worker::reached`] or [`reached`]; the report counts the orders in which the threads came there
//! ([`Report::orders`]), and a [`Pause`] at a mark brings about those that are rare:
//!
//! ```
//! use std::collections::BTreeSet;
//! use std::sync::{Arc, Mutex};
//!
//! use rusqlite_fixtures::hammer::{Hammer, Pause};
//!
//! let seats = Arc::new(Mutex::new(BTreeSet::from([1])));
//! let hammer = Hammer::new().threads(2).rounds(1).pause_at("checked", Pause::for_all());
//! let report = hammer.run(move |worker| {
//!     let is_free = seats.lock().unwrap().contains(&1);
//!     worker.reached("checked"); // what was seen may be out of date from here on
//!     if is_free {
//!         seats.lock().unwrap().remove(&1);
//!     }
//!     Ok(is_free)
//! });
//! let seated = report.values().filter(|has_seat| **has_seat).count();
//! assert_eq!(seated, 2, "both have the one seat");
//! ```
//!
//! The crate has marks of its own, the constants below, so that code under test may need none. Whatever reads, and then writes
//! what it has read plus one, loses updates when all have read before the first writes:
//! `.pause_at(SLOT_ASKED, Pause::for_all())`. (Who holds the slot at such a mark, keeps those waiting who are to come; then the
//! pause takes all of its [patience](Pause::patience).) Where no hammer runs, a mark costs one load.

mod finished;
mod pause;
mod progress;
mod report;
#[cfg(feature = "svg")]
mod svg;
mod timeline;

use std::ffi::OsString;
use std::hash::Hash;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rusqlite::ErrorCode;

pub use self::finished::Failure;
use self::finished::{Event, Finished};
pub use self::pause::Pause;
use self::pause::{Kind, Meeting};
use self::progress::Progress;
use self::report::Record;
pub use self::report::{Orders, Outcome, Report};
pub use self::timeline::{Arrival, Lane, Span, Timeline};
use crate::error::{BoxError, Error, words_of_panic};
use crate::marks;
pub use crate::marks::{
    COMMITTED, REGISTRY_ASKED, REGISTRY_CREATED, REGISTRY_CREATING, SLOT_ASKED, SLOT_GIVEN_BACK, SLOT_REFUSED,
    SLOT_TAKEN, reached,
};
use crate::sync::Recovered;

/// How many threads run some code, how often, and what holds them up.
///
/// Each round, all threads start at once; the next begins when all of them have ended.
#[derive(Clone, Debug)]
#[must_use = "it does nothing until `run`"]
pub struct Hammer {
    threads: usize,
    rounds: usize,
    seed: u64,
    deadline: Duration,
    pauses: Vec<(&'static str, Pause)>,
    timeline_of: Option<usize>,
}

impl Hammer {
    /// 8 threads, 100 rounds, a deadline of 60 s for each. The seed is another each time, unless the environment variable
    /// `RUSQLITE_FIXTURES_SEED` says which.
    ///
    /// # Panics
    /// When that variable is set and is no number.
    pub fn new() -> Hammer {
        let seed = seed(std::env::var_os("RUSQLITE_FIXTURES_SEED"));
        let (deadline, pauses) = (Duration::from_secs(60), Vec::new());
        Hammer { threads: 8, rounds: 100, seed, deadline, pauses, timeline_of: None }
    }

    /// So many threads.
    ///
    /// # Panics
    /// When it is none.
    pub fn threads(self, threads: usize) -> Hammer {
        assert!(threads > 0, "a hammer needs a thread at least");
        Hammer { threads, ..self }
    }

    /// So many rounds.
    pub fn rounds(self, rounds: usize) -> Hammer {
        Hammer { rounds, ..self }
    }

    /// Draws what is random ([`Worker::random`], [`Pause::up_to`]) as the run did whose report had this seed. What threads
    /// do of themselves is drawn by nobody.
    pub fn seed(self, seed: u64) -> Hammer {
        Hammer { seed, ..self }
    }

    /// How long a round may take, which should be longer than the patience of a pause. After that it is taken to hang: the
    /// report tells where each thread stands, and the threads are left behind.
    pub fn deadline(self, deadline: Duration) -> Hammer {
        Hammer { deadline, ..self }
    }

    /// Holds the workers up when they come to this mark. With several pauses at one mark, each of them does, one after
    /// another; all that wait for the others to be there wait at the first of them.
    pub fn pause_at(mut self, mark: &'static str, pause: Pause) -> Hammer {
        self.pauses.push((mark, pause));
        self
    }

    /// Has the report draw this round, counted from 0. Otherwise it draws the one that took longest.
    pub fn timeline_of(self, round: usize) -> Hammer {
        Hammer { timeline_of: Some(round), ..self }
    }

    /// Runs `work` on all threads, in each round.
    ///
    /// What it borrows it has to own: a round that hangs outlives the run. An [`Engine`](crate::Engine) is a handle that can
    /// be cloned; other things want an `Arc`. What it returns is kept until the report is dropped, and told apart by `Eq`: of
    /// other values, as of an `f64`, return what identifies them.
    ///
    /// # Panics
    /// When a thread can't be started.
    pub fn run<T, F>(self, work: F) -> Report<T>
    where
        T: Eq + Hash + Send + 'static,
        F: Fn(&mut Worker) -> Result<T, BoxError> + Send + Sync + 'static,
    {
        let mut record = Record::new(self.threads, self.rounds, self.seed, self.timeline_of);
        let mut progress = Progress::new(self.rounds);
        let crew = Crew::hire(&self, Arc::new(work));
        for round in 0..self.rounds {
            let finished = crew.run(round, self.deadline);
            let hangs = finished.iter().any(|worker| matches!(worker.result, Err(Failure::Hung(_))));
            record.add(round, finished);
            if hangs {
                return record.into_report(&self.pauses, crew.leave());
            }
            progress.show(round + 1);
        }
        record.into_report(&self.pauses, crew.dismiss())
    }
}

fn seed(given: Option<OsString>) -> u64 {
    let number = |given: OsString| {
        let number = given.to_str().and_then(|given| given.parse().ok());
        number.unwrap_or_else(|| panic!("RUSQLITE_FIXTURES_SEED is no number: {}", given.display()))
    };
    given.map_or_else(|| fastrand::u64(..), number)
}

impl Default for Hammer {
    fn default() -> Hammer {
        Hammer::new()
    }
}

/// One of the threads under a hammer, in one round. It stays on that thread: threads that the work starts are not watched.
#[derive(Debug)]
pub struct Worker {
    number: usize,
    round: usize,
    threads: usize,
    random: Rng,
    stays: PhantomData<*const ()>,
}

impl Worker {
    /// Which of the threads it is, counted from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Which round it is, counted from 0.
    pub fn round(&self) -> usize {
        self.round
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Random numbers of this worker's own, in each round others; the same ones when the seed is.
    pub fn random(&mut self) -> &mut Rng {
        &mut self.random
    }

    /// Says that the code has come to a place where the order of threads matters.
    pub fn reached(&self, mark: &'static str) {
        marks::reached(mark);
    }
}

/// The threads of a run.
struct Crew<T> {
    floor: Arc<Floor>,
    starts: Vec<Sender<usize>>,
    threads: Vec<JoinHandle<()>>,
    finished: Receiver<Finished<T>>,
}

impl<T: Send + 'static> Crew<T> {
    fn hire<F>(hammer: &Hammer, work: Arc<F>) -> Crew<T>
    where
        F: Fn(&mut Worker) -> Result<T, BoxError> + Send + Sync + 'static,
    {
        let floor = Arc::new(Floor::new(hammer));
        let (done, finished) = mpsc::channel();
        let hire = |number| {
            let (start, starts) = mpsc::channel();
            let (floor, done, work) = (floor.clone(), done.clone(), work.clone());
            let name = format!("hammer {number}"); // an error of the writer slot says it
            let thread = thread::Builder::new().name(name).spawn(move || floor.employ(number, &starts, &done, &*work));
            (start, thread.expect("the system starts a thread"))
        };
        let (starts, threads) = (0..hammer.threads).map(hire).unzip();
        Crew { floor, starts, threads, finished }
    }

    /// Starts a round and waits until all have ended it, or the deadline is over. In order of the workers' numbers.
    fn run(&self, round: usize, deadline: Duration) -> Vec<Finished<T>> {
        let start = Instant::now();
        self.floor.meeting.begin();
        for worker in &self.starts {
            worker.send(round).expect("workers stay until they are dismissed");
        }
        let mut finished: Vec<Option<Finished<T>>> = self.starts.iter().map(|_| None).collect();
        while finished.iter().any(Option::is_none) {
            let Ok(worker) = self.finished.recv_timeout(deadline.saturating_sub(start.elapsed())) else { break };
            let number = worker.number;
            finished[number] = Some(worker);
        }
        let or_hung = |(number, worker): (usize, Option<_>)| worker.unwrap_or_else(|| self.floor.hung(number, start));
        finished.into_iter().enumerate().map(or_hung).collect()
    }

    /// Waits until the threads are gone, and what they have captured is dropped.
    fn dismiss(self) -> Vec<(&'static str, usize)> {
        drop(self.starts);
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
        self.floor.meeting.given_up()
    }

    /// Leaves the threads to themselves; those that still end do so after this round.
    fn leave(self) -> Vec<(&'static str, usize)> {
        self.floor.meeting.given_up()
    }
}

/// Where the workers of a run meet.
struct Floor {
    threads: usize,
    seed: u64,
    pauses: Vec<(&'static str, Pause)>,
    meeting: Meeting,
    /// How often a worker has come to the start of a round.
    awake: AtomicUsize,
    /// Each its worker's own; looked into when a round hangs.
    posts: Vec<Mutex<Post>>,
}

/// What one worker has done in this round.
struct Post {
    events: Vec<Event>,
    /// The mark at which it is held up.
    paused_at: Option<&'static str>,
    random: Rng,
}

impl Floor {
    fn new(hammer: &Hammer) -> Floor {
        let post = |_| Mutex::new(Post { events: Vec::new(), paused_at: None, random: Rng::with_seed(0) });
        Floor {
            threads: hammer.threads,
            seed: Rng::with_seed(hammer.seed).u64(..), // far from that of the next number
            meeting: Meeting::new(hammer.threads, &hammer.pauses),
            pauses: hammer.pauses.clone(),
            awake: AtomicUsize::new(0),
            posts: (0..hammer.threads).map(post).collect(),
        }
    }

    /// What a thread does: the work, whenever a round starts.
    fn employ<T>(
        self: Arc<Floor>,
        number: usize,
        starts: &Receiver<usize>,
        done: &Sender<Finished<T>>,
        work: &(impl Fn(&mut Worker) -> Result<T, BoxError> + ?Sized),
    ) {
        let floor = self.clone();
        let _observed = marks::observe(move |mark, engine| floor.reached(number, mark, engine));
        for round in starts {
            let mut worker = self.worker(number, round);
            self.wait_until_all_are_awake(round);
            let begun = Instant::now();
            let result = match catch_unwind(AssertUnwindSafe(|| work(&mut worker))) {
                Ok(result) => result.map_err(|error| Failure::Error(explained(error))),
                Err(panic) => {
                    let words = words_of_panic(&*panic).to_owned();
                    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
                        std::mem::forget(again); // or there might be no end of it
                    }
                    Err(Failure::Panic(words))
                }
            };
            let ended = Instant::now();
            self.meeting.end(number);
            let events = std::mem::take(&mut self.post(number).events);
            if done.send(Finished { number, begun, ended, result, events }).is_err() {
                return; // the round was taken to hang
            }
        }
    }

    fn worker(&self, number: usize, round: usize) -> Worker {
        // Numbers far from each other for what is next to each other.
        let spread = |number: usize| (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let seed = self.seed ^ spread(round * self.threads + number);
        self.post(number).random = Rng::with_seed(!seed);
        Worker { number, round, threads: self.threads, random: Rng::with_seed(seed), stays: PhantomData }
    }

    /// To wake a thread takes longer than much of what is hammered: those that are awake let others run until all are.
    fn wait_until_all_are_awake(&self, round: usize) {
        self.awake.fetch_add(1, Ordering::Relaxed);
        while self.awake.load(Ordering::Relaxed) < self.threads * (round + 1) {
            thread::yield_now();
        }
    }

    fn reached(&self, number: usize, mark: &'static str, engine: Option<u64>) {
        if self.pauses.iter().any(|(at, _)| *at == mark) && !self.post(number).has_reached(mark) {
            self.post(number).paused_at = Some(mark);
            self.meeting.arrive(mark, number);
            let here = |(at, pause): &&(&str, Pause)| *at == mark && pause.concerns(number);
            self.pauses.iter().filter(here).for_each(|(_, pause)| self.hold_up(pause, mark, number));
            self.post(number).paused_at = None;
        }
        self.post(number).events.push(Event { mark, engine, at: Instant::now() });
        self.meeting.pass(mark, number); // after it has been noted, or the next could be noted before
    }

    fn hold_up(&self, pause: &Pause, mark: &'static str, number: usize) {
        match &pause.kind {
            Kind::Time(time) => thread::sleep(*time),
            Kind::UpTo(longest) => {
                let part = self.post(number).random.f64();
                thread::sleep(longest.mul_f64(part));
            }
            Kind::ForAll => self.meeting.wait_for_all(pause, mark),
            Kind::InOrder(order) => self.meeting.wait_for_those_before(pause, order, mark, number),
        }
    }

    /// What is known of a worker that has not ended its round.
    fn hung<T>(&self, number: usize, begun: Instant) -> Finished<T> {
        let (events, paused_at) = {
            let post = self.post(number);
            (post.events.clone(), post.paused_at)
        };
        let ended = Instant::now();
        let stands = match (paused_at, events.last()) {
            (Some(mark), _) => format!("in a pause at the mark `{mark}`"),
            (None, Some(Event { mark, at, .. })) => {
                format!("after the mark `{mark}`, which it reached {:.1?} ago", ended - *at)
            }
            (None, None) => "and has reached no mark".to_owned(),
        };
        Finished { number, begun, ended, result: Err(Failure::Hung(stands)), events }
    }

    fn post(&self, number: usize) -> MutexGuard<'_, Post> {
        self.posts[number].lock().recovered()
    }
}

/// The same error; one of SQLite for a lock says who holds it, which is known on this thread only.
fn explained(error: BoxError) -> BoxError {
    let is_of_a_lock = |error: &rusqlite::Error| error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
    match error.downcast::<rusqlite::Error>() {
        Ok(error) if is_of_a_lock(&error) => Error::from(*error).into(),
        Ok(error) => error,
        Err(other) => other,
    }
}

impl Post {
    fn has_reached(&self, mark: &str) -> bool {
        self.events.iter().any(|event| event.mark == mark)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_round_begins_when_all_are_awake() {
        let floor = Floor::new(&Hammer::new().threads(2));
        for round in 0..3 {
            let has_begun = AtomicBool::new(false);
            let was_early = thread::scope(|scope| {
                scope.spawn(|| {
                    floor.wait_until_all_are_awake(round);
                    has_begun.store(true, Ordering::SeqCst);
                });
                thread::sleep(Duration::from_millis(20)); // in which it could begin; that it does not needs no time
                let was_early = has_begun.load(Ordering::SeqCst);
                floor.wait_until_all_are_awake(round);
                was_early
            });
            assert!(!was_early && has_begun.into_inner(), "round {round}");
        }
    }

    #[test]
    fn a_seed_may_be_given() {
        assert_eq!(seed(Some("17".into())), 17);
        assert_ne!(seed(None), seed(None));
        let words = catch_unwind(|| seed(Some("seventeen".into()))).unwrap_err();
        assert_eq!(words_of_panic(&*words), "RUSQLITE_FIXTURES_SEED is no number: seventeen");
    }
}
