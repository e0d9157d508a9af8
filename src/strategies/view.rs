//! What a transaction of the model sees: a map, and a stack of maps for savepoints.

use super::operation::{RowStatement, TABLES};
use super::outcome::{Content, Outcome};

/// What a transaction sees, and what its savepoints go back to.
#[derive(Clone, Debug)]
pub(super) struct View<K, V> {
    pub(super) content: Content<K, V>,
    pub(super) savepoints: Vec<Content<K, V>>,
}

impl<K: Clone + Ord, V: Clone + PartialEq> View<K, V> {
    pub(super) fn of(content: Content<K, V>) -> View<K, V> {
        View { content, savepoints: Vec::new() }
    }

    /// Sets the content of a transaction that reads for the first time, and of its savepoints.
    pub(super) fn see(&mut self, content: &Content<K, V>) {
        self.content.clone_from(content);
        self.savepoints.fill(content.clone());
    }

    pub(super) fn apply(&mut self, statement: &RowStatement<K, V>) -> Outcome<K, V> {
        let Content { rows, tables } = &mut self.content;
        let exists = match statement {
            RowStatement::Read => return Outcome::Read(self.content.clone()),
            RowStatement::Insert { key, .. } if rows.contains_key(key) => return Outcome::Exists,
            RowStatement::Insert { key, value } => rows.insert(key.clone(), value.clone()).is_none(),
            RowStatement::Update { key, value } => rows.get_mut(key).map(|old| old.clone_from(value)).is_some(),
            RowStatement::Delete { key } => rows.remove(key).is_some(),
            RowStatement::CreateTable { table, .. } if tables.contains_key(&(table % TABLES)) => {
                return Outcome::Exists;
            }
            RowStatement::CreateTable { table, value, .. } => tables.insert(table % TABLES, *value).is_none(),
            RowStatement::DropTable { table } => tables.remove(&(table % TABLES)).is_some(),
            RowStatement::Savepoint | RowStatement::RollbackTo { .. } | RowStatement::Release { .. } => {
                return self.apply_to_savepoints(statement);
            }
        };
        if exists { Outcome::Done } else { Outcome::Missing }
    }

    fn apply_to_savepoints(&mut self, statement: &RowStatement<K, V>) -> Outcome<K, V> {
        let depth = self.savepoints.len();
        match statement {
            RowStatement::RollbackTo { .. } | RowStatement::Release { .. } if depth == 0 => {
                return Outcome::NoSavepoint;
            }
            RowStatement::RollbackTo { savepoint } => {
                self.savepoints.truncate(savepoint % depth + 1);
                self.content.clone_from(&self.savepoints[savepoint % depth]);
            }
            RowStatement::Release { savepoint } => self.savepoints.truncate(savepoint % depth),
            _ => self.savepoints.push(self.content.clone()),
        }
        Outcome::Done
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_rollback_to_a_savepoint_removes_later_savepoints() {
        let [set, back_to] = [RowStatement::Savepoint, RowStatement::RollbackTo { savepoint: 0 }];
        let mut view = View::of(Content { rows: BTreeMap::from([(1u8, 0u8)]), tables: BTreeMap::new() });
        let change = RowStatement::Update { key: 1, value: 5 };
        for statement in [set.clone(), change, set, back_to] {
            assert_eq!(view.apply(&statement), Outcome::Done);
        }
        assert_eq!(view.savepoints.len(), 1);
        assert_eq!(view.apply(&RowStatement::RollbackTo { savepoint: 1 }), Outcome::Done);
        assert_eq!(view.content.rows[&1], 0, "only the first savepoint is left");
    }
}
