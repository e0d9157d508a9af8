//! Engines of a template are reused with their connections, and nothing of one test reaches the next.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use rusqlite::config::DbConfig;
use rusqlite::functions::FunctionFlags;
use rusqlite::limits::Limit;
use rusqlite_fixtures::rusqlite::{self, Connection};
use rusqlite_fixtures::{BoxError, Engine, PooledConnection, Template, UnitOfWork};

use crate::leaks::{SCHEMA, SQL, leave_unfinished, view_of};
use crate::support::{deserialize, number, trace};

/// Returns whether the template's next engine is reused with its connections. SQLite's total count of changes shows this,
/// because it is the one thing that can't be reset on a connection.
fn is_warm(template: &Template) -> bool {
    number(&template.unit_of_work().unwrap(), "SELECT total_changes()") > 0
}

#[test]
fn an_engine_is_reused_with_its_connections() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-again");
    let uri = {
        let engine = TEMPLATE.new_engine().unwrap();
        engine.try_transaction(|work| work.execute("INSERT INTO account (owner) VALUES ('Edsger')", [])).unwrap();
        engine.set_lock_timeout(Duration::ZERO);
        engine.uri().to_owned()
    };
    assert!(
        Connection::open(&uri).is_err(),
        "the old name must be gone, or a late connection would reach the next test"
    );
    assert!(is_warm(&TEMPLATE));
    let engine = TEMPLATE.new_engine().unwrap();
    assert_ne!(engine.uri(), uri);
    let work = engine.unit_of_work().unwrap();
    assert_eq!((work.changes(), work.last_insert_rowid(), number(&work, "SELECT changes()")), (0, 0, 0));
    work.execute("INSERT INTO account (owner) VALUES ('Barbara')", []).unwrap();
    assert_eq!(work.last_insert_rowid(), 3, "AUTOINCREMENT starts again from the template");
}

/// It may know what the template does not have, such as statistics, although the schema looks the same.
#[test]
fn a_connection_that_was_opened_on_other_content_is_not_reused() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-other-content");
    let engine = TEMPLATE.new_engine().unwrap();
    engine.connect().unwrap().execute("INSERT INTO account (owner) VALUES ('Edsger')", []).unwrap();
    engine.try_transaction(|work| work.execute("DELETE FROM entry", [])).unwrap();
    drop(engine);
    assert!(!is_warm(&TEMPLATE));
}

/// Connections that must be closed neither keep the engine from being reused nor take the place of the others.
#[test]
fn an_engine_is_reused_beside_many_connections_that_are_not() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-some");
    let engine = TEMPLATE.new_engine().unwrap();
    let reusable = engine.pooled_connection().unwrap();
    reusable.execute("INSERT INTO account (owner) VALUES ('Edsger')", []).unwrap();
    let others: Vec<_> = (0..10).map(|_| engine.pooled_connection().unwrap()).collect();
    drop(others);
    drop(reusable); // it is idle behind the others
    drop(engine);
    assert!(is_warm(&TEMPLATE));
}

/// A reset would return it to the content that it was created with, which is not the template's.
#[test]
fn a_fork_does_not_become_an_engine_of_the_template() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-fork");
    let engine = TEMPLATE.new_engine().unwrap();
    engine.try_transaction(|work| work.execute("DELETE FROM entry", [])).unwrap();
    drop(engine.fork());
    assert_eq!(number(&TEMPLATE.unit_of_work().unwrap(), "SELECT count(*) FROM entry"), 2);
}

#[test]
fn a_pooled_connection_names_its_engine() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-names");
    let engine = TEMPLATE.new_engine().unwrap();
    let connection = engine.pooled_connection().unwrap();
    assert_eq!(*connection.engine(), engine);
    let described = format!("{connection:?}");
    assert!(
        described.starts_with("PooledConnection { engine: \"engine ") && described.contains("warm-names"),
        "{described}"
    );
}

