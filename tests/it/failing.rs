//! A test that fails keeps its databases.
//!
//! Each test runs one of the `child…` tests of this program in a new process, with a folder of its own, and looks at what it
//! prints and keeps.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, thread};

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, proptest};
use rusqlite_fixtures::faults::Fault;
use rusqlite_fixtures::rusqlite::Connection;
use rusqlite_fixtures::rusqlite::TransactionBehavior::Immediate;
use rusqlite_fixtures::rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite_fixtures::{Engine, ErrorKind, KeptValues, Limits, Template};
use tempfile::TempDir;

use crate::support::browser::{EVIL, assert_in_browser};
use crate::support::{Rendezvous, number, output_of_copy};

const ROLE: &str = "FIXTURES_FAILING_ROLE";

static BANK: Template =
    Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT UNIQUE, balance INTEGER NOT NULL)")
        .seed("INSERT INTO account VALUES (1, 'ann', 100), (2, 'bob', 50)");

static WATCHED: Template = Template::sql("CREATE TABLE t (a)").watch(Limits::new().statements(1));

fn role() -> String {
    env::var(ROLE).unwrap_or_default()
}

fn deposit(connection: &Connection, amount: i64) {
    connection.execute("UPDATE account SET balance = balance + ?1 WHERE id = 1", [amount]).unwrap();
}

