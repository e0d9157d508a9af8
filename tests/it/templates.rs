//! A template is built once, and each test gets its content on its own engine.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use rusqlite::TransactionBehavior::Immediate;
use rusqlite::functions::FunctionFlags;
use rusqlite_fixtures::rusqlite::{self, Connection};
use rusqlite_fixtures::{BoxError, Engine, ErrorKind, Template};

use crate::support::{assert_integrity, deserialize, number, text, unique_url};

const SCHEMA: &str = "
    CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT NOT NULL UNIQUE);
    CREATE TABLE entry (account INTEGER NOT NULL REFERENCES account, amount INTEGER NOT NULL);
    CREATE INDEX entry_account ON entry (account);";

static BANK: Template =
    Template::sql(SCHEMA).seed("INSERT INTO account VALUES (1, 'Ada'); INSERT INTO entry VALUES (1, 100);");

fn accounts(engine: &Engine) -> i64 {
    number(&engine.unit_of_work().unwrap(), "SELECT count(*) FROM account")
}

#[test]
fn engines_start_with_the_templates_content_and_are_isolated() {
    let (one, other) = (BANK.new_engine().unwrap(), BANK.new_engine().unwrap());
    assert_ne!(one, other);
    one.try_transaction(|work| work.execute("INSERT INTO account VALUES (2, 'Grace')", [])).unwrap();
    assert_eq!((accounts(&one), accounts(&other)), (2, 1));
    one.reset().unwrap();
    assert_eq!(accounts(&one), 1, "a reset returns to the template's content");
    assert_eq!(accounts(&BANK.snapshot().unwrap().new_engine()), 1);
    assert_eq!(number(&BANK.unit_of_work().unwrap(), "SELECT sum(amount) FROM entry"), 100);
    assert_integrity(&one.connect().unwrap());
}

/// Sixteen threads at once: the build runs once, and all wait for it.
#[test]
fn a_template_is_built_once_for_all_threads() {
    static BUILDS: AtomicUsize = AtomicUsize::new(0);
    static TEMPLATE: Template = Template::build(|connection| {
        BUILDS.fetch_add(1, Ordering::Relaxed);
        thread::sleep(std::time::Duration::from_millis(5)); // so that all threads have time to arrive
        Ok(connection.execute_batch(SCHEMA)?)
    });
    let barrier = Barrier::new(16);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                barrier.wait();
                assert_eq!(accounts(&TEMPLATE.new_engine().unwrap()), 0);
            });
        }
    });
    assert_eq!(BUILDS.load(Ordering::Relaxed), 1);
}

#[test]
fn equal_templates_are_built_once_wherever_they_are_written() {
    static BUILDS: AtomicUsize = AtomicUsize::new(0);
    static BASE: Template = Template::build(|connection| {
        BUILDS.fetch_add(1, Ordering::Relaxed);
        Ok(connection.execute_batch(SCHEMA)?)
    });
    fn count_inserts(connection: &mut Connection) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        BUILDS.fetch_add(10, Ordering::Relaxed);
        connection.execute("INSERT INTO account VALUES (7, 'Edsger')", [])?;
        Ok(())
    }
    for _ in 0..3 {
        // As the body of a fixture does.
        let engine = Template::based_on(&BASE).seed_with(count_inserts).new_engine().unwrap();
        assert_eq!(accounts(&engine), 1);
        assert_eq!(accounts(&BASE.new_engine().unwrap()), 0);
    }
    // The same template, written a second time.
    assert_eq!(accounts(&Template::based_on(&BASE).seed_with(count_inserts).new_engine().unwrap()), 1);
    let two = Template::based_on(&BASE).seed_with(count_inserts).seed("INSERT INTO account VALUES (8, 'Barbara')");
    assert_eq!(accounts(&two.new_engine().unwrap()), 2);
    assert_eq!(BUILDS.load(Ordering::Relaxed), 21);
}

