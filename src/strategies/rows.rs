//! How rows are written and read: the part that users give.

use std::collections::BTreeMap;
use std::fmt::Debug;

use rusqlite::{Connection, Result};

/// The code under test: how rows with a key are written and read, by a repository for example.
///
/// What is predicted holds for code that neither commits nor rolls back by itself, though it may set savepoints. Keys and
/// values are such that no constraint but the key's is violated, and keys are equal to SQLite exactly when they are to `Ord`.
pub trait Rows {
    /// What tells rows apart.
    type Key: Clone + Debug + Ord;
    /// What else is in a row.
    type Value: Clone + Debug + PartialEq;

    /// Whether each of `insert`, `update` and `delete` begins with a statement that writes. Where it is not said to, the
    /// writer slot is taken before they are called, by `BEGIN IMMEDIATE`: what they read first is then what they build on.
    const WRITES_FIRST: bool = false;

    /// `false` is always right. `true` says that SQLite writes no page for a statement that changes no row (its key is there
    /// already, or is not, or its value is the same), as it may where a trigger, an index or another table is involved; then
    /// the model knows whether a commit of nothing else makes readers out of date, and takes nothing else.
    const UNCHANGED_IS_UNWRITTEN: bool = false;

    /// Inserts a row.
    ///
    /// # Errors
    /// When the key is there already, and that is a constraint's error; and SQLite's own.
    fn insert(&self, connection: &Connection, key: &Self::Key, value: &Self::Value) -> Result<()>;

    /// Gives the row with this key another value; says whether there was one.
    ///
    /// # Errors
    /// SQLite's own.
    fn update(&self, connection: &Connection, key: &Self::Key, value: &Self::Value) -> Result<bool>;

    /// Deletes the row with this key; says whether there was one.
    ///
    /// # Errors
    /// SQLite's own.
    fn delete(&self, connection: &Connection, key: &Self::Key) -> Result<bool>;

    /// All rows.
    ///
    /// # Errors
    /// SQLite's own.
    fn read(&self, connection: &Connection) -> Result<BTreeMap<Self::Key, Self::Value>>;
}

/// A table with a column that is an `INTEGER PRIMARY KEY`, another of integers, and neither index nor trigger.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    name: &'static str,
    key: &'static str,
    value: &'static str,
}

impl Table {
    /// The table of this name, and its two columns.
    pub const fn new(name: &'static str, key: &'static str, value: &'static str) -> Table {
        Table { name, key, value }
    }
}

/// With statements that the connection keeps, so that what it keeps for them is put to the test too.
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
