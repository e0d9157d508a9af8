//! Pragmas return the same on an engine as on an ordinary file.

use std::path::Path;

use rusqlite::functions::FunctionFlags;
use rusqlite::types::Value;
use rusqlite_fixtures::rusqlite::config::DbConfig;
use rusqlite_fixtures::rusqlite::{self, Connection};
use rusqlite_fixtures::{Engine, Snapshot, Template};

use crate::support::{assert_integrity, engine_with_entries, entries, number, text};

/// The columns and rows that a statement returns, or its error.
type Answer = Result<(Vec<String>, Vec<Vec<Value>>), String>;

fn ask(connection: &Connection, sql: &str) -> Answer {
    let answer = || -> rusqlite::Result<_> {
        let mut statement = connection.prepare(sql)?;
        let mut columns = Vec::new();
        for column in statement.column_names() {
            columns.push(column.to_owned()); // a Vec or an iterator, depending on the version of rusqlite
        }
        let count = columns.len();
        let rows = statement.query_map([], |row| (0..count).map(|column| row.get(column)).collect())?;
        Ok((columns, rows.collect::<rusqlite::Result<_>>()?))
    };
    answer().map_err(|error| error.to_string())
}

/// Numbers, switches, names of modes and of a table.
const ARGUMENTS: [&str; 22] = [
    "0",
    "1",
    "-1",
    "7",
    "4096",
    "9999999999",
    "ON",
    "OFF",
    "yes",
    "DELETE",
    "TRUNCATE",
    "PERSIST",
    "MEMORY",
    "WAL",
    "w",
    "NORMAL",
    "EXCLUSIVE",
    "FULL",
    "'UTF-8'",
    "entry",
    "nonsense",
    "''",
];

/// Pragmas that set something for the whole process, which would affect parallel tests.
const PROCESS_WIDE: [&str; 4] = ["soft_heap_limit", "hard_heap_limit", "temp_store_directory", "data_store_directory"];

const SCHEMA: &str = "CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER NOT NULL);
    CREATE INDEX by_value ON entry (value); INSERT INTO entry VALUES (1, 1), (2, 4)";

/// Returns statements for each pragma that SQLite knows: alone and with each argument, with and without a schema name.
fn pragmas(connection: &Connection) -> Vec<Vec<String>> {
    let mut statement = connection.prepare("PRAGMA pragma_list").unwrap();
    let names: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert!(names.len() > 50, "{names:?}");
    let statements = |name: &String, schema: &str| {
        let alone = format!("PRAGMA {schema}{name}");
        let with = ARGUMENTS.into_iter().filter(|_| !PROCESS_WIDE.contains(&name.as_str()));
        let with = with.flat_map(|argument| [format!("{alone} = {argument}"), alone.clone()]);
        [alone.clone()].into_iter().chain(with).collect()
    };
    names.iter().flat_map(|name| ["", "main."].map(|schema| statements(name, schema))).collect()
}

/// Returns the documented answer of an engine, given a file's answer.
fn as_documented(sql: &str, file: Answer) -> Answer {
    let (columns, rows) = file?;
    let is = |text: &str| rows == [[Value::Text(text.to_owned())]];
    let one = |column: &str, text: &str| Ok((vec![column.to_owned()], vec![vec![Value::Text(text.to_owned())]]));
    match () {
        // When a VFS answers a pragma, SQLite names the column after the answer.
        () if sql.contains("journal_mode") && is("wal") => one("wal", "wal"),
        // A connection that kept its lock would never see what others commit.
        () if sql.contains("locking_mode") && is("exclusive") => one("locking_mode", "normal"),
        // There is no WAL file whose frames SQLite could count.
        () if sql.contains("wal_checkpoint") => Ok((columns, vec![[0, -1, -1].map(Value::Integer).to_vec()])),
        () => Ok((columns, rows)),
    }
}

/// Removes what always differs: the path of the database, the schema version, which never goes back on an engine, and the
/// value of `data_version`, which means nothing but whether it has changed.
fn comparable(sql: &str, answer: Answer) -> Answer {
    let (columns, mut rows) = answer?;
    if sql.contains("database_list") {
        rows.iter_mut().for_each(|row| row.truncate(2));
    }
    if sql.ends_with("schema_version") || sql.contains("data_version") {
        rows.iter_mut().for_each(|row| row.fill(Value::Null));
    }
    Ok((columns, rows))
}

fn new_file(path: &Path, setup: &str) -> Connection {
    let file = Connection::open(path).unwrap();
    file.execute_batch(&format!("PRAGMA synchronous = OFF; {setup}")).unwrap();
    drop(file);
    Connection::open(path).unwrap()
}

