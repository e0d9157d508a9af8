//! Values that were made from an engine are reused with it, and nothing of one test reaches the next.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use rusqlite_fixtures::rusqlite::{self, Connection, OpenFlags, TransactionBehavior, ffi};
use rusqlite_fixtures::{BoxError, Engine, ErrorKind, Kept, KeptValues, Template, UnitOfWork};

use crate::leaks::{SCHEMA, SQL, leave_unfinished, view_of};
use crate::support::{deserialize, number};

/// A pool, as other libraries have: connections by the URI, set up by pragmas.
struct Pool {
    /// How many were made before it.
    number: usize,
    uri: String,
    connections: RefCell<Vec<Connection>>,
}

impl Pool {
    fn of(engine: &Engine) -> Result<Pool, BoxError> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let uri = engine.uri().to_owned();
        let pool = Pool { number: NEXT.fetch_add(1, Ordering::Relaxed), uri, connections: RefCell::default() };
        pool.grow()?;
        pool.grow()?;
        Ok(pool)
    }

    /// Opens another connection.
    fn grow(&self) -> rusqlite::Result<()> {
        let connection = Connection::open(&self.uri)?;
        connection.busy_timeout(Duration::ZERO)?; // a test must not wait for itself
        connection.execute_batch("PRAGMA foreign_keys = ON; PRAGMA synchronous = NORMAL")?;
        self.connections.borrow_mut().push(connection);
        Ok(())
    }

    fn execute(&self, sql: &str) {
        self.connections.borrow()[0].execute_batch(sql).unwrap();
    }

    fn number(&self, sql: &str) -> i64 {
        number(&self.connections.borrow()[0], sql)
    }
}

fn take(pools: &'static KeptValues<Pool>) -> Kept<Pool> {
    pools.get_or_make(Pool::of).unwrap()
}

static TEMPLATE: Template = Template::sql(SCHEMA);

const ACCOUNTS: &str = "SELECT count(*) FROM account";

#[test]
fn connections_that_are_kept_are_recorded_in_each_test() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let numbers = [(); 2].map(|()| {
        let pool = take(&POOLS);
        let (count, statements) = pool.engine().recorded(|| pool.number(ACCOUNTS));
        statements.assert_count(1);
        statements.of_table("account").reads().assert_count(1);
        (pool.number, count)
    });
    assert_eq!(numbers[0], numbers[1], "the second test has the first one's pool");
}

#[test]
fn a_value_is_reused_with_its_engine() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let pool = take(&POOLS);
    let (number, uri) = (pool.number, pool.engine().uri().to_owned());
    pool.execute("BEGIN; INSERT INTO account (owner) VALUES ('Edsger'); COMMIT; DELETE FROM entry WHERE account = 2");
    pool.engine().set_lock_timeout(Duration::ZERO);
    drop(pool);
    for _ in 0..3 {
        let pool = take(&POOLS);
        assert_eq!((pool.number, pool.engine().uri()), (number, &*uri));
        assert_eq!((pool.number(ACCOUNTS), pool.number("SELECT count(*) FROM entry")), (2, 2));
        pool.execute("INSERT INTO account (owner) VALUES ('Barbara')");
        assert_eq!(pool.number("SELECT last_insert_rowid()"), 3, "AUTOINCREMENT starts again from the template");
        pool.engine().unit_of_work().unwrap().execute("DELETE FROM account", []).unwrap();
    }
    assert_eq!(POOLS.why_dropped(), None);
}

/// (The tests in `interop` do this with sqlx.)
#[test]
fn an_async_function_makes_a_value() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let get = |make: fn(&Engine) -> Result<Pool, BoxError>| {
        let future = pin!(POOLS.get_or_make_async(async |engine: &Engine| make(engine)));
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(kept) => kept,
            Poll::Pending => panic!("it waits for nothing"),
        }
    };
    let error = get(|_| Err("not yet".into())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MakeFailed);
    let numbers = [(); 3].map(|()| {
        let pool = get(Pool::of).unwrap();
        pool.execute("DELETE FROM entry");
        pool.number
    });
    assert_eq!(numbers, [numbers[0]; 3], "{:?}", POOLS.why_dropped());
}

/// Their sessions are idle when the test ends.
#[test]
fn units_of_work_that_have_ended_do_not_prevent_reuse() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let numbers = [(); 3].map(|()| {
        let pool = take(&POOLS);
        let work = pool.engine().unit_of_work().unwrap();
        work.execute("DELETE FROM account", []).unwrap();
        work.commit().unwrap();
        let changes = number(&pool.engine().unit_of_work().unwrap(), "SELECT total_changes()");
        (pool.number, changes)
    });
    let (pool, changes) = numbers[0];
    assert!(changes > 0);
    assert_eq!(numbers, [1, 2, 3].map(|tests| (pool, tests * changes)), "the session is reused too");
}