/// Returns a text as SQL has it.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Does nothing in an ordinary run of the tests.
#[test]
fn child() {
    let bank = || BANK.new_engine().unwrap();
    let ends_in_a_transaction = |bank: &Engine| {
        let work = bank.begin(Immediate).unwrap();
        deposit(&work, 7);
        panic!("the test's own failure");
    };
    match &*role() {
        "" => {}
        "passes" => drop(bank()),
        "fails" => {
            let bank = bank();
            bank.try_transaction(|work| work.execute("DELETE FROM account WHERE id = ?1", [2])).unwrap();
            ends_in_a_transaction(&bank);
        }
        "fails with pooled connections" => {
            let bank = bank();
            let _connections = [(); 3].map(|()| bank.pooled_connection().unwrap());
            panic!("the test's own failure");
        }
        "fails by an error on one of two pooled connections" => {
            let bank = bank();
            let connection = bank.pooled_connection().unwrap(); // dropped after the other one
            let _other = bank.pooled_connection().unwrap();
            connection.execute("INSERT INTO account VALUES (3, 'ann', 0)", []).unwrap();
        }
        "fails with a recording and a strict engine" => {
            let bank = bank();
            let _recording = bank.record();
            deposit(&bank.connect().unwrap(), 7);
            bank.strict();
            panic!("the test's own failure");
        }
        "fails in a thread without a name" => {
            thread::spawn(move || ends_in_a_transaction(&bank())).join().unwrap_err();
        }
        "survives the panics of a thread and of its own" => {
            let bank = bank();
            assert!(thread::scope(|scope| scope.spawn(|| ends_in_a_transaction(&bank)).join()).is_err());
            assert!(catch_unwind(AssertUnwindSafe(|| ends_in_a_transaction(&bank))).is_err());
        }
        "has two threads of the same name" => {
            for fails in [true, false] {
                let uses_an_engine = || match bank() {
                    bank if fails => ends_in_a_transaction(&bank),
                    bank => drop(bank),
                };
                let worker = thread::Builder::new().name("worker".to_owned());
                let result = thread::scope(|scope| worker.spawn_scoped(scope, uses_an_engine).unwrap().join());
                assert_eq!(result.is_err(), fails);
            }
        }
        "has two threads of the same name that go on" => {
            for _ in 0..2 {
                let catches = || {
                    let failed = catch_unwind(AssertUnwindSafe(|| ends_in_a_transaction(&bank())));
                    assert!(failed.is_err());
                    drop(bank());
                };
                let worker = thread::Builder::new().name("worker".to_owned());
                thread::scope(|scope| worker.spawn_scoped(scope, catches).unwrap().join().unwrap());
            }
        }
        "has passing threads with the name of one that has failed and runs" => {
            let [fails, ends] = [(); 2].map(|()| Rendezvous::of(2));
            let meet = |place: &Rendezvous| assert!(place.meet(Duration::from_secs(60)));
            let worker = || thread::Builder::new().name("worker".to_owned());
            thread::scope(|scope| {
                let failing = || {
                    for amount in [1, 2] {
                        let bank = bank();
                        deposit(&bank.connect().unwrap(), amount);
                        assert!(catch_unwind(AssertUnwindSafe(|| ends_in_a_transaction(&bank))).is_err());
                        std::mem::forget(bank);
                    }
                    meet(&fails);
                    meet(&ends);
                };
                let failing = worker().spawn_scoped(scope, failing).unwrap();
                meet(&fails);
                (0..2).for_each(|_| worker().spawn_scoped(scope, || drop(bank())).unwrap().join().unwrap());
                meet(&ends);
                failing.join().unwrap();
            });
        }
        "has a thread without a name" => thread::spawn(move || drop(bank())).join().unwrap(),
        "fails in a transaction of rusqlite" => {
            let bank = bank();
            let mut connection = Connection::open(bank.uri()).unwrap();
            let transaction = connection.transaction().unwrap();
            deposit(&transaction, 7);
            panic!("the test's own failure");
        }
        "fails with a connection in a transaction" => {
            let bank = bank();
            let connection = Connection::open(bank.uri()).unwrap();
            connection.execute_batch("BEGIN").unwrap();
            deposit(&connection, 7);
            panic!("the test's own failure");
        }
        "fails by an error of SQLite" => {
            let bank = bank();
            let work = bank.unit_of_work().unwrap();
            work.execute("INSERT INTO account VALUES (?1, ?2, 0)", (3, "ann")).unwrap();
        }
        "fails by SQL that is wrong" => {
            let bank = bank();
            let connection = bank.connect().unwrap();
            deposit(&connection, 7);
            connection.execute_batch("DELETE FROM acount").unwrap();
        }
        "fails while it is recorded" => {
            let bank = bank();
            let _recording = bank.record();
            deposit(&bank.connect().unwrap(), 7);
            ends_in_a_transaction(&bank);
        }
        "fails while another thread writes" => {
            let bank = bank();
            let writer = thread::scope(|scope| scope.spawn(|| bank.begin(Immediate).unwrap()).join().unwrap());
            deposit(&writer, 7);
            let _keeps_the_slot = Box::leak(Box::new(writer));
            panic!("the test's own failure");
        }
        "is refused by a unit of work of its own" => {
            let bank = bank();
            bank.set_lock_timeout(Duration::ZERO);
            let _holder = bank.begin(Immediate).unwrap();
            drop(bank.begin(Immediate).unwrap());
        }
        "is refused by a connection of its own" => {
            let bank = bank();
            bank.set_lock_timeout(Duration::ZERO);
            let [holder, refused] = [(); 2].map(|()| bank.connect().unwrap());
            holder.execute_batch("BEGIN IMMEDIATE").unwrap();
            let _drops_the_holder_first = (refused.execute_batch("BEGIN IMMEDIATE").unwrap(), holder);
        }
        "was refused, and then read" => {
            let bank = bank();
            bank.set_lock_timeout(Duration::ZERO);
            let [holder, refused] = [(); 2].map(|()| bank.connect().unwrap());
            holder.execute_batch("BEGIN IMMEDIATE").unwrap();
            refused.execute_batch("BEGIN IMMEDIATE").unwrap_err();
            drop(holder);
            assert_eq!(number(&refused, "SELECT count(*) FROM account"), 2);
            panic!("the test's own failure");
        }
        "was refused, and then got the slot" => {
            let bank = bank();
            bank.set_lock_timeout(Duration::ZERO);
            let [holder, refused] = [(); 2].map(|()| bank.connect().unwrap());
            refused.execute_batch("BEGIN; SELECT * FROM account").unwrap();
            holder.execute_batch("BEGIN IMMEDIATE").unwrap();
            refused.execute("DELETE FROM account", []).unwrap_err();
            drop(holder);
            refused.execute_batch("UPDATE account SET balance = 1; COMMIT").unwrap();
            panic!("the test's own failure");
        }
        "fails when only a connection is left" => {
            let connection = bank().connect().unwrap();
            deposit(&connection, 7);
            connection.execute_batch("BEGIN").unwrap();
            deposit(&connection, 1);
            panic!("the test's own failure");
        }
        "catches a panic and goes on" => {
            let bank = bank();
            assert!(catch_unwind(AssertUnwindSafe(|| ends_in_a_transaction(&bank))).is_err());
        }
        "catches a panic at its end" => assert!(catch_unwind(|| ends_in_a_transaction(&bank())).is_err()),
        "catches a panic and fails later" => {
            let engine = bank();
            assert!(catch_unwind(AssertUnwindSafe(|| ends_in_a_transaction(&engine))).is_err());
            drop(engine);
            panic!("the test's own failure");
        }
        "fails in a thread" => {
            let bank = bank();
            let in_thread = || ends_in_a_transaction(&bank);
            thread::scope(|scope| scope.spawn(in_thread).join()).expect("the thread fails");
        }
        "fails with two engines" => {
            let (_one, other) = (bank(), Engine::new());
            other.connect().unwrap().execute_batch("CREATE TABLE other (a)").unwrap();
            panic!("the test's own failure");
        }
        "fails with a file that was opened again" => {
            let folder = tempfile::tempdir().unwrap();
            let open = || Engine::file(folder.path().join("notes.sqlite3")).unwrap();
            let notes = open();
            let connection = Connection::open(notes.uri()).unwrap();
            connection.execute_batch("CREATE TABLE note (text)").unwrap();
            drop(notes);
            let notes = open();
            notes.connect().unwrap().execute_batch("INSERT INTO note VALUES ('tea')").unwrap();
            panic!("the test's own failure");
        }
        "fails with a connection to a static engine" => {
            static ENGINE: LazyLock<Engine> = LazyLock::new(|| BANK.new_engine().unwrap());
            let connection = ENGINE.connect().unwrap();
            deposit(&connection, 7);
            panic!("the test's own failure");
        }
        "fails with a thread-local engine" => {
            thread_local!(static ENGINE: Engine = BANK.new_engine().unwrap());
            ENGINE.with(|bank| deposit(&bank.connect().unwrap(), 7));
            panic!("the test's own failure");
        }
        "fails with an attached engine" => {
            let (bank, other) = (bank(), bank());
            let connection = Connection::open(bank.uri()).unwrap();
            connection.execute("ATTACH ?1 AS other", [other.uri()]).unwrap();
            connection.execute_batch("BEGIN; DELETE FROM main.account; DELETE FROM other.account").unwrap();
            panic!("the test's own failure");
        }
        "fails with a destructor that catches a panic" => {
            struct CatchesInDrop(#[expect(dead_code, reason = "it is dropped")] Engine);
            impl Drop for CatchesInDrop {
                fn drop(&mut self) {
                    assert!(catch_unwind(|| panic!("the destructor's failure")).is_err());
                }
            }
            let _bank = CatchesInDrop(bank());
            panic!("the test's own failure");
        }
        "fails after another thread has dropped its engine" => {
            let bank = bank();
            thread::spawn(move || drop(bank)).join().unwrap();
            panic!("the test's own failure");
        }
        "fails with a destructor that asks for an engine" => {
            static AUDIT: LazyLock<Engine> = LazyLock::new(Engine::new);
            struct AsksInDrop;
            impl Drop for AsksInDrop {
                fn drop(&mut self) {
                    LazyLock::force(&AUDIT);
                }
            }
            let _asks = AsksInDrop;
            let bank = bank();
            ends_in_a_transaction(&bank);
        }
        "fails with a thread-local engine and another one" => {
            thread_local!(static ENGINE: Engine = BANK.new_engine().unwrap());
            ENGINE.with(|bank| deposit(&bank.connect().unwrap(), 7));
            ends_in_a_transaction(&bank());
        }
        "fails with two recorded engines" => {
            static NOTES: Template = Template::sql("CREATE TABLE note (text)");
            let (bank, notes) = (bank(), NOTES.new_engine().unwrap());
            bank.connect().unwrap().execute_batch("SELECT owner FROM account").unwrap();
            notes.connect().unwrap().execute_batch("SELECT text FROM note").unwrap();
            panic!("the test's own failure");
        }
        "fails with a shared engine" => {
            let engine = Engine::shared("file:failing?mode=memory&cache=shared").unwrap();
            let work = engine.begin(Immediate).unwrap();
            work.execute_batch("CREATE TABLE t (a)").unwrap();
            panic!("the test's own failure");
        }
        "exceeds a limit" => {
            let watched = WATCHED.new_engine().unwrap();
            let connection = watched.connect().unwrap();
            (0..2).for_each(|i| assert_eq!(connection.execute("INSERT INTO t VALUES (?1)", [i]).unwrap(), 1));
        }
        "fails with a large engine" => {
            let bank = bank();
            let connection = bank.connect().unwrap();
            connection.execute_batch("CREATE TABLE large (b); INSERT INTO large VALUES (zeroblob(101000000))").unwrap();
            panic!("the test's own failure");
        }
        "fails in a large transaction" => {
            let bank = bank();
            let work = bank.unit_of_work().unwrap();
            work.execute_batch("CREATE TABLE large (b); INSERT INTO large VALUES (zeroblob(101000000))").unwrap();
            panic!("the test's own failure");
        }
        "fails in a test with an odd name" => {
            let fails = move || ends_in_a_transaction(&bank());
            let thread = thread::Builder::new().name("dir/file.rs: a test".to_owned()).spawn(fails).unwrap();
            assert!(thread.join().is_err());
        }
        "fails by a payload that is no text" => {
            let _bank = bank();
            panic_any(7);
        }
        "creates an engine while it fails" => {
            struct Creates;
            impl Drop for Creates {
                fn drop(&mut self) {
                    let engine = Engine::new();
                    engine.connect().unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
                }
            }
            let _creates = Creates;
            panic!("the test's own failure");
        }
        "replaces the panic hook" => {
            let _bank = bank();
            std::panic::set_hook(Box::new(|_| eprintln!("the test's own hook")));
            panic!("the test's own failure");
        }
        "fails after another engine has passed" => {
            drop(bank());
            assert!(catch_unwind(|| panic!("an earlier panic")).is_err());
            drop(bank());
            let bank = bank();
            let thread = thread::scope(|scope| scope.spawn(|| panic!("the test's own failure")).join());
            let _bank = bank;
            resume_unwind(thread.unwrap_err());
        }
        "catches a panic and fails with another engine" => {
            let [first, second] = [bank(), bank()];
            assert!(catch_unwind(AssertUnwindSafe(|| ends_in_a_transaction(&first))).is_err());
            deposit(&second.connect().unwrap(), 11);
            std::mem::forget(first);
            let _second = second;
            panic!("the test's own failure");
        }
        "fails while a thread goes on" => {
            let bank = bank();
            let other = bank.clone();
            let (send, receive) = std::sync::mpsc::channel::<()>();
            let thread = thread::spawn(move || {
                let _ = receive.recv(); // until the test has failed
                drop(other);
            });
            let outlives = move || {
                drop(send);
                thread.join().unwrap();
            };
            let failed = catch_unwind(AssertUnwindSafe(|| {
                let _bank = bank;
                panic!("the test's own failure");
            }));
            outlives();
            resume_unwind(failed.unwrap_err());
        }
        "exceeds a limit with two engines" => {
            let (_bank, watched) = (bank(), WATCHED.new_engine().unwrap());
            (0..2).for_each(|i| {
                assert_eq!(watched.connect().unwrap().execute("INSERT INTO t VALUES (?1)", [i]).unwrap(), 1)
            });
        }
        "fails in many threads" => {
            let bank = bank();
            let barrier = std::sync::Barrier::new(16);
            thread::scope(|scope| {
                for _ in 0..16 {
                    let fails = || {
                        let _bank = bank.clone();
                        barrier.wait();
                        panic!("the test's own failure");
                    };
                    scope.spawn(fails);
                }
            });
        }
        "fails with ten engines" => {
            let engines: Vec<Engine> = (0..10).map(|_| bank()).collect();
            engines.iter().zip(0..).for_each(|(engine, amount)| deposit(&engine.connect().unwrap(), amount));
            panic!("the test's own failure");
        }
        "fails with an on_connect that panics" => {
            static PANICS: AtomicBool = AtomicBool::new(false);
            static SETUP: Template = Template::sql("CREATE TABLE t (a); INSERT INTO t VALUES (1)").on_connect(|_| {
                assert!(!PANICS.load(Ordering::Relaxed), "the setup panics");
                Ok(())
            });
            let engine = SETUP.new_engine().unwrap();
            engine.connect().unwrap().execute_batch("DELETE FROM t").unwrap();
            PANICS.store(true, Ordering::Relaxed);
            panic!("the test's own failure");
        }
        "fails with an on_connect that returns an error" => {
            static FAILS: AtomicBool = AtomicBool::new(false);
            static SETUP: Template = Template::sql("CREATE TABLE t (a)").on_connect(|connection| {
                let sql = if FAILS.load(Ordering::Relaxed) { "the setup" } else { "" };
                Ok(connection.execute_batch(sql)?)
            });
            let engine = SETUP.new_engine().unwrap();
            engine.connect().unwrap().execute_batch("INSERT INTO t VALUES (1)").unwrap();
            FAILS.store(true, Ordering::Relaxed);
            panic!("the test's own failure");
        }
        "fails when the folder of its engine's file is gone" => {
            let folder = tempfile::tempdir().unwrap();
            let engine = Engine::file(folder.path().join("bank.sqlite3")).unwrap();
            engine.strict();
            drop(folder);
            panic!("the test's own failure");
        }
        "fails after fifteen statements" => {
            let bank = bank();
            let connection = bank.connect().unwrap();
            (1..=15).for_each(|i| connection.execute_batch(&format!("SELECT {i} FROM account")).unwrap());
            panic!("the test's own failure");
        }
        "fails while pragmas are forbidden" => {
            let bank = bank();
            #[allow(unused_mut, reason = "some versions of rusqlite need it")]
            let mut connection = bank.connect().unwrap();
            connection.execute_batch("BEGIN").unwrap();
            deposit(&connection, 7);
            let forbids = |context: AuthContext<'_>| match context.action {
                AuthAction::Pragma { .. } => Authorization::Deny,
                _ => Authorization::Allow,
            };
            let _ = connection.authorizer(Some(forbids)); // a result in some versions of rusqlite
            panic!("the test's own failure");
        }
        "fails on a reused connection" => {
            let engine = bank();
            engine.try_transaction(|work| work.execute("DELETE FROM account", [])).unwrap();
            drop(engine);
            ends_in_a_transaction(&bank());
        }
        "fails on a reused engine" => {
            assert!(catch_unwind(|| ends_in_a_transaction(&bank())).is_err());
            let _bank = bank();
            panic!("the test's own failure");
        }
        "fails while reads fail" => {
            let bank = bank();
            let connection = bank.connect().unwrap(); // which has not read the index of the owners
            connection.execute_batch("BEGIN").unwrap();
            deposit(&connection, 7);
            Fault::Io.starting_at(1).during(|| {
                let _connection = connection;
                panic!("the test's own failure");
            });
        }
        "fails with many changes" => {
            let bank = bank();
            let script =
                "CREATE TABLE t (a); PRAGMA user_version = 1; WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1
                FROM n WHERE i < 100) INSERT INTO t SELECT i FROM n";
            bank.connect().unwrap().execute_batch(script).unwrap();
            panic!("the test's own failure");
        }
        "fails in a thread that has another engine" => {
            let (bank, _other) = (bank(), Engine::new());
            thread::spawn(move || ends_in_a_transaction(&bank)).join().unwrap();
        }
        "fails in threads with engines of their own" => {
            let engines: Vec<Engine> = (0..8).map(|_| bank()).collect();
            let barrier = std::sync::Barrier::new(engines.len());
            thread::scope(|scope| {
                for engine in engines {
                    let fails = || {
                        let _engine = engine;
                        barrier.wait();
                        panic!("the test's own failure");
                    };
                    scope.spawn(fails);
                }
            });
        }
        "fails with a connection after a thread that has failed" => {
            let bank = bank();
            assert!(thread::scope(|scope| scope.spawn(|| ends_in_a_transaction(&bank)).join()).is_err());
            let connection = Connection::open(bank.uri()).unwrap();
            assert_eq!(number(&connection, ACCOUNTS), 2);
            panic!("the test's own failure");
        }
        "fails with two connections" => {
            let bank = bank();
            let reader = Connection::open(bank.uri()).unwrap(); // closed after the writer
            assert_eq!(number(&reader, ACCOUNTS), 2);
            let writer = Connection::open(bank.uri()).unwrap();
            writer.execute_batch("BEGIN").unwrap();
            deposit(&writer, 7);
            panic!("the test's own failure");
        }
        "fails when its connections are closed" => {
            let bank = bank();
            bank.connect().unwrap().execute_batch("DELETE FROM account WHERE id = 1").unwrap();
            bank.connect().unwrap().execute_batch("DELETE FROM account WHERE id = 2").unwrap();
            Engine::new().connect().unwrap().execute_batch("CREATE TABLE of_another (a)").unwrap();
            panic!("the test's own failure");
        }
        "fails twice in a thread" => {
            let fails = || {
                let bank = bank();
                thread::spawn(move || ends_in_a_transaction(&bank)).join().unwrap();
            };
            (0..2).for_each(|_| assert!(catch_unwind(fails).is_err()));
        }
        role @ ("has a thread that goes on after a test has ended"
        | "has a thread that asks for an engine after a test has ended") => {
            let asks = role.contains("asks");
            let (send, receive) = std::sync::mpsc::channel::<()>();
            let test = move || {
                let bank = bank();
                let other = bank.clone();
                let goes_on = thread::spawn(move || {
                    let _ = receive.recv(); // until the test has ended
                    let _another = asks.then(Engine::new);
                    drop(other);
                });
                let failed = catch_unwind(AssertUnwindSafe(|| ends_in_a_transaction(&bank)));
                std::mem::forget(bank); // a panic has dropped it
                (goes_on, failed.is_err())
            };
            let test = thread::Builder::new().name("inner".to_owned()).spawn(test).unwrap();
            let (goes_on, has_failed) = test.join().unwrap();
            assert!(has_failed);
            drop(send);
            goes_on.join().unwrap();
        }
        "fails on a connection on which a thread has failed" => {
            let bank = bank();
            let fails = || {
                let work = bank.unit_of_work().unwrap();
                work.execute("INSERT INTO account VALUES (1, 'twice', 0)", []).unwrap();
            };
            assert!(thread::scope(|scope| scope.spawn(fails).join()).is_err());
            bank.try_transaction(|work| work.execute("DELETE FROM account WHERE id = 2", [])).unwrap();
            panic!("the test's own failure");
        }
        "fails while nothing is watched" => {
            let bank = bank();
            bank.strict();
            bank.unwatched(|| {
                let connection = bank.pooled_connection().unwrap();
                connection.execute("INSERT INTO account VALUES (1, 'twice', 0)", []).unwrap();
            });
        }
        "fails before a recording has statements" => {
            let bank = bank();
            let connection = bank.pooled_connection().unwrap();
            deposit(&connection, 7);
            let _recording = bank.record();
            panic!("the test's own failure");
        }
        "commits while it fails" => {
            struct Commits(Engine);
            impl Drop for Commits {
                fn drop(&mut self) {
                    self.0.try_transaction(|work| work.execute("DELETE FROM account WHERE id = 2", [])).unwrap();
                }
            }
            let commits = Commits(bank());
            let connection = Connection::open(commits.0.uri()).unwrap();
            connection.execute_batch("BEGIN IMMEDIATE").unwrap();
            deposit(&connection, 7);
            panic!("the test's own failure");
        }
        "commits and fails after a thread that has failed" => {
            let bank = bank();
            assert!(thread::scope(|scope| scope.spawn(|| ends_in_a_transaction(&bank)).join()).is_err());
            bank.try_transaction(|work| work.execute("DELETE FROM account WHERE id = 2", [])).unwrap();
            panic!("the test's own failure");
        }
        "fails after many threads that have failed" => {
            let bank = bank();
            for _ in 0..20 {
                assert!(thread::scope(|scope| scope.spawn(|| ends_in_a_transaction(&bank)).join()).is_err());
            }
            let work = bank.begin(Immediate).unwrap();
            deposit(&work, 1);
            panic!("the test's own failure");
        }
        "fails after a panic has ended a recording" => {
            let bank = bank();
            let records = || {
                let _recording = bank.record();
                deposit(&bank.connect().unwrap(), 7);
                panic!("an earlier panic");
            };
            assert!(catch_unwind(AssertUnwindSafe(records)).is_err());
            bank.try_transaction(|work| work.execute("DELETE FROM account WHERE id = 2", [])).unwrap();
            panic!("the test's own failure");
        }
        "fails after it has dropped another engine" => {
            deposit(&bank().connect().unwrap(), 1);
            let bank = bank();
            deposit(&bank.connect().unwrap(), 2);
            panic!("the test's own failure");
        }
        "drops ten engines" => (0..10).for_each(|amount| deposit(&bank().connect().unwrap(), amount)),
        "passes with a shared engine" => {
            let engine = Engine::shared("file:failing?mode=memory&cache=shared").unwrap();
            engine.unit_of_work().unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
        }
        "fails after others have dropped transactions" => {
            let bank = bank();
            let drops = || deposit(&bank.begin(Immediate).unwrap(), 7);
            let of_another_test = thread::Builder::new().name("another_test".to_owned());
            thread::scope(|scope| of_another_test.spawn_scoped(scope, drops).unwrap().join().unwrap());
            thread::scope(|scope| scope.spawn(drops).join().unwrap());
            (0..6).for_each(|_| drops());
            panic!("the test's own failure");
        }
        "fails with twenty lines of changes" => {
            let bank = bank();
            let account =
                |id: i64| bank.connect().unwrap().execute("INSERT INTO account (id, balance) VALUES (?1, 0)", [id]);
            (3..=21).for_each(|id| assert_eq!(account(id), Ok(1)));
            panic!("the test's own failure");
        }
        "fails while a thread with a name is there" => {
            let bank = bank();
            let other = bank.clone();
            let (send, receive) = std::sync::mpsc::channel();
            let works = move || {
                deposit(&other.connect().unwrap(), 7);
                send.send(()).unwrap();
                thread::park(); // the statements of a thread that ends are gone
            };
            thread::Builder::new().name("worker".to_owned()).spawn(works).unwrap();
            receive.recv().unwrap();
            ends_in_a_transaction(&bank);
        }
        "fails after it has dropped a transaction" => {
            let bank = bank();
            deposit(&bank.begin(Immediate).unwrap(), 7);
            panic!("the test's own failure");
        }
        "keeps an engine on demand" => keeps_an_engine_on_demand(),
        "fails after a thread that has failed" => {
            let bank = bank();
            let thread = thread::scope(|scope| scope.spawn(|| ends_in_a_transaction(&bank)).join());
            assert!(thread.is_err());
            let work = bank.begin(Immediate).unwrap();
            deposit(&work, 1);
            panic!("the test's own failure");
        }
        "fails with a handle that is dropped before a connection" => {
            let bank = bank();
            let connection = bank.connect().unwrap();
            connection.execute_batch("BEGIN").unwrap();
            deposit(&connection, 7);
            let _handle = bank.clone();
            panic!("the test's own failure");
        }
        "fails with a page's own text" => {
            let (bank, other) = (bank(), bank());
            let insert = format!("INSERT INTO account (owner, balance) VALUES ({}, 0)", literal(EVIL));
            let writer = other.clone();
            let (send, receive) = std::sync::mpsc::channel();
            let works = move || {
                writer.connect().unwrap().execute_batch(&insert).unwrap();
                send.send(()).unwrap();
                thread::park(); // the statements of a thread that ends are gone
            };
            thread::Builder::new().name(EVIL.to_owned()).spawn(works).unwrap();
            receive.recv().unwrap();
            let work = bank.begin(Immediate).unwrap();
            work.execute("UPDATE account SET owner = ?1 WHERE id = 2", [EVIL]).unwrap();
            work.execute_batch(&format!("SELECT * FROM \"{EVIL}\"")).unwrap_err();
            work.execute_batch(&format!("CREATE TABLE \"{EVIL}\" (a)")).unwrap();
            panic!("{EVIL}");
        }
        "fails with a pooled connection in a transaction" => {
            let bank = bank();
            let pooled = bank.pooled_connection().unwrap();
            pooled.execute_batch("BEGIN").unwrap();
            deposit(&pooled, 7);
            panic!("the test's own failure");
        }
        "drops an engine and goes on with a shared one" => {
            drop(bank());
            let shared = Engine::shared("file:failing?mode=memory&cache=shared").unwrap();
            drop(shared.unit_of_work().unwrap());
        }
        "passes with an engine that another thread has" | "fails with an engine that another thread has" => {
            let (bank, fails) = (bank(), role().starts_with("fails"));
            let uses = move || {
                deposit(&bank.connect().unwrap(), 7);
                assert!(!fails, "the test's own failure");
            };
            thread::spawn(uses).join().unwrap();
        }
        "passes with a kept value" => {
            static BANKS: KeptValues<Connection> = KeptValues::new(&BANK);
            let kept = || BANKS.get_or_make(|engine| Ok(Connection::open(engine.uri())?)).unwrap();
            thread::scope(|scope| scope.spawn(|| drop(kept())).join().unwrap()); // the value of an earlier test
            deposit(&kept(), 7);
        }
        "fails with a kept value" => {
            static BANKS: KeptValues<Connection> = KeptValues::new(&BANK);
            let kept = || BANKS.get_or_make(|engine| Ok(Connection::open(engine.uri())?)).unwrap();
            drop(kept()); // the value of an earlier test
            let bank = kept();
            deposit(&bank, 7);
            bank.execute_batch("BEGIN").unwrap();
            deposit(&bank, 1);
            panic!("the test's own failure");
        }
        "fails in a test with a page's own text as its name" => {
            let fails = move || ends_in_a_transaction(&bank());
            assert!(thread::Builder::new().name(EVIL.to_owned()).spawn(fails).unwrap().join().is_err());
        }
        "fails without a template" => {
            let engine = Engine::new();
            engine.connect().unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
            panic!("the test's own failure");
        }
        "resumes a panic after another one" => {
            assert!(catch_unwind(|| ends_in_a_transaction(&bank())).is_err());
            drop(bank()); // the panic was caught
            let bank = bank();
            deposit(&bank.connect().unwrap(), 11);
            let thread = thread::spawn(|| panic!("the test's own failure")).join();
            let _bank = bank;
            resume_unwind(thread.unwrap_err());
        }
        other => panic!("there is no role {other:?}"),
    }
}

