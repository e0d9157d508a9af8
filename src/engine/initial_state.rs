//! The state to which an engine returns after a test, while other code keeps connections to it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::warm_pool::WarmPool;
use super::{Database, Engine};
use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::content::store::{Claim, Token};
use crate::environment::Backend;
use crate::error::Result as Created;
use crate::failure;
use crate::vfs::{self, Mount, Name, Observation, Obstacle, Session, Time};

/// The state to which an engine returns after a test.
pub(crate) struct InitialState {
    content: Snapshot,
    /// Why the engine can't be reused: what the connections did when the value was made.
    obstacle: Option<Obstacle>,
    /// The number of handles to the engine, of which the other code may keep some.
    handles: usize,
    format_changes: usize,
    lock_timeout: Duration,
    time: Option<Time>,
    random: Option<Rng>,
    /// The content since the test ended. What is written after that is an error of the test.
    expected: Option<Snapshot>,
}

/// How long to wait for connections that are still in use. Pools end transactions and close connections on threads of
/// their own, which takes some 50 µs.
const MAX_WAIT: Duration = Duration::from_millis(1);

impl InitialState {
    /// Makes the engine's current state the one to return to. `None` if the engine is in a file, because then nothing
    /// observes what is done to connections.
    pub(crate) fn of(engine: &Engine) -> Option<InitialState> {
        matches!(engine.database(), Database::InMemory(_)).then(|| InitialState::of_observed(engine))
    }

    fn of_observed(engine: &Engine) -> InitialState {
        let observation = engine.observation();
        let mut content = engine.snapshot();
        let approve = || {
            content = engine.snapshot();
            observation.approve(&content);
            observation.check()
        };
        let obstacle = until_ended(MAX_WAIT, approve).err();
        InitialState {
            content,
            obstacle: obstacle.map(Obstacle::of_making),
            handles: engine.handles(),
            format_changes: engine.mount().store.format_changes(),
            lock_timeout: engine.mount().store.lock_timeout(),
            time: engine.mount().clock.as_ref().and_then(|clock| clock.time()),
            random: engine.mount().random.as_ref().map(|random| random.state()),
            expected: None,
        }
    }

    /// Returns the engine to this state when the test ends, without waiting. Fails if that is impossible. If connections
    /// are still in use, it is left to `restore`.
    pub(crate) fn end_test(&mut self, engine: &Engine) -> Result<(), Obstacle> {
        self.expected = Some(engine.snapshot());
        match self.try_restore(engine) {
            Err(obstacle) if obstacle.is_transient => Ok(()),
            restored => restored,
        }
    }

    /// Returns the engine to this state for the next test, which this thread runs. Fails if that can't be done soon, or if a
    /// connection may behave in another way than a new one.
    pub(crate) fn restore(&mut self, engine: &Engine) -> Result<(), Obstacle> {
        failure::prepare();
        until_ended(MAX_WAIT, || self.try_restore(engine))
    }

    fn try_restore(&mut self, engine: &Engine) -> Result<(), Obstacle> {
        let store = &engine.mount().store;
        let claim = Claim { token: Token::new(), purpose: Purpose::Kept, read: None, reserve: None };
        if !store.try_acquire_unused(&claim) {
            return Err(Obstacle::transient("a connection holds the writer slot, or waits for it"));
        }
        // From here on, no connection can begin to write.
        let restored = self.check(engine).and_then(|()| self.restore_content(engine));
        if restored.is_ok() {
            self.expected = Some(store.current());
        }
        store.release(claim.token);
        restored
    }

    fn check(&self, engine: &Engine) -> Result<(), Obstacle> {
        if engine.is_retired() {
            return Err(Obstacle::permanent("the engine was retired"));
        }
        if !self.expected.as_ref().is_some_and(|expected| expected.ptr_eq(&engine.snapshot())) {
            return Err(Obstacle::permanent("the engine was written to after the test"));
        }
        if let Some(obstacle) = self.obstacle {
            return Err(obstacle);
        }
        engine.close_changed_sessions();
        let observation = engine.observation();
        observation.check()?;
        // Idle sessions are clean. Others are lent out.
        if engine.handles() != self.handles || observation.sessions() != engine.idle_sessions() {
            let reason = "a unit of work, a pooled connection or a clone of the engine still exists";
            return Err(Obstacle::transient(reason));
        }
        Ok(())
    }

    fn restore_content(&self, engine: &Engine) -> Result<(), Obstacle> {
        let store = &engine.mount().store;
        if !store.restore(&self.content) || store.format_changes() != self.format_changes {
            let reason = "the content had another text encoding, page size or vacuum mode, or was empty";
            return Err(Obstacle::permanent(reason));
        }
        store.set_lock_timeout(self.lock_timeout);
        engine.mount().clock.iter().for_each(|clock| clock.set(self.time));
        let random = engine.mount().random.iter().zip(&self.random);
        random.for_each(|(random, state)| random.set_state(state.clone()));
        Ok(())
    }
}

/// Repeats an attempt for this time, as long as its obstacle is transient.
fn until_ended<T>(max_wait: Duration, mut attempt: impl FnMut() -> Result<T, Obstacle>) -> Result<T, Obstacle> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(Obstacle { is_transient: true, .. }) if start.elapsed() < max_wait => thread::yield_now(),
            result => return result,
        }
    }
}

impl Engine {
    /// Creates an engine with the template's content, whose connections are observed. It is not returned to the warm
    /// pool.
    pub(crate) fn observed_of(template: &Arc<WarmPool>) -> Created<Engine> {
        let backend = Backend::of_engines();
        let name = Name::OfTemplate(template.name().into());
        let engine = Engine::cold(template.content().clone(), name, Some(template.clone()), backend)?;
        if backend == Backend::Memory {
            vfs::begin_observation(engine.mount());
        }
        Ok(engine)
    }

    fn mount(&self) -> &Arc<Mount> {
        match self.database() {
            Database::InMemory(mount) => mount,
            Database::OnFile(_) => unreachable!("only an engine in memory is observed"),
        }
    }

    fn observation(&self) -> &Observation {
        self.mount().observation().expect("it is observed since its creation")
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
    fn a_transient_obstacle_is_waited_for() {
        const LONG: Duration = Duration::from_secs(60);
        let (transient, permanent) = (Obstacle::transient("it may end"), Obstacle::permanent("it remains"));
        let mut results = vec![Ok(()), Err(transient), Err(transient)];
        assert_eq!(until_ended(LONG, || results.pop().unwrap()), Ok(()));
        assert!(results.is_empty());
        let mut results = vec![Ok(()), Err(permanent), Err(transient)];
        assert_eq!(until_ended(LONG, || results.pop().unwrap()), Err(permanent));
        assert_eq!(results, [Ok(())]);
        let start = Instant::now();
        assert_eq!(until_ended(Duration::from_millis(5), || Err::<(), _>(transient)), Err(transient));
        assert!(start.elapsed() >= Duration::from_millis(5));
    }
}
