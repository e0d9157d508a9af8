//! Open connections never read stale content, whatever is committed, restored and reset in the meantime.
//!
//! A connection keeps its pages while the change counter is what it last saw, and its schema while the schema cookie is.
//! If either ever repeated with other content, the connections would differ from the model.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use proptest::prelude::*;
use rusqlite_fixtures::rusqlite::{self, Connection};
use rusqlite_fixtures::{Engine, Snapshot};

use crate::support::{assert_integrity, engine_with_entries, entries, number};

/// The content of a database: tables of keys and values.
type Model = BTreeMap<u8, BTreeMap<i64, i64>>;

#[derive(Clone, Debug)]
enum Step {
    Insert { connection: usize, table: u8, value: i64 },
    Update { connection: usize, table: u8, value: i64 },
    CreateTable { connection: usize, table: u8, columns: &'static str },
    DropTable { connection: usize, table: u8 },
    Vacuum { connection: usize },
    Reopen { connection: usize },
    Snapshot,
    Restore { snapshot: usize },
    Reset,
}

const CONNECTIONS: usize = 3;
const TABLES: u8 = 2;

fn step() -> impl Strategy<Value = Step> {
    let (connection, table, value) = (0..CONNECTIONS, 0..TABLES, 0..4i64);
    // The same two columns in two orders, so that two different schemas can look the same to a query.
    let columns = prop_oneof![Just("key INTEGER PRIMARY KEY, value"), Just("value, key INTEGER PRIMARY KEY")];
    prop_oneof![
        4 => (connection.clone(), table.clone(), value.clone())
            .prop_map(|(connection, table, value)| Step::Insert { connection, table, value }),
        4 => (connection.clone(), table.clone(), value)
            .prop_map(|(connection, table, value)| Step::Update { connection, table, value }),
        3 => (connection.clone(), table.clone(), columns)
            .prop_map(|(connection, table, columns)| Step::CreateTable { connection, table, columns }),
        2 => (connection.clone(), table).prop_map(|(connection, table)| Step::DropTable { connection, table }),
        1 => connection.clone().prop_map(|connection| Step::Vacuum { connection }),
        1 => connection.prop_map(|connection| Step::Reopen { connection }),
        2 => Just(Step::Snapshot),
        3 => (0..4usize).prop_map(|snapshot| Step::Restore { snapshot }),
        3 => Just(Step::Reset),
    ]
}

struct World {
    engine: Engine,
    connections: Vec<Connection>,
    now: Model,
    baseline: Model,
    snapshots: Vec<(Snapshot, Model)>,
}

impl World {
    /// Creates a database with a table, or an empty one.
    fn new(empty: bool) -> World {
        let mut world = World::on(Engine::new(), Model::new());
        if empty {
            return world;
        }
        world.carry_out(&Step::CreateTable { connection: 0, table: 0, columns: "key INTEGER PRIMARY KEY, value" });
        world.carry_out(&Step::Insert { connection: 0, table: 0, value: 0 });
        World::on(world.engine.fork(), world.now)
    }

    fn on(engine: Engine, now: Model) -> World {
        let connections = (0..CONNECTIONS).map(|number| open(&engine, number)).collect();
        World { engine, connections, baseline: now.clone(), now, snapshots: vec![snapshot_of_another_engine()] }
    }

    fn carry_out(&mut self, step: &Step) {
        match *step {
            Step::Insert { connection, table, value } => {
                if let Some(rows) = self.now.get_mut(&table) {
                    let key = rows.keys().max().map_or(1, |last| last + 1);
                    rows.insert(key, value);
                    let sql = format!("INSERT INTO t{table} (value) VALUES (?1)");
                    self.connections[connection].prepare_cached(&sql).unwrap().execute([value]).unwrap();
                }
            }
            Step::Update { connection, table, value } => {
                if let Some(rows) = self.now.get_mut(&table) {
                    rows.values_mut().for_each(|old| *old = value);
                    let sql = format!("UPDATE t{table} SET value = ?1");
                    self.connections[connection].prepare_cached(&sql).unwrap().execute([value]).unwrap();
                }
            }
            Step::CreateTable { connection, table, columns } => {
                if let Entry::Vacant(entry) = self.now.entry(table) {
                    entry.insert(BTreeMap::new());
                    self.execute(connection, &format!("CREATE TABLE t{table} ({columns})"));
                }
            }
            Step::DropTable { connection, table } => {
                if self.now.remove(&table).is_some() {
                    self.execute(connection, &format!("DROP TABLE t{table}"));
                }
            }
            Step::Vacuum { connection } => self.execute(connection, "VACUUM"),
            Step::Reopen { connection } => self.connections[connection] = open(&self.engine, connection),
            Step::Snapshot => self.snapshots.push((self.engine.snapshot(), self.now.clone())),
            Step::Restore { snapshot } => {
                if let Some((snapshot, model)) = self.snapshots.get(snapshot) {
                    self.engine.restore(snapshot).unwrap();
                    self.now = model.clone();
                }
            }
            Step::Reset => {
                self.engine.reset().unwrap();
                self.now = self.baseline.clone();
            }
        }
    }

