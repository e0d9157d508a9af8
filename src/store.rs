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
    /// Until when the slot is only reserved; then it is anybody's.
    reserved: Option<Instant>,
}

impl Writer {
    fn holds(&self) -> bool {
        self.reserved.is_none_or(|end| Instant::now() < end)
    }
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

/// How long a reservation holds. A connection that wants the slot asks for it some µs after.
const RESERVATION: Duration = Duration::from_millis(1);

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
                let left = patience.saturating_sub(start.elapsed()).min(state.reserved_for());
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

    /// Waits for the writer slot as `acquire` does, but only to reserve it for a moment.
    pub(crate) fn reserve(&self, token: Token, purpose: Purpose, patience: Duration) {
        if self.acquire(token, purpose, None, patience).is_ok() {
            self.lock().reserve(token);
        }
    }

    /// Makes `pages` what is committed now. The caller holds the writer slot, and saw `schema_cookie` before it changed
    /// anything.
    pub(crate) fn publish(&self, pages: Pages, schema_cookie: u32) -> Snapshot {
        let mut state = self.lock();
        let new = state.current.committed(pages, schema_cookie, state.highest);
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
        match &mut self.writer {
            Some(writer) if writer.token == token => writer.reserved = None,
            Some(writer) if writer.holds() => {
                return Err(Refusal::Held { by: writer.origin.clone(), waited: Duration::ZERO });
            }
            _ => self.writer = Some(Writer { token, origin: Origin::here(purpose), reserved: None }),
        }
        Ok(())
    }

    fn reserve(&mut self, token: Token) {
        if let Some(writer) = self.writer.as_mut().filter(|writer| writer.token == token) {
            writer.reserved = Some(Instant::now() + RESERVATION);
        }
    }

