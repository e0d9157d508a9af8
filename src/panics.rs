//! The latest panic of each thread: its message and its place, which only a panic hook learns.

use std::cell::RefCell;
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::thread;

/// A panic.
#[derive(Debug)]
pub(crate) struct Panic {
    /// Its number in the process.
    pub(crate) number: u64,
    pub(crate) message: String,
    /// The file, line and column.
    pub(crate) place: String,
}

thread_local! {
    static LATEST: RefCell<Option<Arc<Panic>>> = const { RefCell::new(None) };
}

/// Returns the latest panic of this thread, unless other code has replaced the panic hook.
pub(crate) fn latest() -> Option<Arc<Panic>> {
    LATEST.try_with(|latest| latest.borrow().clone()).ok().flatten()
}

/// Forgets the latest panic of this thread: it was caught, and a later one may call no hook (`resume_unwind`).
pub(crate) fn forget() {
    let _ = LATEST.try_with(|latest| latest.borrow_mut().take());
}

/// Observes panics from now on: calls the present panic hook, and then `after`, which must not panic. Only the first call
/// in a process does anything.
pub(crate) fn observe(after: fn(&Arc<Panic>)) {
    static OBSERVED: Once = Once::new();
    if OBSERVED.is_completed() || thread::panicking() {
        return; // the hook can't be replaced by a thread that panics
    }
    OBSERVED.call_once(|| {
        let present = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let panic = Arc::new(Panic::of(info));
            let _ = LATEST.try_with(|latest| *latest.borrow_mut() = Some(panic.clone()));
            present(info);
            after(&panic);
        }));
    });
}

impl Panic {
    fn of(info: &PanicHookInfo<'_>) -> Panic {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let message = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Panic {
            number: NUMBER.fetch_add(1, Ordering::Relaxed) + 1,
            message: message.unwrap_or("a panic with a payload that is not text").to_owned(),
            place: info.location().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_panic_of_a_thread_is_known() {
        observe(|_| {});
        observe(|_| panic!("only the first call counts"));
        let panics = || {
            let before = latest().map(|panic| panic.number);
            let seen = ["text", "formatted"].map(|message| {
                let _ = panic::catch_unwind(|| if message == "text" { panic!("text") } else { panic!("{message}") });
                latest().unwrap()
            });
            let _ = panic::catch_unwind(|| panic::panic_any(7));
            (before, seen, latest().unwrap())
        };
        let (before, [text, formatted], other) = thread::spawn(panics).join().unwrap();
        assert_eq!(before, None);
        assert_eq!((&*text.message, &*formatted.message), ("text", "formatted"));
        assert_eq!(other.message, "a panic with a payload that is not text");
        assert!(text.place.contains("panics.rs:"), "{}", text.place);
        assert!(text.number < formatted.number && formatted.number < other.number);
        assert!(thread::spawn(latest).join().unwrap().is_none(), "another thread has not panicked");
    }
}
