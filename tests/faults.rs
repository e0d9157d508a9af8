//! Whichever read, write or lock fails: what a commit reported as committed is there, and nothing else. This is a separate
//! binary because it measures what SQLite has allocated in the process.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::TransactionBehavior::Immediate;
use rusqlite_fixtures::faults::{Fault, Plan};
use rusqlite_fixtures::rusqlite::{self, Connection, ErrorCode, ffi};
use rusqlite_fixtures::{BoxError, Engine, Error, ErrorKind, Result, Template};

/// Small pages, so that little content takes many calls.
const SCHEMA: &str = "
    PRAGMA page_size = 512;
    CREATE TABLE entry (key INTEGER PRIMARY KEY, kind INTEGER NOT NULL, owner INTEGER NOT NULL, note TEXT NOT NULL);
    CREATE INDEX entry_kind ON entry (kind);
    INSERT INTO entry VALUES (1, 1, 1, 'one'), (2, 0, 1, 'two'), (3, 1, 2, 'three'), (4, 0, 2, 'four');";

static TEMPLATE: Template = Template::sql(SCHEMA).key("faults").on_connect(keep_few_pages);

/// So that SQLite writes before it commits.
fn keep_few_pages(connection: &Connection) -> Result<(), BoxError> {
    Ok(connection.pragma_update(None, "cache_size", 2)?)
}

/// Returns an engine with the template's content that is not reused.
fn fork() -> Engine {
    static FIRST: LazyLock<Engine> = LazyLock::new(|| TEMPLATE.new_engine().unwrap());
    FIRST.fork()
}

/// One transaction.
struct Step {
    sql: &'static str,
    end: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Commit,
    Rollback,
    /// It can't run in a transaction, and does not change what `content` returns.
    ByItself,
}

const CREATE: Step = Step {
    sql: "CREATE TABLE tag (entry INTEGER NOT NULL REFERENCES entry, name TEXT NOT NULL);
          CREATE UNIQUE INDEX tag_name ON tag (name);
          INSERT INTO tag VALUES (1, 'first'), (2, 'second');",
    end: End::Commit,
};

const INSERT: Step = Step {
    sql: "INSERT INTO entry (kind, owner, note)
              SELECT kind + 2, owner + 2, format('%.*c', 200, kind) FROM entry LIMIT 4",
    end: End::Commit,
};

const SAVEPOINT: Step = Step {
    sql: "UPDATE entry SET kind = kind + 1 WHERE owner = 1;
          SAVEPOINT inner;
          UPDATE entry SET note = 'not to stay';
          INSERT INTO entry (kind, owner, note) SELECT 9, 9, note FROM entry;
          ROLLBACK TO inner;
          RELEASE inner;",
    end: End::Commit,
};

const ROLL_BACK: Step = Step {
    sql: "INSERT INTO entry (kind, owner, note) SELECT kind + 7, 7, format('%.*c', 300, kind) FROM entry;
          DROP INDEX entry_kind;",
    end: End::Rollback,
};

const DELETE: Step = Step { sql: "DELETE FROM entry WHERE key % 4 = 3", end: End::Commit };

const READ: Step = Step { sql: "SELECT * FROM entry ORDER BY note", end: End::Commit };

const VACUUM: Step = Step { sql: "VACUUM", end: End::ByItself };

const STEPS: &[Step] = &[CREATE, INSERT, SAVEPOINT, ROLL_BACK, DELETE, READ];

const WITH_VACUUM: &[Step] = &[DELETE, VACUUM, INSERT];

/// Steps that don't change the schema, so that connections can be reused after them.
const CHANGE_ROWS: &[Step] = &[INSERT, SAVEPOINT, DELETE, READ];

/// Returns the whole content of the database.
fn content(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut content = rows(connection, "SELECT type, name, sql FROM sqlite_schema ORDER BY name")?;
    content.extend(rows(connection, "SELECT * FROM entry ORDER BY key")?);
    if content.iter().any(|row| row.contains("CREATE TABLE tag")) {
        content.extend(rows(connection, "SELECT * FROM tag ORDER BY name")?);
    }
    Ok(content)
}

fn rows(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(sql)?;
    let columns = statement.column_count();
    let row = |row: &rusqlite::Row<'_>| {
        let values = (0..columns).map(|column| row.get::<_, rusqlite::types::Value>(column));
        values.collect::<rusqlite::Result<Vec<_>>>().map(|values| format!("{values:?}"))
    };
    statement.query_map([], row)?.collect()
}

