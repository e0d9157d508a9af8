use rusqlite_fixtures::{Engine, ErrorKind, Template};
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{Sqlite, SqlitePool, Transaction};
use tokio::runtime::Runtime;
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
    let pool = readme!(SqlitePool::connect(engine.sqlite_url()).await).unwrap();
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

static MIGRATOR: Migrator = sqlx::migrate!("../migrations/sqlx");

#[tokio::test]
async fn a_template_migrates_once_for_all_tests() {
    let migrated = readme!(Template::build_on(|engine| Runtime::new()?
        .block_on(async { Ok(MIGRATOR.run(&SqlitePool::connect(engine.sqlite_url()).await?).await?) })));
    let (one, other) = (migrated.new_engine().unwrap(), migrated.new_engine().unwrap());
    let pool = pool(&one).await;
    let versions = sqlx::query_scalar("SELECT version FROM _sqlx_migrations ORDER BY version");
    let versions: Vec<i64> = versions.fetch_all(&pool).await.unwrap();
    assert_eq!(versions, [1, 2]);
    let before = one.snapshot().to_bytes();
    MIGRATOR.run(&pool).await.unwrap(); // as the application does when it starts
    assert!(one.snapshot().to_bytes() == before, "nothing was left to migrate");
    deposit(&pool, 1, 5).await.unwrap();
    assert_eq!((balances(&one), balances(&other)), (vec![5, 0], vec![0, 0]));
}

/// They find no table in which sqlx would have noted them.
#[tokio::test]
async fn an_application_can_not_migrate_what_a_folder_of_migrations_has_made() {
    let engine = Template::directory("../migrations/sqlx").new_engine().unwrap();
    let error = MIGRATOR.run(&pool(&engine).await).await.unwrap_err();
    assert!(error.to_string().contains("table account already exists"), "{error}");
}

#[tokio::test]
async fn code_may_add_a_parameter_to_the_url() {
    let engine = BANK.new_engine().unwrap();
    let pool = SqlitePool::connect(&format!("{}&mode=rw", engine.sqlite_url())).await.unwrap();
    assert_eq!(balance(&pool, 1).await.unwrap(), 0);
}

#[test]
fn a_folder_of_migrations_is_a_template_too() {
    static FOLDER: Template = Template::directory("../migrations/sqlx");
    assert_eq!(balances(&FOLDER.new_engine().unwrap()), [0, 0]);
}

#[tokio::test]
async fn a_template_says_which_migration_failed() {
    let broken = Template::sql("CREATE TABLE account (id)").seed_on(|engine| {
        Runtime::new()?.block_on(async { Ok(MIGRATOR.run(&SqlitePool::connect(engine.sqlite_url()).await?).await?) })
    });
    let error = broken.new_engine().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BuildFailed);
    assert!(error.to_string().contains("while executing migration 1"), "{error}");
    assert!(error.to_string().contains("table account already exists"), "{error}");
}

/// Its tasks may have panicked within the runtime.
#[tokio::test]
async fn a_template_whose_build_panics_within_a_runtime_says_so() {
    let panics = Template::build_on(|_| Runtime::new()?.block_on(async { panic!("no migrations") }));
    let error = panics.new_engine().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BuildFailed);
    assert!(error.to_string().ends_with("it panicked: no migrations"), "{error}");
}

#[tokio::test]
async fn a_uri_of_sqlite_is_no_url_of_sqlx() {
    let engine = BANK.new_engine().unwrap();
    let error = SqlitePool::connect(engine.uri()).await.unwrap_err();
    assert!(error.to_string().contains("unable to open database file"), "{error}");
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

/// The pool's connections are opened before the recording, on threads of their own.
#[tokio::test]
async fn statements_of_a_pool_are_recorded() {
    let engine = BANK.new_engine().unwrap();
    let pool = pool(&engine).await;
    assert_eq!(balance(&pool, 1).await.unwrap(), 0);
    let recording = engine.record();
    deposit(&pool, 1, 5).await.unwrap();
    assert_eq!(balance(&pool, 1).await.unwrap(), 5);
    assert_eq!(balance(&pool, 2).await.unwrap(), 0);
    sqlx::query("INSERT INTO account VALUES (1, 0)").execute(&pool).await.unwrap_err();
    let statements = recording.stop();
    let writes = statements.writes();
    writes.assert_count(2);
    let [update, insert] = writes.iter().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(update.expanded_sql(), "UPDATE account SET balance = balance + 5 WHERE id = 1");
    assert_eq!((update.changes(), update.error()), (1, None));
    assert!(update.transaction().is_some());
    assert_eq!(insert.error(), Some("UNIQUE constraint failed: account.id"));
    statements.reads().assert_count(2);
    assert_eq!(statements.reads().iter().map(|read| read.rows()).collect::<Vec<_>>(), [1, 1]);
    let [repeat] = statements.repeats(1).try_into().unwrap();
    assert_eq!((repeat.count, repeat.called_from), (2, vec![]), "a thread of sqlx runs them");
    let transactions: Vec<&str> =
        statements.iter().filter(|it| it.transaction().is_some()).map(|it| it.sql()).collect();
    assert_eq!((transactions.first(), transactions.last()), (Some(&"BEGIN"), Some(&"COMMIT")), "{statements}");
    assert_ne!(update.thread(), std::thread::current().name(), "sqlx has threads for its connections");
}

#[tokio::test]
#[ignore = "it fails"]
async fn fails() {
    let engine = BANK.new_engine().unwrap();
    let pool = pool(&engine).await;
    deposit(&pool, 1, 5).await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    add(&mut transaction, 2, 7).await.unwrap();
    panic!("the test's own failure");
}

/// What is not committed is not kept: sqlx's connections are on threads of their own.
#[test]
fn a_failing_test_keeps_what_is_committed_and_its_statements() {
    let folder = std::env::temp_dir().join(format!("interop-failing-{}", std::process::id()));
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "sqlx::fails", "--ignored"])
        .env("RUSQLITE_FIXTURES_DIR", &folder)
        .env_remove("RUSQLITE_FIXTURES_STRICT");
    let stdout = String::from_utf8(command.output().unwrap().stdout).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    for expected in [
        "the test's own failure",
        "  committed since it was created:\n    account\n      ~ id 1: balance 0 -> 5\n",
        "UPDATE account SET balance = balance + ?1 WHERE id = ?2 (thread `sqlx-sqlite-worker",
    ] {
        assert!(stdout.contains(expected), "there is no {expected:?} in {stdout}");
    }
    assert!(!stdout.contains("not committed by"), "{stdout}");
}
