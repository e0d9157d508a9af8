//! Messages on stderr, for users whose code shows no more than "database is locked".
//!
//! Each test runs `child` of this program in a new process, and reads its stderr.

use std::process::Command;
use std::time::Duration;
use std::{env, thread};

use rusqlite::TransactionBehavior::Immediate;
use rusqlite_fixtures::rusqlite::{self, Connection, ErrorCode};
use rusqlite_fixtures::{Engine, ErrorKind, Template};

use crate::support::{engine_with_entries, entries, in_thread};

const ROLE: &str = "FIXTURES_PRINTED_ROLE";

/// Does nothing in an ordinary run of the tests.
#[test]
fn child() {
    match env::var(ROLE).as_deref() {
        Ok("polls") => polls(),
        Ok("is refused at once") => is_refused_at_once(),
        Ok("retries by itself") => retries_by_itself(),
        Ok("waits for itself") => waits_for_itself(),
        Ok("sleeps by itself") => sleeps_by_itself(),
        Ok("waits for another") => waits_for_another(),
        Ok("has read an attached engine") => has_read_an_attached_engine(),
        Ok("fails to serialize") => fails_to_serialize(),
        Ok("times out often") => times_out_often(),
        Ok("opens a dropped engine") => opens_a_dropped_engine(),
        Ok("opens a URI in a URL") => opens_a_uri_in_a_url(),
        Ok("echoes") => echoes(),
        Ok("echoes and fails") => echoes_and_fails(),
        Ok("runs statements") => runs_statements(&ENTRIES.new_engine().unwrap()),
        _ => {}
    }
}

/// Returns the lines that this crate prints in a process with this role.
fn printed_by(role: &str) -> Vec<String> {
    let (succeeds, stderr) = run(role, &[]);
    assert!(succeeds, "{stderr}");
    own_lines(&stderr)
}

/// Returns whether a process with this role succeeds, and what it prints.
fn run(role: &str, variables: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "printed::child"]).env(ROLE, role).envs(variables.iter().copied());
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

fn own_lines(stderr: &str) -> Vec<String> {
    stderr.lines().filter_map(|line| line.strip_prefix("rusqlite-fixtures: ")).map(str::to_owned).collect()
}

fn update(connection: &Connection) -> rusqlite::Result<usize> {
    connection.execute("UPDATE entry SET value = value + 1 WHERE key = 1", [])
}

fn is_busy(result: rusqlite::Result<usize>) -> bool {
    result.is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy))
}

/// Parses the length of the wait from the message.
fn waited(message: &str) -> Duration {
    let (_, rest) = message.split_once("waited ").unwrap_or_else(|| panic!("no wait: {message}"));
    let (time, _) = rest.split_once(' ').unwrap();
    let digits = time.find(|letter: char| letter.is_ascii_alphabetic() || letter == 'µ').unwrap();
    let number: f64 = time[..digits].parse().unwrap();
    let unit = match &time[digits..] {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        _ => 1e-9,
    };
    Duration::from_secs_f64(number * unit)
}

fn foreign(engine: &Engine, timeout: Duration) -> Connection {
    let foreign = Connection::open(engine.uri()).unwrap();
    foreign.busy_timeout(timeout).unwrap();
    foreign
}

fn polls() {
    let engine = engine_with_entries(&[(1, 0)]);
    let _writer = in_thread("keeps_the_slot", || engine.begin(Immediate).unwrap());
    assert!(is_busy(update(&foreign(&engine, Duration::from_millis(1500)))));
}

#[test]
fn a_polling_connection_prints_what_it_waits_for_after_a_second_and_when_it_gives_up() {
    let printed = printed_by("polls");
    let [waits, fails] = &printed[..] else { panic!("{printed:#?}") };
    assert!(waits.starts_with("still waiting to write to engine "), "{waits}");
    assert!(fails.starts_with("can't write to engine "), "{fails}");
    for message in &printed {
        let holder = "thread `keeps_the_slot` in the unit of work begun at tests/it/printed.rs:";
        assert!(message.contains(holder), "{message}");
    }
    assert!(waited(waits) >= Duration::from_secs(1), "{waits}");
    assert!(waited(fails) >= Duration::from_millis(1500), "{fails}");
}

