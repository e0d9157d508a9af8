//! SQLite's features work on an engine.

use std::cell::Cell;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::{Duration, SystemTime};

use rusqlite_fixtures::faults::Fault;
use rusqlite_fixtures::rusqlite::{self, Connection, ErrorCode, MAIN_DB, OpenFlags, backup};
use rusqlite_fixtures::{Engine, Snapshot};

use crate::support::{assert_integrity, engine_with_entries, entries, number, text};

/// Opens a connection as another library does, and one by the engine.
fn both(engine: &Engine) -> [Connection; 2] {
    [Connection::open(engine.uri()).unwrap(), engine.connect().unwrap()]
}

fn fill(connection: &Connection, rows: i64) {
    connection.execute_batch("CREATE TABLE IF NOT EXISTS filler (id INTEGER PRIMARY KEY, content BLOB)").unwrap();
    let sql = "WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < ?1)
               INSERT INTO filler (content) SELECT randomblob(300) FROM ids";
    connection.execute(sql, [rows]).unwrap();
}

#[test]
fn every_page_size_works() {
    for size in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        let engine = Engine::new();
        let [writer, reader] = both(&engine);
        writer.execute_batch(&format!("PRAGMA page_size = {size}; PRAGMA cache_size = 5")).unwrap();
        fill(&writer, 1000);
        writer.execute_batch("DELETE FROM filler WHERE id % 3 = 0; VACUUM").unwrap();
        assert_eq!(number(&reader, "SELECT count(*) FROM filler"), 667);
        assert_eq!(number(&reader, "PRAGMA page_size"), size);
        assert_integrity(&reader);
        let copy = Snapshot::from_bytes(engine.snapshot().to_bytes()).unwrap().new_engine();
        assert_eq!(number(&copy.connect().unwrap(), "SELECT count(*) FROM filler"), 667);
        let [writer, _] = both(&engine.fork());
        fill(&writer, 100);
        assert_integrity(&writer);
    }
}

#[test]
fn vacuum_changes_the_page_size() {
    let engine = engine_with_entries(&[(1, 1)]);
    let [writer, reader] = both(&engine);
    fill(&writer, 500);
    for size in [512, 65536, 8192, 1024, 4096] {
        writer.execute_batch(&format!("PRAGMA page_size = {size}; VACUUM")).unwrap();
        for connection in [&writer, &reader] {
            assert_eq!(number(connection, "SELECT count(*) FROM filler"), 500);
            assert_eq!(number(connection, "PRAGMA page_size"), size);
            assert_integrity(connection);
        }
    }
    engine.reset().unwrap();
    assert_eq!(number(&reader, "SELECT count(*) FROM sqlite_schema"), 0);
}

#[test]
fn vacuum_and_auto_vacuum_free_pages() {
    for (mode, shrink) in [("NONE", "VACUUM"), ("FULL", "SELECT 1"), ("INCREMENTAL", "PRAGMA incremental_vacuum")] {
        let engine = Engine::new();
        let [writer, reader] = both(&engine);
        writer.execute_batch(&format!("PRAGMA auto_vacuum = {mode}")).unwrap();
        fill(&writer, 2000);
        let full = engine.snapshot();
        assert!(number(&reader, "PRAGMA page_count") > 100);
        writer.execute_batch("DELETE FROM filler").unwrap();
        // An incremental vacuum frees one page in each step.
        let mut statement = writer.prepare(shrink).unwrap();
        let mut steps = statement.query([]).unwrap();
        while steps.next().unwrap().is_some() {}
        assert!(number(&reader, "PRAGMA page_count") < 10);
        assert!(engine.snapshot().size() < 10 * 4096);
        assert_integrity(&reader);
        fill(&writer, 2000);
        assert_integrity(&reader);
        engine.restore(&full).unwrap();
        assert_eq!(number(&reader, "SELECT count(*) FROM filler"), 2000);
        assert_integrity(&writer);
    }
}

#[test]
fn vacuum_into_writes_a_file_and_another_engine() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.sqlite3");
    let (engine, other) = (engine_with_entries(&[(1, 1)]), Engine::new());
    let connection = engine.connect().unwrap();
    connection.execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
    assert_eq!(entries(&Snapshot::open(&path).unwrap().new_engine().connect().unwrap()), [(1, 1)]);
    connection.execute("VACUUM INTO ?1", [other.uri()]).unwrap();
    assert_eq!(entries(&other.connect().unwrap()), [(1, 1)]);
}

