use std::cmp::Ordering;
use std::collections::BTreeMap;

use rusqlite::Connection;
use rusqlite::types::Value;

use super::changes::Row;

/// A table of one side, and how its rows are read.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) sql: String,
    /// Its root page.
    pub(super) root: u32,
    pub(super) has_rowid: bool,
    is_strict: bool,
    /// Whether its rows are shown. Those of the tables in which a virtual table keeps its index are not.
    pub(super) is_shown: bool,
}

/// The columns of a table.
pub(super) struct Columns {
    names: Vec<String>,
    /// The columns of the primary key, in its order.
    key: Vec<usize>,
    /// The name of the rowid, if the table has one and no column hides it.
    rowid: Option<&'static str>,
    declarations: Vec<Declaration>,
    /// Whether the table is STRICT.
    is_strict: bool,
}

/// What a table's SQL says of a column.
struct Declaration {
    kind: String,
    /// The SQL of its default value.
    default: Option<String>,
    is_generated: bool,
}

/// The columns that a table did not have before, with the values that they got in the rows that existed. `None`: SQLite
/// computes them from other columns.
pub(super) type Added = BTreeMap<String, Option<Value>>;

/// A row, and what identifies it.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) rowid: Option<i64>,
    /// The primary key, or the rowid, or else the whole row.
    pub(super) key: Row,
    pub(super) row: Row,
}

/// Returns the tables of a database, by name.
pub(super) fn tables(connection: &Connection) -> rusqlite::Result<Vec<Table>> {
    let sql = "SELECT list.name, schema.sql, schema.rootpage, NOT list.wr, list.strict, list.type
        FROM pragma_table_list AS list JOIN sqlite_schema AS schema USING (name)
        WHERE list.schema = 'main' AND schema.type = 'table' ORDER BY list.name";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| {
        let table = Table {
            name: row.get(0)?,
            sql: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
            root: row.get(2)?,
            has_rowid: row.get(3)?,
            is_strict: row.get(4)?,
            is_shown: true,
        };
        Ok((table, row.get::<_, String>(5)?))
    })?;
    let tables = rows.collect::<rusqlite::Result<Vec<(Table, String)>>>()?;
    let virtual_tables: Vec<String> =
        tables.iter().filter(|(_, kind)| kind == "virtual").map(|(table, _)| format!("{}_", table.name)).collect();
    let owner =
        |name: &str| virtual_tables.iter().filter(|owner| name.starts_with(&***owner)).max_by_key(|owner| owner.len());
    let is_content =
        |(table, kind): &(Table, String), owner: &str| kind == "shadow" && table.name == format!("{owner}content");
    let has_content = |owner: &str| tables.iter().any(|table| is_content(table, owner));
    let is_shown = |table: &Table, kind: &str| match kind {
        _ if table.name.starts_with("sqlite_") => false,
        "shadow" => {
            owner(&table.name).is_none_or(|owner| table.name == format!("{owner}content") || !has_content(owner))
        }
        _ => true,
    };
    let stored = tables.iter().filter(|(_, kind)| kind != "virtual");
    Ok(stored.map(|(table, kind)| Table { is_shown: is_shown(table, kind), ..table.clone() }).collect())
}

