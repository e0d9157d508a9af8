//! The tests of newer versions of these libraries, with the versions that work with rusqlite 0.32.

#[path = "../../../rusqlite-0.40/tests/it/bank.rs"]
mod bank;
#[path = "../../../rusqlite-0.40/tests/it/diesel.rs"]
mod diesel;
#[path = "../../../rusqlite-0.39/tests/it/in_async_tests.rs"]
mod in_async_tests;
#[path = "../../../rusqlite-0.40/tests/it/kept.rs"]
mod kept;
#[path = "../../../rusqlite-0.39/tests/it/kept_in_async_tests.rs"]
mod kept_in_async_tests;
#[path = "../../../rusqlite-0.40/tests/it/r2d2_sqlite.rs"]
mod r2d2_sqlite;
#[path = "../../../rusqlite-0.40/tests/it/rusqlite_migration.rs"]
mod rusqlite_migration;
#[path = "../../../rusqlite-0.39/tests/it/sea_orm.rs"]
mod sea_orm;
#[path = "../../../rusqlite-0.39/tests/it/sqlx.rs"]
mod sqlx;
#[path = "../../../rusqlite-0.39/tests/it/stand_in.rs"]
mod stand_in;
#[path = "../../../support.rs"]
mod support;
#[path = "../../../rusqlite-0.39/tests/it/together.rs"]
mod together;
