//! Tests that the store alone does what the model predicts: operations by tokens, claims, snapshots and pages, without
//! SQLite.
//!
//! A connection here caches what it has read, as SQLite does. It keeps rows as long as the change counter stays the
//! same, and the list of tables as long as the schema cookie stays the same. So this also tests rule 1 of DESIGN.md.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};

use super::dispatch::{self, Executor};
use super::model::Model;
use super::operation::{CLIENTS, FOREIGN_TABLE, Kind, Operation, RowStatement, TABLES, operations};
use super::outcome::{Content, Effect, Outcome};
use super::subject::Subject;
use super::view::View;
use crate::content::origin::Purpose;
use crate::content::pages::Pages;
use crate::content::refusal::Refusal;
use crate::content::snapshot::{Snapshot, Stamp};
use crate::content::store::{Claim, Store, Token};

type Rows = Content<usize, u8>;
type RowOutcome = Outcome<usize, u8>;

const KEYS: usize = 4;
const PAGE: usize = 4096;
/// The offsets in SQLite's header.
const CHANGE_COUNTERS: [usize; 2] = [24, 92];
const SCHEMA_COOKIE: usize = 40;

/// A bug of the connections here.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    /// It does not pass on what it has read when it asks for the writer slot.
    SilentAboutRead,
    /// It writes to a copy of the content that the engine was created with.
    OtherBase,
    /// It never checks whether its cache is stale.
    NeverStale,
    /// It does not increment the schema cookie, so that other connections don't notice its changes of the schema.
    SameCookie,
    /// It does not release the slot when it rolls back.
    KeepsSlot,
}

struct Stores {
    bug: Bug,
    stores: Vec<Store>,
    clients: [Option<Client>; CLIENTS],
    snapshots: Vec<Snapshot>,
}

struct Client {
    token: Token,
    engine: usize,
    is_unit_of_work: bool,
    cache: Option<Cache>,
    transaction: Option<Transaction>,
}

/// What a connection caches between transactions.
struct Cache {
    stamp: Stamp,
    content: Rows,
    tables: BTreeSet<usize>,
}

#[derive(Default)]
struct Transaction {
    read: Option<Snapshot>,
    written: Option<Pages>,
    has_slot: bool,
    savepoints: Vec<Option<Pages>>,
    begun_by_savepoint: bool,
}

/// The offset of the page for a row, and for one of the harness's tables.
fn place_of_row(key: usize) -> usize {
    (1 + key) * PAGE
}

fn place_of_table(table: usize) -> usize {
    (20 + table) * PAGE
}

fn put(pages: &mut Pages, place: usize, value: Option<u8>) {
    pages.write(place, &[u8::from(value.is_some()), value.unwrap_or(0)]);
}

fn get(pages: &Pages, place: usize) -> Option<u8> {
    let mut bytes = [0; 2];
    pages.read(place, &mut bytes);
    (bytes[0] == 1).then_some(bytes[1])
}

fn decode(pages: &Pages) -> Rows {
    let all = |count: usize, place_of: fn(usize) -> usize| -> BTreeMap<usize, u8> {
        (0..count).filter_map(|number| Some((number, get(pages, place_of(number))?))).collect()
    };
    Content { rows: all(KEYS, place_of_row), tables: all(TABLES, place_of_table) }
}

/// Returns a database, with this table if any.
fn first(table: Option<(usize, u8)>) -> Snapshot {
    let mut pages = Pages::default();
    pages.resize(place_of_table(TABLES));
    pages.write(0, b"SQLite format 3\0\x10\0\x01\x01");
    pages.write(100, &[0x0d, 0, 0, 0, 0, 0x10, 0, 0]); // a schema without a row
    put(&mut pages, place_of_row(1), Some(0));
    let number = 1 + u32::from(table.is_some());
    CHANGE_COUNTERS.into_iter().chain([SCHEMA_COOKIE]).for_each(|at| pages.write(at, &number.to_be_bytes()));
    table.iter().for_each(|(table, value)| put(&mut pages, place_of_table(*table), Some(*value)));
    Snapshot::from_bytes(pages.to_vec()).unwrap()
}

/// Writes the pages that differ.
fn encode(content: &Rows, pages: &mut Pages) {
    let rows = (0..KEYS).map(|key| (place_of_row(key), content.rows.get(&key)));
    let tables = (0..TABLES).map(|table| (place_of_table(table), content.tables.get(&table)));
    for (place, value) in rows.chain(tables) {
        if get(pages, place) != value.copied() {
            put(pages, place, value.copied());
        }
    }
}

