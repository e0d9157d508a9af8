//! What the work gets: its worker thread in one round, and random numbers.

use std::marker::PhantomData;
use std::ops::RangeBounds;

use fastrand::Rng;

use crate::marks;

/// A worker thread of a [`Hammer`](super::Hammer), in one round.
///
/// A worker stays on its thread. The hammer does not observe marks that other threads reach, such as threads that the
/// work starts.
#[derive(Debug)]
pub struct Worker {
    number: usize,
    round: usize,
    threads: usize,
    random: Random,
    not_send: PhantomData<*const ()>,
}

impl Worker {
    pub(super) fn new(number: usize, round: usize, threads: usize, random: Random) -> Worker {
        Worker { number, round, threads, random, not_send: PhantomData }
    }

    /// Returns the worker's number, counted from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Returns the number of the round, counted from 0.
    pub fn round(&self) -> usize {
        self.round
    }

    /// Returns the number of worker threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Returns a random number generator. Each worker draws other numbers in each round, and the same numbers again in
    /// a run with the same [seed](super::Hammer::seed).
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Marks a place in the code where the order of threads matters.
    pub fn reached(&self, mark: &'static str) {
        marks::reached(mark);
    }
}

/// A random number generator of one [`Worker`] in one round, seeded by the run's [seed](super::Hammer::seed).
#[derive(Clone, Debug)]
pub struct Random(Rng);

impl Random {
    pub(super) fn with_seed(seed: u64) -> Random {
        Random(Rng::with_seed(seed))
    }

    /// Returns a number in `range`; `..` is all of `u64`.
    ///
    /// # Panics
    /// When the range is empty.
    pub fn u64(&mut self, range: impl RangeBounds<u64>) -> u64 {
        self.0.u64(range)
    }

    /// Returns `true` or `false`, with equal probability.
    pub fn bool(&mut self) -> bool {
        self.0.bool()
    }

    /// Returns a number from 0 to 1, without 1 itself.
    pub fn f64(&mut self) -> f64 {
        self.0.f64()
    }

    /// Puts the elements of `slice` into a random order.
    pub fn shuffle<T>(&mut self, slice: &mut [T]) {
        self.0.shuffle(slice);
    }
}
