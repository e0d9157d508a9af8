//! How a template is built: its steps, its identity, and the result of the build in this process.

use std::fmt;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::Arc;

use rusqlite::Connection;

use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::engine::WarmPool;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::faults;
use crate::once_map::OnceMap;
use crate::vfs::{self, Mount, Name, OnConnect, Setup, external, script};

#[derive(Clone, Copy)]
pub(super) struct Recipe {
    pub(super) at: &'static Location<'static>,
    pub(super) start: Start,
    pub(super) steps: [Option<Step>; MAX_STEPS],
    pub(super) on_connect: Option<OnConnect>,
    /// `None`: as in the parent; on if there is no parent.
    pub(super) foreign_keys: Option<bool>,
    pub(super) key: Option<&'static str>,
}

#[derive(Clone, Copy)]
pub(super) enum Start {
    Empty,
    Database(&'static [u8]),
    Parent(&'static Recipe),
}

#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) action: Action,
    pub(super) at: &'static Location<'static>,
}

#[derive(Clone, Copy)]
pub(super) enum Action {
    Script(&'static str),
    Function(Build),
}

/// A function that makes or changes a database. It may fail with any error.
pub(super) type Build = fn(&mut Connection) -> Result<(), BoxError>;

/// The largest number of steps of one template. A template that is based on it may have the same number of its own steps.
pub(super) const MAX_STEPS: usize = 16;

/// The result of building a recipe.
pub(super) struct Built {
    pub(super) pool: Arc<WarmPool>,
    /// Whether the content depends on the time of the build.
    depends_on_time: bool,
}

/// The content that the steps of a template create.
pub(super) struct Content {
    pub(super) snapshot: Snapshot,
    /// Whether the content depends on the time of the build.
    pub(super) depends_on_time: bool,
}

/// The results of all builds in this process, including failures.
static TEMPLATES: OnceMap<Combination, Result<Arc<Built>>> = OnceMap::new();

/// Everything that distinguishes a recipe from others: functions and parents by their addresses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Combination {
    parent: Option<usize>,
    database: Option<&'static [u8]>,
    steps: Vec<StepIdentity>,
    on_connect: Option<usize>,
    foreign_keys: Option<bool>,
    key: Option<&'static str>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum StepIdentity {
    Script(&'static str),
    Function(usize),
}

impl Recipe {
    fn combination(&self) -> Combination {
        let steps = self.steps().map(|step| match step.action {
            Action::Script(script) => StepIdentity::Script(script),
            Action::Function(build) => StepIdentity::Function(build as usize),
        });
        Combination {
            parent: self.parent().map(|parent| std::ptr::from_ref(parent).addr()),
            database: if let Start::Database(bytes) = self.start { Some(bytes) } else { None },
            steps: steps.collect(),
            on_connect: self.on_connect.map(|on_connect| on_connect.function as usize),
            foreign_keys: self.foreign_keys,
            key: self.key,
        }
    }

    pub(super) fn parent(&self) -> Option<&'static Recipe> {
        if let Start::Parent(parent) = self.start { Some(parent) } else { None }
    }

    pub(super) fn steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().flatten()
    }

    /// Returns the result of the build. The first call in the process builds; calls from other threads wait meanwhile.
    pub(super) fn built(&self) -> Result<Result<Arc<Built>>> {
        let recursive = || Error::recursive_build(&self.to_string());
        // Faults are for the code under test, but other tests use the result of the build too.
        TEMPLATES.get_or_create(&self.combination(), || faults::exempt(|| self.build_for_good()), recursive)
    }

    /// Builds once for all callers. A failure is final too, except for recursion: whether a build needs itself depends on
    /// the caller.
    fn build_for_good(&self) -> Result<Result<Arc<Built>>> {
        match self.build() {
            Err(error) if error.kind() == ErrorKind::RecursiveCreation => Err(error),
            built => Ok(built),
        }
    }

