//! Engines in real files: by `Engine::file`, by a URL, and by `RUSQLITE_FIXTURES_BACKEND=file` for the whole suite.

use std::cell::RefCell;
use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rusqlite::TransactionBehavior::Immediate;
use rusqlite_fixtures::faults::Fault;
use rusqlite_fixtures::rusqlite::{self, Connection};
use rusqlite_fixtures::{Engine, ErrorKind, Limits, MEMORY_ENGINES, Snapshot, Template};
use tempfile::TempDir;

use crate::support::{assert_integrity, entries, number, text};

static ENTRIES: Template =
    Template::sql("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INT); INSERT INTO entry VALUES (1, 10)");

const SCHEMA: &str = "CREATE TABLE entry (key INTEGER PRIMARY KEY, value INT); INSERT INTO entry VALUES (1, 10)";

/// Returns a folder, and an engine of the file `entries.db` in it, which has one entry.
fn file_with_an_entry() -> (TempDir, Engine) {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::file(folder.path().join("entries.db")).unwrap();
    engine.try_transaction(|work| work.execute_batch(SCHEMA)).unwrap();
    (folder, engine)
}

fn committed(engine: &Engine) -> Vec<(i64, i64)> {
    entries(&engine.unit_of_work().unwrap())
}

fn update(connection: &Connection, value: i64) -> rusqlite::Result<usize> {
    connection.execute("UPDATE entry SET value = ?1", [value])
}

#[test]
fn a_file_keeps_what_is_committed() {
    let (folder, engine) = file_with_an_entry();
    let path = folder.path().join("entries.db");
    let work = engine.unit_of_work().unwrap();
    update(&work, 11).unwrap();
    work.commit().unwrap();
    let work = engine.unit_of_work().unwrap();
    update(&work, 12).unwrap();
    work.rollback().unwrap();
    let work = engine.begin(Immediate).unwrap();
    update(&work, 13).unwrap();
    drop(work);
    let mut connection = engine.pooled_connection().unwrap();
    update(&connection.transaction().unwrap(), 14).unwrap();
    drop((connection, engine));
    let plain = Connection::open(&path).unwrap();
    assert_eq!((entries(&plain), text(&plain, "PRAGMA journal_mode")), (vec![(1, 11)], "wal".into()));
    let again = Engine::file(&path).unwrap();
    assert_eq!(committed(&again), [(1, 11)]);
    assert_integrity(&again.connect().unwrap());
    let name = format!("the file `{}`", path.display());
    assert!(format!("{again:?}").starts_with(&format!("Engine {{ name: {name:?}")), "{again:?}");
}

#[test]
fn a_unit_of_work_that_has_ended_is_an_error() {
    let (_folder, engine) = file_with_an_entry();
    let work = engine.unit_of_work().unwrap();
    work.execute_batch("COMMIT").unwrap();
    assert_eq!(work.commit().unwrap_err().kind(), ErrorKind::AlreadyEnded);
}

#[test]
fn a_reset_restores_the_content_with_which_the_file_was_opened() {
    let (folder, engine) = file_with_an_entry();
    let reader = engine.connect().unwrap();
    let again = Engine::file(folder.path().join("entries.db")).unwrap();
    update(&again.connect().unwrap(), 11).unwrap();
    again.connect().unwrap().execute_batch("CREATE TABLE other (a)").unwrap();
    assert_eq!(number(&reader, "SELECT count(*) FROM other"), 0);
    again.reset().unwrap();
    assert_eq!(entries(&reader), [(1, 10)]);
    assert!(reader.prepare("SELECT * FROM other").is_err());
    engine.reset().unwrap();
    let read = reader.query_row("SELECT * FROM entry", [], |_| Ok(()));
    assert!(
        read.is_err_and(|error| error.to_string().contains("no such table")),
        "the first engine has created the file"
    );
    assert_integrity(&reader);
}

#[test]
fn snapshots_go_from_a_file_to_memory_and_back() {
    let (_folder, engine) = file_with_an_entry();
    let before = engine.snapshot();
    let in_memory = Snapshot::from_bytes(before.to_bytes()).unwrap().new_engine();
    assert_eq!(committed(&in_memory), [(1, 10)]);
    update(&in_memory.connect().unwrap(), 20).unwrap();
    engine.restore(&in_memory.snapshot()).unwrap();
    assert_eq!(committed(&engine), [(1, 20)]);
    engine.restore(&before).unwrap();
    assert_eq!(committed(&engine), [(1, 10)]);
}

/// A reader continues to read the content that it has read.
#[test]
fn a_restore_does_not_disturb_readers() {
    let (_folder, engine) = file_with_an_entry();
    let before = engine.snapshot();
    update(&engine.connect().unwrap(), 11).unwrap();
    let reader = engine.unit_of_work().unwrap();
    assert_eq!(entries(&reader), [(1, 11)]);
    engine.restore(&before).unwrap();
    assert_eq!((entries(&reader), committed(&engine)), (vec![(1, 11)], vec![(1, 10)]));
}

#[test]
fn a_snapshot_in_another_encoding_is_refused() {
    let (_folder, engine) = file_with_an_entry();
    let utf_16 = Engine::new();
    utf_16.connect().unwrap().execute_batch("PRAGMA encoding = 'UTF-16le'; CREATE TABLE entry (key, value)").unwrap();
    assert_eq!(engine.restore(&utf_16.snapshot()).unwrap_err().kind(), ErrorKind::OtherEncoding);
    assert_eq!(committed(&engine), [(1, 10)]);
}

