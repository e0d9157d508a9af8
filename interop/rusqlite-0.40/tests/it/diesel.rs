use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, Pool};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use rusqlite_fixtures::{Engine, Template};

use crate::support::{BANK, balances, readme, run_test_that_panics};

// The code under test.

diesel::table! {
    account (id) {
        id -> BigInt,
        balance -> BigInt,
    }
}

fn deposit(connection: &mut SqliteConnection, id: i64, amount: i64) -> QueryResult<()> {
    connection.transaction(|transaction| add(transaction, id, amount))
}

fn add(connection: &mut SqliteConnection, id: i64, amount: i64) -> QueryResult<()> {
    let update = diesel::update(account::table.find(id)).set(account::balance.eq(account::balance + amount));
    update.execute(connection).map(drop)
}

fn balance(connection: &mut SqliteConnection, id: i64) -> QueryResult<i64> {
    account::table.find(id).select(account::balance).first(connection)
}

/// diesel sets no busy timeout, so a write fails at once if another is in progress. This is the same on a file.
#[derive(Debug)]
struct BusyTimeout;

impl CustomizeConnection<SqliteConnection, diesel::r2d2::Error> for BusyTimeout {
    fn on_acquire(&self, connection: &mut SqliteConnection) -> Result<(), diesel::r2d2::Error> {
        connection.batch_execute("PRAGMA busy_timeout = 5000").map_err(diesel::r2d2::Error::QueryError)
    }
}

// Its tests.

fn pool(engine: &Engine) -> Pool<ConnectionManager<SqliteConnection>> {
    let manager = ConnectionManager::new(engine.uri());
    Pool::builder().max_size(4).connection_customizer(Box::new(BusyTimeout)).build(manager).unwrap()
}

fn establish(engine: &Engine) -> SqliteConnection {
    SqliteConnection::establish(engine.uri()).unwrap()
}

#[test]
fn the_line_in_the_readme_opens_a_connection() {
    let engine = BANK.new_engine().unwrap();
    let mut connection = readme!(SqliteConnection::establish(engine.uri())).unwrap();
    deposit(&mut connection, 1, 5).unwrap();
    assert_eq!(balance(&mut connection, 1), Ok(5));
    assert_eq!(balances(&engine), [5, 0]);
}

#[test]
fn a_url_opens_a_connection() {
    let engine = BANK.new_engine().unwrap();
    let mut connection = SqliteConnection::establish(engine.sqlite_url()).unwrap();
    deposit(&mut connection, 1, 5).unwrap();
    assert_eq!(balances(&engine), [5, 0]);
}

#[test]
fn the_line_in_the_readme_opens_a_pool() {
    let engine = BANK.new_engine().unwrap();
    let pool = readme!(Pool::new(ConnectionManager::<SqliteConnection>::new(engine.uri()))).unwrap();
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
    let work: QueryResult<()> = pool.get().unwrap().transaction(|transaction| {
        add(transaction, 1, 70)?;
        panic!("as a failed assertion does");
    });
    work.unwrap()
}

#[test]
fn a_test_that_panics_does_not_affect_the_next() {
    let engine = BANK.new_engine().unwrap();
    run_test_that_panics(|| panic_within_a_transaction(engine));
    assert_eq!(balances(&BANK.new_engine().unwrap()), [0, 0]);
}

#[test]
fn a_test_that_panics_releases_a_shared_engine() {
    let engine = Engine::shared_with("file:diesel?mode=memory", &BANK).unwrap();
    let same = engine.clone();
    run_test_that_panics(|| panic_within_a_transaction(same));
    deposit(&mut establish(&engine), 2, 1).unwrap();
    assert_eq!(balances(&engine), [5, 1]);
}

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations/diesel");

#[test]
fn a_template_migrates_once_for_all_tests() {
    let migrated = readme!(Template::build_on(|engine| {
        SqliteConnection::establish(engine.uri())?.run_pending_migrations(MIGRATIONS).map(drop)
    }));
    let (one, other) = (migrated.new_engine().unwrap(), migrated.new_engine().unwrap());
    let mut connection = establish(&one);
    assert_eq!(connection.applied_migrations().unwrap().len(), 2);
    let before = one.snapshot().to_bytes();
    connection.run_pending_migrations(MIGRATIONS).unwrap(); // as the application does when it starts
    assert!(one.snapshot().to_bytes() == before, "nothing was left to migrate");
    deposit(&mut connection, 1, 5).unwrap();
    assert_eq!((balances(&one), balances(&other)), (vec![5, 0], vec![0, 0]));
    connection.revert_all_migrations(MIGRATIONS).unwrap();
    assert_eq!(balances(&other), [0, 0]);
}

#[test]
fn a_folder_of_migrations_is_a_template_too() {
    static FOLDER: Template = Template::directory("../migrations/diesel");
    assert_eq!(balances(&FOLDER.new_engine().unwrap()), [0, 0]);
}

