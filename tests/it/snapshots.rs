//! Snapshots: taking, forking and restoring them, reading them from files and saving them.

use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use rusqlite_fixtures::rusqlite::Connection;
use rusqlite_fixtures::{Engine, ErrorKind, Snapshot, Template};

use crate::support::{assert_integrity, engine_with_entries, entries, number, text};

#[test]
fn a_snapshot_has_what_was_committed_when_it_was_taken() {
    let engine = engine_with_entries(&[(1, 1)]);
    let work = engine.unit_of_work().unwrap();
    work.execute("INSERT INTO entry VALUES (2, 2)", []).unwrap();
    let before = engine.snapshot();
    work.commit().unwrap();
    let after = engine.snapshot();
    assert_eq!(entries(&before.new_engine().connect().unwrap()), [(1, 1)]);
    assert_eq!(entries(&after.new_engine().connect().unwrap()), [(1, 1), (2, 2)]);
    engine.restore(&before).unwrap();
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 1)]);
    engine.restore(&after).unwrap();
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 1), (2, 2)]);
}

#[test]
fn a_fork_and_its_original_do_not_affect_each_other() {
    let original = engine_with_entries(&[(1, 1)]);
    let fork = original.fork();
    assert_ne!(fork, original);
    original.connect().unwrap().execute("INSERT INTO entry VALUES (2, 2)", []).unwrap();
    fork.connect().unwrap().execute("INSERT INTO entry VALUES (3, 3)", []).unwrap();
    assert_eq!(entries(&original.connect().unwrap()), [(1, 1), (2, 2)]);
    assert_eq!(entries(&fork.connect().unwrap()), [(1, 1), (3, 3)]);
    fork.reset().unwrap();
    assert_eq!(
        entries(&fork.connect().unwrap()),
        [(1, 1)],
        "a reset returns a fork to the content that it was forked with"
    );
}

#[test]
fn an_engine_restores_a_snapshot_of_another_engine() {
    let (one, other) = (engine_with_entries(&[(1, 1)]), Engine::new());
    let idle = other.connect().unwrap();
    idle.execute_batch("CREATE TABLE note (text)").unwrap();
    other.restore(&one.snapshot()).unwrap();
    assert_eq!(entries(&idle), [(1, 1)]);
    assert!(idle.execute("DELETE FROM note", []).is_err());
}

#[test]
fn a_snapshot_in_another_encoding_is_refused() {
    let (engine, other) = (engine_with_entries(&[(1, 1)]), Engine::new());
    other.connect().unwrap().execute_batch("PRAGMA encoding = 'UTF-16le'; CREATE TABLE note (text)").unwrap();
    let error = engine.restore(&other.snapshot()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OtherEncoding);
    assert!(error.to_string().contains("Snapshot::new_engine()"), "{error}");
    assert_eq!(entries(&engine.unit_of_work().unwrap()), [(1, 1)]);
    other.fork().reset().unwrap();
    engine.restore(&Engine::new().snapshot()).unwrap();
    let error = engine.restore(&other.snapshot()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OtherEncoding, "connections have seen the other encoding");
    Engine::new().restore(&other.snapshot()).unwrap();
}

/// A database without tables has no encoding yet, but connections may have read another one before.
#[test]
fn an_encoding_is_remembered_while_the_database_has_none() {
    let (engine, undecided) = (Engine::new(), Engine::new());
    let connection = engine.connect().unwrap();
    connection.execute_batch("PRAGMA encoding = 'UTF-16le'; CREATE TABLE note (text)").unwrap();
    undecided.connect().unwrap().execute_batch("PRAGMA user_version = 7").unwrap();
    engine.restore(&undecided.snapshot()).unwrap();
    assert_eq!(number(&connection, "PRAGMA user_version"), 7);
    let error = engine.restore(&engine_with_entries(&[(1, 1)]).snapshot()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OtherEncoding);
}

/// SQLite ignores the number of pages in the header if it was not written by the latest change.
#[test]
fn a_page_count_that_is_out_of_date_is_ignored() {
    let mut bytes = engine_with_entries(&[(1, 1)]).snapshot().to_bytes();
    bytes[28..32].copy_from_slice(&1_000u32.to_be_bytes());
    assert!(Snapshot::from_bytes(bytes.clone()).is_err(), "it has fewer pages");
    bytes[92..96].copy_from_slice(&0u32.to_be_bytes()); // version-valid-for
    assert_eq!(entries(&Snapshot::from_bytes(bytes).unwrap().new_engine().connect().unwrap()), [(1, 1)]);
}

