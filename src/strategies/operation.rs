//! What is done to engines, and how it is generated.

use std::fmt::Debug;

use proptest::collection::{SizeRange, vec};
use proptest::prelude::*;

/// How many hands there are: enough for one that writes, one that has read something older, and one that looks on.
pub const HANDS: usize = 3;

/// One thing that is done to engines.
///
/// A *hand* is a place for one connection or unit of work. One that has nothing takes a connection to the first engine when it
/// is to do something. Hands, engines, snapshots, savepoints and tables are given by
/// numbers, which are taken modulo how many there are.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation<K, V> {
    /// Something within a transaction, or by itself where there is none.
    Do {
        /// Whose.
        hand: usize,
        /// What.
        statement: Statement<K, V>,
    },
    /// Takes a connection or a unit of work, and drops what the hand had before.
    Open {
        /// For which hand.
        hand: usize,
        /// On which engine.
        engine: usize,
        /// Of which kind.
        kind: Kind,
    },
    /// `BEGIN`.
    Begin {
        /// Whose.
        hand: usize,
        /// Whether it takes the writer slot right away.
        immediate: bool,
    },
    /// Commits. A unit of work has ended then, a connection goes on.
    Commit {
        /// Whose.
        hand: usize,
    },
    /// Rolls back. A unit of work has ended then, a connection goes on.
    Rollback {
        /// Whose.
        hand: usize,
    },
    /// Drops what the hand has: a unit of work is rolled back, a connection closed.
    Drop {
        /// Whose.
        hand: usize,
    },
    /// Drops what the hand has in a panic.
    Panic {
        /// Whose.
        hand: usize,
    },
    /// `VACUUM`.
    Vacuum {
        /// By whom.
        hand: usize,
    },
    /// Keeps a snapshot.
    Snapshot {
        /// Of which engine.
        engine: usize,
    },
    /// Goes to a snapshot, of this engine or another one. There is one from the start: the first engine's content and one of
    /// the harness's own tables, of an engine that no hand has.
    Restore {
        /// Which engine.
        engine: usize,
        /// To which snapshot.
        snapshot: usize,
    },
    /// Goes back to what the engine was created with.
    Reset {
        /// Which engine.
        engine: usize,
    },
    /// Makes one more engine, which starts as this one is.
    Fork {
        /// Which engine.
        engine: usize,
    },
}

/// Where an operation is done.
pub(super) enum Place {
    Hand(usize),
    Engine(usize),
}

impl<K, V> Operation<K, V> {
    pub(super) fn place(&self) -> Place {
        match *self {
            Operation::Open { engine, .. }
            | Operation::Snapshot { engine }
            | Operation::Restore { engine, .. }
            | Operation::Reset { engine }
            | Operation::Fork { engine } => Place::Engine(engine),
            Operation::Do { hand, .. }
            | Operation::Begin { hand, .. }
            | Operation::Commit { hand }
            | Operation::Rollback { hand }
            | Operation::Drop { hand }
            | Operation::Panic { hand }
            | Operation::Vacuum { hand } => Place::Hand(hand),
        }
    }

    /// The hand that has to have something for this.
    pub(super) fn needs_connection(&self) -> Option<usize> {
        match *self {
            Operation::Do { hand, .. } | Operation::Begin { hand, .. } | Operation::Vacuum { hand } => Some(hand),
            _ => None,
        }
    }
}

/// What can be done within a transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum Statement<K, V> {
    /// Reads all rows, and the harness's own tables.
    Read,
    /// Inserts a row.
    Insert {
        /// Its key, which may be there already.
        key: K,
        /// Its value.
        value: V,
    },
    /// Gives a row another value.
    Update {
        /// Its key, which may not be there.
        key: K,
        /// The value to be.
        value: V,
    },
    /// Deletes a row.
    Delete {
        /// Its key, which may not be there.
        key: K,
    },
    /// Sets a savepoint. Outside of a transaction that begins one.
    Savepoint,
    /// Goes back to a savepoint, which stays.
    RollbackTo {
        /// To which, counted from the outermost.
        savepoint: usize,
    },
    /// Forgets a savepoint and those within it. That commits, if it began the transaction.
    Release {
        /// Which, counted from the outermost.
        savepoint: usize,
    },
    /// Creates one of the harness's own tables, with one row in it.
    CreateTable {
        /// Which.
        table: usize,
        /// Whether its columns are the other way round, so that its schema is another one which looks the same to a query.
        reversed: bool,
        /// What is in the row.
        value: u8,
    },
    /// Drops one of the harness's own tables.
    DropTable {
        /// Which.
        table: usize,
    },
}

/// How a hand comes to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Engine::unit_of_work`](crate::Engine::unit_of_work).
    UnitOfWork,
    /// [`Engine::begin`](crate::Engine::begin), immediate: with the writer slot from the start.
    Immediate,
    /// [`Engine::pooled_connection`](crate::Engine::pooled_connection).
    Pooled,
    /// [`Engine::connect`](crate::Engine::connect), with a cache that large rows don't fit in.
    Connection,
    /// [`Connection::open`](rusqlite::Connection::open) with [`Engine::uri`](crate::Engine::uri), and such a cache. It is set
    /// up as the template says, and waits for nothing.
    Uri,
}

