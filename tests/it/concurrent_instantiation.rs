//! Threads that instantiate units of work at once share one engine per URL, and see what the others commit.
//!
//! The bug that this crate began with was a cache of engines that looked for an engine, made one, and then stored it,
//! without a lock around the three. `CheckThenCreate` is that cache; it has to fail what the real one passes.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use rusqlite_fixtures::{Engine, MEMORY_ENGINES, UnitOfWork};

use crate::support::{Rendezvous, unique_url};

const DEFAULT: &str = "sqlite:///:memory:";

trait Registry: Sync {
    fn unit_of_work(&self, url: &str) -> UnitOfWork;
}

/// The one under test.
struct OnePerUrl;

impl Registry for OnePerUrl {
    fn unit_of_work(&self, url: &str) -> UnitOfWork {
        UnitOfWork::new(url).unwrap()
    }
}

/// The negative control: check, then create, then store. Each access is locked, for Rust would not compile it otherwise;
/// the three together are not. All threads are made to meet between their checks and their creations, so that what went
/// wrong rarely goes wrong every time.
struct CheckThenCreate {
    engines: Mutex<HashMap<String, Engine>>,
    checked: HashMap<String, Rendezvous>,
}

impl CheckThenCreate {
    fn new(threads: usize, urls: &[String]) -> CheckThenCreate {
        let checked = urls.iter().map(|url| (url.clone(), Rendezvous::of(threads))).collect();
        CheckThenCreate { engines: Mutex::default(), checked }
    }

    fn engine(&self, url: &str) -> Engine {
        let found = self.engines.lock().unwrap().get(url).cloned();
        self.checked[url].meet(Duration::from_secs(60));
        if let Some(engine) = found {
            return engine;
        }
        let engine = Engine::new();
        self.engines.lock().unwrap().insert(url.to_owned(), engine.clone());
        engine
    }
}

impl Registry for CheckThenCreate {
    fn unit_of_work(&self, url: &str) -> UnitOfWork {
        self.engine(url).unit_of_work().unwrap()
    }
}

/// What one thread found under one URL.
struct Found {
    engine: Engine,
    rows: BTreeSet<i64>,
}

/// All threads, released by one barrier, instantiate a unit of work for each URL and commit a row in it; when all have,
/// each reads what is there. Says what is wrong, if anything.
fn race(registry: &impl Registry, threads: usize, urls: &[String], table: &str) -> Result<(), String> {
    let (start, committed) = (Barrier::new(threads), Barrier::new(threads));
    let instantiate = |thread: usize| -> Vec<Found> {
        start.wait();
        let units_of_work: Vec<UnitOfWork> = urls.iter().map(|url| registry.unit_of_work(url)).collect();
        let commit_row = |work: UnitOfWork| -> Engine {
            let engine = work.engine().clone();
            let create = format!("CREATE TABLE IF NOT EXISTS {table} (thread INTEGER PRIMARY KEY)");
            engine.transaction(|work| work.execute_batch(&create)).unwrap();
            work.execute(&format!("INSERT INTO {table} VALUES (?1)"), [thread as i64]).unwrap();
            work.commit().unwrap();
            engine
        };
        let engines: Vec<Engine> = units_of_work.into_iter().map(commit_row).collect();
        committed.wait();
        engines.into_iter().map(|engine| Found { rows: rows(&engine, table), engine }).collect()
    };
    let found: Vec<Vec<Found>> = thread::scope(|scope| {
        let instantiate = &instantiate;
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || instantiate(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    urls.iter().enumerate().try_for_each(|(number, url)| check(url, threads, found.iter().map(|found| &found[number])))
}

fn check<'a>(url: &str, threads: usize, found: impl Iterator<Item = &'a Found> + Clone) -> Result<(), String> {
    let first = &found.clone().next().expect("there are threads").engine;
    let others = found.clone().filter(|found| found.engine != *first).count();
    if others > 0 {
        return Err(format!("{url}: {others} of {threads} threads have another engine than the first"));
    }
    let all: BTreeSet<i64> = (0..threads as i64).collect();
    match found.clone().position(|found| found.rows != all) {
        Some(thread) => Err(format!("{url}: thread {thread} does not see what every thread committed")),
        None => Ok(()),
    }
}

fn rows(engine: &Engine, table: &str) -> BTreeSet<i64> {
    let work = engine.unit_of_work().unwrap();
    let mut statement = work.prepare(&format!("SELECT thread FROM {table}")).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// The default URL, and as many others as asked for; a table that only this race uses.
fn some_urls(others: usize) -> (Vec<String>, String) {
    let others = (0..others).map(|_| unique_url("concurrent-instantiation"));
    let table = unique_url("race").replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
    ([DEFAULT.to_owned()].into_iter().chain(others).collect(), table)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn threads_share_one_engine_per_url(threads in 2..=32usize, others in 0..8usize) {
        let (urls, table) = some_urls(others);
        prop_assert_eq!(race(&OnePerUrl, threads, &urls, &table), Ok(()));
        for url in &urls[1..] {
            prop_assert!(MEMORY_ENGINES.remove(&url.parse().unwrap()).is_some());
        }
    }

    #[test]
    fn check_then_create_is_caught_every_time(threads in 2..=32usize, others in 0..8usize) {
        let (urls, table) = some_urls(others);
        let caught = race(&CheckThenCreate::new(threads, &urls), threads, &urls, &table);
        prop_assert!(caught.is_err());
    }
}

/// The second fault of that cache: its engine gave each thread a connection of its own, and each connection to
/// `:memory:` is a database of its own.
#[test]
fn a_second_thread_has_the_tables_of_the_first() {
    let engine = Engine::new();
    engine.connect().unwrap().execute_batch("CREATE TABLE account (id INTEGER PRIMARY KEY)").unwrap();
    thread::scope(|scope| {
        scope.spawn(|| engine.connect().unwrap().execute("INSERT INTO account VALUES (1)", []).unwrap());
    });
    assert_eq!(engine.connect().unwrap().query_row("SELECT count(*) FROM account", [], |row| row.get(0)), Ok(1));
}
