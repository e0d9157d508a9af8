//! What operations are to do: a plain map, and a stack of them for savepoints.

use std::collections::BTreeMap;

use super::operation::{AT_FIRST, ELSEWHERE, HANDS, Kind, Operation, Place, Statement, TABLES};

/// What came of an operation, as who carries it out sees it.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome<K, V> {
    /// It was carried out.
    Done,
    /// What was read.
    Read(Content<K, V>),
    /// A row or a table is there already.
    Exists,
    /// A row or a table is not there.
    Missing,
    /// Somebody else has the writer slot.
    Locked,
    /// What the transaction has read has been replaced since, so it can't write.
    Stale,
    /// There is no transaction.
    NoTransaction,
    /// There is a transaction, in which it is not allowed.
    InTransaction,
    /// There is no savepoint.
    NoSavepoint,
    /// The hand has nothing.
    Closed,
    /// An error that is none of these, which the model never predicts.
    Failed(String),
}

/// What a database holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Content<K, V> {
    /// The rows.
    pub rows: BTreeMap<K, V>,
    /// The harness's own tables, with what is in their row.
    pub tables: BTreeMap<usize, u8>,
}

/// All that an operation does that can be seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect<K, V> {
    /// What it came to.
    pub outcome: Outcome<K, V>,
    /// Whether it has replaced what was committed, be it by the same: who has read that can't write any more.
    pub replaced: bool,
}

/// What engines and hands are to do, all on one thread and without waiting.
///
/// Each operation is defined in each state.
#[derive(Clone, Debug)]
pub struct Model<K, V> {
    databases: Vec<Database<K, V>>,
    hands: [Option<Hand<K, V>>; HANDS],
    snapshots: Vec<Version<K, V>>,
    versions: usize,
    unchanged_is_unwritten: bool,
}

/// What was committed at one time. Two of the same content are two versions.
#[derive(Clone, Debug)]
struct Version<K, V> {
    number: usize,
    content: Content<K, V>,
}

#[derive(Clone, Debug)]
struct Database<K, V> {
    current: Version<K, V>,
    baseline: Version<K, V>,
    writer: Option<usize>,
}

#[derive(Clone, Debug)]
struct Hand<K, V> {
    engine: usize,
    is_unit_of_work: bool,
    transaction: Option<Transaction<K, V>>,
}

type Held<'a, K, V> = (&'a mut Hand<K, V>, &'a mut Database<K, V>);

#[derive(Clone, Debug)]
struct Transaction<K, V> {
    /// The number of the version that it has read, from its first look on.
    read: Option<usize>,
    view: View<K, V>,
    written: Written,
    begun_by_savepoint: bool,
}

/// Whether SQLite has written a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Written {
    Nothing,
    Perhaps,
    Something,
}

/// What a transaction sees, and what it goes back to.
#[derive(Clone, Debug)]
pub(super) struct View<K, V> {
    pub(super) content: Content<K, V>,
    savepoints: Vec<Content<K, V>>,
}

impl<K: Clone + Ord, V: Clone + PartialEq> View<K, V> {
    pub(super) fn of(content: Content<K, V>) -> View<K, V> {
        View { content, savepoints: Vec::new() }
    }

    /// What has not been looked at before turns out to be this.
    fn see(&mut self, content: &Content<K, V>) {
        self.content.clone_from(content);
        self.savepoints.fill(content.clone());
    }

    pub(super) fn apply(&mut self, statement: &Statement<K, V>) -> Outcome<K, V> {
        let Content { rows, tables } = &mut self.content;
        let is_there = match statement {
            Statement::Read => return Outcome::Read(self.content.clone()),
            Statement::Insert { key, .. } if rows.contains_key(key) => return Outcome::Exists,
            Statement::Insert { key, value } => rows.insert(key.clone(), value.clone()).is_none(),
            Statement::Update { key, value } => rows.get_mut(key).map(|old| old.clone_from(value)).is_some(),
            Statement::Delete { key } => rows.remove(key).is_some(),
            Statement::CreateTable { table, .. } if tables.contains_key(&(table % TABLES)) => return Outcome::Exists,
            Statement::CreateTable { table, value, .. } => tables.insert(table % TABLES, *value).is_none(),
            Statement::DropTable { table } => tables.remove(&(table % TABLES)).is_some(),
            Statement::Savepoint | Statement::RollbackTo { .. } | Statement::Release { .. } => {
                return self.go_by_savepoints(statement);
            }
        };
        if is_there { Outcome::Done } else { Outcome::Missing }
    }