#[test]
fn a_transaction_commits_to_the_main_and_an_attached_engine() {
    let (one, other) = (engine_with_entries(&[(1, 1)]), engine_with_entries(&[(2, 2)]));
    for connection in both(&one) {
        connection.execute("ATTACH ?1 AS other", [other.uri()]).unwrap();
        connection.execute_batch("BEGIN; UPDATE entry SET value = 10; UPDATE other.entry SET value = 20").unwrap();
        assert_eq!(entries(&other.connect().unwrap())[0].0, 2);
        connection.execute_batch("ROLLBACK").unwrap();
        assert_eq!(
            (entries(&one.connect().unwrap()), entries(&other.connect().unwrap())),
            (vec![(1, 1)], vec![(2, 2)])
        );
        connection
            .execute_batch(
                "BEGIN; INSERT INTO entry SELECT * FROM other.entry; DELETE FROM other.entry; COMMIT;
                 BEGIN; INSERT INTO other.entry SELECT * FROM main.entry WHERE key = 2; DELETE FROM main.entry WHERE key = 2; COMMIT",
            )
            .unwrap();
    }
    assert_integrity(&one.connect().unwrap());
    assert_integrity(&other.connect().unwrap());
}

#[test]
fn a_file_can_be_attached_to_an_engine_and_an_engine_to_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.sqlite3");
    let engine = engine_with_entries(&[(1, 1)]);
    for connection in both(&engine) {
        connection.execute("ATTACH ?1 AS file", [path.to_str().unwrap()]).unwrap();
        connection.execute_batch("CREATE TABLE IF NOT EXISTS file.copy AS SELECT * FROM entry").unwrap();
    }
    let file = Connection::open(&path).unwrap();
    assert_eq!(number(&file, "SELECT count(*) FROM copy"), 1);
    file.execute("ATTACH ?1 AS engine", [engine.uri()]).unwrap();
    file.execute_batch("BEGIN; INSERT INTO copy VALUES (2, 2); INSERT INTO engine.entry VALUES (2, 2); COMMIT")
        .unwrap();
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 1), (2, 2)]);
}

#[test]
fn several_attached_files_are_committed_together() {
    // For two files SQLite writes a super-journal, by the main database's VFS.
    let folder = tempfile::tempdir().unwrap();
    let connection = Engine::new().connect().unwrap();
    for name in ["one", "two"] {
        let path = folder.path().join(name);
        connection.execute(&format!("ATTACH ?1 AS {name}"), [path.to_str().unwrap()]).unwrap();
        connection.execute_batch(&format!("CREATE TABLE {name}.note (text)")).unwrap();
    }
    connection
        .execute_batch("BEGIN; INSERT INTO one.note VALUES ('a'); INSERT INTO two.note VALUES ('b'); COMMIT")
        .unwrap();
    assert_eq!(number(&Connection::open(folder.path().join("two")).unwrap(), "SELECT count(*) FROM note"), 1);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "no journal is left");
}

/// When the last database can't be committed, both files are already written. SQLite rolls a file back only while the
/// super-journal exists, so rolling back the first file must not delete it.
#[test]
fn attached_files_that_are_already_written_are_all_rolled_back() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["one", "two"].map(|name| folder.path().join(name));
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let undone = Cell::new(0);
    Fault::Io.everywhere(|plan| {
        let (main, three) = (Engine::new(), engine_with_entries(&[]));
        let connection = main.connect().unwrap();
        for (path, name) in paths.iter().zip(["one", "two"]) {
            let _ = fs::remove_file(path);
            connection.execute(&format!("ATTACH ?1 AS {name}"), [path.to_str().unwrap()]).unwrap();
            connection.execute_batch(&format!("CREATE TABLE {name}.note (text)")).unwrap();
        }
        connection.execute("ATTACH ?1 AS three", [three.uri()]).unwrap();
        let insert = "INSERT INTO one.note VALUES ('a'); INSERT INTO two.note VALUES ('b')";
        connection.execute_batch(&format!("BEGIN; {insert}; INSERT INTO three.entry VALUES (1, 1)")).unwrap();
        for path in &paths {
            fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
        }
        let committed = plan.during(|| connection.execute_batch("COMMIT")).is_ok();
        drop(connection);
        let was_written = |path| fs::metadata(path).unwrap().modified().unwrap() != long_ago;
        undone.set(undone.get() + usize::from(paths.iter().all(was_written) && !committed));
        for path in &paths {
            let file = Connection::open(path).unwrap();
            assert_eq!(number(&file, "SELECT count(*) FROM note"), i64::from(committed), "{} {plan:?}", path.display());
        }
        assert_eq!(number(&three.connect().unwrap(), "SELECT count(*) FROM entry"), i64::from(committed), "{plan:?}");
    });
    assert!(undone.get() > 0, "the files were never written before the commit failed");
}

