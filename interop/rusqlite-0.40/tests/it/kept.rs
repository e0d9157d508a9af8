//! Pools that stay warm from test to test.

use std::sync::Mutex;

use diesel::RunQueryDsl;
use diesel::r2d2::ConnectionManager;
use diesel::{Connection, SqliteConnection, sql_query};
use r2d2::Pool;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite_fixtures::{BoxError, Engine, KeptValues};

use crate::bank::deposit;
use crate::support::{BANK, balances, run_test_that_panics};

const DEPOSIT: &str = "UPDATE account SET balance = balance + 1 WHERE id = 1";
const OUTSIDE: &str = "a connection has compiled a statement with effects outside of the engine: on a temporary table or an \
    attached database, ANALYZE, or a pragma such as journal_mode";

type DieselPool = diesel::r2d2::Pool<ConnectionManager<SqliteConnection>>;

fn diesel_pool(engine: &Engine) -> Result<DieselPool, BoxError> {
    Ok(DieselPool::builder().max_size(4).build(ConnectionManager::new(engine.uri()))?)
}

#[test]
fn a_pool_of_diesel_is_reused() {
    static POOLS: KeptValues<DieselPool> = KeptValues::new(&BANK);
    let mut names = Vec::new();
    for _ in 0..4 {
        let pool = POOLS.get_or_make(diesel_pool).unwrap();
        pool.get().unwrap().transaction(|transaction| sql_query(DEPOSIT).execute(transaction)).unwrap();
        assert_eq!(balances(pool.engine()), [1, 0]);
        names.push(pool.engine().uri().to_owned());
    }
    names.dedup();
    assert_eq!(names.len(), 1, "{:?}", POOLS.why_dropped());
    let pool = POOLS.get_or_make(diesel_pool).unwrap();
    sql_query("CREATE TEMP TABLE account (id, balance)").execute(&mut pool.get().unwrap()).unwrap();
    drop(pool);
    assert_eq!(balances(POOLS.get_or_make(diesel_pool).unwrap().engine()), [0, 0]);
    assert_eq!(POOLS.why_dropped().as_deref(), Some(OUTSIDE));
}

#[test]
fn a_connection_of_diesel_is_reused() {
    static CONNECTIONS: KeptValues<Mutex<SqliteConnection>> = KeptValues::new(&BANK);
    for _ in 0..4 {
        let establish = |engine: &Engine| Ok(Mutex::new(SqliteConnection::establish(engine.uri())?));
        let connection = CONNECTIONS.get_or_make(establish).unwrap();
        sql_query(DEPOSIT).execute(&mut *connection.lock().unwrap()).unwrap();
        assert_eq!(balances(connection.engine()), [1, 0]);
    }
    assert_eq!(CONNECTIONS.why_dropped(), None);
}

#[test]
fn a_test_transaction_of_diesel_is_not_reused() {
    static CONNECTIONS: KeptValues<Mutex<SqliteConnection>> = KeptValues::new(&BANK);
    for _ in 0..2 {
        let establish = |engine: &Engine| Ok(Mutex::new(SqliteConnection::establish(engine.uri())?));
        let connection = CONNECTIONS.get_or_make(establish).unwrap();
        assert_eq!(balances(connection.engine()), [0, 0]);
        let mut connection = connection.lock().unwrap();
        connection.begin_test_transaction().unwrap();
        sql_query(DEPOSIT).execute(&mut *connection).unwrap();
    }
    assert_eq!(CONNECTIONS.why_dropped().as_deref(), Some("a connection holds the writer slot, or waits for it"));
}

fn rusqlite_pool(engine: &Engine) -> Result<Pool<SqliteConnectionManager>, BoxError> {
    Ok(Pool::builder().max_size(4).build(SqliteConnectionManager::file(engine.uri()))?)
}

#[test]
fn a_pool_of_r2d2_sqlite_is_reused() {
    static POOLS: KeptValues<Pool<SqliteConnectionManager>> = KeptValues::new(&BANK);
    for _ in 0..4 {
        let pool = POOLS.get_or_make(rusqlite_pool).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| deposit(&mut pool.get().unwrap(), 1, 1).unwrap());
            }
        });
        assert_eq!(balances(pool.engine()), [8, 0]);
    }
    assert_eq!(POOLS.why_dropped(), None);
}

#[test]
fn a_pool_of_a_test_that_panics_is_dropped() {
    static POOLS: KeptValues<Pool<SqliteConnectionManager>> = KeptValues::new(&BANK);
    run_test_that_panics(|| {
        let pool = POOLS.get_or_make(rusqlite_pool).unwrap();
        deposit(&mut pool.get().unwrap(), 1, 5).unwrap();
        panic!("as a failed assertion does");
    });
    assert_eq!(POOLS.why_dropped().as_deref(), Some("the test panicked"));
    assert_eq!(balances(POOLS.get_or_make(rusqlite_pool).unwrap().engine()), [0, 0]);
}
