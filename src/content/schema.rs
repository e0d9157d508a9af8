//! The identity of a schema, and a check whether a commit has changed it.
//!
//! SQLite increments the schema cookie with each schema change that it makes itself. It does not for an edit of
//! `sqlite_schema` under `PRAGMA writable_schema`, nor for an edit of the query planner's statistics, which every
//! connection reads with the schema. So the check compares the pages that hold both. The layout is that of SQLite's
//! "Database File Format".

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::btree::{HEADER, INTERIOR, LEAF, Layout, u16_at, u32_at, varint};
use super::pages::Pages;

/// The identity of a schema, with its statistics. Two images with the same identity have the same schema and statistics;
/// two images with different identities may differ.
#[derive(Clone)]
pub(crate) struct Schema(Arc<OnceLock<Option<Place>>>);

/// The place of a schema in an image.
struct Place {
    layout: Layout,
    /// The numbers of the pages that hold `sqlite_schema` and the tables of statistics.
    pages: Vec<u32>,
    has_virtual_tables: bool,
}

impl Schema {
    pub(crate) fn new() -> Schema {
        Schema(Arc::new(OnceLock::new()))
    }

    pub(crate) fn ptr_eq(&self, other: &Schema) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns whether `after` has the schema and the statistics of `before`, whose schema this is. Returns `false` if the
    /// pages can't be read.
    pub(crate) fn is_unchanged(&self, before: &Pages, after: &Pages) -> bool {
        let Some(Place { layout, pages, .. }) = self.place(before) else { return false };
        let same = |range: Range<usize>| before.same_bytes(after, range.start, range.len());
        HEADER_FIELDS.into_iter().all(same) && pages.iter().all(|page| same(layout.content(*page)))
    }

    /// Returns whether there are virtual tables in `pages`, whose schema this is. Returns `true` if the pages can't be read.
    ///
    /// The in-memory state of such a table lasts as long as a connection keeps the schema. FTS5 detects stale settings by
    /// its own numbers, which repeat after a restore.
    pub(crate) fn has_virtual_tables(&self, pages: &Pages) -> bool {
        self.place(pages).is_none_or(|place| place.has_virtual_tables)
    }

    fn place(&self, pages: &Pages) -> Option<&Place> {
        self.0.get_or_init(|| Place::of(pages)).as_ref()
    }
}

/// The header fields that a connection reads with the schema: page size and reserved bytes; schema format, default cache
/// size and text encoding. (The bytes between them change only with the schema.)
const HEADER_FIELDS: [Range<usize>; 2] = [16..21, 44..60];

impl Place {
    /// Returns `None` if the pages that locate the schema can't be read.
    fn of(pages: &Pages) -> Option<Place> {
        let layout = Layout::of(pages)?;
        let mut walk = Walk { pages, layout, found: BTreeSet::new() };
        let (mut statistics, mut has_virtual_tables) = (Vec::new(), false);
        walk.table(1, |record| {
            match content_of(record)? {
                Content::Statistics(root) => statistics.push(root),
                Content::Virtual => has_virtual_tables = true,
                Content::Other => {}
            }
            Some(())
        })?;
        statistics.into_iter().try_for_each(|root| walk.table(root, |_| Some(())))?;
        Some(Place { layout, pages: walk.found.into_iter().collect(), has_virtual_tables })
    }
}

struct Walk<'a> {
    pages: &'a Pages,
    layout: Layout,
    /// The numbers of all pages so far. Invariant: no page is visited twice, so a walk ends.
    found: BTreeSet<u32>,
}

impl Walk<'_> {
    /// Walks through the table with this root page, and passes the record of each row to `each`.
    fn table(&mut self, root: u32, mut each: impl FnMut(&[u8]) -> Option<()>) -> Option<()> {
        let mut left = vec![root];
        while let Some(number) = left.pop() {
            let page = self.page(number)?;
            let header = if number == 1 { HEADER } else { 0 };
            let cells = usize::from(u16_at(&page, header + 3)?);
            match *page.get(header)? {
                INTERIOR => {
                    left.push(u32_at(&page, header + 8)?);
                    for cell in 0..cells {
                        let at = u16_at(&page, header + 12 + 2 * cell)?;
                        left.push(u32_at(&page, at.into())?);
                    }
                }
                LEAF => {
                    for cell in 0..cells {
                        let at = u16_at(&page, header + 8 + 2 * cell)?;
                        each(&self.record(&page, at.into())?)?;
                    }
                }
                _ => return None,
            }
        }
        Some(())
    }

    fn page(&mut self, number: u32) -> Option<Vec<u8>> {
        if number == 0 || !self.found.insert(number) {
            return None;
        }
        self.layout.page(self.pages, number)
    }

    /// Returns the record of a leaf's cell, including the part on overflow pages.
    fn record(&mut self, page: &[u8], at: usize) -> Option<Vec<u8>> {
        let (size, at) = varint(page, at)?;
        let (_rowid, at) = varint(page, at)?;
        let size = usize::try_from(size).ok()?;
        let local = self.layout.local(size);
        let mut record = page.get(at..at + local)?.to_vec();
        let mut next = if local < size { u32_at(page, at + local)? } else { 0 };
        while record.len() < size {
            let page = self.page(next)?;
            let part = (size - record.len()).min(self.layout.usable - 4);
            record.extend_from_slice(&page[4..4 + part]);
            next = u32_at(&page, 0)?;
        }
        Some(record)
    }
}

