//! What every public type is: `Send`, `Sync` and `Debug`, or not.

use std::cell::Cell;
use std::fmt::Debug;
use std::marker::PhantomData;

use rusqlite_fixtures::faults::{Fault, Plan};
use rusqlite_fixtures::hammer::{
    Arrival, Attempt, Failure, Hammer, Lane, Orders, Pause, Random, Report, Span, Timeline, Worker,
};
use rusqlite_fixtures::strategies::{self, Difference, Engines, Table};
use rusqlite_fixtures::{
    DatabaseUrl, Engine, Error, ErrorKind, Kept, KeptValues, MemoryEngines, PooledConnection, Snapshot, StandIn,
    Template, UnitOfWork,
};

/// Which of the traits a type has. An inherent constant is found before one of a trait, if its bounds are met.
struct Has<T: ?Sized>(PhantomData<T>);

trait HasNot {
    const SEND: bool = false;
    const SYNC: bool = false;
    const DEBUG: bool = false;
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

/// A check that can't fail would be none.
#[test]
fn a_missing_trait_is_found() {
    assert_eq!((Has::<dyn Fn()>::SEND, Has::<dyn Fn()>::SYNC, Has::<dyn Fn()>::DEBUG), (false, false, false));
}
