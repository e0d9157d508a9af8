//! Strict mode: what a test leaves open or undecided.
#![allow(unsafe_code, reason = "prepares a statement that rusqlite does not know")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Duration;
use std::{env, thread};

use rusqlite_fixtures::rusqlite::TransactionBehavior::Immediate;
use rusqlite_fixtures::rusqlite::functions::FunctionFlags;
use rusqlite_fixtures::rusqlite::{self, Connection, ffi};
use rusqlite_fixtures::{BoxError, Engine, KeptValues, MEMORY_ENGINES, Template};

use crate::recording::run_within_a_statement;
use crate::support::trace;

const SCHEMA: &str = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE other (a)";

static SHOP: Template = Template::sql(SCHEMA).strict();
static LENIENT: Template = Template::sql(SCHEMA);

fn insert(connection: &Connection, name: &str) {
    connection.execute("INSERT INTO item (name) VALUES (?1)", [name]).unwrap();
}

/// Returns what strict mode finds when the last handle is dropped.
fn found(engine: Engine) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| drop(engine)));
    panic.err().map_or(String::new(), |panic| {
        let message = panic.downcast::<String>().unwrap();
        let end =
            "\n(If the test returns an error, this panic replaces it. RUSQLITE_FIXTURES_STRICT=off shows the error.)";
        message.strip_suffix(end).unwrap().to_owned()
    })
}

fn strict() -> Engine {
    SHOP.new_engine().unwrap()
}

#[test]
fn a_dropped_unit_of_work_that_has_written_is_found() {
    let shop = strict();
    let work = shop.unit_of_work().unwrap();
    ["tea", "milk"].iter().for_each(|name| insert(&work, name));
    work.execute("UPDATE item SET name = 'coffee' WHERE id = 1", []).unwrap();
    work.execute("DELETE FROM item WHERE id = 2", []).unwrap();
    drop(work);
    let found = found(shop);
    let (start, rest) = found.split_once(":\n  the unit of work begun at tests/it/strict.rs:").unwrap();
    assert!(start.starts_with("strict mode, engine "), "{found}");
    let expected = "was dropped without a commit or rollback, which rolled back 2 inserted rows, 1 updated row, 1 deleted row: call commit or rollback";
    assert!(rest.ends_with(expected), "{found}");
}

#[test]
fn transactions_that_end_are_not_found() {
    let shop = strict();
    let work = shop.unit_of_work().unwrap();
    insert(&work, "tea");
    work.commit().unwrap();
    let work = shop.begin(Immediate).unwrap();
    insert(&work, "milk");
    work.rollback().unwrap();
    drop(shop.begin(Immediate).unwrap()); // has written nothing
    let failed: rusqlite::Result<()> = shop.try_transaction(|work| {
        insert(work, "coffee");
        Err(rusqlite::Error::InvalidQuery)
    });
    failed.unwrap_err();
    let mut connection = shop.connect().unwrap();
    let transaction = connection.transaction().unwrap();
    insert(&transaction, "milk");
    drop(transaction);
    drop(connection);
    assert_eq!(found(shop), "");
}

#[test]
fn connections_dropped_in_a_transaction_are_found() {
    let shop = strict();
    let pooled = shop.pooled_connection().unwrap();
    pooled.execute_batch("BEGIN").unwrap();
    insert(&pooled, "tea");
    drop(pooled);
    let other = Connection::open(shop.uri()).unwrap();
    other.execute_batch("BEGIN; CREATE TABLE new (a)").unwrap();
    drop(other);
    let found = found(shop);
    let lines: Vec<&str> = found.lines().skip(1).collect();
    assert_eq!(lines.len(), 2, "{found}");
    assert!(lines[0].starts_with("  the connection opened at tests/it/strict.rs:"), "{found}");
    assert!(lines[0].ends_with("rolled back 1 inserted row: call commit or rollback"), "{found}");
    assert!(
        lines[1].starts_with("  a connection that was opened by the engine's URI at tests/it/strict.rs:"),
        "{found}"
    );
    assert!(
        lines[1].ends_with(
            " was dropped without a commit or rollback, which rolled back what it had written: call commit or rollback"
        ),
        "{found}"
    );
}

#[test]
fn open_connections_are_found() {
    let shop = strict();
    let _one = shop.connect().unwrap();
    let _other = Connection::open(shop.uri()).unwrap(); // printed only
    drop(shop.pooled_connection().unwrap()); // waits in the engine
    let found = found(shop);
    let lines: Vec<&str> = found.lines().skip(1).collect();
    assert_eq!(lines.len(), 1, "{found}");
    assert!(lines[0].starts_with("  the connection opened at tests/it/strict.rs:"), "{found}");
    assert!(
        lines[0].ends_with(" is still open after the last handle to the engine was dropped: drop it first"),
        "{found}"
    );
}

#[test]
fn a_transaction_that_holds_the_slot_for_long_is_found() {
    let shop = strict();
    let work = shop.begin(Immediate).unwrap();
    thread::sleep(Duration::from_millis(1050));
    work.commit().unwrap();
    let reader = shop.unit_of_work().unwrap();
    reader.query_row("SELECT count(*) FROM item", [], |row| row.get::<_, i64>(0)).unwrap();
    reader.rollback().unwrap();
    let found = found(shop);
    assert!(
        found.contains("\n  the unit of work begun at tests/it/strict.rs:") && found.lines().count() == 2,
        "{found}"
    );
    assert!(found.contains(" held the writer slot for 1.") && found.ends_with("s; the limit is 1s"), "{found}");
}

