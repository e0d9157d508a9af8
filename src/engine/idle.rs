//! Idle connections, which their engines keep for the next unit of work, and their limits.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::sync::Recovered;

/// The idle items of one engine.
pub(crate) struct Idle<T: 'static> {
    budget: &'static Budget<T>,
    waiting: Mutex<Waiting<T>>,
    /// Whether the budget's list contains it.
    is_listed: AtomicBool,
}

struct Waiting<T> {
    items: Vec<T>,
    /// Whether no more items are accepted.
    is_closed: bool,
}

/// The limits on idle items: in each engine, and in all engines together.
///
/// If a closure of a connection captures the engine, the engine can be leaked with its idle items. Such an engine must
/// not use up the budget of others. So beyond the limit the oldest item is dropped, from any engine.
pub(crate) struct Budget<T: 'static> {
    in_each: usize,
    in_all: usize,
    count: AtomicUsize,
    /// The engines that may have idle items, in the order in which their items are dropped. To keep the usual case
    /// cheap, the list gets engines only when half of the budget is used. Invariant: engines that are not in the list
    /// have at most that half.
    list: Mutex<VecDeque<Weak<Idle<T>>>>,
}

impl<T> Budget<T> {
    pub(crate) const fn new(in_each: usize, in_all: usize) -> Budget<T> {
        Budget { in_each, in_all, count: AtomicUsize::new(0), list: Mutex::new(VecDeque::new()) }
    }

    fn enter(&self, idle: &Arc<Idle<T>>) {
        if idle.is_listed.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut list = self.list();
        list.push_back(Arc::downgrade(idle));
        if list.len() > 2 * self.in_all {
            let entered = std::mem::take(&mut *list);
            drop(list); // an engine may be freed below
            self.enter_again(entered);
        }
    }

    /// Adds those engines that have idle items to the list again.
    fn enter_again(&self, entered: VecDeque<Weak<Idle<T>>>) {
        for idle in entered.iter().filter_map(Weak::upgrade) {
            idle.is_listed.store(false, Ordering::Relaxed);
            if !idle.lock().items.is_empty() {
                self.enter(&idle);
            }
        }
    }

    /// Takes the oldest item of the first engine that has idle items.
    fn evict(&self) -> Option<T> {
        loop {
            let first = self.list().pop_front()?;
            let Some(idle) = first.upgrade() else { continue };
            idle.is_listed.store(false, Ordering::Relaxed); // before the check; a concurrent `push` would be missed otherwise
            let (oldest, is_empty) = idle.take_oldest();
            if !is_empty && !idle.is_listed.swap(true, Ordering::Relaxed) {
                self.list().push_front(first); // it stays the first until it is empty
            }
            if oldest.is_some() {
                return oldest;
            }
        }
    }

    fn list(&self) -> MutexGuard<'_, VecDeque<Weak<Idle<T>>>> {
        self.list.lock().recovered()
    }
}

impl<T> Idle<T> {
    pub(crate) fn new(budget: &'static Budget<T>, items: Vec<T>) -> Arc<Idle<T>> {
        budget.count.fetch_add(items.len(), Ordering::Relaxed);
        let waiting = Mutex::new(Waiting { items, is_closed: false });
        Arc::new(Idle { budget, waiting, is_listed: AtomicBool::new(false) })
    }

    /// Keeps the item, unless the engine's limit is reached. Beyond the limit of all engines, the oldest item is
    /// dropped.
    pub(crate) fn push(self: &Arc<Self>, item: T) {
        let count = {
            let mut waiting = self.lock();
            if waiting.is_closed || waiting.items.len() >= self.budget.in_each {
                return; // the item is dropped after the lock is released
            }
            // Before another thread can take the item and count it out.
            let count = 1 + self.budget.count.fetch_add(1, Ordering::Relaxed);
            waiting.items.push(item);
            count
        };
        if count > self.budget.in_all / 2 {
            self.budget.enter(self);
        }
        if count > self.budget.in_all {
            drop(self.budget.evict());
        }
    }

    /// Takes the latest item.
    pub(crate) fn pop(&self) -> Option<T> {
        let item = self.lock().items.pop();
        self.uncount(item.iter().len());
        item
    }

    /// Takes all items.
    pub(crate) fn take(&self) -> Vec<T> {
        let items = std::mem::take(&mut self.lock().items);
        self.uncount(items.len());
        items
    }