#[test]
fn child_with_a_result() -> Result<(), String> {
    let bank = BANK.new_engine().unwrap();
    match &*role() {
        "" => Ok(()),
        "a thread fails" => {
            let other = bank.clone();
            let fails = move || {
                deposit(&other.begin(Immediate).unwrap(), 7);
                panic!("the thread's own failure");
            };
            let thread = thread::spawn(fails).join();
            thread.map_err(|_| "a thread of the test failed".to_owned())
        }
        _ => {
            Err(format!("the test's own failure: {}", number(&bank.connect().unwrap(), "SELECT count(*) FROM account")))
        }
    }
}

#[test]
#[should_panic(expected = "as it should")]
fn child_that_should_panic() {
    let _bank = (!role().is_empty()).then(|| BANK.new_engine().unwrap());
    panic!("as it should");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn child_with_a_property(amounts in vec(0i64..1000, 0..50)) {
        if !role().is_empty() {
            let bank = BANK.new_engine().unwrap();
            if role() == "passes" {
                return Ok(());
            }
            if role() == "fails in threads" {
                let fails = || assert!(amounts.iter().sum::<i64>() < 1900, "it is too much");
                deposit(&bank.connect().unwrap(), amounts.iter().sum());
                thread::scope(|scope| scope.spawn(|| { let _bank = bank.clone(); fails(); }).join()).unwrap();
                return Ok(());
            }
            amounts.iter().for_each(|amount| bank.transaction(|work| { deposit(work, *amount); Ok(()) }).unwrap());
            let work = bank.begin(Immediate).unwrap();
            deposit(&work, 1);
            let balance = number(&work, "SELECT balance FROM account WHERE id = 1");
            assert!(balance <= 2000, "{balance} is too much");
        }
    }
}