#[test]
fn a_derived_template_starts_from_its_parent() {
    static RICH: Template = Template::based_on(&BANK).seed("INSERT INTO entry VALUES (1, 1000000)");
    static RICHER: Template = Template::based_on(&RICH).seed("INSERT INTO entry VALUES (1, 1)").foreign_keys(false);
    assert_eq!(number(&RICH.unit_of_work().unwrap(), "SELECT sum(amount) FROM entry"), 1_000_100);
    assert_eq!(number(&RICHER.unit_of_work().unwrap(), "SELECT sum(amount) FROM entry"), 1_000_101);
    assert_eq!(number(&RICH.unit_of_work().unwrap(), "PRAGMA foreign_keys"), 1);
    assert_eq!(number(&RICHER.unit_of_work().unwrap(), "PRAGMA foreign_keys"), 0);
}

#[test]
fn foreign_keys_are_enforced_unless_a_template_turns_them_off() {
    static LOOSE: Template = Template::sql(SCHEMA).foreign_keys(false);
    let orphan = "INSERT INTO entry VALUES (99, 1)";
    for connection in [BANK.new_engine().unwrap().connect().unwrap(), Engine::new().connect().unwrap()] {
        assert_eq!(number(&connection, "PRAGMA foreign_keys"), 1);
    }
    assert!(BANK.unit_of_work().unwrap().execute(orphan, []).is_err());
    assert_eq!(LOOSE.unit_of_work().unwrap().execute(orphan, []), Ok(1));
    assert_eq!(number(&LOOSE.new_engine().unwrap().fork().connect().unwrap(), "PRAGMA foreign_keys"), 0);
    static BY_PRAGMA: Template =
        Template::sql(SCHEMA).on_connect(|connection| Ok(connection.pragma_update(None, "foreign_keys", false)?));
    assert_eq!(number(&BY_PRAGMA.unit_of_work().unwrap(), "PRAGMA foreign_keys"), 0, "on_connect comes later");
    let built = Template::sql(SCHEMA).seed(orphan).new_engine();
    assert!(built.unwrap_err().to_string().contains("FOREIGN KEY constraint failed"));
}

#[test]
fn on_connect_sets_up_every_connection() {
    fn shout(connection: &Connection) -> Result<(), BoxError> {
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
        connection.create_scalar_function("shout", 1, flags, |context| Ok(context.get::<String>(0)?.to_uppercase()))?;
        Ok(connection.pragma_update(None, "recursive_triggers", true)?)
    }
    fn whisper(connection: &Connection) -> Result<(), BoxError> {
        assert_eq!(text(connection, "SELECT shout('a')"), "A", "the parent's function is called first");
        Ok(connection.create_collation("whisper", |one, other| one.len().cmp(&other.len()))?)
    }
    static PARENT: Template =
        Template::sql("CREATE TABLE word (word TEXT); INSERT INTO word VALUES (shout('hello'))").on_connect(shout);
    static CHILD: Template =
        Template::based_on(&PARENT).seed("CREATE TABLE name (name TEXT COLLATE whisper UNIQUE)").on_connect(whisper);
    let engine = CHILD.new_engine().unwrap();
    let check = |connection: &Connection| {
        assert_eq!(text(connection, "SELECT shout(lower(word)) FROM word"), "HELLO");
        assert_eq!(number(connection, "PRAGMA recursive_triggers"), 1);
        connection.execute("INSERT INTO name VALUES ('ab')", []).unwrap();
        assert!(connection.execute("INSERT INTO name VALUES ('cd')", []).is_err());
    };
    check(&engine.connect().unwrap());
    engine.reset().unwrap();
    for _ in 0..3 {
        check(&engine.unit_of_work().unwrap()); // from the second time on a reused connection
    }
    check(&engine.fork().unit_of_work().unwrap());
    check(&CHILD.unit_of_work().unwrap());
}

