//! Keeping an engine's database when its test fails, or on demand.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread::{self, Thread};

use super::{Database, Engine, Inner};
use crate::content::Snapshot;
use crate::environment::Keep;
use crate::error::{Error, Result};
use crate::failure::{self, Scene};
use crate::panics;
use crate::statements::{Log, Recorder, recent};
use crate::vfs::{Mount, Setup, trace};

/// By what an engine is found among those of a test.
#[derive(Clone)]
pub(super) struct Birth {
    /// The thread that has created it.
    thread: Thread,
    /// The number of the latest statement before.
    statement: u64,
    /// A recording of everything, if every engine is kept.
    log: Option<Arc<Log>>,
    whose: Whose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Test,
    /// A template is built in it. It is kept only if that fails.
    Template,
    /// A copy of the crate's own.
    Crate,
}

impl Birth {
    /// # Panics
    /// If the environment variable `RUSQLITE_FIXTURES_KEEP` has an unknown value.
    pub(super) fn now() -> Birth {
        failure::prepare();
        let log = (Keep::of_tests() == Keep::Always).then(Log::new);
        Birth { log, ..Birth::of(Whose::Test) }
    }

    /// # Panics
    /// As `now`.
    pub(super) fn of_build() -> Birth {
        failure::prepare();
        Birth::of(Whose::Template)
    }

    pub(super) fn of_copy() -> Birth {
        Birth::of(Whose::Crate)
    }

    fn of(whose: Whose) -> Birth {
        Birth { thread: thread::current(), statement: recent::now(), log: None, whose }
    }
}

impl Inner {
    /// Begins the recording of an engine that will be kept.
    pub(super) fn begin_to_keep(&self) {
        if let Some(log) = &self.birth.log {
            trace::hear_errors();
            self.database().recorder().add(log.clone());
        }
    }

    /// Keeps the database, because a panic drops a handle on it. It may be of use later too.
    #[cold]
    pub(super) fn keep_because_of_panic(&self) {
        if failure::is_kept() && self.birth.whose != Whose::Crate {
            self.keep();
        }
    }

    /// Keeps the database if that is asked for whenever an engine is dropped; otherwise notes that the test goes on.
    pub(super) fn keep_or_go_on(&self) {
        if thread::panicking() || self.birth.whose != Whose::Test {
            return; // a handle has kept it, if there is something to keep
        }
        if failure::is_kept() {
            self.keep();
        } else {
            failure::went_on(|| failure::test_of(&self.birth.thread));
        }
    }

    fn keep(&self) {
        let _ = catch_unwind(AssertUnwindSafe(|| failure::keep(self.scene())));
    }

    /// Returns what is known of the engine.
    pub(super) fn scene(&self) -> Scene {
        let (setup, birth) = (self.setup(), &self.birth);
        match self.database() {
            Database::InMemory(mount) => of_mount(mount, setup, birth),
            Database::OnFile(file) => {
                // The file may be gone.
                let content = catch_unwind(AssertUnwindSafe(|| file.snapshot())).ok();
                let (before, file) = (file.baseline.clone(), &file.file);
                of(file.id(), file.name().to_owned(), [Some(before), content], &file.recorder, setup, birth)
            }
        }
    }

    /// Ends the recording, and has the database kept if a panic closes a connection to it: code may keep a connection for
    /// longer than the engine. `is_open` is whether there is one.
    pub(super) fn end_to_keep(&self, mount: &Arc<Mount>, is_open: bool) {
        if let Some(log) = &self.birth.log {
            mount.recorder.remove(log);
        }
        if is_open && self.birth.whose == Whose::Test && Keep::of_tests() != Keep::Never {
            let (mount_of_connections, setup, birth) =
                (Arc::downgrade(mount), self.setup().clone(), self.birth.clone());
            mount.recorder.set_keeper(Box::new(move || {
                if let Some(mount) = Weak::upgrade(&mount_of_connections) {
                    failure::keep(of_mount(&mount, &setup, &birth));
                }
            }));
        }
    }
}

fn of_mount(mount: &Mount, setup: &Setup, birth: &Birth) -> Scene {
    let contents = [mount.store.baseline(), mount.store.current()].map(Some);
    let scene = of(mount.id(), mount.name(), contents, &mount.recorder, setup, birth);
    Scene { writer: mount.store.writer(), ..scene }
}

/// `contents` are that at the beginning, and the present one if it could be read.
fn of(
    number: u64,
    engine: String,
    contents: [Option<Snapshot>; 2],
    recorder: &Recorder,
    setup: &Setup,
    birth: &Birth,
) -> Scene {
    let [before, content] = contents;
    Scene {
        number,
        engine,
        test: failure::test_of(&birth.thread),
        before: before.unwrap_or_else(Snapshot::empty),
        content,
        setup: setup.clone(),
        recorded: recorder.kept(),
        recent: trace::recent_of(recorder, birth.statement),
        since: birth.statement,
        unwound: recorder.unwound(),
        dropped: recorder.dropped().iter().map(|dropped| dropped.purpose.to_string()).collect(),
        writer: None,
        panic: thread::panicking().then(panics::latest).flatten(),
    }
}

impl Engine {
    /// Keeps the database: writes it, the newest statements and a report to a folder of this name, which replaces an earlier one.
    /// Returns the folder: `target/rusqlite-fixtures/kept/`, the test program's name, and the given name. Engines of any size
    /// are kept, and files stay until they are removed by hand.
    ///
    /// A test that panics keeps its databases without this call. See the chapter
    /// [when a test fails](crate::guide::failing_tests).
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if the files can't be written, or if the program is not in Cargo's target folder and the
    /// environment variable `RUSQLITE_FIXTURES_DIR` names no folder.
    pub fn keep(&self, name: impl AsRef<str>) -> Result<PathBuf> {
        let kept = failure::keep_as(name.as_ref(), &self.0.scene());
        kept.map_err(|cause| Error::not_kept(&self.name(), &cause))
    }
}