#[test]
fn sessions_that_have_changed_the_schema_are_not_reused() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let numbers = [(); 3].map(|()| {
        let pool = take(&POOLS);
        let work = pool.engine().unit_of_work().unwrap();
        assert_eq!(number(&work, "SELECT total_changes()"), 0, "it is a new session");
        work.execute_batch("CREATE TABLE other (a); INSERT INTO other VALUES (1)").unwrap();
        work.commit().unwrap();
        pool.number
    });
    assert_eq!(numbers, [numbers[0]; 3], "{:?}", POOLS.why_dropped());
}

/// Not the template's, if `make` has written to it.
#[test]
fn each_test_begins_with_the_content_when_the_value_was_made() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let start = "CREATE TABLE setting (key, value); INSERT INTO account (owner) VALUES ('the application')";
    let make = |engine: &Engine| Pool::of(engine).inspect(|pool| pool.execute(start));
    let numbers = [(); 3].map(|()| {
        let pool = POOLS.get_or_make(make).unwrap();
        assert_eq!((pool.number(ACCOUNTS), pool.number("SELECT count(*) FROM setting")), (3, 0));
        pool.execute("DELETE FROM account; INSERT INTO setting VALUES (1, 2)");
        pool.number
    });
    assert_eq!(numbers, [numbers[0]; 3], "{:?}", POOLS.why_dropped());
}

#[test]
fn tests_at_the_same_time_have_different_values() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let (one, other) = (take(&POOLS), take(&POOLS));
    assert_ne!(one.engine(), other.engine());
    one.execute("DELETE FROM account");
    assert_eq!((one.number(ACCOUNTS), other.number(ACCOUNTS)), (0, 2));
    let mut numbers = [one.number, other.number];
    drop((one, other));
    let (one, other) = (take(&POOLS), take(&POOLS));
    numbers.reverse(); // the latest first
    assert_eq!([one.number, other.number], numbers);
}

#[test]
fn thirty_two_values_wait() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    drop((0..33).map(|_| take(&POOLS)).collect::<Vec<_>>());
    assert_eq!(POOLS.why_dropped().as_deref(), Some("32 values wait already"));
    let numbers: Vec<usize> = (0..33).map(|_| take(&POOLS)).map(|pool| pool.number).collect();
    assert_eq!(numbers, [numbers[0]; 33]);
}

/// Runs a test on a value, and returns why that value was not kept.
#[track_caller]
fn why_dropped_after(test: impl FnOnce(&Kept<Pool>)) -> String {
    static LOCK: Mutex<()> = Mutex::new(());
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let _one_at_a_time = LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let pool = take(&POOLS);
    let number = pool.number;
    test(&pool);
    drop(pool);
    let next = take(&POOLS);
    assert_eq!(next.number(ACCOUNTS), 2);
    if next.number == number { "it was kept".to_owned() } else { POOLS.why_dropped().unwrap() }
}

const IN_TRANSACTION: &str = "a connection is in a transaction, or has a statement that was not reset";
const HAS_CHANGED_SCHEMA: &str = "a connection has changed the schema";
const OUTSIDE: &str = "a connection has compiled a statement with effects outside of the engine: on a temporary table or an \
    attached database, ANALYZE, or a pragma such as journal_mode";
const FTS5_SETTINGS: &str = "a connection may have changed settings of FTS5: it has written to a table `…_config`";
const OTHER_SCHEMA: &str = "a connection has read another schema";
const STATISTICS: &str = "a connection has changed the planner's statistics, or has read the temporary schema";
const OTHER_PRAGMAS: &str = "a connection has other pragmas than when the value was made";
const STILL_THERE: &str = "a unit of work, a pooled connection or a clone of the engine still exists";

