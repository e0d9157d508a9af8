//! The report of a run, as users see it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};
use std::time::Duration;

use super::finished::Failure;
use super::timeline::Timeline;

/// One call of the work, by one worker in one round.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attempt<T> {
    /// The worker's number.
    pub worker: usize,
    /// The number of the round.
    pub round: usize,
    /// How long the work took.
    pub took: Duration,
    /// The value that the work returned, or why it returned none.
    pub result: Result<T, Failure>,
}

/// The orders in which a number of workers reached a mark, each for the first time in its round.
///
/// Rounds in which fewer or more workers reached the mark are counted separately.
#[derive(Clone, Copy, Debug)]
pub struct Orders<'a> {
    threads: usize,
    workers: usize,
    seen: Option<&'a BTreeSet<Vec<usize>>>,
}

impl Orders<'_> {
    /// Returns the number of different orders that were seen.
    pub fn seen(&self) -> usize {
        self.seen.map_or(0, BTreeSet::len)
    }

    /// Returns the number of orders that are possible, or `u128::MAX` if there are more.
    pub fn possible(&self) -> u128 {
        let choices = (self.threads - self.workers + 1)..=self.threads;
        choices.fold(1, |product: u128, choices| product.saturating_mul(choices as u128))
    }

    /// Returns whether the workers with these numbers reached the mark in this order.
    pub fn contains(&self, order: &[usize]) -> bool {
        self.seen.is_some_and(|seen| seen.contains(order))
    }
}

impl fmt::Display for Orders<'_> {
    /// Prints them like "24 of 24 orders of 4 threads".
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

/// The results of [`Hammer::run`](super::Hammer::run) and [`Hammer::run_each`](super::Hammer::run_each).
///
/// It prints as a table, if the values implement [`Debug`].
#[derive(Debug)]
#[must_use = "failures are reported only here"]
pub struct Report<T> {
    pub(super) threads: usize,
    pub(super) rounds: usize,
    pub(super) seed: u64,
    pub(super) attempts: Vec<Attempt<T>>,
    /// The index of the first attempt that returned each value, and how many did; the most frequent first.
    pub(super) distinct_values: Vec<(usize, usize)>,
    /// In ascending order.
    pub(super) latencies: Vec<Duration>,
    pub(super) orders: Seen,
    /// Marks at which pauses timed out, and how often.
    pub(super) timed_out: Vec<(&'static str, usize)>,
    /// Marks with a pause that no worker reached.
    pub(super) unreached: Vec<&'static str>,
    pub(super) timeline: Timeline,
}

/// How many of the distinct values are printed.
const VALUES_SHOWN: usize = 8;

/// The orders of arrival at each mark, by the number of workers that reached it in the round.
pub(super) type Seen = BTreeMap<&'static str, BTreeMap<usize, BTreeSet<Vec<usize>>>>;

impl<T> Report<T> {
    /// Returns the number of distinct results. Each failure counts as a distinct result. So if the number is 1 for
    /// several attempts, all of them succeeded and returned equal values.
    pub fn distinct(&self) -> usize {
        self.distinct_values.len() + self.failures().count()
    }

    /// Returns the distinct values that the work returned, each with the number of attempts that returned it; the most
    /// frequent first.
    pub fn distinct_values(&self) -> impl Iterator<Item = (&T, usize)> {
        let value = |(first, times): &(usize, usize)| Some((self.attempts[*first].result.as_ref().ok()?, *times));
        self.distinct_values.iter().filter_map(value)
    }

    /// Returns all attempts, in the order of rounds, and of workers within a round.
    pub fn attempts(&self) -> &[Attempt<T>] {
        &self.attempts
    }

    /// Returns the values of all attempts that succeeded.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.attempts.iter().filter_map(|attempt| attempt.result.as_ref().ok())
    }

    /// Returns all attempts that failed, and why.
    pub fn failures(&self) -> impl Iterator<Item = (&Attempt<T>, &Failure)> {
        self.attempts.iter().filter_map(|attempt| Some((attempt, attempt.result.as_ref().err()?)))
    }

    /// Returns the number of rounds: fewer than [asked for](super::Hammer::rounds) if a round hung.
    pub fn rounds(&self) -> usize {
        self.attempts.len() / self.threads
    }

    /// Returns the seed of the run, with which [`Hammer::seed`](super::Hammer::seed) draws the same numbers again.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the time within which this percentage of the attempts ended: `percentile(50.0)` is the median,
    /// `percentile(100.0)` the longest time. It is zero if there was no round.
    pub fn percentile(&self, percentage: f64) -> Duration {
        let place = (self.latencies.len() as f64 * percentage / 100.0).ceil() as usize;
        self.latencies.get(place.max(1) - 1).or(self.latencies.last()).copied().unwrap_or_default()
    }

