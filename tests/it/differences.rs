//! Differences between snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use proptest::prelude::*;
use rusqlite_fixtures::rusqlite::functions::FunctionFlags;
use rusqlite_fixtures::rusqlite::types::Value;
use rusqlite_fixtures::rusqlite::{self, Connection};
use rusqlite_fixtures::{Changes, Engine, Row, Snapshot, TableChanges, Template};

use crate::support::number;

static BANK: Template = Template::sql(
    "CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, balance INT);
     CREATE TABLE log (text TEXT);
     CREATE TABLE setting (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
     CREATE TABLE tag (name TEXT PRIMARY KEY, colour TEXT);",
)
.seed(
    "INSERT INTO account VALUES (1, 'Ada', 100), (2, 'Grace', 50), (3, 'Barbara', 0);
     INSERT INTO log VALUES ('start');
     INSERT INTO setting VALUES ('a', 1), ('b', 2.5);
     INSERT INTO tag VALUES ('new', 'green'), ('old', 'grey');",
);

/// Returns the changes that a script makes to a bank.
fn changes_by(script: &str) -> Changes {
    let bank = BANK.new_engine().unwrap();
    bank.connect().unwrap().execute_batch(script).unwrap();
    bank.changes().unwrap()
}

#[test]
fn rows_are_inserted_updated_and_deleted() {
    let changes = changes_by(
        "UPDATE account SET balance = 70, owner = 'Ada L.' WHERE id = 1;
         DELETE FROM account WHERE id = 2;
         INSERT INTO account VALUES (9, 'it''s', NULL), (4, 'x', x'00ff');
         INSERT INTO log VALUES ('next');
         UPDATE setting SET value = -0.0 WHERE name = 'b';
         INSERT INTO setting VALUES ('c', NULL);
         REPLACE INTO tag VALUES ('old', 'black');",
    );
    let expected = "\
account
  ~ id 1: owner 'Ada' -> 'Ada L.', balance 100 -> 70
  - id 2, owner 'Grace', balance 50
  + id 4, owner 'x', balance x'00ff'
  + id 9, owner 'it''s', balance NULL
log
  + rowid 2, text 'next'
setting
  ~ name 'b': value 2.5 -> -0.0
  + name 'c', value NULL
tag
  ~ name 'old': colour 'grey' -> 'black'
";
    assert_eq!(changes.to_string(), expected);
    let account = changes.table("ACCOUNT").unwrap();
    assert_eq!((account.inserted.len(), account.updated.len(), account.deleted.len()), (2, 1, 1));
    assert_eq!(account.inserted[0].get("balance"), Some(&Value::Blob(vec![0, 255])));
    assert_eq!(account.updated[0].before.get("owner"), Some(&Value::Text("Ada".to_owned())));
    assert_eq!(account.deleted[0].columns().map(|(name, _)| name).collect::<Vec<_>>(), ["id", "owner", "balance"]);
    assert!(changes.table("nothing").is_none() && !changes.is_empty());
}

#[test]
fn nothing_has_changed() {
    for script in [
        "",
        "BEGIN; UPDATE account SET balance = 1; ROLLBACK",
        "UPDATE account SET balance = balance + 1; UPDATE account SET balance = balance - 1",
        "CREATE TABLE t (a); DROP TABLE t",
        "CREATE INDEX i ON account (owner); DROP INDEX i; ANALYZE",
        "VACUUM",
    ] {
        let changes = changes_by(script);
        assert_eq!((changes.to_string(), changes.is_empty()), (String::new(), true), "{script}");
    }
}

#[test]
fn the_schema_and_its_numbers_change() {
    let changes = changes_by(
        "PRAGMA user_version = 7; PRAGMA application_id = -3;
         CREATE TABLE note (text TEXT); INSERT INTO note VALUES ('a');
         DROP TABLE log;
         CREATE INDEX by_owner ON account (owner);
         ALTER TABLE tag ADD COLUMN size INT DEFAULT 5;
         UPDATE tag SET size = 6 WHERE name = 'old';",
    );
    let expected = "\
schema
  + index by_owner: CREATE INDEX by_owner ON account (owner)
  - table log: CREATE TABLE log (text TEXT)
  + table note: CREATE TABLE note (text TEXT)
  ~ table tag: CREATE TABLE tag (name TEXT PRIMARY KEY, colour TEXT) -> CREATE TABLE tag (name TEXT PRIMARY KEY, colour TEXT, size INT DEFAULT 5)
pragmas
  ~ application_id 0 -> -3
  ~ user_version 0 -> 7
log
  - rowid 1, text 'start'
note
  + rowid 1, text 'a'
tag
  ~ name 'old': size NULL -> 6
";
    assert_eq!(changes.to_string(), expected);
    assert_eq!((changes.schema().len(), changes.settings()[1].after, changes.tables().len()), (4, 7, 3));
}

#[test]
fn a_table_beside_a_virtual_table_is_not_its_content() {
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    let schema = "CREATE VIRTUAL TABLE place USING rtree(id, x0, x1);
        CREATE TABLE place_content (id INTEGER PRIMARY KEY, text); INSERT INTO place VALUES (1, 0, 1)";
    connection.execute_batch(schema).unwrap();
    let before = engine.snapshot();
    connection.execute_batch("INSERT INTO place VALUES (2, 5, 6); DELETE FROM place WHERE id = 1").unwrap();
    let changes = before.diff(&engine.snapshot()).unwrap();
    assert!(changes.table("place_node").is_some() && changes.table("place_content").is_none(), "{changes}");
}

#[test]
fn a_trigger_may_have_the_name_of_a_table_of_a_virtual_table() {
    let changes = changes_by(
        "CREATE VIRTUAL TABLE note USING fts5(text);
         CREATE TRIGGER note_idx AFTER INSERT ON account BEGIN SELECT 1; END",
    );
    let names: Vec<&str> = changes.schema().iter().map(|change| &*change.object.name).collect();
    assert!(names.contains(&"note_idx") && !names.contains(&"note_data"), "{names:?}");
}

#[test]
fn a_control_character_does_not_begin_a_line() {
    let changes = changes_by(
        "CREATE VIEW lines AS SELECT 'one\ntwo' AS x; CREATE TABLE \"a\n  + b\" (\"c\nd\"); INSERT INTO \"a\n  + b\" VALUES ('e\nf')",
    );
    let expected = r#"schema
  + table a\n  + b: CREATE TABLE "a\n  + b" ("c\nd")
  + view lines: CREATE VIEW lines AS SELECT 'one\ntwo' AS x
a\n  + b
  + rowid 1, c\nd 'e\nf'
"#;
    assert_eq!(changes.to_string(), expected);
}

#[test]
fn a_change_of_the_schema_is_one_line() {
    let create = |sql: &str| changes_by(&format!("DROP TABLE log; CREATE TABLE log {sql}")).to_string();
    assert_eq!(
        create("(text TEXT, -- as it is\n        note DEFAULT 'a  b')"),
        "schema
  ~ table log: CREATE TABLE log (text TEXT) -> CREATE TABLE log (text TEXT, /* as it is */ note DEFAULT 'a  b')
log
  - rowid 1, text 'start'
"
    );
    assert_eq!(
        create("(text TEXT /* of a line */)"),
        "schema
  ~ table log: CREATE TABLE log (text TEXT) -> CREATE TABLE log (text TEXT /* of a line */)
log
  - rowid 1, text 'start'
",
        "only the comment differs"
    );
}

#[test]
fn a_unit_of_work_sees_its_own_changes() {
    let bank = BANK.new_engine().unwrap();
    let work = bank.unit_of_work().unwrap();
    assert!(work.diff().unwrap().is_empty());
    work.execute("UPDATE account SET balance = 1 WHERE id = 3", []).unwrap();
    work.execute("CREATE TABLE t (a)", []).unwrap();
    let expected = "schema\n  + table t: CREATE TABLE t (a)\naccount\n  ~ id 3: balance 0 -> 1\n";
    assert_eq!(work.diff().unwrap().to_string(), expected);
    assert!(bank.changes().unwrap().is_empty(), "nothing is committed");
    work.execute("UPDATE account SET balance = 2 WHERE id = 3", []).unwrap();
    let expected = expected.replace("-> 1", "-> 2");
    assert_eq!(work.diff().unwrap().to_string(), expected, "it goes on");
    work.commit().unwrap();
    assert_eq!(bank.changes().unwrap().to_string(), expected);
    let work = bank.unit_of_work().unwrap();
    work.execute("DELETE FROM account", []).unwrap();
    work.diff().unwrap();
    work.rollback().unwrap();
    assert_eq!(bank.changes().unwrap().to_string(), expected, "it can be rolled back after that");
}

#[test]
fn a_unit_of_work_sees_its_changes_while_a_statement_runs() {
    let bank = BANK.new_engine().unwrap();
    let work = bank.unit_of_work().unwrap();
    work.execute("UPDATE account SET balance = 7", []).unwrap();
    let mut select = work.prepare("SELECT id FROM account").unwrap();
    let mut rows = select.query([]).unwrap();
    rows.next().unwrap();
    assert_eq!(work.diff().unwrap().table("account").unwrap().updated.len(), 3);
    assert!(rows.next().unwrap().is_some(), "the statement goes on");
}

/// What others commit later is not in it.
#[test]
fn a_unit_of_work_that_has_read_sees_what_it_reads() {
    let bank = BANK.new_engine().unwrap();
    let work = bank.unit_of_work().unwrap();
    work.query_row("SELECT count(*) FROM account", [], |_| Ok(())).unwrap();
    bank.connect().unwrap().execute_batch("DELETE FROM account").unwrap();
    assert!(work.diff().unwrap().is_empty());
    assert_eq!(bank.unit_of_work().unwrap().diff().unwrap(), bank.changes().unwrap());
}

#[test]
fn a_shadow_table_is_shown_if_it_has_the_content() {
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    let script = "CREATE VIRTUAL TABLE note USING fts5 (title, body); INSERT INTO note VALUES ('a', 'rain');
        CREATE VIRTUAL TABLE place USING rtree (id, x0, x1)";
    connection.execute_batch(script).unwrap();
    let before = engine.snapshot();
    connection.execute_batch("UPDATE note SET body = 'snow'; INSERT INTO note VALUES ('b', 'sun')").unwrap();
    let changes = before.diff(&engine.snapshot()).unwrap();
    assert_eq!(changes.to_string(), "note_content\n  ~ id 1: c1 'rain' -> 'snow'\n  + id 2, c0 'b', c1 'sun'\n");
    let before = engine.snapshot();
    connection.execute_batch("INSERT INTO place VALUES (1, 2, 3)").unwrap();
    let changes = before.diff(&engine.snapshot()).unwrap();
    assert!(changes.table("place_node").is_some(), "{changes}");
}

#[test]
fn a_column_named_rowid_is_not_the_rowid() {
    let engine = Engine::new();
    let run = |sql: &str| engine.try_transaction(|work| work.execute_batch(sql)).unwrap();
    run("CREATE TABLE t (rowid TEXT, a INT); INSERT INTO t VALUES ('x', 1), ('y', 2)");
    let before = engine.snapshot();
    run("UPDATE t SET a = 3 WHERE rowid = 'x'; INSERT INTO t VALUES ('z', 4)");
    let changes = before.diff(&engine.snapshot()).unwrap();
    assert_eq!(changes.to_string(), "t\n  ~ _rowid_ 1: a 1 -> 3\n  + _rowid_ 3, rowid 'z', a 4\n");
    let before = engine.snapshot();
    run("ALTER TABLE t ADD COLUMN b");
    assert_eq!(before.diff(&engine.snapshot()).unwrap().tables(), []);
}

#[test]
fn generated_columns_and_hidden_rowids_are_read() {
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    let script = "CREATE TABLE box (a INT, double AS (a * 2), square INT AS (a * a) STORED);
        CREATE TABLE hidden (rowid TEXT, _rowid_ TEXT, oid TEXT);
        INSERT INTO box VALUES (2); INSERT INTO hidden VALUES ('a', 'b', 'c'), ('d', 'e', 'f')";
    connection.execute_batch(script).unwrap();
    let before = engine.snapshot();
    connection.execute_batch("UPDATE box SET a = 3; DELETE FROM hidden WHERE oid = 'c'").unwrap();
    let expected = "\
box
  ~ rowid 1: a 2 -> 3, double 4 -> 6, square 4 -> 9
hidden
  - rowid 'a', _rowid_ 'b', oid 'c'
";
    assert_eq!(before.diff(&engine.snapshot()).unwrap().to_string(), expected);
}

#[test]
fn databases_of_other_encodings_and_page_sizes_are_compared() {
    let database = |settings: &str, rows: &str| {
        let engine = Engine::new();
        let script = format!("{settings}; CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT); INSERT INTO t VALUES {rows}");
        engine.connect().unwrap().execute_batch(&script).unwrap();
        engine.snapshot()
    };
    let settings = ["", "PRAGMA page_size = 512", "PRAGMA encoding = 'UTF-16le'", "PRAGMA encoding = 'UTF-16be'"];
    for one in settings {
        for other in settings {
            let (one, other) = (database(one, "(1, 'ä'), (2, 'b')"), database(other, "(1, 'ä'), (3, '\u{1f980}')"));
            let changes = one.diff(&other).unwrap();
            assert_eq!(changes.to_string(), "t\n  - a 2, b 'b'\n  + a 3, b '\u{1f980}'\n");
            assert_eq!(other.diff(&one).unwrap().to_string(), "t\n  - a 3, b '\u{1f980}'\n  + a 2, b 'b'\n");
        }
    }
}

#[test]
fn an_empty_database_is_compared() {
    let bank = BANK.snapshot().unwrap();
    let empty = Engine::new().snapshot();
    assert!(empty.diff(&Engine::new().snapshot()).unwrap().is_empty());
    let changes = empty.diff(&bank).unwrap();
    assert_eq!((changes.schema().len(), changes.table("account").unwrap().inserted.len()), (4, 3));
    assert_eq!(bank.diff(&empty).unwrap().table("account").unwrap().deleted.len(), 3);
}

#[test]
fn rows_without_a_complete_primary_key_are_told_apart() {
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    connection
        .execute_batch("CREATE TABLE t (k TEXT PRIMARY KEY, v); INSERT INTO t VALUES (NULL, 1), (NULL, 2), ('a', 3)")
        .unwrap();
    let before = engine.snapshot();
    connection.execute_batch("UPDATE t SET v = v + 10").unwrap();
    let expected = "t\n  ~ k NULL, rowid 1: v 1 -> 11\n  ~ k NULL, rowid 2: v 2 -> 12\n  ~ k 'a': v 3 -> 13\n";
    assert_eq!(before.diff(&engine.snapshot()).unwrap().to_string(), expected);
}

#[test]
fn long_values_are_cut_and_control_characters_escaped() {
    let changes = changes_by(
        "UPDATE account SET owner = printf('%.*c', 300, 'x') WHERE id = 1; INSERT INTO log VALUES (char(10, 27) || 'a'), (zeroblob(300))",
    );
    let text = changes.to_string();
    assert!(text.contains(&format!("owner 'Ada' -> '{}'… (300 characters)\n", "x".repeat(200))), "{text}");
    assert!(text.contains("text '\\n\\u{1b}a'\n"), "{text}");
    assert!(text.contains(&format!("text x'{}'… (300 bytes)\n", "00".repeat(200))), "{text}");
}

#[test]
fn unequal_snapshots_show_what_differs() {
    let bank = BANK.new_engine().unwrap();
    let before = bank.snapshot();
    bank.connect()
        .unwrap()
        .execute_batch("UPDATE account SET balance = 1; UPDATE account SET balance = 100 WHERE id = 1")
        .unwrap();
    let after = bank.snapshot();
    bank.connect()
        .unwrap()
        .execute_batch("UPDATE account SET balance = 50 WHERE id = 2; UPDATE account SET balance = 0 WHERE id = 3")
        .unwrap();
    assert_eq!(before, bank.snapshot(), "it was put back");
    assert!(before != after);
    let printed = format!("left: {before:?}\nright: {after:?}");
    let expected = ", which differs by:\naccount\n  ~ id 2: balance 50 -> 1\n  ~ id 3: balance 0 -> 1\n";
    assert!(printed.ends_with(expected) && printed.matches("which differs").count() == 1, "{printed}");
    assert!(!format!("{after:?}").contains("which differs"), "only once");
    let panic = std::panic::catch_unwind(|| assert_eq!(before, after)).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("~ id 3: balance 0 -> 1"), "{message}");
    let broken = Snapshot::from_bytes({
        let mut bytes = before.to_bytes();
        bytes[100] = 9; // no type of a page
        bytes
    });
    let broken = broken.unwrap();
    assert!(broken == broken.clone() && broken != before);
}