    fn go_by_savepoints(&mut self, statement: &Statement<K, V>) -> Outcome<K, V> {
        let depth = self.savepoints.len();
        match statement {
            Statement::RollbackTo { .. } | Statement::Release { .. } if depth == 0 => return Outcome::NoSavepoint,
            Statement::RollbackTo { savepoint } => {
                self.savepoints.truncate(savepoint % depth + 1);
                self.content.clone_from(&self.savepoints[savepoint % depth]);
            }
            Statement::Release { savepoint } => self.savepoints.truncate(savepoint % depth),
            _ => self.savepoints.push(self.content.clone()),
        }
        Outcome::Done
    }
}

impl<K: Clone + Ord, V: Clone + PartialEq> Model<K, V> {
    /// One engine with these rows, and hands that have nothing.
    pub fn new(rows: BTreeMap<K, V>) -> Model<K, V> {
        let elsewhere = Content { rows: rows.clone(), tables: BTreeMap::from([ELSEWHERE]) };
        let current = Version { number: 0, content: Content { rows, tables: BTreeMap::new() } };
        Model {
            databases: vec![Database { baseline: current.clone(), current, writer: None }],
            hands: [const { None }; HANDS],
            snapshots: vec![Version { number: 1, content: elsewhere }],
            versions: 2,
            unchanged_is_unwritten: false,
        }
    }

    /// The same, for rows of which that is known: see [`Rows::UNCHANGED_IS_UNWRITTEN`](super::Rows::UNCHANGED_IS_UNWRITTEN).
    pub fn unchanged_is_unwritten(self, yes: bool) -> Model<K, V> {
        Model { unchanged_is_unwritten: yes, ..self }
    }

    /// What is committed in each of the engines.
    pub fn committed(&self) -> impl Iterator<Item = &Content<K, V>> {
        self.databases.iter().map(|database| &database.current.content)
    }

    /// What the operation is to do. Where a commit may or may not replace what was committed, it is what `replaced` says:
    /// what has been seen.
    pub fn apply(&mut self, operation: &Operation<K, V>, replaced: bool) -> Effect<K, V> {
        let engine = match operation.place() {
            Place::Engine(engine) => engine % self.databases.len(),
            Place::Hand(hand) => self.hands[hand % HANDS].as_ref().map_or(0, |hand| hand.engine),
        };
        let now = |model: &Self| model.databases[engine].current.number;
        let before = now(self);
        let outcome = self.outcome(operation, replaced);
        Effect { outcome, replaced: before != now(self) }
    }

    fn outcome(&mut self, operation: &Operation<K, V>, replaced: bool) -> Outcome<K, V> {
        if let Some(hand) = operation.needs_connection().filter(|hand| self.hands[hand % HANDS].is_none()) {
            self.open(hand % HANDS, 0, AT_FIRST[hand % HANDS]);
        }
        let databases = self.databases.len();
        match operation {
            Operation::Open { hand, engine, kind } => self.open(hand % HANDS, engine % databases, *kind),
            Operation::Do { hand, statement } => self.carry_out(hand % HANDS, statement, replaced),
            Operation::Begin { hand, immediate } => self.begin(hand % HANDS, *immediate),
            Operation::Commit { hand } => self.end(hand % HANDS, |model, hand| model.commit(hand, replaced)),
            Operation::Rollback { hand } => self.end(hand % HANDS, Model::rollback),
            Operation::Drop { hand } | Operation::Panic { hand } => self.close(hand % HANDS),
            Operation::Vacuum { hand } => self.vacuum(hand % HANDS),
            Operation::Snapshot { engine } => {
                self.snapshots.push(self.databases[engine % databases].current.clone());
                Outcome::Done
            }
            Operation::Restore { engine, snapshot } => {
                self.restore(engine % databases, self.snapshots[snapshot % self.snapshots.len()].clone())
            }
            Operation::Reset { engine } => {
                self.restore(engine % databases, self.databases[engine % databases].baseline.clone())
            }
            Operation::Fork { engine } => {
                let start = self.databases[engine % databases].current.clone();
                self.databases.push(Database { current: start.clone(), baseline: start, writer: None });
                Outcome::Done
            }
        }
    }