#[test]
fn the_time_for_which_the_slot_may_be_held_can_be_set() {
    const LIMIT: Duration = Duration::from_millis(50);
    static PATIENT: Template =
        Template::sql("CREATE TABLE item (id INTEGER PRIMARY KEY)").strict().strict_slot_limit(Duration::from_secs(60));
    let hold = |shop: Engine, time: Duration| {
        let work = shop.begin(Immediate).unwrap();
        thread::sleep(time);
        work.commit().unwrap();
        found(shop)
    };
    let engine = Engine::new();
    engine.strict_slot_limit(Duration::from_secs(60));
    engine.strict_slot_limit(LIMIT); // the later one applies
    let found = hold(engine, LIMIT * 2);
    assert!(found.contains(" held the writer slot for ") && found.ends_with("s; the limit is 50ms"), "{found}");
    assert_eq!(hold(PATIENT.new_engine().unwrap(), Duration::from_millis(1050)), "");
    let impatient = PATIENT.new_engine().unwrap();
    impatient.strict_slot_limit(LIMIT);
    assert!(hold(impatient, LIMIT * 2).ends_with("the limit is 50ms"));
    let strict = PATIENT.clone().strict_slot_limit(LIMIT).new_engine().unwrap();
    assert!(hold(strict, LIMIT * 2).ends_with("the limit is 50ms"));
}

/// Rows that are read on after the COMMIT don't hold it.
#[test]
fn the_slot_is_held_until_the_commit() {
    let engine = Engine::new();
    engine.strict_slot_limit(Duration::from_millis(500));
    let connection = engine.connect().unwrap();
    connection.execute_batch("CREATE TABLE t (a); BEGIN IMMEDIATE; INSERT INTO t VALUES (1), (2)").unwrap();
    let mut select = connection.prepare("SELECT a FROM t").unwrap();
    let mut rows = select.query([]).unwrap();
    assert!(rows.next().unwrap().is_some());
    connection.execute_batch("COMMIT").unwrap();
    thread::sleep(Duration::from_millis(600));
    drop(rows);
    drop(select);
    drop(connection);
    assert_eq!(found(engine), "");
}

/// The waiter has to wait for more than a second.
#[test]
fn a_wait_for_the_slot_does_not_count() {
    let shop = strict();
    let recording = shop.record();
    let held = shop.begin(Immediate).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| shop.begin(Immediate).unwrap().rollback());
        thread::sleep(Duration::from_millis(1500));
        held.rollback().unwrap();
        waiter.join().unwrap().unwrap();
    });
    let waits: Vec<Duration> = recording.stop().iter().map(|statement| statement.waited()).collect();
    assert!(waits.iter().any(|wait| *wait > Duration::from_secs(1)), "{waits:?}");
    assert_eq!(found(shop).lines().count(), 2, "the first one held it");
}

const PARENT_AND_CHILD: &str = "CREATE TABLE parent (id INTEGER PRIMARY KEY);
    CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED)";

/// How long a busy handler that code has set has waited is not known.
#[test]
fn a_wait_in_a_busy_handler_of_the_code_is_not_taken_for_holding_the_slot() {
    const LIMIT: Duration = Duration::from_millis(300);
    let shop = LENIENT.new_engine().unwrap();
    shop.strict_slot_limit(LIMIT);
    let recording = shop.record();
    let waits = |begin: &str| {
        let holder = shop.connect().unwrap();
        holder.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut connection = shop.connect().unwrap();
        let wait = |_| {
            thread::sleep(LIMIT * 2);
            true
        };
        connection.busy_handler(Some(wait)).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(LIMIT + Duration::from_millis(100));
                holder.execute_batch("ROLLBACK").unwrap();
            });
            connection.execute_batch(begin).unwrap();
            insert(&connection, "tea");
        });
        connection.execute_batch("ROLLBACK").unwrap();
    };
    waits("BEGIN");
    waits("BEGIN IMMEDIATE");
    let statements = recording.stop();
    let insert = statements.writes().iter().next().cloned().unwrap();
    assert!(insert.duration().unwrap() > LIMIT && insert.waited() < LIMIT, "{insert}");
    let found = found(shop);
    assert!(found.lines().count() == 3 && found.contains("held the writer slot for "), "only the holders: {found}");
}

/// A statement whose rows are read meanwhile has begun before the transaction got the slot.
#[test]
fn the_slot_is_held_from_the_first_write_on() {
    const LIMIT: Duration = Duration::from_millis(200);
    let shop = LENIENT.new_engine().unwrap();
    insert(&shop.connect().unwrap(), "tea");
    shop.strict_slot_limit(LIMIT);
    let holds = |reads: Duration, writes: Duration| {
        let connection = shop.connect().unwrap();
        connection.execute_batch("BEGIN").unwrap();
        let mut items = connection.prepare("SELECT id FROM item").unwrap();
        let mut rows = items.query([]).unwrap();
        rows.next().unwrap();
        thread::sleep(reads);
        connection.execute("UPDATE item SET name = 'milk'", []).unwrap();
        thread::sleep(writes);
        drop(rows);
        connection.execute_batch("COMMIT").unwrap();
    };
    holds(LIMIT * 2, Duration::ZERO);
    holds(Duration::ZERO, LIMIT * 2);
    let found = found(shop);
    assert!(found.lines().count() == 2 && found.contains(" held the writer slot for "), "only the second one: {found}");
}

/// In memory, how long the statement waited before is known.
#[test]
fn a_slow_write_holds_the_slot() {
    const LIMIT: Duration = Duration::from_millis(200);
    let shop = LENIENT.new_engine().unwrap();
    shop.strict_slot_limit(LIMIT);
    let writes_slowly = || {
        let work = shop.unit_of_work().unwrap();
        let pause = work.create_scalar_function("pause", 0, FunctionFlags::SQLITE_UTF8, |_| {
            thread::sleep(LIMIT * 2);
            Ok(1)
        });
        pause.unwrap();
        work.execute("INSERT INTO item (id) VALUES (pause())", []).unwrap();
        work.rollback().unwrap();
    };
    writes_slowly();
    let holder = shop.begin(Immediate).unwrap();
    thread::scope(|scope| {
        scope.spawn(writes_slowly); // after a wait
        thread::sleep(LIMIT / 4);
        holder.rollback().unwrap();
    });
    let found = found(shop);
    assert_eq!(found.matches(" held the writer slot for ").count(), 2, "{found}");
}

