//! Models of `once_map` and `store`: their own code, run by shuttle in many orders of its threads' steps. A wake-up that is
//! lost is a deadlock there, since waiting never times out.
//!
//! Beside each stands a twin with a bug, which must be found; the same twin without a bug must pass.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::error::words_of_panic;
use crate::once_map::OnceMap;
use crate::origin::{Purpose, Refusal};
use crate::pages::Pages;
use crate::snapshot::Snapshot;
use crate::store::{Claim, Store, Token};
use crate::sync::{Condvar, Mutex, MutexGuard, Patience, thread};

/// How many orders are tried of each model: at random, and by probabilistic concurrency testing with three changes of
/// priority. `MODEL_ORDERS` sets another number.
fn orders() -> usize {
    std::env::var("MODEL_ORDERS").map_or(5_000, |orders| orders.parse().unwrap())
}

fn check(model: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(model.clone(), orders());
    shuttle::check_pct(model, orders(), 3);
}

/// In every order there is, or as many as `orders` says times ten. Prints how many.
fn check_all(name: &str, model: impl Fn() + Send + Sync + 'static) {
    let most = 10 * orders();
    let scheduler = shuttle::scheduler::DfsScheduler::new(Some(most), false);
    let tried = shuttle::Runner::new(scheduler, shuttle::Config::default()).run(model);
    println!("{name}: {tried} orders, {}", if tried < most { "which are all" } else { "of more" });
}

