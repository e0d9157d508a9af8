#!/usr/bin/env bash
# Measures whole suites of 1,000 tests. Each test has its own database with 60 migrations: by this crate's template, by
# hand in `:memory:`, or by sqlx::test. The lower bound is 1,000 tests that do nothing. Each suite runs under `cargo test`
# and under cargo-nextest.
#
#   benches/suites.sh [ROUNDS]     Prints medians; the default is five rounds. Needs cargo-nextest; builds sqlx the first
#                                  time. The suite of sqlx::test takes minutes, so it runs in the first round only.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
suites=${CARGO_TARGET_DIR:-$root/target}/suites
rounds=${1:-5} tests=1000 migrations=60
kinds=(empty template by_hand sqlx)

package() { # name, dependencies
  mkdir -p "$suites/$1/src" "$suites/$1/migrations"
  cat >"$suites/$1/Cargo.toml" <<TOML
[package]
name = "suite-$1"
version = "0.0.0"
edition = "2024"

[dev-dependencies]
$2

# As docs/runners.md advises. Otherwise the suites would measure SQLite compiled without optimisation.
[profile.dev.package."*"]
opt-level = 3

[workspace]
TOML
}

for number in $(seq "$migrations"); do
  printf 'CREATE TABLE table_%d (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, amount INTEGER NOT NULL);\n' "$number"
  printf 'CREATE INDEX by_owner_%d ON table_%d (owner);\n' "$number" "$number"
  printf "INSERT INTO table_%d (owner, amount) VALUES ('Ada', 1), ('Grace', 2);\n" "$number"
done >"${TMPDIR:-/tmp}/suites-$$.sql"
trap 'rm -f "${TMPDIR:-/tmp}/suites-$$.sql"' EXIT

package empty ''
package template "rusqlite-fixtures = { path = \"$root\" }"
package by_hand 'rusqlite = { version = "0.43", features = ["bundled"] }'
package sqlx 'sqlx = { version = "0.9", default-features = false, features = ["sqlite", "macros", "migrate", "runtime-tokio"] }'

for kind in "${kinds[@]}"; do
  cp "${TMPDIR:-/tmp}/suites-$$.sql" "$suites/$kind/schema.sql"
  mkdir -p "$suites/$kind/tests"
  {
    case $kind in
    empty) printf 'fn work() {}\n' ;;
    template)
      cat <<'RUST'
use rusqlite_fixtures::Template;

static DATABASE: Template = Template::sql(include_str!("../schema.sql"));

fn work() {
    let work = DATABASE.unit_of_work().unwrap();
    work.execute("INSERT INTO table_7 (owner, amount) VALUES ('Edsger', 41)", []).unwrap();
    let sum: i64 = work.query_row("SELECT sum(amount) FROM table_7", [], |row| row.get(0)).unwrap();
    assert_eq!(sum, 44);
    work.commit().unwrap();
}
RUST
      ;;
    by_hand)
      cat <<'RUST'
use rusqlite::Connection;

fn work() {
    let mut connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(include_str!("../schema.sql")).unwrap();
    let work = connection.transaction().unwrap();
    work.execute("INSERT INTO table_7 (owner, amount) VALUES ('Edsger', 41)", []).unwrap();
    let sum: i64 = work.query_row("SELECT sum(amount) FROM table_7", [], |row| row.get(0)).unwrap();
    assert_eq!(sum, 44);
    work.commit().unwrap();
}
RUST
      ;;
    sqlx)
      cat <<'RUST'
use sqlx::SqlitePool;

async fn work(pool: SqlitePool) {
    let mut work = pool.begin().await.unwrap();
    sqlx::query("INSERT INTO table_7 (owner, amount) VALUES ('Edsger', 41)").execute(&mut *work).await.unwrap();
    let sum: i64 = sqlx::query_scalar("SELECT sum(amount) FROM table_7").fetch_one(&mut *work).await.unwrap();
    assert_eq!(sum, 44);
    work.commit().await.unwrap();
}
RUST
      for number in $(seq "$migrations"); do
        sed -n "$((3 * number - 2)),$((3 * number))p" "$suites/$kind/schema.sql" \
          >"$suites/$kind/migrations/$(printf '%04d' "$number")_table.sql"
      done
      ;;
    esac
    for number in $(seq "$tests"); do
      if [ "$kind" = sqlx ]; then
        printf '\n#[sqlx::test]\nasync fn test_%d(pool: SqlitePool) {\n    work(pool).await\n}\n' "$number"
      else
        printf '\n#[test]\nfn test_%d() {\n    work()\n}\n' "$number"
      fi
    done
  } >"$suites/$kind/suite.rs"
  cmp -s "$suites/$kind/suite.rs" "$suites/$kind/tests/suite.rs" || cp "$suites/$kind/suite.rs" "$suites/$kind/tests/suite.rs"
  touch -a "$suites/$kind/src/lib.rs"
  (cd "$suites/$kind" && CARGO_TARGET_DIR=$suites/target/$kind cargo test --quiet --no-run --test suite)
done

run() { # kind, runner
  cd "$suites/$1"
  export CARGO_TARGET_DIR=$suites/target/$1 DATABASE_URL=sqlite::memory:
  case $2 in
  'cargo test') cargo test --quiet --test suite ;;
  nextest) cargo nextest run --test suite --status-level none --final-status-level none --show-progress none ;;
  esac >/dev/null 2>&1
}

declare -A times
for round in $(seq "$rounds"); do
  for runner in 'cargo test' nextest; do
    for kind in "${kinds[@]}"; do
      [ "$kind" != sqlx ] || [ "$round" = 1 ] || continue
      start=$(date +%s%N)
      (run "$kind" "$runner") || { echo "the suite $kind failed under $runner" >&2; exit 1; }
      times["$runner/$kind"]+="$((($(date +%s%N) - start) / 1000)) "
    done
  done
  printf 'round %d of %d\n' "$round" "$rounds" >&2
done

printf '%-12s %-10s %12s %12s\n' runner suite 'median ms' 'of empty'
for runner in 'cargo test' nextest; do
  for kind in "${kinds[@]}"; do
    median=$(tr ' ' '\n' <<<"${times["$runner/$kind"]}" | grep . | sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }')
    if [ "$kind" = empty ]; then floor=$median; fi
    awk -v runner="$runner" -v kind="$kind" -v median="$median" -v floor="$floor" \
      'BEGIN { printf "%-12s %-10s %12.0f %12.2f\n", runner, kind, median / 1000, median / floor }'
  done
done