/// SQLite changes the page size only outside of WAL mode, which it leaves only for its only connection.
#[test]
fn a_snapshot_with_other_pages_is_restored_if_no_connection_is_open() {
    let (_folder, engine) = file_with_an_entry();
    let folder = tempfile::tempdir().unwrap();
    let small = Connection::open(folder.path().join("small.db")).unwrap();
    small.execute_batch(&format!("PRAGMA page_size = 512; {SCHEMA}; UPDATE entry SET value = 20")).unwrap();
    drop(small);
    let small = Snapshot::open(folder.path().join("small.db")).unwrap();
    engine.set_lock_timeout(Duration::ZERO);
    let reader = engine.connect().unwrap();
    assert_eq!(entries(&reader), [(1, 10)]);
    let error = engine.restore(&small).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LockTimeout);
    for part in ["can't restore a snapshot with another page size on the file `", "close all other connections"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(entries(&reader), [(1, 10)]);
    assert_eq!(text(&reader, "PRAGMA journal_mode"), "wal");
    drop(reader);
    engine.restore(&small).unwrap();
    let reader = engine.connect().unwrap();
    assert_eq!((entries(&reader), number(&reader, "PRAGMA page_size")), (vec![(1, 20)], 512));
    assert_eq!(text(&reader, "PRAGMA journal_mode"), "wal");
}

/// A database without content has no encoding, and pages of SQLite's default size.
#[test]
fn an_empty_snapshot_is_restored_over_any_content() {
    for pragma in ["PRAGMA page_size = 512", "PRAGMA encoding = 'UTF-16le'"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("entries.db");
        Connection::open(&path).unwrap().execute_batch(&format!("{pragma}; {SCHEMA}")).unwrap();
        let engine = Engine::file(&path).unwrap();
        assert_eq!(committed(&engine), [(1, 10)]);
        engine.restore(&Template::empty().snapshot().unwrap()).unwrap();
        let connection = engine.connect().unwrap();
        assert_eq!(number(&connection, "SELECT count(*) FROM sqlite_schema"), 0, "{pragma}");
        assert_eq!(text(&connection, "PRAGMA journal_mode"), "wal");
        drop(connection);
        engine.reset().unwrap();
        assert_eq!(committed(&engine), [(1, 10)]);
    }
}

#[test]
fn a_fork_is_a_file_of_its_own() {
    let (_folder, engine) = file_with_an_entry();
    let fork = engine.fork();
    let path = Connection::path(&fork.connect().unwrap()).unwrap().to_owned();
    update(&fork.connect().unwrap(), 20).unwrap();
    assert_eq!((committed(&engine), committed(&fork)), (vec![(1, 10)], vec![(1, 20)]));
    fork.reset().unwrap();
    assert_eq!(committed(&fork), [(1, 10)]);
    assert_eq!(text(&fork.connect().unwrap(), "PRAGMA journal_mode"), "wal");
    assert!(Path::new(&path).exists());
    drop(fork);
    assert!(!Path::new(&path).exists());
}

/// As an engine in memory lives as long as a connection, of any library.
#[test]
fn a_temporary_file_lives_as_long_as_a_connection() {
    let (_folder, engine) = file_with_an_entry();
    let fork = engine.fork();
    let (own, foreign) = (fork.connect().unwrap(), Connection::open(fork.uri()).unwrap());
    let folder = Path::new(own.path().unwrap()).parent().unwrap().to_owned();
    let uri = fork.uri().to_owned();
    drop((fork, own));
    assert_eq!(update(&foreign, 11), Ok(1));
    assert_eq!(entries(&Connection::open(&uri).unwrap()), [(1, 11)]);
    drop(foreign);
    assert!(!folder.exists());
    assert!(Connection::open(&uri).is_err());
}

#[test]
fn other_code_opens_the_file_by_uri_or_url_or_path() {
    let (folder, engine) = file_with_an_entry();
    let url = engine.sqlite_url().strip_prefix("sqlite://").unwrap();
    assert_eq!(Connection::open(engine.uri()).unwrap().path().map(Path::new), Some(&*folder.path().join("entries.db")));
    for uri in [engine.uri(), &format!("file:{url}"), &format!("{}&mode=ro", engine.uri())] {
        assert_eq!(entries(&Connection::open(uri).unwrap()), [(1, 10)], "{uri}");
    }
    let stand_in = engine.stand_in_for("data/app.db").unwrap();
    assert_eq!(update(&Connection::open("data/app.db").unwrap(), 11), Ok(1));
    assert_eq!(committed(stand_in.engine()), [(1, 11)]);
    drop((stand_in, engine));
    fs::remove_file(folder.path().join("entries.db")).unwrap();
    assert!(!Path::new("data").exists());
}

#[test]
fn an_engine_in_a_file_has_no_clock() {
    let (_folder, engine) = file_with_an_entry();
    assert_eq!(engine.clock().now().unwrap_err().kind(), ErrorKind::NoTime);
}