    /// How long the slot is still reserved at most, when it is no more than that.
    fn reserved_for(&self) -> Duration {
        let end = self.writer.as_ref().and_then(|writer| writer.reserved);
        end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()))
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
        if new.size() > 0 {
            self.highest = self.highest.max(new.stamp());
        }
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
                self.writer = first.map(|first| {
                    let origin = first.origin.restarted();
                    Writer { token: first.token, origin, reserved: None }
                });
            }
            Some(first) if first.stage == Stage::Asleep => {
                first.stage = Stage::Called;
                first.woken.notify_one();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::Location;
    use std::sync::mpsc;

    use super::*;

    const FOR_EVER: Duration = Duration::from_secs(60);

    fn purpose() -> Purpose {
        Purpose::UnitOfWork(Location::caller())
    }

    fn store() -> Store {
        Store::new(Snapshot::empty())
    }

    fn commit(store: &Store, content: &[u8]) {
        let token = Token::new();
        store.acquire(token, purpose(), None, FOR_EVER).unwrap();
        let mut pages = store.current().pages().clone();
        pages.resize(0);
        pages.write(0, content);
        store.publish(pages, 0);
        store.release(token);
    }

    /// Waits until so many are in the queue. (What no test from outside could see.)
    fn until_queued(store: &Store, count: usize) {
        while store.lock().queue.len() < count {
            thread::yield_now();
        }
    }

    #[test]
    fn the_slot_is_for_one_at_a_time() {
        let (store, one, other) = (store(), Token::new(), Token::new());
        let now = store.current();
        store.try_acquire(one, purpose(), &now).unwrap();
        store.try_acquire(one, purpose(), &now).expect("who has it may ask again");
        assert!(matches!(store.try_acquire(other, purpose(), &now), Err(Refusal::Held { .. })));
        store.release(other);
        assert!(store.try_acquire(other, purpose(), &now).is_err(), "only the holder can give it up");
        store.release(one);
        store.try_acquire(other, purpose(), &now).unwrap();
    }

    #[test]
    fn who_has_read_something_older_is_refused() {
        let (store, token) = (store(), Token::new());
        let old = store.current();
        commit(&store, &[1; 200]);
        assert!(matches!(store.try_acquire(token, purpose(), &old), Err(Refusal::Stale { .. })));
        store.try_acquire(token, purpose(), &store.current()).unwrap();
    }

    #[test]
    fn waiters_come_in_order_of_arrival() {
        let (store, holder, (order, arrivals)) = (store(), Token::new(), mpsc::channel());
        store.acquire(holder, purpose(), None, FOR_EVER).unwrap();
        thread::scope(|scope| {
            for number in 0..6 {
                let (store, order) = (&store, order.clone());
                scope.spawn(move || {
                    let token = Token::new();
                    store.acquire(token, purpose(), None, FOR_EVER).unwrap();
                    order.send(number).unwrap();
                    store.release(token);
                });
                until_queued(store, number + 1);
            }
            store.release(holder);
        });
        drop(order);
        assert_eq!(arrivals.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_waiter_that_was_passed_over_for_long_is_handed_the_slot() {
        let (store, holder, waiter) = (store(), Token::new(), Token::new());
        store.acquire(holder, purpose(), None, FOR_EVER).unwrap();
        {
            let mut state = store.lock();
            state.enqueue(waiter, purpose(), None);
            thread::sleep(MAX_PASSED_OVER);
            state.release(holder);
        }
        assert!(matches!(store.try_acquire(holder, purpose(), &store.current()), Err(Refusal::Held { .. })));
        store.try_acquire(waiter, purpose(), &store.current()).expect("it has the slot without having woken up");
    }

    #[test]
    fn a_waiter_on_its_way_may_be_passed_over_but_once_it_is_there_it_is_next() {
        let (store, holder, waiter) = (store(), Token::new(), Token::new());
        let now = store.current();
        store.acquire(holder, purpose(), None, FOR_EVER).unwrap();
        store.lock().enqueue(waiter, purpose(), None);
        store.release(holder);
        assert!(store.lock().queue[0].stage == Stage::Called);
        store.try_acquire(holder, purpose(), &now).expect("the waiter has not come yet");
        assert!(store.lock().arrive(waiter));
        assert!(!store.lock().arrive(waiter), "it arrives once");
        store.release(holder);
        assert!(store.try_acquire(holder, purpose(), &now).is_err());
        store.try_acquire(waiter, purpose(), &now).unwrap();
        assert!(store.lock().queue.is_empty());
    }

    #[test]
    fn when_the_first_waiter_gives_up_the_next_is_called() {
        let (store, first, second) = (store(), Token::new(), Token::new());
        let mut state = store.lock();
        state.enqueue(first, purpose(), None);
        state.enqueue(second, purpose(), None);
        state.offer();
        assert!(state.queue[0].stage == Stage::Called);
        state.leave_queue(first);
        assert_eq!(state.queue.len(), 1);
        assert!(state.queue[0].stage == Stage::Called, "or the free slot would be nobody's");
    }

    #[test]
    fn a_waiter_who_builds_on_what_is_replaced_is_told_at_once() {
        let (store, holder) = (store(), Token::new());
        let old = store.current();
        store.acquire(holder, purpose(), None, FOR_EVER).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| store.acquire(Token::new(), purpose(), Some(&old), FOR_EVER));
            until_queued(&store, 1);
            store.publish(Pages::from_bytes(vec![1; 200]), 0);
            assert!(matches!(waiter.join().unwrap(), Err(Refusal::Stale { .. })), "while the slot is still held");
        });
        assert!(store.lock().queue.is_empty());
    }

    #[test]
    fn a_slot_that_was_handed_to_who_can_not_use_it_is_handed_on() {
        let (store, holder, stale) = (store(), Token::new(), Token::new());
        let old = store.current();
        store.acquire(holder, purpose(), None, FOR_EVER).unwrap();
        store.lock().enqueue(stale, purpose(), Some(&old));
        store.lock().queue[0].stage = Stage::There;
        store.publish(Pages::from_bytes(vec![1; 200]), 0);
        store.release(holder);
        assert!(matches!(store.try_acquire(stale, purpose(), &old), Err(Refusal::Stale { .. })));
        store.try_acquire(holder, purpose(), &store.current()).expect("the slot is free again");
    }

    #[test]
    fn a_reservation_holds_for_a_moment_only() {
        let (store, reader, writer) = (store(), Token::new(), Token::new());
        store.reserve(reader, purpose(), FOR_EVER);
        assert!(store.try_acquire(writer, purpose(), &store.current()).is_err());
        store.acquire(writer, purpose(), None, FOR_EVER).expect("nobody has to give it back");
        store.release(reader);
        assert!(store.try_acquire(reader, purpose(), &store.current()).is_err(), "it is the writer's now");
        store.release(writer);
        store.reserve(reader, purpose(), FOR_EVER);
        store.try_acquire(reader, purpose(), &store.current()).unwrap();
        thread::sleep(2 * RESERVATION);
        assert!(store.try_acquire(writer, purpose(), &store.current()).is_err(), "what was reserved was taken");
    }

    #[test]
    fn a_poisoned_lock_is_recovered_from() {
        let store = store();
        let poisoned = thread::scope(|scope| {
            let panic = || {
                let _state = store.state.lock();
                panic!("while the lock is held");
            };
            scope.spawn(panic).join().is_err()
        });
        assert!(poisoned && store.state.is_poisoned());
        commit(&store, &[1; 200]);
        assert_eq!(store.current().size(), 200);
    }

    #[test]
    fn restoring_what_is_there_changes_nothing() {
        let store = store();
        commit(&store, &[1; 200]);
        let before = store.current();
        store.restore(&before);
        assert!(store.current().is(&before));
    }
}