impl Columns {
    pub(super) fn of(connection: &Connection, table: &Table) -> rusqlite::Result<Columns> {
        let columns = |hidden: &str| -> rusqlite::Result<Columns> {
            let sql = format!(
                "SELECT name, pk, type, dflt_value, hidden IN (2, 3) FROM pragma_table_xinfo(?1)
                 WHERE hidden IN ({hidden}) ORDER BY cid"
            );
            let mut statement = connection.prepare(&sql)?;
            let rows = statement.query_map([&table.name], |row| {
                let named: (String, u32) = (row.get(0)?, row.get(1)?);
                Ok((named, Declaration { kind: row.get(2)?, default: row.get(3)?, is_generated: row.get(4)? }))
            })?;
            let (rows, declarations): (Vec<_>, Vec<_>) =
                rows.collect::<rusqlite::Result<Vec<_>>>()?.into_iter().unzip();
            let mut key: Vec<(u32, usize)> = rows.iter().enumerate().map(|(column, row)| (row.1, column)).collect();
            key.retain(|(place, _)| *place > 0);
            key.sort_unstable();
            let is_column = |name: &str| rows.iter().any(|row| row.0.eq_ignore_ascii_case(name));
            Ok(Columns {
                key: key.into_iter().map(|(_, column)| column).collect(),
                rowid: ["rowid", "_rowid_", "oid"].into_iter().find(|name| table.has_rowid && !is_column(name)),
                names: rows.into_iter().map(|row| row.0).collect(),
                declarations,
                is_strict: table.is_strict,
            })
        };
        let all = columns("0, 2, 3")?;
        // A generated column may need a function that only the application has.
        if connection.prepare(&all.select(table, "")).is_ok() { Ok(all) } else { columns("0") }
    }

    /// Returns the columns that the table did not have before.
    pub(super) fn added_to(&self, before: &Columns) -> Added {
        let is_new = |name: &str| !before.names.iter().any(|old| old.eq_ignore_ascii_case(name));
        let added = self.names.iter().zip(&self.declarations).filter(|(name, _)| is_new(name));
        let value = |Declaration { kind, default, is_generated }: &Declaration| {
            // After a default that is not constant, all rows were written again.
            let value = || default.as_deref().and_then(|sql| default_value(kind, sql, self.is_strict).ok());
            (!is_generated).then(|| value().unwrap_or(Value::Null))
        };
        added.map(|(name, its)| (name.clone(), value(its))).collect()
    }

    pub(super) fn can_select_rowid(&self) -> bool {
        self.rowid.is_some()
    }

    fn select(&self, table: &Table, condition: &str) -> String {
        let names: Vec<String> = self.names.iter().map(|name| quoted(name)).collect();
        let rowid = self.rowid.unwrap_or("NULL");
        format!("SELECT {rowid}, {} FROM main.{}{condition}", names.join(", "), quoted(&table.name))
    }

    /// Returns all rows.
    pub(super) fn read_all(&self, connection: &Connection, table: &Table) -> rusqlite::Result<Vec<Read>> {
        let mut statement = connection.prepare(&self.select(table, ""))?;
        statement.query_map([], |row| self.row(row))?.collect()
    }

    /// Returns the rows with these rowids that exist.
    pub(super) fn read(
        &self,
        connection: &Connection,
        table: &Table,
        rowids: impl IntoIterator<Item = i64>,
    ) -> rusqlite::Result<Vec<Read>> {
        let condition = format!(" WHERE {} = ?1", self.rowid.unwrap_or("NULL"));
        let mut statement = connection.prepare(&self.select(table, &condition))?;
        let mut found = Vec::new();
        for rowid in rowids {
            let mut rows = statement.query([rowid])?;
            while let Some(row) = rows.next()? {
                found.push(self.row(row)?);
            }
        }
        Ok(found)
    }

