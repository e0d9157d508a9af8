//! Asserts what code has done to a database, and by which SQL.
//!
//! `cargo run --example what_happened` prints both; `cargo test --example what_happened` runs the tests.

use rusqlite_fixtures::rusqlite::{self, Connection};
use rusqlite_fixtures::{Result, Template};

/// The code under test, which does not depend on this crate.
mod shop {
    use super::*;

    pub(crate) const SCHEMA: &str = "
        CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL, stock INTEGER NOT NULL);
        CREATE TABLE sale (item INTEGER NOT NULL REFERENCES item, count INTEGER NOT NULL);
    ";

    /// Sells what is in stock of each of these items.
    pub(crate) fn sell_out(shop: &mut Connection, items: &[i64]) -> rusqlite::Result<()> {
        let sale = shop.transaction()?;
        for item in items {
            sale.execute("INSERT INTO sale SELECT id, stock FROM item WHERE id = ?1 AND stock > 0", [item])?;
            sale.execute("UPDATE item SET stock = 0 WHERE id = ?1", [item])?;
        }
        sale.commit()
    }
}

static SHOP: Template =
    Template::sql(shop::SCHEMA).seed("INSERT INTO item VALUES (1, 'tea', 8), (2, 'coffee', 5), (3, 'cup', 0)");

fn main() -> Result<()> {
    let engine = SHOP.new_engine()?;
    let mut connection = engine.pooled_connection()?;
    let (result, statements) = engine.recorded(|| shop::sell_out(&mut connection, &[1, 3]));
    result?;
    println!("{statements}\n\n{}", engine.changes()?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_runs() {
        main().unwrap();
    }

    /// `cargo insta review` writes such a text.
    #[test]
    fn what_is_sold_leaves_the_stock() {
        let engine = SHOP.new_engine().unwrap();
        shop::sell_out(&mut engine.pooled_connection().unwrap(), &[1, 3]).unwrap();
        insta::assert_snapshot!(engine.changes().unwrap(), @r"
        item
          ~ id 1: stock 8 -> 0
        sale
          + rowid 1, item 1, count 8
        ");
    }

    #[test]
    fn each_item_takes_two_statements() {
        let engine = SHOP.new_engine().unwrap();
        let mut connection = engine.pooled_connection().unwrap();
        let (_, statements) = engine.recorded(|| shop::sell_out(&mut connection, &[1, 2, 3]).unwrap());
        statements.writes().assert_count(6);
        statements.transactions().assert_count(2);
        statements.assert_no_full_scans(1);
        assert_eq!(statements.repeats(2).len(), 2, "a loop");
    }
}
