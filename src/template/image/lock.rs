//! The right to build an image: a lock on a file, in which its holder says what it waits for in its turn.
//!
//! Two templates whose functions ask for each other, in two processes, would wait for each other's lock for ever. From the
//! files, that can be read. Then one of them builds by itself what the other is building, and so comes to its own template,
//! as it would if it were alone; `OnceMap` refuses that with an error. A build that is slow costs no test.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::{is_ours, os, say};
use crate::once_map;
use crate::sync::Recovered;
use crate::sync::thread::{self, ThreadId};

/// A lock file that this thread has locked, until this is dropped. The system unlocks it when the process ends, however it
/// does.
pub(super) struct LockFile {
    path: PathBuf,
}

/// How long to wait for another process. A build that takes longer most likely hangs, as in a debugger.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// How long to wait without a word.
const QUIET_FOR: Duration = Duration::from_secs(5);

/// How long a circle has to be seen before it is believed: what a file says may be out of date for a moment.
const CERTAIN_AFTER: Duration = Duration::from_millis(200);

/// The lock files that this process has locked.
static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new());

struct Held {
    path: PathBuf,
    by: ThreadId,
    file: File,
    /// As it is written in the file.
    note: Note,
}

/// What a lock file says of the process that has locked it. For the others that is a help, and none needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    process: u32,
    /// The name of the lock file that this one's holder waits for.
    waits_for: Option<String>,
}

impl LockFile {
    /// Locks the file of this path, when no other process has it. `None` if that can't be waited for: for longer than
    /// `patience`, or because who has it waits for this thread. Why is said on stderr.
    pub(super) fn acquire(path: &Path, patience: Duration) -> io::Result<Option<LockFile>> {
        let file = os::open_private(path)?;
        let mut wait = None;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(LockFile::hold(path, file))),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) => {}
            }
            if !wait.get_or_insert_with(|| Wait::begin(path)).goes_on(patience) {
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

    /// What goes wrong here costs others only what they would have known.
    fn write_note(&mut self) {
        let text = self.note.to_string();
        let _ = self.file.rewind();
        let _ = self.file.write_all(text.as_bytes()).and_then(|()| self.file.set_len(text.len() as u64));
    }
}

impl Note {
    /// What the file says, if that can be read: not where a locked file can't be, as on Windows.
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

/// This thread waits for a file that somebody else has locked.
struct Wait<'a> {
    path: &'a Path,
    start: Instant,
    /// Since when it has been seen that its holder waits for this thread.
    circle_since: Option<Instant>,
    is_said: bool,
}

impl Wait<'_> {
    fn begin(path: &Path) -> Wait<'_> {
        Wait { path, start: Instant::now(), circle_since: None, is_said: false }
    }

    /// Waits for a moment, unless there is no use in it.
    fn goes_on(&mut self, patience: Duration) -> bool {
        let waited = self.start.elapsed();
        if waited >= patience {
            let (waited, holder) = (waited.as_secs(), self.holder());
            say(&format!("waited {waited} s for {holder}, which may hang; this process builds the template itself"));
            return false;
        }
        if self.is_in_circle() {
            let holder = self.holder();
            say(&format!("{holder} waits for a template that this process builds; this process builds both"));
            return false;
        }
        if waited >= QUIET_FOR && !std::mem::replace(&mut self.is_said, true) {
            say(&format!("waiting for {}, which builds a template", self.holder()));
        }
        // Longer the longer it takes, so that it adds little to the wait.
        std::thread::sleep((waited / 8).clamp(Duration::from_millis(1), Duration::from_millis(50)));
        true
    }

    fn holder(&self) -> String {
        let process =
            Note::read(self.path).map_or("another process".to_owned(), |note| format!("process {}", note.process));
        format!("{process} (it has locked `{}`)", self.path.display())
    }

    /// Whether who has the file has been waiting for this thread for long enough to be sure.
    fn is_in_circle(&mut self) -> bool {
        let own = self.note_in_own_files();
        if !leads_to(self.path, &own) {
            self.circle_since = None;
            return false;
        }
        self.circle_since.get_or_insert_with(Instant::now).elapsed() >= CERTAIN_AFTER
    }

    /// Notes, for other processes, what this thread waits for, in all files whose holders wait for this thread: those that it
    /// has locked itself, and those of threads that wait for what it builds. They are returned.
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

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let name = name(self.path);
        let mut all = all_held();
        // Another thread that waits for the same file notes it again.
        all.iter_mut().filter(|held| held.note.waits_for == name).for_each(|held| held.set_waits_for(None));
    }
}

fn name(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

/// Whether who has locked the file waits, by way of however many others, for one of these files.
fn leads_to(path: &Path, files: &[PathBuf]) -> bool {
    const MOST: usize = 100; // in a circle that this thread is not in there would be no end
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
    fn a_thread_that_waits_for_itself_is_told() {
        let (_folder, [path, ..]) = folder_with_files();
        let _held = LockFile::acquire(&path, FOR_EVER).unwrap().unwrap();
        assert!(LockFile::acquire(&path, FOR_EVER).unwrap().is_none());
    }

    /// As in two processes: what is noted is read from the files.
    #[test]
    fn threads_that_wait_for_each_other_are_told() {
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
        assert!(acquired.contains(&false), "one has to give up");
    }

    #[test]
    fn a_file_whose_holder_waits_for_somebody_else_is_waited_for() {
        let (_folder, [a, b, c]) = folder_with_files();
        let own = LockFile::acquire(&a, FOR_EVER).unwrap().unwrap();
        for (waits_for, leads) in [(&c, false), (&a, true)] {
            let note = Note { process: 1, waits_for: name(waits_for) };
            std::fs::write(&b, note.to_string()).unwrap();
            assert_eq!(leads_to(&b, std::slice::from_ref(&own.path)), leads);
        }
        let outside = Note { process: 1, waits_for: Some("../a.lock".to_owned()) };
        std::fs::write(&b, outside.to_string()).unwrap();
        assert!(!leads_to(&b, std::slice::from_ref(&own.path)), "no file but ours is looked into");
        let circle = Note { process: 1, waits_for: name(&b) };
        std::fs::write(&b, circle.to_string()).unwrap();
        assert!(!leads_to(&b, std::slice::from_ref(&own.path)), "others' circle has an end");
    }

    /// Once it has got what it waited for, a file must not say that it waits.
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
}
