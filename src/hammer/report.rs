//! What came of a run.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::finished::{Failure, Finished};
use super::pause::Pause;
use super::timeline::Timeline;

/// What came of one worker's round.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome<T> {
    /// Which worker's it is.
    pub worker: usize,
    /// Of which round.
    pub round: usize,
    /// How long it took.
    pub took: Duration,
    /// What the work returned, or why it did not.
    pub result: Result<T, Failure>,
}

/// The orders in which the workers came to a mark for the first time in a round: of those rounds in which so many did.
#[derive(Clone, Copy, Debug)]
pub struct Orders<'a> {
    threads: usize,
    workers: usize,
    seen: Option<&'a BTreeSet<Vec<usize>>>,
}

impl Orders<'_> {
    /// How many different ones there were.
    pub fn seen(&self) -> usize {
        self.seen.map_or(0, BTreeSet::len)
    }

    /// How many there could be; `u128::MAX` if that is more.
    pub fn possible(&self) -> u128 {
        let choices = (self.threads - self.workers + 1)..=self.threads;
        choices.fold(1, |product: u128, choices| product.saturating_mul(choices as u128))
    }

    /// Whether the workers came in this order.
    pub fn contains(&self, order: &[usize]) -> bool {
        self.seen.is_some_and(|seen| seen.contains(order))
    }
}

/// As "24 of 24 orders of 4 threads".
impl fmt::Display for Orders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const EXACT: u128 = 1_000_000;
        let possible = self.possible();
        let (seen, workers) = (self.seen(), self.workers);
        let possible = if possible < EXACT { possible.to_string() } else { format!("{possible:.1e}") };
        match workers {
            1 => write!(f, "{seen} of {possible} threads, each alone"),
            _ => write!(f, "{seen} of {possible} orders of {workers} threads"),
        }
    }
}

/// What came of [`Hammer::run`](super::Hammer::run). It prints as a table.
#[derive(Debug)]
#[must_use = "a failure is only in the report"]
pub struct Report<T> {
    threads: usize,
    rounds: usize,
    seed: u64,
    outcomes: Vec<Outcome<T>>,
    distinct: usize,
    /// In ascending order.
    latencies: Vec<Duration>,
    orders: Seen,
    /// Marks at which pauses ran out of patience, and how often.
    given_up: Vec<(&'static str, usize)>,
    /// Marks with a pause, to which nobody came.
    unreached: Vec<&'static str>,
    timeline: Timeline,
}

/// The orders of arrival at each mark, by how many workers came there in the round.
type Seen = BTreeMap<&'static str, BTreeMap<usize, BTreeSet<Vec<usize>>>>;

impl<T> Report<T> {
    /// How many different results there were. Each error, panic and worker that hung counts as one of its own. So where it is
    /// one, of several results, nothing has failed and all are the same.
    pub fn distinct(&self) -> usize {
        self.distinct
    }

    /// What came of each worker in each round, in that order.
    pub fn outcomes(&self) -> &[Outcome<T>] {
        &self.outcomes
    }

    /// What the work returned, wherever it did.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.outcomes.iter().filter_map(|outcome| outcome.result.as_ref().ok())
    }

    /// Which workers failed in which rounds, and why.
    pub fn failures(&self) -> impl Iterator<Item = (&Outcome<T>, &Failure)> {
        self.outcomes.iter().filter_map(|outcome| Some((outcome, outcome.result.as_ref().err()?)))
    }

    /// Nothing, if every worker returned a value in every round.
    ///
    /// # Panics
    /// With the report, if not.
    #[track_caller]
    pub fn assert_no_failures(&self) {
        assert!(self.failures().next().is_none(), "{self}");
    }

    /// How many rounds there were: fewer than asked for if one hung.
    pub fn rounds(&self) -> usize {
        self.outcomes.len() / self.threads
    }

    /// What [`Hammer::seed`](super::Hammer::seed) takes to draw the same again.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The time that so many hundredths of the workers' rounds took at most: `percentile(50.0)` is the median,
    /// `percentile(100.0)` the longest. Zero if there was no round.
    pub fn percentile(&self, hundredths: f64) -> Duration {
        let place = (self.latencies.len() as f64 * hundredths / 100.0).ceil() as usize;
        self.latencies.get(place.max(1) - 1).or(self.latencies.last()).copied().unwrap_or_default()
    }