    fn row(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<Read> {
        let rowid: Option<i64> = row.get(0)?;
        let values =
            (1..=self.names.len()).map(|column| value(row, column)).collect::<rusqlite::Result<Vec<Value>>>()?;
        let named = |column: usize| (self.names[column].clone(), values[column].clone());
        let mut key: Vec<(String, Value)> = self.key.iter().map(|column| named(*column)).collect();
        // A primary key of a table with a rowid may have NULLs, and then it identifies no row.
        let identifies = !key.is_empty() && key.iter().all(|(_, value)| *value != Value::Null);
        let rowid_column = || Some((self.rowid?.to_owned(), Value::Integer(rowid?)));
        let mut columns: Vec<(String, Value)> = (0..self.names.len()).map(named).collect();
        if !identifies {
            key.extend(rowid_column());
            if self.key.is_empty() {
                columns.splice(0..0, rowid_column());
            }
        }
        if key.is_empty() {
            key.clone_from(&columns); // its columns hide the rowid
        }
        Ok(Read { rowid, key: Row(key), row: Row(columns) })
    }
}

/// Returns the value that a column of this type gets in rows that exist when it is added. SQLite converts it by the column's
/// affinity, in a STRICT table by the rules of that, and refuses a default that is not constant.
fn default_value(kind: &str, sql: &str, is_strict: bool) -> rusqlite::Result<Value> {
    let connection = Connection::open_in_memory()?;
    let options = if is_strict { "STRICT" } else { "" };
    connection.execute_batch(&format!("CREATE TABLE t (i INT) {options}; INSERT INTO t VALUES (0)"))?;
    let kind = if kind.is_empty() { String::new() } else { quoted(kind) }; // an empty name is a type, with another affinity
    let add = |sql: &str| connection.execute_batch(&format!("ALTER TABLE t ADD COLUMN c {kind} DEFAULT {sql}"));
    // SQLite's description of a column lacks the parentheses of an expression.
    add(sql).or_else(|_| add(&format!("({sql})")))?;
    connection.query_row("SELECT c FROM t", [], |row| value(row, 0))
}

/// Returns a value. Text that is not valid UTF-8 is returned as a blob.
fn value(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Value> {
    let value = row.get_ref(column)?;
    Ok(Value::try_from(value).unwrap_or_else(|_| Value::Blob(value.as_bytes().unwrap_or_default().to_vec())))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Compares two keys as SQLite sorts values, with the collation BINARY.
pub(super) fn order(one: &Row, other: &Row) -> Ordering {
    let mut by_value = one.0.iter().zip(&other.0).map(|((_, one), (_, other))| order_of_values(one, other));
    by_value.find(|order| order.is_ne()).unwrap_or_else(|| one.0.len().cmp(&other.0.len()))
}

fn order_of_values(one: &Value, other: &Value) -> Ordering {
    let class = |value: &Value| match value {
        Value::Null => 0,
        Value::Integer(_) | Value::Real(_) => 1,
        Value::Text(_) => 2,
        Value::Blob(_) => 3,
    };
    match (one, other) {
        (Value::Integer(one), Value::Integer(other)) => one.cmp(other),
        (Value::Real(one), Value::Real(other)) => one.total_cmp(other),
        (Value::Integer(one), Value::Real(other)) => (*one as f64).total_cmp(other).then(Ordering::Less),
        (Value::Real(one), Value::Integer(other)) => one.total_cmp(&(*other as f64)).then(Ordering::Greater),
        (Value::Text(one), Value::Text(other)) => one.cmp(other),
        (Value::Blob(one), Value::Blob(other)) => one.cmp(other),
        _ => class(one).cmp(&class(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_ordered_as_sqlite_sorts_them() {
        let text = |text: &str| Value::Text(text.to_owned());
        let ordered = [
            Value::Null,
            Value::Real(f64::NEG_INFINITY),
            Value::Integer(-3),
            Value::Real(-0.5),
            Value::Integer(0),
            Value::Real(0.5),
            Value::Integer(1),
            Value::Real(1.0),
            Value::Integer(2),
            text(""),
            text("A"),
            text("a"),
            Value::Blob(vec![]),
            Value::Blob(vec![0]),
            Value::Blob(vec![0, 1]),
        ];
        for (place, one) in ordered.iter().enumerate() {
            for (its_place, other) in ordered.iter().enumerate() {
                assert_eq!(order_of_values(one, other), place.cmp(&its_place), "{one:?} and {other:?}");
            }
        }
        let row = |values: &[i64]| Row(values.iter().map(|value| (String::new(), Value::Integer(*value))).collect());
        assert_eq!(order(&row(&[1, 2]), &row(&[1, 3])), Ordering::Less);
        assert_eq!(order(&row(&[2, 2]), &row(&[1, 3])), Ordering::Greater);
        assert_eq!(order(&row(&[1]), &row(&[1, 3])), Ordering::Less);
        assert_eq!(order(&row(&[1]), &row(&[1])), Ordering::Equal);
    }
}
