//! The outcomes of operations, as clients see them.

use std::collections::BTreeMap;

/// The outcome of an operation, as the client sees it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome<K, V> {
    /// It succeeded.
    Done,
    /// It read this content.
    Read(Content<K, V>),
    /// The row or table already exists.
    Exists,
    /// The row or table does not exist.
    Missing,
    /// Another client has the writer slot.
    Locked,
    /// The transaction can't write, because the content that it has read was replaced since.
    Stale,
    /// There is no transaction.
    NoTransaction,
    /// The operation is not allowed in a transaction, and the client is in one.
    InTransaction,
    /// There is no savepoint.
    NoSavepoint,
    /// The client has no connection and no unit of work.
    Closed,
    /// Any other error, with its message. The model never predicts it.
    Failed(String),
}

/// The content of a database.
#[derive(Clone, Debug, PartialEq)]
pub struct Content<K, V> {
    /// The rows.
    pub rows: BTreeMap<K, V>,
    /// The harness's own tables, by number, with the value in their row.
    pub tables: BTreeMap<usize, u8>,
}

/// All visible effects of an operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect<K, V> {
    /// The outcome.
    pub outcome: Outcome<K, V>,
    /// Whether it replaced the committed content, even by equal content. Transactions that have read the old content
    /// can't write any more.
    pub replaced: bool,
}
