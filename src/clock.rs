//! Whether SQL has asked for the time: what such SQL puts into a database is not the same tomorrow.

use std::cell::Cell;

thread_local! {
    static ASKED: Cell<bool> = const { Cell::new(false) };
}

/// A connection asks for the time, on this thread.
pub(crate) fn ask() {
    let _ = ASKED.try_with(|asked| asked.set(true));
}

/// Does the work, and says whether it asked for the time.
pub(crate) fn watch<T>(work: impl FnOnce() -> T) -> (T, bool) {
    let before = ASKED.replace(false);
    let result = work();
    let asked = ASKED.get();
    ASKED.set(before || asked);
    (result, asked)
}