/// Returns the content after the committed steps, from a database without faults.
fn content_after(steps: &[Step], committed: &[usize]) -> Vec<String> {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(SCHEMA).unwrap();
    for number in committed {
        connection.execute_batch(&format!("BEGIN; {}; COMMIT", steps[*number].sql)).unwrap();
    }
    content(&connection).unwrap()
}

/// The kind of connection that steps use.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Access {
    UnitOfWork,
    Pooled,
    Connect,
    Uri,
    /// A connection with this `PRAGMA journal_mode`.
    Journal(&'static str),
}

const ACCESSES: [Access; 4] = [Access::UnitOfWork, Access::Pooled, Access::Connect, Access::Uri];

enum Client {
    UnitsOfWork(Engine),
    Connection(Box<dyn Deref<Target = Connection>>),
}

impl Client {
    fn open(engine: &Engine, access: Access) -> Result<Client> {
        Ok(match access {
            Access::UnitOfWork => Client::UnitsOfWork(engine.clone()),
            Access::Pooled => Client::Connection(Box::new(engine.pooled_connection()?)),
            Access::Connect => Client::Connection(Box::new(Box::new(engine.connect()?))),
            Access::Uri => Client::Connection(Box::new(Box::new(open_by_uri(engine)?))),
            Access::Journal(mode) => {
                let connection = engine.connect()?;
                connection.pragma_update(None, "journal_mode", mode)?;
                Client::Connection(Box::new(Box::new(connection)))
            }
        })
    }

    fn carry_out(&self, step: &Step) -> Result<()> {
        match self {
            Client::UnitsOfWork(engine) => {
                let work = engine.unit_of_work()?;
                if step.end == End::ByItself {
                    return Ok(work.execute_batch(&format!("COMMIT; {}", step.sql))?); // like code under test
                }
                work.execute_batch(step.sql)?;
                if step.end == End::Commit { work.commit() } else { work.rollback() }
            }
            Client::Connection(connection) if step.end == End::ByItself => Ok(connection.execute_batch(step.sql)?),
            Client::Connection(connection) => {
                let transaction = connection.unchecked_transaction()?;
                transaction.execute_batch(step.sql)?;
                let ended = if step.end == End::Commit { transaction.commit() } else { transaction.rollback() };
                Ok(ended?)
            }
        }
    }
}

fn open_by_uri(engine: &Engine) -> rusqlite::Result<Connection> {
    let connection = Connection::open(engine.uri())?;
    connection.busy_timeout(Duration::from_millis(3))?; // SQLite's own handler, which does wait
    connection.pragma_update(None, "cache_size", 2)?;
    Ok(connection)
}

/// The outcome of a workload.
#[derive(Default)]
struct Outcome {
    /// The steps whose commit succeeded.
    committed: Vec<usize>,
    first_error: Option<Error>,
}

fn carry_out(client: &Client, steps: &[Step]) -> Outcome {
    let mut outcome = Outcome::default();
    for (number, step) in steps.iter().enumerate() {
        match client.carry_out(step) {
            Ok(()) if step.end == End::Commit => outcome.committed.push(number),
            Ok(()) => {}
            Err(error) => drop(outcome.first_error.get_or_insert(error)),
        }
    }
    outcome
}

type Verdict<T = ()> = std::result::Result<T, String>;

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn can<T>(what: &str, result: std::result::Result<T, impl Display>) -> Verdict<T> {
    result.map_err(|error| format!("{what}: {error}"))
}

