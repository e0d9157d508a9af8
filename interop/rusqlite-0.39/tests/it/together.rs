use sea_orm::{ConnectionTrait, Database};
use sqlx::SqlitePool;

use rusqlite_fixtures::rusqlite;

use crate::support::{BANK, balances, readme};

#[tokio::test]
async fn all_libraries_write_to_one_engine() {
    let engine = BANK.new_engine().unwrap();
    let sqlx = SqlitePool::connect(engine.sqlite_url()).await.unwrap();
    let sea_orm = Database::connect(engine.sqlite_url()).await.unwrap();
    let rusqlite = readme!(rusqlite::Connection::open(engine.uri())).unwrap();
    let sql = "UPDATE account SET balance = balance + 1 WHERE id = 1";
    for rounds in 1..=3 {
        sqlx::query(sql).execute(&sqlx).await.unwrap();
        sea_orm.execute_unprepared(sql).await.unwrap();
        rusqlite.execute(sql, []).unwrap();
        assert_eq!(balances(&engine), [3 * rounds, 0]);
    }
}