impl Client {
    fn new(engine: usize, is_unit_of_work: bool) -> Client {
        Client { token: Token::new(), engine, is_unit_of_work, cache: None, transaction: None }
    }

    fn start(&mut self, begun_by_savepoint: bool) -> &mut Transaction {
        self.transaction.insert(Transaction { begun_by_savepoint, ..Transaction::default() })
    }

    fn transaction(&mut self) -> &mut Transaction {
        self.transaction.as_mut().expect("it is in a transaction")
    }

    fn acquire(&mut self, store: &Store, bug: Bug) -> Result<(), RowOutcome> {
        let read = self.transaction().read.clone().filter(|_| bug != Bug::SilentAboutRead);
        let claim = Claim { token: self.token, purpose: Purpose::Uri, read, reserve: None };
        store.try_acquire(&claim).map_err(|refusal| match refusal {
            Refusal::Stale { .. } => Outcome::Stale,
            _ => Outcome::Locked,
        })?;
        self.transaction().has_slot = true;
        self.read(store, bug);
        Ok(())
    }

    fn read(&mut self, store: &Store, bug: Bug) {
        if self.transaction().read.is_some() {
            return;
        }
        let read = store.current();
        let (stamp, cache) = (read.stamp(), self.cache.take());
        let cached = |number: fn(&Stamp) -> u32| {
            cache.as_ref().filter(|cache| bug == Bug::NeverStale || number(&cache.stamp) == number(&stamp))
        };
        let content =
            cached(|stamp| stamp.change_counter).map_or_else(|| decode(read.pages()), |cache| cache.content.clone());
        let tables =
            cached(|stamp| stamp.schema_cookie).map_or_else(|| tables_of(&content), |cache| cache.tables.clone());
        self.cache = Some(Cache { stamp, content, tables });
        self.transaction().read = Some(read);
    }

    fn content(&self, store: &Store) -> Rows {
        match (&self.transaction, &self.cache) {
            (Some(Transaction { written: Some(written), .. }), _) => decode(written),
            (Some(Transaction { read: Some(_), .. }), Some(cache)) => cache.content.clone(),
            _ => decode(store.current().pages()),
        }
    }

    fn execute(&mut self, store: &Store, statement: &RowStatement<usize, u8>, bug: Bug) -> RowOutcome {
        let begins = *statement == RowStatement::Savepoint;
        let is_autocommit = self.transaction.is_none();
        if is_autocommit {
            self.start(begins);
        }
        let outcome = self.within_transaction(store, statement, bug).unwrap_or_else(|refused| refused);
        match outcome {
            _ if begins || !is_autocommit => {}
            Outcome::Locked | Outcome::Stale | Outcome::NoSavepoint => self.rollback(store, bug),
            _ => self.commit(store),
        }
        outcome
    }

    fn within_transaction(
        &mut self,
        store: &Store,
        statement: &RowStatement<usize, u8>,
        bug: Bug,
    ) -> Result<RowOutcome, RowOutcome> {
        match statement {
            RowStatement::Savepoint | RowStatement::RollbackTo { .. } | RowStatement::Release { .. } => {
                return Ok(self.apply_to_savepoints(store, statement));
            }
            RowStatement::Read => self.read(store, bug),
            RowStatement::CreateTable { .. } | RowStatement::DropTable { .. } => {
                let outcome = View::of(self.content(store)).apply(statement);
                if outcome != Outcome::Done {
                    return Ok(outcome); // SQLite checks this before it takes any lock
                }
                self.acquire(store, bug)?;
            }
            _ => self.acquire(store, bug)?,
        }
        let before = self.content(store);
        let mut view = View::of(before.clone());
        let outcome = view.apply(statement);
        if view.content != before {
            self.write(store, &view.content, bug);
        } else if self.transaction().written.is_none()
            && self.cache.as_ref().is_some_and(|cache| cache.tables != tables_of(&before))
        {
            return Ok(Outcome::Failed("the cached schema is stale".to_owned()));
        }
        Ok(outcome)
    }

    fn write(&mut self, store: &Store, content: &Rows, bug: Bug) {
        let transaction = self.transaction();
        let read = transaction.read.clone().expect("a connection that has the slot has read");
        let base = if bug == Bug::OtherBase { store.baseline() } else { read };
        let pages = transaction.written.get_or_insert_with(|| base.pages().clone());
        if tables_of(content) != tables_of(&decode(pages)) && bug != Bug::SameCookie {
            count(pages, SCHEMA_COOKIE);
        }
        encode(content, pages);
    }

