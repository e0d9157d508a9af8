//! What differs between two snapshots of a database: rows, the schema, and numbers in the header.
//!
//! * `changes`: the result, and how it is printed. `json`: the same as JSON.
//! * `compare`: compares two images, table by table.
//! * `rows`: reads rows through SQLite.
//!
//! This layer uses `vfs` and the layers below it. `content/difference` finds the rows that may differ by the pages that
//! differ. SQLite reads these rows, so this folder knows nothing of how values are stored.

mod changes;
mod compare;
#[cfg(feature = "json")]
mod json;
mod rows;

use std::sync::Arc;

#[cfg(feature = "report")]
pub(crate) use self::changes::Literal;
pub use self::changes::{Changes, Row, SchemaChange, SchemaObject, SettingChange, TableChanges, Update};
pub(crate) use self::compare::compare;
#[cfg(feature = "report")]
pub(crate) use self::compare::schema;
use crate::content::Snapshot;
use crate::error::Result;
use crate::vfs::Setup;

/// Changes, or the reason why they are not known.
pub(crate) type Differing = Arc<std::result::Result<Changes, String>>;

impl Snapshot {
    /// Returns what has changed from this snapshot to another one: rows, the schema, `user_version` and `application_id`.
    ///
    /// A dropped column changes no row. A renamed table or column counts as dropped and added, so rows with a value in the column
    /// are updated.
    ///
    /// The time depends on what has changed, not on the size of the database, because snapshots share unchanged pages. A table is
    /// compared as a whole if its definition has changed; tables WITHOUT ROWID also if one of them or an index has changed. All
    /// tables are compared as a whole if a part of a row larger than a page was overwritten, if the page size or the text encoding
    /// has changed, if tables have moved to other pages (`VACUUM`), or if the snapshots share no pages.
    ///
    /// ```
    /// # use rusqlite_fixtures::{Result, Template};
    /// static BANK: Template =
    ///     Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)")
    ///         .seed("INSERT INTO account VALUES (1, 100), (2, 50)");
    ///
    /// # fn main() -> Result<()> {
    /// let bank = BANK.new_engine()?;
    /// let script = "UPDATE account SET balance = 70 WHERE id = 1;
    ///     DELETE FROM account WHERE id = 2";
    /// bank.try_transaction(|work| work.execute_batch(script))?;
    /// let changes = BANK.snapshot()?.diff(&bank.snapshot())?;
    /// assert_eq!(
    ///     changes.to_string(),
    ///     "account\n  ~ id 1: balance 100 -> 70\n  - id 2, balance 50\n"
    /// );
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Sqlite`](crate::ErrorKind::Sqlite) if SQLite can't read a table, for example because its definition needs a function
    /// or a collation that only the application has: see [`Engine::changes`](crate::Engine::changes). Also if SQLite can't open
    /// a connection, for example without memory.
    pub fn diff(&self, after: &Snapshot) -> Result<Changes> {
        compare(self, after, &Setup::DEFAULT)
    }
}

/// Two snapshots are equal if [`Snapshot::diff`] finds no changes, or if it fails and their bytes are equal. If `assert_eq!`
/// fails, it prints the changes.
///
/// ```should_panic
/// # use rusqlite_fixtures::Template;
/// static BANK: Template = Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY)");
/// let bank = BANK.new_engine().unwrap();
/// let insert = "INSERT INTO account VALUES (1)";
/// bank.try_transaction(|work| work.execute(insert, [])).unwrap();
/// assert_eq!(BANK.snapshot().unwrap(), bank.snapshot());
/// ```
impl PartialEq for Snapshot {
    fn eq(&self, other: &Snapshot) -> bool {
        match self.diff(other) {
            Ok(changes) if changes.is_empty() => true,
            Ok(changes) => {
                other.explain_next(changes.to_string());
                false
            }
            Err(_) => self.to_bytes() == other.to_bytes(),
        }
    }
}
