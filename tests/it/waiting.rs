//! Writers wait for their turn, in order of arrival and for a bounded time. The error names the holder of the slot.

use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::TransactionBehavior::Immediate;
use rusqlite_fixtures::rusqlite::{self, Connection, ErrorCode};
use rusqlite_fixtures::{Engine, Error, ErrorKind, UnitOfWork};

use crate::support::{Rendezvous, engine_with_entries, entries, in_thread, number};

const SHORT: Duration = Duration::from_millis(30);

fn update(connection: &Connection) -> rusqlite::Result<usize> {
    connection.execute("UPDATE entry SET value = value + 1 WHERE key = 1", [])
}

/// Returns an engine, and a unit of work that holds its writer slot and was begun on another thread of this name.
fn engine_with_writer(thread: &str) -> (Engine, UnitOfWork) {
    let engine = engine_with_entries(&[(1, 0)]);
    let writer = in_thread(thread, || engine.begin(Immediate).unwrap());
    engine.set_lock_timeout(SHORT);
    (engine, writer)
}

#[test]
fn the_error_names_the_holders_thread_line_and_age() {
    let (engine, writer) = engine_with_writer("moves_the_money");
    let started = Instant::now();
    let error = engine.begin(Immediate).unwrap_err();
    assert!(started.elapsed() >= SHORT);
    assert_eq!(error.kind(), ErrorKind::LockTimeout);
    let message = error.to_string();
    for part in
        ["thread `moves_the_money` in the unit of work begun at tests/it/waiting.rs:", "ms ago", "set_lock_timeout"]
    {
        assert!(message.contains(part), "{part:?} is missing: {message}");
    }
    assert_eq!(error.sqlite().unwrap().sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
    drop(writer);
    engine.begin(Immediate).unwrap().commit().unwrap();
}

#[test]
fn the_error_says_when_a_thread_waits_for_itself() {
    let engine = engine_with_entries(&[(1, 0)]);
    engine.set_lock_timeout(SHORT);
    let _writer = engine.begin(Immediate).unwrap();
    for error in [engine.begin(Immediate).unwrap_err(), engine.reset().unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::LockTimeout);
        assert!(error.to_string().contains("this thread waits for itself"), "{error}");
    }
}

#[test]
fn a_statement_that_times_out_returns_the_same_error() {
    let (engine, _writer) = engine_with_writer("moves_the_money");
    let has_read = engine.unit_of_work().unwrap();
    entries(&has_read);
    let has_not_read = engine.unit_of_work().unwrap();
    let connection = engine.connect().unwrap();
    for waiting in [&*has_read, &*has_not_read, &connection] {
        let started = Instant::now();
        let error = Error::from(update(waiting).unwrap_err());
        assert!(started.elapsed() >= SHORT);
        assert_eq!(error.kind(), ErrorKind::LockTimeout);
        assert!(error.to_string().contains("thread `moves_the_money`"), "{error}");
    }
}

#[test]
fn the_error_names_the_kind_of_holder() {
    let engine = engine_with_entries(&[(1, 0)]);
    engine.set_lock_timeout(Duration::ZERO);
    let expect = |part: &str| {
        let error = engine.begin(Immediate).unwrap_err();
        assert!(error.to_string().contains(part), "{part:?} is missing: {error}");
    };
    let connection = engine.connect().unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    expect("in the connection opened at tests/it/waiting.rs:");
    connection.execute_batch("COMMIT").unwrap();
    let foreign = Connection::open(engine.uri()).unwrap();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    expect("in a connection that was opened by the engine's URI");
    foreign.execute_batch("COMMIT").unwrap();
    let reader = engine.unit_of_work().unwrap();
    entries(&reader);
    engine.restore(&Engine::new().snapshot()).unwrap();
    let stale = Error::from(update(&reader).unwrap_err());
    assert!(stale.to_string().contains("in the restore or reset called at tests/it/waiting.rs:"), "{stale}");
}

#[test]
fn a_wait_that_times_out_leaves_the_queue() {
    let (engine, writer) = engine_with_writer("first");
    engine.begin(Immediate).unwrap_err();
    writer.commit().unwrap();
    engine.set_lock_timeout(Duration::ZERO); // fails if the slot was given to the wait that timed out
    engine.begin(Immediate).unwrap().commit().unwrap();
}

