use rusqlite::Connection;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::changes::{Changes, Row, SchemaChange, SchemaObject, SettingChange, TableChanges, Update, same};
use super::rows::{Added, Columns, Read, Table, order, tables};
use crate::content::Snapshot;
use crate::content::difference::Difference;
use crate::content::origin::Purpose;
use crate::error::{Error, Result};
use crate::faults;
use crate::vfs::{self, Mount, Name, Setup, trace};

/// One of the two databases.
struct Side {
    connection: Connection,
    tables: BTreeMap<String, Table>,
}

impl Side {
    fn open(snapshot: &Snapshot, setup: &Setup) -> Result<Side> {
        let connection = connect(snapshot, setup)?;
        let tables = tables(&connection).map_err(|cause| Error::not_compared("the schemas", cause))?;
        Ok(Side {
            tables: tables.into_iter().map(|table| (table.name.to_ascii_lowercase(), table)).collect(),
            connection,
        })
    }
}

/// Returns a connection to a copy in memory, which lives as long as the connection.
fn connect(snapshot: &Snapshot, setup: &Setup) -> Result<Connection> {
    vfs::register();
    let mount = Mount::in_surroundings(snapshot.clone(), Name::Numbered, setup.surroundings);
    let connection = vfs::connect(&vfs::uri(&mount), setup, Purpose::Comparison);
    connection.map_err(|cause| Error::open_connection(&mount.name(), cause))
}

/// Compares two snapshots by connections with this setup.
pub(crate) fn compare(before: &Snapshot, after: &Snapshot, setup: &Setup) -> Result<Changes> {
    if before.same_content(after) {
        return Ok(Changes::default());
    }
    // This is not the code under test.
    faults::exempt(|| trace::exempt(|| compare_contents(before, after, setup)))
}

fn compare_contents(before: &Snapshot, after: &Snapshot, setup: &Setup) -> Result<Changes> {
    let (one, other) = (Side::open(before, setup)?, Side::open(after, setup)?);
    let by_pages = changed_rows(before, after, &one, &other);
    let mut changed = Vec::new();
    for name in one.tables.keys().chain(other.tables.keys()).collect::<BTreeSet<_>>() {
        let pair = [one.tables.get(name), other.tables.get(name)];
        if !pair.into_iter().flatten().all(|table| table.is_shown) {
            continue;
        }
        let rows = match by_pages.get(name) {
            Some(rowids) if rowids.is_empty() => continue,
            rowids => rowids,
        };
        let table = compare_table(&one, &other, pair, rows)
            .map_err(|cause| Error::not_compared(&format!("the table `{name}`"), cause))?;
        changed.extend(Some(table).filter(|table| !table.is_empty()));
    }
    let failed = |cause| Error::not_compared("the schemas", cause);
    Ok(Changes {
        schema: schema_changes(&one, &other).map_err(failed)?,
        settings: setting_changes(&one, &other).map_err(failed)?,
        tables: changed,
    })
}

/// Returns the SQL of each object of the schema.
#[cfg(feature = "report")]
pub(crate) fn schema(snapshot: &Snapshot, setup: &Setup) -> Result<Vec<String>> {
    let read = || {
        let connection = connect(snapshot, setup)?;
        let sql = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY tbl_name, type DESC, name";
        let objects =
            || -> rusqlite::Result<Vec<String>> { connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect() };
        objects().map_err(|cause| Error::not_compared("the schemas", cause))
    };
    faults::exempt(|| trace::exempt(read))
}

/// Returns the rowids of the rows that may differ, for each table for which the pages tell them. For a table WITHOUT ROWID
/// whose pages are the same, these are none.
fn changed_rows(before: &Snapshot, after: &Snapshot, one: &Side, other: &Side) -> BTreeMap<String, BTreeSet<i64>> {
    let read = || {
        let mut difference = Difference::between(before, after)?;
        let mut changed = BTreeMap::new();
        for (name, table) in one.tables.iter().filter(|(_, table)| table.has_rowid) {
            match other.tables.get(name) {
                Some(its) if its.root == table.root && its.has_rowid => {
                    let rowids = difference.rowids(table.root)?;
                    if its.sql == table.sql {
                        changed.insert(name.clone(), rowids);
                    }
                }
                _ => difference.pass_over(0, table.root)?,
            }
        }
        for (name, table) in other.tables.iter().filter(|(_, table)| table.has_rowid) {
            if one.tables.get(name).is_none_or(|its| its.root != table.root || !its.has_rowid) {
                difference.pass_over(1, table.root)?;
            }
        }
        if difference.has_ends_of_rows()? {
            return None;
        }
        if !difference.has_index_pages() {
            let is_same = |name: &String, table: &Table| {
                other.tables.get(name).is_some_and(|its| its.root == table.root && its.sql == table.sql)
            };
            let same = one.tables.iter().filter(|(name, table)| !table.has_rowid && is_same(name, table));
            changed.extend(same.map(|(name, _)| (name.clone(), BTreeSet::new())));
        }
        Some(changed)
    };
    read().unwrap_or_default()
}

