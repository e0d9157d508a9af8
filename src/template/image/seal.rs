//! The seal behind the last page of an image, which shows whether the image is complete and unchanged.

use std::fmt;
use std::fs::{File, Metadata};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use twox_hash::XxHash3_128;

/// A seal. It is written as text, so that people can read it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seal {
    pub(super) identity: u128,
    checksum: u128,
    /// The size of the database in bytes.
    size: u64,
    /// The modification time that the file's metadata must have, in seconds since 1970.
    modified: u64,
}

const TITLE: &str = "\nrusqlite-fixtures image\n";
/// The size of a seal in bytes: its title and its four lines.
const LEN: usize = TITLE.len() + 42 + 42 + 26 + 30;

impl Seal {
    /// Returns the seal for an image that is being written.
    pub(super) fn new(identity: u128, checksum: u128, size: usize) -> Seal {
        // The time is in the past, so that any later write to the file changes it, even if the file system's clock is
        // coarse.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Seal { identity, checksum, size: size as u64, modified: now.as_secs().saturating_sub(10) }
    }

    /// Splits an image into the database and the seal, if it has a seal with the size of the database.
    pub(super) fn split(bytes: &[u8]) -> Option<(&[u8], Seal)> {
        let (content, seal) = bytes.split_at_checked(bytes.len().checked_sub(LEN)?)?;
        let seal = Seal::parse(std::str::from_utf8(seal).ok()?)?;
        (seal.size == content.len() as u64).then_some((content, seal))
    }

    fn parse(text: &str) -> Option<Seal> {
        let mut lines = text.strip_prefix(TITLE)?.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        Some(Seal {
            identity: u128::from_str_radix(field("identity")?, 16).ok()?,
            checksum: u128::from_str_radix(field("checksum")?, 16).ok()?,
            size: field("size")?.parse().ok()?,
            modified: field("modified")?.parse().ok()?,
        })
    }

    pub(super) fn modified(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.modified)
    }

    /// Returns whether the database is unchanged since it was sealed. If the modification time is the seal's, the file has
    /// not been written to. Otherwise, for example after a copy from another machine, the checksum decides.
    pub(super) fn is_whole(&self, content: &[u8], file: &File, metadata: &Metadata) -> bool {
        if metadata.modified().is_ok_and(|modified| modified == self.modified()) {
            return true;
        }
        let is_whole = XxHash3_128::oneshot(content) == self.checksum;
        if is_whole {
            let _ = file.set_modified(self.modified()); // so that the next process need not read all of it
        }
        is_whole
    }
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seal { identity, checksum, size, modified } = self;
        write!(
            f,
            "{TITLE}identity {identity:032x}\nchecksum {checksum:032x}\nsize {size:020}\nmodified {modified:020}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_is_found_behind_what_it_seals() {
        let seal = Seal::new(1 << 100, u128::MAX, 3);
        let sealed = format!("abc{seal}");
        assert_eq!(Seal::split(sealed.as_bytes()), Some((b"abc".as_slice(), seal)));
        for cut in [&sealed[1..], &sealed[..sealed.len() - 1], &sealed[..3], ""] {
            assert_eq!(Seal::split(cut.as_bytes()), None, "{cut:?}");
        }
    }
}
