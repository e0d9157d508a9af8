//! The fixtures as users have them: imported, and injected by name.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;
use std::{env, thread};

use rstest::{fixture, rstest};
use rusqlite_fixtures::fixtures::{
    fresh_connection, fresh_engine, fresh_owned_connection, fresh_unit_of_work, hammer, memory_engine, unit_of_work,
};
use rusqlite_fixtures::hammer::Hammer;
use rusqlite_fixtures::rusqlite::Connection;
use rusqlite_fixtures::{Engine, PooledConnection, Template, UnitOfWork};
use serial_test::{file_serial, serial};

use crate::support::number;

#[rstest]
fn a_unit_of_work_is_on_the_default_engine(unit_of_work: UnitOfWork, memory_engine: Engine) {
    assert_eq!(unit_of_work.engine(), &memory_engine);
    assert_eq!(memory_engine, Engine::shared("sqlite:///:memory:").unwrap());
    assert!(!unit_of_work.is_autocommit());
}

#[rstest]
#[case(1)]
#[case(2)]
fn changes_of_a_unit_of_work_do_not_reach_the_next_case(
    #[with(Engine::shared("file:fixtures-cases?mode=memory").unwrap())] unit_of_work: UnitOfWork,
    #[case] case: i64,
) {
    unit_of_work.execute_batch("CREATE TABLE left_over (id)").unwrap();
    unit_of_work.execute("INSERT INTO left_over VALUES (?1)", [case]).unwrap();
    assert_eq!(number(&unit_of_work, "SELECT sum(id) FROM left_over"), case);
}

#[rstest]
fn a_memory_engine_can_be_named(#[with("file:fixtures-named?mode=memory")] memory_engine: Engine) {
    assert_eq!(memory_engine, Engine::shared("file:/fixtures-named?vfs=memdb").unwrap());
}

struct Ledger {
    connection: Connection,
}

#[rstest]
#[case(1)]
#[case(2)]
fn an_owned_connection_is_on_a_private_engine(#[with(&BANK)] fresh_owned_connection: Connection, #[case] amount: i64) {
    let ledger = Ledger { connection: fresh_owned_connection };
    ledger.connection.execute("UPDATE account SET balance = balance + ?1", [amount]).unwrap();
    assert_eq!(number(&ledger.connection, "SELECT sum(balance) FROM account"), 200 + 2 * amount);
}

#[rstest]
fn two_fresh_engines_differ(#[from(fresh_engine)] one: Engine, #[from(fresh_engine)] other: Engine) {
    assert_ne!(one, other);
}

#[rstest]
#[case("CREATE TABLE account (id)")]
#[case("CREATE TABLE account (id, other)")]
fn a_fresh_unit_of_work_has_its_own_database(fresh_unit_of_work: UnitOfWork, #[case] create: &str) {
    fresh_unit_of_work.execute_batch(create).unwrap();
    fresh_unit_of_work.commit().unwrap();
}

static BANK: Template = Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
    .seed("INSERT INTO account VALUES (1, 100), (2, 100)");

#[rstest]
#[case(1)]
#[case(2)]
fn a_fresh_unit_of_work_has_the_content_of_a_template(
    #[with(&BANK)] fresh_unit_of_work: UnitOfWork,
    #[case] account: i64,
) {
    assert_eq!(number(&fresh_unit_of_work, "SELECT sum(balance) FROM account"), 200);
    fresh_unit_of_work.execute("DELETE FROM account WHERE id = ?1", [account]).unwrap();
    fresh_unit_of_work.commit().unwrap();
}

#[rstest]
fn a_fresh_engine_has_the_content_of_a_template(#[with(&BANK)] fresh_engine: Engine) {
    assert_eq!(number(&fresh_engine.unit_of_work().unwrap(), "SELECT count(*) FROM account"), 2);
}

/// The code under test begins and commits its own transactions.
#[rstest]
fn a_fresh_connection_has_the_content_of_a_template(#[with(&BANK)] mut fresh_connection: PooledConnection) {
    let transaction = fresh_connection.transaction().unwrap();
    transaction.execute("UPDATE account SET balance = 7", []).unwrap();
    transaction.commit().unwrap();
    assert_eq!(number(&fresh_connection.engine().unit_of_work().unwrap(), "SELECT sum(balance) FROM account"), 14);
    assert!(format!("{fresh_connection:?}").contains("of the template at tests/it/fixtures.rs"));
}

