//! Connections whose busy handler is not ours: how they keep their place in an engine's queue while they come and go.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mount::Mount;
use super::report::{SELF_TOLD_AFTER, TOLD_AFTER, report_long_wait};
use super::waiting::wait;
use crate::content::queue::Place;
use crate::content::refusal::Refusal;
use crate::content::store::Claim;

/// A connection's wait for the writer slot, from its first refusal on.
pub(super) struct Polling {
    pub(super) place: Place,
    /// When it was refused last.
    refused: Instant,
    /// Whether its busy handler has waited, as far as is known.
    pub(super) has_waited: bool,
    /// Whether its busy handler has given up since it was refused last.
    pub(super) has_given_up: bool,
    /// Whether it has been printed what it waits for.
    is_told: bool,
}

/// How long a connection keeps its place while it is away. SQLite's own busy handler sleeps for up to 100 ms at a time.
const KEPT: Duration = Duration::from_millis(200);

/// How long a connection waits in the queue, at least, between two calls of a busy handler that sleeps elsewhere.
const SHORTEST_TURN: Duration = Duration::from_millis(10);

impl Polling {
    pub(super) fn new() -> Polling {
        let (place, refused) = (Place::new(), Instant::now());
        Polling { place, refused, has_waited: false, has_given_up: false, is_told: false }
    }

    /// It was refused again. Returns the refusal with the time since the first one.
    pub(super) fn refuse(&mut self, refusal: Refusal) -> Refusal {
        self.refused = Instant::now();
        refusal.after(self.place.age())
    }

    /// Whether its busy handler has waited and given up. Without one that waits, code may come back by itself.
    pub(super) fn is_over(&self) -> bool {
        self.has_given_up && self.has_waited
    }

    /// It is back, to go on waiting, or because it wants something else. After long, it is another wait.
    pub(super) fn come_back(&mut self) {
        if self.refused.elapsed() > KEPT {
            *self = Polling::new();
        }
        self.has_given_up = false;
    }

    /// Prints what the connection waits for, once, if it has been waiting for long.
    pub(super) fn tell(&mut self, mount: &Mount, refusal: &Refusal) {
        let after = if refusal.is_by_this_thread() { SELF_TOLD_AFTER } else { TOLD_AFTER };
        if !self.is_told && self.place.age() >= after {
            self.is_told = true;
            report_long_wait(mount, refusal);
        }
    }
}

/// How long to wait in the queue after a busy handler has slept elsewhere for so long: about as long. Not exactly, or a
/// connection could be away each time that the slot is given back, if that happens at equal intervals.
pub(super) fn turn_after(slept: Duration) -> Duration {
    slept.mul_f64(0.5 + fastrand::f64()).max(SHORTEST_TURN)
}

/// What waits in the queue when SQLite's own busy handler sleeps.
struct Sleeper {
    mount: Arc<Mount>,
    claim: Claim,
    place: Place,
    /// What came of it, once it has slept.
    result: Option<Result<(), Refusal>>,
}

thread_local! {
    static SLEEPER: RefCell<Option<Sleeper>> = const { RefCell::new(None) };
}

/// Calls a busy handler. If that is SQLite's own, it sleeps by way of our VFS, and waits in the queue meanwhile; then what
/// came of it is returned too.
pub(super) fn call(
    busy_handler: impl FnOnce() -> bool,
    mount: &Arc<Mount>,
    claim: Claim,
    place: Place,
) -> (bool, Option<Result<(), Refusal>>) {
    let sleeper = Sleeper { mount: mount.clone(), claim, place, result: None };
    let outer = SLEEPER.try_with(|cell| cell.replace(Some(sleeper))).ok().flatten();
    let tries_again = busy_handler();
    let sleeper = SLEEPER.try_with(|cell| cell.replace(outer)).ok().flatten();
    (tries_again, sleeper.and_then(|sleeper| sleeper.result))
}

/// Waits in the queue, if a busy handler is being called for an engine on this thread; says whether it was so.
pub(super) fn sleep(time: Duration) -> bool {
    // Not borrowed while it waits.
    let Some(mut sleeper) = SLEEPER.try_with(RefCell::take).ok().flatten() else { return false };
    sleeper.result = Some(wait(&sleeper.mount, &sleeper.claim, sleeper.place, time));
    let _ = SLEEPER.try_with(|cell| cell.replace(Some(sleeper)));
    true
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_place_expires_when_its_owner_stays_away() {
        let mut polling = Polling::new();
        let place = polling.place;
        polling.has_given_up = true;
        polling.come_back();
        assert!(!polling.has_given_up);
        assert!(!place.is_before(&polling.place), "it is kept");
        polling.refused -= 2 * KEPT;
        polling.come_back();
        assert!(place.is_before(&polling.place), "it is the last one's now");
    }

    #[test]
    fn a_turn_is_about_as_long_as_the_busy_handler_has_slept() {
        assert_eq!(turn_after(Duration::ZERO), SHORTEST_TURN);
        let second = Duration::from_secs(1);
        for _ in 0..100 {
            assert!((second / 2..second * 3 / 2).contains(&turn_after(second)));
        }
    }

    #[test]
    fn nobody_waits_in_a_queue_for_a_sleep_that_is_not_its_own() {
        assert!(!thread::spawn(|| sleep(Duration::from_secs(60))).join().unwrap());
    }
}
