//! The statements, which the script filters and sorts.

use std::collections::BTreeMap;
use std::time::Duration;

use maud::{Markup, html};

use crate::environment::KEEP_VARIABLE;
use crate::statements::recent::Recent;
use crate::statements::{Recorded, Statement, StatementKind, by_shape, counted};

/// More statements of one text than this are marked as repeated.
const REPEATED: usize = 3;

/// Full scans of more rows than this are marked.
const SCANNED: u64 = 100;

/// Returns the statements without a recording.
pub(super) fn recent(recent: &[Recent]) -> Markup {
    html! {
        h3 { "Newest statements" }
        p class="note" {
            "Values and times are known only if the engine is recorded, for example with "
            code { (KEEP_VARIABLE) "=always" } "."
        }
        ol class="recent" {
            @for statement in recent {
                li class=[statement.error.as_ref().map(|_| "failed")] {
                    code { (statement.sql) }
                    @if let Some(error) = &statement.error { " " em { (error) } }
                    " " small { (statement.thread.name().unwrap_or("an unnamed thread")) }
                }
            }
        }
    }
}

/// Returns the recorded statements. The rows are in a template, from which the script takes those that are visible.
pub(super) fn recorded(recorded: &Recorded) -> Markup {
    let repeats: BTreeMap<String, Repeats> = by_shape(&recorded.statements)
        .into_iter()
        .map(|(shape, statements)| (shape, Repeats::of(&statements)))
        .collect();
    html! {
        h3 { "Statements" }
        @for missed in &recorded.missed { p class="error" { "Not complete: " (missed) "." } }
        @if recorded.discarded > 0 { p class="note" { "Not shown: " (counted(recorded.discarded, "older statement")) "." } }
        div class="statements" {
            form class="filter" {
                label { "Containing " input type="search" name="text" autocomplete="off"; }
                label {
                    "Show "
                    select name="show" {
                        @for (value, what) in [
                            ("", "all"), ("read", "reads"), ("write", "writes"), ("transaction", "transactions"), ("failed", "failed"),
                            ("scan", "full scans"), ("repeated", "repeated"), ("waited", "waits"),
                        ] { option value=(value) { (what) } }
                    }
                }
                output {}
            }
            div class="scroll rows" tabindex="0" role="region" aria-label="statements; the arrow keys select one" {
                table role="grid" {
                    thead {
                        tr {
                            @for (column, what) in COLUMNS { th scope="col" { button type="button" title=(what) { (column) } } }
                        }
                    }
                    tbody {}
                }
            }
            div class="selected" aria-live="polite" {}
            noscript { p { "JavaScript is needed to show the statements." } }
            template {
                @for statement in &recorded.statements { (row(statement, &repeats[&statement.shape()])) }
            }
        }
    }
}

const COLUMNS: [(&str, &str); 8] = [
    ("at ms", "since the beginning of the recording"),
    ("SQL", "with the values of its parameters"),
    ("rows", "that it returned"),
    ("changes", "rows that it changed"),
    ("took ms", "from its beginning to its end"),
    ("waited ms", "for the writer slot"),
    ("connection", "its number in this recording"),
    ("transaction", "its number on this engine"),
];

/// The statements of one text.
struct Repeats {
    count: usize,
    are_many: bool,
    /// Where the program runs them, if they are many and that is known.
    called_from: String,
}

impl Repeats {
    fn of(statements: &[&Statement]) -> Repeats {
        let are_many = statements[0].kind().reads_or_writes() && statements.len() > REPEATED;
        let called_from = || statements.iter().find_map(|statement| statement.called_from());
        let called_from = are_many.then(called_from).flatten().unwrap_or_default();
        let called_from = if called_from.is_empty() {
            String::new()
        } else {
            format!(", called from {}", called_from.join(", from "))
        };
        Repeats { count: statements.len(), are_many, called_from }
    }
}

fn row(statement: &Statement, repeats: &Repeats) -> Markup {
    let scanned = statement.scanned_rows();
    let kind = match statement.kind() {
        StatementKind::Read => "read",
        StatementKind::Write => "write",
        StatementKind::Transaction => "transaction",
        StatementKind::Other => "other",
    };
    let marks = [
        (true, kind),
        (statement.error().is_some(), "failed"),
        (scanned > SCANNED, "scan"),
        (repeats.are_many, "repeated"),
        (!statement.waited().is_zero(), "waited"),
    ];
    let class: Vec<&str> = marks.iter().filter(|(has, _)| *has).map(|(_, mark)| *mark).collect();
    let duration = |duration: Duration| format!("{:.3}", duration.as_secs_f64() * 1e3);
    html! {
        tr class=(class.join(" ")) data-by={ (statement.opened_by()) ", thread " (statement.thread_label()) (repeats.called_from) } {
            td { (duration(statement.began())) }
            td {
                code { (statement.expanded_sql()) }
                @if let Some(error) = statement.error() { " " em { (error) } }
                @if scanned > SCANNED { " " b { "full scan, " (counted(scanned, "row")) } }
                @if repeats.are_many { " " b { (repeats.count) " ×" } }
            }
            td { (statement.rows()) }
            td { (statement.changes()) }
            td { @if let Some(time) = statement.duration() { (duration(time)) } }
            td { @if !statement.waited().is_zero() { (duration(statement.waited())) } }
            td { (statement.connection()) }
            td { @if let Some(number) = statement.transaction() { (number) } }
        }
    }
}
