//! Property tests.
mod engines;
mod model;
mod operation;
mod rows;
mod subject;

pub use engines::{Engines, check};
pub use model::{Content, Effect, Model, Outcome};
pub use operation::{HANDS, Kind, Operation, Statement, operations};
pub use rows::{Rows, Table};
pub use subject::{Difference, Subject};
