//! What the text of a statement tells.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::StatementKind;

/// Returns the kind of a statement. SQLite says whether it is read-only, but calls BEGIN and pragmas so too.
pub(super) fn kind(sql: &str, is_read_only: bool) -> StatementKind {
    if begins_with(sql, &["BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE"]) {
        StatementKind::Transaction
    } else if begins_with(sql, &["PRAGMA", "ATTACH", "DETACH", "VACUUM", "ANALYZE", "REINDEX"]) {
        StatementKind::Other
    } else if is_read_only {
        StatementKind::Read
    } else {
        StatementKind::Write
    }
}

/// Returns the text of a statement of a script without the white space and the semicolons around it.
pub(super) fn alone(sql: &str) -> &str {
    let mut sql = sql.trim_end_matches(|c: char| c == ';' || c.is_whitespace());
    loop {
        sql = sql.trim_start_matches(|c: char| c == ';' || c.is_whitespace() || c == '\u{feff}');
        let mut rest = sql;
        while let Some(after) = without_comment(rest.trim_start()) {
            rest = after;
        }
        let Some(after) = rest.trim_start().strip_prefix(';') else { return sql };
        sql = after; // without the comments of an empty statement
    }
}

/// Returns whether a virtual table runs the statement on a table of its index. SQLite's own ones (FTS3, FTS5, R-Tree) write
/// its name as `'main'.'note_config'`. They also do so while SQLite compiles the statement that uses them, and then nothing
/// else tells that statement from the program's own.
pub(crate) fn is_of_virtual_table(sql: &str) -> bool {
    const SUFFIXES: [&str; 11] = [
        "_config",
        "_content",
        "_data",
        "_docsize",
        "_idx",
        "_node",
        "_parent",
        "_rowid",
        "_segdir",
        "_segments",
        "_stat",
    ];
    let is_of_index = |name: &str| SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
    let is_version = sql.starts_with("PRAGMA '") && sql.ends_with("'.data_version"); // of FTS5
    is_version || sql.split("'.'").skip(1).any(|rest| rest.split_once('\'').is_some_and(|(name, _)| is_of_index(name)))
}

/// Returns whether the statement, which runs within another one, may be a virtual table's, or one of SQLite's own functions for the
/// schema (`pragma_table_info`). Virtual tables name the database with quotes, as `'main'.'note_data'` or `"main"."place_rowid"`.
pub(crate) fn may_be_of_virtual_table(sql: &str) -> bool {
    const DATABASES: [&str; 4] = ["'main'", "\"main\"", "'temp'", "\"temp\""];
    let words: Vec<&str> = words(sql).collect();
    let names_database = |pair: &[&str]| pair[1] == "." && DATABASES.contains(&pair[0]);
    is_of_virtual_table(sql) || begins_with(sql, &["PRAGMA"]) || words.windows(2).any(names_database)
}

/// Returns whether the statement inserts, updates or deletes rows, and so sets SQLite's number of changed rows.
pub(super) fn changes_rows(sql: &str, kind: StatementKind) -> bool {
    kind == StatementKind::Write && begins_with(sql, &["INSERT", "REPLACE", "UPDATE", "DELETE", "WITH"])
}

/// Returns whether the first word of the text is one of these. The case does not matter.
pub(crate) fn begins_with(sql: &str, words: &[&str]) -> bool {
    let first = first_word(sql);
    words.iter().any(|word| first.eq_ignore_ascii_case(word))
}

fn first_word(sql: &str) -> &str {
    let sql = without_leading_comments(sql);
    &sql[..sql.bytes().position(|byte| !byte.is_ascii_alphabetic()).unwrap_or(sql.len())]
}

fn without_leading_comments(mut sql: &str) -> &str {
    loop {
        sql = sql.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ';' || c == '\u{feff}');
        let Some(rest) = without_comment(sql) else { return sql };
        sql = rest;
    }
}

/// Returns what follows the comment at the beginning of the text, if there is one.
fn without_comment(sql: &str) -> Option<&str> {
    let (comment, end) = match sql.strip_prefix("--") {
        Some(comment) => (comment, "\n"),
        None => (sql.strip_prefix("/*")?, "*/"),
    };
    Some(comment.split_once(end).map_or("", |(_, rest)| rest))
}

