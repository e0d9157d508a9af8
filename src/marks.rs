//! Marks: places in the code that a hammer observes. If no hammer runs, a mark costs one load.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Reached when a thread asks for a shared engine by its URL, before the look-up.
pub const REGISTRY_ASKED: &str = "registry: asked";

/// Reached before this thread creates a shared engine that does not exist yet.
pub const REGISTRY_CREATING: &str = "registry: creating";

/// Reached when the shared engine is created, before other threads can see it.
pub const REGISTRY_CREATED: &str = "registry: created";

/// Reached before a thread asks for an engine's writer slot. A connection that polls asks repeatedly.
pub const SLOT_ASKED: &str = "slot: asked";

/// Reached when this thread has taken the writer slot.
pub const SLOT_TAKEN: &str = "slot: taken";

/// Reached when a wait for the writer slot has ended without it, or when the content that the transaction has read was
/// replaced. A transaction that has read nothing yet may ask again.
pub const SLOT_REFUSED: &str = "slot: refused";

/// Reached after a commit, while this thread still has the slot.
pub const COMMITTED: &str = "slot: committed";

/// Reached before this thread releases the writer slot.
pub const SLOT_GIVEN_BACK: &str = "slot: given back";

/// The marks that only engines in memory reach.
#[cfg(feature = "hammer")]
pub(crate) const OF_ENGINES: [&str; 5] = [SLOT_ASKED, SLOT_TAKEN, SLOT_REFUSED, COMMITTED, SLOT_GIVEN_BACK];

/// The number of observed threads in the process.
static OBSERVED: AtomicUsize = AtomicUsize::new(0);

/// A function that gets the mark, and the engine's number for a mark of an engine.
type Observer = Rc<dyn Fn(&'static str, Option<u64>)>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Marks a place in the code where the order of threads matters: [`Worker::reached`](crate::hammer::Worker::reached), for code
/// that has no [`Worker`](crate::hammer::Worker).
///
/// It does nothing unless the current thread is a worker of a hammer. If the mark has a
/// [`Pause`](crate::hammer::Pause), the code should not hold a lock that other threads need to reach the mark.
#[inline]
pub fn reached(mark: &'static str) {
    if is_observed() {
        report(mark, None);
    }
}

/// Like `reached`, for a mark of an engine; the engine's number is evaluated only under a hammer.
#[inline]
pub(crate) fn reached_on(engine: impl FnOnce() -> u64, mark: &'static str) {
    if is_observed() {
        report(mark, Some(engine()));
    }
}

/// Returns whether a hammer runs in this process.
#[inline]
pub(crate) fn is_observed() -> bool {
    // With `>=` the result is the same, but slower without a hammer (exempted in mutants.toml).
    OBSERVED.load(Ordering::Relaxed) > 0
}

#[cold]
fn report(mark: &'static str, engine: Option<u64>) {
    // The observer is not borrowed during the call, because the thread may reach another mark in it.
    let observer = OBSERVER.try_with(|observer| observer.borrow().clone()).ok().flatten();
    if let Some(observer) = observer {
        observer(mark, engine);
    }
}

/// Calls `observer` for each mark that this thread reaches, until the guard is dropped.
pub(crate) fn observe(observer: impl Fn(&'static str, Option<u64>) + 'static) -> Observed {
    OBSERVER.set(Some(Rc::new(observer)));
    OBSERVED.fetch_add(1, Ordering::Relaxed);
    Observed
}

pub(crate) struct Observed;

impl Drop for Observed {
    fn drop(&mut self) {
        OBSERVED.fetch_sub(1, Ordering::Relaxed);
        OBSERVER.take();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn marks_are_reported_while_the_thread_is_observed() {
        let reported = Rc::new(RefCell::new(Vec::new()));
        let observed = observe({
            let reported = reported.clone();
            move |mark, engine| reported.borrow_mut().push((mark, engine))
        });
        reached("one");
        reached_on(|| 7, "two");
        drop(observed);
        reached("too late");
        reached_on(|| 7, "too late");
        assert_eq!(reported.take(), [("one", None), ("two", Some(7))]);
        assert_eq!(Rc::strong_count(&reported), 1, "the observer is dropped");
    }
}