/// The kind of object that a record of `sqlite_schema` describes.
enum Content {
    /// A table of statistics, with this root page.
    Statistics(u32),
    /// A virtual table, which has no root page.
    Virtual,
    Other,
}

/// Returns the kind of object, or `None` if the record is malformed.
fn content_of(record: &[u8]) -> Option<Content> {
    let (header, mut at) = varint(record, 0)?;
    let mut content = usize::try_from(header).ok()?;
    let mut columns = [(0, 0..0), (0, 0..0), (0, 0..0), (0, 0..0)]; // type, name, tbl_name, rootpage
    for column in &mut columns {
        let (serial_type, next) = varint(record, at)?;
        let end = content.checked_add(length(serial_type)?)?;
        *column = (serial_type, content..end);
        (at, content) = (next, end);
    }
    let [(_, object), (_, name), _, (kind, root)] = columns;
    let (object, name) = (record.get(object)?, record.get(name)?);
    let root = record.get(root)?.iter().fold(u64::from(kind == 9), |number, byte| number << 8 | u64::from(*byte));
    Some(match u32::try_from(root) {
        Ok(0) if starts_with(object, b"table") => Content::Virtual,
        Ok(root) if root != 0 && starts_with(name, b"sqlite_stat") => Content::Statistics(root),
        _ => Content::Other,
    })
}

/// Also works for UTF-16, where a zero byte follows or precedes an ASCII letter.
fn starts_with(text: &[u8], prefix: &[u8]) -> bool {
    let letters = text.iter().filter(|byte| **byte != 0).map(u8::to_ascii_lowercase);
    letters.take(prefix.len()).eq(prefix.iter().copied())
}

