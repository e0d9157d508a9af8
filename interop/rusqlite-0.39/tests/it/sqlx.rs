use rusqlite_fixtures::{Engine, Snapshot};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{Sqlite, SqlitePool, Transaction};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use crate::support::{BANK, balances, readme, run_test_that_panics};

// The code under test.

async fn deposit(pool: &SqlitePool, id: i64, amount: i64) -> sqlx::Result<()> {
    let mut transaction = pool.begin().await?;
    add(&mut transaction, id, amount).await?;
    transaction.commit().await
}

async fn add(transaction: &mut Transaction<'_, Sqlite>, id: i64, amount: i64) -> sqlx::Result<()> {
    let update = sqlx::query("UPDATE account SET balance = balance + ?1 WHERE id = ?2").bind(amount).bind(id);
    update.execute(&mut **transaction).await?;
    Ok(())
}

async fn balance(pool: &SqlitePool, id: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT balance FROM account WHERE id = ?1").bind(id).fetch_one(pool).await
}

// Its tests.

async fn pool(engine: &Engine) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(engine.uri());
    SqlitePoolOptions::new().max_connections(4).connect_with(options).await.unwrap()
}

#[tokio::test]
async fn the_line_in_the_readme_opens_a_pool() {
    let engine = BANK.new_engine().unwrap();
    let pool = readme!(SqlitePool::connect_with(SqliteConnectOptions::new().filename(engine.uri())).await).unwrap();
    deposit(&pool, 1, 5).await.unwrap();
    assert_eq!(balance(&pool, 1).await.unwrap(), 5);
    assert_eq!(balances(&engine), [5, 0]);
}

#[tokio::test]
async fn a_url_opens_a_pool() {
    let engine = BANK.new_engine().unwrap();
    let pool = readme!(SqlitePool::connect(&engine.uri().replacen("file:", "sqlite://", 1)).await).unwrap();
    deposit(&pool, 1, 5).await.unwrap();
    assert_eq!(balances(&engine), [5, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_tasks_write_through_a_pool_of_four() {
    let engine = BANK.new_engine().unwrap();
    let pool = pool(&engine).await;
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let pool = pool.clone();
        tasks.spawn(async move {
            for _ in 0..25 {
                deposit(&pool, 1 + task % 2, 1).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(balances(&engine), [100, 100]);
}

#[tokio::main(flavor = "current_thread")]
async fn panic_within_a_transaction(engine: Engine) {
    let pool = pool(&engine).await;
    deposit(&pool, 1, 5).await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    add(&mut transaction, 1, 70).await.unwrap();
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
    let engine = Engine::shared_with("file:sqlx?mode=memory", &BANK).unwrap();
    let same = engine.clone();
    run_test_that_panics(|| panic_within_a_transaction(same));
    let sql = "UPDATE account SET balance = balance + 1 WHERE id = 2";
    engine.try_transaction(|work| work.execute(sql, [])).unwrap();
    assert_eq!(balances(&engine), [5, 1]);
}

static MIGRATED: OnceCell<Snapshot> = OnceCell::const_new();

async fn migrate() -> Snapshot {
    let engine = Engine::new();
    sqlx::migrate!().run(&pool(&engine).await).await.unwrap();
    engine.snapshot()
}

#[tokio::test]
async fn migrations_run_once_for_all_tests() {
    let [one, other] = [(); 2].map(|_| MIGRATED.get_or_init(migrate));
    let (one, other) = (one.await.new_engine(), other.await.new_engine());
    let pool = pool(&one).await;
    let versions = sqlx::query_scalar("SELECT version FROM _sqlx_migrations ORDER BY version");
    let versions: Vec<i64> = versions.fetch_all(&pool).await.unwrap();
    assert_eq!(versions, [1, 2]);
    sqlx::migrate!().run(&pool).await.unwrap(); // does nothing
    deposit(&pool, 1, 5).await.unwrap();
    assert_eq!((balances(&one), balances(&other)), (vec![5, 0], vec![0, 0]));
}

#[tokio::test]
async fn an_open_transaction_is_invisible_to_others() {
    let engine = BANK.new_engine().unwrap();
    let pool = pool(&engine).await;
    let mut transaction = pool.begin().await.unwrap();
    add(&mut transaction, 1, 5).await.unwrap();
    assert_eq!(balances(&engine), [0, 0]);
    assert_eq!(balance(&pool, 1).await.unwrap(), 0);
    transaction.commit().await.unwrap();
    assert_eq!(balances(&engine), [5, 0]);
}

#[tokio::test]
async fn a_pool_outlives_its_engine() {
    let engine = BANK.new_engine().unwrap();
    let pool = pool(&engine).await;
    drop(engine);
    deposit(&pool, 1, 5).await.unwrap();
    assert_eq!(balance(&pool, 1).await.unwrap(), 5);
    assert_eq!(balances(&BANK.new_engine().unwrap()), [0, 0]);
}

#[tokio::test]
async fn a_dropped_engine_can_not_be_opened() {
    let engine = BANK.new_engine().unwrap();
    let pool = SqlitePoolOptions::new().connect_lazy_with(SqliteConnectOptions::new().filename(engine.uri()));
    drop(engine);
    let error = balance(&pool, 1).await.unwrap_err();
    assert!(error.to_string().contains("unable to open database file"), "{error}");
}
