//! What one worker did in one round. Its thread sends this when the round has ended.

use std::error::Error;
use std::fmt;
use std::time::Instant;

use crate::error::BoxError;

/// What one worker has done in a round.
pub(super) struct Finished<T> {
    pub(super) number: usize,
    pub(super) begun: Instant,
    pub(super) ended: Instant,
    pub(super) result: Result<T, Failure>,
    pub(super) events: Vec<Event>,
}

impl<T> Finished<T> {
    pub(super) fn has_hung(&self) -> bool {
        matches!(self.result, Err(Failure::Hung(_)))
    }
}

/// A worker reached a mark, and passed it at this time.
#[derive(Clone, Copy)]
pub(super) struct Event {
    pub(super) mark: &'static str,
    /// The number of the engine, for a mark of an engine's writer slot.
    pub(super) engine: Option<u64>,
    pub(super) at: Instant,
}

/// Why a worker returned no value in a round.
#[derive(Debug)]
#[non_exhaustive]
pub enum Failure {
    /// The work returned this error. Instead of SQLite's `SQLITE_BUSY`, it is the crate's [`Error`](crate::Error),
    /// which names the holder of the lock.
    Error(BoxError),
    /// The work panicked with this message.
    Panic(String),
    /// The work had not ended by the deadline. The text says where the worker was.
    Hung(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Error(error) => write!(f, "error: {error}"),
            Failure::Panic(message) => write!(f, "panic: {message}"),
            Failure::Hung(place) => write!(f, "hung {place}"),
        }
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Failure::Error(error) => Some(&**error),
            Failure::Panic(_) | Failure::Hung(_) => None,
        }
    }
}
