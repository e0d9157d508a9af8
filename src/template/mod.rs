//! Templates: databases that are built once. Each test gets a private engine with the content.
//!
//! * `Template` (here): the builder that users see.
//! * `kept`: values made from engines, such as pools, that later tests use again.
//! * `migrations`: reads a folder of migrations.
//! * `recipe`: the steps of a template, what identifies it, and how it is built.
//! * `sharing`: which templates share an image between processes (feature `images`).
//! * `image`: the content of a template as a file that processes share (feature `images`).
//!
//! This layer uses `engine` and the layers below it.
//!
//! Invariants:
//! * A recipe is built once in a process, for any number of threads and of templates with the same recipe.
//! * A failure with an image never fails a test: the process builds the template itself.

#[cfg(feature = "images")]
mod image;
mod kept;
mod migrations;
mod recipe;
#[cfg(feature = "images")]
mod sharing;

use std::fmt;
use std::panic::Location;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rusqlite::Connection;

pub use self::kept::{Kept, KeptValues};
use self::recipe::{Action, Built, MAX_STEPS, Recipe, Start, Step};
use crate::content::Snapshot;
use crate::engine::{Engine, MEMORY_ENGINES, UnitOfWork};
use crate::error::{BoxError, Error, Result};
use crate::recording::Limits;
use crate::vfs::OnConnect;

/// A recipe for a database: schema, migrations, seed data. It is built once. Then every test, and every case of a
/// property test, gets a private engine with that content, in microseconds.
///
/// ```
/// # use rusqlite_fixtures::{Result, Template};
/// static BANK: Template =
///     Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INT NOT NULL)")
///         .seed("INSERT INTO account VALUES (1, 100), (2, 100)");
///
/// # fn main() -> Result<()> {
/// let bank = BANK.new_engine()?; // as each test does
/// bank.try_transaction(|work| work.execute("UPDATE account SET balance = 0", []))?;
///
/// let other = BANK.unit_of_work()?; // on another engine
/// let sum = other.query_row("SELECT sum(balance) FROM account", [], |row| row.get(0));
/// assert_eq!(sum, Ok(200));
/// # Ok(())
/// # }
/// ```
///
/// # How it is built
/// The first call runs the steps in order. Meanwhile, calls from other threads wait. A failure is final: all calls in the
/// process return the same error. Templates with the same steps, wherever they are written, are built once.
///
/// # Between processes
/// The first process to build a template leaves an *image* of it: for the other tests of cargo-nextest, which runs each
/// in a process, and for later runs. An image is a SQLite file in the folder `rusqlite-fixtures` of Cargo's target
/// folder, or in the folder that the environment variable `RUSQLITE_FIXTURES_DIR` names (empty: no images). This needs
/// the default feature `images`. The file's name has a hash of everything that decides the content: the steps, the key
/// with its place and package, `foreign_keys`, the clock, the random seed, SQLite's version and compile options, and
/// the version of this crate. A template of scripts has an image. A script that asks SQLite for the time or attaches a
/// file has an image only with a key.
///
/// A template with functions has an image for one run of cargo-nextest: one process of a program runs the functions for
/// all others. So their result must not depend on the process or the test, and they must leave nothing outside of the
/// database, such as a static variable. The time that SQL asks for is that of the build. With a
/// [`key`](Template::key), the image is used in later runs, too.
///
/// While one process builds, the others wait. After 5 s, a waiting process prints on stderr which process it waits for.
/// After 300 s it builds the template itself. It builds at once if the other process waits for a template that this
/// process is building.
///
/// The folder is used only if the user owns it and others can't write to it. If an image fails, the process builds the
/// template itself; the first failure in a process is printed on stderr. Images are read-only files. Images of more
/// than 256 KB are mapped. If another program writes to a mapped image while a test runs, the behavior is undefined;
/// if it truncates one, the test's process is killed. Replacing or removing an image is safe. `sqlite3 -readonly` opens
/// one.
///
/// # Engines are reused
/// When the last handle of an engine is dropped, the template's content is restored, and the engine waits with its
/// connections for the next test. That makes a test's database available in microseconds. An engine is not reused if a
/// connection to it is still open, or if it was [retired](Engine::retire). A connection is not reused if a test left
/// something on it (see [isolation](crate::guide::isolation)). Up to 32 engines of a template are kept; more are
/// closed.
#[derive(Clone)]
pub struct Template {
    recipe: Recipe,
    limits: Option<(Limits, &'static Location<'static>)>,
    /// Whether its engines are strict.
    is_strict: bool,
    slot_limit: Option<Duration>,
    /// The recipe's entry in `TEMPLATES`, after the first use.
    built: OnceLock<Result<Arc<Built>>>,
}

