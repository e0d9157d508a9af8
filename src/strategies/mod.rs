//! Property tests.
mod engines;
mod model;
#[cfg(all(test, not(shuttle)))]
mod on_store;
mod operation;
mod rows;
mod serial;
mod subject;

pub use engines::{Engines, check};
pub use model::{Content, Effect, Model, Outcome};
pub use operation::{HANDS, Kind, Operation, Statement, operations};
pub use rows::{Rows, Table};
pub use serial::{End, Record, Transaction, check_serial, prepare, transactions};
pub use subject::{Difference, Subject};
