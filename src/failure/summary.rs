//! What is printed of a test that failed, for its captured output.

use std::fmt::{Display, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::files;
use super::scene::Scene;
use crate::content::Snapshot;
use crate::difference::compare;
use crate::environment::KEEP_VARIABLE;
use crate::statements::Statement;
use crate::statements::recent::Recent;

/// The number of lines of changes that are printed, and of statements.
const LINES: usize = 20;
const STATEMENTS: usize = 10;

/// Returns what is printed of the engine with this index, whose files are in the folder.
pub(super) fn of(folder: &Path, index: usize, scene: &Scene) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "rusqlite-fixtures: {} is kept as it was:", scene.engine);
    let shown = if cfg!(feature = "report") { folder.join("report.html") } else { folder.to_owned() };
    let _ = writeln!(text, "  {}", shown.display());
    if let Some(content) = &scene.content {
        let _ = writeln!(text, "  sqlite3 {}", quoted(&files::path(folder, "database", index, "sqlite3")));
        add(&mut text, "committed since it was created", changes(&scene.before, content, scene));
    }
    if let Some((by, seen)) = scene.uncommitted() {
        let _ = writeln!(text, "  sqlite3 {}", quoted(&files::path(folder, "uncommitted", index, "sqlite3")));
        let before = scene.content.as_ref().unwrap_or(&scene.before);
        add(&mut text, format!("not committed by {by}"), changes(before, seen, scene));
    }
    for lost in scene.lost() {
        let _ = writeln!(text, "  what {lost} had not committed could not be read");
    }
    add_statements(&mut text, scene);
    for dropped in &scene.dropped {
        let _ = writeln!(text, "  rolled back, because it was dropped without a commit: {dropped}");
    }
    if let Some(writer) = &scene.writer {
        let _ = writeln!(text, "  the writer slot is held by {writer}");
    }
    text
}

/// Returns what is printed of an engine that is too large to be kept.
pub(super) fn of_large(scene: &Scene) -> String {
    let megabytes = scene.size() / 1_000_000;
    format!(
        "rusqlite-fixtures: {} is not kept: it has {megabytes} MB; {KEEP_VARIABLE}=always keeps any size\n",
        scene.engine
    )
}

/// Returns the changes, or why they are not known.
fn changes(before: &Snapshot, after: &Snapshot, scene: &Scene) -> String {
    match catch_unwind(AssertUnwindSafe(|| compare(before, after, &scene.setup))) {
        Ok(Ok(changes)) if changes.is_empty() => "nothing\n".to_owned(),
        Ok(Ok(changes)) => changes.to_string(),
        Ok(Err(cause)) => format!("{cause}\n"),
        Err(_) => "not known, because a function given to Template::on_connect has panicked\n".to_owned(),
    }
}

/// Adds some lines below a title.
fn add(text: &mut String, title: impl Display, lines: String) {
    let count = lines.lines().count();
    if count == 1 {
        let _ = writeln!(text, "  {title}: {}", lines.trim());
        return;
    }
    let _ = writeln!(text, "  {title}:");
    let shown = if count > LINES { LINES - 1 } else { count };
    for line in lines.lines().take(shown) {
        let _ = writeln!(text, "    {line}");
    }
    if count > shown {
        let _ = writeln!(text, "    … and {} more lines", count - shown);
    }
}

fn add_statements(text: &mut String, scene: &Scene) {
    let lines: Vec<(bool, String)> = match &scene.recorded {
        Some(kept) => {
            let line = |statement: &Statement| (statement.error().is_some(), statement.to_string());
            kept.statements.iter().map(line).collect()
        }
        None => {
            let line = |recent: &Recent| (recent.error.is_some(), of_recent(recent, &scene.test));
            scene.newest().iter().map(line).collect()
        }
    };
    if lines.is_empty() {
        return;
    }
    let values = if scene.recorded.is_some() { "" } else { ", without their values" };
    let _ = writeln!(text, "  the newest statements{values}:");
    for (is_failed, line) in &lines[lines.len().saturating_sub(STATEMENTS)..] {
        let _ = writeln!(text, "  {} {line}", if *is_failed { '>' } else { ' ' });
    }
}

/// Returns a statement with its error, and with its thread if that is not the test's.
fn of_recent(recent: &Recent, test: &str) -> String {
    let mut line = match &recent.error {
        Some(error) if recent.sql.is_empty() => error.clone(),
        Some(error) => format!("{}\n    failed: {error}", recent.sql),
        None => recent.sql.clone(),
    };
    match recent.thread.name() {
        Some(name) if name == test => {}
        Some(name) => line.push_str(&format!(" (thread `{name}`)")),
        None => line.push_str(" (another thread)"),
    }
    line
}

/// Returns the path for a shell.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,=@:".contains(c);
    if path.chars().all(is_plain) { path } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_for_a_shell_if_necessary() {
        assert_eq!(quoted(Path::new("/target/a-1.sqlite3")), "/target/a-1.sqlite3");
        assert_eq!(quoted(Path::new("/it's here/a")), r"'/it'\''s here/a'");
    }
}