fn is_refused_at_once() {
    let engine = engine_with_entries(&[(1, 0)]);
    let _writer = engine.begin(Immediate).unwrap();
    let foreign = foreign(&engine, Duration::ZERO);
    assert!(is_busy(update(&foreign)) && is_busy(update(&foreign)));
}

#[test]
fn a_connection_that_does_not_wait_prints_nothing() {
    assert_eq!(printed_by("is refused at once"), [""; 0]);
}

fn retries_by_itself() {
    let engine = engine_with_entries(&[(1, 0)]);
    let writer = in_thread("keeps_the_slot", || engine.begin(Immediate).unwrap());
    let foreign = foreign(&engine, Duration::ZERO);
    for _ in 0..150 {
        assert!(is_busy(update(&foreign)));
        thread::sleep(Duration::from_millis(10));
    }
    drop(writer);
    update(&foreign).unwrap();
}

#[test]
fn code_that_retries_by_itself_gets_one_message_after_a_second() {
    let printed = printed_by("retries by itself");
    let [waits] = &printed[..] else { panic!("{printed:#?}") };
    assert!(waits.contains("thread `keeps_the_slot`") && waited(waits) >= Duration::from_secs(1), "{waits}");
}

fn waits_for_itself() {
    let engine = engine_with_entries(&[(1, 0)]);
    engine.set_lock_timeout(Duration::from_millis(600));
    let _writer = engine.begin(Immediate).unwrap();
    engine.begin(Immediate).unwrap_err();
    engine.reset().unwrap_err();
    assert!(is_busy(update(&foreign(&engine, Duration::from_millis(600)))));
    let reader = foreign(&engine, Duration::from_millis(600));
    reader.execute_batch("BEGIN").unwrap();
    entries(&reader);
    assert!(is_busy(update(&reader)));
}

#[test]
fn a_wait_for_the_same_thread_is_reported_soon_and_once() {
    let printed = printed_by("waits for itself");
    assert!(printed.iter().all(|line| line.contains("this thread waits for itself")), "{printed:#?}");
    let early: Vec<_> = printed.iter().filter(|line| line.starts_with("still waiting")).collect();
    assert_eq!(early.len(), 4, "a unit of work, a reset, and two that poll: {printed:#?}");
    early.iter().for_each(|line| assert!(waited(line) < Duration::from_millis(250), "{line}"));
}

/// A turn in the queue lasts as long as a sleep of the handler, which is mostly longer than the delay of the message.
fn sleeps_by_itself() {
    let engine = engine_with_entries(&[(1, 0)]);
    let _writer = engine.begin(Immediate).unwrap();
    let foreign = &mut Connection::open(engine.uri()).unwrap(); // `busy_handler` takes `&self` in rusqlite 0.39
    let handler = |tries| {
        thread::sleep(Duration::from_millis(150));
        tries < 6
    };
    foreign.busy_handler(Some(handler)).unwrap();
    assert!(is_busy(update(foreign)));
}

#[test]
fn a_wait_by_a_busy_handler_with_long_sleeps_is_reported_once() {
    let printed = printed_by("sleeps by itself");
    let [early, fails] = &printed[..] else { panic!("{printed:#?}") };
    assert!(early.starts_with("still waiting") && fails.starts_with("can't write"), "{printed:#?}");
    assert!(waited(early) < Duration::from_millis(350), "after its first sleep: {early}");
}

fn waits_for_another() {
    let engine = engine_with_entries(&[(1, 0)]);
    engine.set_lock_timeout(Duration::from_secs(60));
    let writer = in_thread("another", || engine.begin(Immediate).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| engine.begin(Immediate).unwrap());
        thread::sleep(Duration::from_millis(500));
        drop(writer);
    });
}

#[test]
fn a_wait_that_succeeds_prints_nothing() {
    assert_eq!(printed_by("waits for another"), [""; 0]);
}

