use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rusqlite::Connection;

use crate::built::Built;
use crate::engine::Engine;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::image::{Content, Identity};
use crate::once_map::OnceMap;
use crate::origin::Purpose;
use crate::registry::MEMORY_ENGINES;
use crate::snapshot::Snapshot;
use crate::unit_of_work::UnitOfWork;
use crate::vfs::{self, Mount, Name, OnConnect, Setup, script};
use crate::{faults, image, outside};

/// A recipe for a database: schema, migrations, seed data. It is carried out once, and then every test and every case of a
/// property test gets an engine of its own with that content, in microseconds.
///
/// ```
/// # use rusqlite_fixtures::{Result, Template};
/// static BANK: Template =
///     Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INT NOT NULL)")
///         .seed("INSERT INTO account VALUES (1, 100), (2, 100)");
///
/// # fn main() -> Result<()> {
/// let bank = BANK.engine()?; // as each test does
/// bank.transaction(|work| work.execute("UPDATE account SET balance = 0", []))?;
///
/// let other = BANK.unit_of_work()?; // on an engine of its own
/// let sum = other.query_row("SELECT sum(balance) FROM account", [], |row| row.get(0));
/// assert_eq!(sum, Ok(200));
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
/// key with its place, SQLite's version and how it was compiled, the version of this crate. So it is left only where that is known: for scripts, and for whatever
/// has a [`key`](Template::key); and not for a script that asks SQLite for the time or attaches a file, unless that has a key.
///
/// While one process builds, the others wait. One that waits for longer than 5 s says on stderr for which process. After
/// 300 s it builds the template itself; at once, if the other process waits for what this one is building.
///
/// The folder has to be the user's own and not writable for others, or it is not used. What goes wrong with an image is
/// said once on stderr, and costs no more than building the template again. Images are read-only files. Those of more than
/// 256 KB are mapped: another program that writes to one in its place while a test runs causes undefined behaviour, and one
/// that truncates it kills the test's process. To replace or remove one is safe. `sqlite3 -readonly` opens one.
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
    built: OnceLock<Result<Arc<Built>>>,
}

#[derive(Clone, Copy)]
struct Recipe {
    at: &'static Location<'static>,
    start: Start,
    steps: [Option<Step>; MAX_STEPS],
    on_connect: Option<OnConnect>,
    /// `None` as in the parent; without one, on.
    foreign_keys: Option<bool>,
    key: Option<&'static str>,
}