/// When the second database can't be committed, the first is already written. To roll it back, SQLite asks whether the
/// super-journal that its journal names exists. The second database is an engine, because its calls can be made to fail.
#[test]
fn an_attached_file_and_engine_are_rolled_back_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one");
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let undone = Cell::new(0);
    Fault::Io.everywhere(|plan| {
        let _ = fs::remove_file(&path);
        let (main, two) = (Engine::new(), engine_with_entries(&[]));
        let connection = main.connect().unwrap();
        connection.execute("ATTACH ?1 AS one", [path.to_str().unwrap()]).unwrap();
        connection.execute("ATTACH ?1 AS two", [two.uri()]).unwrap();
        connection.execute_batch("CREATE TABLE one.note (text)").unwrap();
        let begin = "BEGIN; INSERT INTO one.note VALUES ('a'); INSERT INTO two.entry VALUES (1, 1)";
        connection.execute_batch(begin).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        let committed = plan.during(|| connection.execute_batch("COMMIT")).is_ok();
        drop(connection);
        let was_written = fs::metadata(&path).unwrap().modified().unwrap() != long_ago;
        undone.set(undone.get() + usize::from(was_written && !committed));
        let rows = i64::from(committed);
        assert_eq!(number(&Connection::open(&path).unwrap(), "SELECT count(*) FROM note"), rows, "{plan:?}");
        assert_eq!(number(&two.connect().unwrap(), "SELECT count(*) FROM entry"), rows, "{plan:?}");
    });
    assert!(undone.get() > 0, "the file was never written before the commit failed");
}

/// If the second file can't be locked, nothing is written.
#[test]
fn attached_files_are_not_committed_while_one_is_being_read() {
    let folder = tempfile::tempdir().unwrap();
    let connection = Engine::new().connect().unwrap();
    for name in ["one", "two"] {
        connection.execute(&format!("ATTACH ?1 AS {name}"), [folder.path().join(name).to_str().unwrap()]).unwrap();
        connection.execute_batch(&format!("CREATE TABLE {name}.note (text)")).unwrap();
    }
    connection.busy_timeout(Duration::ZERO).unwrap();
    let reader = Connection::open(folder.path().join("two")).unwrap();
    let mut statement = reader.prepare("SELECT * FROM sqlite_schema").unwrap();
    let mut rows = statement.query([]).unwrap();
    rows.next().unwrap();
    connection.execute_batch("BEGIN; INSERT INTO one.note VALUES ('a'); INSERT INTO two.note VALUES ('b')").unwrap();
    let busy = connection.execute_batch("COMMIT").unwrap_err();
    assert_eq!(busy.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
    connection.execute_batch("ROLLBACK").unwrap();
    for name in ["one", "two"] {
        assert_eq!(number(&Connection::open(folder.path().join(name)).unwrap(), "SELECT count(*) FROM note"), 0);
        assert_eq!(number(&connection, &format!("SELECT count(*) FROM {name}.note")), 0);
    }
}

#[test]
fn temporary_tables_and_large_sorts_work() {
    for connection in both(&Engine::new()) {
        connection
            .execute_batch("PRAGMA temp_store = FILE; PRAGMA cache_size = 5; PRAGMA temp.cache_size = 5")
            .unwrap();
        connection.execute_batch("CREATE TEMP TABLE scratch (id INTEGER PRIMARY KEY, content BLOB)").unwrap();
        fill(&connection, 3000);
        connection.execute_batch("INSERT INTO scratch SELECT id, content FROM filler").unwrap();
        let sorted = "SELECT count(*) FROM (SELECT * FROM scratch ORDER BY content LIMIT 100000)";
        assert_eq!(number(&connection, sorted), 3000);
        connection.execute_batch("CREATE INDEX by_content ON filler (content)").unwrap();
        connection.execute_batch("DROP TABLE filler").unwrap();
        assert_integrity(&connection);
    }
}

#[test]
fn incremental_blob_io_works() {
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    connection.execute_batch("CREATE TABLE file (content BLOB); INSERT INTO file VALUES (zeroblob(100000))").unwrap();
    {
        let mut blob = connection.blob_open(MAIN_DB, "file", "content", 1, false).unwrap();
        blob.seek(SeekFrom::Start(50_000)).unwrap();
        blob.write_all(b"in the middle").unwrap();
    }
    let reader = Connection::open(engine.uri()).unwrap();
    let mut blob = reader.blob_open(MAIN_DB, "file", "content", 1, true).unwrap();
    let mut read = [0; 13];
    blob.seek(SeekFrom::Start(50_000)).unwrap();
    blob.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"in the middle");
}

