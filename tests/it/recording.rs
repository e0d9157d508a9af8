//! Recordings of statements, and the assertions on them.
#![allow(unsafe_code, reason = "sets a hook by SQLite's own function")]

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, ptr, thread};

use proptest::collection::vec;
use proptest::prelude::*;
use rusqlite_fixtures::rusqlite::functions::FunctionFlags;
use rusqlite_fixtures::rusqlite::{self, Connection, OptionalExtension, TransactionBehavior, ffi, params};
use rusqlite_fixtures::{
    Engine, KeptValues, Limits, MEMORY_ENGINES, Recording, Statement, StatementKind, Statements, Template,
    assert_constant_statements,
};

use super::support::{here, in_thread, number, trace};

const ROLE: &str = "FIXTURES_RECORDING_ROLE";

static SHOP: Template = Template::sql(
    "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, price INT NOT NULL DEFAULT 0);
     CREATE TABLE change (item INT, price INT);
     CREATE VIEW cheap AS SELECT * FROM item WHERE price < 10;
     CREATE TRIGGER priced AFTER UPDATE OF price ON item BEGIN
         INSERT INTO change VALUES (old.id, old.price);
         INSERT INTO change VALUES (new.id, new.price);
     END;",
)
.seed("INSERT INTO item VALUES (1, 'tea', 3), (2, 'coffee', 4), (3, 'pot', 30)");

fn sql(statements: &Statements) -> Vec<&str> {
    statements.iter().map(Statement::sql).collect()
}

/// Reads all rows of a query. (`execute_batch` reads the first one.)
fn read_all(connection: &Connection, sql: &str) {
    let mut statement = connection.prepare(sql).unwrap();
    let mut rows = statement.query([]).unwrap();
    while rows.next().unwrap().is_some() {}
}

fn message_of(check: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(check)).expect_err("the assertion fails");
    panic.downcast_ref::<String>().expect("it has a formatted message").clone()
}

#[test]
fn each_kind_of_connection_is_recorded() {
    let engine = SHOP.new_engine().unwrap();
    let opened_before = Connection::open(engine.uri()).unwrap();
    assert_eq!(number(&opened_before, "SELECT count(*) FROM item"), 3);
    let recording = engine.record();
    engine.unit_of_work().unwrap().execute("DELETE FROM item WHERE id = ?1", [3]).unwrap();
    engine.pooled_connection().unwrap().execute_batch("SELECT 'pooled'").unwrap();
    engine.connect().unwrap().execute_batch("SELECT 'connected'").unwrap();
    Connection::open(engine.uri()).unwrap().execute_batch("SELECT 'by URI'").unwrap();
    opened_before.execute_batch("SELECT 'opened before'").unwrap();
    in_thread("other", || engine.connect().unwrap().execute_batch("SELECT 'on another thread'").unwrap());
    let statements = recording.stop();
    assert_eq!(
        sql(&statements),
        [
            "BEGIN",
            "DELETE FROM item WHERE id = ?1",
            "ROLLBACK",
            "SELECT 'pooled'",
            "SELECT 'connected'",
            "SELECT 'by URI'",
            "SELECT 'opened before'",
            "SELECT 'on another thread'",
        ]
    );
    let last = statements.iter().last().unwrap();
    assert_eq!(last.thread(), Some("other"));
    assert_eq!(last.duration().map(|duration| duration < Duration::from_secs(10)), Some(true));
    let by_uri = statements.iter().nth(5).unwrap();
    let place = "a connection that was opened by the engine's URI at tests/it/recording.rs:";
    assert!(by_uri.opened_by().starts_with(place), "{}", by_uri.opened_by());
    let connected = statements.iter().nth(4).unwrap().opened_by();
    assert!(
        connected.starts_with("the connection opened at tests/") && connected.matches(" at ").count() == 1,
        "{connected}"
    );
    let opened_before = statements.iter().nth(6).unwrap();
    assert_eq!(opened_before.opened_by(), "a connection that was opened by the engine's URI");
    let begin = statements.iter().next().unwrap();
    assert!(begin.opened_by().starts_with("the unit of work begun at tests/it/recording.rs:"), "{}", begin.opened_by());
    statements.assert_count(6);
    statements.writes().assert_count(1);
    statements.reads().assert_count(5);
    statements.transactions().assert_count(2);
    assert_eq!(statements.gaps(), [""; 0]);
}

#[test]
fn nothing_is_recorded_before_or_after_or_on_another_engine() {
    let [engine, other] = [SHOP.new_engine().unwrap(), SHOP.new_engine().unwrap()];
    let connection = engine.pooled_connection().unwrap();
    connection.execute_batch("SELECT 'before'").unwrap();
    let recording = engine.record();
    other.unit_of_work().unwrap().execute_batch("SELECT 'elsewhere'").unwrap();
    connection.execute_batch("SELECT 'meanwhile'").unwrap();
    let statements = recording.stop();
    connection.execute_batch("SELECT 'after'").unwrap();
    assert_eq!(sql(&statements), ["SELECT 'meanwhile'"]);
    assert!(statements.iter().next().unwrap().duration().is_some());
}

#[test]
fn a_statement_has_its_values_and_its_result() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.pooled_connection().unwrap();
    let (_, statements) = engine.recorded(|| {
        connection.execute("UPDATE item SET price = ?1 WHERE id < ?2", params![5, 3]).unwrap();
        let names: Vec<String> = connection
            .prepare("SELECT name FROM item WHERE name > :start ORDER BY price, name")
            .unwrap()
            .query_map(&[(":start", "b")], |row| row.get(0))
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        assert_eq!(names, ["coffee", "tea", "pot"]);
        connection.execute("INSERT INTO item (name) VALUES ('tea')", []).unwrap_err();
    });
    let [update, select, insert] = statements.iter().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((update.kind(), update.changes(), update.rows()), (StatementKind::Write, 2, 0));
    assert_eq!(update.expanded_sql(), "UPDATE item SET price = 5 WHERE id < 3");
    assert_eq!((select.kind(), select.changes(), select.rows()), (StatementKind::Read, 0, 3));
    assert_eq!(select.expanded_sql(), "SELECT name FROM item WHERE name > 'b' ORDER BY price, name");
    assert_eq!(select.counters().sorts, 1);
    assert!(select.counters().vm_steps > 10);
    assert_eq!(insert.error(), Some("UNIQUE constraint failed: item.name"));
    assert_eq!(insert.error_code(), Some(rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE));
    assert_eq!((insert.changes(), select.error(), select.error_code()), (0, None, None));
    assert!(update.began() <= select.began() && select.began() <= insert.began());
    let line = insert.to_string();
    assert!(
        line.starts_with("INSERT INTO item (name) VALUES ('tea') -- failed: UNIQUE constraint failed: item.name, "),
        "{line}"
    );
    let line = update.to_string();
    assert!(line.starts_with("UPDATE item SET price = 5 WHERE id < 3 -- 2 rows changed, "), "{line}");
    assert!(line.ends_with(", thread `recording::a_statement_has_its_values_and_its_result`"), "{line}");
}

/// The statements of a trigger, and those by which FTS5 reads and writes its tables.
#[test]
fn what_a_statement_causes_belongs_to_it() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    connection.execute_batch("CREATE VIRTUAL TABLE text USING fts5(body)").unwrap();
    let (_, statements) = engine.recorded(|| {
        connection.execute("UPDATE item SET price = 5 WHERE id = 1", []).unwrap();
        connection.execute("INSERT INTO text VALUES ('strong tea')", []).unwrap();
        assert_eq!(number(&connection, "SELECT count(*) FROM text WHERE text MATCH 'tea'"), 1);
    });
    statements.assert_count(3);
    assert_eq!(statements.iter().map(Statement::changes).collect::<Vec<_>>(), [1, 1, 0]);
    // FTS5 reads its settings while SQLite compiles the first statement of a connection that uses it.
    let (_, statements) = engine.recorded(|| {
        Connection::open(engine.uri()).unwrap().execute("INSERT INTO text VALUES ('green tea')", []).unwrap();
    });
    assert_eq!(sql(&statements), ["INSERT INTO text VALUES ('green tea')"]);
    assert_eq!(statements.gaps(), [""; 0]);
    assert_eq!(number(&connection, "SELECT count(*) FROM change"), 2);
}

/// SQLite gives the text of a nested statement as a comment, and here the statement's own text begins with one.
#[test]
fn a_statement_may_begin_with_a_comment() {
    let engine = SHOP.new_engine().unwrap();
    let (_, statements) = engine.recorded(|| {
        engine.connect().unwrap().execute_batch("-- name: names\nSELECT name FROM item").unwrap();
    });
    assert_eq!(sql(&statements), ["-- name: names\nSELECT name FROM item"]);
    assert_eq!(statements.iter().next().unwrap().rows(), 1);
}

#[test]
fn statements_know_their_transaction() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let (_, statements) = engine.recorded(|| {
        connection
            .execute_batch(
                "SELECT 1; BEGIN; SELECT 2; SAVEPOINT a; SELECT 3; RELEASE a; COMMIT; SELECT 4; SAVEPOINT b; SELECT 5; RELEASE b",
            )
            .unwrap();
        engine.unit_of_work().unwrap().execute_batch("SELECT 6").unwrap();
    });
    let transactions: Vec<Option<u64>> = statements.iter().map(Statement::transaction).collect();
    let [one, two, three] = [Some(1), Some(2), Some(3)];
    assert_eq!(
        transactions,
        [None, one, one, one, one, one, one, None, two, two, two, three, three, three],
        "{statements}"
    );
    assert_eq!(statements.transactions().count(), 9 - 1);
    let connections: Vec<usize> = statements.iter().map(Statement::connection).collect();
    assert_eq!(connections, [vec![1; 11], vec![2; 3]].concat());
}

#[test]
fn a_recording_knows_nothing_of_the_one_before() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let (_, statements) = engine.recorded(|| connection.execute_batch("BEGIN; COMMIT; BEGIN; SELECT 1").unwrap());
    assert_eq!(statements.iter().last().unwrap().transaction(), Some(2));
    connection.execute_batch("COMMIT; BEGIN").unwrap();
    let (_, statements) = engine.recorded(|| connection.execute_batch("SELECT 1").unwrap());
    assert_eq!(statements.iter().last().unwrap().transaction(), Some(1));
}