/// Most code under test does this, and SQLite would re-prepare all statements for it.
#[test]
fn setting_foreign_keys_to_their_current_value_does_not_prevent_reuse() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-foreign-keys");
    let set = |value: &str| {
        let connection = TEMPLATE.new_engine().unwrap().pooled_connection().unwrap();
        connection.execute(&format!("PRAGMA foreign_keys = {value}"), []).unwrap();
        connection.pragma_update(None, "foreign_keys", value).unwrap();
        connection.execute("DELETE FROM entry", []).unwrap();
        let set = number(&connection, "PRAGMA foreign_keys");
        drop(connection);
        (set, is_warm(&TEMPLATE))
    };
    for on in ["ON", "1", "yes", "TRUE"] {
        assert_eq!(set(on), (1, true), "{on}");
    }
    assert_eq!(set("OFF"), (0, false));
    let work = TEMPLATE.unit_of_work().unwrap();
    work.execute_batch("PRAGMA foreign_keys = OFF; DELETE FROM entry").unwrap();
    assert_eq!(number(&work, "PRAGMA foreign_keys"), 1, "the pragma does nothing within a transaction");
    drop(work);
    assert!(is_warm(&TEMPLATE));
}

/// Outside of a transaction, the crate runs no statement on the connection that would detect these changes.
#[test]
fn changes_of_a_pooled_connection_do_not_carry_over() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-pooled");
    let engine = TEMPLATE.new_engine().unwrap();
    let connection = engine.pooled_connection().unwrap();
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
    connection.create_scalar_function("upper", 1, FunctionFlags::SQLITE_UTF8, |_| Ok("another test's")).unwrap();
    drop(connection);
    let mut next = engine.pooled_connection().unwrap();
    next.set_transaction_behavior(rusqlite::TransactionBehavior::Exclusive);
    drop(next);
    engine.set_lock_timeout(Duration::ZERO);
    let mut next = engine.pooled_connection().unwrap();
    let writer = engine.begin(rusqlite::TransactionBehavior::Immediate).unwrap();
    assert!(next.transaction().is_ok(), "the transaction is deferred");
    drop((writer, next));
    let next = engine.pooled_connection().unwrap();
    assert_eq!(next.db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER), Ok(true));
    assert_eq!(number(&next, "SELECT upper('a') = 'A'"), 1);
}

#[test]
fn a_retired_engine_is_not_reused() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-retired");
    let engine = TEMPLATE.new_engine().unwrap();
    let work = engine.unit_of_work().unwrap();
    work.create_scalar_function("left_over", 0, FunctionFlags::SQLITE_UTF8, |_| Ok(1)).unwrap();
    work.execute("DELETE FROM account", []).unwrap();
    engine.retire();
    drop(work);
    assert!(
        engine.unit_of_work().unwrap().prepare("SELECT left_over()").is_err(),
        "its connections are not reused, either"
    );
    drop(engine);
    assert!(!is_warm(&TEMPLATE));
}

/// An engine stays with a connection that is still open.
#[test]
fn an_engine_that_is_still_connected_is_not_reused() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-connected");
    let engine = TEMPLATE.new_engine().unwrap();
    engine.try_transaction(|work| work.execute("DELETE FROM account", [])).unwrap();
    for late in [engine.connect().unwrap(), Connection::open(engine.uri()).unwrap()] {
        let engine = TEMPLATE.new_engine().unwrap();
        assert_eq!(number(&engine.unit_of_work().unwrap(), "SELECT count(*) FROM account"), 2);
        late.execute("DELETE FROM entry", []).unwrap();
        assert_eq!(number(&late, "SELECT count(*) FROM account"), 0);
    }
    let late = engine.connect().unwrap();
    drop(engine);
    late.execute("INSERT INTO account (owner) VALUES ('late')", []).unwrap();
    let next = TEMPLATE.unit_of_work().unwrap();
    assert_eq!(number(&next, "SELECT count(*) FROM account"), 2);
    drop(late);
    assert_eq!(number(&next, "SELECT count(*) FROM account"), 2);
}

