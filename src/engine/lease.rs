//! A connection that an engine lends out, and that returns to the engine when it is dropped.

use std::ops::{Deref, DerefMut};

use super::Engine;
use crate::vfs::Session;

pub(crate) struct Lease {
    /// `None` only within `drop`.
    session: Option<Session>,
    /// Declared after the session, which returns to it.
    engine: Engine,
}

impl Lease {
    pub(crate) fn new(engine: Engine, session: Session) -> Lease {
        Lease { session: Some(session), engine }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
}

const HAS_SESSION: &str = "a lease has its session until it is dropped";

impl Deref for Lease {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session.as_ref().expect(HAS_SESSION)
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Session {
        self.session.as_mut().expect(HAS_SESSION)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.engine.recycle(session); // rolls back an open transaction
        }
    }
}