/// The function succeeds for the build and fails later. Errors of SQLite and others fail whatever opens a connection.
#[test]
fn a_failing_on_connect_function_is_an_error() {
    static IS_BUILT: AtomicBool = AtomicBool::new(false);
    fn by_sqlite(connection: &Connection) -> Result<(), BoxError> {
        let sql = if IS_BUILT.load(Ordering::Relaxed) { "SELECT missing" } else { "" };
        Ok(connection.execute_batch(sql)?)
    }
    fn by_itself(_: &Connection) -> Result<(), BoxError> {
        if IS_BUILT.load(Ordering::Relaxed) { Err("no such extension".into()) } else { Ok(()) }
    }
    fn in_transaction(connection: &Connection) -> Result<(), BoxError> {
        let sql = if IS_BUILT.load(Ordering::Relaxed) { "BEGIN" } else { "" };
        Ok(connection.execute_batch(sql)?)
    }
    let templates = [
        Template::sql(SCHEMA).on_connect(by_sqlite),
        Template::sql(SCHEMA).on_connect(by_itself),
        Template::sql(SCHEMA).on_connect(in_transaction),
    ];
    let engines = templates.each_ref().map(|template| template.new_engine().unwrap());
    IS_BUILT.store(true, Ordering::Relaxed);
    let causes = ["SQLite says: no such column: missing", "no such extension", "it has left a transaction open"];
    for ((engine, cause), template) in engines.iter().zip(causes).zip(&templates) {
        let errors = [
            engine.connect().map(drop).unwrap_err(),
            engine.unit_of_work().map(drop).unwrap_err(),
            engine.pooled_connection().map(drop).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::SetupFailed, "{error}");
            let message = error.to_string();
            assert!(message.starts_with("can't open a connection to engine "), "{message}");
            assert!(
                message.contains(&format!(" of {template}: the on_connect function given at {}:", file!())),
                "{message}"
            );
            assert!(message.contains(" failed: ") && message.contains(cause), "{message}");
            assert_eq!(error.sqlite().is_some(), cause.contains("SQLite"), "{message}");
            assert!(std::error::Error::source(&error).is_some(), "{message}");
        }
    }
    IS_BUILT.store(false, Ordering::Relaxed);
    assert!(engines.iter().all(|engine| engine.unit_of_work().is_ok()), "the engines work again after a failure");
}

#[test]
fn a_template_is_named_by_its_place_and_its_key_unless_the_key_is_long() {
    let long = "a key of more than forty characters, which no message should repeat";
    for (key, start) in [("bank-v3", "the template `bank-v3`"), (long, "the template"), ("two\nlines", "the template")]
    {
        let template = Template::empty().key(key);
        let name = template.to_string();
        assert!(name.starts_with(&format!("{start} at {}:", file!())), "{name}");
        assert_eq!(format!("{template:?}"), format!("Template({name})"));
    }
}

#[test]
#[should_panic(expected = "a template has at most 16 steps; add more in another template, with Template::based_on")]
fn a_template_has_at_most_sixteen_steps() {
    let full = (1..16).fold(Template::sql("SELECT 1"), |template, _| template.seed("SELECT 1"));
    full.new_engine().unwrap();
    let _ = full.seed("SELECT 1");
}

/// A macro may create several templates at one place. A key that they share does not distinguish their functions.
#[test]
fn a_key_shared_by_two_functions_at_one_place_is_not_trusted() {
    macro_rules! templates {
        ($($name:ident makes $sql:literal;)*) => {$(
            static $name: Template = Template::build(|connection| Ok(connection.execute_batch($sql)?)).key("twice");
        )*};
    }
    templates! {
        ONE makes "CREATE TABLE one (id)";
        TWO makes "CREATE TABLE two (id)";
    }
    for (template, table) in [(&ONE, "one"), (&TWO, "two")] {
        assert_eq!(text(&template.unit_of_work().unwrap(), "SELECT name FROM sqlite_schema"), table);
    }
}

/// The function that sets up a connection runs before the steps of a build, and may write.
#[test]
fn a_key_shared_by_two_setups_at_one_place_is_not_trusted() {
    macro_rules! templates {
        ($($name:ident makes $sql:literal;)*) => {$(
            static $name: Template =
                Template::empty().on_connect(|connection| Ok(connection.execute_batch($sql)?)).key("set up twice");
        )*};
    }
    templates! {
        ONE makes "CREATE TABLE IF NOT EXISTS one (id)";
        TWO makes "CREATE TABLE IF NOT EXISTS two (id)";
    }
    for (template, table) in [(&ONE, "one"), (&TWO, "two")] {
        let names = "SELECT group_concat(name) FROM sqlite_schema";
        assert_eq!(text(&template.unit_of_work().unwrap(), names), table);
    }
}