#[test]
fn a_large_transaction_that_spills_can_be_rolled_back() {
    for connection in both(&engine_with_entries(&[(1, 1)])) {
        connection.execute_batch("PRAGMA cache_size = 10").unwrap();
        let before = number(&connection, "PRAGMA page_count");
        connection.execute_batch("BEGIN").unwrap();
        fill(&connection, 5000);
        connection.execute_batch("SAVEPOINT half; UPDATE entry SET value = 2").unwrap();
        connection.execute_batch("UPDATE filler SET content = zeroblob(300)").unwrap();
        connection.execute_batch("ROLLBACK TO half").unwrap();
        assert_eq!(number(&connection, "SELECT count(*) FROM filler WHERE content = zeroblob(300)"), 0);
        connection.execute_batch("ROLLBACK").unwrap();
        assert_eq!(number(&connection, "PRAGMA page_count"), before);
        assert_eq!(entries(&connection), [(1, 1)]);
        assert_integrity(&connection);
    }
}

#[test]
fn a_transaction_that_spills_is_invisible_to_others_until_it_commits() {
    let engine = engine_with_entries(&[(1, 1)]);
    let [writer, reader] = both(&engine);
    writer.execute_batch("PRAGMA cache_size = 10; BEGIN").unwrap();
    fill(&writer, 5000);
    assert_eq!(number(&reader, "SELECT count(*) FROM sqlite_schema"), 1);
    assert_integrity(&reader);
    writer.execute_batch("COMMIT").unwrap();
    assert_eq!(number(&reader, "SELECT count(*) FROM filler"), 5000);
    assert_integrity(&reader);
}

#[test]
fn savepoints_nest() {
    let engine = engine_with_entries(&[]);
    let mut work = engine.unit_of_work().unwrap();
    work.execute("INSERT INTO entry VALUES (1, 1)", []).unwrap();
    let mut outer = work.savepoint().unwrap();
    outer.execute("INSERT INTO entry VALUES (2, 2)", []).unwrap();
    {
        let inner = outer.savepoint().unwrap();
        inner.execute("INSERT INTO entry VALUES (3, 3)", []).unwrap();
    }
    outer.commit().unwrap();
    work.commit().unwrap();
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 1), (2, 2)]);
}

#[test]
fn journal_modes_roll_back_and_commit() {
    for which in 0..2 {
        let connection = &both(&engine_with_entries(&[(1, 1)]))[which];
        assert_eq!(text(connection, "PRAGMA journal_mode"), "delete");
        for (mode, answer) in [
            ("TRUNCATE", "truncate"),
            ("PERSIST", "persist"),
            ("WAL", "wal"),
            ("MEMORY", "memory"),
            ("OFF", "off"),
            ("DELETE", "delete"),
            ("WAL", "wal"),
        ] {
            assert_eq!(text(connection, &format!("PRAGMA main.journal_mode = {mode}")), answer);
            connection.execute_batch("BEGIN; DELETE FROM entry").unwrap();
            if mode != "OFF" {
                connection.execute_batch("SAVEPOINT s; INSERT INTO entry VALUES (2, 2); ROLLBACK TO s").unwrap();
            }
            connection.execute_batch("ROLLBACK").unwrap();
            assert_eq!(entries(connection), [(1, 1)], "{mode}");
            connection.execute_batch("BEGIN; UPDATE entry SET value = 2; COMMIT; UPDATE entry SET value = 1").unwrap();
            assert_integrity(connection);
        }
    }
}

