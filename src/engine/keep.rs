//! Keeping an engine's database when its test fails, or on demand.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use super::{Database, Engine, Inner};
use crate::content::Snapshot;
use crate::content::refusal::Refusal;
use crate::environment::Keep;
use crate::error::{self, Error};
use crate::failure::{self, Compared, Creator, Scene};
use crate::statements::{Log, Recorder, recent};
use crate::vfs::{Mount, Setup, trace};
use crate::{faults, panics};

/// Where and when an engine was created.
#[derive(Clone)]
pub(super) struct Creation {
    creator: Creator,
    /// The number of the latest statement before.
    statement: u64,
    /// A recording of everything, if every engine is kept.
    pub(super) log: Option<Arc<Log>>,
    whose: Whose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Test,
    /// A template is built in it. It is kept only if that fails.
    Template,
    /// A copy that the crate reads.
    InternalCopy,
}

impl Creation {
    /// # Panics
    /// If the environment variable `RUSQLITE_FIXTURES_KEEP` has an unknown value.
    pub(super) fn now() -> Creation {
        failure::prepare();
        let log = (Keep::of_tests() == Keep::Always).then(Log::new);
        Creation { log, ..Creation::of(Whose::Test) }
    }

    /// # Panics
    /// As `now`.
    pub(super) fn of_build() -> Creation {
        failure::prepare();
        Creation::of(Whose::Template)
    }

    pub(super) fn of_copy() -> Creation {
        Creation::of(Whose::InternalCopy)
    }

    fn of(whose: Whose) -> Creation {
        Creation { creator: Creator::here(), statement: recent::now(), log: None, whose }
    }
}

impl Inner {
    /// Begins the recording of an engine that will be kept.
    pub(super) fn begin_to_keep(&self) {
        if let Some(log) = &self.creation.log {
            self.begin_recording(log);
        }
    }

    /// Keeps the database, because a panic drops a handle to it. Other handles may still use the engine.
    #[cold]
    pub(super) fn keep_because_of_panic(&self) {
        if self.creation.whose != Whose::InternalCopy && failure::keeps_on_drop() {
            self.keep();
        }
    }

    /// Keeps the database if that is asked for whenever an engine is dropped; otherwise notes that the test goes on.
    pub(super) fn keep_or_continue(&self) {
        if thread::panicking() || self.creation.whose != Whose::Test {
            return; // a handle has kept it, if there is something to keep
        }
        if failure::keeps_on_drop() {
            self.keep();
        } else {
            self.note_continues();
        }
        panics::forget();
    }

    /// Notes the transactions that were dropped, for a failure of the test after this engine is dropped.
    pub(super) fn note_dropped(&self) {
        if !thread::panicking() && self.creation.whose == Whose::Test {
            self.database().recorder().each_dropped_by_test(failure::note_dropped);
        }
    }

    /// Notes that the test goes on. (The engine may be a shared one, which is not dropped.)
    #[cold]
    pub(super) fn note_continues(&self) {
        if self.creation.whose == Whose::Test {
            failure::note_continues(|| self.creation.creator.test());
        }
    }

    fn keep(&self) {
        let _ = catch_unwind(AssertUnwindSafe(|| failure::keep(self.scene())));
    }

    /// Panics with this message, and keeps the database. Returns the panic.
    pub(super) fn fail(&self, message: &str) -> Box<dyn Any + Send> {
        let panic = catch_unwind(|| panic!("{message}")).expect_err("it has panicked");
        if Keep::of_tests() != Keep::Never {
            let scene = || failure::keep(Scene { panic: panics::latest(), ..self.scene() });
            let _ = catch_unwind(AssertUnwindSafe(scene));
        }
        panic
    }

    /// Returns what is known of the engine.
    fn scene(&self) -> Scene {
        let (setup, creation) = (self.setup(), &self.creation);
        match self.database() {
            Database::InMemory(mount) => of_mount(mount, setup, creation),
            Database::OnFile(file) => {
                let content = faults::exempt(|| file.snapshot());
                let content = content.map_err(|cause| format!("the content can't be read: {cause}"));
                let (before, file) = (file.baseline.clone(), &file.file);
                of(file.id(), file.name().to_owned(), before, content, &file.recorder, setup, creation)
            }
        }
    }

    /// Resets the recorder. `is_open` is whether code still has a connection to the database. If so, a panic that closes it
    /// later keeps the database.
    pub(super) fn end_to_keep(&self, mount: &Arc<Mount>, is_open: bool) {
        mount.recorder.reset();
        if is_open && self.creation.whose == Whose::Test && Keep::of_tests() != Keep::Never {
            let (mount_of_connections, setup, creation) =
                (Arc::downgrade(mount), self.setup().clone(), self.creation.clone());
            mount.recorder.set_keeper(Box::new(move || {
                if let Some(mount) = mount_of_connections.upgrade() {
                    failure::keep(of_mount(&mount, &setup, &creation));
                }
            }));
        }
    }
}

fn of_mount(mount: &Mount, setup: &Setup, creation: &Creation) -> Scene {
    let (before, content) = (mount.store.baseline(), Ok(mount.store.current()));
    let scene = of(mount.id(), mount.name(), before, content, &mount.recorder, setup, creation);
    // A panic may have dropped the holder already.
    let holder = || Refusal::holder(&mount.name());
    let was_held = || holder().map(|by| format!("was refused to this thread, because it was taken by {by}"));
    let writer = mount.store.writer().map(|by| format!("is held by {by}")).or_else(was_held);
    Scene { writer, ..scene }
}

fn of(
    number: u64,
    engine: String,
    before: Snapshot,
    content: Result<Snapshot, String>,
    recorder: &Recorder,
    setup: &Setup,
    creation: &Creation,
) -> Scene {
    let mut dropped = Vec::new();
    recorder.each_dropped_by_test(|purpose| dropped.push(purpose.to_string()));
    Scene {
        number,
        engine,
        test: creation.creator.test(),
        before,
        content,
        setup: setup.clone(),
        recorded: recorder.recorded(),
        recent: trace::recent_of(recorder, creation.statement),
        since: creation.statement,
        unwound: recorder.unwound(),
        dropped,
        writer: None,
        panic: thread::panicking().then(panics::latest).flatten(),
        compared: Compared::default(),
    }
}

impl Engine {
    /// Keeps the database: writes it, the newest statements and a report to a folder of this name, which replaces an earlier
    /// one. Engines of any size are kept, and files stay until they are removed by hand.
    ///
    /// Returns the folder. It is in `$RUSQLITE_FIXTURES_DIR/kept` if that environment variable is set, or else in
    /// `target/rusqlite-fixtures/kept`, and there in a folder for the test program. A name of at most 120 bytes that has only
    /// lowercase ASCII letters, digits, `_`, `-` and `::` is the folder's name, with `.` in the place of `::`. Any other name is
    /// cut, its characters other than ASCII letters, digits, `_` and `-` become `_`, and a hash of the whole name is appended.
    ///
    /// A test that panics keeps its databases without this call. See the chapter
    /// [when a test fails](crate::guide::failing_tests).
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if the files can't be written, if `RUSQLITE_FIXTURES_DIR` is a relative path, or if it
    /// is not set and the program is not in Cargo's target folder.
    pub fn keep(&self, name: impl AsRef<str>) -> error::Result<PathBuf> {
        let kept = failure::keep_as(name.as_ref(), self.0.scene());
        kept.map_err(|cause| Error::not_kept(&self.name(), &cause))
    }
}
