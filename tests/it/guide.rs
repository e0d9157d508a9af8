//! What the README and the guide (`docs`) show: tests that a doctest would compile and not run, and links.

use std::collections::BTreeSet;
use std::process::Command;
use std::{env, fs};

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

// Not formatted: it is as narrow as the README.
#[rustfmt::skip]
mod first_test {
    use rstest::rstest;
    use rusqlite_fixtures::fixtures::{fresh_connection, fresh_unit_of_work};
    use rusqlite_fixtures::rusqlite::{Connection, Result};
    use rusqlite_fixtures::{PooledConnection, Template, UnitOfWork};

    static BANK: Template =
        Template::sql("CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT UNIQUE)")
            .seed("INSERT INTO account (owner) VALUES ('Ada'), ('Grace')");

    // The code under test takes a connection, and knows nothing of this crate.
    fn open_account(connection: &Connection, owner: &str) -> Result<i64> {
        connection.execute("INSERT INTO account (owner) VALUES (?1)", [owner])?;
        Ok(connection.last_insert_rowid())
    }

    #[rstest]
    fn accounts_are_numbered(#[with(&BANK)] fresh_unit_of_work: UnitOfWork) {
        assert_eq!(open_account(&fresh_unit_of_work, "Barbara"), Ok(3));
        fresh_unit_of_work.commit().unwrap(); // or drop it, to roll back
    }

    #[rstest]
    fn owners_are_unique(#[with(&BANK)] mut fresh_connection: PooledConnection) {
        let transaction = fresh_connection.transaction().unwrap(); // as in rusqlite
        assert!(open_account(&transaction, "Ada").is_err());
    }
}

#[rustfmt::skip]
mod fixtures_by_hand {
    use rstest::{fixture, rstest};
    use rusqlite_fixtures::fixtures::{fresh_connection, memory_engine};
    use rusqlite_fixtures::rusqlite::{Connection, Result};
    use rusqlite_fixtures::{Engine, PooledConnection, Template};

    const SCHEMA: &str = "
        CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT NOT NULL UNIQUE);
    ";

    static BANK: Template =
        Template::sql(SCHEMA).seed("INSERT INTO account (owner) VALUES ('Ada'), ('Grace')");

    fn open_account(connection: &Connection, owner: &str) -> Result<i64> {
        connection.execute("INSERT INTO account (owner) VALUES (?1)", [owner])?;
        Ok(connection.last_insert_rowid())
    }

    #[rstest]
    #[case("Ada")]
    #[case("Grace")]
    fn owners_are_unique(
        #[with(&BANK)] mut fresh_connection: PooledConnection,
        #[case] owner: &str,
    ) {
        let transaction = fresh_connection.transaction().unwrap(); // as in rusqlite
        assert!(open_account(&transaction, owner).is_err());
    }

    #[fixture]
    fn bank() -> Engine {
        BANK.new_engine().unwrap()
    }

    #[rstest]
    fn all_or_nothing(bank: Engine) {
        let result = bank.transaction(|work| {
            open_account(work, "Barbara")?;
            open_account(work, "Barbara")?;
            Ok(())
        });
        assert!(result.is_err());
        let work = bank.unit_of_work().unwrap();
        let count = work.query_row("SELECT count(*) FROM account", [], |row| row.get(0));
        assert_eq!(count, Ok(2));
    }

    #[rstest]
    fn on_a_shared_engine(#[with("file:bank?mode=memory", &BANK)] memory_engine: Engine) {
        assert_eq!(memory_engine, Engine::shared("file:bank?mode=memory").unwrap());
    }
}

#[rustfmt::skip]
mod failing {
    use rusqlite_fixtures::Template;
    use rusqlite_fixtures::rusqlite::{Connection, Result};

    static BANK: Template = Template::sql(
        "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INT CHECK (balance >= 0))",
    )
    .seed("INSERT INTO account VALUES (1, 100), (2, 50)");

