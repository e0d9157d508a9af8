//! Dropped engines free all their memory. The test has its own process, because it measures the process's memory. It
//! runs on Linux only, which reports how much memory is resident.
#![cfg(target_os = "linux")]

use std::fs;

use rusqlite_fixtures::{Engine, Snapshot, Template, UnitOfWork};

/// Returns the resident memory of the process in bytes.
fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a process has memory");
    let kilobytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}

const MEGABYTE: usize = 1 << 20;

fn engine_of_10_mb() -> Engine {
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    connection.execute_batch("CREATE TABLE file (content BLOB)").unwrap();
    connection.execute("INSERT INTO file VALUES (zeroblob(10000000))", []).unwrap();
    engine
}

/// Makes and drops `times` engines, and asserts that the process has not grown. (The first ten engines fill the
/// allocator's reserves.)
fn assert_no_growth(times: usize, make: impl Fn() -> Engine) {
    (0..10).for_each(|_| drop(make()));
    let before = resident_bytes();
    (0..times).for_each(|_| drop(make()));
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 20 * MEGABYTE, "{times} engines later, the process is {} MB larger", grown / MEGABYTE);
}

/// 20 tables with 40 indexes, and a blob of 100 MB.
static TEMPLATE: Template = Template::build(|connection| {
    for table in 0..20 {
        connection.execute_batch(&format!(
            "CREATE TABLE table_{table} (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, amount INTEGER NOT NULL);
             CREATE INDEX by_owner_{table} ON table_{table} (owner);
             CREATE INDEX by_amount_{table} ON table_{table} (amount);
             INSERT INTO table_{table} VALUES (1, 'Ada', 1);"
        ))?;
    }
    connection.execute_batch("CREATE TABLE file (content BLOB); INSERT INTO file VALUES (zeroblob(100000000))")?;
    Ok(())
});

/// Asserts that 1,000 live engines of one template need memory only for what they change, which is one row each.
fn assert_template_pages_are_shared() {
    TEMPLATE.snapshot().unwrap();
    let before = resident_bytes();
    let engines: Vec<Engine> = (0..1000).map(|_| TEMPLATE.new_engine().unwrap()).collect();
    for (number, engine) in (0..1000i64).zip(&engines) {
        let update = |work: &mut UnitOfWork| work.execute("UPDATE table_7 SET amount = ?1", [number]);
        assert_eq!(engine.try_transaction(update).unwrap(), 1);
    }
    let grown = resident_bytes() - before;
    println!("1000 engines take {:.1} MB above the template", grown as f64 / MEGABYTE as f64);
    assert!(grown < 100 * MEGABYTE, "1000 engines take {} MB above the template", grown / MEGABYTE);
}

/// A single test, because parallel tests would measure each other. The control comes first: live engines show up.
#[test]
fn dropped_engines_free_their_memory() {
    let before = resident_bytes();
    let kept: Vec<Engine> = (0..5).map(|_| engine_of_10_mb()).collect();
    assert!(resident_bytes() - before > 45 * MEGABYTE, "{} live engines of 10 MB do not show up", kept.len());
    drop(kept);
    let times = std::env::var("RUSQLITE_FIXTURES_ENGINES").map_or(200, |times| times.parse().unwrap());
    assert_no_growth(times, engine_of_10_mb);

    let template: Snapshot = engine_of_10_mb().snapshot();
    assert_no_growth(10_000, || {
        let fork = template.new_engine();
        let update = |work: &mut UnitOfWork| work.execute("INSERT INTO file VALUES ('of this fork')", []);
        fork.try_transaction(update).unwrap();
        fork
    });
    assert_template_pages_are_shared();
}
