//! How a template is built: its steps, its identity, and the result of the build in this process.

use std::fmt;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::migrations::{self, Migration};
use crate::content::Snapshot;
use crate::content::origin::Purpose;
use crate::engine::{Engine, WarmPool};
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::faults;
use crate::once_map::{self, OnceMap};
use crate::vfs::{OnConnect, Setup, Time, external, script};

#[derive(Clone, Copy)]
pub(super) struct Recipe {
    pub(super) at: &'static Location<'static>,
    pub(super) start: Start,
    pub(super) steps: [Option<Step>; MAX_STEPS],
    pub(super) on_connect: Option<OnConnect>,
    /// `None`: as in the parent; on if there is no parent.
    pub(super) foreign_keys: Option<bool>,
    /// `None`: as in the parent, or the default time.
    pub(super) lock_timeout: Option<Duration>,
    /// `None`: as in the parent, or the system's time.
    pub(super) clock: Option<&'static str>,
    /// `None`: as in the parent, or SQLite's numbers.
    pub(super) random_seed: Option<u64>,
    pub(super) key: Option<&'static str>,
}

#[derive(Clone, Copy)]
pub(super) enum Start {
    Empty,
    Database(&'static [u8]),
    /// The folder of its migrations.
    Directory(&'static str),
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
    FunctionOfEngine(BuildOn),
}

/// A function that makes or changes a database. It may fail with any error.
pub(super) type Build = fn(&mut Connection) -> Result<(), BoxError>;

/// A function that opens its own connections to the engine.
pub(super) type BuildOn = fn(&Engine) -> Result<(), BoxError>;

/// How long a build waits for the transactions that a function has left. It may have dropped a pool, whose threads close
/// its connections a little later.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);

/// The largest number of steps of one template. A template that is based on it may have the same number of its own steps.
pub(super) const MAX_STEPS: usize = 16;

/// The result of building a recipe.
pub(super) struct Built {
    pub(super) pool: Arc<WarmPool>,
    #[cfg_attr(not(feature = "images"), expect(dead_code, reason = "only the identity of an image reads them"))]
    pub(super) migrations: Vec<Migration>,
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
    directory: Option<&'static str>,
    steps: Vec<StepIdentity>,
    on_connect: Option<usize>,
    foreign_keys: Option<bool>,
    lock_timeout: Option<Duration>,
    clock: Option<&'static str>,
    random_seed: Option<u64>,
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
            Action::FunctionOfEngine(build) => StepIdentity::Function(build as usize),
        });
        Combination {
            parent: self.parent().map(|parent| std::ptr::from_ref(parent).addr()),
            database: if let Start::Database(bytes) = self.start { Some(bytes) } else { None },
            directory: if let Start::Directory(folder) = self.start { Some(folder) } else { None },
            steps: steps.collect(),
            on_connect: self.on_connect.map(|on_connect| on_connect.function as usize),
            foreign_keys: self.foreign_keys,
            lock_timeout: self.lock_timeout,
            clock: self.clock,
            random_seed: self.random_seed,
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
        self.check_clock()?;
        let migrations = self.migrations()?;
        let name = self.to_string();
        let build = || {
            let work = || self.carry_out(before, &migrations, &name);
            let built = match self.has_functions() {
                // A function may run a future to its end. That is an error on a thread that is running one.
                true => once_map::on_new_thread(work).map_err(|cause| Error::no_thread(&name, cause))?,
                false => catch_unwind(AssertUnwindSafe(work)),
            };
            built.unwrap_or_else(|payload| Err(Error::build_panicked(&name, &*payload)))
        };
        let content = self.shared_or_built(&migrations, build)?;
        let pool = Arc::new(WarmPool::new(&name, content.snapshot, self.setup()));
        Ok(Arc::new(Built { pool, migrations, depends_on_time: content.depends_on_time }))
    }

    fn check_clock(&self) -> Result<()> {
        let Some(time) = self.clock else { return Ok(()) };
        Time::parse(time).map(drop).map_err(|flaw| Error::no_time_of_template(&self.to_string(), time, flaw))
    }

    fn migrations(&self) -> Result<Vec<Migration>> {
        let Start::Directory(folder) = self.start else { return Ok(Vec::new()) };
        migrations::read(folder).map_err(|flaw| Error::no_migrations(&self.to_string(), &flaw))
    }

    pub(super) fn has_functions(&self) -> bool {
        self.steps().any(|step| !matches!(step.action, Action::Script(_)))
    }

    #[cfg(not(feature = "images"))]
    fn shared_or_built(&self, _: &[Migration], build: impl FnOnce() -> Result<Content>) -> Result<Content> {
        build()
    }

