use std::fmt::{self, Write};

use rusqlite::types::Value;

use crate::statements::in_one_line_with_comments;

/// What differs between two snapshots ([`Snapshot::diff`](crate::Snapshot::diff)).
///
/// Its `Display` is sorted and stable, for example for the snapshots of `insta`. There, `+` is inserted, `-` deleted, and `~`
/// updated. Without changes it is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    pub(super) schema: Vec<SchemaChange>,
    pub(super) settings: Vec<SettingChange>,
    pub(super) tables: Vec<TableChanges>,
}

/// The changes of a table's rows.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TableChanges {
    /// The table.
    pub table: String,
    /// The rows that were inserted, in the order of their keys.
    pub inserted: Vec<Row>,
    /// The rows that were updated: those that have the same primary key, or rowid. They are in the order of their keys.
    pub updated: Vec<Update>,
    /// The rows that were deleted, in the order of their keys.
    pub deleted: Vec<Row>,
}

/// A row: its columns with their values.
#[derive(Clone, Debug, Default)]
pub struct Row(pub(super) Vec<(String, Value)>);

/// A row that was updated.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Update {
    /// The columns of the primary key, or the rowid.
    pub key: Row,
    /// The row before.
    pub before: Row,
    /// The row after.
    pub after: Row,
}

/// A change of the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SchemaChange {
    /// The object.
    pub object: SchemaObject,
    /// Its SQL before. `None`: it did not exist.
    pub before: Option<String>,
    /// Its SQL after. `None`: it does not exist any more.
    pub after: Option<String>,
}

/// A table, an index, a view or a trigger.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct SchemaObject {
    /// `table`, `index`, `view` or `trigger`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A change of a number in the header of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SettingChange {
    /// `user_version` or `application_id`.
    pub pragma: &'static str,
    /// The number before.
    pub before: i64,
    /// The number after.
    pub after: i64,
}

impl Changes {
    /// Returns whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.schema.is_empty() && self.settings.is_empty() && self.tables.is_empty()
    }

    /// Returns the number of lines of its `Display`.
    pub(crate) fn line_count(&self) -> usize {
        let titled = |count: usize| if count == 0 { 0 } else { count + 1 };
        let of_tables: usize = self.tables.iter().map(|table| titled(table.len())).sum();
        titled(self.schema.len()) + titled(self.settings.len()) + of_tables
    }

    /// Returns the tables whose rows have changed, by name.
    pub fn tables(&self) -> &[TableChanges] {
        &self.tables
    }

    /// Returns the changes of this table's rows, if there are any. The case of ASCII letters does not matter.
    pub fn table(&self, name: &str) -> Option<&TableChanges> {
        self.tables.iter().find(|table| table.table.eq_ignore_ascii_case(name))
    }

    /// Returns the changes of the schema, by kind and name.
    pub fn schema(&self) -> &[SchemaChange] {
        &self.schema
    }

    /// Returns the changes of `user_version` and `application_id`.
    pub fn settings(&self) -> &[SettingChange] {
        &self.settings
    }
}

impl TableChanges {
    /// Returns the number of rows that have changed.
    pub(crate) fn len(&self) -> usize {
        self.inserted.len() + self.updated.len() + self.deleted.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Row {
    /// Returns the value of a column. The case of ASCII letters does not matter.
    pub fn get(&self, column: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(column)).map(|(_, value)| value)
    }

    /// Returns the columns with their values, in the table's order. A rowid that is no column is the first, as `rowid` (or
    /// `_rowid_` or `oid`, if a column has that name).
    pub fn columns(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }
}

/// Two values are equal if they have the same type and the same bits. So -0.0 and 0.0 differ, and 1 and 1.0.
impl PartialEq for Row {
    fn eq(&self, other: &Row) -> bool {
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).all(|(one, other)| one.0 == other.0 && same(&one.1, &other.1))
    }
}

pub(super) fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Real(one), Value::Real(other)) => one.to_bits() == other.to_bits(),
        _ => one == other,
    }
}