/// Returns the text in one line, without comments: a blank in the place of each run of white space outside of literals and names.
pub(super) fn in_one_line(sql: &str) -> String {
    line_of(sql, None)
}

/// Returns the text in one line, with its comments as `/* … */`.
pub(crate) fn in_one_line_with_comments(sql: &str) -> String {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut line = String::with_capacity(sql.len());
    for token in tokens(sql) {
        match token {
            Token::Space(text) | Token::Size(text) if text.starts_with("/*") => line.push_str(&words(text)),
            Token::Space(text) => match text.strip_prefix("--") {
                Some(comment) => line.push_str(&format!("/* {} */", words(comment).replace("*/", "* /"))),
                None => line.push(' '),
            },
            Token::Size(text) | Token::Literal(text) | Token::Number(text) | Token::Other(text) => line.push_str(text),
        }
    }
    line.trim().to_owned()
}

/// Returns the text with `?` in the place of each literal, in one line. So statements that differ only in their values are
/// equal.
pub(super) fn without_values(sql: &str) -> String {
    line_of(sql, Some("?"))
}

/// Returns the text in one line, with `value` in the place of each literal, if there is one.
fn line_of(sql: &str, value: Option<&str>) -> String {
    let mut line = String::with_capacity(sql.len());
    for token in tokens(sql) {
        match token {
            Token::Space(_) => {
                if !line.is_empty() && !line.ends_with(' ') {
                    line.push(' ');
                }
            }
            Token::Size(_) => {}
            Token::Literal(text) | Token::Number(text) => line.push_str(value.unwrap_or(text)),
            Token::Other(text) => line.push_str(text),
        }
    }
    line.truncate(line.trim_end().len());
    line
}

/// Returns a hash of the text without its values. (Texts with other white space may have another one.)
pub(super) fn hash_without_values(sql: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    for token in tokens(sql) {
        match token {
            Token::Space(_) => " ".hash(&mut hasher),
            Token::Size(_) => {}
            Token::Literal(_) | Token::Number(_) => "?".hash(&mut hasher),
            Token::Other(text) => text.hash(&mut hasher),
        }
    }
    hasher.finish()
}

/// What a statement does with a savepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SavepointCommand {
    Set,
    Release,
    RollBack,
}

/// Returns the savepoint that the statement sets, releases or rolls back to, and which of these it does.
pub(super) fn savepoint_of(sql: &str) -> Option<(SavepointCommand, String)> {
    let words: Vec<&str> = words(sql).collect();
    let command = match words.first()? {
        word if word.eq_ignore_ascii_case("SAVEPOINT") => SavepointCommand::Set,
        word if word.eq_ignore_ascii_case("RELEASE") => SavepointCommand::Release,
        word if word.eq_ignore_ascii_case("ROLLBACK") && words.iter().any(|word| word.eq_ignore_ascii_case("TO")) => {
            SavepointCommand::RollBack
        }
        _ => return None,
    };
    Some((command, name_of(words.last()?)))
}

/// Returns whether the statement adds a database to its connection: an attached one, or that of temporary tables.
pub(super) fn opens_another_database(sql: &str) -> bool {
    let mut words = words(sql);
    let is_one_of = |word: Option<&str>, those: &[&str]| {
        word.is_some_and(|word| those.iter().any(|other| word.eq_ignore_ascii_case(other)))
    };
    let first = words.next();
    is_one_of(first, &["ATTACH"]) || is_one_of(first, &["CREATE"]) && is_one_of(words.next(), &["TEMP", "TEMPORARY"])
}

/// Returns the words, names and operators of a text, without numbers.
fn words(sql: &str) -> impl Iterator<Item = &str> {
    tokens(sql).filter_map(|token| match token {
        Token::Other(text) | Token::Literal(text) => Some(text).filter(|text| *text != "]"),
        _ => None,
    })
}

/// What may be before a table's name where it has no alias.
const BEFORE_TABLE: [&str; 6] = ["FROM", "INTO", "JOIN", "UPDATE", "WITH", ","];