#[test]
fn why_dropped_returns_the_reason() {
    for (sql, reason) in [
        ("BEGIN; COMMIT; DELETE FROM account; SELECT random()", "it was kept"),
        ("SAVEPOINT s; DELETE FROM account; RELEASE s", "it was kept"),
        ("PRAGMA user_version = 7; PRAGMA wal_checkpoint(TRUNCATE)", "it was kept"),
        ("BEGIN", IN_TRANSACTION),
        ("BEGIN; SELECT 1 FROM account", IN_TRANSACTION),
        ("SAVEPOINT s", IN_TRANSACTION),
        ("BEGIN IMMEDIATE", "a connection holds the writer slot, or waits for it"),
        ("CREATE TABLE other (a)", HAS_CHANGED_SCHEMA),
        ("CREATE TEMP TABLE other (a)", OUTSIDE),
        ("CREATE TEMP TABLE other (a); DROP TABLE other", OUTSIDE),
        ("CREATE TEMP VIEW other AS SELECT 1", OUTSIDE),
        ("CREATE TEMP TRIGGER other AFTER INSERT ON account BEGIN SELECT 1; END", OUTSIDE),
        ("ATTACH ':memory:' AS other; DETACH other", OUTSIDE),
        ("ANALYZE", OUTSIDE),
        ("DELETE FROM sqlite_stat1", STATISTICS),
        ("PRAGMA temp.cache_size = 5", OUTSIDE),
        ("SELECT name FROM sqlite_temp_schema", STATISTICS), // opens `temp`, which `database_list` shows
        ("PRAGMA max_page_count = 1000", OUTSIDE),
        ("PRAGMA journal_mode = MEMORY", OUTSIDE),
        ("PRAGMA journal_mode = WAL", OTHER_PRAGMAS),
        ("ALTER TABLE account RENAME TO customer", HAS_CHANGED_SCHEMA),
        ("PRAGMA cache_size = 5", OTHER_PRAGMAS),
        ("PRAGMA foreign_keys = ON", OTHER_PRAGMAS), // in doubt
    ] {
        assert_eq!(why_dropped_after(|pool| pool.execute(sql)), reason, "{sql}");
    }
    assert_eq!(why_dropped_after(|pool| pool.grow().unwrap()), "it was kept");
    assert_eq!(why_dropped_after(|pool| drop(pool.connections.borrow_mut().pop())), "it was kept");
    assert_eq!(why_dropped_after(|pool| pool.engine().reset().unwrap()), "it was kept");
    assert_eq!(why_dropped_after(|pool| pool.engine().retire()), "the engine was retired");
    let read = |sql: &'static str| move |pool: &Kept<Pool>| leave_unfinished(&pool.connections.borrow()[1], sql);
    assert_eq!(why_dropped_after(read("SELECT id FROM account")), IN_TRANSACTION);
    assert_eq!(why_dropped_after(read("VALUES (1), (2)")), "it was kept", "this can't be detected");
}

#[test]
fn what_uses_the_engine_prevents_reuse() {
    let mut kept: Vec<Box<dyn std::any::Any>> = Vec::new();
    assert_eq!(why_dropped_after(|pool| kept.push(Box::new(pool.engine().clone()))), STILL_THERE);
    assert_eq!(why_dropped_after(|pool| kept.push(Box::new(pool.engine().unit_of_work().unwrap()))), STILL_THERE);
    assert_eq!(why_dropped_after(|pool| kept.push(Box::new(pool.engine().pooled_connection().unwrap()))), STILL_THERE);
    let move_out = |pool: &Kept<Pool>| {
        let mut lease = pool.engine().pooled_connection().unwrap();
        let own = std::mem::replace::<Connection>(&mut lease, Connection::open_in_memory().unwrap());
        kept.push(Box::new(own));
    };
    assert_eq!(why_dropped_after(move_out), STILL_THERE);
    let attach = |pool: &Kept<Pool>| {
        let other = Connection::open_in_memory().unwrap();
        other.execute("ATTACH ?1 AS bank", [pool.engine().uri()]).unwrap();
        kept.push(Box::new(other));
    };
    assert_eq!(why_dropped_after(attach), "a connection is being opened, or the engine is attached to one");
}

/// One of a pool may be read-only.
#[test]
fn each_connection_keeps_its_own_pragmas() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let make = |engine: &Engine| {
        let pool = Pool::of(engine)?;
        pool.connections.borrow()[1].execute_batch("PRAGMA query_only = ON")?;
        Ok(pool)
    };
    for _ in 0..3 {
        let pool = POOLS.get_or_make(make).unwrap();
        pool.execute("INSERT INTO account (owner) VALUES ('Edsger')");
        pool.grow().unwrap();
        pool.connections.borrow().last().unwrap().execute_batch("PRAGMA query_only = ON").unwrap();
    }
    assert_eq!(POOLS.why_dropped(), None, "a new connection may be as either of the two");
    POOLS.get_or_make(make).unwrap().execute("PRAGMA query_only = ON");
    POOLS.get_or_make(make).unwrap().execute("DELETE FROM entry");
    assert_eq!(POOLS.why_dropped().as_deref(), Some(OTHER_PRAGMAS));
}