/// Where the tests of a process that fail at the same time meet.
static TOGETHER: Rendezvous = Rendezvous::of(2);

/// Fails with a deposit that is committed and one that is not, when the other test does.
fn fails_with_another_test(amount: i64) {
    if !role().is_empty() {
        let bank = BANK.new_engine().unwrap();
        deposit(&bank.connect().unwrap(), amount);
        let work = bank.begin(Immediate).unwrap();
        deposit(&work, 1);
        assert!(TOGETHER.meet(Duration::from_secs(60)), "the other test does not run");
        panic!("the test's own failure by {amount}");
    }
}

#[test]
fn child_that_fails_with_another() {
    fails_with_another_test(10);
}

#[test]
fn child_that_fails_with_the_other() {
    fails_with_another_test(20);
}

static SHARED: LazyLock<Engine> = LazyLock::new(|| BANK.new_engine().unwrap());

#[test]
fn child_that_creates_a_static_engine() {
    if !role().is_empty() {
        assert_eq!(number(&SHARED.connect().unwrap(), ACCOUNTS), 2);
    }
}

/// It runs after the one before.
#[test]
fn child_that_then_uses_a_static_engine() {
    if !role().is_empty() {
        let work = SHARED.begin(Immediate).unwrap();
        deposit(&work, 7);
        panic!("the test's own failure");
    }
}

/// A run of a `child…` test.
struct Run {
    folder: TempDir,
    output: Output,
}

impl Run {
    fn of(role: &str) -> Run {
        Run::with(role, "failing::child", &[])
    }

    fn with(role: &str, test: &str, variables: &[(&str, &str)]) -> Run {
        Run::again(tempfile::tempdir().unwrap(), role, test, variables)
    }

    fn again(folder: TempDir, role: &str, test: &str, variables: &[(&str, &str)]) -> Run {
        Run::on_threads(1, folder, role, test, variables)
    }

    /// Runs several tests at the same time.
    fn on_threads(threads: usize, folder: TempDir, role: &str, test: &str, variables: &[(&str, &str)]) -> Run {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(test.split(' ')).args(["--exact", &format!("--test-threads={threads}")]);
        command.env(ROLE, role).env("RUSQLITE_FIXTURES_DIR", folder.path()).env_remove("RUSQLITE_FIXTURES_KEEP");
        command.env("RUST_BACKTRACE", "0").env("CARGO_PKG_NAME", "bank").envs(variables.iter().copied());
        Run { output: command.output().unwrap(), folder }
    }

    /// Asserts whether the test has passed.
    fn passes(self, expected: bool) -> Run {
        assert_eq!(self.output.status.success(), expected, "{}", self.printed());
        assert!(!self.printed().contains("panicked while"), "{}", self.printed());
        self
    }

    /// Returns what the test runner prints, with the test's captured output if it has failed.
    fn printed(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.output.stdout), String::from_utf8_lossy(&self.output.stderr))
    }

    fn assert_printed(&self, expected: &str) {
        let printed = self.printed().replace(&*self.folder.path().to_string_lossy(), "<folder>");
        assert!(printed.contains(expected), "there is no\n{expected}\nin\n{printed}");
    }

    /// Returns the folder of the program's tests.
    fn program(&self, kind: &str) -> PathBuf {
        let programs = names(&self.folder.path().join(kind));
        assert!(programs.len() <= 1, "{programs:?}");
        programs.first().map_or(PathBuf::new(), |program| self.folder.path().join(kind).join(program))
    }

    /// Returns the tests of which files are kept.
    fn kept(&self) -> Vec<String> {
        names(&self.program("failed"))
    }

    fn file(&self, test: &str, file: &str) -> PathBuf {
        self.program("failed").join(test).join(file)
    }

    fn select(&self, file: &str, sql: &str) -> i64 {
        number(&Connection::open(self.file("failing.child", file)).unwrap(), sql)
    }
}

/// Returns the sorted names in a folder; none if there is no folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let names: BTreeSet<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.into_iter().collect()
}

const BALANCE: &str = "SELECT balance FROM account WHERE id = 1";
const ACCOUNTS: &str = "SELECT count(*) FROM account";

#[test]
fn a_test_that_fails_keeps_what_is_committed_and_what_is_not() {
    let run = Run::of("fails").passes(false);
    assert_eq!(run.program("failed").file_name().unwrap(), "bank.it");
    assert_eq!(run.kept(), ["failing.child"]);
    assert_eq!(
        names(&run.file("failing.child", "")),
        ["database.sqlite3", "report.html", "statements.sql", "uncommitted.sqlite3"]
    );
    assert_eq!([BALANCE, ACCOUNTS].map(|sql| run.select("database.sqlite3", sql)), [100, 1]);
    assert_eq!([BALANCE, ACCOUNTS].map(|sql| run.select("uncommitted.sqlite3", sql)), [107, 1]);
    let statements = fs::read_to_string(run.file("failing.child", "statements.sql")).unwrap();
    assert!(
        statements.contains("\nDELETE FROM account WHERE id = ?1;\nCOMMIT;\nBEGIN IMMEDIATE;\nUPDATE account"),
        "{statements}"
    );

    assert!(!run.printed().contains("is not kept"), "{}", run.printed());
    run.assert_printed("the test's own failure");
    run.assert_printed(" is kept as it was:\n  <folder>/failed/bank.it/failing.child/report.html\n");
    run.assert_printed(
        "
  sqlite3 <folder>/failed/bank.it/failing.child/database.sqlite3
  committed since it was created:
    account
      - id 2, owner 'bob', balance 50
  sqlite3 <folder>/failed/bank.it/failing.child/uncommitted.sqlite3
  not committed by the unit of work begun at tests/it/failing.rs:",
    );
    run.assert_printed("account\n      ~ id 1: balance 100 -> 107\n  the newest statements, without their values:\n    BEGIN IMMEDIATE\n");
    run.assert_printed("\n    UPDATE account SET balance = balance + ?1 WHERE id = 1\n");
}

#[test]
fn connections_of_rusqlite_leave_what_they_have_not_committed() {
    for role in ["fails in a transaction of rusqlite", "fails with a connection in a transaction"] {
        let run = Run::of(role).passes(false);
        assert_eq!(run.select("uncommitted.sqlite3", BALANCE), 107, "{role}");
        assert_eq!(run.select("database.sqlite3", BALANCE), 100, "{role}");
        run.assert_printed("not committed by a connection that was opened by the engine's URI:\n");
    }
}

#[test]
fn a_pooled_connection_leaves_what_it_has_not_committed() {
    let run = Run::of("fails with a pooled connection in a transaction").passes(false);
    assert_eq!(["database.sqlite3", "uncommitted.sqlite3"].map(|file| run.select(file, BALANCE)), [100, 107]);
    run.assert_printed("not committed by the connection opened at tests/it/failing.rs:");
}

#[test]
fn the_engine_of_a_kept_value_is_kept() {
    let run = Run::of("fails with a kept value").passes(false);
    assert_eq!(["database.sqlite3", "uncommitted.sqlite3"].map(|file| run.select(file, BALANCE)), [107, 108]);
    run.assert_printed("committed since it was created:\n    account\n      ~ id 1: balance 100 -> 107\n");
}

#[test]
fn a_connection_without_its_engine_leaves_both() {
    let run = Run::of("fails when only a connection is left").passes(false);
    assert_eq!(run.select("database.sqlite3", BALANCE), 107);
    assert_eq!(run.select("uncommitted.sqlite3", BALANCE), 108);
    run.assert_printed("committed since it was created:\n    account\n      ~ id 1: balance 100 -> 107\n");
    run.assert_printed("not committed by the connection opened at tests/it/failing.rs:");
}

#[test]
fn the_statement_that_failed_is_marked() {
    let run = Run::of("fails by an error of SQLite").passes(false);
    const FAILED: &str = "INSERT INTO account VALUES (?1, ?2, 0)";
    run.assert_printed(&format!("\n    BEGIN\n  > {FAILED}\n    failed: UNIQUE constraint failed: account.owner\n"));
    let statements = fs::read_to_string(run.file("failing.child", "statements.sql")).unwrap();
    assert!(
        statements.ends_with(&format!("{FAILED};\n-- failed: UNIQUE constraint failed: account.owner\n")),
        "{statements}"
    );

    let run = Run::of("fails by SQL that is wrong").passes(false);
    run.assert_printed("\n    UPDATE account SET balance = balance + ?1 WHERE id = 1\n  > no such table: acount\n");
}

#[test]
fn a_recording_has_the_values() {
    let run = Run::of("fails while it is recorded").passes(false);
    run.assert_printed(
        "the newest statements:\n    UPDATE account SET balance = balance + 7 WHERE id = 1 -- 1 row changed, ",
    );
    let statements = fs::read_to_string(run.file("failing.child", "statements.sql")).unwrap();
    assert_eq!(statements.matches("balance + 7").count(), 2, "{statements}");
    assert!(!statements.contains("Without values"), "{statements}");
}

