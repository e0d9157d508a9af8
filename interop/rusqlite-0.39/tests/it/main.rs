//! Code that uses sqlx or sea-orm, tested on engines. Each file shows what a test suite of such code can look like.

mod in_async_tests;
mod kept_in_async_tests;
mod sea_orm;
mod sqlx;
mod stand_in;
#[path = "../../../support.rs"]
mod support;
mod together;
