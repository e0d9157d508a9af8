//! What one test may leave behind on a connection, and what the next could observe of it.

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite_fixtures::rusqlite::{self, Connection};

pub(crate) const SCHEMA: &str = "
    CREATE TABLE account (id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL COLLATE NOCASE UNIQUE);
    CREATE TABLE entry (account INTEGER NOT NULL REFERENCES account ON DELETE CASCADE, amount INTEGER NOT NULL);
    CREATE INDEX entry_account ON entry (account);
    CREATE VIEW total AS SELECT account, sum(amount) AS amount FROM entry GROUP BY account;
    CREATE TRIGGER opened AFTER INSERT ON account BEGIN INSERT INTO entry VALUES (new.id, 0); END;
    INSERT INTO account (owner) VALUES ('Ada'), ('Grace');
    ANALYZE;";

/// SQL that may change the connection.
pub(crate) const SQL: [&str; 48] = [
    "CREATE UNIQUE INDEX not_unique ON entry (amount)",
    "COMMIT; CREATE UNIQUE INDEX not_unique ON entry (amount)",
    "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, 'amount', 'sum') WHERE name = 'entry'",
    "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 500) INSERT INTO entry SELECT 1, n FROM n; ANALYZE",
    "INSERT INTO account (owner) VALUES (random())",
    "INSERT OR IGNORE INTO account (owner) VALUES ('Ada')",
    "DELETE FROM account",
    "UPDATE sqlite_sequence SET seq = 1000",
    "UPDATE entry SET amount = 7",
    "COMMIT",
    "BEGIN",
    "BEGIN IMMEDIATE",
    "ROLLBACK",
    "SAVEPOINT s",
    "RELEASE s",
    "CREATE TABLE extra (a)",
    "CREATE TEMP TABLE account (id, owner)",
    "CREATE TEMP TABLE scratch (a)",
    "CREATE TEMP VIEW entry AS SELECT 1 AS account, 2 AS amount",
    "CREATE TEMP TRIGGER t AFTER INSERT ON account BEGIN DELETE FROM entry; END",
    "DROP TABLE entry",
    "DROP VIEW total",
    "DROP TRIGGER opened",
    "DROP INDEX entry_account",
    "ALTER TABLE account ADD COLUMN age",
    "CREATE INDEX extra_index ON entry (amount)",
    "ATTACH ':memory:' AS other",
    "DETACH other",
    "CREATE TABLE other.t (a)",
    "ANALYZE",
    "VACUUM",
    "REINDEX",
    "PRAGMA user_version = 7",
    "PRAGMA application_id = 7",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA defer_foreign_keys = ON",
    "PRAGMA recursive_triggers = ON",
    "PRAGMA case_sensitive_like = ON",
    "PRAGMA query_only = ON",
    "PRAGMA writable_schema = ON",
    "PRAGMA ignore_check_constraints = ON",
    "PRAGMA reverse_unordered_selects = ON",
    "PRAGMA max_page_count = 2000",
    "PRAGMA cache_size = 5",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA synchronous = OFF",
    "PRAGMA page_size = 512",
    "PRAGMA schema_version = 77",
];

/// Leaves a statement before its last row, and never finalizes it.
pub(crate) fn leave_unfinished(connection: &Connection, sql: &str) {
    let Ok(mut statement) = connection.prepare(sql) else { return };
    if let Ok(mut rows) = statement.query([]) {
        let _ = rows.next();
        std::mem::forget(rows);
    }
    std::mem::forget(statement);
}

const PRAGMAS: [&str; 26] = [
    "application_id",
    "auto_vacuum",
    "busy_timeout",
    "cache_size",
    "cell_size_check",
    "defer_foreign_keys",
    "encoding",
    "foreign_keys",
    "freelist_count",
    "fullfsync",
    "ignore_check_constraints",
    "journal_mode",
    "legacy_alter_table",
    "locking_mode",
    "max_page_count",
    "page_count",
    "page_size",
    "query_only",
    "read_uncommitted",
    "recursive_triggers",
    "reverse_unordered_selects",
    "secure_delete",
    "synchronous",
    "temp_store",
    "user_version",
    "writable_schema",
];

/// Returns what a test could observe by the connection, and changes the content.
pub(crate) fn view_of(connection: &Connection) -> Vec<String> {
    let mut view = vec![format!("changes {}, last rowid {}", connection.changes(), connection.last_insert_rowid())];
    for pragma in PRAGMAS {
        let value =
            connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, rusqlite::types::Value>(0));
        view.push(format!("{pragma} = {value:?}"));
    }
    for config in [
        DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER,
        DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW,
        DbConfig::SQLITE_DBCONFIG_DEFENSIVE,
        DbConfig::SQLITE_DBCONFIG_DQS_DML,
    ] {
        view.push(format!("{config:?}: {:?}", connection.db_config(config)));
    }
    view.push(format!("length {:?}", connection.limit(Limit::SQLITE_LIMIT_LENGTH)));
    for sql in [
        "SELECT group_concat(type || name || coalesce(sql, ''), x'0a') FROM (SELECT * FROM sqlite_schema ORDER BY name)",
        "SELECT group_concat(name) FROM temp.sqlite_schema",
        "SELECT group_concat(name) FROM pragma_database_list",
        "SELECT 1 FROM account ORDER BY owner COLLATE leaked",
        "SELECT group_concat(id || owner) FROM account",
        "SELECT group_concat(account || ':' || amount) FROM entry",
        "SELECT group_concat(account || ':' || amount) FROM total",
        "SELECT group_concat(name || seq) FROM sqlite_sequence",
        "SELECT upper('a') || ('a' LIKE 'A') || ('a' = 'A' COLLATE NOCASE)",
        "INSERT INTO account (owner) VALUES ('new'), ('newer') RETURNING id",
        "INSERT INTO account (owner) VALUES ('ADA') RETURNING id",
        "INSERT INTO entry VALUES (99, 1) RETURNING account",
        "SELECT count(*) || ':' || sum(amount) FROM entry",
        "DELETE FROM account WHERE id = 1 RETURNING changes()",
        "PRAGMA integrity_check",
    ] {
        let row = connection.query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0));
        view.push(format!("{sql}: {row:?}, {}", connection.changes()));
    }
    for sql in ["SELECT * FROM entry WHERE account = 1", "SELECT * FROM account JOIN entry ON account = id"] {
        let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps: Vec<String> = plan.query_map([], |row| row.get(3)).unwrap().map(Result::unwrap).collect();
        view.push(format!("{sql}: {steps:?}"));
    }
    if connection.is_autocommit() {
        view.push(format!("VACUUM {:?}", connection.execute_batch("VACUUM")));
    }
    view
}
