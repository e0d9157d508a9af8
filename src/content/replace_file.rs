//! Replacing a file with a complete one.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Writes the file `aside` and renames it to `path`, which it replaces. If that fails, removes `aside`; the file at `path`
/// stays unchanged. `create` must fail if there is a file `aside`: it may belong to another process.
pub(crate) fn replace_file(
    path: &Path,
    aside: &Path,
    create: impl FnOnce(&Path) -> io::Result<File>,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = create(aside)?;
    let replaced = write(&mut file).and_then(|()| fs::rename(aside, path));
    if replaced.is_err() {
        let _ = fs::remove_file(aside); // the first error is the one to report
    }
    replaced
}
