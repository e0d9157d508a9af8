//! Collects what the workers did, round by round, into a report.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::finished::Finished;
use super::pause::Pause;
use super::report::{Attempt, Report, Seen};
use super::timeline::Timeline;

/// What the workers have done so far.
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
            attempts: Vec::new(),
            distinct_values: Vec::new(),
            latencies: Vec::new(),
            orders: Seen::new(),
            timed_out: Vec::new(),
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
        let attempt =
            |worker: Finished<T>| Attempt { worker: worker.number, round, took: took(&worker), result: worker.result };
        self.report.attempts.extend(finished.into_iter().map(attempt));
    }

    fn add_orders(&mut self, finished: &[Finished<T>]) {
        let mut arrivals: BTreeMap<&'static str, Vec<(Instant, usize)>> = BTreeMap::new();
        for worker in finished {
            for event in &worker.events {
                let at_mark = arrivals.entry(event.mark).or_default();
                if at_mark.last().is_none_or(|(_, last)| *last != worker.number) {
                    at_mark.push((event.at, worker.number)); // the worker's first arrival
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
        timed_out: Vec<(&'static str, usize)>,
    ) -> Report<T> {
        let mut report = self.report;
        report.timed_out = timed_out;
        let marks: BTreeSet<&'static str> = pauses.iter().map(|(mark, _)| *mark).collect();
        let has_ended = report.hung() == 0; // workers that hang might have reached more marks
        report.unreached = marks.into_iter().filter(|mark| has_ended && !report.orders.contains_key(mark)).collect();
        report.latencies = report.attempts.iter().map(|attempt| attempt.took).collect();
        report.latencies.sort_unstable();
        report.distinct_values = distinct_values(&report.attempts);
        report
    }
}

/// Returns the index of the first attempt that returned each value, and how many did; the most frequent first. Of equally
/// frequent values, the one that was returned first comes first.
fn distinct_values<T: Eq + Hash>(attempts: &[Attempt<T>]) -> Vec<(usize, usize)> {
    let mut values: HashMap<&T, (usize, usize)> = HashMap::new();
    for (index, attempt) in attempts.iter().enumerate() {
        if let Ok(value) = &attempt.result {
            values.entry(value).or_insert((index, 0)).1 += 1;
        }
    }
    let mut values: Vec<(usize, usize)> = values.into_values().collect();
    values.sort_unstable_by_key(|(first, times)| (std::cmp::Reverse(*times), *first));
    values
}