#[rstest]
fn a_shared_engine_has_the_content_of_a_template(
    #[with("file:fixtures-bank?mode=memory", &BANK)] memory_engine: Engine,
) {
    assert_eq!(number(&memory_engine.unit_of_work().unwrap(), "SELECT count(*) FROM account"), 2);
    assert_eq!(memory_engine, Engine::shared("file:fixtures-bank?mode=memory").unwrap());
}

#[rstest]
fn a_hammer_has_the_threads_and_rounds_that_are_asked_for(
    hammer: Hammer,
    #[from(hammer)]
    #[with(3)]
    of_three: Hammer,
    #[from(hammer)]
    #[with(2, 5)]
    of_five_rounds: Hammer,
) {
    let size = |hammer: Hammer| {
        let report = hammer.run(|worker| Ok(worker.threads()));
        (report.values().copied().max(), report.rounds())
    };
    assert_eq!([hammer, of_three, of_five_rounds].map(size), [(Some(8), 100), (Some(3), 100), (Some(2), 5)]);
}

/// A user's fixture, based on one of the crate's.
#[fixture]
fn accounts(fresh_engine: Engine) -> Engine {
    fresh_engine.connect().unwrap().execute_batch("CREATE TABLE account (id); INSERT INTO account VALUES (1)").unwrap();
    fresh_engine
}

#[rstest]
fn fixtures_compose(
    accounts: Engine,
    #[from(unit_of_work)]
    #[with(accounts.fork())]
    work: UnitOfWork,
) {
    assert_eq!(number(&work, "SELECT count(*) FROM account"), 1);
    assert_ne!(work.engine(), &accounts);
}

/// A section that only one test may be in at a time, also among processes. A file lock guards it, which the system
/// releases when a process crashes.
struct Section(PathBuf);

impl Section {
    fn of(name: &str) -> Section {
        Section(env::temp_dir().join(format!("rusqlite-fixtures-{name}-{}", env!("CARGO_PKG_VERSION"))))
    }

    /// Runs `work` in the section; returns `None` if another test is in it.
    fn enter<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let file = File::options().create(true).append(true).open(&self.0).unwrap();
        file.try_lock().ok()?;
        Some(work())
    }
}

/// Gives the other case time to enter, if nothing keeps it out. Nothing else depends on this time.
fn linger() {
    thread::sleep(Duration::from_millis(100));
}

/// On threads of one process, `#[serial]` separates tests that commit to the same engine. It does not separate processes.
#[rstest]
#[case(1)]
#[case(2)]
#[serial(fixtures_serial)]
fn serial_tests_do_not_overlap(#[with("file:fixtures-serial?mode=memory")] memory_engine: Engine, #[case] case: i64) {
    let alone = Section::of(&format!("serial-{}", std::process::id())).enter(|| {
        let connection = memory_engine.connect().unwrap();
        connection.execute_batch("CREATE TABLE entry (id)").unwrap();
        connection.execute("INSERT INTO entry VALUES (?1)", [case]).unwrap();
        linger();
        assert_eq!(number(&connection, "SELECT sum(id) FROM entry"), case);
        memory_engine.reset().unwrap();
    });
    assert!(alone.is_some(), "the other case is running");
}

/// If each test has its own process, `#[file_serial]` does the same for what processes share, here a file.
#[rstest]
#[case(1)]
#[case(2)]
#[file_serial(fixtures_file_serial)]
fn file_serial_tests_do_not_overlap(#[with(&BANK)] fresh_unit_of_work: UnitOfWork, #[case] case: i64) {
    fresh_unit_of_work.execute("DELETE FROM account WHERE id = ?1", [case]).unwrap();
    assert!(Section::of("file-serial").enter(linger).is_some(), "the other case is running");
}

/// The control: a test that enters while another is in the section is detected.
#[test]
fn a_second_test_in_a_section_is_detected() {
    let name = format!("control-{}", std::process::id());
    let section = Section::of(&name);
    let others =
        section.enter(|| thread::scope(|scope| scope.spawn(|| Section::of(&name).enter(linger)).join().unwrap()));
    assert_eq!(others, Some(None));
    assert_eq!(section.enter(|| ()), Some(()), "the section is free again");
    fs::remove_file(&section.0).unwrap();
}

#[test]
#[should_panic(expected = "can't use the database URL \"orders.db\"")]
fn an_unsupported_url_fails_the_test_with_the_reason() {
    memory_engine("orders.db", &BANK);
}
