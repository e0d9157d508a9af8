//! The rows that may differ between two images of a database. They are found by the pages that differ, so this takes time by
//! the size of the difference, not of the database.
//!
//! A page does not say to which table it belongs. But a search for the first key of a page of a table leads to that page
//! from the table's root, and from no other root. A page that is the same in both images may have come from another table, or
//! gone to one: then the page above it differs.

use std::collections::{BTreeMap, BTreeSet};

use super::btree::{HEADER, INTERIOR, LEAF, Layout, u16_at, u32_at, varint};
use super::pages::Pages;
use super::snapshot::Snapshot;

/// The pages that differ between two images.
pub(crate) struct Difference<'a> {
    sides: [Side<'a>; 2],
    numbers: BTreeSet<u32>,
}

/// What a table has on the pages that differ.
struct Claimed {
    /// The records of the rows, by their keys.
    rows: BTreeMap<i64, Vec<u8>>,
    /// The pages below interior ones.
    children: BTreeSet<u32>,
}

/// One of the two images.
struct Side<'a> {
    pages: &'a Pages,
    layout: Layout,
    /// The number of pages.
    count: u32,
    /// The pages that differ from the other image's, and of which no table is known.
    left: BTreeSet<u32>,
}

/// The types of the pages of an index, or of a table WITHOUT ROWID.
const INDEX: [u8; 2] = [0x02, 0x0a];

/// No tree has more levels: a page of a tree has at least two children.
const MAX_LEVELS: usize = 32;

impl<'a> Difference<'a> {
    /// Returns the pages that differ, or `None` if the images can't be compared by pages.
    pub(crate) fn between(before: &'a Snapshot, after: &'a Snapshot) -> Option<Difference<'a>> {
        let [one, other] = [before, after].map(|snapshot| Some((snapshot.pages(), Layout::of(snapshot.pages())?)));
        let ((one, layout), (other, other_layout)) = (one?, other?);
        let is_same_layout = layout.page_size == other_layout.page_size && layout.usable == other_layout.usable;
        if !is_same_layout || before.text_encoding() != after.text_encoding() {
            return None;
        }
        let pages_to = |end: usize| u32::try_from(end.div_ceil(layout.page_size)).ok();
        let mut numbers = BTreeSet::new();
        for bytes in one.differing(other) {
            numbers.extend(pages_to(bytes.start + 1)?..=pages_to(bytes.end)?);
        }
        numbers.retain(|page| {
            let range = (*page as usize - 1) * layout.page_size;
            !one.same_bytes(other, range, layout.page_size)
        });
        let side = |pages: &'a Pages| {
            let count = pages_to(pages.len())?;
            // A page that is no page of a tree begins with a page number then, and so with a zero.
            let is_of_tree = |page: &&u32| !is_special(pages, layout, **page);
            let left = numbers.range(..=count).filter(is_of_tree).copied().collect();
            (count < 1 << 24).then_some(Side { pages, layout, count, left })
        };
        Some(Difference { sides: [side(one)?, side(other)?], numbers })
    }

    /// Returns the keys of the rows that may differ in the table with this root page, and claims the table's pages. Returns `None` if
    /// the pages can't be read.
    pub(crate) fn rowids(&mut self, root: u32) -> Option<BTreeSet<i64>> {
        let [before, after] = &mut self.sides;
        let [mut old, mut new] = [before.claim(root)?, after.claim(root)?];
        // A page that is the same in both images may be in the table in one of them only.
        for child in old.children.difference(&new.children).filter(|child| !self.numbers.contains(child)) {
            before.read_tree(*child, &mut old.rows)?;
        }
        for child in new.children.difference(&old.children).filter(|child| !self.numbers.contains(child)) {
            after.read_tree(*child, &mut new.rows)?;
        }
        let differs = |rowid: &&i64| old.rows.get(rowid) != new.rows.get(rowid);
        Some(old.rows.keys().chain(new.rows.keys()).filter(differs).copied().collect())
    }

    /// Claims the pages of a table that exists with this root on one side only: 0 is before, 1 is after.
    pub(crate) fn pass_over(&mut self, side: usize, root: u32) -> Option<()> {
        self.sides.get_mut(side)?.claim(root).map(drop)
    }

    /// Returns whether pages are left that may be of an index, or of a table WITHOUT ROWID.
    pub(crate) fn has_index_pages(&self) -> bool {
        self.sides.iter().any(|side| side.left.iter().any(|page| side.has_type(*page, &INDEX)))
    }

    /// Returns whether pages are left that may hold the ends of long rows. (Then the page with the beginning of the row is the
    /// same in both images, and so the first page of the end that differs has the same number in both.) Returns `None` if the
    /// pages can't be read.
    pub(crate) fn has_ends_of_rows(&mut self) -> Option<bool> {
        self.sides[1].has_ends_of_rows()
    }
}

