//! A test that panics keeps its databases.
//!
//! * `failure` (here): which engines are kept, and when their files are written.
//! * `scene`: what is known of an engine. `folder`: where files are kept, and for how long.
//! * `writing`: writes files, and prints. `files`: what is written. `pages`: the report. `summary`: what is printed.
//!
//! This layer uses `difference` and the layers below it. An engine calls it when it is dropped.
//!
//! Invariants:
//! * Nothing here panics: a panic within a panic would end the program, and hide the test's own failure.
//! * Changes and the schema are read through SQLite on a thread of this crate, with a time limit. So settings of the test's thread
//!   have no effect, and a template's function that never returns does not block the test. Only the content of an engine in a
//!   file is read on the test's thread (`Inner::scene`), by a connection that runs no function of a template.

mod files;
mod folder;
#[cfg(feature = "report")]
mod pages;
mod scene;
mod summary;
mod writing;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::mem;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Once, Weak};
use std::thread::{self, Thread, ThreadId};

pub(crate) use self::folder::has_any as any_is_kept;
pub(crate) use self::scene::{Compared, Scene};
use crate::content::origin::Purpose;
use crate::environment::Keep;
use crate::panics::{self, Panic};
use crate::statements::recent;
use crate::sync::Recovered;

/// An engine that is kept of a test.
struct Found {
    thread: ThreadId,
    scene: Arc<Scene>,
    /// Whether a panic has dropped it.
    by_panic: bool,
    /// Whether the test has gone on since. The next failure replaces it.
    is_stale: bool,
    /// Whether the thread has the name of the test. Another one may end before or after the test.
    is_of_test: bool,
}

/// The engines that are kept of each test, in the order in which they were dropped. A test may drop some on threads that it has
/// started. They are removed when the test's own thread ends, if that has dropped an engine, too.
static FOUND: Mutex<BTreeMap<String, Vec<Found>>> = Mutex::new(BTreeMap::new());

/// The names of threads that have failed, and the threads. Another thread of the same name, for example of another runtime, does
/// not remove what they left.
static FAILED: Mutex<BTreeMap<String, Vec<ThreadId>>> = Mutex::new(BTreeMap::new());

/// What has happened on a thread so far. A test runner has a thread for each test.
#[derive(Default)]
struct ThreadState {
    /// The test whose engine it has kept.
    test: Option<String>,
    /// The number of the latest panic in which it has kept an engine.
    latest_panic: u64,
    /// The number of such panics.
    panic_count: u64,
    /// Whether engines of the test are still to be written.
    is_pending: bool,
    /// The test, if it has gone on since its latest panic.
    continues: Option<String>,
}

thread_local! {
    /// The test, if it has asked for an engine since its latest panic.
    static ASKING: Asking = const { Asking(RefCell::new(None)) };
    /// Whether this thread has asked for an engine.
    static HAS_ASKED: Cell<bool> = const { Cell::new(false) };
    /// Dropped when this thread ends.
    static RUNS: Arc<()> = Arc::new(());
    static THREAD_STATE: RefCell<ThreadState> = RefCell::default();
    /// Transactions that were dropped without a commit, of engines that are gone.
    static DROPPED: RefCell<Vec<Purpose>> = const { RefCell::new(Vec::new()) };
}

/// The number of dropped transactions that are printed, of an engine or of engines that are gone: the newest, each place once.
const DROPPED_SHOWN: usize = 5;

/// The maximum number of engines that are kept of one test. A panic may drop more: the first ones are kept.
const ENGINES: usize = 8;

/// Installs the panic hook, unless nothing is to be kept. Notes that this thread has asked for an engine.
///
/// # Panics
/// If the environment variable `RUSQLITE_FIXTURES_KEEP` has an unknown value.
pub(crate) fn prepare() {
    let _ = HAS_ASKED.try_with(|has_asked| has_asked.set(true));
    if Keep::of_tests() != Keep::Never {
        static PREPARED: Once = Once::new();
        PREPARED.call_once(|| {
            folder::load_names();
            recent::turn_on();
        });
        panics::observe(after_panic);
        if any_is_kept() && !thread::panicking() {
            let test = thread::current().name().unwrap_or(UNNAMED).to_owned();
            mark_stale(&test);
            let _ = ASKING.try_with(|asking| *asking.0.borrow_mut() = Some(test));
        }
    }
}

/// Notes that the test goes on after a panic of this thread, which is the test's own: what was kept in that panic and before
/// is stale.
fn mark_stale(test: &str) {
    let here = thread::current().id();
    let latest = panics::latest().map(|panic| panic.number);
    for found in FOUND.lock().recovered().get_mut(test).into_iter().flatten() {
        let number = found.scene.panic.as_ref().map(|panic| panic.number);
        found.is_stale |= found.by_panic && (found.thread == here || (number.is_some() && number <= latest));
    }
}