/// The build of `A` asks for `B`, which is based on `A`, and gets an error. Once `A` is built, `B` can be built.
#[test]
fn a_template_that_was_refused_within_a_build_can_be_built_later() {
    static A: Template = Template::build(|connection| {
        assert_eq!(B.new_engine().unwrap_err().kind(), ErrorKind::RecursiveCreation);
        Ok(connection.execute_batch(SCHEMA)?)
    });
    static B: Template = Template::based_on(&A).seed("INSERT INTO account VALUES (1, 'Ada')");
    assert_eq!(accounts(&A.new_engine().unwrap()), 0);
    assert_eq!(accounts(&B.new_engine().unwrap()), 1);
}

#[test]
fn sixteen_threads_that_race_for_a_shared_engine_cause_one_build() {
    static BUILDS: AtomicUsize = AtomicUsize::new(0);
    static TEMPLATE: Template = Template::build(|connection| {
        BUILDS.fetch_add(1, Ordering::Relaxed);
        Ok(connection.execute_batch(SCHEMA)?)
    });
    let (url, barrier) = (unique_url("templates-race"), Barrier::new(16));
    let uris: HashSet<String> = thread::scope(|scope| {
        let ask = || {
            barrier.wait();
            let engine = Engine::shared_with(&url, &TEMPLATE).unwrap();
            engine.try_transaction(|work| work.execute("INSERT INTO account (owner) VALUES (random())", [])).unwrap();
            engine.uri().to_owned()
        };
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!((uris.len(), BUILDS.load(Ordering::Relaxed)), (1, 1));
    assert_eq!(accounts(&Engine::shared(&url).unwrap()), 16);
}

#[test]
fn a_shared_engine_belongs_to_one_template() {
    static OTHER: Template = Template::sql("CREATE TABLE other (id)").key("other");
    let url = unique_url("templates-conflict");
    let engine = Engine::shared_with(&url, &BANK).unwrap();
    assert_eq!(Engine::shared_with(&url, &BANK).unwrap(), engine);
    assert_eq!(Engine::shared_with(&url, &Template::empty()).unwrap(), engine, "an empty template fits every engine");
    let error = Engine::shared_with(&url, &OTHER).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OtherTemplate);
    for name in ["the shared engine `file:templates-conflict-", &BANK.to_string(), "the template `other` at tests/it/"]
    {
        assert!(error.to_string().contains(name), "{error} should name {name}");
    }
    let plain = unique_url("templates-plain");
    Engine::shared(&plain).unwrap();
    let error = Engine::shared_with(&plain, &BANK).unwrap_err();
    assert!(error.to_string().contains("it was created without a template"), "{error}");
}

#[test]
fn a_template_may_have_no_tables() {
    static EMPTY: Template = Template::empty();
    static BLANK: Template = Template::sql(" -- nothing yet\n ; ");
    for template in [&EMPTY, &BLANK] {
        let engine = template.new_engine().unwrap();
        engine.connect().unwrap().execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)").unwrap();
        assert_eq!(number(&template.unit_of_work().unwrap(), "SELECT count(*) FROM sqlite_schema"), 0);
    }
}

#[test]
fn a_template_may_have_pages_of_any_size() {
    static SMALL: Template = Template::sql("PRAGMA page_size = 512; CREATE TABLE t (a); INSERT INTO t VALUES ('x')");
    static LARGE: Template =
        Template::based_on(&SMALL).seed("PRAGMA page_size = 65536; VACUUM; INSERT INTO t VALUES (zeroblob(200000))");
    assert_eq!(number(&SMALL.unit_of_work().unwrap(), "PRAGMA page_size"), 512);
    let work = LARGE.unit_of_work().unwrap();
    assert_eq!((number(&work, "PRAGMA page_size"), number(&work, "SELECT count(*) FROM t")), (65536, 2));
}

