//! The model: predicts the effect of each operation by plain maps, a stack of them for savepoints, and the client that
//! has the writer slot.

use std::collections::BTreeMap;

use super::dispatch::{self, Executor};
use super::operation::{CLIENTS, FOREIGN_TABLE, Kind, Operation, RowStatement, TABLES};
use super::outcome::{Content, Effect, Outcome};
use super::view::View;

/// A model of engines and their clients, all on one thread and without waiting.
///
/// It predicts the effect of each operation in each state.
#[derive(Clone, Debug)]
pub struct Model<K, V> {
    databases: Vec<Database<K, V>>,
    clients: [Option<Client<K, V>>; CLIENTS],
    snapshots: Vec<Version<K, V>>,
    versions: usize,
    unchanged_is_unwritten: bool,
    is_of_files: bool,
    /// Whether the subject has replaced the committed content in this step.
    replaced: bool,
}

/// The content of one commit. Equal content that was committed twice has two versions.
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
struct Client<K, V> {
    engine: usize,
    is_unit_of_work: bool,
    transaction: Option<Transaction<K, V>>,
}

type Held<'a, K, V> = (&'a mut Client<K, V>, &'a mut Database<K, V>);

#[derive(Clone, Debug)]
struct Transaction<K, V> {
    /// The number of the version that the transaction reads, from its first read on.
    read: Option<usize>,
    view: View<K, V>,
    written: Written,
    begun_by_savepoint: bool,
}

/// Whether SQLite has written a page in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Written {
    Nothing,
    Perhaps,
    Something,
}

impl<K: Clone + Ord, V: Clone + PartialEq> Model<K, V> {
    /// Returns the model of one engine with these rows, and of clients without connections.
    pub fn new(rows: BTreeMap<K, V>) -> Model<K, V> {
        let elsewhere = Content { rows: rows.clone(), tables: BTreeMap::from([FOREIGN_TABLE]) };
        let current = Version { number: 0, content: Content { rows, tables: BTreeMap::new() } };
        Model {
            databases: vec![Database { baseline: current.clone(), current, writer: None }],
            clients: [const { None }; CLIENTS],
            snapshots: vec![Version { number: 1, content: elsewhere }],
            versions: 2,
            unchanged_is_unwritten: false,
            is_of_files: false,
            replaced: false,
        }
    }

    /// Sets whether the model relies on
    /// [`Rows::UNCHANGED_IS_UNWRITTEN`](super::Rows::UNCHANGED_IS_UNWRITTEN), `false` by default.
    pub fn unchanged_is_unwritten(self, yes: bool) -> Model<K, V> {
        Model { unchanged_is_unwritten: yes, ..self }
    }

    /// Sets whether the engines are in files, `false` by default. There, a transaction that has read an older version is
    /// locked out while another one writes, and each restore replaces the content.
    pub(super) fn of_files(self, yes: bool) -> Model<K, V> {
        Model { is_of_files: yes, ..self }
    }

    /// Returns the committed content of each engine.
    pub fn committed(&self) -> impl Iterator<Item = &Content<K, V>> {
        self.databases.iter().map(|database| &database.current.content)
    }

    /// Applies the operation, and returns the effect that it should have. The model can't predict whether a transaction
    /// that wrote no change replaces the committed content. In this case it uses `replaced`, which comes from the
    /// subject.
    pub fn apply(&mut self, operation: &Operation<K, V>, replaced: bool) -> Effect<K, V> {
        self.replaced = replaced;
        dispatch::apply(self, operation)
    }

    fn start(&mut self, client: usize, begun_by_savepoint: bool) {
        let nothing_yet = Content { rows: BTreeMap::new(), tables: BTreeMap::new() };
        let transaction =
            Transaction { read: None, view: View::of(nothing_yet), written: Written::Nothing, begun_by_savepoint };
        if let Some(client) = &mut self.clients[client] {
            client.transaction = Some(transaction);
        }
    }

