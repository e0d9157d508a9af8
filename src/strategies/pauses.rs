//! What holds the threads up, chosen by a property.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::hammer::{Hammer, Pause};

/// Pauses of so many threads at marks, for [`pause_at`](Hammer::pause_at): for a time, of one of them or of all, or until
/// others have passed. Shrinks to none.
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

/// How long a worker is held up for a time: as long as several transactions take.
const TIME: Duration = Duration::from_micros(300);

/// How long it waits for others, which may be waiting for it.
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