#[test]
fn a_snapshot_from_bytes_is_the_same_database() {
    let engine = engine_with_entries(&[(1, 1)]);
    let snapshot = engine.snapshot();
    let bytes = snapshot.to_bytes();
    assert_eq!(bytes.len(), snapshot.size());
    let copy = Snapshot::from_bytes(bytes.as_slice()).unwrap();
    assert_eq!(copy.to_bytes(), bytes);
    assert_eq!(entries(&copy.new_engine().connect().unwrap()), [(1, 1)]);
    assert!(Engine::new().snapshot().to_bytes().is_empty(), "an engine without a write has no bytes");
}

#[test]
fn a_snapshot_is_saved_as_a_database_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved?#%20.sqlite3");
    let engine = engine_with_entries(&[(1, 1)]);
    engine.snapshot().save(&path).unwrap();
    assert_eq!(entries(&Snapshot::open(&path).unwrap().new_engine().connect().unwrap()), [(1, 1)]);
    engine.connect().unwrap().execute("INSERT INTO entry VALUES (2, 2)", []).unwrap();
    engine.snapshot().save(&path).unwrap();
    assert_eq!(entries(&Snapshot::open(&path).unwrap().new_engine().connect().unwrap()), [(1, 1), (2, 2)]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "only the saved file is left");
}

#[test]
fn a_save_that_fails_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.sqlite3");
    let snapshot = engine_with_entries(&[(1, 1)]).snapshot();
    snapshot.save(&path).unwrap();
    let saved = fs::read(&path).unwrap();
    let journal = folder.path().join("saved.sqlite3-journal");
    fs::write(&journal, "of another database").unwrap();
    let error = Engine::new().snapshot().save(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("saved.sqlite3-journal"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), saved);
    fs::write(&journal, "").unwrap();
    snapshot.save(&path).expect("an empty journal belongs to no database; `PRAGMA journal_mode = TRUNCATE` leaves one");

    let error = snapshot.save(folder.path().join("no such folder/saved.sqlite3")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let error = snapshot.save(folder.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(
        fs::read_dir(folder.path().parent().unwrap()).unwrap().filter(is_temporary_file_of(folder.path())).count(),
        0
    );
}

fn is_temporary_file_of(path: &Path) -> impl Fn(&std::io::Result<fs::DirEntry>) -> bool {
    let prefix = format!("{}-", path.file_name().unwrap().to_str().unwrap());
    move |entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with(&prefix)
}

/// Runs SQL on a database file with the sqlite3 program, which has another SQLite. Returns `None` if there is no such
/// program, which is an error on CI only.
fn sqlite3(path: &Path, sql: &str) -> Option<String> {
    match Command::new("sqlite3").arg(path).arg(sql).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8(output.stdout).unwrap()),
        Ok(output) => panic!("sqlite3 failed: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "the sqlite3 program can't be run: {error}");
            eprintln!("not checked, because the sqlite3 program can't be run: {error}");
            None
        }
    }
}

#[test]
fn the_sqlite3_program_and_the_crate_read_each_others_files() {
    let folder = tempfile::tempdir().unwrap();
    let (theirs, ours) = (folder.path().join("theirs.sqlite3"), folder.path().join("ours.sqlite3"));
    let create =
        "CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER); INSERT INTO entry VALUES (1, 10), (2, 20)";
    if sqlite3(&theirs, create).is_none() {
        return;
    }
    let engine = Snapshot::open(&theirs).unwrap().new_engine();
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 10), (2, 20)]);
    engine.connect().unwrap().execute("UPDATE entry SET value = value + 1", []).unwrap();
    engine.snapshot().save(&ours).unwrap();
    assert_eq!(sqlite3(&ours, "PRAGMA integrity_check").unwrap(), "ok\n");
    assert_eq!(sqlite3(&ours, "SELECT sum(value) FROM entry").unwrap(), "32\n");
    assert_eq!(sqlite3(&theirs, "SELECT sum(value) FROM entry").unwrap(), "30\n", "the file is not changed");
}

#[test]
fn a_file_in_wal_mode_is_read_with_its_wal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wal.sqlite3");
    let writer = Connection::open(&path).unwrap();
    writer.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE entry (key INTEGER PRIMARY KEY, value)").unwrap();
    writer.execute_batch("INSERT INTO entry VALUES (1, 10)").unwrap();
    assert!(fs::metadata(folder.path().join("wal.sqlite3-wal")).unwrap().len() > 0);

    let engine = Snapshot::open(&path).unwrap().new_engine();
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 10)]);
    assert_eq!(text(&engine.connect().unwrap(), "PRAGMA journal_mode"), "wal");

    drop(writer); // which moves the WAL into the database file; the file stays in WAL mode
    let engine = Snapshot::from_bytes(fs::read(&path).unwrap()).unwrap().new_engine();
    let connection = engine.connect().unwrap();
    connection.execute_batch("INSERT INTO entry VALUES (2, 20)").unwrap();
    assert_eq!(entries(&connection), [(1, 10), (2, 20)]);
    assert_integrity(&connection);
}