/// The question whether a dropped transaction has changed something leaves the authorizer that watches for changes.
#[test]
fn a_connection_is_watched_after_a_transaction_without_a_change_was_dropped() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-watched");
    let view = || view_of(&TEMPLATE.unit_of_work().unwrap());
    let expected = view();
    for sql in ["PRAGMA temp.cache_size = 5", "ANALYZE", "CREATE UNIQUE INDEX not_unique ON entry (amount)"] {
        let engine = TEMPLATE.new_engine().unwrap();
        drop(engine.begin(rusqlite::TransactionBehavior::Immediate).unwrap());
        let work = engine.unit_of_work().unwrap();
        drop(work.execute_batch(sql));
        drop((work, engine));
        assert_eq!(view(), expected, "{sql}");
    }
}

/// A hook of the code is called when its transaction is dropped.
#[test]
fn a_rollback_hook_is_called_if_a_transaction_without_a_change_is_dropped() {
    let engine = Engine::new();
    let mut connection = engine.pooled_connection().unwrap();
    let called = Arc::new(AtomicBool::new(false));
    let set = {
        let called = called.clone();
        move || called.store(true, Ordering::Relaxed)
    };
    let _ = connection.rollback_hook(Some(set));
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    drop(connection);
    assert!(called.load(Ordering::Relaxed));
}

/// `on_connect` may remove the authorizer that watches for changes of the schema.
#[test]
#[allow(unsafe_code, reason = "calls SQLite's C interface, because rusqlite takes a mutable connection for this")]
fn a_connection_that_can_not_be_watched_is_not_reused() {
    fn remove_authorizer(connection: &Connection) -> Result<(), BoxError> {
        // SAFETY: the connection is open, and SQLite takes a null pointer to remove the authorizer.
        unsafe { rusqlite::ffi::sqlite3_set_authorizer(connection.handle(), None, std::ptr::null_mut()) };
        Ok(())
    }
    static WATCHED: Template = Template::sql(SCHEMA).on_connect(|_| Ok(()));
    static UNWATCHED: Template = Template::sql(SCHEMA).on_connect(remove_authorizer);
    for template in [&WATCHED, &UNWATCHED] {
        template.new_engine().unwrap().try_transaction(|work| work.execute("DELETE FROM entry", [])).unwrap();
    }
    assert_eq!((is_warm(&WATCHED), is_warm(&UNWATCHED)), (true, false));
}

/// A connection of another engine does not take the place of the engine's own.
#[test]
fn a_connection_that_was_exchanged_is_not_reused() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-exchanged");
    let (one, other) = (TEMPLATE.new_engine().unwrap(), TEMPLATE.new_engine().unwrap());
    let (mut a, mut b) = (one.pooled_connection().unwrap(), other.pooled_connection().unwrap());
    std::mem::swap::<Connection>(&mut a, &mut b);
    b.execute("DELETE FROM entry", []).unwrap();
    drop((a, b));
    let mut taken = one.pooled_connection().unwrap();
    let connection = std::mem::replace::<Connection>(&mut taken, Connection::open_in_memory().unwrap());
    drop(taken);
    assert_eq!(number(&connection, "SELECT count(*) FROM entry"), 0, "it continues as an ordinary connection");
    drop((connection, one, other));
    for _ in 0..3 {
        assert_eq!(number(&TEMPLATE.unit_of_work().unwrap(), "SELECT count(*) FROM entry"), 2);
    }
}

#[test]
fn nothing_of_a_test_that_panics_carries_over() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-panic");
    let failed = catch_unwind(|| {
        let engine = TEMPLATE.new_engine().unwrap();
        let work = engine.unit_of_work().unwrap();
        work.execute("DELETE FROM account", []).unwrap();
        work.commit().unwrap();
        let _open = engine.begin(rusqlite::TransactionBehavior::Immediate).unwrap();
        panic!("as a failing assertion does");
    });
    assert!(failed.is_err());
    let engine = TEMPLATE.new_engine().unwrap();
    engine.set_lock_timeout(Duration::ZERO);
    let work = engine.begin(rusqlite::TransactionBehavior::Immediate).unwrap();
    assert_eq!(number(&work, "SELECT count(*) FROM account"), 2);
}

