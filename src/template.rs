use std::fmt;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::{Arc, OnceLock};

use rusqlite::Connection;

use crate::engine::Engine;
use crate::error::{BoxError, Error, Result};
use crate::image::{Content, Identity};
use crate::once_map::OnceMap;
use crate::origin::Purpose;
use crate::pool::Pool;
use crate::snapshot::Snapshot;
use crate::unit_of_work::UnitOfWork;
use crate::vfs::{self, Mount, Name, Setup, script};
use crate::{clock, image};

/// A recipe for a database: schema, migrations, seed data. It is carried out once, and then every test and every case of a
/// property test gets an engine of its own with that content, in microseconds.
///
/// ```
/// # use rusqlite_fixtures::{Result, Template};
/// static BANK: Template = Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
///     .seed("INSERT INTO account VALUES (1, 100), (2, 100)");
///
/// # fn main() -> Result<()> {
/// let bank = BANK.engine()?; // as each test does
/// bank.transaction(|work| work.execute("UPDATE account SET balance = 0", []))?;
///
/// let other = BANK.unit_of_work()?; // on an engine of its own
/// assert_eq!(other.query_row("SELECT sum(balance) FROM account", [], |row| row.get::<_, i64>(0))?, 200);
/// # Ok(())
/// # }
/// ```
///
/// # How it is built
/// The steps are carried out in order, by the first who asks; those who ask meanwhile wait. A failure is final: all who
/// ask get the same error. Templates of the same steps, wherever they are written, are built once.
///
/// # Between processes
/// Where each test is a process, as under cargo-nextest, the first of them leaves an *image* for the others: a SQLite file
/// in the folder `rusqlite-fixtures` of Cargo's target folder, or in the folder that the environment variable
/// `RUSQLITE_FIXTURES_DIR` names (empty: nowhere). Its name has a hash of all that decides the content: the scripts, the
/// key, the versions of SQLite and of this crate. So it is left only where that is known: for scripts, and for whatever
/// has a [`key`](Template::key); and not for a script that asks SQLite for the time, unless that has a key.
///
/// The folder has to be the user's own and not writable for others, or it is not used. What goes wrong with an image is
/// said once on stderr, and costs no more than building the template again.
///
/// # Engines are used again
/// When the last handle of an engine is dropped, its content goes back to the template's, and it waits with its connections
/// for the next test: that is what makes a test's database a matter of microseconds. An engine to which a connection is still
/// open is not used again, nor is a connection that something was left in (see the README's limits), nor what was
/// [retired](Engine::retire).
#[derive(Clone)]
pub struct Template {
    recipe: Recipe,
    /// What `TEMPLATES` has for the recipe, once it is known.
    built: OnceLock<Result<Arc<Pool>>>,
}

#[derive(Clone, Copy)]
struct Recipe {
    at: &'static Location<'static>,
    parent: Option<&'static Template>,
    steps: [Option<Step>; MAX_STEPS],
    on_connect: Option<fn(&Connection)>,
    /// `None` as in the parent; without one, on.
    foreign_keys: Option<bool>,
    key: Option<&'static str>,
}

#[derive(Clone, Copy)]
struct Step {
    action: Action,
    at: &'static Location<'static>,
}

#[derive(Clone, Copy)]
enum Action {
    Script(&'static str),
    Function(Build),
}

type Build = fn(&mut Connection) -> Result<(), BoxError>;

/// Steps of one template; a derived one has as many again.
const MAX_STEPS: usize = 16;

impl Template {
    /// A database that this script makes. It may hold any number of statements.
    #[track_caller]
    pub const fn sql(script: &'static str) -> Template {
        Template::new(None).and(Action::Script(script), Location::caller())
    }

    /// A database that this function makes: by a migration library, or one's own code. The connection is set up as all
    /// connections of the template's engines are.
    ///
    /// ```
    /// # use rusqlite_fixtures::Template;
    /// static BANK: Template = Template::build(|connection| {
    ///     for version in 1..=3 {
    ///         connection.execute_batch(&format!("CREATE TABLE version_{version} (id INTEGER PRIMARY KEY)"))?;
    ///     }
    ///     Ok(())
    /// })
    /// .key("bank-v3");
    /// # assert_eq!(BANK.unit_of_work()?.execute("INSERT INTO version_3 VALUES (1)", [])?, 1);
    /// # Ok::<(), rusqlite_fixtures::Error>(())
    /// ```
    #[track_caller]
    pub const fn build(build: fn(&mut Connection) -> Result<(), BoxError>) -> Template {
        Template::new(None).and(Action::Function(build), Location::caller())
    }

    /// A database with nothing in it.
    #[track_caller]
    pub const fn empty() -> Template {
        Template::new(None)
    }

