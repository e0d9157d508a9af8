//! The time that SQL gets is that of the engine's clock.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite_fixtures::rusqlite::Connection;
use rusqlite_fixtures::{Engine, ErrorKind, KeptValues, Template};

use crate::support::{number, text};

static LOG: Template = Template::sql(
    "CREATE TABLE log (id INTEGER PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP, text TEXT);
     CREATE TABLE changed (at TEXT);
     CREATE TRIGGER note AFTER UPDATE ON log BEGIN INSERT INTO changed VALUES (datetime('now')); END;
     INSERT INTO log (text) VALUES ('from the template')",
)
.clock("2026-01-31T12:00:00.250Z");

const NOW: &str = "SELECT datetime('now')";

/// Lets one test run at a time in which an engine stands in for a file on all threads, and so gives them its time, or in which
/// a connection has the system's time.
fn in_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn all_functions_of_sql_get_the_time() {
    let work = LOG.unit_of_work().unwrap();
    for (sql, expected) in [
        ("SELECT CURRENT_TIMESTAMP", "2026-01-31 12:00:00"),
        ("SELECT CURRENT_DATE || 'T' || CURRENT_TIME", "2026-01-31T12:00:00"),
        ("SELECT datetime('now', '+1 day')", "2026-02-01 12:00:00"),
        ("SELECT datetime()", "2026-01-31 12:00:00"),
        ("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')", "2026-01-31 12:00:00.250"),
        ("SELECT CAST(unixepoch('now') AS TEXT)", "1769860800"),
        ("SELECT CAST(julianday('now', 'start of day') AS TEXT)", "2461071.5"),
        ("SELECT at FROM log", "2026-01-31 12:00:00"), // when the template was built
    ] {
        assert_eq!(text(&work, sql), expected, "{sql}");
    }
    work.execute_batch("INSERT INTO log (text) VALUES ('rain'); UPDATE log SET text = 'sun'").unwrap();
    assert_eq!(number(&work, "SELECT count(*) FROM log WHERE at = '2026-01-31 12:00:00'"), 2);
    assert_eq!(number(&work, "SELECT count(*) FROM changed WHERE at = '2026-01-31 12:00:00'"), 2);
}

#[test]
fn every_connection_has_the_engine_s_clock() {
    let _turn = in_turn();
    let engine = LOG.new_engine().unwrap();
    let other_library = Connection::open(engine.uri()).unwrap();
    let (own, pooled) = (engine.connect().unwrap(), engine.pooled_connection().unwrap());
    let work = engine.unit_of_work().unwrap();
    engine.clock().set_text("2030-06-01T08:00:00+02:00").unwrap();
    for connection in [&other_library, &own, &pooled, &*work] {
        assert_eq!(text(connection, NOW), "2030-06-01 06:00:00");
    }
    let in_thread = thread::spawn(move || text(&other_library, NOW)).join().unwrap();
    assert_eq!(in_thread, "2030-06-01 06:00:00");
    let unaffected = Connection::open_in_memory().unwrap();
    assert!(text(&unaffected, NOW) > text(&unaffected, "SELECT datetime('2026-01-01')"));
    assert_ne!(text(&unaffected, NOW), "2030-06-01 06:00:00");
}

#[test]
fn engines_have_their_own_clocks() {
    let engines = [(); 3].map(|()| LOG.new_engine().unwrap());
    for (years, engine) in engines.iter().enumerate() {
        engine.clock().set_text(&format!("{}-01-01", 2000 + years)).unwrap();
    }
    let years =
        engines.each_ref().map(|engine| number(&engine.unit_of_work().unwrap(), "SELECT strftime('%Y', 'now') + 0"));
    assert_eq!(years, [2000, 2001, 2002]);
}

#[test]
fn a_clock_is_set_moved_and_released() {
    let engine = LOG.new_engine().unwrap();
    let (clock, work) = (engine.clock(), engine.unit_of_work().unwrap());
    let start = UNIX_EPOCH + Duration::from_millis(1_769_860_800_250);
    assert_eq!(clock.now().unwrap(), start);
    thread::sleep(Duration::from_millis(3));
    assert_eq!(clock.now().unwrap(), start, "it stands still");
    clock.advance(Duration::from_millis(750)).unwrap();
    assert_eq!(text(&work, NOW), "2026-01-31 12:00:01");
    clock.set(UNIX_EPOCH - Duration::from_secs(1)).unwrap();
    assert_eq!(text(&work, NOW), "1969-12-31 23:59:59");
    clock.system().unwrap();
    let before = SystemTime::now();
    let now = number(&work, "SELECT unixepoch('now')");
    assert!((-1..=1).contains(&(now - before.duration_since(UNIX_EPOCH).unwrap().as_secs() as i64)), "{now}");
    assert!(clock.now().unwrap() >= before);
    clock.advance(Duration::from_secs(3600)).unwrap();
    assert!(clock.now().unwrap() >= before + Duration::from_secs(3599), "from the system's time");
    let stands_at = clock.now().unwrap();
    assert_eq!(clock.now().unwrap(), stands_at);
}