/// What a hand that has nothing takes.
pub(super) const AT_FIRST: [Kind; HANDS] = [Kind::Pooled, Kind::Connection, Kind::Uri];

/// The table that the first snapshot has, and what is in it.
pub(super) const ELSEWHERE: (usize, u8) = (0, 9);

/// How many tables of its own the harness creates and drops.
pub(super) const TABLES: usize = 2;

/// Sequences of as many operations as `size` says, or somewhat fewer, with keys and values as these strategies give them. Few
/// keys are best, so that operations meet.
pub fn operations<K, V>(
    keys: impl Strategy<Value = K> + 'static,
    values: impl Strategy<Value = V> + 'static,
    size: impl Into<SizeRange>,
) -> impl Strategy<Value = Vec<Operation<K, V>>>
where
    K: Clone + Debug + 'static,
    V: Clone + Debug + 'static,
{
    // What has been made as simple as it can be may turn out not to be needed. But a vector's elements are taken out before
    // they are made simpler, so each may become nothing after that.
    let perhaps = prop_oneof![1 => Just(None), 50 => operation(keys.boxed(), values.boxed()).prop_map(Some)];
    vec(perhaps, size).prop_map(|operations| operations.into_iter().flatten().collect())
}

/// Simple ones first, for a failure shrinks towards those.
fn operation<K, V>(keys: BoxedStrategy<K>, values: BoxedStrategy<V>) -> impl Strategy<Value = Operation<K, V>>
where
    K: Clone + Debug + 'static,
    V: Clone + Debug + 'static,
{
    // Mostly the first engine, or hands would seldom meet.
    let (hand, engine) = (0..HANDS, prop_oneof![6 => Just(0usize), 1 => 1..4usize]);
    let of_hand = prop_oneof![
        40 => (hand.clone(), statement(keys, values)).prop_map(|(hand, statement)| Operation::Do { hand, statement }),
        7 => (hand.clone(), engine.clone(), kind()).prop_map(|(hand, engine, kind)| Operation::Open { hand, engine, kind }),
        6 => (hand.clone(), any::<bool>()).prop_map(|(hand, immediate)| Operation::Begin { hand, immediate }),
        5 => hand.clone().prop_map(|hand| Operation::Commit { hand }),
        3 => hand.clone().prop_map(|hand| Operation::Rollback { hand }),
        1 => hand.clone().prop_map(|hand| Operation::Drop { hand }),
        1 => hand.clone().prop_map(|hand| Operation::Panic { hand }),
        1 => hand.prop_map(|hand| Operation::Vacuum { hand }),
    ];
    let of_engine = prop_oneof![
        2 => engine.clone().prop_map(|engine| Operation::Snapshot { engine }),
        3 => (engine.clone(), 0..4usize).prop_map(|(engine, snapshot)| Operation::Restore { engine, snapshot }),
        3 => engine.clone().prop_map(|engine| Operation::Reset { engine }),
        1 => engine.prop_map(|engine| Operation::Fork { engine }),
    ];
    prop_oneof![9 => of_hand, 1 => of_engine]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::UnitOfWork),
        1 => Just(Kind::Immediate),
        3 => Just(Kind::Pooled),
        2 => Just(Kind::Connection),
        1 => Just(Kind::Uri),
    ]
}

fn statement<K, V>(keys: BoxedStrategy<K>, values: BoxedStrategy<V>) -> impl Strategy<Value = Statement<K, V>>
where
    K: Clone + Debug + 'static,
    V: Clone + Debug + 'static,
{
    let tables = prop_oneof![
        2 => (0..TABLES, any::<bool>(), 0..4u8)
            .prop_map(|(table, reversed, value)| Statement::CreateTable { table, reversed, value }),
        1 => (0..TABLES).prop_map(|table| Statement::DropTable { table }),
    ];
    prop_oneof![8 => on_rows(keys, values), 1 => tables]
}

/// What is done to rows, and savepoints.
pub(super) fn on_rows<K, V>(keys: BoxedStrategy<K>, values: BoxedStrategy<V>) -> impl Strategy<Value = Statement<K, V>>
where
    K: Clone + Debug + 'static,
    V: Clone + Debug + 'static,
{
    prop_oneof![
        5 => Just(Statement::Read),
        4 => (keys.clone(), values.clone()).prop_map(|(key, value)| Statement::Insert { key, value }),
        4 => (keys.clone(), values).prop_map(|(key, value)| Statement::Update { key, value }),
        2 => keys.prop_map(|key| Statement::Delete { key }),
        4 => Just(Statement::Savepoint),
        3 => (0..3usize).prop_map(|savepoint| Statement::RollbackTo { savepoint }),
        1 => (0..3usize).prop_map(|savepoint| Statement::Release { savepoint }),
    ]
}
