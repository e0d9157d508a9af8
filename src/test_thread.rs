//! The thread of a test, for which other threads may act. What a test sets for its own thread holds on them too.

use std::cell::Cell;
use std::thread::{self, ThreadId};

thread_local! {
    static ACTS_FOR: Cell<Option<ThreadId>> = const { Cell::new(None) };
}

/// Returns the id of the thread for which this one acts, or its own.
pub(crate) fn id() -> ThreadId {
    ACTS_FOR.try_with(Cell::get).ok().flatten().unwrap_or_else(|| thread::current().id())
}

/// Makes this thread act for another until it ends.
#[cfg(feature = "hammer")]
pub(crate) fn act_for(test: ThreadId) {
    ACTS_FOR.set(Some(test));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_acts_for_itself_or_for_the_one_that_it_was_given() {
        let this = thread::current().id();
        assert_eq!(id(), this);
        let of_another = thread::spawn(|| (id(), thread::current().id())).join().unwrap();
        assert_eq!(of_another.0, of_another.1);
        #[cfg(feature = "hammer")]
        {
            let act = move || {
                act_for(this);
                id()
            };
            assert_eq!(thread::spawn(act).join().unwrap(), this);
        }
    }
}
