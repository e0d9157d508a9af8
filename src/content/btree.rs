//! The pages of a B-tree, as SQLite's "Database File Format" has them.

use std::ops::Range;

use super::pages::Pages;

/// The size of the header of the first page, in bytes.
pub(super) const HEADER: usize = 100;

/// The types of the pages of a table.
pub(super) const INTERIOR: u8 = 0x05;
pub(super) const LEAF: u8 = 0x0d;

/// The size of a database's pages.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) page_size: usize,
    /// The number of bytes of a page that SQLite uses.
    pub(super) usable: usize,
}

impl Layout {
    pub(super) fn of(pages: &Pages) -> Option<Layout> {
        let mut header = [0; HEADER];
        if pages.read(0, &mut header) < HEADER {
            return None;
        }
        let page_size = match u16_at(&header, 16)? {
            1 => 65_536,
            size if size >= 512 && size.is_power_of_two() => usize::from(size),
            _ => return None,
        };
        let usable = page_size - usize::from(header[20]);
        (usable >= 480).then_some(Layout { page_size, usable }) // SQLite's minimum
    }

    /// Returns the range of this page's used bytes, without the header of the first page.
    pub(super) fn content(self, page: u32) -> Range<usize> {
        let start = (page as usize - 1) * self.page_size;
        start + if page == 1 { HEADER } else { 0 }..start + self.usable
    }

    /// Returns the used bytes of a page, with the header of the first page.
    pub(super) fn page(self, pages: &Pages, number: u32) -> Option<Vec<u8>> {
        let mut page = vec![0; self.usable];
        let offset = (number.checked_sub(1)? as usize).checked_mul(self.page_size)?;
        (pages.read(offset, &mut page) == self.usable).then_some(page)
    }

    /// Returns how many bytes of a record of this size are in the cell itself ("B-tree Pages").
    pub(super) fn local(self, size: usize) -> usize {
        let usable = self.usable;
        let (most, least) = (usable - 35, (usable - 12) * 32 / 255 - 23);
        if size <= most {
            return size;
        }
        let fitting = least + (size - least) % (usable - 4);
        if fitting <= most { fitting } else { least }
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|four| u32::from_be_bytes([four[0], four[1], four[2], four[3]]))
}

/// Returns a number of up to nine bytes, and the position after it.
pub(super) fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut number = 0;
    for (index, byte) in bytes.get(at..)?.iter().take(9).enumerate() {
        if index == 8 {
            return Some((number << 8 | u64::from(*byte), at + 9));
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((number, at + index + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn pages_with_header(page_size: u16, reserved: u8, len: usize) -> Pages {
        let mut bytes = vec![0; len.max(21)];
        bytes[16..18].copy_from_slice(&page_size.to_be_bytes());
        bytes[20] = reserved;
        bytes.truncate(len);
        Pages::from_base(Arc::new(bytes), len)
    }

    #[test]
    fn unsupported_page_sizes_have_no_layout() {
        let size =
            |page_size, reserved, len| Layout::of(&pages_with_header(page_size, reserved, len)).map(|it| it.usable);
        assert_eq!(size(512, 0, HEADER), Some(512));
        assert_eq!(size(512, 32, HEADER), Some(480));
        assert_eq!(size(512, 33, HEADER), None, "fewer usable bytes than SQLite's minimum");
        assert_eq!(size(1, 0, HEADER), Some(65_536));
        assert_eq!(size(512, 0, HEADER - 1), None);
        assert_eq!([256, 513, 1000].map(|page_size| size(page_size, 0, HEADER)), [None; 3]);
    }

    /// The formulas of "B-tree Pages": if a page has 4096 bytes, a leaf holds 489 to 4061 bytes of a record.
    #[test]
    fn the_part_of_a_record_in_its_cell_follows_the_file_format() {
        let pages = pages_with_header(4096, 0, HEADER);
        let layout = Layout::of(&pages).unwrap();
        let local = [4061, 4062, 4581, 5000, 8152, 8153, 8154].map(|size| layout.local(size));
        assert_eq!(local, [4061, 489, 489, 908, 4060, 4061, 489]);
    }

    #[test]
    fn numbers_of_two_bytes_are_read() {
        assert_eq!([0, 1, 2, 3].map(|at| u16_at(&[1, 2, 3, 4], at)), [Some(0x0102), Some(0x0203), Some(0x0304), None]);
    }

    #[test]
    fn numbers_of_up_to_nine_bytes_are_read() {
        assert_eq!(varint(&[0x7f], 0), Some((0x7f, 1)));
        assert_eq!(varint(&[0, 0x81, 0x00], 1), Some((0x80, 3)));
        assert_eq!(varint(&[0xff; 9], 0), Some((u64::MAX, 9)));
        assert_eq!(varint(&[0xff; 8], 0), None);
        assert_eq!(varint(&[], 0), None);
    }
}