/// The database may come from elsewhere, for example by `include_bytes!`.
#[test]
fn a_template_may_start_as_a_database() {
    static GOLDEN: Template = Template::sql(SCHEMA).seed("INSERT INTO account VALUES (7, 'Barbara')");
    let bytes: &'static [u8] = Box::leak(GOLDEN.snapshot().unwrap().to_bytes().into_boxed_slice());
    let template = Template::database(bytes).seed("INSERT INTO account VALUES (8, 'Edsger')");
    assert_eq!(accounts(&template.new_engine().unwrap()), 2);
    assert_eq!(accounts(&Template::database(bytes).new_engine().unwrap()), 1);
    let error = Template::database(&bytes[..5000]).new_engine().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotADatabase);
    assert!(error.to_string().contains("the bytes of the template at tests/it/templates.rs:"), "{error}");
}

/// A byte-order mark, unusual comments, quotes, a trigger, and empty statements.
#[test]
fn scripts_may_contain_anything_that_sqlite_accepts() {
    static ODD: Template = Template::sql(
        "\u{feff}/*/ a comment that begins so */ CREATE TABLE word (word TEXT); -- with 'quotes\r\n
        CREATE TRIGGER t AFTER INSERT ON word BEGIN SELECT 1; SELECT ';'; END;;; \x0c
        INSERT INTO word VALUES ('semi;colon'), ('--'), ('/*'), ('é' || 'ü') ; SELECT * FROM word;
        PRAGMA user_version = 7; /* not ended",
    );
    let work = ODD.unit_of_work().unwrap();
    assert_eq!((number(&work, "SELECT count(*) FROM word"), number(&work, "PRAGMA user_version")), (4, 7));
}

mod failures {
    use super::*;

    fn message(template: &Template) -> String {
        let error = template.new_engine().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BuildFailed);
        error.to_string()
    }

    #[test]
    fn the_failing_statement_is_quoted_with_its_line() {
        let script =
            "-- accounts\nCREATE TABLE account (id);\n\n/* and\nentries */\nCREATE TABLE entry (\n  id,\n  oops NOT);";
        let template = Template::sql("CREATE TABLE t (a)").seed(script); // the script is given on this line
        let at = format!("tests/it/templates.rs:{}", line!() - 1);
        let message = message(&template);
        assert!(message.starts_with("can't build the template at tests/it/templates.rs:"), "{message}");
        assert!(message.contains(&format!(": line 8 of the script given at {at}")), "{message}");
        assert!(message.ends_with("the statement:\nCREATE TABLE entry (\n  id,\n  oops NOT)"), "{message}");
    }

    #[test]
    fn a_syntax_error_is_reported_with_its_own_line() {
        let message =
            message(&Template::sql("CREATE TABLE a (id);\nCREATE TABLE b (\n  id,\n  name TEXT NOT NUL,\n  x);\n"));
        assert!(message.contains(": line 4 of the script given at tests/it/templates.rs:"), "{message}");
        assert!(message.contains("failed: SQLite says: near \"NUL\": syntax error"), "{message}");
        assert!(message.ends_with("the statement:\nCREATE TABLE b (\n  id,\n  name TEXT NOT NUL"), "{message}");
    }

    #[test]
    fn a_statement_that_fails_when_it_runs_is_quoted_in_full() {
        let script = "CREATE TABLE a (id UNIQUE);\n\nINSERT INTO a\n  VALUES (1), (1);\nSELECT 1;";
        let error = Template::sql(script).new_engine().unwrap_err();
        let message = error.to_string();
        assert!(message.contains(": line 3 of the script"), "{message}");
        assert!(message.contains("SQLite says: UNIQUE constraint failed: a.id"), "{message}");
        assert!(message.ends_with("the statement:\nINSERT INTO a\n  VALUES (1), (1);"), "{message}");
        assert_eq!(error.sqlite().unwrap().sqlite_error_code(), Some(rusqlite::ErrorCode::ConstraintViolation));
        assert_eq!(rusqlite::Error::from(error.clone()).to_string(), message, "for code that uses rusqlite's errors");
    }

    #[test]
    fn a_script_may_not_contain_a_nul_or_leave_a_transaction_open() {
        assert!(message(&Template::sql("CREATE TABLE a (id);\n\0CREATE TABLE b (id)")).contains("line 2"));
        let open = message(&Template::sql("BEGIN; CREATE TABLE a (id)"));
        assert!(open.contains("has left a transaction open"), "{open}");
    }

    /// The function's changes would not be in the template's database, so the template would be empty.
    #[test]
    fn a_function_may_not_replace_the_database_of_its_connection() {
        let replaced = Template::build(|connection| {
            *connection = Connection::open_in_memory()?;
            Ok(connection.execute_batch(SCHEMA)?)
        });
        let detached = Template::build(|connection| Ok(deserialize(connection, &BANK.snapshot()?.to_bytes())?));
        for template in [replaced, detached] {
            let message = message(&template);
            assert!(
                message.contains("has replaced its connection, or the connection's database by deserialize"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_key_as_long_as_a_file_is_not_in_the_message() {
        let message = message(&Template::build(|_| Err("no migrations".into())).key(include_str!("templates.rs")));
        assert!(message.len() < 200, "{message}");
    }

    #[test]
    fn a_failing_on_connect_function_fails_the_build() {
        let panicking = Template::sql("SELECT 1").on_connect(|_| panic!("no such extension"));
        assert!(message(&panicking).ends_with("it panicked: no such extension"), "{}", message(&panicking));
        let failing = Template::sql("SELECT 1").on_connect(|_| Err("no such extension".into()));
        let message = message(&failing);
        assert!(message.starts_with("can't build the template at tests/it/templates.rs:"), "{message}");
        assert!(message.contains(": the on_connect function given at tests/it/templates.rs:"), "{message}");
        assert!(message.ends_with(" failed: no such extension"), "{message}");
    }

    #[test]
    fn an_error_in_text_of_multi_byte_characters_is_reported_with_its_line() {
        let message = message(&Template::sql("-- é\nSELECT 'é' ü é, 'ü' FROM"));
        assert!(message.contains(": line 2 of the script"), "{message}");
    }

    #[test]
    fn long_statements_are_truncated() {
        let script: &str = Box::leak(format!("SELECT '{}', oops", "é".repeat(3000)).into_boxed_str());
        let message = message(&Template::sql("SELECT 1").seed(script));
        assert!(message.ends_with("é …") && message.len() < 3000, "{message}");
    }

    #[test]
    fn a_failing_function_is_called_once_and_all_threads_get_its_error() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        static FAILING: Template = Template::build(|_| {
            CALLS.fetch_add(1, Ordering::Relaxed);
            Err("no migrations found".into())
        });
        thread::scope(|scope| {
            let messages: HashSet<String> =
                (0..8).map(|_| scope.spawn(|| message(&FAILING))).map(|thread| thread.join().unwrap()).collect();
            assert_eq!(messages.len(), 1);
            assert!(messages.iter().all(|message| message.ends_with("failed: no migrations found")), "{messages:?}");
        });
        let error = FAILING.new_engine().unwrap_err();
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no migrations found");
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
        let derived = Template::based_on(&FAILING).seed("SELECT 1");
        assert_eq!(message(&derived), message(&FAILING), "a child reports its parent's error");
    }

    #[test]
    fn a_panic_in_a_build_is_reported_as_a_panic() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        static PANICS: Template = Template::build(|_| {
            CALLS.fetch_add(1, Ordering::Relaxed);
            panic!("the {} is missing", "schema")
        });
        for _ in 0..2 {
            assert!(message(&PANICS).ends_with("it panicked: the schema is missing"));
        }
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn sqlite_errors_of_functions_are_kept() {
        let template = Template::build(|connection| Ok(connection.execute_batch("SELECT * FROM nowhere")?));
        let error = template.new_engine().unwrap_err();
        assert!(error.to_string().contains("the function given at tests/it/templates.rs:"), "{error}");
        assert!(error.sqlite().is_some());
    }

    #[test]
    fn a_template_that_asks_for_itself_is_refused() {
        static ITSELF: Template = Template::build(|_| {
            ITSELF.new_engine()?;
            Ok(())
        });
        let message = message(&ITSELF);
        assert!(message.contains("its build needs the same template"), "{message}");
        static ONE: Template = Template::based_on(&OTHER);
        static OTHER: Template = Template::based_on(&ONE);
        assert!(ONE.new_engine().unwrap_err().to_string().contains("its build needs the same template"));
    }
}

#[test]
fn a_function_of_the_engine_opens_its_own_connections() {
    static TEMPLATE: Template = Template::build_on(|engine| {
        assert!(engine.sqlite_url().starts_with("sqlite:///"), "{}", engine.sqlite_url());
        let by_uri = Connection::open(engine.uri())?;
        by_uri.execute_batch("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INT)")?;
        engine.transaction(|work| Ok(work.execute("INSERT INTO account VALUES (1, 100)", [])?))?;
        let connection = engine.connect()?;
        assert_eq!(number(&connection, "PRAGMA recursive_triggers"), 1, "on_connect has set it up");
        Ok(())
    })
    .seed("INSERT INTO account VALUES (2, 100)")
    .seed_on(|engine| {
        engine.connect()?.execute("INSERT INTO account VALUES (3, 100)", [])?;
        Ok(())
    })
    .on_connect(|connection| Ok(connection.pragma_update(None, "recursive_triggers", true)?));
    let engine = TEMPLATE.new_engine().unwrap();
    assert_eq!(accounts(&engine), 3);
    engine.try_transaction(|work| work.execute("DELETE FROM account", [])).unwrap();
    engine.reset().unwrap();
    assert_eq!(accounts(&engine), 3);
}

/// Its caller may be a task of an async runtime, on whose thread no other future may be run to its end.
#[test]
fn functions_run_on_a_new_thread_and_scripts_do_not() {
    static ON: Mutex<Vec<ThreadId>> = Mutex::new(Vec::new());
    fn note(_: &Connection) -> Result<(), BoxError> {
        ON.lock().unwrap().push(thread::current().id());
        Ok(())
    }
    let this = thread::current().id();
    Template::sql("SELECT 1").on_connect(note).snapshot().unwrap();
    assert_eq!(*ON.lock().unwrap(), [this]);
    Template::build(|connection| note(connection)).snapshot().unwrap();
    Template::build_on(|engine| note(&engine.connect()?)).snapshot().unwrap();
    let on = ON.lock().unwrap();
    assert!(on.len() == 3 && on[1] != this && on[2] != this, "{on:?}");
}

#[test]
fn a_build_on_a_new_thread_that_needs_its_own_template_is_refused() {
    static ITSELF: Template = Template::build_on(|_| Ok(ITSELF.new_engine().map(drop)?));
    let error = ITSELF.new_engine().unwrap_err();
    assert!(error.to_string().contains("its build needs the same template"), "{error}");
}

#[test]
fn a_connection_that_leaves_a_transaction_open_fails_the_build() {
    static LEFT_OPEN: Template = Template::build_on(|engine| {
        let connection = Connection::open(engine.uri())?;
        connection.execute_batch("CREATE TABLE account (id); BEGIN; INSERT INTO account VALUES (1)")?;
        std::mem::forget(connection);
        Ok(())
    })
    .lock_timeout(Duration::from_millis(20));
    let error = LEFT_OPEN.new_engine().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BuildFailed);
    assert!(error.to_string().contains("has left a transaction open"), "{error}");
}

/// As a pool does that was dropped: its threads close its connections later.
#[test]
fn a_build_waits_until_the_connections_have_ended_their_transactions() {
    static ENDS_LATER: Template = Template::build_on(|engine| {
        let connection = Connection::open(engine.uri())?;
        connection.execute_batch("CREATE TABLE account (id); BEGIN; INSERT INTO account VALUES (1)")?;
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(50)); // longer than the function takes to return, nearly always
            connection.execute_batch("COMMIT").unwrap();
        });
        Ok(())
    });
    assert_eq!(accounts(&ENDS_LATER.new_engine().unwrap()), 1);
}

