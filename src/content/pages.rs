//! The content of a database file as immutable pages that many images share.

use std::ops::Range;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

/// The size of a shared page in bytes. It is SQLite's default page size, so usually one SQLite page is one shared page.
/// Any other page size works too: a SQLite page is then a part of a shared page, or several of them.
const PAGE: usize = 4096;

/// The number of children of a node. It is small, because the first write below a shared node copies the node and
/// increments the reference count of every child.
const FAN_OUT: usize = 16;
const BITS: u32 = FAN_OUT.trailing_zeros();

type Page = [u8; PAGE];

/// Immutable bytes, in memory or in a mapped file.
pub(crate) type Base = Arc<dyn AsRef<[u8]> + Send + Sync + UnwindSafe + RefUnwindSafe>;

/// An image of a file. A clone takes constant time; a write copies only the pages that it changes.
#[derive(Clone, Default)]
pub(crate) struct Pages {
    /// Page 0. It is outside the tree, because every commit changes it (it holds SQLite's change counter).
    first: Option<Arc<Page>>,
    changed: Tree,
    /// The content of pages that are neither in `first` nor in `changed`: the first `base_len` of these bytes.
    base: Option<Base>,
    base_len: usize,
    len: usize,
}

impl Pages {
    /// Creates an image of the first `len` of these bytes, which are shared and not copied.
    pub(crate) fn from_base(base: Base, len: usize) -> Pages {
        Pages { base: Some(base), base_len: len, len, ..Pages::default() }
    }

    /// Returns the size of the image in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns whether both images share every page. If it is `false`, their content may still be equal.
    pub(crate) fn same(&self, other: &Pages) -> bool {
        let bases = (self.base.as_ref(), other.base.as_ref());
        self.len == other.len
            && self.base_len == other.base_len
            && same_or_none(bases.0, bases.1)
            && same_or_none(self.first.as_ref(), other.first.as_ref())
            && same_or_none(self.changed.root.as_ref(), other.changed.root.as_ref())
    }

    /// Returns whether both images hold the same bytes in this range. Skips pages that they share.
    pub(crate) fn same_bytes(&self, other: &Pages, offset: usize, len: usize) -> bool {
        let mut done = 0;
        while done < len {
            let (index, start) = split(offset + done);
            let count = (PAGE - start).min(len - done);
            let (ours, theirs) = (self.part(index, start, count), other.part(index, start, count));
            if !std::ptr::eq(ours, theirs) && ours != theirs {
                return false;
            }
            done += count;
        }
        true
    }

    /// Returns ranges of bytes outside of which both images hold the same, in order. Skips what they share.
    pub(crate) fn differing(&self, other: &Pages) -> Vec<Range<usize>> {
        let pages = self.len.max(other.len).div_ceil(PAGE);
        let mut indexes = Vec::new();
        if same_or_none(self.base.as_ref(), other.base.as_ref()) {
            indexes.push(0);
            self.changed.differing(&other.changed, &mut indexes);
            let bases = [self.base_len, other.base_len, self.len, other.len];
            let (shortest, longest) = (bases.iter().min().map_or(0, |len| len / PAGE), pages);
            if self.base_len != other.base_len || self.len != other.len {
                indexes.extend(shortest..longest);
            }
            indexes.sort_unstable();
            indexes.dedup();
        } else {
            indexes.extend(0..pages);
        }
        let is_other = |index: &usize| differ(self.part(*index, 0, PAGE), other.part(*index, 0, PAGE));
        indexes.into_iter().filter(is_other).map(|index| index * PAGE..(index + 1) * PAGE).collect()
    }

    /// Fills `buffer` from `offset` on, with zeros beyond the end. Returns how many of the bytes are within the image.
    pub(crate) fn read(&self, offset: usize, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        self.read_by_parts(offset, buffer.len(), |part| {
            buffer[done..done + part.len()].copy_from_slice(part);
            done += part.len();
        })
    }

    /// Like `read`, for a caller that copies the bytes itself: passes `len` bytes to `take`, in parts and in order.
    pub(crate) fn read_by_parts(&self, offset: usize, len: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut done = 0;
        while done < len {
            // An offset beyond the address space is beyond the end too.
            let (index, start) = split(offset.saturating_add(done));
            let count = (PAGE - start).min(len - done);
            let there = self.part(index, start, count);
            take(there);
            if there.len() < count {
                take(&[0; PAGE][there.len()..count]);
            }
            done += count;
        }
        len.min(self.len.saturating_sub(offset))
    }