/// A statement may begin just before the recording, and take its lock just after.
#[test]
fn recordings_begin_and_end_while_statements_run() {
    let engine = SHOP.new_engine().unwrap();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        for by_uri in [true, true, false, false] {
            let (engine, is_done) = (&engine, &is_done);
            scope.spawn(move || {
                let connection = Connection::open(engine.uri()).unwrap();
                while !is_done.load(Ordering::Relaxed) {
                    if by_uri {
                        assert_eq!(number(&connection, "SELECT count(*) FROM item"), 3);
                    } else {
                        engine
                            .try_transaction(|work| work.execute("UPDATE item SET price = 1 WHERE id = 1", []))
                            .unwrap();
                    }
                }
            });
        }
        let recorded = (0..300).map(|_| engine.recorded(|| thread::sleep(Duration::from_micros(100))).1);
        let recorded: Vec<Statements> = recorded.collect();
        is_done.store(true, Ordering::Relaxed);
        for statements in &recorded {
            assert_eq!(statements.gaps(), [""; 0], "{statements}");
        }
        assert!(recorded.iter().map(Statements::count).sum::<u64>() > 0);
    });
}

#[test]
fn connections_that_share_a_cache_are_recorded() {
    let engine = SHOP.new_engine().unwrap();
    let open = || Connection::open(format!("{}&cache=shared", engine.uri())).unwrap();
    let (one, other) = (open(), open());
    let (_, statements) = engine.recorded(|| {
        one.execute("UPDATE item SET price = 1 WHERE id = 1", []).unwrap();
        assert_eq!(number(&other, "SELECT count(*) FROM item"), 3);
    });
    statements.assert_count(2);
    drop(one);
    let (_, statements) = engine.recorded(|| assert_eq!(number(&other, "SELECT count(*) FROM item"), 3));
    statements.assert_count(1);
}

/// `query_row` resets the statement after its first row.
#[test]
fn rows_that_are_returned_are_changed() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let (_, statements) = engine.recorded(|| {
        connection.execute("UPDATE item SET price = 1", []).unwrap();
        let insert = "INSERT INTO item (name) VALUES ('cup') RETURNING id";
        assert_eq!(number(&connection, insert), 4);
    });
    assert_eq!(statements.iter().map(Statement::changes).collect::<Vec<_>>(), [3, 1]);
}

/// `sqlite3_close_v2` leaves a connection open until its statements are finalized.
#[test]
#[allow(unsafe_code, reason = "calls SQLite's C interface")]
fn a_statement_may_outlive_its_connection() {
    unsafe extern "C" {
        // The bindings don't have it.
        fn sqlite3_close_v2(db: *mut ffi::sqlite3) -> std::ffi::c_int;
    }
    let engine = SHOP.new_engine().unwrap();
    let uri = std::ffi::CString::new(engine.uri()).unwrap();
    let (_, statements) = engine.recorded(|| {
        let (mut db, mut statement) = (std::ptr::null_mut(), std::ptr::null_mut());
        let flags = ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_URI;
        // SAFETY: each call gets what the one before has returned, and the statement is finalized last.
        unsafe {
            assert_eq!(ffi::sqlite3_open_v2(uri.as_ptr(), &raw mut db, flags, std::ptr::null()), ffi::SQLITE_OK);
            let sql = c"SELECT * FROM item".as_ptr();
            assert_eq!(ffi::sqlite3_prepare_v2(db, sql, -1, &raw mut statement, std::ptr::null_mut()), ffi::SQLITE_OK);
            assert_eq!(sqlite3_close_v2(db), ffi::SQLITE_OK);
            assert_eq!([ffi::sqlite3_step(statement), ffi::sqlite3_step(statement)], [ffi::SQLITE_ROW; 2]);
            ffi::sqlite3_finalize(statement);
        }
    });
    let [only] = statements.iter().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((only.rows(), only.error()), (2, None));
}

#[test]
fn a_refused_lock_is_an_error() {
    let engine = SHOP.new_engine().unwrap();
    engine.set_lock_timeout(Duration::ZERO);
    let writer = engine.begin(TransactionBehavior::Immediate).unwrap();
    let other = engine.connect().unwrap();
    let (_, statements) = engine.recorded(|| {
        other.execute_batch("BEGIN IMMEDIATE").unwrap_err();
        other.execute_batch("DELETE FROM item").unwrap_err();
    });
    let errors: Vec<_> = statements.iter().map(|statement| (statement.error_code(), statement.error())).collect();
    assert_eq!(errors, [(Some(5), Some("database is locked")); 2], "{statements}");
    drop(writer);
}

/// SQLite begins the statement again after it has compiled it again.
#[test]
fn a_statement_that_is_compiled_again_is_one_statement() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let mut select = connection.prepare("SELECT * FROM item").unwrap();
    let (_, statements) = engine.recorded(|| {
        engine.connect().unwrap().execute_batch("ALTER TABLE item ADD COLUMN stock INT").unwrap();
        assert_eq!(select.query([]).unwrap().next().unwrap().unwrap().get_ref(0).unwrap().as_i64(), Ok(1));
        assert_eq!(select.column_count(), 4);
    });
    drop(select);
    statements.reads().assert_count(1);
    assert_eq!(statements.reads().iter().next().unwrap().error(), None);
}

/// A long loop of rows, with other statements meanwhile.
#[test]
fn rows_are_counted_for_each_statement() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let (_, statements) = engine.recorded(|| {
        let mut items = connection.prepare("SELECT id FROM item").unwrap();
        let mut rows = items.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let id: i64 = row.get(0).unwrap();
            let name = connection.query_row("SELECT name FROM item WHERE id = ?1", [id], |row| row.get::<_, String>(0));
            assert!(name.is_ok());
        }
    });
    let rows: Vec<u64> = statements.iter().map(Statement::rows).collect();
    assert_eq!(rows, [3, 1, 1, 1]);
}

/// SQLite's counters of a prepared statement go on from run to run.
#[test]
fn a_statement_has_the_counters_of_its_own_run() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let mut dear = connection.prepare("SELECT id FROM item WHERE price > ?1 ORDER BY price").unwrap();
    let (_, statements) = engine.recorded(|| {
        for _ in 0..2 {
            let ids: rusqlite::Result<Vec<i64>> = dear.query_map([3], |row| row.get(0)).unwrap().collect();
            assert_eq!(ids.unwrap(), [2, 3]);
        }
    });
    let [first, second] = statements.iter().map(Statement::counters).collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((first.full_scan_steps, first.sorts, first.automatic_index_rows), (2, 1, 0));
    assert_eq!(second, first);
}

#[test]
fn the_rows_of_an_index_that_sqlite_makes_are_counted() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    connection.execute_batch("INSERT INTO change VALUES (1, 2), (2, 3), (3, 4)").unwrap();
    let (_, statements) = engine.recorded(|| {
        let join = "SELECT count(*) FROM change AS one JOIN change AS other ON one.price = other.item";
        assert_eq!(number(&connection, join), 2);
    });
    assert_eq!(statements.iter().next().unwrap().counters().automatic_index_rows, 2, "steps from row to row");
}

#[test]
fn a_statement_has_its_time() {
    const PAUSE: Duration = Duration::from_millis(20);
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let defined = connection.create_scalar_function("pause", 0, FunctionFlags::SQLITE_UTF8, |_| {
        thread::sleep(PAUSE);
        Ok(true)
    });
    defined.unwrap();
    let (_, statements) = engine.recorded(|| connection.execute_batch("SELECT pause(); SELECT 1").unwrap());
    let [slow, next] = statements.iter().collect::<Vec<_>>().try_into().unwrap();
    assert!(slow.duration() >= Some(PAUSE), "{slow}");
    assert!(next.began() >= slow.began() + PAUSE, "{statements}");
}

#[test]
fn a_statement_that_has_not_ended_is_recorded() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let mut items = connection.prepare("SELECT id FROM item").unwrap();
    let recording = engine.record();
    let mut rows = items.query([]).unwrap();
    rows.next().unwrap();
    let statements = recording.statements();
    assert_eq!(statements.iter().next().unwrap().duration(), None);
    assert_eq!(statements.to_string(), "    1 x SELECT id FROM item -- its end was not recorded");
    drop(rows);
    let statements = recording.stop();
    let only = statements.iter().next().unwrap();
    assert_eq!((only.rows(), only.duration().is_some()), (1, true));
}

/// The first statement by a reference that is older than the recording has no end, as documented; the others have.
#[test]
fn a_unit_of_work_may_be_older_than_the_recording() {
    let engine = SHOP.new_engine().unwrap();
    let work = engine.unit_of_work().unwrap();
    let kept: &Connection = &work;
    let (_, statements) = engine.recorded(|| {
        kept.execute_batch("SELECT 1; SELECT 2").unwrap();
        work.execute_batch("SELECT 3").unwrap();
    });
    let ends: Vec<bool> = statements.iter().map(|statement| statement.duration().is_some()).collect();
    assert_eq!(ends, [false, true, true]);
    assert_eq!(statements.gaps(), [""; 0]);
    statements.assert_count(3);
    statements.assert_no_repeats(3);
}

#[test]
fn full_scans_are_not_known_of_a_statement_without_its_end() {
    static SCANS: Template = Template::based_on(&SHOP).watch(Limits::new().full_scans(1000));
    let engine = SCANS.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let mut items = connection.prepare("SELECT id FROM item").unwrap();
    let recording = engine.record();
    let mut rows = items.query([]).unwrap();
    rows.next().unwrap();
    let statements = recording.stop();
    let message = message_of(|| statements.assert_no_full_scans(1000));
    let expected = "the end of 1 statement on engine ";
    assert!(message.starts_with(expected) && message.contains(" was not recorded, so its full scans "), "{message}");
    assert!(message.ends_with("\nSELECT id FROM item -- its end was not recorded"), "{message}");
    assert!(message_of(|| drop(engine)).contains(&format!(" can't be checked: {expected}")));
    drop(rows);
}

