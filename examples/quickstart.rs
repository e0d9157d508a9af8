//! Sixteen threads race for one shared engine, and each commits units of work on it.
//!
//! `cargo run --example quickstart`

use std::collections::HashSet;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite_fixtures::rusqlite::TransactionBehavior::Immediate;
use rusqlite_fixtures::{Engine, Result, UnitOfWork};

const URL: &str = "sqlite:///:memory:";
const THREADS: i64 = 16;
const UNITS_OF_WORK: i64 = 500;

/// The results of one thread.
struct Done {
    engine: Engine,
    commits: i64,
    busy: Duration,
    longest: Duration,
}

fn main() -> Result<()> {
    let barrier = Barrier::new(THREADS as usize);
    let start = Instant::now();
    let done: Vec<Done> = thread::scope(|scope| {
        let barrier = &barrier;
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(barrier, thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect::<Result<_>>()
    })?;
    report(&done, start.elapsed())
}

fn work(barrier: &Barrier, thread: i64) -> Result<Done> {
    barrier.wait(); // all ask for the engine at once
    let engine = Engine::shared(URL)?;
    engine.try_transaction(|work| work.execute_batch("CREATE TABLE IF NOT EXISTS visit (thread INTEGER NOT NULL)"))?;
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    for _ in 0..UNITS_OF_WORK {
        let start = Instant::now();
        let work = engine.begin(Immediate)?;
        work.prepare_cached("INSERT INTO visit VALUES (?1)")?.execute([thread])?;
        work.commit()?;
        longest = longest.max(start.elapsed());
    }
    Ok(Done { engine, commits: UNITS_OF_WORK, busy: start.elapsed(), longest })
}

fn report(done: &[Done], elapsed: Duration) -> Result<()> {
    let engines: HashSet<&str> = done.iter().map(|done| done.engine.uri()).collect();
    let commits: i64 = done.iter().map(|done| done.commits).sum();
    let busiest = done.iter().map(|done| done.busy).max().unwrap_or_default();
    let longest = done.iter().map(|done| done.longest).max().unwrap_or_default();
    let work = UnitOfWork::new(URL)?;
    let (rows, seen): (i64, i64) =
        work.query_row("SELECT count(*), count(DISTINCT thread) FROM visit", [], |row| Ok((row.get(0)?, row.get(1)?)))?;

    println!("{THREADS} threads raced for {URL}");
    println!("  engines created     {:>8}", engines.len());
    println!("  commits             {commits:>8}");
    println!("  rows                {rows:>8}   of {seen} threads");
    println!("  per unit of work    {:>8.1} µs", busiest.as_secs_f64() * 1e6 / commits as f64);
    println!("  longest with wait   {:>8.1} ms", longest.as_secs_f64() * 1e3);
    println!("  in all              {:>8.1} ms", elapsed.as_secs_f64() * 1e3);

    assert_eq!((engines.len(), rows, seen), (1, commits, THREADS), "engines, commits or threads are missing");
    Ok(())
}

#[test]
fn the_example_runs() {
    main().unwrap();
}
