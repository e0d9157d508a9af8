//! The committed state of one engine, and its replacement.
//!
//! Any number of connections read it, and hold no lock while they read. One connection at a time, the holder of the
//! writer slot, replaces it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::origin::{Origin, Purpose};
use super::pages::Pages;
use super::queue::Place;
use super::refusal::Refusal;
use super::slot::Slot;
pub(crate) use super::slot::{Claim, Token};
use super::snapshot::{JournalMode, Snapshot, Stamp};
use crate::sync::{Mutex, MutexGuard, Patience, Recovered, thread};
use crate::{environment, marks};

/// The content of one engine. Any number of connections read it without a lock; one at a time writes it.
pub(crate) struct Store {
    state: Mutex<State>,
    /// The number of changes that only new connections can follow. A connection that has read the content before can't.
    format_changes: AtomicUsize,
    /// The number of the engine that uses the store now, reported with its marks. 0 while no engine uses it.
    number: AtomicU64,
}

struct State {
    /// The committed content.
    current: Snapshot,
    /// The content that a reset restores.
    baseline: Snapshot,
    /// Invariant: no image that `current` has ever held had a number ahead of this (rule 1: no number may repeat with
    /// other content, because a connection detects stale pages by the numbers alone).
    highest: Stamp,
    /// SQLite's number of the text encoding. If the database has become empty, it is the number of the last encoding. A
    /// connection that has seen one encoding can't read another.
    encoding: Option<u32>,
    slot: Slot,
    lock_timeout: Duration,
    /// The connection that replaced `current` last.
    replaced_by: Origin,
}

/// Returns how long a writer waits for its turn by default: 5 s, or the time in `RUSQLITE_FIXTURES_LOCK_TIMEOUT`.
pub(crate) fn default_lock_timeout() -> Duration {
    static DEFAULT: OnceLock<Duration> = OnceLock::new();
    *DEFAULT.get_or_init(|| environment::duration("RUSQLITE_FIXTURES_LOCK_TIMEOUT", Duration::from_secs(5)))
}

/// How often a called waiter that has found the slot taken checks again before it goes back to sleep. Together, the
/// checks take about 10 µs, and most units of work end within that time.
const CHECKS: u32 = if cfg!(shuttle) { 1 } else { 32 };