#[test]
fn bytes_that_are_no_database_are_refused() {
    let good = engine_with_entries(&[(1, 1)]).snapshot().to_bytes();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let cases: [(&str, Vec<u8>); 9] = [
        ("it is empty", vec![]),
        ("does not start with SQLite's header string", b"PK\x03\x04 something else".to_vec()),
        ("does not start with SQLite's header string", changed(5, b'?')),
        ("truncated: it has 60 bytes", good[..60].to_vec()),
        ("truncated: it has 4096 bytes, and its header declares 2 pages of 4096", good[..4096].to_vec()),
        ("truncated: it has 8000 bytes", good[..8000].to_vec()),
        ("truncated: it has 8192 bytes, and its header declares 65538 pages", changed(29, 1)),
        ("page size of 1000", [&good[..16], &[3, 232], &good[18..]].concat()),
        ("version 9 of the file format", changed(19, 9)),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (reason, bytes) in cases {
        let path = folder.path().join("bad.sqlite3");
        fs::write(&path, &bytes).unwrap();
        for error in [Snapshot::from_bytes(bytes).unwrap_err(), Snapshot::open(&path).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::NotADatabase, "{error}");
            assert!(error.to_string().contains(reason), "{reason:?} is missing: {error}");
        }
    }
}

#[test]
fn an_error_names_the_file_that_can_not_be_read() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("missing.sqlite3"), folder.path().to_owned()] {
        let error = Snapshot::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(!folder.path().join("missing.sqlite3").exists());
    }
}

#[test]
fn an_error_has_sqlites_reason_if_sqlite_can_not_read_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("locked.sqlite3");
    let writer = Connection::open(&path).unwrap();
    writer.execute_batch("CREATE TABLE note (text); PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
    let error = Snapshot::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Sqlite);
    assert!(error.to_string().contains("database is locked"), "{error}");
}

/// SQLite reads such a file, because it goes by the header. But a snapshot can't keep bytes that are not a page.
#[test]
fn bytes_after_the_last_page_are_refused() {
    let bytes = [engine_with_entries(&[]).snapshot().to_bytes(), vec![0; 100]].concat();
    let error = Snapshot::from_bytes(bytes).unwrap_err();
    assert!(error.to_string().contains("8292 bytes, which is not a multiple of its page size 4096"), "{error}");
}

/// Versions of SQLite before 2010 update neither the header's page count nor the number that says whether it is valid.
#[test]
fn an_invalid_page_count_in_the_header_is_ignored() {
    let mut bytes = engine_with_entries(&[(1, 1)]).snapshot().to_bytes();
    bytes[28..32].copy_from_slice(&1u32.to_be_bytes());
    bytes[92..96].copy_from_slice(&0u32.to_be_bytes());
    let snapshot = Snapshot::from_bytes(bytes).unwrap();
    let engine = Engine::new();
    engine.restore(&snapshot).unwrap();
    assert_eq!(engine.snapshot().to_bytes()[28..32], 2u32.to_be_bytes(), "the first page count that is valid is right");
    for connection in [engine.connect().unwrap(), snapshot.new_engine().connect().unwrap()] {
        assert_eq!(entries(&connection), [(1, 1)]);
        assert_integrity(&connection);
    }
}

#[test]
fn several_threads_may_save_to_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.sqlite3");
    let engine = engine_with_entries(&[(1, 1)]);
    engine.connect().unwrap().execute_batch("CREATE TABLE big AS SELECT zeroblob(5000000)").unwrap();
    let snapshot = engine.snapshot();
    std::thread::scope(|scope| {
        let savers: Vec<_> = (0..4).map(|_| scope.spawn(|| snapshot.save(&path))).collect();
        savers.into_iter().for_each(|saver| saver.join().unwrap().unwrap());
    });
    assert_eq!(Snapshot::open(&path).unwrap().to_bytes(), snapshot.to_bytes());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