#[test]
fn a_rollback_works_without_a_journal() {
    let engine = engine_with_entries(&[(1, 1)]);
    let connection = engine.connect().unwrap();
    connection.execute_batch("PRAGMA journal_mode = OFF; PRAGMA cache_size = 10; BEGIN").unwrap();
    fill(&connection, 2000);
    connection.execute_batch("ROLLBACK").unwrap();
    for connection in both(&engine) {
        assert_eq!(entries(&connection), [(1, 1)]);
        assert_eq!(number(&connection, "SELECT count(*) FROM sqlite_schema"), 1);
        assert_integrity(&connection);
    }
}

/// `PRAGMA journal_mode` without a schema applies to all databases, but SQLite asks only the main database's VFS.
#[test]
fn journal_modes_of_a_main_file_do_not_harm_an_attached_engine() {
    let folder = tempfile::tempdir().unwrap();
    for (number, mode) in ["DELETE", "TRUNCATE", "PERSIST", "WAL", "MEMORY"].into_iter().enumerate() {
        let engine = engine_with_entries(&[(1, 1)]);
        let file = Connection::open(folder.path().join(number.to_string())).unwrap();
        file.execute("ATTACH ?1 AS engine", [engine.uri()]).unwrap();
        file.execute_batch(&format!("PRAGMA journal_mode = {mode}")).unwrap();
        file.execute_batch("BEGIN; UPDATE engine.entry SET value = 2; SAVEPOINT s; UPDATE engine.entry SET value = 3")
            .unwrap();
        file.execute_batch("ROLLBACK TO s; COMMIT").unwrap();
        file.execute_batch("BEGIN; UPDATE engine.entry SET value = 4; ROLLBACK").unwrap();
        for connection in both(&engine) {
            assert_eq!(entries(&connection), [(1, 2)], "{mode}");
            assert_integrity(&connection);
        }
    }
}

/// In exclusive locking mode SQLite can use a WAL without shared memory, and would mark the engine as a WAL database.
#[test]
fn an_attached_engine_does_not_become_a_wal_database() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine_with_entries(&[(1, 1)]);
    let file = Connection::open(folder.path().join("main.sqlite3")).unwrap();
    file.execute("ATTACH ?1 AS engine", [engine.uri()]).unwrap();
    file.execute_batch("PRAGMA locking_mode = EXCLUSIVE").unwrap();
    let mut statement = file.prepare("PRAGMA journal_mode = WAL").unwrap();
    let rows: Result<Vec<String>, _> = statement.query_map([], |row| row.get(0)).unwrap().collect();
    assert!(rows.is_err(), "{rows:?}"); // the error comes when SQLite commits, after the row
    drop(statement);
    assert_eq!(text(&engine.connect().unwrap(), "PRAGMA journal_mode"), "delete");
    assert_eq!(text(&file, "PRAGMA engine.journal_mode = WAL"), "wal", "the engine's VFS answers this");
    file.execute("UPDATE engine.entry SET value = 2", []).unwrap();
    drop(file);
    for connection in both(&engine) {
        assert_eq!(entries(&connection)[0], (1, 2));
        connection.execute_batch("INSERT INTO entry VALUES (NULL, 0)").unwrap();
        assert_integrity(&connection);
    }
}

#[test]
fn the_locking_mode_stays_normal() {
    let engine = engine_with_entries(&[(1, 1)]);
    let [one, other] = both(&engine);
    assert_eq!(text(&one, "PRAGMA locking_mode = EXCLUSIVE"), "normal");
    assert_eq!(text(&one, "PRAGMA locking_mode"), "normal");
    one.execute("UPDATE entry SET value = 2", []).unwrap();
    other.execute("UPDATE entry SET value = 3", []).unwrap();
    assert_eq!(entries(&one), [(1, 3)]);
}