/// SQLite asks once for each statement.
#[test]
fn a_statement_has_one_time() {
    let engine = LOG.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    let mut statement = connection.prepare("SELECT datetime('now') FROM (VALUES (1), (2))").unwrap();
    let mut rows = statement.query([]).unwrap();
    let first: String = rows.next().unwrap().unwrap().get(0).unwrap();
    engine.clock().advance(Duration::from_secs(60)).unwrap();
    let second: String = rows.next().unwrap().unwrap().get(0).unwrap();
    assert_eq!(first, second);
    assert_eq!(text(&connection, NOW), "2026-01-31 12:01:00");
}

#[test]
fn the_next_test_begins_with_the_template_s_time() {
    for _ in 0..3 {
        let engine = LOG.new_engine().unwrap();
        let work = engine.unit_of_work().unwrap();
        assert_eq!(text(&work, NOW), "2026-01-31 12:00:00");
        engine.clock().system().unwrap();
        assert_ne!(text(&work, NOW), "2026-01-31 12:00:00");
    }
    static CONNECTIONS: KeptValues<Connection> = KeptValues::new(&LOG);
    for _ in 0..3 {
        let connection = CONNECTIONS.get_or_make(|engine| {
            engine.clock().set_text("2027-01-01")?; // when it is made
            Ok(Connection::open(engine.uri())?)
        });
        let connection = connection.unwrap();
        assert_eq!(text(&connection, NOW), "2027-01-01 00:00:00");
        connection.engine().clock().advance(Duration::from_secs(1)).unwrap();
    }
    assert_eq!(CONNECTIONS.why_dropped(), None);
}

#[test]
fn a_fork_begins_with_the_same_time() {
    let engine = LOG.new_engine().unwrap();
    engine.clock().set_text("2030-01-01").unwrap();
    let fork = engine.fork();
    engine.clock().set_text("2031-01-01").unwrap();
    assert_eq!(text(&fork.unit_of_work().unwrap(), NOW), "2030-01-01 00:00:00");
}

#[test]
fn a_template_has_its_parent_s_clock_or_another() {
    static CHILD: Template = Template::based_on(&LOG).seed("INSERT INTO log (text) VALUES ('child')");
    static LATER: Template =
        Template::based_on(&LOG).seed("INSERT INTO log (text) VALUES ('later')").clock("2030-01-01");
    for (template, time) in [(&CHILD, "2026-01-31 12:00:00"), (&LATER, "2030-01-01 00:00:00")] {
        let work = template.unit_of_work().unwrap();
        assert_eq!((text(&work, NOW), text(&work, "SELECT at FROM log WHERE id = 2")), (time.into(), time.into()));
        assert_eq!(text(&work, "SELECT at FROM log WHERE id = 1"), "2026-01-31 12:00:00");
    }
    static SHARED: Template = Template::sql("CREATE TABLE log (id)").clock("2026-01-31");
    let shared = Engine::shared_with("file:clock?mode=memory", &SHARED).unwrap();
    assert_eq!(text(&shared.unit_of_work().unwrap(), NOW), "2026-01-31 00:00:00");
}

#[test]
fn a_template_without_content_may_have_a_clock() {
    static EMPTY: Template = Template::empty().clock("2026-01-31");
    let engine = EMPTY.new_engine().unwrap();
    assert_eq!(text(&engine.connect().unwrap(), NOW), "2026-01-31 00:00:00");
    assert_eq!(engine.snapshot().size(), 0);
}

#[test]
fn code_that_opens_its_own_path_has_the_clock() {
    let _turn = in_turn();
    let engine = LOG.new_engine().unwrap();
    {
        let _stand_in = engine.stand_in_for("clock/log.db").unwrap();
        assert_eq!(text(&Connection::open("clock/log.db").unwrap(), NOW), "2026-01-31 12:00:00");
        engine.clock().advance(Duration::from_secs(1)).unwrap();
        assert_eq!(text(&Connection::open("clock/log.db").unwrap(), NOW), "2026-01-31 12:00:01");
        let without = Engine::new();
        assert_ne!(text(&without.connect().unwrap(), NOW), "2026-01-31 12:00:01", "an engine without a clock has none");
    }
    let _for_all = engine.stand_in_for_all("clock/log.db").unwrap();
    let elsewhere = || text(&Connection::open("clock/log.db").unwrap(), NOW);
    assert_eq!(thread::spawn(elsewhere).join().unwrap(), "2026-01-31 12:00:01");
}

