//! What is printed of a test that failed, for its captured output.

use std::fmt::{self, Display, Write};
use std::path::Path;

use super::scene::Scene;
use super::{DROPPED_SHOWN, files};
use crate::content::origin::Purpose;
use crate::difference::Differing;
use crate::statements::recent::Recent;
use crate::statements::{Lost, Statement, counted};

/// The number of lines of changes that are printed, and of statements.
const LINES: usize = 20;
const STATEMENTS: usize = 10;

/// Returns what is printed of the engine with this index, whose files are in the folder.
pub(super) fn engine(folder: &Path, index: usize, scene: &Scene) -> String {
    let mut text = String::new();
    let _ = match &scene.content {
        Ok(_) => writeln!(text, "rusqlite-fixtures: {} is kept as it was:", scene.engine),
        Err(cause) => writeln!(text, "rusqlite-fixtures: {} is not kept: {cause}", scene.engine),
    };
    let report = folder.join("report.html");
    let shown = if report.exists() { &report } else { folder };
    let _ = writeln!(text, "  {}", shown.display());
    if scene.content.is_ok() {
        let _ = writeln!(text, "  sqlite3 {}", quoted(&files::path(folder, "database", index, "sqlite3")));
        add(&mut text, "committed since it was created", scene.committed_changes());
    }
    if let Some((by, changes)) = scene.uncommitted_changes() {
        let _ = writeln!(text, "  sqlite3 {}", quoted(&files::path(folder, "uncommitted", index, "sqlite3")));
        add(&mut text, format!("not committed by {by}"), changes);
    }
    for (purpose, lost) in scene.lost() {
        let _ = writeln!(text, "  {}", lost_content(purpose, lost));
    }
    add_statements(&mut text, scene);
    let older = scene.dropped.len().saturating_sub(DROPPED_SHOWN);
    for dropped in &scene.dropped[older..] {
        let _ = writeln!(text, "  rolled back, because it was dropped without a commit: {dropped}");
    }
    if older > 0 {
        let _ = writeln!(text, "  and {} before these", counted(older as u64, "transaction"));
    }
    if let Some(writer) = &scene.writer {
        let _ = writeln!(text, "  the writer slot {writer}");
    }
    text
}

const KEEP_ANY_SIZE: &str = "set RUSQLITE_FIXTURES_KEEP=always to keep databases of any size";

/// Returns why the content with what a connection had not committed is not kept.
pub(super) fn lost_content(purpose: Purpose, lost: Lost) -> String {
    match lost {
        Lost::Unreadable => format!("what {purpose} had not committed could not be read"),
        Lost::TooLarge(size) => format!(
            "the database with what {purpose} had not committed is not kept, because it has {} MB: {KEEP_ANY_SIZE}",
            size / 1_000_000
        ),
    }
}

/// Returns what is printed of an engine that is too large to be kept.
pub(super) fn too_large(scene: &Scene) -> String {
    let megabytes = scene.size() / 1_000_000;
    format!("rusqlite-fixtures: {} is not kept, because it has {megabytes} MB: {KEEP_ANY_SIZE}\n", scene.engine)
}

/// Returns what is printed of a transaction of an engine that is gone.
pub(super) fn dropped_transaction(purpose: &Purpose) -> String {
    format!(
        "rusqlite-fixtures: earlier, {purpose} was rolled back, because it was dropped without a commit; its engine no longer exists\n"
    )
}

/// Adds changes below a title, or why they are not known.
fn add(text: &mut String, title: impl Display, changes: &Differing) {
    let changes = match &**changes {
        Err(cause) => {
            let _ = writeln!(text, "  {title}: {cause}");
            return;
        }
        Ok(changes) if changes.is_empty() => {
            let _ = writeln!(text, "  {title}: nothing");
            return;
        }
        Ok(changes) => changes,
    };
    let _ = writeln!(text, "  {title}:");
    let count = changes.line_count();
    let shown = if count > LINES { LINES - 1 } else { count };
    let mut first = FirstLines { text, left: shown, is_new: true };
    let _ = write!(first, "{changes}"); // fails when there are enough
    if count > shown {
        let _ = writeln!(text, "    … and {} more lines", count - shown);
    }
}

/// Indents so many lines, and takes no more.
struct FirstLines<'a> {
    text: &'a mut String,
    left: usize,
    is_new: bool,
}

impl Write for FirstLines<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for line in part.split_inclusive('\n') {
            if self.left == 0 {
                return Err(fmt::Error);
            }
            if self.is_new {
                self.text.push_str("    ");
            }
            self.text.push_str(line);
            self.is_new = line.ends_with('\n');
            self.left -= usize::from(self.is_new);
        }
        Ok(())
    }
}

fn add_statements(text: &mut String, scene: &Scene) {
    let lines: Vec<(bool, String)> = match &scene.recorded {
        Some(kept) => {
            let line = |statement: &Statement| (statement.error().is_some(), statement.to_string());
            kept.statements.iter().map(line).collect()
        }
        None => {
            let line = |recent: &Recent| (recent.error.is_some(), recent_line(recent, &scene.test));
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
fn recent_line(recent: &Recent, test: &str) -> String {
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
    use super::super::scene::Compared;
    use super::*;
    use crate::content::Snapshot;
    use crate::vfs::Setup;

    #[test]
    fn the_first_lines_are_taken_whatever_the_parts() {
        let take = |parts: &[&str]| {
            let mut text = String::new();
            let mut first = FirstLines { text: &mut text, left: 2, is_new: true };
            let results: Vec<bool> = parts.iter().map(|part| first.write_str(part).is_ok()).collect();
            (text, results)
        };
        assert_eq!(take(&["a\nb\n"]), ("    a\n    b\n".to_owned(), vec![true]));
        assert_eq!(
            take(&["a", "b\n", "", "c\n", "d"]),
            ("    ab\n    c\n".to_owned(), vec![true, true, true, true, false])
        );
        assert_eq!(take(&["a\nb\nc\n"]), ("    a\n    b\n".to_owned(), vec![false]));
    }

    /// A function of a template that does not return leaves no report.
    #[test]
    fn the_folder_is_shown_if_there_is_no_report() {
        let folder = tempfile::tempdir().unwrap();
        let scene = Scene {
            number: 1,
            engine: "engine 1".to_owned(),
            test: "a_test".to_owned(),
            before: Snapshot::empty(),
            content: Ok(Snapshot::empty()),
            setup: Setup::DEFAULT.clone(),
            unwound: Vec::new(),
            recorded: None,
            recent: Vec::new(),
            since: 0,
            dropped: Vec::new(),
            writer: None,
            panic: None,
            compared: Compared::default(),
        };
        let shown = || engine(folder.path(), 0, &scene).lines().nth(1).unwrap().trim_start().to_owned();
        assert_eq!(shown(), folder.path().display().to_string());
        let report = folder.path().join("report.html");
        std::fs::write(&report, "").unwrap();
        assert_eq!(shown(), report.display().to_string());
    }

    #[test]
    fn a_path_is_quoted_for_a_shell_if_necessary() {
        assert_eq!(quoted(Path::new("/target/a-1.sqlite3")), "/target/a-1.sqlite3");
        assert_eq!(quoted(Path::new("/it's here/a")), r"'/it'\''s here/a'");
    }
}
