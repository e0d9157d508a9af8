//! Units of work: what ends them, and the error if they have already ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use rusqlite::ErrorCode;
use rusqlite::TransactionBehavior::Immediate;
use rusqlite_fixtures::rusqlite::{self, Connection};
use rusqlite_fixtures::{Engine, Error, ErrorKind, UnitOfWork};

use crate::support::{engine_with_entries, entries, number, unique_url};

fn insert(connection: &Connection, key: i64) -> rusqlite::Result<usize> {
    connection.execute("INSERT INTO entry VALUES (?1, 0)", [key])
}

fn keys(engine: &Engine) -> Vec<i64> {
    entries(&engine.connect().unwrap()).into_iter().map(|(key, _)| key).collect()
}

#[test]
fn a_commit_keeps_changes_and_a_rollback_or_drop_discards_them() {
    let engine = engine_with_entries(&[]);
    let work = engine.unit_of_work().unwrap();
    insert(&work, 1).unwrap();
    assert_eq!(work.engine(), &engine);
    work.commit().unwrap();
    let work = engine.unit_of_work().unwrap();
    insert(&work, 2).unwrap();
    work.rollback().unwrap();
    let work = engine.unit_of_work().unwrap();
    insert(&work, 3).unwrap();
    assert_eq!(format!("{work:?}").contains("open: true"), !work.is_autocommit());
    drop(work);
    assert_eq!(keys(&engine), [1]);
}

#[test]
fn a_panic_rolls_a_unit_of_work_back() {
    let engine = engine_with_entries(&[]);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let work = engine.unit_of_work().unwrap();
        insert(&work, 1).unwrap();
        panic!("a failing test");
    }));
    assert!(panicked.is_err());
    assert!(keys(&engine).is_empty());
}

#[test]
fn a_unit_of_work_that_the_code_under_test_ended_is_an_error() {
    let engine = engine_with_entries(&[]);
    for (statement, operation, name) in [
        ("COMMIT", UnitOfWork::commit as fn(UnitOfWork) -> _, "commit"),
        ("COMMIT", UnitOfWork::rollback, "roll back"),
        ("ROLLBACK", UnitOfWork::commit, "commit"),
        ("ROLLBACK", UnitOfWork::rollback, "roll back"),
    ] {
        let work = engine.unit_of_work().unwrap();
        let _ = insert(&work, 1);
        work.execute_batch(statement).unwrap();
        let error: Error = operation(work).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyEnded);
        let message = error.to_string();
        assert!(message.starts_with(&format!("can't {name} ")) && message.contains("has already ended"), "{message}");
    }
    let work = engine.unit_of_work().unwrap();
    work.execute_batch("COMMIT").unwrap();
    drop(work); // reports nothing
    assert_eq!(keys(&engine), [1], "what the code under test committed stays");
}

#[test]
fn a_commit_that_sqlite_refuses_rolls_back() {
    let engine = Engine::new();
    engine
        .connect()
        .unwrap()
        .execute_batch(
            "CREATE TABLE parent (id INTEGER PRIMARY KEY);
             CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
        )
        .unwrap();
    let connection = engine.connect().unwrap();
    let work = engine.unit_of_work().unwrap();
    assert_eq!(
        number(&work, "PRAGMA foreign_keys"),
        1,
        "an engine enforces foreign keys, whatever SQLite's default is"
    );
    work.execute_batch("INSERT INTO child VALUES (1)").unwrap();
    let error = work.commit().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Sqlite);
    assert!(error.to_string().contains("FOREIGN KEY constraint failed"), "{error}");
    assert_eq!(connection.query_row("SELECT count(*) FROM child", [], |row| row.get(0)), Ok(0));
    engine.begin(Immediate).unwrap().commit().unwrap();
}

#[test]
fn transactions_commit_on_ok_and_roll_back_on_err() {
    let engine = engine_with_entries(&[]);
    let inserted = engine.transaction(|work| {
        insert(work, 1)?;
        Ok(())
    });
    inserted.unwrap();
    let failed = engine.transaction(|work| {
        insert(work, 2)?;
        insert(work, 1)?;
        Ok(())
    });
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Sqlite);
    let ended = engine.transaction(|work| Ok(work.execute_batch("COMMIT")?));
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::AlreadyEnded);
    assert_eq!(keys(&engine), [1]);
}

/// The error of an application, which knows nothing of this crate.
#[derive(Debug, PartialEq)]
enum AppError {
    Database(rusqlite::Error),
    Refused,
}

impl From<rusqlite::Error> for AppError {
    fn from(error: rusqlite::Error) -> AppError {
        AppError::Database(error)
    }
}

#[test]
fn try_transaction_returns_the_error_of_the_application() {
    let engine = engine_with_entries(&[]);
    let insert_all = |keys: &[i64]| {
        engine.try_transaction(|work| {
            for key in keys {
                insert(work, *key)?;
            }
            if keys.len() > 2 { Err(AppError::Refused) } else { Ok(keys.len()) }
        })
    };
    assert_eq!(insert_all(&[1, 2]), Ok(2));
    assert_eq!(insert_all(&[3, 4, 5]), Err(AppError::Refused));
    let constraint = insert_all(&[1]);
    assert!(
        matches!(&constraint, Err(AppError::Database(error)) if error.to_string().contains("UNIQUE")),
        "{constraint:?}"
    );
    assert_eq!(keys(&engine), [1, 2]);
}

/// Also where it is this crate that fails: before the work runs, and after it.
#[test]
fn try_transaction_keeps_code_and_message_of_what_fails_around_the_work() {
    let engine = engine_with_entries(&[]);
    let ended = engine.try_transaction(|work| Ok::<(), AppError>(work.execute_batch("COMMIT")?)).unwrap_err();
    assert!(
        matches!(&ended, AppError::Database(error) if error.to_string().contains("it has already ended")),
        "{ended:?}"
    );
    engine.set_lock_timeout(Duration::ZERO);
    let _holder = engine.begin(Immediate).unwrap();
    let refused = engine.try_transaction(|_| Ok::<(), AppError>(())).unwrap_err();
    let AppError::Database(error) = refused else { panic!("{refused:?}") };
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
    assert!(error.to_string().contains("taken by thread"), "{error}");
}

#[test]
fn a_unit_of_work_may_move_to_another_thread() {
    let engine = engine_with_entries(&[]);
    let work = engine.unit_of_work().unwrap();
    insert(&work, 1).unwrap();
    thread::scope(|scope| scope.spawn(move || work.commit().unwrap()).join().unwrap());
    assert_eq!(keys(&engine), [1]);
}

#[test]
fn a_unit_of_work_by_url_is_on_the_shared_engine() {
    let url = unique_url("unit-of-work");
    let work = UnitOfWork::new(&url).unwrap();
    assert_eq!(work.engine(), &Engine::shared(&url).unwrap());
    assert_eq!(UnitOfWork::new("postgresql://").unwrap_err().kind(), ErrorKind::InvalidUrl);
}

#[test]
fn a_savepoint_that_sqlite_refuses_is_an_error() {
    let mut work = Engine::new().unit_of_work().unwrap();
    let _ = work.set_limit(rusqlite::limits::Limit::SQLITE_LIMIT_SQL_LENGTH, 3);
    assert_eq!(work.savepoint().unwrap_err().kind(), ErrorKind::Sqlite);
}

#[test]
fn many_units_of_work_may_be_open_at_once() {
    let engine = engine_with_entries(&[(1, 1)]);
    let open: Vec<_> = (0..100).map(|_| engine.unit_of_work().unwrap()).collect();
    assert!(open.iter().all(|work| entries(work) == [(1, 1)]));
}
