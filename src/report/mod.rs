//! The report of a test as one HTML page, which needs no network.
//!
//! * `report` (here): what is in it, and the page around that. `changes`, `statements`, `timeline`: its parts.
//! * `report.css`, `report.js`: how it looks, and how statements are filtered and sorted.
//!
//! This layer uses `difference` and the layers below it. `failure` and `recording` write reports.
//!
//! Invariants:
//! * Whatever a test has in its database is text: `maud` escapes it.

mod changes;
mod statements;
mod timeline;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::difference::Differing;
use crate::statements::Recorded;
use crate::statements::recent::Recent;

/// What is reported of a test.
pub(crate) struct Report {
    pub(crate) title: String,
    /// The message and the place of its panic.
    pub(crate) panic: Option<(String, String)>,
    pub(crate) engines: Vec<EngineReport>,
}

/// What is reported of an engine.
pub(crate) struct EngineReport {
    pub(crate) name: String,
    /// Sentences.
    pub(crate) notes: Vec<String>,
    /// Titles with the changes, or with the reason why they are not known.
    pub(crate) changes: Vec<(String, Differing)>,
    pub(crate) statements: StatementList,
    /// The SQL of each object, or the reason why it is not known.
    pub(crate) schema: Result<Vec<String>, String>,
}

pub(crate) enum StatementList {
    Recorded(Recorded),
    /// Without a recording.
    Recent(Vec<Recent>),
}

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

impl Report {
    /// Returns the page.
    pub(crate) fn to_html(&self) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) }
                    link rel="icon" href="data:,";
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    header {
                        h1 { (self.title) }
                        @if let Some((message, place)) = &self.panic {
                            p { "panicked at " code { (place) } }
                            pre class="panic" { (message) }
                        }
                    }
                    main { @for engine in &self.engines { (engine.section()) } }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        // HTML has no control characters.
        let is_forbidden = |c: char| c.is_control() && !c.is_ascii_whitespace();
        page.into_string().replace(is_forbidden, "\u{fffd}")
    }
}

impl EngineReport {
    /// Returns the report of an engine without notes.
    pub(crate) fn new(
        name: String,
        committed: Differing,
        schema: Result<Vec<String>, String>,
        statements: StatementList,
    ) -> EngineReport {
        EngineReport {
            name,
            notes: Vec::new(),
            changes: vec![("Committed since the engine was created".to_owned(), committed)],
            statements,
            schema,
        }
    }

    fn section(&self) -> Markup {
        html! {
            section class="engine" {
                h2 { (self.name) }
                @for note in &self.notes { p class="note" { (note) } }
                @for (title, changes) in &self.changes { (changes::section(title, changes)) }
                @match &self.statements {
                    StatementList::Recorded(kept) => { (timeline::section(kept)) (statements::recorded(kept)) }
                    StatementList::Recent(recent) => (statements::recent(recent)),
                }
                details {
                    summary { "Schema" }
                    @match &self.schema {
                        Ok(objects) if objects.is_empty() => p { "It is empty." },
                        Ok(objects) => pre { @for sql in objects { (sql) ";\n" } },
                        Err(cause) => p class="error" { (cause) },
                    }
                }
            }
        }
    }
}