fn fails_to_serialize() {
    let engine = engine_with_entries(&[(1, 0)]);
    let reader = Connection::open(engine.uri()).unwrap();
    for _ in 0..1000 {
        reader.execute_batch("BEGIN").unwrap();
        entries(&reader);
        in_thread("replaces_it", || engine.try_transaction(|work| update(work)).unwrap());
        assert_eq!(update(&reader).unwrap_err().sqlite_error().unwrap().extended_code, 517);
        reader.execute_batch("ROLLBACK").unwrap();
    }
}

#[test]
fn a_thousand_serialization_failures_print_four_messages() {
    let printed = printed_by("fails to serialize");
    assert_eq!(printed.len(), 4, "{printed:#?}");
    for (line, end) in printed.iter().zip(["Immediate", "10th time", "100th time", "1000th time"]) {
        assert!(line.contains("serialization failure") && line.contains("thread `replaces_it`"), "{line}");
        assert!(line.trim_end_matches(" on this thread)").ends_with(end), "{line}");
    }
}

fn times_out_often() {
    let engine = engine_with_entries(&[(1, 0)]);
    engine.set_lock_timeout(Duration::from_millis(1));
    let _writer = in_thread("keeps_the_slot", || engine.begin(Immediate).unwrap());
    for _ in 0..20 {
        assert_eq!(engine.begin(Immediate).unwrap_err().kind(), ErrorKind::LockTimeout);
    }
}

#[test]
fn twenty_lock_timeouts_at_one_line_print_two_messages() {
    let printed = printed_by("times out often");
    assert_eq!(printed.len(), 2, "{printed:#?}");
}

fn opens_a_dropped_engine() {
    let gone = Engine::new().uri().to_owned();
    for _ in 0..3 {
        Connection::open(&gone).unwrap_err();
    }
    let never = gone.replace("/engine-", "/engine-99");
    assert_ne!(never, gone);
    Connection::open(never).unwrap_err();
}

#[test]
fn opening_a_dropped_engine_is_reported_once() {
    let printed = printed_by("opens a dropped engine");
    let [gone] = &printed[..] else { panic!("{printed:#?}") };
    assert!(gone.starts_with("can't connect to engine "), "{gone}");
    assert!(gone.ends_with(": it no longer exists; keep an Engine as long as code connects to it"), "{gone}");
}

fn has_read_an_attached_engine() {
    let (engine, other) = (engine_with_entries(&[(1, 0)]), engine_with_entries(&[(1, 5)]));
    let foreign = foreign(&engine, Duration::from_secs(60));
    foreign.execute("ATTACH ?1 AS other", [other.uri()]).unwrap();
    foreign.execute_batch("BEGIN; SELECT value FROM other.entry").unwrap();
    let writer = engine.begin(Immediate).unwrap();
    update(&writer).unwrap();
    thread::scope(|scope| {
        let updates = scope.spawn(move || {
            update(&foreign).unwrap();
            foreign.execute_batch("COMMIT").unwrap();
        });
        thread::sleep(Duration::from_millis(100)); // not needed; lets the other ask first
        writer.commit().unwrap();
        updates.join().unwrap();
    });
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 2)]);
}

/// SQLite calls the busy handler for it, because it has read nothing of the engine that it writes to.
#[test]
fn a_transaction_that_has_read_only_an_attached_engine_waits_without_a_message() {
    assert_eq!(printed_by("has read an attached engine"), [""; 0]);
}

/// As sqlx does with `engine.uri()` in place of a URL.
fn opens_a_uri_in_a_url() {
    let engine = Engine::new();
    let (name, parameters) = engine.uri().split_once('?').unwrap();
    for _ in 0..3 {
        Connection::open(format!("file:file%3A{}?{parameters}", &name["file:".len()..])).unwrap_err();
    }
}

#[test]
fn opening_a_uri_in_a_url_is_reported_once() {
    let printed = printed_by("opens a URI in a URL");
    let [message] = &printed[..] else { panic!("{printed:#?}") };
    assert!(
        message.starts_with("can't connect to \"") && message.contains("file:/rusqlite-fixtures/engine-"),
        "{message}"
    );
    assert!(message.contains("use Engine::sqlite_url, and for code that takes a file name, Engine::uri"), "{message}");
}

