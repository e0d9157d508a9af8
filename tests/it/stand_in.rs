//! Engines stand in for files that code under test opens by their paths.

use std::path::Path;
use std::sync::{Barrier, mpsc};
use std::{env, fs, thread};

use rusqlite_fixtures::hammer::Hammer;
use rusqlite_fixtures::rusqlite::{self, Connection, OpenFlags};
use rusqlite_fixtures::{Engine, ErrorKind, StandIn, Template};

use crate::support::{in_thread, number, text};

static NOTES: Template = Template::sql("CREATE TABLE note (text TEXT)");

const NOTES_OF: &str = "SELECT count(*) FROM note";

/// The code under test.
fn add_note(path: &str, text: &str) -> rusqlite::Result<i64> {
    let mut connection = Connection::open(path)?;
    let transaction = connection.transaction()?;
    transaction.execute("INSERT INTO note VALUES (?1)", [text])?;
    transaction.commit()?;
    connection.query_row(NOTES_OF, [], |row| row.get(0))
}

fn stand_in(path: &str) -> StandIn {
    NOTES.new_engine().unwrap().stand_in_for(path).unwrap()
}

#[test]
fn code_that_opens_its_own_path_gets_the_engine() {
    let engine = NOTES.new_engine().unwrap();
    let guard = engine.stand_in_for("stand_in/notes.db").unwrap();
    let absolute = env::current_dir().unwrap().join("stand_in/notes.db");
    for (notes, name) in [
        "stand_in/notes.db",
        "./stand_in/../stand_in/notes.db",
        absolute.to_str().unwrap(),
        "file:stand_in/notes.db",
        "file:stand_in/notes.db?mode=rwc&cache=private",
        &format!("file://{}", absolute.display()),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(add_note(name, "rain"), Ok(notes as i64 + 1), "{name}");
    }
    let read_only = Connection::open_with_flags("stand_in/notes.db", OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    assert_eq!(number(&read_only, NOTES_OF), 6);
    assert!(read_only.execute("DELETE FROM note", []).is_err());
    assert_eq!(number(&engine.unit_of_work().unwrap(), NOTES_OF), 6);
    assert_eq!(guard.engine(), &engine);
    assert!(!Path::new("stand_in").exists(), "not even the folder was made");
}

#[test]
fn what_code_does_at_its_path_is_recorded() {
    let stand_in = stand_in("recorded/notes.db");
    let (count, statements) = stand_in.engine().recorded(|| add_note("recorded/notes.db", "rain").unwrap());
    assert_eq!((count, statements.gaps()), (1, vec![]));
    let sql: Vec<&str> = statements.iter().map(|statement| statement.sql()).collect();
    assert_eq!(sql, ["BEGIN DEFERRED", "INSERT INTO note VALUES (?1)", "COMMIT", NOTES_OF]);
}

/// It is neither read nor written, whatever its journal mode.
#[test]
fn a_file_at_the_path_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.db");
    let path = path.to_str().unwrap();
    let file = Connection::open(path).unwrap();
    file.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE note (text); INSERT INTO note VALUES ('in the file')")
        .unwrap();
    let files = || {
        let mut files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect::<Vec<_>>()
    };
    let before = files();
    {
        let _stand_in = stand_in(path);
        assert_eq!(add_note(path, "in the engine"), Ok(1));
        let connection = Connection::open(path).unwrap();
        assert_eq!(text(&connection, "PRAGMA journal_mode = WAL"), "wal");
        connection.execute_batch("INSERT INTO note VALUES ('two'); PRAGMA wal_checkpoint; VACUUM").unwrap();
        drop(connection);
        assert_eq!(add_note(path, "three"), Ok(3));
        assert!(files() == before);
        // A connection that was open before is on the file, and its transactions go there.
        file.execute("INSERT INTO note VALUES ('in the file')", []).unwrap();
        assert_eq!(number(&file, NOTES_OF), 2);
    }
    assert_eq!(add_note(path, "in the file"), Ok(3), "it is a file again");
}

