#!/usr/bin/env bash
# Measures whole suites of 1,000 tests. Each test has its own database with 60 migrations, and inserts a row and reads
# it. Prints the time of each suite, and the processor time of a test beyond that of a test that does nothing.
#
#   benches/suites.sh [ROUNDS]     Prints medians; the default is five rounds. Needs cargo-nextest; builds the libraries
#                                  the first time. A suite that takes minutes runs in the first round only.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
suites=${CARGO_TARGET_DIR:-$root/target}/suites
rounds=${1:-5} tests=1000 migrations=60
# Libraries that link the same SQLite form a package. Each line has a package, a suite, and the suite's runners.
list='
rusqlite empty          test nextest
rusqlite template       test nextest
rusqlite by_hand        test nextest
sqlx     empty          test
sqlx     sqlx_test      test nextest
sqlx     sqlx_by_hand   test
sqlx     sqlx           test
sqlx     sqlx_kept      test
sqlx     sqlx_kept_rt   test
sqlx     sea_orm        test
sqlx     sea_orm_kept   test
pools    empty          test
pools    diesel_by_hand test
pools    diesel         test
pools    diesel_kept    test
pools    r2d2           test
pools    r2d2_kept      test
pools    deadpool       test
pools    deadpool_kept  test
pools    tokio          test
pools    tokio_kept     test
'
list=$(grep . <<<"$list")

package() { # name, dependencies
  mkdir -p "$suites/$1/"{src,tests,migrations}
  cat >"$suites/$1/Cargo.toml" <<TOML
[package]
name = "suite-$1"
version = "0.0.0"
edition = "2024"

[dev-dependencies]
rusqlite-fixtures = { path = "$root" }
$2

# As docs/runners.md advises. Otherwise the suites would measure SQLite compiled without optimization.
[profile.dev.package."*"]
opt-level = 3

[workspace]
TOML
  touch -a "$suites/$1/src/lib.rs"
  for number in $(seq "$migrations"); do
    local files=$suites/$1/migrations
    cat >"$files/$(printf '%04d' "$number")_table.sql" <<SQL
CREATE TABLE table_$number (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, amount INTEGER NOT NULL);
CREATE INDEX by_owner_$number ON table_$number (owner);
INSERT INTO table_$number (owner, amount) VALUES ('Ada', 1), ('Grace', 2);
SQL
  done
  cat "$suites/$1/migrations/"*.sql >"$suites/$1/schema.sql"
}

package rusqlite 'rusqlite = { version = "0.43", features = ["bundled"] }'
package sqlx 'sea-orm = { version = "2.0", default-features = false, features = ["runtime-tokio", "sqlx-sqlite"] }
sqlx = { version = "0.9", default-features = false, features = ["sqlite", "macros", "migrate", "runtime-tokio"] }
tokio = { version = "1", features = ["macros", "rt-multi-thread"] }'
package pools 'deadpool-sqlite = "0.14"
diesel = { version = "2.3", features = ["r2d2", "sqlite"] }
r2d2 = "0.8"
r2d2_sqlite = "0.35"
rusqlite = { version = "0.40", features = ["bundled"] }
tokio = { version = "1", features = ["macros", "rt"] }
tokio-rusqlite = "0.8"'

template='static DATABASE: Template = Template::directory("migrations");'
insert="\"INSERT INTO table_7 (owner, amount) VALUES ('Edsger', 41)\"" sum='"SELECT sum(amount) FROM table_7"'

# What a suite has before its tests: `work`, which each test calls.
code() {
  case $1 in
  empty) echo 'fn work() {}' ;;
  template)
    cat <<RUST
use rusqlite_fixtures::Template;

$template

fn work() {
    let work = DATABASE.unit_of_work().unwrap();
    work.execute($insert, []).unwrap();
    let sum: i64 = work.query_row($sum, [], |row| row.get(0)).unwrap();
    assert_eq!(sum, 44);
    work.commit().unwrap();
}
RUST
    ;;
  by_hand)
    cat <<RUST
use rusqlite::Connection;

