//! A unit of work gets a clean connection, whatever the previous unit of work did to it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::functions::FunctionFlags;
use rusqlite::limits::Limit;
use rusqlite_fixtures::rusqlite::{self, Connection};
use rusqlite_fixtures::{Engine, UnitOfWork};

use crate::support::{engine_with_entries, entries, number};

/// Runs `leave` in one unit of work and `check` in the next, which is on the same connection unless that was closed.
fn after(leave: impl FnOnce(&mut UnitOfWork), check: impl FnOnce(&UnitOfWork)) {
    let engine = engine_with_entries(&[(1, 1)]);
    let mut work = engine.unit_of_work().unwrap();
    leave(&mut work);
    drop(work);
    engine.set_lock_timeout(Duration::ZERO); // fails at once if the writer slot is still held
    let next = engine.unit_of_work().unwrap();
    assert!(!next.is_autocommit());
    assert_eq!(entries(&next), [(1, 1)]);
    check(&next);
    next.execute("UPDATE entry SET value = 1", []).unwrap();
    next.commit().unwrap();
}

fn run(sql: &str) -> impl FnOnce(&mut UnitOfWork) + '_ {
    move |work| work.execute_batch(sql).unwrap()
}

#[test]
fn transactions_do_not_carry_over() {
    after(run("UPDATE entry SET value = 2"), |_| {});
    after(run("COMMIT; BEGIN; UPDATE entry SET value = 3"), |_| {});
    after(run("COMMIT"), |_| {});
    after(run("SAVEPOINT s; DELETE FROM entry"), |_| {});
    after(run("COMMIT; SAVEPOINT s; DELETE FROM entry"), |_| {});
}

#[test]
fn an_unfinished_statement_does_not_carry_over() {
    after(
        |work| {
            work.execute_batch("COMMIT").unwrap();
            let mut statement = work.prepare("SELECT * FROM entry").unwrap();
            let mut rows = statement.query([]).unwrap();
            rows.next().unwrap();
            std::mem::forget(rows);
            std::mem::forget(statement);
        },
        |next| assert!(next.execute_batch("SELECT 1").is_ok()),
    );
}

#[test]
fn temporary_and_attached_schemas_do_not_carry_over() {
    let no_such =
        |name: &'static str| move |next: &UnitOfWork| assert!(next.prepare(&format!("SELECT * FROM {name}")).is_err());
    after(run("CREATE TEMP TABLE scratch (a)"), no_such("scratch"));
    after(run("COMMIT; CREATE TEMP TABLE scratch (a); BEGIN"), no_such("scratch"));
    after(run("CREATE TEMP VIEW scratch AS SELECT * FROM entry"), no_such("scratch"));
    after(run("COMMIT; ATTACH ':memory:' AS other; CREATE TABLE other.t (a)"), no_such("other.t"));
    after(run("COMMIT; CREATE TEMP TRIGGER t AFTER UPDATE ON entry BEGIN DELETE FROM entry; END"), |next| {
        next.execute("UPDATE entry SET value = 5", []).unwrap();
        assert_eq!(entries(next), [(1, 5)]);
        next.execute("UPDATE entry SET value = 1", []).unwrap();
    });
}