impl Template {
    /// Creates a template from a script, which may have any number of statements.
    #[track_caller]
    pub const fn sql(script: &'static str) -> Template {
        Template::new(Start::Empty).and(Action::Script(script), Location::caller())
    }

    /// Creates a template from a function: a migration library, or your own code. Its connection is set up like all
    /// connections of the template's engines.
    ///
    /// If a template has functions, its steps run on a new thread. There a function may block on a future, even if a task
    /// of an async runtime uses the template first. It sees no thread-local values of the caller: for example,
    /// `Handle::current()` of tokio panics in it. If it starts threads or tasks, they must not use the same template.
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

    /// Creates a template from a function that opens its own connections to the engine: the migrations of sqlx, sea-orm
    /// or diesel. Before the function returns, it must end all transactions on the engine.
    ///
    /// ```
    /// # use rusqlite_fixtures::{Template, rusqlite};
    /// # fn migrate(uri: &str) -> rusqlite::Result<()> {
    /// #     let connection = rusqlite::Connection::open(uri)?;
    /// #     connection.execute_batch("CREATE TABLE account (id INTEGER PRIMARY KEY)")
    /// # }
    /// static BANK: Template = Template::build_on(|engine| Ok(migrate(engine.uri())?));
    /// # assert_eq!(BANK.unit_of_work()?.execute("INSERT INTO account VALUES (1)", [])?, 1);
    /// # Ok::<(), rusqlite_fixtures::Error>(())
    /// ```
    ///
    /// The chapter [other libraries](crate::guide::other_libraries) has the functions for each library.
    #[track_caller]
    pub const fn build_on(build: fn(&Engine) -> Result<(), BoxError>) -> Template {
        Template::new(Start::Empty).and(Action::FunctionOfEngine(build), Location::caller())
    }

    /// Creates a template from a folder of migrations, which run in the order of their numbers.
    ///
    /// | the migrations of | are files like |
    /// | --- | --- |
    /// | sqlx, and others | `1_name.sql`, or `1_name.up.sql` beside `1_name.down.sql` |
    /// | diesel | `2026-01-31-120000_name/up.sql` |
    /// | refinery | `V1__name.sql` |
    ///
    /// If no file has a number, the files run in the order of their names. Each migration runs in a transaction, unless it
    /// begins with the line `-- no-transaction` (as for sqlx), or a `metadata.toml` beside it has
    /// `run_in_transaction = false` (as for diesel). The files are read when the template is built, so a changed migration
    /// needs no new build of the test, and no key. The table in which a migration library notes what it has run is not
    /// created: for code that runs its migrations itself, use [`build_on`](Template::build_on).
    ///
    /// A relative path is below the root of the package that is being tested (`CARGO_MANIFEST_DIR`). For a folder of
    /// another package, use `concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")` in that package.
    ///
    /// ```
    /// # use rusqlite_fixtures::Template;
    /// static BANK: Template = Template::directory("examples/migrations");
    /// # let sql = "INSERT INTO account (owner) VALUES ('Ada')";
    /// # assert_eq!(BANK.unit_of_work()?.execute(sql, [])?, 1);
    /// # Ok::<(), rusqlite_fixtures::Error>(())
    /// ```
    ///
    /// # Errors
    /// The build fails if the folder can't be read or has no migrations, if two migrations have the same number, if only
    /// some have a number, if a file has a number and is no migration in SQL, or if a migration is not UTF-8 or fails. The
    /// message names the file.
    #[track_caller]
    pub const fn directory(folder: &'static str) -> Template {
        Template::new(Start::Directory(folder))
    }

