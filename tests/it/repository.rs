//! Checks of the repository: changelog, links, width of code, imports.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn the_changelog_begins_with_this_version() {
    let changelog = read("CHANGELOG.md");
    let top = changelog.lines().find(|line| line.starts_with("## ")).unwrap();
    let version = format!("## [{}]", env!("CARGO_PKG_VERSION"));
    assert!(top.starts_with(&version) || top == "## [Unreleased]", "{top:?} is at the top, not {version:?}");
}

/// On crates.io and docs.rs, a link to a file of the repository would be broken.
#[test]
fn the_readme_links_to_addresses() {
    let readme = read("README.md");
    let lines = readme.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
    let references = lines.filter(|(name, _)| !name.contains(']')).map(|(_, target)| target);
    let targets: Vec<&str> = readme.split("](").skip(1).chain(references).collect();
    assert!(targets.len() > 10, "{targets:?}");
    for target in targets {
        assert!(target.starts_with("https://"), "{:?}", target.lines().next());
    }
}

/// docs.rs shows only this number of columns of a code block, and cuts off the rest.
#[test]
fn blocks_of_code_in_the_documentation_are_not_too_wide() {
    const COLUMNS: usize = 88;
    let markdown = files_in("").into_iter().chain(files_in("docs")).filter(|path| path.ends_with(".md"));
    let markdown = markdown.map(|path| (path.clone(), read(&path)));
    let comments = source_files().into_iter().map(|path| (path.clone(), doc_comments(&read(&path))));
    let mut lines = 0;
    for (path, text) in markdown.chain(comments) {
        for (number, line) in lines_of_code(&text) {
            assert!(line.chars().count() <= COLUMNS, "{path}:{number} is wider than {COLUMNS} columns: {line}");
            lines += 1;
        }
    }
    assert!(lines > 300, "there are more lines of code than {lines}");
}

/// Returns the text of the doc comments, with the file's line numbers. All other lines are empty.
fn doc_comments(source: &str) -> String {
    let text = |line: &str| {
        let line = line.trim_start().strip_prefix("//")?.strip_prefix(['/', '!'])?;
        Some(line.strip_prefix(' ').unwrap_or(line).to_owned())
    };
    source.lines().map(|line| text(line).unwrap_or_default() + "\n").collect()
}

/// Returns the lines between lines of three backticks, with their line numbers.
fn lines_of_code(text: &str) -> Vec<(usize, &str)> {
    let is_fence = |line: &str| line.trim_start().starts_with("```");
    let mut is_code = false;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| {
        is_code ^= is_fence(line);
        is_code && !is_fence(line)
    });
    lines.collect()
}

/// It is in each report, and nothing but the browser reads it: no compiler, and no lint.
#[test]
fn the_script_of_reports_is_short() {
    const LINES: usize = 300;
    let lines = read("src/report/report.js").lines().count();
    assert!((1..=LINES).contains(&lines), "src/report/report.js has {lines} lines, more than {LINES}");
}

#[test]
fn the_picture_of_a_report_is_a_png() {
    let picture = read("docs/report.png.base64");
    assert!(from_base64(&picture[..12]).starts_with(b"\x89PNG\r\n\x1a\n"), "{}", &picture[..12]);
    // Its last block is `IEND`, and its checksum.
    let picture = picture.trim_end();
    assert_eq!(picture.len() % 4, 0, "it is cut off");
    let end = from_base64(&picture[picture.len() - 16..]);
    assert!(end.ends_with(b"IEND\xae\x42\x60\x82"), "{end:?}");
}

