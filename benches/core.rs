//! The core compared with its alternatives, each measured in the same run.
//!
//! `cargo bench --bench core -- GROUP` runs one group: shared, update, writers, polling, waiters, readers, bulk,
//! sizes, recording.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use rusqlite_fixtures::{Engine, rusqlite};

const SCHEMA: &str = "CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, balance INTEGER NOT NULL);
    WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < 1000)
    INSERT INTO account SELECT id, 'owner of account ' || id, 1000 FROM ids;";
const UPDATE: &str = "UPDATE account SET balance = balance + 1 WHERE id = ?1";
const SELECT: &str = "SELECT balance FROM account WHERE id = ?1";

/// Databases that tests open by hand today.
#[derive(Clone, Copy, Debug)]
enum Peer {
    Memory,
    Memdb,
    SharedCache,
    File,
}

/// A peer's database: how to open it, and what keeps it alive.
struct Database {
    uri: String,
    _keeper: Connection,
    _folder: Option<tempfile::TempDir>,
}

impl Peer {
    fn database(self) -> Database {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = matches!(self, Peer::File).then(|| tempfile::tempdir().unwrap());
        let uri = match self {
            Peer::Memory => ":memory:".to_owned(),
            Peer::Memdb => format!("file:/bench-{id}?vfs=memdb"),
            Peer::SharedCache => format!("file:bench-{id}?mode=memory&cache=shared"),
            Peer::File => folder.as_ref().unwrap().path().join("bench.sqlite3").display().to_string(),
        };
        let keeper = open(&uri);
        keeper.execute_batch(SCHEMA).unwrap();
        Database { uri, _keeper: keeper, _folder: folder }
    }
}

fn open(uri: &str) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags).unwrap()
}

fn engine() -> Engine {
    let engine = Engine::new();
    engine.connect().unwrap().execute_batch(SCHEMA).unwrap();
    engine
}

fn update(connection: &Connection, id: i64) {
    assert_eq!(connection.prepare_cached(UPDATE).unwrap().execute([id]).unwrap(), 1);
}

fn update_by_unit_of_work(engine: &Engine, behavior: TransactionBehavior, id: i64) {
    let work = engine.begin(behavior).unwrap();
    update(&work, id);
    work.commit().unwrap();
}

fn update_by_transaction(connection: &mut Connection, behavior: TransactionBehavior, id: i64) {
    let transaction = connection.transaction_with_behavior(behavior).unwrap();
    update(&transaction, id);
    transaction.commit().unwrap();
}

/// Starts all threads at once; returns how long they took together.
fn race(threads: usize, work: impl Fn(usize) + Sync) -> Duration {
    let barrier = Barrier::new(threads + 1);
    thread::scope(|scope| {
        for thread in 0..threads {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                barrier.wait();
                work(thread);
            });
        }
        barrier.wait();
        Instant::now()
    })
    .elapsed()
}

fn shared(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("shared");
    let map: Mutex<HashMap<String, Arc<String>>> = Mutex::new(HashMap::new());
    map.lock().unwrap().insert("sqlite:///:memory:".to_owned(), Arc::default());
    let look_up = || Arc::clone(&map.lock().unwrap()["sqlite:///:memory:"]);
    let name = "file:bench-orders?mode=memory&cache=shared";
    Engine::shared(name).unwrap();
    for threads in [1, 16] {
        let each = |iterations: u64| iterations.div_ceil(threads as u64);
        let all = |iterations, work: &(dyn Fn() + Sync)| race(threads, |_| (0..each(iterations)).for_each(|_| work()));
        group.bench_function(BenchmarkId::new("Mutex<HashMap>", threads), |bencher| {
            bencher.iter_custom(|n| all(n, &|| drop(black_box(look_up()))));
        });
        group.bench_function(BenchmarkId::new("Engine::shared default", threads), |bencher| {
            bencher.iter_custom(|n| all(n, &|| drop(black_box(Engine::shared("sqlite:///:memory:").unwrap()))));
        });
        group.bench_function(BenchmarkId::new("Engine::shared named", threads), |bencher| {
            bencher.iter_custom(|n| all(n, &|| drop(black_box(Engine::shared(name).unwrap()))));
        });
    }
}

fn one_row_update(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("update");
    let engine = engine();
    let mut ids = (1..=1000).cycle();
    group.bench_function("unit of work", |bencher| {
        bencher.iter(|| update_by_unit_of_work(&engine, TransactionBehavior::Deferred, ids.next().unwrap()));
    });
    for peer in [Peer::Memdb, Peer::Memory, Peer::SharedCache, Peer::File] {
        let database = peer.database();
        let mut connection = open(&database.uri);
        if let Peer::Memory = peer {
            connection.execute_batch(SCHEMA).unwrap();
        }
        group.bench_function(format!("{peer:?}"), |bencher| {
            bencher.iter(|| update_by_transaction(&mut connection, TransactionBehavior::Deferred, ids.next().unwrap()));
        });
    }
}

