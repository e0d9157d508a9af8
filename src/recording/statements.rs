use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::slice;
use std::sync::Arc;

use crate::engine::Engine;
use crate::statements::{
    Counts, Missed, Recorded, Statement, StatementKind, Tables, by_shape, counted, table_of_alias,
};
use crate::vfs::analysis;

/// The statements that ran while they were recorded ([`Engine::record`]), in the order in which they began.
///
/// Its `Display` is a table, in which statements that differ only in their values are one line. So is the message of each
/// assertion that fails.
#[derive(Clone, Debug)]
#[must_use = "recorded statements are checked only by an assertion"]
pub struct Statements {
    statements: Vec<Statement>,
    /// The exact numbers, also of the statements that are no longer kept.
    counts: Counts,
    /// Whether it has the statements of one kind only.
    kind: Option<StatementKind>,
    missed: Vec<Missed>,
    /// How many of the older statements are not in `statements`.
    discarded: u64,
    /// Whether statements that are not kept may have been left out, so that the counts may be too low.
    lacks_discarded: bool,
    source: Arc<Source>,
}

/// What was recorded.
#[derive(Debug)]
struct Source {
    name: String,
    /// The number of statements that are kept.
    kept: u64,
    /// A copy of the engine at the end of the recording, by which statements are explained.
    copy: Engine,
}

/// Statements with one text, apart from their values.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Repeat {
    /// The SQL in one line, with `?` in the place of literals.
    pub sql: String,
    /// How many there are.
    pub count: u64,
    /// How many different values they have.
    pub distinct: u64,
    /// The first of them.
    pub first: Statement,
    /// The lines of the program's code that ran one of them, usually the second, as `file:line:column`, the innermost
    /// first, and at most three. It is empty if the program was compiled without debug information, or if the statements
    /// ran on a thread of a library, as those of sqlx do.
    pub called_from: Vec<String>,
}

/// A statement that has stepped through all rows of a table or of an index.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FullScan {
    /// The statement.
    pub statement: Statement,
    /// The tables, in the order of the plan. Subqueries with a name, common table expressions and table-valued functions are
    /// listed, too, by their alias if they have one. So is a table that has an alias in a view, or an alias that the statement uses
    /// for several tables. Empty if SQLite can't explain the statement now, for example because a table is gone.
    pub tables: Vec<String>,
    /// The number of rows that were passed, in all full scans of the statement. SQLite counts the steps from one row to the
    /// next, so of several scans, each but the first counts one row less.
    pub rows: u64,
    /// SQLite's EXPLAIN QUERY PLAN, a line for each step. Empty if SQLite can't explain the statement now.
    pub plan: String,
}

impl Statements {
    /// Returns what was recorded on the engine of this name. `copy` is a copy of the engine at the end.
    pub(super) fn of(name: String, copy: Engine, recorded: Recorded) -> Statements {
        let Recorded { statements, counts, discarded, missed } = recorded;
        let source = Arc::new(Source { name, kept: statements.len() as u64, copy });
        Statements { statements, counts, kind: None, missed, discarded, lacks_discarded: false, source }
    }