/// SQLite does not say which connection asks, so this is decided by the thread.
#[test]
fn a_path_has_the_clock_of_its_thread_s_engine() {
    let _turn = in_turn();
    let in_year = |year: &str| {
        let engine = LOG.new_engine().unwrap();
        engine.clock().set_text(&format!("{year}-01-01")).unwrap();
        engine
    };
    let now = || text(&Connection::open("clock/both.db").unwrap(), "SELECT strftime('%Y', 'now')");
    let (for_all, own, other) = (in_year("2001"), in_year("2002"), in_year("2003"));
    let _for_all = for_all.stand_in_for_all("clock/both.db").unwrap();
    let _own = own.stand_in_for("clock/both.db").unwrap();
    assert_eq!(now(), "2002");
    thread::scope(|scope| {
        let with_its_own = || {
            let _other = other.stand_in_for("clock/both.db").unwrap();
            now()
        };
        assert_eq!(scope.spawn(with_its_own).join().unwrap(), "2003");
        assert_eq!(scope.spawn(now).join().unwrap(), "2001");
    });
    own.clock().system().unwrap();
    assert_eq!(now(), "2001", "its own engine has no time of its own now");
}

/// SQLite asks the VFS of the main database.
#[test]
fn an_attached_engine_has_the_time_of_the_main_database() {
    let engine = LOG.new_engine().unwrap();
    // With SQLite's own VFS, even while an engine with a clock stands in for a file in another test.
    let other = Connection::open("file:main?mode=memory&vfs=unix").unwrap();
    other.execute("ATTACH ?1 AS log", [engine.uri()]).unwrap();
    other.execute_batch("INSERT INTO log.log (text) VALUES ('rain')").unwrap();
    assert_eq!(number(&other, "SELECT count(*) FROM log.log WHERE at > '2026-02-01'"), 1);
}

#[test]
fn a_restore_does_not_change_the_clock() {
    let engine = LOG.new_engine().unwrap();
    let before = engine.snapshot();
    engine.clock().set_text("2030-01-01").unwrap();
    engine.restore(&before).unwrap();
    engine.reset().unwrap();
    assert_eq!(text(&engine.unit_of_work().unwrap(), NOW), "2030-01-01 00:00:00");
}

#[test]
fn what_is_no_time_is_an_error() {
    let engine = LOG.new_engine().unwrap();
    let clock = engine.clock();
    let form = "it is no time of the years 0000 to 9999; write it like 2026-01-31T12:00:00Z";
    for (result, reason) in [
        (clock.set_text("tomorrow"), format!("to \"tomorrow\": {form}")),
        (clock.set_text("2026-02-30"), format!("to \"2026-02-30\": {form}")),
        (
            clock.set(UNIX_EPOCH + Duration::from_secs(300_000_000_000)),
            "to that time: SQLite has the years 0000 to 9999".into(),
        ),
        (
            clock.advance(Duration::from_secs(300_000_000_000)),
            "to 300000000000s later: SQLite has the years 0000 to 9999".into(),
        ),
        (clock.advance(Duration::MAX), "later: it is after the year 9999".into()),
    ] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoTime);
        let message = error.to_string();
        assert!(message.starts_with("can't set the clock of engine ") && message.ends_with(&reason), "{message}");
    }
    assert_eq!(text(&engine.unit_of_work().unwrap(), NOW), "2026-01-31 12:00:00", "it stands where it stood");
    let broken = Template::sql("CREATE TABLE log (id)").clock("soon").new_engine().unwrap_err();
    assert_eq!(broken.kind(), ErrorKind::BuildFailed);
    assert!(broken.to_string().ends_with(&format!("its clock can't stand at \"soon\": {form}")), "{broken}");
}

#[test]
fn an_engine_without_a_clock_says_so() {
    let engine = Engine::new();
    let clock = engine.clock();
    let results = [
        clock.set_text("2026-01-31").unwrap_err(),
        clock.set(SystemTime::now()).unwrap_err(),
        clock.advance(Duration::ZERO).unwrap_err(),
        clock.system().unwrap_err(),
        clock.now().unwrap_err(),
    ];
    for error in results {
        let message = error.to_string();
        assert!(message.ends_with(" has no clock; create it by a template with Template::clock"), "{message}");
    }
    assert!(format!("{clock:?}").ends_with("stands_at: None }"), "{clock:?}");
    assert!(format!("{:?}", LOG.new_engine().unwrap().clock()).contains("stands_at: Some(Some("));
}

/// Its VFS is not that of other engines.
#[test]
fn the_uri_of_an_engine_with_a_clock_is_known() {
    let engine = LOG.new_engine().unwrap();
    let [error, expected] = [&engine, &Engine::new()].map(|engine| {
        let message = Engine::shared(engine.uri()).unwrap_err().to_string();
        message.replace(engine.uri(), "URI")
    });
    assert_eq!(error, expected, "as for an engine without a clock");
    let uri = engine.uri().replace("engine-", "other-");
    assert!(Connection::open(uri).is_err(), "no file is opened by an engine's VFS");
    let gone = engine.uri().to_owned();
    drop(engine);
    assert!(Connection::open(gone).is_err());
}
