//! The newest statements of each thread, for a test that fails without a recording.
//!
//! A thread notes the text of each statement in a ring of its own, because that has to cost next to nothing. There are no
//! values, because SQLite would have to write them into a copy of the text.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, Thread};

use super::sql;
use crate::sync::Recovered;

/// A statement that began to run, and its error.
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    /// Its number in the process. Later ones have higher numbers.
    pub(crate) number: u64,
    pub(crate) thread: Thread,
    /// In one line, and without its end if it is long. Empty: a statement that perhaps did not begin to run.
    pub(crate) sql: String,
    /// SQLite's message, if it is known that the statement failed.
    pub(crate) error: Option<String>,
}

/// The newest statements of a thread, as they were noted: reading them takes longer than copying them.
#[derive(Clone)]
pub(crate) struct Noted {
    thread: Thread,
    entries: Vec<Entry>,
}

struct Ring {
    thread: Thread,
    /// At most `KEPT`.
    entries: Vec<Entry>,
    /// The index of the oldest entry, once there are `KEPT`.
    oldest: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    number: u64,
    connection: u64,
    len: usize,
    is_cut: bool,
    text: [u8; MAX_TEXT],
}

/// The number of statements that each thread keeps.
const KEPT: usize = 32;

/// The bytes of a text that are kept.
const MAX_TEXT: usize = 240;

/// Whether statements are noted.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// The number of the latest statement.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The rings of the threads that are running.
static RINGS: Mutex<Vec<Weak<Mutex<Ring>>>> = Mutex::new(Vec::new());

thread_local! {
    static RING: OnceCell<Arc<Mutex<Ring>>> = const { OnceCell::new() };
}

/// Starts to note statements.
pub(crate) fn turn_on() {
    IS_ON.store(true, Ordering::Relaxed);
}

#[inline]
pub(crate) fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// Returns the number of the latest statement of the process.
pub(crate) fn now() -> u64 {
    NUMBER.load(Ordering::Relaxed)
}

/// Notes that a statement begins to run on this thread.
#[inline]
pub(crate) fn note(connection: u64, sql: &[u8]) {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed) + 1;
    // A thread that is ending has no ring any more.
    let _ = RING.try_with(|ring| ring.get_or_init(new_ring).lock().recovered().push(number, connection, sql));
}

/// Returns the statements after this number of the connections that `is_of` selects, of all threads that are running.
pub(crate) fn since(number: u64, mut is_of: impl FnMut(u64) -> bool) -> Vec<Noted> {
    let rings: Vec<_> = RINGS.lock().recovered().iter().filter_map(Weak::upgrade).collect();
    let noted = rings.iter().map(|ring| ring.lock().recovered().noted(|entry| entry.number > number));
    let mut noted: Vec<Noted> = noted.filter(|noted| !noted.entries.is_empty()).collect();
    let mut known = (0, false);
    for noted in &mut noted {
        noted.entries.retain(|entry| {
            if entry.connection != known.0 {
                known = (entry.connection, is_of(entry.connection));
            }
            known.1
        });
    }
    noted.retain(|noted| !noted.entries.is_empty());
    noted
}

/// Returns the newest statements of this thread on a connection.
pub(crate) fn of_this_thread(connection: u64) -> Option<Noted> {
    let noted = |ring: &Arc<Mutex<Ring>>| ring.lock().recovered().noted(|entry| entry.connection == connection);
    RING.try_with(|ring| ring.get().map(noted)).ok().flatten()
}

/// Reads the statements after this number, in their order.
pub(crate) fn read<'a>(noted: impl Iterator<Item = &'a Noted>, since: u64) -> Vec<Recent> {
    let mut read: Vec<Recent> =
        noted.flat_map(|noted| noted.entries.iter().map(|entry| entry.read(&noted.thread))).collect();
    read.retain(|recent| recent.number > since && !sql::is_of_virtual_table(&recent.sql));
    read.sort_by_key(|recent| recent.number);
    read.dedup_by_key(|recent| recent.number);
    read
}

fn new_ring() -> Arc<Mutex<Ring>> {
    let ring = Arc::new(Mutex::new(Ring { thread: thread::current(), entries: Vec::new(), oldest: 0 }));
    let mut rings = RINGS.lock().recovered();
    rings.retain(|ring| ring.strong_count() > 0);
    rings.push(Arc::downgrade(&ring));
    ring
}

