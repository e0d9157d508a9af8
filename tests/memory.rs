//! Engines that are gone have given back all their memory. A process of its own, for it measures the process; on Linux,
//! which tells how much of a process is in memory.
#![cfg(target_os = "linux")]

use std::fs;

use rusqlite_fixtures::{Engine, Snapshot, Template, UnitOfWork};

/// Bytes of the process that are in memory.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a process has memory");
    let kilobytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}

const MEGABYTE: usize = 1 << 20;

fn ten_megabytes() -> Engine {
    let engine = Engine::new();
    let connection = engine.connect().unwrap();
    connection.execute_batch("CREATE TABLE file (content BLOB)").unwrap();
    connection.execute("INSERT INTO file VALUES (zeroblob(10000000))", []).unwrap();
    engine
}

/// Makes an engine and drops it, so often; then the process must be as large as it was. (The first few make room that
/// the allocator keeps.)
fn leaves_nothing_behind(times: usize, make: impl Fn() -> Engine) {
    (0..10).for_each(|_| drop(make()));
    let before = resident();
    (0..times).for_each(|_| drop(make()));
    let grown = resident().saturating_sub(before);
    assert!(grown < 20 * MEGABYTE, "{times} engines later, the process is {} MB larger", grown / MEGABYTE);
}

/// 20 tables with 40 indexes, and 100 MB beside them.
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

/// A thousand live engines of one template, each with a row of its own changed, take what they have changed.
fn engines_of_a_template_share_its_pages() {
    TEMPLATE.snapshot().unwrap();
    let before = resident();
    let engines: Vec<Engine> = (0..1000).map(|_| TEMPLATE.new_engine().unwrap()).collect();
    for (number, engine) in (0..1000i64).zip(&engines) {
        let update = |work: &mut UnitOfWork| work.execute("UPDATE table_7 SET amount = ?1", [number]);
        assert_eq!(engine.try_transaction(update).unwrap(), 1);
    }
    let grown = resident() - before;
    println!("1000 engines take {:.1} MB above the template", grown as f64 / MEGABYTE as f64);
    assert!(grown < 100 * MEGABYTE, "1000 engines take {} MB above the template", grown / MEGABYTE);
}

/// One test, for two at once would measure each other. The control comes first: engines that stay are seen.
#[test]
fn engines_give_their_memory_back() {
    let before = resident();
    let kept: Vec<Engine> = (0..5).map(|_| ten_megabytes()).collect();
    assert!(resident() - before > 45 * MEGABYTE, "{} engines of 10 MB are not seen", kept.len());
    drop(kept);
    let times = std::env::var("RUSQLITE_FIXTURES_ENGINES").map_or(200, |times| times.parse().unwrap());
    leaves_nothing_behind(times, ten_megabytes);

    let template: Snapshot = ten_megabytes().snapshot();
    leaves_nothing_behind(10_000, || {
        let fork = template.new_engine();
        let update = |work: &mut UnitOfWork| work.execute("INSERT INTO file VALUES ('of this fork')", []);
        fork.try_transaction(update).unwrap();
        fork
    });
    engines_of_a_template_share_its_pages();
}
