//! The queue of waiters for a writer slot, in order of arrival. It has no lock, so it is tested on one thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::origin::Origin;
use crate::sync::Condvar;

/// The identity of a connection that asks for the writer slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(u64);

impl Token {
    pub(crate) fn new() -> Token {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Token(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A place in a queue. A waiter that leaves the queue may keep its place, and returns ahead of waiters that arrived later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    number: u64,
    since: Instant,
}

impl Place {
    /// Creates a place behind all earlier ones.
    pub(crate) fn new() -> Place {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Place { number: NEXT.fetch_add(1, Ordering::Relaxed), since: Instant::now() }
    }

    #[cfg(test)]
    pub(crate) fn is_before(&self, other: &Place) -> bool {
        self.number < other.number
    }

    /// Returns how long its owner has been waiting, in the queue or not.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

pub(crate) struct Waiter {
    pub(crate) token: Token,
    pub(crate) origin: Origin,
    pub(crate) place: Place,
    pub(crate) has_read: bool,
    pub(crate) woken: Arc<Condvar>,
    pub(crate) stage: Stage,
}

/// The stage of a waiter.
///
/// Waking a thread takes far longer than most units of work. So while the first waiter is waking up (`Called`), any
/// running thread may take the slot. Once the waiter is awake, the slot is handed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Asleep,
    Called,
    Awake,
}

/// How often the last waiter checks whether a reservation has expired. Nothing notifies it of that.
const RECHECK: Duration = Duration::from_millis(20);

/// The waiters that are in the queue. A waiter that is away may keep a place, but is not in the queue.
#[derive(Default)]
pub(crate) struct Queue {
    /// By place number.
    waiters: BTreeMap<u64, Waiter>,
    /// The place numbers of waiters that build on content they have read. They are woken when it is replaced.
    readers: BTreeSet<u64>,
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.waiters.len()
    }

    pub(crate) fn enter(&mut self, waiter: Waiter) {
        if waiter.has_read {
            self.readers.insert(waiter.place.number);
        }
        self.waiters.insert(waiter.place.number, waiter);
    }

    /// Removes the waiter, if it is still in the queue.
    pub(crate) fn leave(&mut self, place: Place) {
        let was_last = self.is_last(place);
        self.readers.remove(&place.number);
        self.waiters.remove(&place.number);
        if was_last && let Some((_, last)) = self.waiters.last_key_value() {
            last.woken.notify_one(); // from now on, it checks for expired reservations
        }
    }

    pub(crate) fn first(&self) -> Option<&Waiter> {
        self.waiters.first_key_value().map(|(_, first)| first)
    }

    pub(crate) fn first_mut(&mut self) -> Option<&mut Waiter> {
        self.waiters.first_entry().map(|first| first.into_mut())
    }

    pub(crate) fn take_first(&mut self) -> Option<Waiter> {
        let (number, first) = self.waiters.pop_first()?;
        self.readers.remove(&number);
        Some(first)
    }

    /// Returns the first waiter, if it is before this place.
    pub(crate) fn first_before(&self, place: Place) -> Option<&Waiter> {
        self.first().filter(|first| first.place.number < place.number)
    }

    fn is_last(&self, place: Place) -> bool {
        self.waiters.last_key_value().is_some_and(|(number, _)| *number == place.number)
    }

    /// Records that a waiter is awake and has found the slot taken. Returns whether it was called and is the first.
    ///
    /// A called waiter is no longer the first if another one has returned to a place before it. It goes back to sleep, so
    /// it has to be called again.
    pub(crate) fn mark_awake(&mut self, place: Place) -> bool {
        let is_first = self.first_before(place).is_none();
        let called = self.waiters.get_mut(&place.number).filter(|waiter| waiter.stage == Stage::Called);
        let Some(waiter) = called else { return false };
        waiter.stage = if is_first { Stage::Awake } else { Stage::Asleep };
        is_first
    }

    /// Returns how long a waiter may sleep, unless it is called.
    ///
    /// The last waiter checks for expired reservations; the others have nothing to check. The last one does it because it
    /// stays longest: passing this duty to another waiter costs a wake-up, and is rarely necessary.
    pub(crate) fn longest_sleep(&self, place: Place) -> Duration {
        if self.is_last(place) { RECHECK } else { Duration::MAX }
    }

    /// Wakes the waiters that build on content that has just been replaced.
    pub(crate) fn wake_readers(&mut self) {
        let readers = std::mem::take(&mut self.readers);
        readers.iter().filter_map(|number| self.waiters.get(number)).for_each(|reader| reader.woken.notify_one());
    }

    /// Wakes the waiters whose sleep has a time limit, as a clock would. A model has no clock.
    #[cfg(all(test, shuttle))]
    pub(crate) fn pass_time(&self) {
        self.waiters.values().for_each(|waiter| waiter.woken.pass_time());
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::content::origin::Purpose;

    fn waiter(place: Place, has_read: bool) -> Waiter {
        let (token, origin) = (Token::new(), Origin::here(Purpose::Uri));
        Waiter { token, origin, place, has_read, woken: Arc::default(), stage: Stage::Asleep }
    }

    fn queue(places: &[Place]) -> Queue {
        let mut queue = Queue::default();
        places.iter().for_each(|place| queue.enter(waiter(*place, false)));
        queue
    }

    fn first(queue: &Queue) -> Option<u64> {
        queue.first().map(|waiter| waiter.place.number)
    }

    #[test]
    fn a_waiter_that_returns_keeps_its_place() {
        let [one, two, three] = [(); 3].map(|()| Place::new());
        let mut queue = queue(&[two, three]);
        assert!(queue.first_before(one).is_none(), "waiters that arrived later are not before it");
        assert_eq!(queue.first_before(three).map(|waiter| waiter.place.number), Some(two.number));
        queue.enter(waiter(one, false));
        assert_eq!(first(&queue), Some(one.number));
        queue.leave(one);
        assert_eq!(first(&queue), Some(two.number));
        assert_eq!(queue.take_first().map(|waiter| waiter.place.number), Some(two.number));
        queue.leave(two); // it is no longer in the queue
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn only_the_last_waiter_checks_for_expired_reservations() {
        let places = [(); 2000].map(|()| Place::new());
        let mut queue = queue(&places);
        let watch = |queue: &Queue| -> Vec<u64> {
            let is_on_watch = |place: &&Place| queue.longest_sleep(**place) < Duration::MAX;
            places.iter().filter(is_on_watch).map(|place| place.number).collect()
        };
        assert_eq!(watch(&queue), [places[1999].number]);
        queue.leave(places[1999]);
        assert_eq!(watch(&queue), [places[1998].number]);
        queue.leave(places[0]);
        assert_eq!(watch(&queue), [places[1998].number]);
    }

    #[test]
    fn a_called_waiter_that_is_no_longer_the_first_can_be_called_again() {
        let [one, two] = [(); 2].map(|()| Place::new());
        let mut queue = queue(&[two]);
        assert!(!queue.mark_awake(two), "it was not called");
        queue.first_mut().unwrap().stage = Stage::Called;
        queue.enter(waiter(one, false));
        assert!(!queue.mark_awake(two));
        queue.leave(one);
        assert_eq!(queue.first().unwrap().stage, Stage::Asleep);
        queue.first_mut().unwrap().stage = Stage::Called;
        assert!(queue.mark_awake(two));
        assert_eq!(queue.first().unwrap().stage, Stage::Awake);
        assert!(!queue.mark_awake(two), "it wakes up once");
    }

    #[test]
    fn waiters_that_have_read_are_woken_once() {
        let [one, two, three] = [(); 3].map(|()| Place::new());
        let mut queue = queue(&[one]);
        queue.enter(waiter(two, true));
        queue.enter(waiter(three, true));
        assert_eq!(queue.readers, BTreeSet::from([two.number, three.number]));
        queue.leave(two);
        assert_eq!(queue.readers, BTreeSet::from([three.number]));
        queue.wake_readers();
        assert!(queue.readers.is_empty());
        assert_eq!(queue.len(), 2, "they leave the queue when they run");
    }
}
