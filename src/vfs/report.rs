//! What is printed of refusals, where a failing test shows it. The caller may only ever see SQLite's "database is locked":
//! of a statement that fails, rusqlite hands on SQLite's own words.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use super::mount::Mount;
use crate::content::origin::Purpose;
use crate::content::refusal::Refusal;
use crate::error::Error;

/// Prints why a connection was refused the writer slot for good.
///
/// Code that retries may be refused thousands of times. So of messages that differ in nothing but times and holders, a
/// thread prints the first, the tenth, the hundredth, and so on. (A test has a thread of its own, most of the time.)
pub(super) fn report(mount: &Mount, purpose: Purpose, refusal: &Refusal) {
    let subject = Subject { engine: mount.id(), purpose, code: refusal.extended_code() };
    let count = TOLD.try_with(|told| told.borrow_mut().count(subject)).unwrap_or(1);
    if !is_power_of_ten(count) {
        return;
    }
    let message = Error::refused(&mount.name(), refusal);
    match count {
        1 => eprintln!("rusqlite-fixtures: {message}"),
        _ => eprintln!("rusqlite-fixtures: {message} (the same for the {count}th time on this thread)"),
    }
}

/// After how long it is printed what a connection waits for.
pub(super) const REPORTED_AFTER: Duration = Duration::from_secs(1);

/// The same for one that seems to wait for its own thread.
pub(super) const SELF_REPORTED_AFTER: Duration = Duration::from_millis(100);

/// Prints what a connection waits for that has been waiting for long.
pub(super) fn report_long_wait(mount: &Mount, refusal: &Refusal) {
    eprintln!("rusqlite-fixtures: {}", Error::still_waiting(&mount.name(), refusal));
}

/// What a message is about.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Subject {
    engine: u64,
    /// What was refused.
    purpose: Purpose,
    /// Why: a time-out or a serialization failure.
    code: i32,
}

thread_local! {
    static TOLD: RefCell<Told> = const { RefCell::new(Told(VecDeque::new())) };
}

/// How often there was something to tell of each subject. The subjects of long ago are forgotten.
struct Told(VecDeque<(Subject, usize)>);

/// How many subjects a thread remembers.
const SUBJECTS: usize = 32;

impl Told {
    fn count(&mut self, subject: Subject) -> usize {
        if let Some((_, count)) = self.0.iter_mut().find(|(other, _)| *other == subject) {
            *count += 1;
            return *count;
        }
        if self.0.len() == SUBJECTS {
            self.0.pop_front();
        }
        self.0.push_back((subject, 1));
        1
    }
}

fn is_power_of_ten(count: usize) -> bool {
    count > 0 && 10usize.pow(count.ilog10()) == count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(engine: u64) -> Subject {
        Subject { engine, purpose: Purpose::Uri, code: 5 }
    }

    #[test]
    fn messages_are_counted_by_subject() {
        let mut told = Told(VecDeque::new());
        let counts: Vec<usize> = [1, 1, 2, 1].map(|engine| told.count(subject(engine))).into();
        assert_eq!(counts, [1, 2, 1, 3]);
        assert_eq!(told.count(Subject { code: 517, ..subject(1) }), 1);
    }

    #[test]
    fn the_subjects_of_long_ago_are_forgotten() {
        let mut told = Told(VecDeque::new());
        (0..=SUBJECTS as u64).for_each(|engine| assert_eq!(told.count(subject(engine)), 1));
        assert_eq!(told.0.len(), SUBJECTS);
        assert_eq!(told.count(subject(1)), 2);
        assert_eq!(told.count(subject(0)), 1, "it is told again");
    }

    #[test]
    fn of_many_messages_few_are_printed() {
        let printed: Vec<usize> = (0..=20_000).filter(|count| is_power_of_ten(*count)).collect();
        assert_eq!(printed, [1, 10, 100, 1_000, 10_000]);
    }
}
