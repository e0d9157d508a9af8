//! Reads a folder of migrations.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// A script of a folder of migrations.
#[derive(Debug)]
pub(super) struct Migration {
    pub(super) path: PathBuf,
    pub(super) sql: String,
    pub(super) runs_in_transaction: bool,
}

/// Reads the migrations of a folder, in their order. A relative path is below the root of the package that is being
/// tested. An error is a text for a message.
pub(super) fn read(folder: &str) -> Result<Vec<Migration>, String> {
    // Cargo sets the variable for tests. Elsewhere, for example in a debugger, it may be missing.
    let root = env::var_os("CARGO_MANIFEST_DIR").map_or_else(PathBuf::new, PathBuf::from);
    let folder = std::path::absolute(root.join(folder)).unwrap_or_else(|_| folder.into());
    let entries = entries(&folder)?;
    in_order(&folder, entries)?.into_iter().map(Entry::load).collect()
}

/// A migration before it is read.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    version: Option<Version>,
}

/// What decides the order of migrations.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    Number(u128),
    /// The start of a folder's name, without its hyphens. diesel compares it as a text.
    OfDiesel(String),
}

impl Entry {
    fn load(self) -> Result<Migration, String> {
        let Entry { path, .. } = self;
        let sql = fs::read_to_string(&path).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => format!("the migration `{}` is not UTF-8; save it as UTF-8", path.display()),
            _ => format!("can't read the migration `{}`: {error}", path.display()),
        })?;
        // As for sqlx, and for diesel.
        let is_without =
            sql.starts_with("-- no-transaction") || settings_of(&path).is_some_and(|text| turns_off(&text));
        Ok(Migration { path, sql, runs_in_transaction: !is_without })
    }
}

/// Returns the settings that diesel reads beside an `up.sql`.
fn settings_of(path: &Path) -> Option<String> {
    (path.file_name() == Some(OsStr::new("up.sql")))
        .then(|| fs::read_to_string(path.with_file_name("metadata.toml")).ok())?
}

fn turns_off(settings: &str) -> bool {
    settings.lines().any(|line| line.split_whitespace().collect::<String>().starts_with("run_in_transaction=false"))
}

fn entries(folder: &Path) -> Result<Vec<Entry>, String> {
    let unreadable = |error: io::Error| {
        format!(
            "can't read the folder `{}`: {error}; a relative folder is below the root of the package that is being tested \
             (CARGO_MANIFEST_DIR); for a folder of another package, use an absolute path, by concat!(env!(\"CARGO_MANIFEST_DIR\"), \
             \"/migrations\") in that package",
            folder.display()
        )
    };
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.join("up.sql").is_file() {
            let version = diesel_version(&name).map(Version::OfDiesel);
            entries.push(Entry { version, path: path.join("up.sql") });
        } else if name.ends_with(".sql") && !name.ends_with(".down.sql") && path.is_file() {
            entries.push(Entry { version: number(&name).map(Version::Number), path });
        } else if number(&name).is_some() && !is_undo(&path, &name) {
            return Err(format!(
                "can't run the migrations in `{}`: `{name}` has a number, and is neither an SQL file nor a folder with an \
                 up.sql; remove it, or use Template::build_on with the library whose migrations these are",
                folder.display()
            ));
        }
    }
    Ok(entries)
}

/// Returns whether the file undoes a migration that is there.
fn is_undo(path: &Path, name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".down.sql") else { return false };
    [".up.sql", ".sql"].iter().any(|end| path.with_file_name(format!("{stem}{end}")).is_file())
}