    /// Writes `data` at `offset`. The image grows as needed, with zeros between its old end and `offset`.
    ///
    /// # Panics
    /// If the data would end beyond the address space.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset.checked_add(data.len()).expect("an image is no larger than the address space");
        let mut done = 0;
        while done < data.len() {
            let (index, start) = split(offset + done);
            let count = (PAGE - start).min(data.len() - done);
            self.write_page(index, start, &data[done..done + count]);
            done += count;
        }
        self.len = self.len.max(end);
    }

    /// Truncates the image to `len` bytes, or extends it with zeros.
    pub(crate) fn resize(&mut self, len: usize) {
        if len < self.len {
            self.base_len = self.base_len.min(len);
            self.changed.truncate(len.div_ceil(PAGE));
            if len == 0 {
                self.first = None;
            }
            let (last, end) = split(len);
            if self.page(last).is_some() {
                self.write_page(last, end, &[0; PAGE][end..]);
            }
        }
        self.len = len;
    }

    /// Returns a copy of the whole image.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read(0, &mut bytes);
        bytes
    }

    fn page(&self, index: usize) -> Option<&Page> {
        if index == 0 { self.first.as_deref() } else { self.changed.get(index) }
    }

    /// Returns the given bytes of a page, or fewer if the base ends before them.
    fn part(&self, index: usize, start: usize, count: usize) -> &[u8] {
        if let Some(page) = self.page(index) {
            return &page[start..start + count];
        }
        let from = (index * PAGE + start).min(self.base_len); // no overflow: the index comes from an offset
        let end = self.base_len.min(from.saturating_add(count));
        self.base.as_ref().map_or(&[], |base| &(**base).as_ref()[from..end])
    }

    fn write_page(&mut self, index: usize, start: usize, data: &[u8]) {
        if data.len() == PAGE {
            // Avoids `make_mut`, which would copy a shared page only for it to be overwritten.
            let slot = self.slot(index);
            match slot.as_mut().and_then(Arc::get_mut) {
                Some(page) => page.copy_from_slice(data),
                None => *slot = Some(new_page(data)),
            }
            return;
        }
        if self.page(index).is_none() {
            let mut page = [0; PAGE];
            let there = self.part(index, 0, PAGE);
            page[..there.len()].copy_from_slice(there);
            *self.slot(index) = Some(new_page(&page));
        }
        let page = self.slot(index).as_mut().expect("the page exists, or was created above");
        Arc::make_mut(page)[start..start + data.len()].copy_from_slice(data);
    }

    fn slot(&mut self, index: usize) -> &mut Option<Arc<Page>> {
        if index == 0 { &mut self.first } else { self.changed.slot(index) }
    }
}

/// Returns whether two parts of an image differ. The bytes after the end of one are zeros.
fn differ(one: &[u8], other: &[u8]) -> bool {
    let common = one.len().min(other.len());
    let is_written = |byte: &u8| *byte != 0;
    one[..common] != other[..common] || one[common..].iter().chain(&other[common..]).any(is_written)
}

fn split(offset: usize) -> (usize, usize) {
    (offset / PAGE, offset % PAGE)
}

fn new_page(data: &[u8]) -> Arc<Page> {
    Arc::<[u8]>::from(data).try_into().expect("a page is PAGE bytes long")
}

fn same_or_none<T: ?Sized>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// A sparse array of pages: a radix tree. Clones share its nodes until one of them changes a node.
#[derive(Clone, Default)]
struct Tree {
    root: Option<Arc<Node>>,
    /// The number of levels. The root covers `FAN_OUT.pow(height)` pages.
    height: u32,
}

#[derive(Clone)]
enum Node {
    Branch([Option<Arc<Node>>; FAN_OUT]),
    Leaf([Option<Arc<Page>>; FAN_OUT]),
}

impl Node {
    fn empty(level: u32) -> Arc<Node> {
        Arc::new(if level == 1 { Node::Leaf(Default::default()) } else { Node::Branch(Default::default()) })
    }
}

