//! What differs, table by table.

use maud::{Markup, html};
use rusqlite::types::Value;

use crate::difference::{Changes, Literal, Row, TableChanges, Update};

/// The number of rows of each table that are shown.
const ROWS: usize = 200;

pub(super) fn section(title: &str, changes: &Result<Changes, String>) -> Markup {
    html! {
        h3 { (title) }
        @match changes {
            Err(cause) => p class="error" { (cause) },
            Ok(changes) if changes.is_empty() => p { "Nothing." },
            Ok(changes) => {
                @for change in changes.schema() {
                    pre class={ "change " (class(change.before.is_some(), change.after.is_some())) } { (change) }
                }
                @for change in changes.settings() {
                    pre class="change updated" { "~ " (change.pragma) " " (change.before) " → " (change.after) }
                }
                @for table in changes.tables() { (of_table(table)) }
            }
        }
    }
}

fn class(was: bool, is: bool) -> &'static str {
    match (was, is) {
        (true, true) => "updated",
        (true, false) => "deleted",
        _ => "inserted",
    }
}

fn of_table(table: &TableChanges) -> Markup {
    let columns = columns(table);
    let counts =
        [(table.inserted.len(), "inserted"), (table.updated.len(), "updated"), (table.deleted.len(), "deleted")];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let total = table.len();
    let updated = table.updated.iter().map(|update| updated(update, &columns));
    let deleted = table.deleted.iter().map(|row| whole("deleted", "−", row, &columns));
    let inserted = table.inserted.iter().map(|row| whole("inserted", "+", row, &columns));
    html! {
        h4 { (table.table) " " small { (counts.join(", ")) } }
        div class="scroll" tabindex="0" role="region" aria-label={ "changes of " (table.table) } {
            table {
                thead { tr { th scope="col" { span class="visually-hidden" { "change" } } @for column in &columns { th scope="col" { (column) } } } }
                tbody { @for row in updated.chain(deleted).chain(inserted).take(ROWS) { (row) } }
            }
        }
        @if total > ROWS { p class="note" { "… and " (total - ROWS) " more rows." } }
    }
}

/// Returns the columns of all rows, in their order.
fn columns(table: &TableChanges) -> Vec<&str> {
    let updated = table.updated.iter().flat_map(|update| [&update.before, &update.after]);
    let rows = table.deleted.iter().chain(updated).chain(&table.inserted);
    let mut columns: Vec<&str> = Vec::new();
    for (column, _) in rows.flat_map(Row::columns) {
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    columns
}

fn whole(class: &str, sign: &str, row: &Row, columns: &[&str]) -> Markup {
    html! {
        tr class=(class) {
            th scope="row" aria-label=(class) { (sign) }
            @for column in columns { td { @if let Some(value) = row.get(column) { (shown(value)) } } }
        }
    }
}

fn updated(update: &Update, columns: &[&str]) -> Markup {
    let differing: Vec<(&str, &Value, &Value)> = update.columns().collect();
    html! {
        tr class="updated" {
            th scope="row" aria-label="updated" { "~" }
            @for column in columns {
                @match differing.iter().find(|(name, ..)| name == column) {
                    Some((_, before, after)) => td class="changed" { del { (shown(before)) } " " ins { (shown(after)) } },
                    None => td { @if let Some(value) = update.after.get(column) { (shown(value)) } },
                }
            }
        }
    }
}

fn shown(value: &Value) -> String {
    Literal(value).to_string()
}