    /// Creates a template of an empty database.
    #[track_caller]
    pub const fn empty() -> Template {
        Template::new(Start::Empty)
    }

    /// Creates a template from the content of a SQLite file, for example by `include_bytes!`. The bytes are not copied.
    #[track_caller]
    pub const fn database(bytes: &'static [u8]) -> Template {
        Template::new(Start::Database(bytes))
    }

    /// Creates a template that starts with the content of another template, and with the setup of its connections. The
    /// parent is built once for all templates that are based on it.
    ///
    /// ```
    /// # use rusqlite_fixtures::Template;
    /// static BANK: Template = Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY)");
    /// static BANK_WITH_ACCOUNTS: Template =
    ///     Template::based_on(&BANK).seed("INSERT INTO account VALUES (1), (2)");
    /// # assert_eq!(BANK_WITH_ACCOUNTS.unit_of_work()?.execute("DELETE FROM account", [])?, 2);
    /// # Ok::<(), rusqlite_fixtures::Error>(())
    /// ```
    #[track_caller]
    pub const fn based_on(parent: &'static Template) -> Template {
        Template::new(Start::Parent(&parent.recipe))
    }

    #[track_caller]
    const fn new(start: Start) -> Template {
        let (at, steps) = (Location::caller(), [None; MAX_STEPS]);
        let recipe = Recipe {
            at,
            start,
            steps,
            on_connect: None,
            foreign_keys: None,
            lock_timeout: None,
            clock: None,
            random_seed: None,
            key: None,
        };
        Template { recipe, limits: None, is_strict: false, slot_limit: None, built: OnceLock::new() }
    }

    /// Adds a script, for example with test data.
    ///
    /// # Panics
    /// If it is the 17th step; in a `static`, at compile time. A template that is based on this one has room for 16
    /// more.
    #[track_caller]
    pub const fn seed(self, script: &'static str) -> Template {
        self.and(Action::Script(script), Location::caller())
    }

    /// Adds a function, for example one that generates test data.
    ///
    /// # Panics
    /// As [`seed`](Template::seed).
    #[track_caller]
    pub const fn seed_with(self, build: fn(&mut Connection) -> Result<(), BoxError>) -> Template {
        self.and(Action::Function(build), Location::caller())
    }

    /// Adds a function that opens its own connections to the engine, as [`build_on`](Template::build_on).
    ///
    /// # Panics
    /// As [`seed`](Template::seed).
    #[track_caller]
    pub const fn seed_on(self, build: fn(&Engine) -> Result<(), BoxError>) -> Template {
        self.and(Action::FunctionOfEngine(build), Location::caller())
    }

    const fn and(mut self, action: Action, at: &'static Location<'static>) -> Template {
        let mut next = 0;
        while next < MAX_STEPS && self.recipe.steps[next].is_some() {
            next += 1;
        }
        assert!(
            next < MAX_STEPS,
            "a template has at most 16 steps; add more in another template, with Template::based_on"
        );
        self.recipe.steps[next] = Some(Step { action, at });
        self
    }

    /// Sets a function that sets up each new connection of the template's engines: pragmas, SQL functions, collations.
    /// A parent's function runs first. The connection that builds the template is set up, too.
    ///
    /// If the function fails, the call that opens the connection fails with
    /// [`SetupFailed`](crate::ErrorKind::SetupFailed), and a build fails with
    /// [`BuildFailed`](crate::ErrorKind::BuildFailed). If it panics, the call that opens the connection panics, and a
    /// build fails. The function does not run for connections that are opened by an engine's URI. Hooks, trace,
    /// progress and busy handlers are removed from units of work and pooled connections.
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

