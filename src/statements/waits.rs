//! How long the statements of this thread have waited for writer slots.

use std::cell::Cell;
use std::time::Duration;

thread_local! {
    static TOTAL: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// The number of refusals after which a busy handler that code has set may have waited.
    static UNKNOWN: Cell<u64> = const { Cell::new(0) };
}

/// Adds a wait.
pub(crate) fn add(wait: Duration) {
    let _ = TOTAL.try_with(|total| total.set(total.get() + wait));
}

/// Notes a refusal, after which SQLite may call a busy handler.
pub(crate) fn note_refusal() {
    let _ = UNKNOWN.try_with(|unknown| unknown.set(unknown.get() + 1));
}

/// Notes that the busy handler is the crate's own, which adds its waits.
pub(crate) fn note_own_handler() {
    let _ = UNKNOWN.try_with(|unknown| unknown.set(unknown.get().saturating_sub(1)));
}

/// Returns the sum of all waits of this thread so far, and the number of refusals after which it may have waited longer.
pub(super) fn total() -> (Duration, u64) {
    (TOTAL.try_with(Cell::get).unwrap_or_default(), UNKNOWN.try_with(Cell::get).unwrap_or_default())
}