/// What is compiled when the value is made can run in a test without the authorizer.
#[test]
fn a_value_that_was_made_with_a_statement_for_outside_of_the_engine_is_not_reused() {
    for sql in [
        "CREATE TEMP TABLE scratch (a)",
        "CREATE TEMP TABLE IF NOT EXISTS scratch (a)",
        "CREATE TEMP TRIGGER log AFTER INSERT ON account BEGIN DELETE FROM entry; END",
        "ATTACH ':memory:' AS other",
        "PRAGMA max_page_count = 60",
        "PRAGMA journal_mode = OFF",
        "PRAGMA temp.cache_size = 5",
        "ANALYZE",
    ] {
        let pools: &'static KeptValues<Pool> = Box::leak(Box::new(KeptValues::new(&TEMPLATE)));
        for runs in [true, false] {
            let make = |engine: &Engine| {
                let pool = Pool::of(engine)?;
                if runs {
                    pool.execute(sql);
                } else {
                    pool.connections.borrow()[0].prepare_cached(sql)?;
                }
                Ok(pool)
            };
            drop(pools.get_or_make(make).unwrap());
            drop(take(pools));
            assert_eq!(pools.why_dropped(), Some(format!("when the value was made, {OUTSIDE}")), "{sql}");
        }
    }
}

#[test]
fn a_failed_test_drops_its_value() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let number = catch_unwind(|| {
        let pool = take(&POOLS);
        pool.execute("DELETE FROM account");
        resume_unwind(Box::new(pool.number));
    });
    let number: usize = *number.unwrap_err().downcast().unwrap();
    assert_ne!(take(&POOLS).number, number);
    assert_eq!(POOLS.why_dropped().as_deref(), Some("the test panicked"));
}

#[test]
fn a_connection_that_is_no_longer_on_the_engine_prevents_reuse() {
    let bytes = Engine::new().snapshot().to_bytes();
    let replaced = |pool: &Kept<Pool>| deserialize(&mut pool.connections.borrow_mut()[0], &bytes).unwrap();
    assert_eq!(why_dropped_after(replaced), "a connection's main database was replaced (sqlite3_deserialize)");
}

#[allow(unsafe_code, reason = "the bindings don't have it")]
unsafe extern "C" {
    fn sqlite3_close_v2(db: *mut ffi::sqlite3) -> std::ffi::c_int;
}

/// sqlite3_close_v2 closes a connection when its last statement is finalized, until which it can be used.
#[test]
#[allow(unsafe_code, reason = "calls SQLite's C interface, because rusqlite does not close a connection so")]
fn a_connection_that_is_closed_but_still_used_prevents_reuse() {
    let mut statement = std::ptr::null_mut();
    let close = |pool: &Kept<Pool>| {
        let mut db = std::ptr::null_mut();
        let uri = std::ffi::CString::new(pool.engine().uri()).unwrap();
        let sql = c"INSERT INTO account (owner) VALUES ('late')";
        // SAFETY: the texts are C strings, and the results have places.
        let codes = unsafe {
            [
                ffi::sqlite3_open_v2(
                    uri.as_ptr(),
                    &mut db,
                    ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_URI,
                    std::ptr::null(),
                ),
                ffi::sqlite3_prepare_v2(db, sql.as_ptr(), -1, &mut statement, std::ptr::null_mut()),
                sqlite3_close_v2(db),
            ]
        };
        assert_eq!(codes, [ffi::SQLITE_OK; 3]);
    };
    assert_eq!(why_dropped_after(close), "a connection is being closed, or has statements that were not finalized");
    // SAFETY: the statement was prepared above, and its connection is closed when it is finalized.
    let codes = unsafe { [ffi::sqlite3_step(statement), ffi::sqlite3_finalize(statement)] };
    assert_eq!(codes, [ffi::SQLITE_DONE, ffi::SQLITE_OK], "as with no authorizer");
}

#[test]
fn content_of_another_format_prevents_reuse() {
    let other_format = "the content had another text encoding, page size or vacuum mode, or was empty";
    let shrink = |pool: &Kept<Pool>| {
        let small = Engine::new();
        small.connect().unwrap().execute_batch("PRAGMA page_size = 512; CREATE TABLE account (id)").unwrap();
        pool.engine().restore(&small.snapshot()).unwrap();
    };
    assert_eq!(why_dropped_after(shrink), other_format);
}

