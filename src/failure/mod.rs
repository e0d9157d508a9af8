//! A test that fails keeps its databases.
//!
//! * `failure` (here): which engines are kept, and when their files are written.
//! * `scene`: what is known of an engine. `folder`: where files are kept, and for how long.
//! * `files`: what is written. `pages`: the report. `summary`: what is printed.
//!
//! This layer uses `difference` and the layers below it. An engine calls it when it is dropped.
//!
//! Invariants:
//! * Nothing here panics: a panic within a panic would end the program, and hide the test's own failure.
//! * What has to be read through SQLite is read by a thread of its own, for some time at most. So nothing that the test has set
//!   for its own thread matters, and no function of a template that does not return.

mod files;
mod folder;
#[cfg(feature = "report")]
mod pages;
mod scene;
mod summary;

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Once, Weak};
use std::thread::{self, Thread};
use std::time::Duration;

pub(crate) use self::scene::{Compared, Scene};
use crate::environment::Keep;
use crate::panics::{self, Panic};
use crate::statements::recent;

/// What became of the tests of a thread so far. A test runner has a thread for each test.
#[derive(Default)]
struct OfThread {
    /// The number of the panic in which `scenes` were found.
    panic: u64,
    /// The number of panics in which an engine was found.
    panics: u64,
    scenes: Vec<Arc<Scene>>,
    /// Whether `scenes` are still to be written.
    is_pending: bool,
    /// The test, if it has gone on since its latest panic.
    went_on: Option<String>,
}

thread_local! {
    /// Whether this thread has asked for an engine.
    static HAS_ASKED: Cell<bool> = const { Cell::new(false) };
    /// Dropped when this thread ends.
    static RUNS: Arc<()> = Arc::new(());
    static OF_THREAD: RefCell<OfThread> = RefCell::default();
}

/// The maximum number of engines that are kept of one test: the first ones that a panic drops.
const ENGINES: usize = 8;

/// Has engines kept as the environment says. This thread asks for one.
///
/// # Panics
/// If the environment variable `RUSQLITE_FIXTURES_KEEP` has an unknown value.
pub(crate) fn prepare() {
    let _ = HAS_ASKED.try_with(|has_asked| has_asked.set(true));
    if Keep::of_tests() != Keep::Never {
        static PREPARED: Once = Once::new();
        PREPARED.call_once(|| {
            folder::look();
            recent::turn_on();
        });
        panics::observe(after_panic);
    }
}

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

    /// Returns the name of the test that uses the engine. A test runner gives a test's name to its thread. This thread is the
    /// test's if it has asked for an engine, or if the thread that has created this one has ended: then many tests use it.
    pub(crate) fn test(&self) -> String {
        let current = thread::current();
        let is_of_test = HAS_ASKED.try_with(Cell::get).unwrap_or_default() || self.runs.strong_count() == 0;
        let names = [current.name(), self.thread.name()];
        let name = if is_of_test { names[0].or(names[1]) } else { names[1].or(names[0]) };
        name.unwrap_or("an unnamed thread").to_owned()
    }
}

/// Returns whether an engine that this thread drops now is kept.
pub(crate) fn is_kept() -> bool {
    match Keep::of_tests() {
        Keep::Never => false,
        Keep::Always => true,
        Keep::Failed => thread::panicking(),
    }
}

/// Keeps an engine.
pub(crate) fn keep(scene: Scene) {
    let _ = OF_THREAD.try_with(|of_thread| {
        let Ok(mut of_thread) = of_thread.try_borrow_mut() else { return };
        of_thread.went_on = None; // no hook is called for `resume_unwind`, and the hook may be another one
        let number = scene.number;
        if of_thread.add(scene) {
            let is_first = of_thread.panics <= 1 || Keep::of_tests() == Keep::Always;
            if is_first {
                write(&of_thread.scenes, |scene| scene.number == number);
            }
            of_thread.is_pending = !is_first;
        }
    });
}

/// Notes that an engine was dropped without a panic.
#[inline]
pub(crate) fn went_on(test: impl FnOnce() -> String) {
    // Another thread may drop an engine of a test that fails.
    if folder::has_any() && HAS_ASKED.try_with(Cell::get).unwrap_or_default() {
        let _ = OF_THREAD.try_with(|of_thread| {
            if let Ok(mut of_thread) = of_thread.try_borrow_mut() {
                of_thread.went_on = Some(test());
            }
        });
    }
}

/// Writes an engine's files for a name that the user has given. Returns their folder.
pub(crate) fn keep_as(name: &str, scene: Scene) -> Result<PathBuf, String> {
    folder::of_kept()?.replace(name, |folder| write_files(folder, &[Arc::new(scene)]))
}