    fn build(&self) -> Result<Arc<Built>> {
        let before = self.content_before()?;
        let setup = self.setup();
        let name = self.to_string();
        let build = || {
            let built = catch_unwind(AssertUnwindSafe(|| self.carry_out(before, &setup, &name)));
            built.unwrap_or_else(|payload| Err(Error::build_panicked(&name, &*payload)))
        };
        let content = self.shared_or_built(build)?;
        let pool = Arc::new(WarmPool::new(&name, content.snapshot, setup));
        Ok(Arc::new(Built { pool, depends_on_time: content.depends_on_time }))
    }

    #[cfg(not(feature = "images"))]
    fn shared_or_built(&self, build: impl FnOnce() -> Result<Content>) -> Result<Content> {
        build()
    }

    /// Returns the content that the steps start with. It is needed first, because it fails if templates are based on one
    /// another in a cycle.
    fn content_before(&self) -> Result<Content> {
        let snapshot = match self.start {
            Start::Empty => Snapshot::empty(),
            Start::Database(bytes) => Snapshot::from_base(Arc::new(bytes), bytes.len())
                .map_err(|flaw| Error::not_a_database(&format!("the bytes of {self}"), flaw))?,
            Start::Parent(parent) => {
                let built = parent.built()??;
                return Ok(Content { snapshot: built.pool.content().clone(), depends_on_time: built.depends_on_time });
            }
        };
        Ok(Content { snapshot, depends_on_time: false })
    }

    /// Returns the setup of each connection: the parents' functions first.
    pub(super) fn setup(&self) -> Setup {
        let mut setup = self.parent().map_or_else(|| Setup::DEFAULT, |parent| parent.setup());
        setup.foreign_keys = self.foreign_keys.unwrap_or(setup.foreign_keys);
        setup.on_connect.extend(self.on_connect);
        setup
    }

    fn carry_out(&self, before: Content, setup: &Setup, name: &str) -> Result<Content> {
        vfs::register();
        let mount = Mount::new(before.snapshot, Name::Given(name.to_owned()));
        let (built, asked) = external::observe(|| {
            let connection = vfs::connect(&vfs::uri(&mount), setup, Purpose::Connection(self.at));
            let mut connection = connection.map_err(|cause| Error::connect_to_build(name, cause))?;
            self.steps().try_for_each(|step| step.carry_out(&mut connection, &mount, name))
        });
        built?;
        let depends_on_time = (asked || self.asks_for_the_time_zone() || before.depends_on_time) && self.key.is_none();
        Ok(Content { snapshot: mount.store.current(), depends_on_time })
    }

    /// Returns whether a script uses the time zone, for which SQLite does not call its VFS.
    fn asks_for_the_time_zone(&self) -> bool {
        self.steps().any(|step| match step.action {
            Action::Script(script) => {
                let script = script.to_ascii_lowercase();
                script.contains("'localtime'") || script.contains("'utc'")
            }
            Action::Function(_) => false,
        })
    }

    /// Returns the key if it is short enough to print. A key may be the text of a whole file.
    pub(super) fn short_key(&self) -> Option<&'static str> {
        self.key.filter(|key| key.len() <= 40 && !key.contains('\n'))
    }
}

impl Step {
    fn carry_out(&self, connection: &mut Connection, mount: &Mount, template: &str) -> Result<()> {
        match self.action {
            Action::Script(script) => script::run(connection, script).map_err(|failure| {
                let lines_before = script.as_bytes()[..failure.at].iter().filter(|byte| **byte == b'\n').count();
                let statement = script.get(failure.statement).unwrap_or_default().trim_end();
                Error::script_failed(template, self.at, 1 + lines_before, statement, failure.cause)
            })?,
            Action::Function(build) => {
                build(connection).map_err(|cause| Error::function_failed(template, self.at, cause))?;
                if !vfs::is_connected(connection, mount) {
                    return Err(Error::connection_replaced(template, self.at));
                }
            }
        }
        if connection.is_autocommit() { Ok(()) } else { Err(Error::transaction_left_open(template, self.at)) }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.short_key() {
            Some(key) => write!(f, "the template `{key}` at {}", self.at),
            None => write!(f, "the template at {}", self.at),
        }
    }
}
