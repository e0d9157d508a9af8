//! How long is waited in a model (`cargo model`).

use std::time::Duration;

use shuttle::rand::Rng;

/// In a model no time passes: patience of less than an hour may be over whenever it is looked at.
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

    pub(crate) fn waited(&self) -> Duration {
        Duration::ZERO
    }
}
