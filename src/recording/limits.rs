use std::panic::Location;

use super::Statements;
use crate::engine::Engine;
use crate::statements::Statement;

/// Limits for the statements that run on one engine: for [`Template::watch`](crate::Template::watch).
///
/// ```
/// # use rusqlite_fixtures::{Limits, Template};
/// static SHOP: Template =
///     Template::sql("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)")
///         .watch(Limits::new().repeats(3).full_scans(1000));
///
/// let shop = SHOP.new_engine()?;
/// shop.unwatched(|| {
///     let insert = |work: &mut rusqlite_fixtures::UnitOfWork| {
///         (0..5).try_for_each(|id| {
///             work.execute("INSERT INTO item VALUES (?1, 'tea')", [id]).map(drop)
///         })
///     };
///     shop.try_transaction(insert) // the test's own data
/// })?;
/// drop(shop); // here the limits are checked
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "limits have an effect only if they are given to `Template::watch`"]
pub struct Limits {
    statements: Option<u64>,
    repeats: Option<u64>,
    full_scans: Option<u64>,
    except: &'static [&'static str],
}

impl Limits {
    /// Creates limits that allow everything.
    pub const fn new() -> Limits {
        Limits { statements: None, repeats: None, full_scans: None, except: &[] }
    }

    /// Sets the maximum number of reads and writes.
    pub const fn statements(mut self, at_most: u64) -> Limits {
        self.statements = Some(at_most);
        self
    }

    /// Sets how often one statement may run. Statements that differ only in their values count as one
    /// ([`Statements::repeats`]).
    pub const fn repeats(mut self, at_most: u64) -> Limits {
        self.repeats = Some(at_most);
        self
    }

    /// Sets how many rows one statement may pass in full scans ([`Statements::full_scans`]).
    pub const fn full_scans(mut self, of_rows: u64) -> Limits {
        self.full_scans = Some(of_rows);
        self
    }

    /// Exempts statements whose SQL contains one of these texts. Upper and lower case differ. A later call replaces the texts.
    pub const fn except(mut self, sql: &'static [&'static str]) -> Limits {
        self.except = sql;
        self
    }

    /// Checks the statements of the engine when its last handle is dropped.
    pub(crate) fn watch(self, engine: &Engine, at: &'static Location<'static>) {
        engine.watch(move |name, copy, kept| {
            let watched = self.watched(Statements::of(name, copy, kept));
            let limits = format!("the limits of Template::watch at {at}");
            let unended = || self.full_scans.and_then(|_| watched.unended());
            let unknown = watched.incomplete().or_else(unended);
            let unknown = unknown.map(|cause| format!("{limits} can't be checked: {cause}"));
            let broken = self.broken_by(&watched);
            let broken = (!broken.is_empty()).then(|| format!("{limits} are exceeded: {}", broken.join("\n")));
            match (unknown, broken) {
                (Some(unknown), Some(broken)) => Some(format!("{broken}\n{unknown}")),
                (unknown, broken) => unknown.or(broken),
            }
        });
    }

    /// Returns the statements that are not exempt. They are incomplete if older ones are needed that are only counted.
    fn watched(&self, all: Statements) -> Statements {
        let is_exempt = |statement: &Statement| self.except.iter().any(|sql| statement.sql().contains(sql));
        if !self.except.is_empty() {
            all.matching(|statement| !is_exempt(statement))
        } else if self.repeats.is_some() || self.full_scans.is_some() {
            all.as_list()
        } else {
            all
        }
    }

    /// Returns a message for each limit that is exceeded.
    fn broken_by(&self, watched: &Statements) -> Vec<String> {
        let count = self.statements.and_then(|limit| watched.above(limit));
        let repeats = self.repeats.and_then(|limit| watched.repeated(limit));
        let full_scans = self.full_scans.and_then(|limit| watched.scanned(limit));
        [count, repeats, full_scans].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_set_one_by_one() {
        let limits = Limits::new().statements(1).repeats(2).full_scans(3).except(&["a"]);
        assert_eq!(limits, Limits { statements: Some(1), repeats: Some(2), full_scans: Some(3), except: &["a"] });
        assert_eq!(Limits::new(), Limits::default());
    }
}
