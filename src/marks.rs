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

/// The writer slot was asked for in vain. A transaction that has read nothing yet may come back.
pub const SLOT_REFUSED: &str = "slot: refused";

/// What was written is committed; the slot is still taken.
pub const COMMITTED: &str = "slot: committed";

/// The writer slot is about to be given back.
pub const SLOT_GIVEN_BACK: &str = "slot: given back";

/// How many threads are observed, in the whole process.
static OBSERVED: AtomicUsize = AtomicUsize::new(0);

type Observer = Rc<dyn Fn(&'static str)>;

thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Tells a hammer, if this thread is one of its workers, that the code has come here: the same as
/// [`Worker::reached`](crate::hammer::Worker::reached), for code that has no worker at hand.
///
/// What threads do that a worker has started is not told. No lock should be held that another thread needs to come to the same place, if it is to be paused there.
#[inline]
pub fn reached(mark: &'static str) {
    reached_if(mark, || true);
}

/// `reached`, if so; which is not asked where no hammer runs.
#[inline]
pub(crate) fn reached_if(mark: &'static str, is_so: impl FnOnce() -> bool) {
    // `>=` would tell the same, and ask `is_so` more often (exempted in mutants.toml).
    if OBSERVED.load(Ordering::Relaxed) > 0 && is_so() {
        tell(mark);
    }
}

#[cold]
fn tell(mark: &'static str) {
    // Not borrowed while it runs, in which the thread may come to another mark.
    let observer = OBSERVER.try_with(|observer| observer.borrow().clone()).ok().flatten();
    if let Some(observer) = observer {
        observer(mark);
    }
}

/// Has `observer` told of the marks that this thread reaches, until the guard is dropped.
pub(crate) fn observe(observer: impl Fn(&'static str) + 'static) -> Observed {
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
            move |mark| told.borrow_mut().push(mark)
        });
        reached("one");
        reached_if("two", || true);
        reached_if("not so", || false);
        drop(observed);
        reached("too late");
        assert_eq!(told.take(), ["one", "two"]);
        assert_eq!(Rc::strong_count(&told), 1, "the observer is dropped");
    }
}