#[test]
fn restore_waits_for_its_turn() {
    let (engine, writer) = engine_with_writer("first");
    assert_eq!(engine.restore(&engine.snapshot()).unwrap_err().kind(), ErrorKind::LockTimeout);
    engine.set_lock_timeout(Duration::from_secs(60));
    let started = Rendezvous::of(2);
    thread::scope(|scope| {
        let reset = scope.spawn(|| {
            started.meet(Duration::from_secs(60));
            engine.reset()
        });
        started.meet(Duration::from_secs(60));
        update(&writer).unwrap();
        writer.commit().unwrap();
        reset.join().unwrap().unwrap();
    });
    assert_eq!(number(&engine.connect().unwrap(), "SELECT count(*) FROM sqlite_schema"), 0);
}

#[test]
fn a_foreign_connection_waits_for_its_busy_timeout() {
    let engine = engine_with_entries(&[(1, 0)]);
    let writer = engine.begin(Immediate).unwrap();
    let foreign = Connection::open(engine.uri()).unwrap();
    for timeout in [Duration::ZERO, Duration::from_millis(100)] {
        foreign.busy_timeout(timeout).unwrap();
        let started = Instant::now();
        assert_eq!(update(&foreign).unwrap_err().sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
        assert!(started.elapsed() >= timeout);
        assert!(started.elapsed() < timeout * 3 + Duration::from_secs(1), "{:?}", started.elapsed());
    }
    foreign.busy_timeout(Duration::from_secs(60)).unwrap();
    thread::scope(|scope| {
        let update = scope.spawn(move || update(&foreign));
        writer.commit().unwrap();
        assert_eq!(update.join().unwrap(), Ok(1));
    });
}

#[test]
fn a_foreign_connection_gets_its_turn_among_many() {
    let engine = engine_with_entries(&[(1, 0)]);
    let foreign = Connection::open(engine.uri()).unwrap();
    thread::scope(|scope| {
        let polling = scope.spawn(move || (0..5).for_each(|_| assert_eq!(update(&foreign), Ok(1))));
        let others: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    while !polling_is_over(&engine) {
                        engine.try_transaction(|work| update(work)).unwrap();
                    }
                })
            })
            .collect();
        polling.join().unwrap();
        engine.connect().unwrap().execute("INSERT INTO entry VALUES (2, 0)", []).unwrap();
        others.into_iter().for_each(|other| other.join().unwrap());
    });
    fn polling_is_over(engine: &Engine) -> bool {
        number(&engine.unit_of_work().unwrap(), "SELECT count(*) FROM entry") == 2
    }
}

/// Writes while other threads each hold the slot for this time, one after another.
fn write_beside_writers(foreign: &Connection, engine: &Engine, writers: u64, milliseconds: u64) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..writers {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    let work = engine.begin(Immediate).unwrap();
                    update(&work).unwrap();
                    thread::sleep(Duration::from_millis(milliseconds));
                    work.commit().unwrap();
                }
            });
        }
        thread::sleep(Duration::from_millis(milliseconds)); // not needed; lets the others queue first
        let results: Vec<_> = (0..6).map(|_| update(foreign)).collect();
        is_over.store(true, Relaxed);
        assert_eq!(results, [const { Ok(1) }; 6], "beside {writers} writers of {milliseconds} ms");
    });
}

const WRITERS: [(u64, u64); 3] = [(3, 12), (4, 15), (8, 3)];

#[test]
fn a_foreign_connection_does_not_starve() {
    for (writers, milliseconds) in WRITERS {
        let engine = engine_with_entries(&[(1, 0)]);
        let foreign = Connection::open(engine.uri()).unwrap();
        foreign.busy_timeout(Duration::from_secs(5)).unwrap();
        write_beside_writers(&foreign, &engine, writers, milliseconds);
    }
}

/// The busy handler sleeps, and the connection does not ask for the slot in the meantime.
#[test]
fn a_foreign_connection_with_its_own_busy_handler_does_not_starve() {
    for (writers, milliseconds) in WRITERS {
        let engine = engine_with_entries(&[(1, 0)]);
        let foreign = &mut Connection::open(engine.uri()).unwrap(); // `busy_handler` takes `&self` in rusqlite 0.39
        foreign
            .busy_handler(Some(|tries| {
                thread::sleep(Duration::from_millis(20));
                tries < 250
            }))
            .unwrap();
        write_beside_writers(foreign, &engine, writers, milliseconds);
    }
}

