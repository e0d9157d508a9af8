//! The report of a test that failed.

use std::sync::Arc;

use super::scene::Scene;
use super::summary;
use crate::report::{EngineReport, Report, StatementList};

/// Returns the report of the engines of a test, as HTML.
pub(super) fn html(scenes: &[Arc<Scene>]) -> String {
    let test = scenes.last().map_or(String::new(), |scene| scene.test.clone());
    let panic = scenes.iter().rev().find_map(|scene| scene.panic.as_ref());
    Report {
        title: test,
        panic: panic.map(|panic| (panic.message.clone(), panic.place.clone())),
        engines: scenes.iter().map(|scene| engine_report(scene)).collect(),
    }
    .to_html()
}

fn notes(scene: &Scene) -> Vec<String> {
    let dropped =
        scene.dropped.iter().map(|dropped| format!("Rolled back, because it was dropped without a commit: {dropped}."));
    let lost = scene.lost().map(|(purpose, lost)| summary::lost_content(purpose, lost) + ".");
    let writer = scene.writer.iter().map(|writer| format!("The writer slot {writer}."));
    dropped.chain(lost).chain(writer).collect()
}

fn engine_report(scene: &Scene) -> EngineReport {
    let statements = match &scene.recorded {
        Some(kept) => StatementList::Recorded(kept.clone()),
        None => StatementList::Recent(scene.newest()),
    };
    let committed = scene.committed_changes().clone();
    let mut engine = EngineReport::new(scene.engine.clone(), committed, scene.schema(), statements);
    if let Some((by, changes)) = scene.uncommitted_changes() {
        engine.changes.push((format!("Not committed by {by}"), changes.clone()));
    }
    engine.notes = notes(scene);
    engine
}
