//! Waiting and its time limits in a model (`cargo model`).

use std::sync::LockResult;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shuttle::rand::Rng;
use shuttle::sync::{MutexGuard, WaitTimeoutResult};

/// Shuttle's condition variable, with time that passes when the model calls `pass_time`. If time matters, at most one
/// thread waits for it.
#[derive(Default)]
pub(crate) struct Condvar {
    condvar: shuttle::sync::Condvar,
    /// Whether that thread sleeps for less than an hour.
    is_timed: AtomicBool,
}

impl Condvar {
    pub(crate) const fn new() -> Condvar {
        Condvar { condvar: shuttle::sync::Condvar::new(), is_timed: AtomicBool::new(false) }
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.condvar.wait(guard)
    }

    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        time: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        self.is_timed.store(time < Duration::from_secs(3600), Ordering::Relaxed);
        let result = self.condvar.wait_timeout(guard, time);
        self.is_timed.store(false, Ordering::Relaxed);
        result
    }

    pub(crate) fn notify_one(&self) {
        self.condvar.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.condvar.notify_all();
    }

    /// Wakes the thread if its sleep has a time limit.
    #[cfg(test)]
    pub(crate) fn pass_time(&self) {
        if self.is_timed.load(Ordering::Relaxed) {
            self.notify_one();
        }
    }
}

/// The time limit of a wait. No time passes in a model: a limit of less than an hour may be over at any check.
pub(crate) struct Patience {
    most: Duration,
}

impl Patience {
    pub(crate) fn of(most: Duration) -> Patience {
        Patience { most }
    }

    pub(crate) fn lasts(&self) -> bool {
        self.most >= Duration::from_secs(3600) || !self.most.is_zero() && shuttle::rand::thread_rng().r#gen()
    }

    pub(crate) fn left(&self) -> Duration {
        self.most
    }
}
