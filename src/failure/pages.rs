//! The report of a test that failed.

use super::scene::Scene;
use crate::difference::{compare, schema};
use crate::report::{OfEngine, Report, Statements};

/// Returns the report of the engines of a test, as HTML.
pub(super) fn html(scenes: &[Scene]) -> String {
    let test = scenes.last().map_or(String::new(), |scene| scene.test.clone());
    let panic = scenes.iter().rev().find_map(|scene| scene.panic.as_ref());
    Report {
        title: test,
        panic: panic.map(|panic| (panic.message.clone(), panic.place.clone())),
        engines: scenes.iter().map(of_engine).collect(),
    }
    .to_html()
}

fn notes(scene: &Scene) -> Vec<String> {
    let dropped =
        scene.dropped.iter().map(|dropped| format!("Rolled back, because it was dropped without a commit: {dropped}."));
    dropped.chain(scene.writer.iter().map(|writer| format!("The writer slot is held by {writer}."))).collect()
}

fn of_engine(scene: &Scene) -> OfEngine {
    let content = scene.content.as_ref().unwrap_or(&scene.before);
    let committed = compare(&scene.before, content, &scene.setup).map_err(|cause| cause.to_string());
    let mut changes = vec![("Committed since the engine was created".to_owned(), committed)];
    if let Some((purpose, seen)) = scene.uncommitted() {
        let uncommitted = compare(content, seen, &scene.setup).map_err(|cause| cause.to_string());
        changes.push((format!("Not committed by {purpose}"), uncommitted));
    }
    OfEngine {
        name: scene.engine.clone(),
        notes: notes(scene),
        changes,
        statements: match &scene.recorded {
            Some(kept) => Statements::Recorded(kept.clone()),
            None => Statements::Recent(scene.newest()),
        },
        schema: schema(content, &scene.setup).map_err(|cause| cause.to_string()),
    }
}
