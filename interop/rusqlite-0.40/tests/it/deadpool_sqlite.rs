use std::panic::resume_unwind;

use deadpool_sqlite::{Config, InteractError, Pool, PoolConfig, Runtime};
use rusqlite_fixtures::{Engine, KeptValues};
use tokio::task::JoinSet;

use crate::bank::{add, balance, deposit};
use crate::support::{BANK, balances, readme, run_test_that_panics};

// The code under test.

async fn deposit_by(pool: &Pool, id: i64, amount: i64) {
    let connection = pool.get().await.unwrap();
    connection.interact(move |connection| deposit(connection, id, amount)).await.unwrap().unwrap();
}

// Its tests.

fn pool(engine: &Engine) -> Pool {
    let mut config = Config::new(engine.uri());
    config.pool = Some(PoolConfig::new(4));
    config.create_pool(Runtime::Tokio1).unwrap()
}

#[tokio::test]
async fn the_line_in_the_readme_opens_a_pool() {
    let engine = BANK.new_engine().unwrap();
    let pool = readme!(Config::new(engine.uri()).create_pool(Runtime::Tokio1)).unwrap();
    deposit_by(&pool, 1, 5).await;
    assert_eq!(balances(&engine), [5, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_tasks_write_through_a_pool_of_four() {
    let engine = BANK.new_engine().unwrap();
    let pool = pool(&engine);
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let pool = pool.clone();
        tasks.spawn(async move {
            for _ in 0..25 {
                deposit_by(&pool, 1 + task % 2, 1).await;
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(balances(&engine), [100, 100]);
}

#[tokio::main(flavor = "current_thread")]
async fn panic_within_a_transaction(engine: Engine) {
    let pool = pool(&engine);
    deposit_by(&pool, 1, 5).await;
    let connection = pool.get().await.unwrap();
    let work = connection.interact(|connection| {
        let transaction = connection.transaction().unwrap();
        add(&transaction, 1, 70).unwrap();
        panic!("as a failed assertion does");
    });
    if let Err(InteractError::Panic(payload)) = work.await {
        resume_unwind(payload);
    }
}

#[test]
fn a_test_that_panics_does_not_affect_the_next() {
    let engine = BANK.new_engine().unwrap();
    run_test_that_panics(|| panic_within_a_transaction(engine));
    assert_eq!(balances(&BANK.new_engine().unwrap()), [0, 0]);
}

#[test]
fn a_test_that_panics_releases_a_shared_engine() {
    let engine = Engine::shared_with("file:deadpool-sqlite?mode=memory", &BANK).unwrap();
    let same = engine.clone();
    run_test_that_panics(|| panic_within_a_transaction(same));
    deposit(&mut engine.connect().unwrap(), 2, 1).unwrap();
    assert_eq!(balances(&engine), [5, 1]);
}

#[tokio::test]
async fn an_open_transaction_is_invisible_to_others() {
    let engine = BANK.new_engine().unwrap();
    let same = engine.clone();
    let connection = pool(&engine).get().await.unwrap();
    let work = connection.interact(move |connection| {
        let transaction = connection.transaction().unwrap();
        add(&transaction, 1, 5).unwrap();
        assert_eq!(balances(&same), [0, 0]);
        transaction.commit().unwrap();
    });
    work.await.unwrap();
    assert_eq!(balances(&engine), [5, 0]);
}

#[tokio::test]
async fn a_pool_outlives_its_engine() {
    let engine = BANK.new_engine().unwrap();
    let pool = pool(&engine);
    deposit_by(&pool, 1, 5).await; // the pool connects on first use
    drop(engine);
    deposit_by(&pool, 1, 5).await;
    let connection = pool.get().await.unwrap();
    assert_eq!(connection.interact(|connection| balance(connection, 1)).await.unwrap(), Ok(10));
    assert_eq!(balances(&BANK.new_engine().unwrap()), [0, 0]);
}

#[tokio::test]
async fn a_dropped_engine_can_not_be_opened() {
    let pool = pool(&BANK.new_engine().unwrap());
    let error = pool.get().await.err().unwrap();
    assert!(error.to_string().contains("unable to open database file"), "{error}");
}

/// The pool opens its first connection when one is needed, so the value is made with one.
#[test]
fn a_pool_is_reused_in_other_runtimes() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&BANK);
    for _ in 0..4 {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let open = async |engine: &Engine| {
                let pool = pool(engine);
                drop(pool.get().await?);
                Ok(pool)
            };
            let pool = POOLS.get_or_make_async(open).await.unwrap();
            deposit_by(&pool, 1, 5).await;
            assert_eq!(balances(pool.engine()), [5, 0]);
        });
    }
    assert_eq!(POOLS.why_dropped(), None);
}

#[tokio::test]
async fn an_engine_stands_in_for_a_file() {
    let engine = BANK.new_engine().unwrap();
    let _stand_in = engine.stand_in_for_all("data/deadpool.db").unwrap();
    deposit_by(&Config::new("data/deadpool.db").create_pool(Runtime::Tokio1).unwrap(), 1, 5).await;
    assert_eq!(balances(&engine), [5, 0]);
    assert!(!std::path::Path::new("data").exists());
}
