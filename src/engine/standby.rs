//! An engine that waits for the next test while other code keeps connections to it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::Engine;
use super::warm_pool::WarmPool;
use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::content::store::{Claim, Token};
use crate::vfs::{self, Clock, Obstacle, Session, Time};

/// The state to which an engine returns, with the connections that other code keeps.
pub(crate) struct Standby {
    content: Snapshot,
    /// Why the engine can't be reused: what the connections did when the value was made.
    obstacle: Option<Obstacle>,
    /// The number of handles on the engine, of which the other code may keep some.
    handles: usize,
    format_changes: usize,
    lock_timeout: Duration,
    time: Option<Time>,
    random: Option<Rng>,
    /// The content when the test ended.
    left: Option<Snapshot>,
}

/// How long the next test waits for connections that are still in use. Pools end transactions and close connections on
/// threads of their own, which takes some 50 µs.
const PATIENCE: Duration = Duration::from_millis(1);

impl Standby {
    /// Makes the engine's current state the one to return to.
    pub(crate) fn of(engine: &Engine) -> Standby {
        let content = engine.snapshot();
        let observation = vfs::observe(engine.mount());
        observation.approve(&content);
        Standby {
            content,
            obstacle: observation.sessions_at_rest().err(),
            handles: engine.handles(),
            format_changes: engine.mount().store.format_changes(),
            lock_timeout: engine.mount().store.lock_timeout(),
            time: engine.mount().clock.as_ref().and_then(Clock::time),
            random: engine.mount().random.as_ref().map(|random| random.state()),
            left: None,
        }
    }

    /// Called when the test ends. What is written from now on is an error of the test.
    pub(crate) fn begin(&mut self, engine: &Engine) {
        self.left = Some(engine.snapshot());
    }

    /// Returns the engine to this state, for the next test. Fails with the reason if that can't be done soon, or if a
    /// connection may behave in another way than a new one.
    pub(crate) fn end(&mut self, engine: &Engine) -> Result<(), &'static str> {
        until_passed(PATIENCE, || self.restore(engine)).map_err(|obstacle| obstacle.reason)
    }

    fn restore(&self, engine: &Engine) -> Result<(), Obstacle> {
        let store = &engine.mount().store;
        let claim = Claim { token: Token::new(), purpose: Purpose::Uri, read: None, reserve: None };
        if !store.try_acquire_unused(&claim) {
            return Err(Obstacle::passing("a connection holds the writer slot, or waits for it"));
        }
        // From here on, no connection can begin to write.
        let restored = self.check(engine).and_then(|()| self.restore_content(engine));
        store.release(claim.token);
        restored
    }

    fn check(&self, engine: &Engine) -> Result<(), Obstacle> {
        if engine.is_retired() {
            return Err(Obstacle::lasting("the engine was retired"));
        }
        if !self.left.as_ref().is_some_and(|left| left.ptr_eq(&engine.snapshot())) {
            return Err(Obstacle::lasting("it was written to after the test"));
        }
        if let Some(obstacle) = self.obstacle {
            return Err(obstacle);
        }
        engine.close_changed_sessions();
        let sessions = vfs::observe(engine.mount()).sessions_at_rest()?;
        // Idle sessions are clean. Others are lent out.
        if engine.handles() != self.handles || sessions != engine.idle_sessions() {
            return Err(Obstacle::passing("a unit of work, a connection or a clone of the engine is still there"));
        }
        Ok(())
    }

    fn restore_content(&self, engine: &Engine) -> Result<(), Obstacle> {
        let store = &engine.mount().store;
        if !store.restore(&self.content) || store.format_changes() != self.format_changes {
            let reason = "the content had another text encoding, page size or vacuum mode, or was empty";
            return Err(Obstacle::lasting(reason));
        }
        store.set_lock_timeout(self.lock_timeout);
        engine.mount().clock.iter().for_each(|clock| clock.set(self.time));
        let random = engine.mount().random.iter().zip(&self.random);
        random.for_each(|(random, state)| random.set_state(state.clone()));
        Ok(())
    }
}

/// Repeats an attempt for this time, as long as its obstacle may pass.
fn until_passed(patience: Duration, mut attempt: impl FnMut() -> Result<(), Obstacle>) -> Result<(), Obstacle> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(Obstacle { may_pass: true, .. }) if start.elapsed() < patience => thread::yield_now(),
            result => return result,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_obstacle_that_may_pass_is_waited_for() {
        const LONG: Duration = Duration::from_secs(60);
        let (passing, lasting) = (Obstacle::passing("it may pass"), Obstacle::lasting("it remains"));
        let mut results = vec![Ok(()), Err(passing), Err(passing)];
        assert_eq!(until_passed(LONG, || results.pop().unwrap()), Ok(()));
        assert!(results.is_empty());
        let mut results = vec![Ok(()), Err(lasting), Err(passing)];
        assert_eq!(until_passed(LONG, || results.pop().unwrap()), Err(lasting));
        assert_eq!(results, [Ok(())]);
        let (start, mut attempts) = (Instant::now(), 0);
        let count = || {
            attempts += 1;
            Err(passing)
        };
        assert_eq!(until_passed(Duration::from_millis(5), count), Err(passing));
        assert!(attempts > 1 && start.elapsed() >= Duration::from_millis(5));
    }
}