#[test]
fn migrations_of_a_folder_run_in_their_order() {
    static MIGRATED: Template =
        Template::directory("examples/migrations").seed("INSERT INTO account VALUES (1, 'Ada', 5)");
    let work = MIGRATED.unit_of_work().unwrap();
    assert_eq!(number(&work, "SELECT balance FROM account WHERE owner = 'Ada'"), 5);
}

#[test]
fn a_failing_migration_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("1_account.sql"), "CREATE TABLE account (id);").unwrap();
    std::fs::write(folder.path().join("2_broken.sql"), "-- two\nDROP TABLE acount;").unwrap();
    let path: &'static str = folder.path().to_str().unwrap().to_owned().leak();
    let error = Template::directory(path).new_engine().unwrap_err().to_string();
    let place = format!("line 2 of the migration `{path}/2_broken.sql` failed: SQLite says: no such table: acount");
    assert!(error.contains(&place) && error.ends_with("the statement:\nDROP TABLE acount;"), "{error}");
    for (sql, flaw) in [
        ("BEGIN", "line 1 of the migration"),
        (
            "COMMIT",
            "2_broken.sql` runs in a transaction, which it must not begin or end itself: SQLite says: cannot commit",
        ),
        ("-- no-transaction\nBEGIN", "2_broken.sql` has left a transaction open"),
    ] {
        std::fs::write(folder.path().join("2_broken.sql"), sql).unwrap();
        let error = Template::directory(path).seed("SELECT 1").key(sql).new_engine().unwrap_err().to_string();
        assert!(error.contains(flaw), "{error}");
    }
}