#[test]
fn names_of_files_may_have_any_character() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a b.db", "100%.db", "what?.db", "#1&mode=ro.db", "Straße.db", "数据库.db", "'\"\\.db"] {
        let engine = Engine::file(folder.path().join(name)).unwrap();
        engine.try_transaction(|work| work.execute_batch(SCHEMA)).unwrap();
        assert_eq!(entries(&Connection::open(engine.uri()).unwrap()), [(1, 10)], "{name}");
        assert!(folder.path().join(name).exists(), "{name}");
        let path = folder.path().join(name);
        let url = path.to_str().unwrap().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        assert_eq!(committed(&Engine::shared(format!("file:{url}?mode=rwc")).unwrap()), [(1, 10)], "{name}");
    }
}

/// Threads that ask at once get one engine for all spellings of the file's URL.
#[test]
fn a_file_is_one_shared_engine_for_each_url() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap().join("shared.db");
    let path = path.to_str().unwrap();
    let urls = [format!("sqlite:///{path}"), format!("file:{path}?mode=rwc"), format!("sqlite:///{path}?mode=rwc")];
    let barrier = Barrier::new(9);
    let engines: Vec<Engine> = thread::scope(|scope| {
        let ask = |number: usize| {
            barrier.wait();
            Engine::shared(&urls[number % 3]).unwrap()
        };
        let threads: Vec<_> = (0..9).map(|number| scope.spawn(move || ask(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(engines.iter().all(|engine| *engine == engines[0]));
    engines[0].try_transaction(|work| work.execute_batch(SCHEMA)).unwrap();
    assert_eq!(entries(&Connection::open(path).unwrap()), [(1, 10)]);
    let url = urls[0].parse().unwrap();
    assert_eq!(MEMORY_ENGINES.remove(&url), Some(engines[0].clone()));
    assert_ne!(Engine::shared(&urls[0]).unwrap(), engines[0]);
}

#[test]
fn a_shared_file_of_a_template_is_created_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap().join("shared.db");
    let url = format!("sqlite:///{}", path.display());
    let engine = Engine::shared_with(&url, &ENTRIES).unwrap();
    assert_eq!(engine, Engine::shared_with(&url, &ENTRIES).unwrap());
    assert_eq!((committed(&engine), entries(&Connection::open(&path).unwrap())), (vec![(1, 10)], vec![(1, 10)]));
    static OTHER: Template = Template::sql("CREATE TABLE other (a)");
    assert_eq!(Engine::shared_with(&url, &OTHER).unwrap_err().kind(), ErrorKind::OtherTemplate);
    MEMORY_ENGINES.remove(&url.parse().unwrap());
    update(&engine.connect().unwrap(), 11).unwrap();
    let error = Engine::shared_with(&url, &ENTRIES).unwrap_err();
    let expected = format!(
        "can't use the file `{}` as an engine: it exists, and may have other content than {ENTRIES}; remove it first, or \
         use Engine::file for its own content",
        path.display()
    );
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::FileNotUsed, expected));
    assert_eq!(committed(&engine), [(1, 11)], "nothing was written");
}

#[test]
fn a_lock_that_is_not_free_in_time_is_an_error_that_names_the_file() {
    let (folder, engine) = file_with_an_entry();
    engine.set_lock_timeout(Duration::from_millis(20));
    let before = engine.snapshot();
    let holder = engine.begin(Immediate).unwrap();
    let expected = format!(
        "can't write to the file `{}`: another connection or process is writing to the file, and its lock was not free in time \
         (SQLite does not say which one; engines in memory do); end its transaction sooner, or raise Engine::set_lock_timeout",
        folder.path().join("entries.db").display()
    );
    let refused = [engine.begin(Immediate).unwrap_err(), engine.restore(&before).unwrap_err()];
    for error in refused {
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::LockTimeout, expected.clone()));
        assert!(error.sqlite().is_some());
    }
    let late = engine.unit_of_work().unwrap();
    assert_eq!(entries(&late), [(1, 10)]);
    let error = rusqlite_fixtures::Error::from(update(&late, 12).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::LockTimeout, "the statement's error has the kind too");
    update(&holder, 11).unwrap();
    holder.commit().unwrap();
    let error = rusqlite_fixtures::Error::from(update(&late, 12).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::SerializationFailure);
    drop(late);
    engine.reset().unwrap();
}

#[test]
fn a_restore_that_sqlite_refuses_says_so() {
    let (folder, engine) = file_with_an_entry();
    let before = engine.snapshot();
    fs::remove_file(folder.path().join("entries.db")).unwrap();
    let error = engine.restore(&before).unwrap_err();
    let start = format!("can't restore a snapshot on the file `{}", folder.path().display());
    assert_eq!(error.kind(), ErrorKind::Sqlite);
    assert!(error.to_string().starts_with(&start) && error.to_string().contains("unable to open"), "{error}");
    let connect = engine.connect().unwrap_err();
    assert!(connect.to_string().starts_with("can't open a connection to the file `"), "{connect}");
    let panic = thread::spawn(move || engine.snapshot()).join().unwrap_err();
    let words = panic.downcast_ref::<String>().unwrap();
    assert!(words.starts_with("can't take a snapshot of the file `") && words.contains("unable to open"), "{words}");
    assert!(!folder.path().join("entries.db").exists(), "no empty file was created");
}

