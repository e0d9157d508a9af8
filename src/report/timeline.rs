//! The connections, with their transactions, waits and statements, along the time.

use std::collections::BTreeMap;
use std::time::Duration;

use maud::{Markup, html};

use crate::drawing::{Bar, Drawing, Lane, Style};
use crate::statements::{Recorded, Statement, StatementKind, counted};

const LEGEND: &[(Style, &str)] = &[
    (Style::Held, "transaction"),
    (Style::Waited, "waits for the slot"),
    (Style::Read, "reads"),
    (Style::Wrote, "writes"),
    (Style::Failed, "failed"),
];

pub(super) fn section(recorded: &Recorded) -> Markup {
    let mut by_connection: BTreeMap<usize, Vec<&Statement>> = BTreeMap::new();
    for statement in &recorded.statements {
        by_connection.entry(statement.connection()).or_default().push(statement);
    }
    let took = recorded.statements.iter().map(Statement::ended_at).max().unwrap_or_default();
    let lanes = by_connection.iter().map(|(number, statements)| lane(*number, statements)).collect();
    let drawing = Drawing {
        title: format!("Timeline of {}", counted(by_connection.len() as u64, "connection")),
        took,
        lanes,
        legend: LEGEND,
    };
    html! {
        @if !recorded.statements.is_empty() {
            h3 { "Timeline" }
            div class="scroll" tabindex="0" role="region" aria-label="timeline" { (drawing.to_svg()) }
        }
    }
}

fn lane(number: usize, statements: &[&Statement]) -> Lane {
    let mut threads: Vec<String> = statements.iter().map(|statement| statement.thread_label()).collect();
    threads.dedup();
    let thread = if let [only] = &*threads { only.trim_matches('`') } else { "several threads" };
    let mut transactions: BTreeMap<u64, (Duration, Duration)> = BTreeMap::new();
    for statement in statements {
        if let Some(transaction) = statement.transaction() {
            let span = transactions.entry(transaction).or_insert((statement.began(), Duration::ZERO));
            span.1 = span.1.max(statement.ended_at());
        }
    }
    let first = statements.iter().map(|statement| statement.began()).min().unwrap_or_default();
    let last = statements.iter().map(|statement| statement.ended_at()).max().unwrap_or_default();
    let used = Bar { span: first..last, style: Style::Ran, title: String::new() };
    let held = transactions.iter().map(|(number, (from, to))| Bar {
        span: *from..*to,
        style: Style::Held,
        title: format!("transaction {number}, {:.1?}", *to - *from),
    });
    let ran =
        statements.iter().filter(|statement| statement.kind() != StatementKind::Transaction || is_failed(statement));
    let ran = ran.map(|statement| Bar {
        span: statement.began()..statement.ended_at(),
        style: match statement.kind() {
            _ if is_failed(statement) => Style::Failed,
            StatementKind::Write => Style::Wrote,
            _ => Style::Read,
        },
        title: statement.to_string(),
    });
    let waited = statements.iter().filter(|statement| !statement.waited().is_zero()).map(|statement| Bar {
        span: statement.began()..statement.began() + statement.waited(),
        style: Style::Waited,
        title: format!("waits {:.1?}: {statement}", statement.waited()),
    });
    let is_commit = |statement: &&&Statement| {
        statement.duration().is_some() && !is_failed(statement) && statement.begins_with(&["COMMIT", "END"])
    };
    Lane {
        label: format!("{number} · {thread}"),
        bars: [used].into_iter().chain(held).chain(ran).chain(waited).collect(),
        dots: statements.iter().filter(is_commit).map(|statement| statement.ended_at()).collect(),
    }
}

fn is_failed(statement: &Statement) -> bool {
    statement.error().is_some()
}