/// Strict mode has a recording of its own, which began later.
#[test]
fn a_recording_without_statements_hides_no_other_one() {
    let run = Run::of("fails with a recording and a strict engine").passes(false);
    let statements = fs::read_to_string(run.file("failing.child", "statements.sql")).unwrap();
    assert!(statements.contains("balance + 7") && !statements.contains("Without values"), "{statements}");
}

#[test]
fn a_failing_test_with_pooled_connections_is_printed_once() {
    let run = Run::of("fails with pooled connections").passes(false);
    let printed = run.printed();
    assert_eq!(printed.matches(" is kept as it was:").count(), 1, "{printed}");
    let run = Run::of("fails by an error on one of two pooled connections").passes(false);
    run.assert_printed(
        "> INSERT INTO account VALUES (3, 'ann', 0)\n    failed: UNIQUE constraint failed: account.owner\n",
    );
}

/// Threads of several tests may have no name.
#[test]
fn a_thread_without_a_name_removes_nothing() {
    let run = Run::of("fails in a thread without a name").passes(true);
    let kept = run.kept();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let run = Run::again(run.folder, "has a thread without a name", "failing::child", &[]).passes(true);
    assert_eq!(run.kept(), kept);
}

#[test]
fn a_test_that_survives_all_panics_leaves_nothing() {
    assert_eq!(Run::of("survives the panics of a thread and of its own").passes(true).kept(), [""; 0]);
}

/// For example the threads of the runtimes of two tests.
#[test]
fn a_thread_removes_nothing_of_another_one_with_its_name() {
    assert_eq!(Run::of("has two threads of the same name").passes(true).kept(), ["worker"]);
    assert_eq!(Run::of("has two threads of the same name that go on").passes(true).kept(), [""; 0]);
    let role = "has passing threads with the name of one that has failed and runs";
    let run = Run::of(role).passes(true);
    assert_eq!(run.kept(), ["worker"]);
    let kept = Connection::open(run.program("failed").join("worker/database.sqlite3")).unwrap();
    assert_eq!(number(&kept, "SELECT balance FROM account WHERE id = 1"), 102, "the last failure");
}

#[test]
fn who_holds_the_writer_slot_is_printed() {
    let run = Run::of("fails while another thread writes").passes(false);
    run.assert_printed("  the writer slot is held by an unnamed thread (ThreadId(");
    run.assert_printed("in the unit of work begun at tests/it/failing.rs:");
    for (role, holder) in [
        ("is refused by a unit of work of its own", "in the unit of work begun at tests/it/failing.rs:"),
        ("is refused by a connection of its own", "in the connection opened at tests/it/failing.rs:"),
    ] {
        let run = Run::of(role).passes(false);
        let printed = run.printed();
        let lines: Vec<&str> = printed.lines().filter(|line| line.contains("  the writer slot ")).collect();
        assert!(!lines.is_empty() && lines.iter().all(|line| line.contains(holder)), "{printed}");
        assert!(
            lines
                .last()
                .unwrap()
                .contains("  the writer slot was refused to this thread, because it was taken by thread `"),
            "{printed}"
        );
    }
    for role in ["was refused, and then got the slot", "was refused, and then read"] {
        let printed = Run::of(role).passes(false).printed();
        assert!(!printed.contains("  the writer slot "), "{printed}");
    }
}

#[test]
fn a_test_that_passes_removes_what_it_left() {
    let run = Run::of("fails").passes(false);
    assert_eq!(run.kept(), ["failing.child"]);
    let run = Run::again(run.folder, "", "failing::child_with_a_result", &[]).passes(true);
    assert_eq!(run.kept(), ["failing.child"], "it is of another test");
    let run = Run::again(run.folder, "fails", "failing::child", &[]).passes(false);
    assert_eq!(run.kept(), ["failing.child"]);
    let run = Run::again(run.folder, "passes", "failing::child", &[]).passes(true);
    assert_eq!(run.kept(), [""; 0]);

    for what in ["a shared engine", "a kept value", "an engine that another thread has"] {
        let run = Run::of(&format!("fails with {what}")).passes(false);
        assert_eq!(run.kept(), ["failing.child"], "{what}");
        let run = Run::again(run.folder, &format!("passes with {what}"), "failing::child", &[]).passes(true);
        assert_eq!(run.kept(), [""; 0], "{what}");
    }

    let tests = "failing::child failing::child_with_a_property";
    let run = Run::with("fails", tests, &[]).passes(false);
    assert_eq!(run.kept(), ["failing.child", "failing.child_with_a_property"]);
    let run = Run::again(run.folder, "passes", tests, &[]).passes(true);
    assert_eq!(run.kept(), [""; 0]);
}

#[test]
fn a_panic_that_a_test_catches_leaves_nothing_if_the_test_goes_on() {
    assert_eq!(Run::of("catches a panic and goes on").passes(true).kept(), [""; 0]);
    let run = Run::of("catches a panic and fails later").passes(false);
    assert_eq!(run.kept(), ["failing.child"], "what is known of the first panic");
    // These can't be told from tests that fail.
    assert_eq!(Run::of("catches a panic at its end").passes(true).kept(), ["failing.child"]);
    let run = Run::with("fails", "failing::child_that_should_panic", &[]).passes(true);
    assert_eq!(run.kept(), ["failing.child_that_should_panic"]);
}

#[test]
fn a_panic_that_is_resumed_counts() {
    let run = Run::of("fails").passes(false);
    let run = Run::again(run.folder, "fails after another engine has passed", "failing::child", &[]).passes(false);
    assert_eq!(run.kept(), ["failing.child"]);
    let statements = fs::read_to_string(run.file("failing.child", "statements.sql")).unwrap();
    assert!(!statements.contains("an earlier panic"), "{statements}");
    let run = Run::again(run.folder, "fails while a thread goes on", "failing::child", &[]).passes(false);
    assert_eq!(run.kept(), ["failing.child"]);
}

#[test]
fn nothing_of_the_test_before_is_kept() {
    let run = Run::of("fails on a reused connection").passes(false);
    let statements = fs::read_to_string(run.file("failing.child", "statements.sql")).unwrap();
    assert!(statements.contains("UPDATE account") && !statements.contains("DELETE"), "{statements}");
    let run = Run::of("fails on a reused engine").passes(false);
    assert_eq!(names(&run.file("failing.child", "")), ["database.sqlite3", "report.html", "statements.sql"]);
}

#[test]
fn the_first_twenty_lines_of_changes_are_printed() {
    let run = Run::of("fails with many changes").passes(false);
    // Two lines of the schema, two of pragmas, and 101 of rows; 19 are shown.
    run.assert_printed(
        "created:\n    schema\n      + table t: CREATE TABLE t (a)\n    pragmas\n      ~ user_version 0 -> 1\n    t\n      + rowid 1, a 1\n",
    );
    run.assert_printed("      + rowid 14, a 14\n    … and 86 more lines\n  the newest");
    let run = Run::of("fails with twenty lines of changes").passes(false);
    run.assert_printed("      + id 21, owner NULL, balance 0\n  the newest");
}

#[test]
fn the_newest_transactions_that_the_test_has_dropped_are_printed() {
    let run = Run::of("fails after others have dropped transactions").passes(false);
    assert_eq!(run.printed().matches("  rolled back, because it was dropped without a commit: ").count(), 5);
    run.assert_printed("\n  and 2 transactions before these\n");
}

#[test]
fn statements_of_closed_connections_are_kept_if_they_are_of_the_engine() {
    let run = Run::of("fails when its connections are closed").passes(false);
    let statements = fs::read_to_string(run.file("failing.child", "statements.sql")).unwrap();
    let (first, second) = ("DELETE FROM account WHERE id = 1;\n", "DELETE FROM account WHERE id = 2;\n");
    assert!(statements.ends_with(&format!("{first}{second}")), "{statements}");
}

#[test]
fn statements_of_another_thread_have_its_name() {
    let run = Run::of("fails while a thread with a name is there").passes(false);
    run.assert_printed(
        "\n    UPDATE account SET balance = balance + ?1 WHERE id = 1 (thread `worker`)\n    BEGIN IMMEDIATE\n",
    );
}

#[test]
#[cfg(feature = "report")]
fn the_report_has_what_is_printed() {
    let page = |role: &str| {
        let run = Run::of(role).passes(false);
        fs::read_to_string(run.file("failing.child", "report.html")).unwrap()
    };
    let has = |page: &str, part: &str| assert!(page.contains(part), "no {part} in\n{page}");
    let fails = page("fails");
    has(&fails, "<title>failing::child</title>");
    has(&fails, "<p>panicked at <code>tests/it/failing.rs:");
    has(&fails, "<pre class=\"panic\">the test's own failure</pre>");
    has(&fails, "<h3>Committed since the engine was created</h3><h4>account <small>1 deleted</small></h4>");
    has(&fails, "<h3>Not committed by the unit of work begun at tests/it/failing.rs:");
    has(&fails, "<td class=\"changed\"><del>100</del> <ins>107</ins></td>");
    has(&fails, "<li><code>DELETE FROM account WHERE id = ?1</code>");
    has(&fails, "<summary>Schema</summary><pre>CREATE TABLE account");
    has(&page("fails by an error of SQLite"), "<li class=\"failed\"><code>INSERT INTO account");
    has(&page("fails while it is recorded"), "<code>UPDATE account SET balance = balance + 7 WHERE id = 1</code>");
    has(
        &page("fails while another thread writes"),
        "<p class=\"note\">The writer slot is held by an unnamed thread (ThreadId(",
    );
    has(
        &page("fails after it has dropped a transaction"),
        "<p class=\"note\">Rolled back, because it was dropped without a commit: the unit of work begun at tests/it/failing.rs:",
    );
}

