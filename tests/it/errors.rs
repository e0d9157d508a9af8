//! Every message, word for word: what a failing test shows must make sense without this crate's source.

use std::time::Duration;

use rusqlite::TransactionBehavior::Immediate;
use rusqlite_fixtures::faults::Fault;
use rusqlite_fixtures::rusqlite::{self, ffi};
use rusqlite_fixtures::{DatabaseUrl, Engine, Error, ErrorKind, MemoryEngines, Snapshot, Template};

use crate::support::{engine_with_entries, entries, in_thread};

/// Numbers that differ from run to run as `N`, and where the line breaks.
fn normalised(error: &Error) -> String {
    let mut text = String::new();
    for letter in format!("{error:?}").chars() {
        let repeats = letter.is_ascii_digit() && text.ends_with('N');
        if !repeats {
            text.push(if letter.is_ascii_digit() { 'N' } else { letter });
        }
    }
    text.replace("N.N", "N").replace("µs", "ms").replace("Nns", "Nms")
}

#[test]
fn every_message() {
    let locked = engine_with_entries(&[(1, 1)]);
    locked.set_lock_timeout(Duration::from_millis(5));
    let reader = locked.unit_of_work().unwrap();
    entries(&reader);
    let writer = in_thread("moves_the_money", || locked.begin(Immediate).unwrap());
    let timed_out = locked.begin(Immediate).unwrap_err();
    drop(writer);
    in_thread("moves_the_money", || locked.transaction(|work| work.execute("UPDATE entry SET value = 2", [])).unwrap());
    let stale = Error::from(reader.execute("UPDATE entry SET value = 3", []).unwrap_err());
    let ended = {
        let work = locked.unit_of_work().unwrap();
        work.execute_batch("COMMIT").unwrap();
        work.commit().unwrap_err()
    };
    let engines = MemoryEngines::new();
    let url = DatabaseUrl::named("orders").unwrap();
    let recursive = engines.get_or_create_with(&url, || engines.get_or_create(&url)).unwrap_err();
    let conflict =
        Engine::shared("file:errors-conflict?mode=memory").map(|_| "file:errors-conflict?mode=memory").unwrap();
    let syntax = locked.transaction::<(), Error>(|work| Ok(work.execute_batch("SELEC 1")?)).unwrap_err();

    let cases = [
        (
            timed_out,
            "can't write to engine N: waited Nms for its writer slot, which was taken by thread `moves_the_money` in the \
             unit of work begun at tests/it/errors.rs:N:N, Nms ago; commit, roll back or drop that one sooner, or raise \
             Engine::set_lock_timeout",
        ),
        (
            stale,
            "can't write to engine N: serialization failure, for what this transaction read has been replaced since by \
             thread `moves_the_money` in the unit of work begun at tests/it/errors.rs:N:N, Nms ago; roll back and run it \
             again, or begin with TransactionBehavior::Immediate",
        ),
        (
            ended,
            "can't commit a unit of work on engine N: it had already ended, because the code under test ran COMMIT or \
             ROLLBACK itself, or SQLite rolled back after an error",
        ),
        (
            recursive,
            "can't create the shared engine `file:orders?mode=memory&cache=shared`: its creation asks for the same engine, \
             on this thread or by way of another's creation, and would wait for itself; use the engine that is being made, \
             or another URL",
        ),
        (
            Template::sql("CREATE TABLE t (a);\nINSERT INTO t VALUES (1, 2);").engine().unwrap_err(),
            "can't build the template at tests/it/errors.rs:N:N: line N of the script given at tests/it/errors.rs:N:N \
             failed: SQLite says: table t has N columns but N values were supplied; the statement:\n\
             INSERT INTO t VALUES (N, N);",
        ),
        (
            Template::build(|_| Err("no migrations".into())).key("bank-vN").engine().unwrap_err(),
            "can't build the template `bank-vN` at tests/it/errors.rs:N:N: the function given at tests/it/errors.rs:N:N \
             failed: no migrations",
        ),
        (
            Template::sql("SELECT 1").on_connect(|_| Err("no such extension".into())).engine().unwrap_err(),
            "can't build the template at tests/it/errors.rs:N:N: the on_connect function given at \
             tests/it/errors.rs:N:N failed: no such extension",
        ),
        (
            Template::build(|_| std::panic::panic_any(7)).engine().unwrap_err(),
            "can't build the template at tests/it/errors.rs:N:N: it panicked: not with a text",
        ),
        (
            Template::sql("BEGIN").engine().unwrap_err(),
            "can't build the template at tests/it/errors.rs:N:N: what was given at tests/it/errors.rs:N:N has begun a \
             transaction and neither committed it nor rolled it back",
        ),
        (
            Engine::shared_with(conflict, &Template::sql("SELECT 1")).unwrap_err(),
            "can't give out the shared engine `file:errors-conflict?mode=memory&cache=shared` as one of the template at \
             tests/it/errors.rs:N:N: it was made without a template; use another URL, or Template::engine for an engine \
             of its own",
        ),
        (
            Fault::Busy.starting_at(1).during(|| locked.begin(Immediate)).unwrap_err(),
            "can't lock engine N: Fault::Busy.starting_at(N) of tests/it/errors.rs:N:N makes it seem taken",
        ),
        (
            Fault::NoMemory.at(1).during(|| Engine::new().connect()).unwrap_err(),
            "can't open a connection to engine N: SQLite says: out of memory",
        ),
        (syntax, "near \"SELEC\": syntax error in SELEC N at offset N"),
        (
            Snapshot::from_bytes(vec![]).unwrap_err(),
            "can't take these bytes as a SQLite database: it is empty (Engine::new() makes an empty database)",
        ),
        (
            Snapshot::open("no such file").unwrap_err(),
            "can't open a snapshot of `no such file`: No such file or directory (os error N)",
        ),
        (
            Snapshot::open("Cargo.toml").unwrap_err(),
            "can't take the file `Cargo.toml` as a SQLite database: it does not start with SQLite's header string, \
             \"SQLite format N\"",
        ),
        (
            Engine::shared("file:path.db").unwrap_err(),
            "can't use the database URL \"file:path.db\": it is of a file, and engines are in memory; \
             Snapshot::open(\"path.db\")?.engine() makes an engine of the file's content",
        ),
        (
            Engine::shared("mysql://localhost").unwrap_err(),
            "can't use the database URL \"mysql://localhost\": its scheme is \"mysql\", and only SQLite in memory is \
             served here: \"sqlite:///:memory:\", or \"file:NAME?mode=memory\" for a shared database of that name",
        ),
    ];
    for (error, expected) in cases {
        assert_eq!(normalised(&error), expected);
        assert_eq!(format!("{error:?}"), error.to_string());
    }
}

