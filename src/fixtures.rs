//! Fixtures for [rstest](https://docs.rs/rstest): import those you want and name them as arguments of a test.
//!
//! | for a test that | take |
//! | --- | --- |
//! | wants one transaction on a database of its own | [`fresh_unit_of_work`] |
//! | runs code that begins and commits by itself | [`fresh_connection`] |
//! | wants several connections, threads or transactions | [`fresh_engine`] |
//! | shares a database with others, and leaves nothing in it | [`unit_of_work`](fn@unit_of_work) |
//! | shares one, commits, or wants several threads | [`memory_engine`] |
//! | makes threads race | [`hammer`] |
//!
//! ```
//! use rstest::rstest;
//! use rusqlite_fixtures::fixtures::{fresh_unit_of_work, memory_engine};
//! use rusqlite_fixtures::{Engine, Template, UnitOfWork};
//!
//! static ORDERS: Template = Template::sql("CREATE TABLE orders (id INTEGER PRIMARY KEY)");
//!
//! #[rstest]
//! fn has_its_own_database(#[with(&ORDERS)] fresh_unit_of_work: UnitOfWork) {
//!     fresh_unit_of_work.execute("INSERT INTO orders VALUES (1)", []).unwrap();
//! } // rolled back
//!
//! #[rstest]
//! fn shares_an_engine(#[with("file:orders?mode=memory", &ORDERS)] memory_engine: Engine) {
//!     let insert = "INSERT OR IGNORE INTO orders VALUES (2)";
//!     memory_engine.try_transaction(|work| work.execute(insert, [])).unwrap();
//! }
//! ```

use rstest::fixture;

use crate::engine::{Engine, PooledConnection, UnitOfWork};
use crate::hammer::Hammer;
use crate::template::Template;

/// What the fixtures take that are given no template.
static EMPTY: Template = Template::empty();

/// The engine that the process shares under `url`, from [`MEMORY_ENGINES`](crate::MEMORY_ENGINES); the default one unless
/// the test says `#[with("file:NAME?mode=memory")]`.
///
/// `#[with("file:NAME?mode=memory", &BANK)]` has it made of a template, by the first test that asks. What a test commits, others
/// see. Tests that mind want [`fresh_engine`], or take turns by serial_test's `#[serial]` (between processes, as under
/// cargo-nextest, `#[file_serial]`).
///
/// # Panics
/// When the URL names no shared engine, or one that was made of something else; the message says what would do.
#[fixture]
pub fn memory_engine(
    #[default("sqlite:///:memory:")] url: &str,
    #[default(&EMPTY)] template: &'static Template,
) -> Engine {
    Engine::shared_with(url, template).unwrap_or_else(|error| panic!("{error}"))
}

/// A unit of work on the shared engine, rolled back at the end of the test.
///
/// `#[with(engine)]` gives it another engine.
///
/// # Panics
/// When the connection can't be opened, as [`Engine::unit_of_work`] says.
#[fixture]
pub fn unit_of_work(memory_engine: Engine) -> UnitOfWork {
    memory_engine.unit_of_work().unwrap_or_else(|error| panic!("{error}"))
}

/// A new engine, which no other test has: empty, or what the template of `#[with(&BANK)]` holds.
///
/// # Panics
/// When the template can't be built.
#[fixture]
pub fn fresh_engine(#[default(&EMPTY)] template: &'static Template) -> Engine {
    template.new_engine().unwrap_or_else(|error| panic!("{error}"))
}

/// A unit of work on a new engine, which no other test has: empty, or what the template of `#[with(&BANK)]` holds.
///
/// # Panics
/// When the template can't be built, or the connection can't be opened.
#[fixture]
pub fn fresh_unit_of_work(#[default(&EMPTY)] template: &'static Template) -> UnitOfWork {
    template.unit_of_work().unwrap_or_else(|error| panic!("{error}"))
}

/// A connection to a new engine, which no other test has, for code that begins and commits its own transactions. The
/// engine is empty, or holds what the template of `#[with(&BANK)]` does.
///
/// # Panics
/// When the template can't be built, or the connection can't be opened.
#[fixture]
pub fn fresh_connection(#[default(&EMPTY)] template: &'static Template) -> PooledConnection {
    let connection = template.new_engine().and_then(|engine| engine.pooled_connection());
    connection.unwrap_or_else(|error| panic!("{error}"))
}

/// A [`Hammer`] of 8 threads and 100 rounds, or as many as `#[with(16, 1_000)]` says.
///
/// # Panics
/// As [`Hammer::new`] and [`Hammer::threads`].
#[fixture]
pub fn hammer(#[default(8)] threads: usize, #[default(100)] rounds: usize) -> Hammer {
    Hammer::new().threads(threads).rounds(rounds)
}