/// No commit would be seen, but a transaction that is left open on a connection may be the code's mistake.
#[test]
fn a_unit_of_work_that_ends_with_its_engine_is_in_order() {
    let work = SHOP.unit_of_work().unwrap();
    insert(&work, "tea");
    drop(work); // would panic
    let connection = strict().pooled_connection().unwrap();
    connection.execute_batch("BEGIN").unwrap();
    insert(&connection, "tea");
    let panic = catch_unwind(AssertUnwindSafe(|| drop(connection))).unwrap_err();
    assert!(panic.downcast::<String>().unwrap().contains("1 inserted row: call commit or rollback"));
    let shop = strict();
    let work = shop.unit_of_work().unwrap();
    insert(&work, "tea");
    drop(work);
    assert!(found(shop).contains("1 inserted row"), "the next one is noted");
    let folder = tempfile::tempdir().unwrap();
    let file = Engine::file(folder.path().join("shop.db")).unwrap();
    file.try_transaction(|work| work.execute_batch(SCHEMA)).unwrap();
    file.strict();
    let work = file.unit_of_work().unwrap();
    drop(file);
    insert(&work, "tea");
    let panic = catch_unwind(AssertUnwindSafe(|| drop(work))).unwrap_err();
    assert!(panic.downcast::<String>().unwrap().contains("1 inserted row"), "the file stays");
}

/// SQLite says that such a statement writes.
#[test]
fn a_transaction_without_a_change_is_not_found() {
    let shop = strict();
    let work = shop.begin(Immediate).unwrap();
    work.execute_batch("CREATE TABLE IF NOT EXISTS item (a); DROP TABLE IF EXISTS missing").unwrap();
    drop(work);
    assert_eq!(found(shop), "");
}

/// Of an engine in a file, only a recording shows that.
#[test]
fn a_dropped_transaction_whose_last_statement_changed_nothing_is_found() {
    let shop = strict();
    let work = shop.unit_of_work().unwrap();
    insert(&work, "tea");
    assert_eq!(work.execute("DELETE FROM item WHERE name = 'milk'", []), Ok(0));
    drop(work);
    let found = found(shop);
    assert!(found.ends_with("which rolled back 1 inserted row: call commit or rollback"), "{found}");
}

#[test]
fn a_commit_that_fails_is_not_forgotten() {
    let engine = Engine::new();
    engine.strict();
    engine.try_transaction(|work| work.execute_batch(PARENT_AND_CHILD)).unwrap();
    let work = engine.unit_of_work().unwrap();
    work.execute("INSERT INTO child VALUES (99)", []).unwrap();
    work.commit().unwrap_err();
    let failed = engine.try_transaction(|work| work.execute("INSERT INTO child VALUES (99)", []));
    failed.unwrap_err();
    let count = engine.pooled_connection().unwrap().query_row("SELECT count(*) FROM child", [], |row| row.get(0));
    assert_eq!(count, Ok(0));
    let connection = engine.connect().unwrap();
    connection.execute_batch("BEGIN; INSERT INTO child VALUES (99)").unwrap();
    connection.execute_batch("COMMIT").unwrap_err();
    drop(connection);
    assert_eq!(found(engine), "");
}

#[test]
fn writes_that_fail_or_change_nothing_are_not_found() {
    let shop = strict();
    insert(&shop.connect().unwrap(), "tea");
    let work = shop.begin(Immediate).unwrap();
    work.execute("INSERT INTO item VALUES (1, 'milk')", []).unwrap_err();
    assert_eq!(work.execute("DELETE FROM item WHERE id = 7", []).unwrap(), 0);
    drop(work);
    // A transaction that has asked for the slot in vain, and goes on for long, has not held it.
    shop.set_lock_timeout(Duration::ZERO);
    let reader = shop.unit_of_work().unwrap();
    let writer = shop.begin(Immediate).unwrap();
    reader.execute("DELETE FROM item", []).unwrap_err();
    writer.rollback().unwrap();
    thread::sleep(Duration::from_millis(1050));
    reader.query_row("SELECT count(*) FROM item", [], |row| row.get::<_, i64>(0)).unwrap();
    drop(reader);
    assert_eq!(found(shop), "");
}

/// Each of these is rolled back, or has nothing to do with the writer slot.
#[test]
fn savepoints_other_databases_and_a_close_that_fails_are_not_found() {
    let shop = strict();
    let mut work = shop.unit_of_work().unwrap();
    let savepoint = work.savepoint().unwrap();
    insert(&savepoint, "tea");
    drop(savepoint);
    drop(work);
    let work = shop.unit_of_work().unwrap();
    work.execute_batch("CREATE TEMP TABLE t (a); INSERT INTO t VALUES (1)").unwrap();
    thread::sleep(Duration::from_millis(1050));
    work.query_row("SELECT count(*) FROM item", [], |row| row.get::<_, i64>(0)).unwrap();
    drop(work);
    drop(commit_after_a_close_that_fails(&shop));
    assert_eq!(found(shop), "");
}

#[test]
fn a_rollback_to_a_savepoint_does_not_hide_other_writes() {
    let shop = strict();
    let mut work = shop.unit_of_work().unwrap();
    insert(&work, "tea");
    let savepoint = work.savepoint().unwrap();
    (0..5).for_each(|_| insert(&savepoint, "coffee"));
    drop(savepoint);
    insert(&work, "milk");
    drop(work);
    let found = found(shop);
    assert!(found.contains("which rolled back 2 inserted rows:"), "{found}");
}

