//! How long an engine lives, and what happens when it is opened after that.

use std::hash::{DefaultHasher, Hash, Hasher};

use rusqlite_fixtures::rusqlite::Connection;
use rusqlite_fixtures::{Engine, Snapshot, UnitOfWork};

use crate::support::{engine_with_entries, entries};

#[test]
fn a_dropped_engine_can_not_be_opened() {
    let engine = Engine::new();
    let uri = engine.uri().to_owned();
    Connection::open(&uri).unwrap();
    drop(engine);
    let error = Connection::open(&uri).unwrap_err();
    assert!(error.to_string().contains("unable to open database file"), "{error}");
}

#[test]
fn an_unknown_engine_name_creates_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no-engine");
    let engine = Engine::new();
    let (name, vfs) = engine.uri().split_once('?').unwrap();
    assert!(Connection::open(format!("file:{}?{vfs}", path.display())).is_err());
    assert!(!path.exists());
    assert!(Connection::open(format!("file:?{vfs}")).is_ok(), "SQLite's temporary database");
    for other in [format!("{name}-wal"), format!("{name}7"), name.replace("engine-", "engine-0"), format!("{name}/x")] {
        assert!(Connection::open(format!("{other}?{vfs}")).is_err(), "{other}");
    }
}

#[test]
fn any_handle_or_connection_keeps_an_engine_alive() {
    let engine = engine_with_entries(&[(1, 1)]);
    let uri = engine.uri().to_owned();
    let foreign = Connection::open(&uri).unwrap();
    let clone = engine.clone();
    drop(engine);
    let work = clone.unit_of_work().unwrap();
    drop(clone);
    assert_eq!(entries(&work), [(1, 1)]);
    drop(work);
    assert_eq!(entries(&foreign), [(1, 1)]);
    let another = Connection::open(&uri).unwrap();
    drop(foreign);
    assert_eq!(entries(&another), [(1, 1)]);
    drop(another);
    assert!(Connection::open(&uri).is_err());
}

#[test]
fn handles_are_equal_if_they_have_the_same_engine() {
    let (one, other) = (Engine::new(), Engine::default());
    assert_eq!(one, one.clone());
    assert_ne!(one, other);
    assert_ne!(one.uri(), other.uri());
    assert_eq!(hashed(&one), hashed(&one.clone()));
    assert_ne!(hashed(&one), hashed(&other));
    assert!(format!("{one:?}").contains(one.uri()), "{one:?}");
}

fn hashed(engine: &Engine) -> u64 {
    let mut hasher = DefaultHasher::new();
    engine.hash(&mut hasher);
    hasher.finish()
}

#[test]
fn types_can_be_sent_and_shared_as_they_say() {
    fn sent_and_shared<T: Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe>() {}
    fn sent<T: Send>() {}
    sent_and_shared::<Engine>();
    sent_and_shared::<Snapshot>();
    sent_and_shared::<rusqlite_fixtures::MemoryEngines>();
    sent_and_shared::<rusqlite_fixtures::Recording>();
    sent_and_shared::<rusqlite_fixtures::Statements>();
    sent_and_shared::<rusqlite_fixtures::DatabaseUrl>();
    sent::<UnitOfWork>();
    fn not_in_the_way_of_catch_unwind<T: std::panic::UnwindSafe + std::panic::RefUnwindSafe>() {}
    not_in_the_way_of_catch_unwind::<rusqlite_fixtures::faults::Plan>();
    sent::<rusqlite_fixtures::Error>();
}
