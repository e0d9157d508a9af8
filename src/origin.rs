//! Who holds the writer slot, and why a lock was refused: the words of rule "the error names the holder".

use std::cell::RefCell;
use std::fmt;
use std::panic::Location;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::faults::Order;

/// What wants to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    UnitOfWork(&'static Location<'static>),
    Connection(&'static Location<'static>),
    Restore(&'static Location<'static>),
    /// A connection that another library, or the code under test, opened by the engine's URI.
    Uri,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Purpose::UnitOfWork(at) => write!(f, "the unit of work begun at {at}"),
            Purpose::Connection(at) => write!(f, "the connection opened at {at}"),
            Purpose::Restore(at) => write!(f, "the restore or reset called at {at}"),
            Purpose::Uri => f.write_str("a connection that was opened by the engine's URI"),
        }
    }
}

/// Who took the writer slot, and when.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    thread: Thread,
    purpose: Purpose,
    since: Instant,
}

impl Origin {
    pub(crate) fn here(purpose: Purpose) -> Origin {
        Origin { thread: thread::current(), purpose, since: Instant::now() }
    }

    pub(crate) fn restarted(self) -> Origin {
        Origin { since: Instant::now(), ..self }
    }

    #[cfg(test)]
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    fn is_this_thread(&self) -> bool {
        self.thread.id() == thread::current().id()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.thread.name() {
            Some(name) => write!(f, "thread `{name}`")?,
            None => write!(f, "an unnamed thread ({:?})", self.thread.id())?,
        }
        if self.is_this_thread() {
            f.write_str(", this very one,")?;
        }
        write!(f, " in {}, {:.1?} ago", self.purpose, self.since.elapsed())
    }
}

/// Why a connection was refused the writer slot.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    /// Another connection has it, and kept it for as long as this one was ready to wait.
    Held { by: Origin, waited: Duration },
    /// What this connection read is no longer the newest content.
    Stale { by: Origin },
    /// A fault plan asks for it.
    Injected { by: Order },
}

/// A refusal, by which engine, and when.
struct Latest {
    engine: String,
    refusal: Refusal,
    at: Instant,
}

/// How long after a refusal an error with its code is taken for it.
const RECENT: Duration = Duration::from_secs(1);

thread_local! {
    /// The latest refusal on this thread. SQLite hands on a result code only; this keeps the rest of it
    /// until the code has come back as a `rusqlite::Error`.
    static LATEST: RefCell<Option<Latest>> = const { RefCell::new(None) };
}

impl Refusal {
    /// Keeps the refusal for the error that is about to be made of its result code.
    pub(crate) fn remember(self, engine: String) {
        // A destructor of another thread-local may run SQLite when this one is gone; then the detail is lost, no more.
        let _ = LATEST.try_with(|latest| latest.replace(Some(Latest { engine, refusal: self, at: Instant::now() })));
    }

    pub(crate) fn forget() {
        let _ = LATEST.try_with(|latest| latest.take());
    }

    /// The latest refusal of this thread, if it is recent and its SQLite result code is this one.
    pub(crate) fn take(extended_code: i32) -> Option<(String, Refusal)> {
        let fits =
            |latest: &mut Latest| latest.refusal.extended_code() == extended_code && latest.at.elapsed() < RECENT;
        let latest = LATEST.try_with(|latest| latest.borrow_mut().take_if(fits)).ok().flatten()?;
        Some((latest.engine, latest.refusal))
    }

    /// The same refusal, after waiting so long.
    pub(crate) fn after(self, waited: Duration) -> Refusal {
        match self {
            Refusal::Held { by, .. } => Refusal::Held { by, waited },
            other => other,
        }
    }

    /// The refusal of a transaction that has read nothing, which can start again with what is committed now.
    pub(crate) fn of_fresh_transaction(self) -> Refusal {
        match self {
            Refusal::Stale { by } => Refusal::Held { by, waited: Duration::ZERO },
            other => other,
        }
    }

    pub(crate) fn extended_code(&self) -> i32 {
        match self {
            Refusal::Held { .. } | Refusal::Injected { .. } => rusqlite::ffi::SQLITE_BUSY,
            Refusal::Stale { .. } => rusqlite::ffi::SQLITE_BUSY_SNAPSHOT,
        }
    }

    pub(crate) fn is_by_this_thread(&self) -> bool {
        matches!(self, Refusal::Held { by, .. } | Refusal::Stale { by } if by.is_this_thread())
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    /// Whether a refusal that is so old is taken for the error that comes now.
    fn is_taken_after(age: Duration) -> bool {
        let by = Origin::here(Purpose::Uri);
        Refusal::Stale { by }.remember("engine 1".to_owned());
        LATEST.with_borrow_mut(|latest| {
            let latest = latest.as_mut().expect("it was remembered just now");
            latest.at = latest.at.checked_sub(age).expect("the system runs for longer");
        });
        Refusal::take(ffi::SQLITE_BUSY_SNAPSHOT).is_some()
    }

    #[test]
    fn a_refusal_is_forgotten_after_a_while() {
        assert!(is_taken_after(Duration::ZERO));
        assert!(!is_taken_after(RECENT));
        Refusal::forget();
        assert!(Refusal::take(ffi::SQLITE_BUSY_SNAPSHOT).is_none());
    }

    #[test]
    fn an_origin_that_is_restarted_is_new() {
        const HOUR: Duration = Duration::from_secs(3600);
        let since = Instant::now().checked_sub(HOUR).expect("the system runs for longer");
        let old = Origin { since, ..Origin::here(Purpose::Uri) };
        assert!(old.age() >= HOUR && old.restarted().age() < HOUR);
    }

    #[test]
    fn a_refusal_is_for_the_error_of_its_code() {
        Refusal::Stale { by: Origin::here(Purpose::Uri) }.remember("engine 1".to_owned());
        assert!(Refusal::take(ffi::SQLITE_BUSY).is_none());
        assert!(matches!(Refusal::take(ffi::SQLITE_BUSY_SNAPSHOT), Some((engine, _)) if engine == "engine 1"));
        assert!(Refusal::take(ffi::SQLITE_BUSY_SNAPSHOT).is_none(), "it is told once");
    }
}
