//! The right to build an image: a lock on a file. In the file, the holder of the lock notes which lock it waits for.
//!
//! If two templates need each other and two processes build them, each process waits for the other's lock. The files show
//! this deadlock. Then one process builds itself what the other is building, and so reaches its own template, as it would
//! without the other process; `OnceMap` refuses that with an error. A slow build fails no test.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::{is_ours, os, report};
use crate::once_map;
use crate::sync::Recovered;
use crate::sync::thread::{self, ThreadId};

/// A lock file that this thread has locked. Dropping it unlocks the file. The system unlocks it too when the process
/// ends, even by a crash.
pub(super) struct LockFile {
    path: PathBuf,
}

/// How long to wait for another process. A longer build most likely hangs, for example in a debugger.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// How long to wait before a message is printed.
const REPORTED_AFTER: Duration = Duration::from_secs(5);

/// How long a cycle has to be observed before it counts as a deadlock: a note may be stale for a moment.
const CERTAIN_AFTER: Duration = Duration::from_millis(200);

/// The lock files that this process has locked.
static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new());

struct Held {
    path: PathBuf,
    by: ThreadId,
    file: File,
    /// The note that is in the file.
    note: Note,
}

/// The note in a lock file about the process that has locked it. It helps other processes, but they work without it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    process: u32,
    /// The name of the lock file that this one's holder waits for.
    waits_for: Option<String>,
}

impl LockFile {
    /// Locks the file, and waits while another process has it locked. Returns `None` if the wait takes longer than
    /// `patience`, or if the holder waits for this thread. The reason is printed on stderr.
    pub(super) fn acquire(path: &Path, patience: Duration) -> io::Result<Option<LockFile>> {
        let file = os::open_private(path)?;
        let mut wait = None;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(LockFile::hold(path, file))),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) => {}
            }
            if !wait.get_or_insert_with(|| Wait::begin(path)).continues(patience) {
                return Ok(None);
            }
        }
    }

    fn hold(path: &Path, file: File) -> LockFile {
        let (path, by) = (path.to_owned(), thread::current().id());
        let note = Note { process: process::id(), waits_for: None };
        let mut held = Held { path: path.clone(), by, file, note };
        held.write_note();
        all_held().push(held);
        LockFile { path }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        all_held().retain(|held| held.path != self.path);
    }
}

fn all_held() -> MutexGuard<'static, Vec<Held>> {
    HELD.lock().recovered()
}

impl Held {
    fn set_waits_for(&mut self, waits_for: Option<String>) {
        if self.note.waits_for != waits_for {
            self.note.waits_for = waits_for;
            self.write_note();
        }
    }

    /// Ignores errors: other processes only lack the note then.
    fn write_note(&mut self) {
        let text = self.note.to_string();
        let _ = self.file.rewind();
        let _ = self.file.write_all(text.as_bytes()).and_then(|()| self.file.set_len(text.len() as u64));
    }
}

impl Note {
    /// Reads the note. `None` if it can't be read, as on systems where a locked file can't be read (Windows).
    fn read(path: &Path) -> Option<Note> {
        Note::parse(&fs::read_to_string(path).ok()?)
    }

    fn parse(text: &str) -> Option<Note> {
        let mut lines = text.strip_suffix('\n')?.lines();
        let process = lines.next()?.strip_prefix("process ")?.parse().ok()?;
        let waits_for = lines.next().and_then(|line| line.strip_prefix("waits for ")).map(str::to_owned);
        Some(Note { process, waits_for })
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "process {}", self.process)?;
        self.waits_for.iter().try_for_each(|name| writeln!(f, "waits for {name}"))
    }
}

/// The wait of this thread for a file that is locked by another thread or process.
struct Wait<'a> {
    path: &'a Path,
    start: Instant,
    /// When the holder was first seen to wait for this thread.
    cycle_since: Option<Instant>,
    is_reported: bool,
}