fn from_base64(text: &str) -> Vec<u8> {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let digit =
            |byte: &u8| DIGITS.bytes().position(|digit| digit == *byte).expect("it is a digit of base64") as u32;
        let bits = group.iter().fold(0, |bits, byte| bits << 6 | digit(byte)) << (6 * (4 - group.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    bytes
}

#[test]
fn base64_is_decoded() {
    for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmE=", "fooba")] {
        assert_eq!(from_base64(text), bytes.as_bytes(), "{text}");
    }
}

#[test]
fn unsafe_code_is_where_the_design_says() {
    let is_allowed = |path: &str| path.starts_with("src/vfs/") || path == "src/template/image/os.rs";
    for path in source_files().iter().filter(|path| !is_allowed(path)) {
        assert!(!read(path).contains("unsafe_code"), "{path}");
    }
}

/// Returns the files of a folder, without the files of its subfolders.
fn files_in(folder: &str) -> Vec<String> {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap().map(Result::unwrap);
    let names = files.filter(|file| file.path().is_file()).map(|file| file.file_name().into_string().unwrap());
    names.map(|name| if folder.is_empty() { name } else { format!("{folder}/{name}") }).collect()
}

/// Returns the files of `src`, with paths from the repository's root.
fn source_files() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut folders, mut files) = (vec![root.join("src")], Vec::new());
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/")),
            }
        }
    }
    files
}

#[test]
fn each_folder_uses_only_what_the_design_lets_it_use() {
    let layers = Layers::of(&read("DESIGN.md"));
    let mut imports = 0;
    // The models are tests of several layers.
    for path in source_files().iter().filter(|path| !["src/lib.rs", "src/content/models.rs"].contains(&path.as_str())) {
        for used in crate_paths(&read(path)) {
            layers.check(path, &used).unwrap_or_else(|violation| panic!("{violation}"));
            imports += 1;
        }
    }
    assert!(imports > 80, "only {imports} were found");
}

#[test]
fn an_import_that_the_design_forbids_is_found() {
    let layers = Layers::of(&read("DESIGN.md"));
    let source = "use crate::engine::Engine;\nfn f() {\n    crate::hammer::hammer()\n}\n";
    let violations: Vec<String> =
        crate_paths(source).iter().map(|used| layers.check("src/content/store.rs", used).unwrap_err()).collect();
    assert_eq!(
        violations,
        [
            "src/content/store.rs uses `engine`, and DESIGN.md (Layers) lets `content` use only: error, environment, faults, marks, sync",
            "src/content/store.rs uses `hammer`, and DESIGN.md (Layers) lets `content` use only: error, environment, faults, marks, sync",
        ]
    );
    assert_eq!(layers.check("src/content/store.rs", "sync"), Ok(()));
    let elsewhere = layers.check("src/vfs/mod.rs", "Engine").unwrap_err();
    assert_eq!(
        elsewhere,
        "src/vfs/mod.rs uses `Engine`, which is no row of DESIGN.md (Layers); name the module it is in"
    );
}

#[test]
#[should_panic(expected = "`low` may use `high`, which is not above it")]
fn a_table_in_which_a_row_uses_one_below_it_is_found() {
    Layers::of("## Layers\n| `low` | what | `high` |\n| `high` | what | |\n");
}

#[test]
fn the_files_of_a_folder_do_not_use_each_other_in_circles() {
    let mut folders: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for path in source_files() {
        let (folder, file) = path.rsplit_once('/').unwrap();
        if !["mod.rs", "lib.rs", "models.rs"].contains(&file) {
            let file = file.trim_end_matches(".rs").to_owned();
            folders.entry(folder.to_owned()).or_default().insert(file, siblings_used(&read(&path)));
        }
    }
    assert!(folders.len() >= 6, "only {folders:?}");
    for (folder, files) in &folders {
        assert_eq!(circle(files), None, "the files in {folder} use each other in a circle");
    }
}

#[test]
fn a_circle_between_files_is_found() {
    let uses = |used: &[&str]| used.iter().map(|file| (*file).to_owned()).collect::<Vec<String>>();
    let mut files = BTreeMap::from([("a".to_owned(), uses(&["b"])), ("b".to_owned(), uses(&["c", "parent"]))]);
    assert_eq!(circle(&files), None);
    files.insert("c".to_owned(), uses(&["a"]));
    assert_eq!(circle(&files), Some(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]));
    assert_eq!(siblings_used("use super::a::A;\nuse super::{b, c::C};\nuse super::Parent;\n"), ["a", "b", "c"]);
}