    /// Returns the orders in which the workers reached this mark. Only rounds in which all of them reached it count.
    pub fn orders(&self, mark: &str) -> Orders<'_> {
        let seen = self.orders.get(mark).and_then(|of_mark| of_mark.get(&self.threads));
        Orders { threads: self.threads, workers: self.threads, seen }
    }

    /// Returns the timeline of the round that took longest, or that
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

    pub(super) fn hung(&self) -> usize {
        self.count(|failure| matches!(failure, Failure::Hung(_)))
    }

    /// Returns the orders at all marks, for each number of workers that reached the mark.
    fn all_orders(&self) -> impl Iterator<Item = (&'static str, Orders<'_>)> {
        self.orders.iter().flat_map(|(mark, by_workers)| {
            let orders =
                |(workers, seen): (&usize, _)| Orders { threads: self.threads, workers: *workers, seen: Some(seen) };
            by_workers.iter().map(move |by_workers| (*mark, orders(by_workers)))
        })
    }
}

impl<T: Debug> Report<T> {
    /// Checks that every worker returned a value in every round.
    ///
    /// # Panics
    /// If a worker did not. The message is the report.
    #[track_caller]
    pub fn assert_no_failures(&self) {
        assert!(self.failures().next().is_none(), "{self}");
    }

    /// Returns the report as JSON (with the feature `json`): what the table has, all failures, and the timeline. Times
    /// are in nanoseconds.
    #[cfg(feature = "json")]
    pub fn to_json(&self) -> String {
        use serde_json::json;

        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let orders = |(mark, orders): (&str, Orders<'_>)| {
            let possible = u64::try_from(orders.possible()).ok(); // more is more than JSON's readers take
            json!({ "mark": mark, "threads": orders.workers, "seen": orders.seen(), "possible": possible })
        };
        let failure = |(attempt, failure): (&Attempt<T>, &Failure)| json!({ "worker": attempt.worker, "round": attempt.round, "failure": failure.to_string() });
        let timed_out = |(mark, times): &(&str, usize)| json!({ "mark": mark, "times": times });
        let value = |(value, times): (&T, usize)| json!({ "value": shown(value), "times": times });
        let report = json!({
            "threads": self.threads,
            "rounds": self.rounds(),
            "rounds_asked_for": self.rounds,
            "seed": self.seed,
            "results": self.attempts.len(),
            "distinct": self.distinct(),
            "errors": self.errors(),
            "panics": self.panics(),
            "hung": self.hung(),
            "latency_ns": {
                "median": nanoseconds(self.percentile(50.0)),
                "p99": nanoseconds(self.percentile(99.0)),
                "longest": nanoseconds(self.percentile(100.0)),
            },
            "values": self.distinct_values().take(VALUES_SHOWN).map(value).collect::<Vec<_>>(),
            "orders": self.all_orders().map(orders).collect::<Vec<_>>(),
            "pauses_timed_out": self.timed_out.iter().map(timed_out).collect::<Vec<_>>(),
            "marks_unreached": self.unreached,
            "failures": self.failures().map(failure).collect::<Vec<_>>(),
            "timeline": self.timeline.to_json(),
        });
        format!("{report:#}")
    }
}

impl<T: Debug> fmt::Display for Report<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (threads, rounds, seed) = (self.threads, self.rounds(), self.seed);
        let of = if rounds < self.rounds { format!(" of {}", self.rounds) } else { String::new() };
        writeln!(f, "{threads} threads, {rounds}{of} rounds; seed {seed}\n")?;
        let counts = [
            ("results", self.attempts.len()),
            ("  distinct", self.distinct()),
            ("  errors", self.errors()),
            ("  panics", self.panics()),
            ("  hung", self.hung()),
        ];
        for (what, count) in counts.into_iter().filter(|(what, count)| !what.ends_with("hung") || *count > 0) {
            writeln!(f, "{what:12} {count:>12}")?;
        }
        for (what, percentage) in [("median", 50.0), ("p99", 99.0), ("longest", 100.0)] {
            writeln!(f, "{what:12} {:>12}", format!("{:.1?}", self.percentile(percentage)))?;
        }
        self.fmt_values(f)?;
        self.fmt_marks(f)?;
        self.fmt_failures(f)
    }
}

/// Formats a value for the table, and shortens a long one.
fn shown(value: &impl Debug) -> String {
    const LONGEST: usize = 100;
    let value = format!("{value:?}");
    match value.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} …", &value[..end]),
        None => value,
    }
}

impl<T: Debug> Report<T> {
    fn fmt_values(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", if self.distinct_values.is_empty() { "" } else { "\nvalues\n" })?;
        for (value, times) in self.distinct_values().take(VALUES_SHOWN) {
            writeln!(f, "{times:>25} × {}", shown(value))?;
        }
        match self.distinct_values.len().saturating_sub(VALUES_SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "{:25}   and {more} more", ""),
        }
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
            writeln!(f, "{mark:width$}  has a pause, but no worker reached it")?;
        }
        for (mark, times) in &self.timed_out {
            writeln!(f, "{mark:width$}  pauses that ran out of patience: {times}")?;
        }
        Ok(())
    }

    fn fmt_failures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 16;
        write!(f, "{}", if self.failures().next().is_some() { "\n" } else { "" })?;
        for (Attempt { worker, round, .. }, failure) in self.failures().take(SHOWN) {
            writeln!(f, "worker {worker}, round {round}: {failure}")?;
        }
        match self.failures().count().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "and {more} more failures"),
        }
    }
}
