//! Private files, and mapping them: the part that depends on the operating system.
#![allow(unsafe_code, reason = "mapping a file is unsafe, because the file may change; and only C has the user's id")]

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::content::pages::Base;

/// Maps a file that is never written to again.
pub(super) fn map(file: &File) -> io::Result<Base> {
    // SAFETY: images are read-only, in a folder that other users can't write to. This crate replaces and removes images, but
    // never writes to one, and a mapping keeps its content when its file is removed. The documentation of `Template`
    // forbids other programs to change an image in place.
    let map = unsafe { Mmap::map(file)? };
    Ok(Arc::new(map))
}

/// Creates the folder if it does not exist, and checks that other users can't write to it.
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

/// Returns whether only this user can have written the file. On systems other than Unix, a user's folders are private
/// unless their permissions were changed.
#[cfg_attr(not(unix), expect(unused_variables, reason = "only Unix has modes"))]
pub(super) fn is_private(metadata: &Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        // SAFETY: "These functions are always successful" (geteuid(2)).
        let user = unsafe { libc::geteuid() };
        metadata.uid() == user && metadata.mode() & 0o022 == 0
    }
    #[cfg(not(unix))]
    true
}

/// Opens a file, and creates it if it does not exist.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    options(0o600).write(true).create(true).truncate(false).open(path)
}

/// Creates a file that can be written to only through the returned handle.
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