/// What one test may leave behind.
#[derive(Clone, Copy, Debug)]
enum Leak {
    Sql(&'static str),
    Limit,
    Config,
    UpdateHook,
    CommitHook,
    Progress,
    Trace,
    BusyTimeout,
    RedefinedFunction,
    RedefinedCollation,
    UnfinishedStatement,
    LockTimeout,
    Reset,
    Exchange,
    /// Moves the connection out of the pooled connection, and continues to use it.
    MoveOut,
    Deserialize,
    CollationNeeded,
    /// Opens connections that go to the pool, after the leaks before it.
    OpenAnother,
}

fn leak() -> impl Strategy<Value = Leak> {
    use Leak::*;
    let others = [
        Limit,
        Config,
        UpdateHook,
        CommitHook,
        Progress,
        Trace,
        BusyTimeout,
        RedefinedFunction,
        RedefinedCollation,
        UnfinishedStatement,
        LockTimeout,
        Reset,
        Exchange,
        MoveOut,
        Deserialize,
        CollationNeeded,
        OpenAnother,
        OpenAnother,
    ];
    prop_oneof![
        5 => prop::sample::select(SQL.as_slice()).prop_map(Sql),
        1 => prop::sample::select(others.to_vec()),
    ]
}

/// What a test holds: one connection of each kind, all on one engine.
struct TestState {
    own: Connection,
    work: UnitOfWork,
    pooled: PooledConnection,
    /// Dropped last; otherwise the engine would still be connected and would not be reused.
    engine: Engine,
}

impl TestState {
    fn of(template: &Template) -> TestState {
        let engine = template.new_engine().unwrap();
        engine.set_lock_timeout(Duration::ZERO); // a test must not wait for itself
        let (work, pooled) = (engine.unit_of_work().unwrap(), engine.pooled_connection().unwrap());
        TestState { work, pooled, own: engine.connect().unwrap(), engine }
    }

    /// Leaves this behind on one of the connections, unless SQLite refuses it.
    fn leave(&mut self, leak: Leak, which: usize) {
        // Hooks take a mutable connection, which a unit of work does not give.
        let is_hook = matches!(leak, Leak::UpdateHook | Leak::CommitHook | Leak::Progress | Leak::Trace);
        if is_hook {
            return set_hook(if which == 2 { &mut self.own } else { &mut self.pooled }, leak);
        }
        let connection: &Connection = [&*self.work, &*self.pooled, &self.own][which];
        match leak {
            Leak::Sql(sql) => drop(connection.execute_batch(sql)),
            Leak::Limit => drop(connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, 5000)),
            Leak::Config => drop(connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)),
            Leak::UpdateHook | Leak::CommitHook | Leak::Progress | Leak::Trace => unreachable!("set above"),
            Leak::BusyTimeout => connection.busy_timeout(Duration::from_millis(1)).unwrap(),
            Leak::RedefinedFunction => {
                let flags = FunctionFlags::SQLITE_UTF8;
                drop(connection.create_scalar_function("upper", 1, flags, |_| Ok("another test's")));
            }
            Leak::RedefinedCollation => drop(connection.create_collation("NOCASE", |one, other| other.cmp(one))),
            Leak::UnfinishedStatement => leave_unfinished(connection, "VALUES (1), (2)"),
            Leak::LockTimeout => self.engine.set_lock_timeout(Duration::from_millis(1)),
            Leak::Reset => drop(self.engine.reset()),
            Leak::Exchange => std::mem::swap::<Connection>(&mut self.pooled, &mut self.own),
            Leak::MoveOut => {
                let moved = std::mem::replace::<Connection>(&mut self.pooled, Connection::open_in_memory().unwrap());
                self.own = moved;
            }
            Leak::Deserialize => {
                let bytes: &[u8] = &Engine::new().snapshot().to_bytes();
                let deserialized: &mut Connection = if which == 2 { &mut self.own } else { &mut self.pooled };
                drop(deserialize(deserialized, bytes));
            }
            Leak::CollationNeeded => {
                fn create(connection: &Connection, name: &str) -> rusqlite::Result<()> {
                    connection.create_collation(name, |one, other| one.cmp(other))
                }
                drop(connection.collation_needed(create));
            }
            Leak::OpenAnother => drop((self.engine.pooled_connection(), self.engine.unit_of_work())),
        }
    }
}