#[test]
fn files_that_are_no_databases_are_refused_and_left_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let in_folder = |name: &str| folder.path().join(name);
    fs::write(in_folder("words.txt"), "These are words, and more than a hundred of them. ".repeat(20)).unwrap();
    Connection::open(in_folder("whole.db")).unwrap().execute_batch(SCHEMA).unwrap();
    let mut truncated = fs::read(in_folder("whole.db")).unwrap();
    fs::remove_file(in_folder("whole.db")).unwrap();
    truncated.truncate(4196);
    fs::write(in_folder("truncated.db"), &truncated).unwrap();
    fs::write(in_folder("short.db"), &truncated[..4096]).unwrap();
    let missing = in_folder("no/such.db");
    for (path, reason) in [
        (in_folder("words.txt"), "it is no SQLite database; give another path, or remove it"),
        (in_folder("truncated.db"), "it is truncated: it has 4196 bytes, and its header declares 8192"),
        (in_folder("short.db"), "disk image is malformed"),
        (folder.path().to_owned(), "it is a folder"),
        (missing, "its folder has to exist, and both must be writable"),
        ("".into(), "SQLite opens a private database by this name, not a file"),
        (":memory:".into(), "SQLite opens a private database by this name, not a file"),
        ("file:a.db?mode=rwc".into(), "it is a URI; give the path alone"),
        ("a\0b".into(), "it contains a NUL byte"),
        ("/rusqlite-fixtures/engine-1".into(), "it is the name of an engine"),
    ] {
        let error = Engine::file(&path).unwrap_err();
        let start = format!("can't use the file `{}` as an engine: ", path.display());
        assert_eq!(error.kind(), ErrorKind::FileNotUsed);
        assert!(error.to_string().starts_with(&start) && error.to_string().contains(reason), "{reason:?}: {error}");
        assert_eq!(error.to_string().matches("can't use").count(), 1, "{error}");
    }
    let words = fs::read_to_string(in_folder("words.txt")).unwrap();
    assert!(words.starts_with("These are words"));
    assert_eq!(fs::read(in_folder("truncated.db")).unwrap(), truncated);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "nothing was written");
}

#[test]
fn what_the_system_refuses_is_an_error_of_its_kind() {
    let not_utf_8 = Engine::shared("sqlite:///%ff.db").unwrap_err();
    assert_eq!(not_utf_8.kind(), ErrorKind::InvalidUrl, "{not_utf_8}");
    let refused = Engine::shared("sqlite:////no/such/folder/a.db").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FileNotUsed, "{refused}");
    let refused = Engine::shared_with("sqlite:////no/such/folder/a.db", &ENTRIES).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FileNotUsed, "{refused}");
    let expected = "can't use the file `/no/such/folder/a.db` as an engine: it can't be created: ";
    assert!(refused.to_string().starts_with(expected), "{refused}");
}

/// Threads and processes that open a file at the same time put it into WAL mode at the same time.
#[test]
fn threads_may_open_a_file_at_the_same_time() {
    for round in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new.db");
        if round % 2 == 1 {
            Connection::open(&path).unwrap().execute_batch(SCHEMA).unwrap();
        }
        let barrier = Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    barrier.wait();
                    let engine = Engine::file(&path).unwrap();
                    assert_eq!(text(&engine.connect().unwrap(), "PRAGMA journal_mode"), "wal");
                });
            }
        });
    }
}

/// As on an engine in memory. The file's own path can be opened so.
#[test]
fn a_connection_by_the_uri_takes_locks() {
    let (folder, engine) = file_with_an_entry();
    for without_locks in ["nolock=1", "immutable=1"] {
        let error = Connection::open(format!("{}&{without_locks}", engine.uri())).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::CannotOpen), "{without_locks}");
    }
    let path = folder.path().join("entries.db");
    assert!(Connection::open(format!("file:{}?immutable=1", path.display())).is_ok());
}

/// The file leaves WAL mode for a moment. A connection that is opened then must not find it in another mode.
#[test]
fn connections_may_be_opened_while_other_pages_are_restored() {
    let (_folder, engine) = file_with_an_entry();
    let small = engine.snapshot();
    let large = {
        let other = Engine::new();
        let connection = other.connect().unwrap();
        connection.execute_batch(&format!("PRAGMA page_size = 16384; {SCHEMA}")).unwrap();
        other.snapshot()
    };
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        let connection = Connection::open(engine.uri()).unwrap();
                        assert_eq!(
                            (text(&connection, "PRAGMA journal_mode"), entries(&connection)),
                            ("wal".to_owned(), vec![(1, 10)])
                        );
                    }
                })
            })
            .collect();
        let mut restored = 0;
        for round in 0..200 {
            match engine.restore(if round % 2 == 0 { &large } else { &small }) {
                Ok(()) => restored += 1,
                Err(error) => assert_eq!(error.kind(), ErrorKind::LockTimeout, "{error}"),
            }
        }
        is_done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert!(restored > 0);
    });
}

/// SQLite does not call its busy handler there.
#[test]
fn a_file_is_opened_when_its_writer_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.db");
    let writer = Connection::open(&path).unwrap();
    writer.execute_batch(&format!("{SCHEMA}; BEGIN IMMEDIATE")).unwrap();
    thread::scope(|scope| {
        let engine = scope.spawn(|| Engine::file(&path).unwrap());
        thread::sleep(Duration::from_millis(100));
        writer.execute_batch("UPDATE entry SET value = 11; COMMIT").unwrap();
        assert_eq!(committed(&engine.join().unwrap()), [(1, 11)]);
    });
}

