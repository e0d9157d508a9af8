//! Makes any code race, round after round, and reports what happened. The report has the results, errors and panics,
//! the times, and the orders in which the threads reached marked places.
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
//! If the race never happens, its test passes. So mark the places where the order matters, in the test by
//! [`Worker::reached`], or in the code under test by [`reached`]. The report counts the orders in which the threads
//! reached a mark ([`Report::orders`]). A [`Pause`] at a mark makes rare orders certain:
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
//!     worker.reached("checked"); // from here on, `is_free` may be out of date
//!     if is_free {
//!         seats.lock().unwrap().remove(&1);
//!     }
//!     Ok(is_free)
//! });
//! let seated = report.values().filter(|has_seat| **has_seat).count();
//! assert_eq!(seated, 2, "both have the one seat");
//! ```
//!
//! The crate also defines marks, the constants below, so the code under test may need none. If a thread holds the
//! writer slot at such a mark, the others can't reach it, and the pause lasts its full [patience](Pause::patience). If
//! no hammer runs, a mark costs one load.
//!
//! # Lost updates
//!
//! Code that reads a value and then writes a new one loses updates if all threads have read before the first one
//! writes. [`Hammer::run_each`] gives each round a fresh engine. A pause at [`SLOT_ASKED`] lets all threads read first:
//!
//! ```
//! use rusqlite_fixtures::hammer::{Hammer, Pause, SLOT_ASKED};
//! use rusqlite_fixtures::rusqlite::Connection;
//! use rusqlite_fixtures::{Engine, Result, Template};
//!
//! static COUNTER: Template =
//!     Template::sql("CREATE TABLE counter (n INT); INSERT INTO counter VALUES (0)");
//!
//! /// The code under test: it has no transaction around both statements.
//! fn increment(connection: &Connection) -> Result<i64> {
//!     let n: i64 = connection.query_row("SELECT n FROM counter", [], |row| row.get(0))?;
//!     connection.execute("UPDATE counter SET n = ?1", [n + 1])?;
//!     Ok(n + 1)
//! }
//!
//! let hammer = Hammer::new().threads(4).rounds(10).pause_at(SLOT_ASKED, Pause::for_all());
//! let report = hammer.clone().run_each(
//!     |_round| COUNTER.new_engine().unwrap(),
//!     |_worker, engine: &Engine| Ok(increment(&engine.connect()?)?),
//! );
//! report.assert_no_failures();
//! let counted: Vec<_> = report.distinct_values().collect();
//! assert_eq!(counted, [(&1, 40)], "all threads count to 1, in each round: {report}");
//!
//! // In an immediate transaction, each thread sees what the one before has written.
//! let report = hammer.run_each(
//!     |_round| COUNTER.new_engine().unwrap(),
//!     |_worker, engine: &Engine| Ok(engine.transaction(|work| increment(work))?),
//! );
//! let counted: Vec<_> = report.distinct_values().map(|(_, times)| times).collect();
//! assert_eq!(counted, [10; 4], "1, 2, 3 and 4, once in each round: {report}");
//! ```

// Files:
// * `worker`: what the work gets, a `Worker` and its `Random`.
// * `run`: the worker threads, how a round starts, and what each worker has done in it.
// * `pause`: pauses, and the rendezvous where workers wait for each other.
// * `finished`: what a worker thread sends when its round has ended.
// * `record`: collects these messages; `report`: the result that users see.
// * `timeline`, `svg`: which workers waited for the writer slot and which held it, as text and as a picture.
// * `progress`: how far a long run is, on a terminal.
//
// The folder uses `error` and `marks` only. The code under test needs no reference to a hammer: it reports its marks by
// `marks::reached`.
//
// Invariants:
// * No worker takes a lock that another worker needs, unless a pause waits for other workers. A lock would put the
//   workers into an order.
// * A round starts when all threads are awake. The next round starts when all workers have ended this one.
// * Every worker of every round has exactly one attempt in the report, whether it returned, failed, panicked or hung.
// * After a round that hangs, no round starts. The threads are detached, so the work owns what it uses.

mod finished;
mod pause;
mod progress;
mod record;
mod report;
mod run;
#[cfg(feature = "report")]
mod svg;
mod timeline;
mod worker;

use std::ffi::OsString;
use std::hash::Hash;
use std::time::Duration;

pub use self::finished::Failure;
pub use self::pause::Pause;
use self::progress::Progress;
use self::record::Record;
pub use self::report::{Attempt, Orders, Report};
use self::run::{Run, Threads};
pub use self::timeline::{Arrival, Lane, Span, Timeline};
pub use self::worker::{Random, Worker};
use crate::environment::{self, Backend};
use crate::error::BoxError;
use crate::marks::OF_ENGINES;
pub use crate::marks::{
    COMMITTED, REGISTRY_ASKED, REGISTRY_CREATED, REGISTRY_CREATING, SLOT_ASKED, SLOT_GIVEN_BACK, SLOT_REFUSED,
    SLOT_TAKEN, reached,
};

/// A builder for a run: how many threads race, for how many rounds, and where they pause.
///
/// All threads start a round at once. The next round starts when all of them have ended.
#[derive(Clone, Debug)]
#[must_use = "a hammer does nothing until `run`"]
pub struct Hammer {
    threads: usize,
    rounds: usize,
    seed: u64,
    deadline: Duration,
    pauses: Vec<(&'static str, Pause)>,
    timeline_of: Option<usize>,
}

impl Hammer {
    /// Returns a hammer of 8 threads and 100 rounds, with a deadline of 60 s for each round and a random seed. The
    /// environment variables `RUSQLITE_FIXTURES_SEED` and `RUSQLITE_FIXTURES_DEADLINE` (in seconds) replace these two.
    ///
    /// # Panics
    /// When one of these variables is set and is not a number.
    pub fn new() -> Hammer {
        let seed = seed(std::env::var_os("RUSQLITE_FIXTURES_SEED"));
        let deadline = environment::duration("RUSQLITE_FIXTURES_DEADLINE", Duration::from_secs(60));
        let pauses = Vec::new();
        Hammer { threads: 8, rounds: 100, seed, deadline, pauses, timeline_of: None }
    }