    fn open(&mut self, hand: usize, engine: usize, kind: Kind) -> Outcome<K, V> {
        self.close(hand);
        let is_unit_of_work = matches!(kind, Kind::UnitOfWork | Kind::Immediate);
        self.hands[hand] = Some(Hand { engine, is_unit_of_work, transaction: None });
        if !is_unit_of_work {
            return Outcome::Done;
        }
        let begun = self.begin(hand, kind == Kind::Immediate);
        if begun != Outcome::Done {
            self.hands[hand] = None;
        }
        begun
    }

    /// SQLite takes the slot before it finds that there is a transaction already, which has it from then on.
    fn begin(&mut self, hand: usize, immediate: bool) -> Outcome<K, V> {
        let Some((held, _)) = self.held(hand) else { return Outcome::Closed };
        let was_open = held.transaction.is_some();
        if !was_open {
            self.start(hand, false);
        }
        let slot = if immediate { self.take_slot(hand) } else { Ok(()) };
        match slot {
            Ok(()) if was_open => Outcome::InTransaction,
            Ok(()) => Outcome::Done,
            Err(refused) if was_open => refused,
            Err(refused) => self.refuse(hand, refused),
        }
    }

    fn start(&mut self, hand: usize, begun_by_savepoint: bool) {
        let nothing_yet = Content { rows: BTreeMap::new(), tables: BTreeMap::new() };
        let transaction =
            Transaction { read: None, view: View::of(nothing_yet), written: Written::Nothing, begun_by_savepoint };
        if let Some(hand) = &mut self.hands[hand] {
            hand.transaction = Some(transaction);
        }
    }

