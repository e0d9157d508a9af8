//! Every error message, word for word. A failing test must make sense to readers who don't know this crate's source.

use std::time::Duration;

use rusqlite::TransactionBehavior::Immediate;
use rusqlite_fixtures::faults::Fault;
use rusqlite_fixtures::rusqlite::{self, ffi};
use rusqlite_fixtures::{DatabaseUrl, Engine, Error, ErrorKind, KeptValues, MemoryEngines, Snapshot, Template};

use crate::support::{engine_with_entries, entries, in_thread};

/// Returns the message with numbers, which differ from run to run, replaced by `N`, and units of time by `ms`.
fn normalized(error: &Error) -> String {
    let mut text = String::new();
    for letter in format!("{error:?}").replace(env!("CARGO_MANIFEST_DIR"), "ROOT").chars() {
        let repeats = letter.is_ascii_digit() && text.ends_with('N');
        if !repeats {
            text.push(if letter.is_ascii_digit() { 'N' } else { letter });
        }
    }
    text.replace("N.N", "N").replace("µs", "ms").replace("Nns", "Nms")
}

static TEMPLATE: Template = Template::sql("CREATE TABLE t (a)");
static KEPT: KeptValues<()> = KeptValues::new(&TEMPLATE);

#[test]
fn every_message_reads_as_expected() {
    let locked = engine_with_entries(&[(1, 1)]);
    locked.set_lock_timeout(Duration::from_millis(5));
    let reader = locked.unit_of_work().unwrap();
    entries(&reader);
    let writer = in_thread("moves_the_money", || locked.begin(Immediate).unwrap());
    let timed_out = locked.begin(Immediate).unwrap_err();
    drop(writer);
    in_thread("moves_the_money", || {
        locked.try_transaction(|work| work.execute("UPDATE entry SET value = 2", [])).unwrap()
    });
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
    let syntax = locked.transaction::<()>(|work| Ok(work.execute_batch("SELEC 1")?)).unwrap_err();

    let cases = [
        (
            timed_out,
            "can't write to engine N: waited Nms for its writer slot, which was taken by thread `moves_the_money` in the \
             unit of work begun at tests/it/errors.rs:N:N, Nms ago; commit, roll back or drop that one sooner, or raise \
             Engine::set_lock_timeout, or the busy timeout of a connection that was opened by the engine's URI",
        ),
        (
            stale,
            "can't write to engine N: serialization failure: what this transaction has read was replaced by thread \
             `moves_the_money` in the unit of work begun at tests/it/errors.rs:N:N, Nms ago; roll back and run it again, \
             or begin with TransactionBehavior::Immediate",
        ),
        (
            ended,
            "can't commit a unit of work on engine N: it has already ended, because the code under test ran COMMIT or \
             ROLLBACK, or SQLite rolled it back after an error; for code that ends its own transactions, use \
             Engine::pooled_connection",
        ),
        (
            recursive,
            "can't create the shared engine `file:orders?mode=memory&cache=shared`: its creation needs the same engine, \
             on this thread or through the creation of another engine, and would wait for itself; use the engine that is \
             being created, or another URL",
        ),
        (
            KEPT.get_or_make(|_| Err("the port is in use".into())).unwrap_err(),
            "can't make a value from engine N of the template at tests/it/errors.rs:N:N: the function given to \
             KeptValues failed: the port is in use",
        ),
        (
            Template::sql("CREATE TABLE t (a);\nINSERT INTO t VALUES (1, 2);").new_engine().unwrap_err(),
            "can't build the template at tests/it/errors.rs:N:N: line N of the script given at tests/it/errors.rs:N:N \
             failed: SQLite says: table t has N columns but N values were supplied; the statement:\n\
             INSERT INTO t VALUES (N, N);",
        ),
        (
            Template::build(|_| Err("no migrations".into())).key("bank-vN").new_engine().unwrap_err(),
            "can't build the template `bank-vN` at tests/it/errors.rs:N:N: the function given at tests/it/errors.rs:N:N \
             failed: no migrations",
        ),
        (
            Template::sql("SELECT 1").on_connect(|_| Err("no such extension".into())).new_engine().unwrap_err(),
            "can't build the template at tests/it/errors.rs:N:N: the on_connect function given at \
             tests/it/errors.rs:N:N failed: no such extension",
        ),
        (
            Template::build(|_| std::panic::panic_any(7)).new_engine().unwrap_err(),
            "can't build the template at tests/it/errors.rs:N:N: it panicked: the panic's value is not a string",
        ),
        (
            Template::sql("BEGIN").new_engine().unwrap_err(),
            "can't build the template at tests/it/errors.rs:N:N: the step given at tests/it/errors.rs:N:N has left a \
             transaction open; commit it or roll it back in that step",
        ),
        (
            Template::directory("examples").new_engine().unwrap_err(),
            "can't build the template at tests/it/errors.rs:N:N: the folder `ROOT/examples` has no migrations; their names are \
             like N_name.sql, N_name.up.sql, VN__name.sql or N-N-N-N_name/up.sql",
        ),
        (
            Template::directory("example").new_engine().unwrap_err(),
            "can't build the template at tests/it/errors.rs:N:N: can't read the folder `ROOT/example`: No such file or directory \
             (os error N); a relative folder is below the root of the package that is being tested (CARGO_MANIFEST_DIR); for a \
             folder of another package, use an absolute path, by concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/migrations\") in that \
             package",
        ),
        (
            Template::build_on(|engine| {
                let connection = engine.connect()?;
                connection.execute_batch("BEGIN IMMEDIATE")?;
                std::mem::forget(connection);
                Ok(())
            })
            .new_engine()
            .unwrap_err(),
            "can't build the template at tests/it/errors.rs:N:N: the function given at tests/it/errors.rs:N:N has left a \
             transaction open; end all transactions before it returns: can't write to the template at tests/it/errors.rs:N:N: \
             waited Ns for its writer slot, which was taken by thread `errors::every_message_reads_as_expected` (this thread) \
             in the connection opened at tests/it/errors.rs:N:N, Ns ago; this thread waits for itself: commit, roll back or drop \
             that one first",
        ),
        (
            Engine::shared(Engine::new().uri()).unwrap_err(),
            "can't use the database URL \"file:/rusqlite-fixtures/engine-N?vfs=rusqlite-fixtures-N.N\": it opens an engine that \
             exists; clone that Engine, or give the URL to the library that connects to it",
        ),
        (
            Engine::shared_with(conflict, &Template::sql("SELECT 1")).unwrap_err(),
            "can't use the shared engine `file:errors-conflict?mode=memory&cache=shared` for the template at \
             tests/it/errors.rs:N:N: it was created without a template; use another URL, or Template::new_engine for a \
             private engine",
        ),
        (
            Fault::Busy.starting_at(1).during(|| locked.begin(Immediate)).unwrap_err(),
            "can't lock engine N: Fault::Busy.starting_at(N) of tests/it/errors.rs:N:N makes the lock fail",
        ),
        (
            Fault::NoMemory.at(1).during(|| Engine::new().connect()).unwrap_err(),
            "can't open a connection to engine N: SQLite says: out of memory",
        ),
        (syntax, "near \"SELEC\": syntax error in SELEC N at offset N"),
        (
            Snapshot::from_bytes(vec![]).unwrap_err(),
            "can't use these bytes as a SQLite database: it is empty (Engine::new() makes an empty database)",
        ),
        (
            Snapshot::open("no such file").unwrap_err(),
            "can't open a snapshot of `no such file`: No such file or directory (os error N)",
        ),
        (
            Snapshot::open("Cargo.toml").unwrap_err(),
            "can't use the file `Cargo.toml` as a SQLite database: it does not start with SQLite's header string, \
             \"SQLite format N\"",
        ),
        (
            Engine::shared("file:path.db").unwrap_err(),
            "can't use the database URL \"file:path.db\": it may name a file by mistake; for the file itself, use \
             Engine::file(\"path.db\") or a URL like \"sqlite:///PATH\"; for an engine in memory with its content, \
             Snapshot::open(\"path.db\")?.new_engine(); for the shared engine NAME, \"file:NAME?mode=memory\"",
        ),
        (
            Engine::shared("mysql://localhost").unwrap_err(),
            "can't use the database URL \"mysql://localhost\": its scheme is \"mysql\", and only SQLite is supported: \
             \"sqlite:///:memory:\", \"file:NAME?mode=memory\" for the shared database NAME, or \"sqlite:///PATH\" for a \
             file",
        ),
    ];
    for (error, expected) in cases {
        assert_eq!(normalized(&error), expected);
        assert_eq!(format!("{error:?}"), error.to_string());
    }
}

