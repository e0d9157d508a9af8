//! What holds a worker up at a mark.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::sync::Recovered;

/// What a worker does at a mark before it goes on, the first time in each round that it comes there.
///
/// Those that wait for other workers wait for [`patience`](Pause::patience) at most, and not for workers whose round has
/// ended. How often patience ran out is in the report.
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
    /// Sleeps so long.
    pub fn time(time: Duration) -> Pause {
        Pause::new(Kind::Time(time))
    }

    /// Sleeps for a time up to `longest`, drawn from the run's seed, another one each time.
    pub fn up_to(longest: Duration) -> Pause {
        Pause::new(Kind::UpTo(longest))
    }

    /// Waits until every worker is there: between a check and what is done about it, that makes all of them act on the
    /// same.
    pub fn for_all() -> Pause {
        Pause::new(Kind::ForAll)
    }

    /// Lets the workers pass in this order. Those that it does not name pass at once.
    pub fn in_order(order: impl IntoIterator<Item = usize>) -> Pause {
        Pause::new(Kind::InOrder(order.into_iter().collect()))
    }

    fn new(kind: Kind) -> Pause {
        Pause { kind, patience: Duration::from_secs(1), only: None }
    }

    /// How long to wait for other workers, 1 s unless set.
    pub fn patience(self, patience: Duration) -> Pause {
        Pause { patience, ..self }
    }

    /// Holds up this one worker only.
    pub fn of_worker(self, number: usize) -> Pause {
        Pause { only: Some(number), ..self }
    }

    pub(super) fn concerns(&self, worker: usize) -> bool {
        self.only.is_none_or(|only| only == worker)
    }

    fn waits_for_others(&self) -> bool {
        matches!(self.kind, Kind::ForAll | Kind::InOrder(_))
    }
}

/// Where workers wait for one another.
pub(super) struct Meeting {
    threads: usize,
    /// Whether any pause waits for others. If none does, no worker takes the lock, which would put them in an order.
    is_used: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    arrived: BTreeMap<&'static str, BTreeSet<usize>>,
    passed: BTreeMap<&'static str, BTreeSet<usize>>,
    ended: BTreeSet<usize>,
    given_up: BTreeMap<&'static str, usize>,
}

impl Meeting {
    pub(super) fn new(threads: usize, pauses: &[(&'static str, Pause)]) -> Meeting {
        let is_used = pauses.iter().any(|(_, pause)| pause.waits_for_others());
        Meeting { threads, is_used, state: Mutex::default(), changed: Condvar::new() }
    }

    /// A round begins; no worker is in it yet.
    pub(super) fn begin(&self) {
        let mut state = self.lock();
        *state = State { given_up: std::mem::take(&mut state.given_up), ..State::default() };
    }

    /// The worker is at the mark, and may be held up there.
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
            *state.given_up.entry(mark).or_default() += 1;
        }
    }

    pub(super) fn pass(&self, mark: &'static str, worker: usize) {
        if self.is_used {
            self.lock().passed.entry(mark).or_default().insert(worker);
            self.changed.notify_all();
        }
    }

    pub(super) fn end(&self, worker: usize) {
        if self.is_used {
            self.lock().ended.insert(worker);
            self.changed.notify_all();
        }
    }

    /// At which marks patience ran out, and how often.
    pub(super) fn given_up(&self) -> Vec<(&'static str, usize)> {
        self.lock().given_up.clone().into_iter().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().recovered()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_what_it_was_made() {
        const PATIENCE: Duration = Duration::from_millis(3);
        let pause = Pause::for_all().patience(PATIENCE).of_worker(1);
        assert!(pause.patience == PATIENCE && pause.concerns(1) && !pause.concerns(0));
        assert!(Pause::for_all().concerns(0));
    }

    /// Without one, a hammer puts no lock between the threads.
    #[test]
    fn only_pauses_that_wait_for_others_need_a_meeting() {
        let is_used = |pause: Pause| Meeting::new(2, &[("mark", Pause::time(Duration::ZERO)), ("mark", pause)]).is_used;
        assert!(is_used(Pause::for_all()) && is_used(Pause::in_order([1, 0])));
        assert!(!is_used(Pause::time(Duration::ZERO)) && !is_used(Pause::up_to(Duration::ZERO)));
    }
}