/// Sorts by version, or by name if no name has a version.
fn in_order(folder: &Path, mut entries: Vec<Entry>) -> Result<Vec<Entry>, String> {
    if entries.is_empty() {
        return Err(format!(
            "the folder `{}` has no migrations; their names are like 1_name.sql, 1_name.up.sql, V1__name.sql or \
             2026-01-31-120000_name/up.sql",
            folder.display()
        ));
    }
    entries.sort_by(|one, other| (&one.version, &one.path).cmp(&(&other.version, &other.path)));
    let name = |entry: &Entry| entry.path.strip_prefix(folder).unwrap_or(&entry.path).display().to_string();
    for pair in entries.windows(2) {
        let [one, other] = pair else { continue };
        let (a, b) = (name(one), name(other));
        let flaw = match (&one.version, &other.version) {
            (None, None) if [&a, &b].iter().any(|name| name.contains(|c: char| c.is_ascii_digit())) => {
                format!("`{a}` and `{b}` have digits, but not at the start of the name")
            }
            (None, None) => continue,
            (None, Some(_)) => format!("`{a}` has no number, and `{b}` has one"),
            (Some(Version::Number(_)), Some(Version::OfDiesel(_))) => {
                format!("`{a}` is a file, and `{b}` is in a folder")
            }
            (one, other) => match one.cmp(other) {
                Ordering::Equal => format!("`{a}` and `{b}` have the same number"),
                _ => continue,
            },
        };
        return Err(format!("can't order the migrations in `{}`: {flaw}; rename one of them", folder.display()));
    }
    Ok(entries)
}

/// Returns the number at the start of the name, after the `V` or `U` of refinery: digits, or a date with hyphens.
fn number(name: &str) -> Option<u128> {
    let name = name.strip_prefix(['V', 'U']).unwrap_or(name);
    let start = &name[..name.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(name.len())];
    let parts: Vec<&str> = start.split('-').collect();
    match parts[..] {
        [year, month, day] | [year, month, day, _] if (year.len(), month.len(), day.len()) == (4, 2, 2) => {
            parts.concat().parse().ok()
        }
        _ => parts[0].parse().ok(),
    }
}

