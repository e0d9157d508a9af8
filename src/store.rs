//! The content of one engine and who may change it. Knows no SQLite connection, so it is tested alone.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::origin::{Origin, Purpose, Refusal};
use crate::pages::Pages;
use crate::snapshot::{Snapshot, Stamp};

/// Stands for one connection among those that ask for the writer slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(u64);

impl Token {
    pub(crate) fn new() -> Token {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Token(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// One engine's content: read by any number of connections without a lock, written by one at a time.
pub(crate) struct Store {
    state: Mutex<State>,
}

struct State {
    /// What is committed now.
    current: Snapshot,
    /// What a reset goes back to.
    baseline: Snapshot,
    /// Invariant: no image that `current` has ever been had a farther number (rule 1: none may repeat with other
    /// content, since that is all by which a connection tells that the pages it keeps are out of date).
    highest: Stamp,
    writer: Option<Writer>,
    /// Those who wait for the writer slot, in order of arrival. Invariant: while the slot is free, the first of them is
    /// on its way ([`Stage::Called`]).
    queue: VecDeque<Waiter>,
    lock_timeout: Duration,
    /// Who replaced `current` last.
    replaced_by: Origin,
}

struct Writer {
    token: Token,
    origin: Origin,
}

struct Waiter {
    token: Token,
    origin: Origin,
    /// What the waiter has read and would build on. When that is replaced, waiting on is in vain.
    read: Option<Snapshot>,
    woken: Arc<Condvar>,
    stage: Stage,
}

/// To wake a thread takes far longer than most units of work do. So while the first waiter is on its way, the slot is
/// anybody's who is running; once it is there, the slot is handed to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asleep,
    Called,
    There,
}

/// How long a waiter may be passed over; then it is handed the slot wherever it is.
const MAX_PASSED_OVER: Duration = Duration::from_millis(20);

/// How often a waiter that has been called, and found the slot taken, looks again before it goes back to sleep. Together
/// that is some 10 µs, in which most units of work end.
const LOOKS: u32 = 32;

impl Store {
    pub(crate) fn new(snapshot: Snapshot) -> Store {
        Store {
            state: Mutex::new(State {
                highest: snapshot.stamp(),
                baseline: snapshot.clone(),
                current: snapshot,
                writer: None,
                queue: VecDeque::new(),
                lock_timeout: Duration::from_secs(5),
                replaced_by: Origin::here(Purpose::Uri),
            }),
        }
    }

    /// What is committed now.
    pub(crate) fn current(&self) -> Snapshot {
        self.lock().current.clone()
    }

    /// What the engine was created with, and goes back to.
    pub(crate) fn baseline(&self) -> Snapshot {
        self.lock().baseline.clone()
    }

    pub(crate) fn lock_timeout(&self) -> Duration {
        self.lock().lock_timeout
    }

    pub(crate) fn set_lock_timeout(&self, timeout: Duration) {
        self.lock().lock_timeout = timeout;
    }

    /// Takes the writer slot if it is free (or already handed to `token`), for a connection that builds on `read`.
    pub(crate) fn try_acquire(&self, token: Token, purpose: Purpose, read: &Snapshot) -> Result<(), Refusal> {
        self.lock().acquire(token, purpose, Some(read))
    }

    /// Takes the writer slot, waiting for it behind those who came before, for `patience` at most. A connection that
    /// builds on something that was `read` is refused as soon as that is replaced.
    pub(crate) fn acquire(
        &self,
        token: Token,
        purpose: Purpose,
        read: Option<&Snapshot>,
        patience: Duration,
    ) -> Result<(), Refusal> {
        let mut state = self.lock();
        match state.acquire(token, purpose, read) {
            Err(Refusal::Held { .. }) if !patience.is_zero() => {}
            done => return done,
        }
        let start = Instant::now();
        let woken = state.enqueue(token, purpose, read);
        let mut looks = 0;
        loop {
            state = if looks == 0 {
                let left = patience.saturating_sub(start.elapsed());
                woken.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            } else {
                drop(state);
                thread::yield_now();
                self.lock()
            };
            match state.acquire(token, purpose, read) {
                Err(Refusal::Held { .. }) if start.elapsed() < patience => {
                    looks = if state.arrive(token) { LOOKS } else { looks.saturating_sub(1) };
                }
                done => {
                    state.leave_queue(token);
                    return done.map_err(|refusal| refusal.since(start));
                }
            }
        }
    }

    /// Makes `pages` what is committed now. The caller holds the writer slot.
    pub(crate) fn publish(&self, pages: Pages) -> Snapshot {
        let mut state = self.lock();
        let new = state.current.committed(pages, state.highest);
        let old = state.replace(new.clone());
        drop(state);
        drop(old); // may free many pages, which no other thread should wait for
        new
    }

    /// Makes the content of `snapshot` what is committed now. The caller holds the writer slot.
    pub(crate) fn restore(&self, snapshot: &Snapshot) {
        let mut state = self.lock();
        if state.current.same_content(snapshot) {
            return;
        }
        let new = snapshot.restamped(&state.current, state.highest);
        if state.baseline.same_content(snapshot) {
            state.baseline = new.clone(); // so that the next reset finds nothing to do, unless something is written
        }
        let old = state.replace(new);
        drop(state);
        drop(old);
    }

    /// Gives the writer slot to whoever waited longest for it, if `token` holds it.
    pub(crate) fn release(&self, token: Token) {
        self.lock().release(token);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No method of `State` leaves it half changed when it panics, and a panic elsewhere must not spoil the engine
        // for the next test.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn acquire(&mut self, token: Token, purpose: Purpose, read: Option<&Snapshot>) -> Result<(), Refusal> {
        if read.is_some_and(|read| !read.is(&self.current)) {
            self.release(token);
            return Err(Refusal::Stale { by: self.replaced_by.clone() });
        }
        match &self.writer {
            Some(writer) if writer.token == token => Ok(()),
            Some(writer) => Err(Refusal::Held { by: writer.origin.clone(), waited: Duration::ZERO }),
            None => {
                self.writer = Some(Writer { token, origin: Origin::here(purpose) });
                Ok(())
            }
        }
    }

    fn enqueue(&mut self, token: Token, purpose: Purpose, read: Option<&Snapshot>) -> Arc<Condvar> {
        let woken = Arc::new(Condvar::new());
        let (read, origin) = (read.cloned(), Origin::here(purpose));
        self.queue.push_back(Waiter { token, origin, read, woken: woken.clone(), stage: Stage::Asleep });
        woken
    }

    /// Notes that the waiter who was called is there; says whether it was called.
    fn arrive(&mut self, token: Token) -> bool {
        let called = |first: &&mut Waiter| first.token == token && first.stage == Stage::Called;
        self.queue.front_mut().filter(called).map(|first| first.stage = Stage::There).is_some()
    }

    fn leave_queue(&mut self, token: Token) {
        self.queue.retain(|waiter| waiter.token != token);
        if self.writer.is_none() {
            self.offer();
        }
    }

    fn replace(&mut self, new: Snapshot) -> Snapshot {
        self.highest = self.highest.max(new.stamp());
        if let Some(writer) = &self.writer {
            self.replaced_by = writer.origin.clone();
        }
        for waiter in self.queue.iter().filter(|waiter| waiter.read.is_some()) {
            waiter.woken.notify_one();
        }
        std::mem::replace(&mut self.current, new)
    }

    fn release(&mut self, token: Token) {
        if self.writer.as_ref().is_some_and(|writer| writer.token == token) {
            self.writer = None;
            self.offer();
        }
    }

    /// Hands the free slot to the first waiter if it is there, and calls it if it sleeps.
    fn offer(&mut self) {
        match self.queue.front_mut() {
            Some(first) if first.stage == Stage::There || first.origin.age() >= MAX_PASSED_OVER => {
                first.woken.notify_one(); // it may have gone back to sleep
                let first = self.queue.pop_front();
                self.writer = first.map(|first| Writer { token: first.token, origin: first.origin.from_now() });
            }
            Some(first) if first.stage == Stage::Asleep => {
                first.stage = Stage::Called;
                first.woken.notify_one();
            }
            _ => {}
        }
    }
}