#[test]
fn statements_of_each_kind_are_counted() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let sql = "PRAGMA user_version; BEGIN; SELECT 1; DELETE FROM change; COMMIT; ANALYZE";
    let (_, statements) = engine.recorded(|| connection.execute_batch(sql).unwrap());
    let counts =
        [&statements, &statements.reads(), &statements.writes(), &statements.transactions(), &statements.others()];
    assert_eq!(counts.map(|statements| statements.count()), [2, 1, 1, 2, 2]);
    let pragmas = statements.others().matching(|statement| statement.sql().starts_with("PRAGMA"));
    pragmas.assert_count(1);
    assert!(message_of(|| pragmas.assert_count(2)).starts_with("expected 2 other statements on engine "));
}

#[test]
fn recordings_run_at_the_same_time() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.pooled_connection().unwrap();
    let outer = engine.record();
    connection.execute_batch("SELECT 1").unwrap();
    let (_, inner) = engine.recorded(|| connection.execute_batch("SELECT 2").unwrap());
    connection.execute_batch("SELECT 3").unwrap();
    assert_eq!(sql(&inner), ["SELECT 2"]);
    assert_eq!(sql(&outer.stop()), ["SELECT 1", "SELECT 2", "SELECT 3"]);
}

#[test]
fn many_threads_lose_no_statement() {
    let engine = SHOP.new_engine().unwrap();
    let start = Barrier::new(8);
    let (_, statements) = engine.recorded(|| {
        thread::scope(|scope| {
            for thread in 0..8 {
                let (engine, start) = (&engine, &start);
                scope.spawn(move || {
                    start.wait();
                    for n in 0..100 {
                        let connection =
                            if thread % 2 == 0 { Some(Connection::open(engine.uri()).unwrap()) } else { None };
                        let lent = engine.pooled_connection().unwrap();
                        connection.as_ref().unwrap_or(&lent).query_row("SELECT ?1", [n], |_| Ok(())).unwrap();
                    }
                });
            }
        });
    });
    statements.assert_count(800);
    assert!(statements.iter().all(|statement| statement.rows() == 1 && statement.duration().is_some()));
}

#[test]
fn the_newest_statements_are_kept_and_all_are_counted() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let recording = engine.record().limit(10);
    for n in 0..25 {
        connection.query_row("SELECT ?1", [n], |_| Ok(())).unwrap();
    }
    connection.execute("UPDATE item SET price = 1", []).unwrap();
    let statements = recording.stop();
    assert_eq!(statements.iter().count(), 10);
    assert_eq!(statements.iter().next().unwrap().expanded_sql(), "SELECT 16");
    statements.assert_count(26);
    statements.reads().assert_count(25);
    assert_eq!(statements.gaps(), [""; 0]);
    let message = message_of(|| statements.of_table("item").assert_count(1));
    assert!(
        message
            .contains("is not complete: only the newest 10 statements were kept, and 16 older ones were counted only"),
        "{message}"
    );
    message_of(|| statements.assert_no_repeats(100));
    message_of(|| statements.assert_no_full_scans(100));
    assert!(statements.to_string().ends_with("(and 16 statements before these)"), "{statements}");
}

#[test]
fn the_newest_10_000_statements_are_kept() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let mut select = connection.prepare("SELECT ?1").unwrap();
    let (_, statements) = engine.recorded(|| {
        for n in 0..10_001 {
            assert_eq!(select.query_row([n], |row| row.get(0)), Ok(n));
        }
    });
    assert_eq!((statements.count(), statements.iter().count()), (10_001, 10_000));
    let [first, last] = [statements.iter().next(), statements.iter().last()].map(Option::unwrap);
    assert_eq!([first, last].map(Statement::expanded_sql), ["SELECT 1", "SELECT 10000"]);
}

#[test]
fn a_long_value_is_cut() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let (_, statements) = engine.recorded(|| {
        connection.query_row("SELECT length(?1)", [vec![7u8; 100_000]], |_| Ok(())).unwrap();
    });
    let expanded = statements.iter().next().unwrap().expanded_sql();
    assert!(expanded.starts_with("SELECT length(x'0707") && expanded.len() < 1200, "{}", expanded.len());
}

const FAMILY: &str = "CREATE TABLE parent (id INTEGER PRIMARY KEY);
    CREATE TABLE child (parent REFERENCES parent);
    CREATE TABLE late (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
    INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1)";

unsafe extern "C" fn refuse(_: *mut c_void) -> c_int {
    1
}

/// SQLite logs no error of these, because they fail when they end.
#[test]
fn a_statement_that_can_not_be_committed_has_failed() {
    static TEMPLATE: Template = Template::sql(FAMILY);
    let engine = TEMPLATE.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let run = |sql: &str| {
        let (result, statements) = engine.recorded(|| connection.execute_batch(sql));
        let last = statements.iter().last().unwrap();
        (result.is_err(), last.error().map(str::to_owned), last.error_code(), last.changes())
    };
    let set_commit_hook = |hook: Option<unsafe extern "C" fn(*mut c_void) -> c_int>| {
        // SAFETY: the connection is open, and the hook does nothing.
        unsafe { ffi::sqlite3_commit_hook(connection.handle(), hook, ptr::null_mut()) };
    };
    let failed = (
        true,
        Some("SQLite could not commit it, for example because of a foreign key, and rolled it back".to_owned()),
        None,
        0,
    );
    for sql in ["DELETE FROM parent", "INSERT INTO child VALUES (7), (8)", "INSERT INTO late VALUES (7)"] {
        assert_eq!(run(sql), failed, "{sql}");
    }
    let foreign_key = (true, Some("constraint failed".to_owned()), Some(ffi::SQLITE_CONSTRAINT_FOREIGNKEY), 0);
    assert_eq!(run("BEGIN; INSERT INTO late VALUES (7); COMMIT"), foreign_key);
    assert_eq!(run("ROLLBACK"), (false, None, None, 0));
    assert_eq!(run("SAVEPOINT a; INSERT INTO late VALUES (7); RELEASE a"), foreign_key);
    assert_eq!(run("ROLLBACK"), (false, None, None, 0));
    set_commit_hook(Some(refuse));
    assert_eq!(run("INSERT INTO parent VALUES (7)"), failed);
    assert_eq!(run("BEGIN; INSERT INTO parent VALUES (7); COMMIT"), failed);
    set_commit_hook(None);
    for (sql, changes) in [
        ("INSERT INTO parent VALUES (7)", 1),
        ("DELETE FROM parent WHERE id = 8", 0),
        ("VACUUM", 0),
        ("PRAGMA journal_mode = TRUNCATE; PRAGMA journal_mode = DELETE", 0),
    ] {
        assert_eq!(run(sql), (false, None, None, changes), "{sql}");
    }
    // A limit that is documented.
    assert_eq!(run("BEGIN; DELETE FROM parent WHERE id = 1"), (true, None, None, 0));
}

#[test]
fn a_statement_that_is_refused_has_its_extended_code() {
    let engine = SHOP.new_engine().unwrap();
    let (reader, writer) = (engine.connect().unwrap(), engine.connect().unwrap());
    writer.busy_timeout(Duration::ZERO).unwrap();
    let insert = "INSERT INTO item (name) VALUES ('milk')";
    let (_, statements) = engine.recorded(|| {
        reader.execute_batch("BEGIN; SELECT count(*) FROM item").unwrap();
        writer.execute_batch(insert).unwrap();
        reader.execute_batch(insert).unwrap_err();
        reader.execute_batch("ROLLBACK; BEGIN IMMEDIATE").unwrap();
        writer.execute_batch(insert).unwrap_err();
    });
    let codes: Vec<_> = statements.writes().iter().map(Statement::error_code).collect();
    assert_eq!(codes, [None, Some(ffi::SQLITE_BUSY_SNAPSHOT), Some(ffi::SQLITE_BUSY)]);
}

/// SQLite does not log either of them.
#[test]
fn a_refused_statement_is_told_from_a_violated_foreign_key() {
    let (family, shop) = (Engine::new(), SHOP.new_engine().unwrap());
    family.try_transaction(|work| work.execute_batch(FAMILY)).unwrap();
    let [connection, writer] = [&family, &shop].map(|engine| engine.connect().unwrap());
    connection.execute("ATTACH ?1 AS shop", [shop.uri()]).unwrap();
    connection.busy_timeout(Duration::ZERO).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (_, statements) = family.recorded(|| {
        connection.execute_batch("BEGIN; INSERT INTO late VALUES (7)").unwrap();
        connection.execute("INSERT INTO shop.item (name) VALUES ('milk')", []).unwrap_err();
        connection.execute_batch("COMMIT").unwrap_err();
    });
    let codes: Vec<_> = statements.iter().skip(1).map(Statement::error_code).collect();
    assert_eq!(codes, [None, Some(ffi::SQLITE_BUSY), Some(ffi::SQLITE_CONSTRAINT_FOREIGNKEY)]);
}

/// SQLite can't compile it again.
#[test]
fn a_statement_whose_table_is_gone_has_failed() {
    let engine = Engine::new();
    let [connection, other] = [(); 2].map(|()| engine.connect().unwrap());
    other.execute_batch("CREATE TABLE t (a)").unwrap();
    let mut insert = connection.prepare("INSERT INTO t VALUES (2)").unwrap();
    other.execute_batch("DROP TABLE t").unwrap();
    let (result, statements) = engine.recorded(|| insert.execute([]));
    assert_eq!(result.unwrap_err().to_string(), "no such table: t");
    let [statement] = statements.iter().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((statement.error_code(), statement.changes()), (Some(ffi::SQLITE_SCHEMA), 0));
}

