//! Messages and panics name the caller's line, not one in this crate.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::Duration;

use rusqlite::TransactionBehavior::Immediate;
use rusqlite_fixtures::faults::Fault;
use rusqlite_fixtures::hammer::Hammer;
use rusqlite_fixtures::rusqlite::{self, Connection};
use rusqlite_fixtures::{Engine, Error, Template, UnitOfWork};

use crate::support::{engine_with_entries, entries, here, unique_url};

/// Asserts that the message names this line of this file, after the text `before`.
fn assert_names(message: &str, before: &str, line: u32) {
    let place = format!("{before}tests/it/callers.rs:{line}:");
    assert!(message.contains(&place), "{place:?} is missing: {message}");
}

/// Returns the error message of another writer.
fn refusal(engine: &Engine) -> String {
    engine.set_lock_timeout(Duration::ZERO);
    engine.begin(Immediate).unwrap_err().to_string()
}

fn write(connection: &Connection) {
    connection.execute_batch("PRAGMA user_version = 7").unwrap();
}

#[test]
fn a_refusal_names_the_line_that_began_the_unit_of_work() {
    static TEMPLATE: Template = Template::sql("CREATE TABLE entry (key INTEGER PRIMARY KEY)");
    let (engine, url) = (Engine::new(), unique_url("callers"));
    for (work, line) in [
        here!(engine.begin(Immediate)),
        here!(engine.unit_of_work()),
        here!(UnitOfWork::new(&url)),
        here!(TEMPLATE.unit_of_work()),
    ] {
        let work = work.unwrap();
        write(&work);
        assert_names(&refusal(work.engine()), "in the unit of work begun at ", line);
        drop(work);
    }
    let refused = |work: &mut UnitOfWork| Ok::<_, Error>(refusal(work.engine()));
    let (message, line) = here!(engine.transaction(refused));
    assert_names(&message.unwrap(), "in the unit of work begun at ", line);
}

#[test]
fn a_refusal_names_the_current_unit_of_work_on_a_reused_connection() {
    let engine = Engine::new();
    let (one, _) = here!(engine.unit_of_work().unwrap());
    drop(one);
    let (again, line) = here!(engine.unit_of_work().unwrap()); // on the same connection
    write(&again);
    assert_names(&refusal(&engine), "in the unit of work begun at ", line);
}

#[test]
fn a_refusal_names_the_line_that_opened_the_connection() {
    let engine = Engine::new();
    let (connection, line) = here!(engine.connect().unwrap());
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_names(&refusal(&engine), "in the connection opened at ", line);
    drop(connection);
    let (pooled, line) = here!(engine.pooled_connection().unwrap());
    pooled.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_names(&refusal(&engine), "in the connection opened at ", line);
}

#[test]
fn a_serialization_failure_names_the_line_of_the_restore_or_reset() {
    let engine = engine_with_entries(&[(1, 1)]);
    let full = engine.snapshot();
    let stale = |replace: &dyn Fn() -> u32| {
        let reader = engine.connect().unwrap();
        reader.execute_batch("BEGIN").unwrap();
        reader.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).unwrap();
        let line = replace();
        let refused = reader.execute("CREATE TABLE other (a)", []).unwrap_err();
        assert_names(&Error::from(refused).to_string(), "in the restore or reset called at ", line);
    };
    stale(&|| here!(engine.reset().unwrap()).1);
    stale(&|| here!(engine.restore(&full).unwrap()).1);
    assert_eq!(entries(&engine.connect().unwrap()), [(1, 1)]);
}

#[test]
fn a_failed_build_names_the_lines_of_the_template_and_the_step() {
    static EMPTY: Template = Template::empty();
    let fail = |_: &mut Connection| Err("no migrations".into());
    for (template, line) in [
        here!(Template::sql("SELEC 1")),
        here!(Template::build(fail)),
        here!(Template::database(b"no database")),
        here!(Template::empty().seed("SELEC 2")),
        here!(Template::based_on(&EMPTY).seed("SELEC 3")),
    ] {
        assert_names(&template.new_engine().unwrap_err().to_string(), "the template at ", line);
    }
    let scripted = Template::empty(); // on a line above the script's
    let (scripted, line) = here!(scripted.seed("SELEC 4"));
    assert_names(&scripted.new_engine().unwrap_err().to_string(), "the script given at ", line);
    let functional = Template::empty();
    let (functional, line) = here!(functional.seed_with(|_| Err("no seed".into())));
    assert_names(&functional.new_engine().unwrap_err().to_string(), "the function given at ", line);
}

#[test]
fn a_fault_plan_names_its_line() {
    let (at, line) = here!(Fault::Io.at(2));
    assert_names(&format!("{at:?}"), "Fault::Io.at(2) of ", line);
    let (from, line) = here!(Fault::Io.starting_at(2));
    assert_names(&format!("{from:?}"), "Fault::Io.starting_at(2) of ", line);
    let plans = Cell::new(Vec::new());
    let keep = |plan: &rusqlite_fixtures::faults::Plan| {
        plans.set([plans.take(), vec![format!("{plan:?}")]].concat());
        plan.during(|| drop(Engine::new().connect()));
    };
    let ((), line) = here!(Fault::Io.everywhere(keep));
    let plans = plans.take();
    assert!(plans.len() > 1, "{plans:?}");
    plans.iter().for_each(|plan| assert_names(plan, " of ", line));
}

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static PANICKED_AT: Cell<Option<(String, u32)>> = const { Cell::new(None) };
}

/// Returns where `work` panics. Panics of other threads go to the previous hook.
fn panic_location(work: impl FnOnce()) -> (String, u32) {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        let other = panic::take_hook();
        panic::set_hook(Box::new(move |panic| match panic.location().filter(|_| WATCHED.get()) {
            Some(at) => PANICKED_AT.set(Some((at.file().to_owned(), at.line()))),
            None => other(panic),
        }));
    });
    WATCHED.set(true);
    let panicked = catch_unwind(AssertUnwindSafe(work));
    WATCHED.set(false);
    assert!(panicked.is_err());
    PANICKED_AT.take().expect("the hook was called")
}

#[test]
fn a_panic_names_the_line_of_the_caller() {
    let report = Hammer::new().threads(1).rounds(1).run(|_| Err::<(), _>("no".into()));
    let file = file!().to_owned();
    for (at, line) in [
        here!(panic_location(|| report.assert_no_failures())),
        here!(panic_location(|| drop(Fault::Io.at(0)))),
        here!(panic_location(|| drop(Fault::Io.starting_at(0)))),
        here!(panic_location(|| Fault::Io.everywhere(|_| ()))),
    ] {
        assert_eq!(at, (file.clone(), line));
    }
}