const WRITERS: usize = 16;

/// Runs `update` `iterations` times on 16 threads, and returns the time of all. Sets `longest` to the time of the slowest.
fn write_on_all<T>(
    iterations: u64,
    longest: &Mutex<Duration>,
    open: impl Fn() -> T + Sync,
    update: impl Fn(&mut T, i64) + Sync,
) -> Duration {
    race(WRITERS, |thread| {
        let mut state = open();
        let mut slowest = Duration::ZERO;
        for id in 0..iterations.div_ceil(WRITERS as u64) {
            let start = Instant::now();
            update(&mut state, 1 + (id as i64 * 16 + thread as i64) % 1000);
            slowest = slowest.max(start.elapsed());
        }
        let mut longest = longest.lock().unwrap();
        *longest = longest.max(slowest);
    })
}

fn writers(criterion: &mut Criterion) {
    const IMMEDIATE: TransactionBehavior = TransactionBehavior::Immediate;
    let mut group = criterion.benchmark_group("writers");
    group.sample_size(10).throughput(Throughput::Elements(1));
    let mut waits = Vec::new();

    let (engine, longest) = (engine(), Mutex::default());
    engine.set_lock_timeout(Duration::from_secs(60));
    group.bench_function("units of work", |bencher| {
        bencher
            .iter_custom(|n| write_on_all(n, &longest, || (), |_, id| update_by_unit_of_work(&engine, IMMEDIATE, id)));
    });
    waits.push(("units of work", longest));

    let connection = open(":memory:");
    connection.execute_batch(SCHEMA).unwrap();
    let (connection, longest) = (Mutex::new(connection), Mutex::default());
    group.bench_function("Mutex<Connection>", |bencher| {
        bencher.iter_custom(|n| {
            let update = |_: &mut (), id| update_by_transaction(&mut connection.lock().unwrap(), IMMEDIATE, id);
            write_on_all(n, &longest, || (), update)
        });
    });
    waits.push(("Mutex<Connection>", longest));

    for (name, peer) in [("memdb, busy_timeout", Peer::Memdb), ("shared cache, retries", Peer::SharedCache)] {
        let (database, longest) = (peer.database(), Mutex::default());
        let open = || {
            let connection = open(&database.uri);
            connection.busy_timeout(Duration::from_secs(60)).unwrap();
            connection
        };
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|n| write_on_all(n, &longest, open, |connection, id| retry(connection, IMMEDIATE, id)));
        });
        waits.push((name, longest));
    }
    for (name, longest) in waits {
        println!("writers/{name}: longest update {:.1?}", longest.into_inner().unwrap());
    }
}

/// The loop that users of shared cache have to write, because SQLite calls no busy handler for it.
fn retry(connection: &mut Connection, behavior: TransactionBehavior, id: i64) {
    let once = |connection: &mut Connection| -> rusqlite::Result<()> {
        let transaction = connection.transaction_with_behavior(behavior)?;
        transaction.prepare_cached(UPDATE)?.execute([id])?;
        transaction.commit()
    };
    while let Err(error) = once(connection) {
        let code = error.sqlite_error_code();
        let locked = [Some(rusqlite::ErrorCode::DatabaseLocked), Some(rusqlite::ErrorCode::DatabaseBusy)];
        assert!(locked.contains(&code), "{error}");
        thread::yield_now();
    }
}

/// How often a polling connection writes in each of the iterations, which are at least ten.
const POLLED_WRITES: u64 = 100;

/// A connection that waits by `busy_timeout`, like those of sqlx, beside 8 threads that write by units of work. None of
/// its writes may fail.
fn polling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("polling");
    group.sample_size(10).throughput(Throughput::Elements(POLLED_WRITES));
    let engine = engine();
    engine.set_lock_timeout(Duration::from_secs(60));
    let (polling, units_of_work) = (Mutex::default(), Mutex::default());
    group.bench_function("beside 8 units of work", |bencher| {
        bencher.iter_custom(|n| poll_beside_writers(&engine, n * POLLED_WRITES, &polling, &units_of_work));
    });
    let [polling, units_of_work] = [polling, units_of_work].map(|longest| longest.into_inner().unwrap());
    println!("polling: longest write {polling:.1?}, longest unit of work beside it {units_of_work:.1?}");
}