#[test]
fn a_shared_file_has_its_template_s_clock_and_seed() {
    static LOG: Template = Template::sql("CREATE TABLE log (at DEFAULT CURRENT_TIMESTAMP, n DEFAULT (random()))")
        .clock("2026-01-31T12:00:00Z")
        .random_seed(42);
    let folder = tempfile::tempdir().unwrap();
    let insert = "INSERT INTO log DEFAULT VALUES RETURNING at || ' ' || n";
    let expected = text(&LOG.new_engine().unwrap().connect().unwrap(), insert);
    let engine = Engine::shared_with(format!("sqlite:///{}/log.db", folder.path().display()), &LOG).unwrap();
    assert_eq!(text(&Connection::open(engine.uri()).unwrap(), insert), expected);
    engine.clock().advance(Duration::from_secs(1)).unwrap();
    assert_eq!(text(&engine.connect().unwrap(), "SELECT datetime('now')"), "2026-01-31 12:00:01");
    assert_eq!(text(&engine.fork().connect().unwrap(), "SELECT datetime('now')"), "2026-01-31 12:00:01");
}

/// As on an engine in memory. The connection's own VFS looks for the engine.
#[test]
fn a_stand_in_is_attached_to_a_connection_of_an_engine_in_a_file() {
    let (folder, engine) = file_with_an_entry();
    let path = folder.path().join("app.db");
    let in_memory = ENTRIES.new_engine().unwrap();
    let _stand_in = in_memory.stand_in_for(&path).unwrap();
    let connection = engine.connect().unwrap();
    connection.execute("ATTACH ?1 AS app", [path.to_str().unwrap()]).unwrap();
    connection.execute("UPDATE app.entry SET value = 20", []).unwrap();
    assert_eq!((committed(&in_memory), committed(&engine)), (vec![(1, 20)], vec![(1, 10)]));
    assert!(!path.exists());
}

/// The URI is the engine's, whatever stands in for its file.
#[test]
fn an_engine_that_stands_in_for_another_one_s_file_does_not_replace_it() {
    let (folder, engine) = file_with_an_entry();
    let path = folder.path().join("entries.db");
    let other = ENTRIES.new_engine().unwrap();
    update(&other.connect().unwrap(), 77).unwrap();
    let _stand_in = other.stand_in_for(&path).unwrap();
    assert_eq!(entries(&Connection::open(&path).unwrap()), [(1, 77)]);
    assert_eq!((committed(&engine), entries(&Connection::open(engine.uri()).unwrap())), (vec![(1, 10)], vec![(1, 10)]));
}

/// The last connection that is closed locks all others out for a moment.
#[test]
fn a_snapshot_does_not_depend_on_the_lock_timeout() {
    let (_folder, engine) = file_with_an_entry();
    engine.set_lock_timeout(Duration::ZERO);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    assert_eq!(engine.snapshot().size(), 8192);
                }
            });
        }
    });
}

/// As on any file: no connection of the engine is in the way.
#[test]
fn code_under_test_may_leave_wal_mode() {
    let (_folder, engine) = file_with_an_entry();
    assert_eq!(text(&engine.connect().unwrap(), "PRAGMA journal_mode = DELETE"), "delete");
}

#[test]
fn a_reset_mends_a_schema_that_can_not_be_parsed() {
    let (folder, engine) = file_with_an_entry();
    let engine = engine.fork();
    let damage = "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE TABLE ('";
    engine.connect().unwrap().execute_batch(damage).unwrap();
    assert!(engine.unit_of_work().unwrap().prepare("SELECT * FROM entry").is_err());
    assert_eq!(engine.snapshot().size(), 8192);
    engine.reset().unwrap();
    assert_eq!(committed(&engine), [(1, 10)]);
    drop(folder);
}

/// The plan is for the code under test.
#[test]
fn a_fault_plan_does_not_reach_a_restore_of_a_file() {
    let (_folder, engine) = file_with_an_entry();
    let before = engine.snapshot();
    update(&engine.connect().unwrap(), 11).unwrap();
    for fault in Fault::ALL {
        fault.starting_at(1).during(|| engine.restore(&before)).unwrap();
    }
    assert_eq!(committed(&engine), [(1, 10)]);
}

/// Another process would write into the transaction otherwise.
#[test]
fn a_snapshot_of_a_file_leaves_the_locks_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("entries.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(&format!("{SCHEMA}; BEGIN IMMEDIATE; UPDATE entry SET value = 11")).unwrap();
    assert!(Snapshot::open(&path).is_ok());
    let child = ["--ignored", "--exact", "on_file::in_files::another_process_is_locked_out"];
    assert_passed(&run(&child, &[("FIXTURES_TEST_FILE", path.to_str().unwrap())]));
    connection.execute_batch("COMMIT").unwrap();
    assert_eq!(entries(&connection), [(1, 11)]);
}

/// Runs tests of this program in a new process.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(arguments).arg("--test-threads=4").env_remove("RUSQLITE_FIXTURES_BACKEND");
    command.env("RUST_BACKTRACE", "0").envs(variables.iter().copied()).output().unwrap()
}