    /// Returns the statements that are kept, in the order in which they began.
    pub fn iter(&self) -> slice::Iter<'_, Statement> {
        self.statements.iter()
    }

    /// Returns the number of reads and writes, including those that are no longer kept. After
    /// [`transactions`](Statements::transactions) or [`others`](Statements::others), returns the number of statements of that
    /// kind. [`iter`](Statements::iter) has statements of every kind, so its length may differ.
    pub fn count(&self) -> u64 {
        match self.kind {
            Some(kind) => self.counts.of(kind),
            None => self.counts.of(StatementKind::Read) + self.counts.of(StatementKind::Write),
        }
    }

    /// Returns those that read.
    pub fn reads(&self) -> Statements {
        self.of_kind(StatementKind::Read)
    }

    /// Returns those that write: rows or the schema.
    pub fn writes(&self) -> Statements {
        self.of_kind(StatementKind::Write)
    }

    /// Returns those that begin or end transactions and savepoints.
    pub fn transactions(&self) -> Statements {
        self.of_kind(StatementKind::Transaction)
    }

    /// Returns those that do something else: PRAGMA, ATTACH, DETACH, VACUUM, ANALYZE and REINDEX.
    pub fn others(&self) -> Statements {
        self.of_kind(StatementKind::Other)
    }

    fn of_kind(&self, kind: StatementKind) -> Statements {
        let mut counts = Counts::default();
        *counts.of_mut(kind) = self.counts.of(kind);
        let statements = self.iter().filter(|statement| statement.kind() == kind).cloned().collect();
        Statements { statements, counts, kind: Some(kind), ..self.clone() }
    }

    /// Returns those for which the function returns `true`. Its [`count`](Statements::count) is of the reads and writes among
    /// them; for other kinds, select those first: `transactions().matching(…)`.
    pub fn matching(&self, mut matches: impl FnMut(&Statement) -> bool) -> Statements {
        let statements: Vec<Statement> = self.iter().filter(|statement| matches(statement)).cloned().collect();
        let mut counts = Counts::default();
        statements.iter().for_each(|statement| *counts.of_mut(statement.kind()) += 1);
        Statements { statements, counts, lacks_discarded: self.discarded > 0, ..self.clone() }
    }

    /// Returns those that read or write this table, also by a view, a trigger or a foreign key's action. The case of ASCII
    /// letters does not matter.
    ///
    /// SQLite finds the tables of a statement when it compiles it. So the statements are compiled again, for the schema at the
    /// end of the recording, on a connection with the template's [`on_connect`](crate::Template::on_connect). A statement that
    /// can't be compiled then belongs to the table if its SQL has the name. If `on_connect` fails, this is the rule for all.
    ///
    /// # Panics
    /// If `on_connect` panics.
    pub fn of_table(&self, table: &str) -> Statements {
        let tables = self.tables();
        self.matching(|statement| match &tables[statement.sql()] {
            Some(Tables { read, written }) => read.union(written).any(|other| other.eq_ignore_ascii_case(table)),
            None => statement.sql().to_ascii_lowercase().contains(&table.to_ascii_lowercase()),
        })
    }

    /// Returns the tables of each SQL text.
    fn tables(&self) -> BTreeMap<&str, Option<Tables>> {
        let texts: BTreeSet<&str> = self.iter().map(Statement::sql).collect();
        let connection = self.source.copy.connect().ok();
        let tables = |sql| analysis::tables_of(connection.as_ref()?, sql);
        texts.into_iter().map(|sql| (sql, tables(sql))).collect()
    }

    /// Returns why statements may be missing, a text for each reason, for example "connection 2 has a trace of its own …". Empty
    /// if the recording is complete. Every assertion fails with these reasons. [`assert_no_repeats`](Statements::assert_no_repeats)
    /// and [`assert_no_full_scans`](Statements::assert_no_full_scans) also fail if older statements are no longer kept.
    pub fn gaps(&self) -> Vec<String> {
        let dropped = self.lacks_discarded.then(|| {
            format!(
                "only the newest {} were kept, and {} older ones were counted only (Recording::limit)",
                counted(self.source.kept, "statement"),
                self.discarded
            )
        });
        self.missed.iter().map(ToString::to_string).chain(dropped).collect()
    }

    /// Asserts that this number of statements ran ([`count`](Statements::count)).
    ///
    /// # Panics
    /// If the number differs, or if statements may be missing. The message lists the statements.
    #[track_caller]
    pub fn assert_count(&self, expected: u64) {
        self.assert_complete();
        let message = || {
            let (name, count) = (&self.source.name, self.count());
            format!("expected {} on {name}, found {count}:\n{self}", self.counted(expected))
        };
        assert!(self.count() == expected, "{}", message());
    }

    /// Returns the message if there are more statements.
    pub(super) fn above(&self, limit: u64) -> Option<String> {
        let (name, count) = (&self.source.name, self.count());
        (count > limit).then(|| format!("expected at most {} on {name}, found {count}:\n{self}", self.counted(limit)))
    }

    fn counted(&self, number: u64) -> String {
        let noun = match self.kind {
            None => "statement",
            Some(StatementKind::Read) => "read",
            Some(StatementKind::Write) => "write",
            Some(StatementKind::Transaction) => "transaction statement",
            Some(StatementKind::Other) => "other statement",
        };
        counted(number, noun)
    }

    /// Returns the statements that ran more than `more_than` times, where statements that differ only in their values count as
    /// one: for example, a query that code runs for each row of another query ("N+1"). The most frequent one is first.
    pub fn repeats(&self, more_than: u64) -> Vec<Repeat> {
        let reads_or_writes = self.iter().filter(|statement| statement.kind().reads_or_writes());
        let of_shape = |(sql, statements): (String, Vec<&Statement>)| Repeat {
            sql,
            count: statements.len() as u64,
            distinct: statements.iter().map(|statement| statement.expanded_sql()).collect::<BTreeSet<_>>().len() as u64,
            called_from: statements.iter().find_map(|statement| statement.called_from()).unwrap_or_default(),
            first: statements[0].clone(),
        };
        let is_repeated = |(_, statements): &(String, Vec<&Statement>)| statements.len() as u64 > more_than;
        let mut repeats: Vec<Repeat> =
            by_shape(reads_or_writes).into_iter().filter(is_repeated).map(of_shape).collect();
        repeats.sort_by_key(|repeat| (std::cmp::Reverse(repeat.count), repeat.first.began()));
        repeats
    }

    /// Asserts that no text ran more than `more_than` times, apart from its values ([`repeats`](Statements::repeats)).
    ///
    /// # Panics
    /// If one did, or if statements may be missing.
    #[track_caller]
    pub fn assert_no_repeats(&self, more_than: u64) {
        self.assert_complete_list();
        if let Some(message) = self.repeated(more_than) {
            panic!("{message}");
        }
    }

    /// Returns the message if statements ran more than `more_than` times.
    pub(super) fn repeated(&self, more_than: u64) -> Option<String> {
        let repeats = self.repeats(more_than);
        let (times, name) = (counted(more_than, "time"), &self.source.name);
        (!repeats.is_empty()).then(|| format!("SQL that ran more than {times} on {name}:\n{}", lines(&repeats)))
    }

    /// Returns the statements that passed more than `more_than` rows in full scans of tables or indexes, in all. (For
    /// anything but a small table, an index is usually faster.) SQLite counts the steps from one row to the next. So a full scan
    /// of a single row is never one of them, nor is `SELECT count(*) FROM item`, which counts without such steps.
    ///
    /// The plans come from a connection with the template's [`on_connect`](crate::Template::on_connect). If that fails, they
    /// are empty. They do not show what triggers do.
    ///
    /// # Panics
    /// If `on_connect` panics.
    pub fn full_scans(&self, more_than: u64) -> Vec<FullScan> {
        let is_scan = |statement: &&Statement| statement.scanned_rows() > more_than;
        let connection = self.source.copy.connect().ok();
        let mut plans: BTreeMap<&str, (String, Vec<String>)> = BTreeMap::new();
        let scan = |sql: &str| {
            let plan = analysis::plan_of(connection.as_ref()?, sql)?;
            let tables = tables_scanned(&plan, sql, &analysis::tables_of(connection.as_ref()?, sql)?);
            Some((plan, tables))
        };
        self.iter()
            .filter(is_scan)
            .map(|statement| {
                let sql = statement.sql();
                let (plan, tables) = plans.entry(sql).or_insert_with(|| scan(sql).unwrap_or_default()).clone();
                FullScan { statement: statement.clone(), tables, rows: statement.scanned_rows(), plan }
            })
            .collect()
    }

    /// Asserts that no statement passed more than `more_than` rows in full scans of tables or indexes, in all
    /// ([`full_scans`](Statements::full_scans)).
    ///
    /// # Panics
    /// If one did, if statements may be missing, or if the end of one was not recorded (see [`Engine::record`]). If the
    /// template's [`on_connect`](crate::Template::on_connect) panics.
    #[track_caller]
    pub fn assert_no_full_scans(&self, more_than: u64) {
        self.assert_complete_list();
        if let Some(message) = self.scanned(more_than).or_else(|| self.unended()) {
            panic!("{message}");
        }
    }

    /// Returns the message if there are full scans of more than `more_than` rows.
    pub(super) fn scanned(&self, more_than: u64) -> Option<String> {
        let scans = self.full_scans(more_than);
        let (rows, name) = (counted(more_than, "row"), &self.source.name);
        (!scans.is_empty()).then(|| format!("full scans of more than {rows} on {name}:\n{}", lines(&scans)))
    }

    /// Returns the message if it is not known of a statement whether it made a full scan.
    pub(super) fn unended(&self) -> Option<String> {
        let is_unknown = |statement: &&Statement| !statement.has_ended() && statement.kind().reads_or_writes();
        let unknown: Vec<&Statement> = self.iter().filter(is_unknown).collect();
        (!unknown.is_empty()).then(|| {
            let (what, name) = (counted(unknown.len() as u64, "statement"), &self.source.name);
            format!(
                "the end of {what} on {name} was not recorded, so its full scans are not known: begin the recording before code \
                 keeps a `&Connection` of a unit of work, and end it after the last row was read:\n{}",
                lines(&unknown)
            )
        })
    }

    /// Returns the message if statements may be missing.
    pub(super) fn incomplete(&self) -> Option<String> {
        let (name, missed) = (&self.source.name, self.gaps());
        (!missed.is_empty()).then(|| {
            format!(
                "the recording on {name} is not complete: {}; the recorded statements are:\n{self}",
                missed.join("; ")
            )
        })
    }

    /// Returns the same statements, for a check that needs all of them: those that are no longer kept count as missing.
    pub(super) fn as_list(&self) -> Statements {
        Statements { lacks_discarded: self.discarded > 0, ..self.clone() }
    }

    /// # Panics
    /// If statements may be missing.
    #[track_caller]
    fn assert_complete(&self) {
        if let Some(message) = self.incomplete() {
            panic!("{message}");
        }
    }

    /// The same, if the statements that are no longer kept are missing, too.
    #[track_caller]
    fn assert_complete_list(&self) {
        self.as_list().assert_complete();
    }
}