/// `==` finds 0.0 equal to -0.0, and SQL finds 1 equal to 1.0 as well.
#[test]
fn values_of_another_type_or_with_another_sign_are_changes() {
    for options in ["", "WITHOUT ROWID"] {
        let engine = Engine::new();
        let connection = engine.connect().unwrap();
        let script = format!(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, a) {options};
             INSERT INTO t VALUES (1, 0.0), (2, 1), (3, '1'), (4, x'31'), (5, 1.0)"
        );
        connection.execute_batch(&script).unwrap();
        let before = engine.snapshot();
        let script = "UPDATE t SET a = -0.0 WHERE id = 1; UPDATE t SET a = 1.0 WHERE id = 2;
            UPDATE t SET a = 1 WHERE id = 3; UPDATE t SET a = '1' WHERE id = 4; UPDATE t SET a = 1.0 WHERE id = 5";
        connection.execute_batch(script).unwrap();
        let expected = "\
t
  ~ id 1: a 0.0 -> -0.0
  ~ id 2: a 1 -> 1.0
  ~ id 3: a '1' -> 1
  ~ id 4: a x'31' -> '1'
";
        assert_eq!(before.diff(&engine.snapshot()).unwrap().to_string(), expected, "{options}");
    }
}

#[test]
fn rows_are_known_by_composite_keys_and_are_in_their_order() {
    for options in ["", "WITHOUT ROWID"] {
        let engine = Engine::new();
        let connection = engine.connect().unwrap();
        let script = format!(
            "CREATE TABLE t (a, b, c, PRIMARY KEY (b, a)) {options};
             INSERT INTO t VALUES (3, 'x', 0), (2, 'y', 0), (1, 'y', 0), (2, 'x', 0), (1, 'x', 0)"
        );
        connection.execute_batch(&script).unwrap();
        let before = engine.snapshot();
        let script = "UPDATE t SET c = 1 WHERE a = 1; DELETE FROM t WHERE a = 2; UPDATE t SET a = 4 WHERE a = 3;
            INSERT INTO t VALUES (0, 'y', 5), (9, 'x', 5), (0, 'x', 5)";
        connection.execute_batch(script).unwrap();
        let expected = "\
t
  ~ b 'x', a 1: c 0 -> 1
  ~ b 'y', a 1: c 0 -> 1
  - a 2, b 'x', c 0
  - a 3, b 'x', c 0
  - a 2, b 'y', c 0
  + a 0, b 'x', c 5
  + a 4, b 'x', c 0
  + a 9, b 'x', c 5
  + a 0, b 'y', c 5
";
        assert_eq!(before.diff(&engine.snapshot()).unwrap().to_string(), expected, "{options}");
    }
}

