//! A database per test, compared with its alternatives, each measured in the same run.
//!
//! `cargo bench --bench template -- GROUP` runs one group: per_test, sizes, threads, property.
//!
//! Each "test" does the same here: it gets its database, inserts a row, reads it and commits.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rusqlite::{Connection, OpenFlags};
use rusqlite_fixtures::{Engine, Template, rusqlite};

/// Returns SQL for 20 tables, 40 indexes and a few rows.
fn schema() -> &'static str {
    static SCHEMA: LazyLock<String> = LazyLock::new(|| {
        let table = |table: i32| {
            format!(
                "CREATE TABLE table_{table} (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, amount INTEGER NOT NULL,
                     note TEXT DEFAULT 'none', created_at TEXT NOT NULL DEFAULT '2024-01-01');
                 CREATE INDEX by_owner_{table} ON table_{table} (owner);
                 CREATE INDEX by_amount_{table} ON table_{table} (amount, created_at);
                 INSERT INTO table_{table} (owner, amount) VALUES ('Ada', 1), ('Grace', 2), ('Barbara', 3);"
            )
        };
        (0..20).map(table).collect()
    });
    &SCHEMA
}

const INSERT: &str = "INSERT INTO table_7 (owner, amount) VALUES (?1, ?2)";
const SELECT: &str = "SELECT amount FROM table_7 WHERE owner = ?1";

fn statements(connection: &Connection) {
    connection.prepare_cached(INSERT).unwrap().execute(("Edsger", 41)).unwrap();
    let read = connection.prepare_cached(SELECT).unwrap().query_row(["Edsger"], |row| row.get::<_, i64>(0));
    assert_eq!(read, Ok(41));
}

fn on_template(template: &Template) {
    let work = template.unit_of_work().unwrap();
    statements(&work);
    work.commit().unwrap();
}

fn on_engine(engine: &Engine) {
    let work = engine.unit_of_work().unwrap();
    statements(&work);
    work.commit().unwrap();
}

fn on_connection(connection: &Connection) {
    connection.execute_batch("BEGIN").unwrap();
    statements(connection);
    connection.execute_batch("COMMIT").unwrap();
}

fn begin_and_roll_back(connection: &Connection) {
    connection.execute_batch("BEGIN").unwrap();
    statements(connection);
    connection.execute_batch("ROLLBACK").unwrap();
}

fn in_memory() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(schema()).unwrap();
    connection
}

fn deserialized(bytes: &[u8]) -> Connection {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.deserialize_read_exact("main", bytes, bytes.len(), false).unwrap();
    connection
}

fn backed_up(from: &Connection) -> Connection {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let uri = format!("file:/backup-{}?vfs=memdb", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut to = Connection::open_with_flags(uri, OpenFlags::default()).unwrap();
    rusqlite::backup::Backup::new(from, &mut to).unwrap().run_to_completion(i32::MAX, Duration::ZERO, None).unwrap();
    to
}

static TEMPLATE: Template = Template::build(|connection| Ok(connection.execute_batch(schema())?));

fn per_test(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("per_test");
    let shared = in_memory();
    group.bench_function("BEGIN, ROLLBACK on one connection", |bencher| {
        bencher.iter(|| begin_and_roll_back(&shared));
    });
    group.bench_function("template", |bencher| bencher.iter(|| on_template(&TEMPLATE)));
    group.bench_function("template, pooled connection", |bencher| {
        bencher.iter(|| {
            let connection = TEMPLATE.new_engine().unwrap().pooled_connection().unwrap();
            on_connection(&connection);
        });
    });
    let snapshot = TEMPLATE.snapshot().unwrap();
    group.bench_function("template, cold", |bencher| bencher.iter(|| on_engine(&snapshot.new_engine())));
    let bytes = snapshot.to_bytes();
    group.bench_function("deserialize", |bencher| bencher.iter(|| on_connection(&deserialized(&bytes))));
    group.bench_function("backup to memdb", |bencher| bencher.iter(|| on_connection(&backed_up(&shared))));
    group.bench_function(":memory: and schema", |bencher| bencher.iter(|| on_connection(&in_memory())));
    group.sample_size(20);
    group.bench_function("file and schema", |bencher| {
        bencher.iter(|| {
            let folder = tempfile::tempdir().unwrap();
            let connection = Connection::open(folder.path().join("test.sqlite3")).unwrap();
            connection.execute_batch("PRAGMA synchronous = OFF; BEGIN").unwrap();
            connection.execute_batch(schema()).unwrap();
            connection.execute_batch("COMMIT").unwrap();
            on_connection(&connection);
        });
    });
}

/// Creates the schema, and a table with this many bytes of content.
fn fill<const BYTES: usize>(connection: &mut Connection) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    connection.execute_batch(schema())?;
    connection.execute_batch("CREATE TABLE filling (content BLOB); BEGIN")?;
    for _ in 0..BYTES / (64 << 10) {
        connection.execute("INSERT INTO filling VALUES (zeroblob(65000))", [])?;
    }
    Ok(connection.execute_batch("COMMIT")?)
}

