//! The guide: a chapter for each part of the crate.
//!
//! | chapter | what is in it |
//! | --- | --- |
//! | [`templates`] | recipes for databases, fixtures by hand, images that processes share |
//! | [`isolation`] | what a test may leave behind, shared engines, what differs from a file |
//! | [`concurrency`] | the hammer: races, pauses, reports; how to find and prevent lost updates |
//! | [`property_tests`] | a database for each case; operations and transactions with a model |
//! | [`faults`] | tests of what code does when SQLite fails |
//! | [`other_libraries`] | sqlx, sea-orm, diesel, r2d2, tokio-rusqlite and others; async |
//! | [`any_code`] | an engine in place of the file that the code opens, a clock for SQL, random numbers that repeat, the same tests on real files |
//! | [`statements`] | which SQL ran, by any library, and what it has changed: assertions on statements, repeated queries, full scans, differences |
//! | [`failing_tests`] | what is kept of a test that fails: its databases, statements and a report; strict mode |
//! | [`runners`] | cargo-nextest, CI, several machines, debug builds |
//! | [`errors`] | messages, what they mean, and what to do |
//!
//! The modules are empty: they hold the text of `docs` in the repository.

#[doc = include_str!("../docs/templates.md")]
pub mod templates {}

#[doc = include_str!("../docs/isolation.md")]
pub mod isolation {}

#[doc = include_str!("../docs/concurrency.md")]
pub mod concurrency {}

#[doc = include_str!("../docs/property-tests.md")]
pub mod property_tests {}

#[doc = include_str!("../docs/faults.md")]
pub mod faults {}

#[doc = include_str!("../docs/other-libraries.md")]
pub mod other_libraries {}

#[doc = include_str!("../docs/any-code.md")]
pub mod any_code {}

#[doc = include_str!("../docs/statements.md")]
pub mod statements {}

#[doc = include_str!("../docs/failing-tests.md")]
#[doc = concat!(
    "# The report\n\nThe report of the first example, run with `RUSQLITE_FIXTURES_KEEP=always`, which records its statements:\n\n",
    "<img alt=\"The report of the test `money_moves`\" width=\"900\" src=\"data:image/png;base64,",
    include_str!("../docs/report.png.base64"),
    "\">"
)]
pub mod failing_tests {}

#[doc = include_str!("../docs/runners.md")]
pub mod runners {}

#[doc = include_str!("../docs/errors.md")]
pub mod errors {}
