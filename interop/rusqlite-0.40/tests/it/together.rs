use deadpool_sqlite::{Config, Runtime};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite_fixtures::rusqlite;

use crate::bank::{add, balance};
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

/// One recording has the statements of all of them: of a connection of rusqlite by the engine's URI, too.
#[test]
fn the_statements_of_all_libraries_are_recorded_in_their_order() {
    let engine = BANK.new_engine().unwrap();
    let plain = rusqlite::Connection::open(engine.uri()).unwrap();
    let r2d2 = r2d2::Pool::new(SqliteConnectionManager::file(engine.uri())).unwrap();
    let recording = engine.record();
    let mut diesel = SqliteConnection::establish(engine.uri()).unwrap();
    add(&plain, 1, 1).unwrap();
    add(&r2d2.get().unwrap(), 1, 2).unwrap();
    diesel.batch_execute("UPDATE account SET balance = balance + 3 WHERE id = 1").unwrap();
    assert_eq!(balance(&plain, 1), Ok(6));
    let statements = recording.stop();
    assert_eq!(statements.gaps(), [""; 0]);
    let statements = statements.of_table("account");
    let sql: Vec<&str> = statements.iter().map(|statement| statement.expanded_sql()).collect();
    let expected = [
        "UPDATE account SET balance = balance + 1 WHERE id = 1",
        "UPDATE account SET balance = balance + 2 WHERE id = 1",
        "UPDATE account SET balance = balance + 3 WHERE id = 1",
        "SELECT balance FROM account WHERE id = 1",
    ];
    assert_eq!(sql, expected);
    let connections: Vec<usize> = statements.iter().map(|statement| statement.connection()).collect();
    let [plain, r2d2, diesel, again] = connections[..] else { panic!("{connections:?}") };
    assert!(plain != r2d2 && r2d2 != diesel && plain != diesel && plain == again, "{connections:?}");
}
