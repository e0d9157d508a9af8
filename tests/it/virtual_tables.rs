//! What virtual tables keep in memory of one test is not what the next test sees.

use rusqlite::functions::FunctionFlags;
use rusqlite_fixtures::rusqlite::{self, Connection};
use rusqlite_fixtures::{Engine, Template};

use crate::support::number;

const SCHEMA: &str = "
    CREATE VIRTUAL TABLE note USING fts5 (text);
    INSERT INTO note VALUES ('a b'), ('a a a'), ('b')";

/// FTS5 keeps its rank function in memory, with a version number that detects whether it is stale.
fn rank_by(connection: &Connection, weight: u32) {
    connection.execute("INSERT INTO note (note, rank) VALUES ('rank', ?1)", [format!("bm25({weight})")]).unwrap();
}

fn rank(connection: &Connection) -> f64 {
    let sql = "SELECT rank FROM note WHERE note MATCH 'a' ORDER BY rank LIMIT 1";
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn rank_in_new(engine: &Engine) -> f64 {
    rank(&engine.connect().unwrap())
}

#[test]
fn a_setting_that_is_rolled_back_does_not_stay() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("virtual-rolled-back");
    let engine = TEMPLATE.new_engine().unwrap();
    let work = engine.unit_of_work().unwrap();
    rank_by(&work, 100);
    let other = rank(&work);
    drop(work);
    assert_ne!(rank_in_new(&engine), other);
    assert_eq!(rank(&engine.unit_of_work().unwrap()), rank_in_new(&engine));
}

/// The counterpart: each connection of the template has this setting, so it does not prevent reuse.
#[test]
fn a_setting_of_on_connect_stays() {
    static TEMPLATE: Template = Template::sql(SCHEMA)
        .on_connect(|connection| {
            if number(connection, "SELECT count(*) FROM sqlite_schema") > 0 {
                rank_by(connection, 100); // not before the schema is built
            }
            Ok(())
        })
        .key("virtual-on-connect");
    let engine = TEMPLATE.new_engine().unwrap();
    let work = engine.unit_of_work().unwrap();
    work.create_scalar_function("is_marked", 0, FunctionFlags::SQLITE_UTF8, |_| Ok(true)).unwrap();
    let first = rank(&work);
    drop(work);
    let work = engine.unit_of_work().unwrap();
    assert!(work.query_row("SELECT is_marked()", [], |row| row.get::<_, bool>(0)).is_ok(), "it is not the same one");
    assert_eq!(rank(&work), first);
}

#[test]
fn a_setting_that_another_connection_has_read_does_not_stay() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("virtual-read");
    for restores in [false, true] {
        let used = TEMPLATE.new_engine().unwrap();
        let (setting, reading) = (used.connect().unwrap(), used.pooled_connection().unwrap());
        rank_by(&setting, 100);
        assert_eq!(rank(&reading), rank(&setting));
        drop((setting, reading));
        let engine = if restores {
            used.reset().unwrap();
            used
        } else {
            drop(used);
            TEMPLATE.new_engine().unwrap()
        };
        assert_eq!(rank(&engine.pooled_connection().unwrap()), rank_in_new(&engine));
        rank_by(&engine.connect().unwrap(), 7);
        assert_eq!(rank(&engine.pooled_connection().unwrap()), rank_in_new(&engine), "the number is the same again");
    }
}