/// Compares the rows of a table that exists on one side or on both: those with these rowids, or all.
fn compare_table(
    one: &Side,
    other: &Side,
    pair: [Option<&Table>; 2],
    rowids: Option<&BTreeSet<i64>>,
) -> rusqlite::Result<TableChanges> {
    let read = |side: &Side, table: Option<&Table>| -> rusqlite::Result<(Option<Columns>, Vec<Read>)> {
        let Some(table) = table else { return Ok((None, Vec::new())) };
        let columns = Columns::of(&side.connection, table)?;
        let rows = match rowids {
            Some(rowids) if columns.can_select_rowid() => {
                columns.read(&side.connection, table, rowids.iter().copied())?
            }
            _ => columns.read_all(&side.connection, table)?,
        };
        Ok((Some(columns), sorted(rows)))
    };
    let ((old_columns, before), (columns, after)) = (read(one, pair[0])?, read(other, pair[1])?);
    let added = columns.zip(old_columns).map(|(columns, old)| columns.added_to(&old)).unwrap_or_default();
    let name = pair.into_iter().flatten().next_back().map_or(String::new(), |table| table.name.clone());
    let mut changes = TableChanges { table: name, inserted: Vec::new(), updated: Vec::new(), deleted: Vec::new() };
    let (mut before, mut after) = (before.into_iter().peekable(), after.into_iter().peekable());
    loop {
        let first = match (before.peek(), after.peek()) {
            (Some(before), Some(after)) => order(&before.key, &after.key),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return Ok(changes),
        };
        match first {
            Ordering::Less => changes.deleted.extend(before.next().map(|read| read.row)),
            Ordering::Greater => changes.inserted.extend(after.next().map(|read| read.row)),
            Ordering::Equal => {
                if let (Some(before), Some(after)) = (before.next(), after.next())
                    && differ(&before.row, &after.row, &added)
                {
                    changes.updated.push(Update { key: before.key, before: before.row, after: after.row });
                }
            }
        }
    }
}

fn sorted(mut rows: Vec<Read>) -> Vec<Read> {
    rows.sort_by(|one, other| order(&one.key, &other.key).then(one.rowid.cmp(&other.rowid)));
    rows
}

/// Returns whether a row was changed. A value that the row could not have before, such as that of a generated column that
/// was added, is no change.
fn differ(before: &Row, after: &Row, added: &Added) -> bool {
    let had = |name: &str| before.get(name).or_else(|| added.get(name)?.as_ref());
    after.columns().any(|(name, value)| had(name).is_some_and(|before| !same(before, value)))
}

fn schema_changes(one: &Side, other: &Side) -> rusqlite::Result<Vec<SchemaChange>> {
    let objects = |side: &Side| -> rusqlite::Result<BTreeMap<SchemaObject, String>> {
        let sql = r"SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite\_%' ESCAPE '\'";
        let mut statement = side.connection.prepare(sql)?;
        let rows = statement.query_map([], |row| {
            let object = SchemaObject { kind: row.get(0)?, name: row.get(1)? };
            Ok((object, row.get::<_, Option<String>>(2)?.unwrap_or_default()))
        })?;
        rows.filter(|row| row.as_ref().map_or(true, |(object, _)| !is_index_of_virtual_table(side, object))).collect()
    };
    let (before, after) = (objects(one)?, objects(other)?);
    let changes = before.keys().chain(after.keys()).collect::<BTreeSet<_>>().into_iter().map(|object| SchemaChange {
        object: object.clone(),
        before: before.get(object).cloned(),
        after: after.get(object).cloned(),
    });
    Ok(changes.filter(|change| change.before != change.after).collect())
}

/// Returns whether an object is a table in which a virtual table keeps its index, and not its content.
fn is_index_of_virtual_table(side: &Side, object: &SchemaObject) -> bool {
    object.kind == "table" && side.tables.get(&object.name.to_ascii_lowercase()).is_some_and(|table| !table.is_shown)
}

fn setting_changes(one: &Side, other: &Side) -> rusqlite::Result<Vec<SettingChange>> {
    let mut changes = Vec::new();
    for pragma in ["application_id", "user_version"] {
        let number = |side: &Side| side.connection.pragma_query_value(None, pragma, |row| row.get(0));
        let (before, after) = (number(one)?, number(other)?);
        if before != after {
            changes.push(SettingChange { pragma, before, after });
        }
    }
    Ok(changes)
}
