//! Places in the code that a hammer watches. In code that is not under one, each costs a load.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A shared engine is asked for by its URL, and has not been looked for yet.
pub const REGISTRY_ASKED: &str = "registry: asked";

/// This thread is going to make the shared engine that nobody has made yet.
pub const REGISTRY_CREATING: &str = "registry: creating";

/// The shared engine is made; others can't see it yet.
pub const REGISTRY_CREATED: &str = "registry: created";

/// An engine's writer slot is asked for. A connection that polls asks again and again.
pub const SLOT_ASKED: &str = "slot: asked";

/// The writer slot is this thread's.
pub const SLOT_TAKEN: &str = "slot: taken";

/// A wait for the writer slot has ended without it, or what the transaction has read was replaced. A transaction that has read
/// nothing yet may ask again.
pub const SLOT_REFUSED: &str = "slot: refused";

/// What was written is committed; the slot is still taken.
pub const COMMITTED: &str = "slot: committed";

/// The writer slot is about to be given back.
pub const SLOT_GIVEN_BACK: &str = "slot: given back";

/// How many threads are observed, in the whole process.
static OBSERVED: AtomicUsize = AtomicUsize::new(0);

/// Gets the mark, and the number of the engine if the mark is of one.
type Observer = Rc<dyn Fn(&'static str, Option<u64>)>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Tells a hammer, if this thread is one of its workers, that the code has come here: the same as
/// [`Worker::reached`](crate::hammer::Worker::reached), for code that has no worker at hand.
///
/// What threads do that a worker has started is not told. No lock should be held that another thread needs to come to the same
/// place, if it is to be paused there.
#[inline]
pub fn reached(mark: &'static str) {
    if is_observed() {
        tell(mark, None);
    }
}

/// `reached`, on the engine with this number; which is not asked for where no hammer runs.
#[inline]
pub(crate) fn reached_on(engine: impl FnOnce() -> u64, mark: &'static str) {
    if is_observed() {
        tell(mark, Some(engine()));
    }
}

/// Whether a hammer runs.
#[inline]
pub(crate) fn is_observed() -> bool {
    // `>=` would tell the same, and ask more often where nobody listens (exempted in mutants.toml).
    OBSERVED.load(Ordering::Relaxed) > 0
}

#[cold]
fn tell(mark: &'static str, engine: Option<u64>) {
    // Not borrowed while it runs, in which the thread may come to another mark.
    let observer = OBSERVER.try_with(|observer| observer.borrow().clone()).ok().flatten();
    if let Some(observer) = observer {
        observer(mark, engine);
    }
}

/// Has `observer` told of the marks that this thread reaches, until the guard is dropped.
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
    fn marks_are_told_as_long_as_somebody_observes() {
        let told = Rc::new(RefCell::new(Vec::new()));
        let observed = observe({
            let told = told.clone();
            move |mark, engine| told.borrow_mut().push((mark, engine))
        });
        reached("one");
        reached_on(|| 7, "two");
        drop(observed);
        reached("too late");
        reached_on(|| 7, "too late");
        assert_eq!(told.take(), [("one", None), ("two", Some(7))]);
        assert_eq!(Rc::strong_count(&told), 1, "the observer is dropped");
    }
}
