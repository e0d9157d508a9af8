use rusqlite_fixtures::{Engine, ErrorKind, Template, rusqlite};

use crate::bank::deposit;
use crate::support::{balances, readme};

refinery::embed_migrations!("../migrations/refinery");

#[test]
fn a_template_migrates_once_for_all_tests() {
    let bank = readme!(Template::build(|connection| Ok(migrations::runner().run(connection).map(drop)?)));
    let (one, other) = (bank.new_engine().unwrap(), bank.new_engine().unwrap());
    let mut connection = one.connect().unwrap();
    let applied = migrations::runner().get_applied_migrations(&mut connection).unwrap();
    assert_eq!(applied.iter().map(|migration| migration.name()).collect::<Vec<_>>(), ["account", "first_accounts"]);
    deposit(&mut connection, 1, 5).unwrap();
    assert_eq!((balances(&one), balances(&other)), (vec![5, 0], vec![0, 0]));
}

#[test]
fn a_folder_of_migrations_is_a_template_too() {
    static FOLDER: Template = Template::directory("../migrations/refinery");
    assert_eq!(balances(&FOLDER.new_engine().unwrap()), [0, 0]);
}

#[test]
fn an_application_may_migrate_an_engine_itself() {
    let engine = Engine::new();
    let mut connection = rusqlite::Connection::open(engine.uri()).unwrap();
    migrations::runner().run(&mut connection).unwrap();
    assert!(migrations::runner().run(&mut connection).unwrap().applied_migrations().is_empty());
    deposit(&mut connection, 1, 5).unwrap();
    assert_eq!(balances(&engine), [5, 0]);
}

#[test]
fn a_template_says_which_migration_failed() {
    let bank = Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY)")
        .seed_with(|connection| Ok(migrations::runner().run(connection).map(drop)?));
    let error = bank.new_engine().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BuildFailed);
    assert!(error.to_string().contains("table account already exists"), "{error}");
}
