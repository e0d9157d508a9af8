//! What every public type is: `Send`, `Sync` and `Debug`, or not.

use std::cell::Cell;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::panic::{RefUnwindSafe, UnwindSafe};

use rusqlite_fixtures::faults::{Fault, Plan};
use rusqlite_fixtures::hammer::{
    Arrival, Attempt, Failure, Hammer, Lane, Orders, Pause, Random, Report, Span, Timeline, Worker,
};
use rusqlite_fixtures::strategies::{self, Difference, Engines, Table};
use rusqlite_fixtures::{
    BoxError, Changes, Clock, Counters, DatabaseUrl, Engine, Error, ErrorKind, FullScan, Kept, KeptValues, Limits,
    MemoryEngines, PooledConnection, Recording, Repeat, Row, SchemaChange, SchemaObject, SettingChange, Snapshot,
    StandIn, Statement, StatementKind, Statements, TableChanges, Template, UnitOfWork, Update,
};

/// Which of the traits a type has. An inherent constant is found before one of a trait, if its bounds are met.
struct Has<T: ?Sized>(PhantomData<T>);

trait HasNot {
    const SEND: bool = false;
    const SYNC: bool = false;
    const DEBUG: bool = false;
    const UNWIND_SAFE: bool = false;
}

impl<T: ?Sized> HasNot for Has<T> {}

impl<T: ?Sized + Send> Has<T> {
    const SEND: bool = true;
}

impl<T: ?Sized + Sync> Has<T> {
    const SYNC: bool = true;
}

impl<T: ?Sized + Debug> Has<T> {
    const DEBUG: bool = true;
}

impl<T: ?Sized + UnwindSafe + RefUnwindSafe> Has<T> {
    const UNWIND_SAFE: bool = true;
}

/// Asserts that each type has `Debug`, and whether it is `Send` and `Sync`.
macro_rules! assert_traits {
    ($send:literal, $sync:literal: $($type:ty),+ $(,)?) => {
        $(assert_eq!(
            (Has::<$type>::SEND, Has::<$type>::SYNC, Has::<$type>::DEBUG),
            ($send, $sync, true),
            "{} is Send, is Sync, has Debug",
            stringify!($type),
        );)+
    };
}

#[test]
fn types_that_threads_share() {
    assert_traits!(true, true: Engine, StandIn, Snapshot, Template, DatabaseUrl, MemoryEngines, Error, ErrorKind);
    assert_traits!(true, true: BoxError, Clock, Limits, Recording, Statements, Statement, StatementKind, Counters, Repeat, FullScan);
    assert_traits!(true, true: Changes, TableChanges, Row, Update, SchemaChange, SchemaObject, SettingChange);
    assert_traits!(true, true: Kept<i64>, KeptValues<i64>, KeptValues<Cell<i64>>);
    assert_traits!(true, true: Fault, Hammer, Pause, Report<i64>, Attempt<i64>, Failure, Orders<'static>, Random);
    assert_traits!(true, true: Timeline, Lane, Span, Arrival);
    assert_traits!(true, true: Difference, Table, strategies::Operation<i64, i64>, strategies::RowStatement<i64, i64>);
    assert_traits!(true, true: strategies::Kind, strategies::Content<i64, i64>, strategies::Effect<i64, i64>);
    assert_traits!(true, true: strategies::Model<i64, i64>, strategies::Outcome<i64, i64>, strategies::End);
    assert_traits!(true, true: strategies::Record<i64, i64>, strategies::RowTransaction<i64, i64>);
}

/// They hold a connection, which one thread at a time may use; or count what one thread does.
#[test]
fn types_that_go_from_one_thread_to_another() {
    assert_traits!(true, false: Kept<Cell<i64>>, UnitOfWork, PooledConnection, Engines<'static, Table>, Plan);
}

#[test]
fn a_worker_stays_on_its_thread() {
    assert_traits!(false, false: Worker);
}

/// A test may catch a panic with them, or with references to them.
#[test]
fn types_that_a_panic_may_leave_behind() {
    macro_rules! assert_unwind_safe {
        ($is:literal: $($type:ty),+ $(,)?) => {
            $(assert_eq!(Has::<$type>::UNWIND_SAFE, $is, "{} is UnwindSafe and RefUnwindSafe", stringify!($type));)+
        };
    }
    assert_unwind_safe!(true: Engine, StandIn, Snapshot, DatabaseUrl, MemoryEngines, ErrorKind);
    assert_unwind_safe!(true: Clock, Limits, Recording, Statements, Statement, StatementKind, Counters, Repeat, FullScan);
    assert_unwind_safe!(true: Changes, TableChanges, Row, Update, SchemaChange, SchemaObject, SettingChange);
    // The cause of an error may be of any type, as may be the error that a template keeps. Connections have cells.
    assert_unwind_safe!(false: Error, BoxError, Template, KeptValues<i64>, Kept<i64>, UnitOfWork, PooledConnection);
}

/// Each type that the crate exports is in this file. A name in capitals is a constant.
#[test]
fn no_public_type_is_missing() {
    let exports = include_str!("../../src/lib.rs").split("pub use crate::").skip(1);
    let names =
        exports.flat_map(|export| export.split(';').next().unwrap().split(|c: char| !c.is_alphanumeric() && c != '_'));
    let is_type = |name: &&str| name.starts_with(char::is_uppercase) && name.contains(char::is_lowercase);
    let types: Vec<&str> = names.filter(is_type).filter(|name| *name != "Result").collect();
    assert!(types.len() > 25, "{types:?}");
    let (_, tests) = include_str!("api.rs").split_once("fn types_that_threads_share").unwrap();
    let named: Vec<&str> = tests.split(|c: char| !c.is_alphanumeric()).collect();
    let missing: Vec<&&str> = types.iter().filter(|name| !named.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// A check that can't fail would be none.
#[test]
fn a_missing_trait_is_found() {
    assert_eq!((Has::<dyn Fn()>::SEND, Has::<dyn Fn()>::SYNC, Has::<dyn Fn()>::DEBUG), (false, false, false));
    assert_eq!((Has::<Cell<i64>>::UNWIND_SAFE, Has::<&mut i64>::UNWIND_SAFE), (false, false));
}