/// Returns the differences that are not documented.
fn differences(setup: &str, connect: impl Fn(&Engine, &mut dyn FnMut(&Connection)), set_up: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let mut differences = Vec::new();
    for (number, statements) in pragmas(&Connection::open_in_memory().unwrap()).into_iter().enumerate() {
        let file = new_file(&folder.path().join(number.to_string()), setup);
        file.execute_batch(set_up).unwrap();
        let engine = Engine::new();
        engine.connect().unwrap().execute_batch(setup).unwrap();
        connect(&engine, &mut |connection| {
            for sql in &statements {
                let expected = as_documented(sql, comparable(sql, ask(&file, sql)));
                let answer = comparable(sql, ask(connection, sql));
                if answer != expected {
                    differences.push(format!("{sql}: {answer:?} instead of {expected:?}"));
                }
            }
        });
    }
    differences
}

fn assert_none(differences: &[String]) {
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn every_pragma_returns_the_same_as_on_a_file() {
    for setup in [SCHEMA.to_owned(), format!("PRAGMA journal_mode = WAL; {SCHEMA}")] {
        assert_none(&differences(&setup, |engine, with| with(&Connection::open(engine.uri()).unwrap()), ""));
    }
}

/// The crate sets up two things that pragmas show: foreign keys are on, and a busy handler replaces the timeout.
#[test]
fn every_pragma_returns_the_same_as_on_a_file_on_the_crates_own_connections() {
    let as_ours = "PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 0";
    for setup in [SCHEMA.to_owned(), format!("PRAGMA journal_mode = WAL; {SCHEMA}")] {
        assert_none(&differences(&setup, |engine, with| with(&engine.connect().unwrap()), as_ours));
        assert_none(&differences(&setup, |engine, with| with(&engine.pooled_connection().unwrap()), as_ours));
    }
}

/// When sqlx connects, it asks for the name of each column.
#[test]
fn a_pragma_that_only_sets_returns_no_columns() {
    let engine = Engine::new();
    let (uri, own) = (Connection::open(engine.uri()).unwrap(), engine.connect().unwrap());
    let pooled = engine.pooled_connection().unwrap();
    for connection in [&uri, &own, &pooled as &Connection] {
        for value in ["ON", "OFF", "ON", "1", "nonsense"] {
            let sql = format!("PRAGMA foreign_keys = {value}");
            assert_eq!(ask(connection, &sql), Ok((Vec::new(), Vec::new())), "{sql}");
        }
    }
}

#[test]
fn a_schema_version_increases_as_on_a_file_and_never_decreases() {
    let engine = engine_with_entries(&[(1, 1)]);
    let [connection, other] = [engine.connect().unwrap(), engine.connect().unwrap()];
    connection.execute_batch("PRAGMA schema_version = 70").unwrap();
    assert_eq!(number(&other, "PRAGMA schema_version"), 70);
    connection.execute_batch("PRAGMA schema_version = 3").unwrap();
    assert_eq!(number(&other, "PRAGMA schema_version"), 71, "neither connection has seen this version");
}

#[test]
fn every_connection_reports_wal_mode_until_the_engine_leaves_it() {
    let engine = engine_with_entries(&[(1, 1)]);
    let (before, uri) = (engine.connect().unwrap(), Connection::open(engine.uri()).unwrap());
    assert_eq!(text(&uri, "PRAGMA journal_mode"), "delete");
    assert_eq!(text(&uri, "PRAGMA journal_mode = WAL"), "wal");
    let pooled = engine.pooled_connection().unwrap();
    for connection in [&before, &uri, &engine.connect().unwrap(), &pooled] {
        for pragma in ["journal_mode", "main.journal_mode", "journal_mode = wal", "journal_mode = nonsense"] {
            assert_eq!(text(connection, &format!("PRAGMA {pragma}")), "wal", "{pragma}");
        }
        assert_eq!(text(connection, "SELECT journal_mode FROM pragma_journal_mode"), "wal");
        connection.execute("UPDATE entry SET value = value + 1", []).unwrap();
        assert_integrity(connection);
    }
    for mode in ["delete", "truncate", "persist", "memory", "off"] {
        assert_eq!(text(&before, "PRAGMA journal_mode = WAL"), "wal");
        assert_eq!(text(&uri, &format!("PRAGMA journal_mode = {mode}")), mode);
        assert_eq!(text(&uri, "PRAGMA journal_mode"), mode);
        assert_eq!(text(&pooled, "PRAGMA journal_mode"), "delete", "the other journal modes belong to each connection");
    }
    assert_eq!(entries(&before), [(1, 5)]);
}

#[test]
fn wal_mode_is_not_changed_within_a_transaction_or_by_a_read_only_connection() {
    let engine = engine_with_entries(&[(1, 1)]);
    let refused = |connection: &Connection, sql: &str| connection.execute_batch(sql).unwrap_err().to_string();
    let connection = Connection::open(engine.uri()).unwrap();
    let read_only = Connection::open(format!("{}&mode=ro", engine.uri())).unwrap();
    connection.execute_batch("BEGIN").unwrap();
    let message = refused(&connection, "PRAGMA journal_mode = WAL");
    assert!(message.contains("cannot change into wal mode from within a transaction"), "{message}");
    connection.execute_batch("COMMIT").unwrap();
    let message = refused(&read_only, "PRAGMA journal_mode = WAL");
    assert!(message.contains("attempt to write a readonly database"), "{message}");
    assert_eq!(text(&read_only, "PRAGMA journal_mode"), "delete");
    connection.execute_batch("PRAGMA journal_mode = WAL; BEGIN; SELECT * FROM entry").unwrap();
    assert_eq!(text(&connection, "PRAGMA journal_mode = WAL"), "wal", "it is in WAL mode already");
    let message = refused(&connection, "PRAGMA journal_mode = DELETE");
    assert!(message.contains("cannot change out of wal mode from within a transaction"), "{message}");
    assert_eq!(text(&read_only, "PRAGMA journal_mode"), "wal");
}

#[test]
fn wal_mode_is_part_of_the_content() {
    static IN_WAL: Template = Template::sql("PRAGMA journal_mode = WAL; CREATE TABLE entry (key, value)").key("wal-1");
    static DERIVED: Template = Template::based_on(&IN_WAL).seed("INSERT INTO entry VALUES (1, 1)").key("wal-2");
    static PLAIN: Template = Template::sql("CREATE TABLE entry (key, value)").key("wal-3");
    let mode = |engine: &Engine| text(&engine.unit_of_work().unwrap(), "PRAGMA journal_mode");
    let set = |engine: &Engine, mode: &str| {
        let connection = engine.pooled_connection().unwrap();
        connection.execute_batch(&format!("PRAGMA journal_mode = {mode}")).unwrap();
    };
    for _ in 0..3 {
        for (template, own, other) in
            [(&IN_WAL, "wal", "delete"), (&DERIVED, "wal", "delete"), (&PLAIN, "delete", "wal")]
        {
            let engine = template.new_engine().unwrap();
            assert_eq!(mode(&engine), own);
            set(&engine, other);
            assert_eq!(mode(&engine), other);
            let changed = engine.snapshot();
            engine.reset().unwrap();
            assert_eq!(mode(&engine), own);
            engine.restore(&changed).unwrap();
            assert_eq!(mode(&engine), other);
            engine.try_transaction(|work| work.execute("INSERT INTO entry VALUES (2, 2)", [])).unwrap();
            for copy in [engine.fork(), Snapshot::from_bytes(engine.snapshot().to_bytes()).unwrap().new_engine()] {
                assert_eq!(mode(&copy), other);
            }
            // The next test gets the template's mode.
        }
    }
}

/// Nothing else was changed, so the pages are still the template's.
#[test]
fn wal_mode_alone_does_not_reach_the_next_test() {
    static TEMPLATE: Template = Template::sql("CREATE TABLE entry (key, value)").key("wal-4");
    for _ in 0..3 {
        let engine = TEMPLATE.new_engine().unwrap();
        let connection = engine.pooled_connection().unwrap();
        assert_eq!(text(&connection, "PRAGMA journal_mode"), "delete");
        connection.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    }
}

/// The engine's initial content keeps its own mode, even if the same content was restored in another one.
#[test]
fn a_reset_restores_the_initial_journal_mode_after_a_restore_in_wal_mode() {
    let engine = engine_with_entries(&[(1, 1)]).fork();
    engine.connect().unwrap().execute_batch("PRAGMA journal_mode = WAL").unwrap();
    let in_wal_mode = engine.snapshot();
    engine.try_transaction(|work| work.execute("DELETE FROM entry", [])).unwrap();
    for (expected, restore) in [("wal", true), ("delete", false)] {
        if restore {
            engine.restore(&in_wal_mode).unwrap()
        } else {
            engine.reset().unwrap()
        }
        let connection = engine.connect().unwrap();
        assert_eq!(text(&connection, "PRAGMA journal_mode"), expected);
        assert_eq!(entries(&connection), [(1, 1)]);
    }
}

/// A read transaction of another connection prevents a file from leaving WAL mode, but not an engine.
#[test]
fn an_engine_leaves_wal_mode_while_other_connections_read() {
    let engine = engine_with_entries(&[(1, 1)]);
    let [connection, reader] = [engine.connect().unwrap(), engine.connect().unwrap()];
    connection.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM entry").unwrap();
    assert_eq!(text(&connection, "PRAGMA journal_mode = DELETE"), "delete");
    connection.execute_batch("UPDATE entry SET value = 2").unwrap();
    assert_eq!(entries(&reader), [(1, 1)]);
    assert_eq!(text(&engine.connect().unwrap(), "PRAGMA journal_mode"), "delete");
}

/// As SQLite has it: "journal_mode = OFF" could corrupt a database.
#[test]
fn a_defensive_connection_does_not_turn_the_journal_off() {
    for is_defensive in [true, false] {
        let engine = engine_with_entries(&[(1, 1)]);
        let connection = engine.connect().unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL").unwrap();
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, is_defensive).unwrap();
        let mode = text(&connection, "PRAGMA journal_mode = OFF");
        assert_eq!(mode, if is_defensive { "wal" } else { "off" });
    }
}

