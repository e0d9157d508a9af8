//! Pools that stay warm from test to test, each test with a runtime of its own.

use rstest::{fixture, rstest};
use rusqlite_fixtures::{BoxError, Engine, Kept, KeptValues, Template};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{Connection, SqliteConnection, SqlitePool};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::support::{BANK, balances, run_test_that_panics};

const DEPOSIT: &str = "UPDATE account SET balance = balance + 1 WHERE id = 1";

const OUTSIDE: &str = "a connection has compiled a statement with effects outside of the engine: on a temporary table or an \
    attached database, ANALYZE, or a pragma such as journal_mode";

static BANKS: KeptValues<SqlitePool> = KeptValues::new(&BANK);

async fn connect(engine: &Engine) -> Result<SqlitePool, BoxError> {
    Ok(SqlitePool::connect(engine.sqlite_url()).await?)
}

#[fixture]
async fn bank() -> Kept<SqlitePool> {
    BANKS.get_or_make_async(connect).await.unwrap()
}

#[rstest]
#[case(1)]
#[case(2)]
#[awt]
#[tokio::test]
async fn a_test(#[future] bank: Kept<SqlitePool>, #[case] deposits: i64) {
    for _ in 0..deposits {
        sqlx::query(DEPOSIT).execute(&*bank).await.unwrap();
    }
    assert_eq!(balances(bank.engine()), [deposits, 0]);
}

async fn pool_of_four(engine: &Engine) -> Result<SqlitePool, BoxError> {
    let options = SqliteConnectOptions::new().filename(engine.uri());
    SqlitePoolOptions::new().min_connections(4).max_connections(4).connect_with(options).await.map_err(BoxError::from)
}

fn runtimes() -> [Runtime; 4] {
    let one_thread = || Builder::new_current_thread().enable_all().build().unwrap();
    let many_threads = || Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    [one_thread(), one_thread(), many_threads(), one_thread()]
}

#[test]
fn a_pool_of_sqlx_is_reused_in_other_runtimes() {
    static POOLS: KeptValues<SqlitePool> = KeptValues::new(&BANK);
    let names = runtimes().map(|runtime| {
        runtime.block_on(async {
            let pool = POOLS.get_or_make_async(pool_of_four).await.unwrap();
            let mut tasks = JoinSet::new();
            for _ in 0..8 {
                let pool = pool.clone();
                tasks.spawn(async move { sqlx::query(DEPOSIT).execute(&pool).await.unwrap() });
            }
            tasks.join_all().await;
            let mut transaction = pool.begin().await.unwrap();
            sqlx::query(DEPOSIT).execute(&mut *transaction).await.unwrap();
            transaction.commit().await.unwrap();
            assert_eq!(balances(pool.engine()), [9, 0]);
            pool.engine().uri().to_owned()
        })
    });
    assert_eq!(names, [(); 4].map(|()| names[0].clone()), "{:?}", POOLS.why_dropped());
}

/// `#[tokio::test]` drops the task in which sqlx returns a connection to its pool.
#[test]
fn tests_that_share_a_runtime_lose_no_connection() {
    static POOLS: KeptValues<SqlitePool> = KeptValues::new(&BANK);
    let runtime = Runtime::new().unwrap();
    for _ in 0..8 {
        runtime.block_on(async {
            let pool = POOLS.get_or_make_async(pool_of_four).await.unwrap();
            sqlx::query(DEPOSIT).execute(&*pool).await.unwrap();
            assert_eq!(pool.size(), 4);
        });
    }
    assert_eq!(POOLS.why_dropped(), None);
}

#[test]
fn a_transaction_that_is_dropped_is_no_part_of_the_next_test() {
    static POOLS: KeptValues<SqlitePool> = KeptValues::new(&BANK);
    for runtime in runtimes().into_iter().chain(runtimes()) {
        runtime.block_on(async {
            let pool = POOLS.get_or_make_async(pool_of_four).await.unwrap();
            assert_eq!(balances(pool.engine()), [0, 0]);
            let mut transaction = pool.begin().await.unwrap();
            sqlx::query(DEPOSIT).execute(&mut *transaction).await.unwrap();
            drop(transaction); // sqlx rolls it back on its own thread, a little later
        });
    }
}

#[test]
fn a_connection_of_sqlx_that_was_changed_is_not_reused() {
    static POOLS: KeptValues<SqlitePool> = KeptValues::new(&BANK);
    let pool = || Runtime::new().unwrap().block_on(POOLS.get_or_make_async(pool_of_four)).unwrap();
    for (change, reason) in [
        ("CREATE TEMP TABLE account (id, balance)", OUTSIDE),
        ("ATTACH ':memory:' AS other", OUTSIDE),
        ("PRAGMA query_only = ON", "a connection has other pragmas than when the value was made"),
    ] {
        Runtime::new().unwrap().block_on(async {
            let pool = POOLS.get_or_make_async(pool_of_four).await.unwrap();
            sqlx::query(DEPOSIT).execute(&*pool).await.unwrap();
            sqlx::query(change).execute(&*pool).await.unwrap();
            while pool.num_idle() < 4 {
                tokio::task::yield_now().await; // or the connection would be closed with the runtime
            }
        });
        assert_eq!(balances(pool().engine()), [0, 0]);
        assert_eq!(POOLS.why_dropped().as_deref(), Some(reason), "{change}");
    }
}