static ENTRIES: Template = Template::sql("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INT)");

fn runs_statements(engine: &Engine) {
    in_thread("shop", || {
        let connection = Connection::open(engine.uri()).unwrap();
        connection.execute("INSERT INTO entry\n  VALUES (?1, ?2)", [1, 10]).unwrap();
        connection.execute("INSERT INTO entry VALUES (?1, ?2)", [1, 11]).unwrap_err();
    });
    assert_eq!(entries(&engine.unit_of_work().unwrap()), [(1, 10)]);
}

fn echoes() {
    for round in 0..2 {
        let engine = ENTRIES.new_engine().unwrap();
        if round == 0 {
            engine.echo();
        }
        runs_statements(&engine);
    }
}

/// The times in the lines of an echo differ.
fn without_times(lines: &[String]) -> Vec<String> {
    let without_time = |line: &String| {
        let mut parts: Vec<&str> = line.split(", ").collect();
        parts.remove(parts.len() - 2);
        parts.join(", ")
    };
    lines.iter().map(without_time).collect()
}

const ECHO: [&str; 5] = [
    "INSERT INTO entry VALUES (1, 10) -- 1 row changed, thread `shop`",
    "INSERT INTO entry VALUES (1, 11) -- failed: UNIQUE constraint failed: entry.key, thread `shop`",
    "BEGIN -- done, thread `printed::child`",
    "SELECT key, value FROM entry ORDER BY key -- 1 row, thread `printed::child`",
    "ROLLBACK -- done, thread `printed::child`",
];

/// The engine of the second round is the same one, reused.
#[test]
fn an_echo_prints_each_statement_of_its_engine() {
    assert_eq!(without_times(&printed_by("echoes")), ECHO);
}

fn echoes_and_fails() {
    let engine = engine_with_entries(&[(1, 10)]);
    engine.echo();
    update(&engine.connect().unwrap()).unwrap();
    panic!("the test's own failure");
}

/// A runner shows the captured output of a test that fails, and that of no other.
#[test]
fn an_echo_is_captured() {
    let run = |role: &str| {
        let mut command = Command::new(env::current_exe().unwrap());
        let output = command.args(["--exact", "printed::child"]).env(ROLE, role).output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(!stderr.contains("rusqlite-fixtures: UPDATE"), "{stderr}");
        (output.status.success(), stdout)
    };
    let (succeeds, stdout) = run("echoes and fails");
    let (_, captured) = stdout.split_once("---- printed::child stdout ----").unwrap();
    let echoed = "\nrusqlite-fixtures: UPDATE entry SET value = value + 1 WHERE key = 1 -- 1 row changed, ";
    assert!(!succeeds && captured.contains(echoed), "{stdout}");
    let (succeeds, stdout) = run("echoes");
    assert!(succeeds && !stdout.contains("rusqlite-fixtures: "), "{stdout}");
}

#[test]
fn the_environment_variable_turns_the_echo_on() {
    let (succeeds, stderr) = run("runs statements", &[("RUSQLITE_FIXTURES_ECHO", "1")]);
    assert!(succeeds, "{stderr}");
    let lines = without_times(&own_lines(&stderr));
    assert!(lines.ends_with(&ECHO.map(str::to_owned)), "{lines:#?}");
    for off in ["0", ""] {
        let (succeeds, stderr) = run("runs statements", &[("RUSQLITE_FIXTURES_ECHO", off)]);
        assert!(succeeds && own_lines(&stderr).is_empty(), "{stderr}");
    }
}

#[test]
fn an_echo_that_is_neither_on_nor_off_is_reported() {
    let (succeeds, stderr) = run("runs statements", &[("RUSQLITE_FIXTURES_ECHO", "yes")]);
    let message = "can't use the environment variable RUSQLITE_FIXTURES_ECHO=\"yes\": set it to 1 to print each statement, or to 0";
    assert!(!succeeds && stderr.contains(message), "{stderr}");
}