#[test]
fn a_snapshot_in_wal_mode_is_saved_in_wal_mode() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.sqlite3");
    let engine = engine_with_entries(&[(1, 1)]);
    engine.connect().unwrap().execute_batch("PRAGMA journal_mode = WAL").unwrap();
    engine.snapshot().save(&path).unwrap();
    let opened = Snapshot::open(&path).unwrap().new_engine();
    assert_eq!(text(&opened.connect().unwrap(), "PRAGMA journal_mode"), "wal");
    let file = Connection::open(&path).unwrap();
    assert_eq!(text(&file, "PRAGMA journal_mode"), "wal");
    assert_eq!(entries(&file), [(1, 1)]);
}

/// What an application typically sets on each connection that it opens.
const USUAL: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 7000;
    PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 77; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA locking_mode = NORMAL";

#[test]
fn a_connection_is_reused_after_the_usual_setup() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("usual-set-up");
    let asked = ["journal_mode", "synchronous", "busy_timeout", "wal_autocheckpoint", "locking_mode"];
    let view = |connection: &Connection| asked.map(|pragma| ask(connection, &format!("PRAGMA {pragma}")));
    let fresh = view(&TEMPLATE.snapshot().unwrap().new_engine().pooled_connection().unwrap());
    let mut engine = TEMPLATE.new_engine().unwrap();
    let mark = |connection: &Connection| {
        connection.create_scalar_function("is_marked", 0, FunctionFlags::SQLITE_UTF8, |_| Ok(1)).unwrap();
    };
    mark(&engine.pooled_connection().unwrap()); // a new function carries over, so it identifies the connection
    for _ in 0..3 {
        let connection = engine.pooled_connection().unwrap();
        assert_eq!(number(&connection, "SELECT is_marked()"), 1);
        assert_eq!(view(&connection), fresh);
        connection.execute_batch(USUAL).unwrap();
        assert_eq!(number(&connection, "PRAGMA synchronous"), 1);
        assert_eq!(number(&connection, "PRAGMA wal_autocheckpoint"), 77);
        assert_eq!(number(&connection, "PRAGMA busy_timeout"), 7000);
        connection.execute("DELETE FROM entry", []).unwrap();
        drop(connection);
        drop(engine);
        engine = TEMPLATE.new_engine().unwrap();
    }
}

/// The template's settings are restored, not SQLite's defaults.
#[test]
fn settings_of_on_connect_are_restored() {
    static TEMPLATE: Template = Template::sql(SCHEMA)
        .on_connect(|connection| {
            Ok(connection.execute_batch("PRAGMA synchronous = OFF; PRAGMA wal_autocheckpoint = 5")?)
        })
        .key("set-up-pragmas");
    for _ in 0..3 {
        let engine = TEMPLATE.new_engine().unwrap();
        for _ in 0..2 {
            let connection = engine.pooled_connection().unwrap();
            assert_eq!(number(&connection, "PRAGMA synchronous"), 0);
            assert_eq!(number(&connection, "PRAGMA wal_autocheckpoint"), 5);
            connection.execute_batch("PRAGMA synchronous = EXTRA; PRAGMA wal_autocheckpoint = 9").unwrap();
        }
    }
}