fn assert_passed(output: &Output) -> String {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success() && !stdout.contains(" 0 passed"), "{stdout}\n{stderr}");
    stdout + &stderr
}

const FILES: (&str, &str) = ("RUSQLITE_FIXTURES_BACKEND", "file");

#[test]
fn the_environment_variable_puts_engines_into_files() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = ("TMPDIR", temporary.path().to_str().unwrap());
    assert_passed(&run(
        &["--ignored", "on_file::in_files", "--skip", "prints", "--skip", "another_process"],
        &[FILES, folder],
    ));
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "the process has removed its files");
}

/// What a test would do with templates and fixtures in memory, it does in files.
#[test]
fn fixtures_and_templates_work_in_files() {
    let unless_reused = ["--skip", "the_lock_timeout_of_a_template_applies_to_all_its_engines"];
    assert_passed(&run(&[&["fixtures::", "templates::", "random::a_seed"], &unless_reused[..]].concat(), &[FILES]));
}

#[test]
fn a_backend_that_does_not_exist_is_reported() {
    let output = run(&["lifetime::"], &[("RUSQLITE_FIXTURES_BACKEND", "disk")]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success());
    let expected = "can't use the environment variable RUSQLITE_FIXTURES_BACKEND=\"disk\": there is no such backend; set it to \
                    file for engines in real files, or to memory";
    assert!(stdout.contains(expected), "{stdout}");
}

#[test]
fn a_folder_that_can_not_be_written_to_is_an_error() {
    let child = ["--ignored", "--exact", "on_file::in_files::what_can_not_be_created_prints_its_folder"];
    assert_passed(&run(&child, &[FILES, ("TMPDIR", "/no/such/folder")]));
}

#[test]
fn a_template_whose_file_was_removed_is_an_error() {
    let child = ["--ignored", "--exact", "on_file::in_files::what_was_removed_prints_its_path"];
    assert_passed(&run(&child, &[FILES]));
}

#[test]
fn a_recording_of_an_engine_whose_file_was_removed_fails_with_a_sentence() {
    let child = ["--ignored", "--exact", "on_file::in_files::a_recording_of_a_removed_file_prints_that"];
    assert_passed(&run(&child, &[FILES]));
}

#[test]
fn a_file_that_another_connection_writes_to_is_refused() {
    let child = ["--ignored", "--exact", "on_file::in_files::a_file_that_is_written_to_prints_that"];
    assert_passed(&run(&child, &[("RUSQLITE_FIXTURES_LOCK_TIMEOUT", "0.02")]));
}

#[test]
fn what_does_not_work_in_files_is_skipped_visibly() {
    let child = ["--ignored", "--exact", "--nocapture", "on_file::in_files::what_is_skipped_prints_that"];
    let printed = assert_passed(&run(&child, &[FILES]));
    for line in [
        "rusqlite-fixtures: skipped: Fault::Full at tests/it/on_file.rs:",
        "rusqlite-fixtures: skipped: Fault::Io at tests/it/on_file.rs:",
        "rusqlite-fixtures: skipped: Fault::Busy at tests/it/on_file.rs:",
        " fails no call, because engines are in files (RUSQLITE_FIXTURES_BACKEND=file)",
        "rusqlite-fixtures: skipped: no worker reaches the mark `slot: asked` and pauses there, because engines are in files",
    ] {
        assert!(printed.contains(line), "{line:?} is missing: {printed}");
    }
    assert!(!printed.contains("mark `here`"), "{printed}");
    assert_eq!(printed.matches("skipped: Fault::").count(), 3, "one line for each plan: {printed}");
}

/// Tests that other tests run in a process with `RUSQLITE_FIXTURES_BACKEND=file`.
mod in_files {
    use rusqlite_fixtures::KeptValues;
    use rusqlite_fixtures::hammer::{Hammer, Pause, SLOT_ASKED};

    use super::*;

    static CLOCKED: Template = Template::sql("CREATE TABLE log (at DEFAULT CURRENT_TIMESTAMP, n DEFAULT (random()))")
        .clock("2026-01-31T12:00:00Z")
        .random_seed(42);

    fn path_of(engine: &Engine) -> String {
        engine.connect().unwrap().path().unwrap().to_owned()
    }