#[test]
fn a_browser_shows_the_report_of_a_failure_as_text() {
    let run = Run::of("fails with a page's own text").passes(false);
    let page = fs::read_to_string(run.file("failing.child", "report.html")).unwrap();
    let script = format!(
        "const all = (selector) => [...document.querySelectorAll(selector)].map((part) => part.textContent);
         const has = (selector, part) => all(selector).some((text) => text.includes(part));
         assert(`title ${{document.title}}`, document.title === 'failing::child');
         assert('elements', document.images.length === 0 && all('template').length === 0);
         assert('engines', all('section.engine').length === 2);
         assert('panic', all('pre.panic').join() === {EVIL:?});
         for (const place of ['.recent code', '.recent small', 'pre.change']) assert(place, has(place, {EVIL:?}));
         for (const place of ['tr.inserted td', 'td ins']) assert(place, has(place, {:?}));
         {FITS}",
        literal(EVIL)
    );
    assert_failure_in_browser(&page, &script);

    let run = Run::of("fails in a test with a page's own text as its name").passes(true);
    let page = fs::read_to_string(run.file(&run.kept()[0], "report.html")).unwrap();
    let script = format!(
        "assert(`title ${{document.title}}`, document.title === {EVIL:?} && document.images.length === 0);
         assert('heading', document.querySelector('h1').textContent === {EVIL:?});
         {FITS}"
    );
    assert_failure_in_browser(&page, &script);
}

/// Runs a script in a narrow and in a wide window.
fn assert_failure_in_browser(page: &str, script: &str) {
    for width in [400, 1600] {
        let script = format!("const width = {width}; assert(`${{innerWidth}}`, innerWidth === width); {script}");
        assert_in_browser(page, width, &script.replace("</", "<\\/"));
    }
}

/// A script that asserts that no part of the page is wider than the window.
const FITS: &str = "
    for (const part of document.querySelectorAll('h1, h2, h3, h4, p, pre, .scroll, .recent, details')) {
        const { right } = part.getBoundingClientRect();
        assert(`${part.className || part.tagName} ends at ${right}`, right <= width);
        const hides = part.matches('.scroll') || part.scrollWidth <= part.clientWidth;
        assert(`${part.className || part.tagName} is ${part.scrollWidth} wide`, hides);
    }";

#[test]
fn what_is_not_committed_is_that_of_the_test_s_own_panic() {
    let run = Run::of("fails after a thread that has failed").passes(false);
    assert_eq!(run.select("uncommitted.sqlite3", BALANCE), 101);
    let run = Run::of("fails with a handle that is dropped before a connection").passes(false);
    assert_eq!(run.select("uncommitted.sqlite3", BALANCE), 107);
}

/// Whatever the process lets other users do. Images of templates are not used where others can write.
#[cfg(unix)]
#[test]
fn the_folder_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("new");
    let mut command = Command::new("sh");
    command.args(["-c", r#"umask 0; exec "$0" "$@""#]).arg(env::current_exe().unwrap());
    command.args(["--exact", "failing::child"]).env(ROLE, "fails without a template");
    assert!(!command.env("RUSQLITE_FIXTURES_DIR", &folder).output().unwrap().status.success());
    for folder in [folder.clone(), folder.join("failed")] {
        let mode = fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", folder.display());
    }
}

/// Without RUSQLITE_FIXTURES_DIR.
#[test]
fn files_are_in_the_target_folder_by_default() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    fs::create_dir_all(target.join("debug/deps")).unwrap();
    let copy = target.join("debug/deps/it-0123456789abcdef");
    fs::copy(env::current_exe().unwrap(), &copy).unwrap();
    let run = || {
        let mut command = Command::new(&copy);
        command.args(["--exact", "failing::child"]).env(ROLE, "fails").env("CARGO_PKG_NAME", "bank");
        command.env_remove("RUSQLITE_FIXTURES_DIR").env_remove("RUSQLITE_FIXTURES_KEEP");
        let run = Run { output: output_of_copy(&mut command), folder: tempfile::tempdir().unwrap() };
        run.passes(false)
    };
    // Without CACHEDIR.TAG, the folder may not be Cargo's.
    let outside = run();
    outside.assert_printed("\nthe test's own failure\n");
    outside.assert_printed(
        "rusqlite-fixtures: can't keep the databases of this test: this program is not in Cargo's target folder; \
         set RUSQLITE_FIXTURES_DIR to a folder for the files\n",
    );
    assert_eq!(names(&target), ["debug"]);
    fs::write(target.join("CACHEDIR.TAG"), "Signature: …\n# This file is a cache directory tag created by cargo.\n")
        .unwrap();
    let kept = target.join("rusqlite-fixtures/failed/bank.it/failing.child");
    run().assert_printed(&format!("\n  sqlite3 {}\n", kept.join("database.sqlite3").display()));
    assert_eq!(number(&Connection::open(kept.join("uncommitted.sqlite3")).unwrap(), BALANCE), 107);
}

#[test]
fn a_relative_folder_is_refused() {
    let run = Run::with("fails without a template", "failing::child", &[("RUSQLITE_FIXTURES_DIR", "relative")]);
    run.passes(false)
        .assert_printed("can't keep the databases of this test: RUSQLITE_FIXTURES_DIR must be an absolute path\n");
}

#[test]
fn a_panic_that_is_resumed_has_its_own_engines() {
    let run = Run::of("resumes a panic after another one").passes(false);
    assert_eq!(run.select("database.sqlite3", BALANCE), 111);
    assert_eq!(names(&run.file("failing.child", "")), ["database.sqlite3", "report.html", "statements.sql"]);
}

#[test]
fn faults_of_the_test_are_not_for_what_is_kept() {
    let run = Run::of("fails while reads fail").passes(false);
    assert_eq!(run.select("uncommitted.sqlite3", "SELECT balance FROM account NOT INDEXED WHERE id = 1"), 107);
}

#[test]
fn the_last_panic_counts() {
    let run = Run::of("catches a panic and fails with another engine").passes(false);
    assert_eq!(run.kept(), ["failing.child"]);
    assert_eq!(run.select("database.sqlite3", BALANCE), 111);
    assert!(!run.file("failing.child", "uncommitted.sqlite3").exists(), "that is of the first panic");
}

#[test]
fn a_test_that_returns_an_error_keeps_nothing_unless_it_is_asked_to() {
    const TEST: &str = "failing::child_with_a_result";
    assert_eq!(Run::with("fails", TEST, &[]).passes(false).kept(), [""; 0]);
    let always = [("RUSQLITE_FIXTURES_KEEP", "always")];
    let run = Run::with("fails", TEST, &always).passes(false);
    assert_eq!(run.kept(), ["failing.child_with_a_result"]);
    run.assert_printed("the newest statements:\n    SELECT count(*) FROM account -- 1 row, ");
    let run = Run::with("fails by an error of SQLite", "failing::child", &always).passes(false);
    run.assert_printed(
        "  > INSERT INTO account VALUES (3, 'ann', 0) -- failed: UNIQUE constraint failed: account.owner",
    );
    let run = Run::with("", TEST, &always).passes(true);
    assert_eq!(run.kept(), ["failing.child_with_a_result"]);
    let run = Run::again(run.folder, "", TEST, &[]).passes(true);
    assert_eq!(run.kept(), [""; 0]);
}

#[test]
fn a_thread_of_a_test_keeps_files_under_the_name_of_the_test() {
    let run = Run::of("fails in a thread").passes(false);
    assert_eq!(run.kept(), ["failing.child"]);
    assert_eq!(run.select("uncommitted.sqlite3", BALANCE), 107);
    run.assert_printed("not committed by the unit of work begun at");
    let statements = fs::read_to_string(run.file("failing.child", "statements.sql")).unwrap();
    assert!(statements.contains("UPDATE account"), "the thread has ended: {statements}");
    assert!(statements.contains("\n-- The panic at tests/it/failing.rs:"), "{statements}");
    run.assert_printed("\n    BEGIN IMMEDIATE (another thread)\n");
}

#[test]
fn all_engines_of_a_test_are_kept() {
    let run = Run::of("fails with two engines").passes(false);
    assert_eq!(
        names(&run.file("failing.child", "")),
        ["database-2.sqlite3", "database.sqlite3", "report.html", "statements-2.sql", "statements.sql"]
    );
    assert_eq!(run.select("database.sqlite3", "SELECT count(*) FROM other"), 0);
    assert_eq!(run.select("database-2.sqlite3", ACCOUNTS), 2);
    run.assert_printed("schema\n      + table other: CREATE TABLE other (a)\n");
    run.assert_printed("database-2.sqlite3\n  committed since it was created: nothing\n");
}

#[test]
fn the_recording_of_a_file_ends_with_its_engine() {
    let always = [("RUSQLITE_FIXTURES_KEEP", "always")];
    let run = Run::with("fails with a file that was opened again", "failing::child", &always).passes(false);
    let script = fs::read_to_string(run.file("failing.child", "statements.sql")).unwrap();
    assert!(script.contains("INSERT INTO note") && !script.contains("CREATE TABLE note"), "{script}");
}

#[test]
fn the_report_of_a_failure_has_the_recording_of_each_engine() {
    let always = [("RUSQLITE_FIXTURES_KEEP", "always")];
    let run = Run::with("fails with two recorded engines", "failing::child", &always).passes(false);
    let page = fs::read_to_string(run.file("failing.child", "report.html")).unwrap();
    let script = "
        const parts = [...document.querySelectorAll('section.engine')];
        assert('timelines', parts.length === 2 && parts.every((part) => part.querySelectorAll('svg.timeline').length === 1));
        const sql = (part) => [...part.querySelectorAll('tbody tr:not(.gap)')].map((row) => row.children[1].textContent);
        const lists = [...document.querySelectorAll('.statements')];
        const [[one], [other]] = lists.map(sql);
        assert(`${one} and ${other}`, [one, other].sort().join() === 'SELECT owner FROM account,SELECT text FROM note');
        const search = lists[1].querySelector('input');
        search.value = 'nothing has this';
        search.dispatchEvent(new Event('input', { bubbles: true }));
        assert('only the second list is filtered', sql(lists[0]).length === 1 && sql(lists[1]).length === 0);";
    assert_failure_in_browser(&page, script);
}

#[test]
fn engines_that_other_threads_have_dropped_are_kept_too() {
    let run = Run::of("fails in a thread that has another engine").passes(false);
    assert_eq!(run.select("database.sqlite3", ACCOUNTS), 2);
    assert_eq!(run.select("uncommitted.sqlite3", BALANCE), 107);
    assert_eq!(run.select("database-2.sqlite3", "SELECT count(*) FROM sqlite_master"), 0);

    let run = Run::of("fails in threads with engines of their own").passes(false);
    assert!(run.file("failing.child", "database-8.sqlite3").exists(), "{}", run.printed());
    let run = Run::of("fails twice in a thread").passes(true);
    assert!(run.file("failing.child", "database.sqlite3").exists());
    assert!(!run.file("failing.child", "database-2.sqlite3").exists(), "the test has gone on after the first failure");
    let run = Run::with("fails in threads", "failing::child_with_a_property", &[]).passes(false);
    assert_eq!(
        names(&run.file("failing.child_with_a_property", "")),
        ["database.sqlite3", "report.html", "statements.sql"],
        "the engines of earlier cases are not kept"
    );
    let database = Connection::open(run.file("failing.child_with_a_property", "database.sqlite3")).unwrap();
    assert_eq!(number(&database, BALANCE), 2000, "the smallest case");
}