/// SQLite stores a default value by the column's affinity.
#[test]
fn a_column_that_is_added_with_a_default_changes_no_row() {
    let defaults = [
        "a DEFAULT 5",
        "a INT DEFAULT '5'",
        "a TEXT DEFAULT 5",
        "a REAL DEFAULT 5",
        "a REAL DEFAULT (-0.0)",
        "a NUMERIC DEFAULT 5.0",
        "a BLOB DEFAULT '5'",
        "a VARCHAR(10) DEFAULT 0.5",
        "a \"an int\" DEFAULT '5'",
        "a \"a \"\"text\"\"\" NOT NULL DEFAULT 5",
        "a DEFAULT true",
        "a DEFAULT '5'",
        "a DEFAULT 1.0",
        "a INT",
        "\"an \"\"a\"\"\" TEXT COLLATE NOCASE DEFAULT x'00ff'",
    ];
    for column in defaults {
        let changes =
            changes_by(&format!("ALTER TABLE account ADD COLUMN {column}; ALTER TABLE setting ADD COLUMN {column}"));
        assert_eq!((changes.tables(), changes.schema().len()), (&[][..], 2), "{column}: {changes}");
    }
}

#[test]
fn a_generated_column_that_is_added_changes_no_row() {
    for (table, column) in [("account", "g AS (balance * 2)"), ("setting", "g TEXT AS (name || value) VIRTUAL")] {
        let changes = changes_by(&format!("ALTER TABLE {table} ADD COLUMN {column}"));
        assert_eq!((changes.tables(), changes.schema().len()), (&[][..], 1), "{column}: {changes}");
    }
    let changes =
        changes_by("ALTER TABLE account ADD COLUMN g AS (balance * 2); UPDATE account SET balance = 7 WHERE id = 1");
    assert_eq!(changes.table("account").unwrap().to_string(), "account\n  ~ id 1: balance 100 -> 7, g NULL -> 14\n");
}