    /// A hand that has something, and its database.
    fn held(&mut self, hand: usize) -> Option<Held<'_, K, V>> {
        let held = self.hands[hand].as_mut()?;
        let database = &mut self.databases[held.engine];
        Some((held, database))
    }

    /// Its transaction, which has seen something from here on.
    fn look(&mut self, hand: usize) -> Option<&mut Transaction<K, V>> {
        let (held, database) = self.held(hand)?;
        let transaction = held.transaction.as_mut()?;
        if transaction.read.is_none() {
            transaction.read = Some(database.current.number);
            transaction.view.see(&database.current.content);
        }
        Some(transaction)
    }

    /// Who has read something older is refused whoever has the slot; who has read nothing has still read nothing then.
    fn take_slot(&mut self, hand: usize) -> Result<(), Outcome<K, V>> {
        let Some((held, database)) = self.held(hand) else { return Err(Outcome::Closed) };
        let read = held.transaction.as_ref().and_then(|transaction| transaction.read);
        if database.writer == Some(hand) {
            return Ok(());
        }
        if read.is_some_and(|read| read != database.current.number) {
            return Err(Outcome::Stale);
        }
        if database.writer.is_some() {
            return Err(Outcome::Locked);
        }
        database.writer = Some(hand);
        self.look(hand);
        Ok(())
    }

    fn carry_out(&mut self, hand: usize, statement: &Statement<K, V>, replaced: bool) -> Outcome<K, V> {
        let Some((held, _)) = self.held(hand) else { return Outcome::Closed };
        let is_by_itself = held.transaction.is_none();
        let begins = matches!(statement, Statement::Savepoint);
        if is_by_itself {
            self.start(hand, begins);
        }
        let outcome = self.within_transaction(hand, statement, replaced);
        match outcome {
            _ if begins || !is_by_itself => outcome,
            Outcome::Locked | Outcome::Stale | Outcome::NoSavepoint => self.refuse(hand, outcome),
            _ => {
                self.commit(hand, replaced);
                outcome
            }
        }
    }

    fn within_transaction(&mut self, hand: usize, statement: &Statement<K, V>, replaced: bool) -> Outcome<K, V> {
        match statement {
            Statement::Savepoint | Statement::RollbackTo { .. } => self.apply_to_view(hand, statement),
            Statement::Release { .. } => {
                let outcome = self.apply_to_view(hand, statement);
                let transaction = self.held(hand).and_then(|(held, _)| held.transaction.as_ref());
                if transaction.is_some_and(|it| it.begun_by_savepoint && it.view.savepoints.is_empty()) {
                    self.commit(hand, replaced);
                }
                outcome
            }
            Statement::Read => {
                self.look(hand);
                self.apply_to_view(hand, statement)
            }
            Statement::CreateTable { table, .. } if self.has_table(hand, *table) => Outcome::Exists,
            Statement::DropTable { table } if !self.has_table(hand, *table) => Outcome::Missing,
            _ => self.take_slot(hand).map_or_else(|refused| refused, |()| self.write(hand, statement)),
        }
    }

    fn apply_to_view(&mut self, hand: usize, statement: &Statement<K, V>) -> Outcome<K, V> {
        let transaction = self.held(hand).and_then(|(held, _)| held.transaction.as_mut());
        transaction.map_or(Outcome::NoTransaction, |transaction| transaction.view.apply(statement))
    }

    fn write(&mut self, hand: usize, statement: &Statement<K, V>) -> Outcome<K, V> {
        let unless_changed = if self.unchanged_is_unwritten { Written::Nothing } else { Written::Perhaps };
        let Some(transaction) = self.look(hand) else { return Outcome::NoTransaction };
        let before = transaction.view.content.clone();
        let outcome = transaction.view.apply(statement);
        let written = if transaction.view.content == before { unless_changed } else { Written::Something };
        transaction.written = transaction.written.max(written);
        outcome
    }

    /// SQLite finds that out when it compiles the statement, before it takes any lock.
    fn has_table(&mut self, hand: usize, table: usize) -> bool {
        let Some((held, database)) = self.held(hand) else { return false };
        let view = held.transaction.as_ref().filter(|transaction| transaction.read.is_some());
        let content = view.map_or(&database.current.content, |transaction| &transaction.view.content);
        content.tables.contains_key(&(table % TABLES))
    }

    fn vacuum(&mut self, hand: usize) -> Outcome<K, V> {
        let Some((held, database)) = self.held(hand) else { return Outcome::Closed };
        if held.transaction.is_some() {
            return Outcome::InTransaction;
        }
        if database.writer.is_some() {
            return Outcome::Locked;
        }
        let (engine, content) = (held.engine, database.current.content.clone());
        self.replace(engine, content);
        Outcome::Done
    }

    fn end(&mut self, hand: usize, end: impl FnOnce(&mut Self, usize)) -> Outcome<K, V> {
        let Some((held, _)) = self.held(hand) else { return Outcome::Closed };
        if held.transaction.is_none() {
            return Outcome::NoTransaction;
        }
        let is_over = held.is_unit_of_work;
        end(self, hand);
        if is_over {
            self.hands[hand] = None;
        }
        Outcome::Done
    }

    /// A transaction that has the slot but wrote no page replaces nothing. One that wrote a page, and went back to a
    /// savepoint before that, does.
    fn commit(&mut self, hand: usize, replaced: bool) {
        let Some((held, database)) = self.held(hand) else { return };
        let (engine, had_slot) = (held.engine, database.writer.take_if(|writer| *writer == hand).is_some());
        let Some(transaction) = held.transaction.take() else { return };
        let has_written = transaction.written == Written::Something;
        if had_slot && (has_written || transaction.written == Written::Perhaps && replaced) {
            self.replace(engine, transaction.view.content);
        }
    }

    fn rollback(&mut self, hand: usize) {
        if let Some((held, database)) = self.held(hand) {
            held.transaction = None;
            database.writer.take_if(|writer| *writer == hand);
        }
    }

    fn refuse(&mut self, hand: usize, refused: Outcome<K, V>) -> Outcome<K, V> {
        self.rollback(hand);
        refused
    }

    fn close(&mut self, hand: usize) -> Outcome<K, V> {
        self.rollback(hand);
        if self.hands[hand].take().is_some() { Outcome::Done } else { Outcome::Closed }
    }

    fn replace(&mut self, engine: usize, content: Content<K, V>) {
        self.databases[engine].current = Version { number: self.versions, content };
        self.versions += 1;
    }

    /// To go to what is there already changes nothing. Otherwise it is a new version, and the one that resets go to if it
    /// was that.
    fn restore(&mut self, engine: usize, to: Version<K, V>) -> Outcome<K, V> {
        let Database { current, baseline, writer } = &self.databases[engine];
        if writer.is_some() {
            return Outcome::Locked;
        }
        if current.number != to.number {
            let is_baseline = baseline.number == to.number;
            self.replace(engine, to.content);
            let database = &mut self.databases[engine];
            if is_baseline {
                database.baseline = database.current.clone();
            }
        }
        Outcome::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Step = Operation<u8, u8>;

    fn model() -> Model<u8, u8> {
        Model::new(BTreeMap::from([(1, 0)]))
    }

    fn step(hand: usize, statement: Statement<u8, u8>) -> Step {
        Operation::Do { hand, statement }
    }

    fn update(hand: usize, value: u8) -> Step {
        step(hand, Statement::Update { key: 1, value })
    }

    fn apply(model: &mut Model<u8, u8>, steps: &[Step], replaced: bool) -> Effect<u8, u8> {
        steps.iter().map(|step| model.apply(step, replaced)).last().expect("there are steps")
    }

    /// Whether a transaction that wrote what was there already replaces it, is what has been seen; unless that is known.
    #[test]
    fn what_is_written_unchanged_may_replace_or_not() {
        let steps = [Operation::Begin { hand: 0, immediate: true }, update(0, 0), Operation::Commit { hand: 0 }];
        for (is_known, replaced, expected) in
            [(false, false, false), (false, true, true), (true, false, false), (true, true, false)]
        {
            let effect = apply(&mut model().unchanged_is_unwritten(is_known), &steps, replaced);
            assert_eq!(effect, Effect { outcome: Outcome::Done, replaced: expected }, "{is_known}");
        }
    }

    /// What is written unchanged after a change is a change all the same.
    #[test]
    fn what_was_written_stays_written() {
        let begin = Operation::Begin { hand: 0, immediate: true };
        let steps = [begin, update(0, 5), update(0, 5), Operation::Commit { hand: 0 }];
        for is_known in [false, true] {
            assert!(apply(&mut model().unchanged_is_unwritten(is_known), &steps, false).replaced);
        }
    }

    /// To go back to a savepoint forgets those that were set after it.
    #[test]
    fn deeper_savepoints_are_gone_after_a_rollback_to_one() {
        let [set, back_to] = [Statement::Savepoint, Statement::RollbackTo { savepoint: 0 }];
        let mut view = View::of(Content { rows: BTreeMap::from([(1u8, 0u8)]), tables: BTreeMap::new() });
        let change = Statement::Update { key: 1, value: 5 };
        for statement in [set.clone(), change, set, back_to] {
            assert_eq!(view.apply(&statement), Outcome::Done);
        }
        assert_eq!(view.savepoints.len(), 1);
        assert_eq!(view.apply(&Statement::RollbackTo { savepoint: 1 }), Outcome::Done);
        assert_eq!(view.content.rows[&1], 0, "there is only the first one to go back to");
    }

    /// Each hand opens what it needs by itself, whatever others have.
    #[test]
    fn a_hand_has_a_connection_when_it_needs_one() {
        for first in 0..2 * HANDS {
            for second in 0..2 * HANDS {
                let steps = [step(first, Statement::Read), step(second, Statement::Read)];
                let effect = apply(&mut model(), &steps, false);
                assert!(matches!(effect.outcome, Outcome::Read(_)), "{first}, {second}: {effect:?}");
            }
        }
    }
}