impl Side<'_> {
    fn page(&self, number: u32) -> Option<Vec<u8>> {
        self.layout.page(self.pages, number)
    }

    fn has_type(&self, number: u32, types: &[u8]) -> bool {
        let Some(before) = number.checked_sub(1) else { return false }; // a malformed page has any numbers
        let mut first = [0];
        let at = before as usize * self.layout.page_size + if number == 1 { HEADER } else { 0 };
        self.pages.read(at, &mut first);
        types.contains(&first[0])
    }

    /// Removes the pages of the table with this root from those that are left. Returns what they have.
    fn claim(&mut self, root: u32) -> Option<Claimed> {
        let mut claimed = Vec::new();
        for number in &self.left {
            if self.is_of_table(*number, root)? {
                claimed.push(*number);
            }
        }
        let (mut rows, mut children) = (BTreeMap::new(), BTreeSet::new());
        for number in claimed {
            self.left.remove(&number);
            let page = self.page(number)?;
            match *page.first()? {
                LEAF => self.read_rows(&page, &mut rows)?,
                INTERIOR => children.extend(children_of(&page)?),
                _ => return None,
            }
        }
        Some(Claimed { rows, children })
    }

    /// Adds the rows below a page.
    fn read_tree(&mut self, number: u32, rows: &mut BTreeMap<i64, Vec<u8>>) -> Option<()> {
        let mut ahead = vec![number];
        for _ in 0..self.count {
            let Some(number) = ahead.pop() else { return Some(()) };
            let page = self.page(number)?;
            match *page.first()? {
                LEAF => self.read_rows(&page, rows)?,
                INTERIOR => ahead.extend(children_of(&page)?),
                _ => return None,
            }
        }
        None // pages are in a circle
    }

    fn is_of_table(&self, number: u32, root: u32) -> Option<bool> {
        if number == root {
            return Some(true);
        }
        if !self.has_type(number, &[INTERIOR, LEAF]) {
            return Some(false);
        }
        let page = self.page(number)?;
        // What is not a page of a tree may have any content.
        match first_key(&page) {
            Some(key) => self.leads_to(root, key, number),
            None => Some(false),
        }
    }

    /// Returns whether the search for a key in the table with this root passes a page.
    fn leads_to(&self, root: u32, key: i64, number: u32) -> Option<bool> {
        let mut at = root;
        for _ in 0..MAX_LEVELS {
            if at == number {
                return Some(true);
            }
            let page = self.page(at)?;
            match *page.first()? {
                INTERIOR => at = child(&page, key)?,
                LEAF => return Some(false),
                _ => return None,
            }
        }
        None
    }

    /// Adds the rows of a leaf: their records by their keys.
    fn read_rows(&mut self, page: &[u8], rows: &mut BTreeMap<i64, Vec<u8>>) -> Option<()> {
        for cell in 0..usize::from(u16_at(page, 3)?) {
            let at = u16_at(page, 8 + 2 * cell)?;
            let (size, at) = varint(page, at.into())?;
            let (key, at) = varint(page, at)?;
            let size = usize::try_from(size).ok()?;
            let local = self.layout.local(size);
            let mut record = page.get(at..at + local)?.to_vec();
            let mut next = if local < size { u32_at(page, at + local)? } else { 0 };
            while record.len() < size {
                let page = self.page(next)?;
                self.left.remove(&next);
                let part = (size - record.len()).min(self.layout.usable - 4);
                record.extend_from_slice(page.get(4..4 + part)?);
                next = u32_at(&page, 0)?;
            }
            rows.insert(key.cast_signed(), record);
        }
        Some(())
    }

    fn has_ends_of_rows(&mut self) -> Option<bool> {
        let has_end = |side: &Self| side.left.iter().any(|page| side.has_type(*page, &[0]));
        if !has_end(self) {
            return Some(false);
        }
        self.leave_out_free_pages()?;
        Some(has_end(self))
    }

    /// Removes the pages of the list of free pages from those that are left ("The Freelist").
    fn leave_out_free_pages(&mut self) -> Option<()> {
        let mut trunk = u32_at(&self.page(1)?, 32)?;
        for _ in 0..self.count {
            if trunk == 0 {
                return Some(());
            }
            let page = self.page(trunk)?;
            self.left.remove(&trunk);
            for leaf in 0..u32_at(&page, 4)? as usize {
                self.left.remove(&u32_at(&page, 8 + 4 * leaf)?);
            }
            trunk = u32_at(&page, 0)?;
        }
        None // the list is a circle
    }
}