    /// Sets whether connections enforce foreign keys (`PRAGMA foreign_keys`), also while the template is built. The
    /// default is on, even if the SQLite library's default is off.
    pub const fn foreign_keys(mut self, on: bool) -> Template {
        self.recipe.foreign_keys = Some(on);
        self
    }

    /// Sets how long a writer on the template's engines waits for the writer slot (see
    /// [`Engine::set_lock_timeout`]). The default is the parent's time, or that of an engine without a template.
    pub const fn lock_timeout(mut self, timeout: Duration) -> Template {
        self.recipe.lock_timeout = Some(timeout);
        self
    }

    /// Gives each engine a clock that stands at this time, as RFC 3339 writes it: `2026-01-31T12:00:00Z`. The time that
    /// SQL asks for is this, also while the template is built. [`Engine::clock`] changes it. The default is the parent's
    /// clock, or the system's.
    ///
    /// A script that asks for the time has an image then, without a [`key`](Template::key).
    ///
    /// # Errors
    /// The build fails if the text is no time of the years 0000 to 9999.
    pub const fn clock(mut self, time: &'static str) -> Template {
        self.recipe.clock = Some(time);
        self
    }

    /// Makes `random()` and `randomblob()` return the same numbers for each test, and when the template is built. All
    /// connections to an engine, of any library, draw from one sequence, which begins with each new engine. So they repeat
    /// if the test calls them in the same order. The default is the parent's seed, or the numbers of SQLite.
    ///
    /// Other versions of this crate, or of its dependency fastrand, may return other numbers.
    pub const fn random_seed(mut self, seed: u64) -> Template {
        self.recipe.random_seed = Some(seed);
        self
    }

    /// Sets limits for the statements that run on each engine of this template. They are checked when
    /// the last handle of the engine is dropped. If they are exceeded, the test fails. [`Engine::unwatched`] exempts a part
    /// of a test, [`Limits::except`] some statements.
    ///
    /// The limits are not those of templates that are [based on](Template::based_on) this one, nor of
    /// [shared](Engine::shared_with) engines and [kept values](KeptValues).
    ///
    /// # Panics
    /// This call never panics. Dropping an engine's last handle panics if the limits are exceeded, or if statements may be
    /// missing in the recording, unless that thread is panicking already. If another thread drops it, only that thread
    /// panics. If the test returns an error, the panic replaces it.
    #[track_caller]
    pub const fn watch(mut self, limits: Limits) -> Template {
        self.limits = Some((limits, Location::caller()));
        self
    }

    /// Turns on [strict mode](Engine::strict) for each engine of this template. Templates based on this one, shared engines and
    /// kept values are not strict.
    ///
    /// # Panics
    /// This call never panics. Dropping an engine's last handle may, as [`Engine::strict`] says.
    pub const fn strict(mut self) -> Template {
        self.is_strict = true;
        self
    }

    /// Turns on [strict mode](Engine::strict), and sets how long a transaction may hold the writer slot: 1 s by default.
    ///
    /// # Panics
    /// As [`strict`](Template::strict).
    pub const fn strict_slot_limit(mut self, limit: Duration) -> Template {
        self.slot_limit = Some(limit);
        self.strict()
    }

    /// Sets the key that identifies the content that the functions of the steps, and `on_connect`, put into the
    /// database. With a key, an image of the content is used in later test runs, after new builds of the program, and
    /// by other programs of the package, until the key changes. So change the key when that content changes. The place
    /// of the key in the source is part of the identity. So templates that a macro or a function creates at one place
    /// need different keys. The text of the source, `.key(include_str!("migrations.rs"))`, is a key that changes
    /// automatically. A key is only for the steps of its own template: if the parent has functions, it needs a key of its own.
    pub const fn key(mut self, key: &'static str) -> Template {
        self.recipe.key = Some(key);
        self
    }