impl Noted {
    /// Returns the number of the latest one.
    pub(crate) fn latest(&self) -> Option<u64> {
        self.entries.iter().map(|entry| entry.number).max()
    }
}

impl Ring {
    fn noted(&self, mut is_one: impl FnMut(&Entry) -> bool) -> Noted {
        let entries = self.entries.iter().filter(|entry| is_one(entry)).copied().collect();
        Noted { thread: self.thread.clone(), entries }
    }

    fn push(&mut self, number: u64, connection: u64, sql: &[u8]) {
        if self.entries.len() < KEPT {
            self.entries.push(Entry::EMPTY);
        } else {
            self.oldest = (self.oldest + 1) % KEPT;
        }
        let newest = (self.oldest + self.entries.len() - 1) % KEPT;
        self.entries[newest].write(number, connection, sql);
    }
}

impl Entry {
    const EMPTY: Entry = Entry { number: 0, connection: 0, len: 0, is_cut: false, text: [0; MAX_TEXT] };

    fn write(&mut self, number: u64, connection: u64, sql: &[u8]) {
        self.number = number;
        self.connection = connection;
        self.len = sql.len().min(MAX_TEXT);
        self.is_cut = sql.len() > MAX_TEXT;
        self.text[..self.len].copy_from_slice(&sql[..self.len]);
    }

    fn read(&self, thread: &Thread) -> Recent {
        let text = self.text[..self.len].utf8_chunks().next().map_or("", |chunk| chunk.valid());
        let end = if self.is_cut { " …" } else { "" };
        let sql = sql::in_one_line(sql::alone(text)) + end;
        Recent { number: self.number, thread: thread.clone(), sql, error: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of connections that no other test has.
    static CONNECTION: AtomicU64 = AtomicU64::new(1 << 60);

    fn texts(since_number: u64, connection: u64) -> Vec<String> {
        let noted = since(since_number, |other| other == connection);
        read(noted.iter(), 0).into_iter().map(|recent| recent.sql).collect()
    }

    #[test]
    fn the_newest_statements_of_a_thread_are_kept() {
        let connection = CONNECTION.fetch_add(1, Ordering::Relaxed);
        let began = now();
        for number in 0..KEPT + 5 {
            note(connection, format!("SELECT {number};").as_bytes());
            let first = (number + 1).saturating_sub(KEPT);
            let expected: Vec<String> = (first..=number).map(|number| format!("SELECT {number}")).collect();
            assert_eq!(texts(began, connection), expected);
        }
        let middle = now();
        note(connection, b"COMMIT");
        note(connection + (1 << 61), b"SELECT 'of another connection'");
        assert_eq!(texts(middle, connection), ["COMMIT"]);
    }

    #[test]
    fn a_long_statement_is_cut_at_a_character() {
        let connection = CONNECTION.fetch_add(1, Ordering::Relaxed);
        let began = now();
        let sql = format!("SELECT '{}", "ü".repeat(200));
        note(connection, sql.as_bytes());
        note(connection, "SELECT\n   1".as_bytes());
        note(connection, &sql.as_bytes()[..MAX_TEXT]);
        let texts = texts(began, connection);
        assert_eq!(texts[1], "SELECT 1");
        assert!(sql.starts_with(texts[0].strip_suffix(" …").unwrap()), "{texts:?}");
        assert!(texts[0].len() > MAX_TEXT - 2, "{texts:?}");
        assert!(!texts[2].ends_with('…'), "it is as long as what is kept: {texts:?}");
    }

    #[test]
    fn statements_of_threads_are_merged_in_their_order_while_the_threads_run() {
        let connection = CONNECTION.fetch_add(1, Ordering::Relaxed);
        let began = now();
        note(connection, b"BEGIN");
        thread::scope(|scope| {
            let note_and_look = || {
                note(connection, b"SELECT 1");
                texts(began, connection)
            };
            let seen = thread::Builder::new().spawn_scoped(scope, note_and_look).unwrap().join().unwrap();
            assert_eq!(seen, ["BEGIN", "SELECT 1"]);
        });
        note(connection, b"COMMIT");
        assert_eq!(texts(began, connection), ["BEGIN", "COMMIT"]);
    }
}
