//! The repository's own order.

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

/// A link to a file of the repository would lead nowhere from crates.io and docs.rs.
#[test]
fn the_readme_links_to_addresses() {
    let readme = read("README.md");
    let targets: Vec<&str> = readme.split("](").skip(1).collect();
    assert!(!targets.is_empty());
    for target in targets {
        assert!(target.starts_with("https://"), "{:?}", target.lines().next());
    }
}

/// docs.rs shows so many columns of a block of code, and cuts off the rest.
#[test]
fn blocks_of_code_in_the_documentation_are_not_too_wide() {
    const COLUMNS: usize = 88;
    let markdown = ["README.md", "DESIGN.md", "CHANGELOG.md"].map(|path| (path.to_owned(), read(path)));
    let comments = source_files().into_iter().map(|path| (path.clone(), doc_comments(&read(&path))));
    let mut lines = 0;
    for (path, text) in markdown.into_iter().chain(comments) {
        for (number, line) in lines_of_code(&text) {
            assert!(line.chars().count() <= COLUMNS, "{path}:{number} is wider than {COLUMNS} columns: {line}");
            lines += 1;
        }
    }
    assert!(lines > 300, "there are more lines of code than {lines}");
}

/// The text of the comments, in lines as they are in the file; the other lines are empty.
fn doc_comments(source: &str) -> String {
    let text = |line: &str| {
        let line = line.trim_start().strip_prefix("//")?.strip_prefix(['/', '!'])?;
        Some(line.strip_prefix(' ').unwrap_or(line).to_owned())
    };
    source.lines().map(|line| text(line).unwrap_or_default() + "\n").collect()
}

/// What stands between lines of three backticks, with the numbers of the lines.
fn lines_of_code(text: &str) -> Vec<(usize, &str)> {
    let is_fence = |line: &str| line.trim_start().starts_with("```");
    let mut is_code = false;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| {
        is_code ^= is_fence(line);
        is_code && !is_fence(line)
    });
    lines.collect()
}

#[test]
fn unsafe_code_is_where_the_design_says() {
    let is_allowed = |path: &str| path.starts_with("src/vfs/") || path == "src/image/os.rs";
    for path in source_files().iter().filter(|path| !is_allowed(path)) {
        assert!(!read(path).contains("unsafe_code"), "{path}");
    }
}

/// The files of `src`, from the repository's root on.
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
