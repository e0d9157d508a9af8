//! The reason for which a connection was refused the writer slot, and its error messages.
//!
//! SQLite passes on only a result code. So a thread-local keeps the refusal until the code returns on the same thread as
//! a `rusqlite::Error` and is converted to an [`Error`].

use std::cell::RefCell;
use std::fmt;
use std::time::{Duration, Instant};

use rusqlite::ffi;

use super::origin::Origin;
use crate::error::{Error, ErrorKind, NoConnection};
use crate::faults::Order;

/// The reason for which a connection was refused the writer slot.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    /// Another connection holds the slot, and held it until this connection timed out.
    Held { by: Origin, waited: Duration },
    /// The content that this connection read has been replaced.
    Stale { by: Origin },
    /// A fault plan demands the refusal.
    Injected { by: Order },
}

/// A refusal, with its engine and its time.
struct Latest {
    engine: String,
    refusal: Refusal,
    at: Instant,
}

/// How long a refusal explains errors that have its result code.
const RECENT: Duration = Duration::from_secs(1);

thread_local! {
    /// The latest refusal on this thread.
    static LATEST: RefCell<Option<Latest>> = const { RefCell::new(None) };
    /// The engine and the holder of the latest refusal on this thread because another connection held the slot.
    static HOLDER: RefCell<Option<(String, Origin)>> = const { RefCell::new(None) };
}

impl Refusal {
    /// Keeps the refusal, to explain the error that its result code is converted to.
    pub(crate) fn remember(self, engine: String) {
        // Another thread-local's destructor may run SQLite after this one is destroyed. Only the explanation is lost then.
        if let Refusal::Held { by, .. } = &self
            && !by.waits()
        {
            let _ = HOLDER.try_with(|holder| holder.replace(Some((engine.clone(), by.clone()))));
        }
        let _ = LATEST.try_with(|latest| latest.replace(Some(Latest { engine, refusal: self, at: Instant::now() })));
    }

    pub(crate) fn forget() {
        let _ = LATEST.try_with(|latest| latest.take());
        Refusal::forget_holder();
    }

    /// Forgets who held the writer slot: this thread goes on, with the lock of a reader at least.
    pub(crate) fn forget_holder() {
        let _ = HOLDER.try_with(|holder| holder.take());
    }

    /// Returns who held the engine's writer slot when this thread was refused it, if it has got no lock since.
    pub(crate) fn holder(engine: &str) -> Option<String> {
        let of_engine = |latest: &Option<(String, Origin)>| {
            latest.as_ref().filter(|(other, _)| other == engine).map(|(_, by)| by.to_string())
        };
        HOLDER.try_with(|holder| of_engine(&holder.borrow())).ok().flatten()
    }

    /// Returns the code of the latest refusal of this thread, if there is one since then.
    pub(crate) fn code_since(then: Instant) -> Option<i32> {
        let code = |latest: &Latest| (latest.at >= then).then(|| latest.refusal.extended_code());
        LATEST.try_with(|latest| latest.borrow().as_ref().and_then(code)).ok().flatten()
    }

    /// Takes the latest refusal of this thread, if it is recent and has this SQLite result code.
    pub(crate) fn take(extended_code: i32) -> Option<(String, Refusal)> {
        let fits =
            |latest: &mut Latest| latest.refusal.extended_code() == extended_code && latest.at.elapsed() < RECENT;
        let latest = LATEST.try_with(|latest| latest.borrow_mut().take_if(fits)).ok().flatten()?;
        Some((latest.engine, latest.refusal))
    }

    /// Returns the same refusal, after waiting for `waited`.
    pub(crate) fn after(self, waited: Duration) -> Refusal {
        match self {
            Refusal::Held { by, .. } => Refusal::Held { by, waited },
            other => other,
        }
    }

    /// Returns the refusal for a transaction that has read nothing, so it can start again with the committed content.
    pub(crate) fn of_fresh_transaction(self) -> Refusal {
        match self {
            Refusal::Stale { by } => Refusal::Held { by, waited: Duration::ZERO },
            other => other,
        }
    }

    pub(crate) fn extended_code(&self) -> i32 {
        match self {
            Refusal::Held { .. } | Refusal::Injected { .. } => ffi::SQLITE_BUSY,
            Refusal::Stale { .. } => ffi::SQLITE_BUSY_SNAPSHOT,
        }
    }

    pub(crate) fn is_by_this_thread(&self) -> bool {
        matches!(self, Refusal::Held { by, .. } if by.is_this_thread())
    }
}

impl Error {
    /// Creates the error for a connection that could not be opened. Opening one reads the schema, which may need a lock.
    pub(crate) fn open_connection(engine: &str, cause: NoConnection) -> Error {
        match cause {
            NoConnection::Sqlite(cause) => match refusal_of(&cause) {
                Some((engine, refusal)) => Error::from_refusal(&engine, &refusal, cause),
                None => Error::connection_not_opened(engine, NoConnection::Sqlite(cause)),
            },
            not_set_up => Error::connection_not_opened(engine, not_set_up),
        }
    }

    pub(crate) fn refused(engine: &str, refusal: &Refusal) -> Error {
        let code = ffi::Error::new(refusal.extended_code());
        Error::from_refusal(engine, refusal, rusqlite::Error::SqliteFailure(code, None))
    }

    /// Returns the message that is printed during a long wait.
    pub(crate) fn still_waiting(engine: &str, refusal: &Refusal) -> String {
        match refusal {
            Refusal::Held { by, waited } => {
                held("still waiting to write", engine, by, *waited, refusal.is_by_this_thread())
            }
            other => Error::refused(engine, other).to_string(),
        }
    }