/// While an engine stands in for a file, other files are opened through this crate's VFS.
#[test]
fn other_files_are_opened_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let name = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let _stand_in = stand_in(&name("notes.db"));
    let other = Connection::open(name("other.db")).unwrap();
    assert_eq!(text(&other, "PRAGMA journal_mode = WAL"), "wal");
    other.execute_batch("CREATE TABLE note (text); INSERT INTO note VALUES ('in the file')").unwrap();
    for suffix in ["", "-wal", "-shm"] {
        assert!(fs::exists(name(&format!("other.db{suffix}"))).unwrap(), "{suffix}");
    }
    let reader = Connection::open(name("other.db")).unwrap();
    assert_eq!(number(&reader, NOTES_OF), 1);
    assert_eq!(text(&other, "PRAGMA integrity_check"), "ok");
    other.execute_batch("PRAGMA journal_mode = DELETE; VACUUM; PRAGMA mmap_size = 1000000").unwrap_err(); // the reader
    drop(reader);
    other.execute_batch("PRAGMA journal_mode = DELETE; VACUUM; PRAGMA mmap_size = 1000000; SELECT 1").unwrap();
    assert!(!fs::exists(name("other.db-wal")).unwrap());
    let copy = name("copy.db");
    other.execute("VACUUM INTO ?1", [&copy]).unwrap();
    assert_eq!(number(&Connection::open(&copy).unwrap(), NOTES_OF), 1);
    let memory = Connection::open_in_memory().unwrap();
    memory.execute_batch("CREATE TABLE note (text)").unwrap();
    assert!(memory.prepare("SELECT * FROM note").is_ok());
}

#[test]
fn an_attached_path_is_the_engine() {
    let engine = NOTES.new_engine().unwrap();
    let _stand_in = engine.stand_in_for("stand_in/attached.db").unwrap();
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch("ATTACH 'stand_in/attached.db' AS notes; INSERT INTO notes.note VALUES ('rain')").unwrap();
    assert_eq!(number(&engine.unit_of_work().unwrap(), NOTES_OF), 1);
}

#[test]
fn an_open_connection_stays_on_the_engine() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.db");
    let guard = stand_in(path.to_str().unwrap());
    let connection = Connection::open(&path).unwrap();
    drop(guard);
    connection.execute_batch("BEGIN; INSERT INTO note VALUES ('rain'); COMMIT").unwrap();
    assert_eq!(number(&connection, NOTES_OF), 1);
    assert!(Connection::open(&path).unwrap().prepare(NOTES_OF).is_err(), "the file is new and empty");
}

#[test]
fn threads_have_their_own_engine_for_one_path() {
    let barrier = Barrier::new(4);
    thread::scope(|scope| {
        for number in 1..=4 {
            let barrier = &barrier;
            scope.spawn(move || {
                let _stand_in = stand_in("stand_in/threads.db");
                barrier.wait();
                for note in 1..=number {
                    assert_eq!(add_note("stand_in/threads.db", "rain"), Ok(note));
                }
                barrier.wait();
            });
        }
    });
    assert!(!Path::new("stand_in").exists());
}

#[test]
fn a_thread_without_a_stand_in_opens_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.db");
    let path = path.to_str().unwrap();
    let _stand_in = stand_in(path);
    let in_file = || {
        Connection::open(path).unwrap().execute_batch("CREATE TABLE note (text)").unwrap();
        add_note(path, "in the file")
    };
    assert_eq!(in_thread("other", in_file), Ok(1));
    assert_eq!((add_note(path, "in the engine"), add_note(path, "in the engine")), (Ok(1), Ok(2)));
    assert!(fs::exists(path).unwrap());
}

#[test]
fn all_threads_get_the_engine_if_asked_for() {
    let engine = NOTES.new_engine().unwrap();
    let guard = engine.stand_in_for_all("stand_in/all.db").unwrap();
    let add = || add_note("stand_in/all.db", "rain");
    assert_eq!((in_thread("one", add), in_thread("two", add), add()), (Ok(1), Ok(2), Ok(3)));
    {
        let _own = stand_in("stand_in/all.db");
        assert_eq!((add(), in_thread("three", add)), (Ok(1), Ok(4)), "the thread's own takes precedence");
    }
    assert_eq!(add(), Ok(5));
    let elsewhere = thread::spawn(move || drop(guard)).join();
    assert!(elsewhere.is_ok() && !Path::new("stand_in").exists());
}

