//! Edits of the schema or of statistics that leave SQLite's schema cookie unchanged do not reach the next test.

use rusqlite_fixtures::rusqlite::Connection;
use rusqlite_fixtures::{Engine, Template};

use crate::support::number;

const SCHEMA: &str = "
    CREATE TABLE plain (a INTEGER);
    CREATE TABLE entry (a INTEGER, b INTEGER);
    CREATE INDEX by_a ON entry (a);
    CREATE INDEX by_b ON entry (b);
    ANALYZE;
    INSERT INTO sqlite_stat1 VALUES ('entry', 'by_a', '100 1'), ('entry', 'by_b', '100 100')";

/// Edits that leave the schema cookie unchanged.
const EDITS: [&str; 3] = [
    "PRAGMA writable_schema = ON;
     UPDATE sqlite_schema SET sql = 'CREATE TABLE plain (hacked INTEGER)' WHERE name = 'plain'",
    "UPDATE sqlite_stat1 SET stat = CASE idx WHEN 'by_b' THEN '100 1' ELSE '100 100' END",
    "DELETE FROM sqlite_stat1",
];

/// Returns what a connection knows about the schema and the statistics.
fn knowledge(connection: &Connection) -> Vec<String> {
    let columns = |sql: &str| connection.prepare(sql).map(|statement| statement.column_count()).ok();
    let plan = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, String>(3));
    vec![
        format!("{:?}", columns("SELECT a FROM plain")),
        format!("{:?}", columns("SELECT hacked FROM plain")),
        format!("{:?}", plan("EXPLAIN QUERY PLAN SELECT * FROM entry WHERE a = 1 AND b = 1")),
    ]
}

fn assert_next_engine_is_unedited(template: &Template, edit: &str) {
    let expected = knowledge(&template.snapshot().unwrap().new_engine().connect().unwrap());
    let engine = template.new_engine().unwrap();
    let connections = [engine.pooled_connection().unwrap(), engine.pooled_connection().unwrap()];
    for connection in &connections {
        assert_eq!(knowledge(connection), expected, "after {edit}");
    }
}

/// Another connection of the same engine reads the schema while the edit is in place.
#[test]
fn an_edit_that_another_connection_has_read_does_not_reach_the_next_test() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("edited-beside");
    for edit in EDITS {
        let engine = TEMPLATE.new_engine().unwrap();
        let (reader, editor) = (engine.pooled_connection().unwrap(), engine.pooled_connection().unwrap());
        editor.execute_batch("CREATE TABLE other (a)").unwrap();
        engine.reset().unwrap();
        editor.execute_batch(edit).unwrap();
        assert!(
            reader.prepare("SELECT * FROM missing").is_err(),
            "SQLite reads the schema before it reports the missing table"
        );
        drop((reader, editor, engine));
        assert_next_engine_is_unedited(&TEMPLATE, edit);
    }
}

/// The statement that sets `changes()` to zero reads the schema, too.
#[test]
fn an_edit_that_is_read_while_a_connection_is_cleaned_does_not_reach_the_next_test() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("edited-cleaning");
    for edit in EDITS {
        let engine = TEMPLATE.new_engine().unwrap();
        let pooled = engine.pooled_connection().unwrap();
        pooled.execute("INSERT INTO entry VALUES (1, 1)", []).unwrap();
        let editor = engine.connect().unwrap();
        editor.execute_batch("CREATE TABLE other (a)").unwrap();
        engine.reset().unwrap();
        editor.execute_batch(edit).unwrap();
        drop((editor, pooled, engine));
        assert_next_engine_is_unedited(&TEMPLATE, edit);
    }
}

#[test]
fn all_connections_forget_an_edit_after_a_restore() {
    for edit in EDITS {
        let engine = Engine::new();
        engine.connect().unwrap().execute_batch(SCHEMA).unwrap();
        let before = engine.snapshot();
        let expected = knowledge(&before.new_engine().connect().unwrap());
        let editor = engine.connect().unwrap();
        editor.execute_batch(edit).unwrap();
        let readers = [engine.connect().unwrap(), Connection::open(engine.uri()).unwrap()];
        for reader in &readers {
            assert_ne!(knowledge(reader), expected, "{edit}");
        }
        engine.restore(&before).unwrap();
        for reader in &readers {
            assert_eq!(knowledge(reader), expected, "after {edit}");
        }
    }
}

/// SQLite increments the schema cookie, by which other connections detect a change, only for its own changes.
#[test]
fn connections_that_know_the_schema_see_an_edit() {
    let engine = Engine::new();
    let editor = engine.connect().unwrap();
    editor.execute_batch(SCHEMA).unwrap();
    let reader = engine.connect().unwrap();
    assert!(reader.prepare("SELECT a FROM plain").is_ok());
    let cookie = number(&reader, "PRAGMA schema_version");
    editor.execute_batch("UPDATE entry SET b = 7").unwrap();
    assert_eq!(number(&reader, "PRAGMA schema_version"), cookie, "a change of rows leaves the schema cookie unchanged");
    editor.execute_batch(EDITS[0]).unwrap();
    assert!(number(&reader, "PRAGMA schema_version") > cookie);
    assert!(reader.prepare("SELECT hacked FROM plain").is_ok());
}
