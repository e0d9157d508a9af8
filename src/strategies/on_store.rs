//! The store alone does what the model says: the operations by tokens, claims, snapshots and pages, without SQLite.
//!
//! A connection here keeps what it has read as SQLite does: rows as long as the change counter is what it last saw, and
//! which tables there are as long as the schema cookie is. So rule 1 is put to the test too.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};

use super::model::{Content, Effect, Model, Outcome, View};
use super::operation::{AT_FIRST, ELSEWHERE, HANDS, Kind, Operation, Place, Statement, TABLES, operations};
use super::subject::Subject;
use crate::content::origin::Purpose;
use crate::content::pages::Pages;
use crate::content::refusal::Refusal;
use crate::content::snapshot::{Snapshot, Stamp};
use crate::content::store::{Claim, Store, Token};

type Rows = Content<usize, u8>;
type Came = Outcome<usize, u8>;

const KEYS: usize = 4;
const PAGE: usize = 4096;
/// Where SQLite's header has these.
const CHANGE_COUNTERS: [usize; 2] = [24, 92];
const SCHEMA_COOKIE: usize = 40;

/// What is wrong with a driver.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    /// It does not say what it has read when it wants to write.
    SilentAboutRead,
    /// It writes on what the engine was created with.
    OtherBase,
    /// It never looks whether what it keeps is out of date.
    KeepsAll,
    /// It does not count its changes of the schema, so that others take theirs for it.
    SameCookie,
    /// It does not give the slot up when it rolls back.
    KeepsSlot,
}

struct Stores {
    bug: Bug,
    stores: Vec<Store>,
    hands: [Option<Hand>; HANDS],
    snapshots: Vec<Snapshot>,
}

struct Hand {
    token: Token,
    engine: usize,
    is_unit_of_work: bool,
    kept: Option<Kept>,
    transaction: Option<Transaction>,
}

/// What a connection keeps between transactions.
struct Kept {
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

/// The page that a row is on, and one of the harness's tables.
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

/// A database, with this table in it if any.
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

/// Writes the pages that are to be others.
fn encode(content: &Rows, pages: &mut Pages) {
    let rows = (0..KEYS).map(|key| (place_of_row(key), content.rows.get(&key)));
    let tables = (0..TABLES).map(|table| (place_of_table(table), content.tables.get(&table)));
    for (place, value) in rows.chain(tables) {
        if get(pages, place) != value.copied() {
            put(pages, place, value.copied());
        }
    }
}

impl Hand {
    fn new(engine: usize, is_unit_of_work: bool) -> Hand {
        Hand { token: Token::new(), engine, is_unit_of_work, kept: None, transaction: None }
    }

    fn begin(&mut self, begun_by_savepoint: bool) -> &mut Transaction {
        self.transaction.insert(Transaction { begun_by_savepoint, ..Transaction::default() })
    }

    fn transaction(&mut self) -> &mut Transaction {
        self.transaction.as_mut().expect("it is in a transaction")
    }

    fn acquire(&mut self, store: &Store, bug: Bug) -> Result<(), Came> {
        let read = self.transaction().read.clone().filter(|_| bug != Bug::SilentAboutRead);
        let claim = Claim { token: self.token, purpose: Purpose::Uri, read, reserve: None };
        store.try_acquire(&claim).map_err(|refusal| match refusal {
            Refusal::Stale { .. } => Outcome::Stale,
            _ => Outcome::Locked,
        })?;
        self.transaction().has_slot = true;
        self.look(store, bug);
        Ok(())
    }

    fn look(&mut self, store: &Store, bug: Bug) {
        if self.transaction().read.is_some() {
            return;
        }
        let read = store.current();
        let (stamp, kept) = (read.stamp(), self.kept.take());
        let keeps = |number: fn(&Stamp) -> u32| {
            kept.as_ref().filter(|kept| bug == Bug::KeepsAll || number(&kept.stamp) == number(&stamp))
        };
        let content =
            keeps(|stamp| stamp.change_counter).map_or_else(|| decode(read.pages()), |kept| kept.content.clone());
        let tables = keeps(|stamp| stamp.schema_cookie).map_or_else(|| tables_of(&content), |kept| kept.tables.clone());
        self.kept = Some(Kept { stamp, content, tables });
        self.transaction().read = Some(read);
    }