const STATEMENTS: [&str; 26] = [
    "BEGIN",
    "BEGIN IMMEDIATE",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT a",
    "RELEASE a",
    "ROLLBACK TO a",
    "INSERT INTO parent VALUES (2)",
    "INSERT INTO parent VALUES (7), (8), (9) RETURNING id",
    "INSERT OR IGNORE INTO parent VALUES (1)",
    "INSERT OR REPLACE INTO parent VALUES (1)",
    "INSERT OR ROLLBACK INTO parent VALUES (1)",
    "INSERT OR FAIL INTO parent VALUES (6), (1)",
    "UPDATE parent SET id = id + 1",
    "DELETE FROM parent",
    "DELETE FROM parent WHERE id = 77",
    "INSERT INTO child VALUES (3)",
    "DELETE FROM child",
    "INSERT INTO late VALUES (4)",
    "DELETE FROM late",
    "SELECT * FROM parent",
    "PRAGMA user_version = 4",
    "CREATE TABLE IF NOT EXISTS another (a)",
    "DROP TABLE IF EXISTS another",
    "REINDEX",
    "VACUUM",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// But for foreign keys that are checked at once within a transaction, and for statements that SQLite can't compile again.
    #[test]
    fn the_recorded_errors_are_those_that_the_code_gets(steps in vec((0..2usize, 0..STATEMENTS.len()), 1..80)) {
        static TEMPLATE: Template = Template::sql(FAMILY);
        let engine = TEMPLATE.new_engine().unwrap();
        let connections = [(); 2].map(|()| engine.connect().unwrap());
        connections.iter().for_each(|connection| connection.busy_timeout(Duration::ZERO).unwrap());
        for (index, sql) in steps {
            let (connection, sql) = (&connections[index], STATEMENTS[sql]);
            let was_autocommit = connection.is_autocommit();
            let Ok(mut statement) = connection.prepare(sql) else { continue };
            let (result, statements) = engine.recorded(|| {
                let mut rows = statement.raw_query();
                while rows.next()?.is_some() {}
                Ok::<(), rusqlite::Error>(())
            });
            let error = result.err().map(|error| (error.to_string(), error.sqlite_error().unwrap().extended_code));
            let Some(recorded) = statements.iter().last() else {
                prop_assert!(error.is_some(), "{sql} is not recorded");
                continue;
            };
            match (&error, recorded.error_code()) {
                (Some((message, _)), Some(ffi::SQLITE_SCHEMA)) => prop_assert!(message.starts_with("no such table")),
                (Some((_, code)), Some(recorded)) => prop_assert_eq!(*code, recorded, "{} {:?}", sql, error),
                (Some((_, ffi::SQLITE_CONSTRAINT_FOREIGNKEY)), None) if !was_autocommit => {}
                _ => prop_assert_eq!(error.is_some(), recorded.error().is_some(), "{} {:?} {}", sql, error, recorded),
            }
        }
    }
}

/// SQLite's log is of the thread, not of a statement.
#[test]
fn the_errors_of_other_statements_between_two_rows_are_not_its_own() {
    let engine = SHOP.new_engine().unwrap();
    let [connection, other] = [(); 2].map(|()| engine.connect().unwrap());
    let not_recorded = SHOP.new_engine().unwrap().connect().unwrap();
    let elsewhere = Connection::open_in_memory().unwrap();
    elsewhere.execute_batch("CREATE TABLE t (a UNIQUE); INSERT INTO t VALUES (1)").unwrap();
    let twice = "INSERT INTO item (name) SELECT name FROM item";
    let (_, statements) = engine.recorded(|| {
        for fail in [
            &|| connection.prepare("SELECT a FROM nowhere").map(drop).unwrap_err(),
            &|| connection.execute_batch(twice).unwrap_err(),
            &|| other.execute_batch(twice).unwrap_err(),
            &|| not_recorded.execute_batch(twice).unwrap_err(),
            &|| elsewhere.execute_batch("INSERT INTO t VALUES (1)").unwrap_err(),
        ] as [&dyn Fn() -> rusqlite::Error; 5]
        {
            let mut select = connection.prepare("SELECT name FROM item").unwrap();
            let mut rows = select.query([]).unwrap();
            while rows.next().unwrap().is_some() {
                fail();
            }
        }
    });
    for statement in statements.reads().iter() {
        assert_eq!((statement.error(), statement.rows()), (None, 3));
    }
    let failed = statements.writes();
    assert_eq!(failed.count(), 6);
    assert!(failed.iter().all(|statement| statement.error() == Some("UNIQUE constraint failed: item.name")));
}

/// SQLite logs the error of a statement, and then calls the hook, which logs another one.
#[test]
fn an_error_that_a_hook_logs_does_not_hide_that_of_the_statement() {
    unsafe extern "C" fn fail(_: *mut c_void) {
        Connection::open_in_memory().unwrap().prepare("SELECT a FROM nowhere").map(drop).unwrap_err();
    }
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    // SAFETY: the connection is open, and the hook does not use it.
    unsafe { ffi::sqlite3_rollback_hook(connection.handle(), Some(fail), ptr::null_mut()) };
    let (result, statements) = engine.recorded(|| connection.execute_batch("INSERT INTO item (name) VALUES ('tea')"));
    assert_eq!(result.unwrap_err().to_string(), "UNIQUE constraint failed: item.name");
    assert_eq!(statements.iter().next().unwrap().error(), Some("UNIQUE constraint failed: item.name"));
}

/// The log is of the thread.
#[test]
fn an_earlier_error_of_the_same_text_is_not_its_own() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let elsewhere = Connection::open_in_memory().unwrap();
    elsewhere.execute_batch("CREATE TABLE item (name UNIQUE); INSERT INTO item VALUES ('milk')").unwrap();
    let insert = "INSERT INTO item (name) VALUES ('milk')";
    let (_, statements) = engine.recorded(|| {
        elsewhere.execute_batch(insert).unwrap_err();
        connection.execute_batch(insert).unwrap();
    });
    assert_eq!(statements.iter().map(Statement::error).collect::<Vec<_>>(), [None]);
}

/// SQLite calls the hook between the error of the statement and its end.
#[test]
fn a_hook_that_uses_an_engine_does_not_hide_the_error_of_the_statement() {
    unsafe extern "C" fn count(other: *mut c_void) {
        // SAFETY: `other` is a connection that lives longer than the one with the hook.
        let other: &Connection = unsafe { &*other.cast() };
        other.query_row("SELECT count(*) FROM item", [], |_| Ok(())).unwrap();
    }
    let engines = [(); 2].map(|()| SHOP.new_engine().unwrap());
    let other = engines[1].connect().unwrap();
    let connection = engines[0].connect().unwrap();
    let argument = ptr::from_ref::<Connection>(&other).cast_mut().cast();
    // SAFETY: the connection is open, and the hook does not use it.
    unsafe { ffi::sqlite3_rollback_hook(connection.handle(), Some(count), argument) };
    let recording = engines[1].record();
    let insert = || connection.execute_batch("INSERT INTO item (name) VALUES ('tea')").unwrap_err();
    let (_, statements) = engines[0].recorded(insert);
    assert_eq!(statements.iter().next().unwrap().error_code(), Some(ffi::SQLITE_CONSTRAINT_UNIQUE));
    assert_eq!(recording.stop().iter().map(Statement::error).collect::<Vec<_>>(), [None]);
    // SAFETY: as above.
    unsafe { ffi::sqlite3_rollback_hook(connection.handle(), None, ptr::null_mut()) };
}

#[test]
fn an_error_may_have_brackets() {
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    let schema = "CREATE TABLE t (a);
        CREATE TRIGGER g BEFORE INSERT ON t BEGIN SELECT RAISE(ABORT, '[E1] not; [allowed]'); END";
    connection.execute_batch(schema).unwrap();
    let (_, statements) = engine.recorded(|| connection.execute_batch("BEGIN; INSERT INTO t VALUES (1)").unwrap_err());
    let insert = statements.writes();
    let insert = insert.iter().next().unwrap();
    assert_eq!(
        (insert.error_code(), insert.error()),
        (Some(ffi::SQLITE_CONSTRAINT_TRIGGER), Some("[E1] not; [allowed]"))
    );
}

/// The transaction is over then, so nothing is rolled back.
#[test]
fn a_commit_that_sqlite_rolls_back_is_recorded_once() {
    let engine = SHOP.new_engine().unwrap();
    let (_, statements) = engine.recorded(|| {
        let work = engine.unit_of_work().unwrap();
        work.execute("INSERT INTO item (name) VALUES ('milk')", []).unwrap();
        // SAFETY: the connection is open, and the hook does nothing.
        unsafe { ffi::sqlite3_commit_hook(work.handle(), Some(refuse), ptr::null_mut()) };
        work.commit().unwrap_err();
    });
    assert!(!sql(&statements).iter().any(|sql| sql.starts_with("ROLLBACK")), "{statements}");
}

/// SQLite logs warnings, too, for example of an index that it makes.
#[test]
fn a_warning_is_no_error() {
    let engine = SHOP.new_engine().unwrap();
    let [connection, other] = [(); 2].map(|()| engine.connect().unwrap());
    connection.execute_batch("CREATE TABLE a (x, y); CREATE TABLE b (x, y)").unwrap();
    let fill = "INSERT INTO {} WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100) SELECT n, n FROM n";
    ["a", "b"].iter().for_each(|table| connection.execute_batch(&fill.replace("{}", table)).unwrap());
    let mut join = connection.prepare("SELECT count(*) FROM a JOIN b ON a.x = b.x").unwrap();
    other.execute_batch("CREATE TABLE another (a)").unwrap();
    let (_, statements) = engine.recorded(|| {
        assert_eq!(join.query_row([], |row| row.get(0)), Ok(100)); // SQLite compiles it again
    });
    let [statement] = statements.iter().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((statement.error(), statement.rows()), (None, 1));
    assert_eq!(statement.counters().automatic_index_rows, 99);
}

#[test]
fn how_much_of_a_value_is_kept_can_be_set() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let lengths_of = |recording: Recording| {
        connection.query_row("SELECT length(?1)", [vec![7u8; 100_000]], |_| Ok(())).unwrap();
        recording.stop().iter().map(|statement| statement.expanded_sql().len()).collect::<Vec<_>>()
    };
    let whole = "SELECT length(x'')".len() + 200_000;
    assert_eq!(lengths_of(engine.record().value_limit(1_000_000)), [whole]);
    let short = lengths_of(engine.record().value_limit(20));
    assert!(short[0] < 80, "{short:?}");
    // Recordings share statements.
    let long = engine.record().value_limit(1_000_000);
    assert_eq!(lengths_of(engine.record().value_limit(20)), [whole]);
    drop(long);
    assert!(lengths_of(engine.record())[0].abs_diff(1024) < 100, "as before");
}

