//! Threads that begin units of work at the same time share one engine per URL, and see each other's commits.
//!
//! This crate began with a bug in a cache of engines. The cache looked for an engine, created one and stored it, without
//! one lock around the three steps. `CheckThenCreate` is that cache; it must fail the test that the registry passes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use rusqlite_fixtures::hammer::{Hammer, Pause, REGISTRY_ASKED, REGISTRY_CREATING, Report, reached};
use rusqlite_fixtures::{Engine, MEMORY_ENGINES, UnitOfWork};

use crate::support::unique_url;

const DEFAULT: &str = "sqlite:///:memory:";

trait Registry: Send + Sync + 'static {
    fn unit_of_work(&self, url: &str) -> rusqlite_fixtures::Result<UnitOfWork>;
}

/// The registry under test.
struct OnePerUrl;

impl Registry for OnePerUrl {
    fn unit_of_work(&self, url: &str) -> rusqlite_fixtures::Result<UnitOfWork> {
        UnitOfWork::new(url)
    }
}

/// The negative control: check, then create, then store. Each access is locked, or Rust would not compile it; no lock
/// covers all three.
#[derive(Default)]
struct CheckThenCreate(Mutex<HashMap<String, Engine>>);

impl Registry for CheckThenCreate {
    fn unit_of_work(&self, url: &str) -> rusqlite_fixtures::Result<UnitOfWork> {
        let found = self.0.lock().unwrap().get(url).cloned();
        reached("checked");
        let engine = found.unwrap_or_else(|| {
            let engine = Engine::new();
            self.0.lock().unwrap().insert(url.to_owned(), engine.clone());
            engine
        });
        engine.unit_of_work()
    }
}

/// What one thread found under one URL: an engine, and the threads that have committed there.
type Found = (Engine, BTreeSet<i64>);

/// Each thread begins a unit of work for each URL and commits a row in it. When all have committed, each thread reads the
/// rows. The threads meet between the registry's check and the creation, so that the race happens every time.
fn race(registry: impl Registry, threads: usize, urls: &[String], table: &str) -> Report<Vec<Found>> {
    let (urls, table) = (urls.to_owned(), table.to_owned());
    let meet = || Pause::for_all().patience(Duration::from_secs(30));
    let hammer = Hammer::new().threads(threads).rounds(1).pause_at(REGISTRY_ASKED, meet());
    hammer.pause_at("checked", meet()).pause_at("committed", meet()).run(move |worker| {
        let begun = urls.iter().map(|url| registry.unit_of_work(url)).collect::<Result<Vec<_>, _>>()?;
        let commit_row = |work: UnitOfWork| -> rusqlite_fixtures::Result<Engine> {
            let engine = work.engine().clone();
            let create = format!("CREATE TABLE IF NOT EXISTS {table} (thread INTEGER PRIMARY KEY)");
            engine.try_transaction(|work| work.execute_batch(&create))?;
            work.execute(&format!("INSERT INTO {table} VALUES (?1)"), [worker.number() as i64])?;
            work.commit()?;
            Ok(engine)
        };
        let engines = begun.into_iter().map(commit_row).collect::<Result<Vec<_>, _>>()?;
        worker.reached("committed");
        Ok(engines.into_iter().map(|engine| (engine.clone(), rows(&engine, &table))).collect())
    })
}

fn rows(engine: &Engine, table: &str) -> BTreeSet<i64> {
    let work = engine.unit_of_work().unwrap();
    let mut statement = work.prepare(&format!("SELECT thread FROM {table}")).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// Returns the default URL and `others` more, and the name of a table that only this race uses.
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
        let report = race(OnePerUrl, threads, &urls, &table);
        prop_assert_eq!(report.distinct(), 1, "{}", report);
        let all: BTreeSet<i64> = (0..threads as i64).collect();
        for (engine, rows) in report.values().next().unwrap() {
            prop_assert_eq!(rows, &all, "{:?}", engine);
        }
        for url in &urls[1..] {
            prop_assert!(MEMORY_ENGINES.remove(&url.parse().unwrap()).is_some());
        }
    }

    #[test]
    fn check_then_create_is_caught_every_time(threads in 2..=32usize, others in 0..8usize) {
        let (urls, table) = some_urls(others);
        let report = race(CheckThenCreate::default(), threads, &urls, &table);
        report.assert_no_failures();
        prop_assert_eq!(report.distinct(), threads, "each thread has its own engine for the first URL");
    }
}

/// Whichever thread asks first, and however long the creation takes, the others wait for its engine.
#[test]
fn four_threads_share_one_engine_in_every_order_of_arrival() {
    let hammer =
        Hammer::new().threads(4).rounds(500).pause_at(REGISTRY_ASKED, Pause::up_to(Duration::from_micros(500)));
    let report = hammer.pause_at(REGISTRY_CREATING, Pause::up_to(Duration::from_micros(500))).run(|worker| {
        let url = format!("file:all-orders-{}?mode=memory", worker.round());
        let engine = UnitOfWork::new(&url)?.engine().clone();
        Ok((worker.round(), engine))
    });
    assert_eq!(report.distinct(), 500, "{report}");
    assert_eq!(report.orders(REGISTRY_ASKED).to_string(), "24 of 24 orders of 4 threads", "{report}");
    for round in 0..500 {
        MEMORY_ENGINES.remove(&format!("file:all-orders-{round}?mode=memory").parse().unwrap());
    }
}

/// The second bug of that cache: each thread had its own connection, and each connection to `:memory:` has its own
/// database.
#[test]
fn a_second_thread_sees_the_tables_of_the_first() {
    let engine = Engine::new();
    engine.connect().unwrap().execute_batch("CREATE TABLE account (id INTEGER PRIMARY KEY)").unwrap();
    thread::scope(|scope| {
        scope.spawn(|| engine.connect().unwrap().execute("INSERT INTO account VALUES (1)", []).unwrap());
    });
    assert_eq!(engine.connect().unwrap().query_row("SELECT count(*) FROM account", [], |row| row.get(0)), Ok(1));
}