fn work() {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(include_str!("../schema.sql")).unwrap();
    let work = connection.transaction().unwrap();
    work.execute($insert, []).unwrap();
    let sum: i64 = work.query_row($sum, [], |row| row.get(0)).unwrap();
    assert_eq!(sum, 44);
    work.commit().unwrap();
}
RUST
    ;;
  sqlx*)
    cat <<RUST
use sqlx::SqlitePool;

async fn use_pool(pool: &SqlitePool) {
    let mut work = pool.begin().await.unwrap();
    sqlx::query($insert).execute(&mut *work).await.unwrap();
    let sum: i64 = sqlx::query_scalar($sum).fetch_one(&mut *work).await.unwrap();
    assert_eq!(sum, 44);
    work.commit().await.unwrap();
}
RUST
    ;;&
  sqlx_test)
    cat <<RUST
async fn work(pool: SqlitePool) {
    use_pool(&pool).await
}
RUST
    ;;
  sqlx_by_hand)
    cat <<RUST
use sqlx::sqlite::SqlitePoolOptions;

async fn work() {
    let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await.unwrap();
    sqlx::migrate!().run(&pool).await.unwrap();
    use_pool(&pool).await
}
RUST
    ;;
  sqlx | sqlx_kept | sqlx_kept_rt)
    cat <<RUST
use rusqlite_fixtures::{BoxError, Engine, Template};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

$template

async fn pool(engine: &Engine) -> Result<SqlitePool, BoxError> {
    let options = SqliteConnectOptions::new().filename(engine.uri());
    Ok(SqlitePoolOptions::new().min_connections(4).max_connections(4).connect_with(options).await?)
}
RUST
    ;;&
  sqlx)
    cat <<RUST
async fn work() {
    let engine = DATABASE.new_engine().unwrap();
    use_pool(&pool(&engine).await.unwrap()).await
}
RUST
    ;;
  sqlx_kept)
    cat <<RUST
use rusqlite_fixtures::KeptValues;

static POOLS: KeptValues<SqlitePool> = KeptValues::new(&DATABASE);

async fn work() {
    use_pool(&POOLS.get_or_make_async(pool).await.unwrap()).await
}
RUST
    ;;
  sqlx_kept_rt)
    cat <<RUST
use rusqlite_fixtures::KeptValues;
use std::sync::LazyLock;
use tokio::runtime::Runtime;

static POOLS: KeptValues<SqlitePool> = KeptValues::new(&DATABASE);
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

fn work() {
    RUNTIME.block_on(async { use_pool(&POOLS.get_or_make_async(pool).await.unwrap()).await })
}
RUST
    ;;
  sea_orm | sea_orm_kept)
    cat <<RUST
use rusqlite_fixtures::{BoxError, Engine, Template};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, TransactionTrait};

$template

async fn open(engine: &Engine) -> Result<DatabaseConnection, BoxError> {
    let mut options = ConnectOptions::new(engine.sqlite_url());
    options.min_connections(4).max_connections(4);
    Ok(Database::connect(options).await?)
}

async fn use_database(database: &DatabaseConnection) {
    let work = database.begin().await.unwrap();
    work.execute_unprepared($insert).await.unwrap();
    let backend = sea_orm::DatabaseBackend::Sqlite;
    let row = work.query_one_raw(sea_orm::Statement::from_string(backend, $sum)).await.unwrap().unwrap();
    assert_eq!(row.try_get_by_index::<i64>(0).unwrap(), 44);
    work.commit().await.unwrap();
}
RUST
    ;;&
  sea_orm)
    cat <<RUST
async fn work() {
    let engine = DATABASE.new_engine().unwrap();
    use_database(&open(&engine).await.unwrap()).await
}
RUST
    ;;
  sea_orm_kept)
    cat <<RUST
use rusqlite_fixtures::KeptValues;

static DATABASES: KeptValues<DatabaseConnection> = KeptValues::new(&DATABASE);

async fn work() {
    use_database(&DATABASES.get_or_make_async(open).await.unwrap()).await
}
RUST
    ;;
  diesel*)
    cat <<RUST
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, Pool};

diesel::table! {
    table_7 (id) {
        id -> BigInt,
        owner -> Text,
        amount -> BigInt,
    }
}

