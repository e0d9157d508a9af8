//! Functions that the tests of all groups share.

use std::{fs, thread};

use rusqlite_fixtures::{Engine, Template};

/// Two accounts with balances of 0.
pub static BANK: Template = Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
    .seed("INSERT INTO account VALUES (1, 0), (2, 0)");

/// Returns the committed balances. rusqlite reads them, as a second library on the engine that another has written to.
pub fn balances(engine: &Engine) -> Vec<i64> {
    let work = engine.unit_of_work().unwrap();
    let mut balances = work.prepare("SELECT balance FROM account ORDER BY id").unwrap();
    balances.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// Runs a test that fails on its own thread, as the test harness does.
pub fn run_test_that_panics(test: impl FnOnce() + Send + 'static) {
    let payload = thread::spawn(test).join().expect_err("the test panics");
    assert_eq!(payload.downcast_ref(), Some(&"as a failed assertion does"));
}

/// Evaluates the expression, which must stand in docs/other-libraries.md word for word.
macro_rules! readme {
    ($line:expr) => {{
        $crate::support::assert_is_documented(stringify!($line));
        $line
    }};
}
pub(crate) use readme;

pub fn assert_is_documented(line: &str) {
    let line = one_spaced(line);
    assert!(documented_lines().contains(&line), "docs/other-libraries.md does not have `{line}`");
}

/// The documented lines, and the macro's in all groups, are the same.
#[test]
fn every_documented_line_is_tested() {
    let sources: String = ["32", "39", "40"].iter().flat_map(|group| sources(group)).collect();
    let sources = one_spaced(&sources);
    for line in documented_lines() {
        assert!(sources.contains(&format!("readme!({line})")), "no test in interop/ has `{line}`");
    }
}

/// The README has one of the lines, in its text.
#[test]
fn the_lines_of_the_readme_are_documented() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    let in_backticks = readme.split('`').skip(1).step_by(2).filter(|code| code.contains("(engine.uri())"));
    let lines: Vec<&str> = in_backticks.collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for line in lines {
        assert_is_documented(line);
    }
}

fn sources(group: &str) -> Vec<String> {
    let folder = format!("{}/../rusqlite-0.{group}/tests/it", env!("CARGO_MANIFEST_DIR"));
    fs::read_dir(folder).unwrap().map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

/// The code in the second column of the tables.
fn documented_lines() -> Vec<String> {
    let chapter = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/other-libraries.md")).unwrap();
    let lines: Vec<String> = chapter.lines().filter_map(code_of_row).collect();
    assert!(lines.len() >= 11, "{lines:?}");
    lines
}

/// Returns the code of a row. A `|` is escaped in a table.
fn code_of_row(row: &str) -> Option<String> {
    let code = row.strip_prefix("| ")?.split_once(" | `")?.1.strip_suffix("` |")?;
    Some(one_spaced(&code.replace("\\|", "|")))
}

/// Returns the code with the same white space, whatever its line breaks.
fn one_spaced(code: &str) -> String {
    let code = code.split_whitespace().collect::<Vec<_>>().join(" ");
    code.replace("( ", "(").replace(" )", ")").replace(",)", ")").replace(" .", ".")
}