fn ensure_content(who: &str, engine: &Engine, expected: &[String]) -> Verdict {
    let work = can(who, engine.unit_of_work())?;
    let found = can(who, content(&work))?;
    let only_in = |one: &[String], other: &[String]| {
        one.iter().filter(|row| !other.contains(row)).map(|row| row[..row.len().min(60)].to_owned()).collect::<Vec<_>>()
    };
    ensure(found == expected, || {
        format!("{who} finds {:?}, not {:?}", only_in(&found, expected), only_in(expected, &found))
    })?;
    let integrity = can(who, rows(&work, "PRAGMA integrity_check"))?;
    ensure(integrity == [r#"[Text("ok")]"#], || format!("{who} finds it damaged: {integrity:?}"))
}

/// Checks that the writer slot is free. The restore takes it, and changes nothing.
fn ensure_free(engine: &Engine) -> Verdict {
    can("the writer slot", engine.restore(&engine.snapshot()))
}

/// Steps, and the content after each set of committed steps.
struct Workload {
    steps: &'static [Step],
    known: HashMap<Vec<usize>, Vec<String>>,
}

impl Workload {
    fn of(steps: &'static [Step]) -> Workload {
        Workload { steps, known: HashMap::new() }
    }

    /// Runs the steps under the plan, and then checks the engine.
    fn run(&mut self, engine: &Engine, access: Access, plan: &Plan) -> Verdict<Outcome> {
        let (client, outcome) = plan.during(|| match Client::open(engine, access) {
            Ok(client) => {
                let outcome = carry_out(&client, self.steps);
                (Some(client), outcome)
            }
            Err(error) => (None, Outcome { first_error: Some(error), ..Outcome::default() }),
        });
        engine.set_lock_timeout(Duration::ZERO);
        ensure_free(engine)?;
        let committed = outcome.committed.clone();
        let expected = self.known.entry(committed).or_insert_with_key(|committed| content_after(self.steps, committed));
        ensure_content("the next unit of work", engine, expected)?;
        ensure_content("a copy", &engine.snapshot().new_engine(), expected)?;
        let client = client.map_or_else(|| can("the next connection", Client::open(engine, access)), Ok)?;
        const NEXT: Step = Step { sql: "INSERT INTO entry VALUES (1000, 1, 1, 'next')", end: End::Commit };
        can("the next step", client.carry_out(&NEXT))?;
        let work = can("the unit of work after it", engine.unit_of_work())?;
        let next = can("its query", rows(&work, "SELECT 1 FROM entry WHERE key = 1000"))?;
        ensure(next.len() == 1, || "the commit of the next step is lost".to_owned())?;
        ensure_free(engine)?;
        Ok(outcome)
    }
}

/// Returns the number of bytes that SQLite has allocated.
#[allow(unsafe_code, reason = "rusqlite has no function for this")]
fn allocated() -> i64 {
    // SAFETY: it may be called at any time.
    unsafe { ffi::sqlite3_memory_used() }
}

/// Runs tests one after another, because some measure the process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The findings of a workload with a fault at each call in turn.
#[derive(Debug, Default)]
struct Findings {
    /// The number of plans that failed a call.
    hits: usize,
    /// The first error of each run, without numbers.
    messages: BTreeSet<String>,
    flaws: Vec<String>,
}

/// Runs the steps with the fault at each call in turn, each time on a new engine, of which nothing must be left.
fn everywhere(fault: Fault, access: Access, steps: &'static [Step]) -> Findings {
    everywhere_and(fault, access, steps, |_| {})
}

fn everywhere_and(fault: Fault, access: Access, steps: &'static [Step], leave: impl Fn(&Engine)) -> Findings {
    let (mut workload, mut findings) = (Workload::of(steps), Findings::default());
    drop(fork().unit_of_work()); // so that everything is allocated that SQLite allocates once in a process
    fault.everywhere(|plan| {
        let before = allocated();
        let engine = fork();
        let verdict = workload.run(&engine, access, plan);
        leave(&engine);
        let uri = engine.uri().to_owned();
        drop(engine);
        let verdict = verdict.and_then(|outcome| {
            ensure(Connection::open(&uri).is_err(), || "the engine is still there".to_owned())?;
            ensure(allocated() == before, || format!("{} bytes are left", allocated() - before))?;
            Ok(outcome)
        });
        findings.hits += usize::from(plan.was_hit());
        match verdict {
            Ok(outcome) => findings.messages.extend(outcome.first_error.map(|error| without_numbers(&error))),
            Err(flaw) => findings.flaws.push(format!("{plan:?}: {flaw}")),
        }
    });
    findings
}

fn without_numbers(error: &Error) -> String {
    let is_digit = |letter: char| letter.is_ascii_digit();
    let mut text = String::new();
    for part in error.to_string().split_inclusive(is_digit) {
        let words = part.trim_end_matches(is_digit);
        text.push_str(words);
        if words.len() < part.len() && !text.ends_with('N') {
            text.push('N');
        }
    }
    text
}

/// The least number of hits shows that each call of the workload was failed, by `at` and by `starting_at`.
fn assert_all_is_well(fault: Fault, steps: &'static [Step], accesss: &[Access], hits: usize, messages: &[&str]) {
    let _alone = alone();
    for access in accesss {
        let start = Instant::now();
        let findings = everywhere(fault, *access, steps);
        println!("{fault:?} {access:?}: {} hits in {:.1?}", findings.hits, start.elapsed());
        assert!(findings.flaws.is_empty(), "{access:?}: {} flaws, as {}", findings.flaws.len(), findings.flaws[0]);
        assert!(findings.hits >= hits, "{access:?}: only {} calls were hit", findings.hits);
        let other = findings.messages.iter().find(|found| !messages.iter().any(|message| found.contains(message)));
        assert!(other.is_none(), "{access:?}: {other:?}");
    }
}

#[test]
fn io_errors() {
    assert_all_is_well(Fault::Io, STEPS, &ACCESSES, 300, &["disk I/O error", "unable to open database file"]);
}

#[test]
fn a_full_disk() {
    assert_all_is_well(Fault::Full, STEPS, &ACCESSES, 150, &["database or disk is full"]);
}

#[test]
fn no_memory() {
    let [ours @ .., uri] = &ACCESSES;
    assert_all_is_well(Fault::NoMemory, STEPS, ours, 300, &["out of memory"]);
    let rusqlites_own = "file:/rusqlite-fixtures/engine-N";
    assert_all_is_well(Fault::NoMemory, STEPS, &[*uri], 300, &["out of memory", rusqlites_own]);
}

#[test]
fn taken_locks() {
    let messages = ["can't lock engine N: Fault::Busy.starting_at(N) of tests/faults.rs:N:N makes the lock fail"];
    assert_all_is_well(Fault::Busy, STEPS, &ACCESSES, 20, &messages);
}

const DISK: &[&str] = &["disk I/O error", "unable to open database file", "database or disk is full"];

#[test]
fn vacuum() {
    for fault in [Fault::Io, Fault::Full] {
        assert_all_is_well(fault, WITH_VACUUM, &[Access::UnitOfWork, Access::Connect], 50, DISK);
    }
}

/// Each mode commits in another way.
#[test]
fn journal_modes() {
    for fault in [Fault::Io, Fault::Full] {
        assert_all_is_well(fault, CHANGE_ROWS, &["TRUNCATE", "PERSIST", "MEMORY"].map(Access::Journal), 15, DISK);
    }
}

/// The check is worth something: SQLite writes before it commits, and these writes must not be visible after a rollback.
#[test]
fn there_are_writes_before_the_commit() {
    let _alone = alone();
    let (mut seen, engine) = (false, fork());
    Fault::Io.everywhere(|plan| {
        let _ = plan.during(|| carry_out(&Client::UnitsOfWork(engine.clone()), &[ROLL_BACK]));
        seen |= format!("{plan:?}").contains("the lock to change the file");
    });
    assert!(seen);
}

/// A transaction that changes two engines is in both or in none.
#[test]
fn commits_to_two_engines() {
    let _alone = alone();
    for fault in Fault::ALL {
        fault.everywhere(|plan| {
            let (one, other) = (fork(), fork());
            let connection = one.connect().unwrap();
            connection.execute("ATTACH ?1 AS other", [other.uri()]).unwrap();
            let sql = "BEGIN; DELETE FROM main.entry WHERE key > 1; DELETE FROM other.entry WHERE key > 1; COMMIT";
            let result = plan.during(|| connection.execute_batch(sql));
            drop(connection);
            let expected = content_after(
                &[Step { sql: "DELETE FROM entry WHERE key > 1", end: End::Commit }],
                &[0][..usize::from(result.is_ok())],
            );
            for engine in [one, other] {
                engine.set_lock_timeout(Duration::ZERO);
                ensure_content("the next", &engine, &expected).unwrap_or_else(|flaw| panic!("{result:?}, and {flaw}"));
                engine.try_transaction(|work| work.execute("DELETE FROM entry", [])).unwrap();
            }
        });
    }
}

/// With statistics, which SQLite reads with the schema and which change the query plan for `kind`. No `on_connect` runs before
/// the user gets the connection, so that the user's fault may come first.
static ANALYZED: Template = Template::sql(SCHEMA).seed("ANALYZE").key("faults-analyzed");

/// Returns what a test finds on its engine.
fn view(engine: &Engine) -> Vec<String> {
    let look = |connection: &Connection| {
        let mut view = content(connection).unwrap();
        view.push(query_plan(connection));
        view.extend(rows(connection, "PRAGMA cache_size").unwrap());
        view.push(format!("changes {}, last rowid {}", connection.changes(), connection.last_insert_rowid()));
        view
    };
    let mut view = look(&engine.unit_of_work().unwrap());
    view.extend(look(&engine.pooled_connection().unwrap()));
    view
}

fn query_plan(connection: &Connection) -> String {
    rows(connection, "EXPLAIN QUERY PLAN SELECT * FROM entry WHERE kind = 1").unwrap().concat()
}

/// Whatever failed in this test, while a connection was opened or later, the next test gets an engine like a new one.
#[test]
fn engines_of_a_template_are_clean_after_faults() {
    let _alone = alone();
    let new = view(&ANALYZED.new_engine().unwrap().fork());
    let plan_of = |engine: &Engine| query_plan(&engine.unit_of_work().unwrap());
    assert_ne!(plan_of(&fork()), plan_of(&ANALYZED.new_engine().unwrap()), "the statistics make no difference");
    let mut reused = 0;
    for (is_cold, fault) in [true, false].into_iter().flat_map(|is_cold| Fault::ALL.iter().map(move |f| (is_cold, f))) {
        fault.everywhere(|plan| {
            let engine = ANALYZED.new_engine().unwrap();
            let _ = plan.during(|| carry_out(&Client::UnitsOfWork(engine.clone()), CHANGE_ROWS));
            drop(engine);
            let next = ANALYZED.new_engine().unwrap();
            reused += usize::from(next.unit_of_work().unwrap().total_changes() > 0);
            assert_eq!(view(&next), new);
            if is_cold {
                next.retire();
            }
        });
    }
    assert!(reused > 100, "only {reused} connections were reused");
    ANALYZED.new_engine().unwrap().retire(); // or SQLite would reuse pages of idle connections while other tests measure
}

/// The counterpart: a step that commits twice, whose first half may be committed alone.
#[test]
fn half_of_a_step_is_found() {
    const TWICE: Step =
        Step { sql: "DELETE FROM entry WHERE key = 1; COMMIT; BEGIN; DELETE FROM entry", end: End::Commit };
    let _alone = alone();
    for (fault, access) in
        [(Fault::Io, Access::Connect), (Fault::Full, Access::UnitOfWork), (Fault::NoMemory, Access::Uri)]
    {
        let flaws = everywhere(fault, access, &[INSERT, TWICE, READ]).flaws;
        let found = flaws.iter().filter(|flaw| flaw.contains("the next unit of work finds")).count();
        assert!(found > 5, "{fault:?}: {flaws:#?}");
        assert!(
            found < everywhere(fault, access, &[INSERT, TWICE, READ]).hits,
            "{fault:?}: not all plans leave a half"
        );
    }
}

/// The counterparts of the checks that nothing is left.
#[test]
fn a_leaked_connection_allocation_or_slot_is_found() {
    let _alone = alone();
    let kept = RefCell::new(Vec::new());
    let keep = |engine: &Engine| kept.borrow_mut().push(engine.connect().unwrap());
    let flaws = everywhere_and(Fault::Busy, Access::Connect, &[READ], keep).flaws;
    assert!(!flaws.is_empty() && flaws.iter().all(|flaw| flaw.ends_with("the engine is still there")), "{flaws:?}");
    let allocate = |_: &Engine| kept.borrow_mut().push(Connection::open_in_memory().unwrap());
    let flaws = everywhere_and(Fault::Busy, Access::Connect, &[READ], allocate).flaws;
    assert!(!flaws.is_empty() && flaws.iter().all(|flaw| flaw.ends_with("bytes are left")), "{flaws:?}");
    let engine = fork();
    let _writer = engine.begin(Immediate).unwrap();
    let flaw = Workload::of(&[]).run(&engine, Access::Connect, &Fault::Io.at(1)).err().unwrap();
    assert!(flaw.starts_with("the writer slot: can't write to"), "{flaw}");
}

fn insert(connection: &Connection) -> rusqlite::Result<usize> {
    connection.execute("INSERT INTO entry (kind, owner, note) VALUES (1, 1, 'new')", [])
}

fn code_of<T>(result: rusqlite::Result<T>) -> Option<i32> {
    result.err()?.sqlite_error().map(|error| error.extended_code)
}

#[test]
fn at_fails_one_call_and_starting_at_all_later_ones() {
    let _alone = alone();
    let engine = fork();
    let connection = engine.connect().unwrap();
    let at = Fault::Full.at(2);
    let results = at.during(|| [insert(&connection), insert(&connection)]);
    assert_eq!(results.map(code_of), [Some(ffi::SQLITE_FULL), None]);
    let starting_at = Fault::Full.starting_at(2);
    let results = starting_at.during(|| [insert(&connection), insert(&connection)]);
    assert_eq!(results.map(code_of), [Some(ffi::SQLITE_FULL); 2]);
    assert!(at.was_hit() && starting_at.was_hit() && at.calls() > starting_at.calls());
    assert_eq!(code_of(insert(&connection)), None, "the plan has ended");
}

#[test]
fn a_plan_continues_its_count() {
    let _alone = alone();
    let engine = fork();
    let connection = engine.connect().unwrap();
    let all = Fault::Full.at(1000);
    all.during(|| insert(&connection)).unwrap();
    let plan = Fault::Full.at(all.calls() + 1);
    assert_eq!(code_of(plan.during(|| insert(&connection))), None);
    assert!(!plan.was_hit());
    assert_eq!(code_of(plan.during(|| insert(&connection))), Some(ffi::SQLITE_FULL));
}

/// The first and the last call included.
#[test]
fn everywhere_fails_each_call() {
    let _alone = alone();
    let insert_under = |plan: &Plan| {
        let engine = fork();
        let connection = engine.connect().unwrap();
        plan.during(|| insert(&connection)).is_ok()
    };
    let all = Fault::Full.at(1000);
    assert!(insert_under(&all) && all.calls() > 2);
    let hit = RefCell::new(BTreeSet::new());
    Fault::Full.everywhere(|plan| {
        let is_done = insert_under(plan);
        assert_eq!(is_done, !plan.was_hit(), "{plan:?}");
        if plan.was_hit() {
            hit.borrow_mut().insert(format!("{plan:?}").split_once(" of ").unwrap().0.to_owned());
        }
    });
    let plans = |kind: &'static str| (1..=all.calls()).map(move |n| format!("Fault::Full.{kind}({n})"));
    assert_eq!(hit.into_inner(), plans("at").chain(plans("starting_at")).collect());
}

#[test]
fn each_call_fails_with_its_own_code() {
    let _alone = alone();
    let code = |fault: Fault, n| {
        let engine = fork();
        let connection = engine.connect().unwrap();
        let plan = fault.at(n);
        code_of(plan.during(|| insert(&connection))).filter(|_| plan.was_hit())
    };
    let all = |fault| (1..60).filter_map(|n| code(fault, n)).collect::<BTreeSet<_>>();
    let of_the_disk = [
        ffi::SQLITE_CANTOPEN,
        ffi::SQLITE_IOERR_READ,
        ffi::SQLITE_IOERR_WRITE,
        ffi::SQLITE_IOERR_FSYNC,
        ffi::SQLITE_IOERR_FSTAT,
        ffi::SQLITE_IOERR_DELETE,
        ffi::SQLITE_IOERR_LOCK,
    ];
    assert_eq!(all(Fault::Io), BTreeSet::from(of_the_disk));
    assert_eq!(all(Fault::Full), BTreeSet::from([ffi::SQLITE_FULL]));
    assert_eq!(all(Fault::NoMemory), BTreeSet::from([ffi::SQLITE_NOMEM]));
    assert_eq!(all(Fault::Busy), BTreeSet::new(), "SQLite tries again");
}

#[test]
fn a_panic_ends_the_plan() {
    let _alone = alone();
    let engine = fork();
    let connection = engine.connect().unwrap();
    let plan = Fault::Io.starting_at(1);
    let panicked = catch_unwind(AssertUnwindSafe(|| plan.during(|| insert(&connection).unwrap())));
    assert!(panicked.is_err() && plan.was_hit());
    insert(&connection).unwrap();
}

#[test]
fn plans_do_not_nest() {
    let _alone = alone();
    let nested = catch_unwind(|| Fault::Io.at(1).during(|| Fault::Full.starting_at(2).during(|| ())));
    let message = *nested.unwrap_err().downcast::<String>().unwrap();
    let [inner, outer] =
        ["can't start Fault::Full.starting_at(2) of tests/faults.rs:", " during Fault::Io.at(1) of tests/faults.rs:"];
    assert!(
        message.starts_with(inner) && message.contains(outer) && message.ends_with(": plans don't nest"),
        "{message}"
    );
    fork().try_transaction(|work| insert(work)).expect("the outer plan has ended too");
}

#[test]
fn everywhere_panics_if_it_can_fail_no_call() {
    let _alone = alone();
    let nothing = catch_unwind(|| Fault::Io.everywhere(|plan| plan.during(|| ())));
    let message = *nothing.unwrap_err().downcast::<String>().unwrap();
    assert_eq!(message, "Fault::Io fails no call: SQLite made no such call to an engine in Plan::during");
    assert!(catch_unwind(|| Fault::Io.at(0)).is_err());
}

#[test]
fn a_plan_can_be_sent_but_not_shared() {
    fn is_send<T: Send>() {}
    fn is_sync<T: Sync>() {}
    is_send::<Plan>();
    is_send::<Fault>();
    is_sync::<Fault>();
    trait IfSync<Marker> {
        fn check() {}
    }
    impl<T> IfSync<()> for T {}
    impl<T: Sync> IfSync<u8> for T {}
    <Plan as IfSync<_>>::check(); // is ambiguous, and so does not compile, if a plan is Sync
}

#[test]
fn a_plan_affects_only_its_thread() {
    let _alone = alone();
    let engine = fork();
    let plan = Fault::Io.starting_at(1);
    plan.during(|| thread::scope(|scope| scope.spawn(|| engine.try_transaction(|work| insert(work))).join()).unwrap())
        .unwrap();
    assert_eq!(plan.calls(), 0);
}

#[test]
fn the_build_of_a_template_is_exempt() {
    let _alone = alone();
    static LATE: Template = Template::build(|connection| Ok(connection.execute_batch(SCHEMA)?)); // no image
    let built = Fault::Io.starting_at(1).during(|| LATE.new_engine().map(drop));
    built.and_then(|()| LATE.new_engine()).unwrap();
}

#[test]
fn a_connection_that_finds_a_lock_taken_retries() {
    let _alone = alone();
    let engine = fork();
    let start = Instant::now();
    for n in [1, 2] {
        let plan = Fault::Busy.at(n);
        plan.during(|| engine.try_transaction(|work| insert(work))).unwrap();
        assert!(plan.was_hit());
    }
    let refused = Fault::Busy.starting_at(1).during(|| engine.begin(Immediate)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LockTimeout);
    let (connection, permanent) = (engine.connect().unwrap(), Fault::Busy.starting_at(1));
    assert!(permanent.during(|| connection.execute_batch("BEGIN IMMEDIATE")).is_err());
    assert_eq!(permanent.calls(), 1, "it gives up at once");
    assert_eq!(refused.sqlite().and_then(rusqlite::Error::sqlite_error_code), Some(ErrorCode::DatabaseBusy));
    engine.set_lock_timeout(Duration::ZERO);
    assert!(Fault::Busy.at(1).during(|| engine.begin(Immediate)).is_err(), "the lock timeout is zero");
    assert!(start.elapsed() < Duration::from_secs(2), "nothing is waited for");
}

/// As in SQLite, which calls no busy handler for it.
#[test]
fn a_reader_that_finds_the_writer_slot_taken_is_refused() {
    let _alone = alone();
    let engine = fork();
    let work = engine.unit_of_work().unwrap();
    rows(&work, "SELECT * FROM entry").unwrap();
    assert_eq!(code_of(Fault::Busy.at(1).during(|| insert(&work))), Some(ffi::SQLITE_BUSY));
    insert(&work).unwrap();
    work.commit().unwrap();
}

#[test]
#[ignore = "is run by the next test, in a process of its own"]
fn fails_under_a_plan() {
    Fault::Full.everywhere(|plan| {
        let result = plan.during(|| fork().try_transaction(|work| insert(work)));
        assert!(result.is_ok() || !format!("{plan:?}").contains("Full.at(2)"));
    });
}

#[test]
fn a_test_that_fails_reports_the_plan() {
    let _alone = alone();
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--ignored", "--exact", "--nocapture", "fails_under_a_plan"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let plan = stderr.lines().find(|line| line.starts_with("rusqlite-fixtures: ")).unwrap_or(&stderr);
    assert!(
        plan.starts_with("rusqlite-fixtures: the panic happened during Fault::Full.at(2) of tests/faults.rs:"),
        "{plan}"
    );
    assert!(plan.ends_with(", which failed a write"), "{plan}");
}