#[derive(Clone, Copy)]
enum Start {
    Empty,
    Database(&'static [u8]),
    Template(&'static Template),
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

/// What makes or changes a database: it may fail with any error.
type Build = fn(&mut Connection) -> Result<(), BoxError>;

/// Steps of one template; a derived one has as many again.
const MAX_STEPS: usize = 16;

impl Template {
    /// A database that this script makes. It may hold any number of statements.
    #[track_caller]
    pub const fn sql(script: &'static str) -> Template {
        Template::new(Start::Empty).and(Action::Script(script), Location::caller())
    }

    /// A database that this function makes: by a migration library, or one's own code. The connection is set up as all
    /// connections of the template's engines are.
    ///
    /// ```
    /// # use rusqlite_fixtures::Template;
    /// static BANK: Template = Template::build(|connection| {
    ///     for version in 1..=3 {
    ///         let sql = format!("CREATE TABLE version_{version} (id INTEGER PRIMARY KEY)");
    ///         connection.execute_batch(&sql)?;
    ///     }
    ///     Ok(())
    /// })
    /// .key("bank-v3");
    /// # assert_eq!(BANK.unit_of_work()?.execute("INSERT INTO version_3 VALUES (1)", [])?, 1);
    /// # Ok::<(), rusqlite_fixtures::Error>(())
    /// ```
    #[track_caller]
    pub const fn build(build: fn(&mut Connection) -> Result<(), BoxError>) -> Template {
        Template::new(Start::Empty).and(Action::Function(build), Location::caller())
    }

    /// A database with nothing in it.
    #[track_caller]
    pub const fn empty() -> Template {
        Template::new(Start::Empty)
    }

    /// The database that these bytes are: the content of a SQLite file, as of `include_bytes!`. They are used where they are,
    /// and not copied.
    #[track_caller]
    pub const fn database(bytes: &'static [u8]) -> Template {
        Template::new(Start::Database(bytes))
    }

    /// A template that goes on from another: with its content, and the setup of its connections. The other is built once,
    /// however many are derived from it.
    ///
    /// ```
    /// # use rusqlite_fixtures::Template;
    /// static BANK: Template = Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY)");
    /// static BANK_WITH_ACCOUNTS: Template =
    ///     Template::from(&BANK).seed("INSERT INTO account VALUES (1), (2)");
    /// # assert_eq!(BANK_WITH_ACCOUNTS.unit_of_work()?.execute("DELETE FROM account", [])?, 2);
    /// # Ok::<(), rusqlite_fixtures::Error>(())
    /// ```
    #[track_caller]
    pub const fn from(parent: &'static Template) -> Template {
        Template::new(Start::Template(parent))
    }

    #[track_caller]
    const fn new(start: Start) -> Template {
        let (at, steps) = (Location::caller(), [None; MAX_STEPS]);
        let recipe = Recipe { at, start, steps, on_connect: None, foreign_keys: None, key: None };
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
    /// When it fails, so does the call that opens the connection, with
    /// [`SetupFailed`](crate::ErrorKind::SetupFailed); while the template is built, that fails the build, with
    /// [`BuildFailed`](crate::ErrorKind::BuildFailed). What it panics with, the call that opens the connection panics with;
    /// that fails a build, too. A connection that is opened by an engine's URI is not set up so. From the connections of
    /// units of work, hooks, trace, progress and busy handlers are taken off.
    ///
    /// ```
    /// # use rusqlite_fixtures::Template;
    /// static BANK: Template = Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY)")
    ///     .on_connect(|connection| {
    ///         connection.pragma_update(None, "recursive_triggers", true)?;
    ///         Ok(())
    ///     })
    ///     .key("bank-v3");
    /// # let work = BANK.unit_of_work()?;
    /// # let value = work.pragma_query_value(None, "recursive_triggers", |row| row.get(0));
    /// # assert_eq!(value, Ok(1));
    /// # Ok::<(), rusqlite_fixtures::Error>(())
    /// ```
    #[track_caller]
    pub const fn on_connect(mut self, function: fn(&Connection) -> Result<(), BoxError>) -> Template {
        self.recipe.on_connect = Some(OnConnect { function, at: Location::caller() });
        self
    }

    /// Whether connections enforce foreign keys (`PRAGMA foreign_keys`). They do unless it is said otherwise, while the
    /// template is built, too, and whatever the SQLite library's own default is.
    pub const fn foreign_keys(mut self, on: bool) -> Template {
        self.recipe.foreign_keys = Some(on);
        self
    }

    /// Says that this key, at this place in the source, stands for what the steps' functions, and `on_connect`, put into the
    /// database: it has to change when that does. Then the content can be kept in an image for other processes, if that of its
    /// parent can. Templates that a macro or a function makes at one place need different keys. The text of the source, `.key(include_str!("migrations.rs"))`, is a key that nobody forgets to change.
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
        Ok(Engine::of(self.built()?))
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
        Ok(self.built()?.content().snapshot.clone())
    }

    fn is_empty(&self) -> bool {
        let Recipe { start, steps: [first, ..], on_connect, foreign_keys, .. } = &self.recipe;
        matches!(start, Start::Empty) && first.is_none() && on_connect.is_none() && foreign_keys.is_none()
    }

    /// What it has become; the first call builds it.
    fn built(&self) -> Result<&Arc<Built>> {
        let built = match self.built.get() {
            Some(built) => built,
            // Not in get_or_init, which would never return if the build asks for this very template.
            None => {
                let combination = self.recipe.combination();
                let recursive = || Error::recursive_build(&self.to_string());
                let build = || faults::spare(|| self.recipe.build_for_good()); // it is for others, too
                let built = TEMPLATES.get_or_create(&combination, build, recursive)?;
                self.built.get_or_init(|| built)
            }
        };
        built.as_ref().map_err(Error::clone)
    }
}

impl Engine {
    /// The engine that the whole process shares under this database URL, made of a template by the first who asks.
    /// [`Template::empty`] asks for nothing.
    ///
    /// # Errors
    /// As [`shared`](Engine::shared) and [`Template::engine`]; [`OtherTemplate`](crate::ErrorKind::OtherTemplate) when the
    /// engine of this URL is there, and was made of another template or of none.
    pub fn shared_with(url: impl AsRef<str>, template: &Template) -> Result<Engine> {
        if template.is_empty() {
            return Engine::shared(url);
        }
        MEMORY_ENGINES.get_or_create_of(&url.as_ref().parse()?, template.built()?)
    }
}

/// What has been built, or has failed to be.
static TEMPLATES: OnceMap<Combination, Result<Arc<Built>>> = OnceMap::new();

/// Whatever tells a recipe from others: functions by their addresses, a parent by its own.
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

    fn parent(&self) -> Option<&'static Template> {
        if let Start::Template(parent) = self.start { Some(parent) } else { None }
    }

    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().flatten()
    }