impl Wait<'_> {
    fn begin(path: &Path) -> Wait<'_> {
        Wait { path, start: Instant::now(), cycle_since: None, is_reported: false }
    }

    /// Sleeps for a moment and returns true, or returns false if the wait is over.
    fn continues(&mut self, patience: Duration) -> bool {
        let waited = self.start.elapsed();
        if waited >= patience {
            let (waited, holder) = (waited.as_secs(), self.holder());
            report(&format!("waited {waited} s for {holder}, which may hang; this process builds the template itself"));
            return false;
        }
        if self.is_in_cycle() {
            let holder = self.holder();
            report(&format!("{holder} waits for a template that this process builds; this process builds both"));
            return false;
        }
        if self.is_to_be_reported(waited) {
            report(&format!("waiting for {}, which builds a template", self.holder()));
        }
        std::thread::sleep(pause_after(waited));
        true
    }

    /// Returns whether a message has to be printed now, which is once.
    fn is_to_be_reported(&mut self, waited: Duration) -> bool {
        waited >= REPORTED_AFTER && !std::mem::replace(&mut self.is_reported, true)
    }

    fn holder(&self) -> String {
        let process =
            Note::read(self.path).map_or("another process".to_owned(), |note| format!("process {}", note.process));
        format!("{process} (it has locked `{}`)", self.path.display())
    }

    /// Returns whether the holder of the file has been waiting for this thread for `CERTAIN_AFTER`.
    fn is_in_cycle(&mut self) -> bool {
        let own = self.note_in_own_files();
        if !leads_to(self.path, &own) {
            self.cycle_since = None;
            return false;
        }
        self.cycle_since.get_or_insert_with(Instant::now).elapsed() >= CERTAIN_AFTER
    }

    /// Notes what this thread waits for in all files whose holders wait for this thread, and returns their paths. These are
    /// the files that it has locked, and the files of threads that wait for what it builds.
    fn note_in_own_files(&self) -> Vec<PathBuf> {
        let waiting = once_map::waiting_for(thread::current().id());
        let mut all = all_held();
        let own = all.iter_mut().filter(|held| waiting.contains(&held.by));
        own.map(|held| {
            held.set_waits_for(name(self.path));
            held.path.clone()
        })
        .collect()
    }
}

/// Returns how long to sleep before the next check: in proportion to the wait so far, so that it adds little to the wait.
fn pause_after(waited: Duration) -> Duration {
    (waited / 8).clamp(Duration::from_millis(1), Duration::from_millis(50))
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let name = name(self.path);
        let mut all = all_held();
        // Another thread that waits for the same file writes its note again.
        all.iter_mut().filter(|held| held.note.waits_for == name).for_each(|held| held.set_waits_for(None));
    }
}