    /// The orders in which all threads came to this mark, in the rounds in which all did.
    pub fn orders(&self, mark: &str) -> Orders<'_> {
        let seen = self.orders.get(mark).and_then(|of_mark| of_mark.get(&self.threads));
        Orders { threads: self.threads, workers: self.threads, seen }
    }

    /// What each thread did when, in the round that took longest or that
    /// [`Hammer::timeline_of`](super::Hammer::timeline_of) chose.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    fn count(&self, is_it: fn(&Failure) -> bool) -> usize {
        self.failures().filter(|(_, failure)| is_it(failure)).count()
    }

    fn errors(&self) -> usize {
        self.count(|failure| matches!(failure, Failure::Error(_)))
    }

    fn panics(&self) -> usize {
        self.count(|failure| matches!(failure, Failure::Panic(_)))
    }

    fn hung(&self) -> usize {
        self.count(|failure| matches!(failure, Failure::Hung(_)))
    }

    /// Of all marks, and all numbers of workers that came there.
    fn all_orders(&self) -> impl Iterator<Item = (&'static str, Orders<'_>)> {
        self.orders.iter().flat_map(|(mark, by_workers)| {
            let orders =
                |(workers, seen): (&usize, _)| Orders { threads: self.threads, workers: *workers, seen: Some(seen) };
            by_workers.iter().map(move |by_workers| (*mark, orders(by_workers)))
        })
    }

    /// The report as JSON (with the feature `json`): what the table has, all failures, and the timeline. Times are in
    /// nanoseconds.
    #[cfg(feature = "json")]
    pub fn to_json(&self) -> String {
        use serde_json::json;

        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let orders = |(mark, orders): (&str, Orders<'_>)| {
            let possible = u64::try_from(orders.possible()).ok(); // more is more than JSON's readers take
            json!({ "mark": mark, "threads": orders.workers, "seen": orders.seen(), "possible": possible })
        };
        let failure = |(outcome, failure): (&Outcome<T>, &Failure)| json!({ "worker": outcome.worker, "round": outcome.round, "failure": failure.to_string() });
        let given_up = |(mark, times): &(&str, usize)| json!({ "mark": mark, "times": times });
        let report = json!({
            "threads": self.threads,
            "rounds": self.rounds(),
            "rounds_asked_for": self.rounds,
            "seed": self.seed,
            "results": self.outcomes.len(),
            "distinct": self.distinct,
            "errors": self.errors(),
            "panics": self.panics(),
            "hung": self.hung(),
            "latency_ns": {
                "median": nanoseconds(self.percentile(50.0)),
                "p99": nanoseconds(self.percentile(99.0)),
                "longest": nanoseconds(self.percentile(100.0)),
            },
            "orders": self.all_orders().map(orders).collect::<Vec<_>>(),
            "pauses_given_up": self.given_up.iter().map(given_up).collect::<Vec<_>>(),
            "marks_unreached": self.unreached,
            "failures": self.failures().map(failure).collect::<Vec<_>>(),
            "timeline": self.timeline.to_json(),
        });
        format!("{report:#}")
    }
}

impl<T> fmt::Display for Report<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (threads, rounds, seed) = (self.threads, self.rounds(), self.seed);
        let of = if rounds < self.rounds { format!(" of {}", self.rounds) } else { String::new() };
        writeln!(f, "{threads} threads, {rounds}{of} rounds; seed {seed}\n")?;
        let counts = [
            ("results", self.outcomes.len()),
            ("  distinct", self.distinct),
            ("  errors", self.errors()),
            ("  panics", self.panics()),
            ("  hung", self.hung()),
        ];
        for (what, count) in counts.into_iter().filter(|(what, count)| !what.ends_with("hung") || *count > 0) {
            writeln!(f, "{what:12} {count:>12}")?;
        }
        for (what, hundredths) in [("median", 50.0), ("p99", 99.0), ("longest", 100.0)] {
            writeln!(f, "{what:12} {:>12}", format!("{:.1?}", self.percentile(hundredths)))?;
        }
        self.fmt_marks(f)?;
        self.fmt_failures(f)
    }
}