#[test]
fn errors_have_their_causes() {
    use std::error::Error as _;
    let io = Snapshot::open("no such file").unwrap_err();
    assert!(io.source().unwrap().is::<std::io::Error>());
    assert!(io.sqlite().is_none());
    let sqlite = Error::from(rusqlite::Error::QueryReturnedNoRows);
    assert_eq!(sqlite.kind(), ErrorKind::Sqlite);
    assert_eq!(sqlite.sqlite(), Some(&rusqlite::Error::QueryReturnedNoRows));
    assert!(sqlite.source().unwrap().is::<rusqlite::Error>());
    assert!(Snapshot::from_bytes(vec![]).unwrap_err().source().is_none());
}

/// For code under test that returns `rusqlite::Error`, and calls what returns ours.
#[test]
fn errors_become_rusqlite_errors() {
    let engine = engine_with_entries(&[]);
    engine.set_lock_timeout(Duration::ZERO);
    let _writer = engine.begin(Immediate).unwrap();
    let busy = rusqlite::Error::from(engine.begin(Immediate).unwrap_err());
    assert_eq!(busy.sqlite_error().unwrap().extended_code, ffi::SQLITE_BUSY);
    assert!(busy.to_string().contains("writer slot"), "{busy}");
    let no_rows = rusqlite::Error::from(Error::from(rusqlite::Error::QueryReturnedNoRows));
    assert_eq!(no_rows, rusqlite::Error::QueryReturnedNoRows);
    let other = rusqlite::Error::from(Snapshot::from_bytes(vec![]).unwrap_err());
    assert!(other.to_string().contains("it is empty"), "{other}");
}

