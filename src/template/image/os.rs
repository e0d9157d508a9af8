//! Files that are the user's own, and mapping them: what depends on the operating system.
#![allow(unsafe_code, reason = "to map a file is unsafe, for it may be changed; and who the user is only C says")]

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::content::pages::Base;

/// The bytes of a file that is never written to again.
pub(super) fn map(file: &File) -> io::Result<Base> {
    // SAFETY: images are read-only, in a folder that nobody else can write to; this crate replaces and removes them but never
    // writes to one, and a mapping keeps what it maps when its file is removed. The documentation of `Template` says that
    // nobody else may change one in its place.
    let map = unsafe { Mmap::map(file)? };
    Ok(Arc::new(map))
}

/// Makes the folder, if it is not there, and checks that nobody else can write to it.
pub(super) fn private_folder(path: &Path) -> io::Result<()> {
    if !path.is_absolute() {
        // Tests of different packages run in different folders.
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "RUSQLITE_FIXTURES_DIR must be an absolute path"));
    }
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)?;
    if is_private(&fs::metadata(path)?) {
        return Ok(());
    }
    let reason = "other users can write to it, or own it; run `chmod go-w` on it if it is yours, or set \
                  RUSQLITE_FIXTURES_DIR to another folder";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
}

/// Whether only this user can have written it.
#[cfg(unix)]
pub(super) fn is_private(metadata: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    // SAFETY: "These functions are always successful" (geteuid(2)).
    let user = unsafe { libc::geteuid() };
    metadata.uid() == user && metadata.mode() & 0o022 == 0
}

/// Elsewhere, a user's own folders are private unless somebody opened them up.
#[cfg(not(unix))]
pub(super) fn is_private(_: &Metadata) -> bool {
    true
}

/// Opens a file, which is made if it is not there.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    options(0o600).write(true).create(true).truncate(false).open(path)
}

/// Makes a file that can be written to only through what is returned.
pub(super) fn create_read_only(path: &Path) -> io::Result<File> {
    options(0o400).write(true).create_new(true).open(path)
}

#[cfg_attr(not(unix), expect(unused_variables, reason = "only Unix has modes"))]
fn options(mode: u32) -> OpenOptions {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "only Unix has modes"))]
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    options
}