    fn apply_to_savepoints(&mut self, store: &Store, statement: &RowStatement<usize, u8>) -> RowOutcome {
        let transaction = self.transaction();
        let depth = transaction.savepoints.len();
        match statement {
            RowStatement::RollbackTo { .. } | RowStatement::Release { .. } if depth == 0 => {
                return Outcome::NoSavepoint;
            }
            RowStatement::RollbackTo { savepoint } => {
                transaction.savepoints.truncate(savepoint % depth + 1);
                let saved = transaction.savepoints[savepoint % depth].clone();
                if let (Some(written), Some(read)) = (&mut transaction.written, &transaction.read) {
                    *written = saved.unwrap_or_else(|| read.pages().clone());
                }
            }
            RowStatement::Release { savepoint } => transaction.savepoints.truncate(savepoint % depth),
            _ => transaction.savepoints.push(transaction.written.clone()),
        }
        if transaction.begun_by_savepoint && transaction.savepoints.is_empty() {
            self.commit(store);
        }
        Outcome::Done
    }

    fn vacuum(&mut self, store: &Store, bug: Bug) -> RowOutcome {
        if self.transaction.is_some() {
            return Outcome::InTransaction;
        }
        self.start(false);
        if let Err(refused) = self.acquire(store, bug) {
            self.rollback(store, bug);
            return refused;
        }
        let content = self.content(store);
        self.write(store, &content, bug);
        self.commit(store);
        Outcome::Done
    }

    fn begin(&mut self, store: &Store, immediate: bool, bug: Bug) -> RowOutcome {
        let was_open = self.transaction.is_some();
        if !was_open {
            self.start(false);
        }
        match if immediate { self.acquire(store, bug) } else { Ok(()) } {
            Ok(()) if was_open => Outcome::InTransaction,
            Ok(()) => Outcome::Done,
            Err(refused) => {
                if !was_open {
                    self.rollback(store, bug);
                }
                refused
            }
        }
    }

    fn commit(&mut self, store: &Store) {
        let Some(transaction) = self.transaction.take() else { return };
        if let (Some(mut pages), Some(read)) = (transaction.written, transaction.read) {
            CHANGE_COUNTERS.into_iter().for_each(|at| count(&mut pages, at));
            let content = decode(&pages);
            self.cache = Some(Cache { stamp: Stamp::of(&pages), tables: tables_of(&content), content });
            store.publish(pages, read.stamp().schema_cookie);
        }
        if transaction.has_slot {
            store.release(self.token);
        }
    }

    fn rollback(&mut self, store: &Store, bug: Bug) {
        if self.transaction.take().is_some_and(|transaction| transaction.has_slot) && bug != Bug::KeepsSlot {
            store.release(self.token);
        }
    }
}

fn tables_of(content: &Rows) -> BTreeSet<usize> {
    content.tables.keys().copied().collect()
}

fn count(pages: &mut Pages, at: usize) {
    let mut bytes = [0; 4];
    pages.read(at, &mut bytes);
    pages.write(at, &u32::from_be_bytes(bytes).wrapping_add(1).to_be_bytes());
}

fn restore(store: &Store, snapshot: &Snapshot) -> RowOutcome {
    let token = Token::new();
    let claim = Claim { token, purpose: Purpose::Uri, read: None, reserve: None };
    if store.try_acquire(&claim).is_err() {
        return Outcome::Locked;
    }
    let restored = store.restore(snapshot);
    store.release(token);
    if restored { Outcome::Done } else { Outcome::Failed("another encoding".to_owned()) }
}

impl Stores {
    fn new(bug: Bug) -> Stores {
        Stores {
            bug,
            stores: vec![Store::new(first(None))],
            clients: [const { None }; CLIENTS],
            snapshots: vec![first(Some(FOREIGN_TABLE))],
        }
    }

    fn with_client(&mut self, client: usize, work: impl FnOnce(&mut Client, &Store, Bug) -> RowOutcome) -> RowOutcome {
        let Some(client) = &mut self.clients[client] else { return Outcome::Closed };
        work(client, &self.stores[client.engine], self.bug)
    }