#[test]
fn a_long_statement_is_kept_as_written() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let sql = format!("SELECT 'tea', -- comment\n\t{}  1", "1,\n".repeat(500));
    let (_, statements) = engine.recorded(|| connection.query_row(&sql, [], |_| Ok(())).unwrap());
    assert_eq!(statements.iter().next().unwrap().sql(), sql);
}

#[test]
fn a_long_literal_in_the_text_of_a_statement_is_cut() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let (_, statements) = engine.recorded(|| {
        let long = "tea ".repeat(25_000);
        let sql = format!("SELECT length('{long}'), ?1");
        let length = connection.query_row(&sql, ["a value"], |row| row.get(0));
        assert_eq!(length, Ok(100_000));
    });
    let statement = statements.iter().next().unwrap();
    for (sql, end) in [(statement.sql(), ", ?1"), (statement.expanded_sql(), ", 'a value'")] {
        assert!(sql.starts_with("SELECT length('tea tea ") && sql.len() < 1200, "{}", sql.len());
        assert!(sql.ends_with(&format!("…'/* 100002 bytes of SQL */){end}")), "{sql}");
    }
}

#[test]
fn a_statement_names_the_unit_of_work_that_ran_it_on_a_reused_connection() {
    let engine = SHOP.new_engine().unwrap();
    let recording = engine.record();
    let (first, first_line) = here!(engine.unit_of_work().unwrap());
    first.execute_batch("SELECT 1").unwrap();
    drop(first);
    let (again, line) = here!(engine.unit_of_work().unwrap()); // on the same connection
    again.execute_batch("SELECT 2").unwrap();
    let statements = recording.stop();
    for (sql, line) in [("SELECT 1", first_line), ("SELECT 2", line)] {
        let opened_by = statements.iter().find(|statement| statement.sql() == sql).unwrap().opened_by();
        let expected = format!("the unit of work begun at tests/it/recording.rs:{line}:");
        assert!(opened_by.starts_with(&expected), "{opened_by}");
    }
}

#[test]
fn a_trace_of_the_code_s_own_makes_a_recording_incomplete() {
    let engine = SHOP.new_engine().unwrap();
    let mut own = Connection::open(engine.uri()).unwrap();
    let recording = engine.record();
    trace(&mut own);
    assert_eq!(number(&own, "SELECT count(*) FROM item"), 3);
    let statements = recording.stop();
    let [missed] = statements.gaps().try_into().unwrap();
    assert_eq!(
        missed,
        "connection 1 has a trace of its own (sqlite3_trace_v2), which replaces the recording's, so its statements are not known"
    );
    for check in [
        |statements: &Statements| statements.assert_count(0),
        |statements: &Statements| statements.assert_no_repeats(1),
        |statements: &Statements| statements.assert_no_full_scans(1),
    ] {
        let message = message_of(|| check(&statements));
        assert!(message.contains(&format!("is not complete: {missed}")), "{message}");
    }
    message_of(|| assert_constant_statements([1, 2], |_| statements.clone()));
}

/// A trace that a test leaves on a pooled connection is replaced before the next test.
#[test]
fn a_trace_of_one_s_own_ends_with_the_use_of_a_pooled_connection() {
    let engine = SHOP.new_engine().unwrap();
    trace(&mut engine.pooled_connection().unwrap());
    let connection = engine.pooled_connection().unwrap();
    let (_, statements) = engine.recorded(|| connection.execute_batch("SELECT 1").unwrap());
    statements.assert_count(1);
}

/// As documented: a lock is where a missing trace is noticed.
#[test]
fn a_trace_that_is_set_in_a_transaction_that_reads_is_not_noticed() {
    let engine = SHOP.new_engine().unwrap();
    let mut own = Connection::open(engine.uri()).unwrap();
    own.execute_batch("BEGIN; SELECT * FROM item").unwrap();
    let (_, statements) = engine.recorded(|| {
        trace(&mut own);
        assert_eq!(number(&own, "SELECT count(*) FROM item"), 3);
    });
    statements.assert_count(0);
    assert_eq!(statements.gaps(), [""; 0]);
}

/// Runs a statement on the connection that calls the SQL function.
pub(crate) fn run_within_a_statement(connection: &Connection, name: &str, sql: &'static std::ffi::CStr) {
    // SAFETY: the function is removed before the connection is closed.
    let db = unsafe { connection.handle() }.addr();
    let run = move || {
        let db = ptr::with_exposed_provenance_mut(db);
        // SAFETY: the connection calls the function, so it is open and this thread uses it.
        Ok(unsafe { ffi::sqlite3_exec(db, sql.as_ptr(), None, ptr::null_mut(), ptr::null_mut()) })
    };
    connection.create_scalar_function(name, 1, FunctionFlags::SQLITE_UTF8, move |_| run()).unwrap();
}

/// SQLite's trace gets their text as a comment, as that of statements of a trigger or a virtual table.
#[test]
fn statements_that_a_function_runs_are_recorded() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    run_within_a_statement(&connection, "reads", c"SELECT item.price FROM main.item WHERE id = 1");
    run_within_a_statement(&connection, "replaces", c"SELECT replace('a.b', '.', ',')");
    run_within_a_statement(&connection, "fails", c"INSERT INTO item (id, name) VALUES (9, 'tea')");
    let (_, statements) = engine.recorded(|| {
        assert_eq!(number(&connection, "SELECT sum(reads(id)) FROM item"), 0);
        assert_eq!(number(&connection, "SELECT replaces(1)"), 0);
        assert_eq!(number(&connection, "SELECT fails(1)"), i64::from(ffi::SQLITE_CONSTRAINT_UNIQUE));
    });
    statements.assert_count(8);
    statements.of_table("item").reads().assert_count(3 + 1);
    let failed: Vec<&str> = statements.iter().filter(|its| its.error().is_some()).map(Statement::sql).collect();
    assert_eq!(failed, ["INSERT INTO item (id, name) VALUES (9, 'tea')"], "and not the one that calls the function");
    let strict = SHOP.clone().strict().new_engine().unwrap();
    let connection = strict.connect().unwrap();
    run_within_a_statement(&connection, "writes", c"INSERT INTO change VALUES (1, 2)");
    connection.execute_batch("BEGIN; SELECT writes(1)").unwrap();
    drop(connection);
    let message = message_of(|| drop(strict));
    assert!(message.contains(", which rolled back 1 inserted row"), "{message}");
}

/// The text of the trigger's statement is that of the one that fires it.
#[test]
fn a_trigger_may_run_the_statement_that_fires_it() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let insert = "INSERT INTO change VALUES (1, 2)";
    let trigger = format!("CREATE TRIGGER again AFTER INSERT ON change BEGIN {insert}; END");
    connection.execute_batch(&trigger).unwrap();
    let (_, statements) = engine.recorded(|| connection.execute_batch(insert).unwrap());
    statements.assert_count(1);
    assert!(statements.iter().next().unwrap().duration().is_some());
    assert_eq!(number(&connection, "SELECT count(*) FROM change"), 2);
}

/// SQLite and its virtual tables run statements within a statement, too.
#[test]
fn statements_of_sqlite_and_of_virtual_tables_are_not_recorded() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let run = |sql: &str| {
        let (_, statements) = engine.recorded(|| read_all(&connection, sql));
        assert_eq!(self::sql(&statements), [sql]);
        assert_eq!(statements.gaps(), [""; 0]);
    };
    for sql in [
        "CREATE TABLE one (a)",
        "CREATE TABLE other AS SELECT * FROM item",
        "ALTER TABLE one ADD COLUMN b",
        "ALTER TABLE one RENAME COLUMN a TO c",
        "DROP TABLE one",
        "ANALYZE",
        "VACUUM",
        "REINDEX",
        "SELECT * FROM pragma_table_info('item')",
        "SELECT * FROM pragma_table_list",
        "SELECT name, sum(pgsize) FROM dbstat GROUP BY name",
        "CREATE VIRTUAL TABLE text USING fts5(name, content='item', content_rowid='id')",
        "INSERT INTO text (text) VALUES ('rebuild')",
        "SELECT * FROM text WHERE text MATCH 'tea' ORDER BY rank",
        "SELECT highlight(text, 0, '<', '>') FROM text WHERE text MATCH 'tea'",
        "INSERT INTO text (text, rowid, name) VALUES ('delete', 1, 'tea')",
        "CREATE VIRTUAL TABLE words USING fts5vocab(text, row)",
        "SELECT * FROM words",
        "CREATE VIRTUAL TABLE own USING fts5(body)",
        "INSERT INTO own VALUES ('a b c')",
        "SELECT * FROM own('b') ORDER BY bm25(own)",
        "DELETE FROM own",
        "INSERT INTO own (own, rank) VALUES ('pgsz', 64)",
        "CREATE VIRTUAL TABLE old USING fts4(body)",
        "INSERT INTO old VALUES ('a b c')",
        "SELECT snippet(old) FROM old WHERE old MATCH 'b'",
        "INSERT INTO old (old) VALUES ('optimize')",
        "CREATE VIRTUAL TABLE place USING rtree(id, x0, x1, +name)",
        "INSERT INTO place VALUES (1, 0, 1, 'here')",
        "UPDATE place SET name = 'there' WHERE x0 < 2",
        "SELECT name FROM place WHERE x1 > 0",
        "DROP TABLE place",
        "DROP TABLE old",
        "DROP TABLE own",
    ] {
        run(sql);
    }
}

/// The log of errors belongs to the process, and only the text of a statement tells whose error it is.
#[test]
fn the_error_of_a_statement_that_is_not_recorded_is_not_that_of_one_with_its_text() {
    let [engine, other] = [(); 2].map(|()| SHOP.new_engine().unwrap());
    let [connection, failing] = [&engine, &other].map(|engine| engine.connect().unwrap());
    failing.execute_batch("INSERT INTO item (id, name) VALUES (9, 'milk')").unwrap();
    let sql = "INSERT INTO item (id, name) VALUES (9, 'milk'), (10, 'salt') RETURNING id";
    let (_, statements) = engine.recorded(|| {
        let mut insert = connection.prepare(sql).unwrap();
        let mut rows = insert.query([]).unwrap();
        rows.next().unwrap();
        failing.query_row(sql, [], |_| Ok(())).unwrap_err();
        while rows.next().unwrap().is_some() {}
    });
    let [insert] = statements.iter().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((insert.error(), insert.changes()), (None, 2));
}

