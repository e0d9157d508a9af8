//! Any sequence of operations on engines does what a plain map with a stack says.

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
    self, Content, Difference, Effect, End, Engines, Kind, Operation, Outcome, Record, Rows, Statement, Subject, Table,
    Transaction, check_on_threads, check_serial, hammers, operations, prepare, transactions,
};
use rusqlite_fixtures::{Engine, PooledConnection, Template};

use crate::support::number;

static ENTRIES: Template = Template::sql("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER NOT NULL)")
    .seed("INSERT INTO entry VALUES (1, 0)");

const ENTRY: Table = Table::new("entry", "key", "value");

type Sequence = Vec<Operation<i64, i64>>;

fn sequences() -> impl Strategy<Value = Sequence> {
    operations(0..4i64, 0..3i64, 1..50)
}

/// An engine that nobody has had.
fn cold_engine() -> Engine {
    ENTRIES.snapshot().unwrap().new_engine()
}

const CASES: u32 = 256;

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    /// Cold ones, of which each has its first connections.
    #[test]
    fn an_engine_does_what_the_model_says(operations in sequences()) {
        strategies::check(&ENTRY, cold_engine(), &operations)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES / 2, ..ProptestConfig::default() })]

    /// None of them notices the one before.
    #[test]
    fn so_does_an_engine_that_is_used_again(all in prop::collection::vec(sequences(), 2)) {
        for operations in &all {
            strategies::check(&ENTRY, ENTRIES.new_engine().unwrap(), operations)?;
        }
    }
}