    /// Returns a private engine with the template's content. Its [`reset`](Engine::reset) restores that content.
    ///
    /// # Errors
    /// [`BuildFailed`](crate::ErrorKind::BuildFailed) if the template can't be built;
    /// [`RecursiveCreation`](crate::ErrorKind::RecursiveCreation) within its own build.
    pub fn new_engine(&self) -> Result<Engine> {
        let engine = Engine::of(&self.built()?.pool)?.made_strict_if_asked();
        if self.is_strict {
            engine.strict();
        }
        self.slot_limit.into_iter().for_each(|limit| engine.strict_slot_limit(limit));
        self.limits.into_iter().for_each(|(limits, at)| limits.watch(&engine, at));
        Ok(engine)
    }

    /// Begins a unit of work on a private engine: `new_engine()?.unit_of_work()`.
    ///
    /// # Errors
    /// As [`new_engine`](Template::new_engine) and [`Engine::unit_of_work`].
    #[track_caller]
    pub fn unit_of_work(&self) -> Result<UnitOfWork> {
        self.new_engine()?.unit_of_work()
    }

    /// Returns the template's content.
    ///
    /// # Errors
    /// As [`new_engine`](Template::new_engine).
    pub fn snapshot(&self) -> Result<Snapshot> {
        Ok(self.built()?.pool.content().clone())
    }

    fn observed_engine(&self) -> Result<Engine> {
        Engine::observed_of(&self.built()?.pool)
    }

    fn is_empty(&self) -> bool {
        let Recipe { start, steps: [first, ..], on_connect, foreign_keys, lock_timeout, clock, random_seed, .. } =
            &self.recipe;
        let has_settings = on_connect.is_some()
            || foreign_keys.is_some()
            || lock_timeout.is_some()
            || clock.is_some()
            || random_seed.is_some();
        matches!(start, Start::Empty) && first.is_none() && !has_settings
    }

    /// Returns the result of the build; the first call builds it.
    fn built(&self) -> Result<&Arc<Built>> {
        let built = match self.built.get() {
            Some(built) => built,
            // This is not in get_or_init, which would never return if the build needs this same template.
            None => {
                let built = self.recipe.built()?;
                self.built.get_or_init(|| built)
            }
        };
        built.as_ref().map_err(Error::clone)
    }
}

impl Engine {
    /// Returns the engine that the whole process shares under this database URL. The first call creates it, with the
    /// template's content. [`Template::empty`] accepts any engine.
    ///
    /// # Errors
    /// As [`shared`](Engine::shared) and [`Template::new_engine`]; [`OtherTemplate`](crate::ErrorKind::OtherTemplate)
    /// if the engine of this URL exists, and was created from another template or without one;
    /// [`FileNotUsed`](crate::ErrorKind::FileNotUsed) if the URL names a file that exists, because its content may be
    /// another.
    pub fn shared_with(url: impl AsRef<str>, template: &Template) -> Result<Engine> {
        if template.is_empty() {
            return Engine::shared(url);
        }
        MEMORY_ENGINES.get_or_create_of(&url.as_ref().parse()?, &template.built()?.pool)
    }
}

impl fmt::Display for Template {
    /// Prints its key, and its place in the source: `the template at tests/bank.rs:7:25`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.recipe.fmt(f)
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_with_any_step_or_setting_is_not_empty() {
        assert!(Template::empty().is_empty() && Template::empty().key("a").is_empty());
        assert!(Template::empty().watch(Limits::new()).is_empty(), "shared engines have no limits");
        for template in [
            Template::sql(""),
            Template::database(b""),
            Template::directory("examples/migrations"),
            Template::empty().on_connect(|_| Ok(())),
            Template::empty().foreign_keys(true),
            Template::empty().lock_timeout(Duration::ZERO),
            Template::empty().clock("2026-01-31"),
            Template::empty().random_seed(42),
            Template::empty().seed_with(|_| Ok(())),
            Template::empty().seed_on(|_| Ok(())),
            Template::build_on(|_| Ok(())),
        ] {
            assert!(!template.is_empty(), "{template}");
        }
    }
}