    fn end(&mut self, client: usize, end: impl FnOnce(&mut Client, &Store, Bug)) -> RowOutcome {
        let outcome = self.with_client(client, |client, store, bug| {
            if client.transaction.is_none() {
                return Outcome::NoTransaction;
            }
            end(client, store, bug);
            Outcome::Done
        });
        self.clients[client].take_if(|client| outcome == Outcome::Done && client.is_unit_of_work);
        outcome
    }
}

impl Executor<usize, u8> for Stores {
    type Version = Snapshot;

    fn version(&self, engine: usize) -> Snapshot {
        self.stores[engine].current()
    }

    fn is_current(&self, engine: usize, version: &Snapshot) -> bool {
        version.ptr_eq(&self.stores[engine].current())
    }

    fn engines(&self) -> usize {
        self.stores.len()
    }

    fn snapshots(&self) -> usize {
        self.snapshots.len()
    }

    fn engine_of(&self, client: usize) -> Option<usize> {
        self.clients[client].as_ref().map(|client| client.engine)
    }

    fn open(&mut self, client: usize, engine: usize, kind: Kind) -> RowOutcome {
        self.close(client);
        let mut new = Client::new(engine, matches!(kind, Kind::UnitOfWork | Kind::Immediate));
        let outcome = if new.is_unit_of_work {
            new.begin(&self.stores[engine], kind == Kind::Immediate, self.bug)
        } else {
            Outcome::Done
        };
        self.clients[client] = Some(new).filter(|_| outcome == Outcome::Done);
        outcome
    }

    fn execute(&mut self, client: usize, statement: &RowStatement<usize, u8>) -> RowOutcome {
        self.with_client(client, |client, store, bug| client.execute(store, statement, bug))
    }

    fn begin(&mut self, client: usize, immediate: bool) -> RowOutcome {
        self.with_client(client, |client, store, bug| client.begin(store, immediate, bug))
    }

    fn commit(&mut self, client: usize) -> RowOutcome {
        self.end(client, |client, store, _| client.commit(store))
    }

    fn rollback(&mut self, client: usize) -> RowOutcome {
        self.end(client, Client::rollback)
    }

    fn close(&mut self, client: usize) -> RowOutcome {
        let Some(mut closed) = self.clients[client].take() else { return Outcome::Closed };
        closed.rollback(&self.stores[closed.engine], self.bug);
        Outcome::Done
    }

    fn vacuum(&mut self, client: usize) -> RowOutcome {
        self.with_client(client, Client::vacuum)
    }

    fn take_snapshot(&mut self, engine: usize) {
        self.snapshots.push(self.stores[engine].current());
    }

    fn restore(&mut self, engine: usize, snapshot: usize) -> RowOutcome {
        restore(&self.stores[engine], &self.snapshots[snapshot])
    }

    fn reset(&mut self, engine: usize) -> RowOutcome {
        restore(&self.stores[engine], &self.stores[engine].baseline())
    }

    fn fork(&mut self, engine: usize) {
        self.stores.push(Store::new(self.stores[engine].current()));
    }
}

impl Subject<usize, u8> for Stores {
    fn apply(&mut self, operation: &Operation<usize, u8>) -> Effect<usize, u8> {
        dispatch::apply(self, operation)
    }
}

fn sequences() -> impl Strategy<Value = Vec<Operation<usize, u8>>> {
    operations(0..KEYS, 0..3u8, 1..50)
}

fn check(bug: Bug, operations: &[Operation<usize, u8>]) -> Result<(), TestCaseError> {
    let (mut stores, mut model) = (Stores::new(bug), Model::new(BTreeMap::from([(1, 0)])).unchanged_is_unwritten(true));
    model.compare(&mut stores, operations)?;
    prop_assert_eq!(stores.stores.len(), model.committed().count());
    for (store, expected) in stores.stores.iter().zip(model.committed()) {
        prop_assert_eq!(&decode(store.current().pages()), expected);
    }
    Ok(())
}

const CASES: u32 = 500;

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    #[test]
    fn a_store_does_what_the_model_predicts(operations in sequences()) {
        check(Bug::None, &operations)?;
    }
}

#[test]
fn bugs_are_found() {
    for bug in [Bug::SilentAboutRead, Bug::OtherBase, Bug::NeverStale, Bug::SameCookie, Bug::KeepsSlot] {
        let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        match runner.run(&sequences(), |operations| check(bug, &operations)) {
            Err(TestError::Fail(reason, steps)) => assert!(steps.len() <= 8, "{bug:?}: {reason}: {steps:#?}"),
            other => panic!("{bug:?} was not found: {other:?}"),
        }
    }
}