    /// What the build comes to, for all who ask. That a template asks for itself is for this one to know: others may ask
    /// when it has been built.
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
        let content = match self.identity().filter(|identity| self.is_alone_with(identity)) {
            Some(identity) => image::get_or_build(self.label(), &identity, build)?,
            None => build()?,
        };
        Ok(Arc::new(Built::new(&name, content, setup)))
    }

    /// What the steps go on from. (It comes first, since it fails where templates are derived from one another in a circle.)
    fn content_before(&self) -> Result<Content> {
        let snapshot = match self.start {
            Start::Empty => Snapshot::empty(),
            Start::Database(bytes) => Snapshot::from_base(Arc::new(bytes), bytes.len())
                .map_err(|flaw| Error::not_a_database(&format!("the bytes of {self}"), flaw))?,
            Start::Template(parent) => return Ok(parent.built()?.content().clone()),
        };
        Ok(Content { snapshot, is_of_its_time: false })
    }

    /// What is done to each connection: the parents' functions first.
    fn setup(&self) -> Setup {
        let mut setup = self.parent().map_or_else(|| Setup::DEFAULT, |parent| parent.recipe.setup());
        setup.foreign_keys = self.foreign_keys.unwrap_or(setup.foreign_keys);
        setup.on_connect.extend(self.on_connect);
        setup
    }

    fn carry_out(&self, before: Content, setup: &Setup, name: &str) -> Result<Content> {
        vfs::register();
        let mount = Mount::new(before.snapshot, Name::Given(name.to_owned()));
        let (built, asked) = outside::watch(|| {
            let connection = vfs::connect(&vfs::uri(&mount), setup, Purpose::Connection(self.at));
            let mut connection = connection.map_err(|cause| Error::connect_to_build(name, cause))?;
            self.steps().try_for_each(|step| step.carry_out(&mut connection, &mount, name))
        });
        built?;
        let is_of_its_time = (asked || self.asks_for_the_time_zone() || before.is_of_its_time) && self.key.is_none();
        Ok(Content { snapshot: mount.store.current(), is_of_its_time })
    }

    /// SQLite does not ask its VFS for that.
    fn asks_for_the_time_zone(&self) -> bool {
        self.steps().any(|step| match step.action {
            Action::Script(script) => {
                let script = script.to_ascii_lowercase();
                script.contains("'localtime'") || script.contains("'utc'")
            }
            Action::Function(_) => false,
        })
    }

    /// What its content depends on, where that is known.
    fn identity(&self) -> Option<Identity> {
        let is_script = |step: &Step| matches!(step.action, Action::Script(_));
        if self.key.is_none() && (self.on_connect.is_some() || !self.steps().all(is_script)) {
            return None;
        }
        let mut identity = match self.start {
            Start::Template(parent) => parent.recipe.identity()?,
            _ => Identity::new(),
        };
        if let Start::Database(bytes) = self.start {
            identity.add("database", bytes);
        }
        identity.add("foreign keys", if self.setup().foreign_keys { "on" } else { "off" });
        if let Some(key) = self.key {
            // With the place, since one key may have been given to two templates; of two packages, too, that share a folder.
            identity.add("key", key);
            identity.add("at", self.at.to_string());
            identity.add("package", env::var("CARGO_PKG_NAME").unwrap_or_default());
        }
        for step in self.steps() {
            match step.action {
                Action::Script(script) => identity.add("script", script),
                Action::Function(_) => identity.add("function", ""), // for which the key stands
            }
        }
        Some(identity)
    }

    /// Whether no other template of this process has that identity, with other functions. A macro or a function may make
    /// several templates at one place with one key.
    fn is_alone_with(&self, identity: &Identity) -> bool {
        static FUNCTIONS: Mutex<BTreeMap<u128, Vec<usize>>> = Mutex::new(BTreeMap::new());
        let functions = self.functions();
        let mut all = FUNCTIONS.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry(identity.number()).or_insert_with(|| functions.clone()) == functions
    }

    /// The addresses of all functions that the key stands for, the parents' first.
    fn functions(&self) -> Vec<usize> {
        let mut functions = self.parent().map_or_else(Vec::new, |parent| parent.recipe.functions());
        functions.extend(self.steps().filter_map(|step| match step.action {
            Action::Script(_) => None,
            Action::Function(build) => Some(build as usize),
        }));
        functions.extend(self.on_connect.map(|on_connect| on_connect.function as usize));
        functions
    }

    /// What images are called, for people: by the key, or the file that it is written in.
    fn label(&self) -> &str {
        let stem = || Path::new(self.at.file()).file_stem().and_then(|stem| stem.to_str());
        self.short_key().or_else(stem).unwrap_or("template")
    }

    /// The key, if it is one for people; it may be the text of a whole file.
    fn short_key(&self) -> Option<&'static str> {
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
