//! The clock takes the times of other libraries, because they convert to `SystemTime`.

use rusqlite_fixtures::{Engine, Template};

fn now(engine: &Engine) -> String {
    engine.unit_of_work().unwrap().query_row("SELECT datetime('now')", [], |row| row.get(0)).unwrap()
}

#[test]
fn a_clock_takes_times_of_jiff_and_chrono() {
    static CLOCKED: Template = Template::empty().clock("2026-01-31");
    let engine = CLOCKED.new_engine().unwrap();
    engine.clock().set("2026-02-01T08:00:00Z".parse::<jiff::Timestamp>().unwrap()).unwrap();
    assert_eq!(now(&engine), "2026-02-01 08:00:00");
    let time = chrono::DateTime::parse_from_rfc3339("2026-03-01T08:00:00+02:00").unwrap();
    engine.clock().set(time).unwrap();
    assert_eq!(now(&engine), "2026-03-01 06:00:00");
    engine.clock().set(time.to_utc()).unwrap();
    assert_eq!(now(&engine), "2026-03-01 06:00:00");
}
