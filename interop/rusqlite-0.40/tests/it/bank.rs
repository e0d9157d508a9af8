//! The code under test for the libraries that hand out rusqlite's connections.

use rusqlite_fixtures::rusqlite::{Connection, Result};

pub fn deposit(connection: &mut Connection, id: i64, amount: i64) -> Result<()> {
    let transaction = connection.transaction()?;
    add(&transaction, id, amount)?;
    transaction.commit()
}

pub fn add(connection: &Connection, id: i64, amount: i64) -> Result<()> {
    connection.execute("UPDATE account SET balance = balance + ?1 WHERE id = ?2", [amount, id]).map(drop)
}

pub fn balance(connection: &Connection, id: i64) -> Result<i64> {
    connection.query_row("SELECT balance FROM account WHERE id = ?1", [id], |row| row.get(0))
}
