#![doc = include_str!("../README.md")]
#![allow(
    clippy::test_attr_in_doctest,
    reason = "the README shows a property test as one writes it; the example runs it"
)]

mod content;
mod engine;
mod error;
pub mod faults;
pub mod fixtures;
pub mod guide;
pub mod hammer;
mod marks;
mod once_map;
#[cfg(feature = "proptest")]
pub mod strategies;
mod sync;
mod template;
mod vfs;

pub use rusqlite;

pub use crate::content::Snapshot;
pub use crate::engine::{DatabaseUrl, Engine, MEMORY_ENGINES, MemoryEngines, PooledConnection, UnitOfWork};
pub use crate::error::{BoxError, Error, ErrorKind, Result};
pub use crate::template::Template;
