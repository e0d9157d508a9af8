//! The random numbers that SQL gets are those of the template's seed.

use std::collections::BTreeSet;

use rusqlite_fixtures::rusqlite::{Connection, limits::Limit};
use rusqlite_fixtures::{Engine, KeptValues, Template};

use crate::support::{number, text};

const SCHEMA: &str = "CREATE TABLE ticket (id INTEGER PRIMARY KEY, code TEXT DEFAULT (hex(randomblob(4))));
    CREATE VIEW chance AS SELECT random() AS number;
    INSERT INTO ticket (id) VALUES (1)";

static SEEDED: Template = Template::sql(SCHEMA).random_seed(42);
static OTHER: Template = Template::sql(SCHEMA).random_seed(43);
static UNSEEDED: Template = Template::sql(SCHEMA);

/// Returns what a test draws, on connections of each kind in turn.
fn draw(engine: &Engine) -> Vec<String> {
    let other_library = Connection::open(engine.uri()).unwrap();
    let (own, pooled) = (engine.connect().unwrap(), engine.pooled_connection().unwrap());
    let mut drawn = vec![text(&own, "SELECT code FROM ticket WHERE id = 1")]; // when the template was built
    for connection in [&other_library, &own, &pooled, &other_library] {
        drawn.push(number(connection, "SELECT random()").to_string());
        drawn.push(number(connection, "SELECT number FROM chance").to_string());
        connection.execute("INSERT INTO ticket DEFAULT VALUES", []).unwrap();
        drawn.push(text(connection, "SELECT code FROM ticket ORDER BY id DESC LIMIT 1"));
        drawn.push(text(connection, "SELECT hex(randomblob(20))"));
    }
    drawn
}

#[test]
fn the_numbers_repeat_for_each_test() {
    let first = draw(&SEEDED.new_engine().unwrap());
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), first.len(), "they differ from one another: {first:?}");
    for _ in 0..3 {
        assert_eq!(draw(&SEEDED.new_engine().unwrap()), first);
    }
    let of_reused = |template: &Template| {
        let work = template.unit_of_work().unwrap();
        (number(&work, "SELECT random()"), number(&work, "SELECT random()"))
    };
    assert_eq!(of_reused(&SEEDED), of_reused(&SEEDED));
    assert_ne!(of_reused(&SEEDED), of_reused(&OTHER));
    assert_ne!(draw(&OTHER.new_engine().unwrap())[0], first[0]);
    assert_ne!(of_reused(&UNSEEDED), of_reused(&UNSEEDED));
}

/// If this fails with a new version of fastrand, the changelog has to say it.
#[test]
fn the_numbers_of_a_seed_are_known() {
    static NUMBERS: Template = Template::empty().random_seed(42);
    let connection = NUMBERS.new_engine().unwrap().connect().unwrap();
    let drawn = [(); 2].map(|()| number(&connection, "SELECT random()"));
    assert_eq!(
        (drawn, text(&connection, "SELECT hex(randomblob(4))")),
        ([-3859065376602572407, 9105053682160394182], "9F8BB8BA".to_owned())
    );
}

#[test]
fn a_kept_value_begins_with_the_numbers_after_it_was_made() {
    static CONNECTIONS: KeptValues<Connection> = KeptValues::new(&SEEDED);
    let mut drawn = Vec::new();
    for _ in 0..3 {
        let connection = CONNECTIONS.get_or_make(|engine| Ok(Connection::open(engine.uri())?)).unwrap();
        drawn.push((number(&connection, "SELECT random()"), number(&connection, "SELECT random()")));
    }
    assert_eq!(drawn, [drawn[0]; 3]);
    assert_eq!(CONNECTIONS.why_dropped(), None);
}

#[test]
fn a_child_has_its_parent_s_seed_or_another() {
    static CHILD: Template = Template::based_on(&SEEDED).seed("INSERT INTO ticket (id) VALUES (2)");
    static CHILD_OF_OTHER: Template =
        Template::based_on(&SEEDED).seed("INSERT INTO ticket (id) VALUES (2)").random_seed(43);
    let first = |template: &Template| number(&template.unit_of_work().unwrap(), "SELECT random()");
    assert_eq!((first(&CHILD), first(&CHILD_OF_OTHER)), (first(&SEEDED), first(&OTHER)));
}

/// As SQLite's own function does.
#[test]
fn blobs_have_the_length_that_was_asked_for() {
    let engine = SEEDED.new_engine().unwrap();
    let connection = engine.connect().unwrap();
    drop(connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, 1000));
    for (asked, len) in [(-5, 1), (0, 1), (1, 1), (7, 7), (1000, 1000)] {
        assert_eq!(number(&connection, &format!("SELECT length(randomblob({asked}))")), len, "{asked}");
    }
    let too_big = connection.query_row("SELECT randomblob(1001)", [], |_| Ok(())).unwrap_err();
    assert!(too_big.to_string().contains("string or blob too big"), "{too_big}");
    let distinct = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1000)
        SELECT count(DISTINCT random()) + count(DISTINCT randomblob(8)) FROM n";
    assert_eq!(number(&connection, distinct), 2000, "each row has its own");
}
