//! What the modules that are model-checked lock and wait with: std's, or in a model (`cargo model`) shuttle's, which runs
//! their threads in one order after another.

use std::time::Duration;
#[cfg(not(shuttle))]
use std::time::Instant;

#[cfg(not(shuttle))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(shuttle))]
pub(crate) use std::thread;

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
#[cfg(shuttle)]
pub(crate) use shuttle::thread;

/// How long somebody is going to wait.
pub(crate) struct Patience {
    most: Duration,
    #[cfg(not(shuttle))]
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

    /// How long it still lasts.
    pub(crate) fn left(&self) -> Duration {
        self.most.saturating_sub(self.start.elapsed())
    }

    pub(crate) fn waited(&self) -> Duration {
        self.start.elapsed()
    }
}

/// In a model no time passes: patience of less than an hour may be over whenever it is looked at.
#[cfg(shuttle)]
impl Patience {
    pub(crate) fn of(most: Duration) -> Patience {
        Patience { most }
    }

    pub(crate) fn lasts(&self) -> bool {
        use shuttle::rand::Rng;

        self.most >= Duration::from_secs(3600) || !self.most.is_zero() && shuttle::rand::thread_rng().r#gen()
    }

    pub(crate) fn left(&self) -> Duration {
        self.most
    }

    pub(crate) fn waited(&self) -> Duration {
        Duration::ZERO
    }
}
