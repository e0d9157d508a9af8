#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![allow(clippy::test_attr_in_doctest, reason = "the README shows a complete property test; the example runs it")]

mod content;
mod difference;
#[cfg(feature = "report")]
mod drawing;
mod engine;
mod environment;
mod error;
mod failure;
#[cfg(feature = "faults")]
pub mod faults;
#[cfg(not(feature = "faults"))]
#[expect(dead_code, unreachable_pub, reason = "nothing creates a plan, but the calls of SQLite still look for one")]
mod faults;
#[cfg(feature = "fixtures")]
pub mod fixtures;
pub mod guide;
#[cfg(feature = "hammer")]
pub mod hammer;
#[cfg_attr(
    not(feature = "hammer"),
    expect(dead_code, unreachable_pub, reason = "nothing observes the marks, but the code still reports them")
)]
mod marks;
mod once_map;
mod panics;
mod recording;
#[cfg(feature = "report")]
mod report;
mod statements;
#[cfg(feature = "proptest")]
pub mod strategies;
mod sync;
mod template;
mod test_thread;
mod vfs;

pub use rusqlite;

pub use crate::content::Snapshot;
pub use crate::difference::{Changes, Row, SchemaChange, SchemaObject, SettingChange, TableChanges, Update};
pub use crate::engine::{
    Clock, DatabaseUrl, Engine, MEMORY_ENGINES, MemoryEngines, PooledConnection, StandIn, UnitOfWork,
};
pub use crate::error::{BoxError, Error, ErrorKind, Result};
pub use crate::recording::{FullScan, Limits, Recording, Repeat, Statements, assert_constant_statements};
pub use crate::statements::{Counters, Statement, StatementKind};
pub use crate::template::{Kept, KeptValues, Template};
