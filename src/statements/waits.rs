//! How long the statements of this thread have waited for writer slots.

use std::cell::Cell;
use std::time::Duration;

thread_local! {
    static TOTAL: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Adds a wait.
pub(crate) fn add(wait: Duration) {
    let _ = TOTAL.try_with(|total| total.set(total.get() + wait));
}

/// Returns the sum of all waits of this thread so far.
pub(super) fn total() -> Duration {
    TOTAL.try_with(Cell::get).unwrap_or_default()
}