    fn transfer(bank: &Connection, from: i64, to: i64, amount: i64) -> Result<()> {
        let add = "UPDATE account SET balance = balance + ?2 WHERE id = ?1";
        bank.execute(add, [to, amount])?;
        bank.execute(add, [from, -amount])?;
        Ok(())
    }

    #[test]
    #[ignore = "it fails"]
    fn money_moves() {
        let bank = BANK.new_engine().unwrap();
        let work = bank.unit_of_work().unwrap();
        transfer(&work, 1, 2, 130).unwrap();
    }
}

#[test]
fn the_tests_above_are_those_of_the_documentation() {
    let source = without_spaces(&include_str!("guide.rs").replace("#[ignore = \"it fails\"]", ""));
    for (path, tests) in [("README.md", 2), ("docs/templates.md", 3), ("docs/failing-tests.md", 1)] {
        let text = read(path);
        let is_test = |block: &&str| block.contains("#[rstest]") || block.contains("#[test]");
        let shown: Vec<&str> = blocks_of_code(&text).into_iter().filter(is_test).collect();
        assert_eq!(shown.concat().matches("test]").count(), tests, "{path}");
        for block in shown {
            let lines: String = block.lines().filter(|line| !line.starts_with("# ")).collect();
            assert!(source.contains(&without_spaces(&lines)), "{path} shows a test that is not here:\n{block}");
        }
    }
}

/// Returns the text without what differs from run to run: paths, numbers of engines, lines and columns.
fn without_places(text: &str) -> String {
    let word = |word: &str| match word {
        path if path.contains("/money_moves") || path.contains(".money_moves") => {
            path.rsplit('/').next().unwrap().rsplit('.').next().unwrap().to_owned()
        }
        place if place.contains(".rs:") => "…".to_owned(),
        number if number.parse::<u64>().is_ok() && text.contains(&format!("engine {number} ")) => "…".to_owned(),
        word => word.to_owned(),
    };
    let line = |line: &str| line.trim().split(' ').map(word).collect::<Vec<_>>().join(" ");
    text.trim().lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The first three lines of a panic are the test runner's.
#[test]
fn the_output_of_a_failing_test_is_that_of_the_documentation() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "guide::failing::money_moves", "--ignored", "--nocapture"]);
    command.env("RUSQLITE_FIXTURES_DIR", folder.path()).env("RUST_BACKTRACE", "0").env_remove("RUSQLITE_FIXTURES_KEEP");
    let stderr = String::from_utf8(command.output().unwrap().stderr).unwrap();
    let (_, printed) = stderr.split_once("rusqlite-fixtures: ").unwrap_or_else(|| panic!("{stderr}"));
    let text = read("docs/failing-tests.md");
    let (_, shown) = text.split_once("```text\nrusqlite-fixtures: ").unwrap();
    let (shown, _) = shown.split_once("```").unwrap();
    assert_eq!(without_places(printed), without_places(shown), "{printed}");
}