/// As migration libraries run them. Outside of a transaction, the pragma would keep the entries.
#[test]
fn a_migration_runs_in_a_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, sql: &str| std::fs::write(folder.path().join(name), sql).unwrap();
    write("1_account.sql", "CREATE TABLE account (id INTEGER PRIMARY KEY); INSERT INTO account VALUES (1);");
    write(
        "2_entry.sql",
        "CREATE TABLE entry (account REFERENCES account ON DELETE CASCADE); INSERT INTO entry VALUES (1);",
    );
    let replace = "CREATE TABLE new (id INTEGER PRIMARY KEY, owner); INSERT INTO new (id) SELECT id FROM account;
        DROP TABLE account; ALTER TABLE new RENAME TO account;";
    write("3_owner.sql", &format!("PRAGMA foreign_keys = OFF; {replace} PRAGMA foreign_keys = ON;"));
    write("4_vacuum.sql", "-- no-transaction\nVACUUM;");
    let path: &'static str = folder.path().to_str().unwrap().to_owned().leak();
    let work = Template::directory(path).unit_of_work().unwrap();
    assert_eq!(number(&work, "SELECT count(*) FROM account"), 1);
    assert_eq!(number(&work, "SELECT count(*) FROM entry"), 0, "the pragma does nothing within a transaction");
}