/// The table "Layers" of DESIGN.md: for each folder or file in `src`, what it may use.
struct Layers(Vec<(String, Vec<String>)>);

impl Layers {
    fn of(design: &str) -> Layers {
        let (_, layers) = design.split_once("## Layers").unwrap();
        let rows = layers.lines().filter(|line| line.starts_with("| `"));
        let mut table: Vec<(String, Vec<String>)> = Vec::new();
        for row in rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>()) {
            let (name, may_use) = (row[1].trim_matches('`').to_owned(), in_backticks(row[3]));
            if name.contains('/') {
                break; // the next table, of places
            }
            for used in &may_use {
                let is_above = table.iter().any(|(above, _)| above == used);
                assert!(is_above, "`{name}` may use `{used}`, which is not above it");
            }
            table.push((name, may_use));
        }
        Layers(table)
    }

    /// Checks that the file at `path` may use this module of the crate.
    fn check(&self, path: &str, used: &str) -> Result<(), String> {
        let layer = path.trim_start_matches("src/").split('/').next().unwrap().trim_end_matches(".rs");
        let may_use = |name: &str| self.0.iter().find(|(row, _)| row == name).map(|(_, may_use)| may_use);
        let Some(allowed) = may_use(layer) else {
            return Err(format!("{path} is in no row of DESIGN.md (Layers)"));
        };
        if may_use(used).is_none() {
            return Err(format!(
                "{path} uses `{used}`, which is no row of DESIGN.md (Layers); name the module it is in"
            ));
        }
        if used == layer || allowed.iter().any(|allowed| allowed == used) {
            return Ok(());
        }
        let allowed = allowed.join(", ");
        Err(format!("{path} uses `{used}`, and DESIGN.md (Layers) lets `{layer}` use only: {allowed}"))
    }
}

fn in_backticks(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns the lines of code outside of tests and comments.
fn code(source: &str) -> impl Iterator<Item = &str> {
    let code = source.split("\n#[cfg(test)]\nmod ").next().unwrap();
    let code = code.split("\n#[cfg(all(test").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//"))
}

/// Returns the name after `crate::` in each path that begins with it.
fn crate_paths(source: &str) -> Vec<String> {
    code(source).flat_map(|line| line.split("crate::").skip(1)).flat_map(first_names).collect()
}

/// Returns the files of the same folder that the imports name. Their names begin with a lowercase letter.
fn siblings_used(source: &str) -> Vec<String> {
    let paths = code(source).filter_map(|line| line.split_once("use super::"));
    paths
        .flat_map(|(_, path)| first_names(path))
        .filter(|name| name.starts_with(|first: char| first.is_lowercase()))
        .collect()
}

/// Returns the first name of a path, or of each path in braces.
fn first_names(path: &str) -> Vec<String> {
    let name = |path: &str| path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    match path.strip_prefix('{') {
        Some(list) => list.split([',', '}']).map(str::trim).map(name).filter(|name| !name.is_empty()).collect(),
        None => vec![name(path)],
    }
}

/// Returns files that use each other in a circle, if there are any.
fn circle(files: &BTreeMap<String, Vec<String>>) -> Option<Vec<String>> {
    fn from(files: &BTreeMap<String, Vec<String>>, way: &mut Vec<String>) -> bool {
        let last = way.last().unwrap().clone();
        for used in files.get(&last).into_iter().flatten() {
            if *used == way[0] {
                return true;
            }
            if files.contains_key(used) && !way.contains(used) {
                way.push(used.clone());
                if from(files, way) {
                    return true;
                }
                way.pop();
            }
        }
        false
    }
    files.keys().find_map(|first| {
        let mut way = vec![first.clone()];
        from(files, &mut way).then_some(way)
    })
}