    /// Takes all items, and accepts no more.
    pub(crate) fn close(&self) -> Vec<T> {
        self.lock().is_closed = true;
        self.take()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().items.len()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Takes the oldest item, and returns whether none is left.
    fn take_oldest(&self) -> (Option<T>, bool) {
        let mut waiting = self.lock();
        let oldest = (!waiting.items.is_empty()).then(|| waiting.items.remove(0));
        let is_empty = waiting.items.is_empty();
        drop(waiting);
        self.uncount(oldest.iter().len());
        (oldest, is_empty)
    }

    fn uncount(&self, count: usize) {
        self.budget.count.fetch_sub(count, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().recovered()
    }
}

impl<T> Drop for Idle<T> {
    fn drop(&mut self) {
        self.uncount(self.lock().items.len());
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn budget(in_each: usize, in_all: usize) -> &'static Budget<u32> {
        Box::leak(Box::new(Budget::new(in_each, in_all)))
    }

    fn used(budget: &Budget<u32>) -> usize {
        budget.count.load(Ordering::Relaxed)
    }

    #[test]
    fn an_engine_keeps_no_more_items_than_its_limit() {
        let budget = budget(2, 100);
        let idle = Idle::new(budget, vec![]);
        (1..=3).for_each(|item| idle.push(item));
        assert_eq!((idle.pop(), idle.pop(), idle.pop(), used(budget)), (Some(2), Some(1), None, 0));
    }

    /// Otherwise the count would be below zero for a moment.
    #[test]
    fn an_item_is_counted_before_another_thread_can_take_it() {
        let budget = budget(4, 100);
        let idle = Idle::new(budget, vec![]);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for item in 0..200_000 {
                    idle.push(item);
                    idle.pop();
                }
                is_over.store(true, Ordering::Relaxed);
            });
            while !is_over.load(Ordering::Relaxed) {
                let waiting = idle.lock();
                assert!(waiting.items.len() <= used(budget), "an item is not counted");
            }
        });
        assert_eq!((idle.len(), used(budget)), (0, 0));
    }

    #[test]
    fn beyond_the_limit_of_all_engines_the_oldest_item_is_dropped() {
        let budget = budget(4, 4);
        let engines: Vec<_> = (0..3).map(|_| Idle::new(budget, vec![])).collect();
        for item in 0..4 {
            engines[0].push(item);
        }
        engines[1].push(4);
        engines[1].push(5);
        assert_eq!((engines[0].take(), engines[1].take(), used(budget)), (vec![2, 3], vec![4, 5], 0));
    }

    /// Engines that were leaked before they came into the list keep up to half of the budget. The rest is enough.
    #[test]
    fn leaked_engines_do_not_use_up_the_budget() {
        let budget = budget(4, 10);
        for item in 0..1_000 {
            let leaked = Idle::new(budget, vec![]);
            leaked.push(item);
            std::mem::forget(leaked);
        }
        let idle = Idle::new(budget, vec![]);
        for item in 0..3 {
            idle.push(item);
        }
        assert_eq!((idle.take(), used(budget)), (vec![0, 1, 2], 7));
    }

    #[test]
    fn freed_engines_are_removed_from_the_list() {
        let budget = budget(4, 10);
        let kept = Idle::new(budget, vec![]);
        (0..4).for_each(|item| kept.push(item));
        let another = Idle::new(budget, vec![1, 2]);
        let lengths = (0..1_000).map(|item| {
            Idle::new(budget, vec![]).push(item);
            budget.list().len()
        });
        assert_eq!(lengths.max(), Some(2 * budget.in_all), "it is cleaned up when it gets longer");
        drop(another);
        assert_eq!((used(budget), kept.take().len(), used(budget)), (4, 4, 0));
    }

    #[test]
    fn engines_are_listed_when_half_of_the_budget_is_used() {
        let budget = budget(10, 10);
        let idle = Idle::new(budget, vec![]);
        (1..=5).for_each(|item| idle.push(item));
        assert!(budget.list().is_empty());
        idle.push(6);
        assert_eq!(budget.list().len(), 1);
    }

    #[test]
    fn a_closed_engine_keeps_no_items() {
        let budget = budget(4, 10);
        let idle = Idle::new(budget, vec![7]);
        assert_eq!((idle.is_closed(), idle.close(), idle.is_closed()), (false, vec![7], true));
        idle.push(8);
        assert_eq!((idle.pop(), used(budget)), (None, 0));
    }

    /// The list is shortened when it has become long.
    #[test]
    fn an_engine_with_idle_items_stays_in_the_list() {
        let budget = budget(4, 10);
        let first = Idle::new(budget, vec![1, 2, 3, 4, 5]);
        let kept = Idle::new(budget, vec![]);
        kept.push(6); // more than half of the budget, so it is listed
        for item in 0..1_000 {
            Idle::new(budget, vec![]).push(item);
        }
        assert_eq!(budget.evict(), Some(6));
        assert_eq!((first.take().len(), used(budget)), (5, 0));
    }
}
