//! Whether SQL has asked for what is outside of its database: the time, or another file. What such SQL puts into a database is
//! not the same tomorrow.

use std::cell::Cell;

thread_local! {
    static ASKED: Cell<bool> = const { Cell::new(false) };
}

/// A connection asks, on this thread.
pub(crate) fn ask() {
    let _ = ASKED.try_with(|asked| asked.set(true));
}

/// Does the work, and says whether it asked.
pub(crate) fn watch<T>(work: impl FnOnce() -> T) -> (T, bool) {
    let before = ASKED.replace(false);
    let result = work();
    let asked = ASKED.get();
    ASKED.set(before || asked);
    (result, asked)
}