#[test]
fn a_foreign_connection_that_gave_up_says_how_long_it_waited() {
    let (engine, _writer) = engine_with_writer("moves_the_money");
    let timeout = Duration::from_millis(150);
    let [has_read, has_not_read] = [(); 2].map(|()| Connection::open(engine.uri()).unwrap());
    has_read.execute_batch("BEGIN").unwrap();
    entries(&has_read);
    // Once it has given up, the next statement is another wait.
    for foreign in [&has_read, &has_read, &has_not_read, &has_not_read] {
        foreign.busy_timeout(timeout).unwrap();
        let started = Instant::now();
        let error = Error::from(update(foreign).unwrap_err());
        let elapsed = started.elapsed();
        assert_eq!(error.kind(), ErrorKind::LockTimeout);
        let message = error.to_string();
        assert!(message.contains("thread `moves_the_money`"), "{message}");
        let (_, waited) = message.split_once("waited ").unwrap();
        let waited: f64 = waited.split_once("ms ").unwrap_or_else(|| panic!("{message}")).0.parse().unwrap();
        let most = 1000.0 * elapsed.as_secs_f64() + 0.05; // the message has tenths of a millisecond
        assert!((125.0..=most).contains(&waited), "{message}, within {elapsed:?}");
    }
}

/// Its next read neither reserves the slot nor waits for it.
#[test]
fn a_connection_that_does_not_wait_reserves_nothing() {
    let engine = engine_with_entries(&[(1, 0)]);
    let foreign = Connection::open(engine.uri()).unwrap();
    foreign.busy_timeout(Duration::ZERO).unwrap();
    engine.set_lock_timeout(Duration::ZERO);
    for _ in 0..50 {
        let writer = engine.begin(Immediate).unwrap();
        update(&foreign).unwrap_err();
        writer.commit().unwrap();
        thread::sleep(Duration::from_millis(2)); // long enough for a connection that polls
        foreign.execute_batch("BEGIN").unwrap();
        entries(&foreign);
        engine.begin(Immediate).expect("there is no other writer").commit().unwrap();
        foreign.execute_batch("COMMIT").unwrap();
    }
}

/// The first in the queue is woken, and only the last polls, so that thousands may wait. The test counts how often the
/// threads go to sleep, which they do after each wake-up.
#[test]
#[cfg(target_os = "linux")]
fn waiting_threads_sleep() {
    const WAITERS: usize = 100;
    fn sleeps_of_this_thread() -> usize {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse().unwrap()
    }
    let engine = engine_with_entries(&[(1, 0)]);
    let _writer = engine.begin(Immediate).unwrap();
    engine.set_lock_timeout(Duration::from_secs(1));
    let barrier = Barrier::new(WAITERS);
    let sleeps: usize = thread::scope(|scope| {
        let wait = || {
            engine.unit_of_work().unwrap().commit().unwrap(); // so that a connection is idle
            barrier.wait();
            let before = sleeps_of_this_thread();
            engine.begin(Immediate).unwrap_err();
            sleeps_of_this_thread() - before
        };
        let waiters: Vec<_> = (0..WAITERS).map(|_| scope.spawn(wait)).collect();
        waiters.into_iter().map(|waiter| waiter.join().unwrap()).sum()
    });
    // A thread that polls every 20 ms sleeps 50 times. The mutex causes some sleeps, too.
    assert!(sleeps < 15 * WAITERS, "{sleeps}");
}

