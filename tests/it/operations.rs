//! Sequences of operations on engines do what the model, a plain map with a stack, predicts.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};
use rusqlite_fixtures::hammer::{Hammer, Pause, SLOT_ASKED, SLOT_GIVEN_BACK, SLOT_TAKEN};
use rusqlite_fixtures::rusqlite::TransactionBehavior::Immediate;
use rusqlite_fixtures::rusqlite::functions::FunctionFlags;
use rusqlite_fixtures::rusqlite::{self, Connection, OptionalExtension, params};
use rusqlite_fixtures::strategies::{
    self, Content, Difference, Effect, End, Engines, Kind, Operation, Outcome, Record, RowStatement, RowTransaction,
    Rows, Subject, Table, check_on_threads, check_serial, hammers, operations, prepare, transactions,
};
use rusqlite_fixtures::{Engine, PooledConnection, Template};

use crate::support::number;

static ENTRIES: Template = Template::sql("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER NOT NULL)")
    .seed("INSERT INTO entry VALUES (1, 0)");

const ENTRY: Table = Table::new("entry", "key", "value");

#[test]
fn types_are_send_and_sync() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<(Operation<i64, i64>, RowStatement<i64, i64>, Kind)>();
    is_send_and_sync::<(Outcome<i64, i64>, Effect<i64, i64>, Content<i64, i64>, Difference)>();
    is_send_and_sync::<(RowTransaction<i64, i64>, Record<i64, i64>, End)>();
    is_send_and_sync::<(strategies::Model<i64, i64>, Table)>();
}

type Sequence = Vec<Operation<i64, i64>>;

fn sequences() -> impl Strategy<Value = Sequence> {
    operations(0..4i64, 0..3i64, 1..50)
}

/// An engine that was not used before.
fn cold_engine() -> Engine {
    ENTRIES.snapshot().unwrap().new_engine()
}

const CASES: u32 = 256;

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    /// On cold engines, with new connections.
    #[test]
    fn an_engine_does_what_the_model_predicts(operations in sequences()) {
        strategies::check(&ENTRY, cold_engine(), &operations)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES / 2, ..ProptestConfig::default() })]

    /// No sequence notices the one before.
    #[test]
    fn a_reused_engine_does_what_the_model_predicts(all in prop::collection::vec(sequences(), 2)) {
        for operations in &all {
            strategies::check(&ENTRY, ENTRIES.new_engine().unwrap(), operations)?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES / 8, ..ProptestConfig::default() })]

    #[test]
    fn an_engine_in_a_file_does_what_the_model_predicts(operations in sequences()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("entries.db");
        ENTRIES.snapshot().unwrap().save(&path).unwrap();
        strategies::check(&ENTRY, Engine::file(&path).unwrap(), &operations)?;
    }
}

