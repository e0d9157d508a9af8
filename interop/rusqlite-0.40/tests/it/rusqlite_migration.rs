use std::sync::LazyLock;

use rusqlite_fixtures::{Engine, Template, rusqlite};
use rusqlite_migration::{M, Migrations, SchemaVersion};

use crate::bank::deposit;
use crate::support::{balances, readme};

static MIGRATIONS: LazyLock<Migrations> = LazyLock::new(|| {
    Migrations::new(vec![
        M::up("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);").down("DROP TABLE account;"),
        M::up("INSERT INTO account VALUES (1, 0), (2, 0);").down("DELETE FROM account;"),
    ])
});

#[test]
fn a_template_migrates_once_for_all_tests() {
    let bank = readme!(Template::build(|connection| Ok(MIGRATIONS.to_latest(connection)?)));
    let (one, other) = (bank.new_engine().unwrap(), bank.new_engine().unwrap());
    let mut connection = one.connect().unwrap();
    assert_eq!(MIGRATIONS.current_version(&connection), Ok(SchemaVersion::Inside(2.try_into().unwrap())));
    deposit(&mut connection, 1, 5).unwrap();
    assert_eq!((balances(&one), balances(&other)), (vec![5, 0], vec![0, 0]));
}

#[test]
fn every_migration_can_be_undone() {
    let engine = Engine::new();
    let mut connection = engine.pooled_connection().unwrap();
    MIGRATIONS.to_latest(&mut connection).unwrap();
    MIGRATIONS.to_version(&mut connection, 1).unwrap();
    assert_eq!(balances(&engine), []);
    MIGRATIONS.to_version(&mut connection, 0).unwrap();
    MIGRATIONS.to_latest(&mut connection).unwrap();
    assert_eq!(balances(&engine), [0, 0]);
}

#[test]
fn an_application_may_migrate_an_engine_itself() {
    let engine = Engine::new();
    let mut connection = rusqlite::Connection::open(engine.uri()).unwrap();
    connection.pragma_update(None, "foreign_keys", "ON").unwrap();
    MIGRATIONS.to_latest(&mut connection).unwrap();
    deposit(&mut connection, 1, 5).unwrap();
    assert_eq!(balances(&engine), [5, 0]);
}

#[test]
fn a_migration_that_panics_leaves_the_database_as_it_was() {
    let engine = Engine::new();
    MIGRATIONS.to_version(&mut engine.connect().unwrap(), 1).unwrap();
    let same = engine.clone();
    let test = move || {
        let mut connection = same.connect().unwrap();
        let fails =
            M::up_with_hook("INSERT INTO account VALUES (1, 0);", |_: &rusqlite::Transaction| panic!("in a hook"));
        Migrations::new(vec![M::up(""), fails]).to_latest(&mut connection).unwrap();
    };
    std::thread::spawn(test).join().unwrap_err();
    assert_eq!(balances(&engine), []);
    MIGRATIONS.to_latest(&mut engine.connect().unwrap()).unwrap();
    assert_eq!(balances(&engine), [0, 0]);
}