fn poll_beside_writers(
    engine: &Engine,
    writes: u64,
    polling: &Mutex<Duration>,
    units_of_work: &Mutex<Duration>,
) -> Duration {
    let record = |longest: &Mutex<Duration>, time: Duration| {
        let mut longest = longest.lock().unwrap();
        *longest = longest.max(time);
    };
    let mut connection = open(engine.uri());
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for id in 1..=8 {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    update_by_unit_of_work(engine, TransactionBehavior::Immediate, id);
                    record(units_of_work, start.elapsed());
                }
            });
        }
        let start = Instant::now();
        for id in 0..writes {
            let start = Instant::now();
            update_by_transaction(&mut connection, TransactionBehavior::Immediate, 9 + id as i64 % 900);
            record(polling, start.elapsed());
        }
        is_over.store(true, Ordering::Relaxed);
        start.elapsed()
    })
}

/// The processor time that 2,000 threads use while they wait for 2 s.
fn waiters(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("waiters");
    group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(20));
    let engine = engine();
    engine.set_lock_timeout(Duration::from_secs(60));
    group.bench_function("processor time of 2,000 for 2 s", |bencher| {
        bencher.iter_custom(|n| (0..n).map(|_| processor_time_of_waiters(&engine, 2000)).sum());
    });
}

fn processor_time_of_waiters(engine: &Engine, waiters: usize) -> Duration {
    let writer = engine.begin(TransactionBehavior::Immediate).unwrap();
    // A restore waits like a writer, but needs no connection. Opening one takes more processor time than the wait.
    let content = engine.snapshot();
    let have_begun = Barrier::new(waiters + 1);
    thread::scope(|scope| {
        for _ in 0..waiters {
            let small = thread::Builder::new().stack_size(128 << 10);
            let wait = || {
                have_begun.wait();
                engine.restore(&content).unwrap();
            };
            small.spawn_scoped(scope, wait).unwrap();
        }
        have_begun.wait();
        let before = processor_time();
        thread::sleep(Duration::from_secs(2));
        let used = processor_time() - before;
        writer.rollback().unwrap();
        used
    })
}

/// Returns the processor time of this process. Linux reports it in hundredths of a second.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("only Linux has this file");
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: u64 = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

fn readers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("readers");
    group.sample_size(10);
    let engine = engine();
    let memdb = Peer::Memdb.database();
    let shared_cache = Peer::SharedCache.database();
    let mut waits = Vec::new();
    for (name, uri) in [("engine", engine.uri()), ("memdb", &memdb.uri), ("shared cache", &shared_cache.uri)] {
        let longest = Mutex::default();
        group.bench_function(name, |bencher| bencher.iter_custom(|n| read_beside_writer(uri, n, &longest)));
        waits.push((name, longest));
    }
    for (name, longest) in waits {
        println!("readers/{name}: longest read {:.1?}", longest.into_inner().unwrap());
    }
}

/// Four threads read while a fifth commits without a pause.
fn read_beside_writer(uri: &str, iterations: u64, longest: &Mutex<Duration>) -> Duration {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut connection = open(uri);
            for id in (1..=1000).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                retry(&mut connection, TransactionBehavior::Immediate, id);
            }
        });
        let elapsed = race(4, |thread| {
            let connection = open(uri);
            let mut slowest = Duration::ZERO;
            for id in 0..iterations.div_ceil(4) {
                let start = Instant::now();
                read_with_retries(&connection, 1 + (id as i64 + thread as i64 * 250) % 1000);
                slowest = slowest.max(start.elapsed());
            }
            let mut longest = longest.lock().unwrap();
            *longest = longest.max(slowest);
        });
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        elapsed
    })
}

fn read_with_retries(connection: &Connection, id: i64) -> i64 {
    loop {
        let read = || connection.prepare_cached(SELECT)?.query_row([id], |row| row.get(0));
        match read() {
            Ok(balance) => return balance,
            Err(_) => thread::yield_now(),
        }
    }
}

const ROWS: i64 = 200_000;

fn bulk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bulk");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    let memdb = Peer::Memdb.database();
    let memory = open(":memory:");
    memory.execute_batch(SCHEMA).unwrap();
    let engine = engine();
    let connections = [("engine", engine.connect().unwrap()), ("memory", memory), ("memdb", open(&memdb.uri))];
    for (name, connection) in &connections {
        group.bench_function(BenchmarkId::new("insert", name), |bencher| {
            bencher.iter_custom(|n| (0..n).map(|_| timed_insert(connection)).sum());
        });
    }
    for (name, connection) in &connections {
        group.bench_function(BenchmarkId::new("scan", name), |bencher| {
            bencher
                .iter(|| connection.query_row("SELECT sum(length(note)) FROM event", [], |row| row.get::<_, i64>(0)));
        });
    }
}