fn deterministic(cases: u32) -> TestRunner {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// The property above would check nothing if each engine were new. SQLite's count of all changes can't be reset on a
/// connection, so it shows a reused one.
#[test]
fn the_engines_are_reused() {
    static TEMPLATE: Template = Template::sql("CREATE TABLE entry (key INTEGER PRIMARY KEY, value)").key("operations");
    let reused = Cell::new(0);
    let run = deterministic(50).run(&sequences(), |operations| {
        let engine = TEMPLATE.new_engine().unwrap();
        let connections: Vec<_> = (0..3).map(|_| engine.pooled_connection().unwrap()).collect();
        let was_used = |connection: &PooledConnection| number(connection, "SELECT total_changes()") > 0;
        reused.set(reused.get() + i32::from(connections.iter().any(was_used)));
        connections.iter().for_each(|connection| drop(connection.execute("INSERT INTO entry VALUES (9, 9)", [])));
        drop(connections);
        engine.reset().unwrap();
        Ok(strategies::check(&ENTRY, engine, &operations)?)
    });
    run.unwrap();
    assert!(reused.get() > 25, "{} of 50", reused.get());
}

/// The properties would check little without these outcomes.
#[test]
fn sequences_have_many_kinds_of_outcomes() {
    let name = |debug: String| debug.split([' ', '(']).next().unwrap().to_owned();
    let seen = RefCell::new(BTreeMap::<String, u32>::new());
    let run = deterministic(CASES).run(&sequences(), |operations| {
        let mut engines = Engines::new(&ENTRY, cold_engine()).unwrap();
        for operation in &operations {
            let outcome = engines.apply(operation).outcome;
            let what = match operation {
                Operation::Do { statement, .. } => name(format!("{statement:?}")),
                other => name(format!("{other:?}")),
            };
            *seen.borrow_mut().entry(format!("{what}: {}", name(format!("{outcome:?}")))).or_default() += 1;
        }
        Ok(())
    });
    run.unwrap();
    let seen = seen.into_inner();
    for outcome in [
        "Begin: InTransaction",
        "Begin: Locked",
        "Commit: Done",
        "Commit: NoTransaction",
        "CreateTable: Done",
        "CreateTable: Exists",
        "Drop: Done",
        "DropTable: Done",
        "Fork: Done",
        "Insert: Done",
        "Insert: Exists",
        "Insert: Locked",
        "Insert: Stale",
        "Open: Locked",
        "Panic: Done",
        "Read: Read",
        "Release: Done",
        "Reset: Done",
        "Restore: Done",
        "Restore: Locked",
        "RollbackTo: Done",
        "RollbackTo: NoSavepoint",
        "Update: Locked",
        "Update: Missing",
        "Vacuum: Done",
    ] {
        assert!(seen.contains_key(outcome), "never {outcome}: {seen:#?}");
    }
    assert!(!seen.keys().any(|outcome| outcome.ends_with("Failed")), "{seen:#?}");
}

/// The harness avoids this case, which the properties have found: SQLite's BEGIN IMMEDIATE in a savepoint takes the slot and
/// fails, and after ROLLBACK TO no table exists if the schema had not been read before.
#[test]
fn a_savepoint_set_before_the_schema_is_read_behaves_as_in_a_file() {
    let find_table = |connection: Connection| {
        connection.execute_batch("SAVEPOINT before").unwrap();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap_err();
        connection.execute_batch("ROLLBACK TO before").unwrap();
        let found =
            connection.query_row("SELECT value FROM entry", [], |row| row.get(0)).map_err(|error| error.to_string());
        connection.execute_batch("ROLLBACK").unwrap();
        (found, number(&connection, "SELECT value FROM entry"))
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("entries.sqlite3");
    ENTRIES.snapshot().unwrap().save(&path).unwrap();
    let in_file: (Result<i64, String>, i64) = find_table(Connection::open(&path).unwrap());
    assert_eq!(find_table(cold_engine().connect().unwrap()), in_file);
    assert_eq!(in_file.1, 0);
}

type OnEntries<'a> = Engines<'a, Table>;
type Apply = fn(&mut OnEntries<'_>, &Engine, &Operation<i64, i64>) -> Effect<i64, i64>;

/// Engines with a planted bug.
struct Broken<'a> {
    engines: OnEntries<'a>,
    first: Engine,
    apply: Apply,
}

impl Subject<i64, i64> for Broken<'_> {
    fn apply(&mut self, operation: &Operation<i64, i64>) -> Effect<i64, i64> {
        (self.apply)(&mut self.engines, &self.first, operation)
    }
}

/// Returns the steps to which a failure shrinks.
fn shrunk(check: impl Fn(&[Operation<i64, i64>]) -> Result<(), Difference>) -> Sequence {
    match deterministic(CASES).run(&sequences(), |operations| Ok(check(&operations)?)) {
        Err(TestError::Fail(_, steps)) => steps,
        other => panic!("the bug was not found: {other:?}"),
    }
}

fn goes_back_to_no_savepoint(
    engines: &mut OnEntries<'_>,
    _: &Engine,
    operation: &Operation<i64, i64>,
) -> Effect<i64, i64> {
    let Operation::Do { client, statement: RowStatement::RollbackTo { savepoint } } = *operation else {
        return engines.apply(operation);
    };
    let released = engines.apply(&Operation::Do { client, statement: RowStatement::Release { savepoint } });
    if released.outcome == Outcome::Done {
        engines.apply(&Operation::Do { client, statement: RowStatement::Savepoint });
    }
    released
}

fn forgets_to_reset(engines: &mut OnEntries<'_>, first: &Engine, operation: &Operation<i64, i64>) -> Effect<i64, i64> {
    let done = Effect { outcome: Outcome::Done, replaced: false };
    match operation {
        Operation::Reset { engine: 0 } if first.begin(Immediate).is_ok() => done,
        _ => engines.apply(operation),
    }
}

fn commits_in_a_panic(engines: &mut OnEntries<'_>, _: &Engine, operation: &Operation<i64, i64>) -> Effect<i64, i64> {
    if let Operation::Panic { client } = *operation {
        let committed = engines.apply(&Operation::Commit { client });
        let dropped = engines.apply(&Operation::Drop { client });
        return if committed.outcome == Outcome::Done { committed } else { dropped };
    }
    engines.apply(operation)
}

/// The counterparts of the properties.
#[test]
fn engines_with_a_bug_are_found() {
    let bugs: [Apply; 3] = [goes_back_to_no_savepoint, forgets_to_reset, commits_in_a_panic];
    for apply in bugs {
        let steps = shrunk(|operations| {
            let first = cold_engine();
            let engines = Engines::new(&ENTRY, first.clone()).unwrap();
            let mut model = engines.model()?;
            model.compare(&mut Broken { engines, first, apply }, operations)
        });
        assert!(steps.len() <= 8, "{steps:#?}");
    }
}

/// The table `entry`, read by a function.
struct ReadBy<F>(F);

impl<F: Fn(&Connection) -> rusqlite::Result<BTreeMap<i64, i64>>> Rows for ReadBy<F> {
    type Key = i64;
    type Value = i64;
    const WRITES_FIRST: bool = true;
    const UNCHANGED_IS_UNWRITTEN: bool = true;

    fn insert(&self, connection: &Connection, key: &i64, value: &i64) -> rusqlite::Result<()> {
        ENTRY.insert(connection, key, value)
    }

    fn update(&self, connection: &Connection, key: &i64, value: &i64) -> rusqlite::Result<bool> {
        ENTRY.update(connection, key, value)
    }

    fn delete(&self, connection: &Connection, key: &i64) -> rusqlite::Result<bool> {
        ENTRY.delete(connection, key)
    }

    fn read(&self, connection: &Connection) -> rusqlite::Result<BTreeMap<i64, i64>> {
        (self.0)(connection)
    }
}

/// The counterpart reads what is committed now, whatever its transaction has read before, unless another client is writing.
#[test]
fn a_reader_that_sees_the_newest_commit_is_found() {
    let steps = shrunk(|operations| {
        let engine = cold_engine();
        let path = engine.connect().unwrap().path().unwrap().to_owned();
        let newest = ReadBy(|connection: &Connection| {
            let seen = ENTRY.read(connection)?;
            let is_here = connection.path() == Some(&*path);
            match engine.begin(Immediate) {
                Ok(newest) if is_here => ENTRY.read(&newest),
                _ => Ok(seen),
            }
        });
        strategies::check(&newest, engine.clone(), operations)
    });
    assert!(steps.len() <= 8, "{steps:#?}");
}

/// Like a user's code: own types of keys and values, an SQL function on each connection, an index, triggers that write to
/// another table, and a query before an update.
struct Accounts;

static ACCOUNTS: Template = Template::sql(
    "CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT NOT NULL UNIQUE, city TEXT NOT NULL);
     CREATE INDEX account_city ON account (city);
     CREATE TABLE change (owner TEXT NOT NULL, city TEXT NOT NULL);
     CREATE TRIGGER opened AFTER INSERT ON account BEGIN INSERT INTO change VALUES (new.owner, new.city); END;
     CREATE TRIGGER moved AFTER UPDATE ON account BEGIN INSERT INTO change VALUES (new.owner, new.city); END;",
)
.on_connect(|connection| {
    let flags = FunctionFlags::SQLITE_UTF8;
    Ok(connection.create_scalar_function("same", 1, flags, |context| context.get::<String>(0))?)
})
.key("operations-accounts");

impl Rows for Accounts {
    type Key = String;
    type Value = String;

    fn insert(&self, connection: &Connection, owner: &String, city: &String) -> rusqlite::Result<()> {
        connection.execute("INSERT INTO account (owner, city) VALUES (?1, ?2)", [owner, city]).map(drop)
    }

    fn update(&self, connection: &Connection, owner: &String, city: &String) -> rusqlite::Result<bool> {
        let find = "SELECT id FROM account WHERE owner = ?1";
        let id: Option<i64> = connection.query_row(find, [owner], |row| row.get(0)).optional()?;
        let Some(id) = id else { return Ok(false) };
        Ok(connection.execute("UPDATE account SET city = same(?2) WHERE id = ?1", params![id, city])? == 1)
    }

    fn delete(&self, connection: &Connection, owner: &String) -> rusqlite::Result<bool> {
        Ok(connection.execute("DELETE FROM account WHERE owner = ?1", [owner])? == 1)
    }

    fn read(&self, connection: &Connection) -> rusqlite::Result<BTreeMap<String, String>> {
        let mut accounts = connection.prepare("SELECT owner, city FROM account")?;
        accounts.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }
}

/// Some take several pages.
fn cities() -> impl Strategy<Value = String> {
    ("[xyz]", prop_oneof![Just(1), 1000..9000usize]).prop_map(|(name, times)| name.repeat(times))
}

fn rows(engine: &Engine) -> BTreeMap<i64, i64> {
    ENTRY.read(&engine.unit_of_work().unwrap()).unwrap()
}

/// Returns an engine that is prepared for recorded transactions, and its rows.
fn recorded_engine() -> (Engine, BTreeMap<i64, i64>) {
    let engine = ENTRIES.new_engine().unwrap();
    prepare(&engine).unwrap();
    let before = rows(&engine);
    (engine, before)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_users_table_does_what_the_model_predicts(operations in operations("[A-D]", cities(), 1..50)) {
        strategies::check(&Accounts, ACCOUNTS.new_engine().unwrap(), &operations)?;
    }

    #[test]
    fn transactions_on_a_users_table_are_serializable(
        threads in transactions("[A-D]", "[xyz]", 3, 1..8),
        hammer in hammers(Hammer::new(), 3, &[SLOT_ASKED, SLOT_GIVEN_BACK]),
    ) {
        check_on_threads(Accounts, &ACCOUNTS.new_engine().unwrap(), threads, hammer)?;
    }

    #[test]
    fn transactions_on_threads_are_serializable(
        threads in transactions(0..4i64, 0..9i64, 3, 1..8),
        hammer in hammers(Hammer::new(), 3, &[SLOT_ASKED, SLOT_TAKEN, SLOT_GIVEN_BACK]),
    ) {
        let yields = ReadBy(|connection: &Connection| {
            thread::yield_now(); // so that other threads run in between
            ENTRY.read(connection)
        });
        check_on_threads(yields, &ENTRIES.new_engine().unwrap(), threads, hammer)?;
    }
}

fn statement(client: usize, statement: RowStatement<i64, i64>) -> Operation<i64, i64> {
    Operation::Do { client, statement }
}

/// Steps in which a client finds the slot taken, for each kind of connection.
fn refused_steps() -> Sequence {
    let update = |client| statement(client, RowStatement::Update { key: 1, value: 5 });
    let mut steps = vec![Operation::Open { client: 0, engine: 0, kind: Kind::Immediate }, update(0)];
    for kind in [Kind::UnitOfWork, Kind::Immediate, Kind::Pooled, Kind::Connection, Kind::Uri] {
        steps.push(Operation::Open { client: 1, engine: 0, kind });
        let begin = |immediate| Operation::Begin { client: 1, immediate };
        let after_reading =
            [begin(false), statement(1, RowStatement::Read), update(1), Operation::Rollback { client: 1 }];
        steps.extend([update(1), begin(true), Operation::Vacuum { client: 1 }]);
        steps.extend(after_reading);
    }
    steps
}

/// A time-out that `on_connect` sets does not make a client wait.
#[test]
fn no_client_waits_whatever_on_connect_sets() {
    const WAIT: Duration = Duration::from_secs(15);
    static PATIENT: Template = Template::sql("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER NOT NULL)")
        .seed("INSERT INTO entry VALUES (1, 0)")
        .on_connect(|connection| Ok(connection.busy_timeout(WAIT)?))
        .key("operations-patient");
    for _ in 0..2 {
        let mut engines = Engines::new(&ENTRY, PATIENT.new_engine().unwrap()).unwrap(); // a reused one the second time
        let mut model = engines.model().unwrap();
        for step in refused_steps() {
            let start = Instant::now();
            model.compare(&mut engines, std::slice::from_ref(&step)).unwrap();
            assert!(start.elapsed() < WAIT, "{step:?} took {:?}", start.elapsed());
        }
        engines.check(&model).unwrap();
    }
}

/// A time-out of zero that `on_connect` sets does not keep threads from waiting.
#[test]
fn threads_take_turns_whatever_on_connect_sets() {
    static IMPATIENT: Template = Template::sql("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER NOT NULL)")
        .seed("INSERT INTO entry VALUES (1, 0)")
        .on_connect(|connection| Ok(connection.busy_timeout(Duration::ZERO)?))
        .key("operations-impatient");
    let update = RowTransaction {
        immediate: true,
        ..committed(&[RowStatement::Read, RowStatement::Update { key: 1, value: 5 }])
    };
    let hammer = Hammer::new().pause_at(SLOT_TAKEN, Pause::time(Duration::from_millis(5)));
    check_on_threads(ENTRY, &IMPATIENT.new_engine().unwrap(), vec![vec![update; 3]; 4], hammer).unwrap();
}

/// The harness rolls back code that fails after a change, as an application would.
#[test]
fn a_change_by_code_that_fails_is_not_committed() {
    /// Changes the existing row before it is refused.
    struct Careless;
    impl Rows for Careless {
        type Key = i64;
        type Value = i64;

        fn insert(&self, connection: &Connection, key: &i64, value: &i64) -> rusqlite::Result<()> {
            ENTRY.update(connection, key, &77)?;
            ENTRY.insert(connection, key, value)
        }

        fn update(&self, connection: &Connection, key: &i64, value: &i64) -> rusqlite::Result<bool> {
            ENTRY.update(connection, key, value)
        }

        fn delete(&self, connection: &Connection, key: &i64) -> rusqlite::Result<bool> {
            ENTRY.delete(connection, key)
        }

        fn read(&self, connection: &Connection) -> rusqlite::Result<BTreeMap<i64, i64>> {
            ENTRY.read(connection)
        }
    }
    let insert = statement(0, RowStatement::Insert { key: 1, value: 3 });
    strategies::check(&Careless, cold_engine(), &[insert.clone(), statement(1, RowStatement::Read)]).unwrap();
    let mut engines = Engines::new(&Careless, cold_engine()).unwrap();
    assert_eq!(engines.apply(&insert), Effect { outcome: Outcome::Exists, replaced: false });
}

/// Even if it was meant to be committed.
#[test]
fn a_transaction_that_was_refused_is_rolled_back() {
    let (engine, before) = recorded_engine();
    let refused = ReadBy(|connection: &Connection| {
        ENTRY.update(connection, &1, &77)?;
        let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY); // as from an attached database
        Err(rusqlite::Error::SqliteFailure(busy, None))
    });
    let record = committed(&[RowStatement::Read]).run(&refused, &engine).unwrap();
    assert_eq!(record, Record { committed: false, position: 0, seen: vec![] });
    assert_eq!(rows(&engine), before);
}