/// Returns whether the page is the one at the bytes of locks, or has only pointers to the parents of others (of a database
/// with automatic vacuum; "Pointer Map or Ptrmap Pages").
fn is_special(pages: &Pages, layout: Layout, number: u32) -> bool {
    const LOCKS: usize = 0x4000_0000;
    let mut largest_root = [0; 4];
    pages.read(52, &mut largest_root);
    let entries = (layout.usable / 5) as u32;
    let is_pointer_map = largest_root != [0; 4] && number >= 2 && (number - 2).is_multiple_of(entries + 1);
    is_pointer_map || (number as usize - 1) * layout.page_size == LOCKS
}

/// Returns the first key on a page of a table.
fn first_key(page: &[u8]) -> Option<i64> {
    if u16_at(page, 3)? == 0 {
        return None;
    }
    let key = match *page.first()? {
        INTERIOR => varint(page, usize::from(u16_at(page, 12)?) + 4)?.0,
        _ => {
            let (_size, at) = varint(page, u16_at(page, 8)?.into())?;
            varint(page, at)?.0
        }
    };
    Some(key.cast_signed())
}

fn children_of(page: &[u8]) -> Option<Vec<u32>> {
    let cells = (0..usize::from(u16_at(page, 3)?)).map(|cell| u32_at(page, u16_at(page, 12 + 2 * cell)?.into()));
    cells.chain([u32_at(page, 8)]).collect()
}

