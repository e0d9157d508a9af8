//! Makes threads race for one engine, and shows what happened as a table and as a picture.
//!
//! `cargo run --release --example hammer -- 8 200` runs 8 threads for 200 rounds. It writes the picture to
//! `target/hammer.svg`, and the whole report to `target/hammer.json`.

use rusqlite_fixtures::hammer::{Hammer, Report};
use rusqlite_fixtures::{Engine, Template};

static BANK: Template = Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
    .seed("INSERT INTO account VALUES (1, 0)");

/// All threads pay into one account of a shared engine, which the first thread creates.
fn race(threads: usize, rounds: usize) -> Report<Engine> {
    Hammer::new().threads(threads).rounds(rounds).run(|worker| {
        let engine = Engine::shared_with(format!("file:hammer-{}?mode=memory", worker.round()), &BANK)?;
        engine.try_transaction(|work| work.execute("UPDATE account SET balance = balance + 1", []))?;
        Ok(engine)
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let (threads, rounds) = (arguments.next().unwrap_or(8), arguments.next().unwrap_or(200));
    let report = race(threads, rounds);
    print!("{report}\n{}", report.timeline());
    report.assert_no_failures();
    assert_eq!(report.distinct(), rounds, "one engine for each round");
    std::fs::write("target/hammer.svg", report.timeline().to_svg())?;
    std::fs::write("target/hammer.json", report.to_json())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_of_a_round_get_the_same_engine() {
        let report = race(4, 20);
        report.assert_no_failures();
        assert_eq!(report.distinct(), 20);
        assert!(report.timeline().to_svg().contains("holds it"));
    }
}