#[test]
fn an_error_names_the_line_of_the_transaction_that_has_the_slot() {
    let (engine, _) = recorded_engine();
    let reported = RefCell::new(String::new());
    let reports = ReadBy(|connection: &Connection| {
        engine.set_lock_timeout(Duration::ZERO);
        *reported.borrow_mut() = engine.begin(Immediate).unwrap_err().to_string();
        ENTRY.read(connection)
    });
    let transaction = RowTransaction { immediate: true, ..committed(&[RowStatement::Read]) };
    let (_, line) = (transaction.run(&reports, &engine).unwrap(), line!());
    let place = format!("in the unit of work begun at tests/it/operations.rs:{line}:");
    assert!(reported.borrow().contains(&place), "{place}: {reported:?}");
}

/// Carries out operations that show no difference, then something that the model does not know. Returns what the check at
/// the end reports.
fn checked_at_the_end(engine: Engine, operations: &[Operation<i64, i64>], after: impl FnOnce(&Engine)) -> String {
    let mut engines = Engines::new(&ENTRY, engine.clone()).unwrap();
    let mut model = engines.model().unwrap();
    model.compare(&mut engines, operations).unwrap();
    after(&engine);
    engines.check(&model).map_or_else(|difference| difference.to_string(), |()| "no difference".to_owned())
}