#[test]
fn a_hammer_s_threads_have_the_engine_of_their_test() {
    let engine = NOTES.new_engine().unwrap();
    let _stand_in = engine.stand_in_for("stand_in/hammer.db").unwrap();
    let report = Hammer::new().threads(4).rounds(5).run(|_| Ok(add_note("stand_in/hammer.db", "rain")?));
    assert_eq!(report.values().count(), 20, "{report}");
    assert_eq!(number(&engine.unit_of_work().unwrap(), NOTES_OF), 20);
}

/// A symbolic link and its target are one file.
#[cfg(unix)]
#[test]
fn a_link_to_the_file_is_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(folder.path().join("notes.db"), &link).unwrap();
    let target = folder.path().join("notes.db");
    let _stand_in = stand_in(target.to_str().unwrap());
    assert_eq!(add_note(link.to_str().unwrap(), "rain"), Ok(1));
    assert_eq!(add_note(target.to_str().unwrap(), "rain"), Ok(2));
}

#[test]
fn paths_that_are_no_files_are_refused() {
    let engine = NOTES.new_engine().unwrap();
    let own = engine.uri().trim_start_matches("file:").split_once('?').unwrap().0.to_owned();
    for (path, reason) in [
        ("", "SQLite opens a private database by this name, not a file"),
        (":memory:", "SQLite opens a private database by this name, not a file"),
        ("file:notes.db", "it is a URI; give the path alone, and URIs of that path are included"),
        (&own, "it is the name of an engine"),
        ("a\0b", "it contains a NUL byte"),
        (&"long/".repeat(1000), "SQLite can't make a full path of it, for example because it is too long"),
    ] {
        let error = engine.stand_in_for(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoStandIn);
        let message = error.to_string();
        assert!(message.contains(&format!("can't stand in for {path:?}: {reason}")), "{message}");
    }
}

#[test]
fn two_stand_ins_for_one_path_are_refused_and_named() {
    let (one, other) = (NOTES.new_engine().unwrap(), NOTES.new_engine().unwrap());
    let first = one.stand_in_for("stand_in/twice.db").unwrap();
    let error = other.stand_in_for("stand_in/../stand_in/twice.db").unwrap_err().to_string();
    for part in ["engine ", "stands in for it on this thread already, by thread `stand_in::two", "stand_in.rs:"] {
        assert!(error.contains(part), "{error}");
    }
    let all = one.stand_in_for_all("stand_in/twice.db").unwrap();
    let (done, wait) = mpsc::channel();
    let second = thread::spawn(move || {
        let refused = other.stand_in_for_all("stand_in/twice.db").unwrap_err().to_string();
        done.send(()).unwrap();
        refused
    });
    wait.recv().unwrap();
    let error = second.join().unwrap();
    assert!(error.contains("stands in for it in this process already, by thread `stand_in::two"), "{error}");
    drop((first, all));
    drop(stand_in("stand_in/twice.db"));
}

/// The limits that the guide names. (That of an ATTACH is in `tests/default_vfs.rs`.)
#[test]
fn what_an_engine_can_not_stand_in_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.db");
    let path = path.to_str().unwrap();
    let _stand_in = stand_in(path);
    let by_another_vfs = Connection::open(format!("file:{path}?vfs=unix")).unwrap();
    by_another_vfs.execute_batch("CREATE TABLE in_the_file (a)").unwrap();
    let connection = Connection::open(path).unwrap();
    assert!(connection.prepare("SELECT * FROM in_the_file").is_err());
    assert!(connection.path().is_some_and(|path| path.starts_with("/rusqlite-fixtures/engine-")));
}

/// The engine stays as long as something stands in for a file.
#[test]
fn the_stand_in_keeps_its_engine() {
    let guard = Engine::new().stand_in_for("stand_in/kept.db").unwrap();
    Connection::open("stand_in/kept.db").unwrap().execute_batch("CREATE TABLE note (text)").unwrap();
    assert_eq!(add_note("stand_in/kept.db", "rain"), Ok(1));
    assert!(!Path::new("stand_in").exists());
    drop(guard);
}