/// Returns the length in bytes of a value of this type ("Record Format"), or `None` for reserved types.
fn length(serial_type: u64) -> Option<usize> {
    match serial_type {
        0 | 8 | 9 => Some(0),
        1..=4 => Some(serial_type as usize),
        5 => Some(6),
        6 | 7 => Some(8),
        10 | 11 => None,
        _ => usize::try_from((serial_type - 12) / 2).ok(),
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::Engine;
    use crate::content::Snapshot;

    const LONG: usize = 30_000;

    /// Returns a script that creates statistics and a schema of several levels, one statement of which overflows.
    fn script(settings: &str) -> String {
        let tables = (0..300).map(|table| {
            format!("CREATE TABLE table_{table} (a, b); CREATE INDEX index_{table} ON table_{table} (a);")
        });
        let long = format!("CREATE VIEW long AS SELECT '{}' AS a;", "x".repeat(LONG));
        let rows = (0..300).map(|table| format!("INSERT INTO table_{table} VALUES (1, 2), (2, 3);"));
        format!("{settings}; BEGIN; {}{long}{}COMMIT; ANALYZE", tables.collect::<String>(), rows.collect::<String>())
    }

    fn pages_by_sqlite(connection: &Connection) -> BTreeSet<u32> {
        let sql = "SELECT pageno FROM dbstat WHERE name = 'sqlite_schema' OR name LIKE 'sqlite\\_stat%' ESCAPE '\\'";
        let mut statement = connection.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    #[test]
    fn the_pages_of_a_schema_match_dbstat() {
        for settings in [
            "",
            "PRAGMA page_size = 512",
            "PRAGMA page_size = 65536",
            "PRAGMA encoding = 'UTF-16le'",
            "PRAGMA encoding = 'UTF-16be'; PRAGMA page_size = 1024",
            "PRAGMA auto_vacuum = FULL",
        ] {
            let engine = Engine::new();
            let connection = Connection::open(engine.uri()).unwrap();
            connection.execute_batch(&script(settings)).unwrap();
            let snapshot = engine.snapshot();
            let Place { pages, .. } = Place::of(snapshot.pages()).expect("the schema is well-formed");
            let expected = pages_by_sqlite(&connection);
            assert!(expected.len() > 2, "{settings}: {expected:?}");
            assert_eq!(pages.into_iter().collect::<BTreeSet<u32>>(), expected, "{settings}");
        }
    }

    #[test]
    fn virtual_tables_are_detected() {
        for settings in ["", "PRAGMA encoding = 'UTF-16le'", "PRAGMA encoding = 'UTF-16be'"] {
            let engine = Engine::new();
            let connection = Connection::open(engine.uri()).unwrap();
            let has_virtual_tables = || Schema::new().has_virtual_tables(engine.snapshot().pages());
            connection.execute_batch(&script(settings)).unwrap();
            assert!(!has_virtual_tables(), "{settings}");
            connection.execute_batch("CREATE VIRTUAL TABLE note USING fts5 (text)").unwrap();
            assert!(has_virtual_tables(), "{settings}");
        }
    }

    /// Returns whether `sql` leaves the schema of the database unchanged, according to its pages.
    fn is_unchanged_by(connection: &Connection, engine: &Engine, sql: &str) -> bool {
        let before = engine.snapshot();
        connection.execute_batch(sql).unwrap();
        Schema::new().is_unchanged(before.pages(), engine.snapshot().pages())
    }

    #[test]
    fn changes_of_the_schema_or_its_statistics_are_detected() {
        let engine = Engine::new();
        let connection = Connection::open(engine.uri()).unwrap();
        connection.execute_batch(&script("PRAGMA page_size = 1024")).unwrap();
        for (sql, is_unchanged) in [
            ("INSERT INTO table_7 VALUES (4, 5)", true),
            ("PRAGMA user_version = 7", true),
            ("UPDATE table_200 SET a = 9; DELETE FROM table_3", true),
            ("CREATE TABLE other (a)", false),
            ("UPDATE sqlite_stat1 SET stat = '9 9' WHERE tbl = 'table_150'", false),
            ("ANALYZE table_9", false),
            ("PRAGMA default_cache_size = 77", false),
            ("PRAGMA writable_schema = ON", true),
            ("UPDATE sqlite_schema SET sql = replace(sql, 'b)', 'c)') WHERE name = 'table_299'", false),
            ("UPDATE sqlite_schema SET sql = replace(sql, 'xxx', 'yyy') WHERE name = 'long'", false),
        ] {
            assert_eq!(is_unchanged_by(&connection, &engine, sql), is_unchanged, "{sql}");
        }
    }

    /// Tests a page that is its own child, and one wrong byte at many positions.
    #[test]
    fn malformed_pages_have_no_schema_and_cause_no_panic() {
        let engine = Engine::new();
        engine.connect().unwrap().execute_batch(&script("PRAGMA page_size = 512")).unwrap();
        let bytes = engine.snapshot().to_bytes();
        let schema = |bytes: Vec<u8>| {
            let pages = Pages::from_base(Arc::new(bytes.clone()), bytes.len());
            Schema::new().is_unchanged(&pages, &pages)
        };
        assert!(schema(bytes.clone()));
        for at in (100..bytes.len()).step_by(101) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0xff;
            schema(bytes);
        }
        let mut circular = bytes.clone();
        circular[HEADER + 8..HEADER + 12].copy_from_slice(&1u32.to_be_bytes()); // page 1 is its own last child
        assert!(!schema(circular));
        assert!(!schema(bytes[..90].to_vec()));
        assert!(
            !Schema::new().is_unchanged(Snapshot::empty().pages(), Snapshot::empty().pages()),
            "an empty database has no layout"
        );
    }

    #[test]
    fn a_record_that_overflows_is_read_to_its_end() {
        let engine = Engine::new();
        engine.connect().unwrap().execute_batch(&script("PRAGMA page_size = 512")).unwrap();
        let snapshot = engine.snapshot();
        let mut walk =
            Walk { pages: snapshot.pages(), layout: Layout::of(snapshot.pages()).unwrap(), found: BTreeSet::new() };
        let mut longest = Vec::new();
        let read = walk.table(1, |record| {
            if record.len() > longest.len() {
                longest = record.to_vec();
            }
            Some(())
        });
        assert!(read.is_some() && longest.len() > LONG);
        assert!(longest.ends_with(b"x' AS a"), "the record ends with its statement");
    }

    #[test]
    fn values_have_the_lengths_of_the_record_format() {
        let lengths = [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 20].map(length);
        let some = |length| Some(length);
        assert_eq!(lengths[..5], [0, 1, 4, 6, 8].map(some));
        assert_eq!(lengths[5..], [Some(8), Some(0), Some(0), None, None, Some(0), Some(0), Some(4)]);
    }
}