impl Tree {
    fn get(&self, index: usize) -> Option<&Page> {
        let mut node = self.root.as_deref()?;
        if index >> (BITS * self.height) != 0 {
            return None;
        }
        let mut level = self.height;
        loop {
            level -= 1;
            let child = index >> (BITS * level) & (FAN_OUT - 1);
            match node {
                Node::Branch(children) => node = children[child].as_deref()?,
                Node::Leaf(pages) => return pages[child].as_deref(),
            }
        }
    }

    /// Returns the slot of page `index`. First copies the shared nodes on the path to it.
    fn slot(&mut self, index: usize) -> &mut Option<Arc<Page>> {
        self.grow(index);
        let mut level = self.height;
        let mut node = Arc::make_mut(self.root.get_or_insert_with(|| Node::empty(level)));
        loop {
            level -= 1;
            let child = index >> (BITS * level) & (FAN_OUT - 1);
            match node {
                Node::Branch(children) => {
                    node = Arc::make_mut(children[child].get_or_insert_with(|| Node::empty(level)));
                }
                Node::Leaf(pages) => return &mut pages[child],
            }
        }
    }

    /// Adds the indexes of the pages that the trees don't share, in order.
    fn differing(&self, other: &Tree, indexes: &mut Vec<usize>) {
        let height = self.height.max(other.height);
        let [ours, theirs] = [self, other].map(|tree| tree.root.as_deref().map(|root| (root, tree.height)));
        differing(ours, theirs, height, 0, indexes);
    }

    fn grow(&mut self, index: usize) {
        self.height = self.height.max(1);
        while index >> (BITS * self.height) != 0 {
            self.height += 1;
            if let Some(root) = self.root.take() {
                let mut children: [Option<Arc<Node>>; FAN_OUT] = Default::default();
                children[0] = Some(root);
                self.root = Some(Arc::new(Node::Branch(children)));
            }
        }
    }

    /// Removes every page from `count` on.
    fn truncate(&mut self, count: usize) {
        if count == 0 {
            *self = Tree::default();
        } else if let Some(root) = &mut self.root {
            cut(root, self.height, count);
        }
    }
}

/// Adds the indexes of the pages that two nodes don't share. Each node may be of a lower level than `level`: then it is the first
/// child of the nodes above it. The nodes begin at page `start`.
fn differing(
    ours: Option<(&Node, u32)>,
    theirs: Option<(&Node, u32)>,
    level: u32,
    start: usize,
    indexes: &mut Vec<usize>,
) {
    let are_shared = match (ours, theirs) {
        (Some((ours, _)), Some((theirs, _))) => std::ptr::eq(ours, theirs),
        (None, None) => true,
        _ => false,
    };
    if are_shared {
        return;
    }
    let width = 1usize << (BITS * (level - 1));
    for number in 0..FAN_OUT {
        let child = |node| child(node, level, number);
        let start = start + number * width;
        match (ours.and_then(child), theirs.and_then(child)) {
            (Some(Child::Page(ours)), Some(Child::Page(theirs))) if std::ptr::eq(ours, theirs) => {}
            (None, None) => {}
            (Some(Child::Page(_)), _) | (_, Some(Child::Page(_))) => indexes.push(start),
            (ours, theirs) => {
                let (ours, theirs) = (ours.and_then(Child::node), theirs.and_then(Child::node));
                differing(ours, theirs, level - 1, start, indexes);
            }
        }
    }
}

enum Child<'a> {
    Node(&'a Node, u32),
    Page(&'a Page),
}

impl<'a> Child<'a> {
    fn node(self) -> Option<(&'a Node, u32)> {
        match self {
            Child::Node(node, level) => Some((node, level)),
            Child::Page(_) => None,
        }
    }
}

/// Returns a child of a node, which stands for one of `level`.
fn child((node, its_level): (&Node, u32), level: u32, number: usize) -> Option<Child<'_>> {
    match node {
        _ if its_level < level => (number == 0).then_some(Child::Node(node, its_level)),
        Node::Branch(children) => children[number].as_deref().map(|child| Child::Node(child, level - 1)),
        Node::Leaf(pages) => pages[number].as_deref().map(Child::Page),
    }
}

