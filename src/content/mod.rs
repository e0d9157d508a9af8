//! The content of an engine, and the writer slot that guards it.
//!
//! * `pages`: a database's pages, a persistent tree: a copy takes constant time and shares all pages.
//! * `snapshot`: pages with the numbers of SQLite's header. Each committed state is one.
//! * `btree`: the pages of a table, by the file format.
//! * `schema`: detects commits that edit the schema or the planner's statistics.
//! * `difference`: the rows that may differ between two snapshots, by the pages that differ.
//! * `store`: the committed state of an engine, and its replacement.
//! * `slot`: the writer slot; one connection at a time holds it.
//! * `queue`: the connections that wait for the writer slot, in order of arrival.
//! * `origin`: the thread and the source line that hold the slot, for messages.
//! * `refusal`: why a connection was refused the slot, and the error messages.
//! * `replace_file`: writes a file under another name and renames it.
//!
//! No type here keeps a SQLite connection, so the tests of this folder need none, and `models` runs it in many orders
//! of its threads' steps. The folder uses only `error`, `faults`, `marks` and `sync`.
//!
//! Invariants:
//! * A snapshot never changes. Readers need no lock.
//! * Only the connection that holds the writer slot replaces the committed state.
//! * Within an engine, a file change counter never repeats with other content (rule 1 of DESIGN.md). By this counter, a
//!   connection detects that the pages in its cache are stale.

mod btree;
pub(crate) mod difference;
#[cfg(all(test, shuttle))]
mod models;
pub(crate) mod origin;
pub(crate) mod pages;
pub(crate) mod queue;
pub(crate) mod refusal;
pub(crate) mod replace_file;
mod schema;
mod slot;
pub(crate) mod snapshot;
pub(crate) mod store;

pub use self::snapshot::Snapshot;