#[test]
fn a_dropped_transaction_is_found_before_many_others() {
    let shop = strict();
    insert(&shop.unit_of_work().unwrap(), "tea");
    for _ in 0..100 {
        let mut work = shop.unit_of_work().unwrap();
        insert(&work.savepoint().unwrap(), "milk");
    }
    let found = found(shop);
    assert!(found.lines().count() == 2 && found.contains("which rolled back 1 inserted row:"), "{found}");
}

#[test]
fn a_transaction_that_ends_with_its_connection_held_the_slot_until_then() {
    const LIMIT: Duration = Duration::from_millis(100);
    let shop = LENIENT.new_engine().unwrap();
    shop.strict_slot_limit(LIMIT);
    let connection = shop.connect().unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    thread::sleep(LIMIT * 2);
    drop(connection);
    let found = found(shop);
    assert!(found.lines().count() == 2 && found.contains(" held the writer slot for 2"), "{found}");
}

/// Whether a statement writes to the engine is not known for certain if its table exists no longer.
#[test]
fn writes_to_other_databases_do_not_fail_the_test() {
    let shop = strict();
    let work = shop.begin(Immediate).unwrap();
    work.execute_batch("CREATE TEMP TABLE t (a); INSERT INTO temp.t VALUES (1); UPDATE t SET a = 2").unwrap();
    drop(work);
    let connection = shop.connect().unwrap();
    connection.execute_batch("ATTACH ':memory:' AS m; BEGIN IMMEDIATE; CREATE TABLE m.t (a)").unwrap();
    connection.execute_batch("INSERT INTO m.t VALUES (1)").unwrap();
    drop(connection);
    assert_eq!(found(shop), "");
}

#[test]
fn a_dropped_write_to_a_table_that_is_gone_is_found() {
    let shop = Engine::new();
    shop.strict();
    shop.try_transaction(|work| work.execute_batch(SCHEMA)).unwrap();
    insert(&shop.unit_of_work().unwrap(), "tea");
    shop.connect().unwrap().execute_batch("CREATE TEMP TABLE t (a)").unwrap(); // on another connection
    shop.reset().unwrap();
    let found = found(shop);
    assert!(found.contains("which rolled back 1 inserted row:"), "{found}");
}

/// SQLite counts no rows for the statement itself.
#[test]
fn what_a_trigger_does_instead_of_a_statement_is_found() {
    let shop = strict();
    let view = "CREATE VIEW names AS SELECT name FROM item;
        CREATE TRIGGER named INSTEAD OF INSERT ON names BEGIN INSERT INTO item (name) VALUES (new.name); END";
    shop.try_transaction(|work| work.execute_batch(view)).unwrap();
    shop.unit_of_work().unwrap().execute_batch("INSERT INTO names VALUES ('tea')").unwrap();
    let mut work = shop.unit_of_work().unwrap();
    work.savepoint().unwrap().execute_batch("INSERT INTO names VALUES ('milk')").unwrap(); // and rolled back
    drop(work);
    let found = found(shop);
    assert!(found.lines().count() == 2 && found.contains("which rolled back what it had written:"), "{found}");
}

#[test]
fn each_change_of_the_schema_is_found() {
    for sql in [
        "CREATE TABLE new (a); INSERT INTO new VALUES (1)",
        "CREATE TABLE new AS SELECT * FROM item",
        "CREATE INDEX new ON item (name)",
        "CREATE VIEW new AS SELECT 1",
        "CREATE TRIGGER new AFTER INSERT ON item BEGIN SELECT 1; END",
        "CREATE VIRTUAL TABLE new USING fts5(a)",
        "ALTER TABLE other RENAME TO new",
        "ALTER TABLE other RENAME a TO new",
        "ALTER TABLE other ADD COLUMN new",
        "DROP TABLE other",
    ] {
        let shop = strict();
        shop.unit_of_work().unwrap().execute_batch(sql).unwrap();
        let found = found(shop);
        assert!(found.contains("was dropped without a commit or rollback, which rolled back "), "{sql}: {found}");
    }
}

fn commit_after_a_close_that_fails(shop: &Engine) -> Connection {
    let connection = shop.connect().unwrap();
    connection.execute_batch("BEGIN").unwrap();
    insert(&connection, "milk");
    // A statement that is not finalized.
    let mut statement = std::ptr::null_mut();
    // SAFETY: the connection is open, and the statement is finalized below.
    let connection = unsafe {
        ffi::sqlite3_prepare_v2(
            connection.handle(),
            c"SELECT 1".as_ptr(),
            -1,
            &raw mut statement,
            std::ptr::null_mut(),
        );
        let (connection, _busy) = connection.close().unwrap_err();
        ffi::sqlite3_finalize(statement);
        connection
    };
    connection.execute_batch("COMMIT").unwrap();
    connection
}

/// The engines of other tests close each other's idle connections, when there are too many.
#[test]
fn connections_that_are_closed_at_this_moment_are_not_found() {
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let keep: Vec<Engine> = (0..40).map(|_| LENIENT.new_engine().unwrap()).collect();
                for engine in &keep {
                    let shop = strict();
                    let all =
                        [(); 8].map(|()| [shop.pooled_connection().unwrap(), engine.pooled_connection().unwrap()]);
                    drop(all);
                    assert_eq!(found(shop), "");
                }
            });
        }
    });
}