#[test]
fn pragmas_do_not_carry_over() {
    for pragma in [
        "analysis_limit",
        "case_sensitive_like",
        "foreign_keys",
        "recursive_triggers",
        "ignore_check_constraints",
        "cache_size",
        "synchronous",
        "journal_mode",
        "locking_mode",
        "temp_store",
        "busy_timeout",
        "cell_size_check",
        "defer_foreign_keys",
        "secure_delete",
        "query_only",
        "writable_schema",
        "max_page_count",
        "wal_autocheckpoint",
    ] {
        let value = |work: &UnitOfWork| {
            let ask = format!("PRAGMA {pragma}");
            work.query_row(&ask, [], |row| row.get::<_, rusqlite::types::Value>(0)).ok()
        };
        let fresh = value(&Engine::new().unit_of_work().unwrap());
        let set = match pragma {
            "journal_mode" => "OFF",
            "locking_mode" => "EXCLUSIVE",
            "foreign_keys" => "OFF",
            "analysis_limit" | "cache_size" | "busy_timeout" | "max_page_count" | "wal_autocheckpoint" => "77",
            _ => "1",
        };
        // A pragma on `temp` does not reach the engine's VFS, but may apply to the whole connection.
        // It opens a temporary database, which `temp_store` closes again.
        for (database, then) in [("", ""), ("main.", ""), ("temp.", "PRAGMA temp.temp_store = MEMORY")] {
            let leave = |work: &mut UnitOfWork| {
                // `defer_foreign_keys` ends with the transaction, within which `temp_store` can't be changed.
                let ends_with_transaction = pragma == "defer_foreign_keys" && then.is_empty();
                let before = if ends_with_transaction { "" } else { "COMMIT;" };
                run(&format!("{before} PRAGMA {database}{pragma} = {set}; SELECT * FROM entry; {then}"))(work);
                // `case_sensitive_like` returns nothing; `locking_mode` stays the same on an engine; a setting of
                // `temp` may affect `temp` only.
                let is_exempt = database == "temp." || ["case_sensitive_like", "locking_mode"].contains(&pragma);
                assert!(is_exempt || value(work) != fresh, "{database}{pragma}: it had no effect");
            };
            after(leave, |next| {
                assert_eq!(value(next), fresh, "{database}{pragma}");
                assert_eq!(number(next, "SELECT 'a' LIKE 'A'"), 1);
            });
        }
    }
}

#[test]
fn limits_and_flags_do_not_carry_over() {
    after(
        |work| {
            let _ = work.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, 100);
            assert!(work.prepare(&format!("SELECT '{}'", "x".repeat(200))).is_err());
        },
        |next| assert!(next.prepare(&format!("SELECT '{}'", "x".repeat(200))).is_ok()),
    );
    after(
        |work| assert_eq!(work.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false), Ok(false)),
        |next| assert!(next.db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW).unwrap()),
    );
}

/// This version of SQLite may have more limits than rusqlite has names for.
#[test]
#[allow(unsafe_code, reason = "calls SQLite's C interface, which rusqlite does not expose here")]
fn no_limit_carries_over() {
    use rusqlite::ffi;

    // SAFETY: the connection is open; a negative value only reads the limit, and any id is allowed.
    let limit = |work: &UnitOfWork, id: i32, value: i32| unsafe { ffi::sqlite3_limit(work.handle(), id, value) };
    let fresh: Vec<i32> = {
        let work = Engine::new().unit_of_work().unwrap();
        (0..).map(|id| limit(&work, id, -1)).take_while(|value| *value >= 0).collect()
    };
    assert!(fresh.len() >= 12, "{fresh:?}");
    for (id, expected) in fresh.into_iter().enumerate() {
        let id = i32::try_from(id).unwrap();
        let other = if expected == 0 { 1 } else { expected / 2 };
        after(
            |work| {
                limit(work, id, other);
                assert_ne!(limit(work, id, -1), expected, "limit {id} can be changed");
            },
            |next| assert_eq!(limit(next, id, -1), expected, "limit {id}"),
        );
    }
}

