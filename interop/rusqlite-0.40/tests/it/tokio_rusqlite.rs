use rusqlite_fixtures::{Engine, KeptValues, rusqlite};
use tokio::task::JoinSet;
use tokio_rusqlite::{Connection, Error};

use crate::bank::{add, balance, deposit};
use crate::support::{BANK, balances, readme, run_test_that_panics};

// The code under test.

async fn deposit_by(connection: &Connection, id: i64, amount: i64) {
    connection.call(move |connection| deposit(connection, id, amount)).await.unwrap();
}

// Its tests.

async fn open(engine: &Engine) -> Connection {
    Connection::open(engine.uri()).await.unwrap()
}

#[tokio::test]
async fn the_line_in_the_readme_opens_a_connection() {
    let engine = BANK.new_engine().unwrap();
    let connection = readme!(tokio_rusqlite::Connection::open(engine.uri()).await).unwrap();
    deposit_by(&connection, 1, 5).await;
    assert_eq!(balances(&engine), [5, 0]);
}

/// tokio-rusqlite has no pool. Two tasks share each of four connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_tasks_write_through_four_connections() {
    let engine = BANK.new_engine().unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let connection = open(&engine).await;
        for id in [1, 2] {
            let connection = connection.clone();
            tasks.spawn(async move {
                for _ in 0..25 {
                    deposit_by(&connection, id, 1).await;
                }
            });
        }
    }
    tasks.join_all().await;
    assert_eq!(balances(&engine), [100, 100]);
}

/// A panic in `call` ends the connection's thread, and its transaction; then the test fails.
#[tokio::main(flavor = "current_thread")]
async fn panic_within_a_transaction(engine: Engine) {
    let connection = open(&engine).await;
    deposit_by(&connection, 1, 5).await;
    let work = connection.call(|connection| -> rusqlite::Result<()> {
        let transaction = connection.transaction()?;
        add(&transaction, 1, 70)?;
        panic!("in code under test");
    });
    assert!(matches!(work.await, Err(Error::ConnectionClosed)));
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
    let engine = Engine::shared_with("file:tokio-rusqlite?mode=memory", &BANK).unwrap();
    let same = engine.clone();
    run_test_that_panics(|| panic_within_a_transaction(same));
    deposit(&mut engine.connect().unwrap(), 2, 1).unwrap();
    assert_eq!(balances(&engine), [5, 1]);
}

#[tokio::test]
async fn an_open_transaction_is_invisible_to_others() {
    let engine = BANK.new_engine().unwrap();
    let connection = open(&engine).await;
    let begun = connection.call(|connection| connection.execute_batch("BEGIN IMMEDIATE")).await;
    begun.unwrap();
    connection.call(|connection| add(connection, 1, 5)).await.unwrap();
    assert_eq!(balances(&engine), [0, 0]);
    connection.call(|connection| connection.execute_batch("COMMIT")).await.unwrap();
    assert_eq!(balances(&engine), [5, 0]);
}

#[tokio::test]
async fn a_connection_outlives_its_engine() {
    let engine = BANK.new_engine().unwrap();
    let connection = open(&engine).await;
    drop(engine);
    deposit_by(&connection, 1, 5).await;
    assert_eq!(connection.call(|connection| balance(connection, 1)).await.unwrap(), 5);
    assert_eq!(balances(&BANK.new_engine().unwrap()), [0, 0]);
}

#[tokio::test]
async fn a_dropped_engine_can_not_be_opened() {
    let uri = BANK.new_engine().unwrap().uri().to_owned();
    let error = Connection::open(uri).await.err().unwrap();
    assert!(error.to_string().contains("unable to open database file"), "{error}");
}

#[test]
fn a_connection_is_reused_in_other_runtimes() {
    static CONNECTIONS: KeptValues<Connection> = KeptValues::new(&BANK);
    for _ in 0..4 {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let open = async |engine: &Engine| Ok(open(engine).await);
            let connection = CONNECTIONS.get_or_make_async(open).await.unwrap();
            deposit_by(&connection, 1, 5).await;
            assert_eq!(balances(connection.engine()), [5, 0]);
        });
    }
    assert_eq!(CONNECTIONS.why_dropped(), None);
}

#[tokio::test]
async fn an_engine_stands_in_for_a_file() {
    let engine = BANK.new_engine().unwrap();
    let _stand_in = engine.stand_in_for_all("data/tokio.db").unwrap();
    deposit_by(&Connection::open("data/tokio.db").await.unwrap(), 1, 5).await;
    assert_eq!(balances(&engine), [5, 0]);
    assert!(!std::path::Path::new("data").exists());
}