#[test]
fn what_was_dropped_before_is_not_found() {
    let engine = LENIENT.new_engine().unwrap();
    let recording = engine.record();
    (0..9).for_each(|_| insert(&engine.unit_of_work().unwrap(), "tea"));
    drop(recording);
    engine.strict();
    insert(&engine.unit_of_work().unwrap(), "coffee");
    engine.unwatched(|| (0..9).for_each(|_| insert(&engine.unit_of_work().unwrap(), "tea")));
    assert_eq!(found(engine).matches("was dropped").count(), 1);
}

#[test]
fn an_engine_becomes_strict_or_has_exemptions() {
    let engine = LENIENT.new_engine().unwrap();
    insert(&engine.unit_of_work().unwrap(), "tea");
    assert_eq!(found(engine), "");
    let engine = LENIENT.new_engine().unwrap();
    engine.strict();
    engine.strict();
    insert(&engine.unit_of_work().unwrap(), "tea");
    assert!(found(engine).contains("1 inserted row"), "once it is strict");
    let based = Template::based_on(&SHOP).new_engine().unwrap();
    insert(&based.unit_of_work().unwrap(), "tea");
    assert_eq!(found(based), "");
}

#[test]
fn the_next_test_is_not_blamed() {
    for _ in 0..3 {
        let shop = strict();
        insert(&shop.unit_of_work().unwrap(), "tea");
        assert!(!found(shop).is_empty());
        let shop = strict();
        assert_eq!(found(shop), "");
    }
}

#[test]
fn a_test_that_fails_anyway_fails_for_its_own_reason() {
    let panic = catch_unwind(|| {
        let shop = strict();
        let _work = shop.unit_of_work().map(|work| insert(&work, "tea"));
        panic!("its own reason");
    });
    assert_eq!(*panic.unwrap_err().downcast::<&str>().unwrap(), "its own reason");
}

const ROLE: &str = "FIXTURES_STRICT_ROLE";