impl<'a> IntoIterator for &'a Statements {
    type Item = &'a Statement;
    type IntoIter = slice::Iter<'a, Statement>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// A table with a line for each text: how often it ran, the text, and the first message if it failed.
impl fmt::Display for Statements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = by_shape(self);
        if lines.is_empty() {
            f.write_str("  (none)")?;
        }
        for (number, (shape, statements)) in lines.iter().enumerate() {
            f.write_str(if number == 0 { "" } else { "\n" })?;
            if let [only] = &**statements {
                write!(f, "{:>5} x {only}", 1)?;
            } else {
                write!(f, "{:>5} x {shape}", statements.len())?;
                let error = statements.iter().find_map(|statement| statement.error());
                if let Some(error) = error {
                    write!(f, " -- failed: {error}")?;
                }
            }
        }
        match self.discarded {
            0 => Ok(()),
            dropped => write!(f, "\n  (and {} before these)", counted(dropped, "statement")),
        }
    }
}

impl fmt::Display for Repeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Repeat { sql, count, distinct, first, called_from } = self;
        write!(f, "{count:>5} x {sql} -- {}, by {}", counted(*distinct, "distinct statement"), first.opened_by())?;
        write!(f, "{}", CalledFrom(called_from))
    }
}

/// Lines of code below a statement.
struct CalledFrom<'a>(&'a [String]);

