//! Reads a folder of migrations.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// A script of a folder of migrations.
#[derive(Debug)]
pub(super) struct Migration {
    pub(super) path: PathBuf,
    pub(super) sql: String,
}

/// A file of the folder, before it is read.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    number: Option<u128>,
    path: PathBuf,
}

/// Reads the migrations of a folder, in their order. A relative path is below the root of the package that is being
/// tested. An error is a text for a message.
pub(super) fn read(folder: &str) -> Result<Vec<Migration>, String> {
    // Cargo sets the variable for tests; the working directory of a test is the same folder, unless the test changes it.
    let root = env::var_os("CARGO_MANIFEST_DIR").map_or_else(PathBuf::new, PathBuf::from);
    let folder = root.join(folder);
    let entries = entries(&folder).map_err(|error| format!("can't read the folder `{}`: {error}", folder.display()))?;
    in_order(&folder, entries)?.into_iter().map(|entry| load(entry.path)).collect()
}

fn load(path: PathBuf) -> Result<Migration, String> {
    match fs::read_to_string(&path) {
        Ok(sql) => Ok(Migration { path, sql }),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(format!("the migration `{}` is not UTF-8; save it as UTF-8", path.display()))
        }
        Err(error) => Err(format!("can't read the migration `{}`: {error}", path.display())),
    }
}

fn entries(folder: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        let number = number(&name);
        if path.join("up.sql").is_file() {
            entries.push(Entry { number, path: path.join("up.sql") });
        } else if name.ends_with(".sql") && !name.ends_with(".down.sql") && path.is_file() {
            entries.push(Entry { number, path });
        }
    }
    Ok(entries)
}

/// Sorts by number, or by name if no name has a number.
fn in_order(folder: &Path, mut entries: Vec<Entry>) -> Result<Vec<Entry>, String> {
    entries.sort();
    if entries.is_empty() {
        return Err(format!(
            "the folder `{}` has no migrations; their names are like 1_name.sql, 1_name.up.sql, V1__name.sql or \
             1_name/up.sql",
            folder.display()
        ));
    }
    let name = |entry: &Entry| entry.path.strip_prefix(folder).unwrap_or(&entry.path).display().to_string();
    for pair in entries.windows(2) {
        let [first, second] = pair else { continue };
        let flaw = match (first.number, second.number) {
            (None, Some(_)) => format!("`{}` has no number, and `{}` has one", name(first), name(second)),
            (Some(a), Some(b)) if a == b => format!("`{}` and `{}` have the same number", name(first), name(second)),
            _ => continue,
        };
        return Err(format!("can't order the migrations in `{}`: {flaw}; rename one of them", folder.display()));
    }
    Ok(entries)
}

/// Returns the number at the start of the name, after the `V` or `U` of refinery. diesel writes dates with hyphens.
fn number(name: &str) -> Option<u128> {
    let digits = name.strip_prefix(['V', 'U']).unwrap_or(name);
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(digits.len());
    digits[..end].replace('-', "").parse().ok()
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

    fn scripts(files: &[(&str, &str)]) -> Vec<String> {
        let folder = folder(files);
        read(folder.path().to_str().unwrap()).unwrap().into_iter().map(|migration| migration.sql).collect()
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
        let dates = [("2026-01-02-000000_b/up.sql", "2"), ("2026-01-01-235959_a/up.sql", "1"), ("20270101_c.sql", "0")];
        assert_eq!(scripts(&dates), ["0", "1", "2"], "the numbers have different lengths");
        assert_eq!(scripts(&[("b.sql", "b"), ("a/up.sql", "a"), ("c.up.sql", "c")]), ["a", "b", "c"]);
    }

    #[test]
    fn other_files_are_ignored() {
        let files = [
            ("1_one.up.sql", "1"),
            ("1_one.down.sql", "down"),
            ("2_two/up.sql", "2"),
            ("2_two/down.sql", "down"),
            (".3_three.sql", "hidden"),
            ("3_three.sql.orig", "another kind"),
            ("README.md", "words"),
            ("meta/notes.txt", "words"),
            ("4_four.sql/notes.txt", "a folder"),
        ];
        assert_eq!(scripts(&files), ["1", "2"]);
    }

    #[test]
    fn folders_that_are_no_migrations_are_refused() {
        assert!(read("no/such/folder").unwrap_err().contains("no/such/folder`: "), "{:?}", read("no/such/folder"));
        assert_eq!(
            flaw(&[("README.md", "")]),
            "the folder `FOLDER` has no migrations; their names are like 1_name.sql, 1_name.up.sql, V1__name.sql or \
             1_name/up.sql"
        );
        assert_eq!(
            flaw(&[("1_one.sql", ""), ("01_other/up.sql", "")]),
            "can't order the migrations in `FOLDER`: `01_other/up.sql` and `1_one.sql` have the same number; rename one of them"
        );
        assert_eq!(
            flaw(&[("schema.sql", ""), ("1_one.sql", "")]),
            "can't order the migrations in `FOLDER`: `schema.sql` has no number, and `1_one.sql` has one; rename one of them"
        );
    }

    #[test]
    fn a_migration_that_is_not_utf_8_is_refused() {
        let folder = folder(&[]);
        fs::write(folder.path().join("1_latin.sql"), b"-- caf\xe9").unwrap();
        let flaw = read(folder.path().to_str().unwrap()).unwrap_err();
        assert!(flaw.ends_with("1_latin.sql` is not UTF-8; save it as UTF-8"), "{flaw}");
    }
}
