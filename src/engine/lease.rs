//! A connection that an engine lends out, and that returns to the engine when it is dropped.

use std::ops::{Deref, DerefMut};

use rusqlite::{Connection, TransactionBehavior};

use super::Engine;
use crate::content::Snapshot;
use crate::vfs::{self, Session, trace};

pub(crate) struct Lease {
    /// `None` only within `drop`.
    lent: Option<Lent>,
    /// Declared after the connection, which returns to it.
    engine: Engine,
}

/// A connection that is lent out.
pub(crate) enum Lent {
    /// To an engine in memory. It is reused.
    Session(Session),
    /// To an engine in a file. It is closed, because no code observes what was done to it.
    ToFile(Connection),
}

impl Lent {
    pub(crate) fn connection(&self) -> &Connection {
        match self {
            Lent::Session(session) => session.connection(),
            Lent::ToFile(connection) => connection,
        }
    }

    pub(crate) fn connection_mut(&mut self) -> &mut Connection {
        match self {
            Lent::Session(session) => session.connection_mut(),
            Lent::ToFile(connection) => connection,
        }
    }

    pub(crate) fn begin(&mut self, behavior: TransactionBehavior) -> rusqlite::Result<()> {
        match self {
            Lent::Session(session) => session.begin(behavior),
            Lent::ToFile(connection) => connection.execute_batch(match behavior {
                TransactionBehavior::Deferred => "BEGIN",
                _ => "BEGIN IMMEDIATE", // EXCLUSIVE is the same in WAL mode
            }),
        }
    }

    pub(crate) fn commit(&mut self) -> rusqlite::Result<()> {
        match self {
            Lent::Session(session) => session.commit(),
            Lent::ToFile(connection) => connection.execute_batch("COMMIT"),
        }
    }

    pub(crate) fn rollback(&mut self) -> rusqlite::Result<()> {
        match self {
            Lent::Session(session) => session.rollback(),
            Lent::ToFile(connection) => connection.execute_batch("ROLLBACK"),
        }
    }

    /// Returns the content that the connection sees, with what it has not committed.
    pub(crate) fn content(&self) -> rusqlite::Result<Snapshot> {
        match self {
            Lent::Session(session) => session.content(),
            Lent::ToFile(connection) => vfs::serialized(connection),
        }
    }

    pub(crate) fn is_in_transaction(&self) -> bool {
        !self.connection().is_autocommit()
    }

    /// Returns whether the connection was changed as a whole before it was lent out.
    pub(crate) fn was_changed(&self) -> bool {
        matches!(self, Lent::Session(session) if session.was_changed())
    }

    /// Makes an authorizer or another change of the whole connection noticed, if it may have been reused.
    pub(crate) fn probe(&mut self) -> rusqlite::Result<()> {
        match self {
            Lent::Session(session) => session.probe(),
            Lent::ToFile(_) => Ok(()),
        }
    }
}

impl Lease {
    pub(crate) fn new(engine: Engine, lent: Lent) -> Lease {
        Lease { lent: Some(lent), engine }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
}

const HAS_CONNECTION: &str = "a lease has its connection until it is dropped";

impl Deref for Lease {
    type Target = Lent;

    fn deref(&self) -> &Lent {
        self.lent.as_ref().expect(HAS_CONNECTION)
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Lent {
        self.lent.as_mut().expect(HAS_CONNECTION)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(lent) = self.lent.take() else { return };
        // Either rolls back an open transaction.
        let give_back = || match lent {
            Lent::Session(session) => self.engine.recycle(session),
            Lent::ToFile(connection) => drop(connection),
        };
        if self.engine.ends_with_this_handle() { trace::at_the_end_of_an_engine(give_back) } else { give_back() }
    }
}
