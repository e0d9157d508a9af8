//! The integration tests, one file for each promise of the crate.

mod callers;
mod concurrent_instantiation;
mod edited_schema;
mod errors;
mod file_controls;
mod fixtures;
mod hammer;
mod lifetime;
mod operations;
mod pragmas;
mod printed;
mod processes;
mod readers;
mod recycling;
mod registry;
mod repository;
mod serializable;
mod snapshots;
mod sqlite_features;
mod stamps;
mod support;
mod templates;
mod unit_of_work;
mod urls;
mod waiting;
mod warm;