#[test]
fn a_blob_that_is_opened_while_an_older_statement_runs_is_no_gap() {
    let [engine, other] = [(); 2].map(|()| SHOP.new_engine().unwrap());
    let connection = Connection::open(engine.uri()).unwrap();
    connection.execute_batch("CREATE TABLE picture (data BLOB); INSERT INTO picture VALUES (zeroblob(9))").unwrap();
    let mut items = connection.prepare("SELECT id FROM item").unwrap();
    let mut rows = items.query([]).unwrap();
    rows.next().unwrap();
    assert_eq!(number(&other.connect().unwrap(), "SELECT count(*) FROM item"), 3);
    let (_, statements) = engine.recorded(|| {
        let mut blob = connection.blob_open(rusqlite::MAIN_DB, "picture", "data", 1, false).unwrap();
        std::io::Write::write_all(&mut blob, b"12345").unwrap();
    });
    assert_eq!(statements.gaps(), [""; 0]);
}

#[test]
fn an_open_blob_does_not_hide_that_code_has_set_a_trace() {
    let engine = SHOP.new_engine().unwrap();
    let mut connection = Connection::open(engine.uri()).unwrap();
    connection.execute_batch("CREATE TABLE picture (data BLOB); INSERT INTO picture VALUES (zeroblob(9))").unwrap();
    trace(&mut connection);
    let _blob = connection.blob_open(rusqlite::MAIN_DB, "picture", "data", 1, true).unwrap();
    let (_, statements) =
        engine.recorded(|| connection.execute("INSERT INTO item (name) VALUES ('milk')", []).unwrap());
    let [missed] = statements.gaps().try_into().unwrap();
    assert!(missed.contains(" has a trace of its own "), "{missed}");
}

/// Other threads use connections while one recording ends and the next one begins.
#[test]
fn recordings_that_follow_each_other_have_whole_transactions() {
    let engine = SHOP.new_engine().unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let connection = Connection::open(engine.uri()).unwrap();
                while !is_over.load(Ordering::Relaxed) {
                    let read = "SELECT name FROM item WHERE id = 1";
                    connection.execute_batch(&format!("BEGIN; {read}; {read}; COMMIT")).unwrap();
                }
            });
        }
        let check = || {
            for _ in 0..500 {
                let recording = engine.record();
                thread::sleep(Duration::from_micros(200));
                let statements = recording.stop();
                let mut owners = std::collections::BTreeMap::new();
                for connection in 1..=2 {
                    let own: Vec<&Statement> = statements.iter().filter(|its| its.connection() == connection).collect();
                    for pair in own.windows(2) {
                        assert!(pair[0].duration().is_some(), "its end is missing: {}", pair[0]);
                        let ends = pair[0].sql() == "COMMIT";
                        assert_eq!(
                            pair[0].transaction() == pair[1].transaction(),
                            !ends,
                            "{} and {}",
                            pair[0],
                            pair[1]
                        );
                    }
                    for number in own.iter().filter_map(|its| its.transaction()) {
                        assert_eq!(*owners.entry(number).or_insert(connection), connection, "transaction {number}");
                    }
                }
            }
        };
        let checked = catch_unwind(AssertUnwindSafe(check));
        is_over.store(true, Ordering::Relaxed);
        checked.unwrap();
    });
}

#[test]
fn a_recording_replaces_a_trace_that_code_has_set_on_a_pooled_connection() {
    let engine = SHOP.new_engine().unwrap();
    let mut connection = engine.pooled_connection().unwrap();
    trace(&mut connection);
    let (_, statements) = engine.recorded(|| number(&connection, "SELECT count(*) FROM item"));
    statements.assert_count(1);
}

/// As documented: it takes no lock.
#[test]
fn a_statement_without_a_lock_does_not_show_that_code_has_set_a_trace() {
    let engine = SHOP.new_engine().unwrap();
    let mut own = Connection::open(engine.uri()).unwrap();
    trace(&mut own);
    let (_, statements) = engine.recorded(|| own.execute_batch("SELECT 1").unwrap());
    statements.assert_count(0);
    assert_eq!(statements.gaps(), [""; 0]);
}

#[test]
fn explain_is_not_recorded() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let (_, statements) = engine.recorded(|| {
        for sql in ["EXPLAIN SELECT * FROM item", "EXPLAIN QUERY PLAN DELETE FROM item"] {
            read_all(&connection, sql);
        }
    });
    statements.assert_count(0);
    assert_eq!((statements.iter().count(), statements.gaps()), (0, vec![]));
}

/// Does nothing in an ordinary run of the tests. The automatic extensions are those of the whole process.
#[test]
fn child_without_automatic_extensions() {
    if env::var(ROLE).is_err() {
        return;
    }
    let engine = SHOP.new_engine().unwrap();
    let (_, statements) = engine.recorded(|| {
        // SAFETY: it needs no preparation.
        unsafe { ffi::sqlite3_reset_auto_extension() };
        let connection = Connection::open(engine.uri()).unwrap();
        assert_eq!(number(&connection, "SELECT count(*) FROM item"), 3);
    });
    let [missed] = statements.gaps().try_into().unwrap();
    assert!(missed.contains(" was opened without SQLite's automatic extensions, so its statements are "), "{missed}");
    let message = message_of(|| statements.assert_count(0));
    assert!(message.contains(&format!("is not complete: {missed}")), "{message}");
    panic!("all of it is as expected");
}

#[test]
fn a_connection_that_sqlite_opens_without_extensions_makes_a_recording_incomplete() {
    let mut command = Command::new(env::current_exe().unwrap());
    let folder = tempfile::tempdir().unwrap();
    command
        .args(["--exact", "recording::child_without_automatic_extensions"])
        .env("RUSQLITE_FIXTURES_DIR", folder.path());
    let output = String::from_utf8(command.env(ROLE, "1").output().unwrap().stdout).unwrap();
    assert!(output.contains("\nall of it is as expected\n"), "{output}");
}

#[test]
fn an_attached_engine_makes_a_recording_incomplete() {
    let engine = SHOP.new_engine().unwrap();
    let file = Connection::open_in_memory().unwrap();
    let (_, statements) = engine.recorded(|| {
        file.execute("ATTACH ?1 AS shop", [engine.uri()]).unwrap();
        assert_eq!(number(&file, "SELECT count(*) FROM shop.item"), 3);
    });
    let [missed] = statements.gaps().try_into().unwrap();
    assert!(missed.starts_with("connection 1 has the engine attached"), "{missed}");
}

#[test]
fn statements_of_a_table_are_found() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let (_, statements) = engine.recorded(|| {
        connection
            .execute_batch(
                "SELECT count(*) FROM item; SELECT * FROM cheap; UPDATE item SET price = 2 WHERE id = 1; SELECT 1",
            )
            .unwrap();
        connection.execute_batch("CREATE TABLE gone (a); INSERT INTO gone VALUES (1); DROP TABLE gone").unwrap();
    });
    statements.of_table("ITEM").assert_count(3);
    statements.of_table("item").writes().assert_count(1);
    assert_eq!(sql(&statements.of_table("change")), ["UPDATE item SET price = 2 WHERE id = 1"], "by a trigger");
    assert!(sql(&statements.of_table("gone")).contains(&"INSERT INTO gone VALUES (1)"));
    statements.of_table("nothing").assert_count(0);
}

/// Without a connection, SQLite can't say anything of the statements.
#[test]
fn statements_are_found_by_their_text_if_on_connect_fails() {
    static FAILS: AtomicBool = AtomicBool::new(false);
    static WITH_SETUP: Template = Template::based_on(&SHOP).on_connect(|_| match FAILS.load(Ordering::Relaxed) {
        true => Err("it fails".into()),
        false => Ok(()),
    });
    let engine = WITH_SETUP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let (_, statements) = engine.recorded(|| {
        read_all(&connection, "SELECT * FROM cheap WHERE price > 0 /* not item */");
        connection.execute_batch("UPDATE item SET price = price").unwrap();
    });
    statements.of_table("change").assert_count(1);
    assert_eq!(statements.full_scans(2)[0].tables, ["item"]);
    FAILS.store(true, Ordering::Relaxed);
    statements.of_table("change").assert_count(0);
    statements.of_table("ITEM").assert_count(2);
    let scans = statements.full_scans(2);
    assert_eq!(scans.len(), 2);
    assert!(scans.iter().all(|scan| scan.tables.is_empty() && scan.plan.is_empty() && scan.rows == 3), "{scans:?}");
}

#[test]
fn a_wrong_count_shows_the_statements() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let (_, statements) = engine.recorded(|| {
        for id in 1..=3 {
            connection.query_row("SELECT name FROM item\n  WHERE id = ?1", [id], |_| Ok(())).unwrap();
        }
        connection.execute("INSERT INTO item VALUES (1, 'cup', 2)", []).unwrap_err();
    });
    let message = message_of(|| statements.assert_count(1));
    let (first, table) = message.split_once('\n').unwrap();
    assert!(first.starts_with("expected 1 statement on engine ") && first.ends_with(", found 4:"), "{first}");
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "    3 x SELECT name FROM item WHERE id = ?1");
    assert!(
        lines[1].starts_with(
            "    1 x INSERT INTO item VALUES (1, 'cup', 2) -- failed: UNIQUE constraint failed: item.id, "
        )
    );
    assert_eq!(lines.len(), 2);
    statements.reads().writes().assert_count(0);
    let message = message_of(|| statements.writes().assert_count(2));
    assert!(message.starts_with("expected 2 writes on engine "), "{message}");
    let message = message_of(|| statements.transactions().assert_count(1));
    assert!(message.ends_with(":\n  (none)"), "{message}");
}