/// Exclusive locking mode that is set on a main file reaches an attached engine without a call of the engine's VFS.
#[test]
fn exclusive_locking_set_on_a_main_file_blocks_writers_but_not_readers() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine_with_entries(&[(1, 1)]);
    engine.set_lock_timeout(Duration::ZERO);
    let reader = engine.connect().unwrap();
    let exclusive = Connection::open(folder.path().join("main.sqlite3")).unwrap();
    exclusive.execute("ATTACH ?1 AS engine", [engine.uri()]).unwrap();
    exclusive.execute_batch("PRAGMA locking_mode = EXCLUSIVE; UPDATE engine.entry SET value = 2").unwrap();
    assert_eq!(entries(&reader), [(1, 2)]);
    assert!(reader.execute("UPDATE entry SET value = 3", []).is_err());
    exclusive.execute_batch("UPDATE engine.entry SET value = 4").unwrap();
    exclusive.execute_batch("BEGIN; UPDATE engine.entry SET value = 5; ROLLBACK").unwrap();
    exclusive.execute_batch("UPDATE engine.entry SET value = value + 10").unwrap();
    assert_eq!(entries(&reader), [(1, 14)]);
    exclusive.execute_batch("CREATE TABLE engine.one (a)").unwrap();
    assert!(reader.prepare("SELECT * FROM one").is_ok());
    exclusive.execute_batch("CREATE TABLE engine.two (a)").unwrap();
    assert!(reader.prepare("SELECT * FROM two").is_ok());
    drop(exclusive);
    reader.execute("UPDATE entry SET value = 6", []).unwrap();
}

/// A connection that has read in exclusive locking mode never sees later commits, so it can't write. It gets an error in
/// bounded time.
#[test]
fn a_stale_connection_in_exclusive_locking_mode_can_not_write() {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine_with_entries(&[(1, 1)]);
    let exclusive = Connection::open(folder.path().join("main.sqlite3")).unwrap();
    exclusive.busy_timeout(Duration::from_millis(50)).unwrap();
    exclusive.execute("ATTACH ?1 AS engine", [engine.uri()]).unwrap();
    exclusive.execute_batch("PRAGMA locking_mode = EXCLUSIVE").unwrap();
    assert_eq!(number(&exclusive, "SELECT value FROM engine.entry"), 1);
    engine.try_transaction(|work| work.execute("UPDATE entry SET value = 2", [])).unwrap();
    assert!(exclusive.execute("UPDATE engine.entry SET value = 3", []).is_err());
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 2)]);
}

#[test]
fn the_backup_interface_copies_in_and_out() {
    let (engine, other) = (engine_with_entries(&[(1, 1)]), Engine::new());
    for page_size in [4096, 1024, 32768] {
        let mut memory = Connection::open_in_memory().unwrap();
        memory.execute_batch(&format!("PRAGMA page_size = {page_size}")).unwrap();
        let source = engine.connect().unwrap();
        backup::Backup::new(&source, &mut memory).unwrap().step(-1).unwrap();
        assert_eq!(entries(&memory), [(1, 1)]);
    }
    let mut file_like = Connection::open_in_memory().unwrap();
    fill(&file_like, 500);
    let idle = other.connect().unwrap();
    let mut destination = other.connect().unwrap();
    backup::Backup::new(&file_like, &mut destination).unwrap().step(-1).unwrap();
    assert_eq!(number(&idle, "SELECT count(*) FROM filler"), 500);
    backup::Backup::new(&idle, &mut file_like).unwrap().step(-1).unwrap();
    assert_integrity(&idle);

    let small_pages = Connection::open_in_memory().unwrap();
    small_pages.execute_batch("PRAGMA page_size = 512").unwrap();
    fill(&small_pages, 100);
    backup::Backup::new(&small_pages, &mut destination).unwrap().step(-1).unwrap();
    assert_eq!(number(&idle, "SELECT count(*) FROM filler"), 100);
    assert_integrity(&idle);
}

/// The copy is marked as a database in WAL mode, like a copy of the file.
#[test]
fn the_backup_interface_copies_a_file_in_wal_mode() {
    let folder = tempfile::tempdir().unwrap();
    let file = Connection::open(folder.path().join("wal.sqlite3")).unwrap();
    file.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE entry (key INTEGER PRIMARY KEY, value)").unwrap();
    file.execute_batch("INSERT INTO entry VALUES (1, 10)").unwrap();
    for prepare in ["", "PRAGMA journal_mode = WAL"] {
        let engine = engine_with_entries(&[(5, 5)]);
        let [mut destination, other] = both(&engine);
        destination.execute_batch(prepare).unwrap();
        backup::Backup::new(&file, &mut destination).unwrap().step(-1).unwrap();
        for connection in [&destination, &other] {
            assert_eq!(entries(connection), [(1, 10)]);
            assert_eq!(text(connection, "PRAGMA journal_mode"), "wal");
            connection.execute("UPDATE entry SET value = value", []).unwrap();
            assert_integrity(connection);
        }
        let mut back = Connection::open(folder.path().join(format!("back{}", prepare.len()))).unwrap();
        backup::Backup::new(&destination, &mut back).unwrap().step(-1).unwrap();
        assert_eq!(entries(&back), [(1, 10)]);
    }
}