/// Returns what diesel calls the version: the name up to the first underscore, without hyphens.
fn diesel_version(name: &str) -> Option<String> {
    let start = name.split('_').next().unwrap_or(name).replace('-', "");
    start.starts_with(|c: char| c.is_ascii_digit()).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    fn migrations(files: &[(&str, &str)]) -> Vec<Migration> {
        read(folder(files).path().to_str().unwrap()).unwrap()
    }

    fn scripts(files: &[(&str, &str)]) -> Vec<String> {
        migrations(files).into_iter().map(|migration| migration.sql).collect()
    }

    fn flaw(files: &[(&str, &str)]) -> String {
        let folder = folder(files);
        let flaw = read(folder.path().to_str().unwrap()).unwrap_err();
        flaw.replace(folder.path().to_str().unwrap(), "FOLDER")
    }

    #[test]
    fn migrations_are_sorted_by_the_value_of_their_number() {
        assert_eq!(scripts(&[("10_ten.sql", "10"), ("9_nine.sql", "9"), ("0011_eleven.sql", "11")]), ["9", "10", "11"]);
        assert_eq!(
            scripts(&[("V10__ten.sql", "10"), ("V9__nine.sql", "9"), ("U11__last.sql", "11")]),
            ["9", "10", "11"]
        );
        assert_eq!(scripts(&[("0004-users.sql", "4"), ("0003-2fa.sql", "3"), ("5.sql", "5")]), ["3", "4", "5"]);
        assert_eq!(
            scripts(&[("2026-01-31_b.sql", "b"), ("2026-01-04_a.sql", "a"), ("20260201.sql", "c")]),
            ["a", "b", "c"]
        );
        assert_eq!(scripts(&[("100.sql", "100"), ("2-0-0_a.sql", "2")]), ["2", "100"], "that is no date");
        assert_eq!(scripts(&[("b.sql", "b"), ("a.sql", "a"), ("c.up.sql", "c")]), ["a", "b", "c"]);
        assert_eq!(scripts(&[("schema2.sql", "2")]), ["2"], "one file needs no order");
    }

    /// diesel compares texts.
    #[test]
    fn migrations_of_diesel_are_in_the_order_of_diesel() {
        let folders = [
            ("2026-01-02-000000_b/up.sql", "2"),
            ("2026-01-01-235959_a/up.sql", "1"),
            ("20270101_d/up.sql", "4"),
            ("20260102000000001_c/up.sql", "3"),
        ];
        assert_eq!(scripts(&folders), ["1", "2", "3", "4"]);
    }

    #[test]
    fn migrations_run_in_a_transaction_unless_they_say_otherwise() {
        let files =
            [("1_a.sql", "SELECT 1"), ("2_b.sql", "-- no-transaction\nVACUUM"), ("3_c.sql", "\n-- no-transaction")];
        let in_transaction = |files| {
            let migrations = migrations(files).into_iter();
            migrations.map(|migration| migration.runs_in_transaction).collect::<Vec<bool>>()
        };
        assert_eq!(in_transaction(&files), [true, false, true], "sqlx reads the first line");
        let folders = [
            ("1_a/up.sql", ""),
            ("1_a/metadata.toml", "run_in_transaction = true"),
            ("2_b/up.sql", ""),
            ("2_b/metadata.toml", "# VACUUM\nrun_in_transaction = false"),
        ];
        assert_eq!(in_transaction(&folders), [true, false]);
    }

    #[test]
    fn other_files_are_ignored() {
        let files = [
            ("1_one.up.sql", "1"),
            ("1_one.down.sql", "down"),
            ("2_two.sql", "2"),
            ("2_two.down.sql", "down"),
            (".gitkeep", ""),
            ("README.md", "words"),
            ("meta/notes.txt", "words"),
        ];
        assert_eq!(scripts(&files), ["1", "2"]);
        assert_eq!(scripts(&[("1_one/up.sql", "1"), ("1_one/down.sql", "down")]), ["1"]);
    }

    #[test]
    fn files_that_seem_to_be_migrations_are_refused() {
        for (name, other) in [
            ("V2__b.rs", "V1__a.sql"),
            ("2025/V2__b.sql", "V1__a.sql"),
            ("2_b/down.sql", "1_a/up.sql"),
            ("2_b.SQL", "1_a.sql"),
            ("2_b.down.sql", "1_a.sql"),
            ("2_b.sql.orig", "1_a.sql"),
        ] {
            let flaw = flaw(&[(name, ""), (other, "")]);
            let start = format!(
                "can't run the migrations in `FOLDER`: `{}` has a number, and is neither an SQL file nor a folder",
                name.split('/').next().unwrap()
            );
            assert!(flaw.starts_with(&start), "{flaw}");
        }
    }

    #[test]
    fn migrations_without_an_order_are_refused() {
        let expect = |files, flaw_between: &str| {
            let expected = format!("can't order the migrations in `FOLDER`: {flaw_between}; rename one of them");
            assert_eq!(flaw(files), expected);
        };
        expect(&[("1_one.sql", ""), ("01_other.sql", "")], "`01_other.sql` and `1_one.sql` have the same number");
        expect(&[("1-1_a/up.sql", ""), ("11_b/up.sql", "")], "`1-1_a/up.sql` and `11_b/up.sql` have the same number");
        expect(&[("schema.sql", ""), ("1_one.sql", "")], "`schema.sql` has no number, and `1_one.sql` has one");
        expect(&[("1_one.sql", ""), ("2_two/up.sql", "")], "`1_one.sql` is a file, and `2_two/up.sql` is in a folder");
        expect(
            &[("v1__a.sql", ""), ("v10__b.sql", "")],
            "`v10__b.sql` and `v1__a.sql` have digits, but not at the start of the name",
        );
    }

    #[test]
    fn folders_that_are_no_migrations_are_refused() {
        let unreadable = read("no/such/folder").unwrap_err();
        assert!(unreadable.starts_with("can't read the folder `/"), "the path is absolute: {unreadable}");
        assert!(unreadable.contains("no/such/folder`: ") && unreadable.contains("CARGO_MANIFEST_DIR"), "{unreadable}");
        let empty = flaw(&[("README.md", "")]);
        assert!(empty.starts_with("the folder `FOLDER` has no migrations; their names are like 1_name.sql"), "{empty}");
    }

    #[test]
    fn a_migration_that_is_not_utf_8_is_refused() {
        let folder = folder(&[]);
        fs::write(folder.path().join("1_latin.sql"), b"-- caf\xe9").unwrap();
        let flaw = read(folder.path().to_str().unwrap()).unwrap_err();
        assert!(flaw.ends_with("1_latin.sql` is not UTF-8; save it as UTF-8"), "{flaw}");
    }
}