/// Does nothing in an ordinary run of the tests.
#[test]
fn child() {
    let shop = || LENIENT.new_engine().unwrap();
    let number =
        |connection: &Connection, sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    match env::var(ROLE).as_deref() {
        Ok("drops") => insert(&shop().unit_of_work().unwrap(), "tea"),
        Ok("drops and is strict") => {
            let shop = shop();
            shop.strict();
            insert(&shop.unit_of_work().unwrap(), "tea");
        }
        Ok("writes in a row") => {
            let shop = shop();
            ["tea", "milk", "coffee"].iter().for_each(|name| insert(&shop.connect().unwrap(), name));
            let connection = shop.pooled_connection().unwrap();
            insert(&connection, "tea");
            number(&connection, "SELECT count(*) FROM other");
            insert(&connection, "milk");
            insert(&connection, "coffee");
        }
        Ok("lends a connection twice") => {
            let shop = shop();
            insert(&shop.pooled_connection().unwrap(), "tea");
            insert(&shop.pooled_connection().unwrap(), "milk");
        }
        Ok("has a fixture's connection") => {
            let connection = rusqlite_fixtures::fixtures::fresh_owned_connection(&LENIENT);
            ["tea", "milk"].iter().for_each(|name| insert(&connection, name));
        }
        Ok("runs many statements") => {
            let connection = shop().pooled_connection().unwrap();
            let mut select = connection.prepare("SELECT 1").unwrap();
            (0..10_001).for_each(|_| assert!(select.exists([]).unwrap()));
        }
        Ok("reads and then writes") => {
            let shop = shop();
            let connection = shop.connect().unwrap();
            let count = number(&connection, "SELECT count(*) FROM item");
            connection.execute("INSERT INTO other VALUES (?1)", [count]).unwrap();
            connection.execute_batch("SELECT 1").unwrap();
            connection.execute("INSERT INTO item (id) VALUES (?1)", [count + 1]).unwrap();
        }
        Ok("reads and then updates or deletes") => {
            let shop = shop();
            for sql in ["UPDATE item SET name = 'tea' WHERE id = 1", "DELETE FROM item WHERE id = 1"] {
                let connection = shop.connect().unwrap();
                number(&connection, "SELECT count(*) FROM item");
                connection.execute_batch(sql).unwrap();
            }
        }
        Ok("leaves a connection of another library") => {
            let shop = shop();
            let connection = Connection::open(shop.uri()).unwrap();
            drop(shop);
            drop(connection);
        }
        Ok("is in order") => {
            let shop = shop();
            let connection = shop.connect().unwrap();
            connection.execute_batch("CREATE TABLE a (a); CREATE TABLE b (b)").unwrap();
            insert(&connection, "tea");
            number(&connection, "SELECT count(*) FROM item");
            shop.unwatched(|| ["a", "b"].iter().for_each(|name| insert(&connection, name)));
            connection.execute_batch("BEGIN; INSERT INTO a VALUES (1); INSERT INTO b VALUES (1); COMMIT").unwrap();
            drop(connection);
            // A statement may read what was read before, and write to another table.
            shop.unwatched(|| {
                let schema =
                    "CREATE TABLE author (id INTEGER PRIMARY KEY); CREATE TABLE book (author REFERENCES author);
                    INSERT INTO author VALUES (1)";
                shop.connect().unwrap().execute_batch(schema).unwrap();
            });
            let connection = shop.connect().unwrap();
            run_within_a_statement(&connection, "logs", c"INSERT INTO a VALUES (2)");
            connection.execute_batch("INSERT INTO other SELECT logs(1)").unwrap();
            drop(connection);
            let connection = shop.connect().unwrap();
            (0..2).for_each(|_| drop(connection.execute("INSERT INTO author VALUES (1)", []).unwrap_err()));
            drop(connection);
            for sql in ["INSERT INTO book VALUES (1)", "INSERT INTO other SELECT id FROM author"] {
                let connection = shop.connect().unwrap();
                number(&connection, "SELECT count(*) FROM author");
                connection.execute_batch(sql).unwrap();
            }
            let (other, _reader) = (shop.connect().unwrap(), shop.unit_of_work().unwrap());
            number(&other, "SELECT count(*) FROM item");
            other.execute("INSERT INTO other VALUES (1)", []).unwrap();
        }
        Ok("fails later") => {
            let shop = shop();
            insert(&shop.unit_of_work().unwrap(), "tea");
            panic!("its own reason");
        }
        Ok("fails after dropping what has changed something") => {
            let shop = shop();
            let work = shop.unit_of_work().unwrap();
            insert(&work, "tea");
            assert_eq!(work.execute("DELETE FROM item WHERE name = 'milk'", []), Ok(0)); // changes() is 0 now
            drop(work);
            shop.begin(Immediate).unwrap().execute_batch("CREATE TABLE new (a)").unwrap();
            panic!("its own reason");
        }
        Ok("fails in strict mode") => {
            let shop = shop();
            shop.strict();
            insert(&shop.unit_of_work().unwrap(), "tea");
        }
        Ok("fails after dropping what has changed nothing") => {
            let shop = shop();
            drop(shop.begin(Immediate).unwrap());
            let _ = shop.recorded(|| drop(shop.begin(Immediate).unwrap()));
            let connection = Connection::open(shop.uri()).unwrap();
            connection.execute_batch("CREATE TABLE new (a)").unwrap();
            insert(&connection, "tea");
            connection.execute_batch("BEGIN IMMEDIATE").unwrap();
            drop(connection);
            panic!("its own reason");
        }
        Ok("fails after a close that fails") => {
            drop(commit_after_a_close_that_fails(&shop()));
            let shop = shop();
            drop(commit_after_a_close_that_fails(&shop));
            let _closed_by_the_panic = commit_after_a_close_that_fails(&shop);
            panic!("its own reason");
        }
        Ok("fails after a failed commit") => {
            let shop = shop();
            shop.try_transaction(|work| work.execute_batch(PARENT_AND_CHILD)).unwrap();
            let work = shop.unit_of_work().unwrap();
            work.execute("INSERT INTO child VALUES (99)", []).unwrap();
            work.commit().unwrap();
        }
        Ok("fails when the engine is gone") => {
            let shop = shop();
            let of_another_test = thread::Builder::new().name("another_test".to_owned());
            let drops = || insert(&shop.unit_of_work().unwrap(), "milk");
            thread::scope(|scope| of_another_test.spawn_scoped(scope, drops).unwrap().join().unwrap());
            insert(&shop.unit_of_work().unwrap(), "tea");
            drop(shop);
            panic!("its own reason");
        }
        Ok("fails when many engines are gone") => {
            let works: [&dyn Fn(); 6] = [
                &|| insert(&shop().unit_of_work().unwrap(), "tea"),
                &|| insert(&shop().unit_of_work().unwrap(), "tea"),
                &|| insert(&shop().unit_of_work().unwrap(), "tea"),
                &|| insert(&shop().unit_of_work().unwrap(), "tea"),
                &|| insert(&shop().unit_of_work().unwrap(), "tea"),
                &|| insert(&shop().unit_of_work().unwrap(), "tea"),
            ];
            works.iter().for_each(|work| [work, work].iter().for_each(|work| work()));
            works[0]();
            panic!("its own reason");
        }
        Ok("drops in engines of several tests") => {
            static KEPT: KeptValues<()> = KeptValues::new(&SHOP);
            let folder = tempfile::tempdir().unwrap();
            let file = |name: &str| format!("file:{}?mode=rwc", folder.path().join(name).display());
            let empty = ["file:empty?mode=memory".to_owned(), file("empty.db")];
            let of_template = ["file:shop?mode=memory".to_owned(), file("shop.db")];
            let mut engines: Vec<Engine> = empty.iter().map(|url| Engine::shared(url).unwrap()).collect();
            engines.extend(of_template.iter().map(|url| Engine::shared_with(url, &SHOP).unwrap()));
            let kept = KEPT.get_or_make(|_| Ok(())).unwrap();
            for engine in engines.iter().chain([kept.engine()]) {
                engine.unit_of_work().unwrap().execute_batch("CREATE TABLE new (a)").unwrap();
            }
            kept.engine().retire();
            for url in empty.iter().chain(&of_template) {
                drop(MEMORY_ENGINES.remove(&url.parse().unwrap()).unwrap());
            }
        }
        Ok("has a trace of its own") => {
            let shop = shop();
            let mut connection = Connection::open(shop.uri()).unwrap();
            trace(&mut connection);
            connection.execute_batch("BEGIN").unwrap();
            insert(&connection, "tea");
            drop(connection);
        }
        Ok(role @ ("waits in a busy handler" | "waits in a busy handler to begin")) => {
            const LIMIT: Duration = Duration::from_millis(100);
            let shop = shop();
            let holder = shop.connect().unwrap();
            holder.execute_batch("BEGIN IMMEDIATE").unwrap();
            shop.strict_slot_limit(LIMIT);
            #[allow(unused_mut, reason = "some versions of rusqlite need it")]
            let mut waiter = shop.connect().unwrap();
            let wait = |_| {
                thread::sleep(LIMIT * 4);
                true
            };
            waiter.busy_handler(Some(wait)).unwrap();
            thread::scope(|scope| {
                scope.spawn(move || {
                    thread::sleep(LIMIT * 2);
                    holder.execute_batch("ROLLBACK").unwrap();
                });
                let begin = if role.ends_with("to begin") { "BEGIN IMMEDIATE" } else { "BEGIN" };
                waiter.execute_batch(&format!("{begin}; INSERT INTO item (name) VALUES ('tea'); COMMIT")).unwrap();
            });
        }
        Ok("leaves a statement") => {
            let shop = shop();
            let uri = std::ffi::CString::new(shop.uri()).unwrap();
            let (mut db, mut statement) = (std::ptr::null_mut(), std::ptr::null_mut());
            let flags = ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_URI;
            unsafe extern "C" {
                fn sqlite3_close_v2(db: *mut ffi::sqlite3) -> std::ffi::c_int;
            }
            // SAFETY: the pointers are valid for the calls. After `sqlite3_close_v2`, the statement has the connection.
            unsafe {
                assert_eq!(ffi::sqlite3_open_v2(uri.as_ptr(), &mut db, flags, std::ptr::null()), ffi::SQLITE_OK);
                let sql = c"SELECT * FROM item".as_ptr();
                let prepared = ffi::sqlite3_prepare_v2(db, sql, -1, &mut statement, std::ptr::null_mut());
                assert_eq!((prepared, sqlite3_close_v2(db)), (ffi::SQLITE_OK, ffi::SQLITE_OK));
                drop(shop);
                ffi::sqlite3_finalize(statement);
            }
        }
        _ => {}
    }
}

