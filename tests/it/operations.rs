//! Sequences of operations.

use proptest::prelude::*;
use rusqlite_fixtures::Template;
use rusqlite_fixtures::strategies::{self, Operation, Table, operations};

static ENTRIES: Template = Template::sql("CREATE TABLE entry (key INTEGER PRIMARY KEY, value INTEGER NOT NULL)")
    .seed("INSERT INTO entry VALUES (1, 0)");
const ENTRY: Table = Table::new("entry", "key", "value");

fn sequences() -> impl Strategy<Value = Vec<Operation<i64, i64>>> {
    operations(0..4i64, 0..3i64, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn an_engine_does_what_the_model_says(operations in sequences()) {
        strategies::check(&ENTRY, ENTRIES.snapshot().unwrap().engine(), &operations)?;
    }
}
