//! A map that creates each value exactly once, even if several threads ask at once.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::thread::{self, ThreadId};
use crate::sync::{Condvar, Mutex, MutexGuard, Recovered};

pub(crate) struct OnceMap<K, V> {
    entries: Mutex<BTreeMap<K, Entry<V>>>,
    /// Notified after each creation, successful or not.
    settled: Condvar,
}

enum Entry<V> {
    Ready(V),
    BeingCreated(Creation),
}

/// A creation that is running, and its thread.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Creation {
    id: u64,
    by: ThreadId,
}

impl<K: Ord + Clone, V: Clone> OnceMap<K, V> {
    pub(crate) const fn new() -> OnceMap<K, V> {
        OnceMap { entries: Mutex::new(BTreeMap::new()), settled: Condvar::new() }
    }

    /// Returns the value, if it exists. Does not return a value that is being created.
    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.lock().get(key).and_then(Entry::value).cloned()
    }

    /// Returns the value. The first call creates it with `create`; other calls wait meanwhile. A creation that fails or
    /// panics leaves no entry, and one of the waiting threads creates the value.
    ///
    /// Returns the error of `recursive` if waiting would never end, because that creation waits for this thread or runs on it.
    pub(crate) fn get_or_create<E>(
        &self,
        key: &K,
        create: impl FnOnce() -> Result<V, E>,
        recursive: impl FnOnce() -> E,
    ) -> Result<V, E> {
        let mut entries = self.lock();
        loop {
            match entries.get(key) {
                Some(Entry::Ready(value)) => return Ok(value.clone()),
                Some(Entry::BeingCreated(creation)) => {
                    if !may_wait_for(*creation) {
                        return Err(recursive());
                    }
                    entries = self.settled.wait(entries).recovered();
                }
                None => break,
            }
        }
        let creation = Creation::begin();
        entries.insert(key.clone(), Entry::BeingCreated(creation));
        drop(entries);
        let right = Right { map: self, key, creation };
        let value = create()?;
        right.settle(Some(value.clone()));
        Ok(value)
    }

    /// Removes the value, so that the next call creates a new one. A value that is being created stays.
    pub(crate) fn remove(&self, key: &K) -> Option<V> {
        let mut entries = self.lock();
        let value = entries.get(key).and_then(Entry::value).cloned();
        if value.is_some() {
            entries.remove(key);
        }
        value
    }

    /// Returns the keys whose values exist, in order.
    pub(crate) fn keys(&self) -> Vec<K> {
        let entries = self.lock();
        entries.iter().filter(|(_, entry)| entry.value().is_some()).map(|(key, _)| key.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, Entry<V>>> {
        self.entries.lock().recovered()
    }
}

impl<V> Entry<V> {
    fn value(&self) -> Option<&V> {
        match self {
            Entry::Ready(value) => Some(value),
            Entry::BeingCreated(_) => None,
        }
    }
}

impl Creation {
    fn begin() -> Creation {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Creation { id: NEXT.fetch_add(1, Ordering::Relaxed), by: thread::current().id() }
    }
}

/// The right to create a value. If it is dropped before it is settled, even by a panic, the key is free again.
struct Right<'a, K: Ord + Clone, V: Clone> {
    map: &'a OnceMap<K, V>,
    key: &'a K,
    creation: Creation,
}

impl<K: Ord + Clone, V: Clone> Right<'_, K, V> {
    fn settle(&self, value: Option<V>) {
        let mut entries = self.map.lock();
        match value {
            Some(value) => drop(entries.insert(self.key.clone(), Entry::Ready(value))),
            None => drop(entries.remove(self.key)),
        }
        // Removed with the entry. Otherwise other threads would seem to wait for this thread at its next request.
        waits().retain(|wait| wait.creation != self.creation);
        drop(entries);
        self.map.settled.notify_all();
    }
}

impl<K: Ord + Clone, V: Clone> Drop for Right<'_, K, V> {
    fn drop(&mut self) {
        let is_open = |entry: &Entry<V>| matches!(entry, Entry::BeingCreated(creation) if *creation == self.creation);
        if self.map.lock().get(self.key).is_some_and(is_open) {
            self.settle(None);
        }
    }
}