    /// Returns a client that has a connection, and its database.
    fn held(&mut self, client: usize) -> Option<Held<'_, K, V>> {
        let held = self.clients[client].as_mut()?;
        let database = &mut self.databases[held.engine];
        Some((held, database))
    }

    /// Returns the client's transaction, which reads from here on.
    fn read(&mut self, client: usize) -> Option<&mut Transaction<K, V>> {
        let (held, database) = self.held(client)?;
        let transaction = held.transaction.as_mut()?;
        if transaction.read.is_none() {
            transaction.read = Some(database.current.number);
            transaction.view.see(&database.current.content);
        }
        Some(transaction)
    }

    /// A transaction that has read an older version is refused even if the slot is free. If a transaction has read
    /// nothing, a refusal does not change that.
    fn take_slot(&mut self, client: usize) -> Result<(), Outcome<K, V>> {
        let is_of_files = self.is_of_files;
        let Some((held, database)) = self.held(client) else { return Err(Outcome::Closed) };
        let read = held.transaction.as_ref().and_then(|transaction| transaction.read);
        if database.writer == Some(client) {
            return Ok(());
        }
        if is_of_files && database.writer.is_some() {
            return Err(Outcome::Locked);
        }
        if read.is_some_and(|read| read != database.current.number) {
            return Err(Outcome::Stale);
        }
        if database.writer.is_some() {
            return Err(Outcome::Locked);
        }
        database.writer = Some(client);
        self.read(client);
        Ok(())
    }

    fn within_transaction(&mut self, client: usize, statement: &RowStatement<K, V>) -> Outcome<K, V> {
        match statement {
            RowStatement::Savepoint | RowStatement::RollbackTo { .. } => self.apply_to_view(client, statement),
            RowStatement::Release { .. } => {
                let outcome = self.apply_to_view(client, statement);
                let transaction = self.held(client).and_then(|(held, _)| held.transaction.as_ref());
                if transaction.is_some_and(|it| it.begun_by_savepoint && it.view.savepoints.is_empty()) {
                    self.publish(client);
                }
                outcome
            }
            RowStatement::Read => {
                self.read(client);
                self.apply_to_view(client, statement)
            }
            RowStatement::CreateTable { table, .. } if self.has_table(client, *table) => Outcome::Exists,
            RowStatement::DropTable { table } if !self.has_table(client, *table) => Outcome::Missing,
            _ => self.take_slot(client).map_or_else(|refused| refused, |()| self.write(client, statement)),
        }
    }

    fn apply_to_view(&mut self, client: usize, statement: &RowStatement<K, V>) -> Outcome<K, V> {
        let transaction = self.held(client).and_then(|(held, _)| held.transaction.as_mut());
        transaction.map_or(Outcome::NoTransaction, |transaction| transaction.view.apply(statement))
    }

    fn write(&mut self, client: usize, statement: &RowStatement<K, V>) -> Outcome<K, V> {
        let unless_changed = if self.unchanged_is_unwritten { Written::Nothing } else { Written::Perhaps };
        let Some(transaction) = self.read(client) else { return Outcome::NoTransaction };
        let before = transaction.view.content.clone();
        let outcome = transaction.view.apply(statement);
        let written = if transaction.view.content == before { unless_changed } else { Written::Something };
        transaction.written = transaction.written.max(written);
        outcome
    }

    /// SQLite checks this when it prepares the statement, before it takes any lock.
    fn has_table(&mut self, client: usize, table: usize) -> bool {
        let Some((held, database)) = self.held(client) else { return false };
        let view = held.transaction.as_ref().filter(|transaction| transaction.read.is_some());
        let content = view.map_or(&database.current.content, |transaction| &transaction.view.content);
        content.tables.contains_key(&(table % TABLES))
    }

    fn end(&mut self, client: usize, end: impl FnOnce(&mut Self, usize)) -> Outcome<K, V> {
        let Some((held, _)) = self.held(client) else { return Outcome::Closed };
        if held.transaction.is_none() {
            return Outcome::NoTransaction;
        }
        let is_over = held.is_unit_of_work;
        end(self, client);
        if is_over {
            self.clients[client] = None;
        }
        Outcome::Done
    }

    /// Commits. A transaction that has the slot but wrote no page replaces nothing. One that wrote a page replaces the
    /// content, even if it went back to a savepoint before the write.
    fn publish(&mut self, client: usize) {
        let replaced = self.replaced;
        let Some((held, database)) = self.held(client) else { return };
        let (engine, had_slot) = (held.engine, database.writer.take_if(|writer| *writer == client).is_some());
        let Some(transaction) = held.transaction.take() else { return };
        let has_written = transaction.written == Written::Something;
        if had_slot && (has_written || transaction.written == Written::Perhaps && replaced) {
            self.replace(engine, transaction.view.content);
        }
    }

    fn abort(&mut self, client: usize) {
        if let Some((held, database)) = self.held(client) {
            held.transaction = None;
            database.writer.take_if(|writer| *writer == client);
        }
    }

    fn refuse(&mut self, client: usize, refused: Outcome<K, V>) -> Outcome<K, V> {
        self.abort(client);
        refused
    }

    fn replace(&mut self, engine: usize, content: Content<K, V>) {
        self.databases[engine].current = Version { number: self.versions, content };
        self.versions += 1;
    }

    /// A restore of the current version changes nothing. Otherwise the content becomes a new version. If the content is
    /// the baseline's, resets go to the new version.
    fn go_to(&mut self, engine: usize, to: Version<K, V>) -> Outcome<K, V> {
        let Database { current, baseline, writer } = &self.databases[engine];
        if writer.is_some() {
            return Outcome::Locked;
        }
        if current.number != to.number || self.is_of_files {
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

impl<K: Clone + Ord, V: Clone + PartialEq> Executor<K, V> for Model<K, V> {
    type Version = usize;

    fn version(&self, engine: usize) -> usize {
        self.databases[engine].current.number
    }

    fn is_current(&self, engine: usize, version: &usize) -> bool {
        self.version(engine) == *version
    }

    fn engines(&self) -> usize {
        self.databases.len()
    }

    fn snapshots(&self) -> usize {
        self.snapshots.len()
    }

    fn engine_of(&self, client: usize) -> Option<usize> {
        self.clients[client].as_ref().map(|client| client.engine)
    }

    fn open(&mut self, client: usize, engine: usize, kind: Kind) -> Outcome<K, V> {
        self.close(client);
        let is_unit_of_work = matches!(kind, Kind::UnitOfWork | Kind::Immediate);
        self.clients[client] = Some(Client { engine, is_unit_of_work, transaction: None });
        if !is_unit_of_work {
            return Outcome::Done;
        }
        let begun = self.begin(client, kind == Kind::Immediate);
        if begun != Outcome::Done {
            self.clients[client] = None;
        }
        begun
    }

    /// SQLite takes the slot before it finds that there is already a transaction, which then has the slot.
    fn begin(&mut self, client: usize, immediate: bool) -> Outcome<K, V> {
        let Some((held, _)) = self.held(client) else { return Outcome::Closed };
        let was_open = held.transaction.is_some();
        if !was_open {
            self.start(client, false);
        }
        let slot = if immediate { self.take_slot(client) } else { Ok(()) };
        match slot {
            Ok(()) if was_open => Outcome::InTransaction,
            Ok(()) => Outcome::Done,
            Err(refused) if was_open => refused,
            Err(refused) => self.refuse(client, refused),
        }
    }

    fn execute(&mut self, client: usize, statement: &RowStatement<K, V>) -> Outcome<K, V> {
        let Some((held, _)) = self.held(client) else { return Outcome::Closed };
        let is_autocommit = held.transaction.is_none();
        let begins = matches!(statement, RowStatement::Savepoint);
        if is_autocommit {
            self.start(client, begins);
        }
        let outcome = self.within_transaction(client, statement);
        match outcome {
            _ if begins || !is_autocommit => outcome,
            Outcome::Locked | Outcome::Stale | Outcome::NoSavepoint => self.refuse(client, outcome),
            _ => {
                self.publish(client);
                outcome
            }
        }
    }

    fn commit(&mut self, client: usize) -> Outcome<K, V> {
        self.end(client, Model::publish)
    }

    fn rollback(&mut self, client: usize) -> Outcome<K, V> {
        self.end(client, Model::abort)
    }

    fn close(&mut self, client: usize) -> Outcome<K, V> {
        self.abort(client);
        if self.clients[client].take().is_some() { Outcome::Done } else { Outcome::Closed }
    }

    fn vacuum(&mut self, client: usize) -> Outcome<K, V> {
        let Some((held, database)) = self.held(client) else { return Outcome::Closed };
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

    fn take_snapshot(&mut self, engine: usize) {
        self.snapshots.push(self.databases[engine].current.clone());
    }

    fn restore(&mut self, engine: usize, snapshot: usize) -> Outcome<K, V> {
        self.go_to(engine, self.snapshots[snapshot].clone())
    }

    fn reset(&mut self, engine: usize) -> Outcome<K, V> {
        self.go_to(engine, self.databases[engine].baseline.clone())
    }

    fn fork(&mut self, engine: usize) {
        let start = self.databases[engine].current.clone();
        self.databases.push(Database { current: start.clone(), baseline: start, writer: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Step = Operation<u8, u8>;

    fn model() -> Model<u8, u8> {
        Model::new(BTreeMap::from([(1, 0)]))
    }

    fn step(client: usize, statement: RowStatement<u8, u8>) -> Step {
        Operation::Do { client, statement }
    }

    fn update(client: usize, value: u8) -> Step {
        step(client, RowStatement::Update { key: 1, value })
    }

    fn apply(model: &mut Model<u8, u8>, steps: &[Step], replaced: bool) -> Effect<u8, u8> {
        steps.iter().map(|step| model.apply(step, replaced)).last().expect("there are steps")
    }

    /// If the model can't know whether a transaction that wrote no change replaces the content, it uses the subject's
    /// answer.
    #[test]
    fn unchanged_writes_replace_if_the_subject_has_shown_it() {
        let steps = [Operation::Begin { client: 0, immediate: true }, update(0, 0), Operation::Commit { client: 0 }];
        for (is_known, replaced, expected) in
            [(false, false, false), (false, true, true), (true, false, false), (true, true, false)]
        {
            let effect = apply(&mut model().unchanged_is_unwritten(is_known), &steps, replaced);
            assert_eq!(effect, Effect { outcome: Outcome::Done, replaced: expected }, "{is_known}");
        }
    }

    #[test]
    fn a_change_still_counts_after_an_unchanged_write() {
        let begin = Operation::Begin { client: 0, immediate: true };
        let steps = [begin, update(0, 5), update(0, 5), Operation::Commit { client: 0 }];
        for is_known in [false, true] {
            assert!(apply(&mut model().unchanged_is_unwritten(is_known), &steps, false).replaced);
        }
    }

    /// Whatever other clients have open.
    #[test]
    fn a_client_without_a_connection_opens_one_when_it_needs_it() {
        for first in 0..2 * CLIENTS {
            for second in 0..2 * CLIENTS {
                let steps = [step(first, RowStatement::Read), step(second, RowStatement::Read)];
                let effect = apply(&mut model(), &steps, false);
                assert!(matches!(effect.outcome, Outcome::Read(_)), "{first}, {second}: {effect:?}");
            }
        }
    }
}