/// A column of the type ANY keeps its values as they are in a STRICT table, and converts them elsewhere.
#[test]
fn a_column_that_is_added_to_a_strict_table_changes_no_row() {
    for options in ["STRICT", "STRICT, WITHOUT ROWID"] {
        let engine = Engine::new();
        let run = |sql: &str| engine.try_transaction(|work| work.execute_batch(sql)).unwrap();
        run(&format!("CREATE TABLE t (a INTEGER PRIMARY KEY, b REAL) {options}; INSERT INTO t VALUES (1, 2), (3, 4)"));
        let before = engine.snapshot();
        run("ALTER TABLE t ADD COLUMN c ANY DEFAULT '5'; ALTER TABLE t ADD COLUMN d REAL NOT NULL DEFAULT 5;
             ALTER TABLE t ADD COLUMN e TEXT DEFAULT 5; ALTER TABLE t ADD COLUMN f BLOB DEFAULT x'05';
             ALTER TABLE t ADD COLUMN g any AS (b || c); UPDATE t SET c = 5 WHERE a = 3");
        let changes = before.diff(&engine.snapshot()).unwrap();
        let expected = "t\n  ~ a 3: c NULL -> 5, d NULL -> 5.0, e NULL -> '5', f NULL -> x'05', g NULL -> '4.05'\n";
        assert_eq!(changes.table("t").unwrap().to_string(), expected, "{options}");
    }
}

/// The rows have been written again. The default value may be the same within a second.
#[test]
fn a_column_with_a_default_that_is_not_constant_changes_the_rows() {
    let changes = changes_by(
        "CREATE TABLE copy (id INTEGER PRIMARY KEY, owner, balance, at DEFAULT CURRENT_TIMESTAMP);
         INSERT INTO copy (id, owner, balance) SELECT * FROM account;
         DROP TABLE account; ALTER TABLE copy RENAME TO account",
    );
    assert_eq!(changes.table("account").unwrap().updated.len(), 3, "{changes}");
}

/// The rowid is not a column.
#[test]
fn a_table_that_gets_rowids_or_loses_them_has_the_same_rows() {
    let again = |table: &str, columns: &str| {
        let script = format!(
            "CREATE TABLE copy {columns}; INSERT INTO copy SELECT * FROM {table};
             DROP TABLE {table}; ALTER TABLE copy RENAME TO {table}"
        );
        let changes = changes_by(&script);
        assert_eq!((changes.tables(), changes.schema().len()), (&[][..], 1), "{changes}");
    };
    again("setting", "(name TEXT PRIMARY KEY, value)");
    again("account", "(id INT PRIMARY KEY, owner, balance) WITHOUT ROWID");
}

#[test]
fn a_dropped_column_changes_no_row() {
    let changes = changes_by(
        "ALTER TABLE account DROP COLUMN balance; UPDATE account SET owner = 'Ada L.' WHERE id = 1;
         ALTER TABLE setting DROP COLUMN value;",
    );
    let expected = "\
schema
  ~ table account: CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, balance INT) -> CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT NOT NULL)
  ~ table setting: CREATE TABLE setting (name TEXT PRIMARY KEY, value) WITHOUT ROWID -> CREATE TABLE setting (name TEXT PRIMARY KEY) WITHOUT ROWID
account
  ~ id 1: owner 'Ada' -> 'Ada L.', balance 100 -> NULL
";
    assert_eq!(changes.to_string(), expected);
}

/// A column is the same one if only the case of its name has changed.
#[test]
fn a_renamed_column_is_dropped_and_added() {
    let changes = changes_by(
        "ALTER TABLE tag RENAME COLUMN colour TO shade; ALTER TABLE tag RENAME COLUMN name TO title;
         ALTER TABLE setting RENAME COLUMN value TO content; ALTER TABLE log RENAME COLUMN text TO TEXT;",
    );
    let rows = "\
setting
  ~ name 'a': value 1 -> NULL, content NULL -> 1
  ~ name 'b': value 2.5 -> NULL, content NULL -> 2.5
tag
  ~ name 'new': name 'new' -> NULL, colour 'green' -> NULL, title NULL -> 'new', shade NULL -> 'green'
  ~ name 'old': name 'old' -> NULL, colour 'grey' -> NULL, title NULL -> 'old', shade NULL -> 'grey'
";
    let text = changes.to_string();
    assert!(text.ends_with(&format!("\n{rows}")), "{text}");
    assert_eq!(changes.schema().len(), 3, "{text}");
}

#[test]
fn a_renamed_table_is_dropped_and_added() {
    let changes = changes_by("ALTER TABLE log RENAME TO journal");
    let expected = "\
schema
  + table journal: CREATE TABLE \"journal\" (text TEXT)
  - table log: CREATE TABLE log (text TEXT)
journal
  + rowid 1, text 'start'
log
  - rowid 1, text 'start'
";
    assert_eq!(changes.to_string(), expected);
}

#[test]
fn views_and_triggers_are_part_of_the_schema() {
    let engine = BANK.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let script = "CREATE VIEW rich AS SELECT id FROM account WHERE balance > 10; CREATE VIEW poor AS SELECT 1;
        CREATE TRIGGER audit AFTER INSERT ON account BEGIN DELETE FROM log; END;
        CREATE TRIGGER once AFTER DELETE ON account BEGIN DELETE FROM log; END";
    connection.execute_batch(script).unwrap();
    let before = engine.snapshot();
    let script = "DROP VIEW rich; CREATE VIEW rich AS SELECT id FROM account WHERE balance > 99; DROP VIEW poor;
        DROP TRIGGER audit; CREATE TRIGGER audit AFTER UPDATE ON account BEGIN DELETE FROM log; END;
        DROP TRIGGER once; CREATE VIEW everyone AS SELECT id FROM account";
    connection.execute_batch(script).unwrap();
    let expected = "\
schema
  ~ trigger audit: CREATE TRIGGER audit AFTER INSERT ON account BEGIN DELETE FROM log; END -> CREATE TRIGGER audit AFTER UPDATE ON account BEGIN DELETE FROM log; END
  - trigger once: CREATE TRIGGER once AFTER DELETE ON account BEGIN DELETE FROM log; END
  + view everyone: CREATE VIEW everyone AS SELECT id FROM account
  - view poor: CREATE VIEW poor AS SELECT 1
  ~ view rich: CREATE VIEW rich AS SELECT id FROM account WHERE balance > 10 -> CREATE VIEW rich AS SELECT id FROM account WHERE balance > 99
";
    assert_eq!(before.diff(&engine.snapshot()).unwrap().to_string(), expected);
}

