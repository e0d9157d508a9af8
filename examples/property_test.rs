//! A property test with a database for each case, which has schema and accounts, and real commits.
//!
//! `cargo test --release --example property_test` runs the property. `cargo run --release --example property_test` measures
//! how long 256 databases take.

use std::time::Instant;

use rusqlite_fixtures::rusqlite::{self, Connection, params};
use rusqlite_fixtures::{Engine, Result, Template};

/// Built once, by the first case.
static BANK: Template = Template::sql(
    "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0));
     CREATE TABLE transfer (id INTEGER PRIMARY KEY AUTOINCREMENT,
                            source INTEGER NOT NULL REFERENCES account,
                            target INTEGER NOT NULL REFERENCES account,
                            amount INTEGER NOT NULL CHECK (amount > 0));",
)
.seed("INSERT INTO account VALUES (1, 100), (2, 100), (3, 100)");

/// The code under test: it begins and commits its own transaction.
fn transfer(connection: &mut Connection, move_: Move) -> rusqlite::Result<()> {
    let Move { source, target, amount } = move_;
    let transaction = connection.transaction()?;
    transaction.execute("UPDATE account SET balance = balance - ?2 WHERE id = ?1", params![source, amount])?;
    transaction.execute("UPDATE account SET balance = balance + ?2 WHERE id = ?1", params![target, amount])?;
    let record = "INSERT INTO transfer (source, target, amount) VALUES (?1, ?2, ?3)";
    transaction.execute(record, params![source, target, amount])?;
    transaction.commit()
}

#[derive(Clone, Copy, Debug)]
struct Move {
    source: i64,
    target: i64,
    amount: i64,
}

/// Returns the sum of all accounts, and the number of transfers.
fn money_and_transfers(bank: &Engine) -> Result<(i64, i64)> {
    let work = bank.unit_of_work()?;
    let sql = "SELECT (SELECT sum(balance) FROM account), (SELECT count(*) FROM transfer)";
    Ok(work.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
}

fn main() -> Result<()> {
    BANK.new_engine()?; // builds the template
    let start = Instant::now();
    for amount in (1..=64).cycle().take(256) {
        let bank = BANK.new_engine()?;
        transfer(&mut *bank.pooled_connection()?, Move { source: 1, target: 2, amount })?;
        assert_eq!(money_and_transfers(&bank)?, (300, 1), "nothing is left of the previous case");
    }
    println!("256 databases with schema and accounts, a transfer and a query in each: {:.1?}", start.elapsed());
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let one =
            (1..=3i64, 1..=3i64, -10..150i64).prop_map(|(source, target, amount)| Move { source, target, amount });
        prop::collection::vec(one, 0..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whichever transfers fail: no money is lost, and only transfers that succeeded are recorded.
        #[test]
        fn transfers_lose_no_money(moves in moves()) {
            let bank = BANK.new_engine().unwrap(); // a fresh one for each case, and for each step of shrinking
            let mut connection = bank.pooled_connection().unwrap();
            let done = moves.into_iter().filter(|one| transfer(&mut connection, *one).is_ok()).count();
            prop_assert_eq!(money_and_transfers(&bank).unwrap(), (300, done as i64));
        }
    }

    #[test]
    fn runs() {
        main().unwrap();
    }
}
