//! What the statements of a recording say of how code uses transactions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::log::Recorded;
use super::recorder::Dropped;
use super::sql::{SavepointCommand, opens_another_database, savepoint_of};
use super::statement::{Statement, StatementKind, counted};
use crate::content::origin::Purpose;

/// What is found of an engine.
#[derive(Default)]
pub(crate) struct Findings {
    /// Each fails the test.
    pub(crate) failures: Vec<String>,
    /// Each is printed only: the code may intend it.
    pub(crate) warnings: Vec<String>,
}

/// The tables that a statement reads and those that it writes to, also by views, triggers and foreign keys.
#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) read: BTreeSet<String>,
    pub(crate) written: BTreeSet<String>,
}

/// The statements of a transaction.
type Transaction<'a> = Vec<&'a Statement>;

/// For how long a transaction held the writer slot.
struct Held {
    at_least: Duration,
    at_most: Duration,
}

impl Held {
    /// `dropped` is when code dropped the transaction. A connection that is closed runs no statement for that.
    fn of(transaction: &Transaction<'_>, dropped: Option<Instant>) -> Option<Held> {
        let holders = transaction.iter().filter(|statement| statement.holds_slot());
        let first = holders.min_by_key(|statement| statement.ended_at())?; // one whose rows are read on may have begun before
        let ends = || transaction.iter().map(|statement| (statement.ended_at(), statement.holds_slot()));
        // A statement whose rows are read on may end after the COMMIT.
        let released = ends().filter(|(end, holds)| !holds && *end > first.ended_at()).min();
        let last = || dropped.map(|at| first.time_of(at)).max(ends().map(|(end, _)| end).max());
        let end = released.map(|(end, _)| end).or_else(last)?;
        let since_end = end.saturating_sub(first.ended_at());
        let since_wait = end.saturating_sub(first.began() + first.waited());
        let only_waits = first.kind() == StatementKind::Transaction; // BEGIN IMMEDIATE
        Some(match first.wait_is_exact() {
            true => Held { at_least: since_wait, at_most: since_wait },
            false if only_waits => Held { at_least: since_end, at_most: since_end },
            false => Held { at_least: since_end, at_most: since_wait },
        })
    }
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

/// What a transaction has changed and has neither committed nor rolled back to a savepoint.
struct Undecided<'a> {
    statements: Transaction<'a>,
    /// Whether there may be more: SQLite does not count what a trigger does instead of a statement on a view, or what a statement
    /// has done that then fails.
    may_have_more: bool,
}

/// Returns `None` if it was decided, or if that is not known.
fn undecided<'a>(transaction: &Transaction<'a>) -> Option<Undecided<'a>> {
    let wrote = |statement: &Statement| {
        statement.kind() == StatementKind::Write
            && statement.error().is_none()
            && (!statement.changes_rows() || statement.changes() > 0)
    };
    let mut undecided = Undecided { statements: Transaction::new(), may_have_more: true };
    // Open savepoints, and how many of these statements were before each.
    let mut savepoints: Vec<(String, usize)> = Vec::new();
    for statement in transaction {
        if wrote(statement) {
            undecided.statements.push(*statement);
        } else if statement.begins_with(&["COMMIT", "END"]) {
            return None; // also if it has failed: it was not forgotten
        } else if statement.kind() == StatementKind::Transaction && statement.error().is_none() {
            let Some((command, name)) = savepoint_of(statement.sql()) else { continue };
            let known = savepoints.iter().rposition(|(other, _)| other.eq_ignore_ascii_case(&name));
            match (command, known) {
                (SavepointCommand::Set, _) => savepoints.push((name, undecided.statements.len())),
                (SavepointCommand::Release, at) => savepoints.truncate(at.unwrap_or_default()),
                (SavepointCommand::RollBack, Some(at)) => {
                    undecided.statements.truncate(savepoints[at].1);
                    undecided.may_have_more = false;
                    savepoints.truncate(at + 1);
                }
                (SavepointCommand::RollBack, None) => return None, // its beginning is not known
            }
        }
    }
    Some(undecided)
}

fn transactions(recorded: &Recorded) -> BTreeMap<u64, Transaction<'_>> {
    let mut transactions = BTreeMap::new();
    for statement in &recorded.statements {
        if let Some(number) = statement.transaction() {
            transactions.entry(number).or_insert(Transaction::new()).push(statement);
        }
    }
    transactions
}