/// Returns the engines that are kept of a test.
fn scenes_of(test: &str) -> Vec<Arc<Scene>> {
    let all = FOUND.lock().recovered();
    all.get(test).into_iter().flatten().map(|found| found.scene.clone()).collect()
}

/// The name of a test on a thread without a name.
const UNNAMED: &str = "an unnamed thread";

/// The thread that has created an engine.
#[derive(Clone)]
pub(crate) struct Creator {
    thread: Thread,
    runs: Weak<()>,
}

impl Creator {
    /// Returns this thread.
    pub(crate) fn here() -> Creator {
        let runs = RUNS.try_with(Arc::downgrade).unwrap_or_default();
        Creator { thread: thread::current(), runs }
    }

    /// Returns the name of the test that uses the engine. A test runner gives a test's name to its thread. The current thread is
    /// the test's if it has asked for an engine, or if the creator has ended: then many tests use the engine.
    pub(crate) fn test(&self) -> String {
        let current = thread::current();
        let is_of_test = HAS_ASKED.try_with(Cell::get).unwrap_or_default() || self.runs.strong_count() == 0;
        let names = [current.name(), self.thread.name()];
        let name = if is_of_test { names[0].or(names[1]) } else { names[1].or(names[0]) };
        name.unwrap_or(UNNAMED).to_owned()
    }
}

/// Returns whether an engine that this thread drops now is kept.
pub(crate) fn keeps_on_drop() -> bool {
    match Keep::of_tests() {
        Keep::Never => false,
        Keep::Always => true,
        Keep::Failed => thread::panicking(),
    }
}

/// Returns whether this thread has the name of the test. Another thread of the test may end before or after that.
fn is_named(test: &str) -> bool {
    thread::current().name().unwrap_or(UNNAMED) == test
}

/// Keeps an engine.
pub(crate) fn keep(scene: Scene) {
    let _ = THREAD_STATE.try_with(|state| {
        let Ok(mut state) = state.try_borrow_mut() else { return };
        state.continues = None; // no hook is called for `resume_unwind`, and the hook may be another one
        forget_asking();
        let (number, test) = (scene.number, scene.test.clone());
        state.test = Some(test.clone());
        if state.add(scene) {
            let is_first = state.panic_count <= 1 || Keep::of_tests() == Keep::Always;
            if is_first {
                writing::write(&test, || scenes_of(&test), |scene| scene.number == number);
            }
            state.is_pending = !is_first;
        }
    });
}

/// Notes that the test's thread has dropped an engine without a panic.
pub(crate) fn note_continues(test: impl FnOnce() -> String) {
    if any_is_kept() {
        let _ = THREAD_STATE.try_with(|state| {
            if let Ok(mut state) = state.try_borrow_mut() {
                let test = test();
                mark_stale(&test);
                // Another thread may drop an engine of a test that fails. Threads of several tests may have no name.
                state.continues = Some(test).filter(|test| is_named(test) && test != UNNAMED);
            }
        });
    }
}

/// Notes that this transaction of an engine that is dropped now was dropped without a commit. If the test fails later, that is
/// printed.
pub(crate) fn note_dropped(purpose: Purpose) {
    let _ = DROPPED.try_with(|dropped| {
        let Ok(mut dropped) = dropped.try_borrow_mut() else { return };
        dropped.retain(|other| *other != purpose); // each case of a property test may drop one at this place
        if dropped.len() == DROPPED_SHOWN {
            dropped.remove(0);
        }
        dropped.push(purpose);
    });
}

/// Writes an engine's files for a name that the user has given. Returns their folder.
pub(crate) fn keep_as(name: &str, scene: Scene) -> Result<PathBuf, String> {
    scene.content.as_ref().map_err(Clone::clone)?;
    folder::of_kept()?.replace(name, |folder| writing::write_files(folder, &[Arc::new(scene)]))
}

/// Called after each panic of a thread, by the panic hook. A panic here would end the program.
fn after_panic(panic: &Arc<Panic>) {
    let dropped = DROPPED.try_with(|dropped| dropped.try_borrow_mut().map(|mut dropped| mem::take(&mut *dropped)));
    if let Ok(Ok(dropped)) = dropped {
        writing::print(dropped.iter().map(summary::dropped_transaction).collect());
    }
    let _ = THREAD_STATE.try_with(|state| {
        let Ok(mut state) = state.try_borrow_mut() else { return };
        state.continues = None;
        forget_asking();
        // The end of a property test, in which each failure of a smaller case was a panic.
        if state.is_pending && panic.message.contains("minimal failing input") {
            state.write_pending(true);
        }
    });
}