    /// Sets the number of threads.
    ///
    /// # Panics
    /// When it is 0.
    pub fn threads(self, threads: usize) -> Hammer {
        assert!(threads > 0, "a hammer needs at least one thread");
        Hammer { threads, ..self }
    }

    /// Sets the number of rounds.
    pub fn rounds(self, rounds: usize) -> Hammer {
        Hammer { rounds, ..self }
    }

    /// Sets the seed of all random numbers ([`Worker::random`], [`Pause::up_to`]). With the seed of an earlier
    /// [`Report`], a run draws the same numbers again. How the system schedules the threads does not depend on the
    /// seed.
    pub fn seed(self, seed: u64) -> Hammer {
        Hammer { seed, ..self }
    }

    /// Sets how long a round may take. It should be longer than the patience of any pause.
    ///
    /// A round that takes longer is reported as hung, with the place where each thread is. It is the last round, and
    /// its threads continue to run.
    pub fn deadline(self, deadline: Duration) -> Hammer {
        Hammer { deadline, ..self }
    }

    /// Pauses the workers when they reach this mark. With `RUSQLITE_FIXTURES_BACKEND=file`, no worker reaches the marks of the
    /// writer slot, and a line on stderr says that. Several pauses at one mark follow one another. A pause that waits
    /// for all workers waits until they have reached the first of these pauses.
    pub fn pause_at(mut self, mark: &'static str, pause: Pause) -> Hammer {
        self.pauses.push((mark, pause));
        self
    }

    /// Sets the round, counted from 0, whose timeline the report contains. The default is the round that took longest.
    pub fn timeline_of(self, round: usize) -> Hammer {
        Hammer { timeline_of: Some(round), ..self }
    }

    /// Runs `work` on all threads, in each round.
    ///
    /// The work has to own what it uses, because the threads of a round that hangs outlive the run. An
    /// [`Engine`](crate::Engine) is a handle that can be cloned; share other things by an [`Arc`](std::sync::Arc). The
    /// values that the work returns are kept until the report is dropped, and are compared by `Eq`. If a value does not
    /// implement `Eq`, such as an `f64`, return something that identifies it.
    ///
    /// # Panics
    /// When a thread can't be started.
    pub fn run<T, F>(self, work: F) -> Report<T>
    where
        T: Eq + Hash + Send + 'static,
        F: Fn(&mut Worker) -> Result<T, BoxError> + Send + Sync + 'static,
    {
        self.run_each(|_round| (), move |worker, ()| work(worker))
    }

    /// Runs `work` on all threads, in each round, with a fresh state for each round.
    ///
    /// `prepare` gets the number of the round, counted from 0, and returns the state that the workers share in it, such
    /// as an engine of a template. It is called on the current thread before the round starts, and the round's time
    /// does not include it. The state is dropped when the round has ended, unless the round hangs. Otherwise this works
    /// like [`run`](Hammer::run). [Lost updates](self#lost-updates) shows an example.
    ///
    /// # Panics
    /// When `prepare` panics, or a thread can't be started.
    pub fn run_each<S, T, P, F>(self, mut prepare: P, work: F) -> Report<T>
    where
        S: Send + Sync + 'static,
        T: Eq + Hash + Send + 'static,
        P: FnMut(usize) -> S,
        F: Fn(&mut Worker, &S) -> Result<T, BoxError> + Send + Sync + 'static,
    {
        for (mark, _) in self.pauses.iter().filter(|(mark, _)| OF_ENGINES.contains(mark)) {
            Backend::skips(format_args!("no worker reaches the mark `{mark}` and pauses there"));
        }
        let mut record = Record::new(self.threads, self.rounds, self.seed, self.timeline_of);
        let mut progress = Progress::new(self.rounds);
        let threads = Threads::start(Run::new(self.threads, self.seed, &self.pauses), work);
        for round in 0..self.rounds {
            let finished = threads.run_round(round, prepare(round), self.deadline);
            let has_hung = finished.iter().any(|worker| worker.has_hung());
            record.add(round, finished);
            if has_hung {
                return record.into_report(&self.pauses, threads.detach());
            }
            progress.show(round + 1);
        }
        record.into_report(&self.pauses, threads.join())
    }
}

fn seed(given: Option<OsString>) -> u64 {
    let number = |given: OsString| {
        let number = given.to_str().and_then(|given| given.parse().ok());
        number.unwrap_or_else(|| panic!("RUSQLITE_FIXTURES_SEED is not a number: {}", given.display()))
    };
    given.map_or_else(|| fastrand::u64(..), number)
}

impl Default for Hammer {
    fn default() -> Hammer {
        Hammer::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::words_of_panic;

    #[test]
    fn the_environment_variable_sets_the_seed() {
        assert_eq!(seed(Some("17".into())), 17);
        assert_ne!(seed(None), seed(None));
        let panic = std::panic::catch_unwind(|| seed(Some("seventeen".into()))).unwrap_err();
        assert_eq!(words_of_panic(&*panic), "RUSQLITE_FIXTURES_SEED is not a number: seventeen");
    }
}