#[test]
fn a_connection_may_set_its_own_timeout() {
    let (engine, _writer) = engine_with_writer("first");
    engine.set_lock_timeout(Duration::from_secs(60));
    let connection = engine.connect().unwrap();
    connection.busy_timeout(Duration::ZERO).unwrap();
    assert_eq!(update(&connection).unwrap_err().sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
    connection.execute_batch("BEGIN").unwrap();
    entries(&connection);
    assert_eq!(update(&connection).unwrap_err().sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
}

#[test]
fn a_writer_waits_for_an_attached_engine() {
    let (engine, _writer) = engine_with_writer("moves_the_money");
    let connection = Engine::new().connect().unwrap();
    connection.execute("ATTACH ?1 AS other", [engine.uri()]).unwrap();
    let update = "UPDATE other.entry SET value = 2";
    let refused = Error::from(connection.execute(update, []).unwrap_err());
    assert_eq!(refused.kind(), ErrorKind::LockTimeout);
    connection.execute_batch("BEGIN; SELECT * FROM other.entry").unwrap();
    let started = Instant::now();
    let refused = Error::from(connection.execute(update, []).unwrap_err());
    assert!(started.elapsed() >= SHORT);
    assert!(refused.to_string().contains("thread `moves_the_money`"), "{refused}");
}

/// After a refusal a connection may continue with a read. Then it neither keeps the slot nor waits for it.
#[test]
fn a_reader_that_was_refused_before_does_not_block_writers() {
    let engine = engine_with_entries(&[(1, 0)]);
    engine.set_lock_timeout(SHORT);
    let be_refused_as_stale = || {
        let work = engine.unit_of_work().unwrap();
        entries(&work);
        engine.try_transaction(|work| update(work)).unwrap();
        update(&work).unwrap_err();
    };
    be_refused_as_stale();
    let reader = engine.unit_of_work().unwrap(); // on the same connection
    entries(&reader);
    engine.begin(Immediate).unwrap().commit().unwrap();

    for foreign in [Connection::open(engine.uri()).unwrap(), engine.connect().unwrap()] {
        foreign.busy_timeout(Duration::ZERO).unwrap();
        let writer = engine.begin(Immediate).unwrap();
        update(&foreign).unwrap_err();
        writer.commit().unwrap();
        thread::sleep(Duration::from_millis(2)); // long enough to be taken for a connection that polls
        foreign.execute_batch("BEGIN").unwrap();
        entries(&foreign);
        engine.set_lock_timeout(Duration::from_secs(60)); // longer than a reservation lasts
        engine.begin(Immediate).unwrap().commit().unwrap();
        engine.set_lock_timeout(SHORT);
    }
}

#[test]
fn a_connection_that_writes_after_a_refusal_releases_the_slot() {
    let engine = engine_with_entries(&[(1, 0)]);
    engine.set_lock_timeout(SHORT);
    for connection in [Connection::open(engine.uri()).unwrap(), engine.connect().unwrap()] {
        connection.busy_timeout(SHORT).unwrap();
        let writer = engine.begin(Immediate).unwrap();
        connection.execute_batch("BEGIN").unwrap();
        entries(&connection);
        update(&connection).unwrap_err();
        writer.rollback().unwrap();
        update(&connection).unwrap();
        connection.execute_batch("COMMIT").unwrap();
        entries(&connection);
        engine.begin(Immediate).unwrap().commit().unwrap();
    }
}

/// A database file that another connection keeps locked for a while, and its path for ATTACH.
struct BusyFile {
    path: String,
    holder: Connection,
    _folder: tempfile::TempDir,
}

impl BusyFile {
    fn new() -> BusyFile {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.sqlite3").to_str().unwrap().to_owned();
        let holder = Connection::open(&path).unwrap();
        holder.execute_batch("CREATE TABLE note (text)").unwrap();
        BusyFile { path, holder, _folder: folder }
    }

    /// Makes `connection` write to the file and wait for it, so that SQLite calls its busy handler.
    fn make_wait(self, connection: &Connection) {
        let holder = self.holder;
        holder.execute_batch("BEGIN IMMEDIATE").unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(SHORT);
                holder.execute_batch("COMMIT").unwrap();
            });
            connection.execute("INSERT INTO file.note VALUES ('waited')", []).unwrap();
        });
    }
}

/// Asserts that no connection has taken the slot. A refusal prepares the busy handler to take it. If SQLite does not call
/// the handler then, a later call must not take the slot.
fn assert_slot_is_free(engine: &Engine) {
    engine.set_lock_timeout(Duration::from_secs(60)); // longer than a reservation lasts
    engine.begin(Immediate).unwrap().commit().unwrap();
}

#[test]
fn a_busy_file_does_not_make_a_connection_take_the_slot_for_another() {
    let (engine, file) = (engine_with_entries(&[(1, 0)]), BusyFile::new());
    let writer = engine.begin(Immediate).unwrap();
    let foreign = Connection::open(engine.uri()).unwrap();
    foreign.busy_timeout(Duration::ZERO).unwrap();
    update(&foreign).unwrap_err();
    drop(foreign);
    let other = Engine::new();
    let ours: Vec<Connection> = (0..20).map(|_| other.connect().unwrap()).collect(); // one gets the address of `foreign`
    drop(writer);
    for ours in &ours[..3] {
        let file = BusyFile::new();
        ours.execute("ATTACH ?1 AS file", [&file.path]).unwrap();
        file.make_wait(ours);
    }
    drop(file);
    assert_slot_is_free(&engine);
}

#[test]
fn a_busy_file_does_not_make_a_connection_take_the_slot_again() {
    let (engine, file) = (engine_with_entries(&[(1, 0)]), BusyFile::new());
    let writer = in_thread("writer", || engine.begin(Immediate).unwrap());
    let work = engine.unit_of_work().unwrap();
    work.busy_timeout(Duration::from_secs(60)).unwrap();
    entries(&work);
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(SHORT);
            writer.rollback().unwrap();
        });
        update(&work).unwrap();
    });
    drop(work);
    let work = engine.unit_of_work().unwrap(); // on the same connection, with the crate's busy handler
    work.execute_batch("COMMIT").unwrap();
    work.execute("ATTACH ?1 AS file", [&file.path]).unwrap();
    file.make_wait(&work);
    assert_slot_is_free(&engine);
}

