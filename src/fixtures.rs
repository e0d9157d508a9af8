//! Fixtures for [rstest](https://docs.rs/rstest): import the fixtures that you need, and name them as arguments of a
//! test.
//!
//! | for a test that | take |
//! | --- | --- |
//! | needs one transaction on a private database | [`fresh_unit_of_work`] |
//! | runs code that begins and commits its own transactions | [`fresh_connection`] |
//! | runs code that keeps a `rusqlite::Connection` | [`fresh_owned_connection`] |
//! | needs several connections, threads or transactions | [`fresh_engine`] |
//! | shares a database with others, and leaves nothing in it | [`unit_of_work`](fn@unit_of_work) |
//! | shares one, and commits or needs several threads | [`memory_engine`] |
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
use rusqlite::Connection;

use crate::engine::{Engine, PooledConnection, UnitOfWork};
#[cfg(feature = "hammer")]
use crate::hammer::Hammer;
use crate::template::Template;

/// The default template of the fixtures.
static EMPTY: Template = Template::empty();

/// Returns the engine that the process shares under `url`, from [`MEMORY_ENGINES`](crate::MEMORY_ENGINES): the default
/// engine, or the engine that `#[with("file:NAME?mode=memory")]` names.
///
/// With `#[with("file:NAME?mode=memory", &BANK)]` the first test creates it from a template. Tests see what other tests
/// commit. To prevent this, use [`fresh_engine`], or run the tests one at a time by serial_test's `#[serial]` (between
/// processes, as under cargo-nextest, `#[file_serial]`).
///
/// # Panics
/// If the URL names no shared engine, or one that was created from another template. The message names the remedy.
#[fixture]
pub fn memory_engine(
    #[default("sqlite:///:memory:")] url: &str,
    #[default(&EMPTY)] template: &'static Template,
) -> Engine {
    Engine::shared_with(url, template).unwrap_or_else(|error| panic!("{error}"))
}

/// Begins a unit of work on the shared engine, which is rolled back at the end of the test.
///
/// `#[with(engine)]` sets another engine.
///
/// # Panics
/// If the connection can't be opened (see [`Engine::unit_of_work`]).
#[fixture]
pub fn unit_of_work(memory_engine: Engine) -> UnitOfWork {
    memory_engine.unit_of_work().unwrap_or_else(|error| panic!("{error}"))
}

/// Returns a private engine: empty, or with the content of the template in `#[with(&BANK)]`.
///
/// # Panics
/// If the template can't be built.
#[fixture]
pub fn fresh_engine(#[default(&EMPTY)] template: &'static Template) -> Engine {
    template.new_engine().unwrap_or_else(|error| panic!("{error}"))
}

/// Begins a unit of work on a private engine: empty, or with the content of the template in `#[with(&BANK)]`.
///
/// # Panics
/// If the template can't be built, or the connection can't be opened.
#[fixture]
pub fn fresh_unit_of_work(#[default(&EMPTY)] template: &'static Template) -> UnitOfWork {
    template.unit_of_work().unwrap_or_else(|error| panic!("{error}"))
}

/// Returns a connection to a private engine, for code that begins and commits its own transactions. The engine is
/// empty, or has the content of the template in `#[with(&BANK)]`.
///
/// # Panics
/// If the template can't be built, or the connection can't be opened.
#[fixture]
pub fn fresh_connection(#[default(&EMPTY)] template: &'static Template) -> PooledConnection {
    let connection = template.new_engine().and_then(|engine| engine.pooled_connection());
    connection.unwrap_or_else(|error| panic!("{error}"))
}

/// Opens a new connection to a private engine, for code that keeps a `rusqlite::Connection`. The engine is empty, or has
/// the content of the template in `#[with(&BANK)]`. It lives as long as the connection.
///
/// [Limits](Template::watch) and [strict mode](Engine::strict) don't apply, because there is no handle to the engine that the
/// test could drop.
///
/// Nothing of an earlier test's connection is reused, so this takes about 0.2 ms: SQLite has to read the schema. For code
/// that borrows a connection, [`fresh_connection`] takes microseconds.
///
/// # Panics
/// If the template can't be built, or the connection can't be opened.
#[fixture]
pub fn fresh_owned_connection(#[default(&EMPTY)] template: &'static Template) -> Connection {
    let connection = template.new_engine().and_then(Engine::into_connection);
    connection.unwrap_or_else(|error| panic!("{error}"))
}

/// Returns a [`Hammer`] with 8 threads and 100 rounds, or with those of `#[with(16, 1_000)]`.
///
/// # Panics
/// As [`Hammer::new`] and [`Hammer::threads`].
#[cfg(feature = "hammer")]
#[fixture]
pub fn hammer(#[default(8)] threads: usize, #[default(100)] rounds: usize) -> Hammer {
    Hammer::new().threads(threads).rounds(rounds)
}