    #[test]
    #[ignore = "runs with RUSQLITE_FIXTURES_BACKEND=file"]
    fn every_engine_is_a_file_in_the_temporary_folder() {
        let shared = Engine::shared("file:in-files?mode=memory").unwrap();
        let of_template = Engine::shared_with("file:of-template?mode=memory", &ENTRIES).unwrap();
        let from_bytes = ENTRIES.snapshot().unwrap().new_engine();
        for engine in [Engine::new(), Engine::default(), shared, of_template, from_bytes, ENTRIES.new_engine().unwrap()]
        {
            for engine in [engine.fork(), engine] {
                let path = path_of(&engine);
                assert!(Path::new(&path).starts_with(env::temp_dir()) && Path::new(&path).exists(), "{path}");
                let folder = env::temp_dir()
                    .join(Path::new(&path).strip_prefix(env::temp_dir()).unwrap().iter().next().unwrap());
                #[cfg(unix)]
                assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(folder).unwrap()) & 0o777, 0o700);
                let connection = Connection::open(engine.uri()).unwrap();
                assert_eq!(text(&connection, "PRAGMA journal_mode"), "wal");
                connection.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)").unwrap();
                engine.reset().unwrap();
                assert!(engine.connect().unwrap().prepare("SELECT * FROM t").is_err());
            }
        }
    }

    #[test]
    #[ignore = "runs with RUSQLITE_FIXTURES_BACKEND=file"]
    fn engines_of_a_template_do_not_share_their_changes() {
        let (one, other) = (ENTRIES.new_engine().unwrap(), ENTRIES.new_engine().unwrap());
        update(&one.connect().unwrap(), 11).unwrap();
        assert_eq!((committed(&one), committed(&other)), (vec![(1, 11)], vec![(1, 10)]));
        assert_eq!(committed(&ENTRIES.new_engine().unwrap()), [(1, 10)]);
    }

    #[test]
    #[ignore = "runs with RUSQLITE_FIXTURES_BACKEND=file"]
    fn a_clock_and_a_seed_work_for_connections_of_any_library() {
        const INSERT: &str = "INSERT INTO log DEFAULT VALUES RETURNING at || ' ' || n";
        let draw = || {
            let engine = CLOCKED.new_engine().unwrap();
            let drawn =
                [text(&engine.connect().unwrap(), INSERT), text(&Connection::open(engine.uri()).unwrap(), INSERT)];
            engine.clock().advance(Duration::from_secs(1)).unwrap();
            let fork = engine.fork();
            [&engine, &fork].into_iter().for_each(|engine| {
                let sql = "SELECT datetime('now')";
                assert_eq!(text(&engine.connect().unwrap(), sql), "2026-01-31 12:00:01");
                assert_eq!(text(&Connection::open(engine.uri()).unwrap(), sql), "2026-01-31 12:00:01");
            });
            drawn
        };
        let drawn = draw();
        assert!(drawn.iter().all(|text| text.starts_with("2026-01-31 12:00:00 ")), "{drawn:?}");
        assert_ne!(drawn[0], drawn[1]);
        assert_eq!(draw(), drawn, "the next test begins with the same time and numbers");
    }

    /// Otherwise it would have the clock of another engine, which stands in for a file on its thread.
    #[test]
    #[ignore = "runs with RUSQLITE_FIXTURES_BACKEND=file"]
    fn an_engine_without_a_clock_has_the_system_s_time() {
        let _stand_in = CLOCKED.new_engine().unwrap().stand_in_for("data/app.db").unwrap();
        let sql = "SELECT datetime('now')";
        assert_eq!(text(&Connection::open("data/app.db").unwrap(), sql), "2026-01-31 12:00:00");
        assert_ne!(text(&Engine::new().connect().unwrap(), sql), "2026-01-31 12:00:00");
    }

    #[test]
    #[ignore = "runs with RUSQLITE_FIXTURES_BACKEND=file"]
    fn a_kept_value_is_made_for_each_test() {
        static KEPT: KeptValues<String> = KeptValues::new(&ENTRIES);
        let get = || KEPT.get_or_make(|engine| Ok(path_of(engine))).unwrap();
        let first = get();
        assert!(Path::new(&*first).exists());
        let path = first.clone();
        drop(first);
        assert_ne!(*get(), path);
        let why = KEPT.why_dropped().unwrap();
        assert_eq!(why, "the engine is in a file, where nothing observes what is done to connections");
    }

    #[test]
    #[ignore = "runs with RUSQLITE_FIXTURES_BACKEND=file"]
    fn a_template_may_set_what_only_an_empty_database_can_change() {
        static SMALL: Template = Template::sql(
            "PRAGMA page_size = 512; PRAGMA auto_vacuum = FULL; PRAGMA encoding = 'UTF-16le'; CREATE TABLE t (a)",
        );
        let connection = SMALL.new_engine().unwrap().connect().unwrap();
        assert_eq!((number(&connection, "PRAGMA page_size"), number(&connection, "PRAGMA auto_vacuum")), (512, 1));
        assert_eq!(
            (text(&connection, "PRAGMA encoding"), text(&connection, "PRAGMA journal_mode")),
            ("UTF-16le".into(), "wal".into())
        );
    }

    #[test]
    #[ignore = "runs with RUSQLITE_FIXTURES_BACKEND=file"]
    fn a_function_that_leaves_a_transaction_open_fails() {
        static OPEN: Template = Template::build_on(|engine| {
            let connection = Connection::open(engine.uri())?;
            connection.execute_batch("BEGIN IMMEDIATE; CREATE TABLE t (a)")?;
            std::mem::forget(connection);
            Ok(())
        });
        let error = OPEN.new_engine().unwrap_err();
        assert!(error.to_string().contains("has left a transaction open; end all transactions"), "{error}");
    }

    #[test]
    #[ignore = "runs with RUSQLITE_FIXTURES_BACKEND=file"]
    fn a_url_that_is_an_engine_s_own_is_refused() {
        let engine = Engine::new();
        for url in [engine.uri(), engine.sqlite_url()] {
            let error = Engine::shared(url).unwrap_err();
            assert!(error.to_string().contains("it opens an engine that exists"), "{error}");
        }
        let same_file = Engine::file(path_of(&engine)).unwrap();
        drop(engine);
        same_file.try_transaction(|work| work.execute_batch(SCHEMA)).unwrap();
        assert_eq!(committed(&same_file), [(1, 10)], "each of them keeps the file");
    }

    #[test]
    #[ignore = "runs with RUSQLITE_FIXTURES_BACKEND=file"]
    fn what_can_not_be_created_prints_its_folder() {
        for error in [ENTRIES.new_engine().unwrap_err(), Engine::shared("file:new?mode=memory").unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Io);
            let start = "can't create a temporary folder for engines in files, in `/no/such/folder`: ";
            assert!(error.to_string().contains(start), "{error}");
        }
        let panic = thread::spawn(Engine::new).join().unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("/no/such/folder"));
    }

    #[test]
    #[ignore = "runs with RUSQLITE_FIXTURES_BACKEND=file"]
    fn a_recording_of_a_removed_file_prints_that() {
        static WATCHED: Template = Template::sql("CREATE TABLE t (a)").watch(Limits::new().statements(9));
        let message_of = |fails: &dyn Fn()| {
            let panic = catch_unwind(AssertUnwindSafe(fails)).unwrap_err();
            *panic.downcast::<String>().unwrap()
        };
        let removed = || {
            let engine = WATCHED.new_engine().unwrap();
            let recording = engine.record();
            engine.connect().unwrap().execute_batch("INSERT INTO t VALUES (1)").unwrap();
            fs::remove_file(path_of(&engine)).unwrap();
            (engine, recording)
        };
        let (engine, recording) = removed();
        let stopped = message_of(&|| drop(recording.statements()));
        assert!(
            stopped.starts_with("can't take a snapshot of engine ") && stopped.contains("unable to open database file"),
            "{stopped}"
        );
        drop(recording);
        let engine = RefCell::new(Some(engine));
        let dropped = message_of(&|| drop(engine.take()));
        assert_eq!(dropped, stopped);
    }

    #[test]
    #[ignore = "runs with RUSQLITE_FIXTURES_BACKEND=file"]
    fn what_was_removed_prints_its_path() {
        let engine = ENTRIES.new_engine().unwrap();
        let path = path_of(&engine);
        let root = Path::new(&path).ancestors().nth(2).unwrap();
        let is_of_template = |file: &fs::DirEntry| file.file_name().to_string_lossy().starts_with("template-");
        let files: Vec<_> = fs::read_dir(root).unwrap().map(Result::unwrap).filter(is_of_template).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        fs::remove_file(files[0].path()).unwrap();
        let error = ENTRIES.new_engine().unwrap_err();
        let start =
            format!("can't copy the template's file `{}` to `{}/engine-", files[0].path().display(), root.display());
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().starts_with(&start), "{error}");
        assert_eq!(committed(&engine), [(1, 10)]);
    }

    #[test]
    #[ignore = "runs in another process"]
    fn another_process_is_locked_out() {
        let connection = Connection::open(env::var("FIXTURES_TEST_FILE").unwrap()).unwrap();
        connection.busy_timeout(Duration::ZERO).unwrap();
        let error = connection.execute_batch("BEGIN IMMEDIATE").unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy));
    }

    #[test]
    #[ignore = "runs with another lock timeout"]
    fn a_file_that_is_written_to_prints_that() {
        let (folder, engine) = file_with_an_entry();
        let path = folder.path().join("entries.db");
        let _writer = engine.begin(Immediate).unwrap();
        let error = Engine::file(&path).unwrap_err();
        let expected = format!(
            "can't use the file `{}` as an engine: another connection or process is writing to it, or uses it in a mode \
             other than WAL; end that first",
            path.display()
        );
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::FileNotUsed, expected));
        assert!(error.sqlite().is_some());
        let other = folder.path().join("rollback.db");
        let reader = Connection::open(&other).unwrap();
        reader.execute_batch("CREATE TABLE t (a); BEGIN; SELECT * FROM t").unwrap();
        let error = Engine::file(&other).unwrap_err();
        assert!(error.to_string().contains("or uses it in a mode other than WAL"), "{error}");
        assert_eq!(text(&reader, "PRAGMA journal_mode"), "delete");
    }

    #[test]
    #[ignore = "runs with RUSQLITE_FIXTURES_BACKEND=file"]
    fn what_is_skipped_prints_that() {
        let mut runs = 0;
        Fault::Full.everywhere(|plan| {
            runs += 1;
            let engine = ENTRIES.new_engine().unwrap();
            assert_eq!(plan.during(|| update(&engine.connect().unwrap(), 11)), Ok(1));
        });
        assert_eq!(runs, 1);
        for plan in [Fault::Io.at(1), Fault::Busy.starting_at(2)] {
            assert!(plan.during(|| ENTRIES.unit_of_work()).is_ok());
            assert!(!plan.was_hit());
        }
        let patience = Duration::from_millis(1);
        let hammer = Hammer::new().threads(2).rounds(1);
        let hammer =
            hammer.pause_at(SLOT_ASKED, Pause::for_all().patience(patience)).pause_at("here", Pause::for_all());
        let report = hammer.run_each(
            |_| ENTRIES.new_engine().unwrap(),
            |worker, engine: &Engine| {
                worker.reached("here");
                Ok(engine.try_transaction(|work| update(work, 11))?)
            },
        );
        assert_eq!(report.distinct(), 1);
    }
}