/// The bug must be found, by one way of searching or the other, and for its own reason: the panic says these words.
fn check_fails(words: &str, model: impl Fn() + Send + Sync + Clone + 'static) {
    let found = |search: &dyn Fn()| catch_unwind(AssertUnwindSafe(search)).err();
    let (random, pct) = (model.clone(), model);
    let panic = found(&|| shuttle::check_random(random.clone(), orders()))
        .or_else(|| found(&|| shuttle::check_pct(pct.clone(), orders(), 3)))
        .expect("the bug is found");
    let told = words_of_panic(&*panic);
    assert!(told.contains(words), "not for {words:?}: {told}");
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

    /// What `OnceMap` and its twin have in common.
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
                thread::yield_now(); // as a creation does that takes locks of its own
                Ok(1 + created.fetch_add(1, Ordering::Relaxed))
            };
            assert_eq!(map.obtain(7, &create), Ok(1), "it was created twice");
        });
    }

    /// Whoever comes first fails, or panics; one of the others creates the value then, and none waits for ever.
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
                Err(_) => panic!("who waited panicked"),
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
    fn after_a_failure_one_of_those_who_wait_creates_it() {
        check(|| a_failure_is_followed_by_a_success(OnceMap::new(), false));
        check(|| a_failure_is_followed_by_a_success(OnceMap::new(), true));
    }

    /// Two creations that ask for each other's values end, one of them refused, in whatever order they come.
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

    /// A wait that has ended is not taken for one that goes on: threads that only share values are never refused.
    #[test]
    fn nobody_is_refused_without_a_circle() {
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
        /// The lock is given up between looking and noting that the value is being created.
        UnlockedCheck,
        /// Who has waited takes it for granted that the value is there.
        NoSecondLook,
        /// Those who wait are woken before there is anything to see.
        NotifyFirst,
    }

    /// The same as `OnceMap`, in few words, and with a bug.
    struct Twin {
        entries: Mutex<BTreeMap<u8, Option<usize>>>,
        settled: Condvar,
        bug: Bug,
    }

    impl Twin {
        fn new(bug: Bug) -> Twin {
            Twin { entries: Mutex::new(BTreeMap::new()), settled: Condvar::new(), bug }
        }

        fn lock(&self) -> MutexGuard<'_, BTreeMap<u8, Option<usize>>> {
            self.entries.lock().unwrap_or_else(PoisonError::into_inner)
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

    impl Once for Twin {
        fn obtain(&self, key: u8, create: &dyn Fn() -> Result<usize, Failure>) -> Result<usize, Failure> {
            let mut entries = self.lock();
            loop {
                match entries.get(&key) {
                    Some(Some(value)) => return Ok(*value),
                    Some(None) => entries = self.settled.wait(entries).unwrap_or_else(PoisonError::into_inner),
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
        check(|| one_value_for_all(Twin::new(Bug::None), 3));
        check(|| a_failure_is_followed_by_a_success(Twin::new(Bug::None), false));
        check_fails("it was created twice", || one_value_for_all(Twin::new(Bug::UnlockedCheck), 3));
        check_fails("who waited panicked", || a_failure_is_followed_by_a_success(Twin::new(Bug::NoSecondLook), false));
        check_fails("deadlock", || one_value_for_all(Twin::new(Bug::NotifyFirst), 3));
    }
}

mod store {
    use super::*;

    const FOR_EVER: Duration = Duration::from_secs(3600);

    /// May be over at any time.
    const SHORT: Duration = Duration::from_secs(1);

    /// The writer slot, as `Store` and its twin have it.
    trait Slot: Send + Sync + 'static {
        fn acquire(&self, token: Token);
        fn release(&self, token: Token);
    }

    fn claim(token: Token, read: Option<Snapshot>) -> Claim {
        Claim { token, purpose: Purpose::UnitOfWork(Location::caller()), read, reserve: None }
    }

    impl Slot for Store {
        fn acquire(&self, token: Token) {
            Store::acquire(self, &claim(token, None), FOR_EVER).unwrap();
        }

        fn release(&self, token: Token) {
            Store::release(self, token);
        }
    }

    /// Threads take the slot, so often each: one at a time has it, and all get it.
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
    fn the_slot_is_for_one_at_a_time_and_everybody_gets_it() {
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

    /// No update is lost, and a reader sees whole commits, each not before the one that it saw last.
    #[test]
    fn what_is_published_is_read() {
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

    /// Those who build on what they have read either write on it, or are told that it is out of date; none waits for ever.
    #[test]
    fn who_builds_on_what_it_read_is_never_left_waiting() {
        check(|| {
            let store = Arc::new(store());
            let (shared, written) = (store.clone(), Arc::new(AtomicUsize::new(0)));
            let count = written.clone();
            spawn_all(3, move |_| {
                let (token, read) = (Token::new(), shared.current());
                match Store::acquire(&shared, &claim(token, Some(read.clone())), FOR_EVER) {
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

    /// Who waits to build on what it has read is told as soon as that is replaced, though the slot stays taken.
    #[test]
    fn who_waits_in_vain_is_told_at_once() {
        check(|| {
            let (shared, done) = (Arc::new(store()), Arc::new(AtomicUsize::new(0)));
            let read = shared.current();
            spawn_all(2, move |number| {
                let token = Token::new();
                if number == 0 {
                    let result = Store::acquire(&shared, &claim(token, Some(read.clone())), FOR_EVER);
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

    /// Who has no patience is answered at once, and leaves nothing that would keep others from the slot.
    #[test]
    fn who_does_not_wait_keeps_nobody_waiting() {
        check(|| {
            let shared = Arc::new(store());
            spawn_all(3, move |number| {
                let token = Token::new();
                let patience = if number == 0 { Duration::ZERO } else { FOR_EVER };
                let result = Store::acquire(&shared, &claim(token, None), patience);
                assert!(result.is_ok() || number == 0);
                shared.release(token);
            });
        });
    }

    /// One that is called to the slot may be running out of patience just then. Whoever gives up, the others get it.
    #[test]
    fn who_gives_up_keeps_nobody_waiting() {
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
                let patience = if number == 2 { FOR_EVER } else { SHORT };
                let result = Store::acquire(&shared, &claim(token, None), patience);
                assert!(result.is_ok() || number < 2);
                thread::yield_now();
                shared.release(token);
                running.fetch_sub(1, Ordering::Relaxed);
            });
            clock.join().unwrap();
        });
    }

    /// The same without a clock: who is called takes the slot before it looks at its patience, or calls the next. Otherwise
    /// nobody would.
    fn an_impatient_one_calls_the_next(slot: impl Queue) {
        let (slot, holder) = (Arc::new(slot), Token::new());
        slot.acquire(holder);
        let wait = |wait: fn(&dyn Queue, Token)| {
            let slot = slot.clone();
            thread::spawn(move || {
                let token = Token::new();
                wait(&*slot, token);
                slot.release(token);
            })
        };
        let waiters = [
            wait(|slot, token| {
                slot.acquire_impatiently(token);
            }),
            wait(|slot, token| slot.acquire(token)),
        ];
        slot.release(holder);
        waiters.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn who_gives_up_calls_the_next() {
        check(|| an_impatient_one_calls_the_next(store()));
    }

    /// In the order in which they queue up, whoever else takes the slot in between.
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
        fn queued(&self) -> usize;
        /// Like `acquire`, but it may give up.
        fn acquire_impatiently(&self, token: Token) -> bool;
    }

    impl Queue for Store {
        fn queued(&self) -> usize {
            Store::queued(self)
        }

        fn acquire_impatiently(&self, token: Token) -> bool {
            Store::acquire(self, &claim(token, None), SHORT).is_ok()
        }
    }

    impl Queue for Twin {
        fn queued(&self) -> usize {
            self.lock().1.len()
        }

        fn acquire_impatiently(&self, token: Token) -> bool {
            self.acquire_within(token, SHORT)
        }
    }

    #[test]
    fn waiters_are_served_in_order_of_arrival() {
        check(|| in_order_of_arrival(store()));
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Bug {
        None,
        /// Looks whether the slot is free, and queues up only after the lock has been given up.
        UnlockedCheck,
        /// Wakes the next before the slot is free.
        NotifyFirst,
        /// Who was woken takes it for granted that the slot is free.
        NoSecondLook,
        /// Who came last is called first.
        LastFirst,
        /// Who was called and has given up does not call the next.
        GivesUpSilently,
    }

    type Waiters = VecDeque<(Token, Arc<Condvar>)>;

    /// A slot with a queue, in few words, and with a bug.
    struct Twin {
        state: Mutex<(Option<Token>, Waiters)>,
        bug: Bug,
    }

    impl Twin {
        fn new(bug: Bug) -> Twin {
            Twin { state: Mutex::new((None, VecDeque::new())), bug }
        }

        fn lock(&self) -> MutexGuard<'_, (Option<Token>, Waiters)> {
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn acquire_within(&self, token: Token, patience: Duration) -> bool {
            let patience = Patience::of(patience);
            let mut state = self.lock();
            if state.0.is_some() {
                if self.bug == Bug::UnlockedCheck {
                    drop(state);
                    state = self.lock();
                }
                let woken = Arc::new(Condvar::new());
                state.1.push_back((token, woken.clone()));
                loop {
                    state = woken.wait(state).unwrap_or_else(PoisonError::into_inner);
                    if !patience.lasts() {
                        state.1.retain(|(waiter, _)| *waiter != token);
                        drop(state);
                        if self.bug != Bug::GivesUpSilently {
                            self.call_first();
                        }
                        return false;
                    }
                    if state.0.is_none() || self.bug == Bug::NoSecondLook {
                        break;
                    }
                }
                state.1.retain(|(waiter, _)| *waiter != token);
            }
            state.0 = Some(token);
            true
        }

        fn call_first(&self) {
            let queue = &self.lock().1;
            let next = if self.bug == Bug::LastFirst { queue.back() } else { queue.front() };
            if let Some((_, next)) = next {
                next.notify_one();
            }
        }
    }

    impl Slot for Twin {
        fn acquire(&self, token: Token) {
            self.acquire_within(token, FOR_EVER);
        }

        fn release(&self, token: Token) {
            if self.bug == Bug::NotifyFirst {
                self.call_first();
            }
            let was_held = self.lock().0.take_if(|holder| *holder == token).is_some();
            if was_held && self.bug != Bug::NotifyFirst {
                self.call_first();
            }
        }
    }

    #[test]
    fn bugs_are_found() {
        check(|| one_at_a_time(Twin::new(Bug::None), 3, 2));
        for (bug, words) in
            [(Bug::UnlockedCheck, "deadlock"), (Bug::NotifyFirst, "deadlock"), (Bug::NoSecondLook, "two have it")]
        {
            check_fails(words, move || one_at_a_time(Twin::new(bug), 3, 2));
        }
        check(|| in_order_of_arrival(Twin::new(Bug::None)));
        check_fails("not in order of arrival", || in_order_of_arrival(Twin::new(Bug::LastFirst)));
        check(|| an_impatient_one_calls_the_next(Twin::new(Bug::None)));
        check_fails("deadlock", || an_impatient_one_calls_the_next(Twin::new(Bug::GivesUpSilently)));
    }
}