fn timed_insert(connection: &Connection) -> Duration {
    connection
        .execute_batch("DROP TABLE IF EXISTS event; CREATE TABLE event (id INTEGER PRIMARY KEY, note TEXT NOT NULL)")
        .unwrap();
    let start = Instant::now();
    connection.execute_batch("BEGIN").unwrap();
    for id in 0..ROWS {
        let mut insert = connection.prepare_cached("INSERT INTO event VALUES (?1, ?2)").unwrap();
        insert.execute((id, "something that has happened, in forty bytes")).unwrap();
    }
    connection.execute_batch("COMMIT").unwrap();
    start.elapsed()
}

/// Returns an engine of about this many bytes, all of them written by SQLite.
fn engine_of(bytes: usize) -> Engine {
    let engine = engine();
    let connection = engine.connect().unwrap();
    connection.execute_batch("CREATE TABLE blob (content BLOB)").unwrap();
    let chunk: u32 = 64 << 10;
    connection.execute_batch("BEGIN").unwrap();
    for _ in 0..bytes / chunk as usize {
        connection.execute("INSERT INTO blob VALUES (zeroblob(?1))", [chunk - 100]).unwrap();
    }
    connection.execute_batch("COMMIT").unwrap();
    engine
}

fn sizes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sizes");
    for (name, size) in [("256 KB", 256 << 10), ("10 MB", 10 << 20), ("100 MB", 100 << 20), ("1 GB", 1 << 30)] {
        // Made when the first benchmark of this size runs, because not every run selects all sizes.
        let made = LazyCell::new(|| {
            let engine = engine_of(size);
            let before = engine.snapshot();
            engine.connect().unwrap().execute_batch("DELETE FROM account WHERE id = 1").unwrap();
            let after = engine.snapshot();
            (engine, before, after)
        });
        group.bench_function(BenchmarkId::new("snapshot", name), |bencher| {
            let (engine, ..) = &*made;
            bencher.iter(|| engine.snapshot());
        });
        group.bench_function(BenchmarkId::new("fork", name), |bencher| {
            let (engine, ..) = &*made;
            bencher.iter(|| engine.fork());
        });
        group.bench_function(BenchmarkId::new("restore", name), |bencher| {
            let (engine, before, after) = &*made;
            let mut turn = [before, after].into_iter().cycle();
            bencher.iter(|| engine.restore(turn.next().unwrap()).unwrap());
        });
        group.bench_function(BenchmarkId::new("difference of a row", name), |bencher| {
            let (_, before, after) = &*made;
            bencher.iter(|| assert_eq!(before.diff(after).unwrap().tables().len(), 1));
        });
    }
}

/// A statement on a connection of the crate, and on one that was opened by the URI: while nothing is recorded, and while
/// this engine is.
fn recording(c: &mut Criterion) {
    let mut group = c.benchmark_group("recording");
    let select = |connection: &Connection| {
        connection.prepare_cached(SELECT).unwrap().query_row([7], |row| row.get::<_, i64>(0)).unwrap()
    };
    let engine = engine();
    let (pooled, by_uri) = (engine.pooled_connection().unwrap(), Connection::open(engine.uri()).unwrap());
    for (name, connection) in [("pooled", &*pooled), ("by URI", &by_uri)] {
        group.bench_function(format!("select/{name}/off"), |b| b.iter(|| select(connection)));
        let recording = engine.record();
        group.bench_function(format!("select/{name}/on"), |b| b.iter(|| select(connection)));
        drop(recording);
    }
    repeats(&mut group, &engine, &pooled);
    group.finish();
}

/// 64 statements of different texts, and then the same again. A recording takes a backtrace when a text runs for the second
/// time, so each iteration has a recording of its own.
fn repeats(group: &mut BenchmarkGroup<'_, WallTime>, engine: &Engine, connection: &Connection) {
    const TEXTS: usize = 64;
    let text = |i: usize| format!("SELECT balance AS balance_of_{i} FROM account WHERE id = ?1");
    // With digits in a name: without its values, each text has to stay a text of its own.
    let texts: Vec<String> = (0..TEXTS).map(text).collect();
    connection.set_prepared_statement_cache_capacity(TEXTS);
    let select_twice = || {
        for sql in texts.iter().chain(&texts) {
            let select = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
            black_box(connection.prepare_cached(sql).unwrap().query_row([7], select).unwrap());
        }
    };
    let ((), statements) = engine.recorded(select_twice);
    assert_eq!((statements.count(), statements.repeats(1).len()), (2 * TEXTS as u64, TEXTS));
    group.throughput(Throughput::Elements(2 * TEXTS as u64));
    group.bench_function("64 texts twice/off", |b| b.iter(select_twice));
    group.bench_function("64 texts twice/on", |b| b.iter(|| engine.recorded(select_twice)));
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    targets = shared, one_row_update, writers, polling, waiters, readers, bulk, sizes, recording
}
criterion_main!(benches);