static KB_256: Template = Template::build(fill::<{ 256 << 10 }>);
static MB_10: Template = Template::build(fill::<{ 10 << 20 }>);
static MB_100: Template = Template::build(fill::<{ 100 << 20 }>);
static GB_1: Template = Template::build(fill::<{ 1 << 30 }>);

fn sizes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sizes");
    let sizes = [("256 KB", &KB_256), ("10 MB", &MB_10), ("100 MB", &MB_100), ("1 GB", &GB_1)];
    for (name, template) in sizes {
        group.bench_function(BenchmarkId::new("warm", name), |bencher| bencher.iter(|| on_template(template)));
    }
    for (name, template) in sizes {
        group.bench_function(BenchmarkId::new("cold", name), |bencher| {
            let snapshot = template.snapshot().unwrap();
            bencher.iter(|| on_engine(&snapshot.new_engine()));
        });
    }
    group.sample_size(10);
    for (name, template) in &sizes[..3] {
        group.bench_function(BenchmarkId::new("deserialize", name), |bencher| {
            let bytes = template.snapshot().unwrap().to_bytes();
            bencher.iter(|| on_connection(&deserialized(&bytes)));
        });
    }
}

/// Parallel tests, each with its own engine; and, for comparison, threads that share nothing.
fn threads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("threads");
    group.throughput(Throughput::Elements(1));
    for threads in [1, 2, 8] {
        group.bench_function(BenchmarkId::new("template", threads), |bencher| {
            bencher.iter_custom(|n| on_threads(threads, n, || (), |()| on_template(&TEMPLATE)));
        });
        group.bench_function(BenchmarkId::new("BEGIN, ROLLBACK on a connection each", threads), |bencher| {
            bencher.iter_custom(|n| on_threads(threads, n, in_memory, begin_and_roll_back));
        });
    }
}

fn on_threads<T>(threads: usize, iterations: u64, start: impl Fn() -> T + Sync, work: impl Fn(&T) + Sync) -> Duration {
    let barrier = Barrier::new(threads + 1);
    let begun = thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let state = start();
                barrier.wait();
                (0..iterations.div_ceil(threads as u64)).for_each(|_| work(&state));
            });
        }
        barrier.wait();
        Instant::now()
    });
    begun.elapsed()
}

/// 256 cases, which is proptest's default, each on its own database.
fn property(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("property");
    group.sample_size(20);
    let run = |database: &dyn Fn(&[i64])| {
        let mut runner = TestRunner::new(Config { cases: 256, failure_persistence: None, ..Config::default() });
        let amounts = prop::collection::vec(0..1000i64, 0..8);
        let result = runner.run(&amounts, |amounts| {
            database(&amounts);
            Ok(())
        });
        black_box(result).unwrap();
    };
    let case = |connection: &Connection, amounts: &[i64]| {
        for amount in amounts {
            connection.prepare_cached(INSERT).unwrap().execute(("Edsger", amount)).unwrap();
        }
        let sum = "SELECT total(amount) FROM table_7 WHERE owner = 'Edsger'";
        let sum: f64 = connection.prepare_cached(sum).unwrap().query_row([], |row| row.get(0)).unwrap();
        assert_eq!(sum as i64, amounts.iter().sum::<i64>());
    };
    group.bench_function("template", |bencher| {
        bencher.iter(|| {
            run(&|amounts| {
                let work = TEMPLATE.unit_of_work().unwrap();
                case(&work, amounts);
                work.commit().unwrap();
            });
        });
    });
    group.bench_function("no database", |bencher| bencher.iter(|| run(&|amounts| drop(black_box(amounts.to_vec())))));
    group.bench_function(":memory: and schema", |bencher| {
        bencher.iter(|| {
            run(&|amounts| {
                let connection = in_memory();
                connection.execute_batch("BEGIN").unwrap();
                case(&connection, amounts);
                connection.execute_batch("COMMIT").unwrap();
            });
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    targets = per_test, sizes, threads, property
}
criterion_main!(benches);