impl Findings {
    /// Adds the transactions that held the writer slot for longer than this.
    pub(crate) fn add_slow(&mut self, limit: Duration, recorded: &Recorded, dropped: &[Dropped]) {
        let dropped: BTreeMap<u64, Instant> =
            dropped.iter().filter_map(|dropped| Some((dropped.transaction?, dropped.at))).collect();
        for (number, transaction) in transactions(recorded) {
            let held = Held::of(&transaction, dropped.get(&number).copied());
            let Some(Held { at_least, at_most }) = held.filter(|held| held.at_most > limit) else { continue };
            let by = transaction[0].opened_by();
            if at_least > limit {
                self.failures.push(format!("{by} held the writer slot for {at_least:.1?}; the limit is {limit:?}"));
            } else {
                self.warnings.push(format!(
                    "{by} may have held the writer slot for up to {at_most:.1?}; the limit is {limit:?}, and how long it waited for \
                     the slot is not known"
                ));
            }
        }
    }

    /// Adds the transactions that were rolled back because code has dropped them. If the latest call of SQLite failed, the code has
    /// probably returned its error. `tables_of` returns the engine's tables that a statement uses, if SQLite can compile it.
    pub(crate) fn add_dropped(
        &mut self,
        dropped: &[Dropped],
        recorded: &Recorded,
        tables_of: impl Fn(&str) -> Option<Tables>,
    ) {
        // Of a temporary table, or one in an attached database, the engine knows nothing.
        let has_others = |connection| {
            let opens_one = |other: &Statement| other.connection() == connection && opens_another_database(other.sql());
            recorded.statements.iter().any(opens_one)
        };
        let is_elsewhere = |statement: &&Statement| match tables_of(statement.sql()) {
            Some(tables) => tables.written.is_empty(),
            None => has_others(statement.connection()),
        };
        let transactions = transactions(recorded);
        for dropped in dropped {
            let transaction = dropped.transaction.and_then(|number| transactions.get(&number));
            let Some((first, Undecided { statements, may_have_more })) =
                transaction.and_then(|transaction| Some((transaction.first()?, undecided(transaction)?)))
            else {
                continue;
            };
            let is_empty = statements.is_empty() && !(may_have_more && dropped.is_exact);
            if is_empty || (dropped.is_exact && !dropped.has_changed) {
                continue;
            }
            let (by, changed) = (first.opened_by(), changed(&statements));
            let finding = format!(
                "{by} was dropped without a commit or rollback, which rolled back {changed}: call commit or rollback"
            );
            let is_elsewhere = !statements.is_empty() && statements.iter().all(is_elsewhere);
            let is_in_doubt = dropped.has_failed || is_elsewhere;
            if is_in_doubt { self.warnings.push(finding) } else { self.failures.push(finding) }
        }
    }

    /// Adds each use of a connection in which statements outside of a transaction probably belong in one: the first case of
    /// each.
    pub(crate) fn add_outside_of_transactions(&mut self, recorded: &Recorded, tables_of: impl Fn(&str) -> Tables) {
        // A connection may be lent for one purpose after another.
        let mut uses: BTreeMap<(usize, Purpose), Vec<&Statement>> = BTreeMap::new();
        // What a SQL function runs is within the transaction of the statement that calls it.
        let is_of_data = |statement: &&Statement| {
            statement.kind() != StatementKind::Other && statement.error().is_none() && !statement.is_nested()
        };
        for statement in recorded.statements.iter().filter(is_of_data) {
            uses.entry((statement.connection(), statement.purpose())).or_default().push(statement);
        }
        self.warnings.extend(uses.values().filter_map(|statements| first_outside(statements, &tables_of)));
    }
}