/// Removes the pages from `count` on below a node of this level.
fn cut(node: &mut Arc<Node>, level: u32, count: usize) {
    let width = 1usize << (BITS * (level - 1));
    if count >= width * FAN_OUT {
        return;
    }
    let (whole, rest) = (count / width, count % width);
    match Arc::make_mut(node) {
        Node::Leaf(pages) => pages[whole..].fill(None),
        Node::Branch(children) => {
            let gone = if rest == 0 { whole } else { whole + 1 };
            children[gone..].fill(None);
            if let Some(child) = children[whole].as_mut().filter(|_| rest > 0) {
                cut(child, level - 1, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write { offset: usize, len: usize, byte: u8 },
        Resize { len: usize },
        Clone,
        Back { to: usize },
    }

    #[test]
    fn a_range_that_begins_within_a_page_is_compared_beyond_it() {
        let pages = Pages::from_base(Arc::new(vec![7; 3 * PAGE]), 3 * PAGE);
        let mut other = pages.clone();
        other.write(PAGE + 10, &[8]);
        for start in [100, PAGE - 1] {
            assert!(!pages.same_bytes(&other, start, PAGE + 20));
        }
        assert!(pages.same_bytes(&other, 100, PAGE - 100 + 10));
    }

    fn step() -> impl Strategy<Value = Step> {
        // The offsets need up to three levels of nodes, and are often at the edges of pages.
        let offset = prop_oneof![0..3 * PAGE, 0..2_000_000usize, (0..300usize).prop_map(|page| page * PAGE)];
        let len = prop_oneof![Just(PAGE), Just(512), 1..3 * PAGE, Just(16 * PAGE)];
        let resized = prop_oneof![offset.clone(), Just(0)];
        prop_oneof![
            6 => (offset, len, any::<u8>()).prop_map(|(offset, len, byte)| Step::Write { offset, len, byte }),
            2 => resized.prop_map(|len| Step::Resize { len }),
            1 => Just(Step::Clone),
            1 => (0..4usize).prop_map(|to| Step::Back { to }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Every byte that differs is in one of the ranges. Each range has one.
        #[test]
        fn what_differs_is_found(
            base in 0..60_000usize,
            steps in prop::collection::vec(step(), 1..12),
            others in prop::collection::vec(step(), 0..12),
        ) {
            let apply = |pages: &mut Pages, steps: &[Step]| {
                for step in steps {
                    match step {
                        Step::Write { offset, len, byte } => pages.write(*offset, &vec![*byte; *len]),
                        Step::Resize { len } => pages.resize(*len),
                        Step::Clone | Step::Back { .. } => {}
                    }
                }
            };
            let mut one = Pages::from_base(Arc::new((0..base).map(|at| (at / 7) as u8).collect::<Vec<u8>>()), base);
            apply(&mut one, &steps);
            let mut other = one.clone();
            apply(&mut other, &others);
            let copy = Pages::from_base(Arc::new(other.to_vec()), other.len());
            for (one, other) in [(&one, &other), (&other, &one), (&one, &copy), (&copy, &one)] {
                let ranges = one.differing(other);
                let [one, other] = [one, other].map(|pages| {
                    let mut bytes = pages.to_vec();
                    bytes.resize(3_000_000, 0);
                    bytes
                });
                let mut rest = one.clone();
                for range in ranges {
                    prop_assert!(one[range.clone()] != other[range.clone()]);
                    rest[range.clone()].copy_from_slice(&other[range]);
                }
                prop_assert!(rest == other);
            }
        }

    }

    proptest! {
        /// Pages behave like a `Vec<u8>`, and their clones never change.
        #[test]
        fn pages_behave_like_a_vec(base in 0..60_000usize, steps in prop::collection::vec(step(), 1..25)) {
            let mut model: Vec<u8> = (0..base).map(|at| (at / 7) as u8).collect();
            let mut pages = Pages::from_base(Arc::new(model.clone()), base);
            let mut clones = vec![(pages.clone(), model.clone())];
            for step in steps {
                match step {
                    Step::Write { offset, len, byte } => {
                        let data: Vec<u8> = (0..len).map(|at| byte.wrapping_add(at as u8)).collect();
                        model.resize(model.len().max(offset + len), 0);
                        model[offset..offset + len].copy_from_slice(&data);
                        pages.write(offset, &data);
                    }
                    Step::Resize { len } => {
                        model.resize(len, 0);
                        pages.resize(len);
                    }
                    Step::Clone => clones.push((pages.clone(), model.clone())),
                    Step::Back { to } => (pages, model) = clones[to % clones.len()].clone(),
                }
                prop_assert_eq!(pages.len(), model.len());
                prop_assert!(pages.to_vec() == model);
            }
            for (pages, model) in clones {
                prop_assert!(pages.to_vec() == model, "a clone was changed");
            }
        }

        #[test]
        fn any_part_can_be_read(len in 0..20_000usize, offset in 0..25_000usize, count in 0..10_000usize) {
            let mut pages = Pages::default();
            let bytes: Vec<u8> = (0..len).map(|at| at as u8 | 1).collect();
            pages.write(0, &bytes);
            let mut buffer = vec![0xff; count];
            let there = pages.read(offset, &mut buffer);
            prop_assert_eq!(there, count.min(len.saturating_sub(offset)));
            prop_assert_eq!(&buffer[..there], bytes.get(offset..offset + there).unwrap_or(&[]));
            prop_assert!(buffer[there..].iter().all(|byte| *byte == 0), "zeros beyond the end");
        }
    }

    #[test]
    fn a_clone_shares_its_pages_until_it_is_written() {
        let mut one = Pages::default();
        one.write(0, &[1; 40 * PAGE]);
        let mut other = one.clone();
        assert!(one.same(&other));
        other.write(20 * PAGE, &[2; 10]);
        assert!(!one.same(&other));
        let shared = (1..40).filter(|&page| std::ptr::eq(one.page(page).unwrap(), other.page(page).unwrap())).count();
        assert_eq!(shared, 38, "all pages except the written one");
    }

    /// Page indexes at the edges of the tree's nodes, and next to them.
    const EDGES: [usize; 16] = [0, 1, 15, 16, 17, 32, 240, 255, 256, 257, 512, 4095, 4096, 4097, 8192, 65536];

    #[test]
    fn removed_pages_stay_removed_when_a_tree_grows() {
        let mut full = Tree::default();
        for index in EDGES {
            *full.slot(index) = Some(new_page(&[7; PAGE]));
        }
        for count in EDGES {
            let mut tree = full.clone();
            tree.truncate(count);
            tree.slot(EDGES[EDGES.len() - 1] + 1); // as large as before
            let left: Vec<usize> = EDGES.into_iter().filter(|&index| tree.get(index).is_some()).collect();
            let expected: Vec<usize> = EDGES.into_iter().filter(|&index| index < count).collect();
            assert_eq!(left, expected, "cut to {count} pages");
        }
        assert!(EDGES.into_iter().all(|index| full.get(index).is_some()), "a clone was cut");
    }

    #[test]
    fn a_truncated_image_grows_with_zeros() {
        const PAGES: usize = 300;
        let mut full = Pages::default();
        full.write(0, &[7; PAGES * PAGE]);
        let mut page = [0; PAGE];
        for count in (0..PAGES).filter(|count| count % 16 < 2) {
            for len in [count * PAGE, count * PAGE + 100] {
                let mut pages = full.clone();
                pages.resize(len);
                pages.resize(PAGES * PAGE);
                for index in count.saturating_sub(1)..PAGES {
                    pages.read(index * PAGE, &mut page);
                    let left = len.saturating_sub(index * PAGE).min(PAGE);
                    assert!(page[..left] == [7; PAGE][..left] && page[left..] == [0; PAGE][left..], "{len}: {index}");
                }
            }
        }
    }

    /// Where `usize` has 32 bits, such offsets are common.
    #[test]
    fn offsets_do_not_wrap_around_at_the_end_of_the_address_space() {
        let mut pages = Pages::from_base(Arc::new(vec![7; 10]), 10);
        pages.write(usize::MAX - 3, &[1, 2, 3]);
        assert_eq!(pages.len(), usize::MAX);
        for (offset, expected) in [(usize::MAX - 3, [1, 2, 3, 0, 0]), (usize::MAX, [0; 5]), (0, [7; 5])] {
            let mut read = [0xff; 5];
            assert_eq!(pages.read(offset, &mut read), 5.min(usize::MAX - offset));
            assert_eq!(read, expected, "at {offset}");
        }
        let too_far = std::panic::catch_unwind(move || pages.write(usize::MAX - 3, &[1; 4]));
        assert!(too_far.is_err());
    }

    #[test]
    fn the_base_is_not_copied() {
        let bytes = vec![7; 10 * PAGE];
        let address = bytes.as_ptr();
        let len = bytes.len();
        let pages = Pages::from_base(Arc::new(bytes), len);
        assert_eq!((*pages.base.unwrap()).as_ref().as_ptr(), address);
    }
}