fn name(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

/// Returns whether the holder of the file waits for one of these files, directly or through other holders.
fn leads_to(path: &Path, files: &[PathBuf]) -> bool {
    const MOST: usize = 100; // otherwise a cycle without this thread would never end
    let next = |path: &PathBuf| {
        let waits_for = Note::read(path)?.waits_for.filter(|name| is_ours(name))?;
        Some(path.with_file_name(waits_for))
    };
    std::iter::successors(Some(path.to_owned()), next).take(MOST).any(|path| files.contains(&path))
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    const FOR_EVER: Duration = Duration::from_secs(60);

    fn folder_with_files() -> (tempfile::TempDir, [PathBuf; 3]) {
        let folder = tempfile::tempdir().unwrap();
        let path = |letter: &str| folder.path().join(format!("{letter}-0123456789abcdef0123456789abcdef.lock"));
        let paths = ["a", "b", "c"].map(path);
        (folder, paths)
    }

    #[test]
    fn a_long_wait_is_reported_once() {
        let mut wait = Wait::begin(Path::new("a.lock"));
        let seconds = [0, 4, 5, 6, 60].map(|seconds| wait.is_to_be_reported(Duration::from_secs(seconds)));
        assert_eq!(seconds, [false, false, true, false, false]);
    }

    #[test]
    fn a_wait_checks_less_and_less_often() {
        let pauses = [0, 8, 160, 400, 60_000].map(|waited| pause_after(Duration::from_millis(waited)).as_millis());
        assert_eq!(pauses, [1, 1, 20, 50, 50]);
    }

    #[test]
    fn a_note_is_read_as_it_was_written() {
        for waits_for in [None, Some("b.lock".to_owned())] {
            let note = Note { process: 17, waits_for };
            assert_eq!(Note::parse(&note.to_string()), Some(note));
        }
        for torn in ["", "process", "process 1", "process 17\nwaits for b.lo", "waits for b.lock\n"] {
            assert_eq!(Note::parse(torn), None, "{torn:?}");
        }
    }

    #[test]
    fn patience_is_bounded() {
        let (_folder, [path, ..]) = folder_with_files();
        let held = LockFile::acquire(&path, FOR_EVER).unwrap().unwrap();
        let start = Instant::now();
        assert!(LockFile::acquire(&path, Duration::from_millis(30)).unwrap().is_none());
        assert!(start.elapsed() >= Duration::from_millis(30));
        drop(held);
        assert!(LockFile::acquire(&path, Duration::ZERO).unwrap().is_some(), "it is free again");
    }

    #[test]
    fn a_wait_of_a_thread_for_itself_is_detected() {
        let (_folder, [path, ..]) = folder_with_files();
        let _held = LockFile::acquire(&path, FOR_EVER).unwrap().unwrap();
        assert!(LockFile::acquire(&path, FOR_EVER).unwrap().is_none());
    }

    /// The same as between processes, because notes are read from the files.
    #[test]
    fn a_deadlock_of_threads_is_detected() {
        let (_folder, [a, b, c]) = folder_with_files();
        let barrier = std::sync::Barrier::new(3);
        let acquired = |own: &Path, other: &Path| {
            let _own = LockFile::acquire(own, FOR_EVER).unwrap().unwrap();
            barrier.wait();
            LockFile::acquire(other, FOR_EVER).unwrap().is_some()
        };
        let acquired = std::thread::scope(|scope| {
            let threads = [(&a, &b), (&b, &c), (&c, &a)].map(|(own, other)| scope.spawn(|| acquired(own, other)));
            threads.map(|thread| thread.join().unwrap())
        });
        assert!(acquired.contains(&false), "one of them gives up");
    }

    #[test]
    fn a_holder_that_waits_for_another_file_is_no_deadlock() {
        let (_folder, [a, b, c]) = folder_with_files();
        let own = LockFile::acquire(&a, FOR_EVER).unwrap().unwrap();
        for (waits_for, leads) in [(&c, false), (&a, true)] {
            let note = Note { process: 1, waits_for: name(waits_for) };
            std::fs::write(&b, note.to_string()).unwrap();
            assert_eq!(leads_to(&b, std::slice::from_ref(&own.path)), leads);
        }
        let outside = Note { process: 1, waits_for: Some("../a.lock".to_owned()) };
        std::fs::write(&b, outside.to_string()).unwrap();
        assert!(!leads_to(&b, std::slice::from_ref(&own.path)), "only image files are read");
        let cycle = Note { process: 1, waits_for: name(&b) };
        std::fs::write(&b, cycle.to_string()).unwrap();
        assert!(!leads_to(&b, std::slice::from_ref(&own.path)), "the search of a cycle of others ends");
    }

    /// When a wait has ended, the note must no longer name the file.
    #[test]
    fn a_wait_that_is_over_is_no_longer_noted() {
        let (_folder, [a, b, _]) = folder_with_files();
        let _own = LockFile::acquire(&a, FOR_EVER).unwrap().unwrap();
        let file = os::open_private(&b).unwrap();
        file.lock().unwrap();
        let waits_for = |path: &Path| Note::read(path).unwrap().waits_for;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while waits_for(&a).is_none() {
                    std::thread::yield_now();
                }
                file.unlock().unwrap();
            });
            let _other = LockFile::acquire(&b, FOR_EVER).unwrap().unwrap();
            assert_eq!((waits_for(&a), waits_for(&b)), (None, None));
        });
    }

    #[test]
    fn a_cycle_counts_from_when_it_was_seen_without_a_gap() {
        let (_folder, [a, b, c]) = folder_with_files();
        let _own = LockFile::acquire(&a, FOR_EVER).unwrap().unwrap();
        let note = |waits_for: &Path| std::fs::write(&b, Note { process: 1, waits_for: name(waits_for) }.to_string());
        let mut wait = Wait::begin(&b);
        wait.cycle_since = Instant::now().checked_sub(2 * CERTAIN_AFTER);
        note(&a).unwrap();
        assert!(wait.is_in_cycle(), "for long");
        note(&c).unwrap();
        assert!(!wait.is_in_cycle());
        note(&a).unwrap();
        assert!(!wait.is_in_cycle(), "it has just begun");
    }
}