#[test]
fn repeated_statements_are_found() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let (_, statements) = engine.recorded(|| {
        for id in [1, 2, 3, 3] {
            connection.query_row("SELECT name FROM item WHERE id = ?1", [id], |_| Ok(())).unwrap();
        }
        for id in 1..=3 {
            connection.query_row(&format!("SELECT price FROM item WHERE id = {id}"), [], |_| Ok(())).unwrap();
        }
        connection.execute_batch("BEGIN; COMMIT; BEGIN; COMMIT; BEGIN; COMMIT; BEGIN; COMMIT; SELECT 1").unwrap();
    });
    let repeats = statements.repeats(2);
    let found: Vec<_> = repeats.iter().map(|repeat| (&*repeat.sql, repeat.count, repeat.distinct)).collect();
    assert_eq!(found, [("SELECT name FROM item WHERE id = ?1", 4, 3), ("SELECT price FROM item WHERE id = ?", 3, 3)]);
    assert_eq!(statements.repeats(3).len(), 1);
    statements.assert_no_repeats(4);
    let message = message_of(|| statements.assert_no_repeats(3));
    assert!(message.starts_with("SQL that ran more than 3 times on engine "), "{message}");
    let repeat = "    4 x SELECT name FROM item WHERE id = ?1 -- 3 distinct statements, by the connection opened at tests/it/recording.rs:";
    assert!(message.contains(repeat), "{message}");
    let called_from: Vec<&str> = message.lines().skip(2).collect();
    assert!(called_from[0].starts_with("        called from tests/it/recording.rs:"), "{message}");
    assert!(called_from[1].starts_with("               from tests/it/recording.rs:"), "{message}");
    let prices = statements.reads().matching(|statement| statement.sql().contains("price")).repeats(1);
    assert_ne!(prices[0].called_from[0], repeats[0].called_from[0], "{prices:?}");
}

fn names_one_by_one(connection: &Connection) -> Vec<String> {
    let ids: Vec<i64> = connection
        .prepare("SELECT id FROM item")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap();
    let name = |id| connection.query_row("SELECT name FROM item WHERE id = ?1", [id], |row| row.get(0)).unwrap();
    ids.into_iter().map(name).collect()
}

fn names(connection: &Connection) -> Vec<String> {
    let mut items = connection.prepare("SELECT name FROM item").unwrap();
    items.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

#[test]
fn a_number_of_statements_that_grows_with_the_data_is_found() {
    let run = |read: fn(&Connection) -> Vec<String>| {
        move |size: usize| {
            let engine = SHOP.new_engine().unwrap();
            let connection = engine.pooled_connection().unwrap();
            for n in 0..size {
                connection.execute("INSERT INTO item (name) VALUES ('item ' || ?1)", [n as i64]).unwrap();
            }
            engine.recorded(|| assert_eq!(read(&connection).len(), 3 + size)).1
        }
    };
    assert_constant_statements([2, 20], run(names));
    let message = message_of(|| assert_constant_statements([2, 20], run(names_one_by_one)));
    assert!(message.contains("grow with the data: 6 for 2 rows, 24 for 20:"), "{message}");
    const QUERY: &str = "\n  5 -> 23 x SELECT name FROM item WHERE id = ?1\n        called from tests/it/recording.rs:";
    assert!(message.contains(QUERY), "{message}");
    assert_eq!(message.matches(" -> ").count(), 1, "the other statement ran once for each size: {message}");
}

#[test]
fn sizes_that_do_not_grow_are_refused() {
    for sizes in [[2, 2], [20, 2]] {
        let message = message_of(|| assert_constant_statements(sizes, |_| unreachable!("nothing is run")));
        let [fewer, more] = sizes;
        let expected =
            format!("the sizes are [{fewer}, {more}]: the second number of rows must be larger than the first");
        assert_eq!(message, expected);
    }
}

#[test]
fn full_scans_are_found_with_table_and_plan() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let insert = "INSERT INTO item (name, price) WITH RECURSIVE n (n) AS (SELECT 4 UNION ALL SELECT n + 1 FROM n WHERE n < 100) SELECT 'item ' || n, n FROM n";
    connection.execute(insert, []).unwrap();
    let (_, statements) = engine.recorded(|| {
        let by = |sql: &str| connection.query_row(sql, [50], |row| row.get::<_, i64>(0)).optional().unwrap();
        assert_eq!(by("SELECT id FROM item WHERE price = ?1 OR price = -1"), Some(50));
        assert_eq!(by("SELECT price FROM item WHERE id = ?1"), Some(50));
        connection.execute_batch("SELECT name FROM item LIMIT 1").unwrap();
    });
    let [scan] = statements.full_scans(40).try_into().unwrap();
    assert_eq!((scan.tables, scan.statement.rows()), (vec!["item".to_owned()], 1));
    assert!((49..=100).contains(&scan.rows), "{}", scan.rows);
    assert_eq!(scan.plan, "SCAN item\n");
    statements.assert_no_full_scans(100);
    let message = message_of(|| statements.assert_no_full_scans(20));
    assert!(message.starts_with("full scans of more than 20 rows on engine "), "{message}");
    for part in ["SELECT id FROM item WHERE price = 50 OR price = -1", " rows of item\n    plan: SCAN item"] {
        assert!(message.contains(part), "{part:?} is missing: {message}");
    }
}

#[test]
fn the_tables_of_a_full_scan_have_their_own_names() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    connection.execute_batch("INSERT INTO change VALUES (1, 3), (2, 4), (3, 30)").unwrap();
    connection.execute_batch("CREATE VIEW priced AS SELECT price FROM item i WHERE price < 1000").unwrap();
    let cases: [(&str, &[&str]); 24] = [
        ("SELECT * FROM item WHERE price > 3", &["item"]),
        ("SELECT * FROM item AS i WHERE i.price > 3", &["item"]),
        ("SELECT * FROM \"item\" 'an i' WHERE price > 3", &["item"]),
        ("SELECT * FROM item AS change WHERE change.price > 3", &["item"]),
        ("SELECT * FROM item AS a CROSS JOIN [change] b CROSS JOIN `item` AS C", &["item", "change", "item"]),
        ("WITH w AS MATERIALIZED (SELECT price FROM item) SELECT * FROM w AS i", &["item", "i"]),
        ("SELECT price AS i FROM change AS i", &["change"]),
        ("SELECT * FROM main.item WHERE price > 3", &["item"]),
        ("SELECT * FROM MAIN.item WHERE price > 3", &["item"]),
        ("SELECT * FROM main.item AS i WHERE i.price > 3", &["item"]),
        ("SELECT name FROM item", &["item"]), // by a covering index
        ("SELECT * FROM item CROSS JOIN main.change", &["item", "change"]),
        ("SELECT * FROM item LEFT JOIN main.change ON change.price > item.price", &["item", "change"]),
        ("SELECT * FROM item WHERE EXISTS (SELECT * FROM change WHERE change.price > item.price)", &["item", "change"]),
        ("SELECT * FROM item CROSS JOIN json_each('[1]') CROSS JOIN (VALUES (1), (2))", &["item", "json_each"]),
        ("SELECT * FROM item change CROSS JOIN change item", &["item", "change"]),
        // The alias itself, where it has several meanings, or where it is in a view.
        ("SELECT price FROM item x UNION ALL SELECT price FROM change x", &["x", "x"]),
        ("SELECT * FROM item x WHERE price < (SELECT avg(price) FROM change x)", &["x", "x"]),
        ("SELECT * FROM (SELECT DISTINCT price FROM item i) i", &["i", "i"]),
        ("WITH i AS MATERIALIZED (SELECT price FROM item i) SELECT * FROM i", &["i", "i"]),
        ("SELECT * FROM priced", &["i"]),
        ("SELECT * FROM priced CROSS JOIN change i", &["i", "i"]),
        ("SELECT * FROM priced CROSS JOIN change c", &["i", "change"]),
        ("SELECT * FROM priced CROSS JOIN change i ON i.rowid = 5", &["i"]),
    ];
    for (sql, expected) in cases {
        let (_, statements) = engine.recorded(|| read_all(&connection, sql));
        let [scan] = statements.full_scans(1).try_into().unwrap();
        assert_eq!(scan.tables, expected, "{scan}");
    }
}

#[test]
fn a_statement_after_an_empty_one_has_a_plan() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let scan = "SELECT name FROM item WHERE price > 100";
    let (_, statements) = engine.recorded(|| connection.execute_batch(&format!("SELECT 1;; {scan}")).unwrap());
    let [scanned] = statements.full_scans(1).try_into().unwrap();
    assert_eq!((scanned.statement.sql(), &*scanned.plan), (scan, "SCAN item\n"));
}

#[test]
fn a_plan_shows_which_part_of_a_statement_has_a_step() {
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let sql = "SELECT 1 FROM item WHERE price IN (SELECT price FROM item WHERE price > 0 UNION SELECT 4) AND price > 0";
    let (_, statements) = engine.recorded(|| read_all(&connection, sql));
    let [scan] = statements.full_scans(1).try_into().unwrap();
    let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let steps = explain.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(3)?)));
    let steps: Vec<(i64, i64, String)> = steps.unwrap().collect::<rusqlite::Result<_>>().unwrap();
    let level = |id: i64| {
        std::iter::successors(Some(id), |id| steps.iter().find(|step| step.0 == *id).map(|step| step.1)).count() - 2
    };
    let expected: String = steps.iter().map(|(id, _, step)| format!("{}{step}\n", "  ".repeat(level(*id)))).collect();
    assert_eq!(scan.plan, expected);
    assert!(scan.plan.starts_with("SCAN item\n") && scan.plan.contains("\n    "), "{}", scan.plan);
}

