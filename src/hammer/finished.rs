//! What one worker did in one round.

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

/// A worker came to a mark, and went on at this time.
#[derive(Clone, Copy)]
pub(super) struct Event {
    pub(super) mark: &'static str,
    /// The number of the engine, if the mark is of one.
    pub(super) engine: Option<u64>,
    pub(super) at: Instant,
}

/// Why a worker's round has no value.
#[derive(Debug)]
#[non_exhaustive]
pub enum Failure {
    /// The work returned this error; or `SQLITE_BUSY`, and this is the crate's own, which says who held the lock.
    Error(BoxError),
    /// The work panicked with these words.
    Panic(String),
    /// The work had not ended by the deadline; where it stood.
    Hung(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Error(error) => write!(f, "error: {error}"),
            Failure::Panic(words) => write!(f, "panic: {words}"),
            Failure::Hung(place) => write!(f, "hung, {place}"),
        }
    }
}