#[test]
#[allow(unsafe_code, reason = "calls SQLite's C interface, which rusqlite does not expose here")]
fn settings_by_calls_do_not_carry_over() {
    use rusqlite::ffi;
    use std::ptr::null;

    let reserved = |work: &UnitOfWork, mut bytes: i32| {
        // SAFETY: the connection is open; this opcode takes a pointer to an int, which receives the answer.
        unsafe {
            let argument = (&raw mut bytes).cast();
            ffi::sqlite3_file_control(work.handle(), null(), ffi::SQLITE_FCNTL_RESERVE_BYTES, argument);
        }
        bytes
    };
    let leave = |work: &mut UnitOfWork| {
        reserved(work, 32);
        assert_eq!(reserved(work, -1), 32);
    };
    after(leave, |next| assert_eq!(reserved(next, -1), 0));

    let may_load = |work: &UnitOfWork, value: i32| {
        let mut is_on = -1;
        let verb = ffi::SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION;
        // SAFETY: the connection is open; this verb takes an int, and a pointer to an int, which receives the answer.
        assert_eq!(unsafe { ffi::sqlite3_db_config(work.handle(), verb, value, &raw mut is_on) }, ffi::SQLITE_OK);
        is_on
    };
    let fresh = may_load(&Engine::new().unit_of_work().unwrap(), -1);
    after(|work| assert_eq!(may_load(work, 1 - fresh), 1 - fresh), |next| assert_eq!(may_load(next, -1), fresh));
}

#[test]
fn redefined_functions_do_not_carry_over() {
    let abs = |work: &mut UnitOfWork| {
        work.create_scalar_function("abs", 1, FunctionFlags::SQLITE_UTF8, |_| Ok(42)).unwrap();
        assert_eq!(number(work, "SELECT abs(-1)"), 42);
    };
    after(abs, |next| assert_eq!(number(next, "SELECT abs(-1)"), 1));
}

/// rusqlite takes a `&mut Connection` for hooks, which a unit of work does not give; but code may set them by SQLite's C
/// interface.
#[test]
#[allow(unsafe_code, reason = "calls SQLite's C interface, which rusqlite does not expose here")]
fn hooks_do_not_carry_over() {
    use rusqlite::ffi::{self, sqlite3};
    use std::ffi::{c_char, c_int, c_void};
    use std::ptr::null_mut;

    static CALLS: AtomicUsize = AtomicUsize::new(0);
    fn called() -> c_int {
        CALLS.fetch_add(1, Ordering::Relaxed);
        0
    }
    unsafe extern "C" fn on_commit(_: *mut c_void) -> c_int {
        called()
    }
    unsafe extern "C" fn on_rollback(_: *mut c_void) {
        called();
    }
    unsafe extern "C" fn on_update(_: *mut c_void, _: c_int, _: *const c_char, _: *const c_char, _: i64) {
        called();
    }
    unsafe extern "C" fn on_trace(_: u32, _: *mut c_void, _: *mut c_void, _: *mut c_void) -> c_int {
        called()
    }
    unsafe extern "C" fn on_authorize(
        _: *mut c_void,
        _: c_int,
        _: *const c_char,
        _: *const c_char,
        _: *const c_char,
        _: *const c_char,
    ) -> c_int {
        called()
    }
    const TRACE_STATEMENTS: u32 = 1;
    let set = |db: *mut sqlite3, hook| {
        let closure: *mut c_void = db.cast(); // as rusqlite gives one
        // SAFETY: the unit of work in `after` keeps the connection open; the functions have the types that SQLite takes.
        unsafe {
            match hook {
                0 => assert!(ffi::sqlite3_commit_hook(db, Some(on_commit), closure).is_null()),
                1 => assert!(ffi::sqlite3_rollback_hook(db, Some(on_rollback), closure).is_null()),
                2 => assert!(ffi::sqlite3_update_hook(db, Some(on_update), closure).is_null()),
                3 => ffi::sqlite3_progress_handler(db, 1, Some(on_commit), null_mut()),
                4 => assert_eq!(ffi::sqlite3_trace_v2(db, TRACE_STATEMENTS, Some(on_trace), null_mut()), 0),
                _ => assert_eq!(ffi::sqlite3_set_authorizer(db, Some(on_authorize), null_mut()), 0),
            }
        }
    };
    for hook in 0..6 {
        after(
            |work| {
                // SAFETY: the handle is used at once, while the connection is open.
                set(unsafe { work.handle() }, hook);
                let before = CALLS.load(Ordering::Relaxed);
                let update = "UPDATE entry SET value = 1";
                run(&format!("{update}; COMMIT; BEGIN; {update}; ROLLBACK"))(work);
                assert!(CALLS.load(Ordering::Relaxed) > before, "hook {hook} is not called");
            },
            |next| {
                // An older rusqlite keeps the closures of these three in the connection, so it is closed.
                assert!(hook > 2 || number(next, "SELECT total_changes()") == 0, "hook {hook}: it is reused");
                let before = CALLS.load(Ordering::Relaxed);
                next.execute("UPDATE entry SET value = 2", []).unwrap();
                next.execute("UPDATE entry SET value = 1", []).unwrap();
                next.prepare("SELECT max(value) FROM entry").unwrap();
                assert_eq!(CALLS.load(Ordering::Relaxed), before, "hook {hook} is still called");
            },
        );
    }
}

