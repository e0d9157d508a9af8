//! What the crate promises, a file per promise.

mod smoke;
