//! Pauses at marks, and the rendezvous where paused workers wait for each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::sync::Recovered;

/// What a worker does when it reaches a mark for the first time in a round, before it passes the mark.
///
/// A pause that waits for other workers lasts for its [`patience`](Pause::patience) at most, and does not wait for
/// workers that have ended the round. The report counts the pauses that timed out.
#[derive(Clone, Debug)]
pub struct Pause {
    pub(super) kind: Kind,
    patience: Duration,
    only: Option<usize>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Time(Duration),
    UpTo(Duration),
    ForAll,
    InOrder(Vec<usize>),
}

impl Pause {
    /// Sleeps for this time.
    pub fn time(time: Duration) -> Pause {
        Pause::new(Kind::Time(time))
    }

    /// Sleeps for a random time up to `longest`, which is drawn from the run's seed.
    pub fn up_to(longest: Duration) -> Pause {
        Pause::new(Kind::UpTo(longest))
    }

    /// Waits until every worker has reached the mark. At a mark between a check and the action that relies on it, this
    /// makes all workers act on the same state.
    pub fn for_all() -> Pause {
        Pause::new(Kind::ForAll)
    }

    /// Lets the workers with these numbers pass in this order. Others pass at once.
    pub fn in_order(order: impl IntoIterator<Item = usize>) -> Pause {
        Pause::new(Kind::InOrder(order.into_iter().collect()))
    }

    fn new(kind: Kind) -> Pause {
        Pause { kind, patience: Duration::from_secs(1), only: None }
    }

    /// Sets how long to wait for other workers, 1 s by default.
    pub fn patience(self, patience: Duration) -> Pause {
        Pause { patience, ..self }
    }

    /// Pauses only the worker with this number.
    pub fn of_worker(self, number: usize) -> Pause {
        Pause { only: Some(number), ..self }
    }

    pub(super) fn applies_to(&self, worker: usize) -> bool {
        self.only.is_none_or(|only| only == worker)
    }

    fn waits_for_others(&self) -> bool {
        matches!(self.kind, Kind::ForAll | Kind::InOrder(_))
    }
}

/// Where workers wait for each other at marks.
pub(super) struct Rendezvous {
    threads: usize,
    /// Whether any pause waits for other workers. If none does, no worker takes the lock, which would put the workers
    /// into an order.
    is_used: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    arrived: BTreeMap<&'static str, BTreeSet<usize>>,
    passed: BTreeMap<&'static str, BTreeSet<usize>>,
    ended: BTreeSet<usize>,
    timed_out: BTreeMap<&'static str, usize>,
}

impl Rendezvous {
    pub(super) fn new(threads: usize, pauses: &[(&'static str, Pause)]) -> Rendezvous {
        let is_used = pauses.iter().any(|(_, pause)| pause.waits_for_others());
        Rendezvous { threads, is_used, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Clears the state of the previous round. No worker has started the new round yet.
    pub(super) fn begin_round(&self) {
        let mut state = self.lock();
        *state = State { timed_out: std::mem::take(&mut state.timed_out), ..State::default() };
    }

    /// Called when the worker has reached the mark. May pause it there.
    pub(super) fn arrive(&self, mark: &'static str, worker: usize) {
        if self.is_used {
            self.lock().arrived.entry(mark).or_default().insert(worker);
            self.changed.notify_all();
        }
    }

    pub(super) fn wait_for_all(&self, pause: &Pause, mark: &'static str) {
        self.wait(pause, mark, |state| state.arrived[mark].union(&state.ended).count() < self.threads);
    }

    pub(super) fn wait_for_those_before(&self, pause: &Pause, order: &[usize], mark: &'static str, worker: usize) {
        let Some(place) = order.iter().position(|number| *number == worker) else { return };
        self.wait(pause, mark, |state| {
            let has_passed = |number| state.passed.get(mark).is_some_and(|passed| passed.contains(number));
            !order[..place].iter().all(|number| has_passed(number) || state.ended.contains(number))
        });
    }

    fn wait(&self, pause: &Pause, mark: &'static str, is_missing: impl Fn(&State) -> bool) {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, pause.patience, |state| is_missing(state));
        let (mut state, timeout) = waited.recovered();
        if timeout.timed_out() {
            *state.timed_out.entry(mark).or_default() += 1;
        }
    }

    pub(super) fn pass(&self, mark: &'static str, worker: usize) {
        if self.is_used {
            self.lock().passed.entry(mark).or_default().insert(worker);
            self.changed.notify_all();
        }
    }

    pub(super) fn end_round(&self, worker: usize) {
        if self.is_used {
            self.lock().ended.insert(worker);
            self.changed.notify_all();
        }
    }

    /// Returns the marks at which pauses timed out, and how often.
    pub(super) fn timed_out(&self) -> Vec<(&'static str, usize)> {
        self.lock().timed_out.clone().into_iter().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().recovered()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_has_its_patience_and_its_worker() {
        const PATIENCE: Duration = Duration::from_millis(3);
        let pause = Pause::for_all().patience(PATIENCE).of_worker(1);
        assert!(pause.patience == PATIENCE && pause.applies_to(1) && !pause.applies_to(0));
        assert!(Pause::for_all().applies_to(0));
    }

    /// Without such pauses, a hammer puts no lock between the threads.
    #[test]
    fn only_pauses_that_wait_for_others_use_the_rendezvous() {
        let is_used =
            |pause: Pause| Rendezvous::new(2, &[("mark", Pause::time(Duration::ZERO)), ("mark", pause)]).is_used;
        assert!(is_used(Pause::for_all()) && is_used(Pause::in_order([1, 0])));
        assert!(!is_used(Pause::time(Duration::ZERO)) && !is_used(Pause::up_to(Duration::ZERO)));
    }
}