#[test]
fn an_open_transaction_is_invisible_to_others() {
    let engine = BANK.new_engine().unwrap();
    let transaction = establish(&engine).transaction(|transaction| {
        add(transaction, 1, 5)?;
        assert_eq!(balances(&engine), [0, 0]);
        balance(&mut establish(&engine), 1)
    });
    assert_eq!(transaction, Ok(0));
    assert_eq!(balances(&engine), [5, 0]);
}

#[test]
fn a_test_transaction_is_rolled_back() {
    let engine = BANK.new_engine().unwrap();
    establish(&engine).test_transaction(|connection| deposit(connection, 1, 5));
    assert_eq!(balances(&engine), [0, 0]);
}

#[test]
fn a_pool_outlives_its_engine() {
    let engine = BANK.new_engine().unwrap();
    let pool = pool(&engine);
    drop(engine);
    deposit(&mut pool.get().unwrap(), 1, 5).unwrap();
    assert_eq!(balance(&mut pool.get().unwrap(), 1), Ok(5));
    assert_eq!(balances(&BANK.new_engine().unwrap()), [0, 0]);
}

#[test]
fn a_dropped_engine_can_not_be_opened() {
    let uri = BANK.new_engine().unwrap().uri().to_owned();
    let error = SqliteConnection::establish(&uri).err().unwrap();
    assert!(error.to_string().to_lowercase().contains("unable to open"), "{error}");
    let pool = Pool::builder().connection_timeout(Duration::from_millis(100));
    let error = pool.build(ConnectionManager::<SqliteConnection>::new(uri)).err().unwrap();
    assert!(error.to_string().to_lowercase().contains("unable to open"), "{error}");
}

#[test]
fn an_engine_stands_in_for_a_file() {
    let engine = BANK.new_engine().unwrap();
    let _stand_in = engine.stand_in_for("data/diesel.db").unwrap();
    for url in ["data/diesel.db", "./data/diesel.db", "file:data/diesel.db?mode=rw"] {
        deposit(&mut SqliteConnection::establish(url).unwrap(), 1, 5).unwrap();
    }
    assert_eq!(balances(&engine), [15, 0]);
    assert!(!std::path::Path::new("data").exists());
}

#[test]
fn sql_gets_the_time_of_the_engine_s_clock() {
    static CLOCKED: Template = Template::based_on(&BANK).clock("2026-01-31T12:00:00Z");
    let engine = CLOCKED.new_engine().unwrap();
    let now = diesel::select(diesel::dsl::sql::<diesel::sql_types::Text>("datetime('now')"));
    assert_eq!(now.get_result(&mut establish(&engine)), Ok("2026-01-31 12:00:00".to_owned()));
}

#[test]
fn statements_are_recorded() {
    let engine = BANK.new_engine().unwrap();
    let mut connection = establish(&engine);
    let (_, statements) = engine.recorded(|| {
        deposit(&mut connection, 1, 5).unwrap();
        for id in 1..=2 {
            balance(&mut connection, id).unwrap();
        }
        diesel::insert_into(account::table)
            .values((account::id.eq(1), account::balance.eq(0)))
            .execute(&mut connection)
            .unwrap_err();
    });
    statements.transactions().assert_count(2);
    statements.reads().assert_count(2);
    let [update, insert] = statements.writes().iter().cloned().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((update.changes(), update.transaction().is_some()), (1, true), "{update}");
    assert_eq!(insert.error(), Some("UNIQUE constraint failed: account.id"));
    let [repeat] = statements.repeats(1).try_into().unwrap();
    assert_eq!((repeat.count, repeat.distinct), (2, 2));
    assert!(repeat.sql.starts_with("SELECT `account`.`balance` FROM `account` WHERE"), "{}", repeat.sql);
    let line = format!("{}:", file!());
    assert!(
        !repeat.called_from.is_empty() && repeat.called_from.iter().all(|from| from.starts_with(&line)),
        "{repeat}"
    );
}

#[test]
#[ignore = "it fails"]
fn fails() {
    let engine = BANK.new_engine().unwrap();
    let mut connection = establish(&engine);
    deposit(&mut connection, 1, 5).unwrap();
    connection
        .transaction(|connection| {
            diesel::update(account::table.find(2)).set(account::balance.eq(7)).execute(connection)?;
            assert_eq!(balance(connection, 2)?, 0);
            diesel::QueryResult::Ok(())
        })
        .unwrap();
}

#[test]
fn a_failing_test_keeps_its_databases_and_statements() {
    let folder = std::env::temp_dir().join(format!("interop-failing-{}", std::process::id()));
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "diesel::fails", "--ignored"])
        .env("RUSQLITE_FIXTURES_DIR", &folder)
        .env_remove("RUSQLITE_FIXTURES_STRICT");
    let stdout = String::from_utf8(command.output().unwrap().stdout).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    for expected in [
        "  committed since it was created:\n    account\n      ~ id 1: balance 0 -> 5\n",
        "  not committed by a connection that was opened by the engine's URI:\n    account\n      ~ id 2: balance 0 -> 7\n",
        "\n    UPDATE `account` SET `balance` = ? WHERE (`account`.`id` = ?)\n",
    ] {
        assert!(stdout.contains(expected), "there is no {expected:?} in {stdout}");
    }
}