impl<T> Report<T> {
    fn fmt_marks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_empty = self.orders.is_empty() && self.unreached.is_empty();
        write!(f, "{}", if is_empty { "" } else { "\n" })?;
        let width = self.orders.keys().chain(&self.unreached).map(|mark| mark.len()).max().unwrap_or(0);
        for (mark, orders) in self.all_orders() {
            writeln!(f, "{mark:width$}  {orders}")?;
        }
        for mark in &self.unreached {
            writeln!(f, "{mark:width$}  has a pause, and nobody came there")?;
        }
        for (mark, times) in &self.given_up {
            writeln!(f, "{mark:width$}  {times} times a worker paused there ran out of patience")?;
        }
        Ok(())
    }

    fn fmt_failures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 16;
        write!(f, "{}", if self.failures().next().is_some() { "\n" } else { "" })?;
        for (Outcome { worker, round, .. }, failure) in self.failures().take(SHOWN) {
            writeln!(f, "worker {worker}, round {round}: {failure}")?;
        }
        match self.failures().count().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "and {more} failures more"),
        }
    }
}

/// What has been seen so far.
pub(super) struct Record<T> {
    report: Report<T>,
    timeline_of: Option<usize>,
    longest: Duration,
}

impl<T: Eq + Hash> Record<T> {
    pub(super) fn new(threads: usize, rounds: usize, seed: u64, timeline_of: Option<usize>) -> Record<T> {
        let report = Report {
            threads,
            rounds,
            seed,
            outcomes: Vec::new(),
            distinct: 0,
            latencies: Vec::new(),
            orders: Seen::new(),
            given_up: Vec::new(),
            unreached: Vec::new(),
            timeline: Timeline::default(),
        };
        Record { report, timeline_of, longest: Duration::ZERO }
    }

    pub(super) fn add(&mut self, round: usize, finished: Vec<Finished<T>>) {
        let took = |worker: &Finished<T>| worker.ended - worker.begun;
        let longest = finished.iter().map(took).max().unwrap_or_default();
        if self.timeline_of.map_or(longest > self.longest, |chosen| chosen == round) {
            self.report.timeline = Timeline::new(round, &finished);
        }
        self.longest = self.longest.max(longest);
        self.add_orders(&finished);
        let outcome =
            |worker: Finished<T>| Outcome { worker: worker.number, round, took: took(&worker), result: worker.result };
        self.report.outcomes.extend(finished.into_iter().map(outcome));
    }

    fn add_orders(&mut self, finished: &[Finished<T>]) {
        let mut arrivals: BTreeMap<&'static str, Vec<(Instant, usize)>> = BTreeMap::new();
        for worker in finished {
            for event in &worker.events {
                let at_mark = arrivals.entry(event.mark).or_default();
                if at_mark.last().is_none_or(|(_, last)| *last != worker.number) {
                    at_mark.push((event.at, worker.number)); // its first
                }
            }
        }
        for (mark, mut at_mark) in arrivals {
            at_mark.sort_unstable();
            let order: Vec<usize> = at_mark.into_iter().map(|(_, number)| number).collect();
            self.report.orders.entry(mark).or_default().entry(order.len()).or_default().insert(order);
        }
    }

    pub(super) fn into_report(
        self,
        pauses: &[(&'static str, Pause)],
        given_up: Vec<(&'static str, usize)>,
    ) -> Report<T> {
        let mut report = self.report;
        report.given_up = given_up;
        let marks: BTreeSet<&'static str> = pauses.iter().map(|(mark, _)| *mark).collect();
        let has_ended = report.hung() == 0; // or some may have been on their way
        report.unreached = marks.into_iter().filter(|mark| has_ended && !report.orders.contains_key(mark)).collect();
        report.latencies = report.outcomes.iter().map(|outcome| outcome.took).collect();
        report.latencies.sort_unstable();
        let values = report.values().collect::<HashSet<_>>().len();
        report.distinct = values + report.failures().count();
        report
    }
}