/// Returns the child of an interior page below which a key is.
fn child(page: &[u8], key: i64) -> Option<u32> {
    let (mut low, mut high) = (0, usize::from(u16_at(page, 3)?));
    let last = u32_at(page, 8)?;
    let cell = |number: usize| -> Option<(u32, i64)> {
        let at = usize::from(u16_at(page, 12 + 2 * number)?);
        Some((u32_at(page, at)?, varint(page, at + 4)?.0.cast_signed()))
    };
    let cells = high;
    while low < high {
        let middle = usize::midpoint(low, high);
        if key <= cell(middle)?.1 { high = middle } else { low = middle + 1 }
    }
    if low == cells { Some(last) } else { Some(cell(low)?.0) }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::Engine;

    /// In memory, also where engines are in files: pages there have one size.
    fn in_memory() -> Engine {
        Engine::for_reading(&Snapshot::empty(), None)
    }

    const FILL: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT); CREATE INDEX i ON t (a);
        CREATE TABLE long (id INTEGER PRIMARY KEY, a TEXT); CREATE TABLE keyed (k PRIMARY KEY) WITHOUT ROWID;
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
            INSERT INTO t SELECT i, 'text ' || i FROM n;
        INSERT INTO long VALUES (1, printf('%.*c', 20000, 'x')), (2, 'short'); INSERT INTO keyed VALUES (1), (2)";

    /// Returns what the pages tell of a script: the rows of `t` and of `long` that differ, and whether there may be more.
    fn told(settings: &str, script: &str) -> ([Vec<i64>; 2], bool, bool) {
        let engine = in_memory();
        let connection = engine.connect().unwrap();
        connection.execute_batch(&format!("{settings}; {FILL}")).unwrap();
        let root = |name: &str| -> u32 {
            connection
                .query_row("SELECT rootpage FROM sqlite_schema WHERE name = ?1", [name], |row| row.get(0))
                .unwrap()
        };
        let roots = ["t", "long"].map(root);
        let before = engine.snapshot();
        connection.execute_batch(script).unwrap();
        let after = engine.snapshot();
        let mut difference = Difference::between(&before, &after).unwrap();
        let rows = roots.map(|root| difference.rowids(root).unwrap().into_iter().collect());
        let has_ends = difference.has_ends_of_rows().unwrap();
        (rows, difference.has_index_pages(), has_ends)
    }

    /// The rows are in other pages, pages are above other pages, or none are left.
    #[test]
    fn the_pages_tell_the_rows_of_trees_that_have_grown_and_shrunk() {
        for settings in ["", "PRAGMA page_size = 512", "PRAGMA auto_vacuum = FULL; PRAGMA page_size = 1024"] {
            let told = |script| told(settings, script);
            let rows = |range: std::ops::RangeInclusive<i64>| range.collect::<Vec<i64>>();
            assert_eq!(told("DELETE FROM t WHERE id > 3000").0, [rows(3001..=20000), vec![]], "{settings}");
            assert_eq!(told("DELETE FROM t WHERE id BETWEEN 11 AND 19000").0, [rows(11..=19000), vec![]], "{settings}");
            assert_eq!(told("DELETE FROM t").0, [rows(1..=20000), vec![]], "{settings}");
            let more = "WITH RECURSIVE n (i) AS (SELECT 20001 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
                INSERT INTO t SELECT i, 'text ' || i FROM n";
            assert_eq!(told(more).0, [rows(20001..=30000), vec![]], "{settings}");
            let longer = "UPDATE t SET a = printf('%.*c', 300, 'x') WHERE id BETWEEN 5000 AND 5100";
            assert_eq!(told(longer).0, [rows(5000..=5100), vec![]], "{settings}");
            // The pages of the row are free, and have other content than before.
            let freed = "UPDATE long SET a = replace(a, 'x', 'y') WHERE id = 1; DELETE FROM long WHERE id = 1";
            assert_eq!(told(freed), ([vec![], vec![1]], false, false), "{settings}");
        }
    }

    #[test]
    fn pages_that_are_of_no_tree_are_known() {
        let mut pages = Pages::default();
        let special = |pages: &Pages, page_size: usize, usable: usize| -> Vec<u32> {
            (1..=20_000).filter(|number| is_special(pages, Layout { page_size, usable }, *number)).collect()
        };
        pages.write(0, &[0; 512]);
        assert_eq!(special(&pages, 512, 512), [0; 0]);
        assert_eq!(special(&pages, 65_536, 65_536), [16_385], "the page with the byte 2^30");
        pages.write(52, &[0, 0, 0, 7]); // automatic vacuum
        let of_512: Vec<u32> = (2..=20_000).step_by(103).collect(); // 102 entries of 5 bytes, and the next page
        assert_eq!(special(&pages, 512, 512), of_512);
        assert_eq!(special(&pages, 65_536, 65_536), [2, 13_110, 16_385]);
    }

    #[test]
    fn a_list_of_free_pages_that_is_a_circle_has_no_end() {
        let engine = in_memory();
        let connection = engine.connect().unwrap();
        connection.execute_batch(FILL).unwrap();
        let before = engine.snapshot();
        connection
            .execute_batch("UPDATE long SET a = replace(a, 'x', 'y') WHERE id = 1; DELETE FROM long WHERE id = 1")
            .unwrap();
        let mut bytes = engine.snapshot().to_bytes();
        let trunk: [u8; 4] = bytes[32..36].try_into().unwrap();
        let at = (u32::from_be_bytes(trunk) as usize - 1) * 4096;
        bytes[at..at + 4].copy_from_slice(&trunk);
        let after = Snapshot::from_bytes(bytes).unwrap();
        assert_eq!(Difference::between(&before, &after).unwrap().has_ends_of_rows(), None);
    }

    #[test]
    fn children_that_are_in_a_circle_have_no_end() {
        let engine = in_memory();
        let connection = engine.connect().unwrap();
        connection.execute_batch(&format!("PRAGMA page_size = 512; {FILL}")).unwrap();
        let before = engine.snapshot();
        let mut difference = Difference::between(&before, &before).unwrap();
        let side = &mut difference.sides[0];
        let pages = (1..=side.count).filter(|number| side.has_type(*number, &[INTERIOR])).collect::<Vec<_>>();
        let mut bytes = before.to_bytes();
        let (one, other) = (pages[1], pages[2]);
        for (page, child) in [(one, other), (other, one)] {
            let at = (page as usize - 1) * 512;
            bytes[at + 8..at + 12].copy_from_slice(&child.to_be_bytes());
        }
        let circle = Snapshot::from_bytes(bytes).unwrap();
        let mut difference = Difference::between(&circle, &circle).unwrap();
        assert_eq!(difference.sides[0].read_tree(one, &mut BTreeMap::new()), None);
    }

    #[test]
    fn the_pages_tell_the_rows_and_whether_there_may_be_more() {
        for settings in ["", "PRAGMA page_size = 512", "PRAGMA auto_vacuum = FULL; PRAGMA page_size = 1024"] {
            let told = |script| told(settings, script);
            assert_eq!(told("UPDATE t SET a = 'new' WHERE id = 777"), ([vec![777], vec![]], true, false));
            assert_eq!(told("DELETE FROM long WHERE id = 2"), ([vec![], vec![2]], false, false));
            assert_eq!(told("INSERT INTO long VALUES (9, 'a')"), ([vec![], vec![9]], false, false));
            assert_eq!(told("INSERT INTO keyed VALUES (7)"), ([vec![], vec![]], true, false));
            assert_eq!(told("UPDATE long SET a = a || 'y'"), ([vec![], vec![1, 2]], false, false), "{settings}");
            assert_eq!(
                told("DELETE FROM long"),
                ([vec![], vec![1, 2]], false, false),
                "its pages are free: {settings}"
            );
            assert_eq!(told("PRAGMA user_version = 3"), ([vec![], vec![]], false, false));
            let overwritten = "UPDATE long SET a = substr(a, 1, 19000) || printf('%.*c', 1000, 'y') WHERE id = 1";
            assert_eq!(told(overwritten), ([vec![], vec![]], false, true), "{settings}");
        }
    }

    #[test]
    fn what_can_not_be_compared_by_pages_is_not() {
        let database = |settings: &str| {
            let engine = in_memory();
            engine.connect().unwrap().execute_batch(&format!("{settings}; CREATE TABLE t (a)")).unwrap();
            engine.snapshot()
        };
        let usual = database("");
        for settings in ["PRAGMA page_size = 512", "PRAGMA encoding = 'UTF-16le'"] {
            assert!(Difference::between(&usual, &database(settings)).is_none(), "{settings}");
        }
        assert!(Difference::between(&usual, &Snapshot::empty()).is_none());
        assert!(Difference::between(&usual, &database("")).is_some());
        let mut reserved = usual.to_bytes();
        reserved[20] = 8; // the bytes of each page that SQLite does not use
        assert!(Difference::between(&usual, &Snapshot::from_bytes(reserved).unwrap()).is_none());
    }

    #[test]
    fn no_page_has_the_number_0() {
        let engine = in_memory();
        let connection = engine.connect().unwrap();
        connection.execute_batch(FILL).unwrap();
        let root: u32 = connection.query_row("SELECT rootpage FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        let before = engine.snapshot();
        let mut bytes = before.to_bytes();
        let at = (root as usize - 1) * Layout::of(before.pages()).unwrap().page_size;
        assert_eq!(bytes[at], INTERIOR);
        bytes[at + 8..at + 12].fill(0); // the last child
        let after = Snapshot::from_bytes(bytes).unwrap();
        for (one, other) in [(&before, &after), (&after, &before)] {
            assert_eq!(Difference::between(one, other).unwrap().rowids(root), None);
        }
        assert!(before.diff(&after).is_err());
    }

    /// One wrong byte at many positions.
    #[test]
    fn malformed_pages_cause_no_panic_and_no_endless_loop() {
        let engine = in_memory();
        let connection = engine.connect().unwrap();
        connection
            .execute_batch(&format!("PRAGMA page_size = 512; {FILL}; DELETE FROM t WHERE id > 2000; VACUUM"))
            .unwrap();
        let before = engine.snapshot();
        connection
            .execute_batch("UPDATE t SET a = 'x'; UPDATE long SET a = a || a; DELETE FROM t WHERE id > 1000")
            .unwrap();
        let bytes = engine.snapshot().to_bytes();
        for at in (100..bytes.len()).step_by(1009) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0xff;
            let Ok(after) = Snapshot::from_bytes(bytes) else { continue };
            for (one, other) in [(&before, &after), (&after, &before)] {
                let Some(mut difference) = Difference::between(one, other) else { continue };
                (2..6).for_each(|root| drop(difference.rowids(root)));
                difference.has_ends_of_rows();
            }
        }
    }
}