fn deterministic(cases: u32) -> TestRunner {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// The property above would say nothing if each engine were a new one. SQLite's count of all changes is what a connection
/// can't be made to forget.
#[test]
fn the_engines_are_used_again() {
    static TEMPLATE: Template = Template::sql("CREATE TABLE entry (key INTEGER PRIMARY KEY, value)").key("operations");
    let used_again = Cell::new(0);
    let run = deterministic(50).run(&sequences(), |operations| {
        let engine = TEMPLATE.new_engine().unwrap();
        let connections: Vec<_> = (0..3).map(|_| engine.pooled_connection().unwrap()).collect();
        let was_used = |connection: &PooledConnection| number(connection, "SELECT total_changes()") > 0;
        used_again.set(used_again.get() + i32::from(connections.iter().any(was_used)));
        connections.iter().for_each(|connection| drop(connection.execute("INSERT INTO entry VALUES (9, 9)", [])));
        drop(connections);
        engine.reset().unwrap();
        Ok(strategies::check(&ENTRY, engine, &operations)?)
    });
    run.unwrap();
    assert!(used_again.get() > 25, "{} of 50", used_again.get());
}

/// Or the properties would not say much.
#[test]
fn sequences_come_to_all_sorts_of_outcomes() {
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

/// What the harness steers clear of, which the properties have found: SQLite's BEGIN IMMEDIATE in a savepoint takes the slot
/// and fails, and after ROLLBACK TO no table is there, if the schema had not been read before.
#[test]
fn a_savepoint_that_is_older_than_the_schema_is_as_in_a_file() {
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

/// Engines on which something is done as it should not be.
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

/// The steps to which a failure shrinks.
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
    let Operation::Do { hand, statement: Statement::RollbackTo { savepoint } } = *operation else {
        return engines.apply(operation);
    };
    let released = engines.apply(&Operation::Do { hand, statement: Statement::Release { savepoint } });
    if released.outcome == Outcome::Done {
        engines.apply(&Operation::Do { hand, statement: Statement::Savepoint });
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
    if let Operation::Panic { hand } = *operation {
        let committed = engines.apply(&Operation::Commit { hand });
        let dropped = engines.apply(&Operation::Drop { hand });
        return if committed.outcome == Outcome::Done { committed } else { dropped };
    }
    engines.apply(operation)
}

/// The twins of the properties.
#[test]
fn engines_that_do_something_else_are_found() {
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

/// Entries that are read otherwise.
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

/// The twin that reads what is committed now, whatever its transaction has read before, unless somebody is writing.
#[test]
fn a_reader_that_sees_the_newest_commit_is_found() {
    let steps = shrunk(|operations| {
        let engine = cold_engine();
        let newest = ReadBy(|connection: &Connection| {
            let seen = ENTRY.read(connection)?;
            let is_here = connection.path().is_some_and(|path| engine.uri().contains(path));
            match engine.begin(Immediate) {
                Ok(newest) if is_here => ENTRY.read(&newest),
                _ => Ok(seen),
            }
        });
        strategies::check(&newest, engine.clone(), operations)
    });
    assert!(steps.len() <= 8, "{steps:#?}");
}

/// As users have it: keys and values of their own, a function of each connection's, an index, another table that is written
/// too, and a look before an update.
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

/// Some of several pages.
fn cities() -> impl Strategy<Value = String> {
    ("[xyz]", prop_oneof![Just(1), 1000..9000usize]).prop_map(|(name, times)| name.repeat(times))
}

fn rows(engine: &Engine) -> BTreeMap<i64, i64> {
    ENTRY.read(&engine.unit_of_work().unwrap()).unwrap()
}

/// An engine that is ready for transactions that are recorded, and its rows.
fn recorded_engine() -> (Engine, BTreeMap<i64, i64>) {
    let engine = ENTRIES.new_engine().unwrap();
    prepare(&engine).unwrap();
    let before = rows(&engine);
    (engine, before)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn so_do_tables_of_ones_own(operations in operations("[A-D]", cities(), 1..50)) {
        strategies::check(&Accounts, ACCOUNTS.new_engine().unwrap(), &operations)?;
    }

    #[test]
    fn so_do_tables_of_ones_own_on_threads(
        threads in transactions("[A-D]", "[xyz]", 3, 1..8),
        hammer in hammers(Hammer::new(), 3, &[SLOT_ASKED, SLOT_GIVEN_BACK]),
    ) {
        check_on_threads(Accounts, &ACCOUNTS.new_engine().unwrap(), threads, hammer)?;
    }

    /// Whatever threads do: it is as if their transactions had been carried out one after another.
    #[test]
    fn transactions_on_threads_are_serializable(
        threads in transactions(0..4i64, 0..9i64, 3, 1..8),
        hammer in hammers(Hammer::new(), 3, &[SLOT_ASKED, SLOT_TAKEN, SLOT_GIVEN_BACK]),
    ) {
        let yields = ReadBy(|connection: &Connection| {
            thread::yield_now(); // so that others come in between
            ENTRY.read(connection)
        });
        check_on_threads(yields, &ENTRIES.new_engine().unwrap(), threads, hammer)?;
    }
}

fn statement(hand: usize, statement: Statement<i64, i64>) -> Operation<i64, i64> {
    Operation::Do { hand, statement }
}

/// Some in each of which a hand finds the slot taken, by each kind of connection.
fn refused_steps() -> Sequence {
    let update = |hand| statement(hand, Statement::Update { key: 1, value: 5 });
    let mut steps = vec![Operation::Open { hand: 0, engine: 0, kind: Kind::Immediate }, update(0)];
    for kind in [Kind::UnitOfWork, Kind::Immediate, Kind::Pooled, Kind::Connection, Kind::Uri] {
        steps.push(Operation::Open { hand: 1, engine: 0, kind });
        let begin = |immediate| Operation::Begin { hand: 1, immediate };
        let after_reading = [begin(false), statement(1, Statement::Read), update(1), Operation::Rollback { hand: 1 }];
        steps.extend([update(1), begin(true), Operation::Vacuum { hand: 1 }]);
        steps.extend(after_reading);
    }
    steps
}

/// What `on_connect` sets does not make a hand wait that is to be refused at once.
#[test]
fn nothing_waits_whatever_on_connect_sets() {
    const WAIT: Duration = Duration::from_secs(15);
    static PATIENT: Template = Template::sql("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER NOT NULL)")
        .seed("INSERT INTO entry VALUES (1, 0)")
        .on_connect(|connection| Ok(connection.busy_timeout(WAIT)?))
        .key("operations-patient");
    for _ in 0..2 {
        let mut engines = Engines::new(&ENTRY, PATIENT.new_engine().unwrap()).unwrap(); // the second time a used one
        let mut model = engines.model().unwrap();
        for step in refused_steps() {
            let start = Instant::now();
            model.compare(&mut engines, std::slice::from_ref(&step)).unwrap();
            assert!(start.elapsed() < WAIT, "{step:?} took {:?}", start.elapsed());
        }
        engines.check(&model).unwrap();
    }
}

/// Nor does it keep threads from waiting for their turn.
#[test]
fn threads_take_turns_whatever_on_connect_sets() {
    static IMPATIENT: Template = Template::sql("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER NOT NULL)")
        .seed("INSERT INTO entry VALUES (1, 0)")
        .on_connect(|connection| Ok(connection.busy_timeout(Duration::ZERO)?))
        .key("operations-impatient");
    let update =
        Transaction { immediate: true, ..committed(&[Statement::Read, Statement::Update { key: 1, value: 5 }]) };
    let hammer = Hammer::new().pause_at(SLOT_TAKEN, Pause::time(Duration::from_millis(5)));
    check_on_threads(ENTRY, &IMPATIENT.new_engine().unwrap(), vec![vec![update; 3]; 4], hammer).unwrap();
}

/// Code that fails after it has changed something is undone by the harness, as it would be by an application.
#[test]
fn what_failed_is_not_committed() {
    /// Changes the row that is in its way before it is refused.
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
    let insert = statement(0, Statement::Insert { key: 1, value: 3 });
    strategies::check(&Careless, cold_engine(), &[insert.clone(), statement(1, Statement::Read)]).unwrap();
    let mut engines = Engines::new(&Careless, cold_engine()).unwrap();
    assert_eq!(engines.apply(&insert), Effect { outcome: Outcome::Exists, replaced: false });
}

/// One whose statement was refused is rolled back, though it was to be committed.
#[test]
fn a_transaction_that_was_refused_is_rolled_back() {
    let (engine, before) = recorded_engine();
    let refused = ReadBy(|connection: &Connection| {
        ENTRY.update(connection, &1, &77)?;
        let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY); // as of another database, which is attached
        Err(rusqlite::Error::SqliteFailure(busy, None))
    });
    let record = committed(&[Statement::Read]).carry_out(&refused, &engine).unwrap();
    assert_eq!(record, Record { committed: false, position: 0, seen: vec![] });
    assert_eq!(rows(&engine), before);
}

/// Who has the writer slot is told by the line that has carried it out.
#[test]
fn a_transaction_that_has_the_slot_is_named_by_its_line() {
    let (engine, _) = recorded_engine();
    let told = RefCell::new(String::new());
    let tells = ReadBy(|connection: &Connection| {
        engine.set_lock_timeout(Duration::ZERO);
        *told.borrow_mut() = engine.begin(Immediate).unwrap_err().to_string();
        ENTRY.read(connection)
    });
    let transaction = Transaction { immediate: true, ..committed(&[Statement::Read]) };
    let (_, line) = (transaction.carry_out(&tells, &engine).unwrap(), line!());
    let place = format!("in the unit of work begun at tests/it/operations.rs:{line}:");
    assert!(told.borrow().contains(&place), "{place}: {told:?}");
}

/// What comes of the operations by steps, of which none may show a difference, and what the check in the end says. After the
/// last step something is done behind the model's back.
fn checked_in_the_end(engine: Engine, operations: &[Operation<i64, i64>], after: impl FnOnce(&Engine)) -> String {
    let mut engines = Engines::new(&ENTRY, engine.clone()).unwrap();
    let mut model = engines.model().unwrap();
    model.compare(&mut engines, operations).unwrap();
    after(&engine);
    engines.check(&model).map_or_else(|difference| difference.to_string(), |()| "no difference".to_owned())
}

/// Bugs that no step shows.
#[test]
fn the_check_in_the_end_finds_what_no_step_shows() {
    let insert = [statement(1, Statement::Insert { key: 2, value: 2 })];
    let open = [Operation::Begin { hand: 1, immediate: true }, insert[0].clone()];
    let commit = |engine: &Engine| drop(engine.try_transaction(|work| work.execute("UPDATE entry SET value = 9", [])));
    assert_eq!(checked_in_the_end(cold_engine(), &insert, |_| ()), "no difference");
    assert_eq!(checked_in_the_end(cold_engine(), &open, commit), "no difference", "it was refused the slot");
    let told = checked_in_the_end(cold_engine(), &insert, commit);
    let rows = "Content { rows: {1: 0, 2: 2}, tables: {} }";
    assert_eq!(told, format!("engine 0 in the end: expected {rows}, got {}", rows.replace("1: 0, 2: 2", "1: 9, 2: 9")));
    let told = checked_in_the_end(cold_engine(), &insert, |engine| {
        engine.reset().unwrap(); // a commit that is lost
    });
    assert_eq!(told, format!("engine 0 in the end: expected {rows}, got {}", rows.replace(", 2: 2", "")));
    let told = checked_in_the_end(cold_engine(), &[], |engine| {
        // An index that does not have what its table does.
        let damage = "CREATE INDEX entry_value ON entry (value); PRAGMA writable_schema = ON;
            UPDATE sqlite_schema SET sql = replace(sql, '(value)', '(value + 1)') WHERE name = 'entry_value'";
        engine.connect().unwrap().execute_batch(damage).unwrap();
    });
    assert!(told.starts_with(r#"engine 0 in the end: expected "ok", got Ok("row 1 missing from index"#), "{told}");
}

/// One more than the model has, or one fewer.
#[test]
fn the_check_in_the_end_counts_engines() {
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
    assert_eq!(check(true), "the engines in the end: expected 2, got 1");
    assert_eq!(check(false), "the engines in the end: expected 1, got 2");
}

/// The property finds such a bug too: a row is lost with the last connection.
#[test]
fn what_is_lost_in_the_end_is_found() {
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

/// A constraint that is not the key's is told in SQLite's words.
#[test]
fn a_value_that_violates_a_constraint_is_told() {
    let engine = Engine::new();
    let table = "CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER CHECK (value < 5))";
    engine.try_transaction(|work| work.execute_batch(table)).unwrap();
    let step = Operation::Do { hand: 0, statement: Statement::Insert { key: 1, value: 7 } };
    let told = strategies::check(&ENTRY, engine, &[step]).unwrap_err().to_string();
    assert!(told.contains("expected Effect { outcome: Done") && told.contains("CHECK constraint failed"), "{told}");
}

#[test]
fn what_fails_in_a_thread_is_told() {
    let check = |engine: Engine, lists: Vec<Vec<Transaction<i64, i64>>>| {
        let has_read = AtomicBool::new(false);
        let panics = ReadBy(move |connection: &Connection| {
            assert!(!has_read.swap(true, Ordering::Relaxed), "read already");
            ENTRY.read(connection)
        });
        check_on_threads(panics, &engine, lists, Hammer::new()).map_err(|difference| difference.to_string())
    };
    let lists = || vec![vec![], vec![committed(&[Statement::Read])]];
    let told = check(ENTRIES.new_engine().unwrap(), lists()).unwrap_err();
    assert_eq!(told, r#"thread 1: expected "no failure", got "panic: read already""#);
    let told = check(Engine::new(), lists()).unwrap_err();
    assert_eq!(told, r#"the preparation: expected "no failure", got "no such table: entry""#);
    assert_eq!(check(ENTRIES.new_engine().unwrap(), vec![]), Ok(()));
}

fn committed(statements: &[Statement<i64, i64>]) -> Transaction<i64, i64> {
    Transaction { immediate: false, statements: statements.to_vec(), end: End::Commit }
}

/// Carries out a transaction, or the same without one, and another that updates the row when it has read for the first time.
fn interrupt(statements: &[Statement<i64, i64>], is_transaction: bool) -> Result<(), Difference> {
    let (engine, before) = recorded_engine();
    let other = Cell::new(Some(committed(&[Statement::Update { key: 1, value: 5 }])));
    let record_of_other = Cell::new(None);
    let rows_of_first = ReadBy(|connection: &Connection| {
        let seen = ENTRY.read(connection)?;
        if let Some(other) = other.take() {
            record_of_other.set(Some(other.carry_out(&ENTRY, &engine).unwrap()));
        }
        Ok(seen)
    });
    let first = committed(statements);
    let record = if is_transaction {
        first.carry_out(&rows_of_first, &engine).unwrap()
    } else {
        first.record(&rows_of_first, &engine.connect().unwrap()).unwrap()
    };
    check_serial(&before, &[vec![record], vec![record_of_other.take().unwrap()]], &rows(&engine))
}

/// The twin: outside of a transaction the same is found not to be serializable.
#[test]
fn histories_that_are_not_serializable_are_found() {
    let update = [Statement::Read, Statement::Update { key: 1, value: 7 }];
    let look_twice = [Statement::Read, Statement::Read];
    for statements in [update, look_twice] {
        interrupt(&statements, true).unwrap();
        let error = interrupt(&statements, false).unwrap_err().to_string();
        assert!(error.contains("Read: expected Read(Content { rows: {1: 5}"), "{error}");
    }
}

fn record(
    committed: bool,
    position: usize,
    statement: Statement<i64, i64>,
    outcome: Outcome<i64, i64>,
) -> Record<i64, i64> {
    Record { committed, position, seen: vec![(statement, outcome)] }
}

fn insert(position: usize, key: i64) -> Record<i64, i64> {
    record(true, position, Statement::Insert { key, value: 0 }, Outcome::Done)
}

fn read(position: usize, keys: &[i64]) -> Record<i64, i64> {
    let content = Content { rows: with_keys(keys), tables: BTreeMap::new() };
    record(false, position, Statement::Read, Outcome::Read(content))
}

fn with_keys(keys: &[i64]) -> BTreeMap<i64, i64> {
    keys.iter().map(|key| (*key, 0)).collect()
}

#[test]
fn each_way_not_to_be_serializable_is_found() {
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
        (vec![vec![both.clone()]], &[1], "in the end: expected {1: 0, 2: 0}, got {1: 0}"),
        (vec![vec![insert(1, 1)], vec![insert(1, 2)]], &[1, 2], "the order of commits: expected 2, got 1"),
        (
            vec![vec![insert(1, 1)], vec![insert(2, 1)]],
            &[1],
            "that is commit 2, Insert { key: 1, value: 0 }: expected Exists",
        ),
        (vec![vec![insert(1, 1), read(0, &[])]], &[1], "the order of thread 0, at the earliest: expected 1, got 0"),
        (vec![vec![read(1, &[1]), insert(1, 1)]], &[1], "the order of thread 0, at the earliest: expected 2, got 1"),
        (vec![vec![read(1, &[])]], &[], "what a transaction stands after: expected 0, got 1"),
    ] {
        let error = check(&records, after).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}