    fn execute(&self, connection: usize, sql: &str) {
        self.connections[connection].execute_batch(sql).unwrap();
    }

    /// Checks that each connection sees what the model holds.
    fn check(&self) -> Result<(), TestCaseError> {
        for (number, connection) in self.connections.iter().enumerate() {
            prop_assert_eq!(&seen_by(connection).unwrap(), &self.now, "connection {}", number);
        }
        Ok(())
    }
}

/// Returns a snapshot with a change counter and a schema cookie unrelated to those of the engine that it is restored on.
fn snapshot_of_another_engine() -> (Snapshot, Model) {
    let engine = Engine::new();
    engine.connect().unwrap().execute_batch("CREATE TABLE t1 (value, key INTEGER PRIMARY KEY)").unwrap();
    (engine.snapshot(), Model::from([(1, BTreeMap::new())]))
}

/// Opens the connection of this number: the first by URI, the others by the engine.
fn open(engine: &Engine, number: usize) -> Connection {
    if number == 0 { Connection::open(engine.uri()).unwrap() } else { engine.connect().unwrap() }
}

/// Reads by cached prepared statements, so that these are tested, too.
fn seen_by(connection: &Connection) -> rusqlite::Result<Model> {
    let mut model = Model::new();
    for table in 0..TABLES {
        let exists = "SELECT count(*) FROM sqlite_schema WHERE name = 't' || ?1";
        let exists: i64 = connection.prepare_cached(exists)?.query_row([table], |row| row.get(0))?;
        if exists == 1 {
            let mut select = connection.prepare_cached(&format!("SELECT key, value FROM t{table}"))?;
            let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            model.insert(table, rows.collect::<rusqlite::Result<_>>()?);
        }
    }
    Ok(model)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn open_connections_see_the_current_content(empty: bool, steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new(empty);
        for step in &steps {
            world.carry_out(step);
            world.check()?;
        }
        assert_integrity(&world.connections[0]);
    }

    /// The same if only some of the connections read in between, so that the others' page caches are older.
    #[test]
    fn idle_connections_see_the_current_content(empty: bool, steps in prop::collection::vec((step(), 0..=CONNECTIONS), 1..40)) {
        let mut world = World::new(empty);
        for (step, reader) in &steps {
            world.carry_out(step);
            if let Some(connection) = world.connections.get(*reader) {
                prop_assert_eq!(&seen_by(connection).unwrap(), &world.now);
            }
        }
        world.check()?;
    }
}

/// The prototype of this crate failed here: commit, reset, commit other content of the same size.
#[test]
fn an_idle_connection_does_not_read_the_commit_before_a_reset() {
    let engine = engine_with_entries(&[(1, 0)]).fork();
    let (idle, writer) = (engine.connect().unwrap(), engine.connect().unwrap());
    for value in [1, 2, 3] {
        writer.execute("UPDATE entry SET value = ?1", [value]).unwrap();
        assert_eq!(entries(&idle), [(1, value)]);
        engine.reset().unwrap();
    }
    assert_eq!(entries(&idle), [(1, 0)]);
}

#[test]
fn an_idle_connection_does_not_use_the_schema_before_a_reset() {
    let engine = engine_with_entries(&[(1, 5)]).fork();
    let idle = engine.connect().unwrap();
    for (alter, query) in [
        ("ALTER TABLE entry ADD COLUMN first INTEGER DEFAULT 1", "SELECT first FROM entry"),
        ("ALTER TABLE entry ADD COLUMN second INTEGER DEFAULT 2", "SELECT second FROM entry"),
    ] {
        engine.try_transaction(|work| work.execute_batch(alter)).unwrap();
        assert!(number(&idle, query) > 0);
        engine.reset().unwrap();
        assert!(idle.query_row(query, [], |row| row.get::<_, i64>(0)).is_err());
    }
}

#[test]
fn a_new_engine_is_empty_again_after_a_reset() {
    let engine = Engine::new();
    let idle = engine.connect().unwrap();
    for page_size in [512, 4096, 65536] {
        let writer = engine.connect().unwrap();
        writer
            .execute_batch(&format!("PRAGMA page_size = {page_size}; CREATE TABLE t (a); INSERT INTO t VALUES (1)"))
            .unwrap();
        assert_eq!(number(&idle, "SELECT count(*) FROM t"), 1);
        assert_eq!(number(&idle, "PRAGMA page_size"), page_size);
        engine.reset().unwrap();
        assert_eq!(number(&idle, "SELECT count(*) FROM sqlite_schema"), 0);
        assert_eq!(engine.snapshot().size(), 0);
    }
}

#[test]
fn a_schema_cookie_that_is_decreased_does_not_restore_an_old_schema() {
    let engine = engine_with_entries(&[(1, 5)]);
    let idle = engine.connect().unwrap();
    let version = number(&idle, "PRAGMA schema_version");
    let writer = engine.connect().unwrap();
    writer.execute_batch("ALTER TABLE entry RENAME COLUMN value TO amount").unwrap();
    assert_eq!(number(&idle, "SELECT amount FROM entry"), 5);
    writer.execute_batch("ALTER TABLE entry RENAME COLUMN amount TO total").unwrap();
    writer.execute_batch(&format!("PRAGMA schema_version = {}", version + 1)).unwrap();
    assert_eq!(number(&idle, "SELECT total FROM entry"), 5);
    assert!(idle.query_row("SELECT amount FROM entry", [], |row| row.get::<_, i64>(0)).is_err());
}

#[test]
fn the_change_counter_may_wrap_around() {
    let mut bytes = engine_with_entries(&[(1, 0)]).snapshot().to_bytes();
    for at in [24, 92] {
        bytes[at..at + 4].copy_from_slice(&(u32::MAX - 2).to_be_bytes());
    }
    let engine = Snapshot::from_bytes(bytes).unwrap().new_engine();
    let (idle, writer) = (engine.connect().unwrap(), engine.connect().unwrap());
    for value in 1..=8 {
        writer.execute("UPDATE entry SET value = ?1", [value]).unwrap();
        assert_eq!(entries(&idle), [(1, value)]);
        if value % 2 == 0 {
            engine.reset().unwrap();
            assert_eq!(entries(&idle), [(1, 0)]);
        }
    }
}

/// Empty databases have a schema cookie of zero. A database with tables and this cookie could be mistaken for an empty
/// one, and an empty one for it.
#[test]
fn a_schema_with_a_cookie_of_zero_is_not_mistaken_for_an_empty_one() {
    let mut bytes = engine_with_entries(&[(1, 0)]).snapshot().to_bytes();
    bytes[40..44].fill(0);
    let engine = Snapshot::from_bytes(bytes).unwrap().new_engine();
    let idle = engine.connect().unwrap();
    assert_eq!(entries(&idle), [(1, 0)]);
    engine.restore(&Engine::new().snapshot()).unwrap();
    let error = idle.query_row("SELECT * FROM entry", [], |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("no such table"), "{error}");
}

/// A connection that commits twice within one read increments its own numbers, not those that its first commit was given.
/// Here its own number of the second commit is the number that its first commit was given.
#[test]
fn commits_within_one_read_are_distinguished() {
    let engine = Engine::new();
    let (first, other) = (engine.connect().unwrap(), engine.connect().unwrap());
    first.execute_batch("CREATE TABLE a (x)").unwrap();
    engine.reset().unwrap(); // to an empty database, which has no header with numbers to increment
    let writer = engine.connect().unwrap();
    let unfinished = "SELECT n.column1 FROM (VALUES (1), (2)) AS n LEFT JOIN sqlite_schema ON name = n.column1";
    let mut statement = writer.prepare(unfinished).unwrap();
    let mut reading = statement.query([]).unwrap();
    reading.next().unwrap();
    for (own, given, table) in [(1, 2, "b"), (2, 3, "c"), (3, 4, "d")] {
        writer.execute_batch(&format!("CREATE TABLE {table} (x)")).unwrap();
        assert_eq!(number(&other, &format!("SELECT count(*) FROM {table}")), 0);
        assert_eq!((number(&writer, SCHEMA_VERSION), number(&other, SCHEMA_VERSION)), (own, given));
        writer.execute_batch(&format!("INSERT INTO {table} VALUES (1)")).unwrap();
        assert_eq!(number(&other, &format!("SELECT count(*) FROM {table}")), 1);
        assert_eq!(
            number(&other, SCHEMA_VERSION),
            given,
            "a new row needs no new schema cookie, although the two numbers differ"
        );
    }
    drop(reading);
    assert_integrity(&other);
}

const SCHEMA_VERSION: &str = "PRAGMA schema_version";

/// A new one would have each connection read the schema again.
#[test]
fn a_restore_keeps_the_schema_cookie_where_the_schema_is_the_same() {
    let engine = engine_with_entries(&[(1, 1)]);
    let before = engine.snapshot();
    let connection = engine.connect().unwrap();
    let cookie = || number(&connection, "PRAGMA schema_version");
    let cookie_before = cookie();
    connection.execute("INSERT INTO entry VALUES (2, 2)", []).unwrap();
    engine.restore(&before).unwrap();
    assert_eq!(cookie(), cookie_before);
    connection.execute("CREATE TABLE other (id)", []).unwrap();
    engine.restore(&before).unwrap();
    assert_ne!(cookie(), cookie_before);
}

/// A new cookie would have each connection read the schema again.
#[test]
fn a_commit_of_rows_keeps_the_schema_cookie_that_another_connection_has_written() {
    let engine = engine_with_entries(&[(1, 1)]);
    let [one, other] = [(); 2].map(|()| engine.connect().unwrap());
    let cookie = || number(&other, "PRAGMA schema_version");
    one.execute("INSERT INTO entry VALUES (2, 2)", []).unwrap();
    other.execute_batch("CREATE TABLE other (id)").unwrap();
    let written = cookie();
    one.execute("INSERT INTO entry VALUES (3, 3)", []).unwrap();
    assert_eq!(cookie(), written);
}