#[test]
fn errors_return_their_causes() {
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

/// Code under test may return `rusqlite::Error` and call functions that return this crate's error.
#[test]
fn errors_convert_to_rusqlite_errors() {
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

/// The extended code distinguishes a serialization failure from a lock timeout.
#[test]
fn a_serialization_failure_keeps_its_code() {
    let engine = engine_with_entries(&[(1, 1)]);
    let reader = engine.unit_of_work().unwrap();
    entries(&reader);
    engine.try_transaction(|work| work.execute("UPDATE entry SET value = 2", [])).unwrap();
    let code = |error: &rusqlite::Error| error.sqlite_error().map(|code| code.extended_code);
    let stale = Error::from(reader.execute("UPDATE entry SET value = 3", []).unwrap_err());
    assert_eq!(stale.kind(), ErrorKind::SerializationFailure);
    assert_eq!(stale.sqlite().and_then(code), Some(ffi::SQLITE_BUSY_SNAPSHOT));
    let message = stale.to_string();
    let back = rusqlite::Error::from(stale);
    assert_eq!(code(&back), Some(ffi::SQLITE_BUSY_SNAPSHOT));
    assert_eq!(back.to_string(), message);
    let again = Error::from(back);
    assert_eq!(again.sqlite().and_then(code), Some(ffi::SQLITE_BUSY_SNAPSHOT), "the code survives further conversions");
}

/// Opening a connection reads the database. So a plan that fails every lock fails it there, if no connection is idle.
#[test]
fn a_lock_refused_while_a_connection_opens_is_a_lock_timeout() {
    let begin = |engine: &Engine| Fault::Busy.starting_at(1).during(|| engine.begin(Immediate)).unwrap_err();
    let cold = engine_with_entries(&[]);
    cold.retire();
    let warm = engine_with_entries(&[]);
    drop(warm.unit_of_work().unwrap());
    for engine in [cold, warm] {
        let error = begin(&engine);
        assert_eq!(error.kind(), ErrorKind::LockTimeout);
        let expected = "can't lock engine N: Fault::Busy.starting_at(N) of tests/it/errors.rs:N:N makes the lock fail";
        assert_eq!(normalized(&error), expected);
        assert_eq!(error.sqlite().unwrap().sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy));
    }
}

/// The details of a refusal belong to its own error, and not to a later one.
#[test]
fn the_details_of_a_refusal_are_reported_once() {
    let engine = engine_with_entries(&[(1, 1)]);
    engine.set_lock_timeout(Duration::ZERO);
    let writer = engine.begin(Immediate).unwrap();
    let refused = engine.connect().unwrap().execute("DELETE FROM entry", []).unwrap_err();
    drop(writer);
    let locked = || Some("database is locked".to_owned());
    let busy = || rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), locked());
    assert_eq!(Error::from(refused).kind(), ErrorKind::LockTimeout);
    assert_is_not_explained(busy());
}

