//! The locks and waits of the modules that are model-checked: those of std, or in a model (`cargo model`) those of shuttle,
//! which runs the threads in one order after another.

#[cfg(shuttle)]
mod in_models;

use std::cell::Cell;
use std::sync::{LockResult, PoisonError};
use std::thread::LocalKey;
#[cfg(not(shuttle))]
use std::time::{Duration, Instant};

#[cfg(not(shuttle))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(shuttle))]
pub(crate) use std::thread;

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};
#[cfg(shuttle)]
pub(crate) use shuttle::thread;

#[cfg(shuttle)]
pub(crate) use self::in_models::{Condvar, Patience};

/// Recovery of a lock after a panic while it was held: `mutex.lock().recovered()`.
///
/// A test that panics must not fail the tests after it. The value is consistent: every operation of this crate under a
/// lock either can't panic, or is a single call that changes the value.
pub(crate) trait Recovered<G> {
    fn recovered(self) -> G;
}

impl<G> Recovered<G> for LockResult<G> {
    fn recovered(self) -> G {
        self.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets a thread-local value while `work` runs, also if that panics. (In a thread-local destructor, the value may be gone.)
pub(crate) fn with_local<T, R>(local: &'static LocalKey<Cell<T>>, value: T, work: impl FnOnce() -> R) -> R {
    struct Restored<T: 'static>(&'static LocalKey<Cell<T>>, Option<T>);
    impl<T> Drop for Restored<T> {
        fn drop(&mut self) {
            if let Some(before) = self.1.take() {
                let _ = self.0.try_with(|local| local.set(before));
            }
        }
    }
    let _restored = Restored(local, local.try_with(|local| local.replace(value)).ok());
    work()
}

/// The time limit of a wait.
#[cfg(not(shuttle))]
pub(crate) struct Patience {
    most: Duration,
    start: Instant,
}

#[cfg(not(shuttle))]
impl Patience {
    pub(crate) fn of(most: Duration) -> Patience {
        Patience { most, start: Instant::now() }
    }

    pub(crate) fn lasts(&self) -> bool {
        !self.left().is_zero()
    }

    /// Returns the remaining time.
    pub(crate) fn left(&self) -> Duration {
        self.most.saturating_sub(self.start.elapsed())
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_after_its_time() {
        const LONG: Duration = Duration::from_secs(3600);
        let long = Patience::of(LONG);
        assert!(long.lasts() && long.left() > LONG / 2);
        let short = Patience::of(Duration::from_millis(5));
        while short.lasts() {
            thread::sleep(short.left());
        }
        assert!(short.left().is_zero());
        assert!(!Patience::of(Duration::ZERO).lasts());
    }
}