#[test]
fn what_a_thread_has_left_is_kept_if_the_test_then_returns_an_error() {
    let run = Run::with("a thread fails", "failing::child_with_a_result", &[]).passes(false);
    assert_eq!(run.kept(), ["failing.child_with_a_result"]);
    run.assert_printed("failing.child_with_a_result/report.html\n");
}

#[test]
fn a_thread_that_goes_on_when_its_test_has_ended_removes_nothing() {
    assert_eq!(Run::of("has a thread that goes on after a test has ended").passes(true).kept(), ["inner"]);
    let run = Run::of("has a thread that asks for an engine after a test has ended").passes(true);
    assert_eq!(run.kept(), ["inner"]);
}

#[test]
fn the_error_of_an_earlier_panic_is_that_of_its_own_statement() {
    let run = Run::of("fails on a connection on which a thread has failed").passes(false);
    let failed = "> INSERT INTO account VALUES (1, 'twice', 0)\n    failed: UNIQUE constraint failed: account.id (another thread)\n";
    run.assert_printed(&format!("{failed}    BEGIN IMMEDIATE\n    DELETE FROM account WHERE id = 2\n    COMMIT\n"));
}

#[test]
fn the_newest_statements_are_known_where_a_recording_has_none() {
    let run = Run::of("fails while nothing is watched").passes(false);
    run.assert_printed(
        "  > INSERT INTO account VALUES (1, 'twice', 0)\n    failed: UNIQUE constraint failed: account.id\n",
    );
    let run = Run::of("fails before a recording has statements").passes(false);
    run.assert_printed("  the newest statements, without their values:\n    UPDATE account SET balance = ");
}

#[test]
fn what_an_earlier_panic_has_rolled_back_is_shown_unless_the_content_has_changed_since() {
    let run = Run::of("commits and fails after a thread that has failed").passes(false);
    assert!(!run.file("failing.child", "uncommitted.sqlite3").exists());
    run.assert_printed("account\n      - id 2, owner 'bob', balance 50\n  the newest");
    let run = Run::of("fails with a connection after a thread that has failed").passes(false);
    assert_eq!(run.select("uncommitted.sqlite3", BALANCE), 107);
    run.assert_printed(", rolled back by an earlier panic:\n");
    let run = Run::of("fails with two connections").passes(false);
    assert_eq!(run.select("uncommitted.sqlite3", BALANCE), 107);
    let run = Run::of("commits while it fails").passes(false);
    run.assert_printed("account\n      - id 2, owner 'bob', balance 50\n");
    run.assert_printed("account\n      ~ id 1: balance 100 -> 107\n  the newest");
    let run = Run::of("fails after many threads that have failed").passes(false);
    assert_eq!(run.select("uncommitted.sqlite3", BALANCE), 101, "what the test itself has not committed");
}

#[test]
fn a_recording_that_an_earlier_panic_has_ended_does_not_count() {
    let run = Run::of("fails after a panic has ended a recording").passes(false);
    let statements = fs::read_to_string(run.file("failing.child", "statements.sql")).unwrap();
    assert!(statements.contains("\nDELETE FROM account WHERE id = 2;\n"), "{statements}");
}

#[test]
fn the_newest_eight_engines_are_kept_if_all_are_asked_for() {
    let always = [("RUSQLITE_FIXTURES_KEEP", "always")];
    let run = Run::with("drops ten engines", "failing::child", &always).passes(true);
    assert_eq!(run.select("database.sqlite3", BALANCE), 102);
    assert_eq!(run.select("database-8.sqlite3", BALANCE), 109);
    assert!(!run.file("failing.child", "database-9.sqlite3").exists());
    let run = Run::with("fails after it has dropped another engine", "failing::child", &always).passes(false);
    assert_eq!(["database.sqlite3", "database-2.sqlite3"].map(|file| run.select(file, BALANCE)), [101, 102]);
    let run = Run::of("fails after it has dropped another engine").passes(false);
    assert_eq!(run.select("database.sqlite3", BALANCE), 102);
}

#[test]
fn the_first_eight_engines_are_kept() {
    let run = Run::of("fails with ten engines").passes(false);
    let balance = |index: i64| {
        let name = if index == 1 { "database.sqlite3".to_owned() } else { format!("database-{index}.sqlite3") };
        run.select(&name, BALANCE)
    };
    for index in 1..=8 {
        let balance = balance(index);
        assert_eq!(balance, 99 + index, "in the order in which they are dropped");
        let name = if index == 1 { "database.sqlite3".to_owned() } else { format!("database-{index}.sqlite3") };
        let change = if balance == 100 {
            "nothing\n".to_owned()
        } else {
            format!("\n    account\n      ~ id 1: balance 100 -> {balance}\n")
        };
        run.assert_printed(&format!(
            "/{name}\n  committed since it was created:{}",
            if balance == 100 { format!(" {change}") } else { change }
        ));
    }
    assert!(!run.file("failing.child", "database-9.sqlite3").exists());
}

#[test]
fn threads_that_fail_at_the_same_time_keep_one_complete_folder() {
    let run = Run::of("fails in many threads").passes(false);
    assert!(!run.printed().contains("can't keep"), "{}", run.printed());
    assert_eq!(run.select("database.sqlite3", ACCOUNTS), 2);
    assert_eq!(names(&run.program("failed")), ["failing.child"]);
    assert_eq!(names(&run.file("failing.child", "")), ["database.sqlite3", "report.html", "statements.sql"]);
}

#[test]
fn tests_that_fail_at_the_same_time_have_complete_folders() {
    let tests = ["child_that_fails_with_another", "child_that_fails_with_the_other"];
    let selected = tests.map(|test| format!("failing::{test}")).join(" ");
    let run = Run::on_threads(2, tempfile::tempdir().unwrap(), "fails", &selected, &[]).passes(false);
    assert_eq!(run.kept(), tests.map(|test| format!("failing.{test}")));
    for (test, amount) in tests.iter().zip([10, 20]) {
        let (folder, failure) = (format!("failing.{test}"), format!("the test's own failure by {amount}"));
        assert_eq!(
            names(&run.file(&folder, "")),
            ["database.sqlite3", "report.html", "statements.sql", "uncommitted.sqlite3"]
        );
        let balance = |file: &str| number(&Connection::open(run.file(&folder, file)).unwrap(), BALANCE);
        assert_eq!(["database.sqlite3", "uncommitted.sqlite3"].map(balance), [100 + amount, 101 + amount]);
        for file in ["report.html", "statements.sql"] {
            let text = fs::read_to_string(run.file(&folder, file)).unwrap();
            assert!(text.contains(&failure) && text.matches("the test's own failure").count() == 1, "{text}");
        }
        let captured = run.printed();
        let (_, captured) = captured.split_once(&format!("---- failing::{test} stdout ----")).unwrap();
        let captured = captured.split_once("\n---- ").map_or(captured, |(captured, _)| captured);
        assert!(
            captured.contains(&failure) && captured.contains(&format!("balance 100 -> {}", 100 + amount)),
            "{captured}"
        );
    }
}

#[test]
fn an_engine_of_several_tests_is_kept_for_the_one_that_fails() {
    let tests = "failing::child_that_creates_a_static_engine failing::child_that_then_uses_a_static_engine";
    let run = Run::with("fails", tests, &[]).passes(false);
    assert_eq!(run.kept(), ["failing.child_that_then_uses_a_static_engine"]);
}

#[test]
fn what_can_be_known_without_a_function_of_the_test_or_an_authorizer_is_kept() {
    let run = Run::of("fails with an on_connect that panics").passes(false);
    assert_eq!(run.select("database.sqlite3", "SELECT count(*) FROM t"), 0);
    assert!(run.file("failing.child", "statements.sql").exists());
    run.assert_printed("created: not known, because a function given to Template::on_connect has panicked\n");
    run.assert_printed("/failing.child/report.html\n");
    let page = fs::read_to_string(run.file("failing.child", "report.html")).unwrap();
    let unknown = "<p class=\"error\">not known, because a function given to Template::on_connect has panicked</p>";
    assert_eq!(page.matches(unknown).count(), 2, "the changes and the schema: {page}");
    let run = Run::of("fails with an on_connect that returns an error").passes(false);
    run.assert_printed("  committed since it was created: can't open a connection to ");
    let page = fs::read_to_string(run.file("failing.child", "report.html")).unwrap();
    assert_eq!(page.matches("<p class=\"error\">can't open a connection to ").count(), 2, "{page}");
    let run = Run::of("fails while pragmas are forbidden").passes(false);
    assert_eq!(run.select("database.sqlite3", BALANCE), 100);
    if cfg!(not(oldest_rusqlite)) {
        // The oldest one removes the authorizer before it closes the connection.
        run.assert_printed("  what the connection opened at tests/it/failing.rs:");
        run.assert_printed(" had not committed could not be read\n");
    }
}

#[test]
fn a_file_that_is_gone_does_not_hide_why_the_test_failed() {
    let run = Run::of("fails when the folder of its engine's file is gone").passes(false);
    assert_eq!(run.printed().matches("panicked at").count(), 1, "{}", run.printed());
    run.assert_printed("/bank.sqlite3` is not kept: the content can't be read: unable to open database file");
    run.assert_printed("/failing.child/report.html\n");
    assert_eq!(names(&run.file("failing.child", "")), ["report.html", "statements.sql"]);
    for file in ["report.html", "statements.sql"] {
        let text = fs::read_to_string(run.file("failing.child", file)).unwrap();
        assert!(text.contains("the test's own failure"), "{file}: {text}");
    }
    let page = fs::read_to_string(run.file("failing.child", "report.html")).unwrap();
    assert_eq!(page.matches("<p class=\"error\">the content can't be read: ").count(), 2, "{page}");
}