/// The definition needs a function that only the application has.
#[test]
fn a_definition_may_need_a_collation_of_the_application() {
    static SHOP: Template = Template::sql(
        "CREATE TABLE item (name TEXT COLLATE shop PRIMARY KEY) WITHOUT ROWID; INSERT INTO item VALUES ('b')",
    )
    .on_connect(|connection| Ok(connection.create_collation("shop", |one, other| other.cmp(one))?));
    let shop = SHOP.new_engine().unwrap();
    shop.try_transaction(|work| work.execute("INSERT INTO item VALUES ('a')", [])).unwrap();
    assert_eq!(shop.changes().unwrap().to_string(), "item\n  + name 'a'\n");
}

#[test]
fn what_sqlite_can_not_read_is_an_error_that_names_the_table() {
    let broken = "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE TABLE (' WHERE name = 'log'";
    let bank = BANK.new_engine().unwrap();
    bank.connect().unwrap().execute_batch(broken).unwrap();
    let error = bank.changes().unwrap_err();
    assert!(error.to_string().starts_with("can't compare the schemas of two snapshots: SQLite says: "), "{error}");
    let connection = BANK.new_engine().unwrap().connect().unwrap();
    let root = number(&connection, "SELECT rootpage FROM sqlite_schema WHERE name = 'account'");
    let before = BANK.snapshot().unwrap();
    let mut bytes = before.to_bytes();
    let page = (root - 1) * number(&connection, "PRAGMA page_size");
    bytes[usize::try_from(page).unwrap()] = 9; // no type of a page
    let broken = Snapshot::from_bytes(bytes).unwrap();
    for (before, after) in [(&before, &broken), (&broken, &before)] {
        let error = before.diff(after).unwrap_err();
        let expected =
            "can't compare the table `account` of two snapshots: SQLite says: database disk image is malformed; ";
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}

#[test]
fn a_snapshot_that_is_no_database_is_not_compared() {
    let before = BANK.snapshot().unwrap();
    let garbage: Vec<u8> = (0..before.size()).map(|place| (place * 7 + place / 256) as u8).collect();
    let error = Snapshot::from_bytes(garbage.clone()).unwrap_err();
    let expected = "can't use these bytes as a SQLite database: it does not start with SQLite's header string, \"SQLite format 3\"";
    assert_eq!(error.to_string(), expected);
    let with_magic = [&before.to_bytes()[..16], &garbage[16..]].concat();
    let error = Snapshot::from_bytes(with_magic).unwrap_err();
    let expected = "can't use these bytes as a SQLite database: its header ";
    assert!(error.to_string().starts_with(expected), "{error}");
    let with_header = [&before.to_bytes()[..100], &garbage[100..]].concat();
    let broken = Snapshot::from_bytes(with_header).unwrap();
    for (before, after) in [(&before, &broken), (&broken, &before)] {
        let error = before.diff(after).unwrap_err();
        let expected = "can't compare the schemas of two snapshots: SQLite says: ";
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}

/// Rows that move from one table to another may take their pages with them.
#[test]
fn rows_that_move_between_tables_are_found() {
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    let fill = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)";
    let script = format!(
        "CREATE TABLE one (i INTEGER PRIMARY KEY, text TEXT); CREATE TABLE other (i INTEGER PRIMARY KEY, text TEXT);
         INSERT INTO one {fill} SELECT i, printf('row %d of many', i) FROM n;"
    );
    connection.execute_batch(&script).unwrap();
    let before = engine.snapshot();
    for script in [
        "CREATE TEMP TABLE kept AS SELECT * FROM one; DELETE FROM one; INSERT INTO other SELECT * FROM kept; DROP TABLE kept",
        "DROP TABLE other; ALTER TABLE one RENAME TO other; CREATE TABLE one (i INTEGER PRIMARY KEY, text TEXT)",
        "INSERT INTO other SELECT * FROM one; DELETE FROM one",
    ] {
        engine.restore(&before).unwrap();
        connection.execute_batch(script).unwrap();
        let changes = before.diff(&engine.snapshot()).unwrap();
        let numbers = [("one", 0, 2000), ("other", 2000, 0)];
        for (table, inserted, deleted) in numbers {
            let table = changes.table(table).unwrap();
            assert_eq!(
                (table.inserted.len(), table.deleted.len(), table.updated.len()),
                (inserted, deleted, 0),
                "{script}"
            );
        }
    }
}

/// A value of several pages whose end alone is overwritten: the page with the row is the same.
#[test]
fn the_end_of_a_long_value_is_compared() {
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    let script = "CREATE TABLE big (id INTEGER PRIMARY KEY, bytes BLOB); INSERT INTO big VALUES (1, zeroblob(50000)), (2, zeroblob(50000))";
    connection.execute_batch(script).unwrap();
    let before = engine.snapshot();
    let mut blob = connection.blob_open(rusqlite::MAIN_DB, "big", "bytes", 2, false).unwrap();
    std::io::Seek::seek(&mut blob, std::io::SeekFrom::Start(40_000)).unwrap();
    std::io::Write::write_all(&mut blob, &[7]).unwrap();
    drop(blob);
    let changes = before.diff(&engine.snapshot()).unwrap();
    let updated = &changes.table("big").unwrap().updated;
    assert_eq!((updated.len(), updated[0].key.get("id")), (1, Some(&Value::Integer(2))));
}

/// The definition of the tables `t` and `u`, whose rows are written by `id`, `a` and `b`.
#[derive(Clone, Debug)]
struct Schema {
    definition: String,
    is_strict: bool,
    indexes: &'static str,
    /// All columns, and the rowid if that is the key.
    columns: Vec<&'static str>,
    key: Vec<&'static str>,
    /// Whether `a` is written when a row is inserted.
    inserts_a: bool,
    /// Whether `a` is written when a row is updated.
    updates_a: bool,
}

fn schema() -> impl Strategy<Value = Schema> {
    const TYPES: [&str; 7] = ["", "INTEGER", "REAL", "TEXT", "TEXT COLLATE NOCASE", "NUMERIC", "BLOB"];
    const INDEXES: [&str; 3] =
        ["", "; CREATE INDEX i ON t (a)", "; CREATE INDEX i ON t (a); CREATE INDEX j ON t (b, a)"];
    let types = prop::array::uniform3(prop::sample::select(&TYPES[..]));
    let generated = (prop::sample::select(&["", ", a AS (b || 'x')", ", a AS (b || 'x') STORED"][..]), 0..3usize);
    let parts = (0..7usize, types, generated, any::<bool>(), prop::sample::select(&INDEXES[..]));
    parts.prop_map(|(kind, types, (generated_a, c), is_strict, indexes)| {
        let [id, a, b] = if is_strict { ["ANY"; 3] } else { types };
        let is_a_key = kind > 4;
        let is_generated = !is_a_key && !is_strict && !generated_a.is_empty();
        let a = if is_generated { generated_a.to_owned() } else { format!(", a {a}") };
        let c = ["", ", c TEXT AS (quote(b)) STORED", ", c TEXT AS (typeof(b))"][c];
        let (columns, options) = match kind {
            0 => (format!("id INTEGER PRIMARY KEY{a}, b {b}{c}"), ""),
            1 => (format!("id INTEGER PRIMARY KEY AUTOINCREMENT{a}, b {b}{c}"), ""),
            2 => (format!("id {id}{a}, b {b}{c}"), ""),
            3 => (format!("id {id} PRIMARY KEY{a}, b {b}{c}"), ""),
            4 => (format!("id {id} PRIMARY KEY{a}, b {b}{c}"), "WITHOUT ROWID"),
            5 => (format!("id {id}{a}, b {b}{c}, PRIMARY KEY (id, a)"), ""),
            _ => (format!("id {id}{a}, b {b}{c}, PRIMARY KEY (a, id)"), "WITHOUT ROWID"),
        };
        let options = [options, if is_strict { "STRICT" } else { "" }].into_iter().filter(|option| !option.is_empty());
        let (rowid, c) = ((kind == 2).then_some("rowid"), (!c.is_empty()).then_some("c"));
        Schema {
            definition: format!("({columns}) {}", options.collect::<Vec<_>>().join(", ")),
            is_strict,
            indexes,
            columns: rowid.into_iter().chain(["id", "a", "b"]).chain(c).collect(),
            key: match kind {
                2 => vec!["rowid"],
                5 => vec!["id", "a"],
                6 => vec!["a", "id"],
                _ => vec!["id"],
            },
            inserts_a: !is_generated,
            updates_a: !is_generated && !is_a_key,
        }
    })
}

/// The type and the default of a column that is added, and the value that it has in the rows that exist.
const ADDED: [(&str, &str, &str); 5] = [
    ("", "", "null NULL"),
    ("", "7", "integer 7"),
    ("TEXT", "7", "text '7'"),
    ("REAL", "7", "real 4619567317775286272"),
    ("BLOB", "'x'", "text 'x'"),
];

/// What is written to a row.
#[derive(Clone, Debug)]
enum Content {
    Text(usize),
    Blob(usize),
    /// Short values that are much alike. Rows that are next to each other have different ones.
    Mixed {
        shift: usize,
    },
}

/// SQL, in which `i` is the row's id.
const MIXED: [&str; 10] =
    ["0", "0.0", "-0.0", "'0'", "x'30'", "i", "CAST(i AS REAL)", "CAST(i AS TEXT)", "i + 0.5", "NULL"];

impl Content {
    fn sql(&self) -> String {
        match self {
            Content::Text(size) => format!("printf('%.*c', {size}, 'x') || i"),
            Content::Blob(size) => format!("CAST(printf('%.*c', {size}, 'x') || i AS BLOB)"),
            Content::Mixed { shift } => {
                let cases: Vec<String> =
                    MIXED.iter().enumerate().map(|(place, sql)| format!("WHEN {place} THEN {sql}")).collect();
                format!("CASE (i + {shift}) % {} {} END", MIXED.len(), cases.join(" "))
            }
        }
    }
}

fn content() -> impl Strategy<Value = Content> {
    let size = || prop_oneof![Just(0usize), 1..200usize, 1000..9000usize];
    prop_oneof![
        3 => size().prop_map(Content::Text),
        1 => size().prop_map(Content::Blob),
        3 => (0..MIXED.len()).prop_map(|shift| Content::Mixed { shift }),
    ]
}

#[derive(Clone, Debug)]
enum Change {
    Insert {
        from: i64,
        count: i64,
        content: Content,
    },
    Update {
        from: i64,
        count: i64,
        content: Content,
    },
    Delete {
        from: i64,
        count: i64,
    },
    Move {
        from: i64,
        count: i64,
    },
    Vacuum,
    /// Changes the page size.
    Rebuild(usize),
    /// Changes the schema, and pages between those of the tables.
    Index,
    DropIndex,
    Other(Content),
    AddColumn(usize),
    WriteColumn {
        from: i64,
        count: i64,
    },
    RenameColumn,
    DropColumn,
    /// Writes to a virtual table.
    Note {
        from: i64,
        count: i64,
    },
    Version(i64),
}

fn page_size() -> impl Strategy<Value = usize> {
    prop_oneof![Just(512), Just(4096), Just(16384)]
}

fn change() -> impl Strategy<Value = Change> {
    let (from, count) = (0..400i64, prop_oneof![Just(1i64), 2..30i64, Just(400)]);
    prop_oneof![
        4 => (from.clone(), count.clone(), content()).prop_map(|(from, count, content)| Change::Insert { from, count, content }),
        3 => (from.clone(), count.clone(), content()).prop_map(|(from, count, content)| Change::Update { from, count, content }),
        2 => (from.clone(), count.clone()).prop_map(|(from, count)| Change::Delete { from, count }),
        2 => (from.clone(), count.clone()).prop_map(|(from, count)| Change::Move { from, count }),
        1 => Just(Change::Vacuum),
        1 => page_size().prop_map(Change::Rebuild),
        1 => Just(Change::Index),
        1 => Just(Change::DropIndex),
        1 => content().prop_map(Change::Other),
        1 => (from, count).prop_map(|(from, count)| Change::Note { from, count }),
        1 => (0..3i64).prop_map(Change::Version),
    ]
}

/// A change of the columns of `t`, or of its rows.
fn alteration() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => content().prop_map(|content| Change::Insert { from: 0, count: 30, content }),
        2 => (0..ADDED.len()).prop_map(Change::AddColumn),
        2 => (0..30i64).prop_map(|from| Change::WriteColumn { from, count: 5 }),
        1 => Just(Change::RenameColumn),
        1 => Just(Change::DropColumn),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop_oneof![2 => prop::collection::vec(change(), 0..6), 1 => prop::collection::vec(alteration(), 1..7)]
}

