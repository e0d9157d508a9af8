//! An engine that waits for the next test while other code keeps connections to it.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::warm_pool::WarmPool;
use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::content::store::{Claim, Token};
use crate::vfs::{self, AtRest, Session};

/// The state to which an engine returns, with the connections that other code keeps.
pub(crate) struct Standby {
    content: Snapshot,
    /// How the connections were set up. Those that are opened later must be set up like one of them. If they were in
    /// use, the engine never waits.
    at_rest: Result<AtRest, Reason>,
    /// The number of handles on the engine, of which the other code may keep some.
    handles: usize,
    format_changes: usize,
    lock_timeout: Duration,
    /// The content while it waits. It is no longer the same if something was written meanwhile.
    waiting: Option<Snapshot>,
}

/// Why an engine can't wait for the next test.
pub(crate) type Reason = &'static str;

impl Standby {
    /// Makes the engine's current state the one to return to.
    pub(crate) fn of(engine: &Engine) -> Standby {
        let content = engine.snapshot();
        let observation = vfs::observe(engine.mount());
        observation.approve(&content);
        Standby {
            content,
            at_rest: observation.at_rest(),
            handles: engine.handles(),
            format_changes: engine.mount().store.format_changes(),
            lock_timeout: engine.mount().store.lock_timeout(),
            waiting: None,
        }
    }

    /// Returns the engine to this state, without waiting. Fails if that can't be done, or if a connection may behave in
    /// another way than a new one.
    pub(crate) fn restore(&mut self, engine: &Engine) -> Result<(), Reason> {
        if engine.is_retired() {
            return Err("the engine was retired");
        }
        engine.close_changed_sessions();
        let store = &engine.mount().store;
        let claim = Claim { token: Token::new(), purpose: Purpose::Uri, read: None, reserve: None };
        if !store.try_acquire_unused(&claim) {
            return Err("a connection holds the writer slot, or waits for it");
        }
        // From here on, no connection can begin to write.
        let restored = self.check(engine).and_then(|()| self.restore_content(engine));
        store.release(claim.token);
        restored
    }

    fn restore_content(&mut self, engine: &Engine) -> Result<(), Reason> {
        let store = &engine.mount().store;
        if !store.restore(&self.content) || store.format_changes() != self.format_changes {
            return Err("the content had another text encoding, page size or vacuum mode, or was empty");
        }
        store.set_lock_timeout(self.lock_timeout);
        self.waiting = Some(engine.snapshot());
        Ok(())
    }

    /// Checks that the engine is still in the state that `restore` has left.
    pub(crate) fn check_waiting(&self, engine: &Engine) -> Result<(), Reason> {
        let is_same = |waiting: &Snapshot| waiting.ptr_eq(&engine.snapshot());
        if !self.waiting.as_ref().is_some_and(is_same) {
            return Err("it was written to after the test");
        }
        self.check(engine)
    }

    fn check(&self, engine: &Engine) -> Result<(), Reason> {
        let initial = self.at_rest.as_ref().map_err(|reason| *reason)?;
        let now = vfs::observe(engine.mount()).at_rest()?;
        // Idle sessions are clean. Others are lent out.
        if engine.handles() != self.handles || now.sessions != engine.idle_sessions() {
            return Err("a unit of work, a connection or a clone of the engine is still there");
        }
        if !now.setups.is_subset(&initial.setups) {
            return Err("a connection has other pragmas than those that there were when the value was made");
        }
        Ok(())
    }
}

impl Engine {
    /// Creates an engine with the template's content, whose connections are observed.
    pub(crate) fn observed_of(template: &Arc<WarmPool>) -> Engine {
        let engine = Engine::numbered_of(template);
        vfs::observe(engine.mount());
        engine
    }

    fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    fn is_retired(&self) -> bool {
        self.0.idle.is_closed()
    }

    fn idle_sessions(&self) -> usize {
        self.0.idle.len()
    }

    /// Closes the idle connections that differ from those of a new engine.
    fn close_changed_sessions(&self) {
        let sessions = self.0.idle.take();
        sessions.into_iter().filter(Session::knows_baseline).for_each(|session| self.0.idle.push(session));
    }
}