impl Update {
    /// Returns the columns whose values differ, with the values before and after. A column that the table had only before, or
    /// has only after, is NULL on the other side.
    pub fn columns(&self) -> impl Iterator<Item = (&str, &Value, &Value)> {
        let is_new = |name: &str| self.before.get(name).is_none();
        let old =
            self.before.columns().map(|(name, before)| (name, before, self.after.get(name).unwrap_or(&Value::Null)));
        let new =
            self.after.columns().filter(move |(name, _)| is_new(name)).map(|(name, after)| (name, &Value::Null, after));
        old.chain(new).filter(|(_, before, after)| !same(before, after))
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.schema.is_empty() {
            f.write_str("schema\n")?;
            self.schema.iter().try_for_each(|change| writeln!(f, "  {change}"))?;
        }
        if !self.settings.is_empty() {
            f.write_str("pragmas\n")?;
            for SettingChange { pragma, before, after } in &self.settings {
                writeln!(f, "  ~ {pragma} {before} -> {after}")?;
            }
        }
        self.tables.iter().try_for_each(|table| table.fmt(f))
    }
}

/// The rows in the order in which they were updated, deleted and inserted, each by key.
impl fmt::Display for TableChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", Escaped(&self.table))?;
        self.updated.iter().try_for_each(|update| writeln!(f, "  ~ {update}"))?;
        self.deleted.iter().try_for_each(|row| writeln!(f, "  - {row}"))?;
        self.inserted.iter().try_for_each(|row| writeln!(f, "  + {row}"))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (name, value)) in self.0.iter().enumerate() {
            f.write_str(if number == 0 { "" } else { ", " })?;
            write!(f, "{} {}", Escaped(name), Literal(value))?;
        }
        Ok(())
    }
}

impl fmt::Display for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.key)?;
        for (number, (name, before, after)) in self.columns().enumerate() {
            f.write_str(if number == 0 { "" } else { "," })?;
            write!(f, " {} {} -> {}", Escaped(name), Literal(before), Literal(after))?;
        }
        Ok(())
    }
}

impl fmt::Display for SchemaChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SchemaObject { kind, name } = &self.object;
        let sql =
            |sql: &Option<String>| Escaped(&in_one_line_with_comments(sql.as_deref().unwrap_or_default())).to_string();
        let name = Escaped(name);
        match (&self.before, &self.after) {
            (Some(_), Some(_)) => write!(f, "~ {kind} {name}: {} -> {}", sql(&self.before), sql(&self.after)),
            (Some(_), None) => write!(f, "- {kind} {name}: {}", sql(&self.before)),
            (None, _) => write!(f, "+ {kind} {name}: {}", sql(&self.after)),
        }
    }
}

/// A name or SQL in one line: control characters are escaped.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| escape(character, f))
    }
}

fn escape(character: char, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if character.is_control() { write!(f, "{}", character.escape_default()) } else { f.write_char(character) }
}

/// A value, printed like a literal of SQL: control characters are escaped, and a long value is cut.
pub(crate) struct Literal<'a>(pub(crate) &'a Value);

/// The characters of a text, and the bytes of a blob, that are printed.
const MAX_PRINTED: usize = 200;

impl fmt::Display for Literal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => f.write_str("NULL"),
            Value::Integer(number) => number.fmt(f),
            Value::Real(number) => write!(f, "{number:?}"),
            Value::Text(text) => {
                f.write_char('\'')?;
                for character in text.chars().take(MAX_PRINTED) {
                    match character {
                        '\'' => f.write_str("''")?,
                        character => escape(character, f)?,
                    }
                }
                f.write_char('\'')?;
                match text.chars().count() {
                    count if count > MAX_PRINTED => write!(f, "… ({count} characters)"),
                    _ => Ok(()),
                }
            }
            Value::Blob(bytes) => {
                f.write_str("x'")?;
                bytes.iter().take(MAX_PRINTED).try_for_each(|byte| write!(f, "{byte:02x}"))?;
                f.write_char('\'')?;
                match bytes.len() {
                    len if len > MAX_PRINTED => write!(f, "… ({len} bytes)"),
                    _ => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_equal_by_names_types_and_bits() {
        let row = |columns: &[(&str, Value)]| {
            Row(columns.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
        };
        let one = row(&[("a", Value::Integer(1)), ("b", Value::Real(0.0))]);
        assert_eq!(one, one.clone());
        for other in [
            row(&[("a", Value::Integer(1))]),
            row(&[("a", Value::Integer(1)), ("b", Value::Real(0.0)), ("c", Value::Null)]),
            row(&[("a", Value::Integer(1)), ("c", Value::Real(0.0))]),
            row(&[("a", Value::Integer(1)), ("b", Value::Real(-0.0))]),
            row(&[("a", Value::Real(1.0)), ("b", Value::Real(0.0))]),
        ] {
            assert_ne!(one, other);
            assert_ne!(other, one);
        }
        let not_a_number = row(&[("a", Value::Real(f64::NAN))]);
        assert_eq!(not_a_number, not_a_number.clone());
    }
}
