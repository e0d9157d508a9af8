//! The fixtures in async tests, as docs/other-libraries.md shows them.

use std::time::Duration;

use rstest::{fixture, rstest};
use rusqlite_fixtures::fixtures::{fresh_connection, fresh_engine, fresh_unit_of_work};
use rusqlite_fixtures::{Engine, ErrorKind, PooledConnection, Template, UnitOfWork};
use sqlx::SqlitePool;
use tokio::task::JoinSet;

use crate::support::BANK;

const DEPOSIT: &str = "UPDATE account SET balance = balance + 1 WHERE id = 1";

async fn balance(pool: &SqlitePool) -> i64 {
    sqlx::query_scalar("SELECT balance FROM account WHERE id = 1").fetch_one(pool).await.unwrap()
}

#[rstest]
#[case(1)]
#[case(2)]
#[tokio::test]
async fn an_engine_in_an_async_test(#[with(&BANK)] fresh_engine: Engine, #[case] deposits: i64) {
    let pool = SqlitePool::connect(fresh_engine.sqlite_url()).await.unwrap();
    for _ in 0..deposits {
        sqlx::query(DEPOSIT).execute(&pool).await.unwrap();
    }
    assert_eq!(balance(&pool).await, deposits);
}

#[fixture]
async fn bank(#[with(&BANK)] fresh_engine: Engine) -> (Engine, SqlitePool) {
    let pool = SqlitePool::connect(fresh_engine.sqlite_url()).await.unwrap();
    (fresh_engine, pool) // the database lives as long as the engine
}

#[rstest]
#[tokio::test]
async fn a_fixture_that_is_a_future(#[future] bank: (Engine, SqlitePool)) {
    let (_engine, pool) = bank.await;
    sqlx::query(DEPOSIT).execute(&pool).await.unwrap();
    assert_eq!(balance(&pool).await, 1);
}

#[rstest]
#[awt]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_awaited_fixture(#[future] bank: (Engine, SqlitePool)) {
    let (_engine, pool) = bank;
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let pool = pool.clone();
        tasks.spawn(async move { sqlx::query(DEPOSIT).execute(&pool).await.unwrap() });
    }
    tasks.join_all().await;
    assert_eq!(balance(&pool).await, 4);
}

/// Code that blocks runs on a thread of its own; the fixtures can be sent there.
#[rstest]
#[tokio::test]
async fn code_that_blocks(#[with(&BANK)] mut fresh_connection: PooledConnection) {
    let deposited = tokio::task::spawn_blocking(move || {
        let transaction = fresh_connection.transaction().unwrap();
        transaction.execute(DEPOSIT, []).unwrap();
        transaction.commit()
    });
    assert_eq!(deposited.await.unwrap(), Ok(()));
}

/// On a runtime of one thread, a unit of work that has written must end before another task writes.
#[rstest]
#[case::committed(true)]
#[case::open(false)]
#[tokio::test]
async fn a_unit_of_work_ends_before_another_task_writes(
    #[with(&IMPATIENT)] fresh_unit_of_work: UnitOfWork,
    #[case] commits: bool,
) {
    let engine = fresh_unit_of_work.engine().clone();
    fresh_unit_of_work.execute(DEPOSIT, []).unwrap();
    let open = if commits { fresh_unit_of_work.commit().map(|()| None) } else { Ok(Some(fresh_unit_of_work)) };
    let task = tokio::spawn(async move { engine.transaction(|work| Ok(work.execute(DEPOSIT, [])?)) });
    let deposited = task.await.unwrap().map_err(|error| error.kind());
    assert_eq!(deposited, if commits { Ok(1) } else { Err(ErrorKind::LockTimeout) });
    drop(open);
}

static IMPATIENT: Template = Template::based_on(&BANK).lock_timeout(Duration::from_millis(20));