/// The threads that wait for a creation, in any map. Lock order: a map's lock first, then this one.
static WAITS: Mutex<Vec<Wait>> = Mutex::new(Vec::new());

struct Wait {
    waiter: ThreadId,
    creation: Creation,
}

fn waits() -> MutexGuard<'static, Vec<Wait>> {
    WAITS.lock().recovered()
}

/// Records that this thread waits for the creation; `settle` removes the record. Returns false instead if the wait would
/// never end: the creation runs on this thread, or on one that waits for it, directly or through others.
fn may_wait_for(creation: Creation) -> bool {
    let waiter = thread::current().id();
    let mut waits = waits();
    let mut last = creation.by;
    while let Some(wait) = waits.iter().find(|wait| wait.waiter == last) {
        last = wait.creation.by;
    }
    if last == waiter {
        return false;
    }
    if !waits.iter().any(|wait| wait.waiter == waiter) {
        waits.push(Wait { waiter, creation }); // present after a spurious wake-up
    }
    true
}

/// Runs `work` on a new thread, and waits for it. Returns the panic's value if it panics. A request on the new thread for
/// a value that this thread is creating is refused as recursive, as on this thread.
///
/// Fails if the system can't start a thread.
pub(crate) fn on_new_thread<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<std::thread::Result<T>> {
    #[cfg(shuttle)]
    return Ok(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))); // no model creates values on a new thread
    #[cfg(not(shuttle))]
    thread::scope(|scope| {
        let this = thread::current();
        let name = this.name().unwrap_or("a build").to_owned(); // panics and messages print it
        let work = move || {
            let _wait = WaitOfCaller::begin(this.id());
            work()
        };
        Ok(thread::Builder::new().name(name).spawn_scoped(scope, work)?.join())
    })
}

/// Records, until it is dropped, that another thread waits for this one.
#[cfg(not(shuttle))]
struct WaitOfCaller(Creation);

#[cfg(not(shuttle))]
impl WaitOfCaller {
    fn begin(waiter: ThreadId) -> WaitOfCaller {
        let creation = Creation::begin();
        waits().push(Wait { waiter, creation });
        WaitOfCaller(creation)
    }
}

#[cfg(not(shuttle))]
impl Drop for WaitOfCaller {
    fn drop(&mut self) {
        waits().retain(|wait| wait.creation != self.0);
    }
}