impl fmt::Display for CalledFrom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(number, line)| {
            let from = if number == 0 { "called from" } else { "       from" };
            write!(f, "\n        {from} {line}")
        })
    }
}

impl fmt::Display for FullScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FullScan { statement, tables, rows, plan } = self;
        write!(f, "  {statement}\n    {}", counted(*rows, "row"))?;
        if !tables.is_empty() {
            write!(f, " of {}", tables.join(", "))?;
        }
        plan.lines().try_for_each(|line| write!(f, "\n    plan: {line}"))
    }
}

fn lines(items: &[impl fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Returns the tables that the plan of this SQL scans; `used` are all that it uses.
fn tables_scanned(plan: &str, sql: &str, used: &Tables) -> Vec<String> {
    let is_used = |name: &String| used.read.union(&used.written).any(|table| table.eq_ignore_ascii_case(name));
    let named = |access| plan.lines().filter_map(move |line| name_after(access, line));
    let table = |name: &str| {
        let times = named("SCAN ").chain(named("SEARCH ")).filter(|other| other.eq_ignore_ascii_case(name)).count();
        table_of_alias(sql, name, times, is_used).unwrap_or_else(|| name.to_owned())
    };
    named("SCAN ").map(table).collect()
}

/// Returns the name of the table in a line of a plan that begins with this access: its alias, if it has one. The parts of the
/// line are those of SQLite's `wherecode.c`.
fn name_after<'a>(access: &str, line: &'a str) -> Option<&'a str> {
    let rest = line.trim_start().strip_prefix(access)?;
    let ends = [" EXISTS", " USING ", " VIRTUAL TABLE INDEX ", " LEFT-JOIN"];
    let end = ends.iter().filter_map(|end| rest.find(end)).min();
    let name = &rest[..end.unwrap_or(rest.len())];
    let is_table = !name.starts_with('(') && !name.contains("CONSTANT ROW") && !name.ends_with("-ROW VALUES CLAUSE");
    let schema = name.get(..5).filter(|schema| schema.eq_ignore_ascii_case("main."));
    is_table.then_some(&name[schema.map_or(0, str::len)..])
}