/// Returns the columns that `t` has besides those of its definition, each with its index in `ADDED`.
fn added(connection: &Connection) -> Vec<(String, usize)> {
    let sql = "SELECT name, type, dflt_value FROM pragma_table_info('t') WHERE name IN ('extra', 'renamed')";
    let mut statement = connection.prepare(sql).unwrap();
    let column = |row: &rusqlite::Row<'_>| {
        let (kind, default) = (row.get::<_, String>(1)?, row.get::<_, Option<String>>(2)?.unwrap_or_default());
        let added = ADDED.iter().position(|(its, value, _)| *value == default && (kind == "ANY" || *its == kind));
        Ok((row.get(0)?, added.unwrap()))
    };
    statement.query_map([], column).unwrap().map(Result::unwrap).collect()
}

/// `u` is a table of the same definition as `t`.
fn apply(connection: &Connection, schema: &Schema, changes: &[Change]) {
    /// No NULL, and of several types.
    const A: &str = "CASE i % 4 WHEN 0 THEN i WHEN 1 THEN i + 0.5 WHEN 2 THEN 'a' || i ELSE CAST(i AS BLOB) END";
    let range = |from: &i64, count: &i64| format!("id >= {from} AND id < {}", from + count);
    let (written, a) = if schema.inserts_a { ("id, b, a", format!(", {A}")) } else { ("id, b", String::new()) };
    let old = if schema.updates_a { "a = b, " } else { "" };
    for change in changes {
        let added = added(connection);
        let added: Vec<&str> = added.iter().map(|(name, _)| &**name).collect();
        let sql = match change {
            Change::Insert { from, count, content } => format!(
                "WITH RECURSIVE n (i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i < {})
                 INSERT OR REPLACE INTO t ({written}) SELECT i, {}{a} FROM n",
                from + count - 1,
                content.sql()
            ),
            Change::Update { from, count, content } => {
                let content = format!("(SELECT {} FROM (SELECT t.id AS i))", content.sql());
                format!("UPDATE t SET {old}b = {content} WHERE {}", range(from, count))
            }
            Change::Delete { from, count } => format!("DELETE FROM t WHERE {}", range(from, count)),
            Change::Move { from, count } => {
                let range = range(from, count);
                format!(
                    "INSERT OR REPLACE INTO u ({written}) SELECT {written} FROM t WHERE {range}; DELETE FROM t WHERE {range}"
                )
            }
            Change::Vacuum => "VACUUM".to_owned(),
            Change::Rebuild(page_size) => format!("PRAGMA page_size = {page_size}; VACUUM"),
            Change::Index => "CREATE INDEX IF NOT EXISTS of_b ON t (b)".to_owned(),
            Change::DropIndex => "DROP INDEX IF EXISTS of_b".to_owned(),
            Change::Other(content) => format!(
                "DROP TABLE IF EXISTS other; CREATE TABLE other (a);
                 WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9)
                 INSERT INTO other SELECT {} FROM n",
                content.sql()
            ),
            Change::AddColumn(index) if !added.contains(&"extra") => {
                let (kind, default, _) = ADDED[*index];
                let kind = if schema.is_strict { "ANY" } else { kind };
                let default = if default.is_empty() { String::new() } else { format!("DEFAULT {default}") };
                format!("ALTER TABLE t ADD COLUMN extra {kind} {default}")
            }
            Change::WriteColumn { from, count } if !added.is_empty() => {
                format!("UPDATE t SET {} = id || 'e' WHERE {}", added[0], range(from, count))
            }
            Change::RenameColumn if added == ["extra"] => "ALTER TABLE t RENAME COLUMN extra TO renamed".to_owned(),
            Change::DropColumn if !added.is_empty() => format!("ALTER TABLE t DROP COLUMN {}", added[0]),
            Change::AddColumn(_) | Change::WriteColumn { .. } | Change::RenameColumn | Change::DropColumn => continue,
            Change::Note { from, count } => format!(
                "DELETE FROM f WHERE rowid = {from} + 1;
                 WITH RECURSIVE n (i) AS (SELECT {from} UNION ALL SELECT i + 2 FROM n WHERE i < {})
                 INSERT OR REPLACE INTO f (rowid, words) SELECT i, 'note ' || (i + {count}) FROM n",
                from + count
            ),
            Change::Version(number) => format!("PRAGMA user_version = {number}"),
        };
        connection.execute_batch(&sql).unwrap();
    }
}