/// A WAL hook runs on a commit to an attached file in WAL mode.
#[test]
#[allow(unsafe_code, reason = "calls SQLite's C interface, which rusqlite does not expose here")]
fn a_wal_hook_does_not_carry_over() {
    use rusqlite::ffi::{self, sqlite3};
    use std::ffi::{c_char, c_int, c_void};

    static CALLS: AtomicUsize = AtomicUsize::new(0);
    unsafe extern "C" fn on_wal(_: *mut c_void, _: *mut sqlite3, _: *const c_char, _: c_int) -> c_int {
        CALLS.fetch_add(1, Ordering::Relaxed);
        0
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wal.sqlite3");
    let file = Connection::open(&path).unwrap();
    file.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a)").unwrap();
    // SAFETY: the connection is open, and the function has the type that SQLite takes.
    let set = |connection: &Connection| unsafe {
        ffi::sqlite3_wal_hook(connection.handle(), Some(on_wal), std::ptr::null_mut());
    };
    let write = |connection: &Connection| {
        connection.execute("ATTACH ?1 AS wal", [path.to_str().unwrap()]).unwrap();
        connection.execute_batch("INSERT INTO wal.t VALUES (1)").unwrap();
        CALLS.load(Ordering::Relaxed)
    };
    let hooked = Engine::new().connect().unwrap();
    set(&hooked);
    assert_eq!(write(&hooked), 1, "the hook runs on its connection");
    after(
        |work| set(work),
        |next| {
            assert_eq!(number(next, "PRAGMA wal_autocheckpoint"), 1000);
            next.execute_batch("COMMIT").unwrap();
            assert_eq!(write(next), 1, "the hook does not run on this connection");
            next.execute_batch("BEGIN").unwrap();
        },
    );
}

/// Since version 0.41, rusqlite stores the closures for `Connection::busy_handler` and others as client data, under the
/// name of SQLite's function. A closure that captures the engine would keep it alive forever.
#[test]
#[allow(unsafe_code, reason = "stores client data in a connection as rusqlite does, whose versions differ in this")]
fn closures_of_callbacks_are_dropped() {
    use rusqlite::ffi::sqlite3;
    use std::ffi::{CStr, c_char, c_int, c_void};

    unsafe extern "C" {
        fn sqlite3_set_clientdata(
            db: *mut sqlite3,
            name: *const c_char,
            data: *mut c_void,
            destructor: Option<unsafe extern "C" fn(*mut c_void)>,
        ) -> c_int;
    }
    unsafe extern "C" fn drop_engine(data: *mut c_void) {
        // SAFETY: the pointer is from `Box::into_raw` below, and SQLite calls this once.
        drop(unsafe { Box::from_raw(data.cast::<Engine>()) });
    }
    let names: [&CStr; 3] = [c"sqlite3_busy_handler", c"sqlite3_trace_v2", c"sqlite3_wal_hook"];
    for name in names {
        let engine = engine_with_entries(&[]);
        let uri = engine.uri().to_owned();
        let mut pooled = engine.pooled_connection().unwrap();
        let connection: &mut Connection = &mut pooled; // as rusqlite's functions for callbacks take it
        let captured: *mut Engine = Box::into_raw(Box::new(engine.clone()));
        // SAFETY: the connection is open, and the destructor takes data of this type.
        let code =
            unsafe { sqlite3_set_clientdata(connection.handle(), name.as_ptr(), captured.cast(), Some(drop_engine)) };
        assert_eq!(code, 0);
        drop((pooled, engine));
        assert!(Connection::open(uri).is_err(), "the engine is freed, with the closure of {name:?}");
    }
}