/// A connection keeps the default cache size of the first header that it reads.
#[test]
fn a_connection_that_was_opened_on_other_content_may_prevent_reuse() {
    let other = |default: i64| {
        let engine = TEMPLATE.new_engine().unwrap();
        engine.connect().unwrap().pragma_update(None, "default_cache_size", default).unwrap();
        engine.snapshot()
    };
    let grow_on = |default: i64| {
        move |pool: &Kept<Pool>| {
            pool.engine().restore(&other(default)).unwrap();
            pool.grow().unwrap();
            assert_eq!(number(&pool.connections.borrow()[2], "PRAGMA cache_size"), default);
            pool.engine().reset().unwrap();
        }
    };
    assert_eq!(why_dropped_after(grow_on(777)), OTHER_SCHEMA);
}

/// SQLite compiles a statement by the schema that the connection has, and finds that it is stale only for some errors.
#[test]
fn a_connection_that_has_read_another_schema_prevents_reuse() {
    const ADD: &str = "ALTER TABLE account ADD COLUMN age";
    let grow = |pool: &Kept<Pool>| {
        drop(pool.connections.borrow_mut().remove(0)); // which has changed it
        pool.grow().unwrap();
        assert_eq!(pool.connections.borrow()[1].prepare("SELECT age FROM account").unwrap().column_count(), 1);
    };
    let by_the_pool = |pool: &Kept<Pool>| {
        pool.execute(ADD);
        grow(pool);
    };
    assert_eq!(why_dropped_after(by_the_pool), OTHER_SCHEMA);
    let by_a_unit_of_work = |pool: &Kept<Pool>| {
        pool.engine().try_transaction(|work| work.execute_batch(ADD)).unwrap();
        assert_eq!(pool.number("SELECT count(age) FROM account"), 0);
    };
    assert_eq!(why_dropped_after(by_a_unit_of_work), OTHER_SCHEMA);
    let unseen = |pool: &Kept<Pool>| pool.engine().try_transaction(|work| work.execute_batch(ADD)).unwrap();
    assert_eq!(why_dropped_after(unseen), "it was kept");
    assert_eq!(why_dropped_after(|pool| pool.execute("INSERT INTO account VALUES (9, 'x')")), "it was kept");
}

const SEARCH: &str =
    "CREATE TABLE note (text); CREATE VIRTUAL TABLE search USING fts5(text); CREATE TABLE app_config (k, v)";

/// A restore gives them a new schema cookie each time.
#[test]
fn a_template_may_have_virtual_tables() {
    static TEMPLATE: Template = Template::sql(SEARCH);
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    for _ in 0..3 {
        let pool = take(&POOLS);
        let before = pool.engine().snapshot();
        pool.execute("INSERT INTO search VALUES ('rain'); INSERT INTO note VALUES (1)");
        pool.engine().reset().unwrap();
        pool.execute("INSERT INTO search VALUES ('rain and sun')");
        pool.engine().restore(&before).unwrap();
        assert_eq!(pool.number("SELECT count(*) FROM search('rain')"), 0);
    }
    assert_eq!(POOLS.why_dropped(), None);
}

/// FTS5 keeps the statement by which it writes them.
#[test]
fn settings_of_fts5_prevent_reuse() {
    static TEMPLATE: Template = Template::sql(SEARCH);
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    const SET: &str = "BEGIN; INSERT INTO search (search, rank) VALUES ('rank', 'bm25(10.0)'); ROLLBACK";
    take(&POOLS).execute(SET);
    drop(take(&POOLS));
    assert_eq!(POOLS.why_dropped().as_deref(), Some(FTS5_SETTINGS));
    static MADE: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let make = |engine: &Engine| Pool::of(engine).inspect(|pool| pool.execute(SET));
    drop(MADE.get_or_make(make).unwrap());
    drop(MADE.get_or_make(make).unwrap());
    assert_eq!(MADE.why_dropped(), Some(format!("when the value was made, {FTS5_SETTINGS}")));
}

/// Without FTS5 it is a table like any other.
#[test]
fn a_table_of_settings_does_not_prevent_reuse() {
    static TEMPLATE: Template = Template::sql("CREATE TABLE app_config (k, v)");
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    for _ in 0..3 {
        take(&POOLS).execute("INSERT INTO app_config VALUES ('colour', 'blue')");
    }
    assert_eq!(POOLS.why_dropped(), None);
}