/// Columns with their values, each as `quoted` writes it.
type Quoted = Vec<String>;

/// What SQL says of a snapshot.
struct Seen {
    /// The rows of each table with their keys, in the order of these.
    rows: BTreeMap<&'static str, Vec<(Quoted, Quoted)>>,
    /// The columns that were added to `t`, with the value of the rows before.
    added: Vec<String>,
    schema: BTreeMap<(String, String), String>,
    version: i64,
}

impl Seen {
    fn of(snapshot: &Snapshot, schema: &Schema) -> Seen {
        let engine = snapshot.new_engine();
        let connection = engine.connect().unwrap();
        // SQLite's `quote` does not show the sign of a zero.
        connection
            .create_scalar_function("bits", 1, FunctionFlags::SQLITE_UTF8, |context| {
                Ok(context.get::<f64>(0)?.to_bits().cast_signed())
            })
            .unwrap();
        let added = added(&connection);
        let columns_of_t: Vec<&str> =
            schema.columns.iter().copied().chain(added.iter().map(|(name, _)| &**name)).collect();
        let tables: [(&'static str, &[&str], &[&str]); 4] = [
            ("t", &schema.key, &columns_of_t),
            ("u", &schema.key, &schema.columns),
            ("other", &["rowid"], &["rowid", "a"]),
            ("f_content", &["id"], &["id", "c0"]),
        ];
        let objects = "SELECT type, name, coalesce(sql, '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite%'";
        let object = |row: &rusqlite::Row<'_>| Ok(((row.get(0)?, row.get(1)?), row.get(2)?));
        let objects = connection.prepare(objects).unwrap().query_map([], object).unwrap().map(Result::unwrap).collect();
        Seen {
            rows: tables.map(|(table, key, columns)| (table, rows(&connection, table, key, columns))).into(),
            added: added.iter().map(|(name, index)| format!("{name} {}", ADDED[*index].2)).collect(),
            schema: objects,
            version: connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap(),
        }
    }
}

/// Returns the rows of a table with their keys, by SQL and in the order of the keys.
fn rows(connection: &Connection, table: &str, key: &[&str], columns: &[&str]) -> Vec<(Quoted, Quoted)> {
    let quoted = |name: &&str| {
        format!("'{name} ' || typeof({name}) || ' ' || iif(typeof({name}) = 'real', bits({name}), quote({name}))")
    };
    let selected: Vec<String> = key.iter().chain(columns).map(quoted).collect();
    let order: Vec<String> = key.iter().map(|name| format!("{name} COLLATE BINARY")).collect();
    let sql = format!("SELECT {} FROM {table} ORDER BY {}", selected.join(", "), order.join(", "));
    let Ok(mut statement) = connection.prepare(&sql) else {
        assert_eq!(table, "other", "{sql}");
        return Vec::new();
    };
    let row = |row: &rusqlite::Row<'_>| {
        let mut its_key = (0..selected.len()).map(|column| row.get(column)).collect::<rusqlite::Result<Quoted>>()?;
        let row = its_key.split_off(key.len());
        Ok((its_key, row))
    };
    statement.query_map([], row).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

fn quoted(row: &Row) -> Quoted {
    let value = |value: &Value| match value {
        Value::Null => "null NULL".to_owned(),
        Value::Integer(number) => format!("integer {number}"),
        Value::Real(number) => format!("real {}", number.to_bits().cast_signed()),
        Value::Text(text) => format!("text '{}'", text.replace('\'', "''")),
        Value::Blob(bytes) => {
            let mut text = "blob X'".to_owned();
            bytes.iter().for_each(|byte| write!(text, "{byte:02X}").unwrap());
            text + "'"
        }
    };
    row.columns().map(|(name, its)| format!("{name} {}", value(its))).collect()
}

/// The changes of a table.
#[derive(Debug, Default, PartialEq)]
struct Expected {
    inserted: Vec<Quoted>,
    /// Their keys, and the rows before and after.
    updated: Vec<[Quoted; 3]>,
    deleted: Vec<Quoted>,
}

impl Expected {
    /// `added` are columns with the values that make no change.
    fn between(before: &[(Quoted, Quoted)], after: &[(Quoted, Quoted)], added: &[String]) -> Expected {
        let by_key = |rows: &[(Quoted, Quoted)]| rows.iter().cloned().collect::<BTreeMap<Quoted, Quoted>>();
        let (old, new) = (by_key(before), by_key(after));
        assert_eq!((old.len(), new.len()), (before.len(), after.len()), "keys are unique");
        let missing = |rows: &[(Quoted, Quoted)], others: &BTreeMap<Quoted, Quoted>| {
            rows.iter().filter(|(key, _)| !others.contains_key(key)).map(|(_, row)| row.clone()).collect()
        };
        let name = |column: &String| column.split(' ').next().unwrap().to_owned();
        let is_same = |before: &Quoted, column: &String| match before.iter().find(|old| name(old) == name(column)) {
            Some(old) => old == column,
            None => added.contains(column),
        };
        let updated = after.iter().filter_map(|(key, row)| {
            let before = old.get(key).filter(|before| !row.iter().all(|column| is_same(before, column)))?;
            Some([key.clone(), before.clone(), row.clone()])
        });
        Expected { inserted: missing(after, &old), updated: updated.collect(), deleted: missing(before, &new) }
    }

