//! The holder of the writer slot: its thread, the line of the test that asked for the slot, and the time.

use std::fmt;
use std::panic::Location;
use std::thread::{self, Thread};
use std::time::Instant;

/// The operation that asks for the writer slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    UnitOfWork(&'static Location<'static>),
    Connection(&'static Location<'static>),
    Restore(&'static Location<'static>),
    /// A step in the build of a template.
    Build(&'static Location<'static>),
    /// The restore of a kept value's engine, for the next test.
    Kept,
    /// The comparison of a copy with another.
    Comparison,
    /// A connection that another library, or the code under test, opened by the engine's URI.
    Uri,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Purpose::UnitOfWork(at) => write!(f, "the unit of work begun at {at}"),
            Purpose::Connection(at) => write!(f, "the connection opened at {at}"),
            Purpose::Restore(at) => write!(f, "the restore or reset called at {at}"),
            Purpose::Build(at) => write!(f, "the step given at {at}"),
            Purpose::Kept => f.write_str("the restore of a kept value's engine"),
            Purpose::Comparison => f.write_str("a comparison"),
            Purpose::Uri => f.write_str("a connection that was opened by the engine's URI"),
        }
    }
}

/// The thread and the operation that took the writer slot, and the time.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    thread: Thread,
    purpose: Purpose,
    since: Instant,
    /// Whether it waits for the slot, and does not have it.
    waits: bool,
}

impl Origin {
    pub(crate) fn here(purpose: Purpose) -> Origin {
        Origin { thread: thread::current(), purpose, since: Instant::now(), waits: false }
    }

    /// Returns the origin of a waiter.
    pub(super) fn waiting(purpose: Purpose) -> Origin {
        Origin { waits: true, ..Origin::here(purpose) }
    }

    /// Returns the origin of a waiter that gets the slot now.
    pub(super) fn with_slot(self) -> Origin {
        Origin { since: Instant::now(), waits: false, ..self }
    }

    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    #[cfg(test)]
    pub(crate) fn age(&self) -> std::time::Duration {
        self.since.elapsed()
    }

    pub(super) fn is_this_thread(&self) -> bool {
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
            f.write_str(" (this thread)")?;
        }
        write!(f, " in {}, {:.1?} ago", self.purpose, self.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn restarting_an_origin_resets_its_age() {
        const HOUR: Duration = Duration::from_secs(3600);
        let since = Instant::now().checked_sub(HOUR).expect("the system has run for an hour");
        let old = Origin { since, ..Origin::here(Purpose::Uri) };
        assert!(old.age() >= HOUR && old.with_slot().age() < HOUR);
    }
}
