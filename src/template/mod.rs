//! Templates: databases that are built once, and of which each test gets an engine of its own.
//!
//! * `Template` (here): the builder that users see.
//! * `recipe`: the steps of a template, what identifies it, and how it is built.
//! * `image`: the content of a template as a file that processes share.
//!
//! It uses `engine` and what is below.
//!
//! Invariants:
//! * A recipe is built once in a process, however many threads ask and in however many templates it is written.
//! * What goes wrong with an image never fails a test: the template is built in the process.

mod image;
mod recipe;

use std::fmt;
use std::panic::Location;
use std::sync::{Arc, OnceLock};

use rusqlite::Connection;

use self::recipe::{Action, Built, MAX_STEPS, Recipe, Start, Step};
use crate::content::Snapshot;
use crate::engine::{Engine, MEMORY_ENGINES, UnitOfWork};
use crate::error::{BoxError, Error, Result};
use crate::vfs::OnConnect;

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
/// let bank = BANK.new_engine()?; // as each test does
/// bank.try_transaction(|work| work.execute("UPDATE account SET balance = 0", []))?;
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
/// key with its place and package, `foreign_keys`, SQLite's version and how it was compiled, the version of this crate. So
/// there is one only where all that is known: for scripts, and for functions with a [`key`](Template::key). A script that asks
/// SQLite for the time or attaches a file has one only with a key.
///
/// While one process builds, the others wait. One that waits for longer than 5 s says on stderr for which process. After
/// 300 s it builds the template itself; at once, if the other process waits for what this one is building.
///
/// The folder has to be the user's own and not writable for others, or it is not used. What goes wrong with an image is
/// said once in a process on stderr, and costs no more than building the template again. Images are read-only files. Those of more than
/// 256 KB are mapped: another program that writes to one in its place while a test runs causes undefined behaviour, and one
/// that truncates it kills the test's process. To replace or remove one is safe. `sqlite3 -readonly` opens one.
///
/// # Engines are used again
/// When the last handle of an engine is dropped, its content goes back to the template's, and it waits with its connections
/// for the next test: that is what makes a test's database a matter of microseconds. An engine to which a connection is still
/// open is not used again, nor is a connection that something was left in (see the README's limits), nor what was
/// [retired](Engine::retire). Up to 32 engines of a template wait; what is beyond is closed.
#[derive(Clone)]
pub struct Template {
    recipe: Recipe,
    /// What `TEMPLATES` has for the recipe, once it is known.
    built: OnceLock<Result<Arc<Built>>>,
}

impl Template {
    /// A database that this script makes. It may hold any number of statements.
    #[track_caller]
    pub const fn sql(script: &'static str) -> Template {
        Template::new(Start::Empty).and(Action::Script(script), Location::caller())
    }

    /// A database that this function makes: by a migration library, or your own code. The connection is set up as all
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
        assert!(next < MAX_STEPS, "a template has at most 16 steps; Template::based_on goes on from one");
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
    /// units of work and pooled connections, hooks, trace, progress and busy handlers are taken off.
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
    /// parent can. Templates that a macro or a function makes at one place need different keys. The text of the source,
    /// `.key(include_str!("migrations.rs"))`, is a key that nobody forgets to change.
    pub const fn key(mut self, key: &'static str) -> Template {
        self.recipe.key = Some(key);
        self
    }

    /// Returns an engine with the template's content, which nobody else has. Its [`reset`](Engine::reset) goes back to that
    /// content.
    ///
    /// # Errors
    /// [`BuildFailed`](crate::ErrorKind::BuildFailed) when the template can't be built;
    /// [`RecursiveCreation`](crate::ErrorKind::RecursiveCreation) inside of its own build.
    pub fn new_engine(&self) -> Result<Engine> {
        Ok(Engine::of(&self.built()?.pool))
    }

    /// A unit of work on an engine of its own: `new_engine()?.unit_of_work()`.
    ///
    /// # Errors
    /// As [`new_engine`](Template::new_engine) and [`Engine::unit_of_work`].
    #[track_caller]
    pub fn unit_of_work(&self) -> Result<UnitOfWork> {
        self.new_engine()?.unit_of_work()
    }

    /// The template's content.
    ///
    /// # Errors
    /// As [`new_engine`](Template::new_engine).
    pub fn snapshot(&self) -> Result<Snapshot> {
        Ok(self.built()?.pool.content().clone())
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
                let built = self.recipe.built()?;
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
    /// As [`shared`](Engine::shared) and [`Template::new_engine`]; [`OtherTemplate`](crate::ErrorKind::OtherTemplate) when the
    /// engine of this URL is there, and was made of another template or of none.
    pub fn shared_with(url: impl AsRef<str>, template: &Template) -> Result<Engine> {
        if template.is_empty() {
            return Engine::shared(url);
        }
        MEMORY_ENGINES.get_or_create_of(&url.as_ref().parse()?, &template.built()?.pool)
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