/// In serialized mode, SQLite's calls take a mutex of the connection, which its thread has during a step.
#[test]
fn connections_that_other_threads_step_and_close_block_no_test() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let open = |uri: &str| {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_FULL_MUTEX;
        Connection::open_with_flags(uri, flags)
    };
    for _ in 0..5 {
        let pool = take(&POOLS);
        let uri = pool.engine().uri().to_owned();
        let (begun, wait) = mpsc::channel();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let Ok(connection) = open(&uri) else { break }; // the value was not reused
                    let slow = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 2000)
                        SELECT count(*) FROM n, account";
                    assert_eq!(number(&connection, slow), 4_000);
                    drop(connection);
                    begun.send(()).unwrap();
                }
            });
            wait.recv().unwrap();
            drop(pool);
            drop(take(&POOLS));
            stop.store(true, Ordering::Relaxed);
        });
    }
}

/// They share a file as well.
#[test]
fn connections_that_share_a_cache_prevent_reuse() {
    static CONNECTIONS: KeptValues<RefCell<Connection>> = KeptValues::new(&TEMPLATE);
    let open = |engine: &Engine| Connection::open(format!("{}&cache=shared", engine.uri()));
    let bytes = Engine::new().snapshot().to_bytes();
    for deserializes in [false, true] {
        let first = CONNECTIONS.get_or_make(|engine| Ok(RefCell::new(open(engine)?))).unwrap();
        assert_eq!(number(&first.borrow(), ACCOUNTS), 2);
        let second = open(first.engine()).unwrap();
        assert_eq!(number(&second, ACCOUNTS), 2);
        if deserializes {
            deserialize(&mut first.borrow_mut(), &bytes).unwrap();
        }
        drop(second);
        drop(first);
        drop(CONNECTIONS.get_or_make(|engine| Ok(RefCell::new(open(engine)?))).unwrap());
        let reason = CONNECTIONS.why_dropped().unwrap();
        assert!(
            ["several connections share a cache", "a connection's main database was replaced (sqlite3_deserialize)"]
                .contains(&&*reason),
            "{reason}"
        );
    }
}

#[test]
fn a_template_may_have_a_default_cache_size() {
    static CACHED: Template = Template::sql("CREATE TABLE account (id); PRAGMA default_cache_size = 777");
    static POOLS: KeptValues<Pool> = KeptValues::new(&CACHED);
    for _ in 0..3 {
        let pool = take(&POOLS);
        assert_eq!((pool.number("PRAGMA cache_size"), pool.number(ACCOUNTS)), (777, 0));
        pool.execute("INSERT INTO account VALUES (1)");
    }
    assert_eq!(POOLS.why_dropped(), None);
}

#[test]
fn a_write_after_the_test_prevents_reuse() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let pool = take(&POOLS);
    let (number, late) = (pool.number, Connection::open(pool.engine().uri()).unwrap());
    late.execute_batch("PRAGMA foreign_keys = ON; PRAGMA synchronous = NORMAL").unwrap();
    drop(pool);
    late.execute("DELETE FROM account", []).unwrap();
    let next = take(&POOLS);
    assert_ne!(next.number, number);
    assert_eq!(next.number(ACCOUNTS), 2);
    assert_eq!(POOLS.why_dropped().as_deref(), Some("the engine was written to after the test"));
}

#[test]
fn a_transaction_that_begins_after_the_test_prevents_reuse() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let pool = take(&POOLS);
    let late = Connection::open(pool.engine().uri()).unwrap();
    late.execute_batch("PRAGMA foreign_keys = ON; PRAGMA synchronous = NORMAL").unwrap();
    drop(pool);
    late.execute_batch("BEGIN").unwrap();
    drop(take(&POOLS));
    assert_eq!(POOLS.why_dropped().as_deref(), Some(IN_TRANSACTION));
}

/// It does not wait for a test that may never come.
#[test]
fn a_value_is_restored_or_dropped_when_its_test_ends() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let pool = take(&POOLS);
    let reader = Connection::open(pool.engine().uri()).unwrap();
    reader.execute_batch("PRAGMA foreign_keys = ON; PRAGMA synchronous = NORMAL").unwrap();
    pool.execute("DELETE FROM account");
    assert_eq!(number(&reader, ACCOUNTS), 0);
    drop(pool);
    assert_eq!(number(&reader, ACCOUNTS), 2, "its content is restored");
    let pool = take(&POOLS);
    pool.execute("CREATE TEMP TABLE scratch (a)");
    drop(pool);
    assert_eq!(POOLS.why_dropped().as_deref(), Some(OUTSIDE));
    take(&POOLS).execute("BEGIN"); // it may end
    assert_eq!(POOLS.why_dropped().as_deref(), Some(OUTSIDE));
    drop(take(&POOLS));
    assert_eq!(POOLS.why_dropped().as_deref(), Some(IN_TRANSACTION));
}