    /// A template that goes on from another: with its content, and the setup of its connections. The other is built once,
    /// however many are derived from it.
    ///
    /// ```
    /// # use rusqlite_fixtures::Template;
    /// static BANK: Template = Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY)");
    /// static BANK_WITH_ACCOUNTS: Template = Template::from(&BANK).seed("INSERT INTO account VALUES (1), (2)");
    /// # assert_eq!(BANK_WITH_ACCOUNTS.unit_of_work()?.execute("DELETE FROM account", [])?, 2);
    /// # Ok::<(), rusqlite_fixtures::Error>(())
    /// ```
    #[track_caller]
    pub const fn from(parent: &'static Template) -> Template {
        Template::new(Some(parent))
    }

    #[track_caller]
    const fn new(parent: Option<&'static Template>) -> Template {
        let (at, steps) = (Location::caller(), [None; MAX_STEPS]);
        let recipe = Recipe { at, parent, steps, on_connect: None, foreign_keys: None, key: None };
        Template { recipe, built: OnceLock::new() }
    }

    /// Adds a script, as for test data.
    ///
    /// # Panics
    /// When it is the 17th step, at compile time in a `static`: a derived template has room for more.
    #[track_caller]
    pub const fn seed(self, script: &'static str) -> Template {
        self.and(Action::Script(script), Location::caller())
    }

    /// Adds a function, as for test data that is made by code.
    ///
    /// # Panics
    /// As [`seed`](Template::seed).
    #[track_caller]
    pub const fn seed_with(self, build: fn(&mut Connection) -> Result<(), BoxError>) -> Template {
        self.and(Action::Function(build), Location::caller())
    }

    const fn and(mut self, action: Action, at: &'static Location<'static>) -> Template {
        let mut next = 0;
        while next < MAX_STEPS && self.recipe.steps[next].is_some() {
            next += 1;
        }
        assert!(next < MAX_STEPS, "a template has at most 16 steps; Template::from goes on from one");
        self.recipe.steps[next] = Some(Step { action, at });
        self
    }

    /// Has this function called with each connection of the template's engines before anybody has it: for pragmas, SQL
    /// functions, collations. One that is derived calls its parent's first. It is called before the template is built, too.
    ///
    /// A connection that is opened by an engine's URI is not set up so. From the connections of units of work, hooks,
    /// trace, progress and busy handlers are taken off.
    pub const fn on_connect(mut self, on_connect: fn(&Connection)) -> Template {
        self.recipe.on_connect = Some(on_connect);
        self
    }

    /// Whether connections enforce foreign keys (`PRAGMA foreign_keys`). They do unless it is said otherwise, while the
    /// template is built, too, and whatever the SQLite library's own default is.
    pub const fn foreign_keys(mut self, on: bool) -> Template {
        self.recipe.foreign_keys = Some(on);
        self
    }

    /// Says that this key, at this place in the source, stands for what the steps' functions, and `on_connect`, put into the
    /// database: it has to change when that does. Then the content can be kept in an image for other processes.
    pub const fn key(mut self, key: &'static str) -> Template {
        self.recipe.key = Some(key);
        self
    }

    /// An engine of one's own with the template's content, to which its [`reset`](Engine::reset) goes back.
    ///
    /// # Errors
    /// [`BuildFailed`](crate::ErrorKind::BuildFailed) when the template can't be built;
    /// [`RecursiveCreation`](crate::ErrorKind::RecursiveCreation) inside of its own build.
    pub fn engine(&self) -> Result<Engine> {
        Ok(Engine::pooled(self.pool()?))
    }

    /// A unit of work on an engine of its own: `engine()?.unit_of_work()`.
    ///
    /// # Errors
    /// As [`engine`](Template::engine) and [`Engine::unit_of_work`].
    #[track_caller]
    pub fn unit_of_work(&self) -> Result<UnitOfWork> {
        self.engine()?.unit_of_work()
    }

    /// The template's content.
    ///
    /// # Errors
    /// As [`engine`](Template::engine).
    pub fn snapshot(&self) -> Result<Snapshot> {
        Ok(self.pool()?.content().snapshot.clone())
    }

    pub(crate) fn is_empty(&self) -> bool {
        let Recipe { parent, steps: [first, ..], on_connect, foreign_keys, .. } = &self.recipe;
        parent.is_none() && first.is_none() && on_connect.is_none() && foreign_keys.is_none()
    }

    /// What it has become; the first call builds it.
    pub(crate) fn pool(&self) -> Result<&Arc<Pool>> {
        let built = match self.built.get() {
            Some(built) => built,
            // Not in get_or_init, which would never return if the build asks for this very template.
            None => {
                let built = TEMPLATES.get_or_create(
                    &self.recipe.combination(),
                    || Ok(self.recipe.build()),
                    || Error::recursive_build(&self.to_string()),
                )?;
                self.built.get_or_init(|| built)
            }
        };
        built.as_ref().map_err(Error::clone)
    }
}

/// What has been built, or has failed to be.
static TEMPLATES: OnceMap<Combination, Result<Arc<Pool>>> = OnceMap::new();

/// Whatever tells a recipe from others: functions by their addresses, a parent by its own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Combination {
    parent: Option<usize>,
    steps: Vec<Result<&'static str, usize>>,
    on_connect: Option<usize>,
    foreign_keys: Option<bool>,
    key: Option<&'static str>,
}