/// SQLite counts the steps from one row to the next.
#[test]
fn a_table_of_as_many_rows_as_are_allowed_may_be_scanned() {
    static ALLOWED: Template = Template::based_on(&SHOP).watch(Limits::new().full_scans(3));
    static EXCEEDED: Template = Template::based_on(&SHOP).watch(Limits::new().full_scans(2));
    let scan = |template: &Template| {
        let engine = template.new_engine().unwrap();
        let connection = engine.connect().unwrap();
        let scan = || assert_eq!(number(&connection, "SELECT count(*) FROM item WHERE price > 0"), 3);
        let statements = engine.recorded(scan).1;
        drop(connection);
        statements
    };
    let statements = scan(&ALLOWED);
    assert_eq!(statements.full_scans(2)[0].rows, 3);
    statements.assert_no_full_scans(3);
    let message = message_of(|| drop(scan(&EXCEEDED)));
    assert!(message.contains("full scans of more than 2 rows on "), "{message}");
    let engine = SHOP.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    connection.execute_batch("DELETE FROM item WHERE id > 1").unwrap();
    let (_, statements) = engine.recorded(|| read_all(&connection, "SELECT * FROM item WHERE price > 0"));
    assert!(statements.full_scans(0).is_empty(), "a scan of one row has no step");
}

#[test]
fn a_recording_that_is_dropped_ends() {
    let engine = SHOP.new_engine().unwrap();
    drop(engine.record());
    let connection = engine.connect().unwrap();
    connection.execute_batch("SELECT 1").unwrap();
    let (_, statements) = engine.recorded(|| {});
    statements.assert_count(0);
    assert_eq!(format!("{:?}", Engine::new().record()).split("engine:").count(), 2);
}

/// The engine of a template goes to the next test with its connections.
#[test]
fn the_next_test_records_its_own_statements() {
    let template: &'static Template = &SHOP;
    for round in 0..3 {
        let engine = template.new_engine().unwrap();
        let (_, statements) = engine.recorded(|| {
            engine.transaction(|work| Ok(work.execute("UPDATE item SET price = ?1", [round]).map(drop)?)).unwrap();
        });
        assert_eq!(sql(&statements), ["BEGIN IMMEDIATE", "UPDATE item SET price = ?1", "COMMIT"], "{round}");
    }
}

/// What the crate does to keep its connections clean is not the code's.
#[test]
fn the_crate_s_own_statements_are_not_recorded() {
    static SET_UP: Template = Template::sql("CREATE TABLE t (a)")
        .on_connect(|connection| Ok(connection.execute_batch("PRAGMA cache_size = 100; SELECT 'set up'")?));
    let engine = SET_UP.new_engine().unwrap();
    let (_, statements) = engine.recorded(|| {
        drop(engine.connect().unwrap());
        for _ in 0..3 {
            let connection = engine.pooled_connection().unwrap();
            connection.execute_batch("PRAGMA synchronous = OFF").unwrap();
            connection.execute("INSERT INTO t VALUES (1)", []).unwrap();
        }
        engine.reset().unwrap();
        engine.snapshot();
        engine.fork();
    });
    assert_eq!(sql(&statements), ["PRAGMA synchronous = OFF", "INSERT INTO t VALUES (1)"].repeat(3));
    let connection = engine.connect().unwrap();
    let (_, statements) = engine.recorded(|| {
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        drop(connection); // which asks whether it has changed something
    });
    assert_eq!(sql(&statements), ["BEGIN IMMEDIATE"]);
}

static WATCHED: Template = Template::based_on(&SHOP)
    .watch(Limits::new().statements(20).repeats(3).full_scans(50).except(&["/* all */", "recursive"]));

fn read_each(engine: &Engine, ids: std::ops::RangeInclusive<i64>) {
    let connection = engine.connect().unwrap();
    for id in ids {
        connection.query_row("SELECT name FROM item WHERE id = ?1", [id], |_| Ok(())).unwrap();
    }
}

#[test]
fn a_watched_engine_that_keeps_the_limits_is_reused() {
    for _ in 0..2 {
        let engine = WATCHED.new_engine().unwrap();
        read_each(&engine, 1..=3);
        engine.unwatched(|| read_each(&engine, 1..=3));
        let connection = engine.pooled_connection().unwrap();
        for _ in 0..9 {
            connection.execute_batch("SELECT count(*) FROM item /* all */").unwrap();
        }
    }
}

#[test]
fn each_limit_is_checked() {
    let scan = "WITH RECURSIVE n (n) AS (SELECT 4 UNION ALL SELECT n + 1 FROM n WHERE n < 100) INSERT INTO item (name) SELECT 'recursive' || n FROM n";
    type Case = (fn(&Engine), &'static str);
    let cases: [Case; 3] = [
        (
            |engine| {
                read_each(engine, 1..=3);
                read_each(engine, 1..=1);
            },
            "SQL that ran more than 3 times on engine ",
        ),
        (
            |engine| {
                let connection = engine.connect().unwrap();
                for n in 0..21 {
                    connection.execute_batch(&format!("SELECT 1{}", "+1".repeat(n))).unwrap();
                }
            },
            "expected at most 20 statements on engine ",
        ),
        (
            |engine| {
                let connection = engine.connect().unwrap();
                connection.execute_batch("SELECT count(*) FROM item WHERE price > 0").unwrap();
            },
            "full scans of more than 50 rows on engine ",
        ),
    ];
    for (work, expected) in cases {
        let engine = WATCHED.new_engine().unwrap();
        engine.connect().unwrap().execute_batch(scan).unwrap();
        work(&engine);
        let message = message_of(|| drop(engine));
        assert!(message.starts_with("the limits of Template::watch at tests/it/recording.rs:"), "{message}");
        assert!(message.contains(&format!("are exceeded: {expected}")), "{message}");
    }
}

#[test]
fn limits_apply_again_after_an_exemption() {
    let engine = WATCHED.new_engine().unwrap();
    let fails = || engine.unwatched(|| panic!("{}", "it is caught".to_owned()));
    assert_eq!(message_of(fails), "it is caught");
    (0..2).for_each(|_| read_each(&engine, 1..=2));
    let message = message_of(|| drop(engine));
    assert!(message.contains("SQL that ran more than 3 times on engine "), "{message}");
}

/// The limits are those of one template, and of engines of a test.
#[test]
fn templates_based_on_a_watched_one_and_shared_engines_have_no_limits() {
    static CHILD: Template = Template::based_on(&WATCHED);
    static KEPT: KeptValues<()> = KeptValues::new(&WATCHED);
    let read_often = |engine: &Engine| (0..2).for_each(|_| read_each(engine, 1..=3));
    read_often(&CHILD.new_engine().unwrap());
    const URL: &str = "file:watched?mode=memory";
    read_often(&Engine::shared_with(URL, &WATCHED).unwrap());
    drop(MEMORY_ENGINES.remove(&URL.parse().unwrap()).unwrap());
    let kept = KEPT.get_or_make(|_| Ok(())).unwrap();
    read_often(kept.engine());
    kept.engine().retire();
    drop(kept);
}

#[test]
fn an_exempt_text_is_compared_as_it_is_and_the_latest_list_counts() {
    static EXEMPT: Template =
        Template::based_on(&SHOP).watch(Limits::new().statements(0).except(&["name"]).except(&["FROM item"]));
    let run = |sql: &str| {
        let engine = EXEMPT.new_engine().unwrap();
        read_all(&engine.connect().unwrap(), sql);
        catch_unwind(AssertUnwindSafe(|| drop(engine))).is_err()
    };
    assert!(!run("SELECT 1 FROM item"));
    assert!(run("SELECT name from item"), "an earlier list, and another case");
}

/// A test that fails shows its own message.
#[test]
fn limits_do_not_replace_the_message_of_a_test_that_fails() {
    let message = message_of(|| {
        let engine = WATCHED.new_engine().unwrap();
        read_each(&engine, 1..=3);
        read_each(&engine, 1..=3);
        panic!("{}", "its own".to_owned());
    });
    assert_eq!(message, "its own");
}

#[test]
fn a_watch_that_is_not_complete_fails_its_test() {
    let engine = WATCHED.new_engine().unwrap();
    let mut connection = Connection::open(engine.uri()).unwrap();
    trace(&mut connection);
    assert_eq!(number(&connection, "SELECT count(*) FROM item"), 3);
    let message = message_of(|| drop(engine));
    assert!(message.contains(" can't be checked: the recording on engine "), "{message}");
    assert!(message.contains(" is not complete: connection 1 has a trace of its own"), "{message}");
}

/// SQLite compiles the cached statement once, so it has the same address.
#[test]
fn a_trace_that_is_set_between_two_runs_of_a_statement_is_noticed() {
    let engine = SHOP.new_engine().unwrap();
    let mut connection = Connection::open(engine.uri()).unwrap();
    let run = |connection: &Connection| {
        let mut statement = connection.prepare_cached("SELECT count(*) FROM item").unwrap();
        assert_eq!(statement.query_row([], |row| row.get(0)), Ok(3));
    };
    let (_, statements) = engine.recorded(|| {
        run(&connection);
        trace(&mut connection);
        run(&connection);
    });
    let missed = statements.gaps().join("\n");
    assert!(missed.starts_with("connection 1 has a trace of its own "), "{missed}");
}

#[test]
fn limits_of_more_statements_than_are_kept_are_checked_only_by_their_number() {
    let message = |limits: Limits| {
        let engine = Box::leak(Box::new(Template::empty().watch(limits))).new_engine().unwrap();
        let connection = engine.connect().unwrap();
        let mut select = connection.prepare("SELECT 1").unwrap();
        (0..10_001).for_each(|_| assert!(select.exists([]).unwrap()));
        drop(select);
        drop(connection);
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(engine)));
        dropped.err().map_or(String::new(), |panic| *panic.downcast::<String>().unwrap())
    };
    assert_eq!(message(Limits::new().statements(10_001)), "");
    let exceeded = message(Limits::new().statements(10_000));
    assert!(exceeded.contains(" are exceeded: expected at most 10000 statements on engine "), "{exceeded}");
    for limits in
        [Limits::new().full_scans(100), Limits::new().repeats(20_000), Limits::new().statements(20_000).except(&["x"])]
    {
        let unknown = message(limits);
        assert!(unknown.contains(" can't be checked: the recording on engine "), "{unknown}");
        assert!(
            unknown.contains("only the newest 10000 statements were kept, and 1 older ones were counted only"),
            "{unknown}"
        );
        assert!(!unknown.contains("exceeded"), "{unknown}");
    }
}