/// What stands between lines of three backticks, in blocks of Rust.
fn blocks_of_code(text: &str) -> Vec<&str> {
    let blocks = text.split("\n```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix("rust\n").or(block.strip_prefix('\n'))).collect()
}

fn without_spaces(text: &str) -> String {
    text.split_whitespace().collect()
}

#[test]
fn the_readme_fits_on_200_lines() {
    assert!(read("README.md").lines().count() <= 200);
}

#[test]
fn the_readme_and_the_table_of_contents_link_to_every_chapter() {
    let (readme, contents) = (read("README.md"), read("src/guide.rs"));
    let chapters = fs::read_dir(format!("{}/docs", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let files = chapters.map(|file| file.unwrap().file_name().into_string().unwrap());
    let chapters: Vec<String> = files.filter(|file| file.ends_with(".md")).collect();
    assert!(chapters.len() >= 8, "{chapters:?}");
    for file in &chapters {
        let module = file.strip_suffix(".md").unwrap().replace('-', "_");
        let (_, included) = contents
            .split_once(&format!("#[doc = include_str!(\"../docs/{file}\")]\n"))
            .unwrap_or_else(|| panic!("src/guide.rs does not include docs/{file}"));
        let next = included.split_once("pub mod ").map(|(_, module)| module);
        assert!(next.is_some_and(|next| next.starts_with(&format!("{module} {{}}"))), "docs/{file} is not in {module}");
        assert!(
            contents.contains(&format!("//! | [`{module}`] |")),
            "the table in src/guide.rs has no row for {module}"
        );
        let address = format!("rusqlite_fixtures/guide/{module}/index.html\n");
        assert!(readme.contains(&address), "README.md has no link to {module}");
    }
}

/// A reference without its address is shown as it is written.
#[test]
fn each_reference_of_the_readme_has_an_address() {
    let readme = read("README.md");
    let defined: BTreeSet<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix('[')?.split_once("]: https://").map(|(name, _)| name))
        .collect();
    assert!(defined.len() > 10, "{defined:?}");
    for name in &defined {
        let uses = readme.matches(&format!("[{name}]")).count();
        assert!(uses > 1, "{name} has an address, and nothing links to it");
    }
    for used in readme.split("][").skip(1).map(|rest| rest.split(']').next().unwrap()) {
        assert!(defined.contains(used), "[{used}] has no address");
    }
}

/// The headings in `docs/errors.md` that are a message of this crate's.
#[test]
fn the_messages_that_the_guide_explains_are_those_of_the_code() {
    const OF_OTHERS: [&str; 5] = [
        "Cannot start a runtime from within a runtime",
        "database is locked",
        "cannot start a transaction within a transaction",
        "unable to open database file",
        "no such table",
    ];
    let sources = [
        "src/error.rs",
        "src/content/refusal.rs",
        "src/content/origin.rs",
        "src/environment.rs",
        "src/failure/writing.rs",
        "src/engine/strict.rs",
        "src/recording/limits.rs",
        "src/recording/statements.rs",
        "src/statements/findings.rs",
        "src/template/migrations.rs",
        "src/template/image/mod.rs",
        "src/template/image/lock.rs",
    ];
    let sources = without_spaces(&sources.map(read).concat()).replace('\\', "");
    let errors = read("docs/errors.md");
    let headings = errors.lines().filter_map(|line| line.strip_prefix("# `")?.strip_suffix('`'));
    let headings = headings.flat_map(|heading| heading.split("`, `"));
    let messages: Vec<&str> = headings.filter(|heading| !OF_OTHERS.contains(heading)).collect();
    assert!(messages.len() >= 7, "{messages:?}");
    for message in messages {
        // What stands in braces in the code.
        let names = ["5.0s", "thread … in", "line 4", "the template at …", "the shared engine …", "process …"];
        let message = names.iter().fold(message.to_owned(), |message, name| message.replace(name, "…"));
        for part in message.split(['…', ':']).filter(|part| part.len() > 12) {
            assert!(
                sources.contains(&without_spaces(part)),
                "docs/errors.md explains {message:?}; no source has {part:?}"
            );
        }
    }
}

#[test]
fn the_guide_lists_the_environment_variables_that_the_code_reads() {
    const PREFIX: &str = "RUSQLITE_FIXTURES_";
    let names = |text: &str| -> BTreeSet<String> {
        let rest = text.split(PREFIX).skip(1);
        rest.map(|rest| rest.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect()).collect()
    };
    let mut read_by_code = String::new();
    let mut ahead = vec!["src".to_owned()];
    while let Some(path) = ahead.pop() {
        match fs::read_dir(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))) {
            Ok(folder) => ahead
                .extend(folder.map(|entry| format!("{path}/{}", entry.unwrap().file_name().into_string().unwrap()))),
            Err(_) => read_by_code.push_str(&read(&path)),
        }
    }
    let guide = read("docs/runners.md");
    let (_, table) = guide.split_once("# Environment variables").unwrap();
    let listed = names(table);
    assert_eq!(listed, names(&read_by_code));
    assert_eq!(listed.len(), 8);
}
