use deadpool_sqlite::{Config, Runtime};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use r2d2_sqlite::SqliteConnectionManager;

use crate::bank::add;
use crate::support::{BANK, balances};

#[tokio::test]
async fn all_libraries_write_to_one_engine() {
    let engine = BANK.new_engine().unwrap();
    let mut diesel = SqliteConnection::establish(engine.uri()).unwrap();
    let r2d2 = r2d2::Pool::new(SqliteConnectionManager::file(engine.uri())).unwrap();
    let deadpool = Config::new(engine.uri()).create_pool(Runtime::Tokio1).unwrap();
    let tokio_rusqlite = tokio_rusqlite::Connection::open(engine.uri()).await.unwrap();
    for rounds in 1..=3 {
        diesel.batch_execute("UPDATE account SET balance = balance + 1 WHERE id = 1").unwrap();
        add(&r2d2.get().unwrap(), 1, 1).unwrap();
        deadpool.get().await.unwrap().interact(|connection| add(connection, 1, 1)).await.unwrap().unwrap();
        tokio_rusqlite.call(|connection| add(connection, 1, 1)).await.unwrap();
        assert_eq!(balances(&engine), [4 * rounds, 0]);
    }
}
