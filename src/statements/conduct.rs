//! What the statements of a recording say of how code uses transactions.

use std::collections::BTreeMap;
use std::time::Duration;

use super::log::Kept;
use super::recorder::Dropped;
use super::statement::{Statement, StatementKind, counted};

/// A transaction that was recorded.
struct Transaction<'a> {
    statements: Vec<&'a Statement>,
}

impl Transaction<'_> {
    /// Returns for how long it held the writer slot, at least, if it had it.
    fn held_slot(&self) -> Option<Duration> {
        let takes = |statement: &&&Statement| match statement.kind() {
            StatementKind::Write => true,
            StatementKind::Transaction => ["IMMEDIATE", "EXCLUSIVE"]
                .iter()
                .any(|word| statement.sql().to_ascii_uppercase().split_whitespace().nth(1) == Some(word)),
            _ => false,
        };
        let first = self.statements.iter().find(takes)?;
        let end = self.statements.iter().map(|statement| ended(statement)).max()?;
        Some(end.saturating_sub(first.began() + first.waited()))
    }

    /// Returns the rows that it has changed, for example "3 inserted rows and 1 deleted row".
    fn changed(&self) -> String {
        let mut counts = [("inserted", 0), ("updated", 0), ("deleted", 0)];
        for statement in &self.statements {
            let word = statement.sql().split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
            let which = match &*word {
                "INSERT" | "REPLACE" => 0,
                "UPDATE" => 1,
                "DELETE" => 2,
                _ => continue,
            };
            counts[which].1 += statement.changes();
        }
        let parts: Vec<String> = counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(what, count)| counted(*count, &format!("{what} row")))
            .collect();
        if parts.is_empty() { "what it had written".to_owned() } else { parts.join(" and ") }
    }
}

fn ended(statement: &Statement) -> Duration {
    statement.began() + statement.duration().unwrap_or_default()
}

fn transactions(kept: &Kept) -> BTreeMap<u64, Transaction<'_>> {
    let mut transactions = BTreeMap::new();
    for statement in &kept.statements {
        if let Some(number) = statement.transaction() {
            let transaction = transactions.entry(number).or_insert(Transaction { statements: Vec::new() });
            transaction.statements.push(statement);
        }
    }
    transactions
}

/// Returns a sentence for each transaction that held the writer slot for longer than this.
pub(crate) fn held_longer_than(limit: Duration, kept: &Kept) -> Vec<String> {
    let sentence = |transaction: &Transaction<'_>| {
        let held = transaction.held_slot().filter(|held| *held > limit)?;
        let by = transaction.statements.first()?.opened_by();
        Some(format!("{by} held the writer slot for {held:.1?}, more than {limit:?}"))
    };
    transactions(kept).values().filter_map(sentence).collect()
}

/// Returns a sentence for each transaction that was rolled back because code has dropped it.
pub(crate) fn dropped(dropped: &[Dropped], kept: &Kept) -> Vec<String> {
    let transactions = transactions(kept);
    let sentence = |dropped: &Dropped| {
        let transaction = transactions.get(&dropped.transaction?)?;
        let has_written = transaction.statements.iter().any(|statement| statement.kind() == StatementKind::Write);
        let (purpose, changed) = (dropped.purpose, transaction.changed());
        let text = format!("{purpose} was dropped without a commit or a rollback, which has rolled back {changed}");
        has_written.then_some(text)
    };
    dropped.iter().filter_map(sentence).collect()
}

/// Returns a sentence for each connection on which statements outside of a transaction probably belong in one: the first case
/// on each. `tables_of` returns the tables that a statement uses.
pub(crate) fn outside_of_transactions(kept: &Kept, tables_of: impl Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut connections: BTreeMap<usize, Vec<&Statement>> = BTreeMap::new();
    let of_data = |statement: &&Statement| {
        matches!(statement.kind(), StatementKind::Read | StatementKind::Write | StatementKind::Transaction)
    };
    for statement in kept.statements.iter().filter(of_data).filter(|statement| statement.error().is_none()) {
        connections.entry(statement.connection()).or_default().push(statement);
    }
    connections.values().filter_map(|statements| first_outside(statements, &tables_of)).collect()
}

fn first_outside(statements: &[&Statement], tables_of: impl Fn(&str) -> Vec<String>) -> Option<String> {
    let is_outside =
        |statement: &Statement| statement.transaction().is_none() && statement.kind() != StatementKind::Transaction;
    let writes = |statement: &Statement| is_outside(statement) && statement.changes_rows();
    let by = statements.first()?.opened_by();
    let in_row = statements.windows(2).find(|pair| pair.iter().all(|statement| writes(statement)));
    if let Some([one, other]) = in_row {
        return Some(format!(
            "{by} has written several times in a row outside of a transaction, each time with a commit of its own: `{}`, `{}`",
            one.in_one_line(),
            other.in_one_line()
        ));
    }
    let mut read: Vec<(String, &Statement)> = Vec::new();
    for statement in statements.iter().filter(|statement| is_outside(statement)) {
        if statement.kind() == StatementKind::Read {
            read.extend(tables_of(statement.sql()).into_iter().map(|table| (table, *statement)));
        } else if writes(statement) {
            let tables = tables_of(statement.sql());
            if let Some((table, before)) = read.iter().find(|(table, _)| tables.contains(table)) {
                return Some(format!(
                    "{by} has read `{table}` and then written to it, outside of a transaction, so another one can change it in \
                     between: `{}`, `{}`",
                    before.in_one_line(),
                    statement.in_one_line()
                ));
            }
        }
    }
    None
}
