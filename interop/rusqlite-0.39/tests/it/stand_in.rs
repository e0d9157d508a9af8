//! An application whose path is a constant, tested as it is.

use std::path::Path;
use std::time::Duration;

use rusqlite_fixtures::Template;
use sea_orm::{ConnectionTrait, Database};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use crate::support::{BANK, balances};

/// The application.
mod application {
    use super::*;

    const DATABASE: &str = "data/bank.db";

    pub struct Application {
        pool: SqlitePool,
    }

    impl Application {
        pub async fn start() -> sqlx::Result<Application> {
            let options = SqliteConnectOptions::new().filename(DATABASE).create_if_missing(true);
            let pool = SqlitePoolOptions::new().min_connections(2).connect_with(options).await?;
            sqlx::migrate!("../migrations/sqlx").run(&pool).await?;
            Ok(Application { pool })
        }

        pub async fn deposit(&self, id: i64, amount: i64) -> sqlx::Result<()> {
            let update = sqlx::query("UPDATE account SET balance = balance + ?1 WHERE id = ?2").bind(amount).bind(id);
            update.execute(&self.pool).await.map(drop)
        }
    }
}

/// sqlx opens connections on threads of its own.
#[tokio::test]
async fn an_application_runs_on_an_engine_in_place_of_its_file() {
    static EMPTY: Template = Template::empty();
    let engine = EMPTY.new_engine().unwrap();
    let _stand_in = engine.stand_in_for_all("data/bank.db").unwrap();
    let application = application::Application::start().await.unwrap();
    application.deposit(1, 5).await.unwrap();
    assert_eq!(balances(&engine), [5, 0]);
    assert!(!Path::new("data").exists());
}

#[tokio::test]
async fn a_url_of_a_file_is_the_engine_too() {
    let engine = BANK.new_engine().unwrap();
    let _stand_in = engine.stand_in_for_all("data/by_url.db").unwrap();
    let pool = SqlitePool::connect("sqlite://data/by_url.db").await.unwrap();
    sqlx::query("PRAGMA journal_mode = WAL").execute(&pool).await.unwrap();
    sqlx::query("UPDATE account SET balance = 7 WHERE id = 2").execute(&pool).await.unwrap();
    assert_eq!(balances(&engine), [0, 7]);
    assert!(!Path::new("data").exists());
}

/// On all threads of sqlx, whether the pool was opened by the engine's URL or by a path.
#[tokio::test]
async fn sql_gets_the_time_of_the_engine_s_clock() {
    static CLOCKED: Template = Template::based_on(&BANK).clock("2026-01-31T12:00:00Z");
    let engine = CLOCKED.new_engine().unwrap();
    let _stand_in = engine.stand_in_for_all("data/clocked.db").unwrap();
    for url in [engine.sqlite_url(), "sqlite://data/clocked.db"] {
        engine.clock().set_text("2026-01-31T12:00:00Z").unwrap();
        let pool = SqlitePool::connect(url).await.unwrap();
        let now = || sqlx::query_scalar::<_, String>("SELECT datetime('now')").fetch_one(&pool);
        assert_eq!(now().await.unwrap(), "2026-01-31 12:00:00");
        engine.clock().advance(Duration::from_secs(90)).unwrap();
        assert_eq!(now().await.unwrap(), "2026-01-31 12:01:30");
    }
}

#[tokio::test]
async fn sea_orm_opens_the_path_too() {
    let engine = BANK.new_engine().unwrap();
    let _stand_in = engine.stand_in_for_all("data/sea_orm.db").unwrap();
    let database = Database::connect("sqlite://data/sea_orm.db?mode=rwc").await.unwrap();
    database.execute_unprepared("UPDATE account SET balance = 7 WHERE id = 2").await.unwrap();
    assert_eq!(balances(&engine), [0, 7]);
    assert!(!Path::new("data").exists());
}