impl ThreadState {
    /// Adds an engine. Returns whether there is something new.
    fn add(&mut self, scene: Scene) -> bool {
        let (here, by_panic) = (thread::current().id(), thread::panicking() || scene.panic.is_some());
        let panic = scene.panic.as_ref().map_or(0, |panic| panic.number);
        let mut all = FOUND.lock().recovered();
        let found = all.entry(scene.test.clone()).or_default();
        if panic != self.latest_panic || self.panic_count == 0 {
            self.latest_panic = panic;
            self.panic_count += 1;
            if by_panic {
                found.retain(|found| !(found.is_stale || found.by_panic && found.thread == here));
                note_failed(&scene.test);
            }
        }
        let is_of_test = is_named(&scene.test);
        let new = Found { thread: here, scene: Arc::new(scene), by_panic, is_stale: false, is_of_test };
        if let Some(same) = found.iter_mut().find(|same| same.scene.number == new.scene.number) {
            let panic_of = |scene: &Scene| scene.panic.as_ref().map(|panic| panic.number);
            let details = |scene: &Scene| scene.unwound.iter().filter(|unwound| unwound.has_details()).count();
            let is_new = panic_of(&new.scene) != panic_of(&same.scene) || details(&new.scene) > details(&same.scene);
            if is_new {
                *same = new;
            }
            return is_new;
        }
        if found.len() == ENGINES {
            let Some(oldest) = found.iter().position(|found| !found.by_panic || found.is_stale) else { return false };
            found.remove(oldest);
        }
        found.push(new);
        true
    }

    /// Writes what is still to be written. Prints it, if `is_printed`.
    fn write_pending(&mut self, is_printed: bool) {
        if let Some(test) = self.test.as_ref().filter(|_| self.is_pending) {
            writing::write(test, || scenes_of(test), |_| is_printed);
        }
        self.is_pending = false;
    }
}

impl Drop for ThreadState {
    /// The test is over, or a thread of it.
    fn drop(&mut self) {
        if let Some(test) = self.continues.take() {
            end_continued(&test);
            self.test = Some(test);
        } else {
            // It has caught other panics before this one. Nothing is printed: it may have caught this one, too.
            self.write_pending(false);
        }
        if let Some(test) = self.test.take().filter(|test| is_named(test)) {
            forget(&test);
        }
    }
}

/// The test of a thread, which has asked for an engine that this thread may not drop: a shared one, one that it gives to another
/// thread, or one of a kept value.
struct Asking(RefCell<Option<String>>);

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(test) = self.0.take().filter(|test| is_named(test) && test != UNNAMED) {
            end_continued(&test);
        }
    }
}

fn forget_asking() {
    let _ = ASKING.try_with(|asking| asking.0.take());
}

/// Removes what a test has left that went on after its latest panic, if it had one.
fn end_continued(test: &str) {
    // What a thread of the test has left is not removed: its panic may be why the test returns an error. Nor is what is kept of a
    // test that passes.
    let is_left = FOUND.lock().recovered().get(test).into_iter().flatten().any(|found| !found.is_stale);
    if !is_left && !has_failed_elsewhere(test) {
        folder::remove(test);
    }
    note_continued(test);
}

/// Notes that this thread has failed, if it has the name of the test.
fn note_failed(test: &str) {
    if is_named(test) {
        let here = thread::current().id();
        let mut failed = FAILED.lock().recovered();
        let threads = failed.entry(test.to_owned()).or_default();
        threads.retain(|thread| *thread != here);
        threads.push(here);
    }
}

/// Notes that the test has gone on after the failures of this thread.
fn note_continued(test: &str) {
    let here = thread::current().id();
    let mut failed = FAILED.lock().recovered();
    if let Some(threads) = failed.get_mut(test) {
        threads.retain(|thread| *thread != here);
    }
}

/// Returns whether another thread with the name of the test has failed.
fn has_failed_elsewhere(test: &str) -> bool {
    let here = thread::current().id();
    FAILED.lock().recovered().get(test).into_iter().flatten().any(|thread| *thread != here)
}

/// Forgets the engines that this thread has kept of the test, and those of threads with other names.
fn forget(test: &str) {
    let here = thread::current().id();
    let mut all = FOUND.lock().recovered();
    let found = all.remove(test).unwrap_or_default();
    let (of_others, gone): (Vec<Found>, Vec<Found>) =
        found.into_iter().partition(|found| found.is_of_test && found.thread != here);
    if !of_others.is_empty() {
        all.insert(test.to_owned(), of_others);
    }
    drop(all);
    drop(gone); // the lock is released
}
