//! Operations on engines, and the strategies that generate them.

use std::fmt::Debug;

use proptest::collection::{SizeRange, vec};
use proptest::prelude::*;

/// The number of clients: enough for one that writes, one that has read older content, and one that observes.
pub const CLIENTS: usize = 3;

/// An operation on engines.
///
/// A *client* has one connection or unit of work, or none. If an operation needs one, the client opens a connection to
/// the first engine. Clients, engines, snapshots, savepoints and tables have numbers, which are taken modulo their
/// count.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Operation<K, V> {
    /// Executes a statement, in the client's transaction or in autocommit mode.
    Do {
        /// The client.
        client: usize,
        /// The statement.
        statement: RowStatement<K, V>,
    },
    /// Opens a connection or a unit of work, and drops what the client had before.
    Open {
        /// The client.
        client: usize,
        /// The engine.
        engine: usize,
        /// What to open.
        kind: Kind,
    },
    /// `BEGIN`.
    Begin {
        /// The client.
        client: usize,
        /// Whether it takes the writer slot at once, by `BEGIN IMMEDIATE`.
        immediate: bool,
    },
    /// Commits. This ends a unit of work; a connection stays open.
    Commit {
        /// The client.
        client: usize,
    },
    /// Rolls back. This ends a unit of work; a connection stays open.
    Rollback {
        /// The client.
        client: usize,
    },
    /// Drops what the client has: a unit of work is rolled back, a connection is closed.
    Drop {
        /// The client.
        client: usize,
    },
    /// Drops what the client has, during a panic.
    Panic {
        /// The client.
        client: usize,
    },
    /// `VACUUM`.
    Vacuum {
        /// The client.
        client: usize,
    },
    /// Takes a snapshot, for a later `Restore`.
    Snapshot {
        /// The engine.
        engine: usize,
    },
    /// Restores a snapshot, of this engine or another one. From the start, there is one of an engine that no client
    /// uses: it has the first engine's content, and one of the harness's own tables.
    Restore {
        /// The engine.
        engine: usize,
        /// The snapshot.
        snapshot: usize,
    },
    /// Resets the engine to the content that it was created with.
    Reset {
        /// The engine.
        engine: usize,
    },
    /// Forks the engine: adds one that starts with its content.
    Fork {
        /// The engine.
        engine: usize,
    },
}

/// Where an operation takes place.
pub(super) enum Place {
    Client(usize),
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
            Operation::Do { client, .. }
            | Operation::Begin { client, .. }
            | Operation::Commit { client }
            | Operation::Rollback { client }
            | Operation::Drop { client }
            | Operation::Panic { client }
            | Operation::Vacuum { client } => Place::Client(client),
        }
    }

    /// Returns the client that needs a connection for this operation.
    pub(super) fn needs_connection(&self) -> Option<usize> {
        match *self {
            Operation::Do { client, .. } | Operation::Begin { client, .. } | Operation::Vacuum { client } => {
                Some(client)
            }
            _ => None,
        }
    }
}

/// A statement on rows, on savepoints, or on the harness's own tables.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RowStatement<K, V> {
    /// Reads all rows, and the harness's own tables.
    Read,
    /// Inserts a row.
    Insert {
        /// Its key, which may exist already.
        key: K,
        /// Its value.
        value: V,
    },
    /// Updates the value of a row.
    Update {
        /// Its key, which may not exist.
        key: K,
        /// The new value.
        value: V,
    },
    /// Deletes a row.
    Delete {
        /// Its key, which may not exist.
        key: K,
    },
    /// Sets a savepoint. Outside of a transaction, this begins one.
    Savepoint,
    /// Rolls back to a savepoint, which stays.
    RollbackTo {
        /// The savepoint, counted from the outermost.
        savepoint: usize,
    },
    /// Releases a savepoint and those within it. If the savepoint began the transaction, this commits it.
    Release {
        /// The savepoint, counted from the outermost.
        savepoint: usize,
    },
    /// Creates one of the harness's own tables, with one row in it.
    CreateTable {
        /// The table.
        table: usize,
        /// Whether its columns are in reverse order: another schema, for which the same query works.
        reversed: bool,
        /// The value in the row.
        value: u8,
    },
    /// Drops one of the harness's own tables.
    DropTable {
        /// The table.
        table: usize,
    },
}

impl<K, V> RowStatement<K, V> {
    /// Returns whether the statement calls [`Rows::insert`](super::Rows::insert), `update` or `delete`.
    pub(super) fn writes_row(&self) -> bool {
        matches!(self, RowStatement::Insert { .. } | RowStatement::Update { .. } | RowStatement::Delete { .. })
    }
}

