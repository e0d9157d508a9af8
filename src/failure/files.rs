//! The files that are kept of a test.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::scene::Scene;
use crate::content::Snapshot;
use crate::environment::KEEP_VARIABLE;

/// Writes the files of all engines of a test, but for the report.
pub(super) fn write(folder: &Path, scenes: &[Arc<Scene>]) -> Result<(), String> {
    for (index, scene) in scenes.iter().enumerate() {
        let save = |name: &str, content: &Snapshot| {
            content.save(path(folder, name, index, "sqlite3")).map_err(|cause| cause.to_string())
        };
        if let Ok(content) = &scene.content {
            save("database", content)?;
        }
        if let Some(content) = scene.uncommitted() {
            save("uncommitted", content)?;
        }
        write_text(&path(folder, "statements", index, "sql"), &statements(scene))?;
    }
    Ok(())
}

pub(super) fn write_text(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|cause| format!("can't write `{}`: {cause}", path.display()))
}

/// Returns the path of a file of the engine with this index: `database.sqlite3`, `database-2.sqlite3`.
pub(super) fn path(folder: &Path, name: &str, index: usize, extension: &str) -> PathBuf {
    folder.join(match index {
        0 => format!("{name}.{extension}"),
        _ => format!("{name}-{}.{extension}", index + 1),
    })
}

/// Adds a statement, if its text is known, and its error.
fn add_statement(script: &mut String, sql: &str, error: Option<&str>) {
    if !sql.is_empty() {
        let end = if sql.contains("--") { "\n;" } else { ";" }; // a comment may be at its end
        let _ = writeln!(script, "{sql}{end}");
    }
    if let Some(error) = error {
        let _ = writeln!(script, "-- failed: {}", error.replace('\n', " "));
    }
}

/// Returns the statements as a script with comments.
fn statements(scene: &Scene) -> String {
    let mut script = format!("-- The newest statements on {}, the last one at the end.\n", scene.engine);
    if let Some(panic) = &scene.panic {
        let _ = writeln!(script, "-- The panic at {}: {}", panic.place, panic.message.replace('\n', " "));
    }
    match &scene.recorded {
        Some(recorded) => {
            for statement in &recorded.statements {
                add_statement(&mut script, statement.expanded_sql(), statement.error());
            }
        }
        None => {
            let _ = writeln!(
                script,
                "-- Without values: {KEEP_VARIABLE}=always records them. A long text is cut: it ends in …"
            );
            for recent in scene.newest() {
                add_statement(&mut script, &recent.sql, recent.error.as_deref());
            }
        }
    }
    script
}