fn first_outside(statements: &[&Statement], tables_of: impl Fn(&str) -> Tables) -> Option<String> {
    let is_outside =
        |statement: &Statement| statement.transaction().is_none() && statement.kind() != StatementKind::Transaction;
    let writes = |statement: &Statement| is_outside(statement) && statement.changes_rows();
    let by = || statements[0].opened_by(); // it may read symbols
    let in_row = statements.windows(2).find(|pair| pair.iter().all(|statement| writes(statement)));
    if let Some([one, other]) = in_row {
        return Some(format!(
            "{} wrote twice in a row outside of a transaction, each time with a commit of its own: `{}`, `{}`",
            by(),
            one.in_one_line(),
            other.in_one_line()
        ));
    }
    let mut read: Vec<(String, &Statement)> = Vec::new();
    for statement in statements.iter().filter(|statement| is_outside(statement)) {
        if statement.kind() == StatementKind::Read {
            read.extend(tables_of(statement.sql()).read.into_iter().map(|table| (table, *statement)));
        } else if writes(statement) {
            let written = tables_of(statement.sql()).written;
            if let Some((table, before)) = read.iter().find(|(table, _)| written.contains(table)) {
                return Some(format!(
                    "{} read `{table}` and then wrote to it outside of a transaction, so another connection could change it in \
                     between: `{}`, `{}`",
                    by(),
                    before.in_one_line(),
                    statement.in_one_line()
                ));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::statement::{Begun, DEFAULT_VALUE_LIMIT, Ended};
    use super::*;

    fn statement(sql: &str, changes: u64, error: Option<&str>) -> Statement {
        let begun = Begun::now(sql, None, sql.starts_with("SELECT"), Purpose::Uri, Some(1), DEFAULT_VALUE_LIMIT);
        let error = error.map(|message| (1, message.into()));
        Statement::alone(Arc::new(begun), Ended { changes, error, ..Ended::default() })
    }

    /// Of an engine in a file, only the statements say what a transaction has changed.
    #[test]
    fn a_transaction_changes_what_its_statements_change() {
        let is_found = |statements: &[Statement]| {
            undecided(&statements.iter().collect()).is_some_and(|undecided| !undecided.statements.is_empty())
        };
        let begin = || statement("BEGIN", 0, None);
        let insert = || statement("INSERT INTO t VALUES (1)", 1, None);
        assert!(is_found(&[begin(), insert()]));
        assert!(is_found(&[begin(), statement("CREATE TABLE t (a)", 0, None)]));
        assert!(is_found(&[begin(), insert(), statement("ROLLBACK TO a", 0, Some("no such savepoint: a"))]));
        for other in [
            statement("SELECT 1", 0, None),
            statement("INSERT INTO t SELECT 1 WHERE 0", 0, None),
            statement("INSERT INTO t VALUES (1)", 1, Some("UNIQUE constraint failed: t.a")),
        ] {
            assert!(!is_found(&[begin(), other]));
        }
        for end in [statement("COMMIT", 0, Some("database is locked")), statement("ROLLBACK TO a", 0, None)] {
            assert!(!is_found(&[begin(), insert(), end]));
        }
    }
    #[test]
    fn a_rollback_to_a_savepoint_undoes_what_is_after_it() {
        let left = |script: &str| {
            let changes = |sql: &str| u64::from(sql.starts_with("INSERT"));
            let statements: Vec<Statement> = script.split("; ").map(|sql| statement(sql, changes(sql), None)).collect();
            let left = undecided(&statements.iter().collect()).map(|undecided| undecided.statements);
            let left: Vec<&str> = left.iter().flatten().map(|left| left.sql()).collect();
            left.join(" ").replace("INSERT ", "")
        };
        for (script, expected) in [
            ("INSERT 1; SAVEPOINT a; INSERT 2; ROLLBACK TO a; INSERT 3", "1 3"),
            ("INSERT 1; SAVEPOINT a; INSERT 2; RELEASE a; INSERT 3", "1 2 3"),
            ("SAVEPOINT a; INSERT 1; SAVEPOINT \"b c\"; INSERT 2; ROLLBACK TRANSACTION TO SAVEPOINT A; INSERT 3", "3"),
            ("SAVEPOINT a; INSERT 1; SAVEPOINT a; INSERT 2; ROLLBACK TO a; ROLLBACK TO a", "1"),
            ("SAVEPOINT a; INSERT 1; SAVEPOINT a; INSERT 2; RELEASE SAVEPOINT a; ROLLBACK TO 'a'", ""),
            ("SAVEPOINT a; SAVEPOINT [b c]; INSERT 1; ROLLBACK TO [b c]; INSERT 2; ROLLBACK", "2"),
            ("INSERT 1; ROLLBACK TO unknown; INSERT 2", ""),
            ("INSERT 1; COMMIT TRANSACTION", ""),
        ] {
            assert_eq!(left(script), expected, "{script}");
        }
    }
}