#[test]
fn the_lock_timeout_of_a_template_applies_to_all_its_engines() {
    static IMPATIENT: Template = Template::sql("CREATE TABLE account (id)").lock_timeout(Duration::from_millis(5));
    static CHILD: Template = Template::based_on(&IMPATIENT);
    let assert_impatient = |engine: &Engine| {
        let _writer = engine.begin(Immediate).unwrap();
        let (start, error) = (Instant::now(), engine.begin(Immediate).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::LockTimeout);
        assert!(start.elapsed() < Duration::from_secs(4), "the default is 5 s: {error}");
    };
    let engine = IMPATIENT.new_engine().unwrap();
    assert_impatient(&engine);
    assert_impatient(&engine.fork());
    engine.set_lock_timeout(Duration::from_secs(60));
    engine.pooled_connection().unwrap().execute("INSERT INTO account VALUES (1)", []).unwrap();
    drop(engine);
    let warm = IMPATIENT.new_engine().unwrap();
    assert_eq!(number(&warm.unit_of_work().unwrap(), "SELECT total_changes()"), 1, "it is a warm one");
    assert_impatient(&warm);
    assert_impatient(&CHILD.new_engine().unwrap());
    let url = "file:impatient?mode=memory";
    assert_impatient(&Engine::shared_with(url, &IMPATIENT).unwrap());
}