#[test]
fn a_transaction_that_ends_between_two_tests_does_not_prevent_reuse() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let pool = take(&POOLS);
    let (number, mut late_ones) = (pool.number, Vec::new());
    for begin in ["BEGIN; SELECT count(*) FROM account", "BEGIN IMMEDIATE; DELETE FROM account"] {
        let late = Connection::open(pool.engine().uri()).unwrap();
        late.execute_batch("PRAGMA foreign_keys = ON; PRAGMA synchronous = NORMAL").unwrap();
        late.execute_batch(begin).unwrap();
        late_ones.push(late);
    }
    drop(pool);
    drop(late_ones);
    let next = take(&POOLS);
    assert_eq!((next.number, next.number(ACCOUNTS)), (number, 2));
    assert_eq!(POOLS.why_dropped(), None);
}

#[test]
fn a_value_that_was_made_in_a_transaction_is_not_reused() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let make = |engine: &Engine| Pool::of(engine).inspect(|pool| pool.execute("BEGIN"));
    let [one, other] = [(); 2].map(|()| POOLS.get_or_make(make).unwrap().number);
    assert_ne!(one, other);
    assert_eq!(POOLS.why_dropped(), Some(format!("when the value was made, {IN_TRANSACTION}")));
}

/// The pragmas by which it sets up a connection are not known, so those of a test would not be noticed.
#[test]
fn a_value_that_was_made_without_a_connection_is_not_reused() {
    static LAZY: KeptValues<RefCell<Option<Connection>>> = KeptValues::new(&TEMPLATE);
    let reason = "no connection was open when the value was made, so that its pragmas are not known";
    for expected in [None, Some(reason)] {
        let lazy = LAZY.get_or_make(|_| Ok(RefCell::new(None))).unwrap();
        assert_eq!(LAZY.why_dropped().as_deref(), expected);
        *lazy.borrow_mut() = Some(Connection::open(lazy.engine().uri()).unwrap());
    }
}

#[test]
fn a_value_that_can_not_be_made_is_an_error_once() {
    static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
    let error = POOLS.get_or_make(|_| Err("the port is in use".into())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MakeFailed);
    let message = error.to_string();
    assert!(
        message.starts_with("can't make a value from engine ") && message.contains("the port is in use"),
        "{message}"
    );
    let failed = Connection::open_in_memory().unwrap().execute_batch("SELEC").unwrap_err();
    let error = POOLS.get_or_make(|_| Err(failed.into())).unwrap_err();
    assert!(error.to_string().contains("syntax error") && error.sqlite().is_some(), "{error}");
    let panicked = catch_unwind(|| POOLS.get_or_make(|_| resume_unwind(Box::new(7))));
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&7));
    assert_eq!(take(&POOLS).number(ACCOUNTS), 2);
}

#[test]
fn a_broken_template_is_the_error_of_the_template() {
    static BROKEN: Template = Template::sql("CREATE TABLE");
    static POOLS: KeptValues<Pool> = KeptValues::new(&BROKEN);
    let error = POOLS.get_or_make(Pool::of).unwrap_err();
    assert_eq!(error.to_string(), BROKEN.new_engine().unwrap_err().to_string());
}

#[test]
fn it_is_shown_with_its_engine() {
    static NUMBERS: KeptValues<u8> = KeptValues::new(&TEMPLATE);
    let kept = NUMBERS.get_or_make(|_| Ok(7)).unwrap();
    let shown = format!("{kept:?} of {NUMBERS:?}");
    assert!(*kept == 7 && shown.starts_with("Kept { engine: \"engine ") && shown.contains("of KeptValues("), "{shown}");
}

/// The property below would prove nothing if each value were a new one.
#[test]
fn the_property_runs_on_reused_values() {
    let is_kept = |sql: &&str| {
        let run = |pool: &Kept<Pool>| drop(pool.connections.borrow()[0].execute_batch(sql));
        why_dropped_after(run) == "it was kept"
    };
    let kept: Vec<&str> = SQL.into_iter().filter(is_kept).collect();
    let expected = [
        "COMMIT; CREATE UNIQUE INDEX not_unique ON entry (amount)", // there is no transaction to commit
        "INSERT INTO account (owner) VALUES (random())",
        "INSERT OR IGNORE INTO account (owner) VALUES ('Ada')",
        "DELETE FROM account",
        "UPDATE sqlite_sequence SET seq = 1000",
        "UPDATE entry SET amount = 7",
        "COMMIT",
        "ROLLBACK",
        "RELEASE s",
        "CREATE TABLE other.t (a)",
        "PRAGMA user_version = 7",
        "PRAGMA application_id = 7",
        "PRAGMA schema_version = 77",
    ];
    assert_eq!(kept, expected);
}

