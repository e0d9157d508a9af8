//! The code under test: how rows are written and read.

use std::collections::BTreeMap;
use std::fmt::Debug;

use rusqlite::{Connection, Result};

/// The code under test: how rows with a key are written and read, for example by a repository.
///
/// The model's predictions hold for code that neither commits nor rolls back; it may set savepoints. Keys and values must not
/// violate any constraint but the key's. SQLite and `Ord` must agree on which keys are equal.
pub trait Rows {
    /// The key of a row.
    type Key: Clone + Debug + Ord;
    /// The rest of a row.
    type Value: Clone + Debug + PartialEq;

    /// Whether `insert`, `update` and `delete` all begin with a statement that writes. If this is `false`, the harness
    /// takes the writer slot by `BEGIN IMMEDIATE` before it calls them. So what they read is not stale when they write.
    const WRITES_FIRST: bool = false;

    /// Whether SQLite writes no page for a statement that changes no row: its key exists already, or does not exist, or its
    /// value is the same. With a trigger, an index or another table, SQLite may write one. `false` is always correct. With
    /// `true`, the model knows that a commit of such statements makes no reader stale, and accepts nothing else.
    const UNCHANGED_IS_UNWRITTEN: bool = false;

    /// Inserts a row.
    ///
    /// # Errors
    /// A constraint violation, if the key exists already; when SQLite fails.
    fn insert(&self, connection: &Connection, key: &Self::Key, value: &Self::Value) -> Result<()>;

    /// Updates the value of the row with this key, and returns whether the row exists.
    ///
    /// # Errors
    /// When SQLite fails.
    fn update(&self, connection: &Connection, key: &Self::Key, value: &Self::Value) -> Result<bool>;

    /// Deletes the row with this key, and returns whether it existed.
    ///
    /// # Errors
    /// When SQLite fails.
    fn delete(&self, connection: &Connection, key: &Self::Key) -> Result<bool>;

    /// Returns all rows.
    ///
    /// # Errors
    /// When SQLite fails.
    fn read(&self, connection: &Connection) -> Result<BTreeMap<Self::Key, Self::Value>>;
}

/// A table of two integer columns, one of them an `INTEGER PRIMARY KEY`, without indexes and triggers.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    name: &'static str,
    key: &'static str,
    value: &'static str,
}

impl Table {
    /// Returns the table with this name and these columns.
    pub const fn new(name: &'static str, key: &'static str, value: &'static str) -> Table {
        Table { name, key, value }
    }
}

/// Uses cached prepared statements, so that they are tested too.
impl Rows for Table {
    type Key = i64;
    type Value = i64;

    const WRITES_FIRST: bool = true;
    const UNCHANGED_IS_UNWRITTEN: bool = true;

    fn insert(&self, connection: &Connection, key: &i64, value: &i64) -> Result<()> {
        let Table { name, key: key_column, value: value_column } = self;
        let sql = format!(r#"INSERT INTO "{name}" ("{key_column}", "{value_column}") VALUES (?1, ?2)"#);
        connection.prepare_cached(&sql)?.execute([key, value]).map(drop)
    }

    fn update(&self, connection: &Connection, key: &i64, value: &i64) -> Result<bool> {
        let Table { name, key: key_column, value: value_column } = self;
        let sql = format!(r#"UPDATE "{name}" SET "{value_column}" = ?2 WHERE "{key_column}" = ?1"#);
        Ok(connection.prepare_cached(&sql)?.execute([key, value])? > 0)
    }

    fn delete(&self, connection: &Connection, key: &i64) -> Result<bool> {
        let sql = format!(r#"DELETE FROM "{}" WHERE "{}" = ?1"#, self.name, self.key);
        Ok(connection.prepare_cached(&sql)?.execute([key])? > 0)
    }

    fn read(&self, connection: &Connection) -> Result<BTreeMap<i64, i64>> {
        let sql = format!(r#"SELECT "{}", "{}" FROM "{}""#, self.key, self.value, self.name);
        let mut select = connection.prepare_cached(&sql)?;
        select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }
}