#[test]
fn read_only_connections_can_only_read() {
    let engine = engine_with_entries(&[(1, 1)]);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    for uri in [engine.uri().to_owned(), format!("{}&mode=ro", engine.uri())] {
        let reader = Connection::open_with_flags(uri, flags).unwrap();
        assert_eq!(entries(&reader), [(1, 1)]);
        assert!(reader.execute("DELETE FROM entry", []).is_err());
    }
}

#[test]
fn connections_without_locks_are_refused() {
    let engine = engine_with_entries(&[(1, 1)]);
    for parameter in ["nolock=1", "immutable=1"] {
        assert!(Connection::open(format!("{}&{parameter}", engine.uri())).is_err(), "{parameter}");
    }
}

#[test]
fn shared_cache_connections_work() {
    let engine = engine_with_entries(&[(1, 1)]);
    let uri = format!("{}&cache=shared", engine.uri());
    let (one, two) = (Connection::open(&uri).unwrap(), Connection::open(&uri).unwrap());
    one.execute("UPDATE entry SET value = 2", []).unwrap();
    assert_eq!(entries(&two), [(1, 2)]);
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 2)]);
}

#[test]
fn the_vfs_answers_what_sqlite_asks_for() {
    let engine = engine_with_entries(&[(1, 1)]);
    let connection = engine.connect().unwrap();
    let path = text(&connection, "SELECT file FROM pragma_database_list WHERE name = 'main'");
    assert_eq!(Connection::open(engine.uri()).unwrap().path(), Some(&*path));
    assert_eq!(number(&connection, "SELECT count(*) FROM dbstat") > 0, cfg!(feature = "bundled"));
    // The default VFS provides randomness and the time.
    assert!(text(&connection, "SELECT hex(randomblob(8))").len() == 16);
    assert!(text(&connection, "SELECT datetime('now')").starts_with("20"));
    assert!(number(&connection, "SELECT unixepoch('subsec') > 1e9") == 1);
}

#[test]
fn a_database_may_be_larger_than_one_gibibyte() {
    // SQLite skips the page at offset 1 GiB, where the locks of a file would be.
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    connection
        .execute_batch("PRAGMA page_size = 65536; PRAGMA cache_size = 20; CREATE TABLE big (content BLOB)")
        .unwrap();
    for _ in 0..11 {
        connection.execute("INSERT INTO big VALUES (zeroblob(100000000))", []).unwrap();
    }
    connection.execute("INSERT INTO big VALUES ('the end')", []).unwrap();
    let snapshot = engine.snapshot();
    assert!(snapshot.size() > 1 << 30);
    let fork = snapshot.new_engine();
    let connection = fork.connect().unwrap();
    assert_eq!(text(&connection, "SELECT content FROM big WHERE rowid = 12"), "the end");
    connection.execute("DELETE FROM big WHERE rowid < 12", []).unwrap();
    connection.execute_batch("VACUUM").unwrap();
    assert!(fork.snapshot().size() < 1 << 20);
    assert_eq!(number(&engine.connect().unwrap(), "SELECT count(*) FROM big"), 12);
}

#[test]
fn a_statement_that_fails_is_undone_and_its_transaction_continues() -> rusqlite::Result<()> {
    let engine = engine_with_entries(&[(1, 1), (2, 2)]);
    let work = engine.unit_of_work().unwrap();
    // The first row is changed and the second fails: the statement is undone, and the transaction continues.
    assert!(work.execute("UPDATE entry SET key = key + 1 WHERE key = 1 OR key / 0 IS NULL", []).is_err());
    work.execute("INSERT INTO entry VALUES (3, 3)", [])?;
    work.commit().unwrap();
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 1), (2, 2), (3, 3)]);
    Ok(())
}