type Manager = ConnectionManager<SqliteConnection>;

fn use_connection(connection: &mut SqliteConnection) {
    let work = |connection: &mut SqliteConnection| {
        let row = (table_7::owner.eq("Edsger"), table_7::amount.eq(41));
        diesel::insert_into(table_7::table).values(row).execute(connection)?;
        let amounts: Vec<i64> = table_7::table.select(table_7::amount).load(connection)?;
        assert_eq!(amounts.into_iter().sum::<i64>(), 44);
        QueryResult::Ok(())
    };
    connection.transaction(work).unwrap()
}
RUST
    ;;&
  diesel_by_hand)
    cat <<RUST
use diesel::connection::SimpleConnection;

fn work() {
    let pool = Pool::builder().max_size(1).build(Manager::new(":memory:")).unwrap();
    let mut connection = pool.get().unwrap();
    connection.batch_execute(include_str!("../schema.sql")).unwrap();
    use_connection(&mut connection)
}
RUST
    ;;
  diesel | diesel_kept)
    cat <<RUST
use rusqlite_fixtures::{BoxError, Engine, Template};

$template

fn pool(engine: &Engine) -> Result<Pool<Manager>, BoxError> {
    Ok(Pool::builder().max_size(4).build(Manager::new(engine.uri()))?)
}
RUST
    ;;&
  diesel)
    cat <<RUST
fn work() {
    let engine = DATABASE.new_engine().unwrap();
    use_connection(&mut pool(&engine).unwrap().get().unwrap())
}
RUST
    ;;
  diesel_kept)
    cat <<RUST
use rusqlite_fixtures::KeptValues;

static POOLS: KeptValues<Pool<Manager>> = KeptValues::new(&DATABASE);

fn work() {
    use_connection(&mut POOLS.get_or_make(pool).unwrap().get().unwrap())
}
RUST
    ;;
  r2d2* | deadpool* | tokio*)
    cat <<RUST
use rusqlite::Connection;
use rusqlite_fixtures::{BoxError, Engine, Template};

$template

fn use_connection(connection: &mut Connection) -> rusqlite::Result<()> {
    let work = connection.transaction()?;
    work.execute($insert, [])?;
    let sum: i64 = work.query_row($sum, [], |row| row.get(0))?;
    assert_eq!(sum, 44);
    work.commit()
}
RUST
    ;;&
  r2d2*)
    cat <<RUST
use r2d2::Pool;
use r2d2_sqlite::SqliteConnectionManager as Manager;


fn pool(engine: &Engine) -> Result<Pool<Manager>, BoxError> {
    Ok(Pool::builder().max_size(4).build(Manager::file(engine.uri()))?)
}
RUST
    ;;&
  r2d2)
    cat <<RUST
fn work() {
    let engine = DATABASE.new_engine().unwrap();
    use_connection(&mut pool(&engine).unwrap().get().unwrap()).unwrap()
}
RUST
    ;;
  r2d2_kept)
    cat <<RUST
use rusqlite_fixtures::KeptValues;

static POOLS: KeptValues<Pool<Manager>> = KeptValues::new(&DATABASE);

fn work() {
    use_connection(&mut POOLS.get_or_make(pool).unwrap().get().unwrap()).unwrap()
}
RUST
    ;;
  deadpool*)
    cat <<RUST
use deadpool_sqlite::{Config, Pool, PoolConfig, Runtime};


async fn pool(engine: &Engine) -> Result<Pool, BoxError> {
    let mut config = Config::new(engine.uri());
    config.pool = Some(PoolConfig::new(4));
    let pool = config.create_pool(Runtime::Tokio1)?;
    drop(pool.get().await?);
    Ok(pool)
}

async fn use_pool(pool: &Pool) {
    pool.get().await.unwrap().interact(use_connection).await.unwrap().unwrap()
}
RUST
    ;;&
  deadpool)
    cat <<RUST
async fn work() {
    let engine = DATABASE.new_engine().unwrap();
    use_pool(&pool(&engine).await.unwrap()).await
}
RUST
    ;;
  deadpool_kept)
    cat <<RUST
use rusqlite_fixtures::KeptValues;