/// What one test may do.
#[derive(Clone, Copy, Debug)]
enum Leak {
    Sql(&'static str),
    Unfinished,
    LockTimeout,
    Reset,
    /// A connection that is opened on the content of that moment.
    Grow,
    Shrink,
    Deserialize,
    UnitOfWork(&'static str),
}

fn leak() -> impl Strategy<Value = Leak> {
    use Leak::*;
    let others = [Unfinished, LockTimeout, Reset, Grow, Grow, Shrink, Deserialize];
    prop_oneof![
        5 => prop::sample::select(SQL.as_slice()).prop_map(Sql),
        1 => prop::sample::select(SQL.as_slice()).prop_map(UnitOfWork),
        2 => prop::sample::select(others.to_vec()),
    ]
}

fn leave(pool: &Kept<Pool>, leak: Leak, which: usize, works: &mut Vec<UnitOfWork>) {
    let mut connections = pool.connections.borrow_mut();
    let len = connections.len().max(1);
    let connection = connections.get_mut(which % len);
    match (leak, connection) {
        (Leak::Sql(sql), Some(connection)) => drop(connection.execute_batch(sql)),
        (Leak::Unfinished, Some(connection)) => leave_unfinished(connection, "SELECT id FROM account"),
        (Leak::Deserialize, Some(connection)) => {
            drop(deserialize(connection, &Engine::new().snapshot().to_bytes()));
        }
        (Leak::LockTimeout, _) => pool.engine().set_lock_timeout(Duration::from_millis(1)),
        (Leak::Reset, _) => drop(pool.engine().reset()),
        (Leak::Grow, _) => {
            drop(connections);
            drop(pool.grow()); // the schema may be malformed
        }
        (Leak::Shrink, Some(_)) => drop(connections.remove(which % len)),
        (Leak::UnitOfWork(sql), _) => {
            let Ok(work) = pool.engine().unit_of_work() else { return };
            drop(work.execute_batch(sql));
            if which == 0 {
                works.push(work);
            }
        }
        (_, None) => {}
    }
}

/// Returns what a test could observe by each connection of the pool. What can't be reset is overwritten first.
fn view(pool: &Kept<Pool>) -> Vec<String> {
    while pool.connections.borrow().len() < 2 {
        pool.grow().unwrap();
    }
    let snapshot = pool.engine().snapshot();
    let connections = pool.connections.borrow();
    let mut view = Vec::new();
    for connection in connections.iter().take(2) {
        drop(connection.execute_batch("BEGIN; INSERT INTO account VALUES (50, 'x'); ROLLBACK; BEGIN"));
        view.extend(view_of(connection));
        connection.execute_batch("ROLLBACK").unwrap();
        drop(connection.execute_batch("BEGIN; INSERT INTO account VALUES (50, 'x'); ROLLBACK"));
        view.extend(view_of(connection));
        pool.engine().restore(&snapshot).unwrap();
    }
    let work = pool.engine().begin(TransactionBehavior::Immediate).unwrap();
    view.extend(view_of(&work));
    view
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever one test does by SQL, the next sees what it would see with a new value.
    #[test]
    fn nothing_reaches_the_next_test(leaks in prop::collection::vec((leak(), 0..3usize), 1..8), panics in any::<bool>()) {
        static POOLS: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
        static COLD: KeptValues<Pool> = KeptValues::new(&TEMPLATE);
        let cold = COLD.get_or_make(Pool::of).unwrap();
        cold.engine().retire();
        let cold = view(&cold);
        for _ in 0..2 {
            let pool = take(&POOLS);
            pool.engine().set_lock_timeout(Duration::ZERO);
            let mut works = Vec::new();
            for (leak, which) in &leaks {
                leave(&pool, *leak, *which, &mut works);
            }
            drop(works);
            if panics {
                let panicked = catch_unwind(AssertUnwindSafe(move || {
                    let _pool = pool;
                    resume_unwind(Box::new("as a failing test does, without the hook that prints it"));
                }));
                prop_assert!(panicked.is_err());
            }
        }
        let next = take(&POOLS);
        let warm = view(&next);
        for (warm, cold) in warm.iter().zip(&cold) {
            prop_assert_eq!(warm, cold);
        }
        prop_assert_eq!(warm.len(), cold.len());
    }
}