    fn content(&self, store: &Store) -> Rows {
        match (&self.transaction, &self.kept) {
            (Some(Transaction { written: Some(written), .. }), _) => decode(written),
            (Some(Transaction { read: Some(_), .. }), Some(kept)) => kept.content.clone(),
            _ => decode(store.current().pages()),
        }
    }

    fn carry_out(&mut self, store: &Store, statement: &Statement<usize, u8>, bug: Bug) -> Came {
        let begins = *statement == Statement::Savepoint;
        let is_by_itself = self.transaction.is_none();
        if is_by_itself {
            self.begin(begins);
        }
        let outcome = self.within_transaction(store, statement, bug).unwrap_or_else(|refused| refused);
        match outcome {
            _ if begins || !is_by_itself => {}
            Outcome::Locked | Outcome::Stale | Outcome::NoSavepoint => self.rollback(store, bug),
            _ => self.commit(store),
        }
        outcome
    }

    fn within_transaction(&mut self, store: &Store, statement: &Statement<usize, u8>, bug: Bug) -> Result<Came, Came> {
        match statement {
            Statement::Savepoint | Statement::RollbackTo { .. } | Statement::Release { .. } => {
                return Ok(self.go_by_savepoints(store, statement));
            }
            Statement::Read => self.look(store, bug),
            Statement::CreateTable { .. } | Statement::DropTable { .. } => {
                let outcome = View::of(self.content(store)).apply(statement);
                if outcome != Outcome::Done {
                    return Ok(outcome); // SQLite finds that out before it takes any lock
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
            && self.kept.as_ref().is_some_and(|kept| kept.tables != tables_of(&before))
        {
            return Ok(Outcome::Failed("the schema that it keeps is out of date".to_owned()));
        }
        Ok(outcome)
    }

    fn write(&mut self, store: &Store, content: &Rows, bug: Bug) {
        let transaction = self.transaction();
        let read = transaction.read.clone().expect("who has the slot has read");
        let base = if bug == Bug::OtherBase { store.baseline() } else { read };
        let pages = transaction.written.get_or_insert_with(|| base.pages().clone());
        if tables_of(content) != tables_of(&decode(pages)) && bug != Bug::SameCookie {
            count(pages, SCHEMA_COOKIE);
        }
        encode(content, pages);
    }

    fn go_by_savepoints(&mut self, store: &Store, statement: &Statement<usize, u8>) -> Came {
        let transaction = self.transaction();
        let depth = transaction.savepoints.len();
        match statement {
            Statement::RollbackTo { .. } | Statement::Release { .. } if depth == 0 => return Outcome::NoSavepoint,
            Statement::RollbackTo { savepoint } => {
                transaction.savepoints.truncate(savepoint % depth + 1);
                let saved = transaction.savepoints[savepoint % depth].clone();
                if let (Some(written), Some(read)) = (&mut transaction.written, &transaction.read) {
                    *written = saved.unwrap_or_else(|| read.pages().clone());
                }
            }
            Statement::Release { savepoint } => transaction.savepoints.truncate(savepoint % depth),
            _ => transaction.savepoints.push(transaction.written.clone()),
        }
        if transaction.begun_by_savepoint && transaction.savepoints.is_empty() {
            self.commit(store);
        }
        Outcome::Done
    }

    fn vacuum(&mut self, store: &Store, bug: Bug) -> Came {
        if self.transaction.is_some() {
            return Outcome::InTransaction;
        }
        self.begin(false);
        if let Err(refused) = self.acquire(store, bug) {
            self.rollback(store, bug);
            return refused;
        }
        let content = self.content(store);
        self.write(store, &content, bug);
        self.commit(store);
        Outcome::Done
    }

    fn begin_by_itself(&mut self, store: &Store, immediate: bool, bug: Bug) -> Came {
        let was_open = self.transaction.is_some();
        if !was_open {
            self.begin(false);
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
            self.kept = Some(Kept { stamp: Stamp::of(&pages), tables: tables_of(&content), content });
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

fn restore(store: &Store, snapshot: &Snapshot) -> Came {
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
            hands: [const { None }; HANDS],
            snapshots: vec![first(Some(ELSEWHERE))],
        }
    }

    fn close(&mut self, hand: usize) -> Came {
        let Some(mut held) = self.hands[hand].take() else { return Outcome::Closed };
        held.rollback(&self.stores[held.engine], self.bug);
        Outcome::Done
    }

    fn open(&mut self, hand: usize, engine: usize, kind: Kind) -> Came {
        self.close(hand);
        let mut held = Hand::new(engine, matches!(kind, Kind::UnitOfWork | Kind::Immediate));
        let outcome = if held.is_unit_of_work {
            held.begin_by_itself(&self.stores[engine], kind == Kind::Immediate, self.bug)
        } else {
            Outcome::Done
        };
        self.hands[hand] = Some(held).filter(|_| outcome == Outcome::Done);
        outcome
    }

    fn with_hand(&mut self, hand: usize, work: impl FnOnce(&mut Hand, &Store, Bug) -> Came) -> Came {
        let Some(held) = &mut self.hands[hand % HANDS] else { return Outcome::Closed };
        work(held, &self.stores[held.engine], self.bug)
    }

    fn end(&mut self, hand: usize, end: impl FnOnce(&mut Hand, &Store, Bug)) -> Came {
        let outcome = self.with_hand(hand, |held, store, bug| {
            if held.transaction.is_none() {
                return Outcome::NoTransaction;
            }
            end(held, store, bug);
            Outcome::Done
        });
        self.hands[hand % HANDS].take_if(|held| outcome == Outcome::Done && held.is_unit_of_work);
        outcome
    }

    fn outcome(&mut self, operation: &Operation<usize, u8>) -> Came {
        if let Some(hand) = operation.needs_connection().filter(|hand| self.hands[hand % HANDS].is_none()) {
            self.open(hand % HANDS, 0, AT_FIRST[hand % HANDS]);
        }
        let stores = self.stores.len();
        match operation {
            Operation::Open { hand, engine, kind } => self.open(hand % HANDS, engine % stores, *kind),
            Operation::Do { hand, statement } => {
                self.with_hand(*hand, |held, store, bug| held.carry_out(store, statement, bug))
            }
            Operation::Begin { hand, immediate } => {
                self.with_hand(*hand, |held, store, bug| held.begin_by_itself(store, *immediate, bug))
            }
            Operation::Commit { hand } => self.end(*hand, |held, store, _| held.commit(store)),
            Operation::Rollback { hand } => self.end(*hand, Hand::rollback),
            Operation::Drop { hand } | Operation::Panic { hand } => self.close(hand % HANDS),
            Operation::Vacuum { hand } => self.with_hand(*hand, Hand::vacuum),
            Operation::Snapshot { engine } => {
                self.snapshots.push(self.stores[engine % stores].current());
                Outcome::Done
            }
            Operation::Restore { engine, snapshot } => {
                restore(&self.stores[engine % stores], &self.snapshots[snapshot % self.snapshots.len()])
            }
            Operation::Reset { engine } => {
                let store = &self.stores[engine % stores];
                restore(store, &store.baseline())
            }
            Operation::Fork { engine } => {
                self.stores.push(Store::new(self.stores[engine % stores].current()));
                Outcome::Done
            }
        }
    }
}

impl Subject<usize, u8> for Stores {
    fn apply(&mut self, operation: &Operation<usize, u8>) -> Effect<usize, u8> {
        let engine = match operation.place() {
            Place::Engine(engine) => engine % self.stores.len(),
            Place::Hand(hand) => self.hands[hand % HANDS].as_ref().map_or(0, |hand| hand.engine),
        };
        let before = self.stores[engine].current();
        let outcome = self.outcome(operation);
        let replaced = !before.ptr_eq(&self.stores[engine].current());
        Effect { outcome, replaced }
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
    fn a_store_does_what_the_model_says(operations in sequences()) {
        check(Bug::None, &operations)?;
    }
}

#[test]
fn bugs_are_found() {
    for bug in [Bug::SilentAboutRead, Bug::OtherBase, Bug::KeepsAll, Bug::SameCookie, Bug::KeepsSlot] {
        let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        match runner.run(&sequences(), |operations| check(bug, &operations)) {
            Err(TestError::Fail(reason, steps)) => assert!(steps.len() <= 8, "{bug:?}: {reason}: {steps:#?}"),
            other => panic!("{bug:?} was not found: {other:?}"),
        }
    }
}
