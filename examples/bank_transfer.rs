//! Tests code that takes `&Connection`: a unit of work dereferences to a connection.
//!
//! `cargo run --example bank_transfer` runs the code; `cargo test --example bank_transfer` runs its tests.

use rusqlite_fixtures::rusqlite::{self, Connection, params};
use rusqlite_fixtures::{Result, Template};

/// The code under test, which does not depend on this crate.
mod bank {
    use super::*;

    pub(crate) const SCHEMA: &str =
        "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0))";

    /// Moves `amount` from one account to another. Fails if the balance is too low; the caller then rolls back.
    pub(crate) fn transfer(connection: &Connection, from: i64, to: i64, amount: i64) -> rusqlite::Result<()> {
        connection.execute("UPDATE account SET balance = balance + ?2 WHERE id = ?1", params![to, amount])?;
        connection.execute("UPDATE account SET balance = balance - ?2 WHERE id = ?1", params![from, amount])?;
        Ok(())
    }

    /// Returns the balance of an account.
    pub(crate) fn balance(connection: &Connection, id: i64) -> rusqlite::Result<i64> {
        connection.query_row("SELECT balance FROM account WHERE id = ?1", [id], |row| row.get(0))
    }
}

/// Two accounts, with balances of 100 and 0.
static TWO_ACCOUNTS: Template = Template::sql(bank::SCHEMA).seed("INSERT INTO account VALUES (1, 100), (2, 0)");

fn main() -> Result<()> {
    let engine = TWO_ACCOUNTS.new_engine()?;
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
    use rusqlite_fixtures::fixtures::fresh_unit_of_work;
    use rusqlite_fixtures::{Engine, UnitOfWork};

    use super::*;

    #[rstest]
    #[case(0)]
    #[case(100)]
    fn a_transfer_moves_the_money(#[with(&TWO_ACCOUNTS)] fresh_unit_of_work: UnitOfWork, #[case] amount: i64) {
        bank::transfer(&fresh_unit_of_work, 1, 2, amount).unwrap();
        assert_eq!(bank::balance(&fresh_unit_of_work, 1), Ok(100 - amount));
        assert_eq!(bank::balance(&fresh_unit_of_work, 2), Ok(amount));
    }

    /// For tests that commit, or that read by a second connection.
    #[fixture]
    fn accounts() -> Engine {
        TWO_ACCOUNTS.new_engine().unwrap()
    }

    #[rstest]
    fn a_transfer_that_fails_is_rolled_back(accounts: Engine) {
        let work = accounts.unit_of_work().unwrap();
        assert!(bank::transfer(&work, 1, 2, 101).is_err());
        assert_eq!(bank::balance(&work, 2), Ok(101), "the first half of the transfer was done");
        drop(work);
        assert_eq!(bank::balance(&accounts.connect().unwrap(), 2), Ok(0));
    }

    #[test]
    fn the_example_runs() {
        main().unwrap();
    }
}