impl Recipe {
    fn combination(&self) -> Combination {
        let steps = self.steps().map(|step| match step.action {
            Action::Script(script) => Ok(script),
            Action::Function(build) => Err(build as usize),
        });
        Combination {
            parent: self.parent.map(|parent| std::ptr::from_ref(parent).addr()),
            steps: steps.collect(),
            on_connect: self.on_connect.map(|on_connect| on_connect as usize),
            foreign_keys: self.foreign_keys,
            key: self.key,
        }
    }

    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().flatten()
    }

    fn build(&self) -> Result<Arc<Pool>> {
        let parent = self.parent.map(Template::pool).transpose()?;
        let empty = || Content { snapshot: Snapshot::empty(), is_of_its_time: false };
        let before = parent.map_or_else(empty, |pool| pool.content().clone());
        let setup = self.setup();
        let name = self.to_string();
        let build = || {
            let built = catch_unwind(AssertUnwindSafe(|| self.carry_out(before, &setup, &name)));
            built.unwrap_or_else(|payload| Err(Error::build_panicked(&name, &*payload)))
        };
        let content = match self.identity() {
            Some(identity) => image::get_or_build(&self.label(), &identity, build)?,
            None => build()?,
        };
        Ok(Arc::new(Pool::new(&name, content, setup)))
    }

    /// What is done to each connection: the parents' functions first.
    fn setup(&self) -> Setup {
        let mut setup = self.parent.map_or_else(|| Setup::DEFAULT, |parent| parent.recipe.setup());
        setup.foreign_keys = self.foreign_keys.unwrap_or(setup.foreign_keys);
        setup.on_connect.extend(self.on_connect);
        setup
    }

    fn carry_out(&self, before: Content, setup: &Setup, name: &str) -> Result<Content> {
        vfs::register();
        let mount = Mount::new(before.snapshot, Name::Given(name.to_owned()));
        let (built, asked) = clock::watch(|| {
            let connection = vfs::connect(&vfs::uri(&mount), setup, Purpose::Connection(self.at));
            let mut connection = connection.map_err(|cause| Error::connect_to_build(name, cause))?;
            self.steps().try_for_each(|step| step.carry_out(&mut connection, name))
        });
        built?;
        let is_of_its_time = (asked || before.is_of_its_time) && self.key.is_none();
        Ok(Content { snapshot: mount.store.current(), is_of_its_time })
    }

    /// What its content depends on, where that is known.
    fn identity(&self) -> Option<Identity> {
        let mut identity = match self.parent {
            Some(parent) => parent.recipe.identity()?,
            None => Identity::new(),
        };
        let is_known = self.key.is_some() || self.on_connect.is_none();
        identity.add("foreign keys", if self.setup().foreign_keys { "on" } else { "off" });
        if let Some(key) = self.key {
            // With the place, since one key may have been given to two templates.
            identity.add("key", key);
            identity.add("at", &self.at.to_string());
        }
        for step in self.steps() {
            match step.action {
                Action::Script(script) => identity.add("script", script),
                Action::Function(_) if self.key.is_some() => identity.add("function", ""),
                Action::Function(_) => return None,
            }
        }
        is_known.then_some(identity)
    }

    /// What images are called, for people: by the key, or the file that it is written in.
    fn label(&self) -> String {
        let stem = || std::path::Path::new(self.at.file()).file_stem().and_then(|stem| stem.to_str());
        self.key.or_else(stem).unwrap_or("template").to_owned()
    }
}

impl Step {
    fn carry_out(&self, connection: &mut Connection, template: &str) -> Result<()> {
        match self.action {
            Action::Script(script) => script::run(connection, script).map_err(|failure| {
                let line = 1 + script[..failure.at].matches('\n').count();
                Error::script_failed(template, self.at, line, script[failure.statement].trim_end(), failure.cause)
            })?,
            Action::Function(build) => {
                build(connection).map_err(|cause| Error::function_failed(template, self.at, cause))?;
            }
        }
        if connection.is_autocommit() { Ok(()) } else { Err(Error::transaction_left_open(template, self.at)) }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key {
            Some(key) => write!(f, "the template `{key}` at {}", self.at),
            None => write!(f, "the template at {}", self.at),
        }
    }
}

impl fmt::Display for Template {
    /// By its key, and where it is written: `the template at tests/bank.rs:7:25`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.recipe.fmt(f)
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({self})")
    }
}