#[test]
fn the_check_at_the_end_finds_bugs_that_no_step_shows() {
    let insert = [statement(1, RowStatement::Insert { key: 2, value: 2 })];
    let open = [Operation::Begin { client: 1, immediate: true }, insert[0].clone()];
    let commit = |engine: &Engine| drop(engine.try_transaction(|work| work.execute("UPDATE entry SET value = 9", [])));
    assert_eq!(checked_at_the_end(cold_engine(), &insert, |_| ()), "no difference");
    assert_eq!(checked_at_the_end(cold_engine(), &open, commit), "no difference", "it was refused the slot");
    let reported = checked_at_the_end(cold_engine(), &insert, commit);
    let rows = "Content { rows: {1: 0, 2: 2}, tables: {} }";
    assert_eq!(
        reported,
        format!("engine 0 at the end: expected {rows}, got {}", rows.replace("1: 0, 2: 2", "1: 9, 2: 9"))
    );
    let reported = checked_at_the_end(cold_engine(), &insert, |engine| {
        engine.reset().unwrap(); // a lost commit
    });
    assert_eq!(reported, format!("engine 0 at the end: expected {rows}, got {}", rows.replace(", 2: 2", "")));
    let reported = checked_at_the_end(cold_engine(), &[], |engine| {
        // An index that does not match its table.
        let damage = "CREATE INDEX entry_value ON entry (value); PRAGMA writable_schema = ON;
            UPDATE sqlite_schema SET sql = replace(sql, '(value)', '(value + 1)') WHERE name = 'entry_value'";
        engine.connect().unwrap().execute_batch(damage).unwrap();
    });
    assert!(
        reported.starts_with(r#"engine 0 at the end: expected "ok", got Ok("row 1 missing from index"#),
        "{reported}"
    );
}

/// One engine more or less than the model has.
#[test]
fn the_check_at_the_end_counts_engines() {
    let check = |model_forks: bool| {
        let mut engines = Engines::new(&ENTRY, cold_engine()).unwrap();
        let mut model = engines.model().unwrap();
        let fork = Operation::Fork { engine: 0 };
        if model_forks {
            drop(model.apply(&fork, false))
        } else {
            drop(engines.apply(&fork))
        }
        engines.check(&model).unwrap_err().to_string()
    };
    assert_eq!(check(true), "the number of engines at the end: expected 2, got 1");
    assert_eq!(check(false), "the number of engines at the end: expected 1, got 2");
}

/// The property finds such a bug too.
#[test]
fn a_row_that_is_lost_at_the_end_is_found() {
    let steps = shrunk(|operations| {
        let engine = cold_engine();
        let mut engines = Engines::new(&ENTRY, engine.clone()).unwrap();
        let mut model = engines.model()?;
        model.compare(&mut engines, operations)?;
        drop(engine.try_transaction(|work| work.execute("DELETE FROM entry WHERE key = 3", [])));
        engines.check(&model)
    });
    assert!(steps.len() <= 2, "{steps:#?}");
}

/// The difference has SQLite's message.
#[test]
fn a_value_that_violates_a_constraint_is_reported() {
    let engine = Engine::new();
    let table = "CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER CHECK (value < 5))";
    engine.try_transaction(|work| work.execute_batch(table)).unwrap();
    let step = Operation::Do { client: 0, statement: RowStatement::Insert { key: 1, value: 7 } };
    let reported = strategies::check(&ENTRY, engine, &[step]).unwrap_err().to_string();
    assert!(
        reported.contains("expected Effect { outcome: Done") && reported.contains("CHECK constraint failed"),
        "{reported}"
    );
}

#[test]
fn a_failure_in_a_thread_is_reported() {
    let check = |engine: Engine, lists: Vec<Vec<RowTransaction<i64, i64>>>| {
        let has_read = AtomicBool::new(false);
        let panics = ReadBy(move |connection: &Connection| {
            assert!(!has_read.swap(true, Ordering::Relaxed), "read already");
            ENTRY.read(connection)
        });
        check_on_threads(panics, &engine, lists, Hammer::new()).map_err(|difference| difference.to_string())
    };
    let lists = || vec![vec![], vec![committed(&[RowStatement::Read])]];
    let reported = check(ENTRIES.new_engine().unwrap(), lists()).unwrap_err();
    assert_eq!(reported, r#"thread 1: expected "no failure", got "panic: read already""#);
    let reported = check(Engine::new(), lists()).unwrap_err();
    assert_eq!(reported, r#"the preparation: expected "no failure", got "no such table: entry""#);
    assert_eq!(check(ENTRIES.new_engine().unwrap(), vec![]), Ok(()));
}

fn committed(statements: &[RowStatement<i64, i64>]) -> RowTransaction<i64, i64> {
    RowTransaction { immediate: false, statements: statements.to_vec(), end: End::Commit }
}

/// Runs the statements, in a transaction or without one, and another transaction that updates the row after their first
/// read.
fn interrupt(statements: &[RowStatement<i64, i64>], is_transaction: bool) -> Result<(), Difference> {
    let (engine, before) = recorded_engine();
    let other = Cell::new(Some(committed(&[RowStatement::Update { key: 1, value: 5 }])));
    let record_of_other = Cell::new(None);
    let rows_of_first = ReadBy(|connection: &Connection| {
        let seen = ENTRY.read(connection)?;
        if let Some(other) = other.take() {
            record_of_other.set(Some(other.run(&ENTRY, &engine).unwrap()));
        }
        Ok(seen)
    });
    let first = committed(statements);
    let record = if is_transaction {
        first.run(&rows_of_first, &engine).unwrap()
    } else {
        first.record(&rows_of_first, &engine.connect().unwrap()).unwrap()
    };
    check_serial(&before, &[vec![record], vec![record_of_other.take().unwrap()]], &rows(&engine))
}

/// The counterpart: without a transaction, the same statements are not serializable.
#[test]
fn histories_that_are_not_serializable_are_found() {
    let update = [RowStatement::Read, RowStatement::Update { key: 1, value: 7 }];
    let look_twice = [RowStatement::Read, RowStatement::Read];
    for statements in [update, look_twice] {
        interrupt(&statements, true).unwrap();
        let error = interrupt(&statements, false).unwrap_err().to_string();
        assert!(error.contains("Read: expected Read(Content { rows: {1: 5}"), "{error}");
    }
}

fn record(
    committed: bool,
    position: usize,
    statement: RowStatement<i64, i64>,
    outcome: Outcome<i64, i64>,
) -> Record<i64, i64> {
    Record { committed, position, seen: vec![(statement, outcome)] }
}

fn insert(position: usize, key: i64) -> Record<i64, i64> {
    record(true, position, RowStatement::Insert { key, value: 0 }, Outcome::Done)
}

fn read(position: usize, keys: &[i64]) -> Record<i64, i64> {
    let content = Content { rows: with_keys(keys), tables: BTreeMap::new() };
    record(false, position, RowStatement::Read, Outcome::Read(content))
}

fn with_keys(keys: &[i64]) -> BTreeMap<i64, i64> {
    keys.iter().map(|key| (*key, 0)).collect()
}

#[test]
fn each_violation_of_serializability_is_found() {
    let both = {
        let mut both = insert(1, 1);
        both.seen.extend(insert(1, 2).seen);
        both
    };
    let check = |records: &[Vec<Record<i64, i64>>], after: &[i64]| {
        check_serial(&BTreeMap::new(), records, &with_keys(after)).map_err(|difference| difference.to_string())
    };
    assert_eq!(check(&[vec![both.clone(), read(1, &[1, 2])], vec![read(0, &[]), insert(2, 3)]], &[1, 2, 3]), Ok(()));
    for (records, after, words) in [
        (vec![vec![both.clone()], vec![read(1, &[1])]], &[1, 2][..], "after commit 1, Read: expected"),
        (vec![vec![both.clone()]], &[1], "the rows at the end: expected {1: 0, 2: 0}, got {1: 0}"),
        (vec![vec![insert(1, 1)], vec![insert(1, 2)]], &[1, 2], "the order of commits: expected 2, got 1"),
        (
            vec![vec![insert(1, 1)], vec![insert(2, 1)]],
            &[1],
            "of commit 2, Insert { key: 1, value: 0 }: expected Exists",
        ),
        (
            vec![vec![insert(1, 1), read(0, &[])]],
            &[1],
            "the order of thread 0, the earliest position: expected 1, got 0",
        ),
        (
            vec![vec![read(1, &[1]), insert(1, 1)]],
            &[1],
            "the order of thread 0, the earliest position: expected 2, got 1",
        ),
        (vec![vec![read(1, &[])]], &[], "the commit that a transaction comes after: expected 0, got 1"),
    ] {
        let error = check(&records, after).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn names_of_tables_and_columns_may_be_keywords() {
    const GROUP: Table = Table::new("group", "from", "to");
    let engine = Engine::new();
    engine.connect().unwrap().execute_batch(r#"CREATE TABLE "group" ("from" INTEGER PRIMARY KEY, "to" INT)"#).unwrap();
    let steps = [
        statement(0, RowStatement::Insert { key: 1, value: 1 }),
        statement(0, RowStatement::Update { key: 1, value: 2 }),
        statement(0, RowStatement::Read),
        statement(0, RowStatement::Delete { key: 1 }),
    ];
    strategies::check(&GROUP, engine, &steps).unwrap();
}