#[test]
fn files_of_a_test_that_fails_stay() {
    for role in ["fails with a destructor that asks for an engine", "fails with a thread-local engine and another one"]
    {
        let run = Run::of(role).passes(false);
        assert_eq!(run.kept(), ["failing.child"], "{role}");
        let run = Run::again(run.folder, role, "failing::child", &[]).passes(false);
        assert_eq!(run.kept(), ["failing.child"], "{role}");
        // This panic keeps nothing, so the files are those of the failure before.
        let role = "fails after another thread has dropped its engine";
        let run = Run::again(run.folder, role, "failing::child", &[]).passes(false);
        assert_eq!(run.kept(), ["failing.child"]);
    }
}

/// As documented.
#[test]
fn some_things_are_not_known_of_a_test_that_fails() {
    for role in ["fails with a connection to a static engine", "fails with a thread-local engine"] {
        assert_eq!(Run::of(role).passes(false).kept(), [""; 0], "{role}");
    }
    let run = Run::of("fails with an attached engine").passes(false);
    let files = names(&run.file("failing.child", ""));
    assert_eq!(files.iter().filter(|name| name.starts_with("database")).count(), 2, "{files:?}");
    assert_eq!(files.iter().filter(|name| name.starts_with("uncommitted")).count(), 1, "{files:?}");
    let run = Run::of("fails with a destructor that catches a panic").passes(false);
    assert_eq!(run.kept(), ["failing.child"]);
    let script = fs::read_to_string(run.file("failing.child", "statements.sql")).unwrap();
    assert!(script.contains("the destructor's failure"), "{script}");
    run.assert_printed("the test's own failure");
}

#[test]
fn the_newest_ten_statements_are_printed_and_more_are_kept() {
    let run = Run::of("fails after fifteen statements").passes(false);
    let statements = |from: u64| (from..=15).map(|i| format!("SELECT {i} FROM account"));
    let printed: String = statements(6).map(|sql| format!("    {sql}\n")).collect();
    run.assert_printed(&format!("  the newest statements, without their values:\n{printed}"));
    let kept: String = statements(1).map(|sql| format!("{sql};\n")).collect();
    let script = fs::read_to_string(run.file("failing.child", "statements.sql")).unwrap();
    assert!(script.contains(&kept), "{script}");
}

#[test]
fn a_shared_engine_is_kept_when_a_unit_of_work_fails() {
    let run = Run::of("fails with a shared engine").passes(false);
    assert_eq!(run.select("uncommitted.sqlite3", "SELECT count(*) FROM t"), 0);
    run.assert_printed("schema\n      + table t: CREATE TABLE t (a)\n");
}

#[test]
fn a_test_that_exceeds_its_limits_keeps_its_database() {
    let run = Run::of("exceeds a limit").passes(false);
    assert_eq!(run.select("database.sqlite3", "SELECT count(*) FROM t"), 2);
    run.assert_printed("the limits of Template::watch at");
    run.assert_printed("\n    INSERT INTO t VALUES (1) -- 1 row changed, ");
    let run = Run::with("exceeds a limit", "failing::child", &[("RUSQLITE_FIXTURES_STRICT", "off")]).passes(false);
    run.assert_printed("the limits of Template::watch at");
}

#[test]
fn a_test_that_exceeds_its_limits_keeps_its_other_databases_too() {
    let run = Run::of("exceeds a limit with two engines").passes(false);
    assert_eq!(run.select("database.sqlite3", "SELECT count(*) FROM t"), 2);
    assert_eq!(run.select("database-2.sqlite3", ACCOUNTS), 2);
    let statements = fs::read_to_string(run.file("failing.child", "statements.sql")).unwrap();
    assert!(statements.contains(": the limits of Template::watch at"), "{statements}");
}

#[test]
fn the_last_failure_of_a_property_test_counts() {
    let run = Run::with("fails", "failing::child_with_a_property", &[]).passes(false);
    assert_eq!(run.kept(), ["failing.child_with_a_property"]);
    let file = |name: &str| Connection::open(run.file("failing.child_with_a_property", name)).unwrap();
    // The smallest failing case: 1,900 by two or three deposits.
    assert_eq!(number(&file("database.sqlite3"), BALANCE), 2000, "{}", run.printed());
    assert_eq!(number(&file("uncommitted.sqlite3"), BALANCE), 2001);
    let printed = run.printed();
    assert!(printed.matches("panicked at").count() > 3, "{printed}");
    assert_eq!(printed.matches("is kept as it was").count(), 2, "the first and the last: {printed}");
    let (_, last) = printed.split_once("minimal failing input").unwrap();
    assert!(last.contains("~ id 1: balance 100 -> 2000\n") && last.contains("2000 -> 2001\n"), "{last}");
}

#[test]
fn engines_that_no_test_drops_are_kept_only_if_it_fails() {
    let always = [("RUSQLITE_FIXTURES_KEEP", "always")];
    for kind in ["a shared engine", "a kept value"] {
        let run = |role: &str| Run::with(&format!("{role} with {kind}"), "failing::child", &always);
        assert_eq!(run("passes").passes(true).kept(), [""; 0], "{kind}");
        assert_eq!(run("fails").passes(false).kept(), ["failing.child"], "{kind}");
    }
}

#[test]
fn the_environment_says_what_is_kept() {
    let keep = |value, role| Run::with(role, "failing::child", &[("RUSQLITE_FIXTURES_KEEP", value)]);
    for role in ["fails", "fails when only a connection is left", "exceeds a limit"] {
        let run = keep("never", role).passes(false);
        assert_eq!(run.kept(), [""; 0], "{role}");
        assert!(!run.printed().contains("rusqlite-fixtures: "), "{}", run.printed());
    }
    assert_eq!(keep("failed", "passes").passes(true).kept(), [""; 0]);
    assert_eq!(keep("failed", "fails").passes(false).kept(), ["failing.child"]);
    for role in ["passes", "drops an engine and goes on with a shared one"] {
        assert_eq!(keep("always", role).passes(true).kept(), ["failing.child"], "{role}");
    }
    keep("sometimes", "passes").passes(false).assert_printed(
        "can't use the environment variable RUSQLITE_FIXTURES_KEEP=\"sometimes\": set it to failed to keep the databases of tests \
         that panic, to always, or to never",
    );
}

#[test]
fn a_large_database_is_kept_only_if_that_is_asked_for() {
    let run = Run::of("fails with a large engine").passes(false);
    assert_eq!(run.kept(), [""; 0]);
    run.assert_printed(
        " is not kept, because it has 101 MB: set RUSQLITE_FIXTURES_KEEP=always to keep databases of any size\n",
    );
    let always = [("RUSQLITE_FIXTURES_KEEP", "always")];
    let run = Run::with("fails with a large engine", "failing::child", &always).passes(false);
    assert_eq!(run.select("database.sqlite3", "SELECT length(b) FROM large"), 101_000_000);
    let run = Run::of("fails in a large transaction").passes(false);
    run.assert_printed("  the database with what the unit of work begun at tests/it/failing.rs:");
    run.assert_printed(" had not committed is not kept, because it has 101 MB: set RUSQLITE_FIXTURES_KEEP=always to keep databases of any size\n");
    assert_eq!(run.select("database.sqlite3", "SELECT count(*) FROM account"), 2);
    let report = fs::read_to_string(run.program("failed").join("failing.child/report.html")).unwrap();
    assert!(report.contains(" had not committed is not kept, because it has 101 MB: "));
    let run = Run::with("fails in a large transaction", "failing::child", &always).passes(false);
    assert_eq!(run.select("uncommitted.sqlite3", "SELECT length(b) FROM large"), 101_000_000);
}

#[test]
fn the_name_of_a_test_need_not_be_one_for_files() {
    let kept = Run::of("fails in a test with an odd name").passes(true).kept();
    assert!(kept[0].starts_with("dir_file_rs__a_test-") && kept.len() == 1, "{kept:?}");
}

#[test]
fn a_panic_without_text_a_hook_of_the_test_and_an_engine_of_a_drop_are_no_obstacle() {
    assert_eq!(Run::of("fails by a payload that is no text").passes(false).kept(), ["failing.child"]);
    let run = Run::of("replaces the panic hook").passes(false);
    run.assert_printed("the test's own hook\n");
    assert_eq!(run.kept(), ["failing.child"]);
    let run = Run::of("creates an engine while it fails").passes(false);
    assert_eq!(run.select("database.sqlite3", "SELECT count(*) FROM t"), 0);
}

#[test]
fn the_failure_of_a_test_is_not_hidden_if_its_database_cannot_be_kept() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("failed"), "a file in the way").unwrap();
    let run = Run::again(folder, "fails", "failing::child", &[]).passes(false);
    run.assert_printed("the test's own failure");
    run.assert_printed(
        "rusqlite-fixtures: can't keep the databases of this test: can't write to `<folder>/failed/bank.it`: ",
    );
}

/// No file may have more than 8 blocks, as if the disk were full.
#[cfg(unix)]
#[test]
fn the_failure_of_a_test_is_not_hidden_if_the_disk_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"trap '' XFSZ; ulimit -f 8; exec "$0" "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(env::current_exe().unwrap()).args(["--exact", "failing::child"]);
    command.env(ROLE, "fails").env("RUSQLITE_FIXTURES_DIR", folder.path()).env("CARGO_PKG_NAME", "bank");
    command.env("LLVM_PROFILE_FILE", "/dev/null"); // a profile of coverage would be cut off
    let run = Run { output: command.output().unwrap(), folder }.passes(false);
    run.assert_printed("the test's own failure");
    run.assert_printed("rusqlite-fixtures: can't keep the databases of this test: can't save a snapshot as ");
    assert_eq!(run.kept(), [""; 0], "no half of the files");
}

#[test]
fn an_engine_is_kept_on_demand() {
    let run = Run::of("keeps an engine on demand").passes(true);
    let kept = names(&run.program("kept"));
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(kept[0].starts_with("on_demand___1-"), "{kept:?}");
    assert_eq!(run.kept(), [""; 0]);
}

fn keeps_an_engine_on_demand() {
    const NAME: &str = "on demand / 1";
    let engine = Engine::new();
    engine.connect().unwrap().execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)").unwrap();
    let folder = engine.keep(NAME).unwrap();
    let database = folder.join("database.sqlite3");
    assert_eq!(number(&Connection::open(&database).unwrap(), "SELECT a FROM t"), 1);
    assert_eq!(engine.keep(NAME).unwrap(), folder);
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "a file in the way").unwrap();
    let error = engine.keep(NAME).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().starts_with("can't keep engine "), "{error}");
}