/// Returns the threads that continue only when this one does: itself, and those that wait for it, directly or through others.
#[cfg(feature = "images")]
pub(crate) fn waiting_for(thread: ThreadId) -> Vec<ThreadId> {
    let waits = waits();
    let mut threads = vec![thread];
    let mut next = 0;
    while let Some(thread) = threads.get(next).copied() {
        threads.extend(waits.iter().filter(|wait| wait.creation.by == thread).map(|wait| wait.waiter));
        next += 1;
    }
    threads
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::sync::mpsc;

    use super::*;

    type Map = OnceMap<&'static str, i32>;

    #[derive(Debug, PartialEq)]
    enum Failure {
        Recursive,
        Own,
    }

    fn get(map: &Map, key: &'static str, create: impl FnOnce() -> Result<i32, Failure>) -> Result<i32, Failure> {
        map.get_or_create(&key, create, || Failure::Recursive)
    }

    fn until_waited_for() {
        while !waits().iter().any(|wait| wait.creation.by == thread::current().id()) {
            thread::yield_now();
        }
    }

    #[test]
    fn a_recursive_creation_is_refused_and_can_continue() {
        let map = Map::new();
        let value = get(&map, "a", || {
            assert_eq!(get(&map, "a", || Ok(2)), Err(Failure::Recursive));
            assert_eq!(get(&map, "b", || get(&map, "a", || Ok(2))), Err(Failure::Recursive));
            Ok(1)
        });
        assert_eq!((value, map.get("a"), map.keys()), (Ok(1), Some(1), vec!["a"]));
    }

    /// Two threads whose creations ask for each other's values, in two maps: the one that asks last is refused.
    #[test]
    fn creations_that_wait_for_each_other_are_refused() {
        let (maps, (to_first, from_second)) = ([Map::new(), Map::new()], mpsc::channel());
        let [one, other] = &maps;
        thread::scope(|scope| {
            let first = scope.spawn(move || {
                get(one, "a", || {
                    from_second.recv().unwrap(); // by now, the other thread is creating it
                    get(other, "b", || unreachable!("the other thread creates it"))
                })
            });
            let second = get(other, "b", || {
                to_first.send(()).unwrap();
                until_waited_for();
                get(one, "a", || unreachable!("the first thread creates it")).or(Ok::<i32, Failure>(7))
            });
            assert_eq!((second, first.join().unwrap()), (Ok(7), Ok(7)));
        });
    }

    /// The cycle is detected while an unrelated thread waits.
    #[test]
    fn an_unrelated_wait_does_not_hide_a_cycle() {
        let (map, (started, wait)) = (&Map::new(), mpsc::channel());
        thread::scope(|scope| {
            let maker = scope.spawn(move || {
                get(map, "slow", || {
                    until_waited_for();
                    started.send(()).unwrap();
                    while map.get("done").is_none() {
                        thread::yield_now();
                    }
                    Ok(1)
                })
            });
            while !map.lock().contains_key("slow") {
                thread::yield_now();
            }
            let waiter = scope.spawn(move || get(map, "slow", || unreachable!("another thread creates it")));
            wait.recv().unwrap();
            creations_that_wait_for_each_other_are_refused();
            get(map, "done", || Ok(1)).unwrap();
            assert_eq!((maker.join().unwrap(), waiter.join().unwrap()), (Ok(1), Ok(1)));
        });
    }

    /// A thread whose awaited value exists no longer waits, though it may not have woken up yet.
    #[test]
    fn a_wait_that_has_ended_is_not_part_of_a_cycle() {
        for _ in 0..200 {
            let (map, (started, wait)) = (&Map::new(), mpsc::channel());
            thread::scope(|scope| {
                let waiter = scope.spawn(move || {
                    get(map, "outer", || {
                        started.send(()).unwrap();
                        get(map, "inner", || Ok(1))
                    })
                });
                let inner = get(map, "inner", || {
                    wait.recv().unwrap();
                    Ok(1)
                });
                assert_eq!((inner, get(map, "outer", || Ok(3)).is_ok()), (Ok(1), true));
                waiter.join().unwrap().unwrap();
            });
        }
    }

    #[test]
    fn after_a_failure_a_waiting_thread_creates_the_value() {
        let (map, (started, wait)) = (&Map::new(), mpsc::channel());
        thread::scope(|scope| {
            let failing = scope.spawn(move || {
                get(map, "a", || {
                    started.send(()).unwrap();
                    until_waited_for();
                    Err(Failure::Own)
                })
            });
            wait.recv().unwrap();
            assert_eq!(get(map, "a", || Ok(5)), Ok(5));
            assert_eq!(failing.join().unwrap(), Err(Failure::Own));
        });
        assert_eq!((map.remove(&"a"), map.remove(&"a"), map.keys()), (Some(5), None, vec![]));
    }

    #[test]
    fn a_creation_that_continues_on_a_new_thread_is_recursive_there() {
        let map = Map::new();
        let value = get(&map, "a", || {
            let on_new_thread = on_new_thread(|| (get(&map, "a", || Ok(2)), get(&map, "b", || Ok(3))));
            assert_eq!(on_new_thread.unwrap().unwrap(), (Err(Failure::Recursive), Ok(3)));
            Ok(1)
        });
        assert_eq!(value, Ok(1));
    }

    #[test]
    fn a_panic_on_a_new_thread_is_returned_and_leaves_no_wait() {
        let this = thread::current().id();
        let payload = on_new_thread(|| panic!("no migrations")).unwrap().unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&"no migrations"));
        assert!(!waits().iter().any(|wait| wait.waiter == this));
    }

    #[test]
    fn a_new_thread_has_the_name_of_its_caller() {
        let name = || thread::current().name().map(str::to_owned);
        assert_eq!(on_new_thread(name).unwrap().unwrap(), name());
    }
}