/// The error of a connection that is refused at once, on an engine whose slot is taken.
fn refused(engine: &Engine) -> rusqlite::Error {
    engine.connect().unwrap().execute("DELETE FROM entry", []).unwrap_err()
}

fn impatient_engine() -> Engine {
    let engine = engine_with_entries(&[(1, 1)]);
    engine.set_lock_timeout(Duration::ZERO);
    engine
}

fn assert_is_not_explained(error: impl Into<Error>) {
    let error: Error = error.into();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::LockTimeout, "database is locked"));
}

#[test]
fn a_refusal_is_not_explained_on_another_thread() {
    let engine = impatient_engine();
    let _writer = engine.begin(Immediate).unwrap();
    let error = refused(&engine);
    in_thread("converts", || assert_is_not_explained(error));
    assert_eq!(Error::from(refused(&engine)).kind(), ErrorKind::LockTimeout, "on the same thread it is");
}

#[test]
fn a_refusal_is_not_explained_a_second_later() {
    let engine = impatient_engine();
    let _writer = engine.begin(Immediate).unwrap();
    let error = refused(&engine);
    std::thread::sleep(Duration::from_secs(1));
    assert_is_not_explained(error);
}

#[test]
fn a_refusal_is_not_explained_after_a_lock_was_granted_on_the_thread() {
    let engine = impatient_engine();
    let _writer = engine.begin(Immediate).unwrap();
    let error = refused(&engine);
    engine_with_entries(&[(1, 1)]);
    assert_is_not_explained(error);
}