/// To change the journal mode, SQLite asks for the lock once and calls no busy handler.
#[test]
fn a_lock_that_sqlite_did_not_wait_for_is_not_taken_later() {
    let (engine, file) = (engine_with_entries(&[(1, 0)]), BusyFile::new());
    let ours = engine.connect().unwrap();
    ours.execute_batch("PRAGMA journal_mode = PERSIST").unwrap();
    update(&ours).unwrap();
    ours.execute("ATTACH ?1 AS file", [&file.path]).unwrap();
    let writer = engine.begin(Immediate).unwrap();
    ours.execute_batch("PRAGMA main.journal_mode = DELETE").unwrap();
    drop(writer);
    file.make_wait(&ours);
    assert_slot_is_free(&engine);
}

/// A backup does not restart the count of the busy handler's calls.
#[test]
fn every_wait_has_the_whole_timeout() {
    let engine = engine_with_entries(&[(1, 0)]);
    let mut ours = engine.connect().unwrap();
    let timeout = Duration::from_millis(200);
    engine.set_lock_timeout(timeout);
    let writer = in_thread("first", || engine.begin(Immediate).unwrap());
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(SHORT);
            writer.rollback().unwrap();
        });
        update(&ours).unwrap();
    });
    thread::sleep(timeout);
    let _writer = in_thread("second", || engine.begin(Immediate).unwrap());
    let source = Connection::open_in_memory().unwrap();
    source.execute_batch("CREATE TABLE t (a)").unwrap();
    let backup = rusqlite::backup::Backup::new(&source, &mut ours).unwrap();
    let started = Instant::now();
    assert_eq!(backup.step(-1), Ok(rusqlite::backup::StepResult::Busy));
    assert!(started.elapsed() >= timeout, "{:?}", started.elapsed());
}

#[test]
fn a_writer_waits_for_an_attached_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.sqlite3");
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE note (text); BEGIN IMMEDIATE").unwrap();
    let connection = Engine::new().connect().unwrap();
    connection.execute("ATTACH ?1 AS other", [path.to_str().unwrap()]).unwrap();
    thread::scope(|scope| {
        let insert = scope.spawn(move || connection.execute("INSERT INTO other.note VALUES ('waited')", []));
        thread::sleep(Duration::from_millis(50)); // not needed; makes the other thread wait, nearly always
        other.execute_batch("COMMIT").unwrap();
        assert_eq!(insert.join().unwrap(), Ok(1));
    });
}

#[test]
fn a_panic_releases_the_slot() {
    let engine = engine_with_entries(&[(1, 0)]);
    engine.set_lock_timeout(Duration::ZERO);
    let panicked = thread::scope(|scope| {
        let work = || {
            engine.transaction::<()>(|work| {
                update(work)?;
                panic!("a failing test");
            })
        };
        scope.spawn(work).join()
    });
    assert!(panicked.is_err());
    assert_eq!(engine.try_transaction(|work| update(work)), Ok(1));
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 1)]);
}

/// Code in a busy handler, for example one that writes to a log, may itself be refused.
#[test]
fn a_busy_handler_that_is_refused_elsewhere_keeps_its_turn() {
    thread_local! {
        static LOG: Engine = {
            let log = Engine::new();
            log.set_lock_timeout(Duration::ZERO);
            log
        };
    }
    let (engine, _writer) = engine_with_writer("moves_the_money");
    let log = LOG.with(Engine::clone);
    let _held = log.begin(Immediate).unwrap();
    let [fresh, has_read] = [(); 2].map(|()| Connection::open(engine.uri()).unwrap());
    has_read.execute_batch("BEGIN; SELECT * FROM entry").unwrap();
    for mut foreign in [fresh, has_read] {
        let handler = |tries| {
            LOG.with(|log| log.begin(Immediate)).unwrap_err();
            tries < 10
        };
        let foreign = &mut foreign; // `busy_handler` takes `&self` in rusqlite 0.39
        foreign.busy_handler(Some(handler)).unwrap();
        let start = Instant::now();
        update(foreign).unwrap_err();
        assert!(start.elapsed() >= Duration::from_millis(50), "it waits 10 ms for each call: {:?}", start.elapsed());
    }
}
