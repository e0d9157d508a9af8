//! Notes whether SQL depends on something outside of its database: the time, or another file. Such SQL may create other
//! content on another day.

use std::cell::Cell;

use crate::sync::with_local;

thread_local! {
    static ASKED: Cell<bool> = const { Cell::new(false) };
    static IS_OBSERVED: Cell<bool> = const { Cell::new(false) };
}

/// Notes that a connection on this thread asks for the time or for another file.
pub(crate) fn note() {
    let _ = ASKED.try_with(|asked| asked.set(true));
}

/// Returns whether `observe` runs on this thread.
pub(super) fn is_observed() -> bool {
    IS_OBSERVED.try_with(Cell::get).unwrap_or(false)
}

/// Runs `work`. Returns its result, and whether its SQL asked for the time or for another file.
pub(crate) fn observe<T>(work: impl FnOnce() -> T) -> (T, bool) {
    let observed = || (with_local(&IS_OBSERVED, true, work), ASKED.get());
    let (result, asked) = with_local(&ASKED, false, observed);
    ASKED.set(ASKED.get() || asked);
    (result, asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_observed_within_counts_outside_too() {
        assert_eq!(observe(|| observe(note)), (((), true), true));
        assert_eq!(observe(|| (note(), observe(|| ()))), (((), ((), false)), true));
        assert_eq!(observe(|| ()), ((), false), "nothing is left from before");
    }

    #[test]
    fn what_has_panicked_is_observed_no_longer() {
        let observed = || {
            note();
            assert!(is_observed());
            std::panic::resume_unwind(Box::new("it fails"));
        };
        assert!(std::panic::catch_unwind(|| observe(observed)).is_err());
        assert!(!is_observed() && !ASKED.get());
    }
}