/// What a client opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// [`Engine::unit_of_work`](crate::Engine::unit_of_work).
    UnitOfWork,
    /// [`Engine::begin`](crate::Engine::begin), immediate: it takes the writer slot at once.
    Immediate,
    /// [`Engine::pooled_connection`](crate::Engine::pooled_connection).
    Pooled,
    /// [`Engine::connect`](crate::Engine::connect), with a page cache too small for large rows.
    Connection,
    /// [`Connection::open`](rusqlite::Connection::open) with [`Engine::uri`](crate::Engine::uri), and the same small
    /// cache. The template's `on_connect` sets it up, and it does not wait.
    Uri,
}

/// What a client without a connection opens, by its number.
pub(super) const INITIAL_KINDS: [Kind; CLIENTS] = [Kind::Pooled, Kind::Connection, Kind::Uri];

/// The table in the first snapshot, and the value in its row.
pub(super) const FOREIGN_TABLE: (usize, u8) = (0, 9);

/// The number of tables that the harness creates and drops.
pub(super) const TABLES: usize = 2;

/// Generates sequences of operations, with keys and values from these strategies, and of a length within `size` or
/// somewhat less. Use few different keys, so that operations on the same row are frequent.
pub fn operations<K, V>(
    keys: impl Strategy<Value = K> + 'static,
    values: impl Strategy<Value = V> + 'static,
    size: impl Into<SizeRange>,
) -> impl Strategy<Value = Vec<Operation<K, V>>>
where
    K: Clone + Debug + 'static,
    V: Clone + Debug + 'static,
{
    // proptest removes elements of a vector before it simplifies the others. Some elements become unnecessary only
    // after that, so each element may also shrink to nothing.
    let perhaps = prop_oneof![1 => Just(None), 50 => operation(keys.boxed(), values.boxed()).prop_map(Some)];
    vec(perhaps, size).prop_map(|operations| operations.into_iter().flatten().collect())
}

/// Simple operations come first, because a failure shrinks towards them.
fn operation<K, V>(keys: BoxedStrategy<K>, values: BoxedStrategy<V>) -> impl Strategy<Value = Operation<K, V>>
where
    K: Clone + Debug + 'static,
    V: Clone + Debug + 'static,
{
    // Mostly the first engine. Otherwise clients would rarely use the same engine.
    let (client, engine) = (0..CLIENTS, prop_oneof![6 => Just(0usize), 1 => 1..4usize]);
    let of_client = prop_oneof![
        40 => (client.clone(), statement(keys, values)).prop_map(|(client, statement)| Operation::Do { client, statement }),
        7 => (client.clone(), engine.clone(), kind()).prop_map(|(client, engine, kind)| Operation::Open { client, engine, kind }),
        6 => (client.clone(), any::<bool>()).prop_map(|(client, immediate)| Operation::Begin { client, immediate }),
        5 => client.clone().prop_map(|client| Operation::Commit { client }),
        3 => client.clone().prop_map(|client| Operation::Rollback { client }),
        1 => client.clone().prop_map(|client| Operation::Drop { client }),
        1 => client.clone().prop_map(|client| Operation::Panic { client }),
        1 => client.prop_map(|client| Operation::Vacuum { client }),
    ];
    let of_engine = prop_oneof![
        2 => engine.clone().prop_map(|engine| Operation::Snapshot { engine }),
        3 => (engine.clone(), 0..4usize).prop_map(|(engine, snapshot)| Operation::Restore { engine, snapshot }),
        3 => engine.clone().prop_map(|engine| Operation::Reset { engine }),
        1 => engine.prop_map(|engine| Operation::Fork { engine }),
    ];
    prop_oneof![9 => of_client, 1 => of_engine]
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

fn statement<K, V>(keys: BoxedStrategy<K>, values: BoxedStrategy<V>) -> impl Strategy<Value = RowStatement<K, V>>
where
    K: Clone + Debug + 'static,
    V: Clone + Debug + 'static,
{
    let tables = prop_oneof![
        2 => (0..TABLES, any::<bool>(), 0..4u8)
            .prop_map(|(table, reversed, value)| RowStatement::CreateTable { table, reversed, value }),
        1 => (0..TABLES).prop_map(|table| RowStatement::DropTable { table }),
    ];
    prop_oneof![8 => on_rows(keys, values), 1 => tables]
}

/// Generates statements on rows and savepoints.
pub(super) fn on_rows<K, V>(
    keys: BoxedStrategy<K>,
    values: BoxedStrategy<V>,
) -> impl Strategy<Value = RowStatement<K, V>>
where
    K: Clone + Debug + 'static,
    V: Clone + Debug + 'static,
{
    prop_oneof![
        5 => Just(RowStatement::Read),
        4 => (keys.clone(), values.clone()).prop_map(|(key, value)| RowStatement::Insert { key, value }),
        4 => (keys.clone(), values).prop_map(|(key, value)| RowStatement::Update { key, value }),
        2 => keys.prop_map(|key| RowStatement::Delete { key }),
        4 => Just(RowStatement::Savepoint),
        3 => (0..3usize).prop_map(|savepoint| RowStatement::RollbackTo { savepoint }),
        1 => (0..3usize).prop_map(|savepoint| RowStatement::Release { savepoint }),
    ]
}
