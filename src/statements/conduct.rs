//! What the statements of a recording say of how code uses transactions.

use std::collections::BTreeMap;
use std::time::Duration;

use super::log::Kept;
use super::recorder::Dropped;
use super::statement::{Statement, StatementKind, counted};

/// The statements of a transaction.
type Transaction<'a> = Vec<&'a Statement>;

/// Returns for how long a transaction held the writer slot, at least, if it had it.
fn held_slot(transaction: &Transaction<'_>) -> Option<Duration> {
    let first = transaction.iter().find(|statement| statement.holds_slot())?;
    let ends = || transaction.iter().map(|statement| (statement.ended_at(), statement.holds_slot()));
    // A statement whose rows are read on may end after the COMMIT.
    let released = ends().filter(|(end, holds)| !holds && *end > first.ended_at()).min();
    let (end, _) = released.or(ends().max())?;
    Some(end.saturating_sub(first.began() + first.waited()))
}

/// Returns the rows that a transaction has changed, for example "3 inserted rows, 1 deleted row".
fn changed(transaction: &Transaction<'_>) -> String {
    let kinds: [(&str, &[&str]); 4] = [
        ("inserted", &["INSERT", "REPLACE"]),
        ("updated", &["UPDATE"]),
        ("deleted", &["DELETE"]),
        ("changed", &["WITH"]),
    ];
    let mut parts = Vec::new();
    for (what, words) in kinds {
        let of_kind = transaction.iter().filter(|statement| statement.begins_with(words));
        let count: u64 = of_kind.map(|statement| statement.changes()).sum();
        if count > 0 {
            parts.push(counted(count, &format!("{what} row")));
        }
    }
    if parts.is_empty() { "what it had written".to_owned() } else { parts.join(", ") }
}

/// Returns whether a transaction has changed something, and was not committed. Returns `false` if
/// that is not known.
fn is_undecided(transaction: &Transaction<'_>) -> bool {
    let wrote = |statement: &&&Statement| {
        statement.kind() == StatementKind::Write
            && statement.error().is_none()
            && (!statement.changes_rows() || statement.changes() > 0)
    };
    let decides = |statement: &&Statement| {
        let goes_back_to_savepoint =
            statement.begins_with(&["ROLLBACK"]) && statement.sql().split_whitespace().nth(1).is_some();
        // A commit that has failed was not forgotten.
        statement.begins_with(&["COMMIT", "END"]) || statement.error().is_none() && goes_back_to_savepoint
    };
    transaction.iter().any(|statement| wrote(&statement)) && !transaction.iter().any(decides)
}

fn transactions(kept: &Kept) -> BTreeMap<u64, Transaction<'_>> {
    let mut transactions = BTreeMap::new();
    for statement in &kept.statements {
        if let Some(number) = statement.transaction() {
            transactions.entry(number).or_insert(Transaction::new()).push(statement);
        }
    }
    transactions
}

/// Returns a sentence for each transaction that held the writer slot for longer than this.
pub(crate) fn held_longer_than(limit: Duration, kept: &Kept) -> Vec<String> {
    let sentence = |transaction: &Transaction<'_>| {
        let held = held_slot(transaction).filter(|held| *held > limit)?;
        let by = transaction.first()?.opened_by();
        Some(format!("{by} held the writer slot for {held:.1?}, more than {limit:?}"))
    };
    transactions(kept).values().filter_map(sentence).collect()
}

/// Returns a sentence for each transaction that was rolled back because code has dropped it.
pub(crate) fn dropped(dropped: &[Dropped], kept: &Kept) -> Vec<String> {
    let transactions = transactions(kept);
    let sentence = |dropped: &Dropped| {
        let transaction = transactions.get(&dropped.transaction?).filter(|transaction| is_undecided(transaction))?;
        let (by, changed) = (transaction.first()?.opened_by(), changed(transaction));
        Some(format!("{by} was dropped in its transaction, which rolled back {changed}: call commit or rollback"))
    };
    dropped.iter().filter_map(sentence).collect()
}

/// Returns a sentence for each use of a connection in which statements outside of a transaction probably belong in one: the
/// first case of each. `tables_of` returns the tables that a statement uses.
pub(crate) fn outside_of_transactions(kept: &Kept, tables_of: impl Fn(&str) -> Vec<String>) -> Vec<String> {
    // A connection may be lent for one purpose after another.
    let mut uses: BTreeMap<(usize, String), Vec<&Statement>> = BTreeMap::new();
    let of_data = |statement: &&Statement| {
        matches!(statement.kind(), StatementKind::Read | StatementKind::Write | StatementKind::Transaction)
    };
    for statement in kept.statements.iter().filter(of_data).filter(|statement| statement.error().is_none()) {
        uses.entry((statement.connection(), statement.opened_by())).or_default().push(statement);
    }
    uses.values().filter_map(|statements| first_outside(statements, &tables_of)).collect()
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
                    "{by} has read `{table}` and then written to it, outside of a transaction, so another connection can change it \
                     between the two statements: `{}`, `{}`",
                    before.in_one_line(),
                    statement.in_one_line()
                ));
            }
        }
    }
    None
}
