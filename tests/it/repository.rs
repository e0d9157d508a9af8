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

#[test]
fn unsafe_code_is_where_the_design_says() {
    let allowed = |path: &Path| path.starts_with("vfs") || path == "image/os.rs";
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![source.clone()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if !allowed(path.strip_prefix(&source).unwrap()) {
                assert!(!fs::read_to_string(&path).unwrap().contains("unsafe_code"), "{}", path.display());
            }
        }
    }
}
