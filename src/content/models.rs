//! Models of `once_map` and `store`: shuttle runs their real code in many orders of its threads' steps. A lost wake-up
//! is a deadlock there, because waits never time out.
//!
//! Each model has a variant with a bug, which must be found. The same variant without a bug must pass.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::origin::Purpose;
use super::pages::Pages;
use super::queue::Place;
use super::refusal::Refusal;
use super::snapshot::Snapshot;
use super::store::{Claim, Store, Token};
use crate::error::words_of_panic;
use crate::once_map::OnceMap;
use crate::sync::{Condvar, Mutex, MutexGuard, Patience, Recovered, thread};

/// Returns how many orders are tried of each model: at random, and by probabilistic concurrency testing with three
/// changes of priority. `MODEL_ORDERS` sets another number.
fn orders() -> usize {
    std::env::var("MODEL_ORDERS").map_or(5_000, |orders| orders.parse().unwrap())
}

fn check(model: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(model.clone(), orders());
    shuttle::check_pct(model, orders(), 3);
}

/// Runs the model in every order, or in ten times `orders()` orders if there are more. Prints how many.
fn check_all(name: &str, model: impl Fn() + Send + Sync + 'static) {
    let most = 10 * orders();
    let scheduler = shuttle::scheduler::DfsScheduler::new(Some(most), false);
    let tried = shuttle::Runner::new(scheduler, shuttle::Config::default()).run(model);
    println!("{name}: {tried} orders, {}", if tried < most { "which are all" } else { "of more" });
}

/// Checks that one of the two searches finds the bug, and that the panic contains these words, the expected reason.
fn check_fails(words: &str, model: impl Fn() + Send + Sync + Clone + 'static) {
    let found = |search: &dyn Fn()| catch_unwind(AssertUnwindSafe(search)).err();
    let (random, pct) = (model.clone(), model);
    let panic = found(&|| shuttle::check_random(random.clone(), orders()))
        .or_else(|| found(&|| shuttle::check_pct(pct.clone(), orders(), 3)))
        .expect("the bug is found");
    let reported = words_of_panic(&*panic);
    assert!(reported.contains(words), "not for {words:?}: {reported}");
}

