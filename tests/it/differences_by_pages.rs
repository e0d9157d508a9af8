//! What two snapshots share is not read when they are compared.
//!
//! The table `account` has a page that SQLite can't read, so a comparison that reads all of its rows fails.

use rusqlite_fixtures::rusqlite::Connection;
use rusqlite_fixtures::{Changes, Engine, ErrorKind, Snapshot};

use crate::support::number;

const FILL: &str = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)";

/// Returns a database that a script has made, in which the page with this text can't be read.
fn with_broken_page(script: &str, text: &str) -> Snapshot {
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    connection.execute_batch(script).unwrap();
    let size = usize::try_from(number(&connection, "PRAGMA page_size")).unwrap();
    let mut bytes = engine.snapshot().to_bytes();
    let place = bytes.windows(text.len()).position(|there| there == text.as_bytes()).unwrap();
    bytes[place / size * size] = 9; // no type of a page
    Snapshot::from_bytes(bytes).unwrap()
}

/// The root of each table is a page of its own, and the broken leaf is far from the row 1.
fn bank(more: &str) -> Snapshot {
    let script = format!(
        "CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT);
         INSERT INTO account {FILL} SELECT i, printf('owner %d of many', i) FROM n; {more}"
    );
    with_broken_page(&script, "owner 1500 of many")
}

/// Returns the changes by a script, both if the snapshots share memory and if they do not.
fn changes_by(before: &Snapshot, script: &str) -> Changes {
    let engine = before.new_engine();
    engine.connect().unwrap().execute_batch(script).unwrap();
    let after = engine.snapshot();
    let copy = Snapshot::from_bytes(after.to_bytes()).unwrap();
    let changes = before.diff(&after).unwrap_or_else(|error| panic!("{error}: {script}"));
    assert_eq!(changes, before.diff(&copy).unwrap());
    changes
}

fn can_not_be_read(connection: &Connection, table: &str) -> bool {
    connection.query_row(&format!("SELECT max(owner) FROM {table} NOT INDEXED"), [], |_| Ok(())).is_err()
}

const UPDATE: &str = "UPDATE account SET owner = 'Ada' WHERE id = 1";
const UPDATED: &str = "account\n  ~ id 1: owner 'owner 1 of many' -> 'Ada'\n";

#[test]
fn rows_on_pages_that_are_the_same_are_not_read() {
    let before = bank("");
    assert_eq!(changes_by(&before, UPDATE).to_string(), UPDATED);
    let engine = before.new_engine();
    let connection = engine.connect().unwrap();
    assert!(can_not_be_read(&connection, "account"));
    connection.execute_batch(&format!("{UPDATE}; ALTER TABLE account ADD COLUMN balance")).unwrap();
    let error = before.diff(&engine.snapshot()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Sqlite, "a table with another definition is read");
}

#[test]
fn rows_of_tables_that_have_not_changed_are_not_read() {
    let before = bank("CREATE TABLE log (text TEXT)");
    assert_eq!(changes_by(&before, "INSERT INTO log VALUES ('a')").to_string(), "log\n  + rowid 1, text 'a'\n");
    assert_eq!(changes_by(&before, "PRAGMA user_version = 7").to_string(), "pragmas\n  ~ user_version 0 -> 7\n");
}

/// A row of several pages has its end on pages that have no key. It is known to which table they belong.
#[test]
fn tables_with_long_rows_that_move_or_get_other_keys_do_not_cause_others_to_be_read() {
    let note = "CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT); INSERT INTO note VALUES (1, printf('%.*c', 50000, 'x'))";
    let keyed = "CREATE TABLE note (id PRIMARY KEY, text TEXT) WITHOUT ROWID; INSERT INTO note VALUES (1, 'x')";
    for (is, becomes, updated) in [(note, note, 0), (keyed, note, 1), (note, keyed, 1)] {
        let before = bank(is);
        for at_another_root in ["", "CREATE TABLE other (a);"] {
            let changes = changes_by(&before, &format!("DROP TABLE note; {at_another_root} {becomes}; {UPDATE}"));
            assert_eq!(changes.table("account").unwrap().to_string(), UPDATED);
            assert_eq!(changes.table("note").map_or(0, |note| note.updated.len()), updated, "{changes}");
        }
    }
}

#[test]
fn rows_without_rowids_are_not_read_if_no_page_of_an_index_has_changed() {
    let script = format!(
        "CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT); INSERT INTO account VALUES (1, 'owner 1 of many');
         CREATE TABLE setting (name TEXT PRIMARY KEY, owner TEXT) WITHOUT ROWID;
         INSERT INTO setting {FILL} SELECT printf('setting %04d', i), 'a' FROM n"
    );
    let before = with_broken_page(&script, "setting 1500");
    assert_eq!(changes_by(&before, UPDATE).to_string(), UPDATED);
    let engine = before.new_engine();
    let connection = engine.connect().unwrap();
    assert!(can_not_be_read(&connection, "setting"));
    connection.execute("UPDATE setting SET owner = 'b' WHERE name = 'setting 0001'", []).unwrap();
    let error = before.diff(&engine.snapshot()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Sqlite, "it is read if its pages have changed");
}

/// The pages of the two tables are the same, and only the schema tells which table they belong to.
#[test]
fn tables_without_rowids_that_change_places_are_compared() {
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    let swap = "ALTER TABLE one RENAME TO kept; ALTER TABLE other RENAME TO one; ALTER TABLE kept RENAME TO other";
    let script = format!(
        "CREATE TABLE one (name TEXT PRIMARY KEY) WITHOUT ROWID; CREATE TABLE other (name TEXT PRIMARY KEY) WITHOUT ROWID;
         INSERT INTO one VALUES ('a'); INSERT INTO other VALUES ('b'); {swap}"
    );
    connection.execute_batch(&script).unwrap();
    let before = engine.snapshot();
    connection.execute_batch(swap).unwrap();
    let changes = before.diff(&engine.snapshot()).unwrap();
    assert_eq!(changes.to_string(), "one\n  - name 'b'\n  + name 'a'\nother\n  - name 'a'\n  + name 'b'\n");
}