/// What may follow a table's name and is no alias.
const AFTER_TABLE: [&str; 24] = [
    "CROSS",
    "EXCEPT",
    "FULL",
    "GROUP",
    "HAVING",
    "INDEXED",
    "INNER",
    "INTERSECT",
    "JOIN",
    "LEFT",
    "LIMIT",
    "NATURAL",
    "NOT",
    "ON",
    "ORDER",
    "OUTER",
    "RETURNING",
    "RIGHT",
    "SET",
    "UNION",
    "USING",
    "VALUES",
    "WHERE",
    "WINDOW",
];

/// Returns the table that has this alias, if the text gives it to one table only, and at least so many times. (A view may use it,
/// too.) `is_table` is whether there is a table of this name.
pub(crate) fn table_of_alias(
    sql: &str,
    alias: &str,
    times: usize,
    is_table: impl Fn(&String) -> bool,
) -> Option<String> {
    let words: Vec<&str> = words(sql).collect();
    let is_one_of = |at: usize, those: &[&str]| those.iter().any(|word| words[at].eq_ignore_ascii_case(word));
    let is_name = |at: usize| !words[at].starts_with(|c: char| c.is_ascii_punctuation() && !"\"`'[_".contains(c));
    // The alias of a column, or a table that has an alias of its own.
    let is_other = |at: usize| {
        words.get(at + 1).is_some_and(|next| *next == ".")
            || at + 1 < words.len() && is_name(at + 1) && !is_one_of(at + 1, &AFTER_TABLE)
    };
    let tables = (0..words.len()).filter(|at| name_of(words[*at]).eq_ignore_ascii_case(alias) && !is_other(*at));
    let tables = tables.filter_map(|at| {
        let before = at.checked_sub(1)?;
        let before = if is_one_of(before, &["AS"]) { before.checked_sub(1)? } else { before };
        if words[before] == ")" || is_one_of(before, &BEFORE_TABLE) {
            return Some(None); // a name of its own
        }
        let table = name_of(words[before]);
        is_table(&table).then_some(Some(table))
    });
    let tables: Vec<Option<String>> = tables.collect();
    let table = tables.first()?.as_ref()?;
    let is_same = |other: &Option<String>| other.as_ref().is_some_and(|other| other.eq_ignore_ascii_case(table));
    (tables.len() >= times && tables.iter().all(is_same)).then(|| table.clone())
}

/// Returns a name without its quotes.
fn name_of(word: &str) -> String {
    if let Some(name) = word.strip_prefix('[') {
        return name.to_owned(); // the bracket at its end is a token of its own
    }
    let within = |quote: char| word.strip_prefix(quote)?.strip_suffix(quote).map(|name| (quote, name));
    match ['"', '`', '\''].into_iter().find_map(within) {
        Some((quote, name)) => name.replace(&format!("{quote}{quote}"), &quote.to_string()),
        None => word.to_owned(),
    }
}

/// Shortens each literal of more than `limit` bytes, and writes its size in a comment after it.
/// [`without_values`] returns the same for the result as for the text itself.
pub(super) fn with_short_literals(sql: &str, limit: usize) -> Cow<'_, str> {
    if sql.len() <= limit {
        return Cow::Borrowed(sql);
    }
    let mut short = String::new();
    for token in tokens(sql) {
        match token {
            Token::Literal(text) if text.len() > limit => {
                short.push_str(&short_literal(text, limit));
            }
            Token::Space(text)
            | Token::Size(text)
            | Token::Literal(text)
            | Token::Number(text)
            | Token::Other(text) => short.push_str(text),
        }
    }
    Cow::Owned(short)
}

/// The end of the comment after a literal that was cut.
const OF_SQL: &str = " bytes of SQL */";

/// Returns the start of a literal, of at most `limit` bytes, as a literal, with its size in a comment.
fn short_literal(literal: &str, limit: usize) -> String {
    let (open, content) = literal.split_at(literal.find('\'').map_or(0, |quote| quote + 1));
    let start = start_of(content, limit.saturating_sub(open.len()));
    let size = literal.len();
    if open == "'" {
        // Half of a doubled quote would end the text.
        let quotes = start.bytes().rev().take_while(|byte| *byte == b'\'').count();
        format!("'{}…'/* {size}{OF_SQL}", &start[..start.len() - quotes % 2])
    } else {
        format!("{open}{}'/* … {size}{OF_SQL}", &start[..start.len() / 2 * 2])
    }
}