/// An authorizer that denies transactions would deny them to the next unit of work on the connection, too.
#[test]
#[allow(unsafe_code, reason = "calls SQLite's C interface, which rusqlite does not expose here")]
fn an_authorizer_that_denies_transactions_does_not_carry_over() {
    use rusqlite::ffi;
    use std::ffi::{c_char, c_int, c_void};

    unsafe extern "C" fn deny(
        _: *mut c_void,
        action: c_int,
        _: *const c_char,
        _: *const c_char,
        _: *const c_char,
        _: *const c_char,
    ) -> c_int {
        if action == ffi::SQLITE_TRANSACTION { ffi::SQLITE_DENY } else { ffi::SQLITE_OK }
    }
    after(
        |work| {
            work.execute_batch("COMMIT").unwrap();
            // SAFETY: the connection is open, and the function has the type that SQLite takes.
            unsafe { ffi::sqlite3_set_authorizer(work.handle(), Some(deny), std::ptr::null_mut()) };
        },
        |next| assert!(!next.is_autocommit()),
    );
}

#[test]
fn a_busy_timeout_does_not_carry_over() {
    let engine = engine_with_entries(&[(1, 1)]);
    let work = engine.unit_of_work().unwrap();
    work.busy_timeout(Duration::from_secs(60)).unwrap();
    drop(work);
    engine.set_lock_timeout(Duration::ZERO);
    let (_writer, next) =
        (engine.begin(rusqlite::TransactionBehavior::Immediate).unwrap(), engine.unit_of_work().unwrap());
    assert!(next.execute("DELETE FROM entry", []).is_err(), "the engine's lock timeout applies");
}

#[test]
fn last_insert_rowid_starts_at_zero() {
    after(run("INSERT INTO entry VALUES (77, 0)"), |next| assert_eq!(next.last_insert_rowid(), 0));
}

/// The counterpart of the other tests: a connection that is clean is reused, not closed.
#[test]
fn a_clean_connection_is_reused() {
    let engine = engine_with_entries(&[(1, 1)]);
    let connection_of = |work: &UnitOfWork| number(work, "SELECT id_of_connection()");
    let work = engine.unit_of_work().unwrap();
    work.create_scalar_function("id_of_connection", 0, FunctionFlags::SQLITE_UTF8, |_| Ok(7)).unwrap();
    work.execute("UPDATE entry SET value = 1", []).unwrap();
    work.commit().unwrap();
    for sql in [
        "SELECT * FROM entry",
        "PRAGMA table_info(entry)",
        "PRAGMA user_version = 3",
        "PRAGMA foreign_keys",
        "INSERT INTO entry VALUES (2, 2); DELETE FROM entry WHERE key = 2",
        "SAVEPOINT s; RELEASE s",
        "COMMIT",
    ] {
        let work = engine.unit_of_work().unwrap();
        assert_eq!(connection_of(&work), 7, "a new function can't be detected and carries over, as documented");
        work.execute_batch(sql).unwrap();
    }
    let work = engine.unit_of_work().unwrap();
    assert_eq!(connection_of(&work), 7);
}

#[test]
fn a_connection_from_connect_is_closed_and_not_reused() {
    let engine = engine_with_entries(&[(1, 1)]);
    let connection: Connection = engine.connect().unwrap();
    connection.execute_batch("PRAGMA foreign_keys = OFF; CREATE TEMP TABLE t (a)").unwrap();
    drop(connection);
    assert!(engine.unit_of_work().unwrap().prepare("SELECT * FROM t").is_err());
}