/// The extended code is what tells a serialization failure from a lock that was not given back in time.
#[test]
fn a_serialization_failure_keeps_its_code() {
    let engine = engine_with_entries(&[(1, 1)]);
    let reader = engine.unit_of_work().unwrap();
    entries(&reader);
    engine.transaction(|work| work.execute("UPDATE entry SET value = 2", [])).unwrap();
    let code = |error: &rusqlite::Error| error.sqlite_error().map(|code| code.extended_code);
    let stale = Error::from(reader.execute("UPDATE entry SET value = 3", []).unwrap_err());
    assert_eq!(stale.kind(), ErrorKind::SerializationFailure);
    assert_eq!(stale.sqlite().and_then(code), Some(ffi::SQLITE_BUSY_SNAPSHOT));
    let words = stale.to_string();
    let back = rusqlite::Error::from(stale);
    assert_eq!(code(&back), Some(ffi::SQLITE_BUSY_SNAPSHOT));
    assert_eq!(back.to_string(), words);
    let again = Error::from(back);
    assert_eq!(again.sqlite().and_then(code), Some(ffi::SQLITE_BUSY_SNAPSHOT), "and so it goes on");
}

/// To open a connection is to read, so a plan that hits every lock hits it there, if no connection is idle.
#[test]
fn a_lock_that_is_refused_while_a_connection_is_opened_is_a_time_out() {
    let begin = |engine: &Engine| Fault::Busy.starting_at(1).during(|| engine.begin(Immediate)).unwrap_err();
    let cold = engine_with_entries(&[]);
    cold.retire();
    let warm = engine_with_entries(&[]);
    drop(warm.unit_of_work().unwrap());
    for engine in [cold, warm] {
        let error = begin(&engine);
        assert_eq!(error.kind(), ErrorKind::LockTimeout);
        let expected = "can't lock engine N: Fault::Busy.starting_at(N) of tests/it/errors.rs:N:N makes it seem taken";
        assert_eq!(normalised(&error), expected);
        assert_eq!(error.sqlite().unwrap().sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy));
    }
}

/// The detail of a refusal goes to the error that it belongs to, and to no later one.
#[test]
fn a_refusal_is_told_once() {
    let engine = engine_with_entries(&[(1, 1)]);
    engine.set_lock_timeout(Duration::ZERO);
    let writer = engine.begin(Immediate).unwrap();
    let refused = engine.connect().unwrap().execute("DELETE FROM entry", []).unwrap_err();
    drop(writer);
    let locked = || Some("database is locked".to_owned());
    let busy = || rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), locked());
    assert_eq!(Error::from(refused).kind(), ErrorKind::LockTimeout);
    assert_eq!(Error::from(busy()).kind(), ErrorKind::Sqlite);
}

/// A wait that ended well leaves nothing behind that a later error would be taken for.
#[test]
fn a_refusal_that_was_overcome_is_forgotten() {
    let engine = engine_with_entries(&[(1, 1)]);
    let writer = engine.begin(Immediate).unwrap();
    std::thread::scope(|scope| {
        let (started, has_started) = std::sync::mpsc::channel();
        let waiting = scope.spawn(|| {
            started.send(()).unwrap();
            drop(started);
            engine.transaction(|work| work.execute("DELETE FROM entry", [])).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let open = || rusqlite::Connection::open(folder.path().join("file")).unwrap();
            let (one, other) = (open(), open());
            one.execute_batch("BEGIN EXCLUSIVE").unwrap();
            other.busy_timeout(Duration::ZERO).unwrap();
            Error::from(other.execute_batch("BEGIN IMMEDIATE").unwrap_err())
        });
        has_started.recv().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        writer.commit().unwrap();
        assert_eq!(waiting.join().unwrap().kind(), ErrorKind::Sqlite);
    });
}
