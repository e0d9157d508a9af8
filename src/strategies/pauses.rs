//! Generates pauses for the threads of a hammer.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::hammer::{Hammer, Pause};

/// Generates hammers with this number of threads, and with up to three random pauses at the marks.
///
/// Each pause lasts for a time (for one thread or all threads), waits for all threads, or lets the threads pass in some
/// order. A hammer shrinks to one without pauses.
///
/// # Panics
/// When there are no marks.
///
/// ```
/// # use proptest::prelude::*;
/// use rusqlite_fixtures::hammer::{Hammer, SLOT_ASKED, SLOT_GIVEN_BACK};
/// use rusqlite_fixtures::strategies::hammers;
///
/// # fn main() {
/// let marks = &[SLOT_ASKED, SLOT_GIVEN_BACK];
/// let hammers = hammers(Hammer::new().rounds(1), 4, marks);
/// proptest!(ProptestConfig::with_cases(20), |(hammer in hammers)| {
///     hammer.run(|_worker| Ok(())).assert_no_failures();
/// });
/// # }
/// ```
pub fn hammers(hammer: Hammer, threads: usize, marks: &'static [&'static str]) -> impl Strategy<Value = Hammer> {
    assert!(!marks.is_empty(), "a pause needs a mark");
    let with = move |pauses: Vec<(&'static str, Pause)>| {
        let hammer = hammer.clone().threads(threads);
        pauses.into_iter().fold(hammer, |hammer, (mark, pause)| hammer.pause_at(mark, pause))
    };
    vec((proptest::sample::select(marks), pause(threads)), 0..4).prop_map(with)
}

/// How long a timed pause lasts: as long as several transactions.
const TIME: Duration = Duration::from_micros(300);

/// How long a worker waits for others, which may be waiting for it.
const PATIENCE: Duration = Duration::from_millis(2);

fn pause(threads: usize) -> impl Strategy<Value = Pause> {
    let order = Just((0..threads).collect::<Vec<_>>()).prop_shuffle();
    prop_oneof![
        (0..threads).prop_map(|worker| Pause::time(TIME).of_worker(worker)),
        Just(Pause::up_to(TIME)),
        Just(Pause::for_all().patience(PATIENCE)),
        order.prop_map(|order| Pause::in_order(order).patience(PATIENCE)),
    ]
}
