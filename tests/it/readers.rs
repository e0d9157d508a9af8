//! Readers never wait for a writer, never see part of a commit, and never make a writer wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rusqlite::TransactionBehavior::{Exclusive, Immediate};
use rusqlite_fixtures::rusqlite::{self, Connection};

use crate::support::{engine_with_entries, entries, number};

#[test]
fn a_reader_sees_the_last_commit_while_a_writer_is_open() {
    let engine = engine_with_entries(&[(1, 10)]);
    engine.set_lock_timeout(Duration::ZERO); // any wait fails at once
    for behavior in [Immediate, Exclusive] {
        let writer = engine.begin(behavior).unwrap();
        writer.execute("UPDATE entry SET value = 11", []).unwrap();
        writer.execute("INSERT INTO entry VALUES (2, 20)", []).unwrap();
        let reader = engine.unit_of_work().unwrap();
        assert_eq!(entries(&reader), [(1, 10)]);
        let foreign = Connection::open(engine.uri()).unwrap();
        foreign.busy_timeout(Duration::ZERO).unwrap();
        assert_eq!(entries(&foreign), [(1, 10)]);
        assert_eq!(entries(&writer), [(1, 11), (2, 20)]);
    }
}

#[test]
fn a_reader_keeps_its_snapshot_while_others_commit() {
    let engine = engine_with_entries(&[(1, 0)]);
    let reader = engine.unit_of_work().unwrap();
    assert_eq!(entries(&reader), [(1, 0)]);
    engine.set_lock_timeout(Duration::ZERO); // any wait for the reader fails at once
    for value in 1..=20 {
        engine.try_transaction(|work| work.execute("UPDATE entry SET value = ?1", [value])).unwrap();
        assert_eq!(entries(&reader), [(1, 0)]);
    }
    engine.reset().unwrap();
    assert_eq!(entries(&reader), [(1, 0)], "a reset does not change what an open transaction reads");
    reader.commit().unwrap();
    assert_eq!(number(&engine.connect().unwrap(), "SELECT count(*) FROM sqlite_schema"), 0);
}

#[test]
fn an_unfinished_statement_keeps_its_snapshot() {
    let engine = engine_with_entries(&[(1, 1), (2, 2), (3, 3)]);
    let reader = engine.connect().unwrap();
    let mut statement = reader.prepare("SELECT key FROM entry ORDER BY key").unwrap();
    let mut rows = statement.query([]).unwrap();
    assert_eq!(rows.next().unwrap().unwrap().get(0), Ok(1));
    engine.try_transaction(|work| work.execute("DELETE FROM entry", [])).unwrap();
    assert_eq!(rows.next().unwrap().unwrap().get(0), Ok(2));
    assert_eq!(rows.next().unwrap().unwrap().get(0), Ok(3));
    assert!(rows.next().unwrap().is_none());
    drop(rows);
    drop(statement);
    assert_eq!(entries(&reader), []);
}

#[test]
fn no_reader_sees_part_of_a_commit() {
    // Every commit moves a value between two rows on different pages; the sum never changes.
    let engine = engine_with_entries(&[]);
    let setup = engine.connect().unwrap();
    setup.execute_batch("ALTER TABLE entry ADD COLUMN padding BLOB").unwrap();
    for key in 0..50 {
        setup.execute("INSERT INTO entry VALUES (?1, 100, zeroblob(3000))", [key]).unwrap();
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut sums = 0;
                    let connection = Connection::open(engine.uri()).unwrap();
                    while !done.load(Ordering::Relaxed) || sums == 0 {
                        assert_eq!(number(&connection, "SELECT sum(value) FROM entry"), 5000);
                        sums += 1;
                    }
                })
            })
            .collect();
        for round in 0..300 {
            let transfer = |work: &mut rusqlite_fixtures::UnitOfWork| -> rusqlite::Result<()> {
                work.execute("UPDATE entry SET value = value - 1 WHERE key = ?1", [round % 50])?;
                work.execute("UPDATE entry SET value = value + 1 WHERE key = ?1", [(round * 7 + 3) % 50])?;
                Ok(())
            };
            engine.try_transaction(transfer).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

/// The control: two statements without a transaction around them do see half of a transfer.
#[test]
fn without_a_transaction_a_reader_sees_half_of_a_transfer() {
    let engine = engine_with_entries(&[(1, 100), (2, 100)]);
    let read = |connection: &Connection, key| number(connection, &format!("SELECT value FROM entry WHERE key = {key}"));
    let transfer = || {
        let update = "UPDATE entry SET value = value + CASE key WHEN 1 THEN -1 ELSE 1 END";
        engine.try_transaction(|work| work.execute(update, [])).unwrap();
    };
    for (reader, sum) in [(engine.connect().unwrap(), 201), (engine.connect().unwrap(), 200)] {
        if sum == 200 {
            reader.execute_batch("BEGIN").unwrap();
        }
        let first = read(&reader, 1);
        transfer();
        assert_eq!(first + read(&reader, 2), sum);
    }
}