/// Called after each panic of a thread, by the panic hook. A panic here would end the program.
fn after_panic(panic: &Arc<Panic>) {
    let _ = OF_THREAD.try_with(|of_thread| {
        let Ok(mut of_thread) = of_thread.try_borrow_mut() else { return };
        of_thread.went_on = None;
        // The end of a property test, in which each failure of a smaller case was a panic.
        if of_thread.is_pending && panic.message.contains("minimal failing input") {
            of_thread.is_pending = false;
            write(&of_thread.scenes, |_| true);
        }
    });
}

impl OfThread {
    /// Adds an engine. Returns whether there is something new.
    fn add(&mut self, scene: Scene) -> bool {
        let panic = scene.panic.as_ref().map_or(0, |panic| panic.number);
        if panic != self.panic || self.panics == 0 {
            if panic != 0 || thread::panicking() {
                self.scenes.clear();
            }
            self.panic = panic;
            self.panics += 1;
        }
        let leaves = |scene: &Scene| scene.unwound.len();
        if let Some(same) = self.scenes.iter_mut().find(|same| same.number == scene.number) {
            let is_news = leaves(&scene) > leaves(same);
            if is_news {
                *same = Arc::new(scene);
            }
            return is_news;
        }
        if self.scenes.len() == ENGINES {
            if panic != 0 {
                return false;
            }
            self.scenes.clear();
        }
        self.scenes.push(Arc::new(scene));
        true
    }
}

impl Drop for OfThread {
    /// The test is over.
    fn drop(&mut self) {
        match &self.went_on {
            Some(test) => folder::remove(test),
            // It has caught other panics before this one. Nothing is printed: it may have caught this one, too.
            None if self.is_pending => write(&self.scenes, |_| false),
            None => {}
        }
    }
}

/// Writes the files of a test, and prints where they are, with what is known of some of its engines.
fn write(scenes: &[Arc<Scene>], is_told: impl Fn(&Scene) -> bool) {
    let is_small = |scene: &&Arc<Scene>| scene.size() <= Keep::of_tests().up_to();
    let small: Vec<Arc<Scene>> = scenes.iter().filter(is_small).cloned().collect();
    let large = scenes.iter().filter(|scene| !is_small(scene) && is_told(scene));
    let mut text = large.map(|scene| summary::of_large(scene)).collect::<String>();
    let told: Vec<(usize, Arc<Scene>)> =
        small.iter().cloned().enumerate().filter(|(_, scene)| is_told(scene)).collect();
    let folder = small.last().map(|newest| {
        let write = |folder: &Path| write_files(folder, &small);
        folder::of_failed().and_then(|failed| failed.replace(&newest.test, write))
    });
    // Its output is captured with the test's.
    let printed = in_own_thread(move || {
        match folder {
            None => {}
            Some(Ok(folder)) => text.extend(told.iter().map(|(index, scene)| summary::of(&folder, *index, scene))),
            Some(Err(cause)) => text.push_str(&failed(&cause)),
        }
        eprint!("{text}");
    });
    if let Err(cause) = printed {
        let _ = io::stderr().write_all(failed(&cause).as_bytes());
    }
}

fn failed(cause: &str) -> String {
    format!("rusqlite-fixtures: can't keep the databases of this test: {cause}\n")
}

/// Writes the files of engines. There is no report if a function given to `Template::on_connect` fails.
fn write_files(folder: &Path, scenes: &[Arc<Scene>]) -> Result<(), String> {
    files::write(folder, scenes)?;
    #[cfg(feature = "report")]
    {
        let scenes = scenes.to_vec();
        if let Ok(page) = in_own_thread(move || pages::html(&scenes)) {
            files::write_text(&folder.join("report.html"), &page)?;
        }
    }
    Ok(())
}

/// Runs something in a thread of its own, for some time at most. A panic there is an error.
fn in_own_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    // A function of a template may wait for a lock that the thread that panics holds.
    const PATIENCE: Duration = Duration::from_secs(20);
    let (send, receive) = mpsc::channel();
    let thread = thread::Builder::new().name("rusqlite-fixtures".to_owned()).spawn(move || {
        let _ = send.send(work()); // nobody may wait any longer
    });
    thread.map_err(|cause| format!("no thread can be started: {cause}"))?;
    receive.recv_timeout(PATIENCE).map_err(|cause| match cause {
        RecvTimeoutError::Timeout => {
            format!("a function given to Template::on_connect has not returned for {PATIENCE:?}")
        }
        RecvTimeoutError::Disconnected => {
            "a function given to Template::on_connect panicked, or this crate did".to_owned()
        }
    })
}
