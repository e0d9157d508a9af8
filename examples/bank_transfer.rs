//! Code under test that takes `&Connection`, and how it is tested: on a unit of work, which is a connection.
//!
//! `cargo run --example bank_transfer` shows it; `cargo test --example bank_transfer` runs its tests.

use rusqlite_fixtures::rusqlite::{self, Connection, params};
use rusqlite_fixtures::{Engine, Result};

/// The code under test: it knows nothing of this library.
mod bank {
    use super::*;

    pub(crate) const SCHEMA: &str =
        "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0))";

    /// Moves `amount` from one account to another. Fails when there is not enough; then the caller rolls back.
    pub(crate) fn transfer(connection: &Connection, from: i64, to: i64, amount: i64) -> rusqlite::Result<()> {
        connection.execute("UPDATE account SET balance = balance + ?2 WHERE id = ?1", params![to, amount])?;
        connection.execute("UPDATE account SET balance = balance - ?2 WHERE id = ?1", params![from, amount])?;
        Ok(())
    }

    /// What is in an account.
    pub(crate) fn balance(connection: &Connection, id: i64) -> rusqlite::Result<i64> {
        connection.query_row("SELECT balance FROM account WHERE id = ?1", [id], |row| row.get(0))
    }
}

/// An engine with two accounts, of 100 and of nothing.
fn two_accounts() -> Result<Engine> {
    let engine = Engine::new();
    engine.transaction(|work| -> rusqlite::Result<()> {
        work.execute_batch(bank::SCHEMA)?;
        work.execute_batch("INSERT INTO account VALUES (1, 100), (2, 0)")
    })?;
    Ok(engine)
}

fn main() -> Result<()> {
    let engine = two_accounts()?;
    for amount in [70, 70] {
        let work = engine.unit_of_work()?;
        match bank::transfer(&work, 1, 2, amount) {
            Ok(()) => work.commit()?,
            Err(error) => {
                println!("transfer of {amount} failed: {error}; rolled back");
                work.rollback()?;
            }
        }
        let connection = engine.connect()?;
        println!("balances: {} and {}", bank::balance(&connection, 1)?, bank::balance(&connection, 2)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::{fixture, rstest};
    use rusqlite_fixtures::UnitOfWork;
    use rusqlite_fixtures::fixtures::fresh_unit_of_work;

    use super::*;

    #[fixture]
    fn accounts() -> Engine {
        two_accounts().unwrap()
    }

    #[rstest]
    #[case(0)]
    #[case(100)]
    fn a_transfer_moves_the_money(
        accounts: Engine,
        #[with(accounts.clone())] fresh_unit_of_work: UnitOfWork,
        #[case] amount: i64,
    ) {
        let work = fresh_unit_of_work;
        bank::transfer(&work, 1, 2, amount).unwrap();
        work.commit().unwrap();
        let connection = accounts.connect().unwrap();
        assert_eq!(bank::balance(&connection, 1), Ok(100 - amount));
        assert_eq!(bank::balance(&connection, 2), Ok(amount));
    }

    #[rstest]
    fn a_transfer_that_fails_is_rolled_back(accounts: Engine) {
        let work = accounts.unit_of_work().unwrap();
        assert!(bank::transfer(&work, 1, 2, 101).is_err());
        assert_eq!(bank::balance(&work, 2), Ok(101), "the first half was done");
        drop(work);
        assert_eq!(bank::balance(&accounts.connect().unwrap(), 2), Ok(0));
    }

    #[test]
    fn runs() {
        main().unwrap();
    }
}