fn set_hook(hooked: &mut Connection, leak: Leak) {
    match leak {
        Leak::UpdateHook => {
            let hook: fn(rusqlite::hooks::Action, &str, &str, i64) = |_, _, _, _| panic!("another test's hook");
            let _ = hooked.update_hook(Some(hook));
        }
        Leak::CommitHook => {
            let _ = hooked.commit_hook(Some(|| true));
        }
        Leak::Progress => {
            let _ = hooked.progress_handler(1, Some(|| true));
        }
        Leak::Trace => trace(hooked),
        _ => unreachable!("no hook"),
    }
}

/// Returns all that a test could observe, in a unit of work that is rolled back and on a connection.
fn view(engine: &Engine) -> Vec<String> {
    let work = engine.unit_of_work().unwrap();
    assert!(!work.is_autocommit());
    let mut view = view_of(&work);
    drop(work);
    let connection = engine.pooled_connection().unwrap();
    assert!(connection.is_autocommit());
    view.extend(view_of(&connection));
    view
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever one test leaves behind, the next sees what it would see on a new engine.
    #[test]
    fn nothing_reaches_the_next_test(leaks in prop::collection::vec((leak(), 0..3usize), 1..8), panics in any::<bool>()) {
        static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-property");
        let cold: Vec<String> = view(&TEMPLATE.snapshot().unwrap().new_engine());
        for _ in 0..2 {
            let mut state = TestState::of(&TEMPLATE);
            for (leak, which) in &leaks {
                state.leave(*leak, *which);
            }
            if panics {
                let panicked = catch_unwind(AssertUnwindSafe(move || {
                    let _state = state;
                    std::panic::resume_unwind(Box::new("as a failing test does, without the hook that prints it"));
                }));
                prop_assert!(panicked.is_err());
            }
        }
        let next = TEMPLATE.new_engine().unwrap();
        let warm = view(&next);
        for (warm, cold) in warm.iter().zip(&cold) {
            prop_assert_eq!(warm, cold);
        }
        prop_assert_eq!(warm.len(), cold.len());
    }
}

/// The property would prove nothing if each engine were a new one.
#[test]
fn the_property_runs_on_reused_engines() {
    static TEMPLATE: Template = Template::sql(SCHEMA).key("warm-control");
    let stays_warm = |leak: Leak, which: usize| {
        let mut state = TestState::of(&TEMPLATE);
        state.leave(Leak::Sql("INSERT INTO account (owner) VALUES (random())"), which);
        state.leave(leak, which);
        drop(state);
        is_warm(&TEMPLATE)
    };
    // On the pooled connection, which is returned last and so is reused first.
    let warm: Vec<&str> = SQL.into_iter().filter(|sql| stays_warm(Leak::Sql(sql), 1)).collect();
    for sql in [
        "DELETE FROM account",
        "UPDATE entry SET amount = 7",
        "BEGIN",
        "BEGIN IMMEDIATE",
        "SAVEPOINT s",
        "PRAGMA user_version = 7",
    ] {
        assert!(warm.contains(&sql), "{sql} prevents the reuse of a connection; {warm:?} do not");
    }
    for leak in [Leak::Progress, Leak::Trace, Leak::BusyTimeout, Leak::LockTimeout] {
        assert!(stays_warm(leak, 1), "{leak:?}");
    }
}