#[test]
fn a_pool_of_a_test_that_panics_is_dropped() {
    static POOLS: KeptValues<SqlitePool> = KeptValues::new(&BANK);
    run_test_that_panics(|| {
        Runtime::new().unwrap().block_on(async {
            let pool = POOLS.get_or_make_async(pool_of_four).await.unwrap();
            sqlx::query(DEPOSIT).execute(&*pool).await.unwrap();
            panic!("as a failed assertion does");
        })
    });
    assert_eq!(POOLS.why_dropped().as_deref(), Some("the test panicked"));
    let pool = Runtime::new().unwrap().block_on(POOLS.get_or_make_async(pool_of_four)).unwrap();
    assert_eq!(balances(pool.engine()), [0, 0]);
}

#[test]
fn a_pool_that_can_not_be_made_says_so_and_is_tried_again() {
    static POOLS: KeptValues<SqlitePool> = KeptValues::new(&BANK);
    let runtime = Runtime::new().unwrap();
    let wrong = async |engine: &Engine| Ok(SqlitePool::connect(engine.uri()).await?);
    let error = runtime.block_on(POOLS.get_or_make_async(wrong)).unwrap_err();
    assert!(error.to_string().contains("unable to open database file"), "{error}");
    drop(runtime.block_on(POOLS.get_or_make_async(pool_of_four)).unwrap());
}

/// The whole application, which migrates when it starts, as the guide has it.
struct Bank {
    pool: SqlitePool,
}

static MIGRATOR: Migrator = sqlx::migrate!("../migrations/sqlx");

impl Bank {
    async fn start(url: &str) -> sqlx::Result<Bank> {
        let pool = SqlitePool::connect(url).await?;
        MIGRATOR.run(&pool).await?;
        Ok(Bank { pool })
    }
}

#[test]
fn an_application_is_reused() {
    static MIGRATED: Template = Template::build_on(|engine| {
        Runtime::new()?.block_on(async { Ok(MIGRATOR.run(&SqlitePool::connect(engine.sqlite_url()).await?).await?) })
    });
    static APPLICATIONS: KeptValues<Bank> = KeptValues::new(&MIGRATED);
    let runtime = Runtime::new().unwrap();
    for _ in 0..3 {
        runtime.block_on(async {
            let start = async |engine: &Engine| Ok(Bank::start(engine.sqlite_url()).await?);
            let bank = APPLICATIONS.get_or_make_async(start).await.unwrap();
            sqlx::query(DEPOSIT).execute(&bank.pool).await.unwrap();
            assert_eq!(balances(bank.engine()), [1, 0]);
        });
    }
    assert_eq!(APPLICATIONS.why_dropped(), None);
}

#[test]
fn a_test_that_shuts_down_a_pool_retires_its_engine() {
    static POOLS: KeptValues<SqlitePool> = KeptValues::new(&BANK);
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let pool = POOLS.get_or_make_async(pool_of_four).await.unwrap();
        pool.close().await;
        pool.engine().retire();
    });
    assert_eq!(POOLS.why_dropped().as_deref(), Some("the engine was retired"));
    let pool = runtime.block_on(POOLS.get_or_make_async(pool_of_four)).unwrap();
    runtime.block_on(async { sqlx::query(DEPOSIT).execute(&*pool).await }).unwrap();
}

#[test]
fn a_single_connection_of_sqlx_is_reused() {
    static CONNECTIONS: KeptValues<Mutex<SqliteConnection>> = KeptValues::new(&BANK);
    let connect = async |engine: &Engine| Ok(Mutex::new(SqliteConnection::connect(engine.sqlite_url()).await?));
    for runtime in runtimes() {
        runtime.block_on(async {
            let connection = CONNECTIONS.get_or_make_async(connect).await.unwrap();
            sqlx::query(DEPOSIT).execute(&mut *connection.lock().await).await.unwrap();
            assert_eq!(balances(connection.engine()), [1, 0]);
        });
    }
    assert_eq!(CONNECTIONS.why_dropped(), None);
}

#[test]
fn a_database_of_sea_orm_is_reused_in_other_runtimes() {
    static DATABASES: KeptValues<DatabaseConnection> = KeptValues::new(&BANK);
    let names = runtimes().map(|runtime| {
        runtime.block_on(async {
            let connect = async |engine: &Engine| Ok(Database::connect(engine.sqlite_url()).await?);
            let database = DATABASES.get_or_make_async(connect).await.unwrap();
            database.execute_unprepared(DEPOSIT).await.unwrap();
            assert_eq!(balances(database.engine()), [1, 0]);
            database.engine().uri().to_owned()
        })
    });
    assert_eq!(names, [(); 4].map(|()| names[0].clone()), "{:?}", DATABASES.why_dropped());
}