/// Asserts that an operation runs no more statements for many rows than for few, and so has no query for each row ("N+1").
/// `sizes` is `[fewer, more]`. For each size, `run` prepares that many rows, records the operation and returns the recording.
///
/// ```
/// # use rusqlite_fixtures::{Result, Template, assert_constant_statements, rusqlite};
/// static SHOP: Template = Template::sql("CREATE TABLE item (name TEXT, price INTEGER)");
///
/// fn total(shop: &rusqlite::Connection) -> rusqlite::Result<i64> { // the code under test
///     shop.query_row("SELECT sum(price) FROM item", [], |row| row.get(0))
/// }
///
/// assert_constant_statements([2, 20], |size| {
///     let engine = SHOP.new_engine().unwrap();
///     let shop = engine.pooled_connection().unwrap();
///     for _ in 0..size {
///         shop.execute("INSERT INTO item VALUES ('tea', 3)", []).unwrap();
///     }
///     engine.recorded(|| assert_eq!(total(&shop), Ok(3 * size as i64))).1
/// });
/// ```
///
/// # Panics
/// If more statements ran for `more` rows than for `fewer`; if statements may be missing; if `fewer` is not less than `more`; if
/// `run` panics.
#[track_caller]
pub fn assert_constant_statements(sizes: [usize; 2], mut run: impl FnMut(usize) -> Statements) {
    let [fewer, more] = sizes;
    assert!(fewer < more, "the sizes are [{fewer}, {more}]: the second number of rows must be larger than the first");
    let (before, after) = (run(fewer), run(more));
    before.assert_complete();
    after.assert_complete();
    if after.count() <= before.count() {
        return;
    }
    let counts: BTreeMap<String, u64> =
        before.repeats(0).into_iter().map(|repeat| (repeat.sql, repeat.count)).collect();
    let mut grown = String::new();
    for Repeat { sql, count, called_from, .. } in after.repeats(0) {
        let before = counts.get(&sql).copied().unwrap_or_default();
        if count > before {
            let _ = write!(grown, "\n  {before} -> {count} x {sql}{}", CalledFrom(&called_from));
        }
    }
    panic!(
        "the statements on {} grow with the data: {} for {fewer} rows, {} for {more}:{grown}",
        after.source.name,
        before.count(),
        after.count()
    );
}
