//! Changes as JSON.

use rusqlite::types::Value;
use serde::{Serialize, Serializer};
use serde_json::{Map, json};

use super::changes::{Changes, Row, SchemaChange, SettingChange, TableChanges, Update};

impl Changes {
    /// Returns the changes as JSON (with the feature `json`), for example
    /// `{"schema":[],"settings":[],"tables":[{"deleted":[],"inserted":[{"balance":30,"id":4}],"table":"account","updated":[]}]}`.
    /// Compare it as JSON, not as text: keys are in alphabetical order, but not if another crate turns on the feature
    /// `preserve_order` of serde_json. For other formats, the changes implement `Serialize` of serde, in the same form.
    ///
    /// An updated row has `key`, `before` and `after`; a change of the schema `kind`, `name`, `before` and `after`; one of
    /// `user_version` or `application_id` `pragma`, `before` and `after`. NULL is `null`. A blob is
    /// `{"blob":"00ff"}`, by hexadecimal digits. An infinite number, which JSON does not have, is `{"real":"inf"}` or
    /// `{"real":"-inf"}`.
    pub fn to_json(&self) -> String {
        changes(self).to_string()
    }
}

/// Implements `Serialize` for each type by the function that returns its JSON.
macro_rules! serialize {
    ($($type:ty: $json:ident),*) => {
        $(
            /// With the feature `json`, in the form of [`Changes::to_json`].
            impl Serialize for $type {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    $json(self).serialize(serializer)
                }
            }
        )*
    };
}

serialize!(Changes: changes, SchemaChange: schema, SettingChange: setting, TableChanges: table, Update: update, Row: row);

fn changes(changes: &Changes) -> serde_json::Value {
    json!({
        "schema": changes.schema().iter().map(schema).collect::<Vec<_>>(),
        "settings": changes.settings().iter().map(setting).collect::<Vec<_>>(),
        "tables": changes.tables().iter().map(table).collect::<Vec<_>>(),
    })
}

fn schema(change: &SchemaChange) -> serde_json::Value {
    let SchemaChange { object, before, after } = change;
    json!({ "kind": object.kind, "name": object.name, "before": before, "after": after })
}

fn setting(change: &SettingChange) -> serde_json::Value {
    json!({ "pragma": change.pragma, "before": change.before, "after": change.after })
}

fn table(changes: &TableChanges) -> serde_json::Value {
    let rows = |rows: &[Row]| rows.iter().map(row).collect::<Vec<_>>();
    json!({
        "table": changes.table,
        "inserted": rows(&changes.inserted),
        "updated": changes.updated.iter().map(update).collect::<Vec<_>>(),
        "deleted": rows(&changes.deleted),
    })
}

fn update(update: &Update) -> serde_json::Value {
    json!({ "key": row(&update.key), "before": row(&update.before), "after": row(&update.after) })
}

fn row(row: &Row) -> serde_json::Value {
    let columns: Map<String, serde_json::Value> =
        row.columns().map(|(name, column)| (name.to_owned(), value(column))).collect();
    serde_json::Value::Object(columns)
}

fn value(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Integer(number) => json!(number),
        Value::Real(number) if number.is_infinite() => json!({ "real": number.to_string() }),
        Value::Real(number) => json!(number),
        Value::Text(text) => json!(text),
        Value::Blob(bytes) => {
            json!({ "blob": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() })
        }
    }
}
