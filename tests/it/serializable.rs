//! Units of work are serializable: no update is lost, and a unit of work that would lose one fails.

use std::sync::Barrier;
use std::thread;

use rusqlite::TransactionBehavior::{Deferred, Immediate};
use rusqlite_fixtures::rusqlite::{self, Connection};
use rusqlite_fixtures::{Engine, ErrorKind, Result, UnitOfWork};

use crate::support::{engine_with_entries, entries, number};

const THREADS: i64 = 8;
const ROUNDS: i64 = 50;

fn increment(connection: &Connection) -> Result<()> {
    let value = connection.query_row("SELECT value FROM entry WHERE key = 1", [], |row| row.get::<_, i64>(0))?;
    thread::yield_now(); // so that other threads run in between
    connection.execute("UPDATE entry SET value = ?1 WHERE key = 1", [value + 1])?;
    Ok(())
}

fn on_all_threads(work: impl Fn() + Sync) {
    let barrier = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                barrier.wait();
                (0..ROUNDS).for_each(|_| work());
            });
        }
    });
}

#[test]
fn immediate_units_of_work_lose_no_update_and_never_fail() {
    let engine = engine_with_entries(&[(1, 0)]);
    on_all_threads(|| engine.try_transaction(|work| increment(work)).unwrap());
    assert_eq!(entries(&engine.connect().unwrap()), [(1, THREADS * ROUNDS)]);
}

#[test]
fn deferred_units_of_work_lose_no_update_when_failures_are_retried() {
    let engine = engine_with_entries(&[(1, 0)]);
    let once = || -> Result<()> {
        let work = engine.unit_of_work()?;
        increment(&work)?;
        work.commit()
    };
    on_all_threads(|| {
        while let Err(error) = once() {
            assert_eq!(error.kind(), ErrorKind::SerializationFailure, "{error}");
        }
    });
    assert_eq!(entries(&engine.connect().unwrap()), [(1, THREADS * ROUNDS)]);
}

/// Two connections read the same row, then write one after the other.
fn write_after_both_have_read(engine: &Engine, first: &Connection, second: &Connection) -> Result<(), rusqlite::Error> {
    let read = |connection: &Connection| number(connection, "SELECT value FROM entry WHERE key = 1");
    let (seen_by_first, seen_by_second) = (read(first), read(second));
    let write = "UPDATE entry SET value = ?1 WHERE key = 1";
    first.execute(write, [seen_by_first + 1])?;
    if !first.is_autocommit() {
        first.execute_batch("COMMIT")?;
    }
    assert_eq!(number(&engine.connect().unwrap(), "SELECT value FROM entry WHERE key = 1"), 1);
    second.execute(write, [seen_by_second + 1]).map(drop)
}

#[test]
fn a_write_based_on_replaced_content_is_refused() {
    let engine = engine_with_entries(&[(1, 0)]);
    let (first, second) = (engine.unit_of_work().unwrap(), engine.unit_of_work().unwrap());
    let refused = write_after_both_have_read(&engine, &first, &second).unwrap_err();
    assert_eq!(refused.sqlite_error().unwrap().extended_code, 517);

    let error = rusqlite_fixtures::Error::from(refused);
    assert_eq!(error.kind(), ErrorKind::SerializationFailure);
    assert_eq!(error.sqlite().unwrap().sqlite_error().unwrap().extended_code, 517);
    assert!(error.to_string().contains("serializable.rs"), "it says which code replaced the content: {error}");

    assert_eq!(number(&second, "SELECT value FROM entry"), 0, "it still reads the same content");
    second.rollback().unwrap();
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 1)]);
}

/// The counterpart: outside of transactions the same steps lose an update, so they would show it if units of work did.
#[test]
fn without_transactions_the_same_steps_lose_an_update() {
    let engine = engine_with_entries(&[(1, 0)]);
    let (first, second) = (engine.connect().unwrap(), engine.connect().unwrap());
    write_after_both_have_read(&engine, &first, &second).unwrap();
    assert_eq!(entries(&first), [(1, 1)], "one of two increments is lost");
}

#[test]
fn a_reader_may_write_if_nothing_was_committed_since() {
    let engine = engine_with_entries(&[(1, 0)]);
    let reader = engine.unit_of_work().unwrap();
    assert_eq!(entries(&reader), [(1, 0)]);
    let writer = engine.begin(Immediate).unwrap();
    writer.execute("UPDATE entry SET value = 7", []).unwrap();
    writer.rollback().unwrap();
    increment(&reader).unwrap();
    reader.commit().unwrap();
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 1)]);
}

#[test]
fn a_reader_that_waits_to_write_goes_on_when_the_writer_rolls_back() {
    wait_for_a_writer(UnitOfWork::rollback, |result, engine| {
        result.unwrap();
        assert_eq!(entries(&engine.connect().unwrap()), [(1, 1)]);
    });
}

#[test]
fn a_reader_that_waits_to_write_fails_as_soon_as_the_writer_commits() {
    wait_for_a_writer(UnitOfWork::commit, |result, engine| {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::SerializationFailure);
        assert_eq!(entries(&engine.connect().unwrap()), [(1, 7)]);
    });
}

/// A unit of work has read and waits to write, while another one holds the writer slot and then ends by `end`.
fn wait_for_a_writer(end: fn(UnitOfWork) -> Result<()>, check: fn(Result<()>, &Engine)) {
    let engine = engine_with_entries(&[(1, 0)]);
    let writer = engine.begin(Immediate).unwrap();
    writer.execute("UPDATE entry SET value = 7", []).unwrap();
    let has_read = Barrier::new(2);
    let result = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let work = engine.begin(Deferred).unwrap();
            assert_eq!(entries(&work), [(1, 0)]);
            has_read.wait();
            increment(&work)?;
            work.commit()
        });
        has_read.wait();
        thread::sleep(std::time::Duration::from_millis(20)); // so that the reader nearly always waits; the test passes without it
        end(writer).unwrap();
        reader.join().unwrap()
    });
    check(result, &engine);
}
