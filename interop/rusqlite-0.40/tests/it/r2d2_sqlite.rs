use std::thread;
use std::time::Duration;

use r2d2::Pool;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite_fixtures::Engine;

use crate::bank::{add, balance, deposit};
use crate::support::{BANK, balances, readme, run_test_that_panics};

fn pool(engine: &Engine) -> Pool<SqliteConnectionManager> {
    Pool::builder().max_size(4).build(SqliteConnectionManager::file(engine.uri())).unwrap()
}

#[test]
fn the_line_in_the_readme_opens_a_pool() {
    let engine = BANK.new_engine().unwrap();
    let pool = readme!(r2d2::Pool::new(SqliteConnectionManager::file(engine.uri()))).unwrap();
    deposit(&mut pool.get().unwrap(), 1, 5).unwrap();
    assert_eq!(balances(&engine), [5, 0]);
}

#[test]
fn eight_threads_write_through_a_pool_of_four() {
    let engine = BANK.new_engine().unwrap();
    let pool = pool(&engine);
    thread::scope(|scope| {
        for thread in 0..8 {
            let pool = &pool;
            scope.spawn(move || (0..25).for_each(|_| deposit(&mut pool.get().unwrap(), 1 + thread % 2, 1).unwrap()));
        }
    });
    assert_eq!(balances(&engine), [100, 100]);
}

fn panic_within_a_transaction(engine: Engine) {
    let pool = pool(&engine);
    deposit(&mut pool.get().unwrap(), 1, 5).unwrap();
    let mut connection = pool.get().unwrap();
    let transaction = connection.transaction().unwrap();
    add(&transaction, 1, 70).unwrap();
    panic!("as a failed assertion does");
}

#[test]
fn a_test_that_panics_does_not_affect_the_next() {
    let engine = BANK.new_engine().unwrap();
    run_test_that_panics(|| panic_within_a_transaction(engine));
    assert_eq!(balances(&BANK.new_engine().unwrap()), [0, 0]);
}

#[test]
fn a_test_that_panics_releases_a_shared_engine() {
    let engine = Engine::shared_with("file:r2d2-sqlite?mode=memory", &BANK).unwrap();
    let same = engine.clone();
    run_test_that_panics(|| panic_within_a_transaction(same));
    deposit(&mut pool(&engine).get().unwrap(), 2, 1).unwrap();
    assert_eq!(balances(&engine), [5, 1]);
}

#[test]
fn an_open_transaction_is_invisible_to_others() {
    let engine = BANK.new_engine().unwrap();
    let mut connection = pool(&engine).get().unwrap();
    let transaction = connection.transaction().unwrap();
    add(&transaction, 1, 5).unwrap();
    assert_eq!(balances(&engine), [0, 0]);
    transaction.commit().unwrap();
    assert_eq!(balances(&engine), [5, 0]);
}

#[test]
fn a_pool_outlives_its_engine() {
    let engine = BANK.new_engine().unwrap();
    let pool = pool(&engine);
    drop(engine);
    deposit(&mut pool.get().unwrap(), 1, 5).unwrap();
    assert_eq!(balance(&pool.get().unwrap(), 1), Ok(5));
    assert_eq!(balances(&BANK.new_engine().unwrap()), [0, 0]);
}

#[test]
fn a_dropped_engine_can_not_be_opened() {
    let manager = SqliteConnectionManager::file(BANK.new_engine().unwrap().uri());
    let error = Pool::builder().connection_timeout(Duration::from_millis(100)).build(manager).unwrap_err();
    assert!(error.to_string().contains("unable to open database file"), "{error}");
}

#[test]
fn an_engine_stands_in_for_a_file() {
    let engine = BANK.new_engine().unwrap();
    let _stand_in = engine.stand_in_for_all("data/r2d2.db").unwrap();
    let pool = Pool::builder().max_size(4).build(SqliteConnectionManager::file("data/r2d2.db")).unwrap();
    deposit(&mut pool.get().unwrap(), 1, 5).unwrap();
    assert_eq!(balances(&engine), [5, 0]);
    assert!(!std::path::Path::new("data").exists());
}

/// The pool's connections are opened before the recording.
#[test]
fn statements_of_a_pool_are_recorded() {
    let engine = BANK.new_engine().unwrap();
    let pool = pool(&engine);
    let (_, statements) = engine.recorded(|| {
        let [mut one, other] = [pool.get().unwrap(), pool.get().unwrap()];
        deposit(&mut one, 1, 5).unwrap();
        for (connection, id, expected) in [(&one, 1, 5), (&other, 1, 5), (&other, 2, 0)] {
            assert_eq!(balance(connection, id), Ok(expected));
        }
        other.execute("INSERT INTO account VALUES (1, 0)", []).unwrap_err();
    });
    assert_eq!(statements.gaps(), [""; 0]);
    statements.transactions().assert_count(2);
    // The newest version checks each connection that it hands out.
    let checks = statements.matching(|statement| statement.sql() == "SELECT 1").count();
    assert!([0, 2].contains(&checks), "{statements}");
    statements.reads().assert_count(checks + 3);
    let statements = statements.of_table("account");
    let [update, insert] = statements.writes().iter().cloned().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(update.expanded_sql(), "UPDATE account SET balance = balance + 5 WHERE id = 1");
    assert_eq!((update.changes(), update.transaction(), update.connection()), (1, Some(1), 1), "{update}");
    assert_eq!(update.opened_by(), "a connection that was opened by the engine's URI");
    assert_eq!(insert.error(), Some("UNIQUE constraint failed: account.id"));
    let connections: Vec<usize> = statements.reads().iter().map(|read| read.connection()).collect();
    assert_eq!(connections, [1, 2, 2]);
    let [repeat] = statements.repeats(2).try_into().unwrap();
    assert_eq!((repeat.count, repeat.distinct), (3, 2));
    let here = format!("{}:", file!());
    assert!(repeat.called_from[0].contains("tests/it/bank.rs:"), "{repeat}");
    assert!(repeat.called_from[1..].iter().all(|from| from.starts_with(&here)), "{repeat}");
}
