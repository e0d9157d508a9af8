//! The content of a database file as immutable pages that many images share.

use std::sync::Arc;

/// Bytes in one shared page. SQLite's default page size, so that in the usual case one of its pages is one of ours; any
/// other page size works too, as a part of one page or as several.
const PAGE: usize = 4096;

/// Children of one node. Small, because the first write below a shared node copies it and touches the reference count
/// of every child.
const FAN_OUT: usize = 16;
const BITS: u32 = FAN_OUT.trailing_zeros();

type Page = [u8; PAGE];

/// One image of a file: cheap to clone, copied page by page as it is written.
#[derive(Clone, Default)]
pub(crate) struct Pages {
    /// Page 0, kept out of the tree because every commit changes it (SQLite's change counter is in it).
    first: Option<Arc<Page>>,
    changed: Tree,
    /// What a page holds that is not in `first` or `changed`, in the first `base_len` bytes.
    base: Option<Arc<Vec<u8>>>,
    base_len: usize,
    len: usize,
}

impl Pages {
    /// An image of these bytes. They are kept as they are, not copied.
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Pages {
        let len = bytes.len();
        Pages { base: Some(Arc::new(bytes)), base_len: len, len, ..Pages::default() }
    }

    /// Bytes in the image.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether both images are one and the same: they share every page. (`false` says nothing.)
    pub(crate) fn same(&self, other: &Pages) -> bool {
        let bases = (self.base.as_ref(), other.base.as_ref());
        self.len == other.len
            && self.base_len == other.base_len
            && same_or_none(bases.0, bases.1)
            && same_or_none(self.first.as_ref(), other.first.as_ref())
            && same_or_none(self.changed.root.as_ref(), other.changed.root.as_ref())
    }

    /// Fills `buffer` from `offset` on, with zeros beyond the end; returns how many bytes lay within the image.
    pub(crate) fn read(&self, offset: usize, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buffer.len() {
            let (index, start) = split(offset + done);
            let count = (PAGE - start).min(buffer.len() - done);
            self.read_page(index, start, &mut buffer[done..done + count]);
            done += count;
        }
        buffer.len().min(self.len.saturating_sub(offset))
    }

    /// Writes `data` at `offset`; the image grows as needed, with zeros between its old end and `offset`.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let (index, start) = split(offset + done);
            let count = (PAGE - start).min(data.len() - done);
            self.write_page(index, start, &data[done..done + count]);
            done += count;
        }
        self.len = self.len.max(offset + data.len());
    }

    /// Cuts the image to `len` bytes, or lengthens it with zeros.
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

    /// A copy of the whole image.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read(0, &mut bytes);
        bytes
    }

    fn page(&self, index: usize) -> Option<&Page> {
        if index == 0 { self.first.as_deref() } else { self.changed.get(index) }
    }

    fn read_page(&self, index: usize, start: usize, buffer: &mut [u8]) {
        if let Some(page) = self.page(index) {
            return buffer.copy_from_slice(&page[start..start + buffer.len()]);
        }
        let from = (index * PAGE + start).min(self.base_len);
        let count = (self.base_len - from).min(buffer.len());
        if let Some(base) = &self.base {
            buffer[..count].copy_from_slice(&base[from..from + count]);
        }
        buffer[count..].fill(0);
    }

    fn write_page(&mut self, index: usize, start: usize, data: &[u8]) {
        if let Some(page) = self.slot(index).as_mut().and_then(Arc::get_mut) {
            return page[start..start + data.len()].copy_from_slice(data);
        }
        let page = if data.len() == PAGE {
            new_page(data)
        } else {
            let mut page = [0; PAGE];
            self.read_page(index, 0, &mut page);
            page[start..start + data.len()].copy_from_slice(data);
            new_page(&page)
        };
        *self.slot(index) = Some(page);
    }

    fn slot(&mut self, index: usize) -> &mut Option<Arc<Page>> {
        if index == 0 { &mut self.first } else { self.changed.slot(index) }
    }
}

fn split(offset: usize) -> (usize, usize) {
    (offset / PAGE, offset % PAGE)
}

fn new_page(data: &[u8]) -> Arc<Page> {
    Arc::<[u8]>::from(data).try_into().expect("a page is PAGE bytes long")
}

fn same_or_none<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// A sparse array of pages: a radix tree that shares its nodes with its clones until either changes them.
#[derive(Clone, Default)]
struct Tree {
    root: Option<Arc<Node>>,
    /// Levels of nodes; the root covers `FAN_OUT.pow(height)` pages.
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

    /// The place of page `index`, after copying the nodes on the way to it that are shared.
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

    /// Forgets every page from `count` on.
    fn truncate(&mut self, count: usize) {
        if count == 0 {
            *self = Tree::default();
        } else if let Some(root) = &mut self.root {
            cut(root, self.height, count);
        }
    }
}

/// Forgets what lies from page `count` on below a node of this level.
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