/// Does nothing in an ordinary run of the tests.
#[test]
fn child_with_a_result() -> Result<(), BoxError> {
    let sql = match env::var(ROLE).as_deref() {
        Ok("violates a key") => "INSERT INTO item VALUES (1, 'milk')",
        Ok("violates a foreign key") => "INSERT INTO part VALUES (7)",
        Ok("runs wrong SQL") => "INSERT INTO itm VALUES (1, 'milk')",
        Ok("returns an error of its own") => "",
        _ => return Ok(()),
    };
    let shop = strict();
    shop.try_transaction(|work| work.execute_batch("CREATE TABLE part (item REFERENCES item)"))?;
    let work = shop.unit_of_work()?;
    work.execute("INSERT INTO item VALUES (1, 'tea')", [])?;
    work.execute_batch(sql)?;
    Err("the test's own error".into())
}

/// A drop does not know whether its test returns an error.
#[test]
fn the_error_of_a_test_is_shown_if_it_is_sqlite_s_and_else_the_panic_says_how_to_show_it() {
    let printed = |role: &str, mode: &str| {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "strict::child_with_a_result"]).env(ROLE, role);
        let folder = tempfile::tempdir().unwrap();
        command.env("RUSQLITE_FIXTURES_STRICT", mode).env("RUSQLITE_FIXTURES_DIR", folder.path());
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    for (role, error) in [
        ("violates a key", "UNIQUE constraint failed: item.id"),
        ("violates a foreign key", "FOREIGN KEY constraint failed"),
        ("runs wrong SQL", "no such table: itm"),
    ] {
        let shown = printed(role, "fail");
        assert!(shown.contains(error) && !shown.contains("strict mode, engine"), "{shown}");
        assert!(shown.contains("rusqlite-fixtures: strict: engine ") && shown.contains("1 inserted row"), "{shown}");
    }
    let replaced = printed("returns an error of its own", "");
    let end = "call commit or rollback\n(If the test returns an error, this panic replaces it. \
               RUSQLITE_FIXTURES_STRICT=off shows the error.)\n";
    assert!(replaced.contains("strict mode, engine ") && replaced.contains(end), "{replaced}");
    assert!(!replaced.contains("the test's own error"), "{replaced}");
    let shown = printed("returns an error of its own", "off");
    assert!(shown.contains("the test's own error") && !shown.contains("strict mode"), "{shown}");
}

/// Returns whether a process with this role succeeds, and the lines that this crate prints.
fn run(role: &str, mode: &str) -> (bool, Vec<String>) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "strict::child"]).env(ROLE, role).env("RUSQLITE_FIXTURES_STRICT", mode);
    let output = command.env("RUST_BACKTRACE", "0").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let lines = stderr.lines().filter(|line| line.contains("strict:") || line.contains("can't use"));
    (output.status.success(), lines.map(str::to_owned).collect())
}

#[test]
fn the_environment_makes_all_engines_strict() {
    assert_eq!(run("drops", ""), (true, vec![]));
    assert_eq!(run("drops", "off"), (true, vec![]));
    let (succeeds, lines) = run("drops", "warn");
    assert!(succeeds && lines.len() == 1, "{lines:?}");
    assert!(lines[0].starts_with("rusqlite-fixtures: strict: engine "), "{lines:?}");
    assert!(lines[0].contains(": the unit of work begun at tests/it/strict.rs:"), "{lines:?}");
    assert!(lines[0].ends_with("which rolled back 1 inserted row: call commit or rollback"), "{lines:?}");
    assert!(!run("drops", "fail").0);
    assert!(!run("drops and is strict", "warn").0);
    let (succeeds, lines) = run("drops", "always");
    let expected = "can't use the environment variable RUSQLITE_FIXTURES_STRICT=\"always\": set it to fail for tests that fail if they \
                    leave something open, to warn for messages, or to off";
    assert!(!succeeds && lines.iter().any(|line| line == expected), "{lines:?}");
}

