//! An engine that waits for the next test while other code keeps connections to it.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::warm_pool::WarmPool;
use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::content::store::{Claim, Token};
use crate::vfs::{AtRest, Session};

/// The state to which an engine returns, with the connections that other code keeps.
pub(crate) struct Standby {
    content: Snapshot,
    /// How the connections were set up. Those that are opened later must be set up like one of them.
    at_rest: AtRest,
    /// The number of handles on the engine, of which the other code may keep some.
    handles: usize,
    format_changes: usize,
    lock_timeout: Duration,
    /// The content while it waits. It is no longer the same if something was written meanwhile.
    waiting: Option<Snapshot>,
}

impl Standby {
    /// Makes the engine's current state the one to return to. `None` if a connection is in a transaction, or can't be
    /// observed.
    pub(crate) fn of(engine: &Engine) -> Option<Standby> {
        let observation = engine.mount().observation()?;
        observation.approve();
        Some(Standby {
            content: engine.snapshot(),
            at_rest: observation.at_rest()?,
            handles: engine.handles(),
            format_changes: engine.mount().store.format_changes(),
            lock_timeout: engine.mount().store.lock_timeout(),
            waiting: None,
        })
    }

    /// Returns the engine to this state, without waiting. Returns `false` if that can't be done, or if a connection may
    /// behave in another way than a new one.
    pub(crate) fn restore(&mut self, engine: &Engine) -> bool {
        if engine.is_retired() || engine.handles() != self.handles {
            return false;
        }
        engine.close_changed_sessions();
        let store = &engine.mount().store;
        let claim = Claim { token: Token::new(), purpose: Purpose::Uri, read: None, reserve: None };
        if store.try_acquire(&claim).is_err() {
            return false;
        }
        // From here on, no connection can begin to write.
        let is_restored = self.fits(engine) && store.restore(&self.content);
        if is_restored {
            store.set_lock_timeout(self.lock_timeout);
            self.waiting = Some(engine.snapshot());
        }
        store.release(claim.token);
        is_restored && store.format_changes() == self.format_changes
    }

    /// Returns whether the engine is still in the state that `restore` has left.
    pub(crate) fn holds(&self, engine: &Engine) -> bool {
        let is_same = |waiting: &Snapshot| waiting.ptr_eq(&engine.snapshot());
        engine.handles() == self.handles && self.waiting.as_ref().is_some_and(is_same) && self.fits(engine)
    }

    fn fits(&self, engine: &Engine) -> bool {
        let Some(now) = engine.mount().observation().and_then(|observation| observation.at_rest()) else { return false };
        // Idle sessions are clean. Others are lent out.
        now.sessions == engine.idle_sessions() && now.setups.is_subset(&self.at_rest.setups)
    }
}

impl Engine {
    /// Creates an engine with the template's content, whose connections are observed.
    pub(crate) fn observed_of(template: &Arc<WarmPool>) -> Engine {
        let engine = Engine::numbered_of(template);
        engine.mount().observe();
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
