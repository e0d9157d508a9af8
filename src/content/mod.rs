//! The content of an engine, and who may change it.
//!
//! * `pages`: a database's pages, a persistent tree: a copy takes constant time and shares all pages.
//! * `snapshot`: pages with what SQLite's header says of them. Each committed state is one.
//! * `schema`: detects commits that edit the schema or the planner's statistics.
//! * `store`: the committed state of an engine, and the way to replace it.
//! * `slot`: the writer slot, which one connection at a time holds.
//! * `queue`: the connections that wait for the writer slot, in order of arrival.
//! * `origin`: who holds the slot, for messages.
//! * `refusal`: why a connection was refused the slot, and the messages that say so.
//! * `replace_file`: writes a file aside and renames it.
//!
//! Nothing here has a SQLite connection, so all of it is tested alone, and `models` runs it in many orders
//! of its threads' steps. It uses the ground only: `error`, `faults`, `marks`, `sync`.
//!
//! Invariants:
//! * A snapshot never changes. Readers need no lock.
//! * Only the connection that holds the writer slot replaces the committed state.
//! * A file change counter never repeats within an engine with other content (rule 1 of DESIGN.md): a connection that
//!   has pages in its cache knows by it that they are stale.

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