    fn from_refusal(engine: &str, refusal: &Refusal, cause: rusqlite::Error) -> Error {
        let (kind, message) = match refusal {
            Refusal::Held { by, waited } => {
                (ErrorKind::LockTimeout, held("can't write", engine, by, *waited, refusal.is_by_this_thread()))
            }
            Refusal::Stale { by } => (ErrorKind::SerializationFailure, stale(engine, by)),
            Refusal::Injected { by } => {
                (ErrorKind::LockTimeout, format!("can't lock {engine}: {by} makes the lock fail"))
            }
        };
        Error::new(kind, message).with_sqlite(cause)
    }
}

fn held(what: &str, engine: &str, by: &Origin, waited: Duration, by_this_thread: bool) -> String {
    let remedy = if by_this_thread {
        "this thread waits for itself: commit, roll back or drop that one first"
    } else {
        "commit, roll back or drop that one sooner, or raise Engine::set_lock_timeout, or the busy timeout of a connection \
         that was opened by the engine's URI"
    };
    // A slot that was just released is for the first waiter, which may not have woken up yet.
    let slot = if by.waits() {
        "for its writer slot, which is reserved for"
    } else {
        "for its writer slot, which was taken by"
    };
    format!("{what} to {engine}: waited {waited:.1?} {slot} {by}; {remedy}")
}

fn stale(engine: &str, by: &impl fmt::Display) -> String {
    format!(
        "can't write to {engine}: serialization failure: what this transaction has read was replaced by {by}; roll back and \
         run it again, or begin with TransactionBehavior::Immediate"
    )
}

/// Returns the extended result code, if SQLite did not get a lock. (SQLITE_BUSY also has other messages.)
fn lock_error_code(error: &rusqlite::Error) -> Option<i32> {
    match error {
        rusqlite::Error::SqliteFailure(code, Some(message)) if message == "database is locked" => {
            Some(code.extended_code)
        }
        _ => None,
    }
}

/// Returns why an engine refused the lock that this error is about.
fn refusal_of(error: &rusqlite::Error) -> Option<(String, Refusal)> {
    lock_error_code(error).and_then(Refusal::take)
}

impl From<rusqlite::Error> for Error {
    /// Keeps SQLite's error as the source. The kind of "database is locked" is [`LockTimeout`](ErrorKind::LockTimeout) or
    /// [`SerializationFailure`](ErrorKind::SerializationFailure). If an engine has refused the lock, the message explains
    /// it: what holds the writer slot, since when, and at which line it began.
    ///
    /// # When the explanation is missing
    /// SQLite passes on only a result code, so the explanation is found by thread, code and time. Without it, the message
    /// is SQLite's. The explanation is missing
    /// * for a database in a file;
    /// * on another thread than the one that called SQLite, for example if a library runs SQL on its own threads;
    /// * a second or more after the refusal;
    /// * for the second error of one refusal, for example a clone: the first conversion takes the explanation;
    /// * after an engine has granted a lock, or lent out or opened a connection, on the same thread;
    /// * after an engine has refused a lock on the same thread with another result code. With the same code, the
    ///   explanation is that of the latest refusal, even if an earlier error is converted first;
    /// * if the message is no longer "database is locked", for example because code has wrapped it in its own.
    ///
    /// So convert an error where it is returned, for example with `?`. Methods of this crate that return [`Error`] do so.
    fn from(cause: rusqlite::Error) -> Error {
        match refusal_of(&cause) {
            Some((engine, refusal)) => Error::from_refusal(&engine, &refusal, cause),
            None => {
                let kind = match lock_error_code(&cause) {
                    Some(ffi::SQLITE_BUSY) => ErrorKind::LockTimeout,
                    Some(ffi::SQLITE_BUSY_SNAPSHOT) => ErrorKind::SerializationFailure,
                    _ => ErrorKind::Sqlite,
                };
                Error::new(kind, cause.to_string()).with_sqlite(cause)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::origin::Purpose;

    /// Returns whether a refusal of this age explains an error.
    fn is_taken_after(age: Duration) -> bool {
        let by = Origin::here(Purpose::Uri);
        Refusal::Stale { by }.remember("engine 1".to_owned());
        LATEST.with_borrow_mut(|latest| {
            let latest = latest.as_mut().expect("the refusal was remembered above");
            latest.at = latest.at.checked_sub(age).expect("the system has run for that long");
        });
        Refusal::take(ffi::SQLITE_BUSY_SNAPSHOT).is_some()
    }

    #[test]
    fn a_waiter_is_not_called_the_holder() {
        let message = |by| Error::refused("engine 1", &Refusal::Held { by, waited: Duration::ZERO }).to_string();
        assert!(message(Origin::here(Purpose::Uri)).contains("writer slot, which was taken by thread "));
        let waiter = Origin::waiting(Purpose::Uri);
        assert!(message(waiter.clone()).contains("writer slot, which is reserved for thread "));
        assert!(message(waiter.with_slot()).contains("writer slot, which was taken by thread "));
    }

    #[test]
    fn a_refusal_expires() {
        assert!(is_taken_after(Duration::ZERO));
        assert!(!is_taken_after(RECENT));
        Refusal::forget();
        assert!(Refusal::take(ffi::SQLITE_BUSY_SNAPSHOT).is_none());
    }

    #[test]
    fn a_refusal_explains_only_errors_with_its_code() {
        Refusal::Stale { by: Origin::here(Purpose::Uri) }.remember("engine 1".to_owned());
        assert!(Refusal::take(ffi::SQLITE_BUSY).is_none());
        assert!(matches!(Refusal::take(ffi::SQLITE_BUSY_SNAPSHOT), Some((engine, _)) if engine == "engine 1"));
        assert!(Refusal::take(ffi::SQLITE_BUSY_SNAPSHOT).is_none(), "a refusal is taken once");
    }
}
