//! Printing of refusals, where a failing test shows it. The caller may see only SQLite's "database is locked":
//! rusqlite passes on SQLite's own message for a statement that fails.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use super::mount::Mount;
use crate::content::origin::Purpose;
use crate::content::refusal::Refusal;
use crate::error::Error;

/// Prints why a connection was finally refused the writer slot.
///
/// Code that retries may be refused thousands of times. So if messages differ only in times and holders, a thread
/// prints only the 1st, 10th, 100th, and so on. (Usually each test has its own thread.)
pub(super) fn report(mount: &Mount, purpose: Purpose, refusal: &Refusal) {
    let subject = Subject { engine: mount.id(), purpose, code: refusal.extended_code() };
    let count = REPORTED.try_with(|reported| reported.borrow_mut().count(subject)).unwrap_or(1);
    if !is_power_of_ten(count) {
        return;
    }
    let message = Error::refused(&mount.name(), refusal);
    match count {
        1 => eprintln!("rusqlite-fixtures: {message}"),
        _ => eprintln!("rusqlite-fixtures: {message} (the same for the {count}th time on this thread)"),
    }
}

/// How long a connection waits before its wait is printed.
pub(super) const REPORTED_AFTER: Duration = Duration::from_secs(1);

/// The same time for a connection that seems to wait for its own thread.
pub(super) const SELF_REPORTED_AFTER: Duration = Duration::from_millis(100);

/// Prints what a connection waits for, after a long wait.
pub(super) fn report_long_wait(mount: &Mount, refusal: &Refusal) {
    eprintln!("rusqlite-fixtures: {}", Error::still_waiting(&mount.name(), refusal));
}

/// The subject of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Subject {
    engine: u64,
    /// What was refused.
    purpose: Purpose,
    /// Why: a timeout or a serialization failure.
    code: i32,
}

thread_local! {
    static REPORTED: RefCell<Reported> = const { RefCell::new(Reported(VecDeque::new())) };
}

/// How many messages there were for each subject. The oldest subjects are forgotten.
struct Reported(VecDeque<(Subject, usize)>);

/// The number of subjects that a thread remembers.
const SUBJECTS: usize = 32;

impl Reported {
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
        let mut reported = Reported(VecDeque::new());
        let counts: Vec<usize> = [1, 1, 2, 1].map(|engine| reported.count(subject(engine))).into();
        assert_eq!(counts, [1, 2, 1, 3]);
        assert_eq!(reported.count(Subject { code: 517, ..subject(1) }), 1);
    }

    #[test]
    fn the_subjects_of_long_ago_are_forgotten() {
        let mut reported = Reported(VecDeque::new());
        (0..=SUBJECTS as u64).for_each(|engine| assert_eq!(reported.count(subject(engine)), 1));
        assert_eq!(reported.0.len(), SUBJECTS);
        assert_eq!(reported.count(subject(1)), 2);
        assert_eq!(reported.count(subject(0)), 1, "it is reported again");
    }

    #[test]
    fn of_many_messages_few_are_printed() {
        let printed: Vec<usize> = (0..=20_000).filter(|count| is_power_of_ten(*count)).collect();
        assert_eq!(printed, [1, 10, 100, 1_000, 10_000]);
    }
}