#[test]
fn findings_in_doubt_are_printed() {
    let (succeeds, lines) = run("writes in a row", "fail");
    assert!(succeeds && lines.len() == 1, "{lines:?}");
    assert!(lines[0].contains(": the connection opened at tests/it/strict.rs:"), "{lines:?}");
    assert!(
        lines[0].ends_with(
            " wrote twice in a row outside of a transaction, each time with a commit of its own: `INSERT INTO item (name) \
             VALUES ('milk')`, `INSERT INTO item (name) VALUES ('coffee')`"
        ),
        "{lines:?}"
    );
    let (succeeds, lines) = run("reads and then writes", "warn");
    assert!(succeeds && lines.len() == 1, "{lines:?}");
    assert!(
        lines[0].ends_with(
            " read `item` and then wrote to it outside of a transaction, so another connection could change it in between: `SELECT \
             count(*) FROM item`, `INSERT INTO item (id) VALUES (1)`"
        ),
        "{lines:?}"
    );
    let (succeeds, lines) = run("reads and then updates or deletes", "fail");
    let are_found =
        lines.iter().all(|line| line.contains(" read `item` and then wrote to it outside of a transaction"));
    assert!(succeeds && lines.len() == 2 && are_found, "{lines:?}");
    let (succeeds, lines) = run("leaves a connection of another library", "fail");
    assert!(succeeds && lines.len() == 1, "{lines:?}");
    assert!(
        lines[0].contains(": a connection that was opened by the engine's URI at tests/it/strict.rs:"),
        "{lines:?}"
    );
    assert!(lines[0].contains(" is still open after the last handle to the engine was dropped"), "{lines:?}");
    for role in ["is in order", "lends a connection twice", "has a fixture's connection"] {
        assert_eq!(run(role, "fail"), (true, vec![]), "{role}");
    }
    let (succeeds, lines) = run("leaves a statement", "fail");
    assert!(succeeds && lines.len() == 1, "{lines:?}");
    assert!(
        lines[0].contains(": a connection that was opened by the engine's URI at tests/it/strict.rs:"),
        "{lines:?}"
    );
    assert!(lines[0].contains(" is still open after the last handle to the engine was dropped"), "{lines:?}");
    let (succeeds, lines) = run("runs many statements", "fail");
    assert!(
        succeeds
            && lines.len() == 1
            && lines[0].ends_with(": not checked: 1 older statement, because only the newest are kept"),
        "{lines:?}"
    );
}

#[test]
fn what_is_not_checked_or_not_known_is_printed() {
    let (succeeds, lines) = run("has a trace of its own", "fail");
    assert!(succeeds && lines.len() == 1, "{lines:?}");
    let expected = ": not all statements are checked: connection 1 has a trace of its own ";
    assert!(lines[0].contains(expected), "{lines:?}");
    let (succeeds, lines) = run("waits in a busy handler", "");
    assert!(succeeds && lines.len() == 1, "{lines:?}");
    assert!(lines[0].contains(": the connection opened at tests/it/strict.rs:"), "{lines:?}");
    assert_eq!(run("waits in a busy handler to begin", ""), (true, vec![]), "BEGIN does nothing but wait");
    let expected = "; the limit is 100ms, and how long it waited for the slot is not known";
    assert!(
        lines[0].contains(" may have held the writer slot for up to ") && lines[0].ends_with(expected),
        "{lines:?}"
    );
}

#[test]
fn engines_of_several_tests_are_not_strict() {
    for mode in ["fail", "warn"] {
        assert_eq!(run("drops in engines of several tests", mode), (true, vec![]), "{mode}");
    }
}

const DROPPED_UNIT_OF_WORK: &str =
    "  rolled back, because it was dropped without a commit: the unit of work begun at tests/it/strict.rs:";

/// Returns what a failing test prints.
fn stdout_of(role: &str) -> String {
    let mut command = Command::new(env::current_exe().unwrap());
    let folder = tempfile::tempdir().unwrap();
    command.args(["--exact", "strict::child"]).env(ROLE, role).env("RUSQLITE_FIXTURES_DIR", folder.path());
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn what_was_dropped_had_changed_something() {
    let stdout = stdout_of("fails after dropping what has changed something");
    assert_eq!(stdout.matches(DROPPED_UNIT_OF_WORK).count(), 2, "{stdout}");
    let stdout = stdout_of("fails after dropping what has changed nothing");
    assert!(stdout.contains("its own reason") && !stdout.contains("was dropped"), "{stdout}");
}

#[test]
fn a_failing_test_shows_what_was_dropped() {
    let stdout = stdout_of("fails later");
    assert!(stdout.contains(DROPPED_UNIT_OF_WORK), "{stdout}");
    assert!(!stdout.contains("no longer exists") && !stdout.contains("before these"), "{stdout}");
    let stdout = stdout_of("fails in strict mode");
    assert!(stdout.contains(DROPPED_UNIT_OF_WORK) && !stdout.contains("no longer exists"), "{stdout}");
    let stdout = stdout_of("fails after a failed commit");
    assert!(stdout.contains("FOREIGN KEY constraint failed") && !stdout.contains("was dropped"), "{stdout}");
    let stdout = stdout_of("fails after a close that fails");
    assert!(stdout.contains("its own reason") && !stdout.contains("dropped"), "{stdout}");
    let stdout = stdout_of("fails when the engine is gone");
    let expected = "rusqlite-fixtures: earlier, the unit of work begun at tests/it/strict.rs:";
    assert_eq!(stdout.matches(expected).count(), 1, "{stdout}");
    assert!(
        stdout.contains(" was rolled back, because it was dropped without a commit; its engine no longer exists\n"),
        "{stdout}"
    );
    let stdout = stdout_of("fails when many engines are gone");
    let places: Vec<&str> = stdout
        .lines()
        .filter(|line| line.contains("no longer exists"))
        .map(|line| &line[..line.find(" was ").unwrap()])
        .collect();
    let number = |place: &&str| place.rsplit(':').nth(1).unwrap().parse::<u32>().unwrap();
    let lines: Vec<u32> = places.iter().map(number).collect();
    // The newest five of the six places, the last one of which is the first.
    assert_eq!((lines.len(), lines[4] + 5), (5, lines[3]), "{stdout}");
    assert!(lines[..4].windows(2).all(|pair| pair[0] + 1 == pair[1]), "{stdout}");
    assert!(!stdout_of("drops").contains("no longer exists"), "a test that passes");
}