impl Store {
    pub(crate) fn new(snapshot: Snapshot) -> Store {
        Store {
            state: Mutex::new(State {
                highest: snapshot.stamp(),
                encoding: snapshot.text_encoding(),
                baseline: snapshot.clone(),
                current: snapshot,
                slot: Slot::default(),
                lock_timeout: default_lock_timeout(),
                replaced_by: Origin::here(Purpose::Uri),
            }),
            format_changes: AtomicUsize::new(0),
            number: AtomicU64::new(0),
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    pub(crate) fn set_number(&self, number: u64) {
        self.number.store(number, Ordering::Relaxed);
    }

    /// Reports to a hammer that this thread has reached a mark of this engine.
    pub(crate) fn reached(&self, mark: &'static str) {
        marks::reached_on(|| self.number(), mark);
    }

    /// Reports to a hammer that this thread has taken the writer slot, unless the slot is only reserved.
    pub(crate) fn reached_taken(&self, claim: &Claim) {
        if claim.reserve.is_none() {
            self.reached(marks::SLOT_TAKEN);
        }
    }

    /// Returns the committed content.
    pub(crate) fn current(&self) -> Snapshot {
        self.lock().current.clone()
    }

    /// Returns the content that the engine was created with, and that a reset restores.
    pub(crate) fn baseline(&self) -> Snapshot {
        self.lock().baseline.clone()
    }

    pub(crate) fn journal_mode(&self) -> JournalMode {
        self.lock().current.journal_mode()
    }

    /// Sets the journal mode of the current and later content, until another snapshot is restored.
    pub(crate) fn set_journal_mode(&self, mode: JournalMode) {
        let mut state = self.lock();
        state.current = state.current.in_journal_mode(mode);
    }

    pub(crate) fn lock_timeout(&self) -> Duration {
        self.lock().lock_timeout
    }

    pub(crate) fn set_lock_timeout(&self, timeout: Duration) {
        self.lock().lock_timeout = timeout;
    }

    /// Returns who holds the writer slot, for messages.
    pub(crate) fn writer(&self) -> Option<String> {
        self.lock().slot.holder().map(ToString::to_string)
    }

    /// Takes the writer slot if it is free or the claimant has it already.
    pub(crate) fn try_acquire(&self, claim: &Claim) -> Result<(), Refusal> {
        self.reached(marks::SLOT_ASKED);
        let result = self.lock().acquire(claim, None);
        match &result {
            Ok(()) => self.reached_taken(claim),
            Err(Refusal::Held { .. }) => {} // the claimant may try again
            Err(_) => self.reached(marks::SLOT_REFUSED),
        }
        result
    }

    /// Takes the writer slot if no connection holds it or waits for it.
    pub(crate) fn try_acquire_unused(&self, claim: &Claim) -> bool {
        let mut state = self.lock();
        let is_taken = state.slot.is_unused() && state.acquire(claim, None).is_ok();
        drop(state);
        if is_taken {
            self.reached_taken(claim);
        }
        is_taken
    }

    /// Takes the writer slot. Waits for it at this place in the queue, for `patience` at most. A claim that builds on
    /// content it has read is refused as soon as that content is replaced. A refused claimant may return to the same
    /// place.
    pub(crate) fn acquire(&self, claim: &Claim, place: Place, patience: Duration) -> Result<(), Refusal> {
        let patience = Patience::of(patience);
        let mut state = self.lock();
        let mut result = state.acquire(claim, None);
        if !matches!(result, Err(Refusal::Held { .. })) {
            return result;
        }
        let woken = state.slot.enqueue(claim, place);
        let mut checks = 0..0;
        while matches!(result, Err(Refusal::Held { .. })) && patience.lasts() {
            checks = if state.slot.queue.mark_awake(place) { 0..CHECKS } else { checks };
            state = match checks.next() {
                Some(_) => self.yield_lock(state),
                None => {
                    let time = patience.left().min(state.slot.queue.longest_sleep(place));
                    woken.wait_timeout(state, time).recovered().0
                }
            };
            result = state.acquire(claim, Some(place));
        }
        state.slot.leave_queue(place);
        result.map_err(|refusal| refusal.after(place.age()))
    }

    /// Wakes the waiters whose sleep has a time limit, as a clock would. A model has no clock.
    #[cfg(all(test, shuttle))]
    pub(crate) fn pass_time(&self) {
        self.lock().slot.queue.pass_time();
    }

    /// Returns the number of waiters in the queue.
    #[cfg(all(test, shuttle))]
    pub(crate) fn queued(&self) -> usize {
        self.lock().slot.queue.len()
    }

    fn yield_lock<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        drop(state);
        thread::yield_now();
        self.lock()
    }

    /// Commits `pages`. The caller holds the writer slot, and saw `schema_cookie` before its changes.
    pub(crate) fn publish(&self, pages: Pages, schema_cookie: u32) -> Snapshot {
        let mut state = self.lock();
        let new = state.current.committed(pages, schema_cookie, state.highest);
        self.count_format_change(&state, &new);
        let old = state.replace(new.clone());
        drop(state);
        drop(old); // may free many pages; no other thread should wait for that
        self.reached(marks::COMMITTED);
        new
    }

    /// Commits the content of `snapshot`. The caller holds the writer slot. Returns `false`, and changes nothing, if
    /// the text encoding differs from the one that connections have seen here.
    pub(crate) fn restore(&self, snapshot: &Snapshot) -> bool {
        let mut state = self.lock();
        if state.current.same_content(snapshot) {
            state.current = state.current.in_journal_mode(snapshot.journal_mode());
            return true;
        }
        if state.encoding.zip(snapshot.text_encoding()).is_some_and(|(seen, new)| seen != new) {
            return false;
        }
        let new = snapshot.restamped(&state.current, state.highest);
        if state.baseline.same_content(snapshot) {
            let mode = state.baseline.journal_mode();
            state.baseline = new.in_journal_mode(mode); // so the next reset has nothing to do, unless content is written
        }
        self.count_format_change(&state, &new);
        let old = state.replace(new);
        drop(state);
        drop(old);
        true
    }

    /// Returns how often the content has changed to another format, or has become empty. A connection keeps the page
    /// size and the vacuum mode that it has read, at least until it reads again. It keeps the text encoding forever.
    /// Empty content is UTF-8, as a new connection is.
    pub(crate) fn format_changes(&self) -> usize {
        self.format_changes.load(Ordering::Acquire)
    }

    fn count_format_change(&self, state: &State, new: &Snapshot) {
        let is_changed = match (state.current.format(), new.format()) {
            (None, new) => new.is_some_and(|new| !new.is_utf_8()),
            (old, new) => old != new,
        };
        if is_changed {
            self.format_changes.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Restores the content and the settings that the engine was created with, for the next engine. The caller has
    /// ended all use of the store. Returns `false` if a claim on the slot is left over, or if connections have seen
    /// texts in an encoding that later content may not have.
    pub(crate) fn renew(&self) -> bool {
        let baseline = self.baseline();
        {
            let mut state = self.lock();
            if !state.slot.is_unused() || state.encoding != baseline.text_encoding() {
                return false;
            }
            state.lock_timeout = default_lock_timeout();
        }
        self.restore(&baseline)
    }

    /// Releases the writer slot if `token` holds it, and offers it to the waiter that has waited longest.
    pub(crate) fn release(&self, token: Token) {
        // Reported before the release; otherwise the marks would show two holders at once.
        if marks::is_observed() && self.lock().slot.is_held_by(token) {
            self.reached(marks::SLOT_GIVEN_BACK);
        }
        self.lock().slot.release(token);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No method of `State` leaves it half changed when it panics. A panic elsewhere must not make the engine
        // unusable for the next test.
        self.state.lock().recovered()
    }
}

impl State {
    /// Takes the slot for the claim, as `Slot::acquire` does. Releases a slot that a stale claim holds.
    fn acquire(&mut self, claim: &Claim, place: Option<Place>) -> Result<(), Refusal> {
        if claim.read.as_ref().is_some_and(|read| !read.ptr_eq(&self.current)) {
            self.slot.release(claim.token);
            return Err(Refusal::Stale { by: self.replaced_by.clone() });
        }
        self.slot.acquire(claim, place)
    }

    fn replace(&mut self, new: Snapshot) -> Snapshot {
        if new.size() > 0 {
            self.highest = self.highest.max(new.stamp());
            self.encoding = new.text_encoding().or(self.encoding);
        }
        if let Some(holder) = self.slot.holder() {
            self.replaced_by = holder.clone();
        }
        self.slot.queue.wake_readers();
        std::mem::replace(&mut self.current, new)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::panic::Location;
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;
    use crate::content::origin::{Origin, Purpose};
    use crate::content::queue::Stage;
    use crate::content::slot::MAX_PASSED_OVER;

    const LONG: Duration = Duration::from_secs(20);

    fn purpose() -> Purpose {
        Purpose::UnitOfWork(Location::caller())
    }

    fn claim(token: Token, read: Option<&Snapshot>) -> Claim {
        Claim { token, purpose: purpose(), read: read.cloned(), reserve: None }
    }

    fn reservation(token: Token, time: Duration) -> Claim {
        Claim { token, purpose: purpose(), read: None, reserve: Some(time) }
    }

    const RESERVATION: Duration = Duration::from_millis(2);

    fn store() -> Store {
        Store::new(Snapshot::empty())
    }

    fn commit(store: &Store, content: &[u8]) {
        let token = Token::new();
        acquire(store, &claim(token, None)).unwrap();
        let mut pages = store.current().pages().clone();
        pages.resize(0);
        pages.write(0, content);
        store.publish(pages, 0);
        store.release(token);
    }

    fn acquire(store: &Store, claim: &Claim) -> Result<(), Refusal> {
        store.acquire(claim, Place::new(), LONG)
    }

    fn enqueue(state: &mut State, claim: &Claim) -> Place {
        let place = Place::new();
        state.slot.enqueue(claim, place);
        place
    }

    fn stage_of_first(state: &State) -> Stage {
        state.slot.queue.first().expect("a waiter is in the queue").stage
    }

    /// Waits until `count` waiters are in the queue. (Tests outside this module can't observe that.)
    fn until_queued(store: &Store, count: usize) {
        while store.lock().slot.queue.len() < count {
            thread::yield_now();
        }
    }

    #[test]
    fn each_change_of_format_is_counted_and_no_other_change() {
        let store = Store::new(Snapshot::empty());
        let expect = |content: &[u8], changes, why: &str| {
            commit(&store, content);
            assert_eq!(store.format_changes(), changes, "{why}");
        };
        expect(&[], 0, "it was empty before");
        let mut header = [0; 100];
        for (at, byte, changes, why) in [
            (16, 16, 0, "a new database of 4096 bytes a page, without an encoding"),
            (59, 1, 0, "UTF-8 is the default"),
            (16, 32, 1, "the page size"),
            (17, 1, 2, "its other byte"),
            (55, 3, 3, "automatic vacuum"),
            (55, 4, 3, "only the number of the largest root page"),
            (67, 1, 4, "incremental vacuum"),
            (59, 2, 5, "the encoding"),
        ] {
            header[at] = byte;
            expect(&header, changes, why);
        }
        expect(&[], 6, "it is empty");
        expect(&header, 7, "it is not in UTF-8");
    }

    /// Otherwise a timeline would show a release that never happened.
    #[test]
    fn a_release_without_the_slot_reaches_no_mark() {
        let marks = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let seen = marks.clone();
        let _observed = marks::observe(move |mark, _| seen.borrow_mut().push(mark));
        let store = Store::new(Snapshot::empty());
        store.release(Token::new());
        assert_eq!(*marks.borrow(), [""; 0]);
    }

    #[test]
    fn the_slot_has_one_holder_at_a_time() {
        let (store, one, other) = (store(), Token::new(), Token::new());
        let now = store.current();
        store.try_acquire(&claim(one, Some(&now))).unwrap();
        store.try_acquire(&claim(one, Some(&now))).expect("the holder may claim it again");
        assert!(matches!(store.try_acquire(&claim(other, Some(&now))), Err(Refusal::Held { .. })));
        store.release(other);
        assert!(store.try_acquire(&claim(other, Some(&now))).is_err(), "only the holder can release it");
        store.release(one);
        store.try_acquire(&claim(other, Some(&now))).unwrap();
    }

    #[test]
    fn a_slot_that_is_free_but_awaited_is_not_unused() {
        let (store, holder, waiter) = (store(), Token::new(), Token::new());
        assert!(store.try_acquire_unused(&claim(holder, None)));
        assert!(!store.try_acquire_unused(&claim(waiter, None)), "it is held");
        let place = enqueue(&mut store.lock(), &claim(waiter, None));
        store.release(holder);
        assert!(!store.try_acquire_unused(&claim(holder, None)), "the waiter was called");
        assert!(store.lock().slot.holder().is_none());
        store.lock().slot.leave_queue(place);
        assert!(store.try_acquire_unused(&claim(holder, None)));
    }

    #[test]
    fn a_claim_on_older_content_is_refused() {
        let (store, token) = (store(), Token::new());
        let old = store.current();
        commit(&store, &[1; 200]);
        assert!(matches!(store.try_acquire(&claim(token, Some(&old))), Err(Refusal::Stale { .. })));
        store.try_acquire(&claim(token, Some(&store.current()))).unwrap();
    }

    #[test]
    fn waiters_get_the_slot_in_order_of_arrival() {
        let (store, holder, (order, arrivals)) = (store(), Token::new(), mpsc::channel());
        acquire(&store, &claim(holder, None)).unwrap();
        thread::scope(|scope| {
            for number in 0..6 {
                let (store, order) = (&store, order.clone());
                scope.spawn(move || {
                    let token = Token::new();
                    acquire(store, &claim(token, None)).unwrap();
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
        acquire(&store, &claim(holder, None)).unwrap();
        {
            let mut state = store.lock();
            enqueue(&mut state, &claim(waiter, None));
            thread::sleep(MAX_PASSED_OVER);
            let handed_over = Instant::now();
            state.slot.release(holder);
            let age = state.slot.holder().map(Origin::age);
            assert!(
                age.is_some_and(|age| age <= handed_over.elapsed()),
                "the age counts from the hand-over, not from the start of the wait"
            );
        }
        assert!(matches!(store.try_acquire(&claim(holder, Some(&store.current()))), Err(Refusal::Held { .. })));
        store.try_acquire(&claim(waiter, Some(&store.current()))).expect("it has the slot before it wakes up");
    }

    #[test]
    fn a_called_waiter_may_be_passed_over_but_an_awake_one_is_next() {
        let (store, holder, waiter) = (store(), Token::new(), Token::new());
        let now = store.current();
        acquire(&store, &claim(holder, None)).unwrap();
        let place = enqueue(&mut store.lock(), &claim(waiter, None));
        store.release(holder);
        assert_eq!(stage_of_first(&store.lock()), Stage::Called);
        store.try_acquire(&claim(holder, Some(&now))).expect("the waiter is not awake yet");
        assert!(store.lock().slot.queue.mark_awake(place));
        store.release(holder);
        assert!(store.try_acquire(&claim(holder, Some(&now))).is_err());
        store.try_acquire(&claim(waiter, Some(&now))).unwrap();
        assert!(store.lock().slot.queue.is_empty());
    }

    /// A waiter may check the slot without being called, for an expired reservation.
    #[test]
    fn a_later_waiter_does_not_overtake_a_called_one() {
        let (store, holder, first, second) = (store(), Token::new(), Token::new(), Token::new());
        let mut state = store.lock();
        state.acquire(&claim(holder, None), None).unwrap();
        let places = [first, second].map(|token| enqueue(&mut state, &claim(token, None)));
        state.slot.release(holder);
        assert!(matches!(state.acquire(&claim(second, None), Some(places[1])), Err(Refusal::Held { .. })));
        state.acquire(&claim(first, None), Some(places[0])).unwrap();
    }

    /// The wait, including the time away, may exceed the time for which a waiter is passed over.
    #[test]
    fn a_waiter_that_returns_is_before_those_that_arrived_later() {
        let (store, holder, early, late) = (store(), Token::new(), Token::new(), Token::new());
        let mut state = store.lock();
        state.acquire(&claim(holder, None), None).unwrap();
        let [away, present] = [early, late].map(|token| enqueue(&mut state, &claim(token, None)));
        state.slot.leave_queue(away);
        state.slot.enqueue(&claim(early, None), away);
        state.slot.queue.first_mut().unwrap().stage = Stage::Awake;
        state.slot.release(holder);
        assert!(state.acquire(&claim(late, None), Some(present)).is_err());
        assert!(state.slot.is_held_by(early));
    }

    #[test]
    fn the_slot_is_not_kept_for_a_waiter_that_is_away() {
        let (store, holder, [early, late]) = (store(), Token::new(), [Token::new(), Token::new()]);
        let mut state = store.lock();
        state.acquire(&claim(holder, None), None).unwrap();
        let [away, present] = [early, late].map(|token| enqueue(&mut state, &claim(token, None)));
        state.slot.leave_queue(away);
        state.slot.release(holder);
        assert_eq!(stage_of_first(&state), Stage::Called);
        state.acquire(&claim(late, None), Some(present)).unwrap();
    }

    /// The last waiter checks for that, but is not the one that gets the slot.
    #[test]
    fn the_last_waiter_finds_an_expired_reservation_and_calls_the_first() {
        let (store, reader, first, last) = (store(), Token::new(), Token::new(), Token::new());
        let mut state = store.lock();
        state.acquire(&reservation(reader, LONG), None).unwrap();
        let places = [first, last].map(|token| enqueue(&mut state, &claim(token, None)));
        assert!(state.acquire(&claim(last, None), Some(places[1])).is_err());
        assert_eq!(stage_of_first(&state), Stage::Asleep, "while the slot is reserved");
        state.acquire(&reservation(reader, Duration::ZERO), None).unwrap(); // it expires now
        assert!(state.acquire(&claim(last, None), Some(places[1])).is_err());
        assert_eq!(stage_of_first(&state), Stage::Called);
        assert!(state.slot.holder().is_none());
    }

    #[test]
    fn when_the_first_waiter_gives_up_the_next_is_called() {
        let (store, first, second) = (store(), Token::new(), Token::new());
        let mut state = store.lock();
        let [first, _] = [first, second].map(|token| enqueue(&mut state, &claim(token, None)));
        state.slot.offer();
        assert_eq!(stage_of_first(&state), Stage::Called);
        state.slot.leave_queue(first);
        assert_eq!(state.slot.queue.len(), 1);
        assert_eq!(stage_of_first(&state), Stage::Called, "otherwise no waiter would take the free slot");
    }

    #[test]
    fn a_waiter_whose_content_is_replaced_is_refused_at_once() {
        let (store, holder) = (store(), Token::new());
        let old = store.current();
        acquire(&store, &claim(holder, None)).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| acquire(&store, &claim(Token::new(), Some(&old))));
            until_queued(&store, 1);
            store.publish(Pages::from_base(Arc::new(vec![1; 200]), 200), 0);
            assert!(matches!(waiter.join().unwrap(), Err(Refusal::Stale { .. })), "while the slot is still held");
        });
        assert!(store.lock().slot.queue.is_empty());
    }

    #[test]
    fn a_slot_that_was_handed_to_a_stale_waiter_is_released() {
        let (store, holder, stale) = (store(), Token::new(), Token::new());
        let old = store.current();
        acquire(&store, &claim(holder, None)).unwrap();
        enqueue(&mut store.lock(), &claim(stale, Some(&old)));
        store.lock().slot.queue.first_mut().unwrap().stage = Stage::Awake;
        store.publish(Pages::from_base(Arc::new(vec![1; 200]), 200), 0);
        store.release(holder);
        assert!(matches!(store.try_acquire(&claim(stale, Some(&old))), Err(Refusal::Stale { .. })));
        store.try_acquire(&claim(holder, Some(&store.current()))).expect("the slot is free again");
    }

    #[test]
    fn a_reservation_expires() {
        let (store, reader, writer) = (store(), Token::new(), Token::new());
        store.try_acquire(&reservation(reader, LONG)).unwrap();
        assert!(store.try_acquire(&claim(writer, None)).is_err(), "the reservation has not expired");
        acquire(&store, &reservation(reader, RESERVATION)).unwrap();
        acquire(&store, &claim(writer, None)).expect("an expired reservation needs no release");
        store.release(reader);
        assert!(store.try_acquire(&claim(reader, None)).is_err(), "the writer holds the slot now");
        store.release(writer);
        acquire(&store, &reservation(reader, RESERVATION)).unwrap();
        store.try_acquire(&claim(reader, None)).unwrap();
        thread::sleep(2 * RESERVATION);
        assert!(store.try_acquire(&claim(writer, None)).is_err(), "the reserved slot was claimed for good");
    }

    /// The mark for the release of the slot depends on this.
    #[test]
    fn a_reservation_does_not_hold_the_slot() {
        let (store, one, other) = (store(), Token::new(), Token::new());
        let mut state = store.lock();
        state.acquire(&reservation(one, LONG), None).unwrap();
        assert!(!state.slot.is_held_by(one), "it is only reserved");
        state.acquire(&claim(one, None), None).unwrap();
        assert_eq!((state.slot.is_held_by(one), state.slot.is_held_by(other)), (true, false));
    }

    /// No notification reports the expiry of a reservation that was made while the waiter slept.
    #[test]
    fn a_waiter_behind_a_reservation_wakes_up() {
        let (store, holder, reader) = (store(), Token::new(), Token::new());
        acquire(&store, &claim(holder, None)).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| acquire(&store, &reservation(reader, RESERVATION)).unwrap());
            until_queued(&store, 1);
            let waiter = scope.spawn(|| acquire(&store, &claim(Token::new(), None)));
            until_queued(&store, 2);
            store.release(holder);
            let start = Instant::now();
            waiter.join().unwrap().unwrap();
            assert!(start.elapsed() < LONG / 2);
        });
    }

    #[test]
    fn a_poisoned_lock_is_recovered() {
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
    fn a_store_that_is_in_use_or_has_another_encoding_is_not_renewed() {
        let (store, token) = (store(), Token::new());
        store.set_lock_timeout(Duration::ZERO);
        acquire(&store, &claim(token, None)).unwrap();
        assert!(!store.renew(), "a writer holds the slot");
        store.release(token);
        let place = enqueue(&mut store.lock(), &claim(token, None));
        assert!(!store.renew(), "a waiter is in the queue");
        store.lock().slot.leave_queue(place);
        assert!(store.renew());
        assert_eq!(store.lock_timeout(), default_lock_timeout());
        commit(&store, &[1; 200]);
        assert!(!store.renew(), "connections have seen texts, and the empty database has no encoding");
    }

    /// The numbers wrap around, so the zeros of an empty database would seem to be ahead of high numbers.
    #[test]
    fn an_empty_database_does_not_reset_the_numbers() {
        let store = store();
        store.lock().highest = Stamp { change_counter: 0x8888_8888, schema_cookie: 0x8888_8888 };
        commit(&store, &[0x99; 200]);
        let highest = store.lock().highest;
        assert_eq!(highest, Stamp { change_counter: 0x9999_9999, schema_cookie: 0x9999_9999 });
        store.restore(&Snapshot::empty());
        assert_eq!((store.current().size(), store.lock().highest), (0, highest), "otherwise the numbers would repeat");
    }

    #[test]
    fn restoring_the_current_content_changes_nothing() {
        let store = store();
        commit(&store, &[1; 200]);
        let before = store.current();
        store.restore(&before);
        assert!(store.current().ptr_eq(&before));
    }

    #[test]
    fn a_waiter_that_leaves_ends_an_expired_reservation() {
        let (store, reader, first, second) = (store(), Token::new(), Token::new(), Token::new());
        let mut state = store.lock();
        state.acquire(&reservation(reader, LONG), None).unwrap();
        let [first, _] = [first, second].map(|token| enqueue(&mut state, &claim(token, None)));
        state.acquire(&reservation(reader, Duration::ZERO), None).unwrap(); // it expires now
        state.slot.leave_queue(first);
        assert_eq!(stage_of_first(&state), Stage::Called);
    }

    /// Only the last waiter looks for expired reservations.
    #[test]
    fn when_the_last_waiter_leaves_the_one_before_looks_for_expired_reservations() {
        let (store, reader, first, last) = (store(), Token::new(), Token::new(), Token::new());
        acquire(&store, &reservation(reader, Duration::from_millis(300))).unwrap();
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                let start = Instant::now();
                acquire(&store, &claim(first, None)).map(|()| start.elapsed())
            });
            until_queued(&store, 1);
            // For long enough that the first sees that it is not the last.
            assert!(store.acquire(&claim(last, None), Place::new(), Duration::from_millis(60)).is_err());
            let waited = first.join().unwrap().expect("the reservation expires");
            assert!(waited < LONG / 2, "it slept for {waited:?}");
        });
    }

    #[test]
    fn a_refusal_names_a_waiter_as_one_that_waits() {
        let (store, first, second) = (store(), Token::new(), Token::new());
        let mut state = store.lock();
        let [_, place] = [first, second].map(|token| enqueue(&mut state, &claim(token, None)));
        let refusal = state.acquire(&claim(second, None), Some(place)).unwrap_err();
        assert!(matches!(&refusal, Refusal::Held { by, .. } if by.waits()), "{refusal:?}");
        state.slot.offer();
        state.slot.leave_queue(place);
        state.acquire(&claim(first, None), None).unwrap();
        let refusal = state.acquire(&claim(second, None), None).unwrap_err();
        assert!(matches!(&refusal, Refusal::Held { by, .. } if !by.waits()), "{refusal:?}");
    }
}