#[test]
fn a_refusal_is_not_explained_after_a_connection_was_lent_out_on_the_thread() {
    let (engine, other) = (impatient_engine(), engine_with_entries(&[(1, 1)]));
    drop(other.unit_of_work().unwrap()); // so that the next one gets an idle connection
    let _writer = engine.begin(Immediate).unwrap();
    let error = refused(&engine);
    let _work = other.unit_of_work().unwrap();
    assert_is_not_explained(error);
}

#[test]
fn a_refusal_is_not_explained_after_one_with_another_code() {
    let engine = impatient_engine();
    let reader = engine.unit_of_work().unwrap();
    entries(&reader);
    in_thread("replaces_it", || engine.try_transaction(|work| work.execute("DELETE FROM entry", [])).unwrap());
    let other = impatient_engine();
    let _writer = other.begin(Immediate).unwrap();
    let first = refused(&other);
    let stale = reader.execute("DELETE FROM entry", []).unwrap_err();
    assert_is_not_explained(first);
    assert_eq!(Error::from(stale).kind(), ErrorKind::SerializationFailure);
}

#[test]
fn of_two_refusals_with_one_code_the_latest_is_explained() {
    let engines = [impatient_engine(), impatient_engine()];
    let _writers = engines.each_ref().map(|engine| engine.begin(Immediate).unwrap());
    let connections = engines.each_ref().map(|engine| engine.connect().unwrap());
    let errors = connections.each_ref().map(|connection| connection.execute("DELETE FROM entry", []).unwrap_err());
    let [first, second] = errors.map(Error::from);
    assert_eq!(first.kind(), ErrorKind::LockTimeout);
    let latest = format!("{:?}", engines[1]);
    let latest = latest.split('"').nth(1).unwrap();
    assert!(first.to_string().contains(&format!("can't write to {latest}:")), "{first}, and not of {latest}");
    assert_is_not_explained(second);
}

#[test]
fn a_refusal_is_not_explained_in_other_words() {
    let engine = impatient_engine();
    let _writer = engine.begin(Immediate).unwrap();
    let rusqlite::Error::SqliteFailure(code, _) = refused(&engine) else { panic!("no error of SQLite") };
    let wrapped = rusqlite::Error::SqliteFailure(code, Some("can't delete: database is locked".to_owned()));
    assert_eq!(Error::from(wrapped).kind(), ErrorKind::Sqlite);
}

/// After a wait that succeeds, a later error is not explained by it.
#[test]
fn a_refusal_is_forgotten_when_the_wait_succeeds() {
    let engine = engine_with_entries(&[(1, 1)]);
    let writer = engine.begin(Immediate).unwrap();
    std::thread::scope(|scope| {
        let (started, has_started) = std::sync::mpsc::channel();
        let waiting = scope.spawn(|| {
            started.send(()).unwrap();
            drop(started);
            engine.try_transaction(|work| work.execute("DELETE FROM entry", [])).unwrap();
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
        assert_is_not_explained(waiting.join().unwrap());
    });
}