    fn of(changes: &TableChanges) -> Expected {
        let updated = changes.updated.iter().map(|update| [&update.key, &update.before, &update.after].map(quoted));
        Expected {
            inserted: changes.inserted.iter().map(quoted).collect(),
            updated: updated.collect(),
            deleted: changes.deleted.iter().map(quoted).collect(),
        }
    }
}

proptest! {
    /// The rows that differ by SQL are shown, in the order of their keys, and no others; so are objects of the schema.
    #[test]
    fn the_changes_lead_from_one_snapshot_to_the_other(
        schema in schema(),
        page_size in page_size(),
        encoding in prop::sample::select(&["UTF-8", "UTF-16le", "UTF-16be"][..]),
        auto_vacuum in 0..2,
        before in changes(),
        after in changes(),
    ) {
        let engine = Engine::new();
        let connection = engine.connect().unwrap();
        let Schema { definition, indexes, .. } = &schema;
        connection.execute_batch(&format!("PRAGMA encoding = '{encoding}'; PRAGMA page_size = {page_size};
            PRAGMA auto_vacuum = {auto_vacuum}; CREATE TABLE t {definition}; CREATE TABLE u {definition}{indexes};
            CREATE VIRTUAL TABLE f USING fts5(words)")).unwrap();
        apply(&connection, &schema, &before);
        let before = engine.snapshot();
        apply(&connection, &schema, &after);
        let after = engine.snapshot();
        let copy = Snapshot::from_bytes(after.to_bytes()).unwrap();
        let [old, new] = [&before, &after].map(|snapshot| Seen::of(snapshot, &schema));
        for (before, after, old, new) in
            [(&before, &after, &old, &new), (&after, &before, &new, &old), (&before, &copy, &old, &new)]
        {
            let changes = before.diff(after).unwrap();
            for (table, rows) in &old.rows {
                let shown = changes.table(table).map(Expected::of).unwrap_or_default();
                prop_assert_eq!(shown, Expected::between(rows, &new.rows[table], &new.added), "{}", table);
            }
            prop_assert!(changes.tables().iter().all(|table| old.rows.contains_key(&*table.table)));
            let names: BTreeSet<_> = old.schema.keys().chain(new.schema.keys()).collect();
            let sql = |seen: &Seen, object| seen.schema.get(object).cloned();
            let differing: Vec<_> = names.into_iter().filter(|object| sql(old, object) != sql(new, object)).collect();
            let shown = changes.schema().iter().map(|change| ((change.object.kind.clone(), change.object.name.clone()), &change.before, &change.after));
            let expected = differing.into_iter().map(|object| (object.clone(), sql(old, object), sql(new, object)));
            let shown: Vec<_> = shown.map(|(object, before, after)| (object, before.clone(), after.clone())).collect();
            prop_assert_eq!(shown, expected.collect::<Vec<_>>());
            let versions: Vec<(i64, i64)> = changes.settings().iter().map(|change| (change.before, change.after)).collect();
            let expected: &[(i64, i64)] = &[(old.version, new.version)];
            prop_assert_eq!(versions, if old.version == new.version { &[] } else { expected });
        }
    }
}

#[test]
fn changes_are_json_too() {
    let engine = Engine::new();
    let run = |script: &str| engine.connect().unwrap().execute_batch(script).unwrap();
    run("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b); INSERT INTO t VALUES (1, 'one', NULL), (2, 1.5, -0.0)");
    let before = engine.snapshot();
    run("UPDATE t SET a = x'00ff', b = 9e999 WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (3, '\"', -9e999);
         CREATE INDEX i ON t (a); PRAGMA user_version = 7");
    let changes = before.diff(&engine.snapshot()).unwrap();
    let json: serde_json::Value = serde_json::from_str(&changes.to_json()).unwrap();
    assert_eq!(serde_json::to_value(&changes).unwrap(), json);
    assert_eq!(serde_json::to_value(&changes.tables()[0].updated[0]).unwrap(), json["tables"][0]["updated"][0]);
    assert_eq!(
        json,
        serde_json::json!({
            "schema": [{ "kind": "index", "name": "i", "before": null, "after": "CREATE INDEX i ON t (a)" }],
            "settings": [{ "pragma": "user_version", "before": 0, "after": 7 }],
            "tables": [{
                "table": "t",
                "inserted": [{ "id": 3, "a": "\"", "b": { "real": "-inf" } }],
                "updated": [{
                    "key": { "id": 1 },
                    "before": { "id": 1, "a": "one", "b": null },
                    "after": { "id": 1, "a": { "blob": "00ff" }, "b": { "real": "inf" } },
                }],
                "deleted": [{ "id": 2, "a": 1.5, "b": -0.0 }],
            }],
        })
    );
    let json: serde_json::Value = serde_json::from_str(&before.diff(&before).unwrap().to_json()).unwrap();
    assert_eq!(json, serde_json::json!({ "schema": [], "settings": [], "tables": [] }));
}

#[test]
fn the_json_in_the_documentation_is_what_is_written() {
    let documented = include_str!("../../src/difference/json.rs")
        .lines()
        .find_map(|line| line.trim().strip_prefix("/// `{\"schema\"")?.strip_suffix("`."))
        .map(|line| format!("{{\"schema\"{line}"));
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    connection.execute_batch("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)").unwrap();
    let before = engine.snapshot();
    connection.execute("INSERT INTO account VALUES (4, 30)", []).unwrap();
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let written = before.diff(&engine.snapshot()).unwrap().to_json();
    assert_eq!(json(&documented.unwrap()), json(&written));
    assert_eq!(json(r#"{ "b": 1, "a": 2 }"#).to_string(), r#"{"a":2,"b":1}"#, "keys are in alphabetical order");
}