/// Returns the start of the text, of at most `limit` bytes.
fn start_of(text: &str, limit: usize) -> &str {
    let end = (0..=limit).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// A part of a statement's text.
#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    /// White space or a comment.
    Space(&'a str),
    /// The size of a literal that was cut.
    Size(&'a str),
    /// A string or a blob.
    Literal(&'a str),
    Number(&'a str),
    /// A word, a quoted name, a parameter or an operator.
    Other(&'a str),
}

/// Divides the text as SQLite's tokenizer does, as far as literals are concerned. A literal without an end goes on to the end
/// of the text.
fn tokens(sql: &str) -> impl Iterator<Item = Token<'_>> {
    let mut rest = sql;
    let mut before = ""; // an operator or a word
    std::iter::from_fn(move || {
        let bytes = rest.as_bytes();
        let has_sign = matches!(bytes, [b'+' | b'-', b'0'..=b'9', ..] | [b'+' | b'-', b'.', b'0'..=b'9', ..]);
        let is_signed = has_sign && is_before_value(before);
        let len = if is_signed { 1 + number_len(&bytes[1..]) } else { token_len(rest)? };
        let (text, after) = rest.split_at(len);
        rest = after;
        let first = text.as_bytes()[0];
        let token = match first {
            _ if is_signed => Token::Number(text),
            b'\'' => Token::Literal(text),
            b'x' | b'X' if text.len() > 1 && text.as_bytes()[1] == b'\'' => Token::Literal(text),
            b'-' if text.starts_with("--") => Token::Space(text),
            b'/' if text.ends_with(OF_SQL) => Token::Size(text),
            b'/' if text.starts_with("/*") => Token::Space(text),
            _ if first.is_ascii_whitespace() => Token::Space(text),
            _ if first.is_ascii_digit() => Token::Number(text),
            b'.' if text.len() > 1 => Token::Number(text),
            _ => Token::Other(text),
        };
        match token {
            Token::Space(_) | Token::Size(_) => {}
            Token::Literal(_) | Token::Number(_) => before = "",
            Token::Other(_) => before = text,
        }
        Some(token)
    })
}

/// Returns whether a value follows the operator or word, and so a sign is that of a number.
fn is_before_value(word: &str) -> bool {
    const WORDS: [&str; 14] = [
        "AND",
        "BETWEEN",
        "BY",
        "CASE",
        "DEFAULT",
        "ELSE",
        "LIMIT",
        "NOT",
        "OFFSET",
        "OR",
        "RETURNING",
        "SELECT",
        "THEN",
        "WHEN",
    ];
    let is_operator = |first: &u8| b"=<>(,|*/%&~!+-".contains(first);
    word.as_bytes().first().is_some_and(is_operator) || WORDS.iter().any(|other| word.eq_ignore_ascii_case(other))
}

fn token_len(sql: &str) -> Option<usize> {
    let bytes = sql.as_bytes();
    let first = *bytes.first()?;
    let run = |is_part: fn(u8) -> bool| bytes.iter().position(|byte| !is_part(*byte)).unwrap_or(bytes.len());
    Some(match first {
        b'\'' | b'"' | b'`' => quoted_len(bytes, first),
        b'[' => bytes.iter().position(|byte| *byte == b']').unwrap_or(bytes.len()), // `]` is one of its own
        b'x' | b'X' if bytes.get(1) == Some(&b'\'') => 1 + quoted_len(&bytes[1..], b'\''),
        b'-' if bytes.starts_with(b"--") => sql.find('\n').unwrap_or(bytes.len()),
        b'/' if bytes.starts_with(b"/*") => sql[2..].find("*/").map_or(bytes.len(), |end| 2 + end + 2),
        _ if first.is_ascii_whitespace() => run(|byte| byte.is_ascii_whitespace()),
        _ if first.is_ascii_digit() => number_len(bytes),
        b'.' if bytes.get(1).is_some_and(u8::is_ascii_digit) => number_len(bytes),
        b'?' | b':' | b'@' | b'$' | b'#' => 1 + bytes[1..].iter().take_while(|byte| is_of_word(**byte)).count(),
        _ if is_of_word(first) => run(is_of_word),
        _ => 1,
    })
}

/// Returns the length of a quoted text. A doubled quote is one within the text.
fn quoted_len(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while let Some(end) = bytes[at..].iter().position(|byte| *byte == quote) {
        at += end + 1;
        if bytes.get(at) != Some(&quote) {
            return at;
        }
        at += 1;
    }
    bytes.len()
}

fn number_len(bytes: &[u8]) -> usize {
    let is_hexadecimal = bytes.starts_with(b"0x") || bytes.starts_with(b"0X");
    let mut len = 0;
    while let Some(byte) = bytes.get(len) {
        let is_sign_of_exponent =
            matches!(byte, b'+' | b'-') && matches!(bytes[..len].last(), Some(b'e' | b'E')) && !is_hexadecimal;
        if !(byte.is_ascii_alphanumeric() || *byte == b'.' || *byte == b'_' || is_sign_of_exponent) {
            break;
        }
        len += 1;
    }
    len
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_kind_is_found_behind_comments() {
        for (sql, is_read_only, expected) in [
            ("SELECT 1", true, StatementKind::Read),
            ("WITH a AS (SELECT 1) DELETE FROM t", false, StatementKind::Write),
            ("-- name: get\n/* a */ ;\tselect 1", true, StatementKind::Read),
            ("begin immediate", false, StatementKind::Transaction),
            (" ;\n begin", true, StatementKind::Transaction),
            ("END", true, StatementKind::Transaction),
            ("ROLLBACK TO a", true, StatementKind::Transaction),
            ("\u{feff}Savepoint a", true, StatementKind::Transaction),
            ("release a", true, StatementKind::Transaction),
            ("PRAGMA user_version", true, StatementKind::Other),
            ("CREATE TABLE t (a)", false, StatementKind::Write),
            ("-- only a comment", true, StatementKind::Read),
            ("/* no end", true, StatementKind::Read),
        ] {
            assert_eq!(kind(sql, is_read_only), expected, "{sql}");
        }
    }

    #[test]
    fn statements_of_virtual_tables_are_found() {
        assert!(is_of_virtual_table("SELECT k, v FROM 'main'.'note_config'"));
        assert!(is_of_virtual_table("PRAGMA 'main'.data_version"));
        assert!(is_of_virtual_table("SELECT length(data) FROM 'main'.'place_node' WHERE nodeno = 1"));
        for sql in [
            "SELECT * FROM note_config",
            "PRAGMA data_version",
            "PRAGMA 'main'.user_version",
            "SELECT * FROM 'main'.'note'",
            "SELECT '.' || '_config'",
            "SELECT 'a_config'",
        ] {
            assert!(!is_of_virtual_table(sql), "{sql}");
        }
    }

    #[test]
    fn statements_that_change_rows_are_told_from_those_that_change_the_schema() {
        let changes = |sql| changes_rows(sql, kind(sql, false));
        for sql in [
            "INSERT INTO t VALUES (1)",
            "replace into t values (1)",
            "UPDATE t SET a = 1",
            "WITH a AS (SELECT 1) DELETE FROM t",
        ] {
            assert!(changes(sql), "{sql}");
        }
        for sql in ["CREATE TABLE t (a)", "DROP TABLE t", "COMMIT", "PRAGMA user_version = 1"] {
            assert!(!changes(sql), "{sql}");
        }
        assert!(!changes_rows("WITH a AS (SELECT 1) SELECT * FROM a", StatementKind::Read));
    }

    #[test]
    fn values_are_replaced_and_names_are_not() {
        for (sql, expected) in [
            ("SELECT * FROM t WHERE a = 1 AND b='it''s' ", "SELECT * FROM t WHERE a = ? AND b=?"),
            ("SELECT x'00ff', X'', 1.5e-3, .5, 0x1F", "SELECT ?, ?, ?, ?, ?"),
            ("SELECT \"a\"\"1\", [b 2], `c3`, t4.c5", "SELECT \"a\"\"1\", [b 2], `c3`, t4.c5"),
            ("SELECT ?1, :name, @b2, $c", "SELECT ?1, :name, @b2, $c"),
            ("SELECT  1 -- it's one\n\t+ /* two 2 */ 2", "SELECT ? + ?"),
            ("SELECT 1e+5-3", "SELECT ?-?"),
            ("SELECT 'no end", "SELECT ?"),
            ("SELECT x, X + 1 FROM t WHERE y = 'a'", "SELECT x, X + ? FROM t WHERE y = ?"),
            ("SELECT a_1, b$2, _3 FROM t", "SELECT a_1, b$2, _3 FROM t"),
            ("SELECT 0xE+1, 0X1e-2, 1E-2, 1_000.5e1_0", "SELECT ?+?, ?-?, ?, ?"),
            ("SELECT 6/2-a.b*-.5", "SELECT ?/?-a.b*?"),
            ("SELECT /*/ 1 */ 2 /**/", "SELECT ?"),
            ("SELECT 'Zürich' AS straße1", "SELECT ? AS straße1"),
        ] {
            assert_eq!(without_values(sql), expected, "{sql}");
        }
    }

    #[test]
    fn texts_that_differ_in_values_have_one_hash() {
        let hash = hash_without_values;
        assert_eq!(hash("SELECT a FROM t WHERE b = 1"), hash("SELECT  a\n\tFROM t WHERE b = 'tea'"));
        assert_ne!(hash("SELECT a FROM t"), hash("SELECT b FROM t"));
        assert_ne!(hash("SELECT 1, 2"), hash("SELECT 1"));
        assert_eq!(hash("SELECT a FROM t WHERE b = -5"), hash("SELECT a FROM t WHERE b = 5"));
        assert_eq!(hash("SELECT a FROM t LIMIT -1"), hash("SELECT a FROM t LIMIT 10"));
        assert_ne!(hash("SELECT a"), hash("SELECTa"));
    }

    #[test]
    fn a_statement_of_a_script_stands_alone() {
        assert_eq!(alone(" ;\n; SELECT ';' ;\n"), "SELECT ';'");
        assert_eq!(alone("-- all\nSELECT 1"), "-- all\nSELECT 1");
        assert_eq!(alone("\u{feff};/* none; */ -- at all\n ;; -- a;\nSELECT 1"), "-- a;\nSELECT 1");
        assert_eq!(alone("/* none */"), "/* none */");
    }

    #[test]
    fn one_line_keeps_literals() {
        assert_eq!(in_one_line("\n  SELECT 'a\n b',\n\t 1 -- end\n"), "SELECT 'a\n b', 1");
        let table = "CREATE TABLE t (\n  a -- one */ or\ttwo\n, /* a\n note */ b DEFAULT ' \n')";
        let line = "CREATE TABLE t ( a /* one * / or two */ , /* a note */ b DEFAULT ' \n')";
        assert_eq!(in_one_line_with_comments(table), line);
        assert_eq!(in_one_line_with_comments(line), line);
    }

    #[test]
    fn the_table_of_an_alias_is_found_if_there_is_only_one() {
        let table = |sql: &str, alias, times| {
            let is_table = |name: &String| ["item", "change", "two words", "]"].contains(&&*name.to_lowercase());
            table_of_alias(sql, alias, times, is_table)
        };
        for (sql, alias, expected) in [
            ("SELECT i.name FROM item i WHERE i.id = 1", "i", "item"),
            ("SELECT * FROM item AS i JOIN change c ON c.item = i.id", "I", "item"),
            ("SELECT * FROM item AS i JOIN change c ON c.item = i.id", "c", "change"),
            ("SELECT * FROM main.item AS \"a b\", change", "a b", "item"),
            ("UPDATE item AS i SET name = 1 WHERE i.id = 2", "i", "item"),
            ("SELECT * FROM [two words] w", "w", "two words"),
            ("SELECT * FROM item change JOIN change item", "item", "change"),
            ("SELECT * FROM item AS change JOIN change AS item", "change", "item"),
        ] {
            assert_eq!(table(sql, alias, 1).as_deref(), Some(expected), "{sql}");
        }
        for (sql, alias) in [
            ("SELECT * FROM item", "item"),
            ("SELECT * FROM item x UNION ALL SELECT * FROM change x", "x"),
            ("SELECT * FROM (SELECT DISTINCT price FROM item i) i", "i"),
            ("WITH i AS MATERIALIZED (SELECT price FROM item i) SELECT * FROM i", "i"),
            ("SELECT * FROM json_each('[1]') j, item", "j"),
            ("SELECT id AS i, name AS x FROM item", "i"),
            ("SELECT * FROM other i", "i"),
            ("", "i"),
        ] {
            assert_eq!(table(sql, alias, 1), None, "{sql}");
        }
        let of_view = "SELECT * FROM v JOIN item i";
        assert_eq!((table(of_view, "i", 1).as_deref(), table(of_view, "i", 2)), (Some("item"), None));
        let twice = "SELECT * FROM item i WHERE id > (SELECT avg(id) FROM ITEM i)";
        assert_eq!((table(twice, "i", 2).as_deref(), table(twice, "i", 3)), (Some("item"), None));
    }

    #[test]
    fn a_long_literal_is_cut_between_two_characters() {
        assert_eq!(with_short_literals("SELECT '12345678'", 10), "SELECT '12345678'");
        let long = format!("SELECT '{}', 'b'", "ü".repeat(600));
        let short = with_short_literals(&long, 1024);
        assert_eq!(short, format!("SELECT '{}…'/* 1202 bytes of SQL */, 'b'", "ü".repeat(511)));
        assert_eq!(with_short_literals("SELECT 'a'", 1024), "SELECT 'a'");
    }

    #[test]
    fn a_literal_that_was_cut_is_a_literal() {
        for limit in 0..20 {
            for (sql, literals) in [("'it''s''''long', x'0011223344', 'b'", 3), ("X'001122', '''', 'a'", 3)] {
                let short = with_short_literals(sql, limit);
                assert_eq!(
                    tokens(&short).filter(|token| matches!(token, Token::Literal(_))).count(),
                    literals,
                    "{short}"
                );
                let blob = tokens(&short).find_map(|token| match token {
                    Token::Literal(text) if text.starts_with(['x', 'X']) => Some(text.len()),
                    _ => None,
                });
                assert_eq!(blob.map(|len| len % 2), Some(1), "whole bytes: {short}");
            }
        }
        assert_eq!(with_short_literals("SELECT x'001122'", 6), "SELECT x'0011'/* … 9 bytes of SQL */");
        for (long, short) in [("SELECT 'long'", "SELECT 'a'"), ("VALUES (x'001122', 1)", "VALUES (x'00', 1)")] {
            let cut = with_short_literals(long, 4);
            assert_ne!(cut, long);
            assert_eq!(without_values(&cut), without_values(short));
            assert_eq!(hash_without_values(&cut), hash_without_values(short));
        }
        assert_eq!(with_short_literals("SELECT 'it''s'", 4), "SELECT 'it…'/* 7 bytes of SQL */");
        assert_eq!(with_short_literals("SELECT 'it''s'", 5), "SELECT 'it''…'/* 7 bytes of SQL */");
    }

    #[test]
    fn a_long_text_without_long_literals_is_kept_as_it_is() {
        let sql = "SELECT a, -- the name\n\t1.5,  'tea' /* and */\nFROM t";
        assert_eq!(with_short_literals(sql, 5), sql);
    }

    proptest! {
        #[test]
        fn tokens_make_up_any_text(sql in r#"[-'"`\[\]xX/*a1.e+?:$ \n\PC]{0,30}"#) {
            let mut rest = &*sql;
            while let Some(len) = token_len(rest) {
                prop_assert!(len > 0 && rest.is_char_boundary(len));
                rest = &rest[len..];
            }
            without_values(&sql);
            with_short_literals(&sql, 2);
        }
    }
}
