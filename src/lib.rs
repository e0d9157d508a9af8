#![doc = include_str!("../README.md")]
#![allow(
    clippy::test_attr_in_doctest,
    reason = "the README shows a property test as one writes it; the example runs it"
)]

mod built;
mod engine;
mod error;
pub mod faults;
pub mod fixtures;
pub mod hammer;
mod idle;
mod image;
mod marks;
#[cfg(all(test, shuttle))]
mod model;
mod once_map;
mod origin;
mod outside;
mod pages;
mod pooled_connection;
mod queue;
mod registry;
mod schema;
mod snapshot;
mod store;
#[cfg(feature = "proptest")]
pub mod strategies;
mod sync;
mod template;
mod unit_of_work;
mod url;
mod vfs;

pub use rusqlite;

pub use crate::engine::Engine;
pub use crate::error::{BoxError, Error, ErrorKind, Result};
pub use crate::pooled_connection::PooledConnection;
pub use crate::registry::{MEMORY_ENGINES, MemoryEngines};
pub use crate::snapshot::Snapshot;
pub use crate::template::Template;
pub use crate::unit_of_work::UnitOfWork;
pub use crate::url::DatabaseUrl;