proptest! {
    #[test]
    fn no_bytes_cause_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..2000), with_magic: bool) {
        if with_magic && bytes.len() >= 16 {
            bytes[..16].copy_from_slice(b"SQLite format 3\0");
        }
        if let Ok(snapshot) = Snapshot::from_bytes(bytes) {
            // Bytes with a valid header may still be no database; then SQLite reports that.
            let engine = snapshot.new_engine();
            let _ = engine.connect().and_then(|connection| Ok(connection.execute_batch("SELECT * FROM sqlite_schema")?));
        }
    }

    #[test]
    fn damaged_pages_cause_errors_of_sqlite_and_no_panic(at in 100..8192usize, byte: u8) {
        let mut bytes = engine_with_entries(&[(1, 1), (2, 2)]).snapshot().to_bytes();
        bytes[at] = byte;
        let engine = Snapshot::from_bytes(bytes).unwrap().new_engine();
        let connection = engine.connect().unwrap();
        let _ = connection.execute("INSERT INTO entry VALUES (3, 3)", []);
        let _ = connection.query_row("SELECT sum(value) FROM entry", [], |row| row.get::<_, i64>(0));
    }
}

#[test]
fn a_snapshot_reports_its_size() {
    let snapshot = engine_with_entries(&[]).snapshot();
    assert_eq!(snapshot.size() as i64, number(&snapshot.new_engine().connect().unwrap(), "PRAGMA page_count") * 4096);
    assert!(format!("{snapshot:?}").starts_with("Snapshot { size: 8192"), "{snapshot:?}");
}

/// SQLite settles a connection's text encoding when it first reads the schema.
#[test]
fn idle_connections_with_another_encoding_are_not_reused() {
    let create = |engine: &Engine, encoding: &str| {
        let sql = format!("PRAGMA encoding = '{encoding}'; CREATE TABLE note (text)");
        engine.connect().unwrap().execute_batch(&sql).unwrap();
    };
    let encoding = |engine: &Engine| {
        let (one, other) = (engine.unit_of_work().unwrap(), engine.unit_of_work().unwrap());
        assert_eq!(number(&other, "SELECT count(*) FROM note"), 0);
        text(&one, "PRAGMA encoding")
    };
    let engine = Engine::new();
    for utf in ["UTF-16le", "UTF-8", "UTF-16be", "UTF-16le", "UTF-8"] {
        create(&engine, utf);
        assert_eq!(encoding(&engine), utf, "both connections are idle afterwards");
        engine.reset().unwrap();
    }
    create(&engine, "UTF-16le");
    assert_eq!(encoding(&engine), "UTF-16le");
    engine.reset().unwrap();
    engine.try_transaction(|work| work.execute_batch("CREATE TABLE note (text)")).unwrap();
    assert_eq!(encoding(&engine), "UTF-8", "as on a new engine");
}

/// SQLite settles the page size, the kind of vacuum and the size of the cache of a connection when it reads a page first.
#[test]
fn idle_connections_do_not_lay_out_an_empty_database_as_the_one_before() {
    const LAYOUT: [&str; 3] = ["PRAGMA page_size", "PRAGMA auto_vacuum", "PRAGMA cache_size"];
    let engine = Engine::new();
    let layout = |connection: &Connection| LAYOUT.map(|pragma| number(connection, pragma));
    let expected = layout(&engine.connect().unwrap());
    let sql =
        "PRAGMA page_size = 512; PRAGMA auto_vacuum = FULL; CREATE TABLE note (text); PRAGMA default_cache_size = 77";
    engine.connect().unwrap().execute_batch(sql).unwrap();
    assert_eq!(layout(&engine.unit_of_work().unwrap()), [512, 1, 77]);
    engine.reset().unwrap();
    let work = engine.unit_of_work().unwrap();
    assert_eq!(layout(&work), expected);
    work.execute_batch("CREATE TABLE note (text)").unwrap();
    work.commit().unwrap();
    assert_eq!(layout(&engine.connect().unwrap()), expected);
}

/// By another connection, and beside one that reads.
#[test]
fn idle_connections_do_not_keep_the_page_size_or_vacuum_mode_of_the_last_test() {
    static TEMPLATE: Template = Template::sql("CREATE TABLE note (text)").key("snapshots-layout");
    let layout =
        |connection: &Connection| ["PRAGMA page_size", "PRAGMA auto_vacuum"].map(|sql| number(connection, sql));
    for change in ["PRAGMA page_size = 8192", "PRAGMA auto_vacuum = FULL", "PRAGMA auto_vacuum = INCREMENTAL"] {
        for resets in [true, false] {
            let mut engine = TEMPLATE.new_engine().unwrap();
            let reader = engine.pooled_connection().unwrap();
            let expected = layout(&reader);
            engine.connect().unwrap().execute_batch(&format!("{change}; VACUUM")).unwrap();
            assert_eq!(number(&reader, "SELECT count(*) FROM note"), 0);
            assert_ne!(layout(&reader), expected, "{change}");
            drop(reader);
            if resets {
                engine.reset().unwrap();
            } else {
                drop(engine);
                engine = TEMPLATE.new_engine().unwrap();
            }
            assert_eq!(layout(&engine.pooled_connection().unwrap()), expected, "{change}");
        }
    }
}