fn spawn_all(count: usize, work: impl Fn(usize) + Send + Sync + 'static) {
    let work = Arc::new(work);
    let threads: Vec<_> = (0..count)
        .map(|number| {
            let work = work.clone();
            thread::spawn(move || work(number))
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

mod once_map {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Failure {
        Recursive,
        Own,
    }

    /// The operation that `OnceMap` and its variant have in common.
    trait Once: Send + Sync + 'static {
        fn obtain(&self, key: u8, create: &dyn Fn() -> Result<usize, Failure>) -> Result<usize, Failure>;
    }

    impl Once for OnceMap<u8, usize> {
        fn obtain(&self, key: u8, create: &dyn Fn() -> Result<usize, Failure>) -> Result<usize, Failure> {
            self.get_or_create(&key, create, || Failure::Recursive)
        }
    }

    fn one_value_for_all(map: impl Once, threads: usize) {
        let created = AtomicUsize::new(0);
        spawn_all(threads, move |_| {
            let create = || {
                thread::yield_now(); // like a creation that takes other locks
                Ok(1 + created.fetch_add(1, Ordering::Relaxed))
            };
            assert_eq!(map.obtain(7, &create), Ok(1), "it was created twice");
        });
    }

    /// The first creation fails or panics. Then one of the other threads creates the value, and none waits forever.
    fn a_failure_is_followed_by_a_success(map: impl Once, panics: bool) {
        let attempts = AtomicUsize::new(0);
        let (failures, map) = (Arc::new(AtomicUsize::new(0)), Arc::new(map));
        let counted = failures.clone();
        spawn_all(3, move |_| {
            let create = || match attempts.fetch_add(1, Ordering::Relaxed) {
                0 if panics => std::panic::resume_unwind(Box::new("a creation that panics")),
                0 => Err(Failure::Own),
                attempt => Ok(attempt),
            };
            match catch_unwind(AssertUnwindSafe(|| map.obtain(7, &create))) {
                Ok(Ok(value)) => assert_eq!(value, 1, "it was created twice"),
                Ok(Err(error)) => assert_eq!((error, counted.fetch_add(1, Ordering::Relaxed)), (Failure::Own, 0)),
                Err(_) if panics => assert_eq!(counted.fetch_add(1, Ordering::Relaxed), 0),
                Err(_) => panic!("a waiting thread panicked"),
            }
        });
        assert_eq!(failures.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_value_is_created_once() {
        check(|| one_value_for_all(OnceMap::new(), 3));
        check_all("a value is created once, 2 threads", || one_value_for_all(OnceMap::new(), 2));
    }

    #[test]
    fn after_a_failure_a_waiting_thread_creates_the_value() {
        check(|| a_failure_is_followed_by_a_success(OnceMap::new(), false));
        check(|| a_failure_is_followed_by_a_success(OnceMap::new(), true));
    }

    /// Two creations that ask for each other's values both end, in any order: one of them is refused.
    #[test]
    fn creations_that_wait_for_each_other_end() {
        check(|| {
            let maps = [OnceMap::<u8, usize>::new(), OnceMap::new()];
            spawn_all(2, move |number| {
                let [own, other] = [&maps[number], &maps[1 - number]];
                let value = own.obtain(1, &|| match other.obtain(1, &|| Ok(10)) {
                    Ok(value) => Ok(value),
                    Err(Failure::Recursive) => Ok(20),
                    Err(error) => Err(error),
                });
                assert!(value.is_ok());
            });
        });
    }

    /// A wait that has ended does not count as a current one: threads that only share values are never refused.
    #[test]
    fn no_thread_is_refused_without_a_cycle() {
        check(|| {
            let map = OnceMap::<u8, usize>::new();
            spawn_all(3, move |number| {
                let inner = || map.obtain(1, &|| Ok(1));
                let first = if number == 0 { inner() } else { Ok(1) };
                let value = first.and_then(|_| map.obtain(2, &|| inner()));
                assert_eq!(value, Ok(1));
            });
        });
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Bug {
        None,
        /// Releases the lock between the check and the entry that says that the value is being created.
        UnlockedCheck,
        /// A thread that has waited does not check whether the value exists.
        NoSecondLook,
        /// Wakes the waiting threads before the entry has changed.
        NotifyFirst,
    }

    /// A short version of `OnceMap`, with a bug.
    struct Variant {
        entries: Mutex<BTreeMap<u8, Option<usize>>>,
        settled: Condvar,
        bug: Bug,
    }

    impl Variant {
        fn new(bug: Bug) -> Variant {
            Variant { entries: Mutex::new(BTreeMap::new()), settled: Condvar::new(), bug }
        }

        fn lock(&self) -> MutexGuard<'_, BTreeMap<u8, Option<usize>>> {
            self.entries.lock().recovered()
        }

        fn settle(&self, key: u8, value: Option<usize>) {
            if self.bug == Bug::NotifyFirst {
                self.settled.notify_all();
            }
            match value {
                Some(value) => self.lock().insert(key, Some(value)),
                None => self.lock().remove(&key),
            };
            if self.bug != Bug::NotifyFirst {
                self.settled.notify_all();
            }
        }
    }

    impl Once for Variant {
        fn obtain(&self, key: u8, create: &dyn Fn() -> Result<usize, Failure>) -> Result<usize, Failure> {
            let mut entries = self.lock();
            loop {
                match entries.get(&key) {
                    Some(Some(value)) => return Ok(*value),
                    Some(None) => entries = self.settled.wait(entries).recovered(),
                    None => break,
                }
                if self.bug == Bug::NoSecondLook {
                    return Ok(entries[&key].unwrap());
                }
            }
            if self.bug == Bug::UnlockedCheck {
                drop(entries);
                entries = self.lock();
            }
            entries.insert(key, None);
            drop(entries);
            let value = create();
            self.settle(key, value.as_ref().ok().copied());
            value
        }
    }

    #[test]
    fn bugs_are_found() {
        check(|| one_value_for_all(Variant::new(Bug::None), 3));
        check(|| a_failure_is_followed_by_a_success(Variant::new(Bug::None), false));
        check_fails("it was created twice", || one_value_for_all(Variant::new(Bug::UnlockedCheck), 3));
        check_fails("a waiting thread panicked", || {
            a_failure_is_followed_by_a_success(Variant::new(Bug::NoSecondLook), false)
        });
        check_fails("deadlock", || one_value_for_all(Variant::new(Bug::NotifyFirst), 3));
    }
}

mod store {
    use super::*;

    const NO_LIMIT: Duration = Duration::from_secs(3600);

    /// A time limit that may be over at any time.
    const SHORT: Duration = Duration::from_secs(1);

    /// The writer slot of `Store` and its variant.
    trait Slot: Send + Sync + 'static {
        fn acquire(&self, token: Token);
        fn release(&self, token: Token);
    }

    fn claim(token: Token, read: Option<Snapshot>) -> Claim {
        Claim { token, purpose: Purpose::UnitOfWork(Location::caller()), read, reserve: None }
    }

    impl Slot for Store {
        fn acquire(&self, token: Token) {
            Store::acquire(self, &claim(token, None), Place::new(), NO_LIMIT).unwrap();
        }

        fn release(&self, token: Token) {
            Store::release(self, token);
        }
    }

    /// Each thread takes the slot `times` times: one at a time has it, and all get it.
    fn one_at_a_time(slot: impl Slot, threads: usize, times: usize) {
        let holders = AtomicUsize::new(0);
        spawn_all(threads, move |_| {
            for _ in 0..times {
                let token = Token::new();
                slot.acquire(token);
                assert_eq!(holders.fetch_add(1, Ordering::Relaxed), 0, "two have it");
                thread::yield_now();
                holders.fetch_sub(1, Ordering::Relaxed);
                slot.release(token);
            }
        });
    }

    fn store() -> Store {
        Store::new(Snapshot::empty())
    }

    #[test]
    fn the_slot_has_one_holder_at_a_time_and_every_thread_gets_it() {
        check(|| one_at_a_time(store(), 2, 2));
        check(|| one_at_a_time(store(), 3, 2));
        check_all("the slot, 2 threads", || one_at_a_time(store(), 2, 1));
    }

    fn write(pages: &mut Pages, value: u8) {
        pages.resize(0);
        pages.write(0, &[value; 200]);
    }

    fn value(snapshot: &Snapshot) -> u8 {
        let mut bytes = [0; 2];
        snapshot.pages().read(0, &mut bytes[..1]);
        snapshot.pages().read(150, &mut bytes[1..]);
        assert_eq!(bytes[0], bytes[1], "half a commit");
        bytes[0]
    }

    /// No update is lost. A reader sees whole commits, and never an older one after a newer one.
    #[test]
    fn published_content_is_read() {
        check(|| {
            let store = Arc::new(store());
            let shared = store.clone();
            spawn_all(3, move |number| {
                if number == 2 {
                    let seen = [value(&shared.current()), value(&shared.current())];
                    assert!(seen[0] <= seen[1], "back in time");
                    return;
                }
                let token = Token::new();
                Slot::acquire(&*shared, token);
                let current = shared.current();
                let mut pages = current.pages().clone();
                write(&mut pages, value(&current) + 1);
                shared.publish(pages, 0);
                shared.release(token);
            });
            assert_eq!(value(&store.current()), 2, "an update was lost");
        });
    }

    /// Threads that build on what they have read either write, or are refused because it is stale. None waits forever.
    #[test]
    fn a_thread_that_has_read_writes_or_is_refused() {
        check(|| {
            let store = Arc::new(store());
            let (shared, written) = (store.clone(), Arc::new(AtomicUsize::new(0)));
            let count = written.clone();
            spawn_all(3, move |_| {
                let (token, read) = (Token::new(), shared.current());
                match Store::acquire(&shared, &claim(token, Some(read.clone())), Place::new(), NO_LIMIT) {
                    Ok(()) => {
                        let mut pages = read.pages().clone();
                        write(&mut pages, value(&read) + 1);
                        shared.publish(pages, 0);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(Refusal::Stale { .. }) => {}
                    Err(_) => panic!("it did not wait"),
                }
                shared.release(token);
            });
            assert_eq!(usize::from(value(&store.current())), written.load(Ordering::Relaxed), "an update was lost");
        });
    }

    /// A waiter that has read is refused as soon as what it read is replaced, though the slot stays taken.
    #[test]
    fn a_waiter_with_stale_content_is_refused_at_once() {
        check(|| {
            let (shared, done) = (Arc::new(store()), Arc::new(AtomicUsize::new(0)));
            let read = shared.current();
            spawn_all(2, move |number| {
                let token = Token::new();
                if number == 0 {
                    let result = Store::acquire(&shared, &claim(token, Some(read.clone())), Place::new(), NO_LIMIT);
                    assert!(matches!(result, Ok(()) | Err(Refusal::Stale { .. })));
                    done.store(1, Ordering::Relaxed);
                } else {
                    Slot::acquire(&*shared, token);
                    let mut pages = Pages::default();
                    write(&mut pages, 1);
                    shared.publish(pages, 0);
                    while done.load(Ordering::Relaxed) == 0 {
                        thread::yield_now();
                    }
                }
                shared.release(token);
            });
        });
    }

    /// A thread that does not wait gets its answer at once, and leaves nothing that keeps others from the slot.
    #[test]
    fn a_thread_that_does_not_wait_blocks_no_other() {
        check(|| {
            let shared = Arc::new(store());
            spawn_all(3, move |number| {
                let token = Token::new();
                let patience = if number == 0 { Duration::ZERO } else { NO_LIMIT };
                let result = Store::acquire(&shared, &claim(token, None), Place::new(), patience);
                assert!(result.is_ok() || number == 0);
                shared.release(token);
            });
        });
    }

    /// A waiter may time out at the moment when it is called. If it gives up, the others get the slot.
    #[test]
    fn a_waiter_that_gives_up_blocks_no_other() {
        check(|| {
            let (shared, running) = (Arc::new(store()), Arc::new(AtomicUsize::new(3)));
            let (clock, left) = (shared.clone(), running.clone());
            let clock = thread::spawn(move || {
                while left.load(Ordering::Relaxed) > 0 {
                    clock.pass_time();
                    thread::yield_now();
                }
            });
            spawn_all(3, move |number| {
                let token = Token::new();
                let patience = if number == 2 { NO_LIMIT } else { SHORT };
                let result = Store::acquire(&shared, &claim(token, None), Place::new(), patience);
                assert!(result.is_ok() || number < 2);
                thread::yield_now();
                shared.release(token);
                running.fetch_sub(1, Ordering::Relaxed);
            });
            clock.join().unwrap();
        });
    }

    /// The same without a clock: a called waiter takes the slot before it checks its time limit, or calls the next
    /// waiter. No other code would call the next waiter.
    fn one_that_times_out_calls_the_next(slot: impl Queue) {
        let (slot, holder) = (Arc::new(slot), Token::new());
        slot.acquire(holder);
        let wait = |patience| {
            let slot = slot.clone();
            thread::spawn(move || {
                let token = Token::new();
                let has_it = slot.acquire_at(slot.place(), token, patience);
                assert!(has_it || patience == SHORT);
                slot.release(token);
            })
        };
        let waiters = [wait(SHORT), wait(NO_LIMIT)];
        slot.release(holder);
        waiters.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_waiter_that_gives_up_calls_the_next() {
        check(|| one_that_times_out_calls_the_next(store()));
    }

    /// Waiters get the slot in the order of the queue, though another thread takes it in between.
    fn in_order_of_arrival(slot: impl Queue) {
        let (slot, holder) = (Arc::new(slot), Token::new());
        slot.acquire(holder);
        let served = Arc::new(Mutex::new(Vec::new()));
        let waiters: Vec<_> = (0..2)
            .map(|number| {
                let (waiter, order) = (slot.clone(), served.clone());
                let thread = thread::spawn(move || {
                    let token = Token::new();
                    waiter.acquire(token);
                    order.lock().unwrap().push(number);
                    waiter.release(token);
                });
                while slot.queued() <= number {
                    thread::yield_now();
                }
                thread
            })
            .collect();
        slot.release(holder);
        let passing = Token::new();
        slot.acquire(passing);
        slot.release(passing);
        waiters.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*served.lock().unwrap(), [0, 1], "not in order of arrival");
    }

    trait Queue: Slot {
        type Place: Copy + Send;

        fn queued(&self) -> usize;
        /// Returns a place behind all others.
        fn place(&self) -> Self::Place;
        /// Like `acquire`, at this place and with a time limit. Returns whether it got the slot.
        fn acquire_at(&self, place: Self::Place, token: Token, patience: Duration) -> bool;
        /// Reserves the slot for a short time. The reservation is never released.
        fn reserve(&self);
        /// See `Store::pass_time`.
        fn pass_time(&self);
    }

    impl Queue for Store {
        type Place = Place;

        fn queued(&self) -> usize {
            Store::queued(self)
        }

        fn place(&self) -> Place {
            Place::new()
        }

        fn acquire_at(&self, place: Place, token: Token, patience: Duration) -> bool {
            Store::acquire(self, &claim(token, None), place, patience).is_ok()
        }

        fn reserve(&self) {
            let claim = Claim { reserve: Some(SHORT), ..claim(Token::new(), None) };
            self.try_acquire(&claim).unwrap();
        }

        fn pass_time(&self) {
            Store::pass_time(self);
        }
    }

    #[test]
    fn waiters_are_served_in_order_of_arrival() {
        check(|| in_order_of_arrival(store()));
    }

    fn until_queued(slot: &impl Queue, count: usize) {
        while slot.queued() < count {
            thread::yield_now();
        }
    }

    /// A waiter that was refused, and is away when another one arrives, returns ahead of it, though a third thread
    /// takes the slot in between. All of them get it.
    fn in_order_of_first_refusals(slot: impl Queue) {
        let (slot, holder) = (Arc::new(slot), Token::new());
        slot.acquire(holder);
        let served = Arc::new(Mutex::new(Vec::new()));
        let wait = |number: usize, place| {
            let (slot, served) = (slot.clone(), served.clone());
            thread::spawn(move || {
                let token = Token::new();
                assert!(slot.acquire_at(place, token, NO_LIMIT));
                served.lock().unwrap().push(number);
                slot.release(token);
            })
        };
        let first = slot.place();
        let second = wait(1, slot.place());
        until_queued(&*slot, 1);
        let first = wait(0, first);
        until_queued(&*slot, 2);
        slot.release(holder);
        let passing = Token::new();
        slot.acquire(passing);
        slot.release(passing);
        [first, second].into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*served.lock().unwrap(), [0, 1], "not in order of first refusals");
    }

    #[test]
    fn a_waiter_that_returns_keeps_its_place() {
        check(|| in_order_of_first_refusals(store()));
    }

    /// A waiter returns ahead of a waiter that was just called. The called waiter has to be called again when it is the
    /// first.
    fn all_get_it_though_one_returns(slot: impl Queue) {
        let (slot, holder) = (Arc::new(slot), Token::new());
        slot.acquire(holder);
        let wait = |place| {
            let slot = slot.clone();
            thread::spawn(move || {
                let token = Token::new();
                assert!(slot.acquire_at(place, token, NO_LIMIT));
                slot.release(token);
            })
        };
        let away = slot.place();
        let called = wait(slot.place());
        until_queued(&*slot, 1);
        slot.release(holder);
        let waiters = [wait(away), wait(slot.place()), called];
        waiters.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_called_waiter_that_is_no_longer_the_first_is_called_again() {
        check(|| all_get_it_though_one_returns(store()));
    }

    /// One waiter leaves and returns, like a connection whose busy handler sleeps elsewhere. The slot is never kept
    /// free for it. It gets the slot in the end, and so do the others.
    #[test]
    fn a_waiter_that_leaves_and_returns_blocks_no_other() {
        check(|| {
            let shared = Arc::new(store());
            spawn_all(3, move |number| {
                let (token, place) = (Token::new(), Place::new());
                let patience = if number == 0 { SHORT } else { NO_LIMIT };
                while !shared.acquire_at(place, token, patience) {
                    assert_eq!(number, 0, "it does not give up");
                    thread::yield_now(); // away
                }
                shared.release(token);
            });
        });
    }

    /// A reservation that is not claimed expires. If waiters leave the queue, one of the others still checks for that.
    fn a_reservation_expires(slot: impl Queue) {
        let (slot, running) = (Arc::new(slot), Arc::new(AtomicUsize::new(3)));
        slot.reserve();
        let (clock, left) = (slot.clone(), running.clone());
        let clock = thread::spawn(move || {
            while left.load(Ordering::Relaxed) > 0 {
                clock.pass_time();
                thread::yield_now();
            }
        });
        spawn_all(3, move |number| {
            let token = Token::new();
            let patience = if number == 0 { SHORT } else { NO_LIMIT };
            let has_it = slot.acquire_at(slot.place(), token, patience);
            assert!(has_it || number == 0);
            slot.release(token);
            running.fetch_sub(1, Ordering::Relaxed);
        });
        clock.join().unwrap();
    }

    #[test]
    fn an_unclaimed_reservation_blocks_no_waiter() {
        check(|| a_reservation_expires(store()));
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Bug {
        None,
        /// Checks whether the slot is free, and enters the queue only after it has released the lock.
        UnlockedCheck,
        /// Wakes the next waiter before the slot is free.
        NotifyFirst,
        /// A woken waiter does not check whether the slot is free.
        NoSecondLook,
        /// The last waiter is called first.
        LastFirst,
        /// A called waiter that gives up does not call the next.
        GivesUpSilently,
        /// A waiter that returns is the last one.
        LosesPlace,
        /// A called waiter that found the slot taken stays called.
        CalledOnce,
        /// The last waiter, which checks for expired reservations, does not wake its successor when it leaves.
        LeavesWatch,
    }

    /// A short version of a slot with a queue, with a bug.
    struct Variant {
        state: Mutex<TwinState>,
        bug: Bug,
    }

    #[derive(Default)]
    struct TwinState {
        holder: Option<Token>,
        is_reserved: bool,
        waiters: BTreeMap<u64, TwinWaiter>,
        places: u64,
    }

    #[derive(Default)]
    struct TwinWaiter {
        woken: Arc<Condvar>,
        is_called: bool,
    }

    impl TwinState {
        fn new_place(&mut self) -> u64 {
            self.places += 1;
            self.places
        }

        fn is_last(&self, place: u64) -> bool {
            self.waiters.last_key_value().is_some_and(|(last, _)| *last == place)
        }

        fn call_first(&mut self, bug: Bug) {
            let next = if bug == Bug::LastFirst { self.waiters.last_entry() } else { self.waiters.first_entry() };
            if let Some(mut next) = next.filter(|next| !next.get().is_called) {
                next.get_mut().is_called = true;
                next.get().woken.notify_one();
            }
        }

        /// Returns whether the waiter at this place may have the slot.
        fn look(&mut self, place: u64, bug: Bug) -> bool {
            if self.is_reserved && !Patience::of(SHORT).lasts() {
                (self.holder, self.is_reserved) = (None, false);
                self.call_first(bug);
            }
            let is_first = self.waiters.first_key_value().is_some_and(|(first, _)| *first == place);
            if bug == Bug::NoSecondLook || self.holder.is_none() && (is_first || bug == Bug::LastFirst) {
                return true;
            }
            if let Some(waiter) = self.waiters.get_mut(&place).filter(|_| bug != Bug::CalledOnce) {
                waiter.is_called = false;
            }
            false
        }

        fn leave(&mut self, place: u64, bug: Bug) {
            let was_last = self.is_last(place);
            self.waiters.remove(&place);
            if was_last
                && bug != Bug::LeavesWatch
                && let Some((_, last)) = self.waiters.last_key_value()
            {
                last.woken.notify_one();
            }
        }
    }

    impl Variant {
        fn new(bug: Bug) -> Variant {
            Variant { state: Mutex::default(), bug }
        }

        fn lock(&self) -> MutexGuard<'_, TwinState> {
            self.state.lock().recovered()
        }

        fn acquire_within(&self, token: Token, place: u64, patience: Duration) -> bool {
            let patience = Patience::of(patience);
            let mut state = self.lock();
            if state.holder.is_some() {
                if self.bug == Bug::UnlockedCheck {
                    drop(state);
                    state = self.lock();
                }
                let place = if self.bug == Bug::LosesPlace { state.new_place() } else { place };
                let woken = Arc::new(Condvar::new());
                state.waiters.insert(place, TwinWaiter { woken: woken.clone(), is_called: false });
                let gets_it = loop {
                    let time = if state.is_last(place) { SHORT } else { patience.left() };
                    state = woken.wait_timeout(state, time).recovered().0;
                    if !patience.lasts() {
                        break false;
                    }
                    if state.look(place, self.bug) {
                        break true;
                    }
                };
                state.leave(place, self.bug);
                if !gets_it {
                    if self.bug != Bug::GivesUpSilently {
                        state.call_first(self.bug);
                    }
                    return false;
                }
            }
            state.holder = Some(token);
            true
        }
    }

    impl Slot for Variant {
        fn acquire(&self, token: Token) {
            self.acquire_within(token, self.place(), NO_LIMIT);
        }

        fn release(&self, token: Token) {
            if self.bug == Bug::NotifyFirst {
                self.lock().call_first(self.bug);
            }
            let was_held = self.lock().holder.take_if(|holder| *holder == token).is_some();
            if was_held && self.bug != Bug::NotifyFirst {
                self.lock().call_first(self.bug);
            }
        }
    }

    impl Queue for Variant {
        type Place = u64;

        fn queued(&self) -> usize {
            self.lock().waiters.len()
        }

        fn place(&self) -> u64 {
            self.lock().new_place()
        }

        fn acquire_at(&self, place: u64, token: Token, patience: Duration) -> bool {
            self.acquire_within(token, place, patience)
        }

        fn reserve(&self) {
            let mut state = self.lock();
            (state.holder, state.is_reserved) = (Some(Token::new()), true);
        }

        fn pass_time(&self) {
            self.lock().waiters.values().for_each(|waiter| waiter.woken.pass_time());
        }
    }

    #[test]
    fn bugs_are_found() {
        check(|| one_at_a_time(Variant::new(Bug::None), 3, 2));
        for (bug, words) in
            [(Bug::UnlockedCheck, "deadlock"), (Bug::NotifyFirst, "deadlock"), (Bug::NoSecondLook, "two have it")]
        {
            check_fails(words, move || one_at_a_time(Variant::new(bug), 3, 2));
        }
        check(|| in_order_of_arrival(Variant::new(Bug::None)));
        check_fails("not in order of arrival", || in_order_of_arrival(Variant::new(Bug::LastFirst)));
        check(|| in_order_of_first_refusals(Variant::new(Bug::None)));
        check_fails("not in order of first refusals", || in_order_of_first_refusals(Variant::new(Bug::LosesPlace)));
        check(|| all_get_it_though_one_returns(Variant::new(Bug::None)));
        check_fails("deadlock", || all_get_it_though_one_returns(Variant::new(Bug::CalledOnce)));
        check(|| a_reservation_expires(Variant::new(Bug::None)));
        check_fails("max_steps", || a_reservation_expires(Variant::new(Bug::LeavesWatch)));
        check(|| one_that_times_out_calls_the_next(Variant::new(Bug::None)));
        check_fails("deadlock", || one_that_times_out_calls_the_next(Variant::new(Bug::GivesUpSilently)));
    }
}