    /// Returns the content that the steps start with. It is needed first, because it fails if templates are based on one
    /// another in a cycle.
    fn content_before(&self) -> Result<Content> {
        let snapshot = match self.start {
            Start::Empty | Start::Directory(_) => Snapshot::empty(),
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
        setup.lock_timeout = self.lock_timeout.or(setup.lock_timeout);
        let surroundings = &mut setup.surroundings;
        surroundings.clock = self.clock.and_then(|time| Time::parse(time).ok()).or(surroundings.clock);
        surroundings.random_seed = self.random_seed.or(surroundings.random_seed);
        setup.on_connect.extend(self.on_connect);
        setup
    }

    fn carry_out(&self, before: Content, migrations: &[Migration], name: &str) -> Result<Content> {
        let engine = Engine::for_build(&Arc::new(WarmPool::new(name, before.snapshot, self.setup())))?;
        let (built, asked) = external::observe(|| {
            let connection = engine.open_connection(Purpose::Connection(self.at));
            let mut connection = connection.map_err(|cause| Error::connect_to_build(name, cause))?;
            migrations.iter().try_for_each(|migration| migration.carry_out(&connection, name))?;
            self.steps().try_for_each(|step| step.carry_out(&mut connection, &engine, name))
        });
        built?;
        let asked = asked || self.scripts(migrations).any(asks_for_the_time_zone);
        let depends_on_time = (asked || before.depends_on_time) && self.key.is_none();
        Ok(Content { snapshot: engine.snapshot(), depends_on_time })
    }

    fn scripts<'a>(&self, migrations: &'a [Migration]) -> impl Iterator<Item = &'a str> {
        let steps = self.steps().filter_map(|step| match step.action {
            Action::Script(script) => Some(script),
            Action::Function(_) | Action::FunctionOfEngine(_) => None,
        });
        migrations.iter().map(|migration| &*migration.sql).chain(steps)
    }

    /// Returns the key if it is short enough to print. A key may be the text of a whole file.
    pub(super) fn short_key(&self) -> Option<&'static str> {
        self.key.filter(|key| key.len() <= 40 && !key.contains('\n'))
    }
}

/// Returns whether the script uses the time zone, for which SQLite does not call its VFS.
fn asks_for_the_time_zone(script: &str) -> bool {
    let script = script.to_ascii_lowercase();
    script.contains("'localtime'") || script.contains("'utc'")
}

impl Step {
    fn carry_out(&self, connection: &mut Connection, engine: &Engine, template: &str) -> Result<()> {
        let failed = |cause| Error::function_failed(template, self.at, cause);
        let step = format_args!("the step given at {}", self.at);
        match self.action {
            Action::Script(script) => {
                run(connection, script, template, &format_args!("the script given at {}", self.at))?;
            }
            Action::Function(build) => {
                build(connection).map_err(failed)?;
                if !engine.is_open_on(connection) {
                    return Err(Error::connection_replaced(template, self.at));
                }
            }
            Action::FunctionOfEngine(build) => {
                build(engine).map_err(failed)?;
                let ended = engine.wait_for_writers(Purpose::Build(self.at), SETTLES_WITHIN);
                ended.map_err(|refusal| Error::transaction_not_ended(template, self.at, &refusal))?;
            }
        }
        check_ended(connection, template, &step)
    }
}

impl Migration {
    fn carry_out(&self, connection: &Connection, template: &str) -> Result<()> {
        let migration = format_args!("the migration `{}`", self.path.display());
        let in_transaction = |command| -> Result<()> {
            if self.runs_in_transaction {
                let done = connection.execute_batch(command);
                done.map_err(|cause| Error::migration_not_in_transaction(template, &migration, cause))?;
            }
            Ok(())
        };
        in_transaction("BEGIN")?;
        run(connection, &self.sql, template, &migration)?;
        in_transaction("COMMIT")?;
        check_ended(connection, template, &migration)
    }
}

/// Runs a script; `name` is its name in messages.
fn run(connection: &Connection, script: &str, template: &str, name: &impl fmt::Display) -> Result<()> {
    script::run(connection, script).map_err(|failure| {
        let lines_before = script.as_bytes()[..failure.at].iter().filter(|byte| **byte == b'\n').count();
        let statement = script.get(failure.statement).unwrap_or_default().trim_end();
        Error::script_failed(template, name, 1 + lines_before, statement, failure.cause)
    })
}

fn check_ended(connection: &Connection, template: &str, step: &impl fmt::Display) -> Result<()> {
    if connection.is_autocommit() { Ok(()) } else { Err(Error::transaction_left_open(template, step)) }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.short_key() {
            Some(key) => write!(f, "the template `{key}` at {}", self.at),
            None => write!(f, "the template at {}", self.at),
        }
    }
}