static POOLS: KeptValues<Pool> = KeptValues::new(&DATABASE);

async fn work() {
    use_pool(&POOLS.get_or_make_async(pool).await.unwrap()).await
}
RUST
    ;;
  tokio*)
    cat <<RUST

async fn open(engine: &Engine) -> Result<tokio_rusqlite::Connection, BoxError> {
    Ok(tokio_rusqlite::Connection::open(engine.uri()).await?)
}
RUST
    ;;&
  tokio)
    cat <<RUST
async fn work() {
    let engine = DATABASE.new_engine().unwrap();
    open(&engine).await.unwrap().call(use_connection).await.unwrap()
}
RUST
    ;;
  tokio_kept)
    cat <<RUST
use rusqlite_fixtures::KeptValues;

static CONNECTIONS: KeptValues<tokio_rusqlite::Connection> = KeptValues::new(&DATABASE);

async fn work() {
    CONNECTIONS.get_or_make_async(open).await.unwrap().call(use_connection).await.unwrap()
}
RUST
    ;;
  esac
}

while read -r package suite _; do
  file=$suites/$package/tests/$suite.rs
  {
    code "$suite"
    for number in $(seq "$tests"); do
      case $suite in
      sqlx_test) printf '\n#[sqlx::test]\nasync fn test_%d(pool: SqlitePool) {\n    work(pool).await\n}\n' "$number" ;;
      sqlx_kept_rt) printf '\n#[test]\nfn test_%d() {\n    work()\n}\n' "$number" ;;
      sqlx* | sea_orm* | deadpool* | tokio*)
        printf '\n#[tokio::test]\nasync fn test_%d() {\n    work().await\n}\n' "$number" ;;
      *) printf '\n#[test]\nfn test_%d() {\n    work()\n}\n' "$number" ;;
      esac
    done
  } >"$file.new"
  if cmp -s "$file.new" "$file"; then rm "$file.new"; else mv "$file.new" "$file"; fi
done <<<"$list"

in_package() { # package, arguments of cargo
  (cd "$suites/$1" && CARGO_TARGET_DIR=$suites/target/$1 DATABASE_URL=sqlite::memory: cargo "${@:2}")
}

for package in $(awk '{ print $1 }' <<<"$list" | uniq); do in_package "$package" test --quiet --no-run; done

run() { # package, suite, runner
  case $3 in
  test) in_package "$1" test --quiet --test "$2" ;;
  nextest) in_package "$1" nextest run --test "$2" --status-level none --final-status-level none --show-progress none ;;
  esac >/dev/null 2>&1
}

declare -A walls processors
TIMEFORMAT='%R %U %S'
for round in $(seq "$rounds"); do
  while read -r package suite runners; do
    for runner in $runners; do
      [ "$suite" != sqlx_test ] || [ "$round" = 1 ] || continue
      measured=$({ time run "$package" "$suite" "$runner" </dev/null; } 2>&1) ||
        { echo "the suite $suite failed under $runner" >&2; exit 1; }
      walls[$package/$suite/$runner]+="$(awk '{ print $1 }' <<<"$measured") "
      processors[$package/$suite/$runner]+="$(awk '{ print $2 + $3 }' <<<"$measured") "
    done
  done <<<"$list"
  printf 'round %d of %d\n' "$round" "$rounds" >&2
done

median() { tr ' ' '\n' <<<"$1" | grep . | sort -g | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

printf '%-8s %-15s %10s %28s\n' runner suite seconds 'ms of processor time a test'
for runner in test nextest; do
  while read -r package suite runners; do
    [[ " $runners " == *" $runner "* ]] || continue
    processor=$(median "${processors[$package/$suite/$runner]}")
    if [ "$suite" = empty ]; then floor=$processor; fi
    awk -v runner="$runner" -v suite="$suite" -v wall="$(median "${walls[$package/$suite/$runner]}")" \
      -v processor="$processor" -v floor="$floor" -v tests="$tests" \
      'BEGIN { printf "%-8s %-15s %10.2f %28.3f\n", runner, suite, wall, (processor - floor) * 1000 / tests }'
  done <<<"$list"
done
