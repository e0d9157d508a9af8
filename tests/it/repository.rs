//! The repository's own order.

use std::fs;

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

#[test]
fn unsafe_code_is_in_vfs_only() {
    for file in fs::read_dir(format!("{}/src", env!("CARGO_MANIFEST_DIR"))).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            assert!(!fs::read_to_string(&path).unwrap().contains("unsafe_code"), "{}", path.display());
        }
    }
}
